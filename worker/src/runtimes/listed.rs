//! The file in which an operator names runtimes (setting `runtimes.file`).
//!
//! ```toml
//! [[runtime]]
//! name = "sklearn"
//! python = "/opt/environments/sklearn"   # an environment's folder, a Python program, or a packed environment
//! spark_home = "/opt/spark-3.5"          # when it is not that of the settings
//! ```
//!
//! This module must not know what is installed there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The name of the runtime that is made of the settings in section `spark`.
pub const DEFAULT: &str = "default";
/// What names of made runtimes begin with.
pub(super) const BUILT: &str = "built-";
/// The endings of packed environments.
const PACKED: [&str; 6] = [".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar"];

/// A runtime as it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its Python.
    pub python: Place,
    /// Its Spark installation, when it is not that of the settings.
    pub spark_home: Option<PathBuf>,
}

/// Where a Python is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The program.
    Program(PathBuf),
    /// Packed in an archive, which has to be unpacked first.
    Packed(PathBuf),
}

/// Why a file names no runtimes.
#[derive(Debug, thiserror::Error)]
pub enum ListedError {
    /// It cannot be read.
    #[error("the file of runtimes {path} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("the file of runtimes {path}: {words}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        words: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    runtime: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    python: PathBuf,
    spark_home: Option<PathBuf>,
}

/// Reads the file.
///
/// # Errors
/// [`ListedError`].
pub fn read(path: &Path) -> Result<Vec<Listed>, ListedError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ListedError::Unreadable { path: path.to_owned(), source })?;
    parse(&text).map_err(|words| ListedError::Wrong { path: path.to_owned(), words })
}

fn parse(text: &str) -> Result<Vec<Listed>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string().trim().to_owned())?;
    let mut names = BTreeSet::new();
    let mut all = Vec::with_capacity(file.runtime.len());
    for Entry { name, python, spark_home } in file.runtime {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            return Err(format!("{name:?} is no name; give at most 64 letters, digits, '-', '_' or '.'"));
        }
        if name == DEFAULT || name.starts_with(BUILT) {
            return Err(format!("the name {name:?} is taken; choose another one"));
        }
        for place in [Some(&python), spark_home.as_ref()].into_iter().flatten() {
            if !place.is_absolute() {
                return Err(format!("{:?} of {name} is not absolute; give a whole path", place.display()));
            }
        }
        if !names.insert(name.clone()) {
            return Err(format!("two runtimes have the name {name:?}"));
        }
        all.push(Listed { name, python: place(python), spark_home });
    }
    Ok(all)
}

fn place(python: PathBuf) -> Place {
    let is_packed = PACKED.iter().any(|ending| python.to_string_lossy().ends_with(ending));
    if is_packed {
        Place::Packed(python)
    } else if python.is_dir() {
        Place::Program(python_of(&python))
    } else {
        Place::Program(python)
    }
}

/// The Python of an environment's folder.
#[must_use]
pub fn python_of(environment: &Path) -> PathBuf {
    environment.join("bin").join("python")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_a_program_a_folder_or_an_archive() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().display();
        let text = format!(
            "[[runtime]]\nname = 'a'\npython = '/usr/bin/python3'\n[[runtime]]\nname = 'b'\npython = '{folder}'\nspark_home = '/s'\n\
             [[runtime]]\nname = 'c'\npython = '/p/c.tar.gz'\n"
        );
        let listed = parse(&text).unwrap();
        assert_eq!(listed[0].python, Place::Program("/usr/bin/python3".into()));
        assert_eq!(listed[1].python, Place::Program(place.path().join("bin/python")));
        assert_eq!(listed[1].spark_home, Some("/s".into()));
        assert_eq!(listed[2].python, Place::Packed("/p/c.tar.gz".into()));
    }

    #[test]
    fn what_is_wrong_with_the_file_is_told() {
        for (text, words) in [
            ("[[runtime]]\nname = 'a'\n", "python"),
            ("[[runtime]]\nname = 'a'\npython = '/x'\nspark = '/y'\n", "unknown field"),
            ("[[runtime]]\nname = 'default'\npython = '/x'\n", "is taken"),
            ("[[runtime]]\nname = 'a b'\npython = '/x'\n", "is no name"),
            ("[[runtime]]\nname = 'a'\npython = 'x'\n", "is not absolute"),
            (
                "[[runtime]]\nname = 'a'\npython = '/x'\n[[runtime]]\nname = 'a'\npython = '/x'\n",
                "two runtimes",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(read(Path::new("/nowhere")).unwrap_err().to_string().contains("cannot be read"));
    }
}
