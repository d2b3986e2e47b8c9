//! A worker's last will as it lies with the guard, and how it is carried out.
//!
//! It may hold a secret, and the programs that the guard starts run as the same user: a descriptor of the guard's they
//! could open through `/proc`. So it is kept in memory, in pages that no fork passes on, until nobody is left who could
//! be curious. This module must not know when that is, nor what the will is for.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{self, ForkResult, Pid};

use super::Step;
use super::process;
use super::wire::{self, WillView};

/// Leads to this program's file, whatever has become of its path.
const OWN_EXECUTABLE: &CStr = c"/proc/self/exe";

/// A last will that is kept for the day.
pub(super) struct Will {
    bytes: UnsharedPages,
}

impl Will {
    /// Reads a last will from its memory file.
    ///
    /// # Errors
    /// There is none, it is not one, or the kernel is out of memory.
    pub(super) fn keep(file: Option<OwnedFd>) -> io::Result<Self> {
        let file = File::from(file.ok_or(io::ErrorKind::InvalidData)?);
        let mut bytes = UnsharedPages::new(wire::length_within_limit(&file)?)?;
        file.read_exact_at(bytes.as_mut_slice(), 0)?;
        WillView::of(bytes.as_slice()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Will { bytes })
    }

    /// Starts the program; gives its process and how long it may take.
    ///
    /// # Errors
    /// It cannot be started. What is found out in the new process is logged there.
    pub(super) fn carry_out(self) -> io::Result<(i32, Duration)> {
        // A copy: the pages themselves would not be there in the child.
        let bytes = self.bytes.as_slice().to_vec();
        let will = WillView::of(&bytes).ok_or(io::ErrorKind::InvalidData)?;
        // A file and no pipe: it needs nobody who feeds it.
        let mut input = File::from(memfd_create(c"input", MFdFlags::MFD_CLOEXEC)?);
        input.write_all(will.input)?;
        input.rewind()?;
        let guard = Pid::this();
        // SAFETY: this process has one thread, so its child may do whatever a process may.
        match unsafe { unistd::fork() }? {
            ForkResult::Parent { child } => {
                tracing::info!(pid = child.as_raw(), "guard carries out its worker's last will");
                Ok((child.as_raw(), will.patience))
            }
            ForkResult::Child => {
                let Err((step, errno)) = become_executor(&will, guard, &input);
                tracing::error!(error = %io::Error::from(errno), at = %step, "last will cannot be carried out");
                // SAFETY: ends this process at once; nothing of the guard's may be cleaned up in its child.
                unsafe { libc::_exit(127) }
            }
        }
    }
}

/// Turns this process, a child of the guard, into the will's program. Comes back only on failure.
fn become_executor(will: &WillView<'_>, guard: Pid, input: &File) -> Result<Infallible, (Step, Errno)> {
    let at = |step: Step| move |errno: Errno| (step, errno);
    unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(at(Step::Child))?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Step::Child))?;
    if unistd::getppid() != guard {
        // The guard died before it was to be noticed.
        return Err((Step::Child, Errno::ESRCH));
    }
    unistd::dup2_stdin(input).map_err(at(Step::Child))?;
    process::give_signals_back().map_err(at(Step::Child))?;
    let own_name = std::env::args_os().next().and_then(|name| CString::new(name.into_vec()).ok());
    let name = will.program.or(own_name.as_deref()).unwrap_or(OWN_EXECUTABLE);
    let mut arguments = vec![name];
    arguments.extend(&will.arguments);
    unistd::execve(will.program.unwrap_or(OWN_EXECUTABLE), &arguments, &will.environment)
        .map_err(at(Step::Exec))
}

/// Logs how a last will ended; `status` is as `waitpid` gives it.
pub(super) fn tell_end(status: i32) {
    if status == 0 {
        tracing::info!("last will was carried out");
    } else {
        tracing::warn!(status = %std_status(status), "last will was not carried out to its end");
    }
}

fn std_status(status: i32) -> std::process::ExitStatus {
    std::os::unix::process::ExitStatusExt::from_raw(status)
}

/// Memory that is in no child after a fork and in no core dump.
struct UnsharedPages {
    start: NonNull<u8>,
    length: usize,
}

impl UnsharedPages {
    /// So many bytes of zeroes.
    fn new(length: usize) -> io::Result<Self> {
        // The kernel maps no empty range.
        let mapped = length.max(1);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), mapped, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = UnsharedPages { start, length };
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: the range is the mapping that was just made.
            if unsafe { libc::madvise(start.as_ptr().cast(), mapped, advice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(pages)
    }

    fn as_slice(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped, readable, and only changed through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and writable.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for UnsharedPages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and is not used after it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length.max(1)) };
    }
}
