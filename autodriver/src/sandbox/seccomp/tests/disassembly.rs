//! The shipped programs, read back.

use seccompiler::sock_filter;

use super::super::bpf::{
    AND, ARCH_I386, ARCH_X86_64, DATA_ARCH, DATA_ARGUMENTS, DATA_NUMBER, JUMP, JUMP_EQUAL,
    JUMP_GREATER_EQUAL, LOAD, RETURN, RETURN_ALLOW, RETURN_ERRNO, RETURN_KILL_PROCESS,
};
use super::super::disassemble::disassemble;
use super::super::Before;
use super::super::{describe, disassemble_job, init_filter, job_filter, name};

fn filter(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[test]
fn every_instruction_has_a_line() {
    let program = [
        filter(LOAD, 0, 0, DATA_ARCH),
        filter(JUMP_EQUAL, 1, 0, ARCH_X86_64),
        filter(RETURN, 0, 0, RETURN_KILL_PROCESS),
        filter(LOAD, 0, 0, DATA_NUMBER),
        filter(JUMP_EQUAL, 2, 0, 1),
        filter(JUMP_GREATER_EQUAL, 4, 3, 2),
        filter(RETURN, 0, 0, 0x7ff0_0000),
        filter(LOAD, 0, 0, DATA_ARGUMENTS + 8),
        filter(AND, 0, 0, 0xff),
        filter(JUMP, 0, 0, 1),
        filter(RETURN, 0, 0, RETURN_ERRNO | 38),
        filter(JUMP_EQUAL, 0, 1, 0x10),
        filter(RETURN, 0, 0, RETURN_ALLOW),
        filter(0x94, 0, 0, 7),
    ];
    let names = |arch, number| (arch == ARCH_X86_64 && number == 1).then_some("write");
    let expected = [
        "   0  load arch",
        "   1  if == 0xc000003e (x86_64) goto 3 else 2",
        "   2  return kill",
        "   3  load number",
        "   4  if == 1 (write) goto 7 else 5",
        "   5  if >= 2 goto 10 else 9",
        "   6  return 0x7ff00000",
        "   7  load arg1",
        "   8  and 0xff",
        "   9  goto 11",
        "  10  return ENOSYS",
        // The number on one way here, an argument on the other.
        "  11  if == 0x10 goto 12 else 13",
        "  12  return allow",
        "  13  instruction 0x0094 0 0 0x7",
    ];
    assert_eq!(disassemble(&program, names), expected);
}

#[test]
fn nothing_of_the_shipped_programs_is_unknown() {
    for program in [job_filter(false), job_filter(true), init_filter()] {
        let lines = disassemble(program, name);
        assert_eq!(lines.len(), program.len());
        let unknown = lines.iter().find(|line| line.contains("instruction") || line.contains('['));
        assert_eq!(unknown, None);
        let to = |line: &String| line.rsplit_once(' ')?.1.parse().ok();
        assert!(lines.iter().filter_map(to).all(|to: usize| to < program.len()));
    }
}

#[test]
fn numbers_are_named_in_their_own_abi() {
    let described = describe(cfg!(target_arch = "x86_64"), Before::default());
    let lines = disassemble_job(cfg!(target_arch = "x86_64"), Before::default()).join("\n");
    for arch in described.abis.iter().map(|abi| format!("({abi})")) {
        assert!(lines.contains(&arch), "{arch}");
    }
    if cfg!(target_arch = "x86_64") {
        assert_eq!((name(ARCH_X86_64, 54), name(ARCH_I386, 54)), (Some("setsockopt"), Some("ioctl")));
        assert!(lines.contains("16 (ioctl)") && lines.contains("54 (ioctl)"), "{lines}");
    }
    assert_eq!(described.default, "ENOSYS");
}
