//! `spark-runtime validate`: whether a job can be run, and everything that is wrong with it.

use std::path::PathBuf;

use serde_json::json;
use spark_runtime_protocol::json::Fault;
use spark_runtime_protocol::{Job, JobId};

use super::run::of_service;
use super::{CliError, Exit, input, output, render};
use crate::config::Settings;
use crate::job::check::{Judge, Plan};
use crate::job::resolve::required;
use crate::repository::FetchError;
use crate::service::{repositories, runtimes};

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The job; `-` reads the standard input.
    #[arg(value_name = "JOB.json")]
    job: PathBuf,
    /// Print JSON: an object with `valid` and `faults`.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    let limit = settings.job.max_size;
    let body = input::read(&args.job, limit)?;
    let judge = Judge::of(&settings)?;
    // A job without an id gets one when it is submitted.
    let judged = match input::job(&body, limit, &JobId::random()) {
        Ok(job) => whole(job, &settings).await?.and_then(|job| Ok((judge.plan(&job)?, job))),
        Err(faults) => Err(faults),
    };
    let judged = match judged {
        Ok((plan, job)) => runnable(&settings, &job).await?.map(|()| (plan, job)),
        Err(faults) => Err(faults),
    };
    let faults = judged.as_ref().err().map_or(&[] as &[Fault], Vec::as_slice);
    if args.json {
        output::json(&json!({"valid": faults.is_empty(), "faults": faults}))?;
    } else {
        output::line(
            &judged.as_ref().map_or_else(|faults| render::faults(faults), |(plan, job)| summary(plan, job)),
        )?;
    }
    Ok(if faults.is_empty() { Exit::Ok } else { Exit::Rejected })
}

/// The job with what it has in repositories, or why it cannot be had.
async fn whole(job: Job, settings: &Settings) -> Result<Result<Job, Vec<Fault>>, CliError> {
    if job.is_whole() {
        return Ok(Ok(job));
    }
    match repositories(settings).fetch(job.in_git()).await {
        Ok(files) => Ok(job.with_fetched(files.contents)),
        Err(FetchError::Faults(faults)) => Ok(Err(faults)),
        Err(error) => Err(error.into()),
    }
}

/// Whether there is a runtime for the job, or may be one.
async fn runnable(settings: &Settings, job: &Job) -> Result<Result<(), Vec<Fault>>, CliError> {
    let runtimes = runtimes(settings).map_err(of_service)?;
    let wanted = match required(&runtimes, job) {
        Ok(wanted) => wanted,
        Err(faults) => return Ok(Err(faults)),
    };
    if wanted.all.is_empty() || runtimes.builds() || !settings.runtimes.others.is_zero() {
        return Ok(Ok(()));
    }
    Ok(runtimes.fitting(&wanted).await.map(drop))
}

fn summary(plan: &Plan, job: &Job) -> String {
    let staged = render::count(job.staged_files().count(), "staged file");
    format!("valid: {}, function {}, {staged}", job.job_type().wire(), plan.function)
}
