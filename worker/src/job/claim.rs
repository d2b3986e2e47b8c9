//! Claiming: from a delivery to a job that is this worker's, or to the reason why it is not.
//!
//! A delivery says that a job is to be looked at; whose it is says the ledger. What is to be done about a job that is not
//! free is decided in [`terms`], from what the log says and what the delivery brought along, and nothing else.
//!
//! This module must not run anything.

use std::time::Duration;

use jiff::Timestamp;
use spark_runtime_protocol::job::{Job, JobId, Refusal};
use spark_runtime_protocol::json::Fault;

use super::{Claim, Stopper};
use crate::broker::ledger::fold::{Claimed, JobKey, Open, Owner, Settled, Standing};
use crate::broker::ledger::record::{Digest, Position, Terms};
use crate::broker::ledger::{Held, Ledger};
use crate::broker::message::{Message, Seen};

/// What a worker goes by when it reads deliveries.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The worker instance.
    pub worker: String,
    /// The largest job, in bytes.
    pub max_size: u64,
}

/// A job that a delivery brought, before anybody knows whose it is.
#[derive(Debug)]
pub struct Candidate {
    /// What is known of it; its attempt is not.
    pub claim: Claim,
    /// What its body is.
    pub digest: Digest,
    /// The job, or all that is wrong with it.
    pub content: Result<Box<Job>, Vec<Fault>>,
}

/// Whose a job is.
#[derive(Debug)]
pub enum Ownership {
    /// This delivery's.
    Ours(Held, Claimed),
    /// That of an earlier delivery to this worker.
    RunsHere(Seen),
    /// Another worker's.
    Theirs(Seen),
    /// Nobody's any more: it has ended.
    Settled(Settled),
    /// There is another job under this id, with this body.
    Conflict(Digest),
}

impl Reader {
    /// Reads a delivery. Blocks while it parses.
    #[must_use]
    pub fn read(&self, message: &Message) -> Candidate {
        let mut claim = Claim {
            job: JobId::stand_in(&message.body),
            job_type: None,
            attempt: 0,
            failures: 0,
            existing: Vec::new(),
            worker: self.worker.clone(),
            correlation_id: message.correlation_id(),
            trace: message.trace(),
            taken: Timestamp::now(),
        };
        let digest = Digest::of(&message.body);
        if message.body.len() as u64 > self.max_size {
            if let Some(id) = message.message_id().and_then(|id| JobId::new(id).ok()) {
                claim.job = id;
            }
            let message = format!(
                "has {} bytes; this worker takes {} (job.max_size); refer to large files by EXTERNAL_FILE",
                message.body.len(),
                self.max_size
            );
            return Candidate { claim, digest, content: Err(vec![Fault::new("", message)]) };
        }
        let content = match Job::read(&message.body, message.message_id()) {
            Ok(job) => {
                claim.job = job.id().clone();
                claim.job_type = Some(job.job_type());
                Ok(Box::new(job))
            }
            Err(Refusal { id, job_type, faults }) => {
                claim.job = id;
                claim.job_type = job_type;
                Err(faults)
            }
        };
        Candidate { claim, digest, content }
    }
}

/// Finds out whose a job is, and claims it if that is possible. `stopper` is told when the claim ends.
pub async fn claim(
    ledger: &Ledger,
    candidate: &Candidate,
    message: &Message,
    stopper: &Stopper,
) -> Ownership {
    let job = &candidate.claim.job;
    let key = JobKey::of(job);
    let mut standing = ledger.standing(key);
    loop {
        let view =
            View { ledger, key, digest: candidate.digest, seen: message.seen(), undoes: message.undoes() };
        let terms = match terms(&view, &standing) {
            Ok(terms) => terms,
            Err(ownership) => return ownership,
        };
        match ledger.claim(job, candidate.digest, terms, candidate.claim.existing.clone(), stopper).await {
            Ok((held, claimed)) => return Ownership::Ours(held, claimed),
            Err(stands) => standing = stands,
        }
    }
}

/// What [`terms`] goes by, beside the job's standing.
struct View<'a> {
    ledger: &'a Ledger,
    key: JobKey,
    digest: Digest,
    seen: Option<Seen>,
    undoes: Option<Position>,
}

/// On which terms the job may be claimed.
fn terms(view: &View<'_>, standing: &Standing) -> Result<Terms, Ownership> {
    match standing {
        Standing::Unknown => Ok(Terms::Free),
        Standing::Settled(settled) if settled.digest != view.digest => {
            Err(Ownership::Conflict(settled.digest))
        }
        Standing::Settled(settled) if view.undoes == Some(settled.claim) => {
            Ok(Terms::Reopens { claim: settled.claim })
        }
        Standing::Settled(settled) => Err(Ownership::Settled(*settled)),
        Standing::Open(Open { digest: Some(digest), .. }) if *digest != view.digest => {
            Err(Ownership::Conflict(*digest))
        }
        Standing::Open(Open { owner: None, .. }) => Ok(Terms::Free),
        Standing::Open(Open { owner: Some(owner), .. }) => owned(view, owner),
    }
}

fn owned(view: &View<'_>, owner: &Owner) -> Result<Terms, Ownership> {
    let own_lease = view.ledger.lease();
    let instance = view.ledger.instance_of(owner.instance);
    let renewal = instance.as_ref().map_or(owner.claim, |instance| instance.renewal);
    let lease = instance.map_or(own_lease, |instance| Duration::from_millis(instance.lease_ms.into()));
    let seen = Seen { claim: owner.claim, renewal, duration: own_lease };
    if owner.instance == view.ledger.instance() {
        if view.ledger.holds(view.key, owner.claim) {
            return Err(Ownership::RunsHere(seen));
        }
        // It was given up before it was read back.
        return Ok(Terms::Replaces { claim: owner.claim });
    }
    match view.seen {
        // Not a word from the owner for as long as its lease.
        Some(before) if (before.claim, before.renewal) == (owner.claim, renewal) => {
            if before.duration >= lease {
                return Ok(Terms::Supersedes { claim: owner.claim, renewal });
            }
            Err(Ownership::Theirs(Seen { duration: before.duration + own_lease, ..seen }))
        }
        _ => Err(Ownership::Theirs(seen)),
    }
}
