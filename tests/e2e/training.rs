//! What training jobs leave in `outputDir`, and where it goes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use spark_runtime_protocol::event::{EventKind, FailureClass, JobResult};
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::jobs::{assets, job};
use spark_runtime_tests::program::Worker;
use spark_runtime_tests::s3::{ACCESS_KEY, S3, SECRET_KEY};

pub(crate) const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
pub(crate) const RETRY: &str = "retry.delays=200ms";

/// A training job that does what it is told and leaves its files at `place`.
pub(crate) fn training(id: &str, place: Option<&str>, directives: &[&str]) -> String {
    let mut job = job(id, directives);
    job["jobType"] = json!("MODEL_BATCH_TRAINING_JOB");
    assets(&mut job)[0]["trainingFunction"] = json!("score");
    if let Some(place) = place {
        job["trainingOutput"] = json!({"fileUrl": place});
    }
    job.to_string()
}

fn listed(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_a_training_job_leaves_is_where_the_job_says_before_its_end_is_told() {
    let mut place = Vhost::ready(&DELAYS).await;
    let there = tempfile::tempdir().unwrap();
    let other = format!("training.upload_to={}", there.path().join("of the worker").display());
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, &other]);
    let url = format!("file://{}", there.path().display());
    let text =
        training("t:1", Some(&url), &["write outputDir/model.txt trained", "write outputDir/empty_x x"]);
    place.publish("t:1", text).await;
    let end = place.end_of("t:1").await;
    assert_eq!((end.kind(), end.data.job_result), (Some(EventKind::Completed), Some(JobResult::Success)));
    let assets = end.data.additional_assets.unwrap();
    let digest = "33fbcd8470eae125a265eb3f4375137f38ea4dc42f75ac09594bfe1a1c951af6";
    let expected = json!({
        "name": "model.txt", "assetType": "EXTERNAL_FILE", "fileUrl": format!("{url}/t~1/model.txt"),
        "filename": "model.txt", "fileSize": 7, "sha256": digest,
    });
    assert_eq!(assets[1], expected);
    assert_eq!(std::fs::read_to_string(there.path().join("t~1/model.txt")).unwrap(), "trained");
    assert_eq!(listed(there.path()), ["t~1"]);
    // Without a word of the job's own, the worker's settings say where.
    place.publish("t2", training("t2", None, &["write outputDir/model.txt again"])).await;
    assert_eq!(place.end_of("t2").await.kind(), Some(EventKind::Completed));
    assert_eq!(std::fs::read_to_string(there.path().join("of the worker/t2/model.txt")).unwrap(), "again");
    worker.nothing_left().await;
}

#[tokio::test]
async fn without_a_place_the_files_stay_and_the_event_says_where() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    place.publish("kept", training("kept", None, &["write outputDir/model.txt trained"])).await;
    let end = place.end_of("kept").await;
    assert_eq!(end.data.job_result, Some(JobResult::Success));
    let asset = &end.data.additional_assets.unwrap()[0];
    let file = asset["fileUrl"].as_str().unwrap().strip_prefix("file://").unwrap();
    assert!(asset["fileLocation"].as_str().unwrap().ends_with(&format!(":{file}")), "{asset}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "trained");
}

#[tokio::test]
async fn a_place_that_will_not_do_is_told_before_the_model_is_trained() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=2"]);
    let there = tempfile::tempdir().unwrap();
    let file = there.path().join("a file");
    std::fs::write(&file, "x").unwrap();
    let text = training("no", Some(&file.display().to_string()), &["complete"]);
    place.publish("no", text).await;
    let end = place.end_of("no").await;
    let failure = end.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Infrastructure);
    assert!(
        failure.message.starts_with("the place for the files of outputDir will not do: "),
        "{}",
        failure.message
    );
    let story = ["1 accepted", "1 retrying", "2 accepted", "2 failed"];
    assert_eq!(place.story("no"), story);
    let text = training("wrong", Some("ftp://host/x"), &["complete"]);
    place.publish("wrong", text).await;
    let end = place.end_of("wrong").await;
    assert_eq!(end.data.faults.unwrap()[0].pointer, "/trainingOutput/fileUrl");
}

#[tokio::test]
async fn files_that_cannot_be_uploaded_are_kept_and_the_job_is_tried_again() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=2"]);
    let there = tempfile::tempdir().unwrap();
    // A folder lies where the file shall go; the first attempt is gone when it makes room.
    std::fs::create_dir_all(there.path().join("up/model.txt/x")).unwrap();
    std::fs::write(there.path().join("up/model.txt/x/y"), "z").unwrap();
    let text =
        training("up", Some(&there.path().display().to_string()), &["write outputDir/model.txt trained"]);
    place.publish("up", text).await;
    place.heard("up", &[EventKind::Retrying]).await;
    let words = place.seen.last().unwrap().data.failure.clone().unwrap();
    assert_eq!(words.class, FailureClass::Infrastructure);
    assert!(words.message.starts_with("the files of outputDir could not be uploaded: "), "{}", words.message);
    let end = place.end_of("up").await;
    assert_eq!(end.kind(), Some(EventKind::Failed));
    let message = end.data.failure.unwrap().message;
    let folder = message.rsplit(':').next().unwrap();
    assert_eq!(std::fs::read_to_string(Path::new(folder).join("model.txt")).unwrap(), "trained", "{message}");
}

#[tokio::test]
async fn a_second_attempt_does_not_upload_again_what_the_first_one_has() {
    let mut place = Vhost::ready(&DELAYS).await;
    let there = tempfile::tempdir().unwrap();
    let count = there.path().join("count").display().to_string();
    let once = format!("times 1 {count} write outputDir/only_first x");
    let mut first = Worker::start_to_die_at(&place.vhost.uri(), &[RETRY], "after-upload");
    let url = there.path().join("up").display().to_string();
    let text = training("r", Some(&url), &["write-megabytes outputDir/large 20", &once]);
    place.publish("r", text).await;
    first.ended().await;
    let folder = there.path().join("up/r");
    assert_eq!(listed(&folder), ["_spark_runtime_manifest.json", "large", "only_first"]);
    let inode = folder.join("large").metadata().unwrap().ino();
    let _second = Worker::start(&place.vhost.uri(), &[RETRY]);
    let end = place.end_of("r").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
    assert_eq!(listed(&folder), ["_spark_runtime_manifest.json", "large"]);
    assert_eq!(folder.join("large").metadata().unwrap().ino(), inode);
}

#[tokio::test]
async fn files_go_to_a_real_s3_and_no_model_sees_the_credentials() {
    let mut place = Vhost::ready(&DELAYS).await;
    let server = S3::start().await;
    let endpoint = format!("storage.s3_endpoint={}", server.endpoint());
    let there = tempfile::tempdir().unwrap();
    let record = there.path().join("record").display().to_string();
    let settings = [RETRY, &endpoint, "training.upload_to=s3a://trained/models", "retry.max_attempts=1"];
    let credentials = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    let worker = Worker::start_knowing(&place.vhost.uri(), &settings, &credentials);
    let directives =
        ["write-megabytes outputDir/large 20", "write outputDir/small.txt ü", &format!("record {record}")];
    place.publish("s3", training("s3", None, &directives)).await;
    let end = place.end_of("s3").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}\n{}", end.data.failure, server.log());
    let assets = end.data.additional_assets.unwrap();
    assert_eq!(assets[0]["fileUrl"], "s3a://trained/models/s3/large");
    assert_eq!(assets[0]["fileSize"], 20 << 20);
    assert_eq!(assets[0]["repositoryInfo"]["repositoryType"], "S3_REPOSITORY");
    assert_eq!(server.object("trained", "models/s3/large").unwrap().len(), 20 << 20);
    assert_eq!(server.object("trained", "models/s3/small.txt").unwrap(), "ü".as_bytes());
    let seen = std::fs::read_to_string(record).unwrap();
    assert!(seen.contains("PATH") && !seen.contains(SECRET_KEY) && !seen.contains(ACCESS_KEY), "{seen}");
    assert!(!worker.log().contains(SECRET_KEY));
    drop(worker);
    // Whoever the server does not know is told so before anything runs.
    let stranger = [("AWS_ACCESS_KEY_ID", "nobody"), ("AWS_SECRET_ACCESS_KEY", "nothing")];
    let _worker = Worker::start_knowing(&place.vhost.uri(), &settings, &stranger);
    place.publish("s3no", training("s3no", None, &["complete"])).await;
    let failure = place.end_of("s3no").await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Infrastructure);
    assert!(failure.message.contains("s3a://trained/models/s3no/"), "{}", failure.message);
    assert_eq!(place.story("s3no"), ["1 accepted", "1 failed"]);
}
