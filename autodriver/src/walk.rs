//! Directories that a hostile program made: opened without following a link, leaving the mount, or
//! being kept out by a mode.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{openat, openat2, OFlag, OpenHow, ResolveFlag, AT_FDCWD};
use nix::sys::stat::{fchmodat, fstat, FchmodatFlags, FileStat, Mode, SFlag};

/// How many descriptors a walk may hold, one for each level; below that it has to do without.
pub const LEVELS: usize = 64;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_CLOEXEC);

/// What the owner needs to see what is in a directory.
pub const TO_LOOK: Mode = Mode::S_IRUSR.union(Mode::S_IXUSR);
/// What the owner needs to change what is in a directory, and to move it.
pub const TO_CHANGE: Mode = Mode::S_IRWXU;

/// A directory as fstat(2) shows it.
pub fn shows_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

/// Opens a directory by its name in another: EXDEV where something is mounted on it, ELOOP or
/// ENOTDIR where it is no directory.
///
/// # Errors
/// Those of openat2(2).
pub fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    open_with(parent, name, DIRECTORY)
}

fn open_with(parent: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
    openat2(parent, name, OpenHow::new().flags(flags).resolve(resolve))
}

/// As [`open`], after giving the owner what is missing of `needed`. If that changed the mode, the
/// one from before comes with it.
///
/// # Errors
/// Those of openat2(2) and chmod(2).
pub fn open_forced(
    parent: BorrowedFd<'_>,
    name: &CStr,
    needed: Mode,
) -> Result<(OwnedFd, Option<Mode>), Errno> {
    match open(parent, name) {
        Ok(directory) => {
            let before = allow_owner(directory.as_fd(), needed)?;
            Ok((directory, before))
        }
        Err(Errno::EACCES) => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            reopen_forced(open_with(parent, name, flags)?.as_fd(), needed)
        }
        Err(errno) => Err(errno),
    }
}

/// Only the owner and root may, so that this does nothing to anybody else's.
fn allow_owner(directory: BorrowedFd<'_>, needed: Mode) -> Result<Option<Mode>, Errno> {
    let before = Mode::from_bits_truncate(fstat(directory)?.st_mode);
    if before.contains(needed) {
        return Ok(None);
    }
    set_mode(directory, before | needed)?;
    Ok(Some(before))
}

/// chmod(2) of exactly what the descriptor is, even one of O_PATH: by name, a link could have
/// taken its place.
///
/// # Errors
/// Those of chmod(2).
pub fn set_mode(file: BorrowedFd<'_>, mode: Mode) -> Result<(), Errno> {
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    fchmodat(AT_FDCWD, name.as_str(), mode, FchmodatFlags::FollowSymlink)
}

/// The same directory once more, with a position of its own.
///
/// # Errors
/// Those of open(2).
pub fn reopen(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    openat(directory, c".", DIRECTORY, Mode::empty())
}

/// As [`reopen`], after giving the owner what is missing of `needed`; see [`open_forced`].
///
/// # Errors
/// Those of open(2) and chmod(2).
pub fn reopen_forced(directory: BorrowedFd<'_>, needed: Mode) -> Result<(OwnedFd, Option<Mode>), Errno> {
    let before = allow_owner(directory, needed)?;
    Ok((reopen(directory)?, before))
}

/// The directory above.
///
/// # Errors
/// Those of open(2).
pub fn parent(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    openat(directory, c"..", DIRECTORY, Mode::empty())
}

/// The names in a directory, at most `most`, with their type where the file system tells it.
///
/// # Errors
/// Those of reading it.
pub fn names(directory: BorrowedFd<'_>, most: usize) -> Result<Vec<(CString, Option<Type>)>, Errno> {
    let mut entries = Dir::from_fd(reopen(directory)?)?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if names.len() >= most {
            break;
        }
        names.push((name.to_owned(), entry.file_type()));
    }
    Ok(names)
}
