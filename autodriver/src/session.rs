//! One job of a connection, from `open` to `close`: what it is doing, and what it sends.

mod copying;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use autodriver_protocol::archive::{relative, Selection};
use autodriver_protocol::message::Get;
use autodriver_protocol::report::Leftover;
use autodriver_protocol::{Cause, ErrorCode, Kind, Options, Phase};
use nix::fcntl::{openat2, OFlag, OpenHow, ResolveFlag};

use crate::facts::Facts;
use crate::fault::{Fault, Step};
use crate::plan::{self, plan};
use crate::poller::{Interest, Poller};
use crate::slot::{failed, Slot};
use crate::supervise::{drive_to_end, Job, Source};
use crate::transfer::Task;
use crate::wire::Wire;
use copying::{Put, Transfer};

/// What can wake a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// A source of a running job.
    Source(Source),
    /// The stream of a transfer.
    Stream,
    /// The end of a transfer.
    Ending,
}

impl Wakeup {
    const STREAM: u64 = 16;
    const ENDING: u64 = 17;

    /// For a token.
    pub fn number(self) -> u64 {
        match self {
            Wakeup::Source(source) => source as u64,
            Wakeup::Stream => Wakeup::STREAM,
            Wakeup::Ending => Wakeup::ENDING,
        }
    }

    /// From a token.
    pub fn from_number(number: u64) -> Option<Wakeup> {
        match number {
            Wakeup::STREAM => Some(Wakeup::Stream),
            Wakeup::ENDING => Some(Wakeup::Ending),
            number => Source::ALL.into_iter().find(|source| *source as u64 == number).map(Wakeup::Source),
        }
    }
}

#[derive(Debug)]
enum Activity {
    Idle,
    Putting(Put),
    /// A put that failed; the rest of its stream is skipped.
    Skipping,
    Running {
        job: Box<Job>,
        started: bool,
        watched: bool,
    },
    Getting(Transfer),
}

/// One job of a connection.
#[derive(Debug)]
pub struct Session {
    slot: Slot,
    phase: Phase,
    activity: Activity,
}

impl Session {
    /// A session with nothing under way.
    pub fn new(slot: Slot) -> Session {
        Session { slot, phase: Phase::Idle, activity: Activity::Idle }
    }

    /// Whether requests must wait, because a put is not taken as fast as it comes.
    pub fn is_clogged(&self) -> bool {
        matches!(&self.activity, Activity::Putting(put) if put.is_clogged())
    }

    /// Whether `close` was asked for and nothing is under way.
    pub fn is_closable(&self) -> bool {
        self.phase == Phase::Closing && matches!(self.activity, Activity::Idle | Activity::Skipping)
    }

    /// When [`Session::advance`] must be called at the latest.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        match &self.activity {
            Activity::Running { job, .. } => job.next_tick(now),
            _ => None,
        }
    }

    /// One request. What is wrong with it is told on the wire, and leaves the job as it was.
    pub fn request(
        &mut self,
        kind: Kind,
        payload: &[u8],
        facts: &Facts,
        poller: &Poller,
        wire: &mut Wire,
        id: u32,
    ) {
        let before = self.phase;
        self.phase = match before.request(kind) {
            Ok(phase) => phase,
            Err(error) => return wire.send_error(id, ErrorCode::OutOfOrder, error.to_string()),
        };
        let result = match kind {
            Kind::Put => self.put(payload, poller),
            Kind::Run => self.run(payload, facts, wire, id),
            Kind::Get => self.get(payload),
            Kind::Cancel | Kind::Close => {
                self.cancel(poller, wire, id);
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err((code, why)) = result {
            // A put goes on failing until its empty frame.
            let skipping = kind == Kind::Put && !payload.is_empty();
            self.activity = if skipping { Activity::Skipping } else { Activity::Idle };
            self.phase = if skipping { Phase::Putting } else { Phase::Idle };
            wire.send_error(id, code, why);
        }
    }

    fn put(&mut self, payload: &[u8], poller: &Poller) -> Result<(), (ErrorCode, String)> {
        if matches!(self.activity, Activity::Idle) {
            let transfer = Transfer::start(&Task::Unpack, &self.slot)
                .map_err(|fault| (ErrorCode::SetupFailed, fault.to_string()))?;
            self.activity = Activity::Putting(Put::new(transfer));
        }
        match &mut self.activity {
            Activity::Putting(put) => {
                put.take(payload, poller);
            }
            Activity::Skipping if payload.is_empty() => {
                self.activity = Activity::Idle;
                self.phase = Phase::Idle;
            }
            _ => {}
        }
        Ok(())
    }

    fn run(
        &mut self,
        payload: &[u8],
        facts: &Facts,
        wire: &mut Wire,
        id: u32,
    ) -> Result<(), (ErrorCode, String)> {
        let requested = Instant::now();
        let bad = |why: String| (ErrorCode::BadRequest, why);
        let mut options = Options::from_json(payload).map_err(|error| bad(error.to_string()))?;
        plan::user(options.user.as_deref()).map_err(|refusal| bad(refusal.0))?;
        check_keys(&options).map_err(bad)?;
        let stdin = options.stdin.take_if(|path| !path.starts_with('/'));
        let stdin =
            stdin.map(|path| self.open_stdin(&path)).transpose().map_err(|fault| bad(fault.to_string()))?;
        let plan = plan(options, facts).map_err(|refusal| bad(refusal.0))?;
        let layers = plan.layers.clone();
        match self.slot.start(plan, facts, requested, stdin, false) {
            Ok(job) => {
                self.activity = Activity::Running { job: Box::new(job), started: false, watched: false }
            }
            Err(fault) => {
                self.phase = Phase::Idle;
                wire.send_json(Kind::Report, id, &failed(layers, &fault, self.slot.leftovers()));
            }
        }
        Ok(())
    }

    /// A file of the job directory, by a path that no link of the job leads astray.
    fn open_stdin(&self, path: &str) -> Result<OwnedFd, Fault> {
        let act = format!("open stdin {path}");
        let name =
            relative(path.as_bytes()).map_err(|why| Fault::refused(Step::Request, act.clone(), why))?;
        let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        openat2(self.slot.storage().job(), Path::new(&name), OpenHow::new().flags(flags).resolve(beneath))
            .map_err(|errno| Fault::new(Step::Request, act, errno))
    }

    fn get(&mut self, payload: &[u8]) -> Result<(), (ErrorCode, String)> {
        let bad = |why: String| (ErrorCode::BadRequest, why);
        let get: Get = serde_json::from_slice(payload).map_err(|error| bad(format!("get: {error}")))?;
        let selection = Selection::globs(&get.globs).map_err(|error| bad(error.to_string()))?;
        let transfer = Transfer::start(&Task::Pack(selection), &self.slot)
            .map_err(|fault| (ErrorCode::SetupFailed, fault.to_string()))?;
        self.activity = Activity::Getting(transfer);
        Ok(())
    }

    /// What was under way has ended; a job that is to be closed stays so.
    fn settle(&mut self) {
        if self.phase != Phase::Closing {
            self.phase = Phase::Idle;
        }
    }

    /// Ends what is under way.
    pub fn cancel(&mut self, poller: &Poller, wire: &mut Wire, id: u32) {
        match &mut self.activity {
            Activity::Idle | Activity::Skipping => {}
            Activity::Running { job, .. } => job.end(Cause::Cancelled, Instant::now()),
            Activity::Putting(put) => put.cancel(poller),
            Activity::Getting(transfer) => {
                transfer.stop_watching(poller);
                self.activity = Activity::Idle;
                self.settle();
                wire.send_error(id, ErrorCode::Cancelled, "cancelled");
            }
        }
    }

    /// A descriptor is ready.
    pub fn wake(&mut self, wakeup: Wakeup, poller: &Poller, wire: &mut Wire, id: u32) {
        match (&mut self.activity, wakeup) {
            (Activity::Running { job, .. }, Wakeup::Source(source)) => {
                let watch_on = job.ready(source, Instant::now(), self.slot.storage());
                if !watch_on {
                    job.fd(source).into_iter().for_each(|fd| poller.remove(fd));
                }
            }
            (Activity::Putting(put), Wakeup::Stream) => put.push(poller),
            (Activity::Getting(transfer), Wakeup::Stream) => transfer.send_on(poller, wire, id),
            (Activity::Putting(Put { transfer, .. }) | Activity::Getting(transfer), Wakeup::Ending) => {
                let ended = transfer.worker.listen();
                if ended {
                    self.transfer_ended(poller, wire, id);
                }
            }
            // Ready in the same round as what ended it.
            _ => {}
        }
    }

    fn transfer_ended(&mut self, poller: &Poller, wire: &mut Wire, id: u32) {
        let (mut transfer, complete, cancelled, kind) =
            match std::mem::replace(&mut self.activity, Activity::Idle) {
                Activity::Putting(put) => (put.transfer, put.complete, put.cancelled, Kind::PutDone),
                Activity::Getting(transfer) => (transfer, true, false, Kind::GetDone),
                other => {
                    self.activity = other;
                    return;
                }
            };
        transfer.stop_watching(poller);
        match transfer.finish() {
            _ if cancelled => wire.send_error(id, ErrorCode::Cancelled, "cancelled"),
            Ok(done) if complete => wire.send_json(kind, id, &done),
            Ok(_) => {
                wire.send_error(id, ErrorCode::TransferFailed, "the archive ended before its stream did");
            }
            Err(fault) => wire.send_error(id, ErrorCode::TransferFailed, fault.to_string()),
        }
        if complete {
            self.settle();
        } else {
            self.activity = Activity::Skipping;
        }
    }

    /// Looks at the limits of a running job, if it is time.
    pub fn tick(&mut self, now: Instant) {
        if let Activity::Running { job, .. } = &mut self.activity {
            job.tick(now, self.slot.storage());
        }
    }

    /// Does what time and events have made possible, and sends what came of it.
    pub fn advance(&mut self, now: Instant, poller: &Poller, wire: &mut Wire, id: u32) {
        let Activity::Running { job, started, .. } = &mut self.activity else { return };
        job.tick(now, self.slot.storage());
        if job.started() && !*started {
            *started = true;
            wire.send(Kind::Started, id, &[]);
        }
        let split = job.fd(Source::Stderr).is_some();
        for (kind, live) in kinds(split).into_iter().zip(job.take_live()) {
            wire.send_data(kind, id, &live);
        }
        if !job.is_over() {
            return;
        }
        for source in Source::ALL {
            job.fd(source).into_iter().for_each(|fd| poller.remove(fd));
        }
        let Activity::Running { job, .. } = std::mem::replace(&mut self.activity, Activity::Idle) else {
            return;
        };
        let (rest, outcome) = job.finish(self.slot.storage());
        for (kind, rest) in kinds(split).into_iter().zip(rest) {
            wire.send_data(kind, id, &rest);
        }
        wire.send_json(Kind::Report, id, &self.slot.conclude(outcome));
        self.settle();
    }

    /// Watches what can wake this session.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch(
        &mut self,
        poller: &Poller,
        token: impl Fn(Wakeup) -> u64,
        wire: &Wire,
    ) -> Result<(), Fault> {
        match &mut self.activity {
            Activity::Running { job, watched, .. } if !*watched => {
                *watched = true;
                for source in Source::ALL {
                    if let Some(fd) = job.fd(source) {
                        poller.add(fd, Interest::Read, token(Wakeup::Source(source)))?;
                    }
                }
                Ok(())
            }
            Activity::Putting(put) => put.watch(poller, token(Wakeup::Stream), token(Wakeup::Ending)),
            Activity::Getting(transfer) => {
                transfer.watch_get(poller, token(Wakeup::Stream), token(Wakeup::Ending), wire)
            }
            _ => Ok(()),
        }
    }

    /// Ends what is under way without a peer, and gives everything back; what is left.
    pub fn close(mut self) -> Vec<Leftover> {
        if let Activity::Running { job, .. } = &mut self.activity {
            job.end(Cause::Cancelled, Instant::now());
            drive_to_end(job, self.slot.storage());
            let Activity::Running { job, .. } = self.activity else { return self.slot.close() };
            let (_, outcome) = job.finish(self.slot.storage());
            self.slot.conclude(outcome);
        }
        self.slot.close()
    }
}

fn kinds(split: bool) -> [Kind; 2] {
    if split {
        [Kind::Stdout, Kind::Stderr]
    } else {
        [Kind::Output, Kind::Stderr]
    }
}

/// Keys that have other means on the wire.
fn check_keys(options: &Options) -> Result<(), String> {
    let given = [
        ("in", !options.inputs.is_empty(), "put"),
        ("out", !options.outputs.is_empty(), "get"),
        ("user", options.user.is_some(), "open"),
        ("report", options.report.is_some(), "the frame report"),
        ("quiet", options.quiet, "nothing"),
    ];
    match given.into_iter().find(|(_, given, _)| *given) {
        Some((key, _, instead)) => {
            Err(format!("job document: key '{key}' has no meaning here; {instead} replaces it"))
        }
        None => Ok(()),
    }
}
