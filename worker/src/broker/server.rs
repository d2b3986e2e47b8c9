//! What a broker says it is, and what follows from that.
//!
//! Every difference between releases that matters here stands in this module.

use std::time::Duration;

use spark_runtime_protocol::connect::Server;
use spark_runtime_protocol::topology::{ACKNOWLEDGEMENT_TIMEOUT, OLDEST_SERVER};

/// RabbitMQ's own default for how long a delivery may stay unacknowledged.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// How long a broker lets a delivery stay unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcknowledgementTimeout {
    /// What the queue of jobs says (RabbitMQ 3.12 and later take it from there).
    OfTheQueue(Duration),
    /// A setting of the node, which a client cannot see; this is its default.
    OfTheNode {
        /// The default.
        default: Duration,
    },
}

impl AcknowledgementTimeout {
    /// The time-out that counts on `server`.
    #[must_use]
    pub fn on(server: &Server) -> Self {
        match server.release() {
            Some(release) if release >= (3, 12) => Self::OfTheQueue(ACKNOWLEDGEMENT_TIMEOUT),
            _ => Self::OfTheNode { default: DEFAULT_TIMEOUT },
        }
    }

    /// What a worker that runs jobs for up to `longest` should be told about it, if anything.
    #[must_use]
    pub fn warning(self, longest: Duration) -> Option<String> {
        match self {
            Self::OfTheQueue(timeout) if timeout >= longest => None,
            Self::OfTheQueue(timeout) => Some(format!(
                "the broker takes a job back after {} h; jobs may run for {} h (job.run_timeout)",
                timeout.as_secs() / 3600,
                longest.as_secs() / 3600
            )),
            Self::OfTheNode { default } if default >= longest => None,
            Self::OfTheNode { default } => Some(format!(
                "this broker takes a job back after its own consumer_timeout, {} min unless rabbitmq.conf says otherwise; \
                 set consumer_timeout there above job.run_timeout",
                default.as_secs() / 60
            )),
        }
    }
}

/// What is to be said about the release of a broker, if anything.
#[must_use]
pub fn too_old(server: &Server) -> Option<String> {
    let release = server.release()?;
    (release < OLDEST_SERVER).then(|| {
        format!(
            "{} {} is older than {}.{}, which is needed",
            server.product, server.version, OLDEST_SERVER.0, OLDEST_SERVER.1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(version: &str) -> Server {
        Server { product: "RabbitMQ".into(), version: version.into() }
    }

    #[test]
    fn a_worker_is_told_when_the_broker_takes_jobs_back_too_early() {
        let day = Duration::from_secs(86_400);
        assert_eq!(AcknowledgementTimeout::on(&server("4.0.5")).warning(day), None);
        assert!(
            AcknowledgementTimeout::on(&server("3.10.8")).warning(day).unwrap().contains("30 min unless")
        );
        assert_eq!(AcknowledgementTimeout::on(&server("3.10.8")).warning(Duration::from_secs(600)), None);
        assert!(AcknowledgementTimeout::on(&server("4.0.5")).warning(30 * day).unwrap().contains("168 h"));
    }

    #[test]
    fn a_broker_that_is_too_old_is_named() {
        assert!(too_old(&server("3.9.1")).unwrap().contains("older than 3.10"));
        assert_eq!(too_old(&server("3.10.8")), None);
        assert_eq!(too_old(&server("odd")), None);
    }
}
