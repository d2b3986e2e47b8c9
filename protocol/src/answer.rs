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
