//! Checkpoints of the ledger: workers that start go on from one, and from none that is not the ledger's.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection};
use nix::sys::signal::Signal;
use spark_runtime_protocol::client::Topic;
use spark_runtime_protocol::connect::Endpoint;
use spark_runtime_protocol::event::{Event, EventKind};
use spark_runtime_protocol::topology::{CHECKPOINTS_EXCHANGE, CHECKPOINTS_STREAM};
use spark_runtime_tests::broker::{Ready, Vhost};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::Worker;
use spark_runtime_tests::until;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const SETTINGS: [&str; 2] = ["retry.delays=200ms", "ledger.checkpoint_every=1"];
const WRITTEN: &str = "a checkpoint of the ledger is written";
const GOES_ON: &str = "the ledger is read on from a checkpoint";
const REFUSED: &str = "no checkpoint is used: the ledger is read from its start";

/// Runs a job to its end, or hears how it ended before.
async fn run(place: &mut Ready, id: &str) -> Event {
    // A subscription gives no event twice.
    place.events = place.client.subscribe(&Topic::All).await.unwrap();
    place.seen.clear();
    place.publish(id, text(id, &["complete"])).await;
    let end = place.end_of(id).await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:#?}");
    end
}

async fn leave(mut worker: Worker) {
    worker.signal(Signal::SIGTERM);
    assert!(worker.ended().await.success(), "{}", worker.log());
}

/// A place where the job `first` has ended, and a checkpoint was written by a worker that is gone.
async fn with_a_checkpoint() -> (Ready, Event) {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &SETTINGS);
    let end = run(&mut place, "first").await;
    worker.logged(WRITTEN).await;
    leave(worker).await;
    // Workers look for one only where the broker has counted some, and it counts every few seconds.
    let connection = connect(&place).await;
    let channel = connection.create_channel().await.unwrap();
    until("the count of checkpoints", async || {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let declared = channel.queue_declare(CHECKPOINTS_STREAM.into(), options, FieldTable::default());
        (declared.await.unwrap().message_count() > 0).then_some(())
    })
    .await;
    (place, end)
}

async fn connect(place: &Ready) -> Connection {
    let endpoint = Endpoint::new(&place.vhost.uri(), Duration::from_secs(10)).unwrap();
    endpoint.connect("test checkpoints").await.unwrap()
}

#[tokio::test]
async fn a_worker_that_starts_goes_on_from_a_checkpoint_and_knows_which_jobs_have_ended() {
    let (mut place, end) = with_a_checkpoint().await;
    for _ in 0..2 {
        let worker = Worker::start(&place.vhost.uri(), &SETTINGS);
        worker.logged(GOES_ON).await;
        let again = run(&mut place, "first").await;
        assert_eq!((again.id, again.time), (end.id.clone(), end.time), "it did not run again");
        run(&mut place, &uuid::Uuid::new_v4().to_string()).await;
        worker.logged(WRITTEN).await;
        leave(worker).await;
    }
}

#[tokio::test]
async fn a_checkpoint_of_a_ledger_that_was_deleted_is_not_gone_on_from() {
    let (mut place, end) = with_a_checkpoint().await;
    place.vhost.http("DELETE", "/api/queues/{}/spark.ledger", None);
    let worker = Worker::start(&place.vhost.uri(), &SETTINGS);
    worker.logged(REFUSED).await;
    let again = run(&mut place, "first").await;
    assert_ne!(again.time, end.time, "nobody knows any more that it has run");
    worker.logged(WRITTEN).await;
    leave(worker).await;
    // The new ledger has its own.
    let worker = Worker::start(&place.vhost.uri(), &SETTINGS);
    worker.logged(GOES_ON).await;
    // The history still has its end from before, so that either may be told again.
    assert_eq!(run(&mut place, "first").await.id, again.id);
    worker.logged("the job has ended before; its end is told again").await;
}

#[tokio::test]
async fn whatever_lies_among_the_checkpoints_no_worker_fails_to_start() {
    let (mut place, end) = with_a_checkpoint().await;
    let connection = connect(&place).await;
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let digest = "0".repeat(64);
    let head = |part: u32, of: u32, offset: u64| {
        format!(
            r#"{{"version":1,"part":{part},"of":{of},"offset":{offset},"message":"{digest}","content":"{digest}"}}"#
        )
    };
    for bad in [
        // One of a worker that died while it wrote, one that is no fold, one of another release, and garbage.
        head(0, 3, 4) + "\nxxxx",
        head(0, 1, 4) + "\nxxxx",
        head(0, 1, u64::MAX) + "\n",
        head(0, 1, 4).replace(r#""version":1"#, r#""version":99"#) + "\nxxxx",
        "garbage".to_owned(),
        "\n".to_owned(),
        String::new(),
        "x".repeat(3 << 20),
    ] {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let body = bad.as_bytes();
        let published =
            channel.basic_publish(CHECKPOINTS_EXCHANGE.into(), "".into(), options, body, properties);
        published.await.unwrap().await.unwrap();
        let worker = Worker::start(&place.vhost.uri(), &["retry.delays=200ms"]);
        worker.logged("the ledger has been read").await;
        let again = run(&mut place, "first").await;
        assert_eq!((again.id, again.time), (end.id.clone(), end.time), "it did not run again");
        leave(worker).await;
    }
    // The next one that is written counts.
    let worker = Worker::start(&place.vhost.uri(), &SETTINGS);
    run(&mut place, "second").await;
    worker.logged(WRITTEN).await;
    leave(worker).await;
    Worker::start(&place.vhost.uri(), &SETTINGS).logged(GOES_ON).await;
}
