//! The ledger's stream, folded by the worker's own fold.
//!
//! A log is a chain of entries, each with what the fold says up to there. So every reader has the fold of the place that it
//! has read up to, and the fold is worked out once for each log and not once for each reader.
//!
//! This module must not know who writes, nor when.

use std::sync::{Arc, LazyLock};

use spark_runtime_protocol::JobId;
use spark_runtime_worker::broker::ledger::fold::{Effect, Fold, JobKey, Open, Owner, Standing};
use spark_runtime_worker::broker::ledger::record::{InstanceId, Position, Record, Terms};

use crate::Mistake;

/// The most jobs that a model may have.
pub(crate) const MOST_JOBS: usize = 2;

static JOBS: LazyLock<[(JobId, JobKey); MOST_JOBS]> = LazyLock::new(|| {
    std::array::from_fn(|number| {
        let job = JobId::stand_in(&number.to_le_bytes());
        let key = JobKey::of(&job);
        (job, key)
    })
});

/// The id of a job.
pub(crate) fn job_id(job: u8) -> &'static JobId {
    &JOBS[usize::from(job)].0
}

/// The number of a job.
pub(crate) fn job_number(id: &JobId) -> Option<u8> {
    JOBS.iter().position(|(known, _)| known == id).and_then(|number| u8::try_from(number).ok())
}

/// A number of an instance, as the model counts them.
pub(crate) type InstanceNumber = u16;

/// What one instance writes in one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) instance: InstanceNumber,
    /// The number of the first record; the next one has the next.
    pub(crate) sequence: u64,
    pub(crate) records: Vec<Record>,
}

/// An entry in its place.
#[derive(Debug)]
pub(crate) struct Place {
    before: Option<Arc<Place>>,
    /// How many entries there are up to here.
    pub(crate) length: usize,
    pub(crate) entry: Entry,
    /// What each of its records has changed.
    pub(crate) effects: Vec<Effect>,
    /// What the log says up to here.
    pub(crate) fold: Fold,
}

impl Place {
    /// The place in the log of one of the entry's records.
    pub(crate) fn position(&self, index: usize) -> Position {
        Position::new(self.length as u64, u8::try_from(index).unwrap_or(u8::MAX))
    }

    /// Where a job stands.
    pub(crate) fn standing(&self, job: u8) -> Standing {
        self.fold.standing(JOBS[usize::from(job)].1)
    }

    /// Who has a job.
    pub(crate) fn owner(&self, job: u8) -> Option<Owner> {
        match self.standing(job) {
            Standing::Open(Open { owner, .. }) => owner,
            _ => None,
        }
    }
}

/// The log up to its end. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    last: Arc<Place>,
}

impl Log {
    /// Nothing is written yet.
    pub(crate) fn new() -> Self {
        let entry = Entry { instance: 0, sequence: 0, records: Vec::new() };
        let last = Place { before: None, length: 0, entry, effects: Vec::new(), fold: Fold::default() };
        Self { last: Arc::new(last) }
    }

    /// How many entries there are.
    pub(crate) fn length(&self) -> usize {
        self.last.length
    }

    /// The last entry.
    pub(crate) fn last(&self) -> &Place {
        &self.last
    }

    /// The entry up to which there are so many.
    pub(crate) fn at(&self, length: usize) -> &Place {
        let mut place = &self.last;
        while place.length > length
            && let Some(before) = &place.before
        {
            place = before;
        }
        place
    }

    /// The entries behind the one up to which there are so many, the last one first.
    pub(crate) fn behind(&self, length: usize) -> impl Iterator<Item = &Place> {
        let all = std::iter::successors(Some(&*self.last), |place| place.before.as_deref());
        all.take_while(move |place| place.length > length)
    }

    /// Appends an entry; a mistake may have it count for what it does not say.
    pub(crate) fn append(&mut self, mut entry: Entry, mistake: Option<Mistake>) {
        let mut fold = self.last.fold.clone();
        let length = self.last.length + 1;
        let mut effects = Vec::with_capacity(entry.records.len());
        for (index, record) in entry.records.iter_mut().enumerate() {
            let writer = InstanceId::from_number(entry.instance.into());
            let other = mistake.and_then(|mistake| rewritten(&fold, record, mistake));
            let instance = other.unwrap_or(writer);
            let position = Position::new(length as u64, u8::try_from(index).unwrap_or(u8::MAX));
            effects.push(fold.apply(position, instance, entry.sequence + index as u64, record));
        }
        let before = Some(self.last.clone());
        self.last = Arc::new(Place { before, length, entry, effects, fold });
    }
}

/// Has a record say what it would have to say to count; gives whose it then has to be, if not its writer's.
fn rewritten(fold: &Fold, record: &mut Record, mistake: Mistake) -> Option<InstanceId> {
    let owner = |job: &JobId| match fold.standing(JobKey::of(job)) {
        Standing::Open(Open { owner, .. }) => owner,
        _ => None,
    };
    match (mistake, record) {
        (
            Mistake::SupersedingWithoutRenewal,
            Record::Claim { job, terms: Terms::Supersedes { renewal, .. }, .. },
        ) => {
            let last = owner(job).and_then(|owner| fold.instance(owner.instance));
            if let Some(last) = last {
                *renewal = last.renewal;
            }
            None
        }
        (Mistake::SettlingWithoutClaim, Record::Settle { job, claim, .. }) => {
            let owner = owner(job)?;
            *claim = owner.claim;
            Some(owner.instance)
        }
        _ => None,
    }
}
