//! What a uid left in the places of the machine where everybody may write.
//!
//! A job's file can only be where the job could write: in a directory open to everybody, or below
//! one of its own. So others' directories are looked through, as far as everybody may pass them,
//! and are never changed; what the uid owns in them is taken whole.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, AT_FDCWD};
use nix::sys::stat::{fstatat, FileStat, Mode};

use super::remove::{remove_tree, Left};
use crate::walk::{self, LEVELS};

/// Where directories open to everybody are, on the distributions there are.
const ABOVE: [&str; 7] = ["/", "/dev", "/run", "/var", "/var/lib", "/var/lib/php", "/var/spool"];
/// Files looked at in one place: an upper bound for the time that it takes.
const BUDGET: u64 = 1 << 20;
/// Everybody may write.
const OPEN: u32 = 0o002;

/// The machine's directories that are open to everybody. Links are left out: they lead to one of
/// the others.
pub fn places() -> Vec<PathBuf> {
    let open = |path: &PathBuf| {
        std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.mode() & OPEN != 0)
    };
    let below = |above: &&str| std::fs::read_dir(above).into_iter().flatten().flatten();
    ABOVE.iter().flat_map(below).map(|entry| entry.path()).filter(open).collect()
}

/// Removes everything that the uid owns in these places, but for what is in `except`: the storage that
/// it was given. The uid must have no process any more. What could not be removed is in the result.
///
/// # Errors
/// The place or directory that could not be looked through, and why.
pub fn remove_files_of(uid: u32, places: &[PathBuf], except: Option<&Path>) -> Result<Vec<Left>, Left> {
    let mut left = Vec::new();
    for place in places {
        Search { uid, budget: BUDGET, except }.place(place, &mut |directory, name, path| {
            let above = path.parent().map(Path::to_owned).unwrap_or_default();
            let remaining = remove_tree(directory, name, Some(uid));
            left.extend(remaining.into_iter().map(|rest| Left { path: above.join(rest.path), ..rest }));
        })?;
    }
    Ok(left)
}

/// One of others' directories.
struct Level {
    directory: OwnedFd,
    path: PathBuf,
    below: Vec<CString>,
}

struct Search<'a> {
    uid: u32,
    budget: u64,
    except: Option<&'a Path>,
}

/// What to do with a file of the uid's: the directory, the name in it, the path for people.
type Found<'a> = &'a mut dyn FnMut(BorrowedFd<'_>, &CStr, PathBuf);

impl Search<'_> {
    fn place(&mut self, place: &Path, found: Found<'_>) -> Result<(), Left> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let directory = match nix::fcntl::openat2(AT_FDCWD, place, how) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR) => return Ok(()),
            Err(why) => return Err(Left { path: place.to_owned(), why }),
        };
        let mut levels = vec![self.enter(directory, place.to_owned(), found)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.below.pop() else {
                levels.pop();
                continue;
            };
            let path = joined(&level.path, &name);
            if levels.len() == LEVELS {
                return Err(Left { path, why: Errno::ELOOP });
            }
            let opened = levels.last().map(|level| walk::open(level.directory.as_fd(), &name));
            match opened {
                Some(Ok(directory)) => levels.push(self.enter(directory, path, found)?),
                // Gone, or something is mounted on it, which no job did.
                None | Some(Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV)) => {}
                // Without root: not to be passed by everybody after all.
                Some(Err(Errno::EACCES)) => {}
                Some(Err(why)) => return Err(Left { path, why }),
            }
        }
        Ok(())
    }

    fn enter(&mut self, directory: OwnedFd, path: PathBuf, found: Found<'_>) -> Result<Level, Left> {
        let failed = |why| Left { path: path.clone(), why };
        let most = usize::try_from(self.budget).unwrap_or(usize::MAX);
        let names = match walk::names(directory.as_fd(), most.saturating_add(1)) {
            Err(Errno::EACCES) => Vec::new(),
            names => names.map_err(failed)?,
        };
        let mut below = Vec::new();
        for (name, _) in names {
            self.budget = self.budget.checked_sub(1).ok_or_else(|| failed(Errno::E2BIG))?;
            if self.except.is_some_and(|except| except == joined(&path, &name)) {
                continue;
            }
            match fstatat(directory.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if stat.st_uid == self.uid => {
                    found(directory.as_fd(), &name, joined(&path, &name));
                }
                Ok(stat) if passable(&stat) => below.push(name),
                Ok(_) | Err(Errno::ENOENT | Errno::EACCES) => {}
                Err(why) => return Err(failed(why)),
            }
        }
        Ok(Level { directory, path, below })
    }
}

fn passable(stat: &FileStat) -> bool {
    walk::shows_directory(stat) && Mode::from_bits_truncate(stat.st_mode).contains(Mode::S_IXOTH)
}

fn joined(path: &Path, name: &CStr) -> PathBuf {
    path.join(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{chown, symlink, PermissionsExt};

    use super::*;

    /// Names for the files of the test only; nobody has to hold it.
    const UID: u32 = 59_998;

    /// Everything that the uid owns, each tree by its top.
    fn files_of(uid: u32, places: &[PathBuf]) -> Result<Vec<PathBuf>, Left> {
        let mut found = Vec::new();
        for place in places {
            let mut search = Search { uid, budget: BUDGET, except: None };
            search.place(place, &mut |_, _, path| found.push(path))?;
        }
        Ok(found)
    }

    #[test]
    fn places_are_open_to_everybody() {
        let places = places();
        assert!(places.contains(&PathBuf::from("/tmp")), "{places:?}");
        assert!(!places.contains(&PathBuf::from("/etc")), "{places:?}");
    }

    #[test]
    fn files_of_the_uid_are_found_and_removed_and_others_stay() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it gives files to another uid");
        let place = std::env::temp_dir().join(format!("autodriver-files-{}", std::process::id()));
        let make = |name: &str, mode: u32, uid: u32| {
            fs::create_dir_all(place.join(name)).expect("mkdir");
            fs::set_permissions(place.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
            chown(place.join(name), Some(uid), None).expect("chown");
        };
        make("", 0o1777, 0);
        make("others", 0o755, 0);
        make("others/open", 0o777, 0);
        make("others/open/its", 0o000, UID);
        make("others/open/its/deep", 0o700, UID);
        make("closed", 0o700, 0);
        make("closed/unreachable", 0o777, UID);
        make("its", 0o777, UID);
        make("others/kept", 0o755, 0);
        make("others/kept/its", 0o700, UID);
        make("its/foreign", 0o755, 0);
        fs::write(place.join("file"), "").expect("write");
        symlink("others", place.join("link")).expect("symlink");
        for name in ["file", "link"] {
            std::os::unix::fs::lchown(place.join(name), Some(UID), None).expect("chown");
        }
        let places = [place.clone(), place.join("link"), place.join("nothing")];
        let mut found = files_of(UID, &places).expect("it looks");
        found.sort();
        let expected =
            ["file", "its", "link", "others/kept/its", "others/open/its"].map(|name| place.join(name));
        assert_eq!(found, expected);
        let left = remove_files_of(UID, &places, Some(&place.join("others/kept"))).expect("it looks");
        let mut rest = files_of(UID, &places).expect("it looks");
        rest.sort();
        let exists = |name: &str| place.join(name).symlink_metadata().is_ok();
        let stays = ["others/open", "others/kept/its", "closed/unreachable", "its/foreign"].map(exists);
        let gone = ["file", "link", "others/open/its"].map(exists);
        fs::remove_dir_all(&place).expect("it is removed");
        assert_eq!(left, [Left { path: place.join("its/foreign"), why: Errno::EPERM }]);
        assert_eq!(rest, [place.join("its"), place.join("others/kept/its")]);
        assert_eq!((stays, gone), ([true; 4], [false; 3]));
    }
}
