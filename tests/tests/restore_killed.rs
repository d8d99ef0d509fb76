//! The driver is killed with SIGKILL at random moments: nothing of it or its job stays.

use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use e2e::{alone, driver, job, processes, wait_until, Snapshot};

/// How often; each moment is another one.
const ROUNDS: u32 = 30;

/// A number below `limit`, from the clock: which moments are tried need not repeat.
fn random(limit: u32) -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    now.subsec_nanos() / 7 % limit
}

#[test]
fn nothing_stays_of_a_driver_killed_at_any_moment() {
    let _alone = alone();
    let before = Snapshot::take();
    let mut moments = Vec::new();
    for _ in 0..ROUNDS {
        let moment = Duration::from_micros(u64::from(random(40_000)));
        moments.push(moment);
        let running = job(["fork-bomb"]).opt("--pids", "24").opt("--wall", "60s").spawn();
        std::thread::sleep(moment);
        running.signal(Signal::SIGKILL);
        let outcome = running.wait();
        assert_eq!(outcome.status, -9, "{outcome}");
        // The kernel kills the job with its init, which dies with the driver: no help is needed.
        let gone = || processes().iter().all(|one| one.name != "captive").then_some(());
        let gone = wait_until(Duration::from_secs(20), gone);
        assert!(gone.is_some(), "processes survive a driver killed after {moment:?}: {:?}", processes());
    }
    // Empty cgroups and locks nobody holds are directories and files, which only a process removes.
    let restore = driver(["restore"]);
    assert_eq!(restore.status, 0, "{restore}");
    before.assert_same(&format!("drivers killed after {moments:?}"));
}

#[test]
fn next_job_runs_after_a_killed_driver_without_restore() {
    let _alone = alone();
    let before = Snapshot::take();
    let running = job(["ignore-term"]).spawn();
    running.job_process();
    running.signal(Signal::SIGKILL);
    running.wait();
    job(["exit", "0"]).run().expect_clean();
    driver(["restore"]);
    before.assert_same("a killed driver, a job, and restore");
}

#[test]
fn killed_init_ends_the_job_and_is_no_verdict_on_it() {
    let _alone = alone();
    let before = Snapshot::take();
    let running = job(["ignore-term"]).spawn();
    let init = running.job_process().parent;
    assert_ne!(init, running.pid(), "the job's parent is init");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), Signal::SIGKILL).expect("init can be killed");
    let outcome = running.wait().expect_restored();
    assert_eq!(outcome.cause(), autodriver_protocol::Cause::InternalError, "{outcome}");
    assert_eq!(outcome.status, 125, "{outcome}");
    before.assert_same("a killed init");
}
