//! Runs jobs through a real broker and real workers under faults, and counts what became of them. See the module `chaos`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use spark_runtime_tests::chaos::plan::{Counts, Features};
use spark_runtime_tests::chaos::{self, Options, soak, takeover};
use tokio::signal::unix::{SignalKind, signal};

/// Jobs under faults: were any lost, or run twice at once?
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Arguments {
    /// How many jobs are published.
    #[arg(long, default_value_t = 1000)]
    jobs: u64,
    /// Decides on jobs and faults; without it a random one, which is printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How often a worker, its guard or both are killed.
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// How often something is done to the broker.
    #[arg(long, default_value_t = 5)]
    broker_faults: usize,
    /// How often a worker or its guard is stopped for a while; without it a sixth of the kills.
    #[arg(long)]
    pauses: Option<usize>,
    /// How often a worker is told to leave; without it a tenth of the kills.
    #[arg(long)]
    leaves: Option<usize>,
    /// How often a worker's wire is spoiled for a while; without it a quarter of the kills.
    #[arg(long)]
    wire_faults: Option<usize>,
    /// How many workers there are.
    #[arg(long, default_value_t = 6)]
    workers: usize,
    /// How many jobs each worker runs at once.
    #[arg(long, default_value_t = 4)]
    slots: usize,
    /// The workers' lease, as 3s or 500ms.
    #[arg(long, default_value = "3s", value_parser = duration)]
    lease: Duration,
    /// Leaves the setting `ledger.lease` out, for workers that do not know it.
    #[arg(long)]
    no_lease: bool,
    /// The workers' heartbeat with the broker, in whole seconds.
    #[arg(long, default_value = "2s", value_parser = duration)]
    heartbeat: Duration,
    /// How many attempts a job has.
    #[arg(long, default_value_t = 8)]
    max_attempts: u32,
    /// How many jobs may be published and not ended.
    #[arg(long, default_value_t = 240)]
    backlog: usize,
    /// Some jobs are cancelled.
    #[arg(long)]
    cancels: bool,
    /// Some ids are published again with another body.
    #[arg(long)]
    conflicts: bool,
    /// One more setting for all workers, as often as needed.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// What the workers log.
    #[arg(long, default_value = "info,lapin=off")]
    log: String,
    /// When nothing changes for so long, what is not there is lost.
    #[arg(long, default_value = "90s", value_parser = duration)]
    patience: Duration,
    /// Instead of a run with so many jobs: a steady load for so long, as 30m, and whether anything grows.
    #[arg(long, value_parser = duration)]
    soak: Option<Duration>,
    /// Of a soak: jobs a second.
    #[arg(long, default_value_t = 4.0)]
    rate: f64,
    /// Of a soak: one fault after so long.
    #[arg(long, default_value = "5s", value_parser = duration)]
    fault_every: Duration,
    /// Instead of a run: how long it takes until a dead worker's job runs elsewhere, so many times.
    #[arg(long, value_name = "COUNT")]
    takeover: Option<usize>,
    /// Everything of the run goes here; it stays when it is given, and when the run fails.
    #[arg(long)]
    folder: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no duration such as 3s or 500ms"))?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(format!("{text:?} is no duration such as 3s or 500ms")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

impl Arguments {
    fn options(&self, seed: u64, folder: PathBuf) -> Options {
        let counts = Counts {
            kills: self.kills,
            pauses: self.pauses.unwrap_or(self.kills / 6),
            leaves: self.leaves.unwrap_or(self.kills / 10),
            wires: self.wire_faults.unwrap_or(self.kills / 4),
            brokers: self.broker_faults,
        };
        Options {
            workers: self.workers,
            spared: if self.soak.is_some() { self.workers / 2 } else { 0 },
            slots: self.slots,
            lease: self.lease,
            has_lease: !self.no_lease,
            heartbeat: self.heartbeat,
            max_attempts: self.max_attempts,
            backlog: self.backlog,
            features: Features {
                cancel: self.cancels,
                conflict: self.conflicts,
                // Whoever is to be watched for long must live long.
                no_poison: self.soak.is_some(),
            },
            settings: self.settings.clone(),
            log: self.log.clone(),
            patience: self.patience,
            ..Options::new(self.jobs, seed, counts, folder)
        }
    }
}

/// Does what is asked and tells whether all is well. The last lines on the standard output are the result.
async fn act(arguments: &Arguments, options: &Options) -> bool {
    if let Some(count) = arguments.takeover {
        let all = takeover::measure(options, count).await;
        return all.iter().all(takeover::Takeovers::is_good);
    }
    if let Some(time) = arguments.soak {
        let (outcome, is_flat) = soak::soak(options, time, arguments.rate, arguments.fault_every).await;
        println!("{}", outcome.summary);
        println!("soak: {} s: {}", time.as_secs(), if is_flat { "flat" } else { "NOT flat" });
        return outcome.verdict.is_good() && is_flat;
    }
    let outcome = chaos::run(options).await;
    println!("{}", outcome.summary);
    outcome.verdict.is_good()
}

async fn told_to_end() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

#[tokio::main]
async fn main() -> std::io::Result<ExitCode> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let kept = arguments.folder.is_some();
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        // The name is short, for the sake of Unix sockets below it.
        None => tempfile::Builder::new().prefix("src-").tempdir()?.keep(),
    };
    std::fs::create_dir_all(&folder)?;
    let folder = folder.canonicalize()?;
    let options = arguments.options(seed, folder.clone());
    println!("chaos: seed {seed}: {options:?}");
    // Dropping what goes on ends all that it has started.
    let is_good = tokio::select! {
        is_good = act(&arguments, &options) => is_good,
        told = told_to_end() => {
            told?;
            eprintln!("chaos: told to end");
            false
        }
    };
    if is_good && !kept {
        std::fs::remove_dir_all(&folder)?;
    } else {
        eprintln!("chaos: logs, journal, events and time line are in {}", folder.display());
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
