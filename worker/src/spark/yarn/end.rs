//! Ending an application, and knowing that it is over: only when the cluster says so is it gone.
//!
//! This module must not know why an application is to end.

use std::time::Duration;

use tokio::time::Instant;

use super::resource_manager::{Report, ResourceManager, ResourceManagerError};

/// How patient the ending of an application is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often it is looked whether it is over.
    pub look: Duration,
    /// How often it is asked to end while it is not: a ResourceManager that was restarted has forgotten that it was.
    pub ask: Duration,
    /// When to give up.
    pub most: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { look: Duration::from_secs(1), ask: Duration::from_secs(15), most: Duration::from_secs(300) }
    }
}

/// An application of which nothing runs any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The cluster says that it is over, and how. It may have ended by itself a moment before.
    Over(Box<Report>),
    /// The cluster knows of no such application, or of none any more.
    Unknown,
}

/// Why it is not known that an application is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// The cluster does not let us end it. It goes on.
    #[error("{id} cannot be ended: {source}")]
    Refused {
        /// The application.
        id: String,
        /// What the cluster says.
        source: ResourceManagerError,
    },
    /// It was asked to end, and goes on as far as is known.
    #[error("{id} was not over within {} s{}", .after.as_secs(), .source.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    GoesOn {
        /// The application.
        id: String,
        /// For how long was waited.
        after: Duration,
        /// Why the cluster could not be asked at last, if it could not.
        source: Option<ResourceManagerError>,
    },
}

/// Ends an application and waits until the cluster says that it is over. Cancelling the call leaves it asked to end.
///
/// # Errors
/// [`EndError`]: it may still run.
pub async fn end(cluster: &ResourceManager, id: &str, patience: Patience) -> Result<Ended, EndError> {
    let began = Instant::now();
    let mut asked: Option<Instant> = None;
    loop {
        // Looked for first: one that is over needs no killing, and what it says of its own end is the truth.
        let mut trouble = None;
        match cluster.application(id).await {
            Ok(Some(report)) if report.state.is_over() => return Ok(Ended::Over(Box::new(report))),
            Ok(Some(_)) => {
                if asked.is_none_or(|asked| asked.elapsed() >= patience.ask) {
                    match cluster.kill(id).await {
                        Ok(true) => asked = Some(Instant::now()),
                        // Gone in between; the next look says so too.
                        Ok(false) => {}
                        Err(source @ ResourceManagerError::Refused { .. }) => {
                            return Err(EndError::Refused { id: id.to_owned(), source });
                        }
                        Err(error) => trouble = Some(error),
                    }
                }
            }
            Ok(None) => return Ok(Ended::Unknown),
            Err(source @ ResourceManagerError::Refused { .. }) => {
                return Err(EndError::Refused { id: id.to_owned(), source });
            }
            Err(error) => trouble = Some(error),
        }
        if began.elapsed() >= patience.most {
            return Err(EndError::GoesOn { id: id.to_owned(), after: patience.most, source: trouble });
        }
        tokio::time::sleep(patience.look).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::resource_manager::Standing;
    use super::super::scripted::{Scripted, answer, report};
    use super::*;

    const PATIENCE: Patience = Patience {
        look: Duration::from_millis(5),
        ask: Duration::from_secs(60),
        most: Duration::from_secs(60),
    };
    const ID: &str = "application_1_1";
    const NOT_FOUND: &str = r#"{"RemoteException":{"exception":"NotFoundException","message":"not found"}}"#;

    fn is(state: &str) -> String {
        answer("200 OK", &format!(r#"{{"app":{}}}"#, report(ID, state, "t", 1)))
    }

    fn taken() -> String {
        answer("202 Accepted", r#"{"state":"RUNNING"}"#)
    }

    async fn ended(answers: Vec<String>, patience: Patience) -> (Result<Ended, EndError>, Vec<String>) {
        let cluster = Scripted::start(answers).await;
        let client = ResourceManager::new(std::slice::from_ref(&cluster.address), None).unwrap();
        let ended = end(&client, ID, patience).await;
        let verbs = cluster.asked().iter().map(|asked| asked[..3].to_owned()).collect();
        (ended, verbs)
    }

    #[tokio::test]
    async fn an_application_is_gone_when_the_cluster_says_so_and_not_when_it_was_asked_to_go() {
        let answers = vec![is("RUNNING"), taken(), is("RUNNING"), is("RUNNING"), is("KILLED")];
        let (ended, asked) = ended(answers, PATIENCE).await;
        let Ok(Ended::Over(report)) = ended else { panic!("{ended:?}") };
        assert_eq!(report.standing(), Standing::Killed);
        assert_eq!(asked, ["GET", "PUT", "GET", "GET", "GET"]);
    }

    #[tokio::test]
    async fn one_that_ended_by_itself_is_not_killed() {
        let (ended, asked) = ended(vec![is("FINISHED")], PATIENCE).await;
        assert!(matches!(ended, Ok(Ended::Over(_))), "{ended:?}");
        assert_eq!(asked, ["GET"]);
    }

    #[tokio::test]
    async fn a_cluster_that_is_away_for_a_while_or_forgets_is_asked_again() {
        let away = answer("503 Service Unavailable", "");
        let answers = vec![
            away.clone(),
            is("ACCEPTED"),
            away.clone(),
            is("ACCEPTED"),
            taken(),
            away,
            is("ACCEPTED"),
            taken(),
            answer("404 Not Found", NOT_FOUND),
        ];
        let (ended, asked) = ended(answers, Patience { ask: Duration::ZERO, ..PATIENCE }).await;
        assert_eq!(ended, Ok(Ended::Unknown));
        assert_eq!(asked, ["GET", "GET", "PUT", "GET", "PUT", "GET", "GET", "PUT", "GET", "GET"]);
    }

    #[tokio::test]
    async fn what_cannot_be_ended_is_told() {
        let forbidden =
            r#"{"RemoteException":{"exception":"ForbiddenException","message":"User ann cannot"}}"#;
        let (ended, _) = ended(vec![is("RUNNING"), answer("403 Forbidden", forbidden)], PATIENCE).await;
        let words = ended.unwrap_err().to_string();
        assert!(words.starts_with("application_1_1 cannot be ended: the ResourceManager at "), "{words}");
        assert!(words.ends_with(" refuses it: User ann cannot"), "{words}");
    }

    #[tokio::test]
    async fn one_that_goes_on_is_not_taken_for_gone() {
        let short = Patience { most: Duration::from_millis(50), ..PATIENCE };
        let (went_on, _) = ended(vec![is("RUNNING"), taken(), is("RUNNING")], short).await;
        assert_eq!(went_on.unwrap_err().to_string(), "application_1_1 was not over within 0 s");
        let (unknown, _) = ended(vec![answer("503 Service Unavailable", "")], short).await;
        let words = unknown.unwrap_err().to_string();
        assert!(
            words.starts_with("application_1_1 was not over within 0 s: no ResourceManager can be asked: "),
            "{words}"
        );
    }
}
