//! How long choosing among 20 known runtimes takes, when only the last one fits: `cargo bench --bench choose_runtime`.
//!
//! Prints the median and the slowest of 200 choices, and ends with 1 when the median is above 5 ms.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench that cannot go on has failed")]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use spark_runtime_worker::config::{Settings, Sources};
use spark_runtime_worker::runtimes::Runtimes;
use spark_runtime_worker::runtimes::requirements::{List, read};

/// With the one of the settings, 20.
const RUNTIMES: usize = 19;
const PACKAGES: usize = 200;
const CHOICES: usize = 200;
const LIMIT: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let place = tempfile::tempdir().unwrap();
    let mut listed = String::new();
    for number in 0..RUNTIMES {
        let site = place.path().join(number.to_string());
        for package in 0..PACKAGES {
            // Each lacks another one; the last has all.
            if package != number || number == RUNTIMES - 1 {
                install(&site, &format!("zz-package-{package}"));
            }
        }
        let python = place.path().join(format!("python-{number}"));
        let script = format!("#!/bin/sh\nPYTHONPATH='{}' exec python3 \"$@\"\n", site.display());
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        listed.push_str(&format!("[[runtime]]\nname = 'r{number}'\npython = '{}'\n", python.display()));
    }
    let file = place.path().join("runtimes.toml");
    std::fs::write(&file, listed).unwrap();
    let overrides = vec![format!("runtimes.file={}", file.display())];
    let settings = Settings::load(&Sources { overrides, ..Sources::default() }).unwrap();
    let runtimes = Runtimes::of(&settings, place.path().join("made")).unwrap();
    let text: String = (0..30).map(|package| format!("zz-package-{package}[none]>=1,<2\n")).collect();
    let list = List { pointer: String::new(), path: String::new(), content: text.into_bytes() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut times = Vec::with_capacity(CHOICES);
    for _ in 0..=CHOICES {
        let started = Instant::now();
        let wanted = read(std::slice::from_ref(&list), runtimes.allowed(), &|_| None).unwrap();
        let chosen = runtime.block_on(runtimes.choose(&wanted)).unwrap();
        times.push(started.elapsed());
        assert_eq!(chosen.used.name, format!("r{}", RUNTIMES - 1));
    }
    // The first one asks every Python.
    let first = times.remove(0);
    times.sort();
    let (median, slowest) = (times[CHOICES / 2], times[CHOICES - 1]);
    println!("20 runtimes: asked in {first:.2?}, chosen in {median:.2?} (median), {slowest:.2?} (slowest)");
    if median <= LIMIT { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn install(site: &Path, name: &str) {
    let info = site.join(format!("{name}-1.5.dist-info"));
    std::fs::create_dir_all(&info).unwrap();
    std::fs::write(info.join("METADATA"), format!("Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n"))
        .unwrap();
}
