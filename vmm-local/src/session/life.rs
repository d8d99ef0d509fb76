//! The whole life of one job on a connection, always to a verdict.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use autodriver_protocol::archive::{self, ArchiveError, Limits, Selection};
use autodriver_protocol::job::{Input, Output};
use autodriver_protocol::report::{Restore, RestoreState};
use autodriver_protocol::{Cause, Open, Options, Report, Transferred};

use super::fetch::fetch;
use super::job::{Ended, Seen, Sink};
use super::verdict::{self, LINE_MAX};
use super::{Connection, Fault, Job, SessionError, Step, Verdict};
use crate::text;

/// What the host itself is ready to send; the guest has its own limit.
const PUT_LIMITS: Limits = Limits { entries: 10_000_000, bytes: 1 << 42 };
/// How much two clocks may differ, beside one percent of what they measured.
const CLOCKS_DIFFER_US: u64 = 10_000;
/// How many skipped files are named in notes.
const NAMED_MAX: usize = 5;

/// Something of this machine that goes into the job directory.
#[derive(Clone, Debug)]
pub enum Bundle {
    /// As `--in` says.
    Input(Input),
    /// The content of a directory, without some names at its top.
    Directory {
        /// Where it is.
        path: PathBuf,
        /// What stays out.
        except: Vec<OsString>,
    },
}

/// All there is to do for one job.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// What the job is opened with.
    pub open: Open,
    /// The document that is sent; what the host relies upon itself is always given in it.
    pub document: Options,
    /// What is put, in order.
    pub bundles: Vec<Bundle>,
    /// What is got, in order.
    pub outputs: Vec<Output>,
}

/// How a job's life on a connection ended.
#[derive(Debug)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// Sentences for the caller: files that were not copied, and why.
    pub notes: Vec<String>,
    /// Whether the machine can take another job.
    pub machine_is_sound: bool,
    /// Whether it went, or was given up, before the job's life on it was over.
    pub machine_is_lost: bool,
    /// From `run` to the report by the host's own clock, for what the machine says of it.
    pub took: Option<Duration>,
}

impl Outcome {
    /// Of a job that never met a machine.
    pub fn of(fault: Fault) -> Outcome {
        let machine_is_lost = fault.lost;
        let (verdict, notes) = (Verdict::Fault(fault), Vec::new());
        Outcome { verdict, notes, machine_is_sound: !machine_is_lost, machine_is_lost, took: None }
    }
}

impl Assignment {
    /// From the options of `run`: inputs, outputs and report are the host's business. A relative
    /// `stdin` is a file of the job directory.
    ///
    /// # Errors
    /// A [`Fault`] at [`Step::Prepare`]: an input that is missing, a glob that is none.
    pub fn new(options: Options) -> Result<Assignment, Fault> {
        let options = Options { quiet: false, report: None, ..options };
        let bundles: Vec<Bundle> = options.inputs.iter().cloned().map(Bundle::Input).collect();
        bundles.iter().try_for_each(Bundle::check)?;
        let globs: Vec<&str> = options.outputs.iter().map(|output| &*output.glob).collect();
        Selection::globs(&globs).map_err(|error| Fault::here(Step::Prepare, &format!("--out: {error}")))?;
        let outputs = options.outputs.clone();
        let defaults = Options::defaults();
        let open = Open { user: options.user.clone(), ..Open::default() };
        let document = Options {
            user: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            wall: options.wall.or(defaults.wall),
            grace: options.grace.or(defaults.grace),
            output: options.output.or(defaults.output),
            disk: options.disk.or(defaults.disk),
            inodes: options.inodes.or(defaults.inodes),
            ..options
        };
        Ok(Assignment { open, document, bundles, outputs })
    }

    /// The longest that the job itself may take.
    fn limit(&self) -> Duration {
        let time =
            |time: Option<autodriver_protocol::units::Time>| time.map_or(Duration::ZERO, |time| time.0);
        time(self.document.wall) + time(self.document.grace)
    }

    /// The most there is to get: what was put, and what a job can have written beside it.
    fn get_limits(&self, put: Limits) -> Limits {
        let bytes = self.document.disk.map_or(0, |size| size.0).saturating_add(put.bytes);
        Limits { entries: self.document.inodes.unwrap_or(0).saturating_add(put.entries), bytes }
    }
}

impl Bundle {
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let refused = |why: String| Err(Fault::here(Step::Prepare, &why));
        let Bundle::Input(input) = self else { return Ok(()) };
        if let Err(error) = std::fs::metadata(&input.src) {
            return refused(format!("--in '{}': {error}; give a file or a directory", input.src));
        }
        match archive::relative(input.dest.as_deref().unwrap_or("").as_bytes()) {
            Ok(_) => Ok(()),
            Err(why) => {
                refused(format!("--in '{}': DEST must be inside the job directory ({why})", input.src))
            }
        }
    }

    /// How many directories its DEST may need that are no entries of it.
    fn implied(&self) -> u64 {
        let Bundle::Input(Input { dest: Some(dest), .. }) = self else { return 0 };
        Path::new(dest).components().count() as u64
    }

    /// Writes it as a tar stream.
    pub(crate) fn pack(&self, out: &mut dyn Write) -> Result<Transferred, ArchiveError> {
        let tree = |path: &Path, prefix: &Path, selection: &Selection, out| {
            let dir = archive::open_directory(path).map_err(|errno| ArchiveError::Failed {
                act: "open directory",
                name: path.to_string_lossy().into_owned(),
                errno,
            })?;
            archive::pack_tree(dir.as_fd(), prefix, selection, PUT_LIMITS, out)
        };
        let input = match self {
            Bundle::Directory { path, except } => {
                return tree(path, Path::new(""), &Selection::Except(except.clone()), out)
            }
            Bundle::Input(input) => input,
        };
        let src = Path::new(&input.src);
        let dest = input.dest.as_deref().unwrap_or("");
        if src.is_dir() {
            return tree(src, Path::new(dest), &Selection::Tree, out);
        }
        let name = src.file_name().map(Path::new).unwrap_or(src);
        let as_directory = dest.is_empty() || dest.ends_with('/');
        let name = if as_directory { Path::new(dest).join(name) } else { PathBuf::from(dest) };
        archive::pack_file(src, &name, PUT_LIMITS, out)
    }
}

/// Does the assignment. Never fails: whatever happens is in the outcome.
pub fn perform(connection: &mut Connection, assignment: &Assignment, sink: &mut Sink<'_>) -> Outcome {
    let mut life = Life { assignment, notes: Vec::new(), report: None, took: None };
    let (verdict, restore) = life.lead(connection, sink);
    let poisoned = |restore: &Restore| restore.state == RestoreState::Poisoned;
    let reported = matches!(&verdict, Verdict::Report(report) if poisoned(&report.restore));
    if let (Some(restore), Verdict::Fault(_)) = (restore.as_ref().filter(|r| poisoned(r)), &verdict) {
        life.notes.push(format!("the machine is poisoned: {}", listed(restore)));
    }
    let machine_is_lost = connection.is_over();
    let machine_is_sound = !machine_is_lost && !reported && !restore.as_ref().is_some_and(poisoned);
    Outcome { verdict, notes: life.notes, machine_is_sound, machine_is_lost, took: life.took }
}

fn listed(restore: &Restore) -> String {
    let each = restore.leftovers.iter().map(|left| format!("{} {}", left.kind, left.what));
    text::shortened(&text::printable(&each.collect::<Vec<_>>().join("; ")), LINE_MAX)
}

struct Life<'a> {
    assignment: &'a Assignment,
    notes: Vec<String>,
    report: Option<Report>,
    took: Option<Duration>,
}

impl Life<'_> {
    /// The verdict, and what `closed` said if it came.
    fn lead(&mut self, connection: &mut Connection, sink: &mut Sink<'_>) -> (Verdict, Option<Restore>) {
        let mut job = match Job::open(connection, &self.assignment.open) {
            Ok(job) => job,
            Err(error) => return (Verdict::Fault(connection.fault(Step::Open, &error)), None),
        };
        let failed = match self.work(&mut job, sink) {
            Ok(()) => None,
            Err((step, error)) => {
                let fault = job.connection.fault(step, &error);
                if fault.lost {
                    return (Verdict::Fault(fault.after(self.report.take())), None);
                }
                Some(fault)
            }
        };
        match job.close(sink) {
            Ok(Ended { restore, report }) => {
                let report = self.report.take().or(report).map(|report| with_restore(report, &restore));
                (conclude(failed, report), Some(restore))
            }
            Err(error) => (self.lost_at_close(failed, connection.fault(Step::Close, &error)), None),
        }
    }

    fn work(&mut self, job: &mut Job<'_>, sink: &mut Sink<'_>) -> Result<(), (Step, SessionError)> {
        let mut put = Limits { entries: 0, bytes: 0 };
        for bundle in &self.assignment.bundles {
            let sent = job.put(|out| bundle.pack(out)).map_err(|error| (Step::Put, error))?;
            if let Some(what) = skipped(&sent, "copied in") {
                // A job on half of its files would be graded for the other half.
                return Err((Step::Put, SessionError::Incomplete(what)));
            }
            put.entries = put.entries.saturating_add(sent.entries).saturating_add(bundle.implied());
            put.bytes = put.bytes.saturating_add(sent.bytes);
        }
        let assignment = self.assignment;
        let report = job.run(&assignment.document, assignment.limit(), sink);
        let report = self.report.insert(report.map_err(|error| (Step::Run, error))?);
        let seen = job.seen();
        self.took = Some(seen.took);
        self.notes.extend(implausible(report, seen));
        if report.cause == Cause::SetupFailed {
            return Ok(());
        }
        for output in &assignment.outputs {
            let got = fetch(job, output, assignment.get_limits(put)).map_err(|error| (Step::Get, error))?;
            self.notes.extend(skipped(&got, "copied out"));
            if got.entries == 0 && got.skipped_count == 0 {
                self.notes.push(format!("--out '{}' matched no file", text::printable(&output.glob)));
            }
        }
        Ok(())
    }

    /// A job whose report came has its verdict, but nobody knows what it left behind.
    fn lost_at_close(&mut self, failed: Option<Fault>, lost: Fault) -> Verdict {
        match (failed, self.report.take()) {
            (None, Some(report)) => {
                Verdict::Report(Box::new(verdict::lost(&report, Step::Close, &lost.message)))
            }
            (failed, report) => {
                let fault = failed.map_or(lost, |failed| Fault { lost: true, ..failed });
                Verdict::Fault(fault.after(report))
            }
        }
    }
}

/// What a report says beyond what the host saw itself. Clocks of two machines may differ a little;
/// and where the machine is a lying one, this is all that there is to see of it.
fn implausible(report: &Report, seen: Seen) -> Option<String> {
    let took = u64::try_from(seen.took.as_micros()).unwrap_or(u64::MAX);
    let wall = report.usage.wall_us;
    if wall > took.saturating_add(took / 100).saturating_add(CLOCKS_DIFFER_US) {
        let time = |us| text::time(Duration::from_micros(us));
        let (wall, took) = (time(wall), time(took));
        return Some(format!("the machine claims that the job ran for {wall}; only {took} passed here"));
    }
    let streams = [report.output.combined, report.output.stdout, report.output.stderr];
    let kept = streams.iter().flatten().fold(0_u64, |sum, stream| sum.saturating_add(stream.kept));
    let output = seen.output;
    (kept > output)
        .then(|| format!("the machine claims that it sent {kept} bytes of output; only {output} came"))
}

/// The sentence about files that were not copied.
fn skipped(done: &Transferred, copied: &str) -> Option<String> {
    let named = done.skipped.iter().take(NAMED_MAX).map(|file| format!("'{}' ({})", file.name, file.why));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = if done.skipped_count > NAMED_MAX as u64 { ", ..." } else { "" };
    let sentence = format!("{} files cannot be {copied}: {named}{more}", done.skipped_count);
    (done.skipped_count > 0).then(|| text::shortened(&text::printable(&sentence), LINE_MAX))
}

/// The verdict on a job that was closed in order.
fn conclude(failed: Option<Fault>, report: Option<Report>) -> Verdict {
    match (failed, report) {
        (None, Some(report)) => Verdict::Report(Box::new(report)),
        // The report tells of the cancelling, or of an end that came first.
        (Some(fault), Some(report)) if fault.cancelled && fault.step == Step::Run => {
            Verdict::Report(Box::new(report))
        }
        (Some(fault), report) => Verdict::Fault(fault.after(report)),
        (None, None) => Verdict::Fault(Fault::here(Step::Run, &"the machine gave no report")),
    }
}

/// The report with what `closed` found added to what was known when the job ended.
fn with_restore(report: Report, closed: &Restore) -> Report {
    let mut leftovers = report.restore.leftovers.clone();
    leftovers
        .extend(closed.leftovers.iter().filter(|left| !report.restore.leftovers.contains(left)).cloned());
    let poisoned = [report.restore.state, closed.state].contains(&RestoreState::Poisoned);
    let state = if poisoned { RestoreState::Poisoned } else { RestoreState::Restored };
    Report { restore: Restore { state, leftovers }, ..report }
}
