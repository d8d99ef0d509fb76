//! A sample of the fault injection of scripts/test-faults: some of all points.

use e2e::alone;
use e2e::faults::{campaign, Choice};

/// Every how-manieth point: some seventy runs. `FAULTS_EVERY` is for machines that are slow.
const EVERY: usize = 120;

#[test]
fn a_failing_call_or_a_kill_ends_in_a_right_verdict_or_a_clear_fault() {
    let _alone = alone();
    let every = std::env::var("FAULTS_EVERY").map_or(EVERY, |number| number.parse().expect("a number"));
    let choice = Choice { every, ..Choice::default() };
    let tally = campaign(&choice, &mut std::io::stderr()).expect("a campaign");
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n"));
    assert!(tally.passed() > 3, "{tally:?}");
}
