//! The answers to system calls that `autodriver explain` tells of, against those a job gets.

use std::collections::BTreeMap;

use e2e::job;
use serde_json::Value;

/// Attempts of the captive whose call depends on its arguments, and the low halves of these.
const ARGUMENTS: [(&str, [u64; 3]); 29] = [
    ("clone", [17, 0, 0]),
    ("clone-user", [0x1000_0011, 0, 0]),
    ("clone-mount", [0x0002_0011, 0, 0]),
    ("clone-cgroup", [0x0200_0011, 0, 0]),
    ("socket-unix", [1, 1, 0]),
    ("socket-inet", [2, 1, 0]),
    ("socket-inet-high-bits", [2, 1, 0]),
    ("socket-netlink-route", [16, 3, 0]),
    ("socket-netlink-audit", [16, 3, 9]),
    ("socket-packet", [17, 3, 0]),
    ("socket-vsock", [40, 1, 0]),
    ("socket-vsock-high-bits", [40, 1, 0]),
    ("socketpair-inet", [2, 1, 0]),
    ("socketpair-unix", [1, 1, 0]),
    ("ioctl-TIOCSTI", [0, 0x5412, 0]),
    ("ioctl-TIOCSTI-high-bits", [0, 0x5412, 0]),
    ("ioctl-FIOCLEX", [0, 0x5451, 0]),
    ("fcntl-F_SETLEASE", [0, 1024, 0]),
    ("fcntl-F_GETFD", [0, 1, 0]),
    ("prctl-PR_SET_MM", [35, 0, 0]),
    ("prctl-PR_GET_DUMPABLE", [3, 0, 0]),
    ("personality-query", [0xffff_ffff, 0, 0]),
    ("personality-read-implies-exec", [0x40_0000, 0, 0]),
    ("mknodat-character", [0, 0, 0o020_666]),
    ("mknodat-fifo", [0, 0, 0o010_666]),
    ("madvise-mergeable", [0, 0, 12]),
    ("madvise-normal", [0, 0, 0]),
    ("seccomp-new-listener", [1, 8, 0]),
    ("seccomp-filter", [1, 0, 0]),
];

fn number(text: &str) -> u64 {
    let hex = text.strip_prefix("0x").map(|digits| u64::from_str_radix(digits, 16));
    hex.unwrap_or_else(|| text.parse()).expect("a number")
}

/// Whether `argN&MASK=V|V and ... or ...` holds.
fn holds(condition: &str, arguments: [u64; 3]) -> bool {
    let test = |text: &str| {
        let (place, values) = text.split_once('=').expect("a test");
        let (argument, mask) = place.split_once('&').unwrap_or((place, "0xffffffff"));
        let argument: usize = argument.strip_prefix("arg").and_then(|n| n.parse().ok()).expect("an argument");
        values.split('|').any(|value| number(value) == arguments[argument] & number(mask))
    };
    condition.split(" or ").any(|clause| clause.split(" and ").all(test))
}

/// The error that a row says the call gets; none where it is let through.
fn refusal<'a>(row: &'a Value, attempt: &str) -> Option<&'a str> {
    let answer = row["answer"].as_str().expect("an answer");
    let Some(condition) = row["condition"].as_str() else { return (answer != "allow").then_some(answer) };
    let (_, arguments) = ARGUMENTS.iter().find(|(name, _)| *name == attempt)?;
    let (word, tests) = condition.split_once(' ').expect("a condition");
    let refused = match word {
        "when" => holds(tests, *arguments),
        "unless" => !holds(tests, *arguments),
        _ => panic!("{condition}"),
    };
    refused.then_some(answer)
}

#[test]
fn calls_get_the_answers_that_were_explained() {
    let job = job(["syscalls"]);
    let explained = job.explain(&[]);
    let rows = explained["seccomp"]["rows"].as_array().expect("a list");
    let rows: BTreeMap<&str, &Value> =
        rows.iter().map(|row| (row["name"].as_str().expect("a name"), row)).collect();
    let outcome = job.run().expect_clean();
    let (mut compared, mut wrong) = (0, Vec::new());
    for line in outcome.text().lines().filter(|line| *line != "ok") {
        let (attempt, result) = line.split_once(' ').expect("NAME RESULT");
        let call = match attempt {
            "landlock-abi" => "landlock_create_ruleset",
            _ => attempt.split('-').next().expect("a name"),
        };
        let conditional = rows.get(call).is_some_and(|row| row["condition"].is_string());
        if conditional && !ARGUMENTS.iter().any(|(name, _)| *name == attempt) {
            continue;
        }
        let expected = match rows.get(call) {
            Some(row) => refusal(row, attempt),
            None => explained["seccomp"]["default"].as_str(),
        };
        compared += 1;
        // Errors that only the filter gives; the kernel's own show that a call reached it.
        let agrees = match expected {
            Some(error) => result == error,
            None => !["EPERM", "ENOSYS", "EAFNOSUPPORT"].contains(&result),
        };
        if !agrees {
            wrong.push(format!("{attempt}: {result} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(compared > 100, "{compared} calls were compared");
}

#[test]
fn foreign_abis_are_named_where_they_are_allowed() {
    let native = job(["int80"]);
    assert_eq!(native.explain(&[])["seccomp"]["abis"], serde_json::json!(["x86_64"]));
    assert_eq!(native.run().cause(), autodriver_protocol::Cause::SyscallDenied);
    let both = job(["int80"]).flag("--abi32");
    assert_eq!(both.explain(&[])["seccomp"]["abis"], serde_json::json!(["x86_64", "i386"]));
    both.run().expect_clean();
}

#[test]
fn program_is_given_where_it_is_asked_for() {
    for flag in [None, Some("--abi32")] {
        let job = flag.iter().fold(job(["exit", "0"]), |job, flag| job.flag(flag));
        assert!(job.explain(&[])["seccomp"]["bpf"].is_null());
        let explained = job.explain(&["--bpf"]);
        let lines = explained["seccomp"]["bpf"].as_array().expect("a list");
        assert_eq!(explained["seccomp"]["instructions"], lines.len());
        assert!(lines.iter().any(|line| line.as_str().is_some_and(|line| line.contains("(ioctl)"))));
    }
}

#[test]
fn skipped_filter_is_not_explained() {
    assert!(job(["exit", "0"]).opt("--skip", "seccomp").explain(&[])["seccomp"].is_null());
}
