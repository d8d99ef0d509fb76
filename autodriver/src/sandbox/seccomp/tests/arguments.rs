//! What the conditions must let through and refuse, written down a second
//! time from the manual pages and with the constants of the C library, so that
//! a wrong number in the policy does not pass because it is read back.

#![allow(
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    reason = "these constants have other types in other C libraries; none is negative"
)]

use std::collections::BTreeMap;

use super::super::compile::compile;
use super::super::table::{Answer, Rule};
use super::interpreter::{run, Call};
use super::{abi, job, number, offline, shared, AARCH64, I386, X86_64};
use super::{EAFNOSUPPORT, EINVAL, EPERM};

const ALLOW: Answer = Answer::Allow;

/// One call: its name, the arguments that matter as (position, value), answer.
type Case = (&'static str, &'static [(usize, u64)], Answer);

/// Harmless in the low half, and set in the high half: an int argument has no
/// high half, so the answer must be that of the low half.
const HIGH: u64 = 0xdead_beef_0000_0000;

#[rustfmt::skip]
const CASES: &[Case] = &[
    // clone(2): fork, vfork and pthread_create as C libraries do them.
    ("clone", &[(0, libc::SIGCHLD as u64)], ALLOW),
    ("clone", &[(0, (libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64)], ALLOW),
    ("clone", &[(0, (libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD | libc::CLONE_SYSVSEM | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_CLEARTID) as u64)], ALLOW),
    ("clone", &[(0, HIGH | libc::SIGCHLD as u64)], ALLOW),
    ("clone", &[(0, (libc::CLONE_VFORK | libc::SIGCHLD) as u64)], EPERM),
    ("clone", &[(0, (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64)], EPERM),
    ("clone", &[(0, libc::CLONE_NEWNS as u64)], EPERM),
    ("clone", &[(0, libc::CLONE_NEWCGROUP as u64)], EPERM),
    ("clone", &[(0, libc::CLONE_NEWUTS as u64)], EPERM),
    ("clone", &[(0, libc::CLONE_NEWIPC as u64)], EPERM),
    ("clone", &[(0, (libc::CLONE_NEWUSER | libc::SIGCHLD) as u64)], EPERM),
    ("clone", &[(0, libc::CLONE_NEWPID as u64)], EPERM),
    ("clone", &[(0, libc::CLONE_NEWNET as u64)], EPERM),
    ("clone", &[(0, HIGH | libc::CLONE_NEWUSER as u64)], EPERM),
    // socket(2)
    ("socket", &[(0, libc::AF_UNIX as u64)], ALLOW),
    ("socket", &[(0, libc::AF_INET as u64), (2, 6)], ALLOW),
    ("socket", &[(0, libc::AF_INET6 as u64), (2, 17)], ALLOW),
    ("socket", &[(0, HIGH | libc::AF_INET as u64)], ALLOW),
    ("socket", &[(0, libc::AF_NETLINK as u64), (2, libc::NETLINK_ROUTE as u64)], ALLOW),
    ("socket", &[(0, libc::AF_NETLINK as u64), (2, HIGH)], ALLOW),
    ("socket", &[(0, libc::AF_NETLINK as u64), (2, libc::NETLINK_AUDIT as u64)], EAFNOSUPPORT),
    ("socket", &[(0, libc::AF_NETLINK as u64), (2, libc::NETLINK_NETFILTER as u64)], EAFNOSUPPORT),
    ("socket", &[(0, libc::AF_VSOCK as u64)], EAFNOSUPPORT),
    ("socket", &[(0, HIGH | libc::AF_VSOCK as u64)], EAFNOSUPPORT),
    ("socket", &[(0, libc::AF_ALG as u64)], EAFNOSUPPORT),
    ("socket", &[(0, libc::AF_PACKET as u64)], EAFNOSUPPORT),
    ("socket", &[(0, libc::AF_UNSPEC as u64)], EAFNOSUPPORT),
    ("socketpair", &[(0, libc::AF_UNIX as u64)], ALLOW),
    ("socketpair", &[(0, HIGH | libc::AF_UNIX as u64)], ALLOW),
    ("socketpair", &[(0, libc::AF_TIPC as u64)], EAFNOSUPPORT),
    ("socketpair", &[(0, HIGH | libc::AF_TIPC as u64)], EAFNOSUPPORT),
    // ioctl_tty(2); the high half is CVE-2019-7303 and CVE-2019-10063.
    ("ioctl", &[(1, libc::TCGETS as u64)], ALLOW),
    ("ioctl", &[(1, libc::TIOCGWINSZ as u64)], ALLOW),
    ("ioctl", &[(1, HIGH | libc::FIONREAD as u64)], ALLOW),
    ("ioctl", &[(1, libc::TIOCSTI as u64)], EPERM),
    ("ioctl", &[(1, HIGH | libc::TIOCSTI as u64)], EPERM),
    ("ioctl", &[(1, libc::TIOCLINUX as u64)], EPERM),
    ("ioctl", &[(1, libc::TIOCCONS as u64)], EPERM),
    ("ioctl", &[(1, 0x5423)], EPERM), // TIOCSETD, which the libc crate lacks
    // fcntl(2)
    ("fcntl", &[(1, libc::F_SETFD as u64)], ALLOW),
    ("fcntl", &[(1, HIGH | libc::F_SETLK as u64)], ALLOW),
    ("fcntl", &[(1, libc::F_GETLEASE as u64)], ALLOW),
    ("fcntl", &[(1, libc::F_SETLEASE as u64)], EPERM),
    ("fcntl", &[(1, HIGH | libc::F_SETLEASE as u64)], EPERM),
    ("fcntl", &[(1, libc::F_NOTIFY as u64)], EPERM),
    ("fcntl64", &[(1, libc::F_OFD_SETLK as u64)], ALLOW),
    ("fcntl64", &[(1, libc::F_SETLEASE as u64)], EPERM),
    ("fcntl64", &[(1, HIGH | libc::F_NOTIFY as u64)], EPERM),
    // madvise(2)
    ("madvise", &[(2, libc::MADV_DONTNEED as u64)], ALLOW),
    ("madvise", &[(2, HIGH | libc::MADV_FREE as u64)], ALLOW),
    ("madvise", &[(2, libc::MADV_MERGEABLE as u64)], EINVAL),
    ("madvise", &[(2, HIGH | libc::MADV_MERGEABLE as u64)], EINVAL),
    // prctl(2)
    ("prctl", &[(0, libc::PR_SET_NAME as u64)], ALLOW),
    ("prctl", &[(0, libc::PR_SET_SECCOMP as u64)], ALLOW),
    ("prctl", &[(0, HIGH | libc::PR_SET_PDEATHSIG as u64)], ALLOW),
    ("prctl", &[(0, libc::PR_SET_MM as u64)], EPERM),
    ("prctl", &[(0, HIGH | libc::PR_SET_MM as u64)], EPERM),
    ("prctl", &[(0, libc::PR_MCE_KILL as u64)], EPERM),
    ("prctl", &[(0, libc::PR_SCHED_CORE as u64)], EPERM),
    ("prctl", &[(0, 67)], EPERM), // PR_SET_MEMORY_MERGE, which the libc crate lacks
    // personality(2)
    ("personality", &[(0, 0)], ALLOW), // PER_LINUX
    ("personality", &[(0, 0x002_0000)], ALLOW), // UNAME26, which the libc crate lacks for musl
    ("personality", &[(0, libc::ADDR_NO_RANDOMIZE as u64)], ALLOW),
    ("personality", &[(0, 0xffff_ffff)], ALLOW),
    ("personality", &[(0, u64::MAX)], ALLOW),
    ("personality", &[(0, libc::READ_IMPLIES_EXEC as u64)], EPERM),
    ("personality", &[(0, HIGH | libc::MMAP_PAGE_ZERO as u64)], EPERM),
    ("personality", &[(0, 6)], EPERM), // PER_BSD
    // mknod(2): the kernel reads 16 bits of the mode.
    ("mknod", &[(1, 0o644)], ALLOW),
    ("mknod", &[(1, libc::S_IFREG as u64 | 0o644)], ALLOW),
    ("mknod", &[(1, libc::S_IFIFO as u64 | 0o600)], ALLOW),
    ("mknod", &[(1, HIGH | libc::S_IFSOCK as u64)], ALLOW),
    ("mknod", &[(1, libc::S_IFCHR as u64 | 0o600)], EPERM),
    ("mknod", &[(1, HIGH | libc::S_IFBLK as u64)], EPERM),
    ("mknodat", &[(1, libc::S_IFCHR as u64), (2, libc::S_IFIFO as u64 | 0o600)], ALLOW),
    ("mknodat", &[(2, 0x0001_0000 | libc::S_IFCHR as u64)], EPERM),
    ("mknodat", &[(2, HIGH | libc::S_IFBLK as u64 | 0o600)], EPERM),
    // seccomp(2)
    ("seccomp", &[(0, libc::SECCOMP_SET_MODE_FILTER as u64)], ALLOW),
    ("seccomp", &[(0, libc::SECCOMP_SET_MODE_FILTER as u64), (1, HIGH | libc::SECCOMP_FILTER_FLAG_TSYNC as u64)], ALLOW),
    ("seccomp", &[(0, libc::SECCOMP_GET_ACTION_AVAIL as u64)], ALLOW),
    ("seccomp", &[(0, libc::SECCOMP_SET_MODE_FILTER as u64), (1, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u64)], EPERM),
    ("seccomp", &[(1, HIGH | (libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_LOG) as u64)], EPERM),
];

#[test]
fn conditions_answer_as_written_here_in_every_abi() {
    let policy = job();
    let (x86_64, i386, aarch64) = (abi(X86_64), abi(I386), abi(AARCH64));
    for (program, abi) in [
        (compile(&policy, &[&x86_64]), &x86_64),
        (compile(&policy, &[&x86_64, &i386]), &x86_64),
        (compile(&policy, &[&x86_64, &i386]), &i386),
        (compile(&policy, &[&aarch64]), &aarch64),
    ] {
        for (name, set, expected) in CASES {
            let Some(number) = number(abi, name) else {
                continue;
            };
            let mut arguments = [0; 6];
            for (place, value) in *set {
                arguments[*place] = *value;
            }
            let call = Call { number, arch: abi.arch, arguments };
            assert_eq!(run(&program, &call), expected.code(), "{name} {call:x?}");
        }
    }
}

#[test]
fn every_condition_is_tried_on_both_sides_and_with_a_high_half() {
    let policy = job();
    let mut tried: BTreeMap<&str, (bool, bool, bool)> = BTreeMap::new();
    for (name, set, answer) in CASES {
        let seen = tried.entry(name).or_default();
        seen.0 |= *answer == ALLOW;
        seen.1 |= *answer != ALLOW;
        seen.2 |= *answer != ALLOW && set.iter().any(|(_, value)| *value >> 32 != 0);
    }
    let conditional: BTreeMap<&str, (bool, bool, bool)> = policy
        .rows
        .iter()
        .filter(|row| matches!(row.rule, Rule::Depends { .. }))
        .map(|row| (row.name, (true, true, true)))
        .collect();
    assert_eq!(tried, conditional);
}

/// The rows the rest of the design leans on, in their own words.
#[test]
fn calls_the_design_relies_on_get_their_answer() {
    let x86_64 = abi(X86_64);
    let i386 = abi(I386);
    let program = compile(&job(), &[&x86_64, &i386]);
    let answer = |abi: &super::Abi, name| {
        let call = Call {
            number: number(abi, name).unwrap_or_else(|| panic!("{name} has no number")),
            arch: abi.arch,
            arguments: [0; 6],
        };
        run(&program, &call)
    };
    for abi in [&x86_64, &i386] {
        for name in ["execve", "ptrace", "flock", "memfd_create", "setresuid", "exit_group"] {
            assert_eq!(answer(abi, name), ALLOW.code(), "{name}");
        }
        for name in ["clone3", "io_uring_setup", "keyctl", "add_key", "shmget", "mq_open"] {
            assert_eq!(answer(abi, name), super::ENOSYS.code(), "{name}");
        }
        for name in ["unshare", "setns", "mount", "bpf", "userfaultfd", "perf_event_open"] {
            assert_eq!(answer(abi, name), EPERM.code(), "{name}");
        }
    }
    for name in ["waitpid", "_llseek", "mmap2", "sigreturn", "ugetrlimit", "set_thread_area"] {
        assert_eq!(answer(&i386, name), ALLOW.code(), "{name}");
    }
    for name in ["socketcall", "ipc"] {
        assert_eq!(answer(&i386, name), super::ENOSYS.code(), "{name}");
    }
}

#[test]
fn without_a_network_only_local_sockets_are_let_through() {
    let (x86_64, i386) = (abi(X86_64), abi(I386));
    let program = compile(&offline(), &[&x86_64, &i386]);
    for abi in [&x86_64, &i386] {
        let socket = |family: i32| {
            let mut arguments = [0; 6];
            arguments[0] = HIGH | family as u64;
            run(&program, &Call { number: number(abi, "socket").expect("socket"), arch: abi.arch, arguments })
        };
        assert_eq!(socket(libc::AF_UNIX), ALLOW.code());
        for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK] {
            assert_eq!(socket(family), EAFNOSUPPORT.code(), "{family}");
        }
        let other =
            Call { number: number(abi, "execve").expect("execve"), arch: abi.arch, arguments: [0; 6] };
        assert_eq!(run(&program, &other), ALLOW.code());
    }
}

#[test]
fn with_a_shared_uid_nobody_else_s_limits_are_set_and_not_all_are_signalled() {
    let (x86_64, i386) = (abi(X86_64), abi(I386));
    let program = compile(&shared(), &[&x86_64, &i386]);
    for abi in [&x86_64, &i386] {
        let call = |name, first: u64, second: u64| {
            let arguments = [HIGH | first, HIGH | second, 0, 0, 0, 0];
            run(&program, &Call { number: number(abi, name).expect(name), arch: abi.arch, arguments })
        };
        for name in ["prlimit64", "setpriority", "sched_setaffinity", "sched_setparam", "sched_setscheduler"]
        {
            assert_eq!(call(name, 0, 0), ALLOW.code(), "{name}");
            assert_eq!(call(name, 7, 0), EPERM.code(), "{name}");
        }
        assert_eq!(call("setpriority", 0, 7), EPERM.code());
        assert_eq!(call("kill", 7, 9), ALLOW.code(), "Landlock's");
        assert_eq!(call("kill", 0xffff_ffff, 9), EPERM.code());
    }
}
