//! A job's folder in the cluster's file system: the tickets of its launches, and what its drivers leave there.
//!
//! ```text
//! <folder>/jobs/<tag of the job>/
//!   <ticket>             written before spark-submit is started
//!   <ticket>.taken       the same file, once a driver has begun with it
//!   <ticket>.end         the driver's last word, and a list of the files that it left
//!   <ticket>.files/<n>   the files
//!   <ticket>.off         the launch is being called off
//! ```
//!
//! A driver *takes* its ticket by renaming it, before anything of the model is loaded, and ends at once when it is not
//! there. To *revoke* a ticket is to remove it. The NameNode lets one of the two succeed and never both, so what was
//! revoked never runs, however late a launcher that was stopped or cut off hands its application over.
//!
//! To *call off* a launch whose driver has begun is to remove its taken ticket: a driver that still runs, on a machine that is
//! cut off for one, finds that and ends itself. It is marked as called off before that, and the mark goes last: whoever
//! comes upon one waits as well before anything is started anew.
//!
//! The other side of this is `ModelOpCluster.py`. This module must not know which kind of cluster it is.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use crate::spark::Launches;
use crate::spark::report::Word;
use crate::storage::{Actor, Place, Scheme, Storage, StorageError};

/// The folder of all jobs' folders, in that of the settings.
const JOBS: &str = "jobs";
/// What is appended to a ticket's name.
const END: &str = ".end";
const FILES: &str = ".files";
const TAKEN: &str = ".taken";
const OFF: &str = ".off";
/// All that may lie there of a launch, but for its mark.
const PARTS: [&str; 6] = ["", TAKEN, ".end.part", END, FILES, ".upload"];
/// How long a driver may go on whose taken ticket was removed. Longer than it takes to look for it twice (`LOOK_SECONDS` and
/// `SURE_SECONDS` of the driver), and to end with its JVM.
const CALLING_OFF: Duration = Duration::from_secs(20);
/// The longest last word: results of 16 MiB, whose escapes make them longer, and 10,000 files.
const LONGEST_WORD: u64 = 80 << 20;
/// The most files that are looked at in a job's folder.
const MOST_FILES: usize = 100_000;
/// The largest file that is brought back, in bytes.
const LARGEST_FILE: u64 = 1 << 40;
/// How long a question to the file system may take in all.
const PATIENCE: Duration = Duration::from_secs(300);

/// How far the driver of a launch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// None has begun.
    Open,
    /// One has begun.
    Taken,
    /// It has left its last word.
    Ended,
    /// It is to end by itself, if it still runs.
    CalledOff,
}

/// The last word of a driver, and what it left.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LastWord {
    /// The word.
    #[serde(flatten)]
    pub word: Word,
    /// The files.
    #[serde(default)]
    files: Vec<LeftFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct LeftFile {
    /// In the driver's folder.
    path: String,
    /// The number under which it lies there.
    file: u32,
}

/// Why a job's folder is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// What the file system says.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It is on no file system that can rename.
    #[error(
        "{0} is on no HDFS, where drivers in a cluster leave their reports; set yarn.folder, or kubernetes.folder, to a folder there"
    )]
    NoHdfs(String),
    /// It does not answer.
    #[error("{url} does not answer within {} s", PATIENCE.as_secs())]
    Hangs {
        /// The folder.
        url: String,
    },
    /// What lies there is no word of a driver's.
    #[error("{url} is no driver's last word: {reason}")]
    NoWord {
        /// The file.
        url: String,
        /// Why.
        reason: String,
    },
    /// A file could not be written on this machine.
    #[error("{path} could not be written: {source}")]
    Local {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

impl FolderError {
    /// Whether the same may go better if it is only tried again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Storage(error) => error.may_pass(),
            Self::Hangs { .. } | Self::Local { .. } => true,
            Self::NoHdfs(_) | Self::NoWord { .. } => false,
        }
    }
}

/// One job's folder.
#[derive(Debug, Clone)]
pub struct JobFolder {
    place: Place,
    storage: Storage,
    /// How long a driver may go on whose launch is called off.
    calling_off: Duration,
}

impl JobFolder {
    /// The folder of the job with this tag, below `folder`. Connects to nothing.
    ///
    /// # Errors
    /// [`FolderError::Storage`] and [`FolderError::NoHdfs`].
    pub fn of(storage: &Storage, folder: &str, tag: &str) -> Result<Self, FolderError> {
        // With the file system, so that everybody means the same one.
        let place = storage.place(&storage.whole_url(folder)?)?;
        if place.scheme() != Scheme::Hdfs {
            return Err(FolderError::NoHdfs(folder.to_owned()));
        }
        Ok(Self {
            place: place.child(&format!("{JOBS}/{tag}"))?,
            storage: storage.clone(),
            calling_off: CALLING_OFF,
        })
    }

    /// Where it is, as a driver is told.
    #[must_use]
    pub fn url(&self) -> &str {
        self.place.url()
    }

    /// All tickets that are there, with how far each has come.
    ///
    /// # Errors
    /// [`FolderError`].
    pub async fn tickets(&self) -> Result<BTreeMap<String, Stage>, FolderError> {
        let mut tickets = BTreeMap::new();
        for (name, _) in self.bounded(self.place.files(MOST_FILES)).await? {
            let (ticket, stage) = match name.split_once('.') {
                None => (name.as_str(), Stage::Open),
                Some((ticket, "taken")) => (ticket, Stage::Taken),
                Some((ticket, "end")) => (ticket, Stage::Ended),
                Some((ticket, "off")) => (ticket, Stage::CalledOff),
                Some(_) => continue,
            };
            let known = tickets.entry(ticket.to_owned()).or_insert(stage);
            *known = stage.max(*known);
        }
        Ok(tickets)
    }

    /// All launches of which something is there.
    ///
    /// # Errors
    /// [`FolderError`].
    pub async fn launches(&self) -> Result<Launches, FolderError> {
        Ok(Launches(self.tickets().await?.into_keys().collect()))
    }

    /// Writes a ticket. From now on a driver may begin with it.
    ///
    /// # Errors
    /// [`FolderError`]; it may be there all the same.
    pub async fn issue(&self, ticket: &str, note: &str) -> Result<(), FolderError> {
        let place = self.place.child(ticket)?;
        self.bounded(place.write(Bytes::from(note.to_owned()))).await
    }

    /// Lets the driver of another user than the worker's take tickets here and leave what it has to say.
    ///
    /// # Errors
    /// [`FolderError`].
    pub async fn share_with(&self, actor: &Actor) -> Result<(), FolderError> {
        let Some(user) = actor.user() else { return Ok(()) };
        let theirs = self.storage.clone().acting_as(actor.clone()).place(self.place.url())?;
        self.bounded(self.place.share_with(user, &theirs)).await
    }

    /// Removes a ticket, if no driver has taken it. Whether one has says [`tickets`](Self::tickets) afterwards.
    ///
    /// # Errors
    /// [`FolderError`]; then a driver may still begin with it.
    pub async fn revoke(&self, ticket: &str) -> Result<(), FolderError> {
        let place = self.place.child(ticket)?;
        self.bounded(place.remove()).await
    }

    /// Revokes those of the `tickets` with which no driver has begun; gives a launch whose driver has, if there is one. When this
    /// gives none, nothing can begin with any of them.
    ///
    /// # Errors
    /// [`FolderError`]; then a driver may still begin with one of them.
    pub async fn revoke_open(
        &self,
        tickets: BTreeMap<String, Stage>,
    ) -> Result<Option<(String, Stage)>, FolderError> {
        let open: Vec<&String> =
            tickets.iter().filter(|(_, stage)| **stage == Stage::Open).map(|(ticket, _)| ticket).collect();
        for ticket in &open {
            self.revoke(ticket).await?;
        }
        // One of them may have been taken meanwhile.
        let begun = if open.is_empty() { tickets } else { self.tickets().await? };
        Ok(begun.into_iter().find(|(_, stage)| *stage > Stage::Open))
    }

    /// The last word of the driver with this ticket, when it has left one.
    ///
    /// # Errors
    /// [`FolderError`].
    pub async fn last_word(&self, ticket: &str) -> Result<Option<LastWord>, FolderError> {
        let place = self.place.child(&format!("{ticket}{END}"))?;
        let Some(text) = self.bounded(place.read(LONGEST_WORD)).await? else { return Ok(None) };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| FolderError::NoWord { url: place.url().to_owned(), reason: error.to_string() })
    }

    /// Brings the files that a driver left into `folder`, each where it was in the driver's.
    ///
    /// # Errors
    /// [`FolderError`]; `folder` then has some of them.
    pub async fn bring(&self, ticket: &str, word: &LastWord, folder: &Path) -> Result<(), FolderError> {
        for left in &word.files {
            let place = self.place.child(&format!("{ticket}{FILES}/{}", left.file))?;
            let is_plain = |path: &str| {
                path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0')
            };
            if !is_plain(&left.path) {
                let reason = format!("it names the file {:?}", left.path);
                return Err(FolderError::NoWord { url: place.url().to_owned(), reason });
            }
            let path = folder.join(&left.path);
            let file = create(folder, &left.path)
                .map_err(|source| FolderError::Local { path: path.display().to_string(), source })?;
            place.download(file, LARGEST_FILE).await?;
        }
        Ok(())
    }

    /// Removes all of these launches, and of no others. None of their drivers runs when it returns: it waits for those that
    /// have begun and left no word to end by themselves, but for those of which it `is_certain` that they have ended.
    ///
    /// # Errors
    /// [`FolderError`]; then a driver may still run, or begin.
    pub async fn call_off(
        &self,
        launches: &Launches,
        is_certain: impl Fn(&str) -> bool,
    ) -> Result<(), FolderError> {
        let before = self.tickets().await?;
        for ticket in launches.0.iter().filter(|ticket| before.get(*ticket) == Some(&Stage::Open)) {
            self.revoke(ticket).await?;
        }
        // A driver may have been there first.
        let now = self.tickets().await?;
        let mut may_run = false;
        for ticket in launches.0.iter().filter(|ticket| !is_certain(ticket)) {
            if matches!(now.get(ticket), Some(Stage::Taken | Stage::CalledOff)) {
                self.issue(&format!("{ticket}{OFF}"), "{}").await?;
                self.revoke(&format!("{ticket}{TAKEN}")).await?;
                may_run = true;
            }
        }
        if may_run {
            tracing::info!(
                folder = self.url(),
                seconds = self.calling_off.as_secs(),
                "a launch is called off whose driver may still run; waiting until it has ended"
            );
            tokio::time::sleep(self.calling_off).await;
        }
        for ticket in &launches.0 {
            for part in PARTS.iter().chain([&OFF]) {
                self.remove_all(&format!("{ticket}{part}")).await?;
            }
        }
        // What earlier launches have left goes as well when there is none but these.
        if self.tickets().await?.is_empty() { self.remove().await } else { Ok(()) }
    }

    /// Goes on with what somebody else began who called launches off.
    ///
    /// # Errors
    /// [`FolderError`]; then a driver may still run.
    pub async fn finish_calling_off(&self) -> Result<(), FolderError> {
        let tickets = self.tickets().await?.into_iter();
        let off = tickets.filter(|(_, stage)| *stage == Stage::CalledOff).map(|(ticket, _)| ticket);
        let off = Launches(off.collect());
        if off.0.is_empty() { Ok(()) } else { self.call_off(&off, |_| false).await }
    }

    /// Removes the folder with all that is in it.
    async fn remove(&self) -> Result<(), FolderError> {
        let spot = self.storage.spots(None).find(self.place.url())?;
        Ok(spot.remove().await?)
    }

    async fn remove_all(&self, name: &str) -> Result<(), FolderError> {
        let spot = self.storage.spots(None).find(self.place.child(name)?.url())?;
        Ok(spot.remove().await?)
    }

    async fn bounded<T>(
        &self,
        step: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, FolderError> {
        match tokio::time::timeout(PATIENCE, step).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(FolderError::Hangs { url: self.place.url().to_owned() }),
        }
    }
}

/// Makes a file below `folder`, in the place of what was staged there under its name.
fn create(folder: &Path, path: &str) -> io::Result<std::fs::File> {
    let target = folder.join(path);
    if let Some(parent) = target.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    match std::fs::remove_file(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)
}

#[cfg(test)]
impl JobFolder {
    /// There, nobody runs who would have to be waited for any longer.
    pub(super) const CALLING_OFF_HERE: Duration = Duration::from_secs(2);

    /// A job's folder on this machine, as if it were elsewhere.
    pub(super) fn here(place: &Path) -> Self {
        let storage = Storage::default();
        let place = storage.place(&place.display().to_string()).unwrap();
        Self { place, storage, calling_off: Self::CALLING_OFF_HERE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CALLING_OFF: Duration = JobFolder::CALLING_OFF_HERE;

    fn folder(place: &Path) -> JobFolder {
        JobFolder::here(place)
    }

    #[tokio::test]
    async fn how_far_a_launch_has_come_is_told_by_what_its_driver_left() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path());
        assert!(folder.tickets().await.unwrap().is_empty());
        for ticket in ["a", "b", "c", "d"] {
            folder.issue(ticket, "attempt 1").await.unwrap();
        }
        let rename =
            |from: &str, to: &str| std::fs::rename(place.path().join(from), place.path().join(to)).unwrap();
        rename("b", "b.taken");
        rename("c", "c.taken");
        std::fs::create_dir(place.path().join("c.files")).unwrap();
        std::fs::write(place.path().join("c.files/0"), "x").unwrap();
        std::fs::write(place.path().join("c.end"), "{}").unwrap();
        std::fs::write(place.path().join("b.end.part"), "{").unwrap();
        folder.revoke("d").await.unwrap();
        folder.revoke("b").await.unwrap();
        let tickets: Vec<_> = folder.tickets().await.unwrap().into_iter().collect();
        let expected = [("a", Stage::Open), ("b", Stage::Taken), ("c", Stage::Ended)];
        assert_eq!(tickets, expected.map(|(ticket, stage)| (ticket.to_owned(), stage)));
        folder.remove().await.unwrap();
        assert!(folder.tickets().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_has_not_begun_is_revoked_and_what_has_is_found() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path());
        for ticket in ["a", "b"] {
            folder.issue(ticket, "attempt 1").await.unwrap();
        }
        assert_eq!(folder.revoke_open(folder.tickets().await.unwrap()).await.unwrap(), None);
        assert!(folder.tickets().await.unwrap().is_empty());
        for ticket in ["a", "b"] {
            folder.issue(ticket, "attempt 2").await.unwrap();
        }
        // One is taken after it was looked how far each has come.
        let tickets = folder.tickets().await.unwrap();
        std::fs::rename(place.path().join("b"), place.path().join("b.taken")).unwrap();
        let begun = folder.revoke_open(tickets).await.unwrap();
        assert_eq!(begun, Some(("b".to_owned(), Stage::Taken)));
        assert!(!place.path().join("a").exists());
    }

    #[tokio::test]
    async fn a_launch_is_called_off_when_its_driver_has_had_the_time_to_find_that() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path());
        let write = |name: &str| std::fs::write(place.path().join(name), "{}").unwrap();
        let left = || {
            let Ok(entries) = std::fs::read_dir(place.path()) else { return Vec::new() };
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        for name in ["a", "b.taken", "b.end", "c.taken", "d.taken"] {
            write(name);
        }
        std::fs::create_dir(place.path().join("b.files")).unwrap();
        let of = |ticket: &str| Launches([ticket.to_owned()].into());
        let took = async |launches: Launches, certain: &str| {
            let began = tokio::time::Instant::now();
            folder.call_off(&launches, |ticket| ticket == certain).await.unwrap();
            began.elapsed()
        };
        // None of these can run: it has not begun, has left its word, or is certain to have ended. What is another's stays.
        assert!(took(of("a"), "").await < CALLING_OFF);
        assert!(took(of("b"), "").await < CALLING_OFF);
        assert!(took(of("d"), "d").await < CALLING_OFF);
        assert_eq!(left(), ["c.taken"]);
        // This one may, and whoever is in the middle of it leaves a mark.
        write("e");
        let launches = of("c");
        let off = folder.call_off(&launches, |_| false);
        assert!(tokio::time::timeout(CALLING_OFF / 2, off).await.is_err());
        assert_eq!(left(), ["c.off", "e"]);
        assert_eq!(folder.tickets().await.unwrap()["c"], Stage::CalledOff);
        let began = tokio::time::Instant::now();
        folder.finish_calling_off().await.unwrap();
        assert!(began.elapsed() >= CALLING_OFF);
        assert_eq!(left(), ["e"]);
        // It was begun meanwhile, and the folder goes with the last.
        std::fs::rename(place.path().join("e"), place.path().join("e.taken")).unwrap();
        write("f.upload");
        assert!(took(of("e"), "").await >= CALLING_OFF);
        assert!(!place.path().exists());
    }

    #[tokio::test]
    async fn what_a_driver_left_comes_back_to_where_it_was() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path());
        assert_eq!(folder.last_word("t").await.unwrap(), None);
        let word = json!({"message": "completed", "results": {"a": 1}, "files": [
            {"path": "outputDir/deep/m:1 ü", "file": 0}, {"path": "staged.txt", "file": 1}]});
        std::fs::write(place.path().join("t.end"), word.to_string()).unwrap();
        std::fs::create_dir(place.path().join("t.files")).unwrap();
        for (number, text) in [(0, "model"), (1, "new")] {
            std::fs::write(place.path().join(format!("t.files/{number}")), text).unwrap();
        }
        let here = tempfile::tempdir().unwrap();
        std::fs::write(here.path().join("staged.txt"), "old and longer").unwrap();
        let word = folder.last_word("t").await.unwrap().unwrap();
        assert_eq!(word.word, Word::Completed { results: Some(json!({"a": 1})), records: None });
        folder.bring("t", &word, here.path()).await.unwrap();
        assert_eq!(std::fs::read_to_string(here.path().join("outputDir/deep/m:1 ü")).unwrap(), "model");
        assert_eq!(std::fs::read_to_string(here.path().join("staged.txt")).unwrap(), "new");
    }

    #[tokio::test]
    async fn a_word_that_leads_out_of_the_folder_is_none() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path());
        let here = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a//b", "a/../../b", ""] {
            let word = json!({"message": "completed", "files": [{"path": path, "file": 0}]});
            std::fs::write(place.path().join("t.end"), word.to_string()).unwrap();
            let word = folder.last_word("t").await.unwrap().unwrap();
            let refused = folder.bring("t", &word, here.path()).await.unwrap_err();
            assert!(matches!(&refused, FolderError::NoWord { .. }), "{refused}");
        }
        std::fs::write(place.path().join("t.end"), "{\"message\":").unwrap();
        assert!(matches!(folder.last_word("t").await, Err(FolderError::NoWord { .. })));
    }
}
