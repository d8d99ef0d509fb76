//! Wall clock, CPU time and idle time: a job that passes each limit, and one just below it.

use std::time::Duration;

use autodriver_protocol::Cause;
use e2e::{job, shell, Outcome};

/// The time a limited job may take in all on a slow and busy machine.
const SOON: Duration = Duration::from_secs(90);

fn wall_of(outcome: &Outcome) -> Duration {
    Duration::from_micros(outcome.report().usage.wall_us)
}

// What a job is known to use is compared with four fifths of it: some kernels split CPU time into
// user and system by sampling, and lose or gain a tick with each process.

#[track_caller]
fn expect_soon(outcome: Outcome, at_least: Duration) {
    let wall = wall_of(&outcome);
    assert!(wall >= at_least && wall < SOON && outcome.took < SOON, "took {wall:?}: {outcome}");
}

#[test]
fn job_past_the_wall_limit_is_ended() {
    let outcome = job(["sleep", "600000"]).opt("--wall", "1s").run().expect_limit(Cause::WallLimit, "wall");
    expect_soon(outcome, Duration::from_secs(1));
}

#[test]
fn job_below_the_wall_limit_exits() {
    let outcome = job(["sleep", "300"]).opt("--wall", "60s").run().expect_clean();
    assert!(wall_of(&outcome) >= Duration::from_millis(300), "{outcome}");
}

#[test]
fn job_past_the_cpu_limit_is_ended() {
    let outcome = job(["spin", "600000"]).opt("--cpu", "500ms").run().expect_limit(Cause::CpuLimit, "cpu");
    // The kernel counts the two parts that are added here in ticks of its own.
    assert!(outcome.cpu() >= Duration::from_millis(450), "{outcome}");
    assert!(outcome.cpu() < Duration::from_secs(15), "{outcome}");
}

#[test]
fn job_below_the_cpu_limit_exits_and_its_time_is_told() {
    let outcome = job(["spin", "300"]).opt("--cpu", "30s").run().expect_clean();
    assert!(outcome.cpu() >= Duration::from_millis(240), "{outcome}");
    assert!(outcome.cpu() < Duration::from_secs(20), "{outcome}");
}

#[test]
fn cpu_time_of_children_counts() {
    let hidden = job(["spin-children", "3", "600000"]).opt("--cpu", "1s").run();
    hidden.expect_limit(Cause::CpuLimit, "cpu");
    let seen = job(["spin-children", "3", "200"]).opt("--cpu", "60s").run().expect_clean();
    assert!(seen.cpu() >= Duration::from_millis(480), "{seen}");
}

#[test]
fn cpu_time_of_children_nobody_waits_for_counts() {
    let hidden = job(["spin-unwaited", "3", "600000"]).opt("--cpu", "1s").run();
    hidden.expect_limit(Cause::CpuLimit, "cpu");
    let seen = job(["spin-unwaited", "3", "200"]).opt("--cpu", "60s").run().expect_clean();
    assert!(seen.cpu() >= Duration::from_millis(480), "{seen}");
}

#[test]
fn cpu_time_handed_from_process_to_process_counts() {
    // 60 processes, a twentieth of a second each: none comes near a limit of its own.
    let hidden = job(["spin-relay", "60", "50"]).opt("--cpu", "1s").run();
    hidden.expect_limit(Cause::CpuLimit, "cpu");
    let seen = job(["spin-relay", "6", "50"]).opt("--cpu", "60s").run().expect_clean();
    assert!(seen.cpu() >= Duration::from_millis(240), "{seen}");
}

#[test]
fn job_without_output_for_too_long_is_ended() {
    let outcome = job(["sleep", "600000"]).opt("--idle", "1s").run().expect_limit(Cause::IdleLimit, "idle");
    expect_soon(outcome, Duration::from_secs(1));
}

#[test]
fn job_that_keeps_writing_is_not_idle() {
    let outcome = job(["drip", "8", "400"]).opt("--idle", "30s").run().expect_clean();
    assert!(wall_of(&outcome) >= Duration::from_secs(3), "{outcome}");
}

#[test]
fn output_puts_the_idle_limit_off() {
    // Six pauses, each far below the limit, together above it.
    let outcome = job(["drip", "6", "1000"]).opt("--idle", "5s").run().expect_clean();
    assert!(wall_of(&outcome) >= Duration::from_secs(5), "{outcome}");
}

#[test]
fn job_that_handles_sigterm_gets_its_last_words_in_the_grace_time() {
    let outcome = job(["last-words"]).opt("--wall", "1s").opt("--grace", "60s").run();
    let outcome = outcome.expect_limit(Cause::WallLimit, "wall");
    assert_eq!(outcome.text(), "waiting\nlast words\nok");
    assert!(wall_of(&outcome) < Duration::from_secs(40), "the grace time is not waited out: {outcome}");
}

#[test]
fn without_grace_there_are_no_last_words() {
    let outcome = job(["last-words"]).opt("--wall", "1s").run().expect_limit(Cause::WallLimit, "wall");
    assert_eq!(outcome.text(), "waiting");
}

#[test]
fn grace_applies_to_other_limits_too() {
    let script = "trap 'echo last words; exit 0' TERM; while :; do :; done";
    let outcome = shell(script).opt("--cpu", "500ms").opt("--grace", "60s").run();
    let outcome = outcome.expect_limit(Cause::CpuLimit, "cpu");
    assert_eq!(outcome.text(), "last words");
}

#[test]
fn job_that_ignores_blocks_or_stops_signals_dies_all_the_same() {
    for way in ["ignore-term", "block-all", "stop-self", "stop-parent-and-children"] {
        let outcome = job([way]).opt("--wall", "1s").opt("--grace", "500ms").run();
        let outcome = outcome.expect_limit(Cause::WallLimit, "wall");
        expect_soon(outcome, Duration::from_secs(1));
    }
}

#[test]
fn signal_of_a_limit_is_not_called_the_jobs_own() {
    let outcome = job(["sleep", "600000"]).opt("--wall", "1s").run();
    assert_eq!(outcome.cause(), Cause::WallLimit);
    let own = job(["signal", "9"]).run().expect_restored();
    assert_eq!((own.cause(), own.report().signal, own.status), (Cause::Signaled, Some(9), 128 + 9));
}
