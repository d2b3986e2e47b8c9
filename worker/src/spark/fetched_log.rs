//! A log that comes from elsewhere: through a reader into a file of bounded size, never held in memory.
//!
//! What others say decides neither where a file is written nor for how long they are listened to.
//!
//! This module must not know where a log comes from.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::guard::LogSize;
use super::guard::log::Log;

/// The longest pause between two pieces of a log.
pub(super) const PIECE: Duration = Duration::from_secs(15);
/// How long this machine's own disk may take for what is left, once no more comes.
pub(super) const DISK: Duration = Duration::from_secs(10);
pub(super) const DISK_IS_SLOW: &str = "this machine's disk does not take it in time";
/// How much is written at a time, in bytes.
pub(super) const BUFFER: usize = 64 << 10;

/// Where logs are put, and how much of them.
#[derive(Debug, Clone)]
pub(super) struct Keep {
    /// The folder.
    pub(super) directory: PathBuf,
    /// Of each.
    pub(super) bytes: u64,
}

impl Keep {
    /// Begins a log of the container's file `name` that becomes the file `to` once it is finished. Both are names of this
    /// module's own, whatever others say.
    pub(super) fn begin(&self, name: &'static str, to: &'static str) -> io::Result<Coming> {
        let own = self.directory.join(format!("{name}.coming"));
        // What an earlier call has left, or a link that somebody has put there. What cannot be removed fails below.
        for left in [own.clone(), self.directory.join(format!("{name}.coming.tail"))] {
            let _ = fs::remove_file(left);
        }
        let log = Log::create(&own, self.bytes)
            .map_err(|error| io::Error::other(format!("{} cannot be written: {error}", own.display())))?;
        Ok(Coming { log, own, path: self.directory.join(to) })
    }
}

/// A log that is being written, under a name of its own.
pub(super) struct Coming {
    /// What writes it.
    pub(super) log: Log,
    own: PathBuf,
    path: PathBuf,
}

impl Coming {
    /// Copies what the reader has, to its end; gives how much that was, and what went wrong with the reader.
    pub(super) fn copy(&mut self, reader: &mut dyn Read) -> (u64, io::Result<()>) {
        let mut buffer = vec![0; BUFFER];
        let mut came = 0;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return (came, Ok(())),
                Ok(count) => {
                    self.log.write(&buffer[..count]);
                    came += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (came, Err(error)),
            }
        }
    }

    /// Puts it in its place if it is wanted, and else leaves nothing of it and gives nothing.
    pub(super) async fn finish(
        self,
        is_wanted: impl FnOnce(&LogSize) -> bool + Send + 'static,
    ) -> Result<Option<LogSize>, String> {
        let Self { log, own, path } = self;
        let finishing = tokio::task::spawn_blocking(move || {
            let size = log.finish();
            if !is_wanted(&size) {
                // What cannot be removed is in the way of the next one, which says so.
                let _ = fs::remove_file(&own);
                return Ok(None);
            }
            match fs::rename(&own, &path) {
                // An empty log is no file, and neither is one of which nothing could be written.
                Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err((path, error)),
                    _ => Ok(Some(size)),
                },
                Err(error) => Err((path, error)),
                Ok(()) => Ok(Some(size)),
            }
        });
        match tokio::time::timeout(DISK, finishing).await {
            Ok(Ok(Ok(size))) => Ok(size),
            Ok(Ok(Err((path, error)))) => Err(format!("{} cannot be written: {error}", path.display())),
            Ok(Err(error)) => Err(format!("it could not be written: {error}")),
            Err(_) => Err(DISK_IS_SLOW.to_owned()),
        }
    }
}

/// Has `reader` read, on a thread that may wait, what comes from `pieces`, until the deadline. What `reader` gives back is
/// given; an error is told when it does not come back.
pub(super) async fn read_with<T: Send + 'static>(
    pieces: impl Stream<Item = Result<Bytes, String>>,
    deadline: Instant,
    reader: impl FnOnce(&mut Pieces) -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel(2);
    let reading = tokio::task::spawn_blocking(move || {
        reader(&mut Pieces { receiver, piece: Bytes::new(), error: None })
    });
    let mut pieces = std::pin::pin!(pieces);
    loop {
        let now = Instant::now();
        let next = tokio::select! {
            biased;
            // It has read what it wanted.
            () = sender.closed() => break,
            next = timeout_at(deadline.min(now + PIECE), pieces.next()) => next,
        };
        let piece = match next {
            Ok(None) => break,
            Ok(Some(piece)) => piece,
            Err(_) if Instant::now() >= deadline => Err("the time for it is over".to_owned()),
            Err(_) => Err(format!("nothing more came for {} s", PIECE.as_secs())),
        };
        let is_last = piece.is_err();
        let sent = timeout_at(deadline.max(now) + DISK, sender.send(piece)).await;
        if is_last || !matches!(sent, Ok(Ok(()))) {
            break;
        }
    }
    drop(sender);
    match tokio::time::timeout(DISK, reading).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(format!("it could not be read: {error}")),
        Err(_) => Err(DISK_IS_SLOW.to_owned()),
    }
}

/// What comes in pieces, as a reader; an error of theirs is one of the reader from then on.
pub(super) struct Pieces {
    receiver: mpsc::Receiver<Result<Bytes, String>>,
    piece: Bytes,
    error: Option<String>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if let Some(error) = &self.error {
                return Err(io::Error::other(error.clone()));
            }
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => self.error = Some(error),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
