//! A way to some moment, for people.

use std::fmt::Write as _;

use spark_runtime_worker::broker::ledger::fold::Effect;
use spark_runtime_worker::broker::ledger::record::{Record, Terms};
use stateright::Path;

use crate::model::Action;
use crate::state::State;

/// What happened on a way, a line each, with the entry of the ledger that was written and where every worker stands.
#[must_use]
pub fn told(path: Path<State, Action>) -> String {
    let mut text = String::new();
    let mut length = 0;
    let mut action = "at first".to_owned();
    for (state, next) in path.into_vec() {
        // A text takes whatever is written into it.
        let _ = write!(text, "{action:<60}");
        for place in state.log.behind(length).collect::<Vec<_>>().into_iter().rev() {
            for (index, (record, effect)) in place.entry.records.iter().zip(&place.effects).enumerate() {
                let (position, writer) = (place.position(index), place.entry.instance);
                let _ = write!(
                    text,
                    " | {position} of {writer}: {} > {}",
                    record_in_words(record),
                    effect_in_words(effect)
                );
            }
        }
        length = state.log.length();
        let _ = writeln!(text, "\n{:>8}{}", "", state_in_words(&state));
        action = next.map_or_else(String::new, |action| format!("{action:?}"));
    }
    text
}

fn record_in_words(record: &Record) -> String {
    match record {
        Record::Renew { .. } => "renew".to_owned(),
        Record::Claim { terms: Terms::Free, .. } => "claim".to_owned(),
        Record::Claim { terms, .. } => format!("claim {terms:?}"),
        Record::Settle { end, .. } => format!("settle {end:?}"),
        Record::Release { reason, .. } => format!("release {reason:?}"),
        Record::Cancel { .. } => "cancel".to_owned(),
        Record::Leave => "leave".to_owned(),
    }
}

fn effect_in_words(effect: &Effect) -> &'static str {
    match effect {
        Effect::Renewed => "renewed",
        Effect::Claimed(_) => "claimed",
        Effect::Refused(_) => "refused",
        Effect::Settled => "settled",
        Effect::Released => "released",
        Effect::Cancelled => "cancelled",
        Effect::Left(_) => "left",
        Effect::Nothing => "nothing",
    }
}

fn state_in_words(state: &State) -> String {
    let mut text = format!("ready {}, delayed {:?}", state.ready.len(), delays(state));
    for worker in &state.workers {
        let _ = write!(text, " | worker {}", worker.instance);
        if !worker.is_alive {
            text.push_str(" dead");
            continue;
        }
        let _ = write!(
            text,
            " {:?} read {} lease {}",
            worker.link.connection,
            worker.read.unwrap_or(0),
            worker.lease
        );
        if worker.link.is_held() {
            text.push_str(" held");
        }
        if worker.paused.is_some() {
            text.push_str(" paused");
        }
        for task in &worker.tasks {
            let _ = write!(text, " [job {} {:?} {:?}]", task.message.job, task.phase, task.delivery);
        }
    }
    text
}

fn delays(state: &State) -> Vec<u8> {
    state.delayed.iter().map(|(_, ticks)| *ticks).collect()
}
