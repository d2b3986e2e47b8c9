//! A real YARN: jobs whose executors run there, and what its ResourceManager knows of applications.

use std::fs;
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
use spark_runtime_worker::spark::yarn::find::{Found, look};
use spark_runtime_worker::spark::yarn::follow::{Following, Pace, Sight, Watch};
use spark_runtime_worker::spark::yarn::logs::{Bounds, DriverLog, Kept, Outcome, Source, fetch};
use spark_runtime_worker::spark::yarn::resource_manager::{Report, ResourceManager, Standing};
use spark_runtime_worker::storage::Actor;

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
    let found = look(watch.cluster(), &lives).await.unwrap();
    let Found::Alive { first: live, others } = found else { panic!("{found:?}") };
    assert_eq!((&live.id, others.len()), (&alive, 0));
    let patience = Patience { look: Duration::from_millis(100), ..Patience::default() };
    let ended = end(watch.cluster(), &alive, patience).await.unwrap();
    let Ended::Over(report) = ended else { panic!("{ended:?}") };
    assert_eq!(report.standing(), Standing::Killed);
    assert!(report.reason().contains("was killed by user"), "{report:?}");
    until_seen(&mut living, |sight| first(sight).is_some_and(|report| report.state.is_over())).await;
    let found = look(watch.cluster(), &lives).await.unwrap();
    assert!(matches!(found, Found::Over(_)), "{found:?}");
    // Once more changes nothing, and what is not there cannot be ended.
    assert_eq!(watch.cluster().kill(&alive).await, Ok(true));
    let never = format!("{}9999", &alive[..alive.len() - 4]);
    assert_eq!(watch.cluster().kill(&never).await, Ok(false));
    assert_eq!(end(watch.cluster(), &never, patience).await, Ok(Ended::Unknown));
    assert_eq!(watch.cluster().application(&never).await, Ok(None));
    assert_eq!(watch.cluster().application("nonsense").await, Ok(None));
}

/// Fetches the logs of an application's driver; gives what was told, standard output and standard error.
async fn logs(cluster: &Cluster, id: &str, bounds: Bounds) -> (DriverLog, Vec<u8>, Vec<u8>) {
    logs_as(&Actor::Worker, cluster, id, bounds).await
}

async fn logs_as(
    actor: &Actor,
    cluster: &Cluster,
    id: &str,
    bounds: Bounds,
) -> (DriverLog, Vec<u8>, Vec<u8>) {
    let configuration = cluster.setting("HADOOP_CONF_DIR");
    let configuration = Path::new(&configuration);
    let client =
        ResourceManager::new(&addresses(configuration).unwrap(), Some(&Cluster::superuser())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let told = fetch(&client, configuration, actor, id, folder.path(), bounds).await;
    let read = |name| fs::read(folder.path().join(name)).unwrap_or_default();
    let (output, error) = (read("stdout.log"), read("stderr.log"));
    let names = ["stderr.log", "stdout.log"];
    for entry in fs::read_dir(folder.path()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(names.iter().any(|known| name == *known), "nothing else is left: {name:?}");
    }
    (told, output, error)
}

fn kept(outcome: &Outcome) -> &Kept {
    if let Outcome::Kept(kept) = outcome { kept } else { panic!("{outcome:?}") }
}

/// A command whose output goes where a driver's goes.
fn logged(command: &str) -> String {
    format!("({command}) 1><LOG_DIR>/stdout 2><LOG_DIR>/stderr")
}

async fn until_over(cluster: &Cluster, id: &str) {
    spark_runtime_tests::until("the application's end", async || {
        let answer = cluster.yarn(&format!("/ws/v1/cluster/apps/{id}"));
        ["FINISHED", "FAILED", "KILLED"].contains(&answer["app"]["state"].as_str().unwrap()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_driver_writes_on_a_real_yarn_is_fetched_from_its_node_while_it_runs_and_after() {
    let (cluster, _calm) = Cluster::shared(&[Part::Yarn]).await;
    let place = tempfile::tempdir().unwrap();
    let go_on = place.path().join("go-on");
    let command = format!(
        "echo out; printf 'err\\377' >&2; until [ -e {} ]; do sleep 0.1; done; seq 1 10000; exit 3",
        go_on.display()
    );
    let id = cluster.yarn_submit(&[], &logged(&command));
    let (told, output, error) = spark_runtime_tests::until("the first lines", async || {
        let fetched = logs(cluster, &id, Bounds::default()).await;
        // One is fetched after the other, and the driver may write both between.
        (!fetched.1.is_empty() && !fetched.2.is_empty()).then_some(fetched)
    })
    .await;
    assert_eq!((output.as_slice(), error.as_slice()), (b"out\n".as_slice(), b"err\xff".as_slice()));
    let Kept { from: Source::NodeManager(address), name, size, broken_off: None } = kept(&told.error) else {
        panic!("{told:?}")
    };
    assert!(address.starts_with("http://") && name == "stderr", "{told:?}");
    assert_eq!((size.produced, size.left_out), (4, 0));

    fs::write(&go_on, "").unwrap();
    until_over(cluster, &id).await;
    let whole = format!("out\n{}", (1..=10_000).map(|line| format!("{line}\n")).collect::<String>());
    let (told, output, error) = logs(cluster, &id, Bounds::default()).await;
    assert_eq!(String::from_utf8(output).unwrap(), whole);
    assert_eq!(error, b"err\xff");
    assert_eq!(kept(&told.output).size.produced, whole.len() as u64);
    // Of one that is too long no more than its head and its tail is fetched.
    let bounds = Bounds { bytes: 101, ..Bounds::default() };
    let (told, output, _) = logs(cluster, &id, bounds).await;
    let (head, tail) = (&whole[..50], &whole[whole.len() - 51..]);
    let left_out = whole.len() - 101;
    assert_eq!(
        String::from_utf8(output).unwrap(),
        format!("{head}\n... {left_out} bytes left out ...\n{tail}")
    );
    let Kept { size, broken_off: None, .. } = kept(&told.output) else { panic!("{told:?}") };
    assert_eq!((size.produced, size.left_out), (whole.len() as u64, left_out as u64));

    // What has no standard output and error, as if it had never begun, and what is not there.
    let silent = cluster.yarn_submit(&[], "exit 7");
    until_over(cluster, &silent).await;
    let never = format!("{}9999", &id[..id.len() - 4]);
    for (id, reason) in [
        (&silent, " has no stdout of it; this cluster does not aggregate logs"),
        (&never, ": the ResourceManager knows of no such application"),
    ] {
        let (told, ..) = logs(cluster, id, Bounds::default()).await;
        let Outcome::Missing(words) = &told.output else { panic!("{told:?}") };
        assert!(words.ends_with(reason), "{words}");
    }
}

/// A cluster of one test, gone with it.
struct Own(Cluster);

impl Drop for Own {
    fn drop(&mut self) {
        self.0.remove();
    }
}

#[tokio::test]
async fn what_a_driver_wrote_on_a_real_yarn_is_fetched_from_where_its_logs_are_moved() {
    let place = tempfile::tempdir().unwrap();
    let cluster = tokio::task::spawn_blocking(move || {
        let own = Own(Cluster::at(place.path().canonicalize().unwrap().join("cluster")).aggregating_logs());
        own.0.up(&[Part::Hdfs]);
        own.0.up(&[Part::Hdfs, Part::Yarn]);
        (own, place)
    })
    .await
    .unwrap();
    let Own(cluster) = &cluster.0;
    // More than one chunk and one block of HDFS; the bytes are such that each place can be told from the others.
    let command = "seq 1 1000000; printf 'err\\377' >&2; exit 3";
    let id = cluster.yarn_submit(&[], &logged(command));
    let whole: String = (1..=1_000_000).map(|line| format!("{line}\n")).collect();
    until_over(cluster, &id).await;
    // At once, while they are still on their way or not.
    let (told, output, error) = logs(cluster, &id, Bounds::default()).await;
    assert!(kept(&told.output).broken_off.is_none() && output == whole.as_bytes(), "{told:?}");
    assert_eq!(error, b"err\xff", "{told:?}");
    spark_runtime_tests::until("the logs are moved", async || {
        let answer = cluster.yarn(&format!("/ws/v1/cluster/apps/{id}"));
        (answer["app"]["logAggregationStatus"] == "SUCCEEDED").then_some(())
    })
    .await;
    let (told, output, error) = logs(cluster, &id, Bounds::default()).await;
    assert!(output == whole.as_bytes() && error == b"err\xff", "{told:?}");
    let Kept { from: Source::Aggregated(url), size, broken_off: None, .. } = kept(&told.output) else {
        panic!("{told:?}")
    };
    let folder =
        format!("/tmp/logs/{}/bucket-logs-tfile/{}/{id}/", Cluster::superuser(), &id[id.len() - 4..]);
    assert!(url.starts_with(&folder), "{url}");
    assert_eq!(size.produced, whole.len() as u64);
    let (told, output, _) = logs(cluster, &id, Bounds { bytes: 101, ..Bounds::default() }).await;
    let (head, tail) = (&whole[..50], &whole[whole.len() - 51..]);
    assert_eq!(
        String::from_utf8(output).unwrap(),
        format!("{head}\n... {} bytes left out ...\n{tail}", whole.len() - 101),
        "{told:?}"
    );
    // They are read as whom the application runs: nobody else may.
    let (told, ..) = logs_as(&Actor::User("eve".to_owned()), cluster, &id, Bounds::default()).await;
    let Outcome::Missing(words) = &told.output else { panic!("{told:?}") };
    assert!(words.contains("HDFS denies it") && words.contains("user=eve"), "{words}");
    // What never had a standard output has none here either.
    let silent = cluster.yarn_submit(&[], "exit 7");
    until_over(cluster, &silent).await;
    let (told, ..) = logs(cluster, &silent, Bounds::default()).await;
    let Outcome::Missing(words) = &told.output else { panic!("{told:?}") };
    assert!(words.ends_with(" has no more of it"), "{words}");
}
