//! A worker: slots, their handlers, the ledger, and everything around them from start to leaving.
//!
//! This module puts `broker/`, `job/` and `spark/` together; it decides nothing about a single job.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use spark_runtime_protocol::topology::{COMMANDS_QUEUE, EXPELLED_QUEUE, JOBS_QUEUE, Topology};
use tokio::sync::watch;

use crate::broker::history::History;
use crate::broker::ledger::checkpoint::keep_written;
use crate::broker::ledger::tail::{follow, keep_forgetting};
use crate::broker::ledger::{Ledger, leave};
use crate::broker::publisher::Publisher;
use crate::broker::session::{keep_connected, keep_declared};
use crate::broker::slots::{Leaving, Lending, Slots};
use crate::clock::BootTime;
use crate::config::Settings;
use crate::job::absences::notes_folder;
use crate::job::assign::{Assigner, Expelled, Jobs};
use crate::job::check::Judge;
use crate::job::claim::Reader;
use crate::job::command::Commands;
use crate::job::load::Load;
use crate::job::resolve::{repositories_folder, runtimes_folder};
use crate::job::settle::Desk;
use crate::job::{Announce, Context, in_words, kept_folder};
use crate::repository::Repositories;
use crate::runtimes::Runtimes;
use crate::runtimes::listed::ListedError;
use crate::spark::archive::{Archives, cache_folder};
use crate::spark::backends::Backends;
use crate::spark::class_data::ClassData;
use crate::spark::client_mode::ClientMode;
use crate::spark::guard::LastWill;
#[cfg(feature = "kubernetes")]
use crate::spark::kubernetes::cluster_mode::PodMode;
use crate::spark::policy::PolicyError;
#[cfg(feature = "yarn")]
use crate::spark::yarn::cluster_mode::ClusterMode;
use crate::spark::{Backend, SubmitError};

/// The file that a live worker holds a lock on.
const LOCK: &str = "lock";
/// How long after it knows the ledger a worker has its consumers at the latest, mostly.
const SETTLING: Duration = Duration::from_secs(5);
/// How often what was kept is looked through.
const PRUNING: Duration = Duration::from_secs(60 * 60);
/// The file that is locked by whoever makes or sweeps folders.
const DOOR: &str = "door";
/// How long events may take to get out once every job is over.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The operator's policy is none.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The operator's runtimes are none.
    #[error(transparent)]
    Runtimes(#[from] ListedError),
    /// The setting `broker.uri`, or what belongs to it.
    #[error("{0}")]
    Broker(String),
    /// The folder for attempts.
    #[error("the folder {path} cannot be used for jobs: {source}; set job.directory")]
    Directory {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The guard.
    #[error(transparent)]
    Guard(#[from] SubmitError),
    /// Somebody took this worker for dead and gave its jobs away.
    #[error("the ledger says that this worker is dead; it has ended its jobs; start it again")]
    DeclaredDead,
}

/// The folder of one worker's attempts, held for as long as this lives.
pub struct Home {
    /// The folder.
    pub path: PathBuf,
    _lock: Flock<File>,
}

impl Home {
    /// Makes the folder for the attempts of `worker` below `directory`, and removes those of workers that are gone.
    ///
    /// # Errors
    /// [`ServiceError::Directory`].
    pub fn make(directory: &Path, worker: &str) -> Result<Self, ServiceError> {
        let path = directory.join(worker);
        let fault = |source: std::io::Error| ServiceError::Directory { path: path.clone(), source };
        make_private(directory).map_err(fault)?;
        // One at a time: a folder that is not locked yet must not be taken for one whose worker is gone.
        let door = File::create(directory.join(DOOR)).map_err(fault)?;
        let _door = Flock::lock(door, FlockArg::LockExclusive).map_err(|(_, errno)| fault(errno.into()))?;
        sweep(directory);
        make_private(&path).map_err(fault)?;
        let file = File::create(path.join(LOCK)).map_err(fault)?;
        let lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| fault(errno.into()))?;
        Ok(Self { path, _lock: lock })
    }
}

impl Home {
    /// Lets go of the folder without removing it, for the sake of what is in it.
    pub fn leave(self) {
        // The lock goes with the process.
        std::mem::forget(self);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the worker's folder could not be removed");
        }
    }
}

fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes what was kept for longer than `keep_for`.
fn prune(kept: &Path, keep_for: Duration) {
    let Ok(entries) = std::fs::read_dir(kept) else { return };
    for entry in entries.flatten() {
        let age = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|when| when.elapsed().ok());
        if age.is_some_and(|age| age > keep_for)
            && let Err(error) = remove_all(&entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "what was kept for long could not be removed");
        }
    }
}

/// Removes a folder with all that is in it, or a file.
fn remove_all(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

/// Prunes now and then.
async fn keep_pruned(kept: PathBuf, keep_for: Duration) {
    loop {
        let folder = kept.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || prune(&folder, keep_for)).await {
            tracing::error!(%error, "kept directories could not be looked through");
        }
        tokio::time::sleep(PRUNING.min(keep_for)).await;
    }
}

/// Removes the folders of workers that are gone: those whose lock nobody holds.
fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(file) = File::open(entry.path().join(LOCK)) else { continue };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            tracing::info!(path = %entry.path().display(), "the folder of a worker that is gone is removed");
            if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::warn!(%error, path = %entry.path().display(), "the folder could not be removed");
            }
        }
    }
}

/// The name of this worker instance: the one of the settings, or the machine's and process's, and four random digits so
/// that no two instances ever share one.
#[must_use]
pub fn instance_name(settings: &Settings) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let name = match settings.worker.name.as_str() {
        "" => format!("{}-{}", crate::job::collect::host(), std::process::id()),
        name => name.to_owned(),
    };
    let plain: String = name
        .chars()
        .take(80)
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
        .collect();
    format!("{plain}-{}", &unique[..4])
}

/// A number of the settings; 0 stands for the machine's processors.
fn or_processors(count: usize) -> usize {
    if count > 0 { count } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
}

/// What an attempt needs, for a worker or for a single run.
///
/// # Errors
/// [`ServiceError::Policy`], [`ServiceError::Runtimes`].
pub fn context(
    settings: &Settings,
    worker: &str,
    home: &Home,
    backend: Arc<ClientMode>,
    announce: Arc<dyn Announce>,
    lease_ends: Option<watch::Receiver<Option<BootTime>>>,
) -> Result<Context, ServiceError> {
    Ok(Context {
        judge: Judge::of(settings)?,
        repositories: repositories(settings),
        runtimes: runtimes(settings)?,
        settings: settings.clone(),
        backend: backends(settings, backend),
        load: Load::new(or_processors(settings.worker.max_submits), settings.yarn.max_followed),
        lending: Lending::new(settings.yarn.max_followed),
        worker: worker.to_owned(),
        directory: home.path.clone(),
        announce,
        lease_ends,
    })
}

/// What gets the files that jobs have in repositories, by the settings.
#[must_use]
pub fn repositories(settings: &Settings) -> Repositories {
    Repositories::new(&settings.git, repositories_folder(&settings.job.directory))
}

/// What jobs can be run with, by the settings.
///
/// # Errors
/// [`ServiceError::Runtimes`].
pub fn runtimes(settings: &Settings) -> Result<Runtimes, ServiceError> {
    Ok(Runtimes::of(settings, runtimes_folder(&settings.job.directory))?)
}

/// All ways of running, with `client` for what runs on this machine.
fn backends(settings: &Settings, client: Arc<ClientMode>) -> Arc<dyn Backend> {
    #[cfg(feature = "kubernetes")]
    let kubernetes = PodMode::new(settings, client.clone());
    #[cfg(feature = "yarn")]
    let yarn = ClusterMode::new(settings, client.clone());
    #[cfg(not(any(feature = "kubernetes", feature = "yarn")))]
    let _ = settings;
    Arc::new(Backends::new(
        client,
        #[cfg(feature = "kubernetes")]
        kubernetes,
        #[cfg(feature = "yarn")]
        yarn,
    ))
}

/// The back end by the settings, with this program as its guard.
#[must_use]
pub fn backend(settings: &Settings) -> ClientMode {
    ClientMode::new(&settings.spark, settings.log.limit, "/proc/self/exe".into())
        .with_archives(Archives::of(settings))
        .with_class_data(ClassData::new(cache_folder(&settings.job.directory)))
}

/// Runs a worker until it has left. `leaving` tells it to.
///
/// # Errors
/// [`ServiceError`] when it cannot start. A broker that is away is no reason not to.
pub async fn serve(settings: Settings, leaving: watch::Receiver<Leaving>) -> Result<(), ServiceError> {
    let endpoint = settings.endpoint().map_err(|error| ServiceError::Broker(error.to_string()))?;
    let address =
        settings.address().map_err(|error| ServiceError::Broker(error.to_string()))?.expose().to_owned();
    let worker = instance_name(&settings);
    let home = Home::make(&settings.job.directory, &worker)?;
    let client_mode = Arc::new(backend(&settings));
    let (publisher, lanes) =
        Publisher::new(&endpoint, format!("{worker} publish"), settings.broker.publish_timeout)
            .map_err(|error| ServiceError::Broker(error.to_string()))?;
    let ledger = Ledger::new(&worker, settings.ledger.lease, publisher.clone());
    let announce = Arc::new(publisher.clone());
    let lease_ends = Some(ledger.lease_ends());
    let context = Arc::new(context(&settings, &worker, &home, client_mode.clone(), announce, lease_ends)?);
    client_mode.prepare().await?;
    let pruning = tokio::spawn(keep_pruned(kept_folder(&settings.job.directory), settings.job.keep_for));
    let notes = notes_folder(&settings.job.directory);
    if let Err(error) = crate::spark::installation::Installation::find(&settings.spark) {
        tracing::warn!(%error, "jobs will fail until this is mended");
    }
    let running = or_processors(settings.worker.max_running);
    tracing::info!(
        worker,
        %endpoint,
        running,
        lease = in_words(settings.ledger.lease),
        retention = in_words(settings.ledger.retention),
        directory = %home.path.display(),
        "the worker is there"
    );

    let (sessions, session) = watch::channel(None);
    let topology = Topology::new(&settings.shape());
    let connecting = tokio::spawn(keep_connected(
        endpoint,
        format!("{worker} consume"),
        topology,
        settings.job.run_timeout,
        sessions,
    ));
    let background = [
        connecting,
        pruning,
        // For as long as a job's attempts are known.
        tokio::spawn(keep_pruned(notes, settings.ledger.retention)),
        tokio::spawn(context.load.clone().keep_told(settings.log.load_every)),
        tokio::spawn(keep_declared(publisher.missing(), session.clone())),
        tokio::spawn(follow(ledger.clone(), session.clone())),
        tokio::spawn(keep_forgetting(ledger.clone(), session.clone())),
        tokio::spawn(keep_written(
            ledger.clone(),
            session.clone(),
            publisher.clone(),
            settings.ledger.checkpoint_every,
        )),
        tokio::spawn(keep_fenced(client_mode.clone(), ledger.clone())),
        tokio::spawn(settle_down(ledger.clone())),
        tokio::spawn({
            let ledger = ledger.clone();
            async move { ledger.keep_renewed().await }
        }),
    ];
    let will = LastWill {
        program: None,
        arguments: vec![leave::VERB.into()],
        environment: certificates(),
        input: leave::Obituary::new(address, &settings.broker, ledger.instance()).encode(),
        // Then others take the jobs over without it.
        patience: settings.ledger.lease,
    };
    if let Err(error) = client_mode.last_will(will).await {
        tracing::warn!(%error, "if this worker dies, its jobs will wait for the end of its lease");
    }
    let reader = Reader { worker: worker.clone(), max_size: settings.job.max_size };
    let history = History::new(publisher.clone(), session.clone());
    let desk = Desk { publisher: publisher.clone(), ledger: ledger.clone(), history };
    let assigner =
        Arc::new(Assigner::new(context.clone(), desk, reader, client_mode.clone(), session.clone()));
    let watchdog = settings.worker.watchdog;
    let mut left = leaving.clone();
    tokio::select! {
        () = ledger.ready() => {}
        _ = left.wait_for(|leaving| *leaving > Leaving::No) => {}
    }
    let jobs = Arc::new(Jobs(assigner.clone()));
    let expelled = Arc::new(Expelled(assigner));
    let commands = Arc::new(Commands { publisher: publisher.clone(), ledger: ledger.clone() });
    // A worker that takes no more jobs still takes commands about those that it has.
    let (dismiss, dismissed) = watch::channel(Leaving::No);
    let commands = Slots::new(COMMANDS_QUEUE, commands, session.clone(), dismissed);
    let lending = context.lending.clone();
    let served = async {
        // What was said while no worker was there comes before the jobs that it is about.
        tokio::select! {
            () = commands.handle_waiting() => {}
            _ = left.wait_for(|leaving| *leaving > Leaving::No) => {}
        }
        let jobs = async {
            tokio::join!(
                Slots::lending(JOBS_QUEUE, jobs, session.clone(), leaving.clone(), lending)
                    .serve(running, watchdog),
                Slots::new(EXPELLED_QUEUE, expelled, session.clone(), leaving).serve(1, watchdog),
            );
            dismiss.send_replace(Leaving::Now);
        };
        tokio::join!(jobs, commands.serve(1, watchdog));
    };
    let dead = tokio::select! {
        _ = served => false,
        () = ledger.declared_dead() => true,
    };
    tracing::info!(worker, "every job is over; the worker leaves");
    drop((context, publisher, ledger));
    for task in &background {
        task.abort();
    }
    if dead {
        return Err(ServiceError::DeclaredDead);
    }
    if let Err(error) = client_mode.no_last_will().await {
        tracing::debug!(%error, "the guard was not told that this worker leaves in order");
    }
    lanes.finish(LAST_WORDS).await;
    Ok(())
}

/// What a program needs of the environment to trust the broker's certificate.
fn certificates() -> Vec<(OsString, OsString)> {
    let names = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
    names.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))).collect()
}

/// Tells the guard until when drivers may run, whenever the ledger knows it anew.
async fn keep_fenced(backend: Arc<ClientMode>, ledger: Ledger) {
    let mut lease_ends = ledger.lease_ends();
    drop(ledger);
    while lease_ends.changed().await.is_ok() {
        let ends = *lease_ends.borrow_and_update();
        if let Some(ends) = ends {
            backend.alive_until(ends).await;
        }
    }
}

/// Gives back the code that only a start needs, once that is over: a worker may be idle for long.
async fn settle_down(ledger: Ledger) {
    ledger.ready().await;
    drop(ledger);
    tokio::time::sleep(SETTLING).await;
    crate::spark::guard::give_code_back();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_of_a_worker_that_is_gone_is_removed_and_that_of_a_live_one_is_not() {
        let place = tempfile::tempdir().unwrap();
        let gone = place.path().join("gone");
        std::fs::create_dir(&gone).unwrap();
        std::fs::write(gone.join(LOCK), "").unwrap();
        let live = Home::make(place.path(), "live").unwrap();
        assert!(!gone.exists());
        let other = Home::make(place.path(), "other").unwrap();
        assert!(live.path.exists() && other.path.exists());
        drop(live);
        assert!(other.path.exists() && !place.path().join("live").exists());
    }

    #[test]
    fn what_is_kept_goes_when_its_time_is_over() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("a")).unwrap();
        std::fs::write(place.path().join("b"), "").unwrap();
        prune(place.path(), Duration::from_secs(60));
        assert!(place.path().join("a").exists() && place.path().join("b").exists());
        std::thread::sleep(Duration::from_millis(5));
        prune(place.path(), Duration::from_millis(1));
        assert!(!place.path().join("a").exists() && !place.path().join("b").exists());
    }

    #[test]
    fn no_two_instances_share_a_name() {
        let settings = Settings::load(&crate::config::Sources::default()).unwrap();
        assert_ne!(instance_name(&settings), instance_name(&settings));
    }
}
