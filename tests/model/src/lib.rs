//! An exhaustive check of how workers own jobs: everything that can happen, in every order, up to a number of faults.
//!
//! # Theory of operation
//!
//! A [`State`] is a moment of the whole: the broker with its queues, the ledger, workers with what each of them has read, guards
//! with their drivers, and what is on its way. Time goes in ticks; a lease has three of them. What a record means is decided by
//! the worker's own fold, and on which terms a job may be claimed by its own `terms`; only the steps around them are written
//! here again, in the order in which the worker takes them.
//!
//! The promises are properties: never two drivers of one job, no run after the settle, at most one end that is told, what is
//! told was settled and is in the history. "Eventually" is checked without trusting in loops: faults are counted and end, and
//! where nothing can happen any more every end has to have been told (a moment at rest in which one is missing is a failure); that
//! every run comes to rest is a check of its own, with its steps counted.
//!
//! That the check bites is shown by [`Mistake`]s, each of which has to be found. The tests explore about four million states;
//! `cargo run -p spark-runtime-model --bin model -- --help` goes as deep as one likes.
//!
//! This crate must not know how messages or processes work, only what can become of them.

mod broker;
mod canonical;
mod guard;
mod log;
mod model;
mod state;
mod trace;
mod worker;

pub use model::*;
pub use state::State;
pub use trace::told;

/// A lease, in ticks.
pub(crate) const LEASE: u8 = 3;
/// So many ticks after a renewal was sent the guard ends the drivers.
pub(crate) const FENCE: u8 = 2;
/// A renewal is due so many ticks after the one before.
pub(crate) const RENEWAL: u8 = 1;
/// How long a copy of a message waits while another worker has the job.
pub(crate) const DELAY: u8 = LEASE;
/// The most ticks that a driver runs.
pub(crate) const LONGEST_RUN: u8 = 5;
/// The most ticks that anything stands still.
pub(crate) const HOLD: u8 = 4;
/// How many attempts may fail.
pub(crate) const MAX_ATTEMPTS: u32 = 2;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A worker is killed; its guard ends its drivers and says so.
    Crash,
    /// A worker and its guard are gone with their drivers.
    LostMachine,
    /// A worker stands still, for up to longer than its lease.
    Pause,
    /// Nothing gets through between a worker and the broker, in one direction or both, for up to longer than the lease.
    Hold,
    /// A connection is reset.
    Reset,
    /// The broker is away.
    BrokerAway,
    /// A job is published again.
    PublishAgain,
    /// A job is cancelled.
    Cancel,
    /// A driver fails in a way that may pass.
    Failure,
    /// A worker gives a job back.
    GiveBack,
    /// One task of a worker, or a launch, is held up while all else goes on.
    Stall,
}

impl Fault {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Crash,
        Self::LostMachine,
        Self::Pause,
        Self::Hold,
        Self::Reset,
        Self::BrokerAway,
        Self::PublishAgain,
        Self::Cancel,
        Self::Failure,
        Self::GiveBack,
        Self::Stall,
    ];
}

/// A mistake that the checker has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Drivers are not ended when the lease is over.
    NoLease,
    /// The lease counts from when its renewal was read back.
    LeaseFromReadBack,
    /// A claim that was read back after its lease is acted on.
    LateClaim,
    /// A superseding claim counts whatever renewal it names.
    SupersedingWithoutRenewal,
    /// What is to be taken over comes back before the lease is over.
    ShortDelay,
    /// A settle counts whoever writes it.
    SettlingWithoutClaim,
    /// The end is told before it is settled.
    TellingBeforeSettle,
    /// The delivery is acknowledged before the end is settled.
    AcknowledgingBeforeSettle,
    /// The end is written into the history after it is settled.
    HistoryAfterSettle,
    /// The delivery is acknowledged before its delayed copy is confirmed.
    AcknowledgingBeforeCopy,
    /// A guard says that its worker is dead before the drivers are gone.
    LeavingBeforeDriversAreGone,
    /// A launch does not carry the lease by which it was decided on.
    LaunchWithoutItsLease,
    /// A claim of one's own that lands late is kept.
    UnattendedClaimKept,
}

impl Scope {
    /// Two workers that take one delivery at a time, and one job; nothing goes wrong.
    pub const SMALL: Self = Self {
        workers: 2,
        slots: 1,
        jobs: 1,
        faults: 0,
        kinds: Fault::ALL,
        restarts: false,
        workers_lag: false,
        counts_steps: false,
        most_steps: u16::MAX,
        mistake: None,
        reached: &[],
    };
}

/// What is to be explored.
#[derive(Debug, Clone)]
pub struct Scope {
    /// How many workers there are.
    pub workers: u8,
    /// How many deliveries each takes at a time.
    pub slots: u8,
    /// How many jobs there are, at most 2.
    pub jobs: u8,
    /// How many things may go wrong, one after the other or at once.
    pub faults: u8,
    /// Which.
    pub kinds: &'static [Fault],
    /// Dead workers are started again. Where none is left, one is in any case.
    pub restarts: bool,
    /// A worker that gets its first delivery may not have read what was written in the same tick.
    pub workers_lag: bool,
    /// Steps are counted, so that going round in circles is found.
    pub counts_steps: bool,
    /// By so many steps everything has come to rest, when they are counted.
    pub most_steps: u16,
    /// The mistake that is in it.
    pub mistake: Option<Mistake>,
    /// What has to happen somewhere.
    pub reached: &'static [Reached],
}
