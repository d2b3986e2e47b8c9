//! Waiting longer after each failure, and never all at the same moment.
//!
//! This module must not know what is being tried.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(15);

/// How long to wait before trying again.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts one more failure and waits: twice as long as the last time, at most 15 seconds, with up to half of it
    /// left to chance.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    fn next(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full / 2 + by_chance(full / 2)
    }

    /// Starts again with the shortest wait.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// Any time shorter than `whole`.
#[must_use]
pub fn by_chance(whole: Duration) -> Duration {
    // The standard library seeds every `RandomState` anew; that is chance enough to keep workers apart.
    let chance = u32::try_from(RandomState::new().hash_one(whole) % 1000).unwrap_or(0);
    whole * chance / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST);
        assert!(waits[39] >= LONGEST / 2 && waits[39] <= LONGEST);
        backoff.succeeded();
        assert!(backoff.next() <= FIRST);
    }
}
