//! `worker`: takes jobs from the broker until it is told to leave.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::run::of_service;
use super::{CliError, Exit};
use crate::broker::slots::Leaving;
use crate::config::Settings;
use crate::service::serve;

/// What `worker` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = "SIGTERM or Ctrl-C: no new jobs, running ones go on for worker.drain_grace.\n\
                        The same again: running jobs are given back to other workers at once.")]
pub struct Args {}

/// Runs the worker until it has left.
///
/// # Errors
/// When it cannot start.
pub async fn run(_args: Args, settings: Settings) -> Result<Exit, CliError> {
    let internal = |error: std::io::Error| CliError::Internal(format!("signals cannot be caught: {error}"));
    let terminate = signal(SignalKind::terminate()).map_err(internal)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(internal)?;
    let (leave, leaving) = watch::channel(Leaving::No);
    let grace = settings.worker.drain_grace;
    let listening = tokio::spawn(listen(terminate, interrupt, leave, grace));
    let served = serve(settings, leaving).await;
    listening.abort();
    served.map(|()| Exit::Ok).map_err(of_service)
}

/// The first signal drains; the end of the grace gives back; another signal gives back at once.
async fn listen(
    mut terminate: Signal,
    mut interrupt: Signal,
    leave: watch::Sender<Leaving>,
    grace: std::time::Duration,
) {
    async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    either(&mut terminate, &mut interrupt).await;
    tracing::info!(grace_s = grace.as_secs(), "no new jobs are taken; running ones may end");
    leave.send_replace(Leaving::Draining);
    tokio::select! {
        () = tokio::time::sleep(grace) => {
            tracing::info!("the grace is over; running jobs are given back");
            leave.send_replace(Leaving::GivingBack);
            either(&mut terminate, &mut interrupt).await;
        }
        () = either(&mut terminate, &mut interrupt) => {}
    }
    tracing::info!("running jobs are given back at once");
    leave.send_replace(Leaving::Now);
    // A third signal changes nothing: what is given back must have arrived first.
    std::future::pending::<()>().await;
}
