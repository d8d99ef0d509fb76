//! All that a job can write, on one tmpfs of the size of its disk limit: the job directory,
//! `/tmp`, `/var/tmp` and `/dev/shm`, and the bare frame of the root file system around them.
//!
//! The tmpfs is mounted nowhere. The driver holds it by a descriptor (fsmount(2)), and each job
//! gets clones of parts of it in its own mount namespace. So it appears in no mount table but the
//! job's, and when driver and job are gone, however they went, so is everything on it.

use std::cell::OnceCell;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{openat, OFlag, AT_FDCWD};
use nix::mount::{umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::sys::stat::{fchmod, makedev, mkdirat, mknodat, Mode, SFlag};
use nix::unistd::{fchownat, symlinkat, unlinkat, Gid, Uid, UnlinkatFlags};

use crate::fault::{Fault, Step};
use crate::sys::mount::{self, FsContext};

/// Directories of the storage: name, and mode.
const DIRECTORIES: [(&str, u32); 7] = [
    ("root", 0o755),
    ("job", 0o755),
    ("tmp", 0o1777),
    ("var_tmp", 0o1777),
    ("shm", 0o1777),
    ("dev", 0o755),
    ("etc", 0o755),
];

/// Device nodes of `/dev`: name, major, minor (Documentation/admin-guide/devices.txt). `tty` is
/// harmless: the job has no controlling terminal.
const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Symbolic links of `/dev`.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The storage of one job.
#[derive(Debug)]
pub struct Storage {
    /// On kernels where it has to be attached. First, so that it is unmounted before it is let go.
    attached: OnceCell<Attached>,
    mount: OwnedFd,
    job: OwnedFd,
    root: OwnedFd,
    uid: u32,
}

/// How much of it is used, and how much there is.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Bytes used.
    pub bytes: u64,
    /// Bytes left.
    pub bytes_left: u64,
    /// Files and directories used.
    pub inodes: u64,
    /// Files and directories left.
    pub inodes_left: u64,
}

fn text(number: u64) -> CString {
    CString::new(number.to_string()).unwrap_or_default()
}

impl Storage {
    /// Makes the storage for the job of `uid`, without a limit of its own yet.
    ///
    /// # Errors
    /// Which part could not be made, and why.
    pub fn create(uid: u32) -> Result<Storage, Fault> {
        let fault = |what: &str| {
            let object = format!("make the job's storage: {what}");
            move |errno| Fault::new(Step::Storage, object, errno)
        };
        let context = FsContext::open(c"tmpfs").map_err(fault("fsopen tmpfs"))?;
        let set = |key: &CStr, value: &CStr| context.set(key, value);
        set(c"mode", c"0755").map_err(fault("mode"))?;
        set(c"source", c"autodriver").map_err(fault("source"))?;
        let mount = context.mount(mount::attr::NOSUID).map_err(fault("fsmount"))?;
        for (name, mode) in DIRECTORIES {
            make_directory(mount.as_fd(), name, mode).map_err(fault(name))?;
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
        fchownat(&mount, "job", Some(uid), Some(gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(fault("chown"))?;
        let job = open_directory(mount.as_fd(), "job").map_err(fault("job"))?;
        let root = open_directory(mount.as_fd(), "root").map_err(fault("root"))?;
        let storage = Storage { mount, job, root, uid: uid.as_raw(), attached: OnceCell::new() };
        storage.devices().map_err(fault("device nodes"))?;
        Ok(storage)
    }

    fn devices(&self) -> Result<(), Errno> {
        let dev = open_directory(self.mount.as_fd(), "dev")?;
        for (name, major, minor) in DEVICES {
            mknodat(&dev, name, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        }
        for (name, target) in DEVICE_LINKS {
            symlinkat(target, &dev, name)?;
        }
        for name in ["shm", "pts"] {
            make_directory(dev.as_fd(), name, 0o755)?;
        }
        Ok(())
    }

    /// The job directory.
    pub fn job(&self) -> BorrowedFd<'_> {
        self.job.as_fd()
    }

    /// The mount itself, where it can be given away: where it is attached nowhere.
    pub fn detached(&self) -> Option<BorrowedFd<'_>> {
        self.attached.get().is_none().then(|| self.mount.as_fd())
    }

    /// A new mount of one part of it, attached nowhere, to be given to one job.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn part(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        let clone = || mount::clone_tree(self.mount.as_fd(), name, false);
        match clone() {
            // Not asked for by a clone that is thrown away: letting go of a mount waits for RCU.
            Err(Errno::EINVAL) if self.attached.get().is_none() => {
                let attached = attach_privately(&self.mount, self.uid)?;
                self.attached.get_or_init(|| attached);
                clone()
            }
            result => result,
        }
    }

    /// The null device, of the job's own `/dev`.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn null(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.mount, "dev/null", flags, Mode::empty())
    }

    /// Writes a file below `etc`, for the job to read.
    ///
    /// # Errors
    /// Those of open(2) and write(2).
    pub fn write_etc(&self, name: &str, content: &[u8]) -> Result<(), Errno> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let etc = open_directory(self.mount.as_fd(), "etc")?;
        let file = openat(&etc, name, flags, Mode::from_bits_truncate(0o644))?;
        fchmod(&file, Mode::from_bits_truncate(0o644))?;
        let mut rest = content;
        while !rest.is_empty() {
            rest = &rest[nix::unistd::write(&file, rest)?..];
        }
        Ok(())
    }

    /// Makes a directory or an empty file below a part (`root` is the frame), as a place to mount on.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2).
    pub fn mount_point(&self, part: &str, path: &Path, directory: bool) -> Result<(), Errno> {
        let (opened, mut next);
        let mut at = self.root.as_fd();
        if part != "root" {
            opened = open_directory(self.mount.as_fd(), part)?;
            at = opened.as_fd();
        }
        let parts: Vec<_> = path.components().map(|part| Path::new(part.as_os_str())).collect();
        let Some((last, above)) = parts.split_last() else { return Err(Errno::EINVAL) };
        let make = |at: BorrowedFd<'_>, name: &Path| match mkdirat(at, name, Mode::from_bits_truncate(0o755))
        {
            Err(Errno::EEXIST) => Ok(()),
            made => made,
        };
        for name in above {
            make(at, name)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            next = openat(at, *name, flags, Mode::empty())?;
            at = next.as_fd();
        }
        if directory {
            return make(at, last);
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(at, *last, flags, Mode::from_bits_truncate(0o644)).map(drop)
    }

    /// Makes a symbolic link in the frame of the root.
    ///
    /// # Errors
    /// Those of symlink(2).
    pub fn link(&self, name: &Path, target: &Path) -> Result<(), Errno> {
        match symlinkat(target, &self.root, name) {
            // From an earlier job of the same slot.
            Err(Errno::EEXIST) => Ok(()),
            made => made,
        }
    }

    /// Shows the storage on the machine itself, to a job that has no mount namespace of its own.
    ///
    /// # Errors
    /// Why it could not be mounted.
    pub fn show(&self, uid: u32) -> Result<Attached, Fault> {
        let place = crate::uids::shown_point(uid);
        let fault = |errno| Fault::new(Step::Storage, format!("mount the job's storage on {place}"), errno);
        let mount = self.part(c"").map_err(fault)?;
        mount::set_attributes(mount.as_fd(), mount::attr::NOSUID | mount::attr::NODEV, false)
            .map_err(fault)?;
        // A directory that is there already may be a trap of another user: /tmp is everybody's.
        mkdirat(AT_FDCWD, place.as_str(), Mode::from_bits_truncate(0o755)).map_err(fault)?;
        Attached::attach(mount.as_fd(), place.clone()).map_err(fault)
    }

    /// What is used and left now.
    pub fn usage(&self) -> Option<Use> {
        let stat = nix::sys::statfs::fstatfs(&self.mount).ok()?;
        let block = u64::try_from(stat.block_size()).ok()?;
        Some(Use {
            bytes: (stat.blocks() - stat.blocks_free()) * block,
            bytes_left: stat.blocks_free() * block,
            inodes: stat.files() - stat.files_free(),
            inodes_left: stat.files_free(),
        })
    }

    /// Makes sure that the frame of the next job finds room, whatever the last one filled.
    ///
    /// # Errors
    /// As [`Storage::limit`].
    pub fn make_room(&self) -> Result<(), Fault> {
        match self.usage() {
            Some(left) if left.bytes_left >= FRAME_BYTES && left.inodes_left >= FRAME_INODES => Ok(()),
            _ => self.limit(FRAME_BYTES, FRAME_INODES),
        }
    }

    /// Lets the job write `bytes` and make `inodes` beyond what is there now; 0 means no limit.
    ///
    /// # Errors
    /// Why the tmpfs could not be reconfigured.
    pub fn limit(&self, bytes: u64, inodes: u64) -> Result<(), Fault> {
        let fault =
            |errno| Fault::new(Step::Storage, format!("limit the job's storage to {bytes} bytes"), errno);
        let used = self.usage().ok_or(Errno::EIO).map_err(fault)?;
        // Not the 0 of tmpfs: from that there is no way back to a limit.
        let sum = |limit: u64, used: u64| text(if limit == 0 { UNLIMITED } else { limit + used });
        let context = FsContext::pick(self.mount.as_fd()).map_err(fault)?;
        context.set(c"size", &sum(bytes, used.bytes)).map_err(fault)?;
        context.set(c"nr_inodes", &sum(inodes, used.inodes)).map_err(fault)?;
        context.reconfigure().map_err(fault)
    }
}

/// Before Linux 6.15 a mount can be cloned only where it is attached. Then the driver takes a mount
/// namespace of its own, which no other process of the machine sees and which dies with it.
fn attach_privately(mount: &OwnedFd, uid: u32) -> Result<Attached, Errno> {
    static PRIVATE: AtomicBool = AtomicBool::new(false);
    if !PRIVATE.swap(true, Ordering::Relaxed) {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    }
    let place = crate::uids::mount_point(uid);
    match mkdirat(AT_FDCWD, place.as_str(), Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    Attached::attach(mount.as_fd(), place)
}

/// The storage, attached at a path; unmounted when dropped.
#[derive(Debug)]
pub struct Attached(pub String);

impl Attached {
    /// Attaches `mount` at `place`, a directory that is there.
    fn attach(mount: BorrowedFd<'_>, place: String) -> Result<Attached, Errno> {
        let path = CString::new(place.clone()).map_err(|_| Errno::EINVAL)?;
        let attached = Attached(place);
        mount::attach(mount, AT_FDCWD, &path)?;
        Ok(attached)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = umount2(self.0.as_str(), MntFlags::MNT_DETACH);
        let _ = unlinkat(AT_FDCWD, self.0.as_str(), UnlinkatFlags::RemoveDir);
    }
}

/// More than the frame ever takes.
const FRAME_BYTES: u64 = 1 << 20;
/// As [`FRAME_BYTES`].
const FRAME_INODES: u64 = 4096;
/// More than any machine has.
const UNLIMITED: u64 = 1 << 50;

fn make_directory(at: BorrowedFd<'_>, name: &str, mode: u32) -> Result<(), Errno> {
    mkdirat(at, name, Mode::from_bits_truncate(mode))
}

fn open_directory(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(
        at,
        name,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}
