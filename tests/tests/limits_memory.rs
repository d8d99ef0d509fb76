//! The memory of the whole job, wherever it hides it, and never taken for another limit.

use autodriver_protocol::Cause;
use e2e::{job, Outcome};

/// The kernel's own cap is both together: what is beyond it is ended whenever the driver looks.
fn limited(words: &[&str]) -> Outcome {
    job(words).opt("--memory", "64M").opt("--disk", "32M").run()
}

#[test]
fn job_past_the_memory_limit_is_ended() {
    limited(&["allocate", "256"]).expect_limit(Cause::MemoryLimit, "memory");
}

#[test]
fn job_past_its_limit_and_below_the_kernels_cap_is_ended_by_the_driver() {
    let holds = "x=$(head -c 100000000 /dev/zero | tr '\\0' x); sleep 100; echo ${#x}";
    let job = e2e::shell(holds).opt("--memory", "64M").opt("--disk", "1G");
    job.run().expect_limit(Cause::MemoryLimit, "memory");
}

#[test]
fn job_below_the_memory_limit_exits_and_its_peak_is_told() {
    let outcome = limited(&["allocate", "32"]).expect_clean();
    let peak = outcome.report().usage.memory_peak_bytes.expect("the peak is known");
    assert!((32 << 20..=64 << 20).contains(&peak), "{peak}: {outcome}");
}

#[test]
fn memory_of_several_processes_counts_together() {
    // Each alone is far below the limit.
    limited(&["allocate-split", "8", "24"]).expect_limit(Cause::MemoryLimit, "memory");
    limited(&["allocate-split", "4", "8"]).expect_clean();
}

#[test]
fn shared_memory_counts() {
    limited(&["allocate-shared", "256"]).expect_limit(Cause::MemoryLimit, "memory");
    limited(&["allocate-shared", "32"]).expect_clean();
}

#[test]
fn files_in_memory_that_no_directory_shows_count() {
    limited(&["allocate-memfd", "6", "40"]).expect_limit(Cause::MemoryLimit, "memory");
    limited(&["allocate-memfd", "2", "12"]).expect_clean();
}

#[test]
fn bytes_in_socket_buffers_count() {
    let outcome = limited(&["allocate-sockets", "256"]);
    // The kernel may also refuse buffers once the limit is reached, instead of killing.
    assert!(outcome.hit("memory"), "{outcome}");
    limited(&["allocate-sockets", "8"]).expect_clean();
}

#[test]
fn killed_child_of_a_job_past_the_limit_is_no_signal_of_the_jobs_own() {
    // The shell would report its child's death and go on; the verdict is the limit's.
    let script = "./captive allocate 256; echo went on with $?";
    let outcome = e2e::shell(script).opt("--memory", "64M").opt("--disk", "32M").run();
    assert_eq!(outcome.cause(), Cause::MemoryLimit, "{outcome}");
    assert!(outcome.hit("memory") && outcome.status == 124, "{outcome}");
}

#[test]
fn files_do_not_use_up_the_memory_limit() {
    let script = "./captive strict write a 50 && ./captive strict write b 50 && ./captive allocate 24";
    let outcome = e2e::shell(script).opt("--memory", "64M").opt("--disk", "200M").run().expect_clean();
    assert_eq!(outcome.text(), "ok\nok\nok");
}

#[test]
fn files_in_every_private_place_count_as_disk_not_as_memory() {
    for place in ["/tmp", "/var/tmp", "/dev/shm"] {
        let script = format!("./captive strict write {place}/a 90");
        e2e::shell(&script).opt("--memory", "64M").opt("--disk", "120M").run().expect_clean();
    }
}

#[test]
fn less_memory_than_a_program_needs_to_start_is_no_fault_of_the_job() {
    job(["exit", "0"]).opt("--memory", "1024").without_report().run().expect_refusal(&["--memory", "1024"]);
}
