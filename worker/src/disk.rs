//! How much room things take on a disk, for what has to stay within a bound.
//!
//! This module must not know what they are.

use std::fs;
use std::path::Path;

/// How much a folder takes, in bytes; what cannot be read, or goes meanwhile, counts nothing. Links are not followed.
#[must_use]
pub fn size_of(folder: &Path) -> u64 {
    let Ok(found) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    found.flatten().map(size).sum()
}
