//! Tracking: following an application to its end, or bringing it to one.
//!
//! The kill ladder is one function ([`end`]): ask, wait a grace, end the whole tree. A stronger reason on the way
//! shortens it.
//!
//! This module must not know what an end means for the job.

use std::time::Instant;

use jiff::Timestamp;
use spark_runtime_protocol::event::EventKind;

use super::submit::Submitted;
use super::{Claim, Context, Course, Stop, StopReason, since};
use crate::spark::{Application, Change, Ending};

/// Why an application was brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The driver was not there in time.
    SubmitDeadline,
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
    let mut deadline = tokio::time::Instant::from_std(clock.launched) + job.submit_timeout;
    let mut deadline_is = Cut::SubmitDeadline;
    loop {
        let cut = tokio::select! {
            // Stops and deadlines first: a driver that never ceases to talk must not keep them from being heard.
            biased;
            reason = stop.stronger(None) => Cut::Stopped(reason),
            () = tokio::time::sleep_until(deadline) => deadline_is,
            change = submitted.application.changed() => match change {
                // A driver says each of these once; whatever says it again changes nothing.
                Change::Started if deadline_is == Cut::SubmitDeadline => {
                    deadline = tokio::time::Instant::now() + job.run_timeout;
                    deadline_is = Cut::RunDeadline;
                    continue;
                }
                Change::Running if course.running_since.is_none() => {
                    running(context, claim, clock.submitting, course);
                    submitted.permit = None;
                    continue;
                }
                Change::Started | Change::Running => continue,
                Change::Ended(ending) => return over(course, *ending, None),
            },
        };
        let ending = end(context, submitted.application.as_mut(), stop, cut).await;
        // Who has lost the job meanwhile has nothing to say about it, whatever it was ended for.
        let cut = if stop.reason() == Some(StopReason::OwnershipLost) {
            Cut::Stopped(StopReason::OwnershipLost)
        } else {
            cut
        };
        return over(course, ending, Some(cut));
    }
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
    course.resources = Some(spark_runtime_protocol::event::Resources {
        peak_memory_bytes: ending.exit.peak_memory,
        processor_seconds: ending.exit.processor_time.as_secs_f64(),
    });
    Tracked { ending, cut }
}

/// The kill ladder.
async fn end(context: &Context, application: &mut dyn Application, stop: &mut Stop, cut: Cut) -> Ending {
    let at_once = |reason: StopReason| reason >= StopReason::GiveBackNow;
    let mut reason = match cut {
        Cut::Stopped(reason) => Some(reason),
        Cut::SubmitDeadline | Cut::RunDeadline => stop.reason(),
    };
    tracing::debug!(?cut, "an application is brought to its end");
    if !reason.is_some_and(at_once) {
        application.terminate();
        let grace = tokio::time::sleep(context.settings.job.kill_grace);
        tokio::pin!(grace);
        loop {
            tokio::select! {
                biased;
                change = application.changed() => if let Change::Ended(ending) = change { return *ending },
                () = &mut grace => break,
                stronger = stop.stronger(reason) => {
                    reason = Some(stronger);
                    if at_once(stronger) { break }
                }
            }
        }
    }
    application.kill();
    loop {
        if let Change::Ended(ending) = application.changed().await {
            return *ending;
        }
    }
}
