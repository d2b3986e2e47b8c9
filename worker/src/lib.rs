//! Takes modelBatchJobs from RabbitMQ, runs them with spark-submit, and publishes what happened.
//!
//! # Theory of operation
//!
//! ```text
//!             broker/                        job/                                  spark/
//! [spark.jobs] ──delivery──> slot ──> claim > check > stage > submit > track ──> guard ──> shim ──> spark-submit
//!                              ^                                  │                                    │
//!                              │                                  └──<── words over a Unix socket ── driver
//!                              └──ack── settle <── collect <──────┘
//!                                         │
//!                          publisher <────┴──> spark.results, copies for a retry or the dead queue
//! ```
//!
//! A **slot** has a channel and a consumer of its own and takes one delivery at a time; there are as many as jobs may run.
//! The delivery stays unacknowledged until all is said about the job: a worker that dies leaves it to the broker, which
//! gives it to another.
//!
//! **What goes on at once.** A slot is a task; it waits for the job and for its own channel. When the channel fails, the
//! broker has taken the delivery back, and the job's processes are killed before the slot takes another. Publishing has
//! tasks of its own ([`broker::publisher`]): what they were given is published until it is confirmed.
//!
//! **Processes** are never children of the worker but of a **guard** ([`spark::guard`]), which kills them when the
//! worker is gone or does not answer. The driver tells over a socket what happened; its output is only kept.
//!
//! **Truth.** A job has completed when its driver says so *and* its processes ended in order ([`job::collect`]).
//!
//! **One place each**: what is published in which order ([`job::settle`]), whether there is another attempt (the same),
//! what may be asked of spark-submit ([`spark::policy`]), what differs between brokers ([`broker::server`]).
//!
//! `job` talks to `broker` and to `spark`; those two do not talk to each other.

pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crash;
pub mod job;
pub mod service;
pub mod spark;
