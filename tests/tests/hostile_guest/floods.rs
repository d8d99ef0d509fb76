//! Guests that never stop, and guests that never read.

use std::fs;

use autodriver_protocol::Kind;
use e2e::{frame, frame_of, say, Act, Bytes, Stage};

use crate::meeting::{with_each, Place};
use crate::{meet_all, Case};

/// Without end.
const EVER: u64 = u64::MAX;

fn flood(stage: Stage, name: &str, bytes: impl Into<Bytes>, says: &str) -> Case {
    let cause = match stage {
        Stage::Connect | Stage::Hello | Stage::Open | Stage::Put => "setup-failed",
        Stage::Run | Stage::Output => "internal-error",
        _ => "exited",
    };
    let script = [stage.reached(), vec![Act::Say(bytes.into(), EVER)]].concat();
    let case = Case::refused(format!("{stage:?} {name}"), script, cause, says);
    Case { restored: matches!(stage, Stage::Connect | Stage::Hello), ..case }
}

#[test]
fn endless_noise_before_the_signature_is_not_kept() {
    let says = "connect: no signature within 65536 bytes";
    meet_all(&[
        flood(Stage::Connect, "bytes", [b'x'; 4096], says),
        flood(Stage::Connect, "lines", "login: \r\n", says),
        flood(Stage::Connect, "NULs", [0; 4096], says),
        flood(Stage::Connect, "escapes", "\u{1b}[2J\u{9b}1m\u{202e}", says),
        flood(Stage::Connect, "almost a signature", "\u{89}AD", says),
    ]);
}

#[test]
fn noise_and_then_an_autodriver_is_an_autodriver() {
    let mut script =
        vec![say("Linux version 6.18\r\n[    0.000000] \u{1b}[1mBooting\u{1b}[0m\r\nlogin: \x00\u{89}AD")];
    script.extend(e2e::reporting(&e2e::report()));
    let mut late = vec![say(Bytes::repeated("x", 1 << 16))];
    late.extend(e2e::reporting(&e2e::report()));
    meet_all(&[Case::graded("boot messages", script), Case::graded("64 KiB", late)]);
}

#[test]
fn endless_output_ends_with_the_budget() {
    let says = "run: more than 4325376 bytes of output, which no autodriver sends";
    let output = |length| frame(Kind::Output, Bytes::repeated("x", length));
    meet_all(&[
        flood(Stage::Output, "full frames", output(1 << 20), says),
        flood(Stage::Output, "lines", output(80), says),
        flood(Stage::Output, "bytes", output(1), says),
        flood(Stage::Output, "empty frames", output(0), says),
        flood(Stage::Output, "pongs", frame(Kind::Pong, ""), "run: frame 'pong' out of order"),
        flood(Stage::Output, "errors", frame(Kind::Error, "{}"), "run: payload of 'error'"),
    ]);
}

#[test]
fn endless_files_end_with_the_budget() {
    // One header whose content never ends; headers that announce names, and never a file.
    let zeros = frame(Kind::Data, [0; 8192]);
    let says = "get: more than ";
    meet_all(&[
        flood(Stage::Get, "after the end", zeros, says),
        flood(Stage::Get, "empty frames", frame(Kind::Data, ""), says),
        flood(Stage::Close, "after close", frame(Kind::Data, [0; 8192]), "exited 0").closing(),
        flood(Stage::Close, "errors", frame(Kind::Error, "{}"), "exited 0").closing(),
    ]);
}

impl Case {
    /// The job has its report; the machine is lost.
    fn closing(mut self) -> Case {
        self.says.push("machine was lost at close: more than 16777216 bytes of files after close".to_owned());
        Case { status: 123, ..self }
    }
}

#[test]
fn what_comes_on_stderr_is_bounded_and_spelled_out() {
    let last = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}last words\r\n";
    let dies = |stage: Stage| [vec![Act::Mutter(last.into(), 1)], stage.reached()].concat();
    let text = "it said: \\u{1b}]0;owned\\u{7}\\u{9b}2J\\u{202e}last words";
    // For as long as it takes: the host reads it all, keeps its end, and tells none of it when all is well.
    let much =
        [vec![Act::Mutter(Bytes::repeated("talk \u{1b}[2J", 8192), 100)], e2e::reporting(&e2e::report())];
    let endless =
        |stage: Stage| [stage.reached(), vec![Act::Mutter(Bytes::repeated("talk\n", 8192), EVER)]].concat();
    meet_all(&[
        Case { restored: true, ..Case::refused("connect", dies(Stage::Connect), "setup-failed", text) },
        Case::refused("run", dies(Stage::Run), "internal-error", text),
        Case::graded("much, and a job", much.concat()),
        Case {
            restored: true,
            ..Case::refused("endless", endless(Stage::Connect), "setup-failed", "connect: no hello within 3")
        }
        .with("--connect-timeout", "3s"),
        Case::refused(
            "endless while it runs",
            endless(Stage::Output),
            "internal-error",
            "run: no report within 3",
        )
        .with("--answer-timeout", "3s"),
    ]);
}

#[test]
fn a_guest_that_takes_no_files_does_not_stop_the_host() {
    let full = || [Stage::Open.reached(), vec![say(frame(Kind::Opened, ""))]].concat();
    let says = "put: no put-done within 3";
    let scripts = [
        ("reads nothing", [full(), vec![Act::Deafness]].concat(), says),
        ("closes", [full(), vec![Act::CloseStdin, Act::Deafness]].concat(), says),
        ("leaves", full(), "put: the peer ended where put-done was expected"),
        (
            "speaks instead",
            [full(), vec![Act::Say(frame_of(1, Kind::Output, "x"), EVER)]].concat(),
            "put: frame 'output' out of order",
        ),
    ];
    with_each(&scripts, |(name, script, says)| {
        let place = Place::new(script);
        fs::write(place.path("cwd/in/big"), vec![7; 8 << 20]).map_err(|error| error.to_string())?;
        let ended = place.run(&["--copy-timeout", "3s"]);
        match ended.wrong.is_empty() && ended.status == 125 && ended.stderr.contains(says) {
            true => Ok(()),
            false => Err(format!("{name}: {ended:?}")),
        }
    });
}
