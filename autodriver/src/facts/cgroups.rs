//! Where cgroups can be made: which hierarchies are mounted, where we are in them, what is ours.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::procfs::Procfs;

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

/// Why no cgroup can be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lacking {
    /// No hierarchy with memory, pids and cpu is mounted.
    #[default]
    Mount,
    /// It is mounted read-only, as container engines do.
    Writable,
    /// It is not ours to write.
    Delegation,
    /// What we could write passes no controllers on, because other processes than this are in it.
    Occupied,
}

/// A cgroup whose account can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accounting {
    /// Of cgroup v2.
    V2(PathBuf),
    /// Of cgroup v1.
    V1(PathBuf),
}

/// The cgroup that this driver is in, a container's for example: it counts the job with everything else
/// that is in it. The root of a hierarchy counts the whole machine, and is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enclosing {
    /// Counts memory.
    pub memory: Option<Accounting>,
    /// Counts CPU time.
    pub cpu: Option<Accounting>,
}

/// Looks at the machine: the text of proc_pid_mountinfo(5) and of proc_pid_cgroup(5), and the files of
/// the hierarchies.
pub(super) fn find(mountinfo: &[u8], own: &str) -> (Hierarchy, Lacking) {
    hierarchy(mountinfo, own, |path| fs::read_to_string(path).unwrap_or_default(), writable)
}

impl Accounting {
    /// Whether nobody is in the cgroup but us and those who wait for us: else it says little of a job.
    fn is_ours(&self, lineage: &[Pid]) -> bool {
        let (Accounting::V1(place) | Accounting::V2(place)) = self;
        let listed = listed(&place.join("cgroup.procs"));
        listed.is_ok_and(|pids| pids.iter().all(|pid| lineage.contains(pid)))
    }
}

/// The processes in a list of a cgroup's. It is opened anew: with cgroup v1 the kernel remembers the list of
/// an open file.
///
/// # Errors
/// Those of open(2) and read(2), ESRCH for a process outside of our PID namespace, E2BIG for very many.
pub fn listed(list: &Path) -> Result<Vec<Pid>, Errno> {
    const MOST: u64 = 64 << 10;
    let mut text = String::new();
    let failed = |error: std::io::Error| crate::fault::errno_of(&error);
    fs::File::open(list).map_err(failed)?.take(MOST).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 == MOST {
        return Err(Errno::E2BIG);
    }
    let pid = |line: &str| line.parse().ok().filter(|pid| *pid > 0).map(Pid::from_raw).ok_or(Errno::ESRCH);
    text.lines().map(pid).collect()
}

/// Looks which accounts of our own cgroup can be read and are ours alone.
pub(super) fn find_enclosing(mountinfo: &[u8], own: &str) -> Enclosing {
    let lineage = Procfs::open().map(|mut procfs| procfs.lineage()).unwrap_or_default();
    let Enclosing { memory, cpu } = enclosing(mountinfo, own, |path| path.exists());
    let ours = |accounting: &Accounting| accounting.is_ours(&lineage);
    Enclosing { memory: memory.filter(ours), cpu: cpu.filter(ours) }
}

fn enclosing(mountinfo: &[u8], own: &str, exists: impl Fn(&Path) -> bool) -> Enclosing {
    let mut found = Enclosing::default();
    for mount in mounts(mountinfo) {
        match mount.fstype {
            b"cgroup2" => {
                let place = own_directory(&mount, own, "");
                let has = |name: &str| exists(&place.join(name));
                // Only the root has no type.
                if has("cgroup.type") && has("memory.stat") {
                    found.memory = Some(Accounting::V2(place.clone()));
                }
                if has("cgroup.type") && has("cpu.stat") {
                    found.cpu = Some(Accounting::V2(place.clone()));
                }
            }
            b"cgroup" => {
                let memory = (mount.has("memory"), "memory", "memory.stat", &mut found.memory);
                let cpu = (mount.has("cpuacct"), "cpuacct", "cpuacct.usage", &mut found.cpu);
                for (mounted, controller, file, account) in [memory, cpu] {
                    let place = own_directory(&mount, own, controller);
                    // Only the root has an agent.
                    let counts =
                        |place: &Path| exists(&place.join(file)) && !exists(&place.join("release_agent"));
                    if mounted && account.is_none() && counts(&place) {
                        *account = Some(Accounting::V1(place));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

/// A line of proc_pid_mountinfo(5).
struct Mount<'a> {
    root: &'a [u8],
    point: PathBuf,
    fstype: &'a [u8],
    super_options: &'a [u8],
}

impl Mount<'_> {
    /// Whether it is of the controller's hierarchy, in cgroup v1.
    fn has(&self, controller: &str) -> bool {
        self.super_options.split(|byte| *byte == b',').any(|word| word == controller.as_bytes())
    }
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

/// Whether a directory can be made below this one.
fn writable(path: &Path) -> Result<(), Lacking> {
    use nix::unistd::{eaccess, AccessFlags};
    match eaccess(path, AccessFlags::W_OK) {
        Ok(()) => Ok(()),
        Err(Errno::EROFS) => Err(Lacking::Writable),
        Err(_) => Err(Lacking::Delegation),
    }
}

/// Whether a v2 cgroup passes its controllers on, or could: the root may always, others once no process
/// is in them (cgroup-v2.rst, "No Internal Process Constraint"), and this one can go aside.
fn passes_on(place: &Path, read: impl Fn(&Path) -> String) -> Result<(), Lacking> {
    let enabled = read(&place.join("cgroup.subtree_control"));
    let has = |name: &str| enabled.split_whitespace().any(|word| word == name);
    let is_root = read(&place.join("cgroup.type")).is_empty();
    let own = std::process::id().to_string();
    if is_root || ["memory", "pids", "cpu"].into_iter().all(has) {
        return Ok(());
    }
    match read(&place.join("cgroup.procs")).lines().all(|pid| pid == own) {
        true => Ok(()),
        false => Err(Lacking::Occupied),
    }
}

/// Finds the hierarchies by mountinfo, and our place in them by proc_pid_cgroup(5).
fn hierarchy(
    mountinfo: &[u8],
    own: &str,
    read: impl Fn(&Path) -> String,
    writable: impl Fn(&Path) -> Result<(), Lacking>,
) -> (Hierarchy, Lacking) {
    let (mut v1, mut lacking) = (V1::default(), Lacking::Mount);
    for mount in mounts(mountinfo) {
        if mount.fstype == b"cgroup2" {
            // The top, where that is ours; else what was delegated to us.
            for place in [mount.point.clone(), own_directory(&mount, own, "")] {
                let controllers = read(&place.join("cgroup.controllers"));
                let has = |name: &str| controllers.split_whitespace().any(|word| word == name);
                if !["memory", "pids", "cpu"].into_iter().all(has) {
                    continue;
                }
                let usable = writable(&place)
                    .and_then(|()| writable(&place.join("cgroup.subtree_control")))
                    .and_then(|()| passes_on(&place, &read));
                match usable {
                    Ok(()) => return (Hierarchy::V2(place), Lacking::Mount),
                    Err(why) => lacking = why,
                }
            }
        } else if mount.fstype == b"cgroup" {
            for (name, place) in [
                ("memory", &mut v1.memory),
                ("pids", &mut v1.pids),
                ("cpu", &mut v1.cpu),
                ("cpuacct", &mut v1.cpuacct),
            ] {
                if !mount.has(name) || place.is_some() {
                    continue;
                }
                let directory = own_directory(&mount, own, name);
                match writable(&directory) {
                    Ok(()) => *place = Some(directory),
                    Err(why) => lacking = why,
                }
            }
        }
    }
    if v1 == V1::default() {
        (Hierarchy::None, lacking)
    } else {
        (Hierarchy::V1(v1), lacking)
    }
}

/// The directory of our own cgroup: what we make below it stays within its limits.
fn own_directory(mount: &Mount<'_>, own: &str, controller: &str) -> PathBuf {
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

    fn found(mountinfo: &[u8], own: &str, controllers: &str) -> Hierarchy {
        hierarchy(mountinfo, own, |_| controllers.to_owned(), |_| Ok(())).0
    }

    #[test]
    fn v2_is_taken_where_it_has_the_controllers() {
        let found = found(V2.as_bytes(), "0::/user.slice\n", "cpuset cpu io memory pids\n");
        assert_eq!(found, Hierarchy::V2("/sys/fs/cgroup".into()));
    }

    #[test]
    fn a_delegated_group_is_taken_where_the_top_is_not_ours() {
        let read = |path: &Path| match path.ends_with("cgroup.procs") {
            true => String::new(),
            false => "cpu memory pids\n".to_owned(),
        };
        let ours = |path: &Path| match path.starts_with("/sys/fs/cgroup/user/a.scope") {
            true => Ok(()),
            false => Err(Lacking::Delegation),
        };
        let found = hierarchy(V2.as_bytes(), "0::/user/a.scope\n", read, ours);
        assert_eq!(found.0, Hierarchy::V2("/sys/fs/cgroup/user/a.scope".into()));
        let occupied = |path: &Path| {
            let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
            let files = [
                ("cgroup.controllers", "cpu memory pids\n"),
                ("cgroup.type", "domain\n"),
                ("cgroup.procs", "1\n"),
            ];
            files.into_iter().find(|(file, _)| *file == name).map_or("", |(_, text)| text).to_owned()
        };
        let found = hierarchy(V2.as_bytes(), "0::/\n", occupied, |_| Ok(()));
        assert_eq!(found, (Hierarchy::None, Lacking::Occupied));
        let read_only = hierarchy(V2.as_bytes(), "0::/\n", read, |_| Err(Lacking::Writable));
        assert_eq!(read_only, (Hierarchy::None, Lacking::Writable));
    }

    #[test]
    fn mixed_mode_falls_back_to_v1_below_our_own_group() {
        let mounts = [V2, V1_LINES].concat();
        let own = "4:memory:/batch/7\n3:cpu,cpuacct:/\n2:pids:/\n0::/\n";
        let Hierarchy::V1(v1) = found(mounts.as_bytes(), own, "") else { panic!() };
        assert_eq!(v1.memory, Some("/sys/fs/cgroup/memory/batch/7".into()));
        assert_eq!(v1.cpu, v1.cpuacct);
        assert_eq!(v1.pids, Some("/sys/fs/cgroup/pids".into()));
    }

    #[test]
    fn without_hierarchies_there_are_none() {
        assert_eq!(found(b"", "", ""), Hierarchy::None);
    }

    #[test]
    fn a_container_sees_its_own_cgroup_as_the_mount_root() {
        let mounts = "30 25 0:27 /docker/ab /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let Hierarchy::V1(v1) = found(mounts.as_bytes(), "4:memory:/docker/ab\n", "") else { panic!() };
        assert_eq!(v1.memory, Some("/sys/fs/cgroup/memory".into()));
    }

    #[test]
    fn account_of_the_own_group_is_found_and_that_of_the_machine_is_not() {
        let inside = "30 25 0:27 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
            31 25 0:28 /docker/ab /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n";
        let own = "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n";
        let container = |path: &Path| !path.ends_with("release_agent");
        let found = enclosing(inside.as_bytes(), own, container);
        let v1 = |path: &str| Some(Accounting::V1(path.into()));
        assert_eq!(found.memory, v1("/sys/fs/cgroup/memory"));
        assert_eq!(found.cpu, v1("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(enclosing(inside.as_bytes(), own, |_| true), Enclosing::default());

        let v2 = Some(Accounting::V2("/sys/fs/cgroup/a.scope".into()));
        let found = enclosing(V2.as_bytes(), "0::/a.scope\n", |_| true);
        assert_eq!(found, Enclosing { memory: v2.clone(), cpu: v2 });
        let machine = |path: &Path| !path.ends_with("cgroup.type");
        assert_eq!(enclosing(V2.as_bytes(), "0::/\n", machine), Enclosing::default());
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), b"/a b\\c");
    }
}
