//! `spark-runtime submit`: publishes a job, and follows it to its end when asked to.

use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};
use spark_runtime_protocol::JobId;
use spark_runtime_protocol::client::{Client, ClientError, Submission, Topic};
use spark_runtime_protocol::event::Digests;

use super::follow::{Follower, Heard};
use super::render::{self, Progress};
use super::{CliError, Exit, input, output};
use crate::config::Settings;

const CONNECTION_NAME: &str = "spark-runtime submit";
/// What travels as `message_id` or `correlation_id` has at most this many bytes.
const LONGEST_SHORT_STRING: usize = 255;

/// Arguments of `submit`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The job; `-` reads the standard input.
    #[arg(value_name = "JOB.json")]
    job: PathBuf,
    /// Follow the job to its end; the exit code tells the outcome.
    #[arg(long)]
    wait: bool,
    /// The id of a job that has none of its own. Without it a random one is made.
    #[arg(long, value_name = "ID", value_parser = |text: &str| JobId::new(text))]
    id: Option<JobId>,
    /// The message's priority; higher goes first, where the broker's queue has priorities.
    #[arg(long, value_name = "N")]
    priority: Option<u8>,
    /// How long the job may wait for a worker, as 10m.
    #[arg(long, value_name = "DURATION", value_parser = expiration)]
    expiration: Option<Duration>,
    /// Echoed in every event.
    #[arg(long, value_name = "TEXT", value_parser = short_string)]
    correlation: Option<String>,
    /// Publish whatever the file holds; the worker judges it.
    #[arg(long)]
    unchecked: bool,
    /// Print JSON: `{"id": ...}`, or with --wait every event as one line.
    #[arg(long)]
    json: bool,
}

fn expiration(text: &str) -> Result<Duration, String> {
    let signed: Option<SignedDuration> = text.parse().ok();
    let given = signed
        .and_then(|span| Duration::try_from(span).ok())
        .filter(|span| *span >= Duration::from_millis(1));
    // The broker takes no more milliseconds than fit into 32 bits.
    let given = given.filter(|span| span.as_millis() < u128::from(u32::MAX));
    given.ok_or_else(|| "give a duration above 0 and below 49 days, such as 30s, 10m or 1h 30m".to_owned())
}

fn short_string(text: &str) -> Result<String, String> {
    if text.len() > LONGEST_SHORT_STRING {
        return Err(format!("has {} bytes; at most {LONGEST_SHORT_STRING} travel", text.len()));
    }
    Ok(text.to_owned())
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    let limit = if args.unchecked { u64::MAX } else { settings.job.max_size };
    let body = input::read(&args.job, limit)?;
    let given = args.id.clone().unwrap_or_else(JobId::random);
    let id = if args.unchecked {
        own_id(&body).unwrap_or(given)
    } else {
        match input::job(&body, limit, &given) {
            Ok(job) => job.id().clone(),
            Err(faults) if args.json => {
                output::json(&json!({"valid": false, "faults": faults}))?;
                return Ok(Exit::Rejected);
            }
            Err(faults) => {
                output::complain(&format!("{}; not published", render::faults(&faults)));
                return Ok(Exit::Rejected);
            }
        }
    };
    if let Some(asked) = args.id.as_ref().filter(|asked| **asked != id) {
        return Err(CliError::Usage(format!("the job has the id {id}, which --id {asked} cannot replace")));
    }
    let submission = Submission {
        priority: args.priority,
        expiration: args.expiration,
        correlation_id: args.correlation.clone(),
        ..Submission::new(id.clone(), body)
    };
    if args.wait {
        return wait(&args, settings, submission).await;
    }
    let client = Client::connect(&settings.endpoint()?, CONNECTION_NAME).await?;
    published(client.publish(&submission).await, &id)?;
    tell_id(&args, &id)?;
    if let Err(error) = client.close().await {
        tracing::debug!(%error, "the connection did not close in order");
    }
    Ok(Exit::Ok)
}

/// The id of a document that is not judged here, as a worker would read it.
fn own_id(body: &[u8]) -> Option<JobId> {
    let document: Value = serde_json::from_slice(body).ok()?;
    JobId::new(document.get("id")?.as_str()?).ok()
}

/// When it is not known whether the broker has the job, the id is what makes it safe to publish it again.
fn published(result: Result<(), ClientError>, id: &JobId) -> Result<(), CliError> {
    if let Err(ClientError::Unconfirmed(_) | ClientError::Broker(_)) = &result {
        output::complain(&format!("it is not known whether the job was published; its id is {id}"));
    }
    Ok(result?)
}

fn tell_id(args: &Args, id: &JobId) -> Result<(), CliError> {
    if args.json { output::json(&json!({"id": id})) } else { output::line(id.as_str()) }
}

async fn wait(args: &Args, settings: Settings, submission: Submission) -> Result<Exit, CliError> {
    let id = submission.id.clone();
    let mut follower = Follower::start(settings, Topic::Job(id.clone()), CONNECTION_NAME).await?;
    published(follower.publish(&submission).await, &id)?;
    let digest = Digests::of(&submission.body);
    // The job may be large, and the wait long.
    drop(submission);
    let mut progress = Progress::new();
    if !args.json {
        tell_id(args, &id)?;
        progress.waiting("published");
    }
    loop {
        let event = match follower.next(&mut progress).await {
            Heard::Event(event) => event,
            Heard::Interrupted => {
                progress.finish();
                output::complain(&format!("the job goes on; follow it with `spark-runtime watch {id}`"));
                return Ok(Exit::Interrupted);
            }
        };
        let is_conflict = event.data.digests.is_some();
        if !is_conflict && event.data.digest.as_ref().is_some_and(|of| *of != digest) {
            // Somebody else's job under the same id. That ours is refused for it is told by a conflict.
            continue;
        }
        if args.json {
            output::json(&event)?;
        } else {
            progress.event(&event);
        }
        let is_refused = event.data.digests.as_ref().is_some_and(|digests| digests.this == digest);
        let exit = if is_refused { Some(Exit::Rejected) } else { render::exit_of(&event) };
        if let Some(exit) = exit {
            progress.finish();
            if !args.json {
                output::line(&render::outcome(&event))?;
            }
            return Ok(exit);
        }
    }
}
