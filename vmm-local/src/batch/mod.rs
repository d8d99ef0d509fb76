//! Many jobs over a pool of machines.

mod jobs;
mod identity;
mod pool;
mod worker;
mod result;
mod lines;
mod tail;
mod table;
mod page;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use autodriver_protocol::job::DOCUMENT_MAX;
use autodriver_protocol::units::Time;
use autodriver_protocol::Options;
use indicatif::{ProgressBar, ProgressStyle};

use crate::backend::{Backend, BackendOptions};
use crate::cancel::Cancel;
use crate::session::Deadlines;
use crate::text;
use lines::Lines;
use pool::{Bounds, Pool};
use result::JobResult;
use tail::Shown;

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
    /// Write one JSON object a line as jobs end (- for stdout; the table then goes to stderr). Each is on the
    /// disk before the next is written; a file that has something in it is not written to without --resume
    #[arg(long, value_name = "FILE|-")]
    pub jsonl: Option<PathBuf>,
    /// Go on with an interrupted batch: jobs with a verdict in the file of --jsonl are not run again, unless
    /// their directory has changed since; what is missing is run and appended
    #[arg(long, requires = "jsonl")]
    pub resume: bool,
    /// Write a report of the batch for a browser: one file, which loads nothing
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Show the output of this job on stderr as it comes
    #[arg(long, value_name = "JOB")]
    pub tail: Option<OsString>,
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
    let mut jobs = jobs::find(&options.jobs, options.out.as_deref())?;
    let count = jobs.len();
    let expectations = jobs.iter().any(|job| job.expected.is_some());
    let shown = options.tail.as_deref().map(|name| follow_one(&mut jobs, name, options)).transpose()?;
    if options.jsonl.is_some() {
        jobs.iter_mut().for_each(jobs::Job::identify);
    }
    let page = options.html.as_deref().map(page::Place::open).transpose()?;
    let opened = options.jsonl.as_deref().map(|path| Lines::open(path, options.resume)).transpose()?;
    let (mut lines, earlier) = opened.unzip();
    let (mut results, jobs) = lines::divide(jobs, earlier.unwrap_or_default());
    let recalled = results.len();
    if let Some(name) = options.tail.as_ref().filter(|name| !jobs.iter().any(|job| job.is_named(name))) {
        let name = text::printable(&name.to_string_lossy());
        // Nobody is told of a stderr that is gone.
        let _ =
            writeln!(io::stderr().lock(), "vmm-local: --tail '{name}': it has a result and is not run again");
    }
    let cancel =
        Cancel::on_signals().map_err(|error| BatchError(format!("cannot handle signals: {error}")))?;
    let backend = backend.build();
    let machines = usize::from(options.machines.unwrap_or_else(processors)).min(jobs.len());
    let bounds = Bounds { jobs: options.machine_jobs, age: options.machine_age.0 };
    let pool = Pool { backend: &*backend, deadlines, cancel: &cancel, machines, bounds };
    if !jobs.is_empty() {
        check(&*backend)?;
    }
    let began = Instant::now();
    let written = follow(&pool, jobs, shown, lines.as_mut(), &mut results);
    results.sort_by_key(|result| result.index);
    let is_cancelled = cancel.is_cancelled();
    let summary = Summary {
        jobs: count,
        recalled,
        machines,
        elapsed: began.elapsed(),
        is_cancelled,
        expectations,
        results: &results,
    };
    // Each of the three is tried, whatever becomes of the others.
    let drawn = page.map_or(Ok(()), |page| page.write(&page::render(&summary, options)));
    show(&summary, options)?;
    written.and(drawn)?;
    let complete = results.len() == count && results.iter().all(JobResult::is_well);
    Ok(match (is_cancelled, complete) {
        (true, _) => EXIT_CANCELLED,
        (false, true) => 0,
        (false, false) => EXIT_NOT_ALL,
    })
}

/// What there is to say of a batch at its end.
struct Summary<'a> {
    /// Those that there are.
    jobs: usize,
    /// Results that come from an earlier batch.
    recalled: usize,
    machines: usize,
    /// Of this batch alone.
    elapsed: Duration,
    is_cancelled: bool,
    /// Whether something is expected of any job.
    expectations: bool,
    /// In the order of the jobs.
    results: &'a [JobResult],
}

impl Summary<'_> {
    fn count(&self, what: impl Fn(&JobResult) -> bool) -> usize {
        self.results.iter().filter(|result| what(result)).count()
    }
}

/// Marks the job whose output is to be shown as it comes.
fn follow_one(jobs: &mut [jobs::Job], name: &OsStr, options: &BatchOptions) -> Result<Shown, BatchError> {
    let Some(job) = jobs.iter_mut().find(|job| job.is_named(name)) else {
        let (name, jobs) = (name.to_string_lossy(), options.jobs.display());
        return Err(BatchError(format!(
            "--tail '{name}': no job of that name; give a directory in '{jobs}'"
        )));
    };
    let (tail, shown) = tail::tail(&job.name);
    job.tail = Some(tail);
    Ok(shown)
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

/// Runs the jobs; tells of each as it ends, and shows the output of one if asked. Whether all
/// lines could be written is for later: a full disk must not cost the results of a night.
fn follow(
    pool: &Pool<'_>,
    jobs: Vec<jobs::Job>,
    shown: Option<Shown>,
    mut lines: Option<&mut Lines>,
    results: &mut Vec<JobResult>,
) -> Result<(), BatchError> {
    let bar = progress(results.len(), results.len() + jobs.len());
    let mut written = Ok(());
    std::thread::scope(|scope| {
        let stderr = bar.clone();
        // Nobody is told of a stderr that is gone.
        let print = move |text: &str| stderr.suspend(|| drop(io::stderr().lock().write_all(text.as_bytes())));
        shown.map(|shown| scope.spawn(move || shown.each(print)));
        pool.run(&jobs, |result| {
            bar.set_message(text::shortened(&result.name, 30));
            bar.inc(1);
            if let (Some(lines), Ok(())) = (&mut lines, &written) {
                written = lines.write(&result);
            }
            results.push(result);
        });
        // What is shown ends with the last who could have more of it.
        drop(jobs);
    });
    bar.finish_and_clear();
    written
}

/// A bar on stderr, if that is a terminal; some jobs may be done already.
fn progress(done: usize, count: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(count as u64).with_position(done as u64);
    let template = "{bar:30} {pos}/{len} in {elapsed}, {per_sec} {msg}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The table, and a line that sums it up.
fn show(summary: &Summary<'_>, options: &BatchOptions) -> Result<(), BatchError> {
    let table = table::render(summary.results, summary.expectations);
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
    let (done, jobs, time) = (summary.results.len(), summary.jobs, text::time(summary.elapsed));
    let mut line = format!("{done} of {jobs} jobs done in {time}");
    for (number, what) in [
        (summary.recalled, "of them before"),
        (summary.count(|result| !result.outcome.verdict.is_about_the_job()), "not graded"),
        (summary.count(|result| result.mismatch.is_some()), "not as expected"),
    ] {
        if number > 0 {
            line += &format!(", {number} {what}");
        }
    }
    if summary.is_cancelled && !stdout_is_taken && options.jsonl.is_some() {
        line += "; the same command with --resume goes on";
    }
    // Nobody is told of a stderr that is gone.
    let _ = writeln!(io::stderr().lock(), "vmm-local: {line}");
    Ok(())
}
