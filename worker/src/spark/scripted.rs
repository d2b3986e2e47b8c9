//! A server of HTTP for the tests that says what it is told to: a ResourceManager, or an API server.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A server that gives its answers in their order, the last one again and again, and keeps the questions; but of
/// itself, as a ResourceManager, it says the same whenever it is asked.
pub(in crate::spark) struct Scripted {
    pub(in crate::spark) address: String,
    pub(in crate::spark) asked: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    pub(in crate::spark) async fn start(answers: Vec<String>) -> Self {
        Self::start_saying(r#"{"clusterInfo":{"haState":"ACTIVE"}}"#, answers).await
    }

    /// One that says this of itself.
    pub(in crate::spark) async fn start_saying(info: &'static str, answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            let mut answers = answers.into_iter().peekable();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = Vec::new();
                // A question has no body, or one that says how long it is.
                loop {
                    let mut piece = [0; 4096];
                    let read = stream.read(&mut piece).await.unwrap();
                    question.extend_from_slice(&piece[..read]);
                    let text = String::from_utf8_lossy(&question);
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                        break;
                    }
                }
                if question.starts_with(b"GET /ws/v1/cluster/info") {
                    stream.write_all(answer("200 OK", info).as_bytes()).await.unwrap();
                    continue;
                }
                log.lock().unwrap().push(String::from_utf8_lossy(&question).into_owned());
                let answer = answers.next().unwrap();
                if answers.peek().is_none() {
                    answers = vec![answer.clone()].into_iter().peekable();
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { address, asked }
    }

    /// The first lines of what was asked.
    pub(in crate::spark) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|asked| asked.lines().next().unwrap().to_owned()).collect()
    }
}

/// An answer in HTTP, with its status in full.
pub(in crate::spark) fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json;charset=utf-8\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The answer to a question about many applications.
#[cfg(feature = "yarn")]
pub(in crate::spark) fn listing(reports: &[&str]) -> String {
    answer("200 OK", &format!(r#"{{"apps":{{"app":[{}]}}}}"#, reports.join(",")))
}

/// What is read of an application.
#[cfg(feature = "yarn")]
pub(in crate::spark) fn report(id: &str, state: &str, tag: &str, started: u64) -> String {
    format!(
        r#"{{"id":"{id}","state":"{state}","finalStatus":"UNDEFINED","applicationTags":"{tag}","startedTime":{started}}}"#
    )
}
