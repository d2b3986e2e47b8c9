//! `run`: a job here and now, without a broker, through the same stages as in a worker.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use spark_runtime_protocol::asset::{AssetType, StagedPath};
use spark_runtime_protocol::event::{Digests, TraceContext};
use spark_runtime_protocol::{Event, EventKind, Job, JobId};

use super::render::{Progress, exit_of, faults, outcome};
use super::{CliError, Exit, input, output};
use crate::config::Settings;
use crate::job::outputs;
use crate::job::settle::{launches, terminal_event};
use crate::job::submit::identity;
use crate::job::{
    Announce, Attempt, Claim, Context, End, Kept, StopReason, Stopper, clean, keep, run as run_attempt,
};
use crate::service::{Home, ServiceError, backend, context, instance_name};
use crate::spark::Awaited;

/// What `run` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job's JSON; `-` reads the standard input.
    job: PathBuf,
    /// Where FILE outputs are put.
    #[arg(long, value_name = "FOLDER", default_value = "outputs")]
    outputs: PathBuf,
    /// Print every event as one line of JSON instead of the outcome.
    #[arg(long)]
    json: bool,
}

/// Runs the job to its end.
///
/// # Errors
/// When the job cannot be read, or its outputs cannot be written.
pub async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    // The size of a message is the broker's concern, and there is none.
    let text = input::read(&args.job, u64::MAX - 1)?;
    let job = match Job::read(&text, Some(JobId::random().as_str())) {
        Ok(job) => job,
        Err(refusal) => {
            output::line(faults(&refusal.faults).trim_end())?;
            return Ok(Exit::Rejected);
        }
    };
    let worker = instance_name(&settings);
    let home = Home::make(&settings.job.directory, &worker).map_err(of_service)?;
    let terminal = Arc::new(Terminal { json: args.json, progress: Mutex::new(Progress::new()) });
    let context = context(&settings, &worker, &home, Arc::new(backend(&settings)), terminal.clone(), None)
        .map_err(of_service)?;
    let seen = outputs::look(&context, &job, true).await;
    let claim = Claim {
        job: job.id().clone(),
        job_type: Some(job.job_type()),
        attempt: 1,
        failures: 0,
        undone: 0,
        digest: Digests::of(&text),
        existing: seen.existing.clone(),
        seen,
        worker,
        correlation_id: None,
        trace: TraceContext::default(),
        taken: Timestamp::now(),
        mode: context.judge.mode(&job),
        // There is no other worker.
        unfit_for: Duration::MAX,
    };
    let names = output_names(&job);
    let mut attempt = attempt(&context, &claim, job, text).await;
    // Here its end is told to nobody but whoever waits for it.
    if let Some(launches) = launches(&context, &claim).await {
        context.backend.forget(&identity(&claim), &claim.mode, &launches).await;
    }
    let written = save_outputs(&attempt, &names, &args.outputs);
    // What could not be saved must not be lost with the directory.
    attempt.course.keep_directory |= written.is_err();
    let kept = keep(&context, &attempt).await;
    if kept == Kept::NotMoved {
        home.leave();
    } else {
        clean(&attempt).await;
    }
    let Some((kind, event)) = terminal_event(&claim, &attempt) else {
        return Err(CliError::Internal("the job was given up without an end".to_owned()));
    };
    terminal.announce(kind, event.clone());
    let saved = match written {
        Ok(saved) => saved,
        Err(error) => {
            let kept = crate::job::kept_folder(&settings.job.directory);
            output::complain(&format!("the job's files are kept in {}", kept.display()));
            return Err(error);
        }
    };
    if !args.json {
        output::line(outcome(&event).trim_end())?;
        for path in saved {
            output::line(&format!("wrote {}", path.display()))?;
        }
    }
    Ok(exit_of(&event).unwrap_or(Exit::Internal))
}

/// What the exit code makes of a service that cannot start.
pub(super) fn of_service(error: ServiceError) -> CliError {
    match error {
        ServiceError::Policy(error) => error.into(),
        error => CliError::Internal(error.to_string()),
    }
}

/// One attempt; Ctrl-C and SIGTERM cancel it.
async fn attempt(context: &Context, claim: &Claim, job: Job, text: Vec<u8>) -> Attempt {
    let (stopper, stop) = Stopper::new();
    let running = run_attempt(context, claim, job, text, stop);
    tokio::pin!(running);
    let interrupted = interrupted();
    tokio::pin!(interrupted);
    tokio::select! {
        attempt = &mut running => return attempt,
        () = &mut interrupted => stopper.stop(StopReason::Cancel),
    }
    running.await
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};

    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        tracing::warn!("signals cannot be caught; Ctrl-C ends the program at once");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// The names of the job's FILE outputs.
fn output_names(job: &Job) -> Vec<StagedPath> {
    let files = job.outputs().iter().filter(|entry| AssetType::of(entry) == Some(AssetType::File));
    let names =
        files.filter_map(|entry| ["filename", "name"].iter().find_map(|key| entry.get(*key)?.as_str()));
    names.filter_map(|name| StagedPath::new(name).ok()).collect()
}

/// Puts the FILE outputs of a job that completed where the user wants them; gives their places.
fn save_outputs(attempt: &Attempt, names: &[StagedPath], folder: &Path) -> Result<Vec<PathBuf>, CliError> {
    let (End::Completed(_), Some(directory)) = (&attempt.end, &attempt.course.directory) else {
        return Ok(Vec::new());
    };
    let mut saved = Vec::new();
    for name in names {
        let from = directory.join("work").join(name.as_str());
        // A link would make this program read something else; what is missing is told by the outcome.
        if !from.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let to = folder.join(name.as_str());
        copy(&from, &to).map_err(|source| CliError::Unwritable { path: to.clone(), source })?;
        saved.push(to);
    }
    Ok(saved)
}

/// Copies a file so that nobody ever sees half of it.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let part = folder.join(format!(".{}.part", uuid::Uuid::new_v4().simple()));
    let copied = (|| {
        let mut target = File::create_new(&part)?;
        io::copy(&mut File::open(from)?, &mut target)?;
        std::fs::rename(&part, to)
    })();
    if copied.is_err() {
        // What is half there helps nobody; the first error is the one to tell.
        let _ = std::fs::remove_file(&part);
    }
    copied
}

/// Shows events as they come.
struct Terminal {
    json: bool,
    progress: Mutex<Progress>,
}

impl Announce for Terminal {
    fn announce(&self, _kind: EventKind, event: Event) {
        if self.json {
            if let Err(error) = output::json(&event) {
                tracing::debug!(%error, "an event could not be printed");
            }
            return;
        }
        let mut progress = self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        progress.event(&event);
    }

    fn announce_and_wait(&self, kind: EventKind, event: Event) -> Awaited<'_, ()> {
        self.announce(kind, event);
        Box::pin(std::future::ready(()))
    }
}
