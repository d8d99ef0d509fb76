//! Payloads that are no such JSON, in every answer that carries some.

use autodriver_protocol::{Kind, PAYLOAD_MAX};
use e2e::{closed, frame, report, say, Act, Bytes, Stage};

use crate::{meet_all, Case};

/// An answer: when it is due, what it is, and an example of it with a field that can be spoilt.
struct Answer {
    stage: Stage,
    kind: Kind,
    good: String,
    /// A field of it as it stands there, and the same with a value of another type.
    field: (&'static str, &'static str),
}

fn answers() -> Vec<Answer> {
    let answer = |stage, kind, good: &str, field| Answer { stage, kind, good: good.to_owned(), field };
    let copied = r#"{"entries":1,"bytes":2}"#;
    vec![
        answer(
            Stage::Hello,
            Kind::GuestHello,
            r#"{"protocol":1,"name":"","version":""}"#,
            (r#""protocol":1"#, r#""protocol":"1""#),
        ),
        answer(Stage::Put, Kind::PutDone, copied, (r#""bytes":2"#, r#""bytes":-2"#)),
        answer(
            Stage::Output,
            Kind::Report,
            &report().to_string(),
            (r#""cause":"exited""#, r#""cause":["exited"]"#),
        ),
        answer(Stage::Get, Kind::GetDone, copied, (r#""entries":1"#, r#""entries":1e99"#)),
        answer(Stage::Close, Kind::Closed, &closed(), (r#""leftovers":[]"#, r#""leftovers":{}"#)),
    ]
}

/// What is refused of an answer: which, and its payload.
fn spoilt(answer: &Answer) -> Vec<(&'static str, Bytes)> {
    let Answer { good, field: (field, other), .. } = answer;
    assert!(good.contains(field), "{good} has no {field}");
    let key = field.split(':').next().expect("a key");
    vec![
        ("nothing", "".into()),
        ("no JSON", "exited".into()),
        ("an empty object", "{}".into()),
        ("a number", "1".into()),
        ("null", "null".into()),
        ("half of it", good[..good.len() / 2].into()),
        ("something after it", format!("{good}{good}").into()),
        ("another type", good.replace(field, other).into()),
        ("the same key twice", good.replace(field, &format!("{field},{field}")).into()),
        ("a key that is no text", good.replace(field, &format!("{field},7:7")).into()),
        ("bytes that are no UTF-8", Bytes::from(good.replace(key, "\"x").as_bytes()).then(b"\xff\xfe\"}")),
        ("nested 10,000 deep", Bytes::repeated("[", 10_000).then(Bytes::repeated("]", 10_000))),
        ("a value 10,000 deep", nested(good, key, 10_000)),
        ("a whole frame of brackets", Bytes::repeated("[", PAYLOAD_MAX)),
        ("a whole frame of blanks", Bytes::repeated(" ", PAYLOAD_MAX)),
        ("a name of a whole frame", Bytes::from("{\"").then(Bytes::repeated("x", PAYLOAD_MAX - 2))),
    ]
}

/// The object with another key's value in brackets, this deep.
fn nested(good: &str, key: &str, depth: usize) -> Bytes {
    let start = good.find(key).expect("the key is there");
    Bytes::from(&good[..start])
        .then(format!("{key}:"))
        .then(Bytes::repeated("[", depth))
        .then(Bytes::repeated("]", depth))
        .then("}")
}

#[test]
fn a_payload_that_does_not_read_as_its_kind_ends_the_connection() {
    let mut cases = Vec::new();
    for answer in answers() {
        for (name, payload) in spoilt(&answer) {
            let deed = vec![say(frame(answer.kind, payload)), Act::Silence];
            let script = [answer.stage.reached(), deed].concat();
            let cause = match answer.stage {
                Stage::Hello | Stage::Put => "setup-failed",
                Stage::Output => "internal-error",
                _ => "exited",
            };
            let says = match (answer.kind, name.contains("whole frame")) {
                (Kind::Report | Kind::Closed, true) => format!("bytes of {}, which no", answer.kind.name()),
                _ => format!("payload of '{}': ", answer.kind.name()),
            };
            let case = Case::refused(format!("{}: {name}", answer.kind.name()), script, cause, says);
            let status = if answer.stage == Stage::Close { 123 } else { 125 };
            cases.push(Case { status, restored: answer.stage == Stage::Hello, ..case });
        }
    }
    meet_all(&cases);
}

/// Keys that a later version may have are skipped, whatever they hold.
#[test]
fn what_is_not_known_is_skipped_and_not_kept() {
    let good = report().to_string();
    let with = |value: Bytes| {
        let open = good.strip_suffix('}').expect("an object");
        let payload = Bytes::from(open).then(",\"later\":").then(value).then("}");
        let script = [
            Stage::Output.reached(),
            vec![say(frame(Kind::Report, payload)), e2e::wait_for(Kind::Get)],
            e2e::closing(),
        ];
        script.concat()
    };
    let deep = Bytes::repeated("[", 10_000).then(Bytes::repeated("]", 10_000));
    meet_all(&[
        Case::graded("a word", with("\"word\"".into())),
        Case::graded("10,000 deep", with(deep)),
        Case::graded("an object", with(r#"{"a":{"a":[1,2.5,null]}}"#.into())),
    ]);
}

#[test]
fn another_version_of_the_protocol_is_named() {
    let hello = |version: &str| {
        let payload = format!(r#"{{"protocol":{version},"name":"\u001b[2J","version":"\u202e"}}"#);
        let script = [Stage::Hello.reached(), vec![say(frame(Kind::GuestHello, payload)), Act::Silence]];
        let says = format!("connect: payload of 'hello': protocol {version}; this program speaks 1");
        Case { restored: true, ..Case::refused(version, script.concat(), "setup-failed", says) }
    };
    meet_all(&[hello("999"), hello("0"), hello("4294967295")]);
}
