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
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Confirmation, Connection, ErrorKind};
use spark_runtime_protocol::JobId;
use spark_runtime_protocol::connect::{ConnectError, Endpoint};
use spark_runtime_protocol::rights::{Doing, MissingRight};
use spark_runtime_protocol::topology::{
    DEAD_QUEUE, FAILURE_CLASS_HEADER, FAILURE_MESSAGE_HEADER, JOBS_EXCHANGE, JOBS_KEY, WORKER_HEADER,
};

use super::message::Message;

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
    message: Message,
    acker: Acker,
}

impl Held {
    /// The job's document.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.message.body
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
    /// The user lacks a right.
    #[error("the broker refuses us: {0}")]
    Forbidden(MissingRight),
    /// The connection failed on the way.
    #[error("the connection to the broker failed: {0}")]
    Broker(lapin::Error),
}

impl DeadError {
    fn of(error: lapin::Error, doing: Doing) -> Self {
        if let Some(right) = MissingRight::of(&error, doing) {
            return Self::Forbidden(right);
        }
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
    /// [`DeadError::Connect`], [`DeadError::Silent`], [`DeadError::Broker`].
    pub async fn open(endpoint: &Endpoint, patience: Duration) -> Result<Self, DeadError> {
        let connection = endpoint.connect("spark-runtime dead").await?;
        let channel = within(patience, Doing::Publish, connection.create_channel()).await?;
        let confirming = channel.confirm_select(ConfirmSelectOptions::default());
        within(patience, Doing::Publish, confirming).await?;
        Ok(Self { connection, channel, patience })
    }

    /// How many dead jobs there are that nobody holds.
    ///
    /// # Errors
    /// [`DeadError`].
    pub async fn count(&self) -> Result<u32, DeadError> {
        let options = QueueDeclareOptions { passive: true, durable: true, ..Default::default() };
        let declared = self.channel.queue_declare(DEAD_QUEUE.into(), options, FieldTable::default());
        Ok(self.patiently(Doing::Consume, declared).await?.message_count())
    }

    /// Holds the next dead job, the oldest first; `None` when no more are left. A held job goes back when the queue is
    /// closed, also by the end of this process.
    ///
    /// # Errors
    /// [`DeadError`].
    pub async fn next(&self) -> Result<Option<Held>, DeadError> {
        let got = self.channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions::default());
        let got = self.patiently(Doing::Consume, got).await?;
        Ok(got.map(|got| {
            let Delivery { data, properties, acker, redelivered, .. } = got.delivery;
            let message = Message::new(data, properties, redelivered);
            Held { job: describe(&message), message, acker }
        }))
    }

    /// Publishes a job anew, as if for the first time, and takes it off the dead once the broker has the copy for good.
    ///
    /// # Errors
    /// [`DeadError`]; the job is dead still, or in both queues.
    pub async fn replay(&self, held: Held) -> Result<(), DeadError> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = held.message.for_replay();
        let published = self.channel.basic_publish(
            JOBS_EXCHANGE.into(),
            JOBS_KEY.into(),
            options,
            &held.message.body,
            properties,
        );
        match self.patiently(Doing::Publish, async { published.await?.await }).await? {
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
        self.patiently(Doing::Consume, held.acker.ack(BasicAckOptions::default())).await?;
        // An acknowledgement has no answer of its own: what comes after it on the channel has.
        self.count().await.map(drop)
    }

    /// Gives back what is held and closes the connection.
    pub async fn close(self) {
        if let Err(error) = self.patiently(Doing::Consume, self.connection.close(200, "done".into())).await {
            tracing::debug!(%error, "the connection did not close in order");
        }
    }

    async fn patiently<T>(
        &self,
        doing: Doing,
        answer: impl Future<Output = Result<T, lapin::Error>>,
    ) -> Result<T, DeadError> {
        within(self.patience, doing, answer).await
    }
}

/// Waits for an answer of the broker for so long.
async fn within<T>(
    patience: Duration,
    doing: Doing,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, DeadError> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer.map_err(|error| DeadError::of(error, doing)),
        Err(_) => Err(DeadError::Silent(patience)),
    }
}

fn describe(message: &Message) -> DeadJob {
    let died =
        message.timestamp().and_then(|seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok());
    DeadJob {
        id: message.known_as(),
        attempt: message.told_attempt().unwrap_or(1),
        failure_class: message.text(FAILURE_CLASS_HEADER),
        failure_message: message.text(FAILURE_MESSAGE_HEADER),
        worker: message.text(WORKER_HEADER),
        died: died.map(|moment| moment.to_string()),
        size: message.body.len() as u64,
    }
}
