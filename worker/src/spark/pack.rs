//! What of a working directory goes to a driver in a cluster, and how.
//!
//! Plain files that lie directly in it go by `--files`: executors then have them under the same names, too. Everything goes
//! by one archive that is unpacked into a folder of the container, out of which the driver copies it: names that spark-submit
//! does not take, and folders, have no other way.
//!
//! This module must not know what the files are for.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use reqwest::Url;
use spark_runtime_protocol::asset::{
    DRIVER, MODEL_CONTRACT, MODEL_JOB, MODEL_METADATA, MODEL_SOURCE, RECORD_PARTS,
};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The archive, in an attempt's directory.
pub(super) const ARCHIVE: &str = "work.zip";
/// The folder in the container into which it is unpacked.
pub(super) const UNPACKED: &str = "spark_runtime_work";
/// The driver's part in a cluster.
const CLUSTER_PROGRAM: &str = include_str!("../../driver/ModelOpCluster.py");
const CLUSTER_MODULE: &str = "ModelOpCluster.py";
const CLUSTER_SETTINGS: &str = "model_cluster.json";

/// Packs what lies in `from` into the archive `to`, with what the driver is `told`. Gives the files that go by themselves.
/// Blocks.
///
/// # Errors
/// What the file system says.
pub(super) fn pack(from: &Path, to: &Path, told: &str) -> io::Result<Vec<OsString>> {
    let mut archive = ZipWriter::new(BufWriter::new(File::create_new(to)?));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(true)
        .unix_permissions(0o600);
    for (name, text) in [(CLUSTER_MODULE, CLUSTER_PROGRAM), (CLUSTER_SETTINGS, told)] {
        archive.start_file(name, options)?;
        archive.write_all(text.as_bytes())?;
    }
    archive.add_directory("work", options.unix_permissions(0o700))?;
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let mut entries = std::fs::read_dir(from.join(&folder))?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().into_string().map_err(|name| {
                io::Error::new(io::ErrorKind::InvalidData, format!("the name {name:?} is no UTF-8"))
            })?;
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                archive.add_directory(format!("work/{path}"), options.unix_permissions(0o700))?;
                folders.push(path);
            } else if kind.is_file() && goes_alone(&path) {
                files.push(uri(&entry.path(), None));
            } else if kind.is_file() && path != DRIVER {
                archive.start_file(format!("work/{path}"), options)?;
                io::copy(&mut File::open(entry.path())?, &mut archive)?;
            }
        }
    }
    archive.finish()?.flush()?;
    Ok(files)
}

/// Whether a file of the job is one that spark-submit takes as it is. The service's own are of no use to executors.
fn goes_alone(path: &str) -> bool {
    let own = [DRIVER, MODEL_SOURCE, MODEL_METADATA, MODEL_JOB, MODEL_CONTRACT];
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    path.chars().all(is_plain)
        && !path.starts_with("__")
        && !own.iter().chain(&RECORD_PARTS).any(|name| *name == path)
}

/// A file of this machine as spark-submit takes it, with the name under which it is to be there.
pub(super) fn uri(path: &Path, name: Option<&str>) -> OsString {
    // A path is taken apart at commas, and what looks like a pattern is looked for.
    let mut text =
        Url::from_file_path(path).map_or_else(|()| path.display().to_string(), |url| url.to_string());
    for (character, escape) in
        [(",", "%2C"), ("[", "%5B"), ("]", "%5D"), ("{", "%7B"), ("}", "%7D"), ("*", "%2A")]
    {
        text = text.replace(character, escape);
    }
    match name {
        Some(name) => format!("{text}#{name}").into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_goes_by_one_way() {
        let place = tempfile::tempdir().unwrap();
        let work = place.path().join("a b");
        std::fs::create_dir_all(work.join("pkg/deep")).unwrap();
        std::fs::create_dir(work.join("outputDir")).unwrap();
        for name in [
            DRIVER,
            MODEL_SOURCE,
            MODEL_METADATA,
            "data.csv",
            "a b.csv",
            "ü,x",
            "pkg/deep/h.py",
            "__init__.py",
        ] {
            std::fs::write(work.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", work.join("link")).unwrap();
        let to = place.path().join(ARCHIVE);
        let files = pack(&work, &to, "{}").unwrap();
        assert_eq!(files, [uri(&work.join("data.csv"), None)]);
        assert!(files[0].to_str().unwrap().ends_with("/a%20b/data.csv"));
        let archive = zip::ZipArchive::new(File::open(&to).unwrap()).unwrap();
        let mut names: Vec<_> = archive.file_names().map(Result::unwrap).collect();
        names.sort_unstable();
        let expected = [
            "ModelOpCluster.py",
            "model_cluster.json",
            "work/",
            "work/__init__.py",
            "work/a b.csv",
            "work/model_job_metadata.py",
            "work/model_source_code.py",
            "work/outputDir/",
            "work/pkg/",
            "work/pkg/deep/",
            "work/pkg/deep/h.py",
            "work/ü,x",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn no_path_is_taken_apart_or_for_a_pattern() {
        let named = uri(Path::new("/a b/x,y[1]{2}*#/w.zip"), Some("here"));
        assert_eq!(named, "file:///a%20b/x%2Cy%5B1%5D%7B2%7D%2A%23/w.zip#here");
    }
}
