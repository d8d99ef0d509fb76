//! Who descends from a process, by one pass over /proc that reads one file of each process.

use nix::errno::Errno;
use nix::unistd::Pid;

use super::{Process, Procfs};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belongs {
    Unknown,
    /// On the way up from a process; met again only if the numbers contradict each other.
    Asked,
    Yes,
    No,
}

/// All processes, and which of them descend from one. As long as that one is PID 1 of their
/// namespace or a child subreaper, no process leaves its descent: orphans come back to it, or to a
/// subreaper among its descendants (prctl(2), PR_SET_CHILD_SUBREAPER).
#[derive(Debug)]
pub struct Descent {
    of: Pid,
    pids: Vec<Pid>,
    all: Vec<Process>,
    belongs: Vec<Belongs>,
}

impl Descent {
    /// `of` must not have been waited for, so that its number stays its own.
    pub fn new(of: Pid) -> Descent {
        Descent { of, pids: Vec::new(), all: Vec::new(), belongs: Vec::new() }
    }

    /// Looks once, at all processes.
    ///
    /// # Errors
    /// If /proc cannot be read: nothing is known then, which is not the same as no process.
    pub fn look(&mut self, procfs: &mut Procfs) -> Result<(), Errno> {
        procfs.pids(&mut self.pids)?;
        self.all.clear();
        for pid in &self.pids {
            self.all.extend(procfs.process(*pid)?);
        }
        self.find_lost_parents(procfs)?;
        self.belongs.clear();
        self.belongs.resize(self.all.len(), Belongs::Unknown);
        for index in 0..self.all.len() {
            self.ask(index);
        }
        Ok(())
    }

    /// All processes but the one itself, in the order in which they were read, which is that of
    /// their numbers; and whether each descends from it.
    pub fn all(&self) -> impl Iterator<Item = (Process, bool)> + '_ {
        let pairs = self.all.iter().zip(&self.belongs);
        let others = pairs.filter(|(process, _)| process.pid != self.of);
        others.map(|(process, belongs)| (*process, *belongs == Belongs::Yes))
    }

    /// Those that do, zombies included.
    pub fn descendants(&self) -> impl Iterator<Item = Process> + '_ {
        self.all().filter_map(|(process, descends)| descends.then_some(process))
    }

    /// Reads those again whose parent was not met: it died after them and before its turn, which
    /// the order of the numbers makes rare, and they have another one now.
    fn find_lost_parents(&mut self, procfs: &mut Procfs) -> Result<(), Errno> {
        for index in 0..self.all.len() {
            let process = self.all[index];
            if process.parent.as_raw() != 0 && self.find(process.parent).is_none() {
                if let Some(now) = procfs.process(process.pid)? {
                    self.all[index] = now;
                }
            }
        }
        Ok(())
    }

    fn find(&self, pid: Pid) -> Option<usize> {
        self.all.binary_search_by_key(&pid, |process| process.pid).ok()
    }

    /// Goes up from a process. What is found out is kept for all on the way, so that a job of one
    /// long chain costs no more than another.
    fn ask(&mut self, index: usize) {
        let mut at = index;
        let found = loop {
            match self.belongs[at] {
                Belongs::Yes => break Belongs::Yes,
                Belongs::No | Belongs::Asked => break Belongs::No,
                Belongs::Unknown => self.belongs[at] = Belongs::Asked,
            }
            let parent = self.all[at].parent;
            if parent == self.of {
                break Belongs::Yes;
            }
            match self.find(parent) {
                Some(next) => at = next,
                None => break Belongs::No,
            }
        };
        at = index;
        while self.belongs[at] == Belongs::Asked {
            self.belongs[at] = found;
            match self.find(self.all[at].parent) {
                Some(next) => at = next,
                None => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::procfs::Cpu;

    #[test]
    fn contradicting_numbers_end_the_search() {
        let process = |(pid, parent)| Process {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            state: b'S',
            kernel: false,
            threads: 1,
            start_time: 1,
            own: Cpu::default(),
            waited: Cpu::default(),
        };
        let mut descent = Descent::new(Pid::from_raw(1));
        descent.all = [(2, 3), (3, 2), (4, 1), (5, 4), (6, 9)].map(process).to_vec();
        descent.belongs = vec![Belongs::Unknown; 5];
        (0..5).for_each(|index| descent.ask(index));
        let found: Vec<i32> = descent.descendants().map(|process| process.pid.as_raw()).collect();
        assert_eq!(found, [4, 5]);
    }
}
