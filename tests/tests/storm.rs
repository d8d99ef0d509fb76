//! A program that makes random system calls changes nothing but itself. For longer runs: scripts/soak.

use std::time::Duration;

use e2e::{storm, Snapshot};

#[test]
fn a_storm_of_system_calls_leaves_the_machine_as_it_was() {
    let before = Snapshot::take();
    let calls: Vec<u64> = (1..=4)
        .filter_map(|seed| storm(seed, Duration::from_secs(1)).run().expect_any_verdict().calls())
        .collect();
    // A storm may end its own counter, but not every time.
    assert!(calls.iter().sum::<u64>() > 1000, "{calls:?}");
    before.assert_same("storms of system calls");
}
