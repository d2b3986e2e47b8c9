//! What of an application that is followed is the same in every cluster: its launch, what is wanted of it, and what it left.
//!
//! This module must not know which kind of cluster it is, nor what that says of the application.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::elsewhere::{FIRST_PAUSE, Trouble, make, patiently};
use super::guard::{Exit, Running};
use super::job_folder::{JobFolder, LastWord, Stage};
use super::{Change, DRIVER_LOGS, Ending, Outcome, Sought};

/// How long what a driver left is tried to be read.
const READING: Duration = Duration::from_secs(120);
/// How long spark-submit may still take once its application is over.
const LAUNCHER_PATIENCE: Duration = Duration::from_secs(10);

/// What is wanted of an application from outside; the strongest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// Nothing yet.
    Nothing,
    /// It is to end; spark-submit, if it still runs, may end by itself.
    End,
    /// The same, at once.
    EndNow,
    /// It is left to somebody else.
    Leave,
}

/// An application that is followed, from its launch to its end.
pub(super) struct Followed {
    /// Where its driver leaves what it has to say.
    pub(super) folder: JobFolder,
    /// What its driver begins with.
    pub(super) ticket: String,
    directory: PathBuf,
    working_directory: PathBuf,
    /// spark-submit, as long as it runs.
    pub(super) launcher: Option<Running>,
    /// How it ended, and when.
    pub(super) launched: Option<(Exit, Instant)>,
    wanted: watch::Sender<Want>,
    heard: watch::Receiver<Want>,
}

impl Followed {
    /// One of which nothing of this machine's runs.
    pub(super) fn of(folder: JobFolder, ticket: String, sought: &Sought) -> Self {
        let (wanted, heard) = watch::channel(Want::Nothing);
        Self {
            folder,
            ticket,
            directory: sought.directory.clone(),
            working_directory: sought.working_directory.clone(),
            launcher: None,
            launched: None,
            wanted,
            heard,
        }
    }

    /// Wants this of it, unless more is wanted already.
    pub(super) fn want(&self, want: Want) {
        self.wanted.send_if_modified(|wanted| {
            let is_more = *wanted < want;
            *wanted = want.max(*wanted);
            is_more
        });
    }

    /// What is wanted by now.
    pub(super) fn wanted(&mut self) -> Want {
        *self.heard.borrow_and_update()
    }

    /// Lets the next round look at what is wanted once more.
    pub(super) fn ask_again(&mut self) -> Option<Change> {
        self.heard.mark_changed();
        None
    }

    /// The same after a pause.
    pub(super) async fn ask_again_later(&mut self) -> Option<Change> {
        tokio::time::sleep(FIRST_PAUSE).await;
        self.ask_again()
    }

    /// Waits until something else is wanted, or spark-submit has ended. Cancelling the call loses nothing.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            biased;
            // What is wanted is looked at by whoever waits.
            _ = self.heard.changed() => {}
            exit = exit_of(&mut self.launcher) => {
                self.launcher = None;
                self.launched = Some((exit, Instant::now()));
            }
        }
    }

    /// From when on it counts that the cluster has nothing of it: `grace` after spark-submit has ended.
    pub(super) fn missing_from(&self, grace: Duration) -> Option<Instant> {
        self.launched.as_ref().map(|(_, since)| *since + grace)
    }

    /// Lets go of it; gives what is told of that, once spark-submit is gone.
    pub(super) fn leave(&self, has_started: bool) -> Option<Change> {
        if let Some(launcher) = &self.launcher {
            // What it has handed over by then will be found.
            launcher.kill();
            return None;
        }
        Some(Left { begun: has_started, ..Left::default() }.end(None, Outcome::Left))
    }

    /// Ends spark-submit, as this is wanted; whether it runs yet.
    pub(super) fn ends_launcher(&self, want: Want) -> bool {
        let Some(launcher) = &self.launcher else { return false };
        if want == Want::EndNow {
            launcher.kill()
        } else {
            launcher.terminate()
        }
        true
    }

    /// Sees to it that no driver begins with its ticket any more. Whether one has says [`has_begun`](Self::has_begun)
    /// afterwards.
    pub(super) async fn revoke(&self) -> Result<(), Trouble> {
        Ok(self.folder.revoke(&self.ticket).await?)
    }

    /// Whether a driver has begun with its ticket.
    pub(super) async fn has_begun(&self) -> Result<bool, Trouble> {
        let stage = self.folder.tickets().await?.get(&self.ticket).copied();
        Ok(stage > Some(Stage::Open))
    }

    /// Waits for spark-submit, which has nothing to do any more, and brings here what the driver left.
    pub(super) async fn gather(&mut self) -> Left {
        if let Some(launcher) = &mut self.launcher {
            // Whatever keeps it, it must not go on.
            if tokio::time::timeout(LAUNCHER_PATIENCE, launcher.exited()).await.is_err() {
                launcher.kill();
                launcher.exited().await;
            }
            self.launcher = None;
        }
        match patiently(READING, "the driver's last word", || self.read()).await {
            Ok(left) => left,
            Err(trouble) => Left { unreadable: Some(trouble.words), ..Left::default() },
        }
    }

    /// What the driver left, its files brought to where they would be on this machine.
    async fn read(&self) -> Result<Left, Trouble> {
        let Some(word) = self.folder.last_word(&self.ticket).await? else {
            return Ok(Left { begun: self.has_begun().await?, ..Left::default() });
        };
        make(&self.working_directory)
            .map_err(|error| Trouble { words: error.to_string(), may_pass: false })?;
        self.folder.bring(&self.ticket, &word, &self.working_directory).await?;
        Ok(Left { begun: true, word: Some(word), unreadable: None })
    }

    /// Makes the folder for the driver's log.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(super) fn log_folder(&self) -> Result<PathBuf, String> {
        let folder = self.directory.join(DRIVER_LOGS);
        make(&folder).map_err(|error| error.to_string())?;
        Ok(folder)
    }
}

/// What a driver left.
#[derive(Default)]
pub(super) struct Left {
    begun: bool,
    word: Option<LastWord>,
    unreadable: Option<String>,
}

impl Left {
    /// Whether there is a last word.
    pub(super) fn has_word(&self) -> bool {
        self.word.is_some()
    }

    /// The end of its application.
    pub(super) fn end(self, unlogged: Option<String>, outcome: Outcome) -> Change {
        Change::Ended(Box::new(Ending {
            started: self.begun,
            report: self.word.map(|word| word.word),
            report_came_first: true,
            unreadable: self.unreadable,
            unlogged,
            outcome,
        }))
    }
}

/// The end of a launch that no cluster has anything of.
pub(super) fn never_accepted(exit: Exit) -> Change {
    Left::default().end(None, Outcome::NeverAccepted(exit))
}

/// The end of a program that runs; for ever when none does.
async fn exit_of(running: &mut Option<Running>) -> Exit {
    match running {
        Some(running) => running.exited().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spark::{Identity, Mode};
    use crate::storage::Actor;

    fn followed(place: &std::path::Path) -> Followed {
        let sought = Sought {
            mode: Mode::Client,
            actor: Actor::Worker,
            identity: Identity { job: "j".to_owned(), digest: "d".to_owned() },
            directory: place.join("attempt"),
            working_directory: place.join("attempt/work"),
        };
        Followed::of(JobFolder::here(place), "ticket".to_owned(), &sought)
    }

    #[tokio::test]
    async fn the_strongest_that_is_wanted_counts() {
        let place = tempfile::tempdir().unwrap();
        let mut followed = followed(place.path());
        followed.want(Want::EndNow);
        followed.want(Want::End);
        followed.changed().await;
        assert_eq!(followed.wanted(), Want::EndNow);
        // It is news once, until it is to be looked at again.
        assert!(tokio::time::timeout(Duration::from_millis(50), followed.changed()).await.is_err());
        assert!(followed.ask_again().is_none());
        followed.changed().await;
        assert_eq!(followed.wanted(), Want::EndNow);
    }

    #[tokio::test]
    async fn a_driver_without_a_last_word_has_begun_once_its_ticket_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let mut followed = followed(place.path());
        for (name, begun) in [("ticket", false), ("ticket.taken", true)] {
            std::fs::write(place.path().join(name), "{}").unwrap();
            let left = followed.gather().await;
            assert!(!left.has_word());
            let Change::Ended(ending) = left.end(None, Outcome::Left) else { panic!("no end") };
            assert_eq!(ending.started, begun);
        }
        std::fs::write(place.path().join("ticket.end"), r#"{"message": "completed"}"#).unwrap();
        let left = followed.gather().await;
        assert!(left.has_word());
        assert!(place.path().join("attempt/work").is_dir());
    }
}
