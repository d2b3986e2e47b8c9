//! The fold: from the records of the ledger, in their order, to who has which job.
//!
//! It is a pure function of the log. Everybody who has read the log up to some place has the same answer for it, and
//! that is all that ownership rests on. So nothing here looks at a clock, at a setting or at who is reading, and a
//! record whose condition does not hold at its place changes nothing. What it gives at a place is written down as a checkpoint
//! ([`super::checkpoint::VERSION`] is to be raised with any change of what a record means).
//!
//! The broker cuts the log off at its old end, so that a reader that starts later does not know all that one knows which was
//! there before. [`Fold::forget_before`] makes the older one forget the same. What is left to chance by that is a claim
//! that names one from before the start: it counts, since nobody can still run by the other (the retention is at least
//! twice as long as a job may run).
//!
//! What is kept of a settled job takes less than a hundred bytes: its id by a hash, and what answers a publication of it
//! that comes again.
//!
//! The exhaustive model of the tests runs this very code. This module must not know how records travel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use spark_runtime_protocol::JobId;

use super::record::{Digest, Ending, InstanceId, Position, Reason, Record, Terms, UNSEEN};

/// The first 128 bits of the SHA-256 of a job's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobKey([u8; 16]);

impl JobKey {
    /// The key of a job.
    #[must_use]
    pub fn of(job: &JobId) -> Self {
        let hash: [u8; 32] = Sha256::digest(job.as_str()).into();
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        Self(key)
    }
}

/// What the log says up to a place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    instances: BTreeMap<InstanceId, Instance>,
    open: BTreeMap<JobKey, Open>,
    settled: HashMap<JobKey, Settled>,
    /// The first place that is known of.
    start: Option<Position>,
}

/// A worker instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// Its name, for people.
    pub name: Box<str>,
    /// Its lease, in milliseconds.
    pub lease_ms: u32,
    /// Its last renewal.
    pub renewal: Position,
    /// It is dead; nothing that it wrote and that lands later counts.
    pub left: bool,
}

/// A job that has not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Open {
    /// What its body is; unknown as long as nobody had it.
    pub digest: Option<Digest>,
    /// Who has it.
    pub owner: Option<Owner>,
    /// How often it was claimed.
    pub attempts: u32,
    /// How many of the attempts failed or were lost.
    pub failures: u32,
    /// How many of the attempts came before the end that an operator has undone last.
    pub undone: u32,
    /// Somebody wants it to end.
    pub cancelled: bool,
    /// Which of its outputs, by their index, were there before its first attempt: what its first claim said whose worker
    /// could tell; nothing of the job was run before that.
    pub existing: Box<[u16]>,
    /// The last record that has changed this.
    changed: Position,
}

/// Who has a job, and by what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The instance.
    pub instance: InstanceId,
    /// Its claim.
    pub claim: Position,
    /// The sequence number of the claim.
    pub sequence: u64,
    /// When it claimed, in milliseconds since 1970 by its own clock.
    pub at: u64,
}

/// A job that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settled {
    /// What its body was.
    pub digest: Digest,
    /// The claim by which it was settled.
    pub claim: Position,
    /// The time of its terminal event, in seconds since 1970 by the clock of whoever settled it.
    pub at: u32,
    /// The attempt in the upper 30 bits, the ending in the lower two.
    attempt_and_ending: u32,
}

impl Settled {
    fn new(digest: Digest, claim: Position, at_ms: u64, attempt: u32, ending: Ending) -> Self {
        let at = u32::try_from(at_ms / 1000).unwrap_or(u32::MAX);
        let ending = match ending {
            Ending::Completed => 0,
            Ending::Failed => 1,
            Ending::Cancelled => 2,
            Ending::Rejected => 3,
        };
        Self { digest, claim, at, attempt_and_ending: (attempt << 2) | ending }
    }

    /// The attempt at which it ended, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt_and_ending >> 2
    }

    /// How it ended.
    #[must_use]
    pub fn ending(&self) -> Ending {
        match self.attempt_and_ending & 3 {
            0 => Ending::Completed,
            1 => Ending::Failed,
            2 => Ending::Cancelled,
            _ => Ending::Rejected,
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The log does not speak of it.
    Unknown,
    /// It has not ended.
    Open(Open),
    /// It has ended.
    Settled(Settled),
}

/// What a record has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The instance is heard of.
    Renewed,
    /// The claim is in force.
    Claimed(Claimed),
    /// The claim is not in force, because the job stands like this.
    Refused(Standing),
    /// The job has ended by this claim, now or by an earlier copy of the same record.
    Settled,
    /// Nobody has the job.
    Released,
    /// The job is to end.
    Cancelled,
    /// The instance is dead, and these claims of it no longer count.
    Left(Vec<JobKey>),
    /// Nothing: its condition did not hold.
    Nothing,
}

/// A claim that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The claim.
    pub claim: Position,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// How many earlier attempts failed or were lost.
    pub failures: u32,
    /// How many earlier attempts came before the end that an operator has undone last: they are another life of the job.
    pub undone: u32,
    /// Somebody wants the job to end.
    pub cancelled: bool,
    /// Which of the job's outputs, by their index, were there before its first attempt.
    pub existing: Box<[u16]>,
    /// Whose claim it put an end to.
    pub superseded: Option<Owner>,
}

impl Fold {
    /// Takes the next record of the log. `sequence` is its number among those of `instance`.
    pub fn apply(
        &mut self,
        position: Position,
        instance: InstanceId,
        sequence: u64,
        record: &Record,
    ) -> Effect {
        self.start.get_or_insert(position);
        match record {
            Record::Renew { name, lease_ms } => self.renew(position, instance, name, *lease_ms),
            Record::Claim { job, digest, terms, existing, at } => {
                let claimant = Owner { instance, claim: position, sequence, at: *at };
                self.claim(JobKey::of(job), *digest, *terms, existing, claimant)
            }
            Record::Settle { job, claim, end, at } => {
                self.settle(JobKey::of(job), instance, *claim, *end, *at)
            }
            Record::Release { job, claim, reason } => {
                self.release(position, JobKey::of(job), instance, *claim, *reason)
            }
            Record::Cancel { job, .. } => self.cancel(position, JobKey::of(job)),
            Record::Leave => self.leave(position, instance),
        }
    }

    /// Where a job stands.
    #[must_use]
    pub fn standing(&self, job: JobKey) -> Standing {
        if let Some(open) = self.open.get(&job) {
            return Standing::Open(open.clone());
        }
        self.settled.get(&job).map_or(Standing::Unknown, |settled| Standing::Settled(*settled))
    }

    /// What is known of an instance.
    #[must_use]
    pub fn instance(&self, instance: InstanceId) -> Option<&Instance> {
        self.instances.get(&instance)
    }

    /// How many jobs have not ended, and how many have.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.open.len(), self.settled.len())
    }

    /// Drops what a reader that starts now would not know, because the log begins at `start` by now.
    pub fn forget_before(&mut self, start: Position) {
        self.start = self.start.max(Some(start));
        self.settled.retain(|_, settled| settled.claim >= start);
        if self.settled.len() < self.settled.capacity() / 4 {
            self.settled.shrink_to(self.settled.len() * 2);
        }
        self.open.retain(|_, open| open.changed >= start);
        let owners: BTreeSet<_> = self.open.values().filter_map(|open| Some(open.owner?.instance)).collect();
        self.instances.retain(|id, instance| instance.renewal >= start || owners.contains(id));
    }

    fn renew(&mut self, position: Position, instance: InstanceId, name: &str, lease_ms: u32) -> Effect {
        let heard = self.instances.entry(instance).or_insert_with(|| Instance {
            name: name.into(),
            lease_ms,
            renewal: position,
            left: false,
        });
        if heard.left {
            return Effect::Nothing;
        }
        heard.renewal = position;
        heard.lease_ms = lease_ms;
        Effect::Renewed
    }

    fn claim(
        &mut self,
        job: JobKey,
        digest: Digest,
        terms: Terms,
        existing: &[u16],
        claimant: Owner,
    ) -> Effect {
        let standing = self.standing(job);
        if self.instances.get(&claimant.instance).is_none_or(|instance| instance.left) {
            return Effect::Refused(standing);
        }
        let (mut open, superseded) = match (standing, terms) {
            (Standing::Unknown, Terms::Free) => (Open::default(), None),
            (
                Standing::Unknown,
                Terms::Supersedes { claim, .. } | Terms::Replaces { claim } | Terms::Reopens { claim },
            ) if Some(claim) < self.start => (Open::default(), None),
            (Standing::Open(open), _) if open.digest.is_some_and(|known| known != digest) => {
                return Effect::Refused(Standing::Open(open));
            }
            (Standing::Open(open), terms) => match (open.owner, terms) {
                (None, Terms::Free) => (open, None),
                // The same record has landed twice.
                (Some(owner), _)
                    if owner.instance == claimant.instance && owner.sequence == claimant.sequence =>
                {
                    return Effect::Claimed(open.claimed(owner, None));
                }
                (Some(owner), Terms::Supersedes { claim, renewal })
                    if owner.claim == claim && self.last_renewal(owner.instance) == Some(renewal) =>
                {
                    (Open { failures: open.failures + 1, ..open }, Some(owner))
                }
                (Some(owner), Terms::Replaces { claim })
                    if owner.claim == claim && owner.instance == claimant.instance =>
                {
                    (open, Some(owner))
                }
                _ => return Effect::Refused(Standing::Open(open)),
            },
            (Standing::Settled(settled), Terms::Reopens { claim })
                if settled.claim == claim && settled.digest == digest =>
            {
                self.settled.remove(&job);
                let undone = settled.attempt();
                (Open { attempts: undone, undone, ..Open::default() }, None)
            }
            (standing, _) => return Effect::Refused(standing),
        };
        // A job that runs again on an operator's word starts a life of its own.
        let is_first = open.attempts == 0 || matches!(terms, Terms::Reopens { .. }) || open.is_unseen();
        if is_first {
            open.existing = existing.into();
        }
        open.digest = Some(digest);
        open.owner = Some(claimant);
        open.changed = claimant.claim;
        open.attempts = open.attempts.saturating_add(1).min(u32::MAX >> 2);
        let claimed = open.claimed(claimant, superseded);
        self.open.insert(job, open);
        Effect::Claimed(claimed)
    }

    fn last_renewal(&self, instance: InstanceId) -> Option<Position> {
        self.instances.get(&instance).map(|instance| instance.renewal)
    }

    fn settle(&mut self, job: JobKey, instance: InstanceId, claim: Position, end: Ending, at: u64) -> Effect {
        let Some(open) = self.open.get(&job) else {
            let again = self.settled.get(&job).is_some_and(|settled| settled.claim == claim);
            return if again { Effect::Settled } else { Effect::Nothing };
        };
        match (open.owner, open.digest) {
            (Some(owner), Some(digest)) if owner.claim == claim && owner.instance == instance => {
                self.settled.insert(job, Settled::new(digest, claim, at, open.attempts, end));
                self.open.remove(&job);
                Effect::Settled
            }
            _ => Effect::Nothing,
        }
    }

    fn release(
        &mut self,
        position: Position,
        job: JobKey,
        instance: InstanceId,
        claim: Position,
        reason: Reason,
    ) -> Effect {
        match self.open.get_mut(&job) {
            Some(open)
                if open.owner.is_some_and(|owner| owner.claim == claim && owner.instance == instance) =>
            {
                open.owner = None;
                open.changed = position;
                open.failures += u32::from(reason.is_failure());
                Effect::Released
            }
            _ => Effect::Nothing,
        }
    }

    fn cancel(&mut self, position: Position, job: JobKey) -> Effect {
        if self.settled.contains_key(&job) {
            return Effect::Nothing;
        }
        let open = self.open.entry(job).or_default();
        open.cancelled = true;
        open.changed = position;
        Effect::Cancelled
    }

    fn leave(&mut self, position: Position, instance: InstanceId) -> Effect {
        match self.instances.get_mut(&instance) {
            Some(known) if !known.left => known.left = true,
            _ => return Effect::Nothing,
        }
        let mut freed = Vec::new();
        for (key, open) in &mut self.open {
            if open.owner.is_some_and(|owner| owner.instance == instance) {
                open.owner = None;
                open.changed = position;
                open.failures += 1;
                freed.push(*key);
            }
        }
        Effect::Left(freed)
    }
}

impl Open {
    /// Whether its next claim is to say which of its outputs are there: nothing of it has run as far as anybody may have.
    #[must_use]
    pub fn is_to_be_looked_at(&self) -> bool {
        self.attempts == 0 || self.is_unseen()
    }

    fn is_unseen(&self) -> bool {
        self.existing.contains(&UNSEEN)
    }

    fn claimed(&self, owner: Owner, superseded: Option<Owner>) -> Claimed {
        Claimed {
            claim: owner.claim,
            attempt: self.attempts,
            failures: self.failures,
            undone: self.undone,
            cancelled: self.cancelled,
            existing: self.existing.clone(),
            superseded,
        }
    }
}

/// For the model, which tells states apart by their hashes.
impl Hash for Fold {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.instances.hash(state);
        self.open.hash(state);
        self.start.hash(state);
        let mut settled: Vec<_> = self.settled.iter().collect();
        settled.sort_unstable_by_key(|(key, _)| **key);
        settled.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::LOOKED_ELSEWHERE;
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    /// A log that is written as it is read.
    #[derive(Default)]
    struct Log {
        fold: Fold,
        next: u64,
    }

    impl Log {
        fn append(&mut self, instance: u64, record: Record) -> (Position, Effect) {
            self.append_as(instance, self.next, record)
        }

        fn append_as(&mut self, instance: u64, sequence: u64, record: Record) -> (Position, Effect) {
            let position = Position::new(self.next, 0);
            self.next += 1;
            let effect = self.fold.apply(position, InstanceId::from_number(instance), sequence, &record);
            (position, effect)
        }

        fn renew(&mut self, instance: u64) -> Position {
            self.append(instance, Record::Renew { name: "w".into(), lease_ms: 60_000 }).0
        }

        fn claim(&mut self, instance: u64, terms: Terms) -> (Position, Effect) {
            self.append(instance, claim(b"body", terms))
        }

        fn claimed(&mut self, instance: u64, terms: Terms) -> Claimed {
            match self.claim(instance, terms).1 {
                Effect::Claimed(claimed) => claimed,
                other => panic!("{other:?}"),
            }
        }

        fn refused(&mut self, instance: u64, terms: Terms) -> Standing {
            match self.claim(instance, terms).1 {
                Effect::Refused(standing) => standing,
                other => panic!("{other:?}"),
            }
        }

        fn settle(&mut self, instance: u64, claim: Position) -> Effect {
            self.append(instance, Record::Settle { job: job(), claim, end: Ending::Failed, at: NOW }).1
        }

        fn release(&mut self, instance: u64, claim: Position, reason: Reason) -> Effect {
            self.append(instance, Record::Release { job: job(), claim, reason }).1
        }

        fn standing(&self) -> Standing {
            self.fold.standing(JobKey::of(&job()))
        }

        fn open(&self) -> Open {
            match self.standing() {
                Standing::Open(open) => open,
                other => panic!("{other:?}"),
            }
        }
    }

    fn job() -> JobId {
        JobId::new("j").unwrap()
    }

    fn claim(body: &[u8], terms: Terms) -> Record {
        Record::Claim { job: job(), digest: Digest::of(body), terms, existing: vec![2], at: NOW }
    }

    #[test]
    fn of_two_claims_the_first_in_the_log_counts() {
        let mut log = Log::default();
        log.renew(1);
        log.renew(2);
        let first = log.claimed(1, Terms::Free);
        assert_eq!((first.attempt, first.failures), (1, 0));
        assert!(
            matches!(log.refused(2, Terms::Free), Standing::Open(open) if open.owner.unwrap().claim == first.claim)
        );
    }

    #[test]
    fn a_claim_without_a_sign_of_life_before_it_does_not_count() {
        let mut log = Log::default();
        assert_eq!(log.refused(1, Terms::Free), Standing::Unknown);
    }

    #[test]
    fn a_superseding_claim_names_the_claim_and_the_last_renewal() {
        let mut log = Log::default();
        let first = log.renew(1);
        let old = log.claimed(1, Terms::Free).claim;
        log.renew(2);
        let renewal = log.renew(1);
        log.refused(2, Terms::Supersedes { claim: old, renewal: first });
        log.refused(2, Terms::Supersedes { claim: first, renewal });
        let new = log.claimed(2, Terms::Supersedes { claim: old, renewal });
        assert_eq!((new.attempt, new.failures, new.superseded.unwrap().claim), (2, 1, old));
        // Nothing that the first one does counts any more.
        assert_eq!(log.settle(1, old), Effect::Nothing);
        assert_eq!(log.release(1, old, Reason::Lost), Effect::Nothing);
        log.renew(1);
        assert_eq!(log.open().owner.unwrap().claim, new.claim);
    }

    #[test]
    fn one_renewal_covers_all_claims_of_an_instance() {
        let mut log = Log::default();
        let first = log.renew(1);
        let claims: Vec<_> = (0..3)
            .map(|n| {
                let record = Record::Claim {
                    job: JobId::new(&format!("j{n}")).unwrap(),
                    digest: Digest::of(b""),
                    terms: Terms::Free,
                    existing: Vec::new(),
                    at: NOW,
                };
                log.append(1, record).0
            })
            .collect();
        log.renew(1);
        log.renew(2);
        for (n, claim) in claims.into_iter().enumerate() {
            let record = Record::Claim {
                job: JobId::new(&format!("j{n}")).unwrap(),
                digest: Digest::of(b""),
                terms: Terms::Supersedes { claim, renewal: first },
                existing: Vec::new(),
                at: NOW,
            };
            assert!(matches!(log.append(2, record).1, Effect::Refused(_)));
        }
    }

    #[test]
    fn only_the_claim_in_force_settles_and_what_is_settled_stays() {
        let mut log = Log::default();
        log.renew(1);
        log.renew(2);
        let claim = log.claimed(1, Terms::Free).claim;
        assert_eq!(log.settle(2, claim), Effect::Nothing);
        assert_eq!(log.settle(1, Position::new(99, 0)), Effect::Nothing);
        assert_eq!(log.settle(1, claim), Effect::Settled);
        // The same record, landed again.
        assert_eq!(log.settle(1, claim), Effect::Settled);
        let Standing::Settled(settled) = log.refused(2, Terms::Free) else { panic!() };
        assert_eq!((settled.attempt(), settled.ending(), settled.claim), (1, Ending::Failed, claim));
        assert_eq!(log.release(1, claim, Reason::Lost), Effect::Nothing);
        assert_eq!(log.append(1, Record::Cancel { job: job(), at: NOW }).1, Effect::Nothing);
    }

    #[test]
    fn failures_count_and_what_was_given_back_does_not() {
        let mut log = Log::default();
        log.renew(1);
        for (reason, failures) in [
            (Reason::GivenBack, 0),
            (Reason::Interrupted, 0),
            (Reason::Failed, 0),
            (Reason::Lost, 1),
            (Reason::GivenBack, 2),
        ] {
            let claimed = log.claimed(1, Terms::Free);
            assert_eq!(claimed.failures, failures);
            assert_eq!(log.release(1, claimed.claim, reason), Effect::Released);
            assert_eq!(log.release(1, claimed.claim, reason), Effect::Nothing);
        }
        let last = log.claimed(1, Terms::Free);
        assert_eq!((last.attempt, last.failures), (6, 2));
    }

    #[test]
    fn a_claim_that_lands_twice_is_one() {
        let mut log = Log::default();
        log.renew(1);
        let record = claim(b"body", Terms::Free);
        let (first, _) = log.append_as(1, 500, record.clone());
        let (_, again) = log.append_as(1, 500, record.clone());
        assert!(matches!(again, Effect::Claimed(claimed) if claimed.claim == first && claimed.attempt == 1));
        // Another claim of the same instance is not: it may have forgotten the first.
        assert!(matches!(log.append_as(1, 501, record).1, Effect::Refused(_)));
        let replaced = log.claimed(1, Terms::Replaces { claim: first });
        assert_eq!((replaced.attempt, replaced.failures), (2, 0));
        log.renew(2);
        log.refused(2, Terms::Replaces { claim: replaced.claim });
    }

    #[test]
    fn a_dead_instance_leaves_its_jobs_and_nothing_of_it_counts_later() {
        let mut log = Log::default();
        log.renew(1);
        let claim = log.claimed(1, Terms::Free).claim;
        assert_eq!(log.append(2, Record::Leave).1, Effect::Nothing);
        assert_eq!(log.append(1, Record::Leave).1, Effect::Left(vec![JobKey::of(&job())]));
        assert_eq!(log.append(1, Record::Leave).1, Effect::Nothing);
        let open = log.open();
        assert_eq!((open.owner, open.attempts, open.failures), (None, 1, 1));
        assert_eq!(log.settle(1, claim), Effect::Nothing);
        assert_eq!(log.append(1, Record::Renew { name: "w".into(), lease_ms: 1 }).1, Effect::Nothing);
        log.refused(1, Terms::Free);
        log.renew(2);
        assert_eq!(log.claimed(2, Terms::Free).attempt, 2);
    }

    #[test]
    fn another_body_under_the_same_id_gets_nothing() {
        let mut log = Log::default();
        log.renew(1);
        let first = log.claimed(1, Terms::Free).claim;
        let other = |terms| claim(b"other", terms);
        let refused = |effect| matches!(effect, Effect::Refused(_));
        assert!(refused(log.append(1, other(Terms::Replaces { claim: first })).1));
        log.release(1, first, Reason::Failed);
        assert!(refused(log.append(1, other(Terms::Free)).1));
        let second = log.claimed(1, Terms::Free).claim;
        log.settle(1, second);
        assert!(refused(log.append(1, other(Terms::Reopens { claim: second })).1));
    }

    #[test]
    fn a_cancel_holds_also_when_it_comes_before_the_job() {
        let mut log = Log::default();
        assert_eq!(log.append(9, Record::Cancel { job: job(), at: NOW }).1, Effect::Cancelled);
        log.renew(1);
        assert!(log.claimed(1, Terms::Free).cancelled);
    }

    #[test]
    fn a_replay_names_the_end_that_it_undoes_and_works_once() {
        let mut log = Log::default();
        log.renew(1);
        let claim = log.claimed(1, Terms::Free).claim;
        log.refused(1, Terms::Reopens { claim });
        log.settle(1, claim);
        log.refused(1, Terms::Reopens { claim: Position::new(99, 0) });
        let again = log.claimed(1, Terms::Reopens { claim });
        assert_eq!((again.attempt, again.failures, again.undone, &*again.existing), (2, 0, 1, &[2][..]));
        log.settle(1, again.claim);
        log.refused(1, Terms::Reopens { claim });
    }

    #[test]
    fn outputs_that_were_there_before_the_first_attempt_are_remembered() {
        let mut log = Log::default();
        log.renew(1);
        let first = log.claimed(1, Terms::Free);
        log.release(1, first.claim, Reason::Lost);
        let later = Record::Claim {
            job: job(),
            digest: Digest::of(b"body"),
            terms: Terms::Free,
            existing: vec![0, 1, 2],
            at: NOW,
        };
        let Effect::Claimed(second) = log.append(1, later).1 else { panic!() };
        assert_eq!(&*second.existing, &[2]);
    }

    #[test]
    fn a_claim_that_could_not_tell_which_outputs_are_there_leaves_it_to_the_next() {
        let mut log = Log::default();
        log.renew(1);
        let mut claimed = |existing: &[u16]| {
            let record = Record::Claim {
                job: job(),
                digest: Digest::of(b"body"),
                terms: Terms::Free,
                existing: existing.to_vec(),
                at: NOW,
            };
            let Effect::Claimed(claimed) = log.append(1, record).1 else { panic!() };
            log.release(1, claimed.claim, Reason::Failed);
            (claimed.attempt, claimed.existing.to_vec())
        };
        assert_eq!(claimed(&[1, UNSEEN]), (1, vec![1, UNSEEN]));
        assert_eq!(claimed(&[UNSEEN]), (2, vec![UNSEEN]));
        assert_eq!(claimed(&[2, LOOKED_ELSEWHERE]), (3, vec![2, LOOKED_ELSEWHERE]));
        assert_eq!(claimed(&[UNSEEN]), (4, vec![2, LOOKED_ELSEWHERE]));
    }

    #[test]
    fn what_the_log_no_longer_holds_is_forgotten() {
        let mut log = Log::default();
        log.renew(1);
        let claim = log.claimed(1, Terms::Free).claim;
        log.settle(1, claim);
        log.fold.forget_before(claim);
        assert!(matches!(log.standing(), Standing::Settled(_)));
        log.fold.forget_before(Position::new(claim.number() >> 8, 1));
        assert_eq!(log.standing(), Standing::Unknown);
    }

    #[test]
    fn a_claim_that_names_one_from_before_the_start_counts() {
        let mut log = Log { next: 100, ..Log::default() };
        log.renew(1);
        let (claim, renewal) = (Position::new(7, 0), Position::new(8, 0));
        log.claimed(1, Terms::Supersedes { claim, renewal });
        let later = Position::new(150, 0);
        let mut other = Log { next: 100, ..Log::default() };
        other.renew(1);
        other.refused(1, Terms::Supersedes { claim: later, renewal });
    }

    #[test]
    fn jobs_that_nobody_takes_up_again_are_forgotten_with_their_records() {
        let mut log = Log::default();
        let (cancel, _) = log.append(9, Record::Cancel { job: job(), at: NOW });
        log.fold.forget_before(cancel);
        assert!(log.open().cancelled);
        log.fold.forget_before(Position::new(1, 0));
        assert_eq!(log.standing(), Standing::Unknown);
    }

    #[test]
    fn a_settled_job_takes_at_most_a_hundred_bytes() {
        // The table doubles at seven eighths of its buckets, each of which has an entry and a byte.
        let worst = (size_of::<(JobKey, Settled)>() + 1) * 16 / 7;
        assert!(worst <= 100, "{worst}");
    }
}
