//! Follows a driver and all its children with ptrace(2), but not the job: at its execve(2) it is looked at and
//! let go. strace(1) can inject as well, but not tell init from the job. It knows the registers of x86-64.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{kill, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use super::calls::{row, Manner, Object, ENDS};
use super::client::{self, Heard, Order};
use super::object::describe;
use super::sight::Sight;
use crate::process;

/// Which process: the driver, or the how-manieth child of whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Role(Vec<u32>);

impl Role {
    /// The driver.
    pub(super) fn driver() -> Role {
        Role(Vec::new())
    }

    /// Whether it is the driver.
    pub(super) fn is_driver(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose child it is.
    pub(super) fn parent(&self) -> Option<Role> {
        self.0.split_last().map(|(_, rest)| Role(rest.to_vec()))
    }

    fn child(&self, number: u32) -> Role {
        Role(self.0.iter().copied().chain([number]).collect())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("driver")?;
        self.0.iter().try_for_each(|number| write!(f, "/{number}"))
    }
}

/// Calls that are alike: of one process, about one thing, in one phase of the run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Kind {
    /// Who makes them.
    pub(super) role: Role,
    /// Which call.
    pub(super) call: i64,
    /// What it is about.
    pub(super) object: String,
    /// For the driver: how many children it has made, and whether the job has been executed.
    pub(super) phase: (u32, bool),
}

/// A system call of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Point {
    /// Of which kind.
    pub(super) kind: Kind,
    /// The how-manieth of them, from 1.
    pub(super) occurrence: u32,
}

/// What is done at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// The call fails.
    Fail(Errno, Manner),
    /// The driver is killed.
    KillDriver,
    /// The process itself is killed.
    KillCaller,
}

/// What became of a traced driver.
#[derive(Debug)]
pub(super) struct Traced {
    /// The exit status; negative: the signal that killed it.
    pub(super) status: i32,
    /// Standard output; what a host was told by one that serves is in `heard`.
    pub(super) stdout: Vec<u8>,
    /// What a host was told.
    pub(super) heard: Option<Heard>,
    /// Standard error.
    pub(super) stderr: Vec<u8>,
    /// The driver has made the first call that is its own, as far as that is known, or a child.
    pub(super) begun: bool,
    /// The last call before the deed: who, which.
    pub(super) last: Option<(Role, i64)>,
    /// Without a deed: all calls, in their order.
    pub(super) calls: Vec<Point>,
    /// Whether the point was met.
    pub(super) met: bool,
    /// Who became a job, and what it was then.
    pub(super) jobs: Vec<(Role, Sight)>,
    /// It did not end, and was killed.
    pub(super) hung: bool,
    /// From start to the end of the last process.
    pub(super) took: Duration,
}

/// The first call of the driver's own main: what is before is the C library's and Rust's.
const FIRST: i64 = libc::SYS_setpriority;

impl Traced {
    /// Who became a job.
    pub(super) fn roles_of_jobs(&self) -> Vec<&Role> {
        self.jobs.iter().map(|(role, _)| role).collect()
    }
}

#[derive(Debug)]
struct Tracee {
    role: Role,
    children: u32,
    /// Between a call's start and its end: which it is.
    inside: Option<i64>,
    /// At its end: the result to give instead, if not its own, and the first argument as it was.
    result: Option<(Option<u64>, u64)>,
    /// It has not had the stop with which a child begins.
    fresh: bool,
    /// How many rule sets of Landlock it is under. Nothing in /proc says that.
    rulesets: u32,
}

struct Tracer {
    driver: Pid,
    deed: Option<(Point, Deed)>,
    tracees: BTreeMap<Pid, Tracee>,
    /// Stopped before their parents said who they are; and these.
    early: BTreeMap<Pid, Pid>,
    alive: Arc<Mutex<BTreeSet<Pid>>>,
    counts: HashMap<Kind, u32>,
    calls: Vec<Point>,
    begun: bool,
    last: Option<(Role, i64)>,
    met: bool,
    jobs: Vec<(Role, Sight)>,
    /// How many there will be.
    expected: usize,
    status: i32,
}

/// Runs a driver to its end, and everything that it started and that is not the job.
///
/// # Errors
/// Those of starting and of ptrace(2).
pub(super) fn run(
    mut command: Command,
    order: Option<&Order>,
    deed: Option<(Point, Deed)>,
    limit: Duration,
) -> io::Result<Traced> {
    let started = Instant::now();
    // SAFETY: between fork and exec only one system call is made.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(io::Error::from)) };
    command.stdin(order.map_or_else(Stdio::null, |_| Stdio::piped()));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let host = order.cloned().zip(child.stdin.take()).zip(child.stdout.take_if(|_| order.is_some()));
    let host = host
        .map(|((order, stdin), stdout)| std::thread::spawn(move || client::converse(&order, stdin, stdout)));
    let driver = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let alive = Arc::new(Mutex::new(BTreeSet::from([driver])));
    let (over, hung) = watch(Arc::clone(&alive), limit);
    let mut tracer = Tracer {
        driver,
        deed,
        tracees: BTreeMap::new(),
        early: BTreeMap::new(),
        alive,
        counts: HashMap::new(),
        calls: Vec::new(),
        begun: false,
        last: None,
        met: false,
        jobs: Vec::new(),
        expected: order.map_or(1, |_| client::JOBS),
        status: 0,
    };
    tracer.follow()?;
    drop(over);
    let hung = hung.join().unwrap_or(true);
    let took = started.elapsed();
    // All who had the other end of its pipes are dead.
    let heard =
        host.map(|host| host.join().map_err(|_| io::Error::other("the host panicked"))).transpose()?;
    let (stdout, stderr) = (child.stdout.take().map(rest), child.stderr.take().map(rest));
    let Tracer { calls, begun, last, met, jobs, status, .. } = tracer;
    let (stdout, stderr) = (stdout.unwrap_or_default(), stderr.unwrap_or_default());
    Ok(Traced { status, stdout, heard, stderr, begun, last, calls, met, jobs, hung, took })
}

/// A number as a register holds it.
fn unsigned(number: i64) -> u64 {
    u64::from_ne_bytes(number.to_ne_bytes())
}

/// What is in a pipe, even if somebody still has its other end. A driver writes less than fits in.
fn rest(mut pipe: impl Read + AsFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flags = fcntl(pipe.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    // Where the pipe is not at its end, what came still counts.
    if flags.is_ok() {
        drop(pipe.read_to_end(&mut bytes));
    }
    bytes
}

/// Kills all that is traced if it takes too long. None of them is reaped but by the tracer, which takes it off
/// the list, so that no number names another process.
fn watch(
    alive: Arc<Mutex<BTreeSet<Pid>>>,
    limit: Duration,
) -> (mpsc::Sender<()>, std::thread::JoinHandle<bool>) {
    let (over, waits) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let hung = waits.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        while hung && waits.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
            let alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
            for pid in alive.iter() {
                let _ = kill(*pid, Signal::SIGKILL);
            }
        }
        hung
    });
    (over, thread)
}

/// A tracee may be killed at any moment; then there is nothing to do but to wait for it.
fn unless_dead(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

impl Tracer {
    fn follow(&mut self) -> io::Result<()> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
                Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => continue,
                status => status?,
            };
            match status {
                WaitStatus::Exited(pid, code) => self.ended(pid, code)?,
                WaitStatus::Signaled(pid, signal, _) => self.ended(pid, -(signal as i32))?,
                WaitStatus::PtraceSyscall(pid) => self.at_call(pid)?,
                WaitStatus::PtraceEvent(pid, _, event) => self.at_event(pid, event)?,
                WaitStatus::Stopped(pid, signal) => self.at_signal(pid, signal)?,
                _ => {}
            }
        }
    }

    fn ended(&mut self, pid: Pid, status: i32) -> io::Result<()> {
        let parent = self.tracees.remove(&pid);
        self.early.remove(&pid);
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        if pid == self.driver {
            self.status = status;
        }
        let Some(parent) = parent else { return Ok(()) };
        // It was killed before it said whom it had just made.
        let orphans: Vec<Pid> =
            self.early.iter().filter(|(_, of)| **of == pid).map(|(child, _)| *child).collect();
        for orphan in orphans {
            self.adopt(orphan, parent.role.child(parent.children + 1), parent.rulesets);
            self.begin(orphan)?;
        }
        Ok(())
    }

    /// Lets a child go on that has had the stop with which it begins.
    fn begin(&mut self, child: Pid) -> io::Result<()> {
        self.early.remove(&child);
        self.tracees.entry(child).and_modify(|tracee| tracee.fresh = false);
        self.go_on(child, None)
    }

    fn adopt(&mut self, pid: Pid, role: Role, rulesets: u32) {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        let fresh = !role.is_driver();
        let tracee = Tracee { role, children: 0, inside: None, result: None, fresh, rulesets };
        self.tracees.insert(pid, tracee);
    }

    /// Lets it go on, to its next call as long as that may be of interest: each stop takes two changes of context.
    fn go_on(&mut self, pid: Pid, signal: Option<Signal>) -> io::Result<()> {
        let Some(tracee) = self.tracees.get_mut(&pid) else { return unless_dead(ptrace::cont(pid, signal)) };
        let interesting = match &self.deed {
            None => true,
            Some((point, _)) => {
                let due = tracee.role == point.kind.role && tracee.children >= point.kind.phase.0;
                // That a job is restricted by Landlock, only calls tell, and anybody may become one.
                let unboxed = !tracee.role.is_driver() && self.jobs.len() < self.expected;
                due && !self.met || tracee.result.is_some() || unboxed
            }
        };
        if interesting {
            return unless_dead(ptrace::syscall(pid, signal));
        }
        tracee.inside = None;
        unless_dead(ptrace::cont(pid, signal))
    }

    fn at_signal(&mut self, pid: Pid, signal: Signal) -> io::Result<()> {
        if pid == self.driver && self.tracees.is_empty() {
            // Its own execve(2), with which it begins.
            let options = Options::PTRACE_O_TRACESYSGOOD
                | Options::PTRACE_O_TRACECLONE
                | Options::PTRACE_O_TRACEFORK
                | Options::PTRACE_O_TRACEVFORK
                | Options::PTRACE_O_TRACEEXEC
                | Options::PTRACE_O_EXITKILL;
            unless_dead(ptrace::setoptions(pid, options))?;
            self.adopt(pid, Role::driver(), 0);
            return self.go_on(pid, None);
        }
        match self.tracees.get_mut(&pid) {
            None => {
                // Who it is, its parent says, unless that is dead.
                let parent = process::read(pid.as_raw()).map(|child| Pid::from_raw(child.parent));
                if let Some(parent) = parent.filter(|parent| self.tracees.contains_key(parent)) {
                    self.early.insert(pid, parent);
                    return Ok(());
                }
                self.adopt(pid, Role::driver().child(0), 0);
                self.begin(pid)
            }
            // With which a child begins.
            Some(tracee) if signal == Signal::SIGSTOP && tracee.fresh => {
                tracee.fresh = false;
                self.go_on(pid, None)
            }
            Some(_) => self.go_on(pid, Some(signal)),
        }
    }

    fn at_event(&mut self, pid: Pid, event: i32) -> io::Result<()> {
        if event == libc::PTRACE_EVENT_EXEC {
            return self.at_exec(pid);
        }
        let child = match ptrace::getevent(pid) {
            Ok(child) => Pid::from_raw(i32::try_from(child).map_err(io::Error::other)?),
            Err(errno) => return unless_dead(Err(errno)),
        };
        if let Some(parent) = self.tracees.get_mut(&pid) {
            parent.children += 1;
            // Whether its start was seen or not, its end comes next.
            parent.inside = Some(libc::SYS_clone);
            self.begun = true;
            let (role, rulesets) = (parent.role.child(parent.children), parent.rulesets);
            self.adopt(child, role, rulesets);
        }
        if self.early.contains_key(&child) {
            self.begin(child)?;
        }
        self.go_on(pid, None)
    }

    /// It has become a job: it is looked at, and no longer traced.
    fn at_exec(&mut self, pid: Pid) -> io::Result<()> {
        let Some(tracee) = self.tracees.remove(&pid) else { return self.go_on(pid, None) };
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        let sight = Sight::of(pid, tracee.rulesets);
        match (ptrace::detach(pid, None), sight) {
            // Killed at that moment: of the dying, /proc says what it says of those who are in nothing.
            (Err(Errno::ESRCH), _) => Ok(()),
            (Err(errno), _) => Err(errno.into()),
            (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(sight)) => {
                self.jobs.push((tracee.role, sight));
                Ok(())
            }
        }
    }

    fn at_call(&mut self, pid: Pid) -> io::Result<()> {
        let registers = match ptrace::getregs(pid) {
            Ok(registers) => registers,
            Err(errno) => return unless_dead(Err(errno)),
        };
        let Some(tracee) = self.tracees.get_mut(&pid) else { return self.go_on(pid, None) };
        match tracee.inside.take() {
            Some(call) => self.at_end(pid, call, registers)?,
            None => {
                let call = i64::from_ne_bytes(registers.orig_rax.to_ne_bytes());
                tracee.inside = Some(call);
                if !self.met && !ENDS.contains(&call) {
                    self.at_start(pid, call, registers)?;
                }
            }
        }
        self.go_on(pid, None)
    }

    fn at_end(&mut self, pid: Pid, call: i64, mut registers: libc::user_regs_struct) -> io::Result<()> {
        let Some(tracee) = self.tracees.get_mut(&pid) else { return Ok(()) };
        if let Some((result, argument)) = tracee.result.take() {
            registers.rax = result.unwrap_or(registers.rax);
            registers.rdi = argument;
            return unless_dead(ptrace::setregs(pid, registers));
        }
        tracee.rulesets += u32::from(call == libc::SYS_landlock_restrict_self && registers.rax == 0);
        Ok(())
    }

    fn at_start(&mut self, pid: Pid, call: i64, registers: libc::user_regs_struct) -> io::Result<()> {
        let Some(tracee) = self.tracees.get(&pid) else { return Ok(()) };
        let role = tracee.role.clone();
        let phase = if pid == self.driver { (tracee.children, !self.jobs.is_empty()) } else { (0, false) };
        self.begun |= pid == self.driver && call == FIRST;
        self.last = Some((role.clone(), call));
        // To say what a call is about takes time: where one is looked for, only of those that may be it.
        let sought = self.deed.as_ref().map(|(point, _)| &point.kind);
        if sought.is_some_and(|kind| kind.call != call || kind.role != role || kind.phase != phase) {
            return Ok(());
        }
        let object = describe(pid, row(call).map_or(Object::Nothing, |row| row.object), &registers);
        let kind = Kind { role, call, object, phase };
        let count = self.counts.entry(kind.clone()).or_insert(0);
        *count += 1;
        let here = Point { kind, occurrence: *count };
        match self.deed {
            None => self.calls.push(here),
            Some((ref point, deed)) if *point == here => self.act(pid, deed, registers)?,
            Some(_) => {}
        }
        Ok(())
    }

    fn act(&mut self, pid: Pid, deed: Deed, mut registers: libc::user_regs_struct) -> io::Result<()> {
        self.met = true;
        let (errno, manner) = match deed {
            Deed::KillDriver => return unless_dead(kill(self.driver, Signal::SIGKILL)),
            Deed::KillCaller => return unless_dead(kill(pid, Signal::SIGKILL)),
            Deed::Fail(errno, manner) => (errno, manner),
        };
        let failure = unsigned(i64::from(-(errno as i32)));
        if let Some(tracee) = self.tracees.get_mut(&pid) {
            tracee.result = Some(((manner != Manner::Unmoved).then_some(failure), registers.rdi));
        }
        match manner {
            Manner::After => return Ok(()),
            // Asked for nothing, it answers where the break is.
            Manner::Unmoved => registers.rdi = 0,
            // One that does nothing, and that every filter of ours lets pass: to write to no descriptor.
            Manner::Instead => {
                registers.orig_rax = unsigned(libc::SYS_write);
                registers.rdi = u64::MAX;
            }
        }
        unless_dead(ptrace::setregs(pid, registers))
    }
}
