//! Any order of a guest's frames, good or bad, against a table of which lead where: every session ends, and
//! as the table says.

use std::fs::File;
use std::io::{Seek, Write};

use autodriver_protocol::frame::encode;
use autodriver_protocol::{Cause, Hello, Kind, GUEST_SIGNATURE};
use nix::sys::memfd::{memfd_create, MFdFlags};
use proptest::collection::vec;
use proptest::prelude::*;

use super::fake::{assignment, deadlines, report};
use super::{perform, Connection, Outcome};
use crate::backend::Peer;
use crate::cancel::Cancel;

/// What a guest may say of its one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Opened,
    Started,
    Output,
    Exited,
    SetupFailed,
    Error,
    Closed,
    /// Of what was not asked.
    PutDone,
    GetDone,
    Data,
    Stdout,
    /// Of another job.
    Stray,
    /// Of the connection.
    Pong,
    Hello,
    LastWords,
}

use Said::{
    Closed, Data, Error, Exited, GetDone, Hello as AnotherHello, LastWords, Opened, Output, Pong, PutDone,
    SetupFailed, Started, Stdout, Stray,
};

const ALL: [Said; 15] = [
    Opened,
    Started,
    Output,
    Exited,
    SetupFailed,
    Error,
    Closed,
    PutDone,
    GetDone,
    Data,
    Stdout,
    Stray,
    Pong,
    AnotherHello,
    LastWords,
];

/// Where the conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Opening,
    /// `run` was sent.
    Asked,
    Running,
    /// The report came, with this status; `close` was sent.
    Reported(u8),
    /// `run` was refused; `close` was sent.
    Failed,
    /// It is over in order, with this status.
    Over(u8),
}

/// What may be said where, and where it leads. What is not here ends the connection.
const ORDER: [(At, Said, At); 24] = [
    (At::Opening, Opened, At::Asked),
    (At::Opening, Error, At::Over(125)),
    (At::Asked, Started, At::Running),
    (At::Asked, SetupFailed, At::Reported(125)),
    (At::Asked, Error, At::Failed),
    (At::Running, Output, At::Running),
    (At::Running, Exited, At::Reported(3)),
    (At::Running, SetupFailed, At::Reported(125)),
    (At::Running, Error, At::Failed),
    // A guest may still have had these under way.
    (At::Reported(3), Data, At::Reported(3)),
    (At::Reported(3), PutDone, At::Reported(3)),
    (At::Reported(3), GetDone, At::Reported(3)),
    (At::Reported(3), Error, At::Reported(3)),
    (At::Reported(3), Closed, At::Over(3)),
    (At::Reported(125), Data, At::Reported(125)),
    (At::Reported(125), PutDone, At::Reported(125)),
    (At::Reported(125), GetDone, At::Reported(125)),
    (At::Reported(125), Error, At::Reported(125)),
    (At::Reported(125), Closed, At::Over(125)),
    (At::Failed, Data, At::Failed),
    (At::Failed, PutDone, At::Failed),
    (At::Failed, GetDone, At::Failed),
    (At::Failed, Error, At::Failed),
    (At::Failed, Closed, At::Over(125)),
];

fn moves(at: At) -> impl Iterator<Item = (Said, At)> {
    ORDER.into_iter().filter(move |(from, ..)| *from == at).map(|(_, said, to)| (said, to))
}

/// The status, and whether the machine can take another job.
fn expected(said: &[Said]) -> (u8, bool) {
    let mut at = At::Opening;
    for said in said {
        if let At::Over(status) = at {
            return (status, true);
        }
        match moves(at).find(|(other, _)| other == said) {
            Some((_, to)) => at = to,
            None => break,
        }
    }
    match at {
        At::Over(status) => (status, true),
        // The report came, but nobody knows what the job left behind.
        At::Reported(_) => (123, false),
        _ => (125, false),
    }
}

fn frame(said: Said) -> Vec<u8> {
    let copied = br#"{"entries": 0, "bytes": 0}"#;
    let error = br#"{"code": "setup-failed", "message": "no"}"#;
    let told = |cause| serde_json::to_vec(&report(cause)).unwrap();
    match said {
        Opened => encode(Kind::Opened, 1, b""),
        Started => encode(Kind::Started, 1, b""),
        Output => encode(Kind::Output, 1, b"x"),
        Exited => encode(Kind::Report, 1, &told(Cause::Exited)),
        SetupFailed => encode(Kind::Report, 1, &told(Cause::SetupFailed)),
        Error => encode(Kind::Error, 1, error),
        Closed => encode(Kind::Closed, 1, br#"{"restore": {"state": "restored", "leftovers": []}}"#),
        PutDone => encode(Kind::PutDone, 1, copied),
        GetDone => encode(Kind::GetDone, 1, copied),
        Data => encode(Kind::Data, 1, b"x"),
        Stdout => encode(Kind::Stdout, 1, b"x"),
        Stray => encode(Kind::Started, 2, b""),
        Pong => encode(Kind::Pong, 0, b""),
        AnotherHello => hello(),
        LastWords => encode(Kind::Error, 0, error),
    }
}

fn hello() -> Vec<u8> {
    let hello = Hello { protocol: 1, name: "fake".into(), version: "0".into(), capabilities: vec![] };
    encode(Kind::GuestHello, 0, &serde_json::to_vec(&hello).unwrap())
}

/// What a host makes of a guest that says all this, and then is gone. It is a file: there is nothing to wait
/// for, and no deadline is met by chance.
fn outcome_of(said: &[Said]) -> Outcome {
    let mut file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
    let frames: Vec<u8> = said.iter().flat_map(|said| frame(*said)).collect();
    file.write_all(&[&GUEST_SIGNATURE[..], &hello(), &frames].concat()).unwrap();
    file.rewind().unwrap();
    let deaf = File::options().write(true).open("/dev/null").unwrap();
    let peer = Peer::from_streams(deaf.into(), file.into()).unwrap();
    let mut connection = Connection::establish(peer, deadlines(), &Cancel::new().unwrap()).unwrap();
    perform(&mut connection, &assignment(), &mut |_, _| Ok(()))
}

/// Mostly what may be said next, now and then anything.
fn conversation() -> impl Strategy<Value = Vec<Said>> {
    let step = (0..100_usize, proptest::bool::weighted(0.85), proptest::sample::select(&ALL[..]));
    vec(step, 0..12).prop_map(|steps| {
        let mut at = At::Opening;
        let said = steps.into_iter().map(|(choice, in_order, any)| {
            let next: Vec<(Said, At)> = moves(at).collect();
            let said = if in_order && !next.is_empty() { next[choice % next.len()].0 } else { any };
            at = next.into_iter().find(|(other, _)| *other == said).map_or(at, |(_, to)| to);
            said
        });
        said.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_order_of_frames_ends_as_the_table_says(said in conversation()) {
        let outcome = outcome_of(&said);
        let ended = (outcome.verdict.exit_code(), outcome.machine_is_sound);
        prop_assert_eq!(ended, expected(&said), "{:?}: {:?}", said, outcome.verdict);
    }
}
