//! One job of Tango's: from the options to the plan, and from the report to what is said of it.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use autodriver_protocol::job::{Bind, Net};
use autodriver_protocol::report::{Leftover, Report};
use autodriver_protocol::units::{Size, Time};
use autodriver_protocol::{Cause, Options};
use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::sys::resource::{Resource, RLIM_INFINITY};
use nix::sys::signalfd::SignalFd;

use super::arguments::Arguments;
use super::caller::Caller;
use super::failure::{Failure, OS_ERROR, TIMEOUT};
use super::grader::{self, Grader};
use super::log::{self, Log};
use super::moving::Source;
use super::output::{Ending, Output};
use super::shed;
use super::voice::Voice;
use super::witness::Witness;
use crate::facts::{self, Facts};
use crate::fault::errno_of;
use crate::follow::follow;
use crate::plan::{plan, Plan, User};
use crate::run::{block_signals, make_ready};
use crate::sandbox::aside::Aside;
use crate::sandbox::storage::OPEN;
use crate::slot::Slot;
use crate::transfer::ENTRIES_MAX;
use crate::uids;

/// Executed before any make that the path knows.
const MAKE: &std::ffi::CStr = c"/usr/bin/make";
/// Longer than any job takes: no limit.
const UNLIMITED: Duration = Duration::from_secs(u32::MAX as u64);
/// More processes than a machine has.
const PIDS_MAX: u32 = 1 << 22;

/// Runs it; the exit status.
pub(super) fn run(
    arguments: &Arguments,
    voice: &Voice,
    witness: Witness,
    caller: Caller,
    grader: Grader,
) -> Result<u8, Failure> {
    let requested = Instant::now();
    let signals = block_signals().map_err(|fault| Failure::of(&fault))?;
    let source = Source::open(&arguments.directory, caller)?;
    let changed = nix::unistd::chdir("/");
    changed.map_err(|errno| Failure::os("Error changing directories", errno))?;
    let (grader, facts, _aside) = take_over(grader)?;
    let plan = make_plan(arguments, &source.name, &grader, &facts)?;
    let slot = Slot::open(&plan.user, &facts, facts.half_memory, ENTRIES_MAX);
    let slot = slot.map_err(|fault| Failure::of(&fault))?;
    let run = Run { arguments, voice, grader: &grader, facts: &facts, signals: &signals, requested };
    run.in_slot(slot, plan, source, witness)
}

/// What a driver does before its job: the account is for jobs, and what killed drivers left is cleared.
fn take_over(grader: Grader) -> Result<(Grader, Facts, Option<Aside>), Failure> {
    let grader = with_real_home(grader)?;
    uids::dedicate(grader.ids.uid, Path::new(&grader.home));
    let facts = facts::probe().map_err(|fault| Failure::of(&fault))?;
    let aside = make_ready(&facts).map_err(|fault| Failure::of(&fault))?;
    Ok((grader, facts, aside))
}

/// What the next driver would do first, if this one was killed; says what could not be cleared.
pub(super) fn clear_up(grader: Grader) -> Vec<String> {
    let clear = || {
        let (grader, facts, _aside) = take_over(grader)?;
        let user = User::Dedicated { ids: grader.ids, home: grader.home.clone() };
        let slot = Slot::open(&user, &facts, facts.half_memory, ENTRIES_MAX);
        let slot = slot.map_err(|fault| Failure::of(&fault))?;
        let kept = slot.home().and_then(log::remove).map(log_left);
        Ok(kept.into_iter().chain(slot.close()).map(|left| not_cleared(&left)).collect())
    };
    clear().unwrap_or_else(|failure: Failure| vec![failure.to_string()])
}

fn log_left(why: Errno) -> Leftover {
    Leftover { kind: "file".into(), what: format!("output.log: {why}") }
}

fn not_cleared(left: &Leftover) -> String {
    format!("Error cleaning up: {} {} is still there", left.kind, left.what)
}

/// The home without links on the way: it is looked up again by what cleans up.
fn with_real_home(grader: Grader) -> Result<Grader, Failure> {
    let text = format!("Error changing directories to {}", grader.home);
    let home = std::fs::canonicalize(&grader.home).map_err(|error| Failure::os(&text, errno_of(&error)))?;
    let home = home.into_os_string().into_string().map_err(|_| Failure::new(OS_ERROR, text))?;
    Ok(Grader { home, ..grader })
}

/// The defaults of `autodriver run`, but for what Tango's users have: the network of the container, whose
/// own decision it is, 32-bit programs, and a stack that may be raised.
fn make_plan(arguments: &Arguments, name: &str, grader: &Grader, facts: &Facts) -> Result<Plan, Failure> {
    if let Err(why) = &facts.own_uids {
        return Err(Failure::new(
            OS_ERROR,
            format!("Error setting user ID: a job cannot have one here ({why})"),
        ));
    }
    let given = |value: u32| (value != 0).then_some(value);
    let pids = given(arguments.nproc).map(|pids| pids.min(PIDS_MAX).into());
    let options = Options {
        command: vec!["make".to_owned()],
        cwd: Some(name.to_owned()),
        net: Some(Net::Host),
        abi32: true,
        wall: Some(Time(given(arguments.timeout).map_or(UNLIMITED, |s| Duration::from_secs(s.into())))),
        pids,
        nproc: pids,
        fsize: Some(Size(given(arguments.fsize).map_or(RLIM_INFINITY, u64::from))),
        // All of it comes by, and is bounded where it is kept.
        output: Some(Size(u64::MAX)),
        bind: if facts.mounts() { shown_of(&grader.home, name) } else { Vec::new() },
        ..Options::default()
    };
    let mut plan = plan(options, facts).map_err(|refusal| Failure::new(OS_ERROR, refusal.0))?;
    plan.program = Some(MAKE.to_owned());
    plan.home = grader.home.clone();
    plan.user = User::Dedicated { ids: grader.ids, home: grader.home.clone() };
    plan.open = OPEN.map(str::to_owned).to_vec();
    // Tango's jobs have none, and their output is compared.
    plan.env.retain(|(name, _)| name != "LANG");
    // Another account may have the same uid.
    plan.env.extend(["USER", "LOGNAME"].map(|name| (name.to_owned(), grader::NAME.to_owned())));
    for row in plan.rlimits.iter_mut().filter(|row| row.resource == Resource::RLIMIT_STACK) {
        row.hard = RLIM_INFINITY;
    }
    shed::clamp(&mut plan.rlimits);
    Ok(plan)
}

/// What an image has put into the home of the account, for a job whose home is its own: to be read.
fn shown_of(home: &str, name: &str) -> Vec<Bind> {
    let entries = std::fs::read_dir(home).into_iter().flatten().flatten();
    let shown = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_file()));
    let names = shown.filter_map(|entry| entry.file_name().into_string().ok());
    let names = names.filter(|entry| entry != name && entry != log::NAME);
    let bind = |entry| {
        let path = format!("{home}/{entry}");
        Bind { src: path.clone(), dest: path, writable: false }
    };
    names.map(bind).collect()
}

/// What a run goes by.
struct Run<'a> {
    arguments: &'a Arguments,
    voice: &'a Voice,
    grader: &'a Grader,
    facts: &'a Facts,
    signals: &'a SignalFd,
    requested: Instant,
}

impl Run<'_> {
    /// Runs the job and puts the machine back, and only then says anything: nothing follows the output.
    fn in_slot(&self, mut slot: Slot, plan: Plan, source: Source, witness: Witness) -> Result<u8, Failure> {
        let ended = self.follow(&mut slot, plan, source, witness);
        let mut left = Vec::new();
        match &ended {
            Ok((report, _)) => left.extend(report.restore.leftovers.iter().cloned()),
            Err(_) => slot.abandon(self.facts),
        }
        if let Some(home) = slot.home() {
            left.extend(log::remove(home).map(log_left));
        }
        left.extend(slot.close());
        let left: Vec<String> = left.iter().map(not_cleared).collect();
        match ended {
            Ok((report, output)) => self.tell(&report, output, left),
            Err(failure) => {
                left.iter().for_each(|line| super::failure::mutter(line));
                Err(failure)
            }
        }
    }

    fn follow(
        &self,
        slot: &mut Slot,
        plan: Plan,
        source: Source,
        witness: Witness,
    ) -> Result<(Report, Output), Failure> {
        let ids = self.grader.ids;
        let Some(home) = slot.home() else { return Err(Failure::new(OS_ERROR, "Error using the home")) };
        let log =
            Log::create(home, ids.uid).map_err(|errno| Failure::os("Error opening output file", errno))?;
        source.move_to(slot.storage().job(), ids)?;
        let mut output = Output::new(self.arguments, self.voice, log, witness)?;
        let job = slot.start(plan, self.facts, self.requested, None, true);
        let job = job.map_err(|fault| Failure::of(&fault))?;
        let outcome = follow(job, slot, self.signals, &mut output).map_err(|fault| Failure::of(&fault))?;
        Ok((slot.conclude(outcome), output))
    }

    fn tell(&self, report: &Report, output: Output, left: Vec<String>) -> Result<u8, Failure> {
        let (mut ending, status) = self.ending(report);
        let status = if left.is_empty() { status } else { OS_ERROR };
        ending.notes = left;
        if !matches!(report.cause, Cause::Exited | Cause::Signaled | Cause::WallLimit)
            && report.fault.is_none()
        {
            ending.notes.insert(0, format!("The job was ended: {}", report.cause.name()));
        }
        if let (Voice::Timed(_), Some((size, limit))) = (self.voice, output.elided()) {
            let text = format!("Output size {size} > limit {limit} -- will elide in the middle");
            ending.lines.push(self.voice.line(&text));
        }
        output.deliver(ending, self.signals.as_fd())?;
        Ok(status)
    }

    /// What is said of how it ended, and the exit status.
    fn ending(&self, report: &Report) -> (Ending, u8) {
        let Run { arguments, voice, .. } = self;
        let (how, status) = match (&report.fault, report.cause) {
            (Some(fault), _) => (voice.failure(&Failure::new(OS_ERROR, fault.message.clone())), OS_ERROR),
            (None, Cause::WallLimit) => {
                (voice.error(&format!("Job timed out after {} seconds", arguments.timeout)), TIMEOUT)
            }
            (None, Cause::Cancelled) => {
                (voice.failure(&Failure::new(OS_ERROR, "Job was cancelled by a signal")), OS_ERROR)
            }
            // As a shell says it, of a job that a limit has ended too.
            (None, _) => {
                let code = report.exit_code.unwrap_or(128 + report.signal.unwrap_or(SIGKILL));
                (voice.line(&format!("Job exited with status {code}")), 0)
            }
        };
        if matches!(voice, Voice::Plain) {
            return (Ending { lines: vec![how], ..Ending::default() }, status);
        }
        let duration = self.requested.elapsed().as_secs();
        let mut lines = vec![how, voice.line(&format!("Test terminates. Duration: {duration} seconds"))];
        if status == 0 {
            lines.swap(0, 1); // an error comes before the end
        }
        if arguments.interval != 0 {
            let interval = arguments.interval;
            let text = format!(
                "Timestamps inserted at {interval}-second or larger intervals, depending on output rates"
            );
            lines.push(voice.line(&text));
        }
        lines.push(voice.line("Also check end of output for potential errors"));
        let last = (status == TIMEOUT).then(|| voice.error("Job timed out"));
        (Ending { lines, notes: Vec::new(), last }, status)
    }
}
