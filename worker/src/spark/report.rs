//! What the driver says of itself: one line of JSON after the other, over the Unix socket of its attempt.
//!
//! The driver speaks and the worker listens; nothing is ever read from the driver's output. Only the first connection
//! counts: the driver makes it before anything of the model runs.
//!
//! This module must not know what a report means for the job.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use spark_runtime_protocol::event::{ModelException, Records};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};

/// The longest line that is read from a driver, in bytes: its results may have 16 MiB, and escapes make them longer.
const LONGEST_LINE: u64 = 64 * 1024 * 1024;

/// The name of the socket in an attempt's directory.
pub const SOCKET: &str = "driver.sock";

/// One line of a driver.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "message", rename_all = "lowercase")]
pub enum Word {
    /// The driver is there; nothing of the model has run.
    Hello {
        /// The version of what it speaks.
        protocol: u32,
        /// Its process.
        pid: u32,
        /// Its Python.
        python: String,
    },
    /// The model is about to run.
    Running {
        /// The function that will be called.
        function: String,
    },
    /// Stages of the model could run, and have not one executor; or the application itself has not begun.
    Waiting(Wait),
    /// That is over.
    Placed,
    /// The function ran to its end.
    Completed {
        /// What the metrics function gave.
        #[serde(default)]
        results: Option<Value>,
        /// What became of the records, of a record model.
        #[serde(default)]
        records: Option<Records>,
    },
    /// It did not.
    Failed {
        /// Whose fault it is.
        kind: FailureKind,
        /// The exception.
        exception: ModelException,
        /// The functions that the source has, when the one asked for is not among them.
        #[serde(default)]
        functions: Vec<String>,
        /// The record at which it raised, of a record model.
        #[serde(default, flatten)]
        at: AtRecord,
    },
}

/// What work waits for, as its driver has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Wait {
    /// The cluster's id of the application; none where YARN has not begun it. Then what it is to have is what its master is to
    /// have there.
    pub application: Option<String>,
    /// Its master, as `spark://host:7077` or `yarn`.
    pub master: String,
    /// The memory of each executor, where somebody says so; what it needs beside its heap is not in it.
    pub memory: Option<String>,
    /// The cores of each, where somebody says so.
    pub cores: Option<String>,
    /// The cores of all together at most, where somebody says so.
    pub most_cores: Option<String>,
    /// It had executors before.
    pub had_executors: bool,
    /// The queue of YARN's in which it has not begun, where somebody says so.
    #[serde(default)]
    pub queue: Option<String>,
}

/// Which record a failure is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct AtRecord {
    /// Its number in its input, from 1.
    #[serde(default)]
    pub record: Option<u64>,
    /// The name of its input.
    #[serde(default)]
    pub input: Option<String>,
}

/// Whose fault a failure is, as the driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// The model raised.
    Model,
    /// The job asks for something that the source does not have.
    Contract,
}

/// Waits for a driver.
#[derive(Debug)]
pub struct Reports {
    listener: Option<UnixListener>,
    path: PathBuf,
    lines: Option<(BufReader<OwnedReadHalf>, OwnedWriteHalf)>,
    /// The part of a line that has come so far; kept here so that a cancelled call loses nothing.
    line: Vec<u8>,
}

impl Reports {
    /// Listens in `directory`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn listen(directory: &Path) -> io::Result<Self> {
        // A socket's path has at most 107 bytes; the directory's may be longer, its descriptor's never is.
        let folder = std::fs::File::open(directory)?;
        let short = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
        let listener = UnixListener::bind(short)?;
        Ok(Self { listener: Some(listener), path: directory.join(SOCKET), lines: None, line: Vec::new() })
    }

    /// The next line of the driver; `None` once the driver has closed its end.
    ///
    /// Cancelling the call loses nothing.
    ///
    /// # Errors
    /// `InvalidData` for a line that no driver writes; otherwise what the socket says.
    pub async fn next(&mut self) -> io::Result<Option<Word>> {
        if let Some(listener) = &self.listener {
            let (stream, _) = listener.accept().await?;
            self.connected(stream);
        }
        let Some((lines, _)) = &mut self.lines else { return Ok(None) };
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let room = LONGEST_LINE.saturating_sub(self.line.len() as u64);
        lines.take(room).read_until(b'\n', &mut self.line).await?;
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            return Err(invalid(format!("the driver's line of {} bytes has no end", line.len())));
        }
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| invalid(format!("the driver's line is none: {error}")))
    }

    /// Once every process of the driver's is gone: takes a connection that was made and not yet accepted, and makes
    /// sure that [`Reports::next`] does not wait for one that will never come.
    pub fn driver_is_gone(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        // Not the runtime's `accept`: that one may not have heard yet of a connection which the kernel has.
        let accepted = nix::sys::socket::accept4(
            listener.as_raw_fd(),
            nix::sys::socket::SockFlag::SOCK_CLOEXEC | nix::sys::socket::SockFlag::SOCK_NONBLOCK,
        );
        let Ok(descriptor) = accepted else { return };
        // SAFETY: the descriptor was just made by `accept4` and nobody else has it.
        let stream = unsafe { std::os::unix::net::UnixStream::from_raw_fd(descriptor) };
        match UnixStream::from_std(stream) {
            Ok(stream) => self.connected(stream),
            Err(error) => tracing::warn!(%error, "the driver's connection could not be read"),
        }
    }

    fn connected(&mut self, stream: UnixStream) {
        let (read, write) = stream.into_split();
        self.lines = Some((BufReader::new(read), write));
        self.listener = None;
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the driver's socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spark_runtime_protocol::event::Way;
    use std::io::Write;

    fn driver(directory: &Path) -> std::os::unix::net::UnixStream {
        std::os::unix::net::UnixStream::connect(directory.join(SOCKET)).unwrap()
    }

    #[tokio::test]
    async fn words_of_a_driver_that_is_gone_are_still_read() {
        let directory = tempfile::tempdir().unwrap();
        let mut reports = Reports::listen(directory.path()).unwrap();
        let mut stream = driver(directory.path());
        stream
            .write_all(b"{\"message\":\"running\",\"function\":\"f\"}\n{\"message\":\"completed\"}\n")
            .unwrap();
        drop(stream);
        reports.driver_is_gone();
        assert_eq!(reports.next().await.unwrap(), Some(Word::Running { function: "f".into() }));
        assert_eq!(reports.next().await.unwrap(), Some(Word::Completed { results: None, records: None }));
        assert_eq!(reports.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_driver_that_never_came() {
        let directory = tempfile::tempdir().unwrap();
        let mut reports = Reports::listen(directory.path()).unwrap();
        reports.driver_is_gone();
        assert_eq!(reports.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_call_that_is_cancelled_in_the_middle_of_a_line_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut reports = Reports::listen(directory.path()).unwrap();
        let mut stream = driver(directory.path());
        stream.write_all(b"{\"message\":").unwrap();
        for _ in 0..100 {
            tokio::select! { biased; word = reports.next() => panic!("{word:?}"), () = tokio::task::yield_now() => {} }
        }
        stream.write_all(b"\"completed\"}\n").unwrap();
        assert_eq!(reports.next().await.unwrap(), Some(Word::Completed { results: None, records: None }));
    }

    #[test]
    fn what_became_of_records_is_read_as_the_driver_writes_it() {
        let line = r#"{"message":"completed","results":null,"records":{"way":"process","read":5,"scored":3,"written":3,"failed":0,
            "rejected":{"input":2,"output":0},"reasons":[{"side":"input","field":"age","reason":"is missing","count":2},
            {"side":"output","field":null,"reason":"is no object","count":1}],"stopped_at":5}}"#;
        let Word::Completed { records: Some(records), .. } = serde_json::from_str(line).unwrap() else {
            panic!("no records")
        };
        assert_eq!((records.way, records.rejected.input, records.stopped_at), (Way::Process, 2, Some(5)));
        assert_eq!(records.reasons[1].field, None);
        let line = r#"{"message":"failed","kind":"model","exception":{"type":"E","message":"m","traceback":null,"frame":null},
            "functions":[],"record":7,"input":"test.csv"}"#;
        let Word::Failed { at, .. } = serde_json::from_str(line).unwrap() else { panic!("no failure") };
        assert_eq!(at, AtRecord { record: Some(7), input: Some("test.csv".into()) });
    }

    #[test]
    fn what_work_waits_for_is_read_as_the_driver_writes_it() {
        let line = r#"{"message":"waiting","application":"app-1","master":"spark://h:1","memory":"8g","cores":null,
            "most_cores":"2","had_executors":true,"queue":null}"#;
        let Word::Waiting(wait) = serde_json::from_str(line).unwrap() else { panic!("no wait") };
        assert_eq!(
            (wait.application.as_deref(), wait.memory.as_deref(), wait.cores),
            (Some("app-1"), Some("8g"), None)
        );
        let line = r#"{"message":"waiting","application":null,"master":"yarn","memory":null,"cores":null,"most_cores":null,
            "had_executors":false,"queue":"q"}"#;
        let Word::Waiting(wait) = serde_json::from_str(line).unwrap() else { panic!("no wait") };
        assert_eq!((wait.application, wait.queue.as_deref()), (None, Some("q")));
        assert_eq!(serde_json::from_str::<Word>(r#"{"message":"placed"}"#).unwrap(), Word::Placed);
    }

    #[tokio::test]
    async fn what_no_driver_writes_is_told_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let mut reports = Reports::listen(directory.path()).unwrap();
        driver(directory.path()).write_all(b"hello there\n").unwrap();
        assert_eq!(reports.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_directory_may_have_a_path_longer_than_a_socket_name() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("x".repeat(120)).join("y z");
        std::fs::create_dir_all(&deep).unwrap();
        let reports = Reports::listen(&deep).unwrap();
        assert!(deep.join(SOCKET).exists());
        drop(reports);
    }
}
