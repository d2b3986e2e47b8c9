//! The worker's side of the guard.
//!
//! It passes launches and orders on, hands reports to whoever waits for them, and is the subreaper of last resort:
//! when the guard is dead it kills what the guard has left. It must not start any program itself but the guard.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf, absolute};
use std::process::{self as std_process, Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::unistd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

use super::process::{self, Reaped};
use super::shim;
use super::wire::{self, Attachment, Command, Ending, Inbox, Report, TextsWriter};
use super::{BootTime, Exit, ExitStatus, GuardError, LastWill, LastWillError, Launch, LaunchError, Step};

/// A guard that is well answers within some milliseconds.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How long after the moment that it was given a guard may take to say that it has passed. After that it is hung, and
/// the worker does what it can: it kills the guard, and with it all trees.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);

/// How long the shims of a dead guard may take to kill their trees.
const SHIM_PATIENCE: Duration = Duration::from_secs(5);

/// The guards that this process has started and not yet waited for.
///
/// Locked while one is being started, so that no other guard's end can take it for an orphan.
static LIVING: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A guard process and the way to it. Clones are the same guard; when the last one and the last [`Running`] are
/// dropped, it goes.
#[derive(Debug, Clone)]
pub struct Guard {
    link: Arc<Link>,
}

/// A program that was started. Dropping it kills the program's tree.
#[derive(Debug)]
pub struct Running {
    /// The program's process id.
    pub pid: u32,
    id: u64,
    link: Arc<Link>,
    exited: oneshot::Receiver<Exit>,
    exit: Option<Exit>,
}

/// What goes to the guard.
#[derive(Debug)]
struct Outgoing {
    command: Command,
    attached: Option<Attachment>,
    /// Where somebody waits until it has been sent. Dropped without a word when the guard is gone.
    sent: Option<oneshot::Sender<io::Result<()>>>,
}

/// What guards and runnings hold on to.
#[derive(Debug)]
struct Link {
    socket: Arc<AsyncFd<OwnedFd>>,
    /// What the guard did not take at once.
    outgoing: mpsc::UnboundedSender<Outgoing>,
    until: watch::Sender<Option<BootTime>>,
    lost: watch::Receiver<bool>,
    next_id: AtomicU64,
    waiting: Arc<Waiting>,
}

/// What the guard's reports are for.
#[derive(Debug)]
struct Waiting {
    launches: Mutex<Launches>,
    /// How many commands are waiting to be sent. Whoever sends past them holds this lock and has seen that there are
    /// none.
    queued: Mutex<usize>,
    /// Absent once it has been taken to be waited for.
    guard: Mutex<Option<Child>>,
    /// The last moment of which the guard said that it has passed.
    fenced: watch::Sender<Option<BootTime>>,
}

#[derive(Debug, Default)]
struct Launches {
    by_id: HashMap<u64, Waiter>,
    /// The guard is gone: nobody will answer a new one.
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    /// Absent once it was answered.
    started: Option<oneshot::Sender<Result<u32, NotStarted>>>,
    exited: oneshot::Sender<Exit>,
}

#[derive(Debug)]
enum NotStarted {
    Failed { step: Step, errno: i32 },
    Handover(io::Error),
    Lost,
}

impl Guard {
    /// Starts a guard and waits until it listens.
    ///
    /// `executable` is the program whose one argument `guard` leads to [`guard_main`](super::guard_main); normally
    /// `/proc/self/exe`. From here on this process is a subreaper. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// The executable cannot be started or is not a guard.
    pub async fn start(executable: &Path) -> Result<Guard, GuardError> {
        let failed = |source: io::Error| GuardError::Start { executable: executable.to_owned(), source };
        prctl::set_child_subreaper(true).map_err(|errno| failed(errno.into()))?;
        let (ours, theirs) = wire::pair().map_err(failed)?;
        let writing_end = ours.try_clone().map_err(failed)?;
        // For reading alone: the guard takes what it is sent at once, and to hear of that each time wakes for nothing.
        // SAFETY: the socket is open, is owned by the `AsyncFd`, and is never taken out or replaced.
        let socket = unsafe { AsyncFd::register_with_interest(ours, Interest::READABLE) };
        let socket = Arc::new(socket.map_err(|error| failed(error.into()))?);
        let guard = spawn(executable, theirs).map_err(failed)?;

        let waiting = Arc::new(Waiting {
            launches: Mutex::default(),
            queued: Mutex::default(),
            guard: Mutex::new(Some(guard)),
            fenced: watch::Sender::new(None),
        });
        let (outgoing, to_send) = mpsc::unbounded_channel();
        let (lost_sender, lost) = watch::channel(false);
        let (ready_sender, ready) = oneshot::channel();
        let until = watch::Sender::new(None);
        tokio::spawn(write(writing_end, to_send, waiting.clone()));
        tokio::spawn(watch_the_fence(until.subscribe(), waiting.clone()));
        tokio::spawn(read(socket.clone(), waiting.clone(), ready_sender, lost_sender));

        let next_id = AtomicU64::new(1);
        let guard = Guard { link: Arc::new(Link { socket, outgoing, until, lost, next_id, waiting }) };
        match tokio::time::timeout(START_PATIENCE, ready).await {
            Ok(Ok(())) => Ok(guard),
            _ => {
                guard.abandon();
                Err(GuardError::Silent { executable: executable.to_owned() })
            }
        }
    }

    /// Starts a program and waits until it runs.
    ///
    /// Dropping the future kills whatever has been started. It has no time limit of its own: a working directory on
    /// a dead disk can keep it waiting.
    ///
    /// # Errors
    /// The program does not run, for the reason given, and nothing of it is left.
    pub async fn launch(&self, launch: Launch) -> Result<Running, LaunchError> {
        let program = launch.program.clone();
        let texts = write_down(&launch)?;
        let not_after = launch.not_after.map(BootTime::as_nanoseconds);
        drop(launch);
        let id = self.link.next_id.fetch_add(1, Ordering::Relaxed);
        let (started_sender, started) = oneshot::channel();
        let (exited_sender, exited) = oneshot::channel();
        let waiter = Waiter { started: Some(started_sender), exited: exited_sender };
        if !self.link.waiting.add(id, waiter) {
            return Err(LaunchError::GuardLost { program });
        }
        // Made before the wait: if this future is dropped, so is that, and the tree with it.
        let mut running = Running { pid: 0, id, link: self.link.clone(), exited, exit: None };
        self.link.send(Command::Launch { id, not_after }, Some(texts));
        let not_started = match started.await {
            Ok(Ok(pid)) => {
                running.pid = pid;
                return Ok(running);
            }
            Ok(Err(not_started)) => not_started,
            Err(_) => NotStarted::Lost,
        };
        running.exit = Some(lost_exit());
        Err(match not_started {
            NotStarted::Failed { step: Step::Fenced, .. } => LaunchError::Fenced { program },
            NotStarted::Failed { step, errno } => {
                LaunchError::Failed { program, step, source: io::Error::from_raw_os_error(errno) }
            }
            NotStarted::Handover(source) => LaunchError::Handover { program, source },
            NotStarted::Lost => LaunchError::GuardLost { program },
        })
    }

    /// Lets all programs live until this moment; without one, as long as this process lives.
    ///
    /// When the moment passes, every tree is killed, and nothing is started until a later one is given. That does not
    /// need this process to be awake.
    pub fn alive_until(&self, until: Option<BootTime>) {
        self.link.send(Command::AliveUntil { nanoseconds: until.map(BootTime::as_nanoseconds) }, None);
        self.link.until.send_replace(until);
    }

    /// Leaves a last will with the guard, in place of any other. When this returns, the guard will carry it out even
    /// if this process dies at once.
    ///
    /// # Errors
    /// The guard does not have it; an earlier one may be in force still.
    pub async fn last_will(&self, will: &LastWill) -> Result<(), LastWillError> {
        let texts = write_will_down(will)?;
        self.settle(Command::LastWill, Some(texts)).await
    }

    /// Takes the last will back, as a worker does that leaves in good order. That there is none is no error.
    ///
    /// # Errors
    /// The guard was not told. A guard that was lost carries nothing out either.
    pub async fn no_last_will(&self) -> Result<(), LastWillError> {
        self.settle(Command::NoLastWill, None).await
    }

    /// Sends a command and waits until it is on its way.
    async fn settle(&self, command: Command, attached: Option<Attachment>) -> Result<(), LastWillError> {
        let (sender, sent) = oneshot::channel();
        self.link.send_and_say(Outgoing { command, attached, sent: Some(sender) });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(LastWillError::Handover { source }),
            Err(_) => Err(LastWillError::GuardLost),
        }
    }

    /// Kills the guard, and thereby every tree. For a guard that does not answer; [`lost`](Self::lost) tells when all
    /// are gone.
    pub fn abandon(&self) {
        self.link.waiting.kill_guard();
    }

    /// Resolves when the guard is gone and every process that it has left behind has been killed.
    pub async fn lost(&self) {
        let mut lost = self.link.lost.clone();
        // The other end goes only with the runtime.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// The guard's process id; `None` when it is gone.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.link.waiting.guard).as_ref().map(Child::id)
    }
}

impl Running {
    /// Asks the program to go: SIGTERM to its process group.
    pub fn terminate(&self) {
        self.link.send(Command::Terminate { id: self.id }, None);
    }

    /// Kills the whole tree, again and again until it is gone.
    pub fn kill(&self) {
        self.link.send(Command::Kill { id: self.id }, None);
    }

    /// Waits until the program has ended and every process of its tree is gone. May be dropped and called again.
    pub async fn exited(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let exit = (&mut self.exited).await.unwrap_or_else(|_| lost_exit());
        self.exit = Some(exit);
        exit
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.kill();
        }
    }
}

impl Link {
    fn send(&self, command: Command, attached: Option<Attachment>) {
        self.send_and_say(Outgoing { command, attached, sent: None });
    }

    /// Sends at once, or, when the guard does not keep up, in turn.
    fn send_and_say(&self, outgoing: Outgoing) {
        let mut queued = lock(&self.waiting.queued);
        if *queued == 0 {
            match wire::send(self.socket.get_ref().as_fd(), &outgoing.command, outgoing.attached.as_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return self.waiting.sent(outgoing, sent),
            }
        }
        *queued += 1;
        // It fails only when the runtime goes, and everything with it.
        let _ = self.outgoing.send(outgoing);
    }
}

impl Waiting {
    /// False if the guard is gone.
    fn add(&self, id: u64, waiter: Waiter) -> bool {
        let mut launches = lock(&self.launches);
        if !launches.closed {
            launches.by_id.insert(id, waiter);
        }
        !launches.closed
    }

    fn started(&self, id: u64, pid: u32) {
        let sender = lock(&self.launches).by_id.get_mut(&id).and_then(|waiter| waiter.started.take());
        if let Some(sender) = sender {
            // Nobody there: the launch was given up, and the order to kill is on its way.
            let _ = sender.send(Ok(pid));
        }
    }

    fn failed(&self, id: u64, why: NotStarted) {
        let waiter = lock(&self.launches).by_id.remove(&id);
        if let Some(sender) = waiter.and_then(|waiter| waiter.started) {
            let _ = sender.send(Err(why));
        }
    }

    fn exited(&self, id: u64, exit: Exit) {
        let Some(waiter) = lock(&self.launches).by_id.remove(&id) else { return };
        match waiter.started {
            Some(sender) => drop(sender.send(Err(NotStarted::Lost))),
            None => drop(waiter.exited.send(exit)),
        }
    }

    /// All is gone: answers everybody, and refuses those who come later.
    fn close(&self) {
        let mut launches = lock(&self.launches);
        launches.closed = true;
        let ids: Vec<u64> = launches.by_id.keys().copied().collect();
        drop(launches);
        for id in ids {
            self.exited(id, lost_exit());
        }
    }

    /// A command has been sent, or cannot be.
    fn sent(&self, outgoing: Outgoing, sent: io::Result<()>) {
        match (outgoing.command, outgoing.sent, sent) {
            (_, None, Ok(())) => {}
            // The guard is gone: everybody is answered when its leftovers are as well.
            (_, _, Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            // Whoever has stopped waiting does not want to know.
            (_, Some(asked), sent) => drop(asked.send(sent)),
            (Command::Launch { id, .. }, None, Err(error)) => self.failed(id, NotStarted::Handover(error)),
            // A fence or a kill that does not get through must not be lost.
            (_, None, Err(_)) => self.kill_guard(),
        }
    }

    fn kill_guard(&self) {
        if let Some(guard) = lock(&self.guard).as_mut() {
            // It fails only for one that has ended.
            let _ = guard.kill();
        }
    }
}

fn lost_exit() -> Exit {
    Exit::from(Ending::lost(0, false, false))
}

impl From<Ending> for Exit {
    fn from(ending: Ending) -> Self {
        let status = ending.status.map(std_process::ExitStatus::from_raw);
        let signal = status.and_then(|status| status.signal()).map(ExitStatus::Signal);
        let code = status.and_then(|status| status.code()).map(ExitStatus::Code);
        Exit {
            status: signal.or(code).unwrap_or(ExitStatus::Lost),
            by_us: ending.by_us,
            fenced: ending.fenced,
            processor_time: Duration::from_micros(ending.processor_microseconds),
            peak_memory: ending.peak_memory,
            leftovers: ending.leftovers,
            oom_killed: ending.oom_killed,
            stdout: ending.stdout,
            stderr: ending.stderr,
        }
    }
}

/// A lock that outlives a panic: what it protects is never half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(executable: &Path, socket: OwnedFd) -> io::Result<Child> {
    let mut living = lock(&LIVING);
    let mut command = std_process::Command::new(executable);
    command.arg0("spark-runtime").arg("guard");
    // Others who may look into the guard's environment shall find nothing there.
    command.env_clear().current_dir("/");
    command.stdin(Stdio::from(socket)).stdout(Stdio::null());
    // SAFETY: only a system call happens between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // A Ctrl-C in the worker's terminal is for the worker.
            unistd::setsid()?;
            Ok(())
        });
    }
    let guard = command.spawn()?;
    living.insert(pid_of(&guard));
    Ok(guard)
}

fn pid_of(child: &Child) -> i32 {
    child.id().cast_signed()
}

/// Puts a launch into the form in which its shim takes it.
fn write_down(launch: &Launch) -> Result<Attachment, LaunchError> {
    let program = || launch.program.clone();
    let handover = |source| LaunchError::Handover { program: program(), source };
    let whole = |path: &PathBuf| absolute(path).map_err(handover);
    let (stdout, stderr, directory) =
        (whole(&launch.stdout)?, whole(&launch.stderr)?, whole(&launch.directory)?);
    let mut texts = TextsWriter::new(launch.log_limit, launch.arguments.len(), launch.environment.len());
    let mut add = |part, pieces: &[&OsStr]| {
        let added = texts.add(pieces);
        added.then_some(()).ok_or_else(|| LaunchError::Nul { program: program(), part })
    };
    add("standard output", &[stdout.as_os_str()])?;
    add("standard error", &[stderr.as_os_str()])?;
    add("directory", &[directory.as_os_str()])?;
    add("path", &[launch.program.as_os_str()])?;
    for argument in &launch.arguments {
        add("argument", &[argument.as_os_str()])?;
    }
    for (name, value) in &launch.environment {
        add("environment", &[name.as_os_str(), OsStr::new("="), value.as_os_str()])?;
    }
    texts.finish().map_err(handover)
}

/// Puts a last will into the form in which the guard takes it.
fn write_will_down(will: &LastWill) -> Result<Attachment, LastWillError> {
    let patience = u64::try_from(will.patience.as_millis()).unwrap_or(u64::MAX);
    let mut texts = TextsWriter::new(patience, will.arguments.len(), will.environment.len());
    let mut add = |part, pieces: &[&OsStr]| {
        let added = texts.add(pieces);
        added.then_some(()).ok_or(LastWillError::Nul { part })
    };
    add("path", &[will.program.as_ref().map_or(OsStr::new(""), |program| program.as_os_str())])?;
    for argument in &will.arguments {
        add("argument", &[argument.as_os_str()])?;
    }
    for (name, value) in &will.environment {
        add("environment", &[name.as_os_str(), OsStr::new("="), value.as_os_str()])?;
    }
    texts.add_bytes(&will.input);
    texts.finish_as_file().map_err(|source| LastWillError::Handover { source })
}

/// Sends what the guard did not take at once; when nobody can send any more, lets the guard go.
async fn write(socket: OwnedFd, mut to_send: mpsc::UnboundedReceiver<Outgoing>, waiting: Arc<Waiting>) {
    while let Some(outgoing) = to_send.recv().await {
        let sent = send_when_writable(&socket, &outgoing).await;
        waiting.sent(outgoing, sent);
        *lock(&waiting.queued) -= 1;
    }
    // It fails only if the guard is gone.
    let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Write);
}

async fn send_when_writable(socket: &OwnedFd, outgoing: &Outgoing) -> io::Result<()> {
    // SAFETY: the socket stays open and the same as long as it is borrowed.
    let writable = unsafe { AsyncFd::register_with_interest(socket.as_fd(), Interest::WRITABLE) }?;
    let (command, attached) = (&outgoing.command, outgoing.attached.as_ref());
    writable.async_io(Interest::WRITABLE, |socket| wire::send(*socket, command, attached)).await
}

/// Hands out reports until the guard is gone, then sees to what it has left.
async fn read(
    socket: Arc<AsyncFd<OwnedFd>>,
    waiting: Arc<Waiting>,
    ready: oneshot::Sender<()>,
    lost: watch::Sender<bool>,
) {
    let mut ready = Some(ready);
    let mut inbox = Inbox::new();
    loop {
        let received = socket
            .async_io(Interest::READABLE, |socket| {
                inbox.receive(socket.as_fd())?.map(|packet| packet.message()).transpose()
            })
            .await;
        match received {
            Ok(Some(Report::Ready)) => {
                if let Some(ready) = ready.take() {
                    let _ = ready.send(());
                }
            }
            Ok(Some(report)) => waiting.take(report),
            Ok(None) => break,
            Err(error) => {
                tracing::error!(%error, "guard speaks nonsense and is given up");
                break;
            }
        }
    }
    let guard = lock(&waiting.guard).take();
    let buried = tokio::task::spawn_blocking(move || bury(guard)).await;
    if let Err(error) = buried {
        tracing::error!(%error, "failed to look for what the guard has left");
    }
    waiting.close();
    lost.send_replace(true);
}

impl Waiting {
    fn take(&self, report: Report) {
        match report {
            Report::Ready => {}
            Report::Started { id, pid } => self.started(id, pid),
            Report::LaunchFailed { id, step, errno } => self.failed(id, NotStarted::Failed { step, errno }),
            Report::Exited(ending) => self.exited(ending.id, Exit::from(ending)),
            Report::Fenced { until } => {
                self.fenced.send_replace(Some(BootTime::from_nanoseconds(until)));
            }
        }
    }
}

/// Makes sure that the guard is dead, and kills all that it has left.
fn bury(guard: Option<Child>) {
    let Some(mut guard) = guard else { return };
    // It is dead or dying, or it has said nonsense.
    let _ = guard.kill();
    let ended = guard.wait();
    lock(&LIVING).remove(&pid_of(&guard));
    if ended.is_ok_and(|status| status.success()) {
        // A guard that goes in good order has seen its last child go before.
        return;
    }
    if let Err(error) = kill_orphans() {
        tracing::error!(%error, "worker cannot list processes");
    }
}

/// Kills every process that became a child of this one because its guard died.
///
/// Such a process is in the session of that guard or in one made below it; a child that this process has started
/// itself is in its own session, unless it is a guard. The shims get some time to kill their trees themselves: if
/// this process died in the middle of doing it for them, nobody would be left who could go on.
fn kill_orphans() -> io::Result<()> {
    let worker = unistd::getpid().as_raw();
    let session = unistd::getsid(None)?.as_raw();
    let patient_until = Instant::now() + SHIM_PATIENCE;
    let mut pause = Duration::from_millis(1);
    let mut clean_looks = 0;
    // One look alone could miss a process that was born behind its back.
    while clean_looks < 2 {
        let patient = Instant::now() < patient_until;
        let shims = RefCell::new(Vec::new());
        let found = {
            let living = lock(&LIVING);
            process::kill_strays(|stat| {
                let orphan = stat.parent == worker && stat.session != session && !living.contains(&stat.pid);
                let spared = orphan && patient && stat.is_named(shim::NAME);
                if spared {
                    shims.borrow_mut().push(stat.pid);
                }
                orphan && !spared
            })?
        };
        for orphan in found.iter().filter(|orphan| orphan.parent == worker) {
            tracing::warn!(pid = orphan.pid, "orphan of the guard was killed");
            process::wait_for(orphan.pid);
        }
        let shims = shims.into_inner();
        clean_looks = if found.is_empty() && shims.is_empty() { clean_looks + 1 } else { 0 };
        let busy = shims.into_iter().filter(|shim| process::reap(Some(*shim)) == Reaped::NoneYet).count();
        if busy > 0 {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Kills a guard that should have fenced and does not say so.
async fn watch_the_fence(mut until: watch::Receiver<Option<BootTime>>, waiting: Arc<Waiting>) {
    let mut fenced = waiting.fenced.subscribe();
    loop {
        let moment = *until.borrow_and_update();
        let late = async {
            let Some(moment) = moment else { return std::future::pending().await };
            // The runtime's clock stands still while the machine sleeps: look again after each wait.
            while let Some(left) = moment.checked_duration_since(BootTime::now()) {
                tokio::time::sleep(left + Duration::from_millis(1)).await;
            }
            tokio::time::sleep(FENCE_PATIENCE).await;
            if *fenced.borrow_and_update() != Some(moment) {
                tracing::error!("guard hangs and is killed");
                waiting.kill_guard();
            }
            std::future::pending().await
        };
        tokio::select! {
            () = late => {}
            changed = until.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
