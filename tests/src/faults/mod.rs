//! Fault injection: every system call of a driver and its children, but for the job's own, fails once in each
//! way in which it may, and the driver is killed there once, and the caller once. Whatever happens, there is a
//! right verdict or a clear fault, in bounded time, no job out of its box, and nothing left.

mod calls;
mod judge;
mod sight;
mod tracer;
mod variant;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::time::Duration;

use crate::snapshot::Snapshot;
use calls::{row, Manner};
pub use judge::End;
use judge::Reference;
use tracer::{Deed, Point, Role, Traced};
use variant::{Variant, VARIANTS};

/// No driver takes longer: a minute is twice its longest own limit, that of a set-up.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a job is watched undisturbed, to know the calls: which are made depends on the moment.
const RECORDINGS: usize = 3;

/// Which points are tried.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Every how-manieth; 0 and 1: all.
    pub every: usize,
    /// From which on.
    pub from: usize,
    /// Only variants with this name.
    pub variant: Option<String>,
    /// Only points in whose description this is.
    pub only: Option<String>,
    /// Say of each point what came of it.
    pub verbose: bool,
}

/// What came of the points.
#[derive(Debug, Default)]
pub struct Tally {
    /// By variant, and by what came of it.
    pub ends: BTreeMap<(&'static str, End), usize>,
    /// What went wrong: one line for each.
    pub failures: Vec<String>,
}

impl Tally {
    /// How many went well.
    pub fn passed(&self) -> usize {
        self.ends.values().sum()
    }
}

/// One trial.
struct Trial {
    point: Point,
    deed: Deed,
    what: String,
}

/// What each process is called: the one that becomes the job, its parent, the driver, and its helpers.
fn label(role: &Role, job: Option<&Role>) -> String {
    match job {
        _ if role.is_driver() => "driver".into(),
        Some(job) if role == job => "job's set-up".into(),
        Some(job) if Some(role) == job.parent().as_ref() => "init".into(),
        _ => format!("helper {role}"),
    }
}

/// The trials at the calls of a recording, in its order.
fn trials(runs: &[Traced]) -> Result<Vec<Trial>, String> {
    let mut made = Vec::new();
    let mut known: BTreeSet<Point> = BTreeSet::new();
    for run in runs {
        let job = run.job.as_ref().map(|(role, _)| role);
        let mut counts: HashMap<(&Role, i64), u32> = HashMap::new();
        for (role, call) in &run.calls {
            let count = counts.entry((role, *call)).or_insert(0);
            *count += 1;
            let point = Point { role: role.clone(), call: *call, occurrence: *count };
            if known.insert(point.clone()) {
                made.extend(trials_at(&point, &label(role, job))?);
            }
        }
    }
    Ok(made)
}

fn trials_at(point: &Point, who: &str) -> Result<Vec<Trial>, String> {
    let row = row(point.call).ok_or_else(|| {
        format!("{who} makes system call {}, which has no row in the table of tests/src/faults", point.call)
    })?;
    let place = format!("{who}, {} #{}", row.name, point.occurrence);
    let mut deeds: Vec<(Deed, String)> =
        row.errors.iter().map(|errno| (Deed::Fail(*errno, row.manner()), format!("{errno:?}"))).collect();
    deeds.push((Deed::KillDriver, "driver killed".into()));
    // At its execve(2) the job has been told to be one: killed there, it died of a signal.
    if !point.role.is_driver() && point.call != libc::SYS_execve {
        deeds.push((Deed::KillCaller, "killed".into()));
    }
    let trial = |(deed, how)| Trial { point: point.clone(), deed, what: format!("{place}: {how}") };
    Ok(deeds.into_iter().map(trial).collect())
}

/// Tries the chosen points; `say` gets a line about each failure when it is found.
///
/// # Errors
/// What kept the campaign from being made: not a failure of the driver.
pub fn campaign(choice: &Choice, say: &mut dyn Write) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for variant in VARIANTS {
        if choice.variant.as_ref().is_none_or(|name| name == variant.name) {
            try_variant(variant, choice, &mut tally, say)?;
        }
    }
    match tally.passed() + tally.failures.len() {
        0 => Err("no point was chosen".into()),
        _ => Ok(tally),
    }
}

fn try_variant(
    variant: &'static Variant,
    choice: &Choice,
    tally: &mut Tally,
    say: &mut dyn Write,
) -> Result<(), String> {
    let mut before = Snapshot::take();
    let mut runs = Vec::new();
    for _ in 0..RECORDINGS {
        runs.push(record(variant, &before)?);
    }
    let reference = Reference::of(&runs).map_err(|why| format!("{}: {why}", variant.name))?;
    let chosen = |trial: &Trial| choice.only.as_ref().is_none_or(|text| trial.what.contains(text));
    let trials = trials(&runs)?.into_iter().filter(chosen);
    for trial in trials.skip(choice.from).step_by(choice.every.max(1)) {
        let what = format!("{}: {}", variant.name, trial.what);
        let mut folder = variant.folder().map_err(|error| error.to_string())?;
        let run = tracer::run(folder.command(), Some((trial.point, trial.deed)), LIMIT)
            .map_err(|error| format!("{what}: {error}"))?;
        let end = judge::judge(variant, &reference, &run, trial.deed, &folder, &before);
        if choice.verbose {
            let _ = writeln!(say, "{what}: {end:?} after {:?}", run.took);
        }
        match end {
            Ok(end) => *tally.ends.entry((variant.name, end)).or_insert(0) += 1,
            Err(why) => {
                let line = format!("FAILED {what}: {why}");
                let _ = writeln!(say, "{line}");
                tally.failures.push(line);
                // What is left of this one is not the next one's.
                before = Snapshot::take();
            }
        }
    }
    Ok(())
}

/// Watches an undisturbed run, which must go well.
fn record(variant: &Variant, before: &Snapshot) -> Result<Traced, String> {
    let mut folder = variant.folder().map_err(|error| error.to_string())?;
    let run = tracer::run(folder.command(), None, LIMIT).map_err(|error| error.to_string())?;
    let (_, sight) = run.job.as_ref().ok_or("the job was never executed")?;
    let reference = Reference::of_one(sight);
    let nothing = Deed::Fail(nix::errno::Errno::UnknownErrno, Manner::Instead);
    match judge::judge(variant, &reference, &run, nothing, &folder, before) {
        Ok(End::NotMet) => Ok(run),
        other => Err(format!("{}: without a fault there is {other:?}", variant.name)),
    }
}
