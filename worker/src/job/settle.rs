//! Settling: from the end of an attempt to what is published about it, and to whether the delivery may be acknowledged.
//!
//! The order is what keeps promises. An end is written into the history, then settled in the ledger, and only when that
//! has been read back as effective is it published; then the delivery is acknowledged by the caller. So a worker that has
//! lost its job can never announce an end, and whoever finds a settled job can repeat its end. An attempt after which
//! there is another one releases the job first and then publishes a copy of it: whoever dies in between leaves the
//! delivery, which comes again.
//!
//! This module must not know how a job was run.

use std::time::Duration;

use jiff::Timestamp;
use spark_runtime_protocol::event::{
    Digests, Event, EventKind, Failure, FailureClass, JobResult, Records, Rejection,
};
use spark_runtime_protocol::json::Fault;

use super::claim::Candidate;
use super::resolve::next_offer;
use super::submit::{identity, plain};
use super::{Attempt, Claim, Context, Course, End, in_words};
use crate::broker::history::History;
use crate::broker::ledger::fold::Settled as SettledJob;
use crate::broker::ledger::record::{Digest, Ending, Reason};
use crate::broker::ledger::{Held, Ledger, Superseded};
use crate::broker::message::{Message, Seen};
use crate::broker::publisher::{Announcement, Burial, Publisher};
use crate::crash::crash_point;
use crate::spark::Launches;

/// How long the answer may take to which launches of a job there are.
const ASKING: Duration = Duration::from_secs(60);

/// What is to be done with the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// All is said and kept: acknowledge it.
    Acknowledge,
    /// It is to come again.
    Leave,
}

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is said; the delivery may go.
    Said,
    /// The job is to be looked at anew: it may be somebody else's, or nobody's.
    LookAgain,
}

/// Where things are said.
pub struct Desk {
    /// Publishes.
    pub publisher: Publisher,
    /// Who has which job.
    pub ledger: Ledger,
    /// How jobs ended.
    pub history: History,
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
            let bad = completion.records.as_ref().map(bad_records).unwrap_or_default();
            let reasons = completion.records.iter().flat_map(|records| &records.reasons).map(reason_line);
            lines.extend(bad.iter().cloned().chain(reasons).map(|line| ("ERROR", line)));
            terminal(claim, EventKind::Completed, completion.job_result(), course, &lines, |data| {
                data.results.clone_from(&completion.results);
                data.output_data = Some(completion.output_data.clone());
                data.additional_assets.clone_from(&completion.additional_assets);
                data.records.clone_from(&completion.records);
                let told = [&completion.complaints[..], &bad[..]].concat();
                data.message = (!told.is_empty()).then(|| told.join("; "));
            })
        }
        End::Failed { failure, .. } => failed(claim, course, failure),
        End::Rejected(faults) => rejected(claim, course, faults),
        End::Cancelled => {
            let words = course.ended_by.clone().unwrap_or_else(|| "cancelled on request".to_owned());
            terminal(claim, EventKind::Cancelled, JobResult::Unknown, course, &[("INFO", words)], |data| {
                data.message.clone_from(&course.ended_by);
            })
        }
        End::Unfit(_) | End::GivenBack | End::Interrupted | End::Abandoned => return None,
    };
    Some(event)
}

/// What is wrong with records, in lines.
fn bad_records(records: &Records) -> Vec<String> {
    let counted = [
        (records.rejected.input, "input record(s) rejected by schema"),
        (records.rejected.output, "output record(s) rejected by schema"),
        (records.failed, "record(s) at which the model raised were passed over"),
    ];
    let counted = counted.into_iter().filter(|(count, _)| *count > 0);
    let mut lines: Vec<String> = counted.map(|(count, what)| format!("{count} {what}")).collect();
    if let Some(number) = records.stopped_at {
        lines.push(format!("stopped at record {number}, the first bad one"));
    }
    lines
}

fn reason_line(reason: &Rejection) -> String {
    let field = reason.field.as_deref().map_or_else(|| "the record".to_owned(), |field| format!("{field:?}"));
    format!("{}: {field} {} ({} times)", reason.side.word(), reason.reason, reason.count)
}

fn failed(claim: &Claim, course: &Course, failure: &Failure) -> (EventKind, Event) {
    let doubts = course.doubts.iter().map(|doubt| ("INFO", doubt.clone()));
    let lines: Vec<_> = doubts.chain([("ERROR", failure.message.clone())]).collect();
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
        let notes = course.notes.iter().map(|note| ("INFO", note.as_str()));
        let all = notes.chain(lines.iter().map(|(level, text)| (*level, text.as_str())));
        data.job_result = Some(result);
        data.job_messages = Some(all.map(|(level, text)| job_message(data.time, level, text)).collect());
        data.job_wait_time = Some(claim.taken.as_millisecond());
        data.job_run_time = course.running_since.map(Timestamp::as_millisecond);
        data.job_end_time = Some(data.time.as_millisecond());
        data.phases = Some(course.phases.clone());
        data.resources = course.resources;
        data.runtime.clone_from(&course.runtime);
        data.sources = (!course.sources.is_empty()).then(|| course.sources.clone());
        fill(data);
    });
    (kind, event)
}

/// A line as ModelOp writes its `jobMessages`: `yyyy/M/d H:mm:ss [level] text`, in UTC.
fn job_message(time: Timestamp, level: &str, text: &str) -> String {
    format!("{} [{level}] {text}", time.strftime("%Y/%-m/%-d %-H:%M:%S"))
}

/// Says what is to be said of an attempt at the job that `message` brought. `connected` tells whether the broker was there
/// when the attempt ended.
///
/// # Errors
/// The job is somebody else's by now; nothing was said.
pub async fn settle(
    context: &Context,
    desk: &Desk,
    claim: &Claim,
    held: Held,
    message: &Message,
    attempt: &Attempt,
    connected: bool,
) -> Result<Outcome, Superseded> {
    match &attempt.end {
        End::Abandoned => return Err(Superseded),
        End::GivenBack => {
            desk.ledger.release(held, Reason::GivenBack).await?;
            desk.publisher.give_back(message, claim.attempt + 1).await;
            let words = "the worker is leaving; another one takes the job".to_owned();
            announce_retry(context, claim, words, None, Duration::ZERO).await;
            return Ok(Outcome::Said);
        }
        End::Interrupted => {
            // A broker that is away is no fault of the job's. A worker that stands still may be.
            let (reason, words) = if connected {
                (Reason::Lost, "the worker did not renew its lease in time, and its guard ended the job")
            } else {
                (Reason::Interrupted, "the broker was away for longer than the lease, and the job was ended")
            };
            desk.ledger.release(held, reason).await?;
            announce_retry(context, claim, words.to_owned(), None, Duration::ZERO).await;
            return Ok(Outcome::LookAgain);
        }
        End::Unfit(faults) => {
            let settings = &context.settings;
            let delay = next_offer(&settings.retry.delays, claim.unfit_for, settings.runtimes.others);
            desk.ledger.release(held, Reason::GivenBack).await?;
            desk.publisher.offer_to_others(message, delay, claim.unfit_for + delay, claim.attempt + 1).await;
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            let words = format!("the job is offered to other workers: {}", faults.join("; "));
            announce_retry(context, claim, words, None, delay).await;
            return Ok(Outcome::Said);
        }
        End::Failed { failure, may_pass: true }
            if claim.failures + 1 < context.settings.retry.max_attempts =>
        {
            // The next attempt must not take this one's application for one whose end nobody has told; one of which no end is known
            // is left for it to find. Only a release that takes effect proves that what was listed before it was ours.
            let over = if attempt.course.has_followed { launches(context, claim).await } else { None };
            crash_point("before-release");
            desk.ledger.release(held, Reason::Failed).await?;
            crash_point("after-release");
            if let Some(over) = over {
                context.backend.forget(&identity(claim), &claim.mode, &over).await;
            }
            retry(context, &desk.publisher, claim, message, failure).await;
            crash_point("before-ack");
            return Ok(Outcome::Said);
        }
        End::Failed { .. } | End::Rejected(_) | End::Completed(_) | End::Cancelled => {}
    }
    let Some((kind, event)) = terminal_event(claim, attempt) else { return Err(Superseded) };
    let Some(ending) = Ending::told_by(kind) else { return Err(Superseded) };
    let announcement = Announcement::new(kind, &event);
    let over = launches(context, claim).await;
    crash_point("before-history");
    desk.history.record(&announcement).await;
    crash_point("before-settle");
    let settled_by = held.claim();
    desk.ledger.settle(held, ending, event.time).await?;
    crash_point("after-settle");
    super::outputs::forget(context, claim);
    if let Some(over) = over {
        let (backend, identity, mode) = (context.backend.clone(), identity(claim), claim.mode.clone());
        tokio::spawn(async move { backend.forget(&identity, &mode, &over).await });
    }
    bury(&desk.publisher, &event, message, Some(settled_by)).await;
    crash_point("before-event");
    desk.publisher.announce_again(&announcement).await;
    crash_point("before-ack");
    Ok(Outcome::Said)
}

/// The launches of a job that runs in a cluster, asked for while it is still this worker's: a worker that has lost it meanwhile
/// must not take the next one's for its own, however late it comes to removing them.
pub async fn launches(context: &Context, claim: &Claim) -> Option<Launches> {
    if !claim.mode.is_cluster() {
        return None;
    }
    let identity = identity(claim);
    let asked = tokio::time::timeout(ASKING, context.backend.launches(&identity, &claim.mode)).await;
    let reason = match asked {
        Ok(Ok(launches)) => return Some(launches),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {}", in_words(ASKING)),
    };
    tracing::warn!(job_id = %claim.job, reason, "what is kept of a job in the cluster cannot be known, and stays there");
    None
}

/// Puts a job that failed for a reason that is not its model's, or was rejected, among the dead.
async fn bury(
    publisher: &Publisher,
    event: &Event,
    message: &Message,
    claim: Option<crate::broker::ledger::record::Position>,
) {
    let data = &event.data;
    let (class, words) = match (&data.failure, &data.faults) {
        // What the model itself raised is its owner's to mend, and its owner has the event.
        (Some(failure), _) if failure.class == FailureClass::Model => return,
        (Some(failure), _) => (failure.class, failure.message.clone()),
        (None, Some(faults)) => {
            (FailureClass::Invalid, faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        }
        (None, None) => return,
    };
    let burial = Burial { class, words: &words, worker: &data.worker, claim, attempt: data.attempt };
    publisher.bury(message, &burial).await;
}

/// Answers a delivery of a job that has ended: with the very event that told its end.
pub async fn repeat(desk: &Desk, claim: &Claim, settled: &SettledJob, message: &Message) {
    let kind = settled.ending().event_kind();
    let id = format!("{}/{}/{}", claim.job, settled.attempt(), kind.word());
    let announcement = match desk.history.find(&id, settled.at).await {
        Some(announcement) => announcement,
        None => Announcement::new(kind, &forgotten(claim, settled)),
    };
    // Whoever had this delivery before may not have got as far as this.
    if message.came_back()
        && let Some(event) = announcement.event()
    {
        bury(&desk.publisher, &event, message, Some(settled.claim)).await;
    }
    desk.publisher.announce_again(&announcement).await;
}

/// The end of a job of which the history has nothing more.
fn forgotten(claim: &Claim, settled: &SettledJob) -> Event {
    let claim = Claim { attempt: settled.attempt(), ..claim.clone() };
    let kind = settled.ending().event_kind();
    claim.event(kind, |data| {
        data.job_result = Some(JobResult::Unknown);
        data.message = Some(
            "the job has ended like this; what else there was to say is no longer in the history".to_owned(),
        );
        if kind == EventKind::Failed {
            let words = "the reason is no longer in the history".to_owned();
            data.failure = Some(plain(FailureClass::Infrastructure, words));
        }
        if kind == EventKind::Rejected {
            data.faults = Some(Vec::new());
        }
    })
}

/// Tells that there is another job under this id.
pub async fn conflict(
    context: &Context,
    desk: &Desk,
    candidate: &Candidate,
    first: Digest,
    message: &Message,
) {
    let Candidate { claim, digest: this, content } = candidate;
    let mut words = format!(
        "the id belongs to a job with another body (SHA-256 {first}..., this one has {this}...); publish this one under an id \
         of its own"
    );
    if let Err(faults) = content {
        // All that is to be mended, at once.
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        words.push_str("; it could not be run there either: ");
        words.push_str(&faults.join("; "));
    }
    let burial = Burial {
        class: FailureClass::Invalid,
        words: &words,
        worker: &claim.worker,
        claim: None,
        attempt: 0,
    };
    desk.publisher.bury(message, &burial).await;
    let mut event = claim.event(EventKind::Conflict, |data| {
        data.message = Some(words.clone());
        data.digests = Some(Digests { first: first.to_string(), this: this.to_string() });
    });
    event.id = format!("{}/{this}", event.id);
    context.announce.announce_and_wait(EventKind::Conflict, event).await;
}

/// Offers a job that somebody has to workers again once its owner's lease must be over.
pub async fn look_again(desk: &Desk, message: &Message, seen: &Seen) {
    desk.publisher.look_again(message, desk.ledger.lease(), seen).await;
}

async fn retry(
    context: &Context,
    publisher: &Publisher,
    claim: &Claim,
    message: &Message,
    failure: &Failure,
) {
    let delays = &context.settings.retry.delays;
    let step = usize::try_from(claim.failures).unwrap_or(usize::MAX).min(delays.len().saturating_sub(1));
    let delay = delays.get(step).copied().unwrap_or(Duration::ZERO);
    publisher.delay(message, delay, claim.attempt + 1).await;
    let words = format!("{}; the next attempt follows in {}", failure.message, in_words(delay));
    announce_retry(context, claim, words, Some(failure.clone()), delay).await;
}

async fn announce_retry(
    context: &Context,
    claim: &Claim,
    words: String,
    failure: Option<Failure>,
    delay: Duration,
) {
    let event = claim.event(EventKind::Retrying, |data| {
        data.message = Some(words);
        data.failure = failure;
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

/// The end of a job that was cancelled before anything of it ran.
#[must_use]
pub fn cancelled() -> Attempt {
    Attempt { end: End::Cancelled, course: Course::default() }
}

/// The end of an attempt at which nothing could be done that had to be.
#[must_use]
pub fn given_back() -> Attempt {
    Attempt { end: End::GivenBack, course: Course::default() }
}

/// The end of an attempt before which it could not be known what of the job runs in a cluster. It is tried again like any
/// other, and the last one says so.
#[must_use]
pub fn unknown(reason: &str) -> Attempt {
    let message = format!("it cannot be known what of the job runs in the cluster: {reason}");
    let failure = Box::new(plain(FailureClass::Infrastructure, message));
    Attempt { end: End::Failed { failure, may_pass: true }, course: Course::default() }
}

/// The end of a message that is no job that can be run.
#[must_use]
pub fn refused(faults: Vec<Fault>) -> Attempt {
    Attempt { end: End::Rejected(faults), course: Course::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spark_runtime_protocol::event::{Rejected, Side, Way};

    #[test]
    fn bad_records_are_told_with_counts_and_reasons() {
        let reason = |field: Option<&str>| Rejection {
            side: Side::Input,
            field: field.map(str::to_owned),
            reason: "is missing".to_owned(),
            count: 2,
        };
        let records = Records {
            way: Way::Process,
            read: 9,
            scored: 6,
            written: 5,
            failed: 1,
            rejected: Rejected { input: 3, output: 1 },
            reasons: Vec::new(),
            stopped_at: Some(9),
        };
        let lines = bad_records(&records);
        assert_eq!(lines[0], "3 input record(s) rejected by schema");
        assert_eq!(lines[1], "1 output record(s) rejected by schema");
        assert_eq!(lines[2], "1 record(s) at which the model raised were passed over");
        assert_eq!(lines[3], "stopped at record 9, the first bad one");
        assert_eq!(reason_line(&reason(Some("age"))), "input: \"age\" is missing (2 times)");
        assert_eq!(reason_line(&reason(None)), "input: the record is missing (2 times)");
    }

    #[test]
    fn job_messages_have_the_form_that_modelop_writes() {
        let time: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
        assert_eq!(job_message(time, "ERROR", "x"), "2026/3/4 5:06:07 [ERROR] x");
    }
}
