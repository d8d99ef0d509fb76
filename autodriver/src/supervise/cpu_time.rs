//! CPU time of a tree of processes without a cgroup: a lower bound, of which there are two.
//!
//! **By sight**: the last time seen of every process ever seen. It misses what ran after the last
//! look at a process, and whoever lived between two looks.
//!
//! **By waiting**: the living, with the children they waited for, and the children that init
//! waited for, to which all orphans come. It misses every child of a parent that ignores SIGCHLD,
//! because the kernel reaps such a child without adding its time to anybody's (wait(2)), and the
//! children that it had waited for with it.
//!
//! What escapes both, for [`super::enclosing`] and the wall clock to bound: children of a parent that ignores SIGCHLD which
//! live shorter than the time between two looks. And since the bounds are not added, because they
//! count mostly the same time, a job that spends half of it in either way is counted for half.
//! The kernel gives both in ticks of 10 ms, rounded down for each process.

use std::time::Duration;

use nix::time::{clock_gettime, ClockId};
use nix::unistd::{sysconf, Pid, SysconfVar};

use super::tree::Look;
use crate::procfs::{Cpu, Process};

/// The driver's own, so far, which the kernel knows exactly.
pub fn of_driver() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Length of a clock tick, microseconds.
pub fn tick_us() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    1_000_000 / ticks.unwrap_or(100).max(1)
}

/// What was seen of one process.
#[derive(Clone, Copy, Debug)]
struct Seen {
    process: Process,
    own: Cpu,
}

/// The times of all processes so far.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Living at the last look, in ascending order of their numbers.
    seen: Vec<Seen>,
    /// Dead since.
    gone: Cpu,
    /// The highest figure so far.
    highest: Cpu,
}

impl Ledger {
    /// Takes down what a look saw. `process` looks at one process again.
    pub fn record(&mut self, look: &Look, mut process: impl FnMut(Pid) -> Option<Process>) -> Cpu {
        let waited = by_waiting(look, &mut process);
        let sight = self.by_sight(&look.members, &mut process);
        for figure in [sight, waited] {
            if figure.sum() > self.highest.sum() {
                self.highest = figure;
            }
        }
        self.highest
    }

    fn by_sight(&mut self, members: &[Process], process: &mut impl FnMut(Pid) -> Option<Process>) -> Cpu {
        let mut now: Vec<Seen> =
            members.iter().map(|member| Seen { process: *member, own: member.own }).collect();
        for before in &self.seen {
            let pid = before.process.pid;
            let at = members.binary_search_by_key(&pid, |member| member.pid);
            match at.ok().and_then(|at| now.get_mut(at)).filter(|seen| seen.process.is(&before.process)) {
                Some(seen) => {
                    if seen.own.sum() < before.own.sum() {
                        seen.own = before.own;
                    }
                }
                // Not met by the look, but there: to count it as dead would count it twice later.
                None if process(pid).is_some_and(|process| process.is(&before.process)) => now.push(*before),
                None => self.gone += before.own,
            }
        }
        now.sort_unstable_by_key(|seen| seen.process.pid);
        self.seen = now;
        self.seen.iter().fold(self.gone, |sum, seen| sum + seen.own)
    }
}

/// A look takes time. A child that is read first, then waited for, and whose parent is read after
/// that, would count twice. Parents are older than their children and have lower numbers, so they
/// are read first, unless the numbers started again from the bottom in between. Whoever is read
/// before somebody older is looked at again after all others: if it is still there, nobody had
/// waited for it.
fn by_waiting(look: &Look, process: &mut impl FnMut(Pid) -> Option<Process>) -> Cpu {
    let mut sum = look.init.map(|init| init.waited).unwrap_or_default();
    let mut oldest = u64::MAX;
    for member in look.members.iter().rev() {
        let counts = member.start_time <= oldest || process(member.pid).is_some_and(|now| now.is(member));
        if counts {
            sum += member.own + member.waited;
        }
        oldest = oldest.min(member.start_time);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, start_time: u64, own: u64, waited: u64) -> Process {
        Process {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(1),
            state: b'R',
            kernel: false,
            threads: 1,
            start_time,
            own: Cpu { user: own, system: 0 },
            waited: Cpu { user: 0, system: waited },
        }
    }

    fn look(init_waited: u64, members: &[Process]) -> Look {
        Look { init: Some(process(1, 0, 99, init_waited)), members: members.to_vec() }
    }

    fn nobody(_: Pid) -> Option<Process> {
        None
    }

    #[test]
    fn waited_for_children_count_once() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.record(&look(0, &[process(2, 5, 10, 0), process(3, 6, 20, 0)]), nobody).sum(), 30);
        // 3 went on to 25, ended, and 2 waited for it.
        assert_eq!(ledger.record(&look(0, &[process(2, 5, 11, 25)]), nobody).sum(), 36);
        // 2 ended, and init waited for it.
        assert_eq!(ledger.record(&look(40, &[]), nobody).sum(), 40);
    }

    #[test]
    fn children_nobody_waits_for_count_as_last_seen() {
        let mut ledger = Ledger::default();
        for pid in 3..13 {
            ledger.record(&look(0, &[process(2, 5, 1, 0), process(pid, 6, 100, 0)]), nobody);
        }
        assert_eq!(ledger.record(&look(0, &[process(2, 5, 1, 0)]), nobody).sum(), 1001);
    }

    #[test]
    fn number_used_again_is_another_process() {
        let mut ledger = Ledger::default();
        ledger.record(&look(0, &[process(2, 5, 100, 0)]), nobody);
        assert_eq!(ledger.record(&look(0, &[process(2, 9, 10, 0)]), nobody).sum(), 110);
    }

    #[test]
    fn process_that_a_look_missed_is_not_dead() {
        let mut ledger = Ledger::default();
        let missed = process(2, 5, 100, 0);
        ledger.record(&look(0, &[missed]), nobody);
        assert_eq!(ledger.record(&look(0, &[]), |_| Some(missed)).sum(), 100);
        assert_eq!(ledger.record(&look(0, &[process(2, 5, 110, 0)]), nobody).sum(), 110);
    }

    #[test]
    fn child_waited_for_during_the_look_counts_once() {
        // 2 is the child of the older 9; it was read with 50, then 9 waited for it.
        let members = [process(2, 8, 50, 0), process(9, 5, 1, 50)];
        assert_eq!(Ledger::default().record(&look(0, &members), nobody).sum(), 51);
        let alive = [process(2, 8, 50, 0), process(9, 5, 1, 0)];
        assert_eq!(Ledger::default().record(&look(0, &alive), |_| Some(alive[0])).sum(), 51);
    }

    #[test]
    fn figure_never_falls() {
        let mut ledger = Ledger::default();
        ledger.record(&look(70, &[]), nobody);
        assert_eq!(ledger.record(&Look::default(), nobody).sum(), 70);
    }
}
