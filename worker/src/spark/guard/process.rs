//! Processes as the kernel shows them: who descends from whom, reaping, killing, signals, descriptors.
//!
//! It must not know of launches, jobs or messages, and it must work in a process that has just been forked.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::memory;

/// Highest signal number, real-time signals included.
const LAST_SIGNAL: libc::c_int = 64;

/// What a terminal, a service manager or a closed pipe sends. The guard and its shims live and die with the
/// worker's socket alone; only their children see these signals.
const IGNORED: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGPIPE,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGXCPU,
    // A log that reaches a file size limit must be a failed write, not a dead shim.
    Signal::SIGXFSZ,
];

/// One process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// Dead already and only waiting to be reaped by its parent.
    pub(super) zombie: bool,
    /// Start of the process in clock ticks since boot; with the pid it names a process for good.
    pub(super) started: u64,
    /// What it calls itself, filled up with zeroes.
    name: [u8; 16],
}

impl Stat {
    /// Whether it calls itself so. Any process can: this is a hint and no proof.
    pub(super) fn is_named(&self, name: &CStr) -> bool {
        self.name.iter().copied().take_while(|byte| *byte != 0).eq(name.to_bytes().iter().copied())
    }
}

/// What one look for an ended child found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reaped {
    /// A child ended; `status` is as `waitpid` gives it.
    Child { pid: i32, status: i32, used: Used },
    /// There are children, and none of them has ended.
    NoneYet,
    /// There is no child at all, so (for a subreaper) no descendant either.
    NoChildren,
}

/// What an ended process has used, with all that it had waited for itself.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used {
    /// User and system time.
    pub(super) processor: Duration,
    /// Bytes that the largest of them had in memory at once.
    pub(super) largest: u64,
}

impl Used {
    fn of(usage: &libc::rusage) -> Self {
        let time = |value: libc::timeval| {
            Duration::from_secs(u64::try_from(value.tv_sec).unwrap_or(0))
                + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or(0))
        };
        Used {
            processor: time(usage.ru_utime) + time(usage.ru_stime),
            largest: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        }
    }

    /// Both together.
    pub(super) fn and(self, other: Used) -> Used {
        Used { processor: self.processor + other.processor, largest: self.largest.max(other.largest) }
    }
}

/// Takes one ended child of this process, or of its choice `pid`, without waiting.
///
/// The raw call on purpose: a child that ended by a real-time signal must not be an error.
pub(super) fn reap(pid: Option<i32>) -> Reaped {
    loop {
        let mut status = 0;
        // SAFETY: all zeroes are such a structure.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both outlive the call.
        let reaped =
            unsafe { libc::wait4(pid.unwrap_or(-1), &raw mut status, libc::WNOHANG, &raw mut usage) };
        match reaped {
            0 => return Reaped::NoneYet,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Reaped::NoChildren,
            pid => return Reaped::Child { pid, status, used: Used::of(&usage) },
        }
    }
}

/// Waits until the child `pid` has ended and takes it. A pid that is no child (any more) is no error.
pub(super) fn wait_for(pid: i32) {
    loop {
        // SAFETY: no pointer is passed.
        let reaped = unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        if reaped != -1 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Shows every process of the machine to `visit`, in the order of their pids.
///
/// # Errors
/// `/proc` cannot be read. A process that vanishes meanwhile is no error.
pub(super) fn each_process(mut visit: impl FnMut(Stat)) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(stat) = stat(pid)? {
            visit(stat);
        }
    }
    Ok(())
}

/// Looks at one process; `None` when there is none of that pid.
fn stat(pid: i32) -> io::Result<Option<Stat>> {
    let mut text = [0_u8; 1024];
    let read = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut text));
    match read {
        Ok(length) => Ok(parse_stat(pid, &text[..length])),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error of a `/proc/<pid>` file means that the process is not there any more.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

fn parse_stat(pid: i32, text: &[u8]) -> Option<Stat> {
    // The name stands in brackets and may itself hold brackets and spaces: only the last one closes it.
    let name_ends = text.iter().rposition(|byte| *byte == b')')?;
    let name_begins = text.iter().position(|byte| *byte == b'(')? + 1;
    let mut name = [0; 16];
    for (place, byte) in name.iter_mut().zip(text.get(name_begins..name_ends)?) {
        *place = *byte;
    }
    let fields = std::str::from_utf8(text.get(name_ends + 1..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // Field 22 of the line; the four above are fields 3 to 6.
    let started = fields.nth(15)?.parse().ok()?;
    Some(Stat { pid, parent, group, session, zombie: matches!(state, "Z" | "X"), started, name })
}

/// One pass of SIGKILL over every process that `is_root` picks and over all that descends from it.
///
/// Gives what it found, zombies included. A pass kills as it reads, so that a tree that forks on cannot outrun it,
/// but a process may be born behind its back: the caller goes on until nothing is found (or, better, until the
/// kernel says that there are no children).
///
/// # Errors
/// `/proc` cannot be read.
pub(super) fn kill_strays(is_root: impl Fn(&Stat) -> bool) -> io::Result<Vec<Stat>> {
    // SAFETY: these calls take nothing and cannot fail.
    let (own_pid, own_group) = unsafe { (libc::getpid(), libc::getpgrp()) };
    let mut found = Vec::new();
    let mut doomed = HashSet::new();
    let mut groups = HashSet::new();
    each_process(|stat| {
        let hit = stat.pid != own_pid && (is_root(&stat) || doomed.contains(&stat.parent));
        if !hit {
            return;
        }
        doomed.insert(stat.pid);
        found.push(stat);
        if stat.zombie {
            return;
        }
        kill_exactly(&stat);
        if stat.group > 1 && stat.group != own_group {
            groups.insert(stat.group);
        }
    })?;
    // A group dies as one, with those that were born meanwhile. All of a group is in one session, and the sessions of
    // a tree hold nothing but that tree. Last, so that each process was seen alive and could be counted.
    for group in groups {
        send(-group, libc::SIGKILL);
    }
    Ok(found)
}

/// Kills this process and no other that may have got its pid meanwhile.
fn kill_exactly(target: &Stat) {
    // SAFETY: plain numbers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, target.pid, 0) };
    let Ok(descriptor) = RawFd::try_from(descriptor) else { return };
    if descriptor < 0 {
        // Older than Linux 5.3, or out of descriptors: the pid was looked at a moment ago, that has to do.
        if io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH) {
            send(target.pid, libc::SIGKILL);
        }
        return;
    }
    // SAFETY: the kernel has just given it to us.
    let process = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let same = stat(target.pid).ok().flatten().is_some_and(|now| now.started == target.started);
    if same {
        let no_info = ptr::null::<libc::siginfo_t>();
        // SAFETY: a null `siginfo` means the default one.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, no_info, 0);
        }
    }
}

/// Sends a signal to a process, or to a group when negative. That it is gone already is what we want.
pub(super) fn send(pid: i32, signal: libc::c_int) {
    // SAFETY: plain numbers.
    unsafe {
        libc::kill(pid, signal);
    }
}

/// Waits until a descriptor is ready or the time is over. A signal ends the wait with nothing ready.
///
/// # Errors
/// As `poll`, but for EINTR.
pub(super) fn poll(descriptors: &mut [libc::pollfd], time_out: Option<Duration>) -> io::Result<()> {
    // Rounded up: waking early would make the caller spin until the moment comes.
    let milliseconds = time_out.map_or(-1, |time| {
        libc::c_int::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
    });
    let count = libc::nfds_t::try_from(descriptors.len()).map_err(io::Error::other)?;
    // SAFETY: pointer and length are those of the slice.
    let ready = unsafe { libc::poll(descriptors.as_mut_ptr(), count, milliseconds) };
    if ready >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() != io::ErrorKind::Interrupted {
        return Err(error);
    }
    for descriptor in descriptors {
        descriptor.revents = 0;
    }
    Ok(())
}

/// An entry for [`poll`]; an absent descriptor is never ready.
pub(super) fn interest(descriptor: Option<BorrowedFd<'_>>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: descriptor.map_or(-1, |descriptor| descriptor.as_raw_fd()), events, revents: 0 }
}

/// Ignores what must not end a guard or shim, and nothing else, whatever was inherited. Shims inherit it.
pub(super) fn ignore_signals() {
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: all zeroes are such a structure.
        let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: `now` outlives the call; the numbers that cannot be asked for leave it as it is.
        unsafe { libc::sigaction(signal, ptr::null(), &raw mut now) };
        if now.sa_sigaction == libc::SIG_IGN {
            // SAFETY: no handler is installed.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
    for signal in IGNORED {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal as libc::c_int, libc::SIG_IGN) };
    }
}

/// Takes SIGCHLD as something to read, and blocks no other signal.
///
/// # Errors
/// The kernel refuses; that happens only when it is out of memory or descriptors.
pub(super) fn watch_children() -> io::Result<SignalFd> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Undoes [`ignore_signals`] and [`watch_children`] for a program about to be started; handlers end with `exec`.
///
/// # Errors
/// None that a kernel is known to give.
pub(super) fn give_signals_back() -> nix::Result<()> {
    for signal in IGNORED {
        // SAFETY: no handler is installed.
        unsafe { libc::signal(signal as libc::c_int, libc::SIG_DFL) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Empties a signal descriptor: what matters is asked of `waitpid`.
pub(super) fn clear(signals: &SignalFd) {
    while let Ok(Some(_)) = signals.read_signal() {}
}

/// Closes every descriptor but 0, 1, 2 and those in `keep`.
///
/// # Errors
/// Neither the system call nor the list of open descriptors is to be had.
pub(super) fn close_all_except(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep.iter().copied().filter(|kept| *kept >= 3) {
        close_range(first, kept - 1)?;
        first = kept + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: plain numbers; nothing that still owns a descriptor in the range is used afterwards.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == 0 {
        return Ok(());
    }
    // Older than Linux 5.9.
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| (first..=last).contains(descriptor))
        .collect();
    for descriptor in open {
        // SAFETY: as above; the descriptor of the directory itself is gone already, which is no harm.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}

/// Gives the memory that holds code and constants back: it is read from the files again when it is needed, which is in
/// the page cache most likely.
pub fn give_code_back() {
    // SAFETY: the function keeps to what it is called with.
    unsafe { libc::dl_iterate_phdr(Some(give_object_back), ptr::null_mut()) };
}

/// Does this for one program or library.
unsafe extern "C" fn give_object_back(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: `dl_iterate_phdr` passes an object that is there during this call, with so many headers.
    let (start, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
    };
    let page = memory::page_size();
    for header in headers {
        // What may be written may have been written, and is no longer what the file has.
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let from = (start + header.p_vaddr).next_multiple_of(page);
        let to = (start + header.p_vaddr + header.p_memsz) / page * page;
        if let (Ok(address), Ok(length)) = (usize::try_from(from), usize::try_from(to.saturating_sub(from))) {
            let range = ptr::with_exposed_provenance_mut(address);
            // SAFETY: whole pages of a mapping that nobody writes to. At worst the kernel refuses.
            unsafe { libc::madvise(range, length, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let line = b"77 (a) b) (c) S 5 6 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2";
        let stat = parse_stat(77, line).expect("parses");
        assert_eq!((stat.pid, stat.parent, stat.group, stat.session), (77, 5, 6, 7));
        assert_eq!((stat.zombie, stat.started), (false, 4242));
        assert!(stat.is_named(c"a) b) (c") && !stat.is_named(c"a) b) (") && !stat.is_named(c"a) b) (cd"));
    }

    #[test]
    fn a_cut_off_line_is_no_process() {
        assert_eq!(parse_stat(1, b"1 (init) S 0 1"), None);
        assert_eq!(parse_stat(1, b""), None);
    }

    #[test]
    fn this_process_and_its_parent_are_found() {
        let own = i32::try_from(std::process::id()).expect("fits");
        let mut seen = None;
        each_process(|stat| {
            if stat.pid == own {
                seen = Some(stat);
            }
        })
        .expect("reads /proc");
        assert_eq!(seen.expect("is there").parent, nix::unistd::getppid().as_raw());
    }
}
