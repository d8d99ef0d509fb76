//! The verdict: from what happened to the word in the report. Pure, and tested as a table.

use autodriver_protocol::Cause;
use nix::libc::{SIGSYS, SIGXCPU, SIGXFSZ};

use crate::fault::{Fault, Step};

/// How the job's first process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Happened {
    /// Which limit, or whose wish, made the driver kill the job.
    pub killed: Option<Cause>,
    /// How the first process ended, if init could say so.
    pub ended: Option<Ended>,
    /// A fault of a child's set-up.
    pub fault: Option<Fault>,
    /// The program was executed.
    pub executed: bool,
    /// The OOM killer found a process of the job.
    pub oom_killed: bool,
    /// The storage had no byte left at the end.
    pub disk_full: bool,
    /// The storage had no inode left at the end.
    pub inodes_full: bool,
    /// It had none at some time.
    pub disk_seen_full: bool,
    /// As `disk_seen_full`.
    pub inodes_seen_full: bool,
    /// The fork limit refused something.
    pub forks_refused: bool,
    /// More output than the cap.
    pub output_over: bool,
}

/// The words of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why it ended.
    pub cause: Cause,
    /// Its status, if it exited.
    pub exit_code: Option<i32>,
    /// Its signal, if it died of one.
    pub signal: Option<i32>,
    /// Limits it ran into.
    pub limits_hit: Vec<&'static str>,
    /// With `setup-failed` and `internal-error`.
    pub fault: Option<Fault>,
}

/// Judges.
pub fn judge(happened: Happened) -> Verdict {
    let (exit_code, signal) = match happened.ended {
        Some(Ended::Exited(status)) => (Some(status), None),
        Some(Ended::Signaled(signal)) => (None, Some(signal)),
        None => (None, None),
    };
    let limits_hit = limits_hit(&happened);
    let made = |cause, fault: Option<Fault>| match fault {
        // It says nothing about the job.
        Some(_) => Verdict { cause, exit_code: None, signal: None, limits_hit: Vec::new(), fault },
        None => Verdict { cause, exit_code, signal, limits_hit: limits_hit.clone(), fault },
    };
    if let Some(fault) = happened.fault {
        return made(fault.cause(), Some(fault));
    }
    if let Some(cause) = happened.killed {
        return made(cause, None);
    }
    let full = happened.disk_full || happened.inodes_full;
    match happened.ended {
        _ if happened.oom_killed => made(Cause::MemoryLimit, None),
        // How the set-up ended says nothing about the program, which was not executed yet.
        Some(_) if !happened.executed => {
            let why = "its process died before it could execute the program (was it killed?)";
            made(Cause::SetupFailed, Some(Fault::refused(Step::Init, "set up the job's sandbox", why)))
        }
        // It failed, and there was no room: that is why. A job that copes has not failed.
        Some(ended) if full && ended != Ended::Exited(0) => made(Cause::DiskLimit, None),
        Some(Ended::Exited(_)) => made(Cause::Exited, None),
        Some(Ended::Signaled(SIGXFSZ)) => made(Cause::DiskLimit, None),
        Some(Ended::Signaled(SIGXCPU)) => made(Cause::CpuLimit, None),
        Some(Ended::Signaled(SIGSYS)) => made(Cause::SyscallDenied, None),
        Some(Ended::Signaled(_)) => made(Cause::Signaled, None),
        None => {
            let (step, what) = match happened.executed {
                true => (Step::Supervise, "follow the job to its end"),
                false => (Step::Init, "set up the job's sandbox"),
            };
            let fault = Fault::refused(step, what, "init died without a word (was it killed?)");
            made(fault.cause(), Some(fault))
        }
    }
}

fn limits_hit(happened: &Happened) -> Vec<&'static str> {
    let killed = |cause| happened.killed == Some(cause);
    let signaled = |signal| happened.ended == Some(Ended::Signaled(signal));
    let rows = [
        ("wall", killed(Cause::WallLimit)),
        ("cpu", killed(Cause::CpuLimit) || signaled(SIGXCPU)),
        ("idle", killed(Cause::IdleLimit)),
        ("memory", killed(Cause::MemoryLimit) || happened.oom_killed),
        ("pids", happened.forks_refused),
        ("output", happened.output_over),
        ("fsize", signaled(SIGXFSZ)),
        ("disk", happened.disk_full || happened.disk_seen_full),
        ("inodes", happened.inodes_full || happened.inodes_seen_full),
    ];
    rows.into_iter().filter(|(_, hit)| *hit).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(ended: Ended) -> Happened {
        Happened { ended: Some(ended), executed: true, ..Happened::default() }
    }

    #[test]
    fn the_table() {
        let exit = |status| ended(Ended::Exited(status));
        let signal = |number| ended(Ended::Signaled(number));
        for (happened, cause, hit) in [
            (exit(0), Cause::Exited, ""),
            (exit(2), Cause::Exited, ""),
            (signal(11), Cause::Signaled, ""),
            (signal(9), Cause::Signaled, ""),
            (signal(SIGSYS), Cause::SyscallDenied, ""),
            (signal(SIGXFSZ), Cause::DiskLimit, "fsize"),
            (signal(SIGXCPU), Cause::CpuLimit, "cpu"),
            (Happened { killed: Some(Cause::WallLimit), ..exit(0) }, Cause::WallLimit, "wall"),
            (Happened { killed: Some(Cause::Cancelled), ..signal(15) }, Cause::Cancelled, ""),
            (Happened { oom_killed: true, ..signal(9) }, Cause::MemoryLimit, "memory"),
            (Happened { oom_killed: true, ..exit(2) }, Cause::MemoryLimit, "memory"),
            (Happened { disk_full: true, ..exit(2) }, Cause::DiskLimit, "disk"),
            (Happened { disk_full: true, ..exit(0) }, Cause::Exited, "disk"),
            (Happened { inodes_full: true, ..exit(1) }, Cause::DiskLimit, "inodes"),
            (Happened { disk_seen_full: true, ..exit(1) }, Cause::Exited, "disk"),
            (
                Happened { disk_seen_full: true, killed: Some(Cause::DiskLimit), ..signal(9) },
                Cause::DiskLimit,
                "disk",
            ),
            (Happened { forks_refused: true, ..exit(0) }, Cause::Exited, "pids"),
            (Happened { output_over: true, ..exit(0) }, Cause::Exited, "output"),
            (Happened { executed: true, ..Happened::default() }, Cause::InternalError, ""),
            (Happened { executed: false, ..signal(9) }, Cause::SetupFailed, ""),
            (Happened { executed: false, disk_full: true, ..signal(9) }, Cause::SetupFailed, ""),
            (Happened::default(), Cause::SetupFailed, ""),
        ] {
            let verdict = judge(happened.clone());
            assert_eq!(verdict.cause, cause, "{happened:?}");
            assert_eq!(verdict.limits_hit.join(" "), hit, "{happened:?}");
        }
    }

    #[test]
    fn a_fault_is_never_a_verdict_on_the_job() {
        let fault = Fault::new(Step::Mounts, "mount /proc", nix::errno::Errno::EPERM);
        let verdict = judge(Happened { fault: Some(fault), oom_killed: true, ..ended(Ended::Exited(125)) });
        assert_eq!(verdict.cause, Cause::SetupFailed);
        assert!(verdict.exit_code.is_none() && verdict.limits_hit.is_empty());
    }
}
