//! What a driver wrote: the log of its container, brought to this machine.
//!
//! Kubernetes keeps standard output and error of a container together, and no more of them than a few megabytes (its kubelet's
//! `containerLogMaxSize`, 10 MiB unless somebody says otherwise): what is older is gone before anybody asks. It has a log
//! as long as there is the pod.
//!
//! Nothing here ever fails: a log that cannot be had is told in words.
//!
//! This module must not know what becomes of a job.

use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::api::Api;
use crate::spark::client_mode::STANDARD_ERROR;
use crate::spark::fetched_log::{Keep, read_with};

/// Brings the log of `container` of the pod `name` into `directory`, as the standard error of a driver, of which no more than
/// `bytes` are kept: the head and the tail of a longer one. It may take as long as `whole`.
///
/// # Errors
/// Why there is none, or why it is not whole, in words.
pub(super) async fn fetch(
    api: &Api,
    name: &str,
    container: &str,
    directory: &Path,
    bytes: u64,
    whole: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + whole;
    let told = |reason: String| format!("{}:{name}: {reason}", api.namespace());
    let late = || told(format!("its log has not come within {} s", whole.as_secs()));
    let pieces = match timeout_at(deadline, api.log(name, container)).await {
        Ok(Ok(Some(pieces))) => pieces,
        Ok(Ok(None)) => return Err(told("the pod is gone, and its log with it".to_owned())),
        Ok(Err(error)) => return Err(told(error.to_string())),
        Err(_) => return Err(late()),
    };
    let keep = Keep { directory: directory.to_owned(), bytes };
    let mut coming = keep.begin("container", STANDARD_ERROR).map_err(|error| told(error.to_string()))?;
    let read = read_with(pieces, deadline, move |reader| {
        let (_, outcome) = coming.copy(reader);
        (coming, outcome)
    });
    let (coming, outcome) = read.await.map_err(told)?;
    // What came before it broke off is better than nothing.
    coming.finish(|_| true).await.map_err(told)?;
    outcome.map_err(|error| told(format!("its log broke off: {error}")))
}
