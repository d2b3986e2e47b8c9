//! Spark: what spark-submit is told, how it is started, and what can be known of what it runs.
//!
//! [`Backend`] is the whole seam to a way of running: find what runs already, submit, follow, end, forget. An
//! [`Application`] is one run.
//!
//! This module must not know the broker, nor what becomes of a job.

pub mod archive;
pub mod argv;
pub mod backends;
pub mod class_data;
pub mod client_mode;
#[cfg(any(feature = "kubernetes", feature = "yarn"))]
pub mod elsewhere;
#[cfg(any(feature = "kubernetes", feature = "yarn"))]
mod fetched_log;
#[cfg(any(feature = "kubernetes", feature = "yarn"))]
mod followed;
pub mod guard;
pub mod installation;
#[cfg(any(feature = "kubernetes", feature = "yarn"))]
pub mod job_folder;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(any(feature = "kubernetes", feature = "yarn"))]
mod launch;
#[cfg(any(feature = "kubernetes", feature = "yarn"))]
mod pack;
pub mod policy;
pub mod report;
#[cfg(any(feature = "kubernetes", feature = "yarn"))]
#[cfg(test)]
mod scripted;
pub mod standalone;
#[cfg(feature = "yarn")]
pub mod yarn;

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use crate::config::{Secret, SparkSettings};
use crate::storage::Actor;
use argv::CommandLine;
use guard::{BootTime, Exit};
use report::Word;
use spark_runtime_protocol::event::Way;

/// Where what a driver wrote elsewhere is put, in the attempt's directory, by the names of the logs of one that runs here.
pub const DRIVER_LOGS: &str = "driver";

/// A future of a back end, boxed so that back ends can be chosen at run time.
pub type Awaited<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way of running Python applications.
pub trait Backend: Send + Sync {
    /// The application of a job that runs already, or that is over and whose end nobody has told: it is to be followed, and
    /// nothing submitted. When this gives none, none of those that were started before will ever run any more.
    ///
    /// # Errors
    /// Nothing is known then, and nothing may be submitted.
    fn find<'a>(
        &'a self,
        sought: &'a Sought,
    ) -> Awaited<'a, Result<Option<Box<dyn Application>>, SubmitError>>;

    /// Starts spark-submit, or Python itself, for what lies in a directory.
    fn submit<'a>(
        &'a self,
        submission: &'a Submission,
    ) -> Awaited<'a, Result<Box<dyn Application>, SubmitError>>;

    /// The launches of a job of which something is kept outside of this machine. Whoever asks while the job is his gets his own and
    /// those of whoever had it before.
    ///
    /// # Errors
    /// Nothing is known then, and nothing may be forgotten.
    fn launches<'a>(
        &'a self,
        identity: &'a Identity,
        mode: &'a Mode,
    ) -> Awaited<'a, Result<Launches, SubmitError>>;

    /// Removes what is kept of these launches of a job: they count no more. Of later ones, which may be somebody else's by now,
    /// nothing is touched. Best effort.
    fn forget<'a>(
        &'a self,
        identity: &'a Identity,
        mode: &'a Mode,
        launches: &'a Launches,
    ) -> Awaited<'a, ()>;
}

/// One run of a driver and of what it started.
pub trait Application: Send + std::fmt::Debug {
    /// Where it is, once it is certain that it is there: at once, or after [`Change::Accepted`].
    fn accepted(&self) -> Option<Accepted>;

    /// It goes on when this process ends, and somebody else can follow it.
    fn outlives_worker(&self) -> bool;

    /// Its driver has begun, though the cluster does not tell of it, or not any more. Nobody waits for spark-submit then; how long
    /// it may be unknown is for the back end to say.
    fn has_begun_unseen(&self) -> bool {
        false
    }

    /// What it waits for, in words, as far as it is known, and what can be done about it.
    fn waits_for(&self) -> Option<String>;

    /// For how long its driver had its place when [`Change::Started`] was told, where the cluster tells: of one that was there
    /// before, that is from its own beginning.
    fn has_run_for(&self) -> Duration {
        Duration::ZERO
    }

    /// Waits for what happens next. After [`Change::Ended`] it is not called again.
    ///
    /// Cancelling the call loses nothing.
    fn changed(&mut self) -> Awaited<'_, Change>;

    /// Says, before it is asked to end, that it is because it ran for too long: whoever follows it after this process is to
    /// know, where that can be noted.
    fn ends_for_run_deadline(&self) {}

    /// Asks it to end; returns at once.
    fn terminate(&self);

    /// Ends it, with everything that it started; returns at once.
    fn kill(&self);

    /// Ends what of it is on this machine, and lets go of the rest; returns at once. Its end is then [`Outcome::Left`],
    /// unless nothing of it is elsewhere.
    fn leave(&self);
}

/// Launches of one job, by their tickets: see [`Backend::launches`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launches(BTreeSet<String>);

/// Where an application is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The cluster's id of it, where there is a cluster that gives one.
    pub id: Option<String>,
    /// Where its progress can be seen, by a browser.
    pub tracking_url: Option<String>,
    /// It was not started by this attempt.
    pub is_adopted: bool,
}

/// Whose an application is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The job.
    pub job: String,
    /// What its body is: two services on one cluster may have jobs of the same id.
    pub digest: String,
}

/// Where a driver runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// On this machine.
    Client,
    /// In a container of YARN's.
    Yarn,
    /// In a pod of Kubernetes'.
    Kubernetes(Namespace),
}

impl Mode {
    /// Whether the driver runs in a cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        match self {
            Self::Client => false,
            Self::Yarn | Self::Kubernetes(_) => true,
        }
    }
}

/// Where in a Kubernetes cluster drivers run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// The API server, as `https://host:port`.
    pub server: String,
    /// The namespace, where the job or the policy names one.
    pub name: Option<String>,
}

/// What is looked for before anything is submitted, and where what it left is to be brought.
#[derive(Debug, Clone)]
pub struct Sought {
    /// Where it runs.
    pub mode: Mode,
    /// Whose it is.
    pub identity: Identity,
    /// As whom it runs, where what it left may be that one's alone to read.
    pub actor: Actor,
    /// The attempt's own directory; holds logs, the driver's socket and what is secret.
    pub directory: PathBuf,
    /// The working directory in it, with everything that was staged.
    pub working_directory: PathBuf,
}

/// What is to be submitted.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Whose it is, and where its files are.
    pub sought: Sought,
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
    /// The job's FILE outputs, by their paths in the working directory, for a driver whose folder is elsewhere.
    pub outputs: Vec<String>,
    /// The folder in the working directory whose files the job is to leave, for the same.
    pub output_folder: Option<&'static str>,
    /// From this moment on nothing is started any more: the job may be somebody else's by then.
    pub not_after: Option<BootTime>,
}

/// Something that happened to an application.
#[derive(Debug)]
pub enum Change {
    /// A cluster has it. Nothing of it runs yet.
    Accepted(Accepted),
    /// The driver is there.
    Started,
    /// The model is about to run.
    Running,
    /// Work of the model waits for executors that the cluster does not give.
    Waits,
    /// It waits no more.
    Placed,
    /// It waits in vain: the cluster does not know the application any more, and will never give it any.
    InVain,
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
    /// Why there is no log of a driver that was elsewhere, if so.
    pub unlogged: Option<String>,
    /// What ended, and how.
    pub outcome: Outcome,
}

/// What ended, and how.
#[derive(Debug)]
pub enum Outcome {
    /// The driver was a process of this machine, which has ended.
    Process(Exit),
    /// A cluster says that it is over.
    Cluster(ClusterEnd),
    /// spark-submit ended, and the cluster has nothing of it.
    NeverAccepted(Exit),
    /// It goes on, for somebody else to follow.
    Left,
    /// Nobody knows what became of it, for longer than that is borne; why, in words.
    Lost(String),
}

/// What a cluster says of an application that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEnd {
    /// The cluster's id of it.
    pub id: String,
    /// How it ended.
    pub verdict: ClusterVerdict,
    /// Why, as far as it can be told by kind.
    pub cause: Cause,
    /// Why, in the cluster's words; may be empty.
    pub reason: String,
}

/// Why an application ended that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its driver needed more memory than the cluster gives it.
    Memory,
    /// The cluster needed its place for something else.
    Preempted,
    /// The machine of its driver was short of something, memory or disk, and put it out.
    Evicted,
    /// The machine of its driver was lost.
    NodeLost,
    /// This service ended it, since it ran for too long.
    RunDeadline,
    /// The driver ended with this code.
    Exit(i32),
    /// Something else.
    Other,
}

/// How an application ended, by its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterVerdict {
    /// It says that it succeeded.
    Succeeded,
    /// It did not.
    Failed,
    /// Somebody ended it.
    Killed,
}

/// The cluster of a program that was built without one.
#[cfg(not(all(feature = "kubernetes", feature = "yarn")))]
struct NoCluster;

#[cfg(not(all(feature = "kubernetes", feature = "yarn")))]
impl NoCluster {
    fn refusal() -> SubmitError {
        SubmitError::Cluster("this program was built without cluster mode there".to_owned())
    }
}

#[cfg(not(all(feature = "kubernetes", feature = "yarn")))]
impl Backend for NoCluster {
    fn find<'a>(&'a self, _: &'a Sought) -> Awaited<'a, Result<Option<Box<dyn Application>>, SubmitError>> {
        Box::pin(std::future::ready(Err(Self::refusal())))
    }

    fn submit<'a>(&'a self, _: &'a Submission) -> Awaited<'a, Result<Box<dyn Application>, SubmitError>> {
        Box::pin(std::future::ready(Err(Self::refusal())))
    }

    fn launches<'a>(&'a self, _: &'a Identity, _: &'a Mode) -> Awaited<'a, Result<Launches, SubmitError>> {
        Box::pin(std::future::ready(Err(Self::refusal())))
    }

    fn forget<'a>(&'a self, _: &'a Identity, _: &'a Mode, _: &'a Launches) -> Awaited<'a, ()> {
        Box::pin(std::future::ready(()))
    }
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
    /// The cluster cannot be used as things are. It will not go better if it is only tried again.
    #[error("{0}")]
    Cluster(String),
    /// The cluster, or what it needs, is away.
    #[error("{0}")]
    Away(String),
}
