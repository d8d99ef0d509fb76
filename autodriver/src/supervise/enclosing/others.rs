//! Who is in a cgroup with the job: whose share is known, and whether there are strangers.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::super::sampled::Memory;
use super::super::tree::Look;
use crate::facts::listed;
use crate::procfs::Procfs;

/// Generations between a process and one that is known.
const GENERATIONS: usize = 64;

/// The processes of the cgroup that are not the job's.
#[derive(Debug)]
pub(super) struct Others {
    /// Where they are listed.
    lists: Vec<PathBuf>,
    /// The job's own.
    init: Pid,
    /// Those whose share is known: the driver and whoever waits for it.
    known: Vec<Pid>,
    /// How many of those were there at the last look, and whether they were alone with the job.
    known_before: usize,
    alone_before: bool,
}

/// What a look saw of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Nobody else was there, now and at the last look.
    pub(super) alone: bool,
    /// Clock ticks of the known ones, the driver not among them.
    pub(super) ticks: u64,
    /// Bytes of the known ones.
    pub(super) memory: u64,
}

/// The driver, those who wait for it, and its other children, which wait themselves: keepers.
fn known(procfs: &mut Procfs, init: Pid) -> Vec<Pid> {
    let mut known = procfs.lineage();
    let mut pids = Vec::new();
    if procfs.pids(&mut pids).is_ok() {
        for pid in pids.into_iter().filter(|pid| *pid != init) {
            let process = procfs.process(pid).ok().flatten();
            known.extend(process.filter(|process| process.parent == Pid::this()).map(|process| process.pid));
        }
    }
    known
}

impl Others {
    /// Those in `lists`; without one there is nobody to know. `init` is the job's.
    pub(super) fn new(lists: Vec<PathBuf>, procfs: &mut Procfs, init: Pid) -> Others {
        let known = if lists.is_empty() { Vec::new() } else { known(procfs, init) };
        Others { lists, init, known, known_before: 0, alone_before: false }
    }

    /// Looks who is there.
    pub(super) fn look(&mut self, procfs: &mut Procfs, look: &Look) -> Share {
        let mut share = Share::default();
        let (known, strangers) = self.sort(procfs, look, &mut share).unwrap_or((0, true));
        // Whoever has left takes along what was subtracted for him.
        share.alone = self.alone_before && !strangers && known == self.known_before;
        (self.known_before, self.alone_before) = (known, !strangers);
        share
    }

    /// How many known ones there are, and whether there are strangers.
    fn sort(&self, procfs: &mut Procfs, look: &Look, share: &mut Share) -> Result<(usize, bool), Errno> {
        let (mut known, mut strangers) = (0, false);
        for (index, list) in self.lists.iter().enumerate() {
            for pid in listed(list)? {
                if self.known.contains(&pid) {
                    if index == 0 {
                        known += 1;
                        share.memory += procfs.status(pid)?.map_or(0, |status| Memory::of(&status).sum());
                        let process = procfs.process(pid)?.filter(|process| process.pid != Pid::this());
                        share.ticks += process.map_or(0, |process| (process.own + process.waited).sum());
                    }
                } else if !strangers {
                    strangers = self.is_stranger(procfs, look, pid)?;
                }
            }
        }
        Ok((known, strangers))
    }

    /// Whether it is alive and not of the job; in doubt it is.
    fn is_stranger(&self, procfs: &mut Procfs, look: &Look, pid: Pid) -> Result<bool, Errno> {
        let of_the_job = |pid: Pid| {
            pid == self.init || look.members.binary_search_by_key(&pid, |member| member.pid).is_ok()
        };
        let mut at = pid;
        for _ in 0..GENERATIONS {
            if of_the_job(at) {
                return Ok(false);
            }
            let Some(process) = procfs.process(at)? else {
                if kill(pid, None) == Err(Errno::ESRCH) {
                    return Ok(false);
                }
                // One on the way has ended; its children have another parent now.
                at = pid;
                continue;
            };
            if process.parent.as_raw() == 0 || self.known.contains(&process.parent) {
                return Ok(true);
            }
            at = process.parent;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    #[test]
    fn stranger_is_told_from_known_ones_and_the_job() {
        use std::process::{Command, Stdio};
        let start = || {
            let mut command = Command::new("sh");
            command.args(["-c", "sh -c 'read x; :'; :"]).stdin(Stdio::piped()).spawn().expect("sh starts")
        };
        let (mut one, mut two) = (start(), start());
        let pid = |child: &std::process::Child| Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        let path = std::env::temp_dir().join(format!("autodriver-list-{}", std::process::id()));
        let list = |pids: &[Pid]| {
            let lines: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
            fs::write(&path, lines).expect("write");
        };
        let mut procfs = Procfs::open().expect("/proc");
        let lists = vec![path.clone()];
        // The first is the job's init.
        let init = pid(&one);
        let known = vec![Pid::this()];
        let mut others = Others { lists, init, known, known_before: 0, alone_before: false };
        let mut look = |procfs: &mut Procfs| others.look(procfs, &Look::default());
        list(&[Pid::this(), init]);
        assert!(!look(&mut procfs).alone, "nothing is known of before");
        let share = look(&mut procfs);
        assert!(share.alone && share.memory > 0, "{share:?}");
        std::thread::sleep(Duration::from_millis(100));
        let mut pids = Vec::new();
        procfs.pids(&mut pids).expect("it lists");
        let below = |procfs: &mut Procfs, parent: Pid| {
            let is_below =
                |pid: &&Pid| procfs.process(**pid).ok().flatten().is_some_and(|one| one.parent == parent);
            *pids.iter().find(is_below).expect("it has a child")
        };
        list(&[Pid::this(), init, below(&mut procfs, init), Pid::from_raw(i32::MAX)]);
        assert!(look(&mut procfs).alone, "a grandchild is the job's, and who has ended is nobody");
        list(&[Pid::this(), below(&mut procfs, pid(&two))]);
        assert!(!look(&mut procfs).alone, "a stranger");
        list(&[Pid::this()]);
        assert!(!look(&mut procfs).alone, "one was there at the last look");
        assert!(look(&mut procfs).alone);
        list(&[]);
        assert!(!look(&mut procfs).alone, "a known one is gone");
        list(&[Pid::from_raw(0)]);
        assert!(!look(&mut procfs).alone, "one of outside");
        for child in [&mut one, &mut two] {
            drop(child.stdin.take());
            child.wait().expect("it ends");
        }
        fs::remove_file(&path).expect("unlink");
    }
}
