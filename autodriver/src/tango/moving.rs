//! Taking the job directory from the caller.
//!
//! It is copied, also where it could be renamed: the caller may hold its files open, have other names for
//! them, or have made names for files of others, and none of that may be the job's. A process that has
//! the caller's ids and nothing else reads it, another that has the job's writes it, and the driver hands the
//! bytes on (see [`crate::transfer`]). What was moved is removed with the caller's rights.
//!
//! Tango's own image keeps the directory, `/home/autolab`, in one that is root's, and has root put files there
//! (`cp -r mount/* autolab/`) with the modes that Tango's server gave them: 0600, since it makes them by Python's
//! NamedTemporaryFile. So what root has put there for itself alone becomes the caller's first, the only change
//! of an owner here, and what of the caller's own directory is left, the driver removes.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use autodriver_protocol::archive::Selection;
use nix::errno::Errno;
use nix::fcntl::{openat, openat2, AtFlags, OFlag, OpenHow, ResolveFlag, AT_FDCWD};
use nix::sys::stat::{fchmod, fstat, fstatat, mkdirat, FileStat, Mode, SFlag};
use nix::unistd::{fchown, fchownat, unlinkat, Gid, Uid, UnlinkatFlags};

use super::caller::Caller;
use super::failure::{Failure, OS_ERROR};
use crate::sandbox::sweep::remove::remove_tree;
use crate::sandbox::{Identity, Ids};
use crate::transfer::{self, Task};
use crate::walk;

/// The caller's directory, and where it is.
#[derive(Debug)]
pub(super) struct Source {
    parent: OwnedFd,
    /// Its last name, which the job's copy gets too.
    pub(super) name: String,
    directory: OwnedFd,
    stat: FileStat,
    caller: Caller,
}

impl Source {
    /// Opens it, with the caller's rights and through no link: a path that leads elsewhere than it says is
    /// no job directory. It must be the caller's own.
    pub(super) fn open(path: &[u8], caller: Caller) -> Result<Source, Failure> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let refused = |why: &str| Failure::new(OS_ERROR, format!("Error moving directory '{shown}': {why}"));
        let path = Path::new(OsStr::from_bytes(path));
        // "a/.", "a/.." and "/" name no entry of a directory.
        let plain = !path.as_os_str().as_bytes().ends_with(b"/.");
        let (Some(Component::Normal(name)), true) = (path.components().next_back(), plain) else {
            return Err(refused("its last part must be a name"));
        };
        let Some(name) = name.to_str() else { return Err(refused("the name is not UTF-8")) };
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let open = |at: BorrowedFd<'_>, path: &Path, flags: OFlag| {
            let flags = flags | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat2(at, path, OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS))
        };
        let opened = caller.act(|| {
            let parent = open(AT_FDCWD, above, OFlag::O_PATH)?;
            let directory = open(parent.as_fd(), Path::new(name), OFlag::O_RDONLY)?;
            let stat = fstat(&directory)?;
            Ok((parent, directory, stat))
        });
        let (parent, directory, stat) = opened.and_then(|opened| opened).map_err(|errno| match errno {
            // The second, where the last part is one: O_DIRECTORY is looked at first.
            Errno::ELOOP | Errno::ENOTDIR => refused("it is no directory, or a symbolic link leads there"),
            errno => Failure::os(format!("Error moving directory '{shown}'"), errno),
        })?;
        if stat.st_uid != caller.0.uid {
            return Err(refused("it is not yours"));
        }
        Ok(Source { parent, name: name.to_owned(), directory, stat, caller })
    }

    /// Copies it into a directory, for the job, and removes it.
    pub(super) fn move_to(self, to: BorrowedFd<'_>, job: Ids) -> Result<(), Failure> {
        let name = self.name.as_str();
        let failed = |errno| Failure::os(format!("Error moving directory '{name}'"), errno);
        // As rename(2): an empty one is replaced.
        let _ = unlinkat(to, name, UnlinkatFlags::RemoveDir);
        mkdirat(to, name, Mode::S_IRWXU).map_err(failed)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let copy = openat(to, name, flags, Mode::empty()).map_err(failed)?;
        let mode =
            Mode::from_bits_truncate(self.stat.st_mode) & !(Mode::S_ISUID | Mode::S_ISGID | Mode::S_ISVTX);
        fchown(&copy, Some(Uid::from_raw(job.uid)), Some(Gid::from_raw(job.gid))).map_err(failed)?;
        fchmod(&copy, mode | Mode::S_IRWXU).map_err(failed)?;
        self.accept_gifts().map_err(failed)?;
        self.copy(copy.as_fd(), job)?;
        self.remove();
        Ok(())
    }

    /// Gives the caller the files in its directory that are root's and not for others to read. Root has put them
    /// there: with `fs.protected_hardlinks` (proc_sys_fs(5)) nobody else can make another name for a file of
    /// root's that it may not write to.
    fn accept_gifts(&self) -> Result<(), Errno> {
        let protected = std::fs::read("/proc/sys/fs/protected_hardlinks");
        if !protected.is_ok_and(|set| set.starts_with(b"1")) {
            return Ok(());
        }
        for (name, _) in walk::names(self.directory.as_fd(), usize::MAX)? {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let resolve = ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS;
            let how = OpenHow::new().flags(flags).resolve(resolve);
            // What cannot be opened now, the caller will be told of.
            let Ok(file) = openat2(&self.directory, name.as_c_str(), how) else { continue };
            let stat = fstat(&file)?;
            let regular = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
            let roots_alone = stat.st_uid == 0 && stat.st_mode & Mode::S_IROTH.bits() == 0;
            if regular && roots_alone && stat.st_nlink == 1 {
                fchownat(&file, c"", Some(Uid::from_raw(self.caller.0.uid)), None, AtFlags::AT_EMPTY_PATH)?;
            }
        }
        Ok(())
    }

    fn copy(&self, to: BorrowedFd<'_>, job: Ids) -> Result<(), Failure> {
        let all = Task::Pack(Selection::Tree);
        let mut reader = transfer::start(&all, self.directory.as_fd(), Identity::Own(self.caller.0))
            .map_err(|fault| Failure::of(&fault))?;
        let mut writer =
            transfer::start(&Task::Unpack, to, Identity::Own(job)).map_err(|fault| Failure::of(&fault))?;
        // Either may end early; what it has to say about it comes below.
        if let (Some(from), Some(to)) = (reader.stream.take(), writer.stream.take()) {
            let _ = std::io::copy(&mut File::from(from), &mut File::from(to));
        }
        let (read, written) = (reader.finish(), writer.finish());
        written.map_err(|fault| Failure::of(&fault))?;
        let read = read.map_err(|fault| Failure::of(&fault))?;
        match read.skipped.first() {
            None => Ok(()),
            Some(skipped) => {
                let why = format!("Error moving directory: cannot take '{}': {}", skipped.name, skipped.why);
                Err(Failure::new(OS_ERROR, why))
            }
        }
    }

    /// What stays, because something is mounted there, is empty or the caller's to remove: the job has
    /// its copy.
    fn remove(&self) {
        let Ok(name) = CString::new(self.name.as_bytes()) else { return };
        let _ = self.caller.act(|| remove_tree(self.parent.as_fd(), &name, None));
        // What the caller may not remove. Through the descriptor, since the caller may have put another
        // directory in its place; it can put none into it that it may not empty itself.
        for (below, _) in walk::names(self.directory.as_fd(), usize::MAX).unwrap_or_default() {
            remove_tree(self.directory.as_fd(), &below, None);
        }
        let now = fstatat(&self.parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if now.is_ok_and(|now| (now.st_dev, now.st_ino) == (self.stat.st_dev, self.stat.st_ino)) {
            let _ = unlinkat(&self.parent, name.as_c_str(), UnlinkatFlags::RemoveDir);
        }
    }
}
