//! One stream of a program's output, kept in a file of bounded size: its head and its tail.
//!
//! The first half of the limit goes to the file itself as it comes. What follows goes round and round in a second
//! file, `<path>.tail`, of the other half; at the end that is put behind the head, with one line between that says
//! how much was left out. Nothing is held in memory, and nothing here ever fails: a disk that is full costs bytes of
//! the log, which are counted, and never stops the program that writes. Most streams stay empty, so neither file is
//! made before it has a byte to hold: a log that is not there is an empty one.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};

/// What became of one stream of output. All in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSize {
    /// What the program wrote.
    pub produced: u64,
    /// What the limit of the log left out, from the middle.
    pub left_out: u64,
    /// What could not be written, most likely because the disk was full.
    pub not_written: u64,
}

/// A log that is being written.
pub(in crate::spark) struct Log {
    path: PathBuf,
    /// Absent as long as there is nothing to write.
    head: Option<File>,
    head_length: u64,
    head_limit: u64,
    tail_path: PathBuf,
    tail: Option<File>,
    /// Where the next byte of the tail goes.
    tail_position: u64,
    /// How much of the tail file holds output.
    tail_length: u64,
    tail_limit: u64,
    produced: u64,
    not_written: u64,
}

impl Log {
    /// Begins an empty log at `path`, readable by its owner alone, of about `limit` bytes. What lies there is emptied.
    ///
    /// # Errors
    /// There can be no such file.
    pub(in crate::spark) fn create(path: &Path, limit: u64) -> io::Result<Log> {
        let head = empty_old(path)?;
        let mut tail_path = OsString::from(path);
        tail_path.push(".tail");
        let head_limit = limit / 2;
        Ok(Log {
            path: path.to_owned(),
            head,
            head_length: 0,
            head_limit,
            tail_path: PathBuf::from(tail_path),
            tail: None,
            tail_position: 0,
            tail_length: 0,
            tail_limit: limit - head_limit,
            produced: 0,
            not_written: 0,
        })
    }

    /// Takes the next bytes of the stream.
    pub(in crate::spark) fn write(&mut self, bytes: &[u8]) {
        self.produced += length_of(bytes);
        let room = usize::try_from(self.head_limit - self.head_length).unwrap_or(usize::MAX);
        let (for_head, for_tail) = bytes.split_at(bytes.len().min(room));
        if !for_head.is_empty() {
            let written = match self.head() {
                Ok(head) => write_what_fits(head, for_head),
                Err(_) => 0,
            };
            self.head_length += written;
            if written < length_of(for_head) {
                // The head ends here: a gap in its middle would look like the program's own output.
                self.head_limit = self.head_length;
                self.not_written += length_of(for_head) - written;
            }
        }
        if !for_tail.is_empty() {
            self.write_tail(for_tail);
        }
    }

    /// Counts the next bytes of a stream that nobody has to hand over, because the limit would leave them out anyway.
    #[cfg(feature = "yarn")]
    pub(in crate::spark) fn pass_over(&mut self, count: u64) {
        self.produced += count;
    }

    fn head(&mut self) -> io::Result<&mut File> {
        let head = match self.head.take() {
            Some(head) => head,
            None => open_new(&self.path)?,
        };
        Ok(self.head.insert(head))
    }

    fn write_tail(&mut self, bytes: &[u8]) {
        // Of more than one round only the last one would be left.
        let surplus = bytes.len().saturating_sub(usize::try_from(self.tail_limit).unwrap_or(usize::MAX));
        let mut bytes = &bytes[surplus..];
        while !bytes.is_empty() {
            let room = usize::try_from(self.tail_limit - self.tail_position).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            let written = self.write_tail_piece(now);
            self.tail_position += written;
            self.tail_length = self.tail_length.max(self.tail_position);
            if written < length_of(now) {
                self.not_written += length_of(now) - written + length_of(later);
                if self.tail_length > 0 {
                    // No room for a longer tail: go round in what there is, so that the last output is kept.
                    self.tail_limit = self.tail_length;
                }
                bytes = &[];
            } else {
                bytes = later;
            }
            if self.tail_position >= self.tail_limit {
                self.tail_position = 0;
            }
        }
    }

    /// Writes at the present position without going round; gives how many bytes are on the disk.
    fn write_tail_piece(&mut self, bytes: &[u8]) -> u64 {
        if self.tail.is_none() {
            self.tail = open_new(&self.tail_path).ok();
        }
        let Some(tail) = &self.tail else { return 0 };
        let mut written = 0;
        while written < bytes.len() {
            let position = self.tail_position + length_of(&bytes[..written]);
            match tail.write_at(&bytes[written..], position) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        length_of(&bytes[..written])
    }

    /// Puts the tail behind the head. When that does not work (the disk is full) the tail's own file stays.
    pub(in crate::spark) fn finish(mut self) -> LogSize {
        let kept = self.head_length + self.tail_length;
        let left_out = self.produced.saturating_sub(kept + self.not_written);
        let size = LogSize { produced: self.produced, left_out, not_written: self.not_written };
        let composed = self.compose(&size);
        if composed.is_ok() && self.tail.is_some() {
            // Nothing is lost if it stays: it is a copy.
            let _ = fs::remove_file(&self.tail_path);
        }
        size
    }

    fn compose(&mut self, size: &LogSize) -> io::Result<()> {
        if size.left_out + size.not_written > 0 {
            self.head()?.write_all(gap_line(size).as_bytes())?;
        }
        if self.tail.is_none() {
            return Ok(());
        }
        self.head()?;
        let (Some(head), Some(tail)) = (&mut self.head, &mut self.tail) else { return Ok(()) };
        // Once round, the oldest byte is the one that would be overwritten next.
        let full_circle = self.tail_length == self.tail_limit;
        let oldest = if full_circle { self.tail_position } else { 0 };
        for (from, to) in [(oldest, self.tail_length), (0, oldest)] {
            tail.seek(SeekFrom::Start(from))?;
            let copied = io::copy(&mut Read::by_ref(tail).take(to - from), head)?;
            if copied < to - from {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

/// The line that stands where output is missing.
fn gap_line(size: &LogSize) -> String {
    let missing = size.left_out + size.not_written;
    if size.not_written == 0 {
        format!("\n... {missing} bytes left out ...\n")
    } else {
        format!("\n... {missing} bytes left out ({} could not be written) ...\n", size.not_written)
    }
}

/// Empties a file that is there already. `None` when there is none but one can be made.
fn empty_old(path: &Path) -> io::Result<Option<File>> {
    match options().open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map(Some),
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK)?;
    Ok(None)
}

fn open_new(path: &Path) -> io::Result<File> {
    options().create(true).mode(0o600).open(path)
}

/// For writing and reading back. A link or a pipe that lies in the way is not followed and never waited for.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Writes until the disk refuses; gives how many bytes it took.
fn write_what_fits(file: &mut File, bytes: &[u8]) -> u64 {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    length_of(&bytes[..written])
}

fn length_of(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `produced` bytes of a stream that tells every place apart, in pieces, and reads the log back.
    fn logged(produced: usize, limit: u64, piece: usize) -> (Vec<u8>, Vec<u8>, LogSize) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("out");
        let stream: Vec<u8> =
            (0..produced).map(|place| b'a' + u8::try_from(place % 23).expect("small")).collect();
        let mut log = Log::create(&path, limit).expect("log");
        for bytes in stream.chunks(piece) {
            log.write(bytes);
        }
        let size = log.finish();
        assert!(!folder.path().join("out.tail").exists(), "the second file is cleared away");
        assert_eq!(path.exists(), produced > 0, "a log is made for its first byte");
        (stream, fs::read(&path).unwrap_or_default(), size)
    }

    #[test]
    fn output_within_the_limit_is_kept_to_the_byte() {
        for (produced, piece) in
            [(0, 1), (1, 1), (499, 7), (500, 500), (501, 13), (1000, 1000), (1000, 1), (999, 64)]
        {
            let (stream, kept, size) = logged(produced, 1000, piece);
            assert_eq!(kept, stream, "{produced} in pieces of {piece}");
            assert_eq!(size, LogSize { produced: produced as u64, left_out: 0, not_written: 0 });
        }
    }

    #[test]
    fn output_over_the_limit_keeps_exactly_the_first_and_the_last_half() {
        for (produced, piece) in [(1001, 1), (1001, 1001), (1499, 9), (1500, 500), (9999, 64), (9999, 5000)] {
            let (stream, kept, size) = logged(produced, 1000, piece);
            let left_out = produced - 1000;
            let mut expected = stream[..500].to_vec();
            expected.extend(format!("\n... {left_out} bytes left out ...\n").bytes());
            expected.extend(&stream[produced - 500..]);
            assert_eq!(kept, expected, "{produced} in pieces of {piece}");
            assert_eq!(
                size,
                LogSize { produced: produced as u64, left_out: left_out as u64, not_written: 0 }
            );
        }
    }

    #[cfg(feature = "yarn")]
    #[test]
    fn what_is_passed_over_is_counted_as_if_it_had_come() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("out");
        let mut log = Log::create(&path, 11).expect("log");
        log.write(b"first");
        log.pass_over(1_000_000);
        log.write(b"latest");
        assert_eq!(log.finish(), LogSize { produced: 1_000_011, left_out: 1_000_000, not_written: 0 });
        assert_eq!(fs::read(&path).expect("log"), b"first\n... 1000000 bytes left out ...\nlatest");
    }

    #[test]
    fn a_limit_of_nothing_still_takes_everything_in() {
        for limit in [0, 1, 2, 3] {
            let (_, kept, size) = logged(5000, limit, 100);
            assert_eq!((size.produced, size.left_out), (5000, 5000 - limit), "{limit}");
            assert!(kept.len() < 100, "{limit}");
        }
    }

    #[test]
    fn an_old_log_is_emptied_even_when_nothing_is_written() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("out");
        fs::write(&path, "of an earlier launch").expect("written");
        Log::create(&path, 1000).expect("log").finish();
        assert_eq!(fs::read(&path).expect("log"), b"");
    }

    #[test]
    fn a_place_where_no_log_can_be_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().expect("folder");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).expect("link");
        for (path, errno) in [
            (folder.path().join("missing/out"), libc::ENOENT),
            (folder.path().to_owned(), libc::EISDIR),
            (link, libc::ELOOP),
        ] {
            let error = Log::create(&path, 1000).err().expect("refused");
            assert_eq!(error.raw_os_error(), Some(errno), "{path:?}");
        }
    }

    #[test]
    fn a_place_that_is_lost_before_the_first_byte_costs_the_log_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).expect("made");
        let mut log = Log::create(&inner.join("out"), 1000).expect("log");
        fs::remove_dir(&inner).expect("removed");
        log.write(b"lost");
        assert_eq!(log.finish(), LogSize { produced: 4, left_out: 0, not_written: 4 });
    }

    #[test]
    fn a_tail_that_cannot_be_opened_is_counted_and_nothing_stops() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("out");
        fs::create_dir(folder.path().join("out.tail")).expect("in the way");
        let mut log = Log::create(&path, 10).expect("log");
        log.write(&[b'x'; 1000]);
        log.write(&[b'y'; 1000]);
        let size = log.finish();
        assert_eq!(size.produced, 2000);
        assert!(size.not_written > 0);
        assert_eq!(size.left_out + size.not_written, 1995);
        assert!(fs::read_to_string(&path).expect("log").starts_with("xxxxx\n... 1995 bytes left out ("));
    }
}
