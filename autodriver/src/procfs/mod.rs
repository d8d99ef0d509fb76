//! Processes as /proc shows them: proc_pid_stat(5), proc_pid_status(5). Nothing here knows what a
//! job is.
//!
//! Only files are read that the kernel answers from its own tables. Never cmdline, environ or the
//! links: those read the process's memory or need its permission, and a process can make them
//! block (CVE-2018-1120).

pub mod descent;

use std::fmt::{Arguments, Write};
use std::ops::{Add, AddAssign};
use std::os::fd::{AsFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{openat, readlinkat, AtFlags, OFlag, AT_FDCWD};
use nix::sys::stat::{fstatat, Mode};
use nix::unistd::{read, Pid};

/// Time on processors, in clock ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// In the program.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

impl Cpu {
    /// Both.
    pub fn sum(self) -> u64 {
        self.user.saturating_add(self.system)
    }
}

impl Add for Cpu {
    type Output = Cpu;

    fn add(self, other: Cpu) -> Cpu {
        let add = u64::saturating_add;
        Cpu { user: add(self.user, other.user), system: add(self.system, other.system) }
    }
}

impl AddAssign for Cpu {
    fn add_assign(&mut self, other: Cpu) {
        *self = *self + other;
    }
}

/// One process. Its number and the time of its start together name it for ever: the number alone
/// may come to name another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Number in the PID namespace of the reader's /proc.
    pub pid: Pid,
    /// Who gets to know of its death.
    pub parent: Pid,
    /// The letter of proc_pid_stat(5); of its first thread only.
    pub state: u8,
    /// It is the kernel's own, and nobody's job.
    pub kernel: bool,
    /// Threads, the first one included even when it has ended.
    pub threads: u64,
    /// Clock ticks after the machine's start.
    pub start_time: u64,
    /// All its threads, ended ones included.
    pub own: Cpu,
    /// The children it has waited for, and those that they had waited for.
    pub waited: Cpu,
}

impl Process {
    /// Whether it can still do something. A first thread that has ended while others go on shows
    /// itself as a zombie too; only their number tells the difference.
    pub fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X') || self.is_headless()
    }

    /// Whether its first thread has ended and others go on: then only they show its memory and
    /// its descriptors.
    pub fn is_headless(&self) -> bool {
        matches!(self.state, b'Z' | b'X') && self.threads > 1
    }

    /// Whether two looks saw the same process.
    pub fn is(&self, other: &Process) -> bool {
        self.pid == other.pid && self.start_time == other.start_time
    }
}

/// What is in /proc/PID/status.
#[derive(Clone, Copy, Debug)]
pub struct Status<'a>(&'a [u8]);

impl<'a> Status<'a> {
    /// Of any file of such lines.
    pub fn of(text: &'a [u8]) -> Status<'a> {
        Status(text)
    }

    /// The text after `key`, which includes the colon.
    pub fn field(&self, key: &str) -> Option<&'a [u8]> {
        let mut lines = self.0.split(|byte| *byte == b'\n');
        lines.find_map(|line| line.strip_prefix(key.as_bytes())).map(<[u8]>::trim_ascii)
    }

    /// A field of kilobytes, in bytes; 0 where the process has no memory any more.
    pub fn bytes(&self, key: &str) -> u64 {
        let kilobytes = self.field(key).and_then(|field| number(field.split(|byte| *byte == b' ').next()));
        kilobytes.unwrap_or(0).saturating_mul(1024)
    }

    /// Real, effective, saved and file system uid.
    pub fn uids(&self) -> Option<[u32; 4]> {
        let mut ids = self.field("Uid:")?.split(|byte| *byte == b'\t').map(|id| number(Some(id)));
        let mut next = || u32::try_from(ids.next()??).ok();
        Some([next()?, next()?, next()?, next()?])
    }

    /// As [`Process::lives`].
    pub fn lives(&self) -> bool {
        let zombie = self.field("State:").is_some_and(|state| matches!(state.first(), Some(b'Z' | b'X')));
        let threads = number(self.field("Threads:")).unwrap_or(0);
        !zombie || threads > 1
    }
}

/// Of a process's flags, in include/linux/sched.h.
const PF_KTHREAD: u64 = 0x0020_0000;

fn number(text: Option<&[u8]>) -> Option<u64> {
    text.filter(|text| !text.is_empty())?.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// A line of proc_pid_stat(5). The name may be anything, parentheses, blanks and newlines
/// included: what counts begins after the last parenthesis.
fn parse_stat(pid: Pid, text: &[u8]) -> Option<Process> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let mut fields = text.get(end + 2..)?.trim_ascii_end().split(|byte| *byte == b' ');
    let state = *fields.next()?.first()?;
    let parent = Pid::from_raw(i32::try_from(number(fields.next())?).ok()?);
    // After pgrp, session, tty_nr and tpgid, which may be negative.
    let kernel = number(fields.nth(4))? & PF_KTHREAD != 0;
    // After four counts of page faults.
    let mut fields = fields.skip(4);
    let mut next = || number(fields.next());
    let own = Cpu { user: next()?, system: next()? };
    let waited = Cpu { user: next()?, system: next()? };
    // priority and nice, which may be negative.
    let mut fields = fields.skip(2);
    let threads = number(fields.next())?;
    let start_time = number(fields.nth(1))?;
    Some(Process { pid, parent, state, kernel, threads, start_time, own, waited })
}

/// A process that ended between two looks is no error.
fn ended(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ESRCH)
}

/// The machine's /proc, with the buffers that reading it takes.
#[derive(Debug)]
pub struct Procfs {
    directory: OwnedFd,
    path: String,
    text: Vec<u8>,
}

/// More than any stat, and than the part of any status that is looked at.
const TEXT: usize = 8192;

impl Procfs {
    /// Opens it.
    ///
    /// # Errors
    /// Those of open(2) and readlink(2); ESRCH if what is mounted there does not show us: it would not show
    /// the job's processes either.
    pub fn open() -> Result<Procfs, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(AT_FDCWD, "/proc", flags, Mode::empty())?;
        let us = readlinkat(directory.as_fd(), "self")?;
        if us.to_str() != Some(&nix::unistd::getpid().to_string()) {
            return Err(Errno::ESRCH);
        }
        Ok(Procfs { directory, path: String::new(), text: vec![0; TEXT] })
    }

    /// Opens something below it.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_file(&mut self, path: Arguments<'_>, flags: OFlag) -> Result<OwnedFd, Errno> {
        self.path.clear();
        self.path.write_fmt(path).map_err(|_| Errno::EINVAL)?;
        openat(self.directory.as_fd(), self.path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// The beginning of a file, as the kernel gives it in one piece; `None` if the process ended.
    ///
    /// # Errors
    /// Those of open(2) and read(2).
    pub fn read(&mut self, path: Arguments<'_>) -> Result<Option<&[u8]>, Errno> {
        let opened = self.open_file(path, OFlag::O_RDONLY);
        match opened.and_then(|file| read(file, &mut self.text)) {
            Ok(length) => Ok(self.text.get(..length)),
            Err(errno) if ended(errno) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// One process.
    ///
    /// # Errors
    /// As [`Procfs::read`].
    pub fn process(&mut self, pid: Pid) -> Result<Option<Process>, Errno> {
        let text = self.read(format_args!("{pid}/stat"))?;
        Ok(text.and_then(|text| parse_stat(pid, text)))
    }

    /// This process and those it descends from, as far as they are seen, and the first one of a container.
    pub fn lineage(&mut self) -> Vec<Pid> {
        let mut lineage = vec![Pid::this(), Pid::from_raw(1)];
        let mut next = Pid::parent();
        while next.as_raw() > 1 && !lineage.contains(&next) {
            lineage.push(next);
            next = self.process(next).ok().flatten().map_or(Pid::from_raw(0), |process| process.parent);
        }
        lineage
    }

    /// Its status.
    ///
    /// # Errors
    /// As [`Procfs::read`].
    pub fn status(&mut self, pid: Pid) -> Result<Option<Status<'_>>, Errno> {
        Ok(self.read(format_args!("{pid}/status"))?.map(Status))
    }

    /// The owner of its directory: its effective uid, or root when it is not dumpable.
    pub fn owner(&mut self, pid: Pid) -> Option<u32> {
        self.path.clear();
        write!(self.path, "{pid}").ok()?;
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Some(fstatat(self.directory.as_fd(), self.path.as_str(), flags).ok()?.st_uid)
    }

    /// One of its threads other than the first that goes on: once the first has ended, only they
    /// show the process's memory and descriptors. A job could hide both by that.
    ///
    /// # Errors
    /// As [`Procfs::read`].
    pub fn thread(&mut self, pid: Pid) -> Result<Option<Pid>, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut directory = match self.open_file(format_args!("{pid}/task"), flags) {
            Ok(directory) => Dir::from_fd(directory)?,
            Err(errno) if ended(errno) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let threads = directory.iter().flatten().filter_map(|entry| pid_of(entry.file_name().to_bytes()));
        for thread in threads.filter(|thread| *thread != pid) {
            let text = self.read(format_args!("{pid}/task/{thread}/status"))?;
            if text.is_some_and(|text| Status(text).lives()) {
                return Ok(Some(thread));
            }
        }
        Ok(None)
    }

    /// The status of one thread.
    ///
    /// # Errors
    /// As [`Procfs::read`].
    pub fn thread_status(&mut self, pid: Pid, thread: Pid) -> Result<Option<Status<'_>>, Errno> {
        Ok(self.read(format_args!("{pid}/task/{thread}/status"))?.map(Status))
    }

    /// The number of every process, in ascending order, which is the kernel's.
    ///
    /// # Errors
    /// Those of reading the directory.
    pub fn pids(&self, into: &mut Vec<Pid>) -> Result<(), Errno> {
        into.clear();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory = Dir::openat(self.directory.as_fd(), ".", flags, Mode::empty())?;
        for entry in directory.iter() {
            into.extend(pid_of(entry?.file_name().to_bytes()));
        }
        into.sort_unstable();
        Ok(())
    }
}

fn pid_of(name: &[u8]) -> Option<Pid> {
    Some(Pid::from_raw(i32::try_from(number(Some(name))?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Process> {
        parse_stat(Pid::from_raw(7), text.as_bytes())
    }

    const REST: &str = "5 7 7 0 -1 4194560 9 8 7 6 11 12 13 14 20 -5 3 0 777 1000 20 18446744073709551615\n";

    #[test]
    fn name_of_a_process_may_be_anything() {
        for name in ["sh", "a) Z 1 (\n 1", ")", "", "a b c d e f"] {
            let process = parse(&format!("7 ({name}) S {REST}")).expect("it parses");
            assert_eq!((process.parent, process.state, process.threads), (Pid::from_raw(5), b'S', 3));
            assert_eq!(process.own, Cpu { user: 11, system: 12 });
            assert_eq!(process.waited, Cpu { user: 13, system: 14 });
            assert_eq!(process.start_time, 777);
        }
    }

    #[test]
    fn what_is_no_stat_is_refused() {
        for text in ["", ")", "7 (sh", "7 (sh) S", "7 (sh) S 5 x", "7 (sh) S -5 7 7"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn process_whose_first_thread_ended_lives() {
        let process = |state: &str| parse(&format!("7 (sh) {state} {REST}")).expect("it parses");
        assert!(process("Z").is_headless() && process("Z").lives() && process("S").lives());
        let alone = Process { threads: 1, ..process("Z") };
        assert!(!alone.lives() && !alone.is_headless());
    }

    #[test]
    fn status_is_read() {
        let text = b"Name:\tx\nState:\tZ (zombie)\nUid:\t1\t2\t3\t4\nVmSwap:\t      12 kB\nThreads:\t1\n";
        let status = Status(text);
        assert_eq!(status.uids(), Some([1, 2, 3, 4]));
        assert_eq!(status.bytes("VmSwap:"), 12 * 1024);
        assert_eq!(status.bytes("RssAnon:"), 0);
        assert!(!status.lives());
    }

    #[test]
    fn own_process_is_found() {
        let mut procfs = Procfs::open().expect("/proc");
        let mut pids = Vec::new();
        procfs.pids(&mut pids).expect("it lists");
        assert!(pids.contains(&Pid::this()));
        let own = procfs.process(Pid::this()).expect("it reads").expect("it exists");
        assert_eq!(own.parent, Pid::parent());
        assert!(own.lives() && own.start_time > 0);
        let uids = procfs.status(Pid::this()).expect("it reads").and_then(|status| status.uids());
        assert_eq!(uids.map(|uids| uids[0]), Some(nix::unistd::getuid().as_raw()));
    }
}
