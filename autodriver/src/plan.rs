//! From a request and the facts to a plan, or a refusal. Pure: nothing here makes a system call,
//! so that every refusal and every degradation is a unit test without root.

use std::ffi::CString;
use std::time::Duration;

use autodriver_protocol::job::{Bind, Net, OnOutput};
use autodriver_protocol::report::{LayerReport, LayerState};
use autodriver_protocol::{Layer, Options, Requirement};
use nix::sys::resource::Resource;

use crate::facts::{Facts, Namespaces};
use crate::sandbox::Ids;

pub mod layers;
use layers::layers;

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
    /// An account that is there for jobs alone: see [`crate::uids::dedicate`].
    Dedicated {
        /// Who it is.
        ids: Ids,
        /// Its home directory, where its jobs have their files.
        home: String,
    },
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
    /// Executed, where it is there, instead of what the first of `argv` names.
    pub program: Option<CString>,
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
    /// Directories of the machine that it may write in besides these, where it has no mounts.
    pub open: Vec<String>,
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
    /// It has a loopback interface of its own.
    pub loopback: bool,
    /// It gets its namespaces by way of a user namespace: it can neither make device nodes nor take a mount
    /// apart from those below it (mount_namespaces(7)).
    pub user_namespace: bool,
    /// Every layer, in order, as it will be once the sandbox stands.
    pub layers: Vec<LayerReport>,
}

impl Plan {
    /// Whether the layer is enforced.
    pub fn enforces(&self, layer: Layer) -> bool {
        state(&self.layers, layer) == Some(LayerState::Enforced)
    }

    /// Whether something else stands in for the layer.
    pub fn substitutes(&self, layer: Layer) -> bool {
        state(&self.layers, layer) == Some(LayerState::Substituted)
    }

    /// Whether the layer is enforced, or something else stands in for it.
    pub fn applies(&self, layer: Layer) -> bool {
        self.enforces(layer) || self.substitutes(layer)
    }

    /// What the storage holds, in bytes and in files; 0 means no limit of its own.
    pub fn storage_limit(&self) -> (u64, u64) {
        if self.enforces(Layer::Disk) {
            (self.disk, self.inodes)
        } else {
            (0, 0)
        }
    }

    /// Without a mount namespace, the storage is at a place of the machine's own file system.
    pub fn show_storage_at(&mut self, place: &str) {
        self.home = format!("{place}/job");
        self.tmp = format!("{place}/tmp");
    }
}

fn state(layers: &[LayerReport], layer: Layer) -> Option<LayerState> {
    layers.iter().find(|report| report.name == layer).map(|report| report.state)
}

/// How every layer stands on this machine when nothing is skipped, and why that is not enough for
/// `require` (nothing given: the minimum), if it is not.
pub fn standing(require: Vec<Requirement>, facts: &Facts) -> (Vec<LayerReport>, Result<(), Refusal>) {
    let options = Options { require, ..Options::default() }.over(Options::defaults());
    let layers = layers(facts, &|_| false);
    let met = check_requirements(&options, &layers, &|_| false);
    (layers, met)
}

/// Makes the plan.
///
/// # Errors
/// A [`Refusal`] names the option, the value and what is accepted, or the layers that are required
/// and not to be had, each with its reason and remedy.
pub fn plan(options: Options, facts: &Facts) -> Result<Plan, Refusal> {
    check_means(&options, facts)?;
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
    let enforces = |layer| state(&layers, layer) == Some(LayerState::Enforced);
    if !enforces(Layer::MountNamespace) && (root != "/" || !options.bind.is_empty()) {
        let why = match skip(Layer::MountNamespace) {
            true => "which --skip leaves out",
            false => "which cannot be had here (see `autodriver check`)",
        };
        return Err(Refusal(format!("--root and --bind need the layer mount-namespace, {why}")));
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
        program: None,
        argv: arguments(&options.command)?,
        env: environment(&options),
        cwd: options.cwd.clone().unwrap_or_default(),
        home: JOB_DIRECTORY.to_owned(),
        tmp: "/tmp".to_owned(),
        open: Vec::new(),
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
        rlimits: rlimits(&options, processes(facts, &layers, pids), !enforces(Layer::Disk)),
        abi32: options.abi32,
        host_network,
        loopback: facts.loopback && enforces(Layer::NetworkNamespace),
        user_namespace: facts.namespaces == Namespaces::User,
        layers,
    })
}

/// Options that ask for what only some machines can give.
fn check_means(options: &Options, facts: &Facts) -> Result<(), Refusal> {
    let refused = matches!(facts.namespaces, Namespaces::Refused { .. });
    if let (Some(user), Err(why)) = (&options.user, &facts.own_uids) {
        return Err(Refusal(format!("--user {user}: a job cannot have another uid here ({why})")));
    }
    match &options.hostname {
        Some(name) if refused => Err(Refusal(format!(
            "--hostname {name}: needs the layer uts-namespace, which cannot be had here (see `autodriver check`)"
        ))),
        _ => Ok(()),
    }
}

/// RLIMIT_NPROC for a job of so many processes: getrlimit(2) counts those of the real uid, in its
/// user namespace.
fn processes(facts: &Facts, layers: &[LayerReport], pids: u64) -> u64 {
    let others = match &facts.own_uids {
        Ok(()) => 0,
        // The driver and init.
        Err(_) if facts.namespaces == Namespaces::User => 2,
        // The driver is counted already; init and the keeper are not.
        Err(_) => facts.own_processes + 2,
    };
    // One more than a cgroup allows, so that it is the cgroup that refuses, and counts.
    let enforced = state(layers, Layer::Pids) == Some(LayerState::Enforced);
    others + pids + u64::from(enforced)
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

fn rlimits(options: &Options, pids: u64, disk_is_sampled: bool) -> Vec<Rlimit> {
    let bytes = |size: Option<autodriver_protocol::units::Size>| size.map(|size| size.0);
    // A file that nobody stops from growing grows no further than the whole disk limit.
    let fsize = match (bytes(options.fsize), bytes(options.disk).filter(|disk| disk_is_sampled && *disk > 0))
    {
        (Some(fsize), Some(disk)) => Some(fsize.min(disk)),
        (fsize, disk) => fsize.or(disk),
    };
    // A core_pattern that is a pipe ignores a limit of 0, and honours one of 1: see core(5) and
    // the check of `cprm.limit == 1` in fs/coredump.c. A file of 1 byte is never written either.
    let core = bytes(options.core).map(|core| core.max(1));
    // A second line behind the clock on the whole tree: SIGKILL comes one second later.
    let cpu = options.cpu.map(|time| time.0.as_secs() + 1);
    let rows = [
        (Resource::RLIMIT_CORE, "RLIMIT_CORE", core),
        (Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE", fsize),
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
    // `minimum` and `all` leave room for --skip; a layer required by name and skipped does not. The
    // minimum is content with a substitute, since the report and a line on stderr tell of it.
    let requires = |wanted: Requirement, layer: Layer| {
        options.require.contains(&wanted) && wanted.layers().contains(&layer)
    };
    let is_missing = |report: &&LayerReport| {
        let layer = report.name;
        match report.state {
            LayerState::Enforced => false,
            LayerState::Substituted => {
                requires(Requirement::All, layer) || requires(Requirement::One(layer), layer)
            }
            LayerState::Absent | LayerState::Skipped => {
                requires(Requirement::One(layer), layer)
                    || !skip(layer)
                        && (requires(Requirement::All, layer) || requires(Requirement::Minimum, layer))
            }
        }
    };
    let missing: Vec<String> = layers
        .iter()
        .filter(is_missing)
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

#[cfg(test)]
mod tests;
