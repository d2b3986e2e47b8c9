//! `spark-runtime cancel`: asks the workers for the end of a job, wherever it stands.

use std::time::Duration;

use serde_json::json;
use spark_runtime_protocol::client::{Client, Topic};
use spark_runtime_protocol::command::{Answer, Standing, Verb};
use spark_runtime_protocol::topology::COMMANDS_QUEUE;
use spark_runtime_protocol::{EventKind, JobId};

use super::follow::{Follower, Heard};
use super::render::{self, Progress};
use super::{CliError, Exit, output};
use crate::config::Settings;

const CONNECTION_NAME: &str = "spark-runtime cancel";
/// How long a worker may take to answer. It answers within milliseconds, unless it is just connecting again.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `cancel`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A job that no worker has taken yet is cancelled when one takes it, also if it is published later.\n\
                        Exit codes: 0 when the job is or will be cancelled, 4 when it had ended otherwise before."
)]
pub(super) struct Args {
    /// The job's id.
    #[arg(value_name = "JOB_ID", value_parser = |text: &str| JobId::new(text))]
    job: JobId,
    /// Wait until the job has ended.
    #[arg(long)]
    wait: bool,
    /// Print the answer as JSON, and with --wait every event, each as one line.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    if args.wait {
        return wait(&args, settings).await;
    }
    let client = Client::connect(&settings.endpoint()?, CONNECTION_NAME).await?;
    let answer = client.cancel(&args.job, ANSWER_PATIENCE).await?;
    tell(&args, answer.as_ref())?;
    if let Err(error) = client.close().await {
        tracing::debug!(%error, "the connection did not close in order");
    }
    Ok(answer.and_then(|answer| exit_of(&answer)).unwrap_or(Exit::Ok))
}

async fn wait(args: &Args, settings: Settings) -> Result<Exit, CliError> {
    // Listen first, so that the end is not missed.
    let mut follower = Follower::start(settings, Topic::Job(args.job.clone()), CONNECTION_NAME).await?;
    let answer = follower.cancel(&args.job, ANSWER_PATIENCE).await?;
    tell(args, answer.as_ref())?;
    if let Some(exit) = answer.as_ref().and_then(exit_of) {
        return Ok(exit);
    }
    let mut progress = Progress::new();
    if !args.json {
        progress.waiting("waiting for the end");
    }
    loop {
        let event = match follower.next(&mut progress).await {
            Heard::Event(event) => event,
            Heard::Interrupted => {
                progress.finish();
                output::complain("the job is cancelled all the same");
                return Ok(Exit::Interrupted);
            }
        };
        if args.json {
            output::json(&event)?;
        } else {
            progress.event(&event);
        }
        let Some(kind) = event.kind().filter(|kind| kind.is_terminal()) else { continue };
        progress.finish();
        if !args.json {
            output::line(&render::outcome(&event))?;
        }
        return Ok(if kind == EventKind::Cancelled { Exit::Ok } else { Exit::TooLate });
    }
}

fn tell(args: &Args, answer: Option<&Answer>) -> Result<(), CliError> {
    let Some(answer) = answer else {
        let seconds = ANSWER_PATIENCE.as_secs();
        let words = format!(
            "no worker has answered within {seconds} s; the command waits in the queue {COMMANDS_QUEUE} for one, and holds"
        );
        if args.json {
            let command = Verb::Cancel.word();
            return output::json(
                &json!({"command": command, "jobId": args.job, "standing": "unanswered", "message": words}),
            );
        }
        return output::line(&words);
    };
    if args.json { output::json(answer) } else { output::line(&render::one_line(&answer.message)) }
}

/// The exit code, when nothing more is to be waited for.
fn exit_of(answer: &Answer) -> Option<Exit> {
    match (answer.standing, answer.ending) {
        (Standing::Settled, Some(EventKind::Cancelled)) => Some(Exit::Ok),
        (Standing::Settled, _) => Some(Exit::TooLate),
        // Every id that comes as far as this is one; the workers are of a release that knows less.
        (Standing::Refused, _) => Some(Exit::Internal),
        (Standing::Unknown | Standing::Waiting | Standing::Running, _) => None,
    }
}
