//! Staging: a job's files, written into a fresh directory of their own.
//!
//! ```text
//! <attempt>/            0700, one for every attempt
//!   work/               the driver's current directory
//!     model_source_code.py  model_job_metadata.py  ModelOpPySparkDriver.py  and the job's own files
//!     model_contract.json  ModelOpRecords.py  ...   for a record model
//!     outputDir/        for what a training job leaves
//!   modules.zip         the Python modules, for executors on other machines
//!   driver.sock  stdout.log  stderr.log  spark.properties  tmp/
//!   database.json     until the driver has read it
//! ```
//!
//! Names are safe before they come here ([`StagedPath`]); this module writes, and says what the file system says.
//!
//! This module must not know what will be run.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use spark_runtime_protocol::asset::{
    DRIVER, MODEL_CONTRACT, MODEL_JOB, MODEL_METADATA, MODEL_SOURCE, OUTPUT_FOLDER, RECORD_PARTS, StagedPath,
    decode_base64,
};
use spark_runtime_protocol::event::{Failure, FailureClass};
use spark_runtime_protocol::job::{Content, Job, JobType};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::check::Plan;
use super::literal::{write_list, write_string};
use super::submit::plain;

/// The working directory, in that of an attempt.
pub const WORK: &str = "work";
/// The driver program, as it is staged.
const DRIVER_PROGRAM: &str = include_str!("../../driver/ModelOpPySparkDriver.py");
/// The texts of [`RECORD_PARTS`].
const RECORD_PROGRAMS: [&str; RECORD_PARTS.len()] = [
    include_str!("../../driver/ModelOpAvro.py"),
    include_str!("../../driver/ModelOpFormats.py"),
    include_str!("../../driver/ModelOpOutputs.py"),
    include_str!("../../driver/ModelOpRecords.py"),
    include_str!("../../driver/ModelOpSchemas.py"),
    include_str!("../../driver/ModelOpSpark.py"),
    include_str!("../../driver/ModelOpWorkers.py"),
];

/// The directory of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// The attempt's own directory.
    pub directory: PathBuf,
    /// The driver's current directory, in it.
    pub working_directory: PathBuf,
    /// The job's Python modules in one archive, when there are executors elsewhere that import them.
    pub modules: Option<PathBuf>,
}

/// A file that could not be staged.
#[derive(Debug, thiserror::Error)]
#[error("{path} could not be written: {}", explain(path, source))]
pub struct StageError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What a system's word for a failed write means here.
fn explain(path: &Path, source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::ENAMETOOLONG) => {
            let longest = path.components().map(|part| part.as_os_str().len()).max().unwrap_or(0);
            format!(
                "a name in it has {longest} bytes, more than this file system takes; choose a shorter one"
            )
        }
        Some(libc::ENOSPC | libc::EDQUOT) => {
            "no space is left; make room, or set job.directory to a larger file system".to_owned()
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            format!("{source}; give the worker's user the right to write there, or set job.directory")
        }
        _ => source.to_string(),
    }
}

impl StageError {
    /// Whether another worker, or this one later, may fare better.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        !matches!(self.source.raw_os_error(), Some(libc::ENAMETOOLONG | libc::EINVAL | libc::EILSEQ))
    }

    /// The failure that this is for the attempt.
    #[must_use]
    pub fn failure(&self) -> Failure {
        plain(FailureClass::Staging, self.to_string())
    }
}

/// Makes `directory` and writes everything of `job` into it. `text` is the job's own text. Blocks.
///
/// # Errors
/// [`StageError`] with the file that failed; what was written until then stays for the caller to remove.
pub fn stage(directory: &Path, job: &Job, plan: &Plan, text: &[u8]) -> Result<Staged, StageError> {
    let Staged { working_directory, .. } = folders(directory)?;
    let writer = Writer { root: &working_directory };
    writer.write(MODEL_SOURCE, |file| file.write_all(job.source_code().as_bytes()))?;
    writer.write(MODEL_METADATA, |file| metadata(file, job, plan))?;
    writer.write(DRIVER, |file| file.write_all(DRIVER_PROGRAM.as_bytes()))?;
    if plan.init_takes_job {
        writer.write(MODEL_JOB, |file| file.write_all(text))?;
    }
    for staged in job.staged_files() {
        writer.folders(staged.path)?;
        writer.write(staged.path.as_str(), |file| match staged.content {
            Content::Text(text) => file.write_all(text.as_bytes()),
            Content::Base64(encoded) => decode_base64(encoded, file).map(drop),
            Content::Bytes(bytes) => file.write_all(bytes),
        })?;
    }
    if let Some(contract) = plan.contract() {
        writer
            .write(MODEL_CONTRACT, |file| serde_json::to_writer(file, contract).map_err(io::Error::from))?;
        for (name, program) in RECORD_PARTS.into_iter().zip(RECORD_PROGRAMS) {
            writer.write(name, |file| file.write_all(program.as_bytes()))?;
        }
    }
    if job.job_type() == JobType::Training {
        writer.folder(OUTPUT_FOLDER)?;
    }
    let modules = if plan.has_executors_elsewhere() { Some(archive(directory, job)?) } else { None };
    Ok(Staged { directory: directory.to_owned(), working_directory, modules })
}

/// Makes `directory` with nothing in it, for an attempt whose files are elsewhere. Blocks.
///
/// # Errors
/// [`StageError`].
pub fn folders(directory: &Path) -> Result<Staged, StageError> {
    let working_directory = directory.join(WORK);
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    for folder in [directory, &working_directory] {
        builder.create(folder).map_err(|source| StageError { path: folder.to_owned(), source })?;
    }
    Ok(Staged { directory: directory.to_owned(), working_directory, modules: None })
}

/// Puts the primary source and every secondary Python source into one archive. What a model hands to executors is
/// pickled by the name of its module, which they have to be able to import.
fn archive(directory: &Path, job: &Job) -> Result<PathBuf, StageError> {
    let path = directory.join("modules.zip");
    let written = File::create_new(&path).and_then(|file| {
        let mut archive = ZipWriter::new(BufWriter::new(file));
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        archive.start_file(MODEL_SOURCE, options)?;
        archive.write_all(job.source_code().as_bytes())?;
        for staged in job.staged_files() {
            let source = match staged.content {
                Content::Text(text) => text.as_bytes(),
                Content::Bytes(bytes) => bytes,
                Content::Base64(_) => continue,
            };
            if staged.path.as_str().ends_with(".py") {
                archive.start_file(staged.path.as_str(), options)?;
                archive.write_all(source)?;
            }
        }
        archive.finish()?.flush()
    });
    written.map(|()| path.clone()).map_err(|source| StageError { path, source })
}

struct Writer<'a> {
    root: &'a Path,
}

impl Writer<'_> {
    fn write(
        &self,
        name: &str,
        contents: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StageError> {
        let path = self.root.join(name);
        let written =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|file| {
                let mut file = BufWriter::with_capacity(64 * 1024, file);
                contents(&mut file)?;
                file.flush()
            });
        written.map_err(|source| StageError { path, source })
    }

    fn folders(&self, path: &StagedPath) -> Result<(), StageError> {
        path.as_str().rsplit_once('/').map_or(Ok(()), |(folders, _)| self.folder(folders))
    }

    fn folder(&self, folder: &str) -> Result<(), StageError> {
        let folder = self.root.join(folder);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&folder).map_err(|source| StageError { path: folder, source })
    }
}

/// The module from which the driver, and any model that looks, learns what to do.
fn metadata(file: &mut dyn Write, job: &Job, plan: &Plan) -> io::Result<()> {
    file.write_all(b"job_input = ")?;
    write_list(file, job.external_inputs())?;
    file.write_all(b"\njob_output = ")?;
    write_list(file, job.external_outputs())?;
    file.write_all(b"\njob_model_assets_input = ")?;
    write_list(file, job.external_model_assets())?;
    file.write_all(b"\nmethod_to_be_executed = ")?;
    write_string(file, &plan.function)?;
    file.write_all(b"\ninit_to_be_executed = ")?;
    match &plan.init {
        Some(init) => write_string(file, init)?,
        None => file.write_all(b"None")?,
    }
    file.write_all(b"\njob_type = ")?;
    write_string(file, job.job_type().wire())?;
    file.write_all(b"\njob_id = ")?;
    write_string(file, job.id().as_str())?;
    file.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::job::check::Judge;
    use crate::job::contract::Style;
    use crate::spark::argv::{CommandLine, DefaultLogin};
    use crate::spark::policy::Policy;
    use serde_json::{Value, json};
    use std::os::unix::fs::PermissionsExt;

    fn job(filename: &str) -> (Job, Plan, String) {
        let text = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB",
            "model": {"storedModel": {"modelAssets": [
                {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "# ü\r\ndef score(a,b,c): pass"},
                {"assetType": "SOURCE_CODE", "name": "x", "sourceCodeFilePath": "pkg/sub/h.py", "sourceCode": "x = 1"},
                {"assetType": "SOURCE_CODE", "name": "x", "sourceCodeFilePath": "pkg/__init__.py", "sourceCode": ""},
                {"assetType": "FILE", "filename": filename, "fileContent": "AAEC"},
                {"assetType": "EXTERNAL_FILE", "fileUrl": "/w", "odd": [1.10, null, {"z": true, "a": "\"'\n"}]}]}}
        })
        .to_string();
        let job = Job::read(text.as_bytes(), None).unwrap();
        let command_line =
            CommandLine::of(&job, &Policy::default(), "local[*]", &DefaultLogin::default()).unwrap();
        let plan = Plan {
            function: "score".into(),
            style: Style::Lists,
            init: None,
            init_takes_job: true,
            command_line,
            notes: Vec::new(),
        };
        (job, plan, text)
    }

    #[test]
    fn everything_of_a_job_lies_where_the_model_looks_for_it() {
        let place = tempfile::tempdir().unwrap();
        let (job, plan, text) = job("data/b.bin");
        let staged = stage(&place.path().join("a b"), &job, &plan, text.as_bytes()).unwrap();
        let read = |name: &str| std::fs::read(staged.working_directory.join(name)).unwrap();
        assert_eq!(read("data/b.bin"), [0, 1, 2]);
        assert_eq!(read("pkg/sub/h.py"), b"x = 1");
        assert_eq!(read("pkg/__init__.py"), b"");
        assert_eq!(read("model_source_code.py"), "# ü\r\ndef score(a,b,c): pass".as_bytes());
        assert_eq!(read("model_job.json"), text.as_bytes());
        assert_eq!(read("ModelOpPySparkDriver.py"), DRIVER_PROGRAM.as_bytes());
        for folder in [&staged.directory, &staged.working_directory] {
            assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn the_lists_hold_whole_assets_in_order_as_python_reads_them() {
        let place = tempfile::tempdir().unwrap();
        let (job, plan, text) = job("t");
        let staged = stage(&place.path().join("a"), &job, &plan, text.as_bytes()).unwrap();
        let program = "import json, model_job_metadata as m; print(json.dumps([m.job_input, m.job_model_assets_input, m.method_to_be_executed, m.init_to_be_executed]))";
        let output = std::process::Command::new("python3")
            .args(["-B", "-c", program])
            .current_dir(&staged.working_directory)
            .output()
            .unwrap();
        let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
        let asset = r#"{"assetType":"EXTERNAL_FILE","fileUrl":"/w","odd":[1.1,null,{"z":true,"a":"\"'\n"}]}"#;
        assert_eq!(seen.to_string(), format!(r#"[[],[{asset}],"score",null]"#));
    }

    #[test]
    fn a_record_model_finds_its_contract_and_a_training_job_its_folder() {
        let place = tempfile::tempdir().unwrap();
        let text = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB",
            "inputData": [{"assetType": "FILE", "filename": "in.csv", "fileContent": "YQox"}],
            "outputData": [{"assetType": "FILE", "filename": "results/out.csv"}],
            "model": {"storedModel": {"modelAssets": [
                {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "def score(r): yield r\n", "scoreFunction": "score"}]}}
        });
        let judge = Judge::of(&Settings::load(&crate::config::Sources::default()).unwrap()).unwrap();
        let job = Job::read(text.to_string().as_bytes(), None).unwrap();
        let mut plan = judge.plan(&job).unwrap();
        judge.settle(&mut plan).unwrap();
        let staged = stage(&place.path().join("a"), &job, &plan, b"").unwrap();
        let contract = std::fs::read(staged.working_directory.join("model_contract.json")).unwrap();
        let contract: Value = serde_json::from_slice(&contract).unwrap();
        assert_eq!(contract["way"], "process");
        assert_eq!(contract["inputs"][0]["location"], "in.csv");
        assert!(staged.working_directory.join("ModelOpRecords.py").is_file());
        assert!(!staged.working_directory.join("outputDir").exists());

        let mut text = text;
        text["jobType"] = json!("MODEL_BATCH_TRAINING_JOB");
        text["model"]["storedModel"]["modelAssets"][0]["trainingFunction"] = json!("score");
        let job = Job::read(text.to_string().as_bytes(), None).unwrap();
        let staged = stage(&place.path().join("b"), &job, &judge.plan(&job).unwrap(), b"").unwrap();
        assert!(staged.working_directory.join("outputDir").is_dir());
    }

    #[test]
    fn every_part_of_the_driver_is_staged() {
        let (_, rest) = DRIVER_PROGRAM.split_once("DRIVER_MODULES = (").unwrap();
        let (listed, _) = rest.split_once(')').unwrap();
        let parts: Vec<&str> = listed.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        // The driver itself is among them.
        assert_eq!(parts.len(), RECORD_PARTS.len() + 1, "{parts:?}");
        for part in parts.iter().filter_map(|part| part.strip_prefix('"')?.strip_suffix('"')) {
            assert!(RECORD_PARTS.contains(&format!("{part}.py").as_str()), "{part} is not staged");
        }
    }

    #[test]
    fn a_name_too_long_for_the_file_system_is_told_and_not_tried_again() {
        let place = tempfile::tempdir().unwrap();
        let (job, plan, text) = job(&"n".repeat(300));
        let error = stage(&place.path().join("a"), &job, &plan, text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("has 300 bytes, more than this file system takes"), "{error}");
        assert!(!error.may_pass());
        assert_eq!(error.failure().class, FailureClass::Staging);
    }

    #[test]
    fn a_directory_that_is_there_already_is_not_used() {
        let place = tempfile::tempdir().unwrap();
        let (job, plan, text) = job("t");
        let error = stage(place.path(), &job, &plan, text.as_bytes()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_full_disk_is_a_staging_failure_that_may_pass() {
        let error = StageError { path: "/x".into(), source: io::Error::from_raw_os_error(libc::ENOSPC) };
        assert!(error.may_pass());
        assert!(error.to_string().contains("no space is left"), "{error}");
    }
}
