//! A client of the service: publish a job, follow its events, cancel it. The command line uses it, and any Rust program
//! can.
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

use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer, ErrorKind};
use tokio::sync::Mutex;

use crate::answer::{answered, next};
use crate::command::{self, Answer, Command};
use crate::connect::{ConnectError, Endpoint};
use crate::event::{Event, TraceContext};
use crate::job::JobId;
use crate::rights::{Doing, MissingRight};
use crate::topology::{COMMANDS_EXCHANGE, COMMANDS_KEY, JOBS_EXCHANGE, JOBS_KEY, RESULTS_EXCHANGE};

/// The queue, one for each channel, that the broker keeps for answers alone; it needs no declaring and no right.
const ANSWERS: &str = "amq.rabbitmq.reply-to";
/// How long the broker may take to confirm a job or a command.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(30);
/// Events that may lie unread on the client's side.
const PREFETCH: u16 = 256;
/// How many event ids a subscription remembers to drop repeats.
const REMEMBERED: usize = 4096;

/// A connection for publishing jobs and following events.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    /// The channel that jobs are published on, while nothing of theirs is on its way. A message that comes back says neither
    /// its number nor its place: with two on their way, one may be told as taken that was not.
    publishing: Mutex<Option<Channel>>,
}

/// Why a client could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker has no queue for jobs, or for commands: nothing was published.
    #[error(
        "the {what} was returned: {reason}; is the topology declared (`spark-runtime topology declare`)?"
    )]
    Unroutable {
        /// `job` or `command`.
        what: &'static str,
        /// What the broker said.
        reason: String,
    },
    /// The broker refused the job or the command: nothing was published.
    #[error("the broker refused the {0}; its queue may be full")]
    Refused(&'static str),
    /// The broker said nothing. The job or command may or may not be there: publish it again under the same id.
    #[error("the broker did not confirm the {0} within {patience} s; publish it again under the same id", patience = CONFIRM_PATIENCE.as_secs())]
    Unconfirmed(&'static str),
    /// The correlation id is longer than AMQP allows.
    #[error("the correlation id has {0} bytes; AMQP takes 255")]
    CorrelationId(usize),
    /// An exchange is missing.
    #[error("the broker has no {0}; run `spark-runtime topology declare`")]
    Missing(String),
    /// The user lacks a right.
    #[error("the broker refuses us: {0}")]
    Forbidden(MissingRight),
    /// A message on the results exchange is no event.
    #[error("a message on {RESULTS_EXCHANGE} is no event: {0}")]
    NoEvent(#[from] serde_json::Error),
    /// What answered a command is no worker of a release that is known.
    #[error("the answer to the command cannot be read: {0}")]
    NoAnswer(serde_json::Error),
    /// The broker ended the wait for an answer. The command holds.
    #[error("the broker ended the wait for an answer; the command holds")]
    AnswersEnded,
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
        let channel = confirm_channel(&connection).await?;
        Ok(Self { connection, publishing: Mutex::new(Some(channel)) })
    }

    /// Publishes a job and waits until the broker has it for good. One job goes after the other; who has many to publish at
    /// once takes several clients.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Unconfirmed`] and [`ClientError::Broker`] the job may be there all the same.
    pub async fn publish(&self, submission: &Submission) -> Result<(), ClientError> {
        let properties = submission.properties()?;
        let target = Target { what: "job", exchange: JOBS_EXCHANGE, key: JOBS_KEY };
        let mut publishing = self.publishing.lock().await;
        // Taken out until all is said: a caller that goes away meanwhile leaves none.
        let channel = match publishing.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => confirm_channel(&self.connection).await?,
        };
        let published = publish(&channel, &target, &submission.body, properties).await;
        if let Ok(()) | Err(ClientError::Unroutable { .. } | ClientError::Refused(_)) = published {
            *publishing = Some(channel);
        }
        published
    }

    /// Asks the workers for the end of a job, and waits for up to `patience` for the answer of one of them. Without an
    /// answer the command waits for a worker, and holds.
    ///
    /// # Errors
    /// [`ClientError`]; after [`ClientError::Unconfirmed`] and [`ClientError::Broker`] the command may be there all the
    /// same. Asking twice does no harm.
    pub async fn cancel(&self, job: &JobId, patience: Duration) -> Result<Option<Answer>, ClientError> {
        let channel = confirm_channel(&self.connection).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consuming = channel.basic_consume(ANSWERS.into(), "".into(), options, FieldTable::default());
        let mut answers = answered(consuming).await?;
        let correlation = uuid::Uuid::new_v4().to_string();
        let properties = BasicProperties::default()
            .with_content_type(command::CONTENT_TYPE.into())
            .with_delivery_mode(2)
            .with_correlation_id(correlation.as_str().into())
            .with_reply_to(ANSWERS.into());
        let target = Target { what: "command", exchange: COMMANDS_EXCHANGE, key: COMMANDS_KEY };
        publish(&channel, &target, &Command::cancel(job).encode(), properties).await?;
        let answer = async {
            while let Some(answer) = next(&mut answers, &channel).await {
                let answer = answer?;
                let told = answer.properties.correlation_id().as_ref().map(ShortString::as_str);
                if told == Some(correlation.as_str()) {
                    return serde_json::from_slice(&answer.data).map_err(ClientError::NoAnswer);
                }
            }
            Err(ClientError::AnswersEnded)
        };
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Follows events from now on. To miss none of a job's events, subscribe before it is published.
    ///
    /// # Errors
    /// [`ClientError::Missing`] when there is no results exchange.
    pub async fn subscribe(&self, topic: &Topic) -> Result<Subscription, ClientError> {
        let channel = answered(self.connection.create_channel()).await?;
        answered(channel.basic_qos(PREFETCH, BasicQosOptions::default())).await?;
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = answered(channel.queue_declare("".into(), options, FieldTable::default())).await;
        let queue = queue.map_err(|error| explained(error, Doing::DeclareQueue))?;
        let binding = channel.queue_bind(
            queue.name().clone(),
            RESULTS_EXCHANGE.into(),
            topic.binding().as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        answered(binding).await.map_err(|error| explained(error, Doing::Bind))?;
        let consuming = channel.basic_consume(
            queue.name().clone(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = answered(consuming).await.map_err(|error| explained(error, Doing::Consume))?;
        Ok(Subscription { channel, consumer, seen: HashSet::new(), order: VecDeque::new() })
    }

    /// Closes the connection in order.
    ///
    /// # Errors
    /// [`ClientError::Broker`] when the broker is gone already.
    pub async fn close(self) -> Result<(), ClientError> {
        Ok(answered(self.connection.close(200, "done".into())).await?)
    }
}

/// Where a message of a client goes.
struct Target {
    /// The word for such a message.
    what: &'static str,
    exchange: &'static str,
    key: &'static str,
}

/// A channel on which the broker confirms what it is given.
async fn confirm_channel(connection: &Connection) -> Result<Channel, ClientError> {
    let channel = answered(connection.create_channel()).await?;
    answered(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Publishes on a channel in confirm mode and waits until the broker has the message for good.
async fn publish(
    channel: &Channel,
    target: &Target,
    body: &[u8],
    properties: BasicProperties,
) -> Result<(), ClientError> {
    let what = target.what;
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let published =
        channel.basic_publish(target.exchange.into(), target.key.into(), options, body, properties);
    let confirmation = tokio::time::timeout(CONFIRM_PATIENCE, async { published.await?.await })
        .await
        .map_err(|_| ClientError::Unconfirmed(what))?
        .map_err(|error| explained(error, Doing::Publish))?;
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) => {
            Err(ClientError::Unroutable { what, reason: returned.reply_text.to_string() })
        }
        Confirmation::Nack(_) | Confirmation::NotRequested => Err(ClientError::Refused(what)),
    }
}

fn explained(error: lapin::Error, doing: Doing) -> ClientError {
    if let Some(right) = MissingRight::of(&error, doing) {
        return ClientError::Forbidden(right);
    }
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
    channel: Channel,
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
        while let Some(delivery) = next(&mut self.consumer, &self.channel).await {
            let delivery = delivery?;
            answered(delivery.acker.ack(BasicAckOptions::default())).await?;
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
