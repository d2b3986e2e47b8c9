//! The shim: one process for each launch, so that "the tree" is exactly what descends from it.
//!
//! It is forked from the guard, starts the program, carries its output into logs, and is the subreaper of all that
//! the program starts. It ends when the kernel says that it has no children left, and not before. The guard's
//! socket is its only tie: at the end of file there it kills the tree and goes. It must not know of other launches
//! or of the worker.

use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::stat::Mode;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{self, ForkResult, Pid};

use super::Step;
use super::log::{Log, LogSize};
use super::memory::{self, OutOfMemory};
use super::process::{self, Reaped};
use super::wire::{self, Ending, LaunchTexts, LaunchView, Order, Report};

/// What a shim calls itself.
pub(super) const NAME: &CStr = c"spark-shim";

/// A program that ends sooner is never sampled.
const FIRST_SAMPLE: Duration = Duration::from_millis(250);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// On a machine with very many processes a sample costs milliseconds: the pause after it is at least so many times
/// the processor time that it took.
const SAMPLE_RARITY: u32 = 100;

/// How long after one pass of killing the next one comes, when there is still something left.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

const BUFFER_LENGTH: usize = 64 * 1024;
/// For what is read when all is over, mostly nothing.
const LAST_BUFFER_LENGTH: usize = 4 * 1024;
/// When all of the tree is dead, its pipes hold no more than this (unless an outsider goes on writing).
const LAST_DRAIN_LIMIT: usize = 1024 * 1024;

/// How much sooner than its shim and worker a program is to be killed when memory runs out.
const OOM_SCORE_RAISE: i32 = 500;
const OOM_SCORE_HIGHEST: i32 = 1000;

/// What the guard found out once for all its shims.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// The file with the cgroup's out-of-memory counter.
    pub(super) oom_counter: Option<PathBuf>,
    /// The text for a program's `oom_score_adj`, when there is a higher one than ours.
    pub(super) oom_score: Option<String>,
}

impl Surroundings {
    pub(super) fn look() -> Self {
        let oom_score = fs::read_to_string("/proc/self/oom_score_adj")
            .ok()
            .and_then(|text| text.trim().parse::<i32>().ok())
            .filter(|own| *own < OOM_SCORE_HIGHEST)
            .map(|own| (own + OOM_SCORE_RAISE).min(OOM_SCORE_HIGHEST).to_string());
        Surroundings { oom_counter: memory::cgroup_counter(), oom_score }
    }
}

/// Lives the life of a shim in a process that was just forked from the guard, and gives its exit code.
pub(super) fn run(id: u64, control: OwnedFd, launch: OwnedFd, surroundings: &Surroundings) -> i32 {
    let started = become_shim(&control, &launch)
        .map_err(|error| (Step::Shim, errno_of(&error)))
        .and_then(|signals| start(launch, surroundings).map(|started| (signals, started)));
    let (signals, started) = match started {
        Ok(started) => started,
        Err((step, errno)) => {
            report(&control, &Report::LaunchFailed { id, step, errno });
            return 0;
        }
    };
    let mut shim = Shim {
        id,
        control: Some(control),
        signals,
        program: started.program,
        exec_error: Some(started.exec_error),
        launch_failure: None,
        streams: started.streams,
        out_of_memory: started.out_of_memory,
        began: Instant::now(),
        next_sample: None,
        peak_memory: 0,
        program_status: None,
        stop: None,
        by_us: false,
        fenced: false,
        leftovers: HashSet::new(),
    };
    match shim.tend() {
        Ok(()) => {
            shim.end();
            0
        }
        // Only when the kernel refuses to wait. The guard takes the tree over.
        Err(error) => {
            tracing::error!(launch = id, %error, "shim cannot go on");
            1
        }
    }
}

/// Parts with everything that belongs to the guard.
fn become_shim(control: &OwnedFd, launch: &OwnedFd) -> io::Result<SignalFd> {
    process::close_all_except(&mut [control.as_raw_fd(), launch.as_raw_fd()])?;
    // A session of its own: no process of another tree can share a process group with this one.
    unistd::setsid()?;
    prctl::set_name(NAME)?;
    prctl::set_child_subreaper(true)?;
    process::take_signals()
}

/// A program whose `exec` is under way.
struct Started {
    program: i32,
    exec_error: OwnedFd,
    streams: [Stream; 2],
    out_of_memory: OutOfMemory,
}

/// One stream of output and where it goes.
struct Stream {
    /// Absent after the end of file.
    pipe: Option<File>,
    log: Option<Log>,
}

fn start(launch: OwnedFd, surroundings: &Surroundings) -> Result<Started, (Step, i32)> {
    let at = |step: Step| move |error: io::Error| (step, errno_of(&error));
    let texts = LaunchTexts::read(launch).map_err(at(Step::Decode))?;
    let view = texts.view().ok_or((Step::Decode, libc::EBADMSG))?;
    let log = |path: &CStr| Log::create(Path::new(OsStr::from_bytes(path.to_bytes())), view.log_limit);
    let stdout_log = log(view.stdout).map_err(at(Step::Stdout))?;
    let stderr_log = log(view.stderr).map_err(at(Step::Stderr))?;
    let pipe = || unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| (Step::Pipe, errno as i32));
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let (exec_error, exec_error_end) = pipe()?;
    for ours in [&stdout, &stderr, &exec_error] {
        fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| (Step::Pipe, errno as i32))?;
    }
    let out_of_memory = OutOfMemory::watch(surroundings.oom_counter.as_deref());
    let shim = Pid::this();
    // SAFETY: a shim has one thread, so its child may do whatever a process may.
    match unsafe { unistd::fork() }.map_err(|errno| (Step::Fork, errno as i32))? {
        ForkResult::Parent { child } => Ok(Started {
            program: child.as_raw(),
            exec_error,
            streams: [
                Stream { pipe: Some(stdout.into()), log: Some(stdout_log) },
                Stream { pipe: Some(stderr.into()), log: Some(stderr_log) },
            ],
            out_of_memory,
        }),
        ForkResult::Child => {
            let Err((step, errno)) =
                become_program(&view, shim, stdout_end.as_fd(), stderr_end.as_fd(), surroundings);
            tell_exec_error(&exec_error_end, step, errno);
            // SAFETY: ends this process at once; nothing of the shim's may be cleaned up in its child.
            unsafe { libc::_exit(127) }
        }
    }
}

/// Turns this process, a child of the shim, into the program. Comes back only on failure.
fn become_program(
    launch: &LaunchView<'_>,
    shim: Pid,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
    surroundings: &Surroundings,
) -> Result<Infallible, (Step, i32)> {
    let at = |step: Step| move |errno: Errno| (step, errno as i32);
    unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(at(Step::Child))?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Step::Child))?;
    if unistd::getppid() != shim {
        // The shim died before it was to be noticed.
        return Err((Step::Child, libc::ESRCH));
    }
    if let Some(score) = &surroundings.oom_score {
        // At best: a container may forbid it.
        let _ = fs::write("/proc/self/oom_score_adj", score);
    }
    let nothing =
        open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(at(Step::Child))?;
    unistd::dup2_stdin(&nothing).map_err(at(Step::Child))?;
    unistd::dup2_stdout(stdout).map_err(at(Step::Child))?;
    unistd::dup2_stderr(stderr).map_err(at(Step::Child))?;
    unistd::chdir(launch.directory).map_err(at(Step::Directory))?;
    process::give_signals_back().map_err(at(Step::Child))?;
    unistd::execve(launch.program, &launch.arguments, &launch.environment).map_err(at(Step::Exec))
}

/// Says on the pipe that closes at a successful `exec` why there was none.
fn tell_exec_error(pipe: &OwnedFd, step: Step, errno: i32) {
    if let (Ok(text), Ok(copy)) = (serde_json::to_vec(&(step, errno)), pipe.try_clone()) {
        // If the shim is gone there is nobody to tell.
        let _ = File::from(copy).write_all(&text);
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Tells the guard, which always reads; if it is dead, nobody is to be told.
fn report(control: &OwnedFd, report: &Report) {
    loop {
        match wire::send(control.as_fd(), report, None) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut writable = [process::interest(Some(control.as_fd()), libc::POLLOUT)];
                if process::poll(&mut writable, None).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// What this process has used of a processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The tree is to die: when the next pass of killing comes.
struct Stop {
    next_pass: Instant,
    pause: Duration,
}

struct Shim {
    id: u64,
    /// Absent once the guard is gone.
    control: Option<OwnedFd>,
    signals: SignalFd,
    program: i32,
    /// Says that `exec` failed, or closes when it was done. Absent after that.
    exec_error: Option<OwnedFd>,
    launch_failure: Option<(Step, i32)>,
    streams: [Stream; 2],
    out_of_memory: OutOfMemory,
    began: Instant,
    /// Absent until the program runs.
    next_sample: Option<Instant>,
    peak_memory: u64,
    /// As `waitpid` gave it, once the program has ended.
    program_status: Option<i32>,
    stop: Option<Stop>,
    by_us: bool,
    fenced: bool,
    /// Pid and start of every process that had to be killed after the program's own end.
    leftovers: HashSet<(i32, u64)>,
}

impl Shim {
    /// Goes on until no descendant is left.
    fn tend(&mut self) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let mut ready = [
                process::interest(self.control.as_ref().map(AsFd::as_fd), libc::POLLIN),
                process::interest(Some(self.signals.as_fd()), libc::POLLIN),
                process::interest(self.exec_error.as_ref().map(AsFd::as_fd), libc::POLLIN),
                process::interest(self.streams[0].pipe.as_ref().map(AsFd::as_fd), libc::POLLIN),
                process::interest(self.streams[1].pipe.as_ref().map(AsFd::as_fd), libc::POLLIN),
            ];
            process::poll(&mut ready, self.time_out())?;
            let [control, signals, exec_error, stdout, stderr] = ready.map(|entry| entry.revents != 0);
            if control {
                self.obey();
            }
            if exec_error {
                self.learn_of_exec();
            }
            for (stream, readable) in self.streams.iter_mut().zip([stdout, stderr]) {
                if readable {
                    // Most programs say nothing, or not at once.
                    buffer.resize(BUFFER_LENGTH, 0);
                    stream.read_once(&mut buffer);
                }
            }
            if signals {
                process::clear(&self.signals);
                if self.reap() {
                    return Ok(());
                }
            }
            self.sample_when_due();
            self.kill_when_due();
        }
    }

    /// How long nothing need be done unless something happens.
    fn time_out(&self) -> Option<Duration> {
        let next = self.stop.as_ref().map(|stop| stop.next_pass).or(self.next_sample)?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    /// Reads the guard's orders.
    fn obey(&mut self) {
        while let Some(control) = &self.control {
            let mut order = [0];
            match unistd::read(control, &mut order) {
                Ok(1) => self.carry_out(Order::from_byte(order[0])),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                _ => {
                    // The guard is dead.
                    self.control = None;
                    self.carry_out(Order::Kill);
                }
            }
        }
    }

    fn carry_out(&mut self, order: Order) {
        let running = self.program_status.is_none();
        self.by_us |= running;
        match order {
            Order::Terminate => {
                if running {
                    process::send(-self.program, libc::SIGTERM);
                }
                return;
            }
            Order::Kill => {}
            Order::Fence => self.fenced = true,
        }
        if running {
            // The process alone as well: it may not have a group of its own yet.
            process::send(-self.program, libc::SIGKILL);
            process::send(self.program, libc::SIGKILL);
        }
        self.stop_now();
    }

    fn stop_now(&mut self) {
        self.stop.get_or_insert_with(|| Stop { next_pass: Instant::now(), pause: FIRST_PAUSE });
    }

    /// Learns whether the program was started, and passes that on.
    fn learn_of_exec(&mut self) {
        let Some(pipe) = &self.exec_error else { return };
        let mut text = [0; 256];
        let length = match unistd::read(pipe, &mut text) {
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Ok(length) => length,
            Err(_) => 0,
        };
        self.exec_error = None;
        if length > 0 {
            let failure = serde_json::from_slice(&text[..length]).unwrap_or((Step::Exec, libc::EBADMSG));
            self.launch_failure = Some(failure);
        } else if self.stop.is_some() {
            // Killed on the way; whether it was a moment before `exec` or after makes no difference to anybody.
            let step = if self.fenced { Step::Fenced } else { Step::Stopped };
            self.launch_failure = Some((step, libc::ECANCELED));
        } else {
            self.next_sample = Some(self.began + FIRST_SAMPLE);
            if let Some(control) = &self.control {
                report(control, &Report::Started { id: self.id, pid: self.program.unsigned_abs() });
            }
        }
    }

    /// Takes every child that has ended. True when there are none left.
    fn reap(&mut self) -> bool {
        loop {
            match process::reap(None) {
                Reaped::Child { pid, status } if pid == self.program => self.program_status = Some(status),
                Reaped::Child { .. } => {}
                Reaped::NoChildren => return true,
                Reaped::NoneYet => {
                    if self.program_status.is_some() {
                        // What the program has left behind gets no grace.
                        self.stop_now();
                    }
                    return false;
                }
            }
        }
    }

    fn sample_when_due(&mut self) {
        let Some(due) = self.next_sample else { return };
        if Instant::now() < due || self.stop.is_some() {
            return;
        }
        let before = processor_time();
        if let Ok(bytes) = memory::resident_of_descendants(Pid::this().as_raw()) {
            self.peak_memory = self.peak_memory.max(bytes);
        }
        let cost = processor_time().saturating_sub(before);
        self.next_sample = Some(Instant::now() + SAMPLE_INTERVAL.max(cost * SAMPLE_RARITY));
    }

    fn kill_when_due(&mut self) {
        let Some(stop) = &mut self.stop else { return };
        if Instant::now() < stop.next_pass {
            return;
        }
        let shim = Pid::this().as_raw();
        match process::kill_strays(|stat| stat.parent == shim) {
            Ok(found) if self.program_status.is_some() => {
                let alive = found.iter().filter(|stat| !stat.zombie);
                self.leftovers.extend(alive.map(|stat| (stat.pid, stat.started)));
            }
            Ok(_) => {}
            Err(error) => tracing::error!(launch = self.id, %error, "shim cannot list processes"),
        }
        stop.next_pass = Instant::now() + stop.pause;
        stop.pause = (stop.pause * 2).min(LONGEST_PAUSE);
    }

    /// All are dead: completes the logs and tells the guard how it ended.
    fn end(&mut self) {
        // A program that is quicker than this loop leaves the news of its start to be read here.
        self.learn_of_exec();
        let [stdout, stderr] = self.streams.each_mut().map(Stream::finish);
        let Some(control) = &self.control else { return };
        if let Some((step, errno)) = self.launch_failure {
            report(control, &Report::LaunchFailed { id: self.id, step, errno });
            return;
        }
        report(control, &Report::Exited(self.ending(stdout, stderr)));
    }

    fn ending(&self, stdout: LogSize, stderr: LogSize) -> Ending {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok();
        let processor = usage
            .map_or(0, |usage| usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
        let largest = usage.and_then(|usage| u64::try_from(usage.max_rss()).ok()).map_or(0, |kib| kib * 1024);
        let status = self.program_status;
        let succeeded = status == Some(0);
        let killed_by_stranger =
            !self.by_us && status.is_some_and(|s| libc::WIFSIGNALED(s) && libc::WTERMSIG(s) == libc::SIGKILL);
        Ending {
            id: self.id,
            status,
            by_us: self.by_us,
            fenced: self.fenced,
            processor_microseconds: u64::try_from(processor).unwrap_or(0),
            peak_memory: self.peak_memory.max(largest),
            leftovers: u32::try_from(self.leftovers.len()).unwrap_or(u32::MAX),
            oom_killed: !succeeded && self.out_of_memory.killed(killed_by_stranger),
            stdout,
            stderr,
        }
    }
}

impl Stream {
    /// Moves what is there, one buffer at most. True if there may be more at once.
    fn read_once(&mut self, buffer: &mut [u8]) -> bool {
        let (Some(pipe), Some(log)) = (&mut self.pipe, &mut self.log) else { return false };
        match pipe.read(buffer) {
            Ok(0) => {
                self.pipe = None;
                false
            }
            Ok(length) => {
                log.write(&buffer[..length]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    /// Reads what the dead have left in the pipe and completes the log.
    fn finish(&mut self) -> LogSize {
        let mut buffer = [0; LAST_BUFFER_LENGTH];
        for _ in 0..LAST_DRAIN_LIMIT / LAST_BUFFER_LENGTH {
            if !self.read_once(&mut buffer) {
                break;
            }
        }
        self.log.take().map(Log::finish).unwrap_or_default()
    }
}
