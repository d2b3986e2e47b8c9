//! Logs of a container that are still where it wrote them, by the REST interface of that node's NodeManager.
//!
//! The shapes are those of "NodeManager REST APIs" of Hadoop 3 (`/ws/v1/node/containers/{id}/logs/{file}`), and what a
//! real one says:
//!
//! ```text
//! Container: container_... on host:45454
//! ...
//! LogType:stderr
//! LogLength:<how long the whole file is>
//! LogContents:
//! <that many bytes, or as many as were asked for>End of LogType:stderr...
//! ```
//!
//! `size=n` asks for the first n bytes and `size=-n` for the last, so that of a log of gigabytes no more than what is kept
//! goes over the wire. Whoever answers in another shape, or points elsewhere, has no log to give.

use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

use reqwest::header::LOCATION;
use reqwest::{Response, StatusCode, Url};
use tokio::time::{Instant, timeout_at};

use super::super::resource_manager::{Refusal, ResourceManager, one_line, with_causes};
use super::{
    BUFFER, CONTAINER_ERROR, CONTAINER_OUTPUT, CONTAINER_PRELAUNCH, Coming, Container, DriverLog, Keep, Kept,
    Outcome, Pieces, STANDARD_ERROR, STANDARD_OUTPUT, Source, read_with,
};

/// How long a NodeManager may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest text that stands before a log, in bytes; a real one has some 300.
const LONGEST_HEAD: u64 = 8 << 10;
/// The largest refusal that is read, in bytes.
const LARGEST_REFUSAL: usize = 64 << 10;
/// What stands behind a log.
const END: &[u8] = b"End of LogType:";

/// Why there is no log.
enum Miss {
    /// The NodeManager says that it has none of this name: it has others, perhaps.
    NotThere(String),
    /// It has none, and is not asked for another.
    Away(String),
}

/// What it has of both logs. Where it has none, the reason is given.
pub(super) async fn fetch(
    resource_manager: &ResourceManager,
    container: &Container,
    keep: &Keep,
    deadline: Instant,
) -> DriverLog {
    let told = |reason: &str| Outcome::Missing(format!("{}: {reason}", container.id));
    let node = match Node::new(resource_manager, container, keep, deadline) {
        Ok(node) => node,
        Err(reason) => return DriverLog { output: told(&reason), error: told(&reason) },
    };
    let output = match node.log(CONTAINER_OUTPUT, STANDARD_OUTPUT).await {
        Ok(kept) => Outcome::Kept(kept),
        Err(Miss::NotThere(reason)) => told(&reason),
        Err(Miss::Away(reason)) => return DriverLog { output: told(&reason), error: told(&reason) },
    };
    let error = match node.log(CONTAINER_ERROR, STANDARD_ERROR).await {
        Ok(kept) => Outcome::Kept(kept),
        Err(Miss::Away(reason)) => told(&reason),
        Err(Miss::NotThere(reason)) => match node.log(CONTAINER_PRELAUNCH, STANDARD_ERROR).await {
            Ok(kept) if kept.size.produced > 0 => Outcome::Kept(kept),
            Ok(_) | Err(_) => told(&reason),
        },
    };
    DriverLog { output, error }
}

/// The NodeManager that has a container.
struct Node<'a> {
    resource_manager: &'a ResourceManager,
    /// As it is named.
    address: String,
    /// Where the container's logs are.
    logs: Url,
    keep: &'a Keep,
    deadline: Instant,
}

impl<'a> Node<'a> {
    fn new(
        resource_manager: &'a ResourceManager,
        container: &Container,
        keep: &'a Keep,
        deadline: Instant,
    ) -> Result<Self, String> {
        let bad = || format!("the ResourceManager names no address of its node, but {:?}", container.address);
        let mut url = Url::parse(&container.address).map_err(|_| bad())?;
        let is_plain = url.has_host()
            && url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !is_plain {
            return Err(bad());
        }
        let address = url.as_str().trim_end_matches('/').to_owned();
        url.set_path(&format!("ws/v1/node/containers/{}/logs/", container.id));
        Ok(Self { resource_manager, address, logs: url, keep, deadline })
    }

    /// Brings the file `name` of the container here, as `to`.
    async fn log(&self, name: &'static str, to: &'static str) -> Result<Kept, Miss> {
        let most = self.keep.bytes;
        let answer = self.ask(name, i64::try_from(most).unwrap_or(i64::MAX)).await?;
        let keep = self.keep.clone();
        let reading = self.read(answer, move |reader| {
            let length = head(reader, name)?;
            let mut coming = keep.begin(name, to).map_err(|error| error.to_string())?;
            // Of one that is too long the second half of what is kept is its end.
            let wanted = if length > most { most / 2 } else { length };
            let broken_off = content(reader, wanted, length <= most, &mut coming);
            Ok((coming, length, broken_off))
        });
        let (mut coming, length, mut broken_off) = reading.await.map_err(Miss::Away)?;
        if broken_off.is_none() && length > most {
            (coming, broken_off) = self.tail(coming, name).await?;
        }
        let from = Source::NodeManager(self.address.clone());
        let is_whole = broken_off.is_none();
        let finishing = coming.finish(move |size| is_whole || size.produced > 0);
        match finishing.await.map_err(Miss::Away)? {
            Some(size) => Ok(Kept { from, name: name.to_owned(), size, broken_off }),
            None => Err(Miss::Away(broken_off.unwrap_or_default())),
        }
    }

    /// The last half of what is kept of a log that is longer, behind the first. Says what went wrong, if something did.
    async fn tail(&self, mut coming: Coming, name: &'static str) -> Result<(Coming, Option<String>), Miss> {
        let most = self.keep.bytes;
        let wanted = most - most / 2;
        let answer = match self.ask(name, i64::try_from(wanted).unwrap_or(i64::MAX).saturating_neg()).await {
            Ok(answer) => answer,
            Err(Miss::NotThere(reason) | Miss::Away(reason)) => return Ok((coming, Some(reason))),
        };
        let reading = self.read(answer, move |reader| {
            let broken_off = match head(reader, name) {
                Err(reason) => Some(reason),
                // It may have grown meanwhile.
                Ok(length) if length >= most => {
                    coming.log.pass_over(length - most);
                    content(reader, wanted, true, &mut coming)
                }
                Ok(_) => Some("it has become shorter while it was read".to_owned()),
            };
            Ok((coming, broken_off))
        });
        reading.await.map_err(Miss::Away)
    }

    /// Asks for the first bytes of a log, or for the last when there are to be less than none.
    async fn ask(&self, name: &str, size: i64) -> Result<Response, Miss> {
        let address = &self.address;
        let mut url = self.logs.clone();
        url.set_path(&format!("{}{name}", self.logs.path()));
        url.query_pairs_mut().append_pair("size", &size.to_string());
        let now = Instant::now();
        let bound = self.deadline.saturating_duration_since(now) + ANSWER;
        let asking = self.resource_manager.get_elsewhere(url, bound).send();
        let response = timeout_at(self.deadline.min(now + ANSWER), asking)
            .await
            .map_err(|_| Miss::Away(format!("{address} has not answered in time")))?
            .map_err(|error| Miss::Away(format!("{address} cannot be reached: {}", with_causes(&error))))?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        if status == StatusCode::NOT_FOUND {
            return Err(Miss::NotThere(format!("{address} has no {name} of it")));
        }
        if status.is_redirection() {
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
            let to = to.and_then(|to| Url::parse(to).ok());
            let host = to.as_ref().and_then(Url::host_str).unwrap_or("another place");
            return Err(Miss::Away(format!(
                "{address} has it no more and points to {}, which is not asked",
                one_line(host)
            )));
        }
        let refusal = timeout_at(self.deadline.min(Instant::now() + ANSWER), refusal(response)).await;
        let words = refusal.ok().flatten().map_or_else(String::new, |words| format!(": {words}"));
        Err(Miss::Away(format!("{address} refuses it with HTTP status {}{words}", status.as_u16())))
    }

    /// Has an answer read. An error says who it is about.
    async fn read<T: Send + 'static>(
        &self,
        answer: Response,
        reader: impl FnOnce(&mut BufReader<&mut Pieces>) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let pieces = futures_util::stream::unfold(Some(answer), |answer| async move {
            let mut answer = answer?;
            match answer.chunk().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(answer))),
                Ok(None) => None,
                Err(error) => Some((Err(with_causes(&error)), None)),
            }
        });
        let read = read_with(pieces, self.deadline, move |pieces| {
            reader(&mut BufReader::with_capacity(BUFFER, pieces))
        });
        read.await.and_then(|read| read).map_err(|reason| format!("{}: {reason}", self.address))
    }
}

/// Why a NodeManager refuses, in its own words, when it says that as Hadoop does. Anything else may be anything.
async fn refusal(mut response: Response) -> Option<String> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.ok()? {
        if bytes.len() + piece.len() > LARGEST_REFUSAL {
            return None;
        }
        bytes.extend_from_slice(&piece);
    }
    let refusal: Refusal = serde_json::from_slice(&bytes).ok()?;
    Some(one_line(&format!("{}: {}", refusal.exception.exception, refusal.exception.message)))
}

/// Reads what stands before a log, and gives how long the whole log is.
fn head(reader: &mut impl BufRead, name: &str) -> Result<u64, String> {
    let no_log = || "it answers with what is no log".to_owned();
    let mut head = reader.by_ref().take(LONGEST_HEAD);
    let (mut length, mut is_ours) = (None, false);
    let mut came = 0;
    loop {
        let mut line = Vec::new();
        came += head.read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
        if line.pop() != Some(b'\n') {
            return Err(if came == 0 { "it answers with nothing".to_owned() } else { no_log() });
        }
        let line = String::from_utf8_lossy(&line);
        if let Some(of) = line.strip_prefix("LogType:") {
            is_ours = of.trim() == name;
        } else if let Some(told) = line.strip_prefix("LogLength:") {
            length = told.trim().parse().ok();
        } else if line.trim_end() == "LogContents:" {
            return length.filter(|_| is_ours).ok_or_else(no_log);
        }
    }
}

/// Reads as much of a log as is `wanted`; `to_its_end` says that nothing of it follows then. Says what went wrong, if
/// something did.
fn content(reader: &mut impl BufRead, wanted: u64, to_its_end: bool, coming: &mut Coming) -> Option<String> {
    let (came, read) = coming.copy(&mut reader.by_ref().take(wanted));
    match read {
        Err(error) => return Some(format!("{came} of {wanted} bytes came: {error}")),
        Ok(()) if came < wanted => return Some(format!("{came} of {wanted} bytes came")),
        Ok(()) => {}
    }
    // All of it is there; what follows is only looked at to see that it does not go on.
    let mut behind = Vec::new();
    let _ = reader.by_ref().take(END.len() as u64 + 1).read_to_end(&mut behind);
    let is_end = behind.is_empty() || behind.strip_prefix(b"\n").unwrap_or(&behind).starts_with(END);
    (to_its_end && !is_end).then(|| format!("more came than the {wanted} bytes that it told of"))
}
