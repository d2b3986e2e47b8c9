//! The examples of `deploy/examples`, as its `make_jobs.py` makes them, and data frames: what needs the libraries that models
//! are made with. `tests/run` says where their Python is.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use spark_runtime_protocol::asset::decode_base64;
use spark_runtime_protocol::event::{Event, EventKind, JobResult, Side, Way};
use spark_runtime_tests::broker::{Ready, Vhost};
use spark_runtime_tests::jobs::assets;
use spark_runtime_tests::program::Worker;
use spark_runtime_tests::project;

use super::spark::Parts;

const DELAYS: [Duration; 1] = [Duration::from_millis(200)];

/// A real worker with a runtime `libraries` beside its own, and the examples' jobs.
struct Examples {
    place: Ready,
    parts: Parts,
    folder: tempfile::TempDir,
}

impl Examples {
    async fn make() -> Self {
        let parts = Parts::take().await;
        let folder = tempfile::tempdir().unwrap();
        let runtimes = format!("[[runtime]]\nname = \"libraries\"\npython = \"{}\"\n", libraries());
        std::fs::write(folder.path().join("runtimes.toml"), runtimes).unwrap();
        Self { place: Vhost::ready(&DELAYS).await, parts, folder }
    }

    /// Makes the jobs with their data, by the program that users have for it.
    fn make_jobs(&self) {
        let done = Command::new(&self.parts.python)
            .arg(project().join("deploy/examples/make_jobs.py"))
            .arg(self.path("jobs"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn job(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.path(&format!("jobs/{name}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn worker(&self, more: &[&str]) -> Worker {
        let runtimes = format!("runtimes.file={}", self.path("runtimes.toml").display());
        let settings: Vec<&str> = more.iter().copied().chain([runtimes.as_str()]).collect();
        self.parts.worker(&self.place.vhost.uri(), &settings)
    }

    /// Publishes a job and gives its end, which has to be of this kind.
    async fn end_of(&mut self, job: &Value, kind: EventKind) -> Event {
        let id = job["id"].as_str().unwrap();
        self.place.publish(id, job.to_string()).await;
        let end = self.place.end_of(id).await;
        assert_eq!(end.kind(), Some(kind), "{:?} {:?}", end.data.failure, end.data.faults);
        end
    }

    async fn completed(&mut self, job: &Value) -> Event {
        let end = self.end_of(job, EventKind::Completed).await;
        assert_eq!(end.data.job_result, Some(JobResult::Success), "{:?}", end.data.job_messages);
        end
    }
}

/// The Python that has the packages of `deploy/examples/requirements.txt`.
fn libraries() -> String {
    std::env::var("SPARK_RUNTIME_TEST_LIBRARIES_PYTHON")
        .unwrap_or_else(|_| panic!("SPARK_RUNTIME_TEST_LIBRARIES_PYTHON is not set; run tests/run"))
}

/// The content of a FILE output.
fn output(end: &Event, index: usize) -> String {
    let mut content = Vec::new();
    let encoded = end.data.output_data.as_ref().unwrap()[index]["fileContent"].as_str().unwrap();
    decode_base64(encoded, &mut content).unwrap();
    String::from_utf8(content).unwrap()
}

fn records(end: &Event) -> Vec<Value> {
    output(end, 0).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn way(end: &Event) -> Way {
    end.data.records.as_ref().unwrap().way
}

fn with_id(job: &Value, id: &str) -> Value {
    let mut job = job.clone();
    job["id"] = json!(id);
    job
}

#[tokio::test]
async fn the_classifier_of_emails_is_trained_scores_what_it_was_trained_for_and_gives_its_roc_curve() {
    let mut examples = Examples::make().await;
    examples.make_jobs();
    // A network that takes connections and never answers must not hold it up.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("spark.environment.https_proxy=http://{}", silent.local_addr().unwrap());
    let network = [proxy.as_str(), "spark.environment.NLTK_ALLOW_PROXIED_URLOPEN=1"];
    let worker = examples.worker(&network);
    let training = examples.job("email-training");
    let end = examples.completed(&training).await;
    assert_eq!((way(&end), end.data.records.as_ref().unwrap().read), (Way::Process, 300));
    assert_eq!(end.data.runtime.as_ref().unwrap().name, "libraries");
    let left = end.data.additional_assets.as_ref().and_then(Value::as_array).unwrap();
    let names: Vec<_> = left.iter().map(|asset| asset["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["lasso_model_artifacts.pkl", "training_report.json"]);
    let there = examples.path("jobs/trained-email").join(training["id"].as_str().unwrap());
    for asset in left {
        let path = there.join(asset["name"].as_str().unwrap());
        assert_eq!(asset["fileUrl"], json!(path));
        assert_eq!(asset["fileSize"], json!(path.metadata().unwrap().len()));
    }
    silent.set_nonblocking(true).unwrap();
    let report: Value =
        serde_json::from_slice(&std::fs::read(there.join("training_report.json")).unwrap()).unwrap();
    assert!(
        report["with_tagger"] == json!(true) || silent.accept().is_ok(),
        "it has to have been tried: {report}"
    );

    // What the job looks for is where the other one left it; what the event says of it is whole.
    let with_artifacts = |mut job: Value| {
        let all = assets(&mut job);
        assert_eq!(all.last().unwrap()["fileUrl"], left[0]["fileUrl"]);
        *all.last_mut().unwrap() = left[0].clone();
        job
    };
    let scoring = with_artifacts(examples.job("email-scoring"));
    let end = examples.completed(&scoring).await;
    assert_eq!((way(&end), end.data.runtime.as_ref().unwrap().name.as_str()), (Way::Process, "libraries"));
    let scored = records(&end);
    let actual = std::fs::read_to_string(examples.path("jobs/data/new_emails.csv")).unwrap();
    let actual: Vec<u64> = actual.lines().skip(1).map(|line| u64::from(line.ends_with(",1"))).collect();
    assert_eq!((scored.len(), actual.len()), (100, 100));
    assert_eq!(scored[0]["id"], json!(301));
    assert!(scored[0]["content"].as_str().unwrap().starts_with("Dear Elif."), "{}", scored[0]);
    let right = scored.iter().zip(&actual).filter(|(one, actual)| one["prediction"] == json!(actual)).count();
    assert!(right >= 90, "{right} of 100");

    let metrics = with_artifacts(examples.job("email-metrics"));
    let results = examples.completed(&metrics).await.data.results.unwrap();
    let curve: Vec<(f64, f64)> = results["roc_curve"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["fpr"].as_f64().unwrap(), one["tpr"].as_f64().unwrap()))
        .collect();
    assert_eq!((curve.first(), curve.last()), (Some(&(0.0, 0.0)), Some(&(1.0, 1.0))));
    assert!(curve.len() > 3 && curve.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1), "{curve:?}");
    assert!((0.9..1.0).contains(&results["auc"].as_f64().unwrap()), "{results}");
    let matrix = results["confusion_matrix"].as_array().unwrap();
    let counts = matrix.iter().flat_map(|row| row.as_object().unwrap().values()).map(|n| n.as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), 100);
    let hits = matrix[0]["Compliant"].as_u64().unwrap() + matrix[1]["Non-Compliant"].as_u64().unwrap();
    assert_eq!(hits, right as u64, "metrics and scores are of one model");

    // In Spark's Python workers it does the same.
    drop(worker);
    let _worker = examples.worker(&[network[0], network[1], "records.process_below=0B"]);
    let end = examples.completed(&with_id(&scoring, "by-spark")).await;
    assert_eq!(way(&end), Way::Spark);
    assert_eq!(records(&end), scored);
}

#[tokio::test]
async fn a_random_forest_of_spark_ml_is_trained_into_a_folder_scores_from_it_and_is_measured() {
    let mut examples = Examples::make().await;
    examples.make_jobs();
    let _worker = examples.worker(&[]);
    let training = examples.job("training");
    examples.completed(&training).await;
    let stages = std::fs::read_dir(examples.path("jobs/trained/stages")).unwrap();
    let stages: Vec<_> = stages.map(|stage| stage.unwrap().file_name().into_string().unwrap()).collect();
    assert!(stages.iter().any(|stage| stage.starts_with("1_RandomForestClassifier_")), "{stages:?}");

    let (scoring, metrics) = (examples.job("scoring"), examples.job("metrics"));
    examples.place.publish(metrics["id"].as_str().unwrap(), metrics.to_string()).await;
    let end = examples.completed(&scoring).await;
    let summary: Value = serde_json::from_str(&output(&end, 1)).unwrap();
    assert_eq!(summary["passengers"], json!(500));
    let parts = std::fs::read_dir(examples.path("jobs/scored")).unwrap().map(|part| part.unwrap().path());
    let csv = parts.filter(|path| path.extension().is_some_and(|ending| ending == "csv"));
    let lines: Vec<String> = csv
        .flat_map(|path| {
            std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!((lines.len(), lines[0].as_str()), (501, "passenger_id,probability,verdict"));

    let end = examples.place.end_of(metrics["id"].as_str().unwrap()).await;
    assert_eq!(end.kind(), Some(EventKind::Completed), "{:?}", end.data.failure);
    let results = end.data.results.unwrap();
    assert_eq!(results["passengers"], json!(500));
    assert!((0.7..1.0).contains(&results["auc"].as_f64().unwrap()), "{results}");
}

fn judged(end: &Event) -> Vec<Value> {
    assert_eq!(end.data.job_result, Some(JobResult::Failure));
    let told = end.data.records.as_ref().unwrap();
    assert_eq!((told.read, told.scored, told.written, told.rejected.input), (100, 97, 97, 3));
    let mut reasons: Vec<_> = told
        .reasons
        .iter()
        .map(|reason| (reason.side, reason.field.as_deref().unwrap(), reason.reason.as_str(), reason.count))
        .collect();
    reasons.sort_by_key(|reason| reason.1);
    let expected = [
        (Side::Input, "income", "is not a double", 1),
        (Side::Input, "payments", "is null", 1),
        (Side::Input, "purpose", "is missing", 1),
    ];
    assert_eq!(reasons, expected);
    records(end)
}

#[tokio::test]
async fn a_model_finds_its_inputs_by_their_roles_its_file_and_its_helpers_and_scores_what_fits_the_schema() {
    let mut examples = Examples::make().await;
    examples.make_jobs();
    let _worker = examples.worker(&[]);
    let job = examples.job("roles-scoring");
    let end = examples.end_of(&job, EventKind::Completed).await;
    assert_eq!(way(&end), Way::Process);
    let scored = judged(&end);
    assert_eq!(scored.len(), 97);
    let of = |applicant: u64| scored.iter().filter(|one| one["applicant"] == json!(applicant)).count();
    assert_eq!([1001, 1018, 1042, 1077].map(of), [1, 0, 0, 0]);
    for one in &scored {
        let burden = one["burden"].as_f64().unwrap();
        let verdict = if burden <= 0.3 {
            "granted"
        } else if burden <= 0.45 {
            "looked at"
        } else {
            "refused"
        };
        assert_eq!(one["verdict"], json!(verdict));
        assert!((0.1..10.0).contains(&one["income_to_usual"].as_f64().unwrap()), "{one}");
    }

    // The order of the inputs does not matter, and their roles do.
    let job = examples.job("roles-metrics");
    let results = examples.completed(&job).await.data.results.unwrap();
    let median = |role: &str| results["quartiles"][role][1].as_f64().unwrap();
    assert!(median("COMPARATOR_DATA") > median("BASELINE_DATA") + 300.0, "{results}");
    assert_eq!(results["has_drifted"], json!(true));
}

#[tokio::test]
async fn a_model_in_a_repository_does_as_the_same_one_inside_the_job() {
    let mut examples = Examples::make().await;
    examples.make_jobs();
    let _worker = examples.worker(&[]);
    let inside = examples.job("roles-scoring");
    let expected = judged(&examples.end_of(&inside, EventKind::Completed).await);
    let job = examples.job("git");
    for asset in job["model"]["storedModel"]["modelAssets"].as_array().unwrap() {
        assert!(asset.get("sourceCode").is_none() && asset.get("fileContent").is_none(), "{asset}");
    }
    let end = examples.end_of(&job, EventKind::Completed).await;
    assert_eq!(judged(&end), expected);
    let head = Command::new("git")
        .arg(format!("--git-dir={}", examples.path("jobs/models.git").display()))
        .args(["rev-parse", "main"])
        .output()
        .unwrap();
    let head = String::from_utf8(head.stdout).unwrap();
    let sources = end.data.sources.unwrap();
    assert_eq!(sources.len(), 7);
    assert!(sources.iter().all(|source| source.commit == head.trim()), "{head} {sources:?}");
    assert_eq!(sources[0].path, "roles/credit_model.py");
}

/// A record model whose functions get data frames.
const FRAMES: &str = r#"
# modelop.recordsets.0: true
import json
import pandas

# modelop.init
def begin():
    global means
    try:
        means = json.load(open("means.json"))
    except FileNotFoundError:
        means = None

# modelop.score
def score(frame):
    assert isinstance(frame, pandas.DataFrame) and len(frame) <= 100
    frame["above"] = frame["x"] > frame["kind"].map(means)
    yield frame[["n", "above"]]

# modelop.metrics
def metrics(df):
    assert isinstance(df, pandas.DataFrame)
    above = df["x"] > df["kind"].map(means)
    yield {"rows": len(df), "above": above.groupby(df["kind"]).sum(), "types": {n: str(t) for n, t in df.dtypes.items()}}

# modelop.train
def train(df):
    df.groupby("kind")["x"].mean().to_json("outputDir/means.json")
"#;

/// Two columns of numbers and one of words, as CSV and as Parquet.
const FRAME_DATA: &str = r#"
import sys, pandas
frame = pandas.DataFrame({"n": range(500), "x": [(n * 37 % 100) / 4 for n in range(500)]})
frame["kind"] = ["odd" if n % 2 else "even" for n in frame["n"]]
frame.to_csv(sys.argv[1] + "/rows.csv", index=False)
frame.to_parquet(sys.argv[1] + "/rows.parquet", index=False)
"#;

fn frames_job(examples: &Examples, id: &str, job_type: &str, input: &str) -> Value {
    json!({
        "id": id, "jobType": job_type,
        "model": {"storedModel": {"modelAssets": [
            {"name": "frames.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": FRAMES},
            {"name": "requirements.txt", "assetType": "SOURCE_CODE", "assetRole": "REQUIRED_LIBRARIES",
             "sourceCode": "pandas\npyarrow\n"},
        ]}},
        "inputData": [{"name": input, "assetType": "EXTERNAL_FILE", "fileUrl": examples.path(input)}],
        "outputData": [],
        "trainingOutput": {"fileUrl": examples.path("trained")},
        "targetEngine": {"sparkConf": {"--master": "local[2]", "spark.ui.enabled": "false"}},
    })
}

#[tokio::test]
async fn functions_get_data_frames_and_give_the_same_with_spark_and_without() {
    let mut examples = Examples::make().await;
    let folder = examples.folder.path();
    let made = Command::new(libraries()).args(["-c", FRAME_DATA]).arg(folder).status().unwrap();
    assert!(made.success());
    let mut worker = examples.worker(&["records.frame_rows=100"]);

    // Training and metrics need no session for CSV; Python alone does not read Parquet.
    let (mut left, mut above) = (Vec::new(), Vec::new());
    for (input, expected) in [("rows.csv", Way::Process), ("rows.parquet", Way::Spark)] {
        let id = |what: &str| format!("{what}-{}", input.replace('.', "-"));
        let job = frames_job(&examples, &id("train"), "MODEL_BATCH_TRAINING_JOB", input);
        let end = examples.completed(&job).await;
        assert_eq!((way(&end), end.data.runtime.as_ref().unwrap().name.as_str()), (expected, "libraries"));
        let asset = end.data.additional_assets.unwrap()[0].clone();
        left.push(std::fs::read_to_string(asset["fileUrl"].as_str().unwrap()).unwrap());
        let mut job = frames_job(&examples, &id("metrics"), "MODEL_BATCH_TEST_JOB", input);
        assets(&mut job).push(asset);
        let end = examples.completed(&job).await;
        assert_eq!(way(&end), expected);
        let results = end.data.results.unwrap();
        assert_eq!(results["rows"], json!(500));
        assert_eq!((&results["types"]["n"], &results["types"]["x"]), (&json!("int64"), &json!("float64")));
        above.push(results["above"].clone());
    }
    assert_eq!((&left[0], &above[0]), (&left[1], &above[1]));

    let mut scored = Vec::new();
    for expected in [Way::Process, Way::Spark] {
        let id = format!("score-{expected:?}");
        let mut job = frames_job(&examples, &id, "MODEL_BATCH_JOB", "rows.csv");
        let means = examples.path("trained/train-rows-csv/means.json");
        assets(&mut job)
            .push(json!({"assetType": "EXTERNAL_FILE", "fileUrl": means, "filename": "means.json"}));
        job["outputData"] = json!([{"assetType": "FILE", "filename": "scored.jsonl"}]);
        let end = examples.completed(&job).await;
        assert_eq!((way(&end), end.data.records.as_ref().unwrap().written), (expected, 500));
        scored.push(records(&end));
        drop(worker);
        worker = examples.worker(&["records.frame_rows=100", "records.process_below=0B"]);
    }
    assert_eq!(scored[0], scored[1]);
    assert_eq!(scored[0][0], json!({"n": 0, "above": false}));
    let total: u64 = ["odd", "even"].iter().map(|kind| above[0][kind].as_u64().unwrap()).sum();
    assert_eq!(scored[0].iter().filter(|one| one["above"] == json!(true)).count() as u64, total);
}
