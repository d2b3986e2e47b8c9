//! Every exchange, queue, argument, binding and header of the service; declaring them and comparing them with what is
//! there.
//!
//! ```text
//! spark.jobs (direct) ──> [spark.jobs] ──too many deliveries, expired──> spark.expelled ──> [spark.expelled]
//!      ^                                                                                        │ a worker tells
//!      └──after the delay── [spark.delay.<n>ms] <── spark.delay (direct)                         v the job's end
//! spark.results (topic) ──> subscribers' own queues                       spark.dead ──> [spark.dead]
//!      └──steps──> {spark.history} <──ends── spark.history      spark.ledger ──> {spark.ledger}
//! spark.commands (direct) ──> [spark.commands]             spark.checkpoints ──> {spark.checkpoints}
//! ```
//!
//! What is in brackets is a quorum queue: a confirmed message is on a majority of the broker's nodes. Dead lettering is
//! at-least-once, which needs `reject-publish` and a bound target; without them it silently becomes at-most-once.
//! What is in braces is a stream, a log that everybody reads from where he likes and that nobody empties.
//!
//! This module must not know who publishes or consumes, nor why.

use std::fmt;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};
use serde_json::{Map, Value, json};

use crate::answer::answered;
use crate::rights::{Doing, MissingRight};

/// Jobs are published here, with the routing key [`JOBS_KEY`].
pub const JOBS_EXCHANGE: &str = "spark.jobs";
/// The routing key of jobs.
pub const JOBS_KEY: &str = "spark.jobs";
/// Jobs wait here for a worker.
pub const JOBS_QUEUE: &str = "spark.jobs";
/// Events are published here, with the routing key `job.<jobId>.<event>`.
pub const RESULTS_EXCHANGE: &str = "spark.results";
/// Jobs that the broker itself took out of [`JOBS_QUEUE`]: delivered too often, or expired.
pub const EXPELLED_EXCHANGE: &str = "spark.expelled";
/// Expelled jobs wait here for a worker that tells their end.
pub const EXPELLED_QUEUE: &str = "spark.expelled";
/// Jobs that ended in a way that somebody should look at.
pub const DEAD_EXCHANGE: &str = "spark.dead";
/// Dead jobs lie here until they are replayed or dropped.
pub const DEAD_QUEUE: &str = "spark.dead";
/// Copies of jobs that are to be offered again later; the routing key is the delay queue's name.
pub const DELAY_EXCHANGE: &str = "spark.delay";

/// The records of who has which job are published here.
pub const LEDGER_EXCHANGE: &str = "spark.ledger";
/// The stream of those records.
pub const LEDGER_STREAM: &str = "spark.ledger";
/// What the ledger says up to a place is published here, in parts.
pub const CHECKPOINTS_EXCHANGE: &str = "spark.checkpoints";
/// The stream of those parts.
pub const CHECKPOINTS_STREAM: &str = "spark.checkpoints";
/// The ends of jobs are published here before they count.
pub const HISTORY_EXCHANGE: &str = "spark.history";
/// The stream of what happened to jobs.
pub const HISTORY_STREAM: &str = "spark.history";
/// Commands to the workers are published here, with the routing key [`COMMANDS_KEY`].
pub const COMMANDS_EXCHANGE: &str = "spark.commands";
/// The routing key of commands.
pub const COMMANDS_KEY: &str = "spark.commands";
/// Commands wait here for a worker.
pub const COMMANDS_QUEUE: &str = "spark.commands";
/// The steps on a job's way that the history keeps beside its end.
const STEPS_IN_HISTORY: [&str; 3] = ["submitted", "running", "retrying"];
/// How large a file of a stream grows. A stream is cut off by whole files, so small ones keep close to the retention.
const LEDGER_SEGMENT: i64 = 8 << 20;
/// The same for the history, whose messages are larger.
const HISTORY_SEGMENT: i64 = 64 << 20;
/// How large the stream of checkpoints grows: two of the largest fit into it.
const CHECKPOINTS_KEPT: i64 = 512 << 20;

/// Header of a copy that waits for the end of an owner's lease: the claim in force when it was made.
pub const SEEN_CLAIM_HEADER: &str = "x-seen-claim";
/// Header of such a copy: the owner's last renewal when it was made.
pub const SEEN_RENEWAL_HEADER: &str = "x-seen-renewal";
/// Header of such a copy: how many milliseconds that has been so when it comes back.
pub const SEEN_FOR_HEADER: &str = "x-seen-for-ms";
/// Header of a dead job, and of its replay: the claim by which it was settled.
pub const SETTLED_CLAIM_HEADER: &str = "x-settled-claim";
/// Header of a job that is offered to other workers: for how long it has been, in milliseconds, because those that had it
/// have no runtime for it.
pub const UNFIT_FOR_HEADER: &str = "x-unfit-for-ms";
/// Header that the broker adds to what it delivers from a stream: its place there.
pub const STREAM_OFFSET_HEADER: &str = "x-stream-offset";
/// Argument of a consumer of a stream: where to begin.
pub const STREAM_OFFSET_ARGUMENT: &str = "x-stream-offset";

/// Header: the number of the attempt that a copy of a job is for, from 1. It is for people: the ledger counts.
pub const ATTEMPT_HEADER: &str = "x-attempt";
/// Header of dead jobs: the class of the failure.
pub const FAILURE_CLASS_HEADER: &str = "x-failure-class";
/// Header of dead jobs: the failure in words.
pub const FAILURE_MESSAGE_HEADER: &str = "x-failure-message";
/// Header of dead jobs: the worker that put it there.
pub const WORKER_HEADER: &str = "x-worker";
/// Header that quorum queues set: how often the message was delivered before and came back.
pub const DELIVERY_COUNT_HEADER: &str = "x-delivery-count";
/// Header that the broker sets on a dead-lettered message: why it was first dead-lettered.
pub const FIRST_DEATH_REASON_HEADER: &str = "x-first-death-reason";

/// How often the broker delivers a job before it expels it: behind the workers' own limit on attempts, for jobs that no
/// worker lives long enough to count. It has to be far above the number of slots of one worker: when a connection is
/// lost, the broker closes its channels one after the other and may hand a job to each of them on the way.
pub const DELIVERY_LIMIT: i64 = 1000;
/// Messages that must not be dropped by the broker for being delivered often.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// How long a worker may keep a job unacknowledged, where the broker takes it from the queue (3.12 and later).
pub const ACKNOWLEDGEMENT_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Header that the broker sets on a dead-lettered message: the queue that it was first dead-lettered from.
pub const FIRST_DEATH_QUEUE_HEADER: &str = "x-first-death-queue";

/// Quorum queues and streams over AMQP 0-9-1 as they are used here need this release of RabbitMQ.
pub const OLDEST_SERVER: (u32, u32) = (3, 10);

/// An argument of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Argument {
    Word(&'static str),
    Text(String),
    Number(i64),
}

impl Argument {
    fn value(&self) -> AMQPValue {
        match self {
            Self::Word(word) => AMQPValue::LongString((*word).into()),
            Self::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Self::Number(number) => AMQPValue::LongLongInt(*number),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Word(word) => json!(word),
            Self::Text(text) => json!(text),
            Self::Number(number) => json!(number),
        }
    }
}

#[derive(Debug, Clone)]
struct QueueShape {
    name: String,
    arguments: Vec<(&'static str, Argument)>,
    /// Exchanges and routing keys.
    bindings: Vec<(&'static str, String)>,
}

/// What an operator can choose about the topology. All workers of a service have to have chosen the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// How long retries wait; each has a queue of its own: only the head of a queue expires, so that different delays
    /// must not share one.
    pub delays: Vec<Duration>,
    /// How long a worker keeps its jobs without being heard of; jobs that another one has wait so long.
    pub lease: Duration,
    /// How long the ledger and the history are kept; so long a repeated id is recognised.
    pub retention: Duration,
}

/// Every exchange and queue of a service.
#[derive(Debug, Clone)]
pub struct Topology {
    exchanges: Vec<(&'static str, ExchangeKind)>,
    queues: Vec<QueueShape>,
}

/// What is wrong with the broker's exchanges and queues.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Something is there, but not as it has to be.
    #[error("the broker's topology differs: {}", list(.0))]
    Different(Vec<Difference>),
    /// The broker could not be asked.
    #[error("the topology could not be declared: {0}")]
    Broker(#[from] lapin::Error),
}

/// One thing that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// As `queue spark.jobs`.
    pub what: String,
    /// What differs and what to do.
    pub message: String,
    /// For want of a right it is not even known.
    pub is_refusal: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.message)
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// RabbitMQ's word for a kind of exchange.
fn word(kind: &ExchangeKind) -> &str {
    match kind {
        ExchangeKind::Direct => "direct",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Headers => "headers",
        ExchangeKind::Topic => "topic",
        ExchangeKind::Custom(word) => word,
    }
}

/// The name of the queue in which messages wait for `delay`.
#[must_use]
pub fn delay_queue(delay: Duration) -> String {
    format!("spark.delay.{}ms", delay.as_millis())
}

impl Topology {
    /// The topology of a service of this shape.
    #[must_use]
    pub fn new(shape: &Shape) -> Self {
        use Argument::{Number, Text, Word};

        let quorum = ("x-queue-type", Word("quorum"));
        let safely =
            [("x-dead-letter-strategy", Word("at-least-once")), ("x-overflow", Word("reject-publish"))];
        let unlimited = ("x-delivery-limit", Number(NO_DELIVERY_LIMIT));
        let timeout = i64::try_from(ACKNOWLEDGEMENT_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
        let queue = |name: &str, arguments, exchange, key: &str| QueueShape {
            name: name.to_owned(),
            arguments,
            bindings: vec![(exchange, key.to_owned())],
        };
        let stream = |segment: i64| {
            vec![
                ("x-queue-type", Word("stream")),
                ("x-max-age", Text(format!("{}s", shape.retention.as_secs().max(1)))),
                ("x-stream-max-segment-size-bytes", Number(segment)),
            ]
        };

        let mut jobs = vec![
            quorum.clone(),
            ("x-delivery-limit", Number(DELIVERY_LIMIT)),
            ("x-dead-letter-exchange", Word(EXPELLED_EXCHANGE)),
            ("x-consumer-timeout", Number(timeout)),
        ];
        jobs.extend(safely.clone());
        let kept = vec![quorum.clone(), unlimited];
        let mut checkpoints = stream(HISTORY_SEGMENT);
        checkpoints.push(("x-max-length-bytes", Number(CHECKPOINTS_KEPT)));
        let mut history = queue(HISTORY_STREAM, stream(HISTORY_SEGMENT), HISTORY_EXCHANGE, "");
        history.bindings.extend(STEPS_IN_HISTORY.map(|step| (RESULTS_EXCHANGE, format!("job.*.{step}"))));
        let mut queues = vec![
            queue(JOBS_QUEUE, jobs, JOBS_EXCHANGE, JOBS_KEY),
            queue(EXPELLED_QUEUE, kept.clone(), EXPELLED_EXCHANGE, ""),
            queue(DEAD_QUEUE, kept.clone(), DEAD_EXCHANGE, ""),
            queue(COMMANDS_QUEUE, kept, COMMANDS_EXCHANGE, COMMANDS_KEY),
            queue(LEDGER_STREAM, stream(LEDGER_SEGMENT), LEDGER_EXCHANGE, ""),
            queue(CHECKPOINTS_STREAM, checkpoints, CHECKPOINTS_EXCHANGE, ""),
            history,
        ];
        let mut delays = shape.delays.clone();
        delays.push(shape.lease);
        delays.sort_unstable();
        delays.dedup();
        queues.extend(delays.into_iter().map(|delay| {
            let mut arguments = vec![
                quorum.clone(),
                ("x-message-ttl", Number(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX))),
                ("x-dead-letter-exchange", Word(JOBS_EXCHANGE)),
                ("x-dead-letter-routing-key", Word(JOBS_KEY)),
            ];
            arguments.extend(safely.clone());
            let name = delay_queue(delay);
            queue(&name, arguments, DELAY_EXCHANGE, &name)
        }));
        let exchanges = vec![
            (JOBS_EXCHANGE, ExchangeKind::Direct),
            (RESULTS_EXCHANGE, ExchangeKind::Topic),
            (EXPELLED_EXCHANGE, ExchangeKind::Fanout),
            (DEAD_EXCHANGE, ExchangeKind::Fanout),
            (DELAY_EXCHANGE, ExchangeKind::Direct),
            (COMMANDS_EXCHANGE, ExchangeKind::Direct),
            (LEDGER_EXCHANGE, ExchangeKind::Fanout),
            (CHECKPOINTS_EXCHANGE, ExchangeKind::Fanout),
            (HISTORY_EXCHANGE, ExchangeKind::Fanout),
        ];
        Self { exchanges, queues }
    }

    /// The names of all exchanges, then of all queues.
    #[must_use]
    pub fn names(&self) -> (Vec<&str>, Vec<&str>) {
        (
            self.exchanges.iter().map(|(name, _)| *name).collect(),
            self.queues.iter().map(|q| q.name.as_str()).collect(),
        )
    }

    /// Writes all of it into a document of RabbitMQ's definitions.
    pub(crate) fn define(&self, vhost: &str, document: &mut Map<String, Value>) {
        let exchanges = self.exchanges.iter().map(|(name, kind)| {
            json!({
                "name": name, "vhost": vhost, "type": word(kind), "durable": true, "auto_delete": false,
                "internal": false, "arguments": {},
            })
        });
        document.insert("exchanges".into(), exchanges.collect());
        let queues = self.queues.iter().map(|queue| {
            let arguments: Map<_, _> =
                queue.arguments.iter().map(|(key, argument)| ((*key).to_owned(), argument.json())).collect();
            json!({
                "name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": arguments,
            })
        });
        document.insert("queues".into(), queues.collect());
        let bindings = self.queues.iter().flat_map(|queue| {
            queue.bindings.iter().map(|(exchange, key)| {
                json!({
                    "source": exchange, "vhost": vhost, "destination": queue.name, "destination_type": "queue",
                    "routing_key": key, "arguments": {},
                })
            })
        });
        document.insert("bindings".into(), bindings.collect());
    }

    /// Declares what is missing. What is there already must be the same, as far as the user has the right to compare: that
    /// is the right to configure.
    ///
    /// # Errors
    /// [`TopologyError::Different`] with everything that is there with other arguments, or is missing and may not be
    /// declared; nothing is changed then but what was missing.
    pub async fn declare(&self, connection: &Connection) -> Result<Compared, TopologyError> {
        self.go_through(connection, true).await
    }

    /// Compares what is there with what has to be, and declares nothing. Bindings cannot be asked for and are not
    /// compared.
    ///
    /// # Errors
    /// [`TopologyError::Different`] with everything that is missing or has other arguments.
    pub async fn verify(&self, connection: &Connection) -> Result<Compared, TopologyError> {
        self.go_through(connection, false).await
    }

    async fn go_through(&self, connection: &Connection, declares: bool) -> Result<Compared, TopologyError> {
        let channel = answered(connection.create_channel()).await?;
        let mut walk = Walk { connection, channel, declares, forbidden: None, without: Vec::new() };
        let mut differences = Vec::new();
        let exchanges = self.exchanges.iter().map(|(name, kind)| Shaped::Exchange(name, kind));
        for shaped in exchanges.chain(self.queues.iter().map(Shaped::Queue)) {
            differences.extend(walk.visit(&shaped).await?);
        }
        close(&walk.channel).await;
        if !differences.is_empty() {
            return Err(TopologyError::Different(differences));
        }
        Ok(match walk.forbidden {
            Some(right) => Compared::InPart { right, without: walk.without },
            None => Compared::All,
        })
    }
}

/// How far the broker's topology could be compared with what has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// All of it.
    All,
    /// Everything is there, but not everything could be compared.
    InPart {
        /// What the user would need.
        right: MissingRight,
        /// The exchanges and queues that were not compared.
        without: Vec<String>,
    },
}

/// An exchange or a queue as it has to be.
enum Shaped<'a> {
    Exchange(&'a str, &'a ExchangeKind),
    Queue(&'a QueueShape),
}

impl Shaped<'_> {
    fn name(&self) -> String {
        match self {
            Self::Exchange(name, _) => format!("exchange {name}"),
            Self::Queue(queue) => format!("queue {}", queue.name),
        }
    }

    fn doing(&self) -> Doing {
        match self {
            Self::Exchange(..) => Doing::DeclareExchange,
            Self::Queue(_) => Doing::DeclareQueue,
        }
    }

    /// Asks whether it is there, which compares nothing and needs no right.
    async fn look(&self, channel: &Channel) -> Result<(), lapin::Error> {
        match self {
            Self::Exchange(name, kind) => declare_exchange(channel, name, kind, true).await,
            Self::Queue(queue) => declare_queue(channel, queue, true).await,
        }
    }

    /// Compares it with what is there, and creates it when nothing is.
    async fn declare(&self, channel: &Channel) -> Result<(), lapin::Error> {
        match self {
            Self::Exchange(name, kind) => declare_exchange(channel, name, kind, false).await,
            Self::Queue(queue) => declare_queue(channel, queue, false).await,
        }
    }

    async fn bind(&self, channel: &Channel) -> Result<(), lapin::Error> {
        match self {
            Self::Exchange(..) => Ok(()),
            Self::Queue(queue) => bind(channel, queue).await,
        }
    }
}

/// A walk over all exchanges and queues.
struct Walk<'a> {
    connection: &'a Connection,
    /// The broker closes a channel at every error.
    channel: Channel,
    declares: bool,
    /// The first right that was missing. From there on only what is missing is tried to be declared: each try is an error
    /// in the broker's log.
    forbidden: Option<MissingRight>,
    without: Vec<String>,
}

impl Walk<'_> {
    async fn visit(&mut self, shaped: &Shaped<'_>) -> Result<Option<Difference>, TopologyError> {
        if !self.declares || self.forbidden.is_some() {
            let found = shaped.look(&self.channel).await;
            match found {
                Ok(()) if self.forbidden.is_some() => {
                    self.without.push(shaped.name());
                    return Ok(None);
                }
                Ok(()) => {}
                Err(error) => {
                    let missing = self.not_found(shaped, error).await?;
                    if !self.declares {
                        return Ok(Some(missing));
                    }
                }
            }
        }
        if let Err(error) = shaped.declare(&self.channel).await {
            return self.not_declared(shaped, error).await;
        }
        if self.declares
            && let Err(error) = shaped.bind(&self.channel).await
        {
            self.channel = answered(self.connection.create_channel()).await?;
            let Some(right) = MissingRight::of(&error, Doing::Bind) else {
                return Ok(Some(difference(shaped.name(), error)?));
            };
            let message = format!("cannot be bound: {right}");
            return Ok(Some(Difference { what: shaped.name(), message, is_refusal: true }));
        }
        Ok(None)
    }

    /// What is to be said about something that was looked for.
    async fn not_found(
        &mut self,
        shaped: &Shaped<'_>,
        error: lapin::Error,
    ) -> Result<Difference, TopologyError> {
        self.channel = answered(self.connection.create_channel()).await?;
        // RabbitMQ from 4.3 tells nothing about a queue to those who have no right at all on it.
        if let Some(right) = MissingRight::of(&error, shaped.doing()) {
            let message = format!("cannot be looked for: {right}, nor any other on it");
            return Ok(Difference { what: shaped.name(), message, is_refusal: true });
        }
        Ok(difference(shaped.name(), error)?)
    }

    async fn not_declared(
        &mut self,
        shaped: &Shaped<'_>,
        error: lapin::Error,
    ) -> Result<Option<Difference>, TopologyError> {
        self.channel = answered(self.connection.create_channel()).await?;
        let Some(right) = MissingRight::of(&error, shaped.doing()) else {
            return Ok(Some(difference(shaped.name(), error)?));
        };
        if let Err(error) = shaped.look(&self.channel).await {
            let mut found = self.not_found(shaped, error).await?;
            if !found.is_refusal {
                found.message = format!("is missing, and {right}; somebody who has it has to declare it");
            }
            return Ok(Some(found));
        }
        self.without.push(shaped.name());
        self.forbidden.get_or_insert(right);
        Ok(None)
    }
}

async fn close(channel: &Channel) {
    if let Err(error) = answered(channel.close(200, "done".into())).await {
        tracing::debug!(%error, "the channel of the topology did not close in order");
    }
}

async fn declare_exchange(
    channel: &Channel,
    name: &str,
    kind: &ExchangeKind,
    passive: bool,
) -> Result<(), lapin::Error> {
    let mut options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    options.passive = passive;
    answered(channel.exchange_declare(short(name), kind.clone(), options, FieldTable::default())).await
}

async fn declare_queue(channel: &Channel, queue: &QueueShape, passive: bool) -> Result<(), lapin::Error> {
    let mut options = QueueDeclareOptions::durable();
    options.passive = passive;
    let mut arguments = FieldTable::default();
    for (key, argument) in &queue.arguments {
        arguments.insert(short(key), argument.value());
    }
    answered(channel.queue_declare(short(&queue.name), options, arguments)).await.map(drop)
}

async fn bind(channel: &Channel, queue: &QueueShape) -> Result<(), lapin::Error> {
    for (exchange, key) in &queue.bindings {
        let options = QueueBindOptions::default();
        let (queue, exchange, key) = (short(&queue.name), short(exchange), short(key));
        answered(channel.queue_bind(queue, exchange, key, options, FieldTable::default())).await?;
    }
    Ok(())
}

/// A name of this module as the client library wants it; all of them are far below its limit of 255 bytes.
fn short(name: &str) -> ShortString {
    name.into()
}

/// Words for what the broker said of one exchange or queue; an error that is about something else is handed on.
fn difference(what: String, error: lapin::Error) -> Result<Difference, lapin::Error> {
    let ErrorKind::ProtocolError(amqp) = error.kind() else {
        return Err(error);
    };
    let said = amqp.get_message().to_string();
    let message = match amqp.get_id() {
        404 => "is missing; run `spark-runtime topology declare`".to_owned(),
        406 => explain_inequivalence(&said),
        _ => return Err(error),
    };
    Ok(Difference { what, message, is_refusal: false })
}

/// RabbitMQ words a difference as `inequivalent arg 'x' for queue 'q' in vhost '/': received 'a' but current is 'b'`.
fn explain_inequivalence(said: &str) -> String {
    let between = |before: &str, after: &str| {
        let start = said.find(before)? + before.len();
        let length = said[start..].find(after)?;
        Some(&said[start..start + length])
    };
    let quoted = |before: &str| {
        let start = said.find(before)? + before.len();
        let rest = &said[start..];
        if let Some(rest) = rest.strip_prefix("the value '") {
            return rest.split('\'').next();
        }
        if let Some(rest) = rest.strip_prefix('\'') {
            return rest.split('\'').next();
        }
        rest.starts_with("none").then_some("none")
    };
    match (between("inequivalent arg '", "'"), quoted("received "), quoted("current is ")) {
        (Some(argument), Some(wanted), Some(found)) => {
            format!("has {argument} = {found}, not {wanted}; delete it or give it the right arguments")
        }
        _ => format!("is not as it has to be: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_in_words_that_name_it() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'spark.jobs' in vhost '/': \
                    received the value '20' of type 'long' but current is the value '5' of type 'long'";
        assert_eq!(
            explain_inequivalence(said),
            "has x-delivery-limit = 5, not 20; delete it or give it the right arguments"
        );
        let said = "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'spark.jobs' in vhost '/': received 'direct' but current is 'topic'";
        assert_eq!(
            explain_inequivalence(said),
            "has type = topic, not direct; delete it or give it the right arguments"
        );
        let said = "PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q' in vhost '/': received the value 'reject-publish' of type 'longstr' but current is none";
        assert_eq!(
            explain_inequivalence(said),
            "has x-overflow = none, not reject-publish; delete it or give it the right arguments"
        );
        assert_eq!(explain_inequivalence("odd"), "is not as it has to be: odd");
    }

    #[test]
    fn each_delay_has_a_queue_of_its_own_and_the_lease_is_one() {
        let delays = [5000, 200, 5000].map(Duration::from_millis).to_vec();
        let shape = Shape { delays, lease: Duration::from_secs(60), retention: Duration::from_secs(86_400) };
        let topology = Topology::new(&shape);
        let (_, queues) = topology.names();
        let delays: Vec<_> = queues.into_iter().filter(|name| name.starts_with("spark.delay")).collect();
        assert_eq!(delays, ["spark.delay.200ms", "spark.delay.5000ms", "spark.delay.60000ms"]);
    }
}
