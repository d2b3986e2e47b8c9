//! Stands in for spark-submit and the driver where a test or the bench needs one that starts in a millisecond, or one
//! that misbehaves in a chosen way.
//!
//! It is called as spark-submit is, speaks the driver's report protocol over the socket that `--report-socket` names
//! after the driver's file, and does what the model's source tells it in whole-line comments, in their order:
//!
//! ```text
//! # fake: hello                     says hello here; without this line it is said before everything else
//! # fake: running                   says running here; without this line it is said together with hello
//! # fake: complete                  reports completed without results, ends with 0; also the end of the list
//! # fake: results JSON              reports completed with these results, ends with 0
//! # fake: fail TYPE MESSAGE         reports an exception of the model on this line, ends with 1
//! # fake: contract MESSAGE          reports that the source lacks what the job asks for, ends with 1
//! # fake: report LINE               sends this line as it is and goes on
//! # fake: hang-up                   closes the report's connection and goes on
//! # fake: exit CODE                 ends without a report
//! # fake: signal NUMBER             ends itself by this signal
//! # fake: crash-before-hello        wherever it stands: ends with 1 before it has said a word
//! # fake: sleep SECONDS             waits; fractions count
//! # fake: hang                      waits for ever
//! # fake: ignore-term               ignores SIGTERM from here on
//! # fake: wait-for PATH             opens PATH for reading and reads it to its end: make it a FIFO to let it go on
//! # fake: print TEXT                one line to the standard output
//! # fake: print-error TEXT          one line to the standard error
//! # fake: print-megabytes N         N MiB of numbered lines to the standard output
//! # fake: print-error-megabytes N   the same to the standard error
//! # fake: write NAME TEXT           writes TEXT to the file NAME
//! # fake: write-megabytes NAME N    writes N MiB to the file NAME
//! # fake: eat-memory N              takes N MiB of memory, touches it and keeps it
//! # fake: spawn-daemon [SECONDS]    starts `sleep SECONDS` (86400) in a session of its own that outlives its parent
//!                                   and holds the standard output and error open
//! # fake: record PATH               writes arguments, environment and directory to PATH, as JSON
//! # fake: journal PATH              appends a line to PATH now and one at an orderly end; see `Journal`
//! # fake: kill-worker               kills the worker that started it, as a job that is too much for its machine does,
//!                                   and waits for its own end
//! # fake: times N PATH DIRECTIVE    does DIRECTIVE the first N times only, counted by the length of PATH
//! ```
//!
//! Unlike the real driver it does not end by itself when the worker goes away: a test that finds it gone knows that
//! somebody else has ended it.
//!
//! Exit codes of its own: 64 for a call or a directive that it does not understand, 70 when it cannot do what it is told.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::sys::signal::{SigHandler, Signal, kill, raise, signal};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getppid};
use serde_json::{Value, json};

const DRIVER: &str = "ModelOpPySparkDriver.py";
const SOURCE: &str = "model_source_code.py";
const METADATA: &str = "model_job_metadata.py";
const MEBIBYTE: usize = 1024 * 1024;

/// A line for the standard error and the exit code that goes with it.
struct Trouble {
    code: u8,
    message: String,
}

impl Trouble {
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 64, message: message.into() }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self { code: 70, message: error.to_string() }
    }
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(trouble) => {
            let _ = writeln!(io::stderr(), "fake-spark-submit: {}", trouble.message);
            ExitCode::from(trouble.code)
        }
    }
}

fn run() -> Result<u8, Trouble> {
    let arguments: Vec<String> = std::env::args().collect();
    let socket = report_socket(&arguments)?;
    let source = fs::read_to_string(SOURCE)?;
    let directives = directives(&source)?;
    let is = |wanted: &str| directives.iter().any(|directive| directive.name == wanted);
    if is("crash-before-hello") {
        let _ = writeln!(io::stderr(), "Error: could not start the driver");
        return Ok(1);
    }
    let metadata = fs::read_to_string(METADATA)?;
    let mut fake = Fake {
        report: None,
        socket: socket.to_owned(),
        function: literal(&metadata, "method_to_be_executed").unwrap_or("score").to_owned(),
        job: literal(&metadata, "job_id").unwrap_or_default().to_owned(),
        says_running: is("running"),
        arguments,
        memory: Vec::new(),
        journals: Vec::new(),
    };
    if !is("hello") {
        fake.hello()?;
    }
    let code = fake.follow(&directives)?;
    for journal in &mut fake.journals {
        journal.line("end", &fake.job, Some(code))?;
    }
    Ok(code)
}

/// The socket that the driver is told to report to: flags before the driver's file are spark-submit's own.
fn report_socket(arguments: &[String]) -> Result<&str, Trouble> {
    let is_driver = |argument: &String| argument.rsplit('/').next() == Some(DRIVER);
    let driver =
        arguments.iter().position(is_driver).ok_or_else(|| Trouble::usage(format!("no {DRIVER} to run")))?;
    match &arguments[driver + 1..] {
        // What else it is told is whether to look for executors, of which this one has none.
        [flag, socket, ..] if flag == "--report-socket" => Ok(socket),
        other => Err(Trouble::usage(format!("the driver wants --report-socket PATH, not {other:?}"))),
    }
}

/// The text of a Python literal that is one plain string; enough for ids and names of functions.
fn literal<'a>(metadata: &'a str, name: &str) -> Option<&'a str> {
    let line = metadata.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='))?;
    let text = line.trim();
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    text[1..].strip_suffix(quote)
}

/// One thing to do.
struct Directive {
    /// Where it stands in the source, from 1.
    line: usize,
    /// The whole line, for the frame of an exception.
    text: String,
    name: String,
    /// What follows the name.
    rest: String,
    /// Of `times`: what is to be done.
    inner: Option<Box<Directive>>,
}

/// The directives that take no argument, those that take one or more words, and those that may go without.
const BARE: [&str; 8] =
    ["hello", "running", "complete", "hang-up", "crash-before-hello", "hang", "ignore-term", "kill-worker"];
const WITH_WORDS: [(&str, usize); 17] = [
    ("results", 1),
    ("fail", 2),
    ("contract", 1),
    ("report", 1),
    ("exit", 1),
    ("signal", 1),
    ("sleep", 1),
    ("wait-for", 1),
    ("print", 1),
    ("print-error", 1),
    ("print-megabytes", 1),
    ("print-error-megabytes", 1),
    ("write", 2),
    ("write-megabytes", 2),
    ("eat-memory", 1),
    ("record", 1),
    ("journal", 1),
];
const OPTIONAL_WORD: &str = "spawn-daemon";

/// Every directive of the source. All are judged before the first is done: a test that misspells one must not pass.
fn directives(source: &str) -> Result<Vec<Directive>, Trouble> {
    let mut found = Vec::new();
    for (index, line) in source.lines().enumerate() {
        if let Some(text) = line.trim().strip_prefix("# fake:") {
            found.push(directive(index + 1, line, text)?);
        }
    }
    Ok(found)
}

fn directive(line: usize, whole: &str, text: &str) -> Result<Directive, Trouble> {
    let (name, rest) = split(text);
    let words = rest.split_whitespace().count();
    let mut inner = None;
    let fits = if name == "times" {
        let (_count, rest) = split(rest);
        let (_path, rest) = split(rest);
        inner = Some(Box::new(directive(line, whole, rest)?));
        true
    } else if BARE.contains(&name) {
        words == 0
    } else if let Some((_, least)) = WITH_WORDS.iter().find(|(known, _)| *known == name) {
        words >= *least
    } else {
        name == OPTIONAL_WORD
    };
    if !fits {
        return Err(Trouble::usage(format!("{SOURCE}:{line}: {whole:?} is not understood")));
    }
    Ok(Directive { line, text: whole.trim().to_owned(), name: name.to_owned(), rest: rest.to_owned(), inner })
}

/// The first word and what follows it.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim_start()))
}

fn number<T: std::str::FromStr>(directive: &Directive, text: &str) -> Result<T, Trouble> {
    text.trim().parse().map_err(|_| {
        Trouble::usage(format!("{SOURCE}:{}: {text:?} is no number that fits here", directive.line))
    })
}

/// The pretended driver, and what it holds on to until its end.
struct Fake {
    report: Option<UnixStream>,
    socket: String,
    function: String,
    job: String,
    /// `running` has a line of its own.
    says_running: bool,
    arguments: Vec<String>,
    memory: Vec<Vec<u8>>,
    journals: Vec<Journal>,
}

impl Fake {
    /// Does one thing after the other and gives the exit code.
    fn follow(&mut self, directives: &[Directive]) -> Result<u8, Trouble> {
        for directive in directives {
            if let Some(code) = self.once(directive)? {
                return Ok(code);
            }
        }
        self.completed(&Value::Null)
    }

    /// Does one thing; gives the exit code when it was the last.
    fn once(&mut self, directive: &Directive) -> Result<Option<u8>, Trouble> {
        let rest = directive.rest.as_str();
        match directive.name.as_str() {
            "hello" => self.hello()?,
            "running" => self.running()?,
            "complete" => return self.completed(&Value::Null).map(Some),
            "results" => {
                let results = serde_json::from_str(rest)
                    .map_err(|error| Trouble::usage(format!("{SOURCE}:{}: {error}", directive.line)))?;
                return self.completed(&results).map(Some);
            }
            "fail" => {
                let (exception, message) = split(rest);
                return self.failed("model", exception, message, directive).map(Some);
            }
            "contract" => return self.failed("contract", "ContractFault", rest, directive).map(Some),
            "report" => self.line(rest)?,
            "hang-up" => self.report = None,
            "exit" => return number(directive, rest).map(Some),
            "signal" => raise(Signal::try_from(number::<i32>(directive, rest)?)?)?,
            "sleep" => std::thread::sleep(Duration::from_secs_f64(number(directive, rest)?)),
            "hang" => hang(),
            "kill-worker" => {
                if let Some(worker) = worker_above()? {
                    kill(worker, Signal::SIGKILL)?;
                }
                hang()
            }
            "ignore-term" => ignore_term()?,
            "wait-for" => {
                io::copy(&mut File::open(rest)?, &mut io::sink())?;
            }
            "print" => say(io::stdout(), rest),
            "print-error" => say(io::stderr(), rest),
            "print-megabytes" => fill(&mut io::stdout().lock(), number(directive, rest)?)?,
            "print-error-megabytes" => fill(&mut io::stderr().lock(), number(directive, rest)?)?,
            "write" => {
                let (name, text) = split(rest);
                fs::write(name, text)?;
            }
            "write-megabytes" => {
                let (name, megabytes) = split(rest);
                fill(&mut File::create(name)?, number(directive, megabytes)?)?;
            }
            "eat-memory" => {
                for _ in 0..number(directive, rest)? {
                    // Not zeros: pages that are only ever zero would not have to be there.
                    self.memory.push(vec![0xa5; MEBIBYTE]);
                }
            }
            "spawn-daemon" => spawn_daemon(if rest.is_empty() { "86400" } else { rest })?,
            "record" => self.record(rest)?,
            "journal" => {
                let mut journal = Journal::open(rest, &self.job)?;
                let what = if journal.is_alone { "start" } else { "overlap" };
                journal.line(what, &self.job, None)?;
                self.journals.push(journal);
            }
            "times" => return self.times(directive),
            other => return Err(Trouble::usage(format!("{other} cannot be done"))),
        }
        Ok(None)
    }

    fn times(&mut self, directive: &Directive) -> Result<Option<u8>, Trouble> {
        let (limit, rest) = split(&directive.rest);
        let (path, _) = split(rest);
        let mut count = OpenOptions::new().append(true).create(true).open(path)?;
        count.write_all(b"x")?;
        let now: u64 = count.metadata()?.len();
        match &directive.inner {
            Some(inner) if now <= number(directive, limit)? => self.once(inner),
            _ => Ok(None),
        }
    }

    fn line(&mut self, line: &str) -> Result<(), Trouble> {
        if let Some(report) = &mut self.report {
            report.write_all(format!("{line}\n").as_bytes())?;
        }
        Ok(())
    }

    fn tell(&mut self, message: &Value) -> Result<(), Trouble> {
        self.line(&message.to_string())
    }

    fn hello(&mut self) -> Result<(), Trouble> {
        let report = UnixStream::connect(&self.socket)
            .map_err(|error| Trouble { code: 70, message: format!("{}: {error}", self.socket) })?;
        self.report = Some(report);
        self.tell(
            &json!({"message": "hello", "protocol": 1, "pid": std::process::id(), "python": "3.11.0"}),
        )?;
        if self.says_running { Ok(()) } else { self.running() }
    }

    fn running(&mut self) -> Result<(), Trouble> {
        let function = self.function.clone();
        self.tell(&json!({"message": "running", "function": function}))
    }

    fn completed(&mut self, results: &Value) -> Result<u8, Trouble> {
        self.tell(&json!({"message": "completed", "results": results}))?;
        Ok(0)
    }

    fn failed(&mut self, kind: &str, exception: &str, message: &str, at: &Directive) -> Result<u8, Trouble> {
        let function = self.function.clone();
        let traceback = format!(
            "Traceback (most recent call last):\n  File \"{SOURCE}\", line {}, in {function}\n    {}\n{exception}: {message}\n",
            at.line, at.text
        );
        let frame = json!({"file": SOURCE, "line": at.line, "function": function, "text": at.text});
        let exception =
            json!({"type": exception, "message": message, "traceback": traceback, "frame": frame});
        self.tell(
            &json!({"message": "failed", "kind": kind, "exception": exception, "functions": [function]}),
        )?;
        Ok(1)
    }

    fn record(&self, path: &str) -> Result<(), Trouble> {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        let directory = std::env::current_dir()?;
        let record = json!({
            "arguments": self.arguments,
            "environment": environment,
            "directory": directory.to_string_lossy(),
        });
        // In one step: a test that sees the file sees all of it.
        let unfinished = format!("{path}.unfinished");
        fs::write(&unfinished, record.to_string())?;
        fs::rename(&unfinished, path)?;
        Ok(())
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// The worker that this process descends from; `None` when it is gone already.
fn worker_above() -> io::Result<Option<Pid>> {
    let mut pid = getppid();
    while pid.as_raw() > 1 {
        let command = fs::read(format!("/proc/{pid}/cmdline"))?;
        let mut words = command.split(|byte| *byte == 0);
        let is_program = words.next().is_some_and(|program| program.ends_with(b"spark-runtime"));
        if is_program && words.any(|word| word == b"worker") {
            return Ok(Some(pid));
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let parent = parent.and_then(|parent| parent.trim().parse().ok()).unwrap_or_default();
        pid = Pid::from_raw(parent);
    }
    Ok(None)
}

fn ignore_term() -> Result<(), Trouble> {
    // SAFETY: no handler of ours runs; the signal is ignored.
    unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }?;
    Ok(())
}

/// Nobody may be listening any more, which is no reason to end.
fn say(mut to: impl Write, line: &str) {
    let _ = writeln!(to, "{line}").and_then(|()| to.flush());
}

/// Writes lines of 64 bytes, each with its number from 1, so that a reader can tell what is missing.
fn fill(to: &mut impl Write, megabytes: usize) -> Result<(), Trouble> {
    let lines = megabytes * MEBIBYTE / 64;
    let mut buffer = Vec::with_capacity(MEBIBYTE);
    for line in 1..=lines {
        writeln!(buffer, "line {line:010} {:.<47}", "")?;
        if buffer.len() >= MEBIBYTE || line == lines {
            to.write_all(&buffer)?;
            buffer.clear();
        }
    }
    Ok(to.flush()?)
}

/// `setsid --fork` leaves as soon as it has started the other, so that this one has nobody of ours as its parent.
fn spawn_daemon(seconds: &str) -> Result<(), Trouble> {
    let ended = Command::new("setsid").args(["--fork", "sleep", seconds]).stdin(Stdio::null()).status()?;
    if ended.success() { Ok(()) } else { Err(Trouble { code: 70, message: format!("setsid: {ended}") }) }
}

/// A file that many fakes append to, one JSON object a line:
/// `{"what":"start","job":"...","pid":1,"boottime_ns":2,"unix_ns":3,"directory":"..."}`.
///
/// `what` is `start` and, at an orderly end, `end`, which has the exit `code` too. It is `overlap` instead of `start` when
/// another fake with the same journal and the same job, or anything that such a fake has started, was there at that
/// moment: that is told by a lock that the system takes away when the last process that has it open ends, however it
/// ends, and by no clock. A run that was killed has no line for its end.
struct Journal {
    file: File,
    is_alone: bool,
    /// Held until the process, and what it started, is gone.
    _lock: Option<Flock<File>>,
}

impl Journal {
    fn open(path: &str, job: &str) -> Result<Self, Trouble> {
        let open = |path: &str| OpenOptions::new().append(true).create(true).open(path);
        let file = open(path)?;
        match Flock::lock(open(&format!("{path}.{job}.lock"))?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                // Whatever is started from here on holds the lock with this process.
                fcntl(&*lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(Self { file, is_alone: true, _lock: Some(lock) })
            }
            Err((_, Errno::EWOULDBLOCK)) => Ok(Self { file, is_alone: false, _lock: None }),
            Err((_, error)) => Err(error.into()),
        }
    }

    fn line(&mut self, what: &str, job: &str, code: Option<u8>) -> Result<(), Trouble> {
        let now = |clock| clock_gettime(clock).map(|now| now.tv_sec() * 1_000_000_000 + now.tv_nsec());
        let mut line = json!({
            "what": what,
            "job": job,
            "pid": std::process::id(),
            "boottime_ns": now(ClockId::CLOCK_BOOTTIME)?,
            "unix_ns": now(ClockId::CLOCK_REALTIME)?,
            "directory": std::env::current_dir()?.to_string_lossy(),
        });
        if let Some(code) = code {
            line["code"] = code.into();
        }
        // One write in append mode: lines of several processes do not mix.
        Ok(self.file.write_all(format!("{line}\n").as_bytes())?)
    }
}
