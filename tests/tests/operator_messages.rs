//! What an operator is told: one sentence that names the value, exit status 125, nothing run and
//! nothing left behind.

use autodriver_protocol::Cause;
use e2e::{alone, autodriver, driver, program, shell, Snapshot};

/// A document that nobody wrote.
fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), content).expect("a file's content");
    file
}

#[test]
fn bad_values_are_named() {
    let _alone = alone();
    let before = Snapshot::take();
    for (option, value) in [
        ("--wall", "never"),
        ("--wall", "-1s"),
        ("--wall", "0"),
        ("--wall", "99999999h"),
        ("--cpu", "1.2.3"),
        ("--idle", ""),
        ("--grace", "1d"),
        ("--memory", "lots"),
        ("--memory", "-5"),
        ("--memory", "18446744073709551616"),
        ("--disk", "1T"),
        ("--output", "1.5M"),
        ("--pids", "0"),
        ("--pids", "many"),
        ("--pids", "99999999999999999999"),
        ("--inodes", "-1"),
        ("--nofile", "x"),
        ("--net", "lan"),
        ("--on-output", "stop"),
        ("--env", "NOEQUALS"),
        ("--env", "=x"),
        ("--bind", "relative"),
        ("--bind", "/a:b"),
        ("--out", "noseparator"),
        ("--root", "relative"),
        ("--user", "root"),
        ("--report", "fd:x"),
        ("--require", "moat"),
        ("--skip", "moat"),
    ] {
        let name = if value.is_empty() { option } else { value };
        let outcome = driver(["run", option, value, "--", "/bin/true"]).expect_refusal(&[option]);
        assert!(outcome.complaint().contains(name), "{option} {value}: {outcome}");
    }
    before.assert_same("refused options");
}

#[test]
fn limits_above_the_driver_s_own_are_named_and_no_core_dumps_stay_none() {
    let _alone = alone();
    let before = Snapshot::take();
    // As sudo starts it, and in most containers.
    let limited = |limits: &str, script: &str| {
        let start =
            "eval \"$1\"; exec setpriv --bounding-set -sys_resource \"$0\" run --quiet -- sh -c \"$2\"";
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", start]).arg(autodriver()).args([limits, script]).output().expect("sh starts")
    };
    let ran = limited("ulimit -c 0", "ulimit -c; ulimit -Hc");
    assert_eq!((ran.status.code(), &ran.stdout[..]), (Some(0), &b"0\n0\n"[..]), "{ran:?}");
    let ran = limited("ulimit -n 100", "true");
    assert_eq!(ran.status.code(), Some(125), "{ran:?}");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("cannot set RLIMIT_NOFILE to ") && said.contains("CAP_SYS_RESOURCE"), "{said}");
    before.assert_same("limits of the driver's");
}

#[test]
fn unknown_options_and_commands_are_named() {
    let _alone = alone();
    driver(["run", "--walll", "1s"]).expect_refusal(&["--walll"]);
    driver(["rn"]).expect_refusal(&["rn"]);
    driver(["serve", "now"]).expect_refusal(&["now"]);
}

#[test]
fn missing_values_are_asked_for() {
    let _alone = alone();
    driver(["run", "--wall"]).expect_refusal(&["--wall"]);
}

#[test]
fn bad_documents_are_named_by_key() {
    let _alone = alone();
    let before = Snapshot::take();
    for (document, word) in [
        (&br#"{"wal": 3}"#[..], "wal"),
        (br#"{"wall": []}"#, "sequence"),
        (br#"{"wall": "soon"}"#, "soon"),
        (br#"{"pids": -1}"#, "-1"),
        (br#"{"pids": 1e99}"#, "1e"),
        (br#"{"pids": "12"}"#, "12"),
        (br#"{"memory": 99999999999999999999999}"#, "K, M or G"),
        (br#"{"command": "make"}"#, "make"),
        (br#"{"command": [1]}"#, "1"),
        (br#"{"env": ["A"]}"#, "NAME=VALUE"),
        (br#"{"skip": ["moat"]}"#, "moat"),
        (br#"{"command": ["x"], "command": ["y"]}"#, "command"),
        (b"[]", "job document"),
        (b"{} {}", "trailing"),
        (b"", "EOF"),
        (b"{", "EOF"),
        (b"\xff\xfe", "job document"),
        (b"null", "job document"),
    ] {
        let file = file(document);
        let path = file.path().to_str().expect("UTF-8");
        let outcome = driver(["run", "--job", path, "--", "/bin/true"]);
        assert!(outcome.status == 125, "{} was accepted: {outcome}", String::from_utf8_lossy(document));
        outcome.expect_refusal(&[word]);
    }
    before.assert_same("refused documents");
}

#[test]
fn endless_document_is_refused_without_reading_it_all() {
    let _alone = alone();
    let outcome = driver(["run", "--job", "/dev/zero", "--", "/bin/true"]);
    assert!(outcome.driver_peak_kib < 32 << 10, "{outcome:?}");
    outcome.expect_refusal(&["/dev/zero"]);
}

#[test]
fn deeply_nested_document_is_refused() {
    let _alone = alone();
    let file = file("[".repeat(500_000).as_bytes());
    driver(["run", "--job", file.path().to_str().expect("UTF-8")]).expect_refusal(&[]);
}

#[test]
fn missing_files_are_named() {
    let _alone = alone();
    let before = Snapshot::take();
    for words in [
        ["--job", "/no/such/job.json"],
        ["--in", "/no/such/input"],
        ["--bind", "/no/such/bind"],
        ["--root", "/no/such/root"],
        ["--stdin", "/no/such/stdin"],
        ["--report", "/no/such/report.json"],
    ] {
        let outcome = driver(["run", words[0], words[1], "--", "/bin/true"]).expect_refusal(&[words[1]]);
        let text = outcome.complaint();
        assert!(text.contains("ENOENT") || text.contains("No such file"), "{outcome}");
    }
    before.assert_same("missing files");
}

#[test]
fn input_that_is_no_file_is_refused() {
    let _alone = alone();
    driver(["run", "--in", "/dev/zero:zeros", "--", "/bin/true"]).expect_refusal(&["/dev/zero"]);
}

#[test]
fn faults_are_in_the_report_and_not_on_the_jobs_streams() {
    let _alone = alone();
    let outcome = program(["/bin/echo", "ran"]).opt("--in", "/no/such/input").run();
    assert_eq!(outcome.status, 125, "{outcome}");
    assert!(outcome.stdout.is_empty(), "nothing ran: {outcome}");
    if let Some(report) = &outcome.report {
        assert_eq!(report.cause, Cause::SetupFailed, "{outcome}");
        assert!(report.fault.is_some(), "{outcome}");
    }
}

#[test]
fn full_disk_under_the_results_is_told() {
    let _alone = alone();
    let before = Snapshot::take();
    let folder = tempfile::tempdir().expect("a folder");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("e2e"), folder.path(), Some("tmpfs"), flags, Some("size=64k"))
        .expect("a small disk");
    let glob = format!("big:{}/results/", folder.path().to_str().expect("UTF-8"));
    let outcome = shell("./captive write big 2").opt("--out", glob).loud().run();
    let found: Vec<_> =
        std::fs::read_dir(folder.path().join("results")).into_iter().flatten().flatten().collect();
    nix::mount::umount(folder.path()).expect("umount");
    assert!(found.is_empty(), "a file that is not whole was left: {found:?}");
    assert_eq!(outcome.status, 125, "{outcome}");
    let text = outcome.complaint();
    assert!(text.contains("big") && text.contains("ENOSPC"), "{outcome}");
    drop(folder);
    before.assert_same("a full disk");
}

#[test]
fn absent_report_folder_does_not_lose_the_job_silently() {
    let _alone = alone();
    let outcome = driver(["run", "--report", "/proc/report", "--quiet", "--", "/bin/true"]);
    outcome.expect_refusal(&["/proc/report"]);
}

#[test]
fn help_is_no_error() {
    let _alone = alone();
    for words in [vec!["--help"], vec!["run", "--help"]] {
        let outcome = driver(words);
        assert!(outcome.status == 0 && outcome.text().contains("autodriver"), "{outcome}");
    }
}
