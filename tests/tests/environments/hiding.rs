//! What hides from whoever looks at processes now and then, and what others do meanwhile.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use autodriver_protocol::report::LayerState;
use autodriver_protocol::{Cause, Layer};
use e2e::{alone, job, Outcome};

use super::{done, Bystander};

/// Whether the kernel counts it, for the job alone or for a container, and not only the driver's looks.
fn is_counted(outcome: &Outcome, layer: Layer) -> bool {
    let report = outcome.layer(layer);
    let by = report.by.as_deref().unwrap_or_default();
    let counted = report.state == LayerState::Enforced || by.ends_with("account of its own cgroup");
    assert!(counted || by.ends_with("sampled by the driver"), "{outcome}");
    counted
}

#[test]
fn memory_that_hides_from_looks_is_limited_where_it_is_counted() {
    let _alone = alone();
    let limited = |words: &[&str]| job(words).opt("--memory", "64M").run().expect_started().expect_restored();
    let modest = limited(&["undumpable", "allocate-memfd", "2", "12"]);
    assert!(done(&modest), "{modest}");
    assert!(done(&limited(&["allocate-in-flight", "2", "12"])));
    if !is_counted(&modest, Layer::Memory) {
        return;
    }
    let mut hidden = vec![
        &["undumpable", "allocate-memfd", "20", "30"][..],
        &["undumpable", "allocate-shared", "600"],
        &["allocate-in-flight", "20", "30"],
    ];
    // cgroup v1 does not tell the kernel's own memory from what it can take back.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        hidden.push(&["allocate-sockets", "300"]);
    }
    for words in hidden {
        let outcome = limited(words);
        assert_eq!(outcome.cause(), Cause::MemoryLimit, "{words:?} {outcome}");
    }
}

#[test]
fn cpu_time_that_hides_from_looks_is_limited_where_it_is_counted() {
    let _alone = alone();
    let pieces = |count: &str, cpu: &str| {
        let job = job(["spin-in-pieces", count, "1"]).opt("--cpu", cpu).opt("--wall", "20s");
        job.run().expect_started().expect_restored()
    };
    // A fork costs as much as a piece, or, in an emulated machine, many times that.
    let modest = pieces("50", "5s");
    assert!(done(&modest), "{modest}");
    if is_counted(&modest, Layer::Cpu) {
        let outcome = pieces("5000", "500ms");
        assert_eq!(outcome.cause(), Cause::CpuLimit, "{outcome}");
    }
}

#[test]
fn what_others_use_is_not_laid_to_the_job() {
    let _alone = alone();
    let modest = job(["sleep", "3000"]).opt("--memory", "32M").opt("--cpu", "300ms").spawn();
    std::thread::sleep(Duration::from_millis(300));
    // Another driver's jobs, and somebody who belongs to no driver.
    for words in [&["allocate", "200"][..], &["spin", "800"], &["spin-in-pieces", "300", "1"]] {
        let outcome = job(words).opt("--memory", "400M").run().expect_started();
        assert!(done(&outcome), "{outcome}");
    }
    let busy = "i=0; x=.; while [ $i -lt 26 ]; do i=$((i+1)); x=$x$x; done; echo ${#x} >/dev/null";
    let status = Command::new("sh").args(["-c", busy]).status();
    assert!(status.expect("sh starts").success());
    let outcome = modest.wait();
    assert_eq!(outcome.cause(), Cause::Exited, "{outcome}");
    assert!(!outcome.hit("memory") && !outcome.hit("cpu"), "{outcome}");
    // Where somebody is there from the start, the report does not claim that the account says anything.
    let _stranger = Bystander::start();
    let outcome = job(["ids"]).run().expect_clean();
    let is_counted = is_counted(&outcome, Layer::Memory);
    assert_eq!(is_counted, outcome.layer(Layer::Memory).state == LayerState::Enforced, "{outcome}");
}
