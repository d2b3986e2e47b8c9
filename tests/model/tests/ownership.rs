//! The promises of the protocol, explored to the end; and mistakes in it, each of which has to be found.

use std::collections::BTreeSet;

use spark_runtime_model::{
    COMES_TO_REST, EVENTUALLY_TOLD, Fault, Mistake, NEVER_TWO_DRIVERS, NO_RUN_AFTER_SETTLE, ONE_END, Reached,
    Scope, WHAT_WAS_SETTLED, told,
};
use stateright::{Checker, HasDiscoveries, Model};

/// Explores everything, and fails at what must not happen, or if something did not happen that has to be come by.
fn holds(scope: Scope) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let checker =
        scope.clone().checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    println!(
        "{name}: {} states, {} ways to them, at most {} steps deep",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    judge(&scope, &checker);
    assert!(checker.is_done());
}

/// Fails at what must not happen and did, and at what has to be come by and was not.
fn judge(scope: &Scope, checker: &impl Checker<Scope>) {
    for property in scope.properties() {
        match (checker.discovery(property.name), property.expectation.discovery_is_failure()) {
            (Some(path), true) => panic!("{}\nbroken: {}", told(path), property.name),
            (None, false) => panic!("never come by: {}", property.name),
            _ => {}
        }
    }
}

/// Explores a scope with a mistake in it, until the promise is broken.
fn breaks(promise: &'static str, mistake: Mistake, kinds: &'static [Fault], scope: Scope) {
    let whole = Scope { kinds, mistake: Some(mistake), ..scope };
    let found = HasDiscoveries::AnyOf(BTreeSet::from([promise]));
    let checker = whole.clone().checker().finish_when(found).spawn_bfs().join();
    let path = checker
        .discovery(promise)
        .unwrap_or_else(|| panic!("{mistake:?} is not found in {} states", checker.unique_state_count()));
    println!(
        "{mistake:?} breaks \"{promise}\" after {} steps, found in {} states",
        path.clone().into_actions().len(),
        checker.unique_state_count()
    );
    println!("{}", told(path));
}

const ONE_FAULT: Scope = Scope { faults: 1, ..Scope::SMALL };
const TWO_FAULTS: Scope = Scope { faults: 2, ..Scope::SMALL };

#[test]
fn two_workers_keep_the_promises_through_any_fault() {
    holds(Scope { reached: &[Reached::TakeOver, Reached::Left], ..ONE_FAULT });
}

#[test]
fn three_workers_keep_the_promises_for_two_jobs_through_any_fault() {
    holds(Scope {
        workers: 3,
        jobs: 2,
        faults: 1,
        reached: &[Reached::TakeOver, Reached::Left],
        ..Scope::SMALL
    });
}

#[test]
fn workers_that_take_two_deliveries_at_a_time_and_are_started_again_keep_the_promises() {
    holds(Scope {
        slots: 2,
        faults: 1,
        restarts: true,
        workers_lag: true,
        reached: &[Reached::TakeOver, Reached::Joined],
        ..Scope::SMALL
    });
}

/// Two things that go wrong one after the other, and what they come to. They are explored as far as so many states: the whole
/// takes hours, and is explored by hand (`model --faults 2`).
#[test]
fn two_faults_in_a_row_break_no_promise() {
    let pairs: [(&'static [Fault], &'static [Reached]); 4] = [
        // What a worker has sent arrives after its death.
        (&[Fault::Hold, Fault::LostMachine], &[Reached::LateClaim, Reached::TakeOver]),
        (&[Fault::Hold, Fault::PublishAgain], &[Reached::RefusedTakeOver, Reached::Fenced]),
        (&[Fault::Pause, Fault::Reset], &[Reached::RefusedSettle, Reached::Fenced]),
        (&[Fault::PublishAgain, Fault::Cancel], &[Reached::Cancelled, Reached::Repeated]),
    ];
    for (kinds, reached) in pairs {
        let scope = Scope { kinds, reached, ..TWO_FAULTS };
        let checker = scope
            .clone()
            .checker()
            .threads(2)
            .target_state_count(2_000_000)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        println!("{kinds:?}: {} states, {} steps deep", checker.unique_state_count(), checker.max_depth());
        judge(&scope, &checker);
    }
}

/// Without this, a run that goes round in circles for ever would not be seen: it never comes to rest.
#[test]
fn every_run_comes_to_rest() {
    holds(Scope { counts_steps: true, most_steps: 150, ..ONE_FAULT });
}

#[test]
fn no_lease_is_found() {
    breaks(NEVER_TWO_DRIVERS, Mistake::NoLease, &[Fault::Hold], ONE_FAULT);
}

#[test]
fn a_lease_that_counts_from_the_read_back_is_found() {
    breaks(NEVER_TWO_DRIVERS, Mistake::LeaseFromReadBack, &[Fault::Hold, Fault::PublishAgain], TWO_FAULTS);
}

#[test]
fn acting_on_a_late_claim_is_found() {
    breaks(NEVER_TWO_DRIVERS, Mistake::LateClaim, &[Fault::Hold, Fault::PublishAgain], TWO_FAULTS);
}

#[test]
fn a_superseding_claim_without_the_last_renewal_is_found() {
    breaks(
        NEVER_TWO_DRIVERS,
        Mistake::SupersedingWithoutRenewal,
        &[Fault::Hold, Fault::PublishAgain],
        TWO_FAULTS,
    );
}

#[test]
fn a_delay_shorter_than_the_lease_is_found() {
    breaks(NEVER_TWO_DRIVERS, Mistake::ShortDelay, &[Fault::PublishAgain], ONE_FAULT);
}

#[test]
fn a_settle_without_the_claim_is_found() {
    breaks(NO_RUN_AFTER_SETTLE, Mistake::SettlingWithoutClaim, &[Fault::Hold], ONE_FAULT);
}

#[test]
fn the_event_before_the_settle_is_found() {
    breaks(ONE_END, Mistake::TellingBeforeSettle, &[Fault::Hold, Fault::Crash], TWO_FAULTS);
}

#[test]
fn the_acknowledgement_before_the_settle_is_found() {
    breaks(EVENTUALLY_TOLD, Mistake::AcknowledgingBeforeSettle, &[Fault::Crash], ONE_FAULT);
}

#[test]
fn the_history_after_the_settle_is_found() {
    breaks(WHAT_WAS_SETTLED, Mistake::HistoryAfterSettle, &[Fault::Crash], ONE_FAULT);
}

#[test]
fn the_acknowledgement_before_the_copy_is_found() {
    let kinds = &[Fault::LostMachine, Fault::Hold];
    let restarts = Scope { faults: 3, restarts: true, ..Scope::SMALL };
    breaks(EVENTUALLY_TOLD, Mistake::AcknowledgingBeforeCopy, kinds, restarts);
}

#[test]
fn a_guard_that_speaks_before_the_drivers_are_gone_is_found() {
    breaks(NEVER_TWO_DRIVERS, Mistake::LeavingBeforeDriversAreGone, &[Fault::Crash], ONE_FAULT);
}

#[test]
fn a_launch_without_the_lease_it_was_decided_by_is_found() {
    breaks(NEVER_TWO_DRIVERS, Mistake::LaunchWithoutItsLease, &[Fault::Hold, Fault::Stall], TWO_FAULTS);
}

#[test]
fn keeping_a_claim_that_nobody_waits_for_is_found() {
    let counted = Scope { counts_steps: true, most_steps: 150, ..ONE_FAULT };
    breaks(COMES_TO_REST, Mistake::UnattendedClaimKept, &[Fault::GiveBack], counted);
}
