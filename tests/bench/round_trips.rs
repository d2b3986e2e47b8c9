//! Measures what the ledger adds to the way of a job on a broker that has nothing else to do: claims jobs and settles them,
//! one after the other, by the worker's own code. For the bench; prints the medians as JSON, in microseconds.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use spark_runtime_protocol::JobId;
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::topology::Topology;
use spark_runtime_worker::broker::ledger::record::{Digest, Ending, Terms};
use spark_runtime_worker::broker::ledger::{Ledger, tail};
use spark_runtime_worker::broker::publisher::Publisher;
use spark_runtime_worker::broker::session::keep_connected;
use spark_runtime_worker::config::{Settings, Sources};
use spark_runtime_worker::job::Stopper;
use tokio::sync::watch;

const HEARTBEAT: Duration = Duration::from_secs(30);
/// So many jobs are not counted: connections and caches are new.
const WARMING_UP: usize = 50;

// As many threads as a worker has.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(uri), Some(jobs)) =
        (arguments.next(), arguments.next().and_then(|count| count.parse::<usize>().ok()))
    else {
        eprintln!("usage: round-trips URI JOBS");
        return ExitCode::from(64);
    };
    match measure(&uri, jobs).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("round-trips: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(uri: &str, jobs: usize) -> Result<(), Box<dyn Error>> {
    let endpoint = Endpoint::new(uri, HEARTBEAT)?;
    // As they are where nobody says otherwise.
    let settings = Settings::load(&Sources::default())?;
    let (publisher, _lanes) = Publisher::new(&endpoint, "round-trips publish".to_owned(), HEARTBEAT)?;
    let ledger = Ledger::new("round-trips", settings.ledger.lease, publisher);
    let (sessions, session) = watch::channel(None);
    let topology = Topology::new(&settings.shape());
    let name = "round-trips consume".to_owned();
    tokio::spawn(keep_connected(endpoint, name, topology, settings.job.run_timeout, sessions));
    tokio::spawn(tail::follow(ledger.clone(), session));
    ledger.ready().await;

    let (mut claims, mut settlements, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..WARMING_UP + jobs {
        let job = JobId::new(&uuid::Uuid::new_v4().to_string())?;
        let (stopper, _stop) = Stopper::new();
        let begun = Instant::now();
        let claimed =
            ledger.claim(&job, Digest::of(job.as_str().as_bytes()), Terms::Free, Vec::new(), &stopper).await;
        let (held, _) =
            claimed.map_err(|standing| format!("the claim of {job} was refused: {standing:?}"))?;
        let claim = begun.elapsed();
        ledger
            .settle(held, Ending::Completed, Timestamp::now())
            .await
            .map_err(|_| format!("the settlement of {job} was refused"))?;
        let all = begun.elapsed();
        if number >= WARMING_UP {
            claims.push(claim);
            settlements.push(all - claim);
            both.push(all);
        }
    }
    let (claim, settle, both) = (median(&mut claims), median(&mut settlements), median(&mut both));
    println!("{}", json!({"claim": claim, "settle": settle, "both": both}));
    Ok(())
}

fn median(times: &mut [Duration]) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
