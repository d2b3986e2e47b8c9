use super::*;
use serde_json::json;
use std::os::unix::fs::symlink;

/// A worker's side and a place to upload to, both of this machine.
struct Sides {
    folder: tempfile::TempDir,
}

impl Sides {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("work/outputDir/sub")).unwrap();
        Self { folder }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("work").join(OUTPUT_FOLDER)
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.output().join(name), content).unwrap();
    }

    fn look(&self) -> Look {
        look(&self.output(), 100, &|| false).unwrap()
    }

    fn place(&self) -> Place {
        let url = self.folder.path().join("there").display().to_string();
        Storage::default().place(&url).unwrap().child("j").unwrap()
    }

    fn there(&self) -> PathBuf {
        self.folder.path().join("there/j")
    }

    async fn send(&self, lease_ends: Option<BootTime>) -> Result<(), SendError> {
        let (_sender, lease) = watch::channel(lease_ends);
        let sending = Sending {
            folder: &self.place(),
            root: self.output(),
            memory: Semaphore::new(MEMORY as usize),
            lease_ends: Some(&lease),
        };
        sending.all(&JobId::new("j").unwrap(), &self.look().files).await
    }

    /// Every file at the place with its inode: one that was written again has another.
    fn inodes(&self) -> Vec<(String, u64)> {
        use std::os::unix::fs::MetadataExt;
        let mut files = Vec::new();
        let mut folders = vec![self.there()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(self.there()).unwrap().display().to_string();
                    files.push((name, path.metadata().unwrap().ino()));
                }
            }
        }
        files.sort();
        files
    }
}

#[test]
fn every_file_is_found_with_its_size_and_digest() {
    let sides = Sides::new();
    sides.write("model.bin", b"abc");
    sides.write("sub/empty", b"");
    symlink("model.bin", sides.output().join("latest")).unwrap();
    let look = sides.look();
    assert_eq!(look.complaints, Vec::<String>::new());
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let found: Vec<_> = look.files.iter().map(|f| (f.path.as_str(), f.size, &f.sha256[..8])).collect();
    assert_eq!(found, [("latest", 3, &abc[..8]), ("model.bin", 3, &abc[..8]), ("sub/empty", 0, "e3b0c442")]);
}

#[test]
fn a_link_out_of_the_folder_is_not_followed_and_told() {
    let sides = Sides::new();
    sides.write("model.bin", b"abc");
    std::fs::write(sides.folder.path().join("secret"), "x").unwrap();
    symlink("../../secret", sides.output().join("out")).unwrap();
    symlink("../..", sides.output().join("folder")).unwrap();
    symlink("nowhere", sides.output().join("dangling")).unwrap();
    nix::unistd::mkfifo(&sides.output().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    sides.write("line\nbreak", b"x");
    sides.write(MANIFEST, b"x");
    let look = sides.look();
    assert_eq!(look.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["model.bin"]);
    assert_eq!(look.complaints.len(), 6, "{:?}", look.complaints);
    // A folder that is a link itself is not gone into.
    std::fs::remove_dir_all(sides.output()).unwrap();
    symlink("..", sides.output()).unwrap();
    assert_eq!(sides.look().complaints, ["outputDir is no folder; nothing of it is taken along"]);
}

#[test]
fn too_many_files_are_told_with_what_to_do() {
    let sides = Sides::new();
    for n in 0..3 {
        sides.write(&n.to_string(), b"x");
    }
    let error = look(&sides.output(), 2, &|| false).unwrap_err();
    assert_eq!(error.class(), FailureClass::Model);
    assert!(error.to_string().contains("more than 2 files in outputDir (training.max_files)"), "{error}");
    assert!(matches!(look(&sides.output(), 2, &|| true), Err(LookError::Stopped)));
}

#[tokio::test]
async fn what_is_there_already_is_not_uploaded_again() {
    let sides = Sides::new();
    sides.write("same", b"same");
    sides.write("sub/changed", b"one");
    sides.write("gone", b"gone");
    sides.send(None).await.unwrap();
    std::fs::write(sides.there().join("not ours"), "x").unwrap();
    // A worker died while it wrote.
    std::fs::write(sides.there().join("same#1"), "sa").unwrap();
    let before = sides.inodes();
    sides.write("sub/changed", b"two");
    std::fs::remove_file(sides.output().join("gone")).unwrap();
    sides.send(None).await.unwrap();
    let after = sides.inodes();
    let names: Vec<_> = after.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, [MANIFEST, "not ours", "same", "sub/changed"]);
    assert!(before.contains(after.iter().find(|(name, _)| name == "same").unwrap()));
    assert_eq!(std::fs::read(sides.there().join("sub/changed")).unwrap(), b"two");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(sides.there().join(MANIFEST)).unwrap()).unwrap();
    assert_eq!(manifest["files"].as_array().unwrap().len(), 2);
    // Nothing changed: nothing is written, not even the manifest.
    sides.send(None).await.unwrap();
    assert_eq!(sides.inodes(), after);
}

#[tokio::test]
async fn a_file_that_nobody_has_written_down_is_not_taken_for_one_of_ours() {
    let sides = Sides::new();
    sides.write("model", b"ours");
    std::fs::create_dir_all(sides.there()).unwrap();
    std::fs::write(sides.there().join("model"), "oops").unwrap();
    sides.send(None).await.unwrap();
    assert_eq!(std::fs::read(sides.there().join("model")).unwrap(), b"ours");
    // A manifest that leads elsewhere removes nothing.
    std::fs::write(sides.folder.path().join("there/precious"), "x").unwrap();
    let lie =
        json!({"version": 1, "jobId": "j", "files": [{"path": "../precious", "size": 1, "sha256": ""}]});
    std::fs::write(sides.there().join(MANIFEST), lie.to_string()).unwrap();
    assert!(matches!(sides.send(None).await, Err(SendError::Manifest(_))));
    assert!(sides.folder.path().join("there/precious").exists());
}

#[tokio::test]
async fn a_large_file_goes_in_parts_and_arrives_whole() {
    let sides = Sides::new();
    let content: Vec<u8> = (0..(PART * 2 + 1)).map(|n| u8::try_from(n % 251).unwrap()).collect();
    sides.write("large", &content);
    sides.write("one part", &content[..usize::try_from(PART).unwrap()]);
    sides.send(None).await.unwrap();
    assert!(std::fs::read(sides.there().join("large")).unwrap() == content);
    assert_eq!(sides.inodes().len(), 3);
}

#[tokio::test]
async fn nothing_is_made_visible_once_the_lease_is_over() {
    let sides = Sides::new();
    sides.write("model", b"x");
    let over = sides.send(Some(BootTime::from_nanoseconds(1))).await;
    assert!(matches!(over, Err(SendError::LeaseOver)), "{over:?}");
    assert!(!sides.there().join("model").exists());
}

#[test]
fn no_file_has_more_parts_than_s3_takes() {
    assert_eq!(part_size(1), PART);
    for size in [1_u64 << 30, 1 << 40, 5 << 40] {
        let part = part_size(size);
        assert!(size.div_ceil(part) <= MOST_PARTS && part.is_multiple_of(1 << 20), "{size}: {part}");
    }
}

#[test]
fn a_jobs_folder_has_a_name_that_every_store_takes() {
    assert_eq!(folder_of(&JobId::new("a:b-c_1").unwrap()), "a~b-c_1");
    assert_eq!(folder_of(&JobId::new("::").unwrap()), "~~");
}
