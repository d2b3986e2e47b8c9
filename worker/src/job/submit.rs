//! Submitting: from a staged directory to a running driver.
//!
//! Starting a JVM is what hurts a machine, so only so many are let start at a time; the place is given up when the
//! driver is there, not when the job is over. A driver that is started without one needs no such place: it is there in a
//! few hundredths of a second, and must not wait behind JVMs.
//!
//! This module must not know how a driver is started, nor what it does.

use spark_runtime_protocol::event::{Failure, FailureClass, Way};

use super::check::Plan;
use super::contract::Contract;
use super::load::Place;
use super::stage::Staged;
use super::{Claim, Context, End, Stop, StopReason};
use crate::config::Secret;
use crate::runtimes::{Runtime, Sent};
use crate::spark::guard::LaunchError;
use crate::spark::{Application, Identity, Sought, Submission, SubmitError};

/// An application that was started or found, and its place among those that are starting.
pub struct Submitted<'a> {
    /// The application.
    pub application: Box<dyn Application>,
    /// Given up once the model is about to run, or a cluster has it; absent where no JVM is started.
    pub permit: Option<Place<'a>>,
    /// How a record model is run.
    pub way: Option<Way>,
}

/// Whose an application of this claim's job is.
#[must_use]
pub fn identity(claim: &Claim) -> Identity {
    Identity { job: claim.job.as_str().to_owned(), digest: claim.digest.clone() }
}

/// What there is already of a job whose driver runs in a cluster: there is never a second one beside it.
///
/// # Errors
/// The attempt's end, when it was stopped before that was known, or it cannot be known.
pub async fn adopt(
    context: &Context,
    sought: &Sought,
    stop: &mut Stop,
) -> Result<Option<Box<dyn Application>>, End> {
    tokio::select! {
        biased;
        reason = stop.stronger(None) => Err(match reason {
            // What there may be has to be ended, which the next attempt does.
            StopReason::Cancel if sought.mode.is_cluster() => End::GivenBack,
            reason => stopped(reason),
        }),
        found = context.backend.find(sought) => found.map_err(|error| failed(&error)),
    }
}

/// With what a driver is started, and what it is to leave.
pub struct Wanted<'a> {
    /// The runtime that the job got.
    pub runtime: &'a Runtime,
    /// Its environment for executors elsewhere, where they need it.
    pub sent: Option<&'a Sent>,
    /// The job's FILE outputs.
    pub outputs: Vec<String>,
    /// The folder whose files a training job is to leave.
    pub output_folder: Option<&'static str>,
}

/// Waits for a place and starts the driver.
///
/// # Errors
/// The attempt's end, when it was stopped before or could not be started.
pub async fn submit<'a>(
    context: &'a Context,
    sought: Sought,
    staged: &Staged,
    plan: &Plan,
    wanted: Wanted<'_>,
    stop: &mut Stop,
) -> Result<Submitted<'a>, End> {
    let way = plan.way();
    let permit = match way {
        Way::Process => None,
        Way::Spark => tokio::select! {
            // A stop first: nothing is started for a job that is known to be somebody else's.
            biased;
            reason = stop.stronger(None) => return Err(stopped(reason)),
            permit = context.load.launch() => Some(permit.map_err(|error| broken(&error.to_string()))?),
        },
    };
    // In this order: as long as nobody has told us to stop, the job was ours when this lease was read back, and nobody can
    // take it over before that is over.
    let not_after = context.lease_ends.as_ref().and_then(|ends| *ends.borrow());
    if let Some(reason) = stop.reason() {
        return Err(stopped(reason));
    }
    let login = login(context, plan)?;
    let submission = Submission {
        sought,
        login,
        modules: staged.modules.clone(),
        environment: wanted.sent.map(|sent| sent.archive.clone()),
        command_line: plan.command_line.clone(),
        leaves_java_idle: plan.contract().is_some_and(Contract::leaves_java_idle),
        runtime: wanted.runtime.spark.clone(),
        way,
        outputs: wanted.outputs,
        output_folder: wanted.output_folder,
        not_after,
    };
    // Not cancelled by a stop: what was started must be known to be ended.
    match context.backend.submit(&submission).await {
        Ok(application) => {
            Ok(Submitted { application, permit, way: plan.contract().map(|contract| contract.way) })
        }
        Err(error) => Err(failed(&error)),
    }
}

/// What the driver needs to be let into the database, where the job reads it.
fn login(context: &Context, plan: &Plan) -> Result<Option<Secret>, End> {
    if !plan.contract().is_some_and(Contract::reads_database) {
        return Ok(None);
    }
    context.settings.sql.login().map_err(|error| {
        let message = format!("the password of the database (sql.password_file) cannot be read: {error}");
        End::Failed { failure: Box::new(plain(FailureClass::Infrastructure, message)), may_pass: true }
    })
}

/// The end of an attempt that was stopped while nothing of it ran.
#[must_use]
pub fn stopped(reason: StopReason) -> End {
    match reason {
        StopReason::Cancel => End::Cancelled,
        StopReason::GiveBack | StopReason::GiveBackNow => End::GivenBack,
        StopReason::OwnershipLost => End::Abandoned,
    }
}

/// The end of an attempt at which the worker itself failed.
#[must_use]
pub fn broken(message: &str) -> End {
    End::Failed { failure: Box::new(plain(FailureClass::Infrastructure, message.to_owned())), may_pass: true }
}

fn failed(error: &SubmitError) -> End {
    match error {
        SubmitError::Launch(LaunchError::Fenced { .. }) => return End::Interrupted,
        SubmitError::Launch(LaunchError::GuardLost { .. }) => {
            return broken("the guard that was to run spark-submit was killed");
        }
        _ => {}
    }
    let class = match error {
        SubmitError::Installation(_) | SubmitError::Launch(_) => FailureClass::Submit,
        SubmitError::Directory { .. } => FailureClass::Staging,
        SubmitError::Guard(_) | SubmitError::Cluster(_) | SubmitError::Away(_) => {
            FailureClass::Infrastructure
        }
    };
    let message = match error {
        SubmitError::Directory { .. }
        | SubmitError::Installation(_)
        | SubmitError::Cluster(_)
        | SubmitError::Away(_) => error.to_string(),
        SubmitError::Launch(_) | SubmitError::Guard(_) => with_causes(error),
    };
    End::Failed { failure: Box::new(plain(class, message)), may_pass: true }
}

/// An error and what lies behind it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        // What is handed on as it is says the same again.
        if !text.ends_with(&deeper.to_string()) {
            text = format!("{text}: {deeper}");
        }
        cause = deeper.source();
    }
    text
}

/// A failure of which there is nothing to tell but its message.
#[must_use]
pub fn plain(class: FailureClass, message: String) -> Failure {
    Failure {
        class,
        message,
        exception: None,
        record: None,
        input: None,
        exit_code: None,
        signal: None,
        log_tail: None,
        log: None,
    }
}
