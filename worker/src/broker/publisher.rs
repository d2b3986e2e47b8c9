//! Publishing so that nothing is lost: every message is confirmed by the broker, or published again.
//!
//! Messages go through a few *lanes*. A lane has one confirm channel at a time, out of a pool; it publishes in order
//! and does not wait for one confirmation before the next message, so that a slow disk costs latency and not throughput.
//! When a channel fails, everything on it that was not confirmed is published again on the next one, in the same order.
//!
//! This module must not know what the messages mean.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{self, Object, Pool, RecycleResult};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ErrorKind, PublisherConfirm};
use spark_runtime_protocol::connect::{ConnectError, Endpoint};
use spark_runtime_protocol::event::{CONTENT_TYPE, Event, EventKind, FailureClass};
use spark_runtime_protocol::topology::{
    DEAD_EXCHANGE, DELAY_EXCHANGE, JOBS_EXCHANGE, JOBS_KEY, RESULTS_EXCHANGE, delay_queue,
};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::message::Message;
use crate::job::Announce;
use crate::spark::Awaited;

/// Messages of one key go through one lane; more lanes than a broker has processors for us bring nothing.
const LANES: usize = 2;
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
                *current = Some(connection.clone());
                connection
            }
        };
        drop(current);
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
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

/// A message on its way.
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
        let pool = Pool::builder(channels).max_size(LANES).build()?;
        let mut tasks = JoinSet::new();
        let lanes = (0..LANES).map(|_| {
            let (sender, letters) = mpsc::unbounded_channel();
            let again = sender.downgrade();
            tasks
                .spawn(Lane { pool: pool.clone(), letters, again, unsent: VecDeque::new(), patience }.work());
            sender
        });
        let lanes = Arc::new(lanes.collect());
        Ok((Self { lanes }, Lanes(tasks)))
    }

    fn hand_over(&self, lane_key: &str, letter: Letter) {
        let mut hasher = DefaultHasher::new();
        lane_key.hash(&mut hasher);
        let lane = usize::try_from(hasher.finish() % LANES as u64).unwrap_or(0);
        // A lane ends only when every sender is gone, and this is one.
        let _ = self.lanes[lane].send(letter);
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
        let (confirmed, confirmation) = oneshot::channel();
        let lane_key = key.clone();
        let letter = Letter {
            exchange,
            key,
            mandatory: true,
            payload,
            properties,
            refusals: 0,
            confirmed: Some(confirmed),
        };
        self.hand_over(&lane_key, letter);
        if confirmation.await.is_err() {
            // The runtime is going down. Nobody may take this for a confirmation.
            std::future::pending::<()>().await;
        }
    }

    /// Offers a copy of a job to workers again, without counting the attempt as failed.
    pub async fn give_back(&self, message: &Message) {
        let properties = message.for_next_attempt(true);
        self.publish(JOBS_EXCHANGE, JOBS_KEY.to_owned(), message.body.clone(), properties).await;
    }

    /// Offers a copy of a job that came back to workers again: the attempt that it came back from counts as failed. A
    /// copy counts once, however often the broker handed the original around.
    pub async fn count_as_lost(&self, message: &Message) {
        let properties = message.for_next_attempt(false);
        self.publish(JOBS_EXCHANGE, JOBS_KEY.to_owned(), message.body.clone(), properties).await;
    }

    /// Offers a copy of a job to workers again after `delay`, which has to be one of the topology's.
    pub async fn delay(&self, message: &Message, delay: Duration) {
        let properties = message.for_next_attempt(false);
        self.publish(DELAY_EXCHANGE, delay_queue(delay), message.body.clone(), properties).await;
    }

    /// Puts a copy of a job into the dead queue, with what is to be said about it.
    pub async fn bury(&self, message: &Message, class: FailureClass, words: &str, worker: &str) {
        let properties = message.for_burial(class.word(), words, worker);
        self.publish(DEAD_EXCHANGE, String::new(), message.body.clone(), properties).await;
    }
}

fn event_letter(kind: EventKind, event: &Event, confirmed: Option<oneshot::Sender<()>>) -> Letter {
    let payload = serde_json::to_vec(event).unwrap_or_else(|error| {
        tracing::error!(%error, event = event.id, "an event could not be written");
        Vec::new()
    });
    let mut properties = BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(2)
        .with_message_id(event.id.as_str().into())
        .with_type(event.cloud_event_type.as_str().into());
    if let Some(correlation) = &event.data.correlation_id {
        properties = properties.with_correlation_id(correlation.as_str().into());
    }
    Letter {
        exchange: RESULTS_EXCHANGE,
        key: Event::routing_key(kind, &event.subject),
        mandatory: false,
        payload,
        properties,
        refusals: 0,
        confirmed,
    }
}

impl Announce for Publisher {
    fn announce(&self, kind: EventKind, event: Event) {
        self.hand_over(event.subject.as_str(), event_letter(kind, &event, None));
    }

    fn announce_and_wait(&self, kind: EventKind, event: Event) -> Awaited<'_, ()> {
        let (confirmed, confirmation) = oneshot::channel();
        self.hand_over(event.subject.as_str(), event_letter(kind, &event, Some(confirmed)));
        Box::pin(async {
            if confirmation.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

struct Lane {
    pool: Pool<ConfirmChannels>,
    letters: mpsc::UnboundedReceiver<Letter>,
    /// The way back into the lane, for what the broker would not take.
    again: mpsc::WeakUnboundedSender<Letter>,
    /// What is to be published next, in order.
    unsent: VecDeque<Letter>,
    patience: Duration,
}

/// Why a lane needs another channel.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error("{0}")]
    Broker(#[from] lapin::Error),
    #[error("the broker did not confirm within {} s", .0.as_secs())]
    Unconfirmed(Duration),
}

/// A message that was published and not yet confirmed.
struct Pending {
    letter: Letter,
    confirm: PublisherConfirm,
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
            && matches!(error.kind(), ErrorKind::ProtocolError(_))
            && let Some(Pending { letter, .. }) = pending.pop_front()
        {
            // The broker closed the channel for something that was published on it, most likely the oldest message that it
            // has not confirmed: an exchange is gone, or the message is more than the broker takes. Others go on.
            self.later(letter, &error.to_string());
        }
        for pending in pending.into_iter().rev() {
            self.unsent.push_front(pending.letter);
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
        loop {
            while pending.len() < IN_FLIGHT
                && let Some(letter) = self.unsent.pop_front()
            {
                if !letter.is_wanted() {
                    continue;
                }
                let published = publish(&channel.channel, &letter).await;
                moved = Instant::now();
                match published {
                    Ok(confirm) => pending.push_back(Pending { letter, confirm }),
                    Err(error) => {
                        self.unsent.push_front(letter);
                        return Err(error.into());
                    }
                }
            }
            let Some(oldest) = pending.front_mut() else {
                match self.letters.recv().await {
                    Some(letter) => self.unsent.push_back(letter),
                    None => return Ok(()),
                }
                continue;
            };
            let deadline = moved + self.patience;
            let confirmation = tokio::select! {
                biased;
                confirmation = &mut oldest.confirm => confirmation,
                letter = self.letters.recv(), if self.unsent.len() < IN_FLIGHT => {
                    if let Some(letter) = letter {
                        self.unsent.push_back(letter);
                        continue;
                    }
                    (&mut oldest.confirm).await
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
            let confirmation = confirmation?;
            moved = Instant::now();
            let Some(Pending { letter, .. }) = pending.pop_front() else { continue };
            match confirmation {
                Confirmation::Ack(Some(returned)) if letter.mandatory => {
                    let reason = returned.reply_text.to_string();
                    self.later(
                        letter,
                        &format!("it could not be routed ({reason}); run `spark-runtime topology declare`"),
                    );
                }
                Confirmation::Ack(_) => {
                    backoff.succeeded();
                    if let Some(confirmed) = letter.confirmed {
                        // Nobody may be waiting any more.
                        let _ = confirmed.send(());
                    }
                }
                Confirmation::Nack(_) | Confirmation::NotRequested => {
                    self.later(letter, "the broker refused it; a queue behind the exchange may be full");
                }
            }
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
