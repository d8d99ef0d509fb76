//! The machine's files: the job sees a root of its own, the machine's directories read-only below
//! it, and its storage where it may write.
//!
//! The new root is put together beside the old one and swapped in by pivot_root(2), not chroot(2):
//! what is not in it cannot be reached by any path. All of it is read-only before the writable
//! parts are attached, so nothing is ever writable by omission. Needs CAP_SYS_ADMIN.
//!
//! The mount that the storage itself is goes away with the old root, if no other job needs it: the
//! driver keeps what it has open of it. Were it to close the last reference to a mount of its own,
//! the kernel would make it wait for an RCU grace period (namespace_unlock).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::mount::{umount2, MntFlags};
use nix::sys::stat::stat;
use nix::unistd::{chdir, fchdir, pivot_root};

use super::prepare::{Entry, MountKind, Prepared};
use super::{on, Failed};
use crate::sys::mount::{attach, attr, clone_tree, make_private, set_attributes, FsContext};

/// Acts that are not about one entry of the mount table come after its indices.
pub(super) const ACTS: [&str; 5] = [
    "make the mounts private",
    "attach the job's root",
    "make the job's root read-only",
    "pivot_root into the job's root",
    "let go of the machine's root",
];

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    let Some(mounts) = &prepared.mounts else { return Ok(()) };
    let given = &prepared.furniture;
    let act = |act: usize| on(mounts.len() + act);
    let frame = given.frame.as_ref().ok_or(Errno::EBADF).map_err(act(1))?.as_fd();
    make_private().map_err(act(0))?;
    let sources = clone_sources(mounts)?;
    // Onto "/": there is a directory at that path on every machine. What is not on the root itself goes with
    // it, so that it need not be let go by itself.
    if let Some(storage) = &given.storage {
        let attached = attach(storage.as_fd(), AT_FDCWD, c"/proc");
        attached.or_else(|_| attach(storage.as_fd(), AT_FDCWD, c"/")).map_err(act(1))?;
    }
    attach(frame, AT_FDCWD, c"/").map_err(act(1))?;
    let mut frozen = false;
    for (index, (entry, source)) in mounts.iter().zip(&sources).enumerate() {
        if entry.kind.keeps_attributes() && !frozen {
            set_attributes(frame, attr::FROZEN, true).map_err(act(2))?;
            frozen = true;
        }
        let made;
        let source = match (&entry.kind, source) {
            (MountKind::Proc | MountKind::Pts, _) => {
                made = make(&entry.kind).map_err(on(index))?;
                made.as_fd()
            }
            (MountKind::Part { part, .. }, _) => {
                given.parts.get(*part).ok_or(Errno::EBADF).map_err(on(index))?.as_fd()
            }
            (_, Some(source)) => source.as_fd(),
            (_, None) => return Err(on(index)(Errno::ENOENT)),
        };
        match &entry.kind {
            MountKind::Part { .. } | MountKind::Device { .. } => {
                set_attributes(source, entry.kind.attributes(), false)
            }
            MountKind::Bind { .. } => set_attributes(source, entry.kind.attributes(), true),
            // Made with them, or given them with the root.
            MountKind::Machine { .. } | MountKind::Proc | MountKind::Pts => Ok(()),
        }
        .map_err(on(index))?;
        attach(source, frame, &entry.at).map_err(on(index))?;
    }
    swap_root(frame).map_err(act(3))
}

/// Lets go of the machine's root, which stands on the job's: no path of the job's leads to it but "/..".
/// The kernel makes whoever does this wait for an RCU grace period, so that init does it while the job, which
/// waits for init before it executes anything, does what is before that.
pub(super) fn let_go(prepared: &Prepared) -> Result<(), Failed> {
    let Some(mounts) = &prepared.mounts else { return Ok(()) };
    let_go_of_root().map_err(on(mounts.len() + 4))
}

/// Takes what the machine gives before the new root hides it.
fn clone_sources(mounts: &[Entry]) -> Result<Vec<Option<OwnedFd>>, Failed> {
    let clone = |(index, kind): (usize, &MountKind)| match kind {
        MountKind::Machine { source, recursive } => {
            clone_tree(AT_FDCWD, source, *recursive).map(Some).map_err(on(index))
        }
        MountKind::Device { source } => clone_tree(AT_FDCWD, source, false).map(Some).map_err(on(index)),
        MountKind::Bind { source, .. } => clone_tree(AT_FDCWD, source, true).map(Some).map_err(on(index)),
        MountKind::Part { .. } | MountKind::Proc | MountKind::Pts => Ok(None),
    };
    mounts.iter().map(|entry| &entry.kind).enumerate().map(clone).collect()
}

/// A file system of the job's own.
fn make(kind: &MountKind) -> Result<OwnedFd, Errno> {
    let (fstype, options) = kind.made_with().ok_or(Errno::EINVAL)?;
    let context = FsContext::open(fstype)?;
    for (key, value) in options {
        context.set(key, value)?;
    }
    context.mount(kind.attributes())
}

/// pivot_root(2) with both names the same: the old root ends up on top of the new one.
fn swap_root(frame: BorrowedFd<'_>) -> Result<(), Errno> {
    fchdir(frame)?;
    pivot_root(".", ".")
}

/// "." is what stands on top: the old root, or before it the storage, if that stands on the old root itself.
fn let_go_of_root() -> Result<(), Errno> {
    for _ in 0..2 {
        umount2(".", MntFlags::MNT_DETACH)?;
        // Read back: whatever still stood on the root would be above it.
        let (root, above) = (stat("/")?, stat("/..")?);
        if (root.st_dev, root.st_ino) == (above.st_dev, above.st_ino) {
            return chdir("/");
        }
    }
    Err(Errno::EBUSY)
}
