//! Uploads: every file that a training job leaves in `outputDir` becomes an external asset of its last event.
//!
//! Where they go says the job (`trainingOutput`), else the worker's settings; below that place each job has a folder of its
//! own. In it lies a manifest that names every file with its size and SHA-256. Before anything is uploaded, what an earlier
//! attempt left there and this one would not is removed, and then the manifest written; so whatever lies where it says has
//! the content that it says, and is not uploaded again. A file is there as a whole or not at all.
//!
//! Without a place the files stay in the attempt's directory, which is kept, and the event says where.
//!
//! This module must not know what kind of store a place is in, nor what is in the files.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use spark_runtime_protocol::asset::OUTPUT_FOLDER;
use spark_runtime_protocol::event::FailureClass;
use spark_runtime_protocol::job::{Job, JobId, JobType};
use spark_runtime_protocol::json::Fault;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::collect::host;
use super::stage::Staged;
use super::submit::{plain, stopped};
use super::{Completion, Context, Course, End, Stop, kept_directory};
use crate::clock::BootTime;
use crate::storage::{Actor, Place, Scheme, Storage, StorageError};

/// The file that says what lies beside it.
pub const MANIFEST: &str = "_spark_runtime_manifest.json";

/// A file is read and sent in parts of this size, in bytes, unless there would be too many.
const PART: u64 = 8 << 20;
/// The most parts that S3 takes, less some.
const MOST_PARTS: u64 = 9_000;
/// How much is held in memory at a time, in MiB, whatever is uploaded.
const MEMORY: u32 = 24;
/// How many files are on their way at once.
const AT_ONCE: usize = 4;
/// How often a file is tried, and how long to wait in between; what speaks to a store tries again by itself as well.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);
/// A larger manifest is none of ours: 10,000 files with the longest names have less.
const LARGEST_MANIFEST: u64 = 64 << 20;
/// With more files in its folder than this, it is not the job's own.
const MOST_THERE: usize = 50_000;
/// How many entries of any kind are looked at for each file that is allowed.
const ENTRIES_PER_FILE: usize = 10;

/// Where the files of a training job go.
#[derive(Debug)]
pub struct Target {
    /// The job's own folder there; `None` when nobody named a place.
    folder: Option<Place>,
}

/// A file of `outputDir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    /// Its path below the folder.
    path: String,
    size: u64,
    /// In hexadecimal digits.
    sha256: String,
}

/// What lies in a job's folder.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    version: u32,
    job_id: String,
    files: Vec<Found>,
}

/// Finds out where the files of a training job go, and that the worker may write there, before it is run; `None` for other
/// jobs.
///
/// # Errors
/// The attempt's end, when the place will not do.
pub async fn prepare(context: &Context, job: &Job) -> Result<Option<Target>, End> {
    if job.job_type() != JobType::Training {
        return Ok(None);
    }
    let own = job.training_output();
    let Some(url) = own.or(context.settings.training.upload_to.as_deref()) else {
        return Ok(Some(Target { folder: None }));
    };
    let unusable = |error: StorageError| match (&error, own) {
        (StorageError::NoPlace { .. }, Some(_)) => {
            End::Rejected(vec![Fault::new("/trainingOutput/fileUrl", error.to_string())])
        }
        _ => infrastructure(format!("the place for the files of outputDir will not do: {error}")),
    };
    // A place that the job names is its user's; that of the settings is the worker's.
    let actor = if own.is_some() { context.judge.actor_of(job) } else { Actor::Worker };
    let folder = Storage::of(&context.settings)
        .acting_as(actor)
        .place(url)
        .and_then(|place| place.child(&folder_of(job.id())))
        .map_err(unusable)?;
    let manifest = folder.child(MANIFEST).map_err(unusable)?;
    if manifest.size().await.map_err(unusable)?.is_none() {
        // That it can be written shows that the rest can: better now than after hours of training.
        write_manifest(&manifest, job.id(), &[]).await.map_err(unusable)?;
    }
    Ok(Some(Target { folder: Some(folder) }))
}

/// The name of a job's folder. HDFS takes no colons, and no job id has a tilde.
fn folder_of(id: &JobId) -> String {
    id.as_str().replace(':', "~")
}

/// Uploads what a training job that ran to its end left, and tells of it in its completion.
///
/// Anything that is not a completion is given back as it is.
pub async fn upload(
    context: &Context,
    job: &JobId,
    staged: &Staged,
    target: Target,
    stop: &Stop,
    course: &mut Course,
    end: End,
) -> End {
    let End::Completed(mut completion) = end else { return end };
    let root = staged.working_directory.join(OUTPUT_FOLDER);
    let most = context.settings.training.max_files;
    let stopping = stop.clone();
    let looked =
        tokio::task::spawn_blocking(move || look(&root, most, &|| stopping.reason().is_some())).await;
    let Look { files, complaints } = match looked {
        Ok(Ok(look)) => look,
        Ok(Err(LookError::Stopped)) => {
            return stop.reason().map_or_else(|| super::submit::broken("the upload was stopped"), stopped);
        }
        Ok(Err(error)) => {
            course.keep_directory = true;
            let message = format!("{error}{}", kept_words(context, staged));
            return End::Failed { failure: Box::new(plain(error.class(), message)), may_pass: false };
        }
        Err(error) => {
            return super::submit::broken(&format!("looking through outputDir was cut short: {error}"));
        }
    };
    // What could not be taken along must not be lost.
    course.keep_directory |= !complaints.is_empty();
    completion.complaints.extend(complaints);
    let Some(folder) = target.folder else {
        course.keep_directory |= !files.is_empty();
        return kept(context, staged, &files, completion);
    };
    let sending = Sending {
        folder: &folder,
        root: staged.working_directory.join(OUTPUT_FOLDER),
        memory: Semaphore::new(MEMORY as usize),
        lease_ends: context.lease_ends.as_ref(),
    };
    let mut stopping = stop.clone();
    let sent = tokio::select! {
        biased;
        reason = stopping.stronger(None) => return stopped(reason),
        sent = sending.all(job, &files) => sent,
    };
    match sent {
        Ok(()) => {
            completion.additional_assets = Some(files.iter().map(|file| asset(&folder, file)).collect());
            End::Completed(completion)
        }
        Err(SendError::LeaseOver) => End::Interrupted,
        Err(error) => {
            course.keep_directory = true;
            infrastructure(format!(
                "the files of outputDir could not be uploaded: {error}{}",
                kept_words(context, staged)
            ))
        }
    }
}

fn infrastructure(message: String) -> End {
    End::Failed { failure: Box::new(plain(FailureClass::Infrastructure, message)), may_pass: true }
}

/// The end of a sentence: where the files are to be found.
fn kept_words(context: &Context, staged: &Staged) -> String {
    kept_folder(context, staged)
        .map(|folder| format!("; the files are kept in {}:{}", host(), folder.display()))
        .unwrap_or_default()
}

/// Where `outputDir` will lie once the attempt's directory has been put where it is kept.
fn kept_folder(context: &Context, staged: &Staged) -> Option<PathBuf> {
    Some(kept_directory(context, &staged.directory)?.join("work").join(OUTPUT_FOLDER))
}

/// The end of a job whose files go nowhere.
fn kept(context: &Context, staged: &Staged, files: &[Found], mut completion: Box<Completion>) -> End {
    let folder = kept_folder(context, staged).unwrap_or_default();
    let assets = files.iter().map(|file| {
        let place = folder.join(&file.path).display().to_string();
        let mut asset = described(file, &format!("file://{place}"));
        asset["fileLocation"] = format!("{}:{place}", host()).into();
        asset
    });
    completion.additional_assets = Some(assets.collect());
    End::Completed(completion)
}

/// An uploaded file as an asset.
fn asset(folder: &Place, file: &Found) -> Value {
    let mut asset = described(file, &format!("{}/{}", folder.url(), file.path));
    let repository = match folder.scheme() {
        Scheme::Local => return asset,
        Scheme::Hdfs => "HDFS_REPOSITORY",
        Scheme::S3 => "S3_REPOSITORY",
    };
    asset["repositoryInfo"] = json!({"repositoryType": repository});
    asset
}

fn described(file: &Found, url: &str) -> Value {
    json!({
        "name": file.path,
        "assetType": "EXTERNAL_FILE",
        "fileUrl": url,
        "filename": file.path,
        "fileSize": file.size,
        "sha256": file.sha256,
    })
}

// ------------------------------------------------------------------------------------------------ what is there

/// What lies in `outputDir`.
#[derive(Debug, PartialEq, Eq)]
struct Look {
    /// In the order of their paths.
    files: Vec<Found>,
    /// A sentence for all that is no file that can be taken along.
    complaints: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(
        "the training function left more than {0} files in outputDir (training.max_files); pack them into an archive"
    )]
    TooMany(usize),
    #[error("{path} cannot be read: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("was stopped")]
    Stopped,
}

impl LookError {
    fn class(&self) -> FailureClass {
        match self {
            Self::TooMany(_) => FailureClass::Model,
            Self::Unreadable { .. } | Self::Stopped => FailureClass::Staging,
        }
    }
}

/// Finds every file below `root` with its size and digest. Blocks.
fn look(root: &Path, most: usize, stopped: &dyn Fn() -> bool) -> Result<Look, LookError> {
    let mut look = Look { files: Vec::new(), complaints: Vec::new() };
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| LookError::Unreadable { path, source }
    };
    match root.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => {
            look.complaints.push(format!("{OUTPUT_FOLDER} is no folder; nothing of it is taken along"));
            return Ok(look);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(look),
        Err(error) => return Err(unreadable(root)(error)),
    }
    // Links are followed to files in the folder itself alone.
    let inside = root.canonicalize().map_err(unreadable(root))?;
    let mut folders = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(unreadable(&folder))? {
            if stopped() {
                return Err(LookError::Stopped);
            }
            seen += 1;
            if seen > most.saturating_mul(ENTRIES_PER_FILE) {
                return Err(LookError::TooMany(most));
            }
            let place = entry.map_err(unreadable(&folder))?.path();
            let kind = place.symlink_metadata().map_err(unreadable(&place))?.file_type();
            if kind.is_dir() {
                folders.push(place);
                continue;
            }
            let shown = place.strip_prefix(root).unwrap_or(&place).display().to_string();
            let real = if kind.is_symlink() {
                place.canonicalize().ok().filter(|real| real.starts_with(&inside) && real.is_file())
            } else {
                kind.is_file().then(|| place.clone())
            };
            let name = place.strip_prefix(root).ok().and_then(Path::to_str);
            match (real, name) {
                (Some(real), Some(name)) if !name.chars().any(char::is_control) && name != MANIFEST => {
                    if look.files.len() == most {
                        return Err(LookError::TooMany(most));
                    }
                    let (size, sha256) = digest(&real, stopped).map_err(unreadable(&place))?;
                    look.files.push(Found { path: name.to_owned(), size, sha256 });
                }
                (None, _) => look.complaints.push(format!(
                    "{OUTPUT_FOLDER}/{shown} is no plain file, or a link that leads elsewhere, and is not taken along"
                )),
                (Some(_), _) => look
                    .complaints
                    .push(format!("{OUTPUT_FOLDER}/{shown:?} has a name that no store takes, and is not taken along")),
            }
        }
    }
    look.files.sort_by(|one, other| one.path.cmp(&other.path));
    look.complaints.sort();
    // Of a thousand of them nobody reads all.
    if look.complaints.len() > 20 {
        let left_out = look.complaints.len() - 20;
        look.complaints.truncate(20);
        look.complaints
            .push(format!("... and {left_out} more entries of {OUTPUT_FOLDER} are not taken along"));
    }
    Ok(look)
}

/// Opens a file as it was found: no link in its place, and no pipe that would be waited for.
fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no plain file")) }
}

fn digest(path: &Path, stopped: &dyn Fn() -> bool) -> io::Result<(u64, String)> {
    let mut file = open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        if stopped() {
            return Err(io::Error::other("it was stopped"));
        }
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, hexadecimal(hasher)));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

fn hexadecimal(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

// ------------------------------------------------------------------------------------------------ sending it

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{0} changed while it was read")]
    Changed(String),
    #[error("{0} has another size there than here")]
    Differs(String),
    #[error("the manifest in {0} is broken; remove it, and the files that an earlier attempt has left there")]
    Manifest(String),
    #[error("{0} has thousands of files that are not the job's; name another place")]
    Crowded(String),
    #[error("the worker's lease is over")]
    LeaseOver,
}

/// One upload.
struct Sending<'a> {
    folder: &'a Place,
    root: PathBuf,
    memory: Semaphore,
    lease_ends: Option<&'a watch::Receiver<Option<BootTime>>>,
}

impl Sending<'_> {
    async fn all(&self, job: &JobId, files: &[Found]) -> Result<(), SendError> {
        let manifest = self.folder.child(MANIFEST)?;
        let earlier = read_manifest(&manifest, self.folder).await?;
        let told: HashMap<&str, &Found> =
            earlier.files.iter().map(|file| (file.path.as_str(), file)).collect();
        let now: HashMap<&str, &Found> = files.iter().map(|file| (file.path.as_str(), file)).collect();
        let there = self.folder.files(MOST_THERE).await?;
        if there.len() == MOST_THERE {
            return Err(SendError::Crowded(self.folder.url().to_owned()));
        }
        let mut done = HashSet::new();
        for (path, size) in there {
            match (told.get(path.as_str()), now.get(path.as_str())) {
                // What lies there is what the manifest said when it was written.
                (Some(told), Some(now)) if told == now && size == now.size => {
                    done.insert(path);
                }
                // An earlier attempt's, or in the place of one of ours and nobody has written down what it is.
                (Some(_), _) | (None, Some(_)) => {
                    self.still_ours()?;
                    self.folder.child(&path)?.remove().await?;
                }
                // Somebody else's.
                (None, None) => {}
            }
        }
        for file in &earlier.files {
            self.folder.child(&file.path)?.remove_remains().await?;
        }
        if earlier.files != files {
            self.still_ours()?;
            write_manifest(&manifest, job, files).await?;
        }
        let missing: Vec<Found> = files.iter().filter(|file| !done.contains(&file.path)).cloned().collect();
        let mut sending =
            futures_util::stream::iter(missing).map(|file| self.file(file)).buffer_unordered(AT_ONCE);
        while let Some(sent) = sending.next().await {
            sent?;
        }
        Ok(())
    }

    /// Sends one file.
    async fn file(&self, file: Found) -> Result<(), SendError> {
        let file = &file;
        let place = self.folder.child(&file.path)?;
        let mut tries = 1;
        loop {
            match self.send(file, &place).await {
                Err(SendError::Storage(error)) if error.may_pass() && tries < TRIES => {
                    tracing::warn!(%error, path = file.path, tries, "a file could not be uploaded; trying again");
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn send(&self, file: &Found, place: &Place) -> Result<(), SendError> {
        let path = self.root.join(&file.path);
        // It was a link to a file of the folder, or none at all.
        let opened = tokio::task::spawn_blocking(move || open(&path.canonicalize()?));
        let mut reading = Reading {
            file: opened
                .await
                .map_err(io::Error::other)
                .and_then(|file| file)
                .map_err(StorageError::Local)?,
            hasher: Sha256::new(),
        };
        if file.size <= PART {
            let _memory = self.reserve(file.size).await;
            let (reading, content) = reading.next(file.size + 1).await?;
            reading.judge(file, content.len() as u64)?;
            self.still_ours()?;
            place.write(content).await?;
        } else {
            let part = part_size(file.size);
            let mut writing = place.begin().await?;
            let mut read = 0;
            let sent: Result<(), SendError> = async {
                loop {
                    let memory = self.reserve(part).await;
                    let (next, content) = reading.next(part).await?;
                    reading = next;
                    if content.is_empty() {
                        break;
                    }
                    read += content.len() as u64;
                    writing.part(content).await?;
                    drop(memory);
                }
                reading.judge(file, read)?;
                self.still_ours()?;
                Ok(writing.finish().await?)
            }
            .await;
            if let Err(error) = sent {
                writing.abandon().await;
                return Err(error);
            }
        }
        // What a store says it has taken is looked for.
        if place.size().await? == Some(file.size) {
            Ok(())
        } else {
            Err(SendError::Differs(place.url().to_owned()))
        }
    }

    /// Waits until so many bytes may be held.
    async fn reserve(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let wanted = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(MEMORY).clamp(1, MEMORY);
        self.memory.acquire_many(wanted).await.ok()
    }

    /// Nothing may be made visible once another worker may have the job.
    fn still_ours(&self) -> Result<(), SendError> {
        let ends = self.lease_ends.and_then(|ends| *ends.borrow());
        match ends {
            Some(end) if end <= BootTime::now() => Err(SendError::LeaseOver),
            _ => Ok(()),
        }
    }
}

/// The size of the parts that a file is sent in: all of one size, and not too many.
fn part_size(size: u64) -> u64 {
    PART.max(size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

/// A file that is read piece by piece, and what it digests to.
struct Reading {
    file: File,
    hasher: Sha256,
}

impl Reading {
    /// The next piece, of `most` bytes unless the file ends.
    async fn next(mut self, most: u64) -> Result<(Self, Bytes), SendError> {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::with_capacity(usize::try_from(most).unwrap_or(0));
            (&self.file).take(most).read_to_end(&mut piece)?;
            self.hasher.update(&piece);
            Ok((self, Bytes::from(piece)))
        });
        let read: io::Result<_> = read.await.map_err(io::Error::other).and_then(|read| read);
        Ok(read.map_err(StorageError::Local)?)
    }

    /// Whether what was read is what was found before.
    fn judge(self, file: &Found, read: u64) -> Result<(), SendError> {
        if read == file.size && hexadecimal(self.hasher) == file.sha256 {
            Ok(())
        } else {
            Err(SendError::Changed(file.path.clone()))
        }
    }
}

async fn read_manifest(place: &Place, folder: &Place) -> Result<Manifest, SendError> {
    let Some(text) = place.read(LARGEST_MANIFEST).await? else { return Ok(Manifest::default()) };
    let broken = || SendError::Manifest(folder.url().to_owned());
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|_| broken())?;
    // It decides what is removed.
    let is_safe = |file: &Found| !file.path.split('/').any(|step| matches!(step, "" | "." | ".."));
    if manifest.files.iter().all(is_safe) { Ok(manifest) } else { Err(broken()) }
}

async fn write_manifest(place: &Place, job: &JobId, files: &[Found]) -> Result<(), StorageError> {
    let manifest = Manifest { version: 1, job_id: job.to_string(), files: files.to_vec() };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| StorageError::Local(error.into()))?;
    place.write(text.into()).await
}

#[cfg(test)]
mod tests;
