//! The tables name every call, and nothing but calls.

use std::collections::BTreeSet;

use super::super::table::{parse_policy, Answer, Rule};
use super::super::Before;
use super::super::{describe, Row};
use super::{abi, init, job, number, AARCH64, BASELINE, I386, X86_64};

/// Allowed here although the tested list did not have them.
const ADDED: &[&str] = &[
    // Filtered by argument in the tested setup, by a mechanism of its own.
    "clone",
    "fcntl",
    "ioctl",
    "mknod",
    "mknodat",
    "personality",
    "prctl",
    "socket",
    // No more than ptrace can do, and MPI libraries fail when only one of the
    // pair works.
    "process_vm_writev",
    // Non-real-time classes are harmless, RLIMIT_RTPRIO refuses the others.
    "sched_setparam",
    "sched_setscheduler",
    // Refusing it kills a job on a machine that is being traced.
    "uretprobe",
];

/// In the tested list, but not calls of any ABI that has a table here.
const REMOVED: &[&str] = &["recv", "riscv_hwprobe", "send"];

#[test]
fn the_allow_list_is_the_tested_one_with_documented_differences() {
    let policy = job();
    let allowed: BTreeSet<&str> = policy
        .rows
        .iter()
        .filter(|row| matches!(row.rule, Rule::Always(Answer::Allow) | Rule::Depends { .. }))
        .map(|row| row.name)
        .collect();
    let mut expected: BTreeSet<&str> = BASELINE.lines().filter(|line| !line.starts_with('#')).collect();
    for name in ADDED {
        assert!(expected.insert(name), "{name} is in the tested list");
    }
    for name in REMOVED {
        assert!(expected.remove(name), "{name} is not in the tested list");
    }
    assert_eq!(allowed, expected);
}

#[test]
fn init_may_wait_talk_and_leave_and_nothing_else() {
    let policy = init();
    let names: Vec<&str> = policy.rows.iter().map(|row| row.name).collect();
    let expected = "wait4 waitid read write close poll ppoll sendto sendmsg \
                    rt_sigreturn restart_syscall exit exit_group";
    assert_eq!(names.join(" "), expected);
    assert!(policy.rows.iter().all(|row| row.rule == Rule::Always(Answer::Allow)));
    assert_eq!(policy.default, Answer::Kill);
}

#[test]
fn every_row_is_a_call_of_some_abi_and_every_call_has_a_row() {
    let known: BTreeSet<&str> = [X86_64, I386, AARCH64]
        .into_iter()
        .flat_map(|table| abi(table).numbers)
        .map(|(_, name)| *name)
        .collect();
    let policy = job();
    let rows: BTreeSet<&str> = policy.rows.iter().map(|row| row.name).collect();
    assert_eq!(rows, known);
    for row in init().rows {
        assert!(known.contains(row.name), "{}", row.name);
    }
}

#[test]
fn number_tables_ascend_and_hold_what_the_c_library_knows() {
    for table in [X86_64, I386, AARCH64] {
        let numbers = abi(table).numbers;
        assert!(numbers.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let names: BTreeSet<&str> = numbers.iter().map(|(_, name)| *name).collect();
        assert_eq!(names.len(), numbers.len());
    }
    let native = if cfg!(target_arch = "x86_64") { X86_64 } else { AARCH64 };
    let native = abi(native);
    for (name, expected) in [
        ("read", libc::SYS_read),
        ("clone", libc::SYS_clone),
        ("prlimit64", libc::SYS_prlimit64),
        ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
        ("fchmodat2", libc::SYS_fchmodat2),
    ] {
        assert_eq!(number(&native, name).map(i64::from), Some(expected), "{name}");
    }
}

/// The two x86 ABIs differ in numbers only: what one calls `fcntl64` or
/// `_llseek` must not slip past the row of its twin.
#[test]
fn twins_of_32_bit_programs_have_the_same_rule() {
    let policy = job();
    let rule = |name| {
        let row = policy.rows.iter().find(|row| row.name == name);
        &row.unwrap_or_else(|| panic!("no row for {name}")).rule
    };
    for row in &policy.rows {
        let plain = ["_time64", "64", "32"]
            .into_iter()
            .find_map(|end| row.name.strip_suffix(end))
            .filter(|plain| policy.rows.iter().any(|row| row.name == *plain));
        if let Some(plain) = plain {
            let reason = "both or neither";
            assert_eq!(rule(plain), &row.rule, "{plain} and {}: {reason}", row.name);
        }
    }
    assert_eq!(rule("umount"), rule("umount2"));
    assert_eq!(rule("lseek"), rule("_llseek"));
}

#[test]
fn descriptions_are_the_rows_and_each_has_a_reason() {
    let policy = job();
    let described: Vec<Row> = describe(true, Before::default()).rows;
    for row in &described {
        let written = policy.rows.iter().find(|other| other.name == row.name);
        let written = written.unwrap_or_else(|| panic!("{row:?} is not in the table"));
        assert_eq!(row.answer, written.answer);
        assert_eq!(row.condition, written.condition);
        assert_eq!(row.reason, written.reason);
        assert!(!row.reason.is_empty(), "{row:?}");
    }
    let names = |abi32| {
        describe(abi32, Before::default()).rows.into_iter().map(|row| row.name).collect::<BTreeSet<_>>()
    };
    assert!(!names(false).contains("socketcall"));
    assert_eq!(names(true).contains("socketcall"), cfg!(target_arch = "x86_64"));
}

#[test]
fn what_stands_before_a_job_answers_first() {
    let row = |before, name| describe(false, before).rows.into_iter().find(|row| row.name == name);
    let none = Before::default();
    let (offline, shared) = (Before { offline: true, ..none }, Before { shared: true, ..none });
    assert!(row(none, "socket").is_some_and(|row| row.condition.contains("arg0=1|2|10")));
    assert!(row(offline, "socket").is_some_and(|row| row.condition == "unless arg0=1"));
    assert!(row(none, "prlimit64").is_some_and(|row| row.answer == "allow"));
    assert!(row(shared, "prlimit64").is_some_and(|row| row.condition == "unless arg0=0"));
    let rows = |before| describe(false, before).rows.len();
    assert_eq!(rows(Before { offline: true, shared: true }), rows(none));
}

#[test]
fn mistakes_in_a_policy_are_named() {
    for (text, complaint) in [
        ("read allow", "no `*` row"),
        ("read allow\nread allow\n* ENOSYS", "line 2: a second row for read"),
        ("* ENOSYS\n* EPERM", "line 2: a second or conditional `*`"),
        ("* ENOSYS when arg0=1", "a second or conditional `*`"),
        ("read EBADF\n* ENOSYS", "\"EBADF\" is not an answer"),
        ("read\n* ENOSYS", "\"\" is not an answer"),
        ("read EPERM if arg0=1\n* ENOSYS", "neither `unless` nor `when`"),
        ("read allow when arg0=1\n* ENOSYS", "names a refusal"),
        ("read EPERM when arg6=1\n* ENOSYS", "can never hold"),
        ("read EPERM when arg0&0x2=1\n* ENOSYS", "can never hold"),
        ("read EPERM when arg0=\n* ENOSYS", "line 1: \"\": "),
        ("read EPERM when 1\n* ENOSYS", "\"1\" is not a test"),
        ("read EPERM when arg0=0x100000000\n* ENOSYS", "line 1: \"0x100000000\": "),
    ] {
        let error = parse_policy(text).expect_err(text);
        assert!(error.contains(complaint), "{text:?}: {error}");
    }
}
