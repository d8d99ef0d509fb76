//! Fault injection: every system call of a driver and its children, but for the job's own, fails once in each
//! way in which it may, and the driver is killed there once, and the caller once. Whatever happens, there is a
//! right verdict or a clear fault, in bounded time, no job out of its box, and nothing left.
//!
//! A call that is made a thousand times about one thing, as reading a process's `/proc`, is tried where it is
//! made first ([`Reach::Kinds`]), or everywhere.

mod calls;
mod client;
mod judge;
mod object;
mod sight;
mod tally;
mod tracer;
mod trials;
mod variant;
mod workers;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};

use crate::autodriver;
use crate::snapshot::Snapshot;
use calls::Manner;
pub use judge::End;
use judge::Reference;
pub use tally::{Counts, Tally};
use tracer::{Deed, Point, Role, Traced};
pub use trials::Who;
use trials::{trials, Trial};
use variant::{Folder, Place, Variant, VARIANTS};
pub use workers::{apart, share_out, Part};

/// What takes longer hangs, if nothing else is said. The driver's own longest limit, for a set-up in which nothing
/// goes on, is 30 seconds: no fault may make it wait for that.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a job is watched undisturbed, to know the calls: which are made depends on the moment.
const RECORDINGS: usize = 3;
/// How often a point that is not met is tried.
const TRIES: usize = 3;

/// How many of the points are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// The first of each kind: of one process, about one thing, in one phase of the run.
    #[default]
    Kinds,
    /// All.
    All,
    /// About so many of the first of each kind, as many of each variant, evenly from all over the run.
    Sample(usize),
}

/// Which points are tried.
#[derive(Clone, Debug)]
pub struct Choice {
    /// How many.
    pub reach: Reach,
    /// How many are passed by first, in each variant.
    pub start: usize,
    /// Only variants with these names, if there are any.
    pub variants: Vec<String>,
    /// Only those of processes with this name: `driver`, `init`, `set-up`, `helper`.
    pub role: Option<String>,
    /// Only those in whose description this is.
    pub calls: Option<String>,
    /// What takes longer hangs.
    pub patience: Duration,
    /// Say of each point what came of it.
    pub verbose: bool,
    /// Which of them, where they are shared out.
    pub part: Part,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice {
            reach: Reach::Kinds,
            start: 0,
            variants: Vec::new(),
            role: None,
            calls: None,
            patience: PATIENCE,
            verbose: false,
            part: Part::default(),
        }
    }
}

/// Tries the chosen points; `say` gets a line about each variant, and about each failure when it is found. Mounts
/// that others make meanwhile are not seen, and none that a driver leaves is seen by others.
///
/// # Errors
/// What kept the campaign from being made: not a failure of the driver.
pub fn campaign(choice: &Choice, say: &mut (dyn Write + Send)) -> Result<Tally, String> {
    let work = || {
        own_mounts().map_err(|error| format!("no mounts of its own: {error}"))?;
        try_variants(choice, say)
    };
    let done = thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Gives this thread, and all that it starts, a mount namespace of its own, with empty places in it where others
/// leave files; but the driver stays where it is.
fn own_mounts() -> io::Result<()> {
    let programs = autodriver().parent().unwrap_or(Path::new("/")).to_owned();
    unshare(CloneFlags::CLONE_NEWNS)?;
    let opened = File::open(&programs)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for place in ["/tmp", "/var/tmp", "/dev/shm"] {
        mount(Some("none"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=1777"))?;
    }
    if programs.starts_with("/tmp") || programs.starts_with("/var/tmp") {
        fs::create_dir_all(&programs)?;
        let hidden = format!("/proc/thread-self/fd/{}", opened.as_raw_fd());
        mount(Some(hidden.as_str()), &programs, none, MsFlags::MS_BIND, none)?;
    }
    Ok(())
}

fn try_variants(choice: &Choice, say: &mut dyn Write) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let is_chosen =
        |one: &&Variant| choice.variants.is_empty() || choice.variants.iter().any(|name| name == one.name);
    let chosen: Vec<&'static Variant> = VARIANTS.iter().filter(is_chosen).collect();
    let mut tried: HashMap<(Place, bool), BTreeSet<Point>> = HashMap::new();
    for variant in &chosen {
        let tried = tried.entry((variant.place, variant.served)).or_default();
        let plan = plan(variant, choice, chosen.len(), tried)?;
        try_variant(plan, choice, &mut tally, say)?;
    }
    Ok(tally)
}

/// What is done with one variant.
struct Campaign {
    variant: &'static Variant,
    reference: Reference,
    before: Snapshot,
    trials: Vec<Trial>,
    calls: usize,
    kinds: usize,
    took: Duration,
}

/// Watches a variant, and chooses.
fn plan(
    variant: &'static Variant,
    choice: &Choice,
    among: usize,
    tried: &mut BTreeSet<Point>,
) -> Result<Campaign, String> {
    let started = Instant::now();
    let before = Snapshot::take();
    let mut runs =
        (0..RECORDINGS).map(|_| record(variant, &before, choice.patience)).collect::<Result<Vec<_>, _>>()?;
    // A driver that first removes what another has left has more children.
    let plain: Option<Vec<Role>> =
        runs.iter().map(Traced::roles_of_jobs).min().map(|roles| roles.into_iter().cloned().collect());
    runs.retain(|run| plain.as_ref().is_some_and(|plain| run.roles_of_jobs().into_iter().eq(plain)));
    let reference = Reference::of(&runs).map_err(|why| format!("{}: {why}", variant.name))?;
    let (all, kinds) = trials(&runs, choice, tried)?;
    let step = match choice.reach {
        Reach::Sample(number) => all.len().div_ceil((number / among).max(1)).max(1),
        _ => 1,
    };
    let chosen = all.into_iter().skip(choice.start).step_by(step);
    let trials = chosen.filter(|trial| trial.is_in(choice.part)).collect();
    let calls = runs.iter().map(|run| run.calls.len()).max().unwrap_or(0);
    Ok(Campaign { variant, reference, before, trials, calls, kinds, took: started.elapsed() })
}

fn try_variant(
    plan: Campaign,
    choice: &Choice,
    tally: &mut Tally,
    say: &mut dyn Write,
) -> Result<(), String> {
    let Campaign { variant, reference, mut before, trials, calls, kinds, took } = plan;
    let (name, count) = (variant.name, trials.len());
    let _ = writeln!(say, "{name}: {calls} calls of {kinds} kinds, recorded in {took:.1?}; {count} faults");
    tally.of(name).saw(calls, kinds);
    for trial in trials {
        let what = format!("{name}: {}", trial.what);
        let (run, end) = attempt(variant, &reference, &trial, &before, choice.patience)
            .map_err(|why| format!("{what}: {why}"))?;
        if choice.verbose {
            let end = end.as_ref().map_or(String::from("WRONG"), End::to_string);
            let _ = writeln!(say, "{what}: {end} after {:.3?}", run.took);
        }
        let failure = end.as_ref().err().map(|why| format!("WRONG {what}: {why}"));
        tally.of(name).count(trial.who, end.ok(), run.took);
        if let Some(line) = failure {
            let _ = writeln!(say, "{line}");
            tally.failures.push(line);
            // What is left of this one is not the next one's.
            before = Snapshot::take();
        }
    }
    Ok(())
}

/// One disturbed run, repeated if the call was not made.
fn attempt(
    variant: &Variant,
    reference: &Reference,
    trial: &Trial,
    before: &Snapshot,
    patience: Duration,
) -> Result<(Traced, Result<End, String>), String> {
    let mut tries = 0..TRIES;
    loop {
        tries.next();
        let (run, folder) = start(variant, Some(trial), patience)?;
        let end = judge::judge(variant, reference, &run, trial.deed, &folder, before);
        if end != Ok(End::NotMet) || tries.is_empty() {
            return Ok((run, end));
        }
    }
}

fn start(variant: &Variant, trial: Option<&Trial>, patience: Duration) -> Result<(Traced, Folder), String> {
    let folder = variant.folder().map_err(|error| error.to_string())?;
    let deed = trial.map(|trial| (trial.point.clone(), trial.deed));
    let run =
        tracer::run(folder.command(), folder.order(), deed, patience).map_err(|error| error.to_string())?;
    Ok((run, folder))
}

/// Watches an undisturbed run, which must go well.
fn record(variant: &Variant, before: &Snapshot, patience: Duration) -> Result<Traced, String> {
    let (run, folder) = start(variant, None, patience)?;
    let (_, sight) = run.jobs.first().ok_or("the job was never executed")?;
    let reference = Reference::of_one(sight);
    let nothing = Deed::Fail(nix::errno::Errno::UnknownErrno, Manner::Instead);
    match judge::judge(variant, &reference, &run, nothing, &folder, before) {
        Ok(End::NotMet) => Ok(run),
        other => Err(format!("{}: without a fault there is {other:?}", variant.name)),
    }
}
