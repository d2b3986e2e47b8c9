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

#[cfg(test)]
mod tests {
    use super::super::scripted::{Scripted, answer, api, status};
    use super::*;

    async fn fetched(text: String, bytes: u64) -> (Result<(), String>, Option<String>) {
        let server = Scripted::start(vec![text]).await;
        let here = tempfile::tempdir().unwrap();
        let told = fetch(&api(&server), "p", "c", here.path(), bytes, Duration::from_secs(5)).await;
        let asked = server.asked();
        assert_eq!(asked[0], "GET /api/v1/namespaces/team/pods/p/log?container=c HTTP/1.1");
        (told, std::fs::read_to_string(here.path().join(STANDARD_ERROR)).ok())
    }

    #[tokio::test]
    async fn of_a_log_that_is_long_the_head_and_the_tail_are_kept() {
        let long: String = (0..100_000).map(|number| format!("line {number}\n")).collect();
        let (told, log) = fetched(answer("200 OK", &long), 4000).await;
        let log = log.unwrap();
        assert_eq!(told, Ok(()));
        assert!(log.starts_with("line 0\n") && log.ends_with("line 99999\n") && log.len() < 5000, "{log}");
        let (told, log) = fetched(answer("200 OK", "short\n"), 4000).await;
        assert_eq!((told, log.as_deref()), (Ok(()), Some("short\n")));
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_had_or_breaks_off_is_told_in_words() {
        let gone = answer("404 Not Found", &status(404, "NotFound", "pods \"p\" not found").to_string());
        let (told, log) = fetched(gone, 4000).await;
        assert_eq!((told, log), (Err("team:p: the pod is gone, and its log with it".to_owned()), None));
        let words = "container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
        let waiting = answer("400 Bad Request", &status(400, "BadRequest", words).to_string());
        let (told, log) = fetched(waiting, 4000).await;
        assert!(told.unwrap_err().ends_with(words) && log.is_none());
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\nthe beginning\n";
        let (told, log) = fetched(cut.to_owned(), 4000).await;
        assert!(told.unwrap_err().starts_with("team:p: its log broke off: "));
        assert_eq!(log.as_deref(), Some("the beginning\n"));
    }
}
