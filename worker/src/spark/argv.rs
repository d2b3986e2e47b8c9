//! The command line of spark-submit: from what a job asks for and what the operator rules, to arguments.
//!
//! Arguments go to the program one by one, never through a shell. Properties that hold secrets go into a file that
//! only the worker's user can read, since every user of a machine can read every command line.
//!
//! This module must not start anything, nor write files.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;

use spark_runtime_protocol::job::Job;
use spark_runtime_protocol::json::Fault;

use super::installation::Environment;
use super::policy::{KEYTAB, Master, PRINCIPAL, PROXY_USER, Policy, Setting, kubernetes_server};
use super::{Mode, Namespace};
use crate::storage::Actor;

/// The property of `--py-files`.
const PY_FILES: &str = "spark.submit.pyFiles";
/// The property of `--archives`.
const ARCHIVES: &str = "spark.archives";
/// The property of `--files`.
const FILES: &str = "spark.files";
/// The tags by which an application is found.
const TAGS: &str = "spark.yarn.tags";
/// The property of `--deploy-mode`.
const DEPLOY_MODE: &str = "spark.submit.deployMode";
/// The property that names the Python of drivers and executors.
pub const PYTHON: &str = "spark.pyspark.python";
/// The property that names the Python of drivers alone.
pub const DRIVER_PYTHON: &str = "spark.pyspark.driver.python";
/// The folder in an executor's own into which the environment that it is sent is unpacked.
const ENVIRONMENT: &str = "spark_runtime_environment";

/// What a session gets whose Java side only starts Python processes and waits for them, where nobody says otherwise.
///
/// Half of the time that such a session takes to start goes into a web page that nobody looks at and into making code
/// fast that runs once. Its Python workers come from a process that has loaded what they need. Socket files are not held up for 40 ms by what TCP does about small packets, for each task.
const FOR_IDLE_JAVA: [(&str, &str); 4] = [
    ("spark.ui.enabled", "false"),
    ("spark.python.unix.domain.socket.enabled", "true"),
    ("spark.python.daemon.module", "ModelOpWorkers"),
    (DEFAULT_JAVA_OPTIONS, "-XX:+IgnoreUnrecognizedVMOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"),
];
/// Options of the driver's JVM that stand before those of a job.
const DEFAULT_JAVA_OPTIONS: &str = "spark.driver.defaultJavaOptions";
/// Options of the driver's JVM. A JVM that is told two collectors does not start.
const JAVA_OPTIONS: &str = "spark.driver.extraJavaOptions";
/// Where a JVM finds options besides.
pub(super) const JAVA_VARIABLES: [&str; 4] =
    ["SPARK_SUBMIT_OPTS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"];

/// The property of `--jars`.
const JARS: &str = "spark.jars";
/// The properties whose files spark-submit takes from where it runs, and sends to a driver in a cluster.
const SENT_BY_SUBMIT: [&str; 15] = [
    FILES,
    ARCHIVES,
    PY_FILES,
    JARS,
    "spark.yarn.dist.files",
    "spark.yarn.dist.archives",
    "spark.yarn.dist.pyFiles",
    "spark.yarn.dist.jars",
    "spark.yarn.jars",
    "spark.yarn.archive",
    "spark.kubernetes.kerberos.krb5.path",
    "spark.kubernetes.authenticate.driver.caCertFile",
    "spark.kubernetes.authenticate.driver.clientKeyFile",
    "spark.kubernetes.authenticate.driver.clientCertFile",
    "spark.kubernetes.authenticate.driver.oauthTokenFile",
];

/// What goes to where a job runs, beside what it sends there itself. Each name is as spark-submit takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    /// Archives of Python modules.
    pub modules: Vec<OsString>,
    /// The environment of the runtime, packed.
    pub environment: Option<OsString>,
    /// Files, for the folder of the driver and of each executor.
    pub files: Vec<OsString>,
    /// Archives, unpacked there in folders.
    pub archives: Vec<OsString>,
    /// The tags by which the application is found.
    pub tags: Vec<String>,
}

/// As whom all jobs run that do not say otherwise, where a `spark-defaults.conf` names somebody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DefaultLogin {
    principal: Option<String>,
    keytab: Option<String>,
}

impl DefaultLogin {
    /// What the text of a `spark-defaults.conf` says of it, under the names of today or those of before, as spark-submit
    /// takes it.
    #[must_use]
    pub fn of(defaults: &str) -> Self {
        let first = |names: [&str; 2]| names.into_iter().find_map(|name| default_value(defaults, name));
        Self {
            principal: first([PRINCIPAL, "spark.yarn.principal"]),
            keytab: first([KEYTAB, "spark.yarn.keytab"]),
        }
    }
}

/// What spark-submit is told, the program that it runs left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    settings: Vec<Setting>,
    /// What counts where these say nothing of it.
    login: DefaultLogin,
}

impl CommandLine {
    /// Puts together what `job` asks for, what `policy` adds and forces, and `master` where nobody names one. `login` is what
    /// spark-submit will find by itself.
    ///
    /// # Errors
    /// Every flag of the job that cannot be taken, with its place.
    pub fn of(job: &Job, policy: &Policy, master: &str, login: &DefaultLogin) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut settings: Vec<Setting> = Vec::new();
        for requested in job.flags() {
            let setting = Setting::read(&requested.name, &requested.value)
                .and_then(|setting| policy.judge(&setting).map(|()| setting));
            match setting {
                Ok(setting) => replace(&mut settings, setting),
                Err(reason) => {
                    faults.push(Fault::new(&requested.pointer, format!("{} {reason}", requested.name)))
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        for default in policy.defaults() {
            if !settings.iter().any(|setting| setting.identity() == default.identity()) {
                settings.push(default);
            }
        }
        for forced in policy.forced() {
            replace(&mut settings, forced);
        }
        let mut line = Self { settings, login: login.clone() };
        if line.value("spark.master").is_none() {
            let master = Setting::read("--master", master).map_err(|reason| {
                vec![Fault::new("", format!("the worker's setting spark.master: {reason}"))]
            })?;
            line.settings.insert(0, master);
        }
        if let Some(keytab) = line.value(PRINCIPAL).and_then(|principal| policy.keytab_of(principal)) {
            // In place of one that the operator gives to all: that is another principal's.
            if let Ok(setting) = Setting::read(KEYTAB, &keytab.display().to_string()) {
                replace(&mut line.settings, setting);
            }
        }
        line.check_identity().map_err(|message| {
            let names_user = |name: &str| matches!(name, PROXY_USER | "--principal" | PRINCIPAL);
            let at = job.flags().iter().find(|flag| names_user(&flag.name));
            vec![Fault::new(at.map_or("", |flag| flag.pointer.as_str()), message)]
        })?;
        line.check_modes().map_err(|message| {
            let names_mode = |name: &str| name == "--deploy-mode" || name == DEPLOY_MODE;
            let at = job.flags().iter().find(|flag| names_mode(&flag.name));
            vec![Fault::new(at.map_or("", |flag| flag.pointer.as_str()), message)]
        })?;
        let faults = line.files_of_this_machine(job);
        if faults.is_empty() { Ok(line) } else { Err(faults) }
    }

    /// What a job would have sent from the worker's machine to a driver of its own in a cluster: the worker's user can read
    /// what no job is to see. What the operator's policy sends is the operator's to know.
    fn files_of_this_machine(&self, job: &Job) -> Vec<Fault> {
        if !self.is_cluster_mode() {
            return Vec::new();
        }
        let sends = |setting: &Setting| {
            let counts = self.value(setting.identity()) == Some(setting.value());
            counts && SENT_BY_SUBMIT.contains(&setting.identity())
        };
        let flags = job.flags().iter();
        flags
            .filter_map(|flag| {
                let setting = Setting::read(&flag.name, &flag.value).ok().filter(sends)?;
                let entry = setting.value().split(',').map(str::trim).find(|entry| is_of_this_machine(entry))?;
                let reason = format!(
                    "{} would send {entry:?} of the worker's machine into the cluster; name a file that the cluster reaches \
                     (hdfs:, s3a: ...) or one that every node has (local:), or make it an asset of the job",
                    flag.name
                );
                Some(Fault::new(&flag.pointer, reason))
            })
            .collect()
    }

    /// Whether the kind of master can run the driver where the deploy mode wants it.
    fn check_modes(&self) -> Result<(), String> {
        match self.master() {
            Master::Kubernetes if !self.is_cluster_mode() => Err(
                "has a Kubernetes master without deploy mode cluster; pods cannot reach a driver on the worker's machine; \
                 give --deploy-mode cluster"
                    .to_owned(),
            ),
            _ if !self.is_cluster_mode() => Ok(()),
            Master::Kubernetes | Master::Yarn => Ok(()),
            Master::Local => {
                Err("has deploy mode cluster and master local, which is no cluster; leave --deploy-mode out"
                    .to_owned())
            }
            Master::Standalone => {
                Err("has deploy mode cluster on a standalone cluster, where Spark runs no Python \
                                       programs in it; leave --deploy-mode out"
                    .to_owned())
            }
        }
    }

    /// Spark takes one way to be somebody else, and spark-submit would refuse two only after its start.
    fn check_identity(&self) -> Result<(), String> {
        let said = [PRINCIPAL, KEYTAB].into_iter().find(|name| self.sets(name));
        let with_login = match said {
            Some(name) => Some((name, "by the job or by the operator's policy")),
            None => self.login.principal.as_ref().map(|_| (PRINCIPAL, "in spark-defaults.conf")),
        };
        match (self.value(PROXY_USER), with_login) {
            (Some(user), Some((other, place))) => Err(format!(
                "asks to run as {user:?} by --proxy-user while {other} is set, {place}; a job runs as one of them"
            )),
            (None, _) if said.is_some() && !(self.principal().is_some() && self.keytab().is_some()) => Err(
                format!("has one of {PRINCIPAL} and {KEYTAB} without the other; see the operator's policy"),
            ),
            _ => Ok(()),
        }
    }

    fn principal(&self) -> Option<&str> {
        self.value(PRINCIPAL).or(self.login.principal.as_deref())
    }

    fn keytab(&self) -> Option<&str> {
        self.value(KEYTAB).or(self.login.keytab.as_deref())
    }

    /// As whom it runs.
    #[must_use]
    pub fn actor(&self) -> Actor {
        match (self.value(PROXY_USER), self.principal(), self.keytab()) {
            (Some(user), _, _) => Actor::User(user.to_owned()),
            (None, Some(principal), Some(keytab)) => {
                Actor::Principal { principal: principal.to_owned(), keytab: keytab.into() }
            }
            _ => Actor::Worker,
        }
    }

    fn value(&self, identity: &str) -> Option<&str> {
        self.settings.iter().find(|setting| setting.identity() == identity).map(Setting::value)
    }

    /// Whether it sets this property.
    #[must_use]
    pub fn sets(&self, property: &str) -> bool {
        self.value(property).is_some()
    }

    /// Whether it sets this property, or the text of a `spark-defaults.conf` does.
    #[must_use]
    pub fn says(&self, property: &str, defaults: &str) -> bool {
        self.sets(property) || default_value(defaults, property).is_some()
    }

    /// Where the job runs.
    #[must_use]
    pub fn master(&self) -> Master {
        // `Setting::read` takes no value that is no master.
        self.value("spark.master").and_then(Master::of).unwrap_or(Master::Local)
    }

    /// What the driver is to get of memory, in bytes, where somebody says so.
    #[must_use]
    pub fn driver_memory(&self) -> Option<u64> {
        // `Setting::read` makes this a whole number and one letter.
        let text = self.value("spark.driver.memory")?;
        let number: u64 = text.get(..text.len().checked_sub(1)?)?.parse().ok()?;
        let shift = match text.as_bytes().last()? {
            b'k' => 10,
            b'm' => 20,
            b'g' => 30,
            b't' => 40,
            _ => return None,
        };
        number.checked_mul(1 << shift)
    }

    /// The file system of paths without a scheme, where somebody says so.
    #[must_use]
    pub fn default_file_system(&self) -> Option<&str> {
        self.value("spark.hadoop.fs.defaultFS")
    }

    /// Whether it says which Python executors run.
    #[must_use]
    pub fn names_python(&self) -> bool {
        self.sets(PYTHON)
    }

    /// Where the driver runs.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if !self.is_cluster_mode() {
            return Mode::Client;
        }
        match self.value("spark.master").and_then(kubernetes_server) {
            Some(server) => Mode::Kubernetes(Namespace {
                server,
                name: self.value("spark.kubernetes.namespace").map(str::to_owned),
            }),
            None => Mode::Yarn,
        }
    }

    /// Whether the driver runs in a cluster, too.
    #[must_use]
    pub fn is_cluster_mode(&self) -> bool {
        self.value(DEPLOY_MODE) == Some("cluster")
    }

    /// What the driver asks a cluster for, in words; without what Spark adds for memory outside of the heap.
    #[must_use]
    pub fn driver_asks(&self) -> String {
        let memory = self.value("spark.driver.memory").unwrap_or("1g");
        let cores = self.value("spark.driver.cores").unwrap_or("1");
        format!("{memory} of memory and {cores} core{}", if cores == "1" { "" } else { "s" })
    }

    /// The arguments that stand before the program; secrets are left out. What is `sent` goes to where the job runs beside
    /// what the job itself sends there.
    #[must_use]
    pub fn arguments(&self, sent: &Sent) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut archives = sent.archives.clone();
        if let Some(environment) = &sent.environment {
            let mut named = environment.clone();
            named.push(format!("#{ENVIRONMENT}"));
            archives.push(named);
        }
        let tags: Vec<OsString> = sent.tags.iter().map(OsString::from).collect();
        let mut merged = Vec::new();
        for (flag, property, ours) in [
            (Some("--py-files"), PY_FILES, &sent.modules),
            (Some("--files"), FILES, &sent.files),
            (Some("--archives"), ARCHIVES, &archives),
            (None, TAGS, &tags),
        ] {
            if ours.is_empty() {
                continue;
            }
            let own = self.value(property).map(OsString::from);
            let list: Vec<OsString> = ours.iter().cloned().chain(own).collect();
            let list = list.join(OsStr::new(","));
            match flag {
                Some(flag) => arguments.extend([flag.into(), list]),
                None => {
                    let mut setting = OsString::from(format!("{property}="));
                    setting.push(list);
                    arguments.extend(["--conf".into(), setting]);
                }
            }
            merged.push(property);
        }
        if sent.environment.is_some() {
            arguments.extend(["--conf".into(), format!("{PYTHON}=./{ENVIRONMENT}/bin/python").into()]);
        }
        let is_merged = |setting: &&Setting| merged.contains(&setting.identity());
        for setting in self.settings.iter().filter(|setting| !setting.is_secret() && !is_merged(setting)) {
            match setting.flag() {
                Some(flag) => {
                    arguments.push(flag.into());
                    if !setting.value().is_empty() {
                        arguments.push(setting.value().into());
                    }
                }
                None => {
                    arguments.push("--conf".into());
                    arguments.push(format!("{}={}", setting.identity(), setting.value()).into());
                }
            }
        }
        arguments
    }

    /// The properties with which the Java side of a session starts fast that has nothing to do but start Python processes.
    /// What the job, the policy, the text of a `spark-defaults.conf` or the environment says about the same counts.
    #[must_use]
    pub fn for_idle_java(
        &self,
        defaults: &str,
        environment: &Environment,
    ) -> Vec<(&'static str, &'static str)> {
        let said = |name: &str| self.says(name, defaults);
        let java_is_told =
            said(JAVA_OPTIONS) || JAVA_VARIABLES.iter().any(|name| environment.get(name).is_some());
        let counts = |name: &str| !(said(name) || name == DEFAULT_JAVA_OPTIONS && java_is_told);
        FOR_IDLE_JAVA.into_iter().filter(|(name, _)| counts(name)).collect()
    }

    /// The properties that hold secrets.
    #[must_use]
    pub fn secrets(&self) -> BTreeMap<&str, &str> {
        self.settings.iter().filter(|s| s.is_secret()).map(|s| (s.identity(), s.value())).collect()
    }
}

/// Whether spark-submit takes a file from where it runs: one without a scheme too, whatever the default file system is.
fn is_of_this_machine(entry: &str) -> bool {
    let scheme = entry.split_once(':').map(|(scheme, _)| scheme).filter(|scheme| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    !entry.is_empty() && scheme.is_none_or(|scheme| scheme.eq_ignore_ascii_case("file"))
}

fn replace(settings: &mut Vec<Setting>, setting: Setting) {
    settings.retain(|earlier| earlier.identity() != setting.identity());
    settings.push(setting);
}

/// What the text of a `spark-defaults.conf` says of a property; the last word counts.
#[must_use]
pub fn default_value(defaults: &str, property: &str) -> Option<String> {
    let mut lines = defaults.lines();
    let mut found = None;
    while let Some(line) = lines.next() {
        let line = line.trim_start();
        if line.starts_with(['#', '!']) {
            continue;
        }
        let mut whole = line.to_owned();
        // A line that ends with a backslash, which no other one escapes, goes on in the next.
        while whole.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1 {
            whole.pop();
            let Some(next) = lines.next() else { break };
            whole.push_str(next.trim_start());
        }
        let (name, value) = name_and_value(&whole);
        if name == property {
            found = Some(value.trim().to_owned());
        }
    }
    found
}

/// Takes a line apart as `java.util.Properties.load` does.
fn name_and_value(line: &str) -> (String, String) {
    let mut is_escaped = false;
    let end = line.find(|c: char| {
        let ends = !is_escaped && (c.is_whitespace() || matches!(c, '=' | ':'));
        is_escaped = c == '\\' && !is_escaped;
        ends
    });
    let (name, rest) = line.split_at(end.unwrap_or(line.len()));
    let rest = rest.trim_start();
    let value = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start();
    (unescape(name), unescape(value))
}

/// The other way round than [`escape`].
fn unescape(part: &str) -> String {
    let mut units: Vec<u16> = Vec::with_capacity(part.len());
    let mut characters = part.chars();
    while let Some(character) = characters.next() {
        let character = match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('f') => '\u{c}',
                Some('u') => {
                    let digits: String = characters.by_ref().take(4).collect();
                    units.extend(u16::from_str_radix(&digits, 16));
                    continue;
                }
                Some(other) => other,
                None => break,
            },
            other => other,
        };
        units.extend_from_slice(character.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16_lossy(&units)
}

/// The text of a properties file (`java.util.Properties`) with `defaults`, which is one already, and `properties`.
///
/// spark-submit reads its `spark-defaults.conf` only when it is given no other file, so that file's text is `defaults`.
#[must_use]
pub fn properties_file(defaults: &str, properties: &BTreeMap<&str, &str>) -> String {
    let mut text = defaults.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for (name, value) in properties {
        escape(&mut text, name, true);
        text.push('=');
        escape(&mut text, value, false);
        text.push('\n');
    }
    text
}

/// Escapes as `java.util.Properties.store` does.
fn escape(text: &mut String, part: &str, is_name: bool) {
    for (index, character) in part.chars().enumerate() {
        match character {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{c}' => text.push_str("\\f"),
            '\\' | '=' | ':' | '#' | '!' => {
                text.push('\\');
                text.push(character);
            }
            ' ' if is_name || index == 0 => text.push_str("\\ "),
            ' '..='~' => text.push(character),
            _ => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    // Writing to a string does not fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(parameters: serde_json::Value, conf: serde_json::Value) -> Job {
        let document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB",
            "model": {"storedModel": {"modelAssets": [
                {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"}]}},
            "jobParameters": parameters, "targetEngine": {"sparkConf": conf, "executorMemory": "512MB"}
        });
        Job::read(document.to_string().as_bytes(), None).unwrap()
    }

    /// Where no `spark-defaults.conf` says anything.
    fn of(job: &Job, policy: &Policy, master: &str) -> Result<CommandLine, Vec<Fault>> {
        CommandLine::of(job, policy, master, &DefaultLogin::default())
    }

    fn arguments(parameters: serde_json::Value, conf: serde_json::Value, policy: &str) -> Vec<String> {
        let line = of(&job(parameters, conf), &toml::from_str(policy).unwrap(), "local[*]").unwrap();
        line.arguments(&Sent::default())
            .iter()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn parameters_win_over_the_engine_and_every_value_stays_one_argument() {
        assert_eq!(
            arguments(
                json!({"--executor-memory": "1g", "--name": "a b; rm -rf $(x) 'y'", "-v": "", "--total-executor-cores": "10"}),
                json!({"--master": "local[2]", "spark.sql.shuffle.partitions": "2"}),
                "",
            ),
            [
                "--master",
                "local[2]",
                "--conf",
                "spark.sql.shuffle.partitions=2",
                "--executor-memory",
                "1g",
                "--name",
                "a b; rm -rf $(x) 'y'",
                "-v",
                "--total-executor-cores",
                "10"
            ]
        );
    }

    #[test]
    fn defaults_give_way_and_forced_settings_do_not() {
        let policy = "[defaults]\n\"spark.executor.memory\" = \"3g\"\n\"spark.ui.enabled\" = \"false\"\n\
                      [force]\n\"--master\" = \"spark://m:7077\"\n";
        assert_eq!(
            arguments(json!({}), json!({"spark.master": "local[7]"}), policy),
            ["--executor-memory", "512m", "--conf", "spark.ui.enabled=false", "--master", "spark://m:7077"]
        );
    }

    #[test]
    fn modules_go_to_the_executors_beside_what_the_job_sends() {
        let policy = Policy::default();
        let line = of(&job(json!({"--py-files": "hdfs:///x.py"}), json!({})), &policy, "local").unwrap();
        let arguments = line.arguments(&Sent { modules: vec!["/a b/modules.zip".into()], ..Sent::default() });
        assert_eq!(arguments[..2], ["--py-files", "/a b/modules.zip,hdfs:///x.py"]);
        assert!(!arguments[2..].iter().any(|argument| argument == "--py-files"));
    }

    #[test]
    fn an_environment_goes_to_the_executors_beside_the_archives_of_the_job() {
        let policy = Policy::default();
        let line = of(&job(json!({"--archives": "hdfs:///x.zip#x"}), json!({})), &policy, "local").unwrap();
        let arguments = line.arguments(&Sent { environment: Some("/e.tar.gz".into()), ..Sent::default() });
        assert_eq!(
            arguments[..4],
            [
                "--archives",
                "/e.tar.gz#spark_runtime_environment,hdfs:///x.zip#x",
                "--conf",
                "spark.pyspark.python=./spark_runtime_environment/bin/python"
            ]
        );
        assert!(!arguments[4..].iter().any(|argument| argument == "--archives"));
    }

    #[test]
    fn a_session_whose_java_is_idle_starts_fast_unless_somebody_says_otherwise() {
        let names = |conf: serde_json::Value, defaults: &str, variable: Option<&str>| {
            let line = of(&job(json!({}), conf), &Policy::default(), "local").unwrap();
            let mut environment = Environment::default();
            if let Some(variable) = variable {
                environment.set(variable, "-XX:+UseG1GC");
            }
            line.for_idle_java(defaults, &environment).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let [page, sockets, workers, java] = FOR_IDLE_JAVA.map(|(name, _)| name);
        assert_eq!(names(json!({}), "# spark.ui.enabled true\n", None), [page, sockets, workers, java]);
        assert_eq!(names(json!({"spark.ui.enabled": "true"}), "", None), [sockets, workers, java]);
        assert_eq!(names(json!({}), "a 1\n spark.ui.enabled=true\n", None), [sockets, workers, java]);
        assert_eq!(names(json!({JAVA_OPTIONS: "-XX:+UseG1GC"}), "", None), [page, sockets, workers]);
        assert_eq!(names(json!({}), &format!("{JAVA_OPTIONS}\t-Xss4m"), None), [page, sockets, workers]);
        assert_eq!(names(json!({}), "", Some("JAVA_TOOL_OPTIONS")), [page, sockets, workers]);
    }

    #[test]
    fn secrets_are_no_arguments() {
        let conf = json!({"spark.hadoop.fs.s3a.secret.key": "p\u{e4} ss=1\\\n"});
        let line = of(&job(json!({}), conf), &Policy::default(), "local[*]").unwrap();
        assert!(!format!("{:?}", line.arguments(&Sent::default())).contains("secret"));
        assert_eq!(
            properties_file("spark.a 1", &line.secrets()),
            "spark.a 1\nspark.hadoop.fs.s3a.secret.key=p\\u00e4 ss\\=1\\\\\\n\n"
        );
    }

    #[test]
    fn a_job_runs_as_one_user_whose_keytab_the_operator_names() {
        let rules = "[identity]\nproxy_users = [\"ann\"]\n[identity.keytabs]\n\"etl@R\" = \"/k/etl\"\n";
        let line_of = |parameters: serde_json::Value, policy: &str| {
            of(&job(parameters, json!({})), &toml::from_str(policy).unwrap(), "local[*]")
        };
        assert_eq!(line_of(json!({}), rules).unwrap().actor(), Actor::Worker);
        let line = line_of(json!({"--proxy-user": "ann"}), rules).unwrap();
        assert_eq!(line.actor(), Actor::User("ann".into()));
        assert!(line.arguments(&Sent::default()).windows(2).any(|pair| pair == ["--proxy-user", "ann"]));
        let line = line_of(json!({"--principal": "etl@R"}), rules).unwrap();
        assert_eq!(line.actor(), Actor::Principal { principal: "etl@R".into(), keytab: "/k/etl".into() });
        // Where a keytab lies is no secret, and what is in it is no argument.
        let arguments = line.arguments(&Sent::default());
        assert!(arguments.iter().any(|argument| argument == "spark.kerberos.keytab=/k/etl"), "{arguments:?}");
        let faults = line_of(json!({"--proxy-user": "ann", "--principal": "etl@R"}), rules).unwrap_err();
        assert_eq!(faults[0].pointer, "/jobParameters/--proxy-user");
        assert!(faults[0].message.contains("a job runs as one of them"), "{faults:?}");
        let forced = format!("{rules}[defaults]\n\"--principal\" = \"all@R\"\n\"--keytab\" = \"/k/all\"\n");
        assert!(line_of(json!({"--proxy-user": "ann"}), &forced).is_err());
        let own = line_of(json!({"--principal": "etl@R"}), &forced).unwrap();
        assert_eq!(own.actor(), Actor::Principal { principal: "etl@R".into(), keytab: "/k/etl".into() });
        let all = line_of(json!({}), &forced).unwrap();
        assert_eq!(all.actor(), Actor::Principal { principal: "all@R".into(), keytab: "/k/all".into() });
    }

    #[test]
    fn who_is_named_in_spark_defaults_is_whom_jobs_run_as_that_do_not_say_otherwise() {
        let rules = "[identity]\nproxy_users = [\"ann\"]\n[identity.keytabs]\n\"etl@R\" = \"/k/etl\"\n";
        let line_of = |parameters: serde_json::Value, policy: &str, defaults: &str| {
            let policy = toml::from_str(policy).unwrap();
            CommandLine::of(&job(parameters, json!({})), &policy, "local[*]", &DefaultLogin::of(defaults))
        };
        let all = Actor::Principal { principal: "all@R".into(), keytab: "/k/all".into() };
        for defaults in [
            "spark.kerberos.principal all@R\nspark.kerberos.keytab /k/all\n",
            "spark.yarn.principal=all@R\nspark.yarn.keytab: /k/all",
            "spark.kerberos.principal=all@R\nspark.yarn.principal=old@R\nspark.kerberos.keytab=/k/all",
        ] {
            assert_eq!(line_of(json!({}), rules, defaults).unwrap().actor(), all, "{defaults}");
            let own = line_of(json!({"--principal": "etl@R"}), rules, defaults).unwrap();
            assert_eq!(own.actor().user(), Some("etl"), "{defaults}");
            // spark-submit would say so only after its start.
            let faults = line_of(json!({"--proxy-user": "ann"}), rules, defaults).unwrap_err();
            assert_eq!(faults[0].pointer, "/jobParameters/--proxy-user");
            assert!(faults[0].message.contains("is set, in spark-defaults.conf"), "{faults:?}");
        }
        // One without the other makes nobody log in.
        for defaults in
            ["spark.kerberos.principal all@R", "spark.kerberos.keytab /k/all", "# spark.kerberos.principal x"]
        {
            assert_eq!(line_of(json!({}), rules, defaults).unwrap().actor(), Actor::Worker, "{defaults}");
        }
        let keytab = "spark.kerberos.keytab /k/all";
        assert_eq!(
            line_of(json!({"--proxy-user": "ann"}), rules, keytab).unwrap().actor(),
            Actor::User("ann".into())
        );
    }

    #[test]
    fn spark_defaults_are_read_as_java_reads_them() {
        let text = "# spark.a no\n! spark.a no\n\n  spark.a = 1 \nspark.b:2\nspark.c\t x=y\nspark.long one\\\n  \ttwo\\\\\n\
                    spark.u \\u00e4\\tz\nspark.a\\ b 3\nspark.none\nspark.a 4";
        for (name, value) in [
            ("spark.a", Some("4")),
            ("spark.b", Some("2")),
            ("spark.c", Some("x=y")),
            ("spark.long", Some("onetwo\\")),
            ("spark.u", Some("\u{e4}\tz")),
            ("spark.a b", Some("3")),
            ("spark.none", Some("")),
            ("spark", None),
        ] {
            assert_eq!(default_value(text, name).as_deref(), value, "{name}");
        }
        let written = properties_file(text, &BTreeMap::from([("spark.p", " p\u{e4} ss=1\\\n\u{1f600}x")]));
        assert_eq!(default_value(&written, "spark.p").as_deref(), Some("p\u{e4} ss=1\\\n\u{1f600}x"));
    }

    #[test]
    fn no_file_of_the_workers_machine_goes_to_a_driver_in_a_cluster() {
        let line_of = |parameters: serde_json::Value, policy: &str| {
            let conf = json!({"--master": "yarn", "--deploy-mode": "cluster"});
            of(&job(parameters, conf), &toml::from_str(policy).unwrap(), "local[*]")
        };
        for (name, value) in [
            ("--files", "file:///etc/security/etl.keytab"),
            ("--files", "hdfs:///a,/etc/security/etl.keytab#a"),
            ("--archives", "FILE:/a.zip"),
            ("--py-files", "etl.py"),
            ("--jars", "hdfs:///a.jar, ../a:b.jar"),
            ("spark.files", "/etc/security/etl.keytab"),
            ("spark.yarn.dist.files", "/etc/security/etl.keytab"),
            ("spark.yarn.jars", "file:/opt/*"),
            ("spark.kubernetes.authenticate.driver.oauthTokenFile", "/etc/token"),
        ] {
            let faults = line_of(json!({ name: value }), "").unwrap_err();
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert_eq!(faults[0].pointer, format!("/jobParameters/{name}"));
            assert!(faults[0].message.contains("of the worker's machine into the cluster"), "{faults:?}");
        }
        for (name, value) in [
            ("--files", "hdfs:///a#b,s3a://bucket/a"),
            ("--jars", "local:///opt/spark/a.jar"),
            ("spark.yarn.jars", "local:/opt/spark/jars/*"),
        ] {
            assert!(line_of(json!({ name: value }), "").is_ok(), "{name} {value}");
        }
        // What the operator says counts, and is the operator's to know.
        assert!(line_of(json!({}), "[defaults]\n\"--jars\" = \"/opt/a.jar\"\n").is_ok());
        assert!(line_of(json!({"--jars": "/a.jar"}), "[force]\n\"--jars\" = \"/opt/a.jar\"\n").is_ok());
        // On the worker's own machine a model can read it anyway.
        let here = job(json!({"--files": "/etc/hosts"}), json!({}));
        assert!(of(&here, &Policy::default(), "local[*]").is_ok());
    }

    #[test]
    fn the_memory_of_a_driver_is_known_in_bytes() {
        let memory = |parameters: serde_json::Value| {
            let line = of(&job(parameters, json!({})), &Policy::default(), "local[*]").unwrap();
            line.driver_memory()
        };
        assert_eq!(memory(json!({"--driver-memory": "512MB"})), Some(512 << 20));
        assert_eq!(memory(json!({"spark.driver.memory": "2g"})), Some(2 << 30));
        assert_eq!(memory(json!({})), None);
    }

    #[test]
    fn every_flag_that_cannot_be_taken_is_named_with_its_place() {
        let faults =
            of(&job(json!({"--class": "x", "--nope": "y"}), json!({})), &Policy::default(), "local[*]")
                .unwrap_err();
        let places: Vec<_> = faults.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!(places, ["/jobParameters/--class", "/jobParameters/--nope"]);
    }
}
