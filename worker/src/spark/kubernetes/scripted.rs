//! An API server for the tests that says what it is told to.

use kube::{Client, Config};
use serde_json::{Value, json};

use super::api::Api;
use super::pod::{JOB, TICKET};
pub(super) use crate::spark::yarn::scripted::{Scripted, answer};

/// What asks that server.
pub(super) fn api(server: &Scripted) -> Api {
    let mut config = Config::new(server.address.parse().unwrap());
    config.default_retry = false;
    Api::new(Client::try_from(config).unwrap(), &server.address, "team")
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
