//! Tracking: following an application to its end, or bringing it to one.
//!
//! The kill ladder is one function ([`end`]): ask, wait a grace, end the whole tree. A stronger reason on the way
//! shortens it.
//!
//! This module must not know what an end means for the job.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use spark_runtime_protocol::event::{EventKind, Way};

use super::submit::Submitted;
use super::{Claim, Context, Course, Stop, StopReason, since};
use crate::spark::{Accepted, Application, Change, Ending, Outcome};

/// Why an application was brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The driver was not there in time, or no cluster had it.
    SubmitDeadline,
    /// It waited too long for its place in a cluster.
    PendingDeadline,
    /// It waited for executors of a cluster that does not know it any more.
    Forgotten,
    /// The job ran for too long.
    RunDeadline,
    /// The attempt was stopped.
    Stopped(StopReason),
}

/// An application that is over.
#[derive(Debug)]
pub struct Tracked {
    /// How it ended.
    pub ending: Ending,
    /// Why it was brought to its end, when it was.
    pub cut: Option<Cut>,
    /// What it waited for in a cluster when it was.
    pub waited_for: Option<String>,
}

/// The moments that an attempt's times are counted from.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// It was staged, and began to wait for a place to start from.
    pub submitting: Instant,
    /// spark-submit was started: what the deadline for submitting counts from.
    pub launched: Instant,
}

/// Follows an application until nothing of it is left.
pub async fn track(
    context: &Context,
    claim: &Claim,
    submitted: &mut Submitted<'_>,
    stop: &mut Stop,
    clock: Clock,
    course: &mut Course,
) -> Tracked {
    let job = &context.settings.job;
    if let Some(accepted) = submitted.application.accepted() {
        announce_submitted(context, claim, submitted.way, &accepted);
    }
    let mut deadlines = Deadlines::of_submitting(clock.launched, job.submit_timeout, job.pending_timeout);
    // Held until the end: another job may have this machine meanwhile.
    let (mut _lent, mut _counted) = (None, None);
    loop {
        let cut = tokio::select! {
            // Stops and deadlines first: a driver that never ceases to talk must not keep them from being heard.
            biased;
            reason = stop.stronger(None) => Cut::Stopped(reason),
            () = sleep_until(deadlines.at) => match deadlines.passed(submitted.application.has_begun_unseen()) {
                Some(cut) => cut,
                None => continue,
            },
            () = sleep_until(deadlines.placed_by()) => Cut::PendingDeadline,
            change = submitted.application.changed() => match change {
                // Each of these is said once; whatever says it again changes nothing.
                Change::Accepted(accepted) if deadlines.is == Cut::SubmitDeadline => {
                    announce_submitted(context, claim, submitted.way, &accepted);
                    submitted.permit = None;
                    if submitted.application.outlives_worker() {
                        _lent = context.lending.lend();
                        _counted = Some(context.load.follow());
                    }
                    deadlines.accepted(Instant::now());
                    continue;
                }
                Change::Started if deadlines.is != Cut::RunDeadline => {
                    // However many workers have followed it: it may run for so long in all.
                    let left = job.run_timeout.saturating_sub(submitted.application.has_run_for());
                    deadlines.started(Instant::now(), left);
                    continue;
                }
                Change::Running if course.running_since.is_none() => {
                    running(context, claim, clock.submitting, course);
                    submitted.permit = None;
                    continue;
                }
                Change::Waits => {
                    deadlines.waits(Instant::now());
                    continue;
                }
                Change::Placed => {
                    deadlines.placed(Instant::now());
                    continue;
                }
                Change::InVain => Cut::Forgotten,
                Change::Accepted(_) | Change::Started | Change::Running => continue,
                Change::Ended(ending) => return over(course, *ending, None),
            },
        };
        let waited_for = submitted.application.waits_for();
        let ending = end(context, submitted.application.as_mut(), stop, cut).await;
        // Who has lost the job meanwhile has nothing to say about it, whatever it was ended for.
        let cut = match (stop.reason(), &ending.outcome) {
            (Some(StopReason::OwnershipLost), _) => Cut::Stopped(StopReason::OwnershipLost),
            // It goes on, whatever it was to be ended for: whoever follows it next sees to that.
            (reason, Outcome::Left) => Cut::Stopped(reason.unwrap_or(StopReason::GiveBack)),
            _ => cut,
        };
        return Tracked { waited_for, ..over(course, ending, Some(cut)) };
    }
}

/// Until when an application may be where it is, and what it is brought to its end for then.
///
/// What it waits for executors does not count as its run, up to the pending timeout in all: else its run deadline, which
/// begins first, would always be the first to pass. Whatever a driver tells, the two together are the most that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deadlines {
    /// When `is` is so; never where there is none.
    at: Option<Instant>,
    is: Cut,
    /// How long it may wait for its place, and its work for executors.
    pending: Duration,
    /// Since when its work waits for executors.
    waits_since: Option<Instant>,
    /// How much more of such waiting does not count as its run.
    uncounted: Duration,
}

impl Deadlines {
    fn of_submitting(launched: Instant, submit: Duration, pending: Duration) -> Self {
        Self {
            at: Some(launched + submit),
            is: Cut::SubmitDeadline,
            pending,
            waits_since: None,
            uncounted: pending,
        }
    }

    /// A cluster has it.
    fn accepted(&mut self, now: Instant) {
        (self.at, self.is) = (Some(now + self.pending), Cut::PendingDeadline);
    }

    /// The driver has its place, and may run for `left` more.
    fn started(&mut self, now: Instant, left: Duration) {
        let uncounted = if self.waits_since.is_some() { self.uncounted } else { Duration::ZERO };
        (self.at, self.is) = (Some(now + left + uncounted), Cut::RunDeadline);
    }

    /// What it is brought to its end for, now that `at` has passed. There is no more submitting of one that has begun, though
    /// no cluster tells of it: whether it is lost is for its back end to say.
    fn passed(&mut self, has_begun_unseen: bool) -> Option<Cut> {
        if has_begun_unseen && self.is == Cut::SubmitDeadline {
            self.at = None;
            return None;
        }
        Some(self.is)
    }

    /// Its work waits for executors. Whatever says it again changes nothing.
    fn waits(&mut self, now: Instant) {
        if self.waits_since.is_none() {
            self.waits_since = Some(now);
            let uncounted = self.uncounted;
            self.run_until(|at| at + uncounted);
        }
    }

    /// Its work waits no more: what is left of the waiting that does not count is kept for the next time.
    fn placed(&mut self, now: Instant) {
        if let Some(since) = self.waits_since.take() {
            let left = self.uncounted.saturating_sub(now.saturating_duration_since(since));
            self.run_until(|at| at - left);
            self.uncounted = left;
        }
    }

    /// Until when its work may wait, while it does.
    fn placed_by(&self) -> Option<Instant> {
        self.waits_since.map(|since| since + self.pending)
    }

    fn run_until(&mut self, moved: impl Fn(Instant) -> Instant) {
        if self.is == Cut::RunDeadline {
            self.at = self.at.map(moved);
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

fn announce_submitted(context: &Context, claim: &Claim, way: Option<Way>, accepted: &Accepted) {
    context.announce.announce(
        EventKind::Submitted,
        claim.event(EventKind::Submitted, |data| {
            data.application_id.clone_from(&accepted.id);
            data.tracking_url.clone_from(&accepted.tracking_url);
            data.way = way;
            data.message = accepted
                .is_adopted
                .then(|| "an application of the job was there already; it is followed".to_owned());
        }),
    );
}

fn running(context: &Context, claim: &Claim, submitting: Instant, course: &mut Course) {
    course.phases.submit = Some(since(submitting));
    let event = claim.event(EventKind::Running, |_| {});
    course.running_since = Some(event.time);
    context.announce.announce(EventKind::Running, event);
}

fn over(course: &mut Course, ending: Ending, cut: Option<Cut>) -> Tracked {
    if let Some(since) = course.running_since {
        let run = Timestamp::now().as_millisecond().saturating_sub(since.as_millisecond());
        course.phases.run = Some(u64::try_from(run).unwrap_or(0));
    }
    if let Outcome::Process(exit) = &ending.outcome {
        course.resources = Some(spark_runtime_protocol::event::Resources {
            peak_memory_bytes: exit.peak_memory,
            processor_seconds: exit.processor_time.as_secs_f64(),
        });
    }
    Tracked { ending, cut, waited_for: None }
}

/// The kill ladder. What goes on without this worker is left to the next one when only this one is to stop.
async fn end(context: &Context, application: &mut dyn Application, stop: &mut Stop, cut: Cut) -> Ending {
    let leaves = application.outlives_worker();
    let mut reason = match cut {
        Cut::Stopped(reason) => Some(reason),
        Cut::SubmitDeadline | Cut::PendingDeadline | Cut::Forgotten | Cut::RunDeadline => stop.reason(),
    };
    tracing::debug!(?cut, "an application is brought to its end");
    if cut == Cut::RunDeadline {
        application.ends_for_run_deadline();
    }
    let grace = tokio::time::sleep(context.settings.job.kill_grace);
    tokio::pin!(grace);
    let (mut is_asked, mut is_killed) = (false, false);
    loop {
        match reason {
            Some(reason) if leaves && reason >= StopReason::GiveBack => application.leave(),
            Some(reason) if reason >= StopReason::GiveBackNow => is_killed = true,
            _ => {}
        }
        if is_killed {
            application.kill();
        } else if !is_asked {
            application.terminate();
            is_asked = true;
        }
        loop {
            tokio::select! {
                biased;
                change = application.changed() => if let Change::Ended(ending) = change { return *ending },
                () = &mut grace, if !is_killed => {
                    is_killed = true;
                    break;
                }
                stronger = stop.stronger(reason) => {
                    reason = Some(stronger);
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// One whose driver is there since `start`, with a day each for running and for waiting.
    fn running(start: Instant) -> Deadlines {
        let mut deadlines = Deadlines::of_submitting(start, HOUR, 24 * HOUR);
        deadlines.started(start, 24 * HOUR);
        deadlines
    }

    #[test]
    fn work_that_never_gets_an_executor_ends_by_the_pending_deadline_and_not_by_that_of_its_run() {
        let start = Instant::now();
        let mut deadlines = running(start);
        deadlines.waits(start + HOUR);
        assert_eq!(deadlines.placed_by(), Some(start + 25 * HOUR));
        assert!(deadlines.at > deadlines.placed_by(), "{deadlines:?}");
        // A driver that says it again does not begin anew.
        deadlines.waits(start + 2 * HOUR);
        assert_eq!(deadlines.placed_by(), Some(start + 25 * HOUR));
    }

    #[test]
    fn waiting_for_executors_does_not_count_as_the_run_up_to_the_pending_timeout_in_all() {
        let start = Instant::now();
        let mut deadlines = running(start);
        deadlines.waits(start + HOUR);
        deadlines.placed(start + 11 * HOUR);
        assert_eq!((deadlines.at, deadlines.placed_by()), (Some(start + 34 * HOUR), None));
        deadlines.waits(start + 12 * HOUR);
        // Of the second wait only what is left of the day does not count, however long the driver says that it lasts.
        assert_eq!(deadlines.at, Some(start + 48 * HOUR));
        deadlines.placed(start + 32 * HOUR);
        assert_eq!(deadlines.at, Some(start + 48 * HOUR));
        deadlines.waits(start + 33 * HOUR);
        deadlines.placed(start + 34 * HOUR);
        assert_eq!((deadlines.at, deadlines.is), (Some(start + 48 * HOUR), Cut::RunDeadline));
    }

    #[test]
    fn an_application_that_has_begun_is_not_ended_for_not_having_come_to_a_cluster_that_has_forgotten_it() {
        let start = Instant::now();
        let mut deadlines = Deadlines::of_submitting(start, HOUR, 2 * HOUR);
        assert_eq!(deadlines.passed(false), Some(Cut::SubmitDeadline));
        assert_eq!((deadlines.passed(true), deadlines.at), (None, None));
        // The cluster tells of it again: then it has the deadlines of every other.
        deadlines.accepted(start + 2 * HOUR);
        assert_eq!(
            (deadlines.at, deadlines.passed(true)),
            (Some(start + 4 * HOUR), Some(Cut::PendingDeadline))
        );
    }

    #[test]
    fn whoever_follows_an_application_that_is_there_counts_no_wait_that_nobody_told() {
        let start = Instant::now();
        let mut deadlines = Deadlines::of_submitting(start, HOUR, 2 * HOUR);
        deadlines.accepted(start + HOUR);
        assert_eq!((deadlines.at, deadlines.is), (Some(start + 3 * HOUR), Cut::PendingDeadline));
        deadlines.placed(start + HOUR);
        deadlines.started(start + 2 * HOUR, HOUR);
        assert_eq!((deadlines.at, deadlines.is), (Some(start + 3 * HOUR), Cut::RunDeadline));
    }
}
