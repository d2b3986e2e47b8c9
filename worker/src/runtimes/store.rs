//! Environments that were made here: built, or unpacked. Each is made once, is seen only when it is whole, and is kept for
//! as long as somebody uses it or there is room.
//!
//! ```text
//! <job.directory>/runtimes/
//!   maker.lock      locked by whoever makes one: one at a time, of all workers of the machine
//!   <key>/          an environment; whole when it has the file `ready`
//!   <key>.lock      shared by whoever uses it, exclusive for whoever makes or removes it
//! ```
//!
//! This module must not know how an environment is made.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::disk::size_of;

/// How long is waited between two tries to get a lock that somebody has.
const TRYING: Duration = Duration::from_millis(50);
/// The file that says that an environment is whole.
const READY: &str = "ready";

/// The folder of all of them.
#[derive(Debug, Clone)]
pub(super) struct Store {
    folder: PathBuf,
    most: u64,
}

/// An environment in use: it stays for as long as this lives.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    /// Its folder.
    pub(super) folder: PathBuf,
    _lock: Arc<Flock<File>>,
}

/// What was found for a key.
pub(super) enum Found {
    /// The environment.
    Whole(Lease),
    /// Nothing: it is to be made.
    Missing(Making),
}

/// An environment that is being made. Dropping this gives it up.
pub(super) struct Making {
    store: Store,
    /// Where it is made.
    pub(super) folder: PathBuf,
    /// Held for as long as anybody makes one.
    pub(super) maker: Arc<Flock<File>>,
    /// Gone once it is whole.
    own: Option<Flock<File>>,
}

impl Making {
    /// Says that it is whole.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) async fn done(mut self) -> io::Result<Lease> {
        File::create(self.folder.join(READY))?.sync_all()?;
        let Some(own) = self.own.take() else { return Err(io::ErrorKind::NotFound.into()) };
        own.set_modified(SystemTime::now())?;
        let lock = Arc::new(shared(own)?);
        self.store.trim(&self.folder).await?;
        Ok(Lease { folder: self.folder.clone(), _lock: lock })
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.own.is_some()
            && let Err(error) = remove(&self.folder)
        {
            // Whoever makes it next removes it first.
            tracing::debug!(%error, path = %self.folder.display(), "half of an environment could not be removed");
        }
    }
}

impl Store {
    /// Environments in `folder`, which need not be there, up to `most` bytes.
    pub(super) fn new(folder: PathBuf, most: u64) -> Self {
        Self { folder, most }
    }

    /// The environment with this key, when it is there.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn find(&self, key: &str) -> io::Result<Option<Lease>> {
        let folder = self.folder.join(key);
        if !folder.join(READY).exists() {
            return Ok(None);
        }
        let lock = match Flock::lock(self.lock_file(key)?, FlockArg::LockSharedNonblock) {
            Ok(lock) => lock,
            // Somebody makes or removes it.
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        // By this is told what was used last.
        lock.set_modified(SystemTime::now())?;
        let lease = Lease { _lock: Arc::new(lock), folder };
        Ok(lease.folder.join(READY).exists().then_some(lease))
    }

    /// The environment with this key, or the right to make it.
    ///
    /// # Errors
    /// What the file system says; `TimedOut` when others make theirs until `deadline`.
    pub(super) async fn obtain(&self, key: &str, deadline: Instant) -> io::Result<Found> {
        if let Some(lease) = self.find(key)? {
            return Ok(Found::Whole(lease));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let maker = Arc::new(exclusive(&self.folder.join("maker.lock"), deadline).await?);
        // Nobody makes or removes any now; somebody may have made this one meanwhile.
        if let Some(lease) = self.find(key)? {
            return Ok(Found::Whole(lease));
        }
        let own = exclusive(&self.folder.join(format!("{key}.lock")), deadline).await?;
        let folder = self.folder.join(key);
        // Half of one, by somebody who died over it.
        remove(&folder)?;
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let making = Making { store: self.clone(), folder, maker, own: Some(own) };
        Ok(Found::Missing(making))
    }

    /// Removes those that were not used for the longest time, until the others fit; never `own`.
    async fn trim(&self, own: &Path) -> io::Result<()> {
        let (store, own) = (self.clone(), own.to_owned());
        let trimmed = tokio::task::spawn_blocking(move || store.trim_now(&own));
        trimmed.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn trim_now(&self, own: &Path) -> io::Result<()> {
        let mut total = 0;
        let mut others = Vec::new();
        for found in fs::read_dir(&self.folder)? {
            let path = found?.path();
            if !path.is_dir() {
                continue;
            }
            let size = size_of(&path);
            total += size;
            if path != own {
                let used = fs::metadata(path.with_extension("lock")).and_then(|lock| lock.modified());
                others.push((used.unwrap_or(SystemTime::UNIX_EPOCH), size, path));
            }
        }
        others.sort();
        for (_, size, path) in others {
            if total <= self.most {
                break;
            }
            let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Ok(_lock) = Flock::lock(self.lock_file(&key)?, FlockArg::LockExclusiveNonblock) {
                tracing::info!(path = %path.display(), "an environment that was not used for long is removed");
                remove(&path)?;
                total = total.saturating_sub(size);
            }
        }
        Ok(())
    }

    fn lock_file(&self, key: &str) -> io::Result<File> {
        File::options().create(true).append(true).open(self.folder.join(format!("{key}.lock")))
    }
}

/// Lets others use what nobody else could touch. Only whoever has the maker's lock removes anything, and he still has it.
fn shared(lock: Flock<File>) -> io::Result<Flock<File>> {
    lock.relock(FlockArg::LockSharedNonblock)?;
    Ok(lock)
}

async fn exclusive(path: &Path, deadline: Instant) -> io::Result<Flock<File>> {
    loop {
        let file = File::options().create(true).append(true).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() < deadline => tokio::time::sleep(TRYING).await,
            Err((_, Errno::EWOULDBLOCK)) => return Err(io::ErrorKind::TimedOut.into()),
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

/// Removes an environment; it is not whole any more from the first moment on.
fn remove(folder: &Path) -> io::Result<()> {
    for removed in [fs::remove_file(folder.join(READY)), fs::remove_dir_all(folder)] {
        match removed {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// The environment with this key, made with one file in it when it is not there; and whether it was.
    async fn made(store: &Store, key: &str) -> (Lease, bool) {
        match store.obtain(key, soon()).await.unwrap() {
            Found::Whole(lease) => (lease, false),
            Found::Missing(making) => {
                fs::write(making.folder.join("x"), vec![0; 1000]).unwrap();
                tokio::task::yield_now().await;
                (making.done().await.unwrap(), true)
            }
        }
    }

    #[tokio::test]
    async fn an_environment_is_made_once_however_many_want_it() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path().join("runtimes"), 1 << 30);
        let all = futures_util::future::join_all((0..8).map(|_| made(&store, "k"))).await;
        assert!(all.iter().all(|(lease, _)| lease.folder.join("x").exists()));
        assert_eq!(all.iter().filter(|(_, was_made)| *was_made).count(), 1);
    }

    #[tokio::test]
    async fn half_of_an_environment_is_never_seen() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path().to_owned(), 1 << 30);
        let Found::Missing(making) = store.obtain("k", soon()).await.unwrap() else { panic!() };
        fs::write(making.folder.join("half"), "").unwrap();
        assert!(store.find("k").unwrap().is_none());
        drop(making);
        assert!(store.find("k").unwrap().is_none() && !place.path().join("k").exists());
        // Of one that died over it.
        fs::create_dir(place.path().join("k")).unwrap();
        fs::write(place.path().join("k/half"), "").unwrap();
        assert!(store.find("k").unwrap().is_none());
        assert!(!made(&store, "k").await.0.folder.join("half").exists());
    }

    #[tokio::test]
    async fn what_is_in_use_stays_and_what_was_not_used_for_the_longest_time_goes_first() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path().to_owned(), 2500);
        let used = made(&store, "used").await.0;
        drop(made(&store, "old").await);
        drop(made(&store, "new").await);
        let there = |key: &str| place.path().join(key).exists();
        assert!(there("used") && !there("old") && there("new"));
        drop(used);
        drop(made(&store, "newest").await);
        assert!(!there("used") && there("new") && there("newest"));
    }

    #[tokio::test]
    async fn whoever_waits_for_another_ones_making_does_not_wait_for_ever() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::new(place.path().to_owned(), 1 << 30);
        let file = File::create(place.path().join("maker.lock")).unwrap();
        let _held = Flock::lock(file, FlockArg::LockExclusive).unwrap();
        let waited = store.obtain("k", Instant::now() + Duration::from_millis(120)).await;
        assert!(waited.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut));
    }
}
