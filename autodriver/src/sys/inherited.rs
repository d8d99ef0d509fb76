//! What a process has from whoever executed it, beyond its arguments: execve(2), "Effect on process
//! attributes". A program with more privileges than its caller puts each to what it needs.

use nix::errno::Errno;

use super::check;

/// Signals 1 to 64, and those that glibc keeps for itself among them: signal(7).
const LAST_SIGNAL: libc::c_int = 64;

/// Ignored by a driver: the end of a reader and of a file is told by the call that meets it, and nobody
/// stops it from a terminal while a job's clock runs.
const IGNORED: [libc::c_int; 5] = [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Removes every variable of the environment.
pub fn clear_environment() -> Result<(), Errno> {
    // SAFETY: called while there is one thread, and before anything refers to a variable.
    match unsafe { libc::clearenv() } {
        0 => Ok(()),
        _ => Err(Errno::ENOMEM),
    }
}

/// sigaction(2) as the kernel takes it: glibc's own keeps two signals from everybody, which a caller can have
/// ignored all the same.
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Forgets pending signals and the dispositions of all; nothing stays blocked.
pub fn reset_signals() -> Result<(), Errno> {
    let set = |signal: libc::c_int, handler| {
        let action = KernelAction { handler, flags: 0, restorer: 0, mask: 0 };
        let (null, size) = (std::ptr::null_mut::<KernelAction>(), size_of::<u64>());
        // SAFETY: the action outlives the call and is no handler. What is refused (SIGKILL, SIGSTOP) has none.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, null, size) };
    };
    // Ignoring a signal discards one that is pending: POSIX, "Signal Actions".
    (1..=LAST_SIGNAL).for_each(|signal| set(signal, libc::SIG_IGN));
    unblock_signals()?;
    let default = (1..=LAST_SIGNAL).filter(|signal| !IGNORED.contains(signal));
    default.for_each(|signal| set(signal, libc::SIG_DFL));
    Ok(())
}

/// All of them: glibc's own function leaves out those that it keeps.
fn unblock_signals() -> Result<(), Errno> {
    let (none, null) = (0_u64, std::ptr::null_mut::<u64>());
    // SAFETY: the set has the size that is given, and outlives the call.
    let done = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, null, size_of::<u64>())
    };
    check(done).map(drop)
}

/// Stops the interval timers, alarm(2) too, which go on across execve(2).
pub fn disarm_timers() -> Result<(), Errno> {
    // SAFETY: an itimerval of zeros is valid, and disarms.
    let none: libc::itimerval = unsafe { std::mem::zeroed() };
    for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
        // SAFETY: `none` outlives the call, and the old value is not asked for.
        check(unsafe { libc::setitimer(timer, &raw const none, std::ptr::null_mut()) }.into())?;
    }
    Ok(())
}

/// The default execution domain: personality(2).
pub fn reset_personality() -> Result<(), Errno> {
    const PER_LINUX: libc::c_ulong = 0;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::personality(PER_LINUX) }.into()).map(drop)
}

/// The default scheduling policy: sched(7).
pub fn reset_scheduler() -> Result<(), Errno> {
    // A sched_param as the kernel has it. musl's has more in it, and its function makes no call.
    let priority: libc::c_int = 0;
    let call = libc::SYS_sched_setscheduler;
    // SAFETY: `priority` outlives the call; 0 names the caller.
    check(unsafe { libc::syscall(call, 0, libc::SCHED_OTHER, &raw const priority) }).map(drop)
}

/// Whether this program was started with privileges that its caller may not have: getauxval(3), AT_SECURE.
pub fn is_secure_execution() -> bool {
    // SAFETY: reads a number that the kernel passed.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The extended attribute of a file in which acl(5) keeps who may do what.
pub fn set_access_list(file: std::os::fd::BorrowedFd<'_>, list: &[u8]) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let name = c"system.posix_acl_access";
    // SAFETY: name and value outlive the call, and the length is the value's.
    let set =
        unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), list.as_ptr().cast(), list.len(), 0) };
    check(set.into()).map(drop)
}
