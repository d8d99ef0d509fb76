//! What the attempts of several sections ask the kernel.

use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::wait::WaitStatus;
use nix::unistd::{getpid, getppid, setsid, Pid};

use crate::tools::{any, broke, child, end_of, held, ignore, leave, raw, Attempt};

/// Numbers of processes that are tried: those of a machine that was started lately, or of a container.
const PIDS: i32 = 1 << 16;

/// Garbage in the half of an argument that the kernel does not look at.
pub(crate) const HIGH: u64 = 0xdead_beef_0000_0000;

/// A constant of the C library as an argument: the kernel takes its low half.
#[allow(clippy::cast_sign_loss)]
pub(crate) const fn arg(flag: i32) -> u64 {
    flag as u64
}

/// One system call.
pub(crate) fn call(number: libc::c_long, args: [u64; 5]) -> nix::Result<libc::c_long> {
    // SAFETY: attempts pass numbers, null, or pointers to what lives until the call returns.
    raw(unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], 0_u64) })
}

/// Where something is, as an argument.
pub(crate) fn at<T: ?Sized>(thing: &T) -> u64 {
    std::ptr::from_ref(thing).cast::<u8>() as u64
}

/// Each path leads to what the other led to: rename(2), RENAME_EXCHANGE. Not every C library has the call.
pub(crate) fn exchange(one: &CStr, other: &CStr) -> nix::Result<libc::c_long> {
    let here = arg(libc::AT_FDCWD);
    let (one, other) = (one.as_ptr() as u64, other.as_ptr() as u64);
    call(libc::SYS_renameat2, [here, one, here, other, libc::RENAME_EXCHANGE.into()])
}

/// Whether the call came past all that could have refused it: an error of its arguments is no refusal.
pub(crate) fn reaches(number: libc::c_long, args: [u64; 5], what: &str) -> Attempt {
    match call(number, args) {
        Err(error @ (Errno::EPERM | Errno::EACCES | Errno::ENOSYS)) => held(format_args!("{what}: {error}")),
        Err(error) => broke(format_args!("{what} was looked at: {error}")),
        Ok(_) => broke(format_args!("{what} was done")),
    }
}

/// Each of them, with all that succeeded; else what stopped the last.
pub(crate) fn each(attempts: impl IntoIterator<Item = Attempt>) -> Attempt {
    let mut last = held("there was nothing to try");
    let mut successes = Vec::new();
    for attempt in attempts {
        match attempt {
            Attempt::Broke(what) => successes.push(what),
            held @ Attempt::Held(_) => last = held,
        }
    }
    if successes.is_empty() {
        last
    } else {
        broke(successes.join(", "))
    }
}

/// Does it in a child, so that what comes of it is gone with that.
pub(crate) fn in_child<T>(work: impl FnOnce() -> nix::Result<T>) -> Result<(), String> {
    let child = child(|| leave(work().map_or_else(|error| error as i32, |_| 0)));
    match child.and_then(end_of) {
        Ok(WaitStatus::Exited(_, 0)) => Ok(()),
        Ok(WaitStatus::Exited(_, errno)) => Err(Errno::from_raw(errno).to_string()),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

/// A process whose parents are gone, in a session of its own.
pub(crate) fn daemon(work: impl FnOnce()) -> nix::Result<()> {
    let middle = child(|| {
        ignore(setsid());
        ignore(child(work));
    })?;
    end_of(middle).map(drop)
}

/// Numbers that other processes may have, whether or not they can be seen: all but our own and our parent's,
/// which is the driver's init.
pub(crate) fn others() -> impl Iterator<Item = Pid> {
    let known = [getpid(), getppid()];
    (1..=PIDS).map(Pid::from_raw).filter(move |pid| !known.contains(pid))
}

/// Opens files for writing, and writes nothing.
pub(crate) fn opens_for_writing<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Attempt {
    any(paths.into_iter().map(|path| opens(path, OpenOptions::new().write(true))))
}

/// Opens one, without waiting for whoever may be behind it.
pub(crate) fn opens(path: impl AsRef<Path>, options: &mut OpenOptions) -> Attempt {
    let path = path.as_ref().display();
    match options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path.to_string()) {
        Ok(_) => broke(format_args!("opened {path}")),
        Err(error) => held(format_args!("{path}: {error}")),
    }
}

/// The files of these names at most `depth` directories below `place`.
pub(crate) fn named(place: &Path, names: &[&str], depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if names.iter().any(|name| entry.file_name() == *name) {
            found.push(entry.path());
        } else if is_directory && depth > 0 {
            found.extend(named(&entry.path(), names, depth - 1));
        }
    }
    found
}
