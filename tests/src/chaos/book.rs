//! What is known of every job: what its publishers did and what was heard of it.
//!
//! Publishers and the witness write here; the verdict reads. This module must not know where any of it comes from.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use spark_runtime_protocol::{Event, EventKind};
use tokio::time::Instant;

use super::plan::{Cancel, Job};

/// Nanoseconds of CLOCK_BOOTTIME, which all processes of a machine share.
#[must_use]
pub fn boottime_ns() -> i64 {
    // It cannot fail for this clock.
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(|now| now.tv_sec() * 1_000_000_000 + now.tv_nsec())
        .unwrap_or(0)
}

/// One time that a job was sent to the broker.
#[derive(Debug, Clone, Copy)]
pub struct Publication {
    /// Just before.
    pub sent: i64,
    /// The broker has said that it has it.
    pub is_confirmed: bool,
}

/// An event that ends a job, each time that it was heard.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// When it was heard.
    pub heard: i64,
    /// The broker may have delivered it before.
    pub is_redelivered: bool,
    /// How the job ended.
    pub kind: EventKind,
    /// What was heard, to the byte.
    pub body: Vec<u8>,
    /// What it says.
    pub event: Box<Event>,
}

/// Any event, in short.
#[derive(Debug, Clone)]
pub struct Heard {
    /// When.
    pub at: i64,
    /// As `running`.
    pub word: String,
    /// The attempt that it is about.
    pub attempt: u32,
    /// The worker instance that said it.
    pub source: String,
}

/// All about one job.
#[derive(Debug)]
pub struct Entry {
    /// What was to be done.
    pub job: Job,
    /// What was published.
    pub publications: Vec<Publication>,
    /// What was published with another body.
    pub others: Vec<Publication>,
    /// Its publisher died over it and nobody takes care of it any more.
    pub is_given_up: bool,
    /// Every event.
    pub heard: Vec<Heard>,
    /// Those that end it.
    pub terminals: Vec<Terminal>,
    /// How often an event `conflict` was heard.
    pub conflicts: usize,
}

impl Entry {
    /// Whether the broker has said that it has the job.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.publications.iter().any(|publication| publication.is_confirmed)
    }

    /// Whether the service owes an end: the job has arrived for sure.
    #[must_use]
    pub fn must_end(&self) -> bool {
        self.is_confirmed() || !self.heard.is_empty()
    }

    /// The confirmed publications that no terminal event came after.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        let last = self.terminals.iter().map(|terminal| terminal.heard).max().unwrap_or(i64::MIN);
        self.publications
            .iter()
            .filter(|publication| publication.is_confirmed && publication.sent > last)
            .count()
    }

    /// Whether there is nothing to wait for.
    fn is_over(&self) -> bool {
        (!self.terminals.is_empty() && self.unanswered() == 0) || (self.is_given_up && !self.must_end())
    }
}

/// Something that a publisher or operator has to do.
#[derive(Debug, Clone)]
pub enum Errand {
    /// Publish a job once more.
    Again(String),
    /// Publish its other body.
    OtherBody(String),
    /// Cancel it.
    Cancel(String),
}

#[derive(Debug, Default)]
struct Pages {
    entries: HashMap<String, Entry>,
    errands: VecDeque<(Instant, Errand)>,
    /// Errands that somebody is at.
    under_way: usize,
    ended: usize,
    given_up: usize,
    unreadable: Vec<String>,
    last_news: Option<Instant>,
}

/// The book.
#[derive(Debug, Default)]
pub struct Book(Mutex<Pages>);

/// Where a run stands.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Jobs that were begun to be published.
    pub published: usize,
    /// Jobs whose first terminal event was heard.
    pub ended: usize,
    /// Jobs that nobody waits for.
    pub given_up: usize,
    /// How long ago something changed.
    pub quiet: Duration,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        // Whoever panicked meanwhile has failed the run already.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job is about to be published for the first time.
    pub fn enter(&self, job: Job) {
        let entry = Entry {
            publications: Vec::new(),
            others: Vec::new(),
            is_given_up: false,
            heard: Vec::new(),
            terminals: Vec::new(),
            conflicts: 0,
            job,
        };
        let mut pages = self.pages();
        pages.last_news = Some(Instant::now());
        pages.entries.insert(entry.job.id.clone(), entry);
    }

    /// Publications are about to be sent; gives the numbers to confirm them by.
    pub fn sending(&self, id: &str, count: u32, other: bool) -> Vec<usize> {
        let mut pages = self.pages();
        let Some(entry) = pages.entries.get_mut(id) else { return Vec::new() };
        let publications = if other { &mut entry.others } else { &mut entry.publications };
        let first = publications.len();
        let sent = boottime_ns();
        publications.extend((0..count).map(|_| Publication { sent, is_confirmed: false }));
        (first..publications.len()).collect()
    }

    /// The broker has a publication.
    pub fn confirmed(&self, id: &str, number: usize, other: bool) {
        if let Some(entry) = self.pages().entries.get_mut(id) {
            let publications = if other { &mut entry.others } else { &mut entry.publications };
            publications[number].is_confirmed = true;
        }
    }

    /// Nobody will publish this job any more.
    pub fn given_up(&self, id: &str) {
        let mut pages = self.pages();
        pages.given_up += 1;
        if let Some(entry) = pages.entries.get_mut(id) {
            entry.is_given_up = true;
        }
    }

    /// What a publisher wants to send, whole.
    #[must_use]
    pub fn body(&self, id: &str, other: bool) -> Option<Vec<u8>> {
        let pages = self.pages();
        let job = &pages.entries.get(id)?.job;
        if other { job.other_body.clone() } else { Some(job.body.clone()) }
    }

    /// The witness has heard this.
    pub fn heard(&self, body: Vec<u8>, is_redelivered: bool) {
        let at = boottime_ns();
        let mut pages = self.pages();
        let event: Event = match serde_json::from_slice(&body) {
            Ok(event) => event,
            Err(error) => {
                pages.unreadable.push(format!("{error}: {}", String::from_utf8_lossy(&body)));
                return;
            }
        };
        let now = Instant::now();
        pages.last_news = Some(now);
        let Some(entry) = pages.entries.get_mut(event.subject.as_str()) else {
            pages.unreadable.push(format!("about a job that nobody published: {}", event.id));
            return;
        };
        let word = event.cloud_event_type.rsplit('.').nth(1).unwrap_or_default().to_owned();
        let id = entry.job.id.clone();
        let mut errands = Vec::new();
        if entry.heard.is_empty() {
            errands.extend((0..entry.job.during).map(|_| (now, Errand::Again(id.clone()))));
            if entry.job.other_body.is_some() {
                errands.push((now, Errand::OtherBody(id.clone())));
            }
            if let Some(Cancel::After(pause)) = entry.job.cancel {
                errands.push((now + pause, Errand::Cancel(id.clone())));
            }
        }
        entry.conflicts += usize::from(word == "conflict");
        let (attempt, source) = (event.data.attempt, event.source.clone());
        entry.heard.push(Heard { at, word, attempt, source });
        let mut is_first_end = false;
        if let Some(kind) = event.kind().filter(|kind| kind.is_terminal()) {
            is_first_end = entry.terminals.is_empty();
            if is_first_end {
                let when = now + entry.job.after_pause;
                errands.extend((0..entry.job.after).map(|_| (when, Errand::Again(id.clone()))));
            }
            entry.terminals.push(Terminal { heard: at, is_redelivered, kind, body, event: Box::new(event) });
        }
        pages.ended += usize::from(is_first_end);
        pages.errands.extend(errands);
    }

    /// Something that is due, to be told with [`Book::done`] once it is done.
    #[must_use]
    pub fn errand(&self) -> Option<Errand> {
        let mut pages = self.pages();
        let now = Instant::now();
        let due = pages.errands.iter().position(|(when, _)| *when <= now)?;
        let (_, errand) = pages.errands.remove(due)?;
        pages.under_way += 1;
        Some(errand)
    }

    /// An errand is done.
    pub fn done(&self) {
        let mut pages = self.pages();
        pages.under_way -= 1;
        pages.last_news = Some(Instant::now());
    }

    /// Where the run stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let pages = self.pages();
        Standing {
            published: pages.entries.len(),
            ended: pages.ended,
            given_up: pages.given_up,
            quiet: pages.last_news.map_or(Duration::ZERO, |then| then.elapsed()),
        }
    }

    /// The jobs that are still to be waited for, among all that were entered; none when errands are open, too.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let pages = self.pages();
        pages.errands.is_empty() && pages.under_way == 0 && pages.entries.values().all(Entry::is_over)
    }

    /// Looks at every job, in the order of their ids.
    pub fn read<T>(&self, mut look: impl FnMut(&BTreeMap<&String, &Entry>, &[String]) -> T) -> T {
        let pages = self.pages();
        look(&pages.entries.iter().collect(), &pages.unreadable)
    }
}
