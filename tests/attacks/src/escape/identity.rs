//! Who the job is, and whom it might become.

use std::fs::{self, OpenOptions};

use nix::errno::Errno;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::unistd::{getegid, geteuid, getgid, getgroups, getuid, setgid, setgroups, setuid, Gid, Uid};

use crate::probes::{arg, at, call, each, opens, others};
use crate::tools::{broke, held, refused, Attempt, Role};

/// An id that a call is to leave as it is.
const SAME: u64 = u64::MAX;

pub(super) fn becomes_root(_: Role) -> Attempt {
    if geteuid().is_root() || getegid().as_raw() == 0 {
        return broke("is root");
    }
    let root = Gid::from_raw(0);
    each([
        refused(setuid(Uid::from_raw(0)), "setuid(0)"),
        refused(call(libc::SYS_setresuid, [SAME, 0, SAME, 0, 0]), "setresuid(-1, 0, -1)"),
        refused(call(libc::SYS_setreuid, [0, SAME, 0, 0, 0]), "setreuid(0, -1)"),
        refused(setgid(root), "setgid(0)"),
        refused(call(libc::SYS_setresgid, [SAME, SAME, 0, 0, 0]), "setresgid(-1, -1, 0)"),
        refused(setgroups(&[root]), "setgroups({0})"),
    ])
}

/// Groups that were left to it: docker, disk, kvm.
pub(super) fn has_groups(_: Role) -> Attempt {
    if getgid().as_raw() == 0 || getegid().as_raw() == 0 {
        return broke("is in root's group");
    }
    match getgroups() {
        Ok(groups) => match groups.iter().find(|group| **group != getegid()) {
            Some(group) => broke(format_args!("is in group {group}")),
            None => held("no group but its own"),
        },
        Err(error) => held(error),
    }
}

/// The driver's own uid under another number is root to the kernel, though it looks like a user.
pub(super) fn is_root_outside(_: Role) -> Attempt {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let own = u64::from(getuid().as_raw());
    let outside = map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        let (inside, outside, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
        (inside..inside + count).contains(&own).then(|| outside + own - inside)
    });
    match outside {
        Some(0) => broke("has uid 0 outside of its user namespace"),
        _ => opens("/etc/shadow", OpenOptions::new().read(true)),
    }
}

pub(super) fn raises_capabilities(_: Role) -> Attempt {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let has = |set: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(":\t"));
        value.is_some_and(|value| value.bytes().any(|digit| digit != b'0'))
    };
    if let Some(set) = ["CapEff", "CapPrm", "CapInh", "CapAmb"].into_iter().find(|set| has(set)) {
        return broke(format_args!("{set} is not empty"));
    }
    const VERSION_3: u32 = 0x2008_0522;
    let (header, all) = ([VERSION_3, 0], [u32::MAX; 6]);
    each([
        refused(call(libc::SYS_capset, [at(&header), at(&all), 0, 0, 0]), "has every capability"),
        refused(
            call(
                libc::SYS_prctl,
                [arg(libc::PR_CAP_AMBIENT), arg(libc::PR_CAP_AMBIENT_RAISE), CAP_SYS_ADMIN, 0, 0],
            ),
            "has an ambient capability",
        ),
    ])
}

const CAP_SYS_ADMIN: u64 = 21;

/// As setcap(8): a program that whoever executes it has all capabilities.
pub(super) fn marks_own_file(_: Role) -> Attempt {
    if let Err(error) = fs::write("own", "") {
        return held(error);
    }
    const REVISION_2_EFFECTIVE: u32 = 0x0200_0001;
    let value = [REVISION_2_EFFECTIVE, u32::MAX, 0, u32::MAX, 0];
    let size = size_of_val(&value) as u64;
    let set = call(libc::SYS_setxattr, [at(c"own"), at(c"security.capability"), at(&value), size, 0]);
    refused(set, "gave its file capabilities")
}

const LIMITS: [Resource; 12] = [
    Resource::RLIMIT_AS,
    Resource::RLIMIT_CORE,
    Resource::RLIMIT_CPU,
    Resource::RLIMIT_DATA,
    Resource::RLIMIT_FSIZE,
    Resource::RLIMIT_MEMLOCK,
    Resource::RLIMIT_MSGQUEUE,
    Resource::RLIMIT_NICE,
    Resource::RLIMIT_NOFILE,
    Resource::RLIMIT_NPROC,
    Resource::RLIMIT_RTPRIO,
    Resource::RLIMIT_SIGPENDING,
];

pub(super) fn raises_limits(_: Role) -> Attempt {
    each(LIMITS.into_iter().filter_map(|resource| {
        let (_, hard) = getrlimit(resource).ok().filter(|(_, hard)| *hard != libc::RLIM_INFINITY)?;
        let more = hard.saturating_add(1);
        Some(refused(setrlimit(resource, more, more), &format!("raised {resource:?} to {more}")))
    }))
}

/// Before all others: nice -5, real time.
pub(super) fn raises_priority(_: Role) -> Attempt {
    let priority = 1_i32;
    let fifo = [0, arg(libc::SCHED_FIFO), at(&priority), 0, 0];
    each([
        refused(call(libc::SYS_setpriority, [0, 0, arg(-5), 0, 0]), "has nice -5"),
        refused(call(libc::SYS_sched_setscheduler, fifo), "has real-time priority"),
    ])
}

/// Asks for the limits of every number, and changes none.
pub(super) fn limits_others(_: Role) -> Attempt {
    const NOFILE: u64 = 7;
    let mut old = [0_u64; 2];
    for pid in others() {
        let args = [arg(pid.as_raw()), NOFILE, 0, old.as_mut_ptr() as u64, 0];
        match call(libc::SYS_prlimit64, args) {
            Ok(_) => return broke(format_args!("may set the limits of process {pid}")),
            Err(Errno::EPERM | Errno::ESRCH | Errno::ENOSYS) => {}
            Err(error) => return broke(format_args!("prlimit of process {pid}: {error}")),
        }
    }
    held("no process's limits can be asked for")
}
