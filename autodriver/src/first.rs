//! autodriver as the first process, of a container or of a machine: what nobody else mounts, the orphans
//! that nobody else waits for, and the signals that are for whatever runs here.

use std::path::Path;

use nix::mount::{mount, MsFlags};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitPidFlag;

use crate::sys::process::wait_for_any;

/// What a machine has mounted by the time that its init is through: a file that shows it is there,
/// the file system, where.
const MOUNTS: [(&str, &str, &str); 4] = [
    ("/proc/self", "proc", "/proc"),
    ("/dev/null", "devtmpfs", "/dev"),
    ("/sys/kernel", "sysfs", "/sys"),
    ("/sys/fs/cgroup/cgroup.procs", "cgroup2", "/sys/fs/cgroup"),
];

/// Signals that say something to a program and do not ask it to end. The kernel drops what a first process
/// does not handle (kill(2)), so that elsewhere they are left alone.
pub const PASSED_ON: [Signal; 4] = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH, Signal::SIGCONT];

/// Whether this process is PID 1.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// Mounts what is missing, if this is PID 1. What cannot be mounted is left out: then the facts say what
/// cannot be had for want of it.
pub fn mount_missing() {
    if !is_first() {
        return;
    }
    for (shows, fstype, place) in MOUNTS {
        // Where cgroup v1 is mounted, or a part of it, somebody has decided.
        let taken = std::fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some());
        if Path::new(shows).exists() || fstype == "cgroup2" && taken {
            continue;
        }
        let _ = std::fs::create_dir_all(place);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        let _ = mount(Some(fstype), place, Some(fstype), flags, None::<&str>);
    }
}

/// Waits for whoever has ended, if this is PID 1: orphans come to it. A child of the driver's own that is
/// among them needs no waiting any more; how it ended comes by its pipes.
pub fn reap() {
    while is_first() {
        let Ok(Some(_)) = wait_for_any(WaitPidFlag::WNOHANG) else { return };
    }
}
