//! The wire in good order: open, put, run, get, close, several jobs at once, cancel, back-pressure.

use std::time::{Duration, Instant};

use autodriver_protocol::report::RestoreState;
use autodriver_protocol::{Cause, Kind, Transferred};
use e2e::{alone, descendants, tar_of, wait_until, Connection, Snapshot};
use serde_json::json;

#[test]
fn whole_life_of_a_job() {
    let _alone = alone();
    let before = Snapshot::take();
    let mut guest = Connection::start();
    guest.open(1);
    guest.put(1, &tar_of(&[("data/input", b"forty-two\n", 0o644)]));
    let done: Transferred = guest.expect(Kind::PutDone, 1).json();
    assert_eq!((done.entries, done.bytes), (1, 10));
    guest.run(1, &json!({"command": ["/bin/sh", "-c", "cat data/input; echo 7 > result; exit 3"]}));
    guest.expect(Kind::Started, 1);
    let finished = guest.finish(1);
    assert_eq!(finished.output, b"forty-two\n");
    assert_eq!((finished.report.cause, finished.report.exit_code), (Cause::Exited, Some(3)));
    assert_eq!(guest.get(1, &["result"]), [("result".to_owned(), b"7\n".to_vec())]);
    let closed = guest.close(1);
    assert_eq!(closed.restore.state, RestoreState::Restored, "{closed:?}");
    assert_eq!(guest.end(), 0);
    before.assert_same("a job over the wire");
}

#[test]
fn ping_is_answered_while_a_job_runs() {
    let _alone = alone();
    let mut guest = Connection::start();
    guest.send(Kind::Ping, 0, b"are you there");
    assert_eq!(guest.expect(Kind::Pong, 0).payload, b"are you there");
    guest.open(1);
    guest.run(1, &json!({"command": ["./captive", "sleep", "600000"], "wall": 100}));
    guest.expect(Kind::Started, 1);
    guest.send(Kind::Ping, 0, b"still?");
    assert_eq!(guest.expect(Kind::Pong, 0).payload, b"still?");
    guest.close(1);
}

#[test]
fn several_runs_share_one_job_directory() {
    let _alone = alone();
    let mut guest = Connection::start();
    guest.open(7);
    for (script, output) in
        [("echo one > file", ""), ("cat file; echo two >> file", "one\n"), ("wc -l < file", "2\n")]
    {
        guest.run(7, &json!({"command": ["/bin/sh", "-c", script]}));
        let finished = guest.finish(7);
        assert_eq!(finished.report.exit_code, Some(0), "{finished:?}");
        assert_eq!(String::from_utf8_lossy(&finished.output).trim(), output.trim());
    }
    guest.close(7);
}

#[test]
fn output_comes_while_the_job_runs() {
    let _alone = alone();
    let mut guest = Connection::start();
    guest.open(1);
    guest.run(
        1,
        &json!({"command": ["/bin/sh", "-c", "echo first; exec ./captive sleep 600000"], "wall": 200}),
    );
    guest.expect(Kind::Started, 1);
    // The job would sleep for minutes: what comes now came before its end.
    assert_eq!(guest.expect(Kind::Output, 1).payload, b"first\n");
    guest.send(Kind::Cancel, 1, b"");
    assert_eq!(guest.finish(1).report.cause, Cause::Cancelled);
    guest.close(1);
}

#[test]
fn split_streams_have_frames_of_their_own() {
    let _alone = alone();
    let mut guest = Connection::start();
    guest.open(1);
    guest.run(1, &json!({"command": ["./captive", "alternate", "3"], "split": true}));
    let finished = guest.finish(1);
    assert_eq!(String::from_utf8_lossy(&finished.output), "out 0\nout 1\nout 2\n");
    assert_eq!(String::from_utf8_lossy(&finished.stderr), "err 0\nerr 1\nerr 2\n");
    guest.close(1);
}

#[test]
fn jobs_at_once_have_their_own_uids_and_files() {
    let _alone = alone();
    let mut guest = Connection::start();
    let jobs = 1..=4_u32;
    for job in jobs.clone() {
        guest.open(job);
        let script = format!("echo {job} > mine; ./captive ids; sleep 1; cat mine");
        guest.run(job, &json!({"command": ["/bin/sh", "-c", script]}));
    }
    let mut uids = Vec::new();
    for job in jobs.clone() {
        let finished = guest.finish(job);
        let text = String::from_utf8_lossy(&finished.output).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.last(), Some(&job.to_string().as_str()), "{finished:?}");
        uids.push(lines[0].to_owned());
    }
    uids.sort();
    uids.dedup();
    assert_eq!(uids.len(), 4, "{uids:?}");
    for job in jobs {
        assert_eq!(guest.close(job).restore.state, RestoreState::Restored);
    }
}

#[test]
fn cancelled_job_ends_and_stays_usable() {
    let _alone = alone();
    let mut guest = Connection::start();
    guest.open(1);
    guest.run(1, &json!({"command": ["./captive", "ignore-term"], "wall": 200}));
    guest.expect(Kind::Started, 1);
    guest.send(Kind::Cancel, 1, b"");
    assert_eq!(guest.finish(1).report.cause, Cause::Cancelled);
    // With nothing to cancel it does nothing.
    guest.send(Kind::Cancel, 1, b"");
    guest.run(1, &json!({"command": ["./captive", "exit", "0"]}));
    assert_eq!(guest.finish(1).report.exit_code, Some(0));
    guest.close(1);
}

#[test]
fn closing_a_running_job_cancels_it_and_still_reports() {
    let _alone = alone();
    let before = Snapshot::take();
    let mut guest = Connection::start();
    guest.open(1);
    guest.run(1, &json!({"command": ["./captive", "daemons", "3"]}));
    guest.finish(1);
    guest.run(1, &json!({"command": ["./captive", "ignore-term"], "wall": 200}));
    guest.expect(Kind::Started, 1);
    guest.send(Kind::Close, 1, b"");
    assert_eq!(guest.finish(1).report.cause, Cause::Cancelled);
    let closed: autodriver_protocol::Closed = guest.expect(Kind::Closed, 1).json();
    assert_eq!(closed.restore.state, RestoreState::Restored);
    assert_eq!(guest.end(), 0);
    before.assert_same("a job closed while it ran");
}

#[test]
fn number_of_a_closed_job_can_be_used_again() {
    let _alone = alone();
    let mut guest = Connection::start();
    for _ in 0..3 {
        guest.open(5);
        guest.run(5, &json!({"command": ["./captive", "list", "/job"]}));
        assert_eq!(guest.finish(5).output, b"ok captive\n", "the directory is new each time");
        guest.close(5);
    }
}

#[test]
fn host_that_hangs_up_in_the_middle_leaves_nothing() {
    let _alone = alone();
    let before = Snapshot::take();
    let mut guest = Connection::start();
    for job in 1..=3 {
        guest.open(job);
        guest.run(job, &json!({"command": ["./captive", "ignore-term"], "wall": 200}));
        guest.expect(Kind::Started, job);
    }
    // In the middle of a frame, too.
    guest.raw(&[9, 0, 0, 0, 3]);
    guest.end();
    before.assert_same("a host that hung up");
}

#[test]
fn host_that_stops_reading_neither_stops_the_clock_nor_fills_the_memory() {
    let _alone = alone();
    let mut guest = Connection::start();
    guest.open(1);
    guest.pause(|guest| {
        guest.run(1, &json!({"command": ["./captive", "flood-forever"], "wall": 2, "output": "8M"}));
        let driver = guest.pid();
        let started = || (!descendants(driver).is_empty()).then_some(());
        wait_until(Duration::from_secs(60), started).expect("the job starts");
        let start = Instant::now();
        let ended = || descendants(driver).is_empty().then_some(());
        wait_until(Duration::from_secs(60), ended).expect("the wall limit ends a job nobody listens to");
        assert!(start.elapsed() < Duration::from_secs(60));
    });
    let finished = guest.finish(1);
    assert_eq!(finished.report.cause, Cause::WallLimit);
    assert!(finished.report.output.combined.expect("counts").produced > 8 << 20);
    assert!(guest.peak_kib() < 64 << 10, "{} KiB", guest.peak_kib());
    guest.close(1);
}

#[test]
fn large_files_pass_both_ways() {
    let _alone = alone();
    let mut guest = Connection::start();
    guest.open(1);
    let large: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    guest.put(1, &tar_of(&[("large", &large, 0o644)]));
    guest.expect(Kind::PutDone, 1);
    let files = guest.get(1, &["large"]);
    assert!(files.len() == 1 && files[0].1 == large, "the same bytes come back");
    assert!(guest.peak_kib() < 64 << 10, "{} KiB", guest.peak_kib());
    guest.close(1);
}
