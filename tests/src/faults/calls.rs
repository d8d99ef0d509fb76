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

/// What a call is about, by which its occurrences are told apart: see [`super::object`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// Nothing that would make a difference.
    Nothing,
    /// What the descriptor in the first argument leads to.
    Descriptor,
    /// The same, and the request in the second.
    Request,
    /// The path in the first argument.
    Path,
    /// The path in the second argument, or what the descriptor in the first leads to where that is empty.
    At,
    /// The number in the first argument.
    Number,
    /// Each occurrence is about another: the steps of making a box.
    Each,
}

/// One system call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Its number.
    pub(super) number: i64,
    /// Its name.
    pub(super) name: &'static str,
    /// What it is about.
    pub(super) object: Object,
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
    ($($call:ident $name:literal $object:ident: $($error:ident)*;)*) => {
        &[$(Row { number: libc::$call, name: $name, object: Object::$object, errors: &[$($error),*] },)*]
    };
}

/// In the order in which a job meets them.
const ROWS: &[Row] = rows! {
    // The C library and Rust's before main.
    SYS_brk "brk" Nothing: ENOMEM;
    SYS_mmap "mmap" Nothing: ENOMEM EPERM;
    SYS_munmap "munmap" Nothing: ENOMEM;
    SYS_mremap "mremap" Nothing: ENOMEM;
    SYS_mprotect "mprotect" Nothing: ENOMEM EACCES;
    SYS_madvise "madvise" Nothing: ENOMEM EAGAIN;
    SYS_arch_prctl "arch_prctl" Nothing: ;
    SYS_set_tid_address "set_tid_address" Nothing: ;
    SYS_set_robust_list "set_robust_list" Nothing: ENOSYS;
    SYS_rseq "rseq" Nothing: ENOSYS;
    SYS_sigaltstack "sigaltstack" Nothing: ENOMEM;
    SYS_rt_sigaction "rt_sigaction" Number: ;
    SYS_rt_sigprocmask "rt_sigprocmask" Nothing: ;
    SYS_rt_sigtimedwait "rt_sigtimedwait" Nothing: EINTR;
    SYS_getrandom "getrandom" Nothing: EINTR EPERM;
    SYS_sched_getaffinity "sched_getaffinity" Nothing: EPERM;
    SYS_sched_setaffinity "sched_setaffinity" Nothing: ENOMEM EPERM;
    SYS_getcpu "getcpu" Nothing: EPERM;
    SYS_clock_gettime "clock_gettime" Nothing: ;
    SYS_clock_nanosleep "clock_nanosleep" Nothing: EINTR;
    SYS_sysinfo "sysinfo" Nothing: ;
    SYS_uname "uname" Nothing: ;
    // Who it is; these answer no error.
    SYS_getpid "getpid" Nothing: ;
    SYS_getppid "getppid" Nothing: ;
    SYS_getsid "getsid" Nothing: ;
    SYS_gettid "gettid" Nothing: ;
    SYS_getuid "getuid" Nothing: ;
    SYS_geteuid "geteuid" Nothing: ;
    SYS_getgid "getgid" Nothing: ;
    SYS_getegid "getegid" Nothing: ;
    SYS_umask "umask" Nothing: ;
    SYS_setfsuid "setfsuid" Nothing: ;
    SYS_setfsgid "setfsgid" Nothing: ;
    // Files.
    SYS_access "access" Path: ENOMEM EACCES;
    SYS_faccessat2 "faccessat2" At: ENOMEM EACCES EPERM;
    SYS_stat "stat" Path: ENOMEM EACCES;
    SYS_lstat "lstat" Path: ENOMEM EACCES;
    SYS_fstat "fstat" Descriptor: ENOMEM;
    SYS_newfstatat "newfstatat" At: ENOMEM EACCES;
    SYS_statx "statx" At: ENOMEM EACCES EPERM;
    SYS_statfs "statfs" Path: EINTR ENOMEM EIO;
    SYS_fstatfs "fstatfs" Descriptor: EINTR ENOMEM EIO;
    SYS_open "open" Path: EINTR ENOMEM ENOSPC EACCES EMFILE;
    SYS_openat "openat" At: EINTR ENOMEM ENOSPC EACCES EMFILE;
    SYS_openat2 "openat2" At: EINTR ENOMEM ENOSPC EACCES EMFILE EPERM;
    SYS_read "read" Descriptor: EINTR ENOMEM EIO;
    SYS_readv "readv" Descriptor: EINTR ENOMEM EIO;
    SYS_pread64 "pread64" Descriptor: EINTR ENOMEM EIO;
    SYS_write "write" Descriptor: EINTR ENOMEM EPERM ENOSPC EIO;
    SYS_writev "writev" Descriptor: EINTR ENOMEM EPERM ENOSPC EIO;
    SYS_pwrite64 "pwrite64" Descriptor: EINTR ENOMEM EPERM ENOSPC EIO;
    SYS_sendfile "sendfile" Nothing: EINTR ENOMEM EIO EAGAIN;
    SYS_copy_file_range "copy_file_range" Nothing: EINTR ENOMEM ENOSPC EIO EPERM;
    SYS_splice "splice" Nothing: EINTR ENOMEM;
    SYS_ftruncate "ftruncate" Descriptor: EINTR EIO EPERM;
    SYS_lseek "lseek" Descriptor: ;
    // EIO is for files of a network file system; Rust's library gives up where a directory answers it.
    SYS_close "close" Descriptor: EINTR;
    SYS_close_range "close_range" Nothing: ENOMEM EPERM;
    SYS_dup "dup" Descriptor: EMFILE;
    SYS_dup2 "dup2" Descriptor: EINTR EMFILE;
    SYS_dup3 "dup3" Descriptor: EINTR EMFILE;
    SYS_fcntl "fcntl" Request: EINTR ENOMEM EMFILE ENOLCK;
    SYS_flock "flock" Descriptor: EINTR ENOMEM ENOLCK;
    SYS_ioctl "ioctl" Request: ENOMEM EPERM EINTR;
    SYS_getdents64 "getdents64" Descriptor: EINTR ENOMEM EIO;
    SYS_readlink "readlink" Path: ENOMEM EACCES;
    SYS_readlinkat "readlinkat" At: ENOMEM EACCES;
    SYS_mkdirat "mkdirat" At: ENOMEM ENOSPC EPERM;
    SYS_mkdir "mkdir" Path: ENOMEM ENOSPC EPERM;
    SYS_mknodat "mknodat" At: ENOMEM ENOSPC EPERM;
    SYS_symlinkat "symlinkat" Each: ENOMEM ENOSPC EPERM;
    SYS_renameat "renameat" At: ENOMEM ENOSPC EPERM;
    SYS_renameat2 "renameat2" At: ENOMEM ENOSPC EPERM;
    SYS_unlinkat "unlinkat" At: ENOMEM EPERM EBUSY;
    SYS_unlink "unlink" Path: ENOMEM EPERM EBUSY;
    SYS_rmdir "rmdir" Path: ENOMEM EPERM EBUSY;
    SYS_fchmod "fchmod" Descriptor: ENOMEM EPERM EIO;
    SYS_fchmodat "fchmodat" At: ENOMEM EPERM EIO;
    SYS_fchown "fchown" Descriptor: ENOMEM EPERM EIO;
    SYS_fchownat "fchownat" At: ENOMEM EPERM EIO;
    SYS_utimensat "utimensat" At: ENOMEM EPERM EACCES;
    SYS_chdir "chdir" Path: ENOMEM EACCES;
    SYS_fchdir "fchdir" Descriptor: EACCES EPERM;
    // Mounts.
    SYS_open_tree "open_tree" Each: ENOMEM EPERM EMFILE;
    SYS_move_mount "move_mount" Each: ENOMEM EPERM;
    SYS_fsopen "fsopen" Each: ENOMEM EPERM EMFILE;
    SYS_fsconfig "fsconfig" Each: ENOMEM EPERM ENOSPC;
    SYS_fsmount "fsmount" Each: ENOMEM EPERM ENOSPC EMFILE;
    SYS_fspick "fspick" Each: ENOMEM EPERM EMFILE;
    SYS_mount_setattr "mount_setattr" Each: ENOMEM EPERM EBUSY;
    SYS_mount "mount" Each: ENOMEM EPERM ENOSPC EBUSY;
    SYS_umount2 "umount2" Path: ENOMEM EPERM EBUSY;
    SYS_pivot_root "pivot_root" Path: ENOMEM EPERM EBUSY;
    SYS_chroot "chroot" Path: ENOMEM EPERM;
    // Processes, and what is between them.
    SYS_clone "clone" Number: ENOMEM EPERM ENOSPC EAGAIN;
    SYS_clone3 "clone3" Nothing: ENOMEM EPERM ENOSPC EAGAIN ENOSYS;
    SYS_unshare "unshare" Number: ENOMEM EPERM ENOSPC;
    SYS_setns "setns" Each: ENOMEM EPERM;
    SYS_execve "execve" Path: ENOMEM EPERM EACCES EIO E2BIG;
    SYS_waitid "waitid" Nothing: EINTR;
    SYS_wait4 "wait4" Nothing: EINTR;
    SYS_kill "kill" Each: EPERM;
    SYS_pidfd_open "pidfd_open" Each: ENOMEM EPERM EMFILE;
    SYS_pidfd_send_signal "pidfd_send_signal" Each: EPERM;
    SYS_signalfd4 "signalfd4" Nothing: ENOMEM EMFILE;
    SYS_pipe2 "pipe2" Nothing: ENOMEM EMFILE ENFILE;
    SYS_socket "socket" Number: ENOMEM EPERM ENOBUFS EMFILE;
    SYS_socketpair "socketpair" Number: ENOMEM EPERM ENOBUFS EMFILE;
    SYS_sendmsg "sendmsg" Descriptor: EINTR ENOMEM ENOBUFS;
    SYS_sendto "sendto" Descriptor: EINTR ENOMEM ENOBUFS;
    SYS_recvmsg "recvmsg" Descriptor: EINTR ENOMEM;
    SYS_recvfrom "recvfrom" Descriptor: EINTR ENOMEM;
    SYS_shutdown "shutdown" Descriptor: ENOBUFS;
    SYS_epoll_create1 "epoll_create1" Nothing: ENOMEM EMFILE;
    SYS_epoll_ctl "epoll_ctl" Request: ENOMEM ENOSPC EPERM;
    SYS_epoll_wait "epoll_wait" Nothing: EINTR;
    SYS_epoll_pwait "epoll_pwait" Nothing: EINTR;
    SYS_epoll_pwait2 "epoll_pwait2" Nothing: EINTR EPERM;
    SYS_poll "poll" Nothing: EINTR ENOMEM;
    SYS_shmctl "shmctl" Nothing: ENOMEM EPERM;
    SYS_semctl "semctl" Nothing: ENOMEM EPERM;
    SYS_msgctl "msgctl" Nothing: ENOMEM EPERM;
    // What the job loses.
    SYS_setsid "setsid" Nothing: EPERM;
    SYS_setpriority "setpriority" Nothing: EPERM EACCES;
    SYS_prlimit64 "prlimit64" Each: EPERM;
    SYS_prctl "prctl" Number: EPERM;
    SYS_capget "capget" Nothing: EPERM;
    SYS_capset "capset" Each: ENOMEM EPERM;
    SYS_setresuid "setresuid" Each: ENOMEM EPERM EAGAIN;
    SYS_getresuid "getresuid" Nothing: ;
    SYS_getresgid "getresgid" Nothing: ;
    SYS_getgroups "getgroups" Nothing: EPERM;
    SYS_setresgid "setresgid" Each: ENOMEM EPERM;
    SYS_setgroups "setgroups" Each: ENOMEM EPERM;
    SYS_sethostname "sethostname" Nothing: EPERM;
    SYS_keyctl "keyctl" Number: EINTR ENOMEM EPERM EDQUOT;
    SYS_landlock_create_ruleset "landlock_create_ruleset" Each: ENOMEM EPERM EMFILE;
    SYS_landlock_add_rule "landlock_add_rule" Each: ENOMEM EPERM;
    SYS_landlock_restrict_self "landlock_restrict_self" Each: ENOMEM EPERM E2BIG;
    SYS_seccomp "seccomp" Number: ENOMEM EPERM;
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
