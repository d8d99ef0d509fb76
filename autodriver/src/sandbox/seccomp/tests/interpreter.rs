//! Runs a BPF program the way the kernel would, checking what it checks.

use super::super::bpf::{AND, DATA_ARCH, DATA_ARGUMENTS, DATA_NUMBER};
use super::super::bpf::{JUMP, JUMP_EQUAL, JUMP_GREATER_EQUAL, LOAD, RETURN};
use super::super::compile::Instruction;

/// `struct seccomp_data` without the instruction pointer, which no rule reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) arch: u32,
    pub(super) arguments: [u64; 6],
}

impl Call {
    /// The 32-bit word at an offset of the structure, in little-endian order.
    fn word(&self, offset: u32) -> u32 {
        match offset {
            DATA_NUMBER => self.number,
            DATA_ARCH => self.arch,
            _ => {
                assert_eq!(offset % 4, 0, "misaligned load at {offset}");
                let place = offset.checked_sub(DATA_ARGUMENTS).expect("an argument") / 4;
                let argument = self.arguments[(place / 2) as usize];
                let half = argument >> (32 * (place % 2));
                u32::try_from(half & u64::from(u32::MAX)).expect("masked")
            }
        }
    }
}

/// The value the program returns for a call.
pub(super) fn run(program: &[Instruction], call: &Call) -> u32 {
    let mut accumulator = 0;
    let mut next = 0;
    loop {
        let Instruction { code, jt, jf, k } = program[next];
        next += 1;
        let branch = |holds| usize::from(if holds { jt } else { jf });
        match code {
            LOAD => accumulator = call.word(k),
            AND => accumulator &= k,
            JUMP => next += k as usize,
            JUMP_EQUAL => next += branch(accumulator == k),
            JUMP_GREATER_EQUAL => next += branch(accumulator >= k),
            RETURN => return k,
            _ => panic!("instruction {code:#x} is not one the compiler makes"),
        }
    }
}
