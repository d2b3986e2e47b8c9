//! What goes over the wire, written down for programs in any language: JSON Schema (2020-12) of the job, of the event,
//! of the command and of its answer, and an AsyncAPI 3.0 document of the exchanges.
//!
//! The documents lie in `protocol/schema/`. They are written by hand and held against the Rust types by tests: what
//! [`Job::read`](crate::Job::read) and [`Command::read`](crate::command::Command::read) take passes the schema, what an
//! [`Event`](crate::Event) becomes does too, and every list of words is the same. The Rust types decide; this module must not be asked whether a job can be run.

use std::sync::LazyLock;

use serde_json::Value;

const JOB: &str = include_str!("../schema/job.schema.json");
const EVENT: &str = include_str!("../schema/event.schema.json");
const COMMAND: &str = include_str!("../schema/command.schema.json");
const ANSWER: &str = include_str!("../schema/answer.schema.json");
/// Refers to the others by their file names.
const ASYNCAPI: &str = include_str!("../schema/asyncapi.json");

/// The schemas that the AsyncAPI document refers to: file name, place in the document, text.
const PARTS: [(&str, &str, &str); 4] = [
    ("job.schema.json", "/components/schemas/job/schema", JOB),
    ("event.schema.json", "/components/schemas/event/schema", EVENT),
    ("command.schema.json", "/components/schemas/command/schema", COMMAND),
    ("answer.schema.json", "/components/schemas/answer/schema", ANSWER),
];

static BUNDLE: LazyLock<Option<String>> = LazyLock::new(|| bundle().ok());

/// The JSON Schema of a job, as text.
#[must_use]
pub fn job() -> &'static str {
    JOB
}

/// The JSON Schema of an event, as text.
#[must_use]
pub fn event() -> &'static str {
    EVENT
}

/// The JSON Schema of a command, as text.
#[must_use]
pub fn command() -> &'static str {
    COMMAND
}

/// The JSON Schema of the answer to a command, as text.
#[must_use]
pub fn answer() -> &'static str {
    ANSWER
}

/// The AsyncAPI document of the service as its clients see it, as text; all schemas are inside.
#[must_use]
pub fn asyncapi() -> &'static str {
    BUNDLE.as_deref().unwrap_or(ASYNCAPI)
}

/// Puts the schemas in the place of the references to them: readers get one file, and nothing is kept twice.
fn bundle() -> Result<String, serde_json::Error> {
    let mut document: Value = serde_json::from_str(ASYNCAPI)?;
    for (_, place, text) in PARTS {
        let mut schema: Value = serde_json::from_str(text)?;
        // An `$id` would make a document of its own, in which references could not start from the outer one's root.
        if let Some(object) = schema.as_object_mut() {
            object.shift_remove("$id");
            object.shift_remove("$schema");
        }
        move_references(&mut schema, place);
        if let Some(reference) = document.pointer_mut(place) {
            *reference = schema;
        }
    }
    let mut text = serde_json::to_string_pretty(&document)?;
    text.push('\n');
    Ok(text)
}

/// Makes every reference within a schema lead to the same part when the schema itself lies at `place`.
fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(reference) if key == "$ref" && reference.starts_with("#/") => {
                        reference.insert_str(1, place);
                    }
                    other => move_references(other, place),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| move_references(item, place)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn the_asyncapi_document_is_one_file_whose_references_all_lead_somewhere() {
        let document: Value = serde_json::from_str(asyncapi()).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        for reference in &found {
            let pointer = reference
                .strip_prefix('#')
                .unwrap_or_else(|| panic!("{reference} leads out of the document"));
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        assert!(
            found.iter().any(|reference| reference.starts_with("#/components/schemas/event/schema/$defs/"))
        );
    }

    #[test]
    fn the_parts_lie_where_the_asyncapi_document_refers_to_their_files() {
        let document: Value = serde_json::from_str(ASYNCAPI).unwrap();
        for (file, place, _) in PARTS {
            assert_eq!(document.pointer(place).unwrap()["$ref"], file);
        }
    }
}
