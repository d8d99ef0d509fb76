//! The account of the cgroup that the driver itself is in, as in a container: the kernel counts there
//! what no look at processes sees. Memory that a process hides by not being dumpable (proc(5)), files on
//! the way through a socket, socket buffers (cgroup v2); the time of children that nobody waits for and
//! that live shorter than the time between two looks.
//!
//! It counts everything in the cgroup. What the driver and those who wait for it have is subtracted; what
//! others hide is not known either, so that growth is the job's only between two looks in which all of them
//! were there and used no time. Otherwise it counts as much as the looks saw.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::time::{clock_gettime, ClockId};
use nix::unistd::Pid;

use super::tree::Look;
use crate::facts;
use crate::facts::Accounting;
use crate::procfs::{Procfs, Status};

/// Less than this beyond what was seen is noise: per-processor caches of the kernel's counters, page tables.
const MEMORY_NOISE: u64 = 8 << 20;
/// As [`MEMORY_NOISE`], microseconds: ticks, and a health check that was not met.
const CPU_NOISE: u64 = 100_000;
/// Longer than memory.stat and than any list of processes that is worth reading.
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

/// What a job may have at most, so far as can be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes, if that is more than was seen.
    pub memory: Option<u64>,
    /// Microseconds, if that is more than was seen.
    pub cpu_us: Option<u64>,
}

/// Follows both accounts.
#[derive(Debug, Default)]
pub struct Enclosing {
    memory: Option<Follower>,
    cpu: Option<Follower>,
    tick_us: u64,
}

impl Enclosing {
    /// Opens what there is.
    pub fn open(found: &facts::Enclosing, procfs: &mut Procfs) -> Enclosing {
        let known = match found {
            facts::Enclosing { memory: None, cpu: None } => Vec::new(),
            _ => known(procfs),
        };
        let open = |place: &Path, kind, names: &[&str]| Follower::open(place, kind, names, known.clone());
        let memory = |accounting: &Accounting| match accounting {
            Accounting::V2(place) => open(place, Kind::Memory2, &["memory.stat", "memory.swap.current"]),
            Accounting::V1(place) => open(place, Kind::Memory1, &["memory.stat"]),
        };
        let cpu = |accounting: &Accounting| match accounting {
            Accounting::V2(place) => open(place, Kind::Cpu2, &["cpu.stat"]),
            Accounting::V1(place) => open(place, Kind::Cpu1, &["cpuacct.usage"]),
        };
        Enclosing {
            memory: found.memory.as_ref().and_then(memory),
            cpu: found.cpu.as_ref().and_then(cpu),
            tick_us: super::sampled::tick_us(),
        }
    }

    /// Takes down what a look saw. `init` is the job's.
    pub fn observe(&mut self, procfs: &mut Procfs, init: Pid, look: &Look, seen: Seen) -> Bounds {
        let mut bounds = Bounds::default();
        if let Some(memory) = &mut self.memory {
            let others = memory.others.look(procfs, init, look);
            let known = signed(others.memory) + signed(seen.stored);
            let level = memory.read().map(|counted| signed(counted) - known);
            let bound = level.and_then(|level| memory.tally.bound(level, signed(seen.memory), others.idle));
            bounds.memory = bound.filter(|bound| *bound > seen.memory.saturating_add(MEMORY_NOISE));
        }
        if let Some(cpu) = &mut self.cpu {
            let others = cpu.others.look(procfs, init, look);
            // Not in ticks: it is the busiest of them.
            let own = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from);
            let own = u64::try_from(own.as_micros()).unwrap_or(u64::MAX);
            let known = signed(others.ticks.saturating_mul(self.tick_us)) + signed(own);
            let level = cpu.read().map(|counted| signed(counted) - known);
            let bound = level.and_then(|level| cpu.tally.bound(level, signed(seen.cpu_us), others.idle));
            bounds.cpu_us = bound.filter(|bound| *bound > seen.cpu_us.saturating_add(CPU_NOISE));
        }
        bounds
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn in_memory(status: &Status<'_>) -> u64 {
    ["RssAnon:", "RssShmem:", "VmSwap:"].into_iter().map(|key| status.bytes(key)).sum()
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
    others: Others,
    tally: Tally,
}

impl Follower {
    /// `None` where it cannot be read, or where the cgroup has others below it, whose processes would not
    /// be seen.
    fn open(place: &Path, kind: Kind, names: &[&str], known: Vec<Pid>) -> Option<Follower> {
        let mut below = fs::read_dir(place).ok()?.flatten();
        if below.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            return None;
        }
        // Without swap there is no file of it.
        let files: Vec<File> = names.iter().filter_map(|name| File::open(place.join(name)).ok()).collect();
        let procs = File::open(place.join("cgroup.procs")).ok()?;
        let others = Others { procs, known, before: None };
        Some(Follower { kind, files, others, tally: Tally::default() }).filter(|one| one.read().is_some())
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
        let field = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(name, _)| *name == key).and_then(|(_, value)| value.parse::<u64>().ok())
        };
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

/// The processes of the cgroup that are not the job's.
#[derive(Debug)]
struct Others {
    procs: File,
    /// Those whose share is known: the driver and whoever waits for it.
    known: Vec<Pid>,
    /// Number, start and ticks of each of the rest at the last look.
    before: Option<Vec<(Pid, u64, u64)>>,
}

/// What a look saw of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    /// The rest are the same as at the last look, and have used no time since.
    idle: bool,
    /// Clock ticks of the known ones, the driver not among them.
    ticks: u64,
    /// Bytes of the known ones.
    memory: u64,
}

/// This process and those it descends from, as far as they are seen; and the first one of a container.
fn known(procfs: &mut Procfs) -> Vec<Pid> {
    let mut known = vec![Pid::this(), Pid::from_raw(1)];
    let mut next = Pid::parent();
    while next.as_raw() > 1 && !known.contains(&next) {
        known.push(next);
        next = procfs.process(next).ok().flatten().map_or(Pid::from_raw(0), |process| process.parent);
    }
    known
}

impl Others {
    fn look(&mut self, procfs: &mut Procfs, init: Pid, look: &Look) -> Share {
        let mut share = Share::default();
        let rest = self.list(procfs, init, look, &mut share).ok();
        share.idle = rest.is_some() && rest == self.before;
        self.before = rest;
        share
    }

    fn list(
        &self,
        procfs: &mut Procfs,
        init: Pid,
        look: &Look,
        share: &mut Share,
    ) -> Result<Vec<(Pid, u64, u64)>, Errno> {
        let mut text = [0; TEXT];
        let length = self.procs.read_at(&mut text, 0).map_err(|error| crate::fault::errno_of(&error))?;
        // A list that does not fit is not told from one that does.
        let text = text.get(..length).filter(|_| length < TEXT).ok_or(Errno::E2BIG)?;
        let of_the_job =
            |pid: Pid| pid == init || look.members.binary_search_by_key(&pid, |member| member.pid).is_ok();
        let mut rest = Vec::new();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let number = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok());
            // 0 stands for a process outside of our PID namespace.
            let pid = Pid::from_raw(number.filter(|pid| *pid > 0).ok_or(Errno::ESRCH)?);
            if of_the_job(pid) {
                continue;
            }
            if self.known.contains(&pid) {
                share.memory += procfs.status(pid)?.map_or(0, |status| in_memory(&status));
            }
            if pid == Pid::this() {
                continue;
            }
            // Younger than the look, and below it: the job's.
            let Some(process) = procfs.process(pid)?.filter(|process| !of_the_job(process.parent)) else {
                continue;
            };
            let ticks = (process.own + process.waited).sum();
            match self.known.contains(&pid) {
                true => share.ticks += ticks,
                false => rest.push((pid, process.start_time, ticks)),
            }
        }
        rest.sort_unstable();
        Ok(rest)
    }
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
    /// The most that the job can have at this level, which is never less than what was seen of it. While
    /// all others were `idle`, it has grown and shrunk as the account has. Otherwise by what was
    /// seen, but no more than the account: pages that several processes share may have been seen twice.
    fn bound(&mut self, level: i64, seen: i64, idle: bool) -> Option<u64> {
        let part = match self.last {
            None => seen,
            Some((before, part)) if idle => part + (level - before),
            Some((before, part)) => part + (seen - self.seen).min((level - before).max(0)),
        };
        let part = part.max(0);
        self.last = Some((level, part));
        self.seen = seen;
        u64::try_from(part.max(seen)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_the_jobs_while_all_others_idle() {
        let mut tally = Tally::default();
        assert_eq!(tally.bound(1000, 10, false), Some(10));
        assert_eq!(tally.bound(1500, 20, true), Some(510));
        // Somebody else did something: only what was seen counts, and what counted before stays.
        assert_eq!(tally.bound(9000, 25, false), Some(515));
        assert_eq!(tally.bound(9100, 25, true), Some(615));
        // What is given back is given back.
        assert_eq!(tally.bound(8500, 25, true), Some(25));
        assert_eq!(tally.bound(8600, 25, true), Some(115));
    }

    #[test]
    fn what_is_seen_is_the_least() {
        let mut tally = Tally::default();
        assert_eq!(tally.bound(-5, 10, false), Some(10));
        assert_eq!(tally.bound(-500, 40, true), Some(40));
        assert_eq!(tally.bound(-490, 40, true), Some(40));
        assert_eq!(tally.bound(-440, 40, true), Some(60));
    }

    #[test]
    fn page_that_was_seen_twice_does_not_stay() {
        let mut tally = Tally::default();
        assert_eq!(tally.bound(100, 100, false), Some(100));
        assert_eq!(tally.bound(101, 200, false), Some(200), "after a fork");
        assert_eq!(tally.bound(101, 100, false), Some(100));
        assert_eq!(tally.bound(102, 200, true), Some(200), "again");
        assert_eq!(tally.bound(102, 100, true), Some(100));
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

    #[test]
    fn others_are_idle_until_one_does_something() {
        use std::process::{Command, Stdio};
        let mut child = Command::new("sh")
            .args(["-c", "read x; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo; read x"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let list = nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let mut procs = File::from(list.expect("a memfd"));
        let own = std::process::id();
        std::io::Write::write_all(&mut procs, format!("{}\n{own}\n", child.id()).as_bytes()).expect("write");
        let mut others = Others { procs, known: vec![Pid::this()], before: None };
        let mut procfs = Procfs::open().expect("/proc");
        let mut look = || others.look(&mut procfs, Pid::from_raw(1), &Look::default());
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!((look().idle, look().idle), (false, true), "it waits");
        assert!(look().memory > 0, "our own");
        let mut stdin = child.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut stdin, b"\n").expect("it reads");
        let mut done = [0];
        let stdout = child.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(stdout, &mut done).expect("it is done");
        assert!(!look().idle, "it used time");
        drop(stdin);
        child.wait().expect("it ends");
        assert!(!look().idle, "it is gone");
    }
}
