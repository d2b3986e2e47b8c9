//! A launch of a driver that is to run in a cluster: its ticket, what goes there, and spark-submit.
//!
//! The ticket is issued before spark-submit is started, and is revoked when nothing was started with it.
//!
//! This module must not know which kind of cluster it is.

use serde_json::json;

use super::argv::Sent;
use super::client_mode::{ClientMode, Launcher};
use super::elsewhere::Trouble;
use super::guard::Running;
use super::job_folder::JobFolder;
use super::pack::{ARCHIVE, UNPACKED, pack, uri};
use super::{Identity, Submission, SubmitError};

/// One launch of a job, of which nothing has begun.
pub(super) struct Launch {
    /// The job's.
    pub(super) folder: JobFolder,
    /// What its driver begins with.
    pub(super) ticket: String,
}

impl Launch {
    /// A new one.
    pub(super) fn of(folder: JobFolder) -> Self {
        Self { folder, ticket: uuid::Uuid::new_v4().simple().to_string() }
    }

    /// Packs what the driver needs; gives how spark-submit is to start it, as far as that is the same in every cluster.
    ///
    /// # Errors
    /// [`SubmitError::Directory`].
    pub(super) async fn pack(&self, submission: &Submission) -> Result<Launcher, SubmitError> {
        let told = json!({
            "jobFolder": self.folder.url(),
            "ticket": self.ticket,
            "outputs": submission.outputs,
            "outputFolder": submission.output_folder,
        });
        let archive = submission.sought.directory.join(ARCHIVE);
        let packing = tokio::task::spawn_blocking({
            let (from, to) = (submission.sought.working_directory.clone(), archive.clone());
            move || pack(&from, &to, &told.to_string())
        });
        let files =
            packing.await.map_err(std::io::Error::other).and_then(|packed| packed).map_err(|source| {
                SubmitError::Directory { what: "the archive of the job's files", source }
            })?;
        Ok(Launcher {
            sent: Sent { files, archives: vec![uri(&archive, Some(UNPACKED))], ..Sent::default() },
            properties: Vec::new(),
            driver_arguments: vec!["--cluster".into(), UNPACKED.into()],
        })
    }

    /// Issues the ticket, with a note of whose it is. From now on a driver may begin with it.
    ///
    /// # Errors
    /// It may be there all the same.
    pub(super) async fn issue(&self, identity: &Identity) -> Result<(), SubmitError> {
        let note = json!({"job": identity.job, "digest": identity.digest}).to_string();
        Ok(self.folder.issue(&self.ticket, &note).await.map_err(Trouble::from)?)
    }

    /// Starts spark-submit, and revokes the ticket when it was not started.
    ///
    /// # Errors
    /// Nothing was started.
    pub(super) async fn start(
        &self,
        client: &ClientMode,
        submission: &Submission,
        launcher: Launcher,
    ) -> Result<Running, SubmitError> {
        let started = client.start_launcher(submission, launcher).await;
        if started.is_err() {
            // Nothing was started with it; whoever comes next would revoke it as well.
            if let Err(error) = self.folder.revoke(&self.ticket).await {
                tracing::debug!(%error, "a ticket could not be revoked");
            }
        }
        started
    }
}
