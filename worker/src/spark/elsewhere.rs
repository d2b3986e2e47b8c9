//! What all back ends have in common whose drivers run in a cluster.
//!
//! This module must not know which kind of cluster it is.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::SubmitError;
use super::installation::Environment;
use super::job_folder::FolderError;
use crate::config::{Keep, Settings};

/// What every tag of ours begins with.
const PREFIX: &str = "spark-runtime";
/// How many digits of a digest a tag has: so many that no two jobs of a cluster ever share one.
const DIGITS: usize = 32;
/// How long the pauses are in which something that is away is tried again.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest of them.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The tag that every application of a job carries. Job ids have upper case, and any length; no tag has. `service` sets the
/// jobs of one service apart from those of another on the same cluster, whose ids may be the same, and so does the `digest`
/// of the job's body.
#[must_use]
pub fn job_tag(service: &str, job: &str, digest: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [service, job, digest] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}-{}", &digest[..DIGITS])
}

/// The user as whom the worker is known in a cluster that takes its word for it.
pub(super) fn user(environment: &Environment) -> String {
    environment
        .get("HADOOP_USER_NAME")
        .map(|name| name.to_string_lossy().into_owned())
        .or_else(|| nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()?.map(|user| user.name))
        .unwrap_or_else(|| "nobody".to_owned())
}

/// Where the folders of jobs are when the settings do not say.
pub(super) fn folder_of(user: &str) -> String {
    format!("/user/{user}/.spark-runtime")
}

/// What is wanted of the logs of drivers.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogWishes {
    /// How much is kept of each, in bytes.
    pub(super) bytes: u64,
    /// Those of drivers that did well are wanted, too.
    pub(super) always: bool,
}

impl LogWishes {
    /// Those of the settings.
    pub(super) fn of(settings: &Settings) -> Self {
        Self { bytes: settings.log.limit, always: settings.job.keep == Keep::Always }
    }

    /// Whether the log of a driver is wanted.
    pub(super) fn want_that_of(self, did_well: bool, has_word: bool) -> bool {
        self.always || !did_well || !has_word
    }
}

/// What stands in the way of an answer.
pub(super) struct Trouble {
    /// What it is.
    pub(super) words: String,
    /// It may go better if it is only tried again.
    pub(super) may_pass: bool,
}

impl From<FolderError> for Trouble {
    fn from(error: FolderError) -> Self {
        Self { may_pass: error.may_pass(), words: error.to_string() }
    }
}

impl From<Trouble> for SubmitError {
    fn from(trouble: Trouble) -> Self {
        if trouble.may_pass { Self::Away(trouble.words) } else { Self::Cluster(trouble.words) }
    }
}

/// Tries until it is known, it can only be refused, or `most` is over.
pub(super) async fn patiently<T, F: Future<Output = Result<T, Trouble>>>(
    most: Duration,
    what: &'static str,
    attempt: impl Fn() -> F,
) -> Result<T, Trouble> {
    let until = Instant::now() + most;
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt().await {
            Err(trouble) if trouble.may_pass && Instant::now() + pause < until => {
                tracing::warn!(what, reason = trouble.words, "cannot be known yet; asking again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            known => return known,
        }
    }
}

/// Makes a folder, with those that lead there.
///
/// # Errors
/// What the file system says.
pub(super) fn make(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Sleeps until a moment; for ever when there is none.
pub(super) async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_has_a_tag_of_its_own() {
        let tags = [
            job_tag("a", "job", "d"),
            job_tag("a", "JOB", "d"),
            job_tag("b", "job", "d"),
            job_tag("a", "job", "e"),
            job_tag("ajob", "", "d"),
            job_tag("a", "jobd", ""),
            job_tag("a", &"ü, \n".repeat(500), "d"),
        ];
        for (index, tag) in tags.iter().enumerate() {
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(tag.chars().all(is_plain) && tag.len() < 50, "{tag}");
            assert!(!tags[..index].contains(tag), "{tag}");
        }
        assert_eq!(job_tag("a", "job", "d"), job_tag("a", "job", "d"));
    }
}
