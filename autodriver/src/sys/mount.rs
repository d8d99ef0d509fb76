//! The mount API of Linux 5.2 and mount_setattr(2) of 5.12: mounts as descriptors.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sched::{unshare, CloneFlags};

use super::check;

/// Attributes of mount_setattr(2) and fsmount(2).
pub mod attr {
    /// No writing.
    pub const RDONLY: u64 = 0x1;
    /// Setuid bits mean nothing.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes mean nothing.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// What everything has that the job is only shown.
    pub const FROZEN: u64 = RDONLY | NOSUID | NODEV;

    /// Their names, as mount(8) writes them.
    pub fn names(attributes: u64) -> Vec<&'static str> {
        let access = if attributes & RDONLY == 0 { "rw" } else { "ro" };
        let others = [(NOSUID, "nosuid"), (NODEV, "nodev"), (NOEXEC, "noexec")];
        let set = others.into_iter().filter(|(bit, _)| attributes & bit != 0).map(|(_, name)| name);
        [access].into_iter().chain(set).collect()
    }
}

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSCONFIG_CMD_RECONFIGURE: libc::c_uint = 7;
const FSPICK_EMPTY_PATH: libc::c_uint = 8;
const CLOEXEC: libc::c_uint = 1;

fn owned(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = check(result)?;
    // SAFETY: a non-negative result of the calls below is a new descriptor, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// Makes every mount of this mount namespace private, so that none that follows is seen in another:
/// mount_namespaces(7).
pub fn make_private() -> Result<(), Errno> {
    let none = None::<&str>;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
}

/// Enters a mount namespace of its own, whose mounts nobody else sees: unshare(2).
pub fn enter_namespace() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    make_private()
}

/// A file system being configured: fsopen(2) or fspick(2).
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// fsopen(2): a new instance of `fstype`.
    pub fn open(fstype: &CStr) -> Result<FsContext, Errno> {
        // SAFETY: `fstype` is a C string.
        owned(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), CLOEXEC) }).map(FsContext)
    }

    /// fspick(2): the instance mounted at `mount`, to be reconfigured.
    pub fn pick(mount: BorrowedFd<'_>) -> Result<FsContext, Errno> {
        let empty = c"".as_ptr();
        // SAFETY: the empty path is a C string.
        let fd =
            unsafe { libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), empty, CLOEXEC | FSPICK_EMPTY_PATH) };
        owned(fd).map(FsContext)
    }

    /// Sets `key=value`.
    pub fn set(&self, key: &CStr, value: &CStr) -> Result<(), Errno> {
        let (key, value) = (key.as_ptr(), value.as_ptr());
        // SAFETY: both are C strings that outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), FSCONFIG_SET_STRING, key, value, 0)
        };
        check(result).map(drop)
    }

    fn command(&self, command: libc::c_uint) -> Result<(), Errno> {
        let null = std::ptr::null::<libc::c_char>();
        // SAFETY: commands take neither key nor value.
        let result = unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, null, null, 0) };
        check(result).map(drop)
    }

    /// Applies the settings to a picked instance.
    pub fn reconfigure(self) -> Result<(), Errno> {
        self.command(FSCONFIG_CMD_RECONFIGURE)
    }

    /// Makes the instance and a mount of it that is attached nowhere.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd, Errno> {
        self.command(FSCONFIG_CMD_CREATE)?;
        // SAFETY: no pointers are passed.
        owned(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), CLOEXEC, attributes) })
    }
}

/// open_tree(2) with `OPEN_TREE_CLONE`: a new mount of what is at `path`, attached nowhere.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is a C string.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// move_mount(2): attaches the mount `from` at `path`, relative to `to`; an empty path means
/// `to` itself.
pub fn attach(from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let mut flags = MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MOVE_MOUNT_T_EMPTY_PATH;
    }
    let empty = c"".as_ptr();
    // SAFETY: both paths are C strings.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, from.as_raw_fd(), empty, to.as_raw_fd(), path.as_ptr(), flags)
    };
    check(result).map(drop)
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// mount_setattr(2): adds attributes to a mount, and with `recursive` to all below it.
pub fn set_attributes(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> Result<(), Errno> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let attr = MountAttr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let (fd, empty) = (mount.as_raw_fd(), c"".as_ptr());
    // SAFETY: the path is a C string; `attr` has the layout of struct mount_attr and its size.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, empty, flags, &raw const attr, size_of::<MountAttr>())
    };
    check(result).map(drop)
}
