//! The outputs that a job writes to places of its own: what is there before its first attempt, and what a dead attempt
//! left there.
//!
//! What was there before the first attempt is never touched; which of the outputs that is stands in the first claim of the
//! job, so that every later attempt knows it, on whatever machine. Anything else that lies at an output's place before a
//! later attempt was left by an earlier one, and is removed, so that the attempt starts as the first one did.
//!
//! Looked at are this machine's own file systems and HDFS. That something was not there is never guessed, since what was
//! guessed wrong would be removed later:
//! - An output that is hidden from the worker, or that it cannot look at from here, counts as one that was there.
//! - When a file system does not answer, the claim says so ([`UNSEEN`]); its attempt runs nothing and fails, and the claim
//!   of the next one tells anew what is there. Nothing of the job has run until then.
//! - What lies on this machine's own file systems is removed only if this machine found it missing when an earlier attempt
//!   began here ([`super::absences`]): the claim was made on any machine, where the same path is another place.
//! - A claim whose worker did not look elsewhere than on its own machine lacks [`LOOKED_ELSEWHERE`], and then nothing
//!   elsewhere is ever removed.
//!
//! This module must not know what a model writes.

use futures_util::StreamExt;
use spark_runtime_protocol::asset::AssetType;
use spark_runtime_protocol::event::FailureClass;
use spark_runtime_protocol::job::Job;
use spark_runtime_protocol::json::Fault;
use tokio::time::Instant;

use super::absences::Absences;
use super::submit::plain;
use super::{Claim, Context, End, inputs};
use crate::broker::ledger::record::{LOOKED_ELSEWHERE, UNSEEN};
use crate::clock::BootTime;
use crate::storage::{self, Spot, Storage, StorageError};

/// How many questions are on their way at once.
pub(super) const AT_ONCE: usize = 16;
/// How many of the places that could not be looked at are named in one message.
const MOST_NAMED: usize = 3;
const UNTOLD: &str = "nobody can tell which outputs are there already, and nothing is run until somebody can";

/// An output that lies outside of the working directory, where this worker can look.
#[derive(Debug)]
struct Output {
    /// Its index among the job's outputs.
    index: u16,
    spot: Spot,
}

/// What was found of a job's outputs before it was claimed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// For the claim: which outputs are there, by their index, and what there is to be said of the looking itself.
    pub existing: Vec<u16>,
    /// Why some could not be looked at; then nothing of the job may be run on this.
    pub unseen: Option<String>,
    /// Those that are hidden from this worker, and how.
    pub hidden: Vec<(u16, String)>,
}

/// What is found of an output.
enum Found {
    There,
    NotThere,
    Hidden(String),
    Unseen(String),
}

/// Whether a job has outputs to look for before it is claimed.
#[must_use]
pub fn has_places(job: &Job) -> bool {
    urls(job).next().is_some()
}

/// Finds out which of the job's outputs are there. `elsewhere` is whether file systems other than this machine's are asked.
pub async fn look(context: &Context, job: &Job, elsewhere: bool) -> Seen {
    let storage = storage_for(context, job);
    let file_system = context.judge.file_system_of(job);
    look_at(&storage, job, file_system.as_deref(), elsewhere, Instant::now() + storage::PATIENCE).await
}

/// Where the job's user can look.
fn storage_for(context: &Context, job: &Job) -> Storage {
    Storage::of(&context.settings).acting_as(context.judge.actor_of(job))
}

async fn look_at(
    storage: &Storage,
    job: &Job,
    file_system: Option<&str>,
    elsewhere: bool,
    deadline: Instant,
) -> Seen {
    let mut seen = Seen::default();
    let (outputs, unknown) = outputs(storage, job, file_system);
    // Another worker may be able to look there.
    seen.existing.extend(unknown);
    if elsewhere && outputs.iter().any(|output| !output.spot.is_local()) {
        seen.existing.push(LOOKED_ELSEWHERE);
    }
    let asked: Vec<Output> =
        outputs.into_iter().filter(|output| elsewhere || output.spot.is_local()).collect();
    let asking =
        asked.into_iter().map(|output| async move { (output.index, found(&output, deadline).await) });
    let mut answers: Vec<_> = futures_util::stream::iter(asking).buffer_unordered(AT_ONCE).collect().await;
    answers.sort_by_key(|(index, _)| *index);
    let mut unseen = Vec::new();
    for (index, found) in answers {
        match found {
            Found::NotThere => continue,
            Found::There => {}
            Found::Hidden(reason) => seen.hidden.push((index, reason)),
            Found::Unseen(reason) => unseen.push(reason),
        }
        seen.existing.push(index);
    }
    if !unseen.is_empty() {
        seen.existing.retain(|index| *index != LOOKED_ELSEWHERE);
        seen.existing.push(UNSEEN);
        seen.unseen = Some(format!("{UNTOLD}: {}", some_of(&unseen)));
    }
    seen.existing.sort_unstable();
    seen
}

async fn found(output: &Output, deadline: Instant) -> Found {
    match output.spot.look(deadline).await {
        Ok(Some(_)) => Found::There,
        Ok(None) | Err(StorageError::NoFolder { .. } | StorageError::NotThere { .. }) => Found::NotThere,
        Err(error) if error.may_pass() => Found::Unseen(error.to_string()),
        Err(error) => Found::Hidden(error.to_string()),
    }
}

/// The first few of some sentences, and how many more there are.
pub(super) fn some_of(sentences: &[String]) -> String {
    let shown = sentences[..sentences.len().min(MOST_NAMED)].join("; ");
    match sentences.len().saturating_sub(MOST_NAMED) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// Whether anything of this attempt may be run: not when nobody could tell what was there before it.
///
/// # Errors
/// The attempt's end.
pub fn must_be_seen(claim: &Claim) -> Result<(), End> {
    if !claim.existing.contains(&UNSEEN) {
        return Ok(());
    }
    let words = claim.seen.unseen.clone().unwrap_or_else(|| UNTOLD.to_owned());
    Err(failed(FailureClass::Infrastructure, words))
}

/// A fault for each of the outputs that were there: for workers whose settings refuse jobs that write onto what is there.
#[must_use]
pub fn refusals(context: &Context, claim: &Claim, job: &Job) -> Vec<Fault> {
    if !context.settings.job.refuse_existing_outputs {
        return Vec::new();
    }
    let taken = taken(context, claim, job);
    let refusal = |(Output { index, spot }, hidden): (Output, Option<String>)| {
        let message = match hidden {
            None => format!(
                "{} exists already, and this worker refuses to write onto it (job.existing_outputs); remove it or name \
                 another place",
                spot.url()
            ),
            Some(reason) => format!(
                "{reason}; so it may exist already, and this worker refuses to write onto it (job.existing_outputs); let the \
                 worker's user look there, or name another place"
            ),
        };
        Fault::new(format!("/outputData/{index}/fileUrl"), message)
    };
    taken.map(refusal).collect()
}

/// What is to be told about outputs that were there before: each as a sentence.
#[must_use]
pub async fn notes(context: &Context, claim: &Claim, job: &Job) -> Vec<String> {
    let missing_here = missing_here(context, claim).await;
    // The claim may have been made on another machine.
    let taken = taken(context, claim, job)
        .filter(|(output, _)| !(output.spot.is_local() && missing_here.contains(&output.index)));
    let told = taken.map(|(Output { spot, .. }, hidden)| match hidden {
        None => format!("the output {} was there before; the model may overwrite it", spot.url()),
        Some(reason) => format!(
            "the output {} is hidden from the worker and taken for one that was there before; the model may overwrite it: \
             {reason}",
            spot.url()
        ),
    });
    told.collect()
}

/// The outputs that were there, and how those are hidden of which that is only assumed.
fn taken<'a>(
    context: &Context,
    claim: &'a Claim,
    job: &Job,
) -> impl Iterator<Item = (Output, Option<String>)> + use<'a> {
    let file_system = context.judge.file_system_of(job);
    let (outputs, _) = outputs(&storage_for(context, job), job, file_system.as_deref());
    outputs.into_iter().filter(|output| claim.existing.contains(&output.index)).map(|output| {
        let hidden = claim.seen.hidden.iter().find(|(index, _)| *index == output.index);
        let reason = hidden.map(|(_, reason)| reason.clone());
        (output, reason)
    })
}

/// Removes what earlier attempts left at the outputs' places, all but those that were there before the first one. Gives
/// a sentence for each.
///
/// # Errors
/// The attempt's end, with the first that cannot be removed.
pub async fn remove_leftovers(context: &Context, claim: &Claim, job: &Job) -> Result<Vec<String>, End> {
    if claim.attempt < 2 {
        return Ok(Vec::new());
    }
    let storage = storage_for(context, job);
    let file_system = context.judge.file_system_of(job);
    let still_ours = || {
        let ends = context.lease_ends.as_ref().and_then(|ends| *ends.borrow());
        ends.is_none_or(|ends| BootTime::now() < ends)
    };
    let known = Known { existing: &claim.existing, missing_here: missing_here(context, claim).await };
    remove(&storage, job, file_system.as_deref(), &known, &still_ours).await
}

/// What is known of outputs from before.
struct Known<'a> {
    /// As in the claim of the first attempt.
    existing: &'a [u16],
    /// Which were not there when an earlier attempt began on this machine.
    missing_here: Vec<u16>,
}

async fn missing_here(context: &Context, claim: &Claim) -> Vec<u16> {
    let absences = Absences::of(&context.settings.job.directory, claim);
    tokio::task::spawn_blocking(move || absences.known()).await.unwrap_or_default()
}

/// Notes which local outputs are missing as an attempt begins, for those that may come after it.
pub async fn note_absences(context: &Context, claim: &Claim, job: &Job) {
    if context.lease_ends.is_none() {
        // Nothing comes after an attempt that no broker brought.
        return;
    }
    let file_system = context.judge.file_system_of(job);
    let (outputs, _) = outputs(&storage_for(context, job), job, file_system.as_deref());
    let mut missing = Vec::new();
    for Output { index, spot } in outputs.into_iter().filter(|output| output.spot.is_local()) {
        let found = spot.look(Instant::now() + storage::PATIENCE).await;
        if matches!(found, Ok(None) | Err(StorageError::NoFolder { .. } | StorageError::NotThere { .. })) {
            missing.push(index);
        }
    }
    if missing.is_empty() {
        return;
    }
    let absences = Absences::of(&context.settings.job.directory, claim);
    let noted = tokio::task::spawn_blocking(move || absences.note(&missing)).await;
    if let Err(error) = noted.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        tracing::warn!(job_id = %claim.job, %error, "what this attempt leaves will not be removed before another one");
    }
}

/// Forgets what was noted of a job that is over.
pub fn forget(context: &Context, claim: &Claim) {
    let absences = Absences::of(&context.settings.job.directory, claim);
    tokio::task::spawn_blocking(move || absences.forget());
}

async fn remove(
    storage: &Storage,
    job: &Job,
    file_system: Option<&str>,
    known: &Known<'_>,
    still_ours: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<String>, End> {
    let mut told = Vec::new();
    let existing = known.existing;
    let is_ours = |output: &Output| {
        // Of what is local the claim says nothing: it may have been made on another machine.
        output.spot.is_local() || existing.contains(&LOOKED_ELSEWHERE) && !existing.contains(&output.index)
    };
    let (outputs, _) = outputs(storage, job, file_system);
    let outputs: Vec<Output> = outputs.into_iter().filter(is_ours).collect();
    if outputs.is_empty() {
        return Ok(told);
    }
    let read = inputs::spots(storage, job, file_system);
    for Output { spot, index } in outputs {
        let deadline = Instant::now() + storage::PATIENCE;
        let unremovable = |error: StorageError| {
            let class = if spot.is_local() { FailureClass::Staging } else { FailureClass::Infrastructure };
            failed(class, format!("what an earlier attempt left cannot be removed: {error}"))
        };
        match spot.look(deadline).await {
            Ok(None) | Err(StorageError::NoFolder { .. } | StorageError::NotThere { .. }) => continue,
            Ok(Some(_)) => {}
            Err(error) => return Err(unremovable(error)),
        }
        if spot.is_local() && !known.missing_here.contains(&index) {
            if existing.contains(&index) {
                // That is told already.
                continue;
            }
            told.push(format!(
                "{} is left as it is, since this machine does not know that an earlier attempt of the job left it; the model may \
                 overwrite it",
                spot.url()
            ));
            continue;
        }
        if let Some(input) = held_by(&spot, &read).await {
            told.push(format!("{} is left as it is, since the job reads {input} there", spot.url()));
            continue;
        }
        // What lies there once another worker may have the job may be that worker's.
        if !still_ours() {
            return Err(End::Interrupted);
        }
        spot.remove().await.map_err(unremovable)?;
        told.push(format!("removed {}, which an earlier attempt had left", spot.url()));
    }
    Ok(told)
}

/// Which of the files that the job reads is this one, or lies below it.
async fn held_by(spot: &Spot, read: &[Spot]) -> Option<String> {
    let (spot, read) = (spot.clone(), read.to_vec());
    let found = tokio::task::spawn_blocking(move || {
        read.iter().find(|input| spot.holds(input)).map(|input| input.url().to_owned())
    });
    // What cannot be told is taken for the worst.
    found.await.unwrap_or_else(|error| Some(format!("something ({error})")))
}

fn failed(class: FailureClass, words: String) -> End {
    End::Failed { failure: Box::new(plain(class, words)), may_pass: true }
}

/// Where the job's outputs lie, as far as that can be looked at from here.
pub(super) fn spots(storage: &Storage, job: &Job, file_system: Option<&str>) -> Vec<Spot> {
    outputs(storage, job, file_system).0.into_iter().map(|output| output.spot).collect()
}

/// Where the job's outputs lie that can be looked at from here, and the indices of those that cannot.
fn outputs(storage: &Storage, job: &Job, file_system: Option<&str>) -> (Vec<Output>, Vec<u16>) {
    let mut spots = storage.spots(file_system);
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for (index, url) in urls(job) {
        match spots.find(url) {
            Ok(spot) => known.push(Output { index, spot }),
            Err(_) => unknown.push(index),
        }
    }
    (known, unknown)
}

/// Where the job's external outputs lie, as it says. A relative path lies in a working directory, which is new each time.
fn urls(job: &Job) -> impl Iterator<Item = (u16, &str)> {
    // No job of the size that a worker takes has as many outputs as this leaves out.
    job.outputs().iter().zip(0..UNSEEN).filter_map(|(output, index)| {
        if AssetType::of(output) != Some(AssetType::ExternalFile) {
            return None;
        }
        let url = output.get("fileUrl")?.as_str()?;
        (url.starts_with('/') || url.contains(':')).then_some((index, url))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(outputs: &[&str], inputs: &[&str]) -> Job {
        let assets = |urls: &[&str]| -> Vec<Value> {
            let asset = |url: &&str| json!({"assetType": "EXTERNAL_FILE", "name": "o", "fileUrl": url, "fileFormat": "CSV"});
            urls.iter().map(asset).collect()
        };
        let document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB", "outputData": assets(outputs), "inputData": assets(inputs),
            "model": {"storedModel": {"modelAssets": [
                {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"}]}}
        });
        Job::read(document.to_string().as_bytes(), None).unwrap()
    }

    async fn existing(job: &Job) -> Vec<u16> {
        let deadline = Instant::now() + storage::PATIENCE;
        look_at(&Storage::default(), job, None, true, deadline).await.existing
    }

    async fn removed(job: &Job, existing: &[u16]) -> Vec<String> {
        // The claim was made on this machine.
        let missing_here = (0..9).filter(|index| !existing.contains(index)).collect();
        let known = Known { existing, missing_here };
        remove(&Storage::default(), job, None, &known, &|| true).await.unwrap()
    }

    #[tokio::test]
    async fn what_was_there_before_the_first_attempt_is_never_touched() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).display().to_string();
        let link = format!("file://{}", path("link"));
        let job = job(&[&path("old"), &path("new"), &link, "relative/x", "/"], &[]);
        std::fs::create_dir(path("old")).unwrap();
        std::fs::write(path("old") + "/part", "x").unwrap();
        let existing = existing(&job).await;
        // The root is no place that is looked at, and counts as one that was there.
        assert_eq!(existing, [0, 4]);
        // The first attempt writes them all, and dies.
        std::fs::create_dir(path("new")).unwrap();
        std::fs::write(path("new") + "/part", "x").unwrap();
        std::os::unix::fs::symlink(path("old"), path("link")).unwrap();
        let told = removed(&job, &existing).await;
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(place.path().join("old/part").exists());
        assert!(!place.path().join("new").exists() && place.path().join("link").symlink_metadata().is_err());
        assert_eq!(removed(&job, &existing).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn nothing_is_removed_in_which_the_job_reads_something() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).display().to_string();
        std::fs::create_dir_all(path("real/in")).unwrap();
        std::os::unix::fs::symlink(path("real"), path("link")).unwrap();
        std::fs::create_dir(path("plain")).unwrap();
        // Steps up, links and patterns all lead there.
        for input in ["link/in", "plain/../real/in", "real/*.csv", "a.csv,real/in"] {
            let input = input.split(',').map(&path).collect::<Vec<_>>().join(",");
            let told = removed(&job(&[&path("real"), &path("plain")], &[&input]), &[1]).await;
            assert!(told[0].contains("is left as it is, since the job reads"), "{input}: {told:?}");
            assert!(place.path().join("real/in").exists(), "{input}");
        }
    }

    #[tokio::test]
    async fn nothing_elsewhere_is_removed_for_a_claim_that_did_not_look_there() {
        // Nothing listens there: a question would fail.
        let job = job(&["hdfs://127.0.0.1:1/a", "gs://bucket/a"], &[]);
        for existing in [&[][..], &[UNSEEN], &[LOOKED_ELSEWHERE, 0]] {
            assert_eq!(removed(&job, existing).await, Vec::<String>::new(), "{existing:?}");
        }
        let asked = look_at(&Storage::default(), &job, None, false, Instant::now()).await;
        assert_eq!(asked, Seen { existing: vec![1], ..Seen::default() });
    }

    #[tokio::test]
    async fn a_file_system_that_does_not_answer_makes_a_claim_that_runs_nothing() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = tempfile::tempdir().unwrap();
        let there = place.path().display().to_string();
        let url = format!("hdfs://{}/a", silent.local_addr().unwrap());
        let job = job(&[&there, &url], &[]);
        let deadline = Instant::now() + std::time::Duration::from_millis(300);
        let seen = look_at(&Storage::default(), &job, None, true, deadline).await;
        assert_eq!(seen.existing, [0, 1, UNSEEN]);
        let words = seen.unseen.unwrap();
        assert_eq!(words, format!("{UNTOLD}: {url}: no answer in time"));
    }

    #[tokio::test]
    async fn what_this_machine_did_not_find_missing_is_nobodys_to_remove() {
        let place = tempfile::tempdir().unwrap();
        let [ours, other] = ["ours", "other"].map(|name| place.path().join(name));
        for file in [&ours, &other] {
            std::fs::write(file, "x").unwrap();
        }
        let job = job(&[&ours.display().to_string(), &other.display().to_string()], &[]);
        // The first attempt was on another machine, on which neither was there, or both were.
        for existing in [&[][..], &[0, 1]] {
            std::fs::write(&ours, "x").unwrap();
            let known = Known { existing, missing_here: vec![0] };
            let told = remove(&Storage::default(), &job, None, &known, &|| true).await.unwrap();
            assert!(!ours.exists() && other.exists());
            let unknown =
                told.iter().filter(|told| told.contains("since this machine does not know")).count();
            assert_eq!(unknown, usize::from(existing.is_empty()), "{told:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_removed_once_another_worker_may_have_the_job() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("left");
        std::fs::write(&file, "x").unwrap();
        let job = job(&[&file.display().to_string()], &[]);
        let known = Known { existing: &[], missing_here: vec![0] };
        let end = remove(&Storage::default(), &job, None, &known, &|| false).await;
        assert!(matches!(end, Err(End::Interrupted)) && file.exists());
    }
}
