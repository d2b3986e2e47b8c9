//! Reading a job from a file or the standard input.
//!
//! This module must not know what is done with the job.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use spark_runtime_protocol::json::Fault;
use spark_runtime_protocol::{Job, JobId};

use super::CliError;
use crate::config::size_text;

/// Reads `path` (`-` is the standard input) up to one byte more than `limit`, so that [`job`] can tell what is too large.
///
/// # Errors
/// [`CliError::Unreadable`].
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, CliError> {
    let mut body = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(limit.saturating_add(1)).read_to_end(&mut body)
    } else {
        File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut body))
    };
    read.map(|_| body).map_err(|source| CliError::Unreadable { path: path.to_owned(), source })
}

/// Takes `body` as a job; `id` is its id when it has none of its own.
///
/// # Errors
/// Every fault; the one fault of a job above `limit` bytes is its size.
pub fn job(body: &[u8], limit: u64, id: &JobId) -> Result<Job, Vec<Fault>> {
    if body.len() as u64 > limit {
        let limit = size_text(limit);
        return Err(vec![Fault::new("", format!("is larger than {limit}, the setting `job.max_size`"))]);
    }
    Job::read(body, Some(id.as_str())).map_err(|refusal| refusal.faults)
}
