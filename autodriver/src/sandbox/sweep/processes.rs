//! Ending every process of a job: by its uid, or by its descent.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::stand_in::StandIn;
use crate::procfs::descent::Descent;
use crate::procfs::{Process, Procfs};
use crate::sys::process::{pidfd_open, pidfd_send_signal};
use crate::uids::STAND_IN;

/// How long dying may take; what lives on cannot be killed.
const DYING_MAX: Duration = Duration::from_secs(10);
/// Between two looks at the dying.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How many looks before they are killed once more.
const LOOKS: usize = 50;
/// How long descendants may be stopped for before they are killed as they are.
const STOPPING_MAX: Duration = Duration::from_millis(500);

/// How many looks at descendants have to find nobody.
const EMPTY_LOOKS: usize = 20;

/// Processes that are still there, or that could not be looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unkilled {
    /// Those known.
    pub pids: Vec<Pid>,
    /// Why: ETIMEDOUT where they do not die.
    pub why: Errno,
}

impl From<Errno> for Unkilled {
    fn from(why: Errno) -> Unkilled {
        Unkilled { pids: Vec::new(), why }
    }
}

/// Kills every process with this uid of the leased range, until a second look finds none that
/// lives. Zombies remain until whoever inherited them has waited for them.
///
/// kill(2) of -1 holds the list of all processes while it signals them, and a fork whose parent
/// has a signal pending fails before the child is on that list (kernel/fork.c, copy_process). So
/// no process of the uid that was there is missed, and none comes after; a list of numbers read
/// from /proc is outrun by a job that forks faster than it is read. What kill(2) answers is no
/// proof: 0 also when all that it met refused, so that /proc is asked who is still dying.
///
/// # Errors
/// Who remains after ten seconds, or why nothing could be done.
pub fn kill_uid(uid: u32) -> Result<(), Unkilled> {
    let until = Instant::now() + DYING_MAX;
    let mut procfs = Procfs::open()?;
    let stand_in = StandIn::hold(until)?;
    // They would be killed too. There are none, unless the machine has an account of that number.
    let strangers = living(&mut procfs, STAND_IN)?;
    if !strangers.is_empty() {
        return Err(Unkilled { pids: strangers, why: Errno::EBUSY });
    }
    loop {
        stand_in.act(uid, until, || {
            let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        })?;
        for _ in 0..LOOKS {
            let mut left = living(&mut procfs, uid)?;
            if left.is_empty() {
                left = living(&mut procfs, uid)?;
            }
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Unkilled { pids: left, why: Errno::ETIMEDOUT });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Processes that live and have this uid for a real or a saved one.
fn living(procfs: &mut Procfs, uid: u32) -> Result<Vec<Pid>, Errno> {
    let mut pids = Vec::new();
    procfs.pids(&mut pids)?;
    let mut found = Vec::new();
    for pid in pids {
        let Some(status) = procfs.status(pid)? else { continue };
        let has = |[real, _, saved, _]: [u32; 4]| real == uid || saved == uid;
        if status.uids().is_some_and(has) && status.lives() {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Kills every descendant of a process, where they have the caller's own uid and kill(2) of -1
/// would be the caller's end too. All are stopped first, until nobody new is found: whoever is
/// stopped does not fork, and still takes a place of RLIMIT_NPROC, so that a fork bomb starves;
/// killed one by one, each would leave its place to the next. Then all are killed, and it begins
/// again, until [`EMPTY_LOOKS`] looks in a row find none that lives: one that forks and ends at once can
/// be gone each time that its number is looked up, though not for long.
///
/// `of` must be PID 1 of their namespace or a child subreaper, so that orphans come to it.
///
/// # Errors
/// Who remains after ten seconds, or why nothing could be done.
pub fn kill_descendants(of: Pid) -> Result<(), Unkilled> {
    let until = Instant::now() + DYING_MAX;
    let mut prey = Prey { descent: Descent::new(of), procfs: Procfs::open()? };
    let mut empty_looks = 0;
    loop {
        let mut left = prey.stop(Instant::now() + STOPPING_MAX)?;
        left.retain(Process::lives);
        if left.is_empty() {
            empty_looks += 1;
            if empty_looks == EMPTY_LOOKS {
                return Ok(());
            }
            continue;
        }
        empty_looks = 0;
        if Instant::now() > until {
            let pids = left.iter().map(|process| process.pid).collect();
            return Err(Unkilled { pids, why: Errno::ETIMEDOUT });
        }
        for process in &left {
            prey.signal(process, Signal::SIGKILL)?;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

struct Prey {
    descent: Descent,
    procfs: Procfs,
}

impl Prey {
    /// Stops all, until a look finds nobody that the one before had not. The last look.
    fn stop(&mut self, until: Instant) -> Result<Vec<Process>, Errno> {
        let mut stopped: Vec<Process> = Vec::new();
        loop {
            let now = self.look()?;
            let mut new = false;
            for process in now.iter().filter(|process| process.lives()) {
                if !stopped.iter().any(|known| known.is(process)) {
                    new = true;
                    self.signal(process, Signal::SIGSTOP)?;
                }
            }
            if !new || Instant::now() > until {
                return Ok(now);
            }
            stopped = now;
        }
    }

    /// Through a descriptor that is known to name the process that was seen: the number may have
    /// come to name another.
    fn signal(&mut self, process: &Process, signal: Signal) -> Result<(), Errno> {
        let Ok(pidfd) = pidfd_open(process.pid) else { return Ok(()) };
        if self.procfs.process(process.pid)?.is_some_and(|now| now.is(process)) {
            let _ = pidfd_send_signal(pidfd.as_fd(), signal);
        }
        Ok(())
    }

    /// Every descendant, by one pass over /proc.
    fn look(&mut self) -> Result<Vec<Process>, Errno> {
        self.descent.look(&mut self.procfs)?;
        Ok(self.descent.descendants().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::uids::{self, Lease};

    /// Ends by itself before long.
    struct Running(Child);

    impl Running {
        /// Starts a program that writes something once it is ready.
        fn start(script: &str, uid: Option<u32>) -> Running {
            let mut command = Command::new("python3");
            command.args(["-c", script]).stdout(Stdio::piped());
            if let Some(uid) = uid {
                command.uid(uid).gid(uid);
            }
            let mut child = command.spawn().expect("python3 starts");
            let mut ready = [0];
            child.stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("it is ready");
            Running(child)
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"))
        }

        fn lives(&mut self) -> bool {
            self.0.try_wait().expect("it waits").is_none()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn lease() -> Lease {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it starts processes of other uids");
        uids::lease(|_| false).expect("a uid")
    }

    const SLEEPS: &str = "import time\nprint('x', flush=True)\ntime.sleep(20)";
    /// Some that ignore every signal they can, in sessions of their own.
    const HIDE: &str = "import os, signal, time\nfor i in range(10):\n if not os.fork():\n  os.setsid()\n  \
        for s in set(range(1, 32)) - {9, 19}: signal.signal(s, signal.SIG_IGN)\n  time.sleep(20); os._exit(0)\n\
        time.sleep(0.3); print('x', flush=True); time.sleep(20)";
    #[test]
    fn every_process_of_the_uid_dies_and_no_other() {
        let (lease, other) = (lease(), lease());
        let mut stays = Running::start(SLEEPS, Some(other.uid));
        for script in [SLEEPS, HIDE] {
            let _victim = Running::start(script, Some(lease.uid));
            assert_eq!(kill_uid(lease.uid), Ok(()));
            let mut procfs = Procfs::open().expect("/proc");
            assert_eq!(living(&mut procfs, lease.uid), Ok(Vec::new()));
        }
        assert!(stays.lives());
    }

    #[test]
    fn uid_without_processes_is_done_at_once() {
        let lease = lease();
        assert_eq!(kill_uid(lease.uid), Ok(()));
    }

    #[test]
    fn uid_outside_the_range_is_refused() {
        let _ = lease();
        for uid in [0, 1000, uids::FIRST - 1, STAND_IN, 65534] {
            assert_eq!(kill_uid(uid), Err(Unkilled::from(Errno::EINVAL)), "{uid}");
        }
    }

    #[test]
    fn every_descendant_dies_and_the_ancestor_does_not() {
        for script in [SLEEPS, HIDE] {
            // PR_SET_CHILD_SUBREAPER; children are reaped by the kernel.
            let ancestor = format!(
                "import ctypes, os, signal, time\nctypes.CDLL(None).prctl(36, 1)\n\
                 signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n\
                 if not os.fork():\n exec({script:?})\n os._exit(0)\ntime.sleep(20)"
            );
            let mut ancestor = Running::start(&ancestor, None);
            assert_eq!(kill_descendants(ancestor.pid()), Ok(()));
            let (mut procfs, mut descent) = (Procfs::open().expect("/proc"), Descent::new(ancestor.pid()));
            descent.look(&mut procfs).expect("it looks");
            assert!(descent.descendants().all(|process| !process.lives()));
            assert!(ancestor.lives());
        }
    }
}
