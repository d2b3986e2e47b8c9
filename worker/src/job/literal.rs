//! Python literals: JSON values as text that any Python 3 reads back as the same values.
//!
//! Strings become ASCII with every other character escaped, so that nothing in a string can end it, whatever the
//! reader takes for a line or a quote.
//!
//! This module must not know what the values mean.

use std::io::{self, Write};

use serde_json::Value;

/// Writes `value` as a Python literal.
///
/// # Errors
/// What `to` says.
pub fn write_literal(to: &mut dyn Write, value: &Value) -> io::Result<()> {
    match value {
        Value::Null => to.write_all(b"None"),
        Value::Bool(true) => to.write_all(b"True"),
        Value::Bool(false) => to.write_all(b"False"),
        // JSON's numbers are Python's: no leading zeros, no bare points.
        Value::Number(number) => write!(to, "{number}"),
        Value::String(text) => write_string(to, text),
        Value::Array(items) => write_list(to, items.iter()),
        Value::Object(entries) => {
            to.write_all(b"{")?;
            for (index, (key, value)) in entries.iter().enumerate() {
                if index > 0 {
                    to.write_all(b", ")?;
                }
                write_string(to, key)?;
                to.write_all(b": ")?;
                write_literal(to, value)?;
            }
            to.write_all(b"}")
        }
    }
}

/// Writes values as one Python list.
///
/// # Errors
/// What `to` says.
pub fn write_list<'a>(to: &mut dyn Write, items: impl Iterator<Item = &'a Value>) -> io::Result<()> {
    to.write_all(b"[")?;
    for (index, item) in items.enumerate() {
        if index > 0 {
            to.write_all(b", ")?;
        }
        write_literal(to, item)?;
    }
    to.write_all(b"]")
}

/// Writes `text` as one Python string.
///
/// # Errors
/// What `to` says.
pub fn write_string(to: &mut dyn Write, text: &str) -> io::Result<()> {
    to.write_all(b"\"")?;
    for character in text.chars() {
        match character {
            '"' => to.write_all(b"\\\"")?,
            '\\' => to.write_all(b"\\\\")?,
            ' '..='~' => write!(to, "{character}")?,
            _ if u32::from(character) <= 0xff => write!(to, "\\x{:02x}", u32::from(character))?,
            _ if u32::from(character) <= 0xffff => write!(to, "\\u{:04x}", u32::from(character))?,
            _ => write!(to, "\\U{:08x}", u32::from(character))?,
        }
    }
    to.write_all(b"\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn literal(value: &Value) -> String {
        let mut text = Vec::new();
        write_literal(&mut text, value).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn json_words_become_python_words() {
        let value = serde_json::json!({"a": [true, false, null, 1.5, "x"]});
        assert_eq!(literal(&value), r#"{"a": [True, False, None, 1.5, "x"]}"#);
    }

    #[test]
    fn nothing_in_a_string_becomes_code() {
        // Python itself is the judge: what it evaluates must be what was sent.
        let hostile = serde_json::json!([
            "\"); import os; os.abort() #", "'''", "\\", "\\\"", "\n\r\u{85}\u{2028}\u{2029}\u{0}\u{c}\u{7f}", "ü€😀",
            "${x} {0} %s", "# -*- coding: utf-7 -*-", {"key\"]": "+AGE-"}, 123456789012345678901234567890u128 as f64,
            "\u{feff}", "\u{ffff}", "\\N{DASH}", "\\x41"
        ]);
        let program = "import ast, json, sys\ntext, sent = json.load(sys.stdin)\nassert ast.literal_eval(text) == sent, text\n";
        let mut python = Command::new("python3").args(["-c", program]).stdin(Stdio::piped()).spawn().unwrap();
        let input = serde_json::json!([literal(&hostile), hostile]).to_string();
        python.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(python.wait().unwrap().success());
        assert!(literal(&hostile).is_ascii());
    }
}
