//! The verdict: what the journal of the runs and the book of what was heard say about the promises.
//!
//! This module must not know what was done to the service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write};
use std::path::Path;

use serde::Deserialize;
use spark_runtime_protocol::EventKind;
use spark_runtime_protocol::event::FailureClass;

use super::book::{Book, Entry, Terminal};
use super::plan::Kind;
use super::timeline::Timeline;

/// A line of the journal.
#[derive(Debug, Clone, Deserialize)]
pub struct Line {
    /// `start`, `overlap` or `end`.
    pub what: String,
    /// The job.
    pub job: String,
    /// The process of the run.
    pub pid: i32,
    /// When, on CLOCK_BOOTTIME.
    pub boottime_ns: i64,
    /// When, since 1970.
    pub unix_ns: i64,
    /// The directory of the run.
    pub directory: String,
    /// At the end: the exit code.
    pub code: Option<u8>,
}

impl Line {
    /// Whether a run begins with it.
    #[must_use]
    pub fn is_start(&self) -> bool {
        self.what != "end"
    }
}

/// What every run wrote, by job.
#[derive(Debug, Default)]
pub struct Journal {
    lines: HashMap<String, Vec<Line>>,
    unreadable: usize,
}

impl Journal {
    /// Reads a journal. One that is not there is empty.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let mut journal = Self::default();
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            match serde_json::from_str::<Line>(line) {
                Ok(line) => journal.lines.entry(line.job.clone()).or_default().push(line),
                Err(_) => journal.unreadable += 1,
            }
        }
        journal
    }

    /// The lines of one job in the order in which they were written.
    #[must_use]
    pub fn of(&self, job: &str) -> &[Line] {
        self.lines.get(job).map_or(&[], Vec::as_slice)
    }
}

/// What is found when everything is over.
#[derive(Debug, Default)]
pub struct Remains {
    /// Processes that nobody looks after.
    pub orphans: Vec<String>,
    /// Messages in queues in which there must be none.
    pub in_queues: BTreeMap<String, u64>,
    /// The ids of the jobs in the dead queue, each as often as it is there.
    pub dead: HashMap<String, usize>,
    /// Workers that ended though nobody had killed them.
    pub ended_by_themselves: usize,
    /// Workers that did not leave when they were told to.
    pub did_not_leave: usize,
}

/// What the run came to.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Jobs that the broker has confirmed, or that something was heard of.
    pub owed: usize,
    /// Those of them without a terminal event.
    pub lost: usize,
    /// Confirmed publications that no terminal event came after.
    pub unanswered: usize,
    /// Runs that began after the job's end was stated.
    pub doubled: usize,
    /// Runs that began while another one of the same job, or something that it had started, was there.
    pub overlapping: usize,
    /// Jobs whose terminal events are not the same to the byte.
    pub contradicting: usize,
    /// Jobs whose end is said to be one that no run came to.
    pub untrue: usize,
    /// Jobs that ended as jobs of their kind must not end.
    pub wrong: usize,
    /// Attempts that two worker instances speak of as theirs.
    pub ambiguous: usize,
    /// Events of a job's life that were heard after its end: of attempts that were overtaken, or late on their way.
    pub steps_after_end: usize,
    /// Jobs that must lie in the dead queue and do not.
    pub dead_missing: usize,
    /// Jobs that must not lie there and do.
    pub dead_unexpected: usize,
    /// Copies that lie there beside the first one of the same job. Whoever dies between the copy and what comes after it
    /// makes one; that cannot be helped.
    pub dead_repeated: usize,
    /// Events and lines that could not be read, or that are about nothing.
    pub unreadable: usize,
    /// What was left.
    pub remains: Remains,
    /// Jobs by kind.
    pub kinds: BTreeMap<Kind, usize>,
    /// Ends by their word.
    pub ends: BTreeMap<&'static str, usize>,
    /// Runs that began.
    pub runs: usize,
    /// Runs without an orderly end.
    pub cut_short: usize,
    /// Jobs that were run more than once.
    pub run_again: usize,
    /// Publications beside the first.
    pub repeated: usize,
    /// Terminal events beside the first.
    pub terminals_repeated: usize,
    /// Jobs whose last attempt was lost, too.
    pub exhausted: usize,
    /// Jobs that were given up by their publishers and never arrived.
    pub never_arrived: usize,
    /// The story of every job that something is wrong with.
    pub stories: Vec<String>,
}

impl Verdict {
    /// Whether every promise was kept.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let faults = [
            self.lost,
            self.unanswered,
            self.doubled,
            self.overlapping,
            self.contradicting,
            self.untrue,
            self.wrong,
            self.ambiguous,
            self.dead_missing,
            self.dead_unexpected,
            self.unreadable,
            self.remains.orphans.len(),
            self.remains.ended_by_themselves,
            self.remains.did_not_leave,
        ];
        self.owed > 0 && faults.iter().all(|count| *count == 0) && self.left_in_queues() == 0
    }

    /// Messages in queues in which there must be none.
    #[must_use]
    pub fn left_in_queues(&self) -> u64 {
        self.remains.in_queues.values().sum()
    }

    /// The numbers of the last line.
    #[must_use]
    pub fn in_short(&self) -> String {
        format!(
            "lost {}, doubled {}, overlapping {}, contradicting {}, untrue {}, wrong {}, unanswered {}, orphans {}, left in queues {}",
            self.lost,
            self.doubled,
            self.overlapping,
            self.contradicting,
            self.untrue,
            self.wrong,
            self.unanswered,
            self.remains.orphans.len(),
            self.left_in_queues()
        )
    }

    /// Reads everything. `max_attempts` is the workers' setting; `logs` the folder of their logs.
    #[must_use]
    pub fn of(
        book: &Book,
        journal: &Journal,
        remains: Remains,
        max_attempts: u32,
        timeline: &Timeline,
        logs: &Path,
    ) -> Self {
        let mut verdict = Self { remains, unreadable: journal.unreadable, ..Self::default() };
        book.read(|entries, unreadable| {
            verdict.unreadable += unreadable.len();
            verdict.stories.extend(unreadable.iter().map(|what| format!("unreadable: {what}\n")));
            for entry in entries.values() {
                let faults = verdict.judge(entry, journal.of(&entry.job.id), max_attempts);
                if !faults.is_empty() {
                    verdict.stories.push(story(entry, journal.of(&entry.job.id), &faults, timeline, logs));
                }
            }
            for (id, copies) in &verdict.remains.dead {
                if !entries.contains_key(id) {
                    verdict.dead_unexpected += copies;
                    verdict.stories.push(format!("{id}: in the dead queue, and nobody published it\n"));
                }
            }
        });
        verdict
    }

    /// Judges one job; gives what is wrong with it.
    fn judge(&mut self, entry: &Entry, lines: &[Line], max_attempts: u32) -> Vec<String> {
        let mut faults = Vec::new();
        let kind = entry.job.kind;
        *self.kinds.entry(kind).or_default() += 1;
        self.repeated += entry.publications.len().saturating_sub(1);
        self.terminals_repeated += entry.terminals.len().saturating_sub(1);
        let starts = lines.iter().filter(|line| line.is_start()).count();
        self.runs += starts;
        self.cut_short += starts - lines.iter().filter(|line| !line.is_start()).count().min(starts);
        self.run_again += usize::from(starts > 1);
        if !entry.must_end() {
            self.never_arrived += 1;
            return faults;
        }
        self.owed += 1;

        let overlaps = lines.iter().filter(|line| line.what == "overlap").count();
        if overlaps > 0 {
            self.overlapping += overlaps;
            faults.push(format!("{overlaps} runs began while another one was there"));
        }
        self.judge_dead(entry, &mut faults);
        let Some(first) = entry.terminals.first() else {
            self.lost += 1;
            faults.push("lost: no terminal event".to_owned());
            return faults;
        };
        *self.ends.entry(first.kind.word()).or_default() += 1;
        let unanswered = entry.unanswered();
        if unanswered > 0 {
            self.unanswered += unanswered;
            faults.push(format!("{unanswered} publications were not answered"));
        }
        let stated = entry.terminals.iter().map(|terminal| terminal.event.time.as_nanosecond()).min();
        let doubled = lines
            .iter()
            .filter(|line| line.is_start() && stated.is_some_and(|stated| i128::from(line.unix_ns) > stated))
            .count();
        if doubled > 0 {
            self.doubled += doubled;
            faults.push(format!("{doubled} runs began after the end was stated"));
        }
        if entry.terminals.iter().any(|terminal| terminal.body != first.body) {
            self.contradicting += 1;
            let all: Vec<String> = entry.terminals.iter().map(in_words).collect();
            faults.push(format!("its ends contradict each other: {}", all.join(" | ")));
        }
        if !entry.terminals.iter().all(|terminal| is_true(terminal, lines)) {
            self.untrue += 1;
            faults.push(format!("no run came to the end that is told: {}", in_words(first)));
        }
        let ambiguous = ambiguous_attempts(entry);
        if !ambiguous.is_empty() {
            self.ambiguous += ambiguous.len();
            faults.push(format!("two workers speak of the attempts {ambiguous:?} as theirs"));
        }
        self.steps_after_end +=
            entry.heard.iter().filter(|heard| heard.at > first.heard && is_step(&heard.word)).count();
        self.exhausted += usize::from(kind != Kind::Poison && is_exhausted(first, max_attempts));
        if let Some(what) = wrong(entry, first, starts, max_attempts) {
            self.wrong += 1;
            faults.push(what);
        }
        faults
    }

    fn judge_dead(&mut self, entry: &Entry, faults: &mut Vec<String>) {
        let is_dead = |terminal: &Terminal| match terminal.kind {
            EventKind::Rejected => true,
            EventKind::Failed => class(terminal) != Some(FailureClass::Model),
            _ => false,
        };
        let wanted = usize::from(entry.terminals.first().is_some_and(is_dead));
        let others = entry.others.iter().filter(|publication| publication.is_confirmed).count();
        let there = self.remains.dead.get(&entry.job.id).copied().unwrap_or(0);
        let (least, most) = (wanted + others, wanted + entry.others.len());
        if there < least {
            self.dead_missing += least - there;
            faults.push(format!("{there} copies in the dead queue, not {least}"));
        } else if most == 0 && there > 0 {
            self.dead_unexpected += there;
            faults.push(format!("{there} copies in the dead queue, not 0"));
        } else {
            self.dead_repeated += there.saturating_sub(most);
        }
    }
}

fn is_step(word: &str) -> bool {
    ["accepted", "staged", "submitted", "running", "progress", "retrying"].contains(&word)
}

/// The attempts that more than one worker instance says it has begun.
fn ambiguous_attempts(entry: &Entry) -> Vec<u32> {
    let mut workers: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for heard in entry.heard.iter().filter(|heard| is_step(&heard.word) && heard.word != "retrying") {
        workers.entry(heard.attempt).or_default().insert(&heard.source);
    }
    workers.into_iter().filter(|(_, workers)| workers.len() > 1).map(|(attempt, _)| attempt).collect()
}

fn class(terminal: &Terminal) -> Option<FailureClass> {
    terminal.event.data.failure.as_ref().map(|failure| failure.class)
}

/// Whether a run came to this end. An end that needs no run is true by itself.
fn is_true(terminal: &Terminal, lines: &[Line]) -> bool {
    let ended = |wanted: fn(u8) -> bool| lines.iter().any(|line| line.code.is_some_and(wanted));
    match terminal.kind {
        EventKind::Completed => ended(|code| code == 0),
        EventKind::Failed if class(terminal) == Some(FailureClass::Model) => ended(|code| code != 0),
        _ => true,
    }
}

/// Whether the job failed because no attempt was left, by no fault of its own.
fn is_exhausted(terminal: &Terminal, max_attempts: u32) -> bool {
    use FailureClass::{Infrastructure, Lost, Submit};

    terminal.kind == EventKind::Failed
        && matches!(class(terminal), Some(Lost | Infrastructure | Submit))
        && terminal.event.data.attempt >= max_attempts
}

/// What is wrong with the way in which a job of this kind ended.
fn wrong(entry: &Entry, end: &Terminal, starts: usize, max_attempts: u32) -> Option<String> {
    let job = &entry.job;
    if entry.others.iter().any(|publication| publication.is_confirmed) && entry.conflicts == 0 {
        return Some("another body was published under its id, and no conflict was told".to_owned());
    }
    let has_class = |class_wanted| end.kind == EventKind::Failed && class(end) == Some(class_wanted);
    let is_right = match job.kind {
        Kind::Instant | Kind::Short | Kind::Long | Kind::Stubborn | Kind::Daemon | Kind::Flaky => {
            end.kind == EventKind::Completed
        }
        Kind::Raises => has_class(FailureClass::Model),
        Kind::Killed => has_class(FailureClass::Killed),
        Kind::Invalid => end.kind == EventKind::Rejected,
        Kind::Poison => has_class(FailureClass::Lost),
    };
    if job.kind == Kind::Poison && starts > usize::try_from(max_attempts).unwrap_or(usize::MAX) {
        return Some(format!("it was run {starts} times, and {max_attempts} attempts are allowed"));
    }
    let is_cancelled = job.cancel.is_some() && end.kind == EventKind::Cancelled;
    if is_right || is_cancelled || is_exhausted(end, max_attempts) {
        return None;
    }
    Some(format!("a job of the kind {} must not end so: {}", job.kind.word(), in_words(end)))
}

fn in_words(terminal: &Terminal) -> String {
    let data = &terminal.event.data;
    let failure = data.failure.as_ref().map(|failure| format!(" ({}: {})", failure.class, failure.message));
    format!(
        "{} at {} by {}{}",
        terminal.event.id,
        terminal.event.time,
        terminal.event.source,
        failure.unwrap_or_default()
    )
}

/// Everything about a job, for people.
fn story(entry: &Entry, lines: &[Line], faults: &[String], timeline: &Timeline, logs: &Path) -> String {
    let job = &entry.job;
    let mut story = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(story, "{} ({}): {}", job.id, job.kind.word(), faults.join("; "));
    let mut told: Vec<(i64, String)> = Vec::new();
    for publication in &entry.publications {
        let confirmed = if publication.is_confirmed { "confirmed" } else { "not confirmed" };
        told.push((publication.sent, format!("published, {confirmed}")));
    }
    for publication in &entry.others {
        told.push((publication.sent, "published with another body".to_owned()));
    }
    for heard in &entry.heard {
        told.push((heard.at, format!("heard {} {} from {}", heard.attempt, heard.word, heard.source)));
    }
    for line in lines {
        let code = line.code.map(|code| format!(" with {code}")).unwrap_or_default();
        let what = format!("journal: {}{code}, process {}, {}", line.what, line.pid, line.directory);
        told.push((line.boottime_ns, what));
    }
    told.sort();
    for (at, what) in told {
        let _ = writeln!(story, "  {:9.3} {what}", timeline.seconds(at));
    }
    for terminal in &entry.terminals {
        let redelivered = if terminal.is_redelivered { ", delivered again" } else { "" };
        let _ = writeln!(story, "  {}{redelivered}", in_words(terminal));
    }
    for log in logs_about(&job.id, logs) {
        let _ = writeln!(story, "  see {log}");
    }
    story
}

/// The logs that mention a job.
fn logs_about(id: &str, logs: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(logs)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| std::fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(id)))
        .map(|entry| entry.path().display().to_string())
        .collect();
    found.sort();
    found
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |pairs: Vec<(String, String)>| {
            pairs.into_iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let kinds = self.kinds.iter().map(|(kind, count)| (kind.word().to_owned(), count.to_string()));
        let ends = self.ends.iter().map(|(word, count)| ((*word).to_owned(), count.to_string()));
        let queues = self.remains.in_queues.iter().map(|(name, count)| (name.clone(), count.to_string()));
        let rows: [(&str, String); 17] = [
            ("kinds", list(kinds.collect())),
            ("ends", list(ends.collect())),
            ("arrived for sure, or heard of", self.owed.to_string()),
            ("given up and never arrived", self.never_arrived.to_string()),
            ("runs", format!("{}, cut short {}", self.runs, self.cut_short)),
            ("jobs run more than once", self.run_again.to_string()),
            ("publications beside the first", self.repeated.to_string()),
            ("terminal events beside the first", self.terminals_repeated.to_string()),
            ("failed because no attempt was left", self.exhausted.to_string()),
            ("attempts claimed by two workers", self.ambiguous.to_string()),
            ("steps heard after the end", self.steps_after_end.to_string()),
            ("dead queue: missing, unexpected", format!("{}, {}", self.dead_missing, self.dead_unexpected)),
            ("dead queue: repeated", self.dead_repeated.to_string()),
            ("events that cannot be read", self.unreadable.to_string()),
            ("workers that ended by themselves", self.remains.ended_by_themselves.to_string()),
            ("workers that did not leave", self.remains.did_not_leave.to_string()),
            ("left in queues", list(queues.collect())),
        ];
        for (name, value) in rows {
            writeln!(f, "  {name:36} {value}")?;
        }
        for orphan in &self.remains.orphans {
            writeln!(f, "  orphan: {orphan}")?;
        }
        Ok(())
    }
}
