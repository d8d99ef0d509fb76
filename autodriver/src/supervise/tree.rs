//! Who belongs to the job where no cgroup says so: the descendants of init, to which every orphan
//! comes back because it is PID 1 of the job's namespace or a child subreaper; and whoever has the
//! job's uid, when that was leased for this job alone. A job that makes itself a subreaper, or
//! starts sessions, stays below init all the same: prctl(2), PR_SET_CHILD_SUBREAPER.
//!
//! One pass over /proc reads one file of each process. The uid costs a second file, so it is only
//! looked up where it could be the job's: the owner of /proc/PID is the effective uid, or root
//! when the process is not dumpable (proc(5)), and without capabilities a process can only have an
//! effective uid that is its real or its saved one.

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::procfs::descent::Descent;
use crate::procfs::{Process, Procfs};

/// A process of the job.
pub type Member = Process;

/// The processes of one job.
#[derive(Debug)]
pub struct Tree {
    init: Pid,
    uid: Option<u32>,
    procfs: Procfs,
    descent: Descent,
}

/// What one look saw.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// init itself, read before anything else; `None` once it is gone.
    pub init: Option<Process>,
    /// The job's processes in the order in which they were read, which is that of their numbers;
    /// zombies included.
    pub members: Vec<Member>,
}

impl Tree {
    /// `init` must not have been reaped, so that its number stays its own. `uid` only when it was
    /// leased for this job.
    ///
    /// # Errors
    /// If /proc cannot be opened.
    pub fn new(init: Pid, uid: Option<u32>) -> Result<Tree, Errno> {
        Ok(Tree { init, uid, procfs: Procfs::open()?, descent: Descent::new(init) })
    }

    /// The /proc it looks at.
    pub fn procfs(&mut self) -> &mut Procfs {
        &mut self.procfs
    }

    /// The job's processes, never init and never the driver.
    ///
    /// # Errors
    /// If /proc cannot be read: nothing is known then, which is not the same as no process.
    pub fn members(&mut self) -> Result<Vec<Member>, Errno> {
        Ok(self.look()?.members)
    }

    /// As [`Tree::members`], with init.
    ///
    /// # Errors
    /// As [`Tree::members`].
    pub fn look(&mut self) -> Result<Look, Errno> {
        let init = self.procfs.process(self.init)?;
        self.descent.look(&mut self.procfs)?;
        let driver = Pid::this();
        let mut members = Vec::new();
        for (process, descends) in self.descent.all().filter(|(process, _)| process.pid != driver) {
            if descends || !process.kernel && has_uid(&mut self.procfs, process.pid, self.uid)? {
                members.push(process);
            }
        }
        Ok(Look { init, members })
    }
}

fn has_uid(procfs: &mut Procfs, pid: Pid, uid: Option<u32>) -> Result<bool, Errno> {
    let Some(uid) = uid else { return Ok(false) };
    if procfs.owner(pid).is_none_or(|owner| owner != uid && owner != 0) {
        return Ok(false);
    }
    let uids = procfs.status(pid)?.and_then(|status| status.uids());
    Ok(uids.is_some_and(|uids| uids[0] == uid))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Instant;

    use super::*;

    /// Ends with the test.
    struct Running(Child);

    impl Running {
        fn shell(script: &str) -> Running {
            Running(Command::new("sh").args(["-c", script]).spawn().expect("sh starts"))
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"))
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Members once there are `count` of them.
    fn members(tree: &mut Tree, count: usize) -> Vec<Member> {
        let until = Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let members = tree.members().expect("/proc is readable");
            if members.len() == count || Instant::now() > until {
                return members;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[test]
    fn descendants_belong_and_init_does_not() {
        // The shells stay, because something follows; `read` ends them with the test.
        let top = Running::shell("sh -c 'sh -c \"sleep 9 & wait\" & wait; :' & wait; :");
        let mut tree = Tree::new(top.pid(), None).expect("/proc");
        let found = members(&mut tree, 3);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.iter().all(|member| member.pid != top.pid() && member.pid != Pid::this()));
        for member in &found {
            let _ = nix::sys::signal::kill(member.pid, nix::sys::signal::Signal::SIGKILL);
        }
    }

    #[test]
    fn strangers_do_not_belong() {
        let (one, two) = (Running::shell("sleep 9 & wait; :"), Running::shell("sleep 9"));
        let found = members(&mut Tree::new(one.pid(), None).expect("/proc"), 1);
        assert!(found.iter().all(|member| member.pid != two.pid()), "{found:?}");
        for member in &found {
            assert_eq!(member.parent, one.pid());
            let _ = nix::sys::signal::kill(member.pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
