//! Signals to those who are not the job's.

use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{getppid, Pid};

use crate::probes::{arg, call, named, opens_for_writing, others};
use crate::tools::{any, broke, held, refused, Attempt, Role};

/// All numbers, by each of the calls; not -1, for which kill(2) succeeds also where every signal was refused.
pub(super) fn kills_each(_: Role) -> Attempt {
    for pid in others() {
        let number = arg(pid.as_raw());
        let by_pid = kill(pid, None);
        let by_thread = call(libc::SYS_tkill, [number, 0, 0, 0, 0]);
        if by_pid.is_ok() || by_thread.is_ok() || kill_by_descriptor(pid).is_ok() {
            return broke(format_args!("may signal process {pid}"));
        }
    }
    held("nobody can be signalled")
}

pub(super) fn kills_parent(_: Role) -> Attempt {
    let parent = getppid();
    any([
        refused(kill(parent, None), "may signal its parent"),
        refused(kill_by_descriptor(parent), "may signal its parent by descriptor"),
    ])
}

fn kill_by_descriptor(pid: Pid) -> Result<(), Errno> {
    let pidfd = call(libc::SYS_pidfd_open, [arg(pid.as_raw()), 0, 0, 0, 0])?;
    let pidfd = i32::try_from(pidfd).map_err(|_| Errno::EBADF)?;
    let sent = call(libc::SYS_pidfd_send_signal, [arg(pidfd), 0, 0, 0, 0]);
    nix::unistd::close(pidfd)?;
    sent.map(drop)
}

/// With these a process keeps itself from being ended.
pub(super) fn freezes(_: Role) -> Attempt {
    const FILES: [&str; 4] = ["cgroup.freeze", "cgroup.kill", "cgroup.max.descendants", "freezer.state"];
    opens_for_writing(named(Path::new("/sys/fs/cgroup"), &FILES, 3))
}

/// A page whose readers wait for us: at the start of the arguments it holds up whoever looks at them.
pub(super) fn traps_readers(_: Role) -> Attempt {
    const UFFDIO_API: u64 = 0xc018_aa3f;
    let made = call(libc::SYS_userfaultfd, [0; 5]).and_then(|fd| {
        let mut api = [0xaa_u64, 0, 0];
        let fd = u64::try_from(fd).map_err(|_| Errno::EBADF)?;
        call(libc::SYS_ioctl, [fd, UFFDIO_API, api.as_mut_ptr() as u64, 0, 0])
    });
    refused(made, "can make the kernel wait for it")
}

/// Where daemons look for what to run. A file without a name is not found by any of them.
pub(super) fn plants_jobs(_: Role) -> Attempt {
    const PLACES: [&str; 9] = [
        "/var/spool/cron/crontabs",
        "/var/spool/cron/atjobs",
        "/etc/cron.d",
        "/etc/init.d",
        "/etc/systemd/system",
        "/etc/profile.d",
        "/etc",
        "/usr/local/bin",
        "/run",
    ];
    any(PLACES.map(opens_nameless))
}

fn opens_nameless(place: &str) -> Attempt {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(place);
    match file {
        Ok(_) => broke(format_args!("may leave files in {place}")),
        Err(error) => held(format_args!("{place}: {error}")),
    }
}
