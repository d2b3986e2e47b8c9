//! `spark-runtime new`: makes a job's JSON from a model's source and the paths of its data, and judges it as a worker would.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{ArgGroup, ValueEnum};
use serde_json::{Map, Value, json};
use spark_runtime_protocol::job::{CHECK_INPUTS_KEY, CHECK_OUTPUTS_KEY, INIT_KEY};
use spark_runtime_protocol::{Job, JobId, JobType};

use super::{CliError, Exit, output, render};
use crate::config::Settings;
use crate::job::check::Judge;
use crate::job::contract::Format;

/// Names and values of flags, in the order in which they were given.
type Table = Map<String, Value>;

/// Arguments of `new`.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("function").args(["score", "metrics", "training", "job_type"])))]
pub(super) struct Args {
    /// The model's source.
    #[arg(value_name = "MODEL.py")]
    model: PathBuf,
    /// Make a scoring job that calls this function.
    #[arg(long, value_name = "FUNCTION")]
    score: Option<String>,
    /// Make a metrics job that calls this function.
    #[arg(long, value_name = "FUNCTION")]
    metrics: Option<String>,
    /// Make a training job that calls this function.
    #[arg(long, value_name = "FUNCTION")]
    training: Option<String>,
    /// Make a job of this type and leave the function to the source's smart tags (`# modelop.score`); `score` when nothing
    /// is given.
    #[arg(long = "type", value_name = "TYPE")]
    job_type: Option<Type>,
    /// The function that runs first. Without it the smart tag `# modelop.init` counts.
    #[arg(long, value_name = "FUNCTION")]
    init: Option<String>,
    /// An input, by path or URL; may be repeated.
    #[arg(long = "input", value_name = "PATH")]
    inputs: Vec<PathBuf>,
    /// An output, by path or URL; may be repeated.
    #[arg(long = "output", value_name = "PATH")]
    outputs: Vec<PathBuf>,
    /// What the inputs hold whose names do not say it: csv, json, jsonl, avro or parquet.
    #[arg(long, value_name = "FORMAT", value_parser = format_word)]
    input_format: Option<Format>,
    /// What the outputs are to hold whose names do not say it.
    #[arg(long, value_name = "FORMAT", value_parser = format_word)]
    output_format: Option<Format>,
    /// Check each record of the inputs against this Avro schema (for a function that gets records).
    #[arg(long, value_name = "SCHEMA.avsc")]
    input_schema: Option<PathBuf>,
    /// Check each record that the function yields against this Avro schema.
    #[arg(long, value_name = "SCHEMA.avsc")]
    output_schema: Option<PathBuf>,
    /// A file or folder that the model loads, by path or URL; may be repeated.
    #[arg(long = "model-file", value_name = "PATH")]
    model_files: Vec<PathBuf>,
    /// A file that travels in the job and lies in the model's current directory; may be repeated.
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// A Python file, or a folder of them, that the model imports; may be repeated.
    #[arg(long = "source", value_name = "PATH")]
    sources: Vec<PathBuf>,
    /// A spark-submit flag (`--executor-memory=1g`) or a Spark property (`spark.executor.memory=1g`); may be repeated.
    #[arg(long = "conf", value_name = "KEY=VALUE", allow_hyphen_values = true)]
    flags: Vec<String>,
    /// Give the job a random id of its own. Without one it gets a new id each time that it is submitted.
    #[arg(long)]
    id: bool,
    /// Write the job to this file instead of the standard output.
    #[arg(long, short, value_name = "OUT.json")]
    out: Option<PathBuf>,
    /// Overwrite the file when it is there.
    #[arg(long, requires = "out")]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    Score,
    Metrics,
    Training,
}

fn format_word(word: &str) -> Result<Format, String> {
    Format::of_word(word).ok_or_else(|| format!("give one of {}", Format::words()))
}

pub(super) fn run(args: &Args, settings: &Settings) -> Result<Exit, CliError> {
    let text =
        serde_json::to_string_pretty(&job(args)?).map_err(|error| CliError::Internal(error.to_string()))?;
    let job = match Job::read(text.as_bytes(), Some(JobId::random().as_str())) {
        Ok(job) => job,
        Err(refusal) => {
            output::complain(&format!("{}; not written", render::faults(&refusal.faults)));
            return Ok(Exit::Rejected);
        }
    };
    match &args.out {
        None => output::line(&text)?,
        Some(path) => write(path, &text, args.force)
            .map_err(|source| CliError::Unwritable { path: path.clone(), source })?,
    }
    // What it is for may still be added by hand.
    match Judge::of(settings)?.plan(&job) {
        Ok(plan) => {
            if plan.contract().is_some() {
                let words = "gets records or data frames, not lists: a record model";
                output::complain(&format!("{} {words}", plan.function));
            }
            plan.notes.iter().for_each(|note| output::complain(&format!("note: {note}")));
        }
        Err(faults) => {
            output::complain(&format!("as it is, it would be rejected: {}", render::faults(&faults)))
        }
    }
    Ok(Exit::Ok)
}

fn job(args: &Args) -> Result<Value, CliError> {
    let (job_type, function) = match (&args.score, &args.metrics, &args.training, args.job_type) {
        (None, Some(function), ..) => (JobType::Metrics, Some(function)),
        (None, None, Some(function), _) => (JobType::Training, Some(function)),
        (None, None, None, Some(Type::Metrics)) => (JobType::Metrics, None),
        (None, None, None, Some(Type::Training)) => (JobType::Training, None),
        (function, ..) => (JobType::Score, function.as_ref()),
    };
    let mut primary = json!({
        "name": file_name(&args.model)?,
        "assetType": "SOURCE_CODE",
        "assetRole": "MODEL_SOURCE",
        "primaryModelSource": true,
    });
    if let Some(init) = &args.init {
        primary[INIT_KEY] = json!(init);
    }
    if let (Some(function), Some(key)) = (function, job_type.function_keys().first()) {
        primary[*key] = json!(function);
    }
    primary["sourceCode"] = json!(read_text(&args.model)?);

    let mut assets = vec![primary];
    for path in &args.sources {
        assets.extend(sources(&args.model, path)?);
    }
    for path in &args.files {
        assets.push(file(path)?);
    }
    for path in &args.model_files {
        let mut asset = external(path)?;
        asset["assetRole"] = json!("WEIGHTS_FILE");
        assets.push(asset);
    }
    let (parameters, properties) = flags(&args.flags)?;

    let mut job = Map::new();
    if args.id {
        job.insert("id".into(), json!(JobId::random()));
    }
    job.insert("jobType".into(), json!(job_type));
    job.insert("jobStatus".into(), json!("CREATED"));
    let mut stored = json!({"modelAssets": assets});
    let mut checks = Vec::new();
    for (path, key, check) in [
        (&args.input_schema, "inputSchema", CHECK_INPUTS_KEY),
        (&args.output_schema, "outputSchema", CHECK_OUTPUTS_KEY),
    ] {
        if let Some(path) = path {
            stored["modelMetaData"][key] = json!([{"schemaDefinition": schema(path)?}]);
            checks.push(check);
        }
    }
    job.insert("model".into(), json!({"storedModel": stored}));
    job.insert("inputData".into(), externals(&args.inputs, args.input_format)?);
    job.insert("outputData".into(), externals(&args.outputs, args.output_format)?);
    job.extend(checks.into_iter().map(|check| (check.to_owned(), json!(true))));
    if !parameters.is_empty() {
        job.insert("jobParameters".into(), Value::Object(parameters));
    }
    if !properties.is_empty() {
        job.insert("targetEngine".into(), json!({"engineType": "SPARK_RUNTIME", "sparkConf": properties}));
    }
    Ok(Value::Object(job))
}

/// The flags of `jobParameters` and the properties of `targetEngine.sparkConf`.
fn flags(given: &[String]) -> Result<(Table, Table), CliError> {
    let (mut parameters, mut properties) = (Table::new(), Table::new());
    for flag in given {
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        let table = match name {
            name if name.starts_with("spark.") => &mut properties,
            name if name.starts_with('-') => &mut parameters,
            _ => {
                let wanted =
                    "give a flag such as --executor-memory=1g or a property such as spark.executor.memory=1g";
                return Err(CliError::Usage(format!("--conf {flag:?}: {wanted}")));
            }
        };
        if table.insert(name.to_owned(), json!(value)).is_some() {
            return Err(CliError::Usage(format!("--conf {name} is given more than once")));
        }
    }
    Ok((parameters, properties))
}

/// A schema as it lies in a file. Whether it is one is judged with the job.
fn schema(path: &Path) -> Result<Value, CliError> {
    let text = read_text(path)?;
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Assets for these places; `format` is that of those whose names do not say it.
fn externals(paths: &[PathBuf], format: Option<Format>) -> Result<Value, CliError> {
    let asset = |path: &PathBuf| {
        let mut asset = external(path)?;
        if let (None, Some(format)) = (asset.get("fileFormat"), format) {
            asset["fileFormat"] = json!(format.word());
        }
        Ok(asset)
    };
    paths.iter().map(asset).collect::<Result<Vec<_>, CliError>>().map(Value::Array)
}

fn external(path: &Path) -> Result<Value, CliError> {
    let given = utf8(path)?;
    let url = if is_url(given) {
        given.to_owned()
    } else {
        // A driver has a current directory of its own: a relative path would mean something else there.
        let absolute = std::path::absolute(path)
            .map_err(|source| CliError::Unreadable { path: path.to_owned(), source })?;
        utf8(&absolute)?.to_owned()
    };
    let name = url.trim_end_matches('/').rsplit('/').next().unwrap_or(&url).to_owned();
    let mut asset = json!({"name": name, "assetType": "EXTERNAL_FILE", "fileUrl": url, "filename": name});
    if let Some(format) = Format::of_name(&name) {
        asset["fileFormat"] = json!(format.word());
    }
    Ok(asset)
}

/// Whether a text begins with a scheme, as `hdfs:///data` or `s3a://bucket/key`.
fn is_url(text: &str) -> bool {
    text.split_once(":/").is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c))
    })
}

fn file(path: &Path) -> Result<Value, CliError> {
    let bytes = fs::read(path).map_err(|source| CliError::Unreadable { path: path.to_owned(), source })?;
    let name = file_name(path)?;
    Ok(json!({
        "name": name,
        "assetType": "FILE",
        "filename": name,
        "fileSize": bytes.len(),
        "fileContent": STANDARD.encode(&bytes),
    }))
}

/// A secondary source, or all of a folder's.
fn sources(model: &Path, path: &Path) -> Result<Vec<Value>, CliError> {
    let unreadable = |source| CliError::Unreadable { path: path.to_owned(), source };
    let mut found = Vec::new();
    if fs::metadata(path).map_err(unreadable)?.is_dir() {
        python_files(path, &mut found).map_err(unreadable)?;
        if found.is_empty() {
            return Err(CliError::Usage(format!(
                "--source {}: the folder has no Python file",
                path.display()
            )));
        }
    } else {
        found.push(path.to_owned());
    }
    found.iter().map(|path| source(model, path)).collect()
}

/// The Python files in a folder and its folders, in order of their names. Links to folders are not followed: they may
/// lead in a circle.
fn python_files(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if hidden || entry.file_name() == "__pycache__" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            python_files(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "py") && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

fn source(model: &Path, path: &Path) -> Result<Value, CliError> {
    let place = place(model, path)?;
    Ok(json!({
        "name": file_name(path)?,
        "assetType": "SOURCE_CODE",
        "primaryModelSource": false,
        "sourceCodeFilePath": place,
        "sourceCode": read_text(path)?,
    }))
}

/// Where a secondary source lies in the working directory, so that imports work as they do beside the model: by its path
/// from the model's folder, else by its path as it was given, else by its name alone.
fn place(model: &Path, path: &Path) -> Result<String, CliError> {
    let unreadable = |source| CliError::Unreadable { path: path.to_owned(), source };
    let folder = std::path::absolute(model).map_err(unreadable)?;
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    let beside = folder.parent().and_then(|folder| absolute.strip_prefix(folder).ok());
    let as_given = path.strip_prefix(".").unwrap_or(path);
    let steps = |path: &Path| -> Option<String> {
        let steps: Option<Vec<_>> = path
            .components()
            .map(|step| if let Component::Normal(step) = step { step.to_str() } else { None })
            .collect();
        steps.map(|steps| steps.join("/"))
    };
    if let Some(place) = beside.and_then(steps).or_else(|| steps(as_given)) {
        return Ok(place);
    }
    file_name(path)
}

fn read_text(path: &Path) -> Result<String, CliError> {
    fs::read_to_string(path).map_err(|source| CliError::Unreadable { path: path.to_owned(), source })
}

fn file_name(path: &Path) -> Result<String, CliError> {
    let Some(name) = path.file_name() else {
        return Err(CliError::Usage(format!("{} names no file", path.display())));
    };
    utf8(Path::new(name)).map(ToOwned::to_owned)
}

fn utf8(path: &Path) -> Result<&str, CliError> {
    path.to_str().ok_or_else(|| CliError::Usage(format!("{} is not UTF-8, which JSON needs", path.display())))
}

/// Writes whole or not at all; what was there before stays when the writing fails.
fn write(path: &Path, text: &str, force: bool) -> io::Result<()> {
    let target = match fs::canonicalize(path) {
        Ok(_) if !force => return Err(io::Error::other("it is there already; --force overwrites it")),
        Ok(target) if !target.is_file() => return Err(io::Error::other("it is no regular file")),
        Ok(target) => target,
        Err(_) => return write_new(path, text),
    };
    let mut beside = target.clone().into_os_string();
    beside.push(format!(".{}", JobId::random()));
    let beside = PathBuf::from(beside);
    write_new(&beside, text)?;
    fs::rename(&beside, &target).inspect_err(|_| drop(fs::remove_file(&beside)))
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let written =
        file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all());
    written.inspect_err(|_| drop(fs::remove_file(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_with_a_scheme_is_left_as_it_is_and_a_path_is_made_absolute() {
        let url = |text: &str| external(Path::new(text)).unwrap()["fileUrl"].as_str().unwrap().to_owned();
        for given in ["hdfs:///data/x.csv", "s3a://bucket/x", "hdfs:/data", "http://store/x?y=1", "/data/x"] {
            assert_eq!(url(given), given);
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(url("data/x.csv"), here.join("data/x.csv").display().to_string());
        assert_eq!(url("a b:c/x"), here.join("a b:c/x").display().to_string());
        assert_eq!(external(Path::new("/data/t.parquet/")).unwrap()["name"], "t.parquet");
    }

    #[test]
    fn a_secondary_source_keeps_its_folders() {
        let place = |model: &str, path: &str| place(Path::new(model), Path::new(path)).unwrap();
        assert_eq!(place("m.py", "pkg/helper.py"), "pkg/helper.py");
        assert_eq!(place("models/m.py", "models/pkg/helper.py"), "pkg/helper.py");
        assert_eq!(place("/a/m.py", "/a/pkg/sub/helper.py"), "pkg/sub/helper.py");
        assert_eq!(place("/a/m.py", "./pkg/helper.py"), "pkg/helper.py");
        assert_eq!(place("/a/m.py", "../pkg/helper.py"), "helper.py");
        assert_eq!(place("/a/m.py", "/b/pkg/helper.py"), "helper.py");
    }
}
