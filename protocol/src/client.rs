//! A client of the service: publish a job, follow its events. The command line uses it, and any Rust program can.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use spark_runtime_protocol::client::{Client, Submission, Topic};
//! use spark_runtime_protocol::connect::Endpoint;
//! use spark_runtime_protocol::JobId;
//!
//! let endpoint = Endpoint::new("amqp://user:password@localhost:5672/%2f", std::time::Duration::from_secs(10))?;
//! let client = Client::connect(&endpoint, "nightly").await?;
//! let id = JobId::random();
//! let mut events = client.subscribe(&Topic::Job(id.clone())).await?;
//! client.publish(&Submission::new(id, std::fs::read("job.json")?)).await?;
//! while let Some(event) = events.next().await? {
//!     println!("{}", event.cloud_event_type);
//!     if event.kind().is_some_and(|kind| kind.is_terminal()) { break; }
//! }
//! # Ok(()) }
//! ```
//!
//! This module must not know how a job is run. It declares nothing but its own queue: a publisher and a subscriber need
//! no right to configure the service's exchanges and queues.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer, ErrorKind};

use crate::connect::{ConnectError, Endpoint};
use crate::event::{Event, TraceContext};
use crate::job::JobId;
use crate::topology::{JOBS_EXCHANGE, JOBS_KEY, RESULTS_EXCHANGE};

/// How long the broker may take to confirm a job.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(30);
/// Events that may lie unread on the client's side.
const PREFETCH: u16 = 256;
/// How many event ids a subscription remembers to drop repeats.
const REMEMBERED: usize = 4096;

/// A connection for publishing jobs and following events.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    channel: Channel,
}

/// Why a client could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker has no queue for jobs: nothing was published.
    #[error("the job was returned: {0}; is the topology declared (`spark-runtime topology declare`)?")]
    Unroutable(String),
    /// The broker refused the job: nothing was published.
    #[error("the broker refused the job; its queue may be full")]
    Refused,
    /// The broker said nothing. The job may or may not be there: publish it again under the same id.
    #[error("the broker did not confirm the job within {} s; publish it again under the same id", CONFIRM_PATIENCE.as_secs())]
    Unconfirmed,
    /// The correlation id is longer than AMQP allows.
    #[error("the correlation id has {0} bytes; AMQP takes 255")]
    CorrelationId(usize),
    /// An exchange is missing.
    #[error("the broker has no {0}; run `spark-runtime topology declare`")]
    Missing(String),
    /// A message on the results exchange is no event.
    #[error("a message on {RESULTS_EXCHANGE} is no event: {0}")]
    NoEvent(#[from] serde_json::Error),
    /// The connection failed on the way.
    #[error("the connection to the broker failed: {0}")]
    Broker(#[from] lapin::Error),
}

/// A job to publish.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The id that travels as `message_id`; it is the job's id when the document has none.
    pub id: JobId,
    /// The job's JSON, sent as it is.
    pub body: Vec<u8>,
    /// Higher goes first, where the broker's queue has priorities.
    pub priority: Option<u8>,
    /// How long the job may wait for a worker.
    pub expiration: Option<Duration>,
    /// Echoed in every event.
    pub correlation_id: Option<String>,
    /// Handed on in every event.
    pub trace: TraceContext,
}

impl Submission {
    /// A job without anything but its id and body.
    #[must_use]
    pub fn new(id: JobId, body: Vec<u8>) -> Self {
        Self {
            id,
            body,
            priority: None,
            expiration: None,
            correlation_id: None,
            trace: TraceContext::default(),
        }
    }

    fn properties(&self) -> Result<BasicProperties, ClientError> {
        let mut properties = BasicProperties::default()
            .with_message_id(self.id.as_str().into())
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        if let Some(priority) = self.priority {
            properties = properties.with_priority(priority);
        }
        if let Some(expiration) = self.expiration {
            properties = properties.with_expiration(expiration.as_millis().to_string().as_str().into());
        }
        if let Some(correlation) = &self.correlation_id {
            let short = ShortString::try_new(correlation.as_str())
                .map_err(|_| ClientError::CorrelationId(correlation.len()))?;
            properties = properties.with_correlation_id(short);
        }
        let mut headers = FieldTable::default();
        for (key, value) in [("traceparent", &self.trace.traceparent), ("tracestate", &self.trace.tracestate)]
        {
            if let Some(value) = value {
                headers.insert(key.into(), AMQPValue::LongString(value.as_str().into()));
            }
        }
        Ok(properties.with_headers(headers))
    }
}

/// Whose events to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    /// Those of one job.
    Job(JobId),
    /// All.
    All,
}

impl Topic {
    fn binding(&self) -> String {
        match self {
            Self::Job(id) => format!("job.{id}.*"),
            Self::All => "job.#".to_owned(),
        }
    }
}

impl Client {
    /// Connects under `name`, which is what the broker lists.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub async fn connect(endpoint: &Endpoint, name: &str) -> Result<Self, ClientError> {
        let connection = endpoint.connect(name).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// Publishes a job and waits until the broker has it for good.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Unconfirmed`] and [`ClientError::Broker`] the job may be there all the same.
    pub async fn publish(&self, submission: &Submission) -> Result<(), ClientError> {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = submission.properties()?;
        let published = self.channel.basic_publish(
            JOBS_EXCHANGE.into(),
            JOBS_KEY.into(),
            options,
            &submission.body,
            properties,
        );
        let confirmation = tokio::time::timeout(CONFIRM_PATIENCE, async { published.await?.await })
            .await
            .map_err(|_| ClientError::Unconfirmed)?
            .map_err(missing)?;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(returned)) => {
                Err(ClientError::Unroutable(returned.reply_text.to_string()))
            }
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(ClientError::Refused),
        }
    }

    /// Follows events from now on. To miss none of a job's events, subscribe before it is published.
    ///
    /// # Errors
    /// [`ClientError::Missing`] when there is no results exchange.
    pub async fn subscribe(&self, topic: &Topic) -> Result<Subscription, ClientError> {
        let channel = self.connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
        channel
            .queue_bind(
                queue.name().clone(),
                RESULTS_EXCHANGE.into(),
                topic.binding().as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(missing)?;
        let consumer = channel
            .basic_consume(
                queue.name().clone(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok(Subscription { _channel: channel, consumer, seen: HashSet::new(), order: VecDeque::new() })
    }

    /// Closes the connection in order.
    ///
    /// # Errors
    /// [`ClientError::Broker`] when the broker is gone already.
    pub async fn close(self) -> Result<(), ClientError> {
        Ok(self.connection.close(200, "done".into()).await?)
    }
}

fn missing(error: lapin::Error) -> ClientError {
    if let ErrorKind::ProtocolError(amqp) = error.kind()
        && amqp.get_id() == 404
    {
        return ClientError::Missing(amqp.get_message().to_string());
    }
    ClientError::Broker(error)
}

/// The events of one job, or of all, each once.
#[derive(Debug)]
pub struct Subscription {
    /// Dropping the last handle of a channel closes it.
    _channel: Channel,
    consumer: Consumer,
    seen: HashSet<String>,
    order: VecDeque<String>,
}

impl Subscription {
    /// The next event that was not seen before; `None` when the broker ended the subscription.
    ///
    /// # Errors
    /// [`ClientError::NoEvent`] for a message that is none (the next call goes on behind it); [`ClientError::Broker`] when
    /// the connection failed.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        while let Some(delivery) = self.consumer.next().await {
            let delivery = delivery?;
            delivery.acker.ack(BasicAckOptions::default()).await?;
            let event: Event = serde_json::from_slice(&delivery.data)?;
            if self.is_new(&event.id) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn is_new(&mut self, id: &str) -> bool {
        if !self.seen.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }
}
