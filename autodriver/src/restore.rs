//! Putting the machine back, and looking whether it is: after each job, and after a driver that
//! was killed. Nothing is said to be restored that was not looked at.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use autodriver_protocol::report::Leftover;
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::facts::Facts;
use crate::fault::{errno_of, Fault, Step};
use crate::sandbox::cgroup::{self, Cgroup};
use crate::sandbox::sweep::files::{places, remove_files_of};
use crate::sandbox::sweep::ipc::{ipc_of, remove_ipc};
use crate::sandbox::sweep::processes::kill_uid;
use crate::sandbox::sweep::remove::Left;
use crate::sandbox::{aside, plain};
use crate::sys::fd::lock;
use crate::uids;

/// How long a dying process may hold its cgroup.
const REMOVE_MAX: Duration = Duration::from_secs(2);

fn file(left: &Left) -> Leftover {
    leftover("file", format!("{}: {}", left.path.display(), left.why))
}

/// A process that is still there.
pub fn process(pid: Pid) -> Leftover {
    leftover("process", pid.to_string())
}

/// A directory of a cgroup that is still there.
fn directory(path: &Path, errno: Errno) -> Leftover {
    leftover("cgroup", format!("{}: {errno}", path.display()))
}

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
                let mut found: Vec<Leftover> = cgroup.processes().into_iter().map(process).collect();
                found.push(directory(&path, errno));
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
        let objects = ipc_of(uid).unwrap_or_default();
        found.extend(objects.iter().map(|one| leftover("ipc", format!("{} {}", one.kind.name(), one.id))));
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

/// Ends and removes all that a job's uid has outside namespaces of its own: processes, System V objects,
/// files where everybody may write, or in its home, but for its storage. What is still there. `confined` says that it
/// could not write where everybody may, so that a place that cannot be searched tells nothing of it.
fn sweep(uid: u32, storage: Option<&str>, confined: bool) -> Vec<Leftover> {
    let mut left = end(uid);
    let places: Vec<PathBuf> = uids::home_of(uid).map(Path::to_owned).into_iter().chain(places()).collect();
    match remove_files_of(uid, &places, storage.map(Path::new)) {
        Ok(files) => left.extend(files.iter().map(file)),
        Err(_) if confined => {}
        Err(place) => left.push(file(&place)),
    }
    left
}

/// Ends the processes of a job's uid and removes its System V objects.
fn end(uid: u32) -> Vec<Leftover> {
    let mut left = Vec::new();
    if let Err(unkilled) = kill_uid(uid) {
        left.extend(unkilled.pids.iter().copied().map(process));
        if unkilled.pids.is_empty() {
            left.push(leftover("process", format!("of uid {uid}: {}", unkilled.why)));
        }
    }
    // What this leaves is found by the look that follows.
    let _ = remove_ipc(uid);
    left
}

/// What [`restore`] did.
#[derive(Debug, Default)]
pub struct Restored {
    /// Uids whose traces were removed.
    pub cleared: Vec<u32>,
    /// What could not be.
    pub leftovers: Vec<Leftover>,
}

/// Removes what killed drivers left: for each uid with a record, a mount point, a place in /tmp or a cgroup that
/// no living driver holds, its processes, cgroups, mount points, and at last the record itself.
///
/// # Errors
/// If the state directory cannot be read.
pub fn restore(facts: &Facts) -> Result<Restored, Fault> {
    if facts.own_uids.is_err() {
        return Ok(Restored { cleared: Vec::new(), leftovers: clear_own(facts) });
    }
    let present = cgroup::present(&facts.hierarchy);
    let mut uids: Vec<u32> = present.iter().filter_map(|(tag, _)| tag.parse().ok()).collect();
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
    // Not all have a record: /run is gone after a crash of the machine, and who sees another /tmp, as with systemd's
    // PrivateTmp, finds nothing to remove and clears it. An empty one may be where a driver with another /run mounts.
    let is_empty = |tag: &String| {
        std::fs::read_dir(uids::shown_place(tag)).is_ok_and(|mut entries| entries.next().is_none())
    };
    let abandoned = abandoned().into_iter().filter(|tag| !is_empty(tag));
    uids.extend(abandoned.filter_map(|tag| tag.parse().ok()).filter(|uid| uids::is_leasable(*uid)));
    uids.sort_unstable();
    uids.dedup();
    let mut restored = Restored { cleared: Vec::new(), leftovers: remove_cgroups_of_dead(facts) };
    for uid in uids {
        // Held by a living driver: not ours to touch.
        if let Some(left) = clear_uid(facts, uid)? {
            restored.cleared.push(uid);
            restored.leftovers.extend(left);
        }
    }
    Ok(restored)
}

/// Removes what a uid's last driver left, if it is dead, and looks what is still there.
///
/// # Errors
/// If the uid cannot be locked.
pub fn clear_uid(facts: &Facts, uid: u32) -> Result<Option<Vec<Leftover>>, Fault> {
    let Some(lease) = uids::try_lease(uid)? else { return Ok(None) };
    if cgroup::is_held(&facts.hierarchy, uid) {
        return Ok(None);
    }
    let left = clear_held(facts, uid, true);
    match left.is_empty() {
        true => drop(lease),
        false => lease.keep_record(),
    }
    Ok(Some(left))
}

/// As [`clear_uid`], of a uid whose lock is held. Without `files` only what can be nobody's but a job's
/// goes; an account that jobs have may have files besides.
pub fn clear_held(facts: &Facts, uid: u32, files: bool) -> Vec<Leftover> {
    let mut left = match uids::is_jobs_alone(uid) && !files {
        true => end(uid),
        false => sweep_if_ours(uid, None, false),
    };
    left.extend(clear_cgroups(facts, &uid.to_string()));
    left.extend(remove_mount_points(uid));
    left.extend(look(uid, false));
    left.extend(mounts(uid));
    left
}

/// Removes the cgroup of what is called so, and who is in it; what could not be removed. One that a living
/// driver has is no leftover.
pub fn clear_cgroups(facts: &Facts, tag: &str) -> Vec<Leftover> {
    if cgroup::is_held(&facts.hierarchy, tag) {
        return Vec::new();
    }
    cgroup::directories(&facts.hierarchy, tag).iter().filter_map(|path| clear_cgroup(path)).collect()
}

/// As [`clear_cgroups`], one directory.
fn clear_cgroup(path: &Path) -> Option<Leftover> {
    let failed = cgroup::clear(path).err().filter(|errno| *errno != Errno::EWOULDBLOCK);
    failed.map(|errno| directory(path, errno))
}

/// Removes what dead drivers of this user left that leased no uid; what could not be removed.
pub fn clear_own(facts: &Facts) -> Vec<Leftover> {
    let mut left = remove_own_places();
    left.extend(remove_cgroups_of_dead(facts));
    left
}

/// As [`restore`], for a driver about to start: costs one look where no other driver is or was.
///
/// # Errors
/// As [`restore`].
pub fn heal(facts: &Facts) -> Result<(), Fault> {
    if facts.own_uids.is_ok() && uids::in_use()?.is_empty() {
        return Ok(());
    }
    restore(facts).map(drop)
}

/// What the places in /tmp of dead drivers of this user are called: a living one holds a lock on its own.
fn abandoned() -> Vec<String> {
    let own = nix::unistd::geteuid().as_raw();
    let entries = std::fs::read_dir("/tmp").into_iter().flatten().flatten();
    let made_by_us =
        entries.filter(|entry| entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == own));
    let named = made_by_us.filter_map(|entry| uids::tag_of_shown_place(&entry.file_name()));
    let free = |tag: &String| {
        let directory = std::fs::File::open(uids::shown_place(tag));
        directory.is_ok_and(|directory| lock(directory.as_fd()).is_ok())
    };
    named.filter(free).collect()
}

/// Removes the storage of drivers of this user that leased no uid, if they are dead.
fn remove_own_places() -> Vec<Leftover> {
    let own = format!("{}-", nix::unistd::geteuid());
    let tags = abandoned().into_iter().filter(|tag| tag.starts_with(&own));
    tags.flat_map(|tag| plain::remove(&uids::shown_place(&tag))).map(|left| file(&left)).collect()
}

/// Removes the cgroups that are called by the pid of a driver, if that driver is dead: those of its jobs,
/// where it leases no uids, and the leaf it was in itself.
fn remove_cgroups_of_dead(facts: &Facts) -> Vec<Leftover> {
    let dead = |tag: &str| {
        let pid = aside::driver_of(tag).or_else(|| uids::pid_of_tag(tag));
        pid.is_some_and(|pid| std::fs::symlink_metadata(format!("/proc/{pid}")).is_err())
    };
    let present = cgroup::present(&facts.hierarchy).into_iter().filter(|(tag, _)| dead(tag));
    // That of a living driver may be among them: its number is of another PID namespace.
    present.filter_map(|(_, path)| clear_cgroup(&path)).collect()
}

/// Any other uid is an account's (`--user`), which may have processes of its own.
pub fn sweep_if_ours(uid: u32, storage: Option<&str>, confined: bool) -> Vec<Leftover> {
    if uids::is_jobs_alone(uid) {
        sweep(uid, storage, confined)
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
            return Vec::new();
        }
        let _ = nix::mount::umount2(place.as_str(), nix::mount::MntFlags::MNT_DETACH);
        plain::remove(&place).iter().map(file).collect()
    };
    uids::mount_points(uid).into_iter().flat_map(remove).collect()
}
