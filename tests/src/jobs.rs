//! Jobs for the tests.

use serde_json::{Value, json};

/// A scoring job whose model tells the fake spark-submit what to do, one directive a line.
#[must_use]
pub fn job(id: &str, directives: &[&str]) -> Value {
    let lines: String = directives.iter().map(|directive| format!("# fake: {directive}\n")).collect();
    json!({
        "id": id,
        "jobType": "MODEL_BATCH_JOB",
        "jobStatus": "CREATED",
        "model": {"storedModel": {"modelAssets": [{
            "name": "model.py", "assetType": "SOURCE_CODE", "primaryModelSource": true, "scoreFunction": "score",
            "sourceCode": format!("{lines}def score(inputs, outputs, attachments):\n    pass\n"),
        }]}},
        "inputData": [], "outputData": []
    })
}

/// The same as text.
#[must_use]
pub fn text(id: &str, directives: &[&str]) -> String {
    job(id, directives).to_string()
}

/// The model's assets of a job.
pub fn assets(job: &mut Value) -> &mut Vec<Value> {
    match &mut job["model"]["storedModel"]["modelAssets"] {
        Value::Array(assets) => assets,
        other => unreachable!("no assets: {other}"),
    }
}
