//! Strict reading of JSON: what other readers let pass silently is a fault here, with its place.
//!
//! Two keys of one name are the classic: every reader picks one, and not every reader the same. Numbers are kept as
//! they were written (`arbitrary_precision`), so that a model sees the digits that its owner sent.
//!
//! This module must not know what a job is.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

/// Numbers longer than this are refused: Python refuses to read integers of more than 4300 digits, and other readers
/// turn them into infinity.
const LONGEST_NUMBER: usize = 400;

/// Documents nested deeper are refused: Python 3.8 gives up on literals of about 90 levels.
const DEEPEST: usize = 80;

/// The key under which `serde_json` passes a number of arbitrary precision to a visitor. A document must not contain
/// it: an object with this key would silently become a number.
const NUMBER_TOKEN: &str = "$serde_json::private::Number";

/// One thing that is wrong with a document, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// RFC 6901 pointer to the place; empty for the document as a whole.
    pub pointer: String,
    /// What is wrong there and what would be right, in plain words.
    pub message: String,
}

impl Fault {
    /// A fault at `pointer`.
    pub fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pointer.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.pointer, self.message)
        }
    }
}

/// The most faults that are told of one document, and the longest pointer, in bytes: a refusal must not be larger than
/// what it refuses.
const MOST_FAULTS: usize = 100;
const LONGEST_POINTER: usize = 1024;

/// Collects faults, as many as anybody reads.
#[derive(Debug, Default)]
pub struct Faults {
    kept: Vec<Fault>,
    more: usize,
}

impl Faults {
    /// Adds a fault.
    pub fn push(&mut self, fault: Fault) {
        if self.kept.len() < MOST_FAULTS {
            self.kept.push(fault);
        } else {
            self.more += 1;
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len() + self.more
    }

    /// The faults; the last one tells how many more there are.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<Fault> {
        if self.more > 0 {
            self.kept.push(Fault::new("", format!("has {} more faults; mend these first", self.more)));
        }
        self.kept
    }
}

/// Appends one step to an RFC 6901 pointer.
#[must_use]
pub fn step(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Reads `text` as one JSON document.
///
/// # Errors
/// Every duplicate key and every overlong number with its pointer; or the one fault that ended the reading (not UTF-8,
/// not JSON, nested too deep), with line and column.
pub fn parse(text: &[u8]) -> Result<Value, Vec<Fault>> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let text = std::str::from_utf8(text).map_err(|error| {
        vec![Fault::new("", format!("is not UTF-8: byte {} does not belong there", error.valid_up_to()))]
    })?;
    if text.contains(NUMBER_TOKEN) {
        return Err(vec![Fault::new("", format!("has the reserved key {NUMBER_TOKEN:?}"))]);
    }
    let reading = Reading::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let document = Place { within: None, depth: 0, reading: &reading }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    let mut faults = reading.faults.into_inner();
    match document {
        Ok(value) if faults.is_empty() => Ok(value),
        Ok(_) => Err(faults.into_vec()),
        Err(error) => {
            faults.push(Fault::new("", unreadable(&error)));
            Err(faults.into_vec())
        }
    }
}

fn unreadable(error: &serde_json::Error) -> String {
    let reason = error.to_string();
    if reason.starts_with("recursion limit exceeded") {
        return format!(
            "is nested deeper than {DEEPEST} levels (line {}, column {})",
            error.line(),
            error.column()
        );
    }
    format!("is not JSON: {reason}")
}

#[derive(Default)]
struct Reading {
    faults: RefCell<Faults>,
}

/// One value about to be read, and where it stands.
struct Place<'a> {
    /// The value that this one is in, and which step leads from there to here. The pointer is put together only when there
    /// is something to say.
    within: Option<(&'a Place<'a>, Step<'a>)>,
    depth: usize,
    reading: &'a Reading,
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Place<'_> {
    fn fault(&self, message: impl Into<String>) {
        self.reading.faults.borrow_mut().push(Fault::new(self.pointer(), message));
    }

    fn pointer(&self) -> String {
        let mut steps = Vec::new();
        let mut place = self;
        while let Some((within, step)) = &place.within {
            steps.push(step);
            place = within;
        }
        let mut pointer = String::new();
        for place in steps.into_iter().rev() {
            pointer = match place {
                Step::Key(key) => step(&pointer, key.get(..LONGEST_POINTER).unwrap_or(key)),
                Step::Index(index) => format!("{pointer}/{index}"),
            };
        }
        if pointer.len() > LONGEST_POINTER {
            let cut = (0..=LONGEST_POINTER).rev().find(|at| pointer.is_char_boundary(*at)).unwrap_or(0);
            pointer.truncate(cut);
            pointer.push('…');
        }
        pointer
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let depth = self.deeper()?;
        loop {
            let within = Some((&self, Step::Index(list.len())));
            match items.next_element_seed(Place { within, depth, reading: self.reading })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        let mut repeated = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == NUMBER_TOKEN {
                let digits: String = entries.next_value()?;
                return self.number(&digits);
            }
            let depth = self.deeper()?;
            let place = Place { within: Some((&self, Step::Key(&key))), depth, reading: self.reading };
            if object.contains_key(&key) && repeated.insert(key.clone()) {
                place.fault("the key stands here more than once; readers differ in which one they take");
            }
            let value = entries.next_value_seed(place)?;
            object.entry(key).or_insert(value);
        }
        Ok(Value::Object(object))
    }
}

impl Place<'_> {
    /// The depth of what stands in this value.
    fn deeper<E: de::Error>(&self) -> Result<usize, E> {
        if self.depth >= DEEPEST {
            return Err(E::custom(format_args!("recursion limit exceeded")));
        }
        Ok(self.depth + 1)
    }

    fn number<E: de::Error>(self, digits: &str) -> Result<Value, E> {
        if digits.len() > LONGEST_NUMBER {
            let message =
                format!("the number has {} digits; at most {LONGEST_NUMBER} are read", digits.len());
            self.fault(message);
            return Ok(Value::Null);
        }
        digits.parse::<Number>().map(Value::Number).map_err(E::custom)
    }
}

/// A word for the type of a value, for sentences like "is a number; give a string".
#[must_use]
pub fn type_word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        parse(text.as_bytes()).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn numbers_keep_the_digits_that_were_sent() {
        let value = parse(br#"[1.10, 12345678901234567890123, 1E400, -0]"#).unwrap();
        assert_eq!(value.to_string(), "[1.10,12345678901234567890123,1e+400,-0]");
    }

    #[test]
    fn every_repeated_key_is_named_with_its_place() {
        assert_eq!(
            faults(r#"{"a":{"b/c":1,"b/c":2,"b/c":3},"d":[{"e":1,"e":1}]}"#),
            [
                "/a/b~1c: the key stands here more than once; readers differ in which one they take",
                "/d/0/e: the key stands here more than once; readers differ in which one they take"
            ]
        );
    }

    #[test]
    fn what_is_not_json_is_refused_with_line_and_column() {
        assert!(faults("{\"a\":\n nope}")[0].starts_with("is not JSON: expected ident at line 2 column"));
        assert!(faults("{} {}")[0].contains("trailing characters"));
        assert!(faults("[NaN]")[0].starts_with("is not JSON"));
        assert!(
            faults(r#"["\ud800"]"#)[0].contains("surrogate")
                || faults(r#"["\ud800"]"#)[0].contains("hex escape")
        );
        assert!(faults(&"[".repeat(200))[0].starts_with("is nested deeper than 80 levels"));
        assert_eq!(
            parse(b"[\"\xff\"]").unwrap_err()[0].to_string(),
            "is not UTF-8: byte 2 does not belong there"
        );
    }

    #[test]
    fn a_document_as_deep_as_python_reads_is_taken() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(nested(80).as_bytes()).is_ok());
        assert!(faults(&nested(81))[0].starts_with("is nested deeper than 80 levels"));
    }

    #[test]
    fn a_refusal_is_never_larger_than_anybody_reads() {
        let key = "k".repeat(20_000);
        let one = format!("{{\"{key}\":{{\"a\":1,\"a\":1}}}}");
        let told = faults(&format!("[{}]", vec![one; 300].join(",")));
        assert_eq!(told.len(), 101);
        assert_eq!(told[100], "has 200 more faults; mend these first");
        assert!(told.iter().all(|fault| fault.len() < 2000));
    }

    #[test]
    fn a_number_too_long_for_python_is_refused() {
        assert_eq!(
            faults(&format!("[{}]", "9".repeat(5000))),
            ["/0: the number has 5000 digits; at most 400 are read"]
        );
    }

    #[test]
    fn a_forged_number_key_is_refused() {
        assert_eq!(faults(r#"{"$serde_json::private::Number":"1"}"#).len(), 1);
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        assert_eq!(parse(b"\xef\xbb\xbf{}").unwrap(), serde_json::json!({}));
    }
}
