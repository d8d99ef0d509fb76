//! How output arrives: never lost, never in the way of the job's end, never in the driver's memory.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use autodriver_protocol::Cause;
use e2e::{job, shell};

#[test]
fn output_before_a_kill_is_not_lost() {
    let script = "./captive lines 50; printf 'the last word'; exec ./captive ignore-term";
    let outcome = shell(script).opt("--wall", "2s").run().expect_limit(Cause::WallLimit, "wall");
    assert!(outcome.stdout.ends_with(b"line 0000049\nthe last word"), "{outcome}");
}

#[test]
fn output_before_a_crash_is_not_lost() {
    let outcome = shell("./captive lines 5000; kill -SEGV $$").run().expect_restored();
    assert_eq!((outcome.cause(), outcome.report().signal), (Cause::Signaled, Some(11)), "{outcome}");
    assert!(outcome.stdout.ends_with(b"line 0004999\n"), "{outcome}");
}

#[test]
fn output_before_a_kill_for_memory_is_not_lost() {
    let outcome = shell("echo score 5; ./captive allocate 256; ./captive sleep 100000");
    let outcome = outcome.opt("--memory", "64M").run().expect_limit(Cause::MemoryLimit, "memory");
    assert!(outcome.stdout.starts_with(b"score 5\n"), "{outcome}");
}

#[test]
fn driver_memory_is_bounded_while_the_job_prints_a_gigabyte() {
    let outcome = job(["flood", "1024"]).opt("--wall", "250s").run().expect_exit(0);
    assert_eq!(outcome.combined().produced, 1 << 30, "{outcome}");
    assert!(outcome.stdout.len() < 2 << 20, "{} bytes", outcome.stdout.len());
    assert!(outcome.driver_peak_kib > 0 && outcome.driver_peak_kib < 24 << 10, "{outcome:?}");
}

#[test]
fn endless_line_is_bounded_too() {
    let outcome = job(["unbroken", "0123456789abcdef", "2000000"]).opt("--output", "64K").run();
    let outcome = outcome.expect_exit(0);
    assert_eq!(outcome.combined().produced, 32_000_000, "{outcome}");
    assert!(outcome.stdout.len() < 256 << 10, "{} bytes", outcome.stdout.len());
    assert!(outcome.driver_peak_kib < 24 << 10, "{} KiB", outcome.driver_peak_kib);
}

#[test]
fn job_that_closes_its_streams_is_waited_for() {
    let outcome = job(["close-streams"]).run();
    let outcome = outcome.expect_exit(5);
    assert_eq!(outcome.text(), "closing");
}

#[test]
fn daemon_that_holds_stdout_does_not_delay_the_end() {
    let start = Instant::now();
    let outcome = job(["daemon", "600000"]).opt("--wall", "300s").run().expect_clean();
    assert_eq!(outcome.text(), "ok");
    assert!(start.elapsed() < Duration::from_secs(60), "{outcome}");
}

#[test]
fn job_finds_its_stdin_at_its_end() {
    let outcome = shell("cat; echo end").run().expect_clean();
    assert_eq!(outcome.text(), "end");
}

#[test]
fn driver_whose_reader_is_slow_still_keeps_the_time() {
    // Nothing reads the driver's stdout while the job floods: the wall limit ends it.
    let report = tempfile::NamedTempFile::new().expect("a file for the report");
    let words = job(["flood-forever"]).opt("--wall", "2s").opt("--report", report.path()).arguments();
    let mut command = Command::new(e2e::autodriver());
    let mut child =
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a driver");
    let start = Instant::now();
    let path = report.path().to_owned();
    let ended = || {
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        Some(report["cause"].as_str()?.to_owned())
    };
    // The report may only come once the output is delivered; the job must be gone long before.
    let driver = i32::try_from(child.id()).expect("a pid");
    std::thread::sleep(Duration::from_secs(1));
    let gone = e2e::wait_until(Duration::from_secs(60), || e2e::descendants(driver).is_empty().then_some(()));
    assert!(gone.is_some(), "the job outlives its limit while nobody reads");
    let mut output = Vec::new();
    child.stdout.take().expect("a pipe").read_to_end(&mut output).expect("the output");
    assert_eq!(child.wait().expect("the driver's end").code(), Some(124));
    assert_eq!(e2e::wait_until(Duration::from_secs(5), ended).as_deref(), Some("wall-limit"));
    assert!(start.elapsed() < Duration::from_secs(120));
    assert!(output.len() < 2 << 20, "{} bytes", output.len());
}

#[test]
fn driver_whose_reader_went_away_still_restores() {
    let report = tempfile::NamedTempFile::new().expect("a file for the report");
    let words = job(["flood", "64"]).opt("--report", report.path()).arguments();
    let mut command = Command::new(e2e::autodriver());
    let mut child =
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a driver");
    drop(child.stdout.take());
    child.wait().expect("the driver's end");
    let text = std::fs::read(report.path()).expect("the report");
    let report: serde_json::Value = serde_json::from_slice(&text).expect("a report is written all the same");
    assert_eq!(report["restore"]["state"], "restored");
}

#[test]
fn human_line_is_on_stderr_and_quiet_takes_it_away() {
    let loud = job(["sleep", "1"]).loud().run().expect_clean();
    assert_eq!(loud.text(), "ok");
    assert_eq!(loud.complaint().lines().count(), 1, "{loud}");
    let quiet = job(["sleep", "1"]).run().expect_clean();
    assert!(quiet.stderr.is_empty(), "{quiet}");
}
