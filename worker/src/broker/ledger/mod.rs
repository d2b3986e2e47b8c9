//! The ledger: who has which job, kept by the broker as one stream of small records that every worker reads.
//!
//! - [`record`]: what is written, and its one codec;
//! - [`fold`]: what it means.

pub mod fold;
pub mod record;
