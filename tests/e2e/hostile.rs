//! Messages that are no jobs: each gets a clear answer, and nothing is lost.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde_json::{Value, json};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::event::{EventKind, FailureClass, JobStatus};
use spark_runtime_tests::broker::{Ready, Vhost};
use spark_runtime_tests::jobs::{assets, job, text};
use spark_runtime_tests::program::Worker;
use spark_runtime_tests::project;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";

/// Publishes as a stranger does, with nothing but an AMQP client.
async fn channel(place: &Ready) -> Channel {
    let endpoint = Endpoint::new(&place.vhost.uri(), Duration::from_secs(10)).unwrap();
    let connection = Box::leak(Box::new(endpoint.connect("stranger").await.unwrap()));
    connection.create_channel().await.unwrap()
}

async fn publish(channel: &Channel, body: &[u8], properties: BasicProperties) {
    let options = BasicPublishOptions::default();
    channel.basic_publish("spark.jobs".into(), "spark.jobs".into(), options, body, properties).await.unwrap();
}

#[tokio::test]
async fn every_message_that_is_no_job_is_rejected_with_all_its_faults_and_kept() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "job.max_size=1MiB"]);
    let channel = channel(&place).await;
    let mut broken = job("ignored", &[]);
    broken["id"] = Value::Null;
    broken["jobType"] = json!("NOPE");
    broken["outputData"] = json!(7);
    assets(&mut broken)
        .push(json!({"name": "x", "assetType": "FILE", "filename": "../x", "fileContent": "%"}));
    let path = |name: &str| {
        let mut document = job("ignored", &[]);
        document["id"] = Value::Null;
        assets(&mut document)
            .push(json!({"name": "x", "assetType": "FILE", "filename": name, "fileContent": ""}));
        document.to_string().into_bytes()
    };
    let source = |source: &str| {
        let mut document = job("ignored", &[]);
        document["id"] = Value::Null;
        assets(&mut document)[0]["sourceCode"] = json!(source);
        document.to_string().into_bytes()
    };
    let flag = |name: &str, value: &str| {
        let mut document = job("ignored", &[]);
        document["id"] = Value::Null;
        document["jobParameters"] = json!({name: value});
        document.to_string().into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("not-json", b"hello".to_vec(), "is not JSON"),
        ("empty", Vec::new(), "is not JSON"),
        ("not-utf8", b"{\"a\":\"\xff\"}".to_vec(), "is not UTF-8"),
        ("twice", br#"{"id":"twice","id":"twice"}"#.to_vec(), "more than once"),
        ("deep", "[".repeat(200).into_bytes(), "nested deeper"),
        ("large", vec![b' '; 2 << 20], "job.max_size"),
        ("surrogate", br#"{"x":"\ud800"}"#.to_vec(), "is not JSON"),
        ("nan", br#"{"x":NaN}"#.to_vec(), "is not JSON"),
        ("many", broken.to_string().into_bytes(), "4 faults"),
        ("parent", path("../x"), "step"),
        ("hidden-parent", path("a/../../b"), "step"),
        ("absolute", path("/etc/x"), "absolute"),
        ("nul", path("a\0b"), "character"),
        ("newline", path("a\nb"), "character"),
        ("device", path("nul.txt"), "device"),
        ("staged", path("model_job_metadata.py"), "stand in front"),
        ("pyspark", path("pyspark.py"), "stand in front"),
        ("sitecustomize", path("sitecustomize.py"), "stand in front"),
        ("syntax", source("def score(a, b, c:\n  pass"), "line 1"),
        ("in-a-string", source("T = '''\ndef score(a, b, c): pass\n'''\n"), "does not have"),
        ("two-parameters", source("def score(a, b): pass"), "takes 2 arguments"),
        ("no-records", source("def score(record): yield record"), "scores the records of its inputs"),
        ("class-flag", flag("--class", "x"), "--class"),
        ("mode-flag", flag("--deploy-mode", "cluster"), "which is no cluster"),
        ("odd-flag", flag("--executor-memroy", "1g"), "did you mean --executor-memory"),
    ];
    for (id, body, _) in &cases {
        publish(&channel, body, BasicProperties::default().with_message_id((*id).into())).await;
    }
    for (id, _, expected) in &cases {
        let end = place.end_of(id).await;
        assert_eq!(end.kind(), Some(EventKind::Rejected), "{id}");
        assert_eq!(end.data.job_status, JobStatus::Error);
        let said = format!("{} {:?}", end.data.message.unwrap_or_default(), end.data.faults);
        assert!(said.contains(expected), "{id}: {said}");
    }
    place.queue_has("spark.dead", cases.len() as u64).await;
    place.queue_has("spark.jobs", 0).await;
    // After all that the worker works.
    place.publish("good", text("good", &["complete"])).await;
    assert_eq!(place.end_of("good").await.kind(), Some(EventKind::Completed));
    drop(worker);
}

#[tokio::test]
async fn a_message_without_any_id_is_rejected_under_one_that_its_body_gives() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let channel = channel(&place).await;
    let mut document = job("x", &[]);
    document["id"] = Value::Null;
    let body = document.to_string();
    publish(&channel, body.as_bytes(), BasicProperties::default()).await;
    publish(&channel, body.as_bytes(), BasicProperties::default().with_message_id("no/id at all".into()))
        .await;
    let id = spark_runtime_protocol::JobId::stand_in(body.as_bytes());
    let end = place.end_of(id.as_str()).await;
    assert_eq!(end.data.faults.unwrap()[0].pointer, "/id");
    // The same body is the same job.
    place.queue_has("spark.jobs", 0).await;
    place.queue_has("spark.dead", 1).await;
}

#[tokio::test]
async fn a_name_too_long_for_the_file_system_fails_at_staging_and_is_not_tried_again() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let mut document = job("long", &["complete"]);
    assets(&mut document)
        .push(json!({"name": "x", "assetType": "FILE", "filename": "n".repeat(300), "fileContent": ""}));
    place.publish("long", document.to_string()).await;
    let end = place.end_of("long").await;
    let failure = end.data.failure.unwrap();
    assert_eq!((failure.class, end.data.attempt), (FailureClass::Staging, 1));
    assert!(failure.message.contains("300 bytes"), "{}", failure.message);
}

#[tokio::test]
async fn headers_of_wrong_types_change_nothing() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let channel = channel(&place).await;
    for (number, value) in [AMQPValue::LongInt(-1), AMQPValue::LongString("\u{0}x".into()), AMQPValue::Void]
        .into_iter()
        .enumerate()
    {
        let id = format!("h{number}");
        let mut headers = FieldTable::default();
        for name in ["x-attempt", "x-returns", "traceparent"] {
            headers.insert(name.into(), value.clone());
        }
        publish(
            &channel,
            text(&id, &["complete"]).as_bytes(),
            BasicProperties::default().with_headers(headers),
        )
        .await;
        let end = place.end_of(&id).await;
        assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1));
    }
}

/// Publishes with properties that no client library writes.
async fn publish_raw(place: &Ready, kind: &'static str, body: String) {
    let python = std::env::var("SPARK_RUNTIME_TEST_PYTHON").unwrap_or_else(|_| panic!("run tests/run"));
    let uri = place.vhost.uri();
    let published = tokio::task::spawn_blocking(move || {
        let mut publisher = Command::new(python)
            .arg(project().join("tests/e2e/hostile_publish.py"))
            .arg(kind)
            .env("AMQP_URI", uri)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        publisher.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        publisher.wait().unwrap()
    });
    assert!(published.await.unwrap().success(), "{kind}");
}

/// The broker takes and hands on what the client library cannot read, and copies have to fit into a frame.
#[tokio::test]
async fn properties_that_are_no_text_too_deep_or_too_large_end_no_worker_and_their_jobs_are_answered() {
    let mut place = Vhost::ready(&DELAYS).await;
    publish_raw(&place, "large-and-expired", text("expired", &["complete"])).await;
    place.queue_has("spark.expelled", 1).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "worker.max_running=2"]);
    let pid = worker.pid();
    let expired = place.end_of("expired").await;
    assert_eq!(expired.data.failure.unwrap().class, FailureClass::Timeout);
    for kind in ["no-text", "deep", "large"] {
        publish_raw(&place, kind, text(kind, &["complete"])).await;
        let faulty = format!("{kind}-faulty");
        publish_raw(&place, kind, json!({"id": faulty, "jobType": "NOPE"}).to_string()).await;
        assert_eq!(place.end_of(kind).await.kind(), Some(EventKind::Completed), "{kind}");
        assert_eq!(place.end_of(&faulty).await.kind(), Some(EventKind::Rejected), "{kind}");
    }
    place.publish("innocent", text("innocent", &["complete"])).await;
    assert_eq!(place.end_of("innocent").await.data.attempt, 1);
    place.queue_has("spark.jobs", 0).await;
    place.queue_has("spark.expelled", 0).await;
    // The three that are faulty, and the one that has expired.
    place.queue_has("spark.dead", 4).await;
    assert_eq!(worker.pid(), pid);
    let log = worker.log();
    for broken in ["lost its channel", "overflowed", "messages are published again"] {
        assert!(!log.contains(broken), "{log}");
    }
}

#[tokio::test]
async fn nothing_of_the_workers_own_settings_reaches_a_model() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "spark.environment.OPERATOR_SAYS=hello"]);
    let record = worker.home.path().join("record");
    let mut document = job("env", &[&format!("record {}", record.display()), "complete"]);
    document["targetEngine"] =
        json!({"sparkConf": {"spark.my.password": "s3cr3t-p4ss", "spark.a": "$(touch x); b"}});
    place.publish("env", document.to_string()).await;
    assert_eq!(place.end_of("env").await.kind(), Some(EventKind::Completed));
    let record = std::fs::read_to_string(record).unwrap();
    assert!(record.contains("OPERATOR_SAYS"));
    let uri = place.vhost.uri();
    let password = uri.split([':', '@']).nth(2).unwrap();
    assert!(!record.contains("SPARK_RUNTIME__") && !record.contains(password), "{record}");
    assert!(!record.contains("s3cr3t-p4ss"), "a secret stands in the arguments: {record}");
    assert!(record.contains("spark.a=$(touch x); b"), "{record}");
    for event in &place.seen {
        let event = serde_json::to_string(event).unwrap();
        assert!(!event.contains("s3cr3t-p4ss") && !event.contains(password), "{event}");
    }
    assert!(!worker.log().contains(password) && !worker.log().contains("s3cr3t-p4ss"));
}
