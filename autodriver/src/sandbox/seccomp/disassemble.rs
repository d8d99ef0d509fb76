//! Reads a compiled filter back: one line for each instruction, with names for numbers.
//!
//! What a comparison compares depends on what was loaded on the way to it. Classic BPF jumps
//! forward only, so one pass from the start knows that for every instruction.

use nix::errno::Errno;
use seccompiler::sock_filter;

use super::bpf::{
    AND, ARCH_AARCH64, ARCH_I386, ARCH_X86_64, DATA_ARCH, DATA_ARGUMENTS, DATA_NUMBER, JUMP, JUMP_EQUAL,
    JUMP_GREATER_EQUAL, LOAD, RETURN, RETURN_ALLOW, RETURN_ERRNO, RETURN_KILL_PROCESS,
};

/// What is known before an instruction, on every way to it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    /// The offset that the accumulator was loaded from.
    loaded: Option<u32>,
    /// The architecture of the call.
    arch: Option<u32>,
}

impl Known {
    /// What two ways to the same instruction have in common.
    fn meet(self, other: Known) -> Known {
        let same = |one: Option<u32>, other| one.filter(|_| one == other);
        Known { loaded: same(self.loaded, other.loaded), arch: same(self.arch, other.arch) }
    }
}

/// Disassembles `program`; `name` knows the system calls of an architecture.
pub(super) fn disassemble(
    program: &[sock_filter],
    name: impl Fn(u32, u32) -> Option<&'static str>,
) -> Vec<String> {
    let mut known: Vec<Option<Known>> = vec![None; program.len()];
    let arrive = |known: &mut Vec<Option<Known>>, at: usize, with: Known| {
        if let Some(place) = known.get_mut(at) {
            *place = Some(place.map_or(with, |known| known.meet(with)));
        }
    };
    arrive(&mut known, 0, Known { loaded: None, arch: None });
    let mut lines = Vec::with_capacity(program.len());
    for (at, sock_filter { code, jt, jf, k }) in program.iter().enumerate() {
        let before = known[at].unwrap_or(Known { loaded: None, arch: None });
        let (yes, no) = (at + 1 + usize::from(*jt), at + 1 + usize::from(*jf));
        let text = match *code {
            LOAD => {
                arrive(&mut known, at + 1, Known { loaded: Some(*k), ..before });
                format!("load {}", place(*k))
            }
            AND => {
                arrive(&mut known, at + 1, before);
                format!("and {k:#x}")
            }
            JUMP => {
                let to = at + 1 + *k as usize;
                arrive(&mut known, to, before);
                format!("goto {to}")
            }
            JUMP_EQUAL | JUMP_GREATER_EQUAL => {
                let equal = *code == JUMP_EQUAL;
                let arch = (equal && before.loaded == Some(DATA_ARCH)).then_some(*k);
                arrive(&mut known, yes, Known { arch: arch.or(before.arch), ..before });
                arrive(&mut known, no, before);
                let sign = if equal { "==" } else { ">=" };
                format!("if {sign} {} goto {yes} else {no}", operand(*k, before, &name))
            }
            RETURN => format!("return {}", answer(*k)),
            other => format!("instruction {other:#06x} {jt} {jf} {k:#x}"),
        };
        lines.push(format!("{at:>4}  {text}"));
    }
    lines
}

/// A word of `struct seccomp_data`.
fn place(offset: u32) -> String {
    match offset {
        DATA_NUMBER => "number".to_owned(),
        DATA_ARCH => "arch".to_owned(),
        _ if offset >= DATA_ARGUMENTS && offset % 8 == 0 => format!("arg{}", (offset - DATA_ARGUMENTS) / 8),
        _ => format!("[{offset}]"),
    }
}

/// What the accumulator is compared with, and what that stands for.
fn operand(k: u32, before: Known, name: &impl Fn(u32, u32) -> Option<&'static str>) -> String {
    let (number, meaning) = match before.loaded {
        Some(DATA_NUMBER) => (k.to_string(), before.arch.and_then(|arch| name(arch, k))),
        Some(DATA_ARCH) => (format!("{k:#x}"), arch_name(k)),
        _ => (format!("{k:#x}"), None),
    };
    meaning.map_or(number.clone(), |meaning| format!("{number} ({meaning})"))
}

/// The name of an architecture.
pub(super) fn arch_name(arch: u32) -> Option<&'static str> {
    let names = [(ARCH_X86_64, "x86_64"), (ARCH_I386, "i386"), (ARCH_AARCH64, "aarch64")];
    names.into_iter().find(|(known, _)| *known == arch).map(|(_, name)| name)
}

/// What a value that the filter returns makes of the call.
pub(super) fn answer(value: u32) -> String {
    match (value & 0xffff_0000, i32::try_from(value & 0xffff)) {
        (RETURN_ALLOW, _) => "allow".to_owned(),
        (RETURN_KILL_PROCESS, _) => "kill".to_owned(),
        (RETURN_ERRNO, Ok(number)) => autodriver_protocol::archive::errno_name(Errno::from_raw(number)),
        _ => format!("{value:#x}"),
    }
}
