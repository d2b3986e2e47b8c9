//! Zip archives.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use ::zip::ZipArchive;
use ::zip::result::ZipError;

use super::tree::{Spot, Tree, broken, shown, text};
use super::{Meter, Metered, UnpackError, bad};

/// The kinds of files in a Unix mode.
const KIND: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const PLAIN: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// The end of a zip: its last record, and the longest comment behind it.
const END: usize = 22;
const LONGEST_END: u64 = END as u64 + 0xffff;

/// Unpacks a zip.
pub(super) fn unpack(mut file: File, tree: &mut Tree<'_>, meter: &Meter<'_>) -> Result<(), UnpackError> {
    // The crate reads the whole listing into memory; how long that is stands at the end.
    tree.count(entries_told(&mut file).map_err(|error| broken(&error))?)?;
    let mut archive =
        ZipArchive::new(BufReader::with_capacity(64 << 10, file)).map_err(|error| unreadable(&error))?;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| unreadable(&error))?;
        let name = entry.name().map_err(|error| unreadable(&error))?.into_owned();
        if entry.encrypted() {
            return Err(bad("is encrypted; attach it without a password"));
        }
        let mode = entry.unix_mode().unwrap_or(PLAIN);
        let is_folder = entry.is_dir() || mode & KIND == FOLDER;
        let told = entry.size();
        drop(entry);
        let path = match tree.spot(name.as_bytes())? {
            Spot::At(path) => path,
            Spot::Nowhere => continue,
        };
        if is_folder {
            tree.folder(&path)?;
            continue;
        }
        let entry = archive.by_index(index).map_err(|error| unreadable(&error))?;
        let mut content = Metered { inner: entry, meter };
        match mode & KIND {
            0 | PLAIN => tree.file(&path, mode, &mut content)?,
            LINK => tree.symbolic_link(path, &text(&mut content, told)?)?,
            _ => {
                let name = shown(path.as_str());
                return Err(bad(format!("has the entry {name}, which is a device or a pipe")));
            }
        }
    }
    Ok(())
}

fn unreadable(error: &ZipError) -> UnpackError {
    match error {
        ZipError::CompressionMethodNotSupported(method) => bad(format!(
            "uses the compression method {method}, which is not known here; pack it with deflate"
        )),
        ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED) => {
            bad("is encrypted; attach it without a password")
        }
        error => broken(error),
    }
}

/// How many entries the end of a zip tells of, whichever of its numbers is the largest. Zero when it has no end, which its
/// reader will say better.
fn entries_told(file: &mut File) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub(LONGEST_END);
    file.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    file.take(LONGEST_END).read_to_end(&mut end)?;
    let mut told = 0;
    for at in 0..end.len().saturating_sub(3) {
        let record = &end[at..];
        if record.starts_with(b"PK\x05\x06") {
            told = told.max(number(record, 8, 2)).max(number(record, 10, 2));
        } else if record.starts_with(b"PK\x06\x07") {
            // The large form of the end stands where this says.
            file.seek(SeekFrom::Start(number(record, 8, 8)))?;
            let mut large = Vec::new();
            file.take(56).read_to_end(&mut large)?;
            if large.starts_with(b"PK\x06\x06") {
                told = told.max(number(&large, 24, 8)).max(number(&large, 32, 8));
            }
        } else if record.starts_with(b"PK\x06\x06") {
            told = told.max(number(record, 24, 8)).max(number(record, 32, 8));
        }
    }
    file.rewind()?;
    Ok(told)
}

/// The number of so many bytes at a place of a record; zero when the record is shorter.
fn number(record: &[u8], at: usize, bytes: usize) -> u64 {
    let Some(bytes) = record.get(at..at + bytes) else { return 0 };
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
