//! Does the faults of a plan, each when its time has come.
//!
//! This module must not know whether the service stands them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::book::Book;
use super::plan::{Act, BrokerFault, Fault, Victim};
use super::pool::{Pool, Sort, Target};
use super::timeline::Timeline;
use crate::broker::Broker;
use crate::wire::{Passage, State};

const LOOK: Duration = Duration::from_millis(20);
/// Faults that come together begin within so long.
const TOGETHER: Duration = Duration::from_secs(4);
/// When nothing changes for so long, the next fault comes all the same.
const BOREDOM: Duration = Duration::from_secs(20);
/// The share of the jobs that is over when the last fault begins, in percent.
const LAST_FAULT: u64 = 95;

/// When faults are due.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// Spread over so many jobs.
    Jobs(u64),
    /// One after so long.
    Every(Duration),
}

/// How many faults were done.
#[derive(Debug, Default)]
pub struct Done {
    /// Workers killed.
    pub workers: AtomicUsize,
    /// Guards killed.
    pub guards: AtomicUsize,
    /// Workers killed together with their guards.
    pub both: AtomicUsize,
    /// Pauses.
    pub pauses: AtomicUsize,
    /// Workers told to leave.
    pub leaves: AtomicUsize,
    /// Faults of wires.
    pub wires: AtomicUsize,
    /// Faults of the broker.
    pub brokers: AtomicUsize,
}

impl Done {
    /// All kills.
    #[must_use]
    pub fn kills(&self) -> usize {
        [&self.workers, &self.guards, &self.both].into_iter().map(count).sum()
    }
}

/// The number in a counter.
#[must_use]
pub fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}

/// Whoever does the faults.
#[derive(Debug)]
pub struct Faults {
    /// The workers.
    pub pool: Arc<Pool>,
    /// The broker; held by whoever does something to it.
    pub broker: Arc<Mutex<Broker>>,
    /// What happened.
    pub timeline: Timeline,
    /// Where the run stands.
    pub book: Arc<Book>,
    /// What was done.
    pub done: Done,
    /// The broker is away or takes nothing.
    pub is_broker_out: AtomicBool,
    turn: tokio::sync::Mutex<()>,
}

impl Faults {
    /// Nothing is done yet.
    #[must_use]
    pub fn new(
        pool: Arc<Pool>,
        broker: Arc<Mutex<Broker>>,
        timeline: Timeline,
        book: Arc<Book>,
    ) -> Arc<Self> {
        Arc::new(Self {
            pool,
            broker,
            timeline,
            book,
            done: Done::default(),
            is_broker_out: AtomicBool::new(false),
            turn: tokio::sync::Mutex::new(()),
        })
    }

    /// Does all of them, and returns when the last is over.
    ///
    /// # Panics
    /// When the broker cannot be started again.
    pub async fn inflict(self: Arc<Self>, faults: Vec<Fault>, pace: Pace) {
        let total = faults.len();
        let mut left: VecDeque<Fault> = faults.into();
        let mut under_way = JoinSet::new();
        let mut together = 0;
        while let Some(fault) = left.pop_front() {
            let number = total - left.len();
            let mut delay = Duration::ZERO;
            if together > 0 {
                together -= 1;
                delay = TOGETHER.mul_f64(f64::from(u16::try_from(fault.pick % 1000).unwrap_or(0)) / 1000.0);
            } else {
                self.due(number, total, pace).await;
            }
            together = together.max(fault.companions);
            let this = self.clone();
            under_way.spawn(async move {
                tokio::time::sleep(delay).await;
                this.inflict_one(fault).await;
            });
            while let Some(ended) = under_way.try_join_next() {
                ended.expect("a fault can be done");
            }
        }
        while let Some(ended) = under_way.join_next().await {
            ended.expect("a fault can be done");
        }
    }

    async fn due(&self, number: usize, total: usize, pace: Pace) {
        match pace {
            Pace::Every(time) => tokio::time::sleep(time).await,
            Pace::Jobs(jobs) => {
                let number = u64::try_from(number).unwrap_or(u64::MAX);
                let total = u64::try_from(total).unwrap_or(u64::MAX).max(1);
                let wanted = jobs * LAST_FAULT * number / (total * 100);
                let mut since = Instant::now();
                loop {
                    let standing = self.book.standing();
                    if u64::try_from(standing.ended + standing.given_up).is_ok_and(|over| over >= wanted) {
                        return;
                    }
                    if self.is_broker_out.load(Ordering::Relaxed) {
                        since = Instant::now();
                    }
                    if since.elapsed() > BOREDOM && standing.quiet > BOREDOM {
                        return;
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }

    async fn target(&self, fault: &Fault, sort: Sort) -> Target {
        loop {
            if let Some(target) = self.pool.pick(fault.pick, sort) {
                return target;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn inflict_one(&self, fault: Fault) {
        match fault.act {
            Act::Kill { victim, pause, late } => self.kill(&fault, victim, pause, late).await,
            Act::Leave(patience) => {
                let target = self.target(&fault, Sort::ToKill).await;
                self.timeline.note(&format!("{}: is told to leave, twice in {patience:.1?}", target.name));
                self.pool.leave(&target);
                tokio::time::sleep(patience).await;
                self.pool.leave(&target);
                self.done.leaves.fetch_add(1, Ordering::Relaxed);
            }
            Act::Pause(victim, time) => {
                let target = self.target(&fault, Sort::NotPaused).await;
                self.timeline.note(&format!("{}: {victim:?} is stopped for {time:.1?}", target.name));
                self.pool.pause(&target, victim, true);
                tokio::time::sleep(time).await;
                self.pool.pause(&target, victim, false);
                self.timeline.note(&format!("{}: {victim:?} goes on", target.name));
                self.done.pauses.fetch_add(1, Ordering::Relaxed);
            }
            Act::Wire(state, time) => {
                let target = self.target(&fault, Sort::WireIsWhole).await;
                self.timeline.note(&format!("{}: wire for {time:.1?}: {state:?}", target.name));
                self.pool.wire(&target, state);
                tokio::time::sleep(time).await;
                self.pool.wire(&target, State::WHOLE);
                self.timeline.note(&format!("{}: wire is whole", target.name));
                self.done.wires.fetch_add(1, Ordering::Relaxed);
            }
            Act::Broker(what) => {
                let _turn = self.turn.lock().await;
                self.timeline.note(&format!("broker: {what:?}"));
                self.is_broker_out.store(true, Ordering::Relaxed);
                self.broker_fault(what).await;
                self.is_broker_out.store(false, Ordering::Relaxed);
                self.timeline.note("broker: all well");
                self.done.brokers.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn kill(&self, fault: &Fault, victim: Victim, pause: Duration, late: Option<Duration>) {
        let target = self.target(fault, Sort::ToKill).await;
        if let Some(late) = late {
            self.timeline.note(&format!("{}: what it sends is late by {late:.1?}", target.name));
            let state = State { to_broker: Passage::Late(late), ..State::WHOLE };
            self.pool.wire(&target, state);
            // So that there is something on its way.
            tokio::time::sleep(late.mul_f64(0.3)).await;
        }
        self.timeline.note(&format!("{}: kill -9 of {victim:?}", target.name));
        self.pool.kill(&target, victim, pause);
        let counter = match victim {
            Victim::Worker => &self.done.workers,
            Victim::Guard => &self.done.guards,
            Victim::Both => &self.done.both,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Some(late) = late {
            tokio::time::sleep(late).await;
            self.pool.wire(&target, State::WHOLE);
        }
    }

    async fn broker_fault(&self, what: BrokerFault) {
        match what {
            BrokerFault::Restart => {
                self.with_broker(|broker| {
                    broker.down();
                    broker.up(&[]);
                })
                .await;
            }
            BrokerFault::Kill => {
                self.with_broker(|broker| {
                    broker.kill();
                    broker.up(&[]);
                })
                .await;
            }
            BrokerFault::Hang(time) => {
                self.with_broker(|broker| broker.pause(true)).await;
                tokio::time::sleep(time).await;
                self.with_broker(|broker| broker.pause(false)).await;
            }
            BrokerFault::MemoryAlarm(time) => {
                let set = "vm_memory_monitor set_vm_memory_high_watermark";
                self.alarm(format!("{set} [0.00001]"), time, format!("{set} [{{absolute,1000000000}}]"))
                    .await;
            }
            BrokerFault::DiskAlarm(time) => {
                let set = "rabbit_disk_monitor set_disk_free_limit";
                self.alarm(format!("{set} [\"1000000GB\"]"), time, format!("{set} [\"50MB\"]")).await;
            }
        }
    }

    async fn alarm(&self, set: String, time: Duration, clear: String) {
        let said = self.with_broker(move |broker| broker.call(&set)).await;
        self.timeline.note(&format!("broker: alarm: {said:?}"));
        tokio::time::sleep(time).await;
        let said = self.with_broker(move |broker| broker.call(&clear)).await;
        self.timeline.note(&format!("broker: alarm cleared: {said:?}"));
        assert!(said.is_ok(), "the alarm cannot be cleared: {said:?}");
    }

    async fn with_broker<T: Send + 'static>(&self, act: impl FnOnce(&mut Broker) -> T + Send + 'static) -> T {
        let broker = self.broker.clone();
        let acted = tokio::task::spawn_blocking(move || {
            act(&mut broker.lock().unwrap_or_else(PoisonError::into_inner))
        });
        acted.await.expect("the broker can be handled")
    }
}
