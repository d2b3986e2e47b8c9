//! Which application is a job's: by its tag, and never by what a launcher has said.
//!
//! What is not there yet may still come: a launcher may be about to hand it over. That it never runs then is seen to by
//! whoever looks, with the tickets of [`crate::spark::job_folder`].
//!
//! This module must not submit anything.

use super::resource_manager::{Report, ResourceManager, ResourceManagerError};

/// The tag that the application of one launch carries besides.
#[must_use]
pub fn launch_tag(job_tag: &str, ticket: &str) -> String {
    format!("{job_tag}-{ticket}")
}

/// What was found of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// One of its applications is alive: it is to be followed, and nothing submitted.
    Alive {
        /// The one to follow: the first that was submitted, which is furthest.
        first: Report,
        /// Others, which are to be ended. There are none unless somebody else has submitted with the same tag.
        others: Vec<Report>,
    },
    /// All of its applications are over; the latest comes first.
    Over(Vec<Report>),
    /// There is none.
    Nothing,
}

/// Looks once for what carries `tag`.
///
/// # Errors
/// [`ResourceManagerError`]: then nothing is known, and nothing may be submitted.
pub async fn look(cluster: &ResourceManager, tag: &str) -> Result<Found, ResourceManagerError> {
    let mut found = cluster.certainly_tagged(tag).await?;
    found.sort_by(|one, other| (one.started_time, &one.id).cmp(&(other.started_time, &other.id)));
    let (mut alive, mut over): (Vec<Report>, Vec<Report>) =
        found.into_iter().partition(|report| !report.state.is_over());
    if alive.is_empty() {
        over.reverse();
        return Ok(if over.is_empty() { Found::Nothing } else { Found::Over(over) });
    }
    let first = alive.remove(0);
    Ok(Found::Alive { first, others: alive })
}

#[cfg(test)]
mod tests {
    use super::super::resource_manager::is_tag;
    use super::super::scripted::{Scripted, answer, listing, report};
    use super::*;
    use crate::spark::elsewhere::job_tag;

    fn client(cluster: &Scripted) -> ResourceManager {
        ResourceManager::new(std::slice::from_ref(&cluster.address), None).unwrap()
    }

    fn alive(found: &Found) -> Vec<&str> {
        let Found::Alive { first, others } = found else { panic!("{found:?}") };
        std::iter::once(first).chain(others).map(|report| report.id.as_str()).collect()
    }

    #[test]
    fn every_launch_has_a_tag_that_yarn_takes() {
        let job = job_tag("a", &"ü, \n".repeat(500), "d");
        let launch = launch_tag(&job, "0123456789abcdef0123456789abcdef");
        assert!(is_tag(&job) && is_tag(&launch), "{launch}");
        assert_ne!(launch, launch_tag(&job, "1123456789abcdef0123456789abcdef"));
    }

    #[tokio::test]
    async fn a_live_application_is_found_at_once_whatever_became_of_others() {
        let cluster = Scripted::start(vec![listing(&[
            &report("application_1_3", "RUNNING", "t", 3),
            &report("application_1_1", "FAILED", "t", 1),
            &report("application_1_2", "ACCEPTED", "t", 2),
        ])])
        .await;
        let found = look(&client(&cluster), "t").await.unwrap();
        assert_eq!(alive(&found), ["application_1_2", "application_1_3"]);
        assert_eq!(cluster.asked().len(), 1);
    }

    #[tokio::test]
    async fn nothing_is_nothing_only_where_the_cluster_says_so() {
        let cluster = Scripted::start(vec![listing(&[])]).await;
        assert_eq!(look(&client(&cluster), "t").await, Ok(Found::Nothing));
        let cluster =
            Scripted::start(vec![listing(&[]), listing(&[&report("application_1_1", "RUNNING", "t", 1)])])
                .await;
        let found = look(&client(&cluster), "t").await.unwrap();
        assert_eq!(alive(&found), ["application_1_1"], "it was not known before");
        let cluster = Scripted::start(vec![answer("500 Internal Server Error", "")]).await;
        let error = look(&client(&cluster), "t").await.unwrap_err();
        assert!(matches!(error, ResourceManagerError::Away(_)));
    }

    #[tokio::test]
    async fn of_those_that_are_over_the_latest_comes_first() {
        let cluster = Scripted::start(vec![listing(&[
            &report("application_1_1", "FAILED", "t", 1),
            &report("application_1_2", "FINISHED", "t", 2),
        ])])
        .await;
        let found = look(&client(&cluster), "t").await.unwrap();
        let Found::Over(reports) = found else { panic!("{found:?}") };
        assert_eq!(reports[0].id, "application_1_2");
    }
}
