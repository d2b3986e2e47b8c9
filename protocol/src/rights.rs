//! Who may do what: the least rights that each kind of user of the broker needs, and words for the one that is missing.
//!
//! RabbitMQ knows three rights, each a pattern of names of exchanges and queues: `configure` to declare and delete them,
//! `write` to publish and to bind a queue, `read` to consume and to bind from an exchange.
//!
//! This module must not know how users get their passwords.

use std::fmt;

use lapin::ErrorKind;

use crate::topology::{
    CHECKPOINTS_EXCHANGE, CHECKPOINTS_STREAM, COMMANDS_EXCHANGE, COMMANDS_QUEUE, DEAD_EXCHANGE, DEAD_QUEUE,
    DELAY_EXCHANGE, EXPELLED_QUEUE, HISTORY_EXCHANGE, HISTORY_STREAM, JOBS_EXCHANGE, JOBS_QUEUE,
    LEDGER_EXCHANGE, LEDGER_STREAM, RESULTS_EXCHANGE,
};

/// The queues in which jobs wait. A worker looks whether they are there, for which RabbitMQ from 4.3 wants any right at all;
/// that to bind them is the least, as nothing can be bound to them without another.
const DELAY_QUEUES: &str = r"spark\.delay\..*";
/// The name by which rights know the exchange without a name, over which answers go.
const DEFAULT_EXCHANGE: &str = "amq.default";
/// How the names begin that the broker gives to queues that are declared without one.
const OWN_QUEUES: &str = r"amq\.gen-.*";
/// Matches no name.
const NOTHING: &str = "^$";

/// A kind of user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Publishes jobs, and can do nothing else.
    Publisher,
    /// Follows events, by queues of its own.
    Subscriber,
    /// Is a worker.
    Worker,
    /// Uses the command line: publishes, follows, cancels and looks up jobs, and deals with dead ones.
    Operator,
}

/// What a user may do: patterns as RabbitMQ takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    /// What may be declared and deleted.
    pub configure: String,
    /// What may be published to, or bound.
    pub write: String,
    /// What may be consumed, or bound from.
    pub read: String,
}

impl Role {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Publisher, Self::Subscriber, Self::Worker, Self::Operator];

    /// The user's name.
    #[must_use]
    pub const fn user(self) -> &'static str {
        match self {
            Self::Publisher => "spark-publisher",
            Self::Subscriber => "spark-subscriber",
            Self::Worker => "spark-worker",
            Self::Operator => "spark-operator",
        }
    }

    /// What it may do. None may declare the service's own exchanges and queues: who may do that may delete them, too.
    #[must_use]
    pub fn rights(self) -> Rights {
        let (own, write, read): (&[&str], &[&str], &[&str]) = match self {
            Self::Publisher => (&[], &[JOBS_EXCHANGE], &[]),
            Self::Subscriber => (&[OWN_QUEUES], &[], &[RESULTS_EXCHANGE]),
            Self::Worker => (
                &[],
                &[
                    JOBS_EXCHANGE,
                    DELAY_EXCHANGE,
                    DEAD_EXCHANGE,
                    LEDGER_EXCHANGE,
                    CHECKPOINTS_EXCHANGE,
                    HISTORY_EXCHANGE,
                    RESULTS_EXCHANGE,
                    DEFAULT_EXCHANGE,
                ],
                &[
                    JOBS_QUEUE,
                    EXPELLED_QUEUE,
                    COMMANDS_QUEUE,
                    LEDGER_STREAM,
                    CHECKPOINTS_STREAM,
                    HISTORY_STREAM,
                ],
            ),
            Self::Operator => (
                &[OWN_QUEUES],
                &[JOBS_EXCHANGE, COMMANDS_EXCHANGE],
                &[DEAD_QUEUE, LEDGER_STREAM, HISTORY_STREAM, RESULTS_EXCHANGE],
            ),
        };
        let looked_for: &[&str] = if self == Self::Worker { &[DELAY_QUEUES] } else { &[] };
        Rights {
            configure: pattern(own, &[]),
            write: pattern(&[own, looked_for].concat(), write),
            read: pattern(own, read),
        }
    }
}

/// What matches these patterns and names, and nothing else.
fn pattern(patterns: &[&str], names: &[&str]) -> String {
    let patterns = patterns.iter().map(|pattern| (*pattern).to_owned());
    let all: Vec<_> = patterns.chain(names.iter().map(|name| name.replace('.', r"\."))).collect();
    match all.as_slice() {
        [] => NOTHING.to_owned(),
        all => format!("^({})$", all.join("|")),
    }
}

/// What somebody was doing when the broker refused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Publishing.
    Publish,
    /// Consuming.
    Consume,
    /// Binding a queue to an exchange.
    Bind,
    /// Declaring an exchange.
    DeclareExchange,
    /// Declaring a queue, which may have an exchange for dead letters.
    DeclareQueue,
}

/// A right that a user does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct MissingRight {
    /// `configure`, `write` or `read`.
    pub right: &'static str,
    /// On what, as `queue 'spark.jobs' in vhost '/'`.
    pub what: String,
    /// Whose, as `'spark-worker'`.
    pub user: String,
}

impl fmt::Display for MissingRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the user {} has no right to {} {}", self.user, self.right, self.what)
    }
}

impl MissingRight {
    /// The right for want of which the broker refused something; `None` when the error is about something else.
    ///
    /// Which one it is follows from what was being done: brokers before 4.0 do not say, and later ones name one of several
    /// that would do.
    #[must_use]
    pub fn of(error: &lapin::Error, doing: Doing) -> Option<Self> {
        let ErrorKind::ProtocolError(amqp) = error.kind() else { return None };
        if amqp.get_id() == 403 { Self::from_words(amqp.get_message().as_str(), doing) } else { None }
    }

    /// RabbitMQ words it `ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'`, or with the right.
    fn from_words(said: &str, doing: Doing) -> Option<Self> {
        let (_, refused) = said.split_once("access to ")?;
        let (what, user) = refused.split_once(" refused for user ")?;
        let is_exchange = what.starts_with("exchange");
        let right = match doing {
            Doing::Publish => "write",
            Doing::Consume => "read",
            Doing::Bind if is_exchange => "read",
            Doing::Bind => "write",
            Doing::DeclareQueue if is_exchange => "write",
            Doing::DeclareExchange | Doing::DeclareQueue => "configure",
        };
        Some(Self { right, what: what.to_owned(), user: user.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_the_names_that_they_are_made_of_and_no_others() {
        let rights = Role::Publisher.rights();
        assert_eq!((rights.configure.as_str(), rights.write.as_str()), ("^$", r"^(spark\.jobs)$"));
        assert_eq!(rights.read, "^$");
        let rights = Role::Subscriber.rights();
        assert_eq!(rights.write, r"^(amq\.gen-.*)$");
        assert_eq!(rights.read, r"^(amq\.gen-.*|spark\.results)$");
    }

    #[test]
    fn the_right_that_is_missing_is_known_also_where_the_broker_does_not_name_it() {
        let old = "ACCESS_REFUSED - access to exchange 'spark.results' in vhost '/' refused for user 'u'";
        let new =
            "ACCESS_REFUSED - read access to exchange 'spark.results' in vhost '/' refused for user 'u'";
        for said in [old, new] {
            let missing = MissingRight::from_words(said, Doing::Bind).unwrap();
            assert_eq!(
                missing.to_string(),
                "the user 'u' has no right to read exchange 'spark.results' in vhost '/'"
            );
        }
        let right = |said: &str, doing| MissingRight::from_words(said, doing).unwrap().right;
        let said = "ACCESS_REFUSED - access to queue 'spark.jobs' in vhost '/' refused for user 'u'";
        assert_eq!(right(said, Doing::Bind), "write");
        assert_eq!(right(said, Doing::DeclareQueue), "configure");
        assert_eq!(right(old, Doing::DeclareQueue), "write");
        assert_eq!(right(old, Doing::DeclareExchange), "configure");
        assert_eq!(right(new, Doing::Publish), "write");
        assert_eq!(MissingRight::from_words("no", Doing::Publish), None);
    }
}
