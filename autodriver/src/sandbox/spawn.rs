//! Creating init and the job, and saying in words what their records say in numbers.

use std::os::fd::{AsFd, OwnedFd};

use autodriver_protocol::Layer;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{sched_getcpu, sched_setaffinity, CpuSet};
use nix::sys::signal::Signal;
use nix::sys::wait::{waitid, Id, WaitPidFlag};
use nix::unistd::{pipe2, Pid};

use super::cgroup::Cgroup;
use super::handover::Entrance;
use super::prepare::{entrance, DriverEnds, Furnishings, Prepared, Ready};
use super::report::{Reporter, Reports};
use super::{exec, handover, init, landlock, mounts, network, privileges, read_back, session};
use crate::fault::{Fault, Step};
use crate::plan::Plan;
use crate::sys::process::{clone3, is_single_threaded, pidfd_send_signal, Child, Forked};

/// A sandbox that was started. Dropping it kills init, and with it the PID namespace.
#[derive(Debug)]
pub struct Spawned {
    /// init.
    pub init: Child,
    /// What the children tell.
    pub reports: Reports,
    /// The job's standard output, or both streams as one.
    pub stdout: OwnedFd,
    /// The job's standard error, with `--split`.
    pub stderr: Option<OwnedFd>,
    objects: Objects,
    _lifeline: OwnedFd,
}

/// The names of what each step works on, to turn an index into words.
#[derive(Debug)]
struct Objects {
    attach: Vec<String>,
    mounts: Vec<String>,
    rlimits: Vec<String>,
    landlock: Vec<String>,
    exec: Vec<String>,
}

/// A sandbox whose init makes its namespaces, and waits for what the driver makes meanwhile.
#[derive(Debug)]
pub struct Starting {
    init: Waiting,
    reports: Reports,
    hand: OwnedFd,
    ready: Ready,
}

/// An init that was not given everything yet; it is killed and reaped when dropped.
#[derive(Debug)]
struct Waiting(Option<Child>);

/// Creates init.
///
/// # Errors
/// What could not be made or cloned. Faults of the children come as records.
pub fn begin(plan: &Plan, ready: Ready) -> Result<Starting, Fault> {
    check_single_threaded()?;
    let fault = |act: &str| {
        let act = act.to_owned();
        move |errno| Fault::new(Step::Namespaces, act, errno)
    };
    let (rx, tx) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(fault("make the report pipe"))?;
    let (hand, hand_rx) = handover::pair().map_err(fault("make a socket pair"))?;
    let reporter = Reporter(tx);
    let flags = if plan.enforces(Layer::PidNamespace) { libc::CLONE_NEWPID.unsigned_abs() } else { 0 };
    // SAFETY: one thread, checked above. The child runs `init::run`, which never returns.
    #[allow(unsafe_code)]
    let forked = unsafe { clone3(u64::from(flags), None) };
    match forked {
        Ok(Forked::Child) => {
            // Or it would not see that the driver's ends are closed.
            drop((hand, ready.ends));
            init::run(ready.prepared, &reporter, hand_rx)
        }
        Ok(Forked::Parent(init)) => {
            spread(init.pid, &ready.prepared.processors);
            Ok(Starting { init: Waiting(Some(init)), reports: Reports::new(rx), hand, ready })
        }
        Err(errno) => Err(fault(NAMESPACE_ACTS[0])(errno)),
    }
}

/// Moves init to another processor than ours until it forks the job. By itself it may stay
/// behind us, though others idle: the halted processors of a virtual machine look taken to Linux
/// (vcpu_is_preempted). Where there is no other, or it is refused, init waits its turn.
fn spread(init: Pid, all: &CpuSet) {
    let mut others = *all;
    if sched_getcpu().and_then(|ours| others.unset(ours)).is_ok() {
        let _ = sched_setaffinity(init, &others);
    }
}

/// The acts of the namespace step, for messages.
const NAMESPACE_ACTS: [&str; 3] = [
    "create init in a new PID namespace",
    "make init's namespaces",
    "read back init's namespaces: one is still the driver's",
];

impl Starting {
    /// Makes what is around the job and hands it over.
    ///
    /// # Errors
    /// What could not be made.
    pub fn furnish(&self, with: &Furnishings<'_>) -> Result<(), Fault> {
        handed(self.ready.furnish(with)?.send(self.hand.as_fd()))
    }

    /// Hands the job's cgroup over, after which it starts.
    ///
    /// # Errors
    /// What could not be opened.
    pub fn finish(self, plan: &Plan, cgroup: &Cgroup) -> Result<Spawned, Fault> {
        let Starting { mut init, reports, hand, ready } = self;
        let entrance = entrance(cgroup)?;
        let objects = Objects::of(plan, cgroup, &entrance, &ready.prepared);
        handed(entrance.send(hand.as_fd()))?;
        let DriverEnds { stdout, stderr, lifeline } = ready.ends;
        match init.0.take() {
            Some(init) => Ok(Spawned { init, reports, stdout, stderr, objects, _lifeline: lifeline }),
            None => Err(Fault::refused(Step::Namespaces, "hand over to init", "it is not there")),
        }
    }
}

fn handed(sent: Result<(), Errno>) -> Result<(), Fault> {
    match sent {
        // It died of a fault that it has reported.
        Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
        Err(errno) => Err(Fault::new(Step::Namespaces, "hand over to init", errno)),
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(init) = &self.0 {
            let _ = pidfd_send_signal(init.pidfd.as_fd(), Signal::SIGKILL);
            // It has no child and waits for us, so that this does not take long.
            let _ = waitid(Id::PIDFd(init.pidfd.as_fd()), WaitPidFlag::WEXITED);
        }
    }
}

/// A lock that another thread held would be held for ever in the children.
fn check_single_threaded() -> Result<(), Fault> {
    if is_single_threaded() {
        return Ok(());
    }
    let act = "fork safely";
    // An image need not have /proc mounted; nothing in this program starts a thread.
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Ok(()) };
    match threads.count() {
        0 | 1 => Ok(()),
        count => Err(Fault::refused(Step::Namespaces, act, format!("the driver has {count} threads"))),
    }
}

impl Objects {
    fn of(plan: &Plan, cgroup: &Cgroup, entrance: &Entrance, prepared: &Prepared) -> Objects {
        let list = |acts: &[&str]| acts.iter().map(|act| (*act).to_owned()).collect::<Vec<_>>();
        let attach = (0..entrance.attach.len()).map(|n| format!("enter cgroup {}", cgroup.attach_path(n)));
        let mounts = prepared.mounts.iter().flatten().map(|entry| entry.what.clone());
        let rules = prepared.landlock.iter().flat_map(|rules| &rules.paths);
        let program = prepared.argv.first().map(|program| program.to_string_lossy().into_owned());
        Objects {
            attach: attach
                .chain(list(&["make a cgroup namespace", "read back the job's cgroup: it is not in its own"]))
                .collect(),
            mounts: mounts.chain(list(&mounts::ACTS)).collect(),
            rlimits: plan.rlimits.iter().map(|row| format!("set {} to {}", row.name, row.hard)).collect(),
            landlock: rules
                .map(|(path, _)| format!("add a Landlock rule for {path}"))
                .chain(list(&landlock::ACTS))
                .collect(),
            exec: vec![
                format!("execute '{}'", program.unwrap_or_default().escape_debug()),
                format!("change directory to '{}'", prepared.cwd.to_string_lossy().escape_debug()),
            ],
        }
    }

    fn name(&self, step: Step, index: usize) -> String {
        let owned = |names: &[String]| names.get(index).cloned();
        let fixed = |names: &[&str]| names.get(index).map(|name| (*name).to_owned());
        let name = match step {
            Step::Namespaces => fixed(&NAMESPACE_ACTS),
            Step::Attach => owned(&self.attach),
            Step::Init => fixed(&init::ACTS),
            Step::Session => fixed(&session::ACTS),
            Step::Mounts => owned(&self.mounts),
            Step::Network => fixed(&network::ACTS),
            Step::Rlimits => owned(&self.rlimits),
            Step::Privileges => fixed(&privileges::ACTS),
            Step::Landlock => owned(&self.landlock),
            Step::Descriptors => fixed(&exec::DESCRIPTOR_ACTS),
            Step::ReadBack => fixed(&read_back::ACTS),
            Step::Seccomp => Some("install the system-call filter".to_owned()),
            Step::Exec => owned(&self.exec),
            _ => None,
        };
        name.unwrap_or_else(|| format!("do step '{}' ({index})", step.name()))
    }
}

impl Spawned {
    /// The fault that a record tells of.
    pub fn fault(&self, step: Step, index: u16, errno: Errno) -> Fault {
        Fault::new(step, self.objects.name(step, usize::from(index)), errno)
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // Already dead in every regular case.
        let _ = pidfd_send_signal(self.init.pidfd.as_fd(), Signal::SIGKILL);
    }
}
