//! All that a job can write, on one tmpfs of the size of its disk limit: the job directory,
//! `/tmp`, `/var/tmp` and `/dev/shm`, and the bare frame of the root file system around them.
//!
//! The tmpfs is mounted nowhere. The driver holds it by a descriptor (fsmount(2)), and each job
//! gets clones of parts of it in its own mount namespace. So it appears in no mount table but the
//! job's, and when driver and job are gone, however they went, so is everything on it.
//!
//! Where nothing can be mounted it is a directory of the machine's `/tmp`, with the job directory and
//! a temporary one below it that are the job's alone ([`super::plain`]); or, of an account that is there
//! for jobs, its home ([`super::home`]) and where everybody may write.

use std::cell::OnceCell;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{openat, OFlag, AT_FDCWD};
use nix::mount::{umount2, MntFlags};
use nix::sys::stat::{fchmod, makedev, mkdirat, mknodat, Mode, SFlag};
use nix::sys::statfs::{fstatfs, Statfs, TMPFS_MAGIC};
use nix::unistd::{fchownat, pipe2, symlinkat, unlinkat, Gid, Uid, UnlinkatFlags};

use super::home::Home;
use super::plain::Plain;
use super::Ids;
use crate::fault::{Fault, Step};
use crate::sys::fd::uninterrupted;
use crate::sys::mount::{self, FsContext};

/// Directories of the storage besides the job's: name, and mode.
const DIRECTORIES: [(&str, u32); 6] =
    [("root", 0o755), ("tmp", 0o1777), ("var_tmp", 0o1777), ("shm", 0o1777), ("dev", 0o755), ("etc", 0o755)];

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

/// The names of the device nodes of `/dev`.
pub(super) fn device_nodes() -> impl Iterator<Item = &'static str> {
    DEVICES.into_iter().map(|(name, ..)| name)
}

/// What `/dev` has besides `shm` and `pts`.
pub(super) fn device_names() -> impl Iterator<Item = &'static str> {
    DEVICES.iter().map(|(name, ..)| *name).chain(DEVICE_LINKS.iter().map(|(name, _)| *name))
}

/// The storage of one job.
#[derive(Debug)]
pub struct Storage {
    kind: Kind,
    job: OwnedFd,
}

#[derive(Debug)]
enum Kind {
    Mounted(Mounted),
    Plain(Plain),
    Home(Open),
}

/// Where everybody may write, a job too that has an account of its own.
#[derive(Debug)]
struct Open {
    places: Vec<OwnedFd>,
    uid: u32,
}

/// These places, as every Unix has them.
pub const OPEN: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// A tmpfs.
#[derive(Debug)]
struct Mounted {
    /// On kernels where it has to be attached. First, so that it is unmounted before it is let go.
    attached: OnceCell<Attached>,
    mount: OwnedFd,
    /// What the job's root is put together in, once there is more than the job directory.
    root: OnceCell<OwnedFd>,
    /// Where it is attached then.
    place: String,
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

impl Use {
    /// What statfs(2) says of a file system in memory; `None` of any other.
    pub fn of_tmpfs(stat: &Statfs) -> Option<Use> {
        let block = u64::try_from(stat.block_size()).ok()?;
        (stat.filesystem_type() == TMPFS_MAGIC).then(|| Use {
            bytes: (stat.blocks() - stat.blocks_free()) * block,
            bytes_left: stat.blocks_free() * block,
            inodes: stat.files() - stat.files_free(),
            inodes_left: stat.files_free(),
        })
    }
}

fn text(number: u64) -> CString {
    CString::new(number.to_string()).unwrap_or_default()
}

/// What cannot be done with a plain directory; no plan asks for it.
const NO_MOUNT: Errno = Errno::ENOTSUP;

impl Storage {
    /// Makes a directory the storage, for a job that can be given no mount.
    ///
    /// # Errors
    /// Which part could not be made, and why.
    pub fn plain(path: String, owner: Option<u32>) -> Result<Storage, Fault> {
        let (plain, job) = Plain::create(path, owner)?;
        Ok(Storage { kind: Kind::Plain(plain), job })
    }

    /// Makes the home of an account the storage, for a job of it that can be given no mount.
    ///
    /// # Errors
    /// EMFILE.
    pub fn home(home: &Home, uid: u32) -> Result<Storage, Fault> {
        let job = home.directory().try_clone_to_owned();
        let job = job.map_err(|error| {
            Fault::new(Step::Storage, "use the home directory", crate::fault::errno_of(&error))
        })?;
        // What is not there cannot be written to.
        let places = OPEN.into_iter().filter_map(|place| open_directory(AT_FDCWD, place).ok()).collect();
        Ok(Storage { kind: Kind::Home(Open { places, uid }), job })
    }

    /// Makes the storage, without a limit of its own yet. `owner` is the job's, where that is not
    /// the driver's; `place` is where it is attached if it must be.
    ///
    /// # Errors
    /// Which part could not be made, and why.
    pub fn create(owner: Option<Ids>, place: String) -> Result<Storage, Fault> {
        let fault = |what: &str| {
            let object = format!("make the job's storage: {what}");
            move |errno| Fault::new(Step::Storage, object, errno)
        };
        let context = FsContext::open(c"tmpfs").map_err(fault("fsopen tmpfs"))?;
        let set = |key: &CStr, value: &CStr| context.set(key, value);
        set(c"mode", c"0755").map_err(fault("mode"))?;
        set(c"source", c"autodriver").map_err(fault("source"))?;
        let mount = context.mount(mount::attr::NOSUID).map_err(fault("fsmount"))?;
        make_directory(mount.as_fd(), "job", 0o755).map_err(fault("job"))?;
        if let Some(ids) = owner {
            let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
            fchownat(&mount, "job", Some(uid), Some(gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(fault("chown"))?;
        }
        let job = open_directory(mount.as_fd(), "job").map_err(fault("job"))?;
        let kind = Kind::Mounted(Mounted { mount, root: OnceCell::new(), place, attached: OnceCell::new() });
        Ok(Storage { kind, job })
    }

    /// Makes what a job needs besides its directory, once; a plain one has none of it.
    ///
    /// # Errors
    /// Which part could not be made, and why.
    pub fn furnish(&self) -> Result<(), Fault> {
        let Ok(Mounted { mount, root, .. }) = self.mounted() else { return Ok(()) };
        if root.get().is_some() {
            return Ok(());
        }
        let fault = |what: &str| {
            let object = format!("make the job's storage: {what}");
            move |errno| Fault::new(Step::Storage, object, errno)
        };
        for (name, mode) in DIRECTORIES {
            again(make_directory(mount.as_fd(), name, mode)).map_err(fault(name))?;
        }
        devices(mount.as_fd()).map_err(fault("device nodes"))?;
        let opened = open_directory(mount.as_fd(), "root").map_err(fault("root"))?;
        root.get_or_init(|| opened);
        Ok(())
    }

    fn mounted(&self) -> Result<&Mounted, Errno> {
        match &self.kind {
            Kind::Mounted(mounted) => Ok(mounted),
            Kind::Plain(_) | Kind::Home(_) => Err(NO_MOUNT),
        }
    }

    /// Whether it is where an account of the machine has its files.
    pub fn is_home(&self) -> bool {
        matches!(self.kind, Kind::Home(_))
    }

    /// The directory of the machine that was made for it, if there is one.
    pub fn path(&self) -> Option<&str> {
        match &self.kind {
            Kind::Mounted(_) | Kind::Home(_) => None,
            Kind::Plain(plain) => Some(&plain.path),
        }
    }

    /// What a process has to look through to know what a job has written where it has no mounts, and
    /// whose files count there, if not all.
    pub fn directories(&self) -> (Vec<BorrowedFd<'_>>, Option<u32>) {
        match &self.kind {
            Kind::Mounted(_) => (Vec::new(), None),
            Kind::Plain(plain) => (vec![self.job.as_fd(), plain.tmp.as_fd()], None),
            Kind::Home(Open { places, uid }) => {
                ([self.job.as_fd()].into_iter().chain(places.iter().map(AsFd::as_fd)).collect(), Some(*uid))
            }
        }
    }

    /// The job directory.
    pub fn job(&self) -> BorrowedFd<'_> {
        self.job.as_fd()
    }

    /// The mount itself, where it can be given away: where it is attached nowhere.
    pub fn detached(&self) -> Option<BorrowedFd<'_>> {
        self.mounted().ok().filter(|mounted| mounted.attached.get().is_none()).map(|one| one.mount.as_fd())
    }

    /// A new mount of one part of it, attached nowhere, to be given to one job.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn part(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        let Mounted { attached, mount, place, .. } = self.mounted()?;
        let clone = || mount::clone_tree(mount.as_fd(), name, false);
        match clone() {
            // Not asked for by a clone that is thrown away: letting go of a mount waits for RCU.
            Err(Errno::EINVAL) if attached.get().is_none() => {
                let made = attach_privately(mount, place)?;
                attached.get_or_init(|| made);
                clone()
            }
            result => result,
        }
    }

    /// The null device, of the job's own `/dev`, or what reads like it.
    ///
    /// # Errors
    /// As [`Storage::furnish`], or why it could not be opened.
    pub fn null(&self) -> Result<OwnedFd, Fault> {
        let fault = |errno| Fault::new(Step::Storage, "open the job's /dev/null", errno);
        self.furnish()?;
        let Ok(Mounted { mount, .. }) = self.mounted() else {
            // There is none: a pipe that nobody can write to reads as empty too.
            return pipe2(OFlag::O_CLOEXEC).map(|(rx, _)| rx).map_err(fault);
        };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(mount, "dev/null", flags, Mode::empty()).map_err(fault)
    }

    /// Writes a file below `etc`, for the job to read.
    ///
    /// # Errors
    /// Those of open(2) and write(2).
    pub fn write_etc(&self, name: &str, content: &[u8]) -> Result<(), Errno> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let etc = open_directory(self.mounted()?.mount.as_fd(), "etc")?;
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
        let Mounted { root, mount, .. } = self.mounted()?;
        let mut at = root.get().ok_or(NO_MOUNT)?.as_fd();
        if part != "root" {
            opened = open_directory(mount.as_fd(), part)?;
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
        // It may be there from an earlier job of the same slot.
        again(symlinkat(target, self.mounted()?.root.get().ok_or(NO_MOUNT)?, name))
    }

    /// Shows the storage on the machine itself, to a job that has no mount namespace of its own.
    ///
    /// # Errors
    /// Why it could not be mounted.
    pub fn show(&self, place: &str) -> Result<Attached, Fault> {
        let fault = |errno| Fault::new(Step::Storage, format!("mount the job's storage on {place}"), errno);
        self.furnish()?;
        let mount = self.part(c"").map_err(fault)?;
        mount::set_attributes(mount.as_fd(), mount::attr::NOSUID | mount::attr::NODEV, false)
            .map_err(fault)?;
        // A directory that is there already may be a trap of another user: /tmp is everybody's.
        mkdirat(AT_FDCWD, place, Mode::from_bits_truncate(0o755)).map_err(fault)?;
        Attached::attach(mount.as_fd(), place.to_owned()).map_err(fault)
    }

    /// What is used and left now, of a tmpfs.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn measure(&self) -> Result<Option<Use>, Errno> {
        let Ok(Mounted { mount, .. }) = self.mounted() else { return Ok(None) };
        Ok(Use::of_tmpfs(&uninterrupted(|| fstatfs(mount))?))
    }

    /// The same, where to know it once more is enough.
    pub fn usage(&self) -> Option<Use> {
        self.measure().ok().flatten()
    }

    /// Makes sure that the frame of the next job finds room, whatever the last one filled.
    ///
    /// # Errors
    /// As [`Storage::limit`].
    pub fn make_room(&self) -> Result<(), Fault> {
        match self.usage() {
            None => Ok(()),
            Some(left) if left.bytes_left >= FRAME_BYTES && left.inodes_left >= FRAME_INODES => Ok(()),
            _ => self.limit(FRAME_BYTES, FRAME_INODES),
        }
    }

    /// Lets the job write `bytes` and make `inodes` beyond what is there now; 0 means no limit. A plain
    /// one has no limits of its own; the driver looks at it.
    ///
    /// # Errors
    /// Why the tmpfs could not be reconfigured.
    pub fn limit(&self, bytes: u64, inodes: u64) -> Result<(), Fault> {
        let fault =
            |errno| Fault::new(Step::Storage, format!("limit the job's storage to {bytes} bytes"), errno);
        let Ok(Mounted { mount, .. }) = self.mounted() else { return Ok(()) };
        let used = self.usage().ok_or(Errno::EIO).map_err(fault)?;
        // Not the 0 of tmpfs: from that there is no way back to a limit.
        let sum = |limit: u64, used: u64| text(if limit == 0 { UNLIMITED } else { limit + used });
        let context = FsContext::pick(mount.as_fd()).map_err(fault)?;
        context.set(c"size", &sum(bytes, used.bytes)).map_err(fault)?;
        context.set(c"nr_inodes", &sum(inodes, used.inodes)).map_err(fault)?;
        context.reconfigure().map_err(fault)
    }
}

/// Before Linux 6.15 a mount can be cloned only where it is attached. Then the driver takes a mount
/// namespace of its own, which no other process of the machine sees and which dies with it.
fn attach_privately(mount: &OwnedFd, place: &str) -> Result<Attached, Errno> {
    static PRIVATE: AtomicBool = AtomicBool::new(false);
    if !PRIVATE.swap(true, Ordering::Relaxed) {
        mount::enter_namespace()?;
    }
    match mkdirat(AT_FDCWD, place, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    Attached::attach(mount.as_fd(), place.to_owned())
}

/// What an attempt that failed half-way has made already is as it should be: nobody else may write there.
fn again(made: Result<(), Errno>) -> Result<(), Errno> {
    match made {
        Err(Errno::EEXIST) => Ok(()),
        made => made,
    }
}

/// Whether the kernel lets us make device nodes: not in a user namespace (mknod(2)). Then `/dev` gets
/// the machine's, by [`super::layout`]; the names are [`devices`].
fn devices(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let dev = open_directory(mount, "dev")?;
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        match mknodat(&dev, name, SFlag::S_IFCHR, mode, makedev(major, minor)) {
            Err(Errno::EPERM) => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(&dev, name, flags, Mode::empty())?;
            }
            made => again(made)?,
        }
    }
    for (name, target) in DEVICE_LINKS {
        again(symlinkat(target, &dev, name))?;
    }
    for name in ["shm", "pts"] {
        again(make_directory(dev.as_fd(), name, 0o755))?;
    }
    Ok(())
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

pub(super) fn make_directory(at: BorrowedFd<'_>, name: &str, mode: u32) -> Result<(), Errno> {
    mkdirat(at, name, Mode::from_bits_truncate(mode))
}

pub(super) fn open_directory(at: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(
        at,
        name,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}
