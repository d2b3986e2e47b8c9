//! Who has a job: through cut wires, killed and stopped workers, and publications that come again.

use std::path::Path;
use std::time::{Duration, Instant};

use lapin::options::BasicGetOptions;
use nix::sys::signal::Signal;
use serde_json::json;
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::event::{Event, EventKind, FailureClass};
use spark_runtime_protocol::topology::{JOBS_QUEUE, Shape};
use spark_runtime_tests::broker::{Ready, Vhost};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::{Worker, children_of, hangs};
use spark_runtime_tests::until;
use spark_runtime_tests::wire::Wire;

const RETRY: &str = "retry.delays=200ms";
const LEASE: &str = "ledger.lease=3s";
const SETTINGS: [&str; 2] = [RETRY, LEASE];

async fn ready() -> Ready {
    let shape = Shape {
        delays: vec![Duration::from_millis(200)],
        lease: Duration::from_secs(3),
        retention: Duration::from_secs(7 * 24 * 3600),
    };
    Vhost::ready_for(&shape).await
}

/// How often the fake has started for a job, and whether two ever ran at once.
fn runs(journal: &Path) -> (usize, bool) {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    let starts = text.lines().filter(|line| line.contains("start") || line.contains("overlap")).count();
    (starts, text.contains("overlap"))
}

#[tokio::test]
async fn a_blip_shorter_than_the_lease_costs_nothing() {
    let mut place = Vhost::ready(&[Duration::from_millis(200)]).await;
    let wire = Wire::to(place.vhost.broker().port()).await;
    let worker = Worker::start(&place.vhost.uri_at(wire.port), &[RETRY]);
    let journal = worker.home.path().join("journal");
    let gate = worker.home.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let directives = [format!("journal {}", journal.display()), format!("wait-for {}", gate.display())];
    let directives: Vec<&str> = directives.iter().map(String::as_str).collect();
    place.publish("blip", text("blip", &directives)).await;
    place.heard("blip", &[EventKind::Running]).await;
    wire.cut();
    worker.logged("a delivery is lost; its job goes on").await;
    wire.mend();
    worker.logged("generation=2").await;
    std::fs::write(&gate, "").unwrap();
    let end = place.end_of("blip").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1));
    place.queue_has("spark.jobs", 0).await;
    assert_eq!(runs(&journal), (1, false));
}

#[tokio::test]
async fn after_an_outage_longer_than_the_lease_the_job_was_ended_and_runs_again() {
    let mut place = ready().await;
    let wire = Wire::to(place.vhost.broker().port()).await;
    let worker = Worker::start(&place.vhost.uri_at(wire.port), &SETTINGS);
    let counter = worker.home.path().join("counter");
    let directives =
        ["ignore-term", "spawn-daemon", &format!("times 1 {} hang", counter.display()), "complete"];
    place.publish("cut", text("cut", &directives)).await;
    place.heard("cut", &[EventKind::Running]).await;
    hangs(&counter).await;
    wire.cut();
    worker.nothing_left().await;
    wire.mend();
    let end = place.end_of("cut").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2), "{:?}", place.story("cut"));
    place.queue_has("spark.jobs", 0).await;
}

#[tokio::test]
async fn a_dead_workers_jobs_are_released_by_its_guard_long_before_the_lease() {
    let mut place = Vhost::ready(&[Duration::from_millis(200)]).await;
    let uri = place.vhost.uri();
    let folder = tempfile::tempdir().unwrap();
    let counter = folder.path().join("counter");
    let journal = folder.path().join("journal");
    let first = Worker::start(&uri, &[RETRY]);
    let directives = [
        format!("journal {}", journal.display()),
        "ignore-term".into(),
        "spawn-daemon".into(),
        format!("times 1 {} hang", counter.display()),
    ];
    let directives: Vec<&str> = directives.iter().map(String::as_str).collect();
    place.publish("k", text("k", &directives)).await;
    hangs(&counter).await;
    let second = Worker::start(&uri, &[RETRY]);
    second.logged("the ledger has been read").await;
    let killed = Instant::now();
    first.signal(Signal::SIGKILL);
    let end = place.end_of("k").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
    // The lease is a minute: by it alone this would have taken longer.
    assert!(killed.elapsed() < Duration::from_secs(45), "{:?}", killed.elapsed());
    assert_eq!(runs(&journal), (2, false));
    place.queue_has("spark.jobs", 0).await;
}

#[tokio::test]
async fn a_lost_machines_jobs_are_taken_over_after_the_lease_and_not_before() {
    let mut place = ready().await;
    let uri = place.vhost.uri();
    let folder = tempfile::tempdir().unwrap();
    let counter = folder.path().join("counter");
    let journal = folder.path().join("journal");
    let first = Worker::start(&uri, &SETTINGS);
    let directives =
        [format!("journal {}", journal.display()), format!("times 1 {} hang", counter.display())];
    let directives: Vec<&str> = directives.iter().map(String::as_str).collect();
    place.publish("m", text("m", &directives)).await;
    hangs(&counter).await;
    let second = Worker::start(&uri, &SETTINGS);
    second.logged("the ledger has been read").await;
    for guard in children_of(first.pid()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), Signal::SIGKILL);
    }
    first.signal(Signal::SIGKILL);
    let killed = Instant::now();
    until("the second run", async || (runs(&journal).0 == 2).then_some(())).await;
    let after = killed.elapsed();
    assert!(after >= Duration::from_secs(3), "it was taken over after {after:?}");
    let end = place.end_of("m").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
    assert_eq!(runs(&journal), (2, false));
    place.queue_has("spark.jobs", 0).await;
    place.queue_has("spark.delay.3000ms", 0).await;
}

#[tokio::test]
async fn a_stopped_workers_jobs_are_ended_before_another_one_runs_them() {
    let mut place = ready().await;
    let uri = place.vhost.uri();
    let folder = tempfile::tempdir().unwrap();
    let counter = folder.path().join("counter");
    let journal = folder.path().join("journal");
    let first = Worker::start(&uri, &["broker.heartbeat=1s", RETRY, LEASE]);
    let directives = [
        format!("journal {}", journal.display()),
        "ignore-term".into(),
        format!("times 1 {} hang", counter.display()),
    ];
    let directives: Vec<&str> = directives.iter().map(String::as_str).collect();
    place.publish("s", text("s", &directives)).await;
    hangs(&counter).await;
    let second = Worker::start(&uri, &SETTINGS);
    second.logged("the ledger has been read").await;
    first.signal(Signal::SIGSTOP);
    let end = place.end_of("s").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
    assert_eq!(runs(&journal), (2, false));
    // What the first one says when it wakes up counts for nothing.
    first.signal(Signal::SIGCONT);
    first.logged("the job is another worker's by now").await;
    place.publish("after", text("after", &["complete"])).await;
    place.end_of("after").await;
    let ends = place
        .seen
        .iter()
        .filter(|event| event.subject.as_str() == "s" && event.kind().is_some_and(EventKind::is_terminal));
    assert_eq!(ends.count(), 1);
}

#[tokio::test]
async fn a_job_that_is_published_a_thousand_times_runs_once_and_each_publication_is_answered() {
    let mut place = ready().await;
    let uri = place.vhost.uri();
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    // Whoever listens hears each event once: the answers are counted where they arrive.
    place.vhost.http("PUT", "/api/queues/{}/answers", Some(&json!({"durable": true})));
    let binding = json!({"routing_key": "job.d.completed"});
    place.vhost.http("POST", "/api/bindings/{}/e/spark.results/q/answers", Some(&binding));
    let workers = [Worker::start(&uri, &SETTINGS), Worker::start(&uri, &SETTINGS)];
    let body = text("d", &[&format!("journal {}", journal.display()), "sleep 1"]);
    for _ in 0..100 {
        place.publish("d", body.clone()).await;
    }
    let end = place.end_of("d").await;
    for _ in 0..900 {
        place.publish("d", body.clone()).await;
    }
    for queue in ["spark.jobs", "spark.delay.3000ms"] {
        place.queue_has(queue, 0).await;
    }
    place.queue_has("spark.jobs", 0).await;
    assert_eq!(end.data.attempt, 1);
    assert_eq!(runs(&journal), (1, false));
    // Publications that waited while it ran are answered as well.
    until("an answer to each", async || (place.vhost.messages("answers") >= 1000).then_some(())).await;
    drop(workers);
}

#[tokio::test]
async fn another_body_under_the_same_id_is_answered_by_a_conflict_and_disturbs_nothing() {
    let mut place = ready().await;
    let uri = place.vhost.uri();
    let worker = Worker::start(&uri, &SETTINGS);
    let gate = worker.home.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    place.publish("c", text("c", &[&format!("wait-for {}", gate.display())])).await;
    place.heard("c", &[EventKind::Running]).await;
    place.publish("c", text("c", &["fail ValueError other"])).await;
    let conflict = place.heard("c", &[EventKind::Conflict]).await;
    let digests = conflict.data.digests.unwrap();
    assert_ne!(digests.first, digests.this);
    assert!(conflict.data.message.unwrap().contains(&digests.this));
    std::fs::write(&gate, "").unwrap();
    assert_eq!(place.end_of("c").await.kind(), Some(EventKind::Completed));
    place.queue_has("spark.dead", 1).await;
    place.seen.clear();
    place.publish("c", text("c", &["fail ValueError third"])).await;
    let conflict = place.heard("c", &[EventKind::Conflict]).await;
    assert_eq!(conflict.data.digests.unwrap().first, digests.first);
    // So is the job's own document, as others have written its end into it.
    let mut ended = spark_runtime_tests::jobs::job("c", &[]);
    ended["jobStatus"] = json!("COMPLETE");
    place.publish("c", ended.to_string()).await;
    place.queue_has("spark.dead", 3).await;
    place.queue_has("spark.jobs", 0).await;
    place.publish("after", text("after", &["complete"])).await;
    place.end_of("after").await;
    let words: Vec<_> = place.seen.iter().filter_map(|event| event.data.message.as_deref()).collect();
    assert!(
        words.iter().any(|words| words.contains("/jobStatus") && words.contains("COMPLETE")),
        "{words:#?}"
    );
    let is_end =
        |event: &&Event| event.subject.as_str() == "c" && event.kind().is_some_and(EventKind::is_terminal);
    assert_eq!(place.seen.iter().filter(is_end).count(), 0, "{:#?}", place.story("c"));
}

#[tokio::test]
async fn a_job_that_kills_every_worker_ends_as_lost_after_its_attempts() {
    let mut place = ready().await;
    let uri = place.vhost.uri();
    let folder = tempfile::tempdir().unwrap();
    place.publish("p", text("p", &["hang"])).await;
    for attempt in 1..=3 {
        let worker = Worker::start(&uri, &SETTINGS);
        loop {
            let running = place.heard("p", &[EventKind::Running]).await;
            if running.data.attempt == attempt {
                break;
            }
            place.seen.clear();
        }
        place.seen.clear();
        worker.signal(Signal::SIGKILL);
    }
    let _last = Worker::start(&uri, &SETTINGS);
    let failure = place.end_of("p").await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Lost);
    place.queue_has("spark.dead", 1).await;
    place.queue_has("spark.jobs", 0).await;
    drop(folder);
}

#[tokio::test]
async fn a_job_that_no_worker_gets_to_look_at_ends_as_lost_at_the_queues_delivery_limit() {
    let mut place = ready().await;
    let uri = place.vhost.uri();
    place.publish("l", text("l", &["complete"])).await;
    let connection = Endpoint::new(&uri, Duration::from_secs(30)).unwrap().connect("loser").await.unwrap();
    let mut lost = 0;
    loop {
        let channel = connection.create_channel().await.unwrap();
        let got = channel.basic_get(JOBS_QUEUE.into(), BasicGetOptions::default()).await.unwrap();
        channel.close(200, "lost".into()).await.unwrap();
        match got {
            Some(_) => lost += 1,
            None if place.vhost.messages("spark.expelled") == 1 => break,
            None => {}
        }
        assert!(lost <= 1100, "it was lost {lost} times");
    }
    assert!(lost >= 1000, "it was lost {lost} times");
    let _worker = Worker::start(&uri, &SETTINGS);
    let failure = place.end_of("l").await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Lost);
    assert!(failure.message.contains("up to the queue's delivery limit"), "{}", failure.message);
    place.queue_has("spark.dead", 1).await;
    place.queue_has("spark.expelled", 0).await;
}

/// At each place in the life of a job, what it does there, and whether the job has ended by then.
const PLACES: [(&str, &[&str]); 11] = [
    ("after-claim", &[]),
    ("after-stage", &[]),
    ("after-spawn", &[]),
    ("before-history", &[]),
    ("before-settle", &[]),
    ("after-settle", &[]),
    ("before-event", &[]),
    ("before-ack", &[]),
    ("before-release", UNREADABLE),
    ("after-release", UNREADABLE),
    // On the way to another attempt.
    ("before-ack", UNREADABLE),
];

/// After this there is another attempt.
const UNREADABLE: &[&str] = &["report no JSON at all"];

#[tokio::test]
async fn wherever_a_worker_dies_its_job_ends_once() {
    let mut place = ready().await;
    let uri = place.vhost.uri();
    let folder = tempfile::tempdir().unwrap();
    for (number, (place_of_death, directives)) in PLACES.into_iter().enumerate() {
        let name = &format!("{place_of_death}-{number}");
        let journal = folder.path().join(name);
        let counter = folder.path().join(format!("{name}-counter"));
        let mut first = Worker::start_to_die_at(&uri, &SETTINGS, place_of_death);
        let mut all = vec![format!("journal {}", journal.display())];
        all.extend(directives.iter().map(|directive| format!("times 1 {} {directive}", counter.display())));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        place.publish(name, text(name, &all)).await;
        first.ended().await;
        let second = Worker::start(&uri, &SETTINGS);
        let end = place.end_of(name).await;
        assert_eq!(end.kind(), Some(EventKind::Completed), "{name}: {end:#?}");
        for queue in ["spark.jobs", "spark.delay.3000ms", "spark.delay.200ms"] {
            place.queue_has(queue, 0).await;
        }
        let (starts, overlap) = runs(&journal);
        assert!(!overlap && (1..=2).contains(&starts), "{name}: {starts} runs");
        // What was settled is not run again, and only told again.
        let is_settled =
            ["after-settle", "before-event", "before-ack"].contains(&place_of_death) && directives.is_empty();
        if is_settled {
            assert_eq!((starts, end.data.attempt), (1, 1), "{name}");
        }
        let ends: Vec<_> = place
            .seen
            .iter()
            .filter(|e| e.subject.as_str() == name && e.kind().is_some_and(EventKind::is_terminal))
            .collect();
        assert!(ends.iter().all(|e| **e == end), "{name}: {ends:#?}");
        drop(second);
    }
}

#[tokio::test]
async fn what_a_dead_attempt_left_is_removed_and_what_was_there_before_is_not() {
    let mut place = ready().await;
    let uri = place.vhost.uri();
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let counter = folder.path().join("counter");
    std::fs::write(&old, "mine").unwrap();
    let mut document = spark_runtime_tests::jobs::job(
        "out",
        &[&format!("write {} x", new.display()), &format!("times 1 {} hang", counter.display())],
    );
    let output = |path: &Path| serde_json::json!({"assetType": "EXTERNAL_FILE", "name": "o", "fileUrl": path, "fileFormat": "CSV"});
    document["outputData"] = serde_json::json!([output(&old), output(&new)]);
    // Workers of one machine share its folder for attempts; one that has another is like one on another machine.
    let here = format!("job.directory={}", folder.path().join("attempts").display());
    let settings: Vec<&str> = SETTINGS.iter().copied().chain([here.as_str()]).collect();
    let worker = Worker::start(&uri, &settings);
    place.publish("out", document.to_string()).await;
    let accepted = place.heard("out", &[EventKind::Accepted]).await;
    assert!(accepted.data.message.unwrap().contains("was there before"));
    hangs(&counter).await;
    assert!(new.exists());
    worker.signal(Signal::SIGKILL);
    let refusing = Worker::start(&uri, &settings);
    let end = place.end_of("out").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
    let messages = end.data.job_messages.unwrap().join("\n");
    assert!(messages.contains("which an earlier attempt had left"), "{messages}");
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "mine");
    refusing.nothing_left().await;
    drop(refusing);
    // Nothing is known of it any more.
    until("no note", async || {
        let notes = std::fs::read_dir(folder.path().join("attempts/absences")).unwrap();
        (notes.count() == 0).then_some(())
    })
    .await;

    // The next attempt is on another machine, on which there is something of somebody else's at the same path.
    let mut document = spark_runtime_tests::jobs::job(
        "far",
        &[&format!("times 1 {} hang", folder.path().join("far").display())],
    );
    let theirs = folder.path().join("theirs");
    document["outputData"] = serde_json::json!([output(&theirs)]);
    let worker = Worker::start(&uri, &settings);
    place.publish("far", document.to_string()).await;
    hangs(&folder.path().join("far")).await;
    worker.signal(Signal::SIGKILL);
    std::fs::write(&theirs, "theirs").unwrap();
    let far = Worker::start(&uri, &SETTINGS);
    let end = place.end_of("far").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2), "{}", far.log());
    let messages = end.data.job_messages.unwrap().join("\n");
    assert!(messages.contains("is left as it is, since this machine does not know"), "{messages}");
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs");
}

#[tokio::test]
async fn a_worker_that_refuses_existing_outputs_says_which() {
    let mut place = ready().await;
    let folder = tempfile::tempdir().unwrap();
    let mut document = spark_runtime_tests::jobs::job("there", &["complete"]);
    document["outputData"] = serde_json::json!([
        {"assetType": "EXTERNAL_FILE", "name": "o", "fileUrl": folder.path(), "fileFormat": "CSV"}
    ]);
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY, LEASE, "job.existing_outputs=refuse"]);
    place.publish("there", document.to_string()).await;
    let faults = place.end_of("there").await.data.faults.unwrap();
    assert_eq!(faults[0].pointer, "/outputData/0/fileUrl");
}

#[tokio::test]
async fn what_is_none_of_the_ledgers_is_skipped_and_never_a_claim() {
    use lapin::BasicProperties;
    use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};

    let mut place = ready().await;
    let uri = place.vhost.uri();
    let endpoint = Endpoint::new(&uri, Duration::from_secs(10)).unwrap();
    let connection = endpoint.connect("test ledger").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let claim = |version: u32, job: &str, at: u64| {
        format!(
            r#"{{"version":{version},"instance":"00000000000000aa","sequence":1,"records":[{{"renew":{{"name":"x","lease_ms":86400000}}}},{{"claim":{{"job":"{job}","digest":"0000000000000000","terms":"free","at":{at}}}}}]}}"#
        )
    };
    let mut bodies = vec![
        String::new(),
        "garbage".to_owned(),
        "\u{0}\u{0}".to_owned(),
        claim(2, "victim", 1_800_000_000_000),
        claim(1, "victim", u64::MAX / 2),
        claim(1, "victim", 5_000_000_000_000),
        claim(1, &"v".repeat(1 << 20), 1_800_000_000_000),
        claim(1, "vic/tim", 1_800_000_000_000),
    ];
    bodies.extend((0..3000).map(|n| format!("garbage {n}")));
    // Before the worker reads its first record, and while it reads on.
    let (before, after) = bodies.split_at(1500);
    let publish = async |body: &String| {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        channel
            .basic_publish(
                "spark.ledger".into(),
                "".into(),
                options,
                body.as_bytes(),
                BasicProperties::default(),
            )
            .await
            .unwrap()
            .await
            .unwrap();
    };
    for body in before {
        publish(body).await;
    }
    let worker = Worker::start(&uri, &SETTINGS);
    worker.logged("the ledger has been read").await;
    for body in after.iter().chain(before) {
        publish(body).await;
    }
    place.publish("victim", text("victim", &["complete"])).await;
    let end = place.end_of("victim").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1));
    assert!(
        worker.log().contains("the record is of version 2, this worker reads version 1"),
        "{}",
        worker.log()
    );
    assert!(worker.log().lines().filter(|line| line.contains("was skipped")).count() < 50);
    let _ = connection.close(200, "done".into()).await;
}
