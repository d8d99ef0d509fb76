//! The results as JSON Lines, and those of a batch that was interrupted.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use autodriver_protocol::Report;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::jobs::Job;
use super::result::JobResult;
use super::BatchError;
use crate::text;

/// Longest line, in bytes: a report, a score line and notes have less.
const LINE_MAX: u64 = 8 << 20;
/// How lines begin: with the first of their keys by name, with an expectation and without.
const BEGINNINGS: [&[u8]; 2] = [b"{\"as_expected\":", b"{\"exit_status\":"];

/// What counts of a line when a batch goes on.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    pub(super) job: String,
    /// The digest of the job's directory; lines of other programs may lack it.
    #[serde(default)]
    pub(super) input: Option<String>,
    pub(super) graded: bool,
    pub(super) scores: Option<Map<String, Value>>,
    pub(super) notes: Vec<String>,
    pub(super) host_run_us: Option<u64>,
    pub(super) report: Report,
}

/// JSON Lines, one as each job ends.
pub(super) struct Lines {
    name: PathBuf,
    out: Box<dyn Write>,
    /// The same, where it is a file that outlives a power cut.
    lasting: Option<File>,
    /// Keeps other batches from writing to it.
    _lock: Option<Flock<File>>,
}

impl Lines {
    /// Opens a place for lines; with `resume`, after those that are there, which are returned.
    ///
    /// # Errors
    /// It cannot be written; or a file has something in it that is not to be lost, and was not touched.
    pub(super) fn open(path: &Path, resume: bool) -> Result<(Lines, Vec<Line>), BatchError> {
        let failed = |why: &dyn fmt::Display| BatchError(format!("--jsonl '{}': {why}", path.display()));
        let is_file = path != Path::new("-") && fs::metadata(path).map_or(true, |meta| meta.is_file());
        if !is_file {
            if resume {
                return Err(failed(&"--resume needs the file that an earlier batch wrote"));
            }
            let out: Box<dyn Write> = match path == Path::new("-") {
                true => Box::new(io::stdout()),
                false => Box::new(File::create(path).map_err(|error| failed(&error))?),
            };
            return Ok((Lines { name: path.to_owned(), out, lasting: None, _lock: None }, Vec::new()));
        }
        let opened = File::options().read(resume).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(|error| failed(&error))?;
        let lock =
            match Flock::lock(file.try_clone().map_err(|e| failed(&e))?, FlockArg::LockExclusiveNonblock) {
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(failed(&"another batch writes to it; wait for its end, or give another file"))
                }
                // Where a file system has no locks, nobody can be kept away.
                lock => lock.ok(),
            };
        let earlier = match (file.metadata().map_err(|error| failed(&error))?.len(), resume) {
            (0, _) => Vec::new(),
            (_, false) => {
                return Err(failed(
                    &"it has something in it; --resume goes on with the batch that wrote it, else remove it or give another file",
                ))
            }
            (_, true) => recall(&mut file).map_err(|why| failed(&why))?,
        };
        sync_directory(path);
        let lasting = file.try_clone().map_err(|error| failed(&error))?;
        let lines = Lines { name: path.to_owned(), out: Box::new(file), lasting: Some(lasting), _lock: lock };
        Ok((lines, earlier))
    }

    /// Writes the line of a job; a file has it on the disk when this returns.
    ///
    /// # Errors
    /// It could not be written whole.
    pub(super) fn write(&mut self, result: &JobResult) -> Result<(), BatchError> {
        let failed =
            |error: &dyn fmt::Display| BatchError(format!("cannot write '{}': {error}", self.name.display()));
        let line = text::json(&result.json()).map_err(|error| failed(&error))? + "\n";
        let written = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush());
        let synced = written.and_then(|()| self.lasting.as_ref().map_or(Ok(()), File::sync_data));
        synced.map_err(|error| failed(&error))
    }
}

/// So that a new file is still there after a power cut.
fn sync_directory(path: &Path) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // Not every file system can; the file itself is synced whatever comes of this.
    let _ = File::open(parent.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
}

/// Whether these can be the first bytes of a line whose writer was killed, or of which a power cut left only the length.
fn is_torn(bytes: &[u8]) -> bool {
    let begins = |start: &[u8]| bytes.iter().zip(start).all(|(byte, expected)| byte == expected);
    bytes.iter().all(|byte| *byte == 0) || BEGINNINGS.into_iter().any(begins)
}

/// Reads the lines of an earlier batch, and leaves the file at their end. A last line that was torn
/// when its writer was killed is cut off; of a file with anything else in it nothing is changed.
fn recall(file: &mut File) -> Result<Vec<Line>, String> {
    let (mut lines, mut end) = (Vec::new(), 0);
    let mut reader = BufReader::new(&*file);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let count =
            reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes).map_err(|e| e.to_string())?;
        let number = lines.len() + 1;
        let strange = || format!("line {number} is no result of a batch; give the file that --jsonl wrote");
        match bytes.last() {
            Some(b'\n') => lines.push(serde_json::from_slice(&bytes).map_err(|_| strange())?),
            None => break,
            Some(_) if (count as u64) < LINE_MAX && is_torn(&bytes) => break,
            Some(_) => return Err(strange()),
        }
        end += count as u64;
    }
    file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(|error| error.to_string())?;
    Ok(lines)
}

/// The results that earlier lines have of these jobs, and the jobs that have none: no line, none
/// with a verdict about the job, not as it is now, or no output where that is to be kept.
pub(super) fn divide(jobs: Vec<Job>, earlier: Vec<Line>) -> (Vec<JobResult>, Vec<Job>) {
    // Of two verdicts on the same content the last counts.
    let mut known: HashMap<(String, String), Line> = HashMap::new();
    for mut line in earlier.into_iter().filter(|line| line.graded) {
        if let Some(input) = line.input.take() {
            known.insert((line.job.clone(), input), line);
        }
    }
    let (mut results, mut rest) = (Vec::new(), Vec::new());
    for job in jobs {
        let line = job.input.clone().and_then(|input| known.remove(&(job.name.clone(), input)));
        match line.filter(|_| job.is_kept()).and_then(|line| JobResult::recalled(&job, line)) {
            Some(result) => results.push(result),
            None => rest.push(job),
        }
    }
    (results, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::jobs::find;
    use crate::session::fake::report;
    use crate::session::{Fault, Outcome, Step, Verdict};
    use autodriver_protocol::Cause;
    use std::time::Duration;

    /// Jobs, of which the second expects something, and a place for their lines.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Place {
            let place = Place(tempfile::tempdir().unwrap());
            for name in ["a", "b", "c"] {
                fs::create_dir_all(place.path(&format!("jobs/{name}"))).unwrap();
                fs::write(place.path(&format!("jobs/{name}/Makefile")), "all:").unwrap();
            }
            fs::write(place.path("jobs/b/expect.json"), "{\"exit_code\": 3}").unwrap();
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn jobs(&self, keep: Option<&Path>) -> Vec<Job> {
            let mut jobs = find(&self.path("jobs"), keep).unwrap();
            jobs.iter_mut().for_each(Job::identify);
            jobs
        }

        /// Writes a line of each job, ended like that.
        fn written(&self, resume: bool, outcome: impl Fn() -> Outcome) -> String {
            let (mut lines, _) = Lines::open(&self.path("lines"), resume).unwrap();
            let results = self.jobs(None).into_iter().map(|job| JobResult::new(&job, outcome(), None));
            results.for_each(|result| lines.write(&result).unwrap());
            self.text()
        }

        fn text(&self) -> String {
            fs::read_to_string(self.path("lines")).unwrap()
        }

        /// The jobs that have a result, and those that have none.
        fn divided(&self, keep: Option<&Path>) -> (Vec<String>, Vec<String>) {
            let (_, earlier) = Lines::open(&self.path("lines"), true).unwrap();
            let (results, rest) = divide(self.jobs(keep), earlier);
            let results = results.into_iter().map(|result| result.name).collect();
            (results, rest.into_iter().map(|job| job.name).collect())
        }
    }

    fn graded() -> Outcome {
        let mut outcome = lost();
        outcome.verdict = Verdict::Report(Box::new(report(Cause::Exited)));
        outcome.notes = vec!["\u{1b}[2J".to_owned()];
        outcome.took = Some(Duration::from_micros(7));
        outcome
    }

    fn lost() -> Outcome {
        Outcome::of(Fault::here(Step::Connect, &"no machine"))
    }

    #[test]
    fn a_result_that_is_recalled_has_the_same_line() {
        let place = Place::new();
        let text = place.written(false, graded);
        let (_, earlier) = Lines::open(&place.path("lines"), true).unwrap();
        let (results, rest) = divide(place.jobs(None), earlier);
        assert!(rest.is_empty());
        for (result, line) in results.iter().zip(text.lines()) {
            assert_eq!(result.outcome.notes, ["\\u{1b}[2J"], "harmless now");
            assert_eq!(result.json().to_string(), line.replace("\\u001b", "\\\\u{1b}"));
        }
    }

    #[test]
    fn a_job_is_run_again_unless_its_very_content_has_a_verdict() {
        let place = Place::new();
        place.written(false, lost);
        assert_eq!(place.divided(None).1, ["a", "b", "c"], "no verdict");
        place.written(true, graded);
        assert_eq!(place.divided(None).0, ["a", "b", "c"]);
        place.written(true, lost);
        assert_eq!(place.divided(None).0, ["a", "b", "c"], "a verdict that is older than a fault");
        fs::write(place.path("jobs/b/expect.json"), "{\"exit_code\": 0}").unwrap();
        fs::write(place.path("jobs/c/Makefile"), "all: x").unwrap();
        assert_eq!(place.divided(None), (vec!["a".into(), "b".into()], vec!["c".into()]));
        let (_, earlier) = Lines::open(&place.path("lines"), true).unwrap();
        let (results, _) = divide(place.jobs(None), earlier);
        assert_eq!(results[1].mismatch.as_deref(), Some("exit code 3, expected 0"), "looked at again");
        fs::create_dir_all(place.path("kept/a")).unwrap();
        fs::write(place.path("kept/a/report.json"), "{}").unwrap();
        assert_eq!(place.divided(Some(&place.path("kept"))).0, ["a"], "what was kept is there");
    }

    #[test]
    fn a_torn_last_line_is_cut_off_wherever_it_was_torn() {
        let place = Place::new();
        let text = place.written(false, graded);
        let starts: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        let around = starts.iter().flat_map(|start| [start - 2, start - 1, *start]);
        for cut in (0..50).chain((50..text.len()).step_by(23)).chain(around) {
            fs::write(place.path("lines"), &text[..cut]).unwrap();
            let whole = starts.iter().filter(|start| **start <= cut).count();
            assert_eq!(place.divided(None).0.len(), whole, "cut at {cut}");
            assert_eq!(place.text(), text[..*starts[..whole].last().unwrap_or(&0)], "cut at {cut}");
        }
        fs::write(place.path("lines"), text.clone() + "\0\0\0").unwrap();
        assert_eq!((place.divided(None).0.len(), place.text()), (3, text));
    }

    #[test]
    fn what_is_no_file_of_results_is_refused_and_not_touched() {
        let place = Place::new();
        let line = place.written(false, graded).lines().next().unwrap().to_owned();
        for text in ["my thesis", "my thesis\n", "{\"name\": 1}", "{}\n", "\n", "[]"] {
            for text in [text.to_owned(), format!("{line}\n{text}"), format!("{text}\n{line}\n")] {
                fs::write(place.path("lines"), &text).unwrap();
                let error = Lines::open(&place.path("lines"), true).err().map(|error| error.to_string());
                assert!(error.is_some_and(|error| error.contains("no result of a batch")), "{text:?}");
                assert_eq!(place.text(), text);
            }
        }
        assert!(
            Lines::open(Path::new("-"), true).is_err() && Lines::open(Path::new("/dev/null"), true).is_err()
        );
    }

    #[test]
    fn what_is_in_a_file_is_not_overwritten_nor_written_by_two() {
        let place = Place::new();
        let text = place.written(false, graded);
        assert!(Lines::open(&place.path("lines"), false).is_err() && place.text() == text);
        let (_lines, _) = Lines::open(&place.path("lines"), true).unwrap();
        let error = Lines::open(&place.path("lines"), true).err().unwrap().to_string();
        assert!(error.contains("another batch"), "{error}");
    }
}
