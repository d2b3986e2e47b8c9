//! What both sides of the wire share: the modelBatchJob, the events that tell what became of it,
//! and the exchanges and queues that both travel through.
//!
//! A publisher needs [`job`] and [`client`]; a subscriber needs [`event`] and [`client`]; whoever cancels jobs needs
//! [`command`] and [`client`]; a worker needs all of it.
//! Every wire name (exchange, queue, routing key, header, event) stands in this crate and nowhere else.
//!
//! This crate must not know how a job is run: no Spark, no files, no processes.

pub mod answer;
pub mod asset;
pub mod client;
pub mod command;
pub mod connect;
pub mod definitions;
pub mod event;
mod inbound;
pub mod job;
pub mod json;
pub mod repository;
pub mod rights;
pub mod schema;
pub mod tls;
pub mod topology;

pub use event::{Event, EventKind};
pub use job::{Job, JobId, JobType};
