//! The files that a job reads from places of its own: whether they are there, before anything is started for it.
//!
//! A file that is not there is the job's fault (`invalid`: rejected, and not tried again), as for a record model's inputs
//! and attachments: a wrong path is by far the likelier reason, whoever publishes a job is to hear of it at once and of all
//! of them, and a job that came before its data can be replayed from the dead when that has arrived. To wait for files is
//! for those who know that they will come.
//!
//! What this worker cannot know is no fault: a store that it cannot look into, a folder that is hidden from it, a path of
//! its own disk where Spark runs on other machines, a list or a pattern of which a part may be meant otherwise, or a file
//! that the job may well write first. It is told where the job fails. A file system that does not answer is the
//! infrastructure's fault, and the job is tried again.
//!
//! This module must not know how a model reads.

use futures_util::StreamExt;
use serde_json::Value;
use spark_runtime_protocol::asset::AssetType;
use spark_runtime_protocol::job::Job;
use spark_runtime_protocol::json::Fault;
use tokio::time::Instant;

use super::check::Plan;
use super::outputs::{self, AT_ONCE, some_of};
use super::{Context, attachments};
use crate::spark::policy::Master;
use crate::storage::{self, Spot, Storage, StorageError};

const INPUTS: &str = "/inputData";
const MODEL_ASSETS: &str = "/model/storedModel/modelAssets";

/// What was found of the files that a job reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// A fault for each that is not there.
    pub missing: Vec<Fault>,
    /// Why nobody can tell of some, for now: the file system does not answer.
    pub unseen: Option<String>,
    /// What this worker cannot know of others, each as a sentence.
    pub doubts: Vec<String>,
}

/// A file that a job reads, or a folder.
#[derive(Debug)]
struct Read {
    /// Where it stands in the job.
    pointer: String,
    /// It, or each of those that a list with commas may name.
    spots: Vec<Spot>,
    /// What the whole list would be, were it one name with commas in it.
    whole: Option<Spot>,
}

/// What is found of one file.
enum Found {
    There,
    Missing(String),
    Unseen(String),
    Doubtful(String),
}

/// Which files a job is asked about, and how.
struct Question<'a> {
    job: &'a Job,
    /// Of a record model, the inputs that it uses: what lies on this machine was looked for when its contract was settled, and
    /// its attachments are when they are fetched.
    used: Option<Vec<usize>>,
    /// Spark reads this machine's own files, and no other's.
    is_local: bool,
    file_system: Option<String>,
}

/// Looks for everything that the job reads and nobody has looked for yet. `is_faulty` is whether the job is rejected in any
/// case; then all that is missing is named, also what else would be found missing later.
pub async fn look(context: &Context, job: &Job, plan: &Plan, is_faulty: bool) -> Seen {
    let storage = Storage::of(&context.settings).acting_as(plan.command_line.actor());
    let used = plan.contract().map(|contract| contract.inputs.iter().map(|input| input.index).collect());
    let is_local = plan.command_line.master() == Master::Local;
    let file_system = context.judge.file_system_of(job);
    let question = Question { job, used, is_local, file_system };
    let mut seen = question.ask(&storage, Instant::now() + storage::PATIENCE).await;
    if question.used.is_some() && (is_faulty || !seen.missing.is_empty()) {
        seen.missing.extend(attachments::missing(context, job).await);
    }
    seen
}

/// Everything that the job says it reads, as far as it can be looked at from here: for those who must not touch it.
pub(super) fn spots(storage: &Storage, job: &Job, file_system: Option<&str>) -> Vec<Spot> {
    let mut all = Vec::new();
    for (_, url) in urls(job, INPUTS).chain(urls(job, MODEL_ASSETS)) {
        let (read, _) = Read::of(storage, String::new(), &without_steps_up(url), file_system);
        all.extend(read.whole.into_iter().chain(read.spots));
    }
    all.into_iter().map(|spot| spot.pattern_folder().unwrap_or(spot)).collect()
}

impl Question<'_> {
    async fn ask(&self, storage: &Storage, deadline: Instant) -> Seen {
        let mut seen = Seen::default();
        let mut reads = Vec::new();
        for (list, is_input) in [(INPUTS, true), (MODEL_ASSETS, false)] {
            for (index, url) in urls(self.job, list) {
                if self.used.as_ref().is_some_and(|used| !is_input || !used.contains(&index)) {
                    continue;
                }
                let pointer = format!("{list}/{index}/fileUrl");
                let (mut read, doubts) = Read::of(storage, pointer, url, self.file_system.as_deref());
                seen.doubts.extend(doubts);
                if self.used.is_some() {
                    read.spots.retain(|spot| !spot.is_local() || spot.pattern_folder().is_some());
                }
                reads.push(read);
            }
        }
        let asking = reads.into_iter().map(|read| async move {
            let found = self.found(&read, deadline).await;
            (read, found)
        });
        let answers: Vec<_> = futures_util::stream::iter(asking).buffered(AT_ONCE).collect().await;
        let mut unseen = Vec::new();
        for (read, found) in answers {
            match found {
                Found::There => {}
                Found::Missing(reason) if self.is_written(storage, &read).await => {
                    seen.doubts.push(format!("{reason} before the job, which may write it"));
                }
                Found::Missing(reason) => seen.missing.push(Fault::new(&read.pointer, reason)),
                Found::Unseen(reason) => unseen.push(reason),
                Found::Doubtful(reason) => seen.doubts.push(reason),
            }
        }
        if !unseen.is_empty() {
            let some = some_of(&unseen);
            seen.unseen = Some(format!("nobody can tell whether the job's inputs are there: {some}"));
        }
        seen
    }

    async fn found(&self, read: &Read, deadline: Instant) -> Found {
        let mut worst = Found::There;
        for spot in &read.spots {
            match self.found_at(spot, deadline).await {
                Found::There => {}
                // What is missing is so, whatever else may come out.
                Found::Missing(reason) => {
                    let whole = match &read.whole {
                        Some(whole) => self.found_at(whole, deadline).await,
                        None => return Found::Missing(reason),
                    };
                    return if matches!(whole, Found::There) { whole } else { Found::Missing(reason) };
                }
                other => worst = other,
            }
        }
        worst
    }

    async fn found_at(&self, spot: &Spot, deadline: Instant) -> Found {
        let folder = spot.pattern_folder();
        match folder.as_ref().unwrap_or(spot).look(deadline).await {
            Ok(Some(_)) => Found::There,
            Ok(None) if spot.is_local() && !self.is_local => Found::Doubtful(format!(
                "{} is not there on the worker's machine; where Spark runs it may be",
                spot.url()
            )),
            Ok(None) if folder.is_some() => {
                Found::Missing(format!("{} is not there, nor the folder that it leads to", spot.url()))
            }
            Ok(None) => Found::Missing(format!("{} is not there", spot.url())),
            Err(error @ StorageError::NoFolder { .. }) if !spot.is_local() || self.is_local => {
                Found::Missing(error.to_string())
            }
            Err(error) if error.may_pass() => Found::Unseen(error.to_string()),
            Err(error) => Found::Doubtful(format!("an input was not looked for: {error}")),
        }
    }

    /// Whether the job itself may write it before it reads it.
    async fn is_written(&self, storage: &Storage, read: &Read) -> bool {
        let outputs = outputs::spots(storage, self.job, self.file_system.as_deref());
        let spots = read.spots.clone();
        let compared = tokio::task::spawn_blocking(move || {
            outputs.iter().any(|output| spots.iter().any(|spot| output.holds(spot)))
        });
        compared.await.unwrap_or(true)
    }
}

impl Read {
    /// What a `fileUrl` may name, and a sentence for each of it that cannot be looked at from here.
    fn of(storage: &Storage, pointer: String, url: &str, file_system: Option<&str>) -> (Self, Vec<String>) {
        let mut find = storage.spots(file_system);
        let parts = parts(url);
        let whole = if parts.len() > 1 { find.find(url).ok() } else { None };
        let mut read = Self { pointer, spots: Vec::new(), whole };
        let mut doubts = Vec::new();
        for part in parts.into_iter().filter(|part| is_whole(part)) {
            match find.find(part) {
                Ok(spot) => read.spots.push(spot),
                Err(error) => doubts.push(format!("an input was not looked for: {error}")),
            }
        }
        (read, doubts)
    }
}

/// The URLs of the external assets in a list of the job, each with its index.
fn urls<'a>(job: &'a Job, list: &str) -> impl Iterator<Item = (usize, &'a str)> {
    let assets = job.document().pointer(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    assets.iter().enumerate().filter_map(|(index, asset)| {
        let is_external = AssetType::of(asset) == Some(AssetType::ExternalFile);
        let url =
            asset.get("fileUrl").and_then(Value::as_str).filter(|url| is_external && !url.is_empty())?;
        Some((index, url))
    })
}

/// A relative path lies in the working directory, which is not there yet.
fn is_whole(url: &str) -> bool {
    url.starts_with('/') || url.contains(':')
}

/// What stands between the commas, other than those within braces: Hadoop takes a list of paths like this.
fn parts(url: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_u32);
    for (place, character) in url.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(url[start..place].trim());
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(url[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

/// The URL with its steps up taken, as Hadoop takes them.
fn without_steps_up(url: &str) -> String {
    let mut steps: Vec<&str> = Vec::new();
    for step in url.split('/') {
        match step {
            "." => {}
            ".." if steps.last().is_some_and(|last| !last.is_empty() && !last.ends_with(':')) => {
                steps.pop();
            }
            ".." => {}
            step => steps.push(step),
        }
    }
    steps.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(inputs: &[&str], assets: &[&str], outputs: &[&str]) -> Job {
        let external = |url: &&str| json!({"assetType": "EXTERNAL_FILE", "name": "n", "fileUrl": url});
        let all = |urls: &[&str]| urls.iter().map(external).collect::<Vec<_>>();
        let source = json!({"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"});
        let assets = [vec![source], all(assets)].concat();
        let document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB", "inputData": all(inputs), "outputData": all(outputs),
            "model": {"storedModel": {"modelAssets": assets}}
        });
        Job::read(document.to_string().as_bytes(), None).unwrap()
    }

    async fn seen_by(question: Question<'_>) -> Seen {
        let deadline = Instant::now() + std::time::Duration::from_millis(500);
        question.ask(&Storage::default(), deadline).await
    }

    async fn seen(job: &Job) -> Seen {
        seen_by(Question { job, used: None, is_local: true, file_system: None }).await
    }

    fn folder() -> (tempfile::TempDir, impl Fn(&str) -> String) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("parts")).unwrap();
        for name in ["a.csv", "b,c.csv", "parts/1"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let root = folder.path().display().to_string();
        (folder, move |name: &str| format!("{root}/{name}"))
    }

    #[tokio::test]
    async fn everything_that_is_missing_is_named_at_once_with_its_place_in_the_job() {
        let (_folder, path) = folder();
        let inputs =
            [path("a.csv"), path("gone.csv"), format!("file://{}", path("gone/x")), path("a.csv/below")];
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let seen = seen(&job(&inputs, &[&path("weights")], &[])).await;
        let faults: Vec<String> = seen.missing.iter().map(ToString::to_string).collect();
        let expected = [
            format!("/inputData/1/fileUrl: {} is not there", path("gone.csv")),
            format!("/inputData/2/fileUrl: file://{} is not there", path("gone/x")),
            format!(
                "/inputData/3/fileUrl: {} cannot be there: a step of its path is a file, and no folder",
                path("a.csv/below")
            ),
            format!("/model/storedModel/modelAssets/1/fileUrl: {} is not there", path("weights")),
        ];
        assert_eq!(faults, expected);
        assert_eq!((seen.unseen, seen.doubts), (None, Vec::new()));
    }

    #[tokio::test]
    async fn what_spark_takes_for_files_is_taken_for_files() {
        let (_folder, path) = folder();
        let list = format!("{},{}", path("a.csv"), path("parts"));
        for url in [path("a.csv"), path("parts/"), path("*.csv"), path("{a,d}.csv"), path("b,c.csv"), list] {
            assert_eq!(seen(&job(&[&url], &[], &[])).await, Seen::default(), "{url}");
        }
        for (url, words) in [
            (format!("{},{}", path("a.csv"), path("d.csv")), format!("{} is not there", path("d.csv"))),
            (path("no/*.csv"), format!("{} is not there, nor the folder that it leads to", path("no/*.csv"))),
        ] {
            let faults = seen(&job(&[&url], &[], &[])).await.missing;
            assert_eq!(faults[0].message, words);
        }
    }

    #[tokio::test]
    async fn what_this_worker_cannot_know_is_no_fault_and_is_told_only_where_the_job_fails() {
        let (_folder, path) = folder();
        let elsewhere = ["gs://b/x", "dbfs:/x", "jdbc:x", "s3a://b/x", "hdfs://h/a/../x", "relative/x"];
        let seen = seen(&job(&elsewhere, &[], &[])).await;
        assert_eq!((&seen.missing, seen.doubts.len()), (&Vec::new(), 5), "{seen:?}");
        assert!(seen.doubts[0].starts_with("an input was not looked for: gs://b/x begins with"), "{seen:?}");
        // Spark's executors may have other disks.
        let gone = path("gone");
        let job_elsewhere = job(&[&gone], &[], &[]);
        let question = Question { job: &job_elsewhere, used: None, is_local: false, file_system: None };
        let doubts = seen_by(question).await;
        assert_eq!(doubts.missing, []);
        assert!(doubts.doubts[0].contains("is not there on the worker's machine"), "{doubts:?}");
        // What the job itself may write comes later.
        let job = job(&[&path("out/part")], &[], &[&path("out")]);
        let own = seen_by(Question { job: &job, used: None, is_local: true, file_system: None }).await;
        assert_eq!(own.missing, []);
        assert!(own.doubts[0].ends_with("before the job, which may write it"), "{own:?}");
    }

    #[tokio::test]
    async fn a_record_models_inputs_are_asked_for_once_and_only_those_that_it_uses() {
        let (_folder, path) = folder();
        let job = job(&[&path("gone"), &path("no/*"), "gs://b/unused"], &["gs://b/w"], &[]);
        let question = Question { job: &job, used: Some(vec![0, 1]), is_local: true, file_system: None };
        let seen = seen_by(question).await;
        let pointers: Vec<&str> = seen.missing.iter().map(|fault| fault.pointer.as_str()).collect();
        assert_eq!((pointers, seen.doubts), (vec!["/inputData/1/fileUrl"], Vec::new()));
    }

    #[tokio::test]
    async fn a_file_system_that_does_not_answer_is_waited_for_only_so_long() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let system = format!("hdfs://{}", silent.local_addr().unwrap());
        let job = job(&["/a", "/b", "/c", "/d", "/e"], &[], &[]);
        let question = Question { job: &job, used: None, is_local: true, file_system: Some(system) };
        let seen = seen_by(question).await;
        assert_eq!(seen.missing, []);
        let words = "nobody can tell whether the job's inputs are there: /a: no answer in time; /b: no answer in time; /c: \
                     no answer in time; and 2 more";
        assert_eq!(seen.unseen.as_deref(), Some(words));
    }

    #[test]
    fn steps_up_are_taken_as_hadoop_takes_them() {
        for (url, expected) in [
            ("/a/../b", "/b"),
            ("/../b", "/b"),
            ("hdfs://h/a/./../b", "hdfs://h/b"),
            ("file:///a/b/../../c", "file:///c"),
        ] {
            assert_eq!(without_steps_up(url), expected, "{url}");
        }
    }
}
