//! The program under test, as a process.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot have its process cannot go on"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The binary `spark-runtime`, beside the test programs.
#[must_use]
pub fn binary() -> PathBuf {
    built("spark-runtime")
}

/// The fake spark-submit, beside the test programs.
#[must_use]
pub fn fake_spark_submit() -> PathBuf {
    built("fake-spark-submit")
}

fn built(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let folder = this.parent().unwrap();
    // Tests lie one folder further down than programs.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap() } else { folder };
    let path = folder.join(name);
    assert!(path.exists(), "{} is not built; run cargo build --workspace --bins", path.display());
    path
}

/// A worker process, with a folder of its own for attempts. It is killed when this is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// Everything of this worker lies here.
    pub home: tempfile::TempDir,
}

impl Worker {
    /// Starts a worker with the fake spark-submit. Each of `settings` is `key=value`.
    #[must_use]
    pub fn start(uri: &str, settings: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self::start_in(home, uri, settings)
    }

    /// A worker that dies at a named place; see `worker/src/crash.rs`.
    #[must_use]
    pub fn start_to_die_at(uri: &str, settings: &[&str], place: &str) -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), uri, settings, &[("SPARK_RUNTIME_CRASH_AT", place)])
    }

    /// A worker with more in its environment.
    #[must_use]
    pub fn start_knowing(uri: &str, settings: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), uri, settings, environment)
    }

    /// The same in a folder that another worker has used.
    #[must_use]
    pub fn start_in(home: tempfile::TempDir, uri: &str, settings: &[&str]) -> Self {
        Self::start_with(home, uri, settings, &[])
    }

    fn start_with(
        home: tempfile::TempDir,
        uri: &str,
        settings: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let child =
            start_worker(home.path(), &home.path().join("worker.log"), uri, settings, &[], environment);
        Self { child, home }
    }

    /// The worker's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Sends the worker a signal.
    pub fn signal(&self, signal: Signal) {
        // A worker that is gone has what it needs.
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("worker.log")).unwrap_or_default()
    }

    /// Waits until its log has this text.
    pub async fn logged(&self, text: &str) {
        crate::until(&format!("{text:?} in the worker's log:\n{}", self.log()), async || {
            self.log().contains(text).then_some(())
        })
        .await;
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let log = self.home.path().join("worker.log");
        crate::until("the worker's end", async || self.child.try_wait().ok().flatten())
            .await
            .to_owned_or(&log)
    }

    /// Every process that works in one of its attempts.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        processes_below(self.home.path())
    }

    /// Waits until no process of any attempt is left.
    pub async fn nothing_left(&self) {
        crate::until(&format!("the end of {:?}", self.processes()), async || {
            self.processes().is_empty().then_some(())
        })
        .await;
    }
}

/// Starts a worker whose attempts lie below `home` and whose output, and that of all its helpers, goes to `log`.
/// `arguments` is the end of its command line.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn start_worker<S: AsRef<str>>(
    home: &Path,
    log: &Path,
    uri: &str,
    settings: &[S],
    arguments: &[S],
    environment: &[(&str, &str)],
) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(binary());
    command.env("SPARK_RUNTIME__BROKER__URI", uri);
    set(&mut command, home)
        .args(settings.iter().flat_map(|setting| ["--set", setting.as_ref()]))
        .arg("worker")
        .args(arguments.iter().map(AsRef::as_ref))
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("the worker starts")
}

trait OwnedOr {
    fn to_owned_or(self, log: &Path) -> Self;
}

impl OwnedOr for ExitStatus {
    fn to_owned_or(self, log: &Path) -> Self {
        if !self.success() {
            eprintln!("the worker ended with {self}:\n{}", std::fs::read_to_string(log).unwrap_or_default());
        }
        self
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the worker {}:\n{}", self.pid(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set<'a>(command: &'a mut Command, home: &Path) -> &'a mut Command {
    // Only what a test says counts, not what the shell that runs it happens to have.
    for (name, _) in std::env::vars_os() {
        let is_setting = name.to_str().is_some_and(|name| name.starts_with("SPARK_RUNTIME__"));
        if is_setting && name != "SPARK_RUNTIME__BROKER__URI" {
            command.env_remove(name);
        }
    }
    command
        .env("SPARK_RUNTIME__SPARK__SUBMIT", fake_spark_submit())
        .env("SPARK_RUNTIME__JOB__DIRECTORY", home.join("attempts"))
        .env_remove("SPARK_HOME")
}

/// Runs the program to its end. Each of `settings` is `key=value`.
#[must_use]
pub fn spark_runtime(uri: &str, settings: &[&str], arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.env("SPARK_RUNTIME__BROKER__URI", uri);
    set(&mut command, home.path())
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .args(arguments)
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Called {
    /// The exit code.
    pub code: Option<i32>,
    /// The standard output.
    pub out: String,
    /// The standard error.
    pub err: String,
}

impl Called {
    /// The standard output as JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// As [`spark_runtime`], without holding up what else goes on.
pub async fn call(uri: &str, settings: &[&str], arguments: &[&str]) -> Called {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (uri, settings, arguments) = (uri.to_owned(), owned(settings), owned(arguments));
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(move || {
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        spark_runtime(&uri, &settings, &arguments)
    })
    .await
    .unwrap();
    Called {
        code: status.code(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

/// Waits until a fake that was told `times 1 COUNTER hang` hangs: it counts before it does.
pub async fn hangs(counter: &Path) {
    crate::until("a fake that hangs", async || {
        std::fs::metadata(counter).is_ok_and(|metadata| metadata.len() > 0).then_some(())
    })
    .await;
}

/// The processes whose current directory lies below `folder`.
#[must_use]
pub fn processes_below(folder: &Path) -> Vec<i32> {
    processes_by(folder, &["cwd"])
}

/// The processes that work below `folder` or whose standard output or error goes to a file there, as those of workers,
/// their guards and all other helpers do.
#[must_use]
pub fn processes_of(folder: &Path) -> Vec<i32> {
    processes_by(folder, &["cwd", "fd/1", "fd/2"])
}

fn processes_by(folder: &Path, links: &[&str]) -> Vec<i32> {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let leads_there = |pid: i32, link: &str| {
        std::fs::read_link(format!("/proc/{pid}/{link}")).is_ok_and(|path| path.starts_with(&folder))
    };
    pids.filter(|pid| links.iter().any(|link| leads_there(*pid, link))).collect()
}

/// The processes that have `parent` as their parent.
#[must_use]
pub fn children_of(parent: i32) -> Vec<i32> {
    let listed =
        std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let mut children: Vec<i32> = listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    // A child belongs to the thread that made it.
    for task in std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
        let listed = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(listed.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    children.sort_unstable();
    children.dedup();
    children
}
