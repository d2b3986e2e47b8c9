//! Brokers that go on and are not well: alarms, parts of the topology deleted under a running worker, a log that is cut off
//! under its readers, a queue that loses its leader, a subscriber whose queue is full.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use spark_runtime_protocol::event::{EventKind, FailureClass};
use spark_runtime_tests::broker::{Broker, Ready, Vhost};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::Worker;
use spark_runtime_tests::until;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";
const SHORT_OF: &str = "the broker is short of memory or disk";
const DECLARED: &str = "somebody has deleted a part of the topology; it is declared again";

/// A job that runs until somebody writes to its gate, and what became of its runs.
struct Held {
    gate: PathBuf,
    journal: PathBuf,
}

impl Held {
    /// Publishes it and waits until it runs.
    async fn running(place: &mut Ready, worker: &Worker, id: &str) -> Self {
        let home = worker.home.path();
        let held =
            Self { gate: home.join(format!("{id}.gate")), journal: home.join(format!("{id}.journal")) };
        nix::unistd::mkfifo(&held.gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
        place.publish(id, held.text(id)).await;
        place.heard(id, &[EventKind::Running]).await;
        held
    }

    fn text(&self, id: &str) -> String {
        let directives =
            [format!("journal {}", self.journal.display()), format!("wait-for {}", self.gate.display())];
        let directives: Vec<&str> = directives.iter().map(String::as_str).collect();
        text(id, &directives)
    }

    fn let_go(&self) {
        std::fs::write(&self.gate, "").unwrap();
    }

    /// Waits until its run has come to its end, whatever is said about it.
    async fn has_ended(&self) {
        until("the run's end", async || lines(&self.journal).contains("\"end\"").then_some(())).await;
    }

    /// How often it was started.
    fn runs(&self) -> usize {
        lines(&self.journal).lines().filter(|line| !line.contains("\"end\"")).count()
    }
}

fn lines(journal: &Path) -> String {
    std::fs::read_to_string(journal).unwrap_or_default()
}

#[tokio::test]
async fn a_job_that_ends_during_an_alarm_is_told_and_acknowledged_when_the_alarm_is_over() {
    let broker = Broker::own(&[]);
    let mut place = Vhost::ready_on(&broker, &DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let memory = "vm_memory_monitor set_vm_memory_high_watermark";
    let disk = "rabbit_disk_monitor set_disk_free_limit";
    let alarms = [
        ("memory", format!("{memory} [0.00001]"), format!("{memory} [{{absolute,1000000000}}]")),
        ("disk", format!("{disk} [\"1000000GB\"]"), format!("{disk} [\"50MB\"]")),
    ];
    for (alarm, raise, clear) in alarms {
        let held = Held::running(&mut place, &worker, alarm).await;
        let told = worker.log().matches(SHORT_OF).count();
        broker.call(&raise).unwrap();
        held.let_go();
        held.has_ended().await;
        until("the worker to tell", async || (worker.log().matches(SHORT_OF).count() > told).then_some(()))
            .await;
        // Not acknowledged before its end was told.
        place.queue_has("spark.jobs", 1).await;
        broker.call(&clear).unwrap();
        let end = place.end_of(alarm).await;
        assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1), "{alarm}");
        place.queue_has("spark.jobs", 0).await;
        assert_eq!(held.runs(), 1, "{alarm}");
    }
}

#[tokio::test]
async fn a_ledger_that_is_deleted_under_a_running_job_is_there_again_and_the_job_ends_once() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    place.publish("before", text("before", &["complete"])).await;
    place.end_of("before").await;
    let held = Held::running(&mut place, &worker, "held").await;
    place.vhost.http("DELETE", "/api/queues/{}/spark.ledger", None);
    worker.logged("the ledger no longer holds a claim of a job that runs here; the job is ended").await;
    // Nobody can know any more who owns the job: it was ended, and is run again under a claim that counts.
    until("the next run", async || (held.runs() == 2).then_some(())).await;
    held.let_go();
    let end = place.end_of("held").await;
    assert_eq!(end.kind(), Some(EventKind::Completed));
    place.queue_has("spark.jobs", 0).await;
    assert!(!lines(&held.journal).contains("overlap"), "{}", lines(&held.journal));
    let ends = place.story("held").iter().filter(|told| told.ends_with("completed")).count();
    assert_eq!(ends, 1, "{:?}", place.story("held"));
}

#[tokio::test]
async fn a_history_that_is_deleted_under_a_running_job_is_there_again_and_the_end_is_told() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let held = Held::running(&mut place, &worker, "held").await;
    place.vhost.http("DELETE", "/api/queues/{}/spark.history", None);
    held.let_go();
    let end = place.end_of("held").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1));
    place.queue_has("spark.jobs", 0).await;
    assert_eq!(held.runs(), 1);
    worker.logged(DECLARED).await;
}

#[tokio::test]
async fn exchanges_that_are_deleted_under_a_running_job_are_there_again_and_the_end_is_told() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    for (id, exchange) in [("told", "spark.results"), ("settled", "spark.ledger")] {
        let held = Held::running(&mut place, &worker, id).await;
        place.vhost.http("DELETE", &format!("/api/exchanges/{{}}/{exchange}"), None);
        held.let_go();
        held.has_ended().await;
        until("the exchange", async || {
            let (status, _) = place.vhost.http_status("GET", &format!("/api/exchanges/{{}}/{exchange}"));
            (status == 200).then_some(())
        })
        .await;
        // Its bindings went with it; a subscriber has to bind anew.
        if exchange == "spark.results" {
            place.client = place.vhost.client().await;
            place.events = place.client.subscribe(&spark_runtime_protocol::client::Topic::All).await.unwrap();
            // Published again, a job that has ended is answered by its end.
            place.publish(id, held.text(id)).await;
        }
        let end = place.end_of(id).await;
        assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1), "{exchange}");
        place.queue_has("spark.jobs", 0).await;
        assert_eq!(held.runs(), 1, "{exchange}");
    }
}

#[tokio::test]
async fn queues_for_waiting_and_for_the_dead_that_are_deleted_are_there_again_and_hold_what_belongs_there() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=2"]);
    place.publish("before", text("before", &["complete"])).await;
    place.end_of("before").await;
    let queues = place.vhost.http("GET", "/api/queues/{}?columns=name", None);
    for queue in queues.as_array().unwrap() {
        let name = queue["name"].as_str().unwrap();
        if name == "spark.dead" || name.starts_with("spark.delay") {
            place.vhost.http("DELETE", &format!("/api/queues/{{}}/{name}"), None);
        }
    }
    place.publish("unlucky", text("unlucky", &["crash-before-hello"])).await;
    let end = place.end_of("unlucky").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Failed), 2));
    assert_eq!(end.data.failure.unwrap().class, FailureClass::Submit);
    place.queue_has("spark.dead", 1).await;
    place.queue_has("spark.jobs", 0).await;
    worker.logged(DECLARED).await;
}

#[tokio::test]
async fn a_queue_that_loses_its_leader_loses_no_job() {
    let broker = Broker::own(&[]);
    let mut place = Vhost::ready_on(&broker, &DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let held = Held::running(&mut place, &worker, "held").await;
    place.vhost.kill_leader_of("spark.jobs");
    place.publish("later", text("later", &["complete"])).await;
    held.let_go();
    for id in ["held", "later"] {
        assert_eq!(place.end_of(id).await.kind(), Some(EventKind::Completed), "{id}");
    }
    place.queue_has("spark.jobs", 0).await;
    assert_eq!(held.runs(), 1);
}

#[tokio::test]
async fn a_subscriber_whose_queue_is_full_is_offered_the_end_for_a_while_and_holds_up_nobody_else() {
    let mut place = Vhost::ready(&DELAYS).await;
    let narrow = json!({
        "durable": true,
        "arguments": {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    });
    place.vhost.http("PUT", "/api/queues/{}/narrow", Some(&narrow));
    let bind = json!({"routing_key": "job.*.completed"});
    place.vhost.http("POST", "/api/bindings/{}/e/spark.results/q/narrow", Some(&bind));
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    // A quorum queue lets a few in before it counts them.
    let mut filler = 0;
    until("the queue to be full", async || {
        let id = format!("filler{filler}");
        place.publish(&id, text(&id, &["complete"])).await;
        place.end_of(&id).await;
        filler += 1;
        worker.log().contains("a queue behind the exchange may be full").then_some(())
    })
    .await;
    place.publish("other", text("other", &["complete"])).await;
    assert_eq!(place.end_of("other").await.kind(), Some(EventKind::Completed));
    let has = place.vhost.messages("narrow");
    place.vhost.http("DELETE", "/api/queues/{}/narrow/contents", None);
    // What was offered while there was no room is offered again, and taken.
    until("the end at last", async || (place.vhost.messages("narrow") > 0).then_some(())).await;
    place.queue_has("spark.jobs", 0).await;
    assert!(has > 0 && !worker.log().contains("an event is given up"), "{}", worker.log());
}
