//! A sample of the fault injection of scripts/test-faults: some of all points.

use e2e::alone;
use e2e::faults::{campaign, Choice, Reach, Who};

/// About how many faults.
const SAMPLE: usize = 80;

#[test]
fn a_failing_call_or_a_kill_ends_in_a_right_verdict_or_a_clear_fault() {
    let _alone = alone();
    let choice = Choice { reach: Reach::Sample(SAMPLE), ..Choice::default() };
    let tally = campaign(&choice, &mut std::io::stderr()).expect("a campaign");
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n"));
    for who in Who::ALL {
        assert!(tally.injected(who) > 0, "no fault met a call of {who}\n{tally}");
    }
}
