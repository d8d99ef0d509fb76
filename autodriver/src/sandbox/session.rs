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

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    setsid().map_err(on(0))?;
    crate::sys::process::default_signals().map_err(on(1))?;
    SigSet::empty().thread_set_mask().map_err(on(1))?;
    dup2_stdin(&prepared.stdin).map_err(on(2))?;
    dup2_stdout(&prepared.stdout).map_err(on(3))?;
    dup2_stderr(prepared.stderr.as_ref().unwrap_or(&prepared.stdout)).map_err(on(3))?;
    // Down from the driver's -20, which is always allowed; a driver that was refused that kept its own.
    let _ = crate::sys::process::set_nice(0);
    umask(Mode::from_bits_truncate(0o022));
    crate::sys::process::join_new_session_keyring().map_err(on(4))?;
    // First to go when the whole machine is out of memory. Without the file there is no killer.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}
