//! What the model remembers: a broker, workers, their guards, and what is on its way between them.
//!
//! This module must not know what may happen next.

use spark_runtime_worker::broker::ledger::fold::Settled;
use spark_runtime_worker::broker::ledger::record::{Ending, InstanceId, Position};
use spark_runtime_worker::broker::message::Seen;

use crate::Scope;
use crate::log::{Entry, InstanceNumber, Log};

/// A moment of the whole.
#[derive(Debug, Clone)]
pub struct State {
    /// How many jobs there are.
    pub(crate) jobs: u8,
    pub(crate) log: Log,
    pub(crate) workers: Vec<Worker>,
    /// Guards whose worker is dead.
    pub(crate) guards: Vec<OrphanedGuard>,
    /// What lies on connections that their worker has given up: it may come as late as it likes, or never, but in order.
    pub(crate) late: Vec<(InstanceNumber, Content)>,
    /// Whom the broker may hand to a worker.
    pub(crate) ready: Vec<Message>,
    /// What waits in the delay queue, and for how many ticks yet.
    pub(crate) delayed: Vec<(Message, u8)>,
    /// For how many ticks the broker has been away.
    pub(crate) away: Option<u8>,
    pub(crate) history: Vec<Event>,
    /// What subscribers were told, repetitions left out.
    pub(crate) told: Vec<Event>,
    /// A tick has just passed, and nobody has done anything since.
    pub(crate) is_dawn: bool,
    /// How many faults may still happen.
    pub(crate) faults: u8,
    /// Jobs that somebody asked to cancel.
    pub(crate) cancelled: [bool; crate::log::MOST_JOBS],
    pub(crate) next_instance: InstanceNumber,
    pub(crate) next_sequence: u64,
    /// Something happened that this model takes for impossible.
    pub(crate) broken: Option<&'static str>,
    /// How many steps led here; part of the state only when the scope says so.
    pub(crate) steps: u16,
    pub(crate) counts_steps: bool,
}

/// A message that brings a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) job: u8,
    pub(crate) seen: Option<Seen>,
}

/// A terminal event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) job: u8,
    pub(crate) attempt: u32,
    pub(crate) ending: Ending,
    /// The claim of whoever made it, in place of all that an event tells; none in one that was made up afterwards.
    pub(crate) claim: Option<Position>,
}

/// A guard that outlives its worker, or what is left of its trees when it does not.
#[derive(Debug, Clone)]
pub(crate) struct OrphanedGuard {
    /// On whose machine it is.
    pub(crate) worker: u8,
    pub(crate) instance: InstanceNumber,
    /// The jobs whose drivers are being killed.
    pub(crate) drivers: Vec<u8>,
    /// It will say that the instance is dead.
    pub(crate) has_will: bool,
}

/// A place for workers, with the one that is there.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub(crate) is_alive: bool,
    pub(crate) instance: InstanceNumber,
    /// For how many ticks it has stood still.
    pub(crate) paused: Option<u8>,
    pub(crate) link: Link,
    /// How many entries of the log it has read; none before it has connected.
    pub(crate) read: Option<usize>,
    /// The renewal that has to be read back before it takes jobs.
    pub(crate) mark: Option<u64>,
    /// It takes jobs.
    pub(crate) is_ready: bool,
    /// How many ticks ago the last renewal was sent that it has read back.
    pub(crate) lease: u8,
    /// How many ticks ago it has sent a renewal.
    pub(crate) renewed: u8,
    /// Renewals that it has not read back, and how many ticks ago they were sent.
    pub(crate) renewals: Vec<(u64, u8)>,
    /// What the broker has not confirmed.
    pub(crate) outbox: Vec<Letter>,
    pub(crate) tasks: Vec<Task>,
}

/// What is between a worker and the broker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    /// What goes to the broker does not get through.
    pub(crate) up_is_held: bool,
    /// What comes from the broker does not get through.
    pub(crate) down_is_held: bool,
    /// For how many ticks.
    pub(crate) held_for: u8,
}

/// Who believes in a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Connection {
    #[default]
    None,
    /// The broker has ended it, and the worker does not know.
    WorkerOnly,
    Both,
}

/// A publication that is not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Letter {
    pub(crate) content: Content,
    /// The task that waits for the confirmation.
    pub(crate) task: Option<u8>,
    pub(crate) way: Way,
}

/// How far a publication has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Unsent,
    Sent,
    /// The broker has it; the worker does not know.
    Landed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Entry(Entry),
    History(Event),
    Told(Event),
    /// A copy of a message, and how long it is delayed.
    Copy(Message, u8),
}

/// The handling of one delivery.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) number: u8,
    pub(crate) message: Message,
    pub(crate) delivery: Delivery,
    /// It takes no slot: another delivery has taken the place of its own.
    pub(crate) is_detached: bool,
    /// What it was told to stop for.
    pub(crate) stop: Option<Stop>,
    /// For how many ticks it has been held up.
    pub(crate) stalled: Option<u8>,
    /// The claim by which it works.
    pub(crate) claim: Option<Position>,
    pub(crate) attempt: u32,
    pub(crate) failures: u32,
    pub(crate) phase: Phase,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Held,
    /// The broker has taken it back, and the worker does not know.
    TakenBack,
    Lost,
    Acknowledged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    Cancel,
    GiveBack,
    OwnershipLost,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It told its end, and the job is over.
    Told(Ending),
    /// It failed in a way that may pass.
    MayPass,
    GivenBack,
    Interrupted,
    Abandoned,
}

/// What is done about a delivery once its claim is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// A copy goes to the queue after so many ticks.
    Copy(u8),
    LookAgain,
}

/// How far the handling of a delivery has got.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Phase {
    /// Nobody has looked at it.
    Fresh,
    /// The claim was written.
    Claiming(u64),
    /// The claim was refused when so many entries had been read.
    Refused(usize),
    /// Ours, and the lease is to be made sure of.
    Assuring,
    /// The renewal for it was written.
    Renewing(u64),
    Staging,
    /// The guard was told to start the driver, under a lease that was sent so many ticks ago.
    Launching(u8),
    /// The driver runs, for so many ticks by now.
    Running(u8),
    /// The driver is being killed.
    Dying(End),
    Over(End),
    /// The end was published to the history.
    Recording(Ending),
    Recorded(Ending),
    Settling(Ending, u64),
    Settled(Ending),
    /// The end was published to subscribers.
    Telling,
    Releasing(u64, Then),
    Released(Then),
    /// A copy of the message was published.
    Copying,
    /// All is said.
    Said,
    /// The delivery is to come again.
    Leave,
    /// The acknowledgement is on its way.
    Acknowledging,
    /// The end of the channel is on its way, by which the delivery comes again.
    Closing,
    /// The job has ended like this, and that is to be told again.
    Repeating(Settled),
    /// It waits for the job's end, which another task works on.
    Joined,
}

impl State {
    pub(crate) fn first(scope: &Scope) -> Self {
        let workers = (1..=scope.workers).map(InstanceNumber::from).map(Worker::new).collect();
        let mut state = Self {
            jobs: scope.jobs,
            log: Log::new(),
            workers,
            guards: Vec::new(),
            late: Vec::new(),
            ready: (0..scope.jobs).map(|job| Message { job, seen: None }).collect(),
            delayed: Vec::new(),
            away: None,
            history: Vec::new(),
            told: Vec::new(),
            is_dawn: false,
            faults: scope.faults,
            cancelled: Default::default(),
            next_instance: InstanceNumber::from(scope.workers) + 1,
            next_sequence: 0,
            broken: None,
            steps: 0,
            counts_steps: scope.counts_steps,
        };
        // They have been there for a while.
        for worker in 0..scope.workers {
            state.connect(scope, worker.into());
        }
        for worker in 0..scope.workers {
            state.read_all(scope, worker.into());
        }
        state
    }

    /// The drivers of a job that are alive.
    pub(crate) fn drivers(&self, job: u8) -> usize {
        let of_workers = self.workers.iter().flat_map(|worker| &worker.tasks);
        let running = of_workers.filter(|task| {
            task.message.job == job && matches!(task.phase, Phase::Running(_) | Phase::Dying(_))
        });
        let orphaned = self.guards.iter().flat_map(|guard| &guard.drivers).filter(|driver| **driver == job);
        running.count() + orphaned.count()
    }

    /// Whether the broker has a message that brings a job.
    pub(crate) fn has_message(&self, job: u8) -> bool {
        let held = self.workers.iter().flat_map(|worker| &worker.tasks);
        let mut unacknowledged =
            held.filter(|task| task.delivery == Delivery::Held).map(|task| &task.message);
        let mut waiting = self.ready.iter().chain(self.delayed.iter().map(|(m, _)| m));
        unacknowledged.any(|message| message.job == job) || waiting.any(|message| message.job == job)
    }

    /// Whether nobody has anything to do any more.
    pub(crate) fn is_idle(&self) -> bool {
        self.ready.is_empty()
            && self.delayed.is_empty()
            && self.guards.is_empty()
            && self.workers.iter().all(|worker| worker.tasks.is_empty())
    }
}

impl Worker {
    /// One that has just started.
    pub(crate) fn new(instance: InstanceNumber) -> Self {
        Self {
            is_alive: true,
            instance,
            paused: None,
            link: Link::default(),
            read: None,
            mark: None,
            is_ready: false,
            lease: crate::FENCE,
            renewed: crate::RENEWAL,
            renewals: Vec::new(),
            outbox: Vec::new(),
            tasks: Vec::new(),
        }
    }

    pub(crate) fn id(&self) -> InstanceId {
        InstanceId::from_number(self.instance.into())
    }

    /// It can do something.
    pub(crate) fn acts(&self) -> bool {
        self.is_alive && self.paused.is_none()
    }

    /// The job that it has deliveries of, when it is one only.
    pub(crate) fn only_job(&self) -> Option<u8> {
        let first = self.tasks.first()?.message.job;
        self.tasks.iter().all(|task| task.message.job == first).then_some(first)
    }

    pub(crate) fn busy_slots(&self) -> usize {
        self.tasks.iter().filter(|task| !task.is_detached).count()
    }
}

impl Link {
    pub(crate) fn is_held(&self) -> bool {
        self.up_is_held || self.down_is_held
    }
}

impl Task {
    /// Somebody works on the job by the task's claim.
    pub(crate) fn works(&self) -> bool {
        self.claim.is_some() && !matches!(self.phase, Phase::Said | Phase::Leave)
    }

    /// Its driver is alive.
    pub(crate) fn has_driver(&self) -> bool {
        matches!(self.phase, Phase::Running(_) | Phase::Dying(_))
    }
}
