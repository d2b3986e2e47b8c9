//! Spark: what spark-submit is told, how it is started, and what can be known of what it runs.
//!
//! [`Backend`] is the whole seam to a way of running: submit, follow, end. An [`Application`] is one run.
//!
//! This module must not know the broker, nor what becomes of a job.

pub mod argv;
pub mod client_mode;
pub mod guard;
pub mod installation;
pub mod policy;
pub mod report;
#[cfg(feature = "yarn")]
pub mod yarn;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use crate::config::{Secret, SparkSettings};
use argv::CommandLine;
use guard::{BootTime, Exit};
use report::Word;
use spark_runtime_protocol::event::Way;

/// A future of a back end, boxed so that back ends can be chosen at run time.
pub type Awaited<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way of running Python applications.
pub trait Backend: Send + Sync {
    /// Starts spark-submit, or Python itself, for what lies in a directory.
    fn submit<'a>(
        &'a self,
        submission: &'a Submission,
    ) -> Awaited<'a, Result<Box<dyn Application>, SubmitError>>;
}

/// One run of a driver and of what it started.
pub trait Application: Send {
    /// The cluster's id of it, where there is a cluster that gives one.
    fn id(&self) -> Option<&str>;

    /// Waits for what happens next. After [`Change::Ended`] it is not called again.
    ///
    /// Cancelling the call loses nothing.
    fn changed(&mut self) -> Awaited<'_, Change>;

    /// Asks it to end; returns at once.
    fn terminate(&self);

    /// Ends it, with everything that it started; returns at once.
    fn kill(&self);
}

/// What is to be submitted.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The attempt's own directory; holds logs, the driver's socket and what is secret.
    pub directory: PathBuf,
    /// The working directory in it, with everything that was staged.
    pub working_directory: PathBuf,
    /// The Python modules that executors elsewhere import, in one archive.
    pub modules: Option<PathBuf>,
    /// The environment of the runtime, packed, for executors elsewhere that do not have it.
    pub environment: Option<PathBuf>,
    /// What spark-submit is told.
    pub command_line: CommandLine,
    /// The user and the password of the database that the driver reads, as JSON.
    pub login: Option<Secret>,
    /// Java only starts Python processes and waits for them, so that it may be started with little.
    pub leaves_java_idle: bool,
    /// The settings of the runtime that was chosen for it, when it is not that of the worker's settings.
    pub runtime: Option<SparkSettings>,
    /// Whether spark-submit is started at all.
    pub way: Way,
    /// From this moment on nothing is started any more: the job may be somebody else's by then.
    pub not_after: Option<BootTime>,
}

/// Something that happened to an application.
#[derive(Debug)]
pub enum Change {
    /// The driver is there.
    Started,
    /// The model is about to run.
    Running,
    /// It is over, with everything that it started.
    Ended(Box<Ending>),
}

/// How an application ended.
#[derive(Debug)]
pub struct Ending {
    /// The driver's last word, if it left one.
    pub report: Option<Word>,
    /// The last word came before the application was first asked to end. A word that came later may be the model's answer
    /// to the signal.
    pub report_came_first: bool,
    /// Whether the driver was ever there.
    pub started: bool,
    /// Why the driver's words could not be read, if so.
    pub unreadable: Option<String>,
    /// How its processes ended.
    pub exit: Exit,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// There is no spark-submit.
    #[error(transparent)]
    Installation(#[from] installation::InstallationError),
    /// Something of the attempt's own directory could not be read or written.
    #[error("{what}: {source}")]
    Directory {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The program could not be started.
    #[error(transparent)]
    Launch(#[from] guard::LaunchError),
    /// There is no guard to start it.
    #[error(transparent)]
    Guard(#[from] guard::GuardError),
}
