//! Drivers in pods, with the real API server of Kubernetes, a real HDFS and a played machine that runs containers as processes
//! ([`spark_runtime_tests::kubernetes`]): with the real Spark, and with a launcher that makes pods of a small program instead,
//! so that many faults can be tried.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spark_runtime_protocol::event::{EventKind, FailureClass};
use spark_runtime_protocol::job::JobId;
use spark_runtime_tests::broker::{Ready, Vhost};
use spark_runtime_tests::cluster::{Cluster, Daemon, Part};
use spark_runtime_tests::jobs::assets;
use spark_runtime_tests::kubernetes::Kubernetes;
use spark_runtime_tests::program::{Worker, children_of};
use spark_runtime_tests::{PATIENCE, project, until};

use crate::spark::{DELAYS, Parts, spark_job};

const PARTS: [Part; 2] = [Part::Hdfs, Part::Kubernetes];
const LEASE: &str = "ledger.lease=3s";

/// A job in cluster mode there, with small demands.
fn in_pods(kubernetes: &Kubernetes, id: &str, source: &str) -> Value {
    let mut job = spark_job(id, source);
    job["targetEngine"]["sparkConf"] =
        json!({"--master": kubernetes.master(), "--deploy-mode": "cluster", "spark.ui.enabled": "false"});
    job["jobParameters"] =
        json!({"--executor-memory": "512MB", "--driver-memory": "512MB", "--num-executors": "1"});
    job
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

fn name_of(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}

fn kill(pid: i32, signal: Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
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
    open('total.txt', 'w').write('%d %s %s' % (total, odd, spark.conf.get('spark.kubernetes.driver.pod.name')))
";

#[tokio::test]
async fn a_job_on_kubernetes_finds_its_files_in_its_pod_and_its_results_come_back() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let kubernetes = Kubernetes::new(cluster).with_machine(parts.python(), Some(parts.spark_home()));
    let folder = format!("/pods-{}", uuid::Uuid::new_v4().simple());
    cluster.hdfs_write(&format!("{folder}/numbers.csv"), b"1\n2\n39\n");
    let mut place = Vhost::ready(&DELAYS).await;
    let mut settings = kubernetes.settings();
    settings.extend([format!("kubernetes.folder={folder}/shared"), LEASE.to_owned()]);
    let worker = parts.worker(&place.vhost.uri(), &borrowed(&settings));
    let mut job = in_pods(&kubernetes, "pods", MODEL);
    assets(&mut job).extend([
        json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/deep.py", "sourceCode": "def double(n):\n    return 2 * n\n"}),
        json!({"name": "i", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/__init__.py", "sourceCode": ""}),
        json!({"name": "f", "assetType": "FILE", "filename": "one.txt", "fileContent": "MQ=="}),
        json!({"name": "g", "assetType": "FILE", "filename": "pkg/odd, name.txt", "fileContent": "b2Rk"}),
    ]);
    job["jobParameters"]["spark.kubernetes.driver.label.team"] = json!("of-the-user");
    job["inputData"] =
        json!([{"name": "n", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{folder}/numbers.csv")}]);
    job["outputData"] = json!([
        {"name": "o", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{folder}/out")},
        {"name": "t", "assetType": "FILE", "filename": "total.txt"},
    ]);
    place.publish("pods", job.to_string()).await;
    let submitted = place.heard("pods", &[EventKind::Submitted, EventKind::Failed]).await;
    let id = submitted.data.application_id.clone().unwrap_or_else(|| panic!("{:#?}", submitted.data));
    let pods = kubernetes.drivers();
    assert_eq!(pods.len(), 1);
    let name = name_of(&pods[0]);
    assert_eq!(id, format!("{}:{name}", kubernetes.namespace()));
    assert!(name.len() <= 63);
    let labels = &pods[0]["metadata"]["labels"];
    assert_eq!((&labels["team"], &labels["spark-role"]), (&json!("of-the-user"), &json!("driver")));
    assert_eq!(labels["spark-runtime/job"], json!(name.trim_end_matches("-driver")));
    assert_eq!(pods[0]["spec"]["serviceAccountName"], json!("spark"));
    assert_eq!(pods[0]["metadata"]["annotations"]["spark-runtime/job-id"], json!("pods"));
    // Where a driver shows its progress is inside of the cluster.
    assert_eq!(submitted.data.tracking_url, None);
    let end = place.end_of("pods").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}\n{}", end.data, worker.log());
    assert_eq!(decoded(&end.data.output_data.unwrap()[1]), format!("87 odd {name}"));
    assert_eq!(place.story("pods"), ["1 accepted", "1 staged", "1 submitted", "1 running", "1 completed"]);
    let written = cluster.hdfs_list(&format!("{folder}/out"));
    let part = written.iter().find(|name| name.starts_with("part-")).unwrap_or_else(|| panic!("{written:?}"));
    assert_eq!(cluster.hdfs_read(&format!("{folder}/out/{part}")).unwrap(), b"87\n");

    let raising = "import time\ndef score(inputs, outputs, attachments):\n    print('hello from the driver')\n    time.sleep(20)\n    raise ValueError('no such rule')\n";
    place.publish("raising", in_pods(&kubernetes, "raising", raising).to_string()).await;
    place.heard("raising", &[EventKind::Running, EventKind::Failed]).await;
    // Its worker dies, and the next one follows its pod.
    worker.signal(Signal::SIGKILL);
    let second = parts.worker(&place.vhost.uri(), &borrowed(&settings));
    let end = place.end_of("raising").await;
    assert_eq!(end.data.attempt, 2);
    let failure = end.data.failure.unwrap();
    assert_eq!(
        (failure.class, failure.message.as_str()),
        (FailureClass::Model, "the model raised ValueError: no such rule"),
        "{}",
        second.log()
    );
    assert_eq!(failure.exception.unwrap().frame.unwrap().line, 5);
    // The log of its container, through the API server.
    let tail = failure.log_tail.unwrap();
    assert!(tail.contains("ValueError: no such rule"), "{tail}");
    let (_, kept) = failure.log.as_ref().unwrap().split_once(':').unwrap();
    let log = std::fs::read_to_string(kept).unwrap();
    assert!(log.contains("hello from the driver"), "{log}");
    // Nothing is left of them in HDFS, what spark-submit uploaded included; the pod of the one that failed is.
    until("an empty folder and one pod", async || {
        let is_empty = cluster.hdfs_list(&format!("{folder}/shared/jobs")).is_empty();
        (is_empty && kubernetes.drivers().len() == 1).then_some(())
    })
    .await;
}

/// A broker, workers with the launcher of the tests, and the cluster on which its drivers run.
struct Scene {
    place: Ready,
    kubernetes: Kubernetes,
    folder: tempfile::TempDir,
    settings: Vec<String>,
}

impl Scene {
    async fn on(cluster: &'static Cluster, more: &[&str]) -> Self {
        let kubernetes = Kubernetes::new(cluster).with_machine("python3", None);
        let mut settings = kubernetes.settings();
        settings.extend([
            format!("spark.submit={}", project().join("tests/e2e/pod_submit.py").display()),
            format!("kubernetes.folder=/fake-{}", uuid::Uuid::new_v4().simple()),
            "retry.delays=200ms".to_owned(),
            "job.kill_grace=1s".to_owned(),
            LEASE.to_owned(),
        ]);
        settings.extend(more.iter().map(|&setting| setting.to_owned()));
        let folder = tempfile::tempdir().unwrap();
        Self { place: Vhost::ready(&DELAYS).await, kubernetes, folder, settings }
    }

    fn worker(&self) -> Worker {
        Worker::start(&self.place.vhost.uri(), &borrowed(&self.settings))
    }

    fn journal(&self, id: &str) -> PathBuf {
        self.folder.path().join(format!("{id}.journal"))
    }

    /// A job with what its launcher and driver are told, in an image that plays something.
    async fn publish_in(&self, image: &str, id: &str, told: Value) {
        let mut told = told;
        told["journal"] = json!(self.journal(id));
        let source = format!("# fake: {told}\ndef score(inputs, outputs, attachments): pass\n");
        let mut job = in_pods(&self.kubernetes, id, &source);
        job["jobParameters"]["spark.kubernetes.container.image"] = json!(format!("here/{image}"));
        self.place.publish(id, job.to_string()).await;
    }

    async fn publish(&self, id: &str, told: Value) {
        self.publish_in("process", id, told).await;
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

    /// One driver ran of the job, and it is the one whose end was told.
    async fn ran_once(&mut self, id: &str, workers: &[&Worker]) -> u32 {
        let end = self.place.end_of(id).await;
        let logs = || workers.iter().map(|worker| worker.log()).collect::<Vec<_>>().join("\n");
        let failure = end.data.failure.clone().unwrap_or_else(|| panic!("{end:#?}\n{}", logs()));
        assert_eq!(failure.class, FailureClass::Model, "{id}: {failure:#?}\n{}", logs());
        let runs: Vec<_> = self.steps(id).into_iter().filter(|(step, _)| step == "start").collect();
        assert_eq!(runs.len(), 1, "{id}: {:?}\n{}", self.steps(id), logs());
        assert_eq!(failure.exception.unwrap().message, runs[0].1, "{id}");
        end.data.attempt
    }
}

#[tokio::test]
async fn whoever_dies_and_whenever_a_job_in_pods_has_one_driver_and_one_end() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    // How far the job has come, what the launcher and the driver are told, and who dies.
    let phases = [
        ("launch", json!({"before": 3, "run": 2})),
        ("submitted", json!({"between": 3, "run": 4})),
        ("configured", json!({"after": 3, "run": 4})),
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
    assert!(!launchers.is_empty() || phase == "start", "{phase}: there is no launcher");
    match victim {
        "launcher" => launchers.into_iter().for_each(|pid| kill(pid, Signal::SIGKILL)),
        "worker" => kill(first.pid(), Signal::SIGKILL),
        _ => {
            kill(first.pid(), Signal::SIGKILL);
            guards.into_iter().for_each(|pid| kill(pid, Signal::SIGKILL));
        }
    }
    let second = scene.worker();
    let attempt = scene.ran_once(&id, &[&first, &second]).await;
    scene.place.queue_has("spark.jobs", 0).await;
    assert!(scene.kubernetes.drivers().len() <= 1);
    format!(
        "{phase}: {victim} killed: attempt {attempt}, {} launches, 1 run, failed as told",
        scene.count(&id, "launch")
    )
}

#[tokio::test]
async fn in_a_storm_of_kills_every_job_in_pods_comes_to_one_end_and_none_runs_twice() {
    const JOBS: usize = 12;
    const KILLS: usize = 6;
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let more = ["worker.max_running=2", "worker.max_submits=2", "retry.max_attempts=50"];
    let mut scene = Scene::on(cluster, &more).await;
    let ids: Vec<String> = (0..JOBS).map(|number| format!("storm-{number}")).collect();
    for (number, id) in ids.iter().enumerate() {
        let told =
            json!({"before": number % 2, "between": number % 3, "after": number % 2, "run": 1 + number % 4});
        scene.publish(id, told).await;
    }
    let mut workers: Vec<Worker> = (0..2).map(|_| scene.worker()).collect();
    let mut graveyard = Vec::new();
    for number in 0..KILLS {
        // The next blow falls when another part of the jobs has ended.
        let due = JOBS * number / KILLS;
        let ended = |scene: &Scene| ids.iter().filter(|id| scene.count(id, "end") > 0).count();
        until("more ends", async || (ended(&scene) >= due).then_some(())).await;
        let turn = number % workers.len();
        let victim = workers[turn].pid();
        let guards = children_of(victim);
        let launchers = || -> Vec<i32> {
            children_of(victim).into_iter().flat_map(children_of).flat_map(children_of).collect()
        };
        let dying: Vec<i32> = match number % 3 {
            // There are some at the first blow; later ones take what there is.
            0 if number == 0 => {
                until("a launcher", async || Some(launchers()).filter(|found| !found.is_empty())).await
            }
            0 => launchers(),
            1 => vec![victim],
            _ => [vec![victim], guards].concat(),
        };
        dying.into_iter().for_each(|pid| kill(pid, Signal::SIGKILL));
        if number % 3 > 0 {
            let next = scene.worker();
            graveyard.push(std::mem::replace(&mut workers[turn], next));
        }
    }
    let mut launches = 0;
    for id in &ids {
        let living: Vec<&Worker> = workers.iter().collect();
        scene.ran_once(id, &living).await;
        launches += scene.count(id, "launch");
    }
    scene.place.queue_has("spark.jobs", 0).await;
    println!("storm: {JOBS} jobs, {KILLS} kills: {launches} launches, {JOBS} runs, {JOBS} ends");
}

#[tokio::test]
async fn a_launcher_that_was_stopped_for_long_makes_no_second_pod_or_one_that_runs_nothing() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    // With the pod of the other attempt still there, and with none.
    for (keep, step) in [("always", None), ("never", Some("called-off"))] {
        let keep = format!("kubernetes.keep_pods={keep}");
        let mut scene = Scene::on(cluster, &["worker.max_running=1", &keep]).await;
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
        let all = |signal| tree.iter().for_each(|pid| kill(*pid, signal));
        all(Signal::SIGSTOP);
        let second = scene.worker();
        scene.ran_once("late", &[&second]).await;
        let kept = usize::from(step.is_none());
        until("what is kept", async || (scene.kubernetes.drivers().len() == kept).then_some(())).await;
        let launcher = *tree.last().unwrap();
        // Now the launcher goes on, before anybody there can hold it back.
        kill(launcher, Signal::SIGCONT);
        match step {
            Some(step) => scene.has_come_to("late", step).await,
            None => {
                until("the launcher's end", async || {
                    let state = std::fs::read_to_string(format!("/proc/{launcher}/stat")).unwrap_or_default();
                    (state.is_empty() || state.contains(") Z ")).then_some(())
                })
                .await;
                assert_eq!(scene.count("late", "submitted"), 1, "{:?}", scene.steps("late"));
            }
        }
        all(Signal::SIGCONT);
        assert_eq!(scene.count("late", "start"), 1, "{:?}", scene.steps("late"));
    }
}

#[tokio::test]
async fn a_pod_that_is_there_already_is_followed_whatever_its_launcher_says() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["worker.drain_grace=0s"]).await;
    let mut first = scene.worker();
    // Its launcher meets 409 and fails.
    scene.publish("conflict", json!({"twice": true, "run": 2})).await;
    assert_eq!(scene.ran_once("conflict", &[&first]).await, 1);
    assert_eq!(scene.count("conflict", "launch"), 1);
    // Its worker leaves.
    scene.publish("drained", json!({"run": 6})).await;
    scene.has_come_to("drained", "start").await;
    first.signal(Signal::SIGTERM);
    first.ended().await;
    assert_eq!(scene.count("drained", "end"), 0);
    let second = scene.worker();
    scene.ran_once("drained", &[&second]).await;
    assert_eq!(scene.count("drained", "launch"), 1);
    let messages = scene.place.end_of("drained").await.data.job_messages.unwrap().join("\n");
    assert!(messages.contains("was there already; it is followed"), "{messages}");
}

#[tokio::test]
async fn a_job_in_a_pod_is_cancelled_when_the_pod_is_gone_and_one_that_somebody_deleted_says_so() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["worker.max_running=6", "worker.max_submits=6"]).await;
    let worker = scene.worker();
    for id in ["running", "launching", "deleted", "orphan"] {
        let before = if id == "launching" { 60 } else { 0 };
        scene.publish(id, json!({"before": before, "run": 600})).await;
    }
    scene.publish_in("unschedulable", "waiting", json!({"run": 600})).await;
    for id in ["running", "deleted", "orphan"] {
        scene.has_come_to(id, "start").await;
    }
    scene.has_come_to("launching", "launch").await;
    scene.has_come_to("waiting", "configured").await;
    let pod_of = |scene: &Scene, id: &str| {
        let is_of = |pod: &Value| {
            let ticket = pod["metadata"]["labels"]["spark-runtime/ticket"].as_str().map(str::to_owned);
            scene.steps(id).iter().any(|(step, said)| step == "submitted" && Some(said) == ticket.as_ref())
        };
        scene.kubernetes.drivers().into_iter().find(is_of)
    };
    let client = scene.place.vhost.client().await;
    for id in ["launching", "waiting"] {
        client.cancel(&JobId::new(id).unwrap(), PATIENCE).await.unwrap();
        let end = scene.place.end_of(id).await;
        assert_eq!(end.kind(), Some(EventKind::Cancelled), "{end:#?}");
        assert!(pod_of(&scene, id).is_none());
    }
    assert_eq!(scene.count("launching", "submitted"), 0);
    // While its machine says nothing, the pod is not gone, and the job is not cancelled.
    scene.kubernetes.signal_machine(Signal::SIGSTOP);
    client.cancel(&JobId::new("running").unwrap(), PATIENCE).await.unwrap();
    until("the deletion of its pod", async || {
        pod_of(&scene, "running").filter(|pod| pod["metadata"]["deletionTimestamp"].is_string())
    })
    .await;
    let early = tokio::time::timeout(Duration::from_secs(5), scene.place.end_of("running")).await;
    assert!(early.is_err(), "cancelled before the pod was gone: {early:#?}");
    scene.kubernetes.signal_machine(Signal::SIGCONT);
    let end = scene.place.end_of("running").await;
    assert_eq!(end.kind(), Some(EventKind::Cancelled), "{end:#?}");
    assert!(pod_of(&scene, "running").is_none());
    // Somebody else deletes it.
    let pod = pod_of(&scene, "deleted").unwrap();
    scene.kubernetes.delete(&name_of(&pod));
    let end = scene.place.end_of("deleted").await;
    assert_eq!(end.kind(), Some(EventKind::Cancelled), "{end:#?}");
    let words = end.data.message.unwrap();
    assert!(words.contains("was ended in the cluster: somebody deleted its pod"), "{words}");
    // Cancelled while nobody follows it: the next worker ends it before it says so.
    worker.signal(Signal::SIGKILL);
    client.cancel(&JobId::new("orphan").unwrap(), Duration::from_millis(500)).await.unwrap();
    let _second = scene.worker();
    let end = scene.place.end_of("orphan").await;
    assert_eq!(end.kind(), Some(EventKind::Cancelled), "{end:#?}");
    assert!(pod_of(&scene, "orphan").is_none());
    assert_eq!(scene.count("orphan", "end"), 0);
}

#[tokio::test]
async fn why_a_driver_in_a_pod_has_no_place_or_came_to_its_end_is_told_with_what_to_do() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let more =
        ["worker.max_running=8", "worker.max_submits=8", "retry.max_attempts=1", "job.pending_timeout=15s"];
    let mut scene = Scene::on(cluster, &more).await;
    let worker = scene.worker();
    let cases = [
        (
            "unschedulable",
            "no-room",
            json!({}),
            FailureClass::Pending,
            "Unschedulable: 0/1 nodes are available: 1 Insufficient memory.",
        ),
        (
            "missing",
            "no-image",
            json!({}),
            FailureClass::Pending,
            "the machine cannot get the image here/missing; see",
        ),
        (
            "oom",
            "memory",
            json!({"run": 600}),
            FailureClass::Killed,
            "raise spark.driver.memory or spark.driver.memoryOverhead",
        ),
        (
            "evicted",
            "put-out",
            json!({"run": 600}),
            FailureClass::Killed,
            "The node was low on resource: memory.",
        ),
        (
            "preempted",
            "moved",
            json!({"run": 600, "lingers": 5}),
            FailureClass::Killed,
            "(preemption): PreemptionByScheduler: ",
        ),
        ("process", "silent", json!({"silent": 9}), FailureClass::Model, "left no report"),
        (
            "process",
            "refused",
            json!({"launch": 3}),
            FailureClass::Submit,
            "spark-submit ended with exit code 3, and the cluster has no application of the job",
        ),
        // The driver is over, and what runs beside it goes on.
        (
            "process",
            "beside",
            json!({"run": 1, "sidecar": 600}),
            FailureClass::Model,
            "the model raised Fake",
        ),
    ];
    for (image, id, told, ..) in &cases {
        scene.publish_in(image, id, told.clone()).await;
    }
    for (_, id, _, class, words) in cases {
        let failure = scene.place.end_of(id).await.data.failure.unwrap();
        assert_eq!(failure.class, class, "{id}: {failure:#?}\n{}", worker.log());
        assert!(failure.message.contains(words), "{id}: {}", failure.message);
        match id {
            "no-room" => assert!(failure.message.contains("whose driver asks for 512m of memory and 1 core")),
            "moved" => {
                // Its log was fetched before it went with the pod.
                let tail = failure.log_tail.unwrap();
                assert!(tail.contains("the fake driver begins"), "{tail}");
            }
            "silent" => {
                assert_eq!(failure.exit_code, Some(9));
                let tail = failure.log_tail.unwrap();
                assert!(tail.contains("the fake driver of"), "{tail}");
            }
            "refused" => {
                assert_eq!(failure.exit_code, Some(3));
                assert!(failure.log_tail.unwrap().contains("the fake launcher was told to fail"));
            }
            _ => {}
        }
        println!("{id}: {}", failure.message);
    }
}

#[tokio::test]
async fn an_api_server_that_is_away_changes_nobodys_outcome() {
    let (cluster, _alone) = Cluster::alone(&PARTS).await;
    let mut scene = Scene::on(cluster, &[]).await;
    let worker = scene.worker();
    scene.publish("patient", json!({"run": 8})).await;
    scene.has_come_to("patient", "start").await;
    // Gone, and back with what it knew.
    cluster.signal(Daemon::ApiServer, Signal::SIGKILL);
    worker.logged("the pods of drivers cannot be watched").await;
    scene.has_come_to("patient", "end").await;
    cluster.up(&PARTS);
    assert_eq!(scene.ran_once("patient", &[&worker]).await, 1);
    assert_eq!(scene.count("patient", "launch"), 1);
}

#[tokio::test]
async fn what_stands_in_the_way_of_kubernetes_is_told_with_what_to_do() {
    let (cluster, _calm) = Cluster::shared(&PARTS).await;
    let mut scene = Scene::on(cluster, &["retry.max_attempts=1"]).await;
    let source = "def score(a, b, c): pass";
    let nowhere = scene.folder.path().join("none").display().to_string();
    for (number, (setting, expected)) in [
        (format!("spark.environment.KUBECONFIG={nowhere}"), "cannot be read"),
        ("kubernetes.context=other".to_owned(), "other"),
        ("kubernetes.image=".to_owned(), "set kubernetes.image, or spark.kubernetes.container.image"),
        ("kubernetes.folder=file:/tmp".to_owned(), "is on no HDFS"),
        ("kubernetes.namespace=No Name".to_owned(), "is no name of a namespace"),
        ("kubernetes.namespace=default".to_owned(), "forbidden"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut place = Vhost::ready(&DELAYS).await;
        let mut settings = scene.settings.clone();
        settings.push(setting);
        let _worker = Worker::start(&place.vhost.uri(), &borrowed(&settings));
        let id = format!("lost-{number}");
        place.publish(&id, in_pods(&scene.kubernetes, &id, source).to_string()).await;
        let failure = place.end_of(&id).await.data.failure.unwrap();
        assert_eq!(failure.class, FailureClass::Infrastructure);
        assert!(failure.message.contains(expected), "{}", failure.message);
    }
    let _worker = scene.worker();
    let mut elsewhere = in_pods(&scene.kubernetes, "elsewhere", source);
    elsewhere["targetEngine"]["sparkConf"]["--master"] = json!("k8s://https://127.0.0.1:1");
    scene.place.publish("elsewhere", elsewhere.to_string()).await;
    let failure = scene.place.end_of("elsewhere").await.data.failure.unwrap();
    assert!(failure.message.contains("lets nobody into another"), "{}", failure.message);
    for (conf, expected) in [
        (json!({"--deploy-mode": "client"}), "give --deploy-mode cluster"),
        (
            json!({"--deploy-mode": "cluster", "spark.kubernetes.driver.pod.name": "x"}),
            "would break the following",
        ),
        (json!({"--deploy-mode": "cluster", "spark.kubernetes.context": "x"}), "kubernetes.context"),
    ] {
        let mut job = spark_job("mode", source);
        job["targetEngine"]["sparkConf"] = conf;
        job["targetEngine"]["sparkConf"]["--master"] = json!(scene.kubernetes.master());
        let id = expected.replace([' ', '.'], "-");
        job["id"] = json!(id);
        scene.place.publish(&id, job.to_string()).await;
        let faults = scene.place.end_of(&id).await.data.faults.unwrap();
        assert!(faults[0].message.contains(expected), "{faults:?}");
    }
}

#[test]
fn the_rights_that_the_tests_have_are_those_that_the_readme_asks_for() {
    let readme = std::fs::read_to_string(project().join("README.md")).unwrap();
    for (resource, verbs) in spark_runtime_tests::kubernetes::RIGHTS {
        let line = format!("`{resource}` ({})", verbs.join(", "));
        assert!(readme.contains(&line), "{line}");
    }
}
