//! One connection to a guest: signatures, `hello`, then jobs, one after another.
//!
//! The guest is not trusted: each of its frames is checked against what may come now, each
//! wait has a deadline of the host's own, and each stream a budget. Whatever it does, the host
//! ends with a [`Verdict`].

mod error;
mod wire;
mod job;
mod streams;
mod fetch;
mod life;
mod verdict;

use std::time::Duration;

use autodriver_protocol::message::PROTOCOL_VERSION;
use autodriver_protocol::{ErrorMessage, Hello, Kind, WireError};
use serde::de::DeserializeOwned;

pub use error::SessionError;
pub use fetch::confine;
pub use job::{Ended, Job, Sink, Stream};
pub use life::{perform, Assignment, Bundle, Outcome};
pub use verdict::{Fault, Step, Verdict, EXIT_FAULT};

use crate::backend::{Backend, Name, Peer};
use crate::cancel::Cancel;
use wire::Wire;

/// How long the host waits, each counted from when the step begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For the signature and `hello`.
    pub connect: Duration,
    /// For `opened`, and for `closed`.
    pub request: Duration,
    /// For each `put` and each `get`, whole.
    pub copy: Duration,
    /// For the report, beyond the job's wall clock and grace.
    pub margin: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        let seconds = Duration::from_secs;
        Deadlines { connect: seconds(60), request: seconds(60), copy: seconds(600), margin: seconds(60) }
    }
}

/// A guest that has said `hello`.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    deadlines: Deadlines,
    guest: Hello,
    last_job: u32,
    over: bool,
}

impl Connection {
    /// Connects to a machine and says `hello`.
    ///
    /// # Errors
    /// A [`Fault`] at [`Step::Connect`].
    pub fn reach(
        backend: &dyn Backend,
        machine: &Name,
        deadlines: Deadlines,
        cancel: &Cancel,
    ) -> Result<Connection, Fault> {
        let peer = backend.connect(machine).map_err(|error| Fault::here(Step::Connect, &error))?;
        Connection::establish(peer, deadlines, cancel)
    }

    /// Exchanges signatures and `hello`.
    ///
    /// # Errors
    /// A [`Fault`] at [`Step::Connect`] with what came instead.
    pub fn establish(peer: Peer, deadlines: Deadlines, cancel: &Cancel) -> Result<Connection, Fault> {
        let mut wire = Wire::new(peer, cancel.clone());
        match greet(&mut wire, deadlines.connect) {
            Ok(guest) => Ok(Connection { wire, deadlines, guest, last_job: 0, over: false }),
            Err(error) => Err(Fault { lost: true, ..Fault::of(Step::Connect, &error, wire.explain(&error)) }),
        }
    }

    /// What the guest says it is, for humans; nothing of it is relied upon.
    pub fn guest(&self) -> &Hello {
        &self.guest
    }

    /// Whether no further job can be opened on it.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The fault that `error` is. If the connection cannot go on, it ends here.
    fn fault(&mut self, step: Step, error: &SessionError) -> Fault {
        let message = match error.ends_connection() {
            true => self.wire.explain(error),
            false => error.to_string(),
        };
        // Of a job that was neither opened nor closed in order, nobody knows where it stands.
        let astray = step == Step::Close || (step == Step::Open && matches!(error, SessionError::Cancelled));
        self.over |= astray || error.ends_connection();
        Fault::of(step, error, message)
    }
}

fn greet(wire: &mut Wire, limit: Duration) -> Result<Hello, SessionError> {
    let own = Hello {
        protocol: PROTOCOL_VERSION,
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: Vec::new(),
    };
    wire.begin("hello", limit);
    let payload = json(Kind::HostHello, &own)?;
    wire.send(Kind::HostHello, 0, &payload);
    let header = wire.next_frame()?;
    let guest: Hello = match (header.kind, header.job) {
        (Kind::GuestHello, 0) => parse(Kind::GuestHello, wire.payload())?,
        (Kind::Error, 0) => return Err(SessionError::Ended(parse(Kind::Error, wire.payload())?)),
        (got, _) => return Err(WireError::OutOfOrder { got, expected: "hello" }.into()),
    };
    if guest.protocol != PROTOCOL_VERSION {
        let why = format!("protocol {}; this program speaks {PROTOCOL_VERSION}", guest.protocol);
        return Err(WireError::BadPayload(Kind::GuestHello, why).into());
    }
    Ok(guest)
}

fn json(kind: Kind, value: &impl serde::Serialize) -> Result<Vec<u8>, SessionError> {
    serde_json::to_vec(value).map_err(|error| WireError::BadPayload(kind, error.to_string()).into())
}

fn parse<T: DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T, SessionError> {
    serde_json::from_slice(payload).map_err(|error| WireError::BadPayload(kind, error.to_string()).into())
}

/// What an `error` frame for the connection says.
fn ended(payload: &[u8]) -> SessionError {
    match parse::<ErrorMessage>(Kind::Error, payload) {
        Ok(message) => SessionError::Ended(message),
        Err(error) => error,
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod orders;
#[cfg(test)]
mod tests;
