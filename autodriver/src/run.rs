//! `autodriver run`: one job, from the request to the exit status.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use autodriver_protocol::archive::{self, open_directory, Selection};
use autodriver_protocol::job::{Input, Output, DOCUMENT_MAX};
use autodriver_protocol::report::{LayerReport, Leftover, Report, RestoreState};
use autodriver_protocol::{Cause, Options};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::cli::say;
use crate::facts::{self, Facts};
use crate::fault::{Fault, Step};
use crate::first;
use crate::follow::follow;
use crate::outlet::Outlet;
use crate::plan::{plan, Plan};
use crate::restore;
use crate::sandbox::aside::Aside;
use crate::slot::{self, Slot};
use crate::transfer::{self, Task, ENTRIES_MAX, LIMITS, RESULTS};

/// Runs; the exit status, or the sentence that goes with 125.
pub fn main(document: Option<&str>, options: Options) -> Result<u8, String> {
    let requested = Instant::now();
    let options = with_document(document, options)?;
    let facts = facts::probe().map_err(|fault| fault.to_string())?;
    let request = Request {
        inputs: options.inputs.clone(),
        outputs: options.outputs.clone(),
        quiet: options.quiet,
        report: options.report.as_deref().map(open_report).transpose()?,
    };
    let plan = plan(options, &facts).map_err(|refusal| refusal.0)?;
    request.run(plan, &facts, requested)
}

/// What is asked besides the job itself.
struct Request {
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    quiet: bool,
    report: Option<File>,
}

/// The options, over those of the job document.
///
/// # Errors
/// Why the document could not be read.
pub fn with_document(document: Option<&str>, options: Options) -> Result<Options, String> {
    Ok(match document {
        Some(path) => options.over(read_document(path)?),
        None => options,
    })
}

fn read_document(path: &str) -> Result<Options, String> {
    let mut text = Vec::new();
    let limit = DOCUMENT_MAX as u64 + 1;
    let read = match path {
        "-" => std::io::stdin().take(limit).read_to_end(&mut text),
        path => File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text)),
    };
    read.map_err(|error| format!("cannot read --job {path}: {error}"))?;
    Options::from_json(&text).map_err(|error| format!("--job {path}: {error}"))
}

fn open_report(place: &str) -> Result<File, String> {
    // These are links to descriptors. A pipe that another user made, or a port that is open already,
    // cannot be opened again by them.
    let place = match place {
        "-" | "/dev/stdout" => "fd:1",
        "/dev/stderr" => "fd:2",
        place => place,
    };
    if let Some(number) = place.strip_prefix("fd:") {
        let bad = || {
            format!("--report {place}: '{number}' is no open descriptor; give fd:N with N open for writing")
        };
        let number = number.parse().map_err(|_| bad())?;
        return crate::sys::fd::duplicate(number).map(File::from).map_err(|_| bad());
    }
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(place);
    opened.map_err(|error| format!("cannot write --report {place}: {error}"))
}

impl Request {
    fn run(mut self, plan: Plan, facts: &Facts, requested: Instant) -> Result<u8, String> {
        let signals = block_signals().map_err(|fault| fault.to_string())?;
        let _aside = make_ready(facts).map_err(|fault| fault.to_string())?;
        let layers = plan.layers.clone();
        let mut slot = match Slot::open(&plan.user, facts, facts.half_memory, ENTRIES_MAX) {
            Ok(slot) => slot,
            Err(fault) => return self.failed(layers, &fault, Vec::new()),
        };
        if let Err(fault) = self.copy_in(&slot) {
            return self.failed(layers, &fault, slot.close());
        }
        let ended = outlets().and_then(|mut outlets| {
            let job = slot.start(plan, facts, requested, None, true)?;
            Ok((follow(job, &slot, &signals, &mut outlets)?, outlets))
        });
        let (outcome, outlets) = match ended {
            Ok(ended) => ended,
            Err(fault) => {
                slot.abandon(facts);
                return self.failed(layers, &fault, slot.close());
            }
        };
        let mut report = slot.conclude(outcome);
        let copied = self.copy_out(&slot);
        report.restore.leftovers = slot.close();
        if !report.restore.leftovers.is_empty() {
            report.restore.state = RestoreState::Poisoned;
        }
        let written = outlets.map(|outlet| outlet.flush(signals.as_fd()));
        self.tell(&report)?;
        written
            .into_iter()
            .chain([copied])
            .collect::<Result<(), Fault>>()
            .map_err(|fault| fault.to_string())?;
        Ok(report.exit_status())
    }

    /// The job could not be started, or not be followed: a report all the same.
    fn failed(
        &mut self,
        layers: Vec<LayerReport>,
        fault: &Fault,
        leftovers: Vec<Leftover>,
    ) -> Result<u8, String> {
        let report = slot::failed(layers, fault, leftovers);
        self.write_report(&report)?;
        if report.restore.state != RestoreState::Poisoned {
            return Err(fault.to_string());
        }
        say(&summary(&report));
        Ok(report.exit_status())
    }

    fn write_report(&mut self, report: &Report) -> Result<(), String> {
        let Some(mut file) = self.report.take() else { return Ok(()) };
        let mut text =
            serde_json::to_vec(report).map_err(|error| format!("cannot write the report: {error}"))?;
        text.push(b'\n');
        file.write_all(&text).map_err(|error| format!("cannot write the report: {error}"))
    }

    fn tell(&mut self, report: &Report) -> Result<(), String> {
        self.write_report(report)?;
        if !self.quiet {
            say(&summary(report));
            if let Some(line) = report.weaker() {
                say(&line);
            }
        } else if let Some(fault) = &report.fault {
            say(&fault.message);
        }
        Ok(())
    }

    fn copy_in(&self, slot: &Slot) -> Result<(), Fault> {
        for input in &self.inputs {
            let fault = |why: String| Fault::refused(Step::Transfer, format!("copy --in {}", input.src), why);
            let source = std::fs::metadata(&input.src).map_err(|error| fault(error.to_string()))?;
            let (dest, is_file) = (input.dest.as_deref().unwrap_or(""), !source.is_dir());
            let name =
                destination(input, dest, is_file).map_err(|why| fault(format!("to '{dest}': {why}")))?;
            let mut worker = transfer::start(&Task::Unpack, slot.storage().job(), slot.identity())?;
            let Some(stream) = worker.stream.take() else { continue };
            let packed = match is_file {
                true => archive::pack_file(Path::new(&input.src), &name, LIMITS, File::from(stream)),
                false => open_directory(Path::new(&input.src))
                    .map_err(|errno| fault(errno.to_string()))
                    .map(|dir| {
                        archive::pack_tree(dir.as_fd(), &name, &Selection::Tree, LIMITS, File::from(stream))
                    })?,
            };
            let unpacked = worker.finish();
            match packed {
                // Its other end knows why it ended, if it ended it.
                Err(archive::ArchiveError::Stream(error)) => {
                    unpacked?;
                    return Err(fault(error.to_string()));
                }
                packed => {
                    let done = packed.map_err(|error| fault(error.to_string()))?;
                    unpacked?;
                    if let Some(skipped) = done.skipped.first() {
                        return Err(fault(format!("'{}' is a {}", skipped.name, skipped.why)));
                    }
                }
            }
        }
        Ok(())
    }

    fn copy_out(&self, slot: &Slot) -> Result<(), Fault> {
        for output in &self.outputs {
            let fault =
                |why: String| Fault::refused(Step::Transfer, format!("copy --out {}", output.glob), why);
            let selection = Selection::globs(&[&output.glob]).map_err(|error| fault(error.to_string()))?;
            let literal = Path::new(output.glob.trim_start_matches("./").trim_end_matches('/'));
            let (dir, rename) =
                out_directory(output).map_err(|error| fault(format!("{}: {error}", output.dest)))?;
            let mut worker = transfer::start(&Task::Pack(selection), slot.storage().job(), slot.identity())?;
            let Some(stream) = worker.stream.take() else { continue };
            let rename = rename.as_deref().map(|name| (literal, Path::new(name)));
            let unpacked = archive::unpack_as(dir.as_fd(), File::from(stream), RESULTS, rename);
            let done = worker.finish();
            unpacked.map_err(|error| fault(error.to_string()))?;
            let done = done?;
            if !self.quiet {
                report_skipped(output, &done);
            }
        }
        Ok(())
    }
}

fn outlets() -> Result<[Outlet; 2], Fault> {
    Ok([Outlet::stdout()?, Outlet::stderr()?])
}

fn report_skipped(output: &Output, done: &autodriver_protocol::Transferred) {
    for skipped in &done.skipped {
        say(&format!("--out {}: left out '{}': {}", output.glob, skipped.name.escape_debug(), skipped.why));
    }
    if done.entries == 0 && done.skipped_count == 0 {
        say(&format!("--out {}: no file matches", output.glob));
    }
}

/// Where an input goes in the job directory, as cp(1) would put it.
fn destination(input: &Input, dest: &str, is_file: bool) -> Result<std::path::PathBuf, &'static str> {
    let path = archive::relative(dest.as_bytes())?;
    if is_file && (path.as_os_str().is_empty() || dest.ends_with('/')) {
        let name = Path::new(&input.src).file_name().ok_or("it has no file name")?;
        return Ok(path.join(name));
    }
    Ok(path)
}

/// The directory that results go to, and the file's own name if DEST is one: as cp(1) would.
fn out_directory(output: &Output) -> std::io::Result<(OwnedFd, Option<std::ffi::OsString>)> {
    let dest = Path::new(&output.dest);
    let one_file = !output.glob.contains(['*', '?', '[']) && !output.dest.ends_with('/') && !dest.is_dir();
    let (directory, name) = match (one_file, dest.file_name()) {
        (true, Some(name)) => (dest.parent().unwrap_or(Path::new("")), Some(name.to_owned())),
        _ => (dest, None),
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    Ok((open_directory(directory).map_err(std::io::Error::from)?, name))
}

/// What a driver does before its first job: clears what killed ones left, and goes to where it can make
/// namespaces and cgroups.
///
/// # Errors
/// What could not be done.
pub fn make_ready(facts: &Facts) -> Result<Option<Aside>, Fault> {
    restore::heal(facts)?;
    facts.enter_namespaces()?;
    Aside::go(&facts.hierarchy)
}

/// The signals that end a driver, and those that a first process passes on, as a descriptor.
///
/// # Errors
/// Those of sigprocmask(2) and signalfd(2).
pub fn block_signals() -> Result<SignalFd, Fault> {
    let fault = |errno| Fault::new(Step::Supervise, "receive signals", errno);
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    first::PASSED_ON.into_iter().filter(|_| first::is_first()).for_each(|signal| set.add(signal));
    set.thread_block().map_err(fault)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(fault)
}

fn summary(report: &Report) -> String {
    let seconds = |us: u64| format!("{}.{:02}s", us / 1_000_000, us / 10_000 % 100);
    let mut text = match (&report.fault, report.exit_code, report.signal) {
        (Some(fault), ..) => return format!("{}: {}", report.cause.name(), fault.message),
        (None, Some(code), _) if report.cause == Cause::Exited => format!("exited {code}"),
        (None, _, Some(signal)) if report.cause == Cause::Signaled => format!("died of signal {signal}"),
        _ => report.cause.name().to_owned(),
    };
    let usage = &report.usage;
    text.push_str(&format!(" after {}", seconds(usage.wall_us)));
    if let (Some(user), Some(system)) = (usage.cpu_user_us, usage.cpu_system_us) {
        text.push_str(&format!(", cpu {}", seconds(user + system)));
    }
    if let Some(peak) = usage.memory_peak_bytes {
        text.push_str(&format!(", memory {}M", peak.div_ceil(1 << 20)));
    }
    if !report.limits_hit.is_empty() {
        text.push_str(&format!("; hit: {}", report.limits_hit.join(" ")));
    }
    for leftover in &report.restore.leftovers {
        text.push_str(&format!("; left behind: {} {}", leftover.kind, leftover.what));
    }
    text
}
