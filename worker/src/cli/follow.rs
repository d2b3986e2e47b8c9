//! Following events over a connection that may break: it is built anew for as long as it takes, and the user is told that
//! events may have been missed.
//!
//! This module must not know what the events are followed for.

use std::time::Duration;

use spark_runtime_protocol::client::{Client, ClientError, Submission, Subscription, Topic};
use spark_runtime_protocol::command::Answer;
use spark_runtime_protocol::{Event, JobId};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::render::{self, Progress};
use super::{CliError, Exit};
use crate::config::Settings;

/// The first pause before connecting again.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// A subscription that outlives its connections.
pub(super) struct Follower {
    following: Following,
    /// Listened to from the start on: a Ctrl-C that comes between two waits must not be lost.
    interrupts: Signal,
}

struct Following {
    settings: Settings,
    topic: Topic,
    name: &'static str,
    client: Client,
    subscription: Subscription,
}

/// What a follower hears.
pub(super) enum Heard {
    /// Something happened to a job.
    Event(Box<Event>),
    /// Ctrl-C.
    Interrupted,
}

impl Follower {
    /// Connects and subscribes. When this returns, no event from now on is missed as long as the connection lasts.
    pub(super) async fn start(
        settings: Settings,
        topic: Topic,
        name: &'static str,
    ) -> Result<Self, CliError> {
        let (client, subscription) = subscribe(&settings, &topic, name).await?;
        let interrupts = signal(SignalKind::interrupt())
            .map_err(|error| CliError::Internal(format!("Ctrl-C cannot be listened for: {error}")))?;
        Ok(Self { following: Following { settings, topic, name, client, subscription }, interrupts })
    }

    /// Publishes a job over the same connection.
    pub(super) async fn publish(&self, submission: &Submission) -> Result<(), ClientError> {
        self.following.client.publish(submission).await
    }

    /// Asks for a job's end over the same connection.
    pub(super) async fn cancel(
        &self,
        job: &JobId,
        patience: Duration,
    ) -> Result<Option<Answer>, ClientError> {
        self.following.client.cancel(job, patience).await
    }

    /// The next event. A connection that was lost is built anew, for as long as it takes; `notes` are told.
    pub(super) async fn next(&mut self, notes: &mut Progress) -> Heard {
        tokio::select! {
            biased;
            _ = self.interrupts.recv() => Heard::Interrupted,
            event = self.following.next(notes) => Heard::Event(Box::new(event)),
        }
    }
}

impl Following {
    async fn next(&mut self, notes: &mut Progress) -> Event {
        loop {
            let reason = match self.subscription.next().await {
                Ok(Some(event)) => return event,
                Ok(None) => "the broker ended the subscription".to_owned(),
                Err(error @ ClientError::NoEvent(_)) => {
                    notes.note(&render::plain(&error.to_string()));
                    continue;
                }
                Err(error) => error.to_string(),
            };
            notes.note(&format!("{}; connecting again", render::plain(&reason)));
            self.connect_again(notes).await;
            notes.note("connected again; events in between may have been missed");
        }
    }

    /// A broker that is just starting refuses for reasons that pass, so that nothing but the user ends this.
    async fn connect_again(&mut self, notes: &mut Progress) {
        let mut pause = SHORTEST_PAUSE;
        let mut told = String::new();
        loop {
            tokio::time::sleep(with_jitter(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match subscribe(&self.settings, &self.topic, self.name).await {
                Ok((client, subscription)) => {
                    (self.client, self.subscription) = (client, subscription);
                    return;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if error.exit() != Exit::Unavailable && reason != told {
                        notes.note(&render::plain(&reason));
                    }
                    told = reason;
                }
            }
        }
    }
}

/// The address is looked up anew each time: the password may have been changed.
async fn subscribe(
    settings: &Settings,
    topic: &Topic,
    name: &str,
) -> Result<(Client, Subscription), CliError> {
    let client = Client::connect(&settings.endpoint()?, name).await?;
    let subscription = client.subscribe(topic).await?;
    Ok((client, subscription))
}

/// Between half of `pause` and all of it, so that those who lost the same broker do not come back as one.
fn with_jitter(pause: Duration) -> Duration {
    let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
    let half = pause / 2;
    half + half.mul_f64((random % 1000) as f64 / 1000.0)
}
