//! Looking at what is there without reading it, and removing it as a whole.
//!
//! What a job's own programs read and write lies where *they* find it: a bare path is in the file system that the job is
//! run with, which need not be the one of this machine's configuration. So whoever looks says which that is. A store that
//! the worker and Spark may each know by another address (S3) is not looked at: what is missing in one need not be missing
//! in the other.
//!
//! This module must not know whose files these are.

#[cfg(feature = "hdfs")]
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::url::{Location, Scheme};
use super::{Storage, StorageError};

/// How long all questions of one look may take together. A NameNode that refuses connections is told within a quarter of a
/// minute; one that takes them and does not answer, within this.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long a removal may take: HDFS lets go of a large folder in one step, and a local one file by file.
const REMOVAL: Duration = Duration::from_secs(120);

/// What lies at a spot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file, or a link that leads to none.
    File,
    /// A folder, with whatever is in it.
    Folder,
}

/// A file or folder that can be looked at.
#[derive(Debug, Clone)]
pub struct Spot {
    /// Its URL, in the form in which it was named.
    url: String,
    /// Its path, from the root of its file system; never the root itself.
    path: PathBuf,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    Local,
    #[cfg(feature = "hdfs")]
    Hdfs(hdfs_native::Client),
}

/// Finds spots; one connection serves all of one name service.
#[derive(Debug)]
pub struct Spots<'a> {
    #[cfg_attr(
        not(feature = "hdfs"),
        expect(dead_code, reason = "there is nothing that it would configure")
    )]
    storage: &'a Storage,
    file_system: Option<&'a str>,
    #[cfg(feature = "hdfs")]
    clients: HashMap<String, Result<hdfs_native::Client, String>>,
}

impl Storage {
    /// For spots of a job that is run with this file system for paths without a scheme; `None` when that is this machine's.
    #[must_use]
    pub fn spots<'a>(&'a self, file_system: Option<&'a str>) -> Spots<'a> {
        Spots {
            storage: self,
            file_system,
            #[cfg(feature = "hdfs")]
            clients: HashMap::new(),
        }
    }
}

impl Spots<'_> {
    /// The spot that a `fileUrl` names. Reads Hadoop's configuration; connects to nothing.
    ///
    /// # Errors
    /// [`StorageError::NoPlace`] for what cannot be looked at from here, with the reason.
    pub fn find(&mut self, url: &str) -> Result<Spot, StorageError> {
        let refused = |reason: &str| StorageError::NoPlace { url: url.to_owned(), reason: reason.to_owned() };
        let location = Location::read(&self.whole(url), None).map_err(|reason| refused(&reason))?;
        let path = PathBuf::from(location.path.trim_end_matches('/'));
        if path.file_name().is_none() {
            return Err(refused("is the root of a file system"));
        }
        let store = match location.scheme {
            Scheme::Local => Store::Local,
            #[cfg(feature = "hdfs")]
            Scheme::Hdfs => Store::Hdfs(self.client(&location.authority).map_err(|reason| refused(&reason))?),
            #[cfg(not(feature = "hdfs"))]
            Scheme::Hdfs => return Err(refused("is on HDFS, which this program was built without")),
            Scheme::S3 => return Err(refused("is on S3, which Spark may know by another address")),
        };
        Ok(Spot { url: url.trim_end_matches('/').to_owned(), path, store })
    }

    /// The URL with its file system, as Hadoop would read it.
    fn whole(&self, url: &str) -> String {
        let Some(system) = self.file_system.map(|system| system.trim_end_matches('/')) else {
            return url.to_owned();
        };
        let bare = match url.strip_prefix("hdfs:") {
            // Of the name service that the job is run with, when that is one.
            Some(rest) if system.starts_with("hdfs://") => rest.strip_prefix("//").unwrap_or(rest),
            _ => url,
        };
        if bare.starts_with('/') { format!("{system}{bare}") } else { url.to_owned() }
    }

    #[cfg(feature = "hdfs")]
    fn client(&mut self, authority: &str) -> Result<hdfs_native::Client, String> {
        let made = self.clients.entry(authority.to_owned());
        made.or_insert_with(|| {
            super::hdfs::open(authority, self.storage.hadoop.as_deref(), &self.storage.actor)
        })
        .clone()
    }
}

impl Spot {
    /// Its URL, in the form in which it was named.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether it is on this machine's own file systems.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self.store, Store::Local)
    }

    /// The folder from which a pattern of Hadoop's is looked for (`/a` of `/a/b*/c`), when this may be one; `None` when
    /// it is the name of one thing.
    #[must_use]
    pub fn pattern_folder(&self) -> Option<Self> {
        let is_plain = |step: &std::ffi::OsStr| !step.to_string_lossy().contains(['*', '?', '[', '{', '\\']);
        let steps = self.path.iter().take_while(|step| is_plain(step));
        let folder: PathBuf = steps.collect();
        if folder == self.path {
            return None;
        }
        let url = format!("{}, the folder of {}", folder.display(), self.url);
        Some(Self { url, path: folder, store: self.store.clone() })
    }

    /// Whether `other` is the same or lies below, as far as the paths tell; which of two file systems it is in is not asked,
    /// since one can have many names. Local links are followed. Blocks.
    #[must_use]
    pub fn holds(&self, other: &Self) -> bool {
        let real = |spot: &Self| match spot.store {
            Store::Local => canonical(&spot.path),
            #[cfg(feature = "hdfs")]
            Store::Hdfs(_) => spot.path.clone(),
        };
        other.path.starts_with(&self.path) || real(other).starts_with(real(self))
    }

    /// What is there, or `None`.
    ///
    /// # Errors
    /// [`StorageError`] when nobody can tell: [`StorageError::Refused`] when it is hidden from this worker, and
    /// [`StorageError::Failed`] when there was no answer until `deadline`.
    pub async fn look(&self, deadline: Instant) -> Result<Option<Kind>, StorageError> {
        let found = tokio::time::timeout_at(deadline, async {
            match &self.store {
                Store::Local => {
                    let path = self.path.clone();
                    let looked = tokio::task::spawn_blocking(move || path.symlink_metadata());
                    let metadata = looked.await.map_err(io::Error::other).and_then(|found| found);
                    let kind = |metadata: std::fs::Metadata| {
                        if metadata.is_dir() { Kind::Folder } else { Kind::File }
                    };
                    self.local(metadata.map(kind))
                }
                #[cfg(feature = "hdfs")]
                Store::Hdfs(client) => match client.get_file_info(&self.path.to_string_lossy()).await {
                    Ok(status) => Ok(Some(if status.isdir { Kind::Folder } else { Kind::File })),
                    Err(hdfs_native::HdfsError::FileNotFound(_)) => Ok(None),
                    Err(error) => Err(StorageError::of_hdfs(&self.url, &error)),
                },
            }
        });
        found.await.unwrap_or_else(|_| Err(self.silent("no answer in time")))
    }

    /// Removes it with all that is in it, if it is there. A link is removed, and not what it leads to.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn remove(&self) -> Result<(), StorageError> {
        let removed = tokio::time::timeout(REMOVAL, async {
            match &self.store {
                Store::Local => {
                    let path = self.path.clone();
                    let removed = tokio::task::spawn_blocking(move || remove_local(&path));
                    let removed = removed.await.map_err(io::Error::other).and_then(|removed| removed);
                    self.local(removed).map(drop)
                }
                #[cfg(feature = "hdfs")]
                Store::Hdfs(client) => {
                    // That nothing was there is no error, and is told by `false`.
                    let removed = client.delete(&self.path.to_string_lossy(), true).await;
                    removed.map(drop).map_err(|error| StorageError::of_hdfs(&self.url, &error))
                }
            }
        });
        removed.await.unwrap_or_else(|_| Err(self.silent("could not be removed in time")))
    }

    fn local<T>(&self, done: io::Result<T>) -> Result<Option<T>, StorageError> {
        let url = || self.url.clone();
        match done {
            Ok(found) => Ok(Some(found)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Ok(None),
                io::ErrorKind::NotADirectory => {
                    let reason = "a step of its path is a file, and no folder".to_owned();
                    Err(StorageError::NoFolder { url: url(), reason })
                }
                io::ErrorKind::PermissionDenied => {
                    Err(StorageError::Refused { url: url(), reason: error.to_string() })
                }
                _ => Err(StorageError::Failed { url: url(), reason: error.to_string() }),
            },
        }
    }

    fn silent(&self, reason: &str) -> StorageError {
        StorageError::Failed { url: self.url.clone(), reason: reason.to_owned() }
    }
}

/// The path with its links followed, as far as it is there.
fn canonical(path: &Path) -> PathBuf {
    for known in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (known.canonicalize(), path.strip_prefix(known)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

fn remove_local(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + PATIENCE
    }

    #[tokio::test]
    async fn what_is_there_is_told_and_removed_as_a_whole_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::default();
        let spot =
            |name: &str| storage.spots(None).find(&format!("{}/{name}", folder.path().display())).unwrap();
        std::fs::create_dir_all(folder.path().join("out/deep")).unwrap();
        std::fs::write(folder.path().join("out/deep/part"), "x").unwrap();
        std::os::unix::fs::symlink(folder.path().join("out"), folder.path().join("link")).unwrap();
        for (name, kind) in [("out", Some(Kind::Folder)), ("out/deep/part", Some(Kind::File)), ("none", None)]
        {
            assert_eq!(spot(name).look(soon()).await.unwrap(), kind, "{name}");
        }
        let below = spot("out/deep/part/below").look(soon()).await.unwrap_err();
        assert!(matches!(below, StorageError::NoFolder { .. }), "{below}");
        assert!(spot("link").holds(&spot("out/deep")) && !spot("out/deep").holds(&spot("out/deeper")));
        spot("link").remove().await.unwrap();
        assert!(folder.path().join("out/deep/part").exists());
        spot("out").remove().await.unwrap();
        spot("out").remove().await.unwrap();
        assert_eq!(spot("out").look(soon()).await.unwrap(), None);
    }

    #[test]
    fn a_pattern_is_looked_for_from_its_last_plain_folder() {
        let storage = Storage::default();
        let folder = |url: &str| {
            storage
                .spots(None)
                .find(url)
                .unwrap()
                .pattern_folder()
                .map(|spot| spot.path.display().to_string())
        };
        for (url, expected) in [
            ("/a/b.csv", None),
            ("/a/*.csv", Some("/a")),
            ("file:///a/b[0-9]/c", Some("/a")),
            ("/a/{b,c}/d", Some("/a")),
            ("/*/d", Some("/")),
        ] {
            assert_eq!(folder(url).as_deref(), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn a_path_leads_where_the_job_finds_it() {
        let storage = Storage::default();
        let whole = |url: &str, system: Option<&str>| storage.spots(system).whole(url);
        let system = Some("hdfs://nn:1/");
        for (url, system, expected) in [
            ("/a", None, "/a"),
            ("/a", system, "hdfs://nn:1/a"),
            ("hdfs:///a", system, "hdfs://nn:1/a"),
            ("hdfs:/a", system, "hdfs://nn:1/a"),
            ("hdfs://other/a", system, "hdfs://other/a"),
            ("hdfs:///a", Some("s3a://b"), "hdfs:///a"),
            ("file:/a", system, "file:/a"),
        ] {
            assert_eq!(whole(url, system), expected, "{url}");
        }
        let reason = |url: &str| storage.spots(None).find(url).map(drop).unwrap_err().to_string();
        assert!(reason("gs://b/a").contains("does not know"));
        assert!(reason("s3a://b/a").contains("is on S3"));
        assert!(reason("hdfs://127.0.0.1:1/").contains("is the root"));
        assert!(reason("/a/../b").contains("`..`"));
        assert!(storage.spots(None).find("hdfs://127.0.0.1:1/a").is_ok_and(|spot| !spot.is_local()));
    }
}
