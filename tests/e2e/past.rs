//! What is known of jobs without a worker and without having listened: `status` and `jobs`. And what is said about an id
//! that two different jobs want.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::event::{Event, EventData, EventKind, JobResult, TraceContext};
use spark_runtime_protocol::{JobId, JobType};
use spark_runtime_tests::broker::{Broker, Ready, Vhost};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::{Called, Worker, call, children_of, hangs};
use spark_runtime_tests::until;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";

async fn ask(place: &Ready, arguments: &[&str]) -> Called {
    call(&place.vhost.uri(), &[], arguments).await
}

async fn status(place: &Ready, id: &str) -> Value {
    let called = ask(place, &["status", id, "--json"]).await;
    assert_eq!(called.code, Some(0), "{called:?}");
    called.json()
}

/// The ids of a list of jobs.
fn ids(list: &Value) -> Vec<&str> {
    list["jobs"].as_array().unwrap().iter().map(|job| job["jobId"].as_str().unwrap()).collect()
}

fn kinds(story: &Value) -> Vec<&str> {
    let kind = |event: &'_ Value| event["type"].as_str().unwrap().to_owned();
    let known = ["submitted", "running", "retrying", "completed", "failed", "cancelled", "rejected"];
    let events = story["events"].as_array().unwrap().iter();
    events
        .filter_map(|event| known.into_iter().find(|word| kind(event).contains(&format!(".{word}."))))
        .collect()
}

fn gate(folder: &Path) -> PathBuf {
    let gate = folder.join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    gate
}

#[tokio::test]
async fn what_became_of_jobs_is_known_when_everything_is_over_to_somebody_who_was_not_there() {
    let mut place = Vhost::ready(&DELAYS).await;
    {
        let mut worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=2"]);
        place.publish("good", text("good", &["results {\"auc\": 0.5}"])).await;
        place.end_of("good").await;
        place.publish("bad", text("bad", &["fail ValueError no such column"])).await;
        place.end_of("bad").await;
        place.publish("twice", text("twice", &["crash-before-hello"])).await;
        place.end_of("twice").await;
        place.publish("none", "{}").await;
        place.end_of("none").await;
        assert_eq!(ask(&place, &["cancel", "unwanted"]).await.code, Some(0));
        place.publish("unwanted", text("unwanted", &["complete"])).await;
        place.end_of("unwanted").await;
        worker.signal(Signal::SIGTERM);
        assert!(worker.ended().await.success());
    }
    let good = status(&place, "good").await;
    assert_eq!((&good["standing"], &good["ending"]), (&json!("settled"), &json!("completed")), "{good}");
    assert_eq!((&good["attempt"], kinds(&good)), (&json!(1), vec!["submitted", "running", "completed"]));
    assert_eq!(good["events"][2]["data"]["results"]["auc"], 0.5);
    assert_eq!(good["events"][2]["source"], good["worker"]);
    let called = ask(&place, &["status", "good"]).await;
    assert!(called.out.contains("standing: settled\nattempt: 1\nworker: "), "{called:?}");
    assert!(called.out.contains("completed in ") && called.out.contains("\"auc\": 0.5"), "{called:?}");
    let called = ask(&place, &["status", "bad"]).await;
    assert!(called.out.contains("failed (model): the model raised ValueError: no such column"), "{called:?}");
    let twice = status(&place, "twice").await;
    assert_eq!(twice["attempt"], 2);
    assert_eq!(kinds(&twice), ["submitted", "retrying", "submitted", "failed"], "{twice}");
    assert!(ask(&place, &["status", "none"]).await.out.contains("rejected:"));
    assert_eq!(status(&place, "unwanted").await["ending"], "cancelled");

    let list = ask(&place, &["jobs", "--json"]).await.json();
    assert_eq!(ids(&list), ["unwanted", "none", "twice", "bad", "good"]);
    assert_eq!(list["all"], 5);
    assert_eq!(list["jobs"][2]["failureClass"], "submit");
    let failed = ask(&place, &["jobs", "--json", "--state", "failed", "--limit", "1"]).await.json();
    assert_eq!((ids(&failed), &failed["all"]), (vec!["twice"], &json!(2)));
    let called = ask(&place, &["jobs", "--state", "failed,rejected,running"]).await;
    let lines: Vec<&str> = called.out.lines().collect();
    assert_eq!(lines.len(), 4, "{called:?}");
    assert!(lines[0].contains(" none rejected on ") && lines[0].contains("fault"), "{called:?}");
    assert!(
        lines[2].ends_with("attempt 1: model: the model raised ValueError: no such column"),
        "{called:?}"
    );
    assert_eq!(lines[3], "3 jobs");
}

#[tokio::test]
async fn status_of_a_running_job_says_who_runs_it_since_when_and_which_attempt() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let gate = gate(worker.home.path());
    let counter = worker.home.path().join("counter");
    let directives = [
        format!("times 1 {} exit 3", counter.display()),
        "hello".into(),
        format!("wait-for {}", gate.display()),
    ];
    let directives: Vec<&str> = directives.iter().map(String::as_str).collect();
    place.publish("r", text("r", &directives)).await;
    let running = place.heard("r", &[EventKind::Running]).await;
    let now = status(&place, "r").await;
    assert_eq!(
        (&now["standing"], &now["attempt"], &now["failures"]),
        (&json!("running"), &json!(2), &json!(1))
    );
    assert_eq!((now["worker"].as_str(), &now["phase"]), (Some(running.source.as_str()), &json!("running")));
    let since: jiff::Timestamp = now["since"].as_str().unwrap().parse().unwrap();
    assert!(since <= running.time && running.time.duration_since(since).as_secs() < 60, "{now}");
    assert_eq!(kinds(&now), ["submitted", "retrying", "submitted", "running"]);
    let called = ask(&place, &["status", "r"]).await;
    assert!(called.out.contains("attempt: 2, after 1 failure\n"), "{called:?}");
    assert!(called.out.contains("attempt 1 ended: submit: "), "{called:?}");
    let list = ask(&place, &["jobs", "--state=running"]).await;
    assert!(list.out.contains(&format!(" r running on {}, attempt 2\n1 job\n", running.source)), "{list:?}");
    std::fs::write(&gate, "").unwrap();
    place.end_of("r").await;
    let then = status(&place, "r").await;
    assert_eq!((&then["ending"], &then["attempt"]), (&json!("completed"), &json!(2)));
    assert_eq!(ask(&place, &["jobs", "--state=running"]).await.out, "0 jobs\n");
}

#[tokio::test]
async fn status_of_a_job_between_two_attempts_says_that_it_waits_and_why() {
    let mut place = Vhost::ready(&[Duration::from_secs(20)]).await;
    let worker = Worker::start(&place.vhost.uri(), &["retry.delays=20s"]);
    place.publish("w", text("w", &["crash-before-hello"])).await;
    let retrying = place.heard("w", &[EventKind::Retrying]).await;
    drop(worker);
    let now = status(&place, "w").await;
    assert_eq!(
        (&now["standing"], &now["attempt"], &now["failures"]),
        (&json!("waiting"), &json!(1), &json!(1))
    );
    assert_eq!(now["since"], json!(retrying.time));
    let called = ask(&place, &["jobs", "--state", "waiting"]).await;
    assert!(called.out.ends_with(" w waiting after 1 attempt, 1 failure\n1 job\n"), "{called:?}");
}

#[tokio::test]
async fn a_job_of_which_nothing_is_known_is_answered_with_exit_code_66() {
    let place = Vhost::ready(&DELAYS).await;
    // Nothing was ever written.
    let called = ask(&place, &["status", "nobody"]).await;
    assert_eq!((called.code, called.out.as_str()), (Some(66), ""), "{called:?}");
    assert!(called.err.starts_with("nothing is known of the job nobody: "), "{called:?}");
    assert_eq!(ask(&place, &["jobs"]).await.out, "0 jobs\n");
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    worker.logged("the ledger has been read").await;
    let called = ask(&place, &["status", "nobody", "--json"]).await;
    assert_eq!((called.code, &called.json()["standing"]), (Some(66), &json!("unknown")), "{called:?}");
    assert_eq!(ask(&place, &["cancel", "nobody"]).await.code, Some(0));
    let called = ask(&place, &["status", "nobody"]).await;
    assert_eq!(called.code, Some(66), "{called:?}");
    assert!(called.err.contains("it is cancelled: when one takes it, it is not run"), "{called:?}");
    // What was only cancelled is no job yet.
    assert_eq!(ask(&place, &["jobs"]).await.out, "0 jobs\n");
    let bare = Broker::shared().vhost();
    for arguments in [&["status", "x"][..], &["jobs"]] {
        let called = call(&bare.uri(), &[], arguments).await;
        assert_eq!(called.code, Some(76), "{called:?}");
        assert!(called.err.contains("topology declare"), "{called:?}");
    }
}

/// A terminal event as a worker makes it that has lost the job before it could settle it.
fn forged_end(id: &str, attempt: u32) -> Event {
    let id = JobId::new(id).unwrap();
    let mut data = EventData::new(EventKind::Completed, &id, Some(JobType::Score), attempt, "forger");
    data.job_result = Some(JobResult::Success);
    Event::new(EventKind::Completed, "forger", &TraceContext::default(), data)
}

#[tokio::test]
async fn an_end_in_the_history_that_the_ledger_does_not_know_does_not_count() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let gate = gate(worker.home.path());
    place.publish("x", text("x", &[&format!("wait-for {}", gate.display()), "fail ValueError x"])).await;
    place.heard("x", &[EventKind::Running]).await;
    let endpoint = Endpoint::new(&place.vhost.uri(), Duration::from_secs(10)).unwrap();
    let connection = endpoint.connect("forger").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for attempt in [1, 2] {
        let end = forged_end("x", attempt);
        let properties = BasicProperties::default()
            .with_message_id(end.id.as_str().into())
            .with_timestamp(end.time.as_second().try_into().unwrap());
        let body = serde_json::to_vec(&end).unwrap();
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish("spark.history".into(), "".into(), options, &body, properties);
        published.await.unwrap().await.unwrap();
    }
    let now = status(&place, "x").await;
    assert_eq!((&now["standing"], kinds(&now)), (&json!("running"), vec!["submitted", "running"]), "{now}");
    std::fs::write(&gate, "").unwrap();
    place.end_of("x").await;
    let then = status(&place, "x").await;
    assert_eq!((&then["ending"], kinds(&then)), (&json!("failed"), vec!["submitted", "running", "failed"]));
}

#[tokio::test]
async fn an_end_is_known_as_soon_as_it_was_published_however_much_is_written_meanwhile() {
    let mut place = Vhost::ready(&DELAYS).await;
    let uri = place.vhost.uri();
    let _worker = Worker::start(&uri, &[RETRY, "worker.max_running=3"]);
    // Others keep the streams busy.
    let others = tokio::spawn({
        let client = place.vhost.client().await;
        async move {
            for number in 0..2000 {
                let id = JobId::new(&format!("other-{number}")).unwrap();
                let body = text(id.as_str(), &["complete"]).into_bytes();
                client.publish(&spark_runtime_protocol::client::Submission::new(id, body)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    for number in 0..15 {
        let id = format!("e{number}");
        place.publish(&id, text(&id, &["complete"])).await;
        place.end_of(&id).await;
        let now = status(&place, &id).await;
        assert_eq!((&now["ending"], kinds(&now).last()), (&json!("completed"), Some(&"completed")), "{now}");
        let list = ask(&place, &["jobs", "--json", "--limit", "1000"]).await.json();
        assert!(ids(&list).contains(&id.as_str()), "{id}: {list}");
    }
    others.abort();
}

#[tokio::test]
async fn all_that_the_broker_had_confirmed_counts_also_when_it_came_in_one_burst() {
    let place = Vhost::ready(&DELAYS).await;
    let endpoint = Endpoint::new(&place.vhost.uri(), Duration::from_secs(10)).unwrap();
    let connection = endpoint.connect("writer").await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let now = jiff::Timestamp::now().as_millisecond();
    let mut offset = 0_u64;
    let mut expected = 0;
    for round in 0..4 {
        // As a worker writes them that takes and ends many jobs in a moment; a claim is known by its place.
        let mut records = vec![json!({"renew": {"name": "w", "lease_ms": 60_000}})];
        for number in 0..300 {
            let job = format!("r{round}-{number}");
            let claim = (offset + records.len() as u64) << 8;
            records.push(
                json!({"claim": {"job": job, "digest": "44136fa355b3678a", "terms": "free", "at": now}}),
            );
            records.push(json!({"settle": {"job": job, "claim": claim, "end": "completed", "at": now}}));
            expected += 1;
        }
        let mut confirmations = Vec::new();
        for record in records {
            let entry = json!({
                "version": 1, "instance": "00000000000000aa", "sequence": offset, "records": [record]
            });
            offset += 1;
            let (body, properties) = (entry.to_string(), BasicProperties::default().with_delivery_mode(2));
            let options = BasicPublishOptions::default();
            let published =
                channel.basic_publish("spark.ledger".into(), "".into(), options, body.as_bytes(), properties);
            confirmations.push(published.await.unwrap());
        }
        for confirmation in confirmations {
            confirmation.await.unwrap();
        }
        let list = ask(&place, &["jobs", "--json", "--state", "completed", "--limit", "1"]).await.json();
        assert_eq!((&list["all"], ids(&list)), (&json!(expected), vec![format!("r{round}-299").as_str()]));
        let last = status(&place, &format!("r{round}-299")).await;
        assert_eq!((&last["ending"], &last["worker"]), (&json!("completed"), &json!("w")), "{last}");
    }
}

#[tokio::test]
async fn a_job_whose_worker_and_guard_are_gone_is_told_as_the_ledger_has_it() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let counter = worker.home.path().join("counter");
    place.publish("k", text("k", &[&format!("times 1 {} hang", counter.display())])).await;
    let running = place.heard("k", &[EventKind::Running]).await;
    hangs(&counter).await;
    for guard in children_of(worker.pid()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), Signal::SIGKILL);
    }
    worker.signal(Signal::SIGKILL);
    let now = status(&place, "k").await;
    assert_eq!(
        (&now["standing"], now["worker"].as_str()),
        (&json!("running"), Some(running.source.as_str()))
    );
    // Nobody says so but the next worker, which takes it over, or a guard: here there is none.
    let next = Worker::start(&place.vhost.uri(), &[RETRY]);
    next.logged("the ledger has been read").await;
    assert_eq!(ask(&place, &["cancel", "k"]).await.code, Some(0));
    let called = ask(&place, &["status", "k"]).await;
    assert!(called.out.contains("cancelled: it is being ended\n"), "{called:?}");
}

#[tokio::test]
async fn a_replayed_job_is_listed_once_as_what_became_of_it_last() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=1"]);
    let counter = worker.home.path().join("counter");
    place.publish("d", text("d", &[&format!("times 1 {} signal 9", counter.display()), "complete"])).await;
    assert_eq!(place.end_of("d").await.kind(), Some(EventKind::Failed));
    place.queue_has("spark.dead", 1).await;
    assert_eq!(ask(&place, &["dead", "replay", "d"]).await.code, Some(0));
    place.heard("d", &[EventKind::Completed]).await;
    let list = ask(&place, &["jobs", "--json"]).await.json();
    assert_eq!((ids(&list), &list["all"]), (vec!["d"], &json!(1)));
    assert_eq!((&list["jobs"][0]["ending"], &list["jobs"][0]["attempt"]), (&json!("completed"), &json!(2)));
    let failed = ask(&place, &["jobs", "--json", "--state=failed"]).await.json();
    assert_eq!((ids(&failed), &failed["all"]), (vec![], &json!(0)));
    assert_eq!(kinds(&status(&place, "d").await).last(), Some(&"completed"));
}

#[tokio::test]
async fn the_end_of_another_job_under_the_same_id_is_not_taken_for_ones_own() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "worker.max_running=1"]);
    let gate = gate(worker.home.path());
    place.publish("c", text("c", &[&format!("wait-for {}", gate.display())])).await;
    place.heard("c", &[EventKind::Running]).await;
    let other = worker.home.path().join("other.json");
    std::fs::write(&other, text("c", &["complete"])).unwrap();
    let uri = place.vhost.uri();
    let submitting =
        tokio::spawn(async move { call(&uri, &[], &["submit", other.to_str().unwrap(), "--wait"]).await });
    // It waits behind the first, which ends while its publisher listens.
    place.queue_has("spark.jobs", 2).await;
    std::fs::write(&gate, "").unwrap();
    assert_eq!(place.end_of("c").await.kind(), Some(EventKind::Completed));
    let called = submitting.await.unwrap();
    assert_eq!(called.code, Some(2), "{called:?}");
    assert!(called.out.contains("conflict: the id belongs to a job with another body"), "{called:?}");
}

#[tokio::test]
async fn submit_ends_at_a_conflict_about_its_own_job_and_watch_goes_on() {
    let mut place = Vhost::ready(&DELAYS).await;
    let uri = place.vhost.uri();
    let worker = Worker::start(&uri, &[RETRY, "worker.max_running=2"]);
    let gate = gate(worker.home.path());
    let file = |name: &str, directives: &[&str]| {
        let path = worker.home.path().join(name);
        std::fs::write(&path, text("c", directives)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let first = file("first.json", &[&format!("wait-for {}", gate.display())]);
    let other = file("other.json", &["complete"]);
    let following = |arguments: &[&str]| {
        let (uri, arguments) = (uri.clone(), arguments.iter().map(ToString::to_string).collect::<Vec<_>>());
        tokio::spawn(async move {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            call(&uri, &[], &arguments).await
        })
    };
    let watching = following(&["watch", "c"]);
    let submitting = following(&["submit", &first, "--wait"]);
    place.heard("c", &[EventKind::Running]).await;
    // Both listen when their queues are there, beside the one of this test.
    until("the queues of those who listen", async || {
        let queues = place.vhost.http("GET", "/api/queues/{}", None);
        let names = queues.as_array()?.iter().filter_map(|queue| queue["name"].as_str());
        (names.filter(|name| name.starts_with("amq.gen")).count() == 3).then_some(())
    })
    .await;
    let called = ask(&place, &["submit", &other, "--wait"]).await;
    assert_eq!(called.code, Some(2), "{called:?}");
    assert!(called.out.contains("conflict: the id belongs to a job with another body"), "{called:?}");
    let called = ask(&place, &["submit", &other, "--wait", "--json"]).await;
    let last: Value = serde_json::from_str(called.out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (called.code, &last["type"]),
        (Some(2), &json!("spark-runtime.job.conflict.v1")),
        "{called:?}"
    );
    std::fs::write(&gate, "").unwrap();
    let called = submitting.await.unwrap();
    assert_eq!(called.code, Some(0), "the conflict is not about this one: {called:?}");
    assert!(called.err.contains("conflict: "), "{called:?}");
    let called = watching.await.unwrap();
    assert_eq!(called.code, Some(0), "{called:?}");
    assert!(called.out.lines().any(|line| line.contains(" c conflict: the id belongs to")), "{called:?}");
    place.queue_has("spark.dead", 2).await;
    let conflict = serde_json::to_value(place.heard("c", &[EventKind::Conflict]).await).unwrap();
    let schema: Value = serde_json::from_str(spark_runtime_protocol::schema::event()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let faults: Vec<_> = validator.iter_errors(&conflict).map(|error| error.to_string()).collect();
    assert!(faults.is_empty(), "{conflict}: {faults:?}");
}
