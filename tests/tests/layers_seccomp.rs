//! The system-call filter, row by row: what is refused, with which error, and what is let through.

use autodriver_protocol::Cause;
use e2e::job;

/// Name of the attempt, and what comes of it. Errors that the kernel itself gives to calls which
/// are let through (EFAULT, EBADF, ESRCH, EINVAL) show that they reached it.
const EXPECTED: &[(&str, &str)] = &[
    ("clone", "ok"),
    ("clone-user", "EPERM"),
    ("clone-mount", "EPERM"),
    ("clone-pid", "EPERM"),
    ("clone-net", "EPERM"),
    ("clone-ipc", "EPERM"),
    ("clone-uts", "EPERM"),
    ("clone-cgroup", "EPERM"),
    ("clone3", "ENOSYS"),
    ("unshare-user", "EPERM"),
    ("unshare-mount", "EPERM"),
    ("unshare-files", "EPERM"),
    ("setns", "EPERM"),
    ("mount", "EPERM"),
    ("umount2", "EPERM"),
    ("pivot_root", "EPERM"),
    ("chroot", "EPERM"),
    ("fsopen", "EPERM"),
    ("fsconfig", "EPERM"),
    ("fsmount", "EPERM"),
    ("fspick", "EPERM"),
    ("open_tree", "EPERM"),
    ("move_mount", "EPERM"),
    ("mount_setattr", "EPERM"),
    ("io_uring_setup", "ENOSYS"),
    ("io_uring_enter", "ENOSYS"),
    ("io_uring_register", "ENOSYS"),
    ("keyctl", "ENOSYS"),
    ("add_key", "ENOSYS"),
    ("request_key", "ENOSYS"),
    ("bpf", "EPERM"),
    ("perf_event_open", "EPERM"),
    ("userfaultfd", "EPERM"),
    ("kcmp", "EPERM"),
    ("fanotify_init", "EPERM"),
    ("open_by_handle_at", "EPERM"),
    ("name_to_handle_at", "EPERM"),
    ("process_madvise", "EPERM"),
    ("move_pages", "EPERM"),
    ("migrate_pages", "EPERM"),
    ("mbind", "EPERM"),
    ("set_mempolicy", "EPERM"),
    ("quotactl", "EPERM"),
    ("syslog", "EPERM"),
    ("acct", "EPERM"),
    ("swapon", "EPERM"),
    ("swapoff", "EPERM"),
    ("reboot", "EPERM"),
    ("kexec_load", "EPERM"),
    ("init_module", "EPERM"),
    ("finit_module", "EPERM"),
    ("delete_module", "EPERM"),
    ("settimeofday", "EPERM"),
    ("clock_settime", "EPERM"),
    ("adjtimex", "EPERM"),
    ("sethostname", "EPERM"),
    ("setdomainname", "EPERM"),
    ("vhangup", "EPERM"),
    ("shmget", "ENOSYS"),
    ("shmat", "ENOSYS"),
    ("shmctl", "ENOSYS"),
    ("shmdt", "ENOSYS"),
    ("msgget", "ENOSYS"),
    ("msgctl", "ENOSYS"),
    ("msgsnd", "ENOSYS"),
    ("msgrcv", "ENOSYS"),
    ("semget", "ENOSYS"),
    ("semop", "ENOSYS"),
    ("semtimedop", "ENOSYS"),
    ("semctl", "ENOSYS"),
    ("mq_open", "ENOSYS"),
    ("mq_unlink", "ENOSYS"),
    ("io_setup", "ENOSYS"),
    ("io_submit", "ENOSYS"),
    ("remap_file_pages", "ENOSYS"),
    ("vmsplice", "ENOSYS"),
    ("memfd_secret", "ENOSYS"),
    ("pidfd_getfd", "EPERM"),
    ("unknown-number", "ENOSYS"),
    ("socket-unix", "ok"),
    ("socket-inet", "ok"),
    ("socket-inet-udp", "ok"),
    ("socket-inet-high-bits", "ok"),
    ("socket-netlink-route", "ok"),
    ("socket-netlink-audit", "EAFNOSUPPORT"),
    ("socket-netlink-netfilter", "EAFNOSUPPORT"),
    ("socket-packet", "EAFNOSUPPORT"),
    ("socket-alg", "EAFNOSUPPORT"),
    ("socket-vsock", "EAFNOSUPPORT"),
    ("socket-vsock-high-bits", "EAFNOSUPPORT"),
    ("socket-bluetooth", "EAFNOSUPPORT"),
    ("socket-xdp", "EAFNOSUPPORT"),
    ("socket-tipc", "EAFNOSUPPORT"),
    ("ioctl-TIOCSTI", "EPERM"),
    ("ioctl-TIOCSTI-high-bits", "EPERM"),
    ("ioctl-TIOCLINUX", "EPERM"),
    ("ioctl-TIOCCONS", "EPERM"),
    ("ioctl-TIOCSETD", "EPERM"),
    ("ioctl-FIOCLEX", "ok"),
    ("ioctl-FIONCLEX", "ok"),
    ("fcntl-F_SETLEASE", "EPERM"),
    ("fcntl-F_NOTIFY", "EPERM"),
    ("fcntl-F_NOTIFY-high-bits", "EPERM"),
    ("fcntl-F_GETFD", "ok"),
    ("prctl-PR_SET_MM", "EPERM"),
    ("prctl-PR_MCE_KILL", "EPERM"),
    ("prctl-PR_SCHED_CORE", "EPERM"),
    ("prctl-PR_GET_DUMPABLE", "ok"),
    ("personality-query", "ok"),
    ("personality-no-randomize", "ok"),
    ("personality-read-implies-exec", "EPERM"),
    ("personality-linux", "ok"),
    ("mknodat-character", "EPERM"),
    ("mknodat-block", "EPERM"),
    ("mknodat-fifo", "EFAULT"),
    ("madvise-mergeable", "EINVAL"),
    ("madvise-normal", "ok"),
    ("socketpair-inet", "EAFNOSUPPORT"),
    ("socketpair-unix", "EFAULT"),
    ("seccomp-new-listener", "EPERM"),
    ("seccomp-filter", "EFAULT"),
    ("memfd_create", "EFAULT"),
    ("flock", "ok"),
    ("eventfd2", "ok"),
    ("epoll_create1", "ok"),
    ("timerfd_create", "ok"),
    ("inotify_init1", "ok"),
    ("sched_yield", "ok"),
    ("statx", "EFAULT"),
    ("openat2", "EINVAL"),
    ("ptrace-bad-pid", "ESRCH"),
    ("process_vm_readv", "ok"),
    ("getrandom", "ok"),
    ("setresuid-keep", "ok"),
    ("setresgid-keep", "ok"),
    ("setpriority-nicer", "ok"),
    ("setpriority-greedier", "EACCES"),
];

/// Attempts whose result depends on how the kernel was built, and what may come of them.
const EITHER: &[(&str, &[&str])] =
    &[("socket-inet6", &["ok", "EAFNOSUPPORT"]), ("landlock-abi", &["ok", "EOPNOTSUPP", "ENOSYS"])];

#[test]
fn each_call_is_answered_as_the_policy_says() {
    let outcome = job(["syscalls"]).run().expect_clean();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for line in outcome.text().lines().filter(|line| *line != "ok") {
        let (name, result) = line.split_once(' ').expect("NAME RESULT");
        let exact = EXPECTED.iter().find(|(row, _)| *row == name).map(|(_, expected)| vec![*expected]);
        let either = EITHER.iter().find(|(row, _)| *row == name).map(|(_, expected)| expected.to_vec());
        let expected = exact.or(either).unwrap_or_else(|| panic!("{name} is in no table"));
        seen += 1;
        if !expected.contains(&result) {
            wrong.push(format!("{name}: {result} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, EXPECTED.len() + EITHER.len(), "every row is tried");
}

#[test]
fn filter_is_in_force() {
    let outcome = job(["status", "Seccomp"]).run().expect_clean();
    assert_eq!(outcome.text(), "ok 2");
}

#[test]
fn call_of_the_32_bit_table_kills_and_the_verdict_says_why() {
    let outcome = job(["int80"]).run().expect_restored();
    assert_eq!((outcome.cause(), outcome.status), (Cause::SyscallDenied, 124), "{outcome}");
}

#[test]
fn call_of_the_32_bit_table_works_where_it_is_allowed() {
    let outcome = job(["int80"]).flag("--abi32").run().expect_clean();
    assert_eq!(outcome.text(), "ok true");
}

#[test]
fn call_of_the_32_bit_table_in_a_child_kills_that_child() {
    let outcome = job(["int80-child"]).run();
    assert_eq!(outcome.text(), "ok killed by SIGSYS", "{outcome}");
}

#[test]
fn debuggers_work() {
    let outcome = job(["trace-child"]).run().expect_clean();
    assert_eq!(outcome.text(), "ok true 7");
}

#[test]
fn job_may_confine_itself_further() {
    let outcome = job(["own-filter"]).run().expect_clean();
    assert_eq!(outcome.text(), "ok Some(EBADFD)");
}

#[test]
fn fifos_and_links_can_be_made() {
    for words in [["mkfifo", "fifo"], ["mkfifo", "/tmp/fifo"]] {
        assert_eq!(job(words).run().expect_clean().text(), "ok");
    }
    assert_eq!(job(["link", "captive", "second"]).run().expect_clean().text(), "ok");
}
