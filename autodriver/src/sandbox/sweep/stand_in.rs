//! A helper process that acts with the job's uid and is out of its reach.
//!
//! Its effective uid is the job's; its real and its saved one are [`uids::STAND_IN`], which nobody
//! has. Who may signal whom is decided in kernel/signal.c, kill_ok_by_cred: the **sender's**
//! effective or real uid must be the **target's** saved or real uid. So
//!
//! - the helper reaches whoever has the job's uid for a real or a saved one, because that is its
//!   effective uid; and whoever has the stand-in's, which is nobody while its lock is held;
//! - it reaches nobody else: init is 65534 in both, the driver is root, and CAP_KILL, which would
//!   open everything, went with all other capabilities and is looked for before the first signal;
//! - the job's uids are not the helper's real or saved one, so that the job does not reach it.
//!
//! ptrace(2) and prlimit(2) ask for all three of the target's uids and are refused to the job for
//! the same reason. It may renice the helper (sched_setattr asks for the effective one), which
//! delays what it cannot prevent.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use caps::CapSet;
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::getresuid;

use crate::sys::process::{clone3, exit_now, pidfd_send_signal, set_uids, Child, Forked};
use crate::uids::{self, Lease, STAND_IN};

/// Between two attempts for the lock, which another driver holds for milliseconds.
const AGAIN: Duration = Duration::from_millis(1);

/// The stand-in's uid, held. Two helpers at once would reach each other by their real uids.
#[derive(Debug)]
pub(super) struct StandIn(Lease);

impl StandIn {
    /// Waits for the lock.
    pub(super) fn hold(until: Instant) -> Result<StandIn, Errno> {
        loop {
            match uids::try_lease(STAND_IN) {
                Ok(Some(lease)) => return Ok(StandIn(lease)),
                Ok(None) if Instant::now() < until => std::thread::sleep(AGAIN),
                Ok(None) => return Err(Errno::ETIMEDOUT),
                Err(fault) => return Err(fault.errno.unwrap_or(Errno::EPERM)),
            }
        }
    }

    /// Has the helper do something with the job's uid. `act` runs in a copy of this process that
    /// has no capability, and must only make system calls.
    pub(super) fn act(&self, uid: u32, until: Instant, act: impl FnOnce()) -> Result<(), Errno> {
        // The guard: any other uid has processes that are no job's.
        if !uids::is_jobs_alone(uid) || self.0.uid != STAND_IN {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the driver has a single thread; the child ends below.
        #[allow(unsafe_code)]
        let forked = unsafe { clone3(0, None) }?;
        match forked {
            Forked::Parent(child) => wait(&child, until),
            Forked::Child => match become_stand_in(uid) {
                Ok(()) => {
                    act();
                    exit_now(0)
                }
                Err(_) => exit_now(1),
            },
        }
    }
}

fn become_stand_in(uid: u32) -> Result<(), Errno> {
    set_uids(STAND_IN, uid, STAND_IN)?;
    // Leaving uid 0 has emptied them, unless securebits say otherwise.
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(|_| Errno::EPERM)?;
    }
    let now = getresuid()?;
    let same = (now.real.as_raw(), now.effective.as_raw(), now.saved.as_raw()) == (STAND_IN, uid, STAND_IN);
    let empty = |set| caps::read(None, set).is_ok_and(|caps| caps.is_empty());
    if same && empty(CapSet::Effective) && empty(CapSet::Permitted) {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

/// Waits for the helper's end, not for ever.
fn wait(child: &Child, until: Instant) -> Result<(), Errno> {
    let mut late = false;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, if late { PollTimeout::NONE } else { timeout }) {
            Ok(0) if !late => {
                late = true;
                pidfd_send_signal(child.pidfd.as_fd(), Signal::SIGKILL)?;
            }
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    match waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(..) => Err(Errno::EPERM),
        _ if late => Err(Errno::ETIMEDOUT),
        _ => Err(Errno::ECANCELED),
    }
}
