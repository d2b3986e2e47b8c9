//! Assigning: from a delivery to what is done about it. Every delivery of the queues of jobs goes through here.
//!
//! A delivery is looked at until all is said about it: claimed and run; answered, when the job has ended; put off, when
//! another worker has the job; joined with the attempt that runs here, when it takes the place of a lost delivery.
//!
//! This module must not know AMQP, nor how a job is run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::claim::{Candidate, Ownership, Reader, claim};
use super::settle::{
    Desk, Outcome, Settled, cancelled, conflict, exhausted, expelled, given_back, look_again, refused,
    repeat, settle, unknown,
};
use super::{
    Attempt, Claim, Context, End, Kept, Stop, StopReason, Stopper, clean, keep, outputs, run, sought,
};
use crate::broker::ledger::Held;
use crate::broker::ledger::fold::{Claimed, JobKey, Open, Standing};
use crate::broker::ledger::record::Position;
use crate::broker::message::{Message, Seen};
use crate::broker::session::Session;
use crate::broker::slots::{Assignment, Handler, Hold};
use crate::crash::crash_point;
use crate::spark::client_mode::ClientMode;
use crate::spark::{Change, Mode, SubmitError};

/// A job up to so many bytes is read in well under a millisecond; handing it to another thread would take as long.
const READ_ON_THE_SPOT: usize = 16 * 1024;
/// How long a delivery that somebody has lost waits for the ledger to say so: a dead worker's guard tells within a moment.
/// All deliveries of that somebody share it: where there are more of them than slots, none waits behind another's patience.
const RELEASE_PATIENCE: Duration = Duration::from_millis(2500);
/// For how long it is known that one owner's release was waited for.
const RELEASE_MEMORY: Duration = Duration::from_secs(600);

/// What all deliveries of a worker share.
pub struct Assigner {
    /// What every attempt shares.
    pub context: Arc<Context>,
    /// Where things are said.
    pub desk: Desk,
    /// Reads deliveries.
    pub reader: Reader,
    /// What is fenced when the lease is over.
    pub fence: Arc<ClientMode>,
    /// Tells whether the broker is there.
    pub sessions: watch::Receiver<Option<Session>>,
    running: Mutex<HashMap<JobKey, Running>>,
    awaited: Mutex<Awaited>,
}

/// Since when owners have been waited for to release what they lost, by their last renewals.
#[derive(Default)]
struct Awaited(HashMap<Position, Instant>);

impl Awaited {
    /// How long the owner with this last renewal is still waited for.
    fn patience(&mut self, renewal: Position, now: Instant) -> Duration {
        self.0.retain(|_, since| now.duration_since(*since) < RELEASE_MEMORY);
        let since = *self.0.entry(renewal).or_insert(now);
        RELEASE_PATIENCE.saturating_sub(now.duration_since(since))
    }
}

/// A job that is worked on.
#[derive(Clone)]
struct Running {
    hold: Arc<Hold>,
    stopper: Stopper,
    over: watch::Receiver<Option<Settled>>,
}

/// Takes a job off the running ones when the work on it ends, however it does.
struct Registered<'a> {
    assigner: &'a Assigner,
    key: JobKey,
    over: watch::Sender<Option<Settled>>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.assigner.running().remove(&self.key);
        // Whoever waits and is told nothing leaves his delivery to come again.
        self.over.send_if_modified(|over| over.is_none() && over.replace(Settled::Leave).is_none());
    }
}

/// Handles the queue of jobs.
pub struct Jobs(pub Arc<Assigner>);

/// Tells the end of jobs that the broker took out of the queue.
pub struct Expelled(pub Arc<Assigner>);

impl Handler for Jobs {
    async fn handle(self: Arc<Self>, assignment: Assignment) -> Settled {
        self.0.clone().assign(assignment, None).await
    }
}

impl Handler for Expelled {
    async fn handle(self: Arc<Self>, assignment: Assignment) -> Settled {
        let reason = assignment.message.death_reason().unwrap_or_default();
        self.0.clone().assign(assignment, Some(reason)).await
    }
}

impl Assigner {
    /// For a worker on which nothing runs yet.
    #[must_use]
    pub fn new(
        context: Arc<Context>,
        desk: Desk,
        reader: Reader,
        fence: Arc<ClientMode>,
        sessions: watch::Receiver<Option<Session>>,
    ) -> Self {
        let (running, awaited) = Default::default();
        Self { context, desk, reader, fence, sessions, running, awaited }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<JobKey, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a delivery asks for. `expelled` is the broker's reason for taking it out of the queue of jobs.
    async fn assign(self: Arc<Self>, assignment: Assignment, expelled: Option<String>) -> Settled {
        let Assignment { message, mut stop, stopper, hold } = assignment;
        let Some((message, mut candidate)) = self.read(message).await else { return Settled::Leave };
        if stop.reason() > Some(StopReason::Cancel) {
            self.desk.publisher.give_back_unclaimed(&message).await;
            return Settled::Acknowledge;
        }
        if let Ok(job) = &candidate.content
            && outputs::has_places(job)
        {
            // Local disks cost nothing; a file system elsewhere is asked only for a claim that may have to tell.
            let elsewhere = self.may_be_first(&candidate, &message);
            let seen = tokio::select! {
                biased;
                seen = outputs::look(&self.context, job, elsewhere) => seen,
                _ = stop.stronger(Some(StopReason::Cancel)) => {
                    self.desk.publisher.give_back_unclaimed(&message).await;
                    return Settled::Acknowledge;
                }
            };
            candidate.claim.existing.clone_from(&seen.existing);
            candidate.claim.seen = seen;
        }
        loop {
            let asked = claim(&self.desk.ledger, &candidate, &message, &stopper);
            let ownership = tokio::select! {
                biased;
                // A claim that is decided counts, also when the worker is told to leave at the same time.
                ownership = asked => ownership,
                _ = stop.stronger(Some(StopReason::Cancel)) => {
                    self.desk.publisher.give_back_unclaimed(&message).await;
                    return Settled::Acknowledge;
                }
            };
            match ownership {
                Ownership::Ours(held, claimed) => {
                    crash_point("after-claim");
                    let work = Work { message: &message, held, claimed, expelled: expelled.as_deref() };
                    return match self.work(candidate, work, &stop, &stopper, &hold).await {
                        Outcome::Said => Settled::Acknowledge,
                        // It comes again, with nothing left of what it was told to stop for.
                        Outcome::LookAgain => Settled::Leave,
                    };
                }
                Ownership::RunsHere(seen) => {
                    let key = JobKey::of(&candidate.claim.job);
                    if let Some(running) = self.take_over(key, &hold) {
                        return join(running, &mut stop).await;
                    }
                    look_again(&self.desk, &message, &seen).await;
                    return Settled::Acknowledge;
                }
                Ownership::Theirs(seen) => {
                    if message.came_back() && self.is_released(&candidate, &seen).await {
                        continue;
                    }
                    tracing::debug!(job_id = %candidate.claim.job, claim = %seen.claim, "another worker has the job");
                    look_again(&self.desk, &message, &seen).await;
                    return Settled::Acknowledge;
                }
                Ownership::Settled(settled) => {
                    tracing::info!(job_id = %candidate.claim.job, "the job has ended before; its end is told again");
                    tokio::select! {
                        biased;
                        () = repeat(&self.desk, &candidate.claim, &settled, &message) => {}
                        // The history may take its time; another worker can look as well.
                        _ = stop.stronger(Some(StopReason::Cancel)) => {
                            self.desk.publisher.give_back_unclaimed(&message).await;
                        }
                    }
                    return Settled::Acknowledge;
                }
                Ownership::Conflict(first) => {
                    tracing::warn!(job_id = %candidate.claim.job, %first, "there is another job under this id");
                    conflict(&self.context, &self.desk, &candidate, first, &message).await;
                    return Settled::Acknowledge;
                }
            }
        }
    }

    async fn read(&self, message: Message) -> Option<(Message, Candidate)> {
        let reader = self.reader.clone();
        if message.body.len() <= READ_ON_THE_SPOT {
            let candidate = reader.read(&message);
            return Some((message, candidate));
        }
        let read = tokio::task::spawn_blocking(move || {
            let candidate = reader.read(&message);
            (message, candidate)
        });
        match read.await {
            Ok(read) => Some(read),
            Err(error) => {
                tracing::error!(%error, "a delivery could not be read");
                None
            }
        }
    }

    /// Whether a claim of the job, as it stands now, would say what was there before its first attempt. One that comes to
    /// that by surprise lacks the word that it looked elsewhere, and nothing is removed there.
    fn may_be_first(&self, candidate: &Candidate, message: &Message) -> bool {
        match self.desk.ledger.standing(JobKey::of(&candidate.claim.job)) {
            Standing::Unknown => true,
            Standing::Open(open) => open.is_to_be_looked_at(),
            Standing::Settled(_) => message.undoes().is_some(),
        }
    }

    /// Whether the job's owner gives it up within a moment.
    async fn is_released(&self, candidate: &Candidate, seen: &Seen) -> bool {
        let released = self.desk.ledger.until(JobKey::of(&candidate.claim.job), |standing| match standing {
            Standing::Open(Open { owner: Some(owner), .. }) if owner.claim == seen.claim => None,
            _ => Some(()),
        });
        let patience = {
            let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
            awaited.patience(seen.renewal, Instant::now())
        };
        tokio::time::timeout(patience, released).await.is_ok()
    }

    /// Makes a delivery the one of a job that runs here, when that one's own is lost.
    fn take_over(&self, key: JobKey, hold: &Arc<Hold>) -> Option<Running> {
        let mut all = self.running();
        let running = all.get_mut(&key).filter(|running| running.hold.is_lost())?;
        let lost = std::mem::replace(&mut running.hold, hold.clone());
        lost.replace();
        Some(running.clone())
    }

    /// Works on a job that is ours until its end, or until it is not ours any more.
    async fn work(
        &self,
        candidate: Candidate,
        work: Work<'_>,
        stop: &Stop,
        stopper: &Stopper,
        hold: &Arc<Hold>,
    ) -> Outcome {
        let Work { message, held, claimed, expelled: reason } = work;
        let mode = candidate.content.as_ref().map_or(Mode::Client, |job| self.context.judge.mode(job));
        let claim = Claim {
            mode,
            attempt: claimed.attempt,
            failures: claimed.failures,
            undone: claimed.undone,
            existing: claimed.existing.to_vec(),
            ..candidate.claim
        };
        let (over, watching) = watch::channel(None);
        let key = JobKey::of(&claim.job);
        let running = Running { hold: hold.clone(), stopper: stopper.clone(), over: watching };
        self.running().insert(key, running);
        let registered = Registered { assigner: self, key, over };

        let is_exhausted = claimed.failures >= self.context.settings.retry.max_attempts;
        // What others have made of a job that runs elsewhere is no reason to end it: it may still be running.
        let elsewhere = match claim.mode.is_cluster() {
            true if claimed.cancelled || is_exhausted || reason.is_some() => {
                self.look_elsewhere(&claim, claimed.cancelled, stop).await
            }
            _ => Elsewhere::Nothing,
        };
        let attempt = match candidate.content {
            // Whoever takes it next looks again.
            _ if elsewhere == Elsewhere::Stopped => given_back(),
            _ if let Elsewhere::Unknown(reason) = &elsewhere => unknown(reason),
            // Before all else: whoever cancelled it was told that it would be cancelled.
            _ if claimed.cancelled => cancelled(),
            Err(faults) => refused(faults),
            Ok(_) if is_exhausted && elsewhere == Elsewhere::Nothing => exhausted(claimed.failures),
            Ok(_) if reason.is_some() && elsewhere == Elsewhere::Nothing => {
                expelled(reason.filter(|reason| !reason.is_empty()))
            }
            Ok(job) => {
                tracing::info!(job_id = %claim.job, attempt = claim.attempt, "a job is taken");
                let mut waiting = stop.clone();
                let ends = tokio::select! {
                    ends = self.desk.ledger.assured_lease() => Some(ends),
                    _ = waiting.stronger(None) => None,
                };
                if let Some(ends) = ends {
                    self.fence.alive_until(ends).await;
                }
                let attempt = run(&self.context, &claim, *job, message.body.clone(), stop.clone()).await;
                if is_cancelled(&attempt, stop) {
                    Attempt { end: End::Cancelled, ..attempt }
                } else {
                    attempt
                }
            }
        };
        let outcome = self.conclude(&claim, held, message, attempt).await;
        if outcome == Outcome::Said {
            registered.over.send_replace(Some(Settled::Acknowledge));
        }
        outcome
    }

    /// What runs in a cluster of a job that is not to be run here again. It `is_to_end` before anybody is told that it has.
    async fn look_elsewhere(&self, claim: &Claim, is_to_end: bool, stop: &Stop) -> Elsewhere {
        let mut stop = stop.clone();
        let sought = sought(&self.context, claim, claim.mode.clone());
        let ended = async {
            let Some(mut application) = self.context.backend.find(&sought).await? else {
                return Ok(Elsewhere::Nothing);
            };
            if !is_to_end {
                return Ok(Elsewhere::Something);
            }
            application.kill();
            while !matches!(application.changed().await, Change::Ended(_)) {}
            Ok::<_, SubmitError>(Elsewhere::Nothing)
        };
        let ended = tokio::select! {
            ended = ended => ended,
            _ = stop.stronger(Some(StopReason::Cancel)) => return Elsewhere::Stopped,
        };
        ended.unwrap_or_else(|error| Elsewhere::Unknown(error.to_string()))
    }

    async fn conclude(&self, claim: &Claim, held: Held, message: &Message, attempt: Attempt) -> Outcome {
        let connected = self.sessions.borrow().is_some();
        // First: the event says where things are kept.
        let kept = keep(&self.context, &attempt).await;
        let settled = settle(&self.context, &self.desk, claim, held, message, &attempt, connected).await;
        log_end(claim, &attempt, settled.is_ok());
        // Nobody has to wait for this; what a worker's end cuts short goes with the worker's folder.
        if kept != Kept::NotMoved {
            tokio::spawn(async move { clean(&attempt).await });
        }
        settled.unwrap_or(Outcome::LookAgain)
    }
}

/// What is known of a job's applications in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Elsewhere {
    /// There is none, and there never will be one.
    Nothing,
    /// There is one to be followed.
    Something,
    /// This worker leaves before it could be known.
    Stopped,
    /// It cannot be known, and why.
    Unknown(String),
}

/// Whether an attempt after which there might be another one is the last, because somebody wants none.
fn is_cancelled(attempt: &Attempt, stop: &Stop) -> bool {
    matches!(attempt.end, End::Failed { may_pass: true, .. } | End::Unfit(_))
        && stop.reason() == Some(StopReason::Cancel)
        && !attempt.course.may_run_elsewhere
}

/// A job that is ours.
struct Work<'a> {
    message: &'a Message,
    held: Held,
    claimed: Claimed,
    expelled: Option<&'a str>,
}

/// Waits for the end of a job that runs here by another delivery, and hands on what this one is told meanwhile.
async fn join(mut running: Running, stop: &mut Stop) -> Settled {
    let mut heard = None;
    loop {
        tokio::select! {
            biased;
            over = running.over.wait_for(Option::is_some) => {
                return over.ok().and_then(|over| *over).unwrap_or(Settled::Leave);
            }
            reason = stop.stronger(heard) => {
                heard = Some(reason);
                running.stopper.stop(reason);
            }
        }
    }
}

fn log_end(claim: &Claim, attempt: &Attempt, said: bool) {
    let (job_id, number) = (&claim.job, claim.attempt);
    if !said {
        tracing::warn!(%job_id, attempt = number, "the job is another worker's by now; nothing is said about it");
        return;
    }
    match &attempt.end {
        End::Completed(_) => tracing::info!(%job_id, attempt = number, "completed"),
        End::Failed { failure, may_pass } => {
            tracing::warn!(%job_id, attempt = number, class = %failure.class, may_pass, message = failure.message, "failed");
        }
        End::Rejected(faults) => tracing::warn!(%job_id, attempt = number, faults = faults.len(), "rejected"),
        End::Cancelled => tracing::info!(%job_id, attempt = number, "cancelled"),
        End::Unfit(faults) => {
            tracing::info!(%job_id, attempt = number, faults = faults.len(), "no runtime here fits; given back");
        }
        End::GivenBack => tracing::info!(%job_id, attempt = number, "given back"),
        End::Interrupted => {
            tracing::warn!(%job_id, attempt = number, "the lease was over; the job runs again")
        }
        End::Abandoned => tracing::warn!(%job_id, attempt = number, "abandoned"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_of_one_lost_owner_share_the_patience_with_it() {
        let mut awaited = Awaited::default();
        let (owner, other) = (Position::new(7, 0), Position::new(9, 0));
        let begun = Instant::now();
        assert_eq!(awaited.patience(owner, begun), RELEASE_PATIENCE);
        let later = begun + RELEASE_PATIENCE / 2;
        assert_eq!(awaited.patience(owner, later), RELEASE_PATIENCE / 2);
        assert_eq!(awaited.patience(other, later), RELEASE_PATIENCE);
        assert_eq!(awaited.patience(owner, begun + 2 * RELEASE_PATIENCE), Duration::ZERO);
        // Nothing is remembered for ever.
        let much_later = later + RELEASE_MEMORY;
        assert_eq!(awaited.patience(Position::new(11, 0), much_later), RELEASE_PATIENCE);
        assert_eq!(awaited.0.len(), 1);
    }
}
