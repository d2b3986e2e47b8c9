//! Files in a real HDFS: where training jobs leave theirs, where attachments come from, what jobs read and write there by
//! themselves, and what goes wrong.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spark_runtime_protocol::event::{Event, EventKind, FailureClass};
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::cluster::{Cluster, Daemon, Part};
use spark_runtime_tests::jobs::{self, assets};
use spark_runtime_tests::program::{Worker, hangs};
use spark_runtime_worker::storage::{Actor, Storage};

use crate::attachments::{end_of, external, job, packed, said};
use crate::spark::{Parts, spark_job};
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
    // On another thread: the broker ends the connection of whoever is not heard of for as long as a start may take.
    tokio::task::spawn_blocking(|| cluster.up(&[Part::Hdfs])).await.unwrap();
    let end = place.end_of("away").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    assert_eq!(cluster.hdfs_read(&format!("{folder}/away/model.txt")).unwrap(), b"x");
    worker.nothing_left().await;
}

/// A job whose model does what it is told, with external inputs and outputs at these places.
fn reading_and_writing(id: &str, inputs: &[&str], outputs: &[&str], directives: &[&str]) -> Value {
    let all = |urls: &[&str]| {
        let external = |url: &&str| json!({"assetType": "EXTERNAL_FILE", "name": "n", "fileUrl": url, "fileFormat": "CSV"});
        Value::Array(urls.iter().map(external).collect())
    };
    let mut job = jobs::job(id, directives);
    job["inputData"] = all(inputs);
    job["outputData"] = all(outputs);
    job
}

fn told(event: &Event) -> String {
    event.data.job_messages.as_ref().unwrap_or_else(|| panic!("{event:?}")).join("\n")
}

#[tokio::test]
async fn inputs_that_are_not_there_are_named_at_once_before_anything_is_started() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let folder = folder(cluster, "read");
    cluster.hdfs_write(&format!("{folder}/in.csv"), b"a\n1\n");
    cluster.hdfs_write(&format!("{folder}/parts/part-0"), b"a\n1\n");
    cluster.hdfs_write(&format!("{folder}/closed/file"), b"x");
    cluster.hdfs("PUT", &format!("{folder}/closed"), "SETPERMISSION&permission=700");
    let uri = cluster.setting("HDFS_URI");
    let journal = tempfile::tempdir().unwrap();
    let started = journal.path().join("started");
    let mark = format!("write {} x", started.display());
    // A file by three names, a folder, patterns, a list, what is hidden, and a store that nobody here knows.
    let there = [
        format!("{folder}/in.csv"),
        format!("hdfs://{folder}/in.csv"),
        format!("{uri}{folder}/in.csv"),
        format!("{folder}/parts/"),
        format!("{folder}/*.csv"),
        format!("{folder}/{{in,out}}.csv"),
        format!("{folder}/in.csv,{folder}/parts"),
        format!("{folder}/closed/file"),
        "gs://bucket/in.csv".to_owned(),
    ];
    let there: Vec<&str> = there.iter().map(String::as_str).collect();
    let missing = [
        format!("{folder}/gone.csv"),
        format!("hdfs://{folder}/in.csv/below"),
        format!("{uri}{folder}/none/*.csv"),
        // On this machine it is there, and nobody has asked for it on this machine.
        "/etc/passwd".to_owned(),
        "file:///nowhere/at/all.csv".to_owned(),
    ];
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    let mut job = reading_and_writing("read", &[&there[..], &missing[..]].concat(), &[], &[&mark, "exit 3"]);
    assets(&mut job).push(external(&format!("hdfs://{folder}/weights"), "weights"));
    let end = end_as_ann(cluster, &job.to_string());
    assert_eq!(end.kind(), Some(EventKind::Rejected), "{end:?}");
    let faults: Vec<String> = end.data.faults.unwrap().iter().map(ToString::to_string).collect();
    let expected = [
        format!("/inputData/9/fileUrl: {folder}/gone.csv is not there"),
        format!(
            "/inputData/10/fileUrl: hdfs://{folder}/in.csv/below cannot be there: {folder}/in.csv is a file, and no folder"
        ),
        format!(
            "/inputData/11/fileUrl: {uri}{folder}/none/*.csv is not there, nor the folder that it leads to"
        ),
        "/inputData/12/fileUrl: /etc/passwd is not there".to_owned(),
        "/inputData/13/fileUrl: file:///nowhere/at/all.csv is not there".to_owned(),
        format!("/model/storedModel/modelAssets/1/fileUrl: hdfs://{folder}/weights is not there"),
    ];
    assert_eq!(faults, expected);
    assert!(!started.exists());

    // Without them it is run; what nobody could look for is told, since it fails.
    let job = reading_and_writing("read", &there, &[], &[&mark, "exit 3"]);
    let end = end_as_ann(cluster, &job.to_string());
    assert_eq!(end.kind(), Some(EventKind::Failed), "{end:?}");
    assert!(started.exists());
    let told_all = told(&end);
    let hidden = format!(
        "an input was not looked for: {folder}/closed/file: HDFS denies it: Permission denied: user=ann"
    );
    assert!(told_all.contains(&hidden), "{told_all}");
    assert!(
        told_all.contains("an input was not looked for: gs://bucket/in.csv begins with \"gs\""),
        "{told_all}"
    );
    let job = reading_and_writing("read", &there, &[], &["complete"]);
    let end = end_as_ann(cluster, &job.to_string());
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    assert!(!told(&end).contains("not looked for"), "{end:?}");
}

#[tokio::test]
async fn a_record_models_missing_inputs_and_attachments_are_named_together() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let folder = folder(cluster, "records");
    let url = |name: &str| format!("hdfs://{folder}/{name}");
    let mut job = job(vec![external(&url("one"), "one"), external(&url("two"), "two")]);
    let attachments = [1, 2].map(|index| format!("/model/storedModel/modelAssets/{index}/fileUrl"));
    let pointers = |job: &Value| -> Vec<String> {
        let faults = end_as_ann(cluster, &job.to_string()).data.faults.unwrap();
        faults.into_iter().map(|fault| fault.pointer).collect()
    };
    assert_eq!(pointers(&job), attachments);
    let input =
        |url: &str| json!({"assetType": "EXTERNAL_FILE", "name": "n", "fileUrl": url, "fileFormat": "CSV"});
    job["inputData"] = json!([input("file:///nowhere/in.csv"), input(&url("in.csv"))]);
    let inputs = [0, 1].map(|index| format!("/inputData/{index}/fileUrl"));
    assert_eq!(pointers(&job), [inputs, attachments].concat());
}

#[tokio::test]
async fn a_worker_that_refuses_existing_outputs_looks_for_them_on_hdfs() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let folder = folder(cluster, "taken");
    cluster.hdfs("PUT", &format!("{folder}/empty"), "MKDIRS");
    cluster.hdfs_write(&format!("{folder}/closed/out"), b"x");
    cluster.hdfs("PUT", &format!("{folder}/closed"), "SETPERMISSION&permission=700");
    let outputs = [
        format!("{folder}/new"),
        format!("{folder}/empty"),
        format!("hdfs://{folder}/closed/out"),
        "gs://b/o".to_owned(),
    ];
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let job = reading_and_writing("taken", &[], &outputs, &["complete"]);
    let configuration = cluster.setting("HADOOP_CONF_DIR");
    let environment = [("HADOOP_CONF_DIR", configuration.as_str()), ("HADOOP_USER_NAME", "ann")];
    let end = end_of(&job, &["job.existing_outputs=refuse"], &environment);
    let faults: Vec<String> = end.data.faults.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(faults.len(), 2, "{faults:?}");
    let start = format!("/outputData/1/fileUrl: {folder}/empty exists already, and this worker refuses");
    assert!(faults[0].starts_with(&start), "{faults:?}");
    let start = format!(
        "/outputData/2/fileUrl: hdfs://{folder}/closed/out: HDFS denies it: Permission denied: user=ann"
    );
    assert!(faults[1].starts_with(&start) && faults[1].contains("it may exist already"), "{faults:?}");
    // One that does not refuse says what it does instead.
    let end = end_of(&job, &[], &environment);
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    let told = told(&end);
    assert!(
        told.contains(&format!("the output {folder}/empty was there before; the model may overwrite it")),
        "{told}"
    );
    assert!(
        told.contains("/closed/out is hidden from the worker and taken for one that was there before"),
        "{told}"
    );
    assert!(!told.contains("/new") && !told.contains("gs://"), "{told}");
}

#[tokio::test]
async fn what_a_dead_attempt_left_on_hdfs_is_removed_and_what_was_there_before_is_not() {
    let (cluster, _alone) = Cluster::alone(&[Part::Hdfs]).await;
    let folder = folder(cluster, "left");
    let mut place = Vhost::ready(&DELAYS).await;
    let configuration = cluster.setting("HADOOP_CONF_DIR");
    let user = Cluster::superuser();
    let environment = [("HADOOP_CONF_DIR", configuration.as_str()), ("HADOOP_USER_NAME", user.as_str())];
    let settings = [RETRY, "retry.max_attempts=1000"];
    let uri = place.vhost.uri();
    let first = Worker::start_knowing(&uri, &settings, &environment);

    let counter = tempfile::tempdir().unwrap();
    let counter = counter.path().join("counter");
    cluster.hdfs_write(&format!("{folder}/old/part-0"), b"mine");
    cluster.hdfs("PUT", &format!("{folder}/empty"), "MKDIRS");
    let outputs = ["old", "empty", "new", "file"].map(|name| format!("{folder}/{name}"));
    let named = format!("hdfs://{folder}/named");
    let outputs: Vec<&str> = outputs.iter().chain([&named]).map(String::as_str).collect();
    let hang = format!("times 1 {} hang", counter.display());
    place.publish("left", reading_and_writing("left", &[], &outputs, &[&hang]).to_string()).await;
    let accepted = place.heard("left", &[EventKind::Accepted]).await.data.message.unwrap();
    let before = |name: &str| format!("the output {folder}/{name} was there before");
    assert!(accepted.contains(&before("old")) && accepted.contains(&before("empty")), "{accepted}");
    assert!(!accepted.contains("new") && !accepted.contains("named"), "{accepted}");
    hangs(&counter).await;
    // What the attempt writes: folders with a part, a file, and more of what was there.
    for name in ["old/part-1", "empty/part-0", "new/_temporary/0/part-0", "file", "named/part-0"] {
        cluster.hdfs_write(&format!("{folder}/{name}"), b"half");
    }
    // In safe mode nothing can be removed, and so the next attempt does not start.
    let _ = cluster.admin(&["-safemode", "enter"]);
    first.signal(Signal::SIGKILL);
    let second = Worker::start_knowing(&uri, &settings, &environment);
    let safe = message(&place.heard("left", &[EventKind::Retrying]).await);
    let words = format!("what an earlier attempt left cannot be removed: {folder}/new: HDFS is in safe mode");
    assert!(safe.starts_with(&words), "{safe}");
    let _ = cluster.admin(&["-safemode", "leave"]);
    let end = place.end_of("left").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    let told = told(&end);
    for name in [format!("{folder}/new"), format!("{folder}/file"), named.clone()] {
        assert!(told.contains(&format!("removed {name}, which an earlier attempt had left")), "{told}");
    }
    assert_eq!(cluster.hdfs_list(&folder), ["empty", "old"]);
    assert_eq!(cluster.hdfs_list(&format!("{folder}/old")), ["part-0", "part-1"]);
    assert_eq!(cluster.hdfs_read(&format!("{folder}/old/part-0")).unwrap(), b"mine");
    assert_eq!(cluster.hdfs_list(&format!("{folder}/empty")), ["part-0"]);
    second.nothing_left().await;
}

#[tokio::test]
async fn while_nobody_can_tell_what_is_there_nothing_is_run_and_the_next_claim_tells_it() {
    let (cluster, _alone) = Cluster::alone(&[Part::Hdfs]).await;
    let folder = folder(cluster, "silent");
    let mut place = Vhost::ready(&DELAYS).await;
    let configuration = cluster.setting("HADOOP_CONF_DIR");
    let user = Cluster::superuser();
    let environment = [("HADOOP_CONF_DIR", configuration.as_str()), ("HADOOP_USER_NAME", user.as_str())];
    let settings = [RETRY, "retry.max_attempts=1000"];
    let uri = place.vhost.uri();
    let first = Worker::start_knowing(&uri, &settings, &environment);
    let directory = tempfile::tempdir().unwrap();
    let counter = directory.path().join("counter");
    cluster.hdfs_write(&format!("{folder}/old/part-0"), b"mine");
    let outputs = ["old", "new"].map(|name| format!("{folder}/{name}"));
    let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
    let hang = format!("times 1 {} hang", counter.display());
    let job = reading_and_writing("silent", &[], &outputs, &[&hang]);

    // It takes connections and says nothing.
    cluster.signal(Daemon::NameNode, Signal::SIGSTOP);
    place.publish("silent", job.to_string()).await;
    let retrying = place.heard("silent", &[EventKind::Retrying]).await;
    cluster.signal(Daemon::NameNode, Signal::SIGCONT);
    assert_eq!(retrying.data.attempt, 1);
    let words = "nobody can tell which outputs are there already, and nothing is run until somebody can: ";
    let silent = message(&retrying);
    assert!(
        silent.starts_with(words) && silent.contains(&format!("{folder}/old: no answer in time")),
        "{silent}"
    );
    assert!(!counter.exists());

    // The first attempt that runs knows what was there, and so does the one after its death.
    let accepted = place.heard("silent", &[EventKind::Accepted]).await;
    let note = accepted.data.message.unwrap();
    assert!(accepted.data.attempt > 1 && !note.contains("/new"), "{note}");
    assert!(note.contains(&format!("the output {folder}/old was there before")), "{note}");
    hangs(&counter).await;
    cluster.hdfs_write(&format!("{folder}/new/part-0"), b"half");
    first.signal(Signal::SIGKILL);
    let second = Worker::start_knowing(&uri, &settings, &environment);
    let end = place.end_of("silent").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    assert!(
        told(&end).contains(&format!("removed {folder}/new, which an earlier attempt had left")),
        "{end:?}"
    );
    assert_eq!(cluster.hdfs_list(&folder), ["old"]);
    assert_eq!(cluster.hdfs_read(&format!("{folder}/old/part-0")).unwrap(), b"mine");
    second.nothing_left().await;
}

#[tokio::test]
async fn what_keeps_a_models_own_writes_from_hdfs_is_told_with_the_words_of_hdfs() {
    let parts = Parts::take().await;
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let folder = format!("/own-{}", uuid::Uuid::new_v4().simple());
    cluster.hdfs("PUT", &format!("{folder}/small"), "MKDIRS");
    cluster.hdfs("PUT", &format!("{folder}/small"), "SETQUOTA&storagespacequota=1");
    let mut place = Vhost::ready(&DELAYS).await;
    let configuration = format!("spark.environment.HADOOP_CONF_DIR={}", cluster.setting("HADOOP_CONF_DIR"));
    let _worker = parts.worker(&place.vhost.uri(), &[&configuration]);
    let source = "from pyspark.sql import SparkSession\ndef score(inputs, outputs, attachments):\n    \
                  SparkSession.builder.getOrCreate().range(9).coalesce(1).write.csv(outputs[0]['fileUrl'])\n";
    let mut job = spark_job("quota", source);
    job["outputData"] = json!([
        {"name": "o", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{folder}/small/out")},
    ]);
    place.publish("quota", job.to_string()).await;
    let failure = place.end_of("quota").await.data.failure.unwrap();
    println!("{}", failure.message);
    // What the model raised is the model's: it may write elsewhere, or less.
    assert_eq!(failure.class, FailureClass::Model, "{failure:#?}");
    let words = format!("The DiskSpace quota of {folder}/small is exceeded");
    assert!(failure.message.contains(&words), "{}", failure.message);
}

#[tokio::test]
async fn what_is_looked_for_and_removed_for_a_job_of_another_user_is_so_as_that_user_and_by_no_more_rights() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let folder = folder(cluster, "theirs");
    let owned = |path: &str, owner: &str, mode: u32| {
        cluster.hdfs("PUT", path, &format!("SETOWNER&owner={owner}"));
        cluster.hdfs("PUT", path, &format!("SETPERMISSION&permission={mode}"));
    };
    let (ann, bob) = (format!("{folder}/ann"), format!("{folder}/bob"));
    cluster.hdfs("PUT", &ann, "MKDIRS");
    owned(&ann, "ann", 700);
    cluster.hdfs("PUT", &bob, "MKDIRS");
    owned(&bob, "bob", 700);
    let place_of_rules = tempfile::tempdir().unwrap();
    let policy = place_of_rules.path().join("policy.toml");
    std::fs::write(&policy, "[identity]\nproxy_users = [\"ann\"]\n").unwrap();
    let mut place = Vhost::ready(&DELAYS).await;
    // The worker's user may do anything on this HDFS.
    let configuration = cluster.setting("HADOOP_CONF_DIR");
    let user = Cluster::superuser();
    let environment = [("HADOOP_CONF_DIR", configuration.as_str()), ("HADOOP_USER_NAME", user.as_str())];
    let rules = format!("spark.policy={}", policy.display());
    let settings = [RETRY, "retry.max_attempts=1000", &rules];
    let uri = place.vhost.uri();
    let first = Worker::start_knowing(&uri, &settings, &environment);

    let counter = place_of_rules.path().join("counter");
    let hang = format!("times 1 {} hang", counter.display());
    // An input that ann may not look for: whoever may look there would say that it is missing.
    let (input, output) = (format!("{bob}/gone.csv"), format!("{ann}/out"));
    let mut job = reading_and_writing("theirs", &[&input], &[&output], &[&hang]);
    job["jobParameters"] = json!({"--proxy-user": "ann"});
    place.publish("theirs", job.to_string()).await;
    hangs(&counter).await;
    cluster.hdfs_write(&format!("{output}/part-0"), b"half");
    owned(&output, "ann", 755);
    // What the attempt has left lies by now where ann may remove nothing.
    owned(&ann, "bob", 755);
    first.signal(Signal::SIGKILL);
    let second = Worker::start_knowing(&uri, &settings, &environment);
    let denied = message(&place.heard("theirs", &[EventKind::Retrying, EventKind::Failed]).await);
    assert!(
        denied.starts_with("what an earlier attempt left cannot be removed: ") && denied.contains("user=ann"),
        "{denied}"
    );
    assert_eq!(cluster.hdfs_list(&output), ["part-0"]);
    owned(&ann, "ann", 700);
    let end = place.end_of("theirs").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    let told = told(&end);
    assert!(told.contains(&format!("removed {output}, which an earlier attempt had left")), "{told}");
    assert_eq!(cluster.hdfs_list(&ann), [""; 0]);
    second.nothing_left().await;
}

#[tokio::test]
async fn a_folder_is_shared_with_whomever_hdfs_lets_through_and_stays_open_to_its_owner() {
    let (cluster, _calm) = Cluster::shared(&[Part::Hdfs]).await;
    let closed = format!("{}/closed", folder(cluster, "shared"));
    cluster.hdfs("PUT", &closed, "MKDIRS&permission=750");
    let configuration = cluster.setting("HADOOP_CONF_DIR");
    let storage = Storage::of_hadoop(Path::new(&configuration));
    let path = format!("{closed}/jobs/one");
    let ours = storage.place(&path).unwrap();
    let theirs = storage.acting_as(Actor::User("ann".to_owned())).place(&path).unwrap();
    let refused = ours.share_with("ann", &theirs).await.unwrap_err().to_string();
    assert!(
        refused.starts_with(&format!("{path}: ann cannot get there (HDFS denies it: "))
            && refused.contains("user=ann, access=EXECUTE")
            && refused.contains(&format!("inode=\"{closed}\"")),
        "{refused}"
    );
    // Closed to others, but not to her.
    cluster.hdfs("PUT", &closed, "MODIFYACLENTRIES&aclspec=user:ann:--x");
    ours.share_with("ann", &theirs).await.unwrap();
    let acl = cluster.hdfs("GET", &path, "GETACLSTATUS")["AclStatus"]["entries"].clone();
    let entries: Vec<&str> = acl.as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect();
    let owner = format!("default:user:{}:rwx", Cluster::superuser());
    for wanted in ["user:ann:rwx", "default:user:ann:rwx", &owner] {
        assert!(entries.contains(&wanted), "{wanted}: {entries:?}");
    }
}
