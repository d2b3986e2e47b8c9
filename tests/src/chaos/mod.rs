//! The chaos run: many real workers on a real broker, under every fault that the run can think of, and then a count of
//! whether every job came to one end and was never run twice at once.
//!
//! ```text
//! publishers ──wire──> broker ──> wire ──> worker ──> guard ──> shim ──> fake spark-submit ──> journal
//!                        │          ^ spoiled     ^ killed, stopped                               │
//!                        │ killed, restarted, alarmed                                             v
//!                        └──> witness ──> book ────────────────────────────────────────────> verdict
//! ```
//!
//! - [`plan`] says by a seed which jobs there are, how they are published, and which faults there are in which order.
//! - [`publishers`] publish, some of them twice or dying; [`witness`] hears every event; both write into the [`book`].
//! - [`faults`] does the faults, to the workers of a [`pool`], to their wires and to the broker. They are spread over the
//!   run by how many jobs are over, so that a slow machine has as many of them for each job as a quick one.
//! - Every run of a job writes into a journal, and holds a lock that the system takes away at its end: that two runs
//!   overlap is told by the system and not guessed from clocks.
//! - The [`verdict`] compares the journal with the book.
//!
//! Not done to the service: stopping a worker and its guard at one time while their jobs go on. Nobody is left then who
//! could end the jobs, and no service that starts processes on a machine can help it.
//!
//! This module works against the wire and the command line only: it must not know how the service does anything.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a run that cannot have its processes and files cannot go on"
)]

pub mod book;
pub mod faults;
pub mod plan;
pub mod pool;
pub mod publishers;
pub mod soak;
pub mod takeover;
pub mod timeline;
pub mod verdict;
pub mod witness;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::topology::DEAD_QUEUE;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::program::spark_runtime;
use crate::wire::Wire;
use book::Book;
use faults::{Faults, Pace, count};
use plan::{Counts, Features, Jobs};
use pool::{Pool, Start};
use publishers::{Canceller, Press, Publisher};
use timeline::Timeline;
use verdict::{Journal, Remains, Verdict};
use witness::Witness;

const LOOK: Duration = Duration::from_millis(250);
/// How often a run says where it stands.
const REPORT: Duration = Duration::from_secs(10);
/// How long workers may take to leave.
const LEAVING: Duration = Duration::from_secs(40);
/// How long processes may take to end once nobody wants them.
const ORPHANS: Duration = Duration::from_secs(15);
const PUBLISHERS: usize = 3;

/// What a run is to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many jobs.
    pub jobs: u64,
    /// Decides on everything.
    pub seed: u64,
    /// How many faults.
    pub counts: Counts,
    /// How many workers.
    pub workers: usize,
    /// How many of them nobody kills.
    pub spared: usize,
    /// How many jobs each runs at once.
    pub slots: usize,
    /// The workers' lease.
    pub lease: Duration,
    /// The workers know the setting `ledger.lease`.
    pub has_lease: bool,
    /// The workers' heartbeat.
    pub heartbeat: Duration,
    /// The workers' `retry.max_attempts`.
    pub max_attempts: u32,
    /// How many jobs may be published and not ended.
    pub backlog: usize,
    /// What is tried.
    pub features: Features,
    /// More settings of the workers, each `key=value`.
    pub settings: Vec<String>,
    /// What the workers log.
    pub log: String,
    /// Everything of the run lies here.
    pub folder: PathBuf,
    /// When nothing changes for so long, what is not there is lost.
    pub patience: Duration,
}

impl Options {
    /// A run of that size with the usual workers.
    #[must_use]
    pub fn new(jobs: u64, seed: u64, counts: Counts, folder: PathBuf) -> Self {
        Self {
            jobs,
            seed,
            counts,
            workers: 6,
            spared: 0,
            slots: 4,
            lease: Duration::from_secs(3),
            has_lease: true,
            heartbeat: Duration::from_secs(2),
            max_attempts: 8,
            backlog: 240,
            features: Features::default(),
            settings: Vec::new(),
            log: "info,lapin=off".to_owned(),
            folder,
            patience: Duration::from_secs(90),
        }
    }

    /// The workers' settings.
    fn settings(&self) -> Vec<String> {
        let mut settings = vec![
            format!("worker.max_running={}", self.slots),
            format!("worker.max_submits={}", self.slots),
            format!("broker.heartbeat={}s", self.heartbeat.as_secs()),
            format!("retry.max_attempts={}", self.max_attempts),
            "retry.delays=200ms,1s".to_owned(),
            "job.kill_grace=1s".to_owned(),
            "job.keep=never".to_owned(),
            "worker.drain_grace=20s".to_owned(),
            // So that most workers that start go on from one.
            "ledger.checkpoint_every=200".to_owned(),
        ];
        if self.has_lease {
            settings.push(format!("ledger.lease={}ms", self.lease.as_millis()));
        }
        settings.extend(self.settings.iter().cloned());
        settings
    }
}

/// A broker with the service's topology, workers on it, publishers and a witness.
///
/// Dropping it ends all of it.
#[derive(Debug)]
pub struct Stage {
    broker: Arc<Mutex<Broker>>,
    endpoint: Endpoint,
    /// The workers.
    pub pool: Arc<Pool>,
    /// What is known.
    pub book: Arc<Book>,
    /// What happened.
    pub timeline: Timeline,
    press: Arc<Press>,
    folder: PathBuf,
    journal: PathBuf,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.pool.kill_all();
        // What the broker has written goes with it, all but its logs.
        for name in ["log", "log.previous"] {
            let _ = std::fs::rename(
                self.folder.join("broker").join(name),
                self.folder.join(format!("broker-{name}")),
            );
        }
        self.broker.lock().unwrap_or_else(PoisonError::into_inner).remove();
    }
}

impl Stage {
    /// Sets everything up. Publishers begin as soon as there are jobs: `jobs` of them.
    ///
    /// # Panics
    /// When something cannot be set up.
    pub async fn set(options: &Options, jobs: u64) -> Self {
        let folder = &options.folder;
        for part in ["workers/logs", "counters", "journal"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        let timeline = Timeline::new(&folder.join("timeline.log")).unwrap();
        let place = folder.join("broker");
        let broker = tokio::task::spawn_blocking(move || Broker::start_in(place, &[])).await.unwrap();
        let port = broker.port();
        let uri = broker.uri_at(port);
        let any_port = broker.uri_at("PORT");
        let broker = Arc::new(Mutex::new(broker));
        let settings = options.settings();
        declare_topology(&uri, &settings).await;

        let book = Arc::new(Book::default());
        let endpoint = Endpoint::new(&uri, Duration::from_secs(10)).unwrap();
        let witness = Witness::new(endpoint.clone(), book.clone(), &folder.join("events.log")).await.unwrap();
        let mut tasks = vec![tokio::spawn(witness.listen())];
        let start = Start {
            uri: any_port.clone(),
            spared: options.spared,
            settings: settings.clone(),
            arguments: vec!["--log".to_owned(), options.log.clone()],
            folder: folder.join("workers"),
        };
        let pool = Pool::open(start, options.workers, port, timeline.clone()).await;
        tasks.push(tokio::spawn(pool.clone().keep()));

        let journal = folder.join("journal").join("runs");
        let plan = Jobs {
            seed: options.seed,
            features: options.features,
            journal: journal.clone(),
            counters: folder.join("counters"),
        };
        let canceller = Canceller { uri: uri.clone(), settings };
        let press = Press::new(plan, jobs, options.backlog, book.clone(), timeline.clone(), canceller);
        let press = Arc::new(press);
        for _ in 0..PUBLISHERS {
            let wire = Wire::to(port).await;
            let uri = any_port.replace("PORT", &wire.port.to_string());
            let endpoint = Endpoint::new(&uri, Duration::from_secs(10)).unwrap();
            tasks.push(tokio::spawn(Publisher::new(press.clone(), wire, endpoint).work()));
        }
        let folder = folder.clone();
        Self { broker, endpoint, pool, book, timeline, press, folder, journal, tasks }
    }

    /// Whoever does faults to it.
    #[must_use]
    pub fn faults(&self) -> Arc<Faults> {
        Faults::new(self.pool.clone(), self.broker.clone(), self.timeline.clone(), self.book.clone())
    }

    /// Waits until every job that is owed an end has it and every publication was answered, or until nothing has
    /// changed for too long.
    async fn all_over(&self, patience: Duration) {
        loop {
            if self.press.is_empty() && self.book.is_quiet() {
                return;
            }
            if self.book.standing().quiet > patience {
                self.timeline.note("nothing changes any more");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until no queue holds anything that somebody has to do something about, or until that has taken too long.
    async fn queues_empty(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            // What a worker holds is not counted, but comes back to the queue if it is not settled.
            let left = self.in_queues().await;
            if left.as_ref().is_ok_and(BTreeMap::is_empty) && self.unacknowledged().await == 0 {
                return;
            }
            if Instant::now() >= deadline {
                self.timeline.note(&format!("queues do not get empty: {left:?}"));
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks the management interface on a thread of its own.
    async fn http(&self, path: &'static str) -> serde_json::Value {
        let broker = self.broker.clone();
        let asked = tokio::task::spawn_blocking(move || {
            broker.lock().unwrap_or_else(PoisonError::into_inner).try_http("GET", path, None)
        });
        asked.await.unwrap().map(|(_, answer)| answer).unwrap_or_default()
    }

    async fn unacknowledged(&self) -> u64 {
        let queues = self.http("/api/queues/%2f?columns=name,messages_unacknowledged").await;
        let queues = queues.as_array().cloned().unwrap_or_default();
        queues.iter().filter_map(|queue| queue["messages_unacknowledged"].as_u64()).sum()
    }

    /// The messages that lie ready in queues where there must be none in the end: all but the dead queue and streams.
    async fn in_queues(&self) -> Result<BTreeMap<String, u64>, lapin::Error> {
        let queues = self.http("/api/queues/%2f?columns=name,type").await;
        let queues = queues.as_array().cloned().unwrap_or_default();
        let connection = self.endpoint.connect("chaos count").await.map_err(std::io::Error::other)?;
        let channel = connection.create_channel().await?;
        let mut left = BTreeMap::new();
        for queue in queues.iter().filter(|queue| queue["type"] != "stream") {
            let name = queue["name"].as_str().unwrap_or_default();
            if name == DEAD_QUEUE {
                continue;
            }
            let options = QueueDeclareOptions { passive: true, ..Default::default() };
            let found = channel.queue_declare(name.into(), options, FieldTable::default()).await?;
            if found.message_count() > 0 {
                left.insert(name.to_owned(), found.message_count().into());
            }
        }
        let _ = connection.close(200, "done".into()).await;
        Ok(left)
    }

    /// The ids of the jobs in the dead queue, which is empty afterwards.
    async fn dead(&self) -> Result<HashMap<String, usize>, lapin::Error> {
        let connection = self.endpoint.connect("chaos count").await.map_err(std::io::Error::other)?;
        let channel = connection.create_channel().await?;
        let mut dead = HashMap::new();
        while let Some(message) = channel.basic_get(DEAD_QUEUE.into(), BasicGetOptions::default()).await? {
            let id = message.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default();
            *dead.entry(id).or_default() += 1;
            message.acker.ack(BasicAckOptions::default()).await?;
        }
        let _ = connection.close(200, "done".into()).await;
        Ok(dead)
    }

    /// Mends everything, waits for every end, stops the workers and judges.
    ///
    /// # Panics
    /// When the broker cannot be asked.
    pub async fn judge(&self, options: &Options) -> Verdict {
        self.pool.mend();
        self.all_over(options.patience).await;
        self.queues_empty(options.lease * 3 + Duration::from_secs(30)).await;
        let did_not_leave = self.pool.close(LEAVING).await;
        let orphans = self.pool.orphans(ORPHANS).await;
        let remains = Remains {
            orphans,
            in_queues: self.in_queues().await.expect("the queues can be counted"),
            dead: self.dead().await.expect("the dead queue can be read"),
            ended_by_themselves: self.pool.ends().by_themselves,
            did_not_leave,
        };
        let journal = Journal::read(&self.journal);
        Verdict::of(&self.book, &journal, remains, options.max_attempts, &self.timeline, &self.pool.logs())
    }

    /// Says where a run stands, again and again.
    async fn report(&self, faults: &Faults) {
        let start = Instant::now();
        loop {
            tokio::time::sleep(REPORT).await;
            let standing = self.book.standing();
            println!(
                "{:5} s: {} jobs published, {} ended; {} kills and {} by jobs, {} pauses, {} wire faults, {} broker faults; {} workers",
                start.elapsed().as_secs(),
                standing.published,
                standing.ended,
                faults.done.kills(),
                self.pool.ends().by_jobs,
                count(&faults.done.pauses),
                count(&faults.done.wires),
                count(&faults.done.brokers),
                self.pool.present(),
            );
        }
    }
}

/// What a run was and came to.
#[derive(Debug)]
pub struct Outcome {
    /// What was found.
    pub verdict: Verdict,
    /// The last line, with every number that counts.
    pub summary: String,
}

/// Runs and judges. Says where it stands on the standard output.
///
/// # Panics
/// When the run itself cannot go on.
pub async fn run(options: &Options) -> Outcome {
    let started = Instant::now();
    let stage = Stage::set(options, options.jobs).await;
    println!("everything is in {}", options.folder.display());
    let faults = stage.faults();
    let plan = plan::faults(options.seed, options.counts, options.lease);
    let run = async {
        // A fault that cannot be done ends the run.
        tokio::spawn(faults.clone().inflict(plan, Pace::Jobs(options.jobs))).await.unwrap();
        stage.pool.mend();
        stage.all_over(options.patience).await;
    };
    tokio::select! {
        () = run => {}
        () = stage.report(&faults) => {}
    }
    let took = started.elapsed();
    let verdict = stage.judge(options).await;
    let summary = conclude(options, &stage, &faults, &verdict, took);
    Outcome { verdict, summary }
}

/// Prints the verdict and gives the last line.
fn conclude(options: &Options, stage: &Stage, faults: &Faults, verdict: &Verdict, took: Duration) -> String {
    let ends = stage.pool.ends();
    let (jobs, done) = (stage.book.standing().published, &faults.done);
    println!("\n{verdict}");
    println!(
        "  {jobs} jobs in {:.0} s: {:.1} jobs/s; {} worker processes; killed: {} workers, {} guards, {} both, {} by jobs; {} pauses, {} told to leave, {} wire faults; {} publishers died",
        took.as_secs_f64(),
        f64::from(u32::try_from(jobs).unwrap_or(u32::MAX)) / took.as_secs_f64(),
        stage.pool.started(),
        count(&done.workers),
        count(&done.guards),
        count(&done.both),
        ends.by_jobs,
        count(&done.pauses),
        count(&done.leaves),
        count(&done.wires),
        stage.press.deaths.load(Ordering::Relaxed),
    );
    write_stories(verdict, &options.folder.join("broken.txt"));
    format!(
        "chaos: {jobs} jobs, {} kills, {} broker faults, seed {}: {}",
        done.kills() + ends.by_jobs,
        count(&done.brokers),
        options.seed,
        verdict.in_short()
    )
}

fn write_stories(verdict: &Verdict, path: &Path) {
    const SHOWN: usize = 12;
    if verdict.stories.is_empty() {
        return;
    }
    let _ = std::fs::write(path, verdict.stories.join("\n"));
    for story in verdict.stories.iter().take(SHOWN) {
        println!("{story}");
    }
    if verdict.stories.len() > SHOWN {
        println!("{} more are in {}", verdict.stories.len() - SHOWN, path.display());
    }
}

/// Declares the service's exchanges and queues as workers with these settings want them.
async fn declare_topology(uri: &str, settings: &[String]) {
    let (uri, settings) = (uri.to_owned(), settings.to_vec());
    let declared = tokio::task::spawn_blocking(move || {
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        spark_runtime(&uri, &settings, &["topology", "declare"])
    });
    let declared = declared.await.unwrap();
    assert!(
        declared.status.success(),
        "the topology cannot be declared: {}",
        String::from_utf8_lossy(&declared.stderr)
    );
}
