//! Attachments: what a record model finds in its working directory before its init function runs.
//!
//! EXTERNAL_FILE assets of the model are fetched and lie there under their `filename`, like its FILE assets. Those of both
//! that are archives are unpacked beside them. This is for record models alone: a Spark model is given its external assets as
//! a list and reads them itself, where they are.
//!
//! This module must not know what an archive or a store looks like inside.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use futures_util::StreamExt;
use serde_json::Value;
use spark_runtime_protocol::asset::{AssetType, StagedPath};
use spark_runtime_protocol::event::FailureClass;
use spark_runtime_protocol::job::{Content, Job};
use spark_runtime_protocol::json::Fault;

use super::outputs::AT_ONCE;
use super::stage::StageError;
use super::submit::{plain, stopped};
use super::{Context, End, Stop, StopReason};
use crate::archive::{self, Budget, Limits, UnpackError};
use crate::config::{AttachmentSettings, size_text};
use crate::storage::{PATIENCE, Place, Storage, StorageError};

/// Something that may be an archive.
#[derive(Debug, PartialEq, Eq)]
struct Attachment {
    /// Where its name stands in the job.
    pointer: String,
    path: StagedPath,
}

/// An asset that lies elsewhere.
#[derive(Debug, PartialEq, Eq)]
struct External {
    /// Where it stands in the job.
    pointer: String,
    url: String,
    path: StagedPath,
}

/// Fetches and unpacks what the model of `job` is to find in its working directory; gives a sentence for each archive.
///
/// # Errors
/// The attempt's end. What was written until then stays for the caller to remove.
pub async fn bring(
    context: &Context,
    job: &Job,
    working_directory: &Path,
    stop: &Stop,
) -> Result<Vec<String>, End> {
    let settings = &context.settings.attachments;
    let mut budget = Budget::new(limits(settings));
    let mut attachments = files(job);
    let mut stopping = stop.clone();
    let storage = Storage::of(&context.settings).acting_as(context.judge.actor_of(job));
    for external in externals(job).map_err(End::Rejected)? {
        let fetching = fetch(context, &storage, &external, working_directory, &mut budget);
        let fetched = tokio::select! {
            biased;
            reason = stopping.stronger(None) => return Err(stopped(reason)),
            fetched = fetching => fetched,
        };
        match fetched {
            Ok(true) => attachments.push(Attachment { pointer: external.pointer, path: external.path }),
            Ok(false) => {}
            // Whatever else is missing is told with it.
            Err(End::Rejected(faults)) => {
                let others = tokio::select! {
                    biased;
                    reason = stopping.stronger(None) => return Err(stopped(reason)),
                    others = missing_after(context, job, Some(&external.pointer)) => others,
                };
                return Err(End::Rejected([faults, others].concat()));
            }
            Err(end) => return Err(end),
        }
    }
    let root = working_directory.to_owned();
    let stop = stop.clone();
    let unpacked =
        tokio::task::spawn_blocking(move || unpack(&attachments, &root, &mut budget, &|| stop.reason()));
    unpacked
        .await
        .unwrap_or_else(|error| Err(super::submit::broken(&format!("unpacking was cut short: {error}"))))
}

fn limits(settings: &AttachmentSettings) -> Limits {
    Limits { size: settings.max_size, entries: settings.max_files, ratio: settings.max_ratio }
}

/// The FILE assets of the model.
fn files(job: &Job) -> Vec<Attachment> {
    let of_the_model = job
        .staged_files()
        .filter(|file| !matches!(file.content, Content::Text(_)) && file.pointer.starts_with("/model/"));
    of_the_model
        .map(|file| Attachment { pointer: file.pointer.to_owned(), path: file.path.clone() })
        .collect()
}

/// The EXTERNAL_FILE assets of the model, or what is wrong with their names.
fn externals(job: &Job) -> Result<Vec<External>, Vec<Fault>> {
    const ASSETS: &str = "/model/storedModel/modelAssets";
    let assets = job.document().pointer(ASSETS).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let mut externals = Vec::new();
    let mut faults = Vec::new();
    for (index, asset) in assets.iter().enumerate() {
        if AssetType::of(asset) != Some(AssetType::ExternalFile) {
            continue;
        }
        let text = |key: &str| asset.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let Some(url) = text("fileUrl") else { continue };
        let of_url = || url.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let (key, name) = match (text("filename"), text("name")) {
            (Some(name), _) => ("filename", name),
            (None, Some(name)) => ("name", name),
            (None, None) => ("fileUrl", of_url()),
        };
        let pointer = format!("{ASSETS}/{index}");
        match StagedPath::new(name) {
            Ok(path) => externals.push(External { pointer, url: url.to_owned(), path }),
            Err(error) => {
                let shown: String = name.chars().take(80).collect();
                faults.push(Fault::new(format!("{pointer}/{key}"), format!("{shown:?} {error}")));
            }
        }
    }
    if faults.is_empty() { Ok(externals) } else { Err(faults) }
}

/// A fault for each attachment that is not there, as far as that can be told in a moment: for a job that is rejected in any
/// case.
pub(super) async fn missing(context: &Context, job: &Job) -> Vec<Fault> {
    missing_after(context, job, None).await
}

/// The same, of those that stand behind one in the job.
async fn missing_after(context: &Context, job: &Job, last: Option<&str>) -> Vec<Fault> {
    let storage = Storage::of(&context.settings).acting_as(context.judge.actor_of(job));
    let externals = match externals(job) {
        Ok(externals) => externals,
        Err(faults) => return faults,
    };
    let behind = last.and_then(|last| externals.iter().position(|external| external.pointer == last));
    let asked = externals.into_iter().skip(behind.map_or(0, |index| index + 1));
    let storage = &storage;
    let fault = |external: External| async move {
        let found = async {
            let place = storage.place(&external.url)?;
            let is_there = place.size().await?.is_some() || !place.files(1).await?.is_empty();
            if is_there { Ok(()) } else { Err(StorageError::NotThere { url: external.url.clone() }) }
        };
        match failed(&found.await.err()?, &external, &context.settings.attachments) {
            End::Rejected(faults) => Some(faults),
            _ => None,
        }
    };
    let asking = futures_util::stream::iter(asked.map(fault))
        .buffered(AT_ONCE)
        .take_until(tokio::time::sleep(PATIENCE));
    asking.filter_map(async |faults| faults).collect::<Vec<_>>().await.concat()
}

/// Fetches a file, or a folder with all that is in it. Tells whether it was a file.
async fn fetch(
    context: &Context,
    storage: &Storage,
    external: &External,
    root: &Path,
    budget: &mut Budget,
) -> Result<bool, End> {
    let max_files = usize::try_from(context.settings.attachments.max_files).unwrap_or(usize::MAX - 1);
    let failed = |error: StorageError| failed(&error, external, &context.settings.attachments);
    let place = storage.place(&external.url).map_err(failed)?;
    if place.size().await.map_err(failed)?.is_some() {
        download(&place, root, &external.path, external, budget, failed).await?;
        return Ok(true);
    }
    let files = place.files(max_files + 1).await.map_err(failed)?;
    if files.is_empty() {
        return Err(failed(StorageError::NotThere { url: external.url.clone() }));
    }
    if files.len() > max_files {
        let words = format!("has more than {max_files} files (attachments.max_files)");
        return Err(rejected(&format!("{}/fileUrl", external.pointer), &words));
    }
    for (name, _) in files {
        let file = place.child(&name).map_err(failed)?;
        let path = format!("{}/{name}", external.path);
        let path = StagedPath::new(&path).map_err(|error| {
            let shown: String = name.chars().take(80).collect();
            rejected(
                &format!("{}/fileUrl", external.pointer),
                &format!("has the file {shown:?}, whose name {error}"),
            )
        })?;
        download(&file, root, &path, external, budget, failed).await?;
    }
    Ok(false)
}

async fn download(
    place: &Place,
    root: &Path,
    path: &StagedPath,
    external: &External,
    budget: &mut Budget,
    failed: impl Fn(StorageError) -> End,
) -> Result<(), End> {
    let file = match create(root, path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let words = format!("another file lies at {path} already; give this one another filename");
            return Err(rejected(&external.pointer, &words));
        }
        Err(source) => return Err(unwritable(StageError { path: root.join(path.as_str()), source })),
    };
    let size = place.download(file, budget.size_left()).await.map_err(failed)?;
    budget.spend(size);
    Ok(())
}

/// Makes a file that was not there. No link of a job lies there yet, so that none can lead out.
fn create(root: &Path, path: &StagedPath) -> io::Result<File> {
    let place = root.join(path.as_str());
    if let Some(folder) = place.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place)
}

/// Unpacks those of the attachments that are archives. Blocks.
fn unpack(
    attachments: &[Attachment],
    root: &Path,
    budget: &mut Budget,
    stop: &dyn Fn() -> Option<StopReason>,
) -> Result<Vec<String>, End> {
    let mut notes = Vec::new();
    for Attachment { pointer, path } in attachments {
        let place = root.join(path.as_str());
        // Unpacked before, another archive may have put a link anywhere but here.
        let file = File::open(&place).map_err(|source| unwritable(StageError { path: place, source }))?;
        match archive::unpack(file, path.as_str(), root, budget, &|| stop().is_some()) {
            Ok(None) => {}
            Ok(Some(unpacked)) => {
                let mut note = format!("unpacked {} files of {path}", unpacked.files);
                if unpacked.left_out > 0 {
                    note.push_str(&format!(", without {} compiled modules", unpacked.left_out));
                }
                notes.push(note);
            }
            Err(UnpackError::Bad(words)) => {
                return Err(rejected(pointer, &format!("the archive {path} {words}")));
            }
            Err(UnpackError::Write { path, source }) => return Err(unwritable(StageError { path, source })),
            Err(UnpackError::Stopped) => return Err(stopped(stop().unwrap_or(StopReason::GiveBack))),
        }
    }
    Ok(notes)
}

fn rejected(pointer: &str, words: &str) -> End {
    End::Rejected(vec![Fault::new(pointer, words)])
}

fn unwritable(error: StageError) -> End {
    End::Failed { may_pass: error.may_pass(), failure: Box::new(error.failure()) }
}

/// What a failed fetch says about the job.
fn failed(error: &StorageError, external: &External, settings: &AttachmentSettings) -> End {
    let pointer = format!("{}/fileUrl", external.pointer);
    match error {
        StorageError::NoPlace { .. } | StorageError::NotThere { .. } | StorageError::NoFolder { .. } => {
            rejected(&pointer, &error.to_string())
        }
        StorageError::TooLarge { .. } => {
            let most = size_text(settings.max_size);
            rejected(
                &pointer,
                &format!(
                    "is more than the {most} that the attachments of a job may take (attachments.max_size)"
                ),
            )
        }
        StorageError::Local(_) => {
            let message = format!("{} could not be fetched: {error}", external.url);
            End::Failed { failure: Box::new(plain(FailureClass::Staging, message)), may_pass: true }
        }
        StorageError::Refused { .. } | StorageError::Failed { .. } => {
            let message = format!("the attachment {} could not be fetched: {error}", external.path);
            End::Failed { failure: Box::new(plain(FailureClass::Infrastructure, message)), may_pass: true }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write;

    fn job(assets: Vec<Value>) -> Job {
        let source = json!({"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"});
        let assets = [vec![source], assets].concat();
        let document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB",
            "inputData": [{"assetType": "FILE", "filename": "input.zip", "fileContent": "eA=="}],
            "model": {"storedModel": {"modelAssets": assets}}
        });
        Job::read(document.to_string().as_bytes(), None).unwrap()
    }

    #[test]
    fn attachments_are_the_files_of_the_model_and_not_those_of_the_data() {
        let job = job(vec![
            json!({"assetType": "FILE", "filename": "lib.zip", "fileContent": "eA=="}),
            json!({"assetType": "SOURCE_CODE", "name": "helper.py", "sourceCode": "x"}),
            json!({"assetType": "EXTERNAL_FILE", "fileUrl": "/models/titanic/", "name": ""}),
            json!({"assetType": "EXTERNAL_FILE", "fileUrl": "s3a://b/w", "name": "n", "filename": "weights/w.bin"}),
        ]);
        let names: Vec<_> = files(&job).into_iter().map(|file| file.path.to_string()).collect();
        assert_eq!(names, ["lib.zip"]);
        let externals = externals(&job).unwrap();
        let names: Vec<_> = externals.iter().map(|external| external.path.as_str()).collect();
        assert_eq!(names, ["titanic", "weights/w.bin"]);
    }

    #[test]
    fn an_external_asset_whose_name_leads_elsewhere_is_refused_with_its_place() {
        let job = job(vec![
            json!({"assetType": "EXTERNAL_FILE", "fileUrl": "/w", "filename": "../w"}),
            json!({"assetType": "EXTERNAL_FILE", "fileUrl": "/w", "name": "model_source_code.py"}),
        ]);
        let faults = externals(&job).unwrap_err();
        assert_eq!(faults[0].pointer, "/model/storedModel/modelAssets/1/filename");
        assert_eq!(faults[1].pointer, "/model/storedModel/modelAssets/2/name");
    }

    #[test]
    fn a_bad_archive_is_told_with_its_place_in_the_job() {
        let root = tempfile::tempdir().unwrap();
        let mut writer = zip::ZipWriter::new(File::create(root.path().join("bad.zip")).unwrap());
        writer.start_file("../x", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(b"x").unwrap();
        writer.finish().unwrap();
        let attachments =
            [Attachment { pointer: "/model/a".into(), path: StagedPath::new("bad.zip").unwrap() }];
        let limits = Limits { size: 1 << 20, entries: 10, ratio: 100 };
        let end = unpack(&attachments, root.path(), &mut Budget::new(limits), &|| None).unwrap_err();
        let End::Rejected(faults) = end else { panic!("{end:?}") };
        assert_eq!(faults[0].pointer, "/model/a");
        assert!(faults[0].message.starts_with("the archive bad.zip has the entry \"../x\""), "{faults:?}");
        let stopped =
            unpack(&attachments, root.path(), &mut Budget::new(limits), &|| Some(StopReason::Cancel));
        assert!(matches!(stopped, Err(End::Rejected(_) | End::Cancelled)));
    }
}
