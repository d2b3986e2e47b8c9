//! Helper programs: run to their end within bounds of time, memory, output and file size, and ended with all that they
//! started when nobody waits for them any more.
//!
//! A helper is a process group of its own. It is killed when the time is up, when the future that waits for it is
//! dropped, and by the kernel when this process dies. Nothing reaches it of this process's environment but what it is given.
//!
//! This module must not know what the helpers are for. Drivers are no helpers: they belong to the guard.

use std::any::Any;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

/// How much of the end of the standard error is kept, in bytes.
const ERRORS_KEPT: usize = 16 * 1024;
/// The most that can be given as input, in bytes: what a pipe takes without a reader.
const LARGEST_INPUT: usize = 4096;
/// How often a child is looked at whose end the kernel does not tell.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A program to be run.
pub struct Program {
    /// Its path, or a name that is looked up on the PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Its current directory.
    pub directory: PathBuf,
    /// Its standard input, at most 4096 bytes.
    pub input: Vec<u8>,
    /// The most that it may write to its standard output, in bytes.
    pub most_output: u64,
    /// The largest file that it may write, in bytes.
    pub largest_file: Option<u64>,
    /// The most address space that each of its processes may have, in bytes.
    pub most_memory: Option<u64>,
    /// When it is ended.
    pub deadline: Instant,
    /// Let go of when the last of it is gone, and not before.
    pub held: Option<Arc<dyn Any + Send + Sync>>,
}

/// What a program left that ended by itself.
#[derive(Debug)]
pub struct Done {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: Vec<u8>,
    /// The end of its standard error.
    pub errors: String,
}

impl Done {
    /// The last lines of the standard error, in one line that can be shown.
    #[must_use]
    pub fn words(&self) -> String {
        let lines: Vec<&str> = self.errors.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines[lines.len().saturating_sub(3)..].join("; ");
        let shown: String = last.chars().filter(|c| !c.is_control()).take(500).collect();
        match (shown.is_empty(), self.status.signal()) {
            (false, _) => shown,
            (true, Some(signal)) => format!("it was ended by signal {signal}"),
            (true, None) => format!("it ended with {}", self.status.code().unwrap_or_default()),
        }
    }
}

/// Why a program left nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started.
    #[error("{program} could not be started: {source}")]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It did not end in time.
    #[error("it did not end in time")]
    TooLong,
    /// It wrote more than it may.
    #[error("it wrote more than {0} bytes")]
    TooMuch(u64),
    /// It could not be followed.
    #[error("it could not be followed: {0}")]
    Lost(#[from] io::Error),
}

impl Program {
    /// Runs it to its end. Dropping the future ends it.
    ///
    /// # Errors
    /// [`ProgramError`]; an exit code is none.
    pub async fn run(self) -> Result<Done, ProgramError> {
        let (wanted, watching) = UnixStream::pair()?;
        let following = tokio::task::spawn_blocking(move || self.follow(&watching));
        let done = following.await.map_err(|error| ProgramError::Lost(io::Error::other(error)))?;
        // Until here somebody waits.
        drop(wanted);
        done
    }

    fn follow(self, watching: &UnixStream) -> Result<Done, ProgramError> {
        debug_assert!(self.input.len() <= LARGEST_INPUT, "the input of a helper does not fit into a pipe");
        let mut group = Group(self.start()?);
        if let Some(mut stdin) = group.0.stdin.take() {
            // Whoever does not read his input says so by his exit code.
            let _ = stdin.write_all(&self.input);
        }
        let (mut stdout, mut stderr) = (group.0.stdout.take(), group.0.stderr.take());
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; 64 * 1024];
        // Some close their outputs and go on: both are waited for.
        let exit = group.exit()?;
        while stdout.is_some() || stderr.is_some() || !group.has_ended()? {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ProgramError::TooLong);
            }
            let ready = if stdout.is_some() || stderr.is_some() {
                wait(watching, stdout.as_ref(), stderr.as_ref(), left)?
            } else if exit.is_some() {
                wait(watching, exit.as_ref(), None::<&OwnedFd>, left)?
            } else {
                wait(watching, exit.as_ref(), None::<&OwnedFd>, left.min(LOOK_AGAIN))?
            };
            if ready.unwanted {
                return Err(ProgramError::TooLong);
            }
            if ready.stdout && read(&mut stdout, &mut buffer, &mut output)? {
                stdout = None;
            }
            if output.len() as u64 > self.most_output {
                return Err(ProgramError::TooMuch(self.most_output));
            }
            if ready.stderr && read(&mut stderr, &mut buffer, &mut errors)? {
                stderr = None;
            }
            if errors.len() > 2 * ERRORS_KEPT {
                errors.drain(..errors.len() - ERRORS_KEPT);
            }
        }
        let status = group.end()?;
        let errors =
            String::from_utf8_lossy(&errors[errors.len().saturating_sub(ERRORS_KEPT)..]).into_owned();
        Ok(Done { status, output, errors })
    }

    fn start(&self) -> Result<Child, ProgramError> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let limits = [
            (libc::RLIMIT_FSIZE, self.largest_file),
            (libc::RLIMIT_AS, self.most_memory),
            (libc::RLIMIT_CORE, Some(0)),
        ];
        let parent = std::process::id();
        // SAFETY: the closure makes system calls alone, on values that it owns.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // Whoever died before that sent no signal.
                if libc::getppid().cast_unsigned() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                for (resource, limit) in limits {
                    let Some(limit) = limit else { continue };
                    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
                    if libc::setrlimit(resource, &raw const limit) != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let not_started = |source| ProgramError::NotStarted { program: self.program.clone(), source };
        command.spawn().map_err(not_started)
    }
}

/// A child and all of its process group; what is left of it is killed when this is dropped.
struct Group(Child);

impl Group {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// What can be read once the child has ended; none before Linux 5.3.
    fn exit(&self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: plain numbers.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid().as_raw(), 0) };
        match RawFd::try_from(descriptor) {
            // SAFETY: the kernel has just given it to us.
            Ok(descriptor) if descriptor >= 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) })),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Whether the child has ended. Its number is nobody else's before it has been taken, so it is only looked at.
    fn has_ended(&self) -> io::Result<bool> {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(self.pid()), look) {
            Ok(status) => Ok(status != WaitStatus::StillAlive),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Ends what a child that has ended has left.
    fn end(&mut self) -> io::Result<ExitStatus> {
        let _ = killpg(self.pid(), Signal::SIGKILL);
        self.0.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// What there is to do.
struct Ready {
    /// Nobody waits any more.
    unwanted: bool,
    stdout: bool,
    stderr: bool,
}

fn wait<A: AsFd, B: AsFd>(
    watching: &UnixStream,
    stdout: Option<&A>,
    stderr: Option<&B>,
    left: Duration,
) -> io::Result<Ready> {
    let mut watched = vec![PollFd::new(watching.as_fd(), PollFlags::POLLIN)];
    let out = stdout.map(|stdout| {
        watched.push(PollFd::new(stdout.as_fd(), PollFlags::POLLIN));
        watched.len() - 1
    });
    let err = stderr.map(|stderr| {
        watched.push(PollFd::new(stderr.as_fd(), PollFlags::POLLIN));
        watched.len() - 1
    });
    // A millisecond more, so that the time is up when this says so.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut watched, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let is_ready = |at: usize| watched[at].any().unwrap_or(false);
    Ok(Ready { unwanted: is_ready(0), stdout: out.is_some_and(is_ready), stderr: err.is_some_and(is_ready) })
}

/// Reads once; true at the end.
fn read<R: Read>(from: &mut Option<R>, buffer: &mut [u8], to: &mut Vec<u8>) -> io::Result<bool> {
    let Some(from) = from else { return Ok(true) };
    let count = from.read(buffer)?;
    to.extend_from_slice(&buffer[..count]);
    Ok(count == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program {
            program: "sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("PATH".into(), std::env::var_os("PATH").unwrap_or_default())],
            directory: "/".into(),
            input: Vec::new(),
            most_output: 1 << 20,
            largest_file: None,
            most_memory: None,
            deadline: Instant::now() + Duration::from_secs(60),
            held: None,
        }
    }

    #[tokio::test]
    async fn a_program_that_ends_leaves_its_output_its_errors_and_its_exit_code() {
        let program = Program { input: b"in".to_vec(), ..shell("cat; echo ' a '>&2; echo b >&2; exit 3") };
        let done = program.run().await.unwrap();
        assert_eq!((done.status.code(), done.output.as_slice()), (Some(3), &b"in"[..]));
        assert_eq!(done.words(), "a; b");
        assert_eq!(shell("kill -9 $$").run().await.unwrap().words(), "it was ended by signal 9");
    }

    #[tokio::test]
    async fn nothing_of_this_processs_environment_reaches_a_helper() {
        let done = shell("env").run().await.unwrap();
        let names: Vec<_> = std::str::from_utf8(&done.output).unwrap().lines().collect();
        assert!(
            names.iter().all(|line| line.starts_with("PATH=")
                || line.starts_with("PWD=")
                || line.starts_with("_=")
                || line.starts_with("SHLVL=")),
            "{names:?}"
        );
    }

    #[tokio::test]
    async fn what_takes_too_long_writes_too_much_or_too_large_a_file_is_ended() {
        for script in ["sleep 1000", "exec >&- 2>&-; sleep 1000"] {
            let late = Program { deadline: Instant::now() + Duration::from_millis(100), ..shell(script) };
            assert!(matches!(late.run().await, Err(ProgramError::TooLong)), "{script}");
        }
        let quiet = shell("exec >&- 2>&-; sleep 0.1; exit 4").run().await.unwrap();
        assert_eq!(quiet.status.code(), Some(4));
        let loud = Program { most_output: 1000, ..shell("yes") };
        assert!(matches!(loud.run().await, Err(ProgramError::TooMuch(1000))));
        let place = tempfile::tempdir().unwrap();
        let large = Program {
            largest_file: Some(4096),
            directory: place.path().to_owned(),
            ..shell("head -c 100000 /dev/zero > x")
        };
        assert!(!large.run().await.unwrap().status.success());
        assert_eq!(std::fs::metadata(place.path().join("x")).unwrap().len(), 4096);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_ended_with_all_that_it_started_and_then_lets_go() {
        let place = tempfile::tempdir().unwrap();
        let fifo = place.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let held: Arc<dyn Any + Send + Sync> = Arc::new(());
        let watched = Arc::downgrade(&held);
        let script = format!("sleep 1000 & exec > {}; sleep 1000", fifo.display());
        let running = tokio::spawn(Program { held: Some(held), ..shell(&script) }.run());
        // Both of them hold the other end open; it ends when both are gone.
        let opened = fifo.clone();
        let mut end =
            tokio::task::spawn_blocking(move || std::fs::File::open(opened)).await.unwrap().unwrap();
        running.abort();
        let ended = tokio::task::spawn_blocking(move || end.read(&mut [0; 1])).await.unwrap();
        assert_eq!(ended.unwrap(), 0);
        while watched.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let missing = Program { program: "/nowhere/git".into(), ..shell("") };
        let error = missing.run().await.unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/git could not be started"), "{error}");
    }
}
