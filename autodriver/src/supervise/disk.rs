//! What directories hold, where no file system of their own keeps the count. The job may go on
//! meanwhile, and its tree may be made to keep anyone from walking it: any depth, any mode, moved
//! while it is walked.
//!
//! The walk holds one descriptor for each of the upper [`LEVELS`] levels, and one for the directory
//! it is in. Below the upper levels it comes back through "..", and looks whether that is where it
//! came from; a directory that was moved ends the walk of that branch, and the sum says that
//! something is missing. No name is looked up twice, so that the length of no path matters.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{fstat, fstatat, FileStat, Mode};

use crate::walk::{self, LEVELS, TO_LOOK};

/// What st_blocks counts in: stat(3type).
pub(super) const BLOCK: u64 = 512;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Bytes allocated.
    pub bytes: u64,
    /// Files, directories and everything else that has an inode.
    pub inodes: u64,
    /// Something was not counted: the budget ran out, a directory moved, or it did not open.
    pub partial: bool,
}

/// Which file it is.
type Id = (libc::dev_t, libc::ino_t);

fn id(stat: &FileStat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// A directory that the walk is in, or has to come back to.
struct Level {
    id: Id,
    /// `None` below the upper levels, unless the walk is in it.
    directory: Option<OwnedFd>,
    /// Directories in it that were not walked.
    below: Vec<CString>,
    /// Its mode, if that had to be changed.
    before: Option<Mode>,
}

impl Drop for Level {
    fn drop(&mut self) {
        if let (Some(directory), Some(mode)) = (&self.directory, self.before) {
            let _ = walk::set_mode(directory.as_fd(), mode);
        }
    }
}

struct Walk {
    found: Disk,
    /// Whose files count, where others have some there too.
    only: Option<u32>,
    budget: u64,
    /// Files with several names.
    linked: HashSet<Id>,
}

/// What is in these directories, without themselves, looking at no more than `budget` files. A
/// file with several names counts once. With `only`, what other uids own does not count, and their
/// directories are left alone unless everybody may write there.
pub fn disk(directories: &[BorrowedFd<'_>], only: Option<u32>, budget: u64) -> Disk {
    let mut walk = Walk { found: Disk::default(), only, budget, linked: HashSet::new() };
    for directory in directories {
        if walk.tree(*directory).is_err() {
            walk.found.partial = true;
        }
    }
    walk.found
}

impl Walk {
    fn tree(&mut self, top: BorrowedFd<'_>) -> Result<(), Errno> {
        let (opened, before) = match walk::reopen(top) {
            // Its owner may close it to himself.
            Err(Errno::EACCES) => walk::reopen_forced(top, TO_LOOK)?,
            opened => (opened?, None),
        };
        let mut levels = vec![self.enter(opened, before)?];
        loop {
            // Below the upper levels nobody could put a mode back.
            let upper = levels.len() < LEVELS;
            let Some(level) = levels.last_mut() else { return Ok(()) };
            let Some(name) = level.below.pop() else {
                self.leave(&mut levels);
                continue;
            };
            let Some(parent) = &level.directory else { return Err(Errno::ENOENT) };
            let opened = match upper {
                true => walk::open_forced(parent.as_fd(), &name, TO_LOOK),
                false => walk::open(parent.as_fd(), &name).map(|directory| (directory, None)),
            };
            match opened.and_then(|(directory, before)| self.enter(directory, before)) {
                Ok(deeper) => {
                    if !upper && level.before.is_none() {
                        level.directory = None;
                    }
                    levels.push(deeper);
                }
                // Not there any more, or something is mounted on it.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => {}
                Err(_) => self.found.partial = true,
            }
        }
    }

    /// Goes up one level, or to the nearest one that is still where it was.
    fn leave(&mut self, levels: &mut Vec<Level>) {
        let Some(left) = levels.pop() else { return };
        let Some(above) = levels.last_mut().filter(|above| above.directory.is_none()) else { return };
        let parent = left.directory.as_ref().and_then(|directory| walk::parent(directory.as_fd()).ok());
        let same = |directory: &OwnedFd| fstat(directory).is_ok_and(|stat| id(&stat) == above.id);
        match parent.filter(same) {
            Some(directory) => above.directory = Some(directory),
            None => {
                self.found.partial = true;
                while levels.last().is_some_and(|level| level.directory.is_none()) {
                    levels.pop();
                }
            }
        }
    }

    /// Counts what is in a directory.
    fn enter(&mut self, directory: OwnedFd, before: Option<Mode>) -> Result<Level, Errno> {
        let mut level = Level { id: id(&fstat(&directory)?), directory: None, below: Vec::new(), before };
        let most = usize::try_from(self.budget).unwrap_or(usize::MAX);
        let names = walk::names(directory.as_fd(), most.saturating_add(1));
        let directory = level.directory.insert(directory);
        for (name, _) in names? {
            if self.budget == 0 {
                self.found.partial = true;
                break;
            }
            self.budget -= 1;
            match fstatat(directory.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    let counts = self.only.is_none_or(|only| stat.st_uid == only);
                    if counts {
                        self.count(&stat);
                    }
                    let open = stat.st_mode & Mode::S_IWOTH.bits() != 0;
                    if walk::shows_directory(&stat) && (counts || open) {
                        level.below.push(name);
                    }
                }
                Err(Errno::ENOENT) => {}
                Err(_) => self.found.partial = true,
            }
        }
        Ok(level)
    }

    fn count(&mut self, stat: &FileStat) {
        let several = stat.st_nlink > 1 && !walk::shows_directory(stat);
        if several && !self.linked.insert(id(stat)) {
            return;
        }
        self.found.inodes += 1;
        self.found.bytes += u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use nix::fcntl::{openat, OFlag};
    use nix::sys::stat::mkdirat;

    use super::*;

    /// Removed with the test.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("autodriver-disk-{name}-{}", std::process::id()));
            fs::create_dir(&path).expect("a new directory");
            Place(path)
        }

        fn open(&self) -> OwnedFd {
            open(&self.0)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let status = std::process::Command::new("rm").arg("-rf").arg(&self.0).status();
            assert!(status.is_ok_and(|status| status.success()));
        }
    }

    fn open(path: &Path) -> OwnedFd {
        OwnedFd::from(fs::File::open(path).expect("it opens"))
    }

    fn all(place: &Place) -> Disk {
        disk(&[place.open().as_fd()], None, u64::MAX)
    }

    #[test]
    fn files_count_once_and_links_are_not_followed() {
        let place = Place::new("once");
        fs::create_dir(place.0.join("d")).expect("mkdir");
        fs::write(place.0.join("d/f"), vec![1; 100_000]).expect("write");
        fs::hard_link(place.0.join("d/f"), place.0.join("again")).expect("link");
        std::os::unix::fs::symlink("/", place.0.join("away")).expect("symlink");
        let found = all(&place);
        assert_eq!((found.inodes, found.partial), (3, false));
        assert!((100_000..200_000).contains(&found.bytes), "{found:?}");
    }

    #[test]
    fn where_others_have_files_only_those_of_the_uid_count() {
        use std::os::unix::fs::{chown, PermissionsExt};
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it gives files away");
        let place = Place::new("others");
        let uid = 59_995;
        for (name, owner, mode) in
            [("own", uid, 0o700), ("others", uid + 1, 0o755), ("open", uid + 1, 0o1777)]
        {
            let path = place.0.join(name);
            fs::create_dir(&path).expect("mkdir");
            fs::write(path.join("own"), "x").expect("write");
            fs::write(path.join("theirs"), "x").expect("write");
            chown(path.join("own"), Some(uid), None).expect("chown");
            chown(&path, Some(owner), None).expect("chown");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        }
        // Its directory, its file in that, and its file where everybody may write.
        assert_eq!(disk(&[place.open().as_fd()], Some(uid), u64::MAX).inodes, 3);
    }

    #[test]
    fn closed_directory_is_counted_and_stays_closed() {
        use std::os::unix::fs::PermissionsExt;
        let place = Place::new("closed");
        let closed = place.0.join("closed");
        fs::create_dir(&closed).expect("mkdir");
        fs::write(closed.join("f"), "x").expect("write");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("chmod");
        let found = all(&place);
        assert_eq!((found.inodes, found.partial), (2, false));
        let mode = fs::metadata(&closed).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0);
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("chmod");
    }

    #[test]
    fn budget_bounds_the_work_and_is_told() {
        let place = Place::new("budget");
        for number in 0..20 {
            fs::write(place.0.join(number.to_string()), "").expect("write");
        }
        let found = disk(&[place.open().as_fd()], None, 10);
        assert_eq!((found.inodes, found.partial), (10, true));
        assert_eq!(disk(&[place.open().as_fd()], None, 20), Disk { inodes: 20, ..Disk::default() });
    }

    #[test]
    fn deep_tree_is_walked_to_its_end() {
        const DEPTH: u64 = 3000;
        let place = Place::new("deep");
        let mut at = place.open();
        for _ in 0..DEPTH {
            mkdirat(&at, "d", Mode::S_IRWXU).expect("mkdir");
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            at = openat(&at, "d", flags, Mode::empty()).expect("open");
        }
        let found = all(&place);
        assert_eq!((found.inodes, found.partial), (DEPTH, false));
    }

    #[test]
    fn moved_directory_is_told() {
        let place = Place::new("moved");
        let mut path = place.0.clone();
        for _ in 0..LEVELS + 10 {
            path.push("d");
        }
        fs::create_dir_all(&path).expect("mkdir");
        let mut walk = Walk { found: Disk::default(), only: None, budget: u64::MAX, linked: HashSet::new() };
        let level = |path: &Path, held: bool| Level {
            id: id(&fstat(open(path)).expect("stat")),
            directory: held.then(|| open(path)),
            below: Vec::new(),
            before: None,
        };
        let above = path.parent().expect("it has one").to_owned();
        let mut levels = vec![level(&place.0, true), level(&above, false), level(&path, true)];
        fs::rename(&path, place.0.join("elsewhere")).expect("rename");
        walk.leave(&mut levels);
        assert_eq!((levels.len(), walk.found.partial), (1, true));
    }
}
