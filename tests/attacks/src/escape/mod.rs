//! Section C of the catalogue: more rights than a job's, and ways out of the box.

mod calls;
mod files;
mod identity;
mod processes;
mod setuid;
mod sockets;

use autodriver_protocol::Layer::{
    Identity, Landlock, MountNamespace, NetworkNamespace, NoNewPrivs, PidNamespace, Seccomp,
};

use crate::row::{attack, attack_on_driver, Attack, Control, Form};

/// For attacks that only root has a use for: with a uid of its own a job could not do it anyway.
const AS_ROOT: Control = Control::LeaveOut(&[Identity]);

/// Landlock stops TCP from its ABI 4 on and abstract names from 6 on: not on every machine that controls are
/// run on.
const SCOPED: Control = Control::LeaveOut(&[Landlock]);

pub(crate) const ATTACKS: &[Attack] = &[
    Attack {
        // Without the mount namespace /proc has the machine's numbers, and the job its own.
        control: Control::LeaveOut(&[PidNamespace]),
        ..attack(
            "setuid-binaries",
            "runs every setuid program that it finds",
            setuid::runs_setuid,
            &[NoNewPrivs, MountNamespace],
        )
    },
    attack("file-caps", "takes every capability", identity::raises_capabilities, &[Identity]),
    attack("file-caps-own", "gives a file of its own capabilities", identity::marks_own_file, &[Identity]),
    attack("userns", "unshares its user namespace", calls::unshares_user, &[Seccomp]),
    attack("userns-clone", "has a child in a user namespace", calls::clones_user, &[Seccomp]),
    attack(
        "userns-high-bits",
        "has a child in a user namespace, with garbage in the high bits of the flags",
        calls::clones_user_high_bits,
        &[Seccomp],
    ),
    attack("userns-clone3", "has a child in a user namespace, by clone3", calls::clones_user_3, &[Seccomp]),
    attack(
        "userns-others",
        "unshares each other kind of namespace",
        calls::unshares_others,
        &[Identity, Seccomp],
    ),
    attack("new-mount-api", "makes mounts by fsopen and open_tree", files::mounts_anew, &[Identity, Seccomp]),
    attack("new-mount-api-mount", "mounts by mount", files::mounts, &[Identity, Landlock, Seccomp]),
    attack(
        "new-mount-api-setattr",
        "makes its root writable by mount_setattr",
        files::makes_writable,
        &[Identity, Seccomp],
    ),
    attack(
        "new-mount-api-uncover",
        "takes a mount away by umount2, and asks for pivot_root",
        files::uncovers,
        &[Identity, Landlock, Seccomp],
    ),
    attack("chroot-escape", "changes its root", files::changes_root, &[Identity, Seccomp]),
    attack("setns-nsfs", "enters a namespace", files::enters_namespaces, &[Identity, Seccomp]),
    attack(
        "setns-nsfs-parent",
        "keeps its parent's namespaces open",
        files::keeps_namespaces,
        &[Identity, Landlock],
    ),
    Attack {
        form: Form::Beside,
        ..attack(
            "ptrace-and-proc-mem",
            "looks for a process whose memory it may read or write",
            processes::looks_into_others,
            &[Identity, PidNamespace, Landlock],
        )
    },
    attack(
        "ptrace-and-proc-mem-parent",
        "traces its parent, and opens its memory",
        processes::traces_parent,
        &[Identity, Landlock],
    ),
    Attack {
        form: Form::Beside,
        ..attack(
            "ptrace-and-proc-mem-pidfd",
            "takes descriptors of its parent and of others by pidfd_getfd",
            processes::takes_descriptors,
            &[Identity, Landlock, Seccomp],
        )
    },
    attack(
        "ptrace-and-proc-mem-number",
        "traces a child, and changes the number of its call after the filter",
        processes::changes_number,
        &[Seccomp],
    ),
    attack(
        "exe-overwrite",
        "holds the driver's program open to write to it later",
        processes::overwrites_program,
        &[Identity, Landlock],
    ),
    attack_on_driver(
        "fd-leak",
        "looks for descriptors that were left to it",
        files::finds_descriptors,
        "all descriptors are closed by construction",
    ),
    // Landlock refuses to follow them, but not to list them
    Attack {
        control: Control::LeaveOut(&[Landlock]),
        ..attack(
            "proc-root-walk",
            "follows the links of its parent in /proc",
            processes::walks_through_proc,
            &[Identity],
        )
    },
    attack(
        "proc-root-walk-reopen",
        "opens what it may read once more through /proc, to write to it",
        files::reopens,
        &[Identity, MountNamespace, Landlock],
    ),
    Attack {
        form: Form::After,
        control: AS_ROOT,
        ..attack(
            "setup-symlink-plant",
            "leaves links where the next job's driver makes things",
            files::plants_links,
            &[MountNamespace, Landlock],
        )
    },
    attack(
        "userns-maps-root",
        "is the driver's uid under another number, and reads /etc/shadow",
        identity::is_root_outside,
        &[Identity],
    ),
    // those in /sys are closed by Landlock as well; /proc has to be open
    Attack {
        control: Control::LeaveOut(&[Landlock]),
        ..attack(
            "kernel-helper-hooks",
            "opens the files that name programs for the kernel to run",
            files::opens_hooks,
            &[Identity],
        )
    },
    attack(
        "cgroup-escape",
        "opens the files of cgroups",
        files::opens_cgroups,
        &[Identity, MountNamespace, Landlock],
    ),
    attack(
        "cgroup-escape-mount",
        "mounts a cgroup hierarchy of its own",
        files::mounts_cgroups,
        &[Identity, Landlock, Seccomp],
    ),
    attack(
        "device-nodes",
        "opens memory, disks and terminals of the machine",
        files::opens_devices,
        &[Identity, MountNamespace, Landlock],
    ),
    Attack {
        control: AS_ROOT,
        ..attack(
            "device-nodes-public",
            "opens devices that machines let everybody open",
            files::opens_public_devices,
            &[MountNamespace, Landlock],
        )
    },
    attack(
        "device-nodes-mknod",
        "makes a device node, and opens it",
        files::makes_devices,
        &[Identity, MountNamespace, Landlock, Seccomp],
    ),
    attack("kernel-calls", "asks for what administrators do", calls::administers, &[Identity, Seccomp]),
    attack("kernel-calls-bpf", "makes a BPF map", calls::makes_bpf, &[Identity, Seccomp]),
    attack("kernel-calls-perf", "counts events in the kernel", calls::opens_perf, &[Identity, Seccomp]),
    attack(
        "kernel-calls-unprivileged",
        "uses machinery that the kernel gives to everybody",
        calls::asks_for_machinery,
        &[Seccomp],
    ),
    attack("io-uring", "sets up an io_uring", calls::sets_up_io_uring, &[Seccomp]),
    attack("socket-families", "opens sockets of rare families", sockets::opens_families, &[Seccomp]),
    attack(
        "socket-families-high-bits",
        "opens such a socket with garbage in the high bits",
        sockets::opens_family_high_bits,
        &[Seccomp],
    ),
    attack("socket-families-packet", "opens a packet socket", sockets::opens_packet, &[Identity, Seccomp]),
    attack("socket-families-raw", "opens a raw socket", sockets::opens_raw, &[Identity]),
    Attack {
        form: Form::Beside,
        control: SCOPED,
        ..attack(
            "network-reach",
            "connects to a service on the loopback interface",
            sockets::connects_to_loopback,
            &[NetworkNamespace],
        )
    },
    Attack {
        form: Form::Beside,
        ..attack(
            "network-reach-udp",
            "sends a datagram to a service on the loopback interface",
            sockets::sends_to_loopback,
            &[NetworkNamespace],
        )
    },
    Attack {
        control: Control::None(
            "the machine that controls run on has no network; network-reach is its control",
        ),
        ..attack(
            "network-reach-outside",
            "looks for a way to the metadata service, a gateway and a name server",
            sockets::looks_for_a_way,
            &[NetworkNamespace],
        )
    },
    Attack {
        form: Form::Beside,
        control: SCOPED,
        ..attack(
            "abstract-unix",
            "connects to an abstract socket",
            sockets::connects_to_abstract,
            &[NetworkNamespace],
        )
    },
    Attack {
        form: Form::Beside,
        control: AS_ROOT,
        ..attack(
            "host-sockets",
            "connects to a socket in /tmp that everybody may connect to",
            sockets::connects_to_path,
            &[MountNamespace, Landlock],
        )
    },
    Attack {
        control: Control::None("the machine that controls run on has no daemon; host-sockets is its control"),
        ..attack(
            "host-sockets-daemons",
            "connects to every socket that it finds",
            sockets::connects_to_daemons,
            &[MountNamespace],
        )
    },
    attack("vsock", "opens a socket to the host of its machine", sockets::opens_vsock, &[Seccomp]),
    Attack { control: AS_ROOT, ..attack("tty-inject", "types into a terminal", sockets::types, &[Seccomp]) },
    attack(
        "tty-inject-console",
        "asks for a console's selection, messages and line discipline",
        sockets::calls_consoles,
        &[Seccomp],
    ),
    attack_on_driver(
        "tty-inject-own",
        "looks for a terminal that it was left",
        sockets::has_terminal,
        "the job leads a session of its own, and has no terminal, by construction",
    ),
    Attack {
        control: AS_ROOT,
        ..attack(
            "ioctl-high-bits",
            "types into a terminal, with garbage in the high bits of the request",
            sockets::types_high_bits,
            &[Seccomp],
        )
    },
    attack("foreign-abi", "makes a 32-bit call", calls::enters_by_int80, &[Seccomp]),
    Attack {
        options: r#"{"wall": "20s", "abi32": true}"#,
        ..attack(
            "foreign-abi-socketcall",
            "opens a rare socket by a 32-bit call whose arguments are in memory",
            calls::multiplexes,
            &[Seccomp],
        )
    },
    Attack {
        control: Control::None("no kernel that controls run on has the x32 ABI"),
        ..attack("foreign-abi-x32", "makes an x32 call", calls::enters_as_x32, &[Seccomp])
    },
    attack("groups-left", "becomes root by an id that was left to it", identity::becomes_root, &[Identity]),
    attack("groups-left-groups", "is in a group besides its own", identity::has_groups, &[Identity]),
    attack("limit-raise", "raises its limits", identity::raises_limits, &[Identity]),
    attack("limit-raise-priority", "goes before all others", identity::raises_priority, &[Identity]),
    attack(
        "limit-raise-others",
        "asks for the limits of others",
        identity::limits_others,
        &[Identity, PidNamespace, Seccomp],
    ),
];

/// Those that are no attack here, and why.
pub(crate) const ELSEWHERE: &[(&str, &str)] = &[];
