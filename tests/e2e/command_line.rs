//! The verbs that talk to the broker.

use std::time::Duration;

use serde_json::Value;
use spark_runtime_protocol::event::EventKind;
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::{self, Called, Worker};

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";

async fn call(uri: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Called { code, out, err } = program::call(uri, &[RETRY, "retry.max_attempts=1"], arguments).await;
    (code, out, err)
}

fn file(folder: &tempfile::TempDir, name: &str, contents: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn submit_waits_for_the_end_and_its_exit_code_tells_it() {
    let place = Vhost::ready(&DELAYS).await;
    let uri = place.vhost.uri();
    let worker = Worker::start(&uri, &[RETRY, "retry.max_attempts=1"]);
    let folder = tempfile::tempdir().unwrap();
    let good = file(&folder, "good.json", &text("w1", &["results {\"auc\": 0.5}"]));
    let (code, out, err) = call(&uri, &["submit", &good, "--wait"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("completed") && out.contains("\"auc\": 0.5"), "{out}");
    let bad = file(&folder, "bad.json", &text("w2", &["fail ValueError no such column"]));
    let (code, out, err) = call(&uri, &["submit", &bad, "--wait"]).await;
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(out.contains("no such column") && out.contains("model_source_code.py:1"), "{out}");
    let invalid = file(&folder, "invalid.json", "{\"id\":\"w3\"}");
    let (code, out, err) = call(&uri, &["submit", &invalid, "--wait"]).await;
    assert_eq!(code, Some(2), "{out}{err}");
    let (code, out, err) = call(&uri, &["submit", &invalid, "--wait", "--unchecked"]).await;
    assert_eq!(code, Some(2), "{out}{err}");
    let (code, out, _) = call(&uri, &["submit", &good, "--wait", "--json"]).await;
    assert_eq!(code, Some(0));
    let events: Vec<Value> = out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(events.last().unwrap()["type"], "spark-runtime.job.completed.v1");
    drop(worker);
}

#[tokio::test]
async fn dead_jobs_are_listed_shown_replayed_and_dropped() {
    let mut place = Vhost::ready(&DELAYS).await;
    let uri = place.vhost.uri();
    let folder = tempfile::tempdir().unwrap();
    let counter = folder.path().join("counter");
    {
        let _worker = Worker::start(&uri, &[RETRY, "retry.max_attempts=1"]);
        place
            .publish("d1", text("d1", &[&format!("times 1 {} signal 9", counter.display()), "complete"]))
            .await;
        place.publish("d2", "no job").await;
        place.end_of("d1").await;
        place.end_of("d2").await;
    }
    place.queue_has("spark.dead", 2).await;
    for _ in 0..2 {
        // Looking takes nothing away.
        let (code, out, err) = call(&uri, &["dead", "list"]).await;
        assert_eq!(code, Some(0), "{out}{err}");
        assert!(
            out.contains("d1") && out.contains("killed") && out.contains("d2") && out.contains("invalid"),
            "{out}"
        );
    }
    let (code, out, _) = call(&uri, &["dead", "show", "d1"]).await;
    assert_eq!(code, Some(0));
    assert!(out.contains("MODEL_BATCH_JOB"), "{out}");
    assert_eq!(call(&uri, &["dead", "show", "nobody"]).await.0, Some(66));
    assert_eq!(call(&uri, &["dead", "drop", "d2"]).await.0, Some(0));
    let (code, out, err) = call(&uri, &["dead", "replay", "d1"]).await;
    assert_eq!(code, Some(0), "{out}{err}");
    place.queue_has("spark.dead", 0).await;
    place.seen.clear();
    let _worker = Worker::start(&uri, &[RETRY]);
    let end = place.end_of("d1").await;
    // It goes on counting, so that no two events of the job have one id.
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
}

#[tokio::test]
async fn watch_follows_a_job_to_its_end() {
    let place = Vhost::ready(&DELAYS).await;
    let uri = place.vhost.uri();
    let _worker = Worker::start(&uri, &[RETRY]);
    let watching = tokio::spawn({
        let uri = uri.clone();
        async move { call(&uri, &["watch", "w", "--json"]).await }
    });
    // The watcher is there when its queue is.
    spark_runtime_tests::until("the watcher's queue", async || {
        let queues = place.vhost.http("GET", "/api/queues/{}", None);
        let exclusive = queues
            .as_array()?
            .iter()
            .filter(|queue| queue["name"].as_str().is_some_and(|n| n.starts_with("amq.gen")));
        (exclusive.count() == 2).then_some(())
    })
    .await;
    place.publish("other", text("other", &["complete"])).await;
    place.publish("w", text("w", &["fail ValueError x"])).await;
    let (code, out, err) = watching.await.unwrap();
    assert_eq!(code, Some(1), "{out}{err}");
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().all(|event| event["subject"] == "w"));
    assert_eq!(events.last().unwrap()["data"]["failure"]["class"], "model");
}

#[tokio::test]
async fn submit_without_a_topology_says_what_to_do() {
    let vhost = spark_runtime_tests::broker::Broker::shared().vhost();
    let folder = tempfile::tempdir().unwrap();
    let job = file(&folder, "j.json", &text("t", &["complete"]));
    let (code, _, err) = call(&vhost.uri(), &["submit", &job]).await;
    assert_eq!(code, Some(76), "{err}");
    assert!(err.contains("topology declare"), "{err}");
    let (code, _, err) = call("amqp://guest:guest@127.0.0.1:1/%2f", &["submit", &job]).await;
    assert_eq!(code, Some(69), "{err}");
}
