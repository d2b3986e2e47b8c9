//! `spark-runtime watch`: follows events.

use spark_runtime_protocol::JobId;
use spark_runtime_protocol::client::Topic;

use super::follow::{Follower, Heard};
use super::render::{self, Progress};
use super::{CliError, Exit, output};
use crate::config::Settings;

/// Arguments of `watch`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The job to follow, to its end. Without it all jobs are followed, for ever.
    #[arg(value_name = "JOB_ID", value_parser = |text: &str| JobId::new(text))]
    job: Option<JobId>,
    /// Print every event as one line of JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    let mut notes = Progress::new();
    let one = args.job.is_some();
    let topic = args.job.map_or(Topic::All, Topic::Job);
    let mut follower = Follower::start(settings, topic, "spark-runtime watch").await?;
    loop {
        let event = match follower.next(&mut notes).await {
            Heard::Event(event) => event,
            Heard::Interrupted => return Ok(Exit::Interrupted),
        };
        let ended = if one { render::exit_of(&event) } else { None };
        if args.json {
            output::json(&event)?;
        } else if ended.is_some() {
            output::line(&render::outcome(&event))?;
        } else {
            output::line(&render::line(&event))?;
        }
        if let Some(exit) = ended {
            return Ok(exit);
        }
    }
}
