//! The broker: connections that are always there again, slots that deliver one job at a time, and a publisher that does
//! not lose what it was given.
//!
//! Consuming and publishing have connections of their own, so that a broker that blocks publishers still takes
//! acknowledgements.
//!
//! This module must not know what a job is, nor how one is run.

pub mod backoff;
pub mod dead;
pub mod history;
pub mod ledger;
pub mod message;
pub mod past;
pub mod publisher;
pub mod server;
pub mod session;
pub mod slots;

use spark_runtime_protocol::rights::{Doing, MissingRight};

/// What is to be said about an error: what the broker said, or the right for want of which it refused something.
fn words(error: &lapin::Error, doing: Doing) -> String {
    MissingRight::of(error, doing).map_or_else(|| error.to_string(), |right| right.to_string())
}

/// Whether the broker has said that a queue or an exchange is not there.
fn is_missing(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(amqp) if amqp.get_id() == 404)
}
