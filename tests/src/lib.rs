//! What the end-to-end tests share: a real broker, workers as processes, jobs for the fake spark-submit, and a wire
//! that can be cut.
//!
//! Every test has a virtual host of its own on one broker, so that tests run side by side and see nothing of each other.

pub mod broker;
pub mod chaos;
pub mod cluster;
pub mod jobs;
pub mod kubernetes;
pub mod program;
pub mod repository;
pub mod s3;
pub mod wire;

use std::path::PathBuf;
use std::time::Duration;

/// How long a test waits for anything. These machines are noisy; a test that fails by this has waited for something that
/// did not come.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The project's folder.
#[must_use]
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap_or_default()
}

/// Waits until `found` gives something, looking again after what `pause` says; for what nobody tells of by an event.
///
/// # Panics
/// When it takes longer than [`PATIENCE`].
pub async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "did not come: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
