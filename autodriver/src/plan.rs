//! From a request and the facts to a plan, or a refusal. Pure: nothing here makes a system call,
//! so that every refusal and every degradation is a unit test without root.

use std::ffi::CString;
use std::time::Duration;

use autodriver_protocol::job::{Bind, Net, OnOutput};
use autodriver_protocol::report::{LayerReport, LayerState};
use autodriver_protocol::{Layer, Options};
use nix::sys::resource::Resource;

use crate::facts::{Facts, Hierarchy};

/// Where the job directory is, as the job sees it.
pub const JOB_DIRECTORY: &str = "/job";

/// Why a request was refused: one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

/// Which user the job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A uid of its own from the range.
    Leased,
    /// The uid given.
    Uid(u32),
    /// The account given; looked up in the job's root file system.
    Name(String),
}

/// One row of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    /// Which.
    pub resource: Resource,
    /// Its name, for messages.
    pub name: &'static str,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What a job gets. Only values: descriptors and buffers are made from it later.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Program and arguments.
    pub argv: Vec<CString>,
    /// The whole environment, without what depends on the user's name.
    pub env: Vec<(String, String)>,
    /// Working directory, as the job sees it.
    pub cwd: String,
    /// Where the job directory is, as the job sees it.
    pub home: String,
    /// Where its temporary files go, as the job sees it.
    pub tmp: String,
    /// The job's root file system on this machine.
    pub root: String,
    /// Paths shown to the job besides it.
    pub binds: Vec<Bind>,
    /// Host name the job sees.
    pub hostname: String,
    /// A file for standard input.
    pub stdin: Option<String>,
    /// Which user.
    pub user: User,
    /// Wall clock limit.
    pub wall: Duration,
    /// CPU time limit of the tree.
    pub cpu: Option<Duration>,
    /// Longest time without output.
    pub idle: Option<Duration>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Bytes of memory.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes of storage.
    pub disk: u64,
    /// Files and directories.
    pub inodes: u64,
    /// Bytes of output kept.
    pub output: u64,
    /// What happens past that.
    pub on_output: OnOutput,
    /// stdout and stderr apart.
    pub split: bool,
    /// Lines get the seconds since start.
    pub timestamps: bool,
    /// setrlimit(2), in this order.
    pub rlimits: Vec<Rlimit>,
    /// 32-bit programs are allowed.
    pub abi32: bool,
    /// The job shares the machine's network.
    pub host_network: bool,
    /// Every layer, in order, as it will be once the sandbox stands.
    pub layers: Vec<LayerReport>,
}

impl Plan {
    /// Whether the layer is applied.
    pub fn applies(&self, layer: Layer) -> bool {
        self.layers.iter().any(|report| {
            report.name == layer && matches!(report.state, LayerState::Enforced | LayerState::Substituted)
        })
    }
}

/// Makes the plan.
///
/// # Errors
/// A [`Refusal`] names the option, the value and what is accepted, or the layers that are required
/// and not to be had, each with its reason and remedy.
pub fn plan(options: Options, facts: &Facts) -> Result<Plan, Refusal> {
    let options = options.over(Options::defaults());
    let host_network = options.net == Some(Net::Host);
    let skip =
        |layer: Layer| options.skip.contains(&layer) || (layer == Layer::NetworkNamespace && host_network);
    check_skips(&skip)?;
    let layers = layers(facts, &skip);
    check_requirements(&options, &layers, &skip)?;

    let root = options.root.clone().unwrap_or_else(|| "/".to_owned());
    if !root.starts_with('/') {
        return Err(Refusal(format!("--root '{root}': must be an absolute path")));
    }
    if skip(Layer::MountNamespace) && (root != "/" || !options.bind.is_empty()) {
        return Err(Refusal(
            "--root and --bind need the layer mount-namespace, which --skip leaves out".into(),
        ));
    }
    let hostname = options.hostname.clone().unwrap_or_default();
    if hostname.is_empty() || hostname.len() > 64 || hostname.contains('\0') {
        return Err(Refusal(format!("--hostname '{}': must have 1 to 64 bytes", hostname.escape_default())));
    }
    let pids = at_least_one("--pids", options.pids)?;
    let duration = |time: Option<autodriver_protocol::units::Time>| time.map(|time| time.0);
    let wall = duration(options.wall).unwrap_or_default();
    for (name, time) in
        [("--wall", Some(wall)), ("--cpu", duration(options.cpu)), ("--idle", duration(options.idle))]
    {
        if time.is_some_and(|time| time.is_zero()) {
            return Err(Refusal(format!("{name} 0s: must be longer than that")));
        }
    }
    let memory = options.memory.map_or(0, |size| size.0);
    if memory < MEMORY_MIN {
        return Err(Refusal(format!(
            "--memory {memory}: at least {MEMORY_MIN} bytes are needed to start a program"
        )));
    }
    Ok(Plan {
        argv: arguments(&options.command)?,
        env: environment(&options),
        cwd: options.cwd.clone().unwrap_or_default(),
        home: JOB_DIRECTORY.to_owned(),
        tmp: "/tmp".to_owned(),
        root,
        binds: options.bind.clone(),
        hostname,
        stdin: options.stdin.clone(),
        user: user(options.user.as_deref())?,
        wall,
        cpu: duration(options.cpu),
        idle: duration(options.idle),
        grace: duration(options.grace).unwrap_or_default(),
        memory,
        pids,
        disk: options.disk.map_or(0, |size| size.0),
        inodes: at_least_one("--inodes", options.inodes)?,
        output: options.output.map_or(0, |size| size.0),
        on_output: options.on_output.unwrap_or_default(),
        split: options.split,
        timestamps: options.timestamps,
        // One more than the cgroup allows, so that it is the cgroup that refuses, and counts.
        rlimits: rlimits(&options, if enforces(&layers, Layer::Pids) { pids + 1 } else { pids }),
        abi32: options.abi32,
        host_network,
        layers,
    })
}

fn enforces(layers: &[LayerReport], layer: Layer) -> bool {
    layers.iter().any(|report| report.name == layer && report.state == LayerState::Enforced)
}

/// Less than this cannot hold the pages of any program: execve would be killed.
const MEMORY_MIN: u64 = 1 << 20;

fn at_least_one(name: &str, value: Option<u64>) -> Result<u64, Refusal> {
    const MAX: u64 = 1 << 22;
    match value.unwrap_or(0) {
        number @ 1..=MAX => Ok(number),
        number => Err(Refusal(format!("{name} {number}: must be from 1 to {MAX}"))),
    }
}

fn arguments(command: &[String]) -> Result<Vec<CString>, Refusal> {
    if command.first().is_some_and(String::is_empty) {
        return Err(Refusal("COMMAND '': the program's name is empty".into()));
    }
    let argument = |text: &String| {
        CString::new(text.as_bytes())
            .map_err(|_| Refusal(format!("argument '{}': has a NUL byte", text.escape_default())))
    };
    command.iter().map(argument).collect()
}

/// Reads `--user`.
///
/// # Errors
/// Root, or no user name.
pub fn user(name: Option<&str>) -> Result<User, Refusal> {
    let Some(name) = name else { return Ok(User::Leased) };
    let uid = match name.parse::<u32>() {
        Ok(uid) => uid,
        Err(_) if name == "root" => 0,
        Err(_) if name.is_empty() || name.contains([':', '\0', '\n']) => {
            return Err(Refusal(format!("--user '{}': is no user name", name.escape_default())));
        }
        Err(_) => return Ok(User::Name(name.to_owned())),
    };
    if uid == 0 || uid == u32::MAX {
        return Err(Refusal(format!("--user {name}: a job never runs as root; give another user")));
    }
    Ok(User::Uid(uid))
}

/// What every job has in its environment; `USER` and `LOGNAME` follow with the user's name.
fn environment(options: &Options) -> Vec<(String, String)> {
    let base = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("SHELL", "/bin/sh"),
        ("LANG", "C.UTF-8"),
    ];
    let base = base.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let given = options.env.iter().map(|variable| (variable.0.clone(), variable.1.clone()));
    base.into_iter().chain(given).collect()
}

fn rlimits(options: &Options, pids: u64) -> Vec<Rlimit> {
    let bytes = |size: Option<autodriver_protocol::units::Size>| size.map(|size| size.0);
    // A core_pattern that is a pipe ignores a limit of 0, and honours one of 1: see core(5) and
    // the check of `cprm.limit == 1` in fs/coredump.c. A file of 1 byte is never written either.
    let core = bytes(options.core).map(|core| core.max(1));
    // A second line behind the clock on the whole tree: SIGKILL comes one second later.
    let cpu = options.cpu.map(|time| time.0.as_secs() + 1);
    let rows = [
        (Resource::RLIMIT_CORE, "RLIMIT_CORE", core),
        (Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE", bytes(options.fsize)),
        (Resource::RLIMIT_NOFILE, "RLIMIT_NOFILE", options.nofile),
        (Resource::RLIMIT_STACK, "RLIMIT_STACK", bytes(options.stack)),
        (Resource::RLIMIT_AS, "RLIMIT_AS", bytes(options.address_space)),
        (Resource::RLIMIT_DATA, "RLIMIT_DATA", bytes(options.data)),
        (Resource::RLIMIT_MEMLOCK, "RLIMIT_MEMLOCK", bytes(options.memlock)),
        (Resource::RLIMIT_NPROC, "RLIMIT_NPROC", Some(options.nproc.unwrap_or(pids))),
        (Resource::RLIMIT_SIGPENDING, "RLIMIT_SIGPENDING", options.sigpending),
        (Resource::RLIMIT_MSGQUEUE, "RLIMIT_MSGQUEUE", bytes(options.msgqueue)),
        (Resource::RLIMIT_NICE, "RLIMIT_NICE", Some(0)),
        (Resource::RLIMIT_RTPRIO, "RLIMIT_RTPRIO", Some(0)),
    ];
    let row = |(resource, name, value): (_, _, Option<u64>)| {
        value.map(|value| Rlimit { resource, name, soft: value, hard: value })
    };
    let cpu = cpu.map(|cpu| Rlimit {
        resource: Resource::RLIMIT_CPU,
        name: "RLIMIT_CPU",
        soft: cpu,
        hard: cpu + 1,
    });
    rows.into_iter().filter_map(row).chain(cpu).collect()
}

/// Layers that stand on each other can only be left out together.
fn check_skips(skip: &impl Fn(Layer) -> bool) -> Result<(), Refusal> {
    let needs = [
        (
            Layer::NoNewPrivs,
            Layer::Seccomp,
            "an unprivileged process may install a filter only with no_new_privs",
        ),
        (
            Layer::NoNewPrivs,
            Layer::Landlock,
            "an unprivileged process may restrict itself only with no_new_privs",
        ),
        (Layer::ProcessTree, Layer::PidNamespace, "the end of a PID namespace kills all that is in it"),
    ];
    for (layer, other, why) in needs {
        if skip(layer) && !skip(other) {
            return Err(Refusal(format!("--skip {layer} needs --skip {other} too: {why}")));
        }
    }
    Ok(())
}

fn check_requirements(
    options: &Options,
    layers: &[LayerReport],
    skip: &impl Fn(Layer) -> bool,
) -> Result<(), Refusal> {
    // `minimum` and `all` leave room for --skip; a layer required by name and skipped does not.
    let named = |layer: Layer| options.require.contains(&autodriver_protocol::Requirement::One(layer));
    let required = options.require.iter().flat_map(|requirement| requirement.layers());
    let missing: Vec<String> = layers
        .iter()
        .filter(|report| {
            report.state != LayerState::Enforced && required.clone().any(|layer| layer == report.name)
        })
        .filter(|report| named(report.name) || !skip(report.name))
        .map(|report| {
            let mut text = report.name.to_string();
            for part in [&report.reason, &report.remedy].into_iter().flatten() {
                text.push_str(": ");
                text.push_str(part);
            }
            text
        })
        .collect();
    match missing.as_slice() {
        [] => Ok(()),
        missing => Err(Refusal(format!("required and not to be had: {}", missing.join("; ")))),
    }
}

const AS_ROOT: &str = "run autodriver as root";
const SYS_ADMIN: &str =
    "give the container CAP_SYS_ADMIN and a seccomp profile that allows unshare and mount";

fn layers(facts: &Facts, skip: &impl Fn(Layer) -> bool) -> Vec<LayerReport> {
    Layer::ALL.into_iter().map(|layer| layer_report(layer, facts, skip)).collect()
}

fn layer_report(layer: Layer, facts: &Facts, skip: &impl Fn(Layer) -> bool) -> LayerReport {
    let report = |state| LayerReport { name: layer, state, by: None, reason: None, remedy: None };
    let by = |by: &str| LayerReport { by: Some(by.to_owned()), ..report(LayerState::Enforced) };
    let absent = |reason: &str, remedy: &str| LayerReport {
        reason: Some(reason.to_owned()),
        remedy: Some(remedy.to_owned()),
        ..report(LayerState::Absent)
    };
    let namespace = || match facts.sys_admin {
        true => report(LayerState::Enforced),
        false => absent("no CAP_SYS_ADMIN", if facts.root { SYS_ADMIN } else { AS_ROOT }),
    };
    let controller = |v1: fn(&crate::facts::V1) -> bool| match &facts.hierarchy {
        Hierarchy::V2(_) => by("cgroup v2"),
        Hierarchy::V1(places) if v1(places) => by("cgroup v1"),
        Hierarchy::V1(_) => {
            absent("no cgroup hierarchy has this controller", "mount it below /sys/fs/cgroup")
        }
        Hierarchy::None => absent("no cgroup hierarchy is mounted", "mount cgroup2 at /sys/fs/cgroup"),
    };
    if skip(layer) {
        let reason = match layer {
            Layer::NetworkNamespace => "asked for by --net host or --skip",
            _ => "asked for by --skip",
        };
        return LayerReport { reason: Some(reason.to_owned()), ..report(LayerState::Skipped) };
    }
    match layer {
        Layer::Identity if facts.root => report(LayerState::Enforced),
        Layer::Identity => absent("not root: the job would share the caller's uid", AS_ROOT),
        Layer::NoNewPrivs | Layer::Rlimits | Layer::Seccomp => report(LayerState::Enforced),
        Layer::ProcessTree if !skip(Layer::PidNamespace) && facts.sys_admin => by("pid namespace"),
        Layer::ProcessTree => match &facts.hierarchy {
            Hierarchy::None => absent("neither a pid namespace nor a cgroup", SYS_ADMIN),
            Hierarchy::V2(_) => by("cgroup.kill"),
            Hierarchy::V1(_) => by("cgroup v1, killed until empty"),
        },
        Layer::PidNamespace
        | Layer::MountNamespace
        | Layer::NetworkNamespace
        | Layer::IpcNamespace
        | Layer::UtsNamespace
        | Layer::CgroupNamespace => namespace(),
        Layer::Memory => controller(|v1| v1.memory.is_some()),
        Layer::Pids => controller(|v1| v1.pids.is_some()),
        Layer::Cpu => controller(|v1| v1.cpu.is_some() && v1.cpuacct.is_some()),
        Layer::Disk if facts.sys_admin => by("tmpfs of that size"),
        Layer::Disk => absent("no CAP_SYS_ADMIN", if facts.root { SYS_ADMIN } else { AS_ROOT }),
        Layer::Landlock if facts.landlock_abi > 0 => {
            let missing = [(4, "TCP ports"), (5, "device calls"), (6, "abstract sockets and signals")];
            let missing: Vec<&str> = missing
                .into_iter()
                .filter(|(abi, _)| facts.landlock_abi < *abi)
                .map(|(_, what)| what)
                .collect();
            let reason = (!missing.is_empty()).then(|| format!("without {}", missing.join(", ")));
            let remedy = reason.is_some().then(|| "Linux 6.12 or newer".to_owned());
            LayerReport { reason, remedy, ..by(&format!("ABI {}", facts.landlock_abi)) }
        }
        Layer::Landlock => {
            absent("the kernel has no Landlock", "boot with lsm=landlock,... on Linux 5.13 or newer")
        }
    }
}

#[cfg(test)]
mod tests;
