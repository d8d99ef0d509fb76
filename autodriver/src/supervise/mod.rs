//! Following one job from its exec to the death of its last process. No loop of its own: whoever
//! owns the loop says which descriptor is ready and what time it is.

pub mod output;
pub mod tree;
mod cpu_time;
mod enclosing;
mod held;
mod sampled;
mod disk;
mod watch;
pub mod limits;
pub mod verdict;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use autodriver_protocol::job::OnOutput;
use autodriver_protocol::report::OutputReport;
use autodriver_protocol::{Cause, Layer};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::wait::{waitid, Id, WaitPidFlag};
use nix::unistd::Pid;

use crate::facts::Facts;
use crate::fault::{Fault, Step};
use crate::plan::Plan;
use crate::procfs::Procfs;
use crate::sandbox::cgroup::{Account, Cgroup};
use crate::sandbox::report::Record;
use crate::sandbox::spawn::Spawned;
use crate::sandbox::storage::{Storage, Use};
use crate::sandbox::Identity;
use crate::sys::process::pidfd_send_signal;
use limits::{Limits, Means};
use output::{Capture, Drained};
use verdict::{Ended, Happened};
use watch::Watch;

/// A set-up that takes longer than this is stuck.
const SETUP_MAX: Duration = Duration::from_secs(30);
/// How long dying may take before what is left counts as unkillable.
const DYING_MAX: Duration = Duration::from_secs(10);
/// How often a dying tree without a PID namespace is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(5);

/// What can be ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The report pipe.
    Reports,
    /// init is dead.
    Init,
    /// Standard output, or both as one.
    Stdout,
    /// Standard error, with `--split`.
    Stderr,
}

impl Source {
    /// All of them.
    pub const ALL: [Source; 4] = [Source::Reports, Source::Init, Source::Stdout, Source::Stderr];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    SettingUp {
        until: Instant,
    },
    Running,
    /// SIGTERM was sent.
    Terminating {
        until: Instant,
    },
    /// SIGKILL was sent, or the first process has ended.
    Dying {
        until: Instant,
    },
    Over,
}

/// A stream and what is kept of it.
#[derive(Debug)]
struct Stream {
    capture: Capture,
    open: bool,
}

/// One job.
#[derive(Debug)]
pub struct Job {
    plan: Plan,
    spawned: Spawned,
    cgroup: Cgroup,
    /// Where something has to stand in for the cgroup, or for the PID namespace.
    watch: Option<Watch>,
    processors: u64,
    phase: Phase,
    requested: Instant,
    limits: Option<Limits>,
    /// When the first process ended, and when the last one had.
    ended_at: Option<Instant>,
    over_at: Option<Instant>,
    stdout: Stream,
    stderr: Option<Stream>,
    happened: Happened,
    settled: Option<Settled>,
    /// Processes that did not die when they were killed last.
    unkilled: Vec<Pid>,
}

/// What is read when the last process has ended.
#[derive(Debug)]
struct Settled {
    account: Account,
    storage: Option<Use>,
}

/// What a job starts with.
#[derive(Debug)]
pub struct Start<'a> {
    /// What it gets.
    pub plan: Plan,
    /// Its sandbox.
    pub spawned: Spawned,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Whose uid it has.
    pub identity: Identity,
    /// Where it writes.
    pub storage: &'a Storage,
    /// When it was asked for.
    pub requested: Instant,
    /// The machine.
    pub facts: &'a Facts,
}

/// The end of a job.
#[derive(Debug)]
pub struct Outcome {
    /// What happened.
    pub happened: Happened,
    /// What the kernel counted.
    pub account: Account,
    /// The cgroup, to be removed.
    pub cgroup: Cgroup,
    /// Processes that could not be killed.
    pub unkilled: Vec<Pid>,
    /// Of what was written.
    pub output: OutputReport,
    /// The plan it ran by.
    pub plan: Plan,
    /// From the request to exec.
    pub setup: Duration,
    /// From exec to the end of the first process.
    pub wall: Duration,
    /// From exec to the end of the last process.
    pub run: Duration,
}

/// Whether something has to stand in for the cgroup, or for the PID namespace.
fn is_watched(plan: &Plan) -> bool {
    let watched = [Layer::Memory, Layer::Cpu, Layer::Disk, Layer::ProcessTree];
    watched.into_iter().any(|layer| plan.substitutes(layer))
}

/// Looks whether a job can be followed, before there is one.
///
/// # Errors
/// If it has to be watched, and /proc does not show it.
pub fn check(plan: &Plan) -> Result<(), Fault> {
    match is_watched(plan) {
        true => Procfs::open().map(drop).map_err(watch::unwatchable),
        false => Ok(()),
    }
}

impl Job {
    /// Takes over a sandbox that was just started.
    ///
    /// # Errors
    /// What has to be watched and cannot be.
    pub fn new(start: Start<'_>) -> Result<Job, Fault> {
        let Start { plan, spawned, cgroup, identity, storage, requested, facts } = start;
        let processors = facts.processors;
        let watch = match is_watched(&plan) {
            true => Some(Watch::new(spawned.init.pid, identity, storage, &plan, facts)?),
            false => None,
        };
        let cap = if plan.split { plan.output / 2 } else { plan.output };
        let stream = || Stream { capture: Capture::new(cap, plan.timestamps), open: true };
        let (stdout, stderr) = (stream(), plan.split.then(stream));
        Ok(Job {
            phase: Phase::SettingUp { until: Instant::now() + SETUP_MAX },
            plan,
            spawned,
            cgroup,
            watch,
            processors,
            requested,
            limits: None,
            ended_at: None,
            over_at: None,
            stdout,
            stderr,
            happened: Happened::default(),
            settled: None,
            unkilled: Vec::new(),
        })
    }

    /// The descriptor of a source, if there is one.
    pub fn fd(&self, source: Source) -> Option<BorrowedFd<'_>> {
        match source {
            Source::Reports => Some(self.spawned.reports.fd()),
            Source::Init => Some(self.spawned.init.pidfd.as_fd()),
            Source::Stdout => Some(self.spawned.stdout.as_fd()),
            Source::Stderr => self.spawned.stderr.as_ref().map(AsFd::as_fd),
        }
    }

    /// A source is ready. Returns whether it should be watched on.
    pub fn ready(&mut self, source: Source, now: Instant, storage: &Storage) -> bool {
        match source {
            Source::Reports => self.records(now, storage),
            Source::Init => {
                self.init_died(now, storage);
                false
            }
            Source::Stdout | Source::Stderr => self.drain(source, now),
        }
    }

    fn records(&mut self, now: Instant, storage: &Storage) -> bool {
        let (records, open) = self.spawned.reports.receive();
        for record in records {
            match record {
                Record::ExecNext => {
                    self.happened.executed = true;
                    self.limits = Some(Limits::start(now, storage, self.processors));
                    if matches!(self.phase, Phase::SettingUp { .. }) {
                        self.phase = Phase::Running;
                    }
                }
                Record::Fault { step, index, errno } if self.happened.fault.is_none() => {
                    self.happened.executed = false;
                    self.happened.fault = Some(self.spawned.fault(step, index, errno));
                    self.die(now);
                }
                Record::Fault { .. } => {}
                Record::Exited(status) => self.first_process_ended(Ended::Exited(status), now, storage),
                Record::Signaled(signal) => self.first_process_ended(Ended::Signaled(signal), now, storage),
            }
        }
        open.unwrap_or_else(|errno| {
            self.lost("read what the job's init tells", errno, now);
            false
        })
    }

    /// The job cannot be followed any more: there is no verdict on it.
    fn lost(&mut self, act: &str, errno: Errno, now: Instant) {
        self.happened.fault.get_or_insert(Fault::new(Step::Supervise, act, errno));
        self.die(now);
    }

    fn first_process_ended(&mut self, ended: Ended, now: Instant, storage: &Storage) {
        self.happened.ended = Some(ended);
        self.ended_at = Some(now);
        if self.plan.applies(Layer::ProcessTree) {
            self.look_at_the_rest(storage);
            self.die(now);
        } else {
            // Asked for: what it left behind lives on.
            let _ = pidfd_send_signal(self.spawned.init.pidfd.as_fd(), Signal::SIGKILL);
        }
        // Most jobs leave nobody behind. Then there is no need to wait until init has taken its
        // namespaces down: that a directory can be removed proves that nobody is in it.
        if self.cgroup.exists() && self.cgroup.processes().is_empty() {
            self.settled = Some(self.settle(storage));
            let _ = self.cgroup.remove();
        }
    }

    /// What the processes have that are to be killed may be more than the job may have, and may have come since the
    /// last look. In a PID namespace they may be dead by now.
    fn look_at_the_rest(&mut self, storage: &Storage) {
        let looks = self.phase == Phase::Running && self.plan.substitutes(Layer::Memory);
        let Some(watch) = self.watch.as_mut().filter(|_| looks) else { return };
        watch.look_now(self.plan.memory, storage);
        if limits::memory_seen_left(watch, &self.plan) == Some(0) {
            self.happened.killed.get_or_insert(Cause::MemoryLimit);
        }
    }

    fn settle(&mut self, storage: &Storage) -> Settled {
        let (account, storage_use) = (self.cgroup.account(), storage.measure());
        // Without either, what ended the job is not known.
        if let Err(errno) = account.and(storage_use.map(drop)) {
            let fault = Fault::new(Step::Supervise, "read what the kernel counted of the job", errno);
            self.happened.fault.get_or_insert(fault);
        }
        let mut account = account.unwrap_or_default();
        if let Some(watch) = &mut self.watch {
            watch.look_now(self.plan.memory, storage);
            watch.complete(&mut account);
        }
        Settled { account, storage: storage_use.unwrap_or_default() }
    }

    /// Sends a signal to every process of the job. Returns how many there were.
    fn signal(&mut self, signal: Signal) -> usize {
        match &mut self.watch {
            _ if self.cgroup.exists() => self.cgroup.signal(signal),
            Some(watch) => watch.signal(signal),
            None => 0,
        }
    }

    /// Sends every process of the job a signal that is meant for it.
    pub fn pass_on(&mut self, signal: Signal) {
        if self.phase == Phase::Running {
            self.signal(signal);
        }
    }

    fn init_died(&mut self, now: Instant, storage: &Storage) {
        let _ = waitid(Id::PIDFd(self.spawned.init.pidfd.as_fd()), WaitPidFlag::WEXITED);
        // What it said last, and what the job wrote last, is still in the pipes.
        self.records(now, storage);
        for source in [Source::Stdout, Source::Stderr] {
            while self.is_open(source) && self.drain_some(source, now) == Drained::More {}
        }
        if self.plan.applies(Layer::ProcessTree) && !self.plan.enforces(Layer::PidNamespace) {
            // It may have been killed, with processes of the job still there.
            self.kill();
        }
        self.over(now);
    }

    fn over(&mut self, now: Instant) {
        self.ended_at.get_or_insert(now);
        self.over_at.get_or_insert(now);
        self.phase = Phase::Over;
    }

    fn stream(&mut self, source: Source) -> Option<(&mut Stream, BorrowedFd<'_>)> {
        match source {
            Source::Stderr => Some((self.stderr.as_mut()?, self.spawned.stderr.as_ref()?.as_fd())),
            _ => Some((&mut self.stdout, self.spawned.stdout.as_fd())),
        }
    }

    fn is_open(&mut self, source: Source) -> bool {
        self.stream(source).is_some_and(|(stream, _)| stream.open)
    }

    fn drain_some(&mut self, source: Source, now: Instant) -> Drained {
        let since_start = self.limits.as_ref().map_or(Duration::ZERO, |limits| limits.elapsed(now));
        let Some((stream, fd)) = self.stream(source) else { return Drained::Ended };
        let before = stream.capture.produced();
        let drained = stream.capture.drain(fd, since_start);
        stream.open = matches!(drained, Ok(Drained::More | Drained::Empty));
        let came = stream.capture.produced() > before;
        if let Some(limits) = self.limits.as_mut().filter(|_| came) {
            limits.output_came(now);
        }
        drained.unwrap_or_else(|errno| {
            self.lost("read the job's output", errno, now);
            Drained::Ended
        })
    }

    fn drain(&mut self, source: Source, now: Instant) -> bool {
        self.drain_some(source, now);
        if self.output_is_over() && self.plan.on_output == OnOutput::Kill {
            self.end(Cause::OutputLimit, now);
        }
        self.is_open(source)
    }

    fn output_is_over(&self) -> bool {
        self.stdout.capture.is_over() || self.stderr.as_ref().is_some_and(|stream| stream.capture.is_over())
    }

    /// Ends the job for a reason of the driver's: SIGTERM, grace, SIGKILL. The first reason counts.
    pub fn end(&mut self, cause: Cause, now: Instant) {
        if !matches!(self.phase, Phase::SettingUp { .. } | Phase::Running) {
            return;
        }
        self.happened.killed.get_or_insert(cause);
        let running = self.phase == Phase::Running;
        if running && !self.plan.grace.is_zero() && self.signal(Signal::SIGTERM) > 0 {
            self.phase = Phase::Terminating { until: now + self.plan.grace };
        } else {
            self.die(now);
        }
    }

    fn die(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        self.kill();
        if !matches!(self.phase, Phase::Dying { .. }) {
            self.phase = Phase::Dying { until: now + DYING_MAX };
        }
    }

    fn kill(&mut self) {
        if self.plan.enforces(Layer::PidNamespace) {
            let _ = pidfd_send_signal(self.spawned.init.pidfd.as_fd(), Signal::SIGKILL);
        } else if self.cgroup.exists() {
            self.cgroup.signal(Signal::SIGKILL);
        } else if let Some(watch) = &self.watch {
            self.unkilled = watch.kill();
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant, storage: &Storage) {
        match self.phase {
            Phase::SettingUp { until } if now >= until => {
                let fault =
                    Fault::refused(Step::Init, "set up the job's sandbox", "it took longer than 30 seconds");
                self.happened.fault.get_or_insert(fault);
                self.die(now);
            }
            Phase::Running => {
                let means = Means { cgroup: &self.cgroup, storage, watch: self.watch.as_mut() };
                let limits = self.limits.as_mut();
                if let Some(cause) = limits.and_then(|limits| limits.check(now, &self.plan, means)) {
                    self.end(cause, now);
                }
                if let Some(errno) = self.watch.as_ref().and_then(Watch::failure) {
                    self.lost("look at the job's processes", errno, now);
                }
            }
            Phase::Terminating { until } if now >= until => self.die(now),
            Phase::Dying { until } if now >= until => self.over(now),
            // In a PID namespace once is enough: init is dead, and nothing can be born without it.
            Phase::Dying { .. } if !self.plan.enforces(Layer::PidNamespace) => self.kill(),
            _ => {}
        }
    }

    /// When [`Job::tick`] must be called at the latest.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::SettingUp { until } | Phase::Terminating { until } => Some(until),
            Phase::Running => self.limits.as_ref().map(|limits| limits.next(&self.plan)),
            Phase::Dying { until } if self.plan.enforces(Layer::PidNamespace) => Some(until),
            Phase::Dying { .. } => Some(now + KILL_AGAIN),
            Phase::Over => None,
        }
    }

    /// Whether the program was executed.
    pub fn started(&self) -> bool {
        self.happened.executed
    }

    /// Whether every process is gone, or given up on.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Output to deliver now: standard output (or both), then standard error.
    pub fn take_live(&mut self) -> [Vec<u8>; 2] {
        let stderr = self.stderr.as_mut().map_or_else(Vec::new, |stream| stream.capture.take_live());
        [self.stdout.capture.take_live(), stderr]
    }

    /// The end: what is left to deliver of each stream, and everything for the report.
    pub fn finish(mut self, storage: &Storage) -> ([Vec<u8>; 2], Outcome) {
        let Settled { account, storage } = match self.settled.take() {
            Some(settled) => settled,
            None => self.settle(storage),
        };
        let seen = self.limits.as_ref().map_or((false, false), Limits::full_seen);
        let (mut bytes, mut inodes) = limits::full(storage, &self.plan);
        let mut pids_full = false;
        if let Some(watch) = &self.watch {
            if self.plan.substitutes(Layer::Disk) {
                let left = limits::disk_left(watch, &self.plan);
                (bytes, inodes) = (left.0 == 0, left.1 == 0);
            }
            // RLIMIT_NPROC counts nothing: that its job was seen at the limit is all there is to know.
            pids_full = self.plan.substitutes(Layer::Pids) && watch.pids_peak() >= self.plan.pids;
        }
        (self.happened.disk_full, self.happened.inodes_full) = (bytes, inodes);
        (self.happened.disk_seen_full, self.happened.inodes_seen_full) = (seen.0 | bytes, seen.1 | inodes);
        self.happened.oom_killed = account.oom_kills > 0;
        self.happened.forks_refused = account.forks_refused > 0 || pids_full;
        self.happened.output_over = self.output_is_over();
        let (rest, first) = self.stdout.capture.finish();
        let (rest_err, second) = self.stderr.as_mut().map(|stream| stream.capture.finish()).unzip();
        let output = match second {
            Some(second) => OutputReport { stdout: Some(first), stderr: Some(second), combined: None },
            None => OutputReport { combined: Some(first), ..OutputReport::default() },
        };
        let since_exec = |at: Option<Instant>| {
            self.limits.as_ref().zip(at).map_or(Duration::ZERO, |(limits, at)| limits.elapsed(at))
        };
        let (wall, run) = (since_exec(self.ended_at), since_exec(self.over_at));
        let over_at = self.over_at.unwrap_or(self.requested);
        let outcome = Outcome {
            happened: self.happened,
            account,
            cgroup: self.cgroup,
            unkilled: self.unkilled,
            output,
            plan: self.plan,
            setup: over_at.saturating_duration_since(self.requested).saturating_sub(run),
            wall,
            run,
        };
        ([rest, rest_err.unwrap_or_default()], outcome)
    }
}

/// Follows a job to its end without anything else going on: for a peer that went away.
pub fn drive_to_end(job: &mut Job, storage: &Storage) {
    while !job.is_over() {
        let now = Instant::now();
        let sources: Vec<_> = Source::ALL.into_iter().filter(|source| job.fd(*source).is_some()).collect();
        let ready: Vec<Source> = {
            let fds = sources.iter().filter_map(|source| job.fd(*source));
            let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            // Short: an ended stream is ready for ever.
            let _ = poll(&mut fds, PollTimeout::from(5u8));
            let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            sources.iter().zip(&fds).filter(|(_, fd)| is_ready(fd)).map(|(source, _)| *source).collect()
        };
        for source in ready {
            job.ready(source, now, storage);
        }
        job.tick(Instant::now(), storage);
    }
}
