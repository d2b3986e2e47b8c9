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

use super::{Claim, Stopper, outputs};
use crate::broker::ledger::fold::{Claimed, Instance, JobKey, Open, Owner, Settled, Standing};
use crate::broker::ledger::record::{Digest, InstanceId, Position, Terms};
use crate::broker::ledger::{Held, Ledger};
use crate::broker::message::{Message, Seen};
use crate::spark::Mode;

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
        let digest = Digest::of(&message.body);
        let mut claim = Claim {
            job: JobId::stand_in(&message.body),
            job_type: None,
            attempt: 0,
            failures: 0,
            undone: 0,
            digest: digest.to_string(),
            existing: Vec::new(),
            seen: outputs::Seen::default(),
            worker: self.worker.clone(),
            correlation_id: message.correlation_id(),
            trace: message.trace(),
            taken: Timestamp::now(),
            mode: Mode::Client,
            unfit_for: message.unfit_for(),
        };
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
        let view = View::of(ledger, key, &standing, candidate.digest, message);
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
#[derive(Debug, Clone)]
pub struct View {
    /// This instance.
    pub own: InstanceId,
    /// Its lease.
    pub own_lease: Duration,
    /// What is known of the owner's instance, when there is an owner.
    pub owner: Option<Instance>,
    /// Somebody here works on the job by the claim in force.
    pub is_held: bool,
    /// What the body of the delivery is.
    pub digest: Digest,
    /// What whoever delayed the delivery had seen of the owner.
    pub seen: Option<Seen>,
    /// The end that an operator wants undone.
    pub undoes: Option<Position>,
}

impl View {
    fn of(ledger: &Ledger, key: JobKey, standing: &Standing, digest: Digest, message: &Message) -> Self {
        let owner = match standing {
            Standing::Open(Open { owner, .. }) => *owner,
            _ => None,
        };
        Self {
            own: ledger.instance(),
            own_lease: ledger.lease(),
            owner: owner.and_then(|owner| ledger.instance_of(owner.instance)),
            is_held: owner.is_some_and(|owner| ledger.holds(key, owner.claim)),
            digest,
            seen: message.seen(),
            undoes: message.undoes(),
        }
    }
}

/// On which terms the job may be claimed. It looks at nothing but what it is given; the exhaustive model of the tests runs
/// this very code.
///
/// # Errors
/// Whose the job is, when it may not be claimed.
pub fn terms(view: &View, standing: &Standing) -> Result<Terms, Ownership> {
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

fn owned(view: &View, owner: &Owner) -> Result<Terms, Ownership> {
    let renewal = view.owner.as_ref().map_or(owner.claim, |instance| instance.renewal);
    let lease =
        view.owner.as_ref().map_or(view.own_lease, |known| Duration::from_millis(known.lease_ms.into()));
    let seen = Seen { claim: owner.claim, renewal, duration: view.own_lease };
    if owner.instance == view.own {
        if view.is_held {
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
            Err(Ownership::Theirs(Seen { duration: before.duration + view.own_lease, ..seen }))
        }
        _ => Err(Ownership::Theirs(seen)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::ledger::fold::Fold;
    use crate::broker::ledger::record::{Ending, Record};

    const NOW: u64 = 1_800_000_000_000;
    const OWN: u64 = 1;
    const OTHER: u64 = 2;

    /// A log in which `owner` has the job, with its claim and its renewal.
    fn owned_by(owner: u64) -> (Fold, Position, Position) {
        let mut fold = Fold::default();
        let instance = InstanceId::from_number(owner);
        let (renewal, claim) = (Position::new(1, 0), Position::new(2, 0));
        fold.apply(renewal, instance, 1, &Record::Renew { name: "w".into(), lease_ms: 60_000 });
        let record = Record::Claim {
            job: job(),
            digest: Digest::of(b"body"),
            terms: Terms::Free,
            existing: Vec::new(),
            at: NOW,
        };
        fold.apply(claim, instance, 2, &record);
        (fold, claim, renewal)
    }

    fn settled(owner: u64) -> (Fold, Position) {
        let (mut fold, claim, _) = owned_by(owner);
        let settle = Record::Settle { job: job(), claim, end: Ending::Failed, at: NOW };
        fold.apply(Position::new(3, 0), InstanceId::from_number(owner), 3, &settle);
        (fold, claim)
    }

    fn job() -> JobId {
        JobId::new("j").unwrap()
    }

    fn view(fold: &Fold, owner: u64) -> View {
        View {
            own: InstanceId::from_number(OWN),
            own_lease: Duration::from_secs(60),
            owner: fold.instance(InstanceId::from_number(owner)).cloned(),
            is_held: false,
            digest: Digest::of(b"body"),
            seen: None,
            undoes: None,
        }
    }

    fn decide(fold: &Fold, view: &View) -> Result<Terms, Ownership> {
        terms(view, &fold.standing(JobKey::of(&job())))
    }

    #[test]
    fn a_job_is_taken_over_only_when_nothing_was_heard_of_its_owner_for_its_whole_lease() {
        let (fold, claim, renewal) = owned_by(OTHER);
        let fresh = view(&fold, OTHER);
        let Err(Ownership::Theirs(seen)) = decide(&fold, &fresh) else { panic!() };
        assert_eq!(seen, Seen { claim, renewal, duration: Duration::from_secs(60) });
        let back = View { seen: Some(seen), ..fresh.clone() };
        assert_eq!(decide(&fold, &back).unwrap(), Terms::Supersedes { claim, renewal });
        // A worker with a shorter lease than the owner's waits more than once.
        let short = View { own_lease: Duration::from_secs(25), ..fresh.clone() };
        let mut waits = 0;
        let mut seen = None;
        while let Err(Ownership::Theirs(now)) = decide(&fold, &View { seen, ..short.clone() }) {
            waits += 1;
            seen = Some(now);
        }
        assert_eq!(waits, 3);
        // Anything that was heard meanwhile begins it anew.
        let heard = Seen { renewal: Position::new(0, 0), ..seen.unwrap() };
        assert!(matches!(
            decide(&fold, &View { seen: Some(heard), ..fresh }),
            Err(Ownership::Theirs(now)) if now.duration == Duration::from_secs(60)
        ));
    }

    #[test]
    fn a_claim_of_ones_own_that_nobody_works_on_is_replaced_and_one_that_is_worked_on_is_not() {
        let (fold, claim, _) = owned_by(OWN);
        let unattended = view(&fold, OWN);
        assert_eq!(decide(&fold, &unattended).unwrap(), Terms::Replaces { claim });
        let held = View { is_held: true, ..unattended };
        assert!(matches!(decide(&fold, &held), Err(Ownership::RunsHere(seen)) if seen.claim == claim));
    }

    #[test]
    fn another_body_under_the_id_is_a_conflict_wherever_the_job_stands() {
        for fold in [owned_by(OTHER).0, settled(OTHER).0] {
            let other = View { digest: Digest::of(b"other"), ..view(&fold, OTHER) };
            assert!(
                matches!(decide(&fold, &other), Err(Ownership::Conflict(first)) if first == Digest::of(b"body"))
            );
        }
    }

    #[test]
    fn an_end_is_undone_only_by_its_own_claim() {
        let (fold, claim) = settled(OTHER);
        let again = view(&fold, OTHER);
        assert!(matches!(decide(&fold, &again), Err(Ownership::Settled(settled)) if settled.claim == claim));
        let wrong = View { undoes: Some(Position::new(9, 0)), ..again.clone() };
        assert!(matches!(decide(&fold, &wrong), Err(Ownership::Settled(_))));
        let replay = View { undoes: Some(claim), ..again };
        assert_eq!(decide(&fold, &replay).unwrap(), Terms::Reopens { claim });
    }
}
