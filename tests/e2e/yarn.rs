//! A real YARN: jobs whose executors run there, and what its ResourceManager knows of applications.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use spark_runtime_protocol::event::EventKind;
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::cluster::{Cluster, Daemon, Part};
use spark_runtime_tests::jobs::assets;
use spark_runtime_worker::spark::yarn::configuration::addresses;
use spark_runtime_worker::spark::yarn::end::{Ended, Patience, end};
use spark_runtime_worker::spark::yarn::find::{Found, look_twice};
use spark_runtime_worker::spark::yarn::follow::{Following, Pace, Sight, Watch};
use spark_runtime_worker::spark::yarn::resource_manager::{Report, ResourceManager, Standing};

use crate::spark::{DELAYS, Parts, spark_job};

const SOURCE: &str = "\
import pkg.deep
from pyspark.sql import SparkSession
def twice(n):
    return pkg.deep.double(n)
def score(inputs, outputs, attachments):
    spark = SparkSession.builder.getOrCreate()
    numbers = spark.read.csv(inputs[0]['fileUrl']).rdd.map(lambda row: int(row[0]))
    total = numbers.map(twice).sum()
    spark.createDataFrame([(total,)], ['total']).coalesce(1).write.mode('overwrite').csv(outputs[0]['fileUrl'])
    open('total.txt', 'w').write('%d %s' % (total, spark.sparkContext.applicationId))
";

#[tokio::test]
async fn a_job_runs_on_yarn_with_its_helpers_on_the_executors_and_its_data_in_hdfs() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs, Part::Yarn]).await;
    let folder = format!("/yarn-{}", uuid::Uuid::new_v4().simple());
    cluster.hdfs_write(&format!("{folder}/numbers.csv"), b"1\n2\n39\n");
    let mut place = Vhost::ready(&DELAYS).await;
    let configuration = format!("spark.environment.HADOOP_CONF_DIR={}", cluster.setting("HADOOP_CONF_DIR"));
    let _worker =
        parts.worker(&place.vhost.uri(), &[&configuration, "spark.environment.SPARK_LOCAL_IP=127.0.0.1"]);
    let mut job = spark_job("yarn", SOURCE);
    assets(&mut job).extend([
        json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/deep.py", "sourceCode": "def double(n):\n    return 2 * n\n"}),
        json!({"name": "i", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/__init__.py", "sourceCode": ""}),
    ]);
    job["targetEngine"]["sparkConf"]["--master"] = json!("yarn");
    job["targetEngine"]["sparkConf"]["spark.yarn.jars"] = json!(cluster.setting("SPARK_YARN_JARS"));
    job["jobParameters"] = json!({"--executor-memory": "512MB", "--num-executors": "1", "--name": "on yarn"});
    job["inputData"] =
        json!([{"name": "n", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{folder}/numbers.csv")}]);
    job["outputData"] = json!([
        {"name": "o", "assetType": "EXTERNAL_FILE", "fileUrl": format!("hdfs://{folder}/out")},
        {"name": "t", "assetType": "FILE", "filename": "total.txt"},
    ]);
    place.publish("yarn", job.to_string()).await;
    let end = place.end_of("yarn").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}", end.data.failure);
    let content = end.data.output_data.unwrap()[1]["fileContent"].as_str().unwrap().to_owned();
    let mut decoded = Vec::new();
    spark_runtime_protocol::asset::decode_base64(&content, &mut decoded).unwrap();
    let told = String::from_utf8(decoded).unwrap();
    let (total, id) = told.split_once(' ').unwrap();
    assert_eq!(total, "84");
    let written = cluster.hdfs_list(&format!("{folder}/out"));
    let part = written.iter().find(|name| name.starts_with("part-")).unwrap_or_else(|| panic!("{written:?}"));
    assert_eq!(cluster.hdfs_read(&format!("{folder}/out/{part}")).unwrap(), b"84\n");
    // YARN itself knows of it, and that it is over.
    let application = spark_runtime_tests::until("the application's end", async || {
        let answer = cluster.yarn(&format!("/ws/v1/cluster/apps/{id}"));
        (answer["app"]["state"] == "FINISHED").then(|| answer["app"].clone())
    })
    .await;
    assert_eq!((&application["name"], &application["finalStatus"]), (&json!("on yarn"), &json!("SUCCEEDED")));
}

/// A job in cluster mode on `cluster`, with small demands.
fn in_cluster(cluster: &Cluster, id: &str, source: &str) -> serde_json::Value {
    let mut job = spark_job(id, source);
    job["targetEngine"]["sparkConf"]["--master"] = json!("yarn");
    job["targetEngine"]["sparkConf"]["--deploy-mode"] = json!("cluster");
    job["targetEngine"]["sparkConf"]["spark.yarn.jars"] = json!(cluster.setting("SPARK_YARN_JARS"));
    job["jobParameters"] =
        json!({"--executor-memory": "512MB", "--driver-memory": "512MB", "--num-executors": "1"});
    job
}

/// The settings of a worker on `cluster`.
fn settings(cluster: &Cluster) -> Vec<String> {
    vec![
        format!("spark.environment.HADOOP_CONF_DIR={}", cluster.setting("HADOOP_CONF_DIR")),
        "spark.environment.SPARK_LOCAL_IP=127.0.0.1".to_owned(),
        "yarn.grace=2s".to_owned(),
    ]
}

fn borrowed(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

fn decoded(asset: &serde_json::Value) -> String {
    let mut bytes = Vec::new();
    let content = asset["fileContent"].as_str().unwrap_or_else(|| panic!("{asset}"));
    spark_runtime_protocol::asset::decode_base64(content, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

const IN_CLUSTER: &str = "\
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
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs, Part::Yarn]).await;
    let folder = format!("/yarn-{}", uuid::Uuid::new_v4().simple());
    cluster.hdfs_write(&format!("{folder}/numbers.csv"), b"1\n2\n39\n");
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = parts.worker(&place.vhost.uri(), &borrowed(&settings(&cluster)));
    let mut job = in_cluster(&cluster, "cluster", IN_CLUSTER);
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
    let submitted = place.heard("cluster", &[EventKind::Submitted, EventKind::Failed]).await;
    let id = submitted
        .data
        .application_id
        .clone()
        .unwrap_or_else(|| panic!("{:#?} {}", submitted.data, worker.log()));
    assert!(submitted.data.tracking_url.is_some());
    let tags = cluster.yarn(&format!("/ws/v1/cluster/apps/{id}"))["app"]["applicationTags"].clone();
    assert!(tags.as_str().unwrap().split(',').any(|tag| tag == "of-the-user"), "{tags}");
    let end = place.end_of("cluster").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:#?}\n{}", end.data.failure, worker.log());
    assert_eq!(decoded(&end.data.output_data.unwrap()[1]), format!("87 odd {id}"));
    assert_eq!(place.story("cluster"), ["accepted", "staged", "submitted", "running", "completed"]);
    let written = cluster.hdfs_list(&format!("{folder}/out"));
    let part = written.iter().find(|name| name.starts_with("part-")).unwrap_or_else(|| panic!("{written:?}"));
    assert_eq!(cluster.hdfs_read(&format!("{folder}/out/{part}")).unwrap(), b"87\n");
    // Nothing is left of it in the folder that workers and drivers share.
    let jobs = format!("/user/{}/.spark-runtime/jobs", Cluster::superuser());
    spark_runtime_tests::until("an empty folder", async || cluster.hdfs_list(&jobs).is_empty().then_some(()))
        .await;
}

/// Waits until what is known of an application is as wanted.
async fn until_seen(following: &mut Following, wanted: impl Fn(&Sight) -> bool) -> Sight {
    let seen = async {
        let mut sight = following.sight();
        while !wanted(&sight) {
            sight = following.changed().await;
        }
        sight
    };
    tokio::time::timeout(spark_runtime_tests::PATIENCE, seen)
        .await
        .unwrap_or_else(|_| panic!("{following:?}"))
}

fn first(sight: &Sight) -> Option<&Report> {
    if let Sight::Seen(reports) = sight { reports.first() } else { None }
}

#[tokio::test]
async fn applications_of_a_real_yarn_are_found_by_their_tags_followed_and_ended() {
    let (cluster, _alone) = Cluster::alone(&[Part::Yarn]).await;
    let addresses = addresses(Path::new(&cluster.setting("HADOOP_CONF_DIR"))).unwrap();
    assert_eq!(addresses, [cluster.setting("YARN_URI")]);
    let pace = Pace {
        quick: Duration::from_millis(100),
        slow: Duration::from_millis(500),
        away: Duration::from_millis(500),
    };
    let client = ResourceManager::new(&addresses, Some(&Cluster::superuser())).unwrap();
    let watch = Watch::start(client, pace);
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let (lives, fails) = (format!("{unique}-1"), format!("{unique}-2"));
    let (mut living, mut failing) = (watch.follow(&lives).unwrap(), watch.follow(&fails).unwrap());
    until_seen(&mut living, |sight| matches!(sight, Sight::Missing { .. })).await;

    let alive = cluster.yarn_submit(&[&lives, "of-the-user"], "sleep 600");
    let failed = cluster.yarn_submit(&[&fails], "echo no such thing >&2; exit 7");
    let sight = until_seen(&mut living, |sight| first(sight).is_some()).await;
    let report = first(&sight).unwrap();
    assert_eq!((&report.id, report.standing()), (&alive, Standing::Waiting));
    assert!(report.has_tag("of-the-user") && report.started_time > 1_700_000_000_000);
    let sight =
        until_seen(&mut failing, |sight| first(sight).is_some_and(|report| report.state.is_over())).await;
    let report = first(&sight).unwrap();
    assert_eq!((&report.id, report.standing()), (&failed, Standing::Failed));
    assert!(report.reason().contains("exitCode: 7"), "{report:?}");

    // A ResourceManager that stands still is no answer, and none of what is followed is over by it.
    cluster.signal(Daemon::ResourceManager, Signal::SIGSTOP);
    let sight = until_seen(&mut living, |sight| matches!(sight, Sight::Unknown { .. })).await;
    cluster.signal(Daemon::ResourceManager, Signal::SIGCONT);
    let Sight::Unknown { error, .. } = sight else { unreachable!() };
    assert!(error.to_string().contains("does not answer within 20 s"), "{error}");
    until_seen(&mut living, |sight| first(sight).is_some()).await;

    // Who gets the job now finds the live one, and submits nothing.
    let found = look_twice(watch.cluster(), &lives, Duration::from_millis(100)).await.unwrap();
    let Found::Alive { first: live, others } = found else { panic!("{found:?}") };
    assert_eq!((&live.id, others.len()), (&alive, 0));
    let patience = Patience { look: Duration::from_millis(100), ..Patience::default() };
    let ended = end(watch.cluster(), &alive, patience).await.unwrap();
    let Ended::Over(report) = ended else { panic!("{ended:?}") };
    assert_eq!(report.standing(), Standing::Killed);
    assert!(report.reason().contains("was killed by user"), "{report:?}");
    until_seen(&mut living, |sight| first(sight).is_some_and(|report| report.state.is_over())).await;
    let found = look_twice(watch.cluster(), &lives, Duration::from_millis(100)).await.unwrap();
    assert!(matches!(found, Found::Over(_)), "{found:?}");
    // Once more changes nothing, and what is not there cannot be ended.
    assert_eq!(watch.cluster().kill(&alive).await, Ok(true));
    let never = format!("{}9999", &alive[..alive.len() - 4]);
    assert_eq!(watch.cluster().kill(&never).await, Ok(false));
    assert_eq!(end(watch.cluster(), &never, patience).await, Ok(Ended::Unknown));
    assert_eq!(watch.cluster().application(&never).await, Ok(None));
    assert_eq!(watch.cluster().application("nonsense").await, Ok(None));
}
