//! System calls, with arguments that do nothing even where they are let through.

use std::arch::asm;

use nix::errno::Errno;
use nix::unistd::getpid;

use crate::probes::{arg, at, call, each, in_child, reaches, HIGH};
use crate::tools::{broke, held, leave, refused, Attempt, Role};

const NO_FD: u64 = u64::MAX;
const NEWUSER: u64 = arg(libc::CLONE_NEWUSER);
const CHILD: u64 = arg(libc::SIGCHLD);

pub(super) fn unshares_user(_: Role) -> Attempt {
    refused(in_child(|| call(libc::SYS_unshare, [NEWUSER, 0, 0, 0, 0])), "has a user namespace")
}

pub(super) fn clones_user(_: Role) -> Attempt {
    clones([NEWUSER | CHILD, 0, 0, 0, 0])
}

pub(super) fn clones_user_high_bits(_: Role) -> Attempt {
    clones([HIGH | NEWUSER | CHILD, 0, 0, 0, 0])
}

fn clones(args: [u64; 5]) -> Attempt {
    refused(in_child(|| start(libc::SYS_clone, args)), "has a child in a user namespace")
}

/// The flags of clone3 are behind a pointer.
pub(super) fn clones_user_3(_: Role) -> Attempt {
    let args = [NEWUSER, 0, 0, 0, CHILD, 0, 0, 0_u64];
    let size = size_of_val(&args) as u64;
    refused(
        in_child(|| start(libc::SYS_clone3, [at(&args), size, 0, 0, 0])),
        "has a child in a user namespace",
    )
}

/// A child that ends at once.
fn start(number: libc::c_long, args: [u64; 5]) -> nix::Result<()> {
    match call(number, args)? {
        0 => leave(0),
        _ => Ok(()),
    }
}

pub(super) fn unshares_others(_: Role) -> Attempt {
    let kinds = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    each(kinds.map(|kind| {
        let made = in_child(|| call(libc::SYS_unshare, [arg(kind), 0, 0, 0, 0]));
        refused(made, &format!("has a namespace of kind {kind:#x}"))
    }))
}

/// Calls for administrators: init_module, reboot and the like.
pub(super) fn administers(_: Role) -> Attempt {
    let calls = [
        ("init_module", libc::SYS_init_module, [0; 5]),
        ("finit_module", libc::SYS_finit_module, [NO_FD, 0, 0, 0, 0]),
        ("delete_module", libc::SYS_delete_module, [0; 5]),
        ("kexec_load", libc::SYS_kexec_load, [0, 0, 0, 0xffff, 0]),
        ("reboot", libc::SYS_reboot, [0; 5]),
        ("swapon", libc::SYS_swapon, [0; 5]),
        ("swapoff", libc::SYS_swapoff, [0; 5]),
        ("acct", libc::SYS_acct, [1, 0, 0, 0, 0]),
        ("iopl", libc::SYS_iopl, [3, 0, 0, 0, 0]),
        ("ioperm", libc::SYS_ioperm, [0x80, 1, 1, 0, 0]),
        ("settimeofday", libc::SYS_settimeofday, [0; 5]),
        ("sethostname", libc::SYS_sethostname, [0, NO_FD, 0, 0, 0]),
        ("setdomainname", libc::SYS_setdomainname, [0, NO_FD, 0, 0, 0]),
        ("vhangup", libc::SYS_vhangup, [0; 5]),
    ];
    each(calls.map(|(name, number, args)| reaches(number, args, name)))
}

/// An array of eight bytes by eight.
pub(super) fn makes_bpf(_: Role) -> Attempt {
    const MAP_CREATE: u64 = 0;
    const ARRAY: u32 = 2;
    let map = [ARRAY, 4, 8, 1, 0, 0, 0, 0_u32];
    let size = size_of_val(&map) as u64;
    refused(call(libc::SYS_bpf, [MAP_CREATE, at(&map), size, 0, 0]), "has a BPF map")
}

/// A count of what the kernel does for us.
pub(super) fn opens_perf(_: Role) -> Attempt {
    const SOFTWARE: u64 = 1;
    const SIZE: u64 = 64;
    let event = [SIZE << 32 | SOFTWARE, 0, 0, 0, 0, 0, 0, 0_u64];
    refused(call(libc::SYS_perf_event_open, [at(&event), 0, NO_FD, NO_FD, 0]), "counts the kernel's events")
}

/// Calls that the kernel gives to everybody, and jobs have no use for.
pub(super) fn asks_for_machinery(_: Role) -> Attempt {
    const USER_MODE_ONLY: u64 = 1;
    const JOIN_SESSION: u64 = 1;
    let own = arg(getpid().as_raw());
    each([
        refused(call(libc::SYS_userfaultfd, [USER_MODE_ONLY, 0, 0, 0, 0]), "handles its own page faults"),
        refused(call(libc::SYS_kcmp, [own, own, 0, 0, 0]), "compares the kernel's pointers"),
        refused(call(libc::SYS_move_pages, [0; 5]), "moves pages"),
        refused(call(libc::SYS_keyctl, [JOIN_SESSION, 0, 0, 0, 0]), "has a keyring"),
    ])
}

pub(super) fn sets_up_io_uring(_: Role) -> Attempt {
    let mut parameters = [0_u8; 120];
    refused(call(libc::SYS_io_uring_setup, [1, parameters.as_mut_ptr() as u64, 0, 0, 0]), "has an io_uring")
}

/// `getpid` of the 32-bit table, by the gate that 64-bit filters forget.
pub(super) fn enters_by_int80(_: Role) -> Attempt {
    const GETPID: i64 = 20;
    refused(in_child(|| answer32(call32(GETPID, 0, 0))), "made a 32-bit call")
}

/// Behind a number and a pointer: socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT).
pub(super) fn multiplexes(_: Role) -> Attempt {
    const SOCKETCALL: i64 = 102;
    const SOCKET: u64 = 1;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    // SAFETY: a new mapping of the kernel's choice, below 4 GB.
    let low = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if low == libc::MAP_FAILED {
        return held(Errno::last());
    }
    // SAFETY: the mapping has room for the three numbers, and is never unmapped.
    unsafe { low.cast::<[u32; 3]>().write([16, 3, 15]) };
    match in_child(|| answer32(call32(SOCKETCALL, SOCKET, low as u64))) {
        Ok(()) => broke("has a socket that the filter has not seen"),
        Err(error) => held(error),
    }
}

fn answer32(answer: i32) -> nix::Result<()> {
    if answer < 0 {
        Err(Errno::from_raw(-answer))
    } else {
        Ok(())
    }
}

/// One call by the 32-bit gate.
#[allow(clippy::cast_possible_truncation)]
fn call32(number: i64, first: u64, second: u64) -> i32 {
    let mut result = number;
    // SAFETY: the gate changes no register but that of the result, and of memory only what the call says;
    // rbx, which must not be an operand, is put back.
    unsafe {
        asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) first => _,
            inlateout("rax") result,
            in("rcx") second,
            in("rdx") 0_u64,
            in("rsi") 0_u64,
            in("rdi") 0_u64,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    result as i32
}

/// `getpid` of the x32 table.
pub(super) fn enters_as_x32(_: Role) -> Attempt {
    const X32: libc::c_long = 0x4000_0000;
    refused(in_child(|| call(X32 | libc::SYS_getpid, [0; 5])), "made an x32 call")
}
