//! The schemas and the AsyncAPI document say what the Rust types do: held together by independent validators, over
//! fixtures and over what becomes of them when one thing at a time is changed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command as Program, Stdio};

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};
use spark_runtime_protocol::asset::{AssetType, StagedPath};
use spark_runtime_protocol::command::{self, Answer, Command, Standing, Verb};
use spark_runtime_protocol::event::{
    CONTENT_TYPE, Digests, Event, EventData, EventKind, Failure, FailureClass, FetchedSource, Frame,
    JobResult, JobStatus, ModelException, Phases, Records, Rejected, Rejection, Resources, RuntimeUsed, Side,
    TraceContext, Way,
};
use spark_runtime_protocol::job::INIT_KEY;
use spark_runtime_protocol::json::{Fault, step};
use spark_runtime_protocol::repository::{Commit, RefName, Remote, RepositoryPath};
use spark_runtime_protocol::{Job, JobId, JobType, schema, topology};

const FIXTURES: [(&str, &str); 5] = [
    ("score.json", include_str!("fixtures/score.json")),
    ("metrics.json", include_str!("fixtures/metrics.json")),
    ("training.json", include_str!("fixtures/training.json")),
    ("smallest.json", include_str!("fixtures/smallest.json")),
    ("git.json", include_str!("fixtures/git.json")),
];

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn validator(schema: &Value) -> Validator {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .build(schema)
        .unwrap_or_else(|error| panic!("the schema is no schema: {error}"))
}

/// The part of a schema that `pointer` leads to, as a schema of its own.
fn part(text: &str, pointer: &str) -> Validator {
    let mut whole = parsed(text);
    let definitions = whole["$defs"].take();
    validator(&json!({"$ref": format!("#{pointer}"), "$defs": definitions}))
}

fn faults(validator: &Validator, document: &Value) -> Vec<String> {
    validator.iter_errors(document).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Everything that `document` becomes when the value at one place is replaced by one of `others` or taken away.
fn mutations(document: &Value, others: &[Value]) -> Vec<(String, Value)> {
    let mut places = Vec::new();
    collect_places(document, "", &mut places);
    let mut mutated = Vec::new();
    for place in places {
        for other in others {
            let mut changed = document.clone();
            *changed.pointer_mut(&place).unwrap() = other.clone();
            if changed != *document {
                mutated.push((format!("{place} = {other}"), changed));
            }
        }
        if let Some((parent, key)) = place.rsplit_once('/') {
            let mut changed = document.clone();
            let key = key.replace("~1", "/").replace("~0", "~");
            match changed.pointer_mut(parent).unwrap() {
                Value::Object(object) => drop(object.shift_remove(&key)),
                Value::Array(list) => drop(list.remove(key.parse().unwrap())),
                _ => unreachable!("only objects and lists have places in them"),
            }
            mutated.push((format!("{place} taken away"), changed));
        }
    }
    mutated
}

fn collect_places(value: &Value, at: &str, places: &mut Vec<String>) {
    places.push(at.to_owned());
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                collect_places(value, &step(at, key), places);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                collect_places(value, &format!("{at}/{index}"), places);
            }
        }
        _ => {}
    }
}

/// The faults that `Job::read` finds in a job that came with a message id.
fn read(document: &Value) -> Vec<Fault> {
    Job::read(document.to_string().as_bytes(), Some("from-the-message"))
        .err()
        .map_or_else(Vec::new, |r| r.faults)
}

/// Whether a schema that looks at one value at a time has no way to see the fault.
fn is_beyond_a_schema(fault: &Fault) -> bool {
    ["is not base64", "is also the place of", "which is a file"]
        .iter()
        .any(|words| fault.message.contains(words))
}

/// A value of every type, and words that mean something in one place or another.
fn other_values() -> Vec<Value> {
    let words = [
        "",
        " \n",
        "x",
        "a/b",
        "a.b",
        "../x",
        "/x",
        "c:x",
        "con.txt",
        "pyspark.py",
        "pkg/__init__.py",
        "COMPLETE",
        "CREATED",
        "SOURCE_CODE",
        "FILE",
        "EXTERNAL_FILE",
        "SQL",
        "GIT_REPO",
        "https://user:password@host/x",
        "a@b:c",
        "-x",
        "a b",
        "0123456789abcdef0123456789abcdef01234567",
        "MODEL_BATCH_JOB",
        "aGk=",
        "?",
        "\u{fc}",
    ];
    let mut values =
        vec![json!(null), json!(true), json!(false), json!(7), json!(1.5), json!([]), json!([7]), json!({})];
    values.extend(words.map(Value::from));
    values.push(json!({"assetType": "FILE", "filename": "other.txt", "fileContent": ""}));
    values.push(json!({"k": "v"}));
    values
}

/// Every job that the tests make, with what `Job::read` says of it, as far as a schema can say the same.
fn judged_jobs() -> Vec<(String, Value, bool)> {
    let mut judged = Vec::new();
    for (name, text) in FIXTURES {
        let document = parsed(text);
        judged.push((name.to_owned(), document.clone(), true));
        for (what, changed) in mutations(&document, &other_values()) {
            let faults = read(&changed);
            if faults.is_empty() || !faults.iter().all(is_beyond_a_schema) {
                judged.push((format!("{name} with {what}"), changed, faults.is_empty()));
            }
        }
    }
    judged
}

#[test]
fn every_schema_is_a_schema_of_2020_12() {
    for text in [schema::job(), schema::event(), schema::command(), schema::answer()] {
        let schema = parsed(text);
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        if let Err(error) = jsonschema::meta::validate(&schema) {
            panic!("{}: {error}", error.instance_path());
        }
    }
}

#[test]
fn every_fixture_is_a_job_for_the_schema_and_for_the_service() {
    let validator = validator(&parsed(schema::job()));
    for (name, text) in FIXTURES {
        assert_eq!(faults(&validator, &parsed(text)), [""; 0], "{name}");
        if let Err(refusal) = Job::read(text.as_bytes(), Some("from-the-message")) {
            panic!("{name}: {:?}", refusal.faults);
        }
    }
}

#[test]
fn whatever_is_changed_in_a_job_the_schema_and_the_service_agree_on_it() {
    let validator = validator(&parsed(schema::job()));
    let (mut taken, mut refused) = (0, 0);
    for (what, document, is_job) in judged_jobs() {
        let schema_faults = faults(&validator, &document);
        assert_eq!(schema_faults.is_empty(), is_job, "{what}: {schema_faults:?} {:?}", read(&document));
        if is_job { taken += 1 } else { refused += 1 }
    }
    // Neither verdict may be the only one that was tried.
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
}

#[test]
fn what_the_schema_cannot_say_is_refused_by_the_service_alone() {
    let validator = validator(&parsed(schema::job()));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document = parsed(FIXTURES[1].1);
        change(&mut document);
        document
    };
    let assets = "/model/storedModel/modelAssets";
    let cases = [
        with(&|job| *job.pointer_mut(&format!("{assets}/3/fileContent")).unwrap() = json!("a")),
        with(&|job| *job.pointer_mut(&format!("{assets}/3/fileContent")).unwrap() = json!("aGl=")),
        with(&|job| job["inputData"][2]["filename"] = json!("Features/Columns.PY")),
        with(&|job| job["inputData"][2]["filename"] = json!("features/columns.py/x")),
        with(&|job| job["outputData"][0]["filename"] = json!("thresholds.json")),
    ];
    for document in cases {
        assert_eq!(faults(&validator, &document), [""; 0]);
        let found = read(&document);
        assert!(found.len() == 1 && is_beyond_a_schema(&found[0]), "{found:?}");
    }
    // These are lost before any validator sees them: a reader of JSON has to refuse them.
    let text = FIXTURES[3].1;
    let twice = text.replacen("\"jobType\"", "\"jobType\": \"MODEL_BATCH_JOB\", \"jobType\"", 1);
    let long = text.replacen("\"jobType\"", &format!("\"n\": {}, \"jobType\"", "9".repeat(500)), 1);
    for text in [&twice, &long] {
        assert!(Job::read(text.as_bytes(), Some("m")).is_err(), "{text}");
    }
    assert!(validator.is_valid(&parsed(&twice)));
    // Whether there is an id depends on the message.
    assert!(validator.is_valid(&parsed(text)));
    assert!(Job::read(text.as_bytes(), None).is_err());
}

#[test]
fn the_schema_takes_exactly_the_names_that_may_be_staged() {
    let path = part(schema::job(), "/$defs/stagedPath");
    let steps = [
        "",
        "a",
        "a.py",
        ".",
        "..",
        "...",
        ".hidden",
        "con",
        "CON.txt",
        "nul .x",
        "console",
        "com1",
        "Lpt9.csv",
        "com10",
        "com",
        "aux ",
        "pyspark",
        "PySpark.py",
        "pyspark.cpython-311.so",
        "pyspark.",
        "pyspark.txt",
        "my_pyspark.py",
        "pyspar\u{212a}.py",
        "model_job.json",
        "Model_Contract.JSON",
        "model_contract.jsonl",
        "ModelOpRecords.py",
        "modeloprecords",
        "modelopformats.py",
        "ModelOpAvro.pyc",
        "modelopspark.py",
        "ModelOpWorkers.py",
        "modelopwor\u{212a}ers/x.py",
        "modelopworker.py",
        "modelopsparks.py",
        "model_source_code.py",
        "MODEL_JOB_METADATA.PYC",
        "ModelOpPySparkDriver",
        "ModelOpPySparkDriver.py",
        "model_job.jsonl",
        "sitecustomize.pyd",
        "usercustomize.so.1",
        "py4j",
        "__pycache__",
        "__PyCache__",
        "__init__.py",
        "a\\b",
        "a\nb",
        "a\u{7f}",
        "a\u{85}b",
        "c:",
        "c:x",
        "1:x",
        "\u{e4}:x",
        "\u{e4} \u{2603}",
        " ",
        "py4j.py\n",
    ];
    let mut names: Vec<String> = steps.map(str::to_owned).to_vec();
    for first in steps {
        for second in steps {
            names.push(format!("{first}/{second}"));
            names.push(format!("a/{first}/{second}"));
        }
    }
    let (mut taken, mut refused) = (0, 0);
    for name in names {
        let expected = StagedPath::new(&name);
        assert_eq!(path.is_valid(&json!(name)), expected.is_ok(), "{name:?}: {expected:?}");
        if expected.is_ok() { taken += 1 } else { refused += 1 }
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused");
}

#[test]
fn the_schema_takes_exactly_what_can_be_handed_to_git() {
    let texts = [
        "",
        "/",
        "/a b",
        "/a\nb",
        "file:///x",
        "file://x",
        "https://h/p",
        "https://h",
        "http://h:80/p",
        "https://h:port/p",
        "https://[::1]/p",
        "https://u@h/p",
        "https://u:p@h/p",
        "https://h/p?token=x",
        "https://h/p#x",
        "https://h/p@q",
        "ssh://h/p",
        "ssh://u@h:22/p",
        "ssh://u:p@h/p",
        "ssh://-u@h/p",
        "ssh://-h/p",
        "u@h:p",
        "u@h:",
        "-u@h:p",
        "u@-h:p",
        "h:p",
        "ext::sh -c x",
        "--upload-pack=x",
        "git://h/p",
        "relative",
        "\u{85}",
        "/\u{85}",
        "u@h:a@b:c",
        "main",
        "a/b",
        "a..b",
        "a//b",
        "/a",
        "a/",
        "a.",
        ".a",
        "a/.b",
        "a.lock",
        "a.lock/b",
        "a@{b",
        "@",
        "a^b",
        "a~b",
        "a?b",
        "a*b",
        "a[b",
        "a\\b",
        "a\u{7f}",
        "-x",
        "\u{fc}",
        "a\n",
        ".",
        "..",
        "a/../b",
        "./a",
        "...",
        "a:b",
        "0123456789abcdef0123456789abcdef01234567",
        "0123456789ABCDEF0123456789abcdef01234567",
        "0123456",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ];
    let long = "a".repeat(3000);
    let mut taken = 0;
    for text in texts.into_iter().chain([&long[..], &long[..1024], &long[..1025]]) {
        for (name, expected) in [
            ("gitRemote", Remote::new(text).is_ok()),
            ("gitName", RefName::new(text).is_ok()),
            ("gitCommit", Commit::new(text).is_ok()),
            ("repositoryPath", RepositoryPath::new(text).is_ok()),
        ] {
            let schema = part(schema::job(), &format!("/$defs/{name}"));
            assert_eq!(schema.is_valid(&json!(text)), expected, "{name}: {text:?}");
            taken += u32::from(expected);
        }
    }
    assert!(taken > 50, "{taken} taken");
}

#[test]
fn the_schemas_take_exactly_the_job_ids() {
    let long = "x".repeat(128);
    let too_long = "x".repeat(129);
    let ids = ["", "a", "A-1_b:c", "a.b", "a/b", "a b", "a\n", "\n", "\u{fc}", "*", "#", &long, &too_long];
    for text in [schema::job(), schema::event(), schema::command(), schema::answer()] {
        let id = part(text, "/$defs/jobId");
        for candidate in ids {
            assert_eq!(id.is_valid(&json!(candidate)), JobId::new(candidate).is_ok(), "{candidate:?}");
        }
    }
}

/// Every value of the enums that have no list of their own; the matches fail to compile when one is added.
fn statuses() -> [JobStatus; 6] {
    use JobStatus::{Cancelled, Complete, Created, Error, Running, Waiting};
    match Created {
        Created | Waiting | Running | Complete | Error | Cancelled => {
            [Created, Waiting, Running, Complete, Error, Cancelled]
        }
    }
}

fn results() -> [JobResult; 3] {
    use JobResult::{Failure, Success, Unknown};
    match Success {
        Success | Failure | Unknown => [Success, Failure, Unknown],
    }
}

fn classes() -> [FailureClass; 9] {
    use FailureClass::{Infrastructure, Invalid, Killed, Lost, Model, Pending, Staging, Submit, Timeout};
    match Invalid {
        Invalid | Staging | Submit | Model | Killed | Pending | Timeout | Lost | Infrastructure => {
            [Invalid, Staging, Submit, Model, Killed, Pending, Timeout, Lost, Infrastructure]
        }
    }
}

fn ways() -> [Way; 2] {
    use Way::{Process, Spark};
    match Process {
        Process | Spark => [Process, Spark],
    }
}

fn sides() -> [Side; 2] {
    use Side::{Input, Output};
    match Input {
        Input | Output => [Input, Output],
    }
}

fn words(values: &[impl serde::Serialize]) -> Vec<Value> {
    values.iter().map(|value| serde_json::to_value(value).unwrap()).collect()
}

#[test]
fn every_list_of_words_is_the_one_of_the_rust_types() {
    let (job, event, asyncapi) = (parsed(schema::job()), parsed(schema::event()), parsed(schema::asyncapi()));
    let job_types = json!(JobType::ALL.map(JobType::wire));
    assert_eq!(job["$defs"]["jobType"]["enum"], job_types);
    assert_eq!(event["$defs"]["jobType"]["enum"], job_types);
    assert_eq!(job["$defs"]["assetType"]["enum"], json!(AssetType::ALL.map(|(wire, _)| wire)));
    assert_eq!(event["$defs"]["eventType"]["enum"], json!(EventKind::ALL.map(EventKind::cloud_event_type)));
    assert_eq!(event["$defs"]["jobStatus"]["enum"], Value::from(words(&statuses())));
    assert_eq!(event["$defs"]["jobResult"]["enum"], Value::from(words(&results())));
    assert_eq!(event["$defs"]["failureClass"]["enum"], Value::from(words(&classes())));
    assert_eq!(event["$defs"]["way"]["enum"], Value::from(words(&ways())));
    let reason = &event["$defs"]["records"]["properties"]["reasons"]["items"]["properties"];
    assert_eq!(reason["side"]["enum"], Value::from(words(&sides())));
    assert_eq!(
        asyncapi["channels"]["events"]["parameters"]["event"]["enum"],
        json!(EventKind::ALL.map(EventKind::word))
    );

    let (command, answer) = (parsed(schema::command()), parsed(schema::answer()));
    let verbs = json!(Verb::ALL.map(Verb::word));
    assert_eq!(command["properties"]["command"]["enum"], verbs);
    assert_eq!(answer["properties"]["command"]["enum"], verbs);
    assert_eq!(answer["properties"]["standing"]["enum"], json!(Standing::ALL.map(Standing::word)));
    let endings: Vec<_> =
        EventKind::ALL.into_iter().filter(|kind| kind.is_terminal()).map(EventKind::word).collect();
    assert_eq!(answer["properties"]["ending"]["enum"], json!(endings));

    let source = job["$defs"]["sourceCode"]["properties"].as_object().unwrap();
    let named: BTreeSet<&str> =
        source.keys().map(String::as_str).filter(|key| key.ends_with("Function")).collect();
    let known: BTreeSet<&str> =
        JobType::ALL.iter().flat_map(|kind| kind.function_keys()).copied().chain([INIT_KEY]).collect();
    assert_eq!(named, known);
}

#[test]
fn the_asyncapi_document_has_the_names_of_the_topology() {
    let document = parsed(schema::asyncapi());
    let (jobs, events) = (&document["channels"]["jobs"], &document["channels"]["events"]);
    assert_eq!(jobs["address"], topology::JOBS_KEY);
    assert_eq!(jobs["bindings"]["amqp"]["exchange"]["name"], topology::JOBS_EXCHANGE);
    assert_eq!(events["bindings"]["amqp"]["exchange"]["name"], topology::RESULTS_EXCHANGE);
    let key = Event::routing_key(EventKind::Failed, &JobId::new("j").unwrap());
    let address = events["address"].as_str().unwrap();
    assert_eq!(address.replace("{jobId}", "j").replace("{event}", "failed"), key);
    assert_eq!(document["components"]["messages"]["event"]["contentType"], CONTENT_TYPE);
    let (commands, history) = (&document["channels"]["commands"], &document["channels"]["history"]);
    assert_eq!(commands["address"], topology::COMMANDS_KEY);
    assert_eq!(commands["bindings"]["amqp"]["exchange"]["name"], topology::COMMANDS_EXCHANGE);
    assert_eq!(history["bindings"]["amqp"]["queue"]["name"], topology::HISTORY_STREAM);
    for message in ["command", "answer"] {
        assert_eq!(document["components"]["messages"][message]["contentType"], command::CONTENT_TYPE);
    }
    let headers = document["components"]["schemas"]["jobHeaders"]["properties"].as_object().unwrap();
    let headers: Vec<&str> = headers.keys().map(String::as_str).collect();
    assert_eq!(headers, [topology::ATTEMPT_HEADER, "traceparent", "tracestate"]);
}

fn failure() -> Failure {
    Failure {
        class: FailureClass::Model,
        message: "the model raised ValueError: no rows".to_owned(),
        exception: Some(ModelException {
            exception_type: "ValueError".to_owned(),
            message: "no rows".to_owned(),
            traceback: Some("Traceback (most recent call last):\n".to_owned()),
            frame: Some(Frame {
                file: "model_source_code.py".to_owned(),
                line: 12,
                function: Some("score".to_owned()),
                text: Some("raise ValueError('no rows')".to_owned()),
            }),
        }),
        record: Some(7),
        input: Some("test.csv".to_owned()),
        exit_code: Some(1),
        signal: Some(9),
        log_tail: Some("...".to_owned()),
        log: Some("host:/kept/stderr.log".to_owned()),
    }
}

fn records() -> Records {
    let reason = |side, field: Option<&str>| Rejection {
        side,
        field: field.map(str::to_owned),
        reason: "is missing".to_owned(),
        count: 2,
    };
    Records {
        way: Way::Spark,
        read: 9,
        scored: 6,
        written: 5,
        failed: 1,
        rejected: Rejected { input: 2, output: 0 },
        reasons: vec![reason(Side::Input, Some("age")), reason(Side::Output, None)],
        stopped_at: Some(9),
    }
}

fn bare(kind: EventKind) -> Event {
    let id = JobId::new("nightly:1").unwrap();
    let mut data = EventData::new(kind, &id, Some(JobType::Metrics), 2, "worker-1");
    match kind {
        EventKind::Retrying => {
            data.next_attempt = Some(3);
            data.delay_ms = Some(0);
        }
        EventKind::Failed => data.failure = Some(Failure { exception: None, ..failure() }),
        EventKind::Rejected => {
            data.job_type = None;
            data.faults = Some(vec![Fault::new("", "is not JSON"), Fault::new("/a~1b/0", "is a number")]);
        }
        EventKind::Conflict => {
            (data.job_type, data.attempt) = (None, 0);
            data.digests = Some(Digests { first: Digests::of(b"a"), this: Digests::of(b"b") });
            data.message = Some("the id belongs to a job with another body".to_owned());
        }
        _ => {}
    }
    if kind.is_terminal() {
        data.job_result =
            Some(if kind == EventKind::Completed { JobResult::Success } else { JobResult::Unknown });
        data.job_messages = Some(Vec::new());
        data.job_end_time = Some(data.time.as_millisecond());
    }
    let mut event = Event::new(kind, "worker-1", &TraceContext::default(), data);
    if let Some(digests) = &event.data.digests {
        event.id = format!("{}/{}", event.id, digests.this);
    }
    event
}

/// An event of `kind` with everything that one of this kind can have.
fn full(kind: EventKind) -> Event {
    let mut event = bare(kind);
    event.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    event.tracestate = Some("a=b".to_owned());
    let data = &mut event.data;
    data.correlation_id = Some("c".to_owned());
    data.digest = Some(Digests::of(b"{}"));
    data.message = Some("m".to_owned());
    if kind == EventKind::Accepted || kind.is_terminal() {
        data.sources = Some(vec![FetchedSource {
            asset: "/model/storedModel/modelAssets/0".to_owned(),
            repository: "https://git.example.com/models.git".to_owned(),
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            path: "models/titanic.py".to_owned(),
        }]);
        data.runtime = Some(RuntimeUsed { name: "sklearn".to_owned(), python: Some("3.11.2".to_owned()) });
    }
    if kind == EventKind::Submitted {
        data.application_id = Some("local-1".to_owned());
        data.tracking_url = Some("http://localhost:4040".to_owned());
        data.way = Some(Way::Process);
    }
    if matches!(kind, EventKind::Retrying | EventKind::Failed) {
        data.failure = Some(failure());
    }
    if kind.is_terminal() {
        data.job_messages = Some(vec!["2026/3/4 5:06:07 [INFO] the function ran to its end".to_owned()]);
        data.job_wait_time = Some(1);
        data.job_run_time = Some(2);
        data.phases = Some(Phases { stage: Some(0), submit: Some(1), run: Some(2), collect: Some(3) });
        data.output_data =
            Some(json!([{"assetType": "FILE", "filename": "a", "fileContent": "aGk=", "fileSize": 2}]));
        data.resources = Some(Resources { peak_memory_bytes: 1 << 40, processor_seconds: 0.25 });
    }
    if kind == EventKind::Completed {
        data.results = Some(json!({"auc": 0.5, "confusion": [[1, 2], [3, 4]]}));
        data.records = Some(records());
    }
    event
}

fn events() -> Vec<(String, Value)> {
    let every = EventKind::ALL.into_iter();
    every
        .flat_map(|kind| [(format!("bare {kind}"), bare(kind)), (format!("full {kind}"), full(kind))])
        .map(|(name, event)| (name, serde_json::from_str(&serde_json::to_string(&event).unwrap()).unwrap()))
        .collect()
}

#[test]
fn every_event_that_the_service_can_make_passes_its_schema() {
    let validator = validator(&parsed(schema::event()));
    for (name, document) in events() {
        assert_eq!(faults(&validator, &document), [""; 0], "{name}");
    }
    for class in classes() {
        let mut event = full(EventKind::Failed);
        event.data.failure = Some(Failure { class, ..failure() });
        assert_eq!(faults(&validator, &serde_json::to_value(&event).unwrap()), [""; 0], "{class}");
    }
    let mut later = parsed(&serde_json::to_string(&full(EventKind::Completed)).unwrap());
    later["data"]["keyOfALaterVersion"] = json!({"any": "thing"});
    later["extension"] = json!("x");
    assert_eq!(faults(&validator, &later), [""; 0]);
}

#[test]
fn an_event_that_says_too_little_or_contradicts_itself_does_not_pass() {
    let validator = validator(&parsed(schema::event()));
    let always = ["jobId", "attempt", "worker", "jobStatus", "time"].map(|key| format!("/data/{key}"));
    let envelope = ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"];
    for kind in EventKind::ALL {
        let event = serde_json::to_value(full(kind)).unwrap();
        let mut required: Vec<String> = always.to_vec();
        required.extend(envelope.map(|key| format!("/{key}")));
        let more: &[&str] = match kind {
            EventKind::Retrying => &["nextAttempt", "delayMs", "jobType"],
            EventKind::Completed => &["jobResult", "jobMessages", "jobEndTime", "jobType"],
            EventKind::Failed => &["jobResult", "jobMessages", "jobEndTime", "failure"],
            EventKind::Cancelled => &["jobResult", "jobMessages", "jobEndTime"],
            EventKind::Rejected => &["jobResult", "jobMessages", "jobEndTime", "faults"],
            EventKind::Conflict => &["digests", "message"],
            _ => &["jobType"],
        };
        required.extend(more.iter().map(|key| format!("/data/{key}")));
        for place in required {
            let (parent, key) = place.rsplit_once('/').unwrap();
            let mut changed = event.clone();
            let removed =
                changed.pointer_mut(parent).and_then(Value::as_object_mut).unwrap().shift_remove(key);
            assert!(removed.is_some(), "{kind} has no {place}");
            assert!(!validator.is_valid(&changed), "{kind} without {place}");
        }
        for attempt in [0, 1, 7] {
            let mut changed = event.clone();
            changed["data"]["attempt"] = json!(attempt);
            let expected = (attempt == 0) == (kind == EventKind::Conflict);
            assert_eq!(validator.is_valid(&changed), expected, "{kind} of attempt {attempt}");
        }
        for other in EventKind::ALL.into_iter().filter(|other| *other != kind) {
            let mut changed = event.clone();
            changed["type"] = json!(other.cloud_event_type());
            assert!(!validator.is_valid(&changed), "{kind} under the type of {other}");
        }
        for status in words(&statuses()) {
            let mut changed = event.clone();
            changed["data"]["jobStatus"] = status.clone();
            let expected = status == json!(kind.job_status());
            assert_eq!(validator.is_valid(&changed), expected, "{kind} with the status {status}");
        }
    }
}

#[test]
fn whatever_passes_the_event_schema_is_read_by_a_rust_subscriber() {
    let validator = validator(&parsed(schema::event()));
    let others =
        [json!(null), json!(true), json!(-1), json!(""), json!("x"), json!([]), json!([7]), json!({})];
    let (mut taken, mut refused) = (0, 0);
    for (name, document) in events() {
        for (what, changed) in mutations(&document, &others) {
            if !validator.is_valid(&changed) {
                refused += 1;
                continue;
            }
            taken += 1;
            let text = changed.to_string();
            if let Err(error) = serde_json::from_str::<Event>(&text) {
                panic!("{name} with {what}: {error}");
            }
        }
    }
    assert!(taken > 100 && refused > 1000, "{taken} taken, {refused} refused");
}

/// Everything that a command becomes when one thing is changed, with what the service says of it.
fn judged_commands() -> Vec<(String, Value, bool)> {
    let command: Value =
        serde_json::from_slice(&Command::cancel(&JobId::new("nightly:1").unwrap()).encode()).unwrap();
    let mut documents = mutations(&command, &other_values());
    for key in ["attempt", "JobId", "reason", ""] {
        let mut more = command.clone();
        more[key] = json!("x");
        documents.push((format!("with {key:?}"), more));
    }
    documents.push(("as it is".to_owned(), command));
    let judge = |document: &Value| Command::read(document.to_string().as_bytes()).is_ok();
    documents.into_iter().map(|(what, document)| (what, document.clone(), judge(&document))).collect()
}

/// Every answer that a worker can give.
fn answers() -> Vec<(String, Value)> {
    let command = Command::cancel(&JobId::new("nightly:1").unwrap());
    let answer = |standing| Answer::new(&command, standing, "what happens next".to_owned());
    let since = Some("2026-03-04T05:06:07Z".parse().unwrap());
    let mut answers = Vec::new();
    for standing in Standing::ALL {
        match standing {
            Standing::Unknown => answers.push(answer(standing)),
            Standing::Waiting => answers.push(Answer { attempt: Some(1), ..answer(standing) }),
            Standing::Running => {
                let worker = Some("w".to_owned());
                answers.push(Answer { attempt: Some(2), worker, since, ..answer(standing) });
            }
            Standing::Settled => {
                for ending in EventKind::ALL.into_iter().filter(|kind| kind.is_terminal()) {
                    let ending = Some(ending);
                    answers.push(Answer { attempt: Some(2), since, ending, ..answer(standing) });
                }
            }
            Standing::Refused => {
                for body in
                    ["", "[]", "{}", r#"{"command": "stop", "jobId": "a"}"#, r#"{"command": "cancel"}"#]
                {
                    answers.push(Answer::refused(Command::read(body.as_bytes()).unwrap_err()));
                }
            }
        }
    }
    let named = answers.into_iter().map(|answer| {
        (format!("{answer:?}"), serde_json::from_str(&serde_json::to_string(&answer).unwrap()).unwrap())
    });
    named.collect()
}

#[test]
fn whatever_is_changed_in_a_command_the_schema_and_the_service_agree_on_it() {
    let validator = validator(&parsed(schema::command()));
    let (mut taken, mut refused) = (0, 0);
    for (what, document, is_command) in judged_commands() {
        let schema_faults = faults(&validator, &document);
        assert_eq!(schema_faults.is_empty(), is_command, "{what}: {schema_faults:?}");
        if is_command { taken += 1 } else { refused += 1 }
    }
    assert!(taken > 5 && refused > 50, "{taken} taken, {refused} refused");
}

#[test]
fn every_answer_passes_its_schema_and_whatever_passes_is_read_by_a_rust_client() {
    let validator = validator(&parsed(schema::answer()));
    let others =
        [json!(null), json!(true), json!(-1), json!(""), json!("x"), json!("settled"), json!([]), json!({})];
    let (mut taken, mut refused) = (0, 0);
    for (name, document) in answers() {
        assert_eq!(faults(&validator, &document), [""; 0], "{name}");
        for (what, changed) in mutations(&document, &others) {
            if !validator.is_valid(&changed) {
                refused += 1;
                continue;
            }
            taken += 1;
            if let Err(error) = serde_json::from_str::<Answer>(&changed.to_string()) {
                panic!("{name} with {what}: {error}");
            }
        }
    }
    assert!(taken > 30 && refused > 300, "{taken} taken, {refused} refused");
}

#[test]
fn an_answer_that_says_too_little_or_contradicts_itself_does_not_pass() {
    let validator = validator(&parsed(schema::answer()));
    let settled = json!({"command": "cancel", "jobId": "a", "standing": "settled", "attempt": 1, "ending": "failed", "message": "m"});
    assert!(validator.is_valid(&settled));
    for key in ["command", "jobId", "standing", "attempt", "ending", "message"] {
        let mut changed = settled.clone();
        changed.as_object_mut().unwrap().shift_remove(key);
        assert!(!validator.is_valid(&changed), "without {key}");
    }
    for (key, value) in [
        ("ending", json!("running")),
        ("standing", json!("running")),
        ("standing", json!("unknown")),
        ("standing", json!("refused")),
        ("faults", json!([{"pointer": "", "message": "m"}])),
        ("attempt", json!(0)),
    ] {
        let mut changed = settled.clone();
        changed[key] = value;
        assert!(!validator.is_valid(&changed), "with another {key}: {changed}");
    }
}

/// The AsyncAPI document against the official schema of AsyncAPI 3.0.0, and the schemas inside it, in the hands of
/// another validator, over the same jobs and events.
#[test]
fn the_asyncapi_document_is_one_and_its_schemas_give_the_same_verdicts() {
    let Some(modules) = std::env::var_os("SPARK_RUNTIME_TEST_NODE_MODULES") else {
        eprintln!(
            "left out: SPARK_RUNTIME_TEST_NODE_MODULES names no folder with the validators; tests/run sets it"
        );
        return;
    };
    let validator = validator(&parsed(schema::event()));
    let mut messages: Vec<Value> = judged_jobs()
        .into_iter()
        .map(|(what, document, valid)| message("job", &what, document, valid))
        .collect();
    let others = [json!(null), json!(-1), json!("x"), json!([]), json!({})];
    for (name, document) in events() {
        for (what, changed) in mutations(&document, &others) {
            let valid = validator.is_valid(&changed);
            messages.push(message("event", &format!("{name} with {what}"), changed, valid));
        }
        messages.push(message("event", &name, document, true));
    }
    for (what, document, valid) in judged_commands() {
        messages.push(message("command", &what, document, valid));
    }
    let answer = self::validator(&parsed(schema::answer()));
    for (name, document) in answers() {
        for (what, changed) in mutations(&document, &others) {
            let valid = answer.is_valid(&changed);
            messages.push(message("answer", &format!("{name} with {what}"), changed, valid));
        }
        messages.push(message("answer", &name, document, true));
    }
    let count = messages.len();
    let input = json!({"asyncapi": parsed(schema::asyncapi()), "messages": messages});
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/asyncapi.mjs");
    let mut node = Program::new("node")
        .arg(script)
        .env("SPARK_RUNTIME_TEST_NODE_MODULES", modules)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    node.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = node.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("{count} verdicts agree")), "{said}");
}

fn message(payload: &str, what: &str, document: Value, valid: bool) -> Value {
    let mut message = Map::new();
    message.insert("payload".to_owned(), json!(payload));
    message.insert("what".to_owned(), json!(what));
    message.insert("document".to_owned(), document);
    message.insert("valid".to_owned(), json!(valid));
    Value::Object(message)
}

/// What stands in the README is what was tried.
#[test]
fn the_readme_shows_the_example_clients_as_they_are() {
    let readme = include_str!("../../README.md");
    for (language, client) in [
        ("python", include_str!("../../deploy/examples/clients/publish_and_follow.py")),
        ("js", include_str!("../../deploy/examples/clients/follow.js")),
    ] {
        assert!(
            readme.contains(&format!("```{language}\n{client}```\n")),
            "the README's {language} client differs"
        );
    }
}
