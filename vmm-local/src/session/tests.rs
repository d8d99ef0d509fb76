//! What guests can do wrong, each met with a verdict.

use std::fs;
use std::io;
use std::time::Duration;

use autodriver_protocol::{Cause, Kind, Options, GUEST_SIGNATURE};

use super::fake::{assignment, assignment_with_out, deadlines, fault_of, meet, outcome_of, report, Guest};
use super::{perform, Assignment, Bundle, Connection, Deadlines, Outcome, Verdict};
use crate::cancel::Cancel;

fn outcome(script: impl FnOnce(&mut Guest) -> io::Result<()> + Send) -> (Outcome, Vec<u8>) {
    outcome_of(script, &assignment(), deadlines(), &Cancel::new().unwrap())
}

#[test]
fn a_job_lives_its_whole_life_behind_noise() {
    let (outcome, output) = outcome(|guest| {
        guest.raw(b"Welcome to Debian!\r\nLast login: never\r\n\x89AD")?;
        guest.greet()?;
        let document = guest.accept_job(1)?;
        let document = Options::from_json(&document).unwrap();
        assert!(document.wall.is_some() && document.grace.is_some() && document.output.is_some());
        guest.send(Kind::Started, 1, b"")?;
        guest.send(Kind::Output, 1, b"hello ")?;
        guest.send(Kind::Output, 1, b"world")?;
        guest.report(1, Cause::Exited)?;
        guest.close(1)
    });
    assert_eq!(outcome.verdict.exit_code(), 3);
    assert!(outcome.machine_is_sound && outcome.verdict.is_about_the_job());
    assert_eq!(output, b"hello world");
}

#[test]
fn a_connection_takes_job_after_job() {
    let script = |guest: &mut Guest| {
        guest.greet()?;
        (1..=3).try_for_each(|job| guest.run_job(job).and_then(|()| guest.close(job)))
    };
    meet(script, |peer| {
        let mut connection = Connection::establish(peer, deadlines(), &Cancel::new().unwrap()).unwrap();
        for _ in 0..3 {
            let outcome = perform(&mut connection, &assignment(), &mut |_, _| Ok(()));
            assert_eq!(outcome.verdict.exit_code(), 3);
        }
    });
}

#[test]
fn a_damaged_signature_is_named() {
    let fault = fault_of(|guest| guest.raw(b"\x89ADG\n\x1a\n and so on"));
    assert!(fault.contains("connect: signature damaged: CR LF became LF"), "{fault}");
    let fault = fault_of(|guest| guest.raw(b"Error: No such container: \x1b[1mx\n"));
    assert!(fault.contains("it said: Error: No such container: \\u{1b}[1mx"), "{fault}");
}

#[test]
fn frames_out_of_order_end_the_connection() {
    type Script = fn(&mut Guest) -> io::Result<()>;
    let cases: [(&str, Script); 8] = [
        ("frame 'opened' out of order", |guest| {
            guest.accept_job(1)?;
            guest.send(Kind::Opened, 1, b"")
        }),
        ("frame 'output' out of order; expected started or report", |guest| {
            guest.accept_job(1)?;
            guest.send(Kind::Output, 1, b"early")
        }),
        ("frame 'stderr' out of order; expected output or report", |guest| {
            guest.accept_job(1)?;
            guest.send(Kind::Started, 1, b"")?;
            guest.send(Kind::Stderr, 1, b"without split")
        }),
        ("report on a job that never started", |guest| {
            guest.accept_job(1)?;
            guest.report(1, Cause::Exited)
        }),
        ("job 7 is not open", |guest| {
            guest.accept_job(1)?;
            guest.send(Kind::Started, 7, b"")
        }),
        ("frame 'pong' out of order", |guest| guest.send(Kind::Pong, 0, b"")),
        ("frame 'closed' out of order", |guest| {
            guest.accept_job(1)?;
            guest.send(Kind::Closed, 1, b"{}")
        }),
        ("unknown frame kind 8", |guest| guest.raw(&[0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0])),
    ];
    for (expected, script) in cases {
        let fault = fault_of(move |guest| guest.greet().and_then(|()| script(guest)));
        assert!(fault.contains(expected), "{fault}, not {expected}");
    }
}

#[test]
fn a_giant_frame_is_refused_by_its_header() {
    let fault = fault_of(|guest| {
        guest.greet()?;
        guest.accept_job(1)?;
        guest.raw(&[0xff, 0xff, 0xff, 0xff, 5, 1, 0, 0, 1, 0, 0, 0])
    });
    assert!(fault.contains("run: frame of 4294967295 bytes; at most 1048576"), "{fault}");
}

#[test]
fn endless_output_ends_with_the_budget() {
    for payload in [&[b'x'; 65536][..], b""] {
        let fault = fault_of(|guest| {
            guest.greet()?;
            guest.accept_job(1)?;
            guest.send(Kind::Started, 1, b"")?;
            let frames = (0..1000).flat_map(|_| autodriver_protocol::frame::encode(Kind::Output, 1, payload));
            let frames: Vec<u8> = frames.collect();
            loop {
                guest.raw(&frames)?;
            }
        });
        assert!(fault.contains("bytes of output, which no autodriver sends"), "{fault}");
    }
}

#[test]
fn a_guest_that_dies_inside_a_frame_is_told_from_one_that_leaves() {
    let fault = fault_of(|guest| {
        guest.greet()?;
        guest.accept_job(1)?;
        guest.raw(&[200, 0, 0, 0, 8, 1, 0, 0, 1, 0, 0, 0, b'{'])
    });
    assert!(fault.contains("run: the peer ended where the rest of a payload was expected"), "{fault}");
    let fault = fault_of(|guest| guest.greet().and_then(|()| guest.until(Kind::Open)).map(drop));
    assert!(fault.contains("open: the peer ended where opened was expected"), "{fault}");
}

#[test]
fn no_answer_at_all_ends_with_the_deadline() {
    let blink = Duration::from_millis(100);
    let cancel = Cancel::new().unwrap();
    let fault = |outcome: Outcome| match outcome.verdict {
        Verdict::Fault(fault) if fault.lost => fault.to_string(),
        verdict => panic!("{verdict:?}"),
    };
    let impatient = Deadlines { connect: blink, ..deadlines() };
    let (outcome, _) = outcome_of(Guest::say_nothing, &assignment(), impatient, &cancel);
    assert!(fault(outcome).contains("connect: no hello within 100 ms"));
    let impatient = Deadlines { margin: blink, ..deadlines() };
    let zero = Some("0s".parse().unwrap());
    let job = Assignment::new(Options { wall: zero, ..Options::default() }).unwrap();
    let runs_for_ever = |guest: &mut Guest| {
        guest.greet()?;
        guest.accept_job(1)?;
        guest.send(Kind::Started, 1, b"")?;
        guest.say_nothing()
    };
    let (outcome, _) = outcome_of(runs_for_ever, &job, impatient, &cancel);
    assert!(fault(outcome).contains("run: no report within 100 ms"));
}

/// One tar entry with a name of the guest's choice.
fn entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].fill(b' ');
    header[156] = b'0';
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let padding = content.len().next_multiple_of(512) - content.len();
    [&header[..], content, &vec![0; padding]].concat()
}

fn get_answer(archive: &[u8]) -> impl FnOnce(&mut Guest) -> io::Result<()> + Send + '_ {
    move |guest| {
        guest.greet()?;
        guest.run_job(1)?;
        guest.until(Kind::Get)?;
        archive.chunks(700).try_for_each(|chunk| guest.send(Kind::Data, 1, chunk))?;
        guest.send(Kind::GetDone, 1, br#"{"entries": 1, "bytes": 4}"#)?;
        guest.close(1)
    }
}

#[test]
fn an_archive_never_leaves_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("dest");
    let cancel = Cancel::new().unwrap();
    let good = [entry("file", b"fine"), vec![0; 1024]].concat();
    let job = assignment_with_out(&dest);
    let (outcome, _) = outcome_of(get_answer(&good), &job, deadlines(), &cancel);
    assert_eq!(outcome.verdict.exit_code(), 3);
    assert_eq!(fs::read(dest.join("file")).unwrap(), b"fine");
    let evil = [entry("../evil", b"evil"), vec![0; 1024]].concat();
    let (outcome, _) = outcome_of(get_answer(&evil), &job, deadlines(), &cancel);
    assert!(outcome.verdict.summary().contains("get failed") && !outcome.machine_is_sound);
    assert_eq!(outcome.verdict.to_report().exit_code, Some(3), "the report that came is not lost");
    assert!(outcome.verdict.line().contains("'../evil': name with '..'"), "{}", outcome.verdict.line());
    assert!(!dir.path().join("evil").exists());
}

#[test]
fn a_file_can_be_got_under_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("new/name");
    let mut job = assignment_with_out(&dest);
    job.outputs[0].glob = "file".into();
    let archive = [entry("file", b"fine"), vec![0; 1024]].concat();
    let (outcome, _) = outcome_of(get_answer(&archive), &job, deadlines(), &Cancel::new().unwrap());
    assert_eq!(outcome.verdict.exit_code(), 3, "{:?}", outcome.verdict);
    assert_eq!(fs::read(&dest).unwrap(), b"fine");
    assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn a_report_that_is_none_is_refused() {
    for (payload, expected) in [
        (&b"exited"[..], "payload of 'report': expected value"),
        (b"{}", "payload of 'report': missing field"),
        (b"\xff\xfe", "payload of 'report'"),
    ] {
        let fault = fault_of(|guest| {
            guest.greet()?;
            guest.accept_job(1)?;
            guest.send(Kind::Started, 1, b"")?;
            guest.send(Kind::Report, 1, payload)
        });
        assert!(fault.contains(expected), "{fault}, not {expected}");
    }
    let mut impossible = report(Cause::Exited);
    impossible.exit_code = Some(256);
    let impossible = serde_json::to_vec(&impossible).unwrap();
    let fault = fault_of(|guest| {
        guest.greet()?;
        guest.accept_job(1)?;
        guest.send(Kind::Started, 1, b"")?;
        guest.send(Kind::Report, 1, &impossible)
    });
    assert!(fault.contains("without an exit code from 0 to 255"), "{fault}");
}

#[test]
fn a_second_report_poisons_the_first() {
    let (outcome, _) = outcome(|guest| {
        guest.greet()?;
        guest.run_job(1)?;
        guest.report(1, Cause::Exited)?;
        guest.close(1)
    });
    assert!(!outcome.machine_is_sound && !outcome.verdict.is_about_the_job());
    assert_eq!(outcome.verdict.exit_code(), 123);
    assert!(outcome.verdict.line().contains("frame 'report' out of order"), "{}", outcome.verdict.line());
}

/// A job with much to put.
fn big_job(dir: &tempfile::TempDir) -> Assignment {
    fs::write(dir.path().join("big"), vec![7; 16 << 20]).unwrap();
    let directory = Bundle::Directory { path: dir.path().to_owned(), except: Vec::new() };
    Assignment { bundles: vec![directory], ..assignment() }
}

#[test]
fn two_sides_with_much_to_say_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let flood = |guest: &mut Guest| {
        guest.greet()?;
        guest.until(Kind::Open)?;
        guest.send(Kind::Opened, 1, b"")?;
        loop {
            guest.send(Kind::Output, 1, &[0; 4096])?; // and never reads
        }
    };
    let (outcome, _) = outcome_of(flood, &big_job(&dir), deadlines(), &Cancel::new().unwrap());
    let line = outcome.verdict.line();
    assert!(line.contains("put: frame 'output' out of order"), "{line}");
}

#[test]
fn a_refused_put_leaves_the_connection_usable() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |guest: &mut Guest| {
        guest.greet()?;
        guest.until(Kind::Open)?;
        guest.send(Kind::Opened, 1, b"")?;
        guest.until(Kind::Put)?;
        guest.send(Kind::Error, 1, br#"{"code": "transfer-failed", "message": "disk full \u001b[5m"}"#)?;
        while guest.next()? != (Kind::Put, Vec::new()) {}
        guest.close(1)
    };
    let (outcome, _) = outcome_of(refuse, &big_job(&dir), deadlines(), &Cancel::new().unwrap());
    assert!(outcome.machine_is_sound);
    assert_eq!(outcome.verdict.line(), "put: disk full \\u{1b}[5m");
}

#[test]
fn a_cancelled_job_is_closed_and_its_report_awaited() {
    let cancel = Cancel::new().unwrap();
    let from_guest = cancel.clone();
    let script = move |guest: &mut Guest| {
        guest.greet()?;
        guest.accept_job(1)?;
        guest.send(Kind::Started, 1, b"")?;
        from_guest.cancel();
        guest.until(Kind::Close)?;
        guest.report(1, Cause::Cancelled)?;
        guest.send(Kind::Closed, 1, br#"{"restore": {"state": "restored", "leftovers": []}}"#)
    };
    let (outcome, _) = outcome_of(script, &assignment(), deadlines(), &cancel);
    assert!(matches!(&outcome.verdict, Verdict::Report(report) if report.cause == Cause::Cancelled));
    assert_eq!(outcome.verdict.exit_code(), 143);
}

#[test]
fn output_that_cannot_be_written_ends_the_job_in_order() {
    let script = |guest: &mut Guest| {
        guest.greet()?;
        guest.accept_job(1)?;
        guest.send(Kind::Started, 1, b"")?;
        (0..3).try_for_each(|_| guest.send(Kind::Output, 1, b"x"))?;
        guest.until(Kind::Close)?;
        guest.report(1, Cause::Cancelled)?;
        guest.send(Kind::Closed, 1, br#"{"restore": {"state": "restored", "leftovers": []}}"#)
    };
    meet(script, |peer| {
        let mut connection = Connection::establish(peer, deadlines(), &Cancel::new().unwrap()).unwrap();
        let full = |_, _: &[u8]| Err(io::ErrorKind::StorageFull.into());
        let outcome = perform(&mut connection, &assignment(), &mut { full });
        assert!(outcome.machine_is_sound && outcome.verdict.exit_code() == 125);
        assert!(outcome.verdict.line().starts_with("run: cannot write the job's output"));
    });
}

#[test]
fn the_last_words_of_a_guest_are_heard() {
    let fault = fault_of(|guest| {
        guest.greet()?;
        guest.send(Kind::Error, 0, br#"{"code": "protocol", "message": "I give up"}"#)
    });
    assert_eq!(fault, "open: I give up");
    let fault = fault_of(|guest| guest.raw(&GUEST_SIGNATURE));
    assert!(fault.contains("ended where hello was expected"), "{fault}");
}
