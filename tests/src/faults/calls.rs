//! The system calls of the driver and its children, each with the errors that may come of it: those of its
//! manual page that have to do with the machine and not with wrong arguments, and EPERM where a container's
//! filter is known to answer it. A call without a row fails the campaign: it has to be added here.

use nix::errno::Errno::{
    self, E2BIG, EACCES, EAGAIN, EBUSY, EDQUOT, EINTR, EIO, EMFILE, ENFILE, ENOBUFS, ENOLCK, ENOMEM, ENOSPC,
    ENOSYS, EPERM,
};

/// How an error is put in place of a call's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// The call is not made.
    Instead,
    /// The call is made first: the kernel closes a descriptor even if it answers an error.
    After,
    /// brk(2) as the kernel has it answers no error, but the break as it was.
    Unmoved,
}

/// One system call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Its number.
    pub(super) number: i64,
    /// Its name.
    pub(super) name: &'static str,
    /// What may come of it; nothing for calls that cannot fail, but for wrong arguments.
    pub(super) errors: &'static [Errno],
}

impl Row {
    /// How its failure looks.
    pub(super) fn manner(&self) -> Manner {
        match self.number {
            libc::SYS_close => Manner::After,
            libc::SYS_brk => Manner::Unmoved,
            _ => Manner::Instead,
        }
    }
}

/// The row of a number.
pub(super) fn row(number: i64) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.number == number)
}

macro_rules! rows {
    ($($call:ident $name:literal: $($error:ident)*;)*) => {
        &[$(Row { number: libc::$call, name: $name, errors: &[$($error),*] },)*]
    };
}

/// In the order in which a job meets them.
const ROWS: &[Row] = rows! {
    // The C library and Rust's before main.
    SYS_brk "brk": ENOMEM;
    SYS_mmap "mmap": ENOMEM EPERM;
    SYS_munmap "munmap": ENOMEM;
    SYS_mremap "mremap": ENOMEM;
    SYS_mprotect "mprotect": ENOMEM EACCES;
    SYS_madvise "madvise": ENOMEM EAGAIN;
    SYS_arch_prctl "arch_prctl": ;
    SYS_set_tid_address "set_tid_address": ;
    SYS_set_robust_list "set_robust_list": ENOSYS;
    SYS_rseq "rseq": ENOSYS;
    SYS_sigaltstack "sigaltstack": ENOMEM;
    SYS_rt_sigaction "rt_sigaction": ;
    SYS_rt_sigprocmask "rt_sigprocmask": ;
    SYS_rt_sigtimedwait "rt_sigtimedwait": EINTR;
    SYS_getrandom "getrandom": EINTR EPERM;
    SYS_sched_getaffinity "sched_getaffinity": EPERM;
    SYS_sched_setaffinity "sched_setaffinity": ENOMEM EPERM;
    SYS_getcpu "getcpu": EPERM;
    SYS_clock_gettime "clock_gettime": ;
    SYS_clock_nanosleep "clock_nanosleep": EINTR;
    SYS_sysinfo "sysinfo": EPERM;
    SYS_uname "uname": ;
    // Who it is; these answer no error.
    SYS_getpid "getpid": ;
    SYS_getppid "getppid": ;
    SYS_getsid "getsid": ;
    SYS_gettid "gettid": ;
    SYS_getuid "getuid": ;
    SYS_geteuid "geteuid": ;
    SYS_getgid "getgid": ;
    SYS_getegid "getegid": ;
    SYS_umask "umask": ;
    SYS_setfsuid "setfsuid": ;
    SYS_setfsgid "setfsgid": ;
    // Files.
    SYS_access "access": ENOMEM EACCES;
    SYS_faccessat2 "faccessat2": ENOMEM EACCES EPERM;
    SYS_fstat "fstat": ENOMEM;
    SYS_newfstatat "newfstatat": ENOMEM EACCES;
    SYS_statx "statx": ENOMEM EACCES EPERM;
    SYS_statfs "statfs": EINTR ENOMEM EIO;
    SYS_fstatfs "fstatfs": EINTR ENOMEM EIO;
    SYS_openat "openat": EINTR ENOMEM ENOSPC EACCES EMFILE;
    SYS_openat2 "openat2": EINTR ENOMEM ENOSPC EACCES EMFILE EPERM;
    SYS_read "read": EINTR ENOMEM EIO;
    SYS_pread64 "pread64": EINTR ENOMEM EIO;
    SYS_write "write": EINTR ENOMEM EPERM ENOSPC EIO;
    SYS_writev "writev": EINTR ENOMEM EPERM ENOSPC EIO;
    SYS_pwrite64 "pwrite64": EINTR ENOMEM EPERM ENOSPC EIO;
    SYS_sendfile "sendfile": EINTR ENOMEM EIO EAGAIN;
    SYS_copy_file_range "copy_file_range": EINTR ENOMEM ENOSPC EIO EPERM;
    SYS_splice "splice": EINTR ENOMEM;
    SYS_ftruncate "ftruncate": EINTR EIO EPERM;
    SYS_lseek "lseek": ;
    // EIO is for files of a network file system; Rust's library gives up where a directory answers it.
    SYS_close "close": EINTR;
    SYS_close_range "close_range": ENOMEM EPERM;
    SYS_dup "dup": EMFILE;
    SYS_dup2 "dup2": EINTR EMFILE;
    SYS_dup3 "dup3": EINTR EMFILE;
    SYS_fcntl "fcntl": EINTR ENOMEM EMFILE ENOLCK;
    SYS_flock "flock": EINTR ENOMEM ENOLCK;
    SYS_ioctl "ioctl": ENOMEM EPERM EINTR;
    SYS_getdents64 "getdents64": EINTR ENOMEM EIO;
    SYS_readlink "readlink": ENOMEM EACCES;
    SYS_readlinkat "readlinkat": ENOMEM EACCES;
    SYS_mkdirat "mkdirat": ENOMEM ENOSPC EPERM;
    SYS_mkdir "mkdir": ENOMEM ENOSPC EPERM;
    SYS_mknodat "mknodat": ENOMEM ENOSPC EPERM;
    SYS_symlinkat "symlinkat": ENOMEM ENOSPC EPERM;
    SYS_renameat "renameat": ENOMEM ENOSPC EPERM;
    SYS_renameat2 "renameat2": ENOMEM ENOSPC EPERM;
    SYS_unlinkat "unlinkat": ENOMEM EPERM EBUSY;
    SYS_unlink "unlink": ENOMEM EPERM EBUSY;
    SYS_rmdir "rmdir": ENOMEM EPERM EBUSY;
    SYS_fchmod "fchmod": ENOMEM EPERM EIO;
    SYS_fchmodat "fchmodat": ENOMEM EPERM EIO;
    SYS_fchown "fchown": ENOMEM EPERM EIO;
    SYS_fchownat "fchownat": ENOMEM EPERM EIO;
    SYS_utimensat "utimensat": ENOMEM EPERM EACCES;
    SYS_chdir "chdir": ENOMEM EACCES;
    SYS_fchdir "fchdir": EACCES EPERM;
    // Mounts.
    SYS_open_tree "open_tree": ENOMEM EPERM EMFILE;
    SYS_move_mount "move_mount": ENOMEM EPERM;
    SYS_fsopen "fsopen": ENOMEM EPERM EMFILE;
    SYS_fsconfig "fsconfig": ENOMEM EPERM ENOSPC;
    SYS_fsmount "fsmount": ENOMEM EPERM ENOSPC EMFILE;
    SYS_fspick "fspick": ENOMEM EPERM EMFILE;
    SYS_mount_setattr "mount_setattr": ENOMEM EPERM EBUSY;
    SYS_mount "mount": ENOMEM EPERM ENOSPC EBUSY;
    SYS_umount2 "umount2": ENOMEM EPERM EBUSY;
    SYS_pivot_root "pivot_root": ENOMEM EPERM EBUSY;
    SYS_chroot "chroot": ENOMEM EPERM;
    // Processes, and what is between them.
    SYS_clone "clone": ENOMEM EPERM ENOSPC EAGAIN;
    SYS_clone3 "clone3": ENOMEM EPERM ENOSPC EAGAIN ENOSYS;
    SYS_unshare "unshare": ENOMEM EPERM ENOSPC;
    SYS_setns "setns": ENOMEM EPERM;
    SYS_execve "execve": ENOMEM EPERM EACCES EIO E2BIG;
    SYS_waitid "waitid": EINTR;
    SYS_wait4 "wait4": EINTR;
    SYS_kill "kill": EPERM;
    SYS_pidfd_open "pidfd_open": ENOMEM EPERM EMFILE;
    SYS_pidfd_send_signal "pidfd_send_signal": EPERM;
    SYS_signalfd4 "signalfd4": ENOMEM EMFILE;
    SYS_pipe2 "pipe2": ENOMEM EMFILE ENFILE;
    SYS_socket "socket": ENOMEM EPERM ENOBUFS EMFILE;
    SYS_socketpair "socketpair": ENOMEM EPERM ENOBUFS EMFILE;
    SYS_sendmsg "sendmsg": EINTR ENOMEM ENOBUFS;
    SYS_sendto "sendto": EINTR ENOMEM ENOBUFS;
    SYS_recvmsg "recvmsg": EINTR ENOMEM;
    SYS_recvfrom "recvfrom": EINTR ENOMEM;
    SYS_shutdown "shutdown": ENOBUFS;
    SYS_epoll_create1 "epoll_create1": ENOMEM EMFILE;
    SYS_epoll_ctl "epoll_ctl": ENOMEM ENOSPC EPERM;
    SYS_epoll_wait "epoll_wait": EINTR;
    SYS_epoll_pwait "epoll_pwait": EINTR;
    SYS_epoll_pwait2 "epoll_pwait2": EINTR EPERM;
    SYS_poll "poll": EINTR ENOMEM;
    SYS_shmctl "shmctl": ENOMEM EPERM;
    SYS_semctl "semctl": ENOMEM EPERM;
    SYS_msgctl "msgctl": ENOMEM EPERM;
    // What the job loses.
    SYS_setsid "setsid": EPERM;
    SYS_setpriority "setpriority": EPERM EACCES;
    SYS_prlimit64 "prlimit64": EPERM;
    SYS_prctl "prctl": EPERM;
    SYS_capget "capget": EPERM;
    SYS_capset "capset": ENOMEM EPERM;
    SYS_setresuid "setresuid": ENOMEM EPERM EAGAIN;
    SYS_getresuid "getresuid": ;
    SYS_getresgid "getresgid": ;
    SYS_getgroups "getgroups": EPERM;
    SYS_setresgid "setresgid": ENOMEM EPERM;
    SYS_setgroups "setgroups": ENOMEM EPERM;
    SYS_sethostname "sethostname": EPERM;
    SYS_keyctl "keyctl": EINTR ENOMEM EPERM EDQUOT;
    SYS_landlock_create_ruleset "landlock_create_ruleset": ENOMEM EPERM EMFILE;
    SYS_landlock_add_rule "landlock_add_rule": ENOMEM EPERM;
    SYS_landlock_restrict_self "landlock_restrict_self": ENOMEM EPERM E2BIG;
    SYS_seccomp "seccomp": ENOMEM EPERM;
};

/// Calls at which nothing is injected: they end the process, or belong to a signal.
pub(super) const ENDS: [i64; 4] =
    [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn, libc::SYS_restart_syscall];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_has_two_rows() {
        for one in ROWS {
            assert_eq!(ROWS.iter().filter(|row| row.number == one.number).count(), 1, "{}", one.name);
        }
    }
}
