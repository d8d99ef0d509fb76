//! How a job ended for the caller: what the machine reports of it, or that no report can be had.

use std::fmt;
use std::time::Duration;

use autodriver_protocol::layer::Layer;
use autodriver_protocol::report::{
    FaultReport, LayerReport, LayerState, Leftover, Restore, RestoreState, REPORT_VERSION,
};
use autodriver_protocol::{Cause, Report};

use super::SessionError;
use crate::text;

/// Exit status when nothing can be said about the job.
pub const EXIT_FAULT: u8 = 125;
/// Most characters of a line for people; the whole text is in the report.
pub(super) const LINE_MAX: usize = 4096;
/// Exit status when the caller cancelled: as a shell reports what SIGTERM ended.
const EXIT_CANCELLED: u8 = 143;

/// A step in the life of a job. Declared in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Looking at what was asked, before any machine is.
    Prepare,
    /// Signatures and `hello`.
    Connect,
    /// `open`.
    Open,
    /// `put`.
    Put,
    /// `run`.
    Run,
    /// `get`.
    Get,
    /// `close`.
    Close,
}

impl Step {
    /// The word used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Step::Prepare => "prepare",
            Step::Connect => "connect",
            Step::Open => "open",
            Step::Put => "put",
            Step::Run => "run",
            Step::Get => "get",
            Step::Close => "close",
        }
    }
}

/// Why there is no verdict on the job: a fault of the machine, the channel or the request.
#[derive(Clone, Debug)]
pub struct Fault {
    /// During which step.
    pub step: Step,
    /// One sentence: what, which value, what to do.
    pub message: String,
    /// Whether the machine can no longer be spoken to, or lies.
    pub lost: bool,
    /// Whether it was the caller who wanted no verdict.
    pub cancelled: bool,
    /// The report, when the fault came after it.
    pub report: Option<Box<Report>>,
}

impl Fault {
    /// A fault of the request, or of this side; the machine is as good as it was.
    pub fn here(step: Step, why: &dyn fmt::Display) -> Fault {
        let message = why.to_string();
        Fault { step, message, lost: false, cancelled: false, report: None }
    }

    /// The fault that `error` is; `message` says more than it alone does.
    pub(super) fn of(step: Step, error: &SessionError, message: String) -> Fault {
        let cancelled = matches!(error, SessionError::Cancelled);
        Fault { step, message, lost: error.ends_connection(), cancelled, report: None }
    }

    /// The same, with the report that came before.
    #[must_use]
    pub(super) fn after(self, report: Option<Report>) -> Fault {
        Fault { report: report.map(Box::new), ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            // Nothing was begun: what is wrong is in the sentence.
            Step::Prepare => f.write_str(&self.message),
            step => write!(f, "{}: {}", step.name(), self.message),
        }
    }
}

impl std::error::Error for Fault {}

/// How a job ended. There is always one.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// What the machine reports. Also a report can say that the sandbox failed.
    Report(Box<Report>),
    /// Nothing can be said about the job.
    Fault(Fault),
}

impl Verdict {
    /// The exit status of `run`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Verdict::Report(report) => report.exit_status(),
            Verdict::Fault(fault) if fault.cancelled => EXIT_CANCELLED,
            Verdict::Fault(_) => EXIT_FAULT,
        }
    }

    /// Whether this says something about the job, rather than about the machine.
    pub fn is_about_the_job(&self) -> bool {
        match self {
            Verdict::Report(report) => {
                let graded =
                    !matches!(report.cause, Cause::SetupFailed | Cause::InternalError | Cause::Cancelled);
                graded && report.restore.state == RestoreState::Restored
            }
            Verdict::Fault(_) => false,
        }
    }

    /// A few words: `exited 0`, `wall-limit`, `connect failed`.
    pub fn summary(&self) -> String {
        match self {
            Verdict::Report(report) => match (report.cause, report.exit_code, report.signal) {
                (Cause::Exited, Some(code), _) => format!("exited {code}"),
                (Cause::Signaled, _, Some(signal)) => format!("signal {signal}"),
                (cause, ..) => cause.name().to_owned(),
            },
            Verdict::Fault(fault) if fault.cancelled => Cause::Cancelled.name().to_owned(),
            Verdict::Fault(fault) => format!("{} failed", fault.step.name()),
        }
    }

    /// The line for people at the end of `run`, harmless and not too long, whoever wrote it.
    pub fn line(&self) -> String {
        text::shortened(&text::printable(&self.sentence()), LINE_MAX)
    }

    fn sentence(&self) -> String {
        let report = match self {
            Verdict::Report(report) => report,
            Verdict::Fault(fault) => return fault.to_string(),
        };
        if let Some(fault) = &report.fault {
            return format!("{}: {}", report.cause.name(), fault.message);
        }
        let mut line = format!("{}, wall {}", self.summary(), micros(report.usage.wall_us));
        if let (Some(user), Some(system)) = (report.usage.cpu_user_us, report.usage.cpu_system_us) {
            line += &format!(", cpu {}", micros(user.saturating_add(system)));
        }
        if let Some(peak) = report.usage.memory_peak_bytes {
            line += &format!(", memory {}", text::size(peak));
        }
        if !report.limits_hit.is_empty() {
            line += &format!(", limits hit: {}", report.limits_hit.join(" "));
        }
        if report.restore.state == RestoreState::Poisoned {
            let left = report.restore.leftovers.iter().map(|left| format!("{} {}", left.kind, left.what));
            line += &format!(", machine poisoned: {}", left.collect::<Vec<_>>().join("; "));
        }
        line
    }

    /// The layers that were not in force as they should be, for people; `None`: all were.
    pub fn weaker(&self) -> Option<String> {
        let Verdict::Report(report) = self else { return None };
        report.weaker().map(|line| text::shortened(&text::printable(&line), LINE_MAX))
    }

    /// The report, or one made from the fault, so that whoever waits for it never waits in vain.
    pub fn to_report(&self) -> Report {
        match self {
            Verdict::Report(report) => (**report).clone(),
            Verdict::Fault(Fault { report: Some(report), lost: false, .. }) => (**report).clone(),
            Verdict::Fault(Fault { report: Some(report), step, message, .. }) => {
                // What it said of the machine came from a machine that is lost now.
                lost(report, *step, message)
            }
            Verdict::Fault(fault) => report_of(fault),
        }
    }
}

/// A job has its report, but nobody knows what it left behind.
pub(super) fn lost(report: &Report, step: Step, message: &str) -> Report {
    let what = format!("not known: the machine was lost at {}: {message}", step.name());
    let mut restore = report.restore.clone();
    restore.leftovers.push(Leftover { kind: "machine".to_owned(), what });
    Report { restore: Restore::from_leftovers(restore.leftovers), ..report.clone() }
}

fn micros(us: u64) -> String {
    text::time(Duration::from_micros(us))
}

fn report_of(fault: &Fault) -> Report {
    let cause = match fault {
        Fault { cancelled: true, .. } => Cause::Cancelled,
        Fault { step: Step::Run | Step::Get | Step::Close, .. } => Cause::InternalError,
        _ => Cause::SetupFailed,
    };
    let layer = |name| LayerReport {
        name,
        state: LayerState::Absent,
        by: None,
        reason: Some("not known: the machine gave no report".to_owned()),
        remedy: None,
    };
    let unknown = fault.lost && fault.step >= Step::Open;
    let leftover =
        Leftover { kind: "process".to_owned(), what: "not known: the machine was lost".to_owned() };
    Report {
        version: REPORT_VERSION,
        cause,
        exit_code: None,
        signal: None,
        limits_hit: Vec::new(),
        usage: Default::default(),
        output: Default::default(),
        layers: Layer::ALL.map(layer).to_vec(),
        restore: Restore::from_leftovers(unknown.then_some(leftover).into_iter().collect()),
        fault: (cause != Cause::Cancelled).then(|| FaultReport {
            step: fault.step.name().to_owned(),
            object: "machine".to_owned(),
            errno: String::new(),
            message: fault.message.clone(),
            remedy: None,
        }),
        timing: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::report;
    use super::*;

    #[test]
    fn there_is_an_exit_status_and_a_report_for_every_end() {
        for (cause, code) in [
            (Cause::Exited, 3),
            (Cause::Signaled, 139),
            (Cause::WallLimit, 124),
            (Cause::MemoryLimit, 124),
            (Cause::SyscallDenied, 124),
            (Cause::Cancelled, 143),
            (Cause::SetupFailed, 125),
            (Cause::InternalError, 125),
        ] {
            assert_eq!(Verdict::Report(Box::new(report(cause))).exit_code(), code, "{cause:?}");
        }
        let mut poisoned = report(Cause::Exited);
        poisoned.restore.state = RestoreState::Poisoned;
        assert_eq!(Verdict::Report(Box::new(poisoned)).exit_code(), 123);
        for (errno, code) in [("ENOENT", 127), ("EACCES", 126)] {
            let mut missing = report(Cause::SetupFailed);
            let fault = missing.fault.as_mut().unwrap();
            (fault.step, fault.errno, fault.object) = ("exec".into(), errno.into(), "execute x".into());
            assert_eq!(Verdict::Report(Box::new(missing)).exit_code(), code);
        }
        let lost = Fault { lost: true, ..Fault::here(Step::Run, &"gone") };
        let made = Verdict::Fault(lost).to_report();
        assert_eq!((made.cause, made.restore.state), (Cause::InternalError, RestoreState::Poisoned));
        let never = Verdict::Fault(Fault::here(Step::Prepare, &"no")).to_report();
        assert_eq!((never.cause, never.restore.state), (Cause::SetupFailed, RestoreState::Restored));
    }
}
