//! Commands: from a message to a record in the ledger, and to an answer for whoever asked.
//!
//! A command is carried out by writing it down: whoever works on the job, on whatever worker, is told when he reads the
//! record, and whoever gets the job later finds it there. What cannot be read is answered with every fault, and does no
//! more harm than that.
//!
//! This module must not know how an attempt is ended, nor AMQP.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use spark_runtime_protocol::command::{Answer, Command, Refusal, Standing, Verb};

use super::settle::Settled;
use crate::broker::ledger::Ledger;
use crate::broker::ledger::fold::{Open, Owner, Standing as Stands};
use crate::broker::message::Message;
use crate::broker::publisher::Publisher;
use crate::broker::slots::{Assignment, Handler};

/// How long an answer may take to get out. Whoever asked may ask again; the next command must not wait for long.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// What all queues of the service begin with. Nobody waits for an answer there.
const OWN_QUEUES: &str = "spark.";

/// Handles the queue of commands.
pub struct Commands {
    /// Answers.
    pub publisher: Publisher,
    /// Where commands are written down.
    pub ledger: Ledger,
}

impl Handler for Commands {
    async fn handle(self: Arc<Self>, assignment: Assignment) -> Settled {
        let Assignment { message, mut stop, .. } = assignment;
        tokio::select! {
            biased;
            () = self.carry_out(&message) => Settled::Acknowledge,
            // The worker leaves; another one carries it out, for the second time at worst.
            _ = stop.stronger(None) => Settled::Leave,
        }
    }
}

impl Commands {
    async fn carry_out(&self, message: &Message) {
        let answer = match Command::read(&message.body) {
            Ok(command) => match command.command {
                Verb::Cancel => self.cancel(&command).await,
            },
            Err(refusal) => refused(refusal),
        };
        self.answer(message, &answer).await;
    }

    async fn cancel(&self, command: &Command) -> Answer {
        let stands = self.ledger.cancel(&command.job_id).await;
        let worker = match &stands {
            Stands::Open(Open { owner: Some(Owner { instance, .. }), .. }) => {
                self.ledger.instance_of(*instance).map(|instance| instance.name.to_string())
            }
            _ => None,
        };
        let answer = cancelled(command, &stands, worker);
        tracing::info!(job_id = %command.job_id, standing = answer.standing.word(), "somebody cancels a job");
        answer
    }

    async fn answer(&self, message: &Message, answer: &Answer) {
        let Some(queue) = message.reply_to() else { return };
        if queue.starts_with(OWN_QUEUES) {
            tracing::warn!(queue, "a command wants its answer in a queue of the service; it is not answered");
            return;
        }
        let payload = match serde_json::to_vec(answer) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, "an answer could not be written");
                return;
            }
        };
        let correlation = message.correlation_id();
        let answered = self.publisher.answer(queue, correlation.as_deref(), payload);
        if tokio::time::timeout(ANSWER_PATIENCE, answered).await.is_err() {
            tracing::warn!(queue, "an answer to a command could not be delivered");
        }
    }
}

fn refused(refusal: Refusal) -> Answer {
    let answer = Answer::refused(refusal);
    tracing::warn!(message = answer.message, "a command is refused");
    answer
}

/// What is answered to whoever cancels a job that stands like this; `worker` is the name of its owner.
fn cancelled(command: &Command, stands: &Stands, worker: Option<String>) -> Answer {
    match stands {
        Stands::Open(open @ Open { owner: Some(owner), .. }) => {
            let by = worker.as_deref().unwrap_or("a worker");
            let words = format!(
                "{by} has the job, at attempt {}; it is ended, and reported cancelled once nothing of it is left, unless its end \
                 came first",
                open.attempts
            );
            Answer {
                attempt: Some(open.attempts),
                since: moment(owner.at),
                worker,
                ..Answer::new(command, Standing::Running, words)
            }
        }
        Stands::Open(open) if open.attempts > 0 => {
            let words = "the job waits for its next attempt; it is reported cancelled when that is due";
            Answer {
                attempt: Some(open.attempts),
                ..Answer::new(command, Standing::Waiting, words.to_owned())
            }
        }
        Stands::Settled(settled) => {
            let (ending, attempt) = (settled.ending().event_kind(), settled.attempt());
            let words = format!("the job has ended already: {ending} at attempt {attempt}");
            Answer {
                attempt: Some(attempt),
                since: moment(u64::from(settled.at) * 1000),
                ending: Some(ending),
                ..Answer::new(command, Standing::Settled, words)
            }
        }
        Stands::Open(_) | Stands::Unknown => {
            let words =
                "no worker has taken the job yet; when one does, it is reported cancelled and not run";
            Answer::new(command, Standing::Unknown, words.to_owned())
        }
    }
}

fn moment(milliseconds: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(milliseconds).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use spark_runtime_protocol::JobId;

    use super::*;
    use crate::broker::ledger::fold::{Fold, JobKey};
    use crate::broker::ledger::record::{Digest, Ending, InstanceId, Position, Reason, Record, Terms};

    const NOW: u64 = 1_800_000_000_000;

    /// The answer to a cancel after these records.
    fn answer(records: &[Record]) -> String {
        let job = JobId::new("j").unwrap();
        let mut fold = Fold::default();
        let cancel = Record::Cancel { job: job.clone(), at: NOW };
        for (offset, record) in (1..).zip(records.iter().chain([&cancel])) {
            fold.apply(Position::new(offset, 0), InstanceId::from_number(1), offset, record);
        }
        let stands = fold.standing(JobKey::of(&job));
        let worker = matches!(&stands, Stands::Open(open) if open.owner.is_some()).then(|| "w".to_owned());
        serde_json::to_string(&cancelled(&Command::cancel(&job), &stands, worker)).unwrap()
    }

    #[test]
    fn whoever_cancels_a_job_is_told_where_it_stands_and_what_comes_of_it() {
        let job = || JobId::new("j").unwrap();
        let digest = Digest::of(b"{}");
        let renew = Record::Renew { name: "w".into(), lease_ms: 60_000 };
        let claim = Record::Claim { job: job(), digest, terms: Terms::Free, existing: Vec::new(), at: NOW };
        let by = Position::new(2, 0);
        let release = Record::Release { job: job(), claim: by, reason: Reason::Failed };
        let settle = |end| Record::Settle { job: job(), claim: by, end, at: NOW + 1234 };
        let taken = [renew, claim];
        let with = |record: Record| [&taken[..], &[record]].concat();
        let answers = [
            answer(&[]),
            answer(&[Record::Cancel { job: job(), at: NOW }]),
            answer(&taken),
            answer(&with(release)),
            answer(&with(settle(Ending::Completed))),
            answer(&with(settle(Ending::Cancelled))),
        ];
        insta::assert_snapshot!(answers.join("\n"), @r#"
        {"command":"cancel","jobId":"j","standing":"unknown","message":"no worker has taken the job yet; when one does, it is reported cancelled and not run"}
        {"command":"cancel","jobId":"j","standing":"unknown","message":"no worker has taken the job yet; when one does, it is reported cancelled and not run"}
        {"command":"cancel","jobId":"j","standing":"running","attempt":1,"worker":"w","since":"2027-01-15T08:00:00Z","message":"w has the job, at attempt 1; it is ended, and reported cancelled once nothing of it is left, unless its end came first"}
        {"command":"cancel","jobId":"j","standing":"waiting","attempt":1,"message":"the job waits for its next attempt; it is reported cancelled when that is due"}
        {"command":"cancel","jobId":"j","standing":"settled","attempt":1,"since":"2027-01-15T08:00:01Z","ending":"completed","message":"the job has ended already: completed at attempt 1"}
        {"command":"cancel","jobId":"j","standing":"settled","attempt":1,"since":"2027-01-15T08:00:01Z","ending":"cancelled","message":"the job has ended already: cancelled at attempt 1"}
        "#);
    }
}
