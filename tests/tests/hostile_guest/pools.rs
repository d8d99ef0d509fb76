//! A hostile machine among many jobs, and one that is kept: it spoils the job it lied about, and
//! is never used again.

use std::fs;

use autodriver_protocol::Kind;
use e2e::{frame_of, hostile_guest, report, say, wait_for, Act, Stage};
use serde_json::{json, Value};

use crate::meeting::{obeyed, with_each, Place};

const SCORE: &str = "{\"scores\": {\"p\": 1}}\n";

fn frame(job: u32, kind: Kind, payload: impl AsRef<[u8]>) -> Act {
    say(frame_of(job, kind, payload.as_ref()))
}

/// A job up to its report, which is still to be said.
fn running(job: u32) -> Vec<Act> {
    vec![
        wait_for(Kind::Open),
        frame(job, Kind::Opened, ""),
        Act::AwaitFiles,
        frame(job, Kind::PutDone, json!({"entries": 1, "bytes": 2}).to_string()),
        wait_for(Kind::Run),
        say(frame_of(job, Kind::Started, "").then(frame_of(job, Kind::Output, SCORE))),
    ]
}

/// A job whose report, files and end are these.
fn life(job: u32, report: &Value, files: &[u8], closed: &Value) -> Vec<Act> {
    let done = json!({"entries": 0, "bytes": 0}).to_string();
    let end = vec![
        frame(job, Kind::Report, report.to_string()),
        wait_for(Kind::Get),
        frame(job, Kind::Data, files),
        frame(job, Kind::GetDone, done),
        wait_for(Kind::Close),
        frame(job, Kind::Closed, closed.to_string()),
    ];
    [running(job), end].concat()
}

const NO_FILES: [u8; 1024] = [0; 1024];

fn restored() -> Value {
    json!({"restore": {"state": "restored", "leftovers": []}})
}

fn poisoned() -> Value {
    json!({"restore": {"state": "poisoned", "leftovers": [{"kind": "process", "what": "\u{1b}[2J\u{9b}1m"}]}})
}

/// What can be wrong with the second job of a machine, and how the line about it goes.
fn second_jobs() -> Vec<(&'static str, Vec<Act>, &'static str)> {
    let mut dirty = report();
    dirty["restore"] = poisoned()["restore"].clone();
    let mut archive = NO_FILES.to_vec();
    archive[..7].copy_from_slice(b"../evil");
    archive[148..156].copy_from_slice(b"001174\0 ");
    let after = |deed: Act| [running(2), vec![deed, Act::Silence]].concat();
    vec![
        ("poisoned report", life(2, &dirty, &NO_FILES, &restored()), "poisoned"),
        ("poisoned at close", life(2, &report(), &NO_FILES, &poisoned()), "poisoned"),
        ("archive that leaves", life(2, &report(), &archive, &restored()), "archive"),
        ("report of the first job", after(frame(1, Kind::Report, report().to_string())), "job 1 is not open"),
        ("report of the next job", after(frame(3, Kind::Report, report().to_string())), "job 3 is not open"),
        (
            "out of order",
            after(frame(2, Kind::Closed, restored().to_string())),
            "frame 'closed' out of order",
        ),
        ("no report", after(Act::CloseStdout), "the peer ended where report was expected"),
        (
            "error for the connection",
            after(frame(0, Kind::Error, r#"{"code": "protocol", "message": "\u001b[2J"}"#)),
            "\\u{1b}[2J",
        ),
    ]
}

fn place_with_jobs(script: &[Act], count: u32) -> Place {
    let place = Place::new(script);
    for number in 0..count {
        let folder = place.path(&format!("jobs/{number}"));
        fs::create_dir_all(&folder).expect("a directory");
        let document = json!({"command": ["true"], "out": ["**:."]}).to_string();
        fs::write(folder.join("job.json"), document).expect("a file");
        fs::write(folder.join("handin"), "me").expect("a file");
    }
    place
}

fn batch(place: &Place) -> (crate::meeting::Ended, Vec<Value>) {
    let guest = hostile_guest().display().to_string();
    let ended = place.call(&[
        "batch",
        "--autodriver",
        &guest,
        "--machines",
        "1",
        "--jsonl",
        "-",
        "--out",
        "../kept",
        "../jobs",
    ]);
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(!text.chars().any(|c| c != '\n' && obeyed(c)), "a terminal would obey {text:?}");
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    (ended, lines)
}

#[test]
fn a_machine_that_lied_is_not_used_again() {
    with_each(&second_jobs(), |(name, second, says)| {
        // Each tells the truth of one job and lies about the next, which begins again on another; what a machine
        // says of itself, that it is poisoned, is no reason to.
        let script =
            [Stage::Open.reached()[..2].to_vec(), life(1, &report(), &NO_FILES, &restored()), second.clone()];
        let place = place_with_jobs(&script.concat(), 4);
        let (ended, lines) = batch(&place);
        let again: Vec<bool> =
            lines.iter().map(|line| line["notes"].to_string().contains("begun again")).collect();
        let graded: Vec<bool> = lines.iter().map(|line| line["graded"] == json!(true)).collect();
        let (expected, status, guests) = match name.starts_with("poisoned") {
            true => (([false; 4], vec![true, false, true, false]), 1, 2),
            false => (([false, true, true, true], vec![true; 4]), 0, 4),
        };
        let right = ended.wrong.is_empty() && ended.status == status && place.guests().len() == guests;
        match right && (again[..] == expected.0 && graded == expected.1) && ended.stderr.contains(says) {
            true => Ok(()),
            false => Err(format!("{name}: graded {graded:?}, begun again {again:?}: {ended:?}")),
        }
    });
}

#[test]
fn every_job_has_a_line_whatever_the_machines_do() {
    let open = Stage::Open.reached();
    let scripts = [
        ("nothing", vec![]),
        ("dies at each job", open.clone()),
        ("noise", vec![Act::Say("\u{1b}[2Jlogin: ".into(), 100)]),
        (
            "refuses each job",
            [open, vec![frame(0, Kind::Error, r#"{"code": "protocol", "message": "\u009b1m"}"#)]].concat(),
        ),
    ];
    with_each(&scripts, |(name, script)| {
        let place = place_with_jobs(script, 6);
        let (ended, lines) = batch(&place);
        let right = ended.wrong.is_empty() && ended.status == 1 && lines.len() == 6;
        match right
            && lines.iter().all(|line| line["graded"] == json!(false) && line["exit_status"] == json!(125))
        {
            true => Ok(()),
            false => Err(format!("{name}: {lines:?}: {ended:?}")),
        }
    });
}

#[test]
fn the_host_s_own_time_stands_beside_the_machine_s() {
    let mut slow = report();
    slow["usage"]["wall_us"] = json!(3_600_000_000_u64);
    let script =
        [Stage::Open.reached()[..2].to_vec(), life(1, &slow, &NO_FILES, &restored()), vec![Act::Silence]];
    let place = place_with_jobs(&script.concat(), 1);
    let (ended, lines) = batch(&place);
    assert!(ended.wrong.is_empty() && ended.status == 0, "{ended:?}");
    let seen = lines[0]["host_run_us"].as_u64().expect("the host's own time");
    assert!(seen < 3_600_000_000, "{seen}");
    let notes = lines[0]["notes"].as_array().expect("notes");
    assert!(notes.iter().any(|note| note.to_string().contains("the machine claims")), "{notes:?}");
}

#[test]
fn a_kept_machine_writes_nowhere_but_into_its_own_directory() {
    let mut archive = NO_FILES.to_vec();
    archive[..7].copy_from_slice(b"../evil");
    let flood = say(e2e::frame(Kind::Output, e2e::Bytes::repeated("x", 1 << 16)));
    let scripts = [
        ("archive", life(1, &report(), &archive, &restored()), "get: "),
        (
            "flood",
            [
                running(1),
                vec![match flood {
                    Act::Say(bytes, _) => Act::Say(bytes, u64::MAX),
                    act => act,
                }],
            ]
            .concat(),
            "run: more than ",
        ),
        ("death", running(1), "run: the peer ended where report was expected"),
    ];
    with_each(&scripts, |(name, life, says)| {
        let place = Place::new(&[Stage::Open.reached()[..2].to_vec(), life.clone()].concat());
        let guest = hostile_guest().display().to_string();
        let calls: [(&[&str], i32); 8] = [
            (&["vm", "initialize", "m", "--autodriver", &guest], 0),
            (&["vm", "copy-in", "m", "in/f"], 0),
            (
                &[
                    "vm",
                    "run-job",
                    "m",
                    "--output",
                    "64K",
                    "--disk",
                    "1M",
                    "--out",
                    "**:files/",
                    "--",
                    "true",
                ],
                125,
            ),
            (&["vm", "copy-out", "m", "out/report", "--report"], 0),
            (&["vm", "copy-out", "m", "out/feedback"], 0),
            (&["vm", "list"], 0),
            (&["vm", "destroy", "m"], 0),
            (&["vm", "copy-out", "m", "out/late"], 125),
        ];
        let mut said = String::new();
        for (args, status) in calls {
            let ended = place.call(args);
            if ended.status != status || !ended.wrong.is_empty() {
                return Err(format!("{name}: {args:?}: {ended:?}"));
            }
            said += &ended.stderr;
        }
        let report = place.json("cwd/out/report")?;
        let (files, states) = (place.files("cwd/out"), place.files("state"));
        let right = files == ["feedback", "report"] && states == ["vmm-local"] && said.contains(says);
        match right && report["restore"]["state"] == json!("poisoned") {
            true => Ok(()),
            false => Err(format!("{name}: {files:?} {states:?} {said} {report}")),
        }
    });
}

#[test]
fn waiting_for_a_machine_ends() {
    let quiet = vec![Act::Silence];
    with_each(&[("silent", quiet), ("gone", vec![])], |(name, script)| {
        let place = Place::new(script);
        let guest = hostile_guest().display().to_string();
        let made = place.call(&["vm", "initialize", "m", "--autodriver", &guest]);
        let waited = place.call(&["vm", "wait", "m", "--timeout", "2s"]);
        match made.status == 0 && waited.status == 125 && waited.wrong.is_empty() {
            true => Ok(()),
            false => Err(format!("{name}: {made:?} {waited:?}")),
        }
    });
}
