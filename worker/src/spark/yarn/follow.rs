//! Following many applications of one cluster: one question for all of them at a time, and fewer questions the longer
//! nothing changes.
//!
//! What cannot be known stays unknown, with the moment since when: for how long that is borne is for whoever follows.
//!
//! This module must not know what an application is for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::resource_manager::{Report, ResourceManager, ResourceManagerError};

/// How often the ResourceManager is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The pause after something has changed, or something new is followed.
    pub quick: Duration,
    /// The longest pause while nothing changes.
    pub slow: Duration,
    /// The longest pause while it cannot be asked.
    pub away: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { quick: Duration::from_secs(1), slow: Duration::from_secs(2), away: Duration::from_secs(15) }
    }
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Changed,
    Unchanged,
    Away,
}

impl Pace {
    /// The pause that follows on one of `last`.
    fn after(self, last: Duration, outcome: Outcome) -> Duration {
        match outcome {
            Outcome::Changed => self.quick,
            Outcome::Unchanged => (last * 3 / 2).clamp(self.quick, self.slow.max(self.quick)),
            Outcome::Away => (last * 2).clamp(self.quick, self.away.max(self.quick)),
        }
    }
}

/// What is known of what carries a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// The ResourceManager was not asked yet.
    NotYet,
    /// It knows of these, those that were submitted last first. More than one only when there was more than one submission.
    Seen(Vec<Report>),
    /// It says that there is none, as it does since then: there was none yet, or it has forgotten it.
    Missing {
        /// When it said so for the first time.
        since: Instant,
    },
    /// It cannot be asked, as it could not since then.
    Unknown {
        /// When it could not be asked for the first time.
        since: Instant,
        /// Why not.
        error: ResourceManagerError,
    },
}

/// Asks a ResourceManager about all applications that are followed. Dropping it and every [`Following`] ends the asking.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cluster: ResourceManager,
    pace: Pace,
    /// By their tags.
    followed: Mutex<HashMap<String, watch::Sender<Sight>>>,
    /// Something new is followed.
    more: Notify,
    /// It could not be asked last time.
    is_away: AtomicBool,
}

impl Shared {
    fn followed(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Sight>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One tag that is followed.
#[derive(Debug)]
pub struct Following {
    sight: watch::Receiver<Sight>,
    /// Without it the asking would end.
    _watch: Watch,
}

impl Following {
    /// What is known by now.
    #[must_use]
    pub fn sight(&self) -> Sight {
        self.sight.borrow().clone()
    }

    /// Waits until something else is known than what was last given by this call, and gives it. Cancelling the call loses
    /// nothing.
    pub async fn changed(&mut self) -> Sight {
        match self.sight.changed().await {
            Ok(()) => self.sight.borrow_and_update().clone(),
            // Nobody asks any more, and so nothing will ever be known.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Watch {
    /// Asks `cluster` at this pace whenever something is followed. Needs a runtime.
    #[must_use]
    pub fn start(cluster: ResourceManager, pace: Pace) -> Self {
        let shared = Arc::new(Shared {
            cluster,
            pace,
            followed: Mutex::default(),
            more: Notify::new(),
            is_away: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            let mut pause = pace.quick;
            loop {
                let Some(shared) = weak.upgrade() else { return };
                pause = pace.after(pause, ask(&shared).await);
                // Not held while nothing is done, so that it can end.
                drop(shared);
                pause = rest(&weak, pause).await;
            }
        });
        Self(shared)
    }

    /// The ResourceManager that is asked.
    #[must_use]
    pub fn cluster(&self) -> &ResourceManager {
        &self.0.cluster
    }

    /// Follows what carries `tag` from now on. It is asked for at once.
    ///
    /// # Errors
    /// [`ResourceManagerError::Tag`] when no application can carry it.
    pub fn follow(&self, tag: &str) -> Result<Following, ResourceManagerError> {
        if !super::resource_manager::is_tag(tag) {
            return Err(ResourceManagerError::Tag(tag.to_owned()));
        }
        let mut followed = self.0.followed();
        let sender = followed.entry(tag.to_owned()).or_insert_with(|| watch::channel(Sight::NotYet).0);
        let mut sight = sender.subscribe();
        // What is known already is news for this one.
        sight.mark_changed();
        if *sight.borrow() == Sight::NotYet {
            sight.mark_unchanged();
        }
        drop(followed);
        self.0.more.notify_one();
        Ok(Following { sight, _watch: self.clone() })
    }
}

/// Waits for the next time to ask; gives the pause that it was, which is the quick one where something new is followed.
async fn rest(shared: &std::sync::Weak<Shared>, pause: Duration) -> Duration {
    /// How often it is looked whether anybody is still interested.
    const LOOK: Duration = Duration::from_secs(1);
    let until = Instant::now() + pause;
    loop {
        let Some(strong) = shared.upgrade() else { return pause };
        let quick = strong.pace.quick;
        let is_idle = strong.followed().is_empty();
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() && !is_idle {
            return pause;
        }
        let wait = if is_idle { LOOK } else { left.min(LOOK) };
        tokio::select! {
            () = strong.more.notified() => return quick,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Asks once about all that is followed, and tells those who follow.
async fn ask(shared: &Shared) -> Outcome {
    let tags: Vec<String> = {
        let mut followed = shared.followed();
        followed.retain(|_, sender| sender.receiver_count() > 0);
        followed.keys().cloned().collect()
    };
    if tags.is_empty() {
        return Outcome::Unchanged;
    }
    let asked: Vec<&str> = tags.iter().map(String::as_str).collect();
    let answer = shared.cluster.tagged(&asked).await;
    let now = Instant::now();
    let mut outcome = if answer.is_ok() { Outcome::Unchanged } else { Outcome::Away };
    let was_away = shared.is_away.swap(answer.is_err(), Ordering::Relaxed);
    match &answer {
        Err(error) if !was_away => {
            tracing::warn!(%error, followed = tags.len(), "the ResourceManager cannot be asked; what it knew of stays as it was");
        }
        Ok(_) if was_away => tracing::info!(followed = tags.len(), "the ResourceManager answers again"),
        _ => {}
    }
    for (tag, sender) in shared.followed().iter().filter(|(tag, _)| tags.contains(tag)) {
        let is_news = sender.send_if_modified(|sight| {
            let next = match &answer {
                Ok(reports) => seen(reports, tag, sight, now),
                Err(error) => unknown(error, sight, now),
            };
            let is_news = next != *sight;
            *sight = next;
            is_news
        });
        if is_news && answer.is_ok() {
            outcome = Outcome::Changed;
        }
    }
    outcome
}

fn seen(reports: &[Report], tag: &str, before: &Sight, now: Instant) -> Sight {
    let mut ours: Vec<Report> = reports.iter().filter(|report| report.has_tag(tag)).cloned().collect();
    if ours.is_empty() {
        let since = if let Sight::Missing { since } = before { *since } else { now };
        return Sight::Missing { since };
    }
    ours.sort_by(|one, other| (other.started_time, &other.id).cmp(&(one.started_time, &one.id)));
    Sight::Seen(ours)
}

fn unknown(error: &ResourceManagerError, before: &Sight, now: Instant) -> Sight {
    let since = if let Sight::Unknown { since, .. } = before { *since } else { now };
    Sight::Unknown { since, error: error.clone() }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{Scripted, answer, listing, report};
    use super::*;

    const PACE: Pace = Pace {
        quick: Duration::from_millis(10),
        slow: Duration::from_millis(20),
        away: Duration::from_millis(20),
    };

    fn watch(cluster: &Scripted) -> Watch {
        Watch::start(ResourceManager::new(std::slice::from_ref(&cluster.address), None).unwrap(), PACE)
    }

    fn states(sight: &Sight) -> Vec<String> {
        match sight {
            Sight::Seen(reports) => reports.iter().map(|report| format!("{:?}", report.state)).collect(),
            other => vec![format!("{other:?}").split([' ', '{']).next().unwrap_or_default().to_owned()],
        }
    }

    #[tokio::test]
    async fn many_applications_are_followed_by_one_question_at_a_time() {
        let waiting = |tag: &str| report(&format!("application_{tag}"), "ACCEPTED", tag, 1);
        let running = |tag: &str| report(&format!("application_{tag}"), "RUNNING", tag, 1);
        let cluster = Scripted::start(vec![
            listing(&[&waiting("a-1"), &waiting("b-1")]),
            listing(&[&running("a-1"), &waiting("b-1")]),
        ])
        .await;
        let watch = watch(&cluster);
        let (mut one, mut other) = (watch.follow("a-1").unwrap(), watch.follow("b-1").unwrap());
        assert_eq!(states(&one.changed().await), ["Accepted"]);
        assert_eq!(states(&one.changed().await), ["Running"]);
        assert_eq!(states(&other.changed().await), ["Accepted"]);
        // The same again is no news.
        assert!(tokio::time::timeout(PACE.slow * 5, other.changed()).await.is_err());
        for asked in cluster.asked() {
            assert!(asked.contains("a-1%2Cb-1") || asked.contains("b-1%2Ca-1"), "{asked}");
        }
    }

    #[tokio::test]
    async fn what_is_gone_or_cannot_be_asked_for_is_told_with_the_moment_since_when() {
        let cluster = Scripted::start(vec![
            listing(&[]),
            listing(&[&report("application_1_1", "RUNNING", "a-1", 1)]),
            answer("503 Service Unavailable", ""),
            answer("503 Service Unavailable", ""),
            listing(&[&report("application_1_1", "RUNNING", "a-1", 1)]),
            listing(&[]),
        ])
        .await;
        let watch = watch(&cluster);
        let mut following = watch.follow("a-1").unwrap();
        let mut told = Vec::new();
        for _ in 0..5 {
            told.push(states(&following.changed().await).join(" "));
        }
        assert_eq!(told, ["Missing", "Running", "Unknown", "Running", "Missing"]);
        let Sight::Missing { since } = following.sight() else { panic!() };
        tokio::time::sleep(PACE.slow * 3).await;
        // It stays missing since the same moment.
        assert_eq!(following.sight(), Sight::Missing { since });
    }

    #[tokio::test]
    async fn who_comes_later_to_the_same_application_learns_what_is_known() {
        let cluster = Scripted::start(vec![listing(&[
            &report("application_1_1", "KILLED", "a-1", 1),
            &report("application_1_2", "RUNNING", "a-1", 2),
        ])])
        .await;
        let watch = watch(&cluster);
        let mut first = watch.follow("a-1").unwrap();
        // The one that was submitted last comes first.
        assert_eq!(states(&first.changed().await), ["Running", "Killed"]);
        let mut second = watch.follow("a-1").unwrap();
        assert_eq!(states(&second.changed().await), ["Running", "Killed"]);
        assert!(watch.follow("A").is_err());
    }

    #[tokio::test]
    async fn nobody_is_asked_when_nothing_is_followed() {
        let cluster = Scripted::start(vec![listing(&[])]).await;
        let watch = watch(&cluster);
        let mut following = watch.follow("a-1").unwrap();
        following.changed().await;
        drop(following);
        // One question may be on its way.
        tokio::time::sleep(PACE.slow * 2).await;
        let asked = cluster.asked().len();
        tokio::time::sleep(PACE.slow * 10).await;
        assert_eq!(cluster.asked().len(), asked);
    }

    #[test]
    fn the_longer_nothing_changes_the_less_is_asked() {
        let pace = Pace::default();
        let seconds = |last: u64, outcome| pace.after(Duration::from_secs(last), outcome).as_millis();
        assert_eq!(seconds(1, Outcome::Unchanged), 1500);
        assert_eq!(seconds(2, Outcome::Unchanged), 2000);
        assert_eq!(seconds(2, Outcome::Changed), 1000);
        assert_eq!(seconds(2, Outcome::Away), 4000);
        assert_eq!(seconds(15, Outcome::Away), 15_000);
        assert_eq!(seconds(15, Outcome::Unchanged), 2000);
    }
}
