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

mod bpf;
mod disassemble;
#[cfg(test)]
mod compile;
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;

use nix::errno::Errno;
use seccompiler::sock_filter;
use serde::Serialize;

/// One row of the policy, as a reader of `autodriver explain` wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The system call.
    pub name: &'static str,
    /// `allow`, or the error number a refused call gets.
    pub answer: &'static str,
    /// Empty, or `unless ...` or `when ...`: the calls `answer` is for. The
    /// others are allowed.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub condition: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// The number of a call in the machine's own ABI, and in the 32-bit one, if it is there.
type Number = Option<u32>;

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

/// The rows of a policy, as the build script wrote them.
fn rows(text: &'static str) -> impl Iterator<Item = (Row, Number, Number)> {
    text.lines().map(|line| {
        let mut fields = line.split('\t');
        let mut field = || fields.next().unwrap_or("");
        let row = Row { name: field(), answer: field(), condition: field(), reason: field() };
        (row, field().parse().ok(), field().parse().ok())
    })
}

/// The filter of a job; with `abi32`, 32-bit x86 programs run under the same
/// policy instead of being killed. Other machines have no use for `abi32`.
pub fn job_filter(abi32: bool) -> &'static [sock_filter] {
    if abi32 {
        &JOB_ABI32
    } else {
        &JOB
    }
}

/// What stands before the filter of a job. The strictest answer counts (seccomp(2)).
#[derive(Clone, Copy, Debug, Default)]
pub struct Before {
    /// No sockets but AF_UNIX, for want of a network namespace.
    pub offline: bool,
    /// Nobody else's limits and scheduling, for want of a uid of its own.
    pub shared: bool,
}

impl Before {
    fn all(self) -> impl Iterator<Item = (&'static [sock_filter], &'static str)> {
        let offline = self.offline.then_some((&OFFLINE[..], OFFLINE_ROWS));
        let shared = self.shared.then_some((&SHARED[..], SHARED_ROWS));
        offline.into_iter().chain(shared)
    }

    /// The filters, in the order in which they are loaded.
    pub fn filters(self) -> impl Iterator<Item = &'static [sock_filter]> {
        self.all().map(|(filter, _)| filter)
    }

    /// The row that answers, instead of the one of the job's policy.
    fn row(self, row: Row) -> Row {
        let mut before = self.all().flat_map(|(_, text)| rows(text));
        before.find(|(before, ..)| before.name == row.name).map_or(row, |(before, ..)| before)
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

/// The filter of a job, for people.
#[derive(Debug, Serialize)]
pub struct Described {
    /// The ABIs whose calls are looked up; a call of any other kills the process.
    pub abis: Vec<&'static str>,
    /// The answer to every number that is not named.
    pub default: String,
    /// The rest.
    pub rows: Vec<Row>,
    /// How long the program is.
    pub instructions: usize,
    /// The program itself, where it is asked for: [`disassemble_job`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf: Option<Vec<String>>,
}

/// Describes the filter of a job, and what stands before it.
pub fn describe(abi32: bool, before: Before) -> Described {
    let i386 = (abi32 && NATIVE == bpf::ARCH_X86_64).then_some(bpf::ARCH_I386);
    let rows = rows(ROWS).filter(|(_, native, other)| native.is_some() || i386.is_some() && other.is_some());
    Described {
        abis: [NATIVE].into_iter().chain(i386).filter_map(disassemble::arch_name).collect(),
        default: disassemble::answer(DEFAULT),
        rows: rows.map(|(row, ..)| before.row(row)).collect(),
        instructions: job_filter(abi32).len(),
        bpf: None,
    }
}

/// The programs themselves, in the order in which they are loaded: one line for each instruction, and an
/// empty one between two.
pub fn disassemble_job(abi32: bool, before: Before) -> Vec<String> {
    let lines = |filter: &[sock_filter]| disassemble::disassemble(filter, name);
    let before = before.filters().flat_map(|filter| lines(filter).into_iter().chain([String::new()]));
    before.chain(lines(job_filter(abi32))).collect()
}

/// The call of that number.
fn name(arch: u32, number: u32) -> Option<&'static str> {
    let found = rows(ROWS).find(|(_, native, i386)| match arch {
        NATIVE => *native == Some(number),
        bpf::ARCH_I386 => *i386 == Some(number),
        _ => false,
    });
    found.map(|(row, ..)| row.name)
}
