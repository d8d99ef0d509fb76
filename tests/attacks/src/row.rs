//! What a row of the corpus is.

use std::fmt;
use std::time::Duration;

use autodriver_protocol::{Cause, Layer, Report};

use crate::tools::{Attempt, Role};
use crate::HELD;

/// One attack.
#[derive(Clone, Copy)]
pub struct Attack {
    /// The catalogue's name, with a suffix for a variant.
    pub name: &'static str,
    /// What it does, in one line.
    pub does: &'static str,
    /// The program: what it tries in the box.
    pub program: fn(Role) -> Attempt,
    /// The job document, but for the command.
    pub options: &'static str,
    /// The layers that stop it, each by itself. None: it is the driver that copes with it.
    pub stopped_by: &'static [Layer],
    /// How it is shown to work where nothing stops it.
    pub control: Control,
    /// Which jobs there are.
    pub form: Form,
    /// How the report must say that the attacker's job ended.
    pub ends: Ends,
    /// What the report must at least say that the job used: it is what it took.
    pub shows: Usage,
    /// The glob of what is copied out, if anything. One file at least must arrive, and all that do must
    /// say `innocent`, be plain files of who copies, and have the name that follows `innocent: `, if any.
    pub out: Option<&'static str>,
    /// Why it is known to succeed, if it is: a channel that is left open, and that is shown as such.
    pub open: Option<&'static str>,
}

/// What a job took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// Bytes of memory, at the peak.
    pub memory: u64,
}

/// How an attack is shown to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Without the layers in [`Attack::stopped_by`], and these others that stand on them.
    LeaveOut(&'static [Layer]),
    /// With this document instead: a limit is no layer, and what enforces it has substitutes.
    With(&'static str),
    /// Nothing can be left out, for this reason.
    None(&'static str),
}

/// Which jobs an attack consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The attacker alone.
    Alone,
    /// An accomplice - or a victim - before it, whose job has ended.
    After,
    /// An accomplice - or a victim - that runs beside it.
    Beside,
}

/// How the attacker's job must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// By itself, with status 0: what it tried was refused.
    Refused,
    /// With one of these causes: the kernel decides which limit it meets first.
    By(&'static [Cause]),
    /// Either of the two.
    RefusedOrBy(&'static [Cause]),
    /// By this signal of its own doing.
    Signal(i32),
}

impl Ends {
    /// Whether a job that was reported on like this, and printed this, has ended so.
    pub fn are_met(self, report: &Report, output: &str) -> bool {
        let refused = report.cause == Cause::Exited
            && report.exit_code == Some(0)
            && output.lines().any(|line| line.starts_with(HELD));
        match self {
            Ends::Refused => refused,
            Ends::By(causes) => causes.contains(&report.cause),
            Ends::RefusedOrBy(causes) => refused || causes.contains(&report.cause),
            Ends::Signal(signal) => report.cause == Cause::Signaled && report.signal == Some(signal),
        }
    }
}

/// An attack that one job tries, which the layers `stopped_by` refuse, each by itself.
pub(crate) const fn attack(
    name: &'static str,
    does: &'static str,
    program: fn(Role) -> Attempt,
    stopped_by: &'static [Layer],
) -> Attack {
    Attack {
        name,
        does,
        program,
        options: r#"{"wall": "20s"}"#,
        stopped_by,
        control: Control::LeaveOut(&[]),
        form: Form::Alone,
        ends: Ends::Refused,
        shows: Usage { cpu: Duration::ZERO, memory: 0 },
        out: None,
        open: None,
    }
}

/// An attack on a limit that is no layer: its control is a job with the document `control`.
pub(crate) const fn without_limit(
    name: &'static str,
    does: &'static str,
    program: fn(Role) -> Attempt,
    control: &'static str,
) -> Attack {
    Attack { control: Control::With(control), ..attack(name, does, program, &[]) }
}

/// An attack that the driver itself copes with; `why` says what there is instead of a control.
pub(crate) const fn attack_on_driver(
    name: &'static str,
    does: &'static str,
    program: fn(Role) -> Attempt,
    why: &'static str,
) -> Attack {
    Attack { control: Control::None(why), ..attack(name, does, program, &[]) }
}

/// A channel between a job and one beside it that nothing closes, for the reason `why`.
pub(crate) const fn open_channel(
    name: &'static str,
    does: &'static str,
    program: fn(Role) -> Attempt,
    why: &'static str,
) -> Attack {
    let control = Control::None("it is open as it is");
    Attack { control, form: Form::Beside, open: Some(why), ..attack(name, does, program, &[]) }
}

impl Attack {
    /// The layers to leave out so that, of those that stop it, only `alone` is in force; all of
    /// them for `None`. `None` is returned where `alone` cannot be had without the others.
    pub fn left_out(&self, alone: Option<Layer>) -> Option<Vec<Layer>> {
        let Control::LeaveOut(others) = self.control else { return None };
        let mut skip: Vec<Layer> = self.stopped_by.iter().chain(others).copied().collect();
        skip.retain(|layer| Some(*layer) != alone);
        // What stands on a layer goes with it: see `--skip` of `autodriver run`.
        for (layer, above) in [
            (Layer::NoNewPrivs, Layer::Seccomp),
            (Layer::NoNewPrivs, Layer::Landlock),
            (Layer::ProcessTree, Layer::PidNamespace),
        ] {
            if skip.contains(&layer) && !skip.contains(&above) {
                skip.push(above);
            }
        }
        let possible = alone.is_none_or(|alone| !skip.contains(&alone));
        possible.then_some(skip)
    }
}

impl fmt::Debug for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attack").field("name", &self.name).finish_non_exhaustive()
    }
}
