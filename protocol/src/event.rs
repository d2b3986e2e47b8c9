//! Events: what the service says about a job, as CloudEvents 1.0 in structured JSON.
//!
//! An event's id is made of the job, the attempt and the kind, so that publishing it again gives the same id and a
//! subscriber can drop repeats. `serde` alone decides the wire form; [`crate::schema`] describes it for other languages
//! and a test holds the two together.
//!
//! This module must not know how events are published, nor when.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::job::{JobId, JobType};
use crate::json::Fault;

/// The content type of every event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// What happened. The first five are steps; exactly one of the next four ends a job; the last is about another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A worker took the job and found nothing wrong with it.
    Accepted,
    /// Its files lie in a fresh working directory.
    Staged,
    /// spark-submit was started.
    Submitted,
    /// The driver is about to run the model.
    Running,
    /// The attempt ended without a result; another one follows.
    Retrying,
    /// The function ran to its end.
    Completed,
    /// No attempt brought the function to its end.
    Failed,
    /// Ended on request.
    Cancelled,
    /// Not a job that can be run.
    Rejected,
    /// Beside a job's life: its id was published again with another body.
    Conflict,
}

impl EventKind {
    /// Every kind, in the order of a job's life.
    pub const ALL: [Self; 10] = [
        Self::Accepted,
        Self::Staged,
        Self::Submitted,
        Self::Running,
        Self::Retrying,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Rejected,
        Self::Conflict,
    ];

    /// The last word of the routing key.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Staged => "staged",
            Self::Submitted => "submitted",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Rejected => "rejected",
            Self::Conflict => "conflict",
        }
    }

    /// The CloudEvents type.
    #[must_use]
    pub fn cloud_event_type(self) -> String {
        format!("spark-runtime.job.{}.v1", self.word())
    }

    /// Whether a job that had this event has no other after it.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled | Self::Rejected)
    }

    /// The job's status as ModelOp words it, once this has happened.
    #[must_use]
    pub fn job_status(self) -> JobStatus {
        match self {
            Self::Accepted | Self::Staged | Self::Submitted | Self::Retrying => JobStatus::Waiting,
            Self::Running => JobStatus::Running,
            Self::Completed => JobStatus::Complete,
            Self::Failed | Self::Rejected | Self::Conflict => JobStatus::Error,
            Self::Cancelled => JobStatus::Cancelled,
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// `jobStatus`, in ModelOp's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobStatus {
    /// Published, not taken yet.
    Created,
    /// Taken, not running yet.
    Waiting,
    /// The model runs.
    Running,
    /// Ended by itself.
    Complete,
    /// Ended by an error.
    Error,
    /// Ended on request.
    Cancelled,
}

/// `jobResult`, in ModelOp's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobResult {
    /// Did what was asked.
    Success,
    /// Ended by itself, but not as asked.
    Failure,
    /// It cannot be told, as after an error.
    Unknown,
}

/// An event, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Always `1.0`.
    pub specversion: String,
    /// `<jobId>/<attempt>/<event>[/<n>]`, for a conflict with the digest at the end; the same on every publication.
    pub id: String,
    /// The worker instance that says so.
    pub source: String,
    /// `spark-runtime.job.<event>.v1`.
    #[serde(rename = "type")]
    pub cloud_event_type: String,
    /// The job's id.
    pub subject: JobId,
    /// When it happened.
    pub time: Timestamp,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// W3C trace context of the job message, handed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// W3C trace context of the job message, handed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
    /// What happened, in full.
    pub data: EventData,
}

impl Event {
    /// The kind that the event's type names; `None` for a type that a later version brought.
    #[must_use]
    pub fn kind(&self) -> Option<EventKind> {
        EventKind::ALL.into_iter().find(|kind| kind.cloud_event_type() == self.cloud_event_type)
    }

    /// Makes the event of `kind` for one attempt at a job.
    ///
    /// `data` carries the rest; its `time` is the event's own.
    #[must_use]
    pub fn new(kind: EventKind, source: &str, trace: &TraceContext, data: EventData) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id: format!("{}/{}/{}", data.job_id, data.attempt, kind.word()),
            source: source.to_owned(),
            cloud_event_type: kind.cloud_event_type(),
            subject: data.job_id.clone(),
            time: data.time,
            datacontenttype: "application/json".to_owned(),
            traceparent: trace.traceparent.clone(),
            tracestate: trace.tracestate.clone(),
            data,
        }
    }

    /// `job.<jobId>.<event>`.
    #[must_use]
    pub fn routing_key(kind: EventKind, job: &JobId) -> String {
        format!("job.{job}.{}", kind.word())
    }
}

/// The trace that a job message belongs to, as its headers told (W3C Trace Context).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// Header `traceparent`.
    pub traceparent: Option<String>,
    /// Header `tracestate`.
    pub tracestate: Option<String>,
}

/// The data of an event. The first six stand in every event; the others where they apply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventData {
    /// The job's id.
    pub job_id: JobId,
    /// The job's type; absent when a rejected job had no known one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_type: Option<JobType>,
    /// Counts the times that the job was started, from 1; 0 in a `conflict`, which is about none of them.
    pub attempt: u32,
    /// The worker instance.
    pub worker: String,
    /// ModelOp's word for where the job stands.
    pub job_status: JobStatus,
    /// When it happened.
    pub time: Timestamp,
    /// The `correlation_id` of the job message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// One plain sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `accepted`, terminal: what was fetched from git for the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<FetchedSource>>,
    /// `accepted`, terminal: the runtime that the attempt got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeUsed>,
    /// `submitted`: the cluster's id of the application, where there is a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_id: Option<String>,
    /// `submitted`: where the application can be watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking_url: Option<String>,
    /// `retrying`: the number of the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<u32>,
    /// `retrying`: milliseconds until the job is offered to workers again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// `retrying`, `failed`: why the attempt ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// `rejected`: every fault of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Vec<Fault>>,
    /// The digest of the job's body, as [`Digests::of`] gives it: by it a publisher knows an event about his own job from
    /// one about another that was published under the same id. Absent where the body is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// `conflict`: the bodies that were published under the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<Digests>,
    /// Terminal: ModelOp's word for the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_result: Option<JobResult>,
    /// Terminal: what happened, as lines `yyyy/M/d H:mm:ss [level] text` in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_messages: Option<Vec<String>>,
    /// Terminal: the moment at which a worker took the job, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_wait_time: Option<i64>,
    /// Terminal: the moment at which the model was started, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_run_time: Option<i64>,
    /// Terminal: the moment at which the job ended, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_end_time: Option<i64>,
    /// Terminal: how long each phase of the last attempt took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phases: Option<Phases>,
    /// Terminal: the job's `outputData`; FILE entries filled with `fileContent` and `fileSize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_data: Option<Value>,
    /// `completed`: the files that a training job left, each as an EXTERNAL_FILE asset with `fileSize` and `sha256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additional_assets: Option<Value>,
    /// `completed`: what the metrics function gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<Value>,
    /// `submitted`, for a record model: how its driver is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// `completed`, for a record model: what became of the records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<Records>,
    /// Terminal: what the last attempt's processes used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
}

impl EventData {
    /// The data that every event has.
    #[must_use]
    pub fn new(kind: EventKind, job: &JobId, job_type: Option<JobType>, attempt: u32, worker: &str) -> Self {
        Self {
            job_id: job.clone(),
            job_type,
            attempt,
            worker: worker.to_owned(),
            job_status: kind.job_status(),
            time: Timestamp::now(),
            correlation_id: None,
            message: None,
            sources: None,
            runtime: None,
            application_id: None,
            tracking_url: None,
            next_attempt: None,
            delay_ms: None,
            failure: None,
            faults: None,
            digest: None,
            digests: None,
            job_result: None,
            job_messages: None,
            job_wait_time: None,
            job_run_time: None,
            job_end_time: None,
            phases: None,
            output_data: None,
            additional_assets: None,
            results: None,
            way: None,
            records: None,
            resources: None,
        }
    }
}

/// A file of a job that was fetched from a git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchedSource {
    /// RFC 6901 pointer to the asset in the job.
    pub asset: String,
    /// The address of the repository; there are never credentials in it.
    pub repository: String,
    /// The id of the commit that was taken.
    pub commit: String,
    /// The file's path in the repository.
    pub path: String,
}

/// The Python that ran, or was to run, an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeUsed {
    /// Its name in the worker's settings, or one made of what it was built of.
    pub name: String,
    /// The version of Python, when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
}

/// The bodies that were published under one id, each by the first 16 hexadecimal digits of its SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// The one that the id belongs to.
    pub first: String,
    /// The one that the event is about.
    pub this: String,
}

impl Digests {
    /// The digest of a body: by it a publisher knows whether a conflict is about what he has published.
    #[must_use]
    pub fn of(body: &[u8]) -> String {
        Sha256::digest(body).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// How a driver is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// By Python itself, in one process without a Spark session.
    Process,
    /// By spark-submit.
    Spark,
}

impl Way {
    /// The word for it on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Spark => "spark",
        }
    }
}

/// What became of the records of a record model's inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Records {
    /// How the driver was run.
    pub way: Way,
    /// So many were read.
    pub read: u64,
    /// So many were given to the model.
    pub scored: u64,
    /// So many were written to the outputs.
    pub written: u64,
    /// At so many the model raised, and they were passed over.
    pub failed: u64,
    /// So many did not fit a schema.
    pub rejected: Rejected,
    /// Why, the most frequent reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Rejection>,
    /// The number of the record, from 1, at which it was stopped because it is a bad one.
    #[serde(default, alias = "stopped_at", skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<u64>,
}

impl Records {
    /// Whether every record was taken, scored and written as it should be.
    #[must_use]
    pub fn are_whole(&self) -> bool {
        self.failed == 0 && self.rejected == Rejected::default() && self.stopped_at.is_none()
    }
}

/// How many records did not fit a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rejected {
    /// Before the model saw them.
    pub input: u64,
    /// As the model gave them.
    pub output: u64,
}

/// Why records were rejected. It never holds anything of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// Which schema it is about.
    pub side: Side,
    /// The field that is wrong; absent when it is the record as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong with it.
    pub reason: String,
    /// With how many records.
    pub count: u64,
}

/// Whether something is about an input or an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// What the model is given.
    Input,
    /// What it gives.
    Output,
}

impl Side {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
        }
    }
}

/// Why an attempt ended without a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// What kind of failure it is; decides whether the job is tried again.
    pub class: FailureClass,
    /// What happened and what to do next, in plain words.
    pub message: String,
    /// The Python exception, when the model raised one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exception: Option<ModelException>,
    /// The number, from 1, of the record at which a record model raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<u64>,
    /// The name of the input that the record is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// The exit code of spark-submit, when it ended by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended spark-submit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The end of the standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
    /// Where the whole log is, as `host:path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// What kind of failure ended an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureClass {
    /// The job cannot be run as it is.
    Invalid,
    /// Its files could not be written.
    Staging,
    /// spark-submit did not get as far as the driver.
    Submit,
    /// The model raised.
    Model,
    /// Something outside the service ended the processes.
    Killed,
    /// It waited too long for its place in a cluster.
    Pending,
    /// A deadline passed.
    Timeout,
    /// Whoever ran the job is gone and left no word.
    Lost,
    /// Something that the service needs failed.
    Infrastructure,
}

impl FailureClass {
    /// The word for it on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Staging => "staging",
            Self::Submit => "submit",
            Self::Model => "model",
            Self::Killed => "killed",
            Self::Pending => "pending",
            Self::Timeout => "timeout",
            Self::Lost => "lost",
            Self::Infrastructure => "infrastructure",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// An exception of the model, as its driver reported it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelException {
    /// The exception's class, as `ValueError`.
    #[serde(rename = "type")]
    pub exception_type: String,
    /// Its message.
    pub message: String,
    /// The whole traceback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<String>,
    /// The last frame in the model's own files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<Frame>,
}

/// A place in the model's own files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The file, relative to the working directory.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// The function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<String>,
    /// The line's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// How long each phase of an attempt took, in milliseconds; a phase that was not reached is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phases {
    /// Writing the working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<u64>,
    /// From the staged directory, waiting for a place to submit from included, to the driver's first word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submit: Option<u64>,
    /// From the driver's first word to the end of the processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<u64>,
    /// Reading outputs and logs, and uploading what a training job left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collect: Option<u64>,
}

/// What an attempt's processes used, all together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// The most memory that was resident at one time, in bytes.
    pub peak_memory_bytes: u64,
    /// Processor time in seconds.
    pub processor_seconds: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_published_again_has_the_same_id() {
        let id = JobId::new("j").unwrap();
        let make = || {
            let data = EventData::new(EventKind::Completed, &id, Some(JobType::Score), 2, "w");
            Event::new(EventKind::Completed, "w", &TraceContext::default(), data)
        };
        assert_eq!(make().id, "j/2/completed");
        assert_eq!(make().id, make().id);
        assert_eq!(Event::routing_key(EventKind::Completed, &id), "job.j.completed");
    }

    #[test]
    fn an_event_survives_the_wire() {
        let id = JobId::new("j").unwrap();
        let mut data = EventData::new(EventKind::Failed, &id, None, 1, "w");
        data.results =
            Some(serde_json::from_str(r#"{"auc": 0.10, "n": 123456789012345678901234567890}"#).unwrap());
        data.resources = Some(Resources { peak_memory_bytes: 1, processor_seconds: 0.5 });
        let event = Event::new(EventKind::Failed, "w", &TraceContext::default(), data);
        let text = serde_json::to_string(&event).unwrap();
        assert!(text.contains(r#""auc":0.10,"n":123456789012345678901234567890"#), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        assert_eq!(event.kind(), Some(EventKind::Failed));
    }

    #[test]
    fn exactly_four_kinds_end_a_job() {
        assert_eq!(EventKind::ALL.into_iter().filter(|kind| kind.is_terminal()).count(), 4);
    }
}
