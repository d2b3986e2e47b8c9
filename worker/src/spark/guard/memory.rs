//! Memory of a tree of processes, and whether the kernel killed for want of it.
//!
//! It must not decide anything: it reads numbers.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::process::each_process;

/// Resident bytes of all descendants of `ancestor`, itself not counted.
///
/// Pages that processes share (a forked worker's, a library's) count once for each of them.
///
/// # Errors
/// `/proc` cannot be read.
pub(super) fn resident_of_descendants(ancestor: i32) -> io::Result<u64> {
    let mut parents = Vec::new();
    each_process(|stat| {
        if !stat.zombie {
            parents.push((stat.pid, stat.parent));
        }
    })?;
    let mut family = HashSet::from([ancestor]);
    // Pids wrap around, so a child may come before its parent.
    loop {
        let before = family.len();
        for (pid, parent) in &parents {
            if family.contains(parent) {
                family.insert(*pid);
            }
        }
        if family.len() == before {
            break;
        }
    }
    family.remove(&ancestor);
    let pages: u64 = family.into_iter().filter_map(resident_pages).sum();
    Ok(pages.saturating_mul(page_size()))
}

fn resident_pages(pid: i32) -> Option<u64> {
    let sizes = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    sizes.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Bytes of a page.
pub(super) fn page_size() -> u64 {
    // SAFETY: a plain number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// Where the kernel counts its out-of-memory kills for this process's memory cgroup, when that is readable.
///
/// Found once for the guard: its shims and their children live in the same cgroup.
pub(super) fn cgroup_counter() -> Option<PathBuf> {
    let membership = fs::read_to_string("/proc/self/cgroup").ok()?;
    counter_places(&membership).into_iter().find(|place| read_counter_at(place).is_some())
}

/// Candidates in order: by the path that the kernel names, and (where a container sees only its own part of the
/// hierarchy) at the mount point itself.
fn counter_places(membership: &str) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = if controllers.is_empty() {
            (Path::new("/sys/fs/cgroup"), "memory.events")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (Path::new("/sys/fs/cgroup/memory"), "memory.oom_control")
        } else {
            continue;
        };
        places.push(mount.join(path.trim_start_matches('/')).join(file));
        places.push(mount.join(file));
    }
    places
}

fn read_counter_at(place: &Path) -> Option<u64> {
    read_counter(&File::open(place).ok()?)
}

/// The line `oom_kill N` of one of the kernel's key-value files.
fn read_counter(file: &File) -> Option<u64> {
    // `/proc/vmstat` is the longest of them, 4 to 6 KB.
    let mut text = [0_u8; 16 * 1024];
    let mut length = 0;
    while length < text.len() {
        match file.read_at(&mut text[length..], u64::try_from(length).ok()?) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    let text = std::str::from_utf8(&text[..length]).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// How old a reading of the machine's counter may be that stands for the present one. It costs as much as all else that
/// a launch reads and writes; for this it may blame a kill that came so much before the launch.
const MACHINE_READING_LASTS: Duration = Duration::from_millis(100);

/// The kernel's out-of-memory counters.
pub(super) struct OutOfMemory {
    cgroup: Option<File>,
    machine: Option<File>,
    last_reading: Option<(Instant, u64)>,
}

/// What the counters said at one moment; absent when they could not be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    cgroup: Option<u64>,
    machine: Option<u64>,
}

impl OutOfMemory {
    /// Opens what can be opened.
    pub(super) fn open(cgroup_counter: Option<&Path>) -> Self {
        OutOfMemory {
            cgroup: cgroup_counter.and_then(|place| File::open(place).ok()),
            machine: File::open("/proc/vmstat").ok(),
            last_reading: None,
        }
    }

    /// Reads the counters, to see later whether they moved.
    pub(super) fn counts(&mut self) -> Counts {
        let now = Instant::now();
        let fresh = self.last_reading.filter(|(read, _)| now.duration_since(*read) < MACHINE_READING_LASTS);
        if fresh.is_none() {
            self.last_reading = self.machine.as_ref().and_then(read_counter).map(|count| (now, count));
        }
        Counts {
            cgroup: self.cgroup.as_ref().and_then(read_counter),
            machine: self.last_reading.map(|(_, count)| count),
        }
    }

    /// Whether the kernel seems to have killed one of ours for want of memory.
    ///
    /// The cgroup's counter speaks of few processes and is believed. The machine's counter moves for anybody, so
    /// it counts only if the program itself died of a SIGKILL that was not ours (`killed_by_stranger`), or if
    /// there is no other.
    pub(super) fn killed(&self, since: Counts, killed_by_stranger: bool) -> bool {
        let moved = |file: &Option<File>, before: Option<u64>| {
            let now = file.as_ref().filter(|_| before.is_some()).and_then(read_counter);
            now > before
        };
        if moved(&self.cgroup, since.cgroup) {
            return true;
        }
        if since.cgroup.is_some() && !killed_by_stranger {
            return false;
        }
        moved(&self.machine, since.machine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_looked_for_where_each_kind_of_cgroup_has_it() {
        let both = "7:memory,hugetlb:/a/b\n3:cpu:/x\n0::/c\n";
        let expected = [
            "/sys/fs/cgroup/memory/a/b/memory.oom_control",
            "/sys/fs/cgroup/memory/memory.oom_control",
            "/sys/fs/cgroup/c/memory.events",
            "/sys/fs/cgroup/memory.events",
        ];
        assert_eq!(counter_places(both), expected.map(PathBuf::from));
    }

    #[test]
    fn the_machine_counts_its_kills_and_no_other_line_is_taken_for_it() {
        let folder = tempfile::tempdir().expect("folder");
        let place = folder.path().join("memory.events");
        fs::write(&place, "low 0\noom 9\noom_kill 3\noom_group_kill 8\n").expect("written");
        assert_eq!(read_counter_at(&place), Some(3));
        assert!(read_counter_at(Path::new("/proc/vmstat")).is_some());
    }
}
