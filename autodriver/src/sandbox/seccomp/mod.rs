//! The system-call filter: the last layer a job passes before it is executed.
//!
//! # What the job loses, and what it keeps
//!
//! The policy is an allow-list in `policy/job.syscalls`: what compilers,
//! interpreters, debuggers and their programs make. Everything else is refused
//! with an error a program can live with, never with a signal; calls this list
//! has never heard of do not exist (`ENOSYS`), so a newer kernel adds nothing
//! to what a job can reach. Deny-lists lose that race: flatpak's missed the
//! new mount calls and `clone3` (CVE-2021-41133).
//!
//! A call made through a foreign ABI kills the process. The filter sees call
//! numbers, and a number means something else in every ABI
//! (Documentation/userspace-api/seccomp_filter.rst, "Pitfalls"), so 32-bit
//! programs are either given the same policy under their own numbers, or
//! nothing. Calls of the x32 ABI do not exist.
//!
//! # Where it stands
//!
//! It is the last line, not the first: uids, capabilities, namespaces, mounts
//! and Landlock are what confine the job, and remain if a row here is too
//! generous. The filter alone stands between the job and the kernel's keyrings,
//! AF_VSOCK and other socket families, io_uring, and the injection of terminal
//! input.
//!
//! It needs no capability, but `no_new_privs` (seccomp(2), EACCES), and it must
//! come last because it would refuse the calls that set up the other layers.
//! It stacks with a filter the container brought along: the stricter answer
//! wins, so it never re-allows what the container refuses.
//!
//! # Reading order
//!
//! `policy/job.syscalls` and `policy/init.syscalls` are the policy; `table.rs`
//! reads it and `compile.rs` makes one BPF program of it, both in the build
//! script; this file hands the programs out and loads them.

#![forbid(unsafe_code)]

#[cfg(test)]
mod compile;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;

use nix::errno::Errno;
use seccompiler::sock_filter;

/// One row of the policy, as a reader of `autodriver explain` wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The system call.
    pub name: &'static str,
    /// `allow`, or the error number a refused call gets.
    pub answer: &'static str,
    /// Empty, or `unless ...` or `when ...`: the calls `answer` is for. The
    /// others are allowed.
    pub condition: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// Whether the machine's own ABI, and the 32-bit one, have a call of that name.
type Native = bool;
type Abi32 = bool;

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

/// The filter of a job; with `abi32`, 32-bit x86 programs run under the same
/// policy instead of being killed. Other machines have no use for `abi32`.
pub fn job_filter(abi32: bool) -> &'static [sock_filter] {
    if abi32 {
        &JOB_ABI32
    } else {
        &JOB
    }
}

/// The filter of init, which may wait, talk to the driver and exit.
pub fn init_filter() -> &'static [sock_filter] {
    &INIT
}

/// Loads `filter` for the calling thread and all it will start, for good.
///
/// The caller has set `no_new_privs` and has one thread. Fails with the error
/// of seccomp(2): EINVAL where the kernel has no filters, ENOSYS where it has
/// no seccomp at all.
pub fn install(filter: &[sock_filter]) -> Result<(), Errno> {
    use seccompiler::Error;
    seccompiler::apply_filter(filter).map_err(|error| match error {
        Error::Prctl(error) | Error::Seccomp(error) => {
            error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
        }
        _ => Errno::EINVAL,
    })
}

/// The policy of a job, for people. Every number not named gets ENOSYS.
#[allow(dead_code, reason = "for `autodriver explain`")]
pub fn describe(abi32: bool) -> impl Iterator<Item = Row> {
    ROWS.iter().filter(move |(_, native, i386)| *native || abi32 && *i386).map(|(row, ..)| *row)
}
