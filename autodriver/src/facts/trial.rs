//! Whether namespaces can be had is tried in a process of its own, which makes each of them, mounts
//! what a box needs, and ends. Nothing of it can be seen from outside. A container's filter, an
//! AppArmor profile, a sysctl or a masked /proc may each refuse one of these calls, and no file says
//! so reliably.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use autodriver_protocol::Layer;
use nix::errno::Errno;
use nix::fcntl::{OFlag, AT_FDCWD};
use nix::sched::{unshare, CloneFlags};
use nix::sys::wait::{waitid, Id, WaitPidFlag};
use nix::unistd::{getegid, geteuid, pipe2};

use crate::sys::mount::{self, attach, attr, FsContext};
use crate::sys::process::{clone3, exit_now, Forked};

/// What is tried, in this order. The first three are needed for all the others.
const ACTS: [&str; 9] = [
    "create a process to try namespaces",
    "make a user namespace",
    "make a mount namespace",
    "make a pid namespace",
    "mount a tmpfs",
    "mount /proc",
    "make a network namespace",
    "make an ipc namespace",
    "make a uts namespace",
];

/// Acts that only cost one layer when they fail.
const SINGLE: [(usize, CloneFlags, Layer); 3] = [
    (6, CloneFlags::CLONE_NEWNET, Layer::NetworkNamespace),
    (7, CloneFlags::CLONE_NEWIPC, Layer::IpcNamespace),
    (8, CloneFlags::CLONE_NEWUTS, Layer::UtsNamespace),
];

/// An act that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed(usize, Errno);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {} ({})", ACTS[self.0], crate::fault::errno_name(self.1), self.1.desc())
    }
}

/// Tries, `user` says whether by way of a user namespace. The layers that cannot be had.
///
/// # Errors
/// What failed that all of them need.
pub(super) fn trial(user: bool) -> Result<Vec<(Layer, String)>, Failed> {
    let first = |errno| Failed(0, errno);
    let (rx, tx) = pipe2(OFlag::O_CLOEXEC).map_err(first)?;
    // SAFETY: facts are looked at before anything else, by the one thread there is; the child never
    // returns.
    #[allow(unsafe_code)]
    let child = match unsafe { clone3(0, None) }.map_err(first)? {
        Forked::Child => {
            drop(rx);
            try_all(user, &File::from(tx))
        }
        Forked::Parent(child) => child,
    };
    drop(tx);
    let mut told = Vec::new();
    let read = File::from(rx).read_to_end(&mut told);
    let _ = waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED);
    read.map_err(|_| first(Errno::EIO))?;
    let failed: Vec<Failed> = told
        .chunks_exact(RECORD)
        .map(|record| {
            let errno = i32::from_ne_bytes([record[1], record[2], record[3], record[4]]);
            Failed(usize::from(record[0]).min(ACTS.len() - 1), Errno::from_raw(errno))
        })
        .collect();
    match failed.iter().find(|failed| !SINGLE.iter().any(|(act, ..)| *act == failed.0)) {
        Some(failed) => Err(*failed),
        None => {
            Ok(failed.iter().filter_map(|failed| Some((layer_of(failed)?, failed.to_string()))).collect())
        }
    }
}

fn layer_of(failed: &Failed) -> Option<Layer> {
    SINGLE.iter().find(|(act, ..)| *act == failed.0).map(|(.., layer)| *layer)
}

/// Bytes in which the child tells of one act.
const RECORD: usize = 5;

fn tell(mut to: &File, act: usize, errno: Errno) {
    let mut record = [u8::try_from(act).unwrap_or(0); RECORD];
    record[1..].copy_from_slice(&(errno as i32).to_ne_bytes());
    let _ = to.write_all(&record);
}

fn try_all(user: bool, to: &File) -> ! {
    if let Err(Failed(act, errno)) = try_needed(user, to) {
        tell(to, act, errno);
    }
    for (act, flag, _) in SINGLE {
        if let Err(errno) = unshare(flag) {
            tell(to, act, errno);
        }
    }
    exit_now(0)
}

fn try_needed(user: bool, to: &File) -> Result<(), Failed> {
    let act = |act: usize| move |errno| Failed(act, errno);
    if user {
        enter_user_namespace().map_err(act(1))?;
    }
    mount::enter_namespace().map_err(act(2))?;
    unshare(CloneFlags::CLONE_NEWPID).map_err(act(3))?;
    // SAFETY: this is the one thread of a child of the driver; the child of it never returns.
    #[allow(unsafe_code)]
    match unsafe { clone3(0, None) }.map_err(act(3))? {
        Forked::Child => {
            if let Err(errno) = FsContext::open(c"proc").and_then(|context| context.mount(attr::NOSUID)) {
                tell(to, 5, errno);
            }
            exit_now(0)
        }
        Forked::Parent(child) => {
            let _ = waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED);
        }
    }
    tmpfs().and_then(|mount| attach(mount.as_fd(), AT_FDCWD, c"/")).map_err(act(4))
}

fn tmpfs() -> Result<OwnedFd, Errno> {
    FsContext::open(c"tmpfs")?.mount(attr::NOSUID)
}

/// Makes a user namespace in which the caller has its own uid and gid, and every capability
/// (user_namespaces(7)). Groups beyond that cannot be given up in it, nor can any be gained.
///
/// # Errors
/// Those of unshare(2), or of writing the maps.
pub fn enter_user_namespace() -> Result<(), Errno> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| crate::fault::errno_of(&error))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))
}
