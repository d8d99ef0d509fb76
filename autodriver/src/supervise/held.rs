//! Files without a name that the job keeps by holding them open: memfds, and what it unlinked.
//! They are in no directory and, as long as they are not mapped, in no process's memory.
//!
//! What escapes, and is left to [`super::enclosing`]: files of a process that is not dumpable, files on the way through a socket (unix(7), SCM_RIGHTS), files that are only
//! mapped and no longer open, and those of a thread with a descriptor table of its own.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstatat;
use nix::sys::statfs::{statfs, HUGETLBFS_MAGIC, TMPFS_MAGIC};
use nix::unistd::Pid;

use super::disk::BLOCK;
use crate::procfs::Procfs;

/// What such files take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of memfds and of files on a tmpfs: memory.
    pub memory: u64,
    /// Bytes of files on disk.
    pub disk: u64,
    /// Files on either, memfds not included: they take no place of a file system that others use.
    pub inodes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    bytes: u64,
    memory: bool,
    memfd: bool,
}

/// What a process costs by itself, in descriptors.
const PROCESS: usize = 8;

/// Device and inode.
pub(super) type Id = (libc::dev_t, libc::ino_t);

/// Looks for them. A job may have many descriptors, so that one look does not have to see them
/// all: it goes on where the last one ended, and a round is over when every process was seen.
#[derive(Debug, Default)]
pub struct Holdings {
    /// Of this round.
    round: HashMap<Id, Kept>,
    /// The last process seen in this round.
    after: Option<Pid>,
    /// Of the round before.
    whole: Held,
    before: HashMap<Id, Kept>,
    /// Whether a file system is memory.
    memories: Vec<(libc::dev_t, bool)>,
}

/// Where one process's descriptors are to be seen.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// The process.
    pub pid: Pid,
    /// The thread that shows them; the same number, unless the first has ended.
    pub thread: Pid,
}

impl Holdings {
    /// Looks at the descriptors of `holders`, which are in ascending order, until the cost
    /// of about `budget` of them is reached. A process that refuses is passed over. Needs the job's ids for file
    /// accesses: [`crate::sys::process::as_file_user`].
    ///
    /// # Errors
    /// None of them is due to a process.
    pub fn scan(&mut self, procfs: &mut Procfs, holders: &[Holder], budget: usize) -> Result<Held, Errno> {
        let mut left = budget;
        let mut ended = true;
        let first = self.after.map_or(0, |after| holders.partition_point(|holder| holder.pid <= after));
        for holder in holders.iter().skip(first) {
            if left == 0 {
                ended = false;
                break;
            }
            left = left.saturating_sub(self.process(procfs, *holder)? + PROCESS);
            self.after = Some(holder.pid);
        }
        let now = sum(&self.round);
        if !ended {
            // What this round has seen so far is a lower bound, and so was the whole of the last.
            return Ok(if now.memory + now.disk > self.whole.memory + self.whole.disk {
                now
            } else {
                self.whole
            });
        }
        self.whole = now;
        self.after = None;
        self.before = std::mem::take(&mut self.round);
        Ok(now)
    }

    /// Whether a file was among those whose bytes are memory.
    pub(super) fn counts_as_memory(&self, id: Id) -> bool {
        self.round.get(&id).or_else(|| self.before.get(&id)).is_some_and(|kept| kept.memory)
    }

    /// Returns how many descriptors it has.
    fn process(&mut self, procfs: &mut Procfs, holder: Holder) -> Result<usize, Errno> {
        let Holder { pid, thread } = holder;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let opened = match pid == thread {
            true => procfs.open_file(format_args!("{pid}/fd"), flags),
            false => procfs.open_file(format_args!("{pid}/task/{thread}/fd"), flags),
        };
        let mut directory = match opened.and_then(Dir::from_fd) {
            Ok(directory) => directory,
            Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => return Err(errno),
            Err(_) => return Ok(0),
        };
        // fstatat(2) needs it while the iteration borrows the other.
        let Ok(lookup) = directory.as_fd().try_clone_to_owned() else { return Ok(0) };
        let mut count = 0;
        for entry in directory.iter().flatten() {
            if entry.file_name().to_bytes().first() != Some(&b'.') {
                count += 1;
                self.descriptor(lookup.as_fd(), entry.file_name(), holder);
            }
        }
        Ok(count)
    }

    fn descriptor(&mut self, directory: BorrowedFd<'_>, name: &CStr, holder: Holder) {
        // Follows the link, which is none: it leads to the open file, whatever its name.
        let Ok(stat) = fstatat(directory, name, AtFlags::empty()) else { return };
        if stat.st_nlink != 0 {
            return;
        }
        let id = (stat.st_dev, stat.st_ino);
        if self.round.contains_key(&id) {
            return;
        }
        let memfd = || {
            let link = nix::fcntl::readlinkat(directory, name).unwrap_or_default();
            link.as_encoded_bytes().starts_with(b"/memfd:")
        };
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK);
        let memory = self.is_memory(stat.st_dev, name, holder);
        self.round.insert(id, Kept { bytes, memory, memfd: memory && memfd() });
    }

    fn is_memory(&mut self, device: libc::dev_t, name: &CStr, holder: Holder) -> bool {
        if let Some((_, memory)) = self.memories.iter().find(|(known, _)| *known == device) {
            return *memory;
        }
        let Holder { pid, thread } = holder;
        let path = format!("/proc/{pid}/task/{thread}/fd/{}", name.to_string_lossy());
        let Ok(stat) = statfs(path.as_str()) else { return false };
        let memory = [TMPFS_MAGIC, HUGETLBFS_MAGIC].contains(&stat.filesystem_type());
        self.memories.push((device, memory));
        memory
    }
}

fn sum(round: &HashMap<Id, Kept>) -> Held {
    let mut held = Held::default();
    for kept in round.values() {
        match kept.memory {
            true => held.memory += kept.bytes,
            false => held.disk += kept.bytes,
        }
        held.inodes += u64::from(!kept.memfd);
    }
    held
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    fn own() -> [Holder; 1] {
        [Holder { pid: Pid::this(), thread: Pid::this() }]
    }

    fn scan(holdings: &mut Holdings) -> Held {
        let mut procfs = Procfs::open().expect("/proc");
        holdings.scan(&mut procfs, &own(), usize::MAX).expect("it scans")
    }

    #[test]
    fn memfd_is_memory_and_counts_once() {
        let memfd = nix::sys::memfd::memfd_create(c"x", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        let mut memfd = File::from(memfd.expect("a memfd"));
        let before = scan(&mut Holdings::default());
        memfd.write_all(&vec![1; 3 << 20]).expect("write");
        let _again = memfd.try_clone().expect("dup");
        let after = scan(&mut Holdings::default());
        // Other tests open and close files meanwhile, small ones.
        let grown = after.memory - before.memory;
        assert!((3 << 20..4 << 20).contains(&grown), "{before:?} {after:?}");
    }

    #[test]
    fn unlinked_file_counts_and_a_named_one_does_not() {
        let path = std::env::temp_dir().join(format!("autodriver-held-{}", std::process::id()));
        let mut file = File::create(&path).expect("create");
        file.write_all(&vec![1; 5 << 20]).expect("write");
        let sum = |held: Held| held.memory + held.disk;
        let before = sum(scan(&mut Holdings::default()));
        std::fs::remove_file(&path).expect("unlink");
        let after = sum(scan(&mut Holdings::default()));
        assert!(after >= before + (5 << 20) - (4 << 20), "{before} {after}");
    }

    #[test]
    fn round_goes_on_where_the_last_look_ended() {
        let mut procfs = Procfs::open().expect("/proc");
        let mut holdings = Holdings::default();
        let parent = Holder { pid: Pid::from_raw(1), thread: Pid::from_raw(1) };
        let holders = [parent, own()[0]];
        holdings.scan(&mut procfs, &holders, 1).expect("it scans");
        assert_eq!(holdings.after, Some(Pid::from_raw(1)));
        holdings.scan(&mut procfs, &holders, usize::MAX).expect("it scans");
        assert_eq!(holdings.after, None);
    }
}
