//! The git program, told so that nothing that a job or a repository says can make it do anything else.
//!
//! Its configuration is given here whole: neither the machine's nor the user's counts. Transports are named one by one, so
//! that those that run programs (`ext::`) are none. No terminal and no dialog is asked for a password. Credentials are
//! read by a helper of git's own from a file, so that they are in no argument and in no log. What a job names is an argument of
//! its own behind `--end-of-options`, or a line of the standard input.
//!
//! This module must not know what the files are for.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Instant;

use sha2::{Digest, Sha256};
use spark_runtime_protocol::repository::{GitFile, RepositoryPath};

use super::cache::Entry;
use crate::config::GitSettings;
use crate::program::{Done, Program, ProgramError};

/// How much memory git may take, in bytes: what it unpacks was packed by somebody else.
const MOST_MEMORY: u64 = 2 << 30;
/// The most that git says about refs and objects, in bytes.
const MOST_WORDS: u64 = 4 << 20;
/// What of the worker's environment git needs to reach other machines.
const PASSED: [&str; 12] = [
    "PATH",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];

/// Git at work on one repository of the cache.
pub(super) struct Git<'a> {
    settings: &'a GitSettings,
    entry: &'a Entry,
    deadline: Instant,
}

/// What came of fetching.
pub(super) enum Fetched {
    /// The commit is there; its id.
    Commit(String),
    /// What was asked for is no commit.
    NoCommit,
    /// It takes more than is allowed.
    TooLarge,
    /// It did not work, and this is what git says.
    Failed(String),
}

/// What a look at the repository itself shows.
pub(super) enum Reached {
    /// It answers, and has what is asked for.
    WithIt,
    /// It answers, and has no such thing.
    WithoutIt,
    /// It does not answer, and this is what git says.
    No(String),
}

/// What lies at a path.
pub(super) enum Blob {
    /// A file.
    Found { id: String, size: u64 },
    /// Nothing.
    NotThere,
    /// Something else.
    NoFile(&'static str),
    /// A link that leads out of the repository, in a circle, or nowhere.
    LinkOut,
}

impl<'a> Git<'a> {
    pub(super) fn new(settings: &'a GitSettings, entry: &'a Entry, deadline: Instant) -> Self {
        Self { settings, entry, deadline }
    }

    /// Makes the commit that `wanted` names be there.
    pub(super) async fn fetch(&self, wanted: &GitFile) -> Result<Fetched, ProgramError> {
        if !self.entry.path.exists() {
            self.make().await?;
        }
        if let Some(commit) = &wanted.commit
            && let Some(commit) = self.commit_at(commit.as_str()).await?
        {
            return Ok(Fetched::Commit(commit));
        }
        let there = refname(wanted);
        // The commit by its id; where the other side gives none by its id, all that it has.
        let every = ["+refs/heads/*:refs/cached/heads/*", "+refs/tags/*:refs/cached/tags/*"];
        let mut steps = vec![(vec![format!("+{}:{there}", source(wanted))], "1")];
        if wanted.commit.is_some() {
            steps.push((every.map(str::to_owned).to_vec(), "2147483647"));
        }
        let mut words = String::new();
        for (specs, depth) in steps {
            let done = self.fetch_refs(wanted, &specs, depth).await?;
            if done.status.success() {
                let at = wanted.commit.as_ref().map_or(there.as_str(), |commit| commit.as_str());
                match self.commit_at(at).await? {
                    Some(commit) => return Ok(Fetched::Commit(commit)),
                    None if wanted.commit.is_none() => return Ok(Fetched::NoCommit),
                    None => {}
                }
            } else if self.entry.has_half_of(self.settings.max_fetch)
                || done.errors.contains("File too large")
            {
                self.entry.empty()?;
                return Ok(Fetched::TooLarge);
            }
            words = done.words();
        }
        Ok(Fetched::Failed(words))
    }

    async fn fetch_refs(
        &self,
        wanted: &GitFile,
        specs: &[String],
        depth: &str,
    ) -> Result<Done, ProgramError> {
        let depth = format!("--depth={depth}");
        let mut arguments = vec![
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            "--refmap=",
            &depth,
            "--end-of-options",
            wanted.remote.as_str(),
        ];
        arguments.extend(specs.iter().map(String::as_str));
        self.program(&arguments).run().await
    }

    /// Looks whether the repository itself answers and has what is asked for.
    pub(super) async fn look(&self, wanted: &GitFile) -> Result<Reached, ProgramError> {
        let source = source(wanted);
        let mut arguments =
            vec!["ls-remote", "--quiet", "--exit-code", "--end-of-options", wanted.remote.as_str()];
        if wanted.commit.is_none() {
            arguments.push(&source);
        }
        // What is spoiled here is not the other side's.
        let done = without_repository(self.program(&arguments)).run().await?;
        match done.status.code() {
            // A commit that no branch and no tag leads to is not given out; all of them were fetched.
            Some(0) if wanted.commit.is_some() => Ok(Reached::WithoutIt),
            Some(0) => {
                let listed = String::from_utf8_lossy(&done.output);
                let is_it = |line: &str| line.split_once('\t').is_some_and(|(_, name)| name == source);
                Ok(if listed.lines().any(is_it) { Reached::WithIt } else { Reached::WithoutIt })
            }
            Some(2) => Ok(Reached::WithoutIt),
            _ => Ok(Reached::No(done.words())),
        }
    }

    /// The id of the commit that a name of this repository leads to.
    async fn commit_at(&self, name: &str) -> Result<Option<String>, ProgramError> {
        let name = format!("{name}^{{commit}}");
        let done =
            self.program(&["rev-parse", "--verify", "--quiet", "--end-of-options", &name]).run().await?;
        let id = String::from_utf8_lossy(&done.output).trim().to_owned();
        if !done.status.success() || id.is_empty() {
            return Ok(None);
        }
        // An id that is only spelt right is given back as it is.
        let done = self.program(&["cat-file", "-e", &id]).run().await?;
        Ok(done.status.success().then_some(id))
    }

    /// Looks what lies at a path of a commit. Links within the repository are followed.
    pub(super) async fn find(&self, commit: &str, path: &RepositoryPath) -> Result<Blob, ProgramError> {
        let mut program = self.program(&["cat-file", "--batch-check", "--follow-symlinks"]);
        program.input = format!("{commit}:{path}\n").into_bytes();
        let done = program.run().await?;
        let said = String::from_utf8_lossy(&done.output);
        let line = said.lines().next().unwrap_or_default();
        let said_first = |word: &str| line.strip_prefix(word).is_some_and(|rest| rest.starts_with(' '));
        if ["symlink", "dangling", "loop", "notdir"].into_iter().any(said_first) {
            return Ok(if said_first("notdir") { Blob::NotThere } else { Blob::LinkOut });
        }
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            [id, "blob", size] => match size.parse() {
                Ok(size) => Ok(Blob::Found { id: id.to_owned(), size }),
                Err(_) => Err(unreadable(&done)),
            },
            [_, "tree", _] => Ok(Blob::NoFile("folder")),
            [_, "commit", _] => Ok(Blob::NoFile("submodule")),
            [_, "tag", _] => Ok(Blob::NoFile("tag")),
            _ if line.ends_with(" missing") => Ok(Blob::NotThere),
            _ => Err(unreadable(&done)),
        }
    }

    /// The bytes of a file.
    pub(super) async fn content(&self, id: &str, size: u64) -> Result<Vec<u8>, ProgramError> {
        let mut program = self.program(&["cat-file", "blob", id]);
        program.most_output = size;
        let done = program.run().await?;
        if done.status.success() && done.output.len() as u64 == size {
            return Ok(done.output);
        }
        Err(unreadable(&done))
    }

    /// Makes the bare repository, with nothing in it: no hook, no template.
    async fn make(&self) -> Result<(), ProgramError> {
        let half = self.entry.path.with_extension("part");
        let format = if self.entry.sha256 { "--object-format=sha256" } else { "--object-format=sha1" };
        let mut program = self.program(&["init", "--quiet", "--bare", "--template=", format]);
        // Here a repository is made, and none is there to work on.
        program.arguments.extend(["--end-of-options".into(), half.clone().into_os_string()]);
        let done = without_repository(program).run().await?;
        if !done.status.success() {
            return Err(unreadable(&done));
        }
        Ok(std::fs::rename(half, &self.entry.path)?)
    }

    pub(super) fn program(&self, arguments: &[&str]) -> Program {
        let settings = self.settings;
        let mut all: Vec<OsString> = Vec::new();
        let mut configure = |setting: OsString| all.extend(["-c".into(), setting]);
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "gc.auto=0",
            "maintenance.auto=false",
            // Always a pack: one file, whose size can be bounded.
            "fetch.unpackLimit=1",
            "transfer.bundleURI=false",
            "submodule.recurse=false",
            "pack.threads=1",
            "core.bigFileThreshold=32m",
            "core.packedGitWindowSize=32m",
            "core.packedGitLimit=256m",
            "core.deltaBaseCacheLimit=32m",
            "credential.helper=",
            "core.askPass=",
        ] {
            configure(setting.into());
        }
        if let Some(file) = &settings.credentials {
            configure(credential_helper(file));
        }
        all.push("--no-replace-objects".into());
        all.extend(arguments.iter().map(OsString::from));
        let mut environment: Vec<(OsString, OsString)> =
            PASSED.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))).collect();
        let folder = self.entry.path.parent().unwrap_or(Path::new("/"));
        for (name, value) in [
            ("GIT_DIR", self.entry.path.as_os_str()),
            // Nothing is configured there.
            ("HOME", folder.as_os_str()),
            ("GIT_CONFIG_NOSYSTEM", "1".as_ref()),
            ("GIT_CONFIG_SYSTEM", "/dev/null".as_ref()),
            ("GIT_CONFIG_GLOBAL", "/dev/null".as_ref()),
            ("GIT_ATTR_NOSYSTEM", "1".as_ref()),
            ("GIT_TERMINAL_PROMPT", "0".as_ref()),
            ("GIT_ASKPASS", "".as_ref()),
            ("SSH_ASKPASS", "".as_ref()),
            ("SSH_ASKPASS_REQUIRE", "never".as_ref()),
            ("GIT_SSH_COMMAND", "ssh -oBatchMode=yes".as_ref()),
            ("GIT_ALLOW_PROTOCOL", settings.transports.join(":").as_ref()),
            ("GIT_NO_LAZY_FETCH", "1".as_ref()),
            ("GIT_OPTIONAL_LOCKS", "0".as_ref()),
            ("LC_ALL", "C".as_ref()),
        ] {
            environment.push((name.into(), value.to_owned()));
        }
        Program {
            program: settings.program.clone(),
            arguments: all,
            environment,
            directory: folder.to_owned(),
            input: Vec::new(),
            most_output: MOST_WORDS,
            largest_file: Some(settings.max_fetch),
            most_memory: Some(MOST_MEMORY),
            deadline: self.deadline,
            held: Some(self.entry.lock.clone()),
        }
    }
}

/// Git with no repository of its own.
fn without_repository(mut program: Program) -> Program {
    program.environment.retain(|(name, _)| name != "GIT_DIR");
    let nowhere = ("GIT_CEILING_DIRECTORIES".into(), "/".into());
    program.environment.push(nowhere);
    program.directory = "/".into();
    program
}

/// What the repository calls what is asked for.
fn source(wanted: &GitFile) -> String {
    match (&wanted.commit, &wanted.tag, &wanted.branch) {
        (Some(commit), _, _) => commit.as_str().to_owned(),
        (None, Some(tag), _) => format!("refs/tags/{}", tag.as_str()),
        (None, None, Some(branch)) => format!("refs/heads/{}", branch.as_str()),
        (None, None, None) => "HEAD".to_owned(),
    }
}

/// What the cache calls it: a name of which nothing can be in the way.
fn refname(wanted: &GitFile) -> String {
    let digest = Sha256::digest(source(wanted));
    let digits: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("refs/cached/{digits}")
}

/// A helper that looks credentials up and does nothing else: asked to, `credential-store` itself would also forget those
/// that a server has refused once.
fn credential_helper(file: &Path) -> OsString {
    let quoted = file.to_string_lossy().replace('\'', r"'\''");
    let look = format!(r#"test "$1" = get && exec git credential-store --file='{quoted}' get"#);
    format!("credential.helper=!f() {{ {look}; }}; f").into()
}

fn unreadable(done: &Done) -> ProgramError {
    ProgramError::Lost(io::Error::other(done.words()))
}
