//! Following many pods of one namespace: one list of all of them, and then one stream of what happens to any of them.
//!
//! What cannot be known stays unknown, with the moment since when: for how long that is borne is for whoever follows. The
//! stream is begun anew every minute or so, and the list from time to time: neither a dead connection nor an answer that
//! had a hole in it is believed for ever.
//!
//! This module must not know what a pod is for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::api::{Api, ApiError, Event};
use super::pod::Report;

/// How long the pauses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The pause after a stream that ended, or a first failure.
    pub quick: Duration,
    /// The longest pause while the API server cannot be asked.
    pub away: Duration,
    /// How long what was listed is read on from before it is listed anew.
    pub list: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            quick: Duration::from_millis(500),
            away: Duration::from_secs(15),
            list: Duration::from_secs(600),
        }
    }
}

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// Nobody was asked yet.
    NotYet,
    /// It is there.
    There(Box<Report>),
    /// There is none of this name, as there was none since then.
    Gone {
        /// What it was last, if there ever was one.
        last: Option<Box<Report>>,
        /// The server has told that it went, and `last` is what it was then. Else it may have become anything meanwhile.
        is_told: bool,
        /// When that was first known.
        since: Instant,
    },
    /// The API server cannot be asked, as it could not since then.
    Unknown {
        /// When it could not be asked for the first time.
        since: Instant,
        /// Why not.
        error: ApiError,
    },
}

/// Watches the pods of one service in one namespace, as long as any of them is followed.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    api: Api,
    service: String,
    pace: Pace,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the names of their pods.
    followed: HashMap<String, watch::Sender<Sight>>,
    /// All pods that are there, as long as what happens to them is known.
    known: Option<HashMap<String, Report>>,
    /// Somebody asks.
    is_asking: bool,
}

/// One pod that is followed.
#[derive(Debug)]
pub struct Following {
    sight: watch::Receiver<Sight>,
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
    /// Watches what carries the label of `service`, whenever something is followed.
    #[must_use]
    pub fn new(api: Api, service: &str, pace: Pace) -> Self {
        Self(Arc::new(Shared { api, service: service.to_owned(), pace, state: Mutex::default() }))
    }

    /// What is asked.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.0.api
    }

    /// Follows the pod of this name from now on. Needs a runtime.
    #[must_use]
    pub fn follow(&self, name: &str) -> Following {
        let mut state = self.0.state();
        let known = state.known.as_ref().map(|known| match known.get(name) {
            Some(report) => Sight::There(Box::new(report.clone())),
            None => Sight::Gone { last: None, is_told: false, since: Instant::now() },
        });
        let sender = state.followed.entry(name.to_owned()).or_insert_with(|| watch::channel(Sight::NotYet).0);
        if sender.receiver_count() == 0 && known.is_none() {
            // What nobody follows any more says nothing to whoever comes next: least of all since when it is unknown.
            sender.send_replace(Sight::NotYet);
        }
        if let Some(known) = known
            && *sender.borrow() == Sight::NotYet
        {
            sender.send_replace(known);
        }
        let mut sight = sender.subscribe();
        // What is known already is news for this one.
        if *sight.borrow() == Sight::NotYet {
            sight.mark_unchanged();
        } else {
            sight.mark_changed();
        }
        if !std::mem::replace(&mut state.is_asking, true) {
            tokio::spawn(keep_asking(self.0.clone()));
        }
        Following { sight }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is anybody to ask for; who asks is to end where there is nobody.
    fn is_wanted(&self) -> bool {
        let mut state = self.state();
        state.followed.retain(|_, sender| sender.receiver_count() > 0);
        if state.followed.is_empty() {
            state.is_asking = false;
            state.known = None;
        }
        state.is_asking
    }

    /// Takes over what a list says.
    fn listed(&self, pods: HashMap<String, Report>) {
        let mut state = self.state();
        for (name, sender) in &state.followed {
            match pods.get(name) {
                Some(report) => there(sender, report),
                None => gone(sender, None),
            }
        }
        state.known = Some(pods);
    }

    /// Takes over what happened to one pod.
    fn happened(&self, event: Event) {
        let mut state = self.state();
        match event {
            Event::There(pod) => {
                let report = pod.report();
                if let Some(sender) = state.followed.get(&report.name) {
                    there(sender, &report);
                }
                if let Some(known) = &mut state.known {
                    known.insert(report.name.clone(), report);
                }
            }
            Event::Gone(pod) => {
                let report = pod.report();
                if let Some(known) = &mut state.known {
                    known.remove(&report.name);
                }
                if let Some(sender) = state.followed.get(&report.name) {
                    gone(sender, Some(report.clone()));
                }
            }
            Event::Nothing(_) => {}
        }
    }

    /// Nothing is known any more.
    fn unknown(&self, error: &ApiError) {
        let mut state = self.state();
        state.known = None;
        let now = Instant::now();
        for sender in state.followed.values() {
            sender.send_if_modified(|sight| {
                let since = if let Sight::Unknown { since, .. } = sight { *since } else { now };
                let next = Sight::Unknown { since, error: error.clone() };
                let is_news = next != *sight;
                *sight = next;
                is_news
            });
        }
    }
}

fn there(sender: &watch::Sender<Sight>, report: &Report) {
    sender.send_if_modified(|sight| {
        if matches!(sight, Sight::There(known) if **known == *report) {
            return false;
        }
        *sight = Sight::There(Box::new(report.clone()));
        true
    });
}

/// What it was last says the event, or else what was seen before.
fn gone(sender: &watch::Sender<Sight>, told: Option<Report>) {
    sender.send_if_modified(|sight| {
        let is_told = told.is_some();
        let last = match (&*sight, told) {
            (_, Some(report)) => Some(Box::new(report)),
            (Sight::Gone { .. }, None) => return false,
            (Sight::There(report), None) => Some(report.clone()),
            (Sight::NotYet | Sight::Unknown { .. }, None) => None,
        };
        *sight = Sight::Gone { last, is_told, since: Instant::now() };
        true
    });
}

/// Lists, and reads on from there, as long as anybody follows.
async fn keep_asking(shared: Arc<Shared>) {
    /// How often it is looked whether anybody still does.
    const LOOK: Duration = Duration::from_secs(1);
    let mut pause = shared.pace.quick;
    let mut was_away = false;
    while shared.is_wanted() {
        let asked = tokio::select! {
            asked = ask(&shared, &mut was_away) => asked,
            () = async { while shared.is_wanted() { tokio::time::sleep(LOOK).await } } => return,
        };
        pause = match asked {
            Ok(()) => shared.pace.quick,
            Err(error) => {
                if !was_away {
                    was_away = true;
                    pause = shared.pace.quick;
                    tracing::warn!(%error, namespace = shared.api.namespace(), "the pods of drivers cannot be watched; what was known of them stays as it was");
                }
                shared.unknown(&error);
                (pause * 2).min(shared.pace.away)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Lists once, and reads on for as long as that goes well and is believed.
async fn ask(shared: &Shared, was_away: &mut bool) -> Result<(), ApiError> {
    let listed = shared.api.list(&shared.service).await?;
    let reports = listed.pods.into_iter().map(super::pod::Pod::report);
    shared.listed(reports.map(|report| (report.name.clone(), report)).collect());
    let mut version = listed.version;
    let until = Instant::now() + shared.pace.list;
    while Instant::now() < until {
        let mut events = match shared.api.watch(&shared.service, &version).await {
            // It is listed anew.
            Err(ApiError::Expired(_)) => return Ok(()),
            watched => watched?,
        };
        // One that lists and lets nobody watch is as good as away.
        if std::mem::take(was_away) {
            tracing::info!(namespace = shared.api.namespace(), "the API server answers again");
        }
        let mut came = false;
        loop {
            let event = match events.next().await {
                Ok(Some(event)) => event,
                Ok(None) | Err(ApiError::Expired(_)) => break,
                Err(error) => {
                    // A connection that breaks off is no news as long as another one can be had.
                    tracing::debug!(%error, "a watch broke off");
                    break;
                }
            };
            came = true;
            match &event {
                Event::There(pod) | Event::Gone(pod) => {
                    if let Some(told) = pod.version() {
                        version = told.to_owned();
                    }
                }
                Event::Nothing(told) => version.clone_from(told),
            }
            shared.happened(event);
        }
        if !came {
            // Whatever it was that ended, it is better listed once more than asked for without a pause.
            return Ok(());
        }
        tokio::time::sleep(shared.pace.quick).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{Scripted, answer, api, events, list, pod, status};
    use super::*;
    use serde_json::{Value, json};

    const PACE: Pace = Pace {
        quick: Duration::from_millis(5),
        away: Duration::from_millis(20),
        list: Duration::from_secs(600),
    };

    fn watch(server: &Scripted) -> Watch {
        Watch::new(api(server), "mine", PACE)
    }

    fn running() -> Value {
        json!({"running": {}})
    }

    fn word(sight: &Sight) -> String {
        let state = |report: &Report| match &report.state {
            super::super::pod::State::Waiting(_) => "waiting",
            super::super::pod::State::Running => "running",
            super::super::pod::State::Unclear => "unclear",
            super::super::pod::State::Over(_) => "over",
        };
        match sight {
            Sight::NotYet => "not yet".to_owned(),
            Sight::There(report) => state(report).to_owned(),
            Sight::Gone { last, .. } => {
                format!("gone, was {}", last.as_ref().map_or("never", |last| state(last)))
            }
            Sight::Unknown { .. } => "unknown".to_owned(),
        }
    }

    #[tokio::test]
    async fn many_pods_are_followed_by_one_list_and_one_stream() {
        let server = Scripted::start(vec![
            list(&[pod("a", 1, "Pending", json!({})), pod("b", 2, "Running", running())], 5, ""),
            events(&[
                ("MODIFIED", pod("a", 6, "Running", running())),
                ("MODIFIED", pod("b", 7, "Succeeded", json!({"terminated": {"exitCode": 0}}))),
                ("DELETED", pod("b", 8, "Succeeded", json!({"terminated": {"exitCode": 0}}))),
                ("ADDED", pod("c", 9, "Pending", json!({}))),
            ]),
            events(&[("DELETED", pod("a", 10, "Running", running()))]),
            events(&[("BOOKMARK", json!({"metadata": {"resourceVersion": "11"}}))]),
        ])
        .await;
        let watch = watch(&server);
        let (mut a, mut b, mut c) = (watch.follow("a"), watch.follow("b"), watch.follow("c"));
        while word(&a.changed().await) != "gone, was running" {}
        // The last words of a pod that is gone are told, however quickly it went.
        while word(&b.changed().await) != "gone, was over" {}
        while word(&c.changed().await) != "waiting" {}
        let asked = server.asked();
        assert!(asked[0].contains("limit=500"), "{asked:?}");
        assert!(asked[1].contains("watch=1") && asked[1].contains("resourceVersion=5&"), "{asked:?}");
        // It is read on from where it was.
        assert!(asked[2].contains("resourceVersion=9&"), "{asked:?}");
        // Who comes later learns what is known.
        assert_eq!(word(&watch.follow("c").changed().await), "waiting");
        assert_eq!(word(&watch.follow("a").changed().await), "gone, was running");
        assert_eq!(word(&watch.follow("d").changed().await), "gone, was never");
    }

    #[tokio::test]
    async fn what_cannot_be_asked_is_unknown_and_what_was_missed_is_found_by_listing_anew() {
        let server = Scripted::start(vec![
            list(&[pod("a", 1, "Running", running())], 5, ""),
            answer("410 Gone", &status(410, "Expired", "too old").to_string()),
            answer("503 Service Unavailable", ""),
            answer("200 OK", "<html>"),
            list(&[pod("a", 1, "Running", running())], 5, ""),
            answer("410 Gone", &status(410, "Expired", "too old").to_string()),
            list(&[], 9, ""),
            events(&[("BOOKMARK", json!({"metadata": {"resourceVersion": "11"}}))]),
        ])
        .await;
        let watch = watch(&server);
        let mut a = watch.follow("a");
        let mut told = Vec::new();
        while told.last().map(String::as_str) != Some("gone, was running") {
            let word = word(&a.changed().await);
            if told.last() != Some(&word) {
                told.push(word);
            }
        }
        assert_eq!(told, ["running", "unknown", "running", "gone, was running"]);
    }

    #[tokio::test]
    async fn a_server_that_lists_and_lets_nobody_watch_is_asked_ever_more_seldom() {
        let refused = answer("403 Forbidden", &status(403, "Forbidden", "cannot watch").to_string());
        let answers = (0..8).flat_map(|_| [list(&[], 5, ""), refused.clone()]).collect();
        let server = Scripted::start(answers).await;
        let pace = Pace { quick: Duration::from_millis(10), away: Duration::from_millis(160), ..PACE };
        let began = Instant::now();
        let watch = Watch::new(api(&server), "mine", pace);
        let mut a = watch.follow("a");
        while server.asked().len() < 14 {
            a.changed().await;
        }
        // 20, 40, 80, 160, 160 and 160 ms.
        assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_is_unknown_to_one_is_not_for_long_unknown_to_the_next() {
        let server = Scripted::start(vec![answer("503 Service Unavailable", "")]).await;
        let pace = Pace { away: Duration::from_secs(600), quick: Duration::from_secs(300), ..PACE };
        let watch = Watch::new(api(&server), "mine", pace);
        let mut first = watch.follow("a");
        assert_eq!(word(&first.changed().await), "unknown");
        drop(first);
        // Nobody has been asked for this one yet.
        assert_eq!(word(&watch.follow("a").sight()), "not yet");
    }

    #[tokio::test]
    async fn nobody_is_asked_when_nothing_is_followed() {
        let server = Scripted::start(vec![list(&[], 5, "")]).await;
        let watch = watch(&server);
        let mut a = watch.follow("a");
        assert_eq!(word(&a.changed().await), "gone, was never");
        drop(a);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let asked = server.asked().len();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(server.asked().len(), asked);
        // And again when something is.
        assert_eq!(word(&watch.follow("a").changed().await), "gone, was never");
    }
}
