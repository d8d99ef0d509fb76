//! Reports that lie. What cannot be true is refused; what can is the guest's word, shown beside what
//! the host saw, and harmless to look at.

use autodriver_protocol::Kind;
use e2e::{frame, report, reporting, say, wait_for, Act, Stage};
use serde_json::{json, Value};

use crate::{meet_all, Case};

/// The report with other values, each at its path.
fn altered(changes: &[(&str, Value)]) -> Value {
    let mut report = report();
    for (path, value) in changes {
        match report.pointer_mut(path) {
            Some(place) => *place = value.clone(),
            None => report[path.trim_start_matches('/')] = value.clone(),
        }
    }
    report
}

fn without(path: &str) -> Value {
    let mut report = report();
    let (parent, key) = path.rsplit_once('/').expect("a path");
    let object = report.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
    object.remove(key).expect("the key is there");
    report
}

fn of_output(produced: u64, kept: u64, elided: u64) -> Value {
    json!({"produced": produced, "kept": kept, "elided": elided})
}

fn refused(name: &str, report: &Value, says: &str) -> Case {
    Case::refused(name, reporting(report), "internal-error", format!("vmm-local: run: {says}"))
}

#[test]
fn a_report_that_cannot_be_true_is_refused() {
    let layer = json!({"name": "pids", "state": "enforced"});
    let lies = |name: &str, changes: &[(&str, Value)], says: &str| refused(name, &altered(changes), says);
    let none = "payload of 'report': ";
    let fault = json!({"step": "exec", "object": "x", "errno": "ENOENT", "message": "no x"});
    meet_all(&[
        refused("no restore", &without("/restore"), none),
        refused("no state", &without("/restore/state"), none),
        refused("no usage", &without("/usage"), none),
        refused("no wall", &without("/usage/wall_us"), none),
        refused("no cause", &without("/cause"), none),
        refused("no exit code", &without("/exit_code"), "report says 'exited' without an exit code"),
        lies("version", &[("/version", json!(2))], "report of another version"),
        lies("unknown cause", &[("/cause", json!("passed"))], none),
        lies("unknown layer", &[("/layers/0/name", json!("magic"))], none),
        lies("unknown state", &[("/restore/state", json!("clean"))], none),
        lies("negative wall", &[("/usage/wall_us", json!(-1))], none),
        lies("broken wall", &[("/usage/wall_us", json!(0.5))], none),
        lies("negative memory", &[("/usage/memory_peak_bytes", json!(-1))], none),
        lies("exit code 256", &[("/exit_code", json!(256))], "report says 'exited' without an exit code"),
        lies("exit code -1", &[("/exit_code", json!(-1))], "report says 'exited' without an exit code"),
        lies("exit code 2^31", &[("/exit_code", json!(1_u64 << 31))], none),
        lies("exited by a signal", &[("/signal", json!(9))], "report says both an exit code and a signal"),
        lies(
            "signaled with an exit code",
            &[("/cause", json!("signaled")), ("/signal", json!(9))],
            "report says both an exit code and a signal",
        ),
        lies(
            "signal 0",
            &[("/cause", json!("signaled")), ("/exit_code", json!(null)), ("/signal", json!(0))],
            "report says 'signaled' without a signal",
        ),
        lies(
            "signal 65",
            &[("/cause", json!("signaled")), ("/exit_code", json!(null)), ("/signal", json!(65))],
            "report says 'signaled' without a signal",
        ),
        lies(
            "a limit and exit code 256",
            &[("/cause", json!("wall-limit")), ("/exit_code", json!(256))],
            "report says an exit code or signal that there is not",
        ),
        lies(
            "restored with leftovers",
            &[("/restore/leftovers", json!([{"kind": "file", "what": "x"}]))],
            "report says 'restored' and lists leftovers",
        ),
        lies(
            "more kept than written",
            &[("/output/combined", of_output(0, 1, 0))],
            "report counts output that does not add up",
        ),
        lies(
            "elided beyond all numbers",
            &[("/output/combined", of_output(0, u64::MAX, 1))],
            "report counts output that does not add up",
        ),
        lies("exited, and a fault", &[("/fault", fault.clone())], "report says a fault of the sandbox and"),
        lies(
            "a fault that is none",
            &[("/cause", json!("internal-error")), ("/exit_code", json!(null))],
            "report says a fault of the sandbox and",
        ),
        lies(
            "a fault, and an exit code",
            &[("/cause", json!("internal-error")), ("/fault", fault)],
            "report says how the job ended, and a fault",
        ),
        lies("a layer twice", &[("/layers", json!([layer, layer]))], "report tells of a layer twice"),
        lies("20,000 layers", &[("/layers", json!(vec![layer; 20_000]))], "more than 65536 bytes of report"),
        lies(
            "300,000 limits",
            &[("/limits_hit", json!(vec![""; 300_000]))],
            "more than 65536 bytes of report",
        ),
        lies(
            "40,000 leftovers",
            &[
                ("/restore/state", json!("poisoned")),
                ("/restore/leftovers", json!(vec![json!({"kind": "", "what": ""}); 40_000])),
            ],
            "more than 65536 bytes of report",
        ),
    ]);
}

#[test]
fn figures_beyond_what_the_host_saw_are_flagged() {
    let claims = |name: &str, values: &[(&str, Value)]| {
        let mut case = Case::graded(name, reporting(&altered(values)));
        case.says.push("the machine claims ".to_owned());
        case
    };
    let minute = 60_000_000;
    meet_all(&[
        claims("a minute", &[("/usage/wall_us", json!(10 * minute))]),
        claims("as much as there is", &[("/usage/wall_us", json!(u64::MAX))]),
        claims("output that never came", &[("/output/combined", of_output(1 << 20, 1 << 20, 0))]),
    ]);
    // No host can tell: these are the guest's word, and printed as such.
    let unknown =
        |name: &str, path: &str| Case::graded(name, reporting(&altered(&[(path, json!(u64::MAX))])));
    meet_all(&[
        unknown("memory", "/usage/memory_peak_bytes"),
        unknown("user time", "/usage/cpu_user_us"),
        unknown("system time", "/usage/cpu_system_us"),
        unknown("processes", "/usage/pids_peak"),
        unknown("set-up", "/timing/setup_us"),
    ]);
}

/// What a terminal would obey, in every way to write it in JSON.
const EVIL: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\n\0\u{7f}\u{9b}1m\u{202e}\u{2066}\u{61c}end";
const SHOWN: &str =
    "\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\r\\n\\u{0}\\u{7f}\\u{9b}1m\\u{202e}\\u{2066}\\u{61c}end";

#[test]
fn texts_of_a_report_are_spelled_out() {
    let fault = |message: &str| json!({"step": EVIL, "object": EVIL, "errno": EVIL, "message": message, "remedy": EVIL});
    let internal = |message: &str| {
        [("/cause", json!("internal-error")), ("/exit_code", json!(null)), ("/fault", fault(message))]
    };
    let leftovers = json!([{"kind": EVIL, "what": EVIL}]);
    let poisoned = [("/restore/state", json!("poisoned")), ("/restore/leftovers", leftovers)];
    let layer = json!([{"name": "pids", "state": "absent", "by": EVIL, "reason": EVIL, "remedy": EVIL}]);
    let says = |case: Case, says: &str| Case { says: vec![says.to_owned()], ..case };
    let told = |name: &str, changes: &[(&str, Value)]| Case::graded(name, reporting(&altered(changes)));
    let long = "\u{202e}".repeat(20_000);
    meet_all(&[
        says(
            Case { status: 125, cause: "internal-error", ..told("fault", &internal(EVIL)) },
            &format!("vmm-local: internal-error: {SHOWN}"),
        ),
        Case { status: 125, cause: "internal-error", ..told("a long fault", &internal(&long)) },
        says(
            Case { status: 123, restored: false, ..told("leftovers", &poisoned) },
            &format!("machine poisoned: {SHOWN} {SHOWN}"),
        ),
        says(told("layers", &[("/layers", layer)]), &format!("layers not enforced: pids absent ({SHOWN})")),
        says(told("limits", &[("/limits_hit", json!([EVIL]))]), &format!("limits hit: {SHOWN}")),
    ]);
}

#[test]
fn what_was_not_copied_is_spelled_out_and_shortened() {
    let skipped = json!({
        "entries": 0, "bytes": 0, "skipped_count": u64::MAX,
        "skipped": [{"name": EVIL, "why": EVIL}, {"name": "n".repeat(900_000), "why": ""}],
    });
    let mut script = Stage::Get.reached();
    script.extend([say(frame(Kind::Data, [0; 1024])), say(frame(Kind::GetDone, skipped.to_string()))]);
    script.extend([wait_for(Kind::Close), say(frame(Kind::Closed, e2e::closed())), Act::Silence]);
    let mut case = Case::graded("skipped", script);
    case.says = vec![format!("files cannot be copied out: '{SHOWN}' ({SHOWN})")];
    meet_all(&[case]);
}

#[test]
fn a_report_is_said_once_and_nothing_after_it() {
    let report = || say(frame(Kind::Report, e2e::report().to_string()));
    let after = |name: &str, deed: Vec<Act>, kind: &str| {
        let script = [Stage::Output.reached(), vec![report()], deed, vec![Act::Silence]].concat();
        Case::refused(name, script, "exited", format!("get: frame '{kind}' out of order"))
    };
    meet_all(&[
        after("twice", vec![report()], "report"),
        after("output after it", vec![say(frame(Kind::Output, "{\"scores\": {\"p\": 100}}"))], "output"),
        after("started after it", vec![say(frame(Kind::Started, ""))], "started"),
        after("closed before it is asked", vec![say(frame(Kind::Closed, e2e::closed()))], "closed"),
    ]);
}
