//! The driver out of its jobs' way: in what a container or systemd delegates, it is itself the process
//! that keeps a v2 cgroup from passing its controllers on.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{mkdirat, Mode};

use super::cgroup::{delegate, fault, remove_directory, PREFIX};
use crate::facts::Hierarchy;
use crate::fault::{errno_of, Fault};

/// What the directory is called into which a driver goes out of the jobs' way.
const ASIDE: &str = "driver-";

/// Where a driver is that went out of its jobs' way. Dropping it goes back.
#[derive(Debug)]
pub struct Aside {
    place: PathBuf,
    leaf: PathBuf,
}

impl Aside {
    /// Goes into a leaf, if the controllers cannot be passed on otherwise: but for the root of the
    /// hierarchy, a cgroup that passes controllers on has no processes of its own (cgroup-v2.rst, "No
    /// Internal Process Constraint"), and in what a container or systemd delegates, we are one.
    ///
    /// # Errors
    /// What is in the way; then we are back where we were.
    pub fn go(hierarchy: &Hierarchy) -> Result<Option<Aside>, Fault> {
        let Hierarchy::V2(place) = hierarchy else { return Ok(None) };
        match delegate(place) {
            Ok(()) => return Ok(None),
            Err(fault) if fault.errno == Some(Errno::EBUSY) => {}
            Err(fault) => return Err(fault),
        }
        let leaf = place.join(format!("{PREFIX}{ASIDE}{}", std::process::id()));
        mkdirat(AT_FDCWD, &leaf, Mode::from_bits_truncate(0o755))
            .map_err(|errno| fault("make", &leaf, errno))?;
        let aside = Aside { place: place.clone(), leaf };
        enter(&aside.leaf)?;
        delegate(place)?;
        Ok(Some(aside))
    }
}

/// `0` names the writer.
fn enter(group: &Path) -> Result<(), Fault> {
    let file = group.join("cgroup.procs");
    std::fs::write(&file, "0").map_err(|error| fault("write '0' to", &file, errno_of(&error)))
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Refused as long as another driver has jobs there: then it is the last one that takes them back.
        let _ = std::fs::write(self.place.join("cgroup.subtree_control"), "-memory -pids -cpu");
        let _ = enter(&self.place);
        let _ = remove_directory(&self.leaf);
    }
}

/// The driver whose leaf this is: the pid in its name.
pub fn driver_of(tag: &str) -> Option<u32> {
    tag.strip_prefix(ASIDE)?.parse().ok()
}
