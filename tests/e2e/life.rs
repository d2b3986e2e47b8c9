//! What becomes of jobs when nothing outside them goes wrong.

use std::time::Duration;

use serde_json::{Value, json};
use spark_runtime_protocol::client::Submission;
use spark_runtime_protocol::event::{EventKind, FailureClass, JobResult, JobStatus, TraceContext};
use spark_runtime_protocol::{Event, JobId};
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::jobs::{job, text};
use spark_runtime_tests::program::Worker;

const DELAYS: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(400)];
const RETRY: &str = "retry.delays=200ms,400ms";

#[tokio::test]
async fn a_job_goes_through_its_events_in_order_to_exactly_one_end() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let mut document = job("j1", &["write out.json {\"a\":1}", "complete"]);
    document["outputData"] = serde_json::from_str(
        r#"[{"name": "o", "assetType": "FILE", "filename": "out.json", "odd": [1.10]}]"#,
    )
    .unwrap();
    let mut submission = Submission::new(JobId::new("ignored").unwrap(), document.to_string().into_bytes());
    submission.correlation_id = Some("mine".to_owned());
    submission.trace = TraceContext { traceparent: Some("00-a-b-01".into()), tracestate: Some("x=y".into()) };
    place.client.publish(&submission).await.unwrap();
    let end = place.end_of("j1").await;
    assert_eq!(place.story("j1"), ["1 accepted", "1 staged", "1 submitted", "1 running", "1 completed"]);
    assert_eq!(end.id, "j1/1/completed");
    assert_eq!(end.data.job_result, Some(JobResult::Success));
    assert_eq!(
        end.data.output_data.unwrap().to_string(),
        r#"[{"name":"o","assetType":"FILE","filename":"out.json","odd":[1.10],"fileContent":"eyJhIjoxfQ==","fileSize":7}]"#
    );
    assert!(end.data.resources.unwrap().peak_memory_bytes > 0);
    for event in &place.seen {
        assert_eq!(event.data.correlation_id.as_deref(), Some("mine"));
        assert_eq!(
            (event.traceparent.as_deref(), event.tracestate.as_deref()),
            (Some("00-a-b-01"), Some("x=y"))
        );
        assert_eq!(event.source, event.data.worker);
    }
    let statuses: Vec<_> = place.seen.iter().map(|event| event.data.job_status).collect();
    assert_eq!(statuses[3..], [JobStatus::Running, JobStatus::Complete]);
    place.queue_has("spark.jobs", 0).await;
    worker.nothing_left().await;
}

#[tokio::test]
async fn what_the_metrics_function_gave_comes_back_in_the_event() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let mut document = job("m", &[r#"results {"auc": 0.10, "n": [1, null]}"#]);
    document["jobType"] = json!("MODEL_BATCH_TEST_JOB");
    document["model"]["storedModel"]["modelAssets"][0]["metricsFunction"] = json!("score");
    place.publish("m", document.to_string()).await;
    let end = place.end_of("m").await;
    assert_eq!(end.data.results.unwrap().to_string(), r#"{"auc":0.10,"n":[1,null]}"#);
}

#[tokio::test]
async fn results_that_no_event_takes_are_kept_and_the_event_says_where() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let large = format!("results {{\"x\": \"{}\"}}", "a".repeat(5 << 20));
    place.publish("big", text("big", &[&large])).await;
    let end = place.end_of("big").await;
    assert_eq!((end.kind(), end.data.job_result), (Some(EventKind::Completed), Some(JobResult::Failure)));
    assert_eq!(end.data.results, None);
    let message = end.data.message.unwrap();
    let file = message.rsplit(':').next().unwrap();
    assert_eq!(std::fs::metadata(file).unwrap().len(), (5 << 20) + 8, "{message}");
}

#[tokio::test]
async fn what_the_model_raises_ends_the_job_at_once_and_names_the_models_line() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    place.publish("f", text("f", &["print-error on the way", "fail ValueError no such column"])).await;
    let end = place.end_of("f").await;
    let failure = end.data.failure.unwrap();
    assert_eq!((failure.class, end.data.attempt), (FailureClass::Model, 1));
    assert_eq!(failure.message, "the model raised ValueError: no such column");
    let frame = failure.exception.unwrap().frame.unwrap();
    assert_eq!((frame.file.as_str(), frame.line), ("model_source_code.py", 2));
    assert_eq!(failure.log_tail.as_deref(), Some("on the way\n"));
    let log = failure.log.unwrap();
    assert_eq!(std::fs::read_to_string(log.split_once(':').unwrap().1).unwrap(), "on the way\n");
    place.queue_has("spark.dead", 0).await;
}

#[tokio::test]
async fn an_attempt_that_may_fare_better_is_tried_again_and_then_lies_in_the_dead_queue() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=3"]);
    place.publish("r", text("r", &["crash-before-hello"])).await;
    let end = place.end_of("r").await;
    assert_eq!(end.data.failure.unwrap().class, FailureClass::Submit);
    let retries: Vec<_> =
        place.seen.iter().filter(|event| event.kind() == Some(EventKind::Retrying)).collect();
    let delays: Vec<_> = retries
        .iter()
        .map(|event| (event.data.attempt, event.data.next_attempt, event.data.delay_ms))
        .collect();
    assert_eq!(delays, [(1, Some(2), Some(200)), (2, Some(3), Some(400))]);
    assert_eq!(end.data.attempt, 3);
    place.queue_has("spark.dead", 1).await;
    place.queue_has("spark.jobs", 0).await;
}

#[tokio::test]
async fn a_second_attempt_that_fares_better_is_the_one_that_counts() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let counter = worker.home.path().join("counter");
    place.publish("s", text("s", &[&format!("times 1 {} exit 3", counter.display()), "complete"])).await;
    let end = place.end_of("s").await;
    assert_eq!(
        end.kind(),
        Some(EventKind::Failed),
        "an exit without a report after hello is the model's: {end:?}"
    );
    let counter = worker.home.path().join("counter2");
    place.publish("s2", text("s2", &[&format!("times 1 {} signal 9", counter.display()), "complete"])).await;
    assert_eq!(place.end_of("s2").await.data.failure.unwrap().class, FailureClass::Killed);
}

#[tokio::test]
async fn no_more_jobs_run_at_once_than_the_settings_say() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "worker.max_running=2"]);
    let journal = worker.home.path().join("journal");
    for number in 0..8 {
        let id = format!("b{number}");
        place.publish(&id, text(&id, &[&format!("journal {}", journal.display()), "sleep 0.2"])).await;
    }
    for number in 0..8 {
        assert_eq!(place.end_of(&format!("b{number}")).await.kind(), Some(EventKind::Completed));
    }
    let most = most_at_once(&std::fs::read_to_string(&journal).unwrap());
    assert_eq!(most, 2, "two slots, all of them used");
}

#[tokio::test]
async fn no_more_spark_submits_start_at_once_than_the_settings_say() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "worker.max_running=4", "worker.max_submits=1"]);
    let journal = worker.home.path().join("journal");
    // The journal spans the time before the driver says hello.
    for number in 0..4 {
        let id = format!("n{number}");
        let directives =
            [&format!("journal {}", journal.display()), "sleep 0.2", "hello", "sleep 0.5", "complete"];
        place.publish(&id, text(&id, &directives)).await;
    }
    let mut staged = 0;
    while staged < 4 {
        // While one starts, the others are staged and wait.
        let event = place.events.next().await.unwrap().unwrap();
        staged += usize::from(event.kind() == Some(EventKind::Staged));
        place.seen.push(event);
    }
    for number in 0..4 {
        assert_eq!(place.end_of(&format!("n{number}")).await.kind(), Some(EventKind::Completed));
    }
    // Between one submission and the next stands the first one's word that its driver is there.
    let of = |kind: EventKind| -> Vec<Event> {
        place.seen.iter().filter(|event| event.kind() == Some(kind)).cloned().collect()
    };
    let (submitted, running) = (of(EventKind::Submitted), of(EventKind::Running));
    for pair in submitted.windows(2) {
        let started =
            running.iter().any(|event| event.subject == pair[0].subject && event.time <= pair[1].time);
        assert!(started, "{} was still starting when {} was submitted", pair[0].subject, pair[1].subject);
    }
}

/// The most runs that were under way at one time, by the lines of a journal.
fn most_at_once(journal: &str) -> usize {
    let mut marks: Vec<(u64, i32)> = journal
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|line| {
            let step = if line["what"] != "end" { 1 } else { -1 };
            Some((line["boottime_ns"].as_u64()?, step))
        })
        .collect();
    marks.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, step) in marks {
        now += step;
        most = most.max(now);
    }
    usize::try_from(most).unwrap_or(0)
}

#[tokio::test]
async fn nobody_needs_to_listen() {
    let place = Vhost::ready(&DELAYS).await;
    let vhost = place.vhost;
    drop((place.events, place.client));
    let worker = Worker::start(&vhost.uri(), &[RETRY]);
    let client = vhost.client().await;
    client
        .publish(&Submission::new(JobId::new("q").unwrap(), text("q", &["complete"]).into_bytes()))
        .await
        .unwrap();
    worker.logged("completed").await;
    spark_runtime_tests::until("an empty queue", async || (vhost.messages("spark.jobs") == 0).then_some(()))
        .await;
}

#[tokio::test]
async fn every_event_is_what_its_schema_says() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=2"]);
    place.publish("v1", text("v1", &["results {\"a\": [1, {\"b\": null}]}"])).await;
    place.publish("v2", text("v2", &["fail ValueError x"])).await;
    place.publish("v3", text("v3", &["crash-before-hello"])).await;
    place.publish("v4", "{}").await;
    for id in ["v1", "v2", "v3", "v4"] {
        place.end_of(id).await;
    }
    let schema: Value = serde_json::from_str(spark_runtime_protocol::schema::event()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for event in &place.seen {
        let event = serde_json::to_value(event).unwrap();
        let faults: Vec<_> = validator.iter_errors(&event).map(|error| error.to_string()).collect();
        assert!(faults.is_empty(), "{event}: {faults:?}");
    }
    assert!(place.seen.len() > 15, "{:?}", place.seen.len());
    drop(worker);
}
