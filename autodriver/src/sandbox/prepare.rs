//! From the plan to everything that the children need and that can be made before the fork:
//! strings, the system-call filter, pipes. The rest is handed over: [`super::handover`].

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use autodriver_protocol::Layer;
use nix::errno::Errno;
use nix::fcntl::{fcntl, openat, FcntlArg, OFlag, AT_FDCWD};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sched::{sched_getaffinity, CloneFlags, CpuSet};
use nix::sys::stat::Mode;
use nix::unistd::{pipe2, Pid};
use seccompiler::sock_filter;

use super::accounts::{Account, AccountFiles};
use super::cgroup::Cgroup;
use super::handover::{Entrance, Furniture};
use super::layout::{layout, Frame, ACCOUNT_FILES};
use super::privileges::Identity;
use super::read_back::{self, Expected, NAMESPACES};
use super::rlimits;
use super::seccomp::{self, Before};
use super::storage::Storage;
use super::SETUP_FAILED;
use crate::facts::Facts;
use crate::fault::{Fault, Step};
use crate::plan::{Plan, Rlimit};
use crate::sys::mount::attr;
use crate::sys::process::exit_now;
use crate::uids;

/// Where a mount comes from.
#[derive(Debug)]
pub(super) enum MountKind {
    /// A directory of the machine, read-only.
    Machine { source: CString, recursive: bool },
    /// The `part`-th part of the job's storage; `frozen` ones are attached before the root becomes read-only.
    Part { part: usize, attributes: u64, frozen: bool },
    /// A device of the machine: a user namespace cannot make its own.
    Device { source: CString },
    /// `--bind`.
    Bind { source: CString, writable: bool },
    /// procfs of the job's PID namespace.
    Proc,
    /// A devpts of its own.
    Pts,
}

impl MountKind {
    /// What it has in the end, with the mounts below it. The machine's own may have more.
    pub(super) fn attributes(&self) -> u64 {
        match self {
            MountKind::Machine { .. } => attr::FROZEN,
            MountKind::Part { attributes, .. } => *attributes,
            // Without NODEV, which would make it useless.
            MountKind::Device { .. } => attr::NOSUID | attr::NOEXEC,
            MountKind::Bind { writable, .. } if *writable => attr::NOSUID | attr::NODEV,
            MountKind::Bind { .. } => attr::FROZEN,
            MountKind::Proc => attr::NOSUID | attr::NODEV | attr::NOEXEC,
            MountKind::Pts => attr::NOSUID | attr::NOEXEC,
        }
    }

    /// How a file system of the job's own is made: its type, keys and values.
    pub(super) fn made_with(&self) -> Option<(&'static CStr, &'static [(&'static CStr, &'static CStr)])> {
        match self {
            // The job's own processes only (proc(5), hidepid): the instance belongs to its PID namespace.
            MountKind::Proc => Some((c"proc", &[(c"hidepid", c"2")])),
            // Pseudo-terminals of its own, so that it can neither reach nor use up the machine's.
            MountKind::Pts => {
                Some((c"devpts", &[(c"mode", c"0620"), (c"ptmxmode", c"0666"), (c"max", c"64")]))
            }
            MountKind::Machine { .. }
            | MountKind::Part { .. }
            | MountKind::Device { .. }
            | MountKind::Bind { .. } => None,
        }
    }

    /// Whether it comes after the root was made read-only, and keeps attributes of its own.
    pub(super) fn keeps_attributes(&self) -> bool {
        !matches!(self, MountKind::Machine { .. } | MountKind::Part { frozen: true, .. })
    }
}

/// One row of the mount table.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where, relative to the job's root.
    pub(super) at: CString,
    pub(super) kind: MountKind,
    /// For messages.
    pub(super) what: String,
}

/// What Landlock allows at a path and below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathAccess {
    /// Read and execute.
    Read,
    /// Read and write existing files, device calls.
    Devices,
    /// Read and execute, write existing files: what uid and mode allow in /proc.
    Processes,
    /// Everything.
    Write,
}

/// The Landlock rules.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) abi: i32,
    pub(super) restrict_tcp: bool,
    pub(super) paths: Vec<(String, PathAccess)>,
}

/// Everything the children need.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) processors: CpuSet,
    pub(super) namespaces: CloneFlags,
    /// Filters of the driver's own.
    pub(super) filters_before: u32,
    /// The cgroup directory that the job must be in, and in how many hierarchies.
    pub(super) cgroup: (String, usize),
    pub(super) furniture: Furniture,
    pub(super) entrance: Entrance,
    pub(super) cgroup_namespace: bool,
    pub(super) pid_namespace: bool,
    /// What init has below it dies with it, or is found by its uid; else the keeper needs init to find it.
    pub(super) dies_with_driver: bool,
    pub(super) mounts: Option<Vec<Entry>>,
    pub(super) loopback: bool,
    pub(super) hostname: Option<String>,
    pub(super) rlimits: Vec<Rlimit>,
    pub(super) identity: Identity,
    pub(super) no_new_privs: bool,
    pub(super) landlock: Option<Rules>,
    pub(super) filters: Vec<&'static [sock_filter]>,
    pub(super) ready_rx: OwnedFd,
    /// init's end; the job lets go of it, so that it does not wait for an init that is dead.
    pub(super) ready_tx: Option<OwnedFd>,
    pub(super) lifeline_rx: OwnedFd,
    /// Executed instead of what the first argument names, if it is there.
    pub(super) program: Option<CString>,
    pub(super) argv: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) path: Vec<u8>,
    pub(super) cwd: CString,
}

/// The driver's ends of the pipes.
#[derive(Debug)]
pub(super) struct DriverEnds {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) lifeline: OwnedFd,
}

/// What a job is given to run on.
#[derive(Debug)]
pub struct Ground<'a> {
    /// What it gets.
    pub plan: &'a Plan,
    /// Its user.
    pub account: &'a Account,
    /// What its things are called.
    pub tag: &'a str,
    /// Whose uid it has.
    pub identity: Identity,
    /// Its storage; none where a job is explained and not run.
    pub storage: Option<&'a Storage>,
    /// The machine.
    pub facts: &'a Facts,
    /// Its standard input, if not a file of the plan.
    pub stdin: Option<OwnedFd>,
}

fn pipe(flags: OFlag) -> Result<(OwnedFd, OwnedFd), Fault> {
    pipe2(flags | OFlag::O_CLOEXEC).map_err(|errno| Fault::new(Step::Namespaces, "make a pipe", errno))
}

/// A pipe for output: the driver's end never blocks, and is as large as an unprivileged reader
/// may have it, which spares a context switch for each 64 KiB.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), Fault> {
    let (rx, tx) = pipe(OFlag::empty())?;
    let set = |argument| {
        fcntl(rx.as_fd(), argument).map_err(|errno| Fault::new(Step::Namespaces, "set up a pipe", errno))
    };
    set(FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // Refused when the user's budget of pipe pages is used up (pipe(7)); then it stays smaller.
    let _ = fcntl(rx.as_fd(), FcntlArg::F_SETPIPE_SZ(1 << 20));
    Ok((rx, tx))
}

/// What is ready for the fork.
#[derive(Debug)]
pub struct Ready {
    pub(super) prepared: Prepared,
    pub(super) frame: Frame,
    pub(super) ends: DriverEnds,
}

/// Makes everything.
///
/// # Errors
/// What could not be made.
pub fn prepare(ground: Ground<'_>) -> Result<Ready, Fault> {
    let Ground { plan, account, tag, identity, storage, facts, stdin } = ground;
    let (applies, enforces) = (|layer| plan.applies(layer), |layer| plan.enforces(layer));
    let layout = layout(plan)?;
    let (stdout_rx, stdout_tx) = output_pipe()?;
    let stderr = if plan.split { Some(output_pipe()?) } else { None };
    let (stderr_rx, stderr_tx) = stderr.unzip();
    let (ready_rx, ready_tx) = pipe(OFlag::empty())?;
    let (lifeline_rx, lifeline) = pipe(OFlag::empty())?;
    let env = environment(plan, account);
    let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone().into_bytes());
    let prepared = Prepared {
        stdin: match stdin {
            Some(fd) => fd,
            None => open_stdin(plan.stdin.as_deref(), storage)?,
        },
        stdout: stdout_tx,
        stderr: stderr_tx,
        processors: sched_getaffinity(Pid::from_raw(0)).unwrap_or_default(),
        namespaces: namespaces(plan),
        filters_before: facts.filters,
        cgroup: (super::cgroup::directory_name(tag), super::cgroup::hierarchies(&facts.hierarchy)),
        furniture: Furniture::default(),
        entrance: Entrance::default(),
        cgroup_namespace: enforces(Layer::CgroupNamespace),
        pid_namespace: enforces(Layer::PidNamespace),
        dies_with_driver: enforces(Layer::PidNamespace)
            || matches!(identity, Identity::Own(ids) if uids::is_jobs_alone(ids.uid)),
        mounts: layout.mounts,
        loopback: plan.loopback,
        hostname: enforces(Layer::UtsNamespace).then(|| plan.hostname.clone()),
        rlimits: if applies(Layer::Rlimits) { rlimits::attainable(&plan.rlimits) } else { Vec::new() },
        identity: if applies(Layer::Identity) { identity } else { Identity::Callers },
        no_new_privs: applies(Layer::NoNewPrivs),
        landlock: applies(Layer::Landlock).then(|| Rules {
            abi: facts.landlock_abi,
            restrict_tcp: !plan.host_network && !enforces(Layer::NetworkNamespace),
            paths: layout.paths,
        }),
        filters: filters(plan),
        ready_rx,
        ready_tx: Some(ready_tx),
        lifeline_rx,
        program: plan.program.clone(),
        argv: plan.argv.clone(),
        path: path.unwrap_or_default(),
        env: env
            .into_iter()
            .filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok())
            .collect(),
        cwd: working_directory(plan)?,
    };
    Ok(Ready {
        prepared,
        frame: layout.frame,
        ends: DriverEnds { stdout: stdout_rx, stderr: stderr_rx, lifeline },
    })
}

/// A file of the machine, or the null device.
fn open_stdin(path: Option<&str>, storage: Option<&Storage>) -> Result<OwnedFd, Fault> {
    let Some(path) = path else {
        // An image need not have one.
        if let Ok(null) = std::fs::File::open("/dev/null") {
            return Ok(null.into());
        }
        let Some(storage) = storage else { return pipe(OFlag::empty()).map(|(rx, _)| rx) };
        return storage.null();
    };
    let flags = match storage {
        Some(_) => OFlag::O_RDONLY,
        // Only to see that it is there: a FIFO would wait for a writer.
        None => OFlag::O_PATH,
    };
    openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Fault::new(Step::Request, format!("open --stdin {path}"), errno))
}

/// The namespaces that init makes; it is itself created in a new PID namespace.
fn namespaces(plan: &Plan) -> CloneFlags {
    let rows = [
        (Layer::MountNamespace, CloneFlags::CLONE_NEWNS),
        (Layer::NetworkNamespace, CloneFlags::CLONE_NEWNET),
        (Layer::IpcNamespace, CloneFlags::CLONE_NEWIPC),
        (Layer::UtsNamespace, CloneFlags::CLONE_NEWUTS),
    ];
    rows.into_iter().filter(|(layer, _)| plan.enforces(*layer)).map(|(_, flag)| flag).collect()
}

/// The namespaces of ours that init leaves: [`Furniture::left`].
fn left(plan: &Plan) -> [u64; 5] {
    let mut left = read_back::namespaces();
    for (own, (layer, _)) in left.iter_mut().zip(NAMESPACES) {
        *own = if plan.enforces(layer) { *own } else { 0 };
    }
    left
}

impl Prepared {
    /// Ends this child if the driver is dead: then this pipe is closed.
    pub(super) fn check_driver(&self) {
        let mut lifeline = [PollFd::new(self.lifeline_rx.as_fd(), PollFlags::POLLIN)];
        if poll(&mut lifeline, PollTimeout::ZERO) != Ok(0) {
            exit_now(SETUP_FAILED);
        }
    }

    /// Every descriptor in it.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        let always = [&self.stdin, &self.stdout, &self.ready_rx, &self.lifeline_rx].into_iter();
        let fds = always.chain(self.stderr.as_ref()).chain(self.ready_tx.as_ref());
        fds.map(AsRawFd::as_raw_fd).collect()
    }

    /// What the kernel has to say of the job.
    pub(super) fn expected(&self) -> Expected {
        let own = u32::try_from(self.filters.len()).unwrap_or(u32::MAX);
        Expected {
            identity: self.identity,
            no_new_privs: self.no_new_privs,
            filters: (own > 0).then_some(self.filters_before + own),
        }
    }
}

/// What stands before the job's own filter.
pub fn before(plan: &Plan) -> Before {
    let filtered = plan.applies(Layer::Seccomp);
    Before {
        offline: filtered && plan.substitutes(Layer::NetworkNamespace),
        shared: filtered && !plan.enforces(Layer::Identity),
    }
}

/// In the order in which they are installed: the last must refuse to install another.
fn filters(plan: &Plan) -> Vec<&'static [sock_filter]> {
    let own = plan.applies(Layer::Seccomp).then(|| seccomp::job_filter(plan.abi32));
    before(plan).filters().chain(own).collect()
}

/// What init is handed.
#[derive(Debug)]
pub struct Furnishings<'a> {
    /// What it gets.
    pub plan: &'a Plan,
    /// Its user.
    pub account: &'a Account,
    /// The account files of its root.
    pub files: &'a AccountFiles,
    /// Its storage.
    pub storage: &'a Storage,
    /// What it may write, in bytes and in files; 0 means no limit.
    pub disk: (u64, u64),
    /// Whether no other job comes after it on the same storage.
    pub last: bool,
}

impl Ready {
    /// Makes what init is handed first.
    ///
    /// # Errors
    /// What could not be made.
    pub(super) fn furnish(&self, with: &Furnishings<'_>) -> Result<Furniture, Fault> {
        let Furnishings { plan, account, files, storage, disk, last } = *with;
        let mut furniture = Furniture { left: left(plan), ..Furniture::default() };
        if self.prepared.mounts.is_some() {
            storage.furnish()?;
            write_accounts(plan, account, files, storage)?;
            let (frame, parts) = self.frame.build(storage)?;
            (furniture.frame, furniture.parts) = (Some(frame), parts);
            furniture.storage = storage.detached().filter(|_| last).map(own).transpose()?;
        }
        // Only now: the frame is complete, and so are the files that were put.
        storage.limit(disk.0, disk.1)?;
        Ok(furniture)
    }
}

/// What init is handed then.
///
/// # Errors
/// What could not be opened.
pub(super) fn entrance(cgroup: &Cgroup) -> Result<Entrance, Fault> {
    Ok(Entrance { clone_into: cgroup.clone_target().map(own).transpose()?, attach: cgroup.attach_targets()? })
}

fn own(fd: BorrowedFd<'_>) -> Result<OwnedFd, Fault> {
    fd.try_clone_to_owned()
        .map_err(|error| Fault::new(Step::Storage, "duplicate a descriptor", crate::fault::errno_of(&error)))
}

fn write_accounts(
    plan: &Plan,
    account: &Account,
    files: &AccountFiles,
    storage: &Storage,
) -> Result<(), Fault> {
    let contents = [files.passwd_with(account, &plan.home), files.group_with(account)];
    for (name, content) in ACCOUNT_FILES.into_iter().zip(contents) {
        let written = storage.write_etc(name, content.as_bytes());
        written.map_err(|errno| Fault::new(Step::Storage, format!("write the job's /etc/{name}"), errno))?;
    }
    Ok(())
}

/// Built from scratch; later entries replace earlier ones of the same name.
fn environment(plan: &Plan, account: &Account) -> Vec<(String, String)> {
    let own = [
        ("HOME", plan.home.as_str()),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("TMPDIR", &plan.tmp),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut variables: Vec<(String, String)> = Vec::new();
    for (name, value) in own.into_iter().chain(plan.env.iter().cloned()) {
        variables.retain(|(known, _)| *known != name);
        variables.push((name, value));
    }
    variables
}

fn working_directory(plan: &Plan) -> Result<CString, Fault> {
    let path = match plan.cwd.starts_with('/') {
        true => plan.cwd.clone(),
        false if plan.cwd.is_empty() => plan.home.clone(),
        false => format!("{}/{}", plan.home, plan.cwd),
    };
    CString::new(path).map_err(|_| Fault::new(Step::Request, "use --cwd: it has a NUL byte", Errno::EINVAL))
}
