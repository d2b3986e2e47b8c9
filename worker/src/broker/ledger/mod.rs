//! The ledger: who has which job, kept by the broker as one stream of small records that every worker reads.
//!
//! # Theory of operation
//!
//! A worker **appends** what it wants (a claim, an end) and **reads on until it reads its own record back**. What the
//! [`fold`] makes of the record at its place in the log is the answer, the same for everybody. Nothing else is asked: no
//! clock of another machine, no connection as a sign of life, not even the broker's confirmation.
//!
//! - A [`Held`] job is this instance's until its record says otherwise. Whoever holds one is told by its [`Stopper`] when
//!   the claim is superseded, and when somebody cancels the job.
//! - One **renewal** covers all claims of the instance. Its lease counts from the moment at which the last renewal that was
//!   read back had been *sent*; a tenth before its end the guard ends every driver, whatever this process does
//!   ([`Ledger::lease`]). An instance that holds nothing renews nothing: the first claim brings its renewal along.
//! - A claim of this instance that is read back and that nobody waits for any more is released at once.
//! - Records may land twice, late, or after a later one; the fold takes that ([`fold::Fold`]), and so nothing is done about
//!   it here.
//!
//! [`record`] is what is written, and its one codec; [`fold`] is what it means; [`tail`] reads; [`checkpoint`] keeps the reading
//! short.
//!
//! This module must not know what a job is, nor how one is run.

pub mod checkpoint;
pub mod fold;
pub mod leave;
pub mod record;
pub mod tail;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use spark_runtime_protocol::JobId;
use tokio::sync::{oneshot, watch};

use self::checkpoint::Checkpoint;
use self::fold::{Claimed, Effect, Fold, JobKey, Open, Standing};
use self::record::{Digest, Ending, Entry, InstanceId, Position, Reason, Record, RecordError, Terms};
use super::publisher::Publisher;
use crate::clock::BootTime;
use crate::job::{StopReason, Stopper};

/// How much earlier than others may take its jobs over an instance ends them, as a part of the lease.
const MARGIN: u32 = 10;
/// An instance that holds jobs renews so often within a lease.
const RENEWALS: u32 = 4;

/// How long after the work on a job broke off its processes may still be there.
const AFTERMATH: Duration = Duration::from_secs(30);

/// The ledger as this worker instance sees it. Cheap to clone.
#[derive(Clone)]
pub struct Ledger(Arc<Shared>);

struct Shared {
    instance: InstanceId,
    name: String,
    lease: Duration,
    publisher: Publisher,
    sequence: AtomicU64,
    state: Mutex<State>,
    /// The last record that was read.
    progress: watch::Sender<Position>,
    /// Until when drivers of this instance may run.
    lease_ends: watch::Sender<Option<BootTime>>,
    /// Everything up to this instance's first record has been read.
    ready: watch::Sender<bool>,
    /// The log says that this instance is dead.
    dead: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    fold: Fold,
    /// Records up to the last one of this instance are being read again; what they say is the past.
    catching_up: bool,
    /// Records of this instance that were not read back yet, by their sequence numbers.
    waiting: HashMap<u64, Waiting>,
    /// Jobs that somebody here works on.
    held: HashMap<JobKey, Holding>,
    /// Jobs that this instance has, by the log.
    mine: HashMap<JobKey, (JobId, Position)>,
    renewed: Option<BootTime>,
    /// How many messages of the stream were none of the ledger's.
    skipped: u64,
    /// The last message that was read.
    last: Option<Last>,
    /// Up to which offset there is a checkpoint, or from which on the log was read.
    checkpointed: Option<u64>,
}

/// The last message that was read. Whoever reads on begins with it: it shows that the log is still the same.
#[derive(Debug, Clone, PartialEq)]
struct Last {
    offset: u64,
    message: Message,
}

/// What a message of the log was.
#[derive(Debug, Clone, PartialEq)]
enum Message {
    /// Its body, as it was read.
    Body(Vec<u8>),
    /// The SHA-256 of its body, as a checkpoint has it.
    Digest(String),
}

impl Message {
    fn digest(&self) -> String {
        match self {
            Self::Body(body) => checkpoint::hex(body),
            Self::Digest(digest) => digest.clone(),
        }
    }

    fn is(&self, body: &[u8]) -> bool {
        match self {
            Self::Body(own) => own == body,
            Self::Digest(digest) => *digest == checkpoint::hex(body),
        }
    }
}

struct Waiting {
    record: Record,
    sent: BootTime,
    tell: Option<oneshot::Sender<Effect>>,
    stopper: Option<Stopper>,
}

struct Holding {
    claim: Position,
    stopper: Stopper,
}

/// A job that this instance has. Dropping it gives the job back after a while: whoever drops it did not get to its end.
#[derive(Debug)]
pub struct Held {
    ledger: Option<Ledger>,
    job: JobId,
    claim: Position,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("instance", &self.0.instance).finish_non_exhaustive()
    }
}

impl Ledger {
    /// The ledger for a new instance that people know as `name`. It knows nothing before [`tail::follow`] reads.
    #[must_use]
    pub fn new(name: &str, lease: Duration, publisher: Publisher) -> Self {
        Self(Arc::new(Shared {
            instance: InstanceId::random(),
            name: name.to_owned(),
            lease,
            publisher,
            sequence: AtomicU64::new(0),
            state: Mutex::new(State { catching_up: true, ..State::default() }),
            progress: watch::Sender::new(Position::from_number(0)),
            lease_ends: watch::Sender::new(None),
            ready: watch::Sender::new(false),
            dead: watch::Sender::new(false),
        }))
    }

    /// This instance.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.0.instance
    }

    /// For how long this instance keeps its jobs without being heard of.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.0.lease
    }

    /// Waits until the log has been read.
    pub async fn ready(&self) {
        // The sender lives as long as this.
        let _ = self.0.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Waits until the log says that this instance is dead. It can claim nothing any more.
    pub async fn declared_dead(&self) {
        let _ = self.0.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// The moments until which drivers may run, as they change; none as long as nothing was renewed.
    #[must_use]
    pub fn lease_ends(&self) -> watch::Receiver<Option<BootTime>> {
        self.0.lease_ends.subscribe()
    }

    /// Where a job stands as far as the log has been read.
    #[must_use]
    pub fn standing(&self, job: JobKey) -> Standing {
        self.state().fold.standing(job)
    }

    /// What is known of an instance: its name, its lease and its last renewal.
    #[must_use]
    pub fn instance_of(&self, instance: InstanceId) -> Option<fold::Instance> {
        self.state().fold.instance(instance).cloned()
    }

    /// Whether somebody here works on the job by this claim.
    #[must_use]
    pub fn holds(&self, job: JobKey, claim: Position) -> bool {
        self.state().held.get(&job).is_some_and(|holding| holding.claim == claim)
    }

    /// Waits until `found` gives something about the job's standing; asks anew after each record that is read.
    pub async fn until<T>(&self, job: JobKey, mut found: impl FnMut(Standing) -> Option<T>) -> T {
        let mut progress = self.0.progress.subscribe();
        loop {
            progress.borrow_and_update();
            if let Some(value) = found(self.standing(job)) {
                return value;
            }
            if progress.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Claims a job, and waits until it is decided. `stopper` is told when the claim ends or the job is cancelled.
    /// `existing` are the outputs, by their index, that are there already.
    ///
    /// Dropping the future gives the job back if the claim turns out to be in force.
    ///
    /// # Errors
    /// Where the job stands, when the claim is not in force.
    pub async fn claim(
        &self,
        job: &JobId,
        digest: Digest,
        terms: Terms,
        existing: Vec<u16>,
        stopper: &Stopper,
    ) -> Result<(Held, Claimed), Standing> {
        let record = Record::Claim { job: job.clone(), digest, terms, existing, at: milliseconds_now() };
        match self.append(record, Some(stopper.clone())).await {
            Effect::Claimed(claimed) => {
                let held = Held { ledger: Some(self.clone()), job: job.clone(), claim: claimed.claim };
                Ok((held, claimed))
            }
            Effect::Refused(standing) => Err(standing),
            // A claim has no other effects.
            _ => Err(self.standing(JobKey::of(job))),
        }
    }

    /// Says that a job has ended by this claim. Its terminal event, of the time `at`, has to be in the history.
    ///
    /// # Errors
    /// The claim is not in force.
    pub async fn settle(&self, held: Held, end: Ending, at: jiff::Timestamp) -> Result<(), Superseded> {
        let (job, claim) = held.let_go();
        let at = u64::try_from(at.as_millisecond()).unwrap_or_else(|_| milliseconds_now());
        let record = Record::Settle { job: job.clone(), claim, end, at };
        let effect = self.append(record, None).await;
        self.no_longer_held(&job, claim);
        if effect == Effect::Settled { Ok(()) } else { Err(Superseded) }
    }

    /// Gives a job up, so that it can be claimed again.
    ///
    /// # Errors
    /// The claim is not in force.
    pub async fn release(&self, held: Held, reason: Reason) -> Result<(), Superseded> {
        let (job, claim) = held.let_go();
        let effect = self.append(Record::Release { job: job.clone(), claim, reason }, None).await;
        self.no_longer_held(&job, claim);
        if effect == Effect::Released { Ok(()) } else { Err(Superseded) }
    }

    /// Marks a job as one that is to end. Tells where it stood.
    pub async fn cancel(&self, job: &JobId) -> Standing {
        self.append(Record::Cancel { job: job.clone(), at: milliseconds_now() }, None).await;
        self.standing(JobKey::of(job))
    }

    /// Makes sure that drivers may run for a while, and tells until when. A claim that was read back late finds its lease
    /// all but over.
    pub async fn assured_lease(&self) -> BootTime {
        let ahead = BootTime::now().checked_add(self.0.lease / 3);
        loop {
            let ends = *self.0.lease_ends.borrow();
            if let Some(ends) = ends
                && Some(ends) > ahead
            {
                return ends;
            }
            self.append(self.renewal(), None).await;
            if *self.0.dead.borrow() {
                return std::future::pending().await;
            }
            let ends = *self.0.lease_ends.borrow();
            if let Some(ends) = ends
                && ends > BootTime::now()
            {
                return ends;
            }
        }
    }

    /// Renews for as long as this instance has jobs. Ends never.
    pub async fn keep_renewed(&self) {
        loop {
            tokio::time::sleep(self.0.lease / RENEWALS / 2).await;
            let due = {
                let state = self.state();
                !state.mine.is_empty() && self.renewal_is_due(&state)
            };
            if due {
                let (record, told) = (self.renewal(), None);
                self.hand_over(record, told, None);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renewal(&self) -> Record {
        let lease_ms = u32::try_from(self.0.lease.as_millis()).unwrap_or(u32::MAX);
        Record::Renew { name: self.0.name.chars().take(100).collect(), lease_ms }
    }

    fn renewal_is_due(&self, state: &State) -> bool {
        let age = state.renewed.and_then(|then| BootTime::now().checked_duration_since(then));
        age.is_none_or(|age| age >= self.0.lease / RENEWALS)
    }

    /// Appends a record and waits until it is read back.
    async fn append(&self, record: Record, stopper: Option<Stopper>) -> Effect {
        let (tell, told) = oneshot::channel();
        self.hand_over(record, Some(tell), stopper);
        match told.await {
            Ok(effect) => effect,
            // Nobody reads any more: the worker is going down.
            Err(_) => std::future::pending().await,
        }
    }

    /// Appends a record; a claim brings a renewal along when one is due.
    fn hand_over(&self, record: Record, tell: Option<oneshot::Sender<Effect>>, stopper: Option<Stopper>) {
        let entry = {
            let mut state = self.state();
            self.enlist(&mut state, record, tell, stopper)
        };
        self.0.publisher.append(entry.encode());
    }

    fn enlist(
        &self,
        state: &mut State,
        record: Record,
        tell: Option<oneshot::Sender<Effect>>,
        stopper: Option<Stopper>,
    ) -> Entry {
        let mut sequence = self.0.sequence.fetch_add(2, Ordering::Relaxed);
        let first = sequence;
        let sent = BootTime::now();
        let mut records = Vec::with_capacity(2);
        let renews = matches!(record, Record::Renew { .. });
        if renews || matches!(record, Record::Claim { .. }) && self.renewal_is_due(state) {
            state.renewed = Some(sent);
            if !renews {
                let renewal = self.renewal();
                records.push(renewal.clone());
                state.waiting.insert(sequence, Waiting { record: renewal, sent, tell: None, stopper: None });
                sequence += 1;
            }
        }
        records.push(record.clone());
        state.waiting.insert(sequence, Waiting { record, sent, tell, stopper });
        Entry::new(self.0.instance, first, records)
    }

    fn no_longer_held(&self, job: &JobId, claim: Position) {
        let key = JobKey::of(job);
        let mut state = self.state();
        if state.held.get(&key).is_some_and(|holding| holding.claim == claim) {
            state.held.remove(&key);
        }
    }

    /// Takes a message of the stream.
    fn take(&self, offset: u64, body: &[u8]) {
        let mut state = self.state();
        state.checkpointed.get_or_insert(offset);
        match &mut state.last {
            // Its memory serves again.
            Some(Last { offset: place, message: Message::Body(own) }) => {
                *place = offset;
                own.clear();
                own.extend_from_slice(body);
            }
            last => *last = Some(Last { offset, message: Message::Body(body.to_vec()) }),
        }
        match Entry::decode(body) {
            Ok(entry) => {
                for (index, record) in entry.records.iter().enumerate() {
                    let position = Position::new(offset, u8::try_from(index).unwrap_or(u8::MAX));
                    let sequence = entry.sequence + index as u64;
                    let effect = state.fold.apply(position, entry.instance, sequence, record);
                    self.heed(&mut state, entry.instance, sequence, record, effect);
                }
            }
            Err(error) => {
                state.skipped += 1;
                tell_skipped(offset, state.skipped, &error);
            }
        }
        drop(state);
        self.0.progress.send_replace(Position::new(offset, u8::MAX));
    }

    /// Does what a record that was read asks of this instance.
    fn heed(&self, state: &mut State, instance: InstanceId, sequence: u64, record: &Record, effect: Effect) {
        match (record, &effect) {
            (Record::Cancel { job, .. }, Effect::Cancelled) => {
                let key = JobKey::of(job);
                // When the log is read anew, it may be about an earlier life of the job.
                if let Some(holding) = state.held.get(&key)
                    && matches!(state.fold.standing(key), Standing::Open(Open { owner: Some(owner), .. })
                        if owner.claim == holding.claim)
                {
                    holding.stopper.stop(StopReason::Cancel);
                }
            }
            // In the present it is another's, whatever it took the place of; of the past only what took the place of a claim of
            // this instance counts.
            (Record::Claim { job, .. }, Effect::Claimed(claimed))
                if instance != self.0.instance
                    && (!state.catching_up
                        || claimed.superseded.is_some_and(|owner| owner.instance == self.0.instance)) =>
            {
                lose(state, JobKey::of(job), job);
            }
            (Record::Leave, Effect::Left(_)) if instance == self.0.instance => self.die(state),
            _ => {}
        }
        if instance == self.0.instance {
            self.heed_own(state, sequence, record, effect);
        }
    }

    fn heed_own(&self, state: &mut State, sequence: u64, record: &Record, effect: Effect) {
        let waiting = state.waiting.remove(&sequence);
        match (record, &effect) {
            (Record::Renew { .. }, Effect::Renewed) => {
                if let Some(waiting) = &waiting {
                    self.extend_lease(waiting.sent);
                }
            }
            (Record::Renew { .. }, _) => self.die(state),
            (Record::Claim { job, .. }, Effect::Claimed(claimed)) => {
                let claimed = claimed.clone();
                self.heed_claim(state, job, claimed, waiting);
                return;
            }
            (Record::Settle { job, claim, .. }, Effect::Settled)
            | (Record::Release { job, claim, .. }, Effect::Released) => {
                let key = JobKey::of(job);
                if state.mine.get(&key).is_some_and(|(_, mine)| mine == claim) {
                    state.mine.remove(&key);
                }
                if state.held.get(&key).is_some_and(|holding| holding.claim == *claim) {
                    state.held.remove(&key);
                }
            }
            _ => {}
        }
        if let Some(Waiting { tell: Some(tell), .. }) = waiting {
            // Whoever asked may not wait any more; what was decided is decided.
            let _ = tell.send(effect);
        }
    }

    /// A claim of this instance is in force.
    fn heed_claim(&self, state: &mut State, job: &JobId, claimed: Claimed, waiting: Option<Waiting>) {
        let key = JobKey::of(job);
        let claim = claimed.claim;
        state.mine.insert(key, (job.clone(), claim));
        if let Some(Waiting { tell: Some(tell), stopper: Some(stopper), .. }) = waiting {
            if claimed.cancelled {
                stopper.stop(StopReason::Cancel);
            }
            state.held.insert(key, Holding { claim, stopper });
            if tell.send(Effect::Claimed(claimed)).is_ok() {
                return;
            }
            state.held.remove(&key);
        }
        let is_held = state.held.get(&key).is_some_and(|holding| holding.claim == claim);
        if !is_held && !state.catching_up {
            tracing::info!(job_id = %job, "a claim that nobody waits for any more is released");
            self.give_back(state, job, claim, Reason::GivenBack);
        }
    }

    fn give_back(&self, state: &mut State, job: &JobId, claim: Position, reason: Reason) {
        let entry = self.enlist(state, Record::Release { job: job.clone(), claim, reason }, None, None);
        self.0.publisher.append(entry.encode());
    }

    fn extend_lease(&self, sent: BootTime) {
        let ends = sent.checked_add(self.0.lease - self.0.lease / MARGIN);
        self.0.lease_ends.send_if_modified(|current| {
            let later = ends > *current;
            if later {
                *current = ends;
            }
            later
        });
    }

    fn die(&self, state: &mut State) {
        if !self.0.dead.send_replace(true) {
            tracing::error!(instance = %self.0.instance, "the ledger says that this worker is dead");
        }
        for (_, holding) in state.held.drain() {
            holding.stopper.stop(StopReason::OwnershipLost);
        }
        state.mine.clear();
    }

    /// Forgets what was read: the log is to be read from its start.
    fn begin_again(&self) {
        let mut state = self.state();
        state.fold = Fold::default();
        (state.last, state.checkpointed) = (None, None);
        state.mine.clear();
        state.catching_up = true;
    }

    /// Goes on from a checkpoint, where nothing was read yet.
    fn go_on_from(&self, checkpoint: Checkpoint) {
        let mut state = self.state();
        if state.last.is_some() {
            return;
        }
        let (open, settled) = checkpoint.fold.counts();
        tracing::info!(offset = checkpoint.offset, open, settled, "the ledger is read on from a checkpoint");
        state.fold = checkpoint.fold;
        state.last = Some(Last { offset: checkpoint.offset, message: Message::Digest(checkpoint.message) });
        state.checkpointed = Some(checkpoint.offset);
    }

    /// The log has been read up to a record that this instance has just written, by this number. What was written before it
    /// and was not read is not in the log: a broker whose machine lost its power has lost what was not on the disk yet.
    fn come_to(&self, sequence: u64) {
        let mut state = self.state();
        if state.catching_up {
            end_what_is_lost(&mut state);
        }
        self.append_again(&state, sequence);
    }

    /// It is known what is in the log and what is no longer.
    fn caught_up(&self) {
        let mut state = self.state();
        if state.catching_up {
            state.catching_up = false;
            end_what_is_lost(&mut state);
            let unattended: Vec<_> = state
                .mine
                .iter()
                .filter(|(key, _)| !state.held.contains_key(*key))
                .map(|(_, mine)| mine.clone())
                .collect();
            for (job, claim) in unattended {
                self.give_back(&mut state, &job, claim, Reason::GivenBack);
            }
        }
        let (open, settled) = state.fold.counts();
        drop(state);
        if !self.0.ready.send_replace(true) {
            tracing::info!(open, settled, "the ledger has been read");
        }
    }

    /// Forgets what was written before this place. Gives how many jobs are known that have not ended, and that have.
    fn forget_before(&self, start: Position) -> (usize, usize) {
        let mut state = self.state();
        let State { fold, mine, .. } = &mut *state;
        fold.forget_before(start);
        mine.retain(|key, (_, claim)| {
            matches!(fold.standing(*key), Standing::Open(Open { owner: Some(owner), .. }) if owner.claim == *claim)
        });
        if !state.catching_up {
            end_what_is_lost(&mut state);
        }
        state.fold.counts()
    }

    /// Writes everything again that was not read back: the log that it was written to is gone.
    fn append_all_again(&self) {
        self.append_again(&self.state(), u64::MAX);
    }

    /// Writes again, of what has a lower number than `before`, what was not read back. That a record lands twice does no harm.
    fn append_again(&self, state: &State, before: u64) {
        for (sequence, waiting) in state.waiting.iter().filter(|(sequence, _)| **sequence < before) {
            let entry = Entry::new(self.0.instance, *sequence, vec![waiting.record.clone()]);
            self.0.publisher.append(entry.encode());
        }
    }
}

/// Ends the work on jobs whose claims are not in the log.
fn end_what_is_lost(state: &mut State) {
    let State { held, mine, .. } = state;
    held.retain(|key, holding| {
        let is_mine = mine.get(key).is_some_and(|(_, claim)| *claim == holding.claim);
        if !is_mine {
            tracing::error!("the ledger no longer holds a claim of a job that runs here; the job is ended");
            holding.stopper.stop(StopReason::OwnershipLost);
        }
        is_mine
    });
}

/// A job that another instance has taken over.
fn lose(state: &mut State, key: JobKey, job: &JobId) {
    state.mine.remove(&key);
    if let Some(holding) = state.held.remove(&key) {
        tracing::warn!(job_id = %job, "another worker has taken the job over");
        holding.stopper.stop(StopReason::OwnershipLost);
    }
}

/// Warns of messages that are none of the ledger's, less and less often when there are many.
fn tell_skipped(offset: u64, skipped: u64, error: &RecordError) {
    if skipped.is_power_of_two() {
        tracing::warn!(offset, skipped, %error, "a message of the ledger was skipped");
    }
}

fn milliseconds_now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

/// The claim is not in force any more: whatever is to be said about the job, somebody else says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the claim is not in force any more")]
pub struct Superseded;

impl Held {
    /// The claim.
    #[must_use]
    pub fn claim(&self) -> Position {
        self.claim
    }

    fn let_go(mut self) -> (JobId, Position) {
        self.ledger = None;
        (self.job.clone(), self.claim)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(ledger) = self.ledger.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (job, claim) = (self.job.clone(), self.claim);
        // Whoever held the job broke off, and what he had started is being killed: nobody else may start it meanwhile.
        runtime.spawn(async move {
            tokio::time::sleep(AFTERMATH).await;
            let mut state = ledger.state();
            let key = JobKey::of(&job);
            if state.held.get(&key).is_some_and(|holding| holding.claim == claim) {
                state.held.remove(&key);
                ledger.give_back(&mut state, &job, claim, Reason::Lost);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::publisher::Unpublished;
    use crate::job::Stop;

    /// A worker's ledger, of which the broker is this test.
    struct Log {
        ledger: Ledger,
        written: Unpublished,
        next: u64,
    }

    impl Log {
        fn new() -> Self {
            let (publisher, written) = Publisher::that_keeps();
            let mut log =
                Self { ledger: Ledger::new("w", Duration::from_secs(60), publisher), written, next: 1 };
            log.ledger.caught_up();
            log.append(InstanceId::from_number(7), Record::Renew { name: "x".into(), lease_ms: 60_000 });
            log
        }

        /// A record of another worker.
        fn append(&mut self, instance: InstanceId, record: Record) {
            self.show(&Entry::new(instance, self.next, vec![record]).encode());
        }

        fn show(&mut self, body: &[u8]) {
            self.ledger.take(self.next, body);
            self.next += 1;
        }

        /// The worker claims a job; gives it, and what tells it to stop.
        async fn claim(&mut self, job: &JobId) -> (Held, Stop) {
            let (stopper, stop) = Stopper::new();
            let (ledger, job) = (self.ledger.clone(), job.clone());
            let claiming = tokio::spawn(async move {
                ledger.claim(&job, Digest::of(b"body"), Terms::Free, Vec::new(), &stopper).await
            });
            tokio::task::yield_now().await;
            let record = self.written.next().unwrap();
            self.show(&record);
            (claiming.await.unwrap().unwrap().0, stop)
        }
    }

    fn job() -> JobId {
        JobId::new("j").unwrap()
    }

    #[tokio::test]
    async fn the_work_on_a_job_ends_when_its_claim_is_cut_off_from_the_log() {
        let mut log = Log::new();
        let (held, stop) = log.claim(&job()).await;
        log.ledger.forget_before(Position::new(log.next - 1, 0));
        assert_eq!(stop.reason(), None, "the claim is still there");
        log.ledger.forget_before(Position::new(log.next, 0));
        assert_eq!(stop.reason(), Some(StopReason::OwnershipLost));
        assert!(log.ledger.state().mine.is_empty());
        drop(held);
    }

    #[tokio::test]
    async fn anothers_claim_ends_the_work_here_also_when_the_log_no_longer_knows_of_ours() {
        let mut log = Log::new();
        let (_held, stop) = log.claim(&job()).await;
        log.ledger.state().fold.forget_before(Position::new(log.next, 0));
        let other = InstanceId::from_number(7);
        log.append(other, Record::Renew { name: "x".into(), lease_ms: 60_000 });
        let (digest, at) = (Digest::of(b"body"), milliseconds_now());
        log.append(other, Record::Claim { job: job(), digest, terms: Terms::Free, existing: Vec::new(), at });
        assert_eq!(stop.reason(), Some(StopReason::OwnershipLost));
    }

    #[tokio::test]
    async fn a_record_that_a_broker_has_lost_is_written_again_when_a_later_one_is_read() {
        let mut log = Log::new();
        let (held, _stop) = log.claim(&job()).await;
        let ledger = log.ledger.clone();
        let settling =
            tokio::spawn(async move { ledger.settle(held, Ending::Completed, jiff::Timestamp::now()).await });
        tokio::task::yield_now().await;
        let lost = log.written.next().unwrap();
        let later = log.ledger.0.sequence.load(Ordering::Relaxed);
        log.ledger.come_to(Entry::decode(&lost).unwrap().sequence);
        assert_eq!(log.written.next(), None, "it is not later than itself");
        log.ledger.come_to(later);
        let again = log.written.next().unwrap();
        assert_eq!(again, lost);
        log.show(&again);
        assert_eq!(settling.await.unwrap(), Ok(()));
        log.ledger.come_to(later);
        assert_eq!(log.written.next(), None, "it was read");
    }
}
