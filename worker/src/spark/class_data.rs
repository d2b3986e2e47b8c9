//! Class data of the launcher: what a JVM has to find out about some ten thousand classes before spark-submit has uploaded a
//! few files and asked YARN for an application, written down once (application class-data sharing, Java 13 and later).
//!
//! It is made by a launcher that does all that a real one does, up to the last word: the application that it asks for has
//! a tag that no ResourceManager takes, so that there is none. It is kept in the worker's own folder, by what it depends on:
//! the jars, the Java and what `spark-env.sh` says. A JVM that finds that it does not fit after all goes on without it.
//!
//! It is for launchers in cluster mode alone: in client mode the same JVM is the driver.
//!
//! This module must not know what is submitted.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};

use super::argv::JAVA_VARIABLES;
use super::installation::{Environment, Installation};
use crate::program::{Done, Program, ProgramError};

/// The variable whose words the launcher's JVM gets. `SPARK_LAUNCHER_OPTS` is for the small JVM before it, which only puts
/// the command line together.
pub const VARIABLE: &str = "SPARK_SUBMIT_OPTS";

/// How class data is made; a change makes all of it anew.
const FORMAT: &[u8] = b"class-data-1";
/// A launcher runs once and briefly.
const FOR_A_SHORT_LIFE: &str = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC";
/// What another Java does not know is no fault.
const LENIENT: &str = "-XX:+IgnoreUnrecognizedVMOptions";
/// What the JVM itself has to say goes where logs go; that class data does not fit is nobody's concern.
const QUIET: &str = "-Xlog:disable -Xlog:all=warning:stderr -Xlog:cds*=error:stderr";
/// Reads all of the class data and compares it with its checksums.
const CHECKED: &str = "-XX:+VerifySharedSpaces";
/// How long the launcher may take by which it is made, which writes some 60 MB at its end.
const MAKING: Duration = Duration::from_secs(180);
/// How long that launcher looks for a ResourceManager, in milliseconds. By default that is a quarter of an hour.
const LOOKING: &str = "20000";
/// How old what a making left has to be to count as left.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// How long class data is kept that no launcher has used: that of an installation or a Java that is gone.
const UNUSED: Duration = Duration::from_secs(30 * 24 * 3600);
/// How exactly it is known when it was used last.
const USES: Duration = Duration::from_secs(24 * 3600);
/// How much that launcher may say on its standard output, in bytes.
const MOST_WORDS: u64 = 1024 * 1024;

/// Why there is no class data.
#[derive(Debug, thiserror::Error)]
pub enum ClassDataError {
    /// A file or folder of this machine.
    #[error("{}: {source}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no Java to make it.
    #[error("there is no java, neither in JAVA_HOME nor on the PATH")]
    NoJava,
    /// The launcher by which it is made did not come to its end.
    #[error("the launcher that makes it: {0}")]
    Launcher(#[from] ProgramError),
    /// The JVM left none.
    #[error("Java made none: {0}")]
    NotMade(String),
}

fn local(path: &Path) -> impl FnOnce(io::Error) -> ClassDataError {
    let path = path.to_owned();
    move |source| ClassDataError::Local { path, source }
}

/// What [`ClassData::make`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The file.
    pub path: PathBuf,
    /// How many bytes it has.
    pub size: u64,
    /// It was there already.
    pub was_there: bool,
}

/// The class data that is kept in a folder.
#[derive(Debug, Clone)]
pub struct ClassData {
    folder: PathBuf,
}

impl ClassData {
    /// That in `folder`, which need not be there.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Tells a launcher in cluster mode how to start fast, by the environment that it gets. What the environment says about
    /// the same counts.
    ///
    /// Looks at the files of the installation. Where there is no class data, or it cannot be told whether it fits, the launcher
    /// is told the rest.
    pub fn tell(&self, installation: &Installation, environment: &mut Environment) {
        let found = key_of(installation, environment).ok().and_then(|key| self.find(&key));
        let options = match found {
            // Auto: a JVM that it does not fit starts without it.
            Some((file, _)) => {
                note_use(&file);
                shared(&file)
            }
            None => String::new(),
        };
        add(environment, &options);
    }

    /// The class data with this key and how many bytes it has, when it is there and has as many as its name says: with less, a
    /// JVM would not start without it but crash.
    fn find(&self, key: &str) -> Option<(PathBuf, u64)> {
        let entries = fs::read_dir(&self.folder).ok()?.flatten();
        entries.into_iter().find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let rest = name.strip_prefix("launcher-")?.strip_prefix(key)?.strip_prefix('-')?;
            let size: u64 = rest.strip_suffix(".jsa")?.parse().ok()?;
            (entry.metadata().ok()?.len() == size).then(|| (entry.path(), size))
        })
    }

    /// Makes the class data of an installation, if it is not there, by a launcher that asks the cluster of `environment` for
    /// nothing. `properties` are those that every submission gets.
    ///
    /// # Errors
    /// [`ClassDataError`]; then none is there.
    pub async fn make(
        &self,
        installation: &Installation,
        environment: &Environment,
        properties: &[(&str, &str)],
    ) -> Result<Made, ClassDataError> {
        let key = key_of(installation, environment)?;
        self.remove_unused(&key);
        if let Some((path, size)) = self.find(&key) {
            return Ok(Made { path, size, was_there: true });
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(local(&self.folder))?;
        self.remove_abandoned();
        let workshop = self.folder.join(format!(".making-{}", uuid::Uuid::new_v4().simple()));
        fs::DirBuilder::new().mode(0o700).create(&workshop).map_err(local(&workshop))?;
        let made = make_in(&workshop, installation, environment, properties).await;
        let kept = made.and_then(|made| self.keep(&made, &key));
        if let Err(error) = fs::remove_dir_all(&workshop) {
            tracing::debug!(%error, path = %workshop.display(), "what is left of making class data could not be removed");
        }
        kept
    }

    /// Gives what was made its name, once it is on the disk.
    fn keep(&self, made: &Path, key: &str) -> Result<Made, ClassDataError> {
        let synced = File::open(made).and_then(|file| file.sync_all().and_then(|()| file.metadata()));
        let size = synced.map_err(local(made))?.len();
        let path = self.folder.join(format!("launcher-{key}-{size}.jsa"));
        fs::rename(made, &path).map_err(local(&path))?;
        Ok(Made { path, size, was_there: false })
    }

    /// Removes what those left who died over it.
    fn remove_abandoned(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let is_making = entry.file_name().to_string_lossy().starts_with(".making-");
            let begun = entry.metadata().and_then(|metadata| metadata.modified());
            let age = begun.ok().and_then(|begun| SystemTime::now().duration_since(begun).ok());
            if is_making
                && age.is_some_and(|age| age > ABANDONED)
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::debug!(%error, path = %entry.path().display(), "an old folder could not be removed");
            }
        }
    }

    /// Removes the class data that no launcher has used for long, but for what has this key; a JVM that has it open keeps it.
    fn remove_unused(&self, key: &str) {
        let wanted = format!("launcher-{key}-");
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_class_data = name.starts_with("launcher-") && name.ends_with(".jsa");
            if !is_class_data || name.starts_with(&wanted) || !is_older(&entry.path(), UNUSED) {
                continue;
            }
            match fs::remove_file(entry.path()) {
                Ok(()) => {
                    tracing::info!(path = %entry.path().display(), "class data that nobody uses was removed")
                }
                Err(error) => {
                    tracing::debug!(%error, path = %entry.path().display(), "old class data could not be removed");
                }
            }
        }
    }
}

/// Whether a file has not been changed for so long.
fn is_older(path: &Path, age: Duration) -> bool {
    let changed = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    changed
        .and_then(|changed| SystemTime::now().duration_since(changed).ok())
        .is_some_and(|since| since > age)
}

/// Notes that class data is used: a JVM does not care when it was changed.
fn note_use(file: &Path) {
    if is_older(file, USES)
        && let Err(error) =
            File::options().append(true).open(file).and_then(|file| file.set_modified(SystemTime::now()))
    {
        tracing::debug!(%error, path = %file.display(), "the use of class data could not be noted");
    }
}

/// Runs the launcher; gives the file that its JVM left.
async fn make_in(
    workshop: &Path,
    installation: &Installation,
    environment: &Environment,
    properties: &[(&str, &str)],
) -> Result<PathBuf, ClassDataError> {
    let (made, program) = (workshop.join("made.jsa"), workshop.join("nothing.py"));
    // Should a cluster take it in spite of everything, it does nothing.
    fs::write(&program, "pass\n").map_err(local(&program))?;
    // Too long for a tag, and of letters that none may have.
    let tag = "\u{e9}".repeat(150);
    let own = [
        ("spark.submit.deployMode", "cluster"),
        ("spark.yarn.tags", &tag),
        ("spark.yarn.submit.waitAppCompletion", "false"),
        ("spark.yarn.maxAppAttempts", "1"),
        ("spark.hadoop.yarn.resourcemanager.connect.max-wait.ms", LOOKING),
    ];
    let mut arguments: Vec<OsString> =
        ["--master", "yarn", "--name", "spark-runtime cluster prepare"].map(OsString::from).into();
    for (name, value) in properties.iter().chain(&own) {
        arguments.extend(["--conf".into(), format!("{name}={value}").into()]);
    }
    arguments.push(program.into());
    let launch = |arguments: Vec<OsString>, options: &str| {
        let mut environment = environment.clone();
        add(&mut environment, options);
        let launcher = Program {
            program: installation.submit.clone(),
            arguments,
            environment: environment.pairs(),
            directory: workshop.to_owned(),
            input: Vec::new(),
            most_output: MOST_WORDS,
            largest_file: None,
            most_memory: None,
            deadline: Instant::now() + MAKING,
            held: None,
        };
        launcher.run()
    };
    // With what it ends says nothing, since it is meant to fail; but it has to come to its end.
    let done = launch(arguments, &quoted("-XX:ArchiveClassesAtExit=", &made)).await?;
    let is_there = fs::metadata(&made).is_ok_and(|metadata| metadata.len() > 0);
    if !is_there || done.status.code().is_none() {
        return Err(ClassDataError::NotMade(reason(&done)));
    }
    // No launcher that matters is the first to try it.
    let tried = launch(vec!["--version".into()], &format!("{} {CHECKED}", shared(&made))).await?;
    if !tried.status.success() {
        return Err(ClassDataError::NotMade(format!("a launcher failed with it: {}", tried.words())));
    }
    Ok(made)
}

/// What makes a JVM use class data; one that it does not fit starts without it.
fn shared(file: &Path) -> String {
    format!("{} -Xshare:auto {QUIET}", quoted("-XX:SharedArchiveFile=", file))
}

/// Why a JVM left no class data, by what it said.
fn reason(done: &Done) -> String {
    let text = format!("{}\n{}", String::from_utf8_lossy(&done.output), done.errors);
    if text.contains("directory in paths") {
        return "it cannot where a folder with files is before the jars, as the conf folder of Spark is"
            .to_owned();
    }
    let of_the_jvm =
        |line: &&str| line.starts_with("Error") || line.contains("[error]") || line.contains("[cds");
    match text.lines().find(of_the_jvm) {
        Some(line) => line.chars().filter(|c| !c.is_control()).take(300).collect(),
        None => done.words(),
    }
}

/// An option with a path, in quotes as Spark's launcher takes them.
pub(super) fn quoted(option: &str, path: &Path) -> String {
    let path = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{option}{path}\"")
}

/// Adds options to those that the launcher gets. Who has given any to Java has chosen the rest, too: a JVM that is told two
/// collectors does not start.
fn add(environment: &mut Environment, options: &str) {
    let is_told = JAVA_VARIABLES.iter().any(|name| environment.get(name).is_some());
    let own = environment.get(VARIABLE).unwrap_or_default().to_string_lossy().into_owned();
    let rest = if is_told { "" } else { FOR_A_SHORT_LIFE };
    let words: Vec<&str> =
        [LENIENT, options, rest, &own].into_iter().filter(|word| !word.is_empty()).collect();
    environment.set(VARIABLE, words.join(" "));
}

/// By what class data is known again: all that a launcher's JVM loads classes of, and the JVM.
fn key_of(installation: &Installation, environment: &Environment) -> Result<String, ClassDataError> {
    let mut digest = Sha256::new();
    digest.update(FORMAT);
    let mut put = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    let home = installation.home.as_deref().unwrap_or(&installation.submit);
    let jars = home.join("jars");
    put(jars.as_os_str().as_encoded_bytes());
    let mut names = Vec::new();
    for entry in fs::read_dir(&jars).map_err(local(&jars))? {
        names.push(entry.map_err(local(&jars))?.path());
    }
    names.sort();
    for path in &names {
        put(path.as_os_str().as_encoded_bytes());
        put_state(&mut put, path);
    }
    let configuration = environment.get("SPARK_CONF_DIR").map_or_else(|| home.join("conf"), PathBuf::from);
    put(configuration.as_os_str().as_encoded_bytes());
    put(&fs::read(configuration.join("spark-env.sh")).unwrap_or_default());
    for name in ["SPARK_DIST_CLASSPATH", "SPARK_PREPEND_CLASSES"] {
        put(environment.get(name).unwrap_or_default().as_encoded_bytes());
    }
    for name in JAVA_VARIABLES {
        put(environment.get(name).unwrap_or_default().as_encoded_bytes());
    }
    let java = java(environment).ok_or(ClassDataError::NoJava)?;
    put(java.as_os_str().as_encoded_bytes());
    put_state(&mut put, &java);
    let home_of_java = java.parent().and_then(Path::parent).unwrap_or(&java);
    put(&fs::read(home_of_java.join("release")).unwrap_or_default());
    put_state(&mut put, &home_of_java.join("lib/server/libjvm.so"));
    Ok(digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// Puts what a JVM tells a file by.
fn put_state(put: &mut impl FnMut(&[u8]), path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return put(b"none") };
    put(&metadata.len().to_be_bytes());
    put(&metadata.mtime().to_be_bytes());
    put(&metadata.mtime_nsec().to_be_bytes());
}

/// The Java that spark-submit starts, where `spark-env.sh` does not say otherwise.
fn java(environment: &Environment) -> Option<PathBuf> {
    let folders: Vec<PathBuf> = match environment.get("JAVA_HOME").filter(|home| !home.is_empty()) {
        Some(home) => vec![Path::new(home).join("bin")],
        None => std::env::split_paths(environment.get("PATH").unwrap_or(OsStr::new(""))).collect(),
    };
    folders.iter().find_map(|folder| folder.join("java").canonicalize().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// An installation whose spark-submit does what a shell script says, with a Java to be known by.
    fn spark(script: &str) -> (tempfile::TempDir, Installation, Environment) {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().join("a \"spark\"");
        for folder in ["jars", "bin", "jdk/bin"] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        fs::write(home.join("jars/a.jar"), "a").unwrap();
        fs::write(home.join("jdk/bin/java"), "").unwrap();
        fs::write(home.join("jdk/release"), "JAVA_VERSION=\"17\"").unwrap();
        let submit = home.join("bin/spark-submit");
        fs::write(&submit, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&submit, fs::Permissions::from_mode(0o755)).unwrap();
        let mut environment = Environment::default();
        environment.set("PATH", std::env::var_os("PATH").unwrap());
        environment.set("JAVA_HOME", home.join("jdk"));
        (place, Installation { submit, home: Some(home) }, environment)
    }

    fn told(class_data: &ClassData, installation: &Installation, environment: &Environment) -> String {
        let mut environment = environment.clone();
        class_data.tell(installation, &mut environment);
        environment.get(VARIABLE).unwrap().to_str().unwrap().to_owned()
    }

    const MAKES: &str = "[ \"$1\" = --version ] && exit 0; echo \"$@\" > ../arguments
        made=${SPARK_SUBMIT_OPTS#*ArchiveClassesAtExit=}; echo data > \"${made%%\\\"*}\"; exit 1";

    #[tokio::test]
    async fn class_data_is_made_once_and_used_until_something_changes() {
        let (place, installation, environment) = spark(MAKES);
        let folder = place.path().join("cache");
        let class_data = ClassData::new(folder.clone());
        let plain = format!("{LENIENT} {FOR_A_SHORT_LIFE}");
        assert_eq!(told(&class_data, &installation, &environment), plain);
        let made = class_data.make(&installation, &environment, &[("spark.a", "b c")]).await.unwrap();
        assert!(!made.was_there && made.size == 5);
        let arguments = fs::read_to_string(folder.join("arguments")).unwrap();
        assert!(
            arguments.contains("--conf spark.a=b c") && arguments.contains("\u{e9}\u{e9}"),
            "{arguments}"
        );
        let shared = format!("\"-XX:SharedArchiveFile={}\"", made.path.display());
        let told_now = told(&class_data, &installation, &environment);
        assert!(told_now.contains(&shared) && told_now.ends_with(FOR_A_SHORT_LIFE), "{told_now}");
        assert!(class_data.make(&installation, &environment, &[]).await.unwrap().was_there);
        let left = fs::read_dir(&folder).unwrap().count();
        assert_eq!(left, 2, "the file and the arguments");
        // Half of it, another jar, another Java: it would not fit.
        fs::write(&made.path, "da").unwrap();
        assert_eq!(told(&class_data, &installation, &environment), plain);
        fs::write(&made.path, "data\n").unwrap();
        let home = installation.home.clone().unwrap();
        fs::write(home.join("jars/b.jar"), "b").unwrap();
        assert_eq!(told(&class_data, &installation, &environment), plain);
        fs::remove_file(home.join("jars/b.jar")).unwrap();
        assert!(told(&class_data, &installation, &environment).contains(&shared));
        fs::write(home.join("jdk/release"), "JAVA_VERSION=\"21\"").unwrap();
        assert_eq!(told(&class_data, &installation, &environment), plain);
    }

    #[tokio::test]
    async fn class_data_that_no_launcher_has_used_for_long_is_removed_and_what_is_used_stays() {
        let (place, installation, environment) = spark(MAKES);
        let folder = place.path().join("cache");
        let class_data = ClassData::new(folder.clone());
        let made = class_data.make(&installation, &environment, &[]).await.unwrap().path;
        let [old, newer, other] =
            ["launcher-a-1.jsa", "launcher-b-1.jsa", "other.jsa"].map(|name| folder.join(name));
        let long_ago = SystemTime::now() - UNUSED - Duration::from_secs(60);
        let aged =
            |path: &Path| File::options().append(true).open(path).unwrap().set_modified(long_ago).unwrap();
        for file in [&old, &newer, &other] {
            fs::write(file, "x").unwrap();
        }
        for file in [&old, &other, &made] {
            aged(file);
        }
        assert!(class_data.make(&installation, &environment, &[]).await.unwrap().was_there);
        assert!(!old.exists() && newer.exists() && other.exists() && made.exists());
        // A launcher that gets it keeps it young.
        told(&class_data, &installation, &environment);
        assert!(!is_older(&made, Duration::from_secs(3600)) && is_older(&other, UNUSED));
    }

    #[tokio::test]
    async fn a_jvm_that_makes_none_says_why_and_leaves_nothing() {
        let (place, installation, environment) =
            spark("echo starting; echo 'Error: no class data today' >&2; echo later; exit 1");
        let class_data = ClassData::new(place.path().join("cache"));
        let words = class_data.make(&installation, &environment, &[]).await.unwrap_err().to_string();
        assert_eq!(words, "Java made none: Error: no class data today");
        assert_eq!(fs::read_dir(place.path().join("cache")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn class_data_that_a_launcher_fails_with_is_not_kept() {
        let (place, installation, environment) = spark(&MAKES.replace("&& exit 0", "&& exit 7"));
        let class_data = ClassData::new(place.path().join("cache"));
        let words = class_data.make(&installation, &environment, &[]).await.unwrap_err().to_string();
        assert_eq!(words, "Java made none: a launcher failed with it: it ended with 7");
        assert!(!told(&class_data, &installation, &environment).contains("SharedArchiveFile"));
    }

    #[test]
    fn what_the_environment_says_to_java_counts() {
        let (place, installation, mut environment) = spark("");
        environment.set(VARIABLE, "-XX:+UseG1GC");
        let words = told(&ClassData::new(place.path().join("cache")), &installation, &environment);
        assert_eq!(words, format!("{LENIENT} -XX:+UseG1GC"));
    }
}
