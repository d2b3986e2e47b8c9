//! A real HDFS, YARN and standalone Spark for the tests, started by `deploy/cluster` and removed when the test program
//! ends.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot have its cluster cannot go on"
)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, getuid};
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::PATIENCE;

/// What can be started of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A NameNode and a DataNode.
    Hdfs,
    /// A ResourceManager and a NodeManager.
    Yarn,
    /// A standalone master and a worker.
    Spark,
    /// The API server of Kubernetes.
    Kubernetes,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Self::Hdfs => "hdfs",
            Self::Yarn => "yarn",
            Self::Spark => "spark",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// A daemon of a cluster, as `cluster.env` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// HDFS' own.
    NameNode,
    /// YARN's own.
    ResourceManager,
    /// The one that runs containers.
    NodeManager,
    /// The master of the standalone Spark.
    Master,
    /// Its worker.
    Worker,
    /// That of Kubernetes.
    ApiServer,
}

impl Daemon {
    fn word(self) -> &'static str {
        match self {
            Self::NameNode => "NAMENODE",
            Self::ResourceManager => "RESOURCEMANAGER",
            Self::NodeManager => "NODEMANAGER",
            Self::Master => "MASTER",
            Self::Worker => "WORKER",
            Self::ApiServer => "APISERVER",
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    directory: PathBuf,
    aggregates_logs: bool,
    recovers: bool,
    settings: Mutex<HashMap<String, String>>,
}

static SHARED: OnceLock<Cluster> = OnceLock::new();
static IN_USE: RwLock<()> = RwLock::const_new(());

extern "C" fn remove_shared() {
    if let Some(cluster) = SHARED.get() {
        cluster.remove();
    }
}

/// The shared cluster, used in a way that does not disturb others.
pub type Calm = (&'static Cluster, RwLockReadGuard<'static, ()>);
/// The shared cluster, with nobody else on it.
pub type Alone = (&'static Cluster, RwLockWriteGuard<'static, ()>);

impl Cluster {
    /// The cluster of this test program; each part of it is started when it is first asked for.
    ///
    /// Nobody stops it or a part of it while the guard that comes along is held.
    pub async fn shared(parts: &'static [Part]) -> Calm {
        let in_use = IN_USE.read().await;
        (Self::with(parts).await, in_use)
    }

    /// The same for a test that stops what others need: it waits until nobody else uses it, and others wait for it.
    pub async fn alone(parts: &'static [Part]) -> Alone {
        let in_use = IN_USE.write().await;
        (Self::with(parts).await, in_use)
    }

    async fn with(parts: &'static [Part]) -> &'static Self {
        tokio::task::spawn_blocking(|| {
            let cluster = SHARED.get_or_init(|| {
                // SAFETY: the function is safe to call at any time, the end of the process included.
                unsafe { libc::atexit(remove_shared) };
                let name = format!("spark-runtime-test-cluster-{}", uuid::Uuid::new_v4().simple());
                Self::at(std::env::temp_dir().join(name)).recovering()
            });
            cluster.up(parts);
            cluster
        })
        .await
        .unwrap()
    }

    /// A cluster in a folder of the caller's choice, of which nothing is started yet.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { directory, aggregates_logs: false, recovers: false, settings: Mutex::default() }
    }

    /// The same, whose YARN moves the logs of an application that is over into HDFS; HDFS is to be started first.
    #[must_use]
    pub fn aggregating_logs(self) -> Self {
        Self { aggregates_logs: true, ..self }
    }

    /// The same, whose ResourceManager and standalone master know the applications of before when they are started again.
    #[must_use]
    pub fn recovering(self) -> Self {
        Self { recovers: true, ..self }
    }

    /// Starts what is not running of some parts. Two callers at once do not disturb each other.
    ///
    /// # Panics
    /// When it does not start.
    pub fn up(&self, parts: &[Part]) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let started = self.command("up", parts);
        assert!(started.status.success(), "no cluster: {}", String::from_utf8_lossy(&started.stderr));
        *settings = self.environment();
    }

    /// Learns of one that somebody else has started in this folder.
    ///
    /// # Panics
    /// When nobody has.
    pub fn attach(&self) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        *settings = self.environment();
    }

    /// What `cluster.env` says.
    fn environment(&self) -> HashMap<String, String> {
        let text = std::fs::read_to_string(self.directory.join("cluster.env")).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.into(), value.into())).collect()
    }

    /// Calls `deploy/cluster` about some parts, or all when none is given.
    pub fn command(&self, verb: &str, parts: &[Part]) -> Output {
        let words: Vec<&str> = parts.iter().map(|part| part.word()).collect();
        let mut command = Command::new(crate::project().join("deploy/cluster"));
        command.arg(verb).arg(&self.directory);
        if !words.is_empty() {
            command.args(["--only", &words.join(",")]);
        }
        if verb == "up" && self.aggregates_logs {
            command.arg("--aggregate-logs");
        }
        if verb == "up" && self.recovers {
            command.arg("--recover");
        }
        if let Some(home) = std::env::var_os("SPARK_RUNTIME_TEST_SPARK_HOME") {
            command.env("SPARK_HOME", home);
        }
        command.stdin(Stdio::null()).output().expect("deploy/cluster starts")
    }

    /// Kills it and removes its data.
    pub fn remove(&self) {
        let ended = self.command("remove", &[]);
        if !ended.status.success() {
            eprintln!("deploy/cluster remove failed for {}", self.directory.display());
        }
    }

    /// Its folder.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One line of its `cluster.env`.
    ///
    /// # Panics
    /// When the part that it is about was not started.
    #[must_use]
    pub fn setting(&self, name: &str) -> String {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)[name].clone()
    }

    /// The process of a daemon.
    #[must_use]
    pub fn pid(&self, daemon: Daemon) -> Pid {
        Pid::from_raw(self.setting(&format!("{}_PID", daemon.word())).parse().unwrap())
    }

    /// Sends a daemon a signal.
    pub fn signal(&self, daemon: Daemon, signal: Signal) {
        let _ = kill(self.pid(daemon), signal);
    }

    /// The user who may do everything on its HDFS: the one who runs it.
    #[must_use]
    pub fn superuser() -> String {
        User::from_uid(getuid()).unwrap().expect("this user has a name").name
    }

    /// Runs a command of HDFS' administrator.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn admin(&self, arguments: &[&str]) -> String {
        let done = Command::new(crate::project().join("deploy/cluster"))
            .arg("admin")
            .arg(&self.directory)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("deploy/cluster starts");
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Asks HDFS over HTTP, as the superuser: `MKDIRS`, `SETPERMISSION&permission=700` and so on, of a plain path.
    ///
    /// # Panics
    /// When it refuses.
    pub fn hdfs(&self, method: &str, path: &str, operation: &str) -> Value {
        let (status, body) = self.webhdfs(method, path, operation, b"");
        assert!((200..300).contains(&status), "{operation} {path}: {status} {}", text(&body));
        serde_json::from_slice(&body).unwrap_or(Value::Null)
    }

    /// Writes a file to HDFS, with the folders that lead to it.
    pub fn hdfs_write(&self, path: &str, content: &[u8]) {
        let (status, body) = self.webhdfs("PUT", path, "CREATE&overwrite=true", content);
        assert_eq!(status, 201, "{path}: {}", text(&body));
    }

    /// The content of a file in HDFS; `None` when it is not there.
    #[must_use]
    pub fn hdfs_read(&self, path: &str) -> Option<Vec<u8>> {
        let (status, body) = self.webhdfs("GET", path, "OPEN", b"");
        (status == 200).then_some(body)
    }

    /// The names in a folder of HDFS, in their order; none when it is not there.
    #[must_use]
    pub fn hdfs_list(&self, path: &str) -> Vec<String> {
        let (status, body) = self.webhdfs("GET", path, "LISTSTATUS", b"");
        if status != 200 {
            return Vec::new();
        }
        let listed: Value = serde_json::from_slice(&body).unwrap();
        let entries = listed["FileStatuses"]["FileStatus"].as_array().unwrap();
        let names = entries.iter().map(|entry| entry["pathSuffix"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    fn webhdfs(&self, method: &str, path: &str, operation: &str, content: &[u8]) -> (u16, Vec<u8>) {
        let name_node = self.setting("HDFS_HTTP_URI");
        let url = format!("{name_node}/webhdfs/v1{path}?user.name={}&op={operation}", Self::superuser());
        // The NameNode knows which DataNode has the content, or is to have it.
        let (status, head, body) = http(method, &url, b"");
        if status == 307 {
            let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).expect("a place");
            let (status, _, body) = http(method, location.trim(), content);
            return (status, body);
        }
        (status, body)
    }

    /// Submits an application to YARN that has these tags and does what a shell command says, which no master of its own
    /// looks after: it is accepted, and runs no further. Gives its id.
    ///
    /// # Panics
    /// When YARN does not take it.
    #[must_use]
    pub fn yarn_submit(&self, tags: &[&str], command: &str) -> String {
        let apps = format!("{}/ws/v1/cluster/apps", self.setting("YARN_URI"));
        let user = format!("user.name={}", Self::superuser());
        let (status, _, body) = http("POST", &format!("{apps}/new-application?{user}"), b"");
        assert_eq!(status, 200, "{}", text(&body));
        let made: Value = serde_json::from_slice(&body).unwrap();
        let id = made["application-id"].as_str().unwrap().to_owned();
        let application = serde_json::json!({
            "application-id": id, "application-name": "shell", "application-type": "SPARK", "max-app-attempts": 1,
            "application-tags": {"tag": tags}, "resource": {"memory": 256, "vCores": 1},
            "am-container-spec": {"commands": {"command": command}},
        });
        let (status, _, body) = http("POST", &format!("{apps}?{user}"), application.to_string().as_bytes());
        assert_eq!(status, 202, "{}", text(&body));
        id
    }

    /// Ends an application, as an administrator does.
    ///
    /// # Panics
    /// When YARN does not take it.
    pub fn yarn_kill(&self, id: &str) {
        let state = format!(
            "{}/ws/v1/cluster/apps/{id}/state?user.name={}",
            self.setting("YARN_URI"),
            Self::superuser()
        );
        let (status, _, body) = http_of("PUT", &state, "application/json", br#"{"state":"KILLED"}"#);
        assert!([200, 202].contains(&status), "{}", text(&body));
    }

    /// Ends an application of the standalone cluster by its master's page, as an administrator does.
    ///
    /// # Panics
    /// When the page does not take it.
    pub fn spark_kill(&self, id: &str) {
        let page = self.setting("SPARK_MASTER_URI");
        let (_, _, body) = http("GET", &page, b"");
        // The forms of newer releases have a token that they want back.
        let shown = text(&body);
        let token = shown.split('<').find(|tag| tag.contains("\"csrfToken\"")).and_then(|tag| {
            let (_, value) = tag.split_once("value=\"")?;
            Some(value.split_once('"')?.0)
        });
        let form = format!("id={id}&terminate=true&csrfToken={}", token.unwrap_or_default());
        let kind = "application/x-www-form-urlencoded";
        let (status, _, body) = http_of("POST", &format!("{page}/app/kill/"), kind, form.as_bytes());
        assert!([200, 302].contains(&status), "{status}: {}", text(&body));
    }

    /// Asks YARN's ResourceManager, with `/ws/v1/cluster/...`.
    ///
    /// # Panics
    /// When it answers with an error.
    #[must_use]
    pub fn yarn(&self, path: &str) -> Value {
        let (status, _, body) = http("GET", &format!("{}{path}", self.setting("YARN_URI")), b"");
        assert_eq!(status, 200, "{path}: {}", text(&body));
        serde_json::from_slice(&body).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Status, head and body of what a server says.
fn http(method: &str, url: &str, content: &[u8]) -> (u16, String, Vec<u8>) {
    let kind = if method == "POST" { "application/json" } else { "application/octet-stream" };
    http_of(method, url, kind, content)
}

fn http_of(method: &str, url: &str, kind: &str, content: &[u8]) -> (u16, String, Vec<u8>) {
    let rest = url.strip_prefix("http://").expect("a plain address");
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(authority).expect("the server is there");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{method} /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
         Content-Length: {}\r\n\r\n",
        content.len()
    )
    .unwrap();
    stream.write_all(content).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end_of_head = |answer: &[u8]| answer.windows(4).position(|window| window == b"\r\n\r\n");
    let mut end = end_of_head(&answer).expect("an answer in HTTP");
    if answer.starts_with(b"HTTP/1.1 100") {
        // Some say that they go on listening before they answer.
        answer.drain(..end + 4);
        end = end_of_head(&answer).expect("an answer in HTTP");
    }
    let head = text(&answer[..end]);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut body = answer.split_off(end + 4);
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    (status, head, body)
}

fn unchunked(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = chunks.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(text(&chunks[..end]).trim(), 16).expect("a length");
        if length == 0 {
            break;
        }
        body.extend_from_slice(&chunks[end + 2..end + 2 + length]);
        chunks = &chunks[end + 4 + length..];
    }
    body
}
