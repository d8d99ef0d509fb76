//! A report as the host takes it, from a guest that is otherwise in order: accepted if and only if it can be
//! true, by a model that is not the host's own.
#![no_main]

use std::sync::LazyLock;

use autodriver_fuzz::{guest, report};
use autodriver_protocol::frame::encode;
use autodriver_protocol::{Kind, Options, Report};
use libfuzzer_sys::fuzz_target;
use vmm_local::session::{Assignment, Verdict};

/// As much as the host takes for one report.
const REPORT_MAX: usize = 64 << 10;

static ASSIGNMENT: LazyLock<Assignment> =
    LazyLock::new(|| Assignment::new(Options::default()).expect("an assignment"));

fn verdict(payload: &[u8], started: bool) -> Verdict {
    let closed = br#"{"restore": {"state": "restored", "leftovers": []}}"#;
    let start = if started { encode(Kind::Started, 1, b"") } else { Vec::new() };
    let said = [
        guest::greeting(),
        encode(Kind::Opened, 1, b""),
        start,
        encode(Kind::Report, 1, payload),
        encode(Kind::Closed, 1, closed),
    ];
    let mut outcomes = guest::meet(&said.concat(), &ASSIGNMENT, 1);
    let outcome = outcomes.pop().expect("there is always an outcome");
    guest::check(&outcome);
    outcome.verdict
}

fuzz_target!(|data: &[u8]| {
    let read = serde_json::from_slice::<Report>(data).ok().filter(|_| data.len() <= REPORT_MAX);
    for started in [true, false] {
        let possible = read.as_ref().filter(|read| report::is_possible(read, started));
        match (verdict(data, started), possible) {
            (Verdict::Report(taken), Some(told)) => assert_eq!(*taken, *told),
            (Verdict::Fault(fault), None) => assert!(fault.lost, "who lies is not asked again: {fault}"),
            (verdict, possible) => panic!("started: {started}; {verdict:?} of {possible:?}"),
        }
    }
});
