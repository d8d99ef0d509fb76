//! The cgroups of a running job, read from outside by another implementation of cgroups.

use std::process::Command;

use cgroups_rs::cpu::CpuController;
use cgroups_rs::memory::MemController;
use cgroups_rs::pid::PidController;
use cgroups_rs::{hierarchies, Cgroup, MaxValue};
use e2e::{autodriver, job, Running};

/// Starts a job that waits, with these options.
fn waiting(options: &[(&str, &str)]) -> Running {
    let start = job(["last-words"]).opt("--wall", "5s").opt("--grace", "60s");
    options.iter().fold(start, |job, (name, value)| job.opt(name, value)).spawn()
}

/// The path of the job's cgroup for a controller, below where that is mounted.
fn path_of(pid: i32, controller: &str) -> String {
    let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("the job lives");
    let v2 = hierarchies::is_cgroup2_unified_mode();
    let line = table.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let found = if v2 { names.is_empty() } else { names.split(',').any(|name| name == controller) };
        found.then(|| path.trim_start_matches('/').to_owned())
    });
    let path = line.unwrap_or_else(|| panic!("no {controller} in {table}"));
    assert!(path.contains("autodriver"), "the job is in a cgroup of its own: {path}");
    path
}

fn load(pid: i32, controller: &str) -> Cgroup {
    Cgroup::load(hierarchies::auto(), path_of(pid, controller))
}

#[test]
fn memory_is_limited_by_the_kernel_with_swap_included() {
    let running = waiting(&[("--memory", "64M"), ("--disk", "32M")]);
    let pid = running.job_process().pid;
    let group = load(pid, "memory");
    let memory: &MemController = group.controller_of().expect("the memory controller");
    let limit = memory.memory_stat().limit_in_bytes;
    // What the job stores is charged to it as well, so the kernel's limit is the sum of both.
    assert!((64 << 20..=(64 + 32 + 16) << 20).contains(&limit), "{limit}");
    if hierarchies::is_cgroup2_unified_mode() {
        // Absent where the kernel has no swap.
        let swap = format!("/sys/fs/cgroup/{}/memory.swap.max", path_of(pid, "memory"));
        let swap = std::fs::read_to_string(swap).unwrap_or_else(|_| "0\n".to_owned());
        assert_eq!(swap, "0\n");
    } else {
        let with_swap = memory.memswap().limit_in_bytes;
        assert!(with_swap <= 0 || with_swap == limit, "{with_swap}");
    }
    running.wait().expect_limit(autodriver_protocol::Cause::WallLimit, "wall");
}

#[test]
fn processes_are_limited_by_the_kernel() {
    let running = waiting(&[("--pids", "37")]);
    let group = load(running.job_process().pid, "pids");
    let pids: &PidController = group.controller_of().expect("the pids controller");
    assert_eq!(pids.get_pid_max().expect("pids.max"), MaxValue::Value(37));
    running.wait();
}

#[test]
fn cpu_is_accounted_in_a_cgroup_of_its_own() {
    let running = waiting(&[]);
    let group = load(running.job_process().pid, "cpu");
    let cpu: &CpuController = group.controller_of().expect("the cpu controller");
    assert!(cpu.shares().expect("a share") > 0);
    running.wait();
}

#[test]
fn each_job_has_its_own_cgroup() {
    let (one, two) = (waiting(&[]), waiting(&[]));
    let paths = [&one, &two].map(|running| path_of(running.job_process().pid, "memory"));
    assert_ne!(paths[0], paths[1]);
    one.wait();
    two.wait();
}

/// Uids are leased by a file in /run, and not all who share the tree of cgroups share that.
#[test]
fn a_driver_that_sees_another_run_leaves_a_job_its_cgroup() {
    const UID: &str = "59500";
    let elsewhere = |script: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", &format!("mount -t tmpfs run /run && {script}")]);
        let driver = format!("{}", autodriver().display());
        unshare.env("DRIVER", driver).output().expect("unshare starts")
    };
    let running = job(["last-words"]).opt("--user", UID).opt("--wall", "5s").opt("--grace", "60s").spawn();
    let pid = running.job_process().pid;
    let limited = |pid: i32| path_of(pid, "memory").contains(&format!("autodriver-{UID}"));
    assert!(limited(pid));
    let refused = elsewhere(&format!("exec \"$DRIVER\" run --user {UID} -- /bin/true"));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(said.contains("a living driver has it that sees another /run/autodriver"), "{said}");
    let restored = elsewhere("exec \"$DRIVER\" restore");
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert!(limited(pid), "it is where it was");
    running.wait().expect_restored();
}
