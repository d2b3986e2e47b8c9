//! Files that are put somewhere once and never change: a name tells the content, so that whoever finds it need not look.
//!
//! A file is written under a name of its own and given the right one when it is whole, unless somebody else was faster: what
//! is there stays as it is, with its time, by which others may know it again. What died over an upload leaves a file that
//! nobody takes for anything; it is removed by whoever comes a day later ([`Place::remove_parts`]).
//!
//! This module must not know what the files are.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path as LocalPath, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use object_store::{Error, RenameOptions, RenameTargetMode};

use super::{Place, Scheme, StorageError};

/// How much is sent at once.
const PART: usize = 8 * 1024 * 1024;
/// How the name begins under which a file is written.
const BEGINNING: &str = ".part-";

/// What came of putting a file somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was there already, or somebody else put it there meanwhile.
    There,
    /// It was uploaded.
    Uploaded,
}

/// Whether a name is one under which a file is written: by this program, or with what a store's own writer puts around it.
fn is_part(name: &str) -> bool {
    let Some(rest) = name.trim_start_matches('.').strip_prefix("part-") else { return false };
    let unique = rest.split('-').next().unwrap_or_default();
    name.starts_with('.') && unique.len() == 32 && unique.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Place {
    /// Puts a file of this machine, from its beginning, here, unless one of the same size is. Whoever looks sees all of it or
    /// nothing; of two at once, one is there in the end. Everybody may read it, as far as the folders that lead to it let him.
    ///
    /// # Errors
    /// [`StorageError`]; then nothing is here that was not before.
    pub async fn put_once(&self, mut file: File) -> Result<Put, StorageError> {
        let size = file.metadata()?.len();
        file.rewind()?;
        if self.size().await? == Some(size) {
            return Ok(Put::There);
        }
        if self.scheme == Scheme::S3 {
            // There a file has its name from the moment on at which it is whole, and not before.
            self.upload(file).await?;
            return Ok(Put::Uploaded);
        }
        self.make_folder().await?;
        let part = self.part()?;
        let put = match part.upload(file).await {
            Ok(()) => self.name_part(&part, size).await,
            Err(error) => Err(error),
        };
        if !matches!(put, Ok(Put::Uploaded)) {
            for removed in [part.remove().await, part.remove_remains().await] {
                if let Err(error) = removed {
                    tracing::debug!(%error, "what was uploaded for nothing could not be removed");
                }
            }
        }
        put
    }

    /// The place beside this one under which it is written.
    fn part(&self) -> Result<Self, StorageError> {
        let name = self.path.filename().unwrap_or_default();
        self.sibling(&format!("{BEGINNING}{}-{name}", uuid::Uuid::new_v4().simple()))
    }

    async fn upload(&self, mut file: File) -> Result<(), StorageError> {
        let mut writing = self.begin().await?;
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = Vec::with_capacity(PART);
                file.by_ref().take(PART as u64).read_to_end(&mut piece)?;
                io::Result::Ok((file, piece))
            });
            let written = match read.await.map_err(io::Error::other).and_then(|read| read) {
                Ok((_, piece)) if piece.is_empty() => writing.finish().await.map(|()| None),
                Ok((rest, piece)) => writing.part(Bytes::from(piece)).await.map(|()| Some(rest)),
                Err(error) => Err(error.into()),
            };
            match written {
                Ok(Some(rest)) => file = rest,
                Ok(None) => return Ok(()),
                Err(error) => {
                    writing.abandon().await;
                    return Err(error);
                }
            }
        }
    }

    /// Gives what was uploaded as `part` its name, unless a file of its size has that by now.
    async fn name_part(&self, part: &Self, size: u64) -> Result<Put, StorageError> {
        let come = part.size().await?;
        if come != Some(size) {
            let reason = format!("{} of {size} bytes came", come.unwrap_or(0));
            return Err(StorageError::Failed { url: self.url.clone(), reason });
        }
        part.open_to_all().await?;
        for mode in [RenameTargetMode::Create, RenameTargetMode::Overwrite] {
            let options = RenameOptions::new().with_target_mode(mode);
            let renamed =
                tokio::time::timeout(super::STEP, self.store.rename_opts(&part.path, &self.path, options));
            match renamed.await.map_err(|_| self.stalled())? {
                Ok(()) => return Ok(Put::Uploaded),
                Err(Error::AlreadyExists { .. }) => {
                    if self.size().await? == Some(size) {
                        return Ok(Put::There);
                    }
                    tracing::warn!(place = self.url, "a file that is not what its name says is replaced");
                }
                Err(error) => return Err(StorageError::of(&self.url, &error)),
            }
        }
        let reason = "it changes while it is looked at".to_owned();
        Err(StorageError::Failed { url: self.url.clone(), reason })
    }

    /// Removes what uploads into this folder left that died more than `age` ago; gives how many files that were. Stores
    /// where nothing can be left are not asked.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn remove_parts(&self, age: Duration) -> Result<usize, StorageError> {
        match self.scheme {
            Scheme::Local => {
                let folder = PathBuf::from(format!("/{}", self.path));
                let removing = tokio::task::spawn_blocking(move || remove_local_parts(&folder, age));
                Ok(removing.await.map_err(io::Error::other)??)
            }
            Scheme::Hdfs => {
                let listed = self.step(self.store.list_with_delimiter(Some(&self.path))).await?;
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let mut removed = 0;
                for object in listed.objects {
                    let written = u64::try_from(object.last_modified.timestamp()).unwrap_or_default();
                    let name = object.location.filename().unwrap_or_default();
                    if is_part(name) && now.saturating_sub(Duration::from_secs(written)) > age {
                        Self { path: object.location.clone(), ..self.clone() }.remove().await?;
                        removed += 1;
                    }
                }
                Ok(removed)
            }
            Scheme::S3 => Ok(0),
        }
    }

    /// Makes the folder that this place is in, and those that lead to it, so that others can go through those that are new.
    async fn make_folder(&self) -> Result<(), StorageError> {
        #[cfg(feature = "hdfs")]
        if let Some(client) = &self.hdfs {
            let path = super::hdfs::absolute(&self.path);
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
            return self.step(super::hdfs::make_folder(client, &folder)).await;
        }
        // The others make what is missing by themselves.
        Ok(())
    }

    /// Lets everybody read the file, as far as the folders that lead to it let him.
    async fn open_to_all(&self) -> Result<(), StorageError> {
        if self.scheme == Scheme::Local {
            use std::os::unix::fs::PermissionsExt;
            let path = PathBuf::from(format!("/{}", self.path));
            let opened = tokio::task::spawn_blocking(move || {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
            });
            opened.await.map_err(io::Error::other)??;
        }
        #[cfg(feature = "hdfs")]
        if let Some(client) = &self.hdfs {
            let path = super::hdfs::absolute(&self.path);
            self.step(super::hdfs::open_to_all(client, &path)).await?;
        }
        Ok(())
    }

    /// What keeps others than the owner from reading this file on HDFS, by its plain rights: the file itself, or the first
    /// folder that leads to it; `None` when nothing does, and where that is not told by rights like these.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn closed_to_others(&self) -> Result<Option<String>, StorageError> {
        #[cfg(feature = "hdfs")]
        if let Some(client) = &self.hdfs {
            let path = super::hdfs::absolute(&self.path);
            return self.step(super::hdfs::closed_to_others(client, &path)).await;
        }
        Ok(None)
    }
}

/// Removes what died uploads left in a folder of this machine.
fn remove_local_parts(folder: &LocalPath, age: Duration) -> io::Result<usize> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let is_old = |entry: &std::fs::DirEntry| {
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            written.is_ok_and(|written| written.elapsed().is_ok_and(|elapsed| elapsed > age))
        };
        if entry.file_name().to_str().is_some_and(is_part) && is_old(&entry) {
            std::fs::remove_file(entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Storage;

    fn place(folder: &tempfile::TempDir, name: &str) -> Place {
        Storage::default().place(&format!("file://{}/{name}", folder.path().display())).unwrap()
    }

    fn names(folder: &tempfile::TempDir, below: &str) -> Vec<String> {
        let entries = std::fs::read_dir(folder.path().join(below)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_file_is_put_once_however_many_bring_it_and_nothing_else_is_left() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let from = own.path().join("x");
        std::fs::write(&from, vec![7; PART + 3]).unwrap();
        std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o600)).unwrap();
        let place = place(&folder, "deep/x.zip");
        let all =
            futures_util::future::join_all((0..4).map(|_| place.put_once(File::open(&from).unwrap()))).await;
        let uploaded = all.iter().filter(|put| matches!(put, Ok(Put::Uploaded))).count();
        assert!(all.iter().all(Result::is_ok) && uploaded == 1, "{all:?}");
        assert_eq!(names(&folder, "deep"), ["x.zip"]);
        let there = folder.path().join("deep/x.zip");
        assert_eq!(std::fs::read(&there).unwrap(), vec![7; PART + 3]);
        assert_eq!(std::fs::metadata(&there).unwrap().permissions().mode() & 0o777, 0o644);
        let time = std::fs::metadata(&there).unwrap().modified().unwrap();
        assert_eq!(place.put_once(File::open(&from).unwrap()).await.unwrap(), Put::There);
        assert_eq!(std::fs::metadata(&there).unwrap().modified().unwrap(), time);
    }

    #[tokio::test]
    async fn a_file_that_is_not_what_its_name_says_is_replaced() {
        let (folder, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let from = own.path().join("x");
        std::fs::write(&from, "whole").unwrap();
        std::fs::write(folder.path().join("x.zip"), "wh").unwrap();
        assert_eq!(
            place(&folder, "x.zip").put_once(File::open(&from).unwrap()).await.unwrap(),
            Put::Uploaded
        );
        assert_eq!(std::fs::read_to_string(folder.path().join("x.zip")).unwrap(), "whole");
        assert_eq!(names(&folder, ""), ["x.zip"]);
    }

    #[tokio::test]
    async fn an_upload_that_fails_leaves_nothing() {
        let (folder, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let from = own.path().join("x");
        std::fs::write(&from, "whole").unwrap();
        std::fs::create_dir_all(folder.path().join("x.zip/in/the/way")).unwrap();
        place(&folder, "x.zip").put_once(File::open(&from).unwrap()).await.unwrap_err();
        assert_eq!(names(&folder, ""), ["x.zip"]);
    }

    #[tokio::test]
    async fn what_died_long_ago_is_removed_and_what_may_be_under_way_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let unique = "0".repeat(32);
        let (old, new) = (format!(".part-{unique}-x.zip#1"), format!(".part-{unique}-y.zip"));
        for name in [&old, &new, "x.zip", ".part-of-mine"] {
            let file = File::create(folder.path().join(name)).unwrap();
            if *name != new {
                file.set_modified(SystemTime::now() - Duration::from_secs(90_000)).unwrap();
            }
        }
        let place = place(&folder, "x").sibling("").unwrap();
        assert_eq!(place.remove_parts(Duration::from_secs(86_400)).await.unwrap(), 1);
        assert_eq!(names(&folder, ""), [new, ".part-of-mine".to_owned(), "x.zip".to_owned()]);
        assert!(is_part(&format!("..part-{unique}-x.zip.tmp.1")));
    }
}
