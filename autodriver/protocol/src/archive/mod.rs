//! Trees as tar streams, by rules that are the same on both sides: the host trusts the guest
//! no more than the guest trusts the job.
//!
//! Unpacking accepts regular files, directories, and symbolic links that stay inside. It never
//! follows a link (every open is openat2(2) with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`),
//! never makes a device or a hard link, refuses absolute names and `..`, puts files in place
//! by rename only when they are complete, and counts entries and bytes as they arrive.
//! Packing takes what is a regular file when it is opened, never blocks on a FIFO, and skips names that
//! an unpacker would refuse, and the one that it keeps for files under way, `.autodriver.part`.

pub mod globs;
pub mod pack;
pub mod unpack;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{openat, openat2, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

pub use pack::{pack_file, pack_tree, Selection};
pub use unpack::{relative, unpack, unpack_as, Accept, Modes};

/// What one archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Most bytes of content.
    pub bytes: u64,
}

/// Longest name, link target or pax header, in bytes.
const NAME_MAX: u64 = 4096;
/// Most directories above a file.
const DEPTH_MAX: usize = 128;
const BUFFER: usize = 256 << 10;

/// Why a transfer failed.
#[derive(Debug)]
pub enum ArchiveError {
    /// The archive breaks the rules; names the entry.
    Refused {
        /// The entry's name.
        name: String,
        /// Which rule.
        why: &'static str,
    },
    /// A limit was passed.
    TooMuch {
        /// `entries` or `bytes`.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A system call failed on an entry.
    Failed {
        /// What was being done.
        act: &'static str,
        /// The entry's name.
        name: String,
        /// Why it failed.
        errno: Errno,
    },
    /// The stream ended early, is no tar stream, or could not be read or written.
    Stream(io::Error),
    /// A pattern of `get` or `--out` was refused.
    Pattern(String),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveError::Refused { name, why } => {
                write!(f, "archive entry '{}': {why}", name.escape_debug())
            }
            ArchiveError::TooMuch { what, limit } => write!(f, "archive of more than {limit} {what}"),
            ArchiveError::Failed { act, name, errno } => {
                write!(f, "cannot {act} '{}': {} ({})", name.escape_debug(), errno_name(*errno), errno.desc())
            }
            ArchiveError::Stream(error) => write!(f, "archive stream: {error}"),
            ArchiveError::Pattern(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ArchiveError {}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        ArchiveError::Stream(error)
    }
}

/// The symbolic name of an errno, for example `EPERM`.
pub fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}

/// The errno that an I/O error carries; 0 where it carries none.
pub fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn failed(act: &'static str, name: &Path) -> impl FnOnce(Errno) -> ArchiveError {
    let name = lossy(name);
    move |errno| ArchiveError::Failed { act, name, errno }
}

fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let beneath =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(dir, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(beneath))
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

/// Opens a directory of the caller's own, following links as the caller would expect.
///
/// # Errors
/// Those of open(2).
pub fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(nix::fcntl::AT_FDCWD, path, DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Whether a link at `path` with `target` leads, by its text, to somewhere inside the tree.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let start = path.components().count().saturating_sub(1);
    let walked = target.components().try_fold(start, |depth, component| match component {
        Component::Normal(_) => Some(depth + 1),
        Component::ParentDir => depth.checked_sub(1),
        Component::CurDir => Some(depth),
        Component::RootDir | Component::Prefix(_) => None,
    });
    walked.is_some()
}
