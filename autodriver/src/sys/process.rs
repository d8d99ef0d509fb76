//! clone3(2), pidfds, securebits and the end of a process.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::Pid;

use super::check;

/// A child, as its parent holds it: the number for messages, the descriptor for everything else,
/// because a number may come to name another process.
#[derive(Debug)]
pub struct Child {
    /// Number in the parent's PID namespace.
    pub pid: Pid,
    /// Signals and waits go through this.
    pub pidfd: OwnedFd,
}

/// Which side of [`clone3`] this is.
#[derive(Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The caller.
    Parent(Child),
}

/// clone3(2); libc's constant has too narrow a type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// fork(2) with namespaces, a pidfd, and optionally a place in a v2 cgroup (`CLONE_INTO_CGROUP`,
/// Linux 5.7: no migration, so no process ever runs outside its limits).
///
/// # Safety
/// The caller must have one thread only: the child is a copy of the calling thread alone, and a
/// lock that another thread held would stay locked in it for ever. The child must not return
/// into code that assumes it is the parent.
pub unsafe fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Errno> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: namespaces | libc::CLONE_PIDFD as u64,
        pidfd: std::ptr::from_mut(&mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    }
    // SAFETY: `args` has the layout of struct clone_args up to `cgroup` and the size says so;
    // `pidfd` outlives the call. Without CLONE_VM and a stack the child is a copy, as with fork.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel stored a new descriptor, owned by nobody else, in `pidfd`.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent(Child { pid: Pid::from_raw(i32::try_from(pid).unwrap_or(-1)), pidfd }))
}

/// Ends this process at once: no destructor, no buffer, no handler of the parent's image runs.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// pidfd_open(2).
pub fn pidfd_open(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: a non-negative result is a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// pidfd_send_signal(2).
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed; no other pointers are passed.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, null, 0) };
    check(result).map(drop)
}

/// SECBIT_NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, and the lock of each and of KEEP_CAPS.
const SECUREBITS: libc::c_ulong = 0b1110_1111;

/// Sets and locks securebits(7): uid 0 gives no capabilities, now or after any exec.
pub fn lock_securebits() -> Result<(), Errno> {
    // SAFETY: PR_SET_SECUREBITS takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0) }.into()).map(drop)
}

/// Whether [`lock_securebits`] is in force, as the kernel says.
pub fn securebits_are_locked() -> Result<bool, Errno> {
    // SAFETY: PR_GET_SECUREBITS takes no argument.
    let bits = check(unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) }.into())?;
    Ok(libc::c_ulong::try_from(bits) == Ok(SECUREBITS))
}

/// Gives this process a new, empty session keyring, so that it possesses none of its parent's
/// keys. ENOSYS (kernel without keys) is no error: there is nothing to possess.
pub fn join_new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    match check(result) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Gives every signal its default action: what was ignored stays ignored across execve(2), and
/// Rust's runtime ignores SIGPIPE.
pub fn default_signals() -> Result<(), Errno> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action installs no handler that could be called.
        unsafe { sigaction(signal, &default) }?;
    }
    Ok(())
}

/// Sets this process's nice value: setpriority(2).
pub fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: no pointers are passed; 0 names the caller.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }.into()).map(drop)
}

/// The ABI version of Landlock; 0 where the kernel has none, or it is not enabled.
pub fn landlock_abi() -> i32 {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    let null = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no attributes and only answers a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null, 0, LANDLOCK_CREATE_RULESET_VERSION) };
    check(version).map_or(0, |version| i32::try_from(version).unwrap_or(0))
}
