//! What stands in for cgroups and PID namespaces: the driver looks at the job's processes and files
//! itself, and ends what is left of them itself.
//!
//! Every look costs time, so that the next one comes when a limit could be passed, but not so soon
//! that looking takes more than a tenth of one processor.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::stat::fstat;
use nix::sys::statfs::fstatfs;
use nix::unistd::Pid;

use super::cpu_time;
use super::disk::{disk, Disk};
use super::enclosing::Enclosing;
use super::sampled::{Sample, Sampler};
use super::tree::Tree;
use crate::facts::Facts;
use crate::fault::{Fault, Step};
use crate::plan::Plan;
use crate::sandbox::cgroup::Account;
use crate::sandbox::storage::{Storage, Use};
use crate::sandbox::sweep::processes::{kill_descendants, kill_uid};
use crate::sandbox::Identity;
use crate::sys::process::signal_listed;
use crate::uids;

/// Shortest time between two looks.
const LOOK_MIN: Duration = Duration::from_millis(2);
/// Time between two looks, in terms of what one took.
const LOOK_SHARE: u32 = 10;
/// How fast a disk can be filled, bytes for each microsecond: a generous bound for the page cache.
const WRITE_RATE: u64 = 2048;

/// The driver's own look at a job.
#[derive(Debug)]
pub struct Watch {
    sampler: Sampler,
    init: Pid,
    /// The job's uid, if it has one of its own.
    uid: Option<u32>,
    sample: Sample,
    /// In the storage before the job, and at the last look.
    before: Disk,
    disk: Disk,
    /// Files and directories looked at in one walk: more than the job may have.
    walk_max: u64,
    /// As [`stored`], before the job.
    stored_before: u64,
    next: Instant,
    failure: Option<Errno>,
}

/// Nothing can stand in where /proc does not show the job.
pub(super) fn unwatchable(errno: Errno) -> Fault {
    Fault::new(Step::Supervise, "watch the job's processes, for want of a cgroup: open /proc", errno)
}

impl Watch {
    /// Starts to watch the processes below `init`, and a plain storage.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn new(
        init: Pid,
        identity: Identity,
        storage: &Storage,
        plan: &Plan,
        facts: &Facts,
    ) -> Result<Watch, Fault> {
        let uid = match identity {
            Identity::Own(ids) => Some(ids.uid),
            Identity::Confined | Identity::Callers => None,
        };
        let mut tree = Tree::new(init, uid.filter(|uid| uids::is_jobs_alone(*uid))).map_err(unwatchable)?;
        let before = written(storage, u64::MAX);
        let device = fstat(storage.job()).map_or(0, |stat| stat.st_dev);
        let enclosing = Enclosing::open(&facts.enclosing, tree.procfs(), init, device, facts.processors);
        let mut sampler = Sampler::new(tree, uid, enclosing);
        let stored_before = stored(storage);
        // From here on what the account grows by is the job's.
        sampler.start();
        Ok(Watch {
            sampler,
            init,
            uid,
            sample: Sample::default(),
            before,
            disk: before,
            walk_max: before.inodes.saturating_add(plan.inodes).saturating_add(1),
            stored_before,
            next: Instant::now(),
            failure: None,
        })
    }

    /// Looks, if it is time to. Memory is counted exactly only above `memory` bytes.
    pub fn look(&mut self, now: Instant, memory: u64, storage: &Storage) {
        if now >= self.next {
            let before = cpu_time::of_driver();
            self.look_now(memory, storage);
            // Not the time that passed: a driver that has to wait for a processor must look all the sooner.
            let took = cpu_time::of_driver().saturating_sub(before);
            self.next = Instant::now() + (took * LOOK_SHARE).max(LOOK_MIN);
        }
    }

    /// Looks.
    pub fn look_now(&mut self, memory: u64, storage: &Storage) {
        self.disk = written(storage, self.walk_max);
        let stored = stored(storage).saturating_sub(self.stored_before);
        match self.sampler.sample(memory, stored) {
            Ok(sample) => self.sample = sample,
            Err(errno) => self.failure = Some(errno),
        }
    }

    /// Why the last look saw nothing, if it did: then no limit holds.
    pub fn failure(&self) -> Option<Errno> {
        self.failure
    }

    /// When to look again at the latest, if it is `wait` until a limit can be passed.
    pub fn next(&self, now: Instant, wait: Duration) -> Instant {
        self.next.max(now + wait)
    }

    /// CPU time of the job so far, microseconds: a lower bound.
    pub fn cpu_us(&self) -> u64 {
        self.sample.cpu_us()
    }

    /// Bytes of memory in use.
    pub fn memory(&self) -> u64 {
        self.sample.memory
    }

    /// Bytes and inodes that the job has on disk beyond what was there before it.
    pub fn written(&self) -> (u64, u64) {
        let bytes = self.disk.bytes.saturating_sub(self.before.bytes);
        let inodes = self.disk.inodes.saturating_sub(self.before.inodes);
        (bytes + self.sample.unlinked_bytes, inodes + self.sample.unlinked_inodes)
    }

    /// Whether the last look met every file of the storage.
    pub fn is_all_counted(&self) -> bool {
        !self.disk.partial
    }

    /// How long it takes at least to write so many bytes.
    pub fn time_to_write(bytes: u64) -> Duration {
        Duration::from_micros(bytes / WRITE_RATE)
    }

    /// Fills in what the kernel has not counted. A figure of 0 is one that was never seen.
    pub fn complete(&self, account: &mut Account) {
        let (peaks, seen) = (self.sampler.peaks(), |figure: u64| (figure > 0).then_some(figure));
        account.cpu_user_us = account.cpu_user_us.or(Some(self.sample.cpu_user_us));
        account.cpu_system_us = account.cpu_system_us.or(Some(self.sample.cpu_system_us));
        account.memory_peak = account.memory_peak.or(seen(peaks.memory));
        account.pids_peak = account.pids_peak.or(seen(peaks.threads));
    }

    /// Most processes and threads seen at once.
    pub fn pids_peak(&self) -> u64 {
        self.sampler.peaks().threads
    }

    /// Sends a signal to every process. Returns how many there were.
    pub fn signal(&mut self, signal: Signal) -> usize {
        let tree = self.sampler.tree();
        let members = || tree.members().unwrap_or_default().iter().map(|one| one.pid).collect();
        signal_listed(members, signal)
    }

    /// Kills every process, until a second look finds none. Those that do not die.
    pub fn kill(&self) -> Vec<Pid> {
        let killed = match self.uid {
            Some(uid) if uids::is_jobs_alone(uid) => kill_uid(uid),
            // The caller's, or an account's (`--user`), which may have other processes.
            _ => kill_descendants(self.init),
        };
        killed.err().map_or_else(Vec::new, |unkilled| unkilled.pids)
    }
}

/// What is in a storage that the driver has to look at.
fn written(storage: &Storage, budget: u64) -> Disk {
    let (directories, only) = storage.directories();
    disk(&directories, only, budget)
}

/// Bytes of memory that the file system of a storage takes.
fn stored(storage: &Storage) -> u64 {
    let usage = fstatfs(storage.job()).ok().and_then(|stat| Use::of_tmpfs(&stat));
    usage.map_or(0, |usage| usage.bytes)
}
