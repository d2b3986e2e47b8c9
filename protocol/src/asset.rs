//! Assets: the files, sources and references that a job carries, and where they may lie in a working directory.
//!
//! [`StagedPath`] is the one gate through which a name from a job becomes a path: whatever holds a `StagedPath` cannot
//! name a place outside the working directory, nor one of the files that the service itself puts there.
//!
//! This module must not touch the file system: what a name may be is decided without looking.

use std::fmt;
use std::io::{self, Read, Write};

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use base64::read::DecoderReader;
use serde_json::Value;

/// The model's primary source, as the driver imports it.
pub const MODEL_SOURCE: &str = "model_source_code.py";
/// The lists of assets and the function's name, as Python literals.
pub const MODEL_METADATA: &str = "model_job_metadata.py";
/// The driver program.
pub const DRIVER: &str = "ModelOpPySparkDriver.py";
/// The job's own text, for an init function that takes it.
pub const MODEL_JOB: &str = "model_job.json";
/// What is read, written and checked for a record model.
pub const MODEL_CONTRACT: &str = "model_contract.json";
/// The parts of the driver that read, check, score and write records.
pub const RECORD_PARTS: [&str; 7] = [
    "ModelOpAvro.py",
    "ModelOpFormats.py",
    "ModelOpOutputs.py",
    "ModelOpRecords.py",
    "ModelOpSchemas.py",
    "ModelOpSpark.py",
    "ModelOpWorkers.py",
];
/// The folder in the working directory whose files a training job leaves.
pub const OUTPUT_FOLDER: &str = "outputDir";

/// Files that the service itself puts into a working directory.
const STAGED: [&str; 5] = [MODEL_SOURCE, MODEL_METADATA, DRIVER, MODEL_JOB, MODEL_CONTRACT];

/// Top-level modules that a file of a job must not stand in front of: the driver and Spark import them by name from the
/// same directory.
const SHADOWED: [&str; 14] = [
    "model_source_code",
    "model_job_metadata",
    "modeloppysparkdriver",
    "modelopavro",
    "modelopformats",
    "modelopoutputs",
    "modeloprecords",
    "modelopschemas",
    "modelopspark",
    "modelopworkers",
    "pyspark",
    "py4j",
    "sitecustomize",
    "usercustomize",
];

/// The longest path that Linux takes, in bytes.
const LONGEST_PATH: usize = 4095;
/// The most folders that a staged file lies in.
const DEEPEST_PATH: usize = 32;

/// Names that are devices on Windows, whatever their ending.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// What `assetType` says an asset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AssetType {
    /// A reference to data elsewhere (`fileUrl`), read and written by the model itself.
    ExternalFile,
    /// Bytes that travel in the job (`fileContent`, base64).
    File,
    /// Text that travels in the job (`sourceCode`).
    SourceCode,
    /// A query; never staged.
    Sql,
}

impl AssetType {
    /// Every type with its wire name.
    pub const ALL: [(&'static str, Self); 4] = [
        ("EXTERNAL_FILE", Self::ExternalFile),
        ("FILE", Self::File),
        ("SOURCE_CODE", Self::SourceCode),
        ("SQL", Self::Sql),
    ];

    /// The type that a wire name stands for.
    #[must_use]
    pub fn from_wire(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(wire, _)| *wire == name).map(|(_, kind)| *kind)
    }

    /// The type of an asset object, when it has a known one.
    #[must_use]
    pub fn of(asset: &Value) -> Option<Self> {
        Self::from_wire(asset.get("assetType")?.as_str()?)
    }
}

/// A relative path below a working directory that is safe to write to: no way out of the directory, no name that the
/// service uses, nothing that another system would read as something else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StagedPath(String);

/// Why a name cannot be a path below the working directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StagedPathError {
    /// The name has no characters.
    #[error("is empty")]
    Empty,
    /// The name is longer than any path can be.
    #[error("has {0} bytes; no path has more than 4095")]
    TooLong(usize),
    /// The name starts at the root, a drive or a home directory.
    #[error("is absolute; give a path relative to the working directory")]
    Absolute,
    /// A step of the path is `.`, `..` or empty.
    #[error("has the step {0:?}; give a plain relative path without `.`, `..` or empty steps")]
    Step(String),
    /// More folders than anybody needs; each of them costs something.
    #[error("lies {0} folders deep; at most {DEEPEST_PATH} are taken")]
    TooDeep(usize),
    /// A character that is no part of a portable name.
    #[error("has the character {0:?}, which no file name here may have")]
    Character(char),
    /// A name that is a device on Windows.
    #[error("is the name of a device on Windows ({0})")]
    Device(String),
    /// A name that would hide one of the service's or Spark's own files.
    #[error("would stand in front of {0}, which the driver needs; choose another name")]
    Reserved(String),
}

impl StagedPath {
    /// Takes a name from a job as a path below its working directory.
    ///
    /// The length of a name is not judged here: the file system that it is written to knows its own limit.
    ///
    /// # Errors
    /// [`StagedPathError`], with the first thing that is wrong with the name.
    pub fn new(name: &str) -> Result<Self, StagedPathError> {
        if name.is_empty() {
            return Err(StagedPathError::Empty);
        }
        if name.len() > LONGEST_PATH {
            return Err(StagedPathError::TooLong(name.len()));
        }
        if let Some(character) = name.chars().find(|c| c.is_control() || *c == '\\') {
            return Err(StagedPathError::Character(character));
        }
        let drive = name.as_bytes().get(1) == Some(&b':') && name.as_bytes()[0].is_ascii_alphabetic();
        if name.starts_with('/') || drive {
            return Err(StagedPathError::Absolute);
        }
        let folders = name.matches('/').count();
        if folders > DEEPEST_PATH {
            return Err(StagedPathError::TooDeep(folders));
        }
        for component in name.split('/') {
            if matches!(component, "" | "." | "..") {
                return Err(StagedPathError::Step(component.to_owned()));
            }
            if let Some(device) = device(component) {
                return Err(StagedPathError::Device(device));
            }
        }
        if let Some(reserved) = reserved(name) {
            return Err(StagedPathError::Reserved(reserved));
        }
        Ok(Self(name.to_owned()))
    }

    /// The path, with `/` between its steps.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form in which two names that some file system takes for one are equal.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0.to_lowercase()
    }
}

impl fmt::Display for StagedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn device(component: &str) -> Option<String> {
    let stem = component.split('.').next().unwrap_or(component).trim_end().to_lowercase();
    let numbered = |prefix: &str| {
        stem.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == 1 && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    (DEVICES.contains(&stem.as_str()) || numbered("com") || numbered("lpt")).then_some(stem)
}

fn reserved(name: &str) -> Option<String> {
    let folded = name.to_lowercase();
    if folded.split('/').any(|component| component == "__pycache__") {
        return Some("the compiled form of a module".to_owned());
    }
    if let Some(staged) = STAGED.iter().find(|staged| staged.to_lowercase() == folded) {
        return Some((*staged).to_owned());
    }
    let mut components = folded.split('/');
    let first = components.next().unwrap_or_default();
    let is_folder = components.next().is_some();
    // `pyspark.py`, `pyspark.cpython-311-x86_64-linux-gnu.so` and `pyspark/…` are all what `import pyspark` finds first.
    let module = if is_folder {
        first
    } else {
        let importable = [".py", ".pyc", ".pyw", ".so", ".pyd"].iter().any(|ending| first.ends_with(ending));
        if importable { first.split('.').next().unwrap_or(first) } else { return None }
    };
    SHADOWED.contains(&module).then(|| format!("the module {module}"))
}

/// Writes the bytes that `encoded` (base64, with or without padding) stands for, without holding them in memory.
///
/// # Errors
/// `InvalidData` when `encoded` is not base64; otherwise what `to` says.
pub fn decode_base64(encoded: &str, to: &mut dyn Write) -> io::Result<u64> {
    let engine = if encoded.ends_with('=') { &STANDARD } else { &STANDARD_NO_PAD };
    let mut decoder = DecoderReader::new(encoded.as_bytes(), engine);
    let mut buffer = [0; 48 * 1024];
    let mut written = 0;
    loop {
        let read = decoder.read(&mut buffer)?;
        if read == 0 {
            return Ok(written);
        }
        to.write_all(&buffer[..read])?;
        written += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str) -> String {
        StagedPath::new(name).map(|path| path.to_string()).unwrap_err().to_string()
    }

    #[test]
    fn no_name_leads_out_of_the_working_directory() {
        for name in ["../x", "a/../../b", "a/./b", "a//b", "a/", ".", "..", "a/.."] {
            assert!(refusal(name).starts_with("has the step"), "{name}");
        }
        for name in ["/etc/passwd", "/", "c:x", "C:/x"] {
            assert!(refusal(name).starts_with("is absolute"), "{name}");
        }
        for name in ["a\0b", "a\nb", "a\\b", "..\\x", "\u{7f}"] {
            assert!(refusal(name).starts_with("has the character"), "{name}");
        }
        assert_eq!(refusal(""), "is empty");
    }

    #[test]
    fn device_names_are_refused_whatever_their_ending() {
        for name in ["con", "CON.txt", "data/Aux", "com1", "LPT9.csv", "nul .txt"] {
            assert!(refusal(name).starts_with("is the name of a device"), "{name}");
        }
        assert!(StagedPath::new("console.txt").is_ok());
        assert!(StagedPath::new("com10.txt").is_ok());
    }

    #[test]
    fn nothing_stands_in_front_of_what_the_driver_imports() {
        for name in [
            "model_source_code.py",
            "Model_Source_Code.PY",
            "model_job_metadata.py",
            "ModelOpPySparkDriver.py",
            "model_job.json",
            "model_contract.json",
            "ModelOpRecords.py",
            "modeloprecords/__init__.py",
            "pyspark.py",
            "pyspark/sql.py",
            "pyspark.cpython-311-x86_64-linux-gnu.so",
            "sitecustomize.py",
            "py4j.pyc",
            "pkg/__pycache__/x.cpython-311.pyc",
        ] {
            assert!(refusal(name).starts_with("would stand in front of"), "{name}");
        }
        for name in ["pkg/__init__.py", "pkg/pyspark.py", "pyspark.txt", "my_pyspark.py", "pyspark"] {
            assert!(StagedPath::new(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn every_file_that_the_service_stages_is_its_own() {
        for name in STAGED.iter().chain(&RECORD_PARTS) {
            assert!(refusal(name).starts_with("would stand in front of"), "{name}");
        }
    }

    #[test]
    fn base64_is_decoded_with_and_without_padding_and_refused_when_it_is_none() {
        let decoded = |text: &str| {
            let mut bytes = Vec::new();
            decode_base64(text, &mut bytes).map(|_| bytes)
        };
        assert_eq!(decoded("aGk=").unwrap(), b"hi");
        assert_eq!(decoded("aGk").unwrap(), b"hi");
        assert_eq!(decoded("").unwrap(), b"");
        for text in ["a", "aGk$", "aG k=", "=", "aGk==", "aGl="] {
            assert_eq!(decoded(text).unwrap_err().kind(), io::ErrorKind::InvalidData, "{text}");
        }
    }
}
