//! The Spark that an operator has: where its spark-submit is, and what environment it is given.
//!
//! Nothing is patched and nothing assumed but that `bin/spark-submit` lies in the folder that it belongs to.
//!
//! This module must not know what is submitted.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::SparkSettings;

/// What of the worker's own environment reaches spark-submit without being named in the settings: what a login shell
/// and the Java and Hadoop tool chains go by. Broker passwords and the worker's own settings are not among it.
const PASSED: [&str; 32] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "LD_LIBRARY_PATH",
    "JAVA_HOME",
    "JRE_HOME",
    "SPARK_HOME",
    "SPARK_CONF_DIR",
    "SPARK_ENV_LOADED",
    "SPARK_LOCAL_IP",
    "SPARK_LOCAL_HOSTNAME",
    "SPARK_LOCAL_DIRS",
    "SPARK_DIST_CLASSPATH",
    "SPARK_SUBMIT_OPTS",
    "SPARK_PUBLIC_DNS",
    "PYSPARK_PYTHON",
    "PYSPARK_DRIVER_PYTHON",
    "HADOOP_HOME",
    "HADOOP_CONF_DIR",
    "HADOOP_USER_NAME",
    "YARN_CONF_DIR",
    "HIVE_CONF_DIR",
    "KRB5_CONFIG",
    "KRB5CCNAME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CONDA_PREFIX",
];

/// A spark-submit that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The program.
    pub submit: PathBuf,
    /// The folder that it belongs to, when it could be told.
    pub home: Option<PathBuf>,
}

/// Why there is no spark-submit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstallationError {
    /// It is not where the settings say.
    #[error("{setting} names {path}, but {reason}")]
    NotThere {
        /// The setting that names it.
        setting: &'static str,
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no Python.
    #[error("there is no {name} on the PATH: set spark.python to the Python that runs drivers")]
    NoPython {
        /// What was looked for.
        name: String,
    },
    /// It is nowhere.
    #[error(
        "no spark-submit was found: set spark.home (or SPARK_HOME) to a Spark installation, or put spark-submit on the PATH"
    )]
    Nowhere,
}

impl Installation {
    /// Finds spark-submit: by the settings `spark.submit` and `spark.home`, then by `SPARK_HOME`, then on the PATH.
    ///
    /// # Errors
    /// [`InstallationError`], with the path that was looked at.
    pub fn find(settings: &SparkSettings) -> Result<Self, InstallationError> {
        let own = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        if let Some(submit) = &settings.submit {
            startable("spark.submit", submit)?;
            let home = settings
                .home
                .clone()
                .or_else(|| own("SPARK_HOME").map(PathBuf::from))
                .or_else(|| home_of(submit));
            return Ok(Self { submit: submit.clone(), home });
        }
        let named = settings.home.clone().map(|home| ("spark.home", home));
        if let Some((setting, home)) =
            named.or_else(|| own("SPARK_HOME").map(|home| ("SPARK_HOME", home.into())))
        {
            let submit = home.join("bin").join("spark-submit");
            startable(setting, &submit)?;
            return Ok(Self { submit, home: Some(home) });
        }
        let path = own("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path)
            .map(|folder| folder.join("spark-submit"))
            .find(|submit| startable("PATH", submit).is_ok());
        let submit = found.ok_or(InstallationError::Nowhere)?;
        Ok(Self { home: home_of(&submit), submit })
    }

    /// What `import pyspark` finds in this installation, as spark-submit puts it on Python's path.
    #[must_use]
    pub fn python_path(&self) -> Vec<PathBuf> {
        let Some(python) = self.home.as_ref().map(|home| home.join("python")) else { return Vec::new() };
        let mut path: Vec<PathBuf> = Vec::new();
        if python.join("pyspark/__init__.py").is_file() {
            path.push(python.clone());
        }
        let archives = std::fs::read_dir(python.join("lib")).into_iter().flatten().flatten();
        path.extend(archives.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("py4j-") && name.ends_with("-src.zip")
        }));
        path
    }

    /// The text of the installation's `spark-defaults.conf`; empty when there is none.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn defaults(&self, environment: &Environment) -> std::io::Result<String> {
        let folder = environment
            .get("SPARK_CONF_DIR")
            .map(PathBuf::from)
            .or_else(|| self.home.as_ref().map(|home| home.join("conf")));
        let Some(folder) = folder else { return Ok(String::new()) };
        match std::fs::read_to_string(folder.join("spark-defaults.conf")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        }
    }
}

/// The file system of paths without a scheme (`fs.defaultFS`) that the Hadoop configuration of an environment names, if
/// it names one.
#[must_use]
pub fn hadoop_file_system(environment: &Environment) -> Option<String> {
    let folder = environment.get("HADOOP_CONF_DIR").or_else(|| environment.get("YARN_CONF_DIR"))?;
    let text = std::fs::read_to_string(Path::new(folder).join("core-site.xml")).ok()?;
    let names = ["fs.defaultFS", "fs.default.name"];
    let property = text
        .split("<property>")
        .skip(1)
        .find(|property| names.iter().any(|name| element(property, "name") == Some(*name)))?;
    element(property, "value").map(str::to_owned)
}

fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text.trim())
}

/// The folder of an installation, by where its spark-submit really lies.
fn home_of(submit: &Path) -> Option<PathBuf> {
    let real = submit.canonicalize().ok()?;
    let home = real.parent()?.parent()?;
    home.join("jars").is_dir().then(|| home.to_owned())
}

fn startable(setting: &'static str, path: &Path) -> Result<(), InstallationError> {
    let fault = |reason: String| InstallationError::NotThere { setting, path: path.to_owned(), reason };
    let metadata = std::fs::metadata(path).map_err(|error| fault(error.to_string()))?;
    if !metadata.is_file() {
        return Err(fault("it is not a file".to_owned()));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(fault("it is not executable".to_owned()));
    }
    Ok(())
}

/// The whole environment of a spark-submit: nothing reaches it that is not in here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The environment by the settings and with the installation that there is: what is passed on of the worker's own, then what the settings add.
    #[must_use]
    pub fn of(settings: &SparkSettings, installation: Option<&Installation>) -> Self {
        let mut environment = Self::default();
        for (name, value) in std::env::vars_os() {
            let wanted = |word: &str| name == *word;
            let locale = name.as_encoded_bytes().starts_with(b"LC_");
            if locale
                || PASSED.iter().any(|word| wanted(word))
                || settings.pass_environment.iter().any(|w| wanted(w))
            {
                environment.set(name, value);
            }
        }
        if let Some(home) = installation.and_then(|installation| installation.home.as_ref()) {
            environment.set("SPARK_HOME", home);
        }
        if let Some(python) = &settings.python {
            environment.set("PYSPARK_PYTHON", python);
            environment.set("PYSPARK_DRIVER_PYTHON", python);
        }
        // The driver's log is read while it is written.
        environment.set("PYTHONUNBUFFERED", "1");
        for (name, value) in &settings.environment {
            environment.set(name, value.expose());
        }
        environment
    }

    /// Sets a variable.
    pub fn set(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) {
        self.0.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
    }

    /// Sets a variable that has no value yet.
    pub fn set_default(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.entry(name.into()).or_insert_with(|| value.as_ref().to_owned());
    }

    /// A variable's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// Every variable with its value.
    #[must_use]
    pub fn pairs(&self) -> Vec<(OsString, OsString)> {
        self.0.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The path of the Python that runs the driver, looked up on the environment's own PATH.
    ///
    /// # Errors
    /// [`InstallationError`], with what was looked for.
    pub fn python_program(&self) -> Result<PathBuf, InstallationError> {
        let python = Path::new(self.python());
        if python.components().count() > 1 {
            return startable("spark.python", python).map(|()| python.to_owned());
        }
        let path = self.get("PATH").unwrap_or_default();
        let found = std::env::split_paths(path)
            .map(|folder| folder.join(python))
            .find(|program| startable("PATH", program).is_ok());
        found.ok_or_else(|| InstallationError::NoPython { name: python.display().to_string() })
    }

    /// The Python that runs the driver.
    #[must_use]
    pub fn python(&self) -> &OsStr {
        self.get("PYSPARK_DRIVER_PYTHON")
            .or_else(|| self.get("PYSPARK_PYTHON"))
            .unwrap_or(OsStr::new("python3"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_of_an_installation_are_found_where_spark_submit_finds_them() {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().to_owned();
        let installation = Installation { submit: home.join("bin/spark-submit"), home: Some(home.clone()) };
        assert_eq!(installation.python_path(), Vec::<PathBuf>::new());
        std::fs::create_dir_all(home.join("python/lib")).unwrap();
        std::fs::create_dir_all(home.join("python/pyspark")).unwrap();
        std::fs::write(home.join("python/lib/py4j-0.10.9.9-src.zip"), "").unwrap();
        std::fs::write(home.join("python/lib/PY4J_LICENSE.txt"), "").unwrap();
        // As pip installs it: the package itself lies elsewhere.
        assert_eq!(installation.python_path(), [home.join("python/lib/py4j-0.10.9.9-src.zip")]);
        std::fs::write(home.join("python/pyspark/__init__.py"), "").unwrap();
        assert_eq!(
            installation.python_path(),
            [home.join("python"), home.join("python/lib/py4j-0.10.9.9-src.zip")]
        );
    }

    #[test]
    fn a_bare_python_is_looked_up_on_the_path_that_it_gets() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("python-of-ours");
        std::fs::write(&program, "").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut environment = Environment::default();
        environment.set("PYSPARK_PYTHON", "python-of-ours");
        let missing = environment.python_program().unwrap_err().to_string();
        assert!(missing.starts_with("there is no python-of-ours on the PATH"), "{missing}");
        environment.set("PATH", format!("/no/such:{}", place.path().display()));
        assert_eq!(environment.python_program(), Ok(program.clone()));
        environment.set("PYSPARK_DRIVER_PYTHON", place.path().join("gone"));
        assert!(environment.python_program().is_err());
    }

    #[test]
    fn hadoops_own_configuration_says_where_bare_paths_lead() {
        let place = tempfile::tempdir().unwrap();
        let mut environment = Environment::default();
        assert_eq!(hadoop_file_system(&environment), None);
        environment.set("HADOOP_CONF_DIR", place.path());
        assert_eq!(hadoop_file_system(&environment), None);
        let xml = "<configuration>\n<property><name>a</name><value>b</value></property>\n<property>\n  <name>fs.defaultFS</name>\n  <value> hdfs://n:8020 </value>\n</property></configuration>";
        std::fs::write(place.path().join("core-site.xml"), xml).unwrap();
        assert_eq!(hadoop_file_system(&environment).as_deref(), Some("hdfs://n:8020"));
    }
}
