//! What the kernel says of a job from outside, at the moment of its execve(2): what a layer of the sandbox
//! makes of a process. Two jobs with the same layers have the same, but for the uid, which stands as `UID`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use autodriver_protocol::Layer;
use nix::unistd::Pid;

/// For each layer that shows there: what is seen of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sight(pub(super) BTreeMap<&'static str, (Layer, String)>);

const NAMESPACES: [(&str, Layer); 6] = [
    ("pid", Layer::PidNamespace),
    ("mnt", Layer::MountNamespace),
    ("net", Layer::NetworkNamespace),
    ("ipc", Layer::IpcNamespace),
    ("uts", Layer::UtsNamespace),
    ("cgroup", Layer::CgroupNamespace),
];

/// Lines of /proc/PID/status.
const STATUS: [(&str, Layer); 11] = [
    ("Uid", Layer::Identity),
    ("Gid", Layer::Identity),
    ("Groups", Layer::Identity),
    ("CapInh", Layer::Identity),
    ("CapPrm", Layer::Identity),
    ("CapEff", Layer::Identity),
    ("CapBnd", Layer::Identity),
    ("CapAmb", Layer::Identity),
    ("NoNewPrivs", Layer::NoNewPrivs),
    ("Seccomp", Layer::Seccomp),
    ("Seccomp_filters", Layer::Seccomp),
];

/// Files of a cgroup that hold a limit, by the two versions' names.
const LIMITS: [(&str, Layer); 8] = [
    ("memory.limit_in_bytes", Layer::Memory),
    ("memory.memsw.limit_in_bytes", Layer::Memory),
    ("memory.max", Layer::Memory),
    ("memory.swap.max", Layer::Memory),
    ("pids.max", Layer::Pids),
    ("cpu.cfs_quota_us", Layer::Cpu),
    ("cpu.max", Layer::Cpu),
    ("cpuacct.usage_user", Layer::Cpu),
];

impl Sight {
    /// Looks at a process that is under so many rule sets of Landlock.
    ///
    /// # Errors
    /// Those of reading /proc.
    pub(super) fn of(pid: Pid, rulesets: u32) -> io::Result<Sight> {
        let proc = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let mut seen = Sight::default();
        seen.0.insert("rule sets", (Layer::Landlock, rulesets.to_string()));
        let status = proc("status")?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let uid = field("Uid").and_then(|ids| ids.split_whitespace().next()).unwrap_or("?").to_owned();
        let neutral = |text: &str| match uid.len() {
            5 => text.replace(&uid, "UID"),
            _ => text.to_owned(),
        };
        for (name, layer) in STATUS {
            seen.0.insert(name, (layer, neutral(field(name).unwrap_or("").trim())));
        }
        for (name, layer) in NAMESPACES {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{name}"));
            let own = if of(&pid.to_string())? == of("thread-self")? { "the machine's" } else { "another" };
            seen.0.insert(name, (layer, own.to_owned()));
        }
        let limits = proc("limits")?;
        let (processes, others): (Vec<&str>, Vec<&str>) =
            limits.lines().partition(|line| line.starts_with("Max processes"));
        seen.0.insert("limits", (Layer::Rlimits, others.join("\n")));
        // It depends on what else counts them.
        seen.0.insert("processes", (Layer::Pids, processes.join("\n")));
        let mounts = proc("mountinfo")?;
        let mounts: Vec<String> = mounts.lines().map(|line| neutral(&mount(line))).collect();
        let (mounts, sizes): (Vec<String>, Vec<String>) = mounts.iter().map(|mount| sizes(mount)).unzip();
        seen.0.insert("mounts", (Layer::MountNamespace, mounts.join("\n")));
        seen.0.insert("sizes", (Layer::Disk, sizes.join("\n")));
        let mut descriptors: Vec<_> =
            fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().map(|entry| entry.file_name()).collect();
        descriptors.sort();
        seen.0.insert("descriptors", (Layer::ProcessTree, format!("{descriptors:?}")));
        let groups = proc("cgroup")?;
        for (name, layer) in LIMITS {
            let limit = groups.lines().find_map(|line| limit(line, name));
            seen.0.insert(name, (layer, neutral(&limit.unwrap_or_default())));
        }
        Ok(seen)
    }
}

/// What is mounted where, without numbers that are others in each namespace.
fn mount(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let (own, file_system) = line.split_once(" - ").unwrap_or((line, ""));
    let own: Vec<&str> = own.split(' ').skip(3).take(3).collect();
    assert!(words.len() > 6, "a line of mountinfo: {line}");
    format!("{} {file_system}", own.join(" "))
}

/// A mount without the sizes of its file system, and these.
fn sizes(mount: &str) -> (String, String) {
    let is_size = |option: &&str| option.starts_with("size=") || option.starts_with("nr_inodes=");
    let (sizes, rest): (Vec<&str>, Vec<&str>) = mount.split(',').partition(is_size);
    (rest.join(","), sizes.join(","))
}

/// The cgroup that a line of /proc/PID/cgroup names, and a limit of it, if it has one of this name.
fn limit(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let hierarchies = match controllers {
        "" => vec![String::new(), "unified".into()],
        _ => controllers.split(',').map(str::to_owned).collect(),
    };
    hierarchies.iter().find_map(|hierarchy| {
        let file = Path::new("/sys/fs/cgroup").join(hierarchy).join(path.trim_start_matches('/')).join(name);
        let value = match name.starts_with("cpuacct") {
            // Not a limit, but what CPU time is read from.
            true => file.exists().then(|| "there".to_owned()),
            false => fs::read_to_string(file).ok(),
        };
        Some(format!("{controllers}:{path} {}", value?.trim()))
    })
}
