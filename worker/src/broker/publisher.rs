//! Publishing so that nothing is lost: every message is confirmed by the broker, or published again.
//!
//! Messages go through a few *lanes*. A lane has one confirm channel at a time, out of a pool; it publishes in order
//! and does not wait for one confirmation before the next message, so that a slow disk costs latency and not throughput.
//! When a channel fails, everything on it that was not confirmed is published again on the next one, in the same order.
//!
//! This module must not know what the messages mean.

use std::collections::VecDeque;
use std::future::pending;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{self, Object, Pool, RecycleResult};
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::message::{BasicReturnMessage, Delivery};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPErrorKind;
use lapin::types::ShortString;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ErrorKind, Event as Happening, PublisherConfirm,
};
use spark_runtime_protocol::answer::answered;
use spark_runtime_protocol::connect::{ConnectError, Endpoint};
use spark_runtime_protocol::event::{CONTENT_TYPE, Event, EventKind, FailureClass};
use spark_runtime_protocol::rights::Doing;
use spark_runtime_protocol::topology::{
    CHECKPOINTS_EXCHANGE, DEAD_EXCHANGE, DELAY_EXCHANGE, HISTORY_EXCHANGE, JOBS_EXCHANGE, JOBS_KEY,
    LEDGER_EXCHANGE, RESULTS_EXCHANGE, delay_queue,
};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::ledger::record::Position;
use super::message::{Message, Seen};
use super::{is_missing, words};
use crate::job::Announce;
use crate::spark::Awaited;

/// Messages of one key go through one lane; more lanes than a broker has processors for us bring nothing.
const LANES: usize = 2;
/// The ledger has a lane of its own, so that no large event is in the way of a renewal.
const LEDGER_LANE: usize = LANES;
/// And so have checkpoints of it, which are large and in no hurry.
const CHECKPOINT_LANE: usize = LANES + 1;
/// The exchange that hands a message to the queue whose name is the routing key.
const DEFAULT_EXCHANGE: &str = "";
/// How many messages of a lane may wait for their confirmation.
const IN_FLIGHT: usize = 512;
/// How long a message waits that the broker would not take.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// How often an event is offered to a subscriber whose queue refuses it. All others have it by then, each time again.
const EVENT_OFFERS: u32 = 10;

/// A channel on which the broker confirms what it is given.
struct ConfirmChannel {
    channel: Channel,
    connection: Arc<Connection>,
}

/// Opens confirm channels on one connection, which is opened again when it is gone.
struct ConfirmChannels {
    endpoint: Endpoint,
    name: String,
    connection: Mutex<Option<Arc<Connection>>>,
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
enum ChannelError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("a channel could not be opened: {0}")]
    Broker(#[from] lapin::Error),
}

impl managed::Manager for ConfirmChannels {
    type Type = ConfirmChannel;
    type Error = ChannelError;

    async fn create(&self) -> Result<ConfirmChannel, ChannelError> {
        let mut current = self.connection.lock().await;
        let connection = match &*current {
            Some(connection) if connection.status().connected() => connection.clone(),
            _ => {
                let connection = Arc::new(self.endpoint.connect(&self.name).await?);
                tracing::info!(endpoint = %self.endpoint, "connected for publishing");
                tokio::spawn(tell_of_alarms(connection.events_listener()));
                *current = Some(connection.clone());
                connection
            }
        };
        drop(current);
        let channel = answered(connection.create_channel()).await?;
        answered(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(ConfirmChannel { channel, connection })
    }

    async fn recycle(
        &self,
        channel: &mut ConfirmChannel,
        _: &managed::Metrics,
    ) -> RecycleResult<ChannelError> {
        if channel.channel.status().connected() {
            return Ok(());
        }
        Err(managed::RecycleError::message("the channel is closed"))
    }
}

/// Says when the broker takes no more messages, and when it does again. It says so to those alone that publish.
async fn tell_of_alarms(events: impl Stream<Item = Happening>) {
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Happening::ConnectionBlocked(reason) => tracing::warn!(
                reason,
                "the broker is short of memory or disk and takes no messages; jobs go on, and are told when it does"
            ),
            Happening::ConnectionUnblocked => tracing::info!("the broker takes messages again"),
            _ => {}
        }
    }
}

/// A message on its way.
#[derive(Default)]
struct Letter {
    exchange: &'static str,
    key: String,
    /// It must reach a queue; an event that nobody listens to need not.
    mandatory: bool,
    payload: Vec<u8>,
    properties: BasicProperties,
    /// How often the broker would not take it.
    refusals: u32,
    /// Told when the broker has it. When nobody listens any more, the message is not wanted any more.
    confirmed: Option<oneshot::Sender<()>>,
    /// Somebody else has said where it goes: it is not published again when the broker has ended the connection over something,
    /// which a name that RabbitMQ cannot read makes it do.
    is_for_a_stranger: bool,
}

impl Letter {
    fn is_wanted(&self) -> bool {
        self.confirmed.as_ref().is_none_or(|confirmed| !confirmed.is_closed())
    }
}

/// Publishes messages. Cheap to clone; the last clone that goes lets the lanes run empty.
#[derive(Clone)]
pub struct Publisher {
    lanes: Arc<Vec<mpsc::UnboundedSender<Letter>>>,
    missing: Arc<Notify>,
}

/// What was handed to a publisher that publishes nothing.
#[cfg(test)]
pub(super) struct Unpublished(mpsc::UnboundedReceiver<Letter>);

#[cfg(test)]
impl Unpublished {
    /// The next message, when there is one.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        self.0.try_recv().ok().map(|letter| letter.payload)
    }
}

/// The lanes at work.
pub struct Lanes(JoinSet<()>);

impl Lanes {
    /// Waits until everything that was handed over is confirmed and every [`Publisher`] is gone; at most `patience`.
    pub async fn finish(mut self, patience: Duration) {
        let all = async { while self.0.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!("some events could not be published before the end");
        }
    }
}

impl Publisher {
    /// A publisher whose connection the broker lists under `name`. It connects when it first has something to publish;
    /// a confirmation that takes longer than `patience` counts as lost.
    ///
    /// # Errors
    /// When the pool cannot be made, which is a mistake of its settings.
    pub fn new(
        endpoint: &Endpoint,
        name: String,
        patience: Duration,
    ) -> Result<(Self, Lanes), managed::BuildError> {
        let channels = ConfirmChannels { endpoint: endpoint.clone(), name, connection: Mutex::new(None) };
        let pool = Pool::builder(channels).max_size(LANES + 2).build()?;
        let missing = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let lanes = (0..=CHECKPOINT_LANE).map(|_| {
            let (sender, letters) = mpsc::unbounded_channel();
            let again = sender.downgrade();
            let (pool, missing) = (pool.clone(), missing.clone());
            tasks.spawn(Lane { pool, letters, again, missing, unsent: VecDeque::new(), patience }.work());
            sender
        });
        let lanes = Arc::new(lanes.collect());
        Ok((Self { lanes, missing }, Lanes(tasks)))
    }

    /// Told whenever a message found its exchange, or every queue behind it, missing. The message is published again
    /// until they are there.
    #[must_use]
    pub fn missing(&self) -> Arc<Notify> {
        self.missing.clone()
    }

    /// One that publishes nothing, and what it was to publish.
    #[cfg(test)]
    pub(super) fn that_keeps() -> (Self, Unpublished) {
        let (sender, letters) = mpsc::unbounded_channel();
        let lanes = Arc::new(vec![sender; CHECKPOINT_LANE + 1]);
        (Self { lanes, missing: Arc::default() }, Unpublished(letters))
    }

    fn hand_to(&self, lane: usize, letter: Letter) {
        // A lane ends only when every sender is gone, and this is one.
        let _ = self.lanes[lane].send(letter);
    }

    /// Appends to the ledger, sooner or later; in order as long as the channel lasts.
    pub fn append(&self, entry: Vec<u8>) {
        self.hand_to(LEDGER_LANE, ledger_letter(entry, None));
    }

    /// Appends to the ledger and tells when the broker has it.
    pub fn append_and_tell(&self, entry: Vec<u8>) -> oneshot::Receiver<()> {
        let (confirmed, confirmation) = oneshot::channel();
        self.hand_to(LEDGER_LANE, ledger_letter(entry, Some(confirmed)));
        confirmation
    }

    /// Writes a part of a checkpoint, and waits until the broker has it.
    pub async fn checkpoint(&self, part: Vec<u8>) {
        let letter = Letter { exchange: CHECKPOINTS_EXCHANGE, ..ledger_letter(part, None) };
        self.confirmed(CHECKPOINT_LANE, letter).await;
    }

    /// Publishes and waits for the confirmation, for ever if need be. Dropping the future takes the message back if it
    /// is not on its way yet.
    async fn publish(
        &self,
        exchange: &'static str,
        key: String,
        payload: Vec<u8>,
        properties: BasicProperties,
    ) {
        let lane = lane_of(&key);
        let letter = Letter { exchange, key, mandatory: true, payload, properties, ..Letter::default() };
        self.confirmed(lane, letter).await;
    }

    /// Offers a copy of a job to workers again, for the attempt with this number.
    pub async fn give_back(&self, message: &Message, attempt: u32) {
        let properties = message.for_attempt(attempt);
        self.publish(JOBS_EXCHANGE, JOBS_KEY.to_owned(), message.body.clone(), properties).await;
    }

    /// Offers a copy of a job that nobody here has claimed to workers again.
    pub async fn give_back_unclaimed(&self, message: &Message) {
        let properties = message.for_first_attempt();
        self.publish(JOBS_EXCHANGE, JOBS_KEY.to_owned(), message.body.clone(), properties).await;
    }

    /// Offers a copy of a job to workers again after `delay`, which has to be one of the topology's.
    pub async fn delay(&self, message: &Message, delay: Duration, attempt: u32) {
        let properties = message.for_attempt(attempt);
        self.publish(DELAY_EXCHANGE, delay_queue(delay), message.body.clone(), properties).await;
    }

    /// Offers a copy of a job for which there is no runtime here to other workers after `delay`, which has to be one of the
    /// topology's. By then it will have been offered for `waited`.
    pub async fn offer_to_others(&self, message: &Message, delay: Duration, waited: Duration, attempt: u32) {
        let properties = message.for_others(waited, attempt);
        self.publish(DELAY_EXCHANGE, delay_queue(delay), message.body.clone(), properties).await;
    }

    /// Offers a copy of a job that somebody has to workers again after `lease`, with what was seen of its owner.
    pub async fn look_again(&self, message: &Message, lease: Duration, seen: &Seen) {
        let properties = message.for_another_look(seen);
        self.publish(DELAY_EXCHANGE, delay_queue(lease), message.body.clone(), properties).await;
    }

    /// Puts a copy of a job into the dead queue, with what is to be said about it.
    pub async fn bury(&self, message: &Message, burial: &Burial<'_>) {
        let Burial { class, words, worker, claim, attempt } = burial;
        let properties = message.for_burial(class.word(), words, worker, *claim, *attempt);
        self.publish(DEAD_EXCHANGE, String::new(), message.body.clone(), properties).await;
    }

    /// Writes an event into the history and waits until the broker has it.
    pub async fn record(&self, announcement: &Announcement) {
        let letter = announcement.letter(HISTORY_EXCHANGE, true);
        self.confirmed(lane_of(&announcement.key), letter).await;
    }

    /// Publishes an event that was made before and waits until the broker has it.
    pub async fn announce_again(&self, announcement: &Announcement) {
        let letter = announcement.letter(RESULTS_EXCHANGE, false);
        self.confirmed(lane_of(&announcement.job), letter).await;
    }

    /// Answers somebody who asked, at the queue that he named; he may be gone.
    pub async fn answer(&self, queue: &str, correlation: Option<&str>, payload: Vec<u8>) {
        let mut properties = BasicProperties::default().with_content_type("application/json".into());
        if let Some(short) = correlation.and_then(|text| ShortString::try_new(text).ok()) {
            properties = properties.with_correlation_id(short);
        }
        let letter = Letter {
            exchange: DEFAULT_EXCHANGE,
            key: queue.to_owned(),
            payload,
            properties,
            is_for_a_stranger: true,
            ..Letter::default()
        };
        self.confirmed(lane_of(queue), letter).await;
    }

    async fn confirmed(&self, lane: usize, mut letter: Letter) {
        let (confirmed, confirmation) = oneshot::channel();
        letter.confirmed = Some(confirmed);
        self.hand_to(lane, letter);
        if confirmation.await.is_err() {
            // The runtime is going down. Nobody may take this for a confirmation.
            pending::<()>().await;
        }
    }
}

/// What is to be said about a dead job.
#[derive(Debug)]
pub struct Burial<'a> {
    /// The class of its failure.
    pub class: FailureClass,
    /// The failure in words.
    pub words: &'a str,
    /// Who gives it up.
    pub worker: &'a str,
    /// The claim by which it was settled, when it was.
    pub claim: Option<Position>,
    /// The attempt that was the last.
    pub attempt: u32,
}

/// An event in its wire form: published again, it is the same to the last byte.
#[derive(Debug, Clone)]
pub struct Announcement {
    id: String,
    job: String,
    key: String,
    payload: Vec<u8>,
    properties: BasicProperties,
}

impl Announcement {
    /// The wire form of an event.
    #[must_use]
    pub fn new(kind: EventKind, event: &Event) -> Self {
        let Letter { key, payload, properties, .. } = event_letter(kind, event);
        Self { id: event.id.clone(), job: event.subject.to_string(), key, payload, properties }
    }

    /// An event as the history has it.
    #[must_use]
    pub fn of_delivery(delivery: &Delivery) -> Option<Self> {
        let event: Event = serde_json::from_slice(&delivery.data).ok()?;
        let kind = event.kind()?;
        Some(Self {
            id: event.id.clone(),
            job: event.subject.to_string(),
            key: Event::routing_key(kind, &event.subject),
            payload: delivery.data.clone(),
            properties: event_properties(&event),
        })
    }

    /// The event's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// About how many bytes it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.payload.len() + 512
    }

    /// The event itself.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        serde_json::from_slice(&self.payload).ok()
    }

    fn letter(&self, exchange: &'static str, mandatory: bool) -> Letter {
        Letter {
            exchange,
            key: self.key.clone(),
            mandatory,
            payload: self.payload.clone(),
            properties: self.properties.clone(),
            ..Letter::default()
        }
    }
}

fn lane_of(key: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0)
}

fn ledger_letter(payload: Vec<u8>, confirmed: Option<oneshot::Sender<()>>) -> Letter {
    Letter {
        exchange: LEDGER_EXCHANGE,
        mandatory: true,
        payload,
        properties: BasicProperties::default().with_delivery_mode(2),
        confirmed,
        ..Letter::default()
    }
}

fn event_letter(kind: EventKind, event: &Event) -> Letter {
    let payload = serde_json::to_vec(event).unwrap_or_else(|error| {
        tracing::error!(%error, event = event.id, "an event could not be written");
        Vec::new()
    });
    Letter {
        exchange: RESULTS_EXCHANGE,
        key: Event::routing_key(kind, &event.subject),
        payload,
        properties: event_properties(event),
        ..Letter::default()
    }
}

fn event_properties(event: &Event) -> BasicProperties {
    let mut properties = BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(2)
        .with_timestamp(u64::try_from(event.time.as_second()).unwrap_or(0));
    // Those of an event out of the history may be of any length.
    let short = |text: &str| ShortString::try_new(text).ok();
    if let Some(id) = short(&event.id) {
        properties = properties.with_message_id(id);
    }
    if let Some(kind) = short(&event.cloud_event_type) {
        properties = properties.with_type(kind);
    }
    if let Some(correlation) = event.data.correlation_id.as_deref().and_then(short) {
        properties = properties.with_correlation_id(correlation);
    }
    properties
}

impl Announce for Publisher {
    fn announce(&self, kind: EventKind, event: Event) {
        self.hand_to(lane_of(event.subject.as_str()), event_letter(kind, &event));
    }

    fn announce_and_wait(&self, kind: EventKind, event: Event) -> Awaited<'_, ()> {
        let letter = event_letter(kind, &event);
        Box::pin(async move { self.confirmed(lane_of(event.subject.as_str()), letter).await })
    }
}

struct Lane {
    pool: Pool<ConfirmChannels>,
    letters: mpsc::UnboundedReceiver<Letter>,
    /// The way back into the lane, for what the broker would not take.
    again: mpsc::WeakUnboundedSender<Letter>,
    /// Told that something is missing.
    missing: Arc<Notify>,
    /// What is to be published next, in order.
    unsent: VecDeque<Letter>,
    patience: Duration,
}

/// Why a lane needs another channel.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error("{}", words(.0, Doing::Publish))]
    Broker(#[from] lapin::Error),
    #[error("the broker did not confirm within {} s", .0.as_secs())]
    Unconfirmed(Duration),
}

/// A message that was published and not yet confirmed.
struct Pending {
    letter: Letter,
    confirm: PublisherConfirm,
    /// Why no queue took it, when the broker has said so.
    returned: Option<String>,
}

/// A message of which the broker has said what became of it.
struct Confirmed {
    letter: Letter,
    /// It was taken, or returned.
    is_taken: bool,
    /// Why no queue took it.
    returned: Option<String>,
}

impl Lane {
    async fn work(mut self) {
        let mut backoff = Backoff::default();
        loop {
            if self.unsent.is_empty() {
                match self.letters.recv().await {
                    Some(letter) => self.unsent.push_back(letter),
                    None => return,
                }
            }
            let channel = match self.pool.get().await {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::warn!(%error, "events wait for a connection to the broker");
                    backoff.wait().await;
                    continue;
                }
            };
            match self.publish_on(&channel, &mut backoff).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, waiting = self.unsent.len(), "messages are published again");
                    // Whatever it was, this channel is not trusted with another message.
                    drop(Object::take(channel));
                    backoff.wait().await;
                }
            }
        }
    }

    /// Publishes on one channel until there is nothing more to come, or it fails: then everything that was not
    /// confirmed is unsent again.
    async fn publish_on(&mut self, channel: &ConfirmChannel, backoff: &mut Backoff) -> Result<(), LaneError> {
        let mut pending: VecDeque<Pending> = VecDeque::new();
        let ended = self.exchange_with(channel, &mut pending, backoff).await;
        if let Err(LaneError::Broker(error)) = &ended
            && let ErrorKind::ProtocolError(amqp) = error.kind()
            && matches!(amqp.kind(), AMQPErrorKind::Soft(_))
            && let Some(Pending { letter, .. }) = pending.pop_front()
        {
            // The broker closed the channel for something that was published on it, most likely the oldest message that it
            // has not confirmed: an exchange is gone, or the message is more than the broker takes. Others go on. What ends the
            // whole connection is no message's fault that could be told.
            if is_missing(error) {
                self.missing.notify_one();
            }
            self.later(letter, &words(error, Doing::Publish));
        }
        let is_ended_by_broker = matches!(&ended, Err(LaneError::Broker(error)) if is_hard(error));
        for Pending { letter, .. } in pending.into_iter().rev() {
            if is_ended_by_broker && letter.is_for_a_stranger {
                tracing::warn!(
                    queue = letter.key,
                    "an answer is given up: the broker ended the connection it was sent on"
                );
            } else {
                self.unsent.push_front(letter);
            }
        }
        ended
    }

    async fn exchange_with(
        &mut self,
        channel: &ConfirmChannel,
        pending: &mut VecDeque<Pending>,
        backoff: &mut Backoff,
    ) -> Result<(), LaneError> {
        // A confirmation is late when nothing has moved for so long; while the broker blocks publishers, nothing does.
        let mut moved = Instant::now();
        let mut is_over = false;
        // Why the channel failed is told by what waits for its confirmation, if anything does.
        let mut failure: Option<lapin::Error> = None;
        loop {
            while failure.is_none()
                && pending.len() < IN_FLIGHT
                && let Some(letter) = self.unsent.pop_front()
            {
                if !letter.is_wanted() {
                    continue;
                }
                let published = publish(&channel.channel, &letter).await;
                moved = Instant::now();
                match published {
                    Ok(confirm) => pending.push_back(Pending { letter, confirm, returned: None }),
                    Err(error) => {
                        self.unsent.push_front(letter);
                        failure = Some(error);
                    }
                }
            }
            if pending.is_empty() {
                if let Some(error) = failure {
                    return Err(error.into());
                }
                match self.letters.recv().await {
                    Some(letter) => self.unsent.push_back(letter),
                    None => return Ok(()),
                }
                continue;
            }
            let deadline = moved + self.patience;
            let first = tokio::select! {
                biased;
                first = first_confirmation(pending) => first?,
                letter = self.letters.recv(), if !is_over && self.unsent.len() < IN_FLIGHT => {
                    match letter {
                        Some(letter) => self.unsent.push_back(letter),
                        None => is_over = true,
                    }
                    continue;
                }
                () = tokio::time::sleep_until(deadline) => {
                    // A broker that blocks publishers confirms later; another channel would have to wait as well.
                    if channel.connection.status().blocked() {
                        moved = Instant::now();
                        continue;
                    }
                    return Err(LaneError::Unconfirmed(self.patience));
                }
            };
            moved = Instant::now();
            let (confirmed, failed) = take_confirmed(channel, pending, first);
            for confirmed in confirmed {
                self.heed(confirmed, backoff);
            }
            failed?;
        }
    }

    /// Tells who waits for a message, or publishes it again after a while.
    fn heed(&self, confirmed: Confirmed, backoff: &mut Backoff) {
        let Confirmed { letter, is_taken, returned } = confirmed;
        if let Some(reason) = returned {
            self.missing.notify_one();
            self.later(letter, &format!("no queue is there for it ({reason})"));
        } else if is_taken {
            backoff.succeeded();
            if let Some(confirmed) = letter.confirmed {
                // Nobody may be waiting any more.
                let _ = confirmed.send(());
            }
        } else {
            self.later(letter, "the broker refused it; a queue behind the exchange may be full");
        }
    }

    /// Publishes again, after a while, what the broker would not take; other messages do not wait for it.
    fn later(&self, mut letter: Letter, reason: &str) {
        letter.refusals += 1;
        if !letter.mandatory && letter.refusals >= EVENT_OFFERS {
            tracing::error!(exchange = letter.exchange, key = letter.key, reason, "an event is given up");
            if let Some(confirmed) = letter.confirmed {
                // A subscriber that takes nothing must not keep the job's message, and its slot, for ever.
                let _ = confirmed.send(());
            }
            return;
        }
        tracing::warn!(exchange = letter.exchange, key = letter.key, reason, "a message is published again");
        let again = self.again.clone();
        tokio::spawn(async move {
            tokio::time::sleep(REFUSED_PAUSE).await;
            if letter.is_wanted()
                && let Some(lane) = again.upgrade()
            {
                // The lane lives as long as there is a sender, and this is one.
                let _ = lane.send(letter);
            }
        });
    }
}

/// Whether it is the broker that ended the whole connection.
fn is_hard(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(amqp) if matches!(amqp.kind(), AMQPErrorKind::Hard(_)))
}

/// What the broker says of the message that has waited longest for it; there has to be one.
async fn first_confirmation(unconfirmed: &mut VecDeque<Pending>) -> lapin::Result<Confirmation> {
    match unconfirmed.front_mut() {
        Some(oldest) => (&mut oldest.confirm).await,
        None => pending().await,
    }
}

/// Takes all that is confirmed, now that the first one is, and tells whether a confirmation failed.
///
/// The broker returns a message before it confirms it, and says which one by the message itself alone. `lapin` hands it to
/// whichever confirmation comes next, and one answer of the broker's may confirm many messages, in an order of `lapin`'s. So
/// what was returned is looked for among all of them; and nobody is told that a message was taken before everything that was
/// confirmed together with it, or before, has been looked at.
fn take_confirmed(
    channel: &ConfirmChannel,
    unconfirmed: &mut VecDeque<Pending>,
    first: Confirmation,
) -> (Vec<Confirmed>, lapin::Result<()>) {
    let mut returns = Vec::new();
    let mut confirmed = Vec::new();
    let mut failed = Ok(());
    let mut take = |Pending { letter, returned, .. }, confirmation| {
        let (is_taken, message) = match confirmation {
            Confirmation::Ack(message) => (true, message),
            Confirmation::Nack(message) => (false, message),
            Confirmation::NotRequested => (false, None),
        };
        returns.extend(message);
        confirmed.push(Confirmed { letter, is_taken, returned });
    };
    if let Some(oldest) = unconfirmed.pop_front() {
        take(oldest, first);
    }
    loop {
        wait_for_the_whole_answer(&channel.channel);
        let before = unconfirmed.len();
        for _ in 0..before {
            let Some(mut next) = unconfirmed.pop_front() else { break };
            match (&mut next.confirm).now_or_never() {
                Some(Ok(confirmation)) => take(next, confirmation),
                Some(Err(error)) => {
                    failed = failed.and(Err(error));
                    unconfirmed.push_back(next);
                }
                None => unconfirmed.push_back(next),
            }
        }
        if unconfirmed.len() == before {
            break;
        }
    }
    for message in returns {
        note_return(&message, &mut confirmed, unconfirmed);
    }
    (confirmed, failed)
}

/// Waits until the connection is through with what the broker has just said: it takes one message after the other for
/// confirmed, under a lock.
fn wait_for_the_whole_answer(channel: &Channel) {
    // This takes the same lock at first. It is not waited for what it is for.
    let _ = channel.wait_for_confirms().now_or_never();
}

/// Notes at the message that was returned why it was.
fn note_return(
    message: &BasicReturnMessage,
    confirmed: &mut [Confirmed],
    unconfirmed: &mut VecDeque<Pending>,
) {
    let is_it = |letter: &Letter| {
        letter.mandatory
            && letter.exchange == message.exchange.as_str()
            && letter.key == message.routing_key.as_str()
            && letter.payload == message.data
    };
    let among_confirmed = confirmed.iter_mut().map(|one| (&one.letter, &mut one.returned));
    let among_unconfirmed = unconfirmed.iter_mut().map(|one| (&one.letter, &mut one.returned));
    let found = among_confirmed
        .chain(among_unconfirmed)
        .find(|(letter, returned)| returned.is_none() && is_it(letter));
    match found {
        Some((_, returned)) => *returned = Some(message.reply_text.to_string()),
        None => tracing::error!(
            exchange = message.exchange.as_str(),
            key = message.routing_key.as_str(),
            "the broker returned a message that was not sent"
        ),
    }
}

async fn publish(channel: &Channel, letter: &Letter) -> Result<PublisherConfirm, lapin::Error> {
    let options = BasicPublishOptions { mandatory: letter.mandatory, ..Default::default() };
    channel
        .basic_publish(
            letter.exchange.into(),
            letter.key.as_str().into(),
            options,
            &letter.payload,
            letter.properties.clone(),
        )
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(key: &str, body: &str) -> BasicReturnMessage {
        let delivery = Delivery::mock(0, DELAY_EXCHANGE.into(), key.into(), false, body.into());
        BasicReturnMessage { delivery, reply_code: 312, reply_text: "NO_ROUTE".into() }
    }

    fn confirmed(key: &str, body: &str, mandatory: bool) -> Confirmed {
        let (key, payload) = (key.to_owned(), body.as_bytes().to_vec());
        let letter = Letter { exchange: DELAY_EXCHANGE, key, payload, mandatory, ..Letter::default() };
        Confirmed { letter, is_taken: true, returned: None }
    }

    #[test]
    fn a_message_that_comes_back_is_known_by_where_it_went_and_what_it_said() {
        let mut all = [
            confirmed("a", "1", false),
            confirmed("b", "1", true),
            confirmed("a", "2", true),
            confirmed("a", "1", true),
            confirmed("a", "1", true),
        ];
        let mut found = |message: &BasicReturnMessage| {
            note_return(message, &mut all, &mut VecDeque::new());
            all.iter().map(|one| one.returned.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(found(&returned("a", "3")), [false; 5]);
        assert_eq!(found(&returned("a", "1")), [false, false, false, true, false]);
        assert_eq!(found(&returned("a", "1")), [false, false, false, true, true]);
        assert_eq!(found(&returned("b", "1")), [false, true, false, true, true]);
    }
}
