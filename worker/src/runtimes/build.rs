//! Making an environment: of what a job requires, with uv or pip, or of a packed one.
//!
//! Installers get an environment of their own: no configuration of the machine or the user counts but `~/.netrc`, by which
//! both know the credentials of an index. Unless the settings let sources be built, nothing that was downloaded is run.
//!
//! This module must not know which environments there are.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::listed::python_of;
use crate::config::{RuntimeSettings, size_text};
use crate::disk::size_of;
use crate::program::{Done, Program, ProgramError};

/// How often the size of what is made is looked at.
const LOOKING: Duration = Duration::from_secs(1);
/// The most that an installer may say, in bytes.
const MOST_WORDS: u64 = 16 << 20;
/// What of the worker's environment an installer needs.
const PASSED: [&str; 16] = [
    "PATH",
    "HOME",
    "LANG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];
/// What installers say when there is no way to have all that is asked for.
const IMPOSSIBLE: [&str; 8] = [
    "No matching distribution found",
    "ResolutionImpossible",
    "Cannot install",
    "No solution found",
    "Requires-Python",
    "is not a valid wheel filename",
    "THESE PACKAGES DO NOT MATCH THE HASHES",
    "Hash mismatch",
];
/// What they say when they could not ask.
const OUT_OF_REACH: [&str; 9] = [
    "after connection broken by",
    "CERTIFICATE_VERIFY_FAILED",
    "Failed to establish a new connection",
    "NewConnectionError",
    "Connection refused",
    "Read timed out",
    "error sending request",
    "Temporary failure in name resolution",
    "Max retries exceeded",
];

/// Why an environment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// What is asked for cannot be had, whoever tries.
    #[error("{0}")]
    Impossible(String),
    /// It may work later, or elsewhere.
    #[error("{0}")]
    Failed(String),
    /// The file system.
    #[error("the environment could not be written: {0}")]
    Folder(#[from] io::Error),
}

/// What an environment is made of.
#[derive(Debug)]
pub(super) struct Recipe<'a> {
    pub(super) settings: &'a RuntimeSettings,
    /// The Python that it is made with.
    pub(super) base: &'a Path,
    /// The requirements, one a line.
    pub(super) requirements: &'a str,
    /// Options that say where packages come from, of the job.
    pub(super) indexes: &'a [String],
    /// Some of the requirements have hashes.
    pub(super) is_hashed: bool,
    pub(super) deadline: Instant,
}

impl Recipe<'_> {
    /// Makes the environment in `folder`; its Python is [`python_of`] of `environment` in there.
    pub(super) async fn follow(
        &self,
        folder: &Path,
        held: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), BuildError> {
        let list = folder.join("requirements.txt");
        std::fs::write(&list, self.requirements)?;
        let temporary = folder.join("tmp");
        std::fs::create_dir(&temporary)?;
        let environment = environment_in(folder);
        let uv = self.uv();
        let mut install: Vec<OsString> = Vec::new();
        match &uv {
            Some(uv) => {
                let words = ["venv", "--quiet", "--no-config", "--no-python-downloads", "--python"]
                    .map(OsString::from);
                let make: Vec<OsString> =
                    words.into_iter().chain([self.base.into(), environment.clone().into()]).collect();
                self.run(folder, uv, make, &held).await?;
                install.extend(
                    ["pip", "install", "--quiet", "--no-config", "--no-cache", "--python"].map(Into::into),
                );
                install.push(python_of(&environment).into());
            }
            None => {
                let make = vec!["-m".into(), "venv".into(), environment.clone().into()];
                self.run(folder, self.base, make, &held).await?;
                install.extend(
                    ["-m", "pip", "install", "--quiet", "--no-input", "--no-cache-dir"].map(Into::into),
                );
                install.push("--disable-pip-version-check".into());
            }
        }
        if !self.settings.builds_sources {
            install.push("--only-binary=:all:".into());
        }
        if self.is_hashed {
            install.push("--require-hashes".into());
        }
        if let Some(Index::Folder(wheels)) = &self.settings.index {
            install.extend(["--no-index".into(), "--find-links".into(), wheels.into()]);
        }
        install.extend(self.indexes.iter().map(Into::into));
        install.extend(["-r".into(), list.into()]);
        let installer = uv.unwrap_or_else(|| python_of(&environment));
        self.run(folder, &installer, install, &held).await?;
        std::fs::remove_dir_all(temporary)?;
        Ok(())
    }

    /// The uv that is to be used, if one is.
    fn uv(&self) -> Option<PathBuf> {
        let is_uv = |path: &Path| path.file_name() == Some(OsStr::new("uv"));
        if let Some(builder) = &self.settings.builder {
            return is_uv(builder).then(|| builder.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join("uv")).find(|uv| uv.is_file())
    }

    async fn run(
        &self,
        folder: &Path,
        program: &Path,
        arguments: Vec<OsString>,
        held: &Arc<dyn Any + Send + Sync>,
    ) -> Result<(), BuildError> {
        let most = self.settings.build_size;
        let mut environment: Vec<(OsString, OsString)> =
            PASSED.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))).collect();
        let temporary = folder.join("tmp");
        for (name, value) in [
            ("TMPDIR", temporary.as_os_str()),
            ("PIP_CONFIG_FILE", "/dev/null".as_ref()),
            ("PIP_NO_INPUT", "1".as_ref()),
            ("UV_NO_PROGRESS", "1".as_ref()),
            ("PYTHONDONTWRITEBYTECODE", "1".as_ref()),
        ] {
            environment.push((name.into(), value.to_owned()));
        }
        if let Some(Index::Url(url)) = &self.settings.index {
            environment.push(("PIP_INDEX_URL".into(), url.into()));
            environment.push(("UV_DEFAULT_INDEX".into(), url.into()));
        }
        let program = Program {
            program: program.to_owned(),
            arguments,
            environment,
            directory: folder.to_owned(),
            input: Vec::new(),
            most_output: MOST_WORDS,
            largest_file: Some(most),
            most_memory: None,
            deadline: self.deadline,
            held: Some(held.clone()),
        };
        tokio::select! {
            done = program.run() => ended(done, self.settings.build_timeout),
            () = too_large(folder, most) => {
                let most = size_text(most);
                Err(BuildError::Impossible(format!("the environment takes more than {most} (runtimes.build_size)")))
            }
        }
    }
}

/// Where in its folder an environment is.
pub(super) fn environment_in(folder: &Path) -> PathBuf {
    folder.join("environment")
}

/// Where packages come from, when that is not the index of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Index {
    /// An index.
    Url(String),
    /// A folder of wheels.
    Folder(PathBuf),
}

/// Unpacks an environment into `folder`.
pub(super) async fn unpack(
    archive: &Path,
    folder: &Path,
    deadline: Instant,
    held: Arc<dyn Any + Send + Sync>,
) -> Result<(), BuildError> {
    let environment = environment_in(folder);
    std::fs::create_dir(&environment)?;
    let arguments: Vec<OsString> =
        vec!["-x".into(), "-f".into(), archive.into(), "-C".into(), environment.clone().into()];
    let helper = |program: PathBuf, arguments: Vec<OsString>| Program {
        program,
        arguments,
        environment: vec![("PATH".into(), std::env::var_os("PATH").unwrap_or_default())],
        directory: folder.to_owned(),
        input: Vec::new(),
        most_output: MOST_WORDS,
        largest_file: None,
        most_memory: None,
        deadline,
        held: Some(held.clone()),
    };
    let patience = deadline.saturating_duration_since(Instant::now());
    ended(helper("tar".into(), arguments).run().await, patience)?;
    // Made by conda-pack: the paths in it are still those of where it was packed.
    let unpacker = environment.join("bin").join("conda-unpack");
    if unpacker.exists() {
        let arguments = vec![unpacker.into_os_string()];
        ended(helper(python_of(&environment), arguments).run().await, patience)?;
    }
    Ok(())
}

async fn too_large(folder: &Path, most: u64) {
    loop {
        tokio::time::sleep(LOOKING).await;
        let folder = folder.to_owned();
        if tokio::task::spawn_blocking(move || size_of(&folder)).await.is_ok_and(|size| size > most) {
            return;
        }
    }
}

fn ended(done: Result<Done, ProgramError>, patience: Duration) -> Result<(), BuildError> {
    match done {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = |words: &[&str]| words.iter().any(|words| done.errors.contains(words));
            let words = done.words();
            if said(&IMPOSSIBLE) && !said(&OUT_OF_REACH) {
                return Err(BuildError::Impossible(words));
            }
            Err(BuildError::Failed(words))
        }
        Err(ProgramError::TooLong) => {
            let patience = crate::config::duration_text(patience);
            Err(BuildError::Failed(format!("it was not made within {patience} (runtimes.build_timeout)")))
        }
        Err(error) => Err(BuildError::Failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn what_cannot_be_had_is_told_from_what_could_not_be_asked_for() {
        let failed = |errors: &str| {
            let done = Done {
                status: std::process::ExitStatus::from_raw(256),
                output: Vec::new(),
                errors: errors.to_owned(),
            };
            ended(Ok(done), Duration::from_secs(1)).unwrap_err()
        };
        let none = "ERROR: No matching distribution found for x==9\n";
        assert!(matches!(failed(none), BuildError::Impossible(words) if words.contains("x==9")));
        for out_of_reach in [
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(...)': /simple/x/\n",
            "Failed to establish a new connection: [Errno 111] Connection refused\n",
        ] {
            assert!(
                matches!(failed(&format!("{out_of_reach}{none}")), BuildError::Failed(_)),
                "{out_of_reach}"
            );
        }
        assert!(matches!(failed("something else\n"), BuildError::Failed(_)));
        let late = ended(Err(ProgramError::TooLong), Duration::from_secs(600)).unwrap_err();
        assert_eq!(late.to_string(), "it was not made within 10m (runtimes.build_timeout)");
    }
}
