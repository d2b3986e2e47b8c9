//! Writing for people and programs: the standard output for what was asked for, the standard error for everything else.
//!
//! This module must not know what is written.

use std::io::{self, Write};

use serde::Serialize;

use super::CliError;

/// Writes `text` and a line's end to the standard output.
///
/// # Errors
/// [`CliError::Closed`] when nobody reads any more; [`CliError::Unwritable`].
pub fn line(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
    written.map_err(|source| match source.kind() {
        io::ErrorKind::BrokenPipe => CliError::Closed,
        _ => CliError::Unwritable { path: "the standard output".into(), source },
    })
}

/// Writes `value` as one line of JSON to the standard output.
///
/// # Errors
/// As [`line`]; [`CliError::Internal`] for what cannot be JSON.
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text =
        serde_json::to_string(value).map_err(|error| CliError::Internal(format!("no JSON: {error}")))?;
    line(&text)
}

/// Writes `text` and a line's end to the standard error. When that cannot be written there is nobody left to tell.
pub fn complain(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
