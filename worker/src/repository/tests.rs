//! Repositories made by the test itself, hostile ones among them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use spark_runtime_protocol::Job;

use super::*;

/// A repository with a working tree, and the cache of a worker.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.git(&["init", "--quiet", "--initial-branch=main", "model"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs git in the working tree.
    fn git(&self, arguments: &[&str]) -> String {
        let tree = self.path("model");
        let mut command = Command::new("git");
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("GIT_")) {
                command.env_remove(name);
            }
        }
        let output = command
            .args([
                "-c",
                "user.name=n",
                "-c",
                "user.email=e@x",
                "-c",
                "commit.gpgsign=false",
                "-c",
                "protocol.file.allow=always",
            ])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .current_dir(if tree.exists() { &tree } else { self.folder.path() })
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path("model").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits everything; gives the commit's id.
    fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message=m"]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn remote(&self) -> String {
        format!("file://{}", self.path("model").display())
    }

    fn repositories(&self, change: impl FnOnce(&mut GitSettings)) -> Repositories {
        let mut settings = crate::config::Settings::load(&crate::config::Sources::default()).unwrap().git;
        change(&mut settings);
        Repositories::new(&settings, self.path("cache"))
    }

    /// The assets of a job that has `files` in the repository, each with more of `repositoryInfo`.
    fn assets(&self, files: &[(&str, Value)]) -> Vec<RepositoryAsset> {
        let mut assets: Vec<Value> = files
            .iter()
            .map(|(path, info)| {
                let mut all = json!({"repositoryType": "GIT_REPO", "repositoryRemote": self.remote(), "filePath": path});
                all.as_object_mut().unwrap().extend(info.as_object().unwrap().clone());
                let name = format!("{}.py", path.replace('/', "_"));
                json!({"assetType": "SOURCE_CODE", "name": name, "repositoryInfo": all})
            })
            .collect();
        assets.push(json!({"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"}));
        let job = json!({"id": "j", "jobType": "MODEL_BATCH_JOB", "model": {"storedModel": {"modelAssets": assets}}});
        Job::read(job.to_string().as_bytes(), None).unwrap().in_git().to_vec()
    }

    async fn fetch(&self, files: &[(&str, Value)]) -> Result<Files, FetchError> {
        self.repositories(|_| {}).fetch(&self.assets(files)).await
    }

    /// The one fault that a fetch ends with.
    async fn fault(&self, path: &str, info: Value) -> String {
        match self.fetch(&[(path, info)]).await {
            Err(FetchError::Faults(faults)) => {
                assert_eq!(faults.len(), 1, "{faults:?}");
                assert_eq!(faults[0].pointer, "/model/storedModel/modelAssets/0");
                faults[0].message.clone()
            }
            other => panic!("{other:?}"),
        }
    }
}

fn contents(files: &Files) -> Vec<&[u8]> {
    files.sources.iter().map(|source| files.contents[&source.asset].as_slice()).collect()
}

#[tokio::test]
async fn a_branch_a_tag_a_commit_and_the_default_branch_give_their_files() {
    let place = Place::new();
    place.write("model.py", "one");
    place.write("pkg/helper.py", b"\xff\0helper");
    let first = place.commit();
    place.git(&["tag", "--annotate", "--message=t", "v1"]);
    place.write("model.py", "two");
    let second = place.commit();
    place.git(&["checkout", "--quiet", "-b", "feature/x"]);
    place.write("model.py", "three");
    let third = place.commit();
    place.git(&["checkout", "--quiet", "main"]);
    for (path, info, content, commit) in [
        ("model.py", json!({"repositoryBranch": "main"}), &b"two"[..], &second),
        ("model.py", json!({"tag": "v1"}), b"one", &first),
        ("model.py", json!({"commit": first, "branch": "main"}), b"one", &first),
        ("model.py", json!({"branch": "feature/x"}), b"three", &third),
        ("model.py", json!({}), b"two", &second),
        ("pkg/helper.py", json!({"branch": "main"}), b"\xff\0helper", &second),
    ] {
        let files = place.fetch(&[(path, info.clone())]).await.unwrap();
        assert_eq!(contents(&files), [content], "{info}");
        assert_eq!((&files.sources[0].commit, files.sources[0].path.as_str()), (commit, path), "{info}");
    }
}

#[tokio::test]
async fn a_branch_that_has_moved_is_looked_up_anew_and_a_commit_that_is_known_needs_no_repository() {
    let place = Place::new();
    place.write("model.py", "one");
    let first = place.commit();
    let of_branch = || json!({"branch": "main"});
    assert_eq!(contents(&place.fetch(&[("model.py", of_branch())]).await.unwrap()), [b"one"]);
    place.write("model.py", "two");
    place.git(&["add", "--all"]);
    // Nothing of the old one is left in the branch.
    place.git(&["commit", "--quiet", "--amend", "--message=other"]);
    assert_eq!(contents(&place.fetch(&[("model.py", of_branch())]).await.unwrap()), [b"two"]);
    std::fs::rename(place.path("model"), place.path("gone")).unwrap();
    assert_eq!(contents(&place.fetch(&[("model.py", json!({"commit": first}))]).await.unwrap()), [b"one"]);
    let error = place.fetch(&[("model.py", of_branch())]).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}

#[tokio::test]
async fn a_branch_a_tag_a_commit_or_a_file_that_is_not_there_is_the_jobs_fault() {
    let place = Place::new();
    place.write("model.py", "one");
    place.write("folder/x", "");
    place.commit();
    let remote = place.remote();
    let none = "0123456789abcdef0123456789abcdef01234567";
    for (path, info, words) in [
        ("model.py", json!({"branch": "mai"}), format!("{remote} has no branch mai")),
        ("model.py", json!({"tag": "main"}), format!("{remote} has no tag main")),
        ("model.py", json!({"commit": none}), format!("{remote} has no commit {none}")),
        ("model.txt", json!({"branch": "main"}), "there is no model.txt of branch main".to_owned()),
        ("model.py/x", json!({"branch": "main"}), "there is no model.py/x of branch main".to_owned()),
        ("folder", json!({"branch": "main"}), "is a folder; give a file".to_owned()),
    ] {
        let fault = place.fault(path, info).await;
        assert!(fault.contains(&words), "{fault}");
    }
    let empty = Place::new();
    assert!(empty.fault("model.py", json!({})).await.ends_with("has no default branch"));
}

#[tokio::test]
async fn a_commit_that_no_branch_leads_to_any_more_is_found_as_long_as_the_repository_gives_it_out() {
    let place = Place::new();
    place.write("model.py", "one");
    let first = place.commit();
    place.write("model.py", "two");
    place.git(&["add", "--all"]);
    place.git(&["commit", "--quiet", "--amend", "--message=other"]);
    assert_eq!(contents(&place.fetch(&[("model.py", json!({"commit": first}))]).await.unwrap()), [b"one"]);
}

#[tokio::test]
async fn nothing_of_a_hostile_repository_is_run() {
    let place = Place::new();
    let mark = place.path("mark");
    let touch = format!("#!/bin/sh\ntouch {}\ncat\n", mark.display());
    place.write("model.py", "one");
    place.write(".gitattributes", "*.py filter=evil diff=evil text eol=crlf ident\n");
    place.write(
        ".gitmodules",
        format!("[submodule \"-x\"]\n path = sub\n url = ext::sh -c 'touch% {}'\n", mark.display()),
    );
    place.write("hooks/post-checkout", &touch);
    place.write(
        "config",
        format!(
            "[core]\n fsmonitor = touch {0}\n hooksPath = hooks\n[filter \"evil\"]\n smudge = touch {0}\n",
            mark.display()
        ),
    );
    place.commit();
    for hook in [
        "post-checkout",
        "post-merge",
        "reference-transaction",
        "pre-auto-gc",
        "post-upload-pack",
        "pre-receive",
        "post-update",
    ] {
        let path = place.path("model/.git/hooks").join(hook);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &touch).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    place.git(&["config", "filter.evil.smudge", &format!("touch {}", mark.display())]);
    place.git(&["config", "uploadpack.packObjectsHook", &format!("touch {}", mark.display())]);
    let files = place.fetch(&[("model.py", json!({"branch": "main"}))]).await.unwrap();
    assert_eq!(contents(&files), [b"one"]);
    assert!(!mark.exists());
    let made: Vec<_> =
        std::fs::read_dir(place.path("cache")).unwrap().flatten().map(|entry| entry.path()).collect();
    let bare = made.iter().find(|path| path.extension().is_some_and(|ending| ending == "git")).unwrap();
    assert!(!bare.join("hooks").exists() && !bare.join("index").exists());
}

#[tokio::test]
async fn a_branch_that_is_named_like_an_option_is_a_branch() {
    let place = Place::new();
    place.write("model.py", "one");
    place.write("--upload-pack=x", "file");
    let commit = place.commit();
    for name in ["-x", "--help", "--upload-pack=false"] {
        place.git(&["update-ref", &format!("refs/heads/{name}"), &commit]);
        let files = place.fetch(&[("--upload-pack=x", json!({"branch": name}))]).await.unwrap();
        assert_eq!(contents(&files), [b"file"], "{name}");
        let fault = place.fault("model.py", json!({"branch": format!("{name}-none")})).await;
        assert!(fault.contains("has no branch"), "{fault}");
    }
}

#[tokio::test]
async fn links_are_followed_within_the_repository_and_never_out_of_it() {
    let place = Place::new();
    let secret = place.path("secret");
    std::fs::write(&secret, "secret").unwrap();
    place.write("folder/model.py", "one");
    let tree = place.path("model");
    for (link, target) in [
        ("inside.py", Path::new("folder/model.py")),
        ("behind", Path::new("folder")),
        ("out.py", secret.as_path()),
        ("up.py", Path::new("../secret")),
        ("outfolder", place.folder.path()),
        ("loop.py", Path::new("loop.py")),
        ("dangling.py", Path::new("nothing")),
        ("git.py", Path::new(".git/config")),
    ] {
        std::os::unix::fs::symlink(target, tree.join(link)).unwrap();
    }
    place.commit();
    for path in ["inside.py", "behind/model.py"] {
        assert_eq!(contents(&place.fetch(&[(path, json!({}))]).await.unwrap()), [b"one"], "{path}");
    }
    for path in ["out.py", "up.py", "outfolder/secret", "loop.py", "dangling.py", "git.py"] {
        let fault = place.fault(path, json!({})).await;
        assert!(fault.contains("leads to no file of the repository"), "{path}: {fault}");
    }
}

#[tokio::test]
async fn what_lies_in_a_submodule_is_not_fetched() {
    let place = Place::new();
    let other = Place::new();
    other.write("inner.py", "inner");
    other.commit();
    place.write("model.py", "one");
    place.git(&["submodule", "--quiet", "add", &other.remote(), "sub"]);
    place.commit();
    assert_eq!(contents(&place.fetch(&[("model.py", json!({}))]).await.unwrap()), [b"one"]);
    for path in ["sub", "sub/inner.py"] {
        let fault = place.fault(path, json!({})).await;
        assert!(fault.contains("submodule"), "{path}: {fault}");
    }
}

#[tokio::test]
async fn a_file_or_a_commit_that_is_too_large_is_refused() {
    let place = Place::new();
    place.write("model.py", "one");
    place.write("zeros.bin", vec![0_u8; 4 << 20]);
    place.commit();
    let assets = place.assets(&[("zeros.bin", json!({}))]);
    let small = place.repositories(|settings| settings.max_file = 1 << 20);
    let Err(FetchError::Faults(faults)) = small.fetch(&assets).await else { panic!() };
    assert!(faults[0].message.contains("has 4MiB; this worker takes 1MiB (git.max_file)"), "{faults:?}");
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..4 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .collect();
    place.write("noise.bin", noise);
    place.commit();
    let small = place.repositories(|settings| settings.max_fetch = 1 << 20);
    let fetched = small.fetch(&place.assets(&[("model.py", json!({}))])).await;
    let Err(FetchError::Faults(faults)) = fetched else { panic!("{fetched:?}") };
    assert_eq!(faults[0].message, "its repository takes more than 1MiB (git.max_fetch)");
    assert_eq!(crate::disk::size_of(&place.path("cache")), 0);
}

#[tokio::test]
async fn a_pointer_of_lfs_is_not_taken_for_the_file() {
    let place = Place::new();
    place.write("model.py", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n");
    place.commit();
    assert!(place.fault("model.py", json!({})).await.contains("is a pointer of Git LFS"));
}

#[tokio::test]
async fn a_transport_that_the_settings_do_not_take_is_not_tried() {
    let place = Place::new();
    place.write("model.py", "one");
    place.commit();
    let strict = place.repositories(|settings| settings.transports = vec!["https".to_owned()]);
    let Err(FetchError::Faults(faults)) = strict.fetch(&place.assets(&[("model.py", json!({}))])).await
    else {
        panic!()
    };
    assert_eq!(
        faults[0].message,
        "its repository is reached by file; this worker takes https (git.transports)"
    );
    assert!(!place.path("cache").exists());
}

#[tokio::test]
async fn a_repository_that_does_not_answer_is_given_up_in_time() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let place = Place::new();
    let port = listener.local_addr().unwrap().port();
    let silent = json!({"repositoryRemote": format!("http://127.0.0.1:{port}/x.git")});
    let hasty = place.repositories(|settings| {
        settings.timeout = Duration::from_millis(700);
        settings.transports = vec!["http".to_owned()];
    });
    let error = hasty.fetch(&place.assets(&[("model.py", silent)])).await.unwrap_err();
    assert!(matches!(error, FetchError::TooLong { .. }), "{error:?}");
    assert!(error.to_string().ends_with("took longer than 700ms (git.timeout)"), "{error}");
    drop(listener);
    let refused = json!({"repositoryRemote": format!("http://127.0.0.1:{port}/x.git")});
    let patient = place.repositories(|settings| settings.transports = vec!["http".to_owned()]);
    let error = patient.fetch(&place.assets(&[("model.py", refused)])).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn many_at_once_share_one_repository() {
    let place = Place::new();
    place.write("model.py", "one");
    place.commit();
    let assets = place.assets(&[("model.py", json!({"branch": "main"}))]);
    let fetching = (0..6).map(|_| {
        // Each as another worker.
        let (repositories, assets) = (place.repositories(|_| {}), assets.clone());
        tokio::spawn(async move { repositories.fetch(&assets).await })
    });
    for fetched in futures_util::future::join_all(fetching).await {
        assert_eq!(contents(&fetched.unwrap().unwrap()), [b"one"]);
    }
}

#[tokio::test]
async fn what_somebody_has_left_who_died_over_it_is_mended() {
    let place = Place::new();
    place.write("model.py", "one");
    place.commit();
    let wanted = [("model.py", json!({"branch": "main"}))];
    place.fetch(&wanted).await.unwrap();
    let bare = std::fs::read_dir(place.path("cache"))
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "git"))
        .unwrap();
    std::fs::write(bare.join("shallow.lock"), "").unwrap();
    std::fs::write(bare.join("objects/pack/tmp_pack_x"), "half").unwrap();
    std::fs::create_dir(bare.with_extension("part")).unwrap();
    place.write("model.py", "two");
    place.commit();
    assert_eq!(contents(&place.fetch(&wanted).await.unwrap()), [b"two"]);
    assert!(!bare.join("objects/pack/tmp_pack_x").exists());
    // Spoiled beyond what can be told: made anew.
    std::fs::write(bare.join("config"), "[core\n").unwrap();
    place.write("model.py", "three");
    place.commit();
    assert_eq!(contents(&place.fetch(&wanted).await.unwrap()), [b"three"]);
}

#[tokio::test]
async fn what_was_not_used_for_the_longest_time_goes_first() {
    let (first, second) = (Place::new(), Place::new());
    for place in [&first, &second] {
        place.write("model.py", "one");
        place.commit();
    }
    let most = |bytes: u64| {
        let mut settings = crate::config::Settings::load(&crate::config::Sources::default()).unwrap().git;
        settings.cache_size = bytes;
        Repositories::new(&settings, first.path("cache"))
    };
    let repositories = || {
        let found = std::fs::read_dir(first.path("cache")).unwrap().flatten();
        found.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "git")).count()
    };
    let of = |place: &Place| place.assets(&[("model.py", json!({}))]);
    most(1 << 30).fetch(&of(&first)).await.unwrap();
    let one = crate::disk::size_of(&first.path("cache"));
    most(1 << 30).fetch(&of(&second)).await.unwrap();
    assert_eq!(repositories(), 2);
    most(one + one / 2).fetch(&of(&second)).await.unwrap();
    assert_eq!(repositories(), 1);
    // The second one is still there: it costs no connection.
    let commit = second.git(&["rev-parse", "HEAD"]);
    std::fs::remove_dir_all(second.path("model/.git")).unwrap();
    most(0).fetch(&second.assets(&[("model.py", json!({"commit": commit}))])).await.unwrap();
    assert_eq!(repositories(), 0);
}

#[test]
fn credentials_are_looked_up_by_host_and_never_forgotten() {
    let place = Place::new();
    let file = place.path("it's a file");
    let line = "https://user:t0ken@git.example.com\n";
    std::fs::write(&file, line).unwrap();
    let mut settings = crate::config::Settings::load(&crate::config::Sources::default()).unwrap().git;
    settings.credentials = Some(file.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cache = Cache::new(place.path("cache"), 0);
        let deadline = Instant::now() + Duration::from_secs(60);
        let entry = cache.open(&Remote::new(&place.remote()).unwrap(), false, deadline).await.unwrap();
        let git = Git::new(&settings, &entry, deadline);
        let ask = async |verb: &str, host: &str| {
            let mut program = git.program(&["credential", verb]);
            program.environment.retain(|(name, _)| name != "GIT_DIR");
            assert!(program.arguments.iter().all(|argument| !argument.to_string_lossy().contains("t0ken")));
            program.input =
                format!("protocol=https\nhost={host}\nusername=user\npassword=t0ken\n\n").into_bytes();
            if verb == "fill" {
                program.input = format!("protocol=https\nhost={host}\n\n").into_bytes();
            }
            program.run().await.unwrap()
        };
        let found = ask("fill", "git.example.com").await;
        assert!(String::from_utf8_lossy(&found.output).contains("password=t0ken"), "{found:?}");
        assert!(!ask("fill", "other.example.com").await.status.success());
        assert!(ask("reject", "git.example.com").await.status.success());
        assert!(ask("approve", "third.example.com").await.status.success());
    });
    assert_eq!(std::fs::read_to_string(&file).unwrap(), line);
}
