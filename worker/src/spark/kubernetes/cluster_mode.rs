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
//! a job could run at once.
//!
//! This module must not know what becomes of a job.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as PlainMutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::access::{Access, access};
use super::api::{Api, ApiError, Deletion, is_namespace};
use super::follow::{Following, Pace, Sight, Watch};
use super::logs;
use super::pod::{JOB, Pod, Report, SERVICE, State, TICKET};
use crate::config::{Keep, KeepPods, KubernetesSettings, Settings};
use crate::spark::argv::Sent;
use crate::spark::client_mode::{ClientMode, Launcher};
use crate::spark::elsewhere::{
    FIRST_PAUSE, LAUNCHER_PATIENCE, LONGEST_PAUSE, READING, Trouble, Want, exit_of, job_tag, left, make,
    never_accepted, patiently, sleep_until,
};
use crate::spark::guard::{Exit, ExitStatus, Running};
use crate::spark::job_folder::{JobFolder, LastWord, Stage};
use crate::spark::pack::{ARCHIVE, UNPACKED, pack, uri};
use crate::spark::policy::kubernetes_server;
use crate::spark::{
    Accepted, Application, Awaited, Backend, Cause, Change, ClusterEnd, ClusterVerdict, DRIVER_LOGS, Ending,
    Identity, Mode, Namespace, Outcome, Sought, Submission, SubmitError,
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

/// What is wanted of the logs of drivers.
#[derive(Debug, Clone, Copy)]
struct LogWishes {
    /// How much is kept of each, in bytes.
    bytes: u64,
    /// Those of drivers that did well are wanted, too.
    always: bool,
}

/// One namespace of a cluster, and the HDFS that its drivers use.
struct Cluster {
    logs: LogWishes,
    watch: Watch,
    storage: Storage,
    folder: String,
    settings: KubernetesSettings,
}

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
            logs: LogWishes { bytes: settings.log.limit, always: settings.job.keep == Keep::Always },
            reached: Mutex::default(),
        }
    }

    /// The cluster where a job is to run. One that cannot be reached is looked for again by the next job.
    async fn cluster(&self, mode: &Mode) -> Result<Arc<Cluster>, SubmitError> {
        let Mode::Kubernetes(place) = mode else {
            return Err(SubmitError::Cluster("the job has no Kubernetes master".to_owned()));
        };
        let mut reached = self.reached.lock().await;
        if let Some(cluster) = reached.clusters.get(place) {
            return Ok(cluster.clone());
        }
        let environment = self.launcher.environment();
        let bad = |reason: String| SubmitError::Cluster(format!("Kubernetes at {}: {reason}", place.server));
        let access = match reached.servers.get(&place.server) {
            Some(access) => access.clone(),
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
        let folder = match &self.settings.folder {
            Some(folder) => folder.clone(),
            None => {
                let user = environment
                    .get("HADOOP_USER_NAME")
                    .map(|name| name.to_string_lossy().into_owned())
                    .or_else(|| {
                        nix::unistd::User::from_uid(nix::unistd::geteuid()).ok()?.map(|user| user.name)
                    })
                    .unwrap_or_else(|| "nobody".to_owned());
                format!("/user/{user}/.spark-runtime")
            }
        };
        let api = Api::new(access.client.clone(), &place.server, &namespace);
        let cluster = Arc::new(Cluster {
            watch: Watch::new(api, &service_label(&self.settings.service), Pace::default()),
            storage: self.storage.clone(),
            folder,
            settings: self.settings.clone(),
            logs: self.logs,
        });
        reached.servers.insert(place.server.clone(), access);
        reached.clusters.insert(place.clone(), cluster.clone());
        Ok(cluster)
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
        let ticket = uuid::Uuid::new_v4().simple().to_string();
        let folder = cluster.job_folder(&tag)?;
        let properties = self.properties(submission, &cluster, &tag, &ticket, &folder)?;
        let told = json!({
            "jobFolder": folder.url(),
            "ticket": ticket,
            "outputs": submission.outputs,
            "outputFolder": submission.output_folder,
        });
        let packing = tokio::task::spawn_blocking({
            let (from, to) = (sought.working_directory.clone(), sought.directory.join(ARCHIVE));
            move || pack(&from, &to, &told.to_string())
        });
        let files =
            packing.await.map_err(std::io::Error::other).and_then(|packed| packed).map_err(|source| {
                SubmitError::Directory { what: "the archive of the job's files", source }
            })?;
        let launcher = Launcher {
            sent: Sent {
                files,
                archives: vec![uri(&sought.directory.join(ARCHIVE), Some(UNPACKED))],
                ..Sent::default()
            },
            properties,
            driver_arguments: vec!["--cluster".into(), UNPACKED.into()],
        };
        let note = json!({"job": sought.identity.job, "digest": sought.identity.digest}).to_string();
        folder.issue(&ticket, &note).await.map_err(Trouble::from)?;
        match self.launcher.start_launcher(submission, launcher).await {
            Ok(running) => {
                let application = PodApplication::new(cluster, folder, tag, ticket, sought);
                let asks = Some(submission.command_line.driver_asks());
                Ok(Box::new(PodApplication { launcher: Some(running), asks, ..application }))
            }
            Err(error) => {
                // Nothing was started with it; whoever comes next would revoke it as well.
                if let Err(error) = folder.revoke(&ticket).await {
                    tracing::debug!(%error, "a ticket could not be revoked");
                }
                Err(error)
            }
        }
    }

    /// What spark-submit is told beside what the job says.
    fn properties(
        &self,
        submission: &Submission,
        cluster: &Cluster,
        tag: &str,
        ticket: &str,
        folder: &JobFolder,
    ) -> Result<Vec<(String, String)>, SubmitError> {
        let service = service_label(&self.settings.service);
        let label = |name: &str| format!("spark.kubernetes.driver.label.{name}");
        let mut properties = vec![
            ("spark.kubernetes.submission.waitAppCompletion".to_owned(), "false".to_owned()),
            ("spark.kubernetes.namespace".to_owned(), cluster.api().namespace().to_owned()),
            ("spark.kubernetes.driver.pod.name".to_owned(), name_of(tag)),
            (label(SERVICE), service),
            (label(JOB), tag.to_owned()),
            (label(TICKET), ticket.to_owned()),
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

    async fn clear(&self, identity: &Identity, mode: &Mode) {
        let removed = async {
            let cluster = self.cluster(mode).await?;
            let tag = cluster.tag(identity);
            cluster.job_folder(&tag)?.remove().await.map_err(Trouble::from)?;
            cluster.clear_pod(&tag).await?;
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

    fn forget<'a>(&'a self, identity: &'a Identity, mode: &'a Mode) -> Awaited<'a, ()> {
        Box::pin(self.clear(identity, mode))
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
        Ok(JobFolder::of(&self.storage, &self.folder, tag).map_err(Trouble::from)?)
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
        let folder = JobFolder::of(&self.storage, &self.folder, tag)?;
        match self.look(tag, &folder).await? {
            There::Counts(ticket, report) => return Ok(Some(FoundLaunch { ticket, report: Some(report) })),
            There::CountsNoMore(report) => self.remove(&report).await?,
            There::Nothing => {}
        }
        let tickets = folder.tickets().await?;
        let open: Vec<&String> =
            tickets.iter().filter(|(_, stage)| **stage == Stage::Open).map(|(ticket, _)| ticket).collect();
        for ticket in &open {
            folder.revoke(ticket).await?;
        }
        let begun = if open.is_empty() { tickets } else { folder.tickets().await? };
        let Some((ticket, _)) = begun.into_iter().find(|(_, stage)| *stage > Stage::Open) else {
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

    /// Removes what is left of a job's pod, as far as it is not to be kept.
    async fn clear_pod(&self, tag: &str) -> Result<(), Trouble> {
        let Some(report) = self.pod(tag).await? else { return Ok(()) };
        let is_kept = match (&report.state, self.settings.keep_pods) {
            (State::Over(_), KeepPods::Always) => true,
            (State::Over(over), KeepPods::Failed) => !over.succeeded,
            // One that is not over counts no more.
            _ => false,
        };
        if !is_kept {
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
                "the pod {}:{} is gone, of which a driver had begun; somebody has deleted it",
                self.api().namespace(),
                name_of(&tag)
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
    folder: JobFolder,
    tag: String,
    name: String,
    ticket: String,
    following: Following,
    directory: PathBuf,
    working_directory: PathBuf,
    /// spark-submit, as long as it runs.
    launcher: Option<Running>,
    /// How it ended, and when.
    launched: Option<(Exit, Instant)>,
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
    /// All that it needs to start was looked for, and is there or not to be had.
    is_whole: bool,
    /// When it was last asked to end, by us.
    asked: Option<(Want, Instant)>,
    /// Its log was brought here before it was ended, or why not.
    logged: Option<Result<(), String>>,
    /// It is nowhere to be found, and why.
    lost: Option<String>,
    wanted: watch::Sender<Want>,
    heard: watch::Receiver<Want>,
}

impl PodApplication {
    fn new(cluster: Arc<Cluster>, folder: JobFolder, tag: String, ticket: String, sought: &Sought) -> Self {
        let (wanted, heard) = watch::channel(Want::Nothing);
        let name = name_of(&tag);
        Self {
            following: cluster.watch.follow(&name),
            cluster,
            folder,
            tag,
            name,
            ticket,
            directory: sought.directory.clone(),
            working_directory: sought.working_directory.clone(),
            launcher: None,
            launched: None,
            asks: None,
            known: None,
            known_since: Instant::now(),
            shown: PlainMutex::default(),
            is_adopted: false,
            is_accepted: false,
            has_started: false,
            is_running: false,
            is_gone: false,
            is_whole: false,
            asked: None,
            logged: None,
            lost: None,
            wanted,
            heard,
        }
    }

    fn want(&self, want: Want) {
        self.wanted.send_if_modified(|wanted| {
            let is_more = *wanted < want;
            *wanted = want.max(*wanted);
            is_more
        });
    }

    async fn next_change(&mut self) -> Change {
        loop {
            if let Some(change) = self.now().await {
                return change;
            }
            let wake = self.wake();
            tokio::select! {
                biased;
                // What is wanted is looked at below.
                _ = self.heard.changed() => {}
                exit = exit_of(&mut self.launcher) => {
                    self.launcher = None;
                    self.launched = Some((exit, Instant::now()));
                }
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
        if report.ticket.as_ref() != Some(&self.ticket) {
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
            Sight::Gone { last: Some(last), .. } if last.ticket.as_ref() == Some(&self.ticket) => {
                self.see(*last);
                self.is_gone = true;
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
        let missing = match (&self.known, &self.launched) {
            (None, Some((_, since))) => Some(*since + settings.grace),
            _ => None,
        };
        let part = (self.launcher.is_none() && self.known.is_some() && !self.is_whole && !self.has_started)
            .then(|| self.known_since + settings.grace);
        let moments = sight.into_iter().chain(missing).chain(part);
        moments.filter(|moment| *moment > Instant::now()).min()
    }

    /// What is to be told at this moment, if anything.
    async fn now(&mut self) -> Option<Change> {
        if self.lost.is_some() {
            return Some(self.ended(false).await);
        }
        let want = *self.heard.borrow_and_update();
        match want {
            Want::Nothing => {}
            Want::Leave => {
                if let Some(launcher) = &self.launcher {
                    // What it has handed over by then will be found.
                    launcher.kill();
                    return None;
                }
                return Some(left(self.has_started));
            }
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
            let is_made = self.launcher.is_none() || !matches!(known.state, State::Waiting(_));
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
        if self.launcher.is_some() {
            // Its end says more.
            return None;
        }
        let may_be_its_launcher = match &self.launched {
            Some((exit, _)) => exit.status != ExitStatus::Code(0),
            None => true,
        };
        if !may_be_its_launcher {
            return Some(self.ended(true).await);
        }
        let revoked = async {
            self.folder.revoke(&self.ticket).await?;
            Ok::<_, Trouble>(self.folder.tickets().await?.contains_key(&self.ticket))
        };
        match revoked.await {
            // It began all the same.
            Ok(true) => Some(self.ended(true).await),
            Ok(false) => Some(match self.launched.take() {
                Some((exit, _)) => never_accepted(exit),
                None => self.never_began("it was deleted before its driver began".to_owned()),
            }),
            Err(trouble) => {
                tracing::warn!(
                    pod = self.name,
                    reason = trouble.words,
                    "it cannot be known yet whether a driver began"
                );
                tokio::time::sleep(FIRST_PAUSE).await;
                self.ask_again()
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
        Change::Ended(Box::new(Ending {
            report: None,
            report_came_first: true,
            started: false,
            unreadable: None,
            unlogged: None,
            outcome,
        }))
    }

    /// The end of a pod that cannot start because spark-submit died while it made what the pod needs, if it is one.
    async fn is_half_made(&mut self) -> Option<Change> {
        let known = self.known.clone()?;
        let is_due = self.launcher.is_none()
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
            self.folder.revoke(&self.ticket).await?;
            self.cluster.remove(known).await
        };
        if let Err(trouble) = removed.await {
            tracing::warn!(
                pod = self.name,
                reason = trouble.words,
                "a pod that cannot start is not gone yet; asking again"
            );
            tokio::time::sleep(FIRST_PAUSE).await;
            return self.ask_again();
        }
        Some(self.never_began(why))
    }

    /// What is to be told of a pod that cannot be seen for long.
    async fn give_up(&mut self) -> Option<Change> {
        let settings = &self.cluster.settings;
        let lost_after = settings.lost_after;
        match self.following.sight() {
            Sight::Unknown { since, error } if since.elapsed() >= lost_after && self.launcher.is_none() => {
                self.lost = Some(format!(
                    "{} has been unknown for {} s (kubernetes.lost_after): {error}",
                    self.id(),
                    lost_after.as_secs()
                ));
                return Some(self.ended(false).await);
            }
            // The stream knows of none; it may be older than what was asked for otherwise.
            Sight::Gone { since, .. } if since.elapsed() >= FIRST_PAUSE && self.known.is_some() => {
                return self.look_whether_gone().await;
            }
            _ => {}
        }
        let (exit, since) = self.launched?;
        if self.known.is_some() || since.elapsed() < settings.grace {
            return None;
        }
        match self.was_never_accepted(false).await {
            Ok(true) => Some(never_accepted(exit)),
            Ok(false) => None,
            Err(trouble) => {
                tracing::warn!(
                    pod = self.name,
                    reason = trouble.words,
                    "it cannot be known yet whether there is a pod of the job"
                );
                tokio::time::sleep(FIRST_PAUSE).await;
                self.ask_again()
            }
        }
    }

    async fn look_whether_gone(&mut self) -> Option<Change> {
        let uid = self.known.as_ref().map(|known| known.uid.clone());
        match self.cluster.api().pod(&self.name).await.map(|pod| pod.map(Pod::report)) {
            Ok(Some(report)) if Some(&report.uid) == uid.as_ref() => self.see(report),
            Ok(_) => {
                self.is_gone = true;
                return Some(self.ended(true).await);
            }
            Err(error) => {
                tracing::debug!(pod = self.name, %error, "it cannot be known whether a pod is gone")
            }
        }
        tokio::time::sleep(FIRST_PAUSE).await;
        self.ask_again()
    }

    /// Whether spark-submit ended and there is no pod of it, and never will be one that runs anything. One that is there keeps
    /// its ticket, unless it `is_to_end`. One of another launch that counts is followed in its place.
    async fn was_never_accepted(&mut self, is_to_end: bool) -> Result<bool, Trouble> {
        for is_revoked in [is_to_end, true] {
            if is_revoked {
                self.folder.revoke(&self.ticket).await?;
            }
            match self.cluster.look(&self.tag, &self.folder).await? {
                There::Counts(ticket, report) => {
                    if ticket != self.ticket {
                        // The API server took no second pod of this name.
                        tracing::info!(pod = self.name, "a pod of the job was there already; it is followed");
                        self.folder.revoke(&self.ticket).await?;
                        self.ticket = ticket;
                        self.is_adopted = true;
                    }
                    self.see(report);
                    return Ok(false);
                }
                There::CountsNoMore(report) if report.ticket.as_ref() == Some(&self.ticket) => {
                    self.see(report);
                    return Ok(false);
                }
                There::CountsNoMore(report) => self.cluster.remove(&report).await?,
                There::Nothing => {}
            }
        }
        Ok(true)
    }

    /// Ends it, step by step: spark-submit, then the pod.
    async fn bring_to_end(&mut self, want: Want) -> Option<Change> {
        if let Some(launcher) = &self.launcher {
            if want == Want::EndNow {
                launcher.kill()
            } else {
                launcher.terminate()
            }
            return None;
        }
        let Some(known) = self.known.clone() else {
            return match self.was_never_accepted(true).await {
                Ok(true) => match self.launched {
                    Some((exit, _)) => Some(never_accepted(exit)),
                    None => {
                        self.lost = Some("there is no pod of the job".to_owned());
                        Some(self.ended(false).await)
                    }
                },
                Ok(false) => self.ask_again(),
                Err(trouble) => {
                    tracing::warn!(
                        pod = self.name,
                        reason = trouble.words,
                        "it cannot be known yet whether there is a pod to be ended"
                    );
                    tokio::time::sleep(FIRST_PAUSE).await;
                    self.ask_again()
                }
            };
        };
        if self.is_gone || (known.is_over() && self.asked.is_none()) {
            return Some(self.ended(true).await);
        }
        if self.logged.is_none() && matches!(known.state, State::Running | State::Over(_)) {
            // It goes with the pod.
            self.logged = Some(self.fetch_log(&known, LOG_BEFORE_END).await);
        }
        let is_due = match self.asked {
            None => true,
            Some((before, when)) => before < want || when.elapsed() >= ASK_AGAIN,
        };
        if is_due {
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
                    tokio::time::sleep(pause).await;
                    return self.ask_again();
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
        self.ask_again()
    }

    /// Lets the next round look at what is wanted once more.
    fn ask_again(&mut self) -> Option<Change> {
        self.heard.mark_changed();
        None
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
        if let Some(launcher) = &mut self.launcher {
            // It has nothing to do any more; whatever keeps it, it must not go on.
            if tokio::time::timeout(LAUNCHER_PATIENCE, launcher.exited()).await.is_err() {
                launcher.kill();
                launcher.exited().await;
            }
            self.launcher = None;
        }
        let read = patiently(READING, "the driver's last word", || self.read()).await;
        let (begun, word, unreadable) = match read {
            Ok((begun, word)) => (begun, word, None),
            Err(trouble) => (false, None, Some(trouble.words)),
        };
        let known = self.known.clone();
        let end = known.as_ref().filter(|_| is_known).map(|known| end_of(self.id(), known, word.is_some()));
        let did_well = end.as_ref().is_some_and(|end| end.verdict == ClusterVerdict::Succeeded);
        let mut unlogged = None;
        if let Some(known) = &known
            && (self.cluster.logs.always || !did_well || word.is_none())
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
        Change::Ended(Box::new(Ending {
            started: begun || word.is_some(),
            report: word.map(|word| word.word),
            report_came_first: true,
            unreadable,
            unlogged,
            outcome,
        }))
    }

    /// Brings the driver's log here.
    ///
    /// # Errors
    /// Why there is none, in words.
    async fn fetch_log(&self, known: &Report, whole: Duration) -> Result<(), String> {
        let folder = self.directory.join(DRIVER_LOGS);
        make(&folder).map_err(|error| error.to_string())?;
        let bytes = self.cluster.logs.bytes;
        logs::fetch(self.cluster.api(), &self.name, &known.container, &folder, bytes, whole).await
    }

    /// Whether the driver has begun, and what it left, its files brought to where they would be on this machine.
    async fn read(&self) -> Result<(bool, Option<LastWord>), Trouble> {
        let Some(word) = self.folder.last_word(&self.ticket).await? else {
            let stage = self.folder.tickets().await?.get(&self.ticket).copied();
            return Ok((stage > Some(Stage::Open), None));
        };
        make(&self.working_directory)
            .map_err(|error| Trouble { words: error.to_string(), may_pass: false })?;
        self.folder.bring(&self.ticket, &word, &self.working_directory).await?;
        Ok((true, Some(word)))
    }
}

/// What the API server says about the end of a driver that has left its last word, or none.
fn end_of(id: String, known: &Report, has_word: bool) -> ClusterEnd {
    let (verdict, cause, reason) = match (&known.state, &known.disruption) {
        // One that was told to go may well go as if it had done its work.
        (State::Over(over), _) if over.succeeded && (has_word || !known.is_deleted) => {
            (ClusterVerdict::Succeeded, Cause::Other, String::new())
        }
        // What the cluster itself takes away is nobody's wish to end the job.
        (State::Over(over), Some(_)) if !over.succeeded => {
            (ClusterVerdict::Failed, over.cause, over.reason.clone())
        }
        (_, Some((cause, words))) => (ClusterVerdict::Failed, *cause, words.clone()),
        (State::Over(over), None) if !known.is_deleted => {
            (ClusterVerdict::Failed, over.cause, over.reason.clone())
        }
        (_, None) => {
            let reason = "somebody deleted its pod (as kubectl delete does, or the end of its namespace); Kubernetes does not \
                          say who";
            (ClusterVerdict::Killed, Cause::Other, reason.to_owned())
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

    fn changed(&mut self) -> Awaited<'_, Change> {
        Box::pin(self.next_change())
    }

    fn terminate(&self) {
        self.want(Want::End);
    }

    fn kill(&self) {
        self.want(Want::EndNow);
    }

    fn leave(&self) {
        self.want(Want::Leave);
    }
}

impl std::fmt::Debug for PodApplication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodApplication")
            .field("name", &self.name)
            .field("known", &self.known)
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
        }
    }

    fn over(code: i32, cause: Cause) -> State {
        State::Over(Over { succeeded: code == 0, cause, reason: format!("code {code}") })
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
        assert_eq!(of(known(State::Running, false, None), false), (Killed, Cause::Other));
        assert_eq!(of(known(over(143, Cause::Exit(143)), true, None), false), (Killed, Cause::Other));
        assert_eq!(of(known(over(0, Cause::Other), true, None), false), (Killed, Cause::Other));
        // It was done before that.
        assert_eq!(of(known(over(0, Cause::Other), true, None), true), (Succeeded, Cause::Other));
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
