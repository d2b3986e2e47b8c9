//! What YARN's words for an application's end mean. They are for people, and differ between releases: what is read out of
//! them chooses better words and whether another attempt may fare better, and never whether something has succeeded.
//!
//! This module must not ask the cluster anything.

use crate::spark::Cause;

/// The words of `MonitoringContainerLauncher` and the schedulers of Hadoop 2 and 3.
const MEMORY: [&str; 3] =
    ["beyond physical memory limits", "beyond virtual memory limits", "beyond the 'PHYSICAL' memory limit"];
const PREEMPTED: [&str; 2] = ["Container preempted by scheduler", "exitCode: -102"];
const NODE_LOST: [&str; 3] = ["released on a *lost* node", "exitCode: -100", "timed out"];
/// What stands before the code with which a driver ended, in the words of Spark's `ApplicationMaster`.
const DRIVER_EXIT: &str = "User application exited with status ";
const EXIT: &str = "exitCode: ";

/// Why an application ended, by its diagnostics.
#[must_use]
pub(super) fn cause(diagnostics: &str) -> Cause {
    let says = |words: &[&str]| words.iter().any(|word| diagnostics.contains(word));
    if says(&MEMORY) {
        return Cause::Memory;
    }
    if says(&PREEMPTED) {
        return Cause::Preempted;
    }
    if says(&NODE_LOST) {
        return Cause::NodeLost;
    }
    let code_after = |words: &str| {
        let (_, rest) = diagnostics.split_once(words)?;
        let digits: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '-').collect();
        digits.parse().ok()
    };
    code_after(DRIVER_EXIT).or_else(|| code_after(EXIT)).map_or(Cause::Other, Cause::Exit)
}

/// How much memory a container had used that was ended for it, and how much it had been given, in YARN's words. They stand
/// far behind in the diagnostics.
#[must_use]
pub(super) fn memory_used(diagnostics: &str) -> Option<String> {
    let (_, rest) = diagnostics.split_once("Current usage: ")?;
    let end = rest.find([';', '\n']).unwrap_or(rest.len());
    let words = rest.get(..end)?.trim_end_matches('.').trim();
    (!words.is_empty()).then(|| format!("YARN says: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yarns_words_are_read_as_they_are_meant() {
        let memory = "Application application_1_1 failed 1 times due to AM Container for appattempt_1_1_000001 exited with  \
            exitCode: -104 Failing this attempt.Diagnostics: Container [pid=1,containerID=c] is running 1B beyond the \
            'PHYSICAL' memory limit. Current usage: 1.4 GB of 1.4 GB physical memory used; 5 GB of 3 GB virtual memory used";
        assert_eq!(memory_used(memory).as_deref(), Some("YARN says: 1.4 GB of 1.4 GB physical memory used"));
        assert_eq!(memory_used("Container preempted by scheduler"), None);
        for (words, expected) in [
            (memory, Cause::Memory),
            ("Container preempted by scheduler", Cause::Preempted),
            ("exited with exitCode: -100 Container released on a *lost* node", Cause::NodeLost),
            ("ApplicationMaster for attempt appattempt_1_1_000001 timed out", Cause::NodeLost),
            ("User application exited with status 75", Cause::Exit(75)),
            ("exited with  exitCode: 13 Failing this attempt", Cause::Exit(13)),
            ("Application was killed by user root at 127.0.0.1", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(cause(words), expected, "{words}");
        }
    }
}
