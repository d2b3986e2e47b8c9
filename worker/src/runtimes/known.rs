//! What is installed where: each Python is asked once, and again when the folders that it looks into have changed.
//!
//! This module must not know what a runtime is for.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use pep440_rs::Version;
use pep508_rs::{
    ExtraName, MarkerEnvironment, MarkerEnvironmentBuilder, PackageName, Requirement, VerbatimUrl,
    VersionOrUrl,
};
use serde::Deserialize;

use crate::program::{Program, ProgramError};

/// Asks a Python what it is and what it has. Its argument is the Spark installation, whose `pyspark` every driver gets.
const ASK: &str = include_str!("ask.py");
/// How long a Python may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer, in bytes.
const LONGEST_ANSWER: u64 = 32 << 20;
/// Extras that need extras that need extras end here.
const DEEPEST: usize = 16;

/// Why nothing is known of a Python.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// It did not answer as it was asked to.
    #[error("{python} did not answer: {words}")]
    NoAnswer {
        /// The program.
        python: PathBuf,
        /// What it said.
        words: String,
    },
}

/// An installed package.
#[derive(Debug, Clone)]
struct Installed {
    version: Version,
    /// What it needs, extras included, as it says so.
    requires: Vec<String>,
    /// Where it was installed from, when that was no index.
    url: Option<String>,
}

/// What a Python is and has.
#[derive(Debug)]
pub struct Known {
    environment: MarkerEnvironment,
    packages: HashMap<PackageName, Installed>,
    /// Where it looks for packages, and when each of these was last changed, in nanoseconds since 1970.
    watched: Vec<(PathBuf, Option<u128>)>,
    /// The version of the Spark installation's `pyspark`.
    spark: Option<Version>,
}

#[derive(Deserialize)]
struct Answer {
    markers: HashMap<String, String>,
    packages: Vec<AnsweredPackage>,
    folders: Vec<(PathBuf, Option<u128>)>,
    spark: Option<String>,
}

#[derive(Deserialize)]
struct AnsweredPackage {
    name: String,
    version: String,
    requires: Vec<String>,
    url: Option<String>,
}

/// Why a requirement is not met, in a few words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// The package is not there.
    None,
    /// It is there in another version.
    Version(String),
    /// It came from somewhere else.
    Elsewhere,
    /// One of its extras lacks this.
    Extra(String),
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("has none"),
            Self::Version(version) => write!(f, "has {version}"),
            Self::Elsewhere => f.write_str("has it from elsewhere"),
            Self::Extra(what) => write!(f, "lacks {what} for its extras"),
        }
    }
}

impl Known {
    /// Asks `python`, in the environment in which drivers run.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(
        python: &Path,
        environment: Vec<(OsString, OsString)>,
        spark_home: Option<&Path>,
    ) -> Result<Self, AskError> {
        let home = spark_home.map(|home| home.as_os_str().to_owned()).unwrap_or_default();
        let program = Program {
            program: python.to_owned(),
            arguments: vec!["-B".into(), "-c".into(), ASK.into(), home],
            environment,
            directory: "/".into(),
            input: Vec::new(),
            most_output: LONGEST_ANSWER,
            largest_file: None,
            most_memory: None,
            deadline: Instant::now() + PATIENCE,
            held: None,
        };
        let done = program.run().await?;
        let no_answer = |words: String| AskError::NoAnswer { python: python.to_owned(), words };
        if !done.status.success() {
            return Err(no_answer(done.words()));
        }
        let answer: Answer =
            serde_json::from_slice(&done.output).map_err(|error| no_answer(error.to_string()))?;
        Self::of(answer).map_err(no_answer)
    }

    fn of(answer: Answer) -> Result<Self, String> {
        let marker = |name: &str| answer.markers.get(name).map_or("", String::as_str);
        let environment = MarkerEnvironment::try_from(MarkerEnvironmentBuilder {
            implementation_name: marker("implementation_name"),
            implementation_version: marker("implementation_version"),
            os_name: marker("os_name"),
            platform_machine: marker("platform_machine"),
            platform_python_implementation: marker("platform_python_implementation"),
            platform_release: marker("platform_release"),
            platform_system: marker("platform_system"),
            platform_version: marker("platform_version"),
            python_full_version: marker("python_full_version"),
            python_version: marker("python_version"),
            sys_platform: marker("sys_platform"),
        })
        .map_err(|error| error.to_string())?;
        let mut packages = HashMap::new();
        for package in answer.packages {
            // What has no name or version by the rules cannot be asked for by them.
            let (Ok(name), Ok(version)) =
                (PackageName::from_str(&package.name), Version::from_str(&package.version))
            else {
                continue;
            };
            // Of two with one name the first is the one that is imported.
            packages.entry(name).or_insert(Installed {
                version,
                requires: package.requires,
                url: package.url,
            });
        }
        let spark = answer.spark.as_deref().and_then(|version| Version::from_str(version).ok());
        if let (Some(version), Ok(name)) = (&spark, PackageName::from_str("pyspark")) {
            // A driver gets the one of its Spark, whatever else is installed.
            let requires =
                packages.remove(&name).map(|package: Installed| package.requires).unwrap_or_default();
            packages.insert(name, Installed { version: version.clone(), requires, url: None });
        }
        Ok(Self { environment, packages, watched: answer.folders, spark })
    }

    /// Whether it still is as it was when it was asked.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.watched.iter().all(|(folder, at)| changed(folder) == *at)
    }

    /// The version of Python.
    #[must_use]
    pub fn python_version(&self) -> String {
        self.environment.python_full_version().to_string()
    }

    /// Whether `requirement` says something about this Python at all.
    #[must_use]
    pub fn concerns(&self, requirement: &Requirement<VerbatimUrl>) -> bool {
        requirement.evaluate_markers(&self.environment, &[])
    }

    /// Whether the Spark installation decides about this package, and not what is installed beside it.
    #[must_use]
    pub fn is_of_spark(&self, requirement: &Requirement<VerbatimUrl>) -> bool {
        self.spark.is_some() && requirement.name.as_ref() == "pyspark"
    }

    /// What `requirement` lacks here, if anything.
    #[must_use]
    pub fn lack(&self, requirement: &Requirement<VerbatimUrl>) -> Option<Lack> {
        if !self.concerns(requirement) { None } else { self.lack_of(requirement, 0) }
    }

    fn lack_of(&self, requirement: &Requirement<VerbatimUrl>, depth: usize) -> Option<Lack> {
        let Some(installed) = self.packages.get(&requirement.name) else { return Some(Lack::None) };
        match &requirement.version_or_url {
            Some(VersionOrUrl::VersionSpecifier(wanted)) if !wanted.contains(&installed.version) => {
                return Some(Lack::Version(installed.version.to_string()));
            }
            Some(VersionOrUrl::Url(url)) => {
                let is_it = installed.url.as_ref().is_some_and(|from| *from == url.to_string());
                return (!is_it).then_some(Lack::Elsewhere);
            }
            _ => {}
        }
        if requirement.extras.is_empty() || depth >= DEEPEST {
            return None;
        }
        self.lack_of_extras(installed, &requirement.extras, depth)
    }

    /// What an installed package needs for these extras, and is not there.
    fn lack_of_extras(&self, installed: &Installed, extras: &[ExtraName], depth: usize) -> Option<Lack> {
        let needed =
            installed.requires.iter().filter_map(|needed| Requirement::<VerbatimUrl>::from_str(needed).ok());
        needed
            // What is needed without extras was installed with it.
            .filter(|needed| {
                needed.evaluate_markers(&self.environment, extras)
                    && !needed.evaluate_markers(&self.environment, &[])
            })
            .find(|needed| self.lack_of(needed, depth + 1).is_some())
            .map(|needed| Lack::Extra(needed.name.to_string()))
    }
}

fn changed(folder: &Path) -> Option<u128> {
    let modified = std::fs::metadata(folder).and_then(|metadata| metadata.modified()).ok()?;
    Some(modified.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// A Python 3.11 on Linux with these packages: name, version, what they need.
    pub(in crate::runtimes) fn known(packages: &[(&str, &str, &[&str])], spark: Option<&str>) -> Known {
        let packages: Vec<_> = packages
            .iter()
            .map(|(name, version, requires)| json!({"name": name, "version": version, "requires": requires, "url": null}))
            .collect();
        let answer = json!({
            "markers": {
                "implementation_name": "cpython", "implementation_version": "3.11.2", "os_name": "posix",
                "platform_machine": "x86_64", "platform_python_implementation": "CPython", "platform_release": "6.1",
                "platform_system": "Linux", "platform_version": "#1", "python_full_version": "3.11.2",
                "python_version": "3.11", "sys_platform": "linux"},
            "packages": packages, "folders": [], "spark": spark});
        Known::of(serde_json::from_value(answer).unwrap()).unwrap()
    }

    fn lack(known: &Known, requirement: &str) -> Option<Lack> {
        known.lack(&Requirement::from_str(requirement).unwrap())
    }

    #[test]
    fn versions_count_as_pep_440_says_and_names_as_packages_are_named() {
        let known = known(
            &[("Scikit_Learn", "1.4.2", &[]), ("torch", "2.1.0+cpu", &[]), ("pre", "2.0rc1", &[])],
            None,
        );
        for met in [
            "scikit-learn",
            "SCIKIT.learn>=1.4,<2",
            "scikit-learn~=1.4.0",
            "scikit-learn==1.4.*",
            "torch==2.1.0",
            "torch===2.1.0+cpu",
            "pre>=1",
            "pre<2",
        ] {
            assert_eq!(
                lack(&known, met),
                if met == "pre<2" { Some(Lack::Version("2.0rc1".into())) } else { None },
                "{met}"
            );
        }
        assert_eq!(lack(&known, "scikit-learn>=1.5"), Some(Lack::Version("1.4.2".into())));
        assert_eq!(lack(&known, "scikit-learn!=1.4.2"), Some(Lack::Version("1.4.2".into())));
        assert_eq!(lack(&known, "pandas"), Some(Lack::None));
        assert_eq!(lack(&known, "torch @ https://host/torch.whl"), Some(Lack::Elsewhere));
    }

    #[test]
    fn what_is_meant_for_another_python_is_not_asked_for() {
        let known = known(&[], None);
        for marker in [
            "python_version < '3.9'",
            "sys_platform == 'win32'",
            "platform_machine == 'arm64'",
            "extra == 'x'",
        ] {
            assert_eq!(lack(&known, &format!("nothing ; {marker}")), None, "{marker}");
        }
        assert_eq!(
            lack(&known, "nothing ; python_version >= '3.11' and os_name == 'posix'"),
            Some(Lack::None)
        );
    }

    #[test]
    fn extras_are_there_when_what_they_need_is() {
        let requires: &[&str] = &[
            "base",
            "b>=2 ; extra == 'x'",
            "c[y] ; extra == 'x' and python_version < '3'",
            "a[x] ; extra == 'all'",
        ];
        let few = known(&[("a", "1", requires), ("b", "1", &[])], None);
        assert_eq!(lack(&few, "a"), None);
        assert_eq!(lack(&few, "a[x]"), Some(Lack::Extra("b".into())));
        assert_eq!(lack(&few, "a[all]"), Some(Lack::Extra("a".into())));
        let enough = known(&[("a", "1", requires), ("b", "2", &[])], None);
        assert_eq!(lack(&enough, "a[x,all]"), None);
        let circle = known(&[("a", "1", &["a[x] ; extra == 'x'"])], None);
        assert_eq!(lack(&circle, "a[x]"), None);
    }

    #[test]
    fn the_pyspark_that_counts_is_that_of_the_spark_installation() {
        let known = known(&[("pyspark", "3.3.0", &["pandas>=1 ; extra == 'sql'"])], Some("3.5.1"));
        assert_eq!(lack(&known, "pyspark==3.5.1"), None);
        assert_eq!(lack(&known, "pyspark==3.3.0"), Some(Lack::Version("3.5.1".into())));
        assert_eq!(lack(&known, "pyspark[sql]"), Some(Lack::Extra("pandas".into())));
        assert!(known.is_of_spark(&Requirement::from_str("pyspark").unwrap()));
    }

    #[tokio::test]
    async fn a_python_is_asked_for_what_it_has_and_asked_again_when_that_has_changed() {
        let place = tempfile::tempdir().unwrap();
        let packages = place.path().join("packages");
        let package = |name: &str, version: &str| {
            let folder = packages.join(format!("{name}-{version}.dist-info"));
            std::fs::create_dir_all(&folder).unwrap();
            let text = format!(
                "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: x\nRequires-Dist: other ; extra == \"x\"\n"
            );
            std::fs::write(folder.join("METADATA"), text).unwrap();
        };
        package("thing", "1.5");
        std::fs::create_dir_all(place.path().join("spark/python/pyspark")).unwrap();
        std::fs::write(
            place.path().join("spark/python/pyspark/version.py"),
            "__version__: str = \"3.5.9\"\n",
        )
        .unwrap();
        let environment = || {
            vec![
                ("PATH".into(), std::env::var_os("PATH").unwrap()),
                ("PYTHONPATH".into(), packages.clone().into_os_string()),
            ]
        };
        let home = place.path().join("spark");
        let known = Known::ask(Path::new("python3"), environment(), Some(&home)).await.unwrap();
        assert!(known.is_fresh());
        assert!(known.python_version().starts_with("3."));
        assert_eq!(lack(&known, "thing>=1.5"), None);
        assert_eq!(lack(&known, "thing[x]"), Some(Lack::Extra("other".into())));
        assert_eq!(lack(&known, "pyspark==3.5.9"), None);
        package("other", "1");
        assert!(!known.is_fresh());
        let error = Known::ask(Path::new("/bin/false"), Vec::new(), None).await.unwrap_err().to_string();
        assert_eq!(error, "/bin/false did not answer: it ended with 1");
    }
}
