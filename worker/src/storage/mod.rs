//! Where files of jobs lie outside of the worker: local folders, HDFS, and S3 with all that speaks its protocol.
//!
//! A [`Storage`] turns a URL of a job into a [`Place`], which can be read, written and looked at alike wherever it is.
//! Behind it is the trait of the crate `object_store`; nothing is connected, nor any configuration read, before a place
//! is used, and nothing is left of it when the place is dropped.
//!
//! Credentials are the worker's own (its environment, or its machine's role): they never come from a job, and never reach
//! a model. This module must not know what a file is for.

#[cfg(feature = "hdfs")]
mod hdfs;
mod look;
pub mod once;
#[cfg(feature = "s3")]
mod s3;
mod url;

use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt};

use crate::config::Settings;

pub use look::{Kind, PATIENCE, Spot, Spots};
pub use url::{Location, Scheme, local_path};

/// How long one step may take: a small file, one part of a large one, the next piece of what is read.
const STEP: Duration = Duration::from_secs(120);
/// The most of an error's text that is shown, in characters.
const LONGEST_ERROR: usize = 400;

/// A place that cannot be used, or what went wrong there. The texts begin with the place.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The text is the name of no place that this worker knows.
    #[error("{url} {reason}")]
    NoPlace {
        /// What was given.
        url: String,
        /// The end of the sentence.
        reason: String,
    },
    /// There is nothing.
    #[error("{url} is not there")]
    NotThere {
        /// The place.
        url: String,
    },
    /// The path leads through a file, so that nothing can be there.
    #[error("{url} cannot be there: {reason}")]
    NoFolder {
        /// The place.
        url: String,
        /// Which file.
        reason: String,
    },
    /// It has more bytes than may be taken.
    #[error("{url} has more than {most} bytes")]
    TooLarge {
        /// The place.
        url: String,
        /// The bound.
        most: u64,
    },
    /// The worker may not, or must not, do this there.
    #[error("{url}: {reason}")]
    Refused {
        /// The place.
        url: String,
        /// What the store said.
        reason: String,
    },
    /// The store could not be reached or failed; it may do better later.
    #[error("{url}: {reason}")]
    Failed {
        /// The place.
        url: String,
        /// What the store said.
        reason: String,
    },
    /// The file on this machine's side failed.
    #[error("a file of this machine: {0}")]
    Local(#[from] io::Error),
}

impl StorageError {
    /// Whether the same may go better if it is only tried again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Local(_))
    }

    fn of(url: &str, error: &Error) -> Self {
        #[cfg(feature = "hdfs")]
        if let Some(meaning) = hdfs::meaning(error) {
            return Self::meant(url, meaning);
        }
        let url = url.to_owned();
        let reason = one_line(&error.to_string());
        match error {
            Error::NotFound { .. } => Self::NotThere { url },
            Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::UnknownConfigurationKey { .. } => Self::Refused { url, reason },
            _ => Self::Failed { url, reason },
        }
    }

    #[cfg(feature = "hdfs")]
    fn of_hdfs(url: &str, error: &hdfs_native::HdfsError) -> Self {
        Self::meant(url, hdfs::meaning_of(error))
    }

    #[cfg(feature = "hdfs")]
    fn meant(url: &str, meaning: hdfs::Meaning) -> Self {
        let url = url.to_owned();
        match meaning {
            hdfs::Meaning::NoFolder(reason) => Self::NoFolder { url, reason: one_line(&reason) },
            hdfs::Meaning::Refused(reason) => Self::Refused { url, reason: one_line(&reason) },
            hdfs::Meaning::Failed(reason) => Self::Failed { url, reason: one_line(&reason) },
        }
    }
}

/// The text of an error as one line that can be read: stores like to give whole documents.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST_ERROR) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// As whom a file system is asked that knows users. S3 and this machine's own know the worker alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Actor {
    /// The worker's own user.
    #[default]
    Worker,
    /// Somebody for whom the worker's user may act.
    User(String),
    /// Somebody whose login lies on this machine.
    Principal {
        /// As `name@REALM`.
        principal: String,
        /// The file.
        keytab: PathBuf,
    },
}

impl Actor {
    /// The name of the user that a file system knows; `None` for the worker's own.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Worker => None,
            Self::User(user) => Some(user),
            Self::Principal { principal, .. } => principal.split(['/', '@']).next(),
        }
    }
}

/// What is known of places from the settings and the worker's environment.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Where S3 is, when it is not Amazon's own.
    s3_endpoint: Option<String>,
    /// The folder of Hadoop's configuration: the same that a model's Spark gets.
    #[cfg_attr(
        not(feature = "hdfs"),
        expect(dead_code, reason = "there is nothing that it would configure")
    )]
    hadoop: Option<PathBuf>,
    /// As whom HDFS is asked.
    #[cfg_attr(not(feature = "hdfs"), expect(dead_code, reason = "there is nobody to ask"))]
    actor: Actor,
}

impl Storage {
    /// The same, asked as the user of a job: what that one may not see or remove, the worker does not see or remove for it.
    #[must_use]
    pub fn acting_as(self, actor: Actor) -> Self {
        Self { actor, ..self }
    }

    /// What the settings say. Touches nothing.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let named = settings.spark.environment.get("HADOOP_CONF_DIR").map(|value| value.expose().to_owned());
        let endpoint = settings.storage.s3_endpoint.clone();
        let endpoint = endpoint.map(|endpoint| endpoint.trim_end_matches('/').to_owned());
        Self {
            s3_endpoint: endpoint.or_else(endpoint_of_environment),
            hadoop: named.or_else(|| variable("HADOOP_CONF_DIR")).map(PathBuf::from),
            actor: Actor::Worker,
        }
    }

    /// What the environment says of S3, and Hadoop's configuration in `folder` of all else. Touches nothing.
    #[must_use]
    pub fn of_hadoop(folder: &std::path::Path) -> Self {
        Self { s3_endpoint: endpoint_of_environment(), hadoop: Some(folder.to_owned()), actor: Actor::Worker }
    }

    /// The place that a `fileUrl` names: `/x` (in the file system that Hadoop's configuration names, else on this
    /// machine), `file:/x`, `hdfs://host/x`, `hdfs:///x`, `s3a://bucket/x` or `s3://bucket/x`, and `http(s)://` of the S3
    /// endpoint. Reads Hadoop's configuration; connects to nothing.
    ///
    /// # Errors
    /// [`StorageError::NoPlace`] with what is wrong with it.
    pub fn place(&self, url: &str) -> Result<Place, StorageError> {
        let refused = |reason: String| StorageError::NoPlace { url: url.to_owned(), reason };
        let location = self.location(url).map_err(refused)?;
        let path =
            Path::parse(location.path.trim_matches('/')).map_err(|error| refused(error.to_string()))?;
        #[cfg(feature = "hdfs")]
        let mut client = None;
        let store: Arc<dyn ObjectStore> = match location.scheme {
            Scheme::Local => Arc::new(LocalFileSystem::new().with_fsync(true)),
            #[cfg(feature = "hdfs")]
            Scheme::Hdfs => {
                let opened =
                    hdfs::open(&location.authority, self.hadoop.as_deref(), &self.actor).map_err(refused)?;
                client = Some(opened.clone());
                hdfs::store(opened)
            }
            #[cfg(not(feature = "hdfs"))]
            Scheme::Hdfs => {
                return Err(refused("is on HDFS, which this program was built without".to_owned()));
            }
            #[cfg(feature = "s3")]
            Scheme::S3 => s3::open(&location.authority, self.s3_endpoint.as_deref()).map_err(refused)?,
            #[cfg(not(feature = "s3"))]
            Scheme::S3 => return Err(refused("is on S3, which this program was built without".to_owned())),
        };
        let url = url.trim_end_matches('/').to_owned();
        Ok(Place {
            store,
            #[cfg(feature = "hdfs")]
            hdfs: client,
            scheme: location.scheme,
            path,
            url,
        })
    }

    /// The same URL with its file system, where that is not this machine's and not named in it.
    ///
    /// # Errors
    /// [`StorageError::NoPlace`] when the configuration that would name it cannot be read.
    pub fn whole_url(&self, url: &str) -> Result<String, StorageError> {
        let default = match url.starts_with('/') {
            true => self
                .default_file_system()
                .map_err(|reason| StorageError::NoPlace { url: url.to_owned(), reason })?,
            false => None,
        };
        Ok(match default {
            Some(default) => format!("{}{url}", default.trim_end_matches('/')),
            None => url.to_owned(),
        })
    }

    fn location(&self, url: &str) -> Result<Location, String> {
        let location = Location::read(url, self.s3_endpoint.as_deref())?;
        if url.starts_with('/')
            && let Some(default) = self.default_file_system()?
        {
            // A bare path is where the cluster's own programs would look for it.
            return Location::read(&format!("{}{url}", default.trim_end_matches('/')), None);
        }
        Ok(location)
    }

    /// `fs.defaultFS` of Hadoop's configuration, when there is one and it is not this machine's.
    ///
    /// # Errors
    /// What is wrong with the configuration, as the end of a sentence.
    #[cfg(feature = "hdfs")]
    pub fn default_file_system(&self) -> Result<Option<String>, String> {
        match &self.hadoop {
            Some(folder) => hdfs::default_file_system(folder),
            None => Ok(None),
        }
    }

    /// None: this program was built without HDFS.
    ///
    /// # Errors
    /// None.
    #[cfg(not(feature = "hdfs"))]
    pub fn default_file_system(&self) -> Result<Option<String>, String> {
        Ok(None)
    }

    /// How many bytes a file has, or all files of a folder together; `None` when nothing is there, or too much to count.
    ///
    /// # Errors
    /// [`StorageError`], but not that nothing is there.
    pub async fn size(&self, url: &str) -> Result<Option<u64>, StorageError> {
        const MOST: usize = 1000;
        let place = self.place(url)?;
        if let Some(size) = place.size().await? {
            return Ok(Some(size));
        }
        let files = place.files(MOST + 1).await?;
        let is_countable = !files.is_empty() && files.len() <= MOST;
        Ok(is_countable.then(|| files.iter().map(|(_, size)| size).sum()))
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where S3 is, as its own programs would be told.
fn endpoint_of_environment() -> Option<String> {
    let endpoints = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let endpoint = endpoints.iter().find_map(|name| variable(name))?;
    Some(endpoint.trim_end_matches('/').to_owned())
}

/// One file or folder, somewhere.
#[derive(Debug, Clone)]
pub struct Place {
    store: Arc<dyn ObjectStore>,
    /// For what only HDFS has, where it is there.
    #[cfg(feature = "hdfs")]
    hdfs: Option<hdfs_native::Client>,
    scheme: Scheme,
    path: Path,
    url: String,
}

impl Place {
    /// Its URL, in the form in which it was named.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What kind of place it is.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// What lies below this place under a plain relative path.
    ///
    /// # Errors
    /// [`StorageError::Refused`] when the path cannot be one there.
    pub fn child(&self, relative: &str) -> Result<Self, StorageError> {
        let url = format!("{}/{relative}", self.url);
        let refused = |reason: String| StorageError::Refused { url: url.clone(), reason };
        let below = Path::parse(relative).map_err(|error| refused(error.to_string()))?;
        let path =
            self.path.parts().chain(below.parts()).map(|part| part.as_ref().to_owned()).collect::<Vec<_>>();
        let path = Path::parse(path.join("/")).map_err(|error| refused(error.to_string()))?;
        Ok(Self { path, url, ..self.clone() })
    }

    /// What lies beside this place under another name; with an empty name, the folder.
    ///
    /// # Errors
    /// [`StorageError::Refused`] when the name cannot be one there.
    fn sibling(&self, name: &str) -> Result<Self, StorageError> {
        let parts: Vec<_> = self.path.parts().map(|part| part.as_ref().to_owned()).collect();
        let folder = parts.split_last().map_or("".into(), |(_, folder)| folder.join("/"));
        let path = Path::parse(format!("{folder}/{name}").trim_matches('/'))
            .map_err(|error| StorageError::of(&self.url, &error.into()))?;
        let folder = self.url.rsplit_once('/').map_or("", |(folder, _)| folder);
        let url = format!("{folder}/{name}").trim_end_matches('/').to_owned();
        Ok(Self { path, url, ..self.clone() })
    }

    /// Lets another user write into this folder, which is made, and into all that will be in it; what that one makes there
    /// stays open to whom the folder belongs to. `theirs` is the same folder, asked as that user.
    ///
    /// # Errors
    /// [`StorageError::Refused`], also when the user cannot get there, or this is on no HDFS.
    #[cfg(feature = "hdfs")]
    pub async fn share_with(&self, user: &str, theirs: &Self) -> Result<(), StorageError> {
        let refused = |reason: String| StorageError::Refused { url: self.url.clone(), reason };
        let of = |place: &Self| place.hdfs.clone().ok_or_else(|| refused("is on no HDFS".to_owned()));
        let (ours, theirs) = (of(self)?, of(theirs)?);
        let path = hdfs::absolute(&self.path);
        self.step(hdfs::share_folder(&ours, &path, user)).await?;
        // A group or an ACL may let the user through where the folders on the way are closed to others: HDFS knows.
        match self.step(hdfs::look_into(&theirs, &path)).await {
            Err(StorageError::Refused { reason, .. }) => Err(refused(format!(
                "{user} cannot get there ({reason}); let that user through the folders on the way (chmod o+x, or an ACL), or \
                 name another folder"
            ))),
            looked => looked,
        }
    }

    /// None: this program was built without HDFS.
    ///
    /// # Errors
    /// [`StorageError::Refused`].
    #[cfg(not(feature = "hdfs"))]
    #[expect(clippy::unused_async, reason = "as the one that asks")]
    pub async fn share_with(&self, _: &str, _: &Self) -> Result<(), StorageError> {
        Err(StorageError::Refused { url: self.url.clone(), reason: "is on no HDFS".to_owned() })
    }

    /// How many bytes the file has; `None` when there is none.
    ///
    /// # Errors
    /// [`StorageError`], but not that it is not there.
    pub async fn size(&self) -> Result<Option<u64>, StorageError> {
        match self.step(self.store.head(&self.path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(StorageError::NotThere { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The files below this place, `most` of them at most: each with its path from here and its size.
    ///
    /// # Errors
    /// [`StorageError`], but not that nothing is there.
    pub async fn files(&self, most: usize) -> Result<Vec<(String, u64)>, StorageError> {
        let mut listing = self.store.list(Some(&self.path));
        let mut files = Vec::new();
        while files.len() < most {
            let next = tokio::time::timeout(STEP, listing.next()).await.map_err(|_| self.stalled())?;
            match next {
                None => break,
                Some(Ok(meta)) => {
                    if let Some(parts) = meta.location.prefix_match(&self.path) {
                        let parts: Vec<_> = parts.map(|part| part.as_ref().to_owned()).collect();
                        files.push((parts.join("/"), meta.size));
                    }
                }
                Some(Err(Error::NotFound { .. })) => break,
                Some(Err(error)) => return Err(StorageError::of(&self.url, &error)),
            }
        }
        Ok(files)
    }

    /// The whole content of a small file; `None` when it is not there.
    ///
    /// # Errors
    /// [`StorageError::TooLarge`] above `most` bytes.
    pub async fn read(&self, most: u64) -> Result<Option<Bytes>, StorageError> {
        let found = match self.step(self.store.get(&self.path)).await {
            Ok(found) => found,
            Err(StorageError::NotThere { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if found.meta.size > most {
            return Err(StorageError::TooLarge { url: self.url.clone(), most });
        }
        self.step(found.bytes()).await.map(Some)
    }

    /// A part of the file, which is a small one, from byte to byte.
    ///
    /// # Errors
    /// [`StorageError`], also when the file is not that long.
    pub async fn read_part(&self, part: Range<u64>) -> Result<Bytes, StorageError> {
        let wanted = part.end.saturating_sub(part.start);
        let bytes = self.step(self.store.get_range(&self.path, part)).await?;
        if bytes.len() as u64 != wanted {
            let reason = format!("{} of {wanted} bytes came", bytes.len());
            return Err(StorageError::Failed { url: self.url.clone(), reason });
        }
        Ok(bytes)
    }

    /// A part of the file, of whatever size, in pieces as they come.
    ///
    /// # Errors
    /// [`StorageError`]; the stream has them, too, and ends with one, also when the file is not that long.
    pub async fn pieces(
        &self,
        part: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, StorageError>> + Send + 'static, StorageError> {
        let wanted = part.end.saturating_sub(part.start);
        let options = GetOptions { range: Some(part.into()), ..GetOptions::default() };
        let found = self.step(self.store.get_opts(&self.path, options)).await?;
        let left = (self.clone(), found.into_stream(), Some(wanted));
        Ok(futures_util::stream::unfold(left, move |(place, mut stream, left)| async move {
            let left = left?;
            let fail = |reason| StorageError::Failed { url: place.url.clone(), reason };
            let next = match tokio::time::timeout(STEP, stream.next()).await {
                Err(_) => Err(place.stalled()),
                Ok(None) if left == 0 => return None,
                Ok(None) => Err(fail(format!("{left} of {wanted} bytes did not come"))),
                Ok(Some(Err(error))) => Err(StorageError::of(&place.url, &error)),
                Ok(Some(Ok(piece))) => match left.checked_sub(piece.len() as u64) {
                    Some(left) => return Some((Ok(piece), (place, stream, Some(left)))),
                    None => Err(fail(format!("more than {wanted} bytes came"))),
                },
            };
            Some((next, (place, stream, None)))
        }))
    }

    /// Copies the file into `to`; gives its size. Holds only a piece of it in memory.
    ///
    /// # Errors
    /// [`StorageError`]; what was written into `to` until then is of no use.
    pub async fn download(&self, mut to: File, most: u64) -> Result<u64, StorageError> {
        let found = self.step(self.store.get(&self.path)).await?;
        let size = found.meta.size;
        if size > most {
            return Err(StorageError::TooLarge { url: self.url.clone(), most });
        }
        if let GetResultPayload::File(mut from, _) = found.payload {
            let copied = tokio::task::spawn_blocking(move || io::copy(&mut from, &mut to));
            return Ok(copied.await.map_err(io::Error::other)??);
        }
        let mut stream = found.into_stream();
        let mut came = 0;
        while let Some(piece) = tokio::time::timeout(STEP, stream.next()).await.map_err(|_| self.stalled())? {
            let piece = piece.map_err(|error| StorageError::of(&self.url, &error))?;
            came += piece.len() as u64;
            if came > most {
                return Err(StorageError::TooLarge { url: self.url.clone(), most });
            }
            let written = tokio::task::spawn_blocking(move || to.write_all(&piece).map(|()| to));
            to = written.await.map_err(io::Error::other)??;
        }
        if came != size {
            let reason = format!("{came} of {size} bytes came");
            return Err(StorageError::Failed { url: self.url.clone(), reason });
        }
        Ok(came)
    }

    /// Writes a small file, which is there as a whole or not at all; one that is there is replaced.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn write(&self, content: Bytes) -> Result<(), StorageError> {
        let written = self.step(self.store.put(&self.path, content.into())).await.map(drop);
        if let Err(StorageError::Refused { .. }) = written {
            // HDFS may have taken the content and refused the name.
            if let Err(error) = self.remove_remains().await {
                tracing::debug!(%error, "what was written of a file could not be removed");
            }
        }
        written
    }

    /// Begins to write a large file, which is there once it is finished, and not before.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn begin(&self) -> Result<Writing<'_>, StorageError> {
        let upload = self.step(self.store.put_multipart(&self.path)).await?;
        Ok(Writing { place: self, upload })
    }

    /// Removes the file, if it is there.
    ///
    /// # Errors
    /// [`StorageError`], but not that it is not there.
    pub async fn remove(&self) -> Result<(), StorageError> {
        match self.step(self.store.delete(&self.path)).await {
            Ok(()) | Err(StorageError::NotThere { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes what a worker that died left of this file while it wrote it. Stores where nothing can be left are not asked.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn remove_remains(&self) -> Result<(), StorageError> {
        let Some(name) = self.path.filename() else { return Ok(()) };
        match self.scheme {
            // The names that the stores' own writers begin with.
            Scheme::Local => {
                let remains = PathBuf::from(format!("/{}#1", self.path));
                let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(remains));
                match removed.await.map_err(io::Error::other)? {
                    Err(error)
                        if !matches!(
                            error.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                        ) =>
                    {
                        Err(error.into())
                    }
                    _ => Ok(()),
                }
            }
            Scheme::Hdfs => self.sibling(&format!(".{name}.tmp.1"))?.remove().await,
            Scheme::S3 => Ok(()),
        }
    }

    async fn step<T>(&self, step: impl Future<Output = object_store::Result<T>>) -> Result<T, StorageError> {
        match tokio::time::timeout(STEP, step).await {
            Ok(result) => result.map_err(|error| StorageError::of(&self.url, &error)),
            Err(_) => Err(self.stalled()),
        }
    }

    fn stalled(&self) -> StorageError {
        let reason = format!("no answer within {} s", STEP.as_secs());
        StorageError::Failed { url: self.url.clone(), reason }
    }
}

/// A large file that is being written.
#[derive(Debug)]
pub struct Writing<'a> {
    place: &'a Place,
    upload: Box<dyn MultipartUpload>,
}

impl Writing<'_> {
    /// Writes the next part. All but the last have to be of one size, at least 5 MiB.
    ///
    /// # Errors
    /// [`StorageError`]; then [`abandon`](Self::abandon) it.
    pub async fn part(&mut self, part: Bytes) -> Result<(), StorageError> {
        let writing = self.upload.put_part(part.into());
        self.place.step(writing).await
    }

    /// Makes the file be there.
    ///
    /// # Errors
    /// [`StorageError`]; then [`abandon`](Self::abandon) it.
    pub async fn finish(&mut self) -> Result<(), StorageError> {
        self.place.step(self.upload.complete()).await.map(drop)
    }

    /// Removes what was written, as far as the store lets it.
    pub async fn abandon(mut self) {
        let aborted = self.place.step(self.upload.abort()).await.map(drop);
        // One that was finished and then not given its name cannot be aborted any more.
        for removed in [aborted, self.place.remove_remains().await] {
            if let Err(error) = removed {
                tracing::debug!(%error, "what was written of a file could not be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_local_place_is_written_read_listed_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = Storage::default().place(&folder.path().display().to_string()).unwrap();
        for name in ["a/b c%20ü#x.txt", "a/plain"] {
            let place = root.child(name).unwrap();
            assert_eq!(place.size().await.unwrap(), None);
            place.write(Bytes::from_static(b"12345")).await.unwrap();
            assert_eq!(std::fs::read_to_string(folder.path().join(name)).unwrap(), "12345", "{name}");
            assert_eq!(place.size().await.unwrap(), Some(5));
        }
        let mut files = root.files(10).await.unwrap();
        files.sort();
        assert_eq!(files, [("a/b c%20ü#x.txt".to_owned(), 5), ("a/plain".to_owned(), 5)]);
        assert_eq!(Storage::default().size(root.url()).await.unwrap(), Some(10));
        let place = root.child("a/plain").unwrap();
        assert!(matches!(place.read(4).await, Err(StorageError::TooLarge { .. })));
        assert_eq!(place.read(5).await.unwrap().unwrap(), "12345");
        place.remove().await.unwrap();
        place.remove().await.unwrap();
        assert_eq!(place.read(5).await.unwrap(), None);
        assert_eq!(Storage::default().size("file:///nowhere/at/all").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_large_file_is_there_when_it_is_finished_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let root = Storage::default().place(&format!("file://{}", folder.path().display())).unwrap();
        let place = root.child("deep/large").unwrap();
        let mut writing = place.begin().await.unwrap();
        writing.part(Bytes::from(vec![1; 6 << 20])).await.unwrap();
        assert_eq!(place.size().await.unwrap(), None);
        writing.abandon().await;
        let mut writing = place.begin().await.unwrap();
        writing.part(Bytes::from(vec![1; 6 << 20])).await.unwrap();
        writing.part(Bytes::from_static(b"end")).await.unwrap();
        writing.finish().await.unwrap();
        assert_eq!(place.size().await.unwrap(), Some((6 << 20) + 3));
        assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
        let copy = folder.path().join("copy");
        assert_eq!(place.download(File::create(&copy).unwrap(), u64::MAX).await.unwrap(), (6 << 20) + 3);
        assert!(std::fs::read(copy).unwrap().ends_with(b"end"));
    }

    #[tokio::test]
    async fn a_part_of_a_file_comes_whole_or_with_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let place = Storage::default().place(&format!("file://{}/numbers", folder.path().display())).unwrap();
        assert!(matches!(place.read_part(0..1).await, Err(StorageError::NotThere { .. })));
        let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_be_bytes).collect();
        place.write(Bytes::from(content.clone())).await.unwrap();
        assert_eq!(place.read_part(5..9).await.unwrap(), &content[5..9]);
        assert!(place.read_part(1_199_999..1_200_001).await.is_err());
        let collect = async |part| {
            let mut pieces = Box::pin(place.pieces(part).await.unwrap());
            let mut all = Vec::new();
            while let Some(piece) = pieces.next().await {
                match piece {
                    Ok(piece) => all.extend_from_slice(&piece),
                    Err(error) => return Err((all.len(), error.to_string())),
                }
            }
            Ok(all)
        };
        assert_eq!(collect(7..1_100_000).await.unwrap(), &content[7..1_100_000]);
        let (came, error) = collect(1_199_990..1_200_001).await.unwrap_err();
        assert_eq!(came, 10);
        assert!(error.ends_with("1 of 11 bytes did not come"), "{error}");
    }

    #[test]
    fn an_error_is_told_in_one_line() {
        assert_eq!(one_line("a\n  <b>\tc"), "a <b> c");
        assert_eq!(one_line(&"ü".repeat(500)).chars().count(), LONGEST_ERROR + 1);
    }
}
