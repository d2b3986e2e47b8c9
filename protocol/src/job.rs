//! The modelBatchJob: a typed view over the untouched JSON of a job.
//!
//! [`Job::read`] is the only way in, and it judges the whole document at once: whoever holds a [`Job`] knows that its
//! primary source, its assets, their places in a working directory and its flags have the right shape. What the
//! document says is never changed; keys that are not known here are kept.
//!
//! This module must not know how a job is run, nor what Python or spark-submit think of its contents.

use std::collections::HashMap;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::asset::{AssetType, StagedPath, decode_base64};
use crate::json::{self, Fault, Faults, step, type_word};
use crate::repository::{self, GitFile};

/// Identifies a job for its whole life: 1 to 128 letters, digits, `-`, `_` or `:`, so that it is one word of a routing
/// key and a file name everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

/// Why a text is no job id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no job id: give 1 to 128 letters, digits, '-', '_' or ':'")]
pub struct JobIdError;

impl JobId {
    /// Takes `text` as a job id.
    ///
    /// # Errors
    /// [`JobIdError`] when it is empty, too long or has another character.
    pub fn new(text: &str) -> Result<Self, JobIdError> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':');
        if text.is_empty() || text.len() > 128 || !text.bytes().all(fits) {
            return Err(JobIdError);
        }
        Ok(Self(text.to_owned()))
    }

    /// A new random id (UUID version 4).
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().to_string())
    }

    /// Stands in for the id of a message that has none, so that its refusal can be published and found: the same body
    /// always gets the same one.
    #[must_use]
    pub fn stand_in(body: &[u8]) -> Self {
        let digest = Sha256::digest(body);
        let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("unnamed-{hex}"))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for JobId {
    type Error = JobIdError;

    fn try_from(text: String) -> Result<Self, JobIdError> {
        Self::new(&text)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

/// What a job asks of its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobType {
    /// Score: the model's scoring function.
    #[serde(rename = "MODEL_BATCH_JOB")]
    Score,
    /// Metrics: the model's metrics function; what it gives is the job's `results`.
    #[serde(rename = "MODEL_BATCH_TEST_JOB")]
    Metrics,
    /// Training: the model's training function.
    #[serde(rename = "MODEL_BATCH_TRAINING_JOB")]
    Training,
}

impl JobType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::Score, Self::Metrics, Self::Training];

    /// The word for it in a job's JSON.
    #[must_use]
    pub fn wire(self) -> &'static str {
        match self {
            Self::Score => "MODEL_BATCH_JOB",
            Self::Metrics => "MODEL_BATCH_TEST_JOB",
            Self::Training => "MODEL_BATCH_TRAINING_JOB",
        }
    }

    /// The keys of the primary source that may name the function to call, in the order in which they are looked at.
    #[must_use]
    pub fn function_keys(self) -> &'static [&'static str] {
        match self {
            Self::Score => &["scoreFunction"],
            Self::Metrics => &["metricsFunction"],
            // No public job names this key; both spellings are taken.
            Self::Training => &["trainingFunction", "trainFunction"],
        }
    }

    /// The smart tags that may name the function, without their `modelop.` or `fastscore.` prefix.
    #[must_use]
    pub fn function_tags(self) -> &'static [&'static str] {
        match self {
            // FastScore's models call it an action.
            Self::Score => &["score", "action"],
            Self::Metrics => &["metrics"],
            Self::Training => &["train", "training"],
        }
    }
}

/// The key of the primary source that names its init function.
pub const INIT_KEY: &str = "initFunction";

/// The key of a job by which the records of its inputs are checked against their schemas.
pub const CHECK_INPUTS_KEY: &str = "enableInputSchemaChecking";
/// The key of a job by which what its model yields is checked against the outputs' schemas.
pub const CHECK_OUTPUTS_KEY: &str = "enableOutputSchemaChecking";
/// The key of a job that ends at the first record that a schema rejects.
pub const STOP_KEY: &str = "stopOnBadRecords";
/// The key of a job that passes over records at which its model raises.
pub const SKIP_KEY: &str = "skipFailedRecords";
/// The key of a job whose model writes its outputs itself.
pub const WRITES_KEY: &str = "modelWritesOutput";
/// The keys of a job that say yes or no.
const SWITCHES: [&str; 5] = [CHECK_INPUTS_KEY, CHECK_OUTPUTS_KEY, STOP_KEY, SKIP_KEY, WRITES_KEY];

/// A message that is no job that can be run: every fault of it, and the id under which the refusal is published.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The job's own id, else the message's, else one that stands in for it.
    pub id: JobId,
    /// The job's type, when it has a known one.
    pub job_type: Option<JobType>,
    /// Every fault that was found; never empty.
    pub faults: Vec<Fault>,
}

/// A file that a job brings along, and where it will lie.
#[derive(Debug, Clone, Copy)]
pub struct StagedFile<'a> {
    /// RFC 6901 pointer to its asset.
    pub pointer: &'a str,
    /// Its path below the working directory.
    pub path: &'a StagedPath,
    /// Its contents.
    pub content: Content<'a>,
}

/// The contents of a staged file as the job carries them.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// Text, to be written as UTF-8.
    Text(&'a str),
    /// Bytes in base64; known to be valid.
    Base64(&'a str),
    /// Bytes as they were fetched from a repository.
    Bytes(&'a [u8]),
}

/// An asset whose content is in a git repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryAsset {
    /// Where the asset stands in the job.
    pub pointer: String,
    /// Where its content is.
    pub file: GitFile,
}

/// One flag of spark-submit (`--executor-memory`) or one Spark property (`spark.executor.memory`) that a job asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedFlag {
    /// Where it stands in the job.
    pub pointer: String,
    /// The key as written.
    pub name: String,
    /// The value; empty for a bare flag.
    pub value: String,
}

/// A job that can be run, as far as its document tells.
#[derive(Debug, Clone)]
pub struct Job {
    id: JobId,
    job_type: JobType,
    document: Value,
    /// Index of the primary source in `modelAssets`.
    primary: usize,
    /// The places of FILE assets and secondary sources: pointer of the asset's content, and path.
    staged: Vec<(String, StagedPath)>,
    flags: Vec<RequestedFlag>,
    /// The assets whose content is in a repository, in order.
    in_git: Vec<RepositoryAsset>,
    /// What was fetched for them, by their pointers.
    fetched: HashMap<String, Vec<u8>>,
}

/// The role of an asset that lists the packages that a model requires.
const REQUIRED_LIBRARIES: &str = "REQUIRED_LIBRARIES";
/// RFC 6901 pointer to the model's assets.
pub const MODEL_ASSETS: &str = "/model/storedModel/modelAssets";

impl Job {
    /// Reads a message's body as a job.
    ///
    /// `message_id` is the id of a job whose document has none. The document's own id wins over it.
    ///
    /// # Errors
    /// A [`Refusal`] with every fault of the document, never the first alone.
    pub fn read(body: &[u8], message_id: Option<&str>) -> Result<Self, Refusal> {
        let from_message = message_id.filter(|id| !id.is_empty()).map(JobId::new);
        let document = match json::parse(body) {
            Ok(document) => document,
            Err(faults) => {
                let id = from_message.and_then(Result::ok).unwrap_or_else(|| JobId::stand_in(body));
                return Err(Refusal { id, job_type: None, faults });
            }
        };
        let mut check = Check { faults: Faults::default() };
        let own = check.id(&document);
        let id = match (own, from_message) {
            (Some(id), _) => id,
            (None, Some(Ok(id))) => id,
            (None, Some(Err(error))) => {
                check.fault("/id", format!("is missing, and the message's message_id {error}"));
                JobId::stand_in(body)
            }
            (None, None) => {
                if document.get("id").is_none_or(Value::is_null) {
                    check.fault("/id", "is missing, and the message has no message_id; give one of them");
                }
                JobId::stand_in(body)
            }
        };
        let job_type = check.job_type(&document);
        check.status(&document);
        check.switches(&document);
        let primary = check.primary_source(&document);
        let Staging { paths: staged, in_git, .. } = check.assets(&document);
        check.training_output(&document);
        let flags = check.flags(&document);
        match (job_type, primary) {
            (Some(job_type), Some(primary)) if check.faults.is_empty() => {
                let fetched = HashMap::new();
                Ok(Self { id, job_type, document, primary, staged, flags, in_git, fetched })
            }
            (job_type, _) => Err(Refusal { id, job_type, faults: check.faults.into_vec() }),
        }
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// What the job asks of its model.
    #[must_use]
    pub fn job_type(&self) -> JobType {
        self.job_type
    }

    /// The whole document as it was sent.
    #[must_use]
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The primary source asset, whole.
    #[must_use]
    pub fn primary_source(&self) -> &Value {
        list(&self.document, MODEL_ASSETS).get(self.primary).unwrap_or(&Value::Null)
    }

    /// RFC 6901 pointer to the primary source asset.
    #[must_use]
    pub fn primary_pointer(&self) -> String {
        format!("{MODEL_ASSETS}/{}", self.primary)
    }

    /// The primary source's text; empty as long as it has not been fetched from its repository.
    #[must_use]
    pub fn source_code(&self) -> &str {
        let fetched = self.fetched.get(&self.primary_pointer());
        match fetched {
            // Known to be UTF-8.
            Some(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
            None => text(self.primary_source(), "sourceCode").unwrap_or_default(),
        }
    }

    /// The assets whose content is in a git repository, in order.
    #[must_use]
    pub fn in_git(&self) -> &[RepositoryAsset] {
        &self.in_git
    }

    /// Whether the content of every asset is here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.in_git.iter().all(|asset| self.fetched.contains_key(&asset.pointer))
    }

    /// The job with what was fetched for each of [`Job::in_git`], by the pointers of the assets.
    ///
    /// The document stays as it was sent: the model sees its assets unchanged.
    ///
    /// # Errors
    /// A primary source that is no text, or has none; an asset for which nothing was fetched.
    pub fn with_fetched(mut self, fetched: HashMap<String, Vec<u8>>) -> Result<Self, Vec<Fault>> {
        self.fetched = fetched;
        let mut faults = Vec::new();
        for RepositoryAsset { pointer, file } in &self.in_git {
            let primary = *pointer == self.primary_pointer();
            match self.fetched.get(pointer).map(|bytes| std::str::from_utf8(bytes)) {
                None => faults.push(Fault::new(pointer, "was not fetched from its repository")),
                Some(Err(error)) if primary => {
                    let words = format!("is no text in UTF-8: {error}");
                    faults.push(Fault::new(pointer, format!("{} of {} {words}", file.path, file.revision())));
                }
                Some(Ok(text)) if primary && text.trim().is_empty() => {
                    let words = "is empty; the primary source holds the model's functions";
                    faults.push(Fault::new(pointer, format!("{} of {} {words}", file.path, file.revision())));
                }
                Some(_) => {}
            }
        }
        if faults.is_empty() { Ok(self) } else { Err(faults) }
    }

    /// The function that the primary source names under one of `keys`, when it names one.
    #[must_use]
    pub fn named_function(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| text(self.primary_source(), key)).filter(|name| !name.is_empty())
    }

    /// The EXTERNAL_FILE assets of the model, whole and in order: `job_model_assets_input`.
    pub fn external_model_assets(&self) -> impl Iterator<Item = &Value> {
        external(&self.document, MODEL_ASSETS)
    }

    /// The EXTERNAL_FILE inputs, whole and in order: `job_input`.
    pub fn external_inputs(&self) -> impl Iterator<Item = &Value> {
        external(&self.document, "/inputData")
    }

    /// The EXTERNAL_FILE outputs, whole and in order: `job_output`.
    pub fn external_outputs(&self) -> impl Iterator<Item = &Value> {
        external(&self.document, "/outputData")
    }

    /// Every asset of the model, whole and in order.
    #[must_use]
    pub fn model_assets(&self) -> &[Value] {
        list(&self.document, MODEL_ASSETS)
    }

    /// Every entry of `inputData`, whole and in order.
    #[must_use]
    pub fn inputs(&self) -> &[Value] {
        list(&self.document, "/inputData")
    }

    /// Whether the job says yes under a key such as [`CHECK_INPUTS_KEY`].
    #[must_use]
    pub fn says(&self, key: &str) -> bool {
        self.document.get(key) == Some(&Value::Bool(true))
    }

    /// Every entry of `outputData`, whole and in order.
    #[must_use]
    pub fn outputs(&self) -> &[Value] {
        list(&self.document, "/outputData")
    }

    /// Where the files that a training job leaves in `outputDir` shall go: `fileUrl` of `trainingOutput`.
    #[must_use]
    pub fn training_output(&self) -> Option<&str> {
        text(self.document.get("trainingOutput")?, "fileUrl")
    }

    /// The files that the job brings along: FILE assets and secondary sources, in order; what is in a repository once it
    /// has been fetched.
    pub fn staged_files(&self) -> impl Iterator<Item = StagedFile<'_>> {
        self.staged.iter().filter_map(|(pointer, path)| {
            if let Some(bytes) = self.fetched.get(pointer) {
                return Some(StagedFile { pointer, path, content: Content::Bytes(bytes) });
            }
            let asset = self.document.pointer(pointer)?;
            let content = match AssetType::of(asset)? {
                AssetType::File => Content::Base64(text(asset, "fileContent")?),
                _ => Content::Text(text(asset, "sourceCode")?),
            };
            Some(StagedFile { pointer, path, content })
        })
    }

    /// The lists of packages that the model requires: FILE and SOURCE_CODE assets of the model with the role
    /// REQUIRED_LIBRARIES, in order. Pointer, place in the working directory (none for the primary source), content.
    pub fn required_libraries(&self) -> impl Iterator<Item = (String, Option<&StagedPath>, Content<'_>)> {
        let assets = list(&self.document, MODEL_ASSETS).iter().enumerate();
        assets.filter_map(|(index, asset)| {
            if text(asset, "assetRole") != Some(REQUIRED_LIBRARIES) {
                return None;
            }
            let pointer = format!("{MODEL_ASSETS}/{index}");
            let path = self.staged.iter().find(|(staged, _)| *staged == pointer).map(|(_, path)| path);
            let content = match (self.fetched.get(&pointer), AssetType::of(asset)?) {
                (Some(bytes), _) => Content::Bytes(bytes),
                (None, AssetType::File) => Content::Base64(text(asset, "fileContent")?),
                (None, AssetType::SourceCode) => Content::Text(text(asset, "sourceCode")?),
                _ => return None,
            };
            Some((pointer, path, content))
        })
    }

    /// The spark-submit flags and Spark properties that the job asks for: `targetEngine.executorMemory`, then
    /// `targetEngine.sparkConf`, then `jobParameters`. Of two with one name the later wins.
    #[must_use]
    pub fn flags(&self) -> &[RequestedFlag] {
        &self.flags
    }
}

fn list<'a>(document: &'a Value, pointer: &str) -> &'a [Value] {
    document.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn external<'a>(document: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    list(document, pointer).iter().filter(|asset| AssetType::of(asset) == Some(AssetType::ExternalFile))
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

/// Looks through a document and keeps every fault that it meets.
struct Check {
    faults: Faults,
}

impl Check {
    fn fault(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault::new(pointer, message));
    }

    fn wrong_type(&mut self, pointer: &str, found: &Value, wanted: &str) {
        self.fault(pointer, format!("is {}; give {wanted}", type_word(found)));
    }

    /// The object at `key` of `parent`; absent and null are the same.
    fn object<'a>(&mut self, parent: &'a Value, at: &str, key: &str) -> Option<&'a Map<String, Value>> {
        match parent.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::Object(object)) => Some(object),
            Some(other) => {
                self.wrong_type(&step(at, key), other, "an object");
                None
            }
        }
    }

    /// The string at `key` of `parent`; absent and null are the same.
    fn string<'a>(&mut self, parent: &'a Value, at: &str, key: &str) -> Option<&'a str> {
        match parent.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::String(string)) => Some(string),
            Some(other) => {
                self.wrong_type(&step(at, key), other, "a string");
                None
            }
        }
    }

    fn id(&mut self, document: &Value) -> Option<JobId> {
        let text = self.string(document, "", "id")?;
        match JobId::new(text) {
            Ok(id) => Some(id),
            Err(error) => {
                self.fault("/id", error.to_string());
                None
            }
        }
    }

    fn job_type(&mut self, document: &Value) -> Option<JobType> {
        if !document.is_object() {
            self.wrong_type("", document, "an object");
            return None;
        }
        let known = JobType::ALL.map(JobType::wire).join(", ");
        let faults_before = self.faults.len();
        let Some(word) = self.string(document, "", "jobType") else {
            if self.faults.len() == faults_before {
                self.fault("/jobType", format!("is missing; give one of {known}"));
            }
            return None;
        };
        let found = JobType::ALL.into_iter().find(|job_type| job_type.wire() == word);
        if found.is_none() {
            self.fault("/jobType", format!("{word:?} is not known; give one of {known}"));
        }
        found
    }

    fn status(&mut self, document: &Value) {
        if let Some(status @ ("COMPLETE" | "ERROR" | "CANCELLED")) = self.string(document, "", "jobStatus") {
            let message =
                format!("the job has already ended ({status}); to run it again, publish it as CREATED");
            self.fault("/jobStatus", message);
        }
    }

    fn switches(&mut self, document: &Value) {
        for key in SWITCHES {
            match document.get(key) {
                None | Some(Value::Null | Value::Bool(_)) => {}
                Some(other) => self.wrong_type(&step("", key), other, "true or false"),
            }
        }
    }

    /// The model's one primary source, by its index.
    fn primary_source(&mut self, document: &Value) -> Option<usize> {
        let model = self.object(document, "", "model");
        let stored = match document.get("model") {
            Some(model) => self.object(model, "/model", "storedModel"),
            None => None,
        };
        let assets = stored.and_then(|stored| stored.get("modelAssets"));
        let Some(Value::Array(assets)) = assets else {
            match assets {
                Some(other) if !other.is_null() => self.wrong_type(MODEL_ASSETS, other, "a list of assets"),
                _ if document.is_object()
                    && (model.is_some() || document.get("model").is_none_or(Value::is_null)) =>
                {
                    self.fault(MODEL_ASSETS, "is missing; a job needs its model's assets");
                }
                _ => {}
            }
            return None;
        };
        let primaries: Vec<usize> = assets
            .iter()
            .enumerate()
            .filter(|(_, asset)| AssetType::of(asset) == Some(AssetType::SourceCode))
            .filter(|(_, asset)| asset.get("primaryModelSource") == Some(&Value::Bool(true)))
            .map(|(index, _)| index)
            .collect();
        match primaries[..] {
            [primary] => Some(primary),
            [] => {
                self.fault(
                    MODEL_ASSETS,
                    "has no primary source; mark one SOURCE_CODE asset with \"primaryModelSource\": true",
                );
                None
            }
            [_, ..] => {
                for extra in &primaries[1..] {
                    let pointer = format!("{MODEL_ASSETS}/{extra}/primaryModelSource");
                    let first = primaries[0];
                    self.fault(
                        pointer,
                        format!("is true, and so is that of asset {first}; one source is primary"),
                    );
                }
                None
            }
        }
    }

    /// Looks at every asset of the job; gives what is to be staged.
    fn assets(&mut self, document: &Value) -> Staging {
        let mut staging = Staging::default();
        for (index, asset) in list(document, MODEL_ASSETS).iter().enumerate() {
            self.asset(asset, &format!("{MODEL_ASSETS}/{index}"), Use::Model, &mut staging);
        }
        for (key, usage) in [("inputData", Use::Input), ("outputData", Use::Output)] {
            match document.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Array(assets)) => {
                    for (index, asset) in assets.iter().enumerate() {
                        self.asset(asset, &format!("/{key}/{index}"), usage, &mut staging);
                    }
                }
                Some(other) => self.wrong_type(&format!("/{key}"), other, "a list of assets"),
            }
        }
        staging
    }

    fn asset(&mut self, asset: &Value, at: &str, usage: Use, staging: &mut Staging) {
        if !asset.is_object() {
            return self.wrong_type(at, asset, "an object");
        }
        let known = AssetType::ALL.map(|(wire, _)| wire).join(", ");
        let faults_before = self.faults.len();
        let Some(word) = self.string(asset, at, "assetType") else {
            if self.faults.len() == faults_before {
                self.fault(step(at, "assetType"), format!("is missing; give one of {known}"));
            }
            return;
        };
        match AssetType::from_wire(word) {
            None => self.fault(step(at, "assetType"), format!("{word:?} is not known; give one of {known}")),
            Some(AssetType::ExternalFile) => {
                if self.required(asset, at, "fileUrl") == Some("") {
                    self.fault(step(at, "fileUrl"), "is empty; give the file's place");
                }
                self.string(asset, at, "filename");
                self.string(asset, at, "name");
            }
            Some(AssetType::File) => self.file(asset, at, usage, staging),
            Some(AssetType::SourceCode) => self.source(asset, at, usage, staging),
            Some(AssetType::Sql) => {}
        }
    }

    fn required<'a>(&mut self, asset: &'a Value, at: &str, key: &str) -> Option<&'a str> {
        let faults_before = self.faults.len();
        let found = self.string(asset, at, key);
        if found.is_none() && self.faults.len() == faults_before {
            self.fault(step(at, key), "is missing; give a string");
        }
        found
    }

    fn file(&mut self, asset: &Value, at: &str, usage: Use, staging: &mut Staging) {
        let path = self.path(asset, at, &FILE_PATHS);
        if usage == Use::Output {
            if let Some((pointer, path)) = path {
                staging.output(self, pointer, path);
            }
            return;
        }
        if repository::is_in_git(asset, "fileContent") {
            self.in_git(asset, at, &FILE_PATHS, true, staging);
        } else if let Some(content) = self.required(asset, at, "fileContent")
            && let Err(error) = decode_base64(content, &mut io::sink())
        {
            self.fault(step(at, "fileContent"), format!("is not base64: {error}"));
        }
        if let Some((pointer, path)) = path {
            staging.input(self, at, pointer, path);
        }
    }

    fn source(&mut self, asset: &Value, at: &str, usage: Use, staging: &mut Staging) {
        if usage != Use::Model {
            return self.fault(step(at, "assetType"), "SOURCE_CODE is no data; give FILE or EXTERNAL_FILE");
        }
        let primary = match asset.get("primaryModelSource") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(primary)) => *primary,
            Some(other) => {
                self.wrong_type(&step(at, "primaryModelSource"), other, "true or false");
                false
            }
        };
        for key in [INIT_KEY].iter().chain(JobType::ALL.iter().flat_map(|job_type| job_type.function_keys()))
        {
            self.string(asset, at, key);
        }
        let in_git = repository::is_in_git(asset, "sourceCode");
        if in_git {
            self.in_git(asset, at, &SOURCE_PATHS, !primary, staging);
        }
        let source = if in_git { None } else { self.required(asset, at, "sourceCode") };
        if primary {
            if source.is_some_and(|source| source.trim().is_empty()) {
                self.fault(
                    step(at, "sourceCode"),
                    "is empty; the primary source holds the model's functions",
                );
            }
            // It is staged under a name of the service's own; its own name is no path.
            return;
        }
        if let Some((pointer, path)) = self.path(asset, at, &SOURCE_PATHS) {
            staging.input(self, at, pointer, path);
        }
    }

    /// `is_staged`: the asset's own path is also its place, and judged as that.
    fn in_git(
        &mut self,
        asset: &Value,
        at: &str,
        own_paths: &[&str; 2],
        is_staged: bool,
        staging: &mut Staging,
    ) {
        match repository::read(asset, at, own_paths) {
            Ok(file) => staging.in_git.push(RepositoryAsset { pointer: at.to_owned(), file }),
            Err(faults) => {
                let at_info = step(at, repository::REPOSITORY_INFO);
                for fault in faults.into_iter().filter(|f| !is_staged || f.pointer.starts_with(&at_info)) {
                    self.faults.push(fault);
                }
            }
        }
    }

    /// The asset's place in the working directory, from the first of `keys` that it has.
    fn path(&mut self, asset: &Value, at: &str, keys: &[&str; 2]) -> Option<(String, StagedPath)> {
        let key =
            keys.iter().find(|key| asset.get(**key).is_some_and(|name| !name.is_null())).unwrap_or(&keys[0]);
        let name = self.required(asset, at, key)?;
        let pointer = step(at, key);
        match StagedPath::new(name) {
            Ok(path) => Some((pointer, path)),
            Err(error) => {
                let shown: String = name.chars().take(80).collect();
                self.fault(pointer, format!("{shown:?} {error}"));
                None
            }
        }
    }

    fn training_output(&mut self, document: &Value) {
        self.object(document, "", "trainingOutput");
        if let Some(output) = document.get("trainingOutput").filter(|output| output.is_object())
            && self.required(output, "/trainingOutput", "fileUrl") == Some("")
        {
            self.fault("/trainingOutput/fileUrl", "is empty; give the URL of a folder");
        }
    }

    fn flags(&mut self, document: &Value) -> Vec<RequestedFlag> {
        let mut flags = Vec::new();
        self.object(document, "", "targetEngine");
        if let Some(engine) = document.get("targetEngine") {
            if let Some(memory) =
                self.string(engine, "/targetEngine", "executorMemory").filter(|m| !m.is_empty())
            {
                flags.push(RequestedFlag {
                    pointer: "/targetEngine/executorMemory".to_owned(),
                    name: "--executor-memory".to_owned(),
                    value: memory.to_owned(),
                });
            }
            if let Some(conf) = self.object(engine, "/targetEngine", "sparkConf") {
                self.flag_table(conf, "/targetEngine/sparkConf", &mut flags);
            }
        }
        if let Some(parameters) = self.object(document, "", "jobParameters") {
            self.flag_table(parameters, "/jobParameters", &mut flags);
        }
        flags
    }

    fn flag_table(&mut self, table: &Map<String, Value>, at: &str, flags: &mut Vec<RequestedFlag>) {
        for (name, value) in table {
            let pointer = step(at, name);
            match value {
                Value::String(value) => {
                    flags.push(RequestedFlag { pointer, name: name.clone(), value: value.clone() });
                }
                other => self.wrong_type(&pointer, other, "a string (\"\" for a bare flag)"),
            }
        }
    }
}

/// The keys under which a FILE asset has its path, in the order in which they are looked at.
const FILE_PATHS: [&str; 2] = ["filename", "name"];
/// The same for a SOURCE_CODE asset.
const SOURCE_PATHS: [&str; 2] = ["sourceCodeFilePath", "name"];

/// What an asset is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Model,
    Input,
    Output,
}

/// The places that are taken in the working directory.
#[derive(Default)]
struct Staging {
    paths: Vec<(String, StagedPath)>,
    /// Folded path of every file -> pointer of the name that took it.
    files: HashMap<String, String>,
    /// Folded path of every folder -> pointer of the first name that lies in it.
    folders: HashMap<String, String>,
    /// Folded path of every output -> pointer of the name that took it.
    outputs: HashMap<String, String>,
    /// Folded path of every folder -> pointer of the first output that lies in it.
    output_folders: HashMap<String, String>,
    /// The assets whose content is in a repository.
    in_git: Vec<RepositoryAsset>,
}

impl Staging {
    fn input(&mut self, check: &mut Check, at: &str, pointer: String, path: StagedPath) {
        let folded = path.folded();
        if let Some(other) = self.files.get(&folded).or_else(|| self.folders.get(&folded)) {
            return check.fault(pointer, format!("{:?} is also the place of {other}", path.as_str()));
        }
        for (end, _) in folded.match_indices('/') {
            let folder = &folded[..end];
            if let Some(other) = self.files.get(folder) {
                return check.fault(
                    pointer,
                    format!("{:?} lies in {folder:?}, which is a file ({other})", path.as_str()),
                );
            }
            self.folders.entry(folder.to_owned()).or_insert_with(|| pointer.clone());
        }
        self.files.insert(folded, pointer);
        self.paths.push((at.to_owned(), path));
    }

    fn output(&mut self, check: &mut Check, pointer: String, path: StagedPath) {
        let folded = path.folded();
        let taken = [&self.files, &self.folders, &self.outputs, &self.output_folders];
        if let Some(other) = taken.iter().find_map(|places| places.get(&folded)) {
            return check.fault(pointer, format!("{:?} is also the place of {other}", path.as_str()));
        }
        for (end, _) in folded.match_indices('/') {
            let folder = &folded[..end];
            if let Some(other) = self.files.get(folder).or_else(|| self.outputs.get(folder)) {
                let message = format!("{:?} lies in {folder:?}, which is a file ({other})", path.as_str());
                return check.fault(pointer, message);
            }
            self.output_folders.entry(folder.to_owned()).or_insert_with(|| pointer.clone());
        }
        self.outputs.insert(folded, pointer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn valid() -> Value {
        json!({
            "id": "job-1", "jobType": "MODEL_BATCH_JOB", "jobStatus": "CREATED",
            "model": {"storedModel": {"modelAssets": [
                {"name": "m.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "def score(a,b,c): pass", "scoreFunction": "score"},
                {"name": "h.py", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/h.py", "sourceCode": "x = 1"},
                {"name": "t", "assetType": "FILE", "filename": "t.txt", "fileContent": "aGk="},
                {"name": "w", "assetType": "EXTERNAL_FILE", "fileUrl": "/w", "unknown": [1.10, null]}
            ]}},
            "inputData": [{"assetType": "EXTERNAL_FILE", "fileUrl": "/in"}, {"assetType": "SQL", "query": "select 1"}],
            "outputData": [{"assetType": "FILE", "filename": "out.json"}],
            "jobParameters": {"--executor-memory": "1g", "-v": ""},
            "targetEngine": {"executorMemory": "512MB", "sparkConf": {"--master": "local[2]"}}
        })
    }

    fn read(document: &Value) -> Result<Job, Refusal> {
        Job::read(document.to_string().as_bytes(), None)
    }

    fn faults_after(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut document = valid();
        change(&mut document);
        read(&document).err().map_or_else(Vec::new, |r| r.faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_job_is_seen_whole_and_in_order() {
        let job = read(&valid()).unwrap();
        assert_eq!(job.id().as_str(), "job-1");
        assert_eq!(job.named_function(job.job_type().function_keys()), Some("score"));
        let staged: Vec<_> = job.staged_files().map(|file| file.path.as_str().to_owned()).collect();
        assert_eq!(staged, ["pkg/h.py", "t.txt"]);
        assert_eq!(
            job.external_model_assets().next().unwrap().to_string(),
            valid().pointer("/model/storedModel/modelAssets/3").unwrap().to_string()
        );
        assert_eq!(job.external_inputs().count(), 1);
        let flags: Vec<_> =
            job.flags().iter().map(|flag| (flag.name.as_str(), flag.value.as_str())).collect();
        assert_eq!(
            flags,
            [
                ("--executor-memory", "512MB"),
                ("--master", "local[2]"),
                ("--executor-memory", "1g"),
                ("-v", "")
            ]
        );
    }

    #[test]
    fn every_fault_is_reported_with_its_place() {
        let faults = faults_after(|job| {
            job["jobType"] = json!("NO_SUCH");
            job["model"]["storedModel"]["modelAssets"][0]["primaryModelSource"] = json!(false);
            job["model"]["storedModel"]["modelAssets"][1]["sourceCodeFilePath"] = json!("../h.py");
            job["model"]["storedModel"]["modelAssets"][2]["fileContent"] = json!("not base64!");
            job["inputData"][0]["fileUrl"] = json!(7);
            job["outputData"] = json!("x");
            job["jobParameters"]["--n"] = json!(5);
            job["targetEngine"] = json!([]);
        });
        let places: Vec<_> = faults.iter().map(|fault| fault.split(": ").next().unwrap()).collect();
        assert_eq!(
            places,
            [
                "/jobType",
                "/model/storedModel/modelAssets",
                "/model/storedModel/modelAssets/1/sourceCodeFilePath",
                "/model/storedModel/modelAssets/2/fileContent",
                "/inputData/0/fileUrl",
                "/outputData",
                "/targetEngine",
                "/jobParameters/--n",
            ],
            "{faults:#?}"
        );
    }

    #[test]
    fn the_id_comes_from_the_document_then_from_the_message_and_else_the_job_is_refused() {
        let mut document = valid();
        assert_eq!(Job::read(document.to_string().as_bytes(), Some("other")).unwrap().id().as_str(), "job-1");
        document["id"] = Value::Null;
        assert_eq!(Job::read(document.to_string().as_bytes(), Some("other")).unwrap().id().as_str(), "other");
        let refusal = Job::read(document.to_string().as_bytes(), None).unwrap_err();
        assert!(refusal.id.as_str().starts_with("unnamed-"));
        assert_eq!(refusal.faults.len(), 1, "{:?}", refusal.faults);
        for bad in ["a/b", "a.b", "", "ü", &"x".repeat(129)] {
            document["id"] = json!(bad);
            assert_eq!(read(&document).unwrap_err().faults[0].pointer, "/id", "{bad}");
        }
    }

    #[test]
    fn two_assets_never_share_a_place() {
        let twins = |second: &str| {
            faults_after(|job| {
                let assets = job["model"]["storedModel"]["modelAssets"].as_array_mut().unwrap();
                assets.push(json!({"name": "n", "assetType": "FILE", "filename": second, "fileContent": ""}));
            })
        };
        assert!(twins("t.txt")[0].contains("is also the place of /model/storedModel/modelAssets/2/filename"));
        assert!(twins("T.TXT")[0].contains("is also the place of"));
        assert!(twins("pkg")[0].contains("is also the place of"));
        assert!(twins("t.txt/x")[0].contains("which is a file"));
        assert!(twins("pkg/other.py").is_empty());
        assert!(
            faults_after(|job| job["outputData"][0]["filename"] = json!("t.txt"))[0]
                .contains("is also the place of")
        );
    }

    #[test]
    fn an_output_has_a_place_that_nothing_else_has() {
        let outputs = |names: &[&str]| {
            faults_after(|job| {
                let file = |name: &&str| json!({"assetType": "FILE", "filename": name});
                job["outputData"] = names.iter().map(file).collect();
            })
        };
        for clash in [&["pkg"][..], &["t.txt/y"], &["o", "o/p"], &["o/p", "o"], &["o", "O"]] {
            assert_eq!(outputs(clash).len(), 1, "{clash:?}");
        }
        assert!(outputs(&["o/p", "o/q", "pkg/result.csv"]).is_empty());
    }

    #[test]
    fn exactly_one_source_is_primary() {
        let two = faults_after(|job| {
            job["model"]["storedModel"]["modelAssets"][1]["primaryModelSource"] = json!(true)
        });
        assert_eq!(two.len(), 1);
        assert!(two[0].contains("one source is primary"));
        let empty =
            faults_after(|job| job["model"]["storedModel"]["modelAssets"][0]["sourceCode"] = json!(" \n"));
        assert!(empty[0].contains("is empty"));
        for gone in [
            json!(null),
            json!({}),
            json!({"storedModel": null}),
            json!({"storedModel": {"modelAssets": null}}),
        ] {
            assert_eq!(faults_after(|job| job["model"] = gone.clone()).len(), 1, "{gone}");
        }
    }

    #[test]
    fn a_job_that_has_ended_is_not_run_again_by_accident() {
        for status in ["COMPLETE", "ERROR", "CANCELLED"] {
            assert!(
                faults_after(|job| job["jobStatus"] = json!(status))[0].contains("publish it as CREATED")
            );
        }
    }

    fn with_git(change: impl FnOnce(&mut Value)) -> Value {
        let mut document = valid();
        let assets = document["model"]["storedModel"]["modelAssets"].as_array_mut().unwrap();
        let info = json!({"repositoryType": "GIT_REPO", "repositoryRemote": "/srv/models.git", "repositoryBranch": "main"});
        for (index, content) in [(0, "sourceCode"), (1, "sourceCode"), (2, "fileContent")] {
            assets[index].as_object_mut().unwrap().shift_remove(content);
            assets[index]["repositoryInfo"] = info.clone();
        }
        change(&mut document);
        document
    }

    #[test]
    fn what_is_in_a_repository_has_no_content_until_it_is_fetched_and_the_document_stays_as_it_was() {
        let job = read(&with_git(|_| {})).unwrap();
        let paths: Vec<_> = job.in_git().iter().map(|asset| asset.file.path.as_str().to_owned()).collect();
        assert_eq!(paths, ["m.py", "pkg/h.py", "t.txt"]);
        assert!(!job.is_whole() && job.source_code().is_empty() && job.staged_files().count() == 0);
        let pointers: Vec<_> = job.in_git().iter().map(|asset| asset.pointer.clone()).collect();
        let contents: [&[u8]; 3] = [b"def score(a,b,c): pass", b"", b"\xff\0"];
        let fetched = pointers.into_iter().zip(contents.map(<[u8]>::to_vec)).collect();
        let before = job.document().to_string();
        let job = job.with_fetched(fetched).unwrap();
        assert!(job.is_whole());
        assert_eq!(job.source_code(), "def score(a,b,c): pass");
        assert_eq!(job.document().to_string(), before);
        let staged: Vec<_> = job.staged_files().map(|file| (file.path.as_str(), file.content)).collect();
        assert!(matches!(staged[0], ("pkg/h.py", Content::Bytes(b""))));
        assert!(matches!(staged[1], ("t.txt", Content::Bytes(b"\xff\0"))));
    }

    #[test]
    fn a_primary_source_that_was_fetched_has_to_be_a_text_that_is_not_blank() {
        for (content, words) in [(&b"\xff"[..], "is no text in UTF-8"), (b" \n", "is empty")] {
            let job = read(&with_git(|_| {})).unwrap();
            let fetched =
                job.in_git().iter().map(|asset| (asset.pointer.clone(), content.to_vec())).collect();
            let faults = job.with_fetched(fetched).unwrap_err();
            assert_eq!(faults.len(), 1);
            assert!(faults[0].message.contains(words), "{faults:?}");
        }
        let job = read(&with_git(|_| {})).unwrap();
        assert_eq!(job.with_fetched(HashMap::new()).unwrap_err().len(), 3);
    }

    #[test]
    fn the_lists_of_required_packages_are_found_by_their_role() {
        let mut document = valid();
        let assets = document["model"]["storedModel"]["modelAssets"].as_array_mut().unwrap();
        assets[2]["assetRole"] = json!("REQUIRED_LIBRARIES");
        assets[3]["assetRole"] = json!("REQUIRED_LIBRARIES");
        assets.push(json!({"name": "r.txt", "assetType": "SOURCE_CODE", "assetRole": "REQUIRED_LIBRARIES", "sourceCode": "a"}));
        let job = read(&document).unwrap();
        let lists: Vec<_> =
            job.required_libraries().map(|(pointer, path, _)| (pointer, path.unwrap().to_string())).collect();
        let at = |index: u32| format!("/model/storedModel/modelAssets/{index}");
        assert_eq!(lists, [(at(2), "t.txt".to_owned()), (at(4), "r.txt".to_owned())]);
    }

    #[test]
    fn an_asset_that_brings_its_content_along_is_not_looked_for_in_a_repository() {
        let job = read(&with_git(|job| {
            job["model"]["storedModel"]["modelAssets"][0]["sourceCode"] = json!("def score(a,b,c): pass");
            job["model"]["storedModel"]["modelAssets"][0]["repositoryInfo"]["repositoryRemote"] =
                json!("ext::no");
        }))
        .unwrap();
        assert_eq!(job.in_git().len(), 2);
        assert_eq!(job.source_code(), "def score(a,b,c): pass");
    }

    #[test]
    fn every_fault_of_a_repository_is_a_fault_of_the_job() {
        let faults = |change: fn(&mut Value)| -> Vec<String> {
            let refusal = read(&with_git(change)).unwrap_err();
            refusal
                .faults
                .iter()
                .map(|fault| fault.pointer.rsplit_once("Assets/").unwrap().1.to_owned())
                .collect()
        };
        assert_eq!(
            faults(|job| *job.pointer_mut("/model/storedModel/modelAssets/0/name").unwrap() = json!(null)),
            ["0/sourceCodeFilePath"]
        );
        assert_eq!(
            faults(|job| *job.pointer_mut("/model/storedModel/modelAssets/1/sourceCodeFilePath").unwrap() =
                json!("../x")),
            ["1/sourceCodeFilePath"]
        );
        assert_eq!(
            faults(|job| *job.pointer_mut("/model/storedModel/modelAssets/2/repositoryInfo").unwrap() =
                json!({"repositoryType": "GIT_REPO", "commit": "x"})),
            ["2/repositoryInfo/repositoryRemote", "2/repositoryInfo/commit"]
        );
    }

    #[test]
    fn what_is_no_object_is_refused_as_a_whole() {
        for document in [json!([]), json!("x"), json!(null), json!(7)] {
            let refusal = read(&document).unwrap_err();
            assert!(refusal.faults.iter().any(|fault| fault.pointer.is_empty()), "{:?}", refusal.faults);
        }
    }
}
