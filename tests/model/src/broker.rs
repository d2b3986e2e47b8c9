//! What the broker does, and what happens on the way to it and back.
//!
//! This module must not know what a message means to a worker.

use crate::log::{Entry, job_number};
use crate::state::{
    Connection, Content, Delivery, Letter, Message, OrphanedGuard, Phase, State, Task, Way, Worker,
};
use crate::worker::{NOBODY, cancel};
use crate::{FENCE, HOLD, LONGEST_RUN, RENEWAL, Scope};

use spark_runtime_worker::broker::ledger::fold::Effect;
use spark_runtime_worker::broker::ledger::record::{InstanceId, Record};

/// The sequence number under which a guard writes, far above any worker's.
const LAST_SEQUENCE: u64 = u64::MAX / 2;

impl State {
    /// What a worker sends gets to the broker at once.
    pub(crate) fn can_send(&self, at: usize) -> bool {
        let link = &self.workers[at].link;
        self.away.is_none() && link.connection == Connection::Both && !link.up_is_held
    }

    /// What the broker sends gets to the worker at once.
    pub(crate) fn can_hear(&self, at: usize) -> bool {
        let link = &self.workers[at].link;
        self.away.is_none() && link.connection == Connection::Both && !link.down_is_held
    }

    // -------------------------------------------------------------------------------------------- publications

    /// Publishes something; `task` is told when it is confirmed.
    pub(crate) fn publish(&mut self, scope: &Scope, at: usize, content: Content, task: Option<u8>) {
        let is_entry = matches!(content, Content::Entry(_));
        let is_next = !is_entry || !self.workers[at].outbox.iter().any(|letter| letter.waits_as_entry());
        let worker = &mut self.workers[at];
        let way = if worker.link.connection == Connection::None { Way::Unsent } else { Way::Sent };
        worker.outbox.push(Letter { content, task, way });
        if is_next && self.can_send(at) {
            self.land(scope, at, self.workers[at].outbox.len() - 1);
        }
    }

    /// Whether a letter is the next one of its kind to get to the broker: entries of the ledger go one after the other.
    pub(crate) fn can_land(&self, at: usize, letter: usize) -> bool {
        let outbox = &self.workers[at].outbox;
        let is_entry = matches!(outbox[letter].content, Content::Entry(_));
        outbox[letter].way == Way::Sent
            && self.can_send(at)
            && !(is_entry && outbox[..letter].iter().any(Letter::waits_as_entry))
    }

    /// A publication has got to the broker; the confirmation comes at once if it can.
    pub(crate) fn land(&mut self, scope: &Scope, at: usize, letter: usize) {
        let content = self.workers[at].outbox[letter].content.clone();
        self.workers[at].outbox[letter].way = Way::Landed;
        self.take_in(scope, content);
        if self.can_hear(at) {
            self.confirm(at, letter);
        }
    }

    fn confirm(&mut self, at: usize, letter: usize) {
        let letter = self.workers[at].outbox.remove(letter);
        if let Some(task) = letter.task {
            self.confirmed(at, task);
        }
    }

    /// Confirms all that has landed.
    fn confirm_all(&mut self, at: usize) {
        while let Some(landed) = self.workers[at].outbox.iter().position(|letter| letter.way == Way::Landed) {
            self.confirm(at, landed);
        }
    }

    fn take_in(&mut self, scope: &Scope, content: Content) {
        match content {
            Content::Entry(entry) => self.log.append(entry, scope.mistake),
            Content::History(event) if !self.history.contains(&event) => self.history.push(event),
            Content::Told(event) if !self.told.contains(&event) => self.told.push(event),
            Content::History(_) | Content::Told(_) => {}
            Content::Copy(message, 0) => self.ready.push(message),
            Content::Copy(message, delay) => self.delayed.push((message, delay)),
        }
    }

    /// Whether something is the next one to come on a connection that its worker has given up.
    pub(crate) fn can_land_late(&self, index: usize) -> bool {
        let (instance, _) = &self.late[index];
        self.away.is_none() && self.late[..index].iter().all(|(other, _)| other != instance)
    }

    /// Something comes on a connection that its worker has given up.
    pub(crate) fn land_late(&mut self, scope: &Scope, index: usize) {
        let (_, content) = self.late.remove(index);
        self.take_in(scope, content);
    }

    // ---------------------------------------------------------------------------------------------- deliveries

    /// Whether a worker may be given a delivery.
    pub(crate) fn can_take(&self, scope: &Scope, at: usize) -> bool {
        let worker = &self.workers[at];
        worker.acts()
            && worker.is_ready
            && self.can_hear(at)
            && worker.busy_slots() < usize::from(scope.slots)
    }

    pub(crate) fn deliver(&mut self, scope: &Scope, at: usize, message: usize, reads_first: bool) {
        if reads_first {
            self.read_over(scope, true);
        }
        let message = self.ready.remove(message);
        let tasks = &mut self.workers[at].tasks;
        let number = (0..=u8::MAX).find(|number| tasks.iter().all(|task| task.number != *number));
        tasks.push(Task {
            number: number.unwrap_or(u8::MAX),
            message,
            delivery: Delivery::Held,
            is_detached: false,
            stop: None,
            stalled: None,
            claim: None,
            attempt: 0,
            failures: 0,
            phase: Phase::Fresh,
        });
    }

    /// A task is over: its delivery is acknowledged if it is still there.
    pub(crate) fn acknowledge(&mut self, at: usize, index: usize) {
        self.let_go(at, index, Phase::Acknowledging);
    }

    /// A task is over: its delivery is to come again.
    pub(crate) fn leave(&mut self, at: usize, index: usize) {
        self.let_go(at, index, Phase::Closing);
    }

    fn let_go(&mut self, at: usize, index: usize, way: Phase) {
        let is_held = self.workers[at].tasks[index].delivery == Delivery::Held;
        if is_held && !self.can_send(at) {
            self.workers[at].tasks[index].phase = way;
            return;
        }
        let task = self.workers[at].tasks.remove(index);
        if is_held && way == Phase::Closing {
            self.ready.push(task.message);
        }
    }

    // --------------------------------------------------------------------------------------------- connections

    /// A worker connects. What was not confirmed is published again, and a renewal with it.
    pub(crate) fn connect(&mut self, scope: &Scope, at: usize) {
        let length = self.log.length();
        let worker = &mut self.workers[at];
        worker.link.connection = Connection::Both;
        for letter in &mut worker.outbox {
            letter.way = Way::Sent;
        }
        // From the start of the log up to its mark it does nothing.
        let is_first = worker.read.is_none();
        worker.read.get_or_insert(length);
        let sequence = self.renew(scope, at);
        if is_first {
            self.workers[at].mark = Some(sequence);
        }
    }

    /// The broker ends a worker's connection; what was unacknowledged on it is ready again.
    pub(crate) fn drop_connection(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if worker.link.connection != Connection::Both {
            return;
        }
        worker.link.connection = Connection::WorkerOnly;
        for task in &mut worker.tasks {
            if task.delivery == Delivery::Held {
                task.delivery = Delivery::TakenBack;
                self.ready.push(task.message);
            }
        }
        if !worker.is_alive {
            worker.link.connection = Connection::None;
        }
    }

    /// A worker gives its connection up, or notices that the broker did. What was unacknowledged is ready again: when the
    /// broker notices later than the worker, that is as if nobody took it for a while.
    pub(crate) fn give_up_connection(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        let was_open = worker.link.connection == Connection::Both;
        if was_open {
            let sent = worker.outbox.iter().filter(|letter| letter.way == Way::Sent);
            // Of an event nobody can tell whether it comes late.
            let told =
                sent.filter(|letter| !matches!(letter.content, Content::History(_) | Content::Told(_)));
            self.late.extend(told.map(|letter| (worker.instance, letter.content.clone())));
        }
        worker.link.connection = Connection::None;
        for letter in &mut worker.outbox {
            letter.way = Way::Unsent;
        }
        for task in &mut worker.tasks {
            if task.delivery == Delivery::Held && was_open {
                self.ready.push(task.message);
            }
            if matches!(task.delivery, Delivery::Held | Delivery::TakenBack) {
                task.delivery = Delivery::Lost;
            }
        }
        worker.tasks.retain(|task| !matches!(task.phase, Phase::Acknowledging | Phase::Closing));
    }

    /// What was held on a link comes through.
    pub(crate) fn heal(&mut self, at: usize) {
        let link = &mut self.workers[at].link;
        (link.up_is_held, link.down_is_held, link.held_for) = (false, false, 0);
        if self.can_hear(at) {
            self.confirm_all(at);
        }
    }

    /// The broker goes away, and all that was not written down with it.
    pub(crate) fn go_away(&mut self) {
        self.away = Some(0);
        for at in 0..self.workers.len() {
            self.drop_connection(at);
        }
        self.late.clear();
    }

    // ------------------------------------------------------------------------------------------ workers and guards

    /// A worker is killed. Its guard, if it lives on, will say so.
    pub(crate) fn crash(&mut self, at: usize, guard_lives: bool) {
        self.give_up_dead(at);
        let worker = &mut self.workers[at];
        let drivers = worker.tasks.iter().filter(|task| task.has_driver()).map(|task| task.message.job);
        let guard = OrphanedGuard {
            worker: u8::try_from(at).unwrap_or(u8::MAX),
            instance: worker.instance,
            drivers: drivers.collect(),
            has_will: guard_lives,
        };
        if guard.has_will || !guard.drivers.is_empty() {
            self.guards.push(guard);
        }
        let link = std::mem::take(&mut worker.link);
        let instance = worker.instance;
        *worker = Worker { is_alive: false, link, ..Worker::new(instance) };
        worker.link.connection = Connection::None;
    }

    /// What a dead worker has sent may come late; what it had is taken back when the broker notices.
    fn give_up_dead(&mut self, at: usize) {
        let is_held = self.workers[at].link.is_held();
        if is_held || self.workers[at].link.connection != Connection::Both {
            self.give_up_connection(at);
            return;
        }
        // Whatever it has sent on a good link has come.
        self.drop_connection(at);
    }

    pub(crate) fn restart(&mut self, at: usize) {
        let link = self.workers[at].link.clone();
        self.workers[at] = Worker { link, ..Worker::new(self.next_instance) };
        self.next_instance += 1;
    }

    /// A guard says that its worker is dead.
    pub(crate) fn say_leave(&mut self, scope: &Scope, guard: usize) {
        let guard = self.guards.remove(guard);
        let entry = Entry { instance: guard.instance, sequence: LAST_SEQUENCE, records: vec![Record::Leave] };
        self.log.append(entry, scope.mistake);
        if !guard.drivers.is_empty() {
            self.guards.push(OrphanedGuard { has_will: false, ..guard });
        }
    }

    /// Whether a guard's word gets to the broker.
    pub(crate) fn can_say(&self, guard: &OrphanedGuard) -> bool {
        self.away.is_none() && !self.workers[usize::from(guard.worker)].link.is_held()
    }

    // --------------------------------------------------------------------------------------------------- others

    pub(crate) fn cancel(&mut self, scope: &Scope, job: u8) {
        self.cancelled[usize::from(job)] = true;
        let sequence = self.next_sequence;
        self.next_sequence += 2;
        self.log.append(Entry { instance: NOBODY, sequence, records: vec![cancel(job)] }, scope.mistake);
    }

    /// A publisher publishes a job again.
    pub(crate) fn publish_again(&mut self, job: u8) {
        self.ready.push(Message { job, seen: None });
    }

    // ------------------------------------------------------------------------------------------------------ time

    /// Whether anything will come of it that time passes. A driver that has run for a while goes on running as long as
    /// others wait for something; where runs are counted, as long as they may.
    pub(crate) fn waits_for_time(&self, scope: &Scope) -> bool {
        let runs = |task: &Task| matches!(task.phase, Phase::Running(age) if age == 0 || scope.counts_steps);
        let of_worker = |worker: &Worker| {
            worker.link.is_held()
                || worker.paused.is_some()
                || worker.tasks.iter().any(|task| runs(task) || task.stalled.is_some())
        };
        self.away.is_some() || !self.delayed.is_empty() || self.workers.iter().any(of_worker)
    }

    /// A tick passes, for everybody alike.
    pub(crate) fn tick(&mut self, scope: &Scope) {
        let older = |age: &mut u8| *age = age.saturating_add(1).min(HOLD);
        let longest_run = if scope.counts_steps { LONGEST_RUN } else { 1 };
        self.away.as_mut().map(older);
        for (_, left) in &mut self.delayed {
            *left -= 1;
        }
        let due = self.delayed.extract_if(.., |(_, left)| *left == 0);
        self.ready.extend(due.map(|(message, _)| message));
        for at in 0..self.workers.len() {
            let worker = &mut self.workers[at];
            worker.paused.as_mut().map(older);
            if worker.link.is_held() {
                older(&mut worker.link.held_for);
            }
            let was_over = worker.lease >= FENCE;
            worker.lease = (worker.lease + 1).min(FENCE);
            worker.renewed = (worker.renewed + 1).min(RENEWAL);
            for (_, age) in &mut worker.renewals {
                *age = (*age + 1).min(FENCE);
            }
            for task in &mut worker.tasks {
                task.stalled.as_mut().map(older);
                match &mut task.phase {
                    Phase::Launching(age) => *age = (*age + 1).min(FENCE),
                    Phase::Running(age) => *age = (*age + 1).min(longest_run),
                    _ => {}
                }
            }
            self.fence(scope, at, was_over);
        }
        self.read_over(scope, true);
    }

    /// Everybody reads on up to what concerns him: whether what does not was read, nobody can tell.
    pub(crate) fn read_over(&mut self, scope: &Scope, also_idle: bool) {
        for at in 0..self.workers.len() {
            if !also_idle && self.workers[at].tasks.is_empty() {
                continue;
            }
            while self.can_read(at) && !self.concerns(scope, at) {
                self.read(scope, at);
            }
        }
    }

    /// Whether a worker has something to read, and can.
    pub(crate) fn can_read(&self, at: usize) -> bool {
        let worker = &self.workers[at];
        worker.acts() && self.can_hear(at) && worker.read.is_some_and(|read| read < self.log.length())
    }

    /// Whether a worker has a delivery, or is yet to read something that it wrote.
    pub(crate) fn is_awaited(&self, at: usize) -> bool {
        let worker = &self.workers[at];
        let mut unread = self.log.behind(worker.read.unwrap_or(usize::MAX));
        !worker.tasks.is_empty() || unread.any(|place| place.entry.instance == worker.instance)
    }

    /// Whether the next entry may have a worker do anything else than it would without it.
    fn concerns(&self, scope: &Scope, at: usize) -> bool {
        let worker = &self.workers[at];
        let place = self.log.at(worker.read.unwrap_or(0) + 1);
        if place.entry.instance == worker.instance {
            return true;
        }
        let looks = |task: &Task| matches!(task.phase, Phase::Fresh | Phase::Refused(_));
        let mut effects = place.entry.records.iter().zip(&place.effects);
        effects.any(|(record, effect)| match (record, effect) {
            // It takes the job away from somebody here, or there is somebody who will look whose it is.
            (Record::Claim { job, .. }, Effect::Claimed(_))
            | (Record::Cancel { job, .. }, Effect::Cancelled) => {
                let of_job = |task: &Task| job_number(job) == Some(task.message.job);
                worker.tasks.iter().any(|task| of_job(task) && (looks(task) || task.works()))
            }
            (Record::Settle { job, .. }, Effect::Settled)
            | (Record::Release { job, .. }, Effect::Released) => {
                let of_job = |task: &Task| job_number(job) == Some(task.message.job);
                worker.tasks.iter().any(|task| of_job(task) && looks(task))
            }
            // Whoever looks sees whether the owner lives.
            (Record::Renew { .. }, Effect::Renewed) | (Record::Leave, Effect::Left(_)) => {
                let writer = InstanceId::from_number(place.entry.instance.into());
                let owns = |job: u8| {
                    let before = self.log.at(place.length - 1).owner(job);
                    before.or(place.owner(job)).is_some_and(|owner| owner.instance == writer)
                };
                let mut jobs = 0..scope.jobs;
                jobs.any(|job| {
                    owns(job) && worker.tasks.iter().any(|task| task.message.job == job && looks(task))
                })
            }
            _ => false,
        })
    }
}

impl Letter {
    fn waits_as_entry(&self) -> bool {
        self.way != Way::Landed && matches!(self.content, Content::Entry(_))
    }
}
