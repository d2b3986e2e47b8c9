//! What the API server says of a driver's pod, and what that means.
//!
//! Nothing of an answer is taken for granted but its shape: any part of a pod may be missing, and any word of it may be
//! anything.
//!
//! This module must not ask anybody anything.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use crate::spark::Cause;

/// Whose a pod is: those of this service are looked for by this label.
pub const SERVICE: &str = "spark-runtime/service";
/// The job's tag.
pub const JOB: &str = "spark-runtime/job";
/// The ticket of the launch.
pub const TICKET: &str = "spark-runtime/ticket";
/// The annotation that says why this service ends a pod.
pub const ENDED_FOR: &str = "spark-runtime/ended-for";

/// What Spark calls the driver's container, where no pod template names it otherwise.
const DRIVER: &str = "spark-kubernetes-driver";
/// The first argument that Spark gives a driver's container.
const DRIVER_ARGUMENT: &str = "driver";
/// The longest words of others that are handed on, in characters.
const LONGEST_WORDS: usize = 1000;

/// A pod, as far as it is of interest.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Pod {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    spec: Spec,
    #[serde(default, deserialize_with = "or_default")]
    status: Status,
}

/// What `null` stands for in places where Kubernetes means nothing.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    uid: String,
    resource_version: Option<String>,
    deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    volumes: Vec<Volume>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: Option<String>,
    #[serde(deserialize_with = "or_default")]
    args: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    config_map: Option<ConfigMapSource>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ConfigMapSource {
    name: Option<String>,
    optional: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    reason: Option<String>,
    message: Option<String>,
    #[serde(deserialize_with = "or_default")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "or_default")]
    init_container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "or_default")]
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: String,
    #[serde(deserialize_with = "or_default")]
    state: ContainerState,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Waiting>,
    running: Option<RunningSince>,
    terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RunningSince {
    started_at: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    exit_code: i32,
    reason: Option<String>,
    message: Option<String>,
}

/// What is known of a driver's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The pod's name.
    pub name: String,
    /// What tells it from any other of the same name.
    pub uid: String,
    /// The tag of the job that it is of, where it is one of ours.
    pub job: Option<String>,
    /// The ticket of its launch, likewise.
    pub ticket: Option<String>,
    /// The driver's container.
    pub container: String,
    /// How it is with the driver.
    pub state: State,
    /// Somebody has asked for its end.
    pub is_deleted: bool,
    /// The config maps without which it cannot start.
    pub config_maps: Vec<String>,
    /// Why it is taken off its machine, if the cluster itself does that: the cause, and its words.
    pub disruption: Option<(Cause, String)>,
    /// Since when the driver runs, while it does.
    pub since: Option<Timestamp>,
    /// The machine that it was given.
    pub node: Option<String>,
    /// Why this service ends it, if it does, in the word that it was noted with.
    pub ended_for: Option<String>,
}

/// How it is with a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It has not started: what it waits for, and what can be done about it.
    Waiting(String),
    /// It runs.
    Running,
    /// Its machine does not answer: nobody knows.
    Unclear,
    /// It is over.
    Over(Over),
}

/// How a driver ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// Its own end was that of a success.
    pub succeeded: bool,
    /// Its kubelet says that its container has ended. Else it is only called over, and may still run.
    pub is_certain: bool,
    /// Why it ended, when it was none.
    pub cause: Cause,
    /// The same in words; may be empty.
    pub reason: String,
}

impl Pod {
    /// Its name; empty when the answer has none.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// What tells it from any other of the same name.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.metadata.uid
    }

    /// The version of the collection in which it is as this says.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref()
    }

    /// What this says of its driver.
    #[must_use]
    pub fn report(self) -> Report {
        let container = self.driver().unwrap_or(DRIVER).to_owned();
        let disruption = self.disruption();
        let state = self.state(&container, disruption.as_ref());
        let since = self.since(&container);
        let config_maps = self
            .spec
            .volumes
            .into_iter()
            .filter_map(|volume| volume.config_map)
            .filter(|source| source.optional != Some(true))
            .filter_map(|source| source.name)
            .collect();
        let mut labels = self.metadata.labels;
        let mut annotations = self.metadata.annotations;
        Report {
            name: self.metadata.name,
            uid: self.metadata.uid,
            job: labels.remove(JOB),
            ticket: labels.remove(TICKET),
            container,
            state,
            is_deleted: self.metadata.deletion_timestamp.is_some(),
            config_maps,
            disruption,
            since,
            node: self.spec.node_name.filter(|node| !node.is_empty()),
            ended_for: annotations.remove(ENDED_FOR),
        }
    }

    /// Since when the container runs, where that can be read.
    fn since(&self, container: &str) -> Option<Timestamp> {
        let status = self.status.container_statuses.iter().find(|status| status.name == container)?;
        status.state.running.as_ref()?.started_at.as_deref()?.parse().ok()
    }

    /// The container of the driver: by its usual name, or, where a pod template has given it another, by what Spark tells it.
    fn driver(&self) -> Option<&str> {
        let containers = &self.spec.containers;
        let is_told = |container: &&Container| {
            container.args.first().is_some_and(|argument| argument == DRIVER_ARGUMENT)
        };
        let found = containers
            .iter()
            .find(|container| container.name == DRIVER)
            .or_else(|| containers.iter().find(is_told))
            .or_else(|| if let [only] = &containers[..] { Some(only) } else { None })?;
        Some(&found.name)
    }

    fn state(&self, container: &str, disruption: Option<&(Cause, String)>) -> State {
        let status = self.status.container_statuses.iter().find(|status| status.name == container);
        let state = status.map(|status| &status.state);
        if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
            return State::Over(self.over(terminated, disruption));
        }
        match self.status.phase.as_deref() {
            Some("Succeeded") => {
                // It is its kubelet alone that says so.
                State::Over(Over {
                    succeeded: true,
                    is_certain: true,
                    cause: Cause::Other,
                    reason: String::new(),
                })
            }
            Some("Failed") => {
                let (cause, reason) = match disruption {
                    Some((cause, words)) => (*cause, words.clone()),
                    None => (Cause::Other, self.own_words().unwrap_or_default()),
                };
                State::Over(Over { succeeded: false, is_certain: false, cause, reason })
            }
            Some("Unknown") => State::Unclear,
            _ if state.is_some_and(|state| state.running.is_some()) => State::Running,
            _ => State::Waiting(self.waits_for(container, state)),
        }
    }

    fn over(&self, terminated: &Terminated, disruption: Option<&(Cause, String)>) -> Over {
        let code = terminated.exit_code;
        if code == 0 {
            return Over { succeeded: true, is_certain: true, cause: Cause::Other, reason: String::new() };
        }
        let said = terminated.reason.as_deref().unwrap_or_default();
        let mut words = format!("its container ended with exit code {code}");
        for more in [terminated.reason.as_deref(), terminated.message.as_deref()] {
            // What says no more than that.
            if let Some(more) = more.filter(|more| !matches!(*more, "" | "Error")) {
                words.push_str(&format!(", {}", one_line(more)));
            }
        }
        let (cause, reason) = match (said, disruption) {
            ("OOMKilled", _) => (Cause::Memory, words),
            (_, Some((cause, why))) => (*cause, format!("{why}; {words}")),
            // The machine came back without it.
            ("ContainerStatusUnknown", _) => (Cause::NodeLost, words),
            _ => match self.own_words() {
                Some(own) => (Cause::Exit(code), format!("{own}; {words}")),
                None => (Cause::Exit(code), words),
            },
        };
        Over { succeeded: false, is_certain: true, cause, reason }
    }

    /// Why the cluster itself takes the pod off its machine, if it does: by the condition that says so, and by the reasons
    /// that kubelets and controllers give for a pod that failed.
    fn disruption(&self) -> Option<(Cause, String)> {
        let condition =
            self.status.conditions.iter().find(|one| one.kind == "DisruptionTarget" && one.status == "True");
        let by_pod = match self.status.reason.as_deref() {
            Some("Evicted") => Some(Cause::Evicted),
            Some("Preempting" | "Preempted") => Some(Cause::Preempted),
            Some("NodeLost" | "NodeShutdown" | "Shutdown" | "Terminated" | "NodeAffinity") => {
                Some(Cause::NodeLost)
            }
            _ => None,
        };
        let by_condition = condition.map(|condition| match condition.reason.as_deref() {
            Some("DeletionByTaintManager" | "DeletionByPodGC") => Cause::NodeLost,
            Some("TerminationByKubelet") => Cause::Evicted,
            // Somebody with more of a right to its place, or who empties the machine.
            _ => Cause::Preempted,
        });
        // The pod's own reason is the more exact one.
        let cause = by_pod.or(by_condition)?;
        let words = self.own_words().or_else(|| {
            let condition = condition?;
            joined(condition.reason.as_deref(), condition.message.as_deref())
        });
        Some((cause, words.unwrap_or_default()))
    }

    fn own_words(&self) -> Option<String> {
        joined(self.status.reason.as_deref(), self.status.message.as_deref())
    }

    /// What a pod waits for whose driver has not started, and what can be done about it.
    fn waits_for(&self, container: &str, state: Option<&ContainerState>) -> String {
        let node = self.spec.node_name.as_deref().filter(|node| !node.is_empty());
        let unscheduled = self
            .status
            .conditions
            .iter()
            .find(|one| one.kind == "PodScheduled" && one.status == "False")
            .filter(|_| node.is_none());
        if let Some(condition) = unscheduled {
            let why = joined(condition.reason.as_deref(), condition.message.as_deref());
            return format!(
                "no machine has been found for it: {}; ask for less memory or fewer cores, or see that a machine has room",
                why.unwrap_or_else(|| "Kubernetes does not say why".to_owned())
            );
        }
        // What comes before the driver has to be over first.
        let waiting = self
            .status
            .init_container_statuses
            .iter()
            .find_map(|status| Some((status.name.as_str(), status.state.waiting.as_ref()?)))
            .filter(|(_, waiting)| is_trouble(waiting))
            .or_else(|| Some((container, state?.waiting.as_ref()?)));
        let Some((name, waiting)) = waiting else {
            return match node {
                None => "no machine has been looked for; see that a scheduler runs".to_owned(),
                Some(node) => {
                    format!("the machine {} has not begun with it; see that its kubelet runs", one_line(node))
                }
            };
        };
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let image =
            self.spec.containers.iter().find(|one| one.name == name).and_then(|one| one.image.as_deref());
        let advice = match reason {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull"
            | "ImageInspectError" => format!(
                "the machine cannot get the image {}; see spark.kubernetes.container.image and kubernetes.image",
                one_line(image.unwrap_or("of the container"))
            ),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                "see the secrets, config maps and volumes that the pod names".to_owned()
            }
            _ => "see kubectl describe pod".to_owned(),
        };
        let why = joined(waiting.reason.as_deref(), waiting.message.as_deref());
        let why = why.unwrap_or_else(|| "Kubernetes does not say what for".to_owned());
        format!("its container {} waits: {why}; {advice}", one_line(name))
    }
}

/// Whether it waits for something that does not come by itself.
fn is_trouble(waiting: &Waiting) -> bool {
    !matches!(waiting.reason.as_deref(), None | Some("" | "PodInitializing" | "ContainerCreating"))
}

fn joined(reason: Option<&str>, message: Option<&str>) -> Option<String> {
    let said = |words: Option<&str>| words.map(one_line).filter(|words| !words.is_empty());
    match (said(reason), said(message)) {
        (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
        (reason, message) => reason.or(message),
    }
}

/// Words of others as one line that can be read.
#[must_use]
pub fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let line = words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_WORDS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

impl Report {
    /// Whether nothing of the driver runs any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over(_))
    }

    /// Whether its kubelet has said so.
    #[must_use]
    pub fn is_certainly_over(&self) -> bool {
        matches!(&self.state, State::Over(over) if over.is_certain)
    }

    /// Whether it began to run, and no kubelet has said that it ended.
    #[must_use]
    pub fn may_still_run(&self) -> bool {
        match &self.state {
            State::Waiting(_) => false,
            State::Running | State::Unclear => true,
            State::Over(over) => !over.is_certain,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn report(status: Value) -> Report {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "uid": "u", "labels": {JOB: "j", TICKET: "t", "x": "y"}, "generation": 1},
            "spec": {
                "containers": [
                    {"name": "proxy", "image": "proxy:1", "livenessProbe": {"httpGet": {"port": 15021}}},
                    {"name": DRIVER, "image": "spark:4", "args": ["driver", "--class", "x"]},
                ],
                "volumes": [
                    {"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "conf", "defaultMode": 420}},
                    {"name": "c", "configMap": {"name": "spare", "optional": true}},
                ],
            },
            "status": status,
        });
        serde_json::from_str::<Pod>(&pod.to_string()).unwrap().report()
    }

    fn driver(state: Value) -> Value {
        json!({"name": DRIVER, "ready": true, "restartCount": 0, "state": state})
    }

    fn words(status: Value) -> String {
        match report(status).state {
            State::Waiting(words) => words,
            other => panic!("{other:?}"),
        }
    }

    fn over(status: Value) -> Over {
        match report(status).state {
            State::Over(over) => over,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_driver_goes_from_waiting_through_running_to_an_end() {
        let waiting = report(json!({"phase": "Pending"}));
        assert_eq!((waiting.job.as_deref(), waiting.ticket.as_deref()), (Some("j"), Some("t")));
        assert_eq!((waiting.container.as_str(), waiting.config_maps), (DRIVER, vec!["conf".to_owned()]));
        let running = json!({"phase": "Running", "containerStatuses": [driver(json!({"running": {"startedAt": "t"}}))]});
        assert_eq!(report(running).state, State::Running);
        let since = json!({"phase": "Running", "containerStatuses": [
            driver(json!({"running": {"startedAt": "2026-01-02T03:04:05Z"}}))]});
        assert_eq!(report(since).since, Some("2026-01-02T03:04:05Z".parse().unwrap()));
        let done = json!({"phase": "Succeeded", "containerStatuses": [driver(json!({"terminated": {"exitCode": 0}}))]});
        assert!(over(done).succeeded);
        assert_eq!(report(json!({"phase": "Unknown"})).state, State::Unclear);
    }

    #[test]
    fn only_the_container_of_the_driver_counts() {
        let proxy = |state: Value| json!({"name": "proxy", "state": state});
        // It is over, and its side-car goes on for ever.
        let status = json!({"phase": "Running", "containerStatuses": [
            proxy(json!({"running": {}})), driver(json!({"terminated": {"exitCode": 3, "reason": "Error"}}))]});
        assert_eq!(
            over(status),
            Over {
                succeeded: false,
                is_certain: true,
                cause: Cause::Exit(3),
                reason: "its container ended with exit code 3".to_owned()
            }
        );
        // The side-car has failed: the driver runs, or has done well.
        let status = json!({"phase": "Running", "containerStatuses": [
            proxy(json!({"terminated": {"exitCode": 1}})), driver(json!({"running": {}}))]});
        assert_eq!(report(status).state, State::Running);
        let status = json!({"phase": "Failed", "containerStatuses": [
            proxy(json!({"terminated": {"exitCode": 1}})), driver(json!({"terminated": {"exitCode": 0}}))]});
        assert!(over(status).succeeded);
        // The side-car runs, the driver does not yet.
        let status = json!({"phase": "Running", "containerStatuses": [proxy(json!({"running": {}}))]});
        assert!(matches!(report(status).state, State::Waiting(_)));
    }

    #[test]
    fn a_driver_that_a_template_calls_otherwise_is_known_by_what_it_is_told() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "log", "args": ["-f"]}, {"name": "mine", "args": ["driver"]}]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "log", "state": {"running": {}}}, {"name": "mine", "state": {"terminated": {"exitCode": 0}}}]}});
        let report = serde_json::from_value::<Pod>(pod).unwrap().report();
        assert_eq!(report.container, "mine");
        assert!(report.is_over());
    }

    #[test]
    fn why_a_driver_has_no_place_is_told_with_what_can_be_done() {
        let unscheduled = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/3 nodes are available:\n3 Insufficient memory."}]});
        assert_eq!(
            words(unscheduled),
            "no machine has been found for it: Unschedulable: 0/3 nodes are available: 3 Insufficient memory.; ask for less \
             memory or fewer cores, or see that a machine has room"
        );
        let image = json!({"phase": "Pending", "containerStatuses": [driver(json!({"waiting": {
            "reason": "ImagePullBackOff", "message": "Back-off pulling image \"spark:4\""}}))]});
        assert_eq!(
            words(image),
            "its container spark-kubernetes-driver waits: ImagePullBackOff: Back-off pulling image \"spark:4\"; the machine \
             cannot get the image spark:4; see spark.kubernetes.container.image and kubernetes.image"
        );
        let secret = json!({"phase": "Pending", "containerStatuses": [driver(json!({"waiting": {
            "reason": "CreateContainerConfigError", "message": "secret \"s\" not found"}}))]});
        assert!(words(secret).ends_with(
            "waits: CreateContainerConfigError: secret \"s\" not found; see the secrets, config maps and volumes that the \
             pod names"
        ));
        let init = json!({"phase": "Pending",
            "initContainerStatuses": [{"name": "init", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
            "containerStatuses": [driver(json!({"waiting": {"reason": "PodInitializing"}}))]});
        assert!(words(init).starts_with("its container init waits: CrashLoopBackOff; "));
        assert!(words(json!({})).starts_with("no machine has been looked for"));
    }

    #[test]
    fn what_ended_a_driver_is_told_apart() {
        let oom = json!({"phase": "Failed", "containerStatuses": [
            driver(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}))]});
        assert_eq!(over(oom).cause, Cause::Memory);
        let evicted = json!({"phase": "Failed", "reason": "Evicted",
            "message": "The node was low on resource: memory.", "containerStatuses": []});
        assert_eq!(
            over(evicted),
            Over {
                succeeded: false,
                is_certain: false,
                cause: Cause::Evicted,
                reason: "Evicted: The node was low on resource: memory.".to_owned()
            }
        );
        let disrupted = |reason: &str| {
            over(json!({"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True",
                "reason": reason, "message": "m"}], "containerStatuses": [
                driver(json!({"terminated": {"exitCode": 143}}))]}))
        };
        assert_eq!(disrupted("PreemptionByScheduler").cause, Cause::Preempted);
        assert_eq!(
            disrupted("DeletionByTaintManager"),
            Over {
                succeeded: false,
                is_certain: true,
                cause: Cause::NodeLost,
                reason: "DeletionByTaintManager: m; its container ended with exit code 143".to_owned()
            }
        );
        let called_off = json!({"phase": "Failed", "containerStatuses": [
            driver(json!({"terminated": {"exitCode": 75, "reason": "Error"}}))]});
        assert_eq!(over(called_off).cause, Cause::Exit(75));
        let start = json!({"phase": "Failed", "containerStatuses": [driver(json!({"terminated": {
            "exitCode": 128, "reason": "StartError", "message": "exec: \"x\": not found"}}))]});
        assert_eq!(
            over(start).reason,
            "its container ended with exit code 128, StartError, exec: \"x\": not found"
        );
        let gone = json!({"phase": "Failed", "containerStatuses": [
            driver(json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}))]});
        assert_eq!(over(gone).cause, Cause::NodeLost);
    }

    #[test]
    fn parts_that_are_missing_null_or_empty_are_no_state() {
        for status in [
            json!(null),
            json!({}),
            json!({"phase": null, "containerStatuses": null, "conditions": null}),
            json!({"phase": "Pending", "containerStatuses": []}),
            json!({"phase": "Running", "containerStatuses": [{"name": DRIVER, "state": null}]}),
            json!({"phase": "Running", "containerStatuses": [{}]}),
        ] {
            assert!(matches!(report(status.clone()).state, State::Waiting(_)), "{status}");
        }
        let bare = serde_json::from_str::<Pod>("{}").unwrap().report();
        assert_eq!((bare.job, bare.ticket, bare.container.as_str()), (None, None, DRIVER));
        for wrong in [r#"{"status": {"containerStatuses": 1}}"#, "[1]", r#""pod""#, "<html>"] {
            assert!(serde_json::from_str::<Pod>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_of_others_are_short_and_in_one_line() {
        assert_eq!(one_line(" a\n\tb\u{1b}[31mc \0"), "a b [31mc");
        assert_eq!(one_line(&"ü".repeat(5000)).chars().count(), LONGEST_WORDS + 1);
    }
}
