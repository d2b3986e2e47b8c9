//! The exhaustive check of how workers own jobs, as deep as one likes. `--help` tells the rest.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use spark_runtime_model::{Action, Fault, Scope, State, told};
use stateright::report::{ReportData, ReportDiscovery, Reporter};
use stateright::{Checker, HasDiscoveries, Model};

/// Explores everything that can happen to workers and jobs.
#[derive(Debug, Parser)]
#[command(name = "model")]
struct Arguments {
    /// How many workers there are.
    #[arg(long, default_value_t = 2)]
    workers: u8,
    /// How many deliveries each takes at a time.
    #[arg(long, default_value_t = 1)]
    slots: u8,
    /// How many jobs there are, at most 2.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    jobs: u8,
    /// How many things go wrong.
    #[arg(long, default_value_t = 2)]
    faults: u8,
    /// Dead workers are not started again.
    #[arg(long)]
    no_restarts: bool,
    /// A worker that gets its first delivery may not have read what was just written.
    #[arg(long)]
    lag: bool,
    /// Nothing is explored any more after so many states.
    #[arg(long)]
    states: Option<usize>,
    /// Only these go wrong, by their names as in the code; everything does otherwise.
    #[arg(long, value_parser = fault)]
    fault: Vec<Fault>,
    /// How many threads explore.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn fault(name: &str) -> Result<Fault, String> {
    let found = Fault::ALL.iter().find(|fault| format!("{fault:?}").eq_ignore_ascii_case(name));
    found.copied().ok_or_else(|| format!("is none of {:?}", Fault::ALL))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let kinds: &'static [Fault] =
        if arguments.fault.is_empty() { Fault::ALL } else { arguments.fault.clone().leak() };
    let scope = Scope {
        workers: arguments.workers,
        slots: arguments.slots,
        jobs: arguments.jobs,
        faults: arguments.faults,
        kinds,
        restarts: !arguments.no_restarts,
        workers_lag: arguments.lag,
        ..Scope::SMALL
    };
    let begun = Instant::now();
    let mut checker = scope.checker().threads(arguments.threads).finish_when(HasDiscoveries::AnyFailures);
    if let Some(states) = arguments.states {
        checker = checker.target_state_count(states);
    }
    let checker = checker.spawn_dfs().join_and_report(&mut Progress);
    println!(
        "{} states, {} ways to them, at most {} steps deep, in {} s{}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs(),
        if checker.is_done() { ": all there are" } else { "" }
    );
    let broken = checker.discoveries();
    for (name, path) in broken.clone() {
        println!("{}\nbroken: {name}", told(path));
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells now and then how far it has got.
struct Progress;

impl Reporter<Scope> for Progress {
    fn report_checking(&mut self, data: ReportData) {
        eprintln!("{} states after {} s", data.unique_states, data.duration.as_secs());
    }

    fn report_discoveries(
        &mut self,
        _: &Scope,
        _: std::collections::BTreeMap<&'static str, ReportDiscovery<Scope>>,
    ) where
        Action: std::fmt::Debug,
        State: std::fmt::Debug + std::hash::Hash,
    {
    }

    fn delay(&self) -> std::time::Duration {
        std::time::Duration::from_secs(10)
    }
}
