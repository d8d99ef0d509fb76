//! What a host decodes from a guest: each payload as its kind's type, and each message as one that reads
//! back; and the order of frames, in which a refused one changes nothing.
#![no_main]

use autodriver_protocol::report::{Leftover, RestoreState};
use autodriver_protocol::{Closed, ErrorMessage, Hello, Kind, Phase, Report, Transferred};
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::fmt::Debug;
use vmm_local::text;

fn reads_back<T: DeserializeOwned + Serialize + PartialEq + Debug>(payload: &[u8]) -> Option<T> {
    let message: T = serde_json::from_slice(payload).ok()?;
    let written = serde_json::to_vec(&message).expect("a message is written");
    let again: T = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(again, message);
    let line = text::json(&message).expect("a message is a line");
    assert_eq!(serde_json::from_str::<T>(&line).expect("a harmless line is the same JSON"), message);
    assert!(!line.chars().any(char::is_control), "{line:?}");
    Some(message)
}

fn decode(kind: Kind, payload: &[u8]) {
    match kind {
        Kind::GuestHello => drop(reads_back::<Hello>(payload)),
        Kind::PutDone | Kind::GetDone => drop(reads_back::<Transferred>(payload)),
        Kind::Report => {
            if let Some(report) = reads_back::<Report>(payload) {
                assert_eq!(
                    report.weaker().is_none(),
                    report.layers.iter().all(|l| l.state.name() == "enforced")
                );
                let poisoned = report.restore.state == RestoreState::Poisoned;
                assert!(report.exit_status() == 123 || !poisoned, "a poisoned machine is told first");
            }
        }
        Kind::Closed => {
            if let Some(Closed { restore }) = reads_back(payload) {
                let harmless = |left: &Leftover| !text::printable(&left.what).chars().any(char::is_control);
                assert!(restore.leftovers.iter().all(harmless));
            }
        }
        Kind::Error => {
            if let Some(ErrorMessage { message, .. }) = reads_back(payload) {
                let line = text::shortened(&text::printable(&message), 100);
                assert!(line.chars().count() <= 100 && !line.chars().any(char::is_control));
            }
        }
        _ => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let (mut phase, mut rest) = (Phase::Idle, data);
    // Each record: which kind, how long, payload.
    while let Some(([number, low, high], after)) = rest.split_first_chunk() {
        let kind = Kind::ALL[usize::from(*number) % Kind::ALL.len()];
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (payload, next) = after.split_at(length);
        rest = next;
        decode(kind, payload);
        let (asked, answered) = (phase.request(kind), phase.answer(kind));
        assert!(asked.is_err() || answered.is_err(), "{kind:?} is both a request and an answer");
        phase = asked.or(answered).unwrap_or(phase);
        assert!(phase != Phase::Closing || phase.request(kind).is_err(), "a request after close");
    }
});
