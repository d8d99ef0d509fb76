//! Uids for jobs: a range, one for each running job, leased by flock(2) on a file named after the
//! uid. The kernel drops the lock when the driver dies, however it dies; the file that is left
//! then is how `autodriver restore` knows whose traces to look for.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{openat, Flock, FlockArg, OFlag, AT_FDCWD};
use nix::sys::stat::{fstat, mkdirat, Mode};
use nix::unistd::{unlinkat, UnlinkatFlags};

use crate::fault::{Fault, Step};

/// First uid of the range: the top of what Debian and systemd leave to ordinary users, where no
/// `adduser` arrives in practice. Accounts found there are passed over.
pub const FIRST: u32 = 59_000;
/// Last uid of the range.
pub const LAST: u32 = 59_999;
/// The state directory; root's, mode 0700.
pub const DIRECTORY: &str = "/run/autodriver";

/// A uid that no other running job has.
#[derive(Debug)]
pub struct Lease {
    /// The uid, and the gid.
    pub uid: u32,
    directory: OwnedFd,
    _lock: Flock<File>,
}

/// The state directory, made if missing; `None` if another driver removed it meanwhile.
fn directory() -> Result<Option<OwnedFd>, Fault> {
    let fault = |errno| Fault::new(Step::Uid, format!("use {DIRECTORY}"), errno);
    let mut made = mkdirat(AT_FDCWD, DIRECTORY, Mode::S_IRWXU);
    if made == Err(Errno::ENOENT) {
        mkdirat(AT_FDCWD, "/run", Mode::from_bits_truncate(0o755)).map_err(fault)?;
        made = mkdirat(AT_FDCWD, DIRECTORY, Mode::S_IRWXU);
    }
    match made {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(fault(errno)),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match openat(AT_FDCWD, DIRECTORY, flags, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        opened => opened.map_err(fault)?,
    };
    let stat = fstat(&directory).map_err(fault)?;
    if stat.st_uid != nix::unistd::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
        let why = format!("owner {} and mode {:o}; remove it", stat.st_uid, stat.st_mode & 0o7777);
        return Err(Fault::refused(Step::Uid, format!("trust {DIRECTORY}"), why));
    }
    Ok(Some(directory))
}

/// Takes the lock of one uid; `None` if another job holds it.
pub fn try_lease(uid: u32) -> Result<Option<Lease>, Fault> {
    let fault = |errno| Fault::new(Step::Uid, format!("lock {DIRECTORY}/{uid}"), errno);
    // Whoever releases a lease removes its file, and may remove the directory too: take only a
    // lock on the file that has the name at that moment, and start again if either is gone.
    for _ in 0..100 {
        let Some(directory) = directory()? else { continue };
        let name = uid.to_string();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(directory.as_fd(), name.as_str(), flags, Mode::from_bits_truncate(0o600)) {
            Err(Errno::ENOENT) => continue,
            opened => File::from(opened.map_err(fault)?),
        };
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EAGAIN)) => return Ok(None),
            Err((_, errno)) => return Err(fault(errno)),
        };
        if lock.metadata().is_ok_and(|metadata| metadata.nlink() == 1) {
            // For humans; who holds the lock is what counts.
            let _ = writeln!(lock, "{}", std::process::id());
            return Ok(Some(Lease { uid, directory, _lock: lock }));
        }
    }
    Err(Fault::refused(
        Step::Uid,
        format!("lock {DIRECTORY}/{uid}"),
        "it was removed a hundred times in a row",
    ))
}

/// Takes a uid of the range that no other running job and no account has. `taken` says which
/// have one.
pub fn lease(taken: impl Fn(u32) -> bool) -> Result<Lease, Fault> {
    let count = LAST - FIRST + 1;
    // Where to start: spreads concurrent drivers, and lets a uid rest before it is used again.
    let start = next_start(count);
    for uid in (0..count).map(|n| FIRST + (start + n) % count).filter(|uid| !taken(*uid)) {
        if let Some(lease) = try_lease(uid)? {
            return Ok(lease);
        }
    }
    Err(Fault::refused(
        Step::Uid,
        "lease a uid",
        format!("all of {FIRST}-{LAST} are in use; run fewer jobs at once"),
    ))
}

fn next_start(count: u32) -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static USED: AtomicU32 = AtomicU32::new(0);
    std::process::id().wrapping_add(USED.fetch_add(1, Ordering::Relaxed)) % count
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = unlinkat(self.directory.as_fd(), self.uid.to_string().as_str(), UnlinkatFlags::NoRemoveDir);
        // Only when it is empty: other jobs' locks keep it.
        let _ = unlinkat(AT_FDCWD, DIRECTORY, UnlinkatFlags::RemoveDir);
    }
}

/// Where the storage of this uid's job is attached, on kernels where it has to be.
pub fn mount_point(uid: u32) -> String {
    format!("{DIRECTORY}/{uid}.storage")
}

/// Where the storage is shown to a job that has no mount namespace of its own.
pub fn shown_point(uid: u32) -> String {
    format!("/tmp/autodriver-{uid}")
}

/// Everywhere that something of this uid's may be mounted.
pub fn mount_points(uid: u32) -> [String; 2] {
    [mount_point(uid), shown_point(uid)]
}

/// The uid whose trace a name in the state directory is.
pub fn uid_of_trace(name: &std::ffi::OsStr) -> Option<u32> {
    let name = name.to_str()?;
    name.strip_suffix(".storage").unwrap_or(name).parse().ok()
}

/// Whether a living driver holds this uid.
pub fn is_leased(uid: u32) -> bool {
    !matches!(try_lease(uid), Ok(Some(_)))
}
