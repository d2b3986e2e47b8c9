//! Takes modelBatchJobs from RabbitMQ, runs them with spark-submit, and publishes what happened.
//!
//! # Theory of operation
//!
//! ```text
//!             broker/                        job/                                  spark/
//! [spark.jobs] ──delivery──> slot ──> assign > claim > check > stage > submit > track ──> guard ──> shim ──> spark-submit
//!                              ^                 │                     │                                        │
//!                              │                 v                     └──<── words over a Unix socket ────── driver
//!                              │          {spark.ledger}               │
//!                              │                 ^                     │
//!                              └──ack── settle ──┴── collect <─────────┘
//!                                         │
//!                          publisher <────┴──> {spark.history}, then spark.results; copies for a retry or the dead queue
//! ```
//!
//! A **slot** has a channel and a consumer of its own and takes one delivery at a time; there are as many as jobs may run
//! here, and one more for each application in a cluster that is followed meanwhile.
//! A delivery says only that a job is to be looked at. The broker gives a message to one consumer at a time, but it takes it
//! back whenever a connection is lost, and a worker that is cut off does not know that it is; so **whose a job is says the
//! ledger** ([`broker::ledger`]), and all else follows from it ([`job::assign`]).
//!
//! **What goes on at once.** A slot waits for the work on its job, which is a task of its own, and for its own channel. When
//! the channel fails, the work goes on, and a delivery of the job that comes again takes the place of the lost one.
//! Publishing has tasks of its own ([`broker::publisher`]): what they were given is published until it is confirmed.
//!
//! **Leases.** The worker tells its guard until when drivers may run: nine tenths of a lease after the moment at which it
//! *sent* the last renewal that it has read back. Others take a job over only when they have heard nothing of its owner for
//! a whole lease. So there is no moment at which both run it, whoever is stopped, cut off or late.
//!
//! **Commands** ([`job::command`]) are carried out by writing them into the ledger: whoever works on the job is told when
//! he reads the record, and whoever gets the job later finds it there.
//!
//! **Drivers** are never children of the worker but of a **guard** ([`spark::guard`]), which kills them when the
//! worker is gone or does not answer. The driver tells over a socket what happened; its output is only kept.
//!
//! **Drivers in a cluster** run in containers of YARN or pods of Kubernetes and outlive the worker, its guard and the
//! lease; only the launcher is under the guard. Whoever gets a job looks for its application before anything is
//! submitted, and follows the one that is there. Each launch has a ticket, which its driver takes before it begins; it
//! is revoked before there is another launch, and of taking and revoking only one succeeds. So there are never two
//! drivers, however late an application is handed over. What a driver has to say lies in a folder of the cluster's file
//! system (`spark::yarn`, `spark::kubernetes`).
//!
//! **What a job only refers to** is fetched before it is checked ([`repository`]), and what it requires decides which Python
//! runs it ([`runtimes`]). Both run helper programs ([`program`]), which end with whoever waits for them.
//!
//! **Record models.** Where a function gets records instead of lists of assets, what is agreed with it is a **contract**
//! ([`job::contract`]): inputs, outputs, formats, schemas. The driver has it as a file. A contract whose records are few and
//! lie on this machine needs no Spark session, and then no spark-submit is started but Python itself.
//!
//! **Files elsewhere** are read and written through [`storage`], whatever they lie on; what strangers have packed is unpacked
//! by [`archive`]. Neither knows a job.
//!
//! **Truth.** A job has completed when its driver says so *and* its processes ended in order, or its cluster says so as well
//! ([`job::collect`]).
//!
//! **One place each**: what a record means ([`broker::ledger::fold`]), what is published in which order ([`job::settle`]),
//! whether there is another attempt (the same),
//! what may be asked of spark-submit ([`spark::policy`]), what differs between brokers ([`broker::server`]).
//!
//! `job` talks to `broker` and to `spark`; those two do not talk to each other.

pub mod archive;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crash;
pub mod disk;
#[cfg(any(feature = "hdfs", feature = "yarn"))]
pub mod hadoop;
pub mod job;
pub mod program;
pub mod repository;
pub mod runtimes;
pub mod service;
pub mod spark;
pub mod storage;
