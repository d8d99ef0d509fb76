//! The clocks and the samples: which limit is passed, and when to look again. What the kernel
//! enforces itself (pids, the hard memory cap, the size of the storage) is only looked at here.

use std::time::{Duration, Instant};

use autodriver_protocol::{Cause, Layer};

use super::watch::Watch;
use crate::plan::Plan;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::storage::{Storage, Use};

/// Longest time between two samples.
const SAMPLE_MAX: Duration = Duration::from_millis(100);
/// Shortest time between two samples.
const SAMPLE_MIN: Duration = Duration::from_millis(2);
/// How fast memory can be filled, bytes for each microsecond: a generous bound for two cores.
const FILL_RATE: u64 = 4096;
/// How long a job may go on with full storage: it fails, copes, or is ended.
const FULL_MAX: Duration = Duration::from_secs(1);
/// How long, and how often, a job may keep its files from being counted.
const UNCOUNTED_MAX: (Duration, u32) = (Duration::from_secs(1), 5);
/// The storage counts as full when less than a page is left.
const PAGE: u64 = 4096;

/// When what has to happen.
#[derive(Debug)]
pub struct Limits {
    started: Instant,
    last_output: Instant,
    next_sample: Instant,
    storage_before: u64,
    processors: u64,
    full_since: Option<Instant>,
    uncounted_since: Option<(Instant, u32)>,
    full_seen: (bool, bool),
}

/// What tells how much a job uses.
#[derive(Debug)]
pub struct Means<'a> {
    /// The kernel's account.
    pub cgroup: &'a Cgroup,
    /// Where the job writes.
    pub storage: &'a Storage,
    /// The driver's own look, where there is no account.
    pub watch: Option<&'a mut Watch>,
}

/// Bytes of memory that the job may still use, as far as the driver sees; `None` where it does not look for them.
pub fn memory_seen_left(watch: &Watch, plan: &Plan) -> Option<u64> {
    plan.substitutes(Layer::Memory).then(|| plan.memory.saturating_sub(watch.memory()))
}

/// Bytes and inodes that the job may still write, as far as the driver sees; a limit of 0 is none.
pub fn disk_left(watch: &Watch, plan: &Plan) -> (u64, u64) {
    let (bytes, inodes) = watch.written();
    let left = |limit: u64, used: u64| if limit == 0 { u64::MAX } else { limit.saturating_sub(used) };
    (left(plan.disk, bytes), left(plan.inodes, inodes))
}

/// What the storage has no room for.
pub fn full(usage: Option<Use>, plan: &Plan) -> (bool, bool) {
    let limited = plan.enforces(Layer::Disk);
    usage
        .filter(|_| limited)
        .map_or((false, false), |usage| (usage.bytes_left < PAGE, usage.inodes_left == 0))
}

impl Limits {
    /// The clocks start now: the program was executed.
    pub fn start(now: Instant, storage: &Storage, processors: u64) -> Limits {
        let storage_before = storage.usage().map_or(0, |usage| usage.bytes);
        Limits {
            started: now,
            last_output: now,
            next_sample: now + SAMPLE_MIN,
            storage_before,
            processors,
            full_since: None,
            uncounted_since: None,
            full_seen: (false, false),
        }
    }

    /// Since the program was executed.
    pub fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// The idle clock starts again.
    pub fn output_came(&mut self, now: Instant) {
        self.last_output = now;
    }

    /// When to call [`Limits::check`] again at the latest.
    pub fn next(&self, plan: &Plan) -> Instant {
        let idle = plan.idle.map(|idle| self.last_output + idle);
        let clocks = [Some(self.started + plan.wall), idle, Some(self.next_sample)];
        clocks.into_iter().flatten().min().unwrap_or(self.next_sample)
    }

    /// Which limit is passed, if any.
    pub fn check(&mut self, now: Instant, plan: &Plan, means: Means<'_>) -> Option<Cause> {
        if now >= self.started + plan.wall {
            return Some(Cause::WallLimit);
        }
        if plan.idle.is_some_and(|idle| now >= self.last_output + idle) {
            return Some(Cause::IdleLimit);
        }
        if now < self.next_sample {
            return None;
        }
        let Means { cgroup, storage, mut watch } = means;
        if let Some(watch) = watch.as_deref_mut() {
            watch.look(now, plan.memory, storage);
        }
        let watch = watch.as_deref();
        let mut wait = SAMPLE_MAX;
        let used = cgroup.cpu_us().or_else(|| watch.map(Watch::cpu_us));
        if let Some((limit, used)) = plan.cpu.zip(used) {
            match limit.checked_sub(Duration::from_micros(used)).filter(|left| !left.is_zero()) {
                None => return Some(Cause::CpuLimit),
                // All processors together cannot use it up sooner.
                Some(left) => wait = wait.min(left / u32::try_from(self.processors.max(1)).unwrap_or(1)),
            }
        }
        let memory_left = match plan.enforces(Layer::Memory) {
            true if cgroup.oom_kills().is_ok_and(|kills| kills > 0) => return Some(Cause::MemoryLimit),
            true => self.memory_left(plan, cgroup, storage),
            false => watch.and_then(|watch| memory_seen_left(watch, plan)),
        };
        match memory_left {
            Some(0) => return Some(Cause::MemoryLimit),
            Some(left) => wait = wait.min(Duration::from_micros(left / FILL_RATE)),
            None => {}
        }
        if let Some(watch) = watch.filter(|_| plan.substitutes(Layer::Disk)) {
            let (bytes, inodes) = disk_left(watch, plan);
            let (no_bytes, no_inodes) = (bytes == 0 || self.stays_uncounted(now, watch), inodes == 0);
            self.full_seen = (self.full_seen.0 | no_bytes, self.full_seen.1 | no_inodes);
            if no_bytes || no_inodes {
                return Some(Cause::DiskLimit);
            }
            wait = wait.min(Watch::time_to_write(bytes));
        }
        if self.stays_full(now, plan, storage) {
            return Some(Cause::DiskLimit);
        }
        self.next_sample = now + wait.max(SAMPLE_MIN);
        if let Some(watch) = watch {
            self.next_sample = watch.next(now, wait.max(SAMPLE_MIN));
        }
        None
    }

    /// Whether the storage has been full for so long that the job will not cope with it.
    fn stays_full(&mut self, now: Instant, plan: &Plan, storage: &Storage) -> bool {
        let (bytes, inodes) = full(storage.usage(), plan);
        self.full_seen = (self.full_seen.0 | bytes, self.full_seen.1 | inodes);
        if !bytes && !inodes {
            self.full_since = None;
            return false;
        }
        now >= *self.full_since.get_or_insert(now) + FULL_MAX
    }

    /// Whether no look could count all files for so long that it must be the job's doing: it moves
    /// directories about while they are walked.
    fn stays_uncounted(&mut self, now: Instant, watch: &Watch) -> bool {
        if watch.is_all_counted() {
            self.uncounted_since = None;
            return false;
        }
        let (since, looks) = self.uncounted_since.get_or_insert((now, 0));
        *looks += 1;
        now >= *since + UNCOUNTED_MAX.0 && *looks >= UNCOUNTED_MAX.1
    }

    /// What the storage was seen to have no room for, at any sample.
    pub fn full_seen(&self) -> (bool, bool) {
        self.full_seen
    }

    /// Memory that the job may still use. Charged to it are its own memory, its files in the
    /// storage, and the page cache of files that it reads; the second has a limit of its own and
    /// the third is given back when memory is short, so neither counts here.
    fn memory_left(&self, plan: &Plan, cgroup: &Cgroup, storage: &Storage) -> Option<u64> {
        let charged = cgroup.memory_now()?;
        if charged < plan.memory {
            return Some(plan.memory - charged);
        }
        let files = storage.usage().map_or(0, |usage| usage.bytes.saturating_sub(self.storage_before));
        let cache = cgroup.memory_reclaimable().unwrap_or(0);
        Some(plan.memory.saturating_sub(charged.saturating_sub(files).saturating_sub(cache)))
    }
}
