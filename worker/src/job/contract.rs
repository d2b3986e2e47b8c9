//! What is agreed with a record model: which inputs it gets and in which form, what its outputs become, which schemas
//! hold, and how its driver is run. The driver finds it as `model_contract.json`.
//!
//! A contract is [`drafted`](draft) from the job's document and the tags of its source alone, and every fault of it is
//! told; then it is [`settled`](Contract::settle) on the machine that runs the job, which knows its files.
//!
//! Slots: input N of the job is slot 2N, output N is slot 2N + 1.
//!
//! This module must not know Python, nor how a driver is started.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use spark_runtime_protocol::asset::{AssetType, StagedPath, decode_base64};
use spark_runtime_protocol::event::{Side, Way};
use spark_runtime_protocol::job::{
    CHECK_INPUTS_KEY, CHECK_OUTPUTS_KEY, Content, Job, JobType, MODEL_ASSETS, SKIP_KEY, STOP_KEY, WRITES_KEY,
};
use spark_runtime_protocol::json::{Fault, step};

use super::schema::{self, Normalized};
use super::source::{SlotTag, Source};
use super::tags::Aspect;
use crate::config::{RecordsSettings, SqlSettings};

/// The version of the contract that the driver reads.
const VERSION: u32 = 1;
/// Files of a folder that are looked at for its size; one with more is large.
const MOST_FILES: usize = 10_000;
/// How many rows a database hands out at once. Some hand out all of them where nobody says.
const ROWS_AT_ONCE: &str = "1000";

/// How a function is called.
#[derive(Debug, Clone, PartialEq)]
pub enum Style {
    /// With three lists of whole assets, once.
    Lists,
    /// With records, or with the whole of its inputs as data frames.
    Records(Box<Contract>),
}

/// A format of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Comma-separated values with a header.
    Csv,
    /// A list of objects.
    Json,
    /// An object a line.
    Jsonl,
    /// Avro container files.
    Avro,
    /// Parquet.
    Parquet,
    /// The rows of a database, which no job names as a format.
    Jdbc,
}

impl Format {
    /// Every format with the words for it in a job, which are endings as well.
    const ALL: [(Self, &'static [&'static str]); 5] = [
        (Self::Csv, &["csv"]),
        (Self::Json, &["json"]),
        (Self::Jsonl, &["jsonl", "ndjson", "json_lines", "jsonlines", "json-lines"]),
        (Self::Avro, &["avro"]),
        (Self::Parquet, &["parquet"]),
    ];

    /// The format that a word stands for, in whatever case.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        Self::ALL.into_iter().find(|(_, words)| words.contains(&word.as_str())).map(|(format, _)| format)
    }

    /// The format that a name's ending says; how it is compressed stands behind that.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.trim_end_matches('/');
        let lower = name.to_ascii_lowercase();
        let bare =
            [".gz", ".bz2", ".xz"].iter().find_map(|ending| lower.strip_suffix(ending)).unwrap_or(&lower);
        Self::of_word(bare.rsplit('/').next()?.rsplit_once('.')?.1)
    }

    /// The word for it in a job.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Csv => "CSV",
            Self::Json => "JSON",
            Self::Jsonl => "JSONL",
            Self::Avro => "AVRO",
            Self::Parquet => "PARQUET",
            Self::Jdbc => "SQL",
        }
    }

    /// Every format's word, for sentences.
    #[must_use]
    pub fn words() -> String {
        Self::ALL.map(|(format, _)| format.word()).join(", ")
    }
}

/// Whether an output is one file or a folder of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One file.
    File,
    /// A folder.
    Folder,
}

/// What is agreed with a record model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Contract {
    version: u32,
    /// How the driver is run; decided by [`Contract::settle`].
    pub way: Way,
    /// The inputs that are used, in the order of the job.
    pub inputs: Vec<Input>,
    /// The outputs that are used, in the order of the job.
    pub outputs: Vec<Output>,
    /// The first record that a schema rejects is the last.
    pub stop_on_bad_records: bool,
    /// Records at which the model raises are counted and passed over.
    pub skip_failed_records: bool,
    /// The most rows of a data frame that a scoring function gets at once.
    pub frame_rows: u64,
    /// What the driver's process may hold, in bytes; `None` when nobody knows.
    pub memory: Option<u64>,
    #[serde(skip)]
    job_type: JobType,
}

/// An input of a record model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Input {
    /// Its place in `inputData`.
    pub index: usize,
    /// Its slot.
    pub slot: String,
    /// What it is called in messages.
    pub name: String,
    /// Where it is, as the driver finds it.
    pub location: String,
    /// What is in it.
    pub format: Format,
    /// A scoring function gets data frames of it instead of records.
    pub recordsets: bool,
    /// What its records are checked against.
    pub schema: Option<Value>,
    /// Its size in bytes, where it is known.
    pub size: Option<u64>,
    /// What Spark is told for reading a database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<Value>,
    #[serde(skip)]
    place: Place,
}

/// An output of a record model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Output {
    /// Its place in `outputData`.
    pub index: usize,
    /// Its slot.
    pub slot: String,
    /// What it is called in messages.
    pub name: String,
    /// Where it is put, as the driver finds it.
    pub location: String,
    /// One file, or a folder.
    pub kind: Kind,
    /// What is written.
    pub format: Format,
    /// What is written is checked against it.
    pub schema: Option<Value>,
    #[serde(skip)]
    place: Place,
}

/// Where an input or output lies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// In the working directory.
    Staged,
    /// On this machine.
    Local(PathBuf),
    /// Where Spark finds it.
    Elsewhere,
}

/// The inputs or outputs of a job that its source's tags do not leave out.
#[derive(Debug, Clone, Copy)]
struct Used<'a> {
    index: usize,
    asset: &'a Value,
}

/// How many inputs a job has that its source's tags do not leave out.
#[must_use]
pub fn used_inputs(job: &Job, source: &Source) -> usize {
    used(job.inputs(), source, Side::Input).len()
}

fn used<'a>(assets: &'a [Value], source: &Source, side: Side) -> Vec<Used<'a>> {
    let all = assets.iter().enumerate().map(|(index, asset)| Used { index, asset });
    let is_used = |used: &Used<'_>| {
        let tag = tag_of(source, Aspect::Slot, side, used);
        !tag.is_some_and(|tag| tag.value.eq_ignore_ascii_case("unused"))
    };
    all.filter(is_used).collect()
}

fn slot_number(side: Side, index: usize) -> usize {
    match side {
        Side::Input => 2 * index,
        Side::Output => 2 * index + 1,
    }
}

/// The tag that holds for a slot: the one that names it, else the one for its side, else the one for all.
fn tag_of<'a>(source: &'a Source, aspect: Aspect, side: Side, used: &Used<'_>) -> Option<&'a SlotTag> {
    let number = slot_number(side, used.index).to_string();
    let own = ["name", "filename"].map(|key| used.asset.get(key).and_then(Value::as_str));
    let of_side = match side {
        Side::Input => "$in",
        Side::Output => "$out",
    };
    let ranked = source.slot_tags.iter().filter(|tag| tag.aspect == aspect).filter_map(|tag| {
        let rank = match tag.slot.as_str() {
            slot if slot == number => 0,
            slot if own.contains(&Some(slot)) => 1,
            slot if slot == of_side => 2,
            "$all" => 3,
            _ => return None,
        };
        Some((rank, tag))
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, tag)| tag)
}

/// Puts a job's contract together. Gives what is to be told about it besides. `file_system` is that of paths without a
/// scheme, where it is not this machine's own: as `hdfs://name:8020`.
///
/// # Errors
/// Everything that keeps the job from being run.
pub fn draft(
    job: &Job,
    source: &Source,
    settings: &RecordsSettings,
    sql: &SqlSettings,
    file_system: Option<&str>,
) -> Result<(Contract, Vec<String>), Vec<Fault>> {
    let mut draft = Draft {
        job,
        source,
        sql,
        file_system,
        faults: Vec::new(),
        notes: Vec::new(),
        schemas: HashMap::new(),
    };
    draft.slot_tags();
    let inputs = draft.inputs();
    let outputs = draft.outputs();
    if !draft.faults.is_empty() {
        return Err(draft.faults);
    }
    let contract = Contract {
        version: VERSION,
        way: Way::Spark,
        inputs,
        outputs,
        stop_on_bad_records: job.says(STOP_KEY),
        skip_failed_records: job.says(SKIP_KEY),
        frame_rows: settings.frame_rows,
        memory: settings.memory,
        job_type: job.job_type(),
    };
    Ok((contract, draft.notes))
}

struct Draft<'a> {
    job: &'a Job,
    source: &'a Source,
    sql: &'a SqlSettings,
    file_system: Option<&'a str>,
    faults: Vec<Fault>,
    notes: Vec<String>,
    /// What was read already, by its place in the job: schemas are shared among slots, and their faults told once.
    schemas: HashMap<String, Option<Normalized>>,
}

impl Draft<'_> {
    fn fault(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault::new(at, message));
    }

    fn at_source(&self) -> String {
        format!("{}/sourceCode", self.job.primary_pointer())
    }

    /// Judges what the tags say, whether it is about a slot that this job has or not.
    fn slot_tags(&mut self) {
        let at = self.at_source();
        let mut seen: HashMap<(&str, &str), &SlotTag> = HashMap::new();
        for tag in &self.source.slot_tags {
            let word = tag.aspect.word();
            let told = format!("{word}.{} (line {})", tag.slot, tag.line);
            let wanted = match tag.aspect {
                Aspect::Recordsets if yes_or_no(&tag.value).is_none() => Some("true or false"),
                Aspect::Slot
                    if !["in-use", "unused"].iter().any(|one| tag.value.eq_ignore_ascii_case(one)) =>
                {
                    Some("in-use or unused")
                }
                _ => None,
            };
            if let Some(wanted) = wanted {
                let shown: String = tag.value.chars().take(40).collect();
                self.faults.push(Fault::new(&at, format!("the tag {told} says {shown:?}; give {wanted}")));
            }
            if let Some(first) = seen.insert((word, &tag.slot), tag)
                && first.value != tag.value
            {
                let message =
                    format!("the tag {told} contradicts that of line {}; leave one of them", first.line);
                self.faults.push(Fault::new(&at, message));
            }
        }
    }

    fn inputs(&mut self) -> Vec<Input> {
        let used = used(self.job.inputs(), self.source, Side::Input);
        if used.is_empty() && self.job.job_type() == JobType::Score {
            self.fault(
                "/inputData",
                "has no input that is used; a record model scores the records of its inputs",
            );
        }
        let only_one = used.len() == 1;
        used.iter().filter_map(|used| self.input(used, only_one)).collect()
    }

    fn input(&mut self, used: &Used<'_>, only_one: bool) -> Option<Input> {
        let at = format!("/inputData/{}", used.index);
        let located = self.locate(used.asset, &at);
        let format = self.format(used.asset, &at);
        let recordsets = tag_of(self.source, Aspect::Recordsets, Side::Input, used);
        let recordsets = recordsets.and_then(|tag| yes_or_no(&tag.value)).unwrap_or(false);
        let schema =
            if self.job.says(CHECK_INPUTS_KEY) { self.schema(used, Side::Input, only_one) } else { None };
        let options = self.query(used.asset, &at);
        let (location, place) = located?;
        let size = match place {
            Place::Staged => content_at(self.job, &at).map(size_of),
            Place::Local(_) | Place::Elsewhere => None,
        };
        Some(Input {
            index: used.index,
            slot: slot_number(Side::Input, used.index).to_string(),
            name: name_of(used.asset),
            location,
            format: format?,
            recordsets,
            schema,
            size,
            options,
            place,
        })
    }

    fn outputs(&mut self) -> Vec<Output> {
        let used = used(self.job.outputs(), self.source, Side::Output);
        match self.job.job_type() {
            JobType::Score => {
                if used.is_empty() && !self.job.says(WRITES_KEY) {
                    let message = format!(
                        "has no output that is used; say where to put what the model yields, or set \"{WRITES_KEY}\""
                    );
                    self.fault("/outputData", message);
                }
            }
            // The results are written to each output.
            JobType::Metrics => {}
            // What it leaves lies in a folder of its own.
            JobType::Training => return Vec::new(),
        }
        let only_one = used.len() == 1;
        used.iter().filter_map(|used| self.output(used, only_one)).collect()
    }

    fn output(&mut self, used: &Used<'_>, only_one: bool) -> Option<Output> {
        let at = format!("/outputData/{}", used.index);
        let located = self.locate(used.asset, &at);
        let format = self.format(used.asset, &at);
        let schema =
            if self.job.says(CHECK_OUTPUTS_KEY) { self.schema(used, Side::Output, only_one) } else { None };
        let (location, place) = located?;
        let is_folder = place != Place::Staged && location.ends_with('/');
        Some(Output {
            index: used.index,
            slot: slot_number(Side::Output, used.index).to_string(),
            name: name_of(used.asset),
            location,
            kind: if is_folder { Kind::Folder } else { Kind::File },
            format: format?,
            schema,
            place,
        })
    }

    /// Where an asset lies.
    fn locate(&mut self, asset: &Value, at: &str) -> Option<(String, Place)> {
        match AssetType::of(asset)? {
            AssetType::File => {
                let name = ["filename", "name"].iter().find_map(|key| asset.get(*key)?.as_str())?;
                let path = StagedPath::new(name).ok()?;
                Some((path.as_str().to_owned(), Place::Staged))
            }
            AssetType::ExternalFile => {
                let url = asset.get("fileUrl").and_then(Value::as_str)?;
                match self.external(url) {
                    Ok(located) => Some(located),
                    Err(message) => {
                        self.fault(step(at, "fileUrl"), message);
                        None
                    }
                }
            }
            AssetType::Sql if !at.starts_with("/inputData/") => {
                self.fault(step(at, "assetType"), "SQL is only read; name a file to write to");
                None
            }
            AssetType::Sql => match &self.sql.url {
                Some(url) => Some((url.clone(), Place::Elsewhere)),
                None => {
                    let message = "SQL needs a database, and the worker has none (its setting sql.url); \
                                   export the query's result to a file and name that";
                    self.fault(step(at, "assetType"), message);
                    None
                }
            },
            // Refused when the job was read.
            AssetType::SourceCode => None,
        }
    }

    /// What Spark is told for reading the rows of an asset that is a query.
    fn query(&mut self, asset: &Value, at: &str) -> Option<Value> {
        if AssetType::of(asset) != Some(AssetType::Sql) || self.sql.url.is_none() {
            return None;
        }
        let query = asset.get("query").and_then(Value::as_str).map(str::trim).unwrap_or_default();
        // Spark puts it into parentheses.
        let query = query.trim_end_matches(|c: char| c == ';' || c.is_whitespace());
        if query.is_empty() {
            self.fault(step(at, "query"), "is missing; give what the database is asked, as \"select ...\"");
            return None;
        }
        let mut options = serde_json::Map::new();
        options.insert("query".to_owned(), query.into());
        options.insert("fetchsize".to_owned(), ROWS_AT_ONCE.into());
        if let Some(driver) = &self.sql.driver {
            options.insert("driver".to_owned(), driver.as_str().into());
        }
        Some(Value::Object(options))
    }

    fn external(&self, url: &str) -> Result<(String, Place), String> {
        let local = |path: &str| (path.to_owned(), Place::Local(path.into()));
        let Some((scheme, rest)) = scheme_of(url) else {
            return match self.file_system {
                None => Ok(local(url)),
                Some(_) if !url.starts_with('/') => Err(format!("{url:?} is relative; give a whole path")),
                Some(system) => Ok((format!("{}{url}", system.trim_end_matches('/')), Place::Elsewhere)),
            };
        };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                let path = path.strip_prefix("localhost").unwrap_or(path);
                if !path.starts_with('/') {
                    return Err(format!("{url:?} names another machine; give file:///path"));
                }
                Ok(local(path))
            }
            "http" | "https" => {
                Err("is a web address, which Spark does not read; give a bucket's file as s3a://bucket/path"
                    .to_owned())
            }
            "jdbc" | "ftp" | "sftp" => Err(format!("{scheme}: is no place of files that Spark reads")),
            _ => Ok((url.to_owned(), Place::Elsewhere)),
        }
    }

    fn format(&mut self, asset: &Value, at: &str) -> Option<Format> {
        if AssetType::of(asset) == Some(AssetType::Sql) {
            return Some(Format::Jdbc);
        }
        let text = |key: &str| asset.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(word) = text("fileFormat") {
            let format = Format::of_word(word);
            if format.is_none() {
                let shown: String = word.chars().take(40).collect();
                self.fault(
                    step(at, "fileFormat"),
                    format!("{shown:?} is not known; give one of {}", Format::words()),
                );
            }
            return format;
        }
        let format = ["filename", "fileUrl", "name"].iter().find_map(|key| Format::of_name(text(key)?));
        if format.is_none() {
            let message = format!(
                "is missing, and the name has no ending that says it; give one of {}",
                Format::words()
            );
            self.fault(step(at, "fileFormat"), message);
        }
        format
    }

    /// The schema of a slot: from the model's metadata, else from the file that a tag names.
    fn schema(&mut self, used: &Used<'_>, side: Side, only_one: bool) -> Option<Value> {
        let key = match side {
            Side::Input => "inputSchema",
            Side::Output => "outputSchema",
        };
        let slot = slot_number(side, used.index);
        let at = format!("/model/storedModel/modelMetaData/{key}");
        let entries = self.job.document().pointer(&at);
        let tag = tag_of(self.source, Aspect::Schema, side, used);
        let entry = match entries {
            Some(Value::Array(entries)) => match entries.len() {
                // A model has one schema for all of its inputs, or one for each.
                1 => entries.first().map(|entry| (entry, format!("{at}/0"))),
                _ => entries.get(used.index).map(|entry| (entry, format!("{at}/{}", used.index))),
            },
            Some(entry @ Value::Object(_)) if only_one => Some((entry, at)),
            _ => None,
        };
        if let Some((entry, at)) = entry {
            if let Some(tag) = tag {
                self.notes.push(format!(
                    "slot {slot} has a schema in modelMetaData, which counts, and not the one that line {} of the source names",
                    tag.line
                ));
            }
            let (definition, at) = match entry.get("schemaDefinition") {
                Some(definition) => (definition, step(&at, "schemaDefinition")),
                None => (entry, at),
            };
            return self.read(&at, |at| schema::read(definition, at));
        }
        if let Some(tag) = tag {
            return self.tagged(tag);
        }
        self.notes.push(format!("slot {slot} has no schema, so that its records are not checked"));
        None
    }

    fn read(&mut self, at: &str, read: impl FnOnce(&str) -> Result<Normalized, Vec<Fault>>) -> Option<Value> {
        if !self.schemas.contains_key(at) {
            let schema = match read(at) {
                Ok(schema) => Some(schema),
                Err(faults) => {
                    self.faults.extend(faults);
                    None
                }
            };
            self.schemas.insert(at.to_owned(), schema);
        }
        self.schemas.get(at)?.as_ref().map(|schema| schema.value().clone())
    }

    /// The schema in the file that a tag names.
    fn tagged(&mut self, tag: &SlotTag) -> Option<Value> {
        let job = self.job;
        let with_ending = format!("{}.avsc", tag.value);
        let is_it = |asset: &Value| {
            let keys = ["filename", "sourceCodeFilePath", "name"];
            let names = keys.iter().filter_map(|key| asset.get(*key)?.as_str());
            names.into_iter().any(|name| name == tag.value || name == with_ending)
        };
        let assets = job.model_assets().iter().enumerate();
        let found = assets.filter(|(_, asset)| is_it(asset)).find_map(|(index, asset)| {
            let key = match AssetType::of(asset)? {
                AssetType::File => "fileContent",
                AssetType::SourceCode => "sourceCode",
                AssetType::ExternalFile | AssetType::Sql => return None,
            };
            let pointer = format!("{MODEL_ASSETS}/{index}");
            let (at, text) = match content_at(job, &pointer)? {
                // The asset does not have it.
                Content::Bytes(bytes) => (pointer, bytes.to_vec()),
                Content::Text(text) => (step(&pointer, key), text.as_bytes().to_vec()),
                Content::Base64(encoded) => {
                    let mut text = Vec::new();
                    decode_base64(encoded, &mut text).ok()?;
                    (step(&pointer, key), text)
                }
            };
            Some((at, text))
        });
        let Some((at, text)) = found else {
            let shown: String = tag.value.chars().take(80).collect();
            let message = format!(
                "the tag schema.{} (line {}) names {shown:?}, and no FILE asset of the model has that name",
                tag.slot, tag.line
            );
            let fault = Fault::new(self.at_source(), message);
            if !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
            return None;
        };
        self.read(&at, |at| schema::read_text(&text, at))
    }
}

fn yes_or_no(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "yes" => Some(true),
        "false" | "no" => Some(false),
        _ => None,
    }
}

/// What an asset is called in messages.
fn name_of(asset: &Value) -> String {
    let text = |key: &str| asset.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let last = |url: &str| url.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let own = text("name").or_else(|| text("filename")).map(str::to_owned);
    let is_query = AssetType::of(asset) == Some(AssetType::Sql);
    own.or_else(|| text("fileUrl").map(last))
        .or_else(|| is_query.then(|| "query".to_owned()))
        .unwrap_or_default()
}

/// The scheme of a URL and what stands behind its colon.
fn scheme_of(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "+.-".contains(c);
    (rest.starts_with('/') || scheme == "jdbc").then_some(())?;
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(fits))
        .then_some((scheme, rest))
}

/// What the asset at `pointer` brings along, or what was fetched for it.
fn content_at<'a>(job: &'a Job, pointer: &str) -> Option<Content<'a>> {
    job.staged_files().find(|file| file.pointer == pointer).map(|file| file.content)
}

/// How many bytes a file has.
fn size_of(content: Content<'_>) -> u64 {
    let bytes = match content {
        Content::Text(text) => text.len(),
        Content::Bytes(bytes) => bytes.len(),
        // Known to be valid.
        Content::Base64(encoded) => encoded.trim_end_matches('=').len() * 3 / 4,
    };
    bytes as u64
}

impl Contract {
    /// Looks at the files of this machine and decides how the driver is run. Blocks.
    ///
    /// A driver needs no Spark session when all that it reads and writes lies on this machine, and it is not worth one:
    /// a scoring job below `settings.process_below` bytes; and any metrics or training job, since these get the whole of
    /// their inputs in one process anyway.
    ///
    /// # Errors
    /// An input that is not there.
    pub fn settle(&mut self, settings: &RecordsSettings) -> Result<(), Vec<Fault>> {
        let mut faults = Vec::new();
        for input in &mut self.inputs {
            // A relative path leads into the working directory, which is not there yet.
            let Place::Local(path) = &input.place else { continue };
            if path.is_relative() {
                continue;
            }
            match std::fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => input.size = folder_size(path),
                Ok(metadata) => input.size = Some(metadata.len()),
                // What fits it is found by Spark alone.
                Err(_) if path.to_string_lossy().contains(['*', '?', '[', '{']) => {
                    input.place = Place::Elsewhere;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let message = format!("{} is not there", path.display());
                    faults.push(Fault::new(format!("/inputData/{}/fileUrl", input.index), message));
                }
                Err(_) => {}
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        for output in &mut self.outputs {
            if let Place::Local(path) = &output.place
                && path.is_absolute()
                && path.is_dir()
            {
                output.kind = Kind::Folder;
            }
        }
        self.way = if self.needs_no_session(settings.process_below) { Way::Process } else { Way::Spark };
        if self.memory.is_none() {
            self.memory = available_memory();
        }
        Ok(())
    }

    /// Whether an input is read from the database.
    #[must_use]
    pub fn reads_database(&self) -> bool {
        self.inputs.iter().any(|input| input.format == Format::Jdbc)
    }

    /// Whether the Java side of a session on this machine only starts Python processes and waits for them.
    #[must_use]
    pub fn leaves_java_idle(&self) -> bool {
        self.job_type == JobType::Score && self.is_for_python_alone()
    }

    /// Whether Python can read and write all of it without Spark.
    fn is_for_python_alone(&self) -> bool {
        let places =
            self.inputs.iter().map(|input| &input.place).chain(self.outputs.iter().map(|o| &o.place));
        if places.into_iter().any(|place| *place == Place::Elsewhere) {
            return false;
        }
        // Python alone has nothing that reads Parquet; Spark has.
        let mut formats = self.inputs.iter().map(|i| i.format).chain(self.outputs.iter().map(|o| o.format));
        !formats.any(|format| format == Format::Parquet)
    }

    fn needs_no_session(&self, below: u64) -> bool {
        if !self.is_for_python_alone() {
            return false;
        }
        match self.job_type {
            JobType::Score => {
                let size: Option<u64> = self.inputs.iter().map(|input| input.size).sum();
                size.is_some_and(|size| size < below)
            }
            JobType::Metrics | JobType::Training => true,
        }
    }
}

/// The size of what lies in a folder; `None` when it cannot be told.
fn folder_size(folder: &Path) -> Option<u64> {
    let mut size = 0_u64;
    for (count, entry) in std::fs::read_dir(folder).ok()?.enumerate() {
        let entry = entry.ok()?;
        let metadata = std::fs::metadata(entry.path()).ok()?;
        if count >= MOST_FILES || metadata.is_dir() {
            return None;
        }
        size = size.saturating_add(metadata.len());
    }
    Some(size)
}

/// What a process can get of this machine's memory before anything is swapped out, in bytes.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let machine = kibibytes.saturating_mul(1024);
    let group = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    // Where the worker is in a container, its own limit counts.
    let left = group("memory.max").map(|most| most.saturating_sub(group("memory.current").unwrap_or(0)));
    Some(left.map_or(machine, |left| left.min(machine)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Sources};
    use serde_json::json;

    fn settings() -> RecordsSettings {
        Settings::load(&Sources::default()).unwrap().records
    }

    fn job(more: Value) -> Job {
        let mut document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB",
            "inputData": [{"assetType": "EXTERNAL_FILE", "name": "in", "fileUrl": "/no/such/in.csv"}],
            "outputData": [{"assetType": "FILE", "filename": "sub/out.jsonl"}],
            "model": {"storedModel": {
                "modelAssets": [
                    {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"},
                    {"assetType": "FILE", "name": "s", "filename": "in.avsc", "fileContent": "W3sibmFtZSI6ImEiLCJ0eXBlIjoiaW50In1d"},
                    {"assetType": "FILE", "name": "t", "filename": "bad.avsc", "fileContent": "W3sibmFtZSI6ImEiLCJ0eXBlIjoibm8ifV0="}],
                "modelMetaData": {}}}
        });
        for (key, value) in more.as_object().unwrap() {
            match document.pointer_mut(key) {
                Some(place) => *place = value.clone(),
                None => document[key.trim_start_matches('/')] = value.clone(),
            }
        }
        Job::read(document.to_string().as_bytes(), None)
            .unwrap_or_else(|refusal| panic!("{:?}", refusal.faults))
    }

    fn drafted(
        more: Value,
        tags: &str,
        file_system: Option<&str>,
    ) -> Result<(Contract, Vec<String>), Vec<String>> {
        draft(&job(more), &Source::read(tags), &settings(), &SqlSettings::default(), file_system)
            .map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    fn contract(more: Value, tags: &str) -> Contract {
        drafted(more, tags, None).unwrap_or_else(|faults| panic!("{faults:?}")).0
    }

    fn faults(more: Value, tags: &str) -> Vec<String> {
        drafted(more, tags, None).err().unwrap_or_default()
    }

    #[test]
    fn a_schema_and_an_input_are_read_as_they_were_fetched_from_a_repository() {
        let in_git = json!({"repositoryType": "GIT_REPO", "repositoryRemote": "/r.git"});
        let job = job(json!({
            "/enableInputSchemaChecking": true,
            "/inputData": [{"assetType": "FILE", "filename": "in.csv", "repositoryInfo": in_git}],
            "/model/storedModel/modelAssets/1": {"assetType": "FILE", "filename": "in.avsc", "repositoryInfo": in_git}
        }));
        let contents = |schema: &str| {
            let fetched = [("/inputData/0", "a\n1\n"), ("/model/storedModel/modelAssets/1", schema)];
            job.clone().with_fetched(fetched.map(|(at, text)| (at.to_owned(), text.into())).into()).unwrap()
        };
        let source = Source::read("# modelop.schema.0: in.avsc\n");
        let whole = contents(r#"[{"name": "a", "type": "int"}]"#);
        let (contract, _) = draft(&whole, &source, &settings(), &SqlSettings::default(), None).unwrap();
        assert_eq!(sorted(contract.inputs[0].schema.as_ref().unwrap()), FIELD);
        assert_eq!(contract.inputs[0].size, Some(4));
        let faults =
            draft(&contents("[{}]"), &source, &settings(), &SqlSettings::default(), None).unwrap_err();
        assert_eq!(faults[0].pointer, "/model/storedModel/modelAssets/1");
    }

    const FIELD: &str =
        r#"{"fields":[{"has_default":false,"name":"a","nullable":false,"optional":false,"type":"int"}]}"#;

    fn sorted(value: &Value) -> String {
        // Parsed anew, the keys come in the order in which they stand.
        let mut keys: Vec<_> = value["fields"][0].as_object().unwrap().iter().collect();
        keys.sort_by_key(|(key, _)| key.as_str());
        let field: serde_json::Map<String, Value> =
            keys.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        json!({"fields": [field]}).to_string()
    }

    #[test]
    fn the_driver_finds_what_it_needs_under_the_names_that_it_knows() {
        let contract = contract(
            json!({"/stopOnBadRecords": true, "/enableInputSchemaChecking": true}),
            "# modelop.schema.0: in.avsc\n# modelop.recordsets.$in: yes\n",
        );
        let mut value = serde_json::to_value(&contract).unwrap();
        assert_eq!(sorted(&value["inputs"][0]["schema"].take()), FIELD);
        assert_eq!(
            value,
            json!({
                "version": 1, "way": "spark",
                "inputs": [{"index": 0, "slot": "0", "name": "in", "location": "/no/such/in.csv", "format": "csv",
                            "recordsets": true, "schema": null, "size": null}],
                "outputs": [{"index": 0, "slot": "1", "name": "sub/out.jsonl", "location": "sub/out.jsonl", "kind": "file",
                             "format": "jsonl", "schema": null}],
                "stop_on_bad_records": true, "skip_failed_records": false, "frame_rows": 10000, "memory": null
            })
        );
    }

    #[test]
    fn formats_come_from_the_asset_and_else_from_an_ending() {
        for (asset, expected) in [
            (json!({"fileUrl": "/x.csv"}), Some(Format::Csv)),
            (json!({"fileUrl": "/x.CSV.gz"}), Some(Format::Csv)),
            (json!({"fileUrl": "/x.txt", "fileFormat": "Ndjson"}), Some(Format::Jsonl)),
            (json!({"fileUrl": "/x.csv", "fileFormat": "JSON_LINES"}), Some(Format::Jsonl)),
            (json!({"fileUrl": "/folder.parquet/"}), Some(Format::Parquet)),
            (json!({"fileUrl": "s3a://b/1", "filename": "one.avro"}), Some(Format::Avro)),
            (json!({"fileUrl": "/x", "fileFormat": "XLSX"}), None),
            (json!({"fileUrl": "/x.d/y"}), None),
        ] {
            let mut asset = asset;
            asset["assetType"] = json!("EXTERNAL_FILE");
            let read = drafted(json!({"/inputData": [asset.clone()]}), "", None);
            assert_eq!(read.ok().map(|(contract, _)| contract.inputs[0].format), expected, "{asset}");
        }
        let told = faults(json!({"/inputData/0/fileUrl": "/data/test", "/outputData/0/filename": "o"}), "");
        assert_eq!(
            told,
            [
                "/inputData/0/fileFormat: is missing, and the name has no ending that says it; give one of CSV, JSON, JSONL, AVRO, PARQUET",
                "/outputData/0/fileFormat: is missing, and the name has no ending that says it; give one of CSV, JSON, JSONL, AVRO, PARQUET"
            ]
        );
    }

    #[test]
    fn what_no_driver_reads_is_refused_with_what_would_do() {
        let told = faults(
            json!({"/inputData": [{"assetType": "SQL", "query": "select 1"},
                                  {"assetType": "EXTERNAL_FILE", "fileUrl": "https://store/x.csv"}],
                   "/outputData": []}),
            "",
        );
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].starts_with("/inputData/0/assetType: SQL needs a database"), "{told:?}");
        assert!(told[1].contains("give a bucket's file as s3a://bucket/path"), "{told:?}");
        assert!(told[2].starts_with("/outputData: has no output that is used"), "{told:?}");
        assert!(faults(json!({"/outputData": [], "/modelWritesOutput": true}), "").is_empty());
        assert!(faults(json!({"/inputData": []}), "")[0].contains("scores the records of its inputs"));
    }

    #[test]
    fn a_query_is_read_from_the_database_of_the_settings() {
        let sql = SqlSettings {
            url: Some("jdbc:x://db/m".into()),
            driver: Some("org.x.Driver".into()),
            user: Some("me".into()),
            password_file: Some("/secret".into()),
        };
        let drafted = |more: Value| {
            draft(&job(more), &Source::read(""), &settings(), &sql, None)
                .map(|(contract, _)| contract)
                .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let mut contract =
            drafted(json!({"/inputData": [{"assetType": "SQL", "query": " select 1 ; "}]})).unwrap();
        contract.settle(&settings()).unwrap();
        assert!(contract.way == Way::Spark && contract.reads_database() && !contract.leaves_java_idle());
        let input = serde_json::to_value(&contract.inputs[0]).unwrap();
        assert_eq!(
            input,
            json!({"index": 0, "slot": "0", "name": "query", "location": "jdbc:x://db/m", "format": "jdbc",
                   "recordsets": false, "schema": null, "size": null,
                   "options": {"query": "select 1", "fetchsize": "1000", "driver": "org.x.Driver"}})
        );
        assert_eq!(
            drafted(json!({"/inputData": [{"assetType": "SQL"}]})).unwrap_err(),
            ["/inputData/0/query: is missing; give what the database is asked, as \"select ...\""]
        );
        assert_eq!(
            drafted(json!({"/outputData": [{"assetType": "SQL", "query": "x"}]})).unwrap_err(),
            ["/outputData/0/assetType: SQL is only read; name a file to write to"]
        );
    }

    #[test]
    fn slots_are_numbers_names_or_sides_and_the_nearest_tag_counts() {
        let two = json!({"/inputData": [
            {"assetType": "EXTERNAL_FILE", "name": "a", "fileUrl": "/a.csv"},
            {"assetType": "EXTERNAL_FILE", "name": "b", "fileUrl": "/b.csv"}]});
        let frames = |tags: &str| -> Vec<bool> {
            contract(two.clone(), tags).inputs.iter().map(|input| input.recordsets).collect()
        };
        assert_eq!(frames("# modelop.recordsets.2: true\n"), [false, true]);
        assert_eq!(frames("# modelop.recordsets.a: true\n"), [true, false]);
        assert_eq!(frames("# modelop.recordsets.$all: true\n# modelop.recordsets.2: no\n"), [true, false]);
        assert_eq!(frames("# modelop.recordsets.$out: true\n"), [false, false]);
        let used = contract(two.clone(), "# modelop.slot.0: unused\n# modelop.slot.8: unused\n").inputs;
        assert_eq!(
            used.iter().map(|input| (input.index, input.slot.as_str())).collect::<Vec<_>>(),
            [(1, "2")]
        );
        assert_eq!(
            faults(
                two,
                "# modelop.recordsets.0: maybe\n# modelop.slot.1: unused\n# modelop.slot.1: in-use\n"
            ),
            [
                "/model/storedModel/modelAssets/0/sourceCode: the tag recordsets.0 (line 1) says \"maybe\"; give true or false",
                "/model/storedModel/modelAssets/0/sourceCode: the tag slot.1 (line 3) contradicts that of line 2; leave one of them",
                "/outputData: has no output that is used; say where to put what the model yields, or set \"modelWritesOutput\""
            ]
        );
    }

    #[test]
    fn a_schema_comes_from_the_metadata_or_from_the_file_that_a_tag_names() {
        let metadata = |definition: Value| {
            json!({"/enableInputSchemaChecking": true,
                   "/model/storedModel/modelMetaData": {"inputSchema": [{"schemaDefinition": definition}]}})
        };
        let fields = json!([{"name": "a", "type": "int"}]);
        for definition in [
            fields.clone(),
            json!({"type": "record", "name": "R", "fields": fields}),
            json!(fields.to_string()),
        ] {
            let contract = contract(metadata(definition), "");
            assert_eq!(sorted(contract.inputs[0].schema.as_ref().unwrap()), FIELD);
        }
        let asked = json!({"/enableInputSchemaChecking": true});
        for tag in
            ["# modelop.schema.0: in.avsc\n", "# fastscore.schema.$in: in\n", "# modelop.schema.in: s\n"]
        {
            let contract = contract(asked.clone(), tag);
            assert_eq!(sorted(contract.inputs[0].schema.as_ref().unwrap()), FIELD, "{tag}");
        }
        assert_eq!(
            contract(json!({}), "# modelop.schema.0: bad.avsc\n").inputs[0].schema,
            None,
            "nobody asked"
        );
        assert_eq!(
            faults(asked.clone(), "# modelop.schema.0: bad.avsc\n"),
            [
                "/model/storedModel/modelAssets/2/fileContent: the schema at /0/type \"no\" is no Avro type; give one of null, boolean, int, long, float, double, string, bytes, or the name of a type that is defined above"
            ]
        );
        assert_eq!(
            faults(asked.clone(), "# modelop.schema.0: gone.avsc\n"),
            [
                "/model/storedModel/modelAssets/0/sourceCode: the tag schema.0 (line 1) names \"gone.avsc\", and no FILE asset of the model has that name"
            ]
        );
        assert_eq!(
            faults(metadata(json!([{"name": "a"}])), ""),
            [
                "/model/storedModel/modelMetaData/inputSchema/0/schemaDefinition/0/type: is missing; give an Avro type"
            ]
        );
        let (_, notes) = drafted(asked, "", None).unwrap();
        assert_eq!(notes, ["slot 0 has no schema, so that its records are not checked"]);
        let (_, notes) = drafted(metadata(fields), "# modelop.schema.0: gone.avsc\n", None).unwrap();
        assert!(notes[0].starts_with("slot 0 has a schema in modelMetaData, which counts"), "{notes:?}");
    }

    /// The way that is taken with an input of so many bytes in a file, and with these differences.
    fn way(bytes: usize, more: Value, file_system: Option<&str>) -> Way {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("in.csv");
        std::fs::write(&path, "x".repeat(bytes)).unwrap();
        let mut all = json!({"/inputData/0/fileUrl": path.display().to_string()});
        for (key, value) in more.as_object().unwrap() {
            all[key] = value.clone();
        }
        let (mut contract, _) = drafted(all, "", file_system).unwrap();
        contract.settle(&RecordsSettings { process_below: 100, ..settings() }).unwrap();
        contract.way
    }

    #[test]
    fn what_is_small_and_on_this_machine_needs_no_session() {
        assert_eq!(way(99, json!({}), None), Way::Process);
        assert_eq!(way(100, json!({}), None), Way::Spark);
        assert_eq!(
            way(
                1,
                json!({"/outputData/0": {"assetType": "EXTERNAL_FILE", "fileUrl": "hdfs:///o.csv"}}),
                None
            ),
            Way::Spark
        );
        assert_eq!(
            way(1, json!({"/outputData/0": {"assetType": "FILE", "filename": "o.parquet"}}), None),
            Way::Spark
        );
        assert_eq!(way(1, json!({}), Some("hdfs://n")), Way::Spark);
        let file = json!({"/inputData/0": {"assetType": "FILE", "filename": "i.csv", "fileContent": "YQox"}});
        assert_eq!(way(0, file, Some("hdfs://n")), Way::Process);
        let missing = json!({"/inputData/0/fileUrl": "data/relative.csv"});
        assert_eq!(way(0, missing, None), Way::Spark, "nobody knows how large it is");
        for job_type in ["MODEL_BATCH_TEST_JOB", "MODEL_BATCH_TRAINING_JOB"] {
            assert_eq!(way(1000, json!({"/jobType": job_type}), None), Way::Process);
            let elsewhere = json!({"/jobType": job_type, "/inputData/0/fileUrl": "s3a://b/x.csv"});
            assert_eq!(way(0, elsewhere, None), Way::Spark);
        }
    }

    #[test]
    fn java_is_idle_where_python_reads_and_writes_all_of_it() {
        let idle = |more: Value| contract(more, "").leaves_java_idle();
        assert!(idle(json!({})));
        assert!(!idle(json!({"/inputData/0/fileUrl": "s3a://b/x.csv"})));
        assert!(!idle(json!({"/outputData/0/filename": "o.parquet"})));
        assert!(!idle(json!({"/jobType": "MODEL_BATCH_TEST_JOB"})));
    }

    #[test]
    fn a_folder_counts_as_what_lies_in_it() {
        let place = tempfile::tempdir().unwrap();
        for (name, bytes) in [("part-0.csv", 60), ("part-1.csv", 39)] {
            std::fs::write(place.path().join(name), "x".repeat(bytes)).unwrap();
        }
        let url = place.path().display().to_string();
        let output = json!({"assetType": "EXTERNAL_FILE", "fileUrl": url, "fileFormat": "CSV"});
        let (mut contract, _) =
            drafted(json!({"/inputData/0": output, "/outputData/0": output}), "", None).unwrap();
        assert_eq!(contract.outputs[0].kind, Kind::File);
        contract.settle(&RecordsSettings { process_below: 100, ..settings() }).unwrap();
        assert_eq!((contract.inputs[0].size, contract.way), (Some(99), Way::Process));
        assert_eq!(contract.outputs[0].kind, Kind::Folder);
        assert!(contract.memory.is_some_and(|memory| memory > 1 << 20));
    }

    #[test]
    fn an_input_that_is_not_there_is_told_before_anything_starts() {
        let (mut contract, _) = drafted(json!({}), "", None).unwrap();
        let faults = contract.settle(&settings()).unwrap_err();
        assert_eq!(faults[0].to_string(), "/inputData/0/fileUrl: /no/such/in.csv is not there");
    }

    #[test]
    fn a_local_file_is_told_from_one_of_the_cluster() {
        let location = |url: &str, file_system| {
            drafted(json!({"/inputData/0/fileUrl": url}), "", file_system)
                .map(|(contract, _)| contract.inputs[0].location.clone())
                .map_err(|faults| faults.join("; "))
        };
        let cluster = Some("hdfs://name:8020/");
        for (url, file_system, expected) in [
            ("/data/x.csv", None, "/data/x.csv"),
            ("/data/x.csv", cluster, "hdfs://name:8020/data/x.csv"),
            ("file:///data/x.csv", None, "/data/x.csv"),
            ("file:/data/x.csv", cluster, "/data/x.csv"),
            ("s3a://b/x.csv", None, "s3a://b/x.csv"),
            ("data/x.csv", None, "data/x.csv"),
        ] {
            assert_eq!(location(url, file_system).as_deref(), Ok(expected), "{url}");
        }
        assert!(location("file://host/x.csv", None).unwrap_err().contains("names another machine"));
        assert!(location("x.csv", cluster).unwrap_err().contains("is relative"));
    }
}
