//! What a guest can do wrong at every stage of a job's life: leave, break a frame, hang, lie about
//! the order.

use autodriver_protocol::{Kind, GUEST_SIGNATURE, PAYLOAD_MAX};
use e2e::{closed, frame, frame_of, header, report, say, Act, Stage};

use crate::{meet_all, Case};

/// The cause in the report, the step that is named, and what was waited for.
fn expected(stage: Stage) -> (&'static str, &'static str, &'static str) {
    match stage {
        Stage::Connect => ("setup-failed", "connect", "the signature"),
        Stage::Hello => ("setup-failed", "connect", "hello"),
        Stage::Open => ("setup-failed", "open", "opened"),
        Stage::Put => ("setup-failed", "put", "put-done"),
        Stage::Run | Stage::Output => ("internal-error", "run", "report"),
        Stage::Get | Stage::Data => ("exited", "get", "get-done"),
        Stage::Close => ("exited", "close", "closed"),
    }
}

/// A guest that gets as far as `stage`, does `deed`, and is silent then unless that was its end.
fn case(stage: Stage, name: &str, deed: Vec<Act>, says: &str) -> Case {
    let (cause, step, _) = expected(stage);
    let script = [stage.reached(), deed].concat();
    let case = Case::refused(format!("{stage:?} {name}"), script, cause, says);
    match stage {
        // The job has its report; what it left behind is not known.
        Stage::Close => {
            Case { status: 123, ..case }.saying("exited 0, wall").saying("machine was lost at close")
        }
        Stage::Connect | Stage::Hello => Case { restored: true, ..case }.saying("vmm-local: connect: "),
        _ => case.saying(&format!("vmm-local: {step}: ")),
    }
}

impl Case {
    fn saying(mut self, says: &str) -> Case {
        self.says.push(says.to_owned());
        self
    }
}

fn at(stages: impl IntoIterator<Item = Stage>, make: impl Fn(Stage) -> Vec<Case>) -> Vec<Case> {
    stages.into_iter().flat_map(make).collect()
}

/// The stages at which there are frames.
fn framed() -> impl Iterator<Item = Stage> {
    Stage::ALL.into_iter().filter(|stage| *stage > Stage::Connect)
}

#[test]
fn a_guest_that_dies_is_told_from_one_that_answers() {
    let mut cases = at(Stage::ALL, |stage| {
        let says = format!("the peer ended where {} was expected", expected(stage).2);
        vec![
            case(stage, "dies", vec![], &says),
            case(stage, "ends", vec![Act::CloseStdout, Act::Silence], &says),
        ]
    });
    cases.extend(at(framed(), |stage| {
        let whole = frame(Kind::Report, report().to_string()).whole();
        [(5, "header"), (11, "header"), (12, "payload"), (13, "payload"), (whole.len() - 1, "payload")]
            .map(|(length, part)| {
                let says = format!("the peer ended where the rest of a {part} was expected");
                case(stage, &format!("dies after {length} bytes"), vec![say(&whole[..length])], &says)
            })
            .to_vec()
    }));
    meet_all(&cases);
}

#[test]
fn a_broken_frame_ends_the_connection() {
    let closed = Kind::Closed as u16;
    meet_all(&at(framed(), |stage| {
        let deed =
            |name: &str, bytes: Vec<u8>, says: &str| case(stage, name, vec![say(bytes), Act::Silence], says);
        let most = u32::try_from(PAYLOAD_MAX).expect("a small number");
        vec![
            deed("giant", header(u32::MAX, closed, 0, 1), "frame of 4294967295 bytes; at most 1048576"),
            deed("2^31", header(1 << 31, closed, 0, 1), "frame of 2147483648 bytes"),
            deed("one more", header(most + 1, closed, 0, 1), "frame of 1048577 bytes"),
            deed("kind 999", header(0, 999, 0, 1), "unknown frame kind 999"),
            deed("kind 0", header(0, 0, 0, 1), "unknown frame kind 0"),
            deed("kind 65535", header(0, 65535, 0, 1), "unknown frame kind 65535"),
            deed("a host's frame", header(0, Kind::Close as u16, 0, 1), "unknown frame kind 7"),
            deed("reserved bytes", header(0, closed, 0x101, 1), "reserved header bytes are 0x0101"),
            deed("text", b"Segmentation fault (core dumped)\n".to_vec(), "unknown frame kind"),
            deed("signature", GUEST_SIGNATURE.repeat(2), "unknown frame kind"),
        ]
    }));
}

#[test]
fn an_answer_that_was_not_asked_for_ends_the_connection() {
    let mut cases = at(framed(), |stage| {
        let pong = frame(Kind::Pong, "?");
        vec![case(stage, "pong", vec![say(pong), Act::Silence], "frame 'pong' out of order")]
    });
    cases.extend(at(framed().filter(|stage| *stage > Stage::Hello), |stage| {
        let deed = |name: &str, bytes: e2e::Bytes, says: &str| {
            case(stage, name, vec![say(bytes), Act::Silence], says)
        };
        let hello = r#"{"protocol": 1, "name": "", "version": ""}"#;
        let mut cases = vec![
            deed("hello", frame(Kind::GuestHello, hello), "frame 'hello' out of order"),
            deed("of job 7", frame_of(7, Kind::Closed, closed()), "job 7 is not open"),
            deed(
                "of job 2^32-1",
                frame_of(u32::MAX, Kind::Report, report().to_string()),
                "job 4294967295 is not open",
            ),
            deed("of no job", frame_of(0, Kind::Closed, closed()), "frame 'closed' out of order"),
            deed(
                "last words",
                frame_of(0, Kind::Error, r#"{"code": "protocol", "message": "no\u001b[2J"}"#),
                "no\\u{1b}[2J",
            ),
            deed(
                "last words in another language",
                frame_of(0, Kind::Error, "\u{1b}[2J"),
                "payload of 'error': expected value",
            ),
        ];
        if stage != Stage::Close {
            cases.push(deed("closed", frame(Kind::Closed, closed()), "frame 'closed' out of order"));
        }
        if !matches!(stage, Stage::Run | Stage::Output) {
            cases.push(deed("started", frame(Kind::Started, ""), "frame 'started' out of order"));
            cases.push(deed("output", frame(Kind::Output, "x"), "frame 'output' out of order"));
            cases.push(deed(
                "report",
                frame(Kind::Report, report().to_string()),
                "frame 'report' out of order",
            ));
        }
        if !matches!(stage, Stage::Get | Stage::Data | Stage::Close) {
            cases.push(deed("data", frame(Kind::Data, [0; 512]), "frame 'data' out of order"));
        }
        cases
    }));
    cases.push(case(
        Stage::Run,
        "report on what never started",
        vec![say(frame(Kind::Report, report().to_string())), Act::Silence],
        "report on a job that never started",
    ));
    let twice = vec![say(frame(Kind::Started, "")), Act::Silence];
    cases.push(case(Stage::Output, "started twice", twice, "frame 'started' out of order"));
    let split = vec![say(frame(Kind::Stderr, "x")), Act::Silence];
    cases.push(case(Stage::Output, "stderr without --split", split, "frame 'stderr' out of order"));
    meet_all(&cases);
}

/// With which option the host waits less long at this stage.
fn patience(stage: Stage) -> &'static str {
    match stage {
        Stage::Connect | Stage::Hello => "--connect-timeout",
        Stage::Put | Stage::Get | Stage::Data => "--copy-timeout",
        _ => "--answer-timeout",
    }
}

#[test]
fn a_guest_that_hangs_is_waited_for_no_longer_than_its_deadline() {
    meet_all(&at(Stage::ALL, |stage| {
        let awaited = if stage == Stage::Connect { "hello" } else { expected(stage).2 };
        let says = format!("no {awaited} within 3");
        let hangs = |name, deed: Vec<Act>| case(stage, name, deed, &says).with(patience(stage), "3s");
        // Not one whole frame comes in time, but never is a second without a byte.
        let drip = hangs("drips", vec![Act::Drip(0x01)]);
        vec![
            hangs("says nothing", vec![Act::Silence]),
            hangs("neither speaks nor leaves", vec![Act::Deafness]).saying("it had to be killed"),
            hangs("does not listen", vec![Act::CloseStdin, Act::Deafness]).saying("it had to be killed"),
            if stage > Stage::Connect { begun(drip, stage) } else { drip },
        ]
    }));
}

/// The same case, with the header of a long frame first.
fn begun(mut case: Case, stage: Stage) -> Case {
    case.script.insert(stage.reached().len(), say(header(1 << 20, Kind::Data as u16, 0, 1)));
    case
}
