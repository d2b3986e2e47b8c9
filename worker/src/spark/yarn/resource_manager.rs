//! The ResourceManager, by its REST interface: what applications there are, how they stand, and their end.
//!
//! Several addresses are one ResourceManager: the first that answers as the active one is asked first from then on. A
//! standby points elsewhere and is passed by. What cannot be understood is never taken for an answer: an application that
//! is "not there" is one of which the active ResourceManager itself says so.
//!
//! The shapes are those of "ResourceManager REST APIs" of Hadoop 3 (`/ws/v1/cluster/apps`).
//!
//! This module must not know Spark, nor what becomes of a job.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use super::login::{Kerberos, Login};

/// How long one ResourceManager may take to answer.
const REQUEST: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(5);
/// A larger answer is none: one about a hundred applications has less than a megabyte.
const LARGEST_ANSWER: usize = 64 << 20;
/// How long a query may be, in bytes; proxies in front of a ResourceManager take no more than 8 KiB of head.
const LONGEST_QUERY: usize = 6000;
/// The longest tag that YARN takes, in characters (`YarnConfiguration.APPLICATION_MAX_TAG_LENGTH`).
const LONGEST_TAG: usize = 100;
/// How a server says that it wants a login by Kerberos, and how it is given.
const NEGOTIATE: &str = "Negotiate";
/// The longest part of an answer that an error shows, in characters.
const LONGEST_WORDS: usize = 300;

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceManagerError {
    /// None of the addresses has an active ResourceManager that answers. It may be there later.
    #[error("no ResourceManager can be asked: {0}")]
    Away(String),
    /// It does not let us do this. It will not go better if it is only tried again.
    #[error("the ResourceManager at {address} refuses it: {reason}")]
    Refused {
        /// Which one.
        address: String,
        /// What it says.
        reason: String,
    },
    /// No tag of YARN's has this text.
    #[error("{0:?} is no tag of YARN's: those have 1 to 100 lower-case ASCII characters and no comma")]
    Tag(String),
    /// No client can be made.
    #[error("no client for HTTP can be made: {0}")]
    Client(String),
    /// There is nobody to ask.
    #[error("no address of a ResourceManager is known (yarn-site.xml in HADOOP_CONF_DIR)")]
    NoAddress,
    /// An address is none.
    #[error("{address:?} is no address of a ResourceManager: {reason}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Where an application stands, in YARN's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Just made.
    New,
    /// Being written down.
    NewSaving,
    /// Handed to the scheduler.
    Submitted,
    /// It waits for its first container.
    Accepted,
    /// Its first container runs.
    Running,
    /// Its master said that it was over.
    Finished,
    /// It could not be run, or its master died.
    Failed,
    /// Somebody ended it.
    Killed,
    /// A word that no ResourceManager of today says.
    #[serde(other)]
    Other,
}

impl State {
    /// Nothing of it runs any more, and nothing will.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Killed)
    }
}

/// What an application said of itself when it was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FinalStatus {
    /// Nothing, yet.
    Undefined,
    /// It did what it was to do.
    Succeeded,
    /// It did not.
    Failed,
    /// It was ended.
    Killed,
    /// A word that no ResourceManager of today says, or that has no meaning for us.
    #[serde(other)]
    Other,
}

/// Where an application stands, in the service's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The cluster has it and it does not run yet.
    Waiting,
    /// It runs.
    Running,
    /// It is over and says that it succeeded.
    Succeeded,
    /// It is over, because somebody ended it.
    Killed,
    /// It is over and did not succeed.
    Failed,
    /// The cluster says something that is no state: it counts as nothing at all.
    Unknown,
}

/// What the ResourceManager knows of an application.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// As `application_1700000000000_0001`.
    pub id: String,
    /// Where it stands.
    pub state: State,
    /// What it said of itself.
    pub final_status: FinalStatus,
    /// Why, in many words, of one that failed.
    #[serde(default)]
    diagnostics: Option<String>,
    /// Where its progress can be seen, by a browser.
    #[serde(default)]
    pub tracking_url: Option<String>,
    /// Where the logs of its first container are.
    #[serde(default)]
    pub am_container_logs: Option<String>,
    /// The queue that it is in.
    #[serde(default)]
    pub queue: Option<String>,
    /// Its tags, separated by commas.
    #[serde(default)]
    application_tags: Option<String>,
    /// When it was submitted, in milliseconds since 1970, by the cluster's clock.
    #[serde(default)]
    pub started_time: u64,
}

impl Report {
    /// Whether it carries this tag.
    #[must_use]
    pub fn has_tag(&self, tag: &str) -> bool {
        self.application_tags.iter().flat_map(|tags| tags.split(',')).any(|of_it| of_it == tag)
    }

    /// What follows on `prefix` in the one of its tags that begins with it.
    #[must_use]
    pub fn tag_after(&self, prefix: &str) -> Option<&str> {
        self.application_tags.as_deref()?.split(',').find_map(|tag| tag.strip_prefix(prefix))
    }

    /// The scheduler has it, and knows where its progress can be seen.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        !matches!(self.state, State::New | State::NewSaving | State::Submitted)
    }

    /// A container for its driver was found: from here on it does not wait any more.
    #[must_use]
    pub fn has_place(&self) -> bool {
        self.is_accepted()
            && (self.state == State::Running
                || self.am_container_logs.as_deref().is_some_and(|logs| !logs.is_empty()))
    }

    /// Where it stands, in the service's words. A success is one that both the cluster and the application tell.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match (self.state, self.final_status) {
            (State::New | State::NewSaving | State::Submitted | State::Accepted, _) => Standing::Waiting,
            (State::Running, _) => Standing::Running,
            (State::Finished, FinalStatus::Succeeded) => Standing::Succeeded,
            (State::Killed, _) | (State::Finished, FinalStatus::Killed) => Standing::Killed,
            (State::Finished | State::Failed, _) => Standing::Failed,
            (State::Other, _) => Standing::Unknown,
        }
    }

    /// What the cluster says about its end or its waiting, as it says it.
    #[must_use]
    pub fn whole_reason(&self) -> String {
        self.diagnostics.clone().unwrap_or_default()
    }

    /// What the cluster says about its end or its waiting, without the blank lines and links that it puts around it.
    #[must_use]
    pub fn reason(&self) -> String {
        one_line(self.diagnostics.as_deref().unwrap_or_default())
    }
}

/// How far YARN is with moving the logs of an application to where all of them are kept ("log aggregation"), in its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LogAggregation {
    /// This cluster does not do that.
    Disabled,
    /// Not begun.
    NotStart,
    /// Under way.
    Running,
    /// Under way, and something failed on the way.
    RunningWithFailure,
    /// Done.
    Succeeded,
    /// Given up.
    Failed,
    /// Nobody has told the ResourceManager for long.
    TimeOut,
    /// A word that no ResourceManager of today says.
    #[serde(other)]
    Other,
}

/// What the ResourceManager knows of an application that bears on its logs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogReport {
    /// As `application_1700000000000_0001`.
    id: String,
    /// Whom it belongs to.
    #[serde(default)]
    pub user: String,
    /// Where it stands.
    pub state: State,
    /// How far its logs are. Not said before Hadoop 2.8.
    #[serde(default)]
    pub log_aggregation_status: Option<LogAggregation>,
}

/// One attempt of YARN's at an application: one launch of its master, which in cluster mode is the driver.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Which one, from 1.
    #[serde(default)]
    pub id: u32,
    /// The master's container, as `container_1700000000000_0001_01_000001`; empty when it got none.
    #[serde(default)]
    pub container_id: String,
    /// The web interface of the NodeManager that has the container, as `host:8042`.
    #[serde(default)]
    pub node_http_address: String,
    /// The NodeManager itself, as `host:45454`.
    #[serde(default)]
    pub node_id: String,
    /// Where a browser finds the container's logs.
    #[serde(default)]
    pub logs_link: String,
}

/// The answer to a question about many applications.
#[derive(Debug, Deserialize)]
struct Listing {
    apps: Option<Apps>,
}

#[derive(Debug, Default, Deserialize)]
struct Apps {
    #[serde(default)]
    app: Vec<Report>,
}

#[derive(Debug, Deserialize)]
struct One {
    app: Report,
}

/// What a ResourceManager says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    cluster_info: ClusterInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClusterInfo {
    /// `ACTIVE` once it has read what it wrote down before.
    #[serde(rename = "haState")]
    ha_state: Option<String>,
}

#[derive(Debug, Deserialize)]
struct OneOfTimes {
    app: Times,
}

/// When what happened to an application, by the cluster's clock, in milliseconds. They change with every answer, so that they are
/// no part of what is compared with the answer before.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Times {
    started_time: u64,
    /// 0 before its first container was launched. Not said before Hadoop 3.3.
    launch_time: u64,
    /// From its submission until this answer.
    elapsed_time: u64,
}

impl Times {
    fn running_for(self) -> Option<Duration> {
        let waited = self.launch_time.checked_sub(self.started_time)?;
        (self.launch_time > 0).then(|| Duration::from_millis(self.elapsed_time.saturating_sub(waited)))
    }
}

#[derive(Debug, Deserialize)]
struct OneOfLogs {
    app: LogReport,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttemptListing {
    app_attempts: Option<Attempts>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attempts {
    #[serde(default)]
    app_attempt: Vec<Attempt>,
}

/// How a ResourceManager refuses, or a NodeManager.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    #[serde(rename = "RemoteException")]
    pub(super) exception: RemoteException,
}

#[derive(Debug, Deserialize)]
pub(super) struct RemoteException {
    pub(super) exception: String,
    #[serde(default)]
    pub(super) message: String,
}

/// What came of asking one address.
enum Answer {
    /// The active ResourceManager answers.
    Found(String),
    /// It says that there is no such thing.
    NoSuch,
    /// It is not the active one, and may say who is.
    Standby(Option<Url>),
}

/// Where a question is asked, and about what.
struct Question<'a> {
    method: Method,
    path: &'a str,
    query: &'a [(&'a str, &'a str)],
    body: Option<Value>,
}

/// The ResourceManager of one cluster.
#[derive(Debug)]
pub struct ResourceManager {
    client: Client,
    addresses: Vec<Url>,
    /// The one that answered last.
    active: AtomicUsize,
    user: Option<String>,
    /// Who we are to one that wants to know it.
    login: Arc<dyn Login>,
    /// It has wanted to know it, and is told from then on without being asked first.
    wants_login: AtomicBool,
}

impl ResourceManager {
    /// A client of the ResourceManager that is at one of `addresses` (`http://host:8088`). To a cluster without Kerberos
    /// it presents itself as `user`. Connects to nothing.
    ///
    /// # Errors
    /// [`ResourceManagerError::NoAddress`], [`ResourceManagerError::Address`] or [`ResourceManagerError::Client`].
    pub fn new(addresses: &[String], user: Option<&str>) -> Result<Self, ResourceManagerError> {
        if addresses.is_empty() {
            return Err(ResourceManagerError::NoAddress);
        }
        let read = |address: &String| {
            let bad = |reason: String| ResourceManagerError::Address { address: address.clone(), reason };
            let url = Url::parse(address).map_err(|error| bad(error.to_string()))?;
            if matches!(url.scheme(), "http" | "https") && url.has_host() {
                Ok(url)
            } else {
                Err(bad("it does not begin with http:// or https:// and a host".to_owned()))
            }
        };
        let addresses = addresses.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        // The one provider of cryptography that this program is built with. That it was set before is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .timeout(REQUEST)
            .connect_timeout(CONNECT)
            // Whom a standby points to is for this module to decide.
            .redirect(reqwest::redirect::Policy::none())
            // A cluster is not asked by way of the proxy that leads out of the house.
            .no_proxy()
            .build()
            .map_err(|error| ResourceManagerError::Client(with_causes(&error)))?;
        Ok(Self {
            client,
            addresses,
            active: AtomicUsize::new(0),
            user: user.map(str::to_owned),
            login: Arc::new(Kerberos),
            wants_login: AtomicBool::new(false),
        })
    }

    /// The same, which presents itself by another login.
    #[must_use]
    pub fn with_login(self, login: Arc<dyn Login>) -> Self {
        Self { login, ..self }
    }

    /// Every application that carries at least one of `tags`, in whatever state. One question, unless there are more tags
    /// than one takes.
    ///
    /// # Errors
    /// [`ResourceManagerError`]; then nothing is known about any of them.
    pub async fn tagged(&self, tags: &[&str]) -> Result<Vec<Report>, ResourceManagerError> {
        if let Some(bad) = tags.iter().find(|tag| !is_tag(tag)) {
            return Err(ResourceManagerError::Tag((*bad).to_owned()));
        }
        let mut found: Vec<Report> = Vec::new();
        for tags in portions(tags) {
            for report in self.tagged_now(tags).await?.0 {
                if !found.iter().any(|known| known.id == report.id) {
                    found.push(report);
                }
            }
        }
        Ok(found)
    }

    /// The same for so many tags as fit into one question, and who has answered it.
    async fn tagged_now(&self, tags: &[&str]) -> Result<(Vec<Report>, Url), ResourceManagerError> {
        let asked = tags.join(",");
        let query = [("applicationTags", asked.as_str()), ("deSelects", "resourceRequests")];
        let question =
            Question { method: Method::GET, path: "ws/v1/cluster/apps", query: &query, body: None };
        let (listing, by): (Option<Listing>, _) = self.ask_whom(&question).await?;
        let apps = listing.and_then(|listing| listing.apps).unwrap_or_default().app;
        // A ResourceManager that does not know the filter would name everybody's.
        let ours = apps.into_iter().filter(|report| tags.iter().any(|tag| report.has_tag(tag)));
        Ok((ours.collect(), by))
    }

    /// The same for one tag, where it matters that there is nothing alive: a ResourceManager that was started again answers
    /// before it knows of the applications of before, and then says of each that there is no such thing.
    ///
    /// # Errors
    /// [`ResourceManagerError`]; then nothing is known, also while it starts.
    pub async fn certainly_tagged(&self, tag: &str) -> Result<Vec<Report>, ResourceManagerError> {
        if !is_tag(tag) {
            return Err(ResourceManagerError::Tag(tag.to_owned()));
        }
        let (found, by) = self.tagged_now(&[tag]).await?;
        if found.iter().any(|report| !report.state.is_over()) {
            return Ok(found);
        }
        self.must_have_started(&by).await?;
        // What was said before that may be from when it had not.
        let (found, now_by) = self.tagged_now(&[tag]).await?;
        must_be_the_same(&by, &now_by)?;
        Ok(found)
    }

    /// Makes sure that the ResourceManager at `address`, which has answered as the active one, knows by now what it ever will
    /// of what there was before it was started. Nobody else is asked: about itself a standby answers too.
    async fn must_have_started(&self, address: &Url) -> Result<(), ResourceManagerError> {
        let question = Question { method: Method::GET, path: "ws/v1/cluster/info", query: &[], body: None };
        let mut excuses = Vec::new();
        let answer = self.ask_at(address, &question).await;
        let info = match self.judge(address, answer, &mut excuses)? {
            Some(Answer::Found(text)) => {
                let info: Info = serde_json::from_str(&text).map_err(|error| {
                    ResourceManagerError::Away(format!("{address} says what is no answer: {error}"))
                })?;
                Some(info)
            }
            Some(Answer::NoSuch) => None,
            Some(Answer::Standby(_)) => {
                return Err(ResourceManagerError::Away(format!("{address} is on standby")));
            }
            None => return Err(ResourceManagerError::Away(excuses.join("; "))),
        };
        match info.and_then(|info| info.cluster_info.ha_state) {
            Some(state) if state != "ACTIVE" => {
                Err(ResourceManagerError::Away(format!("the one that answers is not active yet ({state})")))
            }
            // Those that do not tell have nothing that they would still have to read.
            _ => Ok(()),
        }
    }

    /// One application; `None` when the ResourceManager says that there is none, or none any more.
    ///
    /// # Errors
    /// [`ResourceManagerError`]; then nothing is known about it.
    pub async fn application(&self, id: &str) -> Result<Option<Report>, ResourceManagerError> {
        let (found, by) = self.application_now(id).await?;
        if found.is_some() {
            return Ok(found);
        }
        self.must_have_started(&by).await?;
        let (found, now_by) = self.application_now(id).await?;
        must_be_the_same(&by, &now_by)?;
        Ok(found)
    }

    async fn application_now(&self, id: &str) -> Result<(Option<Report>, Url), ResourceManagerError> {
        let path = format!("ws/v1/cluster/apps/{}", segment(id));
        let question = Question { method: Method::GET, path: &path, query: &[], body: None };
        let (one, by): (Option<One>, _) = self.ask_whom(&question).await?;
        Ok((one.map(|one| one.app).filter(|app| app.id == id), by))
    }

    /// For how long an application has had a container for its driver, by the cluster's own clock; `None` when the
    /// ResourceManager does not tell, or knows of no such container.
    ///
    /// # Errors
    /// [`ResourceManagerError`]; then nothing is known about it.
    pub async fn running_for(&self, id: &str) -> Result<Option<Duration>, ResourceManagerError> {
        let path = format!("ws/v1/cluster/apps/{}", segment(id));
        let question = Question { method: Method::GET, path: &path, query: &[], body: None };
        let one: Option<OneOfTimes> = self.ask(&question).await?;
        Ok(one.and_then(|one| one.app.running_for()))
    }

    /// The page of an application at the ResourceManager that answered last, for a browser.
    #[must_use]
    pub fn page_of(&self, id: &str) -> Option<String> {
        let address = self.addresses.get(self.active.load(Ordering::Relaxed))?;
        Some(format!("{}/cluster/app/{}", address.as_str().trim_end_matches('/'), segment(id)))
    }

    /// What bears on the logs of one application; `None` when the ResourceManager says that there is no such application,
    /// or not any more.
    ///
    /// # Errors
    /// [`ResourceManagerError`]; then nothing is known about it.
    pub async fn logs(&self, id: &str) -> Result<Option<LogReport>, ResourceManagerError> {
        let path = format!("ws/v1/cluster/apps/{}", segment(id));
        let question = Question { method: Method::GET, path: &path, query: &[], body: None };
        let one: Option<OneOfLogs> = self.ask(&question).await?;
        Ok(one.map(|one| one.app).filter(|app| app.id == id))
    }

    /// The attempts at one application, in no order; none when the ResourceManager does not know it.
    ///
    /// # Errors
    /// [`ResourceManagerError`]; then nothing is known about them.
    pub async fn attempts(&self, id: &str) -> Result<Vec<Attempt>, ResourceManagerError> {
        let path = format!("ws/v1/cluster/apps/{}/appattempts", segment(id));
        let question = Question { method: Method::GET, path: &path, query: &[], body: None };
        let listing: Option<AttemptListing> = self.ask(&question).await?;
        Ok(listing.and_then(|listing| listing.app_attempts).unwrap_or_default().app_attempt)
    }

    /// Begins a question to another daemon of the cluster, which may take `bound` in all, and gets no redirect followed.
    pub(super) fn get_elsewhere(&self, mut url: Url, bound: Duration) -> RequestBuilder {
        if let Some(user) = &self.user {
            url.query_pairs_mut().append_pair("user.name", user);
        }
        self.client.get(url).timeout(bound)
    }

    /// Asks for the end of an application; that it is over is known when [`application`](Self::application) says so.
    /// `false` when the ResourceManager says that there is none. To kill one that is over changes nothing.
    ///
    /// # Errors
    /// [`ResourceManagerError`]; then it may have been asked or not.
    pub async fn kill(&self, id: &str) -> Result<bool, ResourceManagerError> {
        let path = format!("ws/v1/cluster/apps/{}/state", segment(id));
        let body = Some(json!({"state": "KILLED"}));
        let question = Question { method: Method::PUT, path: &path, query: &[], body };
        let said: Option<Value> = self.ask(&question).await?;
        Ok(said.is_some())
    }

    /// Asks one address after the other until the active one has answered. `None`: it says that there is no such thing.
    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        question: &Question<'_>,
    ) -> Result<Option<T>, ResourceManagerError> {
        Ok(self.ask_whom(question).await?.0)
    }

    /// The same, and who has answered.
    async fn ask_whom<T: for<'de> Deserialize<'de>>(
        &self,
        question: &Question<'_>,
    ) -> Result<(Option<T>, Url), ResourceManagerError> {
        let first = self.active.load(Ordering::Relaxed);
        let mut excuses = Vec::new();
        let mut pointed = None;
        for step in 0..self.addresses.len() {
            let index = (first + step) % self.addresses.len();
            let answer = self.ask_at(&self.addresses[index], question).await;
            match self.judge(&self.addresses[index], answer, &mut excuses)? {
                Some(Answer::Found(text)) => match serde_json::from_str(&text) {
                    Ok(value) => {
                        self.active.store(index, Ordering::Relaxed);
                        return Ok((Some(value), self.addresses[index].clone()));
                    }
                    Err(error) => {
                        excuses.push(format!("{} says what is no answer: {error}", self.addresses[index]))
                    }
                },
                Some(Answer::NoSuch) => {
                    self.active.store(index, Ordering::Relaxed);
                    return Ok((None, self.addresses[index].clone()));
                }
                Some(Answer::Standby(to)) => {
                    excuses.push(format!("{} is on standby", self.addresses[index]));
                    pointed = pointed.or(to);
                }
                None => {}
            }
        }
        // None of those that we know is active, but one of them says who is.
        if let Some(mut address) = pointed {
            address.set_path("/");
            address.set_query(None);
            let answer = self.ask_at(&address, question).await;
            match self.judge(&address, answer, &mut excuses)? {
                Some(Answer::Found(text)) => match serde_json::from_str(&text) {
                    Ok(value) => return Ok((Some(value), address)),
                    Err(error) => excuses.push(format!("{address} says what is no answer: {error}")),
                },
                Some(Answer::NoSuch) => return Ok((None, address)),
                Some(Answer::Standby(_)) => excuses.push(format!("{address} is on standby")),
                None => {}
            }
        }
        Err(ResourceManagerError::Away(excuses.join("; ")))
    }

    /// Notes why an address has not answered; hands on what ends the search.
    #[expect(clippy::unused_self, reason = "reads as a step of `ask`")]
    fn judge(
        &self,
        address: &Url,
        answer: Result<Answer, AskError>,
        excuses: &mut Vec<String>,
    ) -> Result<Option<Answer>, ResourceManagerError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(AskError::Refused(reason)) => {
                Err(ResourceManagerError::Refused { address: address.to_string(), reason })
            }
            Err(AskError::Away(reason)) => {
                excuses.push(format!("{address} {reason}"));
                Ok(None)
            }
        }
    }

    /// Sends a question, once more with a login where one is wanted.
    async fn send(&self, address: &Url, request: RequestBuilder) -> Result<Response, AskError> {
        // Whether this one shows a login, and not whether one is wanted by now: others are asked at the same time.
        let shows_login = self.wants_login.load(Ordering::Relaxed);
        let (request, again) = if shows_login {
            // It had one before: what is in the way may pass.
            let login = self.login_for(address).await.map_err(AskError::for_now)?;
            (request.header(AUTHORIZATION, login), None)
        } else {
            let again = request.try_clone();
            (request, again)
        };
        let response = request.send().await.map_err(|error| AskError::of(&error))?;
        let negotiates = || {
            let wanted = response.headers().get_all(WWW_AUTHENTICATE).iter();
            wanted.filter_map(|value| value.to_str().ok()).any(|value| value.starts_with(NEGOTIATE))
        };
        match again {
            Some(again) if response.status() == StatusCode::UNAUTHORIZED && negotiates() => {
                let login = self.login_for(address).await?;
                self.wants_login.store(true, Ordering::Relaxed);
                again.header(AUTHORIZATION, login).send().await.map_err(|error| AskError::of(&error))
            }
            _ => Ok(response),
        }
    }

    /// What is to be shown to the server at an address.
    async fn login_for(&self, address: &Url) -> Result<String, AskError> {
        let (login, host) = (self.login.clone(), address.host_str().unwrap_or_default().to_owned());
        // It may have to ask others for a ticket.
        let token = tokio::task::spawn_blocking(move || login.token(&host)).await;
        match token.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(token) => Ok(format!("{NEGOTIATE} {token}")),
            Err(reason) => Err(AskError::Refused(format!(
                "it wants a login by Kerberos, which the worker does not have: {}",
                one_line(&reason)
            ))),
        }
    }

    async fn ask_at(&self, address: &Url, question: &Question<'_>) -> Result<Answer, AskError> {
        let mut url = address.clone();
        url.set_path(&format!("{}/{}", address.path().trim_end_matches('/'), question.path));
        {
            let mut pairs = url.query_pairs_mut();
            pairs.extend_pairs(question.query);
            if let Some(user) = &self.user {
                pairs.append_pair("user.name", user);
            }
        }
        let mut request =
            self.client.request(question.method.clone(), url).header(ACCEPT, "application/json");
        if let Some(body) = &question.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let response = self.send(address, request).await?;
        let status = response.status();
        if status.is_redirection() {
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            return Ok(Answer::Standby(to.and_then(|to| address.join(to).ok())));
        }
        let text = read(response).await?;
        if status.is_success() {
            // Without an active one to point to, a standby says so in plain words and with this status.
            if text.trim_start().starts_with('{') {
                return Ok(Answer::Found(text));
            }
            if text.contains("standby") || text.contains("no active RM") {
                return Ok(Answer::Standby(None));
            }
            return Err(AskError::Away(format!("says what is no answer: {}", one_line(&text))));
        }
        let refusal: Option<RemoteException> =
            serde_json::from_str(&text).ok().map(|refusal: Refusal| refusal.exception);
        match (status, refusal) {
            // Only the ResourceManager's own word for it counts: there may be anything else at this address.
            (StatusCode::NOT_FOUND, Some(refusal)) if refusal.exception == "NotFoundException" => {
                Ok(Answer::NoSuch)
            }
            // How Hadoop tells of an id that cannot be one.
            (StatusCode::BAD_REQUEST, Some(refusal))
                if refusal.exception == "BadRequestException"
                    && refusal.message.contains("ApplicationId") =>
            {
                Ok(Answer::NoSuch)
            }
            (StatusCode::UNAUTHORIZED, refusal) => Err(AskError::Refused(match refusal {
                Some(refusal) => one_line(&refusal.message),
                None => {
                    "it wants a login that is none by Kerberos, which is all that the worker has (HTTP status 401)".to_owned()
                }
            })),
            (StatusCode::FORBIDDEN, Some(refusal)) => Err(AskError::Refused(one_line(&refusal.message))),
            (StatusCode::FORBIDDEN, None) => {
                Err(AskError::Refused(format!("HTTP status 403: {}", one_line(&text))))
            }
            (_, Some(refusal)) => Err(AskError::Away(format!(
                "fails with {}: {}",
                refusal.exception,
                one_line(&refusal.message)
            ))),
            (status, None) => Err(AskError::Away(format!("fails with HTTP status {}", status.as_u16()))),
        }
    }
}

/// That one has started says nothing about another that took its place meanwhile.
fn must_be_the_same(before: &Url, now: &Url) -> Result<(), ResourceManagerError> {
    if before == now {
        return Ok(());
    }
    Err(ResourceManagerError::Away(format!("{now} has just become the active one in the place of {before}")))
}

/// Why an address has not answered.
enum AskError {
    Away(String),
    Refused(String),
}

impl AskError {
    /// The same, of something that may go better later.
    fn for_now(self) -> Self {
        match self {
            Self::Away(reason) | Self::Refused(reason) => Self::Away(reason),
        }
    }

    fn of(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Away(format!("does not answer within {} s", REQUEST.as_secs()));
        }
        Self::Away(format!("cannot be reached: {}", with_causes(error)))
    }
}

/// The whole text of an answer, if it is one of a bearable size.
async fn read(mut response: Response) -> Result<String, AskError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| AskError::of(&error))? {
        if bytes.len() + chunk.len() > LARGEST_ANSWER {
            return Err(AskError::Away(format!("says more than {} MiB", LARGEST_ANSWER >> 20)));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether YARN takes this as a tag, as it is. It would make upper case lower, and take a comma for the end of one.
#[must_use]
pub fn is_tag(text: &str) -> bool {
    (1..=LONGEST_TAG).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b',')
}

/// Tags in portions that fit into one question each.
fn portions<'a>(tags: &'a [&'a str]) -> Vec<&'a [&'a str]> {
    let mut portions = Vec::new();
    let mut rest = tags;
    while !rest.is_empty() {
        let mut length = 0;
        let fitting = rest.iter().take_while(|tag| {
            // A comma takes three bytes in a query.
            length += tag.len() + 3;
            length <= LONGEST_QUERY
        });
        let (portion, others) = rest.split_at(fitting.count().max(1));
        portions.push(portion);
        rest = others;
    }
    portions
}

/// A text as one step of a path: an id is given by others, and must not lead elsewhere.
pub(super) fn segment(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

/// An error of the client and what lies behind it, without the address, which is told anyway.
pub(super) fn with_causes(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Words as one line that can be read.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST_WORDS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
