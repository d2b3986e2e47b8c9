//! Logs of a container in the place to which YARN moves those of applications that are over: HDFS as a rule, or whatever
//! `yarn.nodemanager.remote-app-log-dir` names.
//!
//! There is one file for all containers of an application on a node, or one for each time that they were moved, when that
//! is done while they run. Where it is depends on the version:
//!
//! ```text
//! <dir>/<user>/bucket-<suffix>-tfile/<last four digits of the id>/<id>/<node>_<port>    since 3.3
//! <dir>/<user>/<suffix>-tfile/<id>/<node>_<port>                                        3.1 and 3.2
//! <dir>/<user>/<suffix>/<id>/<node>_<port>                                              before
//! ```
//!
//! A user may write what he likes into his own folder there: see [`tfile`](super::tfile) for what is believed of it.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::resource_manager::{LogAggregation, LogReport, ResourceManager};
use super::{
    CONTAINER_ERROR, CONTAINER_OUTPUT, CONTAINER_PRELAUNCH, Coming, Container, DriverLog, Keep, Kept,
    Outcome, STANDARD_ERROR, STANDARD_OUTPUT, Source, read_with, sequence_number, tfile,
};
use crate::hadoop::Configuration;
use crate::storage::{Actor, Place, Storage, StorageError};

/// The pause between two looks at what is on its way.
const PAUSE: Duration = Duration::from_secs(1);
/// How many files of one application are looked through for those of a node.
const MOST_FILES: usize = 20_000;

/// What is looked for.
pub(super) struct Look<'a> {
    pub(super) resource_manager: &'a ResourceManager,
    /// The folder with Hadoop's configuration.
    pub(super) configuration: &'a Path,
    /// As whom it is looked for.
    pub(super) actor: &'a Actor,
    pub(super) container: &'a Container,
    pub(super) keep: &'a Keep,
}

/// What came of one look.
enum Seen {
    /// All that was missing.
    All,
    /// What there is, and no more will come; with the reason.
    NoMore(String),
    /// Nothing is there, or not all yet.
    NotYet,
}

impl Look<'_> {
    /// Fills in what is missing of `log`, or adds why it cannot be. Logs on their way are waited for until `waited_for`.
    pub(super) async fn complete(&self, log: &mut DriverLog, waited_for: Instant, deadline: Instant) {
        let Err(reason) = self.search(log, waited_for, deadline).await else { return };
        for outcome in [&mut log.output, &mut log.error] {
            match outcome {
                Outcome::Missing(told) | Outcome::Kept(Kept { broken_off: Some(told), .. }) => {
                    *told = format!("{told}; {reason}");
                }
                Outcome::Kept(_) => {}
            }
        }
    }

    async fn search(
        &self,
        log: &mut DriverLog,
        waited_for: Instant,
        deadline: Instant,
    ) -> Result<(), String> {
        let configuration = Configuration::read(self.configuration, &["core-site.xml", "yarn-site.xml"])
            .map_err(|error| error.to_string())?;
        let enabled = configuration.get("yarn.log-aggregation-enable").as_deref() == Some("true");
        let is_aggregated = match self.container.report.log_aggregation_status {
            None => enabled,
            Some(status) => status != LogAggregation::Disabled,
        };
        if !is_aggregated {
            return Err("this cluster does not aggregate logs".to_owned());
        }
        let folders = self.folders(&configuration)?;
        let storage = Storage::of_hadoop(self.configuration).acting_as(self.actor.clone());
        let mut report = self.container.report.clone();
        loop {
            // This was known before the look, so that nothing can slip in between.
            let may_come = may_come(&report) && Instant::now() < waited_for;
            let nothing = match self.look(&storage, &folders, log, may_come, deadline).await {
                Ok(Seen::All) => return Ok(()),
                Ok(Seen::NoMore(reason)) => return Err(reason),
                Ok(Seen::NotYet) => format!("nothing is in {} for its node", folders[0]),
                Err(reason) => reason,
            };
            if !may_come {
                return Err(nothing);
            }
            sleep_until(waited_for.min(Instant::now() + PAUSE)).await;
            // One that cannot be asked knows nothing else.
            if let Ok(Ok(Some(now))) =
                timeout_at(waited_for, self.resource_manager.logs(&self.container.application)).await
            {
                report = now;
            }
        }
    }

    /// The folders that may have the application's logs, those of later versions first.
    fn folders(&self, configuration: &Configuration) -> Result<Vec<String>, String> {
        let Container { application, report: LogReport { user, .. }, .. } = self.container;
        let is_name = !matches!(user.as_str(), "" | "." | "..")
            && !user.chars().any(|c| c == '/' || c == ':' || c.is_control());
        if !is_name {
            return Err("its user has a name that no folder can have".to_owned());
        }
        let of =
            |name: &str, otherwise: &str| configuration.get(name).unwrap_or_else(|| otherwise.to_owned());
        let common = of("yarn.nodemanager.remote-app-log-dir", "/tmp/logs");
        let suffix = of("yarn.nodemanager.remote-app-log-dir-suffix", "logs");
        let own = of("yarn.log-aggregation.TFile.remote-app-log-dir", &common);
        let own_suffix =
            of("yarn.log-aggregation.TFile.remote-app-log-dir-suffix", &format!("{suffix}-tfile"));
        let bucket = sequence_number(application).unwrap_or_default() % 10_000;
        let (common, own) = (common.trim_end_matches('/'), own.trim_end_matches('/'));
        Ok(vec![
            format!("{own}/{user}/bucket-{own_suffix}/{bucket:04}/{application}"),
            format!("{own}/{user}/{own_suffix}/{application}"),
            format!("{common}/{user}/{suffix}/{application}"),
        ])
    }

    /// Reads what is there by now; but not while `may_come` says that there may be more of it.
    async fn look(
        &self,
        storage: &Storage,
        folders: &[String],
        log: &mut DriverLog,
        may_come: bool,
        deadline: Instant,
    ) -> Result<Seen, String> {
        let node = self.container.node.replace(':', "_");
        for folder in folders {
            let place = storage.place(folder).map_err(|error| error.to_string())?;
            let listed = timeout_at(deadline, place.files(MOST_FILES))
                .await
                .map_err(|_| format!("{folder} cannot be listed before the time for it is over"))?
                .map_err(|error| error.to_string())?;
            let files: Vec<(String, u64)> = of_node(listed, &node);
            // Files with a time in their names were written while it ran, and the last of them when it was over.
            let is_final = !may_come || files.iter().any(|(name, _)| *name == node);
            if files.is_empty() || !is_final {
                continue;
            }
            let mut reading = Reading::new(self, log);
            let mut read = Ok(());
            for (name, size) in &files {
                let file = place.child(name).map_err(|error| error.to_string())?;
                reading.source = file.url().to_owned();
                (reading, read) = reading.read(&file, *size, deadline).await?;
                if read.is_err() {
                    break;
                }
            }
            let source = reading.source.clone();
            reading.finish(log).await?;
            return Ok(match read {
                Ok(()) if log.output.is_whole() && log.error.is_whole() => Seen::All,
                Ok(()) => Seen::NoMore(format!("{source} has no more of it")),
                Err(reason) => Seen::NoMore(format!("{source} {reason}")),
            });
        }
        Ok(Seen::NotYet)
    }
}

/// Whether logs that are not there yet may still come.
fn may_come(report: &LogReport) -> bool {
    report.state.is_over()
        && !matches!(
            report.log_aggregation_status,
            Some(LogAggregation::Succeeded | LogAggregation::Failed | LogAggregation::TimeOut)
        )
}

/// Of the files of an application those of a node, in the order in which they were written.
fn of_node(files: Vec<(String, u64)>, node: &str) -> Vec<(String, u64)> {
    let written = |name: &str| {
        let rest = name.strip_prefix(node)?;
        if rest.is_empty() { Some(0) } else { rest.strip_prefix('_')?.parse::<u64>().ok() }
    };
    let of_node = files.into_iter().filter_map(|(name, size)| Some((written(&name)?, name, size)));
    let mut of_node: Vec<_> = of_node.collect();
    of_node.sort();
    of_node.into_iter().map(|(_, name, size)| (name, size)).collect()
}

/// A file of the container that is wanted.
struct Wanted {
    /// Its name there and here.
    name: &'static str,
    to: &'static str,
    /// As far as it has come.
    coming: Option<Coming>,
    broken_off: Option<String>,
}

/// What is being read out of aggregated logs.
struct Reading {
    keep: Keep,
    container: String,
    /// The file that is read.
    source: String,
    wanted: Vec<Wanted>,
}

impl Reading {
    /// Of what `log` does not have yet.
    fn new(look: &Look<'_>, log: &DriverLog) -> Self {
        let mut names = Vec::new();
        if !log.output.is_whole() {
            names.push((CONTAINER_OUTPUT, STANDARD_OUTPUT));
        }
        if !log.error.is_whole() {
            names.extend([(CONTAINER_ERROR, STANDARD_ERROR), (CONTAINER_PRELAUNCH, STANDARD_ERROR)]);
        }
        let wanted =
            names.into_iter().map(|(name, to)| Wanted { name, to, coming: None, broken_off: None }).collect();
        Self { keep: look.keep.clone(), container: look.container.id.clone(), source: String::new(), wanted }
    }

    /// Reads one file of `size` bytes. The outer error is one after which nothing of what was read is left; the inner one
    /// completes "the file ...".
    async fn read(
        mut self,
        file: &Place,
        size: u64,
        deadline: Instant,
    ) -> Result<(Self, Result<(), String>), String> {
        let blocks = match timeout_at(deadline, blocks(file, size, &self.container)).await {
            Ok(Ok(blocks)) => blocks,
            Ok(Err(reason)) => return Ok((self, Err(reason))),
            Err(_) => return Ok((self, Err(TOO_LATE.to_owned()))),
        };
        for (block, records) in blocks {
            let pieces = match timeout_at(deadline, file.pieces(block.place.clone())).await {
                Ok(Ok(pieces)) => pieces.map(|piece| piece.map_err(|error| error.to_string())),
                Ok(Err(error)) => return Ok((self, Err(unreadable(&error)))),
                Err(_) => return Ok((self, Err(TOO_LATE.to_owned()))),
            };
            let reading = read_with(pieces, deadline, move |reader| {
                let container = self.container.clone();
                let visit =
                    &mut |name: &str, length: u64, content: &mut dyn Read| self.take(name, length, content);
                let found = tfile::read_block(&block, records, reader, &container, visit);
                (self, found.map_err(|error| error.to_string()))
            });
            let found;
            (self, found) = reading.await?;
            match found {
                Ok(true) => break,
                Ok(false) => {}
                Err(reason) => return Ok((self, Err(reason))),
            }
        }
        Ok((self, Ok(())))
    }

    /// Takes a file of the container, if it is wanted. One that was moved in parts comes in their order.
    fn take(&mut self, name: &str, length: u64, content: &mut dyn Read) -> io::Result<()> {
        let Some(wanted) = self.wanted.iter_mut().find(|wanted| wanted.name == name) else { return Ok(()) };
        let coming = match wanted.coming.take() {
            Some(coming) => coming,
            None => self.keep.begin(wanted.name, wanted.to)?,
        };
        let (came, read) = wanted.coming.insert(coming).copy(content);
        if came < length {
            let reason = read.as_ref().err().map_or_else(String::new, |error| format!(": {error}"));
            wanted.broken_off = Some(format!("{came} of {length} bytes came{reason}"));
        }
        read
    }

    /// Puts what has come where it belongs, if it is better than what `log` has.
    async fn finish(self, log: &mut DriverLog) -> Result<(), String> {
        for Wanted { name, to, coming, broken_off } in self.wanted {
            let Some(coming) = coming else { continue };
            let outcome = if to == STANDARD_OUTPUT { &mut log.output } else { &mut log.error };
            let (is_whole, is_missing) = (broken_off.is_none(), matches!(outcome, Outcome::Missing(_)));
            // What came before the standard error says nothing if it is empty, or if there is one.
            let (is_wanted, least) = match name {
                CONTAINER_PRELAUNCH => (is_missing, 1),
                _ if is_whole => (true, 0),
                _ => (is_missing, 1),
            };
            let finishing = coming.finish(move |size| is_wanted && size.produced >= least);
            if let Some(size) = finishing.await? {
                let from = Source::Aggregated(self.source.clone());
                *outcome = Outcome::Kept(Kept { from, name: name.to_owned(), size, broken_off });
            }
        }
        Ok(())
    }
}

const TOO_LATE: &str = "cannot be read before the time for it is over";

fn unreadable(error: &StorageError) -> String {
    format!("cannot be read: {error}")
}

/// The blocks of a file that may have the container. An error completes "the file ...".
async fn blocks(file: &Place, size: u64, container: &str) -> Result<Vec<(tfile::Block, u64)>, String> {
    let part = async |part| file.read_part(part).await.map_err(|error| unreadable(&error));
    let told = |error: tfile::TFileError| error.to_string();
    let trailer = part(size.saturating_sub(tfile::TRAILER)..size).await?;
    let index = part(tfile::index(size, &trailer).map_err(told)?).await?;
    let descriptions = tfile::descriptions(size, &index).map_err(told)?;
    let [blocks, records] = descriptions.both().map(|block| block.place.clone());
    let (blocks, records) = (part(blocks).await?, part(records).await?);
    tfile::data_blocks(size, &descriptions, [&blocks, &records], container).map_err(told)
}
