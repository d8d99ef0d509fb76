//! Many jobs over a pool of machines.

mod jobs;
mod pool;
mod result;
mod table;
mod worker;

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use autodriver_protocol::job::DOCUMENT_MAX;
use autodriver_protocol::units::Time;
use autodriver_protocol::Options;
use indicatif::{ProgressBar, ProgressStyle};

use crate::backend::{Backend, BackendOptions};
use crate::cancel::Cancel;
use crate::session::Deadlines;
use crate::text;
use pool::{Bounds, Pool};
use result::JobResult;

/// Exit status when a job could not be graded, or was not as expected.
const EXIT_NOT_ALL: u8 = 1;
/// Exit status when the caller cancelled the batch.
const EXIT_CANCELLED: u8 = 130;
/// More machines than that help nobody; each is a process here and one there.
const MACHINES_MAX: u16 = 1024;

/// What a batch is.
#[derive(Clone, Debug, clap::Args)]
pub struct BatchOptions {
    /// Machines at once (default: as many as processors)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MACHINES_MAX)))]
    pub machines: Option<u16>,
    /// Jobs that one machine takes at most, before another, made ahead, takes its place
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    pub machine_jobs: u32,
    /// Age at which a machine takes no other job
    #[arg(long, value_name = "T", default_value = "1h")]
    pub machine_age: Time,
    /// Write one JSON object a line as jobs end (- for stdout; the table then goes to stderr)
    #[arg(long, value_name = "FILE|-")]
    pub jsonl: Option<PathBuf>,
    /// Keep each job's output, report and the files of its document's out in DIR/JOB
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// A directory of jobs: directories with a Makefile, a job.json (the job document) or both,
    /// and maybe an expect.json
    #[arg(value_name = "JOBS")]
    pub jobs: PathBuf,
}

/// Why a batch could not begin, or its results not be written: one sentence.
#[derive(Debug)]
pub struct BatchError(String);

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BatchError {}

/// Reads a job document from a file, or from stdin for `-`.
///
/// # Errors
/// What is wrong with it.
pub fn read_document(path: &Path) -> Result<Options, String> {
    let mut text = Vec::new();
    let most = DOCUMENT_MAX as u64 + 1;
    let read = if path == Path::new("-") {
        io::stdin().take(most).read_to_end(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut text))
    };
    read.map_err(|error| error.to_string())?;
    Options::from_json(&text).map_err(|error| error.to_string())
}

/// Runs a batch and shows its results. The exit status: 0 when every job has a verdict about
/// the job itself and is as expected, 130 when cancelled, else 1.
///
/// # Errors
/// What could not be begun or written.
pub fn run(backend: &BackendOptions, deadlines: Deadlines, options: &BatchOptions) -> Result<u8, BatchError> {
    let jobs = jobs::find(&options.jobs, options.out.as_deref())?;
    let cancel =
        Cancel::on_signals().map_err(|error| BatchError(format!("cannot handle signals: {error}")))?;
    let backend = backend.build();
    let machines = usize::from(options.machines.unwrap_or_else(processors)).min(jobs.len());
    let bounds = Bounds { jobs: options.machine_jobs, age: options.machine_age.0 };
    let pool = Pool { backend: &*backend, deadlines, cancel: &cancel, machines, bounds };
    check(&*backend)?;
    let began = Instant::now();
    let mut lines = options.jsonl.as_deref().map(Lines::open).transpose()?;
    let (results, written) = follow(&pool, &jobs, lines.as_mut());
    show(&results, &jobs, options, began)?;
    written?;
    let complete = results.len() == jobs.len() && results.iter().all(JobResult::is_well);
    Ok(match (cancel.is_cancelled(), complete) {
        (true, _) => EXIT_CANCELLED,
        (false, true) => 0,
        (false, false) => EXIT_NOT_ALL,
    })
}

fn processors() -> u16 {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(count).unwrap_or(MACHINES_MAX).min(MACHINES_MAX)
}

/// What no job could do without is found missing before the first, not by each.
fn check(backend: &dyn Backend) -> Result<(), BackendMissing> {
    let machine = format!("batch-{}-check", std::process::id()).parse().map_err(BackendMissing)?;
    let made = backend.create(&machine);
    made.and_then(|()| backend.destroy(&machine)).map_err(BackendMissing)
}

struct BackendMissing(crate::backend::BackendError);

impl From<BackendMissing> for BatchError {
    fn from(error: BackendMissing) -> Self {
        BatchError(error.0.to_string())
    }
}

/// Runs the jobs; tells of each as it ends. Results in the order of the jobs, and whether all
/// lines could be written: a full disk must not cost the results of a night.
fn follow(
    pool: &Pool<'_>,
    jobs: &[jobs::Job],
    mut lines: Option<&mut Lines>,
) -> (Vec<JobResult>, Result<(), BatchError>) {
    let bar = progress(jobs.len());
    let mut results = Vec::with_capacity(jobs.len());
    let mut written = Ok(());
    pool.run(jobs, |result| {
        bar.set_message(text::shortened(&result.name, 30));
        bar.inc(1);
        if let (Some(lines), Ok(())) = (&mut lines, &written) {
            written = lines.write(&result);
        }
        results.push(result);
    });
    bar.finish_and_clear();
    results.sort_by_key(|result| result.index);
    (results, written)
}

/// A bar on stderr, if that is a terminal.
fn progress(count: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count as u64);
    let template = "{bar:30} {pos}/{len} in {elapsed}, {per_sec} {msg}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// JSON Lines, one as each job ends.
struct Lines {
    name: PathBuf,
    out: Box<dyn Write>,
}

impl Lines {
    fn open(path: &Path) -> Result<Lines, BatchError> {
        let out: Box<dyn Write> = match path == Path::new("-") {
            true => Box::new(io::stdout()),
            false => Box::new(
                File::create(path)
                    .map_err(|error| BatchError(format!("--jsonl '{}': {error}", path.display())))?,
            ),
        };
        Ok(Lines { name: path.to_owned(), out })
    }

    fn write(&mut self, result: &JobResult) -> Result<(), BatchError> {
        let failed =
            |error: &dyn fmt::Display| BatchError(format!("cannot write '{}': {error}", self.name.display()));
        let line = text::json(&result.json()).map_err(|error| failed(&error))? + "\n";
        let written = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|error| failed(&error))
    }
}

/// The table, and a line that sums it up.
fn show(
    results: &[JobResult],
    jobs: &[jobs::Job],
    options: &BatchOptions,
    began: Instant,
) -> Result<(), BatchError> {
    let table = table::render(results, jobs.iter().any(|job| job.expected.is_some()));
    let stdout_is_taken = options.jsonl.as_deref() == Some(Path::new("-"));
    let written = match stdout_is_taken {
        true => io::stderr().lock().write_all(table.as_bytes()),
        false => io::stdout().lock().write_all(table.as_bytes()),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(BatchError(format!("cannot write the table: {error}")))
        }
        _ => {}
    }
    let count = |what: fn(&JobResult) -> bool| results.iter().filter(|result| what(result)).count();
    let mut line =
        format!("{} of {} jobs done in {}", results.len(), jobs.len(), text::time(began.elapsed()));
    for (number, what) in [
        (count(|result| !result.outcome.verdict.is_about_the_job()), "not graded"),
        (count(|result| result.mismatch.is_some()), "not as expected"),
    ] {
        if number > 0 {
            line += &format!(", {number} {what}");
        }
    }
    // Nobody is told of a stderr that is gone.
    let _ = writeln!(io::stderr().lock(), "vmm-local: {line}");
    Ok(())
}
