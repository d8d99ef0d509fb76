//! Following one job from its exec to the death of its last process. No loop of its own: whoever
//! owns the loop says which descriptor is ready and what time it is.

pub mod output;
pub mod limits;
#[allow(dead_code, reason = "what stands in for a cgroup is not wired in yet")]
pub mod tree;
#[allow(dead_code, reason = "as above")]
pub mod cpu_time;
#[allow(dead_code, reason = "as above")]
pub mod held;
#[allow(dead_code, reason = "as above")]
pub mod sampled;
#[allow(dead_code, reason = "as above")]
pub mod disk;
pub mod verdict;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use autodriver_protocol::job::OnOutput;
use autodriver_protocol::report::OutputReport;
use autodriver_protocol::{Cause, Layer};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::wait::{waitid, Id, WaitPidFlag};

use crate::fault::{Fault, Step};
use crate::plan::Plan;
use crate::sandbox::cgroup::{Account, Cgroup};
use crate::sandbox::report::Record;
use crate::sandbox::spawn::Spawned;
use crate::sandbox::storage::{Storage, Use};
use crate::sys::process::pidfd_send_signal;
use limits::Limits;
use output::{Capture, Drained};
use verdict::{Ended, Happened};

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
}

/// What is read when the last process has ended.
#[derive(Debug)]
struct Settled {
    account: Account,
    storage: Option<Use>,
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

impl Job {
    /// Takes over a sandbox that was just started.
    pub fn new(plan: Plan, spawned: Spawned, cgroup: Cgroup, requested: Instant, processors: u64) -> Job {
        let cap = if plan.split { plan.output / 2 } else { plan.output };
        let stream = || Stream { capture: Capture::new(cap, plan.timestamps), open: true };
        let (stdout, stderr) = (stream(), plan.split.then(stream));
        Job {
            phase: Phase::SettingUp { until: Instant::now() + SETUP_MAX },
            plan,
            spawned,
            cgroup,
            processors,
            requested,
            limits: None,
            ended_at: None,
            over_at: None,
            stdout,
            stderr,
            happened: Happened::default(),
            settled: None,
        }
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
        open
    }

    fn first_process_ended(&mut self, ended: Ended, now: Instant, storage: &Storage) {
        self.happened.ended = Some(ended);
        self.ended_at = Some(now);
        if self.plan.applies(Layer::ProcessTree) {
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

    fn settle(&self, storage: &Storage) -> Settled {
        Settled { account: self.cgroup.account(), storage: storage.usage() }
    }

    fn init_died(&mut self, now: Instant, storage: &Storage) {
        let _ = waitid(Id::PIDFd(self.spawned.init.pidfd.as_fd()), WaitPidFlag::WEXITED);
        // What it said last, and what the job wrote last, is still in the pipes.
        self.records(now, storage);
        for source in [Source::Stdout, Source::Stderr] {
            while self.is_open(source) && self.drain_some(source, now) == Drained::More {}
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
        let drained = stream.capture.drain(fd, since_start).unwrap_or(Drained::Ended);
        stream.open = drained != Drained::Ended;
        let came = stream.capture.produced() > before;
        if let Some(limits) = self.limits.as_mut().filter(|_| came) {
            limits.output_came(now);
        }
        drained
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
        if running && !self.plan.grace.is_zero() && self.cgroup.signal(Signal::SIGTERM) > 0 {
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

    fn kill(&self) {
        if self.plan.applies(Layer::PidNamespace) {
            let _ = pidfd_send_signal(self.spawned.init.pidfd.as_fd(), Signal::SIGKILL);
        } else {
            self.cgroup.signal(Signal::SIGKILL);
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
                let limits = self.limits.as_mut();
                if let Some(cause) =
                    limits.and_then(|limits| limits.check(now, &self.plan, &self.cgroup, storage))
                {
                    self.end(cause, now);
                }
            }
            Phase::Terminating { until } if now >= until => self.die(now),
            Phase::Dying { until } if now >= until => self.over(now),
            // In a PID namespace once is enough: init is dead, and nothing can be born without it.
            Phase::Dying { .. } if !self.plan.applies(Layer::PidNamespace) => self.kill(),
            _ => {}
        }
    }

    /// When [`Job::tick`] must be called at the latest.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        match self.phase {
            Phase::SettingUp { until } | Phase::Terminating { until } => Some(until),
            Phase::Running => self.limits.as_ref().map(|limits| limits.next(&self.plan)),
            Phase::Dying { until } if self.plan.applies(Layer::PidNamespace) => Some(until),
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
        let (bytes, inodes) = limits::full(storage, &self.plan);
        (self.happened.disk_full, self.happened.inodes_full) = (bytes, inodes);
        (self.happened.disk_seen_full, self.happened.inodes_seen_full) = (seen.0 | bytes, seen.1 | inodes);
        self.happened.oom_killed = account.oom_kills > 0;
        self.happened.forks_refused = account.forks_refused > 0;
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
