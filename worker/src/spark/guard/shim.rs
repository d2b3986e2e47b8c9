//! The shim: one process for each launch at a time, so that "the tree" is exactly what descends from it.
//!
//! It is forked from the guard. For each launch it starts the program, carries its output into logs, is the subreaper
//! of all that the program starts, and tells the end when the kernel says that it has no children left, and not before.
//! Then it waits for the next launch: to make a shim costs more than all that it does. The guard's socket is its only
//! tie: at the end of file there it kills the tree, if there is one, and goes. It must not know of other launches or of
//! the worker, and nothing that it learns or opens for a launch may live on to the next.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{self, Pid};

use super::log::Log;
use super::memory::{self, Counts, OutOfMemory};
use super::process::{self, Reaped, Used};
use super::wire::{self, Command, Ending, Inbox, LaunchView, Order, Report};
use super::{BootTime, Step};

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
pub(super) fn run(control: OwnedFd, surroundings: &Surroundings) -> i32 {
    let mut shim = match Shim::prepare(control, surroundings) {
        Ok(shim) => shim,
        Err(error) => {
            tracing::error!(%error, "shim cannot be made");
            return 1;
        }
    };
    match shim.live() {
        Ok(()) => 0,
        // Only when the kernel refuses to wait. The guard takes the tree over.
        Err(error) => {
            tracing::error!(%error, "shim cannot go on");
            1
        }
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

struct Shim<'a> {
    /// Absent once the guard is gone.
    control: Option<OwnedFd>,
    inbox: Inbox,
    signals: SignalFd,
    surroundings: &'a Surroundings,
    out_of_memory: OutOfMemory,
    stack: Stack,
    /// Empty until a program says something. What it holds between two reads is never looked at.
    buffer: Vec<u8>,
}

impl<'a> Shim<'a> {
    /// Parts with everything that belongs to the guard.
    fn prepare(control: OwnedFd, surroundings: &'a Surroundings) -> io::Result<Self> {
        process::close_all_except(&mut [control.as_raw_fd()])?;
        // A session of its own: no process of another tree can share a process group with this one.
        unistd::setsid()?;
        prctl::set_name(NAME)?;
        prctl::set_child_subreaper(true)?;
        Ok(Shim {
            control: Some(control),
            inbox: Inbox::new(),
            signals: process::watch_children()?,
            surroundings,
            out_of_memory: OutOfMemory::open(surroundings.oom_counter.as_deref()),
            stack: Stack::new(),
            buffer: Vec::new(),
        })
    }

    /// Takes one launch after the other until the guard lets go.
    fn live(&mut self) -> io::Result<()> {
        while let Some((id, not_after, texts)) = self.next_launch()? {
            let result = match texts.map_err(|error| (Step::Decode, errno_of(&error))) {
                Ok(texts) => self.start(id, not_after, &texts),
                Err(failure) => Err(failure),
            };
            let ended = match result {
                Ok(mut tree) => {
                    self.tend(&mut tree)?;
                    Report::Exited(self.ending(tree))
                }
                Err((step, errno)) => Report::LaunchFailed { id, step, errno },
            };
            if let Some(control) = &self.control {
                report(control, &ended);
            }
        }
        Ok(())
    }

    /// Waits for the next launch. `None` when the guard is gone or lets this shim go.
    fn next_launch(&mut self) -> io::Result<Option<NextLaunch>> {
        loop {
            let Some(control) = &self.control else { return Ok(None) };
            process::poll(&mut [process::interest(Some(control.as_fd()), libc::POLLIN)], None)?;
            let packet = match self.inbox.receive(control.as_fd()) {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            if packet.bytes.len() == 1 {
                // An order that came too late for the launch that it was meant for.
                continue;
            }
            let Command::Launch { id, not_after } = packet.message()? else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let not_after = not_after.map(BootTime::from_nanoseconds);
            return Ok(Some((id, not_after, packet.into_texts().map(Cow::into_owned))));
        }
    }

    /// Starts the program, and says that it runs.
    fn start(&mut self, id: u64, not_after: Option<BootTime>, texts: &[u8]) -> Result<Tree, (Step, i32)> {
        let at = |step: Step| move |error: io::Error| (step, errno_of(&error));
        let launch = LaunchView::of(texts).ok_or((Step::Decode, libc::EBADMSG))?;
        let log = |path: &CStr| Log::create(Path::new(OsStr::from_bytes(path.to_bytes())), launch.log_limit);
        let stdout_log = log(launch.stdout).map_err(at(Step::Stdout))?;
        let stderr_log = log(launch.stderr).map_err(at(Step::Stderr))?;
        let pipe = || unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| (Step::Pipe, errno as i32));
        let (stdout, stdout_end) = pipe()?;
        let (stderr, stderr_end) = pipe()?;
        for ours in [&stdout, &stderr] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| (Step::Pipe, errno as i32))?;
        }
        let counts_before = self.out_of_memory.counts();
        let mut process = NewProcess {
            directory: launch.directory,
            program: launch.program,
            arguments: pointers(&launch.arguments),
            environment: pointers(&launch.environment),
            stdout: stdout_end.as_fd(),
            stderr: stderr_end.as_fd(),
            shim: Pid::this(),
            control: self.control.as_ref().map(AsFd::as_fd),
            not_after,
            oom_score: self.surroundings.oom_score.as_deref(),
            failure: None,
        };
        let program = process.start(&mut self.stack).map_err(|errno| (Step::Fork, errno as i32))?;
        if let Some(failure) = process.failure {
            process::wait_for(program);
            return Err(failure);
        }
        if let Some(control) = &self.control {
            report(control, &Report::Started { id, pid: program.unsigned_abs() });
        }
        Ok(Tree {
            id,
            program,
            streams: [
                Stream { pipe: Some(stdout.into()), log: stdout_log },
                Stream { pipe: Some(stderr.into()), log: stderr_log },
            ],
            counts_before,
            next_sample: Instant::now() + FIRST_SAMPLE,
            peak_memory: 0,
            used: Used::default(),
            program_status: None,
            stop: None,
            by_us: false,
            fenced: false,
            leftovers: BTreeSet::new(),
        })
    }

    /// Goes on until no descendant is left.
    fn tend(&mut self, tree: &mut Tree) -> io::Result<()> {
        loop {
            let mut ready = [
                process::interest(self.control.as_ref().map(AsFd::as_fd), libc::POLLIN),
                process::interest(Some(self.signals.as_fd()), libc::POLLIN),
                process::interest(tree.streams[0].pipe.as_ref().map(AsFd::as_fd), libc::POLLIN),
                process::interest(tree.streams[1].pipe.as_ref().map(AsFd::as_fd), libc::POLLIN),
            ];
            process::poll(&mut ready, Some(tree.time_out()))?;
            let [control, signals, stdout, stderr] = ready.map(|entry| entry.revents);
            if control != 0 {
                self.obey(tree);
            }
            for (stream, events) in tree.streams.iter_mut().zip([stdout, stderr]) {
                if events & libc::POLLIN != 0 {
                    stream.read_once(&mut self.buffer);
                } else if events != 0 {
                    // Nobody has the other end any more.
                    stream.pipe = None;
                }
            }
            if signals != 0 {
                process::clear(&self.signals);
                if tree.reap() {
                    return Ok(());
                }
            }
            tree.sample_when_due();
            tree.kill_when_due();
        }
    }

    /// Reads the guard's orders.
    fn obey(&mut self, tree: &mut Tree) {
        while let Some(control) = &self.control {
            let mut order = [0];
            match unistd::read(control, &mut order) {
                Ok(1) => tree.carry_out(Order::from_byte(order[0])),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                _ => {
                    // The guard is dead.
                    self.control = None;
                    tree.carry_out(Order::Kill);
                }
            }
        }
    }

    /// All are dead: completes the logs and sums up.
    fn ending(&mut self, mut tree: Tree) -> Ending {
        for stream in &mut tree.streams {
            stream.drain(&mut self.buffer);
        }
        let status = tree.program_status;
        let killed_by_stranger =
            !tree.by_us && status.is_some_and(|s| libc::WIFSIGNALED(s) && libc::WTERMSIG(s) == libc::SIGKILL);
        let [stdout, stderr] = tree.streams.map(|stream| stream.log.finish());
        Ending {
            id: tree.id,
            status,
            by_us: tree.by_us,
            fenced: tree.fenced,
            processor_microseconds: u64::try_from(tree.used.processor.as_micros()).unwrap_or(u64::MAX),
            peak_memory: tree.peak_memory.max(tree.used.largest),
            leftovers: u32::try_from(tree.leftovers.len()).unwrap_or(u32::MAX),
            oom_killed: status != Some(0)
                && self.out_of_memory.killed(tree.counts_before, killed_by_stranger),
            stdout,
            stderr,
        }
    }
}

/// A launch's id, the moment from which on it is not to be, and its texts.
type NextLaunch = (u64, Option<BootTime>, io::Result<Vec<u8>>);

/// The tree is to die: when the next pass of killing comes.
struct Stop {
    next_pass: Instant,
    pause: Duration,
}

/// A program and all that it starts.
struct Tree {
    id: u64,
    program: i32,
    streams: [Stream; 2],
    counts_before: Counts,
    next_sample: Instant,
    peak_memory: u64,
    /// By those that have been waited for here.
    used: Used,
    /// As `waitpid` gave it, once the program has ended.
    program_status: Option<i32>,
    stop: Option<Stop>,
    by_us: bool,
    fenced: bool,
    /// Pid and start of every process that had to be killed after the program's own end.
    leftovers: BTreeSet<(i32, u64)>,
}

impl Tree {
    /// How long nothing need be done unless something happens.
    fn time_out(&self) -> Duration {
        let next = self.stop.as_ref().map_or(self.next_sample, |stop| stop.next_pass);
        next.saturating_duration_since(Instant::now())
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
            // The process alone as well: it may have gone to another group.
            process::send(-self.program, libc::SIGKILL);
            process::send(self.program, libc::SIGKILL);
        }
        self.stop_now();
    }

    fn stop_now(&mut self) {
        self.stop.get_or_insert_with(|| Stop { next_pass: Instant::now(), pause: FIRST_PAUSE });
    }

    /// Takes every child that has ended. True when there are none left.
    fn reap(&mut self) -> bool {
        loop {
            match process::reap(None) {
                Reaped::Child { pid, status, used } => {
                    self.used = self.used.and(used);
                    if pid == self.program {
                        self.program_status = Some(status);
                    }
                }
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
        if Instant::now() < self.next_sample || self.stop.is_some() {
            return;
        }
        let before = processor_time();
        if let Ok(bytes) = memory::resident_of_descendants(Pid::this().as_raw()) {
            self.peak_memory = self.peak_memory.max(bytes);
        }
        let cost = processor_time().saturating_sub(before);
        self.next_sample = Instant::now() + SAMPLE_INTERVAL.max(cost * SAMPLE_RARITY);
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
}

/// One stream of output and where it goes.
struct Stream {
    /// Absent after the end of file.
    pipe: Option<File>,
    log: Log,
}

impl Stream {
    /// Moves what is there, one buffer at most. True if there may be more at once.
    fn read_once(&mut self, buffer: &mut Vec<u8>) -> bool {
        let Some(pipe) = &mut self.pipe else { return false };
        // Most programs say nothing.
        buffer.resize(BUFFER_LENGTH, 0);
        match pipe.read(buffer) {
            Ok(0) => {
                self.pipe = None;
                false
            }
            Ok(length) => {
                self.log.write(&buffer[..length]);
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

    /// Reads what the dead have left in the pipe.
    fn drain(&mut self, buffer: &mut Vec<u8>) {
        for _ in 0..LAST_DRAIN_LIMIT / BUFFER_LENGTH {
            if !self.read_once(buffer) {
                return;
            }
        }
    }
}

/// What a new process needs to become the program.
///
/// All of it is made beforehand: until its `exec` the process shares the memory of its shim, which stands still
/// meanwhile, and must leave it as it is but for `failure`. To copy the memory would cost more than the rest of a
/// launch.
struct NewProcess<'a> {
    directory: &'a CStr,
    program: &'a CStr,
    /// These two end with a null.
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    stdout: BorrowedFd<'a>,
    stderr: BorrowedFd<'a>,
    shim: Pid,
    control: Option<BorrowedFd<'a>>,
    not_after: Option<BootTime>,
    oom_score: Option<&'a str>,
    /// Why there was no `exec`.
    failure: Option<(Step, i32)>,
}

/// What `exec` takes for a list of texts.
fn pointers(texts: &[&CStr]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

impl NewProcess<'_> {
    /// Makes the process, and comes back when it is the program or has failed.
    fn start(&mut self, stack: &mut Stack) -> nix::Result<i32> {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: this process has one thread, which is suspended as long as the new one uses its memory; what that
        // one is given is not touched meanwhile; and it has a stack of its own.
        let pid = unsafe { libc::clone(enter, stack.top(), flags, (&raw mut *self).cast()) };
        Errno::result(pid)
    }

    /// Turns the calling process, a child of the shim, into the program. Comes back only on failure.
    fn become_program(&self) -> Result<Infallible, (Step, i32)> {
        let at = |step: Step| move |errno: Errno| (step, errno as i32);
        unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(at(Step::Child))?;
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Step::Child))?;
        if unistd::getppid() != self.shim {
            // The shim died before it was to be noticed.
            return Err((Step::Child, libc::ESRCH));
        }
        if let Some(score) = self.oom_score {
            // At best: a container may forbid it. The kernel knows that this is not meant for the shim.
            let place = c"/proc/self/oom_score_adj";
            let _ = open(place, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
                .and_then(|file| unistd::write(file, score.as_bytes()));
        }
        let nothing =
            open(c"/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(at(Step::Child))?;
        unistd::dup2_stdin(&nothing).map_err(at(Step::Child))?;
        unistd::dup2_stdout(self.stdout).map_err(at(Step::Child))?;
        unistd::dup2_stderr(self.stderr).map_err(at(Step::Child))?;
        unistd::chdir(self.directory).map_err(at(Step::Directory))?;
        process::give_signals_back().map_err(at(Step::Child))?;
        // As late as can be: whatever came before may have stood still for long, as on a disk that did not answer.
        if let Some(step) = self.called_off() {
            return Err((step, libc::ECANCELED));
        }
        // SAFETY: the lists end with a null and point to texts that outlive the call.
        unsafe {
            libc::execve(self.program.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr());
        }
        Err((Step::Exec, Errno::last_raw()))
    }

    /// Whether the program is not to run any more: its moment has passed, or the guard has said so or is gone. What the
    /// guard has said is left for the shim to read.
    fn called_off(&self) -> Option<Step> {
        if self.not_after.is_some_and(|moment| BootTime::now() >= moment) {
            return Some(Step::Fenced);
        }
        let mut order = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.control?.as_raw_fd(), &mut order, flags) {
            Err(Errno::EAGAIN) => None,
            Ok(1) if Order::from_byte(order[0]) == Order::Fence => Some(Step::Fenced),
            _ => Some(Step::Stopped),
        }
    }
}

/// Where the new process begins.
extern "C" fn enter(process: *mut c_void) -> c_int {
    // SAFETY: it is what `start` has given to `clone`.
    let process = unsafe { &mut *process.cast::<NewProcess<'_>>() };
    let Err(failure) = process.become_program();
    process.failure = Some(failure);
    libc::EXIT_FAILURE
}

/// The stack of one new process after the other.
struct Stack(Box<[MaybeUninit<u128>]>);

impl Stack {
    /// It is used for some system calls and their names; most of it is never touched.
    const LENGTH: usize = 32 * 1024;

    fn new() -> Self {
        Stack(Box::new_uninit_slice(Self::LENGTH / size_of::<u128>()))
    }

    /// Stacks grow downwards, and begin at a multiple of 16.
    fn top(&mut self) -> *mut c_void {
        self.0.as_mut_ptr_range().end.cast()
    }
}
