//! What work waits for that gets no executors, and what the master of a standalone cluster says about that.
//!
//! That it waits is the driver's word alone: only that one knows whether the model wants anything of executors. The master
//! tells why, and whether it knows the application at all: one that was started again without its memory will never give
//! it an executor. It is asked by its page, and where that cannot be had, the words say so.
//!
//! This module must not know what becomes of a job.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::report::Wait;

/// How often the master is asked.
const PAUSE: Duration = Duration::from_secs(5);
/// How long it may take to answer.
#[cfg(feature = "standalone")]
const REQUEST: Duration = Duration::from_secs(10);
/// How often it has to say that it does not know an application until that is believed: it may be about to learn of it.
const BELIEVED: u32 = 2;
/// A larger answer is none.
#[cfg(feature = "standalone")]
const LARGEST_ANSWER: usize = 64 << 20;
/// What stands before the addresses in the name of a master.
const SCHEME: &str = "spark://";
/// What an executor gets where nobody says otherwise.
const DEFAULT_MEMORY: &str = "1g";
/// What the master of an application gets on YARN where nobody says otherwise, and the queue that it is asked of.
const DEFAULT_MASTER_MEMORY: &str = "512m";
const DEFAULT_QUEUE: &str = "default";

/// What is known of work that waits for executors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waited {
    /// What it waits for, and why, in words.
    pub words: String,
    /// It waits in vain: its cluster does not know it.
    pub in_vain: bool,
}

/// Looks after work that waits, as long as this lives.
#[derive(Debug)]
pub struct Waiting {
    known: watch::Receiver<Waited>,
    asking: AbortHandle,
}

impl Waiting {
    /// Asks the master that `wait` names, whose page is at `port` of each of its hosts. Needs a runtime.
    #[must_use]
    pub fn start(wait: Wait, port: u16) -> Self {
        let first = Waited { words: wants(&wait), in_vain: false };
        let (told, known) = watch::channel(first);
        let asking = tokio::spawn(async move {
            let mut unknown_for = 0;
            while !told.is_closed() {
                let answer = master_of(&wait.master, port).await;
                unknown_for = match &answer {
                    Some(Ok(master)) if !master.knows(&wait) => unknown_for + 1,
                    Some(Err(_)) | None => unknown_for,
                    Some(Ok(_)) => 0,
                };
                let waited = judge(&wait, answer, unknown_for >= BELIEVED);
                tracing::debug!(
                    application = wait.application,
                    reason = waited.words,
                    "work waits for executors"
                );
                told.send_if_modified(|known| std::mem::replace(known, waited.clone()) != waited);
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { known, asking: asking.abort_handle() }
    }

    /// What is known by now.
    #[must_use]
    pub fn words(&self) -> String {
        self.known.borrow().words.clone()
    }

    /// Waits until it is known that it waits in vain; for ever when it does not. Cancelling the call loses nothing.
    pub async fn in_vain(&mut self) {
        if self.known.wait_for(|waited| waited.in_vain).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

/// What is wanted, in words.
fn wants(wait: &Wait) -> String {
    let Some(application) = &wait.application else {
        let memory = wait.memory.as_deref().unwrap_or(DEFAULT_MASTER_MEMORY);
        let cores = wait.cores.as_deref().unwrap_or("1");
        let queue = wait.queue.as_deref().unwrap_or(DEFAULT_QUEUE);
        return format!(
            "the application that Spark asked of {} has not begun: its master is to have {memory} of memory and {cores} core(s) \
             (spark.yarn.am.memory, spark.yarn.am.cores) in the queue {queue:?}; choose a queue with room (--queue)",
            wait.master
        );
    };
    let memory = wait.memory.as_deref().unwrap_or(DEFAULT_MEMORY);
    let cores = match wait.cores.as_deref() {
        None => "at least 1 core".to_owned(),
        Some("1") => "1 core".to_owned(),
        Some(cores) => format!("{cores} cores"),
    };
    let lost = if wait.had_executors { " any more" } else { "" };
    format!(
        "{application} on {} has no executor{lost}, of which each is to have {memory} of memory and {cores}",
        wait.master
    )
}

/// What there is to be said with what a master answers, if one was asked.
fn judge(wait: &Wait, answer: Option<Result<Master, String>>, is_believed: bool) -> Waited {
    let mut waited = Waited { words: wants(wait), in_vain: false };
    let more = match answer {
        None => return waited,
        Some(Err(reason)) => {
            format!("the master's page cannot be asked why ({reason}; see spark.master_page_port)")
        }
        Some(Ok(master)) if !master.knows(wait) => {
            waited.in_vain = is_believed;
            "the master does not know this application: it was started again without its memory \
             (spark.deploy.recoveryMode), or has removed it"
                .to_owned()
        }
        Some(Ok(master)) => master.rooms(),
    };
    waited.words = format!("{}; {more}", waited.words);
    waited
}

/// What the page of a master says (`JsonProtocol.writeMasterState`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Master {
    url: String,
    status: String,
    #[serde(default)]
    workers: Vec<Worker>,
    #[serde(default)]
    activeapps: Vec<App>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Worker {
    state: String,
    cores: u64,
    coresfree: u64,
    /// In MiB, as is the next.
    memory: u64,
    memoryfree: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct App {
    id: String,
}

impl Master {
    fn knows(&self, wait: &Wait) -> bool {
        self.activeapps.iter().any(|app| Some(&app.id) == wait.application.as_ref())
    }

    /// What its workers have, in words.
    fn rooms(&self) -> String {
        let alive: Vec<&Worker> = self.workers.iter().filter(|worker| worker.state == "ALIVE").collect();
        let most = |of: fn(&Worker) -> u64| alive.iter().map(|worker| of(worker)).max().unwrap_or(0);
        if alive.is_empty() {
            return "the master has no worker that is alive".to_owned();
        }
        format!(
            "of the workers that the master has alive ({}) none has more than {} MiB of memory and {} cores in all, or {} MiB and \
             {} cores free",
            alive.len(),
            most(|worker| worker.memory),
            most(|worker| worker.cores),
            most(|worker| worker.memoryfree),
            most(|worker| worker.coresfree),
        )
    }
}

/// The hosts in the name of a master, with their ports: `spark://a:7077,b:7077`.
fn hosts(master: &str) -> impl Iterator<Item = &str> {
    master.strip_prefix(SCHEME).into_iter().flat_map(|hosts| hosts.split(','))
}

/// What the active one of the masters that `master` names says; `None` where that is no standalone cluster.
#[cfg(feature = "standalone")]
async fn master_of(master: &str, port: u16) -> Option<Result<Master, String>> {
    let mut reasons = Vec::new();
    let mut is_standalone = false;
    for host in hosts(master) {
        is_standalone = true;
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        match ask(&format!("http://{name}:{port}/json/")).await {
            Ok(found) if !hosts(master).any(|host| found.url == format!("{SCHEME}{host}")) => {
                reasons.push(format!("{name}:{port} is the page of {}", found.url));
            }
            Ok(found) if found.status == "ALIVE" => return Some(Ok(found)),
            Ok(found) => reasons.push(format!("the master at {host} is {}", found.status)),
            Err(reason) => reasons.push(format!("{name}:{port} {reason}")),
        }
    }
    is_standalone.then(|| Err(reasons.join("; ")))
}

#[cfg(feature = "standalone")]
async fn ask(url: &str) -> Result<Master, String> {
    // The one provider of cryptography that this program is built with. That it was set before is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(REQUEST)
        .redirect(reqwest::redirect::Policy::none())
        // A cluster is not asked by way of the proxy that leads out of the house.
        .no_proxy()
        .build()
        .map_err(|error| deepest(&error))?;
    let mut response = client.get(url).send().await.map_err(|error| deepest(&error))?;
    if !response.status().is_success() {
        return Err(format!("answers with HTTP status {}", response.status().as_u16()));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| deepest(&error))? {
        if bytes.len() + chunk.len() > LARGEST_ANSWER {
            return Err(format!("says more than {} MiB", LARGEST_ANSWER >> 20));
        }
        bytes.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("says what is no answer: {error}"))
}

/// What lies behind an error.
#[cfg(feature = "standalone")]
fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(not(feature = "standalone"))]
async fn master_of(master: &str, _: u16) -> Option<Result<Master, String>> {
    let is_standalone = hosts(master).next().is_some();
    is_standalone.then(|| Err("this program was built without that".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait() -> Wait {
        Wait {
            application: Some("app-1".into()),
            master: "spark://a:7077,b:7077".into(),
            memory: Some("8g".into()),
            cores: Some("3".into()),
            most_cores: None,
            had_executors: false,
            queue: None,
        }
    }

    fn master(apps: &[&str], workers: &str) -> Master {
        let apps: Vec<_> = apps.iter().map(|id| serde_json::json!({"id": id, "state": "WAITING"})).collect();
        let workers: serde_json::Value = serde_json::from_str(workers).unwrap();
        let state = serde_json::json!({"url": "spark://a:7077", "status": "ALIVE", "workers": workers, "activeapps": apps});
        serde_json::from_value(state).unwrap()
    }

    #[test]
    fn what_is_asked_for_and_what_there_is_are_told() {
        let workers = r#"[{"state":"DEAD","cores":64,"coresfree":64,"memory":99999,"memoryfree":99999},
            {"state":"ALIVE","cores":2,"coresfree":1,"memory":2048,"memoryfree":1024}]"#;
        assert_eq!(
            judge(&wait(), Some(Ok(master(&["app-1"], workers))), false),
            Waited {
                words: "app-1 on spark://a:7077,b:7077 has no executor, of which each is to have 8g of memory and 3 cores; of \
                        the workers that the master has alive (1) none has more than 2048 MiB of memory and 2 cores in all, or \
                        1024 MiB and 1 cores free"
                    .to_owned(),
                in_vain: false
            }
        );
        let nobody = judge(&wait(), Some(Ok(master(&["app-1"], "[]"))), true);
        assert!(nobody.words.ends_with("; the master has no worker that is alive") && !nobody.in_vain);
        let lost = Wait { had_executors: true, memory: None, cores: None, ..wait() };
        assert_eq!(
            judge(&lost, None, false).words,
            "app-1 on spark://a:7077,b:7077 has no executor any more, of which each is to have 1g of memory and at least 1 core"
        );
    }

    #[test]
    fn what_has_not_begun_on_yarn_is_told_with_its_queue_and_what_it_asks_for() {
        let wait = Wait {
            application: None,
            master: "yarn".into(),
            memory: None,
            cores: None,
            queue: Some("busy".into()),
            ..wait()
        };
        assert_eq!(
            judge(&wait, None, true),
            Waited {
                words: "the application that Spark asked of yarn has not begun: its master is to have 512m of memory and 1 core(s) \
                        (spark.yarn.am.memory, spark.yarn.am.cores) in the queue \"busy\"; choose a queue with room (--queue)"
                    .to_owned(),
                in_vain: false
            }
        );
    }

    #[test]
    fn only_a_master_that_says_so_again_makes_waiting_vain() {
        let forgotten = || Some(Ok(master(&["app-2"], "[]")));
        assert!(!judge(&wait(), forgotten(), false).in_vain);
        let waited = judge(&wait(), forgotten(), true);
        assert!(waited.in_vain && waited.words.contains("does not know this application"), "{waited:?}");
        let away = judge(&wait(), Some(Err("a:8080 connection refused".into())), true);
        assert!(!away.in_vain && away.words.contains("a:8080 connection refused"), "{away:?}");
    }

    #[tokio::test]
    async fn what_is_no_standalone_cluster_has_no_master_to_be_asked() {
        assert_eq!(master_of("yarn", 1).await, None);
        assert_eq!(hosts("spark://a:1,b:2").collect::<Vec<_>>(), ["a:1", "b:2"]);
    }
}
