//! What may happen at any moment, and what must hold at every one.
//!
//! This module must not know how anything is done.

use spark_runtime_worker::broker::ledger::fold::{Effect, Standing};
use spark_runtime_worker::broker::ledger::record::{Record, Terms};
use stateright::{Model, Property};

use crate::state::{Connection, Delivery, Phase, State, Stop};
use crate::{Fault, HOLD, LEASE, LONGEST_RUN, Mistake, Scope};

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "workers, tasks and the like are meant by their numbers")]
pub enum Action {
    /// The broker hands a message to a worker, which may have read all that there is before.
    Deliver { worker: u8, message: u8, reads_first: bool },
    /// A publication gets to the broker.
    Land { worker: u8, letter: u8 },
    /// Something gets there that nobody expects any more.
    LandLate { late: u8 },
    /// A worker reads the next entry of the ledger.
    Read { worker: u8 },
    /// A worker goes on with a delivery.
    Step { worker: u8, task: u8 },
    /// A worker renews its lease.
    Renew { worker: u8 },
    /// A worker connects.
    Connect { worker: u8 },
    /// A worker gives its connection up, or notices that it is gone.
    GiveUpConnection { worker: u8 },
    /// The broker gives up a connection on which it hears nothing.
    DropConnection { worker: u8 },
    /// What was held on a link comes through again.
    Heal { worker: u8 },
    /// A worker that stood still goes on.
    Resume { worker: u8 },
    /// The broker is there again.
    ComeBack,
    /// Another worker is started in the place of a dead one.
    Restart { worker: u8 },
    /// A guard starts a driver, or finds that it must not.
    Launch { worker: u8, task: u8 },
    /// A driver ends by itself.
    Finish { worker: u8, task: u8 },
    /// A driver that was to be killed is gone.
    Reap { worker: u8, task: u8 },
    /// The drivers of a dead worker are gone.
    ReapOrphans { guard: u8 },
    /// A guard says that its worker is dead.
    SayLeave { guard: u8 },
    /// A guard's word does not get through, and it gives up.
    ForgetLeave { guard: u8 },
    /// What held a delivery's handling up is over.
    GoOn { worker: u8, task: u8 },
    /// Time passes.
    Tick,
    /// A worker dies; the guard too, or not.
    Crash { worker: u8, guard_lives: bool },
    /// A worker stands still.
    Pause { worker: u8 },
    /// Nothing gets through in one direction, or both.
    Hold { worker: u8, up: bool, down: bool },
    /// A connection is reset.
    Reset { worker: u8 },
    /// The broker goes away.
    GoAway,
    /// A publisher publishes a job again.
    PublishAgain { job: u8 },
    /// Somebody cancels a job.
    Cancel { job: u8 },
    /// A driver fails in a way that may pass.
    Fail { worker: u8, task: u8 },
    /// A worker is to give a job back.
    GiveBack { worker: u8, task: u8 },
    /// The handling of a delivery is held up.
    Stall { worker: u8, task: u8 },
}

fn small(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

impl Scope {
    /// What happens before anything else does, one after the other: nobody can tell in which order.
    fn first(&self, state: &State) -> Option<Action> {
        if state.away.is_some_and(|ticks| ticks >= HOLD) {
            return Some(Action::ComeBack);
        }
        for (at, worker) in state.workers.iter().enumerate() {
            let (number, link) = (small(at), &worker.link);
            if link.held_for >= HOLD {
                return Some(Action::Heal { worker: number });
            }
            if worker.paused.is_some_and(|ticks| ticks >= HOLD) {
                return Some(Action::Resume { worker: number });
            }
            if worker.acts() && link.connection == Connection::WorkerOnly && !link.down_is_held {
                return Some(Action::GiveUpConnection { worker: number });
            }
            let long = worker.tasks.iter().position(|task| task.stalled.is_some_and(|ticks| ticks >= HOLD));
            if let Some(task) = long {
                return Some(Action::GoOn { worker: number, task: small(task) });
            }
            let ended = worker
                .tasks
                .iter()
                .position(|task| matches!(task.phase, Phase::Running(ticks) if ticks >= LONGEST_RUN));
            if let Some(task) = ended {
                return Some(Action::Finish { worker: number, task: small(task) });
            }
        }
        None
    }

    /// What happens before any more time passes.
    fn urgent(&self, state: &State, actions: &mut Vec<Action>) {
        if let Some(first) = self.first(state) {
            actions.push(first);
            return;
        }
        self.urgent_of_broker(state, actions);
        for at in 0..state.workers.len() {
            self.urgent_of_worker(state, at, actions);
        }
        self.urgent_of_guards(state, actions);
        // Jobs meet only in the slots of workers. Where a worker takes one job at a time, what concerns the one comes before
        // what concerns the other until time passes: what differs by that are only moments that nobody can tell apart.
        let is_second = |action: &Action| self.job_of(state, *action) == Some(1);
        if self.slots == 1 && actions.iter().any(|action| !is_second(action)) {
            actions.retain(|action| !is_second(action));
        }
    }

    fn urgent_of_guards(&self, state: &State, actions: &mut Vec<Action>) {
        for (number, guard) in state.guards.iter().enumerate() {
            let guard_number = small(number);
            if !guard.drivers.is_empty() {
                actions.push(Action::ReapOrphans { guard: guard_number });
            }
            let may = guard.drivers.is_empty() || self.mistake == Some(Mistake::LeavingBeforeDriversAreGone);
            if guard.has_will && may && state.can_say(guard) {
                actions.push(Action::SayLeave { guard: guard_number });
            }
        }
    }

    /// The job that an action concerns, when it is one only.
    fn job_of(&self, state: &State, action: Action) -> Option<u8> {
        match action {
            Action::Deliver { message, .. } => {
                state.ready.get(usize::from(message)).map(|message| message.job)
            }
            Action::Land { worker, .. }
            | Action::Read { worker }
            | Action::Step { worker, .. }
            | Action::Renew { worker }
            | Action::Connect { worker }
            | Action::Launch { worker, .. }
            | Action::Reap { worker, .. } => state.workers[usize::from(worker)].only_job(),
            Action::ReapOrphans { guard } => state.guards[usize::from(guard)].drivers.first().copied(),
            _ => None,
        }
    }

    fn urgent_of_broker(&self, state: &State, actions: &mut Vec<Action>) {
        for at in 0..state.workers.len() {
            if !state.can_take(self, at) {
                continue;
            }
            let worker = &state.workers[at];
            let lags = worker.tasks.is_empty() && worker.read.is_some_and(|read| read < state.log.length());
            for (number, message) in state.ready.iter().enumerate() {
                // Of messages that are alike one stands for all.
                if state.ready[..number].contains(message) {
                    continue;
                }
                let (worker, message) = (small(at), small(number));
                actions.push(Action::Deliver { worker, message, reads_first: true });
                if lags {
                    actions.push(Action::Deliver { worker, message, reads_first: false });
                }
            }
        }
    }

    fn urgent_of_worker(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let (worker, number) = (&state.workers[at], small(at));
        let before = actions.len();
        for letter in (0..worker.outbox.len()).filter(|letter| state.can_land(at, *letter)) {
            actions.push(Action::Land { worker: number, letter: small(letter) });
        }
        let has_sent = actions.len() > before;
        if !worker.is_alive && state.workers.iter().all(|worker| !worker.is_alive) {
            actions.push(Action::Restart { worker: number });
        }
        for (index, task) in worker.tasks.iter().enumerate() {
            let task_number = small(index);
            match task.phase {
                Phase::Launching(_) if task.stalled.is_none() => {
                    actions.push(Action::Launch { worker: number, task: task_number });
                }
                Phase::Dying(_) => actions.push(Action::Reap { worker: number, task: task_number }),
                _ => {}
            }
        }
        // What it has sent before it went on comes first: whatever it does next depends on nothing that others do meanwhile.
        if !worker.acts() || has_sent {
            return;
        }
        for (index, task) in worker.tasks.iter().enumerate() {
            let lets_go = matches!(task.phase, Phase::Acknowledging | Phase::Closing) && state.can_send(at);
            if lets_go || State::can_step(task) {
                actions.push(Action::Step { worker: number, task: small(index) });
            }
        }
        if state.can_read(at) && (!self.workers_lag || state.is_awaited(at)) {
            actions.push(Action::Read { worker: number });
        }
        if state.has_to_renew(self, at) {
            actions.push(Action::Renew { worker: number });
        }
        if worker.link.connection == Connection::None && !worker.link.is_held() && state.away.is_none() {
            actions.push(Action::Connect { worker: number });
        }
    }

    /// What may happen sooner or later. Most of it happens when a tick has just passed: all that comes of it may happen
    /// before or after whatever others do until the next one. `is_last` when there is nothing else to be waited for.
    fn sooner_or_later(&self, state: &State, is_last: bool, actions: &mut Vec<Action>) {
        let late = (0..state.late.len()).filter(|late| state.can_land_late(*late));
        actions.extend(late.map(|late| Action::LandLate { late: small(late) }));
        for (at, worker) in state.workers.iter().enumerate() {
            for (index, task) in worker.tasks.iter().enumerate() {
                if let Phase::Running(ticks) = task.phase
                    && (ticks == 0 || state.is_dawn || is_last)
                {
                    actions.push(Action::Finish { worker: small(at), task: small(index) });
                }
            }
        }
        if !state.is_dawn {
            return;
        }
        if state.away.is_some() {
            actions.push(Action::ComeBack);
        }
        for (at, worker) in state.workers.iter().enumerate() {
            let number = small(at);
            if worker.link.is_held() {
                actions.push(Action::Heal { worker: number });
            }
            if worker.paused.is_some() {
                actions.push(Action::Resume { worker: number });
            }
            // They miss each other's heartbeats, soon or late.
            let silent_for = worker.paused.unwrap_or(0).max(worker.link.held_for);
            let misses = silent_for == 1 || silent_for == LEASE;
            if misses && worker.link.is_held() && worker.acts() && worker.link.connection != Connection::None
            {
                actions.push(Action::GiveUpConnection { worker: number });
            }
            if misses && worker.link.connection == Connection::Both {
                actions.push(Action::DropConnection { worker: number });
            }
            let others_live = state.workers.iter().any(|worker| worker.is_alive);
            if !worker.is_alive && self.restarts && others_live {
                actions.push(Action::Restart { worker: number });
            }
            for (index, task) in worker.tasks.iter().enumerate() {
                if task.stalled.is_some() {
                    actions.push(Action::GoOn { worker: number, task: small(index) });
                }
            }
        }
        for (number, guard) in state.guards.iter().enumerate() {
            if guard.has_will && guard.drivers.is_empty() && !state.can_say(guard) {
                actions.push(Action::ForgetLeave { guard: small(number) });
            }
        }
    }

    /// What may go wrong.
    fn faults(&self, state: &State, first_job_goes_on: bool, actions: &mut Vec<Action>) {
        let may = |fault: Fault| self.kinds.contains(&fault);
        for job in 0..self.jobs {
            if may(Fault::PublishAgain) && state.away.is_none() {
                actions.push(Action::PublishAgain { job });
            }
            let is_open = !matches!(state.log.last().standing(job), Standing::Settled(_));
            if may(Fault::Cancel) && is_open && !state.cancelled[usize::from(job)] && state.away.is_none() {
                actions.push(Action::Cancel { job });
            }
        }
        if state.is_idle() {
            return;
        }
        if may(Fault::BrokerAway) && state.away.is_none() {
            actions.push(Action::GoAway);
        }
        for at in 0..state.workers.len() {
            self.faults_of_worker(state, at, first_job_goes_on, actions);
        }
    }

    fn faults_of_worker(&self, state: &State, at: usize, first_job_goes_on: bool, actions: &mut Vec<Action>) {
        let (worker, number) = (&state.workers[at], small(at));
        let may = |fault: Fault| self.kinds.contains(&fault);
        // What befalls a worker without a job is felt by nobody; what befalls one whose turn is yet to come, when it comes.
        let waits_for_its_turn = self.slots == 1 && worker.only_job() == Some(1) && first_job_goes_on;
        if !worker.is_alive || worker.tasks.is_empty() || waits_for_its_turn {
            return;
        }
        if may(Fault::Crash) {
            actions.push(Action::Crash { worker: number, guard_lives: true });
        }
        if may(Fault::LostMachine) {
            actions.push(Action::Crash { worker: number, guard_lives: false });
        }
        if may(Fault::Pause) && worker.paused.is_none() {
            actions.push(Action::Pause { worker: number });
        }
        if worker.link.connection == Connection::Both && !worker.link.is_held() {
            if may(Fault::Hold) {
                for (up, down) in [(true, false), (false, true), (true, true)] {
                    actions.push(Action::Hold { worker: number, up, down });
                }
            }
            if may(Fault::Reset) {
                actions.push(Action::Reset { worker: number });
            }
        }
        for (index, task) in worker.tasks.iter().enumerate() {
            let task_number = small(index);
            if may(Fault::Failure) && matches!(task.phase, Phase::Running(_)) {
                actions.push(Action::Fail { worker: number, task: task_number });
            }
            let can_be_given_back = matches!(
                task.phase,
                Phase::Claiming(_)
                    | Phase::Assuring
                    | Phase::Renewing(_)
                    | Phase::Staging
                    | Phase::Launching(_)
                    | Phase::Running(_)
            );
            if may(Fault::GiveBack) && can_be_given_back && worker.acts() && task.stop < Some(Stop::GiveBack)
            {
                actions.push(Action::GiveBack { worker: number, task: task_number });
            }
            let can_be_held_up = matches!(
                task.phase,
                Phase::Staging
                    | Phase::Launching(_)
                    | Phase::Over(_)
                    | Phase::Recorded(_)
                    | Phase::Released(_)
            );
            if may(Fault::Stall) && can_be_held_up && task.stalled.is_none() {
                actions.push(Action::Stall { worker: number, task: task_number });
            }
        }
    }

    fn take(&self, state: &mut State, action: Action) {
        let place = usize::from;
        match action {
            Action::Deliver { worker, message, reads_first } => {
                state.deliver(self, place(worker), place(message), reads_first);
            }
            Action::Land { worker, letter } => state.land(self, place(worker), place(letter)),
            Action::LandLate { late } => state.land_late(self, place(late)),
            Action::Read { worker } => state.read(self, place(worker)),
            Action::Step { worker, task } => state.step(self, place(worker), place(task)),
            Action::Renew { worker } => state.keep_renewed(self, place(worker)),
            Action::Connect { worker } => state.connect(self, place(worker)),
            Action::GiveUpConnection { worker } => state.give_up_connection(place(worker)),
            Action::DropConnection { worker } | Action::Reset { worker } => {
                state.drop_connection(place(worker));
            }
            Action::Heal { worker } => state.heal(place(worker)),
            Action::Resume { worker } => state.workers[place(worker)].paused = None,
            Action::ComeBack => state.away = None,
            Action::Restart { worker } => state.restart(place(worker)),
            Action::Launch { worker, task } => state.launch(self, place(worker), place(task)),
            Action::Finish { worker, task } => state.finish(place(worker), place(task), true),
            Action::Fail { worker, task } => state.finish(place(worker), place(task), false),
            Action::Reap { worker, task } => state.reap(place(worker), place(task)),
            Action::ReapOrphans { guard } => {
                state.guards[place(guard)].drivers.clear();
                if !state.guards[place(guard)].has_will {
                    state.guards.remove(place(guard));
                }
            }
            Action::SayLeave { guard } => state.say_leave(self, place(guard)),
            Action::ForgetLeave { guard } => {
                state.guards.remove(place(guard));
            }
            Action::GoOn { worker, task } => state.workers[place(worker)].tasks[place(task)].stalled = None,
            Action::Tick => state.tick(self),
            Action::Crash { worker, guard_lives } => state.crash(place(worker), guard_lives),
            Action::Pause { worker } => state.workers[place(worker)].paused = Some(0),
            Action::Hold { worker, up, down } => {
                let link = &mut state.workers[place(worker)].link;
                (link.up_is_held, link.down_is_held) = (up, down);
            }
            Action::GoAway => state.go_away(),
            Action::PublishAgain { job } => state.publish_again(job),
            Action::Cancel { job } => state.cancel(self, job),
            Action::GiveBack { worker, task } => {
                let at = place(worker);
                if matches!(state.workers[at].tasks[place(task)].phase, Phase::Claiming(_)) {
                    state.give_up_claiming(self, at, place(task));
                } else {
                    state.workers[at].tasks[place(task)].tell_to_stop(Stop::GiveBack);
                }
            }
            Action::Stall { worker, task } => {
                state.workers[place(worker)].tasks[place(task)].stalled = Some(0);
            }
        }
    }

    /// Whether nothing more comes by itself, however long one waits.
    fn has_come_to_rest(&self, state: &State) -> bool {
        let mut urgent = Vec::new();
        self.urgent(state, &mut urgent);
        let mut drivers =
            state.workers.iter().flat_map(|worker| &worker.tasks).filter(|task| task.has_driver());
        urgent.is_empty() && !state.waits_for_time(self) && drivers.next().is_none()
    }
}

impl Action {
    /// It is one of the faults whose number is limited.
    fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Crash { .. }
                | Self::Pause { .. }
                | Self::Hold { .. }
                | Self::Reset { .. }
                | Self::GoAway
                | Self::PublishAgain { .. }
                | Self::Cancel { .. }
                | Self::Fail { .. }
                | Self::GiveBack { .. }
                | Self::Stall { .. }
        )
    }
}

impl Action {
    /// It may happen together with others of its kind when a tick has just passed.
    fn is_of_the_dawn(self) -> bool {
        matches!(
            self,
            Self::ComeBack
                | Self::Heal { .. }
                | Self::Resume { .. }
                | Self::GoOn { .. }
                | Self::GiveUpConnection { .. }
                | Self::DropConnection { .. }
                | Self::Restart { .. }
                | Self::ForgetLeave { .. }
                | Self::Finish { .. }
        )
    }
}

impl Model for Scope {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.urgent(state, actions);
        if self.first(state).is_some() {
            return;
        }
        let first_job_goes_on = actions.iter().any(|action| self.job_of(state, *action) != Some(1));
        let is_still = actions.is_empty();
        let waits = is_still && state.waits_for_time(self);
        if waits {
            actions.push(Action::Tick);
        }
        self.sooner_or_later(state, is_still && !waits, actions);
        if state.faults > 0 {
            self.faults(state, first_job_goes_on, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.take(&mut state, action);
        state.faults -= u8::from(action.is_fault());
        state.steps = state.steps.saturating_add(1);
        state.is_dawn = action == Action::Tick || last.is_dawn && action.is_of_the_dawn();
        state.read_over(self, !self.workers_lag);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NEVER_TWO_DRIVERS, |scope: &Scope, state: &State| {
                (0..scope.jobs).all(|job| state.drivers(job) <= 1)
            }),
            Property::always(NO_RUN_AFTER_SETTLE, |scope: &Scope, state: &State| {
                let settled = |job| matches!(state.log.last().standing(job), Standing::Settled(_));
                (0..scope.jobs).all(|job| !settled(job) || state.drivers(job) == 0)
            }),
            Property::always(ONE_END, |scope: &Scope, state: &State| {
                (0..scope.jobs).all(|job| state.told.iter().filter(|event| event.job == job).count() <= 1)
            }),
            Property::always(WHAT_WAS_SETTLED, |_: &Scope, state: &State| {
                state.told.iter().all(|event| state.was_settled(event))
            }),
            Property::always(NEVER_LOST, |scope: &Scope, state: &State| {
                (0..scope.jobs).all(|job| {
                    state.has_message(job)
                        || state.told.iter().any(|event| event.job == job && state.was_settled(event))
                })
            }),
            Property::always(ONE_BODY, |_: &Scope, state: &State| {
                let mut events = state.history.iter().enumerate();
                events.all(|(number, event)| {
                    state.history[..number].iter().all(|other| {
                        (event.job, event.attempt, event.ending) != (other.job, other.attempt, other.ending)
                    })
                })
            }),
            Property::always(EVENTUALLY_TOLD, |scope: &Scope, state: &State| {
                !scope.has_come_to_rest(state)
                    || state.is_idle()
                        && (0..scope.jobs)
                            .all(|job| state.told.iter().filter(|event| event.job == job).count() == 1)
            }),
            Property::always(POSSIBLE, |_: &Scope, state: &State| state.broken.is_none()),
        ];
        if self.counts_steps {
            properties.push(Property::always(COMES_TO_REST, |scope: &Scope, state: &State| {
                state.steps <= scope.most_steps
            }));
        }
        properties.extend(self.reached.iter().map(|reached| reached.property()));
        properties
    }
}

/// Promise 2: at no time do two drivers run for one job.
pub const NEVER_TWO_DRIVERS: &str = "never two drivers of one job";
/// Promise 3: what has ended is not run.
pub const NO_RUN_AFTER_SETTLE: &str = "no run after the settle";
/// Promise 1, one half: nobody is told two ends.
pub const ONE_END: &str = "at most one end of a job is told";
/// What is told is what the ledger says.
pub const WHAT_WAS_SETTLED: &str = "what is told is settled, and from the history";
/// Promise 1, as an invariant: the broker has a message that brings the job, until its end is told.
pub const NEVER_LOST: &str = "a job is never lost";
/// An event is found by its id.
pub const ONE_BODY: &str = "no two ends have one id";
/// Promise 1, the other half: when nothing more comes by itself, every job's end is told, and every message acknowledged.
pub const EVENTUALLY_TOLD: &str = "eventually every end is told";
/// Every run comes to where nothing more comes by itself.
pub const COMES_TO_REST: &str = "everything comes to rest";
/// The model has its assumptions right.
pub const POSSIBLE: &str = "nothing impossible happens";

impl State {
    /// Whether an event is the one that the ledger has settled the job with, and is not made up.
    fn was_settled(&self, event: &crate::state::Event) -> bool {
        matches!(self.log.last().standing(event.job), Standing::Settled(settled)
            if (settled.attempt(), settled.ending()) == (event.attempt, event.ending)
                && Some(settled.claim) == event.claim)
    }

    fn last_effect(&self, found: impl Fn(&Record, &Effect) -> bool) -> bool {
        let last = self.log.last();
        last.entry.records.iter().zip(&last.effects).any(|(record, effect)| found(record, effect))
    }
}

/// Something that the checker has to have come by: what never happens is not checked either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// A job was taken over from an owner of whom nothing was heard.
    TakeOver,
    /// A take-over was refused, because its owner was heard of meanwhile.
    RefusedTakeOver,
    /// A worker replaced a claim of its own that nobody attended to.
    Replaced,
    /// A delivery took the place of a lost one.
    Joined,
    /// A settle came too late.
    RefusedSettle,
    /// A dead worker's claim came into force.
    LateClaim,
    /// A guard's word freed a job.
    Left,
    /// A driver was ended because the lease was over.
    Fenced,
    /// A job was cancelled.
    Cancelled,
    /// No attempt was left.
    Exhausted,
    /// An end was told again by somebody who found it settled.
    Repeated,
}

impl Reached {
    fn property(self) -> Property<Scope> {
        use spark_runtime_worker::broker::ledger::record::Ending;
        match self {
            Self::TakeOver => Property::sometimes("a job is taken over", |_: &Scope, state: &State| {
                state.last_effect(
                    |_, effect| matches!(effect, Effect::Claimed(claimed) if claimed.superseded.is_some()),
                )
            }),
            Self::RefusedTakeOver => {
                Property::sometimes("a take-over is refused", |_: &Scope, state: &State| {
                    state.last_effect(|record, effect| {
                        matches!(record, Record::Claim { terms: Terms::Supersedes { .. }, .. })
                            && matches!(effect, Effect::Refused(Standing::Open(_)))
                    })
                })
            }
            Self::Replaced => {
                Property::sometimes("an unattended claim is replaced", |_: &Scope, state: &State| {
                    state.last_effect(|record, effect| {
                        matches!(record, Record::Claim { terms: Terms::Replaces { .. }, .. })
                            && matches!(effect, Effect::Claimed(_))
                    })
                })
            }
            Self::Joined => {
                Property::sometimes("a delivery takes the place of a lost one", |_: &Scope, state: &State| {
                    state
                        .workers
                        .iter()
                        .any(|worker| worker.tasks.iter().any(|task| task.phase == Phase::Joined))
                })
            }
            Self::RefusedSettle => {
                Property::sometimes("a settle comes too late", |_: &Scope, state: &State| {
                    state.last_effect(|record, effect| {
                        matches!(record, Record::Settle { .. }) && *effect == Effect::Nothing
                    })
                })
            }
            Self::LateClaim => {
                Property::sometimes("a dead worker's claim comes into force", |_: &Scope, state: &State| {
                    let writer = state.log.last().entry.instance;
                    state.workers.iter().all(|worker| worker.instance != writer || !worker.is_alive)
                        && state.last_effect(|_, effect| matches!(effect, Effect::Claimed(_)))
                })
            }
            Self::Left => Property::sometimes("a guard's word frees a job", |_: &Scope, state: &State| {
                state.last_effect(|_, effect| matches!(effect, Effect::Left(freed) if !freed.is_empty()))
            }),
            Self::Fenced => {
                Property::sometimes("a driver is ended with the lease", |_: &Scope, state: &State| {
                    let dying = Phase::Dying(crate::state::End::Interrupted);
                    state.workers.iter().any(|worker| worker.tasks.iter().any(|task| task.phase == dying))
                })
            }
            Self::Cancelled => Property::sometimes("a job is cancelled", |_: &Scope, state: &State| {
                state.told.iter().any(|event| event.ending == Ending::Cancelled)
            }),
            Self::Exhausted => Property::sometimes("no attempt is left", |_: &Scope, state: &State| {
                state.told.iter().any(|event| event.ending == Ending::Failed)
            }),
            Self::Repeated => Property::sometimes("an end is told again", |_: &Scope, state: &State| {
                state.workers.iter().any(|worker| {
                    worker.tasks.iter().any(|task| {
                        matches!(task.phase, Phase::Repeating(_)) && task.delivery == Delivery::Held
                    })
                })
            }),
        }
    }
}
