//! Git repositories made by tests.

#![expect(clippy::unwrap_used, reason = "a test that cannot have its repository cannot go on")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// A bare repository, and a tree from which it is filled.
#[derive(Debug)]
pub struct Repository {
    folder: tempfile::TempDir,
}

impl Repository {
    /// One with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        let repository = Self { folder: tempfile::tempdir().unwrap() };
        let folder = repository.folder.path();
        git(folder, &["init", "--quiet", "--bare", "--initial-branch=main", "model.git"]);
        git(folder, &["init", "--quiet", "--initial-branch=main", "tree"]);
        repository
    }

    /// The bare repository.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("model.git")
    }

    /// Commits these files to the branch `main`; gives the commit's id.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        let tree = self.folder.path().join("tree");
        for (name, content) in files {
            let path = tree.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        git(&tree, &["add", "--all"]);
        git(&tree, &["commit", "--quiet", "--allow-empty", "--message=m"]);
        git(&tree, &["push", "--quiet", &self.path().display().to_string(), "main"]);
        git(&tree, &["rev-parse", "HEAD"])
    }

    /// `repositoryInfo` of an asset whose content is here, on this branch.
    #[must_use]
    pub fn info(&self, branch: &str) -> Value {
        json!({"repositoryType": "GIT_REPO", "repositoryRemote": self.path().display().to_string(), "repositoryBranch": branch})
    }
}

impl Default for Repository {
    fn default() -> Self {
        Self::new()
    }
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("GIT_")) {
            command.env_remove(name);
        }
    }
    let output = command
        .args(["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
