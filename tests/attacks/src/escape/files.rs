//! Mounts, roots, descriptors, devices, and the files by which the kernel is told what to run.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::getppid;

use crate::probes::{arg, at, call, each, in_child, named, opens, opens_for_writing, reaches};
use crate::tools::{any, broke, held, ignore, refused, Attempt, Role};

const AT_FDCWD: u64 = arg(libc::AT_FDCWD);

pub(super) fn mounts(_: Role) -> Attempt {
    mounts_kind(c"tmpfs")
}

/// With a hierarchy of its own, a job would be its own supervisor, and name a program for the kernel to run.
pub(super) fn mounts_cgroups(_: Role) -> Attempt {
    any([mounts_kind(c"cgroup2"), mounts_kind(c"cgroup")])
}

fn mounts_kind(kind: &std::ffi::CStr) -> Attempt {
    ignore(fs::create_dir("mountpoint"));
    let mounted = call(libc::SYS_mount, [at(c"none"), at(c"mountpoint"), at(kind), 0, 0]);
    if mounted.is_ok() {
        ignore(call(libc::SYS_umount2, [at(c"mountpoint"), arg(libc::MNT_DETACH), 0, 0, 0]));
    }
    refused(mounted, &format!("mounted {kind:?}"))
}

/// The calls that replaced mount(2).
pub(super) fn mounts_anew(_: Role) -> Attempt {
    const CMD_CREATE: u64 = 6;
    let descriptor = |fd: libc::c_long| u64::try_from(fd).map_err(|_| Errno::EBADF);
    let made = call(libc::SYS_fsopen, [at(c"tmpfs"), 0, 0, 0, 0]).and_then(|fd| {
        let fd = descriptor(fd)?;
        call(libc::SYS_fsconfig, [fd, CMD_CREATE, 0, 0, 0])?;
        call(libc::SYS_fsmount, [fd, 0, 0, 0, 0])
    });
    const CLONE: u64 = 1;
    each([
        refused(made, "has a file system of its own"),
        refused(
            call(libc::SYS_open_tree, [AT_FDCWD, at(c"/"), CLONE, 0, 0]),
            "has a copy of its root's mount",
        ),
        refused(call(libc::SYS_fspick, [AT_FDCWD, at(c"/"), 0, 0, 0]), "may configure its root"),
    ])
}

/// What is read-only is made writable.
pub(super) fn makes_writable(_: Role) -> Attempt {
    const READ_ONLY: u64 = 1;
    let attributes = [0, READ_ONLY, 0, 0_u64];
    let size = size_of_val(&attributes) as u64;
    refused(
        in_child(|| call(libc::SYS_mount_setattr, [AT_FDCWD, at(c"/"), 0, at(&attributes), size])),
        "its root is writable",
    )
}

/// What is mounted over something may hide more than it shows.
pub(super) fn uncovers(_: Role) -> Attempt {
    let detached = call(libc::SYS_umount2, [at(c"/dev/pts"), arg(libc::MNT_DETACH), 0, 0, 0]);
    each([
        refused(detached, "took /dev/pts away"),
        reaches(libc::SYS_pivot_root, [at(c"."), at(c"/tmp"), 0, 0, 0], "pivot_root"),
    ])
}

pub(super) fn changes_root(_: Role) -> Attempt {
    refused(in_child(|| nix::unistd::chroot(".")), "has another root")
}

/// A namespace of one's own is refused to none but those who may not.
pub(super) fn enters_namespaces(_: Role) -> Attempt {
    each(["uts", "ipc", "net", "mnt", "cgroup"].map(|name| {
        let entered = in_child(|| {
            let file = File::open(format!("/proc/self/ns/{name}")).map_err(|_| Errno::EACCES)?;
            call(libc::SYS_setns, [arg(file.as_raw_fd()), 0, 0, 0, 0])
        });
        refused(entered, &format!("entered {name}"))
    }))
}

pub(super) fn keeps_namespaces(_: Role) -> Attempt {
    let parent = getppid();
    let open = |name| opens(format!("/proc/{parent}/ns/{name}"), OpenOptions::new().read(true));
    each(["mnt", "net", "pid", "user", "cgroup"].map(open))
}

/// Descriptors that were open when the job began.
pub(super) fn finds_descriptors(_: Role) -> Attempt {
    for fd in 3..=65_535 {
        if call(libc::SYS_fcntl, [arg(fd), arg(libc::F_GETFD), 0, 0, 0]).is_ok() {
            let leads = fs::read_link(format!("/proc/self/fd/{fd}"));
            return broke(format_args!("has descriptor {fd}: {leads:?}"));
        }
    }
    any((0..3).map(|fd| {
        let above = [arg(fd), at(c"../../etc/passwd"), 0, 0, 0];
        match call(libc::SYS_openat, above) {
            Err(error @ (Errno::ENOTDIR | Errno::EBADF)) => held(error),
            other => broke(format_args!("descriptor {fd} is a directory: {other:?}")),
        }
    }))
}

/// Through /proc a descriptor that may be read is opened once more, to be written.
pub(super) fn reopens(_: Role) -> Attempt {
    let Ok(file) = File::open("/etc/passwd") else { return held("the machine has no /etc/passwd") };
    let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open("/etc");
    let through = place.as_ref().map(|place| format!("/proc/self/fd/{}/passwd", place.as_raw_fd()));
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    opens_for_writing([again].into_iter().chain(through))
}

/// Names at which drivers make things, as links to what another job is to write through.
const PLANTED: [&str; 3] =
    ["/tmp/autodriver-plant", "/var/tmp/autodriver-plant", "/dev/shm/autodriver-plant"];

pub(super) fn plants_links(role: Role) -> Attempt {
    match role {
        Role::Accomplice => {
            let planted = PLANTED.map(|name| std::os::unix::fs::symlink("/etc/passwd", name).is_ok());
            held(format_args!("{planted:?}"))
        }
        Role::Attacker => {
            let found = PLANTED.iter().find(|name| fs::symlink_metadata(name).is_ok());
            PLANTED.iter().for_each(|name| ignore(fs::remove_file(name)));
            match found {
                Some(name) => broke(format_args!("{name} is there for the next job")),
                None => held("nothing of the job before is there"),
            }
        }
    }
}

/// Files that name a program, or do what they are told.
pub(super) fn opens_hooks(_: Role) -> Attempt {
    opens_for_writing([
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hotplug",
        "/proc/sys/kernel/poweroff_cmd",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
    ])
}

pub(super) fn opens_cgroups(_: Role) -> Attempt {
    const FILES: [&str; 8] = [
        "cgroup.procs",
        "cgroup.subtree_control",
        "tasks",
        "memory.max",
        "memory.limit_in_bytes",
        "pids.max",
        "release_agent",
        "notify_on_release",
    ];
    opens_for_writing(named(Path::new("/sys/fs/cgroup"), &FILES, 3))
}

/// The machine's memory, its disks and its terminals.
pub(super) fn opens_devices(_: Role) -> Attempt {
    const NODES: [&str; 15] = [
        "mem",
        "port",
        "kmsg",
        "sda",
        "vda",
        "nvme0n1",
        "sg0",
        "loop-control",
        "loop0",
        "mapper/control",
        "cpu/0/msr",
        "nvram",
        "ttyS0",
        "tty0",
        "console",
    ];
    each(NODES.map(|name| opens(format!("/dev/{name}"), OpenOptions::new().read(true))))
}

/// Those that often are everybody's.
pub(super) fn opens_public_devices(_: Role) -> Attempt {
    const NODES: [&str; 9] = [
        "fuse",
        "net/tun",
        "kvm",
        "vsock",
        "vhost-vsock",
        "vhost-net",
        "userfaultfd",
        "udmabuf",
        "dri/card0",
    ];
    each(NODES.map(|name| opens(format!("/dev/{name}"), OpenOptions::new().read(true).write(true))))
}

/// A device of its own, as harmless as /dev/null.
pub(super) fn makes_devices(_: Role) -> Attempt {
    const CHARACTER: u64 = 0o020_666;
    const NULL: u64 = 0x103;
    any([".", "/dev", "/", "/home", "/run"].map(|place| {
        let path = format!("{place}/attack-node");
        let Ok(name) = std::ffi::CString::new(path.as_str()) else { return held("") };
        if let Err(error) = call(libc::SYS_mknodat, [AT_FDCWD, at(name.as_c_str()), CHARACTER, NULL, 0]) {
            return held(format_args!("{path}: {error}"));
        }
        let opened = opens(&path, OpenOptions::new().write(true));
        ignore(fs::remove_file(&path));
        opened
    }))
}
