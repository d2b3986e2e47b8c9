//! Client mode, local, on a standalone cluster or on YARN: the driver is a child on this machine, and its end is the end.
//! Launchers of drivers that are elsewhere are started here too, in the same way.
//!
//! A driver that needs no Spark session is started by Python itself, with no JVM, in the same directory and environment.
//!
//! This module must not know what becomes of a job.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use spark_runtime_protocol::asset::DRIVER;
use spark_runtime_protocol::event::Way;
use tokio::sync::Mutex;

use super::archive::{ARCHIVE, Archives, JARS, PYTHON_ARCHIVES, Prepared};
use super::argv::{DRIVER_PYTHON, JAVA_VARIABLES, PYTHON, Sent, properties_file};
use super::class_data::{ClassData, VARIABLE, quoted};
use super::guard::{BootTime, Guard, LastWill, LastWillError, Launch, Running};
use super::installation::{Environment, Installation};
use super::policy::Master;
use super::report::{Reports, SOCKET, Word};
use super::standalone::Waiting;
use super::{
    Accepted, Application, Awaited, Backend, Change, Ending, Identity, Launches, Mode, Outcome, Sought,
    Submission, SubmitError,
};
use crate::config::SparkSettings;

/// Standard output of an attempt, in its directory.
pub const STANDARD_OUTPUT: &str = "stdout.log";
/// Standard error of an attempt, in its directory.
pub const STANDARD_ERROR: &str = "stderr.log";
/// Properties that hold secrets, in an attempt's directory.
const PROPERTIES: &str = "spark.properties";
/// What lets the driver into a database, in an attempt's directory. The driver removes it before it loads the model.
pub const LOGIN: &str = "database.json";
/// Lets the driver say whether the model's work waits for executors.
const WATCH_EXECUTORS: &str = "--watch-executors";
/// What the attempt may fill with temporary files, in its directory.
const TEMPORARY: &str = "tmp";
/// The option that tells a JVM where its temporary files go.
const TEMPORARY_OF_JAVA: &str = "-Djava.io.tmpdir";
/// Where a JVM puts them that is told nothing.
const SYSTEMS_TEMPORARY: &str = "/tmp";
/// Where the sockets between the JVM and Python are, for who has Spark use files for them; by default among the JVM's
/// temporary files.
const SOCKET_FOLDER: &str = "spark.python.unix.domain.socket.dir";
/// How many bytes the path of a folder of such sockets may have: each is called `.<uuid>.sock`, and Java takes a path of 106
/// bytes for a socket, one less than the system does.
const LONGEST_SOCKET_FOLDER: usize = 106 - "/.00000000-0000-0000-0000-000000000000.sock".len();

/// Runs drivers as children of a guard.
pub struct ClientMode {
    settings: SparkSettings,
    log_limit: u64,
    executable: PathBuf,
    archives: Option<Archives>,
    class_data: Option<ClassData>,
    guarded: Mutex<Guarded>,
}

/// The guard in use, and what the next one is told when it is gone.
#[derive(Default)]
struct Guarded {
    guard: Option<Guard>,
    until: Option<BootTime>,
    will: Option<LastWill>,
}

impl ClientMode {
    /// A back end whose guards are processes of `executable`, and that keeps `log_limit` bytes of each log.
    #[must_use]
    pub fn new(settings: &SparkSettings, log_limit: u64, executable: PathBuf) -> Self {
        Self {
            settings: settings.clone(),
            log_limit,
            executable,
            archives: None,
            class_data: None,
            guarded: Mutex::default(),
        }
    }

    /// The same, which gives jobs on YARN the archive of Spark's jars that is on the cluster.
    #[must_use]
    pub fn with_archives(self, archives: Archives) -> Self {
        Self { archives: Some(archives), ..self }
    }

    /// The same, whose launchers of drivers elsewhere start fast where there is class data for them.
    #[must_use]
    pub fn with_class_data(self, class_data: ClassData) -> Self {
        Self { class_data: Some(class_data), ..self }
    }

    /// Starts the guard now rather than with the first job.
    ///
    /// # Errors
    /// [`SubmitError::Guard`].
    pub async fn prepare(&self) -> Result<(), SubmitError> {
        self.guard().await.map(drop)
    }

    /// Lets the guard, and any that comes after it, end everything by itself when this process has not said otherwise by
    /// `until`.
    pub async fn alive_until(&self, until: BootTime) {
        let mut guarded = self.guarded.lock().await;
        guarded.until = Some(until);
        if let Some(guard) = &guarded.guard {
            guard.alive_until(Some(until));
        }
    }

    /// Leaves a last will with the guard and with any that comes after it, in place of any other. When this returns, it
    /// is carried out even if this process dies at once; unless there is no guard yet, and so nothing that was started.
    ///
    /// # Errors
    /// The guard of the moment does not have it; the next one will. Where that guard was lost, there is nothing to be
    /// carried out.
    pub async fn last_will(&self, will: LastWill) -> Result<(), LastWillError> {
        let mut guarded = self.guarded.lock().await;
        let left = match &guarded.guard {
            Some(guard) => guard.last_will(&will).await,
            None => Ok(()),
        };
        guarded.will = Some(will);
        left
    }

    /// Takes the last will back, as is done when this process leaves in good order.
    ///
    /// # Errors
    /// The guard was not told. Where it was lost, there is nothing to be carried out.
    pub async fn no_last_will(&self) -> Result<(), LastWillError> {
        let mut guarded = self.guarded.lock().await;
        guarded.will = None;
        match &guarded.guard {
            Some(guard) => guard.no_last_will().await,
            None => Ok(()),
        }
    }

    async fn guard(&self) -> Result<Guard, SubmitError> {
        let mut guarded = self.guarded.lock().await;
        if let Some(guard) = &guarded.guard
            && guard.pid().is_some()
        {
            return Ok(guard.clone());
        }
        if guarded.guard.is_some() {
            tracing::warn!("the guard is gone; a new one is started");
        }
        let guard = Guard::start(&self.executable).await?;
        if let Some(until) = guarded.until {
            guard.alive_until(Some(until));
        }
        if let Some(will) = &guarded.will
            && let Err(error) = guard.last_will(will).await
        {
            // It costs time alone: whoever waits for this process to be gone waits longer.
            tracing::warn!(%error, "the new guard has no last will");
        }
        guarded.guard = Some(guard.clone());
        Ok(guard)
    }

    /// Starts spark-submit for a driver that is elsewhere, with what is `sent` there and with more settings.
    #[cfg(any(feature = "kubernetes", feature = "yarn"))]
    pub(super) async fn start_launcher(
        &self,
        submission: &Submission,
        launcher: Launcher,
    ) -> Result<Running, SubmitError> {
        let archive = self.archive(submission).await;
        let launch = self.launch(submission, archive.as_deref(), Some(launcher))?;
        Ok(self.guard().await?.launch(launch).await?)
    }

    /// Whether a submission sets a property, by itself, the policy or `spark-defaults.conf`.
    #[cfg(feature = "kubernetes")]
    pub(super) fn says(&self, submission: &Submission, property: &str) -> bool {
        let settings = submission.runtime.as_ref().unwrap_or(&self.settings);
        // What is wrong with these is told by whoever cannot do without them.
        let defaults = Installation::find(settings)
            .ok()
            .and_then(|found| found.defaults(&Environment::of(settings, Some(&found))).ok())
            .unwrap_or_default();
        submission.command_line.says(property, &defaults)
    }

    /// The environment that spark-submit gets.
    #[cfg(any(feature = "kubernetes", feature = "yarn"))]
    pub(super) fn environment(&self) -> Environment {
        Environment::of(&self.settings, Installation::find(&self.settings).ok().as_ref())
    }

    /// The archive for a submission, where it needs one, nobody says otherwise, and there is one.
    async fn archive(&self, submission: &Submission) -> Option<Arc<Prepared>> {
        if submission.way != Way::Spark || submission.command_line.master() != Master::Yarn {
            return None;
        }
        let archives = self.archives.as_ref()?;
        let settings = submission.runtime.as_ref().unwrap_or(&self.settings);
        // What is wrong with these is told by whoever cannot do without them.
        let installation = Installation::find(settings).ok()?;
        let defaults = installation.defaults(&Environment::of(settings, Some(&installation))).ok()?;
        let is_said = [ARCHIVE, JARS].iter().any(|name| submission.command_line.says(name, &defaults));
        if is_said { None } else { archives.default_archive(&installation).await }
    }

    fn launch(
        &self,
        submission: &Submission,
        archive: Option<&Prepared>,
        launcher: Option<Launcher>,
    ) -> Result<Launch, SubmitError> {
        let settings = submission.runtime.as_ref().unwrap_or(&self.settings);
        let installation = match (submission.way, Installation::find(settings)) {
            (_, Ok(installation)) => Some(installation),
            (Way::Process, Err(_)) => None,
            (Way::Spark, Err(error)) => return Err(error.into()),
        };
        let mut environment = Environment::of(settings, installation.as_ref());
        let chosen = submission.runtime.as_ref().and_then(|runtime| runtime.python.as_ref());
        if let Some(python) = chosen {
            // What was chosen for the job counts, whatever else the settings put into the environment.
            environment.set("PYSPARK_PYTHON", python);
            environment.set("PYSPARK_DRIVER_PYTHON", python);
        }
        let temporary = submission.sought.directory.join(TEMPORARY);
        std::fs::create_dir(&temporary)
            .map_err(|source| SubmitError::Directory { what: "the folder for temporary files", source })?;
        environment.set_default("SPARK_LOCAL_DIRS", &temporary);
        environment.set_default("TMPDIR", &temporary);
        if let Some(login) = &submission.login {
            write_secret(&submission.sought.directory.join(LOGIN), login.expose())
                .map_err(|source| SubmitError::Directory { what: "the database's login", source })?;
        }
        if submission.command_line.master() == Master::Local {
            // Spark looks up the machine's name, which fails where a machine does not know its own.
            environment.set_default("SPARK_LOCAL_IP", "127.0.0.1");
        }
        if let Some(python) = archive.and_then(Prepared::python_archives) {
            environment.set_default(PYTHON_ARCHIVES, python);
        }
        let (program, mut arguments) = match installation {
            Some(installation) if submission.way == Way::Spark => {
                if launcher.is_some()
                    && let Some(class_data) = &self.class_data
                {
                    class_data.tell(&installation, &mut environment);
                }
                let mut arguments =
                    spark_arguments(submission, launcher.as_ref(), &installation, &environment)?;
                keep_temporary_files_of_java(&mut environment, &temporary);
                if let Some(archive) = archive {
                    arguments.extend(["--conf".into(), format!("{ARCHIVE}={}", archive.archive).into()]);
                }
                (installation.submit, arguments)
            }
            installation => {
                as_spark_submit_does(&mut environment, installation.as_ref())?;
                (environment.python_program()?, Vec::new())
            }
        };
        arguments.push(DRIVER.into());
        match launcher {
            None => {
                arguments.extend(["--report-socket".into(), OsString::from(format!("../{SOCKET}"))]);
                let has_executors = submission.command_line.master().has_executors_elsewhere();
                if has_executors && submission.way == Way::Spark {
                    arguments.push(WATCH_EXECUTORS.into());
                }
            }
            Some(launcher) => arguments.extend(launcher.driver_arguments),
        }
        Ok(Launch {
            program,
            arguments,
            environment: environment.pairs(),
            directory: submission.sought.working_directory.clone(),
            stdout: submission.sought.directory.join(STANDARD_OUTPUT),
            stderr: submission.sought.directory.join(STANDARD_ERROR),
            log_limit: self.log_limit,
            not_after: submission.not_after,
        })
    }

    async fn start(&self, submission: &Submission) -> Result<Box<dyn Application>, SubmitError> {
        let archive = self.archive(submission).await;
        let launch = self.launch(submission, archive.as_deref(), None)?;
        let reports = Reports::listen(&submission.sought.directory)
            .map_err(|source| SubmitError::Directory { what: "the driver's socket", source })?;
        // Not once more when the guard is lost meanwhile: the program may have run, and said its first words to the socket.
        let running = self.guard().await?.launch(launch).await?;
        Ok(Box::new(ClientApplication {
            running,
            reports: Some(reports),
            report: None,
            asked_first: AtomicBool::new(false),
            started: false,
            unreadable: None,
            waiting: None,
            is_told_vain: false,
            page_port: self.settings.master_page_port,
        }))
    }
}

/// How spark-submit is to start a driver that is elsewhere.
#[derive(Debug, Clone, Default)]
pub(super) struct Launcher {
    /// What goes there beside what the submission has.
    pub(super) sent: Sent,
    /// Spark properties that nobody may set otherwise.
    pub(super) properties: Vec<(String, String)>,
    /// What the driver is told.
    pub(super) driver_arguments: Vec<OsString>,
}

/// What spark-submit is told; secrets go into a file.
fn spark_arguments(
    submission: &Submission,
    launcher: Option<&Launcher>,
    installation: &Installation,
    environment: &Environment,
) -> Result<Vec<OsString>, SubmitError> {
    let sent = Sent {
        modules: submission.modules.iter().map(OsString::from).collect(),
        environment: submission.environment.as_ref().map(OsString::from),
        ..launcher.map(|launcher| launcher.sent.clone()).unwrap_or_default()
    };
    let mut arguments = submission.command_line.arguments(&sent);
    for (name, value) in launcher.iter().flat_map(|launcher| &launcher.properties) {
        arguments.extend(["--conf".into(), format!("{name}={value}").into()]);
    }
    let chosen = submission.runtime.as_ref().and_then(|runtime| runtime.python.as_deref());
    let named = match (&sent.environment, chosen) {
        // A driver that is elsewhere has what executors have.
        (Some(_), _) if launcher.is_some() => None,
        // Executors have their own; that of the driver is here.
        (Some(_), chosen) => Some((DRIVER_PYTHON, chosen.unwrap_or(Path::new(environment.python())))),
        (None, Some(chosen)) => Some((PYTHON, chosen)),
        (None, None) => None,
    };
    if let Some((name, python)) = named
        && !submission.command_line.sets(name)
    {
        // Over what `spark-defaults.conf` says.
        let mut property = OsString::from(format!("{name}="));
        property.push(python);
        arguments.extend(["--conf".into(), property]);
    }
    let defaults = installation
        .defaults(environment)
        .map_err(|source| SubmitError::Directory { what: "spark-defaults.conf", source })?;
    let temporary = submission.sought.directory.join(TEMPORARY);
    let is_too_deep = temporary.as_os_str().len() > LONGEST_SOCKET_FOLDER;
    if is_too_deep && launcher.is_none() && !submission.command_line.says(SOCKET_FOLDER, &defaults) {
        arguments.extend(["--conf".into(), format!("{SOCKET_FOLDER}={SYSTEMS_TEMPORARY}").into()]);
    }
    if submission.leaves_java_idle && submission.command_line.master() == Master::Local {
        for (name, value) in submission.command_line.for_idle_java(&defaults, environment) {
            arguments.extend(["--conf".into(), format!("{name}={value}").into()]);
        }
    }
    let secrets = submission.command_line.secrets();
    if !secrets.is_empty() {
        let path = submission.sought.directory.join(PROPERTIES);
        write_secret(&path, &properties_file(&defaults, &secrets))
            .map_err(|source| SubmitError::Directory { what: "the properties file", source })?;
        arguments.push("--properties-file".into());
        arguments.push(path.into());
    }
    Ok(arguments)
}

/// Has the JVM put its temporary files, such as the native libraries that it unpacks, into `folder`: `TMPDIR` is nothing to
/// it, and one that is killed removes nothing. What an operator says of the same counts.
fn keep_temporary_files_of_java(environment: &mut Environment, folder: &Path) {
    let says = |name: &&str| {
        environment.get(name).is_some_and(|options| options.to_string_lossy().contains(TEMPORARY_OF_JAVA))
    };
    if JAVA_VARIABLES.iter().any(says) {
        return;
    }
    let mut options = OsString::from(quoted(&format!("{TEMPORARY_OF_JAVA}="), folder));
    if let Some(own) = environment.get(VARIABLE) {
        options.push(" ");
        options.push(own);
    }
    environment.set(VARIABLE, options);
}

/// Gives a Python that is started without spark-submit what it would have from it, so that a model finds the same
/// modules and computes the same results.
fn as_spark_submit_does(
    environment: &mut Environment,
    installation: Option<&Installation>,
) -> Result<(), SubmitError> {
    let mut path = installation.map(Installation::python_path).unwrap_or_default();
    path.extend(environment.get("PYTHONPATH").into_iter().flat_map(std::env::split_paths));
    if !path.is_empty() {
        let joined = std::env::join_paths(path).map_err(|error| SubmitError::Directory {
            what: "the path of Python's modules",
            source: std::io::Error::other(error),
        })?;
        environment.set("PYTHONPATH", joined);
    }
    environment.set_default("PYTHONHASHSEED", "0");
    environment.set_default("OMP_NUM_THREADS", "1");
    Ok(())
}

fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

impl Backend for ClientMode {
    /// What runs here ends with this process, and with its lease: there is never anything to be found.
    fn find<'a>(&'a self, _: &'a Sought) -> Awaited<'a, Result<Option<Box<dyn Application>>, SubmitError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn submit<'a>(
        &'a self,
        submission: &'a Submission,
    ) -> Awaited<'a, Result<Box<dyn Application>, SubmitError>> {
        Box::pin(self.start(submission))
    }

    fn launches<'a>(&'a self, _: &'a Identity, _: &'a Mode) -> Awaited<'a, Result<Launches, SubmitError>> {
        Box::pin(std::future::ready(Ok(Launches::default())))
    }

    fn forget<'a>(&'a self, _: &'a Identity, _: &'a Mode, _: &'a Launches) -> Awaited<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

struct ClientApplication {
    running: Running,
    /// Gone once the driver has said its last word.
    reports: Option<Reports>,
    report: Option<Word>,
    /// It was asked to end before it had said its last word.
    asked_first: AtomicBool,
    started: bool,
    unreadable: Option<String>,
    /// Looks after its work while that waits for executors.
    waiting: Option<Waiting>,
    /// It was told that they will not come.
    is_told_vain: bool,
    /// Where the page of a standalone master is.
    page_port: u16,
}

impl ClientApplication {
    async fn next_change(&mut self) -> Change {
        loop {
            let Some(reports) = &mut self.reports else {
                let exit = self.running.exited().await;
                return self.ended(exit);
            };
            // Words first: those of a driver that has just ended are still to be read.
            let word = tokio::select! {
                biased;
                word = reports.next() => word,
                () = in_vain(&mut self.waiting), if !self.is_told_vain => {
                    self.is_told_vain = true;
                    return Change::InVain;
                }
                exit = self.running.exited() => {
                    self.last_words().await;
                    return self.ended(exit);
                }
            };
            if let Some(change) = self.heard(word) {
                return change;
            }
        }
    }

    /// Takes one word of the driver; gives the change that it means, if it means one.
    fn heard(&mut self, word: std::io::Result<Option<Word>>) -> Option<Change> {
        match word {
            Ok(Some(Word::Hello { pid, python, protocol })) => {
                tracing::debug!(pid, python, protocol, "the driver is there");
                self.started = true;
                Some(Change::Started)
            }
            Ok(Some(Word::Running { function })) => {
                tracing::debug!(function, "the model is about to run");
                Some(Change::Running)
            }
            Ok(Some(Word::Waiting(_) | Word::Placed)) if self.report.is_some() => None,
            Ok(Some(Word::Waiting(wait))) => {
                tracing::info!(
                    application = wait.application,
                    master = wait.master,
                    "the job's work waits for executors"
                );
                self.waiting = Some(Waiting::start(wait, self.page_port));
                self.is_told_vain = false;
                Some(Change::Waits)
            }
            Ok(Some(Word::Placed)) => {
                self.waiting = None;
                Some(Change::Placed)
            }
            Ok(Some(last @ (Word::Completed { .. } | Word::Failed { .. }))) => {
                // A first word stands: what comes behind it would be somebody else's.
                self.report.get_or_insert(last);
                self.waiting.take().map(|_| Change::Placed)
            }
            Ok(None) => {
                self.reports = None;
                None
            }
            Err(error) => {
                self.unreadable = Some(error.to_string());
                self.reports = None;
                None
            }
        }
    }

    /// Reads what a driver that is gone has left in its socket. All its processes are gone, so the end is there.
    async fn last_words(&mut self) {
        if let Some(reports) = &mut self.reports {
            reports.driver_is_gone();
        }
        while let Some(reports) = &mut self.reports {
            let word = reports.next().await;
            self.heard(word);
        }
    }

    fn asked(&self) {
        if self.report.is_none() {
            self.asked_first.store(true, Ordering::Relaxed);
        }
    }

    fn ended(&mut self, exit: super::guard::Exit) -> Change {
        Change::Ended(Box::new(Ending {
            report_came_first: !self.asked_first.load(Ordering::Relaxed),
            report: self.report.take(),
            started: self.started,
            unreadable: self.unreadable.take(),
            unlogged: None,
            outcome: Outcome::Process(exit),
        }))
    }
}

/// Waits until it is known that work waits in vain; for ever where none waits.
async fn in_vain(waiting: &mut Option<Waiting>) {
    match waiting {
        Some(waiting) => waiting.in_vain().await,
        None => std::future::pending().await,
    }
}

impl std::fmt::Debug for ClientApplication {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientApplication")
            .field("report", &self.report)
            .field("started", &self.started)
            .finish_non_exhaustive()
    }
}

impl Application for ClientApplication {
    fn accepted(&self) -> Option<Accepted> {
        Some(Accepted::default())
    }

    fn outlives_worker(&self) -> bool {
        false
    }

    fn waits_for(&self) -> Option<String> {
        self.waiting.as_ref().map(Waiting::words)
    }

    fn changed(&mut self) -> Awaited<'_, Change> {
        Box::pin(self.next_change())
    }

    fn terminate(&self) {
        self.asked();
        self.running.terminate();
    }

    fn kill(&self) {
        self.asked();
        self.running.kill();
    }

    fn leave(&self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options_with(name: &str, value: &str) -> Option<String> {
        let mut environment = Environment::default();
        environment.set(name, value);
        keep_temporary_files_of_java(&mut environment, Path::new("/w d/a \"b\"/tmp"));
        environment.get(VARIABLE).map(|options| options.to_str().unwrap().to_owned())
    }

    #[test]
    fn temporary_files_of_java_go_into_the_attempt_where_the_operator_says_nothing_of_them() {
        let own = "\"-Djava.io.tmpdir=/w d/a \\\"b\\\"/tmp\"";
        assert_eq!(options_with("LANG", "C").as_deref(), Some(own));
        assert_eq!(options_with(VARIABLE, "-Xss4m -Da=b").unwrap(), format!("{own} -Xss4m -Da=b"));
        for name in JAVA_VARIABLES {
            let theirs = "-Xss4m -Djava.io.tmpdir=/big";
            let expected = (name == VARIABLE).then_some(theirs);
            assert_eq!(options_with(name, theirs).as_deref(), expected, "{name}");
        }
    }
}
