//! From recordings of undisturbed runs to what is tried.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

use super::calls::{row, Object};
use super::tracer::{Deed, Kind, Point, Role, Traced};
use super::workers::Part;
use super::{Choice, Reach};

/// Which process of a job's that is not the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Who {
    /// The driver.
    Driver,
    /// The parent of what becomes the job.
    Init,
    /// What becomes the job, until its execve(2).
    SetUp,
    /// Another child of the driver: it copies files, or keeps the uid.
    Helper,
}

impl Who {
    /// All of them.
    pub const ALL: [Who; 4] = [Who::Driver, Who::Init, Who::SetUp, Who::Helper];

    fn of(role: &Role, jobs: &[&Role]) -> Who {
        match role {
            _ if role.is_driver() => Who::Driver,
            _ if jobs.contains(&role) => Who::SetUp,
            _ if jobs.iter().any(|job| job.parent().as_ref() == Some(role)) => Who::Init,
            _ => Who::Helper,
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Who::Driver => "driver",
            Who::Init => "init",
            Who::SetUp => "set-up",
            Who::Helper => "helper",
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One trial.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) point: Point,
    pub(super) deed: Deed,
    /// Whose call it is.
    pub(super) who: Who,
    /// The whole, for people.
    pub(super) what: String,
}

impl Trial {
    /// Whether it is of this part of a campaign. Who records the calls anew still has the same part.
    pub(super) fn is_in(&self, part: Part) -> bool {
        let mut hasher = DefaultHasher::new();
        self.what.hash(&mut hasher);
        hasher.finish() % part.of == part.number
    }
}

/// The chosen trials at the calls of recordings, in their order; and how many kinds of calls there are. What a
/// driver does before there is a job, and what its children do, is `elsewhere` if another variant has had it.
///
/// # Errors
/// A call that is not in the table.
pub(super) fn trials(
    runs: &[Traced],
    choice: &Choice,
    elsewhere: &mut BTreeSet<Point>,
) -> Result<(Vec<Trial>, usize), String> {
    let mut made = Vec::new();
    let mut known = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    for run in runs {
        let jobs = run.roles_of_jobs();
        for point in &run.calls {
            kinds.insert(&point.kind);
            let is_new = known.insert(point);
            let is_chosen_point = (choice.reach == Reach::All || is_first(point))
                && (elsewhere.insert(point.clone()) || point.kind.phase.1);
            if is_new && is_chosen_point {
                let who = Who::of(&point.kind.role, &jobs);
                made.extend(trials_at(point, who)?.into_iter().filter(|trial| is_chosen(trial, choice)));
            }
        }
    }
    Ok((made, kinds.len()))
}

fn is_chosen(trial: &Trial, choice: &Choice) -> bool {
    choice.role.as_ref().is_none_or(|role| trial.who.name() == role)
        && choice.calls.as_ref().is_none_or(|text| trial.what.contains(text))
}

/// Whether it stands for its kind.
fn is_first(point: &Point) -> bool {
    point.occurrence == 1 || row(point.kind.call).is_some_and(|row| row.object == Object::Each)
}

fn trials_at(point: &Point, who: Who) -> Result<Vec<Trial>, String> {
    let Point { kind: Kind { role, call, object, phase }, occurrence } = point;
    let row = row(*call).ok_or_else(|| {
        format!("{who} makes system call {call}, which has no row in the table of tests/src/faults/calls.rs")
    })?;
    let whose = if who == Who::Helper { format!("{who} {role}") } else { who.to_string() };
    let when = match (who, phase) {
        (Who::Driver, (children, executed)) => {
            format!(" after {children} children{}", if *executed { " and exec" } else { "" })
        }
        _ => String::new(),
    };
    let place = format!("{whose}: {}({object}) #{occurrence}{when}", row.name);
    let mut deeds: Vec<(Deed, String)> =
        row.errors.iter().map(|errno| (Deed::Fail(*errno, row.manner()), format!("{errno:?}"))).collect();
    deeds.push((Deed::KillDriver, "driver killed".into()));
    // At its execve(2) the job has been told to be one: killed there, it died of a signal.
    if who != Who::Driver && *call != libc::SYS_execve {
        deeds.push((Deed::KillCaller, "killed".into()));
    }
    let trial = |(deed, how)| Trial { point: point.clone(), deed, who, what: format!("{place}: {how}") };
    Ok(deeds.into_iter().map(trial).collect())
}
