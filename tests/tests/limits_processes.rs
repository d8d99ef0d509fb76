//! How many processes and threads a job may have, and how little a bomb achieves.

use autodriver_protocol::Cause;
use e2e::{alone, job, Outcome, Snapshot};

/// How many came into being before which refusal.
#[track_caller]
fn count_and_refusal(outcome: &Outcome) -> (u32, String) {
    let words: Vec<&str> = outcome.text().split_whitespace().collect();
    match words[..] {
        ["ok", count, errno] => (count.parse().expect("a number"), errno.to_owned()),
        _ => panic!("a count and a refusal were expected: {outcome}"),
    }
}

#[test]
fn job_past_the_limit_of_processes_gets_eagain_and_goes_on() {
    let _alone = alone();
    let outcome = job(["fork-until-refused"]).opt("--pids", "20").run().expect_exit(0);
    assert!(outcome.hit("pids"), "{outcome}");
    let (count, errno) = count_and_refusal(&outcome);
    assert_eq!(errno, "EAGAIN");
    assert!((16..20).contains(&count), "{count} children: {outcome}");
}

#[test]
fn job_below_the_limit_of_processes_meets_no_limit() {
    let _alone = alone();
    let outcome = job(["strict", "fork", "12"]).opt("--pids", "20").run().expect_clean();
    let peak = outcome.report().usage.pids_peak;
    assert!(peak.is_none_or(|peak| (13..=20).contains(&peak)), "{outcome}");
}

#[test]
fn threads_count_as_processes_do() {
    let _alone = alone();
    let outcome = job(["thread-until-refused"]).opt("--pids", "20").run().expect_exit(0);
    assert!(outcome.hit("pids"), "{outcome}");
    let (count, errno) = count_and_refusal(&outcome);
    assert_eq!(errno, "EAGAIN");
    assert!((16..20).contains(&count), "{count} threads: {outcome}");
}

#[test]
fn two_jobs_do_not_share_one_limit() {
    let _alone = alone();
    let first = job(["fork-until-refused"]).opt("--pids", "30").spawn();
    let second = job(["strict", "fork", "20"]).opt("--pids", "30").run();
    second.expect_clean();
    first.wait().expect_exit(0);
}

#[test]
fn fork_bomb_ends_at_the_wall_limit_and_leaves_nothing() {
    let _alone = alone();
    let before = Snapshot::take();
    let outcome = job(["fork-bomb"]).opt("--wall", "2s").opt("--pids", "64").run();
    let outcome = outcome.expect_limit(Cause::WallLimit, "wall");
    assert!(outcome.hit("pids"), "{outcome}");
    before.assert_same("a fork bomb");
}
