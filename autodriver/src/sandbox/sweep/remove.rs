//! Removing a tree that a hostile program made: of any depth, with any modes and names.
//!
//! Nothing is done by path, so that no length of a path matters and no link is ever followed; and
//! no more than a few descriptors are held, whatever the depth. For that a directory found below a
//! directory of the tree is moved up, to the top, where it is emptied in its turn: every directory
//! is moved once. One that cannot be moved (of a lower layer of overlayfs: EXDEV) is emptied where
//! it is. Anything that something is mounted on stays: openat2(2), RESOLVE_NO_XDEV, and unlink(2)
//! and rmdir(2) refuse it by themselves.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{renameat, AtFlags};
use nix::sys::stat::{fstatat, FileStat};
use nix::unistd::{unlinkat, UnlinkatFlags};

use crate::walk::{self, LEVELS, TO_CHANGE};

/// Names listed at once: bounds the memory, not the work.
const NAMES: usize = 4096;
/// What is told of what remains.
const TOLD: usize = 32;

/// Something that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name, and those of the directories above as far as they were known.
    pub path: PathBuf,
    /// Why.
    pub why: Errno,
}

/// A directory that is being emptied.
struct Level {
    name: CString,
    directory: OwnedFd,
    names: Vec<CString>,
    /// In it, and not to be removed.
    failed: HashSet<CString>,
}

/// Removes what `name` names in `dir`, with all that is in it; what is not there needs no removal.
/// With `only`, what another uid owns stays: a job can hide another's file in a directory of its
/// own by moving it there. What has several names is a job's link to it, and loses only that name.
///
/// Nobody may change the tree meanwhile; a process of the job could make it endless.
pub fn remove_tree(dir: BorrowedFd<'_>, name: &CStr, only: Option<u32>) -> Vec<Left> {
    let mut removal = Removal { only, levels: Vec::new(), left: Vec::new(), fresh: 0 };
    match removal.entry(dir, name) {
        Ok(Entry::Removed) => {}
        Ok(Entry::Directory) => removal.tree(dir, name),
        Err(why) => removal.tell(name, why),
    }
    removal.left
}

enum Entry {
    Removed,
    Directory,
}

struct Removal {
    only: Option<u32>,
    levels: Vec<Level>,
    left: Vec<Left>,
    /// The number in the next new name at the top.
    fresh: u64,
}

impl Removal {
    fn tree(&mut self, dir: BorrowedFd<'_>, name: &CStr) {
        match open(dir, name) {
            Ok(level) => self.levels.push(level),
            Err(why) => return self.tell(name, why),
        }
        while let Some(level) = self.levels.last_mut() {
            if level.names.is_empty() && level.failed.len() < TOLD {
                level.list();
            }
            match level.names.pop() {
                Some(name) => self.step(&name),
                None => self.leave(dir),
            }
        }
    }

    /// Removes one name of the deepest level, or goes into it.
    fn step(&mut self, name: &CStr) {
        let Some(level) = self.levels.last() else { return };
        let done = match self.entry(level.directory.as_fd(), name) {
            Ok(Entry::Removed) => return,
            Ok(Entry::Directory) => {
                if self.levels.len() > 1 && self.move_up(name) {
                    return;
                }
                self.open_below(name)
            }
            Err(why) => Err(why),
        };
        match done {
            Ok(level) => self.levels.push(level),
            Err(why) => self.fail(name, why),
        }
    }

    fn open_below(&self, name: &CStr) -> Result<Level, Errno> {
        match self.levels.last() {
            Some(level) if self.levels.len() < LEVELS => open(level.directory.as_fd(), name),
            _ => Err(Errno::ELOOP),
        }
    }

    /// A file is removed, a directory is not.
    fn entry(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<Entry, Errno> {
        if let Some(only) = self.only {
            match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if stat.st_uid != only && !is_other_name(&stat) => return Err(Errno::EPERM),
                Ok(_) => {}
                Err(Errno::ENOENT) => return Ok(Entry::Removed),
                Err(errno) => return Err(errno),
            }
        }
        match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(Entry::Removed),
            Err(Errno::EISDIR) => Ok(Entry::Directory),
            Err(errno) => Err(errno),
        }
    }

    /// Moves a directory of the deepest level to the top.
    fn move_up(&mut self, name: &CStr) -> bool {
        let (Some(top), Some(deepest)) = (self.levels.first(), self.levels.last()) else { return false };
        // The names of the tree are not known; some numbers may be among them.
        let Some(fresh) = (0..NAMES).find_map(|_| {
            self.fresh += 1;
            let fresh = CString::new(format!("{}.removed", self.fresh)).ok()?;
            let moved = || renameat(&deepest.directory, name, &top.directory, fresh.as_c_str());
            match moved() {
                Ok(()) => Some(Some(fresh)),
                Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => None,
                // Whoever moves a directory changes its "..", so that the owner needs to write it.
                Err(Errno::EACCES) => match walk::open_forced(deepest.directory.as_fd(), name, TO_CHANGE) {
                    Ok((_, Some(_))) => Some(moved().ok().map(|()| fresh)),
                    _ => Some(None),
                },
                Err(_) => Some(None),
            }
        }) else {
            return false;
        };
        match (fresh, self.levels.first_mut()) {
            (Some(fresh), Some(top)) => {
                top.names.push(fresh);
                true
            }
            _ => false,
        }
    }

    /// The deepest level is as empty as it gets.
    fn leave(&mut self, dir: BorrowedFd<'_>) {
        let Some(level) = self.levels.pop() else { return };
        let above = self.levels.last().map_or(dir, |above| above.directory.as_fd());
        let removed = match unlinkat(above, level.name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            removed => removed,
        };
        match (removed, self.levels.last_mut()) {
            (Ok(()), _) => {}
            // What is in it was told.
            (Err(Errno::ENOTEMPTY), Some(above)) if !level.failed.is_empty() => {
                above.failed.insert(level.name);
            }
            (Err(Errno::ENOTEMPTY), None) if !level.failed.is_empty() => {}
            (Err(why), _) => self.fail(&level.name, why),
        }
    }

    fn fail(&mut self, name: &CStr, why: Errno) {
        self.tell(name, why);
        if let Some(level) = self.levels.last_mut() {
            level.failed.insert(name.to_owned());
        }
    }

    fn tell(&mut self, name: &CStr, why: Errno) {
        if self.left.len() < TOLD {
            let above = self.levels.iter().map(|level| level.name.as_c_str());
            self.left.push(Left { path: above.chain([name]).map(path).collect(), why });
        }
    }
}

impl Level {
    /// The next names, without those that stay.
    fn list(&mut self) {
        let most = NAMES + self.failed.len();
        // A directory that cannot be listed is not empty, which rmdir(2) will say.
        let names = walk::names(self.directory.as_fd(), most).unwrap_or_default();
        let new = names.into_iter().map(|(name, _)| name).filter(|name| !self.failed.contains(name));
        self.names = new.collect();
    }
}

fn open(dir: BorrowedFd<'_>, name: &CStr) -> Result<Level, Errno> {
    let (directory, _) = walk::open_forced(dir, name, TO_CHANGE)?;
    Ok(Level { name: name.to_owned(), directory, names: Vec::new(), failed: HashSet::new() })
}

fn is_other_name(stat: &FileStat) -> bool {
    stat.st_nlink > 1 && !walk::shows_directory(stat)
}

fn path(name: &CStr) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{symlink, PermissionsExt};

    use nix::fcntl::{openat, OFlag};
    use nix::sys::stat::{mkdirat, Mode};

    use super::*;

    /// A directory with `tree` in it, to be removed, and `beside`, which must stay.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("autodriver-remove-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("tree")).expect("mkdir");
            fs::create_dir(path.join("beside")).expect("mkdir");
            fs::write(path.join("beside/file"), "stays").expect("write");
            Place(path)
        }

        fn tree(&self) -> PathBuf {
            self.0.join("tree")
        }

        fn remove(&self, only: Option<u32>) -> Vec<Left> {
            let dir = fs::File::open(&self.0).expect("it opens");
            remove_tree(dir.as_fd(), c"tree", only)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let stays = fs::read_to_string(self.0.join("beside/file"));
            let _ = fs::remove_dir_all(&self.0);
            assert_eq!(stays.expect("what is beside stays"), "stays");
        }
    }

    fn nest(at: &Path, depth: usize, mode: u32) {
        let mut above = OwnedFd::from(fs::File::open(at).expect("it opens"));
        let mut made = Vec::new();
        for _ in 0..depth {
            mkdirat(&above, "d", Mode::S_IRWXU).expect("mkdir");
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let below = openat(&above, "d", flags, Mode::empty()).expect("open");
            if mode != 0o700 {
                made.push(below.try_clone().expect("dup"));
            }
            above = below;
        }
        for directory in made {
            nix::sys::stat::fchmod(&directory, Mode::from_bits_truncate(mode)).expect("chmod");
        }
    }

    #[test]
    fn deep_tree_is_removed() {
        let place = Place::new("deep");
        nest(&place.tree(), 5000, 0o700);
        assert_eq!(place.remove(None), []);
        assert!(!place.tree().exists());
    }

    #[test]
    fn closed_tree_is_removed() {
        for mode in [0o000, 0o400, 0o500] {
            let place = Place::new(&format!("closed-{mode:o}"));
            nest(&place.tree(), 200, mode);
            assert_eq!(place.remove(None), []);
            assert!(!place.tree().exists());
        }
    }

    #[test]
    fn wide_tree_with_odd_names_is_removed() {
        let place = Place::new("wide");
        for number in 0..NAMES + 100 {
            fs::write(place.tree().join(format!("-rf\n{number}")), "").expect("write");
        }
        for name in ["1.removed", "d/1.removed/x", "d/e/2.removed", "d/e/f/g", "e/3.removed/x"] {
            fs::create_dir_all(place.tree().join(name)).expect("mkdir");
        }
        fs::write(place.tree().join("2.removed"), "").expect("write");
        assert_eq!(place.remove(None), []);
        assert!(!place.tree().exists());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let place = Place::new("links");
        symlink("../beside", place.tree().join("link")).expect("symlink");
        fs::create_dir(place.tree().join("d")).expect("mkdir");
        symlink(place.0.join("beside"), place.tree().join("d/link")).expect("symlink");
        fs::hard_link(place.0.join("beside/file"), place.tree().join("d/file")).expect("link");
        assert_eq!(place.remove(None), []);
        assert!(!place.tree().exists());
    }

    #[test]
    fn what_is_no_directory_or_is_not_there_is_removed_too() {
        let place = Place::new("no-directory");
        fs::remove_dir(place.tree()).expect("rmdir");
        assert_eq!(place.remove(None), []);
        symlink("beside", place.tree()).expect("symlink");
        assert_eq!(place.remove(None), []);
        assert!(place.tree().symlink_metadata().is_err());
    }

    #[test]
    fn files_of_others_stay_and_are_told() {
        let place = Place::new("others");
        fs::create_dir_all(place.tree().join("a/b")).expect("mkdir");
        fs::write(place.tree().join("a/b/c"), "").expect("write");
        fs::set_permissions(place.tree(), fs::Permissions::from_mode(0o777)).expect("chmod");
        let me = nix::unistd::geteuid().as_raw();
        let left = place.remove(Some(me + 1));
        assert_eq!(left, [Left { path: "tree".into(), why: Errno::EPERM }]);
        assert!(place.tree().join("a/b/c").exists());
        assert_eq!(place.remove(Some(me)), []);
    }

    #[test]
    fn mount_stays_and_is_told() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it mounts something");
        let place = Place::new("mount");
        fs::create_dir_all(place.tree().join("a/b/c")).expect("mkdir");
        let mount = place.tree().join("a/b");
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&place.0.join("beside")), &mount, None::<&str>, bind, None::<&str>)
            .expect("it mounts");
        let left = place.remove(None);
        nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH).expect("it unmounts");
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].path.ends_with("a/b"), "{left:?}");
        assert_eq!(place.remove(None), []);
    }
}
