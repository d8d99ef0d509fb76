//! The account of the cgroup that the driver itself is in, as in a container: the kernel counts there
//! what no look at processes sees. Memory that a process hides by not being dumpable (proc(5)), files on
//! the way through a socket, socket buffers (cgroup v2); the time of children that nobody waits for and
//! that live shorter than the time between two looks.
//!
//! It counts everything in the cgroup, and a job must not be blamed for others. So it grows on the job's
//! account only from one look to the next when nobody was there at either but the job, the driver, and those
//! who wait for the driver, whose own share is subtracted; otherwise only by what the looks saw.

mod others;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::statfs;
use nix::unistd::Pid;

use super::cpu_time::{of_driver, tick_us};
use super::tree::Look;
use crate::facts;
use crate::facts::Accounting;
use crate::procfs::Procfs;
use crate::sandbox::cgroup::field;
use crate::sandbox::storage::Use;
use others::Others;

/// Less than this beyond what was seen is noise: page tables, what the kernel frees late.
const MEMORY_NOISE: u64 = 8 << 20;
/// What the kernel may keep for each processor before it adds it up (MEMCG_CHARGE_BATCH).
const MEMORY_BATCH: u64 = 2 * 64 * 4096;
/// As [`MEMORY_NOISE`], microseconds: ticks.
const CPU_NOISE: u64 = 100_000;
/// As [`CPU_NOISE`], one part in so many of the time that passed: health checks that no look met.
const CPU_NOISE_SHARE: u64 = 20;
/// How long memory has to be there: the files and the account are not read at the same moment.
const LASTING: Duration = Duration::from_millis(50);
/// Longer than memory.stat.
const TEXT: usize = 16 << 10;

/// What a look saw: the job's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Bytes.
    pub memory: u64,
    /// Microseconds.
    pub cpu_us: u64,
    /// Bytes in its storage, if that is memory.
    pub stored: u64,
}

/// What a job has at least, as far as that is more than was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes.
    pub memory: Option<u64>,
    /// Microseconds.
    pub cpu_us: Option<u64>,
}

/// Follows both accounts.
#[derive(Debug)]
pub struct Enclosing {
    memory: Option<Follower>,
    cpu: Option<Follower>,
    others: Others,
    /// Directories on a tmpfs that others may fill, each on another one.
    places: Vec<Place>,
    lasting: Lasting,
    started: Instant,
    memory_noise: u64,
}

impl Enclosing {
    /// Opens what there is.
    ///
    /// `init` is the job's, and `storage` the device of what it may write.
    pub fn open(
        found: &facts::Enclosing,
        procfs: &mut Procfs,
        init: Pid,
        storage: u64,
        processors: u64,
    ) -> Enclosing {
        let memory = found.memory.as_ref().and_then(|accounting| match accounting {
            Accounting::V2(at) => Follower::open(at, Kind::Memory2, &["memory.stat", "memory.swap.current"]),
            Accounting::V1(at) => Follower::open(at, Kind::Memory1, &["memory.stat"]),
        });
        let cpu = found.cpu.as_ref().and_then(|accounting| match accounting {
            Accounting::V2(at) => Follower::open(at, Kind::Cpu2, &["cpu.stat"]),
            Accounting::V1(at) => Follower::open(at, Kind::Cpu1, &["cpuacct.usage"]),
        });
        let mut lists: Vec<PathBuf> =
            [&memory, &cpu].into_iter().flatten().map(|follower| follower.list.clone()).collect();
        lists.dedup();
        Enclosing {
            others: Others::new(lists, procfs, init),
            places: if memory.is_some() { places(storage) } else { Vec::new() },
            memory,
            cpu,
            lasting: Lasting::default(),
            started: Instant::now(),
            memory_noise: MEMORY_NOISE.max(MEMORY_BATCH.saturating_mul(processors)),
        }
    }

    /// Takes down what a look saw.
    pub fn observe(&mut self, procfs: &mut Procfs, look: &Look, seen: Seen) -> Bounds {
        let mut bounds = Bounds::default();
        if self.memory.is_none() && self.cpu.is_none() {
            return bounds;
        }
        let others = self.others.look(procfs, look);
        if let Some(memory) = &mut self.memory {
            let elsewhere: u64 = self.places.iter_mut().map(Place::grown).sum();
            let known = signed(others.memory) + signed(seen.stored) + signed(elsewhere);
            let level = memory.read().map(|counted| signed(counted) - known);
            let part = level.map(|level| memory.tally.part(level, signed(seen.memory), others.alone));
            let bound = part.and_then(|part| self.lasting.least(Instant::now(), part));
            bounds.memory = bound.filter(|bound| *bound > seen.memory.saturating_add(self.memory_noise));
        }
        if let Some(cpu) = &mut self.cpu {
            // Not in ticks: it is the busiest of them.
            let own = signed(micros(of_driver()));
            let known = signed(others.ticks.saturating_mul(tick_us())) + own;
            let level = cpu.read().map(|counted| signed(counted) - known);
            let part = level.map(|level| cpu.tally.part(level, signed(seen.cpu_us), others.alone));
            let noise = CPU_NOISE + micros(self.started.elapsed()) / CPU_NOISE_SHARE;
            let bound = part.and_then(|part| u64::try_from(part).ok());
            bounds.cpu_us = bound.filter(|bound| *bound > seen.cpu_us.saturating_add(noise));
        }
        bounds
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memory2,
    Memory1,
    Cpu2,
    Cpu1,
}

/// One account.
#[derive(Debug)]
struct Follower {
    kind: Kind,
    files: Vec<File>,
    /// Its processes.
    list: PathBuf,
    tally: Tally,
}

impl Follower {
    /// `None` where it cannot be read, or where the cgroup has others below it, whose processes would not
    /// be seen.
    fn open(at: &Path, kind: Kind, names: &[&str]) -> Option<Follower> {
        let mut below = fs::read_dir(at).ok()?.flatten();
        if below.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            return None;
        }
        // Without swap there is no file of it.
        let files = names.iter().filter_map(|name| File::open(at.join(name)).ok()).collect();
        let follower = Follower { kind, files, list: at.join("cgroup.procs"), tally: Tally::default() };
        Some(follower).filter(|one| one.read().is_some())
    }

    /// Bytes, or microseconds.
    fn read(&self) -> Option<u64> {
        let mut text = [0; TEXT];
        let mut sum = 0_u64;
        for (index, file) in self.files.iter().enumerate() {
            let length = file.read_at(&mut text, 0).ok()?;
            let text = std::str::from_utf8(text.get(..length)?).ok()?;
            let counted = if index == 0 { self.kind.count(text) } else { text.trim().parse().ok() };
            sum = sum.saturating_add(counted?);
        }
        (!self.files.is_empty()).then_some(sum)
    }
}

impl Kind {
    /// From the text of the first file: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst,
    /// cgroup-v1/cpuacct.rst. Never the page cache or what else the kernel takes back when memory is short.
    fn count(self, text: &str) -> Option<u64> {
        let field = |key: &str| field(text, key);
        let sum = |keys: &[&str]| keys.iter().filter_map(|key| field(key)).sum::<u64>();
        match self {
            Kind::Memory2 => {
                let kernel = match field("kernel") {
                    Some(kernel) => kernel.saturating_sub(sum(&["slab_reclaimable"])),
                    // Before Linux 5.18.
                    None => sum(&["kernel_stack", "pagetables", "percpu", "slab_unreclaimable"]),
                };
                Some(field("anon")? + kernel + sum(&["shmem", "sock"]))
            }
            // The kernel's own memory is not told apart from what it can take back.
            Kind::Memory1 => Some(field("total_rss")? + sum(&["total_shmem", "total_swap"])),
            Kind::Cpu2 => field("usage_usec"),
            Kind::Cpu1 => text.trim().parse::<u64>().ok().map(|nanoseconds| nanoseconds / 1000),
        }
    }
}

/// A tmpfs of the machine.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    before: u64,
    grown: u64,
}

/// The usual ones, but for that of the storage. What others put there is no memory of the job's, which cannot
/// write there.
fn places(storage: u64) -> Vec<Place> {
    let mut devices = vec![storage];
    let mut found = Vec::new();
    for path in ["/tmp", "/var/tmp", "/dev/shm", "/run"].map(PathBuf::from) {
        let Ok(device) = fs::metadata(&path).map(|stat| stat.dev()) else { continue };
        if let Some(before) = filled(&path).filter(|_| !devices.contains(&device)) {
            devices.push(device);
            found.push(Place { path, before, grown: 0 });
        }
    }
    found
}

impl Place {
    /// Bytes put there since the start. What was removed does not count: it may have been another cgroup's.
    fn grown(&mut self) -> u64 {
        let now = filled(&self.path).unwrap_or(self.before);
        self.grown = self.grown.saturating_add(now.saturating_sub(self.before));
        self.before = now;
        self.grown
    }
}

/// Bytes in a tmpfs.
fn filled(path: &Path) -> Option<u64> {
    Some(Use::of_tmpfs(&statfs(path).ok()?)?.bytes)
}

/// From the levels of an account to the job's part of it.
#[derive(Debug, Default)]
struct Tally {
    /// Level, and what of it was the job's, at the last look.
    last: Option<(i64, i64)>,
    /// What was seen at the last look.
    seen: i64,
}

impl Tally {
    /// The job's part of this level. While it was `alone`, it has grown and shrunk as the account has. Otherwise
    /// by what was seen, but no more than the account: pages that several processes share may have been seen
    /// twice. It may be below 0 for a while, when the account and what is subtracted are not of one moment.
    fn part(&mut self, level: i64, seen: i64, alone: bool) -> i64 {
        let part = match self.last {
            None => seen,
            Some((before, part)) if alone => part + (level - before),
            Some((before, part)) => (part + (seen - self.seen).min((level - before).max(0))).max(0),
        };
        self.last = Some((level, part));
        self.seen = seen;
        part
    }
}

/// What was there all the time for a while.
#[derive(Debug, Default)]
struct Lasting(VecDeque<(Instant, i64)>);

impl Lasting {
    /// The least of [`LASTING`], once that much time has passed.
    fn least(&mut self, now: Instant, part: i64) -> Option<u64> {
        self.0.push_back((now, part));
        let long_ago = |at: &(Instant, i64)| now.saturating_duration_since(at.0) >= LASTING;
        // One that is older than the time is needed to span it.
        while self.0.get(1).is_some_and(long_ago) {
            self.0.pop_front();
        }
        self.0.front().filter(|at| long_ago(at))?;
        self.0.iter().map(|(_, part)| *part).min().and_then(|least| u64::try_from(least).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_jobs_while_it_is_alone() {
        let mut tally = Tally::default();
        assert_eq!(tally.part(1000, 10, false), 10);
        assert_eq!(tally.part(1500, 20, true), 510);
        // Somebody else was there: only what was seen counts, and what counted before stays.
        assert_eq!(tally.part(9000, 25, false), 515);
        assert_eq!(tally.part(9100, 25, true), 615);
        // What is given back is given back, and what is only read at another moment comes again.
        assert_eq!(tally.part(8100, 25, true), -385);
        assert_eq!(tally.part(9100, 25, true), 615);
    }

    #[test]
    fn page_that_was_seen_twice_does_not_stay() {
        let mut tally = Tally::default();
        assert_eq!(tally.part(100, 100, false), 100);
        assert_eq!(tally.part(101, 200, false), 101, "after a fork");
        assert_eq!(tally.part(101, 100, false), 1, "rather too little");
        assert_eq!(tally.part(201, 100, true), 101);
    }

    #[test]
    fn only_what_lasts_counts() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut lasting = Lasting::default();
        assert_eq!(lasting.least(at(0), 10), None);
        assert_eq!(lasting.least(at(20), 900), None);
        assert_eq!(lasting.least(at(60), 40), Some(10));
        assert_eq!(lasting.least(at(80), 900), Some(40));
        assert_eq!(lasting.least(at(200), 900), Some(900));
        assert_eq!(lasting.least(at(201), -5), None);
    }

    #[test]
    fn tmpfs_that_others_fill_is_subtracted_and_stays_so() {
        let folder = PathBuf::from("/dev/shm");
        let mut place = Place { before: filled(&folder).expect("a tmpfs"), path: folder.clone(), grown: 0 };
        let file = folder.join(format!("autodriver-enclosing-{}", std::process::id()));
        fs::write(&file, vec![1; 3 << 20]).expect("write");
        assert!(place.grown() >= 3 << 20);
        fs::remove_file(&file).expect("unlink");
        assert!(place.grown() >= 3 << 20);
    }

    #[test]
    fn accounts_are_read() {
        let v2 = "anon 100\nfile 7000\nkernel 50\nkernel_stack 1\nsock 3\nshmem 20\nslab_reclaimable 30\n";
        assert_eq!(Kind::Memory2.count(v2), Some(100 + 20 + 20 + 3));
        let older = "anon 100\nfile 7000\nkernel_stack 1\npagetables 2\nshmem 20\nslab_unreclaimable 4\n";
        assert_eq!(Kind::Memory2.count(older), Some(100 + 7 + 20));
        let v1 = "rss 1\ntotal_cache 500\ntotal_rss 40\ntotal_shmem 20\ntotal_swap 2\n";
        assert_eq!(Kind::Memory1.count(v1), Some(62));
        assert_eq!(Kind::Cpu2.count("usage_usec 77\nuser_usec 50\n"), Some(77));
        assert_eq!(Kind::Cpu1.count("77000\n"), Some(77));
        assert_eq!(Kind::Memory2.count("file 1\n"), None);
    }
}
