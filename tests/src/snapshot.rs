//! The machine before and after: what a job or a killed driver left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::process::{below, processes, wait_until, Process};

/// The places where a job or a driver could leave files.
const FOLDERS: [&str; 4] = ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"];

/// The driver's table of leased uids: for each of the range the pid of its driver, or 0.
const UIDS: &str = "/run/autodriver/uids";
/// The first uid of the range.
const FIRST_UID: u32 = 59_000;

/// How long the kernel may take to tear down namespaces and cgroups, and neighbours to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where an init of a box belongs, besides its driver.
const NOBODY: u32 = 65534;

/// A listing of all that jobs can leave on a machine.
///
/// Other work goes on beside the tests, so only what could be ours is listed: processes and
/// files of a uid that is not root or that carry our names, cgroups of ours, and every mount,
/// IPC object and key of a job. Each goes with the uid of its job, where that can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, Option<u32>>);

/// Held by tests whose snapshots the jobs of other tests in the same file would disturb.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ours(name: &str) -> bool {
    ["autodriver", "captive"].iter().any(|word| name.contains(word))
}

/// The uid that a cgroup or a lock of the driver is named after.
fn uid_in(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_prefix("autodriver-").unwrap_or(name);
    name.strip_suffix(".storage").unwrap_or(name).parse().ok()
}

/// What belongs to living drivers that this test did not start.
struct Neighbours {
    processes: BTreeSet<i32>,
    uids: BTreeSet<u32>,
}

impl Neighbours {
    fn find(all: &[Process]) -> Neighbours {
        let own = i32::try_from(std::process::id()).expect("pids are positive and small");
        let own: BTreeSet<i32> = below(all, own).iter().map(|one| one.pid).collect();
        let is_driver = |one: &Process| one.uid == 0 && one.name.contains("autodriver");
        let drivers = all.iter().filter(|one| is_driver(one) && !own.contains(&one.pid));
        let mut found = Neighbours { processes: BTreeSet::new(), uids: BTreeSet::new() };
        for driver in drivers {
            let children = below(all, driver.pid);
            found.uids.extend(children.iter().map(|one| one.uid).filter(|uid| *uid != NOBODY && *uid != 0));
            found.processes.extend(children.iter().map(|one| one.pid));
            found.processes.insert(driver.pid);
        }
        let theirs = leases().into_iter().filter(|(_, pid)| found.processes.contains(pid));
        found.uids.extend(theirs.map(|(uid, _)| uid));
        found.uids.extend(uids_elsewhere());
        found
    }
}

/// The uids after which cgroups are named that are not below our own: a driver makes them below its own, so that
/// these are not of one that we have started.
fn uids_elsewhere() -> BTreeSet<u32> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut elsewhere = BTreeSet::new();
    for (controller, path) in own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')) {
        let top = Path::new("/sys/fs/cgroup").join(controller);
        let ours = top.join(path.trim_start_matches('/'));
        let mut found = Listing::new();
        // With cgroup v2 they may be at the top.
        if !controller.is_empty() {
            list_cgroups(&top, &mut found);
        }
        let ours = format!("cgroup {}", ours.display());
        let others = found.into_iter().filter(|(what, _)| !what.starts_with(&ours));
        elsewhere.extend(others.filter_map(|(_, uid)| uid));
    }
    elsewhere
}

/// The uids that are recorded as leased, each with the pid of its driver.
fn leases() -> Vec<(u32, i32)> {
    let table = fs::read(UIDS).unwrap_or_default();
    let pids = table.chunks_exact(4).map(|pid| i32::from_ne_bytes(pid.try_into().expect("four bytes")));
    (FIRST_UID..).zip(pids).filter(|(_, pid)| *pid != 0).collect()
}

type Listing = BTreeMap<String, Option<u32>>;

fn list_processes(all: Vec<Process>, neighbours: &Neighbours, into: &mut Listing) {
    let found = all.into_iter().filter(|one| one.uid != 0 || ours(&one.name));
    let found = found.filter(|one| !neighbours.processes.contains(&one.pid));
    into.extend(found.map(|one| (one.to_string(), Some(one.uid).filter(|uid| *uid != NOBODY))));
}

fn list_mounts(into: &mut Listing) {
    // A test may have a mount namespace of its own, as a thread.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc/thread-self/mountinfo");
    into.extend(mounts.lines().map(|line| (format!("mount {line}"), None)));
}

fn list_cgroups(folder: &Path, into: &mut Listing) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            // The directory above those of the jobs comes and goes with them.
            if ours(&path.to_string_lossy()) && !path.ends_with("autodriver") {
                into.insert(format!("cgroup {}", path.display()), uid_in(&path));
            }
            list_cgroups(&path, into);
        }
    }
}

fn list_state(into: &mut Listing) {
    into.extend(leases().into_iter().map(|(uid, pid)| (format!("lease of uid {uid} by {pid}"), Some(uid))));
    for entry in fs::read_dir("/run/autodriver").into_iter().flatten().flatten() {
        if entry.path() != Path::new(UIDS) {
            into.insert(format!("file {}", entry.path().display()), uid_in(&entry.path()));
        }
    }
}

fn list_files(into: &mut Listing) {
    for folder in FOLDERS {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, owner) = (entry.path(), entry.metadata().map_or(0, |meta| meta.uid()));
            if owner != 0 || ours(&path.to_string_lossy()) {
                let uid = if owner == 0 { uid_in(&path) } else { Some(owner) };
                into.insert(format!("file {}", path.display()), uid);
            }
        }
    }
}

fn list_ipc_and_keys(into: &mut Listing) {
    for kind in ["shm", "sem", "msg"] {
        let table = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        // Key and id; sizes and times of the machine's own objects may change.
        let objects = table.lines().skip(1).map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
        into.extend(objects.map(|words| (format!("{kind} {}", words.join(" ")), None)));
    }
    let keys = fs::read_to_string("/proc/keys").unwrap_or_default();
    for line in keys.lines() {
        let uid = line.split_whitespace().nth(5).and_then(|uid| uid.parse().ok()).unwrap_or(0);
        if uid != 0 && uid != NOBODY {
            into.insert(format!("key {line}"), Some(uid));
        }
    }
    let users = fs::read_to_string("/proc/key-users").unwrap_or_default();
    let uids = users.lines().filter_map(|line| line.trim().split(':').next()?.parse::<u32>().ok());
    // The kernel frees its record of a user some time after the last process; init's is shared.
    into.extend(
        uids.filter(|uid| *uid != 0 && *uid != NOBODY).map(|uid| (format!("key user {uid}"), Some(uid))),
    );
}

impl Snapshot {
    /// Lists the machine as it is now, without what belongs to others at work on it.
    pub fn take() -> Snapshot {
        let mut found = Listing::new();
        let all = processes();
        let neighbours = Neighbours::find(&all);
        list_processes(all, &neighbours, &mut found);
        list_mounts(&mut found);
        list_cgroups(Path::new("/sys/fs/cgroup"), &mut found);
        list_state(&mut found);
        list_files(&mut found);
        list_ipc_and_keys(&mut found);
        found.retain(|_, uid| uid.is_none_or(|uid| !neighbours.uids.contains(&uid)));
        Snapshot(found)
    }

    /// What is there now and was not, and mounts that were there and are gone.
    pub fn difference(&self) -> Vec<String> {
        let now = Snapshot::take();
        let left =
            now.0.keys().filter(|what| !self.0.contains_key(*what)).map(|what| format!("left: {what}"));
        let gone = self.0.keys().filter(|what| what.starts_with("mount ") && !now.0.contains_key(*what));
        left.chain(gone.map(|what| format!("gone: {what}"))).collect()
    }

    /// Fails unless the machine becomes again what it was; `after` says what came between.
    #[track_caller]
    pub fn assert_same(&self, after: &str) {
        let same = wait_until(PATIENCE, || self.difference().is_empty().then_some(()));
        let difference = self.difference();
        assert!(
            same.is_some() || difference.is_empty(),
            "after {after} the machine is not what it was:\n{}",
            difference.join("\n")
        );
    }
}
