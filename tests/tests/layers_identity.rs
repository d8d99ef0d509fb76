//! Who the job is: a uid of its own, no capability, no way back, nothing inherited.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use e2e::{captive, job, program, shell};

/// The ids of a `Uid:` or `Gid:` line, all four the same.
#[track_caller]
fn one_id(field: &str) -> u32 {
    let outcome = job(["status", field]).run().expect_clean();
    let words: Vec<&str> = outcome.text().split_whitespace().collect();
    assert!(words.len() == 5 && words[1..].iter().all(|word| *word == words[1]), "{outcome}");
    words[1].parse().expect("a number")
}

#[track_caller]
fn expect(words: &[&str], line: &str) {
    let outcome = job(words).run().expect_clean();
    assert_eq!(outcome.text(), line, "{words:?}");
}

#[test]
fn job_has_a_uid_and_a_gid_that_are_not_roots() {
    assert!(one_id("Uid") >= 1000);
    assert!(one_id("Gid") >= 1000);
}

#[test]
fn job_has_no_groups() {
    expect(&["status", "Groups"], "ok");
}

#[test]
fn job_has_no_capability_in_any_set() {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        expect(&["status", set], "ok 0000000000000000");
    }
}

#[test]
fn job_cannot_get_a_capability_back() {
    expect(&["securebits"], "ok 0xef");
    expect(&["raise-ambient"], "errno EPERM");
}

#[test]
fn job_cannot_become_root() {
    for way in ["become-root", "become-root-group", "become-root-saved", "join-groups"] {
        expect(&[way], "errno EPERM");
    }
}

#[test]
fn job_may_set_the_ids_it_has() {
    // Make does so for each recipe.
    let outcome = job(["syscalls"]).run().expect_clean();
    for call in ["setresuid-keep ok", "setresgid-keep ok"] {
        assert!(outcome.text().lines().any(|line| line == call), "{outcome}");
    }
}

#[test]
fn running_jobs_have_different_uids() {
    let one = job(["sleep", "600000"]).opt("--wall", "100s").spawn();
    let two = job(["sleep", "600000"]).opt("--wall", "100s").spawn();
    let (first, second) = (one.job_process(), two.job_process());
    assert_ne!(first.uid, second.uid);
    assert!(first.uid != 0 && second.uid != 0);
    for running in [one, two] {
        running.signal(nix::sys::signal::Signal::SIGTERM);
        running.wait();
    }
}

#[test]
fn kernel_sees_the_uid_that_the_job_sees() {
    // A user namespace could show the job a uid and be root to the kernel.
    let running = job(["last-words"]).opt("--wall", "2s").opt("--grace", "20s").spawn();
    let pid = running.job_process().pid;
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).expect("the job lives");
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "0", "4294967295"]);
    running.wait();
}

#[test]
fn setuid_program_gives_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let trap = folder.path().join("trap");
    std::fs::copy(captive(), &trap).expect("a copy of the captive");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("chmod");
    let mut bind = folder.path().as_os_str().to_owned();
    bind.push(":/opt");
    let mut said = Vec::new();
    for mode in [0o755, 0o4755, 0o6755] {
        std::fs::set_permissions(&trap, Permissions::from_mode(mode)).expect("chmod");
        let outcome = job(["run-file", "/opt/trap"]).opt("--bind", &bind).run().expect_clean();
        let ids = outcome.text().lines().next().unwrap_or_default().to_owned();
        let numbers: Vec<u32> = ids.split_whitespace().skip(1).map(|id| id.parse().expect("an id")).collect();
        assert!(numbers.len() == 2 && numbers.iter().all(|id| *id >= 1000), "mode {mode:o}: {outcome}");
        said.push(ids);
    }
    assert_eq!(said.len(), 3);
}

#[test]
fn no_new_privs_is_set() {
    expect(&["status", "NoNewPrivs"], "ok 1");
}

#[test]
fn only_the_three_streams_are_open() {
    expect(&["descriptors"], "ok 0=/dev/null 1=pipe 2=pipe");
    let outcome = job(["descriptors"]).flag("--split").run().expect_clean();
    assert_eq!(outcome.text(), "ok 0=/dev/null 1=pipe 2=pipe");
}

#[test]
fn descriptors_that_the_driver_inherited_do_not_leak() {
    let report = tempfile::NamedTempFile::new().expect("a file for the report");
    let words = job(["descriptors"]).opt("--report", report.path()).arguments();
    let script = "exec \"$@\" 3</ 4</etc/passwd 7</dev/null 9>/dev/null";
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(e2e::autodriver()).args(words);
    let output = command.output().expect("a shell");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok 0=/dev/null 1=pipe 2=pipe\n");
}

#[test]
fn environment_is_exactly_what_is_documented() {
    // Whatever the driver itself has, nothing of it reaches the job.
    let outcome = job(["environment"]).run().expect_clean();
    let mut names = Vec::new();
    for line in outcome.text().lines().filter(|line| *line != "ok") {
        let (name, value) = line.split_once('=').expect("NAME=VALUE");
        names.push(name);
        match name {
            "HOME" => assert_eq!(value, "/job"),
            "PATH" => assert_eq!(value, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            "SHELL" => assert_eq!(value, "/bin/sh"),
            "LANG" => assert_eq!(value, "C.UTF-8"),
            "TMPDIR" => assert_eq!(value, "/tmp"),
            "USER" | "LOGNAME" => assert_eq!(value, "job"),
            _ => panic!("not documented: {line}"),
        }
    }
    assert_eq!(names, ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER"]);
}

#[test]
fn job_has_an_account_with_its_home() {
    let outcome = job(["account"]).run().expect_clean();
    let lines: Vec<&str> = outcome.text().lines().collect();
    let passwd: Vec<&str> = lines[0].split(':').collect();
    assert!(
        passwd.len() == 7 && passwd[0] == "job" && passwd[5] == "/job" && passwd[6] == "/bin/sh",
        "{outcome}"
    );
    let group: Vec<&str> = lines[1].split(':').collect();
    assert!(group.len() == 4 && group[0] == "job" && group[2] == passwd[3], "{outcome}");
}

#[test]
fn accounts_of_the_machine_are_still_there() {
    let outcome = program(["grep", "-c", "^root:", "/etc/passwd"]).run().expect_clean();
    assert_eq!(outcome.text(), "1");
}

#[test]
fn job_leads_a_session_without_a_terminal() {
    let outcome = shell("exec ./captive session").run().expect_clean();
    assert_eq!(outcome.text(), "ok true true Some(ENXIO)");
}

#[test]
fn limits_of_a_process_are_set_and_cannot_be_raised() {
    let run = job(["limits"]).opt("--nofile", "200").opt("--stack", "4M").opt("--fsize", "5M");
    let run = run.opt("--as", "8G").opt("--data", "7G").opt("--memlock", "1M").opt("--sigpending", "77");
    let outcome = run.opt("--nproc", "90").opt("--cpu", "30s").run().expect_clean();
    for line in [
        "as 8589934592 8589934592",
        "core 1 1", // one byte: with 0, a core_pattern that is a pipe would still be run
        "cpu 31 32",
        "data 7516192768 7516192768",
        "fsize 5242880 5242880",
        "memlock 1048576 1048576",
        "msgqueue 0 0",
        "nice 0 0",
        "nofile 200 200",
        "nproc 90 90",
        "rtprio 0 0",
        "sigpending 77 77",
        "stack 4194304 4194304",
    ] {
        assert!(outcome.text().lines().any(|one| one == line), "{line} is missing: {outcome}");
    }
    let outcome = job(["raise-limits"]).run().expect_clean();
    let raised: Vec<&str> = outcome.text().lines().filter(|line| !line.ends_with("EPERM")).collect();
    assert_eq!(raised, ["ok"], "{outcome}");
}

#[test]
fn limits_of_a_process_have_the_documented_defaults() {
    let outcome = job(["limits"]).run().expect_clean();
    for line in [
        "core 1 1",
        "fsize 104857600 104857600",
        "memlock 65536 65536",
        "msgqueue 0 0",
        "nofile 1024 1024",
        "nproc 129 129",
        "sigpending 1024 1024",
        "stack 8388608 8388608",
    ] {
        assert!(outcome.text().lines().any(|one| one == line), "{line} is missing: {outcome}");
    }
}
