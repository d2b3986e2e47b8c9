//! Tar archives, entry by entry and unprocessed: the long names of GNU tar and the extended headers of POSIX are read
//! here, with a bound, since the crate would hold them in memory however long they are.

use std::io::{self, Read};

use ::tar::{Archive, Entry, EntryType, PaxExtensions};

use super::tree::{Spot, Tree, broken, shown, text};
use super::{UnpackError, bad};

/// What the entries before one say about it.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    /// The size in an extended header.
    size: Option<u64>,
}

/// Unpacks what `stream` gives.
pub(super) fn unpack(stream: impl Read, tree: &mut Tree<'_>) -> Result<(), UnpackError> {
    let mut archive = Archive::new(stream);
    let mut ahead = Ahead::default();
    let entries = archive.entries().map_err(|error| broken(&error))?.raw(true);
    for entry in entries {
        let mut entry = entry.map_err(|error| broken(&error))?;
        tree.count(1)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => ahead.name = Some(until_nul(read(&mut entry)?)),
            EntryType::GNULongLink => ahead.target = Some(until_nul(read(&mut entry)?)),
            EntryType::XHeader => extended(&read(&mut entry)?, &mut ahead)?,
            // Such as the commit that git writes; says nothing about names.
            EntryType::XGlobalHeader => {}
            _ => put(&mut entry, std::mem::take(&mut ahead), tree)?,
        }
    }
    // What follows the end may hold a checksum that tells whether all was read right.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| broken(&error))?;
    Ok(())
}

fn put(entry: &mut Entry<'_, impl Read>, ahead: Ahead, tree: &mut Tree<'_>) -> Result<(), UnpackError> {
    let header = entry.header().clone();
    let name = ahead.name.unwrap_or_else(|| header.path_bytes().into_owned());
    if ahead.size.is_some_and(|size| size != entry.size()) {
        return Err(bad(format!(
            "has the entry {}, whose size stands in an extended header alone; pack it with `tar --format=gnu`",
            shown(&String::from_utf8_lossy(&name))
        )));
    }
    let path = match tree.spot(&name)? {
        Spot::At(path) => path,
        Spot::Nowhere => return Ok(()),
    };
    let target = || ahead.target.or_else(|| header.link_name_bytes().map(|target| target.into_owned()));
    match header.entry_type() {
        EntryType::Directory => tree.folder(&path),
        // Very old tars have no other way to say that something is a folder.
        EntryType::Regular if name.ends_with(b"/") => tree.folder(&path),
        EntryType::Regular | EntryType::Continuous => {
            let mode = header.mode().map_err(|error| broken(&error))?;
            let told = entry.size();
            let mut content = Exactly { inner: entry, left: told };
            tree.file(&path, mode, &mut content)
        }
        EntryType::Symlink => tree.symbolic_link(path, &target().unwrap_or_default()),
        EntryType::Link => tree.hard_link(path, &target().unwrap_or_default()),
        other => {
            let what = match other {
                EntryType::Char | EntryType::Block => "a device",
                EntryType::Fifo => "a pipe",
                EntryType::GNUSparse => "a sparse file, which is not read here (pack it without --sparse)",
                _ => "of a kind that is not known here",
            };
            Err(bad(format!("has the entry {}, which is {what}", shown(path.as_str()))))
        }
    }
}

fn read(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, UnpackError> {
    let told = entry.size();
    text(entry, told)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn extended(header: &[u8], ahead: &mut Ahead) -> Result<(), UnpackError> {
    for extension in PaxExtensions::new(header) {
        let extension = extension.map_err(|error| broken(&error))?;
        let value = extension.value_bytes();
        match extension.key_bytes() {
            b"path" => ahead.name = Some(value.to_vec()),
            b"linkpath" => ahead.target = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                ahead.size = Some(size.ok_or_else(|| bad("is broken: a size is no number"))?);
            }
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(bad("has a sparse file, which is not read here (pack it without --sparse)"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads as many bytes as were told, or fails: a file that was cut short must not pass for a whole one.
struct Exactly<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}
