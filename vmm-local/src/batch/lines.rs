//! The results as JSON Lines, and those of a batch that was interrupted.

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
            // The first bytes of every line.
            Some(_) if lines.is_empty() && !bytes.starts_with(b"{\"") => return Err(strange()),
            Some(_) if count as u64 == LINE_MAX => return Err(strange()),
            _ => break,
        }
        end += count as u64;
    }
    file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(|error| error.to_string())?;
    Ok(lines)
}

/// The results that earlier lines have of these jobs, and the jobs that have none: no line, none
/// with a verdict about the job, not as it is now, or no output where that is to be kept.
pub(super) fn divide(jobs: Vec<Job>, earlier: Vec<Line>) -> (Vec<JobResult>, Vec<Job>) {
    // The last line of a job counts.
    let mut known: std::collections::HashMap<(String, String), Line> = std::collections::HashMap::new();
    for mut line in earlier {
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
