//! The workers of a run: started, killed, stopped, let go on, started again.
//!
//! A seat is a place for a worker: it has a name, a folder, a wire, and one worker process after the other. This module must
//! not know why anything is done to them.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::plan::Victim;
use super::timeline::Timeline;
use crate::program::{children_of, processes_of, start_worker};
use crate::wire::{State, Wire};

const LOOK: Duration = Duration::from_millis(50);
/// How long a worker that was killed by one of its jobs stays away.
const AFTER_POISON: Duration = Duration::from_millis(500);

/// How workers are started.
#[derive(Debug, Clone)]
pub struct Start {
    /// The broker's address, with `PORT` for the port.
    pub uri: String,
    /// How many workers, from the first one on, nobody kills.
    pub spared: usize,
    /// Settings, each `key=value`.
    pub settings: Vec<String>,
    /// The rest of the command line.
    pub arguments: Vec<String>,
    /// Everything of the workers lies here.
    pub folder: PathBuf,
}

#[derive(Debug)]
struct Seat {
    name: String,
    wire: Arc<Wire>,
    is_wire_spoiled: bool,
    child: Option<Child>,
    /// Counts the processes that sat here.
    process: u32,
    /// It was told to end: its end is nothing to wonder at.
    is_killed: bool,
    is_paused: bool,
    /// The guards that were stopped: they outlive their worker, and have to go on then.
    stopped_guards: Vec<Process>,
    /// It was told to leave: it ends in order.
    is_leaving: bool,
    start_at: Option<Instant>,
}

/// A process, and not another one that was given its number later.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    started: String,
}

impl Process {
    fn of(pid: i32) -> Option<Self> {
        // The name, in brackets, may hold anything; what counts stands behind it.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started = stat.rsplit(')').next()?.split_whitespace().nth(19)?.to_owned();
        Some(Self { pid, started })
    }

    fn signal(&self, signal: Signal) {
        if Self::of(self.pid).as_ref() == Some(self) {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// What the workers did by themselves.
#[derive(Debug, Default, Clone, Copy)]
pub struct Ends {
    /// Workers that somebody else than the run killed: their jobs.
    pub by_jobs: usize,
    /// Workers that ended in any other way.
    pub by_themselves: usize,
}

#[derive(Debug, Default)]
struct Seats {
    seats: Vec<Seat>,
    ends: Ends,
    is_closed: bool,
}

/// The workers.
#[derive(Debug)]
pub struct Pool {
    start: Start,
    timeline: Timeline,
    seats: Mutex<Seats>,
}

/// A worker that a fault is aimed at: which process in which seat.
#[derive(Debug, Clone)]
pub struct Target {
    seat: usize,
    process: u32,
    /// As `w3.12`.
    pub name: String,
}

/// Which workers a fault can be aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Those that may die.
    ToKill,
    /// Those that are not stopped already.
    NotPaused,
    /// Those whose wire is not spoiled already.
    WireIsWhole,
}

impl Seat {
    /// A guard that is stopped cannot end the jobs of a worker that is dead, and nobody else can: so it does not stay
    /// stopped when its worker dies.
    fn let_guards_go_on(&mut self) {
        for guard in self.stopped_guards.drain(..) {
            guard.signal(Signal::SIGCONT);
        }
    }

    fn target(&self, number: usize) -> Target {
        Target { seat: number, process: self.process, name: format!("{}.{}", self.name, self.process) }
    }
}

impl Pool {
    /// Starts `count` workers, each with a wire to the broker's `port`.
    pub async fn open(start: Start, count: usize, port: u16, timeline: Timeline) -> Arc<Self> {
        let mut seats = Seats::default();
        for number in 0..count {
            seats.seats.push(Seat {
                name: format!("w{number}"),
                wire: Arc::new(Wire::to(port).await),
                is_wire_spoiled: false,
                child: None,
                process: 0,
                is_killed: false,
                is_paused: false,
                stopped_guards: Vec::new(),
                is_leaving: false,
                start_at: Some(Instant::now()),
            });
        }
        let pool = Arc::new(Self { start, timeline, seats: Mutex::new(seats) });
        pool.look();
        pool
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after the workers for ever: those that are dead are started again when it is time.
    pub async fn keep(self: Arc<Self>) {
        loop {
            self.look();
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&self) {
        let mut seats = self.seats();
        let Seats { seats, ends, is_closed } = &mut *seats;
        for seat in seats {
            if let Some(status) = seat.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                seat.child = None;
                seat.let_guards_go_on();
                seat.is_leaving |= *is_closed;
                self.ended(seat, status, ends);
            }
            if seat.child.is_none() && !*is_closed && seat.start_at.is_some_and(|at| at <= Instant::now()) {
                self.sit_down(seat);
            }
        }
    }

    fn ended(&self, seat: &mut Seat, status: ExitStatus, ends: &mut Ends) {
        if seat.is_killed {
            return;
        }
        let name = format!("{}.{}", seat.name, seat.process);
        let mut pause = AFTER_POISON;
        // A worker that was just started leaves by the signal itself.
        if seat.is_leaving && (status.success() || status.signal() == Some(Signal::SIGTERM as i32)) {
            pause = Duration::ZERO;
            self.timeline.note(&format!("{name} has left"));
        } else if status.signal() == Some(Signal::SIGKILL as i32) {
            ends.by_jobs += 1;
            self.timeline.note(&format!("{name} was killed by a job"));
        } else {
            ends.by_themselves += 1;
            self.timeline.note(&format!("{name} ended by itself: {status}"));
        }
        seat.start_at.get_or_insert_with(|| Instant::now() + pause);
    }

    fn sit_down(&self, seat: &mut Seat) {
        seat.process += 1;
        let home = self.start.folder.join(&seat.name);
        let log = self.log(&seat.name, seat.process);
        let _ = std::fs::create_dir_all(&home);
        let _ = std::fs::create_dir_all(log.parent().unwrap_or(&home));
        let name = format!("worker.name={}.{}", seat.name, seat.process);
        let settings: Vec<String> = self.start.settings.iter().cloned().chain([name]).collect();
        let uri = self.start.uri.replace("PORT", &seat.wire.port.to_string());
        seat.child = Some(start_worker(&home, &log, &uri, &settings, &self.start.arguments, &[]));
        (seat.is_killed, seat.is_paused, seat.is_leaving, seat.start_at) = (false, false, false, None);
        self.timeline.note(&format!("{}.{} starts", seat.name, seat.process));
    }

    fn log(&self, name: &str, process: u32) -> PathBuf {
        self.logs().join(format!("{name}.{process:03}.log"))
    }

    /// The folder of the workers' logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.start.folder.join("logs")
    }

    /// Where everything of the workers lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.start.folder
    }

    /// One of the workers that are there, by a number that says which.
    #[must_use]
    pub fn pick(&self, pick: u64, sort: Sort) -> Option<Target> {
        let seats = self.seats();
        let fits = |number: usize, seat: &Seat| match sort {
            Sort::ToKill => number >= self.start.spared,
            Sort::NotPaused => !seat.is_paused,
            Sort::WireIsWhole => !seat.is_wire_spoiled,
        };
        let there: Vec<(usize, &Seat)> = seats
            .seats
            .iter()
            .enumerate()
            .filter(|(number, seat)| seat.child.is_some() && !seat.is_killed && fits(*number, seat))
            .collect();
        let index = usize::try_from(pick % u64::try_from(there.len().max(1)).ok()?).ok()?;
        let (number, seat) = there.get(index)?;
        Some(seat.target(*number))
    }

    /// The worker in the seat of that name.
    #[must_use]
    pub fn target(&self, name: &str) -> Option<Target> {
        let seats = self.seats();
        let (number, seat) = seats.seats.iter().enumerate().find(|(_, seat)| seat.name == name)?;
        seat.child.as_ref().map(|_| seat.target(number))
    }

    /// Kills; a worker that dies by it is started again after the pause.
    pub fn kill(&self, target: &Target, victim: Victim, pause: Duration) {
        let mut seats = self.seats();
        let Some((seat, pid)) = seat_of(&mut seats, target) else { return };
        let guards = if victim == Victim::Worker { Vec::new() } else { children_of(pid) };
        for guard in guards {
            let _ = kill(Pid::from_raw(guard), Signal::SIGKILL);
        }
        if victim != Victim::Guard {
            seat.is_killed = true;
            seat.start_at = Some(Instant::now() + pause);
            if let Some(child) = &mut seat.child {
                let _ = child.kill();
            }
            seat.let_guards_go_on();
        }
    }

    /// Tells a worker to leave.
    pub fn leave(&self, target: &Target) {
        let mut seats = self.seats();
        let Some((seat, pid)) = seat_of(&mut seats, target) else { return };
        seat.is_leaving = true;
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }

    /// Stops a worker or its guard, or lets it go on. One that has died meanwhile is left alone.
    pub fn pause(&self, target: &Target, victim: Victim, is_paused: bool) {
        let mut seats = self.seats();
        let Some((seat, pid)) = seat_of(&mut seats, target) else { return };
        if victim != Victim::Worker && is_paused {
            seat.stopped_guards = children_of(pid).into_iter().filter_map(Process::of).collect();
            seat.stopped_guards.iter().for_each(|guard| guard.signal(Signal::SIGSTOP));
        }
        if !is_paused {
            seat.let_guards_go_on();
        }
        if victim != Victim::Guard {
            let signal = if is_paused { Signal::SIGSTOP } else { Signal::SIGCONT };
            let _ = kill(Pid::from_raw(pid), signal);
        }
        seat.is_paused = is_paused;
    }

    /// Makes a worker's wire so.
    pub fn wire(&self, target: &Target, state: State) {
        if let Some(seat) = self.seats().seats.get_mut(target.seat) {
            seat.is_wire_spoiled = state != State::WHOLE;
            seat.wire.set(state);
        }
    }

    /// How many workers are there.
    #[must_use]
    pub fn present(&self) -> usize {
        self.seats().seats.iter().filter(|seat| seat.child.is_some() && !seat.is_killed).count()
    }

    /// How many processes were started in all.
    #[must_use]
    pub fn started(&self) -> u32 {
        self.seats().seats.iter().map(|seat| seat.process).sum()
    }

    /// What the workers did by themselves.
    #[must_use]
    pub fn ends(&self) -> Ends {
        self.seats().ends
    }

    /// The processes of the workers that are there, with their names.
    #[must_use]
    pub fn processes(&self) -> Vec<(String, i32)> {
        let seats = self.seats();
        let of = |seat: &Seat| Some((format!("{}.{}", seat.name, seat.process), pid_of(seat)?));
        seats.seats.iter().filter_map(of).collect()
    }

    /// Makes all good that was done: wires carry, whoever was stopped goes on, whoever is dead is started.
    pub fn mend(&self) {
        let mut seats = self.seats();
        for seat in &mut seats.seats {
            seat.wire.mend();
            seat.is_wire_spoiled = false;
            seat.let_guards_go_on();
            if let Some(pid) = pid_of(seat) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                seat.is_paused = false;
            } else {
                seat.start_at = Some(Instant::now());
            }
        }
    }

    /// Tells all workers to leave and waits for that; those that do not are killed. Gives how many had to be.
    pub async fn close(&self, patience: Duration) -> usize {
        self.seats().is_closed = true;
        for (_, pid) in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let deadline = Instant::now() + patience;
        while self.present() > 0 && Instant::now() < deadline {
            self.look();
            tokio::time::sleep(LOOK).await;
        }
        let mut killed = 0;
        for seat in &mut self.seats().seats {
            if let Some(child) = &mut seat.child {
                killed += 1;
                self.timeline.note(&format!("{}.{} did not leave", seat.name, seat.process));
                seat.is_killed = true;
                let _ = child.kill();
                let _ = child.wait();
            }
            seat.child = None;
        }
        killed
    }

    /// Kills every worker; none is started again.
    pub fn kill_all(&self) {
        let mut seats = self.seats();
        seats.is_closed = true;
        for seat in &mut seats.seats {
            if let Some(mut child) = seat.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    /// The processes that are left of all workers and jobs once they have had time to end.
    pub async fn orphans(&self, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let left = processes_of(&self.start.folder);
            if left.is_empty() {
                return Vec::new();
            }
            if Instant::now() >= deadline {
                return left.into_iter().map(describe).collect();
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// The seat of a target, if the same process still sits there, and its process id.
fn seat_of<'a>(seats: &'a mut Seats, target: &Target) -> Option<(&'a mut Seat, i32)> {
    let seat = seats.seats.get_mut(target.seat).filter(|seat| seat.process == target.process)?;
    // As long as the child was not waited for, its number is nobody else's.
    let pid = pid_of(seat)?;
    Some((seat, pid))
}

fn pid_of(seat: &Seat) -> Option<i32> {
    seat.child.as_ref().and_then(|child| child.id().try_into().ok())
}

fn describe(pid: i32) -> String {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
    let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    format!("{pid} {} in {}", words.join(" ").trim(), directory.display())
}
