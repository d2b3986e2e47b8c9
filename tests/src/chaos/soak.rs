//! The soak: a steady load under faults for a long time, and whether anything grows: memory, files, threads of workers and
//! guards; connections, channels, queues, messages and memory of the broker.
//!
//! Half of the workers are not killed, so that there is something that could grow; their wires are spoiled and they are
//! stopped as the others are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::faults::{Faults, Pace};
use super::plan::{self, Counts};
use super::{Options, Outcome, Stage, conclude};
use crate::program::children_of;

/// How often everything is measured.
pub const SAMPLE: Duration = Duration::from_secs(30);
const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// How far something may grow over the second half of the time: a share of its mean, or so much, whichever is more.
struct Bound {
    what: &'static str,
    share: f64,
    least: f64,
}

const BOUNDS: [Bound; 10] = [
    Bound { what: "worker memory (MiB)", share: 0.1, least: 4.0 },
    Bound { what: "worker files", share: 0.1, least: 6.0 },
    Bound { what: "worker threads", share: 0.1, least: 4.0 },
    Bound { what: "guard memory (MiB)", share: 0.1, least: 1.0 },
    Bound { what: "guard files", share: 0.1, least: 4.0 },
    Bound { what: "broker memory (MiB)", share: 0.2, least: 30.0 },
    Bound { what: "broker connections", share: 0.1, least: 4.0 },
    Bound { what: "broker channels", share: 0.1, least: 8.0 },
    Bound { what: "broker queues", share: 0.0, least: 0.5 },
    Bound { what: "broker messages", share: 0.1, least: 60.0 },
];

/// One measurement: by what, of whom, how much.
type Sample = BTreeMap<(&'static str, String), f64>;

/// Soaks for `time` at `rate` jobs a second, with a fault every `fault_every`, and judges as [`super::run`] does; the
/// second value tells whether nothing grew.
///
/// # Panics
/// When the run itself cannot go on.
pub async fn soak(options: &Options, time: Duration, rate: f64, fault_every: Duration) -> (Outcome, bool) {
    let stage = Stage::set(options, 0).await;
    println!("everything is in {}", options.folder.display());
    let faults = stage.faults();
    let plan = plan::faults(options.seed, counts(time, fault_every), options.lease);
    let inflicting = tokio::spawn(faults.clone().inflict(plan, Pace::Every(fault_every)));
    let started = Instant::now();
    let mut samples = Vec::new();
    tokio::select! {
        () = load(&stage, rate) => {}
        () = watch(&stage, &faults, options, &mut samples) => {}
        () = tokio::time::sleep(time) => {}
    }
    // What was begun is ended: the last faults may take some seconds.
    inflicting.await.expect("every fault can be done");
    let took = started.elapsed();
    let verdict = stage.judge(options).await;
    let summary = conclude(options, &stage, &faults, &verdict, took);
    let is_flat = flat(&samples);
    (Outcome { verdict, summary }, is_flat)
}

/// As many faults as there is time for: of ten, four kills, one pause, one told to leave, three wires and one of the
/// broker.
fn counts(time: Duration, fault_every: Duration) -> Counts {
    let all = usize::try_from(time.as_millis() / fault_every.as_millis().max(1)).unwrap_or(usize::MAX);
    let tenth = all / 10;
    Counts { kills: tenth * 4, pauses: tenth, leaves: tenth, wires: tenth * 3, brokers: tenth }
}

/// One job after the other, whatever becomes of them.
async fn load(stage: &Stage, rate: f64) {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    loop {
        ticks.tick().await;
        stage.press.limit.fetch_add(1, Ordering::Relaxed);
    }
}

async fn watch(stage: &Stage, faults: &Faults, options: &Options, samples: &mut Vec<Sample>) {
    let started = Instant::now();
    let mut table = File::create(options.folder.join("soak.csv")).expect("the table can be written");
    let mut ticks = tokio::time::interval(SAMPLE);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let seconds = started.elapsed().as_secs();
        let mut sample = of_processes(stage);
        if !faults.is_broker_out.load(Ordering::Relaxed) {
            sample.extend(of_broker(stage).await);
        }
        for ((what, whose), value) in &sample {
            let _ = writeln!(table, "{seconds},{what},{whose},{value}");
        }
        println!("{}", line(seconds, stage, faults, &sample));
        samples.push(sample);
    }
}

fn line(seconds: u64, stage: &Stage, faults: &Faults, sample: &Sample) -> String {
    let mut line =
        format!("{seconds:5} s: {} ended, {} kills;", stage.book.standing().ended, faults.done.kills());
    for bound in &BOUNDS {
        let values: Vec<f64> =
            sample.iter().filter(|((what, _), _)| *what == bound.what).map(|(_, value)| *value).collect();
        let values: Vec<String> = values.iter().map(|value| format!("{value:.0}")).collect();
        if !values.is_empty() {
            line += &format!(" {} {};", bound.what, values.join("/"));
        }
    }
    line
}

fn of_processes(stage: &Stage) -> Sample {
    let mut sample = Sample::new();
    for (name, pid) in stage.pool.processes() {
        let mut note = |what, value: Option<f64>| {
            if let Some(value) = value {
                sample.insert((what, name.clone()), value);
            }
        };
        note("worker memory (MiB)", status(pid, "VmRSS:").map(|kibibytes| kibibytes / 1024.0));
        note("worker files", files(pid));
        note("worker threads", status(pid, "Threads:"));
        let guard = children_of(pid).first().copied();
        note("guard memory (MiB)", guard.and_then(|pid| status(pid, "VmRSS:")).map(|kib| kib / 1024.0));
        note("guard files", guard.and_then(files));
    }
    sample
}

fn status(pid: i32, name: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn files(pid: i32) -> Option<f64> {
    let count = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    Some(f64::from(u32::try_from(count).ok()?))
}

async fn of_broker(stage: &Stage) -> Sample {
    let overview = stage.http("/api/overview").await;
    let nodes = stage.http("/api/nodes?columns=mem_used").await;
    let mut sample = Sample::new();
    let mut note = |what, value: &serde_json::Value, unit: f64| {
        if let Some(value) = value.as_f64() {
            sample.insert((what, "broker".to_owned()), value / unit);
        }
    };
    note("broker memory (MiB)", &nodes[0]["mem_used"], MEBIBYTE);
    let totals = &overview["object_totals"];
    note("broker connections", &totals["connections"], 1.0);
    note("broker channels", &totals["channels"], 1.0);
    note("broker queues", &totals["queues"], 1.0);
    // Streams keep what they have; what is ready to be delivered is not there.
    note("broker messages", &overview["queue_totals"]["messages_unacknowledged"], 1.0);
    sample
}

/// Says of everything that was there for all of the second half whether it grew.
fn flat(samples: &[Sample]) -> bool {
    let second = &samples[samples.len() / 2..];
    let Some(last) = second.last() else {
        println!("soak: too short to say whether anything grows");
        return false;
    };
    let mut is_flat = true;
    for bound in &BOUNDS {
        for key in last.keys().filter(|(what, _)| *what == bound.what) {
            let points: Vec<(f64, f64)> = second
                .iter()
                .zip(0_u32..)
                .filter_map(|(sample, number)| Some((f64::from(number), *sample.get(key)?)))
                .collect();
            // Whoever was started meanwhile, or was away half of the time, tells nothing.
            if points.len() * 4 < second.len() * 3 || points.len() < 4 {
                continue;
            }
            let count = f64::from(u32::try_from(points.len()).unwrap_or(u32::MAX));
            let mean = points.iter().map(|(_, value)| value).sum::<f64>() / count;
            let growth = slope(&points) * (count - 1.0);
            let allowed = (mean * bound.share).max(bound.least);
            let is_fine = growth <= allowed;
            is_flat &= is_fine;
            println!(
                "  {:22} {:8} mean {mean:8.1}, grew by {growth:7.2} in the second half; bound {allowed:6.1}: {}",
                key.0,
                key.1,
                if is_fine { "flat" } else { "GROWS" }
            );
        }
    }
    is_flat
}

/// The slope of a line through points, which single outliers do not turn: the median of the slopes between any two.
fn slope(points: &[(f64, f64)]) -> f64 {
    let mut slopes = Vec::new();
    for (number, (x, y)) in points.iter().enumerate() {
        for (other_x, other_y) in &points[number + 1..] {
            slopes.push((other_y - y) / (other_x - x));
        }
    }
    slopes.sort_by(f64::total_cmp);
    slopes.get(slopes.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_found_in_spite_of_outliers() {
        let mut points: Vec<(f64, f64)> = (0..20).map(|x| (f64::from(x), 5.0 + 2.0 * f64::from(x))).collect();
        points[3].1 = 1000.0;
        points[11].1 = 0.0;
        assert!((slope(&points) - 2.0).abs() < 1e-9);
    }

    #[test]
    fn what_grows_is_not_flat() {
        let key = ("worker memory (MiB)", "w0.1".to_owned());
        let samples = |growth: f64| -> Vec<Sample> {
            (0..40).map(|n| Sample::from([(key.clone(), 20.0 + growth * f64::from(n))])).collect()
        };
        assert!(flat(&samples(0.01)));
        assert!(!flat(&samples(1.0)));
    }
}
