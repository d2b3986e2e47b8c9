//! Resolving: from a job whose sources are elsewhere to one that is whole, and from what it requires to the runtime that it
//! gets.
//!
//! This module must not know how a repository is reached, nor how a runtime is made.

use std::path::{Path, PathBuf};

use std::time::Duration;

use spark_runtime_protocol::asset::decode_base64;
use spark_runtime_protocol::event::{FailureClass, FetchedSource};
use spark_runtime_protocol::job::{Content, Job};
use spark_runtime_protocol::json::Fault;

use super::submit::{broken, plain, stopped};
use super::{End, Stop, in_words};
use crate::repository::{FetchError, Repositories};
use crate::runtimes::requirements::{List, Requirements};
use crate::runtimes::{ChooseError, Runtime, Runtimes, requirements};

/// Gets what `job` only refers to, and tells where it came from. A job that is whole already costs nothing.
///
/// # Errors
/// The attempt's end, when it was stopped meanwhile, or when something cannot be had.
pub async fn resolve(
    repositories: &Repositories,
    job: Job,
    stop: &mut Stop,
) -> Result<(Job, Vec<FetchedSource>), End> {
    if job.is_whole() {
        return Ok((job, Vec::new()));
    }
    let fetched = tokio::select! {
        biased;
        reason = stop.stronger(None) => return Err(stopped(reason)),
        fetched = repositories.fetch(job.in_git()) => fetched,
    };
    match fetched {
        Ok(files) => {
            let job = job.with_fetched(files.contents).map_err(End::Rejected)?;
            for FetchedSource { asset, repository, commit, path } in &files.sources {
                tracing::info!(job_id = %job.id(), asset, repository, commit, path, "fetched");
            }
            Ok((job, files.sources))
        }
        Err(FetchError::Faults(faults)) => Err(End::Rejected(faults)),
        Err(error @ FetchError::Folder { .. }) => Err(End::Failed {
            failure: Box::new(plain(FailureClass::Staging, error.to_string())),
            may_pass: true,
        }),
        Err(error) => Err(broken(&error.to_string())),
    }
}

/// What `job`, which is whole, requires of its runtime.
///
/// # Errors
/// Every line that is no requirement, or that is not taken here.
pub fn required(runtimes: &Runtimes, job: &Job) -> Result<Requirements, Vec<Fault>> {
    let lists: Vec<List> = job
        .required_libraries()
        .map(|(pointer, path, content)| List {
            pointer,
            path: path.map(ToString::to_string).unwrap_or_default(),
            content: bytes(content),
        })
        .collect();
    let other = |path: &str| {
        let found = job.staged_files().find(|file| file.path.as_str() == path)?;
        Some(bytes(found.content))
    };
    requirements::read(&lists, runtimes.allowed(), &other)
}

fn bytes(content: Content<'_>) -> Vec<u8> {
    match content {
        Content::Text(text) => text.as_bytes().to_vec(),
        Content::Bytes(bytes) => bytes.to_vec(),
        Content::Base64(encoded) => {
            let mut bytes = Vec::new();
            // Known to be valid, and memory takes everything.
            let _ = decode_base64(encoded, &mut bytes);
            bytes
        }
    }
}

/// Chooses the runtime for a job. `waited` is for how long it has been offered to other workers.
///
/// # Errors
/// The attempt's end: [`End::Unfit`] as long as `others` may still have a runtime for it.
pub async fn choose(
    runtimes: &Runtimes,
    wanted: &Requirements,
    waited: Duration,
    others: Duration,
    stop: &mut Stop,
) -> Result<Runtime, End> {
    let chosen = tokio::select! {
        biased;
        reason = stop.stronger(None) => return Err(stopped(reason)),
        chosen = runtimes.choose(wanted) => chosen,
    };
    match chosen {
        Ok(runtime) => Ok(runtime),
        Err(ChooseError::Unfit(faults)) if waited < others => Err(End::Unfit(faults)),
        Err(ChooseError::Unfit(mut faults)) => {
            if !others.is_zero() && waited != Duration::MAX {
                let words = format!("no worker had a runtime for it within {}", in_words(others));
                faults.push(Fault::new("", words));
            }
            Err(End::Rejected(faults))
        }
        Err(ChooseError::Impossible(faults)) => Err(End::Rejected(faults)),
        Err(error @ ChooseError::NotMade(_)) => Err(broken(&error.to_string())),
    }
}

/// How long a job that no runtime here fits waits until it is offered again: longer each time, and not much beyond `others`.
/// `delays` are those that there are queues for.
#[must_use]
pub fn next_offer(delays: &[Duration], waited: Duration, others: Duration) -> Duration {
    let shortest = delays.iter().copied().min().unwrap_or_default();
    let most = waited.max(shortest).min(others.saturating_sub(waited));
    delays.iter().copied().filter(|delay| *delay <= most).max().unwrap_or(shortest)
}

/// Where runtimes that were made are kept, in the folder of the settings.
#[must_use]
pub fn runtimes_folder(directory: &Path) -> PathBuf {
    directory.join("runtimes")
}

/// Where what was fetched is remembered, in the folder of the settings.
#[must_use]
pub fn repositories_folder(directory: &Path) -> PathBuf {
    directory.join("repositories")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_offered_less_and_less_often_and_not_for_much_longer_than_it_may_wait() {
        let delays = [5, 30, 120].map(Duration::from_secs);
        let others = Duration::from_secs(300);
        let (mut waited, mut offers) = (Duration::ZERO, Vec::new());
        while waited < others {
            let delay = next_offer(&delays, waited, others);
            offers.push(delay.as_secs());
            waited += delay;
        }
        assert_eq!(offers, [5, 5, 5, 5, 5, 5, 30, 30, 30, 120, 30, 30]);
        assert_eq!(next_offer(&delays, Duration::ZERO, Duration::from_secs(1)), Duration::from_secs(5));
    }
}
