//! What the end of an application in a cluster says about the attempt.
//!
//! Two tell of it, the cluster and the driver, and only where they agree is something a success. Where they do not, or one
//! of them is silent, the words say exactly that. How spark-submit ended counts only where the cluster has nothing.
//!
//! This module must not ask anybody anything.

use spark_runtime_protocol::event::FailureClass;
use spark_runtime_protocol::job::Job;

use super::StopReason;
use super::collect::{Limits, Verdict, ended_by_hand, forgotten, how_it_ended, raised};
use super::submit::plain;
use super::track::{Cut, Tracked};
use crate::spark::guard::{Exit, ExitStatus};
use crate::spark::report::{FailureKind, Word};
use crate::spark::{Cause, ClusterEnd, ClusterVerdict, Outcome};

/// The exit codes of a driver that could do nothing, or report nothing, and of one whose launch counted no more.
const DRIVER_CUT_OFF: i32 = 70;
const CALLED_OFF: i32 = 75;

/// Who ended an application that neither this service nor a job's owner wanted to end.
#[must_use]
pub fn ended_by(tracked: &Tracked) -> Option<String> {
    if tracked.cut.is_some() {
        return None;
    }
    match (&tracked.ending.outcome, &tracked.ending.report) {
        (Outcome::Cluster(end), _) if end.verdict == ClusterVerdict::Killed => {
            Some(format!("{} was ended in the cluster{}", end.id, because(&end.reason)))
        }
        (_, Some(Word::Failed { kind: FailureKind::Model, exception, .. })) => {
            ended_by_hand(&exception.message)
        }
        _ => None,
    }
}

pub(super) fn judge(tracked: Tracked, job: &Job, limits: &Limits) -> Verdict {
    let Tracked { mut ending, cut, waited_for } = tracked;
    if let Some(Cut::Stopped(StopReason::OwnershipLost)) = cut {
        return Verdict::Stopped(StopReason::OwnershipLost);
    }
    // Ended by a worker that is no more, whose word it was.
    let cut = cut.or_else(|| match &ending.outcome {
        Outcome::Cluster(end) if end.cause == Cause::RunDeadline => Some(Cut::RunDeadline),
        _ => None,
    });
    let report = ending.report.take();
    match (&ending.outcome, report) {
        (Outcome::Left, _) => {
            return Verdict::Stopped(match cut {
                Some(Cut::Stopped(reason)) => reason,
                _ => StopReason::GiveBack,
            });
        }
        (Outcome::Cluster(end), Some(Word::Completed { results, records }))
            if end.verdict == ClusterVerdict::Succeeded =>
        {
            return match ending.unreadable {
                None => Verdict::Completed { results, records },
                Some(reason) => unreadable(&reason),
            };
        }
        (outcome, Some(Word::Failed { kind, exception, functions, at })) if cut.is_none() => {
            let mut verdict = raised(kind, exception, &functions, at, job);
            if let (Verdict::Failed { failure, .. }, Outcome::Cluster(end)) = (&mut verdict, outcome)
                && end.verdict == ClusterVerdict::Succeeded
            {
                failure
                    .message
                    .push_str(&format!("; the cluster says all the same that {} succeeded", end.id));
            }
            return verdict;
        }
        (Outcome::Cluster(end), Some(Word::Completed { .. })) if cut.is_none() => {
            let message = format!(
                "the function ran to its end, but then {}{}; its outputs may not be whole",
                match end.verdict {
                    ClusterVerdict::Killed => format!("{} was ended in the cluster", end.id),
                    _ => format!("{} failed", end.id),
                },
                because(&end.reason)
            );
            return failed(FailureClass::Killed, message, false);
        }
        (Outcome::Lost(why), Some(Word::Completed { .. })) if cut.is_none() => {
            let message = format!(
                "{why}; its driver has left word that the function ran to its end, which nobody confirms"
            );
            return failed(FailureClass::Lost, message, true);
        }
        // It was asked to end because it was not there in time, and then nobody knew it: whether it ever was is not known.
        (Outcome::Lost(why), _) if matches!(cut, Some(Cut::SubmitDeadline | Cut::PendingDeadline)) => {
            let message = match waited_for {
                Some(what) => format!("{why}; before that it waited: {what}"),
                None => why.clone(),
            };
            return failed(FailureClass::Lost, message, true);
        }
        _ => {}
    }
    match cut {
        Some(Cut::Stopped(reason)) => return Verdict::Stopped(reason),
        Some(Cut::RunDeadline) => {
            return failed(FailureClass::Timeout, limits.ran_too_long(), false);
        }
        Some(Cut::PendingDeadline) => {
            let what = waited_for.unwrap_or_else(|| "the application in the cluster".to_owned());
            let message = format!(
                "the driver got no place within {} (job.pending_timeout): {what}",
                limits.pending_timeout
            );
            return failed(FailureClass::Pending, message, true);
        }
        Some(Cut::Forgotten) => return failed(FailureClass::Lost, forgotten(waited_for), true),
        Some(Cut::SubmitDeadline) => {
            let message = format!(
                "{} did not bring the application to the cluster within {} (job.submit_timeout)",
                limits.starter, limits.submit_timeout
            );
            return failed(FailureClass::Submit, message, true);
        }
        None => {}
    }
    match ending.outcome {
        Outcome::Cluster(end) => match ending.unreadable {
            Some(reason) => unreadable(&reason),
            None => silent(&end, ending.started),
        },
        Outcome::Lost(why) => failed(FailureClass::Lost, why, true),
        Outcome::NeverAccepted(exit) => never_accepted(&exit, limits.starter),
        Outcome::Left | Outcome::Process(_) => Verdict::Stopped(StopReason::GiveBack),
    }
}

fn failed(class: FailureClass, message: String, may_pass: bool) -> Verdict {
    Verdict::Failed { failure: Box::new(plain(class, message)), may_pass }
}

fn unreadable(reason: &str) -> Verdict {
    failed(FailureClass::Infrastructure, format!("the driver's report could not be read: {reason}"), true)
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// An application that is over and whose driver has left no word.
fn silent(end: &ClusterEnd, started: bool) -> Verdict {
    let id = &end.id;
    let reason = because(&end.reason);
    let verdict = |class, message, may_pass| {
        let mut verdict = failed(class, message, may_pass);
        if let (Verdict::Failed { failure, .. }, Cause::Exit(code)) = (&mut verdict, end.cause) {
            failure.exit_code = Some(code);
        }
        verdict
    };
    match (end.verdict, end.cause) {
        (ClusterVerdict::Succeeded, _) => verdict(
            FailureClass::Model,
            format!(
                "the cluster says that {id} succeeded, but its driver left no report before the function returned; look for \
                 os._exit or something that ends Python"
            ),
            false,
        ),
        (ClusterVerdict::Killed, _) => Verdict::Stopped(StopReason::Cancel),
        (_, Cause::Memory) => verdict(
            FailureClass::Killed,
            format!(
                "the cluster ended the driver's container of {id} for using more memory than it was given; raise \
                 spark.driver.memory or spark.driver.memoryOverhead{reason}"
            ),
            false,
        ),
        (_, Cause::Preempted) => verdict(
            FailureClass::Killed,
            format!("the cluster took the place of {id} for something else (preemption){reason}"),
            true,
        ),
        (_, Cause::Evicted) => verdict(
            FailureClass::Killed,
            format!(
                "the machine of the driver of {id} had too little memory or disk left and put it out; ask for what it really \
                 needs, with spark.driver.memory and spark.driver.memoryOverhead{reason}"
            ),
            true,
        ),
        (_, Cause::NodeLost) => {
            verdict(FailureClass::Lost, format!("the cluster lost the driver of {id}{reason}"), true)
        }
        (_, Cause::Exit(DRIVER_CUT_OFF)) => verdict(
            FailureClass::Infrastructure,
            format!("the driver of {id} could not bring its report or the job's files to HDFS; see the log"),
            true,
        ),
        (_, Cause::Exit(CALLED_OFF)) if started => verdict(
            FailureClass::Lost,
            format!(
                "the cluster lost the first container of {id}'s driver, or took its place for something else, and started the \
                 driver anew, which did nothing: a driver runs once in an application; or its launch was called off"
            ),
            true,
        ),
        (_, Cause::Exit(CALLED_OFF)) => verdict(
            FailureClass::Lost,
            format!(
                "the launch of {id} was called off before its driver began, or while that ran, and the driver has ended"
            ),
            true,
        ),
        (ClusterVerdict::Failed, _) if started => verdict(
            FailureClass::Model,
            format!(
                "{id} failed before the function returned, and its driver left no report{reason}; look for os._exit or a crash \
                 of native code"
            ),
            false,
        ),
        (ClusterVerdict::Failed, _) => {
            verdict(FailureClass::Submit, format!("the cluster could not run {id}{reason}"), true)
        }
    }
}

fn never_accepted(exit: &Exit, starter: &str) -> Verdict {
    if exit.fenced {
        return Verdict::Interrupted;
    }
    if exit.status == ExitStatus::Lost {
        let message = format!("the guard that ran {starter} was killed");
        return failed(FailureClass::Infrastructure, message, true);
    }
    let message = format!(
        "{starter} {}, and the cluster has no application of the job; see the log",
        how_it_ended(exit)
    );
    let mut verdict = failed(FailureClass::Submit, message, true);
    if let (Verdict::Failed { failure, .. }, ExitStatus::Code(code)) = (&mut verdict, exit.status) {
        failure.exit_code = Some(code);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spark::Ending;
    use crate::spark::guard::LogSize;
    use crate::spark::report::AtRecord;
    use serde_json::json;
    use spark_runtime_protocol::event::ModelException;
    use std::time::Duration;

    const ID: &str = "application_1_1";

    fn completed() -> Option<Word> {
        Some(Word::Completed { results: Some(json!(1)), records: None })
    }

    fn raised() -> Option<Word> {
        let exception =
            ModelException { exception_type: "X".into(), message: "no".into(), traceback: None, frame: None };
        Some(Word::Failed { kind: FailureKind::Model, exception, functions: vec![], at: AtRecord::default() })
    }

    fn cluster(verdict: ClusterVerdict, cause: Cause, reason: &str) -> Outcome {
        Outcome::Cluster(ClusterEnd { id: ID.into(), verdict, cause, reason: reason.into() })
    }

    fn judged(report: Option<Word>, outcome: Outcome, cut: Option<Cut>) -> Verdict {
        let document = json!({
            "id": "j", "jobType": "MODEL_BATCH_JOB",
            "model": {"storedModel": {"modelAssets": [
                {"assetType": "SOURCE_CODE", "primaryModelSource": true, "sourceCode": "x"}]}}
        });
        let job = Job::read(document.to_string().as_bytes(), None).unwrap();
        let limits = Limits {
            submit_timeout: "5 min".into(),
            pending_timeout: "1 h".into(),
            run_timeout: "24 h".into(),
            starter: "spark-submit",
        };
        let started = report.is_some();
        let ending =
            Ending { report, report_came_first: true, started, unreadable: None, unlogged: None, outcome };
        let waited_for = Some("a_1 in the queue \"q\" of YARN".to_owned());
        judge(Tracked { ending, cut, waited_for }, &job, &limits)
    }

    fn failure(verdict: Verdict) -> (FailureClass, String, bool) {
        match verdict {
            Verdict::Failed { failure, may_pass } => (failure.class, failure.message, may_pass),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_success_is_what_both_the_cluster_and_the_driver_tell() {
        use ClusterVerdict::{Failed, Succeeded};
        let both = judged(completed(), cluster(Succeeded, Cause::Other, ""), None);
        assert_eq!(both, Verdict::Completed { results: Some(json!(1)), records: None });
        let (class, message, may_pass) = failure(judged(None, cluster(Succeeded, Cause::Other, ""), None));
        assert_eq!((class, may_pass), (FailureClass::Model, false));
        assert!(message.contains("succeeded, but its driver left no report"), "{message}");
        let (class, message, _) = failure(judged(completed(), cluster(Failed, Cause::Exit(1), "why"), None));
        assert_eq!(class, FailureClass::Killed);
        assert_eq!(
            message,
            "the function ran to its end, but then application_1_1 failed: why; its outputs may not be whole"
        );
        let (class, message, _) = failure(judged(raised(), cluster(Succeeded, Cause::Other, ""), None));
        assert_eq!(class, FailureClass::Model);
        assert_eq!(
            message,
            "the model raised X: no; the cluster says all the same that application_1_1 succeeded"
        );
    }

    #[test]
    fn who_and_what_ended_an_application_is_told_apart() {
        use ClusterVerdict::{Failed, Killed};
        let outcome = || cluster(Killed, Cause::Other, "Application was killed by user ann at host");
        assert_eq!(judged(None, outcome(), None), Verdict::Stopped(StopReason::Cancel));
        let ending = Ending {
            report: None,
            report_came_first: true,
            started: true,
            unreadable: None,
            unlogged: None,
            outcome: outcome(),
        };
        let by = ended_by(&Tracked { ending, cut: None, waited_for: None });
        assert_eq!(
            by.as_deref(),
            Some("application_1_1 was ended in the cluster: Application was killed by user ann at host")
        );
        let of = |cause| {
            let (class, _, may_pass) = failure(judged(None, cluster(Failed, cause, "r"), None));
            (class, may_pass)
        };
        assert_eq!(of(Cause::Memory), (FailureClass::Killed, false));
        assert_eq!(of(Cause::Preempted), (FailureClass::Killed, true));
        assert_eq!(of(Cause::NodeLost), (FailureClass::Lost, true));
        assert_eq!(of(Cause::Evicted), (FailureClass::Killed, true));
        assert_eq!(of(Cause::Exit(70)), (FailureClass::Infrastructure, true));
        assert_eq!(of(Cause::Exit(75)), (FailureClass::Lost, true));
        assert_eq!(of(Cause::Other), (FailureClass::Submit, true));
    }

    #[test]
    fn a_driver_that_the_cluster_starts_anew_is_told_from_one_whose_launch_was_called_off() {
        let end = ClusterEnd {
            id: ID.into(),
            verdict: ClusterVerdict::Failed,
            cause: Cause::Exit(CALLED_OFF),
            reason: String::new(),
        };
        let (class, anew, _) = failure(silent(&end, true));
        assert_eq!(class, FailureClass::Lost);
        assert!(anew.contains("started the driver anew, which did nothing"), "{anew}");
        let (_, never, _) = failure(silent(&end, false));
        assert!(never.contains("was called off before its driver began"), "{never}");
    }

    #[test]
    fn deadlines_have_words_of_their_own() {
        use ClusterVerdict::Killed;
        let late = |cut| failure(judged(None, cluster(Killed, Cause::Other, ""), Some(cut)));
        let (class, message, may_pass) = late(Cut::PendingDeadline);
        assert_eq!((class, may_pass), (FailureClass::Pending, true));
        assert!(
            message.starts_with(
                "the driver got no place within 1 h (job.pending_timeout): a_1 in the queue \"q\""
            )
        );
        assert_eq!((late(Cut::RunDeadline).0, late(Cut::RunDeadline).2), (FailureClass::Timeout, false));
        assert_eq!(late(Cut::SubmitDeadline).0, FailureClass::Submit);
        // The worker that ended it for that could not tell it any more.
        let noted = failure(judged(None, cluster(ClusterVerdict::Failed, Cause::RunDeadline, ""), None));
        assert_eq!((noted.0, noted.2), (FailureClass::Timeout, false));
        // It was done when the deadline passed.
        let done =
            judged(completed(), cluster(ClusterVerdict::Succeeded, Cause::Other, ""), Some(Cut::RunDeadline));
        assert!(matches!(done, Verdict::Completed { .. }));
    }

    #[test]
    fn what_goes_on_or_is_unknown_is_no_end_of_the_job() {
        let left = judged(None, Outcome::Left, Some(Cut::Stopped(StopReason::GiveBackNow)));
        assert_eq!(left, Verdict::Stopped(StopReason::GiveBackNow));
        let (class, _, may_pass) = failure(judged(None, Outcome::Lost("gone".into()), None));
        assert_eq!((class, may_pass), (FailureClass::Lost, true));
        let (class, message, _) = failure(judged(completed(), Outcome::Lost("gone".into()), None));
        assert_eq!(class, FailureClass::Lost);
        assert!(message.contains("which nobody confirms"), "{message}");
        // Nor is it known of one that was to end because it was not seen in time.
        for cut in [Cut::SubmitDeadline, Cut::PendingDeadline] {
            let (class, message, may_pass) = failure(judged(None, Outcome::Lost("gone".into()), Some(cut)));
            assert_eq!((class, may_pass), (FailureClass::Lost, true));
            assert_eq!(message, "gone; before that it waited: a_1 in the queue \"q\" of YARN");
        }
        let lost = Some(Cut::Stopped(StopReason::OwnershipLost));
        let done = judged(completed(), cluster(ClusterVerdict::Succeeded, Cause::Other, ""), lost);
        assert_eq!(done, Verdict::Stopped(StopReason::OwnershipLost));
    }

    #[test]
    fn spark_submit_counts_only_where_the_cluster_has_nothing() {
        let exit = |status, fenced| Exit {
            status,
            by_us: false,
            fenced,
            processor_time: Duration::ZERO,
            peak_memory: 0,
            leftovers: 0,
            oom_killed: false,
            stdout: LogSize::default(),
            stderr: LogSize::default(),
        };
        let never = |status, fenced| judged(None, Outcome::NeverAccepted(exit(status, fenced)), None);
        let (class, message, may_pass) = failure(never(ExitStatus::Code(1), false));
        assert_eq!((class, may_pass), (FailureClass::Submit, true));
        assert_eq!(
            message,
            "spark-submit ended with exit code 1, and the cluster has no application of the job; see the log"
        );
        assert_eq!(never(ExitStatus::Signal(9), true), Verdict::Interrupted);
    }
}
