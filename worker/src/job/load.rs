//! How much a worker has under way of what it bounds: launches of spark-submit at once, and applications in clusters that it
//! looks after. Both are counted, and now and then told in the log.
//!
//! This module must not know what is launched, nor by whom it is followed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// What is under way of one kind.
#[derive(Debug, Default)]
struct Count {
    now: AtomicUsize,
    /// The most at once since it was last told.
    most: AtomicUsize,
}

impl Count {
    fn enter(self: &Arc<Self>) -> Counted {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Counted(self.clone())
    }

    /// How many there are, and how many there were at most since this was last called.
    fn tell(&self) -> (usize, usize) {
        let now = self.now.load(Ordering::Relaxed);
        (now, self.most.swap(now, Ordering::Relaxed).max(now))
    }
}

/// Something that is counted as long as this lives.
#[derive(Debug)]
pub struct Counted(Arc<Count>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a worker has under way.
#[derive(Debug)]
pub struct Load {
    /// One permit for each spark-submit that may be starting at a time.
    submits: Semaphore,
    most_submits: usize,
    launching: Arc<Count>,
    waiting: Arc<Count>,
    followed: Arc<Count>,
    most_followed: usize,
}

/// A place among the launches that may be under way at once, until it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    _permit: SemaphorePermit<'a>,
    _counted: Counted,
}

impl Load {
    /// With at most so many launches at once, and so many applications looked after beside what runs here.
    #[must_use]
    pub fn new(most_submits: usize, most_followed: usize) -> Arc<Self> {
        Arc::new(Self {
            submits: Semaphore::new(most_submits),
            most_submits,
            launching: Arc::default(),
            waiting: Arc::default(),
            followed: Arc::default(),
            most_followed,
        })
    }

    /// Waits for a place to launch from.
    ///
    /// # Errors
    /// Never, as long as this lives.
    pub async fn launch(&self) -> Result<Place<'_>, AcquireError> {
        let waits = self.waiting.enter();
        let permit = self.submits.acquire().await?;
        drop(waits);
        Ok(Place { _permit: permit, _counted: self.launching.enter() })
    }

    /// Counts an application that is looked after from now on.
    #[must_use]
    pub fn follow(&self) -> Counted {
        self.followed.enter()
    }

    /// Writes into the log what is under way, every so often, unless it has been nothing all the while.
    pub async fn keep_told(self: Arc<Self>, pause: Duration) {
        let mut was_idle = true;
        loop {
            tokio::time::sleep(pause).await;
            let (launching, launching_at_most) = self.launching.tell();
            let (waiting, waiting_at_most) = self.waiting.tell();
            let (followed, followed_at_most) = self.followed.tell();
            let is_idle = launching_at_most + waiting_at_most + followed_at_most == 0;
            if !(is_idle && was_idle) {
                tracing::info!(
                    launching,
                    launching_at_most,
                    max_submits = self.most_submits,
                    waiting_to_launch = waiting,
                    waiting_to_launch_at_most = waiting_at_most,
                    followed,
                    followed_at_most,
                    max_followed = self.most_followed,
                    "what is under way"
                );
            }
            was_idle = is_idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn launches_and_what_is_followed_are_bounded_and_counted_apart() {
        let load = Load::new(1, 500);
        let first = load.launch().await.unwrap();
        let followed = [load.follow(), load.follow()];
        let second = load.launch();
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        assert_eq!(
            (load.launching.tell(), load.waiting.tell(), load.followed.tell()),
            ((1, 1), (1, 1), (2, 2))
        );
        drop((first, followed));
        let second = second.await.unwrap();
        // What was at most since the last time is told once.
        assert_eq!(
            (load.launching.tell(), load.waiting.tell(), load.followed.tell()),
            ((1, 1), (0, 1), (0, 2))
        );
        drop(second);
        assert_eq!(
            (load.launching.tell(), load.waiting.tell(), load.followed.tell()),
            ((0, 1), (0, 0), (0, 0))
        );
    }
}
