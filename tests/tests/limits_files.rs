//! What a job may write: bytes and files together, and the largest file.

use autodriver_protocol::Cause;
use e2e::{job, shell, Outcome};

/// Room for the captive itself and about 24 MiB more.
fn limited(words: &[&str]) -> Outcome {
    job(words).opt("--disk", "32M").run()
}

/// Fails if the job said anything but that there was no room. On a slow machine it says nothing:
/// the driver may see the full storage and end the job before it gets that far.
#[track_caller]
fn said_at_most(outcome: &Outcome, line: &str) {
    let last = outcome.text().lines().last().unwrap_or_default();
    assert!([line, "ok", ""].contains(&last), "{outcome}");
}

#[test]
fn job_that_fails_because_its_storage_is_full_met_the_disk_limit() {
    let outcome = limited(&["strict", "write", "big", "60"]).expect_limit(Cause::DiskLimit, "disk");
    said_at_most(&outcome, "errno ENOSPC");
}

#[test]
fn job_that_goes_on_with_full_storage_is_told_of_the_limit() {
    let outcome = limited(&["write-on", "big", "60"]);
    said_at_most(&outcome, "ok ENOSPC");
    assert!(outcome.hit("disk"), "{outcome}");
    // It copes and exits, or is found with full storage before it could.
    let ends = [(Cause::Exited, 0), (Cause::DiskLimit, 124)];
    assert!(ends.contains(&(outcome.cause(), outcome.status)), "{outcome}");
    outcome.expect_restored();
}

#[test]
fn job_below_the_disk_limit_exits() {
    limited(&["strict", "write", "big", "16"]).expect_clean();
}

#[test]
fn all_places_a_job_can_write_share_one_limit() {
    let script =
        "for place in . /tmp /var/tmp /dev/shm; do ./captive strict write $place/a 12 || exit 1; done";
    let outcome = shell(script).opt("--disk", "32M").run().expect_limit(Cause::DiskLimit, "disk");
    said_at_most(&outcome, "errno ENOSPC");
    shell(script).opt("--disk", "80M").run().expect_clean();
}

#[test]
fn files_without_a_name_count() {
    limited(&["strict", "write-deleted", "big", "60"]).expect_limit(Cause::DiskLimit, "disk");
    limited(&["strict", "write-deleted", "big", "16"]).expect_clean();
}

#[test]
fn removed_files_give_their_room_back() {
    let script = "for turn in 1 2 3 4; do ./captive strict write a 16 || exit 1; rm a; done";
    shell(script).opt("--disk", "32M").run().expect_clean();
}

#[test]
fn job_past_the_limit_of_inodes_is_told() {
    let outcome = job(["strict", "make-files", "many", "2000"]).opt("--inodes", "500").run();
    let outcome = outcome.expect_limit(Cause::DiskLimit, "inodes");
    said_at_most(&outcome, "errno ENOSPC");
}

#[test]
fn job_below_the_limit_of_inodes_exits() {
    job(["strict", "make-files", "many", "400"]).opt("--inodes", "500").run().expect_clean();
}

#[test]
fn file_past_fsize_ends_the_job() {
    job(["write", "big", "20"]).opt("--fsize", "8M").run().expect_limit(Cause::DiskLimit, "fsize");
}

#[test]
fn file_below_fsize_is_written() {
    job(["strict", "write", "big", "8"]).opt("--fsize", "8M").run().expect_clean();
}

#[test]
fn sparse_files_are_held_to_fsize_too() {
    job(["sparse", "big", "100000"]).run().expect_limit(Cause::DiskLimit, "fsize");
    job(["strict", "sparse", "big", "90"]).run().expect_clean();
}

#[test]
fn inputs_do_not_use_up_the_disk_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("large"), vec![1; 9 << 20]).expect("a large file");
    let run = |mib: &str| {
        let run = job(["strict", "write", "own", mib]).opt("--in", folder.path());
        run.opt("--disk", "4M").run()
    };
    run("3").expect_clean();
    run("5").expect_limit(Cause::DiskLimit, "disk");
}
