//! Descriptors: close_range(2), those inherited by number, and files read to their end.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{openat, OFlag};
use nix::sys::stat::Mode;

use super::check;

/// Closes every descriptor from `first` to `last`.
fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: the caller's OwnedFds in that range are leaked deliberately: this is called only in
    // processes that own none of them any more (init, workers).
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Closes every descriptor but these.
pub fn close_all_but(keep: &mut [RawFd]) -> Result<(), Errno> {
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        let fd = u32::try_from(*fd).map_err(|_| Errno::EBADF)?;
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

/// Marks every descriptor from `first` on as close-on-exec.
pub fn cloexec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: only flags change.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .map(drop)
}

/// Duplicates a descriptor that was inherited under a known number (`--report fd:N`, the wire),
/// to a high number and close-on-exec.
///
/// # Errors
/// EBADF if it is not open.
pub fn duplicate(number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_DUPFD_CLOEXEC changes nothing about `number`.
    let fd = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) }.into())?;
    // SAFETY: a non-negative result is a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// Makes a call again for as long as a signal interrupts it: signal(7).
///
/// # Errors
/// Its other errors.
pub fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

/// All that is in a file whose size says nothing, as those of /proc and of cgroups, without asking for it.
///
/// # Errors
/// Those of open(2) and read(2).
pub fn read_file(dir: BorrowedFd<'_>, path: &str) -> Result<Vec<u8>, Errno> {
    let file = uninterrupted(|| openat(dir, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()))?;
    let (mut bytes, mut filled) = (vec![0; 4096], 0);
    loop {
        if filled == bytes.len() {
            bytes.resize(2 * filled, 0);
        }
        match uninterrupted(|| nix::unistd::read(&file, &mut bytes[filled..]))? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Locks a file until the last descriptor of this opening is closed: flock(2). Unlike nix's guard it does not unlock
/// first, which panics where it fails.
///
/// # Errors
/// EWOULDBLOCK if somebody else has it locked.
pub fn lock(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: the call takes numbers.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }.into()).map(drop)
}

/// Takes over a descriptor that came in a message: unix(7), SCM_RIGHTS.
pub fn received(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel made it for the receiver of the message, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
