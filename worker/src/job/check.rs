//! Judging a whole job before anything of it is run: which function will be called, and what spark-submit will be told.
//!
//! Everything that can be known without a JVM is said here, all of it at once and with its place in the job.
//!
//! This module must not write files, nor know where a job came from.

use std::ffi::OsString;

use spark_runtime_protocol::job::{INIT_KEY, Job, JobType};
use spark_runtime_protocol::json::Fault;

use super::source::{Function, Source, python_objects};
use crate::config::Settings;
use crate::spark::argv::CommandLine;
use crate::spark::installation::{Environment, Installation};
use crate::spark::policy::{Policy, PolicyError, Setting};

/// The number of lists that a Spark model's function takes: inputs, outputs, model attachments.
const LISTS: usize = 3;

/// What will be done for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The function to call.
    pub function: String,
    /// The init function to call before it.
    pub init: Option<String>,
    /// The init function takes the job.
    pub init_takes_job: bool,
    /// What spark-submit is told.
    pub command_line: CommandLine,
}

/// What a job is judged by.
#[derive(Debug, Clone)]
pub struct Judge {
    policy: Policy,
    master: String,
    python: OsString,
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
        let none = Installation { submit: "spark-submit".into(), home: None };
        let installation = Installation::find(&settings.spark).unwrap_or(none);
        let python = Environment::of(&settings.spark, &installation).python().to_owned();
        Ok(Self { policy, master: settings.spark.master.clone(), python })
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
            faults.extend(CommandLine::of(job, &self.policy, &self.master).err().unwrap_or_default());
            return Err(faults);
        }
        let function = function_for(job, &source, &at_source, &mut faults);
        let init = init_for(job, &source, &at_source, &mut faults);
        match (function, CommandLine::of(job, &self.policy, &self.master)) {
            (Some(function), Ok(command_line)) if faults.is_empty() => {
                let init_takes_job =
                    init.as_deref().and_then(|name| source.function(name)).is_some_and(|init| {
                        // Called with the job whenever it takes it, as the driver does.
                        init.arity.takes(1)
                    });
                let unseen =
                    init.as_deref().is_some_and(|name| source.function(name).is_none_or(|f| f.is_decorated));
                Ok(Plan { function, init_takes_job: init_takes_job || unseen, init, command_line })
            }
            (_, command_line) => {
                faults.extend(command_line.err().unwrap_or_default());
                Err(faults)
            }
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

fn function_for(job: &Job, source: &Source, at_source: &str, faults: &mut Vec<Fault>) -> Option<String> {
    let role = role(job.job_type());
    let keys = job.job_type().function_keys();
    if let Some(name) = job.named_function(keys) {
        let key = keys.iter().find(|key| job.primary_source().get(**key).is_some()).unwrap_or(&keys[0]);
        let at = format!("{}/{key}", job.primary_pointer());
        if !source_may_have(source, name) {
            faults.push(Fault::new(
                at,
                format!("names {name:?}, which the source does not have; {}", there(source)),
            ));
            return None;
        }
        if let Some(function) = source.function(name) {
            faults.extend(misfit(function, &at));
        }
        return Some(name.to_owned());
    }
    let tags = job.job_type().function_tags();
    match source.tagged(tags)[..] {
        [function] => {
            faults.extend(misfit(function, at_source));
            Some(function.name.clone())
        }
        [] => {
            let message = format!(
                "names no {role} function; set \"{}\" or put `# modelop.{}` above it; {}",
                keys[0],
                tags[0],
                there(source)
            );
            faults.push(Fault::new(at_source, message));
            None
        }
        [first, second, ..] => {
            let message = format!(
                "tags two {role} functions, {} (line {}) and {} (line {}); leave the tag at one",
                first.name, first.line, second.name, second.line
            );
            faults.push(Fault::new(at_source, message));
            None
        }
    }
}

fn init_for(job: &Job, source: &Source, at_source: &str, faults: &mut Vec<Fault>) -> Option<String> {
    let mut fits = |function: &Function, at: &str| {
        if !function.is_decorated && !function.arity.takes(0) && !function.arity.takes(1) {
            let message = format!(
                "the init function {} (line {}) needs {} arguments; it gets none, or the job",
                function.name, function.line, function.arity.required
            );
            faults.push(Fault::new(at, message));
        }
    };
    if let Some(name) = job.named_function(&[INIT_KEY]) {
        let at = format!("{}/{INIT_KEY}", job.primary_pointer());
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
    match source.tagged(&["init"])[..] {
        [] => None,
        [function] => {
            fits(function, at_source);
            Some(function.name.clone())
        }
        [first, second, ..] => {
            let message = format!(
                "tags two init functions, {} (line {}) and {} (line {}); leave the tag at one",
                first.name, first.line, second.name, second.line
            );
            faults.push(Fault::new(at_source, message));
            None
        }
    }
}

/// Whether a name can stand for a function once the source is loaded.
fn source_may_have(source: &Source, name: &str) -> bool {
    source.function(name).is_some() || source.other_names.contains(name) || source.binds_unseen
}

/// Why a function cannot be called with three lists, when that can be told.
fn misfit(function: &Function, at: &str) -> Option<Fault> {
    if function.is_decorated {
        return None;
    }
    let (name, line) = (&function.name, function.line);
    if function.is_async {
        return Some(Fault::new(at, format!("{name} (line {line}) is async; give a plain function")));
    }
    if function.arity.takes(LISTS) {
        return None;
    }
    let takes = match (function.arity.needs_keywords, function.arity.most) {
        (true, _) => "needs keyword arguments".to_owned(),
        (_, Some(1)) => "takes 1 argument, as record models do, which this version does not run".to_owned(),
        (_, Some(most)) => format!("takes {most} arguments"),
        (_, None) => format!("needs {} arguments", function.arity.required),
    };
    Some(Fault::new(
        at,
        format!(
            "{name} (line {line}) {takes}; a Spark model's function takes three lists: inputs, outputs, attachments"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(source: &str, keys: serde_json::Value) -> Result<Plan, Vec<String>> {
        let mut asset = json!({"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": source});
        for (key, value) in keys.as_object().unwrap() {
            asset[key] = value.clone();
        }
        let document = json!({"id": "j", "jobType": "MODEL_BATCH_JOB", "model": {"storedModel": {"modelAssets": [asset]}}});
        let job = Job::read(document.to_string().as_bytes(), None).unwrap();
        let judge = Judge { policy: Policy::default(), master: "local[*]".into(), python: "python3".into() };
        judge.plan(&job).map_err(|faults| faults.into_iter().map(|fault| fault.message).collect())
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
        assert!(
            fault("\ndef score(data): pass").contains("score (line 2) takes 1 argument, as record models do")
        );
        assert!(fault("def score(a, b): pass").contains("takes 2 arguments"));
        assert!(fault("async def score(a, b, c): pass").contains("is async"));
        assert!(fault("def score(a, b, c, *, k): pass").contains("needs keyword arguments"));
        assert!(plan("@wraps\ndef score(x): pass", json!({"scoreFunction": "score"})).is_ok());
        let two = "# modelop.score\ndef a(x,y,z): pass\n# modelop.score\ndef b(x,y,z): pass\n";
        assert!(plan(two, json!({})).unwrap_err()[0].contains("a (line 2) and b (line 4)"));
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
