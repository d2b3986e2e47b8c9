//! Packing an environment for executors on other machines: a gzipped tar of it, with `bin/python` at its top, as `venv-pack`
//! and `conda-pack` make them and as Spark unpacks them (`spark.archives`).
//!
//! A virtual environment has no Python of its own but a link to that which it was made with; an executor needs the same one
//! at the same path. An environment of conda has its own.
//!
//! This module must not know which environment is packed, nor for whom.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// How packed environments are made; a change makes all of them anew.
const VERSION: &[u8] = b"pack-1";
/// The file in the folder of one that was packed here.
const ARCHIVE: &str = "environment.tar.gz";
/// The endings of archives that Spark unpacks.
const UNPACKED_BY_SPARK: [&str; 3] = [".tar.gz", ".tgz", ".tar"];
/// The first line of scripts that begin with the path of the environment's own Python, which is another one elsewhere.
const FIRST_LINE: &[u8] = b"#!/usr/bin/env python\n";

/// The folder of the environment that a Python belongs to; `None` for one that belongs to none, such as the system's.
pub(super) fn environment_of(python: &Path) -> Option<PathBuf> {
    let root = python.parent()?.parent()?;
    let is_one = ["pyvenv.cfg", "conda-meta"].iter().any(|name| root.join(name).exists());
    (python.is_absolute() && is_one).then(|| root.to_owned())
}

/// Whether Spark unpacks an archive with this name.
pub(super) fn is_for_spark(archive: &Path) -> bool {
    UNPACKED_BY_SPARK.iter().any(|ending| archive.to_string_lossy().ends_with(ending))
}

/// Where the archive is in its folder.
pub(super) fn archive_in(folder: &Path) -> PathBuf {
    folder.join(ARCHIVE)
}

/// What lies in an environment, each by its path in it, in order.
fn entries(root: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let mut all = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for found in fs::read_dir(root.join(&folder))? {
            let path = folder.join(found?.file_name());
            let metadata = fs::symlink_metadata(root.join(&path))?;
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            all.push((path, metadata));
        }
    }
    all.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(all)
}

/// By what an environment is known again: the names, kinds, sizes, rights and times of all that lies in it. Blocks.
///
/// # Errors
/// What the file system says.
pub(super) fn key_of(root: &Path) -> io::Result<String> {
    let mut digest = Sha256::new();
    digest.update(VERSION);
    let mut put = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    // Scripts are packed by it.
    put(root.as_os_str().as_bytes());
    for (path, metadata) in entries(root)? {
        put(path.as_os_str().as_bytes());
        put(&metadata.mode().to_be_bytes());
        if metadata.is_symlink() {
            put(fs::read_link(root.join(&path))?.as_os_str().as_bytes());
        } else if metadata.is_file() {
            put(&metadata.len().to_be_bytes());
            put(&metadata.mtime().to_be_bytes());
            put(&metadata.mtime_nsec().to_be_bytes());
        }
    }
    Ok(digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

/// Packs the environment at `root` into the archive in `folder`. Blocks.
///
/// # Errors
/// What the file system says.
pub(super) fn pack(root: &Path, folder: &Path) -> io::Result<()> {
    let file = BufWriter::with_capacity(1 << 20, File::create_new(archive_in(folder))?);
    // It is sent once and read once: little is gained by more.
    let mut builder = Builder::new(GzEncoder::new(file, Compression::fast()));
    for (path, metadata) in entries(root)? {
        let whole = root.join(&path);
        let mut header = Header::new_gnu();
        header.set_mode(metadata.permissions().mode() & 0o777);
        // By these Python tells whether what it has compiled still counts.
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
        header.set_size(0);
        if metadata.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, &path, fs::read_link(&whole)?)?;
        } else if metadata.is_dir() {
            header.set_entry_type(EntryType::Directory);
            builder.append_data(&mut header, &path, io::empty())?;
        } else if metadata.is_file() {
            header.set_entry_type(EntryType::Regular);
            let (head, rest, size) = contents(&path, &whole, root)?;
            header.set_size(size);
            builder.append_data(&mut header, &path, head.chain(rest))?;
        }
        // Sockets and such belong to no environment.
    }
    let file = builder.into_inner()?.finish()?;
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

/// A file's contents in two pieces, and how many bytes they have: scripts begin with another line.
fn contents(path: &Path, whole: &Path, root: &Path) -> io::Result<(io::Cursor<Vec<u8>>, impl Read, u64)> {
    let mut file = BufReader::new(File::open(whole)?);
    let size = file.get_ref().metadata()?.len();
    let mut own = b"#!".to_vec();
    own.extend_from_slice(root.join("bin").as_os_str().as_bytes());
    let is_own_script = path.parent() == Some(Path::new("bin")) && file.fill_buf()?.starts_with(&own);
    let mut head = Vec::new();
    let mut left_out = 0;
    if is_own_script {
        let mut line = Vec::new();
        left_out = file.by_ref().take(size).read_until(b'\n', &mut line)? as u64;
        head.write_all(FIRST_LINE)?;
    }
    let rest = size.saturating_sub(left_out);
    let total = rest + head.len() as u64;
    // A file that grows meanwhile must not write over the next entry.
    Ok((io::Cursor::new(head), file.take(rest), total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    fn environment() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("lib/deep")).unwrap();
        fs::write(root.join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
        symlink("/usr/bin/python3", root.join("bin/python")).unwrap();
        symlink("lib", root.join("lib64")).unwrap();
        let script = format!("#!{}/bin/python\nprint(1)\n", root.display());
        fs::write(root.join("bin/tool"), script).unwrap();
        fs::set_permissions(root.join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(root.join(format!("lib/deep/{}", "n".repeat(150))), "long").unwrap();
        place
    }

    #[test]
    fn an_environment_comes_out_of_its_archive_as_it_was_but_for_where_its_scripts_begin() {
        let (place, packed, target) =
            (environment(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        pack(place.path(), packed.path()).unwrap();
        let archive = archive_in(packed.path());
        let done = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(target.path()).status();
        assert!(done.unwrap().success());
        let root = target.path();
        assert_eq!(fs::read_link(root.join("bin/python")).unwrap(), Path::new("/usr/bin/python3"));
        assert_eq!(fs::read_link(root.join("lib64")).unwrap(), Path::new("lib"));
        assert_eq!(fs::read_to_string(root.join("bin/tool")).unwrap(), "#!/usr/bin/env python\nprint(1)\n");
        assert_eq!(fs::metadata(root.join("bin/tool")).unwrap().mode() & 0o777, 0o755);
        assert_eq!(fs::read_to_string(root.join(format!("lib/deep/{}", "n".repeat(150)))).unwrap(), "long");
        let time = |root: &Path| fs::metadata(root.join("pyvenv.cfg")).unwrap().mtime();
        assert_eq!(time(root), time(place.path()));
    }

    #[test]
    fn the_key_is_that_of_what_lies_there() {
        let place = environment();
        let first = key_of(place.path()).unwrap();
        assert_eq!(key_of(place.path()).unwrap(), first);
        fs::write(place.path().join("lib/more.py"), "").unwrap();
        let second = key_of(place.path()).unwrap();
        assert_ne!(second, first);
        fs::remove_file(place.path().join("lib64")).unwrap();
        symlink("lib/deep", place.path().join("lib64")).unwrap();
        assert_ne!(key_of(place.path()).unwrap(), second);
    }

    #[test]
    fn a_python_belongs_to_an_environment_or_to_none() {
        let place = environment();
        assert_eq!(environment_of(&place.path().join("bin/python")).as_deref(), Some(place.path()));
        assert_eq!(environment_of(Path::new("/usr/bin/python3")), None);
        assert_eq!(environment_of(Path::new("python3")), None);
        assert!(is_for_spark(Path::new("/x/e.tar.gz")) && !is_for_spark(Path::new("/x/e.tar.zst")));
    }
}
