//! The outputs that a job writes to places of its own: what is there before its first attempt, and what a dead attempt
//! left there.
//!
//! What was there before the first attempt is never touched; which of the outputs that is stands in the first claim of the
//! job, so that every later attempt knows it, on whatever machine. Anything else that lies at an output's place before a
//! later attempt was left by an earlier one, and is removed, so that the attempt starts as the first one did.
//!
//! Only places on this machine's own file systems are looked at. This module must not know what a model writes.

use std::io;
use std::path::{Path, PathBuf};

use spark_runtime_protocol::asset::AssetType;
use spark_runtime_protocol::job::Job;
use spark_runtime_protocol::json::Fault;

use crate::storage::local_path;

/// An output that lies outside of the working directory, on this machine.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Its index among the job's outputs.
    index: u16,
    path: PathBuf,
}

/// What an earlier attempt left could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{path} was left by an earlier attempt and cannot be removed: {source}")]
pub struct LeftoverError {
    path: PathBuf,
    source: io::Error,
}

/// Whether any of the job's outputs is to be looked for here.
#[must_use]
pub fn has_places(job: &Job) -> bool {
    places(job).next().is_some()
}

/// Which of the job's outputs, by their index, are there. Blocks.
#[must_use]
pub fn existing(job: &Job) -> Vec<u16> {
    places(job).filter(|place| is_there(&place.path)).map(|place| place.index).collect()
}

/// A fault for each of these outputs: for workers whose settings refuse jobs that write onto what is there.
#[must_use]
pub fn refusals(job: &Job, existing: &[u16]) -> Vec<Fault> {
    let taken = places(job).filter(|place| existing.contains(&place.index));
    taken
        .map(|place| {
            let message = format!(
                "{} exists already, and this worker refuses to write onto it (job.existing_outputs); remove it or name \
                 another place",
                place.path.display()
            );
            Fault::new(format!("/outputData/{}/fileUrl", place.index), message)
        })
        .collect()
}

/// What is to be told about outputs that were there before: each as a sentence.
#[must_use]
pub fn notes(job: &Job, existing: &[u16]) -> Vec<String> {
    let taken = places(job).filter(|place| existing.contains(&place.index));
    taken
        .map(|place| {
            format!("the output {} was there before; the model may overwrite it", place.path.display())
        })
        .collect()
}

/// Removes what earlier attempts left at the outputs' places, all but those that were there before the first one. Gives
/// a sentence for each. Blocks.
///
/// # Errors
/// [`LeftoverError`] for the first that cannot be removed.
pub fn remove_leftovers(job: &Job, existing: &[u16]) -> Result<Vec<String>, LeftoverError> {
    let mut removed = Vec::new();
    for Place { index, path } in places(job) {
        if existing.contains(&index) || !is_there(&path) {
            continue;
        }
        remove(&path).map_err(|source| LeftoverError { path: path.clone(), source })?;
        removed.push(format!("removed {}, which an earlier attempt had left", path.display()));
    }
    Ok(removed)
}

fn remove(path: &Path) -> io::Result<()> {
    let result = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_there(path: &Path) -> bool {
    // A link that leads nowhere is there as well.
    std::fs::symlink_metadata(path).is_ok()
}

fn places(job: &Job) -> impl Iterator<Item = Place> {
    job.outputs().iter().zip(0_u16..).filter_map(|(output, index)| {
        if AssetType::of(output) != Some(AssetType::ExternalFile) {
            return None;
        }
        let url = output.get("fileUrl")?.as_str()?;
        Some(Place { index, path: local_path(url)? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(urls: &[&str]) -> Job {
        let outputs: Vec<Value> = urls
            .iter()
            .map(
                |url| json!({"assetType": "EXTERNAL_FILE", "name": "o", "fileUrl": url, "fileFormat": "CSV"}),
            )
            .collect();
        let document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB", "outputData": outputs,
            "model": {"storedModel": {"modelAssets": [
                {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"}]}}
        });
        Job::read(document.to_string().as_bytes(), None).unwrap()
    }

    #[test]
    fn only_places_on_this_machine_are_looked_at() {
        for (url, path) in [
            ("/a/b", Some("/a/b")),
            ("/a/b/", Some("/a/b")),
            ("file:///a/b", Some("/a/b")),
            ("file:/a", Some("/a")),
            ("hdfs:///a", None),
            ("s3a://b/c", None),
            ("relative/x", None),
            ("/", None),
            ("file:///", None),
            ("/a/../b", None),
            ("file://host/a", None),
        ] {
            assert_eq!(local_path(url), path.map(PathBuf::from), "{url}");
        }
    }

    #[test]
    fn what_was_there_before_the_first_attempt_is_never_touched() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).display().to_string();
        let job = job(&[&path("old"), &path("new"), &format!("file://{}", path("link"))]);
        std::fs::create_dir(path("old")).unwrap();
        std::fs::write(path("old") + "/part", "x").unwrap();
        let existing = existing(&job);
        assert_eq!(existing, [0]);
        // The first attempt writes them all, and dies.
        std::fs::create_dir(path("new")).unwrap();
        std::fs::write(path("new") + "/part", "x").unwrap();
        std::os::unix::fs::symlink(path("old"), path("link")).unwrap();
        let removed = remove_leftovers(&job, &existing).unwrap();
        assert_eq!(removed.len(), 2);
        assert!(Path::new(&(path("old") + "/part")).exists());
        assert!(!Path::new(&path("new")).exists() && !is_there(Path::new(&path("link"))));
        assert_eq!(remove_leftovers(&job, &existing).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn outputs_that_exist_are_told_by_their_place_in_the_job() {
        let place = tempfile::tempdir().unwrap();
        let job = job(&["hdfs:///x", &place.path().display().to_string()]);
        let existing = existing(&job);
        let faults = refusals(&job, &existing);
        assert_eq!(faults[0].pointer, "/outputData/1/fileUrl");
        assert!(faults[0].message.contains("exists already"), "{}", faults[0].message);
        assert!(notes(&job, &existing)[0].contains("was there before"));
    }
}
