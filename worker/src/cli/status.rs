//! `spark-runtime status`: what is known of one job, from the ledger and the history. It needs no worker.

use jiff::Timestamp;
use serde_json::{Value, json};
use spark_runtime_protocol::event::EventKind;
use spark_runtime_protocol::{Event, JobId};

use super::{CliError, Exit, output, render};
use crate::broker::ledger::fold::{Open, Settled, Standing};
use crate::broker::past::{Past, Story};
use crate::config::Settings;

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The job's id.
    #[arg(value_name = "JOB_ID", value_parser = |text: &str| JobId::new(text))]
    job: JobId,
    /// Print JSON: an object with `standing`, `attempt`, `worker`, `since` and `events`.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    let past = Past::open(&settings.endpoint()?, "spark-runtime status").await?;
    let story = past.job(&args.job).await;
    past.close().await;
    let story = story?;
    let unknown = unknown(&args.job, &story.standing);
    if args.json {
        output::json(&fields(&args.job, &story))?;
    }
    match unknown {
        Some(_) if args.json => Ok(Exit::Unreadable),
        Some(words) => Err(CliError::NothingKnown(words)),
        None if args.json => Ok(Exit::Ok),
        None => output::line(&text(&args.job, &story)).map(|()| Exit::Ok),
    }
}

/// What is to be said about a job that no worker has taken.
fn unknown(job: &JobId, standing: &Standing) -> Option<String> {
    match standing {
        Standing::Unknown => Some(format!(
            "nothing is known of the job {job}: no worker has taken it, or it ended longer ago than ledger.retention"
        )),
        Standing::Open(Open { attempts: 0, .. }) => Some(format!(
            "no worker has taken the job {job}; it is cancelled: when one takes it, it is not run"
        )),
        Standing::Open(_) | Standing::Settled(_) => None,
    }
}

/// A standing in the one word that answers to commands have for it too.
pub(super) fn word(standing: &Standing) -> &'static str {
    use spark_runtime_protocol::command::Standing as Word;
    let word = match standing {
        Standing::Unknown | Standing::Open(Open { attempts: 0, .. }) => Word::Unknown,
        Standing::Open(Open { owner: None, .. }) => Word::Waiting,
        Standing::Open(_) => Word::Running,
        Standing::Settled(_) => Word::Settled,
    };
    word.word()
}

/// How far the current attempt has got, by the history.
fn step<'a>(open: &Open, events: &'a [Event]) -> Option<&'a Event> {
    let is_step = |event: &&Event| {
        event.data.attempt == open.attempts
            && matches!(event.kind(), Some(EventKind::Submitted | EventKind::Running))
    };
    events.iter().rev().find(is_step)
}

/// Since when the job stands as it does, where that is known.
fn since(story: &Story) -> Option<Timestamp> {
    match &story.standing {
        Standing::Unknown => None,
        Standing::Open(open) if open.owner.is_some() => story.taken.and_then(render::of_milliseconds),
        // A worker that is lost says nothing about the end of its attempt.
        Standing::Open(open) => {
            let is_last = |event: &&Event| {
                event.data.attempt == open.attempts && event.kind() == Some(EventKind::Retrying)
            };
            story.events.iter().find(is_last).map(|event| event.time)
        }
        Standing::Settled(settled) => ended(settled),
    }
}

fn ended(settled: &Settled) -> Option<Timestamp> {
    Timestamp::from_second(settled.at.into()).ok()
}

fn end(story: &Story) -> Option<&Event> {
    story.events.iter().find(|event| event.kind().is_some_and(EventKind::is_terminal))
}

fn text(job: &JobId, story: &Story) -> String {
    let mut lines = vec![format!("id: {job}"), format!("standing: {}", word(&story.standing))];
    match &story.standing {
        Standing::Unknown => {}
        Standing::Open(open) => {
            let mut attempt = format!("attempt: {}", open.attempts);
            if open.failures > 0 {
                let failures = render::count(open.failures as usize, "failure");
                attempt.push_str(&format!(", after {failures}"));
            }
            lines.push(attempt);
        }
        Standing::Settled(settled) => lines.push(format!("attempt: {}", settled.attempt())),
    }
    lines.extend(story.worker.as_deref().map(|worker| format!("worker: {}", render::one_line(worker))));
    lines.extend(since(story).map(|since| format!("since: {}", render::moment(since))));
    if let Standing::Open(open) = &story.standing {
        if open.owner.is_some() {
            let step = step(open, &story.events);
            lines.push(format!("phase: {}", step.map_or("preparing".to_owned(), render::phase)));
        }
        if open.cancelled {
            lines.push("cancelled: it is being ended".to_owned());
        }
    }
    let steps = story.events.iter().filter(|event| !event.kind().is_some_and(EventKind::is_terminal));
    let steps: Vec<_> =
        steps.map(|event| format!("  {} {}", render::moment(event.time), render::phase(event))).collect();
    if !steps.is_empty() {
        lines.push(format!("steps:\n{}", steps.join("\n")));
    }
    if let Standing::Settled(settled) = &story.standing {
        lines.push(match end(story) {
            Some(end) => render::outcome(end),
            None => format!(
                "{}; what else there was to say is no longer in the history",
                settled.ending().event_kind()
            ),
        });
    }
    lines.join("\n")
}

fn fields(job: &JobId, story: &Story) -> Value {
    let mut fields = json!({"jobId": job, "standing": word(&story.standing)});
    match &story.standing {
        Standing::Unknown => {}
        Standing::Open(open) => {
            if open.attempts > 0 {
                fields["attempt"] = json!(open.attempts);
                fields["failures"] = json!(open.failures);
            }
            fields["cancelled"] = json!(open.cancelled);
        }
        Standing::Settled(settled) => {
            fields["attempt"] = json!(settled.attempt());
            fields["ending"] = json!(settled.ending().event_kind());
        }
    }
    fields["worker"] = json!(story.worker);
    fields["since"] = json!(since(story));
    if let Standing::Open(open) = &story.standing
        && open.owner.is_some()
    {
        let kind = step(open, &story.events).and_then(Event::kind);
        fields["phase"] = json!(kind.map_or("preparing", EventKind::word));
    }
    fields["events"] = json!(story.events);
    fields
}

#[cfg(test)]
mod tests {
    use spark_runtime_protocol::JobType;
    use spark_runtime_protocol::event::{EventData, Failure, FailureClass, TraceContext};

    use super::*;
    use crate::broker::ledger::fold::{Fold, JobKey};
    use crate::broker::ledger::record::{Digest, Ending, InstanceId, Position, Reason, Record, Terms};

    /// 2026-05-04T10:20:30Z, in milliseconds.
    const TAKEN: u64 = 1_777_890_030_000;
    const WORKER: InstanceId = InstanceId::from_number(1);

    fn job() -> JobId {
        JobId::new("job-1").unwrap()
    }

    fn claim() -> Record {
        Record::Claim {
            job: job(),
            digest: Digest::of(b"{}"),
            terms: Terms::Free,
            existing: Vec::new(),
            at: TAKEN,
        }
    }

    fn release(offset: u64) -> Record {
        Record::Release { job: job(), claim: Position::new(offset, 0), reason: Reason::Failed }
    }

    fn settle(offset: u64, end: Ending) -> Record {
        Record::Settle { job: job(), claim: Position::new(offset, 0), end, at: TAKEN + 12_345 }
    }

    /// The story after these records; the first of them lies behind the worker's renewal, at offset 1.
    fn story(records: &[Record], events: Vec<Event>) -> Story {
        let mut fold = Fold::default();
        let renew = Record::Renew { name: "host-17-ab12".into(), lease_ms: 60_000 };
        for (offset, record) in (0..).zip([&renew].into_iter().chain(records)) {
            fold.apply(Position::new(offset, 0), WORKER, offset, record);
        }
        let standing = fold.standing(JobKey::of(&job()));
        let was_taken = records.iter().any(|record| matches!(record, Record::Claim { .. }));
        Story {
            standing,
            worker: was_taken.then(|| "host-17-ab12".into()),
            taken: was_taken.then_some(TAKEN),
            events,
        }
    }

    fn event(kind: EventKind, attempt: u32, second: i64, fill: impl FnOnce(&mut EventData)) -> Event {
        let mut data = EventData::new(kind, &job(), Some(JobType::Score), attempt, "host-17-ab12");
        data.time = Timestamp::from_millisecond(i64::try_from(TAKEN).unwrap() + second * 1000).unwrap();
        fill(&mut data);
        Event::new(kind, "host-17-ab12", &TraceContext::default(), data)
    }

    fn retrying() -> Event {
        event(EventKind::Retrying, 1, 3, |data| {
            data.delay_ms = Some(5000);
            data.next_attempt = Some(2);
            data.failure = Some(Failure {
                class: FailureClass::Submit,
                message: "no driver\u{1b}[2J".to_owned(),
                exception: None,
                record: None,
                input: None,
                exit_code: None,
                signal: None,
                log_tail: None,
                log: None,
            });
        })
    }

    fn shown(records: &[Record], events: Vec<Event>) -> String {
        text(&job(), &story(records, events))
    }

    #[test]
    fn a_running_job_is_told_with_its_worker_its_attempt_and_how_it_got_there() {
        let second = [claim(), release(1), claim()];
        insta::assert_snapshot!(shown(&second, vec![retrying(), event(EventKind::Submitted, 2, 8, |_| {})]), @r#"
        id: job-1
        standing: running
        attempt: 2, after 1 failure
        worker: host-17-ab12
        since: 2026-05-04T10:20:30Z
        phase: submitted
        steps:
          2026-05-04T10:20:33Z retrying in 5 s as attempt 2; attempt 1 ended: submit: no driver\u{1b}[2J
          2026-05-04T10:20:38Z submitted
        "#);
        let cancel = Record::Cancel { job: job(), at: TAKEN };
        insta::assert_snapshot!(shown(&[claim(), cancel], Vec::new()), @"
        id: job-1
        standing: running
        attempt: 1
        worker: host-17-ab12
        since: 2026-05-04T10:20:30Z
        phase: preparing
        cancelled: it is being ended
        ");
    }

    #[test]
    fn a_waiting_job_is_told_with_the_end_of_its_last_attempt() {
        insta::assert_snapshot!(shown(&[claim(), release(1)], vec![retrying()]), @r#"
        id: job-1
        standing: waiting
        attempt: 1, after 1 failure
        worker: host-17-ab12
        since: 2026-05-04T10:20:33Z
        steps:
          2026-05-04T10:20:33Z retrying in 5 s as attempt 2; attempt 1 ended: submit: no driver\u{1b}[2J
        "#);
        // Whoever ran it did not live to tell.
        insta::assert_snapshot!(shown(&[claim(), Record::Leave], Vec::new()), @"
        id: job-1
        standing: waiting
        attempt: 1, after 1 failure
        worker: host-17-ab12
        ");
    }

    #[test]
    fn a_job_that_has_ended_is_told_with_its_outcome_as_long_as_the_history_has_it() {
        let over = [claim(), settle(1, Ending::Completed)];
        let completed = event(EventKind::Completed, 1, 12, |data| {
            data.job_wait_time = Some(0);
            data.job_end_time = Some(12_345);
        });
        insta::assert_snapshot!(shown(&over, vec![event(EventKind::Running, 1, 2, |_| {}), completed]), @"
        id: job-1
        standing: settled
        attempt: 1
        worker: host-17-ab12
        since: 2026-05-04T10:20:42Z
        steps:
          2026-05-04T10:20:32Z running
        completed in 12.3 s
        ");
        insta::assert_snapshot!(shown(&[claim(), settle(1, Ending::Failed)], Vec::new()), @"
        id: job-1
        standing: settled
        attempt: 1
        worker: host-17-ab12
        since: 2026-05-04T10:20:42Z
        failed; what else there was to say is no longer in the history
        ");
    }

    #[test]
    fn what_no_worker_has_taken_is_told_in_a_sentence() {
        let said = |records: &[Record]| unknown(&job(), &story(records, Vec::new()).standing);
        insta::assert_snapshot!(said(&[]).unwrap(), @"nothing is known of the job job-1: no worker has taken it, or it ended longer ago than ledger.retention");
        insta::assert_snapshot!(said(&[Record::Cancel { job: job(), at: TAKEN }]).unwrap(), @"no worker has taken the job job-1; it is cancelled: when one takes it, it is not run");
        assert_eq!(said(&[claim()]), None);
    }

    #[test]
    fn for_programs_a_story_has_the_words_of_answers_to_commands_and_the_events_as_they_were() {
        let fields = |records: &[Record], events| fields(&job(), &story(records, events)).to_string();
        let submitted = || event(EventKind::Submitted, 1, 1, |_| {});
        insta::assert_snapshot!(fields(&[claim()], vec![submitted()]), @r#"{"jobId":"job-1","standing":"running","attempt":1,"failures":0,"cancelled":false,"worker":"host-17-ab12","since":"2026-05-04T10:20:30Z","phase":"submitted","events":[{"specversion":"1.0","id":"job-1/1/submitted","source":"host-17-ab12","type":"spark-runtime.job.submitted.v1","subject":"job-1","time":"2026-05-04T10:20:31Z","datacontenttype":"application/json","data":{"jobId":"job-1","jobType":"MODEL_BATCH_JOB","attempt":1,"worker":"host-17-ab12","jobStatus":"WAITING","time":"2026-05-04T10:20:31Z"}}]}"#);
        insta::assert_snapshot!(fields(&[claim(), settle(1, Ending::Rejected)], Vec::new()), @r#"{"jobId":"job-1","standing":"settled","attempt":1,"ending":"rejected","worker":"host-17-ab12","since":"2026-05-04T10:20:42Z","events":[]}"#);
        insta::assert_snapshot!(fields(&[], Vec::new()), @r#"{"jobId":"job-1","standing":"unknown","worker":null,"since":null,"events":[]}"#);
    }
}
