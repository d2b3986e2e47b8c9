//! Files in git: what an asset's `repositoryInfo` says about where its content is.
//!
//! A SOURCE_CODE or FILE asset that brings no content along and whose `repositoryInfo.repositoryType` is `GIT_REPO` has its
//! content in a repository. The keys are those of ModelOp's JSON and the plain words for the same things; of two keys
//! for one thing the first counts.
//!
//! Whatever holds a [`Remote`], a [`RefName`], a [`Commit`] or a [`RepositoryPath`] can hand it to git: none of them is an
//! option, a transport that runs programs, or a pattern, and none holds credentials.
//!
//! This module must not fetch anything.

use std::fmt;

use serde_json::Value;

use crate::json::{Fault, step};

/// `repositoryInfo` of an asset.
pub const REPOSITORY_INFO: &str = "repositoryInfo";
/// What `repositoryInfo.repositoryType` says of a git repository.
pub const GIT: &str = "GIT_REPO";

/// Keys that name the repository.
pub const REMOTE_KEYS: [&str; 3] = ["repositoryRemote", "repositoryUrl", "url"];
/// Keys that name a commit.
pub const COMMIT_KEYS: [&str; 2] = ["repositoryCommit", "commit"];
/// Keys that name a tag.
pub const TAG_KEYS: [&str; 2] = ["repositoryTag", "tag"];
/// Keys that name a branch.
pub const BRANCH_KEYS: [&str; 2] = ["repositoryBranch", "branch"];
/// Keys that name the folder of the repository in which files are looked for.
pub const FOLDER_KEYS: [&str; 2] = ["repositoryPath", "subPath"];
/// The key that names the file, where it is not called as the asset is.
pub const FILE_KEY: &str = "filePath";

/// The longest address of a repository, in characters.
const LONGEST_REMOTE: usize = 2048;
/// The longest name of a branch or tag, and the longest path, in characters.
const LONGEST_NAME: usize = 1024;

/// How a repository is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A folder of the worker's machine.
    File,
    /// HTTP over TLS.
    Https,
    /// HTTP in the clear.
    Http,
    /// A secure shell.
    Ssh,
}

impl Transport {
    /// Every transport with its word, which is also git's.
    pub const ALL: [(&'static str, Self); 4] =
        [("file", Self::File), ("https", Self::Https), ("http", Self::Http), ("ssh", Self::Ssh)];

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, transport)| *transport == self).map_or("", |(word, _)| word)
    }
}

/// The address of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Remote(String);

/// Why a text is no address of a repository. None of the messages repeats the text: there may be a secret in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Longer than any address.
    #[error("has more than {LONGEST_REMOTE} characters")]
    TooLong,
    /// A control character.
    #[error("has a control character")]
    Character,
    /// A password, a token, or a user where there is no need for one.
    #[error(
        "holds credentials; leave them out: who may read the repository is a setting of the worker (git.credentials)"
    )]
    Credentials,
    /// A way of reaching a repository that is not taken.
    #[error(
        "is no address that is taken; give https://host/path, ssh://user@host/path, user@host:path, file:///path or /path"
    )]
    Unknown,
}

impl Remote {
    /// Takes `text` as the address of a repository.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn new(text: &str) -> Result<Self, RemoteError> {
        if text.chars().count() > LONGEST_REMOTE {
            return Err(RemoteError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(RemoteError::Character);
        }
        let taken = || Ok(Self(text.to_owned()));
        if text.starts_with('/') || text.starts_with("file:///") {
            return taken();
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let (authority, path) = rest.split_once('/').ok_or(RemoteError::Unknown)?;
            let host = match (scheme, authority.rsplit_once('@')) {
                ("https" | "http", Some(_)) => return Err(RemoteError::Credentials),
                ("ssh", Some((user, _))) if user.contains(':') => return Err(RemoteError::Credentials),
                ("ssh", Some((user, host))) if is_user(user) => host,
                ("https" | "http" | "ssh", None) => authority,
                _ => return Err(RemoteError::Unknown),
            };
            // Tokens are handed over in queries, too.
            if path.contains('?') || path.contains('#') {
                return Err(RemoteError::Credentials);
            }
            return if is_host_and_port(host) { taken() } else { Err(RemoteError::Unknown) };
        }
        // As secure copy writes it.
        match text.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?))) {
            Some((user, (host, path))) if is_user(user) && is_host(host) && !path.is_empty() => taken(),
            _ => Err(RemoteError::Unknown),
        }
    }

    /// The address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How it is reached.
    #[must_use]
    pub fn transport(&self) -> Transport {
        let has = |scheme: &str| self.0.starts_with(scheme);
        match () {
            () if has("/") || has("file://") => Transport::File,
            () if has("https://") => Transport::Https,
            () if has("http://") => Transport::Http,
            () => Transport::Ssh,
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_user(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.bytes().all(fits) && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
}

fn is_host(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    text.bytes().all(fits) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn is_host_and_port(text: &str) -> bool {
    let is_port = |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|b| b.is_ascii_digit());
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let fits = |b: u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
        let port = rest.strip_prefix(':');
        return !address.is_empty()
            && address.bytes().all(fits)
            && (rest.is_empty() || port.is_some_and(is_port));
    }
    match text.split_once(':') {
        Some((host, port)) => is_host(host) && is_port(port),
        None => is_host(text),
    }
}

/// The name of a branch or a tag, without `refs/heads/` or `refs/tags/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefName(String);

/// Why a text is no name of a branch or tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no name of a branch or tag: none has spaces, `~^:?*[\\`, `..`, `//`, `@{{`, or a part that begins with `.` or ends with `.lock`"
)]
pub struct RefNameError;

impl RefName {
    /// Takes `text` as the name of a branch or tag, by git's own rules.
    ///
    /// # Errors
    /// [`RefNameError`].
    pub fn new(text: &str) -> Result<Self, RefNameError> {
        let bad = |c: char| c <= ' ' || c == '\u{7f}' || "~^:?*[\\".contains(c);
        let part_fits = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
        let fits = text.chars().count() <= LONGEST_NAME
            && !text.contains(bad)
            && !text.contains("..")
            && !text.contains("@{")
            && !text.ends_with('.')
            && text.split('/').all(part_fits);
        if fits { Ok(Self(text.to_owned())) } else { Err(RefNameError) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A commit by its whole id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit(String);

/// Why a text is no id of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no id of a commit; give all of its 40 digits (0-9, a-f)")]
pub struct CommitError;

impl Commit {
    /// Takes `text` as the id of a commit: 40 hexadecimal digits, or 64 in a repository of SHA-256.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn new(text: &str) -> Result<Self, CommitError> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if digits && matches!(text.len(), 40 | 64) { Ok(Self(text.to_owned())) } else { Err(CommitError) }
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The path of a file or folder within a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryPath(String);

/// Why a text is no path within a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no path within a repository; give a plain relative path without `.`, `..`, empty steps or control characters"
)]
pub struct RepositoryPathError;

impl RepositoryPath {
    /// Takes `text` as a path within a repository.
    ///
    /// # Errors
    /// [`RepositoryPathError`].
    pub fn new(text: &str) -> Result<Self, RepositoryPathError> {
        let fits = text.chars().count() <= LONGEST_NAME
            && !text.contains(char::is_control)
            && !text.split('/').any(|part| matches!(part, "" | "." | ".."));
        if fits { Ok(Self(text.to_owned())) } else { Err(RepositoryPathError) }
    }

    /// The path, with `/` between its steps.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where in a repository the content of an asset is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitFile {
    /// The repository.
    pub remote: Remote,
    /// The commit; wins over the tag.
    pub commit: Option<Commit>,
    /// The tag; wins over the branch.
    pub tag: Option<RefName>,
    /// The branch. With none of the three, the repository's own default branch counts.
    pub branch: Option<RefName>,
    /// The file.
    pub path: RepositoryPath,
}

impl GitFile {
    /// What is asked for, in words: `branch main`, `tag v1`, `commit 0123...`, `the default branch`.
    #[must_use]
    pub fn revision(&self) -> String {
        match (&self.commit, &self.tag, &self.branch) {
            (Some(commit), _, _) => format!("commit {}", commit.as_str()),
            (None, Some(tag), _) => format!("tag {}", tag.as_str()),
            (None, None, Some(branch)) => format!("branch {}", branch.as_str()),
            (None, None, None) => "the default branch".to_owned(),
        }
    }
}

/// Whether the content of `asset`, which would stand under `content`, is in a git repository.
#[must_use]
pub fn is_in_git(asset: &Value, content: &str) -> bool {
    let repository_type = asset.get(REPOSITORY_INFO).and_then(|info| info.get("repositoryType"));
    asset.get(content).is_none_or(Value::is_null) && repository_type.and_then(Value::as_str) == Some(GIT)
}

/// Reads where in git the content of `asset`, which stands at `at` in its job, is. `own_keys` may hold its own path.
///
/// # Errors
/// Every fault of what the asset says about it.
pub fn read(asset: &Value, at: &str, own_keys: &[&str]) -> Result<GitFile, Vec<Fault>> {
    let at_info = step(at, REPOSITORY_INFO);
    let info = asset.get(REPOSITORY_INFO).unwrap_or(&Value::Null);
    let mut reader = Reader { faults: Vec::new() };
    let remote = reader.first(info, &at_info, &REMOTE_KEYS, Remote::new);
    if remote.is_none() && reader.faults.is_empty() {
        let message = "is missing; give the address of the repository";
        reader.faults.push(Fault::new(step(&at_info, REMOTE_KEYS[0]), message));
    }
    let commit = reader.first(info, &at_info, &COMMIT_KEYS, Commit::new);
    let tag = reader.first(info, &at_info, &TAG_KEYS, RefName::new);
    let branch = reader.first(info, &at_info, &BRANCH_KEYS, RefName::new);
    let folder = reader.first(info, &at_info, &FOLDER_KEYS, RepositoryPath::new);
    let named = reader.first(info, &at_info, &[FILE_KEY], RepositoryPath::new);
    let file = match named {
        Some(file) => Some(file),
        None if info.get(FILE_KEY).is_some_and(|file| !is_nothing(file)) => None,
        None => reader.own(asset, at, own_keys),
    };
    match (remote, file) {
        (Some(remote), Some(file)) if reader.faults.is_empty() => {
            let path = match folder {
                Some(folder) => RepositoryPath(format!("{folder}/{file}")),
                None => file,
            };
            Ok(GitFile { remote, commit, tag, branch, path })
        }
        _ => Err(reader.faults),
    }
}

/// What is not there, in one of the ways in which JSON says so.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

struct Reader {
    faults: Vec<Fault>,
}

impl Reader {
    /// What the first of `keys` that is there says; all of them are judged.
    fn first<T, E: fmt::Display>(
        &mut self,
        info: &Value,
        at: &str,
        keys: &[&str],
        take: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let mut first = None;
        for key in keys {
            let Some(value) = info.get(*key).filter(|value| !is_nothing(value)) else { continue };
            match value.as_str().map(&take) {
                Some(Ok(taken)) => first = first.or(Some(taken)),
                Some(Err(error)) => self.faults.push(Fault::new(step(at, key), error.to_string())),
                None => self.faults.push(Fault::new(step(at, key), "is no text; give a string")),
            }
        }
        first
    }

    /// The asset's own path, from the first of `keys` that it has.
    fn own(&mut self, asset: &Value, at: &str, keys: &[&str]) -> Option<RepositoryPath> {
        let found = keys.iter().find_map(|key| Some((key, asset.get(*key).filter(|path| !path.is_null())?)));
        let (key, words) = match found {
            Some((key, Value::String(path))) => match RepositoryPath::new(path) {
                Ok(path) => return Some(path),
                Err(error) => (*key, error.to_string()),
            },
            Some((key, _)) => (*key, "is no text; give a string".to_owned()),
            None => {
                (keys.first().copied().unwrap_or(FILE_KEY), "is missing; give the file's path".to_owned())
            }
        };
        self.faults.push(Fault::new(step(at, key), words));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_address_is_taken_when_it_can_only_be_a_repository() {
        for (text, transport) in [
            ("/srv/git/models.git", Transport::File),
            ("file:///srv/git/a b.git", Transport::File),
            ("https://host/a@b/c.git", Transport::Https),
            ("http://host:8080/c", Transport::Http),
            ("https://[::1]:443/c", Transport::Https),
            ("ssh://git@host:22/c.git", Transport::Ssh),
            ("ssh://host/c.git", Transport::Ssh),
            ("git@host.example:team/c.git", Transport::Ssh),
        ] {
            assert_eq!(Remote::new(text).map(|remote| remote.transport()), Ok(transport), "{text}");
        }
        for text in [
            "",
            "--upload-pack=touch /tmp/x",
            "ext::sh -c touch% /tmp/x",
            "fd::17",
            "../x",
            "relative/path",
            "git://host/c",
            "ftp://host/c",
            "file://host/c",
            "https://",
            "https://host",
            "https:///path",
            "ssh://-oProxyCommand=x/c",
            "ssh://-u@host/c",
            "-u@host:c",
            "git@-host:c",
            "git@host:",
            "host:c",
            "https://host:port/c",
        ] {
            assert_eq!(Remote::new(text), Err(RemoteError::Unknown), "{text}");
        }
        assert_eq!(Remote::new("/a\nb"), Err(RemoteError::Character));
    }

    #[test]
    fn an_address_with_credentials_is_refused_in_words_that_do_not_repeat_them() {
        for text in [
            "https://user:s3cret@host/c",
            "https://s3cret@host/c",
            "https://user@host/c",
            "ssh://git:s3cret@host/c",
            "https://host/c.git?private_token=s3cret",
        ] {
            let error = Remote::new(text).unwrap_err();
            assert_eq!(error, RemoteError::Credentials, "{text}");
            assert!(!error.to_string().contains("s3cret"));
        }
    }

    #[test]
    fn names_of_branches_are_those_that_git_takes() {
        for name in ["main", "feature/x", "-x", "--upload-pack=x", "\u{fc}", "a@b", "v1.0"] {
            assert!(RefName::new(name).is_ok(), "{name}");
        }
        for name in [
            "", "a b", "a:b", "+a:b", "a*", "a..b", "a//b", "/a", "a/", "a.", ".a", "a/.b", "a.lock",
            "a.lock/b", "a@{1}", "a^", "a~1", "a?", "a[", "a\\b", "a\n",
        ] {
            assert!(RefName::new(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_keys_of_modelop_and_the_plain_ones_are_read_and_the_first_counts() {
        let asset = json!({"name": "m.py", "repositoryInfo": {
            "repositoryType": "GIT_REPO", "url": "/b", "repositoryRemote": "/a", "repositoryBranch": "main",
            "tag": "", "commit": null, "subPath": "models/titanic"}});
        let file = read(&asset, "/x", &["sourceCodeFilePath", "name"]).unwrap();
        assert_eq!((file.remote.as_str(), file.path.as_str()), ("/a", "models/titanic/m.py"));
        assert_eq!(file.revision(), "branch main");
        let asset = json!({"name": "not/../a path", "repositoryInfo": {
            "repositoryType": "GIT_REPO", "url": "/b", "filePath": "src/m.py", "commit": "0".repeat(40), "branch": "main"}});
        let file = read(&asset, "/x", &["name"]).unwrap();
        assert_eq!((file.path.as_str(), file.revision()), ("src/m.py", format!("commit {}", "0".repeat(40))));
    }

    #[test]
    fn every_fault_of_a_repository_is_told_with_its_place() {
        let asset = json!({"name": "../m.py", "repositoryInfo": {
            "repositoryType": "GIT_REPO", "repositoryRemote": "ext::sh", "repositoryBranch": "a b", "commit": "abc", "tag": 7}});
        let places: Vec<_> =
            read(&asset, "/x", &["name"]).unwrap_err().into_iter().map(|fault| fault.pointer).collect();
        assert_eq!(
            places,
            [
                "/x/repositoryInfo/repositoryRemote",
                "/x/repositoryInfo/commit",
                "/x/repositoryInfo/tag",
                "/x/repositoryInfo/repositoryBranch",
                "/x/name"
            ]
        );
        let bare = json!({"name": "m.py", "repositoryInfo": {"repositoryType": "GIT_REPO"}});
        assert_eq!(
            read(&bare, "/x", &["name"]).unwrap_err()[0].pointer,
            "/x/repositoryInfo/repositoryRemote"
        );
    }
}
