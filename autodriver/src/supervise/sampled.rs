//! What the job uses, where no cgroup counts it. Lower bounds for time ([`super::cpu_time`]) and
//! names of files ([`super::held`]); for memory an upper bound that is made exact before anybody
//! is killed for it. What hides from all that is seen in the account of the cgroup that the driver is
//! in, where there is one ([`super::enclosing`]): a lower bound again.

use std::io::Read;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::makedev;
use nix::unistd::Pid;

use super::cpu_time::{tick_us, Ledger};
use super::enclosing::{Enclosing, Seen};
use super::held::{Held, Holder, Holdings};
use super::tree::{Look, Member, Tree};
use crate::procfs::{Procfs, Status};
use crate::sys::process::as_file_user;

/// Descriptors looked at in one sample: about one millisecond. Fifty processes with three each are
/// seen by every sample, three hundred by every sixth.
const DESCRIPTORS: usize = 600;
/// Bytes of smaps read in one sample, to find what would count twice. What a job has beyond that
/// many mappings counts twice indeed.
const MAPPINGS: u64 = 4 << 20;

/// What was in use at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Processes, zombies included: they take a place of the table.
    pub processes: u64,
    /// Threads of them all.
    pub threads: u64,
    /// Time in the programs so far.
    pub cpu_user_us: u64,
    /// Time in the kernel so far.
    pub cpu_system_us: u64,
    /// Bytes of memory, swapped ones and files without a name in memory included.
    pub memory: u64,
    /// Whether memory that several processes share was counted once.
    pub memory_exact: bool,
    /// Bytes on disk of files without a name.
    pub unlinked_bytes: u64,
    /// Files without a name.
    pub unlinked_inodes: u64,
}

impl Sample {
    /// Both kinds of time.
    pub fn cpu_us(&self) -> u64 {
        self.cpu_user_us.saturating_add(self.cpu_system_us)
    }
}

/// The highest of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peaks {
    /// Threads at once.
    pub threads: u64,
    /// Bytes of memory; of a sample that was not exact if none above it was.
    pub memory: u64,
}

/// One process's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    anonymous: u64,
    shared: u64,
    swapped: u64,
}

impl Memory {
    pub(super) fn sum(self) -> u64 {
        self.anonymous.saturating_add(self.shared).saturating_add(self.swapped)
    }

    pub(super) fn of(status: &Status<'_>) -> Memory {
        Memory {
            anonymous: status.bytes("RssAnon:"),
            shared: status.bytes("RssShmem:"),
            swapped: status.bytes("VmSwap:"),
        }
    }
}

/// Takes the samples.
#[derive(Debug)]
pub struct Sampler {
    tree: Tree,
    /// Whose ids show the processes' memory and descriptors; `None` if the driver's own do.
    eyes: Option<u32>,
    ledger: Ledger,
    holdings: Holdings,
    enclosing: Enclosing,
    peaks: Peaks,
}

impl Sampler {
    /// `eyes` is the job's uid and gid where it has others than the driver.
    pub fn new(tree: Tree, eyes: Option<u32>, enclosing: Enclosing) -> Sampler {
        Sampler {
            tree,
            eyes,
            ledger: Ledger::default(),
            holdings: Holdings::default(),
            enclosing,
            peaks: Peaks::default(),
        }
    }

    /// The job starts now: nothing of it was there before.
    pub fn start(&mut self) {
        self.enclosing.observe(self.tree.procfs(), &Look::default(), Seen::default());
    }

    /// The highest figures of all samples.
    pub fn peaks(&self) -> Peaks {
        self.peaks
    }

    /// Who belongs to the job.
    pub fn tree(&mut self) -> &mut Tree {
        &mut self.tree
    }

    /// What is in use now. Memory is counted exactly if the upper bound is above `threshold`,
    /// which costs a walk of page tables in the kernel. `stored` is what of the storage is memory, in
    /// bytes.
    ///
    /// # Errors
    /// If /proc cannot be read: nothing is known then.
    pub fn sample(&mut self, threshold: u64, stored: u64) -> Result<Sample, Errno> {
        let look = self.tree.look()?;
        let procfs = self.tree.procfs();
        let cpu = self.ledger.record(&look, |pid| procfs.process(pid).ok().flatten());
        let mut sample = Sample {
            processes: u64::try_from(look.members.len()).unwrap_or(u64::MAX),
            threads: look.members.iter().map(|member| member.threads.max(1)).sum(),
            cpu_user_us: cpu.user.saturating_mul(tick_us()),
            cpu_system_us: cpu.system.saturating_mul(tick_us()),
            ..Sample::default()
        };
        self.memory(&look, threshold, &mut sample)?;
        let seen = Seen { memory: sample.memory, cpu_us: sample.cpu_us(), stored };
        let bounds = self.enclosing.observe(self.tree.procfs(), &look, seen);
        sample.memory = bounds.memory.unwrap_or(sample.memory);
        // Which kind of time it was is not known.
        let unseen = bounds.cpu_us.map_or(0, |bound| bound - sample.cpu_us());
        sample.cpu_user_us = sample.cpu_user_us.saturating_add(unseen);
        self.peaks.threads = self.peaks.threads.max(sample.threads);
        self.peaks.memory = self.peaks.memory.max(sample.memory);
        Ok(sample)
    }

    fn memory(&mut self, look: &Look, threshold: u64, sample: &mut Sample) -> Result<(), Errno> {
        let procfs = self.tree.procfs();
        let mut holders = Vec::with_capacity(look.members.len());
        let mut memories = Vec::with_capacity(look.members.len());
        for member in &look.members {
            let holder = holder(procfs, member)?;
            memories.push(cheap(procfs, holder)?);
            holders.push(holder);
        }
        let cheap_sum = sum(&look.members, &memories);
        let holdings = &mut self.holdings;
        let mut seen = || {
            let held = holdings.scan(procfs, &holders, DESCRIPTORS)?;
            let bound = cheap_sum.saturating_add(held.memory);
            if bound <= threshold {
                return Ok((held, bound, false));
            }
            Ok((held, exact(procfs, holdings, &look.members, &holders, &mut memories, held)?, true))
        };
        let (held, memory, exact) = match self.eyes {
            Some(uid) => as_file_user(uid, uid, seen)??,
            None => seen()?,
        };
        sample.memory = memory;
        sample.memory_exact = exact;
        sample.unlinked_bytes = held.disk;
        sample.unlinked_inodes = held.inodes;
        Ok(())
    }
}

/// Which thread shows what the process has.
fn holder(procfs: &mut Procfs, member: &Member) -> Result<Holder, Errno> {
    let other = if member.is_headless() { procfs.thread(member.pid)? } else { None };
    Ok(Holder { pid: member.pid, thread: other.unwrap_or(member.pid) })
}

/// Pages that several processes share count for each of them.
fn cheap(procfs: &mut Procfs, holder: Holder) -> Result<Memory, Errno> {
    let status = match holder.thread == holder.pid {
        true => procfs.status(holder.pid)?,
        false => procfs.thread_status(holder.pid, holder.thread)?,
    };
    Ok(status.map(|status| Memory::of(&status)).unwrap_or_default())
}

/// Adds them up. A process that used vfork(2) waits, and its child has not memory like it but the
/// very same, in all figures; a JVM that starts a program must not count twice. One such child for
/// each process that waits (state D) is left out: vfork makes no more.
fn sum(members: &[Member], memories: &[Memory]) -> u64 {
    let pairs = || members.iter().zip(memories);
    let mut total: u64 = memories.iter().fold(0, |sum, memory| sum.saturating_add(memory.sum()));
    for (waiting, memory) in pairs().filter(|(member, _)| member.state == b'D') {
        // They are not read at the same moment.
        let alike = |other: &Memory| memory.sum().abs_diff(other.sum()) <= memory.sum() / 16;
        let same = pairs().find(|(child, other)| child.parent == waiting.pid && alike(other));
        total = total.saturating_sub(same.map_or(0, |(_, other)| other.sum()));
    }
    total
}

/// Every page counts once, divided among those who share it (Pss). A process that refuses, because
/// it is not dumpable, keeps its upper bound.
fn exact(
    procfs: &mut Procfs,
    holdings: &Holdings,
    members: &[Member],
    holders: &[Holder],
    memories: &mut [Memory],
    held: Held,
) -> Result<u64, Errno> {
    let mut mapped = 0_u64;
    let mut budget = MAPPINGS;
    for (memory, Holder { pid, thread }) in memories.iter_mut().zip(holders) {
        match procfs.read(format_args!("{pid}/task/{thread}/smaps_rollup")) {
            Ok(Some(text)) => {
                let rollup = Status::of(text);
                *memory = Memory {
                    anonymous: rollup.bytes("Pss_Anon:"),
                    shared: rollup.bytes("Pss_Shmem:"),
                    swapped: rollup.bytes("SwapPss:"),
                };
            }
            // Ended, a zombie, or not dumpable.
            Ok(None) | Err(Errno::EACCES | Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
        if held.memory > 0 && memory.shared > 0 && budget > 0 {
            mapped = mapped.saturating_add(mapped_of(procfs, holdings, *pid, *thread, &mut budget));
        }
    }
    let shared = memories.iter().fold(0_u64, |sum, memory| sum.saturating_add(memory.shared));
    Ok(sum(members, memories).saturating_sub(mapped.min(shared)).saturating_add(held.memory))
}

/// How much of a process's memory is in mappings of files that count as held already.
fn mapped_of(procfs: &mut Procfs, holdings: &Holdings, pid: Pid, thread: Pid, budget: &mut u64) -> u64 {
    let opened = procfs.open_file(format_args!("{pid}/task/{thread}/smaps"), OFlag::O_RDONLY);
    let Ok(file) = opened else { return 0 };
    let mut text = Vec::new();
    if std::fs::File::from(file).take(*budget).read_to_end(&mut text).is_err() {
        return 0;
    }
    *budget = budget.saturating_sub(u64::try_from(text.len()).unwrap_or(u64::MAX));
    let mut mapped = 0_u64;
    for mapping in mappings(&text) {
        if holdings.counts_as_memory((mapping.device, mapping.inode)) {
            mapped = mapped.saturating_add(mapping.shared);
        }
    }
    mapped
}

/// One mapping of proc_pid_smaps(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    device: libc::dev_t,
    inode: libc::ino_t,
    /// Its share of the file's pages; those that it has a copy of its own of are not among them.
    shared: u64,
}

fn mappings(text: &[u8]) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        // A name at the end of the line may be anything but a newline.
        let line = String::from_utf8_lossy(line.get(..line.len().min(128)).unwrap_or_default());
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        match (first.strip_suffix(':'), found.last_mut()) {
            (Some(key @ ("Pss" | "Anonymous")), Some(mapping)) => {
                let kilobytes = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
                let bytes = kilobytes.saturating_mul(1024);
                match key {
                    "Pss" => mapping.shared = bytes,
                    _ => mapping.shared = mapping.shared.saturating_sub(bytes),
                }
            }
            (None, _) if first.contains('-') => {
                let device = words.nth(2).and_then(|word| word.split_once(':'));
                let hex = |word| u64::from_str_radix(word, 16).unwrap_or(0);
                let device = device.map_or(0, |(major, minor)| makedev(hex(major), hex(minor)));
                let inode = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                found.push(Mapping { device, inode, shared: 0 });
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::procfs::Cpu;

    /// No account.
    fn none() -> Enclosing {
        let mut procfs = Procfs::open().expect("/proc");
        Enclosing::open(&crate::facts::Enclosing::default(), &mut procfs, Pid::from_raw(1), 0, 1)
    }

    fn member(pid: i32, parent: i32, state: u8) -> Member {
        Member {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            state,
            kernel: false,
            threads: 1,
            start_time: 1,
            own: Cpu::default(),
            waited: Cpu::default(),
        }
    }

    fn memory(anonymous: u64) -> Memory {
        Memory { anonymous, ..Memory::default() }
    }

    #[test]
    fn vfork_child_counts_once_and_a_copy_twice() {
        let memories = [memory(1600), memory(1600), memory(1600)];
        let forked = [member(2, 1, b'S'), member(3, 2, b'R'), member(4, 2, b'R')];
        assert_eq!(sum(&forked, &memories), 4800);
        let waiting = [member(2, 1, b'D'), member(3, 2, b'R'), member(4, 2, b'R')];
        assert_eq!(sum(&waiting, &memories), 3200, "only one child can be the one");
        assert_eq!(sum(&waiting, &[memory(1600), memory(100), memory(200)]), 1900);
    }

    #[test]
    fn mappings_are_read() {
        let text = b"7f00-7f10 rw-s 00000000 00:01 4242                   /memfd:a-b (deleted)\n\
            Size:    64 kB\nPss:        60 kB\nPss_Dirty:  60 kB\nAnonymous:      4 kB\nVmFlags: rd\n\
            7f20-7f30 rw-p 00000000 00:00 0 \nPss: 8 kB\nAnonymous: 8 kB\n";
        let expected = [
            Mapping { device: makedev(0, 1), inode: 4242, shared: 56 << 10 },
            Mapping { device: 0, inode: 0, shared: 0 },
        ];
        assert_eq!(mappings(text), expected);
    }

    /// Waits for its standard input to end, which the end of the test brings about.
    struct Python(Child);

    impl Python {
        /// The script says itself that it is ready, by writing something.
        fn start(script: &str) -> Python {
            Python::start_by(Command::new("python3"), script)
        }

        fn start_by(mut command: Command, script: &str) -> Python {
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("python3 starts");
            let mut ready = [0];
            child.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("it is ready");
            Python(child)
        }

        fn sample(&self, threshold: u64) -> Sample {
            self.sample_as(None, threshold)
        }

        /// Of this process and its children only: the tests have others.
        fn sample_as(&self, eyes: Option<u32>, threshold: u64) -> Sample {
            let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
            let mut sampler = Sampler::new(Tree::new(Pid::this(), None).expect("/proc"), eyes, none());
            let look = sampler.tree.look().expect("it looks");
            let ours = |member: &&Member| member.pid == pid || member.parent == pid;
            let members: Vec<Member> = look.members.iter().filter(ours).copied().collect();
            let mut sample = Sample::default();
            sampler.memory(&Look { init: None, members }, threshold, &mut sample).expect("it reads");
            sample
        }
    }

    impl Drop for Python {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    const MEGABYTE: u64 = 1 << 20;

    #[test]
    fn pages_shared_after_a_fork_count_once_when_it_matters() {
        let python = Python::start(
            "import os, sys, time\nx = bytearray(b'1' * (64 << 20))\n\
             for i in range(3):\n if not os.fork():\n  sys.stdin.read(); os._exit(0)\n\
             time.sleep(0.2); print('x', flush=True); sys.stdin.read()",
        );
        let cheap = python.sample(u64::MAX);
        assert!(!cheap.memory_exact && cheap.memory > 4 * 64 * MEGABYTE, "{cheap:?}");
        let exact = python.sample(200 * MEGABYTE);
        assert!(exact.memory_exact && (64..120).contains(&(exact.memory / MEGABYTE)), "{exact:?}");
    }

    #[test]
    fn memfd_counts_once_whether_it_is_mapped_or_not() {
        for map in ["", "m = mmap.mmap(f, 32 << 20); s = sum(m[::4096])"] {
            let sample = Python::start(&format!(
                "import os, sys, mmap\nf = os.memfd_create('m')\nos.write(f, b'1' * (32 << 20))\n{map}\n\
                 print('x', flush=True); sys.stdin.read()"
            ))
            .sample(0);
            assert!(sample.memory_exact && (32..60).contains(&(sample.memory / MEGABYTE)), "{sample:?}");
            assert_eq!(sample.unlinked_inodes, 0);
        }
    }

    #[test]
    fn process_without_its_first_thread_hides_nothing() {
        let script = format!(
            "import os, time, threading, ctypes\nx = bytearray(b'1' * (64 << 20))\n\
             f = os.memfd_create('m')\nos.write(f, b'1' * (32 << 20))\n\
             def rest():\n time.sleep(0.2); print('x', flush=True); os.read(0, 1); os._exit(0)\n\
             threading.Thread(target=rest).start()\nctypes.CDLL(None).syscall({}, 0)",
            libc::SYS_exit
        );
        let python = Python::start(&script);
        let sample = python.sample(0);
        assert!((96..140).contains(&(sample.memory / MEGABYTE)), "{sample:?}");
    }

    #[test]
    fn time_of_children_is_seen_whether_anybody_waits_or_not() {
        for before in ["", "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"] {
            // where they are ignored, wait(2) blocks until all are gone
            let script = format!(
                "import os, signal, sys, time\nif not os.fork():\n {before}\n for i in range(2):\n\
                 \x20 if not os.fork():\n   while time.process_time() < 0.4: pass\n\
                 \x20  os.write(1, b'x'); sys.stdin.read(); os._exit(0)\n\
                 \x20try:\n  while True: os.wait()\n except ChildProcessError: time.sleep(0.2); os._exit(0)\n\
                 os.wait()"
            );
            let mut command = Command::new("python3");
            command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("python3 starts");
            let init = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
            let mut sampler = Sampler::new(Tree::new(init, None).expect("/proc"), None, none());
            child.stdout.take().expect("a pipe").read_exact(&mut [0; 2]).expect("both have done their work");
            let mut last = sampler.sample(u64::MAX, 0).expect("it samples");
            assert!(last.cpu_us() >= 750_000 && sampler.peaks().threads >= 3, "{before} {last:?}");
            drop(child.stdin.take());
            while child.try_wait().expect("it waits").is_none() {
                last = sampler.sample(u64::MAX, 0).expect("it samples");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            assert!((750_000..1_200_000).contains(&last.cpu_us()), "{before} {last:?}");
        }
    }

    #[test]
    fn other_users_process_shows_itself_to_its_users_ids_without_any_capability() {
        use std::os::unix::process::CommandExt;
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it starts a process of another uid");
        const UID: u32 = 59_997;
        let mut command = Command::new("python3");
        command.uid(UID).gid(UID);
        let python = Python::start_by(
            command,
            "import os, sys\nf = os.memfd_create('m')\nos.write(f, b'1' * (32 << 20))\n\
             print('x', flush=True); sys.stdin.read()",
        );
        // Of this thread only.
        for cap in [caps::Capability::CAP_SYS_PTRACE, caps::Capability::CAP_SYS_ADMIN] {
            caps::drop(None, caps::CapSet::Effective, cap).expect("capset");
        }
        assert!(python.sample_as(None, 0).memory < 32 * MEGABYTE, "root alone must not see the memfd");
        let sample = python.sample_as(Some(UID), 0);
        assert!((32..60).contains(&(sample.memory / MEGABYTE)), "{sample:?}");
    }
}
