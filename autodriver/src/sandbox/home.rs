//! The home directory of an account that is there for jobs and nobody else, as Tango's `autograde`.
//!
//! While a job runs it is root's, open to the account's group, and sticky: the job makes and removes in
//! it what is the job's, and neither removes nor renames what the driver has put there. Afterwards it is
//! the account's again. One that is still root's is a killed driver's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{fchmod, fstat, FileStat, Mode};
use nix::unistd::{fchown, Gid, Uid};

use super::privileges::Ids;
use super::storage::open_directory;
use crate::fault::{Fault, Step};

/// Owned by root, mode 1775.
const TAKEN: Mode = Mode::S_ISVTX.union(Mode::S_IRWXU).union(Mode::S_IRWXG).union(READABLE);
/// Mode 0755: what a job has written is read from outside by its path.
const GIVEN: Mode = Mode::S_IRWXU.union(Mode::S_IRGRP).union(Mode::S_IXGRP).union(READABLE);
const READABLE: Mode = Mode::S_IROTH.union(Mode::S_IXOTH);

/// A home directory; given back when dropped.
#[derive(Debug)]
pub struct Home {
    directory: OwnedFd,
    ids: Ids,
}

/// Whether it was found as a killed driver leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The account's.
    Given,
    /// Still root's.
    Taken,
}

fn found(stat: &FileStat, ids: Ids) -> Option<Found> {
    let is_taken = stat.st_uid == 0 && stat.st_gid == ids.gid && stat.st_mode & Mode::S_ISVTX.bits() != 0;
    match stat.st_uid {
        uid if uid == ids.uid => Some(Found::Given),
        _ if is_taken => Some(Found::Taken),
        _ => None,
    }
}

impl Home {
    /// Takes it for the driver. The account must have no process.
    ///
    /// # Errors
    /// If it is not there, or neither the account's nor a killed driver's: it may be everybody's then, or
    /// the machine's root.
    pub fn take(path: &str, ids: Ids) -> Result<Home, Fault> {
        let act = format!("use the home directory {path}");
        let fault = |errno| Fault::new(Step::Storage, act.clone(), errno);
        let directory = open_directory(AT_FDCWD, path).map_err(fault)?;
        let stat = fstat(&directory).map_err(fault)?;
        if found(&stat, ids).is_none() {
            let why = format!("it belongs to uid {}; make it that of uid {}", stat.st_uid, ids.uid);
            return Err(Fault::refused(Step::Storage, act, why));
        }
        // First, so that it is given back whatever fails.
        let home = Home { directory, ids };
        let taken = fchown(&home.directory, Some(Uid::from_raw(0)), Some(Gid::from_raw(ids.gid)))
            .and_then(|()| fchmod(&home.directory, TAKEN));
        taken.map_err(|errno| Fault::new(Step::Storage, act, errno))?;
        Ok(home)
    }

    /// Whether a killed driver has left it so.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn is_abandoned(path: &str, ids: Ids) -> Result<bool, Errno> {
        let directory = open_directory(AT_FDCWD, path)?;
        Ok(found(&fstat(&directory)?, ids) == Some(Found::Taken))
    }

    /// The directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let (uid, gid) = (Uid::from_raw(self.ids.uid), Gid::from_raw(self.ids.gid));
        // The mode first: whose it is says whether it was given back.
        let _ = fchmod(&self.directory, GIVEN).and_then(|()| fchown(&self.directory, Some(uid), Some(gid)));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, MetadataExt};

    use super::*;

    #[test]
    fn home_is_root_s_while_it_is_taken_and_only_the_account_s_can_be() {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it gives directories away");
        let ids = Ids { uid: 59_990, gid: 59_991, groups: &[] };
        let path = std::env::temp_dir().join(format!("autodriver-home-{}", std::process::id()));
        let name = path.to_str().expect("it is text");
        std::fs::create_dir(&path).expect("mkdir");
        let now = || {
            let meta = std::fs::metadata(&path).expect("stat");
            (meta.uid(), meta.gid(), meta.mode() & 0o7777)
        };
        let refused = Home::take(name, ids).expect_err("it is root's").to_string();
        assert!(refused.contains("belongs to uid 0"), "{refused}");
        chown(&path, Some(ids.uid), Some(ids.gid)).expect("chown");
        let home = Home::take(name, ids).expect("it can be taken");
        assert_eq!(now(), (0, ids.gid, 0o1775));
        assert_eq!(Home::is_abandoned(name, ids), Ok(true));
        let again = Home::take(name, ids).expect("a killed driver's can be taken");
        drop((home, again));
        assert_eq!(now(), (ids.uid, ids.gid, 0o755));
        assert_eq!(Home::is_abandoned(name, ids), Ok(false));
        std::fs::remove_dir(&path).expect("rmdir");
    }
}
