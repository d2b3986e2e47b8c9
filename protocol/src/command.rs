//! Commands to the workers and what they answer.
//!
//! A command is a message to the exchange `spark.commands`; whichever worker takes it carries it out for all of them, and
//! answers to the queue that the message's `reply_to` names, if it names one, with the message's `correlation_id`. A
//! command that finds no worker waits for one, and holds all the same.
//!
//! A command is read strictly, unlike an event: a key that is not known may be meant to narrow it down, and passing over
//! it would do more than was asked for.
//!
//! This module must not know how a command is carried out.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::EventKind;
use crate::job::JobId;
use crate::json::{self, Fault, step};

/// The content type of commands and answers.
pub const CONTENT_TYPE: &str = "application/json";

/// No command is larger, in bytes.
const LARGEST: usize = 64 * 1024;
/// The keys of a command.
const KEYS: [&str; 2] = ["command", "jobId"];

/// What a command asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// The end of a job, or that it never starts.
    Cancel,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 1] = [Self::Cancel];

    /// The word for it on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
        }
    }
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Command {
    /// What is asked for.
    pub command: Verb,
    /// The job that it is about.
    pub job_id: JobId,
}

/// A message that is no command: as much of it as could be read, and every fault of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What it asks for, when that is known.
    pub command: Option<Verb>,
    /// The job that it is about, when it has a proper id.
    pub job_id: Option<JobId>,
    /// Every fault; never empty.
    pub faults: Vec<Fault>,
}

impl Command {
    /// Asks for the end of a job.
    #[must_use]
    pub fn cancel(job: &JobId) -> Self {
        Self { command: Verb::Cancel, job_id: job.clone() }
    }

    /// Its wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::json!({"command": self.command.word(), "jobId": self.job_id.as_str()})
            .to_string()
            .into_bytes()
    }

    /// Reads a message's body as a command.
    ///
    /// # Errors
    /// A [`Refusal`] with every fault.
    pub fn read(body: &[u8]) -> Result<Self, Refusal> {
        let refuse = |faults| Refusal { command: None, job_id: None, faults };
        if body.len() > LARGEST {
            let message = format!("has {} bytes; a command has at most {LARGEST}", body.len());
            return Err(refuse(vec![Fault::new("", message)]));
        }
        let document = json::parse(body).map_err(refuse)?;
        let Some(object) = document.as_object() else {
            let message = "is no object; give one with the keys command and jobId";
            return Err(refuse(vec![Fault::new("", message)]));
        };
        let mut faults = json::Faults::default();
        let verbs = Verb::ALL.map(Verb::word).join(", ");
        let command = match object.get("command") {
            None => Err(format!("is missing; give one of {verbs}")),
            Some(Value::String(word)) => Verb::ALL
                .into_iter()
                .find(|verb| verb.word() == word)
                .ok_or_else(|| format!("is no command that is known; give one of {verbs}")),
            Some(_) => Err(format!("is no string; give one of {verbs}")),
        };
        let job_id = match object.get("jobId") {
            None => Err("is missing; give the id of a job".to_owned()),
            Some(Value::String(id)) => JobId::new(id).map_err(|error| error.to_string()),
            Some(_) => Err("is no string; give the id of a job".to_owned()),
        };
        for (key, fault) in [("/command", command.as_ref().err()), ("/jobId", job_id.as_ref().err())] {
            if let Some(message) = fault {
                faults.push(Fault::new(key, message.as_str()));
            }
        }
        for key in object.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let key: String = key.chars().take(64).collect();
            faults.push(Fault::new(step("", &key), "is not known here; take it out"));
        }
        match (command, job_id) {
            (Ok(command), Ok(job_id)) if faults.is_empty() => Ok(Self { command, job_id }),
            (command, job_id) => {
                Err(Refusal { command: command.ok(), job_id: job_id.ok(), faults: faults.into_vec() })
            }
        }
    }
}

/// Where a job stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// No worker has taken it, or its end is longer ago than the service remembers.
    Unknown,
    /// It was taken before and waits for its next attempt.
    Waiting,
    /// A worker has it.
    Running,
    /// It has ended.
    Settled,
    /// The question cannot be answered, because it is none.
    Refused,
}

impl Standing {
    /// Every standing.
    pub const ALL: [Self; 5] = [Self::Unknown, Self::Waiting, Self::Running, Self::Settled, Self::Refused];

    /// The word for it on the wire.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Settled => "settled",
            Self::Refused => "refused",
        }
    }
}

/// What a worker answers to a command: where the job stood when the command took effect, and what follows from that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// What was asked for; absent when it was nothing that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Verb>,
    /// The job; absent when no proper id was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_id: Option<JobId>,
    /// Where the job stands.
    pub standing: Standing,
    /// `waiting`, `running`, `settled`: the number of its last attempt, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// `running`: the worker instance that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// `running`: when the worker took it. `settled`: when it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// `settled`: how it ended, by the word of its last event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<EventKind>,
    /// `refused`: everything that is wrong with the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Vec<Fault>>,
    /// One plain sentence for people: what happens next.
    pub message: String,
}

impl Answer {
    /// An answer of which nothing but this is known.
    #[must_use]
    pub fn new(command: &Command, standing: Standing, message: String) -> Self {
        Self {
            command: Some(command.command),
            job_id: Some(command.job_id.clone()),
            standing,
            attempt: None,
            worker: None,
            since: None,
            ending: None,
            faults: None,
            message,
        }
    }

    /// The answer to what is no command.
    #[must_use]
    pub fn refused(refusal: Refusal) -> Self {
        let faults: Vec<_> = refusal.faults.iter().map(ToString::to_string).collect();
        Self {
            command: refusal.command,
            job_id: refusal.job_id,
            standing: Standing::Refused,
            attempt: None,
            worker: None,
            since: None,
            ending: None,
            message: format!("nothing was done: {}", faults.join("; ")),
            faults: Some(refusal.faults),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(body: &str) -> Vec<String> {
        match Command::read(body.as_bytes()) {
            Ok(command) => panic!("{body} is {command:?}"),
            Err(refusal) => refusal.faults.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_command_survives_the_wire() {
        let command = Command::cancel(&JobId::new("nightly:1").unwrap());
        assert_eq!(command.encode(), br#"{"command":"cancel","jobId":"nightly:1"}"#);
        assert_eq!(Command::read(&command.encode()), Ok(command.clone()));
        assert_eq!(serde_json::to_vec(&command).unwrap(), command.encode());
    }

    #[test]
    fn what_is_no_command_is_refused_with_every_fault() {
        assert_eq!(faults("hello")[0].split(':').next(), Some("is not JSON"));
        assert_eq!(faults("[]"), ["is no object; give one with the keys command and jobId"]);
        assert_eq!(
            faults(r#"{"command": "stop", "job": "a"}"#),
            [
                "/command: is no command that is known; give one of cancel",
                "/jobId: is missing; give the id of a job",
                "/job: is not known here; take it out",
            ]
        );
        assert_eq!(
            faults(r#"{"command": 1, "jobId": ["a"]}"#),
            ["/command: is no string; give one of cancel", "/jobId: is no string; give the id of a job"]
        );
        for id in ["a/b", "\u{fc}", "", "x y", &"x".repeat(10_000)] {
            let body = serde_json::json!({"command": "cancel", "jobId": id}).to_string();
            assert!(faults(&body)[0].starts_with("/jobId: is no job id"), "{id}");
        }
        let twice = r#"{"command": "cancel", "jobId": "a", "jobId": "b"}"#;
        assert!(faults(twice)[0].contains("more than once"), "{:?}", faults(twice));
        assert!(faults(&" ".repeat(LARGEST + 1))[0].contains("has 65537 bytes"));
    }

    #[test]
    fn a_refusal_says_as_much_as_could_be_read_and_is_never_large() {
        let job = JobId::new("a").unwrap();
        let refusal = Command::read(br#"{"command": "stop", "jobId": "a"}"#).unwrap_err();
        assert_eq!((refusal.command, &refusal.job_id), (None, &Some(job)));
        let answer = Answer::refused(refusal);
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"jobId":"a","standing":"refused","faults":[{"pointer":"/command","message":"is no command that is known; give one of cancel"}],"message":"nothing was done: /command: is no command that is known; give one of cancel"}"#
        );
        let keys: Vec<_> = (0..2000).map(|n| format!(r#""{n}{}": 0"#, "~".repeat(20))).collect();
        let many = Command::read(format!("{{{}}}", keys.join(",")).as_bytes()).unwrap_err();
        let size = serde_json::to_vec(&Answer::refused(many)).unwrap().len();
        assert!(size < LARGEST, "{size}");
    }
}
