//! A real RabbitMQ for the tests, started by `deploy/broker` and removed when the test program ends.
//!
//! `SPARK_RUNTIME_TEST_BROKER` chooses the release, as 4.0; without it the machine's own is taken.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot have its broker cannot go on"
)]

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use spark_runtime_protocol::client::{Client, Submission, Subscription, Topic};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::topology::{Shape, Topology};
use spark_runtime_protocol::{Event, EventKind, JobId};

use crate::PATIENCE;

/// The variable that chooses the release of RabbitMQ.
pub const RELEASE: &str = "SPARK_RUNTIME_TEST_BROKER";

/// The broker that all tests of a program share.
#[derive(Debug)]
pub struct Broker {
    directory: PathBuf,
    settings: Mutex<HashMap<String, String>>,
}

/// A broker of a test's own. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Own(&'static Broker);

impl std::ops::Deref for Own {
    type Target = &'static Broker;

    fn deref(&self) -> &&'static Broker {
        &self.0
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.remove();
    }
}

static SHARED: OnceLock<Broker> = OnceLock::new();

/// The root folder of the system whose RabbitMQ is tested; empty for the machine's own.
fn root() -> &'static str {
    static ROOT: OnceLock<String> = OnceLock::new();
    ROOT.get_or_init(|| {
        let Ok(release) = std::env::var(RELEASE) else { return String::new() };
        let install = Command::new(crate::project().join("deploy/install"))
            .args(["--broker", &release])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .expect("deploy/install starts");
        assert!(install.status.success(), "there is no RabbitMQ {release}");
        String::from_utf8(install.stdout).unwrap().trim().to_owned()
    })
}

extern "C" fn remove_shared() {
    if let Some(broker) = SHARED.get() {
        broker.command("remove");
    }
}

impl Broker {
    /// The broker of this test program; started when it is first asked for.
    pub fn shared() -> &'static Self {
        SHARED.get_or_init(|| {
            // SAFETY: the function is safe to call at any time, the end of the process included.
            unsafe { libc::atexit(remove_shared) };
            Self::start(&[])
        })
    }

    /// A broker of a test's own. `environment` goes to `deploy/broker`.
    #[must_use]
    pub fn start(environment: &[(&str, &str)]) -> Self {
        let directory =
            std::env::temp_dir().join(format!("spark-runtime-test-broker-{}", uuid::Uuid::new_v4().simple()));
        Self::start_in(directory, environment)
    }

    /// The same with its data and logs in a folder of the caller's choice.
    #[must_use]
    pub fn start_in(directory: PathBuf, environment: &[(&str, &str)]) -> Self {
        let broker = Self { directory, settings: Mutex::default() };
        broker.up(environment);
        broker
    }

    /// A broker of a test's own that virtual hosts can be made on.
    #[must_use]
    pub fn own(environment: &[(&str, &str)]) -> Own {
        Own(Box::leak(Box::new(Self::start(environment))))
    }

    /// One line of its `broker.env`.
    fn setting(&self, name: &str) -> String {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)[name].clone()
    }

    /// Its folder.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts it again where it was.
    pub fn up(&self, environment: &[(&str, &str)]) {
        let started = Command::new(crate::project().join("deploy/broker"))
            .arg("up")
            .arg(&self.directory)
            .env("BROKER_ROOT", root())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .expect("deploy/broker starts");
        assert!(started.status.success(), "no broker: {}", String::from_utf8_lossy(&started.stderr));
        let settings = std::fs::read_to_string(self.directory.join("broker.env")).unwrap();
        *self.settings.lock().unwrap() = settings
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
    }

    /// Stops it in order; its data stays.
    pub fn down(&self) {
        self.command("down");
    }

    /// Kills it as a loss of power would, but that what it has written is there; its data stays.
    pub fn kill(&self) {
        let _ = kill(self.pid(), Signal::SIGKILL);
    }

    /// Stops it where it is, or lets it go on.
    pub fn pause(&self, is_paused: bool) {
        let _ = kill(self.pid(), if is_paused { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    /// The process that is the broker.
    fn pid(&self) -> Pid {
        Pid::from_raw(self.setting("BROKER_PID").parse().unwrap())
    }

    /// Calls a function inside the broker and gives what it says: `call` is module, function and list of arguments, in
    /// Erlang's words.
    ///
    /// # Errors
    /// When the broker is not there.
    pub fn call(&self, call: &str) -> io::Result<String> {
        self.erl_call(&["-a", call], "")
    }

    /// Evaluates Erlang expressions, each with a full stop behind it, inside the broker and gives what the last one is.
    ///
    /// # Errors
    /// When the broker is not there.
    pub fn evaluate(&self, expressions: &str) -> io::Result<String> {
        self.erl_call(&["-e"], expressions)
    }

    fn erl_call(&self, arguments: &[&str], input: &str) -> io::Result<String> {
        let environment = std::fs::read(format!("/proc/{}/environ", self.pid()))?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let value = |name: &str| {
            let mut pairs = environment.split('\0').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == name).then_some(value)).unwrap_or_default()
        };
        // The cookie that lets one in lies in the broker's home, which may be in a root of the broker's own.
        let home = format!("/proc/{}/root{}", self.pid(), value("HOME"));
        let mut calling = Command::new("erl_call")
            .args(["-n", &self.setting("BROKER_NODE")])
            .args(arguments)
            .env("HOME", home)
            .env("ERL_EPMD_PORT", value("ERL_EPMD_PORT"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = calling.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        let said = calling.wait_with_output()?;
        if said.status.success() {
            Ok(String::from_utf8_lossy(&said.stdout).into_owned())
        } else {
            Err(io::Error::other(String::from_utf8_lossy(&said.stderr).into_owned()))
        }
    }

    /// Whether it takes connections.
    #[must_use]
    pub fn is_there(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port())).is_ok()
    }

    /// Kills it and removes its data.
    pub fn remove(&self) {
        self.command("remove");
    }

    fn command(&self, verb: &str) {
        let ended = Command::new(crate::project().join("deploy/broker"))
            .arg(verb)
            .arg(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("deploy/broker {verb} failed for {}", self.directory.display());
        }
    }

    /// The port for AMQP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.setting("AMQP_PORT").parse().unwrap()
    }

    /// The port for AMQP over TLS, when it was started with certificates.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.setting("AMQPS_PORT").parse().unwrap()
    }

    /// The address of its first virtual host by way of a port, with user and password.
    #[must_use]
    pub fn uri_at(&self, port: impl std::fmt::Display) -> String {
        let (user, password) = (self.setting("HTTP_USER"), self.setting("HTTP_PASSWORD"));
        format!("amqp://{user}:{password}@127.0.0.1:{port}/%2f")
    }

    /// Its release, as `(4, 0)`.
    #[must_use]
    pub fn release(&self) -> (u32, u32) {
        let version = self.http("GET", "/api/overview", None)["rabbitmq_version"].clone();
        let mut parts = version.as_str().unwrap().split('.').map(|part| part.parse().unwrap());
        (parts.next().unwrap(), parts.next().unwrap())
    }

    /// A virtual host that nobody else uses, without anything in it.
    #[must_use]
    pub fn vhost(&'static self) -> Vhost {
        self.named_vhost()
    }

    fn named_vhost(&'static self) -> Vhost {
        let name = format!("test-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        self.http("PUT", &format!("/api/vhosts/{name}"), None);
        let everything = json!({"configure": ".*", "write": ".*", "read": ".*"});
        let user = self.setting("HTTP_USER");
        self.http("PUT", &format!("/api/permissions/{name}/{user}"), Some(&everything));
        Vhost { broker: self, name }
    }

    /// Asks the management interface. An answer that is no JSON is null.
    ///
    /// # Panics
    /// When it does not answer, or with an error.
    pub fn http(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.http_status(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Asks the management interface; gives the status too.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn http_status(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.try_http(method, path, body).expect("the management interface answers")
    }

    /// The same for a broker that may be away.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn try_http(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<(u16, Value)> {
        let authority =
            self.setting("HTTP_URI").trim_start_matches("http://").trim_end_matches('/').to_owned();
        let login = format!("{}:{}", self.setting("HTTP_USER"), self.setting("HTTP_PASSWORD"));
        let login = base64::engine::general_purpose::STANDARD.encode(login);
        let body = body.map(ToString::to_string).unwrap_or_default();
        let mut stream = TcpStream::connect(&authority)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {authority}\r\nAuthorization: Basic {login}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, text) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok((status, serde_json::from_str(text).unwrap_or(Value::Null)))
    }
}

/// What workers with settings of their own for retries, and the defaults for all else, need.
pub fn usual(delays: &[Duration]) -> Shape {
    Shape {
        delays: delays.to_vec(),
        lease: Duration::from_secs(60),
        retention: Duration::from_secs(7 * 24 * 3600),
    }
}

/// A test's own virtual host.
#[derive(Debug)]
pub struct Vhost {
    broker: &'static Broker,
    name: String,
}

impl Drop for Vhost {
    fn drop(&mut self) {
        // The broker is removed with everything on it; a test that ends while it is down must not fail by this.
        if self.broker.is_there() {
            self.broker.http_status("DELETE", &format!("/api/vhosts/{}", self.name), None);
        }
    }
}

impl Vhost {
    /// The address of the virtual host, with user and password.
    #[must_use]
    pub fn uri(&self) -> String {
        self.uri_at(self.broker.port())
    }

    /// The same by way of another port.
    #[must_use]
    pub fn uri_at(&self, port: u16) -> String {
        let (user, password) = (self.broker.setting("HTTP_USER"), self.broker.setting("HTTP_PASSWORD"));
        format!("amqp://{user}:{password}@127.0.0.1:{port}/{}", self.name)
    }

    /// The address for another user.
    #[must_use]
    pub fn uri_as(&self, user: &str, password: &str) -> String {
        format!("amqp://{user}:{password}@127.0.0.1:{}/{}", self.broker.port(), self.name)
    }

    /// The address over TLS, for a broker that was started with certificates.
    #[must_use]
    pub fn tls_uri(&self, host: &str) -> String {
        self.tls_uri_at(host, self.broker.tls_port())
    }

    /// The same by way of another port.
    #[must_use]
    pub fn tls_uri_at(&self, host: &str, port: impl std::fmt::Display) -> String {
        let (user, password) = (self.broker.setting("HTTP_USER"), self.broker.setting("HTTP_PASSWORD"));
        format!("amqps://{user}:{password}@{host}:{port}/{}", self.name)
    }

    /// The broker that it is on.
    #[must_use]
    pub fn broker(&self) -> &'static Broker {
        self.broker
    }

    /// Asks the management interface about this virtual host: `{}` in `path` stands for its name.
    pub fn http(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.broker.http(method, &path.replace("{}", &self.name), body)
    }

    /// The same with the status, for what may be missing.
    pub fn http_status(&self, method: &str, path: &str) -> (u16, Value) {
        self.broker.http_status(method, &path.replace("{}", &self.name), None)
    }

    /// Kills the process inside the broker that leads a quorum queue.
    ///
    /// # Panics
    /// When there is none.
    pub fn kill_leader_of(&self, queue: &str) {
        // The replica of a queue on a node is a process that is registered under the names of host and queue.
        let kill = format!("exit(whereis('{}_{queue}'), kill).\n", self.name);
        let said = self.broker.evaluate(&kill).unwrap();
        assert!(said.contains("true"), "{kill} {said}");
    }

    /// A client of its own.
    pub async fn client(&self) -> Client {
        let endpoint = Endpoint::new(&self.uri(), Duration::from_secs(10)).unwrap();
        Client::connect(&endpoint, "test").await.unwrap()
    }

    /// Declares the service's topology, as far as it is not there.
    pub async fn declare(&self, shape: &Shape) {
        let endpoint = Endpoint::new(&self.uri(), Duration::from_secs(10)).unwrap();
        let connection = endpoint.connect("test topology").await.unwrap();
        Topology::new(shape).declare(&connection).await.unwrap();
        let _ = connection.close(200, "done".into()).await;
    }

    /// A virtual host with the service's topology and a client that follows all events.
    pub async fn ready(delays: &[Duration]) -> Ready {
        Self::ready_for(&usual(delays)).await
    }

    /// The same for workers with these settings.
    pub async fn ready_for(shape: &Shape) -> Ready {
        Self::ready_at(Broker::shared(), shape).await
    }

    /// The same as [`Vhost::ready`] on a broker of the test's own.
    pub async fn ready_on(broker: &'static Broker, delays: &[Duration]) -> Ready {
        Self::ready_at(broker, &usual(delays)).await
    }

    /// The same on a broker of the test's own for workers with these settings.
    pub async fn ready_at(broker: &'static Broker, shape: &Shape) -> Ready {
        let vhost = broker.vhost();
        vhost.declare(shape).await;
        let client = vhost.client().await;
        let events = client.subscribe(&Topic::All).await.unwrap();
        Ready { vhost, client, events, seen: Vec::new() }
    }

    /// The number of messages in a queue, those that are not acknowledged included.
    ///
    /// Counted on the spot by a passive declaration, which counts only ready ones, plus what the management interface
    /// knows of unacknowledged ones.
    pub fn messages(&self, queue: &str) -> u64 {
        let (_, answer) = self.broker.http_status("GET", &format!("/api/queues/{}/{queue}", self.name), None);
        answer["messages"].as_u64().unwrap_or(u64::MAX)
    }
}

/// A virtual host with everything on it, and an ear for all events.
#[derive(Debug)]
pub struct Ready {
    /// Where.
    pub vhost: Vhost,
    /// Publishes.
    pub client: Client,
    /// Hears.
    pub events: Subscription,
    /// Every event that was heard so far.
    pub seen: Vec<Event>,
}

impl Ready {
    /// Publishes a job under an id.
    pub async fn publish(&self, id: &str, body: impl Into<Vec<u8>>) {
        self.client.publish(&Submission::new(JobId::new(id).unwrap(), body.into())).await.unwrap();
    }

    /// Waits for an event of a job of one of these kinds. Those that were heard before count, each once.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn heard(&mut self, id: &str, kinds: &[EventKind]) -> Event {
        let matching =
            |event: &Event| event.subject.as_str() == id && event.kind().is_some_and(|k| kinds.contains(&k));
        if let Some(event) = self.seen.iter().find(|event| matching(event)) {
            return event.clone();
        }
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.next()).await;
            let event = event
                .unwrap_or_else(|_| panic!("no {kinds:?} for {id}; heard {:#?}", self.story(id)))
                .unwrap();
            let event = event.expect("the subscription goes on");
            self.seen.push(event.clone());
            if matching(&event) {
                return event;
            }
        }
    }

    /// Waits for the end of a job.
    pub async fn end_of(&mut self, id: &str) -> Event {
        let terminal: Vec<_> = EventKind::ALL.into_iter().filter(|kind| kind.is_terminal()).collect();
        self.heard(id, &terminal).await
    }

    /// The events of a job that were heard so far, as `attempt event`.
    #[must_use]
    pub fn story(&self, id: &str) -> Vec<String> {
        let of_job = self.seen.iter().filter(|event| event.subject.as_str() == id);
        of_job
            .map(|event| format!("{} {}", event.data.attempt, event.kind().map_or("?", EventKind::word)))
            .collect()
    }

    /// Waits until a queue has this many messages.
    pub async fn queue_has(&self, queue: &str, count: u64) {
        crate::until(&format!("{count} messages in {queue}"), async || {
            (self.vhost.messages(queue) == count).then_some(())
        })
        .await;
    }
}
