//! Settling: from the end of an attempt to what is published about it, and to whether the delivery may be acknowledged.
//!
//! The order is what keeps promises: a copy of the job (for another attempt, or for the dead queue) is confirmed first,
//! then the event, and only then is the delivery acknowledged by the caller. Whoever dies in between leaves the job
//! twice rather than not at all.
//!
//! This module must not know how a job was run.

use std::time::Duration;

use jiff::Timestamp;
use spark_runtime_protocol::event::{Event, EventKind, Failure, FailureClass, JobResult};
use spark_runtime_protocol::json::Fault;

use super::submit::plain;
use super::{Attempt, Claim, Context, Course, End, Stop, StopReason, in_words};
use crate::broker::message::Message;
use crate::broker::publisher::Publisher;

/// What is to be done with the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// All is said and kept: acknowledge it.
    Acknowledge,
    /// It belongs to somebody else: leave it alone.
    Leave,
}

/// The terminal event of an attempt's end; `None` for an end that is none of the job's.
#[must_use]
pub fn terminal_event(claim: &Claim, attempt: &Attempt) -> Option<(EventKind, Event)> {
    let course = &attempt.course;
    let event = match &attempt.end {
        End::Completed(completion) => {
            let mut lines: Vec<(&str, String)> =
                completion.complaints.iter().map(|complaint| ("ERROR", complaint.clone())).collect();
            lines.insert(0, ("INFO", "the function ran to its end".to_owned()));
            terminal(claim, EventKind::Completed, completion.job_result(), course, &lines, |data| {
                data.results.clone_from(&completion.results);
                data.output_data = Some(completion.output_data.clone());
                if !completion.complaints.is_empty() {
                    data.message = Some(completion.complaints.join("; "));
                }
            })
        }
        End::Failed { failure, .. } => failed(claim, course, failure),
        End::Rejected(faults) => rejected(claim, course, faults),
        End::Cancelled => {
            let lines = [("INFO", "cancelled on request".to_owned())];
            terminal(claim, EventKind::Cancelled, JobResult::Unknown, course, &lines, |_| {})
        }
        End::GivenBack | End::Abandoned => return None,
    };
    Some(event)
}

fn failed(claim: &Claim, course: &Course, failure: &Failure) -> (EventKind, Event) {
    let lines = [("ERROR", failure.message.clone())];
    terminal(claim, EventKind::Failed, JobResult::Unknown, course, &lines, |data| {
        data.message = Some(failure.message.clone());
        data.failure = Some(failure.clone());
    })
}

fn rejected(claim: &Claim, course: &Course, faults: &[Fault]) -> (EventKind, Event) {
    let lines: Vec<_> = faults.iter().map(|fault| ("ERROR", fault.to_string())).collect();
    terminal(claim, EventKind::Rejected, JobResult::Unknown, course, &lines, |data| {
        let count = faults.len();
        data.message = Some(format!("the job has {count} fault{}", if count == 1 { "" } else { "s" }));
        data.faults = Some(faults.to_vec());
    })
}

fn terminal(
    claim: &Claim,
    kind: EventKind,
    result: JobResult,
    course: &Course,
    lines: &[(&str, String)],
    fill: impl FnOnce(&mut spark_runtime_protocol::event::EventData),
) -> (EventKind, Event) {
    let event = claim.event(kind, |data| {
        data.job_result = Some(result);
        data.job_messages =
            Some(lines.iter().map(|(level, text)| job_message(data.time, level, text)).collect());
        data.job_wait_time = Some(claim.taken.as_millisecond());
        data.job_run_time = course.running_since.map(Timestamp::as_millisecond);
        data.job_end_time = Some(data.time.as_millisecond());
        data.phases = Some(course.phases.clone());
        data.resources = course.resources;
        fill(data);
    });
    (kind, event)
}

/// A line as ModelOp writes its `jobMessages`: `yyyy/M/d H:mm:ss [level] text`, in UTC.
fn job_message(time: Timestamp, level: &str, text: &str) -> String {
    format!("{} [{level}] {text}", time.strftime("%Y/%-m/%-d %-H:%M:%S"))
}

/// Publishes what is to be said of an attempt at the job that `message` brought.
pub async fn settle(
    context: &Context,
    publisher: &Publisher,
    claim: &Claim,
    message: &Message,
    attempt: &Attempt,
    stop: &mut Stop,
) -> Settled {
    if stop.reason() == Some(StopReason::DeliveryLost) {
        return Settled::Leave;
    }
    let said = say(context, publisher, claim, message, attempt);
    tokio::pin!(said);
    let mut heard = None;
    loop {
        tokio::select! {
            biased;
            settled = &mut said => return settled,
            reason = stop.stronger(heard) => {
                // The broker has offered the job to others: what they find out is what counts.
                if reason == StopReason::DeliveryLost {
                    return Settled::Leave;
                }
                heard = Some(reason);
            }
        }
    }
}

async fn say(
    context: &Context,
    publisher: &Publisher,
    claim: &Claim,
    message: &Message,
    attempt: &Attempt,
) -> Settled {
    match &attempt.end {
        End::Abandoned => return Settled::Leave,
        End::GivenBack => {
            publisher.give_back(message).await;
            let event = claim.event(EventKind::Retrying, |data| {
                data.message = Some("the worker is leaving; another one takes the job".to_owned());
                data.next_attempt = Some(claim.attempt + 1);
                data.delay_ms = Some(0);
            });
            context.announce.announce_and_wait(EventKind::Retrying, event).await;
            return Settled::Acknowledge;
        }
        End::Failed { failure, may_pass } => {
            if *may_pass && message.failures() + 1 < context.settings.retry.max_attempts {
                retry(context, publisher, claim, message, failure).await;
                return Settled::Acknowledge;
            }
            // What the model itself raised is its owner's to mend, and its owner has the event.
            if failure.class != FailureClass::Model {
                publisher.bury(message, failure.class, &failure.message, &claim.worker).await;
            }
        }
        End::Rejected(faults) => {
            let words = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            publisher.bury(message, FailureClass::Invalid, &words, &claim.worker).await;
        }
        End::Completed(_) | End::Cancelled => {}
    }
    if let Some((kind, event)) = terminal_event(claim, attempt) {
        context.announce.announce_and_wait(kind, event).await;
    }
    Settled::Acknowledge
}

async fn retry(
    context: &Context,
    publisher: &Publisher,
    claim: &Claim,
    message: &Message,
    failure: &Failure,
) {
    let delays = &context.settings.retry.delays;
    let step = usize::try_from(message.failures()).unwrap_or(usize::MAX).min(delays.len().saturating_sub(1));
    let delay = delays.get(step).copied().unwrap_or(Duration::ZERO);
    publisher.delay(message, delay).await;
    let event = claim.event(EventKind::Retrying, |data| {
        data.message = Some(format!("{}; the next attempt follows in {}", failure.message, in_words(delay)));
        data.failure = Some(failure.clone());
        data.next_attempt = Some(claim.attempt + 1);
        data.delay_ms = u64::try_from(delay.as_millis()).ok();
    });
    context.announce.announce_and_wait(EventKind::Retrying, event).await;
}

/// The end of a job that workers were lost with until no attempt was left.
#[must_use]
pub fn exhausted(attempts: u32) -> Attempt {
    let message = format!(
        "{attempts} workers took the job and were lost with it, or lost the broker, or ran it for longer than the broker's \
         consumer_timeout; look at the workers' logs, then replay it"
    );
    ended(FailureClass::Lost, message)
}

/// The end of a job that the broker took out of the queue; `reason` is the broker's word for why.
#[must_use]
pub fn expelled(reason: Option<&str>) -> Attempt {
    match reason {
        Some("expired") => ended(
            FailureClass::Timeout,
            "the job's expiration passed before a worker took it; start more workers, or publish it with a longer one"
                .to_owned(),
        ),
        Some("delivery_limit") => ended(
            FailureClass::Lost,
            "every worker that took the job was lost with it, up to the queue's delivery limit; look at the workers' logs"
                .to_owned(),
        ),
        other => ended(
            FailureClass::Lost,
            format!("the broker took the job out of its queue ({})", other.unwrap_or("it does not say why")),
        ),
    }
}

fn ended(class: FailureClass, message: String) -> Attempt {
    let failure = Box::new(plain(class, message));
    Attempt { end: End::Failed { failure, may_pass: false }, course: Course::default() }
}

/// The end of a message that is no job that can be run.
#[must_use]
pub fn refused(faults: Vec<Fault>) -> Attempt {
    Attempt { end: End::Rejected(faults), course: Course::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_messages_have_the_form_that_modelop_writes() {
        let time: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
        assert_eq!(job_message(time, "ERROR", "x"), "2026/3/4 5:06:07 [ERROR] x");
    }
}
