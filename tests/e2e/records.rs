//! Record models: the real driver in one process, and by a real Spark; what is refused before anything starts.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use spark_runtime_protocol::event::{Event, EventKind, FailureClass, JobResult, Side, Way};
use spark_runtime_tests::broker::Vhost;
use spark_runtime_tests::jobs::{assets, text};
use spark_runtime_tests::program::{self, Worker};
use spark_runtime_tests::until;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];
const RETRY: &str = "retry.delays=200ms";
/// `run` asks no broker.
const NOWHERE: &str = "amqp://guest:guest@127.0.0.1:1/%2f";

/// A scoring job of a record model with one input and one output, both FILE assets.
fn job(id: &str, source: &str, records: &str) -> Value {
    json!({
        "id": id, "jobType": "MODEL_BATCH_JOB",
        "model": {"storedModel": {"modelAssets": [{
            "name": "m.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "scoreFunction": "score",
            "sourceCode": source}]}},
        "inputData": [{"assetType": "FILE", "name": "in", "filename": "in.jsonl", "fileContent": STANDARD.encode(records)}],
        "outputData": [{"assetType": "FILE", "filename": "out.jsonl"}],
    })
}

fn with_schema(mut job: Value, fields: Value) -> Value {
    job["enableInputSchemaChecking"] = json!(true);
    job["model"]["storedModel"]["modelMetaData"] =
        json!({"inputSchema": [{"schemaDefinition": {"type": "record", "name": "Row", "fields": fields}}]});
    job
}

/// The events of a job that is run here and now.
async fn events_of(job: &Value, settings: &[&str]) -> Vec<Event> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.json");
    std::fs::write(&path, job.to_string()).unwrap();
    let outputs = folder.path().join("outputs");
    let arguments = ["run", path.to_str().unwrap(), "--json", "--outputs", outputs.to_str().unwrap()];
    let called = program::call(NOWHERE, settings, &arguments).await;
    let events: Vec<Event> = called.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!events.is_empty(), "{called:?}");
    events
}

async fn end_of(job: &Value) -> Event {
    events_of(job, &[]).await.pop().unwrap()
}

/// The records of the first output.
fn written(event: &Event) -> Vec<Value> {
    let outputs = event.data.output_data.as_ref().unwrap();
    let content = STANDARD.decode(outputs[0]["fileContent"].as_str().unwrap()).unwrap();
    String::from_utf8(content).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const PASS_ON: &str = "def score(record):\n    yield record\n";

#[tokio::test]
async fn three_of_a_hundred_records_are_rejected_and_the_others_scored_without_a_session() {
    let mut place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY, "job.keep=always"]);
    let lines: String = (0..100)
        .map(|n| match n {
            17 => "{\"age\": \"s3cret-text\", \"name\": \"x\"}\n".to_owned(),
            50 => "{\"name\": \"s3cret-text\"}\n".to_owned(),
            99 => format!("{{\"age\": {n}, \"name\": null}}\n"),
            n => format!("{{\"age\": {n}, \"name\": \"x\"}}\n"),
        })
        .collect();
    let source = "# modelop.init\ndef begin():\n    global factor\n    factor = 2\n\ndef score(record):\n    yield {'twice': factor * record['age']}\n";
    let fields =
        json!([{"name": "age", "type": "int", "role": "predictor"}, {"name": "name", "type": "string"}]);
    place.publish("three", with_schema(job("three", source, &lines), fields).to_string()).await;
    let submitted = place.heard("three", &[EventKind::Submitted]).await;
    assert_eq!(submitted.data.way, Some(Way::Process));
    let end = place.end_of("three").await;
    assert_eq!((end.kind(), end.data.job_result), (Some(EventKind::Completed), Some(JobResult::Failure)));
    let records = end.data.records.clone().unwrap();
    assert_eq!(
        (records.way, records.read, records.scored, records.written, records.rejected.input),
        (Way::Process, 100, 97, 97, 3)
    );
    assert_eq!(end.data.message.as_deref(), Some("3 input record(s) rejected by schema"));
    let messages = end.data.job_messages.clone().unwrap().join("\n");
    assert!(messages.contains("[ERROR] 3 input record(s) rejected by schema"), "{messages}");
    assert_eq!(records.reasons.len(), 3, "{:?}", records.reasons);
    assert!(records.reasons.iter().all(|reason| reason.side == Side::Input && reason.count == 1));
    let scored = written(&end);
    assert_eq!((scored.len(), &scored[0], &scored[96]), (97, &json!({"twice": 0}), &json!({"twice": 196})));
    assert!(!serde_json::to_string(&end).unwrap().contains("s3cret"), "an event quotes a record");
    assert!(!worker.log().contains("s3cret"), "a log quotes a record");
}

/// A zip archive with the file `weights/factor.txt`, in which stands 7.
const ARCHIVE: &str = "UEsDBBQAAAAAAAAAIVyCSr9qAQAAAAEAAAASAAAAd2VpZ2h0cy9mYWN0b3IudHh0N1BLAQIUAxQAAAAAAAAAIVyCSr9qAQAAAAEAAAASAAAAAAAAAAAAAACkAQAAAAB3ZWlnaHRzL2ZhY3Rvci50eHRQSwUGAAAAAAEAAQBAAAAAMQAAAAAA";

/// One with the file `../escaped.txt`.
const ESCAPE: &str = "UEsDBBQAAAAAAAAAIVyCSr9qAQAAAAEAAAAOAAAALi4vZXNjYXBlZC50eHQ3UEsBAhQDFAAAAAAAAAAhXIJKv2oBAAAAAQAAAA4AAAAAAAAAAAAAAKQBAAAAAC4uL2VzY2FwZWQudHh0UEsFBgAAAAABAAEAPAAAAC0AAAAAAA==";

#[tokio::test]
async fn an_archive_among_the_attachments_is_unpacked_before_init() {
    let source = "# modelop.init\ndef begin():\n    global factor\n    factor = int(open('weights/factor.txt').read())\n\ndef score(record):\n    yield {'product': factor * record['n']}\n";
    let mut job = job("attached", source, "{\"n\": 6}\n");
    let attached =
        json!({"assetType": "FILE", "name": "model", "filename": "model.zip", "fileContent": ARCHIVE});
    job["model"]["storedModel"]["modelAssets"].as_array_mut().unwrap().push(attached);
    assert_eq!(written(&end_of(&job).await), [json!({"product": 42})]);
    // What leads out of the folder is refused before anything runs.
    job["model"]["storedModel"]["modelAssets"][1]["fileContent"] = json!(ESCAPE);
    let end = end_of(&job).await;
    assert_eq!(end.kind(), Some(EventKind::Rejected), "{end:?}");
}

#[tokio::test]
async fn whatever_is_wrong_with_a_record_is_told_by_field_and_reason() {
    let records = [
        r#"{"count": 1, "blob": "ÿ", "more": 1}"#,
        r#"{"blob": "x"}"#,
        r#"{"count": 12345678901234567890123, "blob": ""}"#,
        r#"{"count": null, "blob": ""}"#,
        r#"{"count": 1.5, "blob": ""}"#,
        r#"{"count": 1, "blob": "€"}"#,
        r#"[1]"#,
        r#"{"count": 1"#,
        r#"{"count": 1, "blob": "", "maybe": 5}"#,
    ];
    let fields = json!([
        {"name": "count", "type": "long"}, {"name": "blob", "type": "bytes"},
        {"name": "maybe", "type": ["null", "string"], "default": null}]);
    let end = end_of(&with_schema(job("wrong", PASS_ON, &records.join("\n")), fields)).await;
    let told = end.data.records.unwrap();
    assert_eq!((told.read, told.scored, told.rejected.input), (9, 1, 8));
    let reasons: Vec<(String, String)> =
        told.reasons.into_iter().map(|reason| (reason.field.unwrap_or_default(), reason.reason)).collect();
    for expected in [
        ("count", "is missing"),
        ("count", "is out of the range of long"),
        ("count", "is null"),
        ("count", "is not a long"),
        ("blob", "is not bytes"),
    ] {
        let expected = (expected.0.to_owned(), expected.1.to_owned());
        assert!(reasons.contains(&expected), "{expected:?} is not in {reasons:?}");
    }
}

#[tokio::test]
async fn a_record_at_which_the_model_raises_is_told_by_its_number_or_passed_over() {
    let source = "def score(record):\n    if record['n'] == 3:\n        raise ValueError('no good')\n    yield record\n";
    let lines: String = (1..=5).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    let mut job = job("raises", source, &lines);
    let failure = end_of(&job).await.data.failure.unwrap();
    assert_eq!(failure.class, FailureClass::Model);
    assert_eq!(failure.message, "the model raised ValueError at record 3 of in: no good");
    assert_eq!((failure.record, failure.input.as_deref()), (Some(3), Some("in")));
    assert_eq!(failure.exception.unwrap().frame.unwrap().line, 3);

    job["skipFailedRecords"] = json!(true);
    let end = end_of(&job).await;
    assert_eq!((end.kind(), end.data.job_result), (Some(EventKind::Completed), Some(JobResult::Failure)));
    assert_eq!(end.data.records.as_ref().unwrap().failed, 1);
    assert_eq!(end.data.message.as_deref(), Some("1 record(s) at which the model raised were passed over"));
    assert_eq!(written(&end).len(), 4);
}

#[tokio::test]
async fn a_job_that_is_to_stop_at_the_first_bad_record_keeps_what_came_before() {
    let lines = "{\"n\": 1}\n{\"n\": 2}\n{\"n\": \"x\"}\n{\"n\": 4}\n";
    let mut job = with_schema(job("stops", PASS_ON, lines), json!([{"name": "n", "type": "int"}]));
    job["stopOnBadRecords"] = json!(true);
    let end = end_of(&job).await;
    assert_eq!((end.kind(), end.data.job_result), (Some(EventKind::Completed), Some(JobResult::Failure)));
    assert_eq!(end.data.records.as_ref().unwrap().stopped_at, Some(3));
    assert!(end.data.message.as_deref().unwrap().contains("stopped at record 3, the first bad one"));
    assert_eq!(written(&end), [json!({"n": 1}), json!({"n": 2})]);
}

#[tokio::test]
async fn what_the_model_gives_and_json_does_not_have_is_the_jobs_fault() {
    for (source, words) in [
        ("def score(record):\n    yield {'a': object()}\n", "no JSON form"),
        ("def score(record):\n    yield 7\n", "yields or returns dicts"),
    ] {
        let end = end_of(&job("odd", source, "{}\n")).await;
        assert_eq!(end.kind(), Some(EventKind::Rejected), "{:?}", end.data);
        let faults = end.data.faults.unwrap();
        assert!(faults[0].message.contains(words), "{faults:?}");
    }
}

#[tokio::test]
async fn what_can_be_known_is_told_before_anything_starts() {
    let two = "# modelop.score\ndef a(r): pass\n# modelop.score\ndef b(r): pass\n";
    let loose = "# modelop.score\nX = 1\ndef a(r): pass\n";
    let mut untagged = job("t", two, "{}");
    assets(&mut untagged)[0].as_object_mut().unwrap().remove("scoreFunction");
    let mut on_nothing = untagged.clone();
    assets(&mut on_nothing)[0]["sourceCode"] = json!(loose);
    let endless = json!([{"name": "r", "type": "Row"}]);
    let mut no_format = job("f", PASS_ON, "{}");
    no_format["outputData"][0]["filename"] = json!("out");
    let mut missing = job("m", PASS_ON, "{}");
    missing["inputData"][0] = json!({"assetType": "EXTERNAL_FILE", "fileUrl": "/no/such/in.csv"});
    for (job, words) in [
        (job("p", "def score(a, b): pass\n", "{}"), "or one record"),
        (untagged, "tags two scoring functions, a (line 2) and b (line 4)"),
        (on_nothing, "the tag score (line 1) stands above none"),
        (
            with_schema(job("s", PASS_ON, "{}"), json!([{"name": "a", "type": "integer"}])),
            "Avro calls it \"int\"",
        ),
        (with_schema(job("e", PASS_ON, "{}"), endless), "contains itself without end"),
        (no_format, "give one of CSV, JSON, JSONL, AVRO, PARQUET"),
        (missing, "/no/such/in.csv is not there"),
    ] {
        let events = events_of(&job, &[]).await;
        assert_eq!(events.len(), 1, "{events:?}");
        let faults = events[0].data.faults.as_ref().unwrap();
        assert!(faults.iter().any(|fault| fault.message.contains(words)), "{words}: {faults:?}");
    }
}

#[tokio::test]
async fn where_a_tag_and_the_asset_disagree_the_accepted_event_says_so() {
    let source =
        "# modelop.score\ndef other(r): pass\ndef score(r):\n    yield r\n# modelop.recordset.0: true\n";
    let events = events_of(&job("d", source, "{\"a\": 1}"), &[]).await;
    assert_eq!(events[0].kind(), Some(EventKind::Accepted));
    let message = events[0].data.message.as_deref().unwrap();
    assert!(message.contains("the asset names score as the scoring function"), "{message}");
    assert!(message.contains("did you mean recordsets?"), "{message}");
    assert_eq!(written(events.last().unwrap()), [json!({"a": 1})]);
}

#[tokio::test]
async fn a_generator_that_never_ends_is_ended_by_the_deadline() {
    let source = "def score(record):\n    while True:\n        yield record\n";
    let end = events_of(&job("never", source, "{}"), &["job.run_timeout=1s", "job.kill_grace=0s"]).await;
    let failure = end.last().unwrap().data.failure.clone().unwrap();
    assert_eq!(failure.class, FailureClass::Timeout);
}

#[tokio::test]
async fn a_driver_without_a_session_dies_with_its_worker() {
    let place = Vhost::ready(&DELAYS).await;
    let worker = Worker::start(&place.vhost.uri(), &[RETRY]);
    let source = "import subprocess, time\ndef score(record):\n    subprocess.Popen(['sleep', '600'])\n    time.sleep(600)\n";
    place.publish("dies", job("dies", source, "{}").to_string()).await;
    until("the model's own process", async || (worker.processes().len() >= 2).then_some(())).await;
    worker.signal(Signal::SIGKILL);
    worker.nothing_left().await;
}

#[tokio::test]
async fn a_driver_without_a_session_needs_no_spark_and_does_not_wait_behind_jvms() {
    let mut place = Vhost::ready(&DELAYS).await;
    let settings = [RETRY, "worker.max_running=2", "worker.max_submits=1"];
    let worker = Worker::start(&place.vhost.uri(), &settings);
    place.publish("slow", text("slow", &["hang", "hello"])).await;
    place.heard("slow", &[EventKind::Submitted]).await;
    place.publish("quick", job("quick", PASS_ON, "{\"a\": 1}").to_string()).await;
    assert_eq!(written(&place.end_of("quick").await), [json!({"a": 1})]);
    drop(worker);
    let events =
        events_of(&job("alone", PASS_ON, "{\"a\": 1}"), &["spark.submit=/no/such/spark-submit"]).await;
    assert_eq!(written(events.last().unwrap()), [json!({"a": 1})]);
}

#[tokio::test]
async fn a_record_model_sees_none_of_the_workers_settings_and_all_of_its_files() {
    let source = "import os, helper\ndef score(record):\n    yield {'note': open('note.txt').read(), 'name': helper.NAME, 'settings': [n for n in os.environ if n.startswith('SPARK_RUNTIME__')], 'seed': os.environ['PYTHONHASHSEED']}\n";
    let mut job = job("sees", source, "{}");
    assets(&mut job).extend([
        json!({"name": "n", "assetType": "FILE", "filename": "note.txt", "fileContent": "bm90ZWQ="}),
        json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "helper.py", "sourceCode": "NAME = 'helped'"}),
    ]);
    let end = end_of(&job).await;
    assert_eq!(written(&end), [json!({"note": "noted", "name": "helped", "settings": [], "seed": "0"})]);
}

/// What needs the real Spark.
mod spark {
    use super::*;
    use crate::spark::{Parts, Standalone, may_hide_folders};

    #[tokio::test]
    async fn a_training_function_finds_the_folder_of_what_it_leaves() {
        let source = "import os\ndef train(a, b, c):\n    assert os.listdir('outputDir') == []\n    open('outputDir/model.bin', 'wb').close()\n";
        let mut job = job("trains", source, "");
        job["jobType"] = json!("MODEL_BATCH_TRAINING_JOB");
        assets(&mut job)[0]["trainingFunction"] = json!("train");
        job["outputData"] = json!([]);
        let parts = Parts::take().await;
        let settings = parts.settings();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let end = events_of(&job, &settings).await.pop().unwrap();
        assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}", end.data.failure);
    }

    #[tokio::test]
    async fn spark_gives_the_same_as_one_process_does_and_in_the_same_order() {
        let parts = Parts::take().await;
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in.csv");
        let rows: String =
            (0..2000).map(|n| format!("{n},{}\n", if n % 400 == 7 { "x" } else { "1.5" })).collect();
        std::fs::write(&input, format!("n,price\n{rows}")).unwrap();
        let source = "def init():\n    global started\n    started = True\ndef score(record):\n    assert started\n    yield {'n': record['n'], 'twice': 2 * record['price']}\n    if record['n'] % 1000 == 0:\n        yield {'n': -record['n']}\n";
        let fields = json!([{"name": "n", "type": "int"}, {"name": "price", "type": "double"}]);
        let mut job = with_schema(job("same", source, ""), fields);
        assets(&mut job)[0]["initFunction"] = json!("init");
        job["inputData"][0] =
            json!({"assetType": "EXTERNAL_FILE", "name": "in", "fileUrl": input.to_str().unwrap()});
        job["targetEngine"] = json!({"sparkConf": {"--master": "local[2]", "spark.ui.enabled": "false"}});
        let mut ends = Vec::new();
        for below in ["0B", "1GiB"] {
            let mut settings = parts.settings();
            settings.push(format!("records.process_below={below}"));
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            ends.push(events_of(&job, &settings).await.pop().unwrap());
        }
        let [by_spark, by_process] = &ends[..] else { unreachable!("there are two") };
        assert_eq!(by_spark.kind(), Some(EventKind::Completed), "{:?}", by_spark.data.failure);
        let records = |event: &Event| event.data.records.clone().unwrap();
        let (spark, process) = (records(by_spark), records(by_process));
        assert_eq!((spark.way, process.way), (Way::Spark, Way::Process));
        assert_eq!((spark.read, spark.scored, spark.rejected.input), (2000, 1995, 5));
        assert_eq!(
            (spark.written, &spark.rejected, &spark.reasons),
            (process.written, &process.rejected, &process.reasons)
        );
        assert_eq!(written(by_spark), written(by_process));
        assert_eq!(written(by_spark)[1], json!({"n": 0}));
    }

    #[tokio::test]
    async fn a_record_model_runs_on_a_cluster_with_its_helpers_and_files() {
        let parts = Parts::take().await;
        let cluster = Standalone::start(&parts).await;
        let source = "import pkg.helper\ndef init(job):\n    global note\n    note = open('data/note.txt').read()\ndef score(record):\n    yield {'n': pkg.helper.double(record['n']), 'note': note}\n";
        let lines: String = (0..50).map(|n| format!("{{\"n\": {n}}}\n")).collect();
        let mut job = job("cluster-records", source, &lines);
        assets(&mut job)[0]["initFunction"] = json!("init");
        assets(&mut job).extend([
            json!({"name": "n", "assetType": "FILE", "filename": "data/note.txt", "fileContent": "bm90ZWQ="}),
            json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/helper.py", "sourceCode": "def double(n):\n    return 2 * n\n"}),
        ]);
        job["targetEngine"] = json!({"sparkConf": {"--master": cluster.address}});
        job["jobParameters"] = json!({"--executor-memory": "512MB", "--total-executor-cores": "1"});
        let mut settings = parts.settings();
        settings.push("records.process_below=0B".to_owned());
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let end = events_of(&job, &settings).await.pop().unwrap();
        assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}", end.data);
        assert_eq!(end.data.records.as_ref().unwrap().way, Way::Spark);
        let scored = written(&end);
        assert_eq!((scored.len(), &scored[49]), (50, &json!({"n": 98, "note": "noted"})));
    }

    /// A database of Derby's, which comes with Spark. It tells who asks, but takes every password.
    fn database(parts: &Parts, folder: &std::path::Path) -> String {
        let url = format!("jdbc:derby:{}", folder.join("models").display());
        let script = [
            format!("CONNECT '{url};create=true';\n"),
            "CREATE TABLE people (name VARCHAR(20), age INT);\n".to_owned(),
            "INSERT INTO people VALUES ('Ada', 36), ('Bob', NULL), ('Cy', 7);\n".to_owned(),
        ];
        let path = folder.join("create.sql");
        std::fs::write(&path, script.concat()).unwrap();
        let created = std::process::Command::new("java")
            .args(["-Dij.exceptionTrace=true", "-cp"])
            .arg(parts.spark_home().join("jars/*"))
            .arg("org.apache.derby.tools.ij")
            .arg(&path)
            .current_dir(folder)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&created.stdout);
        assert!(created.status.success() && !said.contains("ERROR"), "{said}");
        url
    }

    #[tokio::test]
    async fn a_query_is_read_from_the_database_and_its_password_is_seen_by_nobody() {
        let parts = Parts::take().await;
        let folder = tempfile::tempdir().unwrap();
        let url = database(&parts, folder.path());
        let password = folder.path().join("password");
        std::fs::write(&password, "s3cret-w0rd\n").unwrap();
        // It looks where the driver found it.
        let source = "import glob, os\nseen = [name for name in glob.glob('../*') + glob.glob('*') if os.path.isfile(name) and b's3c' + b'ret' in open(name, 'rb').read()]\nseen += [name for name in os.environ if 's3c' + 'ret' in os.environ[name]]\ndef score(record):\n    assert not seen, seen\n    yield {'name': record['NAME'], 'asked': record['WHO'], 'old': record['AGE'] is not None and record['AGE'] > 30}\n";
        let mut job = job("asks", source, "");
        job["inputData"] = json!([{"assetType": "SQL", "name": "people",
            "query": "select name, age, current_user as who from app.people order by name;"}]);
        job["targetEngine"] = json!({"sparkConf": {"--master": "local[1]"}});
        let mut settings = parts.settings();
        settings.extend([
            format!("sql.url={url}"),
            "sql.driver=org.apache.derby.jdbc.EmbeddedDriver".to_owned(),
            "sql.user=reader".to_owned(),
            format!("sql.password_file={}", password.display()),
        ]);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let events = events_of(&job, &settings).await;
        assert!(!serde_json::to_string(&events).unwrap().contains("s3cret"), "an event has the password");
        let end = events.last().unwrap();
        assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}", end.data);
        let expected = [("Ada", true), ("Bob", false), ("Cy", false)]
            .map(|(name, old)| json!({"name": name, "asked": "READER", "old": old}));
        assert_eq!(written(end), expected);

        std::fs::remove_file(&password).unwrap();
        let end = events_of(&job, &settings).await.pop().unwrap();
        let failure = end.data.failure.unwrap();
        assert_eq!(failure.class, FailureClass::Infrastructure);
        assert!(failure.message.contains("sql.password_file"), "{}", failure.message);

        let events = events_of(&job, &settings[..settings.len() - 4]).await;
        let told = serde_json::to_string(&events).unwrap();
        assert!(events[0].kind() == Some(EventKind::Rejected) && told.contains("sql.url"), "{told}");
    }

    #[tokio::test]
    async fn executors_that_see_nothing_of_this_machine_get_the_environment_and_all_attachments() {
        if !may_hide_folders() {
            eprintln!(
                "skipped: this user may not mount anything, so no executor can be kept from the job's files"
            );
            return;
        }
        let parts = Parts::take().await;
        let place = tempfile::tempdir().unwrap();
        let [jobs, environments] = ["jobs", "environments"].map(|name| place.path().join(name));
        for folder in [&jobs, &environments] {
            std::fs::create_dir(folder).unwrap();
        }
        // An environment that the executors cannot have; its Python is at the same path for both.
        let environment = environments.join("own");
        let made = std::process::Command::new(parts.python())
            .args(["-m", "venv", "--without-pip"])
            .arg(&environment)
            .status();
        assert!(made.unwrap().success());
        let versions = std::fs::read_dir(environment.join("lib")).unwrap();
        let packages = versions.flatten().next().unwrap().path().join("site-packages");
        std::fs::write(packages.join("only_there.py"), "WORD = 'sent along'\n").unwrap();
        let external = environments.join("offset.txt");
        std::fs::write(&external, "100").unwrap();
        let cluster = Standalone::start_elsewhere(&parts, &[&jobs, &environments]).await;

        let source = "import os, sys, only_there, pkg.helper\nseen = {}\ndef init(job):\n    seen.update(note=open('data/note.txt').read(), factor=int(open('weights/factor.txt').read()), offset=int(open('offset.txt').read()), prefix=sys.prefix)\ndef score(record):\n    yield dict(seen, n=pkg.helper.double(record['n']) * seen['factor'] + seen['offset'], word=only_there.WORD, own=os.path.exists(record['path']))\n";
        let path = environment.join("pyvenv.cfg");
        let lines: String =
            (0..20).map(|n| format!("{}\n", json!({"n": n, "path": path.to_str().unwrap()}))).collect();
        let mut job = job("elsewhere", source, &lines);
        assets(&mut job)[0]["initFunction"] = json!("init");
        assets(&mut job).extend([
            json!({"name": "n", "assetType": "FILE", "filename": "data/note.txt", "fileContent": "bm90ZWQ="}),
            json!({"name": "m", "assetType": "FILE", "filename": "model.zip", "fileContent": ARCHIVE}),
            json!({"name": "e", "assetType": "EXTERNAL_FILE", "fileUrl": external.to_str().unwrap()}),
            json!({"name": "h", "assetType": "SOURCE_CODE", "sourceCodeFilePath": "pkg/helper.py", "sourceCode": "def double(n):\n    return 2 * n\n"}),
        ]);
        assets(&mut job)[3]["filename"] = json!("offset.txt");
        job["targetEngine"] = json!({"sparkConf": {"--master": cluster.address}});
        job["jobParameters"] = json!({"--executor-memory": "512MB", "--total-executor-cores": "1"});
        let mut settings = parts.settings();
        settings.retain(|setting| !setting.starts_with("spark.python="));
        settings.extend([
            "records.process_below=0B".to_owned(),
            "runtimes.send=always".to_owned(),
            format!("spark.python={}", environment.join("bin/python").display()),
            format!("job.directory={}", jobs.display()),
        ]);
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        for _ in 0..2 {
            let end = events_of(&job, &settings).await.pop().unwrap();
            assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}", end.data);
            let scored = written(&end);
            assert_eq!(scored.len(), 20);
            assert_eq!(
                (&scored[3]["n"], &scored[3]["word"], &scored[3]["note"], &scored[3]["own"]),
                (&json!(142), &json!("sent along"), &json!("noted"), &json!(false))
            );
            let prefix = scored[3]["prefix"].as_str().unwrap();
            assert!(prefix.ends_with("/spark_runtime_environment"), "{prefix}");
        }
        let packed = std::fs::read_dir(jobs.join("runtimes")).unwrap().flatten();
        assert_eq!(packed.filter(|entry| entry.path().is_dir()).count(), 1, "it is packed once");
        // Without it there is no such module there.
        let mut settings = settings.clone();
        settings.push("runtimes.send=never");
        let end = events_of(&job, &settings).await.pop().unwrap();
        assert_ne!(end.kind(), Some(EventKind::Completed));
    }
}
