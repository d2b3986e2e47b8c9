//! Unpacking archives that strangers have made: zip, tar, and tar compressed with gzip, bzip2, xz or zstd.
//!
//! What a file is says its content; its name is only a hint. Whatever an archive says, nothing of it is written outside of
//! the folder that it is unpacked into, nothing that lies there is written over, and it ends when it has brought as much
//! as it may: a bomb costs no more than the limits, in memory far less. [`tree`] is the one gate to the file system.
//!
//! This module must not know what the files are for, nor what an archive has to do with a job.

mod tar;
mod tree;
mod zip;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use bzip2::read::MultiBzDecoder;
use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use tree::Tree;

/// What a decoder may hold in memory, in KiB: `xz -9` needs 65 MiB. The other formats have bounds of their own (zstd: a
/// window of 128 MiB).
const XZ_MEMORY: u32 = 128 << 10;
/// Up to this size the ratio is not looked at: small things may be as dense as they like.
const RATIO_COUNTS_FROM: u64 = 64 << 20;
/// The longest name, link target or extended header that is read, in bytes.
const LONGEST_TEXT: u64 = 64 << 10;
/// The size of a tar header, and of a tar's blocks.
const BLOCK: usize = 512;

/// Endings of files that are zip archives inside but are read as they are: by models, by Python, by Spark.
const READ_WHOLE: [&str; 19] = [
    ".docx", ".egg", ".epub", ".jar", ".joblib", ".keras", ".npz", ".odp", ".ods", ".odt", ".pkl", ".pptx",
    ".pt", ".pt2", ".pth", ".skops", ".war", ".whl", ".xlsx",
];
/// Endings by which a file says that it is an archive.
const ENDINGS: [&str; 11] =
    [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"];

/// How much may come out of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, of all archives together.
    pub size: u64,
    /// Files, folders and links, of all archives together.
    pub entries: u64,
    /// Bytes for each byte of the archive, once there are many.
    pub ratio: u64,
}

/// What has come out of archives, and what more may.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    size_left: u64,
    entries_left: u64,
}

impl Budget {
    /// All of what the limits allow.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, size_left: limits.size, entries_left: limits.entries }
    }

    /// How many bytes more may come.
    #[must_use]
    pub fn size_left(&self) -> u64 {
        self.size_left
    }

    /// Takes what something else has brought.
    pub fn spend(&mut self, bytes: u64) {
        self.size_left = self.size_left.saturating_sub(bytes);
    }
}

/// What one archive brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files and links.
    pub files: u64,
    /// Compiled Python modules that were left out: the interpreter makes its own.
    pub left_out: u64,
}

/// Why an archive was not unpacked. What has been written until then stays for the caller to remove.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive is bad: the end of a sentence that begins with its name.
    #[error("{0}")]
    Bad(String),
    /// What it brings cannot be written.
    #[error("{path} could not be written: {source}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody asked for the end.
    #[error("was stopped")]
    Stopped,
}

fn bad(words: impl Into<String>) -> UnpackError {
    UnpackError::Bad(words.into())
}

/// Unpacks `file` into `folder` when it is an archive; `None` when it is not. `name` is the hint. `stopped` is asked all
/// the time. Blocks.
///
/// # Errors
/// [`UnpackError`].
pub fn unpack(
    file: File,
    name: &str,
    folder: &Path,
    budget: &mut Budget,
    stopped: &dyn Fn() -> bool,
) -> Result<Option<Unpacked>, UnpackError> {
    let unreadable = |error: io::Error| bad(format!("cannot be read: {error}"));
    let length = file.metadata().map_err(unreadable)?.len();
    let mut file = BufReader::with_capacity(64 << 10, file);
    let Some(kind) = kind_of(&mut file, name).map_err(unreadable)? else { return Ok(None) };
    file.rewind().map_err(unreadable)?;
    let room = budget.size_left.min(length.saturating_mul(budget.limits.ratio).max(RATIO_COUNTS_FROM));
    let meter = Meter { left: Cell::new(room), out: Cell::new(None), stopped };
    let mut tree = Tree::new(folder, budget.entries_left);
    let done = match kind {
        Kind::Zip => zip::unpack(file.into_inner(), &mut tree, &meter),
        Kind::Tar(compression) => {
            let stream = Metered { inner: decoder(compression, file), meter: &meter };
            tar::unpack(stream, &mut tree)
        }
    };
    let unpacked = done.and_then(|()| tree.finish());
    let came = room - meter.left.get();
    let ran_out_of = meter.out.get();
    let result = match (unpacked, ran_out_of) {
        // A format's reader tells any failure of what it reads from as a fault of its own.
        (_, Some(Out::Stopped)) => Err(UnpackError::Stopped),
        (_, Some(Out::Room)) if room < budget.size_left => Err(bad(format!(
            "unpacks to more than {} times its size (attachments.max_ratio); it looks like a bomb",
            budget.limits.ratio
        ))),
        (_, Some(Out::Room)) => Err(bad(format!(
            "unpacks to more than the {} that the attachments of a job may take (attachments.max_size)",
            crate::config::size_text(budget.limits.size)
        ))),
        (Err(UnpackError::Bad(words)), None) if tree.is_full() => {
            tracing::debug!(words, "an archive has too many entries");
            Err(bad(format!(
                "has more than the {} files and folders that the attachments of a job may have (attachments.max_files)",
                budget.limits.entries
            )))
        }
        (result, None) => result.map(Some),
    };
    budget.size_left -= came;
    budget.entries_left = tree.entries_left();
    match result {
        // Bytes that only look like the beginning of an archive are no archive, unless the name says so.
        Err(UnpackError::Bad(words)) if kind == Kind::Zip && !says_archive(name) && tree.is_untouched() => {
            tracing::debug!(name, words, "a file begins like an archive and is none");
            Ok(None)
        }
        result => result,
    }
}

/// What kind of archive a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zip,
    Tar(Compression),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

/// Looks at the beginning of a file, and below its compression.
fn kind_of(file: &mut BufReader<File>, name: &str) -> io::Result<Option<Kind>> {
    let mut head = [0; BLOCK];
    let length = read_up_to(file, &mut head)?;
    let head = &head[..length];
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Ok((!is_read_whole(name)).then_some(Kind::Zip));
    }
    if is_tar_header(head) {
        return Ok(Some(Kind::Tar(Compression::None)));
    }
    let compression = match head {
        [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Compression::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => return Ok(None),
    };
    file.rewind()?;
    let mut first = [0; BLOCK];
    // What cannot be decoded is told when it is unpacked, if its name says that it is an archive.
    let inside = match read_up_to(&mut decoder(compression, file), &mut first) {
        Ok(length) => is_tar_header(&first[..length]),
        Err(_) => says_archive(name),
    };
    Ok(inside.then_some(Kind::Tar(compression)))
}

fn is_read_whole(name: &str) -> bool {
    let name = name.to_lowercase();
    READ_WHOLE.iter().any(|ending| name.ends_with(ending))
}

fn says_archive(name: &str) -> bool {
    let name = name.to_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Whether a block is the header of a tar's entry: its checksum, which even the oldest ones have, is right.
fn is_tar_header(block: &[u8]) -> bool {
    let Ok(bytes) = <&[u8; BLOCK]>::try_from(block) else { return false };
    let header = ::tar::Header::from_byte_slice(bytes);
    let checksum = 148..156;
    let sum =
        bytes.iter().enumerate().map(|(at, byte)| if checksum.contains(&at) { 32 } else { u32::from(*byte) });
    bytes[0] != 0 && header.cksum().is_ok_and(|told| told == sum.sum::<u32>())
}

fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn decoder<'a>(compression: Compression, file: impl BufRead + 'a) -> Box<dyn Read + 'a> {
    match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
        Compression::Bzip2 => Box::new(MultiBzDecoder::new(file)),
        Compression::Xz => Box::new(XzReader::new_mem_limit(file, true, XZ_MEMORY)),
        Compression::Zstd => Box::new(ZstdFrames::new(file)),
    }
}

/// Reads the frames of a zstd file one after the other, and judges their checksums; the decoder itself does neither.
struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    inside: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), inside: false }
    }

    /// Begins the next frame, past those that are to be skipped; false at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            let mut magic = [0; 4];
            self.source.read_exact(&mut magic)?;
            if !((0x50..=0x5f).contains(&magic[0]) && magic[1..] == [0x2a, 0x4d, 0x18]) {
                self.decoder.init((&magic[..]).chain(&mut self.source)).map_err(io::Error::other)?;
                return Ok(true);
            }
            let mut length = [0; 4];
            self.source.read_exact(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.inside && !self.next_frame()? {
                return Ok(0);
            }
            self.inside = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one).map_err(io::Error::other)?;
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.inside = false;
            let told = self.decoder.get_checksum_from_data();
            if told.is_some() && told != self.decoder.get_calculated_checksum() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a checksum is wrong"));
            }
        }
    }
}

/// Why no more is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Out {
    Room,
    Stopped,
}

/// Counts what comes out of an archive.
struct Meter<'a> {
    left: Cell<u64>,
    out: Cell<Option<Out>>,
    stopped: &'a dyn Fn() -> bool,
}

/// Reads no more than its meter allows.
struct Metered<'a, R> {
    inner: R,
    meter: &'a Meter<'a>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.meter.stopped)() {
            self.meter.out.set(Some(Out::Stopped));
            return Err(io::Error::other("stopped"));
        }
        let read = self.inner.read(buffer)?;
        match self.meter.left.get().checked_sub(read as u64) {
            Some(left) => self.meter.left.set(left),
            None => {
                self.meter.left.set(0);
                self.meter.out.set(Some(Out::Room));
                return Err(io::Error::other("no room is left"));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
