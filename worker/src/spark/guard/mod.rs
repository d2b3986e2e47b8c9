//! The guard: starts every program that a worker runs, and sees to it that none of their processes outlives the
//! worker, the lease, or the guard itself.
//!
//! # Theory of operation
//!
//! There are three kinds of process:
//!
//! ```text
//! worker ──> guard ──> shim ──> spark-submit ──> ... (its tree)
//!                 └──> shim ──> spark-submit ──> ...
//! ```
//!
//! - The **guard** is the same binary, started once per worker by [`Guard::start`]. It has one thread, no runtime, its
//!   own session, and a socket to the worker. It gives each launch a shim of its own.
//! - A **shim** is the subreaper of one tree: whatever a program starts, in whatever session or process group it hides,
//!   descends from the shim or becomes its child. It tells the end when the kernel says that it has no children left;
//!   that is how "the tree is gone" is known and not guessed. Then it is ready for the next launch; one that has had
//!   nothing to do for a while goes, so that an idle worker has none.
//! - The **worker** is a subreaper as well, of last resort.
//!
//! To make a process with a copy of memory costs several times what starting a program costs otherwise. So shims are
//! forked seldom, and a program is born in the memory of its shim (`vfork`), which stands still until the program's
//! `exec` is done. On a disk that does not answer that may be long; the guard then kills the shim, and the kernel the
//! newborn with it.
//!
//! Who dies, and what happens then:
//!
//! | dead | noticed by | who kills |
//! |---|---|---|
//! | worker, or it says nonsense | end of file at the guard | every shim its tree; then the guard goes |
//! | worker or machine asleep past `alive_until` | the guard's clock (CLOCK_BOOTTIME) | every shim its tree |
//! | guard | end of file at the shims | every shim its tree; the worker what is left |
//! | shim | its program dies with it (PDEATHSIG); SIGCHLD at the guard | the guard, whose children the rest became |
//! | guard and shims | end of file at the worker | the worker, whose children the rest became |
//! | guard hung past `alive_until` | the worker's own clock | the worker kills the guard: as above |
//! | a shim hung when told to kill | the guard's patience | the guard kills the shim: as above |
//!
//! Killing is repeated until nothing is left, so a tree that forks on gains nothing.
//!
//! A worker may leave a [`LastWill`] with its guard: a program that is run when the worker is gone and every tree with
//! it. A worker that is merely fenced is not gone; a guard that dies takes the will along.
//!
//! This module must not know what Spark, a job or a lease is: it starts programs, carries their output into logs of
//! bounded size, and says how they ended.

mod client;
pub(in crate::spark) mod log;
mod memory;
mod process;
mod server;
mod shim;
mod will;
mod wire;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::clock::BootTime;
pub use client::{Guard, Running};
pub use log::LogSize;
pub use process::give_code_back;
pub use server::guard_main;

/// A program to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Path of the program. It is not looked for on any PATH; a relative one counts from `directory`.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
    /// Its whole environment; nothing is inherited.
    pub environment: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: PathBuf,
    /// Where its standard output goes. An existing file is emptied; a new one is made for the first byte only;
    /// `<path>.tail` beside it is used meanwhile.
    pub stdout: PathBuf,
    /// Where its standard error goes, in the same way.
    pub stderr: PathBuf,
    /// About how many bytes of each stream to keep: the first half and the last half of so many.
    pub log_limit: u64,
    /// From this moment on it is not started any more: it was decided on by what held until then.
    pub not_after: Option<BootTime>,
}

/// A program that the guard runs when the worker is gone without having taken this back, and every tree is gone too.
///
/// It runs once, in a process group of its own, in the directory `/`; its output goes nowhere, its standard error
/// where the guard's goes. Nothing that it starts outlives its patience; the program itself does not outlive the guard.
#[derive(Clone, PartialEq, Eq)]
pub struct LastWill {
    /// Path of the program; without one it is the guard's own executable, even if that has been replaced or deleted
    /// meanwhile.
    pub program: Option<PathBuf>,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
    /// Its whole environment; nothing is inherited.
    pub environment: Vec<(OsString, OsString)>,
    /// What it reads from its standard input, to the end of file. This may be a secret: it goes through memory alone,
    /// which no shim or program inherits.
    pub input: Vec<u8>,
    /// How long it may take before it is killed, in whole milliseconds.
    pub patience: Duration,
}

impl std::fmt::Debug for LastWill {
    /// Leaves out everything that may be a secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("LastWill")
            .field("program", &self.program)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// It is gone with its whole tree, but nobody was left to see how.
    Lost,
}

/// The end of a program. When it is told, every process that the program ever started is dead and the logs are
/// complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// How the program itself ended.
    pub status: ExitStatus,
    /// It was told to go (`terminate`, `kill`, a fence) before it had ended.
    pub by_us: bool,
    /// The moment given to [`Guard::alive_until`] had passed.
    pub fenced: bool,
    /// User and system time of the whole tree, as far as its processes were waited for.
    pub processor_time: Duration,
    /// Bytes of memory at the highest: of the tree together, as seen twice a second (shared pages count for each
    /// process), or of its largest process, whichever is more.
    pub peak_memory: u64,
    /// How many processes were still there when the program had ended, and had to be killed.
    pub leftovers: u32,
    /// The program did not succeed, and meanwhile the kernel killed something for want of memory: in the worker's
    /// cgroup, or, where that cannot be seen, on the machine. With several programs at once it may have been another's.
    pub oom_killed: bool,
    /// What became of its standard output.
    pub stdout: LogSize,
    /// What became of its standard error.
    pub stderr: LogSize,
}

/// How far a launch got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Making the shim.
    Shim,
    /// Reading what is to be launched.
    Decode,
    /// Making the file for standard output.
    Stdout,
    /// Making the file for standard error.
    Stderr,
    /// Making the pipes.
    Pipe,
    /// Making the process.
    Fork,
    /// Setting the new process up.
    Child,
    /// Entering the working directory.
    Directory,
    /// Executing the program.
    Exec,
    /// Refused or called off, because the moment given to [`Guard::alive_until`] had passed.
    Fenced,
    /// Called off before the program ran.
    Stopped,
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Step::Shim => "making its shim",
            Step::Decode => "reading the launch",
            Step::Stdout => "making the file for standard output",
            Step::Stderr => "making the file for standard error",
            Step::Pipe => "making pipes",
            Step::Fork => "making a process",
            Step::Child => "setting the process up",
            Step::Directory => "entering the working directory",
            Step::Exec => "executing it",
            Step::Fenced => "the lease had run out",
            Step::Stopped => "it was stopped before it ran",
        })
    }
}

/// Why there is no guard.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The executable cannot be started, or the kernel refuses what the guard needs.
    #[error("failed to start the guard {executable:?}")]
    Start {
        /// What was to be executed.
        executable: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It was started and did not speak.
    #[error("guard {executable:?} did not answer")]
    Silent {
        /// What was executed.
        executable: PathBuf,
    },
}

/// Why the guard does not have a last will, or still has one.
#[derive(Debug, thiserror::Error)]
pub enum LastWillError {
    /// No program can be given such a text.
    #[error("failed to leave a last will: its {part} holds a NUL byte")]
    Nul {
        /// Which part of it.
        part: &'static str,
    },
    /// It could not be handed to the guard, which keeps the one that it had before.
    #[error("failed to hand a last will to the guard")]
    Handover {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The guard is gone, and with it any last will.
    #[error("failed to reach the guard about the last will: the guard was lost")]
    GuardLost,
}

/// Why a program does not run. Nothing of it is left in any case.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No program can be given such a text.
    #[error("failed to start {program:?}: its {part} holds a NUL byte")]
    Nul {
        /// The program.
        program: PathBuf,
        /// Which part of the launch.
        part: &'static str,
    },
    /// A step of the launch failed.
    #[error("failed to start {program:?}: {step}")]
    Failed {
        /// The program.
        program: PathBuf,
        /// The step.
        step: Step,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The moment given to [`Guard::alive_until`] has passed; nothing is started before a new one is given.
    #[error("failed to start {program:?}: the lease has run out")]
    Fenced {
        /// The program.
        program: PathBuf,
    },
    /// The launch could not be handed to the guard.
    #[error("failed to hand {program:?} to the guard")]
    Handover {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The guard or the shim died meanwhile, and with it whatever had been started.
    #[error("failed to start {program:?}: the guard was lost")]
    GuardLost {
        /// The program.
        program: PathBuf,
    },
}
