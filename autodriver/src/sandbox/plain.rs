//! The storage of a job that can be given no mount: a directory of the machine's `/tmp`. Landlock
//! says that the job may write nowhere else; how much it writes the driver has to look at.
//!
//! The directory itself is the driver's, so that the job can neither rename nor replace what is in
//! it, and other jobs can go through it only to what is theirs. It is locked (flock(2)) as long as
//! its driver lives: one that is not is a killed driver's.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, AT_FDCWD};
use nix::sys::stat::{mkdirat, Mode};
use nix::unistd::{fchownat, Gid, Uid};

use super::storage::{make_directory, open_directory};
use super::sweep::remove::{remove_tree, Left};
use crate::fault::{Fault, Step};
use crate::sys::fd::lock;

/// A directory that is a job's storage; removed when dropped.
#[derive(Debug)]
pub(super) struct Plain {
    /// Where it is.
    pub(super) path: String,
    /// The temporary directory in it.
    pub(super) tmp: OwnedFd,
    _lock: OwnedFd,
}

impl Plain {
    /// Makes it, and opens the job directory in it. `owner` is the job's uid, where that is not ours.
    pub(super) fn create(path: String, owner: Option<u32>) -> Result<(Plain, OwnedFd), Fault> {
        let fault = |what: String| move |errno| Fault::new(Step::Storage, what, errno);
        let make = format!("make the job's storage {path}");
        // Others go through it, to what is theirs; they cannot list it.
        let mode = Mode::from_bits_truncate(if owner.is_some() { 0o711 } else { 0o700 });
        // A directory that is there already may be a trap of another user: /tmp is everybody's.
        mkdirat(AT_FDCWD, path.as_str(), mode).map_err(fault(make))?;
        Plain::fill(&path, owner).inspect_err(|_| {
            remove(&path);
        })
    }

    fn fill(path: &str, owner: Option<u32>) -> Result<(Plain, OwnedFd), Fault> {
        let fault = |what: String| move |errno| Fault::new(Step::Storage, what, errno);
        let make = format!("make the job's storage {path}");
        let top = open_directory(AT_FDCWD, path).map_err(fault(make.clone()))?;
        lock(top.as_fd()).map_err(fault(format!("lock the job's storage {path}")))?;
        let own = |name: &str| -> Result<OwnedFd, Errno> {
            make_directory(top.as_fd(), name, 0o700)?;
            if let Some(id) = owner {
                let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
                fchownat(top.as_fd(), name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            }
            open_directory(top.as_fd(), name)
        };
        let (job, tmp) = (own("job").map_err(fault(make.clone()))?, own("tmp").map_err(fault(make))?);
        Ok((Plain { path: path.to_owned(), tmp, _lock: top }, job))
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes such a directory with all that is in it; what could not be removed.
pub fn remove(path: &str) -> Vec<Left> {
    // From the directory it is in: what is below may not lead to another mount, `/tmp` may be one.
    let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
    let Ok(name) = CString::new(name) else { return Vec::new() };
    match open_directory(AT_FDCWD, if above.is_empty() { "/" } else { above }) {
        Ok(directory) => remove_tree(directory.as_fd(), &name, None),
        Err(why) => vec![Left { path: path.into(), why }],
    }
}
