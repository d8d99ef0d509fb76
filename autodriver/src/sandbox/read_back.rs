//! What the kernel says of the job before it is executed. Not every call that takes something away
//! reports that it did not: setgroups(2) in a user namespace, capability sets under securebits, a
//! filter that a container's own filter answered for. A difference is a fault of the set-up.

use autodriver_protocol::Layer;
use nix::errno::Errno;
use nix::fcntl::{openat, AtFlags, OFlag, AT_FDCWD};
use nix::sys::stat::{fstatat, Mode};

use super::prepare::Prepared;
use super::privileges::Identity;
#[cfg(test)]
use super::privileges::Ids;
use super::{on, Failed};
use crate::sys::fd::read_file;
use crate::sys::process::securebits_are_locked;

/// The acts, for messages; indices below. What is wrong is said by the field of proc_pid_status(5).
pub(super) const ACTS: [&str; 6] = [
    "read back the job's status",
    "read back Uid and Gid: they are not the job's",
    "read back Groups: they are not the job's",
    "read back CapInh, CapPrm, CapEff, CapBnd, CapAmb and securebits: they are not empty and locked",
    "read back NoNewPrivs: it is not set",
    "read back Seccomp: the filters are not in force",
];

const DIFFERS: Errno = Errno::EPERM;

/// Last, when nothing changes any more.
pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    let Some(text) = about_us("/proc/self/status").map_err(on(0))? else { return Ok(()) };
    compare(&Status(&text), prepared.expected())
}

/// `None` where there is nothing to read: an image without /proc, and no mount namespace in which the job got one.
fn about_us(path: &str) -> Result<Option<String>, Errno> {
    match read_file(AT_FDCWD, path) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What the status has to say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) identity: Identity,
    pub(super) no_new_privs: bool,
    /// Filters in force, the container's and ours; `None` without ours.
    pub(super) filters: Option<u32>,
}

fn compare(status: &Status<'_>, expected: Expected) -> Result<(), Failed> {
    let check = |index: usize, holds: bool| if holds { Ok(()) } else { Err(on(index)(DIFFERS)) };
    if let Identity::Own(ids) = expected.identity {
        let all = |key: &str, id: u32| {
            let id = id.to_string();
            status.words(key).count() == 4 && status.words(key).all(|word| word == id)
        };
        check(1, all("Uid:", ids.uid) && all("Gid:", ids.gid))?;
        let is_own = |word: &str| ids.groups.iter().any(|group| word == group.to_string());
        check(2, status.words("Groups:").all(is_own))?;
    }
    if expected.identity != Identity::Callers {
        let empty = |key: &str| status.words(key).all(|hex| hex.bytes().all(|digit| digit == b'0'));
        let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];
        check(3, sets.into_iter().all(empty) && securebits_are_locked().unwrap_or(false))?;
    }
    check(4, !expected.no_new_privs || status.words("NoNewPrivs:").eq(["1"]))?;
    if let Some(count) = expected.filters {
        // The count is there since Linux 5.9.
        let counted = status.words("Seccomp_filters:").next().is_none_or(|word| word == count.to_string());
        check(5, status.words("Seccomp:").eq(["2"]) && counted)?;
    }
    Ok(())
}

/// The text of proc_pid_status(5).
struct Status<'a>(&'a str);

impl<'a> Status<'a> {
    fn words(&self, key: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or("").split_whitespace()
    }
}

/// Whether the job is in the cgroup directory of that name, in every hierarchy where it has one. The
/// paths are relative to the cgroup namespace, which is still the driver's: cgroup_namespaces(7).
pub(super) fn is_in_cgroup(name: &str, hierarchies: usize) -> Result<(), Errno> {
    let Some(text) = about_us("/proc/self/cgroup")? else { return Ok(()) };
    let inside = text.lines().filter(|line| line.ends_with(&format!("/{name}"))).count();
    if inside >= hierarchies {
        Ok(())
    } else {
        Err(DIFFERS)
    }
}

/// The namespaces that init leaves, as /proc names them.
pub(super) const NAMESPACES: [(Layer, &str); 5] = [
    (Layer::PidNamespace, "pid"),
    (Layer::MountNamespace, "mnt"),
    (Layer::NetworkNamespace, "net"),
    (Layer::IpcNamespace, "ipc"),
    (Layer::UtsNamespace, "uts"),
];

/// What they are for us, by their inodes, which are their names: namespaces(7). 0 where there is no /proc to ask.
pub(super) fn namespaces() -> [u64; 5] {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(directory) = openat(AT_FDCWD, "/proc/self/ns", flags, Mode::empty()) else { return [0; 5] };
    NAMESPACES.map(|(_, name)| fstatat(&directory, name, AtFlags::empty()).map_or(0, |file| file.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "Name:\tx\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t \nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";

    fn index(text: &str, identity: Identity) -> Option<u16> {
        let expected = Expected { identity, no_new_privs: true, filters: Some(2) };
        compare(&Status(text), expected).err().map(|failed| failed.index)
    }

    #[test]
    fn each_difference_is_found() {
        let own = Identity::Own(Ids::alone(7));
        // The test's own securebits are not locked, which is the one difference left.
        assert_eq!(index(GOOD, own), Some(3));
        assert_eq!(index(GOOD, Identity::Callers), None);
        for (from, to, number) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t7\t0\t7", 1),
            ("Gid:\t7\t7\t7\t7", "Gid:\t7\t0\t7\t7", 1),
            ("Groups:\t ", "Groups:\t27 ", 2),
        ] {
            assert_eq!(index(&GOOD.replace(from, to), own), Some(number), "{to}");
        }
        for (from, to, number) in [
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", 4),
            ("Seccomp:\t2", "Seccomp:\t0", 5),
            ("Seccomp_filters:\t2", "Seccomp_filters:\t1", 5),
        ] {
            assert_eq!(index(&GOOD.replace(from, to), Identity::Callers), Some(number), "{to}");
        }
        assert_eq!(index(&GOOD.replace("Seccomp_filters:\t2\n", ""), Identity::Callers), None, "Linux 5.8");
    }
}
