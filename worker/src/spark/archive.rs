//! What the containers of YARN need of a Spark installation, put where all of them find it: the jars as one archive, and
//! the archives of PySpark. Without it, every submission uploads some 420 MB.
//!
//! ```text
//! <yarn.archive_folder>/
//!   spark-archive-<version>-<digest>.zip     for spark.yarn.archive: every jar, stored as it is
//!   spark-<version>-pyspark-<digest>.zip     for PYSPARK_ARCHIVES_PATH, and so for py4j
//! ```
//!
//! A name tells the content, by a digest over the names and the contents of the files: installations that are the same
//! share an archive, and one that changes gets another. What is there is never changed, since YARN refuses a file whose
//! time is not the one that it had at the submission.
//!
//! [`Archives::prepare`] puts it there, which an operator asks for; [`Archives::default_archive`] looks whether it is
//! there, which every submission on YARN asks.
//!
//! This module must not know how a job is submitted.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::installation::Installation;
use crate::config::Settings;
use crate::storage::once::Put;
use crate::storage::{Storage, StorageError};

/// The property that names the archive.
pub const ARCHIVE: &str = "spark.yarn.archive";
/// The property that names jars one by one, instead of the archive.
pub const JARS: &str = "spark.yarn.jars";
/// The variable by which Spark's client on YARN finds the archives of PySpark.
pub const PYTHON_ARCHIVES: &str = "PYSPARK_ARCHIVES_PATH";

/// How archives are made; a change makes all of them anew.
const FORMAT: &[u8] = b"spark-archive-1";
/// The folder in `job.directory` for what is remembered about installations.
const CACHE: &str = "spark";
/// The most bytes of an archive, and the most files: more would take another kind of zip, which not everybody reads.
const LARGEST: u64 = u32::MAX as u64 - 1;
const MOST_JARS: usize = u16::MAX as usize - 1;
/// How old what an upload left has to be to count as left.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// How many files are looked at for archives of other installations.
const MOST_OTHERS: usize = 10_000;
/// How long a submission may be held up by looking for the archive.
const LOOK: Duration = Duration::from_secs(10);
/// How long it may be held up by reading all jars, which is done once for an installation.
const DIGEST: Duration = Duration::from_secs(60);
/// How long it is taken for granted that what was found is there.
const FOUND_COUNTS: Duration = Duration::from_secs(300);
/// How long it is taken for granted that nothing is there.
const MISSED_COUNTS: Duration = Duration::from_secs(60);

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The folder of the installation is not known.
    #[error("{} belongs to no Spark installation with a folder of jars; set spark.home", submit.display())]
    NoHome {
        /// Its spark-submit.
        submit: PathBuf,
    },
    /// The jars are not there.
    #[error("{} is no folder with the jars of Spark: {reason}", folder.display())]
    NoJars {
        /// Where they have to be.
        folder: PathBuf,
        /// What is there.
        reason: String,
    },
    /// They are too many for an archive.
    #[error("the jars of {} are more than an archive takes; set {JARS} instead", folder.display())]
    TooMuch {
        /// Where they are.
        folder: PathBuf,
    },
    /// Nothing says where the cluster's file system is.
    #[error(
        "there is no Hadoop configuration that names a file system; set spark.environment.HADOOP_CONF_DIR, or a whole URL as \
         yarn.archive_folder"
    )]
    NoCluster,
    /// The configuration cannot be used.
    #[error("the file system of the cluster {0}")]
    Configuration(String),
    /// The name of the user is not known.
    #[error("this user has no name, and so no home on the cluster; set yarn.archive_folder")]
    NoUser,
    /// A file of the installation, or of the folder where something is remembered.
    #[error("{}: {source}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the installation is being changed.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The place of the archive.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn local(path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::Local { path, source }
}

/// A file of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    name: String,
    path: PathBuf,
}

/// A file of an installation, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Digested {
    source: Source,
    size: u64,
    digest: String,
}

/// What of an installation the containers need.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    version: String,
    folder: PathBuf,
    jars: Vec<Source>,
    python: Vec<Source>,
}

impl Contents {
    fn find(installation: &Installation) -> Result<Self, ArchiveError> {
        let no_home = || ArchiveError::NoHome { submit: installation.submit.clone() };
        let home = installation.home.as_ref().ok_or_else(no_home)?;
        let folder = home.join("jars");
        let no_jars =
            |reason: &str| ArchiveError::NoJars { folder: folder.clone(), reason: reason.to_owned() };
        let jars = files(&folder, |name| Path::new(name).extension() == Some(OsStr::new("jar")))
            .map_err(|error| no_jars(&error.to_string()))?;
        let version = jars.iter().find_map(|jar| {
            let rest = jar.name.strip_prefix("spark-core_")?.strip_suffix(".jar")?;
            rest.split_once('-').map(|(_, version)| version.to_owned())
        });
        let version = version.ok_or_else(|| no_jars("there is no spark-core in it"))?;
        let lib = home.join("python").join("lib");
        let is_archive =
            |name: &str| name == "pyspark.zip" || name.starts_with("py4j-") && name.ends_with("-src.zip");
        let python = match files(&lib, is_archive) {
            // Spark takes both or none.
            Ok(python) if python.len() == 2 => python,
            _ => Vec::new(),
        };
        Ok(Self { version, folder, jars, python })
    }
}

/// The files of a folder with such names, by their names.
fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<Source>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
        if wanted(name) && path.is_file() {
            found.push(Source { name: name.to_owned(), path });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// What is remembered of a file, so that it need not be read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    digest: String,
}

impl Known {
    fn of(metadata: &fs::Metadata, digest: String) -> Self {
        Self {
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            // Whoever puts another file there with the old time does not get past this one.
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            digest,
        }
    }
}

/// Reads what is not known from `index`; `index` knows it then.
fn digest_all(sources: &[Source], index: &Path) -> Result<Vec<Digested>, ArchiveError> {
    let known: BTreeMap<String, Known> =
        fs::read(index).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let mut now = BTreeMap::new();
    let mut all = Vec::with_capacity(sources.len());
    for source in sources {
        let path = &source.path;
        let metadata = fs::metadata(path).map_err(local(path))?;
        let key = path.display().to_string();
        let entry = match known.get(&key) {
            Some(known) if *known == Known::of(&metadata, known.digest.clone()) => known.clone(),
            _ => {
                let (size, digest) = copy_digested(path, &mut io::sink()).map_err(local(path))?;
                let entry = Known::of(&metadata, digest);
                let after = fs::metadata(path).map_err(local(path))?;
                if size != entry.size || Known::of(&after, entry.digest.clone()) != entry {
                    return Err(ArchiveError::Changed { path: path.clone() });
                }
                entry
            }
        };
        all.push(Digested { source: source.clone(), size: entry.size, digest: entry.digest.clone() });
        now.insert(key, entry);
    }
    if now != known
        && let Err(error) = write_index(index, &now)
    {
        // It costs time alone.
        tracing::debug!(%error, path = %index.display(), "what the jars are could not be remembered");
    }
    Ok(all)
}

fn write_index(index: &Path, known: &BTreeMap<String, Known>) -> io::Result<()> {
    let folder = index.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let part = index.with_extension(uuid::Uuid::new_v4().simple().to_string());
    let written = fs::write(&part, serde_json::to_vec(known)?).and_then(|()| fs::rename(&part, index));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Copies a file; gives its size and its digest.
fn copy_digested(from: &Path, to: &mut impl Write) -> io::Result<(u64, String)> {
    let mut file = File::open(from)?;
    let (mut digest, mut size) = (Sha256::new(), 0);
    let mut piece = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok((size, hexadecimal(&digest.finalize())));
        }
        let piece = &piece[..read];
        digest.update(piece);
        to.write_all(piece)?;
        size += read as u64;
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files in the folder on the cluster for an installation, by their names.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    version: String,
    jars: Vec<Digested>,
    archive: String,
    /// How many bytes the archive has.
    size: u64,
    python: Vec<(String, Digested)>,
}

impl Plan {
    /// Blocks; reads all jars when they are new.
    fn of(installation: &Installation, cache: &Path) -> Result<Self, ArchiveError> {
        let contents = Contents::find(installation)?;
        let mut id = Sha256::new();
        id.update(contents.folder.as_os_str().as_encoded_bytes());
        let index = cache.join(format!("digests-{}.json", &hexadecimal(&id.finalize())[..16]));
        let all: Vec<_> = contents.jars.iter().chain(&contents.python).cloned().collect();
        let mut jars = digest_all(&all, &index)?;
        let python = jars.split_off(contents.jars.len());
        let size = size_of_zip(&jars);
        if size > LARGEST || jars.len() > MOST_JARS {
            return Err(ArchiveError::TooMuch { folder: contents.folder });
        }
        let version = contents.version;
        let mut digest = Sha256::new();
        digest.update(FORMAT);
        for jar in &jars {
            digest.update((jar.source.name.len() as u64).to_be_bytes());
            digest.update(&jar.source.name);
            digest.update(&jar.digest);
        }
        let archive = format!("spark-archive-{version}-{}.zip", &hexadecimal(&digest.finalize())[..32]);
        let named = |file: Digested| {
            let stem = file.source.name.trim_end_matches(".zip");
            (format!("spark-{version}-{stem}-{}.zip", &file.digest[..32]), file)
        };
        Ok(Self { archive, size, python: python.into_iter().map(named).collect(), jars, version })
    }
}

/// How many bytes [`write_zip`] makes of some jars.
fn size_of_zip(jars: &[Digested]) -> u64 {
    // The headers of a file with its name twice, and the end of all.
    let of = |jar: &Digested| 30 + 46 + 2 * jar.source.name.len() as u64 + jar.size;
    jars.iter().map(of).fold(22, u64::saturating_add)
}

/// Writes a zip of the jars, which is the same whenever they are. They are stored: they are compressed already.
///
/// Sizes and checksums stand before each file, for which the writer goes back: Hadoop unpacks what it has not yet read to
/// the end, and does not take stored files without them.
fn write_zip(jars: &[Digested], to: File) -> Result<File, ArchiveError> {
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, to));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    for Digested { source, size, digest } in jars {
        let failed = local(&source.path);
        let copied = zip
            .start_file(source.name.as_str(), options)
            .map_err(io::Error::other)
            .and_then(|()| copy_digested(&source.path, &mut zip))
            .map_err(failed)?;
        if copied != (*size, digest.clone()) {
            return Err(ArchiveError::Changed { path: source.path.clone() });
        }
    }
    let ended = zip.finish().map_err(io::Error::other);
    let file = ended.and_then(|file| file.into_inner().map_err(io::IntoInnerError::into_error));
    file.map_err(local(Path::new("the archive")))
}

/// A new file in `folder` that goes away with the process.
fn scratch(folder: &Path) -> io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(format!(".packing-{}", uuid::Uuid::new_v4().simple()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// What a submission on YARN is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The value of [`ARCHIVE`].
    pub archive: String,
    /// The archives of PySpark; empty where the installation has none.
    pub python: Vec<String>,
}

impl Prepared {
    /// The value of [`PYTHON_ARCHIVES`], where there is one.
    #[must_use]
    pub fn python_archives(&self) -> Option<String> {
        (!self.python.is_empty()).then(|| self.python.join(","))
    }
}

/// What [`Archives::prepare`] did.
#[derive(Debug)]
pub struct Done {
    /// Spark's release, as `4.3.0`.
    pub version: String,
    /// What submissions are told from now on.
    pub prepared: Prepared,
    /// How many bytes the archive of the jars has.
    pub size: u64,
    /// Whether the archive of the jars was there.
    pub put: Put,
    /// What keeps other users of the cluster from reading it, if something does.
    pub closed: Option<String>,
    /// Archives of other installations that are there as well, each by its URL with its size in bytes.
    pub others: Vec<(String, u64)>,
    /// How long it took.
    pub took: Duration,
}

/// The archives on the cluster.
#[derive(Debug)]
pub struct Archives {
    storage: Storage,
    folder: Option<String>,
    is_used: bool,
    cache: PathBuf,
    /// The user that Spark runs as, when it is not the one of this process.
    other_user: Option<String>,
    looks: Mutex<HashMap<PathBuf, Look>>,
}

/// What came of looking for an archive.
#[derive(Debug)]
struct Look {
    found: Option<Arc<Prepared>>,
    /// Why it was not found.
    reason: String,
    at: Instant,
}

impl Look {
    fn counts(&self) -> bool {
        self.at.elapsed() < if self.found.is_some() { FOUND_COUNTS } else { MISSED_COUNTS }
    }
}

/// The folder in which what is made of Spark installations, and known of them, is kept.
#[must_use]
pub fn cache_folder(directory: &Path) -> PathBuf {
    directory.join(CACHE)
}

/// The user by which HDFS knows this process, without Kerberos.
fn own_user() -> Option<String> {
    let named = std::env::var("HADOOP_USER_NAME").ok().filter(|name| !name.is_empty());
    named.or_else(|| Some(nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()??.name))
}

impl Archives {
    /// What the settings say. Touches nothing.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let of_spark =
            settings.spark.environment.get("HADOOP_USER_NAME").map(|name| name.expose().to_owned());
        Self {
            storage: Storage::of(settings),
            folder: settings.yarn.archive_folder.clone(),
            is_used: settings.yarn.uses_archive,
            cache: cache_folder(&settings.job.directory),
            other_user: of_spark.filter(|name| own_user().as_ref() != Some(name)),
            looks: Mutex::default(),
        }
    }

    /// The folder of the archives, as a URL that means the same to Spark.
    fn folder(&self) -> Result<String, ArchiveError> {
        let folder = match &self.folder {
            Some(folder) => folder.trim_end_matches('/').to_owned(),
            None => format!("/user/{}/.spark-runtime", own_user().ok_or(ArchiveError::NoUser)?),
        };
        if !folder.starts_with('/') {
            return Ok(folder);
        }
        let named = self.storage.default_file_system().map_err(ArchiveError::Configuration)?;
        let file_system = named.ok_or(ArchiveError::NoCluster)?;
        Ok(format!("{}{folder}", file_system.trim_end_matches('/')))
    }

    async fn plan(&self, installation: &Installation) -> Result<Plan, ArchiveError> {
        let (installation, cache) = (installation.clone(), self.cache.clone());
        let planning = tokio::task::spawn_blocking(move || Plan::of(&installation, &cache));
        planning.await.map_err(|error| local(&self.cache)(io::Error::other(error)))?
    }

    /// Puts what the containers need of an installation on the cluster, as far as it is not there, and removes what uploads
    /// left that died.
    ///
    /// # Errors
    /// [`ArchiveError`]; then nothing is there that could be taken for an archive and is none.
    pub async fn prepare(&self, installation: &Installation) -> Result<Done, ArchiveError> {
        let started = Instant::now();
        let folder = self.folder()?;
        let plan = self.plan(installation).await?;
        let url = |name: &str| format!("{folder}/{name}");
        let mut python = Vec::new();
        for (name, file) in &plan.python {
            let path = &file.source.path;
            self.storage.place(&url(name))?.put_once(File::open(path).map_err(local(path))?).await?;
            python.push(url(name));
        }
        let place = self.storage.place(&url(&plan.archive))?;
        let (jars, size) = (plan.jars, plan.size);
        let put = if place.size().await? == Some(size) {
            Put::There
        } else {
            tracing::info!(url = place.url(), bytes = size, "the jars of Spark are packed and uploaded");
            let cache = self.cache.clone();
            let packing = tokio::task::spawn_blocking(move || {
                let file = scratch(&cache).map_err(local(&cache))?;
                write_zip(&jars, file)
            });
            let packed = packing.await.map_err(|error| local(&self.cache)(io::Error::other(error)))??;
            place.put_once(packed).await?
        };
        match self.storage.place(&folder)?.remove_parts(ABANDONED).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, folder, "what uploads left that died was removed"),
            Err(error) => tracing::warn!(%error, "what uploads may have left that died could not be removed"),
        }
        let closed = place.closed_to_others().await.unwrap_or_else(|error| {
            // It is said for the sake of others, and the archive is there.
            tracing::warn!(%error, "it could not be told who may read the archive");
            None
        });
        let mine: Vec<&String> = plan.python.iter().map(|(name, _)| name).chain([&plan.archive]).collect();
        let others = self.others(&folder, &mine).await;
        Ok(Done {
            closed,
            others,
            prepared: Prepared { archive: url(&plan.archive), python },
            version: plan.version,
            size,
            put,
            took: started.elapsed(),
        })
    }

    /// The archives in a folder that are not `mine`. Whether somebody needs them cannot be known from here: other workers may
    /// have other installations, and what runs fetches its archive again for every node that it comes to.
    async fn others(&self, folder: &str, mine: &[&String]) -> Vec<(String, u64)> {
        let listed = match self.storage.place(folder) {
            Ok(place) => place.files(MOST_OTHERS).await,
            Err(error) => Err(error),
        };
        let is_archive =
            |name: &str| name.starts_with("spark-") && name.ends_with(".zip") && !name.contains('/');
        match listed {
            Ok(files) => files
                .into_iter()
                .filter(|(name, _)| is_archive(name) && !mine.contains(&name))
                .map(|(name, size)| (format!("{folder}/{name}"), size))
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "it could not be told which other archives are there");
                Vec::new()
            }
        }
    }

    /// What a submission on YARN with this installation is told when nobody says otherwise: nothing where the archive is not
    /// there or cannot be looked for, which is told once, or where the settings do not want it.
    ///
    /// The cluster is asked now and then only; this takes no longer than looking may.
    pub async fn default_archive(&self, installation: &Installation) -> Option<Arc<Prepared>> {
        if !self.is_used {
            return None;
        }
        // Whoever comes meanwhile waits for the same answer.
        let mut looks = self.looks.lock().await;
        let key = installation.home.clone().unwrap_or_default();
        if let Some(look) = looks.get(&key).filter(|look| look.counts()) {
            return look.found.clone();
        }
        let looked = self.look(installation).await;
        let (found, reason) = match looked {
            Ok(prepared) => (Some(Arc::new(prepared)), String::new()),
            Err(reason) => (None, reason),
        };
        let was_told = looks.get(&key).is_some_and(|look| look.reason == reason);
        if found.is_none() && !was_told {
            tracing::warn!(
                reason,
                "every submission on YARN uploads the jars of Spark; run spark-runtime cluster prepare, or set {ARCHIVE} or {JARS}"
            );
        }
        looks.insert(key, Look { found: found.clone(), reason, at: Instant::now() });
        found
    }

    /// Looks on the cluster; else why it is of no use, in words.
    async fn look(&self, installation: &Installation) -> Result<Prepared, String> {
        let late = |what: &str, bound: Duration| format!("{what} took longer than {} s", bound.as_secs());
        let plan = tokio::time::timeout(DIGEST, self.plan(installation))
            .await
            .map_err(|_| late("reading the jars", DIGEST))?
            .map_err(|error| error.to_string())?;
        tokio::time::timeout(LOOK, self.find(&plan))
            .await
            .map_err(|_| late("looking for the archive", LOOK))?
    }

    async fn find(&self, plan: &Plan) -> Result<Prepared, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let folder = self.folder().map_err(|error| words(&error))?;
        let files = plan.python.iter().map(|(name, file)| (name, file.size));
        let mut urls = Vec::new();
        for (name, size) in std::iter::once((&plan.archive, plan.size)).chain(files) {
            let place = self.storage.place(&format!("{folder}/{name}")).map_err(|error| words(&error))?;
            if place.size().await.map_err(|error| words(&error))? != Some(size) {
                return Err(format!("{} is not there", place.url()));
            }
            if let Some(user) = &self.other_user
                && let Some(closed) = place.closed_to_others().await.map_err(|error| words(&error))?
            {
                return Err(format!("{closed} is closed to others, and Spark runs as {user}"));
            }
            urls.push(place.url().to_owned());
        }
        let archive = urls.remove(0);
        Ok(Prepared { archive, python: urls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    /// A Spark installation of a few small jars.
    fn spark() -> (tempfile::TempDir, Installation) {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().to_owned();
        fs::create_dir_all(home.join("jars")).unwrap();
        fs::create_dir_all(home.join("python/lib")).unwrap();
        for (name, content) in
            [("spark-core_2.13-9.8.7.jar", "core"), ("a.jar", "a"), ("notes.txt", "no jar")]
        {
            fs::write(home.join("jars").join(name), content).unwrap();
        }
        fs::write(home.join("python/lib/pyspark.zip"), "pyspark").unwrap();
        fs::write(home.join("python/lib/py4j-0.1-src.zip"), "py4j").unwrap();
        (place, Installation { submit: home.join("bin/spark-submit"), home: Some(home) })
    }

    fn archives(place: &tempfile::TempDir, more: &[&str]) -> Archives {
        let mut overrides = vec![
            format!("job.directory={}/jobs", place.path().display()),
            format!("yarn.archive_folder=file://{}/shared", place.path().display()),
        ];
        overrides.extend(more.iter().map(ToString::to_string));
        Archives::of(&Settings::load(&Sources { overrides, ..Sources::default() }).unwrap())
    }

    fn shared(place: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(place.path().join("shared")).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_was_prepared_is_found_and_stays_as_it_is() {
        let ((_home, spark), place) = (spark(), tempfile::tempdir().unwrap());
        assert_eq!(archives(&place, &[]).default_archive(&spark).await, None);
        let done = archives(&place, &[]).prepare(&spark).await.unwrap();
        assert_eq!((done.version.as_str(), done.put), ("9.8.7", Put::Uploaded));
        let [py4j, pyspark, archive] = shared(&place).try_into().unwrap();
        assert!(archive.starts_with("spark-archive-9.8.7-") && py4j.starts_with("spark-9.8.7-py4j-0.1-src-"));
        assert!(pyspark.starts_with("spark-9.8.7-pyspark-") && done.prepared.archive.ends_with(&archive));
        let path = place.path().join("shared").join(&archive);
        assert_eq!(fs::metadata(&path).unwrap().len(), done.size);
        let mut zip = zip::ZipArchive::new(File::open(&path).unwrap()).unwrap();
        let names: Vec<_> = zip.file_names().map(|name| name.unwrap().into_owned()).collect();
        assert_eq!(names, ["a.jar", "spark-core_2.13-9.8.7.jar"]);
        let mut content = String::new();
        zip.by_name("a.jar").unwrap().read_to_string(&mut content).unwrap();
        assert_eq!(content, "a");
        // Another worker, with nothing that it remembers.
        fs::remove_dir_all(place.path().join("jobs")).unwrap();
        let found = archives(&place, &[]).default_archive(&spark).await.unwrap();
        assert_eq!(*found, done.prepared);
        let python = found.python_archives().unwrap();
        assert!(python.contains(&format!("/{py4j},file://")) && python.ends_with(&pyspark), "{python}");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(archives(&place, &[]).prepare(&spark).await.unwrap().put, Put::There);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
        assert_eq!(archives(&place, &["yarn.archive=never"]).default_archive(&spark).await, None);
    }

    #[tokio::test]
    async fn an_archive_that_is_not_whole_is_none_and_another_installation_gets_its_own() {
        let ((home, spark), place) = (spark(), tempfile::tempdir().unwrap());
        let first = archives(&place, &[]).prepare(&spark).await.unwrap().prepared;
        let path = place.path().join("shared").join(first.archive.rsplit('/').next().unwrap());
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(archives(&place, &[]).default_archive(&spark).await, None);
        assert_eq!(archives(&place, &[]).prepare(&spark).await.unwrap().put, Put::Uploaded);
        // The same bytes as the first time.
        assert_eq!(fs::read(&path).unwrap(), whole);
        let jar = home.path().join("jars/a.jar");
        let time = fs::metadata(&jar).unwrap().modified().unwrap();
        fs::write(&jar, "b").unwrap();
        File::options().append(true).open(&jar).unwrap().set_modified(time).unwrap();
        assert_eq!(archives(&place, &[]).default_archive(&spark).await, None);
        let done = archives(&place, &[]).prepare(&spark).await.unwrap();
        let second = done.prepared;
        assert_ne!(second.archive, first.archive);
        assert_eq!(second.python, first.python);
        // The first stays, since others may need it, and is told of.
        assert_eq!(done.others, [(first.archive, whole.len() as u64)]);
    }

    #[test]
    fn jars_that_are_known_are_not_read_again() {
        let ((_home, spark), cache) = (spark(), tempfile::tempdir().unwrap());
        let first = Plan::of(&spark, cache.path()).unwrap();
        let index = fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&index).unwrap();
        // What is remembered counts: with another digest there, another archive is asked for.
        let digest = &first.jars[0].digest;
        fs::write(&index, text.replace(digest, &"0".repeat(64))).unwrap();
        assert_ne!(Plan::of(&spark, cache.path()).unwrap().archive, first.archive);
        fs::write(&index, &text[..20]).unwrap();
        assert_eq!(Plan::of(&spark, cache.path()).unwrap(), first);
    }

    #[tokio::test]
    async fn what_is_missing_is_told_in_words() {
        let ((home, spark), place) = (spark(), tempfile::tempdir().unwrap());
        let archives = archives(&place, &[]);
        fs::remove_file(home.path().join("jars/spark-core_2.13-9.8.7.jar")).unwrap();
        let words = archives.prepare(&spark).await.unwrap_err().to_string();
        assert!(
            words.ends_with("is no folder with the jars of Spark: there is no spark-core in it"),
            "{words}"
        );
        let nowhere = Installation { submit: "/opt/spark-submit".into(), home: None };
        let words = archives.prepare(&nowhere).await.unwrap_err().to_string();
        assert!(words.starts_with("/opt/spark-submit belongs to no Spark installation"), "{words}");
    }

    #[test]
    fn a_folder_without_a_scheme_is_on_the_cluster_that_the_configuration_names() {
        let place = tempfile::tempdir().unwrap();
        let of = |folder: &str| {
            let hadoop = format!("spark.environment.HADOOP_CONF_DIR={}", place.path().display());
            archives(&place, &[&hadoop, folder]).folder()
        };
        assert!(matches!(of("yarn.archive_folder="), Err(ArchiveError::NoCluster)));
        let text = "<configuration><property><name>fs.defaultFS</name><value>hdfs://nn:8020/</value></property></configuration>";
        fs::write(place.path().join("core-site.xml"), text).unwrap();
        let home = format!("hdfs://nn:8020/user/{}/.spark-runtime", own_user().unwrap());
        assert_eq!(of("yarn.archive_folder=").unwrap(), home);
        assert_eq!(of("yarn.archive_folder=/apps/spark/").unwrap(), "hdfs://nn:8020/apps/spark");
        assert_eq!(of("yarn.archive_folder=s3a://b/x").unwrap(), "s3a://b/x");
    }
}
