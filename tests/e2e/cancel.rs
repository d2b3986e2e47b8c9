//! Cancelling a job in every phase of its life, and what is said to whoever asks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::event::{Event, EventKind, JobResult, JobStatus};
use spark_runtime_tests::PATIENCE;
use spark_runtime_tests::broker::{Ready, Vhost};
use spark_runtime_tests::jobs::{assets, job, text};
use spark_runtime_tests::program::{Called, Worker, call, hangs};
use spark_runtime_tests::wire::Wire;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";

async fn cancel(place: &Ready, arguments: &[&str]) -> Called {
    call(&place.vhost.uri(), &[RETRY], &[&["cancel"], arguments].concat()).await
}

/// A file that a fake waits for until a test opens it for writing.
fn gate(folder: &Path, name: &str) -> PathBuf {
    let gate = folder.join(name);
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    gate
}

fn kinds(place: &Ready, id: &str) -> Vec<EventKind> {
    place.seen.iter().filter(|event| event.subject.as_str() == id).filter_map(Event::kind).collect()
}

fn assert_cancelled(end: &Event) {
    assert_eq!(end.kind(), Some(EventKind::Cancelled), "{end:?}");
    assert_eq!(end.data.job_status, JobStatus::Cancelled);
    assert_eq!(end.data.job_result, Some(JobResult::Unknown));
}

/// Commands as a stranger gives them, with nothing but an AMQP client.
struct Stranger {
    _connection: Connection,
    channel: Channel,
    answers: Consumer,
    schema: jsonschema::Validator,
}

impl Stranger {
    async fn at(place: &Ready) -> Self {
        let endpoint = Endpoint::new(&place.vhost.uri(), Duration::from_secs(10)).unwrap();
        let connection = endpoint.connect("stranger").await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let queue = "amq.rabbitmq.reply-to";
        let answers =
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
        let schema: Value = serde_json::from_str(spark_runtime_protocol::schema::answer()).unwrap();
        let schema = jsonschema::validator_for(&schema).unwrap();
        Self { _connection: connection, channel, answers, schema }
    }

    async fn say(&self, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions::default();
        let (exchange, key) = ("spark.commands", "spark.commands");
        self.channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
    }

    /// Says something of which the answer has this correlation id.
    async fn ask(&self, correlation: &str, body: &[u8]) {
        let properties = BasicProperties::default()
            .with_reply_to("amq.rabbitmq.reply-to".into())
            .with_correlation_id(correlation.into());
        self.say(body, properties).await;
    }

    /// The next answer, which has to be as its schema says.
    async fn answer(&mut self) -> (String, Value) {
        let answer = tokio::time::timeout(PATIENCE, self.answers.next()).await.unwrap();
        let answer = answer.unwrap().unwrap();
        let correlation = answer.properties.correlation_id().as_ref().unwrap().to_string();
        let answer: Value = serde_json::from_slice(&answer.data).unwrap();
        let faults: Vec<_> = self.schema.iter_errors(&answer).map(|error| error.to_string()).collect();
        assert!(faults.is_empty(), "{answer}: {faults:?}");
        (correlation, answer)
    }
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_no_worker_is_there_never_runs() {
    let mut place = Vhost::ready(&DELAYS).await;
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    place.publish("q", text("q", &[&format!("journal {}", journal.display())])).await;
    let called = cancel(&place, &["q"]).await;
    assert_eq!(called.code, Some(0), "{called:?}");
    assert!(called.out.starts_with("no worker has answered within 5 s; the command waits"), "{called:?}");
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let end = place.end_of("q").await;
    assert_cancelled(&end);
    assert_eq!(kinds(&place, "q"), [EventKind::Cancelled]);
    assert!(!journal.exists());
    for queue in ["spark.jobs", "spark.commands", "spark.dead"] {
        place.queue_has(queue, 0).await;
    }
}

#[tokio::test]
async fn a_cancel_that_comes_before_the_job_holds_whatever_the_job_is() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    worker.logged("the ledger has been read").await;
    let journal = worker.home.path().join("journal");
    for id in ["early", "invalid"] {
        let called = cancel(&place, &[id]).await;
        assert_eq!(called.code, Some(0), "{called:?}");
        assert_eq!(
            called.out,
            "no worker has taken the job yet; when one does, it is reported cancelled and not run\n"
        );
    }
    place.publish("early", text("early", &[&format!("journal {}", journal.display())])).await;
    assert_cancelled(&place.end_of("early").await);
    place.publish("invalid", "no job").await;
    assert_cancelled(&place.end_of("invalid").await);
    assert_eq!(kinds(&place, "early"), [EventKind::Cancelled]);
    assert!(!journal.exists());
    // Published again it is answered with its end, and not run.
    place.seen.clear();
    place.publish("early", text("early", &[&format!("journal {}", journal.display())])).await;
    place.queue_has("spark.jobs", 0).await;
    assert!(!journal.exists());
    place.queue_has("spark.dead", 0).await;
}

#[tokio::test]
async fn a_job_that_waits_for_its_next_attempt_is_cancelled_instead_of_it() {
    let mut place = Vhost::ready(&[Duration::from_secs(3)]).await;
    let _worker = Worker::start(&place.vhost.uri(), &["retry.delays=3s"]);
    place.publish("d", text("d", &["crash-before-hello"])).await;
    place.heard("d", &[EventKind::Retrying]).await;
    let called = cancel(&place, &["d", "--json"]).await;
    let answer = called.json();
    assert_eq!((called.code, &answer["standing"]), (Some(0), &json!("waiting")), "{called:?}");
    assert_eq!(answer["attempt"], 1);
    let end = place.end_of("d").await;
    assert_cancelled(&end);
    assert_eq!(end.data.attempt, 2);
    let submitted = kinds(&place, "d").into_iter().filter(|kind| *kind == EventKind::Submitted);
    assert_eq!(submitted.count(), 1);
    place.queue_has("spark.delay.3000ms", 0).await;
    place.queue_has("spark.dead", 0).await;
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_its_files_are_written_is_not_submitted() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let mut stranger = Stranger::at(&place).await;
    // Enough of them to take a while.
    let mut many = job("s", &["complete"]);
    for number in 0..30_000 {
        let name = format!("f{number}");
        assets(&mut many)
            .push(json!({"name": name, "assetType": "FILE", "filename": name, "fileContent": ""}));
    }
    place.publish("s", many.to_string()).await;
    place.heard("s", &[EventKind::Accepted]).await;
    stranger.ask("s", br#"{"command": "cancel", "jobId": "s"}"#).await;
    assert_eq!(stranger.answer().await.1["standing"], "running");
    let end = place.end_of("s").await;
    assert_cancelled(&end);
    assert_eq!(kinds(&place, "s"), [EventKind::Accepted, EventKind::Cancelled]);
    assert!(end.data.phases.unwrap().stage.is_some());
    assert_eq!(worker.processes(), Vec::<i32>::new());
}

#[tokio::test]
async fn a_job_that_waits_for_its_turn_to_be_submitted_is_cancelled_and_the_one_before_it_goes_on() {
    let mut place = Vhost::ready(&DELAYS).await;
    let settings = [RETRY, "worker.max_running=2", "worker.max_submits=1"];
    let worker = Worker::start(&place.vhost.uri(), &settings);
    let gate = gate(worker.home.path(), "gate");
    place.publish("first", text("first", &[&format!("wait-for {}", gate.display()), "hello"])).await;
    place.heard("first", &[EventKind::Submitted]).await;
    place.publish("next", text("next", &["complete"])).await;
    place.heard("next", &[EventKind::Staged]).await;
    let called = cancel(&place, &["next", "--wait"]).await;
    assert_eq!(called.code, Some(0), "{called:?}");
    assert_cancelled(&place.end_of("next").await);
    assert_eq!(kinds(&place, "next"), [EventKind::Accepted, EventKind::Staged, EventKind::Cancelled]);
    std::fs::write(&gate, "").unwrap();
    assert_eq!(place.end_of("first").await.kind(), Some(EventKind::Completed));
}

#[tokio::test]
async fn a_running_job_is_reported_cancelled_only_when_nothing_of_it_is_left() {
    let mut place = Vhost::ready(&DELAYS).await;
    let uri = place.vhost.uri();
    let settings = [RETRY, "job.kill_grace=500ms", "worker.max_running=1"];
    let workers = [Worker::start(&uri, &settings), Worker::start(&uri, &settings)];
    let folder = tempfile::tempdir().unwrap();
    for id in ["a", "b"] {
        let counter = folder.path().join(id);
        let hang = format!("times 1 {} hang", counter.display());
        place.publish(id, text(id, &["ignore-term", "spawn-daemon", &hang])).await;
        hangs(&counter).await;
    }
    // One on each worker; whichever takes the command, it is the right one that ends its job.
    for (id, others) in [("a", true), ("b", false)] {
        let running = place.heard(id, &[EventKind::Running]).await;
        let called = cancel(&place, &[id, "--wait", "--json"]).await;
        assert_eq!(called.code, Some(0), "{called:?}");
        let lines: Vec<Value> = called.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["standing"], &lines[0]["attempt"]), (&json!("running"), &json!(1)));
        assert_eq!(lines[0]["worker"], running.source);
        assert_eq!(lines.last().unwrap()["type"], "spark-runtime.job.cancelled.v1");
        let end = place.end_of(id).await;
        assert_cancelled(&end);
        assert_eq!(end.source, running.source);
        let busy = workers.iter().filter(|worker| !worker.processes().is_empty()).count();
        assert_eq!(busy, usize::from(others), "{id}");
    }
    place.queue_has("spark.jobs", 0).await;
    place.queue_has("spark.dead", 0).await;
}

#[tokio::test]
async fn a_cancel_that_comes_when_the_work_is_done_changes_nothing() {
    let mut place = Vhost::ready(&DELAYS).await;
    let wire = Wire::to(place.vhost.broker().port()).await;
    let first = Worker::start(&place.vhost.uri_at(wire.port), &[RETRY]);
    let journal = first.home.path().join("journal");
    let gate = gate(first.home.path(), "gate");
    let directives = [format!("journal {}", journal.display()), format!("wait-for {}", gate.display())];
    let directives: Vec<&str> = directives.iter().map(String::as_str).collect();
    place.publish("f", text("f", &directives)).await;
    place.heard("f", &[EventKind::Running]).await;
    let second = Worker::start(&place.vhost.uri(), &[RETRY]);
    second.logged("the ledger has been read").await;
    // The driver ends in order, and its worker cannot tell anybody yet.
    wire.cut();
    first.logged("a delivery is lost; its job goes on").await;
    std::fs::write(&gate, "").unwrap();
    spark_runtime_tests::until("the driver's end", async || {
        std::fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"end\"")).then_some(())
    })
    .await;
    first.nothing_left().await;
    let called = cancel(&place, &["f"]).await;
    assert_eq!(called.code, Some(0), "{called:?}");
    assert!(called.out.contains("has the job, at attempt 1"), "{called:?}");
    wire.mend();
    let end = place.end_of("f").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1));
    for arguments in [&["f"][..], &["f", "--wait"]] {
        let called = cancel(&place, arguments).await;
        assert_eq!(called.code, Some(4), "{called:?}");
        assert_eq!(called.out, "the job has ended already: completed at attempt 1\n");
    }
    place.queue_has("spark.jobs", 0).await;
}

#[tokio::test]
async fn a_job_that_has_ended_is_told_by_its_end() {
    let mut place = Vhost::ready(&DELAYS).await;
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    place.publish("bad", text("bad", &["fail ValueError x"])).await;
    assert_eq!(place.end_of("bad").await.kind(), Some(EventKind::Failed));
    let called = cancel(&place, &["bad", "--json"]).await;
    let answer = called.json();
    assert_eq!((called.code, &answer["ending"]), (Some(4), &json!("failed")), "{called:?}");
    assert!(answer["since"].is_string());
    assert_eq!(cancel(&place, &["gone"]).await.code, Some(0));
    place.publish("gone", text("gone", &["complete"])).await;
    assert_cancelled(&place.end_of("gone").await);
    let called = cancel(&place, &["gone", "--wait"]).await;
    assert_eq!(called.code, Some(0), "cancelled before is as good as cancelled now: {called:?}");
    assert_eq!(called.out, "the job has ended already: cancelled at attempt 1\n");
}

#[tokio::test]
async fn a_worker_that_takes_no_more_jobs_still_takes_commands() {
    let mut place = Vhost::ready(&DELAYS).await;
    let mut worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let counter = worker.home.path().join("counter");
    place.publish("l", text("l", &[&format!("times 1 {} hang", counter.display())])).await;
    hangs(&counter).await;
    worker.signal(Signal::SIGTERM);
    worker.logged("no new jobs are taken").await;
    let called = cancel(&place, &["l", "--wait"]).await;
    assert_eq!(called.code, Some(0), "{called:?}");
    assert_cancelled(&place.end_of("l").await);
    assert!(worker.ended().await.success());
    place.queue_has("spark.jobs", 0).await;
}

#[tokio::test]
async fn a_cancelled_job_that_its_worker_gives_back_is_not_run_by_the_next() {
    let mut place = Vhost::ready(&DELAYS).await;
    let mut worker = Worker::start(&place.vhost.uri(), &[RETRY, "job.kill_grace=60s"]);
    let counter = worker.home.path().join("counter");
    place.publish("g", text("g", &["ignore-term", &format!("times 1 {} hang", counter.display())])).await;
    hangs(&counter).await;
    assert_eq!(cancel(&place, &["g"]).await.code, Some(0));
    // It takes its time over it; and its worker has to leave at once.
    worker.signal(Signal::SIGTERM);
    worker.logged("no new jobs are taken").await;
    worker.signal(Signal::SIGTERM);
    assert!(worker.ended().await.success());
    let _next = Worker::start(&place.vhost.uri(), &[RETRY]);
    assert_cancelled(&place.end_of("g").await);
    let running = kinds(&place, "g").into_iter().filter(|kind| *kind == EventKind::Running);
    assert_eq!(running.count(), 1);
}

#[tokio::test]
async fn a_thousand_bad_commands_are_answered_and_do_no_harm() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    worker.logged("the ledger has been read").await;
    let mut stranger = Stranger::at(&place).await;
    let long = "x".repeat(10_000);
    let with_id = |id: &str| json!({"command": "cancel", "jobId": id}).to_string().into_bytes();
    let bodies: Vec<Vec<u8>> = vec![
        b"hello".to_vec(),
        Vec::new(),
        b"\xff\xfe".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        "[".repeat(5000).into_bytes(),
        vec![b' '; 1 << 20],
        br#"{"command": "cancel"}"#.to_vec(),
        br#"{"jobId": "x"}"#.to_vec(),
        br#"{"command": "explode", "jobId": "x"}"#.to_vec(),
        br#"{"command": 7, "jobId": "x"}"#.to_vec(),
        br#"{"command": "cancel", "jobId": 7}"#.to_vec(),
        br#"{"command": "cancel", "jobId": null}"#.to_vec(),
        br#"{"command": "cancel", "jobId": ["x"]}"#.to_vec(),
        br#"{"command": "cancel", "jobId": "x", "attempt": 2}"#.to_vec(),
        br#"{"command": "cancel", "jobId": "x", "jobId": "y"}"#.to_vec(),
        with_id("a/b"),
        with_id("../../x"),
        with_id("\u{fc}\u{202e}"),
        with_id(&long),
    ];
    for number in 0..1000 {
        stranger.ask(&number.to_string(), &bodies[number % bodies.len()]).await;
    }
    let mut answered = vec![false; 1000];
    for _ in 0..1000 {
        let (correlation, answer) = stranger.answer().await;
        assert_eq!(answer["standing"], "refused", "{answer}");
        assert!(!answer["faults"].as_array().unwrap().is_empty(), "{answer}");
        assert!(answer.to_string().len() < 4096, "{answer}");
        answered[correlation.parse::<usize>().unwrap()] = true;
    }
    assert!(answered.iter().all(|answered| *answered));
    place.queue_has("spark.commands", 0).await;
    place.publish("good", text("good", &["complete"])).await;
    assert_eq!(place.end_of("good").await.kind(), Some(EventKind::Completed));
    assert!(worker.log().contains("a command is refused"));
}

/// A broker before 4.3 ends the connection of whoever publishes to such a name.
#[tokio::test]
async fn an_answer_to_a_place_that_the_broker_cannot_read_is_sent_once_and_holds_nobody_up() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    worker.logged("the ledger has been read").await;
    let stranger = Stranger::at(&place).await;
    let properties = BasicProperties::default().with_reply_to("amq.rabbitmq.reply-to.cnViYmlzaA==.k".into());
    stranger.say(br#"{"command": "cancel", "jobId": "unknown"}"#, properties).await;
    worker.logged("somebody cancels a job").await;
    place.publish("good", text("good", &["complete"])).await;
    assert_eq!(place.end_of("good").await.kind(), Some(EventKind::Completed));
    place.queue_has("spark.commands", 0).await;
    // Once for each lane that had something on its way.
    let log = worker.log();
    assert!(log.matches("messages are published again").count() <= 3, "{log}");
}

#[tokio::test]
async fn commands_of_whoever_waits_for_no_answer_or_for_one_at_an_odd_place_are_carried_out() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    worker.logged("the ledger has been read").await;
    let mut stranger = Stranger::at(&place).await;
    let mut headers = FieldTable::default();
    for (name, value) in [("x-attempt", AMQPValue::LongInt(-1)), ("reply_to", AMQPValue::Boolean(true))] {
        headers.insert(name.into(), value);
    }
    let no_answer = BasicProperties::default().with_headers(headers);
    let to = |queue: &str| BasicProperties::default().with_reply_to(queue.into());
    let long = "q".repeat(255);
    let odd = [
        no_answer,
        to("no.such.queue"),
        to("amq.rabbitmq.reply-to.garbage"),
        to(&long),
        to("spark.jobs"),
        to("spark.commands"),
        to("spark.ledger"),
    ];
    for (number, properties) in odd.iter().enumerate() {
        let body = json!({"command": "cancel", "jobId": format!("odd-{number}")}).to_string();
        stranger.say(body.as_bytes(), properties.clone()).await;
    }
    // Behind all of them.
    stranger.ask("last", br#"{"command": "cancel", "jobId": "last"}"#).await;
    let (_, answer) = stranger.answer().await;
    assert_eq!((&answer["standing"], &answer["jobId"]), (&json!("unknown"), &json!("last")));
    for number in 0..odd.len() {
        let id = format!("odd-{number}");
        place.publish(&id, text(&id, &["complete"])).await;
        assert_cancelled(&place.end_of(&id).await);
    }
    for queue in ["spark.commands", "spark.jobs", "spark.dead"] {
        place.queue_has(queue, 0).await;
    }
    for trouble in ["a message of the ledger was skipped", "messages are published again"] {
        assert!(!worker.log().contains(trouble), "{}", worker.log());
    }
}

#[tokio::test]
async fn cancel_and_status_need_no_more_rights_than_their_own() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    worker.logged("the ledger has been read").await;
    let as_user = |name: &str, write: &str, read: &str| {
        let user = format!("{name}-{}", uuid::Uuid::new_v4().simple());
        let broker = place.vhost.broker();
        broker.http("PUT", &format!("/api/users/{user}"), Some(&json!({"password": "p", "tags": ""})));
        let rights = json!({"configure": "^$", "write": write, "read": read});
        place.vhost.http("PUT", &format!("/api/permissions/{{}}/{user}"), Some(&rights));
        let uri = place.vhost.uri();
        format!("amqp://{user}:p@{}", uri.split_once('@').unwrap().1)
    };
    let canceller = as_user("canceller", "^spark\\.commands$", "^$");
    let reader = as_user("reader", "^$", "^spark\\.(ledger|history)$");
    let called = call(&canceller, &[], &["cancel", "x"]).await;
    assert_eq!(called.code, Some(0), "{called:?}");
    assert!(called.out.starts_with("no worker has taken the job yet"), "{called:?}");
    place.publish("x", text("x", &["complete"])).await;
    assert_cancelled(&place.end_of("x").await);
    let called = call(&reader, &[], &["status", "x", "--json"]).await;
    assert_eq!((called.code, &called.json()["ending"]), (Some(0), &json!("cancelled")), "{called:?}");
    assert_eq!(call(&reader, &[], &["jobs"]).await.code, Some(0));
    for (uri, arguments) in [(&reader, ["cancel", "x"]), (&canceller, ["status", "x"])] {
        let called = call(uri, &[], &arguments).await;
        assert_eq!(called.code, Some(77), "{called:?}");
    }
}

#[tokio::test]
async fn without_a_topology_cancel_says_what_to_do() {
    let vhost = spark_runtime_tests::broker::Broker::shared().vhost();
    let called = call(&vhost.uri(), &[], &["cancel", "x"]).await;
    assert_eq!(called.code, Some(76), "{called:?}");
    assert!(called.err.contains("topology declare"), "{called:?}");
}
