//! An API server for the tests that says what it is told to.

use std::sync::{Arc, Mutex};

use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::api::Api;
use super::pod::{JOB, TICKET};
pub(super) use crate::spark::scripted::{Scripted, answer};

/// What asks that server.
pub(super) fn api(server: &Scripted) -> Api {
    api_at(&server.address)
}

fn api_at(address: &str) -> Api {
    let mut config = Config::new(address.parse().unwrap());
    config.default_retry = false;
    Api::new(Client::try_from(config).unwrap(), address, "team")
}

/// A namespace with one pod at most, for whoever asks for it in whichever way.
#[derive(Default)]
pub(super) struct World {
    /// The pod.
    pub(super) pod: Option<Value>,
    /// Nothing is answered that is of any use.
    pub(super) is_away: bool,
    /// What is answered to a deletion, and what the pod is from then on; else it is gone then.
    pub(super) on_delete: Option<(String, Option<Value>)>,
    /// What was asked, by methods and paths, with the bodies.
    pub(super) asked: Vec<String>,
}

/// That namespace, and what asks for it.
pub(super) async fn world(pod: Option<Value>) -> (Arc<Mutex<World>>, Api) {
    let world = Arc::new(Mutex::new(World { pod, ..World::default() }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shared = world.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let shared = shared.clone();
            tokio::spawn(async move {
                let Some(question) = question(&mut stream).await else { return };
                let answer = shared.lock().unwrap().answer(&question);
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (world, api_at(&address))
}

async fn question(stream: &mut TcpStream) -> Option<String> {
    let mut question = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        question.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&question);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Some(text.into_owned());
        }
    }
}

impl World {
    fn answer(&mut self, question: &str) -> String {
        let line = question.lines().next().unwrap_or_default().to_owned();
        let body = question.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        self.asked.push(format!("{line} {body}"));
        if self.is_away {
            return answer("503 Service Unavailable", "");
        }
        let none = || answer("404 Not Found", &status(404, "NotFound", "not found").to_string());
        match &self.pod {
            _ if line.contains("watch=1") => events(&[]),
            pod if line.contains("labelSelector=") => list(pod.as_slice(), 5, ""),
            None => none(),
            Some(_) if line.contains("/log") => none(),
            Some(_) if line.starts_with("DELETE") => {
                let (text, pod) = self.on_delete.clone().unwrap_or_else(|| (answer("200 OK", "{}"), None));
                self.pod = pod;
                text
            }
            Some(pod) => answer("200 OK", &pod.to_string()),
        }
    }

    /// How often something was asked that begins like this.
    pub(super) fn count(&self, beginning: &str) -> usize {
        self.asked.iter().filter(|asked| asked.starts_with(beginning)).count()
    }
}

/// A pod as the server shows it, with the phase and the state of the driver's container.
pub(super) fn pod(name: &str, version: u32, phase: &str, state: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": version.to_string(),
            "labels": {JOB: "tag", TICKET: "ticket"}},
        "spec": {"containers": [{"name": "spark-kubernetes-driver"}]},
        "status": {"phase": phase, "containerStatuses": [{"name": "spark-kubernetes-driver", "state": state}]},
    })
}

/// The answer to a list.
pub(super) fn list(pods: &[Value], version: u32, next: &str) -> String {
    let list = json!({"kind": "PodList", "apiVersion": "v1", "items": pods,
        "metadata": {"resourceVersion": version.to_string(), "continue": next}});
    answer("200 OK", &list.to_string())
}

/// The answer to a watch.
pub(super) fn events(events: &[(&str, Value)]) -> String {
    let lines: Vec<String> = events
        .iter()
        .map(|(kind, object)| json!({"type": kind, "object": object}).to_string() + "\n")
        .collect();
    answer("200 OK", &lines.concat())
}

/// A refusal as the server words it.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code})
}
