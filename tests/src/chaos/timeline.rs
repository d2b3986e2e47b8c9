//! The time line: what was done and noticed when, for reading afterwards.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::book::boottime_ns;

/// A file with a line for each thing that happened: seconds since the start, CLOCK_BOOTTIME in nanoseconds, words.
#[derive(Debug, Clone)]
pub struct Timeline {
    start: i64,
    file: Arc<Mutex<File>>,
}

impl Timeline {
    /// Starts now.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { start: boottime_ns(), file: Arc::new(Mutex::new(File::create(path)?)) })
    }

    /// Seconds from the start to a moment of CLOCK_BOOTTIME.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn seconds(&self, boottime_ns: i64) -> f64 {
        (boottime_ns - self.start) as f64 / 1e9
    }

    /// Notes what happened.
    pub fn note(&self, what: &str) {
        let now = boottime_ns();
        let line = format!("{:9.3} {now} {what}\n", self.seconds(now));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk is noticed elsewhere.
        let _ = file.write_all(line.as_bytes());
    }
}
