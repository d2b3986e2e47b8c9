//! What the driver of an application in cluster mode wrote: the standard output and error of its container, brought to
//! this machine.
//!
//! ```text
//! ResourceManager: which container was the master's, on which node, whose
//!    ├──> the node's NodeManager, which has the files while the container runs and for some time after   (node_manager)
//!    └──> the files into which all logs of a node are moved when the application is over                 (aggregated)
//! ```
//!
//! The second is asked for what the first does not have, and waited for when the application is over and its logs are on
//! their way. Nothing here ever fails: a log that cannot be had is told in words, and changes nothing about the job that
//! it is of. A log is never held in memory: it goes through a reader into a file of bounded size. What others say decides
//! neither where a file is written nor for how long they are listened to, and nothing of a log is in what this module
//! says about it.
//!
//! This module must not know what becomes of a job.

mod aggregated;
mod node_manager;
mod tfile;

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::resource_manager::{Attempt, LogReport, ResourceManager, segment};
use crate::spark::client_mode::{STANDARD_ERROR, STANDARD_OUTPUT};
use crate::spark::fetched_log::{BUFFER, Coming, Keep, Pieces, read_with};
use crate::spark::guard::LogSize;
use crate::storage::Actor;

/// How much of a log is kept, if nobody says otherwise, in bytes.
const BYTES: u64 = 64 << 20;
/// How long all of it may take.
const WHOLE: Duration = Duration::from_secs(60);
/// How long logs that are being moved are waited for.
const AGGREGATION: Duration = Duration::from_secs(40);
/// What a driver's container calls its own files.
const CONTAINER_OUTPUT: &str = "stdout";
const CONTAINER_ERROR: &str = "stderr";
/// What went wrong before there was anything that could write a standard error.
const CONTAINER_PRELAUNCH: &str = "prelaunch.err";

/// How much is done for the logs of one application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How much is kept of each log, in bytes: the head and the tail of a longer one.
    pub bytes: u64,
    /// How long logs are waited for that are being moved, after the application is over.
    pub aggregation: Duration,
    /// How long all of it may take; some seconds may be added until this machine's disk has what has come by then.
    pub whole: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: BYTES, aggregation: AGGREGATION, whole: WHOLE }
    }
}

/// What was found of the logs of a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverLog {
    /// Of its standard output, which is [`STANDARD_OUTPUT`].
    pub output: Outcome,
    /// Of its standard error, which is [`STANDARD_ERROR`].
    pub error: Outcome,
}

/// What became of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The file is there; but one that would be empty is not made.
    Kept(Kept),
    /// There is none, with the reason in words, for a person. It begins with what it is about.
    Missing(String),
}

/// A log that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where it was.
    pub from: Source,
    /// What it was called there: `stdout`, `stderr`, or `prelaunch.err` in the place of a standard error that was never
    /// begun.
    pub name: String,
    /// How large it was there, and how much of that is here.
    pub size: LogSize,
    /// Why it is not whole, in words, if it ended before it should have.
    pub broken_off: Option<String>,
}

/// Where a log was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// With the NodeManager at this address, as `http://host:8042`.
    NodeManager(String),
    /// In the file of this name, a URL or a path where Hadoop's configuration says, with all logs of a node.
    Aggregated(String),
}

impl Outcome {
    fn is_whole(&self) -> bool {
        matches!(self, Self::Kept(Kept { broken_off: None, .. }))
    }
}

/// Brings the logs of the driver of the application `id` into `directory`, under the names [`STANDARD_OUTPUT`] and
/// [`STANDARD_ERROR`]; files that are there under these names are replaced when there is something to replace them with.
/// Can be asked while the application runs as well, for what there is by then.
///
/// `configuration` is the folder with Hadoop's configuration. Where logs are moved to, they are read as `actor`, as whom the
/// application runs: YARN lets nobody else read them there but its own administrators. Dropping this ends it; what was begun of a file may be left,
/// under a name of its own, until the next call for the same directory.
pub async fn fetch(
    resource_manager: &ResourceManager,
    configuration: &Path,
    actor: &Actor,
    id: &str,
    directory: &Path,
    bounds: Bounds,
) -> DriverLog {
    let deadline = Instant::now() + bounds.whole;
    let keep = Keep { directory: directory.to_owned(), bytes: bounds.bytes };
    let container = match timeout_at(deadline, container(resource_manager, id)).await {
        Ok(Ok(container)) => container,
        Ok(Err(reason)) => return DriverLog::missing(&reason),
        Err(_) => {
            let reason = format!("{id}: no ResourceManager has answered within {} s", bounds.whole.as_secs());
            return DriverLog::missing(&reason);
        }
    };
    let mut log = node_manager::fetch(resource_manager, &container, &keep, deadline).await;
    if !(log.output.is_whole() && log.error.is_whole()) {
        let waited_for = deadline.min(Instant::now() + bounds.aggregation);
        let look =
            aggregated::Look { resource_manager, configuration, actor, container: &container, keep: &keep };
        look.complete(&mut log, waited_for, deadline).await;
    }
    log
}

impl DriverLog {
    fn missing(reason: &str) -> Self {
        Self { output: Outcome::Missing(reason.to_owned()), error: Outcome::Missing(reason.to_owned()) }
    }
}

/// The container of an application's driver, with names that are safe to put into a path.
#[derive(Debug)]
struct Container {
    application: String,
    id: String,
    /// Of the NodeManager's web interface.
    address: String,
    /// Of the NodeManager.
    node: String,
    report: LogReport,
}

/// The container of the last attempt that got one.
async fn container(resource_manager: &ResourceManager, id: &str) -> Result<Container, String> {
    if sequence_number(id).is_none() {
        return Err(format!("{id:?} is no id of an application"));
    }
    let told = |error| format!("{id}: {error}");
    let report = resource_manager.logs(id).await.map_err(told)?;
    let report = report.ok_or_else(|| format!("{id}: the ResourceManager knows of no such application"))?;
    let attempts = resource_manager.attempts(id).await.map_err(told)?;
    let last = attempts
        .into_iter()
        .filter(|attempt| !attempt.container_id.is_empty() && attempt.container_id != "null")
        .max_by_key(|attempt| attempt.id)
        .ok_or_else(|| format!("{id}: it never had a container"))?;
    let Attempt { container_id, node_http_address, node_id, logs_link, .. } = last;
    if !container_id.starts_with("container_") || segment(&container_id) != container_id {
        return Err(format!("{id}: its container has no proper id"));
    }
    // The link says whether the node speaks HTTPS; the rest of it is for browsers.
    let scheme = if logs_link.starts_with("https://") { "https" } else { "http" };
    let address = format!("{scheme}://{node_http_address}");
    Ok(Container { application: id.to_owned(), id: container_id, address, node: node_id, report })
}

/// The last number of an application's id, if it is one.
fn sequence_number(id: &str) -> Option<u64> {
    let (cluster, number) = id.strip_prefix("application_")?.split_once('_')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number(cluster) && is_number(number) { number.parse().ok() } else { None }
}

#[cfg(test)]
mod tests;
