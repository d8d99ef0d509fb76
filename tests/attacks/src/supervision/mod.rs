//! Section B of the catalogue: life after the job, and tricks against who watches it.

mod lives;
mod signals;

use autodriver_protocol::Cause::{CpuLimit, WallLimit};
use autodriver_protocol::Layer::{Identity, Landlock, MountNamespace, PidNamespace, ProcessTree, Seccomp};

use crate::row::{attack, attack_on_driver, without_limit, Attack, Control, Ends};

const HALF_A_SECOND: &str = r#"{"wall": "30s", "cpu": "500ms"}"#;
const NO_CPU: &str = r#"{"wall": "30s"}"#;
const ONE_SECOND: &str = r#"{"wall": "1s", "grace": "200ms"}"#;

const BY_CPU: Ends = Ends::By(&[CpuLimit]);
const BY_WALL: Ends = Ends::By(&[WallLimit]);

/// Landlock stops signals too, from its ABI 6 on: not on every machine that controls are run on.
const SCOPED: Control = Control::LeaveOut(&[Landlock]);

const NO_CLOCK_NO_END: &str = "the wall clock is no layer: without it such a job never ends";

pub(crate) const ATTACKS: &[Attack] = &[
    attack(
        "daemon-double-fork",
        "leaves a process in a session of its own",
        lives::double_forks,
        &[ProcessTree],
    ),
    Attack {
        options: ONE_SECOND,
        ends: BY_WALL,
        ..attack_on_driver(
            "ignore-all-signals",
            "ignores and blocks every signal, and so do its children",
            lives::is_deaf,
            NO_CLOCK_NO_END,
        )
    },
    Attack {
        options: ONE_SECOND,
        ends: BY_WALL,
        ..attack_on_driver(
            "ignore-all-signals-stopped",
            "stops all its processes, so that signals stay pending",
            lives::is_stopped,
            NO_CLOCK_NO_END,
        )
    },
    attack(
        "stdout-holder",
        "leaves a process that holds its output open, and writes to it",
        lives::holds_stdout,
        &[ProcessTree],
    ),
    Attack {
        control: SCOPED,
        ..attack(
            "kill-minus-one-each",
            "signals every number, by kill, tkill and pidfd",
            signals::kills_each,
            &[Identity, PidNamespace],
        )
    },
    Attack {
        control: SCOPED,
        ..attack("kill-minus-one-parent", "signals its parent", signals::kills_parent, &[Identity])
    },
    attack(
        "kill-cleanup-helper",
        "leaves a process that kills whatever else has its uid, from its end on",
        lives::kills_helpers,
        &[ProcessTree],
    ),
    attack(
        "reparent-tricks",
        "has its orphans go to a process of its own",
        lives::parks_orphans,
        &[ProcessTree],
    ),
    attack(
        "reparent-tricks-traced",
        "leaves zombies that only a tracer can reap, which does not",
        lives::traces_zombies,
        &[ProcessTree],
    ),
    Attack {
        options: HALF_A_SECOND,
        ends: BY_CPU,
        ..without_limit(
            "zombie-leader",
            "computes in a thread whose process looks like a zombie",
            lives::leader_ends,
            NO_CPU,
        )
    },
    Attack {
        options: ONE_SECOND,
        ends: BY_WALL,
        ..attack_on_driver(
            "zombie-leader-sleeps",
            "sleeps in a thread whose process looks like a zombie",
            lives::leader_ends_and_worker_sleeps,
            NO_CLOCK_NO_END,
        )
    },
    attack(
        "frozen-cgroup",
        "opens files that freeze a cgroup",
        signals::freezes,
        &[Identity, MountNamespace, Landlock],
    ),
    attack(
        "d-state-vfork",
        "leaves a process that sleeps uninterruptibly in vfork(2)",
        lives::sleeps_in_vfork,
        &[ProcessTree],
    ),
    Attack {
        options: HALF_A_SECOND,
        ends: BY_CPU,
        ..without_limit(
            "comm-injection",
            "computes under a name that looks like fields of /proc/PID/stat",
            lives::spins_named,
            NO_CPU,
        )
    },
    attack("comm-injection-daemon", "leaves a process with such a name", lives::names_itself, &[ProcessTree]),
    attack("proc-read-trap", "makes a page whose readers hang", signals::traps_readers, &[Identity, Seccomp]),
    attack(
        "spawn-elsewhere",
        "leaves files where daemons look for work",
        signals::plants_jobs,
        &[Identity, MountNamespace, Landlock],
    ),
    Attack {
        out: Some("result.txt"),
        ..attack(
            "late-writer",
            "leaves a process that rewrites what is copied out",
            lives::writes_late,
            &[ProcessTree],
        )
    },
];

/// Those that are no attack here, and why.
pub(crate) const ELSEWHERE: &[(&str, &str)] = &[
    (
        "pdeathsig-reset",
        "needs a driver that is killed: tests/tests/restore_killed.rs; a job has no parent-death signal to reset",
    ),
    (
        "pid-reuse",
        "no job sees whom a signal was meant for: the driver signals pidfds, cgroups and uids, and a number only \
         while it holds a pidfd of it and finds it listed once more (sys::process::signal_listed)",
    ),
];
