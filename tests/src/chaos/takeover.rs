//! Take-over: how long it takes from the death of a worker until its job runs elsewhere.
//!
//! A job hangs in its first run and completes in its second. Whoever runs it is killed, and the clock runs from the kill to
//! the first line of the second run.

use std::path::Path;
use std::time::Duration;

use spark_runtime_protocol::JobId;
use spark_runtime_protocol::client::{Client, Submission};
use tokio::time::Instant;

use super::book::boottime_ns;
use super::plan::{Job, Kind, Victim};
use super::verdict::{Journal, Line};
use super::{Options, Stage};
use crate::jobs;
use crate::program::hangs;

/// How often the journal is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// A worker that was killed comes back after this.
const PAUSE: Duration = Duration::from_secs(1);
/// The bound when the worker alone is killed: its guard releases what it held.
const WORKER_ALONE: Duration = Duration::from_secs(3);
/// The bound when both are killed, beside the lease.
const BEYOND_LEASE: Duration = Duration::from_secs(5);

/// What was measured for one way of dying, in the order of time.
#[derive(Debug)]
pub struct Takeovers {
    /// Who was killed.
    pub victim: Victim,
    /// What 95 of a hundred must not exceed.
    pub bound: Duration,
    /// From the kill to the second run.
    pub times: Vec<Duration>,
}

impl Takeovers {
    /// So many percent took no longer than this.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort();
        let last = times.len().saturating_sub(1);
        times
            .get((times.len() * percent).div_ceil(100).saturating_sub(1).min(last))
            .copied()
            .unwrap_or_default()
    }

    /// Whether the bound was kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        !self.times.is_empty() && self.percentile(95) <= self.bound
    }

    /// One line.
    #[must_use]
    pub fn in_words(&self) -> String {
        let victim = match self.victim {
            Victim::Worker => "worker alone",
            Victim::Guard => "guard alone",
            Victim::Both => "worker and guard",
        };
        format!(
            "take-over, {victim} killed: {} times, p50 {:.2} s, p95 {:.2} s, most {:.2} s; bound {:.1} s: {}",
            self.times.len(),
            self.percentile(50).as_secs_f64(),
            self.percentile(95).as_secs_f64(),
            self.percentile(100).as_secs_f64(),
            self.bound.as_secs_f64(),
            if self.is_good() { "kept" } else { "missed" }
        )
    }
}

/// Measures both ways of dying, `count` times each.
///
/// # Panics
/// When a job is not taken over at all, or the run cannot go on.
pub async fn measure(options: &Options, count: usize) -> Vec<Takeovers> {
    let stage = Stage::set(options, 0).await;
    let client = Client::connect(&stage.endpoint, "take-over").await.unwrap();
    let mut all = Vec::new();
    for (victim, bound) in [(Victim::Worker, WORKER_ALONE), (Victim::Both, options.lease + BEYOND_LEASE)] {
        let mut times = Vec::new();
        for number in 0..count {
            let id = format!("{victim:?}-{number}").to_lowercase();
            let time = take_over(&stage, &client, options, victim, &id).await;
            stage.timeline.note(&format!("{id}: {:.3} s", time.as_secs_f64()));
            times.push(time);
        }
        let takeovers = Takeovers { victim, bound, times };
        println!("{}", takeovers.in_words());
        all.push(takeovers);
    }
    all
}

async fn take_over(stage: &Stage, client: &Client, options: &Options, victim: Victim, id: &str) -> Duration {
    let journal = format!("journal {}", stage.journal.display());
    let counter = options.folder.join("counters").join(id);
    let body = jobs::text(id, &[&journal, &format!("times 1 {} hang", counter.display())]).into_bytes();
    stage.book.enter(Job::plain(id, Kind::Instant, body.clone()));
    client.publish(&Submission::new(JobId::new(id).unwrap(), body)).await.unwrap();
    let first = nth_run(stage, id, 1, options.patience).await;
    // The first run must have counted, or the second would hang as well.
    hangs(&counter).await;
    let seat = seat_of(&first, stage.pool.folder());
    let target = stage.pool.target(&seat).expect("the worker that runs the job is there");
    let killed = boottime_ns();
    stage.pool.kill(&target, victim, PAUSE);
    let second = nth_run(stage, id, 2, options.patience).await;
    while stage.pool.present() < options.workers || !stage.book.is_quiet() {
        tokio::time::sleep(LOOK).await;
    }
    Duration::from_nanos((second.boottime_ns - killed).unsigned_abs())
}

async fn nth_run(stage: &Stage, id: &str, number: usize, patience: Duration) -> Line {
    let deadline = Instant::now() + patience;
    loop {
        let journal = Journal::read(&stage.journal);
        if let Some(line) = journal.of(id).iter().filter(|line| line.is_start()).nth(number - 1) {
            return line.clone();
        }
        assert!(Instant::now() < deadline, "{id} was not run {number} times; see {:?}", stage.pool.logs());
        tokio::time::sleep(LOOK).await;
    }
}

/// The name of the seat whose worker made the run's directory.
fn seat_of(run: &Line, folder: &Path) -> String {
    let below = Path::new(&run.directory).strip_prefix(folder.canonicalize().unwrap()).unwrap();
    below.components().next().unwrap().as_os_str().to_string_lossy().into_owned()
}
