//! `spark-runtime schema`: the machine-readable description of what travels over the wire.

use clap::ValueEnum;
use spark_runtime_protocol::schema;

use super::{CliError, Exit, output};

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The job, the event, the command or its answer (JSON Schema), or the exchanges and messages (AsyncAPI).
    what: What,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    Job,
    Event,
    Command,
    Answer,
    Asyncapi,
}

pub(super) fn run(args: &Args) -> Result<Exit, CliError> {
    let text = match args.what {
        What::Job => schema::job(),
        What::Event => schema::event(),
        What::Command => schema::command(),
        What::Answer => schema::answer(),
        What::Asyncapi => schema::asyncapi(),
    };
    output::line(text.trim_end())?;
    Ok(Exit::Ok)
}
