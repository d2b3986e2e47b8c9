//! Checkpoints: what the ledger says up to a place, written down, so that a worker that starts reads only what came after.
//!
//! # Theory of operation
//!
//! The [`Fold`] is a pure function of the log. So what it gives at a place can be written down by anybody who has read as far, and
//! everybody else can go on from there. Now and then a worker does that ([`keep_written`]), into a stream of its own. A worker
//! that starts takes the newest whole one ([`newest`]) and looks whether the ledger has, at that place, the very message that was
//! there. A ledger that was deleted and made again has not, nor has one that was cut off behind that place; such a one is read
//! from its start, and so is one of which there is no checkpoint. A checkpoint saves time, and nobody ever needs one.
//!
//! A message holds a part: a line of JSON, the same in all parts but for the number, and a piece of the content. All pieces
//! together are the fold in the form of the crate `postcard`. That form, or what records mean, may differ in another release: then
//! its checkpoints are not read ([`VERSION`]).
//!
//! This module must not know what a record means.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spark_runtime_protocol::answer;
use spark_runtime_protocol::rights::Doing;
use spark_runtime_protocol::topology::{CHECKPOINTS_STREAM, LEDGER_STREAM, STREAM_OFFSET_ARGUMENT};
use tokio::sync::watch;

use super::fold::Fold;
use super::record::Position;
use super::tail::{first, offset};
use super::{Ledger, State};
use crate::broker::backoff::by_chance;
use crate::broker::publisher::Publisher;
use crate::broker::session::Session;
use crate::broker::words;

/// Raised whenever the fold comes to have other parts, or records come to mean something else to it, as with a new
/// [`record::VERSION`](super::record::VERSION): who does not know those of a newer one writes checkpoints without them.
pub const VERSION: u32 = 1;
const _: () =
    assert!(VERSION == 1 && super::record::VERSION == 1, "a new version of records is one of checkpoints");
/// How large a piece is, in bytes: no broker refuses it, and it is in no other message's way for long.
const PIECE: usize = 1 << 20;
/// The most parts that are read, or written: more does not fit twice into what the stream keeps.
const MOST_PARTS: u32 = 200;
/// A checkpoint is written when the ledger has grown by this part of what is known, and by what the settings say at least:
/// the stream takes a few times as much as the ledger then, however long the ledger is.
const SHARE: u64 = 8;
/// It is looked whether one is due after any time up to this, so that two workers seldom write at once.
const LOOK: Duration = Duration::from_secs(5);
/// So many parts may be on their way to a reader.
const PREFETCH: u16 = 4;
/// So many messages of others may lie between the parts of two checkpoints.
const BETWEEN: u64 = 16;
/// A stream that gives nothing for so long has been read to its end.
const SILENCE: Duration = Duration::from_secs(2);
/// How long finding a checkpoint may take in all, before the ledger is read from its start.
const FINDING: Duration = Duration::from_secs(60);

/// What is said in front of each piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    /// The number of this part, from 0.
    part: u32,
    /// How many there are.
    of: u32,
    /// The last message of the ledger that is in it: its offset, and the SHA-256 of its body.
    offset: u64,
    message: String,
    /// The SHA-256 of the content.
    content: String,
}

/// What the ledger says up to a place.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// What it says.
    pub fold: Fold,
    /// The offset of the last message that is in it.
    pub offset: u64,
    /// The SHA-256 of that message's body.
    pub message: String,
}

/// Why there is no checkpoint to go on from.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The broker does not give it.
    #[error("{}", words(.0, Doing::Consume))]
    Broker(#[from] lapin::Error),
    /// It takes too long.
    #[error("it was not found within {} s", FINDING.as_secs())]
    Slow,
    /// It is no fold.
    #[error("the checkpoint at {offset} cannot be read: {reason}")]
    Unreadable {
        /// The place of the ledger that it is about.
        offset: u64,
        /// Why.
        reason: String,
    },
    /// It belongs to another ledger, or to a part that is gone.
    #[error("the ledger has another message at {0} than the checkpoint was made with, or none any more")]
    OfAnother(u64),
}

impl Checkpoint {
    /// Its messages.
    ///
    /// # Errors
    /// In words, why it cannot be written.
    fn parts(&self) -> Result<Vec<Vec<u8>>, String> {
        let content = postcard::to_stdvec(&self.fold).map_err(|error| error.to_string())?;
        let of = u32::try_from(content.len().div_ceil(PIECE)).unwrap_or(u32::MAX);
        if of > MOST_PARTS {
            return Err(format!("it has {} bytes, more than {MOST_PARTS} parts of {PIECE}", content.len()));
        }
        let digest = hex(&content);
        let part = |(part, piece): (u32, &[u8])| {
            let (message, content) = (self.message.clone(), digest.clone());
            let head = Head { version: VERSION, part, of, offset: self.offset, message, content };
            let mut text = serde_json::to_vec(&head).map_err(|error| error.to_string())?;
            text.push(b'\n');
            text.extend_from_slice(piece);
            Ok(text)
        };
        (0..).zip(content.chunks(PIECE)).map(part).collect()
    }
}

impl Head {
    /// Takes a message apart; what is none of ours, or of another release, is none.
    fn split(body: &[u8]) -> Option<(Self, &[u8])> {
        let end = body.iter().take(1024).position(|byte| *byte == b'\n')?;
        let head: Self = serde_json::from_slice(&body[..end]).ok()?;
        let piece = &body[end + 1..];
        let fits =
            head.version == VERSION && head.part < head.of && head.of <= MOST_PARTS && piece.len() <= PIECE;
        fits.then_some((head, piece))
    }
}

/// The parts of checkpoints as they are read.
#[derive(Default)]
struct Parts {
    /// By the number-less heads.
    unfinished: HashMap<(u64, String), Vec<Option<Bytes>>>,
    /// The last one that was complete, with its pieces.
    whole: Option<(Head, Vec<Bytes>)>,
}

impl Parts {
    fn take(&mut self, body: &[u8]) {
        let Some((head, piece)) = Head::split(body) else { return };
        let pieces = self.unfinished.entry((head.offset, head.content.clone())).or_default();
        pieces.resize(head.of as usize, None);
        pieces[head.part as usize] = Some(Bytes::copy_from_slice(piece));
        let Some(all) = pieces.iter().cloned().collect::<Option<Vec<_>>>() else { return };
        self.unfinished.clear();
        self.whole = Some((head, all));
    }

    fn checkpoint(self) -> Result<Option<Checkpoint>, CheckpointError> {
        let Some((head, pieces)) = self.whole else { return Ok(None) };
        let content = pieces.concat();
        let unreadable = |reason: String| CheckpointError::Unreadable { offset: head.offset, reason };
        if hex(&content) != head.content {
            return Err(unreadable("its content is not what was written".to_owned()));
        }
        let fold = postcard::from_bytes(&content).map_err(|error| unreadable(error.to_string()))?;
        Ok(Some(Checkpoint { fold, offset: head.offset, message: head.message }))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The newest checkpoint that the ledger still goes on from, without what the broker has cut off since.
///
/// # Errors
/// [`CheckpointError`]; then the ledger is to be read from its start.
pub async fn newest(session: &Session) -> Result<Option<Checkpoint>, CheckpointError> {
    tokio::time::timeout(FINDING, find(session)).await.map_err(|_| CheckpointError::Slow)?
}

async fn find(session: &Session) -> Result<Option<Checkpoint>, CheckpointError> {
    let Some((tip, head)) = last(session).await? else { return Ok(None) };
    // The last one, if it is whole; or the one before that, whose parts may be somewhat more.
    let (this, before) = (u64::from(head.part), u64::from(head.part) + 2 * u64::from(head.of) + BETWEEN);
    for parts in [this, before] {
        if let Some(mut checkpoint) = read(session, tip.saturating_sub(parts), tip).await?.checkpoint()? {
            if !goes_on(session, &checkpoint).await? {
                return Err(CheckpointError::OfAnother(checkpoint.offset));
            }
            if let Some(start) = first(session).await? {
                checkpoint.fold.forget_before(Position::new(start, 0));
            }
            return Ok(Some(checkpoint));
        }
    }
    Ok(None)
}

/// The last part in the stream, and its place.
async fn last(session: &Session) -> Result<Option<(u64, Head)>, lapin::Error> {
    let channel = session.connection.create_channel().await?;
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(CHECKPOINTS_STREAM.into(), options, FieldTable::default()).await?;
    let mut found = None;
    // It counts every few seconds only, but a stream that never had one need not be waited for.
    if declared.message_count() > 0 {
        let mut consumer =
            open(&channel, CHECKPOINTS_STREAM, AMQPValue::LongString("last".into()), 1).await?;
        // The broker begins with the last few that it has written together.
        while let Some(delivery) = next(&mut consumer, SILENCE).await? {
            delivery.acker.ack(BasicAckOptions { multiple: true }).await?;
            if let (Some(place), Some((head, _))) = (offset(&delivery), Head::split(&delivery.data)) {
                let is_end = head.part + 1 == head.of;
                found = Some((place, head));
                if is_end {
                    break;
                }
            }
        }
    }
    channel.close(200, "looked".into()).await?;
    Ok(found)
}

/// Reads the stream from a place on, until it has come to `tip` and a checkpoint is whole, or there is no more.
async fn read(session: &Session, from: u64, tip: u64) -> Result<Parts, lapin::Error> {
    let channel = session.connection.create_channel().await?;
    let from = AMQPValue::LongLongInt(i64::try_from(from).unwrap_or(i64::MAX));
    let mut consumer = open(&channel, CHECKPOINTS_STREAM, from, PREFETCH).await?;
    let mut parts = Parts::default();
    while let Some(delivery) = next(&mut consumer, SILENCE).await? {
        parts.take(&delivery.data);
        if parts.whole.is_some() && offset(&delivery) >= Some(tip) {
            break;
        }
        delivery.acker.ack(BasicAckOptions { multiple: true }).await?;
    }
    channel.close(200, "looked".into()).await?;
    Ok(parts)
}

/// Whether the ledger has at its place the message that it was made with.
async fn goes_on(session: &Session, checkpoint: &Checkpoint) -> Result<bool, lapin::Error> {
    let channel = session.connection.create_channel().await?;
    let from = AMQPValue::LongLongInt(i64::try_from(checkpoint.offset).unwrap_or(i64::MAX));
    let mut consumer = open(&channel, LEDGER_STREAM, from, 1).await?;
    let found = next(&mut consumer, SILENCE).await?;
    let is_so = found.is_some_and(|delivery| {
        offset(&delivery) == Some(checkpoint.offset) && hex(&delivery.data) == checkpoint.message
    });
    channel.close(200, "looked".into()).await?;
    Ok(is_so)
}

async fn open(
    channel: &Channel,
    stream: &str,
    from: AMQPValue,
    prefetch: u16,
) -> Result<Consumer, lapin::Error> {
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET_ARGUMENT.into(), from);
    answer::consume(channel, stream, "", arguments).await
}

/// The next message; none when none comes for so long.
async fn next(consumer: &mut Consumer, patience: Duration) -> Result<Option<Delivery>, lapin::Error> {
    match tokio::time::timeout(patience, consumer.next()).await {
        Ok(Some(delivery)) => delivery.map(Some),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Writes checkpoints for as long as it runs: one when there are `every` records more since the last one, by whomever.
pub async fn keep_written(
    ledger: Ledger,
    sessions: watch::Receiver<Option<Session>>,
    publisher: Publisher,
    every: u64,
) {
    ledger.ready().await;
    // What was there before may be of a ledger that is gone; what comes later is of this one.
    let mut there = None;
    loop {
        tokio::time::sleep(by_chance(LOOK)).await;
        let is_due = ledger.state().checkpoint_is_due(every);
        if !is_due && there.is_some() {
            continue;
        }
        let session = sessions.borrow().clone();
        let Some(session) = session else { continue };
        let found = match tokio::time::timeout(FINDING, last(&session)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(%error, "it cannot be known which checkpoints there are");
                continue;
            }
            Err(_) => continue,
        };
        let tip = found.as_ref().map_or(0, |(tip, _)| *tip);
        let before = *there.get_or_insert(tip);
        // Somebody else may have been first.
        if let Some((_, head)) = found.filter(|_| tip > before) {
            ledger.state().is_written(head.offset);
        }
        if ledger.state().checkpoint_is_due(every) {
            write(&ledger, &publisher).await;
        }
    }
}

async fn write(ledger: &Ledger, publisher: &Publisher) {
    let Some(checkpoint) = ledger.state().checkpoint() else { return };
    let (offset, (open, settled)) = (checkpoint.offset, checkpoint.fold.counts());
    let parts = tokio::task::spawn_blocking(move || checkpoint.parts());
    match parts.await.map_err(|error| error.to_string()).and_then(|parts| parts) {
        Ok(parts) => {
            let count = parts.len();
            for part in parts {
                publisher.checkpoint(part).await;
            }
            tracing::info!(offset, open, settled, parts = count, "a checkpoint of the ledger is written");
        }
        Err(reason) => {
            tracing::warn!(
                offset,
                reason,
                "a checkpoint of the ledger cannot be written; workers take longer to start"
            );
        }
    }
    ledger.state().is_written(offset);
}

impl State {
    /// Whether the ledger has grown enough since the last checkpoint.
    fn checkpoint_is_due(&self, every: u64) -> bool {
        let (Some(from), Some(last)) = (self.checkpointed, &self.last) else { return false };
        let (open, settled) = self.fold.counts();
        !self.catching_up && last.offset.saturating_sub(from) >= every.max((open + settled) as u64 / SHARE)
    }

    /// Takes note that there is a checkpoint up to this place.
    fn is_written(&mut self, offset: u64) {
        if self.last.as_ref().is_some_and(|last| offset <= last.offset) {
            self.checkpointed = self.checkpointed.max(Some(offset));
        }
    }

    /// What is known now.
    fn checkpoint(&self) -> Option<Checkpoint> {
        let last = self.last.as_ref()?;
        (!self.catching_up).then(|| Checkpoint {
            fold: self.fold.clone(),
            offset: last.offset,
            message: last.message.digest(),
        })
    }
}

#[cfg(test)]
mod tests {
    use spark_runtime_protocol::JobId;

    use super::super::fold::Effect;
    use super::super::record::{Digest as BodyDigest, Ending, InstanceId, Reason, Record, Terms};
    use super::*;

    /// Records of a few instances and jobs, as chance has it: most of them have no effect, as with workers that are late.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, bound: u64) -> u64 {
            // Knuth's multiplier; the upper bits are the good ones.
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % bound
        }

        fn position(&mut self, before: u64) -> Position {
            Position::new(before.saturating_sub(1 + self.below(12)), 0)
        }

        fn record(&mut self, offset: u64) -> (InstanceId, Record) {
            let job = JobId::new(&format!("job-{}", self.below(6))).unwrap();
            let (claim, renewal) = (self.position(offset), self.position(offset));
            let at = 1_800_000_000_000 + offset;
            let record = match self.below(16) {
                0..4 => Record::Renew { name: "w".into(), lease_ms: 60_000 },
                4..9 => Record::Claim {
                    job,
                    digest: BodyDigest::of(b"body"),
                    terms: match self.below(5) {
                        0 => Terms::Supersedes { claim, renewal },
                        1 => Terms::Replaces { claim },
                        2 => Terms::Reopens { claim },
                        _ => Terms::Free,
                    },
                    existing: vec![0, 2],
                    at,
                },
                9..12 => Record::Settle { job, claim, end: Ending::Failed, at },
                12..14 => Record::Release { job, claim, reason: Reason::Failed },
                14 => Record::Cancel { job, at },
                _ => Record::Leave,
            };
            (InstanceId::from_number(self.below(4)), record)
        }
    }

    fn checkpoint(fold: Fold, offset: u64) -> Checkpoint {
        Checkpoint { fold, offset, message: hex(b"the message") }
    }

    fn read_back(parts: &[Vec<u8>]) -> Option<Checkpoint> {
        let mut taken = Parts::default();
        parts.iter().for_each(|part| taken.take(part));
        taken.checkpoint().unwrap()
    }

    #[test]
    fn who_goes_on_from_a_checkpoint_knows_what_the_whole_log_says() {
        let mut has_had_effect = 0;
        for seed in 0..40 {
            let mut chance = Chance(seed);
            let log: Vec<_> = (0..200).map(|offset| chance.record(offset)).collect();
            let mut whole = Fold::default();
            let mut others: Vec<(u64, Fold)> = Vec::new();
            for (offset, (instance, record)) in (0..).zip(&log) {
                let place = Position::new(offset, 0);
                let effect = whole.apply(place, *instance, offset, record);
                has_had_effect += u32::from(!matches!(effect, Effect::Nothing | Effect::Refused(_)));
                for (from, fold) in &mut others {
                    assert_eq!(
                        fold.apply(place, *instance, offset, record),
                        effect,
                        "{seed}: {from} {offset}"
                    );
                    assert_eq!(*fold, whole, "{seed}: {from} {offset}");
                }
                if offset % 10 == 0 {
                    let parts = checkpoint(whole.clone(), offset).parts().unwrap();
                    others.push((offset, read_back(&parts).unwrap().fold));
                }
            }
        }
        assert!(has_had_effect > 1000, "{has_had_effect}");
    }

    /// One with so many jobs that it has several parts.
    fn large() -> Checkpoint {
        let mut fold = Fold::default();
        let instance = InstanceId::from_number(1);
        let mut offset = 0;
        let mut apply = |record| {
            fold.apply(Position::new(offset, 0), instance, offset, &record);
            offset += 1;
            Position::new(offset - 1, 0)
        };
        apply(Record::Renew { name: "w".into(), lease_ms: 60_000 });
        for number in 0..50_000 {
            let job = JobId::new(&format!("job-{number}")).unwrap();
            let at = 1_800_000_000_000;
            let (terms, existing) = (Terms::Free, Vec::new());
            let digest = BodyDigest::of(job.as_str().as_bytes());
            let claim = apply(Record::Claim { job: job.clone(), digest, terms, existing, at });
            apply(Record::Settle { job, claim, end: Ending::Completed, at });
        }
        checkpoint(fold, offset - 1)
    }

    #[test]
    fn parts_are_put_together_in_any_order_and_what_is_not_whole_is_no_checkpoint() {
        let large = large();
        let parts = large.parts().unwrap();
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() < PIECE + 1024));
        let bytes = parts.iter().map(Vec::len).sum::<usize>() / 50_000;
        assert!(bytes <= 60, "{bytes} bytes for each job that has ended");
        let small = checkpoint(Fold::default(), 7);
        let mut mixed = parts.clone();
        mixed.reverse();
        mixed.insert(1, b"garbage".to_vec());
        mixed.insert(1, parts[1].clone());
        mixed.insert(1, b"{}\nx".to_vec());
        assert_eq!(read_back(&mixed).unwrap(), large);
        // The last that is whole counts, and none of which a part is missing.
        mixed.extend(small.parts().unwrap());
        assert_eq!(read_back(&mixed).unwrap(), small);
        mixed.extend_from_slice(&parts[1..]);
        assert_eq!(read_back(&mixed).unwrap(), small);
        assert_eq!(read_back(&parts[1..]), None);
    }

    #[test]
    fn a_checkpoint_that_is_not_what_was_written_is_refused_and_one_of_another_release_not_read() {
        let part = large().parts().unwrap();
        let mut changed = part.clone();
        *changed[0].last_mut().unwrap() ^= 1;
        let mut taken = Parts::default();
        changed.iter().for_each(|part| taken.take(part));
        assert!(matches!(taken.checkpoint(), Err(CheckpointError::Unreadable { .. })));
        let small = checkpoint(Fold::default(), 7).parts().unwrap().remove(0);
        let text = String::from_utf8_lossy(&small);
        for (from, to) in [
            (r#""version":1"#, r#""version":2"#),
            (r#""part":0"#, r#""part":1"#),
            (r#""of":1"#, r#""of":4294967295"#),
        ] {
            assert!(text.contains(from), "{text}");
            assert_eq!(read_back(&[text.replace(from, to).into_bytes()]), None);
        }
    }

    /// Whoever changes what this shows has to raise [`VERSION`].
    #[test]
    fn the_form_of_a_checkpoint_does_not_change_within_a_version() {
        let mut fold = Fold::default();
        let (at, terms) = (1_800_000_000_000, Terms::Free);
        let job = |name: &str| JobId::new(name).unwrap();
        let digest = BodyDigest::of(b"body");
        let claim = |name, existing| Record::Claim { job: job(name), digest, terms, existing, at };
        let records = [
            Record::Renew { name: "worker".into(), lease_ms: 60_000 },
            claim("ended", vec![]),
            Record::Settle { job: job("ended"), claim: Position::new(1, 0), end: Ending::Failed, at },
            claim("runs", vec![0, 2]),
            Record::Cancel { job: job("unheard-of"), at },
        ];
        for (offset, record) in (0..).zip(&records) {
            fold.apply(Position::new(offset, 0), InstanceId::from_number(0xc0ffee), offset, record);
        }
        assert_eq!(fold.counts(), (2, 1));
        let content = postcard::to_stdvec(&fold).unwrap();
        insta::assert_snapshot!(content.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), @"01103030303030303030303063306666656506776f726b6572e0d4030000021f64fff08d787e732e04559f4d24187601103233306438333538646338653838393001103030303030303030303063306666656580060380a0f1c2b13401000000020002800671c095f6b3a4d6c8e52739c484e9031f00000000000100800801e87ba7a0b779d8b797f86d19604504491032333064383335386463386538383930800280a4a7da06050100");
    }
}
