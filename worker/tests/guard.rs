//! The guard's promises, tried with real processes: what is started is told apart by a mark in its environment, and
//! after every kind of death the tests look through `/proc` for anything that still carries it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::unistd::Pid;
use spark_runtime_worker::config::SparkSettings;
use spark_runtime_worker::spark::client_mode::ClientMode;
use spark_runtime_worker::spark::guard::{
    BootTime, Exit, ExitStatus, Guard, GuardError, LastWill, LastWillError, Launch, LaunchError, Running,
    Step,
};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

/// How long anything may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

const MARK: &str = "GUARD_TEST_MARK";
const STAND_IN: &str = "GUARD_TEST_STAND_IN";

/// A tree that hides in every way there is: in sessions and groups of its own, orphaned, deaf to signals.
const TREE: &str = r#"
setsid sh -c 'trap "" TERM HUP INT; sleep 1000 & sleep 1000 & wait; sleep 1000' &
sh -c '(sleep 1000 &) ; exit'
setsid sh -c '(setsid sleep 1000 &) ; exit'
(trap "" TERM; sleep 1000) &
echo ready
sleep 1000
"#;
const TREE_SIZE: usize = 7;

/// Tests that kill guards and count processes must not see each other's.
static ALONE: Mutex<()> = Mutex::const_new(());

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_spark-runtime"))
}

/// A folder, a mark, and what is needed to look for leftovers.
struct Scene {
    folder: TempDir,
    mark: String,
    _alone: Option<MutexGuard<'static, ()>>,
}

impl Scene {
    async fn new() -> Scene {
        let alone = ALONE.lock().await;
        Scene { folder: TempDir::new().unwrap(), mark: uuid::Uuid::new_v4().to_string(), _alone: Some(alone) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("stdout")).unwrap_or_default()).into_owned()
    }

    fn launch(&self, program: &str, arguments: &[&str]) -> Launch {
        launch_in(self.folder.path(), &self.mark, program, arguments)
    }

    fn shell(&self, script: &str) -> Launch {
        self.launch("/bin/sh", &["-c", script])
    }

    async fn run(&self, guard: &Guard, script: &str) -> Exit {
        guard.launch(self.shell(script)).await.unwrap().exited().await
    }

    /// Starts [`TREE`] and waits until all of it is there.
    async fn tree(&self, guard: &Guard) -> Running {
        let running = guard.launch(self.shell(TREE)).await.unwrap();
        self.until_there_are(TREE_SIZE);
        running
    }

    fn marked(&self) -> Vec<i32> {
        marked(&self.mark)
    }

    fn until_there_are(&self, count: usize) {
        until(
            || self.marked().len() >= count,
            || format!("{} of {count} processes came", self.marked().len()),
        );
    }

    /// Not "soon": an end is told only when all is gone.
    #[track_caller]
    fn nothing_is_left(&self) {
        let left = self.marked();
        assert!(left.is_empty(), "left over: {:?}", describe(&left));
    }

    #[track_caller]
    fn until_none_is_left(&self) {
        until(|| self.marked().is_empty(), || format!("left over: {:?}", describe(&self.marked())));
    }
}

fn launch_in(folder: &Path, mark: &str, program: &str, arguments: &[&str]) -> Launch {
    Launch {
        program: program.into(),
        arguments: arguments.iter().map(OsString::from).collect(),
        environment: vec![("PATH".into(), "/usr/bin:/bin".into()), (MARK.into(), mark.into())],
        directory: folder.into(),
        stdout: folder.join("stdout"),
        stderr: folder.join("stderr"),
        log_limit: 1 << 20,
        not_after: None,
    }
}

/// Waits for something that only `/proc` or a file can show.
#[track_caller]
fn until(mut reached: impl FnMut() -> bool, what: impl FnOnce() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "waited in vain: {}", what());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn numbered_processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Living processes with this mark in their environment.
fn marked(mark: &str) -> Vec<i32> {
    let needle = format!("{MARK}={mark}");
    let carries = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|text| text == needle.as_bytes())
    };
    numbered_processes().into_iter().filter(carries).collect()
}

fn describe(pids: &[i32]) -> Vec<String> {
    let line = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    pids.iter().map(line).collect()
}

/// A line of `/proc/<pid>/status`; none for a process that is gone.
fn status(pid: i32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
}

fn alive(pid: i32) -> bool {
    status(pid, "State").is_some_and(|state| !state.starts_with('Z'))
}

fn children(parent: i32) -> Vec<i32> {
    let is_child = |pid: &i32| status(*pid, "PPid").is_some_and(|found| found == parent.to_string());
    numbered_processes().into_iter().filter(is_child).collect()
}

fn parent(pid: u32) -> i32 {
    status(pid.cast_signed(), "PPid").unwrap().parse().unwrap()
}

fn pid_of(guard: &Guard) -> i32 {
    guard.pid().unwrap().cast_signed()
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("waited in vain")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_and_signals_are_told_as_they_were() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    for code in [0, 1, 7, 255] {
        let exit = scene.run(&guard, &format!("exit {code}")).await;
        assert_eq!(exit.status, ExitStatus::Code(code));
        assert_eq!((exit.by_us, exit.fenced, exit.leftovers, exit.oom_killed), (false, false, 0, false));
    }
    // 40 is a real-time signal.
    for number in [9, 11, 15, 40] {
        let exit = scene.run(&guard, &format!("kill -{number} $$; sleep 1000")).await;
        assert_eq!(exit.status, ExitStatus::Signal(number));
        assert!(!exit.by_us);
    }
    scene.until_none_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_does_not_start_is_named_with_step_and_reason() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    fs::write(scene.path("plain"), "no program").unwrap();
    fs::write(scene.path("no-interpreter"), "#!/nowhere/sh\n").unwrap();
    Command::new("chmod").arg("+x").arg(scene.path("no-interpreter")).status().unwrap();
    let plain = scene.path("plain");
    let no_interpreter = scene.path("no-interpreter");
    let good = || scene.launch("/bin/true", &[]);
    let cases = [
        (Launch { program: "/nowhere/program".into(), ..good() }, Step::Exec, libc::ENOENT),
        (Launch { program: plain, ..good() }, Step::Exec, libc::EACCES),
        (Launch { program: no_interpreter, ..good() }, Step::Exec, libc::ENOENT),
        (Launch { arguments: vec!["x".repeat(200_000).into()], ..good() }, Step::Exec, libc::E2BIG),
        (Launch { directory: scene.path("missing"), ..good() }, Step::Directory, libc::ENOENT),
        (Launch { stdout: scene.path("missing/out"), ..good() }, Step::Stdout, libc::ENOENT),
        (Launch { stderr: scene.folder.path().into(), ..good() }, Step::Stderr, libc::EISDIR),
    ];
    for (launch, step, errno) in cases {
        let expected = launch.program.clone();
        match guard.launch(launch).await.unwrap_err() {
            LaunchError::Failed { program, step: found, source } => {
                assert_eq!((program, found, source.raw_os_error()), (expected, step, Some(errno)));
            }
            other => panic!("{step:?}: {other:?}"),
        }
    }
    let nul = Launch { environment: vec![("A".into(), "b\0c".into())], ..good() };
    assert!(matches!(guard.launch(nul).await, Err(LaunchError::Nul { part: "environment", .. })));
    assert_eq!(scene.run(&guard, "exit 0").await.status, ExitStatus::Code(0), "the guard goes on");
    until(|| children(pid_of(&guard)).is_empty(), || "a shim stayed".into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_gets_exactly_its_environment_arguments_and_directory() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let environment: Vec<(OsString, OsString)> =
        vec![("B".into(), "two words".into()), ("A".into(), "".into()), ("C".into(), "x=y".into())];
    let launch = Launch { environment, ..scene.launch("/usr/bin/env", &["-0"]) };
    assert_eq!(guard.launch(launch).await.unwrap().exited().await.status, ExitStatus::Code(0));
    assert_eq!(scene.stdout(), "B=two words\0A=\0C=x=y\0");

    let launch = scene.launch("/bin/sh", &["-c", r#"printf '%s|' "$0" "$@"; pwd"#, "zero", "", "a b", "*\n"]);
    guard.launch(launch).await.unwrap().exited().await;
    assert_eq!(scene.stdout(), format!("zero||a b|*\n|{}\n", scene.folder.path().display()));

    assert_eq!(
        fs::read(format!("/proc/{}/environ", pid_of(&guard))).unwrap(),
        b"",
        "the guard has no secrets"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_of_more_than_a_megabyte_arrives_whole() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let long = "x".repeat(120_000);
    let mut arguments = vec!["-c", r#"echo $# ${#1} ${#12}"#, "sh"];
    arguments.extend([long.as_str(); 12]);
    guard.launch(scene.launch("/bin/sh", &arguments)).await.unwrap().exited().await;
    assert_eq!(scene.stdout(), "12 120000 120000\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_worker_is_inherited() {
    let scene = Scene::new().await;
    let secret = scene.path("secret");
    let open = fs::File::create(&secret).unwrap();
    // A descriptor that lacks close-on-exec, as a careless library makes them.
    // SAFETY: plain numbers; closed below.
    let careless = unsafe { libc::dup(open.as_raw_fd()) };
    let guard = Guard::start(binary()).await.unwrap();
    let script = r#"ls -l /proc/$$/fd /proc/$PPID/fd >listed
        grep -E '^Sig(Blk|Ign)' /proc/self/status; cat /proc/self/oom_score_adj
        readlink /proc/self/fd/0; ps -o pgid= -p $$ | tr -d ' '; cat /proc/$PPID/oom_score_adj"#;
    let mut running = guard.launch(scene.shell(script)).await.unwrap();
    let pid = running.pid;
    assert_eq!(running.exited().await.status, ExitStatus::Code(0));
    // SAFETY: it is ours.
    unsafe { libc::close(careless) };

    let listed = fs::read_to_string(scene.path("listed")).unwrap();
    let of_program = listed.split("\n\n").find(|part| part.contains(&format!("/proc/{pid}/fd:"))).unwrap();
    let count = of_program.lines().filter(|line| line.contains("->")).count();
    assert!((3..=4).contains(&count), "0, 1, 2 and at most the shell's own: {of_program}");
    let guards = fs::read_dir(format!("/proc/{}/fd", pid_of(&guard))).unwrap();
    let guards: Vec<_> = guards.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect();
    assert!(guards.len() >= 4, "the guard's own are seen: {guards:?}");
    assert!(!guards.contains(&secret) && !listed.contains("secret"), "{guards:?}\n{listed}");

    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let raised = (own + 500).min(1000);
    let said = scene.stdout();
    let [blocked, ignored, rest] = said.splitn(3, '\n').collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert_eq!(blocked, "SigBlk:\t0000000000000000");
    let ignored = u64::from_str_radix(ignored.rsplit('\t').next().unwrap(), 16).unwrap();
    // 32 and 33 belong to the C library, which does not let them be set.
    assert_eq!(ignored & !(0b11 << 31), 0, "{ignored:x}");
    assert_eq!(
        rest,
        format!("{raised}\n/dev/null\n{pid}\n{own}\n"),
        "raised for the program, not for its shim"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_leaves_behind_is_killed_and_counted() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let script = "setsid sleep 1000 & (setsid sh -c 'sleep 1000 & wait' &); sleep 0.2; echo done; exit 4";
    let exit = scene.run(&guard, script).await;
    scene.nothing_is_left();
    assert_eq!((exit.status, exit.leftovers, exit.by_us), (ExitStatus::Code(4), 3, false));
    assert_eq!(scene.stdout(), "done\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminate_asks_and_kill_does_not() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let polite = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running = guard.launch(scene.shell(polite)).await.unwrap();
    until(|| scene.stdout() == "ready\n", || scene.stdout());
    running.terminate();
    let exit = in_time(running.exited()).await;
    assert_eq!((exit.status, exit.by_us), (ExitStatus::Code(7), true));
    assert_eq!(scene.stdout(), "ready\nasked\n");

    let deaf = "trap 'echo deaf' TERM; echo ready; setsid sh -c 'trap \"\" TERM; sleep 1000 & sleep 1000' & \
                while :; do sleep 0.05; done";
    let mut running = guard.launch(scene.shell(deaf)).await.unwrap();
    until(|| scene.stdout() == "ready\n", || scene.stdout());
    running.terminate();
    until(|| scene.stdout() == "ready\ndeaf\n", || scene.stdout());
    assert!(alive(running.pid.cast_signed()));
    running.kill();
    let exit = in_time(running.exited()).await;
    assert_eq!((exit.status, exit.by_us, exit.fenced), (ExitStatus::Signal(9), true, false));
    scene.nothing_is_left();
    assert_eq!(in_time(running.exited()).await, exit, "it may be asked again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_up_a_running_or_a_launch_kills_the_tree() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    drop(scene.tree(&guard).await);
    scene.until_none_is_left();

    for _ in 0..20 {
        // Polled once and dropped: the launch is on its way to the guard.
        tokio::select! {
            biased;
            _ = guard.launch(scene.shell(TREE)) => {}
            () = std::future::ready(()) => {}
        }
    }
    // What was given up comes before this.
    in_time(scene.run(&guard, "exit 0")).await;
    scene.until_none_is_left();
    until(|| children(pid_of(&guard)).is_empty(), || "a shim stayed".into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_goes_with_its_last_handle_and_takes_the_trees_along() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let pid = pid_of(&guard);
    let running = scene.tree(&guard).await;
    drop(guard);
    assert!(alive(pid), "a running program keeps it");
    drop(running);
    scene.until_none_is_left();
    until(|| !alive(pid), || "the guard stayed".into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_or_service_manager_that_signals_everybody_does_not_end_the_guard() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let mut running = guard.launch(scene.shell("sleep 1000")).await.unwrap();
    let shim = parent(running.pid);
    assert_ne!(shim, pid_of(&guard));
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
        signal(pid_of(&guard), ignored);
        signal(shim, ignored);
    }
    running.terminate();
    assert_eq!(in_time(running.exited()).await.status, ExitStatus::Signal(15));
    assert_eq!(scene.run(&guard, "exit 3").await.status, ExitStatus::Code(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_guard_leaves_nothing_and_is_told() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let mut running = scene.tree(&guard).await;
    signal(pid_of(&guard), Signal::SIGKILL);
    assert_eq!(in_time(running.exited()).await.status, ExitStatus::Lost);
    scene.nothing_is_left();
    in_time(guard.lost()).await;
    assert_eq!(guard.pid(), None);
    assert!(matches!(guard.launch(scene.shell("exit 0")).await, Err(LaunchError::GuardLost { .. })));

    let next = Guard::start(binary()).await.unwrap();
    assert_eq!(scene.run(&next, "exit 0").await.status, ExitStatus::Code(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guard_and_shims_killed_together_leave_nothing_to_the_worker() {
    let scene = Scene::new().await;
    let other = Guard::start(binary()).await.unwrap();
    let mut bystander = other.launch(scene.launch("/bin/sleep", &["1001"])).await.unwrap();
    // A child of the worker's own is nobody's orphan.
    let mut own_child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();

    let guard = Guard::start(binary()).await.unwrap();
    let mut running = scene.tree(&guard).await;
    let (guard_pid, shim) = (pid_of(&guard), parent(running.pid));
    signal(guard_pid, Signal::SIGSTOP);
    signal(shim, Signal::SIGKILL);
    signal(guard_pid, Signal::SIGKILL);
    assert_eq!(in_time(running.exited()).await.status, ExitStatus::Lost);
    assert_eq!(scene.marked(), [bystander.pid.cast_signed()]);
    assert!(own_child.try_wait().unwrap().is_none());
    own_child.kill().unwrap();
    own_child.wait().unwrap();
    bystander.kill();
    assert_eq!(in_time(bystander.exited()).await.status, ExitStatus::Signal(9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_costs_its_own_tree_alone() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let mut bystander = guard.launch(scene.launch("/bin/sleep", &["1001"])).await.unwrap();
    let mut running = guard.launch(scene.shell(TREE)).await.unwrap();
    scene.until_there_are(TREE_SIZE + 1);
    signal(parent(running.pid), Signal::SIGKILL);
    assert_eq!(in_time(running.exited()).await.status, ExitStatus::Lost);
    assert_eq!(scene.marked(), [bystander.pid.cast_signed()]);
    assert_eq!(scene.run(&guard, "exit 5").await.status, ExitStatus::Code(5));
    bystander.kill();
    assert_eq!(in_time(bystander.exited()).await.status, ExitStatus::Signal(9));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_shim_does_not_save_its_tree() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let mut running = scene.tree(&guard).await;
    signal(parent(running.pid), Signal::SIGSTOP);
    running.kill();
    let exit = in_time(running.exited()).await;
    assert_eq!((exit.status, exit.by_us), (ExitStatus::Signal(9), true));
    scene.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_moment_passing_kills_all_and_refuses_until_a_later_one() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let after = |time| BootTime::now().checked_add(time);
    guard.alive_until(after(Duration::from_secs(3600)));
    let mut running = scene.tree(&guard).await;
    let moment = after(Duration::from_millis(200)).unwrap();
    guard.alive_until(Some(moment));
    let exit = in_time(running.exited()).await;
    assert!(BootTime::now() >= moment, "not too early");
    assert_eq!((exit.status, exit.by_us, exit.fenced), (ExitStatus::Signal(9), true, true));
    scene.nothing_is_left();

    assert!(matches!(guard.launch(scene.shell("exit 0")).await, Err(LaunchError::Fenced { .. })));
    // One that has passed already is no permission either, and the guard stays of use.
    guard.alive_until(Some(moment));
    assert!(matches!(guard.launch(scene.shell("exit 0")).await, Err(LaunchError::Fenced { .. })));
    guard.alive_until(after(Duration::from_secs(3600)));
    assert_eq!(scene.run(&guard, "exit 0").await.status, ExitStatus::Code(0));
    guard.alive_until(None);
    assert_eq!(scene.run(&guard, "exit 0").await.status, ExitStatus::Code(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_before_the_moment_costs_nothing() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let step = Duration::from_millis(300);
    guard.alive_until(BootTime::now().checked_add(step));
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do echo $i; sleep 0.1; done";
    let mut running = guard.launch(scene.shell(script)).await.unwrap();
    for line in ["2\n", "4\n", "6\n", "8\n", "10\n"] {
        until(|| scene.stdout().contains(line), || scene.stdout());
        guard.alive_until(BootTime::now().checked_add(step * 10));
    }
    assert_eq!(in_time(running.exited()).await.status, ExitStatus::Code(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_the_guard_hears_after_the_moment_saves_nothing() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let moment = BootTime::now().checked_add(Duration::from_millis(300)).unwrap();
    guard.alive_until(Some(moment));
    let mut running = scene.tree(&guard).await;
    signal(pid_of(&guard), Signal::SIGSTOP);
    guard.alive_until(BootTime::now().checked_add(Duration::from_secs(3600)));
    until(|| BootTime::now() > moment, || "the clock stands still".into());
    signal(pid_of(&guard), Signal::SIGCONT);
    let exit = in_time(running.exited()).await;
    assert_eq!((exit.status, exit.fenced), (ExitStatus::Signal(9), true));
    scene.nothing_is_left();
    assert_eq!(scene.run(&guard, "exit 0").await.status, ExitStatus::Code(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_launch_that_comes_after_its_own_moment_is_refused() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    guard.alive_until(BootTime::now().checked_add(Duration::from_secs(3600)));
    let late = Launch { not_after: Some(BootTime::now()), ..scene.shell("exit 0") };
    assert!(matches!(guard.launch(late).await, Err(LaunchError::Fenced { .. })));
    let ahead = BootTime::now().checked_add(Duration::from_secs(3600));
    let mut running = guard.launch(Launch { not_after: ahead, ..scene.shell("exit 0") }).await.unwrap();
    assert_eq!(in_time(running.exited()).await.status, ExitStatus::Code(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_hangs_past_the_moment_is_killed_by_the_worker() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let mut running = scene.tree(&guard).await;
    signal(pid_of(&guard), Signal::SIGSTOP);
    guard.alive_until(BootTime::now().checked_add(Duration::from_millis(100)));
    assert_eq!(in_time(running.exited()).await.status, ExitStatus::Lost);
    scene.nothing_is_left();
    in_time(guard.lost()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_that_was_abandoned_takes_everything_along() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let mut running = scene.tree(&guard).await;
    signal(pid_of(&guard), Signal::SIGSTOP);
    guard.abandon();
    assert_eq!(in_time(running.exited()).await.status, ExitStatus::Lost);
    scene.nothing_is_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_is_used_again_passes_nothing_on() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let probe = r#"umask; ulimit -a; pwd; env | sort; nice; cat /proc/self/oom_score_adj
        grep -E '^(SigBlk|SigIgn|Cap)' /proc/self/status; readlink /proc/$$/fd/0
        for one in /proc/$PPID/fd/* /proc/$$/fd/*; do readlink $one; done | sed 's/[0-9]*\]$//' | sort
        readlink /proc/$PPID/cwd; cat /proc/$PPID/oom_score_adj; grep -E '^Sig(Blk|Ign|Cgt)' /proc/$PPID/status"#;
    let mess = r#"umask 077; ulimit -n 50; ulimit -f 10; cd /; renice -n 5 $$; trap "" TERM HUP USR1
        exec 5<>/dev/zero 6</dev/null; echo 900 >/proc/$$/oom_score_adj; export LEAK=1; touch x; printf junk; printf junk >&2
        setsid sleep 1000 & (setsid sleep 1000 &)
        i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done
        head -c 60000000 /dev/zero | tail -c 60000000 >/dev/null; kill -9 $$"#;
    // A log that is there already is open from the first moment.
    fs::write(scene.path("stdout"), "").unwrap();
    fs::write(scene.path("stderr"), "").unwrap();
    let mut shims = Vec::new();
    let mut said = Vec::new();
    let mut exits = Vec::new();
    for script in [probe, mess, probe, mess, probe] {
        let script = format!("echo $PPID >shim; {script}");
        exits.push(scene.run(&guard, &script).await);
        shims.push(fs::read_to_string(scene.path("shim")).unwrap());
        said.push((scene.stdout(), fs::read_to_string(scene.path("stderr")).unwrap_or_default()));
        scene.nothing_is_left();
    }
    assert!(shims.iter().all(|shim| *shim == shims[0]), "one shim for all: {shims:?}");
    assert!(said[0].0.lines().count() > 20, "{}", said[0].0);
    for after in [2, 4] {
        assert_eq!(said[after], said[0]);
        assert_eq!(exits[after].status, ExitStatus::Code(0));
        assert!(exits[after].peak_memory < 40_000_000, "{}", exits[after].peak_memory);
        assert!(exits[after].processor_time < exits[after - 1].processor_time, "{exits:?}");
        assert_eq!((exits[after].leftovers, exits[after].by_us, exits[after].oom_killed), (0, false, false));
        assert_eq!(exits[after].stdout.produced, said[after].0.len() as u64);
    }
    for of_mess in [&exits[1], &exits[3]] {
        assert_eq!((of_mess.status, of_mess.leftovers), (ExitStatus::Signal(9), 2));
        assert!(of_mess.peak_memory > 60_000_000, "{}", of_mess.peak_memory);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_for_a_launch_that_has_ended_is_not_taken_for_the_next_one() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    for _ in 0..50 {
        let mut ended = guard.launch(scene.launch("/bin/true", &[])).await.unwrap();
        // Sent while the first one ends, and when it has ended.
        ended.kill();
        ended.exited().await;
        let (kill, launch) = (async { ended.kill() }, guard.launch(scene.shell("exit 6")));
        let ((), next) = tokio::join!(kill, launch);
        ended.kill();
        let exit = in_time(next.unwrap().exited()).await;
        assert_eq!((exit.status, exit.by_us), (ExitStatus::Code(6), false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_was_killed_while_it_had_nothing_to_do_costs_nothing() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    for _ in 0..50 {
        assert_eq!(scene.run(&guard, "exit 3").await.status, ExitStatus::Code(3));
        let shim = children(pid_of(&guard))[0];
        signal(shim, Signal::SIGKILL);
        until(|| !alive(shim), || "the shim lives".into());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_is_killed_at_any_phase_leaves_nothing() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let mut not_run = 0;
    for _ in 0..50 {
        let launching = tokio::spawn({
            let (guard, launch) = (guard.clone(), scene.shell(TREE));
            async move { Ok::<_, LaunchError>(guard.launch(launch).await?.exited().await) }
        });
        // The phase is the point here: any moment will do.
        let phase = Duration::from_micros(u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * 20);
        until(|| !children(pid_of(&guard)).is_empty(), || "no shim came".into());
        std::thread::sleep(phase);
        for shim in children(pid_of(&guard)) {
            let _ = kill(Pid::from_raw(shim), Signal::SIGKILL);
        }
        match in_time(launching).await.unwrap() {
            Ok(exit) => assert_eq!(exit.status, ExitStatus::Lost),
            // Killed before its program ran, or before the launch was even handed to it.
            Err(LaunchError::GuardLost { .. } | LaunchError::Failed { step: Step::Shim, .. }) => not_run += 1,
            Err(other) => panic!("{other:?}"),
        }
        scene.nothing_is_left();
    }
    println!("{not_run} of 50 before they were told to run");
    assert_eq!(scene.run(&guard, "exit 3").await.status, ExitStatus::Code(3), "the guard goes on");
}

/// A file system whose server never answers, if the machine lets us make one.
struct DeadDisk {
    place: PathBuf,
    _server: fs::File,
}

impl DeadDisk {
    fn mount(place: PathBuf) -> Option<DeadDisk> {
        fs::create_dir(&place).unwrap();
        let server = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        let path = std::ffi::CString::new(place.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: every text ends with a NUL and outlives the call.
        let mounted = unsafe {
            libc::mount(c"dead".as_ptr(), path.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast())
        };
        (mounted == 0).then_some(DeadDisk { place, _server: server })
    }
}

impl Drop for DeadDisk {
    fn drop(&mut self) {
        let path = std::ffi::CString::new(self.place.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: as above.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_does_not_answer_holds_up_its_own_launch_alone_and_saves_nothing() {
    let scene = Scene::new().await;
    let Some(disk) = DeadDisk::mount(scene.path("dead")) else {
        println!("skipped: needs the right to mount");
        return;
    };
    let guard = Guard::start(binary()).await.unwrap();
    let good = || scene.shell("sleep 1000");
    for hanging in [
        Launch { program: disk.place.join("program"), ..good() },
        Launch { directory: disk.place.clone(), ..good() },
        Launch { stdout: disk.place.join("stdout"), ..good() },
    ] {
        let mut given_up = begun(guard.launch(hanging.clone())).await;
        until(|| !children(pid_of(&guard)).is_empty(), || "no shim came".into());
        let hung = children(pid_of(&guard))[0];
        assert_eq!(scene.run(&guard, "exit 3").await.status, ExitStatus::Code(3), "others go on");
        assert!(is_pending(&mut given_up).await && alive(hung));
        drop(given_up);
        until(|| !alive(hung), || "the launch that was given up stayed".into());

        let fenced = begun(guard.launch(hanging)).await;
        assert_eq!(scene.run(&guard, "exit 3").await.status, ExitStatus::Code(3), "others go on");
        guard.alive_until(Some(BootTime::now()));
        assert!(matches!(in_time(fenced).await, Err(LaunchError::GuardLost { .. })));
        until(|| children(pid_of(&guard)).is_empty(), || "the launch that was fenced stayed".into());
        guard.alive_until(None);
    }

    let launch = Launch { program: disk.place.join("program"), ..good() };
    let orphaned = begun(guard.launch(launch)).await;
    assert_eq!(scene.run(&guard, "exit 3").await.status, ExitStatus::Code(3), "others go on");
    signal(pid_of(&guard), Signal::SIGKILL);
    assert!(matches!(in_time(orphaned).await, Err(LaunchError::GuardLost { .. })));
    in_time(guard.lost()).await;
    // Guards of other tests may still be there.
    let mut left = children(std::process::id().cast_signed());
    left.retain(|pid| status(*pid, "Name").is_some_and(|name| name == "spark-shim"));
    assert!(left.is_empty(), "{:?}", describe(&left));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_no_guard_is_refused() {
    let _scene = Scene::new().await;
    assert!(matches!(Guard::start(Path::new("/nowhere/guard")).await, Err(GuardError::Start { .. })));
    assert!(matches!(Guard::start(Path::new("/bin/true")).await, Err(GuardError::Silent { .. })));
    let by_hand = Command::new(binary()).arg("guard").stdin(Stdio::null()).output().unwrap();
    assert!(!by_hand.status.success());
    let said = String::from_utf8_lossy(&by_hand.stderr);
    assert!(said.contains("the guard is started by the worker, not by hand"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_speaks_nonsense_is_taken_for_dead() {
    let scene = Scene::new().await;
    for nonsense in
        [&b"\xff\xfe not json"[..], b"{\"launch\":{\"id\":-1}}", b"[]", &[b'['; 8192], &[b'x'; 100_000]]
    {
        let (near, mut guard) = guard_by_hand();
        let heard = scene.path("heard");
        let will = ["/bin/sh", "-c", r#"echo will >>"$0""#, heard.to_str().unwrap()];
        send_by_hand(&near, b"\"last_will\"", [60_000, 3, 0], &will);
        launch_by_hand(&near, &scene, 1, "1000");
        scene.until_there_are(1);
        sendmsg::<()>(near.as_raw_fd(), &[std::io::IoSlice::new(nonsense)], &[], MsgFlags::empty(), None)
            .unwrap();
        assert!(guard.wait().unwrap().success(), "it goes in good order");
        scene.nothing_is_left();
        assert_eq!(fs::read_to_string(&heard).unwrap(), "will\n");
        fs::remove_file(&heard).unwrap();
    }
}

/// A guard whose worker is the test itself.
fn guard_by_hand() -> (OwnedFd, Child) {
    let (near, far) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let guard = Command::new(binary()).arg("guard").stdin(Stdio::from(far)).spawn().unwrap();
    assert_eq!(report_by_hand(&near), "\"ready\"");
    (near, guard)
}

fn report_by_hand(near: &OwnedFd) -> String {
    let mut bytes = [0; 1024];
    let length = recv(near.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

fn launch_by_hand(near: &OwnedFd, scene: &Scene, id: u64, seconds: &str) {
    let (stdout, stderr) = (scene.path("stdout"), scene.path("stderr"));
    let environment = format!("{MARK}={}", scene.mark);
    let texts =
        [stdout.to_str().unwrap(), stderr.to_str().unwrap(), "/", "/bin/sleep", seconds, &environment];
    send_by_hand(near, format!(r#"{{"launch":{{"id":{id}}}}}"#).as_bytes(), [1000, 1, 1], &texts);
}

/// Sends a command with a memory file.
fn send_by_hand(near: &OwnedFd, command: &[u8], head: [u64; 3], texts: &[&str]) {
    let mut bytes: Vec<u8> = head.iter().flat_map(|number| number.to_le_bytes()).collect();
    for text in texts {
        bytes.extend(text.bytes());
        bytes.push(0);
    }
    let mut file = fs::File::from(memfd_create(c"texts", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(&bytes).unwrap();
    let descriptors = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let message = [std::io::IoSlice::new(command)];
    sendmsg::<()>(near.as_raw_fd(), &message, &rights, MsgFlags::empty(), None).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_called_off_while_its_shim_stands_still_never_runs() {
    let scene = Scene::new().await;
    let (near, mut guard) = guard_by_hand();
    let send = |text: &str| {
        let message = [std::io::IoSlice::new(text.as_bytes())];
        sendmsg::<()>(near.as_raw_fd(), &message, &[], MsgFlags::empty(), None).unwrap();
    };
    launch_by_hand(&near, &scene, 1, "0");
    assert!(report_by_hand(&near).starts_with(r#"{"started":"#));
    assert!(report_by_hand(&near).starts_with(r#"{"exited":"#));
    let shim = children(guard.id().cast_signed())[0];
    for (id, step, reports) in [(2, "stopped", 1), (3, "fenced", 2)] {
        signal(shim, Signal::SIGSTOP);
        launch_by_hand(&near, &scene, id, "1000");
        // Either order wakes the shim when it is there.
        if step == "stopped" {
            send(r#"{"kill":{"id":2}}"#);
        } else {
            let soon = BootTime::now().checked_add(Duration::from_millis(100)).unwrap();
            send(&format!(r#"{{"alive_until":{{"nanoseconds":{}}}}}"#, soon.as_nanoseconds()));
        }
        let reports: Vec<String> = (0..reports).map(|_| report_by_hand(&near)).collect();
        let failed = format!(r#"{{"launch_failed":{{"id":{id},"step":"{step}","errno":125}}}}"#);
        assert!(reports.contains(&failed), "{reports:?}");
        scene.nothing_is_left();
    }
    drop(near);
    assert!(guard.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopped_guard_does_not_take_reaches_it_in_turn_when_it_goes_on() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    signal(pid_of(&guard), Signal::SIGSTOP);
    let long = "x".repeat(12_000);
    let mut launches = Vec::new();
    // More than a megabyte, which no socket holds.
    for number in 0..100 {
        let launch = Launch {
            stdout: scene.path(&format!("{number}.out")),
            stderr: scene.path(&format!("{number}.err")),
            ..scene.launch("/bin/sh", &["-c", "exit 9", "sh", &long])
        };
        launches.push(begun(guard.launch(launch)).await);
    }
    guard.alive_until(Some(BootTime::from_nanoseconds(1)));
    let late = begun(guard.launch(scene.shell("exit 9"))).await;
    signal(pid_of(&guard), Signal::SIGCONT);
    let mut ran = 0;
    for launch in launches {
        match in_time(launch).await {
            Ok(mut running) => {
                let exit = in_time(running.exited()).await;
                assert!(exit.fenced || exit.status == ExitStatus::Code(9), "{exit:?}");
                ran += 1;
            }
            Err(LaunchError::Fenced { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    println!("{ran} of 100 were quicker than the fence");
    assert!(matches!(in_time(late).await, Err(LaunchError::Fenced { .. })));
    guard.alive_until(None);
    assert_eq!(scene.run(&guard, "exit 3").await.status, ExitStatus::Code(3));
}

/// Polls a future once, which must not be enough for it.
async fn begun<T>(future: impl Future<Output = T>) -> Pin<Box<impl Future<Output = T>>> {
    let mut future = Box::pin(future);
    assert!(is_pending(&mut future).await, "it was done at once");
    future
}

async fn is_pending<T>(future: &mut Pin<Box<impl Future<Output = T>>>) -> bool {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_of_output_costs_neither_memory_nor_disk() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let script = "echo first; yes | head -c 1000000000; echo last; touch written; sleep 1000";
    let mut running = guard.launch(scene.shell(script)).await.unwrap();
    until(|| scene.path("written").exists(), || "still writing".into());
    // Beside one that has nothing to take: most of it is the program itself.
    let shell = scene.shell("sleep 1000");
    let silent = Launch { stdout: scene.path("no.out"), stderr: scene.path("no.err"), ..shell };
    let quiet = guard.launch(silent).await.unwrap();
    let high_water = |pid| {
        let kib = status(parent(pid), "VmHWM").unwrap();
        kib.trim_end_matches(" kB").trim().parse::<u64>().unwrap()
    };
    let (busy, idle) = (high_water(running.pid), high_water(quiet.pid));
    assert!(busy < idle + 4 * 1024, "memory of shims in KiB: {busy}, {idle} without output");
    let used: u64 = fs::read_dir(scene.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(used <= 1 << 20, "on disk: {used}");
    running.kill();
    let exit = in_time(running.exited()).await;
    assert_eq!(exit.stdout.produced, 1_000_000_011);
    assert_eq!(exit.stdout.left_out, 1_000_000_011 - (1 << 20));
    assert_eq!(exit.stdout.not_written, 0);
    let log = scene.stdout();
    assert!(log.len() < (1 << 20) + 100, "{}", log.len());
    assert!(log.starts_with("first\ny\ny\n") && log.ends_with("\ny\ny\nlast\n"));
    assert!(log.contains(&format!("\n... {} bytes left out ...\n", exit.stdout.left_out)));
    assert!(!scene.path("stdout.tail").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_costs_the_log_and_not_the_program() {
    let scene = Scene::new().await;
    let disk = scene.path("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&disk)
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        println!("skipped: needs the right to mount");
        return;
    }
    let guard = Guard::start(binary()).await.unwrap();
    let mut launch = scene.shell("echo first; yes | head -c 5000000; echo last; echo ends well >&2");
    launch.stdout = disk.join("stdout");
    launch.log_limit = 100 << 20;
    let result = in_time(guard.launch(launch).await.unwrap().exited()).await;
    let log = fs::read(disk.join("stdout")).unwrap();
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    assert_eq!(result.status, ExitStatus::Code(0));
    assert_eq!(result.stdout.produced, 5_000_011);
    assert!(result.stdout.not_written >= 5_000_011 - (1 << 20), "{:?}", result.stdout);
    assert!(log.starts_with(b"first\ny\ny\n") && log.len() > 900_000, "{}", log.len());
    assert_eq!(fs::read_to_string(scene.path("stderr")).unwrap(), "ends well\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_launches_at_once_and_one_after_another_all_end_well() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let launch = |number: usize| Launch {
        stdout: scene.path(&format!("{number}.out")),
        stderr: scene.path(&format!("{number}.err")),
        ..scene.launch("/bin/true", &[])
    };
    let began = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for number in 0..200 {
        let (guard, launch) = (guard.clone(), launch(number));
        all.spawn(async move { guard.launch(launch).await.unwrap().exited().await });
    }
    while let Some(exit) = in_time(all.join_next()).await {
        assert_eq!(exit.unwrap().status, ExitStatus::Code(0));
    }
    println!("200 at once: {:?} each", began.elapsed() / 200);
    let began = Instant::now();
    for number in 0..200 {
        let exit = guard.launch(launch(number)).await.unwrap().exited().await;
        assert_eq!(exit.status, ExitStatus::Code(0));
    }
    println!("200 one after another: {:?} each", began.elapsed() / 200);
    until(|| children(pid_of(&guard)).is_empty(), || "a shim stayed".into());
    let descriptors = fs::read_dir(format!("/proc/{}/fd", pid_of(&guard))).unwrap().count();
    assert!(descriptors < 10, "the guard leaks descriptors: {descriptors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_fork_on_and_on_do_not_outrun_the_kill() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    // 40 chains: every link starts the next one and goes, half of them in a session of its own.
    let hop = "echo >>hops; case $1 in *[02468]) setsid sh hop $1 & ;; *) sh hop $1 & ;; esac\n";
    fs::write(scene.path("hop"), hop).unwrap();
    let script = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); sh hop $i & done; sleep 1000";
    let mut running = guard.launch(scene.shell(script)).await.unwrap();
    let hops = || fs::metadata(scene.path("hops")).map_or(0, |file| file.len());
    until(|| hops() > 500, || format!("{} hops", hops()));
    running.kill();
    let exit = in_time(running.exited()).await;
    // On a machine that has more to do the shim may need longer than its guard's patience; then the guard ends both.
    assert!([ExitStatus::Signal(9), ExitStatus::Lost].contains(&exit.status), "{:?}", exit.status);
    scene.nothing_is_left();
    // One that was missed would be too quick to be seen, but not too quick to leave a trace.
    let before = hops();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(hops(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_and_processor_time_of_the_whole_tree_are_told() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let holder =
        "head -c 60000000 /dev/zero | tail -c 60000000 | (until [ -e go ]; do sleep 0.05; done; wc -c)";
    let count = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
    let script = format!("({holder}) & ({holder}); wait; {count}");
    let mut running = guard.launch(scene.shell(&script)).await.unwrap();
    let full = |pid: &i32| {
        let resident = status(*pid, "VmRSS").unwrap_or_default();
        resident.trim_end_matches(" kB").parse().unwrap_or(0) > 58_000
    };
    until(|| scene.marked().iter().filter(|pid| full(pid)).count() == 2, || "memory is not full".into());
    // Nothing shows from outside that the shim has looked; it does so twice a second.
    std::thread::sleep(Duration::from_millis(2500));
    fs::write(scene.path("go"), "").unwrap();
    let exit = in_time(running.exited()).await;
    assert_eq!(exit.status, ExitStatus::Code(0));
    assert!((120_000_000..400_000_000).contains(&exit.peak_memory), "{}", exit.peak_memory);
    let processor = exit.processor_time.as_secs_f64();
    assert!((0.05..30.0).contains(&processor), "{processor}");

    let small = scene.run(&guard, "exit 0").await;
    assert!((1..20_000_000).contains(&small.peak_memory), "{}", small.peak_memory);
    assert!(small.processor_time < Duration::from_millis(500), "not what others have used");
}

/// A worker that is another process, so that it can be killed. What it does is said in [`STAND_IN`].
struct StandIn {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl StandIn {
    fn start(scene: &Scene, role: &str) -> StandIn {
        StandIn::start_and_log(scene, role, Stdio::inherit())
    }

    /// What it and its guard log goes to `log`.
    fn start_and_log(scene: &Scene, role: &str, log: impl Into<Stdio>) -> StandIn {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stand_in_for_a_worker", "--ignored", "--nocapture"])
            .env(STAND_IN, format!("{role} {} {}", scene.mark, scene.folder.path().display()))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        StandIn { process, said }
    }

    fn pid(&self) -> i32 {
        self.process.id().cast_signed()
    }

    /// The rest of the line that begins so.
    fn wait_for(&mut self, beginning: &str) -> String {
        let mut line = String::new();
        while self.said.read_line(&mut line).unwrap() > 0 {
            // The test runner of that process writes to the same place.
            if let Some(place) = line.find(beginning) {
                return line[place + beginning.len()..].trim().to_owned();
            }
            line.clear();
        }
        panic!("stand-in ended and did not say {beginning:?}");
    }

    fn guard(&self) -> Option<i32> {
        children(self.pid()).first().copied()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Already dead in most tests.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "is started by other tests as a process of its own"]
fn stand_in_for_a_worker() {
    let Ok(orders) = std::env::var(STAND_IN) else { return };
    let mut orders = orders.splitn(3, ' ');
    let (role, mark, folder) = (orders.next().unwrap(), orders.next().unwrap(), orders.next().unwrap());
    let launch = |script| launch_in(Path::new(folder), mark, "/bin/sh", &["-c", script]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let guard = Guard::start(binary()).await.unwrap();
        match role {
            "hold" => {
                guard.alive_until(BootTime::now().checked_add(Duration::from_secs(3600)));
                let _running = guard.launch(launch(TREE)).await.unwrap();
                println!("guard {}", guard.pid().unwrap());
                std::future::pending::<()>().await;
            }
            "lease" => {
                let _running = guard.launch(launch(TREE)).await.unwrap();
                let renew = || guard.alive_until(BootTime::now().checked_add(Duration::from_millis(1500)));
                renew();
                // Answered, whatever the answer, the guard has had the renewal before it.
                drop(guard.launch(launch("exit 0")).await);
                println!("guard {}", guard.pid().unwrap());
                // Renewed as long as this process is awake.
                loop {
                    renew();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            "churn" => {
                println!("begun");
                loop {
                    let mut running = guard.launch(launch(TREE)).await.unwrap();
                    let time = u64::from(running.pid % 8);
                    let _ = tokio::time::timeout(Duration::from_millis(time), running.exited()).await;
                }
            }
            "eat" => {
                let eater = "head -c 1000000000 /dev/zero | tail -c 1000000000 >/dev/null";
                let exit = guard.launch(launch(eater)).await.unwrap().exited().await;
                println!("eaten {:?} {} {}", exit.status, exit.oom_killed, guard.pid().is_some());
            }
            "will" => {
                let mut trees = Vec::new();
                for _ in 0..WILL_TREES {
                    trees.push(guard.launch(launch(TREE)).await.unwrap());
                }
                until(|| marked(mark).len() >= WILL_TREES * TREE_SIZE, || "the trees are not there".into());
                let mut processes = marked(mark);
                processes.extend(children(pid_of(&guard)));
                let earlier = will_in(Path::new(folder), "touch earlier", &[]);
                guard.last_will(&earlier).await.unwrap();
                guard.last_will(&will_in(Path::new(folder), WILL, &processes)).await.unwrap();
                println!("guard {}", guard.pid().unwrap());
                std::future::pending::<()>().await;
            }
            "no-will" => {
                let _running = guard.launch(launch(TREE)).await.unwrap();
                guard.last_will(&will_in(Path::new(folder), WILL, &[])).await.unwrap();
                guard.no_last_will().await.unwrap();
                println!("guard {}", guard.pid().unwrap());
                std::future::pending::<()>().await;
            }
            "quick-will" => {
                let _running = guard.launch(launch("sleep 1000")).await.unwrap();
                guard.last_will(&will_in(Path::new(folder), "echo done >done", &[])).await.unwrap();
                println!("guard {}", guard.pid().unwrap());
                std::future::pending::<()>().await;
            }
            "slow-will" => {
                let script =
                    r#"trap "" TERM HUP; setsid sleep 1000 & (setsid sleep 1000 &); touch begun; sleep 1000"#;
                let will = will_in(Path::new(folder), script, &[]);
                let environment = vec![("PATH".into(), "/usr/bin:/bin".into()), (MARK.into(), mark.into())];
                let will = LastWill { environment, patience: WILL_PATIENCE, ..will };
                guard.last_will(&will).await.unwrap();
                println!("guard {}", guard.pid().unwrap());
                std::future::pending::<()>().await;
            }
            "fenced-will" => {
                let _running = guard.launch(launch(TREE)).await.unwrap();
                let script = format!("grep ^State /proc/{}/status >>done", std::process::id());
                guard.alive_until(BootTime::now().checked_add(Duration::from_millis(300)));
                // It has gone out when this has, which goes out behind it.
                guard.last_will(&will_in(Path::new(folder), &script, &[])).await.unwrap();
                println!("guard {}", guard.pid().unwrap());
                std::future::pending::<()>().await;
            }
            "own-will" => {
                drop(guard);
                let (copy, model) =
                    (Path::new(folder).join("spark-runtime"), Path::new(folder).join("model.py"));
                fs::copy(binary(), &copy).unwrap();
                fs::write(&model, "def model(): pass\n").unwrap();
                let guard = Guard::start(&copy).await.unwrap();
                fs::remove_file(&copy).unwrap();
                fs::write(&copy, "another program").unwrap();
                let out = Path::new(folder).join("job.json");
                let arguments =
                    ["new".into(), model.into(), "--metrics=f".into(), "--out".into(), out.into()];
                let will = will_in(Path::new(folder), "", &[]);
                let will = LastWill { program: None, arguments: arguments.into(), ..will };
                guard.last_will(&will).await.unwrap();
                println!("guard {}", guard.pid().unwrap());
                std::future::pending::<()>().await;
            }
            "next-guards-will" => {
                drop(guard);
                until(|| children(std::process::id().cast_signed()).is_empty(), || "a guard stayed".into());
                let backend = client_mode();
                backend.last_will(will_in(Path::new(folder), "echo done >>done", &[])).await.unwrap();
                backend.prepare().await.unwrap();
                let first = children(std::process::id().cast_signed())[0];
                signal(first, Signal::SIGKILL);
                until(|| !alive(first), || "the guard stayed".into());
                let next = loop {
                    backend.prepare().await.unwrap();
                    let guards = children(std::process::id().cast_signed());
                    match guards.iter().find(|guard| **guard != first) {
                        Some(next) => break *next,
                        None => tokio::task::yield_now().await,
                    }
                };
                println!("guard {next}");
                std::future::pending::<()>().await;
            }
            other => panic!("unknown role {other}"),
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_leaves_nothing() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "hold");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    scene.until_there_are(TREE_SIZE);
    let shims = children(guard);
    assert_eq!(shims.len(), 1);
    worker.kill();
    scene.until_none_is_left();
    until(|| !alive(guard) && !alive(shims[0]), || "guard or shim stayed".into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_and_guard_killed_together_leave_nothing() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "hold");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    scene.until_there_are(TREE_SIZE);
    let shims = children(guard);
    signal(worker.pid(), Signal::SIGSTOP);
    signal(guard, Signal::SIGKILL);
    worker.kill();
    scene.until_none_is_left();
    until(|| !alive(shims[0]), || "the shim stayed".into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_stopped_is_fenced_when_its_moment_passes() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "lease");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    scene.until_there_are(TREE_SIZE);
    signal(worker.pid(), Signal::SIGSTOP);
    scene.until_none_is_left();
    assert!(status(worker.pid(), "State").unwrap().starts_with('T'), "the worker sleeps on");
    assert!(alive(guard), "the guard waits for what the worker says when it wakes");
    signal(worker.pid(), Signal::SIGCONT);
    worker.kill();
    until(|| !alive(guard), || "the guard stayed".into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_at_random_phases_leave_no_orphan() {
    let scene = Scene::new().await;
    for round in 0..50 {
        let random = uuid::Uuid::new_v4();
        let [kind, phase, ..] = *random.as_bytes();
        let mut worker = StandIn::start(&scene, "churn");
        if round % 5 != 0 {
            worker.wait_for("begun");
        }
        // The phase is the point here: any moment will do.
        std::thread::sleep(Duration::from_micros(u64::from(phase) * 150));
        let guard = worker.guard();
        match (kind % 3, guard) {
            (0, Some(guard)) => {
                signal(worker.pid(), Signal::SIGSTOP);
                let _ = kill(Pid::from_raw(guard), Signal::SIGKILL);
                worker.kill();
            }
            (1, Some(guard)) => {
                let _ = kill(Pid::from_raw(guard), Signal::SIGKILL);
                worker.kill();
            }
            _ => worker.kill(),
        }
        scene.until_none_is_left();
        if let Some(guard) = guard {
            until(|| !alive(guard), || format!("the guard stayed in round {round}"));
        }
    }
}

/// Trees that hold a last will up.
const WILL_TREES: usize = 8;
const WILL_PATIENCE: Duration = Duration::from_millis(500);

/// Writes down which processes of its arguments are there, and what it was given.
const WILL: &str = r#"
for pid; do [ -e /proc/$pid ] && echo $pid; done >left
cat >input
tr '\0' '\n' </proc/$$/cmdline >cmdline
tr '\0' '\n' </proc/$$/environ >environ
cp /proc/$PPID/cmdline guard-cmdline
cp /proc/$PPID/environ guard-environ
ls -l /proc/$$/fd >descriptors
ps -o pid=,pgid= -p $$ | tr -s ' ' >group
mv group done
"#;

fn secret(folder: &Path) -> String {
    let line = format!("secret of {}\n", folder.display());
    line.repeat(100_000 / line.len())
}

fn will_in(folder: &Path, script: &str, processes: &[i32]) -> LastWill {
    let script = format!("cd '{}'\n{script}", folder.display());
    let mut arguments: Vec<OsString> = vec!["-c".into(), script.into(), "sh".into()];
    arguments.extend(processes.iter().map(|pid| OsString::from(pid.to_string())));
    LastWill {
        program: Some("/bin/sh".into()),
        arguments,
        environment: vec![("PATH".into(), "/usr/bin:/bin".into()), ("GIVEN".into(), "a b".into())],
        input: secret(folder).into(),
        patience: PATIENCE,
    }
}

fn client_mode() -> ClientMode {
    let settings = SparkSettings {
        home: None,
        submit: Some("/bin/true".into()),
        master_page_port: 8080,
        master: "local".into(),
        python: None,
        policy: None,
        environment: Default::default(),
        pass_environment: Vec::new(),
    };
    ClientMode::new(&settings, 1 << 20, binary().into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_will_of_a_killed_worker_is_carried_out_when_the_last_process_of_every_tree_is_gone() {
    let scene = Scene::new().await;
    let log = fs::File::create(scene.path("log")).unwrap();
    let mut worker = StandIn::start_and_log(&scene, "will", log);
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    worker.kill();
    until(|| !alive(guard), || "the guard stayed".into());
    scene.nothing_is_left();
    let read = |name: &str| fs::read_to_string(scene.path(name)).unwrap();
    assert_eq!(read("left"), "", "processes that the will has seen alive");
    let done = read("done");
    let [pid, group] = done.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{done}") };
    assert_eq!(pid, group, "it has a process group of its own");
    assert_eq!(read("environ"), "PATH=/usr/bin:/bin\nGIVEN=a b\n");
    assert!(!scene.path("earlier").exists(), "a later will takes the place of an earlier one");

    let secret = secret(scene.folder.path());
    assert!(secret.len() > 90_000 && read("input") == secret, "the input arrives whole");
    let line = secret.lines().next().unwrap();
    for place in ["cmdline", "guard-cmdline", "guard-environ", "log"] {
        assert!(!read(place).contains(line), "{place}");
    }
    assert!(read("cmdline").starts_with("/bin/sh\n-c\n"), "the right process was looked at");
    let descriptors = read("descriptors").matches("->").count();
    assert!((3..=4).contains(&descriptors), "0, 1, 2 and the shell's own: {}", read("descriptors"));
    assert!(read("log").contains("last will was carried out"), "{}", read("log"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_will_is_carried_out_as_soon_as_its_worker_is_gone() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "quick-will");
    let _: i32 = worker.wait_for("guard ").parse().unwrap();
    let began = Instant::now();
    worker.kill();
    until(|| scene.path("done").exists(), || "the will was not carried out".into());
    // Milliseconds on a machine that is idle; nothing in it waits for a time.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_will_that_was_taken_back_is_not_carried_out() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "no-will");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    worker.kill();
    until(|| !alive(guard), || "the guard stayed".into());
    scene.nothing_is_left();
    assert!(!scene.path("left").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_guard_takes_the_last_will_along() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "will");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    let shims = children(guard);
    signal(worker.pid(), Signal::SIGSTOP);
    signal(guard, Signal::SIGKILL);
    worker.kill();
    scene.until_none_is_left();
    until(|| !shims.iter().any(|shim| alive(*shim)), || "a shim stayed".into());
    assert!(!scene.path("left").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_will_that_takes_too_long_is_ended_and_leaves_nothing() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "slow-will");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    let began = Instant::now();
    worker.kill();
    until(|| scene.path("begun").exists(), || "the will was not carried out".into());
    until(|| !alive(guard), || "the guard stayed".into());
    scene.nothing_is_left();
    assert!(began.elapsed() >= WILL_PATIENCE, "not before its time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_fenced_and_not_gone_keeps_its_last_will() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "fenced-will");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    signal(worker.pid(), Signal::SIGSTOP);
    until(|| children(guard).is_empty(), || "the fence did not come".into());
    scene.nothing_is_left();
    worker.kill();
    until(|| !alive(guard), || "the guard stayed".into());
    let states = fs::read_to_string(scene.path("done")).unwrap_or_default();
    assert!(!states.contains('T'), "carried out once, and not while the worker was there: {states}");
    assert!(scene.path("done").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_will_may_be_the_guards_own_executable_even_when_that_was_replaced() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "own-will");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    worker.kill();
    until(|| !alive(guard), || "the guard stayed".into());
    let job = fs::read_to_string(scene.path("job.json")).unwrap();
    assert!(job.contains("def model()"), "{job}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guard_that_comes_after_a_lost_one_is_given_the_last_will() {
    let scene = Scene::new().await;
    let mut worker = StandIn::start(&scene, "next-guards-will");
    let guard: i32 = worker.wait_for("guard ").parse().unwrap();
    assert!(!scene.path("done").exists(), "the one that was killed took it along");
    worker.kill();
    until(|| !alive(guard), || "the guard stayed".into());
    assert_eq!(fs::read_to_string(scene.path("done")).unwrap(), "done\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_will_is_refused_when_it_cannot_be_kept_and_never_shows_what_is_secret() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let will = will_in(scene.folder.path(), "exit 0", &[]);
    let shown = format!("{will:?}");
    assert!(shown.contains("/bin/sh") && !shown.contains("secret") && !shown.contains("GIVEN"), "{shown}");
    let nul = LastWill { arguments: vec!["a\0b".into()], ..will.clone() };
    assert!(matches!(guard.last_will(&nul).await, Err(LastWillError::Nul { part: "argument" })));
    guard.abandon();
    in_time(guard.lost()).await;
    assert!(matches!(guard.last_will(&will).await, Err(LastWillError::GuardLost)));
    assert!(matches!(guard.no_last_will().await, Err(LastWillError::GuardLost)));
}

/// User and system time of this process (without a pid) or of another one.
fn processor_time(pid: Option<i32>) -> Duration {
    let place = pid.map_or("self".into(), |pid| pid.to_string());
    // All threads, to the nanosecond.
    let threads = fs::read_dir(format!("/proc/{place}/task")).unwrap();
    let nanoseconds = threads.map(|thread| {
        let text = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().unwrap().parse().unwrap_or(0)
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Prints processor time by process, and how long a launch takes. `PROGRAM` may name another program that does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures; to be run alone, optimised, with --nocapture"]
async fn what_a_launch_costs() {
    let scene = Scene::new().await;
    let guard = Guard::start(binary()).await.unwrap();
    let program = std::env::var("PROGRAM").unwrap_or("/bin/true".into());
    let launch_once = async |lane: usize| {
        let launch = Launch {
            stdout: scene.path(&format!("{lane}.out")),
            stderr: scene.path(&format!("{lane}.err")),
            ..scene.launch(&program, &[])
        };
        let began = Instant::now();
        let mut running = guard.launch(launch).await.unwrap();
        let started = began.elapsed();
        let exit = running.exited().await;
        assert_eq!(exit.status, ExitStatus::Code(0));
        (started, began.elapsed(), exit.processor_time)
    };
    let mut cold = Vec::new();
    for _ in 0..10 {
        until(|| children(pid_of(&guard)).is_empty(), || "a shim stayed".into());
        cold.push(launch_once(0).await.0);
    }
    println!("with a new shim: starts after {:?}", median(cold));
    for at_once in [1, 2, 8] {
        let shims = || children(pid_of(&guard)).into_iter().map(|shim| processor_time(Some(shim))).sum();
        let processes =
            || -> [Duration; 3] { [processor_time(None), processor_time(Some(pid_of(&guard))), shims()] };
        let (began, before) = (Instant::now(), processes());
        let lanes = (0..at_once).map(async |lane| {
            let mut times = Vec::new();
            for _ in 0..3000 / at_once {
                times.push(launch_once(lane).await);
            }
            times
        });
        let times: Vec<_> = futures_util::future::join_all(lanes).await.into_iter().flatten().collect();
        let (wall, after, count) = (began.elapsed(), processes(), times.len() as u32);
        let [worker, guard, shims] = [0, 1, 2].map(|of| after[of].saturating_sub(before[of]) / count);
        let programs = times.iter().map(|times| times.2).sum::<Duration>() / count;
        let started = median(times.iter().map(|times| times.0).collect());
        let ended = median(times.iter().map(|times| times.1).collect());
        println!(
            "{at_once} at once, each: worker {worker:.0?}, guard {guard:.0?}, shim {shims:.0?}, program {programs:.0?}; \
             starts after {started:.0?}, ends after {ended:.0?}; {:.0}/s",
            f64::from(count) / wall.as_secs_f64(),
        );
    }
}

/// A memory cgroup of 128 MiB, if the machine lets us make one.
struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    fn make(name: &str) -> Option<MemoryCgroup> {
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let folder = Path::new(root).join(name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let made = MemoryCgroup(folder);
            if made.0.join(limit).exists() && fs::write(made.0.join(limit), "134217728").is_ok() {
                return Some(made);
            }
        }
        None
    }

    fn until_empty(&self) {
        let empty =
            || fs::read_to_string(self.0.join("cgroup.procs")).is_ok_and(|pids| pids.trim().is_empty());
        until(empty, || "somebody is still in the cgroup".into());
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Busy until the kernel has forgotten the last process in it.
        let deadline = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_eats_the_memory_is_killed_before_its_worker_and_the_end_says_so() {
    let scene = Scene::new().await;
    let Some(cgroup) = MemoryCgroup::make(&format!("spark-guard-{}", scene.mark)) else {
        println!("skipped: needs the right to make a memory cgroup");
        return;
    };
    // The shell takes itself in, and what it becomes stays there: worker, guard and program share one limit.
    let mut process = Command::new("/bin/sh")
        .args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#])
        .arg(&cgroup.0)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "stand_in_for_a_worker", "--ignored", "--nocapture"])
        .env(STAND_IN, format!("eat {} {}", scene.mark, scene.folder.path().display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(process.stdout.take().unwrap());
    let mut worker = StandIn { process, said };
    assert_eq!(worker.wait_for("eaten "), "Code(137) true true");
    assert!(worker.process.wait().unwrap().success(), "the worker lives on");

    // The program alone in the cgroup: the guard's own counter does not move, and the machine's is asked.
    let guard = Guard::start(binary()).await.unwrap();
    let eater = format!(
        "echo $$ >{}/cgroup.procs; mkfifo zeroes; head -c 1000000000 /dev/zero >zeroes & exec tail -c 1000000000 zeroes",
        cgroup.0.display()
    );
    let exit = in_time(guard.launch(scene.shell(&eater)).await.unwrap().exited()).await;
    assert_eq!((exit.status, exit.by_us, exit.oom_killed), (ExitStatus::Signal(9), false, true));
    assert!(exit.peak_memory > 64 << 20, "{}", exit.peak_memory);
    drop(guard);

    // And a SIGKILL from a stranger alone is not taken for that.
    let guard = Guard::start(binary()).await.unwrap();
    let exit = scene.run(&guard, "kill -9 $$").await;
    assert!(!exit.oom_killed);
    cgroup.until_empty();
}
