//! Section A of the catalogue: more than a job's share.

mod memory;
mod processes;
mod storage;
mod time;

use autodriver_protocol::Cause::{CpuLimit, DiskLimit, MemoryLimit, WallLimit};
use autodriver_protocol::Layer::{Disk, Identity, Landlock, Memory, MountNamespace, Pids, Rlimits, Seccomp};

use crate::row::{attack, attack_on_driver, without_limit, Attack, Ends};

/// CPU time for the attacks on it.
const CPU: &str = r#"{"wall": "60s", "cpu": "500ms"}"#;
const NO_CPU: &str = r#"{"wall": "60s"}"#;
/// Memory for the attacks on it; the disk limit is the rest of what the kernel would allow.
const MEMORY_64M: &str = r#"{"wall": "30s", "memory": "64M", "disk": "16M", "nofile": 1024}"#;
/// Disk for the attacks on it, with memory to spare.
const DISK_64M: &str =
    r#"{"wall": "30s", "memory": "1G", "disk": "64M", "fsize": "16M", "inodes": 1000, "nofile": 256}"#;
const PROCESSES_64: &str = r#"{"wall": "20s", "pids": 64}"#;
/// A wall clock for the attacks on it, and one that they outlive.
const WALL: &str = r#"{"wall": "2s"}"#;
const LATER: &str = r#"{"wall": "60s"}"#;

const BY_CPU: Ends = Ends::By(&[CpuLimit]);
const BY_WALL: Ends = Ends::By(&[WallLimit]);
const BY_MEMORY: Ends = Ends::By(&[MemoryLimit]);
/// A program that copes with a full disk ends by itself; the driver looks once a second.
const BY_DISK: Ends = Ends::RefusedOrBy(&[DiskLimit]);

pub(crate) const ATTACKS: &[Attack] = &[
    Attack {
        options: CPU,
        ends: BY_CPU,
        ..without_limit("cpu-spin", "computes without end", time::spins, NO_CPU)
    },
    Attack {
        options: CPU,
        ends: BY_CPU,
        ..without_limit(
            "cpu-sigxcpu-catch",
            "ignores every signal and computes on",
            time::spins_deafly,
            NO_CPU,
        )
    },
    Attack {
        options: CPU,
        ends: BY_CPU,
        ..without_limit(
            "cpu-fan-out",
            "spreads its CPU time over many short processes",
            time::fans_out,
            NO_CPU,
        )
    },
    Attack {
        options: r#"{"wall": "2s", "pids": 80}"#,
        ends: BY_WALL,
        ..without_limit(
            "cpu-starve-driver",
            "keeps the driver from the processor",
            time::starves,
            r#"{"wall": "60s", "pids": 80}"#,
        )
    },
    Attack {
        options: WALL,
        ends: BY_WALL,
        ..without_limit("wall-sleep", "sleeps for ever", time::sleeps, LATER)
    },
    Attack {
        options: WALL,
        ends: BY_WALL,
        ..without_limit(
            "wall-stop-parent",
            "stops itself, its parent and its group, and goes on later",
            time::stops_all,
            LATER,
        )
    },
    attack_on_driver(
        "wall-stdin",
        "reads standard input to its end, which may be the driver's",
        time::reads_stdin,
        "standard input is /dev/null by construction",
    ),
    Attack {
        options: r#"{"wall": "2s", "idle": "1s"}"#,
        ends: BY_WALL,
        ..without_limit(
            "output-drip",
            "prints a byte now and then, so that it is never idle",
            time::drips,
            LATER,
        )
    },
    attack_on_driver(
        "output-flood",
        "prints 64 MB in one line, then a line",
        time::floods,
        "the cap on output is the driver's own",
    ),
    Attack {
        options: MEMORY_64M,
        ends: BY_MEMORY,
        ..attack("mem-touch", "touches 256 MB", memory::touches, &[Memory])
    },
    Attack {
        options: MEMORY_64M,
        ends: BY_MEMORY,
        ..attack("mem-processes", "spreads 256 MB over processes", memory::spreads, &[Memory])
    },
    Attack {
        options: MEMORY_64M,
        ends: BY_MEMORY,
        ..attack(
            "mem-memfd",
            "fills memfds that belong to no process's memory",
            memory::fills_memfds,
            &[Memory],
        )
    },
    Attack {
        options: MEMORY_64M,
        ends: Ends::RefusedOrBy(&[MemoryLimit]),
        ..attack("mem-sysv-shm", "fills System V segments", memory::fills_segments, &[Memory, Seccomp])
    },
    Attack {
        options: MEMORY_64M,
        ends: BY_MEMORY,
        ..attack("mem-unix-sockets", "fills socket buffers", memory::fills_sockets, &[Memory])
    },
    Attack {
        options: r#"{"wall": "30s", "memory": "24M", "disk": "8M"}"#,
        ends: Ends::RefusedOrBy(&[MemoryLimit]),
        ..attack("mem-pipes", "fills pipes", memory::fills_pipes, &[Memory])
    },
    Attack {
        options: r#"{"wall": "30s", "memory": "64M", "disk": "64M"}"#,
        ends: Ends::RefusedOrBy(&[DiskLimit, MemoryLimit]),
        ..attack(
            "mem-tmpfs-fill",
            "fills /dev/shm, /tmp and its home, which are memory",
            storage::fills_tmpfs,
            &[Disk],
        )
    },
    attack(
        "oom-kills-driver",
        "makes itself the last that the OOM killer takes",
        memory::hides_from_oom,
        &[Identity],
    ),
    attack("mlock-bomb", "locks a megabyte of memory", memory::locks, &[Rlimits]),
    Attack {
        ends: Ends::Signal(libc::SIGSEGV),
        ..attack("stack-bomb", "recurses 64 MB deep", memory::recurses, &[Rlimits])
    },
    Attack {
        options: PROCESSES_64,
        ..attack("fork-bomb", "starts 200 processes", processes::forks, &[Pids, Rlimits])
    },
    Attack {
        options: PROCESSES_64,
        ..attack("fork-bomb-threads", "starts 200 threads", processes::starts_threads, &[Pids, Rlimits])
    },
    Attack {
        options: PROCESSES_64,
        ..attack("zombie-flood", "leaves 200 children unreaped", processes::leaves_zombies, &[Pids, Rlimits])
    },
    Attack {
        options: r#"{"wall": "2s", "pids": 64}"#,
        ends: BY_WALL,
        ..without_limit(
            "fork-bomb-respawn",
            "every process ignores signals, takes a session of its own, forks and ends",
            processes::respawns,
            r#"{"wall": "60s", "pids": 64}"#,
        )
    },
    Attack {
        options: DISK_64M,
        ..attack(
            "disk-one-file",
            "writes one file of 200 MB, and ignores SIGXFSZ",
            storage::writes_one,
            &[Rlimits, Disk],
        )
    },
    Attack {
        options: DISK_64M,
        ..attack(
            "disk-sparse",
            "makes a file of a terabyte with nothing in it",
            storage::makes_sparse,
            &[Rlimits],
        )
    },
    Attack {
        options: DISK_64M,
        ends: BY_DISK,
        ..attack(
            "disk-many-files",
            "writes 200 MB in files below the limit of one",
            storage::writes_many,
            &[Disk],
        )
    },
    Attack {
        options: DISK_64M,
        ends: BY_DISK,
        ..attack(
            "disk-deleted-open",
            "writes 200 MB to files without a name",
            storage::writes_nameless,
            &[Disk],
        )
    },
    Attack {
        options: DISK_64M,
        ends: BY_DISK,
        ..attack("inode-flood", "makes 5000 files", storage::makes_inodes, &[Disk])
    },
    Attack { options: DISK_64M, ..attack("fd-exhaust", "opens 2000 files", storage::opens_many, &[Rlimits]) },
    attack(
        "pty-exhaust",
        "takes 200 of the machine's terminals",
        storage::opens_terminals,
        &[MountNamespace],
    ),
    attack("kernel-object-hog", "makes 5000 timers", processes::makes_timers, &[Rlimits]),
    attack("coredump-flood", "dies with a core dump", processes::dumps_core, &[Rlimits]),
    attack(
        "klog-flood",
        "writes to the kernel's log",
        storage::writes_kernel_log,
        &[MountNamespace, Landlock, Identity],
    ),
];

/// Rows of the section that are no attack of this corpus.
pub(crate) const ELSEWHERE: &[(&str, &str)] = &[
    (
        "compile-bomb",
        "a compiler is a program of the job like any other: mem-touch, cpu-spin, disk-many-files; its /dev/stdin is /dev/null",
    ),
    ("posix-mq", "queues are memory and a channel: shm-mq-sysv-channel"),
];
