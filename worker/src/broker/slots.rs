//! Slots: each takes one delivery at a time from a queue, on a channel of its own.
//!
//! What goes wrong on a channel concerns the one delivery that is on it. While a job runs, its slot keeps listening: the
//! end of the consumer or the channel means that the broker has taken the delivery back. The job goes on, since it is the
//! ledger that says whose it is; a delivery of it that comes again takes the place of the lost one ([`Hold`]).
//!
//! This module must not know what a delivery is about.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicGetOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use spark_runtime_protocol::answer::{self, answered, next};
use spark_runtime_protocol::rights::Doing;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use super::backoff::Backoff;
use super::message::Message;
use super::session::Session;
use super::{is_missing, words};
use crate::job::settle::Settled;
use crate::job::{Stop, StopReason, Stopper};

/// How long what waits in a queue may keep other things from beginning.
const FIRST_THINGS: Duration = Duration::from_secs(30);
/// How long the broker may take to open a channel and a consumer.
const OPENING: Duration = Duration::from_secs(30);

/// How far a worker has got in leaving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaving {
    /// It stays.
    No,
    /// No new jobs; running ones go on.
    Draining,
    /// Running jobs are given back.
    GivingBack,
    /// Running jobs are given back at once.
    Now,
}

/// A delivery and what belongs to it.
pub struct Assignment {
    /// What was delivered.
    pub message: Message,
    /// Tells the handler to stop.
    pub stop: Stop,
    /// The other end of `stop`, for whoever else has a reason.
    pub stopper: Stopper,
    /// What becomes of the delivery meanwhile.
    pub hold: Arc<Hold>,
}

/// Whether a delivery is still the slot's that took it.
#[derive(Debug, Default)]
pub struct Hold {
    lost: AtomicBool,
    replaced: Notify,
}

impl Hold {
    /// The broker has taken the delivery back; it will come again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// Another delivery has taken the place of the lost one: the slot may go on with something else.
    pub fn replace(&self) {
        self.replaced.notify_one();
    }
}

/// Slots beside those that a worker always has: one for each job that is looked after and no longer needs this machine.
#[derive(Debug)]
pub struct Lending {
    most: usize,
    lent: AtomicUsize,
    /// One permit for each slot that is to be made.
    wanted: Semaphore,
    /// One permit for each slot that is to go.
    surplus: Semaphore,
}

impl Lending {
    /// Lends at most so many.
    #[must_use]
    pub fn new(most: usize) -> Arc<Self> {
        let none = || Semaphore::new(0);
        Arc::new(Self { most, lent: AtomicUsize::new(0), wanted: none(), surplus: none() })
    }

    /// Has another slot made, until what this gives is dropped; nothing when there are as many as there may be.
    #[must_use]
    pub fn lend(self: &Arc<Self>) -> Option<Lent> {
        let more = |lent: usize| (lent < self.most).then_some(lent + 1);
        self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        match self.surplus.try_acquire() {
            // One that was to go stays.
            Ok(permit) => permit.forget(),
            Err(_) => self.wanted.add_permits(1),
        }
        Some(Lent(self.clone()))
    }
}

/// A slot that was lent.
#[derive(Debug)]
pub struct Lent(Arc<Lending>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.lent.fetch_sub(1, Ordering::Relaxed);
        match self.0.wanted.try_acquire() {
            // It was not made yet.
            Ok(permit) => permit.forget(),
            Err(_) => self.0.surplus.add_permits(1),
        }
    }
}

/// Why a slot's channel ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// Another one takes its place, unless the worker leaves.
    Renewed,
    /// There is one slot too many.
    Surplus,
}

/// Does what a delivery asks for.
pub trait Handler: Send + Sync + 'static {
    /// Handles one delivery until all is said about it, and tells what is to be done with it. Must heed the stop.
    fn handle(self: Arc<Self>, assignment: Assignment) -> impl Future<Output = Settled> + Send;
}

/// What all slots of a queue share.
pub struct Slots<H> {
    queue: &'static str,
    handler: Arc<H>,
    sessions: watch::Receiver<Option<Session>>,
    leaving: watch::Receiver<Leaving>,
    lending: Arc<Lending>,
    /// Raised to make idle slots build new channels.
    renewals: watch::Sender<u64>,
    idle: AtomicUsize,
    deliveries: AtomicU64,
}

impl<H: Handler> Slots<H> {
    /// Slots for a queue.
    #[must_use]
    pub fn new(
        queue: &'static str,
        handler: Arc<H>,
        sessions: watch::Receiver<Option<Session>>,
        leaving: watch::Receiver<Leaving>,
    ) -> Arc<Self> {
        Self::lending(queue, handler, sessions, leaving, Lending::new(0))
    }

    /// Slots for a queue, and more of them as they are lent.
    #[must_use]
    pub fn lending(
        queue: &'static str,
        handler: Arc<H>,
        sessions: watch::Receiver<Option<Session>>,
        leaving: watch::Receiver<Leaving>,
        lending: Arc<Lending>,
    ) -> Arc<Self> {
        let (renewals, _) = watch::channel(0);
        Arc::new(Self {
            queue,
            handler,
            sessions,
            leaving,
            lending,
            renewals,
            idle: AtomicUsize::new(0),
            deliveries: AtomicU64::new(0),
        })
    }

    /// Runs `count` slots until the worker leaves and every job is over.
    pub async fn serve(self: Arc<Self>, count: usize, watchdog: Duration) {
        let mut slots = JoinSet::new();
        for number in 0..count {
            slots.spawn(self.clone().slot(number));
        }
        let mut number = count;
        let watching = tokio::spawn(self.clone().watch_over(watchdog));
        loop {
            tokio::select! {
                ended = slots.join_next() => match ended {
                    None => break,
                    Some(Ok(())) => {}
                    Some(Err(error)) => {
                        tracing::error!(%error, queue = self.queue, "a slot broke; another one takes its place");
                        number += 1;
                        slots.spawn(self.clone().slot(number));
                    }
                },
                Ok(wanted) = self.lending.wanted.acquire() => {
                    wanted.forget();
                    number += 1;
                    slots.spawn(self.clone().slot(number));
                }
            }
        }
        watching.abort();
    }

    /// Handles what waits in the queue, one message after the other, until nothing waits any more or the worker leaves: for
    /// what has to be done before something else begins. That must begin all the same when this takes too long.
    pub async fn handle_waiting(&self) {
        let mut leaving = self.leaving.clone();
        tokio::select! {
            () = is_leaving(&mut leaving) => {}
            handled = tokio::time::timeout(FIRST_THINGS, self.keep_getting()) => {
                if handled.is_err() {
                    tracing::warn!(queue = self.queue, "what waits in the queue takes too long; other things begin");
                }
            }
        }
    }

    async fn keep_getting(&self) {
        let mut sessions = self.sessions.clone();
        let mut backoff = Backoff::default();
        loop {
            let session = sessions.wait_for(Option::is_some).await.ok().and_then(|session| session.clone());
            // Nobody connects any more.
            let Some(session) = session else { return };
            let Err(error) = self.get_all(&session).await else { return };
            let reason = words(&error, Doing::Consume);
            tracing::warn!(
                reason,
                queue = self.queue,
                "what waits in the queue could not be handled; trying again"
            );
            if is_missing(&error)
                && let Err(error) = session.declare().await
            {
                tracing::warn!(%error, queue = self.queue, "the queue is missing and cannot be declared");
            }
            backoff.wait().await;
        }
    }

    async fn get_all(&self, session: &Session) -> Result<(), lapin::Error> {
        let channel = answered(session.connection.create_channel()).await?;
        while let Some(got) =
            answered(channel.basic_get(self.queue.into(), BasicGetOptions::default())).await?
        {
            let Delivery { data, properties, acker, redelivered, .. } = got.delivery;
            let (stopper, stop) = Stopper::new();
            let message = Message::new(data, properties, redelivered);
            let assignment = Assignment { message, stop, stopper, hold: Arc::default() };
            if self.handler.clone().handle(assignment).await == Settled::Acknowledge {
                answered(acker.ack(BasicAckOptions::default())).await?;
            }
        }
        answered(channel.close(200, "nothing waits".into())).await
    }

    async fn slot(self: Arc<Self>, number: usize) {
        let mut sessions = self.sessions.clone();
        let mut leaving = self.leaving.clone();
        let mut backoff = Backoff::default();
        loop {
            let session = tokio::select! {
                biased;
                () = is_leaving(&mut leaving) => return,
                session = sessions.wait_for(Option::is_some) => match session {
                    Ok(session) => session.clone(),
                    // Nobody connects any more.
                    Err(_) => return,
                },
            };
            let Some(session) = session else { continue };
            let consumed = self.consume(&session, number, &mut leaving, &mut backoff).await;
            if let Ok(Closed::Surplus) = consumed {
                return;
            }
            if let Err(error) = consumed {
                let reason = words(&error, Doing::Consume);
                tracing::warn!(
                    reason,
                    slot = number,
                    queue = self.queue,
                    generation = session.generation,
                    "a slot lost its channel"
                );
                if is_missing(&error)
                    && let Err(error) = session.declare().await
                {
                    tracing::warn!(%error, queue = self.queue, "the queue is missing and cannot be declared");
                }
                backoff.wait().await;
            }
        }
    }

    /// Opens a channel and its consumer. When the future is dropped, the channel is closed: a consumer that the broker opens
    /// later would be handed a delivery that nobody reads.
    async fn open(&self, session: &Session, number: usize) -> Result<(Channel, Consumer), lapin::Error> {
        let channel = session.connection.create_channel().await?;
        channel.basic_qos(1, BasicQosOptions::default()).await?;
        let tag = format!("slot-{number}-{}", session.generation);
        let consumer = answer::consume(&channel, self.queue, &tag, FieldTable::default()).await?;
        Ok((channel, consumer))
    }

    /// Takes deliveries on one channel until it fails, is to be renewed, or the worker leaves.
    async fn consume(
        &self,
        session: &Session,
        number: usize,
        leaving: &mut watch::Receiver<Leaving>,
        backoff: &mut Backoff,
    ) -> Result<Closed, lapin::Error> {
        let opened = tokio::time::timeout(OPENING, self.open(session, number)).await;
        let Ok(opened) = opened else {
            tracing::warn!(slot = number, queue = self.queue, "the broker does not answer");
            return Ok(Closed::Renewed);
        };
        let (channel, mut consumer) = opened?;
        let mut renewals = self.renewals.subscribe();
        loop {
            let idle = Counted::new(&self.idle);
            let delivery = tokio::select! {
                biased;
                // Before a delivery: what has come by then is given back by `close`.
                () = is_leaving(leaving) => Err(Closed::Renewed),
                delivery = next(&mut consumer, &channel) => Ok(delivery),
                Ok(surplus) = self.lending.surplus.acquire() => {
                    surplus.forget();
                    Err(Closed::Surplus)
                }
                _ = renewals.changed() => Err(Closed::Renewed),
            };
            drop(idle);
            let delivery = match delivery {
                Ok(delivery) => delivery,
                Err(closed) => {
                    let done = self.close(&channel, &mut consumer, leaving).await;
                    // One that is to go goes, also when its channel breaks at that.
                    return if closed == Closed::Surplus { Ok(closed) } else { done.map(|()| closed) };
                }
            };
            let Some(delivery) = delivery else {
                // The broker cancelled the consumer: its queue is gone, or it has lost patience.
                tracing::warn!(slot = number, queue = self.queue, "the broker ended the consumer");
                backoff.wait().await;
                return Ok(Closed::Renewed);
            };
            let delivery = delivery?;
            backoff.succeeded();
            self.deliveries.fetch_add(1, Ordering::Relaxed);
            if !self.work(&channel, delivery, &mut consumer, leaving, false).await? {
                // Whatever it was, it must not turn into a storm.
                backoff.wait().await;
                return Ok(Closed::Renewed);
            }
        }
    }

    /// Stops consuming; a delivery that came in the same moment is given back.
    async fn close(
        &self,
        channel: &Channel,
        consumer: &mut Consumer,
        leaving: &mut watch::Receiver<Leaving>,
    ) -> Result<(), lapin::Error> {
        answered(channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await?;
        while let Some(delivery) = next(consumer, channel).await {
            self.work(channel, delivery?, consumer, leaving, true).await?;
        }
        answered(channel.close(200, "leaving".into())).await
    }

    /// Handles one delivery; one that came too late is given back at once. Gives whether the channel is still good.
    async fn work(
        &self,
        channel: &Channel,
        delivery: Delivery,
        consumer: &mut Consumer,
        leaving: &mut watch::Receiver<Leaving>,
        too_late: bool,
    ) -> Result<bool, lapin::Error> {
        let Delivery { data, properties, acker, redelivered, .. } = delivery;
        let (stopper, stop) = Stopper::new();
        let hold = Arc::new(Hold::default());
        // Once the consumer is cancelled by ourselves its end says nothing about the delivery.
        let mut channel_is_good = !too_late;
        if too_late {
            stopper.stop(StopReason::GiveBackNow);
        }
        let mut heard = *leaving.borrow_and_update();
        warn_of_leaving(&stopper, heard);
        let assignment = Assignment {
            message: Message::new(data, properties, redelivered),
            stop,
            stopper: stopper.clone(),
            hold: hold.clone(),
        };
        // A task of its own: it goes on when this slot is replaced.
        let mut handled = tokio::spawn(self.handler.clone().handle(assignment));
        let settled = loop {
            tokio::select! {
                biased;
                settled = &mut handled => break settled.unwrap_or_else(|error| {
                    tracing::error!(%error, queue = self.queue, "the handling of a delivery broke off");
                    Settled::Leave
                }),
                lost = next(consumer, channel), if channel_is_good => {
                    // With a prefetch of one no delivery can come here: this is the consumer's end.
                    let reason = match lost {
                        Some(Err(error)) => error.to_string(),
                        _ => "the broker ended the consumer".to_owned(),
                    };
                    tracing::warn!(reason, "a delivery is lost; its job goes on");
                    hold.lost.store(true, Ordering::SeqCst);
                    channel_is_good = false;
                }
                () = hold.replaced.notified(), if !channel_is_good => return Ok(false),
                changed = leaving.changed(), if heard < Leaving::Now => {
                    heard = *leaving.borrow_and_update();
                    // Nobody can tell us to leave any more: do it.
                    if changed.is_err() {
                        heard = Leaving::Now;
                    }
                    warn_of_leaving(&stopper, heard);
                }
            }
        };
        match settled {
            // It will come again, and find that all is said.
            Settled::Acknowledge if hold.is_lost() => Ok(false),
            Settled::Acknowledge => {
                if heard > Leaving::No && channel_is_good {
                    // An acknowledgement asks for the next delivery, and there is to be none.
                    answered(channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await?;
                }
                let acknowledged = answered(acker.ack(BasicAckOptions::default())).await?;
                if !acknowledged {
                    tracing::warn!(
                        "a settled delivery was lost before it could be acknowledged; its job comes again"
                    );
                }
                Ok(channel_is_good && acknowledged)
            }
            Settled::Leave => Ok(false),
        }
    }

    /// Looks for the state in which everything seems well and nothing happens: connected, slots idle, messages ready,
    /// and no delivery for a whole interval. Idle slots get new channels then.
    async fn watch_over(self: Arc<Self>, interval: Duration) {
        let mut suspicious_since: Option<(u64, Instant)> = None;
        loop {
            tokio::time::sleep(interval / 2).await;
            let deliveries = self.deliveries.load(Ordering::Relaxed);
            let session = self.sessions.borrow().clone();
            let idle = self.idle.load(Ordering::Relaxed);
            let ready = match session {
                Some(session) if idle > 0 => self.ready(&session).await.unwrap_or(0),
                _ => 0,
            };
            if ready == 0 {
                suspicious_since = None;
                continue;
            }
            match suspicious_since {
                Some((then, since)) if then == deliveries && since.elapsed() * 2 >= interval => {
                    tracing::warn!(
                        ready,
                        idle,
                        queue = self.queue,
                        "jobs are ready and none is delivered; new channels are opened"
                    );
                    self.renewals.send_modify(|count| *count += 1);
                    suspicious_since = None;
                }
                Some((then, _)) if then == deliveries => {}
                _ => suspicious_since = Some((deliveries, Instant::now())),
            }
        }
    }

    async fn ready(&self, session: &Session) -> Result<u32, lapin::Error> {
        let channel = answered(session.connection.create_channel()).await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue =
            answered(channel.queue_declare(self.queue.into(), options, FieldTable::default())).await?;
        let ready = queue.message_count();
        answered(channel.close(200, "asked".into())).await?;
        Ok(ready)
    }
}

async fn is_leaving(leaving: &mut watch::Receiver<Leaving>) {
    // Nobody can tell us to leave any more: that is as good as being told.
    let _ = leaving.wait_for(|leaving| *leaving > Leaving::No).await;
}

fn warn_of_leaving(stopper: &Stopper, leaving: Leaving) {
    match leaving {
        Leaving::No | Leaving::Draining => {}
        Leaving::GivingBack => stopper.stop(StopReason::GiveBack),
        Leaving::Now => stopper.stop(StopReason::GiveBackNow),
    }
}

/// Counts something for as long as it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
