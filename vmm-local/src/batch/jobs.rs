//! A directory of jobs: what each is, and what is expected of it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use autodriver_protocol::{Cause, Options, Report};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::tail::Tail;
use super::{identity, read_document, BatchError};
use crate::session::{confine, Assignment, Bundle, Fault, Step};
use crate::text;

/// The job document; the job does not see it.
const DOCUMENT: &str = "job.json";
/// What is expected; the job does not see it.
const EXPECTATION: &str = "expect.json";
/// The report, beside the output that is kept.
pub(super) const REPORT: &str = "report.json";

/// One job of a batch.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) index: usize,
    /// The directory's name, printable.
    pub(super) name: String,
    path: PathBuf,
    /// The digest of what it gets, once it was taken.
    pub(super) input: Option<String>,
    /// What to do, or why it cannot be done.
    pub(super) assignment: Result<Assignment, Fault>,
    pub(super) expected: Option<Expectation>,
    /// Where its output, report and files are kept.
    pub(super) keep: Option<PathBuf>,
    /// Who wants to see its output as it comes.
    pub(super) tail: Option<Tail>,
}

/// What is expected of a job; what is not given is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expectation {
    cause: Option<Cause>,
    exit_code: Option<i32>,
    signal: Option<i32>,
    /// Each of these, and maybe others.
    limits_hit: Vec<String>,
    scores: Option<Map<String, Value>>,
}

impl Expectation {
    /// The first thing that is not as expected.
    pub(super) fn mismatch(&self, report: &Report, scores: Option<&Map<String, Value>>) -> Option<String> {
        if let Some(cause) = self.cause.filter(|cause| *cause != report.cause) {
            return Some(format!("{}, expected {}", report.cause.name(), cause.name()));
        }
        let numbers =
            [("exit code", self.exit_code, report.exit_code), ("signal", self.signal, report.signal)];
        for (what, expected, got) in numbers {
            if let Some(expected) = expected.filter(|number| Some(*number) != got) {
                let got = got.map_or("none".to_owned(), |number| number.to_string());
                return Some(format!("{what} {got}, expected {expected}"));
            }
        }
        if let Some(limit) = self.limits_hit.iter().find(|limit| !report.limits_hit.contains(limit)) {
            return Some(format!("limit {limit} not hit"));
        }
        let scores_differ = self.scores.as_ref().is_some_and(|expected| !same_scores(expected, scores));
        scores_differ.then(|| "other scores".to_owned())
    }
}

/// Numbers are compared as numbers: 10 is 10.0.
fn same_scores(expected: &Map<String, Value>, got: Option<&Map<String, Value>>) -> bool {
    let same = |(name, value): (&String, &Value)| {
        got.and_then(|got| got.get(name)).is_some_and(|other| match (value.as_f64(), other.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => value == other,
        })
    };
    got.is_some_and(|got| got.len() == expected.len()) && expected.iter().all(same)
}

/// The jobs in a directory, by name. What a job's own document gets wrong is that job's fault;
/// a bad expectation is the batch's.
pub(super) fn find(jobs: &Path, keep: Option<&Path>) -> Result<Vec<Job>, BatchError> {
    let failed = |error: std::io::Error| {
        BatchError(format!("jobs '{}': {error}; give a directory of jobs", jobs.display()))
    };
    let mut directories = Vec::new();
    for entry in fs::read_dir(jobs).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden {
            directories.push(path);
        }
    }
    if directories.is_empty() {
        let jobs = jobs.display();
        return Err(BatchError(format!("jobs '{jobs}': no directory in it; each job is one")));
    }
    directories.sort();
    directories.into_iter().enumerate().map(|(index, path)| Job::read(index, path, keep)).collect()
}

impl Job {
    fn read(index: usize, path: PathBuf, keep: Option<&Path>) -> Result<Job, BatchError> {
        let file_name = path.file_name().unwrap_or_default().to_owned();
        let name = text::printable(&file_name.to_string_lossy());
        let keep = keep.map(|keep| keep.join(&file_name));
        let expectation = path.join(EXPECTATION);
        let expected = match expectation.exists() {
            true => Some(read_expectation(&expectation)?),
            false => None,
        };
        let assignment = assignment(&path, keep.as_deref());
        let assignment = assignment.map_err(|why| Fault::here(Step::Prepare, &why));
        Ok(Job { index, name, path, input: None, assignment, expected, keep, tail: None })
    }

    /// Takes the digest of what it gets. A job that cannot be read has none, and a fault later.
    pub(super) fn identify(&mut self) {
        self.input = identity::digest(&self.path, EXPECTATION).ok();
    }

    /// Whether its directory has this name.
    pub(super) fn is_named(&self, name: &OsStr) -> bool {
        self.path.file_name() == Some(name)
    }

    /// Whether all that is to be kept of it was kept: the report is the last of that.
    pub(super) fn is_kept(&self) -> bool {
        let written = |keep: &PathBuf| fs::metadata(keep.join(REPORT)).is_ok_and(|meta| meta.len() > 0);
        self.keep.as_ref().is_none_or(written)
    }
}

fn read_expectation(path: &Path) -> Result<Expectation, BatchError> {
    let failed = |why: &dyn std::fmt::Display| BatchError(format!("'{}': {why}", path.display()));
    let text = fs::read(path).map_err(|error| failed(&error))?;
    serde_json::from_slice(&text).map_err(|error| failed(&error))
}

fn assignment(path: &Path, keep: Option<&Path>) -> Result<Assignment, String> {
    let document = path.join(DOCUMENT);
    let options = match document.exists() {
        true => read_document(&document).map_err(|why| format!("{DOCUMENT}: {why}"))?,
        false if path.join("Makefile").exists() || path.join("makefile").exists() => Options::default(),
        false => return Err(format!("neither a Makefile nor a {DOCUMENT} in it")),
    };
    for (key, given) in [("in", !options.inputs.is_empty()), ("report", options.report.is_some())] {
        if given {
            return Err(format!(
                "{DOCUMENT}: '{key}' is not for a batch; the job's directory is what it gets"
            ));
        }
    }
    let mut assignment = Assignment::new(options).map_err(|fault| fault.message)?;
    let except = vec![DOCUMENT.into(), EXPECTATION.into()];
    assignment.bundles = vec![Bundle::Directory { path: path.to_owned(), except }];
    assignment.outputs = match keep {
        Some(keep) => {
            let files = keep.join("files");
            let outputs = assignment.outputs.into_iter().map(|output| confine(output, &files));
            outputs.collect::<Result<_, _>>()?
        }
        None => Vec::new(),
    };
    Ok(assignment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Verdict;

    fn report() -> Report {
        let mut report = Verdict::Fault(Fault::here(Step::Run, &"x")).to_report();
        (report.cause, report.exit_code) = (Cause::Exited, Some(2));
        report.limits_hit = vec!["pids".to_owned(), "wall".to_owned()];
        report
    }

    fn expectation(text: &str) -> Expectation {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn only_what_is_given_is_compared_and_the_difference_is_named() {
        let scores = serde_json::from_str(r#"{"p1": 10}"#).unwrap();
        let mismatch = |text: &str| expectation(text).mismatch(&report(), Some(&scores));
        for text in [
            "{}",
            r#"{"cause": "exited", "exit_code": 2}"#,
            r#"{"limits_hit": ["wall"]}"#,
            r#"{"scores": {"p1": 10.0}}"#,
        ] {
            assert_eq!(mismatch(text), None, "{text}");
        }
        for (text, word) in [
            (r#"{"cause": "wall-limit"}"#, "exited, expected wall-limit"),
            (r#"{"exit_code": 0}"#, "exit code 2, expected 0"),
            (r#"{"signal": 9}"#, "signal none, expected 9"),
            (r#"{"limits_hit": ["memory"]}"#, "limit memory not hit"),
            (r#"{"scores": {"p1": 9}}"#, "other scores"),
            (r#"{"scores": {}}"#, "other scores"),
        ] {
            assert_eq!(mismatch(text).as_deref(), Some(word), "{text}");
        }
        assert!(expectation(r#"{"scores": {}}"#).mismatch(&report(), None).is_some());
        assert!(serde_json::from_str::<Expectation>(r#"{"exit": 0}"#).is_err());
    }

    #[test]
    fn a_job_with_a_bad_document_is_that_job_s_fault_alone() {
        let jobs = tempfile::tempdir().unwrap();
        for (name, document) in [
            ("a", "{}"),
            ("b", "{\"wal\": 1}"),
            ("c", "{\"in\": [\"/etc\"]}"),
            ("d", "{\"out\": [\"*:/etc\"]}"),
        ] {
            fs::create_dir(jobs.path().join(name)).unwrap();
            fs::write(jobs.path().join(name).join(DOCUMENT), document).unwrap();
        }
        fs::create_dir(jobs.path().join("e")).unwrap();
        fs::write(jobs.path().join("README"), "").unwrap();
        let found = find(jobs.path(), Some(Path::new("kept"))).unwrap();
        let wrong: Vec<&str> =
            found.iter().filter(|job| job.assignment.is_err()).map(|job| job.name.as_str()).collect();
        assert_eq!((found.len(), wrong), (5, vec!["b", "c", "d", "e"]));
    }
}
