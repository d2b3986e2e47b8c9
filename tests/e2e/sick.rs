//! Brokers that go on and are not well: alarms, parts of the topology deleted under a running worker, a log that is cut off
//! under its readers, a queue that loses its leader, a subscriber whose queue is full.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use serde_json::json;
use spark_runtime_protocol::answer::{consume, next};
use spark_runtime_protocol::client::Topic;
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::event::{EventKind, FailureClass};
use spark_runtime_protocol::topology::{
    LEDGER_EXCHANGE, LEDGER_STREAM, STREAM_OFFSET_ARGUMENT, STREAM_OFFSET_HEADER, delay_queue,
};
use spark_runtime_tests::broker::{Broker, Ready, Vhost, usual};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::Worker;
use spark_runtime_tests::until;
use spark_runtime_tests::wire::Wire;
use spark_runtime_worker::broker::message::Message;
use spark_runtime_worker::broker::publisher::Publisher;
use tokio::task::JoinSet;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";
const SHORT_OF: &str = "the broker is short of memory or disk";
const DECLARED: &str = "somebody has deleted a part of the topology; it is declared again";

fn endpoint(uri: &str) -> Endpoint {
    Endpoint::new(uri, Duration::from_secs(10)).unwrap()
}

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
            place.events = place.client.subscribe(&Topic::All).await.unwrap();
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

/// The broker says neither number nor place of a message that it returns, and confirms many at once.
#[tokio::test]
async fn what_no_queue_takes_is_never_told_as_taken_whatever_is_published_with_it() {
    const ROUNDS: u64 = 100;
    const EACH: u64 = 4;
    let delay = Duration::from_secs(3600);
    let place = Vhost::ready(&[delay]).await;
    let queue = delay_queue(delay);
    place.vhost.http("DELETE", &format!("/api/queues/{{}}/{queue}"), None);
    let patience = Duration::from_secs(60);
    let (publisher, _lanes) =
        Publisher::new(&endpoint(&place.vhost.uri()), "test publish".to_owned(), patience).unwrap();
    let (mut put_off, mut others) = (JoinSet::new(), JoinSet::new());
    for round in 0..ROUNDS {
        for number in 0..EACH * 8 {
            let publisher = publisher.clone();
            let message =
                Message::new(format!("{round} {number}").into_bytes(), BasicProperties::default(), false);
            match number % 8 {
                3 => drop(put_off.spawn(async move { publisher.delay(&message, delay, 1).await })),
                6 => drop(others.spawn(async move { publisher.give_back(&message, 1).await })),
                // Nobody needs to listen to an answer. Some of these are in one lane with the two above.
                _ => drop(others.spawn(async move {
                    publisher.answer(&format!("nobody-{number}"), None, b"{}".to_vec()).await;
                })),
            }
        }
        while others.join_next().await.is_some() {}
        assert!(put_off.try_join_next().is_none(), "round {round}: told as taken, and no queue is there");
    }
    place.vhost.declare(&usual(&[delay])).await;
    while put_off.join_next().await.is_some() {}
    place.queue_has(&queue, ROUNDS * EACH).await;
    place.queue_has("spark.jobs", ROUNDS * EACH).await;
}

#[tokio::test]
async fn a_consumer_that_a_slow_broker_opens_too_late_takes_no_job() {
    let broker = Broker::own(&[]);
    let place = Vhost::ready_on(&broker, &DELAYS).await;
    let connection = endpoint(&place.vhost.uri()).connect("late").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    place.publish("waits", text("waits", &["complete"])).await;
    broker.pause(true);
    let opening = consume(&channel, "spark.jobs", "late", FieldTable::default());
    assert!(tokio::time::timeout(Duration::from_millis(300), opening).await.is_err());
    drop(channel);
    broker.pause(false);
    // The connection hands over in order: by now the broker has opened the consumer.
    let channel = connection.create_channel().await.unwrap();
    let got = until("the job", async || {
        channel.basic_get("spark.jobs".into(), BasicGetOptions::default()).await.unwrap()
    });
    assert_eq!(got.await.delivery.data, text("waits", &["complete"]).into_bytes());
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
    // A job keeps its slot for as long as its end is offered, and there must be more slots than refused ends.
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "worker.max_running=8"]);
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
    let endpoint = endpoint(&place.vhost.uri());
    let connection = endpoint.connect("test subscriber").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.queue_purge("narrow".into(), QueuePurgeOptions::default()).await.unwrap();
    // What was offered while there was no room is offered again, and taken.
    until("the end at last", async || {
        channel.basic_get("narrow".into(), BasicGetOptions { no_ack: true }).await.unwrap()
    })
    .await;
    place.queue_has("spark.jobs", 0).await;
}

#[tokio::test]
async fn a_ledger_that_is_cut_off_under_its_reader_is_read_from_its_start_and_no_job_is_lost() {
    let mut place = Vhost::ready(&DELAYS).await;
    let wire = Wire::to(place.vhost.broker().port()).await;
    let worker = Worker::start(&place.vhost.uri_at(wire.port), &[RETRY]);
    let held = Held::running(&mut place, &worker, "held").await;
    wire.cut();
    worker.logged("a delivery is lost; its job goes on").await;
    let short =
        json!({"pattern": "^spark.ledger$", "apply-to": "queues", "definition": {"max-length-bytes": 1}});
    place.vhost.http("PUT", "/api/policies/{}/short", Some(&short));
    let ledger = Ledger::open(&place.vhost).await;
    until("the job's claim to be gone", async || {
        for _ in 0..32 {
            ledger.append(vec![b'x'; 60 << 10]).await;
        }
        // A file that has only just begun shows nothing before the next record.
        let first = tokio::time::timeout(Duration::from_secs(1), ledger.first_offset()).await;
        first.is_ok_and(|first| first > 0).then_some(())
    })
    .await;
    wire.mend();
    worker.logged("the log was cut off under the reader").await;
    worker.logged("the ledger no longer holds a claim of a job that runs here; the job is ended").await;
    until("the next run", async || (held.runs() == 2).then_some(())).await;
    held.let_go();
    assert_eq!(place.end_of("held").await.kind(), Some(EventKind::Completed));
    place.queue_has("spark.jobs", 0).await;
    assert!(!lines(&held.journal).contains("overlap"), "{}", lines(&held.journal));
}

#[tokio::test]
async fn a_ledger_that_is_made_anew_and_outgrows_its_reader_meanwhile_is_no_part_of_the_one_before() {
    let mut place = Vhost::ready(&DELAYS).await;
    let wire = Wire::to(place.vhost.broker().port()).await;
    let worker = Worker::start(&place.vhost.uri_at(wire.port), &[RETRY]);
    place.publish("ended", text("ended", &["complete"])).await;
    place.end_of("ended").await;
    let held = Held::running(&mut place, &worker, "held").await;
    wire.cut();
    worker.logged("a delivery is lost; its job goes on").await;
    place.vhost.http("DELETE", "/api/queues/{}/spark.ledger", None);
    place.vhost.declare(&usual(&DELAYS)).await;
    let ledger = Ledger::open(&place.vhost).await;
    // Far more than the worker had read of the other one.
    for _ in 0..500 {
        ledger.append(b"none of the ledger's".to_vec()).await;
    }
    wire.mend();
    worker.logged("the log is not the one that was read before").await;
    worker.logged("the ledger no longer holds a claim of a job that runs here; the job is ended").await;
    until("the next run", async || (held.runs() == 2).then_some(())).await;
    held.let_go();
    assert_eq!(place.end_of("held").await.kind(), Some(EventKind::Completed));
    place.queue_has("spark.jobs", 0).await;
    assert!(!lines(&held.journal).contains("overlap"), "{}", lines(&held.journal));
}

/// The ledger's stream, as somebody sees it who is no worker.
struct Ledger {
    connection: Connection,
    channel: Channel,
}

impl Ledger {
    async fn open(vhost: &Vhost) -> Self {
        let endpoint = endpoint(&vhost.uri());
        let connection = endpoint.connect("test ledger").await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { connection, channel }
    }

    async fn append(&self, record: Vec<u8>) {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let published =
            self.channel.basic_publish(LEDGER_EXCHANGE.into(), "".into(), options, &record, properties);
        published.await.unwrap().await.unwrap();
    }

    /// The place of the oldest record that is still there.
    async fn first_offset(&self) -> i64 {
        let channel = self.connection.create_channel().await.unwrap();
        channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
        let mut arguments = FieldTable::default();
        arguments.insert(STREAM_OFFSET_ARGUMENT.into(), AMQPValue::LongString("first".into()));
        let options = BasicConsumeOptions::default();
        let mut consumer =
            channel.basic_consume(LEDGER_STREAM.into(), "".into(), options, arguments).await.unwrap();
        let first = next(&mut consumer, &channel).await.unwrap().unwrap();
        let headers = first.properties.headers().clone().unwrap();
        channel.close(200, "looked".into()).await.unwrap();
        match headers.inner().get(STREAM_OFFSET_HEADER) {
            Some(AMQPValue::LongLongInt(offset)) => *offset,
            other => panic!("no offset: {other:?}"),
        }
    }
}
