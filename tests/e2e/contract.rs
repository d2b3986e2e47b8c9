//! What every back end promises, held against each of them with the real parts: one suite, and for each back end a
//! [`Setup`] that says how its parts are had. Another back end needs another `Setup`, and nothing else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use spark_runtime_protocol::event::Way;
use spark_runtime_protocol::job::Job;
use spark_runtime_tests::PATIENCE;
use spark_runtime_tests::cluster::{Cluster, Part};
use spark_runtime_tests::kubernetes::Kubernetes;
use spark_runtime_tests::program::binary;
use spark_runtime_tests::until;
use spark_runtime_worker::config::{Settings, Sources};
use spark_runtime_worker::job::check::Judge;
use spark_runtime_worker::job::stage::{WORK, stage};
use spark_runtime_worker::spark::client_mode::{ClientMode, STANDARD_ERROR, STANDARD_OUTPUT};
use spark_runtime_worker::spark::kubernetes::cluster_mode::PodMode;
use spark_runtime_worker::spark::report::Word;
use spark_runtime_worker::spark::yarn::cluster_mode::ClusterMode;
use spark_runtime_worker::spark::{
    Accepted, Application, Backend, Change, ClusterVerdict, DRIVER_LOGS, Ending, Identity, Outcome, Sought,
    Submission,
};

use crate::spark::{Parts, spark_job};

/// How the parts of a back end are had.
trait Setup {
    /// What its jobs have in their `sparkConf`, beside what all have.
    fn conf(&self) -> Value;

    /// Settings of a worker that uses it.
    fn settings(&self) -> Vec<String>;

    /// The back end, made anew, as another worker has it. What one of them started, another does not know of itself.
    fn backend(&self, settings: &Settings) -> Arc<dyn Backend>;

    /// Its applications go on without the worker that submitted them.
    fn outlives_worker(&self) -> bool;

    /// Whether the driver is there that has left this in its file: its process, where it is on this machine.
    fn runs(&self, left: &str) -> bool {
        let process: u32 = left.trim().parse().unwrap();
        // One that nobody has waited for yet does nothing any more.
        std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty())
    }
}

fn client_mode(settings: &Settings) -> Arc<ClientMode> {
    Arc::new(ClientMode::new(&settings.spark, settings.log.limit, binary()))
}

/// Drivers of this machine, without a cluster or with executors in a standalone one.
struct OnThisMachine {
    master: String,
}

impl Setup for OnThisMachine {
    fn conf(&self) -> Value {
        json!({"--master": self.master})
    }

    fn settings(&self) -> Vec<String> {
        vec!["spark.environment.SPARK_LOCAL_IP=127.0.0.1".to_owned()]
    }

    fn backend(&self, settings: &Settings) -> Arc<dyn Backend> {
        client_mode(settings)
    }

    fn outlives_worker(&self) -> bool {
        false
    }
}

/// Drivers in containers of YARN.
struct OnYarn(&'static Cluster);

impl Setup for OnYarn {
    fn conf(&self) -> Value {
        let jars = self.0.setting("SPARK_YARN_JARS");
        json!({"--master": "yarn", "--deploy-mode": "cluster", "spark.yarn.jars": jars})
    }

    fn settings(&self) -> Vec<String> {
        vec![
            format!("spark.environment.HADOOP_CONF_DIR={}", self.0.setting("HADOOP_CONF_DIR")),
            "spark.environment.SPARK_LOCAL_IP=127.0.0.1".to_owned(),
            format!("yarn.folder=/contract-{}", uuid::Uuid::new_v4().simple()),
            "yarn.grace=2s".to_owned(),
        ]
    }

    fn backend(&self, settings: &Settings) -> Arc<dyn Backend> {
        Arc::new(ClusterMode::new(settings, client_mode(settings)))
    }

    fn outlives_worker(&self) -> bool {
        true
    }
}

/// Drivers in pods of Kubernetes.
struct InPods(Kubernetes);

impl Setup for InPods {
    fn conf(&self) -> Value {
        json!({"--master": self.0.master(), "--deploy-mode": "cluster"})
    }

    fn settings(&self) -> Vec<String> {
        let mut settings = self.0.settings();
        settings.push(format!("kubernetes.folder=/contract-{}", uuid::Uuid::new_v4().simple()));
        settings
    }

    fn backend(&self, settings: &Settings) -> Arc<dyn Backend> {
        Arc::new(PodMode::new(settings, client_mode(settings)))
    }

    fn outlives_worker(&self) -> bool {
        true
    }
}

/// Makes a session, says something, and gives results.
const COUNTING: &str = "\
from pyspark.sql import SparkSession
def score(inputs, outputs, attachments):
    open(NOTES, 'a').write('run\\n')
    print('said by the driver', flush=True)
    assert SparkSession.builder.getOrCreate().range(10).count() == 10
";

/// Raises once it has a session: YARN waits for one.
const RAISING: &str = "\
from pyspark.sql import SparkSession
def score(inputs, outputs, attachments):
    SparkSession.builder.getOrCreate()
    raise ValueError('no such rule')
";

/// Leaves its process in its file, and runs until it is ended.
const WAITING: &str = "\
import os, time
from pyspark.sql import SparkSession
def score(inputs, outputs, attachments):
    SparkSession.builder.getOrCreate()
    open(NOTES + '.part', 'w').write(str(os.getpid()))
    os.rename(NOTES + '.part', NOTES)
    while True:
        time.sleep(0.1)
";

/// A back end, and where what is submitted to it lies.
struct Suite<S: Setup> {
    setup: S,
    settings: Settings,
    place: tempfile::TempDir,
}

impl<S: Setup> Suite<S> {
    fn new(setup: S, parts: &Parts) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut overrides = parts.settings();
        overrides.extend(setup.settings());
        // The logs of those that do well are wanted, too.
        overrides.push("job.keep=always".to_owned());
        let settings = Settings::load(&Sources { overrides, ..Sources::default() }).unwrap();
        Self { setup, settings, place }
    }

    fn backend(&self) -> Arc<dyn Backend> {
        self.setup.backend(&self.settings)
    }

    /// The file in which a job's driver leaves what it has to say.
    fn notes(&self, id: &str) -> PathBuf {
        self.place.path().join(format!("{id}.notes"))
    }

    /// A job, staged for one attempt.
    fn submission(&self, id: &str, source: &str) -> Submission {
        let source = format!("NOTES = {:?}\n{source}", self.notes(id).display().to_string());
        let mut job = spark_job(id, &source);
        job["targetEngine"]["sparkConf"] = self.setup.conf();
        job["targetEngine"]["sparkConf"]["spark.ui.enabled"] = json!("false");
        job["jobParameters"] =
            json!({"--driver-memory": "512m", "--executor-memory": "512m", "--num-executors": "1"});
        let text = job.to_string();
        let job = Job::read(text.as_bytes(), None).unwrap();
        let plan = Judge::of(&self.settings).unwrap().plan(&job).unwrap();
        let sought = self.sought(id, plan.mode());
        let staged = stage(&sought.directory, &job, &plan, text.as_bytes()).unwrap();
        Submission {
            sought,
            modules: staged.modules,
            environment: None,
            command_line: plan.command_line,
            login: None,
            leaves_java_idle: false,
            runtime: None,
            way: Way::Spark,
            outputs: Vec::new(),
            output_folder: None,
            not_after: None,
        }
    }

    /// What is looked for of a job, with a directory of its own for what is found.
    fn sought(&self, id: &str, mode: spark_runtime_worker::spark::Mode) -> Sought {
        let directory = self.place.path().join(format!("{id}-{}", uuid::Uuid::new_v4().simple()));
        let identity = Identity { job: id.to_owned(), digest: "0".repeat(64) };
        let actor = spark_runtime_worker::storage::Actor::Worker;
        Sought { mode, identity, actor, working_directory: directory.join(WORK), directory }
    }

    /// The same for another attempt.
    fn again(&self, sought: &Sought) -> Sought {
        self.sought(&sought.identity.job, sought.mode.clone())
    }

    async fn submitted(&self, backend: &dyn Backend, submission: &Submission) -> Box<dyn Application> {
        let found = backend.find(&self.again(&submission.sought)).await.unwrap();
        assert!(found.is_none(), "nothing was submitted yet");
        backend.submit(submission).await.unwrap()
    }

    async fn forgets(&self, backend: &dyn Backend, sought: &Sought) {
        let (identity, mode) = (&sought.identity, &sought.mode);
        let launches = backend.launches(identity, mode).await.unwrap();
        backend.forget(identity, mode, &launches).await;
        assert!(backend.find(&self.again(sought)).await.unwrap().is_none(), "it is forgotten");
    }

    /// Waits until the driver of a job has left what it has to say.
    async fn left(&self, id: &str) -> String {
        until(&format!("the driver of {id}"), async || std::fs::read_to_string(self.notes(id)).ok()).await
    }
}

/// What happened to an application, in its order.
#[derive(Default)]
struct Story {
    accepted: Option<Accepted>,
    steps: Vec<&'static str>,
    ending: Option<Ending>,
}

impl Story {
    /// Follows an application until this has happened, or its end.
    async fn follow(&mut self, application: &mut dyn Application, wanted: &str) {
        if self.accepted.is_none() {
            self.accepted = application.accepted();
        }
        let following = async {
            while self.ending.is_none() && !self.steps.contains(&wanted) {
                match application.changed().await {
                    Change::Accepted(accepted) => {
                        self.steps.push("accepted");
                        self.accepted = Some(accepted);
                    }
                    Change::Started => self.steps.push("started"),
                    Change::Running => self.steps.push("running"),
                    Change::Waits | Change::Placed | Change::InVain => {}
                    Change::Ended(ending) => self.ending = Some(*ending),
                }
            }
        };
        if tokio::time::timeout(PATIENCE, following).await.is_err() {
            panic!("{wanted:?} did not come: {:?}, {application:#?}", self.steps);
        }
    }

    fn ending(self) -> Ending {
        self.ending.unwrap()
    }
}

/// What a driver has said, on whichever output: a pod has but one.
fn log(directory: &Path) -> String {
    let names = [STANDARD_OUTPUT, STANDARD_ERROR];
    let folders = [directory.join(DRIVER_LOGS), directory.to_owned()];
    let places = folders.iter().flat_map(|folder| names.map(|name| folder.join(name)));
    places.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

fn has_succeeded(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Process(exit) => exit.status == spark_runtime_worker::spark::guard::ExitStatus::Code(0),
        Outcome::Cluster(end) => end.verdict == ClusterVerdict::Succeeded,
        Outcome::NeverAccepted(_) | Outcome::Left | Outcome::Lost(_) => false,
    }
}

/// What runs to its end does so once, and its end is told with what its driver says and with its log.
async fn ends_are_told_with_truth<S: Setup>(suite: &Suite<S>) {
    let backend = suite.backend();
    let submission = suite.submission("counting", COUNTING);
    let mut application = suite.submitted(&*backend, &submission).await;
    assert_eq!(application.outlives_worker(), suite.setup.outlives_worker());
    let mut story = Story::default();
    story.follow(application.as_mut(), "ended").await;
    let accepted = story.accepted.clone().unwrap();
    assert_eq!(accepted.id.is_some(), suite.setup.outlives_worker());
    assert!(!accepted.is_adopted);
    let steps: Vec<&str> = story.steps.iter().copied().filter(|step| *step != "accepted").collect();
    assert_eq!(steps, ["started", "running"], "{:?}", story.steps);
    let ending = story.ending();
    assert!(matches!(ending.report, Some(Word::Completed { .. })), "{ending:#?}");
    assert!(has_succeeded(&ending.outcome) && ending.started && ending.unreadable.is_none(), "{ending:#?}");
    let said = log(&submission.sought.directory);
    assert!(said.contains("said by the driver"), "{said:?} {:?}", ending.unlogged);
    assert_eq!(std::fs::read_to_string(suite.notes("counting")).unwrap(), "run\n", "it ran once");
    suite.forgets(&*backend, &submission.sought).await;

    let submission = suite.submission("raising", RAISING);
    let mut application = suite.submitted(&*backend, &submission).await;
    let mut story = Story::default();
    story.follow(application.as_mut(), "ended").await;
    let ending = story.ending();
    let Some(Word::Failed { exception, .. }) = &ending.report else { panic!("{ending:#?}") };
    assert_eq!(exception.message, "no such rule");
    assert!(!has_succeeded(&ending.outcome), "{ending:#?}");
    suite.forgets(&*backend, &submission.sought).await;
}

/// What runs is found by others where it outlives its worker, and nowhere else; it is left, and ended, until it is gone.
async fn what_runs_is_found_left_and_ended<S: Setup>(suite: &Suite<S>) {
    let backend = suite.backend();
    let submission = suite.submission("waiting", WAITING);
    let (identity, mode) = (&submission.sought.identity, &submission.sought.mode);
    let earlier = backend.launches(identity, mode).await.unwrap();
    let mut application = suite.submitted(&*backend, &submission).await;
    let left = suite.left("waiting").await;
    let mut story = Story::default();
    story.follow(application.as_mut(), "running").await;
    // Whoever is late with forgetting what there was before does nothing to what came after.
    backend.forget(identity, mode, &earlier).await;
    assert!(suite.setup.runs(&left));
    application.leave();
    story.follow(application.as_mut(), "ended").await;
    let outcome = story.ending().outcome;
    let other = suite.backend();
    let found = other.find(&suite.again(&submission.sought)).await.unwrap();
    let (mut application, left) = if suite.setup.outlives_worker() {
        assert!(matches!(outcome, Outcome::Left), "{outcome:?}");
        assert!(suite.setup.runs(&left), "it goes on");
        let mut application = found.unwrap();
        let mut story = Story::default();
        story.follow(application.as_mut(), "running").await;
        let accepted = story.accepted.unwrap();
        assert!(accepted.is_adopted && accepted.id.is_some(), "{accepted:?}");
        (application, left)
    } else {
        assert!(matches!(outcome, Outcome::Process(_)), "{outcome:?}");
        assert!(found.is_none() && !suite.setup.runs(&left), "it is gone with its worker");
        std::fs::remove_file(suite.notes("waiting")).unwrap();
        let submission = suite.submission("waiting", WAITING);
        let application = other.submit(&submission).await.unwrap();
        (application, suite.left("waiting").await)
    };
    application.terminate();
    let mut story = Story::default();
    let patience = Duration::from_secs(20);
    if tokio::time::timeout(patience, story.follow(application.as_mut(), "ended")).await.is_err() {
        application.kill();
        story.follow(application.as_mut(), "ended").await;
    }
    let ending = story.ending();
    assert!(!has_succeeded(&ending.outcome) && !matches!(ending.outcome, Outcome::Left), "{ending:#?}");
    assert!(!matches!(ending.report, Some(Word::Completed { .. })), "{ending:#?}");
    until("the end of its driver", async || (!suite.setup.runs(&left)).then_some(())).await;
    suite.forgets(&*other, &submission.sought).await;
}

async fn all<S: Setup>(suite: Suite<S>) {
    ends_are_told_with_truth(&suite).await;
    what_runs_is_found_left_and_ended(&suite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_mode_keeps_the_contract_of_back_ends() {
    let parts = Parts::take().await;
    all(Suite::new(OnThisMachine { master: "local[1]".to_owned() }, &parts)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standalone_cluster_keeps_the_contract_of_back_ends() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&[Part::Spark]).await;
    all(Suite::new(OnThisMachine { master: cluster.setting("SPARK_MASTER") }, &parts)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_mode_on_yarn_keeps_the_contract_of_back_ends() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs, Part::Yarn]).await;
    all(Suite::new(OnYarn(cluster), &parts)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_mode_on_kubernetes_keeps_the_contract_of_back_ends() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs, Part::Kubernetes]).await;
    let kubernetes = Kubernetes::new(cluster).with_machine(parts.python(), Some(parts.spark_home()));
    all(Suite::new(InPods(kubernetes), &parts)).await;
}
