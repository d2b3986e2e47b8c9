//! `spark-runtime topology`: declare or compare the broker's exchanges and queues.

use clap::ValueEnum;
use serde_json::json;
use spark_runtime_protocol::topology::{Topology, TopologyError};

use super::{CliError, Exit, output, render};
use crate::config::Settings;

/// Arguments of `topology`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Declare what is missing (what is there must be the same), or verify and declare nothing.
    action: Action,
    /// Print JSON: an object with `exchanges`, `queues` and `differences`.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    Declare,
    Verify,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    let topology = Topology::new(&settings.shape());
    let connection = settings.endpoint()?.connect("spark-runtime topology").await?;
    let compared = match args.action {
        Action::Declare => topology.declare(&connection).await,
        Action::Verify => topology.verify(&connection).await,
    };
    if let Err(error) = connection.close(200, "done".into()).await {
        tracing::debug!(%error, "the connection did not close in order");
    }
    let differences = match compared {
        Ok(()) => Vec::new(),
        Err(TopologyError::Different(differences)) => differences,
        Err(error) => return Err(error.into()),
    };
    let (exchanges, queues) = topology.names();
    let words: Vec<_> = differences.iter().map(ToString::to_string).collect();
    if args.json {
        output::json(&json!({"exchanges": exchanges, "queues": queues, "differences": words}))?;
    } else if words.is_empty() {
        let done = if matches!(args.action, Action::Declare) { "declared" } else { "as it has to be" };
        let exchanges = render::count(exchanges.len(), "exchange");
        output::line(&format!("{done}: {exchanges}, {}", render::count(queues.len(), "queue")))?;
    } else {
        let count = render::count(words.len(), "difference");
        output::line(&format!("{}\n{count}", render::plain(&words.join("\n"))))?;
    }
    Ok(if words.is_empty() { Exit::Ok } else { Exit::Topology })
}
