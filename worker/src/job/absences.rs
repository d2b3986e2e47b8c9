//! What this machine itself has found missing at the places of a job's local outputs, kept for later attempts here.
//!
//! A path of a local file system is another place on every machine. Which outputs were there before a job's first attempt
//! stands in its first claim, but that was said of the machine that made it. So nothing local is removed as an earlier
//! attempt's that this machine did not find missing itself when an attempt of the same job began here: only of that is it
//! certain that it came later. Workers of one machine share what they know when they share `job.directory`.
//!
//! This module must not know which outputs a job has, nor remove any.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Claim;

/// The folder of all notes, in the one of the settings.
const NOTES: &str = "absences";

/// The folder of all notes, in `job.directory`.
#[must_use]
pub fn notes_folder(directory: &Path) -> PathBuf {
    directory.join(NOTES)
}

/// What is noted of one job: the outputs, by their index, that were not there.
#[derive(Debug, Clone)]
pub struct Absences(PathBuf);

impl Absences {
    /// Of the job of a claim, in `job.directory`. Touches nothing.
    #[must_use]
    pub fn of(directory: &Path, claim: &Claim) -> Self {
        // Another body is another job, whatever its id; and what was missing before an end that an operator has undone may
        // have been put there since.
        let life = claim.undone.to_string();
        let mut hasher = Sha256::new();
        for part in [claim.job.as_str(), &claim.digest, &life] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let name: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Self(notes_folder(directory).join(name))
    }

    /// What was noted; nothing where that cannot be told. Blocks.
    #[must_use]
    pub fn known(&self) -> Vec<u16> {
        let read = std::fs::read(&self.0).and_then(|text| Ok(serde_json::from_slice(&text)?));
        read.unwrap_or_else(|error: io::Error| {
            if error.kind() != ErrorKind::NotFound {
                tracing::warn!(%error, path = %self.0.display(), "what this machine knew of a job's outputs cannot be read");
            }
            Vec::new()
        })
    }

    /// Notes what is missing besides. Blocks.
    ///
    /// # Errors
    /// What the file system says; then what an attempt leaves will not be removed by the next.
    pub fn note(&self, missing: &[u16]) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut all = self.known();
        all.extend(missing);
        all.sort_unstable();
        all.dedup();
        if let Some(folder) = self.0.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        // As a whole or not at all, and by a name that no other worker of this machine uses.
        let new = self.0.with_extension(uuid::Uuid::new_v4().simple().to_string());
        std::fs::write(&new, serde_json::to_vec(&all)?)?;
        std::fs::rename(&new, &self.0)
    }

    /// Removes what was noted: the job is over. Blocks.
    pub fn forget(&self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::debug!(%error, path = %self.0.display(), "a note about a job's outputs could not be removed");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missing_is_known_until_it_is_forgotten_and_of_no_other_job() {
        let place = tempfile::tempdir().unwrap();
        let of = |name: &str| Absences(notes_folder(place.path()).join(name));
        assert_eq!(of("a").known(), [0_u16; 0]);
        of("a").note(&[2, 0]).unwrap();
        of("a").note(&[1, 2]).unwrap();
        assert_eq!((of("a").known(), of("b").known()), (vec![0, 1, 2], vec![]));
        // What somebody else wrote there is nothing that is known.
        std::fs::write(&of("a").0, "nonsense").unwrap();
        assert_eq!(of("a").known(), [0_u16; 0]);
        of("a").forget();
        of("a").forget();
        assert!(!of("a").0.exists());
    }
}
