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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Sources};
    use crate::spark::argv::{CommandLine, DefaultLogin};
    use crate::spark::policy::Policy;
    use crate::spark::{Mode, Sought};
    use crate::storage::Actor;
    use spark_runtime_protocol::event::Way;
    use spark_runtime_protocol::job::Job;

    #[tokio::test]
    async fn a_ticket_with_which_nothing_was_started_counts_no_more() {
        let place = tempfile::tempdir().unwrap();
        let (folder, directory) = (place.path().join("job"), place.path().join("attempt"));
        let working_directory = directory.join("work");
        for folder in [&folder, &working_directory] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB",
            "model": {"storedModel": {"modelAssets": [
                {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"}]}},
        });
        let policy: Policy = toml::from_str("").unwrap();
        let job = Job::read(document.to_string().as_bytes(), None).unwrap();
        let submission = Submission {
            sought: Sought {
                mode: Mode::Client,
                actor: Actor::Worker,
                identity: Identity { job: "j".to_owned(), digest: "d".to_owned() },
                directory,
                working_directory,
            },
            login: None,
            modules: None,
            environment: None,
            command_line: CommandLine::of(&job, &policy, "local", &DefaultLogin::default()).unwrap(),
            leaves_java_idle: false,
            runtime: None,
            way: Way::Spark,
            outputs: Vec::new(),
            output_folder: None,
            not_after: None,
        };
        let settings = Settings::load(&Sources::default()).unwrap();
        // There is no guard that could start anything.
        let client = ClientMode::new(&settings.spark, 1000, place.path().join("none"));
        let launch = Launch::of(JobFolder::here(&folder));
        let launcher = launch.pack(&submission).await.unwrap();
        assert_eq!(launcher.driver_arguments, ["--cluster", UNPACKED]);
        launch.issue(&submission.sought.identity).await.unwrap();
        assert!(launch.folder.tickets().await.unwrap().contains_key(&launch.ticket));
        assert!(launch.start(&client, &submission, launcher).await.is_err());
        assert!(launch.folder.tickets().await.unwrap().is_empty());
    }
}
