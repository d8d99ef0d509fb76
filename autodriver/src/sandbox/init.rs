//! init: PID 1 of the job's PID namespace. It makes the other namespaces and what is in them, forks the
//! job, becomes nobody, and reaps.
//!
//! A root init next to an untrusted job would be the weakest process in the box. This one has
//! another uid than the job (no ptrace, no prlimit, no signal from it; PID 1 ignores those of its
//! own namespace anyway), no capability, no descriptor but the report pipe, is not dumpable, and
//! may make seven system calls or so. It holds the one fact that the job must not forge: how its
//! first process ended.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{sched_setaffinity, unshare};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;

use super::handover::{Entrance, Furniture};
use super::prepare::Prepared;
use super::privileges::{become_identity, empty_bounding_set};
use super::read_back::namespaces;
use super::report::{Record, Reporter};
use super::{apply, enter, fail, on, seccomp, Failed, BESIDE, SETUP_FAILED, SURROUNDINGS};
use crate::fault::Step;
use crate::sys::fd::close_all_but;
use crate::sys::process::{clone3, default_signals, exit_now, wait_for_any, Ended, Forked};

/// init's uid: an account that owns nothing. Not the job's, and never root.
pub const NOBODY: u32 = 65534;

/// The acts, for messages; indices below.
pub(super) const ACTS: [&str; 7] = [
    "fork the job",
    "give up init's privileges",
    "protect init from signals and from being traced",
    "tie init's life to the driver's",
    "close init's descriptors",
    "install init's filter",
    "receive what the driver made",
];

/// Becomes init. Every path ends in _exit(2).
pub(super) fn run(mut prepared: Prepared, reporter: &Reporter, hand: OwnedFd) -> ! {
    // What else the driver has open is nothing to either child, and would stay open with them. The
    // numbers of the standard streams stay taken until the job's own take them.
    let mut keep = prepared.descriptors();
    keep.extend([0, 1, 2, reporter.0.as_raw_fd(), hand.as_raw_fd()]);
    if let Err(errno) = close_all_but(&mut keep) {
        fail(reporter, Step::Init, on(4)(errno));
    }
    // A container's filter may refuse the call itself, even for nothing.
    if !prepared.namespaces.is_empty() {
        if let Err(errno) = unshare(prepared.namespaces) {
            fail(reporter, Step::Namespaces, on(1)(errno));
        }
    }
    prepared.furniture = handed(Furniture::receive(hand.as_fd()), reporter);
    // Not every call that fails says so, and what follows must not happen to the machine's.
    let stayed = |(before, now)| before != 0 && before == now;
    if prepared.furniture.left.into_iter().zip(namespaces()).any(stayed) {
        fail(reporter, Step::Namespaces, on(2)(Errno::EPERM));
    }
    apply(SURROUNDINGS, &prepared, reporter);
    // The job inherits it.
    if let Err(failed) = empty_bounding_set(prepared.identity) {
        fail(reporter, Step::Privileges, failed);
    }
    prepared.entrance = handed(Entrance::receive(hand.as_fd()), reporter);
    drop(hand);
    // The driver had moved it away from its own.
    let _ = sched_setaffinity(Pid::from_raw(0), &prepared.processors);
    // SAFETY: init is a fork of the single-threaded driver, so it has one thread itself.
    #[allow(unsafe_code)]
    let forked = unsafe { clone3(0, prepared.entrance.cgroup()) };
    let job = match forked {
        Ok(Forked::Child) => {
            prepared.ready_tx = None;
            enter(&prepared, reporter)
        }
        Ok(Forked::Parent(job)) => job.pid,
        Err(errno) => fail(reporter, Step::Init, on(0)(errno)),
    };
    apply(BESIDE, &prepared, reporter);
    match become_harmless(&prepared, reporter) {
        Ok(()) => reap(job, prepared.pid_namespace, reporter),
        Err(failed) => fail(reporter, Step::Init, failed),
    }
}

/// What the driver made.
fn handed<T>(received: Result<Option<T>, Errno>, reporter: &Reporter) -> T {
    match received {
        Ok(Some(made)) => made,
        // The driver knows why it gave up.
        Ok(None) => exit_now(SETUP_FAILED),
        Err(errno) => fail(reporter, Step::Init, on(6)(errno)),
    }
}

fn become_harmless(prepared: &Prepared, reporter: &Reporter) -> Result<(), Failed> {
    if !prepared.pid_namespace {
        prctl::set_child_subreaper(true).map_err(on(0))?;
    }
    become_identity(prepared.identity.of_init()).map_err(|failed| on(1)(failed.errno))?;
    prctl::set_no_new_privs().map_err(on(1))?;
    // PID 1 ignores what its own namespace sends it, but for signals that it has a handler for, and Rust's
    // runtime has two: where the job has init's uid, it could have them run into the filter.
    default_signals().map_err(on(2))?;
    prctl::set_dumpable(false).map_err(on(2))?;
    if prepared.dies_with_driver {
        // After the uid changed, which clears it: prctl(2).
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(on(3))?;
    }
    // A driver that died before that call has not been noticed.
    prepared.check_driver();
    let filter = seccomp::init_filter();
    let ready = prepared.ready_tx.as_ref().ok_or(Errno::EBADF).map_err(on(4))?;
    // The job's pipes must end with the job, so init must not hold them open.
    close_all_but(&mut [reporter.0.as_raw_fd(), ready.as_raw_fd()]).map_err(on(4))?;
    seccomp::install(filter).map_err(on(5))?;
    // Only now may the job execute anything.
    nix::unistd::write(ready, b"1").map(drop).map_err(on(5))
}

fn reap(job: Pid, pid_namespace: bool, reporter: &Reporter) -> ! {
    loop {
        let record = match wait_for_any(WaitPidFlag::empty()) {
            Ok(Some((pid, Ended::Exited(status)))) if pid == job => Record::Exited(status),
            Ok(Some((pid, Ended::Signaled(signal)))) if pid == job => Record::Signaled(signal),
            Ok(_) | Err(Errno::EINTR) => continue,
            // Without a PID namespace: when the last process is reaped.
            Err(_) => exit_now(0),
        };
        let _ = reporter.send(record);
        if pid_namespace {
            // The kernel kills and reaps the rest: pid_namespaces(7).
            exit_now(0);
        }
    }
}
