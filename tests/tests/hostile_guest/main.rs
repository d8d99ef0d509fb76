//! Hostile guests: whatever is on the far side of the wire, `vmm-local` ends with a verdict of the
//! right type, soon, in little memory, and has written nothing outside its output directory.

mod archives;
mod floods;
mod meeting;
mod payloads;
mod pools;
mod reports;
mod stages;

use e2e::Act;
use meeting::Place;
use serde_json::Value;

/// One guest, and what `vmm-local run` must make of it.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    script: Vec<Act>,
    options: Vec<&'static str>,
    status: i32,
    cause: &'static str,
    restored: bool,
    /// What it says to people: all of these.
    says: Vec<String>,
    /// What there is in the output directory.
    files: Vec<String>,
}

/// `--out` of the cases that have no other.
const OUT: [&str; 2] = ["--out", "**:out/"];

impl Case {
    /// A guest whose job is graded: exit status 0.
    fn graded(name: impl Into<String>, script: Vec<Act>) -> Case {
        Case {
            name: name.into(),
            script,
            options: OUT.to_vec(),
            status: 0,
            cause: "exited",
            restored: true,
            says: Vec::new(),
            files: Vec::new(),
        }
    }

    /// A guest that is found out: nothing is said about the job, and the machine is not trusted.
    fn refused(
        name: impl Into<String>,
        script: Vec<Act>,
        cause: &'static str,
        says: impl Into<String>,
    ) -> Case {
        let says = vec![says.into()];
        Case { status: 125, cause, restored: false, says, ..Case::graded(name, script) }
    }

    fn with(self, option: &'static str, value: &'static str) -> Case {
        let options = [&self.options[..], &[option, value]].concat();
        Case { options, ..self }
    }

    fn leaving(self, files: &[&str]) -> Case {
        Case { files: files.iter().map(|&name| name.to_owned()).collect(), ..self }
    }

    fn meet(&self) -> Result<(), String> {
        let place = Place::new(&self.script);
        let ended = place.run(&self.options);
        let mut wrong = ended.wrong;
        if ended.status != self.status {
            wrong.push(format!("exit status {}, not {}", ended.status, self.status));
        }
        wrong.extend(self.judge_report(&place));
        let missing = self.says.iter().filter(|says| !ended.stderr.contains(*says));
        wrong.extend(missing.map(|says| format!("does not say '{says}'")));
        let files = place.files("cwd/out");
        if files != self.files {
            wrong.push(format!("files {files:?}, not {:?}", self.files));
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => {
                let said: String = ended.stderr.chars().take(600).collect();
                Err(format!("{}: {}\n    it said: {said}", self.name, wrong.join("; ")))
            }
        }
    }

    fn judge_report(&self, place: &Place) -> Vec<String> {
        let report = match place.json("report.json") {
            Ok(report) => report,
            Err(why) => return vec![why],
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut wrong = Vec::new();
        let raw = std::fs::read_to_string(place.path("report.json")).unwrap_or_default();
        if let Some(obeyed) = raw.trim_end().chars().find(|c| meeting::obeyed(*c)) {
            wrong.push(format!("{obeyed:?} in the report"));
        }
        if text(&report["cause"]) != self.cause {
            wrong.push(format!("cause {}, not {}", report["cause"], self.cause));
        }
        let state = if self.restored { "restored" } else { "poisoned" };
        if text(&report["restore"]["state"]) != state {
            wrong.push(format!("machine {}, not {state}", report["restore"]["state"]));
        }
        wrong
    }
}

#[track_caller]
fn meet_all(cases: &[Case]) {
    assert!(!cases.is_empty());
    meeting::with_each(cases, Case::meet);
}
