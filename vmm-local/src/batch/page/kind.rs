//! What kinds of ends there are, for those who look at many.

use autodriver_protocol::{Cause, Report};

use crate::batch::result::JobResult;
use crate::session::Verdict;

/// How a job ended, in one of few words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Exit status 0.
    Passed,
    /// Another exit status.
    Failed,
    /// Ended by a signal.
    Signaled,
    /// Ended by a limit.
    Limit(Cause),
    /// The caller cancelled it.
    Cancelled,
    /// Nothing can be said about it.
    NotGraded,
}

impl Kind {
    pub(super) fn of(result: &JobResult) -> Kind {
        let verdict = &result.outcome.verdict;
        match verdict {
            Verdict::Report(report) if report.cause == Cause::Cancelled => Kind::Cancelled,
            Verdict::Fault(fault) if fault.cancelled => Kind::Cancelled,
            Verdict::Report(report) if verdict.is_about_the_job() => Kind::of_report(report),
            _ => Kind::NotGraded,
        }
    }

    fn of_report(report: &Report) -> Kind {
        match (report.cause, report.exit_code) {
            (Cause::Exited, Some(0)) => Kind::Passed,
            (Cause::Exited, _) => Kind::Failed,
            (Cause::Signaled, _) => Kind::Signaled,
            (cause, _) => Kind::Limit(cause),
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Kind::Passed => "exited 0",
            Kind::Failed => "exited, not 0",
            Kind::Signaled => "signal",
            Kind::Limit(cause) => cause.name(),
            Kind::Cancelled => "cancelled",
            Kind::NotGraded => "not graded",
        }
    }

    /// The class that gives it its colour.
    pub(super) fn class(self) -> &'static str {
        match self {
            Kind::Passed => "good",
            Kind::Failed | Kind::Signaled => "bad",
            Kind::Limit(_) => "limit",
            Kind::Cancelled | Kind::NotGraded => "fault",
        }
    }
}
