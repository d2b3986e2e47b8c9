//! Users with no more rights than they need: what they can do with them, and what they are told that they cannot.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spark_runtime_protocol::client::{Client, Topic};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::event::EventKind;
use spark_runtime_protocol::rights::Role;
use spark_runtime_tests::broker::{Broker, Own, Ready, Vhost};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::{Called, Worker, call, hangs};

const RETRY: &str = "retry.delays=200ms";
const PASSWORD: &str = "p4ss";

/// A virtual host of a broker of its own, since users belong to the whole broker, made by nothing but the definitions
/// that the program prints.
struct Place {
    ready: Ready,
    _broker: Own,
}

async fn connect(vhost: &Vhost, role: Role) -> Client {
    let endpoint = Endpoint::new(&vhost.uri_as(role.user(), PASSWORD), Duration::from_secs(10)).unwrap();
    Client::connect(&endpoint, role.user()).await.unwrap()
}

async fn defined(vhost: &Vhost, more: &[&str]) -> Value {
    let printed = call(&vhost.uri(), &[RETRY], &[&["topology", "definitions"], more].concat()).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    printed.json()
}

impl Place {
    /// Publishes as the publisher and hears as the subscriber.
    async fn new() -> Self {
        let broker = Broker::own(&[]);
        let vhost = broker.vhost();
        let definitions = defined(&vhost, &[]).await;
        vhost.http("POST", "/api/definitions", Some(&definitions));
        for role in Role::ALL {
            for password in ["", PASSWORD, role.user()] {
                let endpoint = Endpoint::new(&vhost.uri_as(role.user(), password), Duration::from_secs(10));
                let refused = endpoint.unwrap().connect("early").await.unwrap_err().to_string();
                assert!(refused.contains("refuses us"), "{refused}");
            }
            let user = json!({"password": PASSWORD, "tags": ""});
            vhost.http("PUT", &format!("/api/users/{}", role.user()), Some(&user));
        }
        let client = connect(&vhost, Role::Publisher).await;
        let events = connect(&vhost, Role::Subscriber).await.subscribe(&Topic::All).await.unwrap();
        Self { ready: Ready { vhost, client, events, seen: Vec::new() }, _broker: broker }
    }

    fn uri(&self, role: Role) -> String {
        self.ready.vhost.uri_as(role.user(), PASSWORD)
    }

    async fn call(&self, role: Role, arguments: &[&str]) -> Called {
        call(&self.uri(role), &[RETRY], arguments).await
    }
}

#[tokio::test]
async fn jobs_go_all_their_ways_with_users_that_have_no_more_rights_than_they_need() {
    let mut place = Place::new().await;
    // What was defined is what the program declares; importing it again, without the users, leaves them their passwords.
    let verified = call(&place.ready.vhost.uri(), &[RETRY], &["topology", "verify"]).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let definitions = defined(&place.ready.vhost, &["--without-users"]).await;
    place.ready.vhost.http("POST", "/api/definitions", Some(&definitions));

    let settings = [RETRY, "retry.max_attempts=2"];
    let first = Worker::start(&place.uri(Role::Worker), &settings);
    first.logged("whether they are as these settings want them cannot be compared").await;
    let folder = first.home.path().to_owned();
    let file = |name: &str, body: String| {
        let path = folder.join(name);
        std::fs::write(&path, body).unwrap();
        path.to_str().unwrap().to_owned()
    };

    // To its end; again, which the history answers; and with another body, which is a conflict.
    place.ready.publish("done", text("done", &["complete"])).await;
    let end = place.ready.end_of("done").await;
    assert_eq!(end.kind(), Some(EventKind::Completed));
    let conflict = file("conflict.json", text("done", &["fail ValueError x"]));
    let submitted = place.call(Role::Publisher, &["submit", &conflict]).await;
    assert_eq!(submitted.code, Some(0), "{submitted:?}");
    place.ready.heard("done", &[EventKind::Conflict]).await;
    // Through a delay queue to the dead.
    place.ready.publish("lost", text("lost", &["report no JSON at all", "exit 1"])).await;
    place.ready.heard("lost", &[EventKind::Retrying]).await;
    assert_eq!(place.ready.end_of("lost").await.kind(), Some(EventKind::Failed));
    place.ready.publish("bad", "{}").await;
    assert_eq!(place.ready.end_of("bad").await.kind(), Some(EventKind::Rejected));

    let waited = file("waited.json", text("waited", &["complete"]));
    let waited = place.call(Role::Operator, &["submit", &waited, "--wait"]).await;
    assert_eq!(waited.code, Some(0), "{waited:?}");
    place.ready.publish("long", text("long", &["hang"])).await;
    place.ready.heard("long", &[EventKind::Running]).await;
    let status = place.call(Role::Operator, &["status", "long", "--json"]).await;
    assert_eq!(status.json()["standing"], "running", "{status:?}");
    let cancelled = place.call(Role::Operator, &["cancel", "long", "--wait"]).await;
    assert_eq!(cancelled.code, Some(0), "{cancelled:?}");
    assert!(!cancelled.out.contains("no worker has answered"), "{cancelled:?}");
    let jobs = place.call(Role::Operator, &["jobs", "--json"]).await;
    assert_eq!(jobs.json()["all"], 5, "{jobs:?}");
    let dead = place.call(Role::Operator, &["dead", "list", "--json"]).await;
    assert_eq!(dead.json().as_array().unwrap().len(), 3, "{dead:?}");
    place.ready.seen.clear();
    let replayed = place.call(Role::Operator, &["dead", "replay", "lost"]).await;
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    assert_eq!(place.ready.end_of("lost").await.kind(), Some(EventKind::Failed));

    // The guard of a dead worker says so in the ledger, with the worker's rights.
    let counter = folder.join("counter");
    place.ready.publish("k", text("k", &[&format!("times 1 {} hang", counter.display())])).await;
    hangs(&counter).await;
    let second = Worker::start(&place.uri(Role::Worker), &settings);
    second.logged("the ledger has been read").await;
    let killed = std::time::Instant::now();
    first.signal(Signal::SIGKILL);
    let end = place.ready.end_of("k").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
    assert!(killed.elapsed() < Duration::from_secs(45), "{:?}", killed.elapsed());
    for worker in [&first, &second] {
        let log = worker.log();
        let refused = log.lines().filter(|line| line.contains("no right to"));
        // The one that says that nothing could be compared.
        assert_eq!(refused.count(), 1, "{log}");
    }
}

/// Publishes past the program and gives what the broker says.
async fn publish_to(uri: &str, exchange: &str) -> String {
    let connection = Endpoint::new(uri, Duration::from_secs(10)).unwrap().connect("intruder").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let options = BasicPublishOptions::default();
    let published = channel.basic_publish(
        exchange.into(),
        "job.x.completed".into(),
        options,
        b"x",
        BasicProperties::default(),
    );
    published.await.unwrap().await.unwrap_err().to_string()
}

/// Takes a message past the program and gives what the broker says.
async fn get_from(uri: &str, queue: &str) -> String {
    let connection = Endpoint::new(uri, Duration::from_secs(10)).unwrap().connect("intruder").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.basic_get(queue.into(), BasicGetOptions::default()).await.unwrap_err().to_string()
}

#[tokio::test]
async fn what_a_user_may_not_do_is_refused_and_the_right_that_is_missing_is_named() {
    let place = Place::new().await;
    let folder = tempfile::tempdir().unwrap();
    let job = folder.path().join("job.json");
    std::fs::write(&job, text("x", &["complete"])).unwrap();
    let job = job.to_str().unwrap();
    let refusals: [(Role, &[&str], &str); 10] = [
        (Role::Publisher, &["watch", "x"], "configure queue 'amq.gen"),
        (Role::Publisher, &["status", "x"], "read queue 'spark.ledger'"),
        (Role::Publisher, &["cancel", "x"], "write exchange 'spark.commands'"),
        (Role::Publisher, &["dead", "list"], "read queue 'spark.dead'"),
        (Role::Subscriber, &["submit", job], "write exchange 'spark.jobs'"),
        (Role::Subscriber, &["submit", job, "--wait"], "write exchange 'spark.jobs'"),
        (Role::Subscriber, &["cancel", "x"], "write exchange 'spark.commands'"),
        (Role::Worker, &["dead", "list"], "read queue 'spark.dead'"),
        (Role::Worker, &["watch", "x"], "configure queue 'amq.gen"),
        (Role::Operator, &["topology", "declare"], "configure exchange 'spark."),
    ];
    for (role, arguments, right) in refusals {
        let called = place.call(role, arguments).await;
        assert_eq!(called.code, Some(77), "{role:?} {arguments:?}: {called:?}");
        let said = format!("{}{}", called.out, called.err);
        let right = format!("the user '{}' has no right to {right}", role.user());
        assert!(said.contains(&right), "{role:?} {arguments:?}: {said}");
    }
    for (role, exchanges) in [
        (
            Role::Publisher,
            &["spark.ledger", "spark.results", "spark.history", "spark.commands", "spark.dead", ""][..],
        ),
        (
            Role::Subscriber,
            &["spark.ledger", "spark.results", "spark.history", "spark.jobs", "spark.delay", ""],
        ),
        (
            Role::Operator,
            &["spark.ledger", "spark.results", "spark.history", "spark.delay", "spark.dead", ""],
        ),
    ] {
        for exchange in exchanges {
            let said = publish_to(&place.uri(role), exchange).await;
            assert!(said.contains("ACCESS_REFUSED"), "{role:?} {exchange:?}: {said}");
        }
    }
    for (role, queues) in [
        (Role::Publisher, &["spark.jobs", "spark.dead", "spark.commands", "spark.expelled"][..]),
        (Role::Subscriber, &["spark.jobs", "spark.dead", "spark.commands", "spark.expelled"]),
        (Role::Operator, &["spark.jobs", "spark.commands", "spark.expelled"]),
    ] {
        for queue in queues {
            let said = get_from(&place.uri(role), queue).await;
            assert!(said.contains("ACCESS_REFUSED"), "{role:?} {queue}: {said}");
        }
    }
    // A worker that is let in as somebody else takes no jobs and says why.
    let worker = Worker::start(&place.uri(Role::Operator), &[RETRY]);
    let right = if place.ready.vhost.broker().release() >= (4, 3) {
        // There one is told nothing about what one has no right on.
        "queue spark.expelled cannot be looked for: the user 'spark-operator' has no right"
    } else {
        "the user 'spark-operator' has no right to write exchange 'spark.ledger'"
    };
    worker.logged(right).await;
}

#[tokio::test]
async fn a_worker_that_may_not_declare_says_what_is_missing_and_goes_on_once_it_is_there() {
    let mut place = Place::new().await;
    place.ready.vhost.http("DELETE", "/api/queues/{}/spark.delay.200ms", None);
    let worker = Worker::start(&place.uri(Role::Worker), &[RETRY]);
    worker
        .logged("queue spark.delay.200ms is missing, and the user 'spark-worker' has no right to configure")
        .await;
    let declared = call(&place.ready.vhost.uri(), &[RETRY], &["topology", "declare"]).await;
    assert_eq!(declared.code, Some(0), "{declared:?}");
    place.ready.publish("first", text("first", &["complete"])).await;
    place.ready.end_of("first").await;

    place.ready.vhost.http("DELETE", "/api/queues/{}/spark.jobs", None);
    worker.logged("queue spark.jobs is missing, and the user 'spark-worker' has no right to configure").await;
    let declared = call(&place.ready.vhost.uri(), &[RETRY], &["topology", "declare"]).await;
    assert_eq!(declared.code, Some(0), "{declared:?}");
    place.ready.publish("second", text("second", &["complete"])).await;
    assert_eq!(place.ready.end_of("second").await.kind(), Some(EventKind::Completed));
}
