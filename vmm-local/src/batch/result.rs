//! What became of one job of a batch, and its score.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use autodriver_protocol::Report;
use serde_json::{json, Map, Value};

use super::jobs::Job;
use super::lines::Line;
use super::tail::{Following, Tail};
use crate::session::{Outcome, Stream, Verdict};
use crate::text;

/// Longest last line that is looked at: autodriver keeps that much of it whole.
const LINE_MAX: usize = 64 << 10;

/// What became of one job.
#[derive(Debug)]
pub(super) struct JobResult {
    pub(super) index: usize,
    pub(super) name: String,
    /// The digest of what the job got, where one was taken.
    pub(super) input: Option<String>,
    pub(super) outcome: Outcome,
    /// From the last line of the output.
    pub(super) scores: Option<Map<String, Value>>,
    /// Whether something was expected.
    pub(super) had_expectation: bool,
    /// What was not as expected.
    pub(super) mismatch: Option<String>,
}

impl JobResult {
    pub(super) fn new(job: &Job, outcome: Outcome, scores: Option<Map<String, Value>>) -> JobResult {
        let mismatch = job.expected.as_ref().and_then(|expected| match &outcome.verdict {
            Verdict::Report(report) => expected.mismatch(report, scores.as_ref()),
            Verdict::Fault(_) => Some("no report".to_owned()),
        });
        let had_expectation = job.expected.is_some();
        let (name, input) = (job.name.clone(), job.input.clone());
        JobResult { index: job.index, name, input, outcome, scores, had_expectation, mismatch }
    }

    /// From the line of an earlier batch; none if that has no verdict about the job. Whether it is
    /// as expected is looked at again.
    pub(super) fn recalled(job: &Job, line: Line) -> Option<JobResult> {
        let verdict = Verdict::Report(Box::new(line.report));
        let is_graded = line.graded && verdict.is_about_the_job();
        let outcome = Outcome {
            verdict,
            // Whoever had the file in hands may have written there what a terminal would obey.
            notes: line.notes.iter().map(|note| text::printable(note)).collect(),
            machine_is_sound: true,
            machine_is_lost: false,
            took: line.host_run_us.map(Duration::from_micros),
        };
        is_graded.then(|| JobResult::new(job, outcome, line.scores))
    }

    /// What the machine reports, if it does.
    pub(super) fn report(&self) -> Option<&Report> {
        match &self.outcome.verdict {
            Verdict::Report(report) => Some(report),
            Verdict::Fault(fault) => fault.report.as_deref(),
        }
    }

    /// Whether it has a verdict about the job itself, and the expected one.
    pub(super) fn is_well(&self) -> bool {
        self.outcome.verdict.is_about_the_job() && self.mismatch.is_none()
    }

    /// One line of JSON Lines.
    pub(super) fn json(&self) -> Value {
        let verdict = &self.outcome.verdict;
        let mut line = json!({
            "job": self.name,
            "input": self.input,
            "verdict": verdict.summary(),
            "exit_status": verdict.exit_code(),
            "graded": verdict.is_about_the_job(),
            "scores": self.scores,
            "notes": self.outcome.notes,
            "host_run_us": self.outcome.took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            "report": verdict.to_report(),
        });
        if let Verdict::Fault(fault) = verdict {
            line["fault"] = json!({"step": fault.step.name(), "message": fault.message});
        }
        if self.had_expectation {
            line["as_expected"] = json!(self.mismatch.is_none());
            line["mismatch"] = json!(self.mismatch);
        }
        line
    }
}

/// Takes a job's output: keeps the end of it for the score, and all of it on disk, and shows it, if asked.
#[derive(Debug, Default)]
pub(super) struct Collector {
    tail: Vec<u8>,
    files: Option<[File; 2]>,
    following: Option<Following>,
}

impl Collector {
    /// Keeps output in `dir`: `output`, or with `split` `stdout` and `stderr`.
    pub(super) fn new(dir: Option<&Path>, split: bool, tail: Option<&Tail>) -> io::Result<Collector> {
        let following = tail.map(Tail::follow);
        let Some(dir) = dir else { return Ok(Collector { following, ..Collector::default() }) };
        fs::create_dir_all(dir)?;
        let [first, second] = if split { ["stdout", "stderr"] } else { ["output", "output"] };
        let first = File::create(dir.join(first))?;
        let second = if split { File::create(dir.join(second))? } else { first.try_clone()? };
        Ok(Collector { tail: Vec::new(), files: Some([first, second]), following })
    }

    pub(super) fn take(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        if let Some(files) = &mut self.files {
            files[usize::from(stream == Stream::Stderr)].write_all(bytes)?;
        }
        if let Some(following) = &self.following {
            following.show(stream, bytes);
        }
        if stream != Stream::Stderr {
            self.tail.extend_from_slice(bytes);
            if self.tail.len() > 4 * LINE_MAX {
                self.tail.drain(..self.tail.len() - 2 * LINE_MAX);
            }
        }
        Ok(())
    }

    /// The `scores` of the last line that is not blank, if it is JSON and has them.
    pub(super) fn scores(&self) -> Option<Map<String, Value>> {
        let end = self.tail.trim_ascii_end();
        let start = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = &end[start..];
        if line.len() > LINE_MAX {
            return None;
        }
        match serde_json::from_slice::<Value>(line).ok()?.get_mut("scores")?.take() {
            Value::Object(scores) => Some(scores),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores_of(output: &[u8]) -> Option<String> {
        let mut collector = Collector::default();
        output.chunks(7).for_each(|chunk| collector.take(Stream::Combined, chunk).unwrap());
        collector.take(Stream::Stderr, b"{\"scores\": {\"stderr\": 1}}").unwrap();
        collector.scores().map(|scores| Value::Object(scores).to_string())
    }

    #[test]
    fn the_score_is_in_the_last_line() {
        let score = Some("{\"p\":1}".to_owned());
        assert_eq!(scores_of(b"x\n{\"scores\": {\"p\": 1}}"), score);
        assert_eq!(scores_of(b"{\"scores\": {\"p\": 1}}\n \n\n"), score);
        let long = [&vec![b'x'; 1 << 20][..], b"\n{\"scores\": {\"p\": 1}}\n"].concat();
        assert_eq!(scores_of(&long), score);
        for none in [&b""[..], b"\n", b"{\"scores\": 3}", b"[1]", b"{\"scores\": {\"p\": 1}}\nx\n", b"{"] {
            assert_eq!(scores_of(none), None, "{none:?}");
        }
    }
}
