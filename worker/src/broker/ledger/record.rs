//! The records of the ledger and their one codec.
//!
//! A message of the stream holds the records that one worker instance wrote together, as one JSON document:
//!
//! ```json
//! {"version": 1, "instance": "00c0ffee00c0ffee", "sequence": 7, "records": [{"renew": {...}}, {"claim": {...}}]}
//! ```
//!
//! What cannot be read is refused and changes nothing. A later version that gives records another meaning has another
//! number, and a reader of this one refuses them; it must go on writing what this one understands for as long as
//! workers of both run side by side.
//!
//! This module must not know what a record does: that is [`super::fold`]'s.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use spark_runtime_protocol::JobId;
use spark_runtime_protocol::event::EventKind;

/// The version that this codec writes and reads.
pub const VERSION: u64 = 1;
/// A message of more bytes is not the ledger's.
const LARGEST_MESSAGE: usize = 64 * 1024;
/// How many records a message may hold: what fits into the low byte of a [`Position`].
pub const MOST_RECORDS: usize = 256;
/// The longest name of an instance, in bytes.
const LONGEST_NAME: usize = 128;
/// Among the indices of a claim: file systems other than those of the claimant's machine were looked at as well. Without it
/// nobody knows what was there, as in claims of workers that cannot look.
pub const LOOKED_ELSEWHERE: u16 = u16::MAX;
/// Among the indices of a claim: some of the outputs could not be looked at. The claimant runs nothing, and what the next
/// claim says takes the place of this.
pub const UNSEEN: u16 = u16::MAX - 1;
/// Times outside of the years 2020 to 2099 come from a clock that was never set, in milliseconds since 1970.
const TIMES: std::ops::Range<u64> = 1_577_836_800_000..4_102_444_800_000;

/// The place of a record in the ledger: the same for everybody who reads it, and never used again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(u64);

impl Position {
    /// The place of the record with this index in the message at this offset of the stream.
    #[must_use]
    pub fn new(offset: u64, index: u8) -> Self {
        Self((offset << 8) | u64::from(index))
    }

    /// A place by its number, as it stands in headers of messages.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 8, self.0 & 0xff)
    }
}

/// A number that is written as 16 hexadecimal digits.
macro_rules! hexadecimal {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// By its number.
            #[must_use]
            pub const fn from_number(number: u64) -> Self {
                Self(number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                if text.len() != 16 || text.starts_with('+') {
                    return Err(D::Error::custom("it is not 16 hexadecimal digits"));
                }
                u64::from_str_radix(&text, 16).map(Self).map_err(D::Error::custom)
            }
        }
    };
}

hexadecimal! {
    /// A worker instance: a random number that no two processes share.
    InstanceId
}
hexadecimal! {
    /// The first 64 bits of the SHA-256 of a job's body: by it, two bodies under one id are told apart.
    Digest
}

impl InstanceId {
    /// One that nobody has.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().0 ^ uuid::Uuid::new_v4().as_u64_pair().1)
    }
}

impl Digest {
    /// The digest of a body.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        let hash: [u8; 32] = Sha256::digest(body).into();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        Self(u64::from_be_bytes(first))
    }
}

/// What a message of the ledger holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    version: u64,
    /// Who wrote it.
    pub instance: InstanceId,
    /// The number of the first record among all that the instance writes; the others count on from it. By it a writer
    /// knows its own record when it reads it back.
    pub sequence: u64,
    /// The records, in order.
    pub records: Vec<Record>,
}

/// One record. Times are in milliseconds since 1970 by the writer's clock; they are told to people and decide nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Record {
    /// The instance is there, and keeps all its claims.
    Renew {
        /// Its name, for people.
        name: Box<str>,
        /// For how long after this was sent it may run drivers.
        lease_ms: u32,
    },
    /// The instance wants a job.
    Claim {
        /// The job.
        job: JobId,
        /// What its body is.
        digest: Digest,
        /// On which condition.
        terms: Terms,
        /// Which of the job's outputs, by their index, were there before; also [`LOOKED_ELSEWHERE`] and [`UNSEEN`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        existing: Vec<u16>,
        /// When.
        at: u64,
    },
    /// The job is over for good; its terminal event is in the history.
    Settle {
        /// The job.
        job: JobId,
        /// The claim by which the instance has it.
        claim: Position,
        /// How it ended.
        end: Ending,
        /// The time of its terminal event.
        at: u64,
    },
    /// The instance no longer wants the job.
    Release {
        /// The job.
        job: JobId,
        /// The claim by which the instance has it.
        claim: Position,
        /// Why.
        reason: Reason,
    },
    /// Somebody wants the job to end, or never to start.
    Cancel {
        /// The job.
        job: JobId,
        /// When.
        at: u64,
    },
    /// The instance is dead, and every process that it started with it.
    Leave,
}

/// The condition of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Terms {
    /// Nobody has the job, and it has not ended.
    Free,
    /// The owner has not been heard of for its whole lease.
    Supersedes {
        /// The claim in force.
        claim: Position,
        /// The last renewal of its owner that the claimant has seen.
        renewal: Position,
    },
    /// The instance has the job by this claim and does not run it: the claim was given up before it was read back.
    Replaces {
        /// The claim in force.
        claim: Position,
    },
    /// The job ended by this claim, and an operator wants it to run again.
    Reopens {
        /// The claim by which it was settled.
        claim: Position,
    },
}

/// Why a job is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The worker leaves, or never began: no fault of the job's.
    GivenBack,
    /// The broker was away for longer than the lease: no fault of the job's.
    Interrupted,
    /// The attempt failed in a way that may pass.
    Failed,
    /// Whoever ran it did not live to tell how it ended.
    Lost,
}

impl Reason {
    /// Whether it counts towards the job's `max_attempts`.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failed | Self::Lost)
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// The function ran to its end.
    Completed,
    /// No attempt brought it there.
    Failed,
    /// On request.
    Cancelled,
    /// It was no job that can be run.
    Rejected,
}

impl Ending {
    /// The ending that a terminal event tells.
    #[must_use]
    pub fn told_by(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::Completed => Some(Self::Completed),
            EventKind::Failed => Some(Self::Failed),
            EventKind::Cancelled => Some(Self::Cancelled),
            EventKind::Rejected => Some(Self::Rejected),
            _ => None,
        }
    }

    /// The event that tells it.
    #[must_use]
    pub fn event_kind(self) -> EventKind {
        match self {
            Self::Completed => EventKind::Completed,
            Self::Failed => EventKind::Failed,
            Self::Cancelled => EventKind::Cancelled,
            Self::Rejected => EventKind::Rejected,
        }
    }
}

/// Why a message of the stream is not taken for the ledger's.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It was written by a later release.
    #[error(
        "the record is of version {0}, this worker reads version {VERSION}: upgrade it before workers that write only the new one"
    )]
    Newer(u64),
    /// Nothing of the ledger's is so large.
    #[error("the record has {0} bytes; at most {LARGEST_MESSAGE} are read")]
    TooLarge(usize),
    /// It is not what a worker writes.
    #[error("the record cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// A part of it has an impossible value.
    #[error("the record has an impossible {0}")]
    Impossible(&'static str),
}

impl Entry {
    /// What an instance writes in one message.
    #[must_use]
    pub fn new(instance: InstanceId, sequence: u64, records: Vec<Record>) -> Self {
        Self { version: VERSION, instance, sequence, records }
    }

    /// Its wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_else(|error| {
            // None of its parts can refuse to be written; what is empty is refused by every reader.
            tracing::error!(%error, "a ledger record could not be written");
            Vec::new()
        })
    }

    /// Reads a wire form.
    ///
    /// # Errors
    /// [`RecordError`]; nothing of the message counts then.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u64,
        }
        if bytes.len() > LARGEST_MESSAGE {
            return Err(RecordError::TooLarge(bytes.len()));
        }
        let entry = match serde_json::from_slice::<Self>(bytes) {
            Ok(entry) => entry,
            Err(error) => {
                return Err(match serde_json::from_slice::<Versioned>(bytes) {
                    Ok(Versioned { version }) if version > VERSION => RecordError::Newer(version),
                    _ => error.into(),
                });
            }
        };
        if entry.version != VERSION {
            return Err(if entry.version > VERSION {
                RecordError::Newer(entry.version)
            } else {
                RecordError::Impossible("version")
            });
        }
        if entry.records.len() > MOST_RECORDS {
            return Err(RecordError::Impossible("number of records"));
        }
        if entry.sequence > u64::MAX - MOST_RECORDS as u64 {
            return Err(RecordError::Impossible("sequence"));
        }
        entry.records.iter().try_for_each(Record::check)?;
        Ok(entry)
    }
}

impl Record {
    fn check(&self) -> Result<(), RecordError> {
        match self {
            Self::Renew { name, .. } if name.len() > LONGEST_NAME => Err(RecordError::Impossible("name")),
            Self::Claim { at, .. } | Self::Settle { at, .. } | Self::Cancel { at, .. }
                if !TIMES.contains(at) =>
            {
                Err(RecordError::Impossible("time"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn every_record() -> Vec<Record> {
        let job = JobId::new("a-job").unwrap();
        let claim = Position::new(7, 1);
        let claimed = |terms, existing| Record::Claim {
            job: job.clone(),
            digest: Digest::of(b"{}"),
            terms,
            existing,
            at: NOW,
        };
        vec![
            Record::Renew { name: "worker".into(), lease_ms: 60_000 },
            claimed(Terms::Free, Vec::new()),
            claimed(Terms::Supersedes { claim, renewal: Position::new(9, 0) }, vec![0, 3]),
            claimed(Terms::Replaces { claim }, Vec::new()),
            claimed(Terms::Reopens { claim }, Vec::new()),
            Record::Settle { job: job.clone(), claim, end: Ending::Completed, at: NOW },
            Record::Release { job: job.clone(), claim, reason: Reason::GivenBack },
            Record::Cancel { job, at: NOW },
            Record::Leave,
        ]
    }

    #[test]
    fn records_survive_the_wire() {
        let entry = Entry::new(InstanceId::from_number(0xc0ffee), 41, every_record());
        assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
    }

    /// What was written by an older worker of this version must be readable for ever.
    #[test]
    fn the_wire_form_does_not_change_within_a_version() {
        let entry = Entry::new(InstanceId::from_number(0xc0ffee), 41, every_record());
        insta::assert_snapshot!(String::from_utf8(entry.encode()).unwrap().replace("},{", "},\n{"), @r#"
        {"version":1,"instance":"0000000000c0ffee","sequence":41,"records":[{"renew":{"name":"worker","lease_ms":60000}},
        {"claim":{"job":"a-job","digest":"44136fa355b3678a","terms":"free","at":1800000000000}},
        {"claim":{"job":"a-job","digest":"44136fa355b3678a","terms":{"supersedes":{"claim":1793,"renewal":2304}},"existing":[0,3],"at":1800000000000}},
        {"claim":{"job":"a-job","digest":"44136fa355b3678a","terms":{"replaces":{"claim":1793}},"at":1800000000000}},
        {"claim":{"job":"a-job","digest":"44136fa355b3678a","terms":{"reopens":{"claim":1793}},"at":1800000000000}},
        {"settle":{"job":"a-job","claim":1793,"end":"completed","at":1800000000000}},
        {"release":{"job":"a-job","claim":1793,"reason":"given_back"}},
        {"cancel":{"job":"a-job","at":1800000000000}},"leave"]}
        "#);
    }

    #[test]
    fn a_record_of_a_later_version_is_refused_by_its_number_and_not_misread() {
        let entry = Entry::new(InstanceId::from_number(1), 1, vec![Record::Leave]);
        let text = String::from_utf8(entry.encode()).unwrap();
        let newer = text.replace(r#""version":1"#, r#""version":2"#);
        assert!(matches!(Entry::decode(newer.as_bytes()), Err(RecordError::Newer(2))));
        let other = r#"{"version": 3, "writer": "x", "facts": []}"#;
        let error = Entry::decode(other.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("the record is of version 3, this worker reads version 1"), "{error}");
        assert!(Entry::decode(text.replace(r#""version":1"#, r#""version":0"#).as_bytes()).is_err());
    }

    #[test]
    fn what_no_worker_writes_is_refused() {
        let text = |records: &str| {
            format!(r#"{{"version":1,"instance":"00000000000000aa","sequence":1,"records":[{records}]}}"#)
        };
        let cancel = |job: &str, at: u64| text(&format!(r#"{{"cancel":{{"job":"{job}","at":{at}}}}}"#));
        assert!(Entry::decode(cancel("a", NOW).as_bytes()).is_ok());
        for bad in [
            String::new(),
            "garbage".into(),
            "[]".into(),
            "\0\u{1}".into(),
            text(r#"{"steal":{}}"#),
            text(r#"{"leave":null,"renew":{}}"#),
            cancel("a/b", NOW),
            cancel("ü", NOW),
            cancel(&"x".repeat(1 << 20), NOW),
            cancel(&"x".repeat(129), NOW),
            cancel("a", 0),
            cancel("a", 4_102_444_800_000),
            cancel("a", u64::MAX),
            text(&format!(r#"{{"renew":{{"name":"{}","lease_ms":1}}}}"#, "n".repeat(129))),
            text(r#"{"renew":{"name":"n","lease_ms":-1}}"#),
            text(r#"{"renew":{"name":"n","lease_ms":1,"more":1}}"#),
            text("").replace("00000000000000aa", "aa"),
            text("").replace("00000000000000aa", "+0000000000000aa"),
            text("").replace(r#""sequence":1"#, r#""sequence":18446744073709551615"#),
            text(&vec![r#""leave""#; 257].join(",")),
        ] {
            assert!(Entry::decode(bad.as_bytes()).is_err(), "{:.100}", bad);
        }
    }

    #[test]
    fn a_body_has_the_digest_that_its_publisher_finds_in_a_conflict() {
        assert_eq!(Digest::of(b"{}").to_string(), spark_runtime_protocol::event::Digests::of(b"{}"));
    }

    #[test]
    fn positions_are_ordered_as_the_log_is() {
        assert!(Position::new(1, 255) < Position::new(2, 0));
        assert!(Position::new(2, 0) < Position::new(2, 1));
        assert_eq!(Position::new(2, 1).to_string(), "2.1");
    }
}
