//! A job message as it came: its body, and what its properties and headers say.
//!
//! Headers are written by anybody; one of a wrong type or value counts as absent.
//!
//! This module must not know what is in a body.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use spark_runtime_protocol::JobId;
use spark_runtime_protocol::event::TraceContext;
use spark_runtime_protocol::topology::{
    ATTEMPT_HEADER, DELIVERY_COUNT_HEADER, FAILURE_CLASS_HEADER, FAILURE_MESSAGE_HEADER,
    FIRST_DEATH_QUEUE_HEADER, FIRST_DEATH_REASON_HEADER, JOBS_QUEUE, RETURNS_HEADER, WORKER_HEADER,
};

/// Headers that belong to one publication of a message and not to its copies.
const OF_ONE_PUBLICATION: [&str; 4] =
    [DELIVERY_COUNT_HEADER, FAILURE_CLASS_HEADER, FAILURE_MESSAGE_HEADER, WORKER_HEADER];

/// How many characters of a failure travel in a dead job's header; the event has all of it.
const LONGEST_WORDS: usize = 1024;

/// A message that brought a job.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body, as it came.
    pub body: Vec<u8>,
    properties: BasicProperties,
}

impl Message {
    /// A message as the client library delivers it.
    #[must_use]
    pub fn new(body: Vec<u8>, properties: BasicProperties) -> Self {
        Self { body, properties }
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

    /// The W3C trace context of the headers.
    #[must_use]
    pub fn trace(&self) -> TraceContext {
        TraceContext { traceparent: self.text("traceparent"), tracestate: self.text("tracestate") }
    }

    /// The number of the attempt that this message is for, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.count(ATTEMPT_HEADER).unwrap_or(1).max(1)
    }

    /// Whether the message was delivered before and came back. How often says little: when a connection is lost, the
    /// broker may hand the message to every channel on it while it closes them.
    #[must_use]
    pub fn came_back(&self) -> bool {
        self.count(DELIVERY_COUNT_HEADER).unwrap_or(0) > 0
    }

    /// How many earlier attempts failed or were lost; those that were given back do not count.
    #[must_use]
    pub fn failures(&self) -> u32 {
        (self.attempt() - 1).saturating_sub(self.count(RETURNS_HEADER).unwrap_or(0))
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

    fn count(&self, name: &str) -> Option<u32> {
        match self.header(name)? {
            AMQPValue::ShortShortInt(n) => u32::try_from(*n).ok(),
            AMQPValue::ShortShortUInt(n) => Some((*n).into()),
            AMQPValue::ShortInt(n) => u32::try_from(*n).ok(),
            AMQPValue::ShortUInt(n) => Some((*n).into()),
            AMQPValue::LongInt(n) => u32::try_from(*n).ok(),
            AMQPValue::LongUInt(n) => Some(*n),
            AMQPValue::LongLongInt(n) => u32::try_from(*n).ok(),
            AMQPValue::Timestamp(n) => u32::try_from(*n).ok(),
            _ => None,
        }
        // Nobody has tried a job that often; such a number is a mistake or worse.
        .filter(|count| *count < 1_000_000)
    }

    /// The properties of a copy for the next attempt. The attempt that was under way counts, as given back or not.
    #[must_use]
    pub fn for_next_attempt(&self, given_back: bool) -> BasicProperties {
        let mut headers = self.own_headers();
        let returns = self.count(RETURNS_HEADER).unwrap_or(0) + u32::from(given_back);
        headers.insert(ATTEMPT_HEADER.into(), AMQPValue::LongUInt(self.attempt() + 1));
        if returns > 0 {
            headers.insert(RETURNS_HEADER.into(), AMQPValue::LongUInt(returns));
        }
        self.copied(headers)
    }

    /// The properties of a copy for the dead queue, with what is said about it.
    #[must_use]
    pub fn for_burial(&self, class: &str, words: &str, worker: &str) -> BasicProperties {
        let mut headers = self.own_headers();
        headers.insert(ATTEMPT_HEADER.into(), AMQPValue::LongUInt(self.attempt()));
        // Headers have to fit into one frame, together with those of the publisher.
        let words: String = words.chars().take(LONGEST_WORDS).collect();
        for (name, value) in
            [(FAILURE_CLASS_HEADER, class), (FAILURE_MESSAGE_HEADER, &words), (WORKER_HEADER, worker)]
        {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        }
        self.copied(headers).with_timestamp(seconds_now())
    }

    /// The properties of a copy that starts from the beginning.
    #[must_use]
    pub fn for_replay(&self) -> BasicProperties {
        let kept = self.own_headers().inner().clone().into_iter();
        let fresh = kept.filter(|(name, _)| ![ATTEMPT_HEADER, RETURNS_HEADER].contains(&name.as_str()));
        self.copied(FieldTable::from(fresh.collect::<std::collections::BTreeMap<_, _>>()))
    }

    /// The publisher's headers: without those that the broker or an earlier worker added.
    fn own_headers(&self) -> FieldTable {
        let headers = self.properties.headers().clone().unwrap_or_default();
        let own = headers.inner().clone().into_iter().filter(|(name, _)| {
            let name = name.as_str();
            let of_the_broker =
                name == "x-death" || name.starts_with("x-first-death-") || name.starts_with("x-last-death-");
            !of_the_broker && !OF_ONE_PUBLICATION.contains(&name)
        });
        FieldTable::from(own.collect::<std::collections::BTreeMap<_, _>>())
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
        if let Some(value) = from.reply_to() {
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
        Message::new(
            b"{}".to_vec(),
            BasicProperties::default().with_headers(table).with_message_id("m".into()),
        )
    }

    #[test]
    fn attempts_and_returns_are_counted_from_copy_to_copy() {
        assert_eq!(message(&[]).attempt(), 1);
        assert!(message(&[("x-delivery-count", AMQPValue::LongLongInt(7))]).came_back());
        let third = message(&[("x-attempt", AMQPValue::LongInt(3))]);
        assert_eq!((third.attempt(), third.failures(), third.came_back()), (3, 2, false));
        let next = Message::new(Vec::new(), third.for_next_attempt(true));
        assert_eq!((next.attempt(), next.failures()), (4, 2));
        let next = Message::new(Vec::new(), next.for_next_attempt(false));
        assert_eq!((next.attempt(), next.failures()), (5, 3));
        assert_eq!(Message::new(Vec::new(), next.for_replay()).attempt(), 1);
    }

    #[test]
    fn a_job_is_known_by_the_id_that_a_worker_reads() {
        let known_as = |body: &[u8], id: Option<&str>| {
            let mut properties = BasicProperties::default();
            if let Some(id) = id {
                properties = properties.with_message_id(id.into());
            }
            Message::new(body.to_vec(), properties).known_as()
        };
        assert_eq!(known_as(br#"{"id": "own"}"#, Some("message")).as_str(), "own");
        assert_eq!(known_as(br#"{"id": null}"#, Some("message")).as_str(), "message");
        assert_eq!(known_as(b"no JSON", Some("message")).as_str(), "message");
        assert_eq!(known_as(b"no JSON", Some("no id!")), JobId::stand_in(b"no JSON"));
        assert_eq!(known_as(br#"{"id": "a/b"}"#, None), JobId::stand_in(br#"{"id": "a/b"}"#));
    }

    #[test]
    fn a_replayed_job_keeps_what_its_publisher_gave_it_and_forgets_its_first_life() {
        let dead = message(&[
            ("mine", AMQPValue::LongInt(7)),
            ("x-attempt", AMQPValue::LongInt(3)),
            ("x-returns", AMQPValue::LongInt(1)),
            ("x-failure-class", AMQPValue::LongString("lost".into())),
            ("x-worker", AMQPValue::LongString("w".into())),
        ]);
        let copy = dead.for_replay();
        assert_eq!((copy.user_id(), copy.delivery_mode()), (&None, &Some(2)));
        let names: Vec<_> =
            copy.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(names, ["mine"]);
    }

    #[test]
    fn headers_of_wrong_types_count_as_absent() {
        for value in [
            AMQPValue::LongInt(-1),
            AMQPValue::LongString("many".into()),
            AMQPValue::Void,
            AMQPValue::LongLongInt(i64::MAX),
            AMQPValue::Boolean(true),
        ] {
            assert_eq!(message(&[("x-attempt", value.clone()), ("x-returns", value)]).attempt(), 1);
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
        ]);
        let copy = Message::new(Vec::new(), original.for_next_attempt(false));
        assert_eq!(copy.message_id(), Some("m"));
        let names: Vec<_> =
            copy.properties.headers().as_ref().unwrap().inner().keys().map(ToString::to_string).collect();
        assert_eq!(names, ["mine", "x-attempt"]);
        let buried = Message::new(Vec::new(), original.for_burial("lost", "words", "w"));
        assert_eq!(buried.text("x-failure-message").as_deref(), Some("words"));
    }
}
