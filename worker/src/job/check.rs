//! Judging a whole job before anything of it is run: which function will be called, and what spark-submit will be told.
//!
//! Everything that can be known without a JVM is said here, all of it at once and with its place in the job.
//!
//! This module must not write files, nor know where a job came from.

use std::ffi::OsString;

use spark_runtime_protocol::asset::OUTPUT_FOLDER;
use spark_runtime_protocol::event::Way;
use spark_runtime_protocol::job::{CHECK_INPUTS_KEY, CHECK_OUTPUTS_KEY, INIT_KEY, Job, JobType};
use spark_runtime_protocol::json::Fault;

use super::contract::{self, Contract, Style};
use super::source::{Function, Said, Source, python_objects};
use crate::config::{RecordsSettings, Settings, SqlSettings};
use crate::spark::Mode;
use crate::spark::argv::{CommandLine, DefaultLogin, default_value};
use crate::spark::installation::{Environment, Installation, hadoop_file_system};
use crate::spark::policy::{Policy, PolicyError, Setting};
use crate::storage::Actor;

/// The number of lists that a Spark model's function takes: inputs, outputs, model attachments.
const LISTS: usize = 3;
/// The property that says where paths without a scheme lead.
const FILE_SYSTEM: &str = "spark.hadoop.fs.defaultFS";

/// What will be done for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The function to call.
    pub function: String,
    /// How it is called.
    pub style: Style,
    /// The init function to call before it.
    pub init: Option<String>,
    /// The init function takes the job.
    pub init_takes_job: bool,
    /// What spark-submit is told.
    pub command_line: CommandLine,
    /// What is to be told about it, each as a sentence.
    pub notes: Vec<String>,
}

impl Plan {
    /// How the driver is run. For a record model this is known once its contract is settled.
    #[must_use]
    pub fn way(&self) -> Way {
        self.contract().map_or(Way::Spark, |contract| contract.way)
    }

    /// Whether Python runs on machines that see nothing of this one's files.
    #[must_use]
    pub fn has_executors_elsewhere(&self) -> bool {
        self.way() == Way::Spark && self.command_line.master().has_executors_elsewhere()
    }

    /// Where the driver runs. One that needs no Spark needs no cluster either.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.way() == Way::Spark { self.command_line.mode() } else { Mode::Client }
    }

    /// What is agreed with a record model.
    #[must_use]
    pub fn contract(&self) -> Option<&Contract> {
        match &self.style {
            Style::Lists => None,
            Style::Records(contract) => Some(contract),
        }
    }
}

/// What a job is judged by.
#[derive(Debug, Clone)]
pub struct Judge {
    policy: Policy,
    master: String,
    /// As whom jobs run by `spark-defaults.conf`.
    login: DefaultLogin,
    python: OsString,
    records: RecordsSettings,
    sql: SqlSettings,
    /// The file system of paths without a scheme, where this machine's configuration names one.
    file_system: Option<String>,
}

impl Judge {
    /// The judge by the settings, with the operator's policy read.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn of(settings: &Settings) -> Result<Self, PolicyError> {
        let policy = match &settings.spark.policy {
            Some(path) => Policy::load(path)?,
            None => Policy::default(),
        };
        Setting::read("--master", &settings.spark.master).map_err(PolicyError::Master)?;
        let installation = Installation::find(&settings.spark).ok();
        let environment = Environment::of(&settings.spark, installation.as_ref());
        let defaults = installation.and_then(|installation| installation.defaults(&environment).ok());
        let defaults = defaults.unwrap_or_default();
        let named = default_value(&defaults, FILE_SYSTEM).filter(|value| !value.is_empty());
        Ok(Self {
            policy,
            master: settings.spark.master.clone(),
            login: DefaultLogin::of(&defaults),
            python: environment.python().to_owned(),
            records: settings.records.clone(),
            sql: settings.sql.clone(),
            file_system: named.or_else(|| hadoop_file_system(&environment)),
        })
    }

    /// What spark-submit is told for `job`.
    fn line(&self, job: &Job) -> Result<CommandLine, Vec<Fault>> {
        CommandLine::of(job, &self.policy, &self.master, &self.login)
    }

    /// Decides what to do for `job`. Blocks: a source that looks wrong is shown to Python.
    ///
    /// # Errors
    /// Every reason why the job cannot be run.
    pub fn plan(&self, job: &Job) -> Result<Plan, Vec<Fault>> {
        if !job.is_whole() {
            return Err(vec![Fault::new("", "has sources that were not fetched from their repositories")]);
        }
        let mut faults = Vec::new();
        let source = Source::read(job.source_code());
        let at_source = format!("{}/sourceCode", job.primary_pointer());
        if source.is_doubtful
            && let Some(fault) = self.objection(job.source_code(), &at_source)
        {
            // Where the source is no Python, what it seems to define is no ground for more complaints.
            faults.push(fault);
            faults.extend(self.line(job).err().unwrap_or_default());
            return Err(faults);
        }
        let mut notes = source.remarks.clone();
        notes.extend(loose_tags(job, &source));
        let function = function_for(job, &source, &at_source, &mut faults, &mut notes);
        let init = init_for(job, &source, &at_source, &mut faults, &mut notes);
        faults.extend(output_folder_faults(job));
        let command_line = self.line(job);
        let file_system = command_line.as_ref().ok().and_then(|line| self.file_system(line));
        let style = function.as_ref().and_then(|function| {
            let read = match function.shape {
                Shape::Lists => Ok((Style::Lists, unchecked(job))),
                Shape::Records => contract::draft(job, &source, &self.records, &self.sql, file_system)
                    .map(|(contract, notes)| (Style::Records(Box::new(contract)), notes)),
            };
            read.map_err(|found| faults.extend(found)).ok()
        });
        let command_line = command_line.map_err(|found| faults.extend(found)).ok();
        let (Some(function), Some((mut style, more)), Some(command_line)) = (function, style, command_line)
        else {
            return Err(faults);
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        notes.extend(more);
        if let Style::Records(contract) = &mut style {
            contract.memory = command_line.driver_memory().or(contract.memory);
        }
        let init_function = init.as_deref().map(|name| source.function(name));
        // Called with the job whenever it takes it, as the driver does; one that nobody sees may take it.
        let init_takes_job = init_function.is_some_and(|found| {
            found.is_none_or(|function| function.is_decorated || function.arity.takes(1))
        });
        Ok(Plan { function: function.name, style, init, init_takes_job, command_line, notes })
    }

    /// Where the driver of `job` may run, as far as its flags say: in a cluster only when they do.
    #[must_use]
    pub fn mode(&self, job: &Job) -> Mode {
        self.line(job).map_or(Mode::Client, |line| line.mode())
    }

    /// As whom `job` runs; the worker's user, for a job whose flags will not do.
    #[must_use]
    pub fn actor_of(&self, job: &Job) -> Actor {
        self.line(job).map(|line| line.actor()).unwrap_or_default()
    }

    /// Settles on this machine what is agreed with a record model. Blocks.
    ///
    /// # Errors
    /// An input that is not there.
    pub fn settle(&self, plan: &mut Plan) -> Result<(), Vec<Fault>> {
        match &mut plan.style {
            Style::Lists => Ok(()),
            Style::Records(contract) => contract.settle(&self.records),
        }?;
        let is_somebody_else = plan.command_line.actor() != Actor::Worker;
        if let Style::Records(contract) = &mut plan.style
            && is_somebody_else
        {
            // Who runs without spark-submit runs as the worker's user.
            contract.way = Way::Spark;
        }
        let reads_database = plan.contract().is_some_and(Contract::reads_database);
        if plan.mode().is_cluster() && reads_database {
            return Err(vec![Fault::new(
                "",
                "reads SQL inputs in cluster mode, where the database's password would have to travel; leave --deploy-mode out",
            )]);
        }
        Ok(())
    }

    /// The file system of paths without a scheme, where it is not this machine's own.
    fn file_system<'a>(&'a self, command_line: &'a CommandLine) -> Option<&'a str> {
        let named = command_line.default_file_system().or(self.file_system.as_deref());
        named.filter(|url| !url.starts_with("file:"))
    }

    /// The file system in which the job's paths without a scheme lie, where it is not this machine's own; that of the
    /// worker, for a job whose flags will not do.
    #[must_use]
    pub fn file_system_of(&self, job: &Job) -> Option<String> {
        match self.line(job) {
            Ok(command_line) => self.file_system(&command_line).map(str::to_owned),
            Err(_) => self.file_system.clone().filter(|url| !url.starts_with("file:")),
        }
    }

    fn objection(&self, text: &str, at: &str) -> Option<Fault> {
        match python_objects(&self.python, text) {
            Ok(Some(objection)) if objection.line > 0 => {
                let (line, column) = (objection.line, objection.column);
                Some(Fault::new(
                    at,
                    format!("is no Python: {}, line {line}, column {column}", objection.message),
                ))
            }
            Ok(Some(objection)) => Some(Fault::new(at, format!("is no Python: {}", objection.message))),
            Ok(None) => None,
            Err(error) => {
                // The driver's Python will say the same, later.
                tracing::warn!(%error, "Python could not be asked about a source that looks wrong");
                None
            }
        }
    }
}

/// What a job of this type calls its function, for sentences.
fn role(job_type: JobType) -> &'static str {
    match job_type {
        JobType::Score => "scoring",
        JobType::Metrics => "metrics",
        JobType::Training => "training",
    }
}

fn there(source: &Source) -> String {
    let names = source.function_names();
    if names.is_empty() { "it has no functions".to_owned() } else { format!("it has {}", names.join(", ")) }
}

/// How a function is called, as far as it can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// With three lists.
    Lists,
    /// With a record, or with data frames.
    Records,
}

struct Chosen {
    name: String,
    shape: Shape,
}

fn function_for(
    job: &Job,
    source: &Source,
    at_source: &str,
    faults: &mut Vec<Fault>,
    notes: &mut Vec<String>,
) -> Option<Chosen> {
    let role = role(job.job_type());
    let keys = job.job_type().function_keys();
    let tags = job.job_type().function_tags();
    let tagged = tagged(source, tags, job.job_type());
    let inputs = contract::used_inputs(job, source);
    let mut chosen = |name: &str, at: &str| {
        let shape = match source.function(name) {
            Some(function) => shape_of(function, job.job_type(), inputs).unwrap_or_else(|message| {
                faults.push(Fault::new(at, message));
                Shape::Lists
            }),
            None => Shape::Lists,
        };
        Chosen { name: name.to_owned(), shape }
    };
    if let Some(name) = job.named_function(keys) {
        let key = keys.iter().find(|key| job.primary_source().get(**key).is_some()).unwrap_or(&keys[0]);
        let at = format!("{}/{key}", job.primary_pointer());
        notes.extend(disagreement(role, name, &tagged));
        if !source_may_have(source, name) {
            let message = format!("names {name:?}, which the source does not have; {}", there(source));
            faults.push(Fault::new(at, message));
            return None;
        }
        return Some(chosen(name, &at));
    }
    match &tagged[..] {
        [said] if source_may_have(source, &said.word) => Some(chosen(&said.word, at_source)),
        [said] => {
            let message = format!(
                "the tag action (line {}) names {:?}, which the source does not have; {}",
                said.line,
                said.word,
                there(source)
            );
            faults.push(Fault::new(at_source, message));
            None
        }
        [] => {
            let loose = source.loose.iter().find(|said| tags.contains(&said.word.as_str()));
            let message = match loose {
                Some(said) => format!(
                    "names no {role} function: the tag {} (line {}) stands above none; put it directly above its def; {}",
                    said.word,
                    said.line,
                    there(source)
                ),
                None => format!(
                    "names no {role} function; set \"{}\" or put `# modelop.{}` above it; {}",
                    keys[0],
                    tags[0],
                    there(source)
                ),
            };
            faults.push(Fault::new(at_source, message));
            None
        }
        [first, second, ..] => {
            faults.push(Fault::new(at_source, two(role, first, second)));
            None
        }
    }
}

/// The functions that tags say are for this, each once with its line; where a tag only names one, with the tag's.
fn tagged(source: &Source, tags: &[&str], job_type: JobType) -> Vec<Said> {
    let above = source.tagged(tags).into_iter();
    let mut found: Vec<Said> =
        above.map(|function| Said { word: function.name.clone(), line: function.line }).collect();
    if job_type == JobType::Score {
        for action in &source.actions {
            if !found.iter().any(|said| said.word == action.word) {
                found.push(action.clone());
            }
        }
    }
    found
}

fn two(role: &str, first: &Said, second: &Said) -> String {
    format!(
        "tags two {role} functions, {} (line {}) and {} (line {}); leave the tag at one",
        first.word, first.line, second.word, second.line
    )
}

/// The asset's word counts; whoever wrote another into the source is told.
fn disagreement(role: &str, name: &str, tagged: &[Said]) -> Option<String> {
    let other = tagged.iter().find(|said| said.word != name)?;
    Some(format!(
        "the asset names {name} as the {role} function, and a tag in the source {} (line {}); {name} is called",
        other.word, other.line
    ))
}

/// What is to be told of tags that stand above no function.
fn loose_tags(job: &Job, source: &Source) -> Vec<String> {
    let known = JobType::ALL.iter().flat_map(|job_type| job_type.function_tags()).chain([&"init"]);
    let known: Vec<&str> = known.copied().collect();
    let is_asked = |said: &&Said| {
        // The one that is missing is told as a fault.
        let is_missing = job.job_type().function_tags().contains(&said.word.as_str())
            && job.named_function(job.job_type().function_keys()).is_none();
        known.contains(&said.word.as_str()) && !is_missing
    };
    let told = source.loose.iter().filter(is_asked).take(5).map(|said| {
        format!("the tag {} (line {}) stands above no function and says nothing", said.word, said.line)
    });
    told.collect()
}

fn init_for(
    job: &Job,
    source: &Source,
    at_source: &str,
    faults: &mut Vec<Fault>,
    notes: &mut Vec<String>,
) -> Option<String> {
    let mut fits = |function: &Function, at: &str| {
        if !function.is_decorated && !function.arity.takes(0) && !function.arity.takes(1) {
            let message = format!(
                "the init function {} (line {}) needs {} arguments; it gets none, or the job",
                function.name, function.line, function.arity.required
            );
            faults.push(Fault::new(at, message));
        }
    };
    let tagged: Vec<&Function> = source.tagged(&["init"]);
    let said = |function: &Function| Said { word: function.name.clone(), line: function.line };
    if let Some(name) = job.named_function(&[INIT_KEY]) {
        let at = format!("{}/{INIT_KEY}", job.primary_pointer());
        let all: Vec<Said> = tagged.iter().map(|function| said(function)).collect();
        notes.extend(disagreement("init", name, &all));
        match source.function(name) {
            Some(function) => fits(function, &at),
            None if source_may_have(source, name) => {}
            None => {
                let message = format!("names {name:?}, which the source does not have; {}", there(source));
                faults.push(Fault::new(at, message));
            }
        }
        return Some(name.to_owned());
    }
    match tagged[..] {
        [] => None,
        [function] => {
            fits(function, at_source);
            Some(function.name.clone())
        }
        [first, second, ..] => {
            faults.push(Fault::new(at_source, two("init", &said(first), &said(second))));
            None
        }
    }
}

/// What a training job leaves must be its function's own.
fn output_folder_faults(job: &Job) -> Vec<Fault> {
    if job.job_type() != JobType::Training {
        return Vec::new();
    }
    let within = |path: &str| path == OUTPUT_FOLDER || path.starts_with(&format!("{OUTPUT_FOLDER}/"));
    let files = job.staged_files().filter(|file| within(file.path.as_str()));
    files
        .map(|file| {
            let message = format!(
                "brings {:?}, and what lies in {OUTPUT_FOLDER} is what a training job leaves; choose another name",
                file.path.as_str()
            );
            Fault::new("", message)
        })
        .collect()
}

/// What is to be told where schemas were to be checked and nobody here sees the records.
fn unchecked(job: &Job) -> Vec<String> {
    let is_asked = job.says(CHECK_INPUTS_KEY) || job.says(CHECK_OUTPUTS_KEY);
    let note = "no schema is checked: the function reads and writes its files by itself";
    if is_asked { vec![note.to_owned()] } else { Vec::new() }
}

/// Whether a name can stand for a function once the source is loaded.
fn source_may_have(source: &Source, name: &str) -> bool {
    source.function(name).is_some() || source.other_names.contains(name) || source.binds_unseen
}

/// How a function is called in a job of this type with so many inputs. What a decorator makes of it cannot be seen; it is
/// taken for what its `def` says, and for a Spark model's where that says nothing.
///
/// # Errors
/// Why it cannot be called either way.
pub fn shape_of(function: &Function, job_type: JobType, inputs: usize) -> Result<Shape, String> {
    let (name, line) = (&function.name, function.line);
    if function.is_async && !function.is_decorated {
        return Err(format!("{name} (line {line}) is async; give a plain function"));
    }
    let frames = match job_type {
        JobType::Score => 1,
        JobType::Metrics | JobType::Training => inputs,
    };
    if function.arity.takes(LISTS) {
        return Ok(Shape::Lists);
    }
    if function.arity.takes(frames) {
        return Ok(Shape::Records);
    }
    if function.is_decorated {
        return Ok(Shape::Lists);
    }
    let counted =
        |count: usize| if count == 1 { "1 argument".to_owned() } else { format!("{count} arguments") };
    let takes = match (function.arity.needs_keywords, function.arity.most) {
        (true, _) => "needs keyword arguments".to_owned(),
        (_, Some(most)) => format!("takes {}", counted(most)),
        (_, None) => format!("needs {}", counted(function.arity.required)),
    };
    let or = match (job_type, inputs) {
        (JobType::Score, _) => "or one record".to_owned(),
        (_, 1) => "or one data frame, that of the job's input".to_owned(),
        (_, inputs) => format!("or a data frame for each of the job's {inputs} inputs"),
    };
    Err(format!(
        "{name} (line {line}) {takes}; a {} function takes three lists (inputs, outputs, attachments), {or}",
        role(job_type)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn records() -> RecordsSettings {
        Settings::load(&crate::config::Sources::default()).unwrap().records
    }

    fn plan(source: &str, keys: serde_json::Value) -> Result<Plan, Vec<String>> {
        plan_job(source, keys, json!({}))
    }

    /// `more` are further keys of the job.
    fn plan_job(source: &str, keys: serde_json::Value, more: serde_json::Value) -> Result<Plan, Vec<String>> {
        let mut asset = json!({"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": source});
        for (key, value) in keys.as_object().unwrap() {
            asset[key] = value.clone();
        }
        let mut document = json!({"id": "j", "jobType": "MODEL_BATCH_JOB", "model": {"storedModel": {"modelAssets": [asset]}}});
        for (key, value) in more.as_object().unwrap() {
            document[key] = value.clone();
        }
        let job = Job::read(document.to_string().as_bytes(), None).unwrap();
        let judge = Judge {
            policy: Policy::default(),
            master: "local[*]".into(),
            login: DefaultLogin::default(),
            python: "python3".into(),
            records: records(),
            sql: SqlSettings::default(),
            file_system: None,
        };
        judge.plan(&job).map_err(|faults| faults.into_iter().map(|fault| fault.message).collect())
    }

    #[test]
    fn whom_spark_defaults_name_is_known_before_anything_is_done_for_a_job() {
        let place = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("bin/spark-submit", ""),
            (
                "conf/spark-defaults.conf",
                "spark.kerberos.principal etl@R\nspark.kerberos.keytab=/k/etl\nspark.hadoop.fs.defaultFS = hdfs://nn:8020\n",
            ),
        ] {
            let path = place.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut settings = Settings::load(&crate::config::Sources::default()).unwrap();
        settings.spark.home = Some(place.path().to_owned());
        let judge = Judge::of(&settings).unwrap();
        let document = json!({"id": "j", "jobType": "MODEL_BATCH_JOB", "model": {"storedModel": {"modelAssets": [
            {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "def score(x, y, z): pass"}]}}});
        let job = Job::read(document.to_string().as_bytes(), None).unwrap();
        let expected = Actor::Principal { principal: "etl@R".into(), keytab: "/k/etl".into() };
        assert_eq!(judge.actor_of(&job), expected);
        assert_eq!(judge.file_system_of(&job).as_deref(), Some("hdfs://nn:8020"));
    }

    #[test]
    fn the_asset_names_the_function_or_a_tag_does() {
        let source = "# modelop.init\ndef begin(job):\n  pass\n# modelop.score\ndef a(x, y, z):\n  pass\ndef b(x, y, z):\n  pass\n";
        let tagged = plan(source, json!({})).unwrap();
        assert_eq!(
            (tagged.function.as_str(), tagged.init.as_deref(), tagged.init_takes_job),
            ("a", Some("begin"), true)
        );
        assert_eq!(plan(source, json!({"scoreFunction": "b"})).unwrap().function, "b");
    }

    #[test]
    fn a_function_that_is_not_there_is_answered_with_those_that_are() {
        let source = "def a(x, y, z): pass\ndef b(x, y, z): pass\nTEXT = 'def score(x, y, z): pass'\n";
        assert_eq!(
            plan(source, json!({"scoreFunction": "score", "initFunction": "begin"})).unwrap_err(),
            [
                "names \"score\", which the source does not have; it has a, b",
                "names \"begin\", which the source does not have; it has a, b"
            ]
        );
        assert_eq!(
            plan(source, json!({})).unwrap_err(),
            [
                "names no scoring function; set \"scoreFunction\" or put `# modelop.score` above it; it has a, b"
            ]
        );
        assert!(plan("from h import score\n", json!({"scoreFunction": "score"})).is_ok());
    }

    #[test]
    fn functions_that_cannot_be_called_are_named_with_their_line() {
        let fault = |source: &str| plan(source, json!({"scoreFunction": "score"})).unwrap_err().join("; ");
        assert_eq!(
            fault("\ndef score(a, b): pass"),
            "score (line 2) takes 2 arguments; a scoring function takes three lists (inputs, outputs, attachments), or one record"
        );
        assert!(fault("async def score(a, b, c): pass").contains("is async"));
        assert!(fault("def score(a, b, c, *, k): pass").contains("needs keyword arguments"));
        assert!(plan("@wraps\ndef score(x, y): pass", json!({"scoreFunction": "score"})).is_ok());
        let two = "# modelop.score\ndef a(x,y,z): pass\n# modelop.score\ndef b(x,y,z): pass\n";
        assert!(plan(two, json!({})).unwrap_err()[0].contains("a (line 2) and b (line 4)"));
    }

    /// How a function with these parameters is called in a job of this type with so many inputs.
    fn shape(parameters: &str, job_type: JobType, inputs: usize) -> Result<Shape, String> {
        let source = Source::read(&format!("def f({parameters}): pass\n"));
        shape_of(&source.functions[0], job_type, inputs)
    }

    #[test]
    fn the_parameters_say_how_a_function_is_called() {
        use JobType::{Metrics, Score, Training};
        for (parameters, job_type, inputs, expected) in [
            ("a, b, c", Score, 1, Shape::Lists),
            ("a, b, c", Metrics, 3, Shape::Lists),
            ("*args", Metrics, 1, Shape::Lists),
            ("record", Score, 1, Shape::Records),
            ("record, *, k=1", Score, 2, Shape::Records),
            ("df", Metrics, 1, Shape::Records),
            ("df, threshold=0.5", Training, 1, Shape::Records),
            ("a, b", Metrics, 2, Shape::Records),
            ("", Training, 0, Shape::Records),
        ] {
            assert_eq!(
                shape(parameters, job_type, inputs),
                Ok(expected),
                "{parameters} {job_type:?} {inputs}"
            );
        }
        assert_eq!(
            shape("a, b", Training, 1).unwrap_err(),
            "f (line 1) takes 2 arguments; a training function takes three lists (inputs, outputs, attachments), or one data frame, that of the job's input"
        );
        assert!(
            shape("a", Metrics, 2).unwrap_err().ends_with("or a data frame for each of the job's 2 inputs")
        );
        assert!(shape("", Score, 1).unwrap_err().contains("takes 0 arguments"));
    }

    #[test]
    fn an_action_names_the_scoring_function_as_fastscore_does() {
        let one = |source: &str| plan(source, json!({})).map(|plan| plan.function);
        assert_eq!(one("# fastscore.action: go\ndef go(a, b, c): pass\n"), Ok("go".to_owned()));
        assert_eq!(one("# modelop.action\ndef go(a, b, c): pass\n"), Ok("go".to_owned()));
        assert_eq!(
            one("# fastscore.action: go\n# modelop.score\ndef go(a, b, c): pass\n"),
            Ok("go".to_owned())
        );
        let faults =
            one("# fastscore.action: go\n# modelop.score\ndef run(a, b, c): pass\ndef go(a, b, c): pass\n");
        assert!(
            faults.clone().unwrap_err()[0].contains("two scoring functions, run (line 3) and go (line 1)"),
            "{faults:?}"
        );
        let faults = one("# fastscore.action: gone\ndef go(a, b, c): pass\n").unwrap_err();
        assert_eq!(
            faults,
            ["the tag action (line 1) names \"gone\", which the source does not have; it has go"]
        );
    }

    #[test]
    fn where_the_asset_and_a_tag_disagree_the_asset_counts_and_it_is_told() {
        let source =
            "# modelop.init\ndef i(): pass\n# modelop.score\ndef a(x, y, z): pass\ndef b(x, y, z): pass\n";
        let plan = plan(source, json!({"scoreFunction": "b", "initFunction": "i"})).unwrap();
        assert_eq!(plan.function, "b");
        assert_eq!(
            plan.notes,
            ["the asset names b as the scoring function, and a tag in the source a (line 4); b is called"]
        );
    }

    #[test]
    fn tags_on_nothing_are_told_and_those_that_are_needed_are_faults() {
        let source =
            "# modelop.score\nx = 1\n# modelop.metrics\ny = 2\ndef f(a, b, c): pass\n# modelop.scroe\n";
        assert_eq!(
            plan(source, json!({})).unwrap_err(),
            [
                "names no scoring function: the tag score (line 1) stands above none; put it directly above its def; it has f"
            ]
        );
        let notes = plan(source, json!({"scoreFunction": "f"})).unwrap().notes;
        assert_eq!(
            notes,
            [
                "line 6 of the source, \"# modelop.scroe\", says nothing; did you mean score?",
                "the tag score (line 1) stands above no function and says nothing",
                "the tag metrics (line 3) stands above no function and says nothing",
            ]
        );
    }

    #[test]
    fn whole_frames_may_take_the_memory_that_the_job_asks_for() {
        let memory = |parameters: serde_json::Value| {
            let more = json!({
                "jobType": "MODEL_BATCH_TEST_JOB", "jobParameters": parameters,
                "inputData": [{"assetType": "FILE", "filename": "in.csv", "fileContent": "YQo="}],
            });
            let keys = json!({"metricsFunction": "measure"});
            let plan = plan_job("def measure(frame):\n    return {}\n", keys, more).unwrap();
            plan.contract().unwrap().memory
        };
        assert_eq!(memory(json!({"--driver-memory": "512MB"})), Some(512 << 20));
        assert_eq!(memory(json!({})), records().memory);
    }

    #[test]
    fn a_training_job_brings_nothing_into_the_folder_of_what_it_leaves() {
        let file = |name: &str| {
            let more = json!({"jobType": "MODEL_BATCH_TRAINING_JOB", "inputData": [
                {"assetType": "FILE", "filename": name, "fileContent": ""}]});
            plan_job("def t(a, b, c): pass", json!({"trainingFunction": "t"}), more).err().unwrap_or_default()
        };
        assert!(file("outputDir/x.csv")[0].contains("choose another name"));
        assert_eq!(file("outputDirs/x.csv"), [""; 0]);
    }

    #[test]
    fn a_syntax_error_is_told_with_line_and_column_before_anything_starts() {
        let faults =
            plan("import os\ndef score(a, b, c:\n    pass\n", json!({"scoreFunction": "score"})).unwrap_err();
        assert_eq!(faults.len(), 1);
        assert!(
            faults[0].starts_with("is no Python: ") && faults[0].contains("line 2, column"),
            "{faults:?}"
        );
    }

    #[test]
    fn a_source_with_a_byte_order_mark_crlf_and_tabs_is_python() {
        let source = "\u{feff}# modelop.score\r\ndef score(a, b, c):\r\n\tif a:\r\n\t\treturn 1\r\n";
        assert_eq!(plan(source, json!({})).unwrap().function, "score");
    }
}
