//! clone3(2), pidfds, credentials, securebits and the end of a process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::{getegid, geteuid, setfsgid, setfsuid, Gid, Pid, Uid};

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
    let made = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) });
    let pid = match made {
        // What container engines answer, so that their filters can see the flags of clone(2).
        Err(Errno::ENOSYS) if cgroup.is_none() => {
            let flags = args.flags | args.exit_signal;
            // SAFETY: as above; clone(2) stores the pidfd where it would store the parent's tid, and
            // its last two arguments are null in whatever order a machine has them.
            check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) })?
        }
        made => made?,
    };
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel stored a new descriptor, owned by nobody else, in `pidfd`.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent(Child { pid: Pid::from_raw(i32::try_from(pid).unwrap_or(-1)), pidfd }))
}

/// Whether clone3(2) is to be had, and with it a birth inside a cgroup.
pub fn has_clone3() -> bool {
    // SAFETY: a size of 0 is refused (EINVAL) before anything is read.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<CloneArgs>(), 0) };
    check(result) != Err(Errno::ENOSYS)
}

/// Ends this process at once: no destructor, no buffer, no handler of the parent's image runs.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// As abort(3), which in a child of clone3(2) may take its parent for itself: musl's has the number of its thread from
/// before.
pub fn abort_now() -> ! {
    // SAFETY: no pointers are passed.
    unsafe { libc::syscall(libc::SYS_kill, libc::syscall(libc::SYS_getpid), libc::SIGABRT) };
    // The first process of a PID namespace does not die of a signal that it sends itself: pid_namespaces(7).
    exit_now(1)
}

/// Lets abort(3) end this process as every other failure does: with this status, after the sentence about the memory
/// that is not to be had, and without a core file. The children have it too, until they give signals their default
/// action.
pub fn exit_on_abort(status: u8) -> Result<(), Errno> {
    static STATUS: AtomicU8 = AtomicU8::new(0);
    extern "C" fn leave(_: libc::c_int) {
        exit_now(STATUS.load(Ordering::Relaxed).into())
    }
    STATUS.store(status, Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(leave), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler only loads a number and calls _exit(2), both async-signal-safe.
    unsafe { sigaction(Signal::SIGABRT, &action) }.map(drop)
}

/// setresuid(2) for this thread, which is the only one: libc's own would look for others by its
/// list, which in a child of clone3(2) is the parent's.
pub fn set_uids(real: u32, effective: u32, saved: u32) -> Result<(), Errno> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::syscall(libc::SYS_setresuid, real, effective, saved) }).map(drop)
}

/// What [`as_file_user`] has changed; when it is dropped it is put back.
struct FileUser {
    uid: Uid,
    gid: Gid,
}

/// Asks for ids for file accesses. setfsuid(2) does not say that it failed; asked for an id that
/// nobody can have, it changes nothing and answers the present one.
fn set_file_user(uid: Uid, gid: Gid) -> Result<(), Errno> {
    setfsgid(gid);
    setfsuid(uid);
    let nobody = u32::MAX;
    let now = (setfsuid(Uid::from_raw(nobody)), setfsgid(Gid::from_raw(nobody)));
    if now == (uid, gid) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

impl Drop for FileUser {
    fn drop(&mut self) {
        // The effective ids, which a process may always go back to. If the kernel does not do it,
        // nothing this process does to a file afterwards is what it means to do.
        if set_file_user(self.uid, self.gid).is_err() {
            std::process::abort();
        }
    }
}

/// Does something with the file accesses of another user: also what /proc shows of that user's
/// processes, which asks for these ids (`PTRACE_MODE_READ_FSCREDS`, ptrace(2)), so that root needs
/// no CAP_SYS_PTRACE for it. Meanwhile this process is not the other user's in any other sense:
/// signals, ptrace and limits ask for the real, effective and saved uid. Going away from uid 0
/// takes CAP_DAC_OVERRIDE and the like out of the effective set, coming back gives them again:
/// capabilities(7).
///
/// # Errors
/// EPERM if the ids could not be had; then nothing was done.
pub fn as_file_user<T>(uid: u32, gid: u32, act: impl FnOnce() -> T) -> Result<T, Errno> {
    // Held before anything changes.
    let back = FileUser { uid: geteuid(), gid: getegid() };
    set_file_user(Uid::from_raw(uid), Gid::from_raw(gid))?;
    let done = act();
    drop(back);
    Ok(done)
}

/// How a child has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By the signal of this number, which may be a real-time one.
    Signaled(i32),
}

/// waitpid(2) for any child that has ended; `None` where `flags` say WNOHANG and none has. That of nix fails
/// with EINVAL for a child that died of a real-time signal, which no enum of signals has.
///
/// # Errors
/// ECHILD: there are no children. EINTR.
pub fn wait_for_any(flags: WaitPidFlag) -> Result<Option<(Pid, Ended)>, Errno> {
    wait(Pid::from_raw(-1), flags)
}

/// As [`wait_for_any`], for one child, until it has ended.
///
/// # Errors
/// ECHILD: it is none. EINTR.
pub fn wait_for(child: Pid) -> Result<Ended, Errno> {
    wait(child, WaitPidFlag::empty())?.map(|(_, ended)| ended).ok_or(Errno::ECHILD)
}

fn wait(which: Pid, flags: WaitPidFlag) -> Result<Option<(Pid, Ended)>, Errno> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is written before the call returns.
        let pid = check(unsafe { libc::waitpid(which.as_raw(), &mut status, flags.bits()) }.into())?;
        let ended = match pid {
            0 => return Ok(None),
            _ if libc::WIFEXITED(status) => Ended::Exited(libc::WEXITSTATUS(status)),
            _ if libc::WIFSIGNALED(status) => Ended::Signaled(libc::WTERMSIG(status)),
            // It made us its tracer by PTRACE_TRACEME, and has stopped.
            _ => continue,
        };
        return Ok(Some((Pid::from_raw(i32::try_from(pid).unwrap_or(-1)), ended)));
    }
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

/// Signals whoever a list names, each through a pidfd that is known to name one of them: between
/// reading a number and using it, it may have come to name another process, so that the list is asked for
/// once more when the pidfds are held. Returns how many were listed at first.
pub fn signal_listed(mut list: impl FnMut() -> Vec<Pid>, signal: Signal) -> usize {
    let pids = list();
    let held: Vec<_> = pids.iter().filter_map(|pid| Some((*pid, pidfd_open(*pid).ok()?))).collect();
    let again = list();
    for (_, pidfd) in held.iter().filter(|(pid, _)| again.contains(pid)) {
        let _ = pidfd_send_signal(pidfd.as_fd(), signal);
    }
    pids.len()
}

/// Takes every capability out of the bounding set: capabilities(7), PR_CAPBSET_DROP(2const). One after the other until
/// there is none of that number, without looking first at those that there are.
///
/// # Errors
/// EPERM: no CAP_SETPCAP.
pub fn empty_bounding_set() -> Result<(), Errno> {
    for capability in 0..=libc::c_ulong::from(u8::MAX) {
        // SAFETY: PR_CAPBSET_DROP takes a number.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into()) {
            Err(Errno::EINVAL) => break,
            dropped => dropped?,
        };
    }
    Ok(())
}

/// The bits of securebits(7) that are set.
pub const SECUREBITS: [(&str, libc::c_ulong); 7] = [
    ("noroot", 1 << 0),
    ("noroot_locked", 1 << 1),
    ("no_setuid_fixup", 1 << 2),
    ("no_setuid_fixup_locked", 1 << 3),
    ("keep_caps_locked", 1 << 5),
    ("no_cap_ambient_raise", 1 << 6),
    ("no_cap_ambient_raise_locked", 1 << 7),
];

fn securebits() -> libc::c_ulong {
    SECUREBITS.iter().map(|(_, bit)| bit).sum()
}

/// Sets and locks securebits(7): uid 0 gives no capabilities, now or after any exec.
pub fn lock_securebits() -> Result<(), Errno> {
    // SAFETY: PR_SET_SECUREBITS takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, securebits(), 0, 0, 0) }.into()).map(drop)
}

/// Whether [`lock_securebits`] is in force, as the kernel says.
pub fn securebits_are_locked() -> Result<bool, Errno> {
    // SAFETY: PR_GET_SECUREBITS takes no argument.
    let bits = check(unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) }.into())?;
    Ok(libc::c_ulong::try_from(bits) == Ok(securebits()))
}

/// Gives this process a new, empty session keyring, so that it possesses none of its parent's
/// keys. ENOSYS (kernel without keys) is no error, there is nothing to possess; nor is the EPERM of a
/// container's filter, which answers it to the job as well.
pub fn join_new_session_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    match check(result) {
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
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

/// Whether this process is known to have one thread only: unshare(2) refuses to part one thread from others. A
/// container's filter may refuse the call itself.
pub fn is_single_threaded() -> bool {
    nix::sched::unshare(CloneFlags::CLONE_THREAD).is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (u32, u32) {
        let nobody = u32::MAX;
        (setfsuid(Uid::from_raw(nobody)).as_raw(), setfsgid(Gid::from_raw(nobody)).as_raw())
    }

    #[test]
    fn file_user_is_changed_and_put_back() {
        let before = ids();
        let effective = || caps::read(None, caps::CapSet::Effective).expect("capget");
        let caps_before = effective();
        if !geteuid().is_root() {
            assert_eq!(as_file_user(59_001, 59_001, || ()), Err(Errno::EPERM));
            assert_eq!(ids(), before);
            return;
        }
        let during = as_file_user(59_001, 59_002, || (ids(), effective())).expect("root may");
        assert_eq!(during.0, (59_001, 59_002));
        assert!(!during.1.contains(&caps::Capability::CAP_DAC_OVERRIDE));
        assert_eq!(ids(), before);
        assert_eq!(effective(), caps_before);
    }

    #[test]
    fn file_user_is_put_back_after_a_panic() {
        let before = ids();
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let panics = || as_file_user(uid, gid, || panic!("on purpose"));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(ids(), before);
    }

    #[test]
    fn clone_stands_in_for_clone3_where_a_filter_hides_it() {
        use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
        use seccompiler::sock_filter;
        let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
        let clone3_number = u32::try_from(libc::SYS_clone3).expect("a number");
        let enosys = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::ENOSYS).expect("a number");
        // Load the number; clone3 does not exist; everything else does.
        let filter = [
            step(0x20, 0, 0, 0),
            step(0x15, 0, 1, clone3_number),
            step(0x06, 0, 0, enosys),
            step(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let forks = move || {
            seccompiler::apply_filter(&filter).expect("the kernel takes the filter");
            // SAFETY: the child makes one system call and ends.
            match unsafe { clone3(0, None) }.expect("it forks") {
                Forked::Child => exit_now(7),
                Forked::Parent(child) => {
                    let ended = waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED);
                    assert_eq!(ended, Ok(WaitStatus::Exited(child.pid, 7)));
                }
            }
        };
        // The filter ends with the thread.
        std::thread::spawn(forks).join().expect("the thread lives");
    }
}
