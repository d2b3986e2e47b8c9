//! What guards do: start drivers, and end them in time. They go on when their worker stands still.
//!
//! This module must not know of messages.

use spark_runtime_worker::broker::ledger::record::Ending;

use crate::state::{End, Phase, State};
use crate::{FENCE, Mistake, Scope};

impl State {
    /// A guard starts the driver that it was told to start, if the lease by which that was decided still has time.
    pub(crate) fn launch(&mut self, scope: &Scope, at: usize, index: usize) {
        let lease = self.workers[at].lease;
        let task = &mut self.workers[at].tasks[index];
        let Phase::Launching(age) = task.phase else { return };
        let is_over = match scope.mistake {
            Some(Mistake::LateClaim) => false,
            Some(Mistake::LaunchWithoutItsLease) => State::is_over(scope, lease),
            _ => State::is_over(scope, age) || State::is_over(scope, lease),
        };
        task.phase = if is_over { Phase::Over(End::Interrupted) } else { Phase::Running(0) };
        // What it was told to stop for meanwhile is heeded only now.
        if let Some(stop) = task.stop
            && !is_over
        {
            task.tell_to_stop(stop);
        }
    }

    /// Ends the drivers of a worker whose lease is over. It is not undone by a renewal that comes now.
    pub(crate) fn fence(&mut self, scope: &Scope, at: usize, was_over: bool) {
        let worker = &mut self.workers[at];
        let is_due = match scope.mistake {
            // It looks when the moment comes, and what starts later is not looked at.
            Some(Mistake::LateClaim) => !was_over && worker.lease >= FENCE,
            _ => State::is_over(scope, worker.lease),
        };
        for task in &mut worker.tasks {
            if is_due && matches!(task.phase, Phase::Running(_)) {
                task.phase = Phase::Dying(End::Interrupted);
            }
        }
    }

    /// A driver's tree is gone.
    pub(crate) fn reap(&mut self, at: usize, index: usize) {
        let task = &mut self.workers[at].tasks[index];
        if let Phase::Dying(end) = task.phase {
            task.phase = Phase::Over(end);
        }
    }

    /// A driver ends by itself.
    pub(crate) fn finish(&mut self, at: usize, index: usize, succeeds: bool) {
        let end = if succeeds { End::Told(Ending::Completed) } else { End::MayPass };
        self.workers[at].tasks[index].phase = Phase::Over(end);
    }
}
