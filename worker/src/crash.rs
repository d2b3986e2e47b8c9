//! Named places at which a test lets a worker die.
//!
//! They are there only in builds with debug assertions, which are what the tests run and no release has. The variable
//! `SPARK_RUNTIME_CRASH_AT` names the place, and after a colon how often it is passed before: `before-settle:2`.
//!
//! This module must not know what goes on at a place.

/// The variable that names the place.
#[cfg(debug_assertions)]
const VARIABLE: &str = "SPARK_RUNTIME_CRASH_AT";

/// Ends this process as `kill -9` would, if this is the place that was named.
#[cfg(debug_assertions)]
pub fn crash_point(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let (place, before) = wanted.split_once(':').unwrap_or((&wanted, "0"));
    if place == name && PASSED.fetch_add(1, Ordering::Relaxed) >= before.parse().unwrap_or(0) {
        // SAFETY: it takes no memory and does not return.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        std::thread::park();
    }
}

/// Does nothing.
#[cfg(not(debug_assertions))]
#[inline]
pub fn crash_point(_name: &str) {}
