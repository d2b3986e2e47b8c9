//! Publishers: they publish jobs once or several times, lose their broker and try again, and some die before they hear
//! whether a job has arrived.
//!
//! Each has a wire of its own, which is cut when it dies: what is in the air then is what a process that dies leaves there.
//! This module must not know what becomes of a job.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use spark_runtime_protocol::answer::answered;
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::topology::{JOBS_EXCHANGE, JOBS_KEY};

use super::book::{Book, Errand};
use super::plan::{Cancel, Job, Jobs};
use super::timeline::Timeline;
use crate::wire::{Passage, State, Wire};

/// How long the broker may take to confirm; then the publisher connects anew and publishes again.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);
const IDLE: Duration = Duration::from_millis(10);

/// What all publishers share.
#[derive(Debug)]
pub struct Press {
    /// Where jobs come from.
    pub jobs: Jobs,
    /// How many there are; raised as long as the run goes on when it has no end by itself.
    pub limit: AtomicU64,
    /// How many may be published and not ended.
    pub backlog: usize,
    /// What is known.
    pub book: Arc<Book>,
    /// What happened.
    pub timeline: Timeline,
    /// Cancels a job.
    pub canceller: Canceller,
    /// How many publishers died.
    pub deaths: AtomicUsize,
    next: AtomicU64,
}

/// How a job is cancelled: by the program's own command line.
#[derive(Debug, Clone)]
pub struct Canceller {
    /// The broker.
    pub uri: String,
    /// Settings, each `key=value`.
    pub settings: Vec<String>,
}

impl Canceller {
    async fn cancel(&self, id: String) -> bool {
        let this = self.clone();
        let ended = tokio::task::spawn_blocking(move || {
            let settings: Vec<&str> = this.settings.iter().map(String::as_str).collect();
            crate::program::spark_runtime(&this.uri, &settings, &["cancel", &id])
        });
        // That the job had ended before is an answer, too.
        ended.await.is_ok_and(|output| matches!(output.status.code(), Some(0 | HAD_ENDED)))
    }
}

impl Press {
    /// Nothing is published yet.
    #[must_use]
    pub fn new(
        jobs: Jobs,
        limit: u64,
        backlog: usize,
        book: Arc<Book>,
        timeline: Timeline,
        canceller: Canceller,
    ) -> Self {
        let (limit, deaths, next) = (AtomicU64::new(limit), AtomicUsize::new(0), AtomicU64::new(0));
        Self { jobs, limit, backlog, book, timeline, canceller, deaths, next }
    }

    /// Whether every job was taken by a publisher.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed)
    }

    fn next_job(&self) -> Option<Job> {
        let standing = self.book.standing();
        if standing.published >= standing.ended + standing.given_up + self.backlog {
            return None;
        }
        let limit = self.limit.load(Ordering::Relaxed);
        let number = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| (next < limit).then_some(next + 1));
        Some(self.jobs.job(number.ok()?))
    }
}

/// The exit code of `cancel` when the job's end was another one.
const HAD_ENDED: i32 = 4;

/// One publisher.
pub struct Publisher {
    press: Arc<Press>,
    wire: Wire,
    endpoint: Endpoint,
    line: Option<(Connection, Channel)>,
}

impl Publisher {
    /// A publisher whose broker is at the end of `wire`, where `endpoint` leads.
    #[must_use]
    pub fn new(press: Arc<Press>, wire: Wire, endpoint: Endpoint) -> Self {
        Self { press, wire, endpoint, line: None }
    }

    /// Publishes for ever.
    pub async fn work(mut self) {
        loop {
            if let Some(errand) = self.press.book.errand() {
                self.run(errand).await;
                self.press.book.done();
            } else if let Some(job) = self.press.next_job() {
                self.first(job).await;
            } else {
                tokio::time::sleep(IDLE).await;
            }
        }
    }

    async fn run(&mut self, errand: Errand) {
        match errand {
            Errand::Again(id) => self.until_confirmed(&id, 1, false).await,
            Errand::OtherBody(id) => self.until_confirmed(&id, 1, true).await,
            Errand::Cancel(id) => self.cancel(id).await,
        }
    }

    async fn cancel(&self, id: String) {
        // A broker that is away hears it later.
        while !self.press.canceller.cancel(id.clone()).await {
            tokio::time::sleep(PAUSE).await;
        }
        self.press.timeline.note(&format!("cancelled {id}"));
    }

    async fn first(&mut self, job: Job) {
        let (id, copies) = (job.id.clone(), job.at_once);
        let (dies, is_in_vain, is_given_up) = (job.publisher_dies, job.is_in_vain, job.is_given_up);
        let cancel = job.cancel;
        self.press.book.enter(job);
        if cancel == Some(Cancel::Before) {
            self.cancel(id.clone()).await;
        }
        if dies {
            self.die_over(&id, copies, is_in_vain).await;
            if is_given_up {
                self.press.book.given_up(&id);
                return;
            }
        }
        self.until_confirmed(&id, copies, false).await;
    }

    /// Publishes again and again until the broker has every copy.
    async fn until_confirmed(&mut self, id: &str, copies: u32, other: bool) {
        let mut left = copies;
        while left > 0 {
            match self.publish(id, left, other).await {
                Ok(confirmed) => left -= confirmed.min(left),
                Err(_) => self.line = None,
            }
            if left > 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Publishes and gives how many the broker has confirmed.
    async fn publish(&mut self, id: &str, copies: u32, other: bool) -> Result<u32, lapin::Error> {
        let Some(channel) = self.channel().await else { return Ok(0) };
        let book = self.press.book.clone();
        let Some(body) = book.body(id, other) else { return Ok(copies) };
        let numbers = book.sending(id, copies, other);
        let mut waiting = Vec::new();
        for number in numbers {
            let sent = tokio::time::timeout(CONFIRM_PATIENCE, send(&channel, id, &body)).await;
            let Ok(sent) = sent else {
                self.line = None;
                return Ok(0);
            };
            waiting.push((number, sent?));
        }
        let mut confirmed = 0;
        for (number, confirmation) in waiting {
            match tokio::time::timeout(CONFIRM_PATIENCE, confirmation).await {
                Ok(Ok(Confirmation::Ack(None))) => {
                    book.confirmed(id, number, other);
                    confirmed += 1;
                }
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => self.line = None,
            }
        }
        Ok(confirmed)
    }

    /// Sends and dies at once.
    async fn die_over(&mut self, id: &str, copies: u32, is_in_vain: bool) {
        let Some(channel) = self.channel().await else { return };
        if is_in_vain {
            self.wire.set(State { to_broker: Passage::Lost, ..State::WHOLE });
        }
        if let Some(body) = self.press.book.body(id, false) {
            for _ in self.press.book.sending(id, copies, false) {
                let _ = tokio::time::timeout(PAUSE, send(&channel, id, &body)).await;
            }
        }
        self.wire.cut();
        self.line = None;
        self.press.deaths.fetch_add(1, Ordering::Relaxed);
        self.wire.mend();
    }

    async fn channel(&mut self) -> Option<Channel> {
        if self.line.is_none() {
            let connection = self.endpoint.connect("chaos publisher").await.ok()?;
            let channel = answered(connection.create_channel()).await.ok()?;
            answered(channel.confirm_select(ConfirmSelectOptions::default())).await.ok()?;
            self.line = Some((connection, channel));
        }
        self.line.as_ref().map(|(_, channel)| channel.clone())
    }
}

async fn send(channel: &Channel, id: &str, body: &[u8]) -> Result<lapin::PublisherConfirm, lapin::Error> {
    let properties = BasicProperties::default()
        .with_message_id(id.into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2);
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    channel.basic_publish(JOBS_EXCHANGE.into(), JOBS_KEY.into(), options, body, properties).await
}
