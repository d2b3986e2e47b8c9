//! What record models find in their directory, and archives that are refused; the packing is done by Python's own tools.

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use spark_runtime_protocol::event::{Event, EventKind, JobResult};
use spark_runtime_tests::jobs::{self, assets};
use spark_runtime_tests::program::{binary, fake_spark_submit};
use spark_runtime_tests::s3::{ACCESS_KEY, S3, SECRET_KEY};

const MODEL: &str = r#"
# modelop.init
def begin():
    global words
    import package.helper
    words = [package.helper.WORD] + [open(name).read() for name in ("data/a.txt", "latest.txt", "plain.txt")]

def score(record):
    yield {"said": " ".join(words)}
"#;
/// Packs what the model above looks for: a zip with a package, a tar with a link, and a file as it is.
const PACK: &str = r#"
import io, sys, tarfile, zipfile
folder = sys.argv[1]
with zipfile.ZipFile(folder + "/package.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("package/helper.py", "WORD = 'zipped'\n")
with tarfile.open(folder + "/data.bin", "w:xz") as archive:
    def add(name, content, kind=tarfile.REGTYPE, target=""):
        entry = tarfile.TarInfo(name)
        entry.size, entry.type, entry.linkname = len(content), kind, target
        archive.addfile(entry, io.BytesIO(content))
    add("data/a.txt", b"tarred")
    add("latest.txt", b"", tarfile.SYMTYPE, "data/a.txt")
with tarfile.open(folder + "/evil.tar.gz", "w:gz") as archive:
    entry = tarfile.TarInfo("../../out.txt")
    archive.addfile(entry, io.BytesIO())
open(folder + "/plain.zip", "w").write("plain")
"#;

pub(crate) fn packed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let done = Command::new("python3").args(["-c", PACK]).arg(folder.path()).status().unwrap();
    assert!(done.success());
    folder
}

pub(crate) fn job(more: Vec<Value>) -> Value {
    let mut job = json!({
        "id": "attached", "jobType": "MODEL_BATCH_JOB",
        "model": {"storedModel": {"modelAssets": [{
            "name": "m.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "scoreFunction": "score",
            "sourceCode": MODEL}]}},
        "inputData": [{"assetType": "FILE", "filename": "in.jsonl", "fileContent": STANDARD.encode("{\"a\": 1}\n")}],
        "outputData": [{"assetType": "FILE", "filename": "out.jsonl"}],
    });
    assets(&mut job).extend(more);
    job
}

pub(crate) fn external(url: &str, name: &str) -> Value {
    json!({"assetType": "EXTERNAL_FILE", "fileUrl": url, "filename": name})
}

fn file(folder: &Path, name: &str) -> Value {
    let content = STANDARD.encode(std::fs::read(folder.join(name)).unwrap());
    json!({"assetType": "FILE", "filename": name, "fileContent": content})
}

/// Runs a job here and now, without a broker; gives its last event.
pub(crate) fn end_of(job: &Value, settings: &[&str], environment: &[(&str, &str)]) -> Event {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.json");
    std::fs::write(&path, job.to_string()).unwrap();
    let called = Command::new(binary())
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .args(["run", "job.json", "--json"])
        .env("SPARK_RUNTIME__SPARK__SUBMIT", fake_spark_submit())
        .env("SPARK_RUNTIME__JOB__DIRECTORY", folder.path().join("attempts"))
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8(called.stdout).unwrap();
    let last = text.lines().last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&called.stderr)));
    serde_json::from_str(last).unwrap()
}

pub(crate) fn said(end: &Event) -> String {
    assert_eq!(end.data.job_result, Some(JobResult::Success), "{end:?}");
    let outputs = end.data.output_data.as_ref().unwrap();
    let content = STANDARD.decode(outputs[0]["fileContent"].as_str().unwrap()).unwrap();
    String::from_utf8(content).unwrap()
}

#[test]
fn attachments_are_fetched_and_unpacked_before_init_runs() {
    let folder = packed();
    let url = |name: &str| folder.path().join(name).display().to_string();
    // An ending that lies, on both sides: the tar is called .bin, and the text .zip.
    let plain = external(&url("plain.zip"), "plain.txt");
    let job = job(vec![file(folder.path(), "package.zip"), external(&url("data.bin"), "data.bin"), plain]);
    let end = end_of(&job, &[], &[]);
    assert_eq!(said(&end), "{\"said\":\"zipped tarred tarred plain\"}\n");
    let told = end.data.job_messages.unwrap().join("\n");
    assert!(
        told.contains("unpacked 1 files of package.zip") && told.contains("unpacked 2 files of data.bin"),
        "{told}"
    );
}

#[test]
fn an_archive_that_leads_out_is_refused_before_anything_starts() {
    let folder = packed();
    let end = end_of(&job(vec![file(folder.path(), "evil.tar.gz")]), &[], &[]);
    assert_eq!(end.kind(), Some(EventKind::Rejected));
    let fault = &end.data.faults.unwrap()[0];
    assert_eq!(fault.pointer, "/model/storedModel/modelAssets/1");
    assert!(fault.message.contains("\"../../out.txt\", whose name has the step \"..\""), "{}", fault.message);
    let missing = external("/nowhere/at/all.bin", "x");
    let end = end_of(&job(vec![missing]), &[], &[]);
    let fault = &end.data.faults.unwrap()[0];
    assert_eq!(fault.pointer, "/model/storedModel/modelAssets/1/fileUrl");
    assert_eq!(fault.message, "/nowhere/at/all.bin is not there");
    let large = ["attachments.max_size=1KiB"];
    std::fs::write(folder.path().join("large"), [0; 2000]).unwrap();
    let job = job(vec![external(&folder.path().join("large").display().to_string(), "large")]);
    let fault = &end_of(&job, &large, &[]).data.faults.unwrap()[0];
    assert!(fault.message.contains("more than the 1KiB"), "{}", fault.message);
}

#[tokio::test]
async fn what_a_training_job_left_at_s3_is_fetched_by_a_scoring_job() {
    let server = S3::start().await;
    let endpoint = format!("storage.s3_endpoint={}", server.endpoint());
    let credentials = [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)];
    let mut training = jobs::job("trains", &["write outputDir/w.txt trained"]);
    training["jobType"] = json!("MODEL_BATCH_TRAINING_JOB");
    training["trainingOutput"] = json!({"fileUrl": "s3a://models/mine"});
    assets(&mut training)[0]["trainingFunction"] = json!("score");
    let end = end_of(&training, &[&endpoint], &credentials);
    assert_eq!(end.kind(), Some(EventKind::Completed), "{end:?}");
    let trained = end.data.additional_assets.unwrap();
    assert_eq!(trained[0]["fileUrl"], "s3a://models/mine/trains/w.txt");
    let mut scoring = job(vec![trained[0].clone(), external("s3a://models/mine/trains", "whole")]);
    assets(&mut scoring)[0]["sourceCode"] =
        json!("def score(record):\n    yield {'said': open('w.txt').read() + open('whole/w.txt').read()}\n");
    let end = end_of(&scoring, &[&endpoint], &credentials);
    assert_eq!(said(&end), "{\"said\":\"trainedtrained\"}\n");
}
