//! The words of classic BPF and of seccomp(2) that the compiler writes and the disassembler reads.

/// Instruction codes: class, size or operation, and source (linux/bpf_common.h).
pub(crate) const LOAD: u16 = 0x20;
pub(crate) const AND: u16 = 0x54;
pub(crate) const JUMP: u16 = 0x05;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const JUMP_GREATER_EQUAL: u16 = 0x35;
pub(crate) const RETURN: u16 = 0x06;

/// Offsets into `struct seccomp_data`; arguments are 64 bits wide, and all
/// architectures with a table here are little-endian, low half first.
pub(crate) const DATA_NUMBER: u32 = 0;
pub(crate) const DATA_ARCH: u32 = 4;
pub(crate) const DATA_ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_*` of linux/audit.h.
pub(crate) const ARCH_X86_64: u32 = 0xc000_003e;
pub(crate) const ARCH_I386: u32 = 0x4000_0003;
pub(crate) const ARCH_AARCH64: u32 = 0xc000_00b7;

/// What a filter returns: the action, and for [`RETURN_ERRNO`] the number in the low half.
pub(crate) const RETURN_ALLOW: u32 = 0x7fff_0000;
pub(crate) const RETURN_ERRNO: u32 = 0x0005_0000;
pub(crate) const RETURN_KILL_PROCESS: u32 = 0x8000_0000;
