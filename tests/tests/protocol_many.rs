//! Many jobs of every kind over one connection, several at a time: each gets its own verdict, and
//! the machine and the driver's descriptors are what they were.
//!
//! `JOBS` says how many. A run of more than these tests make has the corpus of hostile jobs among them,
//! which `vmm-local conformance` otherwise runs one by one: scripts/soak makes it.

use std::collections::HashMap;

use autodriver_protocol::report::RestoreState;
use autodriver_protocol::{Cause, Kind, Report};
use e2e::{Connection, Snapshot};
use serde_json::{json, Value};

/// How many run at once.
const AT_ONCE: u32 = 8;

/// How many are quick enough for every run of the tests.
const FEW: u32 = 200;

/// How many in all.
fn jobs() -> u32 {
    let wanted = std::env::var("JOBS").ok();
    wanted.map_or(FEW, |text| text.parse().unwrap_or_else(|_| panic!("JOBS={text} is no number")))
}

/// A document, and how a job with it must end.
struct Sample {
    document: Value,
    ends: Ends,
    exit_code: Option<i32>,
    output: Option<&'static [u8]>,
}

/// As [`Sample::ends`]: for one of these causes, or as the corpus says.
enum Ends {
    By(Cause),
    As(attacks::Ends),
}

fn sample(document: Value, cause: Cause, exit_code: Option<i32>, output: Option<&'static [u8]>) -> Sample {
    Sample { document, ends: Ends::By(cause), exit_code, output }
}

/// Those of the corpus that need nobody beside them, and no more time than there is with others beside them.
fn hostile() -> impl Iterator<Item = Sample> {
    let alone = attacks::all().filter(|attack| attack.form == attacks::Form::Alone && attack.open.is_none());
    alone.map(|attack| {
        let mut document: Value = serde_json::from_str(attack.options).expect("the corpus has documents");
        document["command"] = json!(["./captive", "attack", attack.name]);
        document["env"] = json!({attacks::ROLE: "attacker"});
        if matches!(attack.ends, attacks::Ends::Refused) {
            document["wall"] = json!(200);
        }
        Sample { document, ends: Ends::As(attack.ends), exit_code: None, output: None }
    })
}

fn samples() -> Vec<Sample> {
    let captive = |words: &[&str]| json!([&["./captive"][..], words].concat());
    vec![
        sample(json!({"command": captive(&["exit", "0"])}), Cause::Exited, Some(0), Some(b"")),
        sample(json!({"command": ["/bin/sh", "-c", "echo hello"]}), Cause::Exited, Some(0), Some(b"hello\n")),
        sample(json!({"command": captive(&["exit", "2"])}), Cause::Exited, Some(2), Some(b"")),
        sample(json!({"command": captive(&["signal", "11"])}), Cause::Signaled, None, Some(b"")),
        sample(
            json!({"command": captive(&["ignore-term"]), "wall": "500ms"}),
            Cause::WallLimit,
            None,
            Some(b""),
        ),
        sample(
            json!({"command": captive(&["spin", "600000"]), "cpu": "200ms", "wall": 200}),
            Cause::CpuLimit,
            None,
            Some(b""),
        ),
        // beyond what the kernel gives it, which is memory and disk together: what is below is sampled
        sample(
            json!({"command": captive(&["allocate", "128"]), "memory": "32M", "disk": "16M", "wall": 200}),
            Cause::MemoryLimit,
            None,
            Some(b""),
        ),
        sample(
            json!({"command": captive(&["strict", "write", "big", "40"]), "disk": "16M", "wall": 200}),
            Cause::DiskLimit,
            None,
            None,
        ),
        sample(
            json!({"command": captive(&["flood-forever"]), "output": "1K", "on_output": "kill", "wall": 200}),
            Cause::OutputLimit,
            None,
            None,
        ),
        sample(json!({"command": captive(&["flood", "4"]), "wall": 200}), Cause::Exited, Some(0), None),
        sample(json!({"command": captive(&["daemons", "3"])}), Cause::Exited, Some(0), Some(b"ok\n")),
        sample(
            json!({"command": captive(&["fork-until-refused"]), "pids": 16}),
            Cause::Exited,
            Some(0),
            None,
        ),
        sample(
            json!({"command": captive(&["tcp", "192.0.2.1:80"])}),
            Cause::Exited,
            Some(0),
            Some(b"errno ENETUNREACH\n"),
        ),
        sample(json!({"command": captive(&["int80"])}), Cause::SyscallDenied, None, Some(b"")),
        sample(json!({"command": captive(&["hostile-tree", "h"])}), Cause::Exited, Some(0), Some(b"ok\n")),
    ]
}

#[track_caller]
fn expect_verdict(job: u32, sample: &Sample, output: &[u8], report: &Report) {
    let what = format!("job {job}, {}: {report:?}", sample.document);
    match sample.ends {
        Ends::By(cause) => assert_eq!(report.cause, cause, "{what}"),
        Ends::As(ends) => expect_stopped(ends, &String::from_utf8_lossy(output), report, &what),
    }
    if sample.exit_code.is_some() {
        assert_eq!(report.exit_code, sample.exit_code, "{what}");
    }
    if let Some(expected) = sample.output {
        assert_eq!(String::from_utf8_lossy(output), String::from_utf8_lossy(expected), "{what}");
    }
    assert_eq!(report.restore.state, RestoreState::Restored, "{what}");
}

#[track_caller]
fn expect_stopped(ends: attacks::Ends, output: &str, report: &Report, what: &str) {
    assert!(!output.lines().any(|line| line.starts_with(attacks::BROKE)), "{what}: {output}");
    assert!(ends.are_met(report, output), "{what}: {output}");
}

#[test]
fn every_job_of_many_gets_its_own_verdict_and_nothing_is_left() {
    let mut samples = samples();
    if jobs() > FEW {
        samples.extend(hostile());
    }
    let before = Snapshot::take();
    let mut guest = Connection::start();
    let descriptors = guest.descriptors();
    let of = |job: u32| &samples[job as usize % samples.len()];
    let mut output: HashMap<u32, Vec<u8>> = HashMap::new();
    let (mut next, mut closed) = (0, 0);
    let mut start = |guest: &mut Connection, output: &mut HashMap<u32, Vec<u8>>| {
        if next < jobs() {
            next += 1;
            guest.open(next);
            output.insert(next, Vec::new());
            guest.run(next, &of(next).document);
        }
    };
    for _ in 0..AT_ONCE {
        start(&mut guest, &mut output);
    }
    while closed < jobs() {
        let frame = guest.next_frame().expect("the guest stays");
        let job = frame.job;
        match frame.kind {
            Kind::Started => {}
            Kind::Output => output.get_mut(&job).expect("a job at work").extend(frame.payload),
            Kind::Report => {
                expect_verdict(job, of(job), &output[&job], &frame.json());
                guest.send(Kind::Close, job, b"");
            }
            Kind::Closed => {
                let restore = frame.json::<autodriver_protocol::Closed>().restore;
                assert_eq!(restore.state, RestoreState::Restored, "job {job}: {restore:?}");
                output.remove(&job);
                closed += 1;
                start(&mut guest, &mut output);
            }
            other => panic!("job {job}: {other:?}: {}", String::from_utf8_lossy(&frame.payload)),
        }
    }
    assert_eq!(guest.descriptors(), descriptors, "descriptors of the driver");
    assert!(guest.peak_kib() < 96 << 10, "{} KiB", guest.peak_kib());
    assert_eq!(guest.end(), 0);
    before.assert_same("many jobs");
}
