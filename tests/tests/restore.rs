//! After every kind of end the machine is what it was, and the report says so because it looked.

use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use autodriver_protocol::Cause;
use e2e::{alone, driver, job, program, shell, Job, Snapshot};

#[track_caller]
fn leaves_nothing(what: &str, run: Job) {
    let before = Snapshot::take();
    let outcome = run.run().expect_restored();
    before.assert_same(&format!("{what} ({})", outcome.cause().name()));
}

#[test]
fn nothing_is_left_after_any_kind_of_end() {
    let _alone = alone();
    for (what, run) in [
        ("an exit", job(["exit", "0"])),
        ("a failure", job(["exit", "3"])),
        ("a crash", job(["signal", "11"])),
        ("the wall limit", job(["ignore-term"]).opt("--wall", "500ms").opt("--grace", "100ms")),
        ("the CPU limit", job(["spin-children", "3", "60000"]).opt("--cpu", "300ms")),
        ("the memory limit", job(["allocate-split", "8", "24"]).opt("--memory", "64M")),
        ("the disk limit", job(["strict", "write", "big", "60"]).opt("--disk", "32M")),
        ("the output limit", job(["flood-forever"]).opt("--output", "1K").opt("--on-output", "kill")),
        ("a refused call", job(["int80"])),
        ("a missing program", program(["./missing"])),
        ("daemons", job(["daemons", "8"])),
    ] {
        leaves_nothing(what, run);
    }
}

/// The weight of a session outlives those who set it: see autogroups in sched(7).
#[test]
fn the_caller_s_session_weighs_what_it_did() {
    const WEIGHT: &str = "/proc/self/autogroup";
    let weight = || std::fs::read_to_string(WEIGHT).unwrap_or_default();
    // A kernel without the feature has no weight to keep.
    let _ = std::fs::write(WEIGHT, "3");
    let before = weight();
    job(["exit", "0"]).run().expect_restored();
    assert_eq!(weight(), before);
    let _ = std::fs::write(WEIGHT, "0");
}

#[test]
fn nothing_is_left_after_a_set_up_that_failed() {
    let _alone = alone();
    let before = Snapshot::take();
    let outcome = program(["/bin/true"]).opt("--cwd", "/no/such/place").run();
    assert_eq!(outcome.cause(), Cause::SetupFailed, "{outcome}");
    before.assert_same("a set-up that failed");
}

#[test]
fn files_of_the_job_are_gone_wherever_it_put_them() {
    let _alone = alone();
    let script = "for place in . /tmp /var/tmp /dev/shm; do \
                    echo x > $place/file; mkdir $place/folder; mkfifo $place/fifo; ./captive unix-loopback $place/s; \
                  done";
    leaves_nothing("files everywhere", shell(script));
}

#[test]
fn tree_deeper_than_any_path_is_removed() {
    let _alone = alone();
    leaves_nothing("a deep tree", job(["strict", "deep", "d", "2000"]));
    leaves_nothing("a deep tree elsewhere", job(["strict", "deep", "/tmp/d", "2000"]));
}

#[test]
fn deep_tree_does_not_stop_the_results() {
    let _alone = alone();
    let out = tempfile::tempdir().expect("a folder");
    let glob = format!("**/*.log:{}", out.path().to_str().expect("UTF-8"));
    let script = "./captive strict deep d 2000 && echo x > a.log";
    let outcome = shell(script).opt("--out", glob).run();
    assert_eq!(outcome.cause(), Cause::Exited, "{outcome}");
    assert!(out.path().join("a.log").exists(), "{outcome}");
    outcome.expect_restored();
}

#[test]
fn hostile_trees_are_removed() {
    let _alone = alone();
    leaves_nothing("closed directories, FIFOs and odd names", job(["strict", "hostile-tree", "h"]));
    leaves_nothing("the same elsewhere", job(["strict", "hostile-tree", "/dev/shm/h"]));
    leaves_nothing("a closed job directory", shell("mkdir a; chmod 0 a; chmod 0 /job"));
}

#[test]
fn files_in_a_writable_bind_stay_where_they_were_asked_for() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(folder.path(), open).expect("chmod");
    let before = Snapshot::take();
    let bind = format!("{}:/opt:rw", folder.path().to_str().expect("UTF-8"));
    job(["create", "/opt/new"]).opt("--bind", bind).run().expect_clean();
    assert!(folder.path().join("new").exists());
    before.assert_same("a job with a writable bind");
}

#[test]
fn driver_that_is_asked_to_end_cancels_and_restores() {
    let _alone = alone();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let before = Snapshot::take();
        let running = shell("./captive daemon 600000; exec ./captive ignore-term").spawn();
        running.job_process();
        std::thread::sleep(Duration::from_millis(100));
        running.signal(signal);
        let outcome = running.wait().expect_restored();
        assert_eq!(outcome.cause(), Cause::Cancelled, "{signal}: {outcome}");
        before.assert_same(&format!("a driver that got {signal}"));
    }
}

#[test]
fn cgroup_of_a_killed_driver_is_removed_by_restore() {
    let _alone = alone();
    let before = Snapshot::take();
    let running = shell("./captive daemon 600000; exec ./captive ignore-term").spawn();
    running.job_process();
    std::thread::sleep(Duration::from_millis(200));
    running.signal(Signal::SIGKILL);
    let outcome = running.wait();
    assert_eq!(outcome.status, -9, "{outcome}");
    let restore = driver(["restore"]);
    assert_eq!(restore.status, 0, "{restore}");
    before.assert_same("a killed driver and restore");
}

#[test]
fn restore_leaves_running_jobs_alone() {
    let _alone = alone();
    let running = job(["last-words"]).opt("--wall", "3s").opt("--grace", "60s").spawn();
    let process = running.job_process();
    let restore = driver(["restore"]);
    assert_eq!(restore.status, 0, "{restore}");
    assert!(
        std::path::Path::new(&format!("/proc/{}", process.pid)).exists(),
        "the job was killed: {restore}"
    );
    let outcome = running.wait().expect_limit(Cause::WallLimit, "wall");
    assert_eq!(outcome.text(), "waiting\nlast words\nok");
}

#[test]
fn restore_with_nothing_to_do_succeeds() {
    let _alone = alone();
    let before = Snapshot::take();
    assert_eq!(driver(["restore"]).status, 0);
    before.assert_same("restore with nothing to do");
}

#[test]
fn place_of_a_killed_driver_without_a_record_is_removed_by_restore() {
    let _alone = alone();
    let before = Snapshot::take();
    let place = std::path::Path::new("/tmp/autodriver-59999");
    std::fs::create_dir_all(place.join("job")).expect("a place as a driver makes it");
    let directory = std::fs::File::open(place).expect("the place");
    let living = Flock::lock(directory, FlockArg::LockExclusiveNonblock).expect("nobody else has it");
    assert_eq!(driver(["restore"]).status, 0);
    assert!(place.exists(), "a living driver's place was removed");
    drop(living);
    let restore = driver(["restore"]);
    assert_eq!(restore.status, 0, "{restore}");
    before.assert_same("a place without a record and restore");
}
