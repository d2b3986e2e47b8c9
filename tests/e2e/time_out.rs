//! The broker's patience with a delivery that stays unacknowledged, which a long job always outlasts somewhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use spark_runtime_protocol::event::EventKind;
use spark_runtime_protocol::topology::Shape;
use spark_runtime_tests::broker::{Broker, Own, Ready, Vhost};
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::Worker;
use spark_runtime_tests::until;

const RETRY: &str = "retry.delays=200ms";
const LEASE: &str = "ledger.lease=3s";

/// In milliseconds. RabbitMQ's own default is half an hour, and it recommends no less than a minute.
const PATIENCE: u32 = 8000;
/// How often the broker looks, in milliseconds, instead of each minute. A channel that is not looked at for a second goes
/// to sleep, and may be looked at twice at once when it wakes.
const LOOKS: u32 = 300;
/// From this release on the patience is the queue's; that of the node counts where a queue has none.
const OF_THE_QUEUE: (u32, u32) = (3, 12);
const LOST: &str = "a delivery is lost; its job goes on";

/// A broker that soon loses patience.
fn impatient() -> Own {
    let broker = Broker::own(&[("BROKER_CONF_EXTRA", &format!("consumer_timeout = {PATIENCE}"))]);
    for tick in ["channel_tick_interval", "quorum_tick_interval"] {
        broker.call(&format!("application set_env [rabbit,{tick},{LOOKS}]")).unwrap();
    }
    broker
}

/// The service's place on such a broker.
async fn place_on(broker: &'static Broker) -> Ready {
    let shape = Shape {
        delays: vec![Duration::from_millis(200)],
        lease: Duration::from_secs(3),
        retention: Duration::from_secs(7 * 24 * 3600),
    };
    let place = Vhost::ready_at(broker, &shape).await;
    if broker.release() >= OF_THE_QUEUE {
        // Of what a queue was declared with and what a policy says the smaller counts.
        let patience = json!({"consumer-timeout": PATIENCE});
        let policy = json!({"pattern": "^spark", "apply-to": "queues", "definition": patience});
        place.vhost.http("PUT", "/api/policies/{}/impatient", Some(&policy));
    }
    place
}

/// A job that goes on until its gate is opened, and a journal of its runs.
struct Long {
    folder: tempfile::TempDir,
}

impl Long {
    fn new() -> Self {
        let long = Self { folder: tempfile::tempdir().unwrap() };
        nix::unistd::mkfifo(&long.gate(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        long
    }

    fn gate(&self) -> PathBuf {
        self.folder.path().join("gate")
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    fn text(&self, id: &str) -> String {
        let directive = |word: &str, path: &Path| format!("{word} {}", path.display());
        let directives = [directive("journal", &self.journal()), directive("wait-for", &self.gate())];
        text(id, &directives.each_ref().map(String::as_str))
    }

    fn let_it_end(&self) {
        std::fs::write(self.gate(), "").unwrap();
    }

    fn runs(&self) -> usize {
        let journal = std::fs::read_to_string(self.journal()).unwrap();
        journal.lines().filter(|line| line.contains("start") || line.contains("overlap")).count()
    }
}

async fn lost_deliveries(workers: &[&Worker], count: usize) {
    until(&format!("{count} lost deliveries"), async || {
        let lost: usize = workers.iter().map(|worker| worker.log().matches(LOST).count()).sum();
        (lost >= count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_job_that_outlasts_the_brokers_patience_goes_on_and_runs_once() {
    let broker = impatient();
    let mut place = place_on(&broker).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, LEASE, "worker.max_running=2"]);
    let long = Long::new();
    place.publish("long", long.text("long")).await;
    place.heard("long", &[EventKind::Running]).await;
    // The second time it is the delivery that had taken the place of the first one.
    lost_deliveries(&[&worker], 2).await;
    long.let_it_end();
    let end = place.end_of("long").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1));
    place.queue_has("spark.jobs", 0).await;
    assert_eq!(long.runs(), 1);
    // What is read of a stream is acknowledged in time.
    assert!(!worker.log().contains("the ledger cannot be read"), "{}", worker.log());
}

#[tokio::test]
async fn a_worker_that_is_given_a_job_which_another_one_still_has_leaves_it_to_that_one() {
    let broker = impatient();
    let mut place = place_on(&broker).await;
    let settings = [RETRY, LEASE, "worker.max_running=1"];
    let first = Worker::start(&place.vhost.uri(), &settings);
    let second = Worker::start(&place.vhost.uri(), &settings);
    let long = Long::new();
    place.publish("long", long.text("long")).await;
    place.heard("long", &[EventKind::Running]).await;
    lost_deliveries(&[&first, &second], 1).await;
    // The other one has put it aside for a while.
    place.queue_has("spark.delay.3000ms", 1).await;
    long.let_it_end();
    let end = place.end_of("long").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 1));
    place.queue_has("spark.delay.3000ms", 0).await;
    place.queue_has("spark.jobs", 0).await;
    assert_eq!(long.runs(), 1);
}
