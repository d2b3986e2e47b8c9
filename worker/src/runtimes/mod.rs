//! Runtimes: which Python and which Spark run a job.
//!
//! The first runtime is made of the settings in section `spark`; an operator may name more of them ([`listed`]). A job
//! says by its REQUIRED_LIBRARIES what it needs ([`requirements`]); the first runtime whose installed packages ([`known`])
//! meet all of it runs the job. When none does, one is built where the settings let that be ([`build`], [`store`]); else
//! the job is refused with each requirement that no runtime meets, and why.
//!
//! A job that requires nothing gets the first runtime, and no Python is asked.
//!
//! A runtime is a program on this machine. Where executors run elsewhere, its environment travels as an archive
//! ([`Runtimes::send`], [`pack`]), when the settings say so.
//!
//! This module must not know what else a job is about.

pub mod build;
pub mod known;
pub mod listed;
mod pack;
pub mod requirements;
mod store;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use sha2::{Digest, Sha256};
use spark_runtime_protocol::event::RuntimeUsed;
use spark_runtime_protocol::json::Fault;
use tokio::sync::Mutex;

use crate::config::{RuntimeSettings, SendRuntimes, Settings, SparkSettings};
use crate::spark::installation::{Environment, Installation};
use build::{BuildError, Recipe, environment_in, unpack};
use known::{AskError, Known};
use listed::{BUILT, DEFAULT, Listed, ListedError, Place, python_of};
use requirements::{Permission, Requirements, Wanted};
use store::{Found, Lease, Store};

/// At most so many runtimes are named in a sentence.
const MOST_NAMED: usize = 5;

/// The runtimes of a worker.
pub struct Runtimes {
    settings: RuntimeSettings,
    spark: SparkSettings,
    allowed: BTreeSet<Permission>,
    all: Vec<Candidate>,
    store: Store,
    /// What is known of environments that were built, by their keys.
    built: Mutex<HashMap<String, Arc<Known>>>,
}

/// A runtime, and what is known of it.
struct Candidate {
    name: String,
    python: Place,
    spark: SparkSettings,
    known: Mutex<Option<(Arc<Known>, Ready)>>,
}

/// A Python that can be started.
#[derive(Debug, Clone)]
struct Ready {
    python: PathBuf,
    /// Keeps it there.
    lease: Option<Lease>,
}

/// The runtime that a job gets.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// What the events say of it.
    pub used: RuntimeUsed,
    /// The settings by which it is run; `None` for those of the worker.
    pub spark: Option<SparkSettings>,
    /// Its Python.
    python: PathBuf,
    /// The archive that it was unpacked of.
    packed: Option<PathBuf>,
    /// Keeps an environment that was made here for as long as this lives.
    lease: Option<Lease>,
}

/// An environment for executors elsewhere. It stays for as long as this lives.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The archive, with `bin/python` in it.
    pub archive: PathBuf,
    _lease: Option<Lease>,
}

/// Why an environment cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It could not be packed this time.
    #[error("the environment {root} could not be packed for the executors: {source}")]
    Pack {
        /// Where it is.
        root: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why a job gets no runtime.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// No runtime here meets what it requires; others may have one that does.
    #[error("no runtime here meets what the job requires")]
    Unfit(Vec<Fault>),
    /// There cannot be one.
    #[error("no runtime can meet what the job requires")]
    Impossible(Vec<Fault>),
    /// One was to be made, and could not be this time.
    #[error("no runtime could be made: {0}")]
    NotMade(String),
}

impl Runtimes {
    /// The runtimes by the settings; what is made here is kept in `folder`.
    ///
    /// # Errors
    /// [`ListedError`].
    pub fn of(settings: &Settings, folder: PathBuf) -> Result<Self, ListedError> {
        let listed = match &settings.runtimes.file {
            Some(file) => listed::read(file)?,
            None => Vec::new(),
        };
        Ok(Self::new(&settings.runtimes, &settings.spark, listed, folder))
    }

    fn new(settings: &RuntimeSettings, spark: &SparkSettings, listed: Vec<Listed>, folder: PathBuf) -> Self {
        let first = Candidate {
            name: DEFAULT.to_owned(),
            python: Place::Program(python(spark)),
            spark: spark.clone(),
            known: Mutex::default(),
        };
        let candidate = |Listed { name, python, spark_home }: Listed| {
            let mut spark = spark.clone();
            if let Some(home) = spark_home {
                (spark.home, spark.submit) = (Some(home), None);
            }
            Candidate { name, python, spark, known: Mutex::default() }
        };
        Self {
            settings: settings.clone(),
            spark: spark.clone(),
            allowed: Permission::of(&settings.allow),
            all: std::iter::once(first).chain(listed.into_iter().map(candidate)).collect(),
            store: Store::new(folder, settings.cache_size),
            built: Mutex::default(),
        }
    }

    /// What lines of requirements may do here.
    #[must_use]
    pub fn allowed(&self) -> &BTreeSet<Permission> {
        &self.allowed
    }

    /// Whether a runtime is built for a job that none fits.
    #[must_use]
    pub fn builds(&self) -> bool {
        self.settings.builds
    }

    /// The runtime for a job that requires this.
    ///
    /// Dropping the future ends what is being made.
    ///
    /// # Errors
    /// [`ChooseError`].
    pub async fn choose(&self, wanted: &Requirements) -> Result<Runtime, ChooseError> {
        if wanted.all.is_empty() {
            let used = RuntimeUsed { name: DEFAULT.to_owned(), python: None };
            let python = python(&self.spark);
            return Ok(Runtime { used, spark: None, python, packed: None, lease: None });
        }
        match self.fitting(wanted).await {
            Ok(runtime) => Ok(runtime),
            Err(faults) if !self.settings.builds => Err(ChooseError::Unfit(faults)),
            Err(faults) => self.build(wanted, faults).await,
        }
    }

    /// The first runtime that meets all of it; else why none does.
    ///
    /// # Errors
    /// A fault for each requirement that no runtime meets, or one that says that none meets all.
    pub async fn fitting(&self, wanted: &Requirements) -> Result<Runtime, Vec<Fault>> {
        let mut seen = Vec::new();
        for candidate in &self.all {
            match candidate.know(&self.store, &self.settings).await {
                Ok((known, ready)) => {
                    if wanted.all.iter().all(|wanted| known.lack(&wanted.requirement).is_none()) {
                        return Ok(candidate.runtime(&known, ready));
                    }
                    seen.push((candidate.name.as_str(), Some(known)));
                }
                Err(error) => {
                    tracing::warn!(runtime = candidate.name, %error, "a runtime cannot be used");
                    seen.push((candidate.name.as_str(), None));
                }
            }
        }
        Err(unmet(wanted, &seen))
    }

    async fn build(&self, wanted: &Requirements, faults: Vec<Fault>) -> Result<Runtime, ChooseError> {
        let Some(base) = self.all.first() else { return Err(ChooseError::Unfit(faults)) };
        let not_made = |words: String| ChooseError::NotMade(words);
        let (known, ready) = base
            .know(&self.store, &self.settings)
            .await
            .map_err(|error| not_made(format!("its base cannot be used: {error}")))?;
        let needed: Vec<&Wanted> =
            wanted.all.iter().filter(|wanted| known.concerns(&wanted.requirement)).collect();
        // What Spark brings along is not installed, and cannot be had in another version.
        let of_spark = |wanted: &&&Wanted| known.is_of_spark(&wanted.requirement);
        let without_extras = |wanted: &Wanted| {
            let mut requirement = wanted.requirement.clone();
            requirement.extras.clear();
            known.lack(&requirement)
        };
        let other_spark: Vec<Fault> = needed
            .iter()
            .filter(of_spark)
            .filter_map(|wanted| {
                let lack = without_extras(wanted)?;
                let words = format!(
                    "{}: the Spark installation {lack}, and a runtime is built for no other",
                    wanted.words()
                );
                Some(Fault::new(&wanted.pointer, words))
            })
            .collect();
        if !other_spark.is_empty() {
            return Err(ChooseError::Unfit(other_spark));
        }
        let mut lines: Vec<String> = needed
            .iter()
            .filter(|wanted| !known.is_of_spark(&wanted.requirement))
            .map(|wanted| wanted.text())
            .collect();
        lines.sort();
        lines.dedup();
        let text = format!("{}\n", lines.join("\n"));
        let key = self.key(&ready.python, &known.python_version(), &text, &wanted.indexes);
        let recipe = Recipe {
            settings: &self.settings,
            base: &ready.python,
            requirements: &text,
            indexes: &wanted.indexes,
            is_hashed: needed.iter().any(|wanted| !wanted.hashes.is_empty()),
            deadline: Instant::now() + self.settings.build_timeout,
        };
        let lease = match self.built(&key, &recipe).await {
            Ok(lease) => lease,
            Err(BuildError::Impossible(words)) => {
                let pointer = needed.first().map_or("", |wanted| wanted.pointer.as_str());
                let words = format!("no runtime can be built of these requirements: {words}");
                return Err(ChooseError::Impossible(vec![Fault::new(pointer, words)]));
            }
            Err(error) => return Err(not_made(error.to_string())),
        };
        self.built_runtime(&key, lease, wanted).await
    }

    /// The environment that a recipe makes, made when it is not there.
    async fn built(&self, key: &str, recipe: &Recipe<'_>) -> Result<Lease, BuildError> {
        match self.store.obtain(key, recipe.deadline).await? {
            Found::Whole(lease) => Ok(lease),
            Found::Missing(making) => {
                tracing::info!(key, "a runtime is built");
                recipe.follow(&making.folder, making.maker.clone()).await?;
                Ok(making.done().await?)
            }
        }
    }

    /// A runtime that was built, once it has shown that it meets what it was built for.
    async fn built_runtime(
        &self,
        key: &str,
        lease: Lease,
        wanted: &Requirements,
    ) -> Result<Runtime, ChooseError> {
        let python = python_of(&environment_in(&lease.folder));
        let mut built = self.built.lock().await;
        let known = match built.get(key).filter(|known| known.is_fresh()) {
            Some(known) => known.clone(),
            None => {
                let known = ask(&python, &self.spark).await;
                let known = Arc::new(known.map_err(|error| ChooseError::NotMade(error.to_string()))?);
                built.insert(key.to_owned(), known.clone());
                known
            }
        };
        drop(built);
        let name = format!("{BUILT}{}", key.get(..8).unwrap_or(key));
        if wanted.all.iter().any(|wanted| known.lack(&wanted.requirement).is_some()) {
            return Err(ChooseError::Impossible(unmet(wanted, &[(name.as_str(), Some(known))])));
        }
        let used = RuntimeUsed { name, python: Some(known.python_version()) };
        let spark = Some(with_python(&self.spark, &python));
        Ok(Runtime { used, spark, python, packed: None, lease: Some(lease) })
    }

    /// The environment of `runtime` for executors elsewhere, packed when it was not yet; `None` where they are to find it
    /// at the same path.
    ///
    /// Dropping the future gives up what is being packed.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&self, runtime: &Runtime) -> Result<Option<Sent>, SendError> {
        let is_made = runtime.lease.is_some();
        match self.settings.send {
            SendRuntimes::Never => return Ok(None),
            SendRuntimes::Made if !is_made => return Ok(None),
            SendRuntimes::Made | SendRuntimes::Always => {}
        }
        if let Some(archive) = runtime.packed.as_ref().filter(|archive| pack::is_for_spark(archive)) {
            return Ok(Some(Sent { archive: archive.clone(), _lease: None }));
        }
        let root = match pack::environment_of(&runtime.python) {
            Some(root) => root,
            // What was made here is one, whatever lies in it.
            None if is_made => match runtime.python.parent().and_then(Path::parent) {
                Some(root) => root.to_owned(),
                None => return Ok(None),
            },
            None => {
                tracing::warn!(python = %runtime.python.display(), "a Python that is in no environment is not sent");
                return Ok(None);
            }
        };
        let archive = self.packed(&root, runtime.lease.clone()).await;
        archive.map(Some).map_err(|source| SendError::Pack { root, source })
    }

    /// `used` keeps the environment there until it is packed.
    async fn packed(&self, root: &Path, used: Option<Lease>) -> std::io::Result<Sent> {
        let of = root.to_owned();
        let key = blocking(move || pack::key_of(&of)).await?;
        let deadline = Instant::now() + self.settings.build_timeout;
        let lease = match self.store.obtain(&key, deadline).await? {
            Found::Whole(lease) => lease,
            Found::Missing(making) => {
                tracing::info!(root = %root.display(), key, "an environment is packed for executors");
                let of = root.to_owned();
                let making = blocking(move || {
                    let _used = used;
                    pack::pack(&of, &making.folder).map(|()| making)
                });
                making.await?.done().await?
            }
        };
        Ok(Sent { archive: pack::archive_in(&lease.folder), _lease: Some(lease) })
    }

    /// By what a built runtime is known again: everything that it depends on.
    fn key(&self, base: &Path, version: &str, requirements: &str, indexes: &[String]) -> String {
        let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
        let index = format!("{:?} {indexes:?} {}", self.settings.index, self.settings.builds_sources);
        let parts = [base.to_string_lossy().as_ref(), version, requirements, &index].map(str::to_owned);
        key_of(&parts)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let worked = tokio::task::spawn_blocking(work);
    worked.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

fn key_of(parts: &[String]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl Candidate {
    /// What is known of it; it is asked when that is not known yet, or has changed.
    async fn know(
        &self,
        store: &Store,
        settings: &RuntimeSettings,
    ) -> Result<(Arc<Known>, Ready), UnusableError> {
        let mut slot = self.known.lock().await;
        if let Some((known, ready)) = &*slot
            && known.is_fresh()
        {
            return Ok((known.clone(), ready.clone()));
        }
        let ready = match &self.python {
            Place::Program(python) => Ready { python: python.clone(), lease: None },
            Place::Packed(archive) => self.unpacked(archive, store, settings).await?,
        };
        let known = Arc::new(ask(&ready.python, &self.spark).await?);
        tracing::info!(runtime = self.name, python = known.python_version(), "a runtime is known");
        *slot = Some((known.clone(), ready.clone()));
        Ok((known, ready))
    }

    async fn unpacked(
        &self,
        archive: &Path,
        store: &Store,
        settings: &RuntimeSettings,
    ) -> Result<Ready, UnusableError> {
        let metadata = std::fs::metadata(archive).map_err(BuildError::Folder)?;
        let changed = metadata.modified().map_err(BuildError::Folder)?;
        let parts = [archive.display().to_string(), metadata.len().to_string(), format!("{changed:?}")];
        let deadline = Instant::now() + settings.build_timeout;
        let lease = match store.obtain(&key_of(&parts), deadline).await.map_err(BuildError::Folder)? {
            Found::Whole(lease) => lease,
            Found::Missing(making) => {
                unpack(archive, &making.folder, deadline, making.maker.clone()).await?;
                making.done().await.map_err(BuildError::Folder)?
            }
        };
        Ok(Ready { python: python_of(&environment_in(&lease.folder)), lease: Some(lease) })
    }

    fn runtime(&self, known: &Known, ready: Ready) -> Runtime {
        let used = RuntimeUsed { name: self.name.clone(), python: Some(known.python_version()) };
        let spark = (self.name != DEFAULT).then(|| with_python(&self.spark, &ready.python));
        let packed = match &self.python {
            Place::Packed(archive) => Some(archive.clone()),
            Place::Program(_) => None,
        };
        Runtime { used, spark, python: ready.python, packed, lease: ready.lease }
    }
}

/// Why a runtime cannot be used.
#[derive(Debug, thiserror::Error)]
enum UnusableError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Unpack(#[from] BuildError),
}

async fn ask(python: &Path, spark: &SparkSettings) -> Result<Known, AskError> {
    let installation = installation(spark);
    let environment = Environment::of(spark, Some(&installation)).pairs();
    Known::ask(python, environment, installation.home.as_deref()).await
}

fn installation(spark: &SparkSettings) -> Installation {
    Installation::find(spark)
        .unwrap_or(Installation { submit: "spark-submit".into(), home: spark.home.clone() })
}

/// The Python that drivers get by these settings.
fn python(spark: &SparkSettings) -> PathBuf {
    Environment::of(spark, Some(&installation(spark))).python().into()
}

fn with_python(spark: &SparkSettings, python: &Path) -> SparkSettings {
    SparkSettings { python: Some(python.to_owned()), ..spark.clone() }
}

/// Each requirement that no runtime meets, and why each of them does not; when each is met by one of them, that none
/// meets all.
fn unmet(wanted: &Requirements, seen: &[(&str, Option<Arc<Known>>)]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for wanted in &wanted.all {
        let lacks: Option<Vec<String>> = seen
            .iter()
            .map(|(name, known)| match known {
                Some(known) => known.lack(&wanted.requirement).map(|lack| format!("{name} {lack}")),
                None => Some(format!("{name} cannot be used")),
            })
            .collect();
        let Some(lacks) = lacks else { continue };
        let words = format!("{} is met by no runtime here: {}", wanted.words(), shortened(&lacks));
        faults.push(Fault::new(&wanted.pointer, words));
    }
    if faults.is_empty() {
        let first_lacks: Vec<String> = seen
            .iter()
            .filter_map(|(name, known)| {
                let known = known.as_ref()?;
                let lacking = wanted.all.iter().find(|wanted| known.lack(&wanted.requirement).is_some())?;
                Some(format!("{name} does not meet {}", lacking.words()))
            })
            .collect();
        let pointer = wanted.all.first().map_or("", |wanted| wanted.pointer.as_str());
        let words = format!("no runtime here meets all of these requirements: {}", shortened(&first_lacks));
        faults.push(Fault::new(pointer, words));
    }
    faults
}

fn shortened(all: &[String]) -> String {
    let shown = all.iter().take(MOST_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MOST_NAMED) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}

#[cfg(test)]
mod tests;
