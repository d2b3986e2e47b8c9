//! Files in a real HDFS: where training jobs leave theirs, where attachments come from, and what goes wrong there.

use nix::sys::signal::Signal;
use serde_json::json;
use spark_runtime_protocol::event::{Event, EventKind, FailureClass};
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::cluster::{Cluster, Daemon, Part};
use spark_runtime_tests::program::Worker;

use crate::attachments::{end_of, external, job, packed, said};
use crate::training::{DELAYS, RETRY, training};

/// Ends a job as somebody who is not HDFS' superuser.
fn end_as_ann(cluster: &Cluster, job: &str) -> Event {
    let configuration = cluster.setting("HADOOP_CONF_DIR");
    let environment = [("HADOOP_CONF_DIR", configuration.as_str()), ("HADOOP_USER_NAME", "ann")];
    end_of(&serde_json::from_str(job).unwrap(), &[], &environment)
}

/// A folder of its own that everybody may write to.
fn folder(cluster: &Cluster, name: &str) -> String {
    let folder = format!("/{name}-{}", uuid::Uuid::new_v4().simple());
    cluster.hdfs("PUT", &folder, "MKDIRS");
    cluster.hdfs("PUT", &folder, "SETPERMISSION&permission=777");
    folder
}

fn message(end: &Event) -> String {
    let failure = end.data.failure.as_ref().unwrap_or_else(|| panic!("{end:?}"));
    assert_eq!(failure.class, FailureClass::Infrastructure);
    failure.message.clone()
}

#[tokio::test]
async fn what_a_training_job_leaves_goes_to_hdfs_and_is_whole() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let folder = folder(cluster, "trained");
    let directives =
        ["write outputDir/model.txt trained", "write-megabytes outputDir/large 20", "write outputDir/ü_b x"];
    // The NameNode by name, the one of the configuration, and a bare path, which is in HDFS by that configuration too.
    let uri = cluster.setting("HDFS_URI");
    for (id, place) in
        [("one", format!("{uri}{folder}")), ("two", format!("hdfs://{folder}")), ("three", folder.clone())]
    {
        let end = end_as_ann(cluster, &training(id, Some(&place), &directives));
        assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
        let assets = end.data.additional_assets.unwrap();
        assert_eq!(assets[0]["fileUrl"], format!("{place}/{id}/large"));
        assert_eq!(assets[0]["fileSize"], 20 << 20);
        assert_eq!(assets[0]["repositoryInfo"], json!({"repositoryType": "HDFS_REPOSITORY"}));
        let there = format!("{folder}/{id}");
        let names = cluster.hdfs_list(&there);
        assert_eq!(names, ["_spark_runtime_manifest.json", "large", "model.txt", "ü_b"]);
        assert_eq!(cluster.hdfs_read(&format!("{there}/model.txt")).unwrap(), b"trained");
        let status = cluster.hdfs("GET", &format!("{there}/large"), "GETFILESTATUS");
        assert_eq!(status["FileStatus"]["length"], 20 << 20);
        assert_eq!(status["FileStatus"]["owner"], "ann");
    }
    // Once more: what is there is not sent again, and what is not the job's any more goes.
    let place = format!("hdfs://{folder}");
    let before = cluster.hdfs("GET", &format!("{folder}/two/large"), "GETFILESTATUS");
    let end = end_as_ann(cluster, &training("two", Some(&place), &["write-megabytes outputDir/large 20"]));
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    assert_eq!(cluster.hdfs("GET", &format!("{folder}/two/large"), "GETFILESTATUS"), before);
    assert_eq!(cluster.hdfs_list(&format!("{folder}/two")), ["_spark_runtime_manifest.json", "large"]);
}

#[tokio::test]
async fn attachments_come_from_hdfs_and_archives_among_them_are_unpacked() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let folder = folder(cluster, "attached");
    let local = packed();
    for name in ["package.zip", "data.bin", "plain.zip"] {
        cluster.hdfs_write(&format!("{folder}/{name}"), &std::fs::read(local.path().join(name)).unwrap());
    }
    cluster.hdfs_write(&format!("{folder}/weights/deep/a"), b"a");
    let url = |name: &str| format!("hdfs://{folder}/{name}");
    let job = job(vec![
        external(&url("package.zip"), "package.zip"),
        external(&url("data.bin"), "data.bin"),
        external(&url("plain.zip"), "plain.txt"),
        external(&url("weights"), "weights"),
    ]);
    let end = end_as_ann(cluster, &job.to_string());
    assert_eq!(said(&end), "{\"said\":\"zipped tarred tarred plain\"}\n");
}

#[tokio::test]
async fn what_hdfs_does_not_allow_is_told_in_its_words_and_without_its_source() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let folder = folder(cluster, "refused");
    let user = Cluster::superuser();
    cluster.hdfs_write(&format!("{folder}/closed/file"), b"x");
    cluster.hdfs("PUT", &format!("{folder}/closed"), "SETPERMISSION&permission=700");
    cluster.hdfs_write(&format!("{folder}/file"), b"x");
    cluster.hdfs("PUT", &format!("{folder}/small"), "MKDIRS");
    cluster.hdfs("PUT", &format!("{folder}/small"), "SETPERMISSION&permission=777");
    cluster.hdfs("PUT", &format!("{folder}/small"), "SETQUOTA&storagespacequota=6000000");
    cluster.hdfs("PUT", &format!("{folder}/inthe/way/large"), "MKDIRS");
    for open in ["inthe", "inthe/way", "inthe/way/large"] {
        cluster.hdfs("PUT", &format!("{folder}/{open}"), "SETPERMISSION&permission=777");
    }
    let train = |id: &str, place: &str, directives: &[&str]| {
        let text = training(id, Some(&format!("hdfs://{folder}{place}")), directives);
        end_as_ann(cluster, &text)
    };
    let large = ["write-megabytes outputDir/large 20"];

    let denied = message(&train("denied", "/closed", &large));
    let inode = format!("Permission denied: user=ann, access=EXECUTE, inode=\"{folder}/closed\":{user}:");
    let start = "the place for the files of outputDir will not do: ";
    assert!(denied.starts_with(start) && denied.contains(&format!("HDFS denies it: {inode}")), "{denied}");
    assert!(!denied.contains(".java") && !denied.contains("org.apache"), "{denied}");

    let quota = message(&train("quota", "/small", &large));
    let words =
        format!("a quota of HDFS does not allow it: The DiskSpace quota of {folder}/small is exceeded");
    assert!(quota.starts_with("the files of outputDir could not be uploaded: "), "{quota}");
    assert!(quota.contains(&words) && quota.contains("; the files are kept in "), "{quota}");

    let file = message(&train("file", "/file", &large));
    assert!(file.ends_with(&format!("cannot be there: {folder}/file is a file, and no folder")), "{file}");

    let way = message(&train("way", "/inthe", &large));
    assert!(
        way.contains("/inthe/way/large: a folder lies in the place of the file; the files are kept"),
        "{way}"
    );
    assert_eq!(cluster.hdfs_list(&format!("{folder}/inthe/way")), ["_spark_runtime_manifest.json", "large"]);

    let attach = |url: &str| end_as_ann(cluster, &job(vec![external(url, "data")]).to_string());
    let fault = |url: &str| attach(url).data.faults.unwrap()[0].clone();
    let pointer = "/model/storedModel/modelAssets/1/fileUrl";
    let missing = fault(&format!("hdfs://{folder}/none"));
    assert_eq!(
        (missing.pointer.as_str(), missing.message),
        (pointer, format!("hdfs://{folder}/none is not there"))
    );
    let below = fault(&format!("hdfs://{folder}/file/below"));
    assert!(below.message.ends_with("/file is a file, and no folder"), "{}", below.message);
    let service = fault("hdfs://production/x");
    let words = "is on HDFS, and no configuration names the NameNodes of \"production\" (HADOOP_CONF_DIR)";
    assert_eq!(service.message, format!("hdfs://production/x {words}"));
    let unknown = fault("gs://bucket/x");
    assert!(
        unknown.message.contains("begins with \"gs\", which this worker does not know"),
        "{}",
        unknown.message
    );
    let closed = message(&attach(&format!("hdfs://{folder}/closed/file")));
    assert!(
        closed.starts_with("the attachment data could not be fetched: ") && closed.contains(&inode),
        "{closed}"
    );
    // Nothing listens there.
    let away = message(&attach("hdfs://127.0.0.1:1/x"));
    assert!(away.contains("HDFS cannot be reached: Connection refused"), "{away}");
}

#[tokio::test]
async fn a_job_that_meets_hdfs_in_safe_mode_or_away_is_tried_again_and_completes() {
    let (cluster, _alone) = Cluster::alone(&[Part::Hdfs]).await;
    let folder = folder(cluster, "later");
    let mut place = Vhost::ready(&DELAYS).await;
    let configuration = cluster.setting("HADOOP_CONF_DIR");
    let environment = [("HADOOP_CONF_DIR", configuration.as_str()), ("HADOOP_USER_NAME", "ann")];
    let settings = [RETRY, "retry.max_attempts=1000"];
    let worker = Worker::start_knowing(&place.vhost.uri(), &settings, &environment);
    let upload = |id: &str| training(id, Some(&format!("hdfs://{folder}")), &["write outputDir/model.txt x"]);

    let _ = cluster.admin(&["-safemode", "enter"]);
    place.publish("safe", upload("safe")).await;
    let retrying = place.heard("safe", &[EventKind::Retrying]).await;
    assert!(message(&retrying).contains("HDFS is in safe mode and takes no changes: "), "{retrying:?}");
    let _ = cluster.admin(&["-safemode", "leave"]);
    let end = place.end_of("safe").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    assert_eq!(cluster.hdfs_read(&format!("{folder}/safe/model.txt")).unwrap(), b"x");

    cluster.signal(Daemon::NameNode, Signal::SIGKILL);
    place.publish("away", upload("away")).await;
    let retrying = place.heard("away", &[EventKind::Retrying]).await;
    assert!(message(&retrying).contains("HDFS cannot be reached: "), "{retrying:?}");
    cluster.up(&[Part::Hdfs]);
    let end = place.end_of("away").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    assert_eq!(cluster.hdfs_read(&format!("{folder}/away/model.txt")).unwrap(), b"x");
    worker.nothing_left().await;
}
