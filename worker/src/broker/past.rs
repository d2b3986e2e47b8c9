//! The past: what the ledger and the history say about jobs, read from outside, with no worker and also by somebody who
//! was not there when it happened.
//!
//! The ledger decides. It is folded as every worker folds it, so that the answer is theirs. The history has the details;
//! a terminal event in it counts only when the ledger says that the job was settled at that attempt and with that ending
//! ([`super::history`]).
//!
//! # Where a stream ends
//!
//! Nothing in AMQP 0-9-1 says so. But the broker hands a consumer all that there is in one go, as far as its credit
//! reaches, and answers on a channel in the order in which it was asked. So a consumer that begins at the last chunk
//! waits for its first message and then asks for something else: when the answer is there, so is the rest of what the
//! stream had ([`Past::tip`]). That place is read up to, however much is written meanwhile.
//!
//! What is kept while reading is what is asked for: of one job all, of many a line each.
//!
//! This module must not know how any of it is shown.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, ErrorKind};
use spark_runtime_protocol::answer::{self, answered};
use spark_runtime_protocol::connect::{ConnectError, Endpoint};
use spark_runtime_protocol::event::FailureClass;
use spark_runtime_protocol::rights::{Doing, MissingRight};
use spark_runtime_protocol::topology::{HISTORY_STREAM, LEDGER_STREAM, STREAM_OFFSET_ARGUMENT};
use spark_runtime_protocol::{Event, EventKind, JobId};

use super::ledger::fold::{Effect, Fold, JobKey, Open, Settled, Standing};
use super::ledger::record::{Ending, Entry, InstanceId, Position, Record, RecordError};
use super::ledger::tail::offset;

/// How many messages of the ledger may be on their way; they are small.
const LEDGER_PREFETCH: u16 = 2000;
/// The same for the history, of which a single message may have some megabytes.
const HISTORY_PREFETCH: u16 = 50;
/// How long the broker may take for whatever it has to say next.
const PATIENCE: Duration = Duration::from_secs(30);
/// A stream that is empty, as the broker counts, and that gives nothing for so long has nothing.
const EMPTY: Duration = Duration::from_secs(2);
/// By how much the clocks of workers and broker may differ, in seconds, before the whole history is looked through.
const CLOCKS: u64 = 600;
/// How many steps of one job are kept, the latest ones.
const STEPS: usize = 32;
/// How many characters of a failure are kept for a list.
const LONGEST_MESSAGE: usize = 1000;

/// Why the past cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no such stream.
    #[error("the broker has no {0}; run `spark-runtime topology declare`")]
    Missing(String),
    /// The broker has messages and does not hand them over.
    #[error("the broker gave nothing of the stream {stream} for {} s", PATIENCE.as_secs())]
    Silent {
        /// The stream.
        stream: &'static str,
    },
    /// Somebody has deleted the stream, or the broker is going down.
    #[error("the broker ended the reading of the stream {stream}")]
    Ended {
        /// The stream.
        stream: &'static str,
    },
    /// The user lacks a right.
    #[error("the broker refuses us: {0}")]
    Forbidden(MissingRight),
    /// The connection failed on the way.
    #[error("the connection to the broker failed: {0}")]
    Broker(lapin::Error),
}

impl From<lapin::Error> for PastError {
    fn from(error: lapin::Error) -> Self {
        // Nothing is done here but reading.
        if let Some(right) = MissingRight::of(&error, Doing::Consume) {
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

/// A connection for reading.
#[derive(Debug)]
pub struct Past {
    connection: Connection,
}

/// A job's past.
#[derive(Debug)]
pub struct Story {
    /// Where it stands.
    pub standing: Standing,
    /// The name of the worker that has it, or had it last.
    pub worker: Option<Box<str>>,
    /// When its last attempt began, in milliseconds since 1970 by the clock of the worker that began it.
    pub taken: Option<u64>,
    /// What the history has of it, the oldest first: the latest steps, and its end when it has ended.
    pub events: Vec<Event>,
}

/// Which jobs are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Those that wait for their next attempt.
    pub waiting: bool,
    /// Those that a worker has.
    pub running: bool,
    /// Those that ended like this.
    pub endings: Vec<Ending>,
    /// The latest ones, at most so many.
    pub limit: usize,
}

/// Jobs, the latest first.
#[derive(Debug)]
pub struct Listing {
    /// Those that were asked for.
    pub jobs: Vec<Row>,
    /// How many there are of their kind, these included.
    pub all: usize,
}

/// One job among many.
#[derive(Debug)]
pub struct Row {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    pub standing: Standing,
    /// The name of the worker that has it, or had it last.
    pub worker: Option<Box<str>>,
    /// When its last attempt began, in milliseconds since 1970.
    pub taken: u64,
    /// Why it failed or was rejected, when the history still knows.
    pub reason: Option<Reason>,
}

/// Why a job did not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The class of the failure; a rejected job has none.
    pub class: Option<FailureClass>,
    /// In words.
    pub message: String,
}

/// The end of a stream at some moment.
struct Tip {
    offset: u64,
    /// The time of the last message, in seconds since 1970 by the clock of whoever wrote it.
    written: Option<u64>,
}

impl Tip {
    /// Whether the last message may have been written before a time.
    fn is_before(&self, time: u64) -> bool {
        self.written.is_none_or(|written| written < time)
    }
}

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    First,
    /// At about this time, in seconds since 1970 by the broker's clock.
    Time(u64),
    Last,
}

impl Start {
    fn argument(self) -> FieldTable {
        let value = match self {
            Self::First => AMQPValue::LongString("first".into()),
            Self::Time(seconds) => AMQPValue::Timestamp(seconds),
            Self::Last => AMQPValue::LongString("last".into()),
        };
        let mut arguments = FieldTable::default();
        arguments.insert(STREAM_OFFSET_ARGUMENT.into(), value);
        arguments
    }
}

impl Past {
    /// Connects under `name`, which is what the broker lists.
    ///
    /// # Errors
    /// [`PastError::Connect`].
    pub async fn open(endpoint: &Endpoint, name: &str) -> Result<Self, PastError> {
        Ok(Self { connection: endpoint.connect(name).await? })
    }

    /// Closes the connection in order.
    pub async fn close(self) {
        if let Err(error) = answered(self.connection.close(200, "done".into())).await {
            tracing::debug!(%error, "the connection did not close in order");
        }
    }

    /// All that is known of one job: everything that was there when this is called counts.
    ///
    /// # Errors
    /// [`PastError`].
    pub async fn job(&self, id: &JobId) -> Result<Story, PastError> {
        let mut reading = Reading::new(OneJob::new(id));
        self.read_ledger(|offset, body| reading.take(offset, body)).await?;
        let (fold, job) = reading.over();
        let standing = fold.standing(job.key);
        let mut story = Story { standing, worker: job.worker, taken: job.last_claim, events: Vec::new() };
        if let Some(first) = job.first_claim {
            let mut steps = Steps::new(id, &story.standing);
            self.search_history(first / 1000, &mut steps).await?;
            story.events = steps.in_order();
        }
        Ok(story)
    }

    /// The latest jobs of some kinds.
    ///
    /// # Errors
    /// [`PastError`].
    pub async fn jobs(&self, selection: &Selection) -> Result<Listing, PastError> {
        let mut reading = Reading::new(ManyJobs::new(selection.clone()));
        self.read_ledger(|offset, body| reading.take(offset, body)).await?;
        let (fold, jobs) = reading.over();
        let mut listing = jobs.listing(&fold);
        let mut reasons = Reasons::of(&listing);
        if let Some(earliest) = reasons.earliest {
            self.search_history(earliest, &mut reasons).await?;
            reasons.hand_out(&mut listing);
        }
        Ok(listing)
    }

    async fn read_ledger(&self, mut take: impl FnMut(u64, &[u8])) -> Result<(), PastError> {
        let Some(tip) = self.tip(LEDGER_STREAM, LEDGER_PREFETCH).await? else { return Ok(()) };
        let everything = |delivery: &Delivery| {
            if let Some(offset) = offset(delivery) {
                take(offset, &delivery.data);
            }
            ControlFlow::Continue(())
        };
        self.read(LEDGER_STREAM, LEDGER_PREFETCH, Start::First, &tip, everything).await?;
        Ok(())
    }

    /// Looks through the part of the history that was written since a time (in seconds since 1970), and through all of it
    /// when what must be there is not in that part.
    async fn search_history(&self, since: u64, search: &mut impl Search) -> Result<(), PastError> {
        let Some(tip) = self.tip(HISTORY_STREAM, HISTORY_PREFETCH).await? else { return Ok(()) };
        let since = Start::Time(since.saturating_sub(CLOCKS));
        for from in [since, Start::First] {
            search.begin();
            self.read(HISTORY_STREAM, HISTORY_PREFETCH, from, &tip, |delivery| search.look_at(delivery))
                .await?;
            if search.is_content() {
                break;
            }
        }
        Ok(())
    }

    /// The end that a stream has now; `None` when there is nothing in it.
    async fn tip(&self, stream: &'static str, prefetch: u16) -> Result<Option<Tip>, PastError> {
        let (channel, mut consumer) = self.consume(stream, prefetch, Start::Last).await?;
        let Some(first) = first(&channel, &mut consumer, stream).await? else {
            answered(channel.close(200, "looked".into())).await?;
            return Ok(None);
        };
        let mut tip = Tip { offset: 0, written: None };
        let mut last = first;
        let mut unacknowledged = 1;
        loop {
            tip.offset = offset(&last).unwrap_or(0).max(tip.offset);
            tip.written = *last.properties.timestamp();
            // It is answered behind all that the consumer was given on the way.
            answered(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
            let mut more = None;
            while let Some(next) = consumer.next().now_or_never() {
                more = Some(next.ok_or(PastError::Ended { stream })??);
                unacknowledged += 1;
            }
            if let Some(more) = more {
                last = more;
                tip.offset = offset(&last).unwrap_or(0).max(tip.offset);
                tip.written = *last.properties.timestamp();
            }
            if unacknowledged < prefetch {
                // It was the stream that ended, and not the credit.
                break;
            }
            answered(last.acker.ack(BasicAckOptions { multiple: true })).await?;
            unacknowledged = 0;
        }
        answered(channel.close(200, "looked".into())).await?;
        Ok(Some(tip))
    }

    async fn consume(
        &self,
        stream: &'static str,
        prefetch: u16,
        from: Start,
    ) -> Result<(Channel, Consumer), PastError> {
        let channel = answered(self.connection.create_channel()).await?;
        answered(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let consumer = answer::consume(&channel, stream, "", from.argument()).await?;
        Ok((channel, consumer))
    }

    /// Hands over what a stream has from a place to its tip, until `take` has enough.
    async fn read(
        &self,
        stream: &'static str,
        prefetch: u16,
        from: Start,
        tip: &Tip,
        mut take: impl FnMut(&Delivery) -> ControlFlow<()>,
    ) -> Result<(), PastError> {
        let (channel, mut consumer) = self.consume(stream, prefetch, from).await?;
        // A time behind the last message leads to the next one, which may never come.
        let mut may_have_nothing = matches!(from, Start::Time(time) if tip.is_before(time + CLOCKS / 2));
        let mut unacknowledged = 0;
        loop {
            let patience = if may_have_nothing { EMPTY } else { PATIENCE };
            let delivery = match tokio::time::timeout(patience, consumer.next()).await {
                Ok(delivery) => delivery.ok_or(PastError::Ended { stream })??,
                Err(_) if may_have_nothing => break,
                Err(_) => return Err(PastError::Silent { stream }),
            };
            may_have_nothing = false;
            if take(&delivery).is_break() || offset(&delivery).is_some_and(|offset| offset >= tip.offset) {
                break;
            }
            unacknowledged += 1;
            if unacknowledged >= prefetch / 2 {
                answered(delivery.acker.ack(BasicAckOptions { multiple: true })).await?;
                unacknowledged = 0;
            }
        }
        answered(channel.close(200, "read".into())).await?;
        Ok(())
    }
}

/// The first message of a consumer of a stream; `None` when the stream is empty.
async fn first(
    channel: &Channel,
    consumer: &mut Consumer,
    stream: &'static str,
) -> Result<Option<Delivery>, PastError> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout(EMPTY, consumer.next()).await {
            Ok(first) => return Ok(Some(first.ok_or(PastError::Ended { stream })??)),
            Err(_) if tokio::time::Instant::now() >= deadline => return Err(PastError::Silent { stream }),
            Err(_) => {
                let options = QueueDeclareOptions { passive: true, ..Default::default() };
                let declared = channel.queue_declare(stream.into(), options, FieldTable::default());
                let declared = answered(declared).await?;
                if declared.message_count() == 0 {
                    return Ok(None);
                }
            }
        }
    }
}

/// Looks for something in the history.
trait Search {
    /// The search begins, for the first time or anew.
    fn begin(&mut self);

    /// Looks at the next event; breaks when nothing more is to be found.
    fn look_at(&mut self, delivery: &Delivery) -> ControlFlow<()>;

    /// Whether everything was found that must be there.
    fn is_content(&self) -> bool;
}

/// What is kept of the ledger beside the fold.
trait Keep {
    /// Whether a record about this job is to be folded.
    fn wants(&self, job: &JobId) -> bool;

    /// A record was folded.
    fn heed(&mut self, record: &Heeded<'_>, fold: &Fold);
}

/// A record that was folded.
struct Heeded<'a> {
    position: Position,
    instance: InstanceId,
    record: &'a Record,
    effect: &'a Effect,
    /// The end that its job had before.
    ended: Option<Settled>,
}

/// The ledger as it is read.
struct Reading<K> {
    fold: Fold,
    kept: K,
    started: bool,
    skipped: u64,
    newer: Option<RecordError>,
}

impl<K: Keep> Reading<K> {
    fn new(kept: K) -> Self {
        Self { fold: Fold::default(), kept, started: false, skipped: 0, newer: None }
    }

    fn take(&mut self, offset: u64, body: &[u8]) {
        if !std::mem::replace(&mut self.started, true) {
            // Records that are passed over count for where the log begins.
            self.fold.forget_before(Position::new(offset, 0));
        }
        let entry = match Entry::decode(body) {
            Ok(entry) => entry,
            Err(error) => {
                self.skipped += 1;
                if matches!(error, RecordError::Newer(_)) {
                    self.newer = Some(error);
                }
                return;
            }
        };
        for (index, record) in (0..=u8::MAX).zip(&entry.records) {
            let job = job_of(record);
            if job.is_some_and(|job| !self.kept.wants(job)) {
                continue;
            }
            let position = Position::new(offset, index);
            let sequence = entry.sequence + u64::from(index);
            let ended = job.and_then(|job| match self.fold.standing(JobKey::of(job)) {
                Standing::Settled(settled) => Some(settled),
                Standing::Unknown | Standing::Open(_) => None,
            });
            let effect = self.fold.apply(position, entry.instance, sequence, record);
            let heeded = Heeded { position, instance: entry.instance, record, effect: &effect, ended };
            self.kept.heed(&heeded, &self.fold);
        }
    }

    /// Says what could not be read, and gives what was.
    fn over(self) -> (Fold, K) {
        if let Some(error) = &self.newer {
            tracing::warn!(skipped = self.skipped, %error, "the ledger has records that this release cannot read");
        } else if self.skipped > 0 {
            tracing::warn!(
                skipped = self.skipped,
                "messages of the ledger that are none of a worker's were passed over"
            );
        }
        (self.fold, self.kept)
    }
}

fn job_of(record: &Record) -> Option<&JobId> {
    match record {
        Record::Claim { job, .. }
        | Record::Settle { job, .. }
        | Record::Release { job, .. }
        | Record::Cancel { job, .. } => Some(job),
        Record::Renew { .. } | Record::Leave => None,
    }
}

fn name(fold: &Fold, instance: InstanceId) -> Option<Box<str>> {
    fold.instance(instance).map(|instance| instance.name.clone())
}

/// What is kept of one job.
struct OneJob {
    id: JobId,
    key: JobKey,
    /// When the first of the claims that are known took effect.
    first_claim: Option<u64>,
    last_claim: Option<u64>,
    worker: Option<Box<str>>,
}

impl OneJob {
    fn new(id: &JobId) -> Self {
        Self { id: id.clone(), key: JobKey::of(id), first_claim: None, last_claim: None, worker: None }
    }
}

impl Keep for OneJob {
    fn wants(&self, job: &JobId) -> bool {
        *job == self.id
    }

    fn heed(&mut self, heeded: &Heeded<'_>, fold: &Fold) {
        if let (Record::Claim { at, .. }, Effect::Claimed(_)) = (heeded.record, heeded.effect) {
            self.first_claim.get_or_insert(*at);
            self.last_claim = Some(*at);
            self.worker = name(fold, heeded.instance);
        }
    }
}

/// What is kept of many jobs.
struct ManyJobs {
    selection: Selection,
    /// Those that have not ended, with what the fold does not keep of them.
    open: HashMap<JobKey, Kept>,
    /// The latest of those that ended as asked for, by where they were settled.
    settled: BTreeMap<Position, (JobKey, Kept)>,
    /// How many ended as asked for.
    count: usize,
}

#[derive(Debug, Clone)]
struct Kept {
    id: JobId,
    worker: Option<Box<str>>,
    taken: u64,
    /// The last claim that took effect.
    claim: Position,
}

impl ManyJobs {
    fn new(selection: Selection) -> Self {
        Self { selection, open: HashMap::new(), settled: BTreeMap::new(), count: 0 }
    }

    fn selects(&self, open: &Open) -> bool {
        // What was cancelled before it came is no job yet.
        open.attempts > 0
            && if open.owner.is_some() { self.selection.running } else { self.selection.waiting }
    }

    fn claim(&mut self, heeded: &Heeded<'_>, fold: &Fold, id: &JobId, taken: u64) {
        let key = JobKey::of(id);
        if let Some(ended) = heeded.ended
            && self.selection.endings.contains(&ended.ending())
        {
            // An operator has undone it.
            self.count -= 1;
            self.settled.retain(|_, (settled, _)| *settled != key);
        }
        let worker = name(fold, heeded.instance);
        self.open.insert(key, Kept { id: id.clone(), worker, taken, claim: heeded.position });
    }

    fn settle(&mut self, position: Position, key: JobKey, end: Ending) {
        // A record that landed twice has nothing left to settle.
        let Some(kept) = self.open.remove(&key) else { return };
        if !self.selection.endings.contains(&end) {
            return;
        }
        self.count += 1;
        self.settled.insert(position, (key, kept));
        if self.settled.len() > self.selection.limit {
            self.settled.pop_first();
        }
    }

    fn listing(self, fold: &Fold) -> Listing {
        let mut all = self.count;
        let mut found: Vec<(Position, Kept, Standing)> = Vec::new();
        for (key, kept) in &self.open {
            let standing = fold.standing(*key);
            if let Standing::Open(open) = &standing
                && self.selects(open)
            {
                all += 1;
                found.push((kept.claim, kept.clone(), standing));
            }
        }
        for (position, (key, kept)) in self.settled {
            found.push((position, kept, fold.standing(key)));
        }
        found.sort_unstable_by_key(|(position, ..)| std::cmp::Reverse(*position));
        found.truncate(self.selection.limit);
        let jobs = found.into_iter().map(|(_, kept, standing)| {
            let Kept { id, worker, taken, .. } = kept;
            Row { id, standing, worker, taken, reason: None }
        });
        Listing { jobs: jobs.collect(), all }
    }
}

impl Keep for ManyJobs {
    fn wants(&self, _: &JobId) -> bool {
        true
    }

    fn heed(&mut self, heeded: &Heeded<'_>, fold: &Fold) {
        match (heeded.record, heeded.effect) {
            (Record::Claim { job, at, .. }, Effect::Claimed(_)) => self.claim(heeded, fold, job, *at),
            (Record::Settle { job, end, .. }, Effect::Settled) => {
                self.settle(heeded.position, JobKey::of(job), *end);
            }
            _ => {}
        }
    }
}

/// The id of the event that told a job's end.
fn id_of_end(job: &JobId, settled: &Settled) -> String {
    format!("{job}/{}/{}", settled.attempt(), settled.ending().event_kind().word())
}

fn id_of(delivery: &Delivery) -> Option<&str> {
    delivery.properties.message_id().as_ref().map(|id| id.as_str())
}

/// What the history has of one job.
struct Steps {
    /// What the ids of its events begin with.
    prefix: String,
    /// The id of the event that tells its end, when it has ended.
    end: Option<String>,
    /// How often it was claimed.
    attempts: u32,
    events: VecDeque<Event>,
}

impl Steps {
    fn new(job: &JobId, standing: &Standing) -> Self {
        let (attempts, end) = match standing {
            Standing::Unknown => (0, None),
            Standing::Open(open) => (open.attempts, None),
            Standing::Settled(settled) => (settled.attempt(), Some(id_of_end(job, settled))),
        };
        Self { prefix: format!("{job}/"), end, attempts, events: VecDeque::new() }
    }

    fn has(&self, id: &str) -> bool {
        self.events.iter().any(|event| event.id == id)
    }

    /// By attempts: two workers' clocks may differ, and two events of one may pass each other on the way.
    fn in_order(self) -> Vec<Event> {
        let mut events = Vec::from(self.events);
        events.sort_by_key(|event| {
            (event.data.attempt, event.kind().is_some_and(EventKind::is_terminal), event.time)
        });
        events
    }
}

impl Search for Steps {
    fn begin(&mut self) {
        self.events.clear();
    }

    fn look_at(&mut self, delivery: &Delivery) -> ControlFlow<()> {
        let is_known = |id: &&str| id.starts_with(&self.prefix) && !self.has(id);
        let event =
            id_of(delivery).filter(is_known).and_then(|_| serde_json::from_slice(&delivery.data).ok());
        let Some(event): Option<Event> = event else { return ControlFlow::Continue(()) };
        let is_end = self.end.as_ref() == Some(&event.id);
        // Any other end is that of an attempt that had lost the job by then.
        let is_step =
            event.kind().is_some_and(|kind| !kind.is_terminal()) && event.data.attempt <= self.attempts;
        if !is_end && !is_step {
            return ControlFlow::Continue(());
        }
        if self.events.len() == STEPS {
            self.events.pop_front();
        }
        self.events.push_back(event);
        if is_end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_content(&self) -> bool {
        self.end.as_ref().is_none_or(|end| self.has(end))
    }
}

/// Why some jobs did not complete.
struct Reasons {
    /// When the first of them ended, in seconds since 1970.
    earliest: Option<u64>,
    /// By the ids of the events that tell their ends.
    wanted: HashMap<String, Option<Reason>>,
    missing: usize,
}

impl Reasons {
    fn of(listing: &Listing) -> Self {
        let mut earliest = None;
        let mut wanted = HashMap::new();
        for row in &listing.jobs {
            if let Some((id, settled)) = row.unhappy_end() {
                earliest = Some(u64::from(settled.at).min(earliest.unwrap_or(u64::MAX)));
                wanted.insert(id, None);
            }
        }
        let missing = wanted.len();
        Self { earliest, wanted, missing }
    }

    fn hand_out(mut self, listing: &mut Listing) {
        for row in &mut listing.jobs {
            if let Some((id, _)) = row.unhappy_end() {
                row.reason = self.wanted.remove(&id).flatten();
            }
        }
    }
}

impl Row {
    fn unhappy_end(&self) -> Option<(String, &Settled)> {
        match &self.standing {
            Standing::Settled(settled) if matches!(settled.ending(), Ending::Failed | Ending::Rejected) => {
                Some((id_of_end(&self.id, settled), settled))
            }
            _ => None,
        }
    }
}

impl Search for Reasons {
    fn begin(&mut self) {}

    fn look_at(&mut self, delivery: &Delivery) -> ControlFlow<()> {
        if let Some(found) = id_of(delivery).and_then(|id| self.wanted.get_mut(id))
            && found.is_none()
            && let Ok(event) = serde_json::from_slice::<Event>(&delivery.data)
        {
            let message = event.data.message.unwrap_or_default().chars().take(LONGEST_MESSAGE).collect();
            *found = Some(Reason { class: event.data.failure.map(|failure| failure.class), message });
            self.missing -= 1;
        }
        if self.missing == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_content(&self) -> bool {
        // A list goes without what is not where it is to be expected.
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::record::{Digest, Reason as Why, Terms};
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn job(id: &str) -> JobId {
        JobId::new(id).unwrap()
    }

    fn claim(id: &str, terms: Terms) -> Record {
        Record::Claim { job: job(id), digest: Digest::of(b"{}"), terms, existing: Vec::new(), at: NOW }
    }

    fn settle(id: &str, offset: u64, end: Ending) -> Record {
        Record::Settle { job: job(id), claim: Position::new(offset, 0), end, at: NOW }
    }

    /// Reads records as one instance writes them, one a message, behind its renewal at offset 0.
    fn read<K: Keep>(kept: K, records: &[Record]) -> (Fold, K) {
        let mut reading = Reading::new(kept);
        let renew = Record::Renew { name: "w".into(), lease_ms: 60_000 };
        for (offset, record) in (0..).zip([&renew].into_iter().chain(records)) {
            let entry = Entry::new(InstanceId::from_number(1), offset, vec![record.clone()]);
            reading.take(offset, &entry.encode());
        }
        reading.over()
    }

    fn list(records: &[Record], endings: &[Ending], limit: usize) -> (Vec<String>, usize) {
        let selection = Selection { waiting: true, running: true, endings: endings.to_vec(), limit };
        let (fold, jobs) = read(ManyJobs::new(selection), records);
        let listing = jobs.listing(&fold);
        (listing.jobs.iter().map(|row| row.id.to_string()).collect(), listing.all)
    }

    #[test]
    fn a_list_has_the_latest_jobs_and_counts_all() {
        let mut records = Vec::new();
        for number in 0..100_u64 {
            let id = format!("j{number}");
            records.push(claim(&id, Terms::Free));
            let end = if number % 2 == 0 { Ending::Completed } else { Ending::Failed };
            records.push(settle(&id, 2 * number + 1, end));
        }
        records.push(claim("open", Terms::Free));
        records.push(Record::Cancel { job: job("never-came"), at: NOW });
        let both = [Ending::Completed, Ending::Failed];
        assert_eq!(list(&records, &both, 3), (vec!["open".into(), "j99".into(), "j98".into()], 101));
        assert_eq!(list(&records, &[Ending::Failed], 2), (vec!["open".into(), "j99".into()], 51));
        assert_eq!(list(&records, &[], 9), (vec!["open".into()], 1));
    }

    #[test]
    fn an_end_that_was_undone_or_has_landed_twice_counts_once() {
        let twice = settle("j", 1, Ending::Failed);
        let mut records = vec![claim("j", Terms::Free), twice.clone(), twice];
        assert_eq!(list(&records, &[Ending::Failed], 9), (vec!["j".into()], 1));
        records.push(claim("j", Terms::Reopens { claim: Position::new(1, 0) }));
        assert_eq!(list(&records, &[Ending::Failed], 9), (vec!["j".into()], 1));
        let selection = Selection { waiting: true, running: false, endings: vec![Ending::Failed], limit: 9 };
        let (fold, jobs) = read(ManyJobs::new(selection), &records);
        assert_eq!(jobs.listing(&fold).all, 0);
        records.push(settle("j", 4, Ending::Completed));
        assert_eq!(list(&records, &[Ending::Failed], 9), (vec![], 0));
        assert_eq!(list(&records, &[Ending::Completed], 9), (vec!["j".into()], 1));
    }

    #[test]
    fn one_job_is_folded_alone_and_stands_as_in_the_whole_log() {
        let at = Position::new;
        let records = [
            claim("other", Terms::Free),
            settle("other", 1, Ending::Completed),
            claim("j", Terms::Free),
            Record::Release { job: job("j"), claim: at(3, 0), reason: Why::Failed },
            claim("j", Terms::Free),
            claim("other", Terms::Free),
            // It names a claim that was never there: the log goes back further than the job does.
            claim("k", Terms::Supersedes { claim: at(2, 0), renewal: at(0, 0) }),
        ];
        let (whole, _) = read(
            ManyJobs::new(Selection { waiting: true, running: true, endings: vec![], limit: 9 }),
            &records,
        );
        for id in ["j", "k", "other", "none"] {
            let (alone, kept) = read(OneJob::new(&job(id)), &records);
            assert_eq!(alone.standing(kept.key), whole.standing(kept.key), "{id}");
        }
        let (_, kept) = read(OneJob::new(&job("j")), &records);
        assert_eq!(
            (kept.worker.as_deref(), kept.first_claim, kept.last_claim),
            (Some("w"), Some(NOW), Some(NOW))
        );
    }

    #[test]
    fn what_is_no_record_is_passed_over_and_counted() {
        let mut reading = Reading::new(OneJob::new(&job("j")));
        reading.take(0, b"garbage");
        reading.take(1, br#"{"version": 2}"#);
        assert_eq!((reading.skipped, reading.newer.is_some()), (2, true));
        let (fold, kept) = reading.over();
        assert_eq!(fold.standing(kept.key), Standing::Unknown);
    }
}
