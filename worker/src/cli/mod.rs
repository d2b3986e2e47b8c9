//! The command line: one file per verb, and what they share.
//!
//! [`main`] reads in one sitting: take the arguments, load the settings, run the verb, turn what came of it into an exit
//! code. Verbs return [`Exit`] or [`CliError`]; they never end the process.
//!
//! This module must not know how a job is run, nor what the broker is told.

mod cancel;
mod cluster;
mod completions;
mod config;
mod dead;
mod follow;
pub mod input;
mod jobs;
mod new;
pub mod output;
pub mod render;
pub mod run;
mod schema;
mod status;
mod submit;
mod topology;
mod validate;
mod watch;
pub mod worker;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind as UsageKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use lapin::ErrorKind;
use spark_runtime_protocol::client::ClientError;
use spark_runtime_protocol::connect::ConnectError;
use spark_runtime_protocol::topology::TopologyError;
use tracing_subscriber::EnvFilter;

use crate::broker::dead::DeadError;
use crate::broker::past::PastError;
use crate::config::{Settings, SettingsError, Sources};
use crate::repository::FetchError;
use crate::spark::archive::ArchiveError;
use crate::spark::installation::InstallationError;
use crate::spark::policy::PolicyError;
use crate::storage::StorageError;

/// Runs modelBatchJobs with spark-submit, as they come from RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "spark-runtime", version, disable_help_subcommand = true)]
struct Cli {
    /// The settings file (TOML).
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    config: Option<PathBuf>,
    /// Sets one setting, as in `--set broker.heartbeat=20s`; may be repeated.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", help_heading = "Everywhere")]
    overrides: Vec<String>,
    /// What is logged on the standard error: a level, or levels by module.
    // The AMQP library logs as errors what it also returns, and what it returns is told in words of our own.
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        default_value = "info,lapin=off",
        help_heading = "Everywhere"
    )]
    log: String,
    /// How it is logged: lines for people, or one JSON object a line.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", help_heading = "Everywhere")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a job here and now, without a broker.
    Run(run::Args),
    /// Take jobs from the broker and run them.
    Worker(worker::Args),
    /// Publish a job.
    Submit(submit::Args),
    /// Follow what happens to a job, or to all.
    Watch(watch::Args),
    /// End a job, or see to it that it never starts.
    Cancel(cancel::Args),
    /// Tell where a job stands, or how it ended.
    Status(status::Args),
    /// List the latest jobs.
    Jobs(jobs::Args),
    /// Tell whether a job can be run, and everything that is wrong with it.
    Validate(validate::Args),
    /// Make a job's JSON from a model's source.
    New(Box<new::Args>),
    /// Declare, compare or print the broker's exchanges and queues.
    Topology(topology::Args),
    /// Look at dead jobs, replay or drop them.
    Dead(dead::Args),
    /// Put what jobs on YARN need of Spark on the cluster, once for each release.
    Cluster(cluster::Args),
    /// Show the settings that count and where each comes from.
    Config(config::Args),
    /// Print the machine-readable description of jobs, events, commands or exchanges.
    Schema(schema::Args),
    /// Print a shell's completion script.
    Completions(completions::Args),
}

/// How a verb ended; each variant is an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; the job completed.
    Ok,
    /// The job failed.
    Failed,
    /// The job was rejected, or is not valid.
    Rejected,
    /// The job was cancelled.
    Cancelled,
    /// The job had ended before it could be cancelled.
    TooLate,
    /// The command line is wrong.
    Usage,
    /// An input file cannot be read, or there is no such job.
    Unreadable,
    /// The broker, or the cluster, cannot be reached.
    Unavailable,
    /// A fault of the program or of the machine.
    Internal,
    /// An output cannot be written.
    Unwritable,
    /// The broker's topology is not as it has to be.
    Topology,
    /// The broker, or the cluster, refuses us.
    Refused,
    /// The settings are wrong.
    Configuration,
    /// Interrupted from the keyboard.
    Interrupted,
}

impl Exit {
    /// Every way to end, by code.
    pub const ALL: [Self; 14] = [
        Self::Ok,
        Self::Failed,
        Self::Rejected,
        Self::Cancelled,
        Self::TooLate,
        Self::Usage,
        Self::Unreadable,
        Self::Unavailable,
        Self::Internal,
        Self::Unwritable,
        Self::Topology,
        Self::Refused,
        Self::Configuration,
        Self::Interrupted,
    ];

    /// The exit code. Those of the job are small; those from 64 on are by sysexits.h.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Rejected => 2,
            Self::Cancelled => 3,
            Self::TooLate => 4,
            Self::Usage => 64,
            Self::Unreadable => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::Unwritable => 73,
            Self::Topology => 76,
            Self::Refused => 77,
            Self::Configuration => 78,
            Self::Interrupted => 130,
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done; the job completed",
            Self::Failed => "the job failed",
            Self::Rejected => "the job was rejected, or is not valid",
            Self::Cancelled => "the job was cancelled",
            Self::TooLate => "the job had ended before it could be cancelled",
            Self::Usage => "the command line is wrong",
            Self::Unreadable => "an input file cannot be read, or nothing is known of the job",
            Self::Unavailable => "the broker, or the cluster, cannot be reached",
            Self::Internal => "a fault of the program or of the machine",
            Self::Unwritable => "an output cannot be written",
            Self::Topology => "the broker's exchanges or queues are not as they have to be",
            Self::Refused => {
                "the broker refuses the user, the password or the right, or its certificate is not trusted; or the cluster refuses it"
            }
            Self::Configuration => "the settings are wrong",
            Self::Interrupted => "interrupted; a job that was submitted goes on",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a verb could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments do not go together.
    #[error("{0}")]
    Usage(String),
    /// What a job refers to cannot be had.
    #[error(transparent)]
    Repository(#[from] FetchError),
    /// A file that was named cannot be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or the standard output cannot be written.
    #[error("{path} cannot be written: {source}")]
    Unwritable {
        /// The file as it was named, or `the standard output`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever read the standard output has gone, as `head` does; nothing needs to be said.
    #[error("the standard output is closed")]
    Closed,
    /// The settings are wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The operator's policy cannot be read.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// There is no Spark.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// The jars of Spark could not be put on the cluster.
    #[error("the archive of Spark's jars: {0}")]
    Archive(#[from] ArchiveError),
    /// There is no connection.
    #[error(transparent)]
    Connect(Box<ConnectError>),
    /// A job could not be published or followed.
    #[error(transparent)]
    Client(Box<ClientError>),
    /// The topology is not there or differs.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Dead jobs could not be read or dealt with.
    #[error(transparent)]
    Dead(Box<DeadError>),
    /// No dead job has this id.
    #[error("no dead job has the id {0}")]
    NoSuchJob(String),
    /// The streams could not be read.
    #[error(transparent)]
    Past(Box<PastError>),
    /// No worker has had the job.
    #[error("{0}")]
    NothingKnown(String),
    /// Something that does not depend on what the caller gave.
    #[error("{0}")]
    Internal(String),
}

// An address is large, and what is returned on every path should not be.
impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error.into())
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Client(error.into())
    }
}

impl From<DeadError> for CliError {
    fn from(error: DeadError) -> Self {
        Self::Dead(error.into())
    }
}

impl From<PastError> for CliError {
    fn from(error: PastError) -> Self {
        Self::Past(error.into())
    }
}

impl CliError {
    /// The exit code that tells of it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Unreadable { .. } | Self::NoSuchJob(_) | Self::NothingKnown(_) | Self::Repository(_) => {
                Exit::Unreadable
            }
            Self::Unwritable { .. } | Self::Closed => Exit::Unwritable,
            Self::Settings(_) | Self::Policy(_) | Self::Installation(_) => Exit::Configuration,
            Self::Archive(error) => of_archive(error),
            Self::Connect(error) => of_connect(error),
            Self::Client(error) => match &**error {
                ClientError::Connect(error) => of_connect(error),
                ClientError::Unroutable { .. }
                | ClientError::Missing(_)
                | ClientError::NoEvent(_)
                | ClientError::NoAnswer(_) => Exit::Topology,
                ClientError::Refused(_) | ClientError::Unconfirmed(_) | ClientError::AnswersEnded => {
                    Exit::Unavailable
                }
                ClientError::CorrelationId(_) => Exit::Usage,
                ClientError::Forbidden(_) => Exit::Refused,
                ClientError::Broker(error) => of_broker(error),
            },
            Self::Topology(TopologyError::Different(_)) => Exit::Topology,
            Self::Topology(TopologyError::Broker(error)) => of_broker(error),
            Self::Dead(error) => match &**error {
                DeadError::Connect(error) => of_connect(error),
                DeadError::Missing(_) | DeadError::Unroutable(_) => Exit::Topology,
                DeadError::Forbidden(_) => Exit::Refused,
                DeadError::Refused | DeadError::Silent(_) => Exit::Unavailable,
                DeadError::Broker(error) => of_broker(error),
            },
            Self::Past(error) => match &**error {
                PastError::Connect(error) => of_connect(error),
                PastError::Missing(_) => Exit::Topology,
                PastError::Forbidden(_) => Exit::Refused,
                PastError::Silent { .. } | PastError::Ended { .. } => Exit::Unavailable,
                PastError::Broker(error) => of_broker(error),
            },
            Self::Internal(_) => Exit::Internal,
        }
    }
}

fn of_archive(error: &ArchiveError) -> Exit {
    match error {
        ArchiveError::Storage(StorageError::Failed { .. }) => Exit::Unavailable,
        ArchiveError::Storage(StorageError::Refused { .. }) => Exit::Refused,
        ArchiveError::Storage(StorageError::NoFolder { .. }) => Exit::Unwritable,
        ArchiveError::Local { .. }
        | ArchiveError::Changed { .. }
        | ArchiveError::Storage(
            StorageError::Local(_) | StorageError::NotThere { .. } | StorageError::TooLarge { .. },
        ) => Exit::Internal,
        ArchiveError::NoHome { .. }
        | ArchiveError::NoJars { .. }
        | ArchiveError::TooMuch { .. }
        | ArchiveError::NoCluster
        | ArchiveError::Configuration(_)
        | ArchiveError::NoUser
        | ArchiveError::Storage(StorageError::NoPlace { .. }) => Exit::Configuration,
    }
}

fn of_connect(error: &ConnectError) -> Exit {
    match error {
        ConnectError::Unreachable { .. } => Exit::Unavailable,
        ConnectError::Refused { .. } | ConnectError::Untrusted { .. } => Exit::Refused,
        ConnectError::Certificates(_) => Exit::Configuration,
    }
}

fn of_broker(error: &lapin::Error) -> Exit {
    match error.kind() {
        ErrorKind::ProtocolError(amqp) if amqp.get_id() == 403 => Exit::Refused,
        ErrorKind::ProtocolError(amqp) if matches!(amqp.get_id(), 404 | 406) => Exit::Topology,
        _ => Exit::Unavailable,
    }
}

/// Runs the program with these arguments, the program's own name included.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(error) => return of_usage(&error).into(),
    };
    if let Err(message) = start_log(&cli.log, cli.log_format) {
        output::complain(&message);
        return Exit::Usage.into();
    }
    let tells_outcome =
        matches!(cli.command, Command::Run(_) | Command::Submit(_) | Command::Watch(_) | Command::Cancel(_));
    let ended = match dispatch(cli) {
        Ok(exit) => exit,
        // A reader that has seen enough is no fault, unless the exit code would be taken for a job's outcome.
        Err(CliError::Closed) if !tells_outcome => Exit::Ok,
        Err(CliError::Closed) => Exit::Unwritable,
        Err(error) => {
            output::complain(&error.to_string());
            error.exit()
        }
    };
    ended.into()
}

fn command() -> clap::Command {
    let mut codes = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        codes.push_str(&format!("  {:>3}  {}\n", exit.code(), exit.meaning()));
    }
    Cli::command().after_help(codes.trim_end().to_owned())
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&command().try_get_matches_from(arguments)?)
}

fn of_usage(error: &clap::Error) -> Exit {
    let wanted_help = matches!(error.kind(), UsageKind::DisplayHelp | UsageKind::DisplayVersion);
    if let Err(failed) = error.print()
        && wanted_help
        && failed.kind() != io::ErrorKind::BrokenPipe
    {
        return Exit::Unwritable;
    }
    if wanted_help { Exit::Ok } else { Exit::Usage }
}

fn start_log(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(filter).map_err(|error| format!("--log {filter:?} is no filter: {error}"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // A standard error that nobody reads any more must not end a worker.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    started.map_err(|error| format!("the log cannot be started: {error}"))
}

fn dispatch(cli: Cli) -> Result<Exit, CliError> {
    let sources = Sources::of_process(cli.config, cli.overrides);
    let settings = || Settings::load(&sources);
    match cli.command {
        Command::Run(args) => block_on(run::run(args, settings()?)),
        Command::Worker(args) => {
            // One thread for the heartbeat, whatever the other is at.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            wait(runtime, worker::run(args, settings()?))
        }
        Command::Submit(args) => block_on(submit::run(args, settings()?)),
        Command::Watch(args) => block_on(watch::run(args, settings()?)),
        Command::Cancel(args) => block_on(cancel::run(args, settings()?)),
        Command::Status(args) => block_on(status::run(args, settings()?)),
        Command::Jobs(args) => block_on(jobs::run(args, settings()?)),
        Command::Validate(args) => block_on(validate::run(args, settings()?)),
        Command::New(args) => new::run(&args, &settings()?),
        Command::Topology(args) => block_on(topology::run(args, settings()?)),
        Command::Dead(args) => block_on(dead::run(args, settings()?)),
        Command::Cluster(args) => block_on(cluster::run(args, settings()?)),
        Command::Config(args) => config::run(&args, &sources),
        Command::Schema(args) => schema::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}

fn block_on(verb: impl Future<Output = Result<Exit, CliError>>) -> Result<Exit, CliError> {
    wait(tokio::runtime::Builder::new_current_thread().enable_all().build(), verb)
}

fn wait(
    runtime: io::Result<tokio::runtime::Runtime>,
    verb: impl Future<Output = Result<Exit, CliError>>,
) -> Result<Exit, CliError> {
    let runtime =
        runtime.map_err(|error| CliError::Internal(format!("the runtime cannot be started: {error}")))?;
    let ended = runtime.block_on(verb);
    // What came of the verb is known: a thread that hangs in a system call must not keep the process.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn every_exit_code_is_its_own_and_stands_in_the_help() {
        let help = command().render_help().to_string();
        let mut codes: Vec<_> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        for exit in Exit::ALL {
            let line = format!("  {:>3}  {}\n", exit.code(), exit.meaning());
            assert!(format!("{help}\n").contains(&line), "{line}");
        }
        codes.dedup();
        assert_eq!(codes.len(), Exit::ALL.len());
        assert!(codes.is_sorted());
    }
}
