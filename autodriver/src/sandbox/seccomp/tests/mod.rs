//! The policy, its compiler and the kernel are tested one against the other.
//!
//! - `policy`: the tables are complete and hold what they are meant to hold.
//! - `programs`: the compiled programs answer as the table says, for all numbers.
//! - `arguments`: conditions let through and refuse what is written down here
//!   a second time, with the constants of the C library.
//! - `disassembly`: every instruction of the shipped programs can be read back.
//! - `kernel`: the kernel takes the filters and does what they say.

mod arguments;
mod disassembly;
mod interpreter;
mod kernel;
mod policy;
mod programs;

use super::bpf::{ARCH_AARCH64, ARCH_I386, ARCH_X86_64};
use super::compile::Abi;
use super::table::{parse_numbers, parse_policy, Answer, Policy};

const JOB: &str = include_str!("../../../../policy/job.syscalls");
const INIT: &str = include_str!("../../../../policy/init.syscalls");
const OFFLINE: &str = include_str!("../../../../policy/offline.syscalls");
const SHARED: &str = include_str!("../../../../policy/shared.syscalls");
const BASELINE: &str = include_str!("../../../../policy/baseline.names");

const EPERM: Answer = Answer::Errno(1);
const EINVAL: Answer = Answer::Errno(22);
const ENOSYS: Answer = Answer::Errno(38);
const EAFNOSUPPORT: Answer = Answer::Errno(97);

/// An architecture, and its number table.
const X86_64: (u32, &str) = (ARCH_X86_64, include_str!("../../../../policy/numbers.x86_64"));
const I386: (u32, &str) = (ARCH_I386, include_str!("../../../../policy/numbers.i386"));
const AARCH64: (u32, &str) = (ARCH_AARCH64, include_str!("../../../../policy/numbers.aarch64"));

fn job() -> Policy<'static> {
    parse_policy(JOB).expect("job.syscalls")
}

fn init() -> Policy<'static> {
    parse_policy(INIT).expect("init.syscalls")
}

fn offline() -> Policy<'static> {
    parse_policy(OFFLINE).expect("offline.syscalls")
}

fn shared() -> Policy<'static> {
    parse_policy(SHARED).expect("shared.syscalls")
}

fn abi((arch, numbers): (u32, &'static str)) -> Abi<'static> {
    Abi { arch, numbers: parse_numbers(numbers).expect("number table").leak() }
}

/// The number of a call, if the ABI has it.
fn number(abi: &Abi, name: &str) -> Option<u32> {
    let found = abi.numbers.iter().find(|(_, other)| *other == name);
    found.map(|(number, _)| *number)
}
