//! `spark-runtime dead`: dead jobs can be looked at, replayed and dropped.

use clap::Subcommand;
use serde_json::{Value, json};
use spark_runtime_protocol::JobId;

use super::{CliError, Exit, output, render};
use crate::broker::dead::{DeadJob, DeadQueue, Held};
use crate::config::{Settings, size_text};

/// Arguments of `dead`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    /// Look at this many dead jobs at most.
    #[arg(long, global = true, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    max: u32,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the dead jobs, the oldest first.
    List,
    /// Show one dead job, with its document.
    Show {
        /// The job's id.
        #[arg(value_parser = |text: &str| JobId::new(text))]
        id: JobId,
    },
    /// Publish a dead job anew and take it off the dead. Of several with one id the oldest is meant.
    Replay {
        /// The job's id.
        #[arg(value_parser = |text: &str| JobId::new(text), required_unless_present = "all")]
        id: Option<JobId>,
        /// Replay all that are dead now.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
    /// Take a dead job off for good. Of several with one id the oldest is meant.
    Drop {
        /// The job's id.
        #[arg(value_parser = |text: &str| JobId::new(text))]
        id: JobId,
    },
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    let queue = DeadQueue::open(&settings.endpoint()?, settings.broker.publish_timeout).await?;
    // Closing gives back what was only looked at, also when something went wrong before.
    let acted = act(&args, &queue).await;
    queue.close().await;
    acted.map(|()| Exit::Ok)
}

async fn act(args: &Args, queue: &DeadQueue) -> Result<(), CliError> {
    match &args.action {
        Action::List => list(args, queue).await,
        Action::Show { id } => show(args, &find(queue, id, args.max).await?),
        Action::Replay { id: Some(id), .. } => {
            queue.replay(find(queue, id, args.max).await?).await?;
            tell(args, "replayed", &[id])
        }
        Action::Replay { id: None, .. } => replay_all(args, queue).await,
        Action::Drop { id } => {
            queue.discard(find(queue, id, args.max).await?).await?;
            tell(args, "dropped", &[id])
        }
    }
}

/// The oldest dead job with this id. What is passed over on the way is held until the queue is closed.
async fn find(queue: &DeadQueue, id: &JobId, max: u32) -> Result<Held, CliError> {
    for _ in 0..max {
        match queue.next().await? {
            Some(held) if held.job.id == *id => return Ok(held),
            Some(_) => {}
            None => break,
        }
    }
    Err(CliError::NoSuchJob(id.to_string()))
}

async fn list(args: &Args, queue: &DeadQueue) -> Result<(), CliError> {
    let total = queue.count().await?;
    let mut jobs = Vec::new();
    while jobs.len() < args.max as usize {
        let Some(held) = queue.next().await? else { break };
        // The document may be large; the list does not need it.
        jobs.push(held.job);
    }
    if args.json {
        return output::json(&jobs.iter().map(fields).collect::<Vec<_>>());
    }
    for job in &jobs {
        output::line(&summary(job))?;
    }
    let shown = render::count(jobs.len(), "dead job");
    let all = if (jobs.len() as u64) < u64::from(total) { format!(" of {total}") } else { String::new() };
    output::line(&format!("{shown}{all}"))
}

/// Each job by itself, so that whatever happens in the middle, every job is either dead still or published.
async fn replay_all(args: &Args, queue: &DeadQueue) -> Result<(), CliError> {
    // A job that dies again meanwhile is not replayed twice.
    let total = queue.count().await?.min(args.max);
    let mut replayed = Vec::new();
    for _ in 0..total {
        let Some(held) = queue.next().await? else { break };
        let id = held.job.id.clone();
        if let Err(error) = queue.replay(held).await {
            tell(args, "replayed", &replayed.iter().collect::<Vec<_>>())?;
            return Err(error.into());
        }
        replayed.push(id);
    }
    tell(args, "replayed", &replayed.iter().collect::<Vec<_>>())
}

fn tell(args: &Args, what: &str, ids: &[&JobId]) -> Result<(), CliError> {
    if args.json {
        return output::json(&json!({ what: ids }));
    }
    for id in ids {
        output::line(&format!("{what} {id}"))?;
    }
    if ids.is_empty() { output::line(&format!("{what} nothing")) } else { Ok(()) }
}

fn show(args: &Args, held: &Held) -> Result<(), CliError> {
    let document: Option<Value> = serde_json::from_slice(held.body()).ok();
    if args.json {
        let mut shown = fields(&held.job);
        shown["job"] = document.unwrap_or_else(|| json!(String::from_utf8_lossy(held.body())));
        return output::json(&shown);
    }
    let job = &held.job;
    let mut lines = vec![format!("id: {}", job.id), format!("attempts: {}", job.attempt)];
    let told = [
        ("class", &job.failure_class),
        ("message", &job.failure_message),
        ("worker", &job.worker),
        ("died", &job.died),
    ];
    for (name, text) in told {
        lines.extend(text.as_ref().map(|text| format!("{name}: {}", render::plain(text))));
    }
    lines.push(format!("size: {}", size_text(job.size)));
    let text = match &document {
        Some(document) => serde_json::to_string_pretty(document).unwrap_or_else(|_| document.to_string()),
        None => String::from_utf8_lossy(held.body()).into_owned(),
    };
    lines.push(render::plain(&text));
    output::line(&lines.join("\n"))
}

fn summary(job: &DeadJob) -> String {
    let mut line = format!("{} after {}", job.id, render::count(job.attempt as usize, "attempt"));
    if let Some(class) = &job.failure_class {
        line.push_str(&format!(", {class}"));
    }
    if let Some(message) = &job.failure_message {
        line.push_str(&format!(": {message}"));
    }
    render::one_line(&line)
}

fn fields(job: &DeadJob) -> Value {
    json!({
        "id": job.id,
        "attempt": job.attempt,
        "failureClass": job.failure_class,
        "failureMessage": job.failure_message,
        "worker": job.worker,
        "died": job.died,
        "size": job.size,
    })
}
