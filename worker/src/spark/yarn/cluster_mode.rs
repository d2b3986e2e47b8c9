//! Cluster mode on YARN: the driver runs in a container, spark-submit ends as soon as YARN has its application, and the
//! worker follows that by the ResourceManager.
//!
//! Theory of operation
//!
//! Every launch has a ticket ([`crate::spark::job_folder`]) and a tag with the ticket in it. Before anything is submitted for a job,
//! its applications are looked for by the job's tag: one that is alive is followed, and so is one that is over and whose end
//! nobody has told. Where there is none, the tickets of all earlier launches are revoked, so that none of them can ever
//! begin: a launcher may have been stopped for hours and hand its application over then. Only after that there is another.
//!
//! How an application ended says the ResourceManager, and what its driver has to say lies in the job's folder. How
//! spark-submit ended says nothing, but for one that YARN has no application of. What cannot be asked is unknown, and becomes
//! lost when that lasts for longer than the settings bear.
//!
//! This module must not know what becomes of a job.

use std::path::PathBuf;
use std::sync::{Arc, Mutex as PlainMutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::configuration::addresses;
use super::end::{EndError, Ended, Patience, end};
use super::find::{Found, launch_tag, look};
use super::follow::{Following, Pace, Sight, Watch};
use super::logs::{self, Bounds};
use super::reason::{cause, memory_used};
use super::resource_manager::{Report, ResourceManager, ResourceManagerError, Standing};
use crate::config::{Settings, YarnSettings};
use crate::spark::client_mode::ClientMode;
use crate::spark::elsewhere::{
    FIRST_PAUSE, LONGEST_PAUSE, LogWishes, Trouble, folder_of, job_tag, patiently, sleep_until, user,
};
use crate::spark::followed::{Followed, Want, never_accepted};
use crate::spark::job_folder::{JobFolder, Stage};
use crate::spark::launch::Launch;
use crate::spark::{
    Accepted, Application, Awaited, Backend, Change, ClusterEnd, ClusterVerdict, Identity, Launches, Mode,
    Outcome, Sought, Submission, SubmitError,
};
use crate::storage::{Actor, Storage};

/// Waiting for a Spark context, in the words of `spark.yarn.am.waitTime`. YARN itself waits for ten minutes
/// (`yarn.am.liveness-monitor.expiry-interval-ms`), and Spark's own default is less than the init of many a model takes.
const WAIT_FOR_CONTEXT: (&str, &str) = ("spark.yarn.am.waitTime", "580s");
/// How long an application may take to be over once it was asked to end, before it is looked at anew.
const ENDING: Duration = Duration::from_secs(60);
/// Runs drivers on the YARN of Hadoop's configuration.
pub struct ClusterMode {
    launcher: Arc<ClientMode>,
    storage: Storage,
    settings: YarnSettings,
    logs: LogWishes,
    /// Made with the first job that needs it.
    cluster: Mutex<Option<Arc<Cluster>>>,
}

/// One YARN and its HDFS.
struct Cluster {
    /// Hadoop's configuration.
    configuration: PathBuf,
    logs: LogWishes,
    watch: Watch,
    storage: Storage,
    folder: String,
    settings: YarnSettings,
}

impl From<ResourceManagerError> for Trouble {
    fn from(error: ResourceManagerError) -> Self {
        Self { may_pass: matches!(error, ResourceManagerError::Away(_)), words: error.to_string() }
    }
}

impl ClusterMode {
    /// A back end whose launchers are started by `launcher`. Touches nothing.
    #[must_use]
    pub fn new(settings: &Settings, launcher: Arc<ClientMode>) -> Self {
        Self {
            launcher,
            storage: Storage::of(settings),
            settings: settings.yarn.clone(),
            logs: LogWishes::of(settings),
            cluster: Mutex::default(),
        }
    }

    /// The cluster of the configuration. One that cannot be read is read again by the next job.
    async fn cluster(&self) -> Result<Arc<Cluster>, SubmitError> {
        let mut known = self.cluster.lock().await;
        if let Some(cluster) = &*known {
            return Ok(cluster.clone());
        }
        let environment = self.launcher.environment();
        let named = |name: &str| environment.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = named("YARN_CONF_DIR").or_else(|| named("HADOOP_CONF_DIR")).ok_or_else(|| {
            SubmitError::Cluster(
                "cluster mode on YARN needs Hadoop's configuration: set spark.environment.HADOOP_CONF_DIR to its folder"
                    .to_owned(),
            )
        })?;
        let user = user(&environment);
        let bad = |reason: String| SubmitError::Cluster(format!("YARN of {}: {reason}", folder.display()));
        let addresses = addresses(&folder).map_err(|error| bad(error.to_string()))?;
        let resource_manager = ResourceManager::new(&addresses, Some(&user)).map_err(|error| match error {
            ResourceManagerError::NoAddress => bad(
                "no yarn-site.xml there names a ResourceManager (yarn.resourcemanager.hostname); see HADOOP_CONF_DIR"
                    .to_owned(),
            ),
            error => bad(error.to_string()),
        })?;
        let cluster = Arc::new(Cluster {
            watch: Watch::start(resource_manager, Pace::default()),
            storage: self.storage.clone(),
            folder: self.settings.folder.clone().unwrap_or_else(|| folder_of(&user)),
            settings: self.settings.clone(),
            configuration: folder,
            logs: self.logs,
        });
        *known = Some(cluster.clone());
        Ok(cluster)
    }

    async fn search(&self, sought: &Sought) -> Result<Option<Box<dyn Application>>, SubmitError> {
        let cluster = self.cluster().await?;
        let tag = cluster.tag(&sought.identity);
        let found =
            patiently(cluster.settings.lost_after, "a job's application", || cluster.search(&tag)).await?;
        let Some(found) = found else { return Ok(None) };
        tracing::info!(
            job_id = sought.identity.job,
            application = found.report.as_ref().map(|report| &report.id),
            "an application of the job is there already; it is followed"
        );
        Ok(Some(Box::new(cluster.follow(&tag, found, sought)?)))
    }

    async fn start(&self, submission: &Submission) -> Result<Box<dyn Application>, SubmitError> {
        let cluster = self.cluster().await?;
        let sought = &submission.sought;
        let tag = cluster.tag(&sought.identity);
        let launch = Launch::of(cluster.job_folder(&tag)?);
        let mut launcher = launch.pack(submission).await?;
        let launch_tag = launch_tag(&tag, &launch.ticket);
        launcher.sent.tags = vec![tag.clone(), launch_tag.clone()];
        launcher.properties = vec![
            ("spark.yarn.submit.waitAppCompletion".to_owned(), "false".to_owned()),
            ("spark.yarn.maxAppAttempts".to_owned(), "1".to_owned()),
        ];
        if !submission.command_line.sets(WAIT_FOR_CONTEXT.0) {
            launcher.properties.push((WAIT_FOR_CONTEXT.0.to_owned(), WAIT_FOR_CONTEXT.1.to_owned()));
        }
        launch.folder.share_with(&sought.actor).await.map_err(Trouble::from)?;
        launch.issue(&sought.identity).await?;
        let following = cluster.watch.follow(&launch_tag).map_err(Trouble::from)?;
        let running = launch.start(&self.launcher, submission, launcher).await?;
        let Launch { folder, ticket } = launch;
        let mut application = ClusterApplication::new(cluster, folder, tag, ticket, following, sought);
        application.followed.launcher = Some(running);
        application.asks = Some(submission.command_line.driver_asks());
        Ok(Box::new(application))
    }

    async fn folder(&self, identity: &Identity) -> Result<JobFolder, SubmitError> {
        let cluster = self.cluster().await?;
        cluster.job_folder(&cluster.tag(identity))
    }

    async fn clear(&self, identity: &Identity, launches: &Launches) {
        let removed = async {
            let folder = self.folder(identity).await?;
            // YARN tells the end of a driver whose node is lost as if it had seen it.
            folder.call_off(launches, |_| false).await.map_err(Trouble::from)?;
            Ok::<_, SubmitError>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(job_id = identity.job, %error, "what is kept of a job in the cluster could not be removed");
        }
    }
}

impl Backend for ClusterMode {
    fn find<'a>(
        &'a self,
        sought: &'a Sought,
    ) -> Awaited<'a, Result<Option<Box<dyn Application>>, SubmitError>> {
        Box::pin(self.search(sought))
    }

    fn submit<'a>(
        &'a self,
        submission: &'a Submission,
    ) -> Awaited<'a, Result<Box<dyn Application>, SubmitError>> {
        Box::pin(self.start(submission))
    }

    fn launches<'a>(
        &'a self,
        identity: &'a Identity,
        _: &'a Mode,
    ) -> Awaited<'a, Result<Launches, SubmitError>> {
        Box::pin(async { Ok(self.folder(identity).await?.launches().await.map_err(Trouble::from)?) })
    }

    fn forget<'a>(&'a self, identity: &'a Identity, _: &'a Mode, launches: &'a Launches) -> Awaited<'a, ()> {
        Box::pin(self.clear(identity, launches))
    }
}

/// A launch that is to be followed.
struct FoundLaunch {
    ticket: String,
    /// What the cluster knows of its application; nothing when it has forgotten one that had begun, or does not tell of it yet.
    report: Option<Report>,
    /// Its driver has left its last word.
    has_ended: bool,
}

impl Cluster {
    fn tag(&self, identity: &Identity) -> String {
        job_tag(&self.settings.service, &identity.job, &identity.digest)
    }

    fn job_folder(&self, tag: &str) -> Result<JobFolder, SubmitError> {
        Ok(JobFolder::of(&self.storage, &self.folder, tag).map_err(Trouble::from)?)
    }

    fn resource_manager(&self) -> &ResourceManager {
        self.watch.cluster()
    }

    /// Looks once for what there is of a job, and makes sure that nothing else of it can begin.
    async fn search(&self, tag: &str) -> Result<Option<FoundLaunch>, Trouble> {
        let folder = JobFolder::of(&self.storage, &self.folder, tag)?;
        folder.finish_calling_off().await?;
        let prefix = launch_tag(tag, "");
        let of = |report: Report| {
            let ticket = report.tag_after(&prefix)?.to_owned();
            Some(FoundLaunch { ticket, report: Some(report), has_ended: false })
        };
        let over = match look(self.resource_manager(), tag).await? {
            Found::Alive { first, others } => {
                for other in others {
                    // There is none unless somebody has submitted by hand with our tags.
                    tracing::warn!(application = other.id, "a second application of the job is ended");
                    end(self.resource_manager(), &other.id, Patience { most: ENDING, ..Patience::default() })
                        .await
                        .map_err(|error| Trouble { words: error.to_string(), may_pass: true })?;
                }
                return Ok(of(first));
            }
            Found::Over(reports) => reports,
            Found::Nothing => Vec::new(),
        };
        let tickets = folder.tickets().await?;
        let is_known = |found: &FoundLaunch| tickets.contains_key(&found.ticket);
        if let Some(found) = over.into_iter().filter_map(of).find(is_known) {
            return Ok(Some(found));
        }
        let Some((ticket, stage)) = folder.revoke_open(tickets).await? else {
            return Ok(None);
        };
        // A driver has begun, so that YARN has had its application: it may not tell of it yet, or not any more.
        tokio::time::sleep(self.settings.grace).await;
        match look(self.resource_manager(), &launch_tag(tag, &ticket)).await? {
            Found::Alive { first, .. } => Ok(of(first)),
            Found::Over(mut reports) => Ok(of(reports.remove(0))),
            Found::Nothing => {
                Ok(Some(FoundLaunch { ticket, report: None, has_ended: stage == Stage::Ended }))
            }
        }
    }

    fn follow(
        self: &Arc<Self>,
        tag: &str,
        found: FoundLaunch,
        sought: &Sought,
    ) -> Result<ClusterApplication, SubmitError> {
        let following = self.watch.follow(&launch_tag(tag, &found.ticket)).map_err(Trouble::from)?;
        let folder = self.job_folder(tag)?;
        let was_forgotten = found.report.is_none();
        let application =
            ClusterApplication::new(self.clone(), folder, tag.to_owned(), found.ticket, following, sought);
        // One that has left no last word may go on: that it is lost is not said before the time that is borne is over.
        let lost = (was_forgotten && found.has_ended)
            .then(|| "YARN has no application of the job any more, of which a driver had begun".to_owned());
        Ok(ClusterApplication {
            is_adopted: true,
            known: found.report,
            has_begun: was_forgotten,
            lost,
            ..application
        })
    }
}

/// An application in cluster mode, from its launch to its end.
struct ClusterApplication {
    cluster: Arc<Cluster>,
    followed: Followed,
    tag: String,
    following: Following,
    actor: Actor,
    /// What its driver asks for, in words, where it was submitted here.
    asks: Option<String>,
    /// What the cluster last told of it.
    known: Option<Report>,
    /// The same for whoever asks meanwhile.
    shown: PlainMutex<Option<Report>>,
    is_adopted: bool,
    is_accepted: bool,
    has_started: bool,
    /// For how long it had run by then.
    ran_before: Duration,
    is_running: bool,
    /// Its driver has begun, as its ticket says, though the cluster may not tell of it.
    has_begun: bool,
    /// It is nowhere to be found, and why.
    lost: Option<String>,
}

impl ClusterApplication {
    fn new(
        cluster: Arc<Cluster>,
        folder: JobFolder,
        tag: String,
        ticket: String,
        following: Following,
        sought: &Sought,
    ) -> Self {
        Self {
            cluster,
            followed: Followed::of(folder, ticket, sought),
            tag,
            following,
            actor: sought.actor.clone(),
            asks: None,
            known: None,
            shown: PlainMutex::default(),
            is_adopted: false,
            is_accepted: false,
            has_started: false,
            ran_before: Duration::ZERO,
            is_running: false,
            has_begun: false,
            lost: None,
        }
    }

    async fn next_change(&mut self) -> Change {
        loop {
            if let Some(change) = self.now().await {
                return change;
            }
            let wake = self.wake();
            tokio::select! {
                biased;
                () = self.followed.changed() => {}
                sight = self.following.changed() => if let Sight::Seen(mut reports) = sight {
                    self.see(reports.swap_remove(0));
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    fn see(&mut self, report: Report) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        self.known = Some(report);
    }

    /// The next moment at which something is to be looked at though nothing has happened.
    fn wake(&self) -> Option<Instant> {
        let settings = &self.cluster.settings;
        let unknown = match self.following.sight() {
            Sight::Missing { since } | Sight::Unknown { since, .. } => Some(since + settings.lost_after),
            Sight::NotYet | Sight::Seen(_) => None,
        };
        let missing = self.followed.missing_from(settings.grace).filter(|_| self.known.is_none());
        unknown.into_iter().chain(missing).filter(|moment| *moment > Instant::now()).min()
    }

    /// What is to be told at this moment, if anything.
    async fn now(&mut self) -> Option<Change> {
        if self.lost.is_some() {
            return Some(self.ended(None).await);
        }
        let want = self.followed.wanted();
        match want {
            Want::Nothing => {}
            Want::Leave => return self.followed.leave(self.has_started),
            want @ (Want::End | Want::EndNow) => return self.bring_to_end(want).await,
        }
        if let Some(known) = &self.known {
            let known = known.clone();
            if !self.is_accepted && known.is_accepted() {
                self.is_accepted = true;
                return Some(Change::Accepted(self.place(&known)));
            }
            if known.state.is_over() {
                return Some(self.ended(Some(known)).await);
            }
            if known.has_place() && !self.has_started {
                if self.is_adopted {
                    self.ran_before = self.ran_before(&known.id).await;
                }
                self.has_started = true;
                return Some(Change::Started);
            }
            if known.standing() == Standing::Running && !self.is_running {
                self.is_running = true;
                return Some(Change::Running);
            }
        }
        self.give_up().await
    }

    async fn ran_before(&self, id: &str) -> Duration {
        match self.cluster.resource_manager().running_for(id).await {
            Ok(ran) => ran.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(application = id, %error, "nobody tells for how long it has run; its deadline counts from now");
                Duration::ZERO
            }
        }
    }

    /// What is to be told of an application that cannot be seen for long.
    async fn give_up(&mut self) -> Option<Change> {
        let settings = &self.cluster.settings;
        let lost_after = settings.lost_after;
        let for_so_long = format!("{} s", lost_after.as_secs());
        match self.following.sight() {
            Sight::Unknown { since, error }
                if since.elapsed() >= lost_after && self.followed.launcher.is_none() =>
            {
                self.lost = Some(format!(
                    "{} has been unknown for {for_so_long} (yarn.lost_after): {error}",
                    self.name()
                ));
                return Some(self.ended(None).await);
            }
            Sight::Missing { since }
                if since.elapsed() >= lost_after && (self.known.is_some() || self.has_begun) =>
            {
                self.lost =
                    Some(format!("YARN has had no {} for {for_so_long} (yarn.lost_after)", self.name()));
                return Some(self.ended(None).await);
            }
            _ => {}
        }
        let (exit, since) = self.followed.launched?;
        if self.known.is_some() || self.has_begun || since.elapsed() < settings.grace {
            return None;
        }
        match self.was_never_accepted(false).await {
            Ok(true) => Some(never_accepted(exit)),
            Ok(false) => None,
            Err(trouble) => {
                tracing::warn!(
                    tag = self.tag,
                    reason = trouble.words,
                    "it cannot be known yet whether YARN has the application"
                );
                self.followed.ask_again_later().await
            }
        }
    }

    /// Whether spark-submit ended and YARN has, and never will have, an application of it that runs anything, nor has had one
    /// whose driver began. One that is there keeps its ticket, unless it `is_to_end`.
    async fn was_never_accepted(&mut self, is_to_end: bool) -> Result<bool, Trouble> {
        let launch = launch_tag(&self.tag, &self.followed.ticket);
        for is_revoked in [is_to_end, true] {
            if is_revoked {
                self.followed.revoke().await?;
            }
            match look(self.cluster.resource_manager(), &launch).await? {
                Found::Alive { first, .. } => {
                    self.see(first);
                    return Ok(false);
                }
                Found::Over(mut reports) => {
                    self.see(reports.swap_remove(0));
                    return Ok(false);
                }
                Found::Nothing => {}
            }
        }
        // A ticket that is taken is not revoked: then YARN has had it, whatever it tells of it now.
        self.has_begun = self.followed.has_begun().await?;
        Ok(!self.has_begun)
    }

    /// Ends it, step by step: spark-submit, then the application.
    async fn bring_to_end(&mut self, want: Want) -> Option<Change> {
        if self.followed.ends_launcher(want) {
            return None;
        }
        if self.has_begun && self.known.is_none() {
            // There is nothing yet that could be asked to end.
            tokio::time::sleep(FIRST_PAUSE).await;
            if let Some(change) = self.give_up().await {
                return Some(change);
            }
        }
        let Some(known) = self.known.clone() else {
            return match self.was_never_accepted(true).await {
                Ok(true) => match self.followed.launched {
                    Some((exit, _)) => Some(never_accepted(exit)),
                    None => {
                        self.lost = Some("YARN has no application of the job".to_owned());
                        Some(self.ended(None).await)
                    }
                },
                Ok(false) => self.followed.ask_again(),
                Err(trouble) => {
                    tracing::warn!(
                        tag = self.tag,
                        reason = trouble.words,
                        "it cannot be known yet whether there is an application to be ended"
                    );
                    self.followed.ask_again_later().await
                }
            };
        };
        if known.state.is_over() {
            return Some(self.ended(Some(known)).await);
        }
        let patience = Patience { most: ENDING, ..Patience::default() };
        match end(self.cluster.resource_manager(), &known.id, patience).await {
            Ok(Ended::Over(report)) => {
                self.see((*report).clone());
                Some(self.ended(Some(*report)).await)
            }
            Ok(Ended::Unknown) => {
                self.lost = Some(format!("YARN has no {} any more", self.name()));
                Some(self.ended(None).await)
            }
            // It goes on as far as is known, and so does the asking: nobody is told that it is gone before it is.
            Err(error) => {
                tracing::warn!(application = known.id, %error, "the application is not over yet; asking again");
                if matches!(error, EndError::Refused { .. }) {
                    tokio::time::sleep(LONGEST_PAUSE).await;
                }
                self.followed.ask_again()
            }
        }
    }

    fn name(&self) -> String {
        self.known.as_ref().map_or_else(|| "application of the job".to_owned(), |report| report.id.clone())
    }

    fn place(&self, report: &Report) -> Accepted {
        Accepted {
            id: Some(report.id.clone()),
            tracking_url: report
                .tracking_url
                .clone()
                .filter(|url| url.starts_with("http"))
                .or_else(|| self.cluster.resource_manager().page_of(&report.id)),
            is_adopted: self.is_adopted,
        }
    }

    /// The end, with what the driver left. `over` is what the cluster says about it, or it is lost.
    async fn ended(&mut self, over: Option<Report>) -> Change {
        let left = self.followed.gather().await;
        let did_well = over.as_ref().is_some_and(|report| report.standing() == Standing::Succeeded);
        let mut unlogged = None;
        if let Some(report) = over.as_ref().or(self.known.as_ref())
            && self.cluster.logs.want_that_of(did_well, left.has_word())
        {
            unlogged = self.fetch_logs(&report.id).await;
        }
        let outcome = match (over, self.lost.clone()) {
            (Some(report), _) => Outcome::Cluster(ClusterEnd {
                verdict: match report.standing() {
                    Standing::Succeeded => ClusterVerdict::Succeeded,
                    Standing::Killed => ClusterVerdict::Killed,
                    Standing::Failed | Standing::Unknown | Standing::Waiting | Standing::Running => {
                        ClusterVerdict::Failed
                    }
                },
                cause: cause(&report.whole_reason()),
                reason: memory_used(&report.whole_reason()).unwrap_or_else(|| report.reason()),
                id: report.id,
            }),
            (None, lost) => Outcome::Lost(lost.unwrap_or_default()),
        };
        left.end(unlogged, outcome)
    }

    /// Brings the driver's log here; gives in words why there is none, if so.
    async fn fetch_logs(&self, id: &str) -> Option<String> {
        let folder = match self.followed.log_folder() {
            Ok(folder) => folder,
            Err(words) => return Some(words),
        };
        let bounds = Bounds { bytes: self.cluster.logs.bytes, ..Bounds::default() };
        let cluster = self.cluster.resource_manager();
        let configuration = &self.cluster.configuration;
        let log = logs::fetch(cluster, configuration, &self.actor, id, &folder, bounds).await;
        match (log.error, log.output) {
            (logs::Outcome::Missing(words), logs::Outcome::Missing(_)) => Some(words),
            _ => None,
        }
    }
}

impl Application for ClusterApplication {
    fn accepted(&self) -> Option<Accepted> {
        // Told as a change, also of one that was found: then what is told is what holds.
        None
    }

    fn outlives_worker(&self) -> bool {
        true
    }

    fn has_begun_unseen(&self) -> bool {
        self.has_begun && self.known.is_none()
    }

    fn waits_for(&self) -> Option<String> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let report = shown.as_ref().filter(|report| !report.has_place())?;
        let queue = report.queue.as_deref().unwrap_or("default");
        let mut words = format!("{} in the queue {queue:?} of YARN", report.id);
        if let Some(asks) = &self.asks {
            words.push_str(&format!(", whose driver asks for {asks}"));
        }
        let reason = report.reason();
        if !reason.is_empty() {
            words.push_str(&format!("; YARN says: {reason}"));
        }
        words.push_str("; ask for less memory or fewer cores, or choose a queue with room");
        Some(words)
    }

    fn has_run_for(&self) -> Duration {
        self.ran_before
    }

    fn changed(&mut self) -> Awaited<'_, Change> {
        Box::pin(self.next_change())
    }

    fn terminate(&self) {
        self.followed.want(Want::End);
    }

    fn kill(&self) {
        self.followed.want(Want::EndNow);
    }

    fn leave(&self) {
        self.followed.want(Want::Leave);
    }
}

impl std::fmt::Debug for ClusterApplication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterApplication")
            .field("tag", &self.tag)
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{Scripted, listing, report};
    use super::*;

    #[tokio::test]
    async fn a_driver_that_has_begun_is_unseen_until_yarn_tells_of_it() {
        let launch = launch_tag("job", "t");
        let seen = report("application_1_1", "RUNNING", &launch, 1);
        let yarn = Scripted::start(vec![listing(&[]), listing(&[&seen])]).await;
        let resource_manager = ResourceManager::new(std::slice::from_ref(&yarn.address), None).unwrap();
        let quick = Duration::from_millis(5);
        let place = tempfile::tempdir().unwrap();
        let cluster = Arc::new(Cluster {
            configuration: place.path().into(),
            logs: LogWishes { bytes: 0, always: false },
            watch: Watch::start(resource_manager, Pace { quick, slow: quick, away: quick }),
            storage: Storage::default(),
            // Nobody asks it for anything here.
            folder: "hdfs://nowhere:1/x".to_owned(),
            settings: YarnSettings {
                uses_archive: false,
                archive_folder: None,
                folder: None,
                service: "test".to_owned(),
                max_followed: 1,
                grace: quick,
                lost_after: Duration::from_secs(3600),
            },
        });
        let sought = Sought {
            mode: Mode::Yarn,
            actor: Actor::Worker,
            identity: Identity { job: "j".to_owned(), digest: "d".to_owned() },
            directory: place.path().into(),
            working_directory: place.path().into(),
        };
        let found = FoundLaunch { ticket: "t".to_owned(), report: None, has_ended: false };
        let mut application = cluster.follow("job", found, &sought).unwrap();
        assert!(application.has_begun_unseen());
        let change = application.changed().await;
        let Change::Accepted(accepted) = change else { panic!("{change:?}") };
        assert_eq!(accepted.id.as_deref(), Some("application_1_1"));
        assert!(!application.has_begun_unseen());
    }
}
