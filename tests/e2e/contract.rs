//! What every way of running promises to those who call it ([`Backend`] and [`Application`]), shown for each of them by the
//! same tests: drivers on this machine, on a standalone cluster, and in a YARN cluster.
//!
//! On this machine and on YARN the launcher is one of the tests', so that the promises are shown in seconds; the cluster is
//! the real one. On a standalone cluster the Spark is real too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use spark_runtime_protocol::event::{Event, EventKind};
use spark_runtime_protocol::job::Job;
use spark_runtime_tests::cluster::{Calm, Cluster, Part};
use spark_runtime_tests::program::{binary, fake_spark_submit, processes_below};
use spark_runtime_tests::{PATIENCE, project, until};
use spark_runtime_worker::config::{Settings, Sources};
use spark_runtime_worker::job::{Announce, Context, stage};
use spark_runtime_worker::service::{Home, context};
use spark_runtime_worker::spark::client_mode::{ClientMode, STANDARD_ERROR, STANDARD_OUTPUT};
use spark_runtime_worker::spark::guard::ExitStatus;
use spark_runtime_worker::spark::report::Word;
use spark_runtime_worker::spark::{
    Accepted, Application, Awaited, Backend, Change, ClusterVerdict, DRIVER_LOGS, Ending, Identity, Mode,
    Outcome, Sought, Submission,
};

use crate::spark::Parts;

/// A place where drivers can run, and programs for it.
struct Ground {
    settings: Vec<String>,
    spark_conf: Value,
    /// The source of a model that says [`Self::said`] on its standard error and raises.
    raises: String,
    said: &'static str,
    /// The source of a model that goes on for longer than any test waits.
    stays: String,
    cluster: Option<&'static Cluster>,
    /// Whoever else wants the real parts waits for this.
    _turn: Option<Parts>,
    _calm: Option<Calm>,
}

impl Ground {
    async fn this_machine() -> Self {
        Self {
            settings: vec![format!("spark.submit={}", fake_spark_submit().display())],
            spark_conf: json!({"--master": "local[1]"}),
            raises: "# fake: print-error heard of it\n# fake: fail ValueError as told\n".to_owned(),
            said: "heard of it",
            stays: "# fake: hang\n".to_owned(),
            cluster: None,
            _turn: None,
            _calm: None,
        }
    }

    async fn standalone() -> Self {
        let turn = Parts::take().await;
        let calm = Cluster::shared(&[Part::Spark]).await;
        let mut settings = turn.settings();
        settings.push("spark.environment.SPARK_LOCAL_IP=127.0.0.1".to_owned());
        let session = "from pyspark.sql import SparkSession\n";
        let begin = "    SparkSession.builder.getOrCreate().range(3).count()\n";
        Self {
            settings,
            spark_conf: json!({
                "--master": calm.0.setting("SPARK_MASTER"), "spark.ui.enabled": "false", "spark.cores.max": "1",
                "spark.executor.memory": "512m",
            }),
            raises: format!(
                "{session}import sys\ndef score(a, b, c):\n{begin}    print('heard of it', file=sys.stderr)\n    raise ValueError('as told')\n"
            ),
            said: "heard of it",
            stays: format!("{session}import time\ndef score(a, b, c):\n{begin}    time.sleep(3600)\n"),
            cluster: None,
            _turn: Some(turn),
            _calm: Some(calm),
        }
    }

    async fn yarn() -> Self {
        let calm = Cluster::shared(&[Part::Hdfs, Part::Yarn]).await;
        let launcher = project().join("tests/e2e/cluster_submit.py");
        Self {
            settings: vec![
                format!("spark.submit={}", launcher.display()),
                format!("spark.environment.HADOOP_CONF_DIR={}", calm.0.setting("HADOOP_CONF_DIR")),
                format!("yarn.folder=/contract-{}", uuid::Uuid::new_v4().simple()),
                "yarn.grace=1s".to_owned(),
                "yarn.archive=never".to_owned(),
            ],
            spark_conf: json!({"--master": "yarn", "--deploy-mode": "cluster"}),
            raises: "# fake: {}\n".to_owned(),
            said: "the fake driver of",
            stays: "# fake: {\"run\": 3600}\n".to_owned(),
            cluster: Some(calm.0),
            _turn: None,
            _calm: Some(calm),
        }
    }
}

/// Events are not what is looked at here.
struct Silent;

impl Announce for Silent {
    fn announce(&self, _: EventKind, _: Event) {}

    fn announce_and_wait(&self, _: EventKind, _: Event) -> Awaited<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// One worker's ways of running, on a ground.
struct Place {
    ground: Ground,
    context: Context,
    folder: tempfile::TempDir,
    _home: Home,
}

impl Place {
    fn on(ground: Ground) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut overrides = ground.settings.clone();
        overrides.push(format!("job.directory={}", folder.path().join("attempts").display()));
        let settings = Settings::load(&Sources { overrides, ..Sources::default() }).unwrap();
        let client = ClientMode::new(&settings.spark, settings.log.limit, binary());
        let home = Home::make(&settings.job.directory, "contract").unwrap();
        let context =
            context(&settings, "contract", &home, Arc::new(client), Arc::new(Silent), None).unwrap();
        Self { ground, context, folder, _home: home }
    }

    fn backend(&self) -> &dyn Backend {
        &*self.context.backend
    }

    fn job(&self, id: &str, source: &str) -> String {
        let source = if source.contains("def score") {
            source.to_owned()
        } else {
            format!("{source}def score(a, b, c): pass\n")
        };
        json!({
            "id": id, "jobType": "MODEL_BATCH_JOB",
            "model": {"storedModel": {"modelAssets": [{
                "name": "m.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "scoreFunction": "score",
                "sourceCode": source}]}},
            "targetEngine": {"sparkConf": self.ground.spark_conf},
        })
        .to_string()
    }

    /// What is looked for of a job by the attempt with this number.
    fn sought(&self, id: &str, mode: Mode, attempt: u32) -> Sought {
        let directory = self.context.directory.join(format!("{id}-{attempt}"));
        let identity = Identity { job: id.to_owned(), digest: format!("digest-of-{id}") };
        Sought { mode, identity, working_directory: directory.join(stage::WORK), directory }
    }

    fn mode(&self) -> Mode {
        if self.ground.cluster.is_some() { Mode::Cluster } else { Mode::Client }
    }

    async fn submit(&self, id: &str, source: &str) -> Box<dyn Application> {
        let text = self.job(id, source);
        let job = Job::read(text.as_bytes(), None).unwrap();
        let mut plan = self.context.judge.plan(&job).unwrap();
        self.context.judge.settle(&mut plan).unwrap();
        let sought = self.sought(id, plan.mode(), 1);
        assert_eq!(plan.mode(), self.mode());
        assert!(self.backend().find(&sought).await.unwrap().is_none(), "something of {id} was there before");
        let staged = stage::stage(&sought.directory, &job, &plan, text.as_bytes()).unwrap();
        let submission = Submission {
            sought,
            modules: staged.modules,
            environment: None,
            login: None,
            leaves_java_idle: false,
            runtime: None,
            way: plan.way(),
            outputs: Vec::new(),
            output_folder: None,
            not_after: None,
            command_line: plan.command_line,
        };
        self.backend().submit(&submission).await.unwrap()
    }

    /// Looks for a job's application as the next attempt does.
    async fn find(&self, id: &str, attempt: u32) -> Option<Box<dyn Application>> {
        let sought = self.sought(id, self.mode(), attempt);
        stage::folders(&sought.directory).unwrap();
        self.backend().find(&sought).await.unwrap()
    }

    /// Nothing of it runs any more: no process on this machine, and no application that its cluster calls live.
    fn assert_gone(&self, accepted: &Accepted) {
        let left = processes_below(self.folder.path());
        assert!(left.is_empty(), "processes are left: {left:?}");
        if let (Some(cluster), Some(id)) = (self.ground.cluster, &accepted.id) {
            let state = cluster.yarn(&format!("/ws/v1/cluster/apps/{id}"))["app"]["state"].clone();
            assert!(["FINISHED", "FAILED", "KILLED"].contains(&state.as_str().unwrap()), "{id} is {state}");
        }
    }

    /// Everything that the driver of an attempt has said; spark-submit joins the two outputs of a Python of its own.
    fn driver_log(&self, id: &str, attempt: u32) -> String {
        let directory = self.sought(id, self.mode(), attempt).directory;
        let folder: PathBuf =
            if self.mode() == Mode::Cluster { directory.join(DRIVER_LOGS) } else { directory };
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        read(STANDARD_ERROR) + &read(STANDARD_OUTPUT)
    }
}

/// Follows an application until the first change that `wanted` takes; everything up to it comes in the order of life.
async fn follow<T>(
    application: &mut dyn Application,
    mut wanted: impl FnMut(Change) -> Option<T>,
) -> (Accepted, T) {
    let mut accepted = application.accepted();
    let mut steps = Vec::new();
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            let change = application.changed().await;
            match &change {
                Change::Accepted(now) => {
                    assert!(steps.is_empty(), "it was accepted after {steps:?}");
                    accepted = Some(now.clone());
                }
                Change::Started => {
                    assert!(accepted.is_some() && !steps.contains(&"running"), "it started after {steps:?}");
                    steps.push("started");
                }
                Change::Running => {
                    assert!(accepted.is_some(), "it was running before it was accepted");
                    steps.push("running");
                }
                _ => {}
            }
            if let Some(found) = wanted(change) {
                return found;
            }
        }
    });
    let found = found.await.unwrap_or_else(|_| panic!("it stands still after {steps:?}"));
    (accepted.unwrap_or_default(), found)
}

fn end(change: Change) -> Option<Ending> {
    match change {
        Change::Ended(ending) => Some(*ending),
        _ => None,
    }
}

fn started(change: Change) -> Option<()> {
    match change {
        Change::Started | Change::Running => Some(()),
        Change::Ended(ending) => panic!("it has ended: {ending:?}"),
        _ => None,
    }
}

async fn what_raises_ends_with_the_models_own_words_and_what_it_said(ground: Ground) {
    let place = Place::on(ground);
    let source = place.ground.raises.clone();
    let mut application = place.submit("raises", &source).await;
    let (accepted, ending) = follow(application.as_mut(), end).await;
    let Some(Word::Failed { exception, .. }) = &ending.report else { panic!("{ending:#?}") };
    assert!(ending.started && ending.report_came_first, "{ending:#?}");
    // The launcher of the tests on YARN raises with the application's own id.
    let words = accepted.id.clone().filter(|_| place.ground.cluster.is_some());
    let log = place.driver_log("raises", 1);
    assert_eq!(exception.message, words.unwrap_or_else(|| "as told".to_owned()), "{log}");
    match &ending.outcome {
        Outcome::Process(exit) => {
            assert!(place.ground.cluster.is_none() && exit.status != ExitStatus::Code(0), "{exit:?}")
        }
        Outcome::Cluster(end) => {
            assert_eq!((end.verdict, Some(&end.id)), (ClusterVerdict::Failed, accepted.id.as_ref()));
        }
        other => panic!("{other:?}"),
    }
    assert!(!accepted.is_adopted);
    place.assert_gone(&accepted);
    assert!(log.contains(place.ground.said), "{log}");
}

async fn what_is_asked_to_end_is_gone_when_it_is_said_to_have_ended(ground: Ground) {
    let place = Place::on(ground);
    let source = place.ground.stays.clone();
    let mut application = place.submit("asked", &source).await;
    let (accepted, ()) = follow(application.as_mut(), started).await;
    application.terminate();
    // Once more changes nothing.
    application.terminate();
    let mut killing = std::pin::pin!(tokio::time::sleep(Duration::from_secs(5)));
    let ending = loop {
        tokio::select! {
            change = application.changed() => if let Some(ending) = end(change) { break ending },
            () = &mut killing => {
                application.kill();
                killing.set(tokio::time::sleep(PATIENCE));
            }
        }
    };
    assert!(!matches!(ending.outcome, Outcome::Left | Outcome::Lost(_)), "{ending:#?}");
    if let Outcome::Cluster(end) = &ending.outcome {
        assert_eq!(end.verdict, ClusterVerdict::Killed);
    }
    place.assert_gone(&accepted);
}

async fn what_is_left_is_over_or_is_found_and_followed_by_the_next(ground: Ground) {
    let place = Place::on(ground);
    let source = place.ground.stays.clone();
    let mut application = place.submit("left", &source).await;
    let (accepted, ()) = follow(application.as_mut(), started).await;
    let outlives = application.outlives_worker();
    application.leave();
    let (_, ending) = follow(application.as_mut(), end).await;
    drop(application);
    let found = place.find("left", 2).await;
    match (outlives, &ending.outcome, found) {
        (true, Outcome::Left, Some(mut found)) => {
            let (adopted, ()) = follow(found.as_mut(), started).await;
            assert!(adopted.is_adopted);
            assert_eq!(adopted.id, accepted.id);
            found.kill();
            let (_, ending) = follow(found.as_mut(), end).await;
            assert!(matches!(ending.outcome, Outcome::Cluster(_)), "{ending:#?}");
        }
        (false, Outcome::Process(_), None) => {}
        (outlives, outcome, found) => {
            panic!("outlives its worker: {outlives}, found: {}, {outcome:?}", found.is_some());
        }
    }
    place.assert_gone(&accepted);
}

async fn what_is_forgotten_is_not_found(ground: Ground) {
    let place = Place::on(ground);
    let source = place.ground.raises.clone();
    let mut application = place.submit("forgotten", &source).await;
    let (accepted, ending) = follow(application.as_mut(), end).await;
    assert!(ending.report.is_some(), "{ending:#?}");
    let identity = place.sought("forgotten", place.mode(), 1).identity;
    place.backend().forget(&identity, place.mode()).await;
    // Once more changes nothing.
    place.backend().forget(&identity, place.mode()).await;
    let found = until("nothing", async || match place.find("forgotten", 2 + attempt()).await {
        None => Some(()),
        Some(_) => None,
    });
    found.await;
    place.assert_gone(&accepted);
}

/// A number that no attempt of this program has had.
fn attempt() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The promises, one test for each, on one ground.
macro_rules! keeps_its_promises {
    ($($ground:ident: $($promise:ident),+;)+) => {$(
        mod $ground {
            $(
                #[tokio::test]
                async fn $promise() {
                    super::$promise(super::Ground::$ground().await).await;
                }
            )+
        }
    )+};
}

keeps_its_promises! {
    this_machine:
        what_raises_ends_with_the_models_own_words_and_what_it_said,
        what_is_asked_to_end_is_gone_when_it_is_said_to_have_ended,
        what_is_left_is_over_or_is_found_and_followed_by_the_next,
        what_is_forgotten_is_not_found;
    standalone:
        what_raises_ends_with_the_models_own_words_and_what_it_said,
        what_is_asked_to_end_is_gone_when_it_is_said_to_have_ended,
        what_is_left_is_over_or_is_found_and_followed_by_the_next,
        what_is_forgotten_is_not_found;
    yarn:
        what_raises_ends_with_the_models_own_words_and_what_it_said,
        what_is_asked_to_end_is_gone_when_it_is_said_to_have_ended,
        what_is_left_is_over_or_is_found_and_followed_by_the_next,
        what_is_forgotten_is_not_found;
}
