//! Reading the ledger: from its first record at the start, and then for ever on.
//!
//! A reader that loses its channel goes on where it was, and begins with the message that it read last: a stream that was
//! deleted and made again, or cut off under the reader, has another one there, and is read from its start. It also writes a
//! renewal each time and expects to read it back, for one that has not come that far yet has nothing there.
//!
//! This module must not know what the records mean.

use std::time::Duration;

use futures_util::StreamExt;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Channel, Consumer};
use spark_runtime_protocol::answer::{self, answered, next};
use spark_runtime_protocol::rights::Doing;
use spark_runtime_protocol::topology::{LEDGER_STREAM, STREAM_OFFSET_ARGUMENT, STREAM_OFFSET_HEADER};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::record::Position;
use super::{Last, Ledger, checkpoint};
use crate::broker::backoff::Backoff;
use crate::broker::session::Session;
use crate::broker::{self, words};

/// Records that may be on their way to the reader.
const PREFETCH: u16 = 2000;
/// So many messages are acknowledged together.
const ACKNOWLEDGED_TOGETHER: u32 = 500;
/// A message is acknowledged after this time at the latest: a broker before 4.3 loses patience with a reader of a stream as
/// with any other consumer, by default after half an hour, and closes its channel.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);
/// How often the log tells how far the first reading has got.
const PROGRESS: Duration = Duration::from_secs(1);
/// A record that the broker has confirmed, and that does not come while nothing else comes either, does not come on this
/// consumer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked what the broker has cut off. It cuts off days after they were written.
const FORGETTING: Duration = Duration::from_secs(60 * 60);
/// How long the broker may take to show the first record.
const FIRST_PATIENCE: Duration = Duration::from_secs(30);
/// How long the broker may take to open a consumer.
const OPENING: Duration = Duration::from_secs(30);

/// Why a reading ended.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{}", words(.0, Doing::Consume))]
    Broker(#[from] lapin::Error),
    #[error("the broker ended the consumer")]
    Ended,
    #[error("the broker did not answer within {} s", OPENING.as_secs())]
    NoAnswer,
    #[error(
        "records from {expected} on were asked for, and the first that came is {found}: the log was cut off under the reader"
    )]
    CutOff { expected: u64, found: u64 },
    #[error(
        "the record at {0} is not the one that was read there: the log is not the one that was read before"
    )]
    Other(u64),
    #[error(
        "the log was cut off up to {first} while it was read from {began} on: something may have been passed over"
    )]
    CutMeanwhile { began: u64, first: u64 },
    #[error("the record at {0} comes once more")]
    Repeated(u64),
    #[error("neither what was read last nor what was written since comes")]
    Silent,
    #[error("a record that was written does not come within {} s", PATIENCE.as_secs())]
    Stalled,
}

impl ReadError {
    /// Whether what has been read before is worth nothing. `was_silent` tells that the log has been silent before, and has not
    /// shown since that it is the same: a broker may be slow once, but a log that is shorter than the one that was read stays
    /// silent.
    fn voids_the_past(&self, was_silent: bool) -> bool {
        match self {
            Self::CutOff { .. } | Self::CutMeanwhile { .. } | Self::Other(_) => true,
            Self::Silent => was_silent,
            Self::Broker(_) | Self::Ended | Self::NoAnswer | Self::Repeated(_) | Self::Stalled => false,
        }
    }
}

/// Reads the ledger for as long as there are sessions.
pub async fn follow(ledger: Ledger, mut sessions: watch::Receiver<Option<Session>>) {
    let mut backoff = Backoff::default();
    // Whoever has to read anew what he has read before trusts nothing but the log itself.
    let mut is_first = true;
    let mut was_silent = false;
    loop {
        let session = match sessions.wait_for(Option::is_some).await {
            Ok(session) => session.clone(),
            Err(_) => return,
        };
        let Some(session) = session else { continue };
        if is_first && ledger.state().last.is_none() {
            match checkpoint::newest(&session).await {
                Ok(Some(checkpoint)) => ledger.go_on_from(checkpoint),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "no checkpoint is used: the ledger is read from its start")
                }
            }
        }
        is_first = false;
        let Err(error) = read(&ledger, &session, &mut backoff, &mut was_silent).await;
        if error.voids_the_past(was_silent) {
            tracing::error!(
                %error,
                "the ledger is read from its start; jobs that ended in the part that is gone are no longer known"
            );
            ledger.begin_again();
            was_silent = false;
        } else {
            was_silent |= matches!(error, ReadError::Silent);
            tracing::warn!(%error, generation = session.generation, "the ledger cannot be read; trying again");
        }
        if is_missing(&error)
            && let Err(error) = session.declare().await
        {
            tracing::warn!(%error, "the ledger's stream is missing and cannot be declared");
        }
        backoff.wait().await;
    }
}

fn is_missing(error: &ReadError) -> bool {
    match error {
        ReadError::Broker(error) => broker::is_missing(error),
        ReadError::Ended => true,
        _ => false,
    }
}

/// The renewal by which a reading knows that it has come to the present.
struct Mark {
    /// Its number among the records of this instance.
    sequence: u64,
    written: oneshot::Receiver<()>,
    read: oneshot::Receiver<super::Effect>,
    is_written: bool,
    is_read: bool,
}

/// Reads on from where the last reading ended. `was_silent` is taken back when the log shows that it is the same.
async fn read(
    ledger: &Ledger,
    session: &Session,
    backoff: &mut Backoff,
    was_silent: &mut bool,
) -> Result<std::convert::Infallible, ReadError> {
    let mut before = ledger.state().last.clone();
    let from = before.as_ref().map(|last| last.offset);
    let opened = tokio::time::timeout(OPENING, open(session, from)).await;
    let (channel, mut consumer, kept) = opened.map_err(|_| ReadError::NoAnswer)??;
    if from.is_none() {
        ledger.append_all_again();
    }
    let mut mark = ledger.mark();
    let mut unacknowledged = Unacknowledged::default();
    let mut records = 0_u64;
    let (mut heard, mut told) = (Instant::now(), Instant::now());
    let mut reached = from;
    let mut began = from;
    // Asked once the present is reached. A reader in the oldest part of a stream is carried on, without a word, to the first
    // record that is left; and what was cut off before this reading is to be forgotten before anybody trusts the rest.
    let start = async { tokio::time::timeout(PATIENCE, first(session)).await };
    tokio::pin!(start);
    let mut is_present = false;
    loop {
        let delivery = tokio::select! {
            biased;
            () = unacknowledged.due() => {
                unacknowledged.acknowledge().await?;
                continue;
            }
            start = &mut start, if mark.is_read && !is_present => {
                let start = start.unwrap_or(Ok(None));
                if let (Some(began), Ok(Some(first))) = (began, &start)
                    && *first > began
                {
                    return Err(ReadError::CutMeanwhile { began, first: *first });
                }
                ledger.forget_what_is_cut_off(start);
                is_present = true;
                backoff.succeeded();
                ledger.caught_up();
                continue;
            }
            delivery = next(&mut consumer, &channel) => delivery.ok_or(ReadError::Ended)??,
            written = &mut mark.written, if !mark.is_written => {
                mark.is_written = written.is_ok();
                heard = Instant::now();
                continue;
            }
            () = tokio::time::sleep_until(heard + PATIENCE), if mark.is_written && !mark.is_read => {
                return Err(if before.is_some() { ReadError::Silent } else { ReadError::Stalled });
            }
        };
        heard = Instant::now();
        let Some(offset) = offset(&delivery) else {
            tracing::warn!("a message of the ledger came without its offset");
            continue;
        };
        unacknowledged.add(delivery.acker);
        if let Some(last) = before.take() {
            last.is_at(offset, &delivery.data)?;
            *was_silent = false;
            continue;
        }
        // A replica that was behind may begin somewhere else. Taken twice, a record would spoil what is known.
        if reached.is_some_and(|reached| offset <= reached) {
            return Err(ReadError::Repeated(offset));
        }
        reached = Some(offset);
        began.get_or_insert(offset);
        ledger.take(offset, &delivery.data);
        records += 1;
        if !mark.is_read {
            if mark.read.try_recv().is_ok() {
                mark.is_read = true;
                ledger.come_to(mark.sequence);
            } else if told.elapsed() >= PROGRESS {
                told = Instant::now();
                tracing::info!(records, kept, "reading the ledger");
            }
        }
    }
}

/// Forgets now and then what the broker has cut off, so that this reader knows no more than one that starts now.
pub async fn keep_forgetting(ledger: Ledger, sessions: watch::Receiver<Option<Session>>) {
    loop {
        tokio::time::sleep(FORGETTING).await;
        let session = sessions.borrow().clone();
        let Some(session) = session else { continue };
        let first = tokio::time::timeout(FIRST_PATIENCE, first(&session)).await;
        ledger.forget_what_is_cut_off(first.unwrap_or(Ok(None)));
    }
}

/// The place of the first message that the stream still has.
pub(super) async fn first(session: &Session) -> Result<Option<u64>, lapin::Error> {
    let channel = session.connection.create_channel().await?;
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET_ARGUMENT.into(), AMQPValue::LongString("first".into()));
    let mut consumer = answer::consume(&channel, LEDGER_STREAM, "", arguments).await?;
    let found = match consumer.next().await {
        Some(delivery) => offset(&delivery?),
        None => None,
    };
    channel.close(200, "looked".into()).await?;
    Ok(found)
}

impl Last {
    /// Makes sure that this is what was read last.
    fn is_at(&self, offset: u64, body: &[u8]) -> Result<(), ReadError> {
        if offset > self.offset {
            return Err(ReadError::CutOff { expected: self.offset, found: offset });
        }
        if offset < self.offset || !self.message.is(body) {
            return Err(ReadError::Other(offset));
        }
        Ok(())
    }
}

/// Opens a consumer that begins at a place of the stream, or at its start; tells about how many records there are.
async fn open(session: &Session, from: Option<u64>) -> Result<(Channel, Consumer, u32), lapin::Error> {
    let channel = session.connection.create_channel().await?;
    let kept = kept(&channel).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let from = match from {
        Some(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
        None => AMQPValue::LongString("first".into()),
    };
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET_ARGUMENT.into(), from);
    let tag = format!("ledger-{}", session.generation);
    let consumer = answer::consume(&channel, LEDGER_STREAM, &tag, arguments).await?;
    Ok((channel, consumer, kept))
}

/// Messages that were read and not acknowledged yet.
#[derive(Default)]
struct Unacknowledged {
    count: u32,
    /// The last one, and when the first one came.
    last: Option<(Acker, Instant)>,
}

impl Unacknowledged {
    fn add(&mut self, acker: Acker) {
        let since = self.last.take().map_or_else(Instant::now, |(_, since)| since);
        self.last = Some((acker, since));
        self.count += 1;
    }

    /// Waits until they are to be acknowledged.
    async fn due(&self) {
        match &self.last {
            None => std::future::pending().await,
            Some(_) if self.count >= ACKNOWLEDGED_TOGETHER => {}
            Some((_, since)) => tokio::time::sleep_until(*since + ACKNOWLEDGED_WITHIN).await,
        }
    }

    async fn acknowledge(&mut self) -> Result<(), lapin::Error> {
        self.count = 0;
        if let Some((acker, _)) = self.last.take() {
            answered(acker.ack(BasicAckOptions { multiple: true })).await?;
        }
        Ok(())
    }
}

/// About how many records the stream has.
async fn kept(channel: &Channel) -> Result<u32, lapin::Error> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(LEDGER_STREAM.into(), options, FieldTable::default()).await?;
    Ok(declared.message_count())
}

/// The place of a message of a stream.
#[must_use]
pub fn offset(delivery: &Delivery) -> Option<u64> {
    let headers = delivery.properties.headers().as_ref()?;
    match headers.inner().get(STREAM_OFFSET_HEADER)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        AMQPValue::LongInt(offset) => u64::try_from(*offset).ok(),
        AMQPValue::Timestamp(offset) => Some(*offset),
        _ => None,
    }
}

impl Ledger {
    /// Forgets what lies before the first message that the stream still has, where that could be found out.
    fn forget_what_is_cut_off(&self, first: Result<Option<u64>, lapin::Error>) {
        match first {
            Ok(Some(offset)) => {
                let (open, settled) = self.forget_before(Position::new(offset, 0));
                tracing::debug!(offset, open, settled, "what is no longer in the ledger is forgotten");
            }
            Ok(None) => tracing::debug!("the broker did not show the start of the ledger"),
            Err(error) => tracing::debug!(%error, "the start of the ledger could not be found out"),
        }
    }

    /// Writes a renewal that tells when it is written and when it is read.
    fn mark(&self) -> Mark {
        let (tell, read) = oneshot::channel();
        let entry = {
            let mut state = self.state();
            self.enlist(&mut state, self.renewal(), Some(tell), None)
        };
        let sequence = entry.sequence;
        let written = self.0.publisher.append_and_tell(entry.encode());
        Mark { sequence, written, read, is_written: false, is_read: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_void_at_another_log_and_at_a_silence_only_when_it_comes_again() {
        let cut_off = ReadError::CutOff { expected: 7, found: 9 };
        let meanwhile = ReadError::CutMeanwhile { began: 7, first: 9 };
        for (error, at_first, after_a_silence) in [
            (cut_off, true, true),
            (meanwhile, true, true),
            (ReadError::Other(7), true, true),
            (ReadError::Silent, false, true),
            (ReadError::Stalled, false, false),
            (ReadError::Repeated(7), false, false),
            (ReadError::NoAnswer, false, false),
            (ReadError::Ended, false, false),
        ] {
            let voids = (error.voids_the_past(false), error.voids_the_past(true));
            assert_eq!(voids, (at_first, after_a_silence), "{error}");
        }
    }
}
