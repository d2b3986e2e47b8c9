//! The bare repositories that are remembered, and who may work on which.
//!
//! This module must not know git's commands.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use spark_runtime_protocol::repository::Remote;

use crate::disk::size_of;

/// How long is waited between two tries to get a lock that somebody has.
const TRYING: Duration = Duration::from_millis(50);

/// The folder of all of them.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    most: u64,
}

/// A repository that is locked.
#[derive(Debug)]
pub(super) struct Entry {
    /// The bare repository; not there before it is first needed.
    pub(super) path: PathBuf,
    /// It is of objects with SHA-256.
    pub(super) sha256: bool,
    /// Its lock, held for as long as anybody holds this.
    pub(super) lock: Arc<Flock<File>>,
}

impl Cache {
    pub(super) fn new(folder: PathBuf, most: u64) -> Self {
        Self { folder, most }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Locks the repository for `remote`.
    ///
    /// # Errors
    /// What the file system says; `TimedOut` when somebody else has it until `deadline`.
    pub(super) async fn open(&self, remote: &Remote, sha256: bool, deadline: Instant) -> io::Result<Entry> {
        make_private(&self.folder)?;
        let key = key(remote, sha256);
        loop {
            let file =
                File::options().create(true).append(true).open(self.folder.join(format!("{key}.lock")))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    // By this is told what was used last.
                    lock.set_modified(SystemTime::now())?;
                    let entry =
                        Entry { path: self.folder.join(format!("{key}.git")), sha256, lock: Arc::new(lock) };
                    entry.sweep()?;
                    return Ok(entry);
                }
                Err((_, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                    tokio::time::sleep(TRYING).await;
                }
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(io::ErrorKind::TimedOut.into()),
                Err((_, errno)) => return Err(errno.into()),
            }
        }
    }

    /// Lets go of a repository, and removes those that were not used for the longest time when all together are too large.
    pub(super) async fn close(&self, entry: Entry) {
        let cache = self.clone();
        let trimmed = tokio::task::spawn_blocking(move || {
            let trimmed = cache.trim(&entry.path);
            drop(entry);
            trimmed
        });
        match trimmed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "what is remembered of repositories could not be bounded")
            }
            Err(error) => {
                tracing::error!(%error, "bounding what is remembered of repositories was cut short")
            }
        }
    }

    fn trim(&self, own: &Path) -> io::Result<()> {
        let mut all = Vec::new();
        let mut total = 0;
        for found in fs::read_dir(&self.folder)? {
            let path = found?.path();
            if path.extension().is_some_and(|ending| ending == "git") {
                let size = size_of(&path);
                total += size;
                all.push((last_used(&path), size, path));
            }
        }
        all.sort();
        for (_, size, path) in all {
            if total <= self.most {
                break;
            }
            // One that somebody works on is his to bound, and the own one is locked already.
            let lock = File::options().append(true).open(path.with_extension("lock"));
            let free = path == own
                || lock.is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok());
            if free {
                remove(&path)?;
                total = total.saturating_sub(size);
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Forgets everything in it.
    pub(super) fn empty(&self) -> io::Result<()> {
        remove(&self.path)
    }

    /// Whether something of at least `bytes` was left half transferred: a writer that reaches its limit dies without a word.
    pub(super) fn has_half_of(&self, bytes: u64) -> bool {
        let Ok(found) = fs::read_dir(self.path.join("objects/pack")) else { return false };
        let is_it = |entry: fs::DirEntry| {
            is_half(&entry.file_name().to_string_lossy())
                && entry.metadata().is_ok_and(|metadata| metadata.len() >= bytes)
        };
        found.flatten().any(is_it)
    }

    /// Removes what somebody has left who died over it: nobody else works on it now.
    fn sweep(&self) -> io::Result<()> {
        for (folder, is_left) in [
            (self.path.clone(), (|name: &str| name.ends_with(".lock")) as fn(&str) -> bool),
            (self.path.join("refs/cached"), |name| name.ends_with(".lock")),
            (self.path.join("objects/pack"), is_half),
        ] {
            let Ok(found) = fs::read_dir(&folder) else { continue };
            for entry in found.flatten() {
                if entry.file_name().to_str().is_some_and(is_left) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        // A repository that is only half made.
        let half = self.path.with_extension("part");
        if half.exists() { fs::remove_dir_all(half) } else { Ok(()) }
    }
}

/// The names of what git has not finished.
fn is_half(name: &str) -> bool {
    name.starts_with("tmp_") || name.starts_with(".tmp-")
}

fn last_used(path: &Path) -> SystemTime {
    let modified = fs::metadata(path.with_extension("lock")).and_then(|lock| lock.modified());
    modified.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Removes a repository so that nobody ever sees half of it.
fn remove(path: &Path) -> io::Result<()> {
    let gone = path.with_extension("part");
    match fs::rename(path, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::remove_dir_all(gone),
    }
}

fn key(remote: &Remote, sha256: bool) -> String {
    let kind: &[u8] = if sha256 { b"sha256\n" } else { b"sha1\n" };
    let digest = Sha256::new().chain_update(kind).chain_update(remote.as_str()).finalize();
    digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
