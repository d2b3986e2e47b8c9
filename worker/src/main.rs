//! The program `spark-runtime`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The guard forks and is the parent of every driver: it has to start before there is a thread, a runtime or memory
    // that it would carry along. No person calls it, so that the command line does not know it.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "guard") {
        return spark_runtime_worker::spark::guard::guard_main();
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|verb| verb == spark_runtime_worker::broker::ledger::leave::VERB)
    {
        return spark_runtime_worker::broker::ledger::leave::leave_main();
    }
    spark_runtime_worker::cli::main(std::env::args_os())
}
