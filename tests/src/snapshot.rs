//! The machine before and after: what a job or a killed driver left behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::process::{processes, wait_until};

/// The places where a job or a driver could leave files.
const FOLDERS: [&str; 5] = ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/autodriver"];

/// How long the kernel may take to tear down namespaces and cgroups, and neighbours to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listing of all that jobs can leave on a machine.
///
/// Other work goes on beside the tests, so only what could be ours is listed: processes and
/// files of a uid that is not root or that carry our names, cgroups of ours, and every mount,
/// IPC object and key of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

/// Held by tests whose snapshots the jobs of other tests in the same file would disturb.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ours(name: &str) -> bool {
    ["autodriver", "captive"].iter().any(|word| name.contains(word))
}

fn list_processes(into: &mut BTreeSet<String>) {
    let found = processes().into_iter().filter(|one| one.uid != 0 || ours(&one.name));
    into.extend(found.map(|one| one.to_string()));
}

fn list_mounts(into: &mut BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    into.extend(mounts.lines().map(|line| format!("mount {line}")));
}

fn list_cgroups(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if ours(&entry.path().to_string_lossy()) {
                into.insert(format!("cgroup {}", entry.path().display()));
            }
            list_cgroups(&entry.path(), into);
        }
    }
}

fn list_files(into: &mut BTreeSet<String>) {
    for folder in FOLDERS {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let foreign = entry.metadata().is_ok_and(|meta| meta.uid() != 0);
            if foreign || ours(&entry.path().to_string_lossy()) {
                into.insert(format!("file {}", entry.path().display()));
            }
        }
    }
}

fn list_ipc_and_keys(into: &mut BTreeSet<String>) {
    for kind in ["shm", "sem", "msg"] {
        let table = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        // Key and id; sizes and times of the machine's own objects may change.
        let objects = table.lines().skip(1).map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
        into.extend(objects.map(|words| format!("{kind} {}", words.join(" "))));
    }
    let keys = fs::read_to_string("/proc/keys").unwrap_or_default();
    for line in keys.lines() {
        let uid = line.split_whitespace().nth(5).unwrap_or("0");
        if uid != "0" {
            into.insert(format!("key {line}"));
        }
    }
    let users = fs::read_to_string("/proc/key-users").unwrap_or_default();
    let uids = users.lines().filter_map(|line| line.trim().split(':').next()).filter(|uid| *uid != "0");
    into.extend(uids.map(|uid| format!("key user {uid}")));
}

impl Snapshot {
    /// Lists the machine as it is now.
    pub fn take() -> Snapshot {
        let mut found = BTreeSet::new();
        list_processes(&mut found);
        list_mounts(&mut found);
        list_cgroups(Path::new("/sys/fs/cgroup"), &mut found);
        list_files(&mut found);
        list_ipc_and_keys(&mut found);
        Snapshot(found)
    }

    /// What is there now and was not, or was there and is gone.
    pub fn difference(&self) -> Vec<String> {
        let now = Snapshot::take();
        let left = now.0.difference(&self.0).map(|what| format!("left: {what}"));
        let gone = self.0.difference(&now.0).map(|what| format!("gone: {what}"));
        left.chain(gone).collect()
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
