//! What a worker does: the steps of its `job::assign`, `job::settle` and `broker::ledger`, in their order, one at a time.
//!
//! Whether a job may be claimed, and on which terms, is decided by the worker's own code; what a record means, by its fold.
//!
//! This module must not know when a step is taken.

use std::time::Duration;

use spark_runtime_worker::broker::ledger::fold::{Claimed, Effect, Open, Settled, Standing};
use spark_runtime_worker::broker::ledger::record::{Digest, Ending, Position, Reason, Record, Terms};
use spark_runtime_worker::broker::message::Seen;
use spark_runtime_worker::job::claim::{Ownership, View, terms};

use crate::log::{Entry, job_id, job_number};
use crate::state::{
    Connection, Content, Delivery, End, Event, Letter, Message, Phase, State, Stop, Task, Then, Way, Worker,
};
use crate::{DELAY, FENCE, LEASE, MAX_ATTEMPTS, Mistake, RENEWAL, Scope};

/// Times of clocks decide nothing.
const SOME_TIME: u64 = 1_800_000_000_000;
/// How many ticks a retry waits.
const RETRY: u8 = 1;

fn digest() -> Digest {
    Digest::of(b"{}")
}

fn lease() -> Duration {
    Duration::from_secs(LEASE.into())
}

impl State {
    /// Whether a lease that was sent so many ticks ago is over.
    pub(crate) fn is_over(scope: &Scope, age: u8) -> bool {
        scope.mistake != Some(Mistake::NoLease) && age >= FENCE
    }

    // ------------------------------------------------------------------------------------------- the ledger

    /// Writes a record; a claim brings a renewal along when one is due. Gives the record's sequence number.
    pub(crate) fn append(&mut self, scope: &Scope, at: usize, record: Record) -> u64 {
        let worker = &mut self.workers[at];
        let sequence = self.next_sequence;
        self.next_sequence += 2;
        let renew = || Record::Renew { name: "w".into(), lease_ms: u32::from(LEASE) * 1000 };
        let renews = matches!(record, Record::Renew { .. });
        if renews {
            worker.forget_waiting_renewal(sequence);
        }
        let brings = matches!(record, Record::Claim { .. }) && worker.renewed >= RENEWAL;
        if renews || brings {
            worker.renewed = 0;
            worker.renewals.push((sequence, 0));
        }
        let records = if brings { vec![renew(), record] } else { vec![record] };
        let own = sequence + u64::from(brings);
        let entry = Entry { instance: worker.instance, sequence, records };
        self.publish(scope, at, Content::Entry(entry), None);
        own
    }

    pub(crate) fn renew(&mut self, scope: &Scope, at: usize) -> u64 {
        self.append(scope, at, Record::Renew { name: "w".into(), lease_ms: u32::from(LEASE) * 1000 })
    }

    /// Renews, and reads that back if it is all that there is to read: a worker to which that comes later is one that stood
    /// still, or that the broker could not reach.
    pub(crate) fn keep_renewed(&mut self, scope: &Scope, at: usize) {
        let is_up_to_date = !self.can_read(at);
        self.renew(scope, at);
        if is_up_to_date && self.can_read(at) {
            self.read(scope, at);
        }
    }

    /// Whether a worker that has jobs has to renew its lease.
    pub(crate) fn has_to_renew(&self, scope: &Scope, at: usize) -> bool {
        let worker = &self.workers[at];
        let Some(read) = worker.read else { return false };
        if worker.renewed < RENEWAL {
            return false;
        }
        let (place, own) = (self.log.at(read), worker.id());
        (0..scope.jobs).any(|job| place.owner(job).is_some_and(|owner| owner.instance == own))
    }

    /// Reads all that there is.
    pub(crate) fn read_all(&mut self, scope: &Scope, at: usize) {
        while self.workers[at].read.is_some_and(|read| read < self.log.length()) {
            self.read(scope, at);
        }
    }

    /// Reads the next entry of the log.
    pub(crate) fn read(&mut self, scope: &Scope, at: usize) {
        let Some(read) = self.workers[at].read else { return };
        let log = self.log.clone();
        let place = log.at(read + 1);
        self.workers[at].read = Some(read + 1);
        let own = self.workers[at].id();
        let is_own = place.entry.instance == self.workers[at].instance;
        for (index, (record, effect)) in place.entry.records.iter().zip(&place.effects).enumerate() {
            match (record, effect) {
                (Record::Cancel { job, .. }, Effect::Cancelled) => {
                    let Some(job) = job_number(job) else { continue };
                    let owner = place.owner(job).map(|owner| owner.claim);
                    for task in &mut self.workers[at].tasks {
                        if task.message.job == job && task.works() && task.claim == owner {
                            task.tell_to_stop(Stop::Cancel);
                        }
                    }
                }
                (Record::Claim { job, .. }, Effect::Claimed(claimed))
                    if !is_own && claimed.superseded.is_some_and(|owner| owner.instance == own) =>
                {
                    let Some(job) = job_number(job) else { continue };
                    for task in &mut self.workers[at].tasks {
                        if task.message.job == job && task.works() {
                            task.tell_to_stop(Stop::OwnershipLost);
                        }
                    }
                }
                (Record::Leave, Effect::Left(_)) if is_own => self.broken = Some("a living worker is dead"),
                _ => {}
            }
            if is_own {
                let sequence = place.entry.sequence + index as u64;
                self.heed_own(scope, at, sequence, record, effect);
            }
        }
    }

    /// Does what a worker does when it has read back a record of its own.
    fn heed_own(&mut self, scope: &Scope, at: usize, sequence: u64, record: &Record, effect: &Effect) {
        let worker = &mut self.workers[at];
        match (record, effect) {
            (Record::Renew { .. }, Effect::Renewed) => {
                if let Some(place) = worker.renewals.iter().position(|(sent, _)| *sent == sequence) {
                    let (_, age) = worker.renewals.remove(place);
                    let counted = if scope.mistake == Some(Mistake::LeaseFromReadBack) { 0 } else { age };
                    worker.lease = worker.lease.min(counted);
                }
                if worker.mark == Some(sequence) {
                    worker.mark = None;
                    worker.is_ready = true;
                }
                let waiting = |task: &&mut Task| task.phase == Phase::Renewing(sequence);
                if let Some(task) = worker.tasks.iter_mut().find(waiting) {
                    task.phase =
                        if Self::is_over(scope, worker.lease) { Phase::Assuring } else { Phase::Staging };
                }
            }
            (Record::Renew { .. }, _) => self.broken = Some("a living worker's renewal does not count"),
            (Record::Claim { job, .. }, Effect::Claimed(claimed)) => {
                let waiting = |task: &&mut Task| task.phase == Phase::Claiming(sequence);
                let Some(job) = job_number(job) else { return };
                match worker.tasks.iter_mut().find(waiting) {
                    Some(task) => task.take(scope, worker.lease, claimed),
                    None => self.heed_unattended(scope, at, job, claimed.claim),
                }
            }
            (Record::Claim { .. }, _) => {
                let read = worker.read.unwrap_or(0);
                let waiting = |task: &&mut Task| task.phase == Phase::Claiming(sequence);
                if let Some(task) = worker.tasks.iter_mut().find(waiting) {
                    task.phase = Phase::Refused(read);
                }
            }
            (Record::Settle { .. }, _) => {
                for task in &mut worker.tasks {
                    if let Phase::Settling(ending, own) = task.phase
                        && own == sequence
                    {
                        let counts = *effect == Effect::Settled;
                        task.phase = if counts { Phase::Settled(ending) } else { Phase::Leave };
                    }
                }
            }
            (Record::Release { .. }, _) => {
                for task in &mut worker.tasks {
                    if let Phase::Releasing(own, then) = task.phase
                        && own == sequence
                    {
                        let counts = *effect == Effect::Released && then != Then::LookAgain;
                        task.phase = if counts { Phase::Released(then) } else { Phase::Leave };
                    }
                }
            }
            _ => {}
        }
        self.join_ends(at);
    }

    /// A claim is in force that no task waits for.
    fn heed_unattended(&mut self, scope: &Scope, at: usize, job: u8, claim: Position) {
        if !self.holds(at, job, claim) && scope.mistake != Some(Mistake::UnattendedClaimKept) {
            self.append(
                scope,
                at,
                Record::Release { job: job_id(job).clone(), claim, reason: Reason::GivenBack },
            );
        }
    }

    fn holds(&self, at: usize, job: u8, claim: Position) -> bool {
        let tasks = &self.workers[at].tasks;
        tasks.iter().any(|task| task.message.job == job && task.works() && task.claim == Some(claim))
    }

    // --------------------------------------------------------------------------------------- a delivery's steps

    /// Whether the handling of a delivery can go on by itself.
    pub(crate) fn can_step(task: &Task) -> bool {
        task.stalled.is_none()
            && matches!(
                task.phase,
                Phase::Fresh
                    | Phase::Refused(_)
                    | Phase::Assuring
                    | Phase::Staging
                    | Phase::Over(_)
                    | Phase::Recorded(_)
                    | Phase::Settled(_)
                    | Phase::Released(_)
                    | Phase::Said
                    | Phase::Leave
                    | Phase::Repeating(_)
            )
    }

    /// Goes on with the handling of a delivery.
    pub(crate) fn step(&mut self, scope: &Scope, at: usize, index: usize) {
        let task = self.workers[at].tasks[index].clone();
        let read = self.workers[at].read.unwrap_or(0);
        match task.phase {
            Phase::Fresh => self.look(scope, at, index, read),
            Phase::Refused(then) => self.look(scope, at, index, then),
            Phase::Assuring => {
                let sequence = if task.stop.is_some() { None } else { Some(self.renew(scope, at)) };
                let next = sequence.map_or(Phase::Staging, Phase::Renewing);
                self.workers[at].tasks[index].phase = next;
            }
            Phase::Staging => {
                let lease = self.workers[at].lease;
                self.workers[at].tasks[index].phase = match task.stop {
                    Some(stop) => Phase::Over(stop.end()),
                    None => Phase::Launching(lease),
                };
            }
            Phase::Over(end) => self.conclude(scope, at, index, end),
            Phase::Recorded(ending) => self.settle(scope, at, index, ending),
            Phase::Settled(ending) => {
                if scope.mistake == Some(Mistake::HistoryAfterSettle) {
                    self.history.push(task.event(ending));
                }
                self.tell(scope, at, index, task.event(ending));
            }
            Phase::Repeating(settled) => {
                let event = self.recorded_end(task.message.job, &settled);
                self.tell(scope, at, index, event);
            }
            Phase::Released(then) => {
                let delay = if let Then::Copy(delay) = then { delay } else { 0 };
                self.copy(scope, at, index, None, delay);
            }
            Phase::Said | Phase::Acknowledging => self.acknowledge(at, index),
            Phase::Leave | Phase::Closing => self.leave(at, index),
            _ => {}
        }
        self.join_ends(at);
    }

    /// Finds out whose the job is, as it stood when so many entries had been read, and claims it if that is possible.
    fn look(&mut self, scope: &Scope, at: usize, index: usize, then: usize) {
        let worker = &self.workers[at];
        let message = worker.tasks[index].message;
        let standing = self.log.at(then).standing(message.job);
        let owner = match &standing {
            Standing::Open(Open { owner, .. }) => *owner,
            _ => None,
        };
        // Of the owner it knows what it has read meanwhile.
        let now = &self.log.at(worker.read.unwrap_or(0)).fold;
        let view = View {
            own: worker.id(),
            own_lease: lease(),
            owner: owner.and_then(|owner| now.instance(owner.instance).cloned()),
            is_held: owner.is_some_and(|owner| self.holds(at, message.job, owner.claim)),
            digest: digest(),
            seen: message.seen,
            undoes: None,
        };
        match terms(&view, &standing) {
            Ok(terms) => {
                let sequence = self.claim(scope, at, message.job, terms);
                self.workers[at].tasks[index].phase = Phase::Claiming(sequence);
            }
            Err(Ownership::RunsHere(seen)) => {
                if !self.take_over(at, index) {
                    self.copy(scope, at, index, Some(seen), DELAY);
                }
            }
            Err(Ownership::Theirs(seen)) => {
                let short = scope.mistake == Some(Mistake::ShortDelay);
                self.copy(scope, at, index, Some(seen), if short { 1 } else { DELAY });
            }
            Err(Ownership::Settled(settled)) => {
                self.workers[at].tasks[index].phase = Phase::Repeating(settled)
            }
            Err(Ownership::Ours(..) | Ownership::Conflict(_)) => {
                self.broken = Some("there is one body of each job");
            }
        }
    }

    fn claim(&mut self, scope: &Scope, at: usize, job: u8, terms: Terms) -> u64 {
        let job = job_id(job).clone();
        let record = Record::Claim { job, digest: digest(), terms, existing: Vec::new(), at: SOME_TIME };
        self.append(scope, at, record)
    }

    /// Makes a delivery the one of the task that works on its job here, when that one's own is lost.
    fn take_over(&mut self, at: usize, index: usize) -> bool {
        let tasks = &mut self.workers[at].tasks;
        let job = tasks[index].message.job;
        let of_job = |task: &Task| task.message.job == job;
        let Some(main) = tasks.iter().position(|task| of_job(task) && task.works()) else { return false };
        let joined = tasks.iter().position(|task| of_job(task) && task.phase == Phase::Joined);
        let holder = joined.unwrap_or(main);
        if tasks[holder].delivery != Delivery::Lost {
            return false;
        }
        tasks[main].is_detached = true;
        tasks[index].phase = Phase::Joined;
        if let Some(joined) = joined {
            tasks.remove(joined);
        }
        true
    }

    /// Says what is to be said of an attempt.
    fn conclude(&mut self, scope: &Scope, at: usize, index: usize, end: End) {
        let task = self.workers[at].tasks[index].clone();
        let ending = match end {
            End::Abandoned => {
                self.workers[at].tasks[index].phase = Phase::Leave;
                return;
            }
            End::Interrupted => {
                let connected = self.workers[at].link.connection != Connection::None;
                let reason = if connected { Reason::Lost } else { Reason::Interrupted };
                return self.release(scope, at, index, reason, Then::LookAgain);
            }
            End::GivenBack => return self.release(scope, at, index, Reason::GivenBack, Then::Copy(0)),
            End::MayPass if task.stop == Some(Stop::Cancel) => Ending::Cancelled,
            End::MayPass if task.failures + 1 < MAX_ATTEMPTS => {
                return self.release(scope, at, index, Reason::Failed, Then::Copy(RETRY));
            }
            End::MayPass => Ending::Failed,
            End::Told(ending) => ending,
        };
        if scope.mistake == Some(Mistake::AcknowledgingBeforeSettle) && task.delivery == Delivery::Held {
            self.workers[at].tasks[index].delivery = Delivery::Acknowledged;
        }
        if scope.mistake == Some(Mistake::HistoryAfterSettle) {
            self.workers[at].tasks[index].phase = Phase::Recorded(ending);
            return;
        }
        self.workers[at].tasks[index].phase = Phase::Recording(ending);
        self.publish(scope, at, Content::History(task.event(ending)), Some(task.number));
    }

    fn release(&mut self, scope: &Scope, at: usize, index: usize, reason: Reason, then: Then) {
        let task = &self.workers[at].tasks[index];
        let Some(claim) = task.claim else { return };
        let record = Record::Release { job: job_id(task.message.job).clone(), claim, reason };
        let sequence = self.append(scope, at, record);
        self.workers[at].tasks[index].phase = Phase::Releasing(sequence, then);
    }

    fn settle(&mut self, scope: &Scope, at: usize, index: usize, ending: Ending) {
        let task = self.workers[at].tasks[index].clone();
        let Some(claim) = task.claim else { return };
        if scope.mistake == Some(Mistake::TellingBeforeSettle) {
            self.publish(scope, at, Content::Told(task.event(ending)), None);
        }
        let record =
            Record::Settle { job: job_id(task.message.job).clone(), claim, end: ending, at: SOME_TIME };
        let sequence = self.append(scope, at, record);
        self.workers[at].tasks[index].phase = Phase::Settling(ending, sequence);
    }

    fn tell(&mut self, scope: &Scope, at: usize, index: usize, event: Event) {
        let task = &mut self.workers[at].tasks[index];
        task.phase = Phase::Telling;
        let number = task.number;
        self.publish(scope, at, Content::Told(event), Some(number));
    }

    /// The event of a job that has ended, as the history has it.
    fn recorded_end(&self, job: u8, settled: &Settled) -> Event {
        let (attempt, ending) = (settled.attempt(), settled.ending());
        let made_up = Event { job, attempt, ending, claim: None };
        let found = self.history.iter().find(|event| Event { claim: None, ..**event } == made_up);
        found.copied().unwrap_or(made_up)
    }

    /// Publishes a copy of the task's message; when that is confirmed the message itself is acknowledged.
    fn copy(&mut self, scope: &Scope, at: usize, index: usize, seen: Option<Seen>, delay: u8) {
        let task = &mut self.workers[at].tasks[index];
        task.phase = Phase::Copying;
        let (number, job) = (task.number, task.message.job);
        if scope.mistake == Some(Mistake::AcknowledgingBeforeCopy) && task.delivery == Delivery::Held {
            task.delivery = Delivery::Acknowledged;
        }
        self.publish(scope, at, Content::Copy(Message { job, seen }, delay), Some(number));
    }

    /// The worker no longer waits for a claim that it has written; the message goes back into the queue.
    pub(crate) fn give_up_claiming(&mut self, scope: &Scope, at: usize, index: usize) {
        self.copy(scope, at, index, None, 0);
    }

    /// Hands the end of a task's work on to the delivery that has taken its own one's place.
    fn join_ends(&mut self, at: usize) {
        let tasks = &mut self.workers[at].tasks;
        while let Some(over) =
            tasks.iter().position(|task| task.is_detached && matches!(task.phase, Phase::Said | Phase::Leave))
        {
            let ended = tasks.remove(over);
            let joined =
                |task: &&mut Task| task.phase == Phase::Joined && task.message.job == ended.message.job;
            if let Some(joined) = tasks.iter_mut().find(joined) {
                joined.phase = ended.phase;
            }
        }
    }

    /// Something that a task waited for is confirmed.
    pub(crate) fn confirmed(&mut self, at: usize, number: u8) {
        if let Some(task) = self.workers[at].tasks.iter_mut().find(|task| task.number == number) {
            task.phase = match task.phase {
                Phase::Recording(ending) => Phase::Recorded(ending),
                Phase::Telling | Phase::Copying => Phase::Said,
                other => other,
            };
        }
        self.join_ends(at);
    }
}

impl Worker {
    /// Of renewals that wait behind each other only the last one says anything: it takes the place of the one before.
    fn forget_waiting_renewal(&mut self, replaced_by: u64) {
        let is_renewal = |letter: &Letter| match &letter.content {
            Content::Entry(entry) => {
                matches!(entry.records[..], [Record::Renew { .. }]).then_some(entry.sequence)
            }
            _ => None,
        };
        let last = self.outbox.iter().rposition(|letter| matches!(letter.content, Content::Entry(_)));
        let Some(last) = last.filter(|last| self.outbox[*last].way != Way::Landed) else { return };
        let Some(replaced) = is_renewal(&self.outbox[last]) else { return };
        self.outbox.remove(last);
        self.renewals.retain(|(sequence, _)| *sequence != replaced);
        if self.mark == Some(replaced) {
            self.mark = Some(replaced_by);
        }
        for task in &mut self.tasks {
            if task.phase == Phase::Renewing(replaced) {
                task.phase = Phase::Renewing(replaced_by);
            }
        }
    }
}

impl Task {
    /// The claim is in force: what is to be done with the job.
    fn take(&mut self, scope: &Scope, lease: u8, claimed: &Claimed) {
        self.claim = Some(claimed.claim);
        self.attempt = claimed.attempt;
        self.failures = claimed.failures;
        // A renewal is asked for when less than a third of the lease is left.
        let is_assured = !State::is_over(scope, lease.saturating_add(1));
        self.phase = if claimed.cancelled {
            Phase::Over(End::Told(Ending::Cancelled))
        } else if claimed.failures >= MAX_ATTEMPTS {
            Phase::Over(End::Told(Ending::Failed))
        } else if is_assured || scope.mistake == Some(Mistake::LateClaim) {
            Phase::Staging
        } else {
            Phase::Assuring
        };
    }

    /// The strongest reason that was given counts.
    pub(crate) fn tell_to_stop(&mut self, stop: Stop) {
        self.stop = self.stop.max(Some(stop));
        match self.phase {
            Phase::Running(_) => self.phase = Phase::Dying(stop.end()),
            Phase::Dying(_) if stop == Stop::OwnershipLost => self.phase = Phase::Dying(stop.end()),
            // It is not waited for any more.
            Phase::Renewing(_) => self.phase = Phase::Staging,
            _ => {}
        }
    }

    fn event(&self, ending: Ending) -> Event {
        Event { job: self.message.job, attempt: self.attempt, ending, claim: self.claim }
    }
}

impl Stop {
    /// The end of an attempt that was stopped.
    fn end(self) -> End {
        match self {
            Self::Cancel => End::Told(Ending::Cancelled),
            Self::GiveBack => End::GivenBack,
            Self::OwnershipLost => End::Abandoned,
        }
    }
}

/// Whoever writes down what others ask for; no worker of the model.
pub(crate) fn cancel(job: u8) -> Record {
    Record::Cancel { job: job_id(job).clone(), at: SOME_TIME }
}

/// The instance of whoever that is.
pub(crate) const NOBODY: u16 = 0;
