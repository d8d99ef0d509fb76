//! Section D of the catalogue, and the channels between jobs: what a job may not know or tell.
//!
//! Of a channel the accomplice is the sender and the attacker the receiver, after it or beside it.

mod inodes;
mod machine;
mod objects;
mod secrets;

use autodriver_protocol::Layer::{
    CgroupNamespace, Identity, IpcNamespace, Landlock, MountNamespace, NetworkNamespace, ProcessTree,
    Seccomp, UtsNamespace,
};

use crate::row::{attack, attack_on_driver, open_channel, Attack, Control, Form};

const LOCKS: &str = "go, cargo and sqlite stop without locks, and a filter cannot tell which file is locked; only \
                     a file system of each job's own in front of the machine's directories (overlay) would close it";

/// The limit, which is none by default, would stop them too.
const QUEUES: &str = r#"{"wall": "20s", "msgqueue": "800K"}"#;

pub(crate) const ATTACKS: &[Attack] = &[
    attack(
        "read-tests-hidden",
        "reads what everybody may in /home, /root, /run, /boot, /mnt, /media",
        secrets::reads_hidden,
        &[MountNamespace, Landlock],
    ),
    attack(
        "read-tests-closed",
        "reads what not everybody may in /etc, /opt, /srv, /usr/local",
        secrets::reads_closed,
        &[Identity],
    ),
    // Landlock closes the places, but not the question whether there is a name
    Attack {
        form: Form::After,
        control: Control::LeaveOut(&[Landlock]),
        ..attack(
            "previous-job-leftovers",
            "looks for files of the job before it",
            secrets::leftovers,
            &[MountNamespace],
        )
    },
    Attack {
        form: Form::Beside,
        ..attack(
            "proc-cmdline",
            "reads the arguments of other processes",
            secrets::arguments,
            &[MountNamespace],
        )
    },
    Attack {
        form: Form::Beside,
        ..attack(
            "proc-cmdline-environ",
            "reads environment, maps and descriptors of other processes",
            secrets::environments,
            &[MountNamespace, Identity, Landlock],
        )
    },
    attack_on_driver(
        "env-inherit",
        "looks for what the driver had in its environment",
        secrets::inherits,
        "the environment is built from scratch, not inherited with something left out",
    ),
    Attack {
        form: Form::After,
        ..attack("keyring-after", "reads a key that the job before it left", objects::keys_after, &[Seccomp])
    },
    // a uid of its own cannot read the keys of another, and can leave its own
    Attack {
        form: Form::Beside,
        control: Control::LeaveOut(&[Identity]),
        ..attack(
            "keyring-beside",
            "reads a key of the job beside it",
            objects::keys_beside,
            &[Seccomp],
        )
    },
    open_channel(
        "inode-locks-flock",
        "sees the lock of a job beside it on a file of the machine",
        inodes::flocks,
        LOCKS,
    ),
    open_channel(
        "inode-locks-posix",
        "reads a number off the POSIX lock of a job beside it",
        inodes::locks_posix,
        LOCKS,
    ),
    open_channel(
        "inode-locks-ofd",
        "reads a number off the lock of an open file of a job beside it",
        inodes::locks_ofd,
        LOCKS,
    ),
    open_channel(
        "inode-locks-namespace",
        "sees the lock of a job beside it on the namespace that both are in",
        inodes::flocks_namespace,
        LOCKS,
    ),
    attack(
        "lease-notify-lease",
        "takes a lease on a file of the machine, which stalls who writes to it",
        inodes::leases,
        &[Seccomp, Identity],
    ),
    attack(
        "lease-notify-dnotify",
        "watches a directory of the machine by F_NOTIFY",
        inodes::notifies,
        &[Seccomp],
    ),
    attack(
        "lease-notify-fanotify",
        "makes a group of fanotify(7)",
        inodes::watches_mounts,
        &[Seccomp],
    ),
    open_channel(
        "lease-notify-inotify",
        "is told when a job beside it opens a file of the machine",
        inodes::watches,
        "watchers of files (node, gradle, tail -f) need inotify, whose marks are on inodes that all jobs share; \
         only a file system of each job's own in front of them (overlay) would close it",
    ),
    Attack {
        form: Form::Beside,
        ..attack(
            "shm-mq-sysv-channel-shm-beside",
            "looks for files of the job beside it in /dev/shm and /tmp",
            secrets::shared_places,
            &[MountNamespace, Landlock],
        )
    },
    Attack {
        form: Form::After,
        ..attack(
            "shm-mq-sysv-channel-sysv-after",
            "reads a segment that the job before it left",
            objects::segments_after,
            &[Seccomp, IpcNamespace],
        )
    },
    Attack {
        form: Form::Beside,
        ..attack(
            "shm-mq-sysv-channel-sysv-beside",
            "reads a segment of the job beside it",
            objects::segments_beside,
            &[Seccomp, IpcNamespace],
        )
    },
    Attack {
        options: QUEUES,
        form: Form::After,
        ..attack(
            "shm-mq-sysv-channel-mq-after",
            "reads a queue that the job before it left",
            objects::queues_after,
            &[Seccomp, IpcNamespace, Landlock],
        )
    },
    Attack {
        options: QUEUES,
        form: Form::Beside,
        ..attack(
            "shm-mq-sysv-channel-mq-beside",
            "reads a queue of the job beside it",
            objects::queues_beside,
            &[Seccomp, IpcNamespace, Landlock],
        )
    },
    attack(
        "kernel-and-host-info-log",
        "reads the kernel's log by syslog(2)",
        machine::reads_log,
        &[Seccomp, Identity],
    ),
    attack(
        "kernel-and-host-info-kmsg",
        "reads the kernel's log by /dev/kmsg",
        machine::reads_log_device,
        &[MountNamespace, Landlock, Identity],
    ),
    attack(
        "kernel-and-host-info-addresses",
        "reads addresses of the kernel, or the machine's memory",
        machine::reads_addresses,
        &[Identity],
    ),
    attack(
        "kernel-and-host-info-sys",
        "reads devices, firmware and serial numbers in /sys",
        machine::reads_kernel_objects,
        &[MountNamespace, Landlock],
    ),
    attack(
        "kernel-and-host-info-hostname",
        "asks for the machine's host name",
        machine::knows_host,
        &[UtsNamespace],
    ),
    Attack {
        form: Form::Alone,
        ..open_channel(
            "kernel-and-host-info-identity",
            "recognizes the machine by its boot_id or machine-id",
            machine::recognizes_machine,
            "/etc is the image's, and boot_id is read by programs of the image; they say which machine it is, \
             and nothing about other jobs: a platform that minds uses machines once",
        )
    },
    Attack {
        form: Form::Beside,
        ..attack(
            "channel-proc-locks",
            "reads of locks of the job beside it in /proc/locks",
            machine::lists_locks,
            &[MountNamespace],
        )
    },
    open_channel(
        "channel-proc-locks-ofd",
        "reads a number in /proc/locks off a lock that the job beside it has on a file of its own",
        machine::lists_open_file_locks,
        "the kernel shows locks of open files in every PID namespace; an empty file mounted over /proc/locks \
         would close it",
    ),
    open_channel(
        "channel-counters",
        "sees a job beside it start processes by the machine's counters in /proc/stat",
        machine::counts_forks,
        "runtimes read processors, memory and load in /proc/stat, meminfo and loadavg; namespaces do not \
         separate them, and what load does to times is seen without them",
    ),
    Attack {
        form: Form::After,
        ..attack(
            "channel-cgroup-statistics",
            "reads what control groups say of the job before it",
            machine::reads_statistics,
            &[MountNamespace, Landlock],
        )
    },
    attack(
        "channel-cgroup-path",
        "learns its place in the machine's tree of control groups",
        machine::knows_group,
        &[CgroupNamespace],
    ),
    Attack {
        form: Form::Beside,
        // From Linux 6.12 on Landlock stops it as well.
        control: Control::LeaveOut(&[Landlock]),
        ..attack(
            "channel-abstract-socket",
            "connects to an abstract socket of the job beside it",
            objects::abstract_sockets,
            &[NetworkNamespace],
        )
    },
    Attack {
        form: Form::Beside,
        ..attack("channel-vsock", "connects to the job beside it by vsock", objects::vsocks, &[Seccomp])
    },
    Attack {
        form: Form::After,
        ..attack(
            "channel-uid-reuse",
            "signals a process that outlived the job which had its uid before",
            objects::outlives,
            &[ProcessTree],
        )
    },
    attack(
        "channel-page-cache-write",
        "writes to a file of the machine that other jobs see, or to what memory has of it",
        inodes::writes_shared,
        &[MountNamespace, Identity, Landlock],
    ),
    attack(
        "channel-page-cache-attributes",
        "sets mode or time of a file of the machine that other jobs see",
        inodes::changes_shared,
        &[MountNamespace, Identity],
    ),
    open_channel(
        "channel-page-cache-residency",
        "sees which page of a file of the machine a job beside it reads",
        inodes::sees_cache,
        "files that jobs share are in memory once, and how long a read takes tells whether they are; refusing \
         RWF_NOWAIT and fadvise would hide nothing of that",
    ),
];

/// Rows of the catalogue that are not here, and why.
pub(crate) const ELSEWHERE: &[(&str, &str)] = &[
    ("compile-time-read", "a compiler in the box is a program of the job like any other: read-tests"),
    (
        "verdict-oracle",
        "no sandbox can tell an honest exit status, time or size from one that means something",
    ),
];
