//! Writing what an archive brings: the one gate from its names to the file system.
//!
//! Every name goes through [`StagedPath`]. Links are made when all else is written, so that nothing is written through
//! one, and only such that cannot lead out: a target goes up no further than the folder, and then only down. By that no
//! chain of them can lead out either, since what each one names lies inside.
//!
//! This module must not know any format.

use std::collections::HashSet;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::Path;

use spark_runtime_protocol::asset::{StagedPath, StagedPathError};

use super::{LONGEST_TEXT, UnpackError, Unpacked, bad};

/// What is copied at a time.
const CHUNK: usize = 64 << 10;

/// The folder that an archive is unpacked into.
pub(super) struct Tree<'a> {
    root: &'a Path,
    entries_left: u64,
    full: bool,
    unpacked: Unpacked,
    written: bool,
    /// Folders below the root that are there and are no links.
    folders: HashSet<String>,
    links: Vec<Link>,
}

/// A link that is made at the end.
struct Link {
    path: StagedPath,
    target: Target,
}

enum Target {
    /// As the link says it: relative to where the link lies.
    Symbolic(String),
    /// A file below the root.
    Hard(StagedPath),
}

/// Where an entry goes.
pub(super) enum Spot {
    /// To this path.
    At(StagedPath),
    /// Nowhere: it is the root itself, or a compiled module.
    Nowhere,
}

impl<'a> Tree<'a> {
    pub(super) fn new(root: &'a Path, entries_left: u64) -> Self {
        Self {
            root,
            entries_left,
            full: false,
            unpacked: Unpacked::default(),
            written: false,
            folders: HashSet::new(),
            links: Vec::new(),
        }
    }

    /// How many more entries may come.
    pub(super) fn entries_left(&self) -> u64 {
        self.entries_left
    }

    /// More entries came than may.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// Nothing has been written yet.
    pub(super) fn is_untouched(&self) -> bool {
        !self.written
    }

    /// Takes in that there are so many more entries.
    pub(super) fn count(&mut self, entries: u64) -> Result<(), UnpackError> {
        match self.entries_left.checked_sub(entries) {
            Some(left) => self.entries_left = left,
            None => {
                self.full = true;
                return Err(bad("has too many entries"));
            }
        }
        Ok(())
    }

    /// Where an entry of this name goes.
    pub(super) fn spot(&mut self, name: &[u8]) -> Result<Spot, UnpackError> {
        let text = utf8(name)?;
        let mut plain = text.trim_end_matches('/');
        // Tars of a whole folder name everything `./x`.
        while let Some(rest) = plain.strip_prefix("./") {
            plain = rest.trim_start_matches('/');
        }
        if (plain.is_empty() && !text.starts_with('/')) || plain == "." {
            return Ok(Spot::Nowhere);
        }
        if plain.split('/').any(|step| step == "__pycache__") {
            // Judged all the same: it is a sign of what the archive is up to.
            if plain.split('/').all(|step| !matches!(step, "" | "." | "..")) {
                self.unpacked.left_out += 1;
                return Ok(Spot::Nowhere);
            }
        }
        match StagedPath::new(if plain.is_empty() { text } else { plain }) {
            Ok(path) => Ok(Spot::At(path)),
            Err(error) => Err(refused(text, &error)),
        }
    }

    /// Makes a folder that an entry asks for.
    pub(super) fn folder(&mut self, path: &StagedPath) -> Result<(), UnpackError> {
        self.make_folders(path.as_str())
    }

    /// Makes each step of a path a folder. What is there already must be a folder itself, not a link to one.
    fn make_folders(&mut self, path: &str) -> Result<(), UnpackError> {
        if self.folders.contains(path) {
            return Ok(());
        }
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let folder = &path[..end];
            if self.folders.contains(folder) {
                continue;
            }
            let place = self.root.join(folder);
            self.written = true;
            match DirBuilder::new().mode(0o700).create(&place) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let is_folder = place.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
                    if !is_folder {
                        return Err(would_overwrite(folder));
                    }
                }
                Err(error) => return Err(unwritable(&place, error)),
            }
            self.folders.insert(folder.to_owned());
        }
        Ok(())
    }

    fn make_parents(&mut self, path: &StagedPath) -> Result<(), UnpackError> {
        match path.as_str().rsplit_once('/') {
            Some((folders, _)) => self.make_folders(folders),
            None => Ok(()),
        }
    }

    /// Writes a file. Of its mode only that its owner may run it is kept.
    pub(super) fn file(
        &mut self,
        path: &StagedPath,
        mode: u32,
        content: &mut dyn Read,
    ) -> Result<(), UnpackError> {
        self.make_parents(path)?;
        let place = self.root.join(path.as_str());
        let mode = if mode & 0o100 == 0 { 0o600 } else { 0o700 };
        self.written = true;
        let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(&place);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(would_overwrite(path.as_str()));
            }
            Err(error) => return Err(unwritable(&place, error)),
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match content.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(&error)),
            };
            file.write_all(&chunk[..read]).map_err(|error| unwritable(&place, error))?;
        }
        self.unpacked.files += 1;
        Ok(())
    }

    /// Takes in a symbolic link.
    pub(super) fn symbolic_link(&mut self, path: StagedPath, target: &[u8]) -> Result<(), UnpackError> {
        let target = utf8(target)?;
        if !stays_inside(path.as_str(), target) {
            return Err(bad(format!(
                "has the link {} to {}; a link may lead up no further than the archive's own folder, and then only down",
                shown(path.as_str()),
                shown(target)
            )));
        }
        self.links.push(Link { path, target: Target::Symbolic(target.to_owned()) });
        Ok(())
    }

    /// Takes in a hard link to another file of the archive.
    pub(super) fn hard_link(&mut self, path: StagedPath, target: &[u8]) -> Result<(), UnpackError> {
        match self.spot(target)? {
            Spot::At(target) => self.links.push(Link { path, target: Target::Hard(target) }),
            Spot::Nowhere => return Err(bad(format!("has the link {} to no file", shown(path.as_str())))),
        }
        Ok(())
    }

    /// Makes the links, and tells what came.
    pub(super) fn finish(&mut self) -> Result<Unpacked, UnpackError> {
        for Link { path, target } in std::mem::take(&mut self.links) {
            self.make_parents(&path)?;
            let place = self.root.join(path.as_str());
            let made = match target {
                Target::Symbolic(target) => symlink(&target, &place),
                Target::Hard(target) => {
                    let file = self.root.join(target.as_str());
                    // Below a link that the archive has made, it could be anything.
                    let parent = target.as_str().rsplit_once('/').map(|(folders, _)| folders);
                    let is_plain = parent.is_none_or(|folders| self.folders.contains(folders))
                        && file.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
                    if !is_plain {
                        let (path, target) = (shown(path.as_str()), shown(target.as_str()));
                        return Err(bad(format!("has the link {path} to {target}, which is no file of it")));
                    }
                    std::fs::hard_link(&file, &place)
                }
            };
            match made {
                Ok(()) => self.unpacked.files += 1,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(would_overwrite(path.as_str()));
                }
                Err(error) => return Err(unwritable(&place, error)),
            }
        }
        Ok(self.unpacked)
    }
}

/// Reads a text that stands in an archive, such as a link's target.
pub(super) fn text(from: &mut dyn Read, told: u64) -> Result<Vec<u8>, UnpackError> {
    if told > LONGEST_TEXT {
        return Err(bad(format!("has a name of {told} bytes; no path is that long")));
    }
    let mut bytes = Vec::new();
    from.take(LONGEST_TEXT).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
    Ok(bytes)
}

/// Whether a link at `path` to `target` leads to nothing above the root: no root, no drive, and every `..` at its
/// beginning, no more of them than there are folders above the link.
fn stays_inside(path: &str, target: &str) -> bool {
    if target.is_empty() || target.starts_with('/') || target.contains(['\\', '\0']) {
        return false;
    }
    let depth = path.matches('/').count();
    let mut up = 0;
    let mut down = false;
    for step in target.split('/') {
        match step {
            "" | "." => {}
            ".." if down => return false,
            ".." => up += 1,
            _ => down = true,
        }
    }
    up <= depth
}

fn utf8(name: &[u8]) -> Result<&str, UnpackError> {
    std::str::from_utf8(name).map_err(|_| {
        bad(format!("has the name {}, which is not UTF-8", shown(&String::from_utf8_lossy(name))))
    })
}

fn refused(name: &str, error: &StagedPathError) -> UnpackError {
    bad(format!("has the entry {}, whose name {error}", shown(name)))
}

fn would_overwrite(name: &str) -> UnpackError {
    bad(format!("would write over {}, which is there already", shown(name)))
}

/// What the file system objects to in a name is the archive's fault; all else is the disk's.
fn unwritable(place: &Path, source: io::Error) -> UnpackError {
    match source.raw_os_error() {
        Some(libc::ENAMETOOLONG | libc::ENOTDIR | libc::EINVAL | libc::EILSEQ) => bad(format!(
            "has the entry {}, which cannot be written: {source}",
            shown(&place.display().to_string())
        )),
        _ => UnpackError::Write { path: place.to_owned(), source },
    }
}

/// An archive that cannot be read on.
pub(super) fn broken(error: &dyn std::fmt::Display) -> UnpackError {
    bad(format!("is broken: {error}"))
}

/// A name as it is shown: with quotes, and not longer than anybody reads.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 200;
    let mut short: String = name.chars().take(MOST).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_may_lead_up_to_the_folder_and_then_only_down() {
        for (path, target) in
            [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", "./b/"), ("a/b", ".."), ("a", "x..y")]
        {
            assert!(stays_inside(path, target), "{path} -> {target}");
        }
        for (path, target) in [
            ("a", "/etc/passwd"),
            ("a", ".."),
            ("a", "../a"),
            ("a/b", "../../c"),
            ("a/b/c", "d/../../../.."),
            ("a/b", "c/.."),
            ("a", ""),
            ("a", "c:\\x"),
        ] {
            assert!(!stays_inside(path, target), "{path} -> {target}");
        }
    }
}
