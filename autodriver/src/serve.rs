//! `autodriver serve`: jobs over one connection. The rustdoc of the protocol crate says what is
//! exchanged; this file keeps the order, and [`crate::session`] what a job does with it.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use autodriver_protocol::message::{Closed, Hello, Open, JOBS_MAX, PING_MAX, PROTOCOL_VERSION};
use autodriver_protocol::report::Restore;
use autodriver_protocol::{ErrorCode, Kind, WireError};
use nix::sys::signalfd::SignalFd;

use crate::cli::say;
use crate::facts::{self, Facts};
use crate::fault::Fault;
use crate::first;
use crate::follow;
use crate::plan;
use crate::poller::{Interest, Poller};
use crate::run::{block_signals, make_ready};
use crate::sandbox::aside::Aside;
use crate::session::{Session, Wakeup};
use crate::slot::Slot;
use crate::transfer::ENTRIES_MAX;
use crate::wire::{End, Request, Wire, INPUT, OUTPUT};

const SIGNALS: u64 = 3;
/// How long a peer that broke the protocol may take to hear so.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves until the peer goes away; the exit status.
///
/// # Errors
/// One sentence: what could not be set up, or what the peer did wrong.
pub fn main() -> Result<u8, String> {
    let signals = block_signals().map_err(|fault| fault.to_string())?;
    let mut server = Server::new(&signals).map_err(|fault| fault.to_string())?;
    let end = server.converse(&signals).map_err(|fault| fault.to_string());
    server.farewell(&end);
    let clean = server.close_all();
    match end? {
        End::Broken(error) => Err(error.to_string()),
        End::Failed(fault) => Err(fault.to_string()),
        End::Closed | End::Deaf => Ok(if clean { 0 } else { 123 }),
    }
}

/// How long an orphan may be a zombie, where there is nothing else to do.
const REAP_AGAIN: Duration = Duration::from_secs(1);

struct Server {
    wire: Wire,
    poller: Poller,
    facts: Facts,
    greeted: bool,
    sessions: BTreeMap<u32, Session>,
    // After the jobs.
    _aside: Option<Aside>,
}

/// The token of a descriptor of a job.
fn token(job: u32, wakeup: Wakeup) -> u64 {
    u64::from(job) << 8 | wakeup.number()
}

impl Server {
    fn new(signals: &SignalFd) -> Result<Server, Fault> {
        let facts = facts::probe()?;
        let aside = make_ready(&facts)?;
        let poller = Poller::new()?;
        poller.add(signals.as_fd(), Interest::Read, SIGNALS)?;
        let mut wire = Wire::open()?;
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            name: "autodriver".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: Vec::new(),
        };
        wire.send_json(Kind::GuestHello, 0, &hello);
        Ok(Server { wire, poller, facts, greeted: false, sessions: BTreeMap::new(), _aside: aside })
    }

    /// The loop. Returns why it ended.
    fn converse(&mut self, signals: &SignalFd) -> Result<End, Fault> {
        loop {
            if let Err(end) = self.wire.flush() {
                return Ok(end);
            }
            // After the flush: how much is still to be sent decides what is watched.
            for (job, session) in &mut self.sessions {
                session.watch(&self.poller, |wakeup| token(*job, wakeup), &self.wire)?;
            }
            let paused = self.sessions.values().any(Session::is_clogged);
            self.wire.watch(&self.poller, paused)?;
            let now = Instant::now();
            let orphans = first::is_first().then(|| now + REAP_AGAIN);
            let ticks = self.sessions.values().filter_map(|session| session.next_tick(now));
            let deadline = ticks.chain(orphans).min();
            first::reap();
            for token in self.poller.wait(deadline, now)? {
                match token {
                    INPUT => match self.requests() {
                        Ok(()) => {}
                        Err(end) => return Ok(end),
                    },
                    OUTPUT => {}
                    SIGNALS => {
                        let mut ends = false;
                        while let Ok(Some(came)) = signals.read_signal() {
                            ends |= follow::passed_on(came.ssi_signo).is_none();
                        }
                        if ends {
                            return Ok(End::Closed);
                        }
                    }
                    token => self.wake(token),
                }
                self.tick();
            }
            self.advance();
        }
    }

    fn wake(&mut self, token: u64) {
        let job = u32::try_from(token >> 8).unwrap_or(0);
        // A session may have been closed in the same round.
        if let Some((session, wakeup)) = self.sessions.get_mut(&job).zip(Wakeup::from_number(token & 0xff)) {
            session.wake(wakeup, &self.poller, &mut self.wire, job);
        }
    }

    /// Looks at the limits that are due. Starting or ending one job takes milliseconds, in which another
    /// could pass a limit and be gone.
    fn tick(&mut self) {
        let now = Instant::now();
        self.sessions.values_mut().for_each(|session| session.tick(now));
    }

    /// Lets every session do what time and events have made possible.
    fn advance(&mut self) {
        let now = Instant::now();
        let mut closed = Vec::new();
        for (job, session) in &mut self.sessions {
            session.advance(now, &self.poller, &mut self.wire, *job);
            if session.is_closable() {
                closed.push(*job);
            }
        }
        for job in closed {
            self.close(job);
        }
    }

    fn close(&mut self, job: u32) {
        if let Some(session) = self.sessions.remove(&job) {
            let restore = Restore::from_leftovers(session.close());
            self.wire.send_json(Kind::Closed, job, &Closed { restore });
        }
    }

    fn requests(&mut self) -> Result<(), End> {
        self.wire.receive()?;
        while let Some(request) = self.wire.next_request()? {
            self.request(&request)?;
            self.tick();
        }
        Ok(())
    }

    fn request(&mut self, request: &Request) -> Result<(), End> {
        let Request { kind, job, payload } = request;
        let broken = |error| Err(End::Broken(error));
        match kind {
            Kind::HostHello if !self.greeted => return self.greet(payload),
            _ if !self.greeted => return broken(WireError::OutOfOrder { got: *kind, expected: "hello" }),
            Kind::HostHello => {
                return broken(WireError::OutOfOrder { got: *kind, expected: "a request; hello comes once" })
            }
            Kind::Ping if payload.len() <= PING_MAX => self.wire.send(Kind::Pong, 0, payload),
            Kind::Ping => return broken(WireError::BadPayload(*kind, format!("more than {PING_MAX} bytes"))),
            Kind::Open => return self.open(*job, payload),
            _ => match self.sessions.get_mut(job) {
                Some(session) => {
                    session.request(*kind, payload, &self.facts, &self.poller, &mut self.wire, *job)
                }
                None => return broken(WireError::BadJob(*job, "is not open")),
            },
        }
        Ok(())
    }

    fn greet(&mut self, payload: &[u8]) -> Result<(), End> {
        let bad = |why: String| End::Broken(WireError::BadPayload(Kind::HostHello, why));
        let hello: Hello = serde_json::from_slice(payload).map_err(|error| bad(error.to_string()))?;
        if hello.protocol != PROTOCOL_VERSION {
            return Err(bad(format!(
                "protocol {}; this autodriver speaks {PROTOCOL_VERSION}",
                hello.protocol
            )));
        }
        self.greeted = true;
        Ok(())
    }

    fn open(&mut self, job: u32, payload: &[u8]) -> Result<(), End> {
        if job == 0 || self.sessions.contains_key(&job) {
            let why = if job == 0 { "is not a number for a job" } else { "is open already" };
            return Err(End::Broken(WireError::BadJob(job, why)));
        }
        match self.make_session(payload) {
            Ok(session) => {
                self.sessions.insert(job, session);
                self.wire.send(Kind::Opened, job, &[]);
            }
            Err((code, why)) => self.wire.send_error(job, code, why),
        }
        Ok(())
    }

    fn make_session(&self, payload: &[u8]) -> Result<Session, (ErrorCode, String)> {
        let bad = |why: String| (ErrorCode::BadRequest, why);
        if self.sessions.len() >= JOBS_MAX {
            return Err(bad(format!("{JOBS_MAX} jobs are open already; close one first")));
        }
        let open: Open = match payload {
            [] => Open::default(),
            payload => serde_json::from_slice(payload).map_err(|error| bad(format!("open: {error}")))?,
        };
        let user = plan::user(open.user.as_deref()).map_err(|refusal| bad(refusal.0))?;
        let bytes = open.disk.map_or(self.facts.half_memory, |size| size.0);
        let slot = Slot::open(&user, &self.facts, bytes, open.inodes.unwrap_or(ENTRIES_MAX));
        slot.map(Session::new).map_err(|fault| (ErrorCode::SetupFailed, fault.to_string()))
    }

    /// Tells the peer what it did wrong, if it listens.
    fn farewell(&mut self, end: &Result<End, String>) {
        let why = match end {
            Ok(End::Broken(error)) => error.to_string(),
            Ok(End::Failed(fault)) => fault.to_string(),
            Err(fault) => fault.clone(),
            Ok(End::Closed | End::Deaf) => return,
        };
        self.wire.send_error(0, ErrorCode::Protocol, why);
        let until = Instant::now() + FAREWELL;
        while self.wire.backlog() > 0 && self.wire.flush().is_ok() && Instant::now() < until {
            if self.wire.backlog() > 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Cancels and restores everything; whether nothing is left.
    fn close_all(&mut self) -> bool {
        let mut clean = true;
        for (job, session) in &mut self.sessions {
            session.cancel(&self.poller, &mut self.wire, *job);
        }
        for (job, session) in std::mem::take(&mut self.sessions) {
            for leftover in session.close() {
                clean = false;
                say(&format!("job {job} left behind: {} {}", leftover.kind, leftover.what));
            }
        }
        clean
    }
}
