//! System calls, one by one, with arguments that do nothing even where they are let through.

use std::arch::asm;

use nix::errno::Errno;
use nix::sys::wait::{waitpid, WaitStatus};

use crate::answer::{child, leave, raw, say, Answer};

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    match words {
        ["syscalls"] => {
            for (name, number, args) in CALLS {
                let result = call(*number, *args).err().map_or("ok".to_owned(), |errno| format!("{errno:?}"));
                say(&format!("{name} {result}"));
            }
            Some(Ok(String::new()))
        }
        ["int80"] => Some(int80()),
        ["int80-child"] => Some(int80_child()),
        ["trace-child"] => Some(trace_child()),
        ["own-filter"] => Some(own_filter()),
        _ => None,
    }
}

/// One call. A child that a clone made ends at once; its parent waits for it.
fn call(number: libc::c_long, args: [u64; 5]) -> Answer {
    // SAFETY: each row of the table is safe for any process: pointers are null or point to
    // `TEXT`, which is only read, and no memory is mapped, unmapped or moved.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], 0_u64) };
    if number == libc::SYS_clone && result == 0 {
        leave(0);
    }
    let answer = raw(result);
    if number == libc::SYS_clone {
        crate::answer::wait_for_all();
    }
    answer
}

/// A call of the 32-bit table: `getpid`, by the gate that 64-bit filters forget.
fn int80() -> Answer {
    const GETPID_32: i64 = 20;
    let mut result = GETPID_32;
    // SAFETY: the gate preserves all registers but the one that carries number and result.
    unsafe { asm!("int 0x80", inlateout("rax") result) };
    Ok(format!("{}", result == i64::from(nix::unistd::getpid().as_raw())))
}

/// The same in a child: what became of it.
fn int80_child() -> Answer {
    let child = child(|| drop(int80()))?;
    Ok(match waitpid(child, None)? {
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    })
}

/// As a debugger does: a child that asks to be traced stops for us, and goes on.
fn trace_child() -> Answer {
    use nix::sys::{ptrace, signal};
    let child = child(|| {
        let traced = ptrace::traceme().and_then(|()| signal::raise(signal::Signal::SIGSTOP));
        leave(if traced.is_ok() { 7 } else { 8 });
    })?;
    let stopped = waitpid(child, None)?;
    ptrace::cont(child, None)?;
    Ok(format!("{} {}", matches!(stopped, WaitStatus::Stopped(..)), exit_code(waitpid(child, None)?)))
}

fn exit_code(status: WaitStatus) -> i32 {
    match status {
        WaitStatus::Exited(_, code) => code,
        _ => -1,
    }
}

/// A job may confine itself further: a filter that refuses `getppid`.
fn own_filter() -> Answer {
    let instruction = |code, k, jt| libc::sock_filter { code, jt, jf: 0, k };
    let number = u32::try_from(libc::SYS_getppid).map_err(|_| Errno::EINVAL)?;
    let mut program = [
        instruction(0x20, 0, 0),                  // load the call's number
        instruction(0x15, number, 1),             // if it is getppid, skip one
        instruction(0x06, 0x7fff_0000, 0),        // allow
        instruction(0x06, 0x0005_0000 | 0x4d, 0), // refuse with EBADFD
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: `filter` describes the four instructions of `program`, which outlives the call.
    raw(unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const filter) })?;
    // SAFETY: getppid takes no arguments and touches no memory.
    let answer = raw(unsafe { libc::syscall(libc::SYS_getppid) });
    Ok(format!("{:?}", answer.err()))
}

/// Garbage in the half of an argument that the kernel does not look at.
const HIGH: u64 = 0xdead_beef_0000_0000;
const SELF: u64 = u64::MAX; // -1: the current process, thread or directory, where a call takes one
const NO_FD: u64 = u64::MAX;

/// A constant of the C library as an argument: the kernel takes its low half.
#[allow(clippy::cast_sign_loss)]
const fn c(flag: i32) -> u64 {
    flag as u64
}

const FORK: u64 = 17; // SIGCHLD
const AT_FDCWD: u64 = c(libc::AT_FDCWD);

/// Name, number, arguments.
const CALLS: &[(&str, libc::c_long, [u64; 5])] = &[
    ("clone", libc::SYS_clone, [FORK, 0, 0, 0, 0]),
    ("clone-user", libc::SYS_clone, [c(libc::CLONE_NEWUSER) | FORK, 0, 0, 0, 0]),
    ("clone-mount", libc::SYS_clone, [c(libc::CLONE_NEWNS) | FORK, 0, 0, 0, 0]),
    ("clone-pid", libc::SYS_clone, [c(libc::CLONE_NEWPID) | FORK, 0, 0, 0, 0]),
    ("clone-net", libc::SYS_clone, [c(libc::CLONE_NEWNET) | FORK, 0, 0, 0, 0]),
    ("clone-ipc", libc::SYS_clone, [c(libc::CLONE_NEWIPC) | FORK, 0, 0, 0, 0]),
    ("clone-uts", libc::SYS_clone, [c(libc::CLONE_NEWUTS) | FORK, 0, 0, 0, 0]),
    ("clone-cgroup", libc::SYS_clone, [c(libc::CLONE_NEWCGROUP) | FORK, 0, 0, 0, 0]),
    ("clone3", libc::SYS_clone3, [0; 5]),
    ("unshare-user", libc::SYS_unshare, [c(libc::CLONE_NEWUSER), 0, 0, 0, 0]),
    ("unshare-mount", libc::SYS_unshare, [c(libc::CLONE_NEWNS), 0, 0, 0, 0]),
    ("unshare-files", libc::SYS_unshare, [c(libc::CLONE_FILES), 0, 0, 0, 0]),
    ("setns", libc::SYS_setns, [NO_FD, 0, 0, 0, 0]),
    ("mount", libc::SYS_mount, [0; 5]),
    ("umount2", libc::SYS_umount2, [0; 5]),
    ("pivot_root", libc::SYS_pivot_root, [0; 5]),
    ("chroot", libc::SYS_chroot, [0; 5]),
    ("fsopen", libc::SYS_fsopen, [0; 5]),
    ("fsconfig", libc::SYS_fsconfig, [NO_FD, 0, 0, 0, 0]),
    ("fsmount", libc::SYS_fsmount, [NO_FD, 0, 0, 0, 0]),
    ("fspick", libc::SYS_fspick, [NO_FD, 0, 0, 0, 0]),
    ("open_tree", libc::SYS_open_tree, [NO_FD, 0, 0, 0, 0]),
    ("move_mount", libc::SYS_move_mount, [NO_FD, 0, NO_FD, 0, 0]),
    ("mount_setattr", libc::SYS_mount_setattr, [NO_FD, 0, 0, 0, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [0; 5]),
    ("io_uring_enter", libc::SYS_io_uring_enter, [NO_FD, 0, 0, 0, 0]),
    ("io_uring_register", libc::SYS_io_uring_register, [NO_FD, 0, 0, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [0, SELF, 0, 0, 0]),
    ("add_key", libc::SYS_add_key, [0; 5]),
    ("request_key", libc::SYS_request_key, [0; 5]),
    ("bpf", libc::SYS_bpf, [0; 5]),
    ("perf_event_open", libc::SYS_perf_event_open, [0; 5]),
    ("userfaultfd", libc::SYS_userfaultfd, [0; 5]),
    ("kcmp", libc::SYS_kcmp, [0; 5]),
    ("fanotify_init", libc::SYS_fanotify_init, [0; 5]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, [NO_FD, 0, 0, 0, 0]),
    ("name_to_handle_at", libc::SYS_name_to_handle_at, [NO_FD, 0, 0, 0, 0]),
    ("process_madvise", libc::SYS_process_madvise, [NO_FD, 0, 0, 0, 0]),
    ("move_pages", libc::SYS_move_pages, [0; 5]),
    ("migrate_pages", libc::SYS_migrate_pages, [0; 5]),
    ("mbind", libc::SYS_mbind, [0; 5]),
    ("set_mempolicy", libc::SYS_set_mempolicy, [0; 5]),
    ("quotactl", libc::SYS_quotactl, [0; 5]),
    ("syslog", libc::SYS_syslog, [10, 0, 0, 0, 0]),
    ("acct", libc::SYS_acct, [1, 0, 0, 0, 0]),
    ("swapon", libc::SYS_swapon, [0; 5]),
    ("swapoff", libc::SYS_swapoff, [0; 5]),
    ("reboot", libc::SYS_reboot, [0; 5]),
    ("kexec_load", libc::SYS_kexec_load, [0, 0, 0, 0xffff, 0]),
    ("init_module", libc::SYS_init_module, [0; 5]),
    ("finit_module", libc::SYS_finit_module, [NO_FD, 0, 0, 0, 0]),
    ("delete_module", libc::SYS_delete_module, [0; 5]),
    ("settimeofday", libc::SYS_settimeofday, [0; 5]),
    ("clock_settime", libc::SYS_clock_settime, [0; 5]),
    ("adjtimex", libc::SYS_adjtimex, [0; 5]),
    ("sethostname", libc::SYS_sethostname, [0; 5]),
    ("setdomainname", libc::SYS_setdomainname, [0; 5]),
    ("vhangup", libc::SYS_vhangup, [0; 5]),
    ("shmget", libc::SYS_shmget, [0, 4096, 0o600, 0, 0]),
    ("shmat", libc::SYS_shmat, [SELF, 0, 0, 0, 0]),
    ("shmctl", libc::SYS_shmctl, [SELF, 0, 0, 0, 0]),
    ("shmdt", libc::SYS_shmdt, [0; 5]),
    ("msgget", libc::SYS_msgget, [0, 0o600, 0, 0, 0]),
    ("msgctl", libc::SYS_msgctl, [SELF, 0, 0, 0, 0]),
    ("msgsnd", libc::SYS_msgsnd, [SELF, 0, 0, 0, 0]),
    ("msgrcv", libc::SYS_msgrcv, [SELF, 0, 0, 0, 0]),
    ("semget", libc::SYS_semget, [0, 1, 0o600, 0, 0]),
    ("semop", libc::SYS_semop, [SELF, 0, 0, 0, 0]),
    ("semtimedop", libc::SYS_semtimedop, [SELF, 0, 0, 0, 0]),
    ("semctl", libc::SYS_semctl, [SELF, 0, 0, 0, 0]),
    ("mq_open", libc::SYS_mq_open, [0; 5]),
    ("mq_unlink", libc::SYS_mq_unlink, [0; 5]),
    ("io_setup", libc::SYS_io_setup, [0; 5]),
    ("io_submit", libc::SYS_io_submit, [0; 5]),
    ("remap_file_pages", libc::SYS_remap_file_pages, [0; 5]),
    ("vmsplice", libc::SYS_vmsplice, [NO_FD, 0, 0, 0, 0]),
    ("memfd_secret", libc::SYS_memfd_secret, [0; 5]),
    ("pidfd_getfd", libc::SYS_pidfd_getfd, [NO_FD, 0, 0, 0, 0]),
    ("unknown-number", 4000, [0; 5]),
    // sockets: family, type, protocol
    ("socket-unix", libc::SYS_socket, [1, 1, 0, 0, 0]),
    ("socket-inet", libc::SYS_socket, [2, 1, 0, 0, 0]),
    ("socket-inet-udp", libc::SYS_socket, [2, 2, 0, 0, 0]),
    ("socket-inet6", libc::SYS_socket, [10, 1, 0, 0, 0]),
    ("socket-inet-high-bits", libc::SYS_socket, [HIGH | 2, 1, 0, 0, 0]),
    ("socket-netlink-route", libc::SYS_socket, [16, 3, 0, 0, 0]),
    ("socket-netlink-audit", libc::SYS_socket, [16, 3, 9, 0, 0]),
    ("socket-netlink-netfilter", libc::SYS_socket, [16, 3, 12, 0, 0]),
    ("socket-packet", libc::SYS_socket, [17, 3, 0, 0, 0]),
    ("socket-alg", libc::SYS_socket, [38, 5, 0, 0, 0]),
    ("socket-vsock", libc::SYS_socket, [40, 1, 0, 0, 0]),
    ("socket-vsock-high-bits", libc::SYS_socket, [HIGH | 40, 1, 0, 0, 0]),
    ("socket-bluetooth", libc::SYS_socket, [31, 3, 0, 0, 0]),
    ("socket-xdp", libc::SYS_socket, [44, 3, 0, 0, 0]),
    ("socket-tipc", libc::SYS_socket, [30, 1, 0, 0, 0]),
    // terminals: descriptor, request
    ("ioctl-TIOCSTI", libc::SYS_ioctl, [0, 0x5412, 0, 0, 0]),
    ("ioctl-TIOCSTI-high-bits", libc::SYS_ioctl, [0, HIGH | 0x5412, 0, 0, 0]),
    ("ioctl-TIOCLINUX", libc::SYS_ioctl, [0, 0x541c, 0, 0, 0]),
    ("ioctl-TIOCCONS", libc::SYS_ioctl, [0, 0x541d, 0, 0, 0]),
    ("ioctl-TIOCSETD", libc::SYS_ioctl, [0, 0x5423, 0, 0, 0]),
    ("ioctl-FIOCLEX", libc::SYS_ioctl, [0, 0x5451, 0, 0, 0]),
    ("ioctl-FIONCLEX", libc::SYS_ioctl, [0, 0x5450, 0, 0, 0]),
    ("fcntl-F_SETLEASE", libc::SYS_fcntl, [0, 1024, 0, 0, 0]),
    ("fcntl-F_NOTIFY", libc::SYS_fcntl, [0, 1026, 1, 0, 0]),
    ("fcntl-F_NOTIFY-high-bits", libc::SYS_fcntl, [0, HIGH | 1026, 1, 0, 0]),
    ("fcntl-F_GETFD", libc::SYS_fcntl, [0, 1, 0, 0, 0]),
    ("prctl-PR_SET_MM", libc::SYS_prctl, [35, 0, 0, 0, 0]),
    ("prctl-PR_MCE_KILL", libc::SYS_prctl, [33, 0, 0, 0, 0]),
    ("prctl-PR_SCHED_CORE", libc::SYS_prctl, [62, 0, 0, 0, 0]),
    ("prctl-PR_GET_DUMPABLE", libc::SYS_prctl, [3, 0, 0, 0, 0]),
    ("personality-query", libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0]),
    ("personality-no-randomize", libc::SYS_personality, [0x4_0000, 0, 0, 0, 0]),
    ("personality-read-implies-exec", libc::SYS_personality, [0x40_0000, 0, 0, 0, 0]),
    ("personality-linux", libc::SYS_personality, [0, 0, 0, 0, 0]),
    // nodes: directory, name (null), mode, device
    ("mknodat-character", libc::SYS_mknodat, [AT_FDCWD, 0, 0o020_666, 0x103, 0]),
    ("mknodat-block", libc::SYS_mknodat, [AT_FDCWD, 0, 0o060_666, 0x700, 0]),
    ("mknodat-fifo", libc::SYS_mknodat, [AT_FDCWD, 0, 0o010_666, 0, 0]),
    // what programs need
    ("madvise-mergeable", libc::SYS_madvise, [0, 0, 12, 0, 0]),
    ("madvise-normal", libc::SYS_madvise, [0; 5]),
    ("socketpair-inet", libc::SYS_socketpair, [2, 1, 0, 0, 0]),
    ("socketpair-unix", libc::SYS_socketpair, [1, 1, 0, 0, 0]),
    ("seccomp-new-listener", libc::SYS_seccomp, [1, 8, 0, 0, 0]),
    ("seccomp-filter", libc::SYS_seccomp, [1, 0, 0, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0; 5]),
    ("flock", libc::SYS_flock, [0, 8, 0, 0, 0]),
    ("eventfd2", libc::SYS_eventfd2, [0; 5]),
    ("epoll_create1", libc::SYS_epoll_create1, [0; 5]),
    ("timerfd_create", libc::SYS_timerfd_create, [1, 0, 0, 0, 0]),
    ("inotify_init1", libc::SYS_inotify_init1, [0; 5]),
    ("sched_yield", libc::SYS_sched_yield, [0; 5]),
    ("statx", libc::SYS_statx, [NO_FD, 0, 0, 0, 0]),
    ("openat2", libc::SYS_openat2, [NO_FD, 0, 0, 0, 0]),
    ("ptrace-bad-pid", libc::SYS_ptrace, [16, 0x7fff_fff0, 0, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [0x7fff_fff0, 0, 0, 0, 0]),
    ("landlock-abi", libc::SYS_landlock_create_ruleset, [0, 0, 1, 0, 0]),
    ("getrandom", libc::SYS_getrandom, [0; 5]),
    ("setresuid-keep", libc::SYS_setresuid, [SELF, SELF, SELF, 0, 0]),
    ("setresgid-keep", libc::SYS_setresgid, [SELF, SELF, SELF, 0, 0]),
    ("setpriority-nicer", libc::SYS_setpriority, [0, 0, 19, 0, 0]),
    ("setpriority-greedier", libc::SYS_setpriority, [0, 0, c(-5), 0, 0]),
];
