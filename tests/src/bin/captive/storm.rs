//! A storm of system calls: random numbers with random arguments, by many short-lived processes.
//!
//! Arguments are taken from what kernels have stumbled over: the edges of integers, descriptors that are
//! open and that are not, addresses of nothing, of the kernel and of a page full of structures, paths to
//! /proc and to devices, single bits of flags. What such a process does to itself is its own affair; its
//! parent starts another in its place. That any of them may end the parent as well is part of it.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::{getpid, getppid, Pid};

use crate::answer::{child, leave, number, Answer};
use crate::clock::sleep;

/// How many processes are at it at a time, besides those that they make themselves.
const AT_ONCE: usize = 8;
/// How many calls one makes until another takes its place.
const CALLS: u64 = 3000;
/// How long one may take: some calls wait for something that never comes.
const LIFE: Duration = Duration::from_millis(50);
/// One more than the highest number that is tried; the last of Linux 6.17 is 469.
const NUMBERS: u64 = 480;
/// What marks a call of the x32 ABI.
const X32: u64 = 0x4000_0000;
/// Calls by which one ends all: made less often, so that a storm lasts.
const SIGNALS: [libc::c_long; 6] = [
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
];
/// Bytes of the page that pointers lead to.
const PAGE: usize = 64 << 10;

const PATHS: [&CStr; 20] = [
    c".",
    c"/",
    c"..",
    c"storm",
    c"storm/storm",
    c"/tmp/storm",
    c"/dev/shm/storm",
    c"/dev/null",
    c"/dev/ptmx",
    c"/dev/full",
    c"/proc/self/mem",
    c"/proc/self/exe",
    c"/proc/self/fd/0",
    c"/proc/self/ns/user",
    c"/proc/self/attr/exec",
    c"/proc/1/environ",
    c"/proc/sys/kernel/core_pattern",
    c"/sys/fs/cgroup/cgroup.procs",
    c"/etc/passwd",
    c"",
];

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    match words {
        ["storm", seed, seconds] => Some(storm(number(seed), Duration::from_secs(number(seconds)))),
        _ => None,
    }
}

/// Says how many calls were made, as far as its processes came to count them.
fn storm(seed: u64, time: Duration) -> Answer {
    let count = shared_counter()?;
    let (start, mut random) = (Instant::now(), Random::from(seed));
    let mut at_work: Vec<(Pid, Instant)> = Vec::new();
    while start.elapsed() < time {
        while at_work.len() < AT_ONCE {
            let seed = random.next();
            // Refused when their own children are too many.
            let Ok(pid) = child(|| one_of_many(seed, count)) else { break };
            at_work.push((pid, Instant::now()));
        }
        sleep(2);
        at_work.retain(|(pid, since)| {
            if since.elapsed() > LIFE {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            matches!(waitpid(*pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive))
        });
        // Children of those that have ended are not waited for: that is init's work.
    }
    Ok(format!("{}", count.load(Ordering::Relaxed)))
}

/// A number that all processes see.
fn shared_counter() -> nix::Result<&'static AtomicU64> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: new memory at an address of the kernel's choice.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<AtomicU64>(), protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(nix::errno::Errno::last());
    }
    // SAFETY: the page is there until the process ends, aligned, and zero is a counter.
    Ok(unsafe { &*page.cast::<AtomicU64>() })
}

fn one_of_many(seed: u64, count: &AtomicU64) {
    let mut random = Random::from(seed);
    let mut page = vec![0_u64; PAGE / 8];
    for _ in 0..CALLS {
        page[random.below(PAGE as u64 / 8)] = random.argument(&[]);
        let number = random.number();
        let args: [u64; 6] = std::array::from_fn(|_| random.argument(&page));
        // SAFETY: there is none, and that is the point: this process may be destroyed by it, and nothing
        // but it depends on its memory.
        unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) };
        count.fetch_add(1, Ordering::Relaxed);
    }
    leave(0)
}

/// xorshift64*: the same seed makes the same storm.
struct Random(u64);

impl Random {
    fn from(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, end: u64) -> usize {
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64)]
    }

    fn number(&mut self) -> libc::c_long {
        let number = self.next() % NUMBERS;
        let number = if self.next() % 200 == 0 { number | X32 } else { number };
        let number = libc::c_long::try_from(number).unwrap_or(0);
        if SIGNALS.contains(&number) && self.next() % 64 != 0 {
            return self.number();
        }
        number
    }

    /// Without a page: a value that may lie in a structure.
    fn argument(&mut self, page: &[u64]) -> u64 {
        const EDGES: [u64; 11] = [
            0,
            u64::MAX,
            1 << 31,
            (1 << 31) - 1,
            1 << 32,
            1 << 63,
            4095,
            4096,
            0xffff_8000_0000_0000,
            0x7fff_ffff_f000,
            // AT_FDCWD
            0xffff_ff9c,
        ];
        match self.next() % 16 {
            0..=3 => self.next() % 12,
            4 | 5 => self.one_of(&EDGES),
            6 => 1 << (self.next() % 64),
            7 => 1 << (self.next() % 32) | 1 << (self.next() % 32),
            8 => u64::from(self.one_of(&[getpid(), getppid()]).as_raw().unsigned_abs()),
            9 | 10 => self.one_of(&PATHS).as_ptr() as u64,
            11 => self.next(),
            _ if page.is_empty() => self.next() % 4096,
            _ => page.as_ptr().wrapping_add(self.below(page.len() as u64)) as u64,
        }
    }
}
