//! What the caller is told: one JSON object, version 1.

use serde::{Deserialize, Serialize};

use crate::layer::Layer;

/// The version of [`Report`] written by this crate.
pub const REPORT_VERSION: u32 = 1;

/// Why the job ended. Whose fault it is, is in the type: the last three say nothing of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It exited; `exit_code` says how.
    Exited,
    /// It died of a signal that no limit sent; `signal` says which.
    Signaled,
    /// `--wall` passed.
    WallLimit,
    /// `--cpu` used up by the whole tree.
    CpuLimit,
    /// No output for `--idle`.
    IdleLimit,
    /// More than `--memory`.
    MemoryLimit,
    /// More than `--output`, with `--on-output kill`.
    OutputLimit,
    /// More than `--disk`, `--inodes` or `--fsize`.
    DiskLimit,
    /// Killed for a system call of a foreign ABI.
    SyscallDenied,
    /// The caller cancelled it, or went away.
    Cancelled,
    /// The sandbox could not be set up; nothing ran.
    SetupFailed,
    /// The driver could not follow the job to its end.
    InternalError,
}

impl Cause {
    /// The word used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Cause::Exited => "exited",
            Cause::Signaled => "signaled",
            Cause::WallLimit => "wall-limit",
            Cause::CpuLimit => "cpu-limit",
            Cause::IdleLimit => "idle-limit",
            Cause::MemoryLimit => "memory-limit",
            Cause::OutputLimit => "output-limit",
            Cause::DiskLimit => "disk-limit",
            Cause::SyscallDenied => "syscall-denied",
            Cause::Cancelled => "cancelled",
            Cause::SetupFailed => "setup-failed",
            Cause::InternalError => "internal-error",
        }
    }

    /// Whether a limit ended the job (exit status 124 of `run`).
    pub fn is_limit(self) -> bool {
        matches!(
            self,
            Cause::WallLimit
                | Cause::CpuLimit
                | Cause::IdleLimit
                | Cause::MemoryLimit
                | Cause::OutputLimit
                | Cause::DiskLimit
                | Cause::SyscallDenied
        )
    }
}

/// How a layer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// In force, by its own means.
    Enforced,
    /// In force by another means, which gives a weaker or equal guarantee.
    Substituted,
    /// Not in force.
    Absent,
    /// Left out because the job document said so.
    Skipped,
}

impl LayerState {
    /// The word used in reports.
    pub fn name(self) -> &'static str {
        match self {
            LayerState::Enforced => "enforced",
            LayerState::Substituted => "substituted",
            LayerState::Absent => "absent",
            LayerState::Skipped => "skipped",
        }
    }
}

/// One layer of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Which layer.
    pub name: Layer,
    /// How it stands.
    pub state: LayerState,
    /// The means, where there is more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why it is not enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What an operator can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What the job used. `None` means unknown, never zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// From exec to the end of the job's first process, microseconds of CLOCK_MONOTONIC.
    pub wall_us: u64,
    /// User time of the whole tree, microseconds.
    pub cpu_user_us: Option<u64>,
    /// System time of the whole tree, microseconds.
    pub cpu_system_us: Option<u64>,
    /// Highest use of memory, in bytes; files in the job's storage count here.
    pub memory_peak_bytes: Option<u64>,
    /// Most processes and threads at once.
    pub pids_peak: Option<u64>,
}

/// One stream of output, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Written by the job.
    pub produced: u64,
    /// Delivered to the caller, without the elision mark.
    pub kept: u64,
    /// Neither stored nor delivered: `produced - kept`.
    pub elided: u64,
}

/// The streams of output: `combined`, or `stdout` and `stderr`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputReport {
    /// Both streams as one, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub combined: Option<StreamReport>,
    /// With `--split`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<StreamReport>,
    /// With `--split`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<StreamReport>,
}

/// Whether the machine is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreState {
    /// Looked at, and nothing of the job was left.
    Restored,
    /// Something was left; the machine should not take another job.
    Poisoned,
}

/// Something of the job that is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// `process`, `cgroup`, `mount`, `file`, `ipc`, `key` or `uid`.
    pub kind: String,
    /// Which one, and why it could not be removed.
    pub what: String,
}

/// What restoration found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The verdict.
    pub state: RestoreState,
    /// Empty when restored.
    pub leftovers: Vec<Leftover>,
}

impl Restore {
    /// The verdict that follows from what was found.
    pub fn from_leftovers(leftovers: Vec<Leftover>) -> Restore {
        let state = if leftovers.is_empty() { RestoreState::Restored } else { RestoreState::Poisoned };
        Restore { state, leftovers }
    }
}

/// A fault of the sandbox: which step, on which object, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultReport {
    /// The step, as `autodriver explain` names it.
    pub step: String,
    /// The path, descriptor or number the step was working on.
    pub object: String,
    /// The error's symbolic name, for example `EPERM`; empty when no system call failed.
    pub errno: String,
    /// The whole sentence.
    pub message: String,
    /// What an operator can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How long the driver's own work took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// From the request to the job's exec.
    pub setup_us: u64,
    /// From exec to the end of the last process.
    pub run_us: u64,
    /// From there until restoration was verified.
    pub restore_us: u64,
}

/// The report on one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// Why the job ended.
    pub cause: Cause,
    /// The job's own status, when it exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal it died of, when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Limits the job ran into, fatal or not.
    pub limits_hit: Vec<String>,
    /// What it used.
    pub usage: Usage,
    /// What it wrote to stdout and stderr.
    pub output: OutputReport,
    /// Every layer, in order.
    pub layers: Vec<LayerReport>,
    /// Whether the machine is as it was.
    pub restore: Restore,
    /// With `setup-failed` and `internal-error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<FaultReport>,
    /// How long the driver's own work took.
    pub timing: Timing,
}

impl Report {
    /// The line that a weaker sandbox owes its caller; `None` when every layer is enforced.
    pub fn weaker(&self) -> Option<String> {
        // Layers that are weaker in the same way and for the same reason are told of together.
        let mut groups: Vec<(Vec<&str>, &str, Option<&str>)> = Vec::new();
        for layer in &self.layers {
            if layer.state == LayerState::Enforced {
                continue;
            }
            let (state, reason) = (layer.state.name(), layer.reason.as_deref());
            match groups.iter_mut().find(|(_, known, why)| (*known, *why) == (state, reason)) {
                Some((names, ..)) => names.push(layer.name.name()),
                None => groups.push((vec![layer.name.name()], state, reason)),
            }
        }
        let words = groups.iter().map(|(names, state, reason)| {
            let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
            format!("{} {state}{reason}", names.join(" "))
        });
        let words: Vec<String> = words.collect();
        (!words.is_empty()).then(|| format!("layers not enforced: {}", words.join("; ")))
    }

    /// The exit status of `run`, by the table of the contract.
    pub fn exit_status(&self) -> u8 {
        let program = |fault: &&FaultReport| fault.step == "exec" && fault.object.starts_with("execute ");
        match self.cause {
            _ if self.restore.state == RestoreState::Poisoned => 123,
            Cause::SetupFailed => match self.fault.as_ref().filter(program) {
                Some(fault) if fault.errno == "ENOENT" => 127,
                Some(_) => 126,
                None => 125,
            },
            Cause::InternalError => 125,
            Cause::Exited => u8::try_from(self.exit_code.unwrap_or(125) & 0xff).unwrap_or(125),
            Cause::Signaled => u8::try_from(self.signal.unwrap_or(0).saturating_add(128)).unwrap_or(255),
            // As a shell reports what SIGTERM ended.
            Cause::Cancelled => 143,
            _ => 124,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_there_is_not_has_a_status_too() {
        let report = |signal: i32| {
            let text = format!(
                r#"{{"version": 1, "cause": "signaled", "signal": {signal}, "limits_hit": [], "layers": [],
                "usage": {{"wall_us": 0}}, "output": {{}}, "restore": {{"state": "restored", "leftovers": []}},
                "timing": {{"setup_us": 0, "run_us": 0, "restore_us": 0}}}}"#
            );
            serde_json::from_str::<Report>(&text).unwrap()
        };
        assert_eq!(
            [11, 127, i32::MAX, i32::MIN].map(|signal| report(signal).exit_status()),
            [139, 255, 255, 255]
        );
    }

    #[test]
    fn unknown_figures_are_null_and_names_match_the_json_form() {
        let usage = serde_json::to_value(Usage::default()).unwrap();
        assert!(usage["memory_peak_bytes"].is_null() && usage["pids_peak"].is_null());
        for state in [LayerState::Enforced, LayerState::Substituted, LayerState::Absent, LayerState::Skipped]
        {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
        for cause in [Cause::Exited, Cause::WallLimit, Cause::SyscallDenied, Cause::InternalError] {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.name());
        }
    }
}
