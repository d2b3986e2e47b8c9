//! What a job may ask of spark-submit: the flags that are known and their shapes, what is never allowed, and the
//! operator's own rules.
//!
//! A flag and the Spark property that it stands for (`--executor-memory`, `spark.executor.memory`) are one thing here:
//! a rule for one holds for the other.
//!
//! This module must not know how the command line is put together, nor where files lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The operator's rules, from the file that `spark.policy` names.
///
/// ```toml
/// allow = ["*"]                               # what a job may set; flags or properties, `*` stands for anything
/// deny = ["--packages", "spark.hadoop.fs.*"]  # what it may not; wins over allow
/// [defaults]                                  # set where the job says nothing
/// "spark.driver.memory" = "1g"
/// [force]                                     # set whatever the job says
/// "spark.master" = "spark://master:7077"
/// [identity]                                  # as whom a job may run; without it as the worker's user alone
/// proxy_users = ["ann", "team-*"]             # for --proxy-user
/// [identity.keytabs]                          # for --principal, each with its keytab on the worker's machine
/// "etl@EXAMPLE.COM" = "/etc/security/etl.keytab"
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    #[serde(default = "everything")]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
    #[serde(default)]
    defaults: BTreeMap<String, String>,
    #[serde(default)]
    force: BTreeMap<String, String>,
    #[serde(default)]
    identity: IdentityRules,
}

/// As whom jobs may run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityRules {
    /// Users that a job may name, with `*` for anything.
    #[serde(default)]
    proxy_users: Vec<String>,
    /// Principals that a job may name, each with its keytab.
    #[serde(default)]
    keytabs: BTreeMap<String, PathBuf>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allow: everything(),
            deny: Vec::new(),
            defaults: BTreeMap::new(),
            force: BTreeMap::new(),
            identity: IdentityRules::default(),
        }
    }
}

fn everything() -> Vec<String> {
    vec!["*".to_owned()]
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("the policy file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The worker's own master is none.
    #[error("the setting spark.master: {0}")]
    Master(String),
    /// The file is no policy.
    #[error("the policy file {path} is not valid: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why, with line and column.
        reason: String,
    },
}

impl Policy {
    /// Reads the operator's file.
    ///
    /// # Errors
    /// [`PolicyError`], also when a rule is for a flag that nobody knows.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        let parse = |reason: String| PolicyError::Parse { path: path.to_owned(), reason };
        let policy: Self = toml::from_str(&text).map_err(|error| parse(error.to_string()))?;
        for (name, value) in policy.defaults.iter().chain(&policy.force) {
            Setting::read(name, value).map_err(|fault| parse(format!("{name}: {fault}")))?;
        }
        for (name, keytab) in &policy.identity.keytabs {
            Setting::read("--principal", name).map_err(|fault| parse(format!("keytabs: {fault}")))?;
            if !keytab.is_absolute() {
                return Err(parse(format!("keytabs: {} is no absolute path", keytab.display())));
            }
        }
        Ok(policy)
    }

    /// Whether a job may set `setting`.
    ///
    /// # Errors
    /// The rule that forbids it, in words.
    pub fn judge(&self, setting: &Setting) -> Result<(), String> {
        if let Some(pattern) = self.deny.iter().find(|pattern| setting.matches(pattern)) {
            return Err(format!("is denied by the operator's policy (deny {pattern:?})"));
        }
        if !self.allow.iter().any(|pattern| setting.matches(pattern)) {
            return Err("is not among what the operator's policy allows".to_owned());
        }
        self.judge_identity(setting)
    }

    /// Nobody runs as somebody else whom the operator has not named, and no job says where keytabs lie.
    fn judge_identity(&self, setting: &Setting) -> Result<(), String> {
        let name = setting.value();
        let rules = &self.identity;
        match setting.identity() {
            PROXY_USER if !rules.proxy_users.iter().any(|pattern| glob(pattern, name)) => Err(format!(
                "asks to run as {name:?}, whom the operator's policy does not name (identity.proxy_users in the file of \
                 spark.policy); leave it out to run as the worker's user"
            )),
            PRINCIPAL if !rules.keytabs.contains_key(name) => Err(format!(
                "asks to run as {name:?}, of whom the operator's policy names no keytab (identity.keytabs in the file of \
                 spark.policy); leave it out to run as the worker's user"
            )),
            KEYTAB => Err(
                "names a file of the worker's machine; give --principal alone, whose keytab the operator's policy names"
                    .to_owned(),
            ),
            _ if names_user(setting) => Err(format!(
                "would have Hadoop take the job for another user than whom it is run for ({}); give --proxy-user, for whom the \
                 operator's policy says, or leave it out to run as the worker's user",
                USER_WORDS.join(", ")
            )),
            _ => Ok(()),
        }
    }

    /// The keytab of a principal that jobs may name.
    #[must_use]
    pub fn keytab_of(&self, principal: &str) -> Option<&Path> {
        self.identity.keytabs.get(principal).map(PathBuf::as_path)
    }

    /// What is set where a job says nothing.
    pub fn defaults(&self) -> impl Iterator<Item = Setting> {
        self.defaults.iter().filter_map(|(name, value)| Setting::read(name, value).ok())
    }

    /// What is set whatever a job says.
    pub fn forced(&self) -> impl Iterator<Item = Setting> {
        self.force.iter().filter_map(|(name, value)| Setting::read(name, value).ok())
    }
}

/// What a flag's value has to look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Anything that is not empty.
    Text,
    /// A whole number from 1.
    Count,
    /// A number with an optional unit, as `512m` or `512MB`.
    Memory,
    /// No value at all.
    Bare,
    /// A master that this version runs on.
    Master,
    /// `client` or `cluster`.
    DeployMode,
    /// Tags of YARN's, with commas in between.
    Tags,
    /// A user or a principal.
    User,
    /// Not for a job to set, and why.
    Refused(&'static str),
}

const TRACKING: &str = "would break the following of the job; leave it out";
const ISOLATION: &str = "names files of the worker's machine; give the properties themselves";
const OLD_IDENTITY: &str =
    "is the old name of spark.kerberos.principal and spark.kerberos.keytab; give --principal";
/// As whom a job runs, by the right of the worker's user to act for others.
pub const PROXY_USER: &str = "--proxy-user";
/// As whom a job runs that has a login of its own, and the file with that.
pub const PRINCIPAL: &str = "spark.kerberos.principal";
/// See [`PRINCIPAL`].
pub const KEYTAB: &str = "spark.kerberos.keytab";
/// The variables from which Hadoop and Spark learn who somebody is. Hadoop takes the first two as properties of the JVM too.
const USER_WORDS: [&str; 3] = ["HADOOP_PROXY_USER", "HADOOP_USER_NAME", "SPARK_USER"];
/// What all properties begin with that are variables of a driver or an executor.
const VARIABLES: [&str; 3] =
    ["spark.executorEnv.", "spark.yarn.appMasterEnv.", "spark.kubernetes.driverEnv."];
/// What all properties end with that are options of a JVM: of the driver, the executors or YARN's master.
const JAVA_OPTIONS: &str = "JavaOptions";
const CLUSTER_MODE: &str =
    "restarts a driver that has failed, which is for this service to decide; leave it out";
const CREDENTIALS: &str = "is how the worker itself gets into Kubernetes; see its settings kubernetes.context and spark.environment.KUBECONFIG";
/// What all properties begin with that are credentials of spark-submit's own.
const SUBMISSION_CREDENTIALS: &str = "spark.kubernetes.authenticate.submission.";
/// What all labels of this service's own on a driver's pod begin with.
const OWN_LABELS: &str = "spark.kubernetes.driver.label.spark-runtime/";
const NO_RUN: &str = "does something other than run a job; leave it out";

/// Every flag of spark-submit 3.x and 4.x, the property it stands for, and its shape.
const FLAGS: [(&str, Option<&str>, Shape); 37] = [
    ("--master", Some("spark.master"), Shape::Master),
    ("--deploy-mode", Some("spark.submit.deployMode"), Shape::DeployMode),
    ("--name", Some("spark.app.name"), Shape::Text),
    ("--jars", Some("spark.jars"), Shape::Text),
    ("--packages", Some("spark.jars.packages"), Shape::Text),
    ("--exclude-packages", Some("spark.jars.excludes"), Shape::Text),
    ("--repositories", Some("spark.jars.repositories"), Shape::Text),
    ("--py-files", Some("spark.submit.pyFiles"), Shape::Text),
    ("--files", Some("spark.files"), Shape::Text),
    ("--archives", Some("spark.archives"), Shape::Text),
    ("--driver-memory", Some("spark.driver.memory"), Shape::Memory),
    ("--driver-java-options", Some("spark.driver.extraJavaOptions"), Shape::Text),
    ("--driver-library-path", Some("spark.driver.extraLibraryPath"), Shape::Text),
    ("--driver-class-path", Some("spark.driver.extraClassPath"), Shape::Text),
    ("--driver-default-class-loader", None, Shape::Bare),
    ("--driver-cores", Some("spark.driver.cores"), Shape::Count),
    ("--executor-memory", Some("spark.executor.memory"), Shape::Memory),
    ("--executor-cores", Some("spark.executor.cores"), Shape::Count),
    ("--total-executor-cores", Some("spark.cores.max"), Shape::Count),
    ("--num-executors", Some("spark.executor.instances"), Shape::Count),
    ("--queue", Some("spark.yarn.queue"), Shape::Text),
    ("--verbose", None, Shape::Bare),
    ("-v", None, Shape::Bare),
    ("--load-spark-defaults", None, Shape::Bare),
    ("--supervise", Some("spark.driver.supervise"), Shape::Refused(CLUSTER_MODE)),
    ("--class", None, Shape::Refused("names a JVM program; a job here is Python")),
    ("--properties-file", None, Shape::Refused(ISOLATION)),
    (PROXY_USER, None, Shape::User),
    ("--principal", Some(PRINCIPAL), Shape::User),
    ("--keytab", Some(KEYTAB), Shape::Text),
    (
        "--remote",
        Some("spark.remote"),
        Shape::Refused("is for Spark Connect, which this version does not support"),
    ),
    ("--kill", None, Shape::Refused(NO_RUN)),
    ("--status", None, Shape::Refused(NO_RUN)),
    ("--version", None, Shape::Refused(NO_RUN)),
    ("--help", None, Shape::Refused(NO_RUN)),
    ("-h", None, Shape::Refused(NO_RUN)),
    ("--usage-error", None, Shape::Refused(NO_RUN)),
];

/// Properties without a flag that are not for a job to set.
const PROPERTIES: [(&str, Shape); 11] = [
    ("spark.yarn.principal", Shape::Refused(OLD_IDENTITY)),
    ("spark.yarn.keytab", Shape::Refused(OLD_IDENTITY)),
    ("spark.yarn.submit.waitAppCompletion", Shape::Refused(TRACKING)),
    ("spark.kubernetes.submission.waitAppCompletion", Shape::Refused(TRACKING)),
    ("spark.standalone.submit.waitAppCompletion", Shape::Refused(TRACKING)),
    ("spark.yarn.maxAppAttempts", Shape::Refused(TRACKING)),
    ("spark.kubernetes.driver.pod.name", Shape::Refused(TRACKING)),
    ("spark.kubernetes.file.upload.path", Shape::Refused(TRACKING)),
    ("spark.kubernetes.context", Shape::Refused(CREDENTIALS)),
    ("spark.kubernetes.trust.certificates", Shape::Refused(CREDENTIALS)),
    ("spark.yarn.tags", Shape::Tags),
];

/// One flag or property with its value, known to have the right shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The flag, when it was given as one or has no property.
    flag: Option<&'static str>,
    /// The property that it is or stands for.
    property: Option<String>,
    value: String,
}

impl Setting {
    /// Takes a key of `jobParameters`, `targetEngine.sparkConf` or a policy with its value.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(name: &str, value: &str) -> Result<Self, String> {
        if value.contains('\0') || name.contains('\0') {
            return Err("has a NUL character".to_owned());
        }
        if matches!(name, "--conf" | "-c") {
            let (property, value) =
                value.split_once('=').ok_or("gives no property; write it as name=value")?;
            return Self::read_property(property.trim(), value);
        }
        if name.starts_with("spark.") {
            return Self::read_property(name, value);
        }
        if !name.starts_with('-') {
            return Err("is neither a flag of spark-submit (--…) nor a Spark property (spark.…)".to_owned());
        }
        let Some((flag, property, shape)) = FLAGS.iter().find(|(flag, _, _)| *flag == name) else {
            return Err(format!("is no flag of spark-submit{}", nearest(name)));
        };
        let value = shape.check(value)?;
        Ok(Self { flag: Some(flag), property: property.map(str::to_owned), value })
    }

    fn read_property(name: &str, value: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_graphic() && c != '=';
        if !name.starts_with("spark.") || name.len() == "spark.".len() || !name.chars().all(plain) {
            return Err(format!("{name:?} is no Spark property; their names start with spark."));
        }
        if name.starts_with(SUBMISSION_CREDENTIALS) {
            return Err(CREDENTIALS.to_owned());
        }
        if name.starts_with(OWN_LABELS) {
            return Err(TRACKING.to_owned());
        }
        let of_flags = FLAGS.iter().filter_map(|(_, property, shape)| Some(((*property)?, *shape)));
        let known = of_flags.chain(PROPERTIES).find(|(property, _)| *property == name);
        let value = match known {
            Some((_, shape)) => shape.check(value)?,
            None => value.to_owned(),
        };
        Ok(Self { flag: None, property: Some(name.to_owned()), value })
    }

    /// The name under which two settings are the same: the property, else the flag.
    #[must_use]
    pub fn identity(&self) -> &str {
        self.property.as_deref().or(self.flag).unwrap_or_default()
    }

    /// The value; empty for a bare flag.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The flag, when it was given as one.
    #[must_use]
    pub fn flag(&self) -> Option<&'static str> {
        self.flag
    }

    /// Whether the value must not stand where other users of the machine can read it. The words are those by which
    /// Spark itself redacts (`spark.redaction.regex`).
    #[must_use]
    pub fn is_secret(&self) -> bool {
        let name = self.identity().to_ascii_lowercase();
        ["secret", "password", "token", "access.key", "accesskey", "credential"]
            .iter()
            .any(|word| name.contains(word))
            || name.ends_with(".key")
    }

    fn matches(&self, pattern: &str) -> bool {
        let names = [self.flag, self.property.as_deref()];
        let standing_for =
            FLAGS.iter().find(|(_, property, _)| property.is_some() && *property == self.property.as_deref());
        names
            .into_iter()
            .flatten()
            .chain(standing_for.map(|(flag, _, _)| *flag))
            .any(|name| glob(pattern, name))
    }
}

/// Whether a driver or an executor would learn by it who it is, past what the policy says of that.
fn names_user(setting: &Setting) -> bool {
    // Whoever takes options apart drops these.
    let plain = setting.value().replace(['"', '\'', '\\'], "");
    let of_jvm = |text: &str| USER_WORDS[..2].iter().any(|word| text.contains(word));
    if setting.identity().ends_with(JAVA_OPTIONS) {
        // What stands in a file of options is not seen here.
        let from_file = |option: &str| option.starts_with('@') || option.starts_with("-XX:VMOptionsFile");
        return of_jvm(&plain) || plain.split_whitespace().any(from_file);
    }
    let variable = VARIABLES.iter().find_map(|prefix| setting.identity().strip_prefix(prefix));
    // A JVM takes options from variables as well.
    variable.is_some_and(|name| USER_WORDS.contains(&name.trim()) || of_jvm(&plain))
}

/// Whether `name` is what `pattern` stands for; `*` stands for any run of characters.
fn glob(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| name.strip_prefix(head)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(found) = rest.find(part) else { return false };
        rest = &rest[found + part.len()..];
    }
    true
}

fn nearest(name: &str) -> String {
    let best = FLAGS
        .iter()
        .filter(|(_, _, shape)| !matches!(shape, Shape::Refused(_)))
        .map(|(flag, _, _)| (strsim::damerau_levenshtein(name, flag), *flag))
        .min();
    match best {
        Some((distance, flag)) if distance <= 3 => format!("; did you mean {flag}?"),
        _ => String::new(),
    }
}

impl Shape {
    fn check(self, value: &str) -> Result<String, String> {
        match self {
            Self::Refused(reason) => Err(reason.to_owned()),
            Self::Bare if value.is_empty() => Ok(String::new()),
            Self::Bare => Err(format!("takes no value; give \"\" instead of {value:?}")),
            _ if value.trim().is_empty() => Err("needs a value".to_owned()),
            Self::Text => Ok(value.to_owned()),
            Self::User => {
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-@/$".contains(c);
                if value.chars().all(is_plain) && !value.starts_with('-') {
                    return Ok(value.to_owned());
                }
                Err(format!("{value:?} is no user; those have letters, digits and any of _ . - @ / $"))
            }
            Self::Count => match value.parse::<u32>() {
                Ok(1..) => Ok(value.to_owned()),
                _ => Err(format!("{value:?} is not a whole number from 1")),
            },
            Self::Memory => memory(value),
            Self::Master => master(value),
            Self::DeployMode if ["client", "cluster"].contains(&value) => Ok(value.to_owned()),
            Self::DeployMode => Err(format!("{value:?} is no deploy mode; give client or cluster")),
            Self::Tags => tags(value),
        }
    }
}

/// The longest tag that YARN takes, in characters (`YarnConfiguration.APPLICATION_MAX_TAG_LENGTH`).
const LONGEST_TAG: usize = 100;

/// YARN takes printable ASCII alone, and makes it lower case.
fn tags(value: &str) -> Result<String, String> {
    let is_tag = |tag: &str| {
        (1..=LONGEST_TAG).contains(&tag.len()) && tag.bytes().all(|byte| (b' '..=b'~').contains(&byte))
    };
    match value.split(',').find(|tag| !is_tag(tag.trim())) {
        None => Ok(value.split(',').map(str::trim).collect::<Vec<_>>().join(",")),
        Some(bad) => Err(format!("{bad:?} is no tag; those have 1 to {LONGEST_TAG} characters of ASCII")),
    }
}

/// `512MB` is what jobs say and `512m` what the JVM takes on its command line, where `--driver-memory` ends up.
fn memory(value: &str) -> Result<String, String> {
    let lower = value.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &lower[digits.len()..];
    let number: u64 = digits.parse().unwrap_or(0);
    let short = match unit {
        "b" => return bytes(number).ok_or_else(|| format!("{value:?} is less than a megabyte")),
        // spark-submit takes a bare number as megabytes.
        "" | "m" | "mb" => "m",
        "k" | "kb" => "k",
        "g" | "gb" => "g",
        "t" | "tb" => "t",
        _ => "",
    };
    if number == 0 || short.is_empty() {
        return Err(format!("{value:?} is no amount of memory; give for example 512m or 2g"));
    }
    Ok(format!("{number}{short}"))
}

fn bytes(number: u64) -> Option<String> {
    (number >= 1 << 20).then(|| format!("{}m", number >> 20))
}

/// Where a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Master {
    /// In one process on the worker's machine.
    Local,
    /// On a standalone cluster, with the driver on the worker's machine.
    Standalone,
    /// On YARN, with the driver on the worker's machine.
    Yarn,
    /// On Kubernetes.
    Kubernetes,
}

impl Master {
    /// Whether executors may be on other machines, which see nothing of this one's files.
    #[must_use]
    pub fn has_executors_elsewhere(self) -> bool {
        match self {
            // Threads of the driver's JVM, whose Python starts in its directory.
            Self::Local => false,
            Self::Standalone | Self::Yarn | Self::Kubernetes => true,
        }
    }

    /// The kind of master that a value of `--master` names; `None` for one that this version does not run on.
    #[must_use]
    pub fn of(value: &str) -> Option<Self> {
        if value.starts_with("spark://") && value.len() > "spark://".len() {
            return Some(Self::Standalone);
        }
        if value == "yarn" {
            return Some(Self::Yarn);
        }
        if kubernetes_server(value).is_some() {
            return Some(Self::Kubernetes);
        }
        let rest = value.strip_prefix("local")?;
        if rest.is_empty() {
            return Some(Self::Local);
        }
        let inside = rest.strip_prefix('[')?.strip_suffix(']')?;
        let (threads, failures) = inside.split_once(',').map_or((inside, "1"), |(n, f)| (n.trim(), f.trim()));
        let count = |text: &str| matches!(text.parse::<u32>(), Ok(1..));
        ((threads == "*" || count(threads)) && count(failures)).then_some(Self::Local)
    }
}

/// The API server of a Kubernetes master, as `https://host:port`. Spark takes one without a scheme for one with TLS.
#[must_use]
pub fn kubernetes_server(master: &str) -> Option<String> {
    let address = master.strip_prefix("k8s://")?;
    let (scheme, rest) = address.split_once("://").unwrap_or(("https", address));
    let is_address = !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic() && !"@?#,\\".contains(c));
    (matches!(scheme, "http" | "https") && is_address)
        .then(|| format!("{scheme}://{}", rest.trim_end_matches('/')))
}

fn master(value: &str) -> Result<String, String> {
    if Master::of(value).is_some() {
        return Ok(value.to_owned());
    }
    if value.starts_with("yarn-") || value.starts_with("mesos:") {
        return Err(format!(
            "{value:?} is a kind of cluster that this version does not run on; use local[*], spark://, yarn or k8s://"
        ));
    }
    Err(format!(
        "{value:?} is no master; give local[*], local[2], spark://host:7077, yarn or k8s://https://host:port"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(name: &str, value: &str) -> String {
        Setting::read(name, value).unwrap_err()
    }

    #[test]
    fn flags_that_break_tracking_or_isolation_are_refused_in_either_spelling() {
        for (name, value) in [
            ("--class", "x"),
            ("--deploy-mode", "Cluster"),
            ("spark.submit.deployMode", "there"),
            ("spark.yarn.maxAppAttempts", "2"),
            ("--properties-file", "/etc/x"),
            ("--proxy-user", "--class"),
            ("--principal", "a b@R"),
            ("spark.yarn.principal", "a@R"),
            ("spark.yarn.tags", "x,,y"),
            ("spark.yarn.tags", "ü"),
            ("spark.yarn.submit.waitAppCompletion", "false"),
            ("--conf", "spark.kubernetes.submission.waitAppCompletion=false"),
            ("--master", "yarn-cluster"),
            ("spark.master", "k8s://"),
            ("--master", "k8s://ftp://host"),
            ("--master", "k8s://https://user:word@host"),
            ("spark.kubernetes.driver.pod.name", "mine"),
            ("spark.kubernetes.file.upload.path", "/tmp"),
            ("spark.kubernetes.context", "other"),
            ("spark.kubernetes.authenticate.submission.oauthToken", "x"),
            ("spark.kubernetes.driver.label.spark-runtime/ticket", "x"),
            ("--kill", "x"),
        ] {
            assert!(Setting::read(name, value).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn a_flag_of_the_wrong_shape_is_told_what_is_wanted() {
        assert_eq!(
            fault("--executor-memory", "lots"),
            "\"lots\" is no amount of memory; give for example 512m or 2g"
        );
        assert_eq!(fault("--executor-cores", "0"), "\"0\" is not a whole number from 1");
        assert_eq!(fault("-v", "1"), "takes no value; give \"\" instead of \"1\"");
        assert_eq!(
            fault("--executor-memry", "1g"),
            "is no flag of spark-submit; did you mean --executor-memory?"
        );
        assert_eq!(
            fault("memory", "1g"),
            "is neither a flag of spark-submit (--…) nor a Spark property (spark.…)"
        );
        assert_eq!(fault("--conf", "x"), "gives no property; write it as name=value");
        assert_eq!(fault("--name", ""), "needs a value");
    }

    #[test]
    fn memory_as_jobs_write_it_becomes_memory_as_the_jvm_reads_it() {
        for (written, read) in
            [("512MB", "512m"), ("2g", "2g"), ("1 g", ""), ("1024", "1024m"), ("2147483648b", "2048m")]
        {
            assert_eq!(memory(written).unwrap_or_default(), read, "{written}");
        }
    }

    #[test]
    fn a_rule_for_a_flag_holds_for_its_property_and_the_other_way_round() {
        let policy: Policy = toml::from_str(r#"deny = ["--packages", "spark.executor.*"]"#).unwrap();
        for (name, value) in
            [("--packages", "a:b:1"), ("spark.jars.packages", "a:b:1"), ("--executor-memory", "1g")]
        {
            assert!(
                policy.judge(&Setting::read(name, value).unwrap()).unwrap_err().contains("denied"),
                "{name}"
            );
        }
        assert!(policy.judge(&Setting::read("--driver-memory", "1g").unwrap()).is_ok());
        let policy: Policy = toml::from_str(r#"allow = ["--executor-*"]"#).unwrap();
        assert!(policy.judge(&Setting::read("spark.executor.memory", "1g").unwrap()).is_ok());
        assert!(policy.judge(&Setting::read("spark.executor.pyspark.memory", "1g").unwrap()).is_err());
    }

    #[test]
    fn a_job_runs_as_those_alone_whom_the_operator_names() {
        let judged = |policy: &str, name: &str, value: &str| {
            let policy: Policy = toml::from_str(policy).unwrap();
            policy.judge(&Setting::read(name, value).unwrap())
        };
        let rules =
            "[identity]\nproxy_users = [\"ann\", \"team-*\"]\n[identity.keytabs]\n\"etl@R\" = \"/k\"\n";
        for (name, value) in [
            ("--proxy-user", "ann"),
            ("--proxy-user", "team-1"),
            ("--principal", "etl@R"),
            ("spark.kerberos.principal", "etl@R"),
        ] {
            assert_eq!(judged(rules, name, value), Ok(()), "{name} {value}");
            let fault = judged("", name, value).unwrap_err();
            assert!(fault.contains("in the file of spark.policy"), "{fault}");
        }
        assert!(
            judged(rules, "--proxy-user", "bob")
                .unwrap_err()
                .contains("\"bob\", whom the operator's policy does not")
        );
        assert!(judged(rules, "--principal", "etl@S").unwrap_err().contains("names no keytab"));
        for name in ["--keytab", "spark.kerberos.keytab"] {
            assert!(judged(rules, name, "/k").unwrap_err().contains("give --principal alone"));
        }
        let denied = format!("deny = [\"--proxy-user\"]\n{rules}");
        assert!(judged(&denied, "--proxy-user", "ann").unwrap_err().contains("denied"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, "[identity.keytabs]\n\"a@R\" = \"relative\"\n").unwrap();
        assert!(Policy::load(&path).unwrap_err().to_string().contains("no absolute path"));
    }

    #[test]
    fn no_option_and_no_variable_says_as_whom_a_job_runs() {
        let policy: Policy = toml::from_str("[identity]\nproxy_users = [\"ann\"]\n").unwrap();
        let judged = |name: &str, value: &str| policy.judge(&Setting::read(name, value).unwrap());
        for (name, value) in [
            ("--driver-java-options", "-Xss4m -DHADOOP_PROXY_USER=bob"),
            ("--driver-java-options", "-DHADOOP_\"PROXY\"_USER=bob"),
            ("--driver-java-options", "-DHADOOP_PROXY\\_USER=bob"),
            ("--driver-java-options", "-Xss4m @options.txt"),
            ("spark.driver.extraJavaOptions", "-DHADOOP_USER_NAME=bob"),
            ("spark.driver.extraJavaOptions", "-XX:VMOptionsFile=options.txt"),
            ("spark.driver.defaultJavaOptions", "-DHADOOP_USER_NAME=ann"),
            ("spark.executor.extraJavaOptions", "-DHADOOP_USER_NAME=bob"),
            ("spark.executor.defaultJavaOptions", "-DHADOOP_USER_NAME=bob"),
            ("spark.yarn.am.extraJavaOptions", "-DHADOOP_USER_NAME=bob"),
            ("--conf", "spark.executorEnv.HADOOP_USER_NAME=bob"),
            ("spark.executorEnv.SPARK_USER", "bob"),
            ("spark.yarn.appMasterEnv.HADOOP_PROXY_USER", "bob"),
            ("spark.yarn.appMasterEnv.JAVA_TOOL_OPTIONS", "-DHADOOP_PROXY_USER=bob"),
            ("spark.kubernetes.driverEnv.HADOOP_USER_NAME", "bob"),
        ] {
            let fault = judged(name, value).unwrap_err();
            assert!(fault.contains("give --proxy-user"), "{name} {value}: {fault}");
        }
        for (name, value) in [
            ("--driver-java-options", "-Xss4m -Duser.name=x -Dmail=a@b"),
            ("spark.executorEnv.HADOOP_HOME", "/opt/hadoop"),
            ("spark.yarn.appMasterEnv.JAVA_TOOL_OPTIONS", "-Xss4m"),
            ("spark.app.name", "what HADOOP_USER_NAME is for"),
        ] {
            assert_eq!(judged(name, value), Ok(()), "{name} {value}");
        }
    }

    #[test]
    fn properties_that_hold_secrets_are_known_by_their_names() {
        let secret = |name: &str| Setting::read(name, "x").unwrap().is_secret();
        assert!(secret("spark.hadoop.fs.s3a.secret.key"));
        assert!(secret("spark.hadoop.fs.s3a.access.key"));
        assert!(secret("spark.ssl.keyPassword"));
        assert!(secret("spark.my.Token"));
        assert!(!secret("spark.sql.shuffle.partitions"));
    }

    #[test]
    fn a_pattern_matches_as_a_reader_would_expect() {
        for (pattern, name, expected) in [
            ("*", "spark.a", true),
            ("spark.*", "spark.a.b", true),
            ("spark.*.b", "spark.a.b", true),
            ("spark.*.b", "spark.a.c", false),
            ("--x", "--xy", false),
            ("*memory", "spark.driver.memory", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn masters_that_this_version_runs_on_are_told_from_others() {
        for local in ["local", "local[*]", "local[4]", "local[2,3]", "local[*, 2]"] {
            assert_eq!(Master::of(local), Some(Master::Local), "{local}");
        }
        assert_eq!(Master::of("spark://h:7077"), Some(Master::Standalone));
        assert_eq!(Master::of("yarn"), Some(Master::Yarn));
        for (master, server) in [
            ("k8s://https://10.0.0.1:6443", "https://10.0.0.1:6443"),
            ("k8s://api.example.org", "https://api.example.org"),
            ("k8s://http://127.0.0.1:8001/", "http://127.0.0.1:8001"),
        ] {
            assert_eq!(Master::of(master), Some(Master::Kubernetes), "{master}");
            assert_eq!(kubernetes_server(master).as_deref(), Some(server));
        }
        for other in ["local[0]", "local[x]", "localhost", "yarn-client", "YARN", "", "spark://", "local["] {
            assert_eq!(Master::of(other), None, "{other}");
        }
    }
}
