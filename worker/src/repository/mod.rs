//! Sources in git: from what a job says about a repository to the files' bytes.
//!
//! ```text
//! <job.directory>/repositories/
//!   <key>.git/      a bare repository for each address, with the commits that were asked for and no history
//!   <key>.lock      locked by whoever works on it: one at a time, of all workers of the machine
//! ```
//!
//! A commit is fetched by itself (`--depth=1`) and never checked out: files are read from the objects. So nothing of a
//! repository is ever run: no hook, no filter, no submodule, no attribute. What comes from the other side is bounded in
//! size, memory and time, and what a job says reaches git as whole arguments that are no options ([`git`]).
//!
//! What is asked for is looked up anew at every attempt; the events say which commit was taken. A commit that is there
//! already costs no connection.
//!
//! This module must not know what the files are for.

mod cache;
mod git;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Instant;

use spark_runtime_protocol::event::FetchedSource;
use spark_runtime_protocol::job::RepositoryAsset;
use spark_runtime_protocol::json::Fault;
use spark_runtime_protocol::repository::{GitFile, Remote};

use crate::config::{GitSettings, duration_text, size_text};
use crate::program::ProgramError;
use cache::{Cache, Entry};
use git::{Blob, Fetched, Git, Reached};

/// Gets files out of git repositories.
#[derive(Debug, Clone)]
pub struct Repositories {
    settings: GitSettings,
    cache: Cache,
}

/// What a job has in repositories.
#[derive(Debug, Default)]
pub struct Files {
    /// The contents, by the pointers of their assets.
    pub contents: HashMap<String, Vec<u8>>,
    /// Where each came from, in the order of the job.
    pub sources: Vec<FetchedSource>,
}

/// Why a job's files could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It is the job's fault: what it names is not there, or not taken. Every fault, with its place.
    #[error("the job has {} faults in what it says about repositories", .0.len())]
    Faults(Vec<Fault>),
    /// The repository did not answer; it may later.
    #[error("the repository {remote} cannot be reached: {words}")]
    Unreachable {
        /// Its address.
        remote: Remote,
        /// What git said.
        words: String,
    },
    /// It took longer than `git.timeout`.
    #[error("fetching from {remote} took longer than {} (git.timeout)", duration_text(*.patience))]
    TooLong {
        /// The repository that was under way.
        remote: Remote,
        /// The setting.
        patience: std::time::Duration,
    },
    /// Git did not do its part.
    #[error("git failed at {remote}: {words}")]
    Git {
        /// The repository.
        remote: Remote,
        /// What happened.
        words: String,
    },
    /// The folder of the repositories.
    #[error("the repositories in {folder} cannot be used: {source}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What several files of one commit are wanted for.
struct Wanted<'a> {
    /// One of them; all say the same about the revision.
    revision: &'a GitFile,
    assets: Vec<&'a RepositoryAsset>,
}

impl Repositories {
    /// Those that are remembered in `folder`, which need not be there yet.
    #[must_use]
    pub fn new(settings: &GitSettings, folder: PathBuf) -> Self {
        Self { cache: Cache::new(folder, settings.cache_size), settings: settings.clone() }
    }

    /// Gets every file that `assets` name. All files of one repository and revision are of one commit.
    ///
    /// Dropping the future ends what is under way.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self, assets: &[RepositoryAsset]) -> Result<Files, FetchError> {
        let deadline = Instant::now() + self.settings.timeout;
        let mut faults = self.not_taken(assets);
        if !faults.is_empty() {
            return Err(FetchError::Faults(faults));
        }
        let mut commits = HashMap::new();
        let mut files = Files::default();
        for ((remote, sha256), wanted) in by_repository(assets) {
            let entry =
                self.cache.open(remote, sha256, deadline).await.map_err(|source| match source.kind() {
                    std::io::ErrorKind::TimedOut => self.too_long(remote),
                    _ => FetchError::Folder { folder: self.cache.folder().to_owned(), source },
                })?;
            let git = Git::new(&self.settings, &entry, deadline);
            for wanted in wanted {
                let commit = match self.commit(&git, &entry, wanted.revision).await? {
                    Ok(commit) => commit,
                    Err(words) => {
                        let fault = |asset: &&RepositoryAsset| Fault::new(&asset.pointer, words.clone());
                        faults.extend(wanted.assets.iter().map(fault));
                        continue;
                    }
                };
                for asset in wanted.assets {
                    match self.read(&git, &commit, &asset.file).await? {
                        Ok(content) => drop(files.contents.insert(asset.pointer.clone(), content)),
                        Err(words) => faults.push(Fault::new(&asset.pointer, words)),
                    }
                    commits.insert(asset.pointer.as_str(), commit.clone());
                }
            }
            self.cache.close(entry).await;
        }
        if !faults.is_empty() {
            return Err(FetchError::Faults(faults));
        }
        files.sources = assets
            .iter()
            .filter_map(|asset| {
                Some(FetchedSource {
                    asset: asset.pointer.clone(),
                    repository: asset.file.remote.to_string(),
                    commit: commits.remove(asset.pointer.as_str())?,
                    path: asset.file.path.to_string(),
                })
            })
            .collect();
        Ok(files)
    }

    /// The repositories that are reached in a way that the settings do not take.
    fn not_taken(&self, assets: &[RepositoryAsset]) -> Vec<Fault> {
        let fault = |asset: &RepositoryAsset| {
            let word = asset.file.remote.transport().word();
            if self.settings.transports.iter().any(|taken| taken == word) {
                return None;
            }
            let taken = self.settings.transports.join(", ");
            let taken = if taken.is_empty() { "none".to_owned() } else { taken };
            let words =
                format!("its repository is reached by {word}; this worker takes {taken} (git.transports)");
            Some(Fault::new(&asset.pointer, words))
        };
        assets.iter().filter_map(fault).collect()
    }

    fn too_long(&self, remote: &Remote) -> FetchError {
        FetchError::TooLong { remote: remote.clone(), patience: self.settings.timeout }
    }

    fn failed(&self, remote: &Remote, error: &ProgramError) -> FetchError {
        match error {
            ProgramError::TooLong => self.too_long(remote),
            error => FetchError::Git { remote: remote.clone(), words: error.to_string() },
        }
    }

    /// The id of the commit that is asked for, once it is in the cache; else why it cannot be had, in words.
    async fn commit(
        &self,
        git: &Git<'_>,
        entry: &Entry,
        wanted: &GitFile,
    ) -> Result<Result<String, String>, FetchError> {
        let remote = &wanted.remote;
        let failed = |error: ProgramError| self.failed(remote, &error);
        // What is remembered may be spoiled: whoever wrote it may have died over it.
        let mut is_remembered = entry.path.exists();
        loop {
            let words = match git.fetch(wanted).await.map_err(failed)? {
                Fetched::Commit(commit) => return Ok(Ok(commit)),
                Fetched::TooLarge => {
                    let most = size_text(self.settings.max_fetch);
                    return Ok(Err(format!("its repository takes more than {most} (git.max_fetch)")));
                }
                Fetched::NoCommit => {
                    return Ok(Err(format!("{} of {remote} is no commit", wanted.revision())));
                }
                Fetched::Failed(words) => words,
            };
            match git.look(wanted).await.map_err(failed)? {
                Reached::No(words) => return Err(FetchError::Unreachable { remote: remote.clone(), words }),
                Reached::WithIt | Reached::WithoutIt if is_remembered => {
                    tracing::info!(%remote, words, "a repository is fetched anew");
                    let folder = || self.cache.folder().to_owned();
                    entry.empty().map_err(|source| FetchError::Folder { folder: folder(), source })?;
                    is_remembered = false;
                }
                Reached::WithoutIt => {
                    let wanted = wanted.revision();
                    let wanted = wanted.strip_prefix("the ").unwrap_or(&wanted);
                    return Ok(Err(format!("{remote} has no {wanted}")));
                }
                Reached::WithIt => return Err(FetchError::Git { remote: remote.clone(), words }),
            }
        }
    }

    /// A file of a commit; else why it cannot be had, in words.
    async fn read(
        &self,
        git: &Git<'_>,
        commit: &str,
        file: &GitFile,
    ) -> Result<Result<Vec<u8>, String>, FetchError> {
        let failed = |error: ProgramError| self.failed(&file.remote, &error);
        let (path, short) = (&file.path, commit.get(..12).unwrap_or(commit));
        let place = format!("{path} of {} ({short}) in {}", file.revision(), file.remote);
        let most = self.settings.max_file;
        let (id, size) = match git.find(commit, path).await.map_err(failed)? {
            Blob::Found { id, size } => (id, size),
            Blob::NotThere => {
                return Ok(Err(format!("there is no {place}; what lies in submodules is not fetched")));
            }
            Blob::NoFile(kind) => return Ok(Err(format!("{place} is a {kind}; give a file"))),
            Blob::LinkOut => {
                return Ok(Err(format!(
                    "{place} is or lies behind a link that leads to no file of the repository"
                )));
            }
        };
        if size > most {
            let (size, most) = (size_text(size), size_text(most));
            return Ok(Err(format!("{place} has {size}; this worker takes {most} (git.max_file)")));
        }
        let content = git.content(&id, size).await.map_err(failed)?;
        if content.starts_with(b"version https://git-lfs.github.com/spec/") {
            return Ok(Err(format!("{place} is a pointer of Git LFS, which is not followed")));
        }
        Ok(Ok(content))
    }
}

/// The files by their repositories and, in these, by what is asked for.
fn by_repository(assets: &[RepositoryAsset]) -> BTreeMap<(&Remote, bool), Vec<Wanted<'_>>> {
    let mut all: BTreeMap<(&Remote, bool), Vec<Wanted<'_>>> = BTreeMap::new();
    for asset in assets {
        let sha256 = asset.file.commit.as_ref().is_some_and(|commit| commit.as_str().len() == 64);
        let of_one = all.entry((&asset.file.remote, sha256)).or_default();
        match of_one.iter_mut().find(|wanted| wanted.revision.revision() == asset.file.revision()) {
            Some(wanted) => wanted.assets.push(asset),
            None => of_one.push(Wanted { revision: &asset.file, assets: vec![asset] }),
        }
    }
    all
}

#[cfg(test)]
mod tests;
