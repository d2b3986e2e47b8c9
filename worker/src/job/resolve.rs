//! Resolving: from a job whose sources are elsewhere to one that is whole.
//!
//! This module must not know how a repository is reached.

use std::path::{Path, PathBuf};

use spark_runtime_protocol::event::{FailureClass, FetchedSource};
use spark_runtime_protocol::job::Job;

use super::submit::{broken, plain, stopped};
use super::{End, Stop};
use crate::repository::{FetchError, Repositories};

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

/// Where what was fetched is remembered, in the folder of the settings.
#[must_use]
pub fn repositories_folder(directory: &Path) -> PathBuf {
    directory.join("repositories")
}
