//! A message as it came: its body, and what its properties and headers say.
//!
//! Headers are written by anybody; one of a wrong type or value counts as absent.
//!
//! This module must not know what is in a body.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use spark_runtime_protocol::JobId;
use spark_runtime_protocol::event::TraceContext;
use spark_runtime_protocol::topology::{
    ATTEMPT_HEADER, DELIVERY_COUNT_HEADER, FAILURE_CLASS_HEADER, FAILURE_MESSAGE_HEADER,
    FIRST_DEATH_QUEUE_HEADER, FIRST_DEATH_REASON_HEADER, JOBS_QUEUE, SEEN_CLAIM_HEADER, SEEN_FOR_HEADER,
    SEEN_RENEWAL_HEADER, SETTLED_CLAIM_HEADER, UNFIT_FOR_HEADER, WORKER_HEADER,
};

use super::ledger::record::Position;

/// Headers that belong to one publication of a message and not to its copies.
const OF_ONE_PUBLICATION: [&str; 10] = [
    ATTEMPT_HEADER,
    DELIVERY_COUNT_HEADER,
    FAILURE_CLASS_HEADER,
    FAILURE_MESSAGE_HEADER,
    WORKER_HEADER,
    SEEN_CLAIM_HEADER,
    SEEN_RENEWAL_HEADER,
    SEEN_FOR_HEADER,
    SETTLED_CLAIM_HEADER,
    UNFIT_FOR_HEADER,
];

/// What publishers write for a place that the broker chooses when they publish.
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";
/// Headers by which a message is handed to more queues than its routing key says.
const ROUTING: [&str; 2] = ["CC", "BCC"];
/// Headers that link traces.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];
/// How many bytes of headers a copy has at most, beside ours: half a frame.
const MOST_HEADERS: usize = 64 * 1024;
/// How many characters of a failure travel in a dead job's header; the event has all of it.
const LONGEST_WORDS: usize = 1024;

/// A message that brought a job or a command.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body, as it came.
    pub body: Vec<u8>,
    properties: BasicProperties,
    redelivered: bool,
}

/// What was seen of a job's owner, and for how long nothing else has been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The claim in force.
    pub claim: Position,
    /// The owner's last renewal.
    pub renewal: Position,
    /// How long this is so when the copy that carries it comes back.
    pub duration: Duration,
}

fn settled_claim(claim: Position) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(claim.number()).unwrap_or(i64::MAX))
}

impl Message {
    /// A message as the client library delivers it.
    #[must_use]
    pub fn new(body: Vec<u8>, properties: BasicProperties, redelivered: bool) -> Self {
        Self { body, properties, redelivered }
    }

    /// Property `message_id`.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        self.properties.message_id().as_ref().map(ShortString::as_str)
    }

    /// Property `timestamp`, in seconds since 1970; in a dead job's message, when it was buried.
    #[must_use]
    pub fn timestamp(&self) -> Option<u64> {
        *self.properties.timestamp()
    }

    /// Property `correlation_id`.
    #[must_use]
    pub fn correlation_id(&self) -> Option<String> {
        self.properties.correlation_id().as_ref().map(ToString::to_string)
    }

    /// Property `reply_to`: the queue at which somebody waits for an answer.
    #[must_use]
    pub fn reply_to(&self) -> Option<&str> {
        self.properties.reply_to().as_ref().map(ShortString::as_str).filter(|queue| !queue.is_empty())
    }

    /// The W3C trace context of the headers.
    #[must_use]
    pub fn trace(&self) -> TraceContext {
        TraceContext { traceparent: self.text("traceparent"), tracestate: self.text("tracestate") }
    }

    /// Whether somebody had this delivery before and lost it. A hint: it may be that he never looked at it.
    #[must_use]
    pub fn came_back(&self) -> bool {
        self.redelivered
    }

    /// The attempt that a copy says it is for, or was the last. It decides nothing.
    #[must_use]
    pub fn told_attempt(&self) -> Option<u32> {
        u32::try_from(self.number(ATTEMPT_HEADER)?).ok()
    }

    /// What whoever delayed this copy had seen of the job's owner.
    #[must_use]
    pub fn seen(&self) -> Option<Seen> {
        Some(Seen {
            claim: Position::from_number(self.number(SEEN_CLAIM_HEADER)?),
            renewal: Position::from_number(self.number(SEEN_RENEWAL_HEADER)?),
            duration: Duration::from_millis(self.number(SEEN_FOR_HEADER)?),
        })
    }

    /// For how long the job has been offered to workers that may have a runtime for it.
    #[must_use]
    pub fn unfit_for(&self) -> Duration {
        Duration::from_millis(self.number(UNFIT_FOR_HEADER).unwrap_or_default())
    }

    /// The end that an operator wants undone.
    #[must_use]
    pub fn undoes(&self) -> Option<Position> {
        self.number(SETTLED_CLAIM_HEADER).map(Position::from_number)
    }

    /// Why the broker took the message out of the queue of jobs, when that was its first death; a copy that has been
    /// through a delay died there first, on purpose.
    #[must_use]
    pub fn death_reason(&self) -> Option<String> {
        let from_jobs = self.text(FIRST_DEATH_QUEUE_HEADER).is_none_or(|queue| queue == JOBS_QUEUE);
        self.text(FIRST_DEATH_REASON_HEADER).filter(|_| from_jobs)
    }

    /// The id of the job, looked up without reading the job: its own, else the message's, else what stands in for it.
    #[must_use]
    pub fn known_as(&self) -> JobId {
        #[derive(serde::Deserialize)]
        struct Named {
            id: Option<String>,
        }
        let own =
            serde_json::from_slice::<Named>(&self.body).ok().and_then(|named| JobId::new(&named.id?).ok());
        let from_message = || JobId::new(self.message_id()?).ok();
        own.or_else(from_message).unwrap_or_else(|| JobId::stand_in(&self.body))
    }

    fn header(&self, name: &str) -> Option<&AMQPValue> {
        self.properties.headers().as_ref()?.inner().get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.header(name)? {
            AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            _ => None,
        }
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.header(name)? {
            AMQPValue::ShortShortInt(n) => u64::try_from(*n).ok(),
            AMQPValue::ShortShortUInt(n) => Some((*n).into()),
            AMQPValue::ShortInt(n) => u64::try_from(*n).ok(),
            AMQPValue::ShortUInt(n) => Some((*n).into()),
            AMQPValue::LongInt(n) => u64::try_from(*n).ok(),
            AMQPValue::LongUInt(n) => Some((*n).into()),
            AMQPValue::LongLongInt(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The properties of a copy for the attempt with this number. The number is for people; the ledger counts.
    #[must_use]
    pub fn for_attempt(&self, attempt: u32) -> BasicProperties {
        let mut headers = self.own_headers();
        headers.insert(ATTEMPT_HEADER.into(), AMQPValue::LongUInt(attempt));
        self.copied(headers)
    }

    /// The properties of a copy of a job that this worker has not claimed. Its `expiration` counts anew; where somebody had
    /// the delivery before, the wait for a first worker may be over, and no end may say that it was in vain.
    #[must_use]
    pub fn for_first_attempt(&self) -> BasicProperties {
        let properties = self.for_attempt(1);
        match self.properties.expiration() {
            Some(expiration) if !self.came_back() => properties.with_expiration(expiration.clone()),
            _ => properties,
        }
    }

    /// The properties of a copy that is offered to workers that may have a runtime for it; `waited` is for how long it
    /// will have been when it comes back.
    #[must_use]
    pub fn for_others(&self, waited: Duration, attempt: u32) -> BasicProperties {
        let mut headers = self.own_headers();
        headers.insert(ATTEMPT_HEADER.into(), AMQPValue::LongUInt(attempt));
        let waited = i64::try_from(waited.as_millis()).unwrap_or(i64::MAX);
        headers.insert(UNFIT_FOR_HEADER.into(), AMQPValue::LongLongInt(waited));
        self.copied(headers)
    }

    /// The properties of a copy that waits for the end of an owner's lease.
    #[must_use]
    pub fn for_another_look(&self, seen: &Seen) -> BasicProperties {
        let mut headers = self.own_headers();
        let duration = u64::try_from(seen.duration.as_millis()).unwrap_or(u64::MAX);
        for (name, number) in [
            (SEEN_CLAIM_HEADER, seen.claim.number()),
            (SEEN_RENEWAL_HEADER, seen.renewal.number()),
            (SEEN_FOR_HEADER, duration),
        ] {
            headers.insert(name.into(), AMQPValue::LongLongInt(i64::try_from(number).unwrap_or(i64::MAX)));
        }
        if let Some(claim) = self.undoes() {
            headers.insert(SETTLED_CLAIM_HEADER.into(), settled_claim(claim));
        }
        self.copied(headers)
    }

    /// The properties of a copy for the dead queue, with what is said about it; `claim` is the one by which the job was
    /// settled, when it was this message that brought it to its end.
    #[must_use]
    pub fn for_burial(
        &self,
        class: &str,
        words: &str,
        worker: &str,
        claim: Option<Position>,
        attempt: u32,
    ) -> BasicProperties {
        let mut headers = self.own_headers();
        headers.insert(ATTEMPT_HEADER.into(), AMQPValue::LongUInt(attempt));
        // See `own_headers`.
        let words: String = words.chars().take(LONGEST_WORDS).collect();
        for (name, value) in
            [(FAILURE_CLASS_HEADER, class), (FAILURE_MESSAGE_HEADER, &words), (WORKER_HEADER, worker)]
        {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        if let Some(claim) = claim {
            headers.insert(SETTLED_CLAIM_HEADER.into(), settled_claim(claim));
        }
        self.copied(headers).with_timestamp(seconds_now())
    }

    /// The properties of a copy that undoes the job's end.
    #[must_use]
    pub fn for_replay(&self) -> BasicProperties {
        let mut headers = self.own_headers();
        if let Some(claim) = self.undoes() {
            headers.insert(SETTLED_CLAIM_HEADER.into(), settled_claim(claim));
        }
        self.copied(headers)
    }

    /// The publisher's headers: without those that the broker or an earlier worker added, and without those by which the
    /// broker would hand a copy to more queues. Of too many of them only what links the job's traces is left: headers have to
    /// fit into one frame, with what is added to them here and by the broker, or the connection ends.
    fn own_headers(&self) -> FieldTable {
        let mut own = self.properties.headers().clone().unwrap_or_default().inner().clone();
        own.retain(|name, _| {
            let name = name.as_str();
            let of_the_broker =
                name == "x-death" || name.starts_with("x-first-death-") || name.starts_with("x-last-death-");
            !of_the_broker && !ROUTING.contains(&name) && !OF_ONE_PUBLICATION.contains(&name)
        });
        let own = FieldTable::from(own);
        if bytes_of_table(&own) <= MOST_HEADERS {
            return own;
        }
        tracing::warn!(
            most = MOST_HEADERS,
            "a job's headers are too large for a copy of it; they are left out"
        );
        let mut left = own.inner().clone();
        left.retain(|name, value| TRACE.contains(&name.as_str()) && bytes_of(value) <= LONGEST_WORDS);
        FieldTable::from(left)
    }

    fn copied(&self, headers: FieldTable) -> BasicProperties {
        let from = &self.properties;
        let mut properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        // Not `expiration`: it bounds the wait for a first worker, and that is over. Not `user_id`: it is not ours.
        if let Some(value) = from.message_id() {
            properties = properties.with_message_id(value.clone());
        }
        if let Some(value) = from.correlation_id() {
            properties = properties.with_correlation_id(value.clone());
        }
        if let Some(value) = from.content_type() {
            properties = properties.with_content_type(value.clone());
        }
        if let Some(value) = from.content_encoding() {
            properties = properties.with_content_encoding(value.clone());
        }
        if let Some(value) = from.priority() {
            properties = properties.with_priority(*value);
        }
        // A copy with this name of the broker's own would be refused, and nobody can be answered there.
        if let Some(value) = from.reply_to().as_ref().filter(|name| name.as_str() != DIRECT_REPLY) {
            properties = properties.with_reply_to(value.clone());
        }
        if let Some(value) = from.app_id() {
            properties = properties.with_app_id(value.clone());
        }
        if let Some(value) = from.timestamp() {
            properties = properties.with_timestamp(*value);
        }
        properties
    }
}

/// How many bytes a table takes in a frame.
fn bytes_of_table(table: &FieldTable) -> usize {
    let entries = table.inner().iter().map(|(name, value)| 2 + name.as_str().len() + bytes_of(value));
    4 + entries.sum::<usize>()
}

/// How many bytes a value takes in a frame, without its type.
fn bytes_of(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => {
            4 + values.as_slice().iter().map(|value| 1 + bytes_of(value)).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => bytes_of_table(table),
    }
}

/// AMQP's timestamps are seconds since 1970.
fn seconds_now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &[(&str, AMQPValue)]) -> Message {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        copy(BasicProperties::default().with_headers(table).with_message_id("m".into()))
    }

    fn copy(properties: BasicProperties) -> Message {
        Message::new(b"{}".to_vec(), properties, false)
    }

    fn header_names(properties: &BasicProperties) -> Vec<String> {
        properties.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_copy_asks_for_no_answer_where_the_broker_itself_chose_the_place() {
        let reply_to = |name: &str| {
            copy(BasicProperties::default().with_reply_to(name.into())).for_attempt(1).reply_to().clone()
        };
        assert_eq!(reply_to(DIRECT_REPLY), None);
        assert_eq!(reply_to("answers").unwrap().as_str(), "answers");
    }

    #[test]
    fn of_too_many_headers_those_of_traces_alone_are_copied() {
        let text = |bytes: usize| AMQPValue::LongString("x".repeat(bytes).into());
        let nested = |bytes: usize| {
            let mut table = FieldTable::default();
            table.insert("k".into(), AMQPValue::FieldArray(vec![text(bytes), AMQPValue::Void].into()));
            AMQPValue::FieldTable(table)
        };
        let names = |value: AMQPValue| {
            let ours = message(&[("own", value), ("traceparent", text(55)), ("CC", text(1))]);
            header_names(&ours.for_burial("model", "words", "w", None, 1))
        };
        let rest =
            ["traceparent", ATTEMPT_HEADER, FAILURE_CLASS_HEADER, FAILURE_MESSAGE_HEADER, WORKER_HEADER];
        assert_eq!(names(nested(130_000)), rest);
        // What is not copied does not count.
        let revived = message(&[("own", text(60_000)), (FAILURE_MESSAGE_HEADER, text(10_000))]);
        assert_eq!(header_names(&revived.for_attempt(2)), ["own", ATTEMPT_HEADER]);
        assert_eq!(names(nested(60_000)), [&["own"], &rest[..]].concat());
    }

    #[test]
    fn what_was_seen_of_an_owner_travels_with_the_copy_and_no_further() {
        let seen = Seen {
            claim: Position::new(1 << 40, 3),
            renewal: Position::new(7, 0),
            duration: Duration::from_secs(60),
        };
        let back = copy(message(&[]).for_another_look(&seen));
        assert_eq!(back.seen(), Some(seen));
        assert_eq!(copy(back.for_attempt(2)).seen(), None);
        let forged = message(&[(SEEN_CLAIM_HEADER, AMQPValue::LongInt(-1))]);
        assert_eq!(forged.seen(), None);
    }

    #[test]
    fn how_long_a_job_was_offered_to_others_travels_with_the_offer_and_no_further() {
        assert_eq!(message(&[]).unfit_for(), Duration::ZERO);
        let back = copy(message(&[("mine", AMQPValue::LongInt(7))]).for_others(Duration::from_secs(5), 2));
        assert_eq!((back.unfit_for(), back.told_attempt()), (Duration::from_secs(5), Some(2)));
        assert_eq!(copy(back.for_attempt(3)).unfit_for(), Duration::ZERO);
        assert_eq!(message(&[(UNFIT_FOR_HEADER, AMQPValue::LongInt(-1))]).unfit_for(), Duration::ZERO);
    }

    #[test]
    fn a_job_is_known_by_the_id_that_a_worker_reads() {
        let known_as = |body: &[u8], id: Option<&str>| {
            let mut properties = BasicProperties::default();
            if let Some(id) = id {
                properties = properties.with_message_id(id.into());
            }
            Message::new(body.to_vec(), properties, false).known_as()
        };
        assert_eq!(known_as(br#"{"id": "own"}"#, Some("message")).as_str(), "own");
        assert_eq!(known_as(br#"{"id": null}"#, Some("message")).as_str(), "message");
        assert_eq!(known_as(b"no JSON", Some("message")).as_str(), "message");
        assert_eq!(known_as(b"no JSON", Some("no id!")), JobId::stand_in(b"no JSON"));
        assert_eq!(known_as(br#"{"id": "a/b"}"#, None), JobId::stand_in(br#"{"id": "a/b"}"#));
    }

    #[test]
    fn a_replayed_job_keeps_what_its_publisher_gave_it_and_names_the_end_that_it_undoes() {
        let first = message(&[("mine", AMQPValue::LongInt(7)), ("x-attempt", AMQPValue::LongInt(3))]);
        let claim = Position::new(9, 1);
        let dead = copy(first.for_burial("lost", "words", "w", Some(claim), 3));
        assert_eq!(dead.text("x-failure-message").as_deref(), Some("words"));
        let replay = dead.for_replay();
        assert_eq!((replay.user_id(), replay.delivery_mode()), (&None, &Some(2)));
        assert_eq!(header_names(&replay), ["mine", "x-settled-claim"]);
        assert_eq!(copy(replay).undoes(), Some(claim));
    }

    #[test]
    fn an_expiration_bounds_the_wait_for_a_first_worker_and_no_longer() {
        let mut message = message(&[]);
        message.properties = message.properties.clone().with_expiration("60000".into());
        assert_eq!(message.for_first_attempt().expiration(), &Some("60000".into()));
        for copied in [message.for_attempt(2), message.for_replay()] {
            assert_eq!(copied.expiration(), &None);
        }
        message.redelivered = true;
        assert_eq!(message.for_first_attempt().expiration(), &None);
    }

    #[test]
    fn headers_of_wrong_types_count_as_absent() {
        for value in [
            AMQPValue::LongInt(-1),
            AMQPValue::LongString("many".into()),
            AMQPValue::Void,
            AMQPValue::LongLongInt(i64::MIN),
            AMQPValue::Boolean(true),
        ] {
            let message = message(&[
                (SEEN_CLAIM_HEADER, value.clone()),
                (SEEN_RENEWAL_HEADER, value.clone()),
                (SEEN_FOR_HEADER, value.clone()),
                (SETTLED_CLAIM_HEADER, value),
            ]);
            assert_eq!((message.seen(), message.undoes()), (None, None));
        }
        assert_eq!(message(&[("traceparent", AMQPValue::LongInt(1))]).trace(), TraceContext::default());
    }

    #[test]
    fn a_copy_keeps_what_its_publisher_said_and_nothing_of_its_history() {
        let original = message(&[
            ("mine", AMQPValue::LongInt(7)),
            ("x-death", AMQPValue::LongInt(1)),
            ("x-first-death-reason", AMQPValue::LongString("expired".into())),
            ("x-delivery-count", AMQPValue::LongLongInt(3)),
            ("x-failure-class", AMQPValue::LongString("lost".into())),
            ("x-settled-claim", AMQPValue::LongInt(3)),
            ("x-attempt", AMQPValue::LongInt(-1)),
        ]);
        let copied = original.for_attempt(2);
        assert_eq!(header_names(&copied), ["mine", "x-attempt"]);
        assert_eq!(copy(copied).message_id(), Some("m"));
    }
}
