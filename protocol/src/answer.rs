//! Waiting for the broker, and never for ever.
//!
//! Whoever waits while a connection ends is told so by the client library, but now and then, when both happen in the same
//! moment, is not. Heartbeats do not help then: the connection is gone already.
//!
//! This module must not know what is waited for.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

/// How long the broker may take for an answer. One that is busy takes seconds; one that takes longer is asked again on
/// another channel.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often somebody who waits for deliveries looks whether there is still a channel for them.
const LOOK: Duration = Duration::from_secs(5);

/// Waits for an answer of the broker, or for a frame to be on its way, for 30 s.
///
/// # Errors
/// Whatever the answer is; an i/o error of the kind `TimedOut` when there is none.
pub async fn answered<T>(answer: impl Future<Output = lapin::Result<T>>) -> lapin::Result<T> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => {
            let words = format!("the broker has not answered within {} s", PATIENCE.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, words).into())
        }
    }
}

/// Opens a consumer on a channel that has no other use, and waits for 30 s until the broker has it. The channel is closed
/// when the future ends without a consumer, or is dropped.
///
/// # Errors
/// As [`answered`].
pub async fn consume(
    channel: &Channel,
    queue: &str,
    tag: &str,
    arguments: FieldTable,
) -> lapin::Result<Consumer> {
    let mut unopened = Unopened(Some(channel.clone()));
    let options = BasicConsumeOptions::default();
    let consumer = answered(channel.basic_consume(queue.into(), tag.into(), options, arguments)).await?;
    unopened.0 = None;
    Ok(consumer)
}

/// A channel whose consumer is still being opened.
///
/// The client library closes a channel that nobody has any more, but not one on which it waits for the broker to open a
/// consumer. When the broker did so later, nobody would read what it delivers, and nobody else would get it.
struct Unopened(Option<Channel>);

impl Drop for Unopened {
    fn drop(&mut self) {
        let Some(channel) = self.0.take().filter(|channel| channel.status().connected()) else { return };
        // Without a runtime the connection has ended as well.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            // When nobody answers, the broker still has the request, or the connection is gone.
            if let Err(error) = answered(channel.close(200, "not opened in time".into())).await {
                tracing::debug!(%error, channel = channel.id(), "a channel without a consumer did not close in order");
            }
        });
    }
}

/// Waits for the next delivery, as long as it takes; `None` when the broker has ended the consumer. `channel` is the one of
/// the consumer. Dropping the future loses nothing.
pub async fn next(consumer: &mut Consumer, channel: &Channel) -> Option<lapin::Result<Delivery>> {
    loop {
        if let Ok(delivery) = tokio::time::timeout(LOOK, consumer.next()).await {
            return delivery;
        }
        if !channel.status().connected() {
            let words = "the channel has ended without a word";
            return Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, words).into()));
        }
    }
}
