//! Jobs that run as somebody else than the worker, on a real YARN and HDFS.

use serde_json::json;
use spark_runtime_protocol::event::EventKind;
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::cluster::{Cluster, Part};
use spark_runtime_tests::jobs::assets;

use crate::spark::{DELAYS, Parts, spark_job};

/// Writes as whoever Hadoop takes the driver for.
const WRITING: &str = "\
from pyspark.sql import SparkSession
def score(inputs, outputs, attachments):
    spark = SparkSession.builder.getOrCreate()
    spark.range(3).coalesce(1).write.csv(outputs[0]['fileUrl'])
    open('id.txt', 'w').write(spark.sparkContext.applicationId)
";

#[tokio::test]
async fn a_job_runs_as_whom_the_operator_lets_it_and_all_that_is_done_for_it_is_done_as_that_user() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs, Part::Yarn]).await;
    let folder = format!("/identity-{}", uuid::Uuid::new_v4().simple());
    for home in ["/user/ann", &format!("{folder}/ann"), &format!("{folder}/bob")] {
        cluster.hdfs("PUT", home, "MKDIRS&permission=755");
        let owner = if home.ends_with("bob") { "bob" } else { "ann" };
        cluster.hdfs("PUT", home, &format!("SETOWNER&owner={owner}"));
        if home.starts_with(&folder) {
            cluster.hdfs("PUT", home, "SETPERMISSION&permission=700");
        }
    }
    let rules = tempfile::tempdir().unwrap();
    let policy = rules.path().join("policy.toml");
    std::fs::write(&policy, "[identity]\nproxy_users = [\"ann\"]\n").unwrap();
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = parts.worker(
        &place.vhost.uri(),
        &[
            &format!("spark.environment.HADOOP_CONF_DIR={}", cluster.setting("HADOOP_CONF_DIR")),
            "spark.environment.SPARK_LOCAL_IP=127.0.0.1",
            &format!("spark.policy={}", policy.display()),
            &format!("yarn.folder={folder}/shared"),
            "retry.max_attempts=1",
        ],
    );
    let job = |id: &str, source: &str, mode: &str, user: &str| {
        let mut job = spark_job(id, source);
        job["targetEngine"]["sparkConf"] = json!({
            "--master": "yarn", "--deploy-mode": mode, "spark.ui.enabled": "false",
            "spark.yarn.jars": cluster.setting("SPARK_YARN_JARS"),
        });
        job["jobParameters"] = json!({
            "--proxy-user": user, "--driver-memory": "512m", "--executor-memory": "512m", "--num-executors": "1",
        });
        job
    };
    let owner_of = |path: &str| cluster.hdfs("GET", path, "GETFILESTATUS")["FileStatus"]["owner"].clone();

    let mut here = job("here", WRITING, "client", "ann");
    here["outputData"] = json!([
        {"name": "o", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{folder}/ann/here")},
        {"name": "i", "assetType": "FILE", "filename": "id.txt"},
    ]);
    place.publish("here", here.to_string()).await;
    let training =
        "def train(inputs, outputs, attachments):\n    open('outputDir/model.bin', 'w').write('weights')\n";
    let mut there = job("there", training, "cluster", "ann");
    there["jobType"] = json!("MODEL_BATCH_TRAINING_JOB");
    assets(&mut there)[0]["trainingFunction"] = json!("train");
    there["trainingOutput"] = json!({"fileUrl": format!("{folder}/ann/trained")});
    place.publish("there", there.to_string()).await;
    let mut stolen = there.clone();
    stolen["id"] = json!("stolen");
    stolen["trainingOutput"] = json!({"fileUrl": format!("{folder}/bob/trained")});
    place.publish("stolen", stolen.to_string()).await;
    place.publish("other", job("other", WRITING, "client", "bob").to_string()).await;

    let end = place.end_of("here").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}\n{}", end.data.failure, worker.log());
    assert_eq!(owner_of(&format!("{folder}/ann/here")), "ann");

    let submitted = place.heard("there", &[EventKind::Submitted, EventKind::Failed]).await;
    let end = place.end_of("there").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}\n{}", end.data.failure, worker.log());
    let id = submitted.data.application_id.unwrap();
    assert_eq!(cluster.yarn(&format!("/ws/v1/cluster/apps/{id}"))["app"]["user"], "ann");
    // What the worker writes for the job, it writes as the job's user.
    let url = end.data.additional_assets.unwrap()[0]["fileUrl"].as_str().unwrap().to_owned();
    assert_eq!(cluster.hdfs_read(&url).unwrap(), b"weights");
    assert_eq!(owner_of(&url), "ann");

    // The worker's user, whom this HDFS lets do anything, does nothing there for a job of ann's.
    let failure = place.end_of("stolen").await.data.failure.unwrap();
    assert!(
        failure.message.contains("HDFS denies it") && failure.message.contains("user=ann"),
        "{failure:#?}"
    );
    let faults = place.end_of("other").await.data.faults.unwrap();
    assert_eq!(faults[0].pointer, "/jobParameters/--proxy-user");
    assert!(faults[0].message.contains("\"bob\", whom the operator's policy does not name"), "{faults:?}");
}
