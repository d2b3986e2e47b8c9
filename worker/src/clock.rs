//! The clock that leases are counted by: one that goes on while the machine sleeps.
//!
//! This module must not know what is counted.

use std::time::Duration;

/// A moment of CLOCK_BOOTTIME: it goes on while the machine sleeps and means nothing on another machine or after the
/// next boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(u64);

impl BootTime {
    /// The present moment.
    pub fn now() -> Self {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` outlives the call. It cannot fail for this clock; if it did, the time stays zero.
        unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        BootTime(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0))
    }

    /// The moment so many nanoseconds after boot.
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        BootTime(nanoseconds)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanoseconds(self) -> u64 {
        self.0
    }

    /// The moment that much later; `None` if the clock cannot tell it (in 584 years).
    pub fn checked_add(self, time: Duration) -> Option<Self> {
        self.0.checked_add(u64::try_from(time.as_nanos()).ok()?).map(BootTime)
    }

    /// The moment that much earlier; `None` if that is before boot.
    pub fn checked_sub(self, time: Duration) -> Option<Self> {
        self.0.checked_sub(u64::try_from(time.as_nanos()).ok()?).map(BootTime)
    }

    /// The time from `earlier` to this moment; `None` if it is the other way round.
    pub fn checked_duration_since(self, earlier: BootTime) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_arithmetic_never_wraps() {
        let second = Duration::from_secs(1);
        let start = BootTime::from_nanoseconds(5_000_000_000);
        assert_eq!(start.checked_add(second).map(BootTime::as_nanoseconds), Some(6_000_000_000));
        assert_eq!(start.checked_sub(Duration::from_secs(6)), None);
        assert_eq!(BootTime::from_nanoseconds(u64::MAX).checked_add(second), None);
        assert_eq!(start.checked_add(Duration::MAX), None);
        assert_eq!(BootTime::from_nanoseconds(0).checked_duration_since(start), None);
    }

    #[test]
    fn boot_time_goes_on() {
        let first = BootTime::now();
        assert!(first.as_nanoseconds() > 0);
        assert!(BootTime::now() >= first);
    }
}
