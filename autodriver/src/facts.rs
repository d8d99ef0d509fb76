//! What this machine offers. Only [`probe`] touches the system, and it changes nothing; the plan
//! is made from the value alone.

use std::fs;

use autodriver_protocol::Layer;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;

use crate::fault::{Fault, Step};
use crate::sys::fd::read_file;
use crate::sys::mount;
use crate::uids;

mod cgroups;
mod trial;
#[cfg(test)]
pub use cgroups::V1;
pub use cgroups::{listed, Accounting, Enclosing, Hierarchy, Lacking};

/// How a job can be given namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// We have CAP_SYS_ADMIN.
    Direct,
    /// By way of a user namespace, in which there is only our own uid.
    User,
    /// Not at all: why, and what to do about it.
    Refused {
        /// Why.
        reason: String,
        /// What to do.
        remedy: String,
    },
}

/// What this machine offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Effective uid.
    pub uid: u32,
    /// Whether jobs can have uids of their own: CAP_SETUID, CAP_SETGID and CAP_SETPCAP, and, in a
    /// user namespace, the range mapped.
    pub own_uids: Result<(), String>,
    /// How namespaces can be had.
    pub namespaces: Namespaces,
    /// Namespaces that cannot be had all the same, and why.
    pub without: Vec<(Layer, String)>,
    /// Whether the loopback interface of a new network namespace can be brought up.
    pub loopback: bool,
    /// Where cgroups can be made.
    pub hierarchy: Hierarchy,
    /// Why there is no more of it.
    pub lacking: Lacking,
    /// What counts the job along with us, where no cgroup can be made for it.
    pub enclosing: Enclosing,
    /// Whether a process can be born inside a cgroup: clone3(2).
    pub clone3: bool,
    /// System-call filters that are in force for us.
    pub filters: u32,
    /// Landlock ABI version; 0 where the kernel has none.
    pub landlock_abi: i32,
    /// Most memory for files put before a job's own limits are known: half of the machine's, bytes.
    pub half_memory: u64,
    /// Online processors.
    pub processors: u64,
    /// Processes and threads of our own uid, where jobs share it with them.
    pub own_processes: u64,
}

impl Facts {
    /// A machine that offers everything.
    #[cfg(test)]
    pub fn full() -> Facts {
        Facts {
            uid: 0,
            own_uids: Ok(()),
            namespaces: Namespaces::Direct,
            without: Vec::new(),
            loopback: true,
            hierarchy: Hierarchy::V2("/sys/fs/cgroup".into()),
            lacking: Lacking::Mount,
            enclosing: Enclosing::default(),
            clone3: true,
            filters: 0,
            landlock_abi: 7,
            half_memory: 1 << 30,
            processors: 2,
            own_processes: 0,
        }
    }

    /// Goes to where the namespaces of jobs can be made, if this driver is not there: into a user
    /// namespace, and a mount namespace of it that nobody else sees.
    ///
    /// # Errors
    /// What could not be made, though it could be at the trial.
    pub fn enter_namespaces(&self) -> Result<(), Fault> {
        if self.namespaces != Namespaces::User {
            return Ok(());
        }
        trial::enter_user_namespace()
            .and_then(|()| mount::enter_namespace())
            .map_err(|errno| Fault::new(Step::Namespaces, "enter a user namespace", errno))
    }

    /// Whether jobs get mounts of their own.
    pub fn mounts(&self) -> bool {
        !matches!(self.namespaces, Namespaces::Refused { .. })
    }
}

/// Looks at the machine.
///
/// # Errors
/// What could not be read, though it is there: less would be found than the machine has, or a job be put
/// outside of the cgroup whose limits are the driver's.
pub fn probe() -> Result<Facts, Fault> {
    let own = about_us("cgroup")?;
    // Without knowing where we are, none of the hierarchies is ours.
    let mountinfo = about_us("mountinfo")?.filter(|_| own.is_some()).unwrap_or_default();
    let own = String::from_utf8_lossy(&own.unwrap_or_default()).into_owned();
    let status = match about_us("status")? {
        Some(text) => Status::parse(&String::from_utf8_lossy(&text)),
        None => Status::asked()?,
    };
    let uid = nix::unistd::geteuid().as_raw();
    let maps = String::from_utf8_lossy(&about_us("uid_map")?.unwrap_or_default()).into_owned();
    let (namespaces, without) = namespaces(uid, &status, &maps);
    let (hierarchy, lacking) = cgroups::find(&mountinfo, &own);
    let shared = uid != 0 && matches!(namespaces, Namespaces::Refused { .. });
    Ok(Facts {
        uid,
        own_uids: own_uids(&status, &maps),
        own_processes: if shared { own_processes(uid) } else { 0 },
        // In a user namespace of our own we have every capability.
        loopback: status.has(CAP_NET_ADMIN) || namespaces == Namespaces::User,
        namespaces,
        without,
        // An ordinary user's is a session's, where much else goes on.
        enclosing: match hierarchy {
            Hierarchy::None if uid == 0 => cgroups::find_enclosing(&mountinfo, &own),
            _ => Enclosing::default(),
        },
        hierarchy,
        lacking,
        filters: status.filters,
        clone3: crate::sys::process::has_clone3(),
        landlock_abi: crate::sys::process::landlock_abi(),
        half_memory: nix::sys::sysinfo::sysinfo().map_or(1 << 30, |info| info.ram_total() / 2),
        processors: processors(),
    })
}

/// Bits of the capability sets in proc_pid_status(5): capabilities(7).
const CAP_SETGID: u64 = 1 << 6;
const CAP_SETUID: u64 = 1 << 7;
const CAP_SETPCAP: u64 = 1 << 8;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// What proc_pid_status(5) says of us.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    effective: u64,
    /// System-call filters in force, as in every container.
    filters: u32,
}

impl Status {
    fn parse(text: &str) -> Status {
        let field = |key: &str| text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim()));
        Status {
            effective: field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0),
            filters: match field("Seccomp_filters:") {
                Some(count) => count.parse().unwrap_or(0),
                // Before Linux 5.9.
                None => u32::from(field("Seccomp:").is_some_and(|mode| mode != "0")),
            },
        }
    }

    /// Where /proc does not say it.
    fn asked() -> Result<Status, Fault> {
        let read = caps::read(None, caps::CapSet::Effective);
        let failed = |error: caps::errors::CapsError| {
            Fault::refused(Step::Request, "read our capabilities", error.to_string())
        };
        let effective = read.map_err(failed)?.iter().fold(0, |mask, capability| mask | capability.bitmask());
        Ok(Status { effective, filters: 0 })
    }

    fn has(&self, capability: u64) -> bool {
        self.effective & capability != 0
    }
}

/// The whole of the machine's uids, as user_namespaces(7) shows them outside any user namespace.
fn is_initial(maps: &str) -> bool {
    maps.split_whitespace().eq(["0", "0", "4294967295"])
}

fn own_uids(status: &Status, maps: &str) -> Result<(), String> {
    let needed = [(CAP_SETUID, "CAP_SETUID"), (CAP_SETGID, "CAP_SETGID"), (CAP_SETPCAP, "CAP_SETPCAP")];
    if let Some((_, name)) = needed.into_iter().find(|(capability, _)| !status.has(*capability)) {
        return Err(format!("no {name}"));
    }
    let mapped = maps.lines().any(|line| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (fields.next().unwrap_or(0), fields.next(), fields.next().unwrap_or(0));
        first <= u64::from(uids::FIRST) && u64::from(uids::STAND_IN) < first + count
    });
    // An image may have no /proc, and then no user namespace that we could know of.
    if mapped || maps.is_empty() {
        return Ok(());
    }
    Err(format!("the uids {}-{} are not mapped in this user namespace", uids::FIRST, uids::STAND_IN))
}

/// What can be had is known from the capabilities, unless something more may stand in the way: then
/// it is tried, in a process that ends at once.
fn namespaces(uid: u32, status: &Status, maps: &str) -> (Namespaces, Vec<(Layer, String)>) {
    let refused = |reason: String, remedy: &str| {
        (Namespaces::Refused { reason, remedy: remedy.to_owned() }, Vec::new())
    };
    let direct = status.has(CAP_SYS_ADMIN);
    if direct && status.filters == 0 && is_initial(maps) && !is_apparmor_confined() {
        return (Namespaces::Direct, Vec::new());
    }
    if !direct && uid == 0 {
        return refused("no CAP_SYS_ADMIN".into(), CONTAINER);
    }
    match trial::trial(!direct) {
        Ok(without) => (if direct { Namespaces::Direct } else { Namespaces::User }, without),
        Err(failed) if direct => refused(failed.to_string(), CONTAINER),
        Err(failed) => refused(
            failed.to_string(),
            user_namespace_remedy(|path| fs::read_to_string(path).unwrap_or_default()),
        ),
    }
}

/// What makes a container fit for all layers.
const CONTAINER: &str = "docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined \
    --security-opt apparmor=unconfined --security-opt systempaths=unconfined";

/// Whether an AppArmor profile may refuse what the capabilities allow.
fn is_apparmor_confined() -> bool {
    let label = fs::read_to_string("/proc/self/attr/apparmor/current").unwrap_or_default();
    !matches!(label.trim_end_matches(['\n', '\0']), "" | "unconfined")
}

/// What stands in the way of a user without privileges, by the switches that are known for it.
fn user_namespace_remedy(read: impl Fn(&str) -> String) -> &'static str {
    let is = |path: &str, value: &str| read(path).trim() == value;
    if is("/proc/sys/user/max_user_namespaces", "0") {
        "run autodriver as root, or sysctl user.max_user_namespaces=15000"
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "run autodriver as root, or sysctl kernel.unprivileged_userns_clone=1"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "run autodriver as root, or give it an AppArmor profile with the rule 'userns,' \
            (sysctl kernel.apparmor_restrict_unprivileged_userns=0 lifts the ban for all programs)"
    } else {
        "run autodriver as root"
    }
}

/// As RLIMIT_NPROC counts them.
fn own_processes(uid: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process =
        |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
    let own = entries.filter(is_process).filter(|entry| entry.metadata().is_ok_and(|meta| meta.uid() == uid));
    own.map(|entry| fs::read_dir(entry.path().join("task")).map_or(1, |tasks| tasks.count() as u64)).sum()
}

/// What /proc says of us in this file; `None` where an image has no /proc, or hides it.
fn about_us(name: &str) -> Result<Option<Vec<u8>>, Fault> {
    let path = format!("/proc/self/{name}");
    match read_file(AT_FDCWD, &path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::EPERM) => Ok(None),
        Err(errno) => Err(Fault::new(Step::Request, format!("read {path}"), errno)),
    }
}

/// Those this process may use; what a quota leaves of them does not matter for a bound.
fn processors() -> u64 {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let count = |set: nix::sched::CpuSet| {
        (0..nix::sched::CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).count() as u64
    };
    set.map_or(1, count).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_uids_need_three_capabilities_and_the_range() {
        let status = |mask: u64| Status { effective: mask, filters: 1 };
        let docker = status(CAP_SETUID | CAP_SETGID | CAP_SETPCAP);
        assert_eq!(own_uids(&docker, "0 0 4294967295\n"), Ok(()));
        assert_eq!(own_uids(&docker, "0 1000 1\n1 100000 65536\n"), Ok(()));
        assert!(own_uids(&docker, "0 1000 1\n").unwrap_err().contains("not mapped"));
        assert_eq!(own_uids(&status(CAP_SETUID | CAP_SETGID), ""), Err("no CAP_SETPCAP".into()));
    }

    #[test]
    fn status_gives_capabilities_and_the_filter() {
        let text = "Name:\tx\nCapEff:\t00000000a80425fb\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let status = Status::parse(text);
        assert!(status.filters == 1 && status.has(CAP_SETPCAP) && !status.has(CAP_SYS_ADMIN));
    }

    #[test]
    fn the_switch_that_refuses_user_namespaces_is_named() {
        let with = |path: &'static str, value: &'static str| {
            user_namespace_remedy(move |asked| if asked == path { value.to_owned() } else { String::new() })
        };
        for (path, value, word) in [
            ("/proc/sys/user/max_user_namespaces", "0\n", "user.max_user_namespaces="),
            ("/proc/sys/kernel/unprivileged_userns_clone", "0\n", "unprivileged_userns_clone=1"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor profile"),
            ("/proc/version", "x", "as root"),
        ] {
            assert!(with(path, value).contains(word), "{path}");
        }
    }
}
