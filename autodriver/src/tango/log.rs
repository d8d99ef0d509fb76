//! `output.log` in the home of the account: the output while it comes, for whoever asks for a part of it
//! before the end. Written by the driver, in a directory where only the driver removes what is the
//! driver's ([`crate::sandbox::home`]); the job's account cannot read it.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{openat, OFlag};
use nix::sys::stat::{fchmod, Mode};
use nix::unistd::{ftruncate, write};

use crate::sandbox::home::Home;
use crate::sandbox::sweep::remove::remove_tree;
use crate::sys::inherited::set_access_list;

/// Its name.
pub(super) const NAME: &str = "output.log";
const C_NAME: &std::ffi::CStr = c"output.log";
/// Bytes at most: what is asked for is its beginning.
const MOST: u64 = 64 << 20;

/// The file.
#[derive(Debug)]
pub(super) struct Log {
    file: OwnedFd,
    written: u64,
    failed: Option<Errno>,
}

impl Log {
    /// Makes it anew; `uid` is not to read it.
    pub(super) fn create(home: &Home, uid: u32) -> Result<Log, Errno> {
        if let Some(why) = remove(home) {
            return Err(why);
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let everybody = Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP | Mode::S_IROTH;
        let file = openat(home.directory(), C_NAME, flags, everybody)?;
        fchmod(&file, everybody)?;
        // Not every file system has such lists. Then a job can read what it has written.
        let _ = set_access_list(file.as_fd(), &without(uid));
        Ok(Log { file, written: 0, failed: None })
    }

    /// To be read by another process.
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Adds to it, until it is full, or the disk.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let room = usize::try_from(MOST - self.written).unwrap_or(0);
        let mut rest = &bytes[..bytes.len().min(room)];
        while !rest.is_empty() && self.failed.is_none() {
            match write(&self.file, rest) {
                Ok(count) => {
                    self.written += count as u64;
                    rest = &rest[count..];
                }
                Err(Errno::EINTR) => {}
                Err(errno) => self.failed = Some(errno),
            }
        }
    }

    /// Why not all of it is in it, unless it is full.
    pub(super) fn failed(&self) -> Option<Errno> {
        self.failed
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // The job may have made another name for it.
        let _ = ftruncate(&self.file, 0);
    }
}

/// Removes it, or whatever has its name; why not, if not.
pub(super) fn remove(home: &Home) -> Option<Errno> {
    remove_tree(home.directory(), C_NAME, None).first().map(|left| left.why)
}

/// An access list as the kernel takes it, of mode 0644 but for one uid, which has no access:
/// include/uapi/linux/posix_acl_xattr.h.
fn without(uid: u32) -> Vec<u8> {
    const VERSION: u32 = 2;
    const NONE: u32 = u32::MAX;
    const READ: u16 = 4;
    const WRITE: u16 = 2;
    // Owner, a user, the group, the mask, others: in this order.
    let entries: [(u16, u16, u32); 5] = [
        (0x01, READ | WRITE, NONE),
        (0x02, 0, uid),
        (0x04, READ, NONE),
        (0x10, READ, NONE),
        (0x20, READ, NONE),
    ];
    let entry = |(tag, permissions, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [VERSION.to_le_bytes().to_vec()].into_iter().chain(entries.map(entry)).flatten().collect()
}
