//! A small chaos run on every occasion; the large one is `tests/chaos`.

use std::time::Duration;

use spark_runtime_tests::chaos::plan::Counts;
use spark_runtime_tests::chaos::{Options, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_job_is_lost_or_run_twice_at_once_through_kills_pauses_cut_wires_and_broker_faults() {
    let folder = tempfile::Builder::new().prefix("src-").tempdir().unwrap();
    let counts = Counts { kills: 12, pauses: 3, leaves: 2, wires: 5, brokers: 3 };
    let options = Options {
        workers: 4,
        backlog: 60,
        patience: Duration::from_secs(60),
        ..Options::new(150, 7, counts, folder.path().canonicalize().unwrap())
    };
    let outcome = run(&options).await;
    println!("{}", outcome.summary);
    if !outcome.verdict.is_good() {
        let folder = folder.keep();
        panic!("{}; everything is in {}", outcome.summary, folder.display());
    }
}
