//! The life of a job: assign, claim, (resolve, check,) stage, submit, track, collect, settle.
//!
//! [`run`] takes one attempt from the staged files to its end and knows no broker; [`settle`] turns that end into what
//! is published. `spark-runtime run` and a worker differ only in where the events go.
//!
//! This module must not know AMQP: what it needs of the broker are [`Announce`], the ledger, the history and the verbs of
//! `broker::publisher`.

pub mod absences;
pub mod assign;
pub mod attachments;
pub mod check;
pub mod claim;
pub mod cluster_end;
pub mod collect;
pub mod command;
pub mod contract;
pub mod inputs;
pub mod literal;
pub mod load;
pub mod outputs;
pub mod resolve;
pub mod schema;
pub mod settle;
pub mod source;
pub mod stage;
pub mod submit;
pub mod tags;
pub mod track;
pub mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use spark_runtime_protocol::asset::OUTPUT_FOLDER;
use spark_runtime_protocol::event::{
    Event, EventData, EventKind, Failure, FailureClass, FetchedSource, JobResult, Phases, Records, Resources,
    RuntimeUsed, TraceContext,
};
use spark_runtime_protocol::job::{Job, JobId, JobType};
use spark_runtime_protocol::json::Fault;
use tokio::sync::watch;

use crate::broker::slots::Lending;
use crate::clock::BootTime;
use crate::config::Settings;
use crate::crash::crash_point;
use crate::repository::Repositories;
use crate::runtimes::{Runtime, Runtimes, Sent};
use crate::spark::client_mode::LOGIN;
use crate::spark::{Application, Awaited, Backend, Mode, Sought};
use crate::storage::Actor;
use check::Judge;

/// What every attempt of a worker shares.
pub struct Context {
    /// The worker's settings.
    pub settings: Settings,
    /// Judges jobs.
    pub judge: Judge,
    /// Gets what jobs have in repositories.
    pub repositories: Repositories,
    /// What jobs can be run with.
    pub runtimes: Runtimes,
    /// Runs them.
    pub backend: Arc<dyn Backend>,
    /// What it has under way of what it bounds.
    pub load: Arc<load::Load>,
    /// Slots for other jobs, while an application in a cluster is looked after.
    pub lending: Arc<Lending>,
    /// This worker instance, as events name it.
    pub worker: String,
    /// The folder in which attempts of this worker get their directories.
    pub directory: PathBuf,
    /// Where events go.
    pub announce: Arc<dyn Announce>,
    /// Until when drivers may run; absent where nobody else could run them.
    pub lease_ends: Option<watch::Receiver<Option<BootTime>>>,
}

/// Where events go.
pub trait Announce: Send + Sync {
    /// Hands an event on its way; events of one job arrive in the order in which they were handed over.
    fn announce(&self, kind: EventKind, event: Event);

    /// Hands an event on its way and waits until it has arrived for good.
    fn announce_and_wait(&self, kind: EventKind, event: Event) -> Awaited<'_, ()>;
}

/// What is known of an attempt from the message that brought it.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The job.
    pub job: JobId,
    /// Its type, once it is known.
    pub job_type: Option<JobType>,
    /// Counts the times that the job was started, this one included.
    pub attempt: u32,
    /// How many of the earlier attempts failed or were lost.
    pub failures: u32,
    /// How many of the earlier attempts came before an end that an operator has undone.
    pub undone: u32,
    /// The digest of its body, for the events.
    pub digest: String,
    /// Which of the job's outputs, by their index, were there before its first attempt.
    pub existing: Vec<u16>,
    /// What this worker itself found of them.
    pub seen: outputs::Seen,
    /// The worker.
    pub worker: String,
    /// Echoed in events.
    pub correlation_id: Option<String>,
    /// Handed on in events.
    pub trace: TraceContext,
    /// When this worker took it.
    pub taken: Timestamp,
    /// Where its driver is to run, as far as its flags say.
    pub mode: Mode,
    /// For how long it has been offered to other workers, because those that had it have no runtime for it.
    pub unfit_for: Duration,
}

impl Claim {
    /// An event of this attempt; `fill` sets what is particular to it.
    pub fn event(&self, kind: EventKind, fill: impl FnOnce(&mut EventData)) -> Event {
        let mut data = EventData::new(kind, &self.job, self.job_type, self.attempt, &self.worker);
        data.correlation_id.clone_from(&self.correlation_id);
        data.digest = Some(self.digest.clone());
        fill(&mut data);
        Event::new(kind, &self.worker, &self.trace, data)
    }
}

/// Why an attempt is to end before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopReason {
    /// Somebody asked for the job's end.
    Cancel,
    /// The worker is leaving; the job goes back to the queue.
    GiveBack,
    /// The worker is leaving at once.
    GiveBackNow,
    /// The job is somebody else's now: nothing of it may go on here.
    OwnershipLost,
}

/// Tells an attempt to stop; the strongest reason that was given counts.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<Option<StopReason>>);

/// The other end of a [`Stop`].
#[derive(Debug, Clone)]
pub struct Stopper(watch::Sender<Option<StopReason>>);

impl Stopper {
    /// A stopper and what it stops.
    #[must_use]
    pub fn new() -> (Self, Stop) {
        let (sender, receiver) = watch::channel(None);
        (Self(sender), Stop(receiver))
    }

    /// Asks for the end. A weaker reason than one given before changes nothing.
    pub fn stop(&self, reason: StopReason) {
        self.0.send_if_modified(|current| {
            let stronger = current.is_none_or(|current| current < reason);
            if stronger {
                *current = Some(reason);
            }
            stronger
        });
    }
}

impl Stop {
    /// The reason to stop, when there is one.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        *self.0.borrow()
    }

    /// Waits for a reason that is stronger than `than`; for ever when none can come.
    pub async fn stronger(&mut self, than: Option<StopReason>) -> StopReason {
        let wanted = |reason: &Option<StopReason>| *reason > than;
        let found = self.0.wait_for(wanted).await.ok().and_then(|reason| *reason);
        match found {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub enum End {
    /// The function ran to its end.
    Completed(Box<Completion>),
    /// It did not.
    Failed {
        /// Why.
        failure: Box<Failure>,
        /// Whether another attempt may fare better.
        may_pass: bool,
    },
    /// The job cannot be run as it is.
    Rejected(Vec<Fault>),
    /// No runtime here fits the job; another worker may have one.
    Unfit(Vec<Fault>),
    /// Stopped on request.
    Cancelled,
    /// Stopped because the worker leaves.
    GivenBack,
    /// Ended by the guard, because the worker's lease was over.
    Interrupted,
    /// Somebody else has the job now: nothing may be said about it.
    Abandoned,
}

/// What a function that ran to its end left.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// What the metrics function gave.
    pub results: Option<Value>,
    /// The job's outputs, FILE entries filled.
    pub output_data: Value,
    /// The files that a training job left, as assets.
    pub additional_assets: Option<Value>,
    /// What is wrong with the outputs, if anything.
    pub complaints: Vec<String>,
    /// What became of the records, of a record model.
    pub records: Option<Records>,
}

impl Completion {
    /// ModelOp's word for it.
    #[must_use]
    pub fn job_result(&self) -> JobResult {
        let whole = self.records.as_ref().is_none_or(Records::are_whole);
        if self.complaints.is_empty() && whole { JobResult::Success } else { JobResult::Failure }
    }
}

/// What an attempt went through.
#[derive(Debug, Default)]
pub struct Course {
    /// How long each phase took.
    pub phases: Phases,
    /// When the model started.
    pub running_since: Option<Timestamp>,
    /// What its processes used.
    pub resources: Option<Resources>,
    /// Its directory, once there is one.
    pub directory: Option<PathBuf>,
    /// The directory holds outputs that the events only name.
    pub keep_directory: bool,
    /// What is to be told about the job besides, as of outputs that were there already.
    pub notes: Vec<String>,
    /// An application of it was followed to what is its end as far as can be known.
    pub has_followed: bool,
    /// An application of it may run in a cluster, of which no end is known.
    pub may_run_elsewhere: bool,
    /// What is to be told only if the attempt fails, as of inputs that nobody could look for.
    pub doubts: Vec<String>,
    /// What was fetched from repositories.
    pub sources: Vec<FetchedSource>,
    /// The runtime that it got.
    pub runtime: Option<RuntimeUsed>,
    /// Who ended it, when that was neither somebody who asked for it here nor the service itself.
    pub ended_by: Option<String>,
}

/// One attempt, over.
#[derive(Debug)]
pub struct Attempt {
    /// How it ended.
    pub end: End,
    /// What it went through.
    pub course: Course,
}

fn since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Runs one attempt to its end: checks, stages, submits, tracks, collects. `text` is the job's own text.
///
/// Nothing of the attempt's processes is left when this returns. Its directory is left for [`keep`] and [`clean`].
pub async fn run(context: &Context, claim: &Claim, job: Job, text: Vec<u8>, mut stop: Stop) -> Attempt {
    let mut course = Course { may_run_elsewhere: claim.mode.is_cluster(), ..Course::default() };
    let end = match run_phases(context, claim, job, text, &mut stop, &mut course).await {
        // What there may be has to be ended first, which the next attempt does.
        End::Cancelled if course.may_run_elsewhere => End::GivenBack,
        end => end,
    };
    Attempt { end, course }
}

async fn run_phases(
    context: &Context,
    claim: &Claim,
    job: Job,
    text: Vec<u8>,
    stop: &mut Stop,
    course: &mut Course,
) -> End {
    if let Some(reason) = stop.reason() {
        return submit::stopped(reason);
    }
    let began = Instant::now();
    let job = match resolve::resolve(&context.repositories, job, stop).await {
        Ok((job, sources)) => {
            course.sources = sources;
            job
        }
        Err(end) => return end,
    };
    let directory = context.directory.join(attempt_folder(claim));
    course.directory = Some(directory.clone());
    let judge = context.judge.clone();
    // Parsing, checking and writing block; they are done on threads that may.
    let checked = on_its_own_thread("checking", move || {
        let mut plan = judge.plan(&job).map_err(End::Rejected)?;
        let missing = judge.settle(&mut plan).err().unwrap_or_default();
        Ok((job, plan, missing))
    });
    let (job, plan, missing) = match checked.await {
        Ok(checked) => checked,
        Err(end) => return end,
    };
    let sought = Sought {
        mode: plan.mode(),
        identity: submit::identity(claim),
        actor: plan.command_line.actor(),
        working_directory: directory.join(stage::WORK),
        directory,
    };
    let adopted = match submit::adopt(context, &sought, stop).await {
        Ok(adopted) => adopted,
        Err(end) => return end,
    };
    course.may_run_elsewhere = adopted.is_some();
    let way = plan.way();
    let judged = Judged { job, plan, missing, sought, began };
    let started = match adopted {
        Some(application) => take_up(context, claim, judged, application, stop, course).await,
        None => start(context, claim, judged, text, stop, course).await,
    };
    let Started { job, staged, target, mut submitted, clock, kept: _kept } = match started {
        Ok(started) => started,
        Err(end) => return end,
    };
    crash_point("after-spawn");
    let tracked = track::track(context, claim, &mut submitted, stop, clock, course).await;
    (course.has_followed, course.may_run_elsewhere) = (true, false);
    let collecting = Instant::now();
    let mut end = collect::collect(context, job, way, &staged, tracked, course).await;
    if let Some(target) = target {
        end = upload::upload(context, &claim.job, &staged, target, stop, course, end).await;
        crash_point("after-upload");
    }
    course.phases.collect = Some(since(collecting));
    end
}

/// What of a job that is not to be run is looked for, with a directory of its own for what is found.
#[must_use]
pub fn sought(context: &Context, claim: &Claim, mode: Mode) -> Sought {
    let directory = context.directory.join(attempt_folder(claim));
    let working_directory = directory.join(stage::WORK);
    // Nothing that it wrote is read.
    let actor = Actor::Worker;
    Sought { mode, identity: submit::identity(claim), actor, directory, working_directory }
}

/// A job that can be run.
struct Judged {
    job: Job,
    plan: check::Plan,
    /// What of its inputs is not there, as far as it was looked for.
    missing: Vec<Fault>,
    sought: Sought,
    /// When this attempt began.
    began: Instant,
}

/// An attempt whose application is there.
struct Started<'a> {
    job: Job,
    staged: stage::Staged,
    /// Where the files of a training job go.
    target: Option<upload::Target>,
    submitted: submit::Submitted<'a>,
    clock: track::Clock,
    /// Kept until the end: an environment that is in use is not removed.
    kept: Option<(Runtime, Option<Sent>)>,
}

/// Takes up an application that was there before: nothing is staged or submitted, and nothing of its outputs removed.
async fn take_up<'a>(
    context: &'a Context,
    claim: &Claim,
    judged: Judged,
    application: Box<dyn Application>,
    stop: &mut Stop,
    course: &mut Course,
) -> Result<Started<'a>, End> {
    let Judged { job, plan, sought, .. } = judged;
    let note = "an application of the job was there already; it is followed and nothing submitted".to_owned();
    let accepted = claim.event(EventKind::Accepted, |data| {
        data.message = Some(note.clone());
        data.sources = (!course.sources.is_empty()).then(|| course.sources.clone());
    });
    context.announce.announce(EventKind::Accepted, accepted);
    course.notes.push(note);
    let staged = on_its_own_thread("staging", move || {
        stage::folders(&sought.directory).map_err(|error| not_staged(&error))
    });
    let staged = staged.await?;
    let target = target(context, &job, stop).await?;
    let now = Instant::now();
    let way = plan.contract().map(|contract| contract.way);
    let submitted = submit::Submitted { application, permit: None, way };
    let clock = track::Clock { submitting: now, launched: now };
    Ok(Started { job, staged, target, submitted, clock, kept: None })
}

/// Stages the job's files and starts its driver.
async fn start<'a>(
    context: &'a Context,
    claim: &Claim,
    judged: Judged,
    text: Vec<u8>,
    stop: &mut Stop,
    course: &mut Course,
) -> Result<Started<'a>, End> {
    let Judged { job, plan, missing, sought, began } = judged;
    look(context, claim, &job, &plan, missing, stop, course).await?;
    let runtime = runtime(context, claim, &job, stop).await?;
    course.runtime = Some(runtime.used.clone());
    let (announce, this, directory) = (context.announce.clone(), claim.clone(), sought.directory.clone());
    let (sources, used) = (course.sources.clone(), runtime.used.clone());
    let cleared = clear_outputs(context, claim, &job).await?;
    let staging = on_its_own_thread("staging", move || {
        let mut notes = plan.notes.clone();
        notes.extend(cleared);
        let accepted = this.event(EventKind::Accepted, |data| {
            data.message = (!notes.is_empty()).then(|| notes.join("; "));
            data.sources = (!sources.is_empty()).then_some(sources);
            data.runtime = Some(used);
        });
        announce.announce(EventKind::Accepted, accepted);
        let staged = stage::stage(&directory, &job, &plan, &text).map_err(|error| not_staged(&error))?;
        Ok((job, plan, staged, notes))
    });
    let (job, plan, staged, notes) = staging.await?;
    course.notes = notes;
    if plan.contract().is_some() {
        course.notes.extend(attachments::bring(context, &job, &staged.working_directory, stop).await?);
    }
    // Told as far as it came, also when what follows is cut short.
    course.phases.stage = Some(since(began));
    let sent = sent(context, &plan, &runtime, stop).await?;
    let target = target(context, &job, stop).await?;
    course.phases.stage = Some(since(began));
    crash_point("after-stage");
    if let Some(reason) = stop.reason() {
        return Err(submit::stopped(reason));
    }
    context.announce.announce(EventKind::Staged, claim.event(EventKind::Staged, |_| {}));
    let submitting = Instant::now();
    let wanted = submit::Wanted {
        runtime: &runtime,
        sent: sent.as_ref(),
        outputs: collect::file_outputs(&job),
        output_folder: (job.job_type() == JobType::Training).then_some(OUTPUT_FOLDER),
    };
    let submitted = submit::submit(context, sought, &staged, &plan, wanted, stop).await?;
    let clock = track::Clock { submitting, launched: Instant::now() };
    Ok(Started { job, staged, target, submitted, clock, kept: Some((runtime, sent)) })
}

/// Does what blocks where it may.
async fn on_its_own_thread<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, End> + Send + 'static,
) -> Result<T, End> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(submit::broken(&format!("{what} was cut short: {error}"))),
    }
}

fn not_staged(error: &stage::StageError) -> End {
    End::Failed { may_pass: error.may_pass(), failure: Box::new(error.failure()) }
}

/// Where the files of a training job go.
async fn target(context: &Context, job: &Job, stop: &mut Stop) -> Result<Option<upload::Target>, End> {
    tokio::select! {
        // A store that does not answer is waited for, but not by a worker that is to leave.
        biased;
        reason = stop.stronger(None) => Err(submit::stopped(reason)),
        prepared = upload::prepare(context, job) => prepared,
    }
}

/// The runtime that the job gets.
async fn runtime(context: &Context, claim: &Claim, job: &Job, stop: &mut Stop) -> Result<Runtime, End> {
    let wanted = resolve::required(&context.runtimes, job).map_err(End::Rejected)?;
    let others = context.settings.runtimes.others;
    resolve::choose(&context.runtimes, &wanted, claim.unfit_for, others, stop).await
}

/// The runtime's environment for executors elsewhere, where they need it.
async fn sent(
    context: &Context,
    plan: &check::Plan,
    runtime: &Runtime,
    stop: &mut Stop,
) -> Result<Option<Sent>, End> {
    if !plan.has_executors_elsewhere() || plan.command_line.names_python() {
        return Ok(None);
    }
    let sent = tokio::select! {
        biased;
        reason = stop.stronger(None) => return Err(submit::stopped(reason)),
        sent = context.runtimes.send(runtime) => sent,
    };
    sent.map_err(|error| End::Failed {
        failure: Box::new(submit::plain(FailureClass::Staging, error.to_string())),
        may_pass: true,
    })
}

/// Sees to it that what the job reads is there, and that of what it writes is known what was there before. `missing` is what
/// was found missing already: all of it is told at once.
async fn look(
    context: &Context,
    claim: &Claim,
    job: &Job,
    plan: &check::Plan,
    missing: Vec<Fault>,
    stop: &mut Stop,
    course: &mut Course,
) -> Result<(), End> {
    let mut faults = missing;
    faults.extend(outputs::refusals(context, claim, job));
    let known = outputs::must_be_seen(claim);
    if known.is_err() && faults.is_empty() {
        return known;
    }
    let seen = tokio::select! {
        // A file system that does not answer is waited for, but not by a worker that is to leave.
        biased;
        reason = stop.stronger(None) => return Err(submit::stopped(reason)),
        seen = inputs::look(context, job, plan, !faults.is_empty()) => seen,
    };
    faults.extend(seen.missing);
    if !faults.is_empty() {
        return Err(End::Rejected(faults));
    }
    course.doubts = seen.doubts;
    match seen.unseen {
        Some(words) => Err(submit::broken(&words)),
        None => Ok(()),
    }
}

/// Makes the places of the outputs what they were before the first attempt; gives what is to be told about them.
async fn clear_outputs(context: &Context, claim: &Claim, job: &Job) -> Result<Vec<String>, End> {
    let mut notes = outputs::notes(context, claim, job).await;
    notes.extend(outputs::remove_leftovers(context, claim, job).await?);
    outputs::note_absences(context, claim, job).await;
    Ok(notes)
}

/// The name of an attempt's directory: readable, and new every time.
fn attempt_folder(claim: &Claim) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let job: String = claim.job.as_str().chars().take(64).map(|c| if c == ':' { '_' } else { c }).collect();
    format!("{job}-{}-{}", claim.attempt, &unique[..8])
}

/// What became of a directory that was to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Nobody wants it kept.
    NotWanted,
    /// It lies where the event says.
    Moved,
    /// It could not be moved, and is the only place of what is in it.
    NotMoved,
}

/// Puts an attempt's directory where it is kept, when the settings or its outputs want it kept.
pub async fn keep(context: &Context, attempt: &Attempt) -> Kept {
    let Some(directory) = attempt.course.directory.clone() else { return Kept::NotWanted };
    if !attempt.course.keep_directory && !keeps(context, &attempt.end) {
        return Kept::NotWanted;
    }
    let Some(kept) = kept_directory(context, &directory) else { return Kept::NotWanted };
    let moved = tokio::task::spawn_blocking(move || {
        // A driver that never came that far has left it.
        match std::fs::remove_file(directory.join(LOGIN)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::create_dir_all(kept.parent().unwrap_or(&kept))?;
        match std::fs::rename(&directory, &kept) {
            // An attempt that never got as far as a directory has none to keep.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            // How long it is kept counts from now, however long the job ran.
            Ok(()) => std::fs::File::open(&kept)?.set_modified(std::time::SystemTime::now()),
        }
    });
    match moved.await {
        Ok(Ok(())) => Kept::Moved,
        Ok(Err(error)) => {
            tracing::error!(%error, "an attempt's directory could not be kept; it stays where it was");
            Kept::NotMoved
        }
        Err(error) => {
            tracing::error!(%error, "keeping an attempt's directory was cut short");
            Kept::NotMoved
        }
    }
}

/// Removes what is left of an attempt's directory.
pub async fn clean(attempt: &Attempt) {
    let Some(directory) = attempt.course.directory.clone() else { return };
    let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(%error, "an attempt's directory could not be removed");
    }
}

fn keeps(context: &Context, end: &End) -> bool {
    use crate::config::Keep;
    match context.settings.job.keep {
        Keep::Never => false,
        Keep::Always => true,
        Keep::Failed => matches!(end, End::Failed { .. }),
    }
}

/// Where an attempt's directory will be found once [`keep`] has put it there.
fn kept_directory(context: &Context, directory: &std::path::Path) -> Option<PathBuf> {
    Some(kept_folder(&context.settings.job.directory).join(directory.file_name()?))
}

/// Where attempts' directories are kept, in the folder of the settings.
#[must_use]
pub fn kept_folder(directory: &std::path::Path) -> PathBuf {
    directory.join("kept")
}

/// A duration in words, as `2m 5s`.
#[must_use]
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) => format!("{} ms", duration.as_millis()),
        (0, 0, s) => format!("{s} s"),
        (0, m, 0) => format!("{m} min"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, 0, _) => format!("{h} h"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_strongest_reason_to_stop_counts() {
        let (stopper, mut stop) = Stopper::new();
        assert_eq!(stop.reason(), None);
        stopper.stop(StopReason::GiveBack);
        assert_eq!(stop.stronger(None).await, StopReason::GiveBack);
        stopper.stop(StopReason::OwnershipLost);
        stopper.stop(StopReason::Cancel);
        assert_eq!(stop.stronger(Some(StopReason::GiveBack)).await, StopReason::OwnershipLost);
    }

    #[test]
    fn durations_are_told_in_words() {
        let words = |seconds| in_words(Duration::from_secs(seconds));
        assert_eq!(words(0), "0 ms");
        assert_eq!(words(59), "59 s");
        assert_eq!(words(120), "2 min");
        assert_eq!(words(86_400), "24 h");
        assert_eq!(words(5_430), "1 h 30 min");
    }
}
