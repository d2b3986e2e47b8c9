//! `spark-runtime topology`: declare or compare the broker's exchanges and queues, or print their definitions.

use clap::ValueEnum;
use serde_json::json;
use spark_runtime_protocol::definitions::{Users, definitions};
use spark_runtime_protocol::rights::MissingRight;
use spark_runtime_protocol::topology::{Compared, Topology, TopologyError};

use super::{CliError, Exit, output, render};
use crate::config::Settings;

/// Arguments of `topology`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to do.
    action: Action,
    /// Leave the users out of the definitions: an import takes the passwords away from those that are there.
    #[arg(long)]
    without_users: bool,
    /// Print JSON: an object with `exchanges`, `queues`, `differences` and `uncompared`.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Declare what is missing; what is there must be the same.
    Declare,
    /// Compare, and declare nothing.
    Verify,
    /// Print all of it, and users of the least rights, as RabbitMQ imports it.
    Definitions,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    let topology = Topology::new(&settings.shape());
    if args.without_users && args.action != Action::Definitions {
        return Err(CliError::Usage("--without-users is for `topology definitions`".to_owned()));
    }
    let connect = async || Ok::<_, CliError>(settings.endpoint()?.connect("spark-runtime topology").await?);
    let (connection, compared) = match args.action {
        Action::Definitions => return define(&args, &settings, &topology),
        Action::Declare => {
            let connection = connect().await?;
            let compared = topology.declare(&connection).await;
            (connection, compared)
        }
        Action::Verify => {
            let connection = connect().await?;
            let compared = topology.verify(&connection).await;
            (connection, compared)
        }
    };
    if let Err(error) = connection.close(200, "done".into()).await {
        tracing::debug!(%error, "the connection did not close in order");
    }
    let (compared, differences) = match compared {
        Ok(compared) => (compared, Vec::new()),
        Err(TopologyError::Different(differences)) => (Compared::All, differences),
        Err(error) => return Err(error.into()),
    };
    let words: Vec<_> = differences.iter().map(ToString::to_string).collect();
    let right = tell(&args, &topology, &compared, &words)?;
    let is_refusal = differences.iter().all(|difference| difference.is_refusal);
    Ok(match (right, differences.as_slice()) {
        (None, []) => Exit::Ok,
        // It was asked for more than the user may know.
        _ if is_refusal => Exit::Refused,
        _ => Exit::Topology,
    })
}

fn define(args: &Args, settings: &Settings, topology: &Topology) -> Result<Exit, CliError> {
    let users = if args.without_users { Users::None } else { Users::WithoutPassword };
    let document = definitions(topology, settings.endpoint()?.vhost(), users);
    output::line(&format!("{document:#}"))?;
    Ok(Exit::Ok)
}

/// Gives the right that the user lacks to compare all that is there.
fn tell<'a>(
    args: &Args,
    topology: &Topology,
    compared: &'a Compared,
    words: &[String],
) -> Result<Option<&'a MissingRight>, CliError> {
    let (exchanges, queues) = topology.names();
    let (right, uncompared) = match compared {
        Compared::All => (None, &[][..]),
        Compared::InPart { right, without } => (Some(right), without.as_slice()),
    };
    let all =
        format!("{}, {}", render::count(exchanges.len(), "exchange"), render::count(queues.len(), "queue"));
    if args.json {
        output::json(&json!({
            "exchanges": exchanges, "queues": queues, "differences": words, "uncompared": uncompared,
        }))?;
    } else if !words.is_empty() {
        let count = render::count(words.len(), "difference");
        output::line(&format!("{}\n{count}", render::plain(&words.join("\n"))))?;
    } else if let Some(right) = right {
        let words = format!("there: {all}\nnot compared: {}; {right}", uncompared.join(", "));
        output::line(&render::plain(&words))?;
    } else {
        let done = if args.action == Action::Declare { "declared" } else { "as it has to be" };
        output::line(&format!("{done}: {all}"))?;
    }
    Ok(right)
}
