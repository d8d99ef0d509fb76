//! Creating init and the job, and saying in words what their records say in numbers.

use std::os::fd::{AsFd, OwnedFd};

use autodriver_protocol::Layer;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::cgroup::Cgroup;
use super::prepare::{Prepared, Ready};
use super::report::{Reporter, Reports};
use super::{exec, init, landlock, mounts, network, privileges, session};
use crate::fault::{Fault, Step};
use crate::plan::Plan;
use crate::sys::process::{clone3, Child, Forked};

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

/// Starts the job's sandbox.
///
/// # Errors
/// What could not be made or cloned. Faults of the children come as records.
pub fn spawn(plan: &Plan, cgroup: &Cgroup, ready: Ready) -> Result<Spawned, Fault> {
    check_single_threaded()?;
    let Ready { prepared, ends } = ready;
    let objects = Objects::of(plan, cgroup, &prepared);
    let (rx, tx) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .map_err(|errno| Fault::new(Step::Namespaces, "make the report pipe", errno))?;
    let reporter = Reporter(tx);
    // SAFETY: one thread, checked above. The child runs `init::run`, which never returns.
    #[allow(unsafe_code)]
    let forked = unsafe { clone3(namespaces(plan), None) };
    match forked {
        Ok(Forked::Child) => init::run(&prepared, &reporter),
        Ok(Forked::Parent(init)) => {
            let reports = Reports::new(rx);
            let (stdout, stderr) = (ends.stdout, ends.stderr);
            Ok(Spawned { init, reports, stdout, stderr, objects, _lifeline: ends.lifeline })
        }
        Err(errno) => Err(Fault::new(Step::Namespaces, "create init with new namespaces", errno)),
    }
}

/// A lock that another thread held would be held for ever in the children.
fn check_single_threaded() -> Result<(), Fault> {
    let act = "fork safely";
    // An image need not have /proc mounted; nothing in this program starts a thread.
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Ok(()) };
    match threads.count() {
        0 | 1 => Ok(()),
        count => Err(Fault::refused(Step::Namespaces, act, format!("the driver has {count} threads"))),
    }
}

fn namespaces(plan: &Plan) -> u64 {
    let rows = [
        (Layer::PidNamespace, libc::CLONE_NEWPID),
        (Layer::MountNamespace, libc::CLONE_NEWNS),
        (Layer::NetworkNamespace, libc::CLONE_NEWNET),
        (Layer::IpcNamespace, libc::CLONE_NEWIPC),
        (Layer::UtsNamespace, libc::CLONE_NEWUTS),
    ];
    let applied = rows.into_iter().filter(|(layer, _)| plan.applies(*layer));
    applied.fold(0, |flags, (_, flag)| flags | u64::from(flag.unsigned_abs()))
}

impl Objects {
    fn of(plan: &Plan, cgroup: &Cgroup, prepared: &Prepared) -> Objects {
        let list = |acts: &[&str]| acts.iter().map(|act| (*act).to_owned()).collect::<Vec<_>>();
        let attach = (0..prepared.attach.len()).map(|n| format!("enter cgroup {}", cgroup.attach_path(n)));
        let mounts = prepared.root.iter().flat_map(|root| root.mounts.iter().map(|entry| entry.what.clone()));
        let rules = prepared.landlock.iter().flat_map(|rules| &rules.paths);
        let program = prepared.argv.first().map(|program| program.to_string_lossy().into_owned());
        Objects {
            attach: attach.chain(list(&["make a cgroup namespace"])).collect(),
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
            Step::Attach => owned(&self.attach),
            Step::Init => fixed(&init::ACTS),
            Step::Session => fixed(&session::ACTS),
            Step::Mounts => owned(&self.mounts),
            Step::Network => fixed(&network::ACTS),
            Step::Rlimits => owned(&self.rlimits),
            Step::Privileges => fixed(&privileges::ACTS),
            Step::Landlock => owned(&self.landlock),
            Step::Descriptors => fixed(&exec::DESCRIPTOR_ACTS),
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
        let _ = crate::sys::process::pidfd_send_signal(
            self.init.pidfd.as_fd(),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}
