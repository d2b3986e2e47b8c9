//! Drivers in cluster mode on a real YARN and HDFS: with the real Spark, and with a launcher that hands YARN a small
//! program instead, so that many faults can be tried.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spark_runtime_protocol::event::{EventKind, FailureClass};
use spark_runtime_protocol::job::JobId;
use spark_runtime_tests::broker::{Ready, Vhost};
use spark_runtime_tests::cluster::{Cluster, Daemon, Part};
use spark_runtime_tests::jobs::assets;
use spark_runtime_tests::program::{Worker, children_of};
use spark_runtime_tests::{PATIENCE, project, until};

use crate::spark::{DELAYS, Parts, spark_job};

const PARTS: [Part; 2] = [Part::Hdfs, Part::Yarn];
const LEASE: &str = "ledger.lease=3s";

/// A job in cluster mode on `cluster`, with small demands.
fn in_cluster(cluster: &Cluster, id: &str, source: &str) -> Value {
    let mut job = spark_job(id, source);
    job["targetEngine"]["sparkConf"] = json!({
        "--master": "yarn", "--deploy-mode": "cluster", "spark.yarn.jars": cluster.setting("SPARK_YARN_JARS"),
        "spark.ui.enabled": "false",
    });
    job["jobParameters"] =
        json!({"--executor-memory": "512MB", "--driver-memory": "512MB", "--num-executors": "1"});
    job
}

/// What every worker on `cluster` is told.
fn settings(cluster: &Cluster) -> Vec<String> {
    vec![
        format!("spark.environment.HADOOP_CONF_DIR={}", cluster.setting("HADOOP_CONF_DIR")),
        "spark.environment.SPARK_LOCAL_IP=127.0.0.1".to_owned(),
        "yarn.grace=2s".to_owned(),
        LEASE.to_owned(),
    ]
}

fn borrowed(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

fn decoded(asset: &Value) -> String {
    let mut bytes = Vec::new();
    let content = asset["fileContent"].as_str().unwrap_or_else(|| panic!("{asset}"));
    spark_runtime_protocol::asset::decode_base64(content, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

const MODEL: &str = "\
import pkg.deep
from pyspark.sql import SparkSession
def twice(n):
    return pkg.deep.double(n) + int(open('one.txt').read())
def score(inputs, outputs, attachments):
    spark = SparkSession.builder.getOrCreate()
    numbers = spark.read.csv(inputs[0]['fileUrl']).rdd.map(lambda row: int(row[0]))
    total = numbers.map(twice).sum()
    spark.createDataFrame([(total,)], ['total']).coalesce(1).write.mode('overwrite').csv(outputs[0]['fileUrl'])
    odd = open('pkg/odd, name.txt').read()
    open('total.txt', 'w').write('%d %s %s' % (total, odd, spark.sparkContext.applicationId))
";

#[tokio::test]
async fn a_job_in_cluster_mode_finds_its_files_there_and_its_results_come_back() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let folder = format!("/cluster-{}", uuid::Uuid::new_v4().simple());
    cluster.hdfs_write(&format!("{folder}/numbers.csv"), b"1\n2\n39\n");
    let mut place = Vhost::ready(&DELAYS).await;
    let mut settings = settings(cluster);
    settings.push(format!("yarn.folder={folder}/shared"));
    let worker = parts.worker(&place.vhost.uri(), &borrowed(&settings));
    let mut job = in_cluster(cluster, "cluster", MODEL);
    assets(&mut job).extend([
        json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/deep.py", "sourceCode": "def double(n):\n    return 2 * n\n"}),
        json!({"name": "i", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/__init__.py", "sourceCode": ""}),
        json!({"name": "f", "assetType": "FILE", "filename": "one.txt", "fileContent": "MQ=="}),
        json!({"name": "g", "assetType": "FILE", "filename": "pkg/odd, name.txt", "fileContent": "b2Rk"}),
    ]);
    job["jobParameters"]["spark.yarn.tags"] = json!("of-the-user");
    job["inputData"] =
        json!([{"name": "n", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{folder}/numbers.csv")}]);
    job["outputData"] = json!([
        {"name": "o", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{folder}/out")},
        {"name": "t", "assetType": "FILE", "filename": "total.txt"},
    ]);
    place.publish("cluster", job.to_string()).await;
    // Beside it one whose model makes no session, and raises.
    let raising = "def score(inputs, outputs, attachments):\n    print('hello from the driver')\n    raise ValueError('no such rule')\n";
    place.publish("raising", in_cluster(cluster, "raising", raising).to_string()).await;
    // And one that succeeds without Spark, and trains.
    let mut training = in_cluster(
        cluster,
        "training",
        "def train(inputs, outputs, attachments):\n    open('outputDir/model.bin', 'w').write('weights')\n",
    );
    training["jobType"] = json!("MODEL_BATCH_TRAINING_JOB");
    assets(&mut training)[0]["trainingFunction"] = json!("train");
    training["trainingOutput"] = json!({"fileUrl": format!("{folder}/trained")});
    place.publish("training", training.to_string()).await;

    let submitted = place.heard("cluster", &[EventKind::Submitted, EventKind::Failed]).await;
    let id = submitted.data.application_id.clone().unwrap_or_else(|| panic!("{:#?}", submitted.data));
    assert!(submitted.data.tracking_url.is_some());
    let tags = cluster.yarn(&format!("/ws/v1/cluster/apps/{id}"))["app"]["applicationTags"].clone();
    assert!(tags.as_str().unwrap().split(',').any(|tag| tag == "of-the-user"), "{tags}");
    let end = place.end_of("cluster").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}\n{}", end.data.failure, worker.log());
    assert_eq!(decoded(&end.data.output_data.unwrap()[1]), format!("87 odd {id}"));
    assert_eq!(place.story("cluster"), ["1 accepted", "1 staged", "1 submitted", "1 running", "1 completed"]);
    let written = cluster.hdfs_list(&format!("{folder}/out"));
    let part = written.iter().find(|name| name.starts_with("part-")).unwrap_or_else(|| panic!("{written:?}"));
    assert_eq!(cluster.hdfs_read(&format!("{folder}/out/{part}")).unwrap(), b"87\n");

    let end = place.end_of("raising").await;
    let failure = end.data.failure.unwrap();
    assert_eq!(
        (failure.class, failure.message.as_str()),
        (FailureClass::Model, "the model raised ValueError: no such rule")
    );
    assert_eq!(failure.exception.unwrap().frame.unwrap().line, 3);
    assert!(failure.log_tail.unwrap().contains("ValueError: no such rule"));
    let (_, kept) = failure.log.as_ref().unwrap().split_once(':').unwrap();
    let output = std::fs::read_to_string(Path::new(kept).with_file_name("stdout.log")).unwrap();
    assert!(output.contains("hello from the driver"), "{output}");

    let end = place.end_of("training").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}\n{}", end.data.failure, worker.log());
    let assets = end.data.additional_assets.unwrap();
    let url = assets[0]["fileUrl"].as_str().unwrap();
    assert_eq!(cluster.hdfs_read(url).unwrap(), b"weights");
    // Nothing is left of them in the folder that workers and drivers share.
    until("an empty folder", async || {
        cluster.hdfs_list(&format!("{folder}/shared/jobs")).is_empty().then_some(())
    })
    .await;
}

/// A broker, workers with the launcher of the tests, and the cluster on which its drivers run.
struct Scene {
    place: Ready,
    cluster: &'static Cluster,
    folder: tempfile::TempDir,
    settings: Vec<String>,
}

impl Scene {
    async fn on(cluster: &'static Cluster, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = settings(cluster);
        let launcher = project().join("tests/e2e/cluster_submit.py");
        settings.push(format!("spark.submit={}", launcher.display()));
        settings.push(format!("yarn.folder=/fake-{}", uuid::Uuid::new_v4().simple()));
        settings.push("retry.delays=200ms".to_owned());
        settings.push("job.kill_grace=1s".to_owned());
        settings.extend(more.iter().map(|&setting| setting.to_owned()));
        Self { place: Vhost::ready(&DELAYS).await, cluster, folder, settings }
    }

    fn worker(&self) -> Worker {
        Worker::start(&self.place.vhost.uri(), &borrowed(&self.settings))
    }

    fn journal(&self, id: &str) -> PathBuf {
        self.folder.path().join(format!("{id}.journal"))
    }

    async fn publish(&self, id: &str, told: Value) {
        let mut told = told;
        told["journal"] = json!(self.journal(id));
        let source = format!("# fake: {told}\ndef score(inputs, outputs, attachments): pass\n");
        self.place.publish(id, in_cluster(self.cluster, id, &source).to_string()).await;
    }

    /// The steps of a job's launchers and drivers so far, in their order.
    fn steps(&self, id: &str) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.journal(id)).unwrap_or_default();
        let words = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            (words.next().unwrap_or_default(), words.next().unwrap_or_default())
        };
        text.lines().map(words).collect()
    }

    fn count(&self, id: &str, step: &str) -> usize {
        self.steps(id).iter().filter(|(name, _)| name == step).count()
    }

    async fn has_come_to(&self, id: &str, step: &str) {
        until(&format!("{step} of {id}, not only {:?}", self.steps(id)), async || {
            (self.count(id, step) > 0).then_some(())
        })
        .await;
    }

    /// No driver of the job began before the one before it was over.
    fn assert_one_at_a_time(&self, id: &str) {
        let mut running: Option<String> = None;
        for (step, application) in self.steps(id) {
            match step.as_str() {
                "start" => {
                    if let Some(before) = &running {
                        let state = self.state(before);
                        assert!(
                            ["FAILED", "KILLED", "FINISHED"].contains(&state.as_str()),
                            "{before} is {state}: {:?}",
                            self.steps(id)
                        );
                    }
                    running = Some(application);
                }
                "end" if running.as_ref() == Some(&application) => running = None,
                "end" => panic!("{application} was not alone: {:?}", self.steps(id)),
                _ => {}
            }
        }
    }

    fn state(&self, application: &str) -> String {
        let app = self.cluster.yarn(&format!("/ws/v1/cluster/apps/{application}"));
        app["app"]["state"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn whoever_dies_and_whenever_a_job_in_a_cluster_has_one_application_and_one_end() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    // How far the job has come, what the launcher and the driver are told, and who dies.
    let phases = [
        ("launch", json!({"before": 3, "run": 2})),
        ("submitted", json!({"after": 3, "run": 4})),
        ("start", json!({"run": 5})),
    ];
    let mut cases = Vec::new();
    for (phase, told) in phases {
        for victim in ["worker", "worker-and-guard", "launcher"] {
            if (phase, victim) != ("start", "launcher") {
                cases.push(one_death(cluster, phase, told.clone(), victim));
            }
        }
    }
    for said in futures_util::future::join_all(cases).await {
        println!("{said}");
    }
}

async fn one_death(
    cluster: &'static Cluster,
    phase: &'static str,
    told: Value,
    victim: &'static str,
) -> String {
    let id = format!("{phase}-{victim}");
    let mut scene = Scene::on(cluster, &["worker.max_running=1"]).await;
    let first = scene.worker();
    scene.publish(&id, told).await;
    scene.has_come_to(&id, phase).await;
    let guards = children_of(first.pid());
    let launchers: Vec<i32> =
        guards.iter().flat_map(|guard| children_of(*guard)).flat_map(children_of).collect();
    let kill = |pid: i32| {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    };
    match victim {
        "launcher" => launchers.into_iter().for_each(kill),
        "worker" => kill(first.pid()),
        _ => {
            kill(first.pid());
            guards.into_iter().for_each(kill);
        }
    }
    let second = scene.worker();
    let end = scene.place.end_of(&id).await;
    let failure = end.data.failure.clone().unwrap_or_else(|| panic!("{end:#?}"));
    assert_eq!(failure.class, FailureClass::Model, "{id}: {failure:#?}\n{}\n{}", first.log(), second.log());
    let runs: Vec<_> = scene.steps(&id).into_iter().filter(|(step, _)| step == "start").collect();
    // The end that is told is that of the one that ran.
    assert_eq!(runs.len(), 1, "{id}: {:?}\n{}", scene.steps(&id), second.log());
    assert_eq!(failure.exception.unwrap().message, runs[0].1, "{id}");
    scene.assert_one_at_a_time(&id);
    scene.place.queue_has("spark.jobs", 0).await;
    format!(
        "{phase}: {victim} killed: attempt {}, {} launches, 1 run, failed as told",
        end.data.attempt,
        scene.count(&id, "launch")
    )
}

#[tokio::test]
async fn a_launcher_that_was_stopped_for_long_hands_over_what_never_runs() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["worker.max_running=1"]).await;
    let first = scene.worker();
    scene.publish("late", json!({"before": 1, "run": 1})).await;
    scene.has_come_to("late", "launch").await;
    // The whole machine stands still: worker, guard, launcher and all.
    let mut tree = vec![first.pid()];
    let mut next = 0;
    while next < tree.len() {
        tree.extend(children_of(tree[next]));
        next += 1;
    }
    let all = |signal| {
        for pid in &tree {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
        }
    };
    all(Signal::SIGSTOP);
    let _second = scene.worker();
    let end = scene.place.end_of("late").await;
    assert_eq!(end.data.failure.unwrap().class, FailureClass::Model);
    assert_eq!(scene.count("late", "start"), 1);
    let launcher = *tree.last().unwrap();
    // Now the launcher goes on, before anybody there can hold it back.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(launcher), Signal::SIGCONT);
    scene.has_come_to("late", "called-off").await;
    all(Signal::SIGCONT);
    assert_eq!(scene.count("late", "start"), 1, "{:?}", scene.steps("late"));
    scene.assert_one_at_a_time("late");
}

#[tokio::test]
async fn an_application_is_cancelled_when_the_cluster_says_so_and_by_an_administrator_it_says_by_whom() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["worker.max_running=4", "worker.max_submits=4"]).await;
    let worker = scene.worker();
    for id in ["running", "launching", "killed", "orphan"] {
        let before = if id == "launching" { 60 } else { 0 };
        scene.publish(id, json!({"before": before, "run": 600})).await;
    }
    for id in ["running", "killed", "orphan"] {
        scene.has_come_to(id, "start").await;
    }
    scene.has_come_to("launching", "launch").await;
    let client = scene.place.vhost.client().await;
    for id in ["running", "launching"] {
        client.cancel(&JobId::new(id).unwrap(), PATIENCE).await.unwrap();
        let end = scene.place.end_of(id).await;
        assert_eq!(end.kind(), Some(EventKind::Cancelled), "{end:#?}");
        for (_, application) in scene.steps(id).iter().filter(|(step, _)| step == "start") {
            assert_eq!(scene.state(application), "KILLED");
        }
    }
    assert_eq!(scene.count("launching", "submitted"), 0);
    let application = scene.steps("killed").pop().unwrap().1;
    scene.cluster.yarn_kill(&application);
    let end = scene.place.end_of("killed").await;
    assert_eq!(end.kind(), Some(EventKind::Cancelled), "{end:#?}");
    let words = end.data.message.unwrap();
    assert!(words.contains("was ended in the cluster") && words.contains("killed by user"), "{words}");
    // Cancelled while nobody follows it: the next worker ends it before it says so.
    worker.signal(Signal::SIGKILL);
    client.cancel(&JobId::new("orphan").unwrap(), Duration::from_millis(500)).await.unwrap();
    let _second = scene.worker();
    let end = scene.place.end_of("orphan").await;
    assert_eq!(end.kind(), Some(EventKind::Cancelled), "{end:#?}");
    let application = scene.steps("orphan").pop().unwrap().1;
    assert_eq!(scene.state(&application), "KILLED");
}

#[tokio::test]
async fn the_run_deadline_of_an_application_counts_from_its_own_start_whoever_follows_it() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["job.run_timeout=20s", "job.pending_timeout=1h"]).await;
    let first = scene.worker();
    scene.publish("long", json!({"run": 600})).await;
    scene.has_come_to("long", "start").await;
    let started = Instant::now();
    until("most of its time", async || (started.elapsed() > Duration::from_secs(12)).then_some(())).await;
    first.signal(Signal::SIGKILL);
    let second = scene.worker();
    let end = scene.place.end_of("long").await;
    let took = started.elapsed();
    assert_eq!(end.data.failure.unwrap().class, FailureClass::Timeout, "{}", second.log());
    println!("ended {} s after its start, by the second worker that followed it", took.as_secs());
    // From the adoption it would be more than 32 s.
    assert!((18..30).contains(&took.as_secs()), "{took:?}");
    assert_eq!(scene.count("long", "start"), 1);
}

#[tokio::test]
async fn a_worker_that_leaves_lets_its_application_go_on_and_the_next_one_follows_it() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["worker.drain_grace=0s"]).await;
    let mut first = scene.worker();
    scene.publish("drained", json!({"run": 6})).await;
    scene.has_come_to("drained", "start").await;
    first.signal(Signal::SIGTERM);
    first.ended().await;
    assert_eq!(scene.count("drained", "end"), 0);
    let _second = scene.worker();
    let end = scene.place.end_of("drained").await;
    assert_eq!(end.data.failure.unwrap().class, FailureClass::Model);
    assert_eq!((scene.count("drained", "launch"), scene.count("drained", "start")), (1, 1));
    let messages = end.data.job_messages.unwrap().join("\n");
    assert!(messages.contains("was there already; it is followed"), "{messages}");
}

#[tokio::test]
async fn more_applications_are_followed_than_jobs_may_run_here_and_no_more_launchers_run_at_once() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let limits = ["worker.max_running=1", "worker.max_submits=1", "yarn.max_followed=5"];
    let mut scene = Scene::on(cluster, &limits).await;
    let _worker = scene.worker();
    let ids: Vec<String> = (0..8).map(|number| format!("burst-{number}")).collect();
    for id in &ids {
        scene.publish(id, json!({"run": 8, "after": 0.2})).await;
    }
    for id in &ids {
        let end = scene.place.end_of(id).await;
        assert_eq!(end.data.failure.unwrap().class, FailureClass::Model);
    }
    // By the journals: how many drivers ran at once, and how many launchers.
    let mut moments: Vec<(u128, i32, i32)> = Vec::new();
    for id in &ids {
        for line in std::fs::read_to_string(scene.journal(id)).unwrap().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let moment = words[2].parse().unwrap();
            match words[0] {
                "launch" => moments.push((moment, 0, 1)),
                "submitted" => moments.push((moment, 0, -1)),
                "start" => moments.push((moment, 1, 0)),
                "end" => moments.push((moment, -1, 0)),
                _ => {}
            }
        }
    }
    moments.sort_unstable();
    let (mut drivers, mut launchers, mut most_drivers, mut most_launchers) = (0, 0, 0, 0);
    for (_, driver, launcher) in moments {
        drivers += driver;
        launchers += launcher;
        most_drivers = most_drivers.max(drivers);
        most_launchers = most_launchers.max(launchers);
    }
    assert_eq!(most_launchers, 1);
    assert!((3..=6).contains(&most_drivers), "{most_drivers} drivers at once");
}

#[tokio::test]
async fn a_burst_of_two_hundred_jobs_starts_no_more_launchers_at_once_than_the_settings_say() {
    const JOBS: usize = 200;
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let limits =
        ["worker.max_running=2", "worker.max_submits=2", "yarn.max_followed=100", "log.load_every=1s"];
    let mut scene = Scene::on(cluster, &limits).await;
    let ids: Vec<String> = (0..JOBS).map(|number| format!("many-{number}")).collect();
    // All that run do so until the last was launched, so that most of them are followed at once.
    let gate = scene.folder.path().join("gate");
    for id in &ids {
        scene.publish(id, json!({"until": gate})).await;
    }
    let worker = scene.worker();
    let submitted = |scene: &Scene| ids.iter().filter(|id| scene.count(id, "submitted") > 0).count();
    // A small machine takes longer for all of them than is waited for one thing.
    for some in [50, 100] {
        until(&format!("{some} applications"), async || (submitted(&scene) >= some).then_some(())).await;
    }
    std::fs::write(gate, "").unwrap();
    for id in &ids {
        let end = scene.place.end_of(id).await;
        assert_eq!(end.data.failure.unwrap().class, FailureClass::Model, "{}", worker.log());
    }
    let mut moments: Vec<(u128, i32)> = Vec::new();
    for id in &ids {
        for line in std::fs::read_to_string(scene.journal(id)).unwrap().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[0] {
                "launch" => moments.push((words[2].parse().unwrap(), 1)),
                "submitted" => moments.push((words[2].parse().unwrap(), -1)),
                _ => {}
            }
        }
    }
    moments.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, step) in moments {
        now += step;
        most = most.max(now);
    }
    assert!(most <= 2, "{most} launchers at once");
    // Both bounds are told, each for itself.
    let most_of = |field: &str| {
        let log = worker.log();
        let told = log.lines().filter(|line| line.contains("what is under way")).filter_map(|line| {
            let rest = line.split_once(&format!(" {field}="))?.1;
            rest.split(' ').next()?.parse::<usize>().ok()
        });
        told.max().unwrap_or(0)
    };
    let (launching, followed) = (most_of("launching_at_most"), most_of("followed_at_most"));
    println!(
        "{JOBS} jobs: at most {most} launchers at once, {launching} by the log; at most {followed} followed"
    );
    assert_eq!(launching, 2);
    assert!((50..=102).contains(&followed), "{followed}");
}

#[tokio::test]
async fn a_resource_manager_or_a_name_node_that_is_away_changes_nobodys_outcome() {
    let (cluster, _alone) = Cluster::alone(&PARTS).await;
    let mut scene = Scene::on(cluster, &["job.pending_timeout=5s", "retry.max_attempts=1"]).await;
    let worker = scene.worker();
    scene.publish("patient", json!({"run": 8})).await;
    scene.has_come_to("patient", "start").await;
    for daemon in [Daemon::ResourceManager, Daemon::NameNode] {
        scene.cluster.signal(daemon, Signal::SIGSTOP);
    }
    worker.logged("the ResourceManager cannot be asked").await;
    for daemon in [Daemon::NameNode, Daemon::ResourceManager] {
        scene.cluster.signal(daemon, Signal::SIGCONT);
    }
    let end = scene.place.end_of("patient").await;
    assert_eq!(end.data.failure.unwrap().class, FailureClass::Model);
    assert_eq!(scene.count("patient", "start"), 1);
    // All that the cluster has is wanted, of which somebody has a part: the job waits for its place, and not for ever.
    let other = scene.cluster.yarn_submit(&[], "sleep 600");
    until("a place for the other one", async || {
        let app = scene.cluster.yarn(&format!("/ws/v1/cluster/apps/{other}"));
        app["app"]["amContainerLogs"].as_str().filter(|logs| !logs.is_empty()).map(|_| ())
    })
    .await;
    scene.publish("waiting", json!({"memory": 4096, "run": 1})).await;
    let end = scene.place.end_of("waiting").await;
    scene.cluster.yarn_kill(&other);
    let failure = end.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Pending, "{failure:#?}");
    let words =
        ["of YARN, whose driver asks for 512m of memory and 1 core; YARN says: ", "(job.pending_timeout)"];
    assert!(words.iter().all(|words| failure.message.contains(words)), "{}", failure.message);
    assert_eq!(scene.count("waiting", "start"), 0);
    let application = scene.steps("waiting").pop().unwrap().1;
    assert_eq!(scene.state(&application), "KILLED");
}

/// A model of the real Spark that counts, waits for somebody to let it go on, and counts again.
const IN_TWO_STEPS: &str = "\
import os, time
from pyspark.sql import SparkSession
def score(inputs, outputs, attachments):
    spark = SparkSession.builder.getOrCreate()
    spark.range(10).count()
    open(FOLDER + '/counted', 'a').write(spark.sparkContext.applicationId + '\\n')
    while not os.path.exists(FOLDER + '/go-on'):
        time.sleep(0.1)
    spark.range(10).count()
";

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_manager_that_is_killed_and_comes_back_costs_no_job_its_one_run_in_any_phase() {
    let parts = Parts::take().await;
    let (cluster, _alone) = Cluster::alone(&PARTS).await;
    let more = ["worker.max_running=8", "worker.max_submits=8", "retry.max_attempts=3"];
    let mut scene = Scene::on(cluster, &more).await;
    let worker = scene.worker();
    // With the real Spark, whose driver talks to the ResourceManager as long as it runs.
    let mut real = Vhost::ready(&DELAYS).await;
    let real_worker = parts.worker(&real.vhost.uri(), &borrowed(&settings(cluster)));
    let folder = scene.folder.path().display().to_string();
    let source = format!("FOLDER = {folder:?}\n{IN_TWO_STEPS}");
    real.publish("real", in_cluster(cluster, "real", &source).to_string()).await;
    let counted = scene.folder.path().join("counted");
    until(&format!("the first step:\n{}", real_worker.log()), async || counted.exists().then_some(())).await;
    // Each of the others is in another phase when the ResourceManager dies. Their drivers, of which YARN hears nothing, go on
    // until it is back, however long that takes.
    let gate = scene.folder.path().join("gate");
    scene.publish("running", json!({"until": gate})).await;
    scene.has_come_to("running", "start").await;
    scene.publish("submitted", json!({"after": 15, "until": gate})).await;
    scene.has_come_to("submitted", "submitted").await;
    scene.publish("start", json!({"until": gate})).await;
    // This launcher submits by REST, which the ResourceManager takes before it has read what there was, and then it does not
    // start: its own programs cannot do that. So it waits until it is there.
    scene.publish("launch", json!({"gate": gate, "run": 2})).await;
    scene.has_come_to("start", "start").await;
    scene.has_come_to("launch", "launch").await;
    cluster.signal(Daemon::ResourceManager, Signal::SIGKILL);
    // The model of the real one comes to its end while nobody can be told.
    std::fs::write(scene.folder.path().join("go-on"), "").unwrap();
    tokio::task::block_in_place(|| cluster.up(&PARTS));
    std::fs::write(gate, "").unwrap();
    for id in ["running", "submitted", "start", "launch"] {
        let end = scene.place.end_of(id).await;
        let failure = end.data.failure.clone().unwrap_or_else(|| panic!("{end:#?}"));
        assert_eq!(failure.class, FailureClass::Model, "{id}: {failure:#?}\n{}", worker.log());
        let runs: Vec<_> = scene.steps(id).into_iter().filter(|(step, _)| step == "start").collect();
        assert_eq!(runs.len(), 1, "{id}: {:?}\n{}", scene.steps(id), worker.log());
        assert_eq!(failure.exception.unwrap().message, runs[0].1, "{id}");
        println!(
            "{id}: ResourceManager killed: attempt {}, {} launches, 1 run, failed as told",
            end.data.attempt,
            scene.count(id, "launch")
        );
    }
    let end = real.end_of("real").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}\n{}", end.data.failure, real_worker.log());
    assert_eq!(end.data.attempt, 1);
    assert_eq!(std::fs::read_to_string(counted).unwrap().lines().count(), 1);
    println!("real Spark, running: ResourceManager killed: attempt 1, completed");
}

#[tokio::test]
async fn what_stands_in_the_way_of_cluster_mode_is_told_with_what_to_do() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["retry.max_attempts=1"]).await;
    let _worker = scene.worker();
    scene.publish("refused", json!({"launch": 3})).await;
    scene.publish("silent", json!({"silent": 9})).await;
    let failure = scene.place.end_of("refused").await.data.failure.unwrap();
    assert_eq!((failure.class, failure.exit_code), (FailureClass::Submit, Some(3)));
    assert!(failure.log_tail.unwrap().contains("the fake launcher was told to fail"));
    let failure = scene.place.end_of("silent").await.data.failure.unwrap();
    assert_eq!((failure.class, failure.exit_code), (FailureClass::Model, Some(9)), "{}", failure.message);
    assert!(failure.message.contains("left no report"), "{}", failure.message);
    assert!(failure.log_tail.unwrap().contains("the fake driver of"));
    for (folder, expected) in
        [("", "set spark.environment.HADOOP_CONF_DIR"), ("/nowhere", "names a ResourceManager")]
    {
        let mut place = Vhost::ready(&DELAYS).await;
        let mut settings = scene.settings.clone();
        settings[0] = format!("spark.environment.HADOOP_CONF_DIR={folder}");
        let _worker = Worker::start(&place.vhost.uri(), &borrowed(&settings));
        place
            .publish("lost", in_cluster(scene.cluster, "lost", "def score(a, b, c): pass").to_string())
            .await;
        let failure = place.end_of("lost").await.data.failure.unwrap();
        assert_eq!(failure.class, FailureClass::Infrastructure);
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
    for (conf, expected) in [
        (json!({"--master": "local[1]", "--deploy-mode": "cluster"}), "which is no cluster"),
        (json!({"--master": "spark://h:1", "--deploy-mode": "cluster"}), "Spark runs no Python"),
        (json!({"--master": "yarn", "--deploy-mode": "here"}), "give client or cluster"),
        (json!({"--master": "yarn", "spark.yarn.maxAppAttempts": "3"}), "would break the following"),
    ] {
        let mut job = spark_job("mode", "def score(a, b, c): pass");
        job["targetEngine"]["sparkConf"] = conf;
        job["id"] = json!(expected.replace(' ', "-"));
        let id = job["id"].as_str().unwrap().to_owned();
        scene.place.publish(&id, job.to_string()).await;
        let faults = scene.place.end_of(&id).await.data.faults.unwrap();
        assert!(faults[0].message.contains(expected), "{faults:?}");
    }
}

#[tokio::test]
async fn what_yarn_does_not_take_is_told_in_its_words_in_both_modes() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut place = Vhost::ready(&DELAYS).await;
    let mut settings = settings(cluster);
    let more = ["retry.max_attempts=2", "retry.delays=200ms", "worker.max_running=2"];
    settings.extend(more.map(str::to_owned));
    let worker = parts.worker(&place.vhost.uri(), &borrowed(&settings));
    let source = "from pyspark.sql import SparkSession\ndef score(a, b, c):\n    SparkSession.builder.getOrCreate().range(1).count()\n";
    let cases = [
        ("queue-there", "cluster", ("--queue", "nowhere"), 2, "unknown queue: nowhere"),
        ("queue-here", "client", ("--queue", "nowhere"), 2, "unknown queue: nowhere"),
        // There is no use in asking for it again.
        ("memory-there", "cluster", ("--driver-memory", "9g"), 1, "above the max threshold (4096 MB)"),
        ("memory-here", "client", ("--executor-memory", "9g"), 1, "above the max threshold (4096 MB)"),
    ];
    for (id, mode, (flag, value), ..) in cases {
        let mut job = in_cluster(cluster, id, source);
        job["targetEngine"]["sparkConf"]["--deploy-mode"] = json!(mode);
        job["jobParameters"][flag] = json!(value);
        place.publish(id, job.to_string()).await;
    }
    for (id, _, _, attempts, words) in cases {
        let end = place.end_of(id).await;
        let failure = end.data.failure.unwrap();
        println!("{id}: attempt {}: {:?}: {}", end.data.attempt, failure.class, failure.message);
        assert_eq!(failure.class, FailureClass::Submit, "{id}: {failure:#?}\n{}", worker.log());
        assert_eq!(end.data.attempt, attempts, "{id}: {failure:#?}");
        assert!(failure.message.contains(words), "{id}: {}", failure.message);
    }
}

#[tokio::test]
async fn what_yarn_does_to_an_application_under_a_driver_on_this_machine_is_told_as_such() {
    let parts = Parts::take().await;
    let (cluster, _alone) = Cluster::alone(&PARTS).await;
    let folder = tempfile::tempdir().unwrap();
    let in_client = |id: &str, source: &str| {
        let mut job = in_cluster(cluster, id, source);
        job["targetEngine"]["sparkConf"]["--deploy-mode"] = json!("client");
        job
    };
    let mut place = Vhost::ready(&DELAYS).await;
    let mut settings = settings(cluster);
    settings.push("retry.max_attempts=2".to_owned());
    let worker = parts.worker(&place.vhost.uri(), &borrowed(&settings));
    let named = folder.path().join("killed");
    let source = format!(
        "import time\nfrom pyspark.sql import SparkSession\ndef score(a, b, c):\n    \
         spark = SparkSession.builder.getOrCreate()\n    \
         open({:?}, 'a').write(spark.sparkContext.applicationId + '\\n')\n    \
         while not spark.sparkContext._jsc.sc().isStopped():\n        time.sleep(0.1)\n    spark.range(10).count()\n",
        named.display().to_string()
    );
    place.publish("killed", in_client("killed", &source).to_string()).await;
    let application = until("the application", async || {
        std::fs::read_to_string(&named).ok().filter(|text| text.ends_with('\n'))
    })
    .await;
    cluster.yarn_kill(application.trim());
    let end = place.end_of("killed").await;
    assert_eq!(end.kind(), Some(EventKind::Cancelled), "{:#?}\n{}", end.data.failure, worker.log());
    let words = end.data.message.unwrap();
    println!("{words}");
    assert!(words.contains("was ended in the cluster") && words.contains("killed by user"), "{words}");
    assert_eq!(std::fs::read_to_string(&named).unwrap().lines().count(), 1);
    // A queue without room: no node takes anything.
    let mut place = Vhost::ready(&DELAYS).await;
    settings
        .extend(["job.pending_timeout=8s", "job.run_timeout=8s", "retry.max_attempts=1"].map(str::to_owned));
    let worker = parts.worker(&place.vhost.uri(), &borrowed(&settings));
    cluster.signal(Daemon::NodeManager, Signal::SIGSTOP);
    place.publish("queued", in_client("queued", &source).to_string()).await;
    let end = place.end_of("queued").await;
    cluster.signal(Daemon::NodeManager, Signal::SIGCONT);
    let failure = end.data.failure.unwrap_or_else(|| panic!("{}", worker.log()));
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Pending, "{failure:#?}\n{}", worker.log());
    for words in [
        "the job got no executor within 8 s (job.pending_timeout): the application that Spark asked of yarn has not begun",
        "512m of memory and 1 core(s)",
        "in the queue \"default\"",
    ] {
        assert!(failure.message.contains(words), "{words}: {}", failure.message);
    }
}

#[tokio::test]
async fn a_driver_that_takes_more_memory_than_it_was_given_is_told_with_the_limit_and_the_setting() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["retry.max_attempts=1"]).await;
    let worker = scene.worker();
    scene.publish("greedy", json!({"eat": 500, "run": 60})).await;
    let failure = scene.place.end_of("greedy").await.data.failure.unwrap();
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Killed, "{failure:#?}\n{}", worker.log());
    for words in
        ["MB of 256 MB physical memory used", "raise spark.driver.memory or spark.driver.memoryOverhead"]
    {
        assert!(failure.message.contains(words), "{}", failure.message);
    }
    assert_eq!((scene.count("greedy", "start"), scene.count("greedy", "end")), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_node_is_lost_is_told_and_yarn_does_not_start_it_anew() {
    let (cluster, _alone) = Cluster::alone(&PARTS).await;
    let mut scene = Scene::on(cluster, &["retry.max_attempts=1"]).await;
    let worker = scene.worker();
    // Its driver goes on, as on a node that only its cluster cannot reach: what it said would count.
    scene.publish("lost", json!({"run": 600})).await;
    scene.has_come_to("lost", "start").await;
    let application = scene.steps("lost").pop().unwrap().1;
    cluster.signal(Daemon::NodeManager, Signal::SIGKILL);
    let end = scene.place.end_of("lost").await;
    let failure = end.data.failure.clone().unwrap_or_else(|| panic!("{end:#?}"));
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Lost, "{failure:#?}\n{}", worker.log());
    assert!(failure.message.starts_with("the cluster lost the driver of "), "{}", failure.message);
    assert!(failure.message.contains("*lost* node"), "{}", failure.message);
    assert_eq!(scene.state(&application), "FAILED");
    tokio::task::block_in_place(|| cluster.up(&PARTS));
    assert_eq!(scene.count("lost", "start"), 1);
}

/// A cluster of one test whose scheduler takes places back, with the ResourceManager that does so.
struct Preempting {
    cluster: Cluster,
    manager: Option<std::process::Child>,
    _place: tempfile::TempDir,
}

impl Drop for Preempting {
    fn drop(&mut self) {
        if let Some(manager) = &mut self.manager {
            let _ = manager.kill();
            let _ = manager.wait();
        }
        self.cluster.remove();
    }
}

impl Preempting {
    /// Starts it. Blocks.
    fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let cluster = Cluster::at(place.path().canonicalize().unwrap().join("cluster"));
        let mut own = Self { cluster, manager: None, _place: place };
        own.cluster.up(&PARTS);
        let folder = PathBuf::from(own.cluster.setting("HADOOP_CONF_DIR"));
        let write = |file: &str, properties: &[(&str, &str)]| {
            let path = folder.join(file);
            // What stands last in a file counts.
            let text = std::fs::read_to_string(&path).unwrap();
            let more: String = properties
                .iter()
                .map(|(name, value)| {
                    format!("<property><name>{name}</name><value>{value}</value></property>")
                })
                .collect();
            std::fs::write(&path, text.replace("</configuration>", &format!("{more}</configuration>")))
                .unwrap();
        };
        let queue = "yarn.scheduler.capacity";
        write(
            "capacity-scheduler.xml",
            &[
                (&format!("{queue}.maximum-am-resource-percent"), "1"),
                (&format!("{queue}.root.queues"), "default,urgent"),
                (&format!("{queue}.root.default.capacity"), "50"),
                (&format!("{queue}.root.urgent.capacity"), "50"),
                (&format!("{queue}.root.default.user-limit-factor"), "10"),
                (&format!("{queue}.root.urgent.user-limit-factor"), "10"),
            ],
        );
        let preemption = "yarn.resourcemanager.monitor.capacity.preemption";
        write(
            "yarn-site.xml",
            &[
                ("yarn.resourcemanager.scheduler.monitor.enable", "true"),
                (&format!("{preemption}.monitoring_interval"), "500"),
                (&format!("{preemption}.max_wait_before_kill"), "1000"),
                (&format!("{preemption}.total_preemption_per_round"), "1.0"),
                (&format!("{preemption}.natural_termination_factor"), "1.0"),
                (&format!("{preemption}.max_ignored_over_capacity"), "0.0"),
            ],
        );
        // In the place of the one that knows nothing of this.
        let manager = own.cluster.pid(Daemon::ResourceManager);
        let line = std::fs::read(format!("/proc/{manager}/cmdline")).unwrap();
        let words: Vec<String> = String::from_utf8(line).unwrap().split('\0').map(str::to_owned).collect();
        own.cluster.signal(Daemon::ResourceManager, Signal::SIGKILL);
        let log = std::fs::File::create(own.cluster.directory().join("log/preempting.log")).unwrap();
        let mut command = std::process::Command::new(&words[0]);
        command.args(words[1..].iter().filter(|word| !word.is_empty())).current_dir(own.cluster.directory());
        command.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        own.manager = Some(command.spawn().unwrap());
        own
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_place_is_taken_for_another_queue_is_told_so_and_tried_again() {
    let own = tokio::task::block_in_place(Preempting::start);
    // Of this test alone, and so as long as it is needed.
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::at(own.cluster.directory().to_owned())));
    tokio::task::block_in_place(|| cluster.attach());
    let mut scene = Scene::on(cluster, &["retry.max_attempts=2"]).await;
    let worker = scene.worker();
    scene.publish("large", json!({"memory": 3072, "run": 600})).await;
    scene.has_come_to("large", "start").await;
    scene.publish("urgent", json!({"memory": 2048, "queue": "urgent", "run": 3})).await;
    let retrying = scene.place.heard("large", &[EventKind::Retrying, EventKind::Failed]).await;
    let failure = retrying.data.failure.clone().unwrap_or_else(|| panic!("{retrying:#?}"));
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Killed, "{failure:#?}\n{}", worker.log());
    assert!(failure.message.contains("for something else (preemption)"), "{}", failure.message);
    let end = scene.place.end_of("urgent").await;
    assert_eq!(end.data.failure.unwrap().class, FailureClass::Model);
    // Then there is room for the large one again.
    until("another start", async || (scene.count("large", "start") == 2).then_some(())).await;
    scene.assert_one_at_a_time("large");
}

/// How many jobs and kills the storm has: some, or what `SPARK_RUNTIME_TEST_STORM` says, as `100,30`.
fn storm_size() -> (usize, usize) {
    let said = std::env::var("SPARK_RUNTIME_TEST_STORM").ok();
    let said = said.as_deref().and_then(|said| said.split_once(','));
    said.map_or((12, 5), |(jobs, kills)| (jobs.parse().unwrap(), kills.parse().unwrap()))
}

#[tokio::test]
async fn in_a_storm_of_kills_every_job_of_a_cluster_comes_to_one_end_and_none_runs_twice() {
    let (jobs, kills) = storm_size();
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let more = ["worker.max_running=2", "worker.max_submits=2", "retry.max_attempts=50"];
    let mut scene = Scene::on(cluster, &more).await;
    let ids: Vec<String> = (0..jobs).map(|number| format!("storm-{number}")).collect();
    for (number, id) in ids.iter().enumerate() {
        let told = json!({"before": number % 3, "after": number % 2, "run": 1 + number % 4});
        scene.publish(id, told).await;
    }
    let mut workers: Vec<Worker> = (0..3).map(|_| scene.worker()).collect();
    let mut graveyard = Vec::new();
    for number in 0..kills {
        // The next blow falls when another part of the jobs has ended.
        let due = jobs * number / kills.max(1);
        let ended = |scene: &Scene| ids.iter().filter(|id| scene.count(id, "end") > 0).count();
        until("more ends", async || (ended(&scene) >= due).then_some(())).await;
        let turn = number % workers.len();
        let victim = workers[turn].pid();
        let guards = children_of(victim);
        let mut dying = match number % 3 {
            0 => vec![victim],
            1 => [vec![victim], guards].concat(),
            _ => guards.into_iter().flat_map(children_of).flat_map(children_of).collect(),
        };
        for pid in dying.drain(..) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        if number % 3 < 2 {
            let next = scene.worker();
            graveyard.push(std::mem::replace(&mut workers[turn], next));
        }
    }
    let mut launches = 0;
    for id in &ids {
        let end = scene.place.end_of(id).await;
        let failure = end.data.failure.clone().unwrap_or_else(|| panic!("{end:#?}"));
        assert_eq!(failure.class, FailureClass::Model, "{id}: {failure:#?} {:?}", scene.steps(id));
        let runs: Vec<_> = scene.steps(id).into_iter().filter(|(step, _)| step == "start").collect();
        assert_eq!(runs.len(), 1, "{id}: {:?}", scene.steps(id));
        assert_eq!(failure.exception.unwrap().message, runs[0].1, "{id}");
        launches += scene.count(id, "launch");
    }
    scene.place.queue_has("spark.jobs", 0).await;
    for id in &ids {
        let all = scene.place.seen.iter().filter(|event| event.subject.as_str() == id.as_str());
        let mut ends: Vec<_> = all.filter(|event| event.kind().is_some_and(EventKind::is_terminal)).collect();
        ends.dedup();
        assert_eq!(ends.len(), 1, "{id}");
    }
    println!("storm: {jobs} jobs, {kills} kills: {launches} launches, {jobs} runs, {jobs} ends");
}
