//! The dead jobs: reading them without taking them, giving them back to the workers, and dropping them.
//!
//! A dead job that is being looked at is held, unacknowledged, until the queue is closed; whatever ends this process
//! gives it back. A replay publishes first and takes the dead job away when the copy is confirmed: in between a crash
//! leaves both, never none.
//!
//! This module must not know why jobs die.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ErrorKind};
use spark_runtime_protocol::JobId;
use spark_runtime_protocol::connect::{ConnectError, Endpoint};
use spark_runtime_protocol::topology::{
    ATTEMPT_HEADER, DEAD_QUEUE, DELIVERY_COUNT_HEADER, FAILURE_CLASS_HEADER, FAILURE_MESSAGE_HEADER,
    JOBS_EXCHANGE, JOBS_KEY, RETURNS_HEADER, WORKER_HEADER,
};

/// What a replayed job does not carry on from its first life. The broker's own headers about dead-lettering begin with
/// the last three.
const FORGOTTEN: [&str; 9] = [
    ATTEMPT_HEADER,
    RETURNS_HEADER,
    FAILURE_CLASS_HEADER,
    FAILURE_MESSAGE_HEADER,
    WORKER_HEADER,
    DELIVERY_COUNT_HEADER,
    "x-death",
    "x-first-death-",
    "x-last-death-",
];

/// The queue of dead jobs, open for as long as jobs of it are held.
#[derive(Debug)]
pub struct DeadQueue {
    connection: Connection,
    channel: Channel,
    patience: Duration,
}

/// What is known of a dead job beside its document.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadJob {
    /// The job's id, as a worker reads it.
    pub id: JobId,
    /// The attempt that was the last.
    pub attempt: u32,
    /// The class of the failure.
    pub failure_class: Option<String>,
    /// The failure in words.
    pub failure_message: Option<String>,
    /// The worker that gave it up.
    pub worker: Option<String>,
    /// When it did, where that is known.
    pub died: Option<String>,
    /// The size of the document in bytes.
    pub size: u64,
}

/// A dead job that nobody else sees for now.
#[derive(Debug)]
pub struct Held {
    /// What is known of it.
    pub job: DeadJob,
    delivery: Delivery,
}

impl Held {
    /// The job's document.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.delivery.data
    }
}

/// Why dead jobs could not be read or dealt with.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no such queue or exchange.
    #[error("the broker has no {0}; run `spark-runtime topology declare`")]
    Missing(String),
    /// The copy was returned: the job is dead still.
    #[error(
        "the job was returned: {0}; it is dead still; is the topology declared (`spark-runtime topology declare`)?"
    )]
    Unroutable(String),
    /// The copy was refused: the job is dead still.
    #[error("the broker refused the copy of the job, which is dead still; the queue of jobs may be full")]
    Refused,
    /// The broker said nothing. A job may be in both queues; it is never in none.
    #[error("the broker did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection failed on the way.
    #[error("the connection to the broker failed: {0}")]
    Broker(lapin::Error),
}

impl From<lapin::Error> for DeadError {
    fn from(error: lapin::Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(amqp) if amqp.get_id() == 404 => {
                Self::Missing(amqp.get_message().to_string())
            }
            _ => Self::Broker(error),
        }
    }
}

impl DeadQueue {
    /// Connects; `patience` is how long the broker may take for each answer.
    ///
    /// # Errors
    /// [`DeadError::Connect`], [`DeadError::Broker`].
    pub async fn open(endpoint: &Endpoint, patience: Duration) -> Result<Self, DeadError> {
        let connection = endpoint.connect("spark-runtime dead").await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel, patience })
    }

    /// How many dead jobs there are that nobody holds.
    ///
    /// # Errors
    /// [`DeadError`].
    pub async fn count(&self) -> Result<u32, DeadError> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let declared = self.channel.queue_declare(DEAD_QUEUE.into(), options, FieldTable::default());
        Ok(self.patiently(declared).await?.message_count())
    }

    /// Holds the next dead job, the oldest first; `None` when no more are left. A held job goes back when the queue is
    /// closed, also by the end of this process.
    ///
    /// # Errors
    /// [`DeadError`].
    pub async fn next(&self) -> Result<Option<Held>, DeadError> {
        let got =
            self.patiently(self.channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions::default())).await?;
        Ok(got.map(|message| Held { job: describe(&message.delivery), delivery: message.delivery }))
    }

    /// Publishes a job anew, as if for the first time, and takes it off the dead once the broker has the copy for good.
    ///
    /// # Errors
    /// [`DeadError`]; the job is dead still, or in both queues.
    pub async fn replay(&self, held: Held) -> Result<(), DeadError> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = afresh(&held.delivery.properties);
        let published = self.channel.basic_publish(
            JOBS_EXCHANGE.into(),
            JOBS_KEY.into(),
            options,
            &held.delivery.data,
            properties,
        );
        match self.patiently(async { published.await?.await }).await? {
            Confirmation::Ack(None) => self.discard(held).await,
            Confirmation::Ack(Some(returned)) => Err(DeadError::Unroutable(returned.reply_text.to_string())),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(DeadError::Refused),
        }
    }

    /// Takes a job off the dead for good.
    ///
    /// # Errors
    /// [`DeadError`]; the job is dead still.
    pub async fn discard(&self, held: Held) -> Result<(), DeadError> {
        self.patiently(held.delivery.acker.ack(BasicAckOptions::default())).await?;
        // An acknowledgement has no answer of its own: what comes after it on the channel has.
        self.count().await.map(drop)
    }

    /// Gives back what is held and closes the connection.
    pub async fn close(self) {
        if let Err(error) = self.patiently(self.connection.close(200, "done".into())).await {
            tracing::debug!(%error, "the connection did not close in order");
        }
    }

    async fn patiently<T>(
        &self,
        answer: impl Future<Output = Result<T, lapin::Error>>,
    ) -> Result<T, DeadError> {
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(DeadError::Silent(self.patience)),
        }
    }
}

fn describe(delivery: &Delivery) -> DeadJob {
    let properties = &delivery.properties;
    let header = |name: &str| properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
    let text = |name: &str| match header(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    };
    let died =
        properties.timestamp().and_then(|seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok());
    DeadJob {
        id: id(&delivery.data, properties.message_id().as_ref().map(|id| id.as_str())),
        attempt: header(ATTEMPT_HEADER).and_then(whole).unwrap_or(1),
        failure_class: text(FAILURE_CLASS_HEADER),
        failure_message: text(FAILURE_MESSAGE_HEADER),
        worker: text(WORKER_HEADER),
        died: died.map(|moment| moment.to_string()),
        size: delivery.data.len() as u64,
    }
}

/// The id under which the job was known: its own, else the message's, else what stands in for it.
fn id(body: &[u8], message_id: Option<&str>) -> JobId {
    #[derive(serde::Deserialize)]
    struct Named {
        id: Option<String>,
    }
    let own = serde_json::from_slice::<Named>(body).ok().and_then(|named| JobId::new(&named.id?).ok());
    own.or_else(|| JobId::new(message_id?).ok()).unwrap_or_else(|| JobId::stand_in(body))
}

fn whole(value: &AMQPValue) -> Option<u32> {
    match value {
        AMQPValue::ShortShortUInt(number) => Some(u32::from(*number)),
        AMQPValue::ShortUInt(number) => Some(u32::from(*number)),
        AMQPValue::LongUInt(number) => Some(*number),
        AMQPValue::ShortShortInt(number) => u32::try_from(*number).ok(),
        AMQPValue::ShortInt(number) => u32::try_from(*number).ok(),
        AMQPValue::LongInt(number) => u32::try_from(*number).ok(),
        AMQPValue::LongLongInt(number) => u32::try_from(*number).ok(),
        _ => None,
    }
}

/// The properties of a job's copy: what its publisher gave it, without the traces of its first life. The publisher's user
/// is left out too: the broker refuses a message in another user's name.
fn afresh(properties: &BasicProperties) -> BasicProperties {
    let mut copy = BasicProperties::default().with_delivery_mode(2);
    if let Some(id) = properties.message_id() {
        copy = copy.with_message_id(id.clone());
    }
    if let Some(kind) = properties.content_type() {
        copy = copy.with_content_type(kind.clone());
    }
    if let Some(encoding) = properties.content_encoding() {
        copy = copy.with_content_encoding(encoding.clone());
    }
    if let Some(priority) = properties.priority() {
        copy = copy.with_priority(*priority);
    }
    if let Some(correlation) = properties.correlation_id() {
        copy = copy.with_correlation_id(correlation.clone());
    }
    if let Some(expiration) = properties.expiration() {
        copy = copy.with_expiration(expiration.clone());
    }
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(|headers| headers.inner()) {
        if !FORGOTTEN.iter().any(|forgotten| name.as_str().starts_with(forgotten)) {
            headers.insert(name.clone(), value.clone());
        }
    }
    copy.with_headers(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replayed_job_keeps_what_its_publisher_gave_it_and_forgets_its_first_life() {
        let mut headers = FieldTable::default();
        for name in FORGOTTEN.iter().chain(&["x-first-death-reason", "traceparent", "x-own"]) {
            headers.insert((*name).into(), AMQPValue::LongString("v".into()));
        }
        let dead = BasicProperties::default()
            .with_message_id("job-1".into())
            .with_correlation_id("c".into())
            .with_priority(3)
            .with_expiration("60000".into())
            .with_user_id("somebody".into())
            .with_content_type("application/json".into())
            .with_headers(headers);
        let copy = afresh(&dead);
        assert_eq!(copy.user_id(), &None);
        assert_eq!(copy.delivery_mode(), &Some(2));
        assert_eq!(copy.message_id(), dead.message_id());
        assert_eq!(copy.correlation_id(), dead.correlation_id());
        assert_eq!(copy.priority(), dead.priority());
        assert_eq!(copy.expiration(), dead.expiration());
        assert_eq!(copy.content_type(), dead.content_type());
        let kept: Vec<_> = copy.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(kept, ["traceparent", "x-own"]);
    }

    #[test]
    fn a_dead_job_is_known_by_the_id_that_a_worker_reads() {
        assert_eq!(id(br#"{"id": "own"}"#, Some("message")).as_str(), "own");
        assert_eq!(id(br#"{"id": null}"#, Some("message")).as_str(), "message");
        assert_eq!(id(b"no JSON", Some("message")).as_str(), "message");
        assert_eq!(id(b"no JSON", Some("no id!")), JobId::stand_in(b"no JSON"));
        assert_eq!(id(br#"{"id": "a/b"}"#, None), JobId::stand_in(br#"{"id": "a/b"}"#));
    }
}
