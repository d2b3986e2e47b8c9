//! The guard process: gives each launch a shim of its own, passes orders and reports on, and keeps the promise that no
//! tree outlives its worker or the moment that the worker named.
//!
//! It has one thread and waits on sockets, a clock and SIGCHLD; it opens no file for a launch, so that no dead disk
//! can hang it. It must not know what a launch or a last will is for.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::{self, ForkResult, Pid};

use super::process::{self, Reaped};
use super::shim::{self, Surroundings};
use super::will::{self, Will};
use super::wire::{self, Command, Ending, Inbox, Order, Packet, Report};
use super::{BootTime, Step};

/// A shim that was told to kill and has not ended by then is hung itself: it is killed and its tree taken over.
const SHIM_PATIENCE: Duration = Duration::from_secs(5);
/// The same for one whose program has not started by then: it stands still in the opening of a log or in an `exec`, on a
/// disk that does not answer. To kill it then costs nothing that runs.
const START_PATIENCE: Duration = Duration::from_secs(1);
/// How long a shim without a launch is kept for the next one, and how many are.
const IDLE_PATIENCE: Duration = Duration::from_secs(2);
const IDLE_LIMIT: usize = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Descriptors kept free for reading `/proc` when many shims are there.
const SPARE_DESCRIPTORS: u64 = 16;
/// Looks in a row that must find no stray: one alone could miss a process that was born behind its back.
const CLEAN_LOOKS: u8 = 2;

/// Runs this process as a guard until its worker is gone and every tree with it.
///
/// The process must have one thread, and file descriptor 0 must be the socket that [`Guard::start`](super::Guard)
/// made; so it is called before any runtime, thread or log is set up. It returns only when no process that it ever
/// started is left, and the worker's last will has been carried out.
pub fn guard_main() -> ExitCode {
    // If somebody has set up a log already, that one stays.
    let _ = tracing_subscriber::fmt()
        .with_writer(|| NeverWaiting)
        .with_ansi(false)
        .with_target(false)
        .with_max_level(tracing::Level::INFO)
        .try_init();
    match Server::prepare().and_then(Server::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "guard failed");
            ExitCode::FAILURE
        }
    }
}

/// Standard error, but a reader that is slow, stopped or gone costs lines and not the guard's time.
struct NeverWaiting;

impl Write for NeverWaiting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut writable = [process::interest(Some(io::stderr().as_fd()), libc::POLLOUT)];
        let ready = process::poll(&mut writable, Some(Duration::ZERO)).is_ok()
            && writable[0].revents == libc::POLLOUT;
        if ready {
            // A pipe that is ready takes at least a page at once, and a line is shorter.
            let line = &bytes[..bytes.len().min(4096)];
            let _ = unistd::write(io::stderr(), line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A launch that has not ended.
struct Ongoing {
    id: u64,
    started: bool,
    by_us: bool,
    fenced: bool,
}

/// A shim as the guard sees it.
struct ShimSeat {
    pid: i32,
    /// Absent after its end of file, or once it was let go.
    control: Option<OwnedFd>,
    /// Absent while there is nothing to do for it.
    ongoing: Option<Ongoing>,
    idle_since: Instant,
    /// When to kill the shim itself.
    kill_at: Option<Instant>,
}

impl ShimSeat {
    fn is_idle(&self) -> bool {
        self.control.is_some() && self.ongoing.is_none()
    }

    /// Whatever was launched last is the one that an order is for: the shim reads one packet after the other.
    fn order(&mut self, order: Order) {
        let Some(ongoing) = &mut self.ongoing else { return };
        ongoing.by_us = true;
        ongoing.fenced |= order == Order::Fence;
        if order != Order::Terminate {
            let patience = if ongoing.started { SHIM_PATIENCE } else { START_PATIENCE };
            self.kill_at.get_or_insert_with(|| Instant::now() + patience);
        }
        if let Some(control) = &self.control {
            // What does not get through is either too late or made good by `kill_at`.
            let _ = wire::send_bytes(control.as_fd(), &[order.to_byte()], None);
        }
        // Somebody may have stopped it.
        process::send(self.pid, libc::SIGCONT);
    }

    /// Its program runs. If it is to be killed already, that may take as long as with any other.
    fn started(&mut self) {
        if let Some(ongoing) = &mut self.ongoing {
            ongoing.started = true;
            self.kill_at = self.kill_at.map(|_| Instant::now() + SHIM_PATIENCE);
        }
    }

    /// Its launch is over, with the whole tree.
    fn rest(&mut self) {
        self.ongoing = None;
        self.kill_at = None;
        self.idle_since = Instant::now();
    }

    /// Lets it go, which it does at the end of file.
    fn let_go(&mut self) {
        self.control = None;
        self.kill_at.get_or_insert_with(|| Instant::now() + SHIM_PATIENCE);
    }
}

/// Looking for processes whose shim is dead.
struct Sweep {
    next_look: Instant,
    pause: Duration,
    clean_looks: u8,
}

impl Sweep {
    fn now() -> Self {
        Sweep { next_look: Instant::now(), pause: FIRST_PAUSE, clean_looks: 0 }
    }
}

/// The process that carries a last will out.
struct Executor {
    pid: i32,
    /// When its time is over; absent if that is beyond what a clock can tell.
    until: Option<Instant>,
}

/// Places in the list of what the server waits for.
const WORKER: usize = 0;
const SIGNALS: usize = 1;
const FIRST_SHIM: usize = 3;

struct Server {
    /// Absent once the worker is gone.
    worker: Option<OwnedFd>,
    signals: SignalFd,
    timer: TimerFd,
    /// What to wait for: worker, signals, clock, then the shims in their order.
    entries: Vec<libc::pollfd>,
    surroundings: Surroundings,
    shims: Vec<ShimSeat>,
    /// Reports that the worker does not take yet; a launch makes two at most.
    outgoing: VecDeque<Vec<u8>>,
    until: Option<BootTime>,
    fenced: bool,
    sweep: Option<Sweep>,
    /// Launches whose shim is dead, to be reported when their trees are.
    lost: Vec<Ending>,
    will: Option<Will>,
    executor: Option<Executor>,
    /// Since the memory that holds code was given back.
    has_worked: bool,
}

impl Server {
    fn prepare() -> io::Result<Self> {
        // Before anything is opened: whatever the worker has let slip must not reach a model.
        process::close_all_except(&mut [])?;
        process::ignore_signals();
        let kind = getsockopt(&io::stdin(), sockopt::SockType).map_err(|_| not_by_hand())?;
        if kind != SockType::SeqPacket {
            return Err(not_by_hand());
        }
        let worker = io::stdin().as_fd().try_clone_to_owned()?;
        let nothing = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        unistd::dup2_stdin(&nothing)?;
        // Fails if it is the leader of a group already, which only means that it was not started in the usual way.
        let _ = unistd::setsid();
        unistd::chdir("/")?;
        prctl::set_name(c"spark-guard")?;
        prctl::set_child_subreaper(true)?;
        let signals = process::watch_children()?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        wire::send(worker.as_fd(), &Report::Ready, None)?;
        Ok(Server {
            worker: Some(worker),
            signals,
            timer,
            entries: Vec::new(),
            surroundings: Surroundings::look(),
            shims: Vec::new(),
            outgoing: VecDeque::new(),
            until: None,
            fenced: false,
            sweep: None,
            lost: Vec::new(),
            will: None,
            executor: None,
            has_worked: true,
        })
    }

    /// Goes on until the worker is gone, there are no children left, and its last will has been carried out.
    fn run(mut self) -> io::Result<()> {
        let mut inbox = Inbox::new();
        loop {
            self.give_code_back_when_idle();
            self.wait()?;
            // Orders before the clock: a renewal that has arrived in time counts.
            if self.is_ready(WORKER) {
                self.flush();
                self.take_commands(&mut inbox);
            }
            self.fence_when_due();
            // Those that have come meanwhile have said nothing yet.
            for place in 0..self.entries.len() - FIRST_SHIM {
                if self.is_ready(FIRST_SHIM + place) {
                    self.take_reports_of(place, &mut inbox);
                }
            }
            if self.is_ready(SIGNALS) {
                process::clear(&self.signals);
            }
            let childless = (self.is_ready(SIGNALS) || self.worker.is_none()) && self.reap(&mut inbox);
            self.end_executor_when_due();
            let wanted = !self.shims.is_empty() || self.executor.is_some();
            if self.worker.is_none() && !wanted && !childless {
                self.sweep.get_or_insert_with(Sweep::now);
            }
            self.let_idle_shims_go();
            self.kill_hung_shims();
            self.sweep_when_due();
            if self.worker.is_none() && childless {
                // Not before: the kernel itself says that nothing is left of any tree.
                let Some(will) = self.will.take() else { return Ok(()) };
                self.carry_out_will(will);
            }
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let worker_events =
            if self.outgoing.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT };
        self.entries.clear();
        // In the order of the places below.
        self.entries.push(process::interest(self.worker.as_ref().map(AsFd::as_fd), worker_events));
        self.entries.push(process::interest(Some(self.signals.as_fd()), libc::POLLIN));
        self.entries.push(process::interest(Some(self.timer.as_fd()), libc::POLLIN));
        let controls = self.shims.iter().map(|shim| shim.control.as_ref().map(AsFd::as_fd));
        self.entries.extend(controls.map(|control| process::interest(control, libc::POLLIN)));
        let next_sweep = self.sweep.as_ref().map(|sweep| sweep.next_look);
        let next_end = self.executor.as_ref().and_then(|executor| executor.until);
        let of_shim = |shim: &ShimSeat| {
            shim.kill_at.or_else(|| shim.is_idle().then(|| shim.idle_since + IDLE_PATIENCE))
        };
        let next = self.shims.iter().filter_map(of_shim).chain(next_sweep).chain(next_end).min();
        let time_out = next.map(|next| next.saturating_duration_since(Instant::now()));
        process::poll(&mut self.entries, time_out)
    }

    fn is_ready(&self, place: usize) -> bool {
        self.entries[place].revents != 0
    }

    fn take_commands(&mut self, inbox: &mut Inbox) {
        while let Some(worker) = &self.worker {
            let taken = match inbox.receive(worker.as_fd()) {
                Ok(Some(packet)) => packet.message::<Command>().map(|command| (command, packet)),
                Ok(None) => return self.part_from_worker("worker is gone"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => Err(error),
            };
            match taken {
                Ok((command, packet)) => self.carry_out(command, packet),
                Err(error) => {
                    tracing::error!(%error, "guard cannot understand its worker");
                    self.part_from_worker("worker is taken for dead");
                }
            }
        }
    }

    fn carry_out(&mut self, command: Command, packet: Packet<'_>) {
        match command {
            // The shim looks at the moment after which it is not to be.
            Command::Launch { id, .. } => {
                if let Err((step, errno)) = self.launch(id, &packet) {
                    self.tell(&Report::LaunchFailed { id, step, errno });
                }
            }
            Command::Terminate { id } => self.order(id, Order::Terminate),
            Command::Kill { id } => self.order(id, Order::Kill),
            Command::AliveUntil { nanoseconds } => {
                self.set_alive_until(nanoseconds.map(BootTime::from_nanoseconds))
            }
            Command::LastWill => match Will::keep(packet.attached) {
                Ok(will) => self.will = Some(will),
                Err(error) => {
                    // The one before may no longer be what the worker wants.
                    self.will = None;
                    tracing::error!(%error, "guard cannot keep the last will");
                }
            },
            Command::NoLastWill => self.will = None,
        }
    }

    /// An id that is not here has ended already.
    fn order(&mut self, id: u64, order: Order) {
        let launched = |shim: &&mut ShimSeat| shim.ongoing.as_ref().is_some_and(|ongoing| ongoing.id == id);
        if let Some(shim) = self.shims.iter_mut().find(launched) {
            shim.order(order);
        }
    }

    fn part_from_worker(&mut self, why: &'static str) {
        if let Some(socket) = self.worker.take() {
            // Left to the kernel to close: the end of file tells a worker that has only let go of its guard when this
            // process has ended, and with it all that it had to do.
            let _ = socket.into_raw_fd();
        }
        self.outgoing.clear();
        // Everything is killed now, and there is nobody to fence any more.
        self.until = None;
        let _ = self.timer.unset();
        let launches = self.launches();
        if launches > 0 {
            tracing::warn!(launches, why, "guard kills every tree");
        }
        for shim in &mut self.shims {
            if shim.is_idle() {
                shim.let_go();
            }
            shim.order(Order::Kill);
        }
    }

    fn set_alive_until(&mut self, until: Option<BootTime>) {
        // What is told after the moment has passed comes too late for the trees of that time.
        self.fence_when_due();
        self.until = until;
        // Zero would disarm the clock.
        let expiration = until.map(|until| Duration::from_nanos(until.as_nanoseconds().max(1)));
        let set = match expiration {
            Some(moment) => {
                let moment = Expiration::OneShot(TimeSpec::from_duration(moment));
                self.timer.set(moment, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
            }
            None => self.timer.unset(),
        };
        if let Err(error) = set {
            // Without a clock the promise cannot be kept: the safe side is now.
            tracing::error!(%error, "guard cannot set its clock");
            self.until = Some(BootTime::from_nanoseconds(0));
        }
        // If it has passed already, the next look at the clock says so to the worker as well.
        self.fenced = false;
    }

    fn fence_when_due(&mut self) {
        let Some(until) = self.until else { return };
        if self.fenced || BootTime::now() < until {
            return;
        }
        // Stop the descriptor from being ready for ever.
        let _ = self.timer.unset();
        self.fenced = true;
        let launches = self.launches();
        if launches > 0 {
            tracing::warn!(launches, "worker has not renewed in time, guard kills every tree");
        }
        for shim in &mut self.shims {
            shim.order(Order::Fence);
        }
        self.tell(&Report::Fenced { until: until.as_nanoseconds() });
    }

    fn launches(&self) -> usize {
        self.shims.iter().filter(|shim| shim.ongoing.is_some()).count()
    }

    /// Starting up has run through more code than all that comes after, and a launch through more than waiting.
    fn give_code_back_when_idle(&mut self) {
        if self.has_worked && self.shims.is_empty() && self.worker.is_some() {
            self.has_worked = false;
            process::give_code_back();
        }
    }

    /// Hands a launch to the shim that has been idle for the shortest time, or to a new one.
    fn launch(&mut self, id: u64, packet: &Packet<'_>) -> Result<(), (Step, i32)> {
        if self.until.is_some_and(|until| BootTime::now() >= until) {
            return Err((Step::Fenced, libc::ECANCELED));
        }
        loop {
            let idle = self.shims.iter_mut().filter(|shim| shim.is_idle());
            let (shim, is_new) = match idle.max_by_key(|shim| shim.idle_since) {
                Some(shim) => (shim, false),
                None => (self.make_shim()?, true),
            };
            let Some(control) = &shim.control else { continue };
            let attached = packet.attached.as_ref().map(AsFd::as_fd);
            match wire::send_bytes(control.as_fd(), packet.bytes, attached) {
                Ok(()) => {
                    shim.ongoing = Some(Ongoing { id, started: false, by_us: false, fenced: false });
                    return Ok(());
                }
                Err(error) => {
                    // An idle one that is dead or dying has no tree, and another will do.
                    shim.let_go();
                    if is_new {
                        return Err((Step::Shim, error.raw_os_error().unwrap_or(libc::EIO)));
                    }
                }
            }
        }
    }

    fn make_shim(&mut self) -> Result<&mut ShimSeat, (Step, i32)> {
        self.has_worked = true;
        let (ours, theirs) =
            wire::pair().map_err(|error| (Step::Shim, error.raw_os_error().unwrap_or(libc::EIO)))?;
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let used = u64::try_from(ours.as_raw_fd().max(theirs.as_raw_fd())).unwrap_or(u64::MAX);
        if used.saturating_add(SPARE_DESCRIPTORS) > limit {
            return Err((Step::Shim, libc::EMFILE));
        }
        // SAFETY: this process has one thread, so its child may do whatever a process may.
        match unsafe { unistd::fork() } {
            Err(errno) => Err((Step::Shim, errno as i32)),
            Ok(ForkResult::Parent { child }) => {
                self.shims.push(ShimSeat {
                    pid: child.as_raw(),
                    control: Some(ours),
                    ongoing: None,
                    idle_since: Instant::now(),
                    kill_at: None,
                });
                self.shims.last_mut().ok_or((Step::Shim, libc::EIO))
            }
            Ok(ForkResult::Child) => {
                let life = AssertUnwindSafe(|| shim::run(theirs, &self.surroundings));
                let code = catch_unwind(life).unwrap_or(libc::EXIT_FAILURE);
                // SAFETY: ends this process at once; nothing of the guard's may be cleaned up in its child.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// Passes on what a shim has said.
    fn take_reports_of(&mut self, place: usize, inbox: &mut Inbox) {
        while let Some(control) = &self.shims[place].control {
            let taken = match inbox.receive(control.as_fd()) {
                Ok(Some(packet)) => packet.message::<Report>().map(|report| (report, packet.bytes)),
                Ok(None) => Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => Err(error),
            };
            let shim = &mut self.shims[place];
            match taken {
                Ok((report, bytes)) => {
                    if matches!(report, Report::Started { .. }) {
                        shim.started();
                    } else {
                        shim.rest();
                        if self.worker.is_none() {
                            shim.let_go();
                        }
                    }
                    self.pass_on(bytes);
                }
                Err(_) => {
                    shim.let_go();
                    if shim.ongoing.is_some() {
                        // Dead or dying. It is certainly dead when it is reaped, and its tree is then ours.
                        process::send(shim.pid, libc::SIGKILL);
                    }
                }
            }
        }
    }

    /// Takes every child that has ended. True when there are none left.
    fn reap(&mut self, inbox: &mut Inbox) -> bool {
        loop {
            match process::reap(None) {
                Reaped::NoneYet => return false,
                Reaped::NoChildren => return true,
                Reaped::Child { pid, status, .. } => {
                    if let Some(place) = self.shims.iter().position(|shim| shim.pid == pid) {
                        self.part_from_shim(place, inbox);
                    }
                    if self.executor.as_ref().is_some_and(|executor| executor.pid == pid) {
                        self.executor = None;
                        will::tell_end(status);
                    }
                }
            }
        }
    }

    fn part_from_shim(&mut self, place: usize, inbox: &mut Inbox) {
        // Its last words may still lie in the socket.
        self.take_reports_of(place, inbox);
        let shim = self.shims.swap_remove(place);
        let Some(ongoing) = shim.ongoing else { return };
        tracing::error!(launch = ongoing.id, pid = shim.pid, "shim was lost, guard takes its tree over");
        self.lost.push(Ending::lost(ongoing.id, ongoing.by_us, ongoing.fenced));
        self.sweep = Some(Sweep::now());
    }

    /// Lets those go that have had nothing to do for long, or are too many.
    fn let_idle_shims_go(&mut self) {
        let mut idle: Vec<&mut ShimSeat> = self.shims.iter_mut().filter(|shim| shim.is_idle()).collect();
        if idle.len() > IDLE_LIMIT {
            idle.sort_by_key(|shim| shim.idle_since);
        }
        let surplus = idle.len().saturating_sub(IDLE_LIMIT);
        for (place, shim) in idle.into_iter().enumerate() {
            if place < surplus || shim.idle_since.elapsed() >= IDLE_PATIENCE {
                shim.let_go();
            }
        }
    }

    fn kill_hung_shims(&mut self) {
        let now = Instant::now();
        for shim in &mut self.shims {
            if shim.kill_at.is_some_and(|moment| moment <= now) {
                let launch = shim.ongoing.as_ref().map(|ongoing| ongoing.id);
                tracing::error!(launch, pid = shim.pid, "shim hangs and is killed");
                process::send(shim.pid, libc::SIGKILL);
                shim.kill_at = None;
            }
        }
    }

    fn carry_out_will(&mut self, will: Will) {
        // What is still to be swept up is gone, and the executor is nothing to be swept up.
        self.sweep = None;
        match will.carry_out() {
            Ok((pid, patience)) => {
                self.executor = Some(Executor { pid, until: Instant::now().checked_add(patience) });
            }
            Err(error) => tracing::error!(%error, "guard cannot carry out the last will"),
        }
    }

    /// When the executor's time is over, it is a stray like any other.
    fn end_executor_when_due(&mut self) {
        let until = self.executor.as_ref().and_then(|executor| executor.until);
        if until.is_some_and(|until| until <= Instant::now()) {
            tracing::warn!("carrying out the last will takes too long and is ended");
            self.executor = None;
        }
    }

    /// Kills every child that is no shim, and what descends from it, until there is none.
    fn sweep_when_due(&mut self) {
        let Some(sweep) = &mut self.sweep else { return };
        if Instant::now() < sweep.next_look {
            return;
        }
        let guard = Pid::this().as_raw();
        let shims = &self.shims;
        match process::kill_strays(|stat| {
            stat.parent == guard && !shims.iter().any(|shim| shim.pid == stat.pid)
        }) {
            Ok(found) if found.is_empty() => sweep.clean_looks += 1,
            Ok(_) => sweep.clean_looks = 0,
            Err(error) => tracing::error!(%error, "guard cannot list processes"),
        }
        sweep.next_look = Instant::now() + sweep.pause;
        sweep.pause = (sweep.pause * 2).min(LONGEST_PAUSE);
        if sweep.clean_looks < CLEAN_LOOKS {
            return;
        }
        self.sweep = None;
        for ending in std::mem::take(&mut self.lost) {
            self.tell(&Report::Exited(ending));
        }
    }

    fn tell(&mut self, report: &Report) {
        match wire::packet(report, None) {
            Ok(bytes) => self.pass_on(&bytes),
            Err(error) => tracing::error!(%error, "guard cannot put a report into words"),
        }
    }

    /// Sends a report to the worker, now or when the worker takes it.
    fn pass_on(&mut self, report: &[u8]) {
        if self.worker.is_some() {
            self.outgoing.push_back(report.to_vec());
            self.flush();
        }
    }

    /// Sends what the worker takes now; a stopped worker must not stop the guard.
    fn flush(&mut self) {
        while let (Some(worker), Some(bytes)) = (&self.worker, self.outgoing.front()) {
            match wire::send_bytes(worker.as_fd(), bytes, None) {
                Ok(()) => {
                    self.outgoing.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {
                    self.part_from_worker("worker is gone");
                }
                Err(error) => {
                    tracing::error!(%error, "guard cannot reach its worker");
                    self.part_from_worker("worker is taken for dead");
                }
            }
        }
    }
}

fn not_by_hand() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the guard is started by the worker, not by hand")
}
