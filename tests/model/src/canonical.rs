//! When two moments are the same: when nothing that may happen from then on can tell them apart.
//!
//! Places in the log, sequence numbers and instances only have to be told apart from each other, and workers are alike, and
//! so are jobs. So a moment is written down with small numbers in their stead, workers and jobs in an order of their own, and
//! without what is over: the log counts by what the fold makes of it up to where somebody still reads.
//!
//! This module must not know what may happen.

use std::hash::{Hash, Hasher};

use spark_runtime_protocol::JobId;
use spark_runtime_worker::broker::ledger::fold::{Owner, Standing};
use spark_runtime_worker::broker::ledger::record::{Ending, InstanceId, Position, Reason, Record, Terms};
use spark_runtime_worker::broker::message::Seen;

use crate::log::{Entry, InstanceNumber, Place, job_number};
use crate::state::{
    Connection, Content, Delivery, End, Event, Letter, Message, Phase, State, Stop, Task, Then, Way, Worker,
};

/// Stands for whatever is of no consequence any more.
const GONE: u8 = 0xff;
/// Stands for nothing.
const NONE: u8 = 0xfe;

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write(&self.written());
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.written() == other.written()
    }
}

/// What the numbers of one moment are.
struct Writer<'a> {
    bytes: Vec<u8>,
    state: &'a State,
    swaps: bool,
    /// The place up to which everybody has read who still reads.
    base: &'a Place,
    /// Places in the log that may still be compared with, in the order in which they are come by.
    positions: Vec<Position>,
    /// Sequence numbers that may still be compared with.
    sequences: Vec<(InstanceNumber, u64)>,
    /// Instances in the order in which they are come by.
    instances: Vec<InstanceNumber>,
}

impl State {
    fn written(&self) -> Vec<u8> {
        let one = self.written_as(false);
        if self.jobs < 2 { one } else { one.min(self.written_as(true)) }
    }

    /// `swaps` has the two jobs in each other's place.
    fn written_as(&self, swaps: bool) -> Vec<u8> {
        let readers = self.workers.iter().filter(|worker| worker.is_alive).filter_map(|worker| worker.read);
        let base = self.log.at(readers.min().unwrap_or(self.log.length()));
        let mut writer = Writer {
            bytes: Vec::with_capacity(256),
            state: self,
            swaps,
            base,
            positions: Vec::new(),
            sequences: Vec::new(),
            instances: Vec::new(),
        };
        writer.number();
        writer.write();
        writer.bytes
    }
}

impl Writer<'_> {
    /// A job's number as it is written, and the job that is written with a number.
    fn job(&self, job: u8) -> u8 {
        if self.swaps { 1 - job } else { job }
    }

    fn named(&self, job: &JobId) -> u8 {
        job_number(job).map_or(GONE, |job| self.job(job))
    }

    fn number(&mut self) {
        for job in 0..self.state.jobs {
            let standing = self.base.standing(self.job(job));
            let of_owner = |owner: Owner| {
                let renewal = self.base.fold.instance(owner.instance).map(|known| known.renewal);
                [Some(owner.claim), renewal].into_iter().flatten()
            };
            match standing {
                Standing::Open(open) => self.positions.extend(open.owner.into_iter().flat_map(of_owner)),
                Standing::Settled(settled) => self.positions.push(settled.claim),
                Standing::Unknown => {}
            }
        }
        let unread: Vec<_> = self.state.log.behind(self.base.length).collect();
        for place in unread.into_iter().rev() {
            for index in 0..place.entry.records.len() {
                self.positions.push(place.position(index));
            }
            add_sequences(&mut self.sequences, &place.entry);
        }
        for (_, late) in &self.state.late {
            if let Content::Entry(entry) = late {
                add_sequences(&mut self.sequences, entry);
            }
        }
        for worker in &self.state.workers {
            for letter in &worker.outbox {
                if let Content::Entry(entry) = &letter.content {
                    add_sequences(&mut self.sequences, entry);
                }
            }
        }
        self.sequences.sort_unstable();
        self.sequences.dedup();
    }

    fn write(&mut self) {
        let mut order: Vec<(Vec<u8>, usize)> = (0..self.state.workers.len())
            .map(|at| {
                // Each by itself first: what it is without a number of its own decides on its place.
                self.instances = vec![self.state.workers[at].instance];
                self.worker(&self.state.workers[at], at);
                (std::mem::take(&mut self.bytes), at)
            })
            .collect();
        order.sort();
        self.instances = order.iter().map(|(_, at)| self.state.workers[*at].instance).collect();
        for (_, at) in &order {
            self.worker(&self.state.workers[*at], *at);
        }
        for (place, (_, at)) in order.iter().enumerate() {
            for guard in self.state.guards.iter().filter(|guard| usize::from(guard.worker) == *at) {
                self.byte(place as u8);
                self.instance(guard.instance);
                self.byte(u8::from(guard.has_will));
                self.drivers(&guard.drivers);
            }
        }
        self.log();
        for (instance, late) in &self.state.late {
            self.instance(*instance);
            self.content(late);
        }
        self.byte(GONE);
        // Whoever may still write is known to the fold or not, and dead or not.
        for place in 0..self.instances.len() {
            let id = InstanceId::from_number(self.instances[place].into());
            let known = self.base.fold.instance(id);
            self.byte(known.map_or(NONE, |known| u8::from(known.left)));
        }
        self.bag(self.state.ready.iter().map(|message| (message, 0)).collect());
        self.bag(self.state.delayed.iter().map(|(message, delay)| (message, *delay)).collect());
        self.events(&self.state.history);
        self.events(&self.state.told);
        self.byte(self.state.away.unwrap_or(NONE));
        self.byte(self.state.faults);
        self.byte(u8::from(self.state.is_dawn));
        for job in 0..self.state.jobs {
            self.byte(u8::from(self.state.cancelled[usize::from(self.job(job))]));
        }
        self.byte(u8::from(self.state.broken.is_some()));
        if self.state.counts_steps {
            self.bytes.extend(self.state.steps.to_le_bytes());
        }
    }

    // ----------------------------------------------------------------------------------------------- the parts

    /// Several messages, in an order of their own.
    fn bag(&mut self, messages: Vec<(&Message, u8)>) {
        let rest = std::mem::take(&mut self.bytes);
        let mut written: Vec<_> = messages
            .into_iter()
            .map(|(message, delay)| {
                self.byte(delay);
                self.message(message);
                std::mem::take(&mut self.bytes)
            })
            .collect();
        written.sort();
        self.bytes = rest;
        for one in written {
            self.bytes.extend(one);
        }
        self.byte(GONE);
    }

    fn drivers(&mut self, jobs: &[u8]) {
        let mut written: Vec<_> = jobs.iter().map(|job| self.job(*job)).collect();
        written.sort_unstable();
        self.bytes.extend(written);
        self.byte(GONE);
    }

    fn events(&mut self, events: &[Event]) {
        let mut written: Vec<_> = events
            .iter()
            .map(|event| {
                [
                    self.job(event.job),
                    attempt(event.attempt),
                    ending(event.ending),
                    u8::from(event.claim.is_some()),
                ]
            })
            .collect();
        written.sort_unstable();
        self.bytes.extend(written.into_iter().flatten());
        self.byte(GONE);
    }

    /// What the log says, and what is still to be read by somebody.
    fn log(&mut self) {
        for job in 0..self.state.jobs {
            match self.base.standing(self.job(job)) {
                Standing::Unknown => self.byte(NONE),
                Standing::Open(open) => {
                    self.byte(0);
                    self.byte(attempt(open.attempts));
                    self.byte(attempt(open.failures));
                    self.byte(u8::from(open.cancelled));
                    self.byte(u8::from(open.digest.is_some()));
                    match open.owner {
                        Some(owner) => self.owner(&owner),
                        None => self.byte(NONE),
                    }
                }
                Standing::Settled(settled) => {
                    self.byte(1);
                    self.byte(attempt(settled.attempt()));
                    self.byte(ending(settled.ending()));
                    self.position(settled.claim);
                }
            }
        }
        let mut unread: Vec<_> = self.state.log.behind(self.base.length).collect();
        unread.reverse();
        for place in unread {
            self.entry(&place.entry);
        }
        self.byte(GONE);
    }

    fn owner(&mut self, owner: &Owner) {
        let number = (0..self.state.next_instance)
            .find(|number| InstanceId::from_number(u64::from(*number)) == owner.instance);
        let number = number.unwrap_or(InstanceNumber::MAX);
        self.instance(number);
        self.position(owner.claim);
        match self.base.fold.instance(owner.instance) {
            Some(known) => self.position(known.renewal),
            None => self.byte(NONE),
        }
        self.sequence(number, owner.sequence);
    }

    fn entry(&mut self, entry: &Entry) {
        self.instance(entry.instance);
        self.sequence(entry.instance, entry.sequence);
        for record in &entry.records {
            self.record(record);
        }
        self.byte(NONE);
    }

    fn record(&mut self, record: &Record) {
        match record {
            Record::Renew { .. } => self.byte(0),
            Record::Claim { job, terms, .. } => {
                let job = self.named(job);
                self.bytes.extend([1, job]);
                match terms {
                    Terms::Free => self.byte(0),
                    Terms::Supersedes { claim, renewal } => {
                        self.byte(1);
                        self.position(*claim);
                        self.position(*renewal);
                    }
                    Terms::Replaces { claim } => {
                        self.byte(2);
                        self.position(*claim);
                    }
                    Terms::Reopens { claim } => {
                        self.byte(3);
                        self.position(*claim);
                    }
                }
            }
            Record::Settle { job, claim, end, .. } => {
                let job = self.named(job);
                self.bytes.extend([2, job, ending(*end)]);
                self.position(*claim);
            }
            Record::Release { job, claim, reason } => {
                let job = self.named(job);
                self.bytes.extend([3, job, reason_number(*reason)]);
                self.position(*claim);
            }
            Record::Cancel { job, .. } => {
                let job = self.named(job);
                self.bytes.extend([4, job]);
            }
            Record::Leave => self.byte(5),
        }
    }

    fn worker(&mut self, worker: &Worker, at: usize) {
        self.byte(u8::from(worker.is_alive));
        self.bytes.extend([
            u8::from(worker.link.up_is_held),
            u8::from(worker.link.down_is_held),
            worker.link.held_for,
        ]);
        for guard in self.state.guards.iter().filter(|guard| usize::from(guard.worker) == at) {
            self.drivers(&guard.drivers);
        }
        self.byte(GONE);
        if !worker.is_alive {
            return;
        }
        self.byte(match worker.link.connection {
            Connection::None => 0,
            Connection::WorkerOnly => 1,
            Connection::Both => 2,
        });
        let unread = worker.read.map(|read| read.saturating_sub(self.base.length));
        self.byte(unread.map_or(NONE, |unread| u8::try_from(unread).unwrap_or(GONE)));
        self.bytes.extend([
            u8::from(worker.is_ready),
            worker.paused.unwrap_or(NONE),
            worker.lease,
            worker.renewed,
        ]);
        if let Some(mark) = worker.mark {
            self.sequence(worker.instance, mark);
        }
        self.byte(GONE);
        for (sequence, age) in &worker.renewals {
            self.sequence(worker.instance, *sequence);
            self.byte(*age);
        }
        self.byte(GONE);
        for letter in &worker.outbox {
            self.letter(worker, letter);
        }
        self.byte(GONE);
        for task in &worker.tasks {
            self.task(worker, task);
        }
        self.byte(GONE);
    }

    fn letter(&mut self, worker: &Worker, letter: &Letter) {
        // A task by its place and not by its number.
        let task = letter.task.and_then(|number| worker.tasks.iter().position(|task| task.number == number));
        self.byte(task.map_or(NONE, |place| u8::try_from(place).unwrap_or(GONE)));
        self.byte(match letter.way {
            Way::Unsent => 0,
            Way::Sent => 1,
            Way::Landed => 2,
        });
        self.content(&letter.content);
    }

    fn content(&mut self, content: &Content) {
        match content {
            Content::Entry(entry) => self.entry(entry),
            Content::History(event) => self.events(std::slice::from_ref(event)),
            Content::Told(event) => self.events(std::slice::from_ref(event)),
            Content::Copy(message, delay) => {
                self.byte(*delay);
                self.message(message);
            }
        }
    }

    fn task(&mut self, worker: &Worker, task: &Task) {
        self.message(&task.message);
        self.byte(match task.delivery {
            Delivery::Held => 0,
            Delivery::TakenBack => 1,
            Delivery::Lost => 2,
            Delivery::Acknowledged => 3,
        });
        self.byte(u8::from(task.is_detached));
        self.byte(task.stop.map_or(NONE, |stop| match stop {
            Stop::Cancel => 0,
            Stop::GiveBack => 1,
            Stop::OwnershipLost => 2,
        }));
        self.byte(task.stalled.unwrap_or(NONE));
        match task.claim {
            Some(claim) => {
                self.position(claim);
                self.bytes.extend([attempt(task.attempt), attempt(task.failures)]);
            }
            None => self.byte(NONE),
        }
        self.phase(worker, &task.phase);
    }

    fn phase(&mut self, worker: &Worker, phase: &Phase) {
        let then = |then: Then| match then {
            Then::Copy(delay) => delay,
            Then::LookAgain => GONE,
        };
        let (number, with) = match *phase {
            Phase::Fresh => (0, 0),
            Phase::Claiming(sequence) => {
                self.sequence(worker.instance, sequence);
                (1, 0)
            }
            Phase::Refused(read) => {
                let behind = worker.read.unwrap_or(read).saturating_sub(read);
                (2, u8::try_from(behind).unwrap_or(GONE))
            }
            Phase::Assuring => (3, 0),
            Phase::Renewing(sequence) => {
                self.sequence(worker.instance, sequence);
                (4, 0)
            }
            Phase::Staging => (5, 0),
            Phase::Launching(age) => (6, age),
            Phase::Running(ticks) => (7, ticks),
            Phase::Dying(end) => (8, end_number(end)),
            Phase::Over(end) => (9, end_number(end)),
            Phase::Recording(end) => (10, ending(end)),
            Phase::Recorded(end) => (11, ending(end)),
            Phase::Settling(end, sequence) => {
                self.sequence(worker.instance, sequence);
                (12, ending(end))
            }
            Phase::Settled(end) => (13, ending(end)),
            Phase::Telling => (14, 0),
            Phase::Releasing(sequence, next) => {
                self.sequence(worker.instance, sequence);
                (15, then(next))
            }
            Phase::Released(next) => (16, then(next)),
            Phase::Copying => (17, 0),
            Phase::Said => (18, 0),
            Phase::Leave => (19, 0),
            Phase::Acknowledging => (20, 0),
            Phase::Closing => (21, 0),
            Phase::Repeating(settled) => {
                self.byte(attempt(settled.attempt()));
                (22, ending(settled.ending()))
            }
            Phase::Joined => (23, 0),
        };
        self.bytes.extend([number, with]);
    }

    fn message(&mut self, message: &Message) {
        self.byte(self.job(message.job));
        match message.seen {
            Some(Seen { claim, renewal, .. }) => {
                // Where the one does not count any more the other does not either.
                if self.positions.contains(&claim) && self.positions.contains(&renewal) {
                    self.position(claim);
                    self.position(renewal);
                } else {
                    self.byte(GONE);
                }
            }
            None => self.byte(NONE),
        }
    }

    // --------------------------------------------------------------------------------------------- the numbers

    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    fn position(&mut self, position: Position) {
        let place = self.positions.iter().position(|known| *known == position);
        self.byte(place.map_or(GONE, |place| u8::try_from(place).unwrap_or(GONE)));
    }

    /// By its place among those of its instance.
    fn sequence(&mut self, instance: InstanceNumber, sequence: u64) {
        let place = match self.sequences.binary_search(&(instance, sequence)) {
            Ok(place) => {
                let first = self.sequences.partition_point(|(other, _)| *other < instance);
                u8::try_from(place - first).unwrap_or(GONE)
            }
            Err(_) => GONE,
        };
        self.byte(place);
    }

    fn instance(&mut self, instance: InstanceNumber) {
        let place = self.instances.iter().position(|known| *known == instance).unwrap_or_else(|| {
            self.instances.push(instance);
            self.instances.len() - 1
        });
        self.byte(u8::try_from(place).unwrap_or(GONE));
    }
}

fn add_sequences(all: &mut Vec<(InstanceNumber, u64)>, entry: &Entry) {
    all.extend((0..entry.records.len()).map(|index| (entry.instance, entry.sequence + index as u64)));
}

fn attempt(number: u32) -> u8 {
    u8::try_from(number).unwrap_or(GONE)
}

fn ending(ending: Ending) -> u8 {
    match ending {
        Ending::Completed => 0,
        Ending::Failed => 1,
        Ending::Cancelled => 2,
        Ending::Rejected => 3,
    }
}

fn reason_number(reason: Reason) -> u8 {
    match reason {
        Reason::GivenBack => 0,
        Reason::Interrupted => 1,
        Reason::Failed => 2,
        Reason::Lost => 3,
    }
}

fn end_number(end: End) -> u8 {
    match end {
        End::Told(told) => ending(told),
        End::MayPass => 4,
        End::GivenBack => 5,
        End::Interrupted => 6,
        End::Abandoned => 7,
    }
}
