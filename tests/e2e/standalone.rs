//! Jobs on a real standalone cluster that has no room, no worker or no master for a while.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spark_runtime_protocol::event::{EventKind, FailureClass};
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::cluster::{Cluster, Daemon, Part};
use spark_runtime_tests::until;

use crate::spark::{DELAYS, Parts, spark_job};

const PARTS: [Part; 1] = [Part::Spark];

const COUNTING: &str = "\
from pyspark.sql import SparkSession
def score(inputs, outputs, attachments):
    SparkSession.builder.getOrCreate().range(10).count()
";

/// A model that makes a session and asks nothing of executors, for longer than the deadline of its test.
const IDLE: &str = "\
import time
from pyspark.sql import SparkSession
def score(inputs, outputs, attachments):
    SparkSession.builder.getOrCreate()
    time.sleep(12)
";

/// A model that counts, waits for somebody to let it go on, and counts again.
fn in_two_steps(folder: &Path) -> String {
    format!(
        "import os, time\nfrom pyspark.sql import SparkSession\ndef score(inputs, outputs, attachments):\n    \
         spark = SparkSession.builder.getOrCreate()\n    spark.range(10).count()\n    \
         open({0:?} + '/counted', 'a').write(spark.sparkContext.applicationId + '\\n')\n    \
         while not os.path.exists({0:?} + '/go-on'):\n        time.sleep(0.1)\n    spark.range(10).count()\n",
        folder.display().to_string()
    )
}

fn on(cluster: &Cluster, id: &str, source: &str, executor_memory: &str) -> Value {
    let mut job = spark_job(id, source);
    job["targetEngine"]["sparkConf"]["--master"] = json!(cluster.setting("SPARK_MASTER"));
    job["jobParameters"] = json!({"--driver-memory": "512MB", "--executor-memory": executor_memory});
    job
}

fn settings(cluster: &Cluster) -> Vec<String> {
    let page = cluster.setting("SPARK_MASTER_URI");
    vec![
        "spark.environment.SPARK_LOCAL_IP=127.0.0.1".to_owned(),
        format!("spark.master_page_port={}", page.rsplit(':').next().unwrap()),
        "retry.max_attempts=1".to_owned(),
        "worker.max_running=3".to_owned(),
        "worker.max_submits=3".to_owned(),
        "job.kill_grace=2s".to_owned(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_is_never_scheduled_ends_by_the_pending_deadline_and_one_that_wants_no_executor_does_not()
 {
    let parts = Parts::take().await;
    let (cluster, _alone) = Cluster::alone(&PARTS).await;
    let mut place = Vhost::ready(&DELAYS).await;
    let mut settings = settings(cluster);
    settings.push("job.pending_timeout=7s".to_owned());
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let worker = parts.worker(&place.vhost.uri(), &settings);
    // Beside them one whose master is not there at all, for which Spark looks for a minute.
    let mut astray = on(cluster, "astray", COUNTING, "512m");
    astray["targetEngine"]["sparkConf"]["--master"] = json!("spark://127.0.0.1:1");
    place.publish("astray", astray.to_string()).await;
    place.publish("hungry", on(cluster, "hungry", COUNTING, "8g").to_string()).await;
    place.publish("idle", on(cluster, "idle", IDLE, "8g").to_string()).await;
    let failure = place.end_of("hungry").await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Pending, "{failure:#?}\n{}", worker.log());
    println!("{}", failure.message);
    let master = cluster.setting("SPARK_MASTER");
    for words in [
        "the job got no executor within 7 s (job.pending_timeout): app-",
        &format!(" on {master} has no executor, of which each is to have 8g of memory and at least 1 core; "),
        "of the workers that the master has alive (1) none has more than 2048 MiB of memory and 2 cores in all",
    ] {
        assert!(failure.message.contains(words), "{words}: {}", failure.message);
    }
    let end = place.end_of("idle").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}", end.data.failure);

    cluster.signal(Daemon::Worker, Signal::SIGKILL);
    place.publish("nobody", on(cluster, "nobody", COUNTING, "512m").to_string()).await;
    let failure = place.end_of("nobody").await.data.failure.unwrap();
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Pending, "{failure:#?}");
    assert!(failure.message.contains("; the master has no worker that is alive"), "{}", failure.message);
    let failure = place.end_of("astray").await.data.failure.unwrap();
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Infrastructure, "{failure:#?}");
    assert!(failure.message.starts_with("the cluster ended the job's application: "), "{}", failure.message);
    worker.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_comes_back_with_its_memory_costs_a_running_job_nothing() {
    let parts = Parts::take().await;
    let (cluster, _alone) = Cluster::alone(&PARTS).await;
    let folder = tempfile::tempdir().unwrap();
    let mut place = Vhost::ready(&DELAYS).await;
    let settings = settings(cluster);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let worker = parts.worker(&place.vhost.uri(), &settings);
    place.publish("patient", on(cluster, "patient", &in_two_steps(folder.path()), "512m").to_string()).await;
    let counted = folder.path().join("counted");
    until("the first step", async || counted.exists().then_some(())).await;
    cluster.signal(Daemon::Master, Signal::SIGKILL);
    tokio::task::block_in_place(|| cluster.up(&PARTS));
    std::fs::write(folder.path().join("go-on"), "").unwrap();
    let end = place.end_of("patient").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}\n{}", end.data.failure, worker.log());
    assert_eq!(end.data.attempt, 1);
}

/// A cluster of one test, gone with it.
struct Own(Cluster);

impl Drop for Own {
    fn drop(&mut self) {
        self.0.remove();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_master_comes_back_without_its_memory_is_lost_and_the_event_says_so() {
    let parts = Parts::take().await;
    let folder = tempfile::tempdir().unwrap();
    let own = Own(Cluster::at(folder.path().canonicalize().unwrap().join("cluster")));
    let cluster = &own.0;
    tokio::task::block_in_place(|| cluster.up(&PARTS));
    let mut place = Vhost::ready(&DELAYS).await;
    let mut settings = settings(cluster);
    settings[2] = "retry.max_attempts=2".to_owned();
    settings.push("retry.delays=200ms".to_owned());
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let worker = parts.worker(&place.vhost.uri(), &settings);
    place
        .publish("forgotten", on(cluster, "forgotten", &in_two_steps(folder.path()), "512m").to_string())
        .await;
    let counted = folder.path().join("counted");
    until("the first step", async || counted.exists().then_some(())).await;
    cluster.signal(Daemon::Master, Signal::SIGKILL);
    tokio::task::block_in_place(|| cluster.up(&PARTS));
    // The worker registers anew and ends the executors of which its new master knows nothing.
    let forgotten = folder.path().join("cluster/log/worker.log");
    until("the end of the executor", async || {
        std::fs::read_to_string(&forgotten).unwrap().contains("Asked to kill executor").then_some(())
    })
    .await;
    std::fs::write(folder.path().join("go-on"), "").unwrap();
    let retrying =
        place.heard("forgotten", &[EventKind::Retrying, EventKind::Failed, EventKind::Completed]).await;
    let failure = retrying.data.failure.clone().unwrap_or_else(|| panic!("{retrying:#?}\n{}", worker.log()));
    println!("{}", failure.message);
    assert_eq!(failure.class, FailureClass::Lost, "{failure:#?}");
    assert!(failure.message.contains("has no executor any more"), "{}", failure.message);
    assert!(failure.message.contains("the master does not know this application"), "{}", failure.message);
    // The next attempt is an application of its own, which the new master knows.
    let end = place.end_of("forgotten").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2), "{:#?}", end.data.failure);
    let counted = std::fs::read_to_string(counted).unwrap();
    assert_eq!(counted.lines().count(), 2, "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_somebody_kills_at_the_master_is_cancelled_and_not_tried_again() {
    let parts = Parts::take().await;
    let (cluster, _alone) = Cluster::alone(&PARTS).await;
    let folder = tempfile::tempdir().unwrap();
    let mut place = Vhost::ready(&DELAYS).await;
    let mut settings = settings(cluster);
    settings[2] = "retry.max_attempts=2".to_owned();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let worker = parts.worker(&place.vhost.uri(), &settings);
    // One whose work is under way, or waits for its turn, and one that asks nothing when it happens and goes on later.
    for (id, rest) in [
        ("busy", "    spark.sparkContext.parallelize([0], 1).foreach(lambda _: time.sleep(600))\n"),
        (
            "idle",
            "    while not spark.sparkContext._jsc.sc().isStopped():\n        time.sleep(0.1)\n    spark.range(10).count()\n",
        ),
    ] {
        let named = folder.path().join(id).display().to_string();
        let source = format!(
            "import os, time\nfrom pyspark.sql import SparkSession\ndef score(inputs, outputs, attachments):\n    \
             spark = SparkSession.builder.getOrCreate()\n    \
             open({named:?}, 'a').write(spark.sparkContext.applicationId + '\\n')\n{rest}"
        );
        place.publish(id, on(cluster, id, &source, "512m").to_string()).await;
    }
    for id in ["idle", "busy"] {
        let named = folder.path().join(id);
        let application = until("the application", async || {
            std::fs::read_to_string(&named).ok().filter(|text| text.ends_with('\n'))
        })
        .await;
        cluster.spark_kill(application.trim());
        let end = place.end_of(id).await;
        assert_eq!(end.kind(), Some(EventKind::Cancelled), "{id}: {:#?}\n{}", end.data.failure, worker.log());
        println!("{id}: {}", end.data.message.as_deref().unwrap());
        assert_eq!(
            end.data.message.as_deref(),
            Some(
                "the job's application was ended in the cluster: somebody killed it at the master of the standalone cluster"
            )
        );
        assert_eq!(std::fs::read_to_string(&named).unwrap().lines().count(), 1);
    }
}
