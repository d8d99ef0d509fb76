//! A sample of the fault injection of scripts/test-faults: some of all points.

use e2e::alone;
use e2e::faults::{campaign, Choice, Reach, Tally, Who};

/// About how many faults.
const SAMPLE: usize = 48;

/// Fails if anything is wrong.
fn clean(choice: &Choice) -> Tally {
    let _alone = alone();
    let tally = campaign(choice, &mut std::io::stderr()).expect("a campaign");
    assert!(tally.failures.is_empty(), "{}", tally.failures.join("\n"));
    tally
}

#[test]
fn a_failing_call_or_a_kill_ends_in_a_right_verdict_or_a_clear_fault() {
    let tally = clean(&Choice { reach: Reach::Sample(SAMPLE), ..Choice::default() });
    for who in Who::ALL {
        assert!(tally.injected(who) > 0, "no fault met a call of {who}\n{tally}");
    }
}

/// What it could not hand to the process that unpacks, or have from the one that packs, was missing, and nothing said
/// so; and where its peer could not be reached it ended as if that had hung up.
#[test]
fn a_server_that_cannot_hand_on_what_it_has_says_so() {
    let variants = vec!["served".into()];
    for calls in [
        "driver: write(pipe:[N]) #1 after 0 children: E",
        "driver: write(pipe:[N]) #1 after 1 children: E",
        "driver: read(pipe:[N]) #1 after 3 children and exec: E",
    ] {
        let choice = Choice { variants: variants.clone(), calls: Some(calls.into()), ..Choice::default() };
        let tally = clean(&choice);
        assert!(tally.injected(Who::Driver) > 0, "{tally}");
    }
}

/// It waited for its keeper, which waited to be told.
#[test]
fn a_driver_that_cannot_tell_its_keeper_that_all_is_done_ends_all_the_same() {
    let variants = vec!["contained".into()];
    let calls = Some("driver: write(pipe:[N])".into());
    let tally = clean(&Choice { variants, calls, ..Choice::default() });
    assert!(tally.injected(Who::Driver) > 0, "{tally}");
}
