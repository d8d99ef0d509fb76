//! What this machine offers. Only [`probe`] touches the system, and it changes nothing; the plan
//! is made from the value alone.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where this driver may make cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hierarchy {
    /// No hierarchy has what is needed.
    #[default]
    None,
    /// One directory with the controllers memory, pids and cpu.
    V2(PathBuf),
    /// One directory for each controller that is mounted.
    V1(V1),
}

/// Where each controller's directory is, in cgroup v1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct V1 {
    /// `memory`
    pub memory: Option<PathBuf>,
    /// `pids`
    pub pids: Option<PathBuf>,
    /// `cpu`
    pub cpu: Option<PathBuf>,
    /// `cpuacct`
    pub cpuacct: Option<PathBuf>,
}

/// What this machine offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Effective uid 0.
    pub root: bool,
    /// Whether CAP_SYS_ADMIN is effective: namespaces and mounts.
    pub sys_admin: bool,
    /// Where cgroups can be made.
    pub hierarchy: Hierarchy,
    /// Landlock ABI version; 0 where the kernel has none.
    pub landlock_abi: i32,
    /// Most memory for files put before a job's own limits are known: half of the machine's, bytes.
    pub half_memory: u64,
    /// Online processors.
    pub processors: u64,
}

/// Looks at the machine.
pub fn probe() -> Facts {
    let mountinfo = read_whole("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let effective = |capability| caps::has_cap(None, caps::CapSet::Effective, capability).unwrap_or(false);
    Facts {
        root: nix::unistd::geteuid().is_root(),
        sys_admin: effective(caps::Capability::CAP_SYS_ADMIN),
        hierarchy: hierarchy(&mountinfo, &own, |path| fs::read_to_string(path).unwrap_or_default()),
        landlock_abi: crate::sys::process::landlock_abi(),
        half_memory: nix::sys::sysinfo::sysinfo().map_or(1 << 30, |info| info.ram_total() / 2),
        processors: processors(),
    }
}

/// A file of /proc, which says of none how long it is.
fn read_whole(path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(1 << 14);
    fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Those this process may use; what a quota leaves of them does not matter for a bound.
fn processors() -> u64 {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count = |set: nix::sched::CpuSet| {
        (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count() as u64
    };
    set.map_or(1, count).max(1)
}

/// A line of proc_pid_mountinfo(5).
struct Mount<'a> {
    root: &'a [u8],
    point: PathBuf,
    fstype: &'a [u8],
    super_options: &'a [u8],
}

fn mounts(mountinfo: &[u8]) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let (fstype, _source, super_options) = (rest.next()?, rest.next()?, rest.next()?);
        Some(Mount { root, point: PathBuf::from(OsString::from_vec(unescape(point))), fstype, super_options })
    })
}

/// Undoes the octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if *byte == b'\\' => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    out
}

/// Finds the hierarchies by mountinfo, and our place in them by proc_pid_cgroup(5).
fn hierarchy(mountinfo: &[u8], own: &str, read: impl Fn(&Path) -> String) -> Hierarchy {
    let mut v1 = V1::default();
    for mount in mounts(mountinfo) {
        if mount.fstype == b"cgroup2" {
            let controllers = read(&mount.point.join("cgroup.controllers"));
            let has = |name: &str| controllers.split_whitespace().any(|word| word == name);
            if ["memory", "pids", "cpu"].into_iter().all(has) {
                return Hierarchy::V2(mount.point);
            }
        } else if mount.fstype == b"cgroup" {
            let has = |name: &str| {
                mount.super_options.split(|byte| *byte == b',').any(|word| word == name.as_bytes())
            };
            for (name, place) in [
                ("memory", &mut v1.memory),
                ("pids", &mut v1.pids),
                ("cpu", &mut v1.cpu),
                ("cpuacct", &mut v1.cpuacct),
            ] {
                if has(name) && place.is_none() {
                    *place = Some(own_v1_directory(&mount, own, name));
                }
            }
        }
    }
    if v1 == V1::default() {
        Hierarchy::None
    } else {
        Hierarchy::V1(v1)
    }
}

/// The directory of our own cgroup: what we make below it stays within its limits.
fn own_v1_directory(mount: &Mount<'_>, own: &str, controller: &str) -> PathBuf {
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    });
    let root = String::from_utf8_lossy(mount.root);
    let below = path.and_then(|path| path.strip_prefix(&*root)).unwrap_or("");
    mount.point.join(below.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "29 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_LINES: &str = "30 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        31 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 25 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

    #[test]
    fn v2_is_taken_where_it_has_the_controllers() {
        let found = hierarchy(V2.as_bytes(), "0::/user.slice\n", |_| "cpuset cpu io memory pids\n".into());
        assert_eq!(found, Hierarchy::V2("/sys/fs/cgroup".into()));
    }

    #[test]
    fn mixed_mode_falls_back_to_v1_below_our_own_group() {
        let mounts = [V2, V1_LINES].concat();
        let own = "4:memory:/batch/7\n3:cpu,cpuacct:/\n2:pids:/\n0::/\n";
        let Hierarchy::V1(v1) = hierarchy(mounts.as_bytes(), own, |_| String::new()) else { panic!() };
        assert_eq!(v1.memory, Some("/sys/fs/cgroup/memory/batch/7".into()));
        assert_eq!(v1.cpu, v1.cpuacct);
        assert_eq!(v1.pids, Some("/sys/fs/cgroup/pids".into()));
    }

    #[test]
    fn without_hierarchies_there_are_none() {
        assert_eq!(hierarchy(b"", "", |_| String::new()), Hierarchy::None);
    }

    #[test]
    fn a_container_sees_its_own_cgroup_as_the_mount_root() {
        let mounts = "30 25 0:27 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let Hierarchy::V1(v1) = hierarchy(mounts.as_bytes(), "4:memory:/docker/ab\n", |_| String::new())
        else {
            panic!()
        };
        assert_eq!(v1.memory, Some("/sys/fs/cgroup/memory".into()));
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), b"/a b\\c");
    }
}
