//! A broker that is away, goes away, refuses, differs or expires: workers and jobs through all that.

use std::time::Duration;

use serde_json::json;
use spark_runtime_protocol::JobId;
use spark_runtime_protocol::client::Submission;
use spark_runtime_protocol::event::{EventKind, FailureClass};
use spark_runtime_tests::broker::{Broker, RELEASE, Vhost};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::{Worker, spark_runtime};
use spark_runtime_tests::wire::Wire;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";

#[tokio::test]
async fn a_worker_waits_for_a_broker_that_is_away_at_its_start() {
    let mut place = Vhost::ready(&DELAYS).await;
    let wire = Wire::to(place.vhost.broker().port()).await;
    wire.cut();
    let worker = Worker::start(&place.vhost.uri_at(wire.port), &[RETRY]);
    worker.logged("there is no connection to the broker").await;
    wire.mend();
    place.publish("late", text("late", &["complete"])).await;
    assert_eq!(place.end_of("late").await.kind(), Some(EventKind::Completed));
}

#[tokio::test]
async fn an_end_that_could_not_be_told_is_told_once_the_broker_is_back() {
    let mut place = Vhost::ready(&DELAYS).await;
    let wire = Wire::to(place.vhost.broker().port()).await;
    let worker = Worker::start(&place.vhost.uri_at(wire.port), &[RETRY]);
    for round in 0..3 {
        let id = format!("c{round}");
        place.publish(&id, text(&id, &["sleep 0.3"])).await;
        place.heard(&id, &[EventKind::Running]).await;
        wire.cut();
        wire.mend();
        assert_eq!(place.end_of(&id).await.kind(), Some(EventKind::Completed));
    }
    place.queue_has("spark.jobs", 0).await;
    drop(worker);
}

#[tokio::test]
async fn an_expired_job_gets_its_end_told() {
    let mut place = Vhost::ready(&DELAYS).await;
    let mut submission = Submission::new(JobId::new("old").unwrap(), text("old", &["complete"]).into_bytes());
    submission.expiration = Some(Duration::from_millis(1));
    place.client.publish(&submission).await.unwrap();
    place.queue_has("spark.expelled", 1).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let failure = place.end_of("old").await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Timeout);
    assert!(failure.message.starts_with("the job's expiration passed"), "{}", failure.message);
    place.queue_has("spark.dead", 1).await;
    place.queue_has("spark.expelled", 0).await;
}

#[tokio::test]
async fn a_topology_that_differs_is_told_by_queue_and_argument() {
    let vhost = Broker::shared().vhost();
    let other = json!({"durable": true, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5}});
    vhost.http("PUT", "/api/queues/{}/spark.jobs", Some(&other));
    let declared = spark_runtime(&vhost.uri(), &[], &["topology", "declare"]);
    let said =
        String::from_utf8_lossy(&declared.stderr).into_owned() + &String::from_utf8_lossy(&declared.stdout);
    assert_eq!(declared.status.code(), Some(76), "{said}");
    assert!(said.contains("queue spark.jobs") && said.contains("x-d"), "{said}");
    let verified = spark_runtime(&vhost.uri(), &[], &["topology", "verify"]);
    assert_eq!(verified.status.code(), Some(76));
    let worker = Worker::start(&vhost.uri(), &[RETRY]);
    worker.logged("topology differs").await;
}

#[tokio::test]
async fn a_topology_that_is_missing_is_told_and_not_made_by_looking() {
    let vhost = Broker::shared().vhost();
    let verified = spark_runtime(&vhost.uri(), &[], &["topology", "verify"]);
    assert_eq!(verified.status.code(), Some(76));
    let said =
        String::from_utf8_lossy(&verified.stderr).into_owned() + &String::from_utf8_lossy(&verified.stdout);
    assert!(said.contains("spark.jobs") && said.contains("missing"), "{said}");
    assert_eq!(vhost.http("GET", "/api/queues/{}", None), json!([]));
    assert_eq!(spark_runtime(&vhost.uri(), &[], &["topology", "declare"]).status.code(), Some(0));
    assert_eq!(spark_runtime(&vhost.uri(), &[], &["topology", "verify"]).status.code(), Some(0));
}

#[tokio::test]
async fn a_wrong_password_is_told_without_showing_it() {
    let vhost = Broker::shared().vhost();
    let uri = vhost.uri();
    let password = uri.split([':', '@']).nth(2).unwrap();
    let wrong = uri.replace(password, "wr0ng-pass");
    let declared = spark_runtime(&wrong, &[], &["topology", "declare"]);
    let said = String::from_utf8_lossy(&declared.stderr).into_owned();
    assert_eq!(declared.status.code(), Some(77), "{said}");
    assert!(said.contains("refuses") && !said.contains("wr0ng-pass"), "{said}");
    let worker = Worker::start(&wrong, &[RETRY]);
    worker.logged("refuses us").await;
    assert!(!worker.log().contains("wr0ng-pass"));
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_a_worker_is_there_again_and_served() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    place.publish("before", text("before", &["complete"])).await;
    place.end_of("before").await;
    place.vhost.http("DELETE", "/api/queues/{}/spark.jobs", None);
    worker.logged("the broker ended the consumer").await;
    // Whoever looks after the topology declares it again, or the worker does with its next connection.
    assert_eq!(spark_runtime(&place.vhost.uri(), &[RETRY], &["topology", "declare"]).status.code(), Some(0));
    place.publish("after", text("after", &["complete"])).await;
    assert_eq!(place.end_of("after").await.kind(), Some(EventKind::Completed));
}

#[tokio::test]
async fn the_time_out_of_the_broker_is_said_at_the_start() {
    let place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    worker.logged("product=\"RabbitMQ\"").await;
    let log = worker.log();
    if let Ok(release) = std::env::var(RELEASE) {
        assert!(log.contains(&format!("version=\"{release}.")), "{log}");
    }
    assert!(log.contains("timeout=OfThe"), "{log}");
}
