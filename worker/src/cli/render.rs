//! Events as text for people; shared by every verb that shows them.
//!
//! Whatever a model or a publisher wrote goes through [`plain`]: it must not be able to drive the reader's terminal.
//!
//! This module must not know where events come from.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::Value;
use spark_runtime_protocol::event::{
    Event, EventKind, Failure, Frame, JobResult, ModelException, Records, Resources, Way,
};
use spark_runtime_protocol::json::Fault;

use super::{Exit, output};

/// How many of a traceback's or a log's last lines are shown.
const TAIL_LINES: usize = 20;
/// How many characters of a message stand in one line.
const LONGEST_LINE: usize = 300;

/// Shows on the standard error how a job gets on: a spinner on a terminal, else one plain line per event.
///
/// Progress is a courtesy: when it cannot be written, nothing else is harmed.
#[derive(Debug)]
pub struct Progress {
    spinner: Option<ProgressBar>,
    is_terminal: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Nothing is shown before the first event or word.
    #[must_use]
    pub fn new() -> Self {
        Self { spinner: None, is_terminal: io::stderr().is_terminal() }
    }

    /// Shows what is being waited for, before the first event.
    pub fn waiting(&mut self, text: &str) {
        if self.is_terminal {
            self.spin(text);
        } else {
            output::complain(text);
        }
    }

    /// Shows what has happened. A terminal event ends the display; its outcome is not part of it, see [`outcome`].
    pub fn event(&mut self, event: &Event) {
        let text = phase(event);
        if event.kind().is_some_and(EventKind::is_terminal) {
            return self.finish();
        }
        if self.is_terminal {
            // A step that goes by in an instant leaves no line; what went wrong does.
            if event.kind() == Some(EventKind::Retrying) {
                self.note(&text);
            }
            self.spin(&text);
        } else {
            output::complain(&text);
        }
    }

    /// Shows a line that stays.
    pub fn note(&mut self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| output::complain(text)),
            None => output::complain(text),
        }
    }

    /// Ends the display and leaves nothing of it on the terminal.
    pub fn finish(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    fn spin(&mut self, text: &str) {
        let spinner = self.spinner.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            let spinner = ProgressBar::new_spinner()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        spinner.set_message(text.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The exit code that a terminal event stands for; `None` for any other event.
#[must_use]
pub fn exit_of(event: &Event) -> Option<Exit> {
    match event.kind()? {
        // Ended by itself, but not as asked: some records were refused.
        EventKind::Completed if event.data.job_result == Some(JobResult::Failure) => Some(Exit::Failed),
        EventKind::Completed => Some(Exit::Ok),
        EventKind::Failed => Some(Exit::Failed),
        EventKind::Rejected => Some(Exit::Rejected),
        EventKind::Cancelled => Some(Exit::Cancelled),
        _ => None,
    }
}

/// An event as one line: when, which job, what.
#[must_use]
pub fn line(event: &Event) -> String {
    format!("{} {} {}", moment(event.time), event.subject, phase(event))
}

/// A moment in UTC, to the second.
#[must_use]
pub fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A moment by its milliseconds since 1970, where there is one.
#[must_use]
pub fn of_milliseconds(milliseconds: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(milliseconds).ok()?).ok()
}

/// What has happened, in one line without the job's id.
#[must_use]
pub fn phase(event: &Event) -> String {
    let data = &event.data;
    let Some(kind) = event.kind() else { return one_line(&event.cloud_event_type) };
    let mut text = kind.word().to_owned();
    match kind {
        EventKind::Accepted => {
            text.push_str(&format!(" by {}", one_line(&data.worker)));
            if data.attempt > 1 {
                text.push_str(&format!(", attempt {}", data.attempt));
            }
        }
        EventKind::Submitted => {
            if data.way == Some(Way::Process) {
                text.push_str(" without a Spark session");
            }
            if let Some(id) = &data.application_id {
                text.push_str(&format!(" as {}", one_line(id)));
            }
            if let Some(url) = &data.tracking_url {
                text.push_str(&format!(", to be seen at {}", one_line(url)));
            }
        }
        EventKind::Retrying => {
            text.push_str(&format!(" in {}", seconds(data.delay_ms.unwrap_or_default())));
            if let Some(next) = data.next_attempt {
                text.push_str(&format!(" as attempt {next}"));
            }
            if let Some(failure) = &data.failure {
                text.push_str(&format!("; attempt {} ended: {}", data.attempt, reason(failure)));
            }
        }
        EventKind::Completed => text.push_str(&took(event)),
        EventKind::Failed => {
            if let Some(failure) = &data.failure {
                text.push_str(&format!(": {}", reason(failure)));
            }
        }
        EventKind::Rejected => {
            text.push_str(&format!(": {}", count(data.faults.as_ref().map_or(0, Vec::len), "fault")));
        }
        EventKind::Cancelled | EventKind::Conflict => {
            if let Some(message) = &data.message {
                text.push_str(&format!(": {}", one_line(message)));
            }
        }
        EventKind::Staged | EventKind::Running => {}
    }
    text
}

/// A terminal event in full: what came of the job, its results and outputs, or what is wrong and where.
#[must_use]
pub fn outcome(event: &Event) -> String {
    let data = &event.data;
    let mut lines = vec![headline(event)];
    match event.kind() {
        Some(EventKind::Completed) => {
            if let Some(message) = &data.message {
                lines.push(plain(message));
            }
            if let Some(results) = data.results.as_ref().filter(|results| !results.is_null()) {
                let results = serde_json::to_string_pretty(results).unwrap_or_else(|_| results.to_string());
                lines.push(format!("results:\n{}", plain(&results)));
            }
            lines.extend(data.records.as_ref().map(records));
            lines.extend(assets("outputs:", data.output_data.as_ref()));
            lines.extend(assets("files of the training:", data.additional_assets.as_ref()));
            lines.extend(data.resources.map(resources));
        }
        Some(EventKind::Failed) => {
            if let Some(failure) = &data.failure {
                lines.extend(failure_lines(failure));
            }
            lines.extend(data.resources.map(resources));
        }
        Some(EventKind::Rejected) => lines.push(faults(data.faults.as_deref().unwrap_or_default())),
        _ => {}
    }
    lines.join("\n")
}

fn records(records: &Records) -> String {
    let how = match records.way {
        Way::Process => "in one process",
        Way::Spark => "by Spark",
    };
    let mut text = format!(
        "records: {} read, {} scored, {} written, {how}",
        records.read, records.scored, records.written
    );
    for reason in &records.reasons {
        let field = reason.field.as_deref().map(one_line).unwrap_or_else(|| "the record".to_owned());
        text.push_str(&format!(
            "\n  {}: {field} {}, {} times",
            reason.side.word(),
            one_line(&reason.reason),
            reason.count
        ));
    }
    text
}

fn headline(event: &Event) -> String {
    let data = &event.data;
    match event.kind() {
        Some(kind @ EventKind::Completed) => {
            let attempts =
                if data.attempt > 1 { format!(" at attempt {}", data.attempt) } else { String::new() };
            let result = match data.job_result {
                Some(JobResult::Failure) => ", with result FAILURE",
                _ => "",
            };
            format!("{kind}{}{attempts}{result}", took(event))
        }
        Some(kind @ EventKind::Failed) => {
            let attempts =
                if data.attempt > 1 { format!(" at attempt {}", data.attempt) } else { String::new() };
            match &data.failure {
                Some(failure) => format!("{kind}{attempts} ({}): {}", failure.class, plain(&failure.message)),
                None => format!("{kind}{attempts}"),
            }
        }
        Some(EventKind::Rejected) => "rejected:".to_owned(),
        _ => phase(event),
    }
}

fn failure_lines(failure: &Failure) -> Vec<String> {
    let mut lines = Vec::new();
    match &failure.exception {
        Some(exception) => {
            lines.extend(exception.frame.as_ref().map(|frame| format!("  {}", place(frame))));
            lines.push(traceback(exception));
        }
        None => {
            let tail = failure.log_tail.as_deref().filter(|tail| !tail.trim().is_empty());
            lines.extend(tail.map(|tail| format!("the log ends with:\n{}", indented_tail(tail))));
        }
    }
    if let Some(log) = &failure.log {
        lines.push(format!("log: {}", one_line(log)));
    }
    lines
}

fn traceback(exception: &ModelException) -> String {
    match exception.traceback.as_deref().filter(|traceback| !traceback.trim().is_empty()) {
        Some(traceback) => format!("the traceback ends with:\n{}", indented_tail(traceback)),
        None => format!("  {}", plain(&format!("{}: {}", exception.exception_type, exception.message))),
    }
}

/// A place in the model's own files, as `model_source_code.py:12 in score: the line's text`.
fn place(frame: &Frame) -> String {
    let mut text = format!("{}:{}", frame.file, frame.line);
    if let Some(function) = &frame.function {
        text.push_str(&format!(" in {function}"));
    }
    if let Some(source) = &frame.text {
        text.push_str(&format!(": {}", source.trim()));
    }
    one_line(&text)
}

fn indented_tail(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().collect();
    let left_out = lines.len().saturating_sub(TAIL_LINES);
    let mut shown = Vec::new();
    if left_out > 0 {
        shown.push(format!("  ... {} before", count(left_out, "line")));
    }
    shown.extend(lines[left_out..].iter().map(|line| format!("  {}", plain(line))));
    shown.join("\n")
}

fn assets(title: &str, assets: Option<&Value>) -> Option<String> {
    let assets = assets?.as_array().filter(|assets| !assets.is_empty())?;
    let mut lines = vec![title.to_owned()];
    for asset in assets {
        let text = |key: &str| asset.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let name = text("filename").or_else(|| text("name")).unwrap_or("without a name");
        let mut line = format!("  {}", one_line(name));
        if let Some(size) = asset.get("fileSize").and_then(Value::as_u64) {
            line.push_str(&format!(", {}", count(usize::try_from(size).unwrap_or(usize::MAX), "byte")));
        }
        match (text("fileContent"), text("fileUrl")) {
            (Some(_), _) => line.push_str(", in the event"),
            (None, Some(url)) => line.push_str(&format!(", at {}", one_line(url))),
            (None, None) => {}
        }
        lines.push(line);
    }
    Some(lines.join("\n"))
}

fn resources(used: Resources) -> String {
    // Tenths of a megabyte and of a second are as much as anybody reads.
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let memory = used.peak_memory_bytes as f64 / f64::from(1 << 20);
    format!("used at most {memory:.1} MiB of memory, {:.1} s of processor time", used.processor_seconds)
}

/// Every fault on a line of its own, then their number.
#[must_use]
pub fn faults(faults: &[Fault]) -> String {
    let mut lines: Vec<_> = faults.iter().map(|fault| one_line(&fault.to_string())).collect();
    lines.push(count(faults.len(), "fault"));
    lines.join("\n")
}

fn reason(failure: &Failure) -> String {
    format!("{}: {}", failure.class, one_line(&failure.message))
}

/// As ` in 12.3 s`, from when a worker took the job to its end; empty when the event does not tell.
fn took(event: &Event) -> String {
    let (Some(taken), Some(ended)) = (event.data.job_wait_time, event.data.job_end_time) else {
        return String::new();
    };
    match u64::try_from(ended.saturating_sub(taken)) {
        Ok(millis) => format!(" in {}", seconds(millis)),
        Err(_) => String::new(),
    }
}

fn seconds(millis: u64) -> String {
    if millis < 1000 {
        return format!("{millis} ms");
    }
    if millis.is_multiple_of(1000) {
        return format!("{} s", millis / 1000);
    }
    format!("{:.1} s", Duration::from_millis(millis).as_secs_f64())
}

/// As `1 fault`, `2 faults`.
#[must_use]
pub fn count(number: usize, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{number} {word}s") }
}

/// Text of somebody else's, safe to print: line ends and tabs stay, every other control character and what turns the
/// direction of writing is shown as an escape.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.replace("\r\n", "\n").chars() {
        let turns = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (character.is_control() && !matches!(character, '\n' | '\t')) || turns {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}

/// As [`plain`], in one line of bounded length.
#[must_use]
pub fn one_line(text: &str) -> String {
    let text = plain(text.trim());
    let mut line: String = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST_LINE) {
        line.truncate(end);
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spark_runtime_protocol::event::{EventData, FailureClass, TraceContext};
    use spark_runtime_protocol::{JobId, JobType};

    use super::*;

    fn event(kind: EventKind, change: impl FnOnce(&mut EventData)) -> Event {
        let id = JobId::new("job-1").unwrap();
        let mut data = EventData::new(kind, &id, Some(JobType::Score), 1, "host-17-ab12");
        data.time = "2026-05-04T10:20:30.5Z".parse().unwrap();
        if kind.is_terminal() {
            data.job_wait_time = Some(1_000);
            data.job_end_time = Some(13_345);
        }
        change(&mut data);
        Event::new(kind, "host-17-ab12", &TraceContext::default(), data)
    }

    fn failure(class: FailureClass, message: &str) -> Failure {
        crate::job::submit::plain(class, message.to_owned())
    }

    #[test]
    fn every_kind_of_event_is_one_line() {
        let events = [
            event(EventKind::Accepted, |_| {}),
            event(EventKind::Accepted, |data| data.attempt = 2),
            event(EventKind::Staged, |_| {}),
            event(EventKind::Submitted, |_| {}),
            event(EventKind::Submitted, |data| {
                data.application_id = Some("app-1".into());
                data.tracking_url = Some("http://cluster/app-1".into());
            }),
            event(EventKind::Running, |_| {}),
            event(EventKind::Retrying, |data| {
                data.delay_ms = Some(5000);
                data.next_attempt = Some(2);
                data.failure = Some(failure(FailureClass::Lost, "the worker is gone"));
            }),
            event(EventKind::Completed, |_| {}),
            event(EventKind::Failed, |data| {
                data.failure = Some(failure(FailureClass::Model, "ValueError: no\nsuch\u{1b}[2Jcolumn"))
            }),
            event(EventKind::Cancelled, |data| data.message = Some("on request".into())),
            event(EventKind::Rejected, |data| data.faults = Some(vec![Fault::new("/id", "is missing")])),
            Event {
                cloud_event_type: "spark-runtime.job.paused.v1".into(),
                ..event(EventKind::Staged, |_| {})
            },
        ];
        let lines: Vec<_> = events.iter().map(line).collect();
        assert!(lines.iter().all(|line| line.lines().count() == 1));
        insta::assert_snapshot!(lines.join("\n"), @r#"
        2026-05-04T10:20:30Z job-1 accepted by host-17-ab12
        2026-05-04T10:20:30Z job-1 accepted by host-17-ab12, attempt 2
        2026-05-04T10:20:30Z job-1 staged
        2026-05-04T10:20:30Z job-1 submitted
        2026-05-04T10:20:30Z job-1 submitted as app-1, to be seen at http://cluster/app-1
        2026-05-04T10:20:30Z job-1 running
        2026-05-04T10:20:30Z job-1 retrying in 5 s as attempt 2; attempt 1 ended: lost: the worker is gone
        2026-05-04T10:20:30Z job-1 completed in 12.3 s
        2026-05-04T10:20:30Z job-1 failed: model: ValueError: no such\u{1b}[2Jcolumn
        2026-05-04T10:20:30Z job-1 cancelled: on request
        2026-05-04T10:20:30Z job-1 rejected: 1 fault
        2026-05-04T10:20:30Z job-1 spark-runtime.job.paused.v1
        "#);
    }

    #[test]
    fn the_outcome_of_a_completed_job_has_results_outputs_and_what_it_used() {
        let completed = event(EventKind::Completed, |data| {
            data.results = Some(json!({"auc": 0.93, "matrix": [[1, 2], [3, 4]]}));
            data.output_data = Some(json!([
                {"assetType": "FILE", "filename": "summary.json", "fileContent": "e30=", "fileSize": 2},
                {"assetType": "FILE", "filename": "large.bin", "fileUrl": "file://host/attempt/large.bin", "fileSize": 104857600},
                {"assetType": "EXTERNAL_FILE", "name": "scored.csv", "fileUrl": "/data/scored.csv"},
            ]));
            data.resources = Some(Resources { peak_memory_bytes: 536_870_912, processor_seconds: 20.44 });
        });
        insta::assert_snapshot!(outcome(&completed), @r#"
        completed in 12.3 s
        results:
        {
          "auc": 0.93,
          "matrix": [
            [
              1,
              2
            ],
            [
              3,
              4
            ]
          ]
        }
        outputs:
          summary.json, 2 bytes, in the event
          large.bin, 104857600 bytes, at file://host/attempt/large.bin
          scored.csv, at /data/scored.csv
        used at most 512.0 MiB of memory, 20.4 s of processor time
        "#);
        let rejected_records = event(EventKind::Completed, |data| {
            data.attempt = 2;
            data.job_result = Some(JobResult::Failure);
            data.message = Some("3 input records rejected by schema".into());
            data.results = Some(Value::Null);
            data.output_data = Some(json!([]));
        });
        insta::assert_snapshot!(outcome(&rejected_records), @"
        completed in 12.3 s at attempt 2, with result FAILURE
        3 input records rejected by schema
        ");
    }

    #[test]
    fn the_outcome_of_a_failed_model_names_the_line_and_ends_the_traceback() {
        let failed = event(EventKind::Failed, |data| {
            let lines: Vec<_> = (1..=30).map(|n| format!("line {n}\u{7}")).collect();
            data.failure = Some(Failure {
                exception: Some(ModelException {
                    exception_type: "ValueError".into(),
                    message: "no such column".into(),
                    traceback: Some(lines.join("\r\n")),
                    frame: Some(Frame {
                        file: "model_source_code.py".into(),
                        line: 12,
                        function: Some("score".into()),
                        text: Some("    raise ValueError(\"no such column\")".into()),
                    }),
                }),
                log: Some("host:/var/spark/job-1/1/stderr.log".into()),
                log_tail: Some("not shown beside a traceback".into()),
                ..failure(FailureClass::Model, "ValueError: no such column")
            });
        });
        insta::assert_snapshot!(outcome(&failed), @r#"
        failed (model): ValueError: no such column
          model_source_code.py:12 in score: raise ValueError("no such column")
        the traceback ends with:
          ... 10 lines before
          line 11\u{7}
          line 12\u{7}
          line 13\u{7}
          line 14\u{7}
          line 15\u{7}
          line 16\u{7}
          line 17\u{7}
          line 18\u{7}
          line 19\u{7}
          line 20\u{7}
          line 21\u{7}
          line 22\u{7}
          line 23\u{7}
          line 24\u{7}
          line 25\u{7}
          line 26\u{7}
          line 27\u{7}
          line 28\u{7}
          line 29\u{7}
          line 30\u{7}
        log: host:/var/spark/job-1/1/stderr.log
        "#);
    }

    #[test]
    fn the_outcome_of_a_failure_without_an_exception_has_the_end_of_the_log() {
        let failed = event(EventKind::Failed, |data| {
            data.attempt = 3;
            data.failure = Some(Failure {
                log_tail: Some("Exception in thread \"main\"\nno master\n".into()),
                exit_code: Some(1),
                ..failure(
                    FailureClass::Submit,
                    "spark-submit ended with exit code 1 before the driver started",
                )
            });
        });
        insta::assert_snapshot!(outcome(&failed), @r#"
        failed at attempt 3 (submit): spark-submit ended with exit code 1 before the driver started
        the log ends with:
          Exception in thread "main"
          no master
        "#);
    }

    #[test]
    fn the_outcome_of_a_rejected_job_has_every_fault_and_of_a_cancelled_one_the_message() {
        let rejected = event(EventKind::Rejected, |data| {
            data.faults = Some(vec![Fault::new("/jobType", "is missing"), Fault::new("", "is too large")]);
        });
        insta::assert_snapshot!(outcome(&rejected), @"
        rejected:
        /jobType: is missing
        is too large
        2 faults
        ");
        let cancelled = event(EventKind::Cancelled, |data| data.message = Some("on request".into()));
        insta::assert_snapshot!(outcome(&cancelled), @"cancelled: on request");
    }

    #[test]
    fn the_exit_code_tells_the_outcome() {
        let exit = |kind| exit_of(&event(kind, |_| {}));
        assert_eq!(exit(EventKind::Completed), Some(Exit::Ok));
        assert_eq!(exit(EventKind::Failed), Some(Exit::Failed));
        assert_eq!(exit(EventKind::Rejected), Some(Exit::Rejected));
        assert_eq!(exit(EventKind::Cancelled), Some(Exit::Cancelled));
        for kind in EventKind::ALL.into_iter().filter(|kind| !kind.is_terminal()) {
            assert_eq!(exit(kind), None);
        }
        let refused = event(EventKind::Completed, |data| data.job_result = Some(JobResult::Failure));
        assert_eq!(exit_of(&refused), Some(Exit::Failed));
    }

    #[test]
    fn what_a_model_writes_cannot_drive_the_terminal() {
        assert_eq!(
            plain("a\u{1b}[31mb\r\nc\td\u{9b}e\u{202e}f\rg"),
            "a\\u{1b}[31mb\nc\td\\u{9b}e\\u{202e}f\\rg"
        );
        assert_eq!(one_line("a\n  b\n\nc"), "a b  c");
        assert_eq!(one_line(&"ä".repeat(400)).chars().count(), LONGEST_LINE + 3);
    }
}
