//! The history: how jobs ended, for those who come later.
//!
//! A terminal event is in the history before the ledger says that the job is settled, and on the results exchange only
//! after. So there may be events in it of attempts that lost their job before it was settled; who looks for an end asks the
//! ledger which attempt it was.
//!
//! This module must not know what is in an event.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use spark_runtime_protocol::topology::{HISTORY_STREAM, STREAM_OFFSET_ARGUMENT};
use tokio::sync::watch;

use super::backoff::Backoff;
use super::publisher::{Announcement, Publisher};
use super::session::Session;

/// How many bytes of events are kept at hand: most repeated publications come soon after the end.
const AT_HAND: usize = 1 << 20;
/// Messages that may be on their way to the reader.
const PREFETCH: u16 = 500;
/// By how much the clocks of workers and broker may differ, in seconds, before the whole history is looked through.
const CLOCKS: u64 = 600;
/// A stream that gives nothing for so long has been read to its end.
const END_OF_STREAM: Duration = Duration::from_secs(2);

/// The history.
pub struct History {
    publisher: Publisher,
    sessions: watch::Receiver<Option<Session>>,
    at_hand: Mutex<AtHand>,
}

#[derive(Default)]
struct AtHand {
    events: HashMap<String, Announcement>,
    order: VecDeque<String>,
    bytes: usize,
}

impl AtHand {
    fn keep(&mut self, announcement: &Announcement) {
        self.bytes += announcement.size();
        self.order.push_back(announcement.id().to_owned());
        self.events.insert(announcement.id().to_owned(), announcement.clone());
        while self.bytes > AT_HAND
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some(event) = self.events.remove(&oldest) {
                self.bytes = self.bytes.saturating_sub(event.size());
            }
        }
    }
}

impl History {
    /// The history, read by way of `sessions`.
    #[must_use]
    pub fn new(publisher: Publisher, sessions: watch::Receiver<Option<Session>>) -> Self {
        Self { publisher, sessions, at_hand: Mutex::default() }
    }

    /// Writes an end down, and waits until the broker has it for good.
    pub async fn record(&self, announcement: &Announcement) {
        self.publisher.record(announcement).await;
        self.at_hand.lock().unwrap_or_else(PoisonError::into_inner).keep(announcement);
    }

    /// The event with this id, written down at about `at` (seconds since 1970); `None` when it is no longer there.
    pub async fn find(&self, id: &str, at: u32) -> Option<Announcement> {
        let at_hand = self.at_hand.lock().unwrap_or_else(PoisonError::into_inner).events.get(id).cloned();
        if at_hand.is_some() {
            return at_hand;
        }
        let at = u64::from(at);
        let around = Some(at.saturating_sub(CLOCKS)..at + CLOCKS);
        let mut backoff = Backoff::default();
        let mut sessions = self.sessions.clone();
        loop {
            let session = sessions.wait_for(Option::is_some).await.ok().and_then(|session| session.clone());
            let Some(session) = session else {
                // Nobody connects any more: the worker is going down.
                return std::future::pending().await;
            };
            let found = match look(&session, id, around.clone()).await {
                Ok(None) => look(&session, id, None).await,
                other => other,
            };
            match found {
                Ok(found) => {
                    if let Some(found) = &found {
                        self.at_hand.lock().unwrap_or_else(PoisonError::into_inner).keep(found);
                    }
                    return found;
                }
                Err(error) => {
                    tracing::warn!(%error, "the history cannot be read; trying again");
                    backoff.wait().await;
                }
            }
        }
    }
}

/// Looks through the history, or the part of it that was written at these times.
async fn look(
    session: &Session,
    id: &str,
    times: Option<std::ops::Range<u64>>,
) -> Result<Option<Announcement>, lapin::Error> {
    let channel = session.connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let from = match &times {
        Some(times) => AMQPValue::Timestamp(times.start),
        None => AMQPValue::LongString("first".into()),
    };
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET_ARGUMENT.into(), from);
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(HISTORY_STREAM.into(), "".into(), options, arguments).await?;
    let mut unacknowledged = 0;
    let mut found = None;
    while let Ok(Some(delivery)) = tokio::time::timeout(END_OF_STREAM, consumer.next()).await {
        let delivery = delivery?;
        let named = delivery.properties.message_id().as_ref().map(|id| id.as_str());
        if named == Some(id) {
            found = Announcement::of_delivery(&delivery);
            break;
        }
        let written = delivery.properties.timestamp();
        if let (Some(times), Some(written)) = (&times, written)
            && *written > times.end
        {
            break;
        }
        unacknowledged += 1;
        if unacknowledged >= PREFETCH / 2 {
            delivery.acker.ack(BasicAckOptions { multiple: true }).await?;
            unacknowledged = 0;
        }
    }
    channel.close(200, "looked".into()).await?;
    Ok(found)
}
