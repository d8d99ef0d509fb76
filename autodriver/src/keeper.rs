//! Where no namespace ends a job together with its driver, a process of its own waits for the driver's
//! end. If the driver closes its place for jobs, it says so first, and the keeper has nothing to do. If
//! the driver was killed, the keeper does what `autodriver restore` would: the job does not go on, and
//! nothing waits for the next driver.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::sys::wait::{waitid, Id, WaitPidFlag};
use nix::unistd::{pipe2, read, setsid, write, Pid};

use crate::facts::Facts;
use crate::fault::{Fault, Step};
use crate::restore::{clear_own, clear_uid};
use crate::sandbox::sweep::processes::kill_descendants;
use crate::sys::fd::{close_all_but, uninterrupted};
use crate::sys::process::{clone3, exit_now, pidfd_open, pidfd_send_signal, Child, Forked};
use crate::uids;

/// The message that there is nothing to do; every other is the pid of the init of the job that runs, or 0.
const DONE: u32 = u32::MAX;
/// How long a dead driver may hold the lock of its uid; after that another driver does.
const LOCK_MAX: Duration = Duration::from_secs(2);
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(1);
/// Bytes of a message.
const MESSAGE: usize = size_of::<u32>();

/// A process that cleans up if this one cannot. Dropping it says that there is nothing to do.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    tell: OwnedFd,
}

impl Keeper {
    /// Starts it, for jobs of `uid`, or without one for jobs of the caller's uid.
    ///
    /// # Errors
    /// Why it could not be started.
    pub fn start(facts: &Facts, uid: Option<u32>) -> Result<Keeper, Fault> {
        let fault = |errno| Fault::new(Step::Supervise, "start a process that outlives the driver", errno);
        let (rx, tell) = pipe2(OFlag::O_CLOEXEC).map_err(fault)?;
        // SAFETY: the driver has one thread; the child runs `keep`, which never returns.
        #[allow(unsafe_code)]
        match unsafe { clone3(0, None) }.map_err(fault)? {
            Forked::Child => keep(&rx, facts, uid),
            Forked::Parent(child) => Ok(Keeper { child, tell }),
        }
    }

    /// A job has started, with this init.
    pub fn job_started(&self, init: Pid) {
        self.say(u32::try_from(init.as_raw()).unwrap_or(0));
    }

    /// It has ended, and nothing of it is left.
    pub fn job_ended(&self) {
        self.say(0);
    }

    /// If it is gone, so is what it is for.
    fn say(&self, message: u32) -> bool {
        uninterrupted(|| write(&self.tell, &message.to_ne_bytes())).is_ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // A pipe has no page before it is first written to, and there may be no memory for one (ENOMEM). Who is not
        // told would wait for our end, and we for its.
        if !self.say(DONE) {
            let _ = pidfd_send_signal(self.child.pidfd.as_fd(), Signal::SIGKILL);
        }
        let _ = waitid(Id::PIDFd(self.child.pidfd.as_fd()), WaitPidFlag::WEXITED);
    }
}

fn keep(rx: &OwnedFd, facts: &Facts, uid: Option<u32>) -> ! {
    // What ends the driver's terminal or group must not end this. The lock of the uid is the driver's
    // alone: a copy of its descriptor would hold it on.
    let _ = setsid();
    if close_all_but(&mut [rx.as_raw_fd()]).is_err() {
        exit_now(1);
    }
    let mut init = 0;
    loop {
        let mut message = [0; MESSAGE];
        match read(rx, &mut message) {
            Ok(MESSAGE) => match u32::from_ne_bytes(message) {
                DONE => exit_now(0),
                pid => init = pid,
            },
            Err(Errno::EINTR) => {}
            _ => break,
        }
    }
    if !uid.is_some_and(uids::is_jobs_alone) {
        end(init);
    }
    match uid {
        Some(uid) => {
            let until = Instant::now() + LOCK_MAX;
            // The kernel closes what the driver had open one by one: this pipe may come before the lock.
            while matches!(clear_uid(facts, uid), Ok(None)) && Instant::now() < until {
                std::thread::sleep(AGAIN);
            }
        }
        None => drop(clear_own(facts)),
    }
    exit_now(0)
}

/// Ends the processes below an init that does not die with its driver, and then itself.
fn end(init: u32) {
    let Some(init) = i32::try_from(init).ok().filter(|pid| *pid > 0).map(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(init) else { return };
    let _ = kill_descendants(init);
    let _ = pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL);
}
