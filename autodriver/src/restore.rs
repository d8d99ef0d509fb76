//! Putting the machine back, and looking whether it is: after each job, and after a driver that
//! was killed. Nothing is said to be restored that was not looked at.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use autodriver_protocol::report::Leftover;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::facts::Hierarchy;
use crate::fault::{errno_of, Fault, Step};
use crate::sandbox::cgroup::{self, Cgroup};
use crate::sys::process::{pidfd_open, pidfd_send_signal};
use crate::uids;

/// How long a dying process may hold its cgroup.
const REMOVE_MAX: Duration = Duration::from_secs(2);

fn leftover(kind: &str, what: impl Into<String>) -> Leftover {
    Leftover { kind: kind.to_owned(), what: what.into() }
}

/// Removes a job's cgroup. That it can be removed proves that no process of the job is left.
pub fn remove_cgroup(mut cgroup: Cgroup) -> Vec<Leftover> {
    let until = Instant::now() + REMOVE_MAX;
    loop {
        match cgroup.remove() {
            Ok(()) => return Vec::new(),
            Err((_, Errno::EBUSY)) if Instant::now() < until && cgroup.processes().is_empty() => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err((path, errno)) => {
                let mut found: Vec<Leftover> =
                    cgroup.processes().iter().map(|pid| leftover("process", pid.to_string())).collect();
                found.push(leftover("cgroup", format!("{}: {errno}", path.display())));
                return found;
            }
        }
    }
}

/// What of a uid's is still on the machine, outside its cgroup. `alone` says that the job had the
/// IPC namespace to itself, so that the machine's own objects cannot be its.
pub fn look(uid: u32, alone: bool) -> Vec<Leftover> {
    let mut found: Vec<Leftover> = keys(uid).into_iter().collect();
    if !alone {
        found.extend(ipc(uid).into_iter().map(|(kind, id)| leftover("ipc", format!("{kind} {id}"))));
    }
    found
}

/// Mount points for this uid: once its slot is closed there is none, unless something failed. Where
/// there is no directory, nothing can be mounted.
pub fn mounts(uid: u32) -> Vec<Leftover> {
    let exists = |place: &String| std::fs::symlink_metadata(place).is_ok_and(|file| file.uid() == 0);
    uids::mount_points(uid).into_iter().filter(exists).map(|place| leftover("mount", place)).collect()
}

/// Keys that count against the uid: proc_key-users(5).
fn keys(uid: u32) -> Option<Leftover> {
    let users = std::fs::read_to_string("/proc/key-users").unwrap_or_default();
    let line =
        users.lines().find(|line| line.split(':').next().is_some_and(|id| id.trim() == uid.to_string()))?;
    Some(leftover("key", line.trim()))
}

/// System V objects of the uid in this IPC namespace: sysvipc(7).
fn ipc(uid: u32) -> Vec<(&'static str, String)> {
    let uid = uid.to_string();
    let rows = [("shm", 1, 7), ("msg", 1, 7), ("sem", 1, 4)];
    let mut found = Vec::new();
    for (kind, id, owner) in rows {
        let text = std::fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(owner) == Some(&uid.as_str()) {
                found.push((kind, fields.get(id).copied().unwrap_or_default().to_owned()));
            }
        }
    }
    found
}

/// Processes with this real uid.
fn processes(uid: u32) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // Not the owner of the directory: that is root for a process that is not dumpable.
        let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        (line.split_whitespace().next()? == uid.to_string()).then_some(Pid::from_raw(pid))
    };
    entries.filter_map(of).collect()
}

/// Kills every process of the uid, until a look finds none.
fn sweep(uid: u32) -> Vec<Leftover> {
    for _ in 0..200 {
        let pids = processes(uid);
        if pids.is_empty() {
            return Vec::new();
        }
        for pid in pids {
            use std::os::fd::AsFd;
            if let Ok(pidfd) = pidfd_open(pid) {
                let _ = pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    processes(uid).iter().map(|pid| leftover("process", pid.to_string())).collect()
}

/// What [`restore`] did.
#[derive(Debug, Default)]
pub struct Restored {
    /// Uids whose traces were removed.
    pub cleared: Vec<u32>,
    /// What could not be.
    pub leftovers: Vec<Leftover>,
}

/// Removes what killed drivers left: for each uid with a record, a mount point or a cgroup that no
/// living driver holds, its processes, cgroups, mount points, and at last the record itself.
///
/// # Errors
/// If the state directory cannot be read.
pub fn restore(hierarchy: &Hierarchy) -> Result<Restored, Fault> {
    let mut uids = cgroup::uids_present(hierarchy);
    uids.extend(uids::in_use()?);
    match std::fs::read_dir(uids::DIRECTORY) {
        Ok(entries) => {
            uids.extend(entries.flatten().filter_map(|entry| uids::uid_of_trace(&entry.file_name())))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Fault::new(Step::Restore, format!("read {}", uids::DIRECTORY), errno_of(&error)))
        }
    }
    uids.sort_unstable();
    uids.dedup();
    let mut restored = Restored::default();
    for uid in uids {
        // Held by a living driver: not ours to touch.
        let Some(lease) = uids::try_lease(uid)? else { continue };
        let mut left = sweep_if_ours(uid);
        for path in cgroup::directories(hierarchy, uid) {
            if let Err(errno) = cgroup::clear(&path) {
                left.push(leftover("cgroup", format!("{}: {errno}", path.display())));
            }
        }
        left.extend(remove_mount_points(uid));
        left.extend(look(uid, false));
        left.extend(mounts(uid));
        restored.cleared.push(uid);
        match left.is_empty() {
            true => drop(lease),
            false => lease.keep_record(),
        }
        restored.leftovers.extend(left);
    }
    Ok(restored)
}

/// As [`restore`], for a driver about to start: costs one look where no other driver is or was.
///
/// # Errors
/// As [`restore`].
pub fn heal(hierarchy: &Hierarchy) -> Result<(), Fault> {
    if uids::in_use()?.is_empty() {
        return Ok(());
    }
    restore(hierarchy).map(drop)
}

/// Outside the range a uid is an account's (`--user`), which may have processes of its own.
fn sweep_if_ours(uid: u32) -> Vec<Leftover> {
    if (uids::FIRST..=uids::LAST).contains(&uid) {
        sweep(uid)
    } else {
        Vec::new()
    }
}

fn remove_mount_points(uid: u32) -> Vec<Leftover> {
    let remove = |place: String| {
        // Not ours unless root made it: /tmp is everybody's.
        let made_by_root =
            std::fs::symlink_metadata(&place).is_ok_and(|file| file.is_dir() && file.uid() == 0);
        if !made_by_root {
            return None;
        }
        let _ = nix::mount::umount2(place.as_str(), nix::mount::MntFlags::MNT_DETACH);
        std::fs::remove_dir(&place).err().map(|error| leftover("mount", format!("{place}: {error}")))
    };
    uids::mount_points(uid).into_iter().filter_map(remove).collect()
}
