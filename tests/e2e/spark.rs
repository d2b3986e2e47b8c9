//! What only the real Spark can show. `tests/run` says where it is.
//!
//! A JVM at its start takes all of a small machine: these tests take turns.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use spark_runtime_protocol::event::{EventKind, FailureClass, JobResult};
use spark_runtime_protocol::topology::Shape;
use spark_runtime_tests::broker::{Vhost, usual};
use spark_runtime_tests::jobs::assets;
use spark_runtime_tests::program::{Worker, binary, children_of, processes_below};
use spark_runtime_tests::repository::Repository;
use spark_runtime_tests::{project, until};
use tokio::sync::{Mutex, MutexGuard};

pub(crate) const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";

static TURN: Mutex<()> = Mutex::const_new(());

/// Where the real parts are, and the turn to use them.
pub(crate) struct Parts {
    pub(crate) python: String,
    spark_home: String,
    _turn: MutexGuard<'static, ()>,
}

impl Parts {
    pub(crate) async fn take() -> Self {
        let part = |name: &str| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("{name} is not set; run tests/run, which installs the real Spark"))
        };
        Self {
            python: part("SPARK_RUNTIME_TEST_PYTHON"),
            spark_home: part("SPARK_RUNTIME_TEST_SPARK_HOME"),
            _turn: TURN.lock().await,
        }
    }

    pub(crate) fn spark_home(&self) -> &Path {
        Path::new(&self.spark_home)
    }

    pub(crate) fn python(&self) -> &str {
        &self.python
    }

    pub(crate) fn settings(&self) -> Vec<String> {
        vec![
            RETRY.to_owned(),
            format!("spark.home={}", self.spark_home),
            format!("spark.submit={}/bin/spark-submit", self.spark_home),
            format!("spark.python={}", self.python),
        ]
    }

    pub(crate) fn worker(&self, uri: &str, more: &[&str]) -> Worker {
        let settings = self.settings();
        let all: Vec<&str> = settings.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Worker::start(uri, &all)
    }
}

pub(crate) fn spark_job(id: &str, source: &str) -> Value {
    json!({
        "id": id, "jobType": "MODEL_BATCH_JOB",
        "model": {"storedModel": {"modelAssets": [{
            "name": "m.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "scoreFunction": "score",
            "sourceCode": source}]}},
        "jobParameters": {"--driver-memory": "1g"},
        "targetEngine": {"sparkConf": {"--master": "local[1]", "spark.ui.enabled": "false"}},
    })
}

const DIFFICULT: &str = r#"
import os, sys
import pkg.helper
from pyspark.sql import SparkSession

def init(job):
    global spark, seen
    seen = job["job"]["id"]
    spark = SparkSession.builder.getOrCreate()

def score(inputs, outputs, attachments):
    count = spark.range(1000).count()
    assert spark.sparkContext.parallelize([1, 2]).map(lambda n: n + 1).sum() == 5
    assert spark._jvm.System.getProperty("java.io.tmpdir") == os.environ["TMPDIR"]
    text = open("data/note.txt").read()
    with open("summary.txt", "w") as summary:
        summary.write("%d %s %s %s" % (count, text, pkg.helper.NAME, attachments[0]["odd"]))
    assert seen == "difficult"
    sys.stdout = open(os.devnull, "w")
    sys.stderr.write("x" * 3000000 + "\n")
    os.chdir("/")
    spark.stop()
    sys.exit()
"#;

#[tokio::test]
async fn a_difficult_model_on_the_real_spark_completes_and_its_outputs_come_back() {
    let parts = Parts::take().await;
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = parts.worker(&place.vhost.uri(), &[]);
    let mut job = spark_job("difficult", DIFFICULT);
    // Its sockets have a place whose path is short enough, however deep the folder of the attempt is.
    job["targetEngine"]["sparkConf"]["spark.python.unix.domain.socket.enabled"] = json!("true");
    assets(&mut job)[0]["initFunction"] = json!("init");
    assets(&mut job).extend([
        json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/helper.py", "sourceCode": "NAME = 'helped'"}),
        json!({"name": "n", "assetType": "FILE", "filename": "data/note.txt", "fileContent": "bm90ZWQ="}),
        json!({"name": "w", "assetType": "EXTERNAL_FILE", "fileUrl": "gs://bucket/w", "odd": [true, null, 1.5]}),
    ]);
    job["outputData"] = json!([{"name": "s", "assetType": "FILE", "filename": "summary.txt"}]);
    place.publish("difficult", job.to_string()).await;
    let end = place.end_of("difficult").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}", end.data.failure);
    assert_eq!(end.data.job_result, Some(JobResult::Success));
    // "1000 noted helped [True, None, 1.5]"
    assert_eq!(
        end.data.output_data.unwrap()[0]["fileContent"],
        "MTAwMCBub3RlZCBoZWxwZWQgW1RydWUsIE5vbmUsIDEuNV0="
    );
    let resources = end.data.resources.unwrap();
    assert!(resources.peak_memory_bytes > 100 << 20 && resources.processor_seconds > 1.0, "{resources:?}");
    assert_eq!(worker.processes(), Vec::<i32>::new());
}

#[tokio::test]
async fn what_a_helper_of_the_model_raises_is_told_with_the_helpers_line() {
    let parts = Parts::take().await;
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = parts.worker(&place.vhost.uri(), &[]);
    let mut job = spark_job("raises", "import pkg.deep\ndef score(a, b, c):\n    pkg.deep.fall()\n");
    let source = "def fall():\n    raise KeyError('no such column')\n";
    assets(&mut job).push(json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/deep.py", "sourceCode": source}));
    place.publish("raises", job.to_string()).await;
    let failure = place.end_of("raises").await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Model);
    let frame = failure.exception.unwrap().frame.unwrap();
    assert_eq!(
        (frame.file.as_str(), frame.line, frame.function.as_deref()),
        ("pkg/deep.py", 2, Some("fall"))
    );
}

#[tokio::test]
async fn whoever_is_killed_and_whenever_nothing_of_a_real_spark_is_left() {
    let parts = Parts::take().await;
    let place = Vhost::ready(&DELAYS).await;
    let source = "import time\nfrom pyspark.sql import SparkSession\ndef score(a, b, c):\n    s = SparkSession.builder.getOrCreate()\n    s.sparkContext.parallelize(range(2), 2).foreach(lambda n: time.sleep(600))\n";
    // The phases of a start on a machine of two cores: shell, launcher, JVM, Python, session, workers.
    for (round, after) in [0, 300, 1200, 3000, 6000, 14000].into_iter().enumerate() {
        let worker = parts.worker(&place.vhost.uri(), &["retry.max_attempts=1"]);
        place.publish(&format!("k{round}"), spark_job(&format!("k{round}"), source).to_string()).await;
        until("the first process", async || (!worker.processes().is_empty()).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(after)).await;
        let guard = children_of(worker.pid());
        let kill_guard = || {
            guard.iter().for_each(|pid| {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            })
        };
        match round % 3 {
            0 => worker.signal(Signal::SIGKILL),
            1 => kill_guard(),
            _ => {
                worker.signal(Signal::SIGKILL);
                kill_guard();
            }
        }
        worker.nothing_left().await;
        drop(worker);
        place.vhost.http("DELETE", "/api/queues/{}/spark.jobs/contents", None);
    }
}

/// How many jobs, kills and workers there are: some, or what `SPARK_RUNTIME_TEST_REAL` says, as `50,10,4`.
fn beaten_size() -> (usize, usize, usize) {
    let said = std::env::var("SPARK_RUNTIME_TEST_REAL").unwrap_or_else(|_| "5,2,2".to_owned());
    let numbers: Vec<usize> = said.split(',').map(|number| number.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

/// Says all the while that it is there, each time with one write to a file that is only ever appended to.
const BEATING: &str = r#"
import os, threading
from pyspark.sql import SparkSession

def say(word):
    file = os.open("JOURNAL", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, ("%s %d\n" % (word, os.getpid())).encode())
    os.close(file)

def beat(over):
    while not over.wait(0.02):
        say("beat")

def score(inputs, outputs, attachments):
    say("start")
    over = threading.Event()
    beating = threading.Thread(target=beat, args=(over,))
    beating.start()
    spark = SparkSession.builder.getOrCreate()
    assert spark.range(100000).selectExpr("sum(id)").first()[0] == 4999950000
    over.wait(2)
    over.set()
    beating.join()
    say("end")
"#;

#[tokio::test]
async fn jobs_of_a_real_spark_under_kills_come_to_one_end_each_and_never_run_twice_at_once() {
    let (jobs, kills, count) = beaten_size();
    let parts = Parts::take().await;
    let shape = Shape { lease: Duration::from_secs(10), ..usual(&DELAYS) };
    let mut place = Vhost::ready_for(&shape).await;
    let journals = tempfile::tempdir().unwrap();
    let journal = |id: &str| std::fs::read_to_string(journals.path().join(id)).unwrap_or_default();
    let ids: Vec<String> = (0..jobs).map(|number| format!("beaten-{number}")).collect();
    for id in &ids {
        let source = BEATING.replace("JOURNAL", journals.path().join(id).to_str().unwrap());
        place.publish(id, spark_job(id, &source).to_string()).await;
    }
    let uri = place.vhost.uri();
    let settings = ["ledger.lease=10s", "worker.max_running=1", "retry.max_attempts=50"];
    let mut workers: Vec<Worker> = (0..count).map(|_| parts.worker(&uri, &settings)).collect();
    let ended = || ids.iter().filter(|id| journal(id).contains("end")).count();
    let mut dead = Vec::new();
    for number in 0..kills {
        // The next blow falls when another part of the jobs has ended, and on whoever runs something.
        for due in ended()..=jobs * number / kills {
            until("another end", async || (ended() >= due).then_some(())).await;
        }
        let turn = number % count;
        until("a driver", async || (!workers[turn].processes().is_empty()).then_some(())).await;
        let guards = children_of(workers[turn].pid());
        let dying = match number % 3 {
            0 => vec![workers[turn].pid()],
            1 => [vec![workers[turn].pid()], guards].concat(),
            _ => guards,
        };
        for pid in dying {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if number % 3 < 2 {
            let next = parts.worker(&uri, &settings);
            dead.push(std::mem::replace(&mut workers[turn], next));
        }
    }
    let mut runs = 0;
    for id in &ids {
        let end = place.end_of(id).await;
        assert_eq!(end.kind(), Some(EventKind::Completed), "{id}: {end:#?}");
        let text = journal(id);
        let mut running = "";
        for (word, pid) in text.lines().filter_map(|line| line.split_once(' ')) {
            if word == "start" {
                (running, runs) = (pid, runs + 1);
            }
            assert_eq!(pid, running, "{id}: {word} of a run that is over:\n{text}");
        }
        assert!(text.contains("end"), "{id} is told as completed: {text}");
    }
    place.queue_has("spark.jobs", 0).await;
    for id in &ids {
        let all = place.seen.iter().filter(|event| event.subject.as_str() == id.as_str());
        let mut ends: Vec<_> = all.filter(|event| event.kind().is_some_and(EventKind::is_terminal)).collect();
        ends.dedup();
        assert_eq!(ends.len(), 1, "{id}");
    }
    for worker in &dead {
        worker.nothing_left().await;
    }
    println!(
        "real Spark: {jobs} jobs, {count} workers, {kills} kills: {runs} runs, none beside another, {jobs} ends"
    );
}

#[tokio::test]
async fn a_run_that_is_interrupted_is_cancelled_and_leaves_nothing() {
    let parts = Parts::take().await;
    let folder = tempfile::tempdir().unwrap();
    let job = spark_job("stop", "import time\ndef score(a, b, c):\n    time.sleep(600)\n");
    std::fs::write(folder.path().join("job.json"), job.to_string()).unwrap();
    let mut running = Command::new(binary())
        .args(parts.settings().iter().flat_map(|setting| ["--set", setting.as_str()]))
        .args(["run", "job.json", "--json"])
        .env("SPARK_RUNTIME__JOB__DIRECTORY", folder.path().join("attempts"))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let events = std::io::BufReader::new(running.stdout.take().unwrap());
    let mut kinds = Vec::new();
    for line in events.lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        kinds.push(event["type"].as_str().unwrap().to_owned());
        if event["type"] == "spark-runtime.job.running.v1" {
            kill(Pid::from_raw(running.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        }
    }
    assert_eq!(kinds.last().unwrap(), "spark-runtime.job.cancelled.v1");
    assert_eq!(running.wait().unwrap().code(), Some(3));
    assert_eq!(processes_below(&folder.path().join("attempts")), Vec::<i32>::new());
}

/// A standalone cluster of one master and one worker on loopback.
pub(crate) struct Standalone {
    master: Child,
    worker: Child,
    pub(crate) address: String,
    _folder: tempfile::TempDir,
}

impl Standalone {
    pub(crate) async fn start(parts: &Parts) -> Self {
        Self::start_elsewhere(parts, &[]).await
    }

    /// One whose worker, and the executors that it starts, see nothing in the folders `hidden`, as on another machine.
    pub(crate) async fn start_elsewhere(parts: &Parts, hidden: &[&Path]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = |name: &str, arguments: &[&str], hidden: &[&Path]| {
            let log = std::fs::File::create(folder.path().join(name)).unwrap();
            let spark_class = PathBuf::from(&parts.spark_home).join("bin/spark-class");
            let mut command = if hidden.is_empty() {
                Command::new(spark_class)
            } else {
                let mounts: String = hidden
                    .iter()
                    .map(|path| format!("mount -t tmpfs none '{}' && ", path.display()))
                    .collect();
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "private", "sh", "-c"]);
                command.arg(format!("{mounts}exec \"$0\" \"$@\"")).arg(spark_class);
                command
            };
            command
                .args(arguments)
                .env("SPARK_HOME", &parts.spark_home)
                .env("SPARK_LOCAL_IP", "127.0.0.1")
                .env("SPARK_WORKER_DIR", folder.path().join("work"))
                .env("PYSPARK_PYTHON", &parts.python)
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap()
        };
        let master_class = "org.apache.spark.deploy.master.Master";
        let master = start(
            "master.log",
            &[master_class, "--host", "127.0.0.1", "--port", "0", "--webui-port", "0"],
            &[],
        );
        let address =
            until("the master's address", async || address(&folder.path().join("master.log"))).await;
        let worker_class = "org.apache.spark.deploy.worker.Worker";
        let options = ["--host", "127.0.0.1", "--webui-port", "0", "--cores", "1", "--memory", "1g"];
        let arguments: Vec<&str> =
            [worker_class].into_iter().chain(options).chain([address.as_str()]).collect();
        let worker = start("worker.log", &arguments, hidden);
        Self { master, worker, address, _folder: folder }
    }
}

/// Whether this user may give a process another view of the file system.
pub(crate) fn may_hide_folders() -> bool {
    let tried = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"])
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

fn address(log: &Path) -> Option<String> {
    let log = std::fs::read_to_string(log).ok()?;
    let start = log.find("spark://")?;
    let rest = &log[start..];
    let end = rest.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(rest.len());
    log[start + end..].starts_with(char::is_whitespace).then(|| rest[..end].to_owned())
}

impl Drop for Standalone {
    fn drop(&mut self) {
        for child in [&mut self.worker, &mut self.master] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test]
async fn a_job_runs_on_a_standalone_cluster_with_its_helpers_on_the_executors() {
    let parts = Parts::take().await;
    let cluster = Standalone::start(&parts).await;
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = parts.worker(&place.vhost.uri(), &[]);
    let source = "import pkg.deep\nfrom pyspark.sql import SparkSession\ndef twice(n):\n    return pkg.deep.double(n)\ndef score(a, b, c):\n    s = SparkSession.builder.getOrCreate()\n    total = s.sparkContext.parallelize(range(10), 2).map(twice).sum()\n    open('total.txt', 'w').write('%d %s' % (total, s.sparkContext.master))\n";
    let mut job = spark_job("cluster", source);
    assets(&mut job).extend([
        json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/deep.py", "sourceCode": "def double(n):\n    return 2 * n\n"}),
        json!({"name": "i", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/__init__.py", "sourceCode": ""}),
    ]);
    job["targetEngine"]["sparkConf"]["--master"] = json!(cluster.address);
    job["jobParameters"] = json!({"--executor-memory": "512MB", "--total-executor-cores": "1"});
    job["outputData"] = json!([{"name": "t", "assetType": "FILE", "filename": "total.txt"}]);
    place.publish("cluster", job.to_string()).await;
    let end = place.end_of("cluster").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}", end.data.failure);
    let content = end.data.output_data.unwrap()[0]["fileContent"].as_str().unwrap().to_owned();
    let mut decoded = Vec::new();
    spark_runtime_protocol::asset::decode_base64(&content, &mut decoded).unwrap();
    assert_eq!(String::from_utf8(decoded).unwrap(), format!("90 {}", cluster.address));
}

#[tokio::test]
async fn a_job_published_from_python_is_followed_from_javascript() {
    let python = std::env::var("SPARK_RUNTIME_TEST_PYTHON").unwrap_or_else(|_| panic!("run tests/run"));
    let modules =
        std::env::var("SPARK_RUNTIME_TEST_NODE_MODULES").unwrap_or_else(|_| panic!("run tests/run"));
    let place = Vhost::ready(&DELAYS).await;
    let uri = place.vhost.uri();
    let _worker = Worker::start(&uri, &[RETRY]);
    let clients = project().join("deploy/examples/clients");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("job.json"), spark_runtime_tests::jobs::text("both", &["complete"]))
        .unwrap();
    let following = Command::new("node")
        .arg(clients.join("follow.js"))
        .arg("both")
        .env("NODE_PATH", modules)
        .env("AMQP_URI", &uri)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("the follower's queue", async || {
        let queues = place.vhost.http("GET", "/api/queues/{}", None);
        (queues.as_array()?.iter().filter(|queue| queue["exclusive"] == true).count() == 2).then_some(())
    })
    .await;
    let published = tokio::task::spawn_blocking({
        let uri = uri.clone();
        move || {
            Command::new(python)
                .arg(clients.join("publish_and_follow.py"))
                .arg("job.json")
                .current_dir(folder.path())
                .env("AMQP_URI", uri)
                .stdin(Stdio::null())
                .output()
                .unwrap()
        }
    })
    .await
    .unwrap();
    let said = String::from_utf8_lossy(&published.stdout).into_owned();
    assert!(published.status.success(), "{said}{}", String::from_utf8_lossy(&published.stderr));
    let followed = tokio::task::spawn_blocking(move || following.wait_with_output().unwrap()).await.unwrap();
    let heard = String::from_utf8_lossy(&followed.stdout).into_owned();
    for text in [&said, &heard] {
        assert!(text.contains("completed"), "python: {said}\njavascript: {heard}");
    }
}

const IN_GIT: &str = r#"
import pkg.helper

def score(inputs, outputs, attachments):
    # The model sees its assets as they were sent.
    assert attachments[0]["odd"] == [True, None]
    text = open("data/note.txt").read()
    with open("summary.txt", "w") as summary:
        summary.write("%s %s" % (pkg.helper.NAME, text))
"#;

#[tokio::test]
async fn a_model_in_git_runs_on_the_real_spark_with_its_helper_and_its_file() {
    let parts = Parts::take().await;
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = parts.worker(&place.vhost.uri(), &[]);
    let repository = Repository::new();
    let commit = repository.commit(&[
        ("src/model.py", IN_GIT),
        ("src/pkg/helper.py", "NAME = 'helped'\n"),
        ("src/pkg/__init__.py", ""),
        ("notes/first.txt", "noted"),
    ]);
    let mut info = repository.info("main");
    info["repositoryPath"] = json!("src");
    let mut note = repository.info("main");
    note["filePath"] = json!("notes/first.txt");
    let mut job = spark_job("git", "");
    let all = assets(&mut job);
    all[0] = json!({
        "name": "model.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "scoreFunction": "score",
        "repositoryInfo": info});
    all.extend([
        json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/helper.py", "repositoryInfo": info}),
        json!({"name": "i", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/__init__.py", "repositoryInfo": info}),
        json!({"name": "n", "assetType": "FILE", "filename": "data/note.txt", "repositoryInfo": note}),
        json!({"name": "w", "assetType": "EXTERNAL_FILE", "fileUrl": "gs://bucket/w", "odd": [true, null]}),
    ]);
    // What its Spark brings along counts as installed.
    all.push(
        json!({"name": "requirements.txt", "assetType": "SOURCE_CODE", "assetRole": "REQUIRED_LIBRARIES",
        "sourceCode": "pyspark>=3\n"}),
    );
    job["outputData"] = json!([{"name": "s", "assetType": "FILE", "filename": "summary.txt"}]);
    place.publish("git", job.to_string()).await;
    let end = place.end_of("git").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:?} {:?}", end.data.failure, end.data.faults);
    // "helped noted"
    assert_eq!(end.data.output_data.unwrap()[0]["fileContent"], "aGVscGVkIG5vdGVk");
    let sources = end.data.sources.unwrap();
    assert_eq!(sources.len(), 4);
    assert!(sources.iter().all(|source| source.commit == commit), "{sources:?}");
    assert_eq!(sources[3].path, "notes/first.txt");
    assert_eq!(end.data.runtime.unwrap().name, "default");
    drop(worker);
}
