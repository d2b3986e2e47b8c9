//! Collecting: what an application that is over left behind, and what that says about the job.
//!
//! [`judge`] is the one place that decides whether a result is true: the driver's last word and the end of its
//! processes have to agree.
//!
//! This module must not publish anything, nor decide whether there is another attempt.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use spark_runtime_protocol::asset::{AssetType, StagedPath};
use spark_runtime_protocol::event::{Failure, FailureClass, ModelException, Records, Way};
use spark_runtime_protocol::job::Job;
use spark_runtime_protocol::json::Fault;

use super::stage::Staged;
use super::submit::{plain, stopped};
use super::track::{Cut, Tracked};
use super::{Completion, Context, Course, End, StopReason, cluster_end, in_words, kept_directory};
use crate::config::Keep;
use crate::spark::client_mode::{STANDARD_ERROR, STANDARD_OUTPUT};
use crate::spark::guard::{Exit, ExitStatus};
use crate::spark::report::{AtRecord, FailureKind, Word};
use crate::spark::{DRIVER_LOGS, Outcome};

/// The exit code of a driver that cannot reach the worker.
const DRIVER_CUT_OFF: i32 = 70;

/// The most that results, and FILE outputs together, may bring into one event, in bytes. RabbitMQ takes messages of 16 MiB
/// from release 4.0 on; base64 adds a third.
const LARGEST_PART: u64 = 4 << 20;
/// The most reasons for bad records that an event has, and the most characters of each.
const MOST_REASONS: usize = 20;
const LONGEST_REASON: usize = 200;
/// What YARN's client says, in either mode, of an application whose containers the cluster can never give.
const TOO_LARGE: &str = "above the max threshold (";
/// What Spark says of a job that was under way when its context was stopped, by whomever.
const SHUT_DOWN: &str = "cancelled because SparkContext was shut down";
/// What Spark raises for what the model wrote, and not for what became of its context.
const OF_THE_MODEL: [&str; 3] = [".AnalysisException", ".ParseException", ".PythonException"];
/// What a standalone master tells an application that somebody ended there, and who that may be. It does so for nothing else.
const KILLED_AT_MASTER: &str = "Master removed our application: KILLED";
const BY_MASTER: &str = "somebody killed it at the master of the standalone cluster";
/// How much of the end of a driver's log is searched for who ended its application, in bytes: traces may follow on it.
const SEARCHED: u64 = 1 << 20;
/// The end of what is said where only the log says why.
pub(super) const SEE_LOG: &str = "; see the log";
/// Where results are kept that no event takes.
const RESULTS: &str = "results.json";

/// Reads what the application left and judges how the attempt ended.
pub async fn collect(
    context: &Context,
    job: Job,
    way: Way,
    staged: &Staged,
    tracked: Tracked,
    course: &mut Course,
) -> End {
    course.ended_by = cluster_end::ended_by(&tracked);
    if let Some(reason) = &tracked.ending.unlogged {
        course.notes.push(format!("there is no log of the driver: {reason}"));
    }
    let limits = Limits {
        pending_timeout: in_words(context.settings.job.pending_timeout),
        submit_timeout: in_words(context.settings.job.submit_timeout),
        run_timeout: in_words(context.settings.job.run_timeout),
        starter: match way {
            Way::Process => "Python",
            Way::Spark => "spark-submit",
        },
    };
    match judge(tracked, &job, &limits) {
        Verdict::Completed { results, records } => {
            let records = records.map(bounded);
            let (results, complaint) = match results {
                Some(results) => fitting(context, &staged.directory, results).await,
                None => (None, None),
            };
            course.keep_directory = complaint.is_some();
            let complaints: Vec<String> = complaint.into_iter().collect();
            let working_directory = staged.working_directory.clone();
            let kept = kept_directory(context, &staged.directory);
            let inline = context.settings.job.inline_output;
            if !job.outputs().iter().any(|entry| AssetType::of(entry) == Some(AssetType::File)) {
                // Nothing to read, and so nothing that another thread would be needed for.
                let output_data = Value::Array(job.outputs().to_vec());
                return End::Completed(Box::new(Completion {
                    results,
                    output_data,
                    additional_assets: None,
                    complaints,
                    records,
                }));
            }
            let outputs =
                tokio::task::spawn_blocking(move || outputs(&job, &working_directory, kept, inline)).await;
            match outputs {
                Ok(outputs) => {
                    course.keep_directory |= outputs.left_on_disk;
                    let complaints = [complaints, outputs.complaints].concat();
                    let output_data = outputs.output_data;
                    End::Completed(Box::new(Completion {
                        results,
                        output_data,
                        additional_assets: None,
                        complaints,
                        records,
                    }))
                }
                Err(error) => super::submit::broken(&format!("reading the outputs was cut short: {error}")),
            }
        }
        Verdict::Failed { mut failure, mut may_pass } => {
            let is_of_spark = failure.exception.as_ref().is_some_and(|exception| {
                // A model may have made an exception of its own of it.
                is_of_spark(exception) || exception.message.contains(SHUT_DOWN)
            });
            if is_of_spark || failure.class == FailureClass::Infrastructure && failure.exception.is_some() {
                let log = staged.directory.join(STANDARD_ERROR);
                let found = tokio::task::spawn_blocking(move || let_go_in(&log_tail(&log, SEARCHED)));
                match found.await {
                    Ok(Some(LetGo::ByHand(who))) => {
                        course.ended_by = Some(who);
                        return stopped(StopReason::Cancel);
                    }
                    Ok(Some(LetGo::Failed { class, words, may_pass: passes }))
                        if failure.class == FailureClass::Model =>
                    {
                        let message = format!("{words}{SEE_LOG}");
                        (failure.class, failure.message, may_pass) = (class, message, passes);
                    }
                    _ => {}
                }
            }
            let tail = context.settings.log.tail;
            let directory = staged.directory.clone();
            let found = tokio::task::spawn_blocking(move || log_of(&directory, tail));
            let found = found.await.ok().flatten();
            let log = found.as_ref().map(|(_, log)| log.clone());
            if failure.class == FailureClass::Submit
                && failure.message.ends_with(SEE_LOG)
                && let Some(words) = found.as_ref().and_then(|(tail, _)| launcher_gave_up(tail))
            {
                failure.message.push_str(&format!(": {}", words.trim_end_matches('.')));
                if words.contains(TOO_LARGE) {
                    failure.message.push_str("; ask for less, or have the limit raised");
                    may_pass = false;
                }
            }
            failure.log_tail = found.map(|(tail, _)| tail);
            if context.settings.job.keep != Keep::Never
                && let Some(kept) = kept_directory(context, &staged.directory)
            {
                let log = log.unwrap_or_else(|| staged.directory.join(STANDARD_ERROR));
                let inside = log.strip_prefix(&staged.directory).unwrap_or(Path::new(STANDARD_ERROR));
                failure.log = Some(format!("{}:{}", host(), kept.join(inside).display()));
            }
            End::Failed { failure, may_pass }
        }
        Verdict::Rejected(faults) => End::Rejected(faults),
        Verdict::Stopped(reason) => stopped(reason),
        Verdict::Interrupted => End::Interrupted,
    }
}

/// Results as the event takes them: those that are too large for one are kept in a file, and the event says where.
async fn fitting(context: &Context, directory: &Path, results: Value) -> (Option<Value>, Option<String>) {
    let path = directory.join(RESULTS);
    let written = tokio::task::spawn_blocking(move || {
        let text = results.to_string();
        if text.len() as u64 <= LARGEST_PART {
            return (Some(results), Ok(0));
        }
        (None, std::fs::write(path, &text).map(|()| text.len()))
    });
    let place = kept_directory(context, directory).unwrap_or_default().join(RESULTS);
    match written.await {
        Ok((Some(results), _)) => (Some(results), None),
        Ok((None, Ok(size))) => {
            let message = format!(
                "the results have {size} bytes, more than an event takes; they are in {}:{}",
                host(),
                place.display()
            );
            (None, Some(message))
        }
        Ok((None, Err(error))) => {
            (None, Some(format!("the results are more than an event takes, and could not be kept: {error}")))
        }
        Err(error) => (None, Some(format!("the results could not be written: {error}"))),
    }
}

/// What the end of an application says about the attempt.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    Completed { results: Option<Value>, records: Option<Records> },
    Failed { failure: Box<Failure>, may_pass: bool },
    Rejected(Vec<Fault>),
    Stopped(StopReason),
    Interrupted,
}

/// The settings that a failure's words name.
pub(super) struct Limits {
    pub(super) submit_timeout: String,
    pub(super) pending_timeout: String,
    pub(super) run_timeout: String,
    /// What the driver is started by.
    pub(super) starter: &'static str,
}

impl Limits {
    /// What is said of a job that was ended by its run deadline, wherever it ran.
    pub(super) fn ran_too_long(&self) -> String {
        format!("the job ran longer than {} (job.run_timeout) and was ended", self.run_timeout)
    }
}

/// The words of a job whose application the cluster does not know any more.
pub(super) fn forgotten(waited_for: Option<String>) -> String {
    waited_for.unwrap_or_else(|| "the cluster does not know the application".to_owned())
}

/// What a driver says of records, no larger than anybody reads. The model runs in its process, and might say anything.
fn bounded(mut records: Records) -> Records {
    let cut = |text: &mut String| {
        if let Some((at, _)) = text.char_indices().nth(LONGEST_REASON) {
            text.truncate(at);
        }
    };
    records.reasons.truncate(MOST_REASONS);
    for reason in &mut records.reasons {
        cut(&mut reason.reason);
        reason.field.iter_mut().for_each(cut);
    }
    records
}

fn judge(tracked: Tracked, job: &Job, limits: &Limits) -> Verdict {
    match tracked.ending.outcome {
        Outcome::Process(exit) => judge_process(tracked, exit, job, limits),
        _ => cluster_end::judge(tracked, job, limits),
    }
}

fn judge_process(tracked: Tracked, exit: Exit, job: &Job, limits: &Limits) -> Verdict {
    let Tracked { mut ending, cut, waited_for } = tracked;
    let (exit_code, signal) = match exit.status {
        ExitStatus::Code(code) => (Some(code), None),
        ExitStatus::Signal(signal) => (None, Some(signal)),
        ExitStatus::Lost => (None, None),
    };
    let failed = |class: FailureClass, message: String, may_pass: bool| {
        let mut failure = plain(class, message);
        (failure.exit_code, failure.signal) = (exit_code, signal);
        Verdict::Failed { failure: Box::new(failure), may_pass }
    };
    if let Some(Cut::Stopped(StopReason::OwnershipLost)) = cut {
        return Verdict::Stopped(StopReason::OwnershipLost);
    }
    match ending.report.take() {
        // Only both together are a success. One that was there before the end was asked for counts; one that came after
        // may be what a model makes of a signal.
        Some(Word::Completed { results, records })
            if exit_code == Some(0) && (cut.is_none() || ending.report_came_first) =>
        {
            return Verdict::Completed { results, records };
        }
        Some(Word::Failed { kind, exception, functions, at }) if cut.is_none() => {
            let mut verdict = raised(kind, exception, &functions, at, job);
            if let Verdict::Failed { failure, .. } = &mut verdict {
                failure.exit_code = exit_code;
                if exit.oom_killed {
                    failure.message.push_str("; meanwhile the kernel ended a process for lack of memory");
                }
            }
            return verdict;
        }
        Some(Word::Completed { .. }) if cut.is_none() && !exit.fenced && exit_code.or(signal).is_some() => {
            let message = format!(
                "the function ran to its end, but then the driver {}; its outputs may not be whole",
                how_it_ended(&exit)
            );
            return failed(FailureClass::Killed, message, false);
        }
        _ => {}
    }
    match cut {
        Some(Cut::Stopped(reason)) => return Verdict::Stopped(reason),
        Some(Cut::RunDeadline) => {
            let mut message = limits.ran_too_long();
            if let Some(what) = waited_for {
                message.push_str(&format!("; at the end its work waited: {what}"));
            }
            return failed(FailureClass::Timeout, message, false);
        }
        Some(Cut::PendingDeadline) => {
            let what = waited_for.unwrap_or_else(|| "its work".to_owned());
            let message = format!(
                "the job got no executor within {} (job.pending_timeout): {what}; ask for less memory or fewer cores for each \
                 (--executor-memory, --executor-cores), or see to it that the cluster has room",
                limits.pending_timeout
            );
            return failed(FailureClass::Pending, message, true);
        }
        Some(Cut::Forgotten) => return failed(FailureClass::Lost, forgotten(waited_for), true),
        Some(Cut::SubmitDeadline) => {
            let message = format!(
                "{} did not start the driver within {} (job.submit_timeout)",
                limits.starter, limits.submit_timeout
            );
            return failed(FailureClass::Submit, message, true);
        }
        None => {}
    }
    if exit.fenced {
        return Verdict::Interrupted;
    }
    if exit.status == ExitStatus::Lost {
        let message = "the guard that ran the driver was killed, and the job with it";
        return failed(FailureClass::Infrastructure, message.to_owned(), true);
    }
    let killed = killing_signal(&exit);
    if exit.oom_killed && killed == Some(libc::SIGKILL) {
        let message = format!(
            "the kernel ended the job for lack of memory (it used up to {} MiB); ask for less, or run it on a larger machine",
            exit.peak_memory >> 20
        );
        return failed(FailureClass::Killed, message, false);
    }
    if let Some(unreadable) = &ending.unreadable {
        let message = format!("the driver's report could not be read: {unreadable}");
        return failed(FailureClass::Infrastructure, message, true);
    }
    if killed.is_some() {
        let message = format!("the driver {}, and not by this worker", how_it_ended(&exit));
        return failed(FailureClass::Killed, message, false);
    }
    if ending.started {
        let message = format!(
            "the driver {} before the function returned, without a Python exception; look for os._exit or a crash of native code",
            how_it_ended(&exit)
        );
        return failed(FailureClass::Model, message, false);
    }
    if exit.status == ExitStatus::Code(DRIVER_CUT_OFF) {
        let message = "the driver could not reach the worker over its socket; see the log".to_owned();
        return failed(FailureClass::Infrastructure, message, true);
    }
    let message =
        format!("{} {} before the driver was there; see the log", limits.starter, how_it_ended(&exit));
    failed(FailureClass::Submit, message, true)
}

/// How a cluster let go of a job's application.
#[derive(Debug, Clone, PartialEq, Eq)]
enum LetGo {
    /// Somebody there ended it; who, in words.
    ByHand(String),
    /// It failed, and not by its model.
    Failed { class: FailureClass, words: &'static str, may_pass: bool },
}

/// How a cluster let go of an application, where what Spark raised in the model says so: that is no fault of the model's. The
/// words are those of `StandaloneAppClient` and `StandaloneSchedulerBackend`, those of YARN's client, or the places in
/// `YarnClientSchedulerBackend` at which it raises or stops what it finds ended. The last are of a context that was stopped by
/// its own scheduler (`SparkContext.stopInNewThread`), which is what a model meets that was about to use it.
fn let_go(message: &str) -> Option<LetGo> {
    use FailureClass::{Infrastructure, Submit};
    let says = |words: &str| message.contains(words);
    let failed = |class, words| Some(LetGo::Failed { class, words, may_pass: true });
    if says(TOO_LARGE) {
        return Some(LetGo::Failed {
            class: Submit,
            words: "YARN has no container as large as the job asks for; ask for less, or have its limit raised",
            may_pass: false,
        });
    }
    if says("All masters are unresponsive! Giving up.") {
        return failed(
            Infrastructure,
            "the cluster ended the job's application: no master of the standalone cluster answers",
        );
    }
    if says("YarnException: Failed to submit application_") {
        return failed(Submit, "the cluster ended the job's application: YARN did not take it");
    }
    if says("Yarn application has already ended") || says("YarnClientSchedulerBackend.waitForApplication(") {
        let by_hand = java_cause(message).filter(|cause| cause.contains(" killed by user"));
        return match by_hand {
            Some(cause) => Some(LetGo::ByHand(ended_in_cluster(&cause))),
            None => {
                failed(Submit, "the cluster ended the job's application: YARN ended it before it could begin")
            }
        };
    }
    if says("YarnClientSchedulerBackend$MonitorThread") {
        return failed(
            Infrastructure,
            "the cluster ended the job's application: YARN lost its application master, took its place for something else, or \
             ended it because its executors failed again and again",
        );
    }
    if says(KILLED_AT_MASTER) {
        return Some(LetGo::ByHand(ended_in_cluster(BY_MASTER)));
    }
    if says("Master removed our application") {
        return failed(
            Infrastructure,
            "the cluster ended the job's application: the master removed it, as it does when executors fail again and again",
        );
    }
    let (_, after) = message.split_once("Cannot call methods on a stopped SparkContext")?;
    let (_, stopped_at) = after.split_once("it was stopped at:")?;
    if !stopped_at.trim_start().starts_with("org.apache.spark.SparkContext$$anon$") {
        return None;
    }
    failed(
        Infrastructure,
        "the cluster ended the job's application: Spark stopped its own context, as it does when no master of a standalone \
         cluster answers, or when the master removes the application because its executors fail",
    )
}

/// Who in a cluster ended an application, where what Spark raised in the model says so.
pub(super) fn ended_by_hand(message: &str) -> Option<String> {
    match let_go(message) {
        Some(LetGo::ByHand(who)) => Some(who),
        _ => None,
    }
}

/// Whether Spark raised this, and not the model: whatever was under way in a context that somebody else stops ends with an
/// exception that depends on where it was, as with that of a thread that is interrupted.
fn is_of_spark(exception: &ModelException) -> bool {
    let raised = &exception.exception_type;
    ["py4j.", "pyspark."].iter().any(|library| raised.starts_with(library))
        && !OF_THE_MODEL.iter().any(|name| raised.ends_with(name))
}

/// What the log of a driver says of a context that Spark stopped: what the model met after that need not say it, and may look
/// as if the model had stopped it itself.
fn let_go_in(log: &str) -> Option<LetGo> {
    let failed = |words| Some(LetGo::Failed { class: FailureClass::Infrastructure, words, may_pass: true });
    if log.contains(KILLED_AT_MASTER) {
        return Some(LetGo::ByHand(ended_in_cluster(BY_MASTER)));
    }
    if let Some((_, after)) = log.split_once("YARN application has exited unexpectedly with state ") {
        if !after.starts_with("KILLED") {
            return failed("the cluster ended the job's application: YARN says that it has failed");
        }
        let said = after.split_once("Diagnostics message: ").map(|(_, words)| first_line(words));
        return Some(LetGo::ByHand(ended_in_cluster(
            said.as_deref().unwrap_or("YARN says that it was killed"),
        )));
    }
    if log.contains("StandaloneSchedulerBackend: Application has been killed. Reason: ") {
        return failed(
            "the cluster ended the job's application: the master removed it, or no master of the standalone cluster answers",
        );
    }
    None
}

fn ended_in_cluster(who: &str) -> String {
    format!("the job's application was ended in the cluster: {who}")
}

/// What the driver's own word for a failure says.
pub(super) fn raised(
    kind: FailureKind,
    exception: ModelException,
    functions: &[String],
    at: AtRecord,
    job: &Job,
) -> Verdict {
    match kind {
        FailureKind::Contract => {
            let at = format!("{}/sourceCode", job.primary_pointer());
            let mut message = exception.message;
            if !functions.is_empty() && !message.contains(functions[0].as_str()) {
                message = format!("{message}; it has {}", functions.join(", "));
            }
            Verdict::Rejected(vec![Fault::new(at, message)])
        }
        FailureKind::Model => {
            let let_go = let_go(&exception.message);
            if let Some(LetGo::ByHand(_)) = let_go {
                return Verdict::Stopped(StopReason::Cancel);
            }
            if let Some(LetGo::Failed { class, words, may_pass }) = let_go {
                let mut message = format!("{words}{SEE_LOG}");
                if let Some(cause) = java_cause(&exception.message) {
                    message.push_str(&format!(": {cause}"));
                }
                let mut failure = plain(class, message);
                failure.exception = Some(exception);
                return Verdict::Failed { failure: Box::new(failure), may_pass };
            }
            let mut message = format!("the model raised {}", exception.exception_type);
            if let Some(record) = at.record {
                let of =
                    at.input.as_deref().map(|name| format!(" of {}", first_line(name))).unwrap_or_default();
                message.push_str(&format!(" at record {record}{of}"));
            }
            if !exception.message.is_empty() {
                message.push_str(&format!(": {}", first_line(&exception.message)));
            }
            if let Some(cause) = java_cause(&exception.message) {
                let shown = message.trim_end_matches('.').len();
                message.truncate(shown);
                message.push_str(&format!(": {cause}"));
            }
            let mut failure = plain(FailureClass::Model, message);
            failure.exception = Some(exception);
            (failure.record, failure.input) = (at.record, at.input);
            Verdict::Failed { failure: Box::new(failure), may_pass: false }
        }
    }
}

/// What lies at the bottom of a Java exception, of which the first line only says which call it came from: the last cause that
/// is named, else the exception itself.
fn java_cause(message: &str) -> Option<String> {
    let itself = message.lines().nth(1)?.strip_prefix(": ")?;
    let cause = message.lines().rev().find_map(|line| line.strip_prefix("Caused by: ")).unwrap_or(itself);
    Some(first_line(cause))
}

/// Why spark-submit gave up before anything ran, in its own words, where they are among the last of its log.
fn launcher_gave_up(tail: &str) -> Option<String> {
    const THROWN: &str = "Exception in thread \"main\" ";
    let thrown = tail.lines().rev().find_map(|line| line.strip_prefix(THROWN))?;
    Some(first_line(thrown))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(500).collect()
}

/// The signal that ended the driver: by its own status, or by the exit code by which a shell or the JVM hands it on.
fn killing_signal(exit: &Exit) -> Option<i32> {
    match exit.status {
        ExitStatus::Signal(signal) => Some(signal),
        ExitStatus::Code(code) if [libc::SIGKILL, libc::SIGTERM].contains(&(code - 128)) => Some(code - 128),
        ExitStatus::Code(_) | ExitStatus::Lost => None,
    }
}

pub(super) fn how_it_ended(exit: &Exit) -> String {
    let named = |signal: i32| match nix::sys::signal::Signal::try_from(signal) {
        Ok(name) => format!("was ended by signal {signal} ({name})"),
        Err(_) => format!("was ended by signal {signal}"),
    };
    match (killing_signal(exit), exit.status) {
        (Some(signal), _) => named(signal),
        (None, ExitStatus::Code(code)) => format!("ended with exit code {code}"),
        (None, _) => "was lost".to_owned(),
    }
}

/// The FILE outputs of a job, by their paths in the working directory.
#[must_use]
pub fn file_outputs(job: &Job) -> Vec<String> {
    let files = job.outputs().iter().filter(|entry| AssetType::of(entry) == Some(AssetType::File));
    files.filter_map(|entry| Some(StagedPath::new(output_name(entry)).ok()?.as_str().to_owned())).collect()
}

fn output_name(entry: &Value) -> &str {
    ["filename", "name"].iter().find_map(|key| entry.get(*key)?.as_str()).unwrap_or_default()
}

/// The outputs of a job whose function ran to its end.
struct Outputs {
    output_data: Value,
    complaints: Vec<String>,
    left_on_disk: bool,
}

fn outputs(job: &Job, working_directory: &Path, kept: Option<PathBuf>, inline: u64) -> Outputs {
    let mut entries = job.outputs().to_vec();
    let mut complaints = Vec::new();
    let mut left_on_disk = false;
    let mut room = LARGEST_PART;
    for entry in entries.iter_mut().filter(|entry| AssetType::of(entry) == Some(AssetType::File)) {
        let name = output_name(entry).to_owned();
        let Ok(path) = StagedPath::new(&name) else { continue };
        let Some(object) = entry.as_object_mut() else { continue };
        match read_output(&working_directory.join(path.as_str()), inline.min(room)) {
            Ok((size, Some(content))) => {
                room = room.saturating_sub(size);
                object.insert("fileContent".to_owned(), Value::String(content));
                object.insert("fileSize".to_owned(), size.into());
            }
            Ok((size, None)) => {
                left_on_disk = true;
                object.insert("fileSize".to_owned(), size.into());
                if let Some(kept) = &kept {
                    let place = kept.join("work").join(path.as_str());
                    object
                        .insert("fileLocation".to_owned(), format!("{}:{}", host(), place.display()).into());
                }
            }
            Err(error) => {
                object.insert("fileSize".to_owned(), 0.into());
                complaints.push(match error.kind() {
                    io::ErrorKind::NotFound => format!("the model did not write its output {name:?}"),
                    _ => format!("the output {name:?} could not be read: {error}"),
                });
            }
        }
    }
    Outputs { output_data: Value::Array(entries), complaints, left_on_disk }
}

/// A file's size, and its content in base64 when it has at most `inline` bytes.
fn read_output(path: &Path, inline: u64) -> io::Result<(u64, Option<String>)> {
    // A model must not make the worker read what it should not, nor wait for ever: no links, no pipes.
    let mut file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    if metadata.len() > inline {
        return Ok((metadata.len(), None));
    }
    let mut content = Vec::new();
    file.by_ref().take(inline).read_to_end(&mut content)?;
    Ok((content.len() as u64, Some(STANDARD.encode(&content))))
}

/// The end of what an attempt wrote, in `most` bytes, and the log that it is of.
fn log_of(directory: &Path, most: u64) -> Option<(String, PathBuf)> {
    // What a driver wrote where it ran says more than what its launcher did. There Spark writes into the one log, and Python
    // into the other.
    let elsewhere = directory.join(DRIVER_LOGS);
    let both =
        [STANDARD_ERROR, STANDARD_OUTPUT].map(|name| (log_tail(&elsewhere.join(name), most / 2), name));
    let both: Vec<_> = both.into_iter().filter(|(tail, _)| !tail.is_empty()).collect();
    if let Some((_, name)) = both.last() {
        let tails: Vec<&str> = both.iter().map(|(tail, _)| tail.as_str()).collect();
        return Some((tails.join("\n"), elsewhere.join(name)));
    }
    let logs = [STANDARD_ERROR, STANDARD_OUTPUT].map(|name| directory.join(name));
    let mut tails = logs.into_iter().map(|log| (log_tail(&log, most), log));
    tails.find(|(tail, _)| !tail.is_empty())
}

/// The last `most` bytes of a log, from a line's start where there is one.
fn log_tail(path: &Path, most: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut tail = Vec::new();
        file.take(most).read_to_end(&mut tail)?;
        if length > most
            && let Some(end) = tail.iter().position(|byte| *byte == b'\n')
            && end + 1 < tail.len()
        {
            tail.drain(..=end);
        }
        Ok(tail)
    };
    read().map(|tail| String::from_utf8_lossy(&tail).into_owned()).unwrap_or_default()
}

/// This machine's name.
#[must_use]
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".to_owned() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spark::Ending;
    use crate::spark::guard::LogSize;
    use serde_json::json;
    use std::time::Duration;

    fn job(outputs: Value) -> Job {
        let document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB", "outputData": outputs,
            "model": {"storedModel": {"modelAssets": [
                {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"}]}}
        });
        Job::read(document.to_string().as_bytes(), None).unwrap()
    }

    fn ending(report: Option<Word>, started: bool, status: ExitStatus) -> Ending {
        let exit = Exit {
            status,
            by_us: false,
            fenced: false,
            processor_time: Duration::ZERO,
            peak_memory: 3 << 20,
            leftovers: 0,
            oom_killed: false,
            stdout: LogSize::default(),
            stderr: LogSize::default(),
        };
        Ending {
            report,
            report_came_first: true,
            started,
            unreadable: None,
            unlogged: None,
            outcome: Outcome::Process(exit),
        }
    }

    fn verdict(ending: Ending, cut: Option<Cut>) -> Verdict {
        let limits = Limits {
            submit_timeout: "5 min".into(),
            pending_timeout: "1 h".into(),
            run_timeout: "24 h".into(),
            starter: "spark-submit",
        };
        judge(Tracked { ending, cut, waited_for: None }, &job(json!([])), &limits)
    }

    fn failure(ending: Ending, cut: Option<Cut>) -> (FailureClass, String, bool) {
        match verdict(ending, cut) {
            Verdict::Failed { failure, may_pass } => (failure.class, failure.message, may_pass),
            other => panic!("{other:?}"),
        }
    }

    fn failure_of_deadline() -> Verdict {
        let mut failure = plain(
            FailureClass::Timeout,
            "the job ran longer than 24 h (job.run_timeout) and was ended".to_owned(),
        );
        failure.exit_code = Some(0);
        Verdict::Failed { failure: Box::new(failure), may_pass: false }
    }

    fn completed() -> Option<Word> {
        Some(Word::Completed { results: Some(json!({"auc": 1})), records: None })
    }

    #[test]
    fn a_result_is_true_only_when_report_and_exit_code_agree() {
        assert_eq!(
            verdict(ending(completed(), true, ExitStatus::Code(0)), None),
            Verdict::Completed { results: Some(json!({"auc": 1})), records: None }
        );
        let (class, message, _) = failure(ending(completed(), true, ExitStatus::Code(1)), None);
        assert_eq!(class, FailureClass::Killed);
        assert!(message.contains("its outputs may not be whole"), "{message}");
        let (class, message, may_pass) = failure(ending(None, false, ExitStatus::Code(0)), None);
        assert_eq!((class, may_pass), (FailureClass::Submit, true));
        assert_eq!(message, "spark-submit ended with exit code 0 before the driver was there; see the log");
        let (class, message, _) = failure(ending(None, true, ExitStatus::Code(0)), None);
        assert_eq!(class, FailureClass::Model);
        assert!(message.contains("before the function returned"), "{message}");
    }

    #[test]
    fn who_ended_the_processes_is_told_apart() {
        let (class, message, may_pass) = failure(ending(None, true, ExitStatus::Code(137)), None);
        assert_eq!((class, may_pass), (FailureClass::Killed, false));
        assert_eq!(message, "the driver was ended by signal 9 (SIGKILL), and not by this worker");
        let mut starved = ending(None, true, ExitStatus::Signal(9));
        let Outcome::Process(exit) = &mut starved.outcome else { panic!() };
        exit.oom_killed = true;
        assert!(
            failure(starved, None)
                .1
                .starts_with("the kernel ended the job for lack of memory (it used up to 3 MiB)")
        );
        let lost = failure(ending(None, true, ExitStatus::Lost), None);
        assert_eq!((lost.0, lost.2), (FailureClass::Infrastructure, true));
    }

    #[test]
    fn deadlines_and_stops_say_so_unless_the_job_was_done_already() {
        let late = failure(ending(None, true, ExitStatus::Signal(15)), Some(Cut::RunDeadline));
        assert_eq!((late.0, late.2), (FailureClass::Timeout, false));
        let hung = failure(ending(None, false, ExitStatus::Signal(9)), Some(Cut::SubmitDeadline));
        assert_eq!((hung.0, hung.2), (FailureClass::Submit, true));
        let hungry = failure(ending(None, true, ExitStatus::Signal(15)), Some(Cut::PendingDeadline));
        assert_eq!((hungry.0, hungry.2), (FailureClass::Pending, true));
        assert!(
            hungry.1.starts_with("the job got no executor within 1 h (job.pending_timeout): "),
            "{}",
            hungry.1
        );
        let forgotten = failure(ending(None, true, ExitStatus::Signal(15)), Some(Cut::Forgotten));
        assert_eq!((forgotten.0, forgotten.2), (FailureClass::Lost, true));
        let stopped =
            |report, reason| verdict(ending(report, true, ExitStatus::Code(0)), Some(Cut::Stopped(reason)));
        assert!(matches!(stopped(completed(), StopReason::GiveBack), Verdict::Completed { .. }));
        let mut answered = ending(completed(), true, ExitStatus::Code(0));
        answered.report_came_first = false;
        assert_eq!(verdict(answered, Some(Cut::RunDeadline)), failure_of_deadline());
        assert_eq!(stopped(None, StopReason::Cancel), Verdict::Stopped(StopReason::Cancel));
        // Who has lost a job says nothing about it, not even that it is done.
        assert_eq!(
            stopped(completed(), StopReason::OwnershipLost),
            Verdict::Stopped(StopReason::OwnershipLost)
        );
    }

    #[test]
    fn what_lies_at_the_bottom_of_a_java_exception_is_told() {
        let text = "An error occurred while calling o42.csv.\n: org.x.A: outer\n\tat y\nCaused by: org.x.B: in the middle\n\tat z\n\
                    Caused by: org.x.C: The DiskSpace quota of /q is exceeded\n\t... 3 more\n";
        assert_eq!(java_cause(text).as_deref(), Some("org.x.C: The DiskSpace quota of /q is exceeded"));
        assert_eq!(
            java_cause("An error\n: org.x.A: only this\n\tat y").as_deref(),
            Some("org.x.A: only this")
        );
        assert_eq!(java_cause("no such column\nCaused by: nothing of Java's"), None);
        let log = "26/11/27 INFO Client: x\nException in thread \"main\" org.x.E: no such queue\n\tat y\n26/11/27 INFO z\n";
        assert_eq!(launcher_gave_up(log).as_deref(), Some("org.x.E: no such queue"));
        assert_eq!(launcher_gave_up("Exception in thread \"x\" y"), None);
    }

    /// What comes of a job whose model met an exception with this message, as the driver tells it of one of Java's.
    fn verdict_of(message: &str) -> Verdict {
        let exception = ModelException {
            exception_type: "py4j.protocol.Py4JJavaError".into(),
            message: message.into(),
            traceback: None,
            frame: None,
        };
        let at = AtRecord::default();
        let report = Word::Failed { kind: FailureKind::Model, exception, functions: vec![], at };
        verdict(ending(Some(report), true, ExitStatus::Code(1)), None)
    }

    /// The class, whether it is said to be the cluster's doing, and whether another attempt may fare better.
    fn let_go_of(message: &str) -> (FailureClass, bool, bool) {
        match verdict_of(message) {
            Verdict::Failed { failure, may_pass } => {
                (failure.class, failure.message.contains("the cluster ended the job's application"), may_pass)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_spark_raises_when_a_cluster_lets_go_of_a_job_is_no_fault_of_the_models() {
        let cluster = (FailureClass::Infrastructure, true, true);
        assert_eq!(
            let_go_of("x: Job aborted due to stage failure: All masters are unresponsive! Giving up."),
            cluster
        );
        assert_eq!(
            let_go_of("Job aborted due to stage failure: Master removed our application: FAILED"),
            cluster
        );
        let stopped = "java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.\nThis stopped \
                       SparkContext was created at:\n\nx\n\nAnd it was stopped at:\n\n";
        assert_eq!(
            let_go_of(&format!(
                "{stopped}org.apache.spark.SparkContext$$anon$3.run(SparkContext.scala:2298)"
            )),
            cluster
        );
        let yarn = (FailureClass::Submit, true, true);
        assert_eq!(
            let_go_of("x\n: org.apache.spark.SparkException: Yarn application has already ended! It"),
            yarn
        );
        assert_eq!(let_go_of("x\n: org.x.YarnException: Failed to submit application_1_1 to YARN : y"), yarn);
        // One that the model stopped itself.
        let model = (FailureClass::Model, false, false);
        assert_eq!(let_go_of(&format!("{stopped}org.apache.spark.api.java.JavaSparkContext.stop(x)")), model);
        assert_eq!(let_go_of("Cannot call methods on a stopped SparkContext"), model);
    }

    #[test]
    fn an_application_that_yarn_ends_under_a_driver_on_this_machine_is_no_fault_of_the_models() {
        let monitor = "\n\tat org.apache.spark.SparkContext.stop(SparkContext.scala:2099)\n\tat \
            org.apache.spark.scheduler.cluster.YarnClientSchedulerBackend$MonitorThread.run(YarnClientSchedulerBackend.scala:124)";
        let cancelled = format!(
            "An error occurred while calling o1.count.\n: org.apache.spark.SparkException: Job 3 cancelled because SparkContext \
             was shut down{monitor}"
        );
        let stopped = format!(
            "java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.\nThis stopped SparkContext was \
             created at:\n\nx\n\nAnd it was stopped at:\n{monitor}"
        );
        for message in [cancelled, stopped] {
            assert_eq!(let_go_of(&message), (FailureClass::Infrastructure, true, true), "{message}");
        }
        // What ends before it could begin is raised with YARN's words alone.
        let early = "An error occurred while calling None.x.\n: org.apache.spark.SparkException: Application application_1_1 \
            failed 2 times\n\tat \
            org.apache.spark.scheduler.cluster.YarnClientSchedulerBackend.waitForApplication(YarnClientSchedulerBackend.scala:97)";
        assert_eq!(let_go_of(early), (FailureClass::Submit, true, true));
        let ended =
            early.replace("application_1_1 failed 2 times", "application_1_1 was killed by user ann at h");
        assert_eq!(verdict_of(&ended), Verdict::Stopped(StopReason::Cancel));
        assert!(ended_by_hand(&ended).unwrap().ends_with("application_1_1 was killed by user ann at h"));
    }

    #[test]
    fn an_application_that_somebody_kills_at_its_cluster_is_cancelled_and_not_tried_again() {
        let killed = "Job aborted due to stage failure: Master removed our application: KILLED";
        assert_eq!(verdict_of(killed), Verdict::Stopped(StopReason::Cancel));
        let who = "the job's application was ended in the cluster: somebody killed it at the master of the standalone cluster";
        assert_eq!(ended_by_hand(killed).as_deref(), Some(who));
        assert_eq!(ended_by_hand("Master removed our application: FAILED"), None);
        let log = "26/11/27 ERROR StandaloneSchedulerBackend: Application has been killed. Reason: Master removed our application: \
                   KILLED\n";
        let by_hand_in = |log: &str| match let_go_in(log) {
            Some(LetGo::ByHand(who)) => Some(who),
            _ => None,
        };
        assert_eq!(by_hand_in(log).as_deref(), Some(who));
        assert!(matches!(
            let_go_in(&log.replace("KILLED", "FAILED")),
            Some(LetGo::Failed { may_pass: true, .. })
        ));
        // What the model met after that depends on where its work was; an exception of its own is not looked behind.
        for (raised, is_so) in [
            ("py4j.protocol.Py4JJavaError", true),
            ("pyspark.errors.exceptions.captured.IllegalArgumentException", true),
            ("pyspark.errors.exceptions.captured.AnalysisException", false),
            ("ValueError", false),
            ("my_pyspark.Error", false),
        ] {
            let message = "java.lang.InterruptedException".to_owned();
            let exception =
                ModelException { exception_type: raised.to_owned(), message, traceback: None, frame: None };
            assert_eq!(is_of_spark(&exception), is_so, "{raised}");
        }
        // A model that stops its own session has nobody else to blame.
        assert!(
            let_go_in("INFO SparkContext: SparkContext is stopping with exitCode 0 from stop at x").is_none()
        );
        let log = "ERROR YarnClientSchedulerBackend: YARN application has exited unexpectedly with state KILLED! Check the YARN \
                   application logs for more details.\nERROR YarnClientSchedulerBackend: Diagnostics message: Application \
                   application_1_1 was killed by user ann at h\nTraceback\n";
        assert_eq!(
            by_hand_in(log).as_deref(),
            Some(
                "the job's application was ended in the cluster: Application application_1_1 was killed by user ann at h"
            )
        );
        assert_eq!(by_hand_in(&log.replace("KILLED", "FAILED")), None);
        assert!(matches!(let_go_in(&log.replace("KILLED", "FAILED")), Some(LetGo::Failed { .. })));
    }

    #[test]
    fn what_yarn_can_never_give_is_not_asked_for_again() {
        let large = "An error occurred while calling None.x.\n: java.lang.IllegalArgumentException: Required executor memory (9216 \
            MB), offHeap memory (0) MB, overhead (921 MB), and PySpark memory (0 MB) is above the max threshold (4096 MB) of this \
            cluster! Please check the values";
        match verdict_of(large) {
            Verdict::Failed { failure, may_pass } => {
                assert_eq!((failure.class, may_pass), (FailureClass::Submit, false));
                assert!(
                    failure
                        .message
                        .starts_with("YARN has no container as large as the job asks for; ask for less"),
                    "{}",
                    failure.message
                );
                assert!(failure.message.contains("above the max threshold (4096 MB)"), "{}", failure.message);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_source_does_not_have_is_the_jobs_fault_and_not_the_models() {
        let exception = ModelException {
            exception_type: "X".into(),
            message: "no score".into(),
            traceback: None,
            frame: None,
        };
        let at = AtRecord { record: Some(7), input: Some("t.csv".into()) };
        let report = |kind| {
            let (exception, at) = (exception.clone(), at.clone());
            Some(Word::Failed { kind, exception, functions: vec!["a".into()], at })
        };
        let contract = verdict(ending(report(FailureKind::Contract), true, ExitStatus::Code(1)), None);
        assert!(
            matches!(&contract, Verdict::Rejected(faults) if faults[0].message == "no score; it has a"),
            "{contract:?}"
        );
        let (class, message, _) =
            failure(ending(report(FailureKind::Model), true, ExitStatus::Code(1)), None);
        assert_eq!(class, FailureClass::Model);
        assert_eq!(message, "the model raised X at record 7 of t.csv: no score");
    }

    #[test]
    fn file_outputs_come_back_with_content_and_true_size() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("small.txt"), "hi").unwrap();
        std::fs::write(place.path().join("large.txt"), "x".repeat(100)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", place.path().join("link.txt")).unwrap();
        let file = |name: &str| json!({"assetType": "FILE", "filename": name, "fileSize": 7, "odd": null});
        let job = job(json!([
            file("small.txt"), {"assetType": "EXTERNAL_FILE", "fileUrl": "/o"}, file("large.txt"), file("link.txt"), file("none.txt")
        ]));
        let outputs = outputs(&job, place.path(), Some("/kept/a".into()), 10);
        let entries = outputs.output_data.as_array().unwrap();
        assert_eq!(entries[0]["fileContent"], "aGk=");
        assert_eq!(entries[0]["fileSize"], 2);
        assert_eq!(entries[1], json!({"assetType": "EXTERNAL_FILE", "fileUrl": "/o"}));
        assert!(entries[2].get("fileContent").is_none());
        assert_eq!(entries[2]["fileSize"], 100);
        assert!(entries[2]["fileLocation"].as_str().unwrap().ends_with(":/kept/a/work/large.txt"));
        assert_eq!(entries[4]["fileSize"], 0);
        assert!(outputs.left_on_disk);
        assert_eq!(outputs.complaints.len(), 2, "{:?}", outputs.complaints);
        assert_eq!(outputs.complaints[1], "the model did not write its output \"none.txt\"");
    }

    #[test]
    fn the_end_of_a_log_starts_with_a_whole_line() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("l");
        std::fs::write(&log, "one\ntwo\nthree\n").unwrap();
        assert_eq!(log_tail(&log, 8), "three\n");
        assert_eq!(log_tail(&log, 100), "one\ntwo\nthree\n");
        assert_eq!(log_tail(&place.path().join("none"), 8), "");
    }
}
