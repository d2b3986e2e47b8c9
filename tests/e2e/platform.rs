//! Where a job's sources come from, and which Python it gets.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use spark_runtime_protocol::event::{EventKind, FailureClass};
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::jobs::{assets, job};
use spark_runtime_tests::program::{Worker, call};
use spark_runtime_tests::repository::Repository;

const DELAYS: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(400)];
const RETRY: &str = "retry.delays=200ms,400ms";

/// A job whose primary source is in a repository.
fn in_git(id: &str, info: Value) -> Value {
    let mut document = job(id, &[]);
    let primary = &mut assets(&mut document)[0];
    primary.as_object_mut().unwrap().shift_remove("sourceCode");
    primary["repositoryInfo"] = info;
    document
}

fn model(directives: &[&str]) -> String {
    let lines: String = directives.iter().map(|directive| format!("# fake: {directive}\n")).collect();
    format!("{lines}def score(inputs, outputs, attachments):\n    pass\n")
}

fn requires(document: &mut Value, text: &str) {
    assets(document).push(json!({
        "name": "requirements.txt", "assetType": "SOURCE_CODE", "assetRole": "REQUIRED_LIBRARIES", "sourceCode": text}));
}

#[tokio::test]
async fn a_model_in_git_is_fetched_and_the_events_say_which_commit_was_taken() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let repository = Repository::new();
    let first = repository.commit(&[("models/model.py", &model(&["results {\"version\": 1}"]))]);
    let mut info = repository.info("main");
    info["repositoryPath"] = json!("models");
    let metrics = |id: &str, info: &Value| {
        let mut document = in_git(id, info.clone());
        document["jobType"] = json!("MODEL_BATCH_TEST_JOB");
        assets(&mut document)[0]["metricsFunction"] = json!("score");
        document.to_string()
    };
    place.publish("g1", metrics("g1", &info)).await;
    let end = place.end_of("g1").await;
    assert_eq!(end.data.results, Some(json!({"version": 1})));
    let second = repository.commit(&[("models/model.py", &model(&["results {\"version\": 2}"]))]);
    place.publish("g2", metrics("g2", &info)).await;
    assert_eq!(place.end_of("g2").await.data.results, Some(json!({"version": 2})));
    info["commit"] = json!(first);
    place.publish("g3", metrics("g3", &info)).await;
    assert_eq!(place.end_of("g3").await.data.results, Some(json!({"version": 1})));
    for (id, commit) in [("g1", &first), ("g2", &second), ("g3", &first)] {
        let told =
            place.seen.iter().filter(|event| event.subject.as_str() == id && event.data.sources.is_some());
        let kinds: Vec<_> = told
            .map(|event| {
                let source = &event.data.sources.as_ref().unwrap()[0];
                assert_eq!((&source.commit, source.path.as_str()), (commit, "models/model.py"));
                assert_eq!(source.asset, "/model/storedModel/modelAssets/0");
                event.kind().unwrap()
            })
            .collect();
        assert_eq!(kinds, [EventKind::Accepted, EventKind::Completed], "{id}");
    }
}

#[tokio::test]
async fn a_repository_out_of_reach_is_tried_again_and_a_branch_that_is_not_there_is_not() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=3"]);
    let repository = Repository::new();
    repository.commit(&[("model.py", &model(&[]))]);
    place.publish("b", in_git("b", repository.info("none")).to_string()).await;
    let end = place.end_of("b").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Rejected), 1));
    let faults = end.data.faults.unwrap();
    assert_eq!(faults[0].pointer, "/model/storedModel/modelAssets/0");
    assert!(faults[0].message.ends_with("has no branch none"), "{faults:?}");

    let gone = repository.path();
    let moved = gone.with_extension("moved");
    std::fs::rename(&gone, &moved).unwrap();
    place.publish("u", in_git("u", repository.info("main")).to_string()).await;
    let retrying = place.heard("u", &[EventKind::Retrying]).await;
    let failure = retrying.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Infrastructure);
    assert!(failure.message.contains("cannot be reached"), "{}", failure.message);
    std::fs::rename(&moved, &gone).unwrap();
    let end = place.end_of("u").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}", end.data.failure);
    assert!(end.data.attempt > 1);
}

#[tokio::test]
async fn credentials_in_the_address_of_a_repository_are_refused_and_repeated_nowhere() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let info = json!({"repositoryType": "GIT_REPO", "repositoryRemote": "https://user:s3cret@git.example.com/x.git"});
    place.publish("c", in_git("c", info).to_string()).await;
    let end = place.end_of("c").await;
    assert_eq!(end.kind(), Some(EventKind::Rejected));
    assert!(!serde_json::to_string(&end).unwrap().contains("s3cret"));
    assert!(!worker.log().contains("s3cret"));
}

#[tokio::test]
async fn run_and_validate_fetch_as_a_worker_does() {
    let repository = Repository::new();
    repository.commit(&[("model.py", &model(&[])), ("broken.py", "def score(\n")]);
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, document: &Value| {
        let path = place.path().join(name);
        std::fs::write(&path, document.to_string()).unwrap();
        path.display().to_string()
    };
    let good = file("good.json", &in_git("j", repository.info("main")));
    for verb in ["run", "validate"] {
        let called = call("amqp://nowhere", &[], &[verb, &good]).await;
        assert_eq!(called.code, Some(0), "{called:?}");
    }
    let mut broken = in_git("j", repository.info("main"));
    assets(&mut broken)[0]["name"] = json!("broken.py");
    let broken = file("broken.json", &broken);
    let called = call("amqp://nowhere", &[], &["validate", &broken]).await;
    assert_eq!(called.code, Some(2), "{called:?}");
    assert!(called.out.contains("is no Python"), "{called:?}");
    let missing =
        file("missing.json", &in_git("j", json!({"repositoryType": "GIT_REPO", "url": "/nowhere/x.git"})));
    assert_eq!(call("amqp://nowhere", &[], &["validate", &missing]).await.code, Some(66));
}

/// A file of runtimes with one whose Python has these packages, each as `name==version`; and that Python.
fn runtimes(folder: &Path, name: &str, packages: &[&str]) -> (PathBuf, PathBuf) {
    let site = folder.join(name);
    for package in packages {
        let (package, version) = package.split_once("==").unwrap();
        let info = site.join(format!("{package}-{version}.dist-info"));
        std::fs::create_dir_all(&info).unwrap();
        let text = format!("Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n");
        std::fs::write(info.join("METADATA"), text).unwrap();
    }
    let python = folder.join(format!("{name}-python"));
    std::fs::write(&python, format!("#!/bin/sh\nPYTHONPATH='{}' exec python3 \"$@\"\n", site.display()))
        .unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, format!("[[runtime]]\nname = '{name}'\npython = '{}'\n", python.display()))
        .unwrap();
    (file, python)
}

#[tokio::test]
async fn a_job_runs_with_the_python_that_has_what_it_requires_and_the_events_name_it() {
    let mut place = Vhost::ready(&DELAYS).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, python) = runtimes(folder.path(), "special", &["zz-special==1.2"]);
    let setting = format!("runtimes.file={}", file.display());
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY, &setting]);
    let record = folder.path().join("record");
    let mut document = job("r", &[&format!("record {}", record.display())]);
    requires(&mut document, "# what it needs\nzz_special >= 1, < 2\n");
    place.publish("r", document.to_string()).await;
    let end = place.end_of("r").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}", end.data.faults);
    let recorded: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let python = python.display().to_string();
    assert_eq!(recorded["environment"]["PYSPARK_PYTHON"], json!(python));
    assert_eq!(recorded["environment"]["PYSPARK_DRIVER_PYTHON"], json!(python));
    let arguments: Vec<_> =
        recorded["arguments"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(arguments.contains(&format!("spark.pyspark.python={python}").as_str()), "{arguments:?}");
    let accepted = place.seen.iter().find(|event| event.kind() == Some(EventKind::Accepted)).unwrap();
    for event in [accepted, &end] {
        let runtime = event.data.runtime.as_ref().unwrap();
        assert_eq!(runtime.name, "special");
        assert!(runtime.python.as_ref().unwrap().starts_with("3."));
    }
    place.publish("d", job("d", &[]).to_string()).await;
    assert_eq!(place.end_of("d").await.data.runtime.unwrap().name, "default");
}

#[tokio::test]
async fn a_job_that_no_runtime_fits_is_rejected_with_each_requirement_and_why() {
    let mut place = Vhost::ready(&DELAYS).await;
    let folder = tempfile::tempdir().unwrap();
    let (file, _) = runtimes(folder.path(), "special", &["zz-special==1.2"]);
    let setting = format!("runtimes.file={}", file.display());
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY, &setting]);
    let mut document = job("n", &[]);
    requires(&mut document, "zz-special>=2\nzz-none[x]\n");
    place.publish("n", document.to_string()).await;
    let end = place.end_of("n").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Rejected), 1));
    let faults = end.data.faults.unwrap();
    let messages: Vec<_> = faults.iter().map(|fault| fault.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "line 1: zz-special>=2 is met by no runtime here: default has none, special has 1.2",
            "line 2: zz-none[x] is met by no runtime here: default has none, special has none"
        ]
    );
    assert!(faults.iter().all(|fault| fault.pointer == "/model/storedModel/modelAssets/1"));
    let mut document = job("o", &[]);
    requires(&mut document, "a\n-r other.txt\n--index-url https://x\nb @ https://host/b.whl\n");
    place.publish("o", document.to_string()).await;
    assert_eq!(place.end_of("o").await.data.faults.unwrap().len(), 3);
}

#[tokio::test]
async fn a_job_that_no_runtime_here_fits_is_given_back_until_a_worker_that_has_one_takes_it() {
    let mut place = Vhost::ready(&DELAYS).await;
    let folder = tempfile::tempdir().unwrap();
    let settings = [RETRY, "runtimes.others=1h", "retry.max_attempts=1", "worker.name=without"];
    let _without = Worker::start(&place.vhost.uri(), &settings);
    let mut document = job("w", &[]);
    requires(&mut document, "zz-special\n");
    place.publish("w", document.to_string()).await;
    // More often than it may fail.
    let mut offers = 0;
    while offers < 2 {
        let event = place.events.next().await.unwrap().unwrap();
        if event.kind() == Some(EventKind::Retrying) {
            offers += 1;
            assert_eq!((event.data.attempt, &event.data.failure), (offers, &None));
            let message = event.data.message.as_ref().unwrap();
            assert!(message.starts_with("the job is offered to other workers: "), "{message}");
        }
        place.seen.push(event);
    }
    let (file, _) = runtimes(folder.path(), "special", &["zz-special==1.2"]);
    let setting = format!("runtimes.file={}", file.display());
    let _with =
        Worker::start(&place.vhost.uri(), &[RETRY, &setting, "runtimes.others=1h", "worker.name=with"]);
    let end = place.end_of("w").await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    assert!(end.data.worker.starts_with("with-"), "{}", end.data.worker);
    assert_eq!(end.data.runtime.unwrap().name, "special");
    place.queue_has("spark.jobs", 0).await;
}

#[tokio::test]
async fn a_job_that_no_worker_has_a_runtime_for_is_rejected_once_it_was_offered_for_long_enough() {
    let mut place = Vhost::ready(&DELAYS).await;
    let settings = [RETRY, "runtimes.others=1s", "retry.max_attempts=1"];
    let _worker = Worker::start(&place.vhost.uri(), &settings);
    let mut document = job("x", &[]);
    requires(&mut document, "zz-special\n");
    place.publish("x", document.to_string()).await;
    let end = place.end_of("x").await;
    assert_eq!(end.kind(), Some(EventKind::Rejected));
    let faults = end.data.faults.unwrap();
    assert_eq!(faults[0].message, "line 1: zz-special is met by no runtime here: default has none");
    assert_eq!(faults[1].message, "no worker had a runtime for it within 1 s");
    let offered: u64 = place.seen.iter().filter_map(|event| event.data.delay_ms).sum();
    assert!((1000..2000).contains(&offered), "{offered}");
    place.queue_has("spark.dead", 1).await;
    place.queue_has("spark.jobs", 0).await;
}
