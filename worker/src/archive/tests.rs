use super::*;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use ::tar::{Builder, EntryType, Header};
use ::zip::ZipWriter;
use ::zip::write::SimpleFileOptions;

const LIMITS: Limits = Limits { size: 4 << 30, entries: 100_000, ratio: 200 };

/// A folder with one attachment in it.
struct Place {
    folder: tempfile::TempDir,
    budget: Budget,
}

impl Place {
    fn new() -> Self {
        Self::limited(LIMITS)
    }

    fn limited(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("work")).unwrap();
        Self { folder, budget: Budget::new(limits) }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn unpack(&mut self, name: &str, bytes: &[u8]) -> Result<Option<Unpacked>, UnpackError> {
        let path = self.folder.path().join("attached");
        std::fs::write(&path, bytes).unwrap();
        let root = self.root();
        unpack(File::open(path).unwrap(), name, &root, &mut self.budget, &|| false)
    }

    /// The complaint about an archive that must be refused; nothing of it may lie outside of the folder.
    fn refusal(&mut self, name: &str, bytes: &[u8]) -> String {
        let error = self.unpack(name, bytes).unwrap_err();
        assert!(matches!(error, UnpackError::Bad(_)), "{error:?}");
        let outside: Vec<_> =
            std::fs::read_dir(self.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(outside.len(), 2, "{outside:?}");
        error.to_string()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.root().join(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        self.root().join(name).symlink_metadata().unwrap().permissions().mode()
    }
}

/// An entry as it shall stand in a tar, whatever anybody thinks of it.
fn entry(kind: EntryType, name: &str, target: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.extend([0; 2 * BLOCK]);
    bytes
}

fn file(name: &str, content: &str) -> Vec<u8> {
    entry(EntryType::Regular, name, "", 0o644, content.as_bytes())
}

fn a_tar() -> Vec<u8> {
    tar(&[
        entry(EntryType::Directory, "./", "", 0o755, b""),
        entry(EntryType::Directory, "./lib/", "", 0o755, b""),
        file("./lib/a.txt", "A"),
        entry(EntryType::Regular, "run.sh", "", 0o6755, b"#!"),
        entry(EntryType::Symlink, "lib/latest", "../run.sh", 0o777, b""),
        entry(EntryType::Link, "same.txt", "lib/a.txt", 0o644, b""),
        file("lib/__pycache__/a.pyc", "x"),
    ])
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut to = ::bzip2::write::BzEncoder::new(Vec::new(), ::bzip2::Compression::best());
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut to = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(6)).unwrap();
    to.write_all(bytes).unwrap();
    to.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn zip(entries: &[(&str, u32, &str)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, mode, content) in entries {
        let options = SimpleFileOptions::default().unix_permissions(*mode);
        writer.start_file(*name, options).unwrap();
        writer.write_all(content.as_bytes()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn every_kind_of_archive_is_known_by_its_content_and_unpacked() {
    let plain = a_tar();
    let halves = plain.split_at(700);
    let two_frames =
        [zstd(halves.0), vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], zstd(halves.1)].concat();
    for (name, bytes) in [
        ("a.tar", plain.clone()),
        ("a.tar.gz", gzip(&plain)),
        ("a.tgz", [gzip(halves.0), gzip(halves.1)].concat()),
        ("a.tar.bz2", bzip2(&plain)),
        ("a.tar.xz", xz(&plain)),
        ("a.tar.zst", zstd(&plain)),
        ("a.tzst", two_frames),
        ("no ending at all", gzip(&plain)),
        ("a.zip", gzip(&plain)),
    ] {
        let mut place = Place::new();
        let unpacked = place.unpack(name, &bytes).unwrap().unwrap_or_else(|| panic!("{name} is no archive"));
        assert_eq!(unpacked, Unpacked { files: 4, left_out: 1 }, "{name}");
        assert_eq!(place.read("lib/a.txt"), "A");
        assert_eq!(place.read("lib/latest"), "#!");
        assert_eq!(place.read("same.txt"), "A");
        assert_eq!(place.mode("run.sh") & 0o7777, 0o700, "{name}");
        assert_eq!(place.mode("lib/a.txt") & 0o7777, 0o600, "{name}");
    }
}

#[test]
fn a_zip_is_unpacked_whatever_it_is_called() {
    for name in ["a.zip", "a.dat", "a"] {
        let mut place = Place::new();
        let bytes = zip(&[("lib/a.txt", 0o644, "A"), ("run.sh", 0o6755, "#!"), ("empty", 0o600, "")]);
        assert_eq!(place.unpack(name, &bytes).unwrap().unwrap().files, 3);
        assert_eq!((place.read("lib/a.txt"), place.mode("run.sh") & 0o7777), ("A".to_owned(), 0o700));
    }
    let mut place = Place::new();
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.add_directory("lib/", SimpleFileOptions::default()).unwrap();
    writer.add_symlink("lib/l", "../x", SimpleFileOptions::default()).unwrap();
    let deflated = SimpleFileOptions::default().compression_method(::zip::CompressionMethod::Deflated);
    writer.start_file("x", deflated).unwrap();
    writer.write_all(b"linked").unwrap();
    let bytes = writer.finish().unwrap().into_inner();
    place.unpack("a.zip", &bytes).unwrap().unwrap();
    assert_eq!(place.read("lib/l"), "linked");
}

#[test]
fn what_is_no_archive_is_left_as_it_is() {
    let zipped = zip(&[("archive/data.pkl", 0o644, "x")]);
    for (name, bytes) in [
        ("a.zip", b"just a text".to_vec()),
        ("a.tar.gz", b"just a text".to_vec()),
        ("empty.tar", Vec::new()),
        ("lines.csv.gz", gzip(b"a,b\n1,2\n")),
        ("model.pkl.xz", xz(&[0; 4096])),
        ("weights.pt", zipped.clone()),
        ("arrays.NPZ", zipped.clone()),
        ("like a zip", b"PK\x03\x04 and so on".to_vec()),
    ] {
        let mut place = Place::new();
        assert_eq!(place.unpack(name, &bytes).unwrap(), None, "{name}");
        assert_eq!(std::fs::read_dir(place.root()).unwrap().count(), 0);
    }
}

#[test]
fn no_name_leads_out_of_the_folder_or_onto_a_file_of_the_service() {
    for (name, complaint) in [
        ("../x", "the step \"..\""),
        ("a/../../x", "the step \"..\""),
        ("./../x", "the step \"..\""),
        ("/tmp/x", "is absolute"),
        ("/", "is absolute"),
        ("C:/x", "is absolute"),
        ("a\\..\\..\\x", "the character"),
        ("a\nb", "the character"),
        ("con.txt", "a device on Windows"),
        ("model_source_code.py", "would stand in front of"),
        ("ModelOpPySparkDriver.py", "would stand in front of"),
        ("pyspark/__init__.py", "would stand in front of"),
        ("__pycache__/../../x", "the"),
    ] {
        let said = Place::new().refusal("a.tar", &tar(&[file("first", "1"), file(name, "x")]));
        assert!(said.starts_with("has the entry ") && said.contains(complaint), "{name}: {said}");
        let said = Place::new().refusal("a.zip", &zip(&[(name, 0o644, "x")]));
        assert!(said.contains(complaint), "{name}: {said}");
    }
}

#[test]
fn no_link_leads_out_of_the_folder_and_nothing_is_written_through_one() {
    for (path, target) in [("l", "/etc/passwd"), ("l", "../attached"), ("a/l", "b/../../../x"), ("l", "")] {
        let said =
            Place::new().refusal("a.tar", &tar(&[entry(EntryType::Symlink, path, target, 0o777, b"")]));
        assert!(said.contains("may lead up no further"), "{said}");
    }
    let hard = tar(&[entry(EntryType::Link, "l", "../attached", 0o644, b"")]);
    assert!(Place::new().refusal("a.tar", &hard).contains("the step \"..\""));
    let hard = tar(&[entry(EntryType::Link, "l", "nothing", 0o644, b"")]);
    assert!(Place::new().refusal("a.tar", &hard).contains("which is no file of it"));
    let through = tar(&[entry(EntryType::Symlink, "l", "a", 0o777, b""), file("a/x", "1"), file("l/y", "2")]);
    assert!(Place::new().refusal("a.tar", &through).contains("would write over \"l\""));
    // The second archive finds the first one's link, by which its own would lead further up than it says.
    let mut place = Place::new();
    let first = tar(&[file("d/x", "1"), entry(EntryType::Symlink, "d/up", "..", 0o777, b"")]);
    place.unpack("a.tar", &first).unwrap().unwrap();
    let second = tar(&[entry(EntryType::Symlink, "d/up/e/l", "../../../attached", 0o777, b"")]);
    assert!(place.refusal("b.tar", &second).contains("would write over \"d/up\""));
}

#[test]
fn devices_and_pipes_are_refused() {
    for kind in
        [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse, EntryType::new(b'V')]
    {
        let said = Place::new().refusal("a.tar", &tar(&[entry(kind, "thing", "", 0o644, b"")]));
        assert!(said.starts_with("has the entry \"thing\", which is "), "{said}");
    }
}

#[test]
fn nothing_is_written_over() {
    let mut place = Place::new();
    std::fs::write(place.root().join("helper.py"), "mine").unwrap();
    assert!(
        place
            .refusal("a.tar", &tar(&[file("helper.py", "theirs")]))
            .contains("would write over \"helper.py\"")
    );
    assert!(place.refusal("a.zip", &zip(&[("helper.py", 0o644, "theirs")])).contains("would write over"));
    assert!(place.refusal("a.tar", &tar(&[file("helper.py/x", "theirs")])).contains("would write over"));
    assert_eq!(place.read("helper.py"), "mine");
}

/// The header of an entry of ten gigabytes.
fn huge(kind: EntryType) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.as_old_mut().name[..4].copy_from_slice(b"bomb");
    header.set_mode(0o644);
    header.set_size(10 << 30);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[test]
fn a_bomb_of_ten_gigabytes_stops_early() {
    let zeros = gzip(&vec![0; 64 << 20]);
    let bomb = [gzip(&huge(EntryType::Regular)), zeros.repeat(160)].concat();
    let started = Instant::now();
    let mut place = Place::new();
    let said = place.refusal("bomb.tar.gz", &bomb);
    assert!(said.contains("more than 200 times its size (attachments.max_ratio)"), "{said}");
    let written = place.root().join("bomb").metadata().unwrap().len();
    assert!(written < 3 << 30, "{written}");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let mut small = Place::limited(Limits { size: 1 << 20, ..LIMITS });
    let said = small.refusal("bomb.tar.gz", &bomb);
    assert!(said.contains("more than the 1MiB") && said.contains("attachments.max_size"), "{said}");
}

#[test]
fn a_bomb_that_is_skipped_over_stops_as_well() {
    let zeros = gzip(&vec![0; 64 << 20]).repeat(160);
    let bomb = [gzip(&huge(EntryType::XGlobalHeader)), zeros.clone()].concat();
    assert!(Place::new().refusal("a.tgz", &bomb).contains("looks like a bomb"));
    // A name of ten gigabytes is not read into memory.
    let bomb = [gzip(&huge(EntryType::GNULongName)), zeros].concat();
    assert!(Place::new().refusal("a.tgz", &bomb).contains("no path is that long"));
}

#[test]
fn a_million_entries_stop_at_the_limit() {
    let folders = gzip(&entry(EntryType::Directory, "d/", "", 0o755, b"").repeat(10_000)).repeat(100);
    let said = Place::new().refusal("a.tar.gz", &folders);
    assert!(said.contains("more than the 100000 files and folders") && said.contains("max_files"), "{said}");
    let mut zipped = zip(&[("a", 0o644, "x")]);
    let end = zipped.len() - END_RECORD;
    zipped[end + 8..end + 12].copy_from_slice(&[0xfe, 0xff, 0xfe, 0xff]);
    let mut place = Place::limited(Limits { entries: 1000, ..LIMITS });
    assert!(place.refusal("a.zip", &zipped).contains("more than the 1000 files"));
}

/// The length of the last record of a zip without a comment.
const END_RECORD: usize = 22;

#[test]
fn all_archives_of_a_job_share_the_limits() {
    let mut place = Place::limited(Limits { entries: 3, ..LIMITS });
    place.unpack("a.tar", &tar(&[file("a", "1"), file("b", "1")])).unwrap().unwrap();
    assert!(
        place.refusal("b.tar", &tar(&[file("c", "1"), file("d", "1")])).contains("more than the 3 files")
    );
}

#[test]
fn an_encrypted_zip_is_told_to_be_one() {
    let mut bytes = zip(&[("secret", 0o644, "x")]);
    let central = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
    bytes[6] |= 1;
    bytes[central + 8] |= 1;
    assert_eq!(Place::new().refusal("a.zip", &bytes), "is encrypted; attach it without a password");
}

#[test]
fn an_archive_that_was_cut_short_is_broken() {
    let plain = a_tar();
    for (name, bytes) in [
        ("a.tar.gz", gzip(&plain)),
        ("a.tar.bz2", bzip2(&plain)),
        ("a.tar.xz", xz(&plain)),
        ("a.tar.zst", zstd(&plain)),
    ] {
        let said = Place::new().refusal(name, &bytes[..bytes.len() - 6]);
        assert!(said.starts_with("is broken: "), "{name}: {said}");
        let said = Place::new().refusal(name, &bytes[..8]);
        assert!(said.starts_with("is broken: "), "{name}: {said}");
    }
    let said = Place::new().refusal("a.tar", &file("a", "content")[..516]);
    assert!(said.starts_with("is broken: "), "{said}");
    let zipped = zip(&[("a", 0o644, "x"), ("b", 0o644, "y")]);
    assert!(Place::new().refusal("a.zip", &zipped[..zipped.len() - 10]).starts_with("is broken: "));
}

#[test]
fn long_names_of_both_kinds_of_tar_are_understood() {
    let long = format!("{}/{}.txt", "folder".repeat(15), "name".repeat(40));
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    builder.append_data(&mut header, &long, &b"gnu"[..]).unwrap();
    let gnu = builder.into_inner().unwrap();
    let record = format!(" path={long}\n");
    let length = record.len() + (record.len() + 3).to_string().len();
    let pax = tar(&[
        entry(EntryType::XHeader, "x", "", 0o644, format!("{length}{record}").as_bytes()),
        file("short", "pax"),
    ]);
    for (bytes, content) in [(gnu, "gnu"), (pax, "pax")] {
        let mut place = Place::new();
        place.unpack("a.tar", &bytes).unwrap().unwrap();
        assert_eq!(place.read(&long), content);
    }
}

#[test]
fn unpacking_ends_when_it_is_told_to() {
    let place = Place::new();
    let path = place.folder.path().join("attached");
    std::fs::write(&path, gzip(&a_tar())).unwrap();
    let mut budget = Budget::new(LIMITS);
    let result = unpack(File::open(path).unwrap(), "a.tgz", &place.root(), &mut budget, &|| true);
    assert!(matches!(result, Err(UnpackError::Stopped)));
}
