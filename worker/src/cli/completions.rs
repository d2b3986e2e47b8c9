//! `spark-runtime completions`: a shell's completion script.

use clap_complete::Shell;

use super::{CliError, Exit, output};

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<Exit, CliError> {
    // The generator panics when it cannot write: it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "spark-runtime", &mut script);
    let script = String::from_utf8(script).map_err(|error| CliError::Internal(error.to_string()))?;
    output::line(script.trim_end())?;
    Ok(Exit::Ok)
}
