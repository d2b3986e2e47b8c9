//! Cluster mode on Kubernetes: the driver runs in a pod, spark-submit ends as soon as that is made, and the worker follows it
//! by the API server.
//!
//! Theory of operation
//!
//! All pods of a job have one name, and every launch has a ticket ([`crate::spark::job_folder`]), which its pod carries as a
//! label. Before anything is submitted for a job, its pod is looked for: one whose ticket counts is followed, whether it is
//! alive or over and nobody has told its end. One whose ticket counts no more is removed first. Where there is none, the
//! tickets of all earlier launches are revoked, so that none of them can ever begin, and only then there is another. A
//! launcher that is late meets the pod that is there, and the API server takes no second one of its name; or it is the
//! first, and then the driver that it brings finds its ticket gone.
//!
//! How a driver ended says its container, and what it has to say lies in the job's folder, as on YARN. How spark-submit
//! ended says nothing, but for one that no pod came of. What cannot be asked is unknown, and becomes lost when that lasts
//! for longer than the settings bear.
//!
//! spark-submit first makes the pod, then the config map that the pod cannot start without. One that died in between leaves
//! a pod that waits for ever; it is removed.
//!
//! A pod is ended by deleting it, at first with the time to end that it wants, then with a second. It is never deleted
//! without its kubelet's word (a grace of nothing): the API server would forget it while it may still run, and two drivers of
//! a job could run at once. Others may do so, and the cluster does of machines that it has lost. The next launch is therefore
//! begun only when the one before was called off, and the drivers of which no kubelet has said that they ended have had the
//! time to find that. A pod that went while nobody saw it was not ended by anybody as far as is known: it is lost.
//!
//! That a driver has run for too long is noted at its pod before that is deleted, for whoever follows it next.
//!
//! This module must not know what becomes of a job.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as PlainMutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::access::{Access, access};
use super::api::{Api, ApiError, Deletion, Enter, is_namespace};
use super::follow::{Following, Pace, Sight, Watch};
use super::logs;
use super::pod::{ENDED_FOR, JOB, Pod, Report, SERVICE, State, TICKET};
use crate::config::{KeepPods, KubernetesSettings, Settings};
use crate::spark::client_mode::{ClientMode, Launcher};
use crate::spark::elsewhere::{
    FIRST_PAUSE, LONGEST_PAUSE, LogWishes, Trouble, folder_of, job_tag, patiently, sleep_until, user,
};
use crate::spark::followed::{Followed, Left, Want, never_accepted};
use crate::spark::guard::ExitStatus;
use crate::spark::installation::Environment;
use crate::spark::job_folder::{FolderError, JobFolder};
use crate::spark::launch::Launch;
use crate::spark::policy::kubernetes_server;
use crate::spark::{
    Accepted, Application, Awaited, Backend, Cause, Change, ClusterEnd, ClusterVerdict, Identity, Launches,
    Mode, Namespace, Outcome, Sought, Submission, SubmitError,
};
use crate::storage::Storage;

/// The property that names the image of drivers and executors, and that of drivers alone.
const IMAGE: &str = "spark.kubernetes.container.image";
const DRIVER_IMAGE: &str = "spark.kubernetes.driver.container.image";
/// The property that names whose rights a driver has.
const SERVICE_ACCOUNT: &str = "spark.kubernetes.authenticate.driver.serviceAccountName";
/// Where spark-submit puts what goes to a driver, in the job's folder.
const UPLOAD: &str = ".upload";
/// The grace of a pod that is to end at once: the least with which the word that it has ended is still its kubelet's.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How often a pod that is to end is looked for, and how often that it is to end is said again.
const LOOK: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_secs(15);
/// How long the removal of a pod that counts no more is waited for, before it is told that it does not go.
const REMOVAL: Duration = Duration::from_secs(120);
/// How long a pod whose container has ended is waited for.
const STAYS: Duration = Duration::from_secs(5);
/// How it is noted at a pod that it is deleted because its driver ran for too long.
const RUN_DEADLINE: &str = "run-deadline";
/// How long bringing a log may take, and bringing that of a driver that is about to be ended.
const LOG: Duration = Duration::from_secs(60);
const LOG_BEFORE_END: Duration = Duration::from_secs(5);

/// The name of a job's pods; a label of DNS.
#[must_use]
pub fn name_of(tag: &str) -> String {
    format!("{tag}-driver")
}

/// Runs drivers in pods.
pub struct PodMode {
    launcher: Arc<ClientMode>,
    storage: Storage,
    settings: KubernetesSettings,
    /// The API server that the operator names as the master of all jobs, if any.
    own_server: Option<String>,
    logs: LogWishes,
    /// Each made with the first job that needs it.
    reached: Mutex<Reached>,
}

/// What has been reached so far.
#[derive(Default)]
struct Reached {
    /// By the API server.
    servers: HashMap<String, Access>,
    clusters: HashMap<Namespace, Arc<Cluster>>,
}

/// One namespace of a cluster, and the HDFS that its drivers use.
struct Cluster {
    logs: LogWishes,
    watch: Watch,
    /// Where the folder of a job with this tag is.
    folder_of: FolderOf,
    settings: KubernetesSettings,
}

type FolderOf = Box<dyn Fn(&str) -> Result<JobFolder, FolderError> + Send + Sync>;

impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        Self { may_pass: error.may_pass(), words: error.to_string() }
    }
}

/// What sets the pods of this service apart, as the value of a label: the settings may say anything.
fn service_label(service: &str) -> String {
    job_tag(service, "", "")
}

impl PodMode {
    /// A back end whose launchers are started by `launcher`. Touches nothing.
    #[must_use]
    pub fn new(settings: &Settings, launcher: Arc<ClientMode>) -> Self {
        Self {
            launcher,
            storage: Storage::of(settings),
            settings: settings.kubernetes.clone(),
            own_server: kubernetes_server(&settings.spark.master),
            logs: LogWishes::of(settings),
            reached: Mutex::default(),
        }
    }

    /// The cluster where a job is to run. One that cannot be reached is looked for again by the next job.
    async fn cluster(&self, mode: &Mode) -> Result<Arc<Cluster>, SubmitError> {
        let Mode::Kubernetes(place) = mode else {
            return Err(SubmitError::Cluster("the job has no Kubernetes master".to_owned()));
        };
        let known = {
            let reached = self.reached.lock().await;
            if let Some(cluster) = reached.clusters.get(place) {
                return Ok(cluster.clone());
            }
            reached.servers.get(&place.server).cloned()
        };
        // Finding the way in may take its time, and other clusters do not wait for it.
        let environment = self.launcher.environment();
        let bad = |reason: String| SubmitError::Cluster(format!("Kubernetes at {}: {reason}", place.server));
        let access = match known {
            Some(access) => access,
            None => {
                let context = self.settings.context.as_deref();
                access(&environment, context, &place.server, self.own_server.as_deref()).await.map_err(bad)?
            }
        };
        let namespace = place
            .name
            .clone()
            .or_else(|| self.settings.namespace.clone())
            .unwrap_or_else(|| access.namespace.clone());
        if !is_namespace(&namespace) {
            return Err(bad(format!("{namespace:?} is no name of a namespace (spark.kubernetes.namespace)")));
        }
        let folder = self.settings.folder.clone().unwrap_or_else(|| folder_of(&user(&environment)));
        let api = Api::new(access.client.clone(), &place.server, &namespace)
            .entered_by(self.enter(environment, &place.server));
        let storage = self.storage.clone();
        let cluster = Arc::new(Cluster {
            watch: Watch::new(api, &service_label(&self.settings.service), Pace::default()),
            folder_of: Box::new(move |tag| JobFolder::of(&storage, &folder, tag)),
            settings: self.settings.clone(),
            logs: self.logs,
        });
        let mut reached = self.reached.lock().await;
        reached.servers.insert(place.server.clone(), access);
        // All jobs of a place share the one that was there first, and its watch.
        Ok(reached.clusters.entry(place.clone()).or_insert(cluster).clone())
    }

    /// What finds the way to `server` once more.
    fn enter(&self, environment: Environment, server: &str) -> Enter {
        let (context, server, own) =
            (self.settings.context.clone(), server.to_owned(), self.own_server.clone());
        Box::new(move || {
            let (environment, context) = (environment.clone(), context.clone());
            let (server, own) = (server.clone(), own.clone());
            Box::pin(async move {
                let found = access(&environment, context.as_deref(), &server, own.as_deref()).await?;
                Ok(found.client)
            })
        })
    }

    async fn search(&self, sought: &Sought) -> Result<Option<Box<dyn Application>>, SubmitError> {
        let cluster = self.cluster(&sought.mode).await?;
        let tag = cluster.tag(&sought.identity);
        let lost_after = cluster.settings.lost_after;
        let found = patiently(lost_after, "a job's pod", || cluster.search(&tag)).await?;
        let Some(found) = found else { return Ok(None) };
        tracing::info!(
            job_id = sought.identity.job,
            pod = name_of(&tag),
            namespace = cluster.api().namespace(),
            "a pod of the job is there already; it is followed"
        );
        Ok(Some(Box::new(cluster.take_up(tag, found, sought)?)))
    }

    async fn start(&self, submission: &Submission) -> Result<Box<dyn Application>, SubmitError> {
        let sought = &submission.sought;
        let cluster = self.cluster(&sought.mode).await?;
        let tag = cluster.tag(&sought.identity);
        let launch = Launch::of(cluster.job_folder(&tag)?);
        let properties = self.properties(submission, &cluster, &tag, &launch)?;
        let launcher = Launcher { properties, ..launch.pack(submission).await? };
        launch.issue(&sought.identity).await?;
        let running = launch.start(&self.launcher, submission, launcher).await?;
        let mut application = PodApplication::new(cluster, launch.folder, tag, launch.ticket, sought);
        application.followed.launcher = Some(running);
        application.asks = Some(submission.command_line.driver_asks());
        Ok(Box::new(application))
    }

    /// What spark-submit is told beside what the job says.
    fn properties(
        &self,
        submission: &Submission,
        cluster: &Cluster,
        tag: &str,
        launch: &Launch,
    ) -> Result<Vec<(String, String)>, SubmitError> {
        let Launch { folder, ticket } = launch;
        let service = service_label(&self.settings.service);
        let label = |name: &str| format!("spark.kubernetes.driver.label.{name}");
        let mut properties = vec![
            ("spark.kubernetes.submission.waitAppCompletion".to_owned(), "false".to_owned()),
            ("spark.kubernetes.namespace".to_owned(), cluster.api().namespace().to_owned()),
            ("spark.kubernetes.driver.pod.name".to_owned(), name_of(tag)),
            (label(SERVICE), service),
            (label(JOB), tag.to_owned()),
            (label(TICKET), ticket.clone()),
            ("spark.kubernetes.file.upload.path".to_owned(), format!("{}/{ticket}{UPLOAD}", folder.url())),
        ];
        let id = &submission.sought.identity.job;
        if !id.chars().any(char::is_control) {
            // For people who look at the pod.
            properties
                .push(("spark.kubernetes.driver.annotation.spark-runtime/job-id".to_owned(), id.clone()));
        }
        if let Some(context) = &self.settings.context {
            properties.push(("spark.kubernetes.context".to_owned(), context.clone()));
        }
        let says = |property: &str| self.launcher.says(submission, property);
        if !says(IMAGE) && !says(DRIVER_IMAGE) {
            let Some(image) = &self.settings.image else {
                return Err(SubmitError::Cluster(format!(
                    "nothing says in which image drivers run: set kubernetes.image, or {IMAGE} for the job or by the policy"
                )));
            };
            properties.push((IMAGE.to_owned(), image.clone()));
        }
        if let Some(account) = &self.settings.service_account
            && !says(SERVICE_ACCOUNT)
        {
            properties.push((SERVICE_ACCOUNT.to_owned(), account.clone()));
        }
        Ok(properties)
    }

    async fn launches(&self, identity: &Identity, mode: &Mode) -> Result<Launches, SubmitError> {
        let cluster = self.cluster(mode).await?;
        let folder = cluster.job_folder(&cluster.tag(identity))?;
        Ok(folder.launches().await.map_err(Trouble::from)?)
    }

    async fn clear(&self, identity: &Identity, mode: &Mode, launches: &Launches) {
        let removed = async {
            let cluster = self.cluster(mode).await?;
            cluster.clear(&cluster.tag(identity), launches).await?;
            Ok::<_, SubmitError>(())
        };
        if let Err(error) = removed.await {
            tracing::warn!(job_id = identity.job, %error, "what is kept of a job in the cluster could not be removed");
        }
    }
}

impl Backend for PodMode {
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
        mode: &'a Mode,
    ) -> Awaited<'a, Result<Launches, SubmitError>> {
        Box::pin(self.launches(identity, mode))
    }

    fn forget<'a>(
        &'a self,
        identity: &'a Identity,
        mode: &'a Mode,
        launches: &'a Launches,
    ) -> Awaited<'a, ()> {
        Box::pin(self.clear(identity, mode, launches))
    }
}

/// A launch that is to be followed.
struct FoundLaunch {
    ticket: String,
    /// What is known of its pod; nothing when one is gone whose driver had begun.
    report: Option<Report>,
}

/// What there is under the name of a job's pods.
enum There {
    /// Nothing.
    Nothing,
    /// A pod whose launch counts.
    Counts(String, Report),
    /// A pod whose launch counts no more: whatever it is about to do, it can do nothing of the job.
    CountsNoMore(Report),
}

impl Cluster {
    fn tag(&self, identity: &Identity) -> String {
        job_tag(&self.settings.service, &identity.job, &identity.digest)
    }

    fn job_folder(&self, tag: &str) -> Result<JobFolder, SubmitError> {
        Ok((self.folder_of)(tag).map_err(Trouble::from)?)
    }

    fn api(&self) -> &Api {
        self.watch.api()
    }

    /// The pod under the name of a job's pods; one that is somebody else's stands in the way.
    async fn pod(&self, tag: &str) -> Result<Option<Report>, Trouble> {
        let name = name_of(tag);
        let Some(report) = self.api().pod(&name).await?.map(Pod::report) else { return Ok(None) };
        if report.job.as_deref() == Some(tag) {
            return Ok(Some(report));
        }
        Err(Trouble {
            words: format!("the pod {}:{name} is none of this service's; remove it", self.api().namespace()),
            may_pass: false,
        })
    }

    async fn look(&self, tag: &str, folder: &JobFolder) -> Result<There, Trouble> {
        let Some(report) = self.pod(tag).await? else { return Ok(There::Nothing) };
        let tickets = folder.tickets().await?;
        Ok(match report.ticket.clone().filter(|ticket| tickets.contains_key(ticket)) {
            Some(ticket) => There::Counts(ticket, report),
            None => There::CountsNoMore(report),
        })
    }

    /// Looks once for what there is of a job, and makes sure that nothing else of it can begin.
    async fn search(&self, tag: &str) -> Result<Option<FoundLaunch>, Trouble> {
        let folder = (self.folder_of)(tag)?;
        folder.finish_calling_off().await?;
        match self.look(tag, &folder).await? {
            There::Counts(ticket, report) => return Ok(Some(FoundLaunch { ticket, report: Some(report) })),
            There::CountsNoMore(report) => self.remove(&report).await?,
            There::Nothing => {}
        }
        let tickets = folder.tickets().await?;
        let Some((ticket, _)) = folder.revoke_open(tickets).await? else {
            return Ok(None);
        };
        // A driver has begun whose pod may have been made since it was looked for, or is gone.
        let report = self.pod(tag).await?.filter(|report| report.ticket.as_ref() == Some(&ticket));
        Ok(Some(FoundLaunch { ticket, report }))
    }

    /// Removes a pod that counts no more, and waits until it is gone.
    async fn remove(&self, report: &Report) -> Result<(), Trouble> {
        tracing::info!(
            pod = report.name,
            namespace = self.api().namespace(),
            "a pod of an earlier launch is removed"
        );
        let until = Instant::now() + REMOVAL;
        let mut asked: Option<Instant> = None;
        loop {
            if asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN) {
                if self.api().delete(&report.name, &report.uid, Some(AT_ONCE)).await? == Deletion::Gone {
                    return Ok(());
                }
                asked = Some(Instant::now());
            }
            match self.api().pod(&report.name).await?.map(Pod::report) {
                Some(there) if there.uid == report.uid => {}
                _ => return Ok(()),
            }
            if Instant::now() >= until {
                let words = format!(
                    "the pod {}:{} of an earlier launch has not gone for {} s after it was deleted; see that its machine answers",
                    self.api().namespace(),
                    report.name,
                    REMOVAL.as_secs()
                );
                return Err(Trouble { words, may_pass: true });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes what is left of these launches. What came after them is somebody else's.
    async fn clear(&self, tag: &str, launches: &Launches) -> Result<(), Trouble> {
        let folder = (self.folder_of)(tag)?;
        let pod = self.pod(tag).await;
        let over = match &pod {
            Ok(Some(report)) if report.is_certainly_over() => report.ticket.as_deref(),
            _ => None,
        };
        let called_off = folder.call_off(launches, |ticket| over == Some(ticket)).await;
        // Each of the two is worth to be done without the other.
        let cleared = match pod {
            Ok(Some(report)) => self.clear_pod(&report, launches, &folder).await,
            Ok(None) => Ok(()),
            Err(trouble) => Err(trouble),
        };
        called_off?;
        cleared
    }

    /// Removes a pod, as far as it is not to be kept.
    async fn clear_pod(
        &self,
        report: &Report,
        launches: &Launches,
        folder: &JobFolder,
    ) -> Result<(), Trouble> {
        let is_kept = match (&report.state, self.settings.keep_pods) {
            (State::Over(_), KeepPods::Always) => true,
            (State::Over(over), KeepPods::Failed) => !over.succeeded,
            // One that is not over counts no more.
            _ => false,
        };
        let is_of =
            |launches: &Launches| report.ticket.as_ref().is_some_and(|ticket| launches.0.contains(ticket));
        let counts_no_more =
            is_of(launches) || (report.is_certainly_over() && !is_of(&folder.launches().await?));
        if counts_no_more && !is_kept {
            self.api().delete(&report.name, &report.uid, None).await?;
        }
        Ok(())
    }

    fn take_up(
        self: &Arc<Self>,
        tag: String,
        found: FoundLaunch,
        sought: &Sought,
    ) -> Result<PodApplication, SubmitError> {
        let folder = self.job_folder(&tag)?;
        let lost = found.report.is_none().then(|| {
            format!(
                "the pod {}:{} is gone, of which a driver had begun; {}",
                self.api().namespace(),
                name_of(&tag),
                what_to_do(self.api().namespace(), &name_of(&tag), None)
            )
        });
        let application = PodApplication::new(self.clone(), folder, tag, found.ticket, sought);
        if let Some(report) = &found.report {
            application.show(report);
        }
        Ok(PodApplication { is_adopted: true, known: found.report, lost, ..application })
    }
}

/// A driver in a pod, from its launch to its end.
struct PodApplication {
    cluster: Arc<Cluster>,
    followed: Followed,
    tag: String,
    name: String,
    following: Following,
    /// What its driver asks for, in words, where it was submitted here.
    asks: Option<String>,
    /// What the API server last told of it.
    known: Option<Report>,
    /// When it was first known.
    known_since: Instant,
    /// The same for whoever asks meanwhile.
    shown: PlainMutex<Option<Report>>,
    is_adopted: bool,
    is_accepted: bool,
    has_started: bool,
    is_running: bool,
    /// It is gone, as it is known now.
    is_gone: bool,
    /// Nobody has seen what it was when it went.
    is_gone_unseen: bool,
    /// All that it needs to start was looked for, and is there or not to be had.
    is_whole: bool,
    /// When it was last asked to end, by us.
    asked: Option<(Want, Instant)>,
    /// Since when it is to end.
    ending_since: Option<Instant>,
    /// Since when its container has ended, though its pod is there.
    over_since: Option<Instant>,
    /// It was told that it takes long.
    is_late_told: bool,
    /// Its deletion was refused, and is not asked for before that.
    refused_until: Option<Instant>,
    /// It is to end because it ran for too long.
    ran_too_long: AtomicBool,
    /// For how long it had run when it was taken up.
    ran_before: Duration,
    /// Its log was brought here before it was ended, or why not.
    logged: Option<Result<(), String>>,
    /// It is nowhere to be found, and why.
    lost: Option<String>,
}

impl PodApplication {
    fn new(cluster: Arc<Cluster>, folder: JobFolder, tag: String, ticket: String, sought: &Sought) -> Self {
        let name = name_of(&tag);
        Self {
            following: cluster.watch.follow(&name),
            cluster,
            followed: Followed::of(folder, ticket, sought),
            tag,
            name,
            asks: None,
            known: None,
            known_since: Instant::now(),
            shown: PlainMutex::default(),
            is_adopted: false,
            is_accepted: false,
            has_started: false,
            is_running: false,
            is_gone: false,
            is_gone_unseen: false,
            is_whole: false,
            asked: None,
            ending_since: None,
            over_since: None,
            is_late_told: false,
            refused_until: None,
            ran_too_long: AtomicBool::new(false),
            ran_before: Duration::ZERO,
            logged: None,
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
                sight = self.following.changed() => self.sighted(sight),
                () = sleep_until(wake) => {}
            }
        }
    }

    fn show(&self, report: &Report) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
    }

    /// Takes over what is known of its pod. One of another launch under its name says nothing about it.
    fn see(&mut self, report: Report) {
        if report.ticket.as_ref() != Some(&self.followed.ticket) {
            return;
        }
        if self.known.is_none() {
            self.known_since = Instant::now();
        }
        self.show(&report);
        self.known = Some(report);
    }

    fn sighted(&mut self, sight: Sight) {
        match sight {
            Sight::There(report) => self.see(*report),
            Sight::Gone { last: Some(last), is_told, .. }
                if last.ticket.as_ref() == Some(&self.followed.ticket) =>
            {
                self.see(*last);
                // What it was before a gap is not what it was when it went.
                self.is_gone |= is_told;
            }
            Sight::Gone { .. } | Sight::NotYet | Sight::Unknown { .. } => {}
        }
    }

    /// The next moment at which something is to be looked at though nothing has happened.
    fn wake(&self) -> Option<Instant> {
        let settings = &self.cluster.settings;
        let sight = match self.following.sight() {
            Sight::Unknown { since, .. } => Some(since + settings.lost_after),
            Sight::Gone { since, .. } if self.known.is_some() => Some(since + FIRST_PAUSE),
            Sight::Gone { .. } | Sight::NotYet | Sight::There(_) => None,
        };
        let missing = self.followed.missing_from(settings.grace).filter(|_| self.known.is_none());
        let part =
            (self.followed.launcher.is_none() && self.known.is_some() && !self.is_whole && !self.has_started)
                .then(|| self.known_since + settings.grace);
        let moments = sight.into_iter().chain(missing).chain(part);
        moments.filter(|moment| *moment > Instant::now()).min()
    }

    /// What is to be told at this moment, if anything.
    async fn now(&mut self) -> Option<Change> {
        if self.lost.is_some() {
            return Some(self.ended(false).await);
        }
        let want = self.followed.wanted();
        match want {
            Want::Nothing => {}
            Want::Leave => return self.followed.leave(self.has_started),
            want @ (Want::End | Want::EndNow) => return self.bring_to_end(want).await,
        }
        if let Some(known) =
            self.known.clone().filter(|known| known.is_deleted && known.state == State::Running)
            && !self.is_gone
            && self.logged.is_none()
        {
            // Somebody else ends it, and its log goes with it.
            self.logged = Some(self.fetch_log(&known, LOG_BEFORE_END).await);
        }
        if let Some(known) = &self.known {
            // As long as spark-submit makes what the pod needs it is still being submitted.
            let is_made = self.followed.launcher.is_none() || !matches!(known.state, State::Waiting(_));
            if !self.is_accepted && is_made {
                self.is_accepted = true;
                return Some(Change::Accepted(self.place()));
            }
            if self.is_gone && !self.has_started && !known.is_over() {
                return self.gone_before_it_began().await;
            }
            if known.is_over() || self.is_gone {
                return Some(self.ended(true).await);
            }
            if known.state == State::Running && !self.has_started {
                self.has_started = true;
                if self.is_adopted {
                    let since = known.since.map(|since| Timestamp::now().duration_since(since));
                    self.ran_before = since.and_then(|ran| ran.try_into().ok()).unwrap_or_default();
                }
                return Some(Change::Started);
            }
            if known.state == State::Running && !self.is_running {
                self.is_running = true;
                return Some(Change::Running);
            }
        }
        if let Some(change) = self.is_half_made().await {
            return Some(change);
        }
        self.give_up().await
    }

    /// What is to be told of a pod that went before its driver began. spark-submit itself removes one for which it cannot make
    /// all that it needs, and then nobody has ended the job.
    async fn gone_before_it_began(&mut self) -> Option<Change> {
        if self.followed.launcher.is_some() {
            // Its end says more.
            return None;
        }
        let may_be_its_launcher = match &self.followed.launched {
            Some((exit, _)) => exit.status != ExitStatus::Code(0),
            None => true,
        };
        if !may_be_its_launcher && !self.is_gone_unseen {
            return Some(self.ended(true).await);
        }
        let revoked = async {
            self.followed.revoke().await?;
            Ok::<_, Trouble>(self.followed.folder.tickets().await?.contains_key(&self.followed.ticket))
        };
        match revoked.await {
            // It began all the same.
            Ok(true) if self.is_gone_unseen => {
                self.lost = Some(self.went_unseen());
                Some(self.ended(false).await)
            }
            Ok(true) => Some(self.ended(true).await),
            Ok(false) => Some(match self.followed.launched.take() {
                Some((exit, _)) if may_be_its_launcher => never_accepted(exit),
                _ if self.is_gone_unseen => self
                    .never_began("it went while nobody could see it, and its driver never began".to_owned()),
                Some((exit, _)) => never_accepted(exit),
                None => self.never_began("it was deleted before its driver began".to_owned()),
            }),
            Err(trouble) => {
                tracing::warn!(
                    pod = self.name,
                    reason = trouble.words,
                    "it cannot be known yet whether a driver began"
                );
                self.followed.ask_again_later().await
            }
        }
    }

    /// The end of a pod whose driver never began.
    fn never_began(&self, reason: String) -> Change {
        let outcome = Outcome::Cluster(ClusterEnd {
            id: self.id(),
            verdict: ClusterVerdict::Failed,
            cause: Cause::Other,
            reason,
        });
        Left::default().end(None, outcome)
    }

    /// The end of a pod that cannot start because spark-submit died while it made what the pod needs, if it is one.
    async fn is_half_made(&mut self) -> Option<Change> {
        let known = self.known.clone()?;
        let is_due = self.followed.launcher.is_none()
            && !self.is_whole
            && !self.has_started
            && self.known_since.elapsed() >= self.cluster.settings.grace;
        if !is_due {
            return None;
        }
        for config_map in &known.config_maps {
            match self.cluster.api().has_config_map(config_map).await {
                Ok(true) => {}
                Ok(false) => {
                    let why = format!(
                        "it can never start, since there is no config map {config_map}: spark-submit has ended before it made \
                         that, or somebody has named a wrong one"
                    );
                    return self.remove_half_made(&known, why).await;
                }
                Err(error) => {
                    // It is no more than a short cut to what the deadline for its place would say.
                    tracing::debug!(%error, config_map, "it cannot be known whether a config map is there");
                    break;
                }
            }
        }
        self.is_whole = true;
        None
    }

    async fn remove_half_made(&mut self, known: &Report, why: String) -> Option<Change> {
        let removed = async {
            self.followed.revoke().await?;
            self.cluster.remove(known).await
        };
        if let Err(trouble) = removed.await {
            tracing::warn!(
                pod = self.name,
                reason = trouble.words,
                "a pod that cannot start is not gone yet; asking again"
            );
            return self.followed.ask_again_later().await;
        }
        Some(self.never_began(why))
    }

    /// What is to be told of a pod that cannot be seen for long.
    async fn give_up(&mut self) -> Option<Change> {
        let settings = &self.cluster.settings;
        let lost_after = settings.lost_after;
        match self.following.sight() {
            Sight::Unknown { since, error }
                if since.elapsed() >= lost_after && self.followed.launcher.is_none() =>
            {
                self.lost = Some(format!(
                    "{} has been unknown for {} s (kubernetes.lost_after): {error}; {}",
                    self.id(),
                    lost_after.as_secs(),
                    self.what_to_do()
                ));
                return Some(self.ended(false).await);
            }
            // The stream knows of none; it may be older than what was asked for otherwise.
            Sight::Gone { since, .. } if since.elapsed() >= FIRST_PAUSE && self.known.is_some() => {
                return self.look_whether_gone().await;
            }
            _ => {}
        }
        let (exit, since) = self.followed.launched?;
        if self.known.is_some() || since.elapsed() < settings.grace {
            return None;
        }
        match self.was_never_accepted(false).await {
            Ok(true) => Some(never_accepted(exit)),
            Ok(false) => self.followed.ask_again(),
            Err(trouble) => {
                tracing::warn!(
                    pod = self.name,
                    reason = trouble.words,
                    "it cannot be known yet whether there is a pod of the job"
                );
                self.followed.ask_again_later().await
            }
        }
    }

    /// What whoever reads of a lost driver can do.
    fn what_to_do(&self) -> String {
        what_to_do(self.cluster.api().namespace(), &self.name, self.known.as_ref())
    }

    fn went_unseen(&self) -> String {
        format!("the pod {} went while nobody could see what became of it; {}", self.id(), self.what_to_do())
    }

    async fn look_whether_gone(&mut self) -> Option<Change> {
        let uid = self.known.as_ref().map(|known| known.uid.clone());
        match self.cluster.api().pod(&self.name).await.map(|pod| pod.map(Pod::report)) {
            Ok(Some(report)) if Some(&report.uid) == uid.as_ref() => self.see(report),
            Ok(_) => {
                self.is_gone = true;
                let is_told = self
                    .known
                    .as_ref()
                    .is_some_and(|known| known.is_deleted || known.is_over() || known.disruption.is_some());
                if is_told {
                    return Some(self.ended(true).await);
                }
                self.is_gone_unseen = true;
                if !self.has_started {
                    return self.gone_before_it_began().await;
                }
                // Somebody may have deleted it, or its machine is lost, or it was done and collected: nobody has seen it.
                self.lost = Some(self.went_unseen());
                return Some(self.ended(false).await);
            }
            Err(error) => {
                tracing::debug!(pod = self.name, %error, "it cannot be known whether a pod is gone")
            }
        }
        self.followed.ask_again_later().await
    }

    /// Whether spark-submit ended and there is no pod of it, and never will be one that runs anything. One that is there keeps
    /// its ticket, unless it `is_to_end`. One of another launch that counts is followed in its place.
    async fn was_never_accepted(&mut self, is_to_end: bool) -> Result<bool, Trouble> {
        for is_revoked in [is_to_end, true] {
            if is_revoked {
                self.followed.revoke().await?;
            }
            match self.cluster.look(&self.tag, &self.followed.folder).await? {
                There::Counts(ticket, report) => {
                    if ticket != self.followed.ticket {
                        // The API server took no second pod of this name.
                        tracing::info!(pod = self.name, "a pod of the job was there already; it is followed");
                        self.followed.revoke().await?;
                        self.followed.ticket = ticket;
                        self.is_adopted = true;
                    }
                    self.see(report);
                    return Ok(false);
                }
                There::CountsNoMore(report) if report.ticket.as_ref() == Some(&self.followed.ticket) => {
                    self.see(report);
                    return Ok(false);
                }
                There::CountsNoMore(report) => self.cluster.remove(&report).await?,
                There::Nothing => {}
            }
        }
        if self.followed.has_begun().await? {
            // It was there, and went before anybody could see it.
            self.lost = Some(format!(
                "the pod {} came and went while nobody could see it, and its driver had begun; {}",
                self.id(),
                self.what_to_do()
            ));
            return Ok(false);
        }
        Ok(true)
    }

    /// Ends it, step by step: spark-submit, then the pod.
    async fn bring_to_end(&mut self, want: Want) -> Option<Change> {
        if self.followed.ends_launcher(want) {
            return None;
        }
        let Some(known) = self.known.clone() else {
            return match self.was_never_accepted(true).await {
                Ok(true) => match self.followed.launched {
                    Some((exit, _)) => Some(never_accepted(exit)),
                    None => {
                        self.lost = Some(format!("there is no pod of the job; {}", self.what_to_do()));
                        Some(self.ended(false).await)
                    }
                },
                Ok(false) => self.followed.ask_again(),
                Err(trouble) => {
                    tracing::warn!(
                        pod = self.name,
                        reason = trouble.words,
                        "it cannot be known yet whether there is a pod to be ended"
                    );
                    self.followed.ask_again_later().await
                }
            };
        };
        // Once it was asked to end, its pod is to go; where that stays, its kubelet's word counts that nothing of it runs.
        let is_over = match self.asked {
            None => known.is_over(),
            Some(_) if known.is_certainly_over() => {
                self.over_since.get_or_insert_with(Instant::now).elapsed() >= STAYS
            }
            Some(_) => false,
        };
        if self.is_gone || is_over {
            return Some(self.ended(true).await);
        }
        if self.logged.is_none() && matches!(known.state, State::Running | State::Over(_)) {
            // It goes with the pod.
            self.logged = Some(self.fetch_log(&known, LOG_BEFORE_END).await);
        }
        let since = *self.ending_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= REMOVAL && !self.is_late_told {
            self.is_late_told = true;
            tracing::warn!(
                pod = self.name,
                namespace = self.cluster.api().namespace(),
                node = known.node,
                "the pod has not gone for {} s after it was to end; see that its machine answers, and which finalizers it has",
                REMOVAL.as_secs()
            );
        }
        let is_due = match self.asked {
            None => true,
            Some((before, when)) => before < want || when.elapsed() >= ASK_AGAIN,
        } && self.refused_until.is_none_or(|until| Instant::now() >= until);
        if is_due {
            self.note_why(&known).await;
            let grace = (want == Want::EndNow).then_some(AT_ONCE);
            match self.cluster.api().delete(&self.name, &known.uid, grace).await {
                Ok(Deletion::Asked) => self.asked = Some((want, Instant::now())),
                Ok(Deletion::Gone) => {
                    self.is_gone = true;
                    return Some(self.ended(true).await);
                }
                Err(error) => {
                    tracing::warn!(pod = self.name, %error, "the pod cannot be deleted; asking again");
                    let pause = if error.may_pass() { FIRST_PAUSE } else { LONGEST_PAUSE };
                    // It may end by itself meanwhile, and that is looked for below.
                    self.refused_until = Some(Instant::now() + pause);
                }
            }
        }
        // It goes on as far as is known, and so does the looking: nobody is told that it is gone before it is.
        match self.cluster.api().pod(&self.name).await.map(|pod| pod.map(Pod::report)) {
            Ok(Some(report)) if report.uid == known.uid => self.see(report),
            Ok(_) => {
                // What it was last may be told by the stream yet.
                let last = self.following.sight();
                self.sighted(last);
                self.is_gone = true;
                return Some(self.ended(true).await);
            }
            Err(error) => {
                tracing::warn!(pod = self.name, %error, "it cannot be known whether the pod is gone; asking again")
            }
        }
        tokio::time::sleep(LOOK).await;
        self.followed.ask_again()
    }

    /// Notes at the pod why it is about to be deleted, for whoever follows it when this process is no more.
    async fn note_why(&mut self, known: &Report) {
        if !self.ran_too_long.load(Ordering::Relaxed) || self.asked.is_some() {
            return;
        }
        if let Err(error) = self.cluster.api().note(&self.name, &known.uid, ENDED_FOR, RUN_DEADLINE).await {
            tracing::warn!(pod = self.name, %error, "why the pod is deleted could not be noted at it");
        }
    }

    /// The name by which spark-submit and people know it.
    fn id(&self) -> String {
        format!("{}:{}", self.cluster.api().namespace(), self.name)
    }

    fn place(&self) -> Accepted {
        // Where a driver shows its progress can be reached inside of the cluster only.
        Accepted { id: Some(self.id()), tracking_url: None, is_adopted: self.is_adopted }
    }

    /// The end, with what the driver left. `is_known` where the API server says that it is over or gone; else it is lost.
    async fn ended(&mut self, is_known: bool) -> Change {
        let left = self.followed.gather().await;
        let known = self.known.clone();
        let end = known.as_ref().filter(|_| is_known).map(|known| end_of(self.id(), known, left.has_word()));
        let did_well = end.as_ref().is_some_and(|end| end.verdict == ClusterVerdict::Succeeded);
        let mut unlogged = None;
        if let Some(known) = &known
            && self.cluster.logs.want_that_of(did_well, left.has_word())
        {
            let fetched = match self.logged.take() {
                // What was brought while it ran is not the whole, and better than nothing.
                Some(before) if self.is_gone => before,
                before => {
                    let fetched = self.fetch_log(known, LOG).await;
                    if before == Some(Ok(())) { Ok(()) } else { fetched }
                }
            };
            unlogged = fetched.err();
        }
        let outcome = match end {
            Some(end) => Outcome::Cluster(end),
            None => Outcome::Lost(self.lost.clone().unwrap_or_default()),
        };
        left.end(unlogged, outcome)
    }

    /// Brings the driver's log here.
    ///
    /// # Errors
    /// Why there is none, in words.
    async fn fetch_log(&self, known: &Report, whole: Duration) -> Result<(), String> {
        let folder = self.followed.log_folder()?;
        let bytes = self.cluster.logs.bytes;
        logs::fetch(self.cluster.api(), &self.name, &known.container, &folder, bytes, whole).await
    }
}

/// What can be done about a driver of which nobody says that it has ended.
fn what_to_do(namespace: &str, name: &str, known: Option<&Report>) -> String {
    let machine = match known.and_then(|known| known.node.as_deref()) {
        Some(node) => format!("see that the machine {node} answers, or is off"),
        None => "see that its machine answers, or is off".to_owned(),
    };
    format!(
        "a driver may still run until it finds that its launch counts no more: look with kubectl get pod -n {namespace} {name} \
         and delete the pod if it is there; if it is not, {machine}"
    )
}

/// What the API server says about the end of a driver that has left its last word, or none.
fn end_of(id: String, known: &Report, has_word: bool) -> ClusterEnd {
    // A pod can be taken from the API server while its machine still runs it.
    let unconfirmed = if known.may_still_run() {
        let (namespace, name) = id.split_once(':').unwrap_or_default();
        format!("; no kubelet says that it has ended, and {}", what_to_do(namespace, name, Some(known)))
    } else {
        String::new()
    };
    let (verdict, cause, reason) = match (&known.state, &known.disruption) {
        // One that was told to go may well go as if it had done its work.
        (State::Over(over), disruption)
            if over.succeeded && (has_word || (!known.is_deleted && disruption.is_none())) =>
        {
            (ClusterVerdict::Succeeded, Cause::Other, String::new())
        }
        // Whoever followed it before has ended it, and could not tell why any more.
        _ if known.is_deleted && known.ended_for.as_deref() == Some(RUN_DEADLINE) => {
            (ClusterVerdict::Failed, Cause::RunDeadline, String::new())
        }
        // What the cluster itself takes away is nobody's wish to end the job.
        (State::Over(over), Some(_)) if !over.succeeded => {
            (ClusterVerdict::Failed, over.cause, over.reason.clone() + &unconfirmed)
        }
        (_, Some((cause, words))) => (ClusterVerdict::Failed, *cause, words.clone() + &unconfirmed),
        (State::Over(over), None) if !known.is_deleted => {
            (ClusterVerdict::Failed, over.cause, over.reason.clone())
        }
        (_, None) => {
            let reason = "somebody deleted its pod (as kubectl delete does, or the end of its namespace); Kubernetes does not \
                          say who";
            (ClusterVerdict::Killed, Cause::Other, reason.to_owned() + &unconfirmed)
        }
    };
    ClusterEnd { id, verdict, cause, reason }
}

impl Application for PodApplication {
    fn accepted(&self) -> Option<Accepted> {
        // Told as a change, also of one that was found: then what is told is what holds.
        None
    }

    fn outlives_worker(&self) -> bool {
        true
    }

    fn waits_for(&self) -> Option<String> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let State::Waiting(words) = &shown.as_ref()?.state else { return None };
        let asks =
            self.asks.as_ref().map(|asks| format!(", whose driver asks for {asks}")).unwrap_or_default();
        Some(format!("{}{asks}: {words}", self.id()))
    }

    fn has_run_for(&self) -> Duration {
        self.ran_before
    }

    fn ends_for_run_deadline(&self) {
        self.ran_too_long.store(true, Ordering::Relaxed);
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

impl std::fmt::Debug for PodApplication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodApplication")
            .field("name", &self.name)
            .field("known", &self.known)
            .field("is_gone", &self.is_gone)
            .field("asked", &self.asked)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod::Over;
    use super::*;

    fn known(state: State, is_deleted: bool, disruption: Option<Cause>) -> Report {
        Report {
            name: "p".into(),
            uid: "u".into(),
            job: None,
            ticket: None,
            container: "c".into(),
            state,
            is_deleted,
            config_maps: Vec::new(),
            disruption: disruption.map(|cause| (cause, "why".to_owned())),
            since: None,
            node: None,
            ended_for: None,
        }
    }

    fn over(code: i32, cause: Cause) -> State {
        State::Over(Over { succeeded: code == 0, is_certain: true, cause, reason: format!("code {code}") })
    }

    #[test]
    fn who_ended_a_driver_is_told_apart() {
        use ClusterVerdict::{Failed, Killed, Succeeded};
        let of = |report: Report, has_word| {
            let end = end_of("n:p".to_owned(), &report, has_word);
            (end.verdict, end.cause)
        };
        assert_eq!(of(known(over(0, Cause::Other), false, None), false), (Succeeded, Cause::Other));
        assert_eq!(of(known(over(1, Cause::Exit(1)), false, None), true), (Failed, Cause::Exit(1)));
        // Deleted by somebody: while it ran, or so that it ended by the signal.
        assert_eq!(of(known(State::Running, true, None), false), (Killed, Cause::Other));
        assert_eq!(of(known(over(143, Cause::Exit(143)), true, None), false), (Killed, Cause::Other));
        assert_eq!(of(known(over(0, Cause::Other), true, None), false), (Killed, Cause::Other));
        // It was done before that.
        assert_eq!(of(known(over(0, Cause::Other), true, None), true), (Succeeded, Cause::Other));
        // Deleted by a worker that could not tell it any more.
        let late = |state| Report { ended_for: Some(RUN_DEADLINE.to_owned()), ..known(state, true, None) };
        assert_eq!(of(late(over(143, Cause::Exit(143))), false), (Failed, Cause::RunDeadline));
        assert_eq!(of(late(over(0, Cause::Other)), true), (Succeeded, Cause::Other));
        // Its machine told it to go, and it went as if it had done its work.
        let evicted = known(over(0, Cause::Other), false, Some(Cause::Evicted));
        assert_eq!(of(evicted, false), (Failed, Cause::Evicted));
        // Deleted by the cluster itself.
        let lost = Some(Cause::NodeLost);
        assert_eq!(of(known(State::Running, true, lost), false), (Failed, Cause::NodeLost));
        assert_eq!(of(known(State::Unclear, true, lost), false), (Failed, Cause::NodeLost));
        assert_eq!(of(known(over(143, Cause::NodeLost), true, lost), false), (Failed, Cause::NodeLost));
        assert_eq!(
            of(known(over(137, Cause::Memory), false, Some(Cause::Evicted)), false),
            (Failed, Cause::Memory)
        );
    }

    #[test]
    fn a_pod_has_a_name_that_kubernetes_takes() {
        let name = name_of(&job_tag("My Service, ü", &"JOB/1".repeat(500), "d"));
        assert!(is_namespace(&name), "{name}");
        assert!(service_label("My Service, ü").len() <= 63);
        assert_ne!(service_label("a"), service_label("b"));
    }
}

/// Drivers in pods of an API server that says what it is told to, with the job's folder on this machine.
#[cfg(test)]
mod scripted_tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::super::scripted::{World, answer, pod, status, world};
    use super::*;
    use crate::config::Sources;
    use crate::spark::Ending;
    use crate::spark::guard::Exit;

    const TAG: &str = "tag";

    struct Scene {
        world: Arc<PlainMutex<World>>,
        cluster: Arc<Cluster>,
        place: tempfile::TempDir,
    }

    impl Scene {
        async fn with(pod: Option<Value>) -> Self {
            let settings = Settings::load(&Sources::default()).unwrap();
            let (world, api) = world(pod).await;
            let place = tempfile::tempdir().unwrap();
            let folder = place.path().join("job");
            std::fs::create_dir(&folder).unwrap();
            let pace = Pace {
                quick: Duration::from_millis(20),
                away: Duration::from_millis(100),
                ..Pace::default()
            };
            let cluster = Arc::new(Cluster {
                logs: LogWishes { bytes: 1000, always: false },
                watch: Watch::new(api, "mine", pace),
                folder_of: Box::new(move |_| Ok(JobFolder::here(&folder))),
                settings: KubernetesSettings { grace: Duration::ZERO, ..settings.kubernetes },
            });
            Self { world, cluster, place }
        }

        fn write(&self, name: &str) {
            std::fs::write(self.place.path().join("job").join(name), "{}").unwrap();
        }

        fn left(&self) -> Vec<String> {
            let Ok(entries) = std::fs::read_dir(self.place.path().join("job")) else { return Vec::new() };
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn sought(&self) -> Sought {
            let at = |name: &str| Path::new(self.place.path()).join(name);
            Sought {
                mode: Mode::Client,
                actor: crate::storage::Actor::Worker,
                identity: Identity { job: "j".into(), digest: "d".into() },
                directory: at("attempt"),
                working_directory: at("attempt/work"),
            }
        }

        async fn adopted(&self) -> PodApplication {
            let report = self.cluster.pod(TAG).await.unwrap_or_else(|trouble| panic!("{}", trouble.words));
            let found = FoundLaunch { ticket: "ticket".into(), report };
            self.cluster.take_up(TAG.into(), found, &self.sought()).unwrap()
        }

        async fn submitted(&self) -> PodApplication {
            let folder = (self.cluster.folder_of)(TAG).unwrap();
            let mut new = PodApplication::new(
                self.cluster.clone(),
                folder,
                TAG.into(),
                "ticket".into(),
                &self.sought(),
            );
            let exit = Exit {
                status: ExitStatus::Code(0),
                by_us: false,
                fenced: false,
                processor_time: Duration::ZERO,
                peak_memory: 0,
                leftovers: 0,
                oom_killed: false,
                stdout: Default::default(),
                stderr: Default::default(),
            };
            new.followed.launched = Some((exit, Instant::now()));
            new
        }
    }

    fn running() -> Value {
        let mut pod = pod(&name_of(TAG), 1, "Running", json!({"running": {}}));
        pod["spec"]["nodeName"] = json!("node-7");
        pod
    }

    fn over(code: i32) -> Value {
        pod(&name_of(TAG), 2, "Failed", json!({"terminated": {"exitCode": code}}))
    }

    async fn end(application: &mut PodApplication) -> Ending {
        let end = async {
            loop {
                if let Change::Ended(ending) = application.changed().await {
                    return *ending;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), end).await.expect("it ends")
    }

    async fn until_running(application: &mut PodApplication) {
        while !matches!(application.changed().await, Change::Running) {}
    }

    fn lost(ending: &Ending) -> &str {
        match &ending.outcome {
            Outcome::Lost(words) => words,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_pod_that_went_while_the_api_server_was_away_is_lost_and_not_cancelled() {
        let scene = Scene::with(Some(running())).await;
        scene.write("ticket.taken");
        let mut application = scene.adopted().await;
        until_running(&mut application).await;
        scene.world.lock().unwrap().is_away = true;
        let mut other = scene.cluster.watch.follow(&name_of(TAG));
        while !matches!(other.changed().await, Sight::Unknown { .. }) {}
        *scene.world.lock().unwrap() = World::default();
        let ending = end(&mut application).await;
        let words = lost(&ending);
        assert!(words.contains("went while nobody could see what became of it"), "{words}");
        assert!(words.contains("kubectl get pod -n team tag-driver"), "{words}");
        assert!(words.contains("see that the machine node-7 answers, or is off"), "{words}");
    }

    #[tokio::test]
    async fn a_pod_that_went_unseen_before_its_driver_was_seen_is_lost_if_that_began() {
        for (file, begun) in [("ticket.taken", true), ("ticket", false)] {
            let scene = Scene::with(Some(pod(&name_of(TAG), 1, "Pending", json!({})))).await;
            scene.write(file);
            let mut application = scene.submitted().await;
            assert!(matches!(application.changed().await, Change::Accepted(_)));
            scene.world.lock().unwrap().is_away = true;
            let mut other = scene.cluster.watch.follow(&name_of(TAG));
            while !matches!(other.changed().await, Sight::Unknown { .. }) {}
            *scene.world.lock().unwrap() = World::default();
            let ending = end(&mut application).await;
            match &ending.outcome {
                Outcome::Lost(_) => assert!(begun),
                Outcome::Cluster(end) => {
                    assert!(!begun && end.verdict == ClusterVerdict::Failed, "{end:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_driver_that_no_kubelet_has_seen_end_is_told_with_what_to_do() {
        let mut gone = running();
        gone["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let scene = Scene::with(Some(gone)).await;
        let mut application = scene.adopted().await;
        until_running(&mut application).await;
        scene.world.lock().unwrap().pod = None;
        let ending = end(&mut application).await;
        let Outcome::Cluster(end) = &ending.outcome else { panic!("{:?}", ending.outcome) };
        assert_eq!(end.verdict, ClusterVerdict::Killed);
        assert!(
            end.reason.contains("no kubelet says that it has ended, and a driver may still run"),
            "{end:?}"
        );
        assert!(end.reason.contains("the machine node-7"), "{end:?}");
    }

    #[tokio::test]
    async fn a_launch_whose_driver_began_unseen_is_lost_and_not_one_that_nothing_came_of() {
        let scene = Scene::with(None).await;
        scene.write("ticket.taken");
        let mut application = scene.submitted().await;
        let ending = end(&mut application).await;
        let words = lost(&ending);
        assert!(words.contains("came and went while nobody could see it"), "{words}");
        assert!(ending.started);
        // Where none has begun, nothing came of it.
        let scene = Scene::with(None).await;
        scene.write("ticket");
        let ending = end(&mut scene.submitted().await).await;
        assert!(matches!(ending.outcome, Outcome::NeverAccepted(_)), "{:?}", ending.outcome);
        assert!(scene.left().is_empty(), "{:?}", scene.left());
    }

    #[tokio::test]
    async fn a_driver_that_may_not_be_deleted_is_followed_to_the_end_that_it_finds_itself() {
        let scene = Scene::with(Some(running())).await;
        let refused = answer("403 Forbidden", &status(403, "Forbidden", "no").to_string());
        scene.world.lock().unwrap().on_delete = Some((refused, Some(over(3))));
        let mut application = scene.adopted().await;
        until_running(&mut application).await;
        application.terminate();
        let ending = end(&mut application).await;
        assert!(
            matches!(&ending.outcome, Outcome::Cluster(end) if end.cause == Cause::Exit(3)),
            "{:?}",
            ending.outcome
        );
        assert_eq!(scene.world.lock().unwrap().count("DELETE"), 1);
    }

    #[tokio::test]
    async fn a_container_that_has_ended_is_the_end_of_a_driver_whose_pod_stays() {
        let scene = Scene::with(Some(running())).await;
        scene.world.lock().unwrap().on_delete = Some((answer("200 OK", "{}"), Some(over(143))));
        let mut application = scene.adopted().await;
        until_running(&mut application).await;
        application.terminate();
        end(&mut application).await;
        assert!(scene.world.lock().unwrap().pod.is_some());
    }

    #[tokio::test]
    async fn nothing_of_a_launch_that_came_later_is_cleared_away() {
        // The launch that is cleared was `old`; `ticket` was issued since it was looked which there are.
        let scene = Scene::with(Some(running())).await;
        scene.write("old.taken");
        scene.write("old.end");
        scene.write("ticket.taken");
        let launches = Launches(["old".to_owned()].into());
        scene.cluster.clear(TAG, &launches).await.unwrap_or_else(|trouble| panic!("{}", trouble.words));
        assert_eq!(scene.left(), ["ticket.taken"]);
        assert_eq!(scene.world.lock().unwrap().count("DELETE"), 0);
        // And when it is its own turn, all of it goes, at once where its kubelet says that it has ended.
        scene.world.lock().unwrap().pod = Some(over(3));
        let launches = Launches(["ticket".to_owned()].into());
        let began = Instant::now();
        let settings = KubernetesSettings { keep_pods: KeepPods::Never, ..scene.cluster.settings.clone() };
        let cluster = Cluster { settings, ..Arc::into_inner(scene.cluster).unwrap() };
        cluster.clear(TAG, &launches).await.unwrap_or_else(|trouble| panic!("{}", trouble.words));
        assert!(began.elapsed() < JobFolder::CALLING_OFF_HERE);
        assert!(!scene.place.path().join("job").exists());
        assert_eq!(scene.world.lock().unwrap().count("DELETE"), 1);
    }

    #[tokio::test]
    async fn for_how_long_a_driver_has_run_counts_whoever_follows_it() {
        let mut pod = running();
        let since = Timestamp::now() - jiff::SignedDuration::from_secs(3600);
        pod["status"]["containerStatuses"][0]["state"] = json!({"running": {"startedAt": since.to_string()}});
        let scene = Scene::with(Some(pod)).await;
        let mut application = scene.adopted().await;
        until_running(&mut application).await;
        let ran = application.has_run_for();
        assert!((3600..3700).contains(&ran.as_secs()), "{ran:?}");
    }

    #[tokio::test]
    async fn why_a_driver_is_ended_is_noted_at_its_pod_for_whoever_follows_it_next() {
        let scene = Scene::with(Some(running())).await;
        let mut application = scene.adopted().await;
        until_running(&mut application).await;
        application.ends_for_run_deadline();
        application.terminate();
        end(&mut application).await;
        let asked = scene.world.lock().unwrap().asked.clone();
        let at = |method: &str| asked.iter().position(|asked| asked.starts_with(method)).unwrap();
        assert!(at("PATCH") < at("DELETE"), "{asked:?}");
        assert!(asked[at("PATCH")].contains(r#""spark-runtime/ended-for":"run-deadline""#), "{asked:?}");
        // Whoever finds it like that says so.
        let mut left = over(143);
        left["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        left["metadata"]["annotations"] = json!({ENDED_FOR: RUN_DEADLINE});
        let scene = Scene::with(Some(left)).await;
        let ending = end(&mut scene.adopted().await).await;
        assert!(
            matches!(&ending.outcome, Outcome::Cluster(end) if end.cause == Cause::RunDeadline),
            "{:?}",
            ending.outcome
        );
    }
}
