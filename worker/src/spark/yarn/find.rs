//! Which application is a job's: by its tag, and never by what a launcher has said.
//!
//! What is not there yet may still come: a launcher may be about to hand it over. That it never runs then is seen to by
//! whoever looks, with the tickets of [`super::job_folder`].
//!
//! This module must not submit anything.

use sha2::{Digest, Sha256};

use super::resource_manager::{Report, ResourceManager, ResourceManagerError};

/// What every tag of ours begins with.
const PREFIX: &str = "spark-runtime";
/// How many digits of a digest a tag has: so many that no two jobs of a cluster ever share one.
const DIGITS: usize = 32;

/// The tag that every application of a job carries. Job ids have upper case, and any length; no tag has. `service` sets the
/// jobs of one service apart from those of another on the same cluster, whose ids may be the same, and so does the `digest`
/// of the job's body.
#[must_use]
pub fn job_tag(service: &str, job: &str, digest: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [service, job, digest] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}-{}", &digest[..DIGITS])
}

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

    fn client(cluster: &Scripted) -> ResourceManager {
        ResourceManager::new(std::slice::from_ref(&cluster.address), None).unwrap()
    }

    fn alive(found: &Found) -> Vec<&str> {
        let Found::Alive { first, others } = found else { panic!("{found:?}") };
        std::iter::once(first).chain(others).map(|report| report.id.as_str()).collect()
    }

    #[test]
    fn every_job_and_launch_has_a_tag_of_its_own_that_yarn_takes() {
        let tags = [
            job_tag("a", "job", "d"),
            job_tag("a", "JOB", "d"),
            job_tag("b", "job", "d"),
            job_tag("a", "job", "e"),
            job_tag("ajob", "", "d"),
            job_tag("a", "jobd", ""),
            launch_tag(&job_tag("a", "job", "d"), "0123456789abcdef0123456789abcdef"),
            job_tag("a", &"ü, \n".repeat(500), "d"),
        ];
        for (index, tag) in tags.iter().enumerate() {
            assert!(is_tag(tag), "{tag}");
            assert!(!tags[..index].contains(tag), "{tag}");
        }
        assert_eq!(job_tag("a", "job", "d"), job_tag("a", "job", "d"));
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
