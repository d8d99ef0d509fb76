//! Leaving behind what the caller of a setuid program has set up for it. Nothing of it is looked at: all
//! is put to what the driver needs, whatever it was. What cannot be (a container may lack the capability to
//! raise a hard limit or to be nicer) and would end a driver half-way is refused before anything is done.

use nix::errno::Errno;
use nix::sched::{sched_setaffinity, CpuSet};
use nix::sys::prctl;
use nix::sys::resource::{getrlimit, setrlimit, Resource, RLIM_INFINITY};
use nix::sys::stat::{umask, Mode};
use nix::unistd::{getresgid, getresuid, setgroups, setresgid, setresuid, Gid, Pid, Uid};

use super::failure::{Failure, OS_ERROR};
use crate::plan::Rlimit;
use crate::sys::fd::close_all_but;
use crate::sys::inherited;
use crate::sys::process::set_nice;

/// What a driver needs at least, in bytes, seconds and descriptors. More is taken where it can be had.
const NEEDS: [(Resource, &str, u64); 6] = [
    // What is kept of the output, and the files of a job.
    (Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE", 16 << 20),
    (Resource::RLIMIT_CPU, "RLIMIT_CPU", 60),
    (Resource::RLIMIT_AS, "RLIMIT_AS", 256 << 20),
    (Resource::RLIMIT_DATA, "RLIMIT_DATA", 256 << 20),
    (Resource::RLIMIT_STACK, "RLIMIT_STACK", 1 << 20),
    // A walk through the files of a job holds one for each level.
    (Resource::RLIMIT_NOFILE, "RLIMIT_NOFILE", 256),
];

/// Enough of what is not simply unlimited: see setrlimit(2).
const NOFILE: u64 = 4096;
const STACK: u64 = 8 << 20;

/// Sheds everything but the arguments, the working directory and the standard streams.
pub(super) fn shed() -> Result<(), Failure> {
    let failed = |act: &'static str| move |errno| Failure::os(act, errno);
    // Whoever has a real uid may signal it, and own the descriptors that send it signals: first of all.
    become_root().map_err(failed("Unable to become root"))?;
    prctl::set_dumpable(false).map_err(failed("Unable to hide from debuggers"))?;
    inherited::reset_signals().map_err(failed("Unable to reset signals"))?;
    inherited::disarm_timers().map_err(failed("Unable to disarm timers"))?;
    inherited::clear_environment().map_err(failed("Unable to clear the environment"))?;
    inherited::reset_personality().map_err(failed("Unable to reset the execution domain"))?;
    // Files get exactly the modes they are made with.
    umask(Mode::empty());
    NEEDS.into_iter().try_for_each(|(resource, name, least)| have(resource, name, least))?;
    close_all_but(&mut [0, 1, 2]).map_err(failed("Unable to close descriptors"))?;
    // A caller that is refused more may be slow, and so is its driver.
    let _ = inherited::reset_scheduler();
    let _ = set_nice(-20);
    let _ = sched_setaffinity(Pid::from_raw(0), &all_processors());
    Ok(())
}

/// Real, effective and saved, and no group of the caller's.
fn become_root() -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let (uids, gids) = (getresuid()?, getresgid()?);
    let all = [uids.real == uid, uids.effective == uid, uids.saved == uid];
    let all_groups = [gids.real == gid, gids.effective == gid, gids.saved == gid];
    match all.into_iter().chain(all_groups).all(|same| same) {
        true => Ok(()),
        false => Err(Errno::EPERM),
    }
}

/// Lifts a limit as far as it goes.
fn have(resource: Resource, name: &str, least: u64) -> Result<(), Failure> {
    let wanted = match resource {
        Resource::RLIMIT_NOFILE => NOFILE,
        Resource::RLIMIT_STACK => STACK,
        _ => RLIM_INFINITY,
    };
    let failed = |errno| Failure::os(format!("Unable to set {name}"), errno);
    let (_, hard) = getrlimit(resource).map_err(failed)?;
    // CAP_SYS_RESOURCE, which a container has not.
    if hard < wanted && setrlimit(resource, wanted, wanted).is_ok() {
        return Ok(());
    }
    if hard < least {
        let text = format!("{name} is {hard}, and {least} are needed; start autodriver without that limit");
        return Err(Failure::new(OS_ERROR, text));
    }
    setrlimit(resource, wanted.min(hard), hard).map_err(failed)
}

fn all_processors() -> CpuSet {
    let mut all = CpuSet::new();
    for processor in 0..CpuSet::count() {
        // The kernel takes those that are there.
        let _ = all.set(processor);
    }
    all
}

/// A job gets no more than the caller could: without CAP_SYS_RESOURCE it cannot, and setrlimit(2) would fail.
pub(super) fn clamp(rlimits: &mut [Rlimit]) {
    for row in rlimits {
        let hard = getrlimit(row.resource).map_or(RLIM_INFINITY, |(_, hard)| hard);
        row.hard = row.hard.min(hard);
        row.soft = row.soft.min(hard);
    }
}
