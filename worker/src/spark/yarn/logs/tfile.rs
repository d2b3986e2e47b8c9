//! The file in which a NodeManager leaves the logs of an application's containers when it aggregates them: a TFile of
//! Hadoop's, as its `AggregatedLogFormat` fills it.
//!
//! ```text
//! magic | data blocks | blocks that describe them | index of those | where it begins (8) | version (4) | magic (16)
//!
//! block:  records, after decompression
//! record: length of the key | key | value in chunks, each with its length, a negative one if another follows
//! key:    the container's id, as Java writes a text
//! value:  for each file its name and its length in digits, both as Java writes a text, and then its bytes
//! ```
//!
//! A container is one record, and lies in one block with all that it wrote. So what is described at the end is read
//! first, and then no other block than those that may have the container.
//!
//! What a file says about itself is believed by nobody: whatever is read into memory has a bound, and what is longer than
//! that goes through a reader.
//!
//! This module reads bytes that it is given. It must not know where they come from.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

use flate2::bufread::ZlibDecoder;

/// What a TFile begins and ends with.
const MAGIC: [u8; 16] =
    [0xd1, 0x11, 0xd3, 0x68, 0x91, 0xb5, 0xd7, 0xb6, 0x39, 0xdf, 0x41, 0x40, 0x92, 0xba, 0xe1, 0x50];
/// The length of its end: where the index is, the version, and that.
pub(super) const TRAILER: u64 = 8 + 4 + 16;
/// The version of the format, of which there has been one; a later minor one can be read as well.
const MAJOR: [u8; 2] = [0, 1];
/// The longest key that Hadoop writes.
const LONGEST_KEY: u64 = 64 << 10;
/// The largest description of blocks that is read, in bytes, on the disk as in memory: there is one of less than 100 bytes
/// for a block of at least 256 KiB.
pub(super) const LARGEST_INDEX: u64 = 4 << 20;
/// How many blocks a file may have. A node with a tenth of that many containers of one application would be a large one.
const MOST_BLOCKS: u64 = 100_000;
/// The longest name of a method of compression or of a block.
const LONGEST_NAME: u64 = 200;

/// What is no such file, or none that can be read. The texts complete "the file ...".
#[derive(Debug, thiserror::Error)]
pub(super) enum TFileError {
    /// It is something else, or was cut off.
    #[error("has no aggregated logs, or not whole ones: {0}")]
    Garbage(&'static str),
    /// Made with a method that is not known here.
    #[error("is compressed with {0:?}, which this version cannot read")]
    Compression(String),
    /// The bytes did not come.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// How a block is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    /// "gz" by its name and zlib by its nature.
    Zlib,
}

impl Compression {
    fn named(name: &str) -> Result<Self, TFileError> {
        match name {
            "none" => Ok(Self::None),
            "gz" => Ok(Self::Zlib),
            other => Err(TFileError::Compression(other.to_owned())),
        }
    }
}

/// A block's place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// From byte to byte.
    pub(super) place: Range<u64>,
    /// How much it is without compression.
    raw: u64,
    pub(super) compression: Compression,
}

impl Block {
    /// The bytes of the block itself, given those of the file.
    fn open<'a>(&self, bytes: impl Read + 'a) -> Box<dyn BufRead + 'a> {
        let bytes = BufReader::with_capacity(64 << 10, bytes);
        match self.compression {
            Compression::None => Box::new(bytes),
            // It may not grow beyond what it says: that is what it has to say itself for.
            Compression::Zlib => {
                Box::new(BufReader::with_capacity(64 << 10, ZlibDecoder::new(bytes).take(self.raw)))
            }
        }
    }
}

/// Where what describes a file is.
#[derive(Debug)]
pub(super) struct Descriptions {
    blocks: Block,
    records: Block,
}

impl Descriptions {
    /// Both, in the order in which [`data_blocks`] wants their bytes.
    pub(super) fn both(&self) -> [&Block; 2] {
        [&self.blocks, &self.records]
    }
}

/// Where the index of descriptions is in a file of `size` bytes, by its last [`TRAILER`] bytes.
pub(super) fn index(size: u64, trailer: &[u8]) -> Result<Range<u64>, TFileError> {
    const NO_END: TFileError = TFileError::Garbage("it does not end as one does");
    let (start, rest) = trailer.split_first_chunk::<8>().ok_or(NO_END)?;
    let (version, magic) = rest.split_at_checked(4).ok_or(NO_END)?;
    if magic != MAGIC {
        return Err(NO_END);
    }
    if version[..2] != MAJOR {
        return Err(TFileError::Garbage("it has another version"));
    }
    let start = u64::from_be_bytes(*start);
    let end = size.saturating_sub(TRAILER);
    if !(16..end).contains(&start) || end - start > LARGEST_INDEX {
        return Err(TFileError::Garbage("its index is where none can be"));
    }
    Ok(start..end)
}

/// Where the descriptions are in a file of `size` bytes, by the bytes of the index.
pub(super) fn descriptions(size: u64, mut index: &[u8]) -> Result<Descriptions, TFileError> {
    let count = length(&mut index)?;
    let (mut blocks, mut records) = (None, None);
    for _ in 0..count {
        let name = text(&mut index)?;
        let compression = text(&mut index)?;
        let wanted = match name.as_str() {
            "data:BCFile.index" => &mut blocks,
            "data:TFile.index" => &mut records,
            _ => {
                region(&mut index)?;
                continue;
            }
        };
        let compression = Compression::named(&compression)?;
        let block = block(size, region(&mut index)?, compression)?;
        if block.place.end - block.place.start > LARGEST_INDEX {
            return Err(TFileError::Garbage("its index is too large"));
        }
        *wanted = Some(block);
    }
    match (blocks, records) {
        (Some(blocks), Some(records)) => Ok(Descriptions { blocks, records }),
        _ => Err(TFileError::Garbage("it has no index")),
    }
}

/// The blocks of a file of `size` bytes that may have a container, and how many records each has, by the bytes of both
/// [`Descriptions`].
pub(super) fn data_blocks(
    size: u64,
    descriptions: &Descriptions,
    bytes: [&[u8]; 2],
    container: &str,
) -> Result<Vec<(Block, u64)>, TFileError> {
    let mut blocks = descriptions.blocks.open(bytes[0]).take(LARGEST_INDEX);
    let mut records = descriptions.records.open(bytes[1]).take(LARGEST_INDEX);
    let compression = Compression::named(&text(&mut blocks)?)?;
    let count = length(&mut blocks)?;
    if count > MOST_BLOCKS {
        return Err(TFileError::Garbage("it has too many blocks"));
    }
    let key = key(container);
    let first_key = length(&mut records)?;
    pass(&mut records, first_key)?;
    let mut found = Vec::new();
    for _ in 0..count {
        let block = block(size, region(&mut blocks)?, compression)?;
        // Its last key, and how many there are.
        let _length_of_entry = length(&mut records)?;
        let last = bytes_of(&mut records, LONGEST_KEY)?;
        let number = length(&mut records)?;
        if number > 1 || (number == 1 && last == key) {
            found.push((block, number));
        }
    }
    Ok(found)
}

/// Reads the records of a block until one is the container's, and hands each file of it to `visit`: its name, its length,
/// and a reader of no more than that. `false` when it is not in this block.
pub(super) fn read_block(
    block: &Block,
    records: u64,
    bytes: impl Read,
    container: &str,
    visit: &mut dyn FnMut(&str, u64, &mut dyn Read) -> io::Result<()>,
) -> Result<bool, TFileError> {
    let mut reader = block.open(bytes);
    let key = key(container);
    for record in 1..=records {
        let is_ours = bytes_of(&mut reader, LONGEST_KEY)? == key;
        let mut value = Chunks { reader: &mut reader, left: 0, is_last: false };
        if is_ours {
            read_files(&mut value, visit)?;
            return Ok(true);
        }
        // The last one may be a large one, and nothing comes behind it.
        if record < records {
            io::copy(&mut value, &mut io::sink())?;
        }
    }
    Ok(false)
}

fn read_files(
    value: &mut impl Read,
    visit: &mut dyn FnMut(&str, u64, &mut dyn Read) -> io::Result<()>,
) -> Result<(), TFileError> {
    while let Some(name) = java_text(value)? {
        let length = java_text(value)?.and_then(|length| length.parse().ok());
        let length = length.ok_or(TFileError::Garbage("the length of a log is none"))?;
        let mut content = value.take(length);
        visit(&name, length, &mut content)?;
        io::copy(&mut content, &mut io::sink())?;
        if content.limit() > 0 {
            return Err(TFileError::Garbage("a log is shorter than it says"));
        }
    }
    Ok(())
}

/// A value that was written in chunks.
struct Chunks<R> {
    reader: R,
    left: u64,
    is_last: bool,
}

impl<R: Read> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.left == 0 {
            if self.is_last {
                return Ok(0);
            }
            let length = number(&mut self.reader)?;
            self.is_last = length >= 0;
            self.left = length.unsigned_abs();
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let came = self.reader.read(&mut buffer[..most])?;
        if came == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= came as u64;
        Ok(came)
    }
}

/// A container's id as the key of a record.
fn key(container: &str) -> Vec<u8> {
    let length = u16::try_from(container.len()).unwrap_or(u16::MAX);
    let mut key = length.to_be_bytes().to_vec();
    key.extend_from_slice(container.as_bytes());
    key
}

/// Where a block is and how large it is without compression.
fn region(reader: &mut impl Read) -> Result<(u64, u64, u64), TFileError> {
    Ok((length(reader)?, length(reader)?, length(reader)?))
}

fn block(
    size: u64,
    (start, compressed, raw): (u64, u64, u64),
    compression: Compression,
) -> Result<Block, TFileError> {
    let end = start.saturating_add(compressed);
    if end > size {
        return Err(TFileError::Garbage("it names a block behind its end"));
    }
    Ok(Block { place: start..end, raw, compression })
}

/// A number as Hadoop's TFile writes it, in one byte to nine.
fn number(reader: &mut impl Read) -> io::Result<i64> {
    let mut first = [0];
    reader.read_exact(&mut first)?;
    let first = i64::from(i8::from_be_bytes(first));
    // How many bytes follow, and what of the number the first one has.
    let (count, high) = match first {
        -32.. => return Ok(first),
        -72.. => (1, first + 52),
        -104.. => (2, first + 88),
        -120.. => (3, first + 112),
        _ => (usize::try_from(first + 129).unwrap_or_default(), 0),
    };
    if first < -120 && count < 4 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a number is none"));
    }
    let mut bytes = [0; 8];
    let bytes = &mut bytes[..count];
    reader.read_exact(bytes)?;
    let high = if first < -120 && bytes[0] >= 0x80 { -1 } else { high };
    Ok(bytes.iter().fold(high, |value, byte| (value << 8) | i64::from(*byte)))
}

/// A number that cannot be less than zero.
fn length(reader: &mut impl Read) -> Result<u64, TFileError> {
    u64::try_from(number(reader)?).map_err(|_| TFileError::Garbage("a length is less than nothing"))
}

/// Bytes behind their number, which is at most `most`.
fn bytes_of(reader: &mut impl Read, most: u64) -> Result<Vec<u8>, TFileError> {
    let length = length(reader)?;
    if length > most {
        return Err(TFileError::Garbage("a name or key is too long"));
    }
    exactly(reader, length)
}

fn text(reader: &mut impl Read) -> Result<String, TFileError> {
    Ok(String::from_utf8_lossy(&bytes_of(reader, LONGEST_NAME)?).into_owned())
}

/// A text as `DataOutput.writeUTF` writes it; `None` at the end.
fn java_text(reader: &mut impl Read) -> Result<Option<String>, TFileError> {
    let mut high = [0];
    loop {
        match reader.read(&mut high) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut low = [0];
    reader.read_exact(&mut low)?;
    let bytes = exactly(reader, u64::from(u16::from_be_bytes([high[0], low[0]])))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn exactly(reader: &mut impl Read, length: u64) -> Result<Vec<u8>, TFileError> {
    let mut bytes = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(TFileError::Garbage("it ends too early"));
    }
    Ok(bytes)
}

fn pass(reader: &mut impl Read, count: u64) -> Result<(), TFileError> {
    if io::copy(&mut reader.by_ref().take(count), &mut io::sink())? < count {
        return Err(TFileError::Garbage("it ends too early"));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use flate2::write::ZlibEncoder;

    use super::*;

    /// A number in one of its forms, as `org.apache.hadoop.io.file.tfile.Utils` writes it.
    fn write_number(to: &mut Vec<u8>, value: i64) {
        let bytes = value.to_be_bytes();
        let lead = |offset: i64, shift: u32| u8::try_from(((value >> shift) - offset) & 0xff).unwrap();
        match value {
            -32..=127 => to.push(bytes[7]),
            -5120..=5119 => to.extend([lead(52, 8), bytes[7]]),
            -1_048_576..=1_048_575 => to.extend([lead(88, 16), bytes[6], bytes[7]]),
            -134_217_728..=134_217_727 => to.extend([lead(112, 24), bytes[5], bytes[6], bytes[7]]),
            _ => {
                let fits = |count: u32| value >> (8 * count - 1) == 0 || value >> (8 * count - 1) == -1;
                let count = (4..8).find(|count| fits(*count)).unwrap_or(8);
                to.push((count as u8).wrapping_sub(129));
                to.extend_from_slice(&bytes[8 - count as usize..]);
            }
        }
    }

    fn write_length(to: &mut Vec<u8>, value: usize) {
        write_number(to, i64::try_from(value).unwrap());
    }

    fn write_text(to: &mut Vec<u8>, text: &[u8]) {
        write_length(to, text.len());
        to.extend_from_slice(text);
    }

    fn write_java_text(to: &mut Vec<u8>, text: &str) {
        to.extend_from_slice(&key(text));
    }

    /// A record of a container with these files, its value in chunks of this size.
    pub(in super::super) fn record(container: &str, files: &[(&str, &[u8])], chunk: usize) -> Vec<u8> {
        let mut value = Vec::new();
        for (name, content) in files {
            write_java_text(&mut value, name);
            write_java_text(&mut value, &content.len().to_string());
            value.extend_from_slice(content);
        }
        raw_record(container, &value, chunk)
    }

    pub(in super::super) fn raw_record(container: &str, value: &[u8], chunk: usize) -> Vec<u8> {
        let mut record = Vec::new();
        write_text(&mut record, &key(container));
        let chunks: Vec<&[u8]> = value.chunks(chunk).collect();
        for (index, chunk) in chunks.iter().enumerate() {
            let length = i64::try_from(chunk.len()).unwrap();
            write_number(&mut record, if index + 1 < chunks.len() { -length } else { length });
            record.extend_from_slice(chunk);
        }
        if chunks.is_empty() {
            record.push(0);
        }
        record
    }

    /// A file with blocks of records, each with its container.
    pub(in super::super) fn file(blocks: &[Vec<(&str, Vec<u8>)>], compression: &str) -> Vec<u8> {
        let compress = |bytes: &[u8]| {
            if compression == "gz" {
                let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes).unwrap();
                return encoder.finish().unwrap();
            }
            bytes.to_vec()
        };
        let mut file = MAGIC.to_vec();
        let place = |file: &mut Vec<u8>, bytes: &[u8]| {
            let compressed = compress(bytes);
            let mut region = Vec::new();
            for number in [file.len(), compressed.len(), bytes.len()] {
                write_length(&mut region, number);
            }
            file.extend_from_slice(&compressed);
            region
        };
        let mut of_blocks = Vec::new();
        write_text(&mut of_blocks, compression.as_bytes());
        write_length(&mut of_blocks, blocks.len());
        let mut of_records = Vec::new();
        let mut first = Vec::new();
        write_text(&mut first, &key(blocks[0][0].0));
        write_text(&mut of_records, &first);
        for records in blocks {
            let bytes: Vec<u8> = records.iter().flat_map(|(_, record)| record.clone()).collect();
            of_blocks.extend(place(&mut file, &bytes));
            let mut entry = Vec::new();
            write_text(&mut entry, &key(records.last().unwrap().0));
            write_length(&mut entry, records.len());
            write_text(&mut of_records, &entry);
        }
        let mut index = Vec::new();
        let described = [("data:BCFile.index", of_blocks), ("data:TFile.index", of_records)];
        write_length(&mut index, described.len());
        for (name, bytes) in described {
            let region = place(&mut file, &bytes);
            write_text(&mut index, name.as_bytes());
            write_text(&mut index, compression.as_bytes());
            index.extend(region);
        }
        let start = file.len() as u64;
        file.extend(index);
        file.extend(start.to_be_bytes());
        file.extend([0, 1, 0, 0]);
        file.extend(MAGIC);
        file
    }

    type Files = Vec<(String, Vec<u8>)>;

    /// All that is read of a container in a file.
    fn read(file: &[u8], container: &str) -> Result<Files, TFileError> {
        let size = file.len() as u64;
        let of = |place: &Range<u64>| {
            &file[usize::try_from(place.start).unwrap()..usize::try_from(place.end).unwrap()]
        };
        let trailer = file.last_chunk::<{ TRAILER as usize }>().map_or(file, |end| end);
        let place = index(size, trailer)?;
        let descriptions = descriptions(size, of(&place))?;
        let bytes = descriptions.both().map(|block| of(&block.place));
        let mut files = Vec::new();
        for (block, records) in data_blocks(size, &descriptions, bytes, container)? {
            let visit = &mut |name: &str, length: u64, content: &mut dyn Read| {
                let mut all = Vec::new();
                content.read_to_end(&mut all)?;
                assert!(all.len() as u64 <= length, "no more than it says");
                files.push((name.to_owned(), all));
                Ok(())
            };
            if read_block(&block, records, of(&block.place), container, visit)? {
                break;
            }
        }
        Ok(files)
    }

    const OURS: &str = "container_1795751884603_0002_01_000001";
    const OTHER: &str = "container_1795751884603_0002_01_000002";

    fn usual(compression: &str) -> Vec<u8> {
        let large = vec![b'l'; 400];
        let blocks = [
            vec![("VERSION", raw_record("VERSION", &[0, 0, 0, 1], 100))],
            vec![
                ("APPLICATION_ACL", raw_record("APPLICATION_ACL", b"", 100)),
                (OTHER, record(OTHER, &[("stdout", &large)], 100)),
            ],
            vec![
                (OTHER, record(OTHER, &[("stderr", b"not ours")], 700)),
                (OURS, record(OURS, &[("stderr", b"err\n"), ("stdout", &large), ("empty", b"")], 300)),
                (OTHER, record(OTHER, &[("stdout", b"not ours")], 700)),
            ],
        ];
        file(&blocks, compression)
    }

    #[test]
    fn numbers_are_read_in_all_their_forms() {
        for value in [
            0,
            1,
            -1,
            127,
            128,
            -32,
            -33,
            5119,
            5120,
            -5120,
            -5121,
            5126,
            1_048_575,
            1_048_576,
            -1_048_576,
            -1_048_577,
            134_217_727,
            134_217_728,
            -134_217_728,
            -134_217_729,
            i64::from(i32::MAX),
            i64::from(i32::MIN),
            1 << 31,
            1 << 39,
            1 << 47,
            (1 << 55) - 1,
            i64::MAX,
            i64::MIN,
        ] {
            let mut bytes = Vec::new();
            write_number(&mut bytes, value);
            let mut rest = bytes.as_slice();
            assert_eq!(number(&mut rest).unwrap(), value, "{bytes:?}");
            assert!(rest.is_empty(), "{value} is read whole");
        }
        // As a real NodeManager (3.5.0) has written 5126.
        assert_eq!(number(&mut [0xa8, 0x14, 0x06].as_slice()).unwrap(), 5126);
        assert!(number(&mut [0x80, 0, 0, 0, 0, 0, 0, 0, 0].as_slice()).is_err());
        assert!(number(&mut [0x83].as_slice()).is_err());
    }

    #[test]
    fn the_files_of_one_container_are_read_and_no_others() {
        for compression in ["none", "gz"] {
            let files = read(&usual(compression), OURS).unwrap();
            assert_eq!(
                files,
                [
                    ("stderr".to_owned(), b"err\n".to_vec()),
                    ("stdout".to_owned(), vec![b'l'; 400]),
                    ("empty".to_owned(), Vec::new())
                ],
                "{compression}"
            );
            assert!(read(&usual(compression), "container_1_0001_01_000001").unwrap().is_empty());
        }
    }

    #[test]
    fn a_compression_that_is_not_known_is_told_by_its_name() {
        let told = read(&usual("lzo"), OURS).unwrap_err().to_string();
        assert_eq!(told, "is compressed with \"lzo\", which this version cannot read");
    }

    #[test]
    fn garbage_is_an_error_wherever_it_is_and_never_more() {
        assert!(read(b"", OURS).is_err());
        assert!(read(&[0xff; 1000], OURS).is_err());
        for compression in ["none", "gz"] {
            let whole = usual(compression);
            // Every byte damaged, and every length of a file that was cut off: what comes is a part, or an error.
            for place in 0..whole.len() {
                for damage in [0x00, 0x01, 0x7f, 0x80, 0x83, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[place] ^= damage;
                    let _ = read(&damaged, OURS);
                }
            }
            for length in 0..whole.len() {
                assert!(read(&whole[..length], OURS).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn a_log_that_is_shorter_than_it_says_is_told() {
        let mut value = Vec::new();
        write_java_text(&mut value, "stdout");
        write_java_text(&mut value, "1000000000000");
        value.extend_from_slice(b"short");
        let file = file(&[vec![(OURS, raw_record(OURS, &value, 1000))]], "none");
        let told = read(&file, OURS).unwrap_err().to_string();
        assert_eq!(told, "has no aggregated logs, or not whole ones: a log is shorter than it says");
    }

    #[test]
    fn a_block_that_swells_beyond_what_it_says_ends_there() {
        let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        let record = record(OURS, &[("stdout", &vec![b'x'; 50 << 20])], 1 << 20);
        encoder.write_all(&record).unwrap();
        let compressed = encoder.finish().unwrap();
        let block = Block { place: 0..compressed.len() as u64, raw: 1000, compression: Compression::Zlib };
        let mut came = 0;
        let visit = &mut |_: &str, _: u64, content: &mut dyn Read| {
            let mut buffer = [0; 100];
            loop {
                let read = content.read(&mut buffer)?;
                came += read;
                if read == 0 {
                    return Ok(());
                }
            }
        };
        assert!(read_block(&block, 1, compressed.as_slice(), OURS, visit).is_err());
        assert!(came < 1000, "{came}");
    }
}
