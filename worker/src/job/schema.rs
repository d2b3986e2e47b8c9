//! Schemas: Avro as a job brings it, and the plain form in which the driver gets it.
//!
//! A definition is looked through twice. First for everything that is wrong with it, each with its place; then the
//! crate `apache-avro` reads it, whose word is the last one. What the driver gets has no names to be looked up but those
//! of records, and none of the keys that others have put there for themselves (`dataClass`, `role`, ...).
//!
//! ```json
//! {"fields": [{"name": "age", "type": "int", "nullable": false, "has_default": false, "optional": false}]}
//! ```
//!
//! A type is a word (`"long"`) or an object with a `kind`: `enum` (`symbols`), `fixed` (`size`), `array` (`items`), `map`
//! (`values`), `record` (`name`, `fields`), `union` (`of`), `ref` (`name` of a `record` that stands elsewhere in the
//! schema), `logical` (`logical`, `of`; a decimal has `precision` and `scale`). A field that may be null has a union with
//! `"null"`, and `nullable` besides.
//!
//! This module must not know what is checked by a schema.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use apache_avro::Schema;
use apache_avro::schema::{DecimalSchema, InnerDecimalSchema, RecordField, RecordSchema, UuidSchema};
use serde_json::{Map, Value, json};
use spark_runtime_protocol::json::{Fault, Faults, parse, step, type_word};

/// The extension key of a field that a record need not have when it is scored.
const OPTIONAL: &str = "scoringOptional";

const PRIMITIVES: [&str; 8] = ["null", "boolean", "int", "long", "float", "double", "string", "bytes"];

/// A schema in the form that the driver gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalized(Value);

impl Normalized {
    /// The form itself.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// How many fields it has.
    #[must_use]
    pub fn fields(&self) -> usize {
        self.0["fields"].as_array().map_or(0, Vec::len)
    }
}

/// Reads a definition: an Avro record, a bare list of fields, or either of them as the text of a JSON document. `at` is its
/// place in the job.
///
/// # Errors
/// Everything that is wrong with it. Within a text, the place there is told in words.
pub fn read(definition: &Value, at: &str) -> Result<Normalized, Vec<Fault>> {
    match definition {
        Value::String(text) => read_text(text.as_bytes(), at),
        definition => judged(definition, at),
    }
}

/// Reads a definition that is the text of a JSON document, which lies at `at` in the job.
///
/// # Errors
/// Everything that is wrong with it, all of it at `at`.
pub fn read_text(text: &[u8], at: &str) -> Result<Normalized, Vec<Fault>> {
    let read = parse(text).and_then(|definition| judged(&definition, ""));
    read.map_err(|faults| faults.into_iter().map(|fault| outside(&fault, at)).collect())
}

/// A fault within a text, told where the text is.
fn outside(fault: &Fault, at: &str) -> Fault {
    let place = if fault.pointer.is_empty() { String::new() } else { format!(" at {}", fault.pointer) };
    Fault::new(at, format!("the schema{place} {}", fault.message))
}

fn judged(definition: &Value, at: &str) -> Result<Normalized, Vec<Fault>> {
    let mut look = Look { faults: Faults::default(), names: HashSet::new() };
    let record = match definition {
        Value::Array(fields) => {
            look.fields(fields, at, "");
            json!({"type": "record", "name": "Record", "fields": fields})
        }
        Value::Object(object) if object.get("type").is_none_or(|of| of == "record") => {
            look.record(object, at, "");
            let mut object = object.clone();
            object.insert("type".to_owned(), "record".into());
            Value::Object(object)
        }
        Value::Object(_) => {
            return Err(vec![Fault::new(step(at, "type"), "is no record; give {\"type\": \"record\", ...}")]);
        }
        other => {
            let message = format!("is {}; give an Avro record, or a list of its fields", type_word(other));
            return Err(vec![Fault::new(at, message)]);
        }
    };
    if !look.faults.is_empty() {
        return Err(look.faults.into_vec());
    }
    let schema =
        Schema::parse(&record).map_err(|error| vec![Fault::new(at, format!("is not Avro: {error}"))])?;
    let mut named = HashMap::new();
    collect(&schema, &mut named);
    if let Some(name) = endless(&named) {
        let message = format!(
            "has the record {name}, which contains itself without end; make the field that does null or a list"
        );
        return Err(vec![Fault::new(at, message)]);
    }
    let Schema::Record(record) = &schema else {
        return Err(vec![Fault::new(at, "is no record")]);
    };
    let normal = Normal { named: &named, whole: record, is_repeated: Cell::new(false) };
    Ok(Normalized(json!({"fields": normal.fields(record)})))
}

/// Looks through a definition for everything that is wrong with it.
struct Look {
    faults: Faults,
    /// The full names that were defined so far: Avro uses a name only below its definition.
    names: HashSet<String>,
}

impl Look {
    fn fault(&mut self, at: &str, message: impl Into<String>) {
        self.faults.push(Fault::new(at, message));
    }

    fn type_of(&mut self, value: &Value, at: &str, namespace: &str) {
        match value {
            Value::String(name) => self.reference(name, at, namespace),
            Value::Array(variants) => {
                if variants.is_empty() {
                    self.fault(at, "is a union of nothing; give its types");
                }
                for (index, variant) in variants.iter().enumerate() {
                    let at = format!("{at}/{index}");
                    if variant.is_array() {
                        self.fault(&at, "is a union in a union; put its types into the outer one");
                    } else {
                        self.type_of(variant, &at, namespace);
                    }
                }
            }
            Value::Object(object) => self.complex(object, at, namespace),
            other => self.fault(at, format!("is {}; give an Avro type", type_word(other))),
        }
    }

    fn reference(&mut self, name: &str, at: &str, namespace: &str) {
        if PRIMITIVES.contains(&name) || self.names.contains(&full_name(name, namespace)) {
            return;
        }
        let shown: String = name.chars().take(80).collect();
        let better = match name.to_ascii_lowercase().as_str() {
            "record" | "enum" | "array" | "map" | "fixed" => {
                return self.fault(
                    at,
                    format!("{shown:?} is no type by itself; give {{\"type\": {shown:?}, ...}} in its place"),
                );
            }
            "bool" => "boolean",
            "integer" | "int32" | "short" => "int",
            "int64" | "bigint" => "long",
            "float64" | "number" | "decimal" => "double",
            "float32" => "float",
            "str" | "text" | "varchar" | "object" => "string",
            _ => {
                let known = PRIMITIVES.join(", ");
                let message = format!(
                    "{shown:?} is no Avro type; give one of {known}, or the name of a type that is defined above"
                );
                return self.fault(at, message);
            }
        };
        self.fault(at, format!("{shown:?} is no Avro type; Avro calls it {better:?}"));
    }

    fn complex(&mut self, object: &Map<String, Value>, at: &str, namespace: &str) {
        match object.get("type") {
            Some(Value::String(kind)) => match kind.as_str() {
                "record" => self.record(object, at, namespace),
                "enum" => {
                    self.define(object, at, namespace);
                    self.symbols(object, at);
                }
                "fixed" => {
                    self.define(object, at, namespace);
                    match object.get("size") {
                        Some(size) if size.as_u64().is_some_and(|size| size > 0) => {}
                        Some(_) => self.fault(&step(at, "size"), "is no number of bytes"),
                        None => self.fault(&step(at, "size"), "is missing; give the number of bytes"),
                    }
                }
                "array" => self.part(object, at, "items", namespace),
                "map" => self.part(object, at, "values", namespace),
                _ => self.reference(kind, &step(at, "type"), namespace),
            },
            Some(inner) => self.type_of(inner, &step(at, "type"), namespace),
            None => self.fault(&step(at, "type"), "is missing; give an Avro type"),
        }
    }

    fn part(&mut self, object: &Map<String, Value>, at: &str, key: &str, namespace: &str) {
        let at = step(at, key);
        match object.get(key) {
            Some(part) => self.type_of(part, &at, namespace),
            None => self.fault(&at, "is missing; give an Avro type"),
        }
    }

    fn record(&mut self, object: &Map<String, Value>, at: &str, namespace: &str) {
        let namespace = self.define(object, at, namespace);
        let at = step(at, "fields");
        match object.get("fields") {
            Some(Value::Array(fields)) => self.fields(fields, &at, &namespace),
            Some(other) => self.fault(&at, format!("is {}; give a list of fields", type_word(other))),
            None => self.fault(&at, "is missing; give a list of fields"),
        }
    }

    fn symbols(&mut self, object: &Map<String, Value>, at: &str) {
        let at = step(at, "symbols");
        match object.get("symbols") {
            Some(Value::Array(symbols)) if !symbols.is_empty() && symbols.iter().all(Value::is_string) => {}
            Some(_) => self.fault(&at, "is no list of names"),
            None => self.fault(&at, "is missing; give a list of names"),
        }
    }

    /// Takes in the name of a named type; gives the namespace that holds within it.
    fn define(&mut self, object: &Map<String, Value>, at: &str, namespace: &str) -> String {
        let at = step(at, "name");
        let own = object.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
        let Some(Value::String(name)) = object.get("name") else {
            match object.get("name") {
                Some(other) => self.fault(&at, format!("is {}; give a name", type_word(other))),
                None => self.fault(&at, "is missing; a record, an enum and a fixed need a name"),
            }
            return own.to_owned();
        };
        if !name.split('.').all(is_name) {
            self.fault(&at, not_a_name(name));
            return own.to_owned();
        }
        let full = full_name(name, own);
        let within = full.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_owned();
        if !self.names.insert(full) {
            self.fault(&at, format!("{name:?} is defined above; a name is defined once and then used"));
        }
        within
    }

    fn fields(&mut self, fields: &[Value], at: &str, namespace: &str) {
        let mut seen = HashSet::new();
        for (index, field) in fields.iter().enumerate() {
            let at = format!("{at}/{index}");
            let Value::Object(field) = field else {
                self.fault(&at, format!("is {}; give a field", type_word(field)));
                continue;
            };
            let name_at = step(&at, "name");
            match field.get("name") {
                Some(Value::String(name)) if !is_name(name) => self.fault(&name_at, not_a_name(name)),
                Some(Value::String(name)) if !seen.insert(name.as_str()) => {
                    self.fault(&name_at, format!("{name:?} is the name of an earlier field too"));
                }
                Some(Value::String(_)) => {}
                Some(other) => self.fault(&name_at, format!("is {}; give a name", type_word(other))),
                None => self.fault(&name_at, "is missing; a field needs a name"),
            }
            self.part(field, &at, "type", namespace);
        }
    }
}

fn full_name(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_owned() } else { format!("{namespace}.{name}") }
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(fits) && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn not_a_name(name: &str) -> String {
    let shown: String = name.chars().take(80).collect();
    format!("{shown:?} is no name in Avro; give letters, digits and _, and no digit first")
}

/// Finds every named type.
fn collect<'a>(schema: &'a Schema, named: &mut HashMap<&'a str, &'a Schema>) {
    match schema {
        Schema::Record(record) => {
            named.insert(record.name.as_ref(), schema);
            record.fields.iter().for_each(|field| collect(&field.schema, named));
        }
        Schema::Enum(inner) => drop(named.insert(inner.name.as_ref(), schema)),
        Schema::Fixed(fixed) | Schema::Duration(fixed) => drop(named.insert(fixed.name.as_ref(), schema)),
        Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Fixed(fixed), .. })
        | Schema::Uuid(UuidSchema::Fixed(fixed)) => drop(named.insert(fixed.name.as_ref(), schema)),
        Schema::Array(array) => collect(&array.items, named),
        Schema::Map(map) => collect(&map.types, named),
        Schema::Union(union) => union.variants().iter().for_each(|variant| collect(variant, named)),
        _ => {}
    }
}

/// A record of which no value can be finite, if there is one.
fn endless<'a>(named: &HashMap<&'a str, &'a Schema>) -> Option<&'a str> {
    let mut finite: HashSet<&str> = HashSet::new();
    loop {
        let more = named.iter().filter(|(name, schema)| {
            let Schema::Record(record) = schema else { return !finite.contains(*name) };
            !finite.contains(*name) && record.fields.iter().all(|field| is_finite(&field.schema, &finite))
        });
        let more: Vec<&str> = more.map(|(name, _)| *name).collect();
        if more.is_empty() {
            break;
        }
        finite.extend(more);
    }
    named.keys().copied().filter(|name| !finite.contains(name)).min()
}

fn is_finite(schema: &Schema, finite: &HashSet<&str>) -> bool {
    match schema {
        Schema::Record(RecordSchema { name, .. }) | Schema::Ref { name } => finite.contains(name.as_ref()),
        Schema::Union(union) => union.variants().iter().any(|variant| is_finite(variant, finite)),
        _ => true,
    }
}

/// Brings a schema into the driver's form.
struct Normal<'a> {
    named: &'a HashMap<&'a str, &'a Schema>,
    /// The schema itself, which has no name in the driver's form.
    whole: &'a RecordSchema,
    /// It has been written once more, with its name, since it is referred to.
    is_repeated: Cell<bool>,
}

impl Normal<'_> {
    fn fields(&self, record: &RecordSchema) -> Value {
        record.fields.iter().map(|field| self.field(field)).collect()
    }

    fn field(&self, field: &RecordField) -> Value {
        let nullable = match &field.schema {
            Schema::Null => true,
            Schema::Union(union) => union.variants().iter().any(|variant| matches!(variant, Schema::Null)),
            _ => false,
        };
        let optional = field.custom_attributes.get(OPTIONAL).is_some_and(|value| {
            value == &Value::Bool(true)
                || value.as_str().is_some_and(|word| word.eq_ignore_ascii_case("true"))
        });
        let mut normal = json!({
            "name": field.name, "type": self.of(&field.schema), "nullable": nullable,
            "has_default": field.default.is_some(), "optional": optional,
        });
        if let Some(default) = &field.default {
            normal["default"] = default.clone();
        }
        normal
    }

    fn of(&self, schema: &Schema) -> Value {
        let logical = |name: &str, of: Value| json!({"kind": "logical", "logical": name, "of": of});
        match schema {
            Schema::Null => "null".into(),
            Schema::Boolean => "boolean".into(),
            Schema::Int => "int".into(),
            Schema::Long => "long".into(),
            Schema::Float => "float".into(),
            Schema::Double => "double".into(),
            Schema::Bytes => "bytes".into(),
            Schema::String => "string".into(),
            Schema::Array(array) => json!({"kind": "array", "items": self.of(&array.items)}),
            Schema::Map(map) => json!({"kind": "map", "values": self.of(&map.types)}),
            Schema::Union(union) => {
                let of: Value = union.variants().iter().map(|variant| self.of(variant)).collect();
                json!({"kind": "union", "of": of})
            }
            Schema::Record(record) => {
                json!({"kind": "record", "name": record.name.as_ref(), "fields": self.fields(record)})
            }
            Schema::Enum(inner) => json!({"kind": "enum", "symbols": inner.symbols}),
            Schema::Fixed(fixed) => json!({"kind": "fixed", "size": fixed.size}),
            Schema::Decimal(decimal) => {
                let of = match &decimal.inner {
                    InnerDecimalSchema::Bytes => "bytes".into(),
                    InnerDecimalSchema::Fixed(fixed) => json!({"kind": "fixed", "size": fixed.size}),
                };
                let mut normal = logical("decimal", of);
                normal["precision"] = decimal.precision.into();
                normal["scale"] = decimal.scale.into();
                normal
            }
            Schema::BigDecimal => logical("big-decimal", "bytes".into()),
            Schema::Uuid(UuidSchema::Fixed(fixed)) => {
                logical("uuid", json!({"kind": "fixed", "size": fixed.size}))
            }
            Schema::Uuid(UuidSchema::Bytes) => logical("uuid", "bytes".into()),
            Schema::Uuid(UuidSchema::String) => logical("uuid", "string".into()),
            Schema::Date => logical("date", "int".into()),
            Schema::TimeMillis => logical("time-millis", "int".into()),
            Schema::TimeMicros => logical("time-micros", "long".into()),
            Schema::TimestampMillis => logical("timestamp-millis", "long".into()),
            Schema::TimestampMicros => logical("timestamp-micros", "long".into()),
            Schema::TimestampNanos => logical("timestamp-nanos", "long".into()),
            Schema::LocalTimestampMillis => logical("local-timestamp-millis", "long".into()),
            Schema::LocalTimestampMicros => logical("local-timestamp-micros", "long".into()),
            Schema::LocalTimestampNanos => logical("local-timestamp-nanos", "long".into()),
            Schema::Duration(fixed) => logical("duration", json!({"kind": "fixed", "size": fixed.size})),
            Schema::Ref { name } => match self.named.get(name.as_ref()) {
                // Only records can lead back to themselves.
                Some(schema) if !matches!(schema, Schema::Record(_)) => self.of(schema),
                Some(Schema::Record(record))
                    if record.name == self.whole.name && !self.is_repeated.replace(true) =>
                {
                    json!({"kind": "record", "name": name.as_ref(), "fields": self.fields(record)})
                }
                _ => json!({"kind": "ref", "name": name.as_ref()}),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalized(definition: Value) -> Value {
        read(&definition, "/s").unwrap_or_else(|faults| panic!("{faults:?}")).value().clone()
    }

    fn faults(definition: Value) -> Vec<String> {
        read(&definition, "/s").err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_record_a_list_of_fields_and_the_text_of_either_are_read_alike() {
        let fields = json!([
            {"name": "age", "type": "int", "dataClass": "numerical", "role": "predictor", "protectedClass": true},
            {"name": "note", "type": ["null", "string"], "default": null, "scoringOptional": true}
        ]);
        let record = json!({"type": "record", "name": "Record", "fields": fields});
        let expected = json!({"fields": [
            {"name": "age", "type": "int", "nullable": false, "has_default": false, "optional": false},
            {"name": "note", "type": {"kind": "union", "of": ["null", "string"]}, "nullable": true, "has_default": true,
             "optional": true, "default": null}
        ]});
        for definition in
            [fields.clone(), record.clone(), fields.to_string().into(), record.to_string().into()]
        {
            assert_eq!(normalized(definition), expected);
        }
    }

    #[test]
    fn every_type_reaches_the_driver_without_names_to_look_up_but_those_of_records() {
        let definition = json!({"type": "record", "name": "a.b.Row", "fields": [
            {"name": "color", "type": {"type": "enum", "name": "Color", "symbols": ["RED", "BLUE"]}},
            {"name": "again", "type": {"type": "array", "items": "Color"}},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "odd", "type": {"type": "long", "logicalType": "no-such"}},
            {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 4}},
            {"name": "more", "type": {"type": "map", "values": ["null", "a.b.Hash"]}}
        ]});
        let types: Vec<String> = normalized(definition)["fields"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["type"].to_string())
            .collect();
        assert_eq!(
            types,
            [
                r#"{"kind":"enum","symbols":["RED","BLUE"]}"#,
                r#"{"kind":"array","items":{"kind":"enum","symbols":["RED","BLUE"]}}"#,
                r#"{"kind":"logical","logical":"decimal","of":"bytes","precision":9,"scale":2}"#,
                r#"{"kind":"logical","logical":"date","of":"int"}"#,
                r#""long""#,
                r#"{"kind":"fixed","size":4}"#,
                r#"{"kind":"map","values":{"kind":"union","of":["null",{"kind":"fixed","size":4}]}}"#,
            ]
        );
    }

    #[test]
    fn a_record_that_contains_itself_is_written_out_once_more_under_its_name() {
        let definition = json!({"type": "record", "name": "Row", "namespace": "a", "fields": [
            {"name": "next", "type": ["null", "Row"]}, {"name": "other", "type": ["null", "a.Row"]}]});
        let reference = json!({"kind": "union", "of": ["null", {"kind": "ref", "name": "a.Row"}]});
        let normal = normalized(definition);
        let written = &normal["fields"][0]["type"]["of"][1];
        assert_eq!((&written["kind"], &written["name"]), (&json!("record"), &json!("a.Row")));
        assert_eq!(written["fields"][0]["type"], reference);
        assert_eq!(written["fields"][1]["type"], reference);
        assert_eq!(normal["fields"][1]["type"], reference);
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once_with_its_place() {
        let definition = json!({"type": "record", "fields": [
            {"name": "a", "type": "integer"},
            {"name": "b b", "type": "no_such"},
            {"type": "int"},
            {"name": "c"},
            {"name": "c", "type": ["null", ["int"]]},
            {"name": "d", "type": "record", "fields": []},
            {"name": "e", "type": {"type": "array"}},
            {"name": "f", "type": {"type": "enum", "name": "E"}},
            {"name": "g", "type": 7},
            "h"
        ]});
        insta::assert_snapshot!(faults(definition).join("\n"), @r#"
        /s/name: is missing; a record, an enum and a fixed need a name
        /s/fields/0/type: "integer" is no Avro type; Avro calls it "int"
        /s/fields/1/name: "b b" is no name in Avro; give letters, digits and _, and no digit first
        /s/fields/1/type: "no_such" is no Avro type; give one of null, boolean, int, long, float, double, string, bytes, or the name of a type that is defined above
        /s/fields/2/name: is missing; a field needs a name
        /s/fields/3/type: is missing; give an Avro type
        /s/fields/4/name: "c" is the name of an earlier field too
        /s/fields/4/type/1: is a union in a union; put its types into the outer one
        /s/fields/5/type: "record" is no type by itself; give {"type": "record", ...} in its place
        /s/fields/6/type/items: is missing; give an Avro type
        /s/fields/7/type/symbols: is missing; give a list of names
        /s/fields/8/type: is a number; give an Avro type
        /s/fields/9: is a string; give a field
        "#);
    }

    #[test]
    fn what_is_no_avro_is_told_in_words() {
        let told = [
            faults(json!("{\"type\": \"record\"")),
            faults(json!("no schema")),
            faults(json!(7)),
            faults(json!({"type": "array", "items": "int"})),
            faults(json!("[{\"name\": \"a\", \"type\": \"strin\"}]")),
            faults(json!([{"name": "a", "type": "int", "default": "x"}])),
            faults(json!([{"name": "a", "type": ["int", "int"]}])),
            faults(json!([{"name": "a", "type": {"type": "enum", "name": "E", "symbols": ["A", "A"]}}])),
        ];
        insta::assert_snapshot!(told.concat().join("\n"), @r#"
        /s: the schema is not JSON: EOF while parsing an object at line 1 column 17
        /s: the schema is not JSON: expected ident at line 1 column 2
        /s: is a number; give an Avro record, or a list of its fields
        /s/type: is no record; give {"type": "record", ...}
        /s: the schema at /0/type "strin" is no Avro type; give one of null, boolean, int, long, float, double, string, bytes, or the name of a type that is defined above
        /s: is not Avro: `default`'s value type of field `a` in `Record` must be a `"int"`. Got: String("x")
        /s: is not Avro: Unions cannot contain duplicate types, found at least two Int
        /s: is not Avro: Duplicate enum symbol A
        "#);
    }

    #[test]
    fn a_record_may_contain_itself_only_where_that_can_end() {
        let with = |of: Value| json!({"type": "record", "name": "R", "fields": [{"name": "r", "type": of}]});
        for endless in [
            json!("R"),
            json!(["R"]),
            json!({"type": "record", "name": "S", "fields": [{"name": "x", "type": "R"}]}),
        ] {
            let told = faults(with(endless));
            assert!(told.len() == 1 && told[0].contains("contains itself without end"), "{told:?}");
        }
        for ending in [
            json!(["null", "R"]),
            json!({"type": "array", "items": "R"}),
            json!({"type": "map", "values": "R"}),
        ] {
            assert_eq!(faults(with(ending)), [""; 0]);
        }
    }

    #[test]
    fn a_schema_may_be_as_large_as_a_job() {
        let fields: Value =
            (0..5000).map(|n| json!({"name": format!("f{n}"), "type": ["null", "double"]})).collect();
        assert_eq!(read(&fields, "").unwrap().fields(), 5000);
        // Two of each within the other: written out it would be beyond all bounds.
        let mut of = json!("int");
        for depth in 0..20 {
            of = json!({"type": "record", "name": format!("R{depth}"), "fields": [
                {"name": "a", "type": of}, {"name": "b", "type": if depth == 0 { json!("int") } else { json!(format!("R{}", depth - 1)) }}]});
        }
        let text = normalized(json!([{"name": "deep", "type": of}])).to_string();
        assert!(text.len() < 20_000, "{}", text.len());
    }
}
