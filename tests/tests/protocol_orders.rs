//! Requests in any order against a real `serve`: each is answered as a table says, nothing else is said, and
//! whatever came before, it ends and leaves nothing.

use autodriver_protocol::{Cause, ErrorCode, ErrorMessage, Kind, Report};
use e2e::{alone, tar_of, Connection, Snapshot};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Open,
    /// A part of an archive.
    Put,
    /// The end of one.
    PutEnd,
    /// A program that ends at once.
    Quick,
    /// One that does not end.
    Endless,
    Get,
    Cancel,
    Close,
}

const ALL: [Ask; 8] =
    [Ask::Open, Ask::Put, Ask::PutEnd, Ask::Quick, Ask::Endless, Ask::Get, Ask::Cancel, Ask::Close];

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Nowhere,
    Idle,
    Putting,
    /// A put was cancelled; the rest of its stream is skipped.
    Skipping,
    Running,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Is(Kind),
    Refusal(ErrorCode),
    Report(Cause),
}

use Answer::{Is, Refusal};

const CANCELLED: Answer = Answer::Report(Cause::Cancelled);

/// What a request leads to, and all that is said of it; `None`: the connection ends.
fn step(at: At, ask: Ask) -> Option<(At, Vec<Answer>)> {
    Some(match (at, ask) {
        (At::Nowhere, Ask::Open) => (At::Idle, vec![Is(Kind::Opened)]),
        (At::Nowhere, _) | (_, Ask::Open) => return None,
        (At::Running, Ask::Close) => (At::Nowhere, vec![CANCELLED, Is(Kind::Closed)]),
        (At::Putting, Ask::Close) => (At::Nowhere, vec![Refusal(ErrorCode::Cancelled), Is(Kind::Closed)]),
        (At::Idle | At::Skipping, Ask::Close) => (At::Nowhere, vec![Is(Kind::Closed)]),
        (At::Running, Ask::Cancel) => (At::Idle, vec![CANCELLED]),
        (At::Putting, Ask::Cancel) => (At::Skipping, vec![Refusal(ErrorCode::Cancelled)]),
        (At::Idle | At::Skipping, Ask::Cancel) => (at, vec![]),
        (At::Idle | At::Putting, Ask::Put) => (At::Putting, vec![]),
        (At::Idle | At::Putting, Ask::PutEnd) => (At::Idle, vec![Is(Kind::PutDone)]),
        (At::Skipping, Ask::Put) => (At::Skipping, vec![]),
        (At::Skipping, Ask::PutEnd) => (At::Idle, vec![]),
        (At::Idle, Ask::Quick) => (At::Idle, vec![Is(Kind::Started), Answer::Report(Cause::Exited)]),
        (At::Idle, Ask::Endless) => (At::Running, vec![Is(Kind::Started)]),
        (At::Idle, Ask::Get) => (At::Idle, vec![Is(Kind::Data), Is(Kind::GetDone)]),
        (At::Putting | At::Skipping | At::Running, _) => (at, vec![Refusal(ErrorCode::OutOfOrder)]),
    })
}

fn send(guest: &mut Connection, job: u32, ask: Ask) {
    let run =
        |program: &[&str]| serde_json::json!({"command": program, "wall": 200}).to_string().into_bytes();
    let (kind, payload) = match ask {
        Ask::Open => (Kind::Open, b"{}".to_vec()),
        Ask::Put => (Kind::Put, tar_of(&[("file", b"content", 0o644)])),
        Ask::PutEnd => (Kind::Put, Vec::new()),
        Ask::Quick => (Kind::Run, run(&["/bin/sh", "-c", "exit 0"])),
        Ask::Endless => (Kind::Run, run(&["/bin/sh", "-c", "exec sleep 1000"])),
        Ask::Get => (Kind::Get, br#"{"globs": ["*"]}"#.to_vec()),
        Ask::Cancel => (Kind::Cancel, Vec::new()),
        Ask::Close => (Kind::Close, Vec::new()),
    };
    guest.send(kind, job, &payload);
}

fn expect(guest: &mut Connection, job: u32, answer: Answer) {
    match answer {
        Is(kind) => drop(guest.expect(kind, job)),
        Refusal(code) => {
            let error: ErrorMessage = guest.expect(Kind::Error, job).json();
            assert!(error.code == code && !error.message.is_empty(), "{code:?} was expected, not {error:?}");
        }
        Answer::Report(cause) => {
            let report: Report = guest.expect(Kind::Report, job).json();
            assert_eq!(report.cause, cause, "{report:?}");
        }
    }
}

/// Nothing was said that was not waited for: the answer to a ping comes next, of all frames.
fn expect_silence(guest: &mut Connection) {
    guest.send(Kind::Ping, 0, b"and?");
    let next = guest.next_frame().expect("the guest is there");
    assert_eq!((next.kind, next.payload.as_slice()), (Kind::Pong, &b"and?"[..]), "{next:?}");
}

/// The guest says what was wrong, and ends.
fn expect_end(mut guest: Connection) {
    let error = guest.receive(0).error();
    assert_eq!(error.code, ErrorCode::Protocol, "{error:?}");
    assert_ne!(guest.exit_status(), 0);
}

/// Each request, and what it is answered before the next is sent.
fn converse(requests: &[(u32, Ask)]) {
    let mut guest = Connection::start();
    let mut jobs = [At::Nowhere; 2];
    for (job, ask) in requests.iter().copied() {
        send(&mut guest, job, ask);
        let at = &mut jobs[job as usize - 1];
        let Some((next, answers)) = step(*at, ask) else { return expect_end(guest) };
        *at = next;
        answers.into_iter().for_each(|answer| expect(&mut guest, job, answer));
        expect_silence(&mut guest);
    }
    assert_eq!(guest.end(), 0);
}

/// All requests at once: what is answered depends on who is faster, that it is and ends does not.
fn shout(requests: &[(u32, Ask)]) {
    let mut guest = Connection::start();
    requests.iter().for_each(|(job, ask)| send(&mut guest, *job, *ask));
    guest.send(Kind::Ping, 0, b"that was all");
    loop {
        let frame = guest.next_frame().expect("an error or a pong comes before the end");
        match (frame.kind, frame.job) {
            (Kind::Pong, 0) => break assert_eq!(guest.end(), 0),
            (Kind::Error, 0) => {
                assert_eq!(frame.error().code, ErrorCode::Protocol);
                break assert_ne!(guest.exit_status(), 0);
            }
            (Kind::Error, 1 | 2) => assert_ne!(frame.error().code, ErrorCode::Protocol),
            (_, 1 | 2) => {}
            _ => panic!("of a job that was never opened: {frame:?}"),
        }
    }
}

/// Mostly requests that end nothing; now and then any.
fn requests() -> impl Strategy<Value = Vec<(u32, Ask)>> {
    let request = (1..=2_u32, select(&ALL[..]), 0..10_u8);
    vec(request, 0..16).prop_map(|requests| {
        let mut jobs = [At::Nowhere; 2];
        let wise = requests.into_iter().map(|(job, ask, care)| {
            let at = &mut jobs[job as usize - 1];
            let ask = match step(*at, ask) {
                None if care > 0 && *at == At::Nowhere => Ask::Open,
                None if care > 0 => Ask::Get,
                _ => ask,
            };
            *at = step(*at, ask).map_or(*at, |(next, _)| next);
            (job, ask)
        });
        wise.collect()
    })
}

fn in_any_order(cases: u32, talk: fn(&[(u32, Ask)])) {
    let _alone = alone();
    let before = Snapshot::take();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let tried = runner.run(&requests(), |requests| {
        talk(&requests);
        Ok(())
    });
    tried.unwrap_or_else(|found| panic!("{found}"));
    before.assert_same("requests in any order");
}

#[test]
fn requests_in_any_order_are_answered_as_the_table_says() {
    in_any_order(60, converse);
}

#[test]
fn requests_that_wait_for_no_answer_end_with_the_guest() {
    in_any_order(60, shout);
}
