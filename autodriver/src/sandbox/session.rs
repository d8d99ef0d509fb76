//! A session of its own, default signals, the job's own standard streams and umask: nothing of
//! the driver's terminal, group or habits.
//!
//! Without a controlling terminal, TIOCSTI has nowhere to type (CVE-2017-5226).

use nix::sys::signal::SigSet;
use nix::sys::stat::{umask, Mode};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::prepare::Prepared;
use super::{on, Failed};

/// The acts, for messages; indices below.
pub(super) const ACTS: [&str; 5] = [
    "start a session",
    "reset signals",
    "connect standard input",
    "connect standard output",
    "drop the keyring",
];

/// Its nice value, whatever the driver's.
pub(super) const NICE: i32 = 0;
/// Its umask.
pub(super) const UMASK: u32 = 0o022;
/// First to go when the whole machine is out of memory.
pub(super) const OOM_SCORE_ADJ: &str = "1000";

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    setsid().map_err(on(0))?;
    crate::sys::process::default_signals().map_err(on(1))?;
    SigSet::empty().thread_set_mask().map_err(on(1))?;
    dup2_stdin(&prepared.stdin).map_err(on(2))?;
    dup2_stdout(&prepared.stdout).map_err(on(3))?;
    dup2_stderr(prepared.stderr.as_ref().unwrap_or(&prepared.stdout)).map_err(on(3))?;
    // Down from the driver's -20, which is always allowed; a driver that was refused that kept its own.
    let _ = crate::sys::process::set_nice(NICE);
    umask(Mode::from_bits_truncate(UMASK));
    crate::sys::process::join_new_session_keyring().map_err(on(4))?;
    // Without the file there is no killer.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    Ok(())
}
