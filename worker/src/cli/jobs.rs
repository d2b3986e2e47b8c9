//! `spark-runtime jobs`: the latest jobs, from the ledger and the history. It needs no worker.

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::status::word;
use super::{CliError, Exit, output, render};
use crate::broker::ledger::fold::{Open, Standing};
use crate::broker::ledger::record::Ending;
use crate::broker::past::{Listing, Past, Row, Selection};
use crate::config::Settings;

/// Arguments of `jobs`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only jobs that stand like this; several are separated by commas.
    #[arg(long, value_name = "STATE", value_delimiter = ',')]
    state: Vec<State>,
    /// The latest jobs, at most so many.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print JSON: an object with `jobs`, a list, and `all`, how many there are.
    #[arg(long)]
    json: bool,
}

/// What jobs may be picked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    Waiting,
    Running,
    Completed,
    Failed,
    Cancelled,
    Rejected,
}

impl State {
    fn ending(self) -> Option<Ending> {
        match self {
            Self::Waiting | Self::Running => None,
            Self::Completed => Some(Ending::Completed),
            Self::Failed => Some(Ending::Failed),
            Self::Cancelled => Some(Ending::Cancelled),
            Self::Rejected => Some(Ending::Rejected),
        }
    }
}

fn selection(args: &Args) -> Selection {
    let states: &[State] = if args.state.is_empty() { State::value_variants() } else { &args.state };
    Selection {
        waiting: states.contains(&State::Waiting),
        running: states.contains(&State::Running),
        endings: states.iter().filter_map(|state| state.ending()).collect(),
        limit: args.limit as usize,
    }
}

pub(super) async fn run(args: Args, settings: Settings) -> Result<Exit, CliError> {
    let past = Past::open(&settings.endpoint()?, "spark-runtime jobs").await?;
    let listing = past.jobs(&selection(&args)).await;
    past.close().await;
    let listing = listing?;
    if args.json {
        let jobs: Vec<_> = listing.jobs.iter().map(fields).collect();
        output::json(&json!({"jobs": jobs, "all": listing.all}))?;
    } else {
        output::line(&text(&listing))?;
    }
    Ok(Exit::Ok)
}

fn text(listing: &Listing) -> String {
    let mut lines: Vec<_> = listing.jobs.iter().map(line).collect();
    let shown = listing.jobs.len();
    let of_all = if shown < listing.all { format!(" of {}", listing.all) } else { String::new() };
    lines.push(format!("{}{of_all}", render::count(shown, "job")));
    lines.join("\n")
}

/// When the job ended, or when its last attempt began.
fn since(row: &Row) -> Option<Timestamp> {
    match &row.standing {
        Standing::Settled(settled) => Timestamp::from_second(settled.at.into()).ok(),
        Standing::Unknown | Standing::Open(_) => render::of_milliseconds(row.taken),
    }
}

fn line(row: &Row) -> String {
    let time = since(row).map_or_else(|| "-".to_owned(), render::moment);
    let worker = row.worker.as_deref().unwrap_or("a worker");
    let mut text = format!("{time} {} ", row.id);
    match &row.standing {
        Standing::Unknown => text.push_str(word(&row.standing)),
        Standing::Open(open @ Open { owner: Some(_), .. }) => {
            text.push_str(&format!("running on {worker}, attempt {}", open.attempts));
        }
        Standing::Open(open) => {
            text.push_str(&format!("waiting after {}", render::count(open.attempts as usize, "attempt")));
            if open.failures > 0 {
                text.push_str(&format!(", {}", render::count(open.failures as usize, "failure")));
            }
        }
        Standing::Settled(settled) => {
            text.push_str(&format!(
                "{} on {worker}, attempt {}",
                settled.ending().event_kind(),
                settled.attempt()
            ));
        }
    }
    if matches!(&row.standing, Standing::Open(open) if open.cancelled) {
        text.push_str(", being cancelled");
    }
    if let Some(reason) = &row.reason {
        let class = reason.class.map(|class| format!(" {class}:")).unwrap_or_default();
        text.push_str(&format!(":{class} {}", reason.message));
    }
    render::one_line(&text)
}

fn fields(row: &Row) -> Value {
    let mut fields = json!({"jobId": row.id, "standing": word(&row.standing)});
    match &row.standing {
        Standing::Unknown => {}
        Standing::Open(open) => {
            fields["attempt"] = json!(open.attempts);
            fields["failures"] = json!(open.failures);
            fields["cancelled"] = json!(open.cancelled);
        }
        Standing::Settled(settled) => {
            fields["attempt"] = json!(settled.attempt());
            fields["ending"] = json!(settled.ending().event_kind());
        }
    }
    fields["worker"] = json!(row.worker);
    fields["since"] = json!(since(row));
    if let Some(reason) = &row.reason {
        if let Some(class) = reason.class {
            fields["failureClass"] = json!(class);
        }
        fields["message"] = json!(reason.message);
    }
    fields
}

#[cfg(test)]
mod tests {
    use spark_runtime_protocol::JobId;
    use spark_runtime_protocol::event::FailureClass;

    use super::*;
    use crate::broker::ledger::fold::{Fold, JobKey};
    use crate::broker::ledger::record::{Digest, InstanceId, Position, Reason as Why, Record, Terms};
    use crate::broker::past::Reason;

    /// 2026-05-04T10:20:30Z, in milliseconds.
    const TAKEN: u64 = 1_777_890_030_000;

    /// A row after a claim and one more record.
    fn row(id: &str, then: impl FnOnce(JobId, Position) -> Option<Record>) -> Row {
        let id = JobId::new(id).unwrap();
        let claim = Position::new(1, 0);
        let digest = Digest::of(b"{}");
        let records = [
            Some(Record::Renew { name: "host-17-ab12".into(), lease_ms: 60_000 }),
            Some(Record::Claim {
                job: id.clone(),
                digest,
                terms: Terms::Free,
                existing: Vec::new(),
                at: TAKEN,
            }),
            then(id.clone(), claim),
        ];
        let mut fold = Fold::default();
        for (offset, record) in (0..).zip(records.into_iter().flatten()) {
            fold.apply(Position::new(offset, 0), InstanceId::from_number(1), offset, &record);
        }
        let standing = fold.standing(JobKey::of(&id));
        Row { id, standing, worker: Some("host-17-ab12".into()), taken: TAKEN, reason: None }
    }

    fn rows() -> Vec<Row> {
        let settle = |end| {
            move |job: JobId, claim: Position| Some(Record::Settle { job, claim, end, at: TAKEN + 90_000 })
        };
        let release =
            |reason| move |job: JobId, claim: Position| Some(Record::Release { job, claim, reason });
        let reason = |class, message: &str| Some(Reason { class, message: message.to_owned() });
        vec![
            row("running", |_, _| None),
            row("ending", |job, _| Some(Record::Cancel { job, at: TAKEN })),
            row("failing", release(Why::Failed)),
            row("back", release(Why::GivenBack)),
            row("completed", settle(Ending::Completed)),
            Row {
                reason: reason(
                    Some(FailureClass::Model),
                    "the model raised ValueError: no\nsuch\u{1b}[2Jcolumn",
                ),
                ..row("failed", settle(Ending::Failed))
            },
            Row { reason: reason(None, "the job has 2 faults"), ..row("rejected", settle(Ending::Rejected)) },
            row("forgotten", settle(Ending::Failed)),
            row("cancelled", settle(Ending::Cancelled)),
        ]
    }

    #[test]
    fn every_job_is_one_line() {
        insta::assert_snapshot!(text(&Listing { jobs: rows(), all: 1204 }), @r#"
        2026-05-04T10:20:30Z running running on host-17-ab12, attempt 1
        2026-05-04T10:20:30Z ending running on host-17-ab12, attempt 1, being cancelled
        2026-05-04T10:20:30Z failing waiting after 1 attempt, 1 failure
        2026-05-04T10:20:30Z back waiting after 1 attempt
        2026-05-04T10:22:00Z completed completed on host-17-ab12, attempt 1
        2026-05-04T10:22:00Z failed failed on host-17-ab12, attempt 1: model: the model raised ValueError: no such\u{1b}[2Jcolumn
        2026-05-04T10:22:00Z rejected rejected on host-17-ab12, attempt 1: the job has 2 faults
        2026-05-04T10:22:00Z forgotten failed on host-17-ab12, attempt 1
        2026-05-04T10:22:00Z cancelled cancelled on host-17-ab12, attempt 1
        9 jobs of 1204
        "#);
        insta::assert_snapshot!(text(&Listing { jobs: Vec::new(), all: 0 }), @"0 jobs");
    }

    #[test]
    fn for_programs_every_job_is_an_object() {
        let lines: Vec<_> = rows().iter().map(|row| fields(row).to_string()).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"jobId":"running","standing":"running","attempt":1,"failures":0,"cancelled":false,"worker":"host-17-ab12","since":"2026-05-04T10:20:30Z"}
        {"jobId":"ending","standing":"running","attempt":1,"failures":0,"cancelled":true,"worker":"host-17-ab12","since":"2026-05-04T10:20:30Z"}
        {"jobId":"failing","standing":"waiting","attempt":1,"failures":1,"cancelled":false,"worker":"host-17-ab12","since":"2026-05-04T10:20:30Z"}
        {"jobId":"back","standing":"waiting","attempt":1,"failures":0,"cancelled":false,"worker":"host-17-ab12","since":"2026-05-04T10:20:30Z"}
        {"jobId":"completed","standing":"settled","attempt":1,"ending":"completed","worker":"host-17-ab12","since":"2026-05-04T10:22:00Z"}
        {"jobId":"failed","standing":"settled","attempt":1,"ending":"failed","worker":"host-17-ab12","since":"2026-05-04T10:22:00Z","failureClass":"model","message":"the model raised ValueError: no\nsuch\u001b[2Jcolumn"}
        {"jobId":"rejected","standing":"settled","attempt":1,"ending":"rejected","worker":"host-17-ab12","since":"2026-05-04T10:22:00Z","message":"the job has 2 faults"}
        {"jobId":"forgotten","standing":"settled","attempt":1,"ending":"failed","worker":"host-17-ab12","since":"2026-05-04T10:22:00Z"}
        {"jobId":"cancelled","standing":"settled","attempt":1,"ending":"cancelled","worker":"host-17-ab12","since":"2026-05-04T10:22:00Z"}
        "#);
    }

    #[test]
    fn without_a_state_all_are_asked_for() {
        let selection = |state: &[State]| selection(&Args { state: state.to_vec(), limit: 7, json: false });
        let all = selection(&[]);
        assert!(all.running && all.waiting && all.endings.len() == 4 && all.limit == 7);
        let some = selection(&[State::Failed, State::Waiting]);
        assert_eq!((some.running, some.waiting, some.endings), (false, true, vec![Ending::Failed]));
    }
}
