//! `spark-runtime validate`: whether a job can be run, and everything that is wrong with it.

use std::path::PathBuf;

use serde_json::{Value, json};
use spark_runtime_protocol::json::Fault;
use spark_runtime_protocol::{Job, JobId, JobType};

use super::run::of_service;
use super::{CliError, Exit, input, output, render};
use crate::config::Settings;
use crate::job::check::{Judge, Plan};
use crate::job::contract::Contract;
use crate::job::resolve::required;
use crate::repository::FetchError;
use crate::service::{repositories, runtimes};

/// Arguments of `validate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The job; `-` reads the standard input.
    #[arg(value_name = "JOB.json")]
    job: PathBuf,
    /// Print JSON: an object with `valid`, `faults` and `notes`.
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
        let notes = judged.as_ref().map_or(&[] as &[String], |(plan, _)| &plan.notes);
        output::json(&json!({"valid": faults.is_empty(), "faults": faults, "notes": notes}))?;
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

/// What is agreed with a record model, a line for each of its inputs and outputs.
fn agreed(contract: &Contract) -> String {
    let schema = |schema: &Option<Value>| match schema {
        Some(schema) => {
            let fields = schema["fields"].as_array().map_or(0, Vec::len);
            format!(", checked against a schema of {}", render::count(fields, "field"))
        }
        None => String::new(),
    };
    let mut lines: Vec<String> = Vec::new();
    lines.extend(contract.inputs.iter().map(|input| {
        let frames = if input.recordsets { " as data frames" } else { "" };
        format!(
            "slot {}: reads {} ({}){frames}{}",
            input.slot,
            input.name,
            input.format.word(),
            schema(&input.schema)
        )
    }));
    lines.extend(contract.outputs.iter().map(|output| {
        format!(
            "slot {}: writes {} ({}){}",
            output.slot,
            output.name,
            output.format.word(),
            schema(&output.schema)
        )
    }));
    lines.join("\n")
}

fn summary(plan: &Plan, job: &Job) -> String {
    let staged = render::count(job.staged_files().count(), "staged file");
    let given = match (plan.contract(), job.job_type()) {
        (None, _) => "three lists",
        (Some(_), JobType::Score) => "records",
        (Some(_), JobType::Metrics | JobType::Training) => "data frames",
    };
    let mut text =
        format!("valid: {}, function {} with {given}, {staged}", job.job_type().wire(), plan.function);
    if let Some(contract) = plan.contract() {
        text.push_str(&format!("\n{}", agreed(contract)));
    }
    for note in &plan.notes {
        text.push_str(&format!("\nnote: {note}"));
    }
    text
}
