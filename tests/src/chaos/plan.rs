//! What a run does, by its seed alone: every job, how it is published, and every fault.
//!
//! Each job and each fault has a generator of its own, made of the seed and its number, so that none depends on how the
//! others went or on any clock. What the machine makes of it is another matter: no two runs are the same.
//!
//! This module must not know how anything of it is done.

use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;

use crate::jobs;
use crate::wire::{Passage, State, Which};

/// What a job does, and so how it may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Completes at once.
    Instant,
    /// Completes after less than half a second.
    Short,
    /// Completes after some seconds.
    Long,
    /// Does not care for SIGTERM.
    Stubborn,
    /// Leaves a process behind that hides in a session of its own.
    Daemon,
    /// Its first run ends before the driver is there; another one is due.
    Flaky,
    /// Its model raises.
    Raises,
    /// Somebody kills its driver: that is final.
    Killed,
    /// Is no job that can be run.
    Invalid,
    /// Kills every worker that runs it.
    Poison,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Instant,
        Self::Short,
        Self::Long,
        Self::Stubborn,
        Self::Daemon,
        Self::Flaky,
        Self::Raises,
        Self::Killed,
        Self::Invalid,
        Self::Poison,
    ];

    /// How many of ten thousand are of this kind.
    fn share(self) -> u32 {
        match self {
            Self::Instant => 4690,
            Self::Short => 2300,
            Self::Long => 700,
            Self::Stubborn | Self::Flaky | Self::Invalid => 300,
            Self::Daemon => 500,
            Self::Raises => 700,
            Self::Killed => 200,
            Self::Poison => 10,
        }
    }

    /// The word for it in the tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Instant => "instant",
            Self::Short => "short",
            Self::Long => "long",
            Self::Stubborn => "stubborn",
            Self::Daemon => "daemon",
            Self::Flaky => "flaky",
            Self::Raises => "raises",
            Self::Killed => "killed",
            Self::Invalid => "invalid",
            Self::Poison => "poison",
        }
    }

    fn of(rng: &mut Rng) -> Self {
        let mut left = rng.u32(..10_000);
        for kind in Self::ALL {
            if left < kind.share() {
                return kind;
            }
            left -= kind.share();
        }
        Self::Instant
    }
}

/// When a job is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// Before it is published.
    Before,
    /// So much later than the first event that is heard of it.
    After(Duration),
}

/// A job and what its publishers do with it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// What it does.
    pub kind: Kind,
    /// The message.
    pub body: Vec<u8>,
    /// Publications one right behind the other, from 1.
    pub at_once: u32,
    /// Publications more as soon as something is heard of it.
    pub during: u32,
    /// Publications more some time after its end.
    pub after: u32,
    /// How long after the end.
    pub after_pause: Duration,
    /// A publication with another body as soon as something is heard of it.
    pub other_body: Option<Vec<u8>>,
    /// Its publisher dies before it hears whether the job has arrived.
    pub publisher_dies: bool,
    /// What it sent never arrives then.
    pub is_in_vain: bool,
    /// Nobody publishes it again then.
    pub is_given_up: bool,
    /// Somebody wants it cancelled.
    pub cancel: Option<Cancel>,
}

impl Job {
    /// A job that is published once, and of which nothing more is wanted.
    #[must_use]
    pub fn plain(id: &str, kind: Kind, body: Vec<u8>) -> Self {
        Self {
            id: id.to_owned(),
            kind,
            body,
            at_once: 1,
            during: 0,
            after: 0,
            after_pause: Duration::ZERO,
            other_body: None,
            publisher_dies: false,
            is_in_vain: false,
            is_given_up: false,
            cancel: None,
        }
    }
}

/// What of a service is tried.
#[derive(Debug, Clone, Copy, Default)]
pub struct Features {
    /// Jobs are cancelled.
    pub cancel: bool,
    /// Ids are published again with another body.
    pub conflict: bool,
    /// No job kills its worker.
    pub no_poison: bool,
}

/// Makes jobs.
#[derive(Debug, Clone)]
pub struct Jobs {
    /// The run's seed.
    pub seed: u64,
    /// What is tried.
    pub features: Features,
    /// The file that every run is written to.
    pub journal: PathBuf,
    /// A folder for what a job counts.
    pub counters: PathBuf,
}

impl Jobs {
    /// The job with this number.
    #[must_use]
    pub fn job(&self, number: u64) -> Job {
        let mut rng = generator(self.seed, 1, number);
        let id = format!("j{number:06}");
        let mut kind = Kind::of(&mut rng);
        // However few jobs there are, one of them is poison.
        if number == 7 {
            kind = Kind::Poison;
        }
        if kind == Kind::Poison && self.features.no_poison {
            kind = Kind::Instant;
        }
        let body = self.body(&id, kind, &mut rng);
        let mut copies = [1, 0, 0];
        if rng.u32(..100) < 15 {
            for _ in 0..rng.u32(1..=4) {
                copies[rng.usize(..3)] += 1;
            }
        }
        let conflicts = rng.u32(..100) < 1 && self.features.conflict;
        let other_body = conflicts.then(|| jobs::text(&id, &["print another body", "complete"]).into_bytes());
        let cancels = rng.u32(..100) < 2 && self.features.cancel;
        let cancel = if rng.u32(..4) == 0 {
            Cancel::Before
        } else {
            Cancel::After(Duration::from_millis(rng.u64(..1500)))
        };
        Job {
            id,
            kind,
            body,
            at_once: copies[0],
            during: copies[1],
            after: copies[2],
            after_pause: Duration::from_millis(rng.u64(..8000)),
            other_body,
            publisher_dies: rng.u32(..100) < 2,
            is_in_vain: rng.u32(..3) == 0,
            is_given_up: rng.u32(..5) == 0,
            cancel: cancels.then_some(cancel),
        }
    }

    fn body(&self, id: &str, kind: Kind, rng: &mut Rng) -> Vec<u8> {
        let journal = format!("journal {}", self.journal.display());
        let sleep = |seconds: f64| format!("sleep {seconds:.3}");
        let (short, long) = (sleep(0.05 + rng.f64() * 0.45), sleep(1.0 + rng.f64() * 3.0));
        let first_only = format!("times 1 {}", self.counters.join(id).display());
        let directives: Vec<String> = match kind {
            Kind::Instant => vec![journal],
            Kind::Short => vec![journal, short],
            Kind::Long => vec![journal, long],
            Kind::Stubborn => vec!["ignore-term".into(), journal, sleep(0.2 + rng.f64() * 2.0)],
            Kind::Daemon => vec![journal, "spawn-daemon".into(), short],
            Kind::Flaky => vec![journal, format!("{first_only} exit 1"), "hello".into(), short],
            Kind::Raises => vec![journal, short, "fail ValueError the model does not like it".into()],
            Kind::Killed => vec![journal, short, "signal 9".into()],
            Kind::Poison => vec![journal, sleep(0.05 + rng.f64() * 0.2), "kill-worker".into()],
            Kind::Invalid => return invalid(id, rng),
        };
        let directives: Vec<&str> = directives.iter().map(String::as_str).collect();
        jobs::text(id, &directives).into_bytes()
    }
}

fn invalid(id: &str, rng: &mut Rng) -> Vec<u8> {
    let mut job = jobs::job(id, &["complete"]);
    match rng.u32(..3) {
        0 => return b"{\"id\": ".to_vec(),
        1 => job["jobType"] = json!("NO_SUCH_JOB"),
        _ => jobs::assets(&mut job).clear(),
    }
    job.to_string().into_bytes()
}

/// Which processes of a worker a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The worker alone.
    Worker,
    /// Its guard alone.
    Guard,
    /// Both at one time, as when a machine is lost.
    Both,
}

/// What is done to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerFault {
    /// It is stopped in order and started again.
    Restart,
    /// It is killed and started again.
    Kill,
    /// It is stopped for so long, and does then what it was asked for before.
    Hang(Duration),
    /// It says for so long that it has no memory left.
    MemoryAlarm(Duration),
    /// It says for so long that its disk is full.
    DiskAlarm(Duration),
}

/// How many sorts of them there are.
const BROKER_FAULTS: usize = 5;

/// What is done to the service.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Act {
    /// `kill -9`. A worker that is dead by it is started again after the pause. What it has sent may be late: it is
    /// delivered so long after the death.
    Kill {
        /// Who is killed.
        victim: Victim,
        /// How long a worker that is dead by it stays away.
        pause: Duration,
        /// How late everything is that the worker sends just before.
        late: Option<Duration>,
    },
    /// SIGTERM, and another one so much later. The worker is started again when it has left.
    Leave(Duration),
    /// SIGSTOP, and SIGCONT so much later.
    Pause(Victim, Duration),
    /// A worker's wire is made so for a while.
    Wire(State, Duration),
    /// Something happens to the broker.
    Broker(BrokerFault),
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// Picks the worker among those that are there.
    pub pick: u64,
    /// How many of the faults behind this one come together with it.
    pub companions: usize,
    /// What is done.
    pub act: Act,
}

/// How many faults of which sort there are.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Kills of workers, guards or both.
    pub kills: usize,
    /// Pauses of workers or guards.
    pub pauses: usize,
    /// Workers that are told to leave.
    pub leaves: usize,
    /// Faults of wires.
    pub wires: usize,
    /// Faults of the broker.
    pub brokers: usize,
}

/// All faults of a run in their order.
#[must_use]
pub fn faults(seed: u64, counts: Counts, lease: Duration) -> Vec<Fault> {
    let mut rng = generator(seed, 2, 0);
    let mut all = Vec::new();
    for _ in 0..counts.kills {
        all.push(fault(&mut rng, |rng| kill(rng, lease)));
    }
    for _ in 0..counts.pauses {
        all.push(fault(&mut rng, |rng| pause(rng, lease)));
    }
    for _ in 0..counts.leaves {
        all.push(fault(&mut rng, |rng| Act::Leave(lease.mul_f64(rng.f64()))));
    }
    for _ in 0..counts.wires {
        all.push(fault(&mut rng, |rng| wire(rng, lease)));
    }
    // Each sort as often as the others, however few there are.
    let first = rng.usize(..BROKER_FAULTS);
    for number in 0..counts.brokers {
        all.push(fault(&mut rng, |rng| Act::Broker(broker_fault(first + number, rng, lease))));
    }
    rng.shuffle(&mut all);
    all
}

fn fault(rng: &mut Rng, act: impl FnOnce(&mut Rng) -> Act) -> Fault {
    let act = act(rng);
    let meets_broker = matches!(act, Act::Broker(_));
    // What happens while the broker is away is what is most easily forgotten.
    let companions = if meets_broker && rng.bool() { rng.usize(1..=3) } else { 0 };
    Fault { pick: rng.u64(..), companions, act }
}

fn kill(rng: &mut Rng, lease: Duration) -> Act {
    let victim = match rng.u32(..10) {
        0..5 => Victim::Worker,
        5..8 => Victim::Both,
        _ => Victim::Guard,
    };
    let pause = lease.mul_f64(rng.f64() * 1.5);
    let late = (rng.u32(..4) == 0).then(|| lease.mul_f64(0.1 + rng.f64() * 1.9));
    Act::Kill { victim, pause, late }
}

fn pause(rng: &mut Rng, lease: Duration) -> Act {
    let victim = if rng.u32(..10) < 7 { Victim::Worker } else { Victim::Guard };
    Act::Pause(victim, lease.mul_f64(0.5 + rng.f64() * 2.5))
}

fn wire(rng: &mut Rng, lease: Duration) -> Act {
    let late = Passage::Late(lease.mul_f64(0.1 + rng.f64() * 1.9));
    let mut state = match rng.u32(..7) {
        0 | 1 => State::CUT,
        2 => State { to_broker: Passage::Lost, to_client: Passage::Lost, ..State::WHOLE },
        3 => State { to_client: Passage::Lost, ..State::WHOLE },
        4 => State { to_broker: Passage::Lost, ..State::WHOLE },
        5 => State { to_broker: late, to_client: late, ..State::WHOLE },
        _ => State { to_broker: late, ..State::WHOLE },
    };
    state.which = match rng.u32(..4) {
        0 => Which::Even,
        1 => Which::Odd,
        _ => Which::All,
    };
    Act::Wire(state, lease.mul_f64(0.2 + rng.f64() * 2.8))
}

fn broker_fault(number: usize, rng: &mut Rng, lease: Duration) -> BrokerFault {
    let for_so_long = lease.mul_f64(0.3 + rng.f64() * 1.7);
    match number % BROKER_FAULTS {
        0 => BrokerFault::Kill,
        1 => BrokerFault::MemoryAlarm(for_so_long),
        2 => BrokerFault::Restart,
        3 => BrokerFault::DiskAlarm(for_so_long),
        _ => BrokerFault::Hang(for_so_long),
    }
}

/// A generator that depends on nothing but these.
fn generator(seed: u64, purpose: u64, number: u64) -> Rng {
    // Seeds that differ by one would give generators that start alike; one step of SplitMix64 makes them strangers.
    let mut mixed = seed;
    for part in [purpose, number] {
        mixed = (mixed ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
    }
    Rng::with_seed(mixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(seed: u64) -> Jobs {
        let features = Features { cancel: true, conflict: true, no_poison: false };
        Jobs { seed, features, journal: "/j".into(), counters: "/c".into() }
    }

    #[test]
    fn the_same_seed_gives_the_same_jobs_and_faults() {
        let counts = Counts { kills: 50, pauses: 10, leaves: 5, wires: 20, brokers: 8 };
        let lease = Duration::from_secs(3);
        assert_eq!(faults(7, counts, lease), faults(7, counts, lease));
        assert_ne!(faults(7, counts, lease), faults(8, counts, lease));
        let bodies = |seed| (0..100).map(|number| jobs(seed).job(number).body).collect::<Vec<_>>();
        assert_eq!(bodies(7), bodies(7));
        assert_ne!(bodies(7), bodies(8));
    }

    #[test]
    fn a_run_of_a_thousand_jobs_has_every_kind_of_job_and_every_sort_of_fault() {
        let made: Vec<Job> = (0..1000).map(|number| jobs(7).job(number)).collect();
        for kind in Kind::ALL {
            assert!(made.iter().any(|job| job.kind == kind), "{kind:?}");
        }
        assert!(
            made.iter().any(|job| job.cancel.is_some()) && made.iter().any(|job| job.other_body.is_some())
        );
        assert!(made.iter().any(|job| job.during > 0) && made.iter().any(|job| job.after > 0));
        let counts = Counts { kills: 50, pauses: 10, leaves: 5, wires: 20, brokers: 8 };
        let all = faults(7, counts, Duration::from_secs(3));
        assert_eq!(all.len(), 93);
        let brokers = all.iter().filter(|fault| matches!(fault.act, Act::Broker(_))).count();
        assert_eq!(brokers, 8);
    }
}
