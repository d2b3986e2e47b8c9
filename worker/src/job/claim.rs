//! Claiming: from a delivery to an attempt at a job, or to the reason why there is none.
//!
//! Ownership is the broker's for now: who has the delivery has the job, until the delivery is settled or lost. An
//! ownership record of our own will be asked here and nowhere else.
//!
//! This module must not run anything.

use jiff::Timestamp;
use spark_runtime_protocol::job::{Job, JobId, Refusal};
use spark_runtime_protocol::json::Fault;

use super::Claim;
use crate::broker::message::Message;

/// What a delivery turned out to be.
#[derive(Debug)]
pub enum Claimed {
    /// A job to run.
    Job(Claim, Box<Job>),
    /// Nothing that can be run.
    Refused(Claim, Vec<Fault>),
    /// A job that has taken too many workers with it.
    Exhausted(Claim),
}

/// What a worker goes by when it claims.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// The worker instance.
    pub worker: String,
    /// How many attempts a job has, those that were given back not counted.
    pub max_attempts: u32,
    /// The largest job, in bytes.
    pub max_size: u64,
}

impl Claimant {
    /// Reads a delivery. Blocks while it parses.
    #[must_use]
    pub fn claim(&self, message: &Message) -> Claimed {
        let mut claim = Claim {
            job: JobId::stand_in(&message.body),
            job_type: None,
            attempt: message.attempt(),
            worker: self.worker.clone(),
            correlation_id: message.correlation_id(),
            trace: message.trace(),
            taken: Timestamp::now(),
        };
        if message.failures() >= self.max_attempts {
            // Before it is read: reading may be what workers were lost by.
            claim.job = message.known_as();
            return Claimed::Exhausted(claim);
        }
        if message.body.len() as u64 > self.max_size {
            if let Some(id) = message.message_id().and_then(|id| JobId::new(id).ok()) {
                claim.job = id;
            }
            let message = format!(
                "has {} bytes; this worker takes {} (job.max_size); refer to large files by EXTERNAL_FILE",
                message.body.len(),
                self.max_size
            );
            return Claimed::Refused(claim, vec![Fault::new("", message)]);
        }
        match Job::read(&message.body, message.message_id()) {
            Ok(job) => {
                claim.job = job.id().clone();
                claim.job_type = Some(job.job_type());
                Claimed::Job(claim, Box::new(job))
            }
            Err(Refusal { id, job_type, faults }) => {
                claim.job = id;
                claim.job_type = job_type;
                Claimed::Refused(claim, faults)
            }
        }
    }
}
