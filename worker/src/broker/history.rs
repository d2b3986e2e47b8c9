//! The history: how jobs ended, for those who come later.
//!
//! A terminal event is in the history before the ledger says that the job is settled, and on the results exchange only
//! after. So there may be events in it of attempts that lost their job before it was settled; who looks for an end asks the
//! ledger which attempt it was.
//!
//! This module must not know what is in an event.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use spark_runtime_protocol::answer;
use spark_runtime_protocol::rights::Doing;
use spark_runtime_protocol::topology::{HISTORY_STREAM, STREAM_OFFSET_ARGUMENT};
use tokio::sync::watch;

use super::backoff::Backoff;
use super::publisher::{Announcement, Publisher};
use super::session::Session;
use super::words;

/// How many bytes of events are kept at hand: most repeated publications come soon after the end.
const AT_HAND: usize = 1 << 20;
/// Messages that may be on their way to the reader.
const PREFETCH: u16 = 500;
/// By how much the clocks of workers and broker differ, in seconds: mostly, and at most.
const CLOCKS: [u64; 2] = [5, 600];
/// A stream that gives nothing for so long may have been read to its end.
const SILENCE: Duration = Duration::from_secs(2);
/// How long one look may take. Nothing that a broker is asked for may keep a slot for ever.
const LOOK: Duration = Duration::from_secs(60);

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
        let mut backoff = Backoff::default();
        let mut sessions = self.sessions.clone();
        loop {
            let session = sessions.wait_for(Option::is_some).await.ok().and_then(|session| session.clone());
            let Some(session) = session else {
                // Nobody connects any more: the worker is going down.
                return std::future::pending().await;
            };
            let looked = tokio::time::timeout(LOOK, look_everywhere(&session, id, u64::from(at)));
            match looked.await {
                Ok(Ok(Looked::Found(found))) => {
                    self.at_hand.lock().unwrap_or_else(PoisonError::into_inner).keep(&found);
                    return Some(*found);
                }
                Ok(Ok(Looked::Gone)) => return None,
                Ok(Ok(Looked::NotSeen)) => {
                    tracing::warn!(id, "an end is not found in the history; looking again")
                }
                Ok(Err(error)) => {
                    tracing::warn!(
                        reason = words(&error, Doing::Consume),
                        "the history cannot be read; trying again"
                    );
                }
                Err(_) => tracing::warn!(id, "the history takes too long to be read; trying again"),
            }
            backoff.wait().await;
        }
    }
}

/// What a look into the history has brought.
enum Looked {
    Found(Box<Announcement>),
    /// It was not among what came; the broker may just have been slow.
    NotSeen,
    /// What the history still has is all younger.
    Gone,
}

/// First where it must be if the clocks are right, then where it must be at all, then everywhere.
async fn look_everywhere(session: &Session, id: &str, at: u64) -> Result<Looked, lapin::Error> {
    for clocks in CLOCKS {
        let around = at.saturating_sub(clocks)..at + clocks;
        if let Looked::Found(found) = look(session, id, Some(around)).await? {
            return Ok(Looked::Found(found));
        }
    }
    look(session, id, None).await
}

/// Looks through the history, or the part of it that was written at these times. A whole history that begins later than
/// anything that `id` could be among is no longer the one that had it.
async fn look(session: &Session, id: &str, times: Option<Range<u64>>) -> Result<Looked, lapin::Error> {
    let channel = session.connection.create_channel().await?;
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let messages =
        channel.queue_declare(HISTORY_STREAM.into(), options, FieldTable::default()).await?.message_count();
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let from = match &times {
        Some(times) => AMQPValue::Timestamp(times.start),
        None => AMQPValue::LongString("first".into()),
    };
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET_ARGUMENT.into(), from);
    let mut consumer = answer::consume(&channel, HISTORY_STREAM, "", arguments).await?;
    let (mut read, mut unacknowledged) = (0_u32, 0);
    let mut looked = Looked::NotSeen;
    while let Ok(Some(delivery)) = tokio::time::timeout(SILENCE, consumer.next()).await {
        let delivery = delivery?;
        let named = delivery.properties.message_id().as_ref().map(|id| id.as_str());
        if named == Some(id)
            && let Some(found) = Announcement::of_delivery(&delivery)
        {
            looked = Looked::Found(Box::new(found));
            break;
        }
        let written = delivery.properties.timestamp();
        if let (Some(times), Some(written)) = (&times, written)
            && *written > times.end
        {
            break;
        }
        read += 1;
        unacknowledged += 1;
        if unacknowledged >= PREFETCH / 2 {
            delivery.acker.ack(BasicAckOptions { multiple: true }).await?;
            unacknowledged = 0;
        }
    }
    // All that there was has been read, and it was not among it.
    if times.is_none() && read >= messages && matches!(looked, Looked::NotSeen) {
        looked = Looked::Gone;
    }
    channel.close(200, "looked".into()).await?;
    Ok(looked)
}
