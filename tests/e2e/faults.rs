//! Processes that die, hang, lie, print and eat: what is said about the job, and that nothing is left of it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use spark_runtime_protocol::event::{EventKind, FailureClass};
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::jobs::text;
use spark_runtime_tests::program::{Worker, children_of, hangs};
use spark_runtime_tests::until;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";
const ONCE: &str = "retry.max_attempts=1";

async fn failure_of(settings: &[&str], directives: &[&str]) -> (FailureClass, String) {
    let mut place = Vhost::ready(&DELAYS).await;
    let all: Vec<&str> = [RETRY, ONCE].iter().chain(settings).copied().collect();
    let worker = Worker::start(&place.vhost.uri(), &all);
    place.publish("x", text("x", directives)).await;
    let failure = place.end_of("x").await.data.failure.unwrap();
    worker.nothing_left().await;
    place.queue_has("spark.jobs", 0).await;
    (failure.class, failure.message)
}

#[tokio::test]
async fn a_spark_submit_that_is_not_there_is_told_by_its_path() {
    let (class, message) = failure_of(&["spark.submit=/no/such/spark-submit"], &["complete"]).await;
    assert_eq!(class, FailureClass::Submit);
    assert!(message.starts_with("spark.submit names /no/such/spark-submit, but "), "{message}");
}

#[tokio::test]
async fn a_spark_submit_that_cannot_be_executed_is_told_so() {
    let place = tempfile::tempdir().unwrap();
    let script = place.path().join("spark-submit");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let (class, message) = failure_of(&[&format!("spark.submit={}", script.display())], &["complete"]).await;
    assert_eq!(class, FailureClass::Submit);
    assert!(message.ends_with("it is not executable"), "{message}");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (class, message) = failure_of(&[&format!("spark.submit={}", script.display())], &["complete"]).await;
    assert_eq!(class, FailureClass::Submit);
    assert!(message.contains("No such file"), "{message}");
}

#[tokio::test]
async fn success_without_a_report_is_no_success() {
    let (class, message) = failure_of(&["spark.submit=/bin/true"], &["complete"]).await;
    assert_eq!(class, FailureClass::Submit);
    assert_eq!(message, "spark-submit ended with exit code 0 before the driver was there; see the log");
    let (class, message) = failure_of(&[], &["exit 0"]).await;
    assert_eq!(class, FailureClass::Model);
    assert!(message.contains("ended with exit code 0 before the function returned"), "{message}");
}

#[tokio::test]
async fn a_driver_that_lies_is_not_believed() {
    let (class, message) = failure_of(&[], &["report {\"message\":\"completed\"}", "exit 1"]).await;
    assert_eq!(class, FailureClass::Killed);
    assert!(message.contains("its outputs may not be whole"), "{message}");
    let (class, message) = failure_of(&[], &["report no JSON at all", "exit 1"]).await;
    assert_eq!(class, FailureClass::Infrastructure);
    assert!(message.starts_with("the driver's report could not be read"), "{message}");
}

#[tokio::test]
async fn a_spark_submit_that_hangs_is_ended_by_the_deadline_for_submitting() {
    let (class, message) = failure_of(&["job.submit_timeout=1s"], &["ignore-term", "hang", "hello"]).await;
    assert_eq!(class, FailureClass::Submit);
    assert_eq!(message, "spark-submit did not start the driver within 1 s (job.submit_timeout)");
}

#[tokio::test]
async fn a_job_that_runs_too_long_is_ended_with_all_that_it_started() {
    let settings = ["job.run_timeout=1s", "job.kill_grace=200ms"];
    let (class, message) = failure_of(&settings, &["ignore-term", "spawn-daemon", "hang"]).await;
    assert_eq!(class, FailureClass::Timeout);
    assert_eq!(message, "the job ran longer than 1 s (job.run_timeout) and was ended");
}

#[tokio::test]
async fn a_driver_that_somebody_else_kills_is_told_as_killed() {
    let (class, message) = failure_of(&[], &["signal 9"]).await;
    assert_eq!(class, FailureClass::Killed);
    assert_eq!(message, "the driver was ended by signal 9 (SIGKILL), and not by this worker");
}

#[tokio::test]
async fn a_job_that_ends_leaves_no_process_behind() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    place.publish("d", text("d", &["spawn-daemon", "complete"])).await;
    assert_eq!(place.end_of("d").await.kind(), Some(EventKind::Completed));
    // The event comes only when nothing is left.
    assert_eq!(worker.processes(), Vec::<i32>::new());
}

#[tokio::test]
async fn a_job_that_prints_without_end_costs_neither_memory_nor_disk() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "log.limit=1MiB"]);
    place
        .publish(
            "p",
            text(
                "p",
                &[
                    "print-error first words",
                    "print-error-megabytes 200",
                    "print-error last words",
                    "fail E x",
                ],
            ),
        )
        .await;
    let failure = place.end_of("p").await.data.failure.unwrap();
    assert!(failure.log_tail.unwrap().ends_with("last words\n"));
    let log = failure.log.unwrap();
    let log = std::fs::read_to_string(log.split_once(':').unwrap().1).unwrap();
    assert!(log.len() < 2 << 20, "{}", log.len());
    assert!(log.starts_with("first words\n") && log.ends_with("last words\n"));
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kilobytes: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kilobytes < 100_000, "{peak}");
}

#[tokio::test]
async fn the_kernel_ends_a_greedy_job_before_the_worker_and_the_event_says_so() {
    let Some(cgroup) = MemoryLimit::new(96 << 20) else {
        println!("passed over: memory control groups cannot be made here");
        return;
    };
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    cgroup.take(worker.pid());
    for child in children_of(worker.pid()) {
        cgroup.take(child);
    }
    place.publish("greedy", text("greedy", &["eat-memory 400", "complete"])).await;
    let failure = place.end_of("greedy").await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Killed);
    assert!(
        failure.message.starts_with("the kernel ended the job for lack of memory"),
        "{}",
        failure.message
    );
    place.publish("next", text("next", &["complete"])).await;
    assert_eq!(place.end_of("next").await.kind(), Some(EventKind::Completed));
}

/// A small file system in memory, for as long as it lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Option<Self> {
        let disk = Self(tempfile::tempdir().unwrap());
        mounted(options, disk.0.path()).then_some(disk)
    }
}

/// Mounts a file system in memory over a folder; false where that cannot be done.
fn mounted(options: &str, folder: &Path) -> bool {
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(folder).output();
    mounted.is_ok_and(|output| output.status.success())
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_attempt_at_staging_and_the_next_one_fares_better() {
    let Some(disk) = SmallDisk::mount("size=1m") else {
        println!("passed over: file systems cannot be mounted here");
        return;
    };
    let mut place = Vhost::ready(&DELAYS).await;
    let directory = format!("job.directory={}", disk.0.path().join("attempts").display());
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, &directory]);
    worker.logged("connected for consuming").await;
    let fill = disk.0.path().join("fill");
    let _ = std::fs::write(&fill, vec![1; 2 << 20]);
    place.publish("full", text("full", &["complete"])).await;
    let failure = place.heard("full", &[EventKind::Retrying]).await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Staging);
    assert!(failure.message.contains("no space is left"), "{}", failure.message);
    std::fs::remove_file(&fill).unwrap();
    assert_eq!(place.end_of("full").await.kind(), Some(EventKind::Completed));
    worker.signal(Signal::SIGKILL);
    worker.nothing_left().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_to_is_named() {
    let Some(disk) = SmallDisk::mount("size=1m") else {
        println!("passed over: file systems cannot be mounted here");
        return;
    };
    let mut place = Vhost::ready(&DELAYS).await;
    let attempts = disk.0.path().join("attempts");
    let worker =
        Worker::start(&place.vhost.uri(), &[RETRY, ONCE, &format!("job.directory={}", attempts.display())]);
    worker.logged("connected for consuming").await;
    // Over the folder of the worker's attempts lies one that nobody can write to, as after a fault of a disk.
    let is_folder = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let own = std::fs::read_dir(&attempts).unwrap().flatten().find(is_folder).unwrap().path();
    assert!(mounted("ro", &own));
    place.publish("ro", text("ro", &["complete"])).await;
    let failure = place.end_of("ro").await.data.failure.unwrap();
    let _ = Command::new("umount").arg("-l").arg(&own).output();
    assert_eq!(failure.class, FailureClass::Staging);
    assert!(
        failure.message.contains("Read-only") && failure.message.contains("job.directory"),
        "{}",
        failure.message
    );
    place.queue_has("spark.dead", 1).await;
    worker.signal(Signal::SIGKILL);
    worker.nothing_left().await;
}

/// A memory control group, of whichever version the machine has.
struct MemoryLimit(std::path::PathBuf);

impl MemoryLimit {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("spark-runtime-test-{}", std::process::id());
        for (root, file) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let path = Path::new(root).join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            if std::fs::write(path.join(file), bytes.to_string()).is_ok() {
                // Without this a machine with swap swaps rather than kills.
                for swap in
                    [("memory.memsw.limit_in_bytes", bytes.to_string()), ("memory.swap.max", "0".to_owned())]
                {
                    let _ = std::fs::write(path.join(swap.0), swap.1);
                }
                return Some(Self(path));
            }
            let _ = std::fs::remove_dir(&path);
        }
        None
    }

    fn take(&self, pid: i32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let path = self.0.clone();
        // A group can be removed once its last process is gone, which the worker's end, later than this, brings.
        std::thread::spawn(move || {
            for _ in 0..200 {
                if std::fs::remove_dir(&path).is_ok() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
    }
}

#[tokio::test]
async fn a_job_whose_worker_is_killed_is_run_by_another_and_nothing_of_the_first_run_is_left() {
    let mut place = Vhost::ready(&DELAYS).await;
    let first = Worker::start(&place.vhost.uri(), &[RETRY]);
    let counter = tempfile::tempdir().unwrap();
    let hang_once = format!("times 1 {} hang", counter.path().join("n").display());
    place.publish("k", text("k", &["spawn-daemon", &hang_once, "complete"])).await;
    place.heard("k", &[EventKind::Running]).await;
    hangs(&counter.path().join("n")).await;
    first.signal(Signal::SIGKILL);
    first.nothing_left().await;
    let second = Worker::start(&place.vhost.uri(), &[RETRY]);
    let end = place.end_of("k").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2), "{:?}", place.story("k"));
    second.nothing_left().await;
}

#[tokio::test]
async fn a_job_that_kills_every_worker_ends_all_the_same() {
    let mut place = Vhost::ready(&DELAYS).await;
    place.publish("poison", text("poison", &["hang"])).await;
    for attempt in 1..=2 {
        let worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=2"]);
        loop {
            let event = place.heard("poison", &[EventKind::Running]).await;
            if event.data.attempt == attempt {
                break;
            }
            place.seen.retain(|seen| seen.id != event.id);
        }
        worker.signal(Signal::SIGKILL);
        worker.nothing_left().await;
    }
    let _worker = Worker::start(&place.vhost.uri(), &[RETRY, "retry.max_attempts=2"]);
    let failure = place.end_of("poison").await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Lost);
    assert!(
        failure.message.starts_with("2 workers took the job and were lost with it"),
        "{}",
        failure.message
    );
    place.queue_has("spark.dead", 1).await;
    place.queue_has("spark.jobs", 0).await;
}

#[tokio::test]
async fn whoever_is_killed_nothing_is_left_of_the_tree() {
    let mut place = Vhost::ready(&DELAYS).await;
    for (number, victims) in [["worker", ""], ["guard", ""], ["worker", "guard"]].iter().enumerate() {
        let id = format!("v{number}");
        let worker = Worker::start(&place.vhost.uri(), &[RETRY, ONCE]);
        place.publish(&id, text(&id, &["ignore-term", "spawn-daemon", "hang"])).await;
        place.heard(&id, &[EventKind::Running]).await;
        until("the fake and its daemon", async || (worker.processes().len() >= 2).then_some(())).await;
        let guard = children_of(worker.pid());
        for victim in victims {
            match *victim {
                "worker" => worker.signal(Signal::SIGKILL),
                "guard" => guard.iter().for_each(|pid| {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGKILL);
                }),
                _ => {}
            }
        }
        worker.nothing_left().await;
        drop(worker);
        // What the victims had in hand must not trouble the next round.
        place.vhost.http("DELETE", "/api/queues/{}/spark.jobs/contents", None);
    }
}

#[tokio::test]
async fn a_guard_that_is_killed_costs_the_attempt_and_not_the_worker() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let counter = worker.home.path().join("counter");
    place.publish("g", text("g", &[&format!("times 1 {} hang", counter.display()), "complete"])).await;
    place.heard("g", &[EventKind::Running]).await;
    hangs(&counter).await;
    for guard in children_of(worker.pid()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), Signal::SIGKILL);
    }
    let end = place.end_of("g").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
    let retrying = place.heard("g", &[EventKind::Retrying]).await;
    assert_eq!(retrying.data.failure.unwrap().class, FailureClass::Infrastructure);
}

#[tokio::test]
async fn a_worker_that_is_stopped_has_its_jobs_ended_by_the_guard() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "broker.heartbeat=2s"]);
    place.publish("z", text("z", &["ignore-term", "spawn-daemon", "hang"])).await;
    place.heard("z", &[EventKind::Running]).await;
    worker.signal(Signal::SIGSTOP);
    worker.nothing_left().await;
    worker.signal(Signal::SIGCONT);
}

#[tokio::test]
async fn sigterm_lets_running_jobs_end_and_takes_no_new_ones() {
    let mut place = Vhost::ready(&DELAYS).await;
    let mut worker = Worker::start(&place.vhost.uri(), &[RETRY, "worker.max_running=1"]);
    let gate = fifo(&worker);
    place.publish("first", text("first", &[&format!("wait-for {}", gate.display()), "complete"])).await;
    place.heard("first", &[EventKind::Running]).await;
    worker.signal(Signal::SIGTERM);
    worker.logged("no new jobs are taken").await;
    place.publish("second", text("second", &["complete"])).await;
    std::fs::write(&gate, "go").unwrap();
    assert_eq!(place.end_of("first").await.kind(), Some(EventKind::Completed));
    assert!(worker.ended().await.success());
    assert_eq!(place.story("second"), Vec::<String>::new());
    place.queue_has("spark.jobs", 1).await;
}

#[tokio::test]
async fn a_second_sigterm_gives_running_jobs_back_without_counting_it_as_a_failure() {
    let mut place = Vhost::ready(&DELAYS).await;
    let mut worker = Worker::start(&place.vhost.uri(), &[RETRY, ONCE]);
    let counter = tempfile::tempdir().unwrap();
    let hang_once = format!("times 1 {} hang", counter.path().join("n").display());
    place.publish("back", text("back", &["ignore-term", "spawn-daemon", &hang_once, "complete"])).await;
    place.heard("back", &[EventKind::Running]).await;
    hangs(&counter.path().join("n")).await;
    worker.signal(Signal::SIGTERM);
    worker.logged("no new jobs are taken").await;
    worker.signal(Signal::SIGTERM);
    place.heard("back", &[EventKind::Retrying]).await;
    assert!(worker.ended().await.success());
    worker.nothing_left().await;
    // Even with a single attempt allowed there is another one: giving back is no failure.
    let _next = Worker::start(&place.vhost.uri(), &[RETRY, ONCE]);
    let end = place.end_of("back").await;
    assert_eq!((end.kind(), end.data.attempt), (Some(EventKind::Completed), 2));
}

/// A pipe that a fake waits for until something is written into it.
fn fifo(worker: &Worker) -> std::path::PathBuf {
    let path = worker.home.path().join("gate");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path
}
