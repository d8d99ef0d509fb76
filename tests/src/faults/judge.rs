//! Whether a disturbed run went as it must.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Command;
use std::time::Duration;

use autodriver_protocol::report::{LayerState, Restore, RestoreState};
use autodriver_protocol::{Cause, Layer, Report};
use serde::{Deserialize, Serialize};

use super::client::{self, Heard, Served};
use super::sight::Sight;
use super::tracer::{Deed, Traced};
use super::variant::{Folder, Variant};
use crate::autodriver;
use crate::process::wait_until;
use crate::snapshot::Snapshot;

/// How long the kernel may take to end what a killed driver started.
const DYING: Duration = Duration::from_secs(10);

/// A good end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum End {
    /// The verdict on the job is right.
    Right,
    /// The report says that the sandbox could not be made.
    SetupFailed,
    /// The report says that the job could not be followed.
    InternalError,
    /// One sentence, and status 125; there is no report, or it is right, but not all that was asked for is there.
    Refused,
    /// The driver was killed.
    Killed,
    /// Rust's library or the C library ended the driver, with a sentence, for want of the memory it was refused.
    Aborted,
    /// The driver died before its first own call: the C library ends a program that it cannot start.
    NotBegun,
    /// It went well, and the call was not made this time.
    NotMet,
}

impl End {
    /// All of them.
    pub const ALL: [End; 8] = [
        End::Right,
        End::SetupFailed,
        End::InternalError,
        End::Refused,
        End::Killed,
        End::Aborted,
        End::NotBegun,
        End::NotMet,
    ];
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Right => "right",
            End::SetupFailed => "setup-failed",
            End::InternalError => "internal-error",
            End::Refused => "refused",
            End::Killed => "killed",
            End::Aborted => "aborted",
            End::NotBegun => "not-begun",
            End::NotMet => "not-met",
        })
    }
}

/// What an undisturbed job looks like.
#[derive(Debug)]
pub(super) struct Reference {
    sight: BTreeMap<&'static str, (Layer, String)>,
}

impl Reference {
    /// Of one run.
    pub(super) fn of_one(sight: &Sight) -> Reference {
        Reference { sight: sight.0.clone() }
    }

    /// Of several, which must be the same.
    ///
    /// # Errors
    /// What is not.
    pub(super) fn of(runs: &[Traced]) -> Result<Reference, String> {
        let mut sights = runs.iter().flat_map(|run| &run.jobs).map(|(_, sight)| sight);
        let first = Reference::of_one(sights.next().ok_or("no job was seen")?);
        sights.try_for_each(|sight| first.compare(sight, &|_| true))?;
        Ok(first)
    }

    /// Fails where a layer that holds is not to be seen.
    fn compare(&self, sight: &Sight, holds: &dyn Fn(Layer) -> bool) -> Result<(), String> {
        for (name, (layer, expected)) in &self.sight {
            let found = sight.0.get(name).map_or("", |(_, text)| text.as_str());
            if holds(*layer) && found != expected {
                return Err(format!(
                    "out of its box: layer {layer} holds, it is said, but {name} is\n{found}\nand not\n{expected}"
                ));
            }
        }
        Ok(())
    }
}

/// Judges, and puts the machine back.
///
/// # Errors
/// What is wrong.
pub(super) fn judge(
    variant: &Variant,
    reference: &Reference,
    run: &Traced,
    deed: Deed,
    folder: &Folder,
    before: &Snapshot,
) -> Result<End, String> {
    let told = Told::of(run, folder);
    let end = told.as_ref().map_err(Clone::clone).and_then(|told| {
        let ends = judge_end(variant, run, deed, folder, told)?;
        judge_jobs(reference, run, told, &ends)?;
        Ok(ends.into_iter().max().unwrap_or(End::Right))
    });
    let restored = judge_machine(run, told.as_ref().map_or(&[], |told| &told.restores), before);
    let shown = || {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        let report = text(&folder.report());
        let (out, result) = (text(&run.stdout), text(&folder.result()));
        let said = text(&run.stderr);
        let heard = run.heard.as_ref().map_or(String::new(), |heard| format!("; heard {heard:?}"));
        let status = run.status;
        format!("status {status}; stdout '{out}', result '{result}', stderr '{said}'; report {report}{heard}")
    };
    match (end, restored) {
        (Ok(_), Ok(())) if !run.met => Ok(End::NotMet),
        (Ok(end), Ok(())) => Ok(end),
        (Err(why), Ok(())) | (Ok(_), Err(why)) => Err(format!("{why}; {}", shown())),
        (Err(why), Err(too)) => Err(format!("{why}; {too}; {}", shown())),
    }
}

/// What a driver told about jobs.
struct Told {
    reports: Vec<Report>,
    restores: Vec<Restore>,
}

impl Told {
    fn of(run: &Traced, folder: &Folder) -> Result<Told, String> {
        if let Some(heard) = &run.heard {
            let reports = heard.jobs.iter().filter_map(|job| job.report.clone()).collect();
            let restores = heard.jobs.iter().filter_map(|job| job.restore.clone()).collect();
            return Ok(Told { reports, restores });
        }
        let reports: Vec<Report> = read_report(folder)?.into_iter().collect();
        let restores = reports.iter().map(|report| report.restore.clone()).collect();
        Ok(Told { reports, restores })
    }
}

fn read_report(folder: &Folder) -> Result<Option<Report>, String> {
    let text = folder.report();
    match text.is_empty() {
        true => Ok(None),
        false => serde_json::from_slice(&text).map(Some).map_err(|error| format!("broken report: {error}")),
    }
}

fn judge_end(
    variant: &Variant,
    run: &Traced,
    deed: Deed,
    folder: &Folder,
    told: &Told,
) -> Result<Vec<End>, String> {
    if run.hung {
        return Err("it hung".into());
    }
    let verdicts =
        told.reports.iter().map(|report| judge_report(variant, report)).collect::<Result<Vec<_>, _>>()?;
    if let Some(why) = run.heard.as_ref().and_then(|heard| heard.broken.as_ref()) {
        return Err(format!("the host was told what is not the protocol: {why}"));
    }
    if run.met && deed == Deed::KillDriver && run.status == -(libc::SIGKILL) {
        return Ok(vec![End::Killed]);
    }
    match (&run.heard, told.reports.first().zip(verdicts.first())) {
        (Some(heard), _) => judge_heard(variant, run, heard),
        (None, Some(_)) if run.status < 0 => Err(format!("the driver died of signal {}", -run.status)),
        (None, Some((report, end))) => Ok(vec![judge_told(variant, run, folder, report, *end)?]),
        (None, None) => Ok(vec![judge_silent(run)?]),
    }
}

/// The ends of the jobs of one connection. A single fault costs one of them, or the connection.
fn judge_heard(variant: &Variant, run: &Traced, heard: &Heard) -> Result<Vec<End>, String> {
    let ends = heard.jobs.iter().map(|job| judge_served(variant, job)).collect::<Result<Vec<_>, _>>()?;
    let all: Option<Vec<End>> = ends.iter().copied().collect();
    let poisoned = heard
        .jobs
        .iter()
        .any(|job| job.restore.as_ref().is_some_and(|restore| restore.state == RestoreState::Poisoned));
    if heard.torn && run.status == 0 {
        return Err("it ended in the middle of a frame, and nothing says why".into());
    }
    match (all, &heard.farewell) {
        (Some(all), None) if all.len() == client::JOBS && run.status >= 0 => {
            let lines = String::from_utf8_lossy(&run.stderr).lines().count();
            match run.status {
                0 | 123 if all.iter().all(|end| *end != End::Right) && !poisoned => {
                    Err("one fault cost both jobs".into())
                }
                0 => Ok(all),
                123 if poisoned => Ok(all),
                125 if lines == 1 => Ok(vec![End::Refused]),
                status => Err(format!("two jobs served, but status {status}")),
            }
        }
        // The connection ended before.
        (_, Some(farewell)) if farewell.is_empty() => Err("an error that does not say what it is".into()),
        (_, Some(_)) if run.status == 125 => Ok(vec![End::Refused]),
        (_, Some(_)) => Err(format!("it said farewell, and its status is {}", run.status)),
        (_, None) => Ok(vec![judge_silent(run)?]),
    }
}

/// The end of one that was served; none if the connection ended before it did.
fn judge_served(variant: &Variant, job: &Served) -> Result<Option<End>, String> {
    if job.refused.iter().any(String::is_empty) {
        return Err("an error that does not say what it is".into());
    }
    let refused = (!job.refused.is_empty()).then_some(End::Refused);
    // Whether it could be opened at all, only its being refused tells.
    if job.restore.is_none() {
        return Ok(refused);
    }
    let Some(report) = &job.report else {
        return refused.map(Some).ok_or_else(|| "closed without a report, and nothing says why".into());
    };
    let end = judge_report(variant, report)?;
    let whole = job.output == variant.stdout.as_bytes() && job.result == variant.result.as_bytes();
    match end {
        End::Right if !whole && refused.is_none() && !job.left_out => {
            Err("output or result is not whole, and nothing says so".into())
        }
        End::Right => Ok(Some(refused.unwrap_or(end))),
        _ => Ok(Some(end)),
    }
}

/// The end of a driver that left no report.
fn judge_silent(run: &Traced) -> Result<End, String> {
    if !run.begun && run.status != 0 && run.jobs.is_empty() {
        return Ok(End::NotBegun);
    }
    let memory = [libc::SYS_brk, libc::SYS_mmap, libc::SYS_mremap];
    let refused_memory =
        run.last.as_ref().is_some_and(|(role, call)| role.is_driver() && memory.contains(call));
    let lines = String::from_utf8_lossy(&run.stderr).lines().count();
    match run.status {
        125 if lines == 1 => Ok(End::Refused),
        status if status == -libc::SIGABRT && run.met && refused_memory && lines > 0 => Ok(End::Aborted),
        status => Err(format!("no report, but status {status} and {lines} lines on stderr")),
    }
}

/// The end of a driver that left a report, which says this.
fn judge_told(
    variant: &Variant,
    run: &Traced,
    folder: &Folder,
    report: &Report,
    end: End,
) -> Result<End, String> {
    let said = String::from_utf8_lossy(&run.stderr);
    let stdout = String::from_utf8_lossy(&run.stdout);
    // Without Landlock, which the report tells, the job tells it as well.
    let open =
        report.layers.iter().any(|one| one.name == Layer::Landlock && one.state != LayerState::Enforced);
    let stdout = if open { stdout.replacen("open\n", "closed\n", 1) } else { stdout.into_owned() };
    let whole = folder.result() == variant.result.as_bytes() && stdout == variant.stdout;
    match end {
        // What was asked for besides the verdict could not be had, and that was said.
        End::Right if run.status == 125 && said.contains("cannot ") => return Ok(End::Refused),
        End::Right if !whole && !said.contains("left out '") => {
            return Err("output or result is not whole, and nothing says so".into())
        }
        _ => {}
    }
    if report.fault.as_ref().is_some_and(|fault| !said.contains(&fault.message)) {
        return Err("the fault is not on stderr".into());
    }
    let expected = i32::from(report.exit_status());
    if run.status != expected {
        return Err(format!("exit status {} instead of {expected}", run.status));
    }
    Ok(end)
}

fn judge_report(variant: &Variant, report: &Report) -> Result<End, String> {
    let end = match (report.cause, &report.fault) {
        (cause, None) if cause == variant.cause => {
            let exited = variant.exit_code.is_none() || report.exit_code == variant.exit_code;
            let signaled = variant.signal.is_none() || report.signal == variant.signal;
            if !exited || !signaled || report.limits_hit != variant.limits_hit {
                return Err("wrong verdict".into());
            }
            End::Right
        }
        (Cause::SetupFailed, Some(_)) => End::SetupFailed,
        (Cause::InternalError, Some(_)) => End::InternalError,
        _ => return Err("wrong verdict".into()),
    };
    if let Some(fault) = &report.fault {
        if [&fault.step, &fault.object, &fault.message].into_iter().any(String::is_empty) {
            return Err("a fault that does not say what it is".into());
        }
        if report.exit_code.is_some() || !report.limits_hit.is_empty() {
            return Err("a fault that says something about the job".into());
        }
    }
    Ok(end)
}

/// Whether the jobs were in their boxes, as many as there were.
fn judge_jobs(reference: &Reference, run: &Traced, told: &Told, ends: &[End]) -> Result<(), String> {
    let executed = run.jobs.len();
    if ends.iter().filter(|end| **end == End::Right).count() > executed {
        return Err("a verdict on a job that was never executed".into());
    }
    let wanted = run.heard.as_ref().map_or(1, |heard| heard.jobs.len());
    let without = told.reports.iter().filter(|report| report.cause == Cause::SetupFailed).count();
    if executed + without > wanted {
        return Err("the job was executed, though its set-up is said to have failed".into());
    }
    // What one of two reports does not promise, neither job needs to have.
    let holds = |layer: Layer| {
        let mut layers =
            told.reports.iter().flat_map(|report| &report.layers).filter(|one| one.name == layer);
        layers.all(|one| one.state == LayerState::Enforced)
    };
    run.jobs.iter().try_for_each(|(_, sight)| reference.compare(sight, &holds))
}

/// Whether the machine is as the report says, and as it was when `restore` has run.
fn judge_machine(run: &Traced, restores: &[Restore], before: &Snapshot) -> Result<(), String> {
    let is_poisoned = |restore: &&Restore| restore.state == RestoreState::Poisoned;
    if restores.iter().filter(is_poisoned).any(|restore| restore.leftovers.is_empty()) {
        return Err("poisoned, by nothing".into());
    }
    let poisoned = restores.iter().any(|restore| is_poisoned(&restore));
    let mut wrong = Vec::new();
    let is_process = |line: &String| line.starts_with("left: process");
    let wanted = run.heard.as_ref().map_or(1, |heard| heard.jobs.len());
    let restored = restores.len() == wanted && run.status >= 0 && !poisoned;
    // What else a driver that died, or that names what it leaves, has left, `restore` removes.
    let left = lasting(before, |line| restored || is_process(line));
    if restored && !left.is_empty() {
        wrong.push(format!("restored, it is said, but {}", left.join(", ")));
    } else if left.iter().any(is_process) {
        wrong.push(format!("processes go on: {}", left.join(", ")));
    }
    if !left.is_empty() {
        wrong.extend(restore(before));
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("; ")),
    }
}

/// Whether it can be of a job or a driver: not what users of this machine do beside us.
fn is_ours(line: &str) -> bool {
    let uid =
        line.rsplit_once("of uid ").or(line.rsplit_once("key user ")).map(|(_, uid)| uid.parse::<u32>());
    !matches!(uid, Some(Ok(uid)) if uid != 0 && uid != 65534 && !(59_000..=60_000).contains(&uid))
}

fn difference(before: &Snapshot) -> Vec<String> {
    before.difference().into_iter().filter(|line| is_ours(line)).collect()
}

/// What was there from now on until [`DYING`] has passed, of what counts. What others at work on this machine
/// have comes and goes.
fn lasting(before: &Snapshot, counts: impl Fn(&String) -> bool) -> Vec<String> {
    let mut left = difference(before);
    wait_until(DYING, || {
        if left.iter().any(&counts) {
            let now = difference(before);
            left.retain(|line| now.contains(line));
        }
        (!left.iter().any(&counts)).then_some(())
    });
    left
}

/// Lets `autodriver restore` remove what is left; what it does not. A uid whose lock another driver holds while
/// it looks, it leaves alone: then it is asked again.
fn restore(before: &Snapshot) -> Option<String> {
    let mut left = difference(before);
    let mut said = String::new();
    wait_until(DYING, || {
        let restore = Command::new(autodriver()).arg("restore").output().ok()?;
        said = String::from_utf8_lossy(&restore.stderr).trim_end().to_owned();
        let now = difference(before);
        left.retain(|line| now.contains(line));
        left.is_empty().then_some(())
    });
    (!left.is_empty()).then(|| format!("restore, which says '{said}', leaves {}", left.join(", ")))
}
