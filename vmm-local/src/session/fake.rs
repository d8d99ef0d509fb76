//! A scripted guest on the far side of two pipes: it says what the test wants, true or not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use autodriver_protocol::frame::encode;
use autodriver_protocol::job::Output;
use autodriver_protocol::report::{Restore, RestoreState};
use autodriver_protocol::units::Size;
use autodriver_protocol::{
    Cause, Decoder, Direction, Hello, Kind, Options, Report, GUEST_SIGNATURE, HOST_SIGNATURE,
};
use nix::fcntl::OFlag;

use super::{perform, Assignment, Connection, Deadlines, Fault, Outcome, Step, Stream, Verdict};
use crate::backend::Peer;
use crate::cancel::Cancel;

/// The guest's side. Every call ends with an error once the host is gone.
pub(crate) struct Guest {
    rx: File,
    tx: File,
    decoder: Decoder,
}

impl Guest {
    /// Both ends of a connection.
    pub(crate) fn and_peer() -> (Guest, Peer) {
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let ((guest_rx, host_tx), (host_rx, guest_tx)) = (pipe(), pipe());
        let decoder = Decoder::new(Direction::FromHost);
        let guest = Guest { rx: guest_rx.into(), tx: guest_tx.into(), decoder };
        (guest, Peer::from_streams(host_tx, host_rx).unwrap())
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tx.write_all(bytes)
    }

    pub(crate) fn send(&mut self, kind: Kind, job: u32, payload: &[u8]) -> io::Result<()> {
        self.raw(&encode(kind, job, payload))
    }

    /// The next frame of the host.
    pub(crate) fn next(&mut self) -> io::Result<(Kind, Vec<u8>)> {
        loop {
            if let Some((header, payload)) = self.decoder.next_frame().map_err(io::Error::other)? {
                return Ok((header.kind, payload.to_vec()));
            }
            if self.decoder.fill(&mut self.rx)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Skips the host's frames up to one of this kind.
    pub(crate) fn until(&mut self, kind: Kind) -> io::Result<Vec<u8>> {
        loop {
            match self.next()? {
                (got, payload) if got == kind => return Ok(payload),
                _ => {}
            }
        }
    }

    /// Nothing more, until the host is gone.
    pub(crate) fn say_nothing(&mut self) -> io::Result<()> {
        io::copy(&mut self.rx, &mut io::sink()).map(drop)
    }

    /// Signatures and `hello`.
    pub(crate) fn greet(&mut self) -> io::Result<()> {
        let hello = Hello { protocol: 1, name: "fake".into(), version: "0".into(), capabilities: vec![] };
        self.raw(&GUEST_SIGNATURE)?;
        self.send(Kind::GuestHello, 0, &serde_json::to_vec(&hello)?)?;
        let mut signature = [0; 8];
        self.rx.read_exact(&mut signature)?;
        assert_eq!(signature, HOST_SIGNATURE);
        self.until(Kind::HostHello).map(drop)
    }

    /// All that is regular up to `run`, whose document it returns.
    pub(crate) fn accept_job(&mut self, job: u32) -> io::Result<Vec<u8>> {
        self.until(Kind::Open)?;
        self.send(Kind::Opened, job, b"")?;
        self.until(Kind::Run)
    }

    /// A job that is over at once: `started`, and the report.
    pub(crate) fn run_job(&mut self, job: u32) -> io::Result<()> {
        self.accept_job(job)?;
        self.send(Kind::Started, job, b"")?;
        self.report(job, Cause::Exited)
    }

    pub(crate) fn report(&mut self, job: u32, cause: Cause) -> io::Result<()> {
        self.send(Kind::Report, job, &serde_json::to_vec(&report(cause))?)
    }

    /// The answer to `close`.
    pub(crate) fn close(&mut self, job: u32) -> io::Result<()> {
        self.until(Kind::Close)?;
        self.send(Kind::Closed, job, br#"{"restore": {"state": "restored", "leftovers": []}}"#)
    }
}

/// A report as a guest would write it.
pub(crate) fn report(cause: Cause) -> Report {
    let mut report = Verdict::Fault(Fault::here(Step::Run, &"made up")).to_report();
    report.cause = cause;
    report.exit_code = (cause == Cause::Exited).then_some(3);
    report.signal = (cause == Cause::Signaled).then_some(11);
    report.restore = Restore { state: RestoreState::Restored, leftovers: Vec::new() };
    if !matches!(cause, Cause::SetupFailed | Cause::InternalError) {
        report.fault = None;
    }
    report
}

/// Generous, but for what a test waits out.
pub(crate) fn deadlines() -> Deadlines {
    let minute = Duration::from_secs(60);
    Deadlines { connect: minute, request: minute, copy: minute, margin: minute }
}

/// A job that keeps one byte of output and has nothing to copy.
pub(crate) fn assignment() -> Assignment {
    Assignment::new(Options { output: Some(Size(1)), ..Options::default() }).unwrap()
}

/// The same, with one `--out`.
pub(crate) fn assignment_with_out(dest: &std::path::Path) -> Assignment {
    let output = Output { glob: "*".into(), dest: dest.to_string_lossy().into_owned() };
    Assignment::new(Options { outputs: vec![output], ..Options::default() }).unwrap()
}

/// A host that meets a scripted guest.
pub(crate) fn meet<R>(
    script: impl FnOnce(&mut Guest) -> io::Result<()> + Send,
    host: impl FnOnce(Peer) -> R,
) -> R {
    let (mut guest, peer) = Guest::and_peer();
    std::thread::scope(|scope| {
        // The script's errors are those of a host that left: what matters is what the host says.
        scope.spawn(move || script(&mut guest).ok());
        host(peer)
    })
}

/// What a host makes of one job on a scripted guest, and the output it passed on.
pub(crate) fn outcome_of(
    script: impl FnOnce(&mut Guest) -> io::Result<()> + Send,
    assignment: &Assignment,
    deadlines: Deadlines,
    cancel: &Cancel,
) -> (Outcome, Vec<u8>) {
    meet(script, |peer| {
        let mut output = Vec::new();
        let mut sink = |_: Stream, bytes: &[u8]| {
            output.extend_from_slice(bytes);
            Ok(())
        };
        let outcome = match Connection::establish(peer, deadlines, cancel) {
            Ok(mut connection) => perform(&mut connection, assignment, &mut sink),
            Err(fault) => Outcome::of(fault),
        };
        (outcome, output)
    })
}

/// The sentence of the fault that a plain job ends with on a scripted guest.
pub(crate) fn fault_of(script: impl FnOnce(&mut Guest) -> io::Result<()> + Send) -> String {
    let (outcome, _) = outcome_of(script, &assignment(), deadlines(), &Cancel::new().unwrap());
    assert_eq!(outcome.verdict.exit_code(), 125, "{:?}", outcome.verdict);
    match outcome.verdict {
        Verdict::Fault(fault) => fault.to_string(),
        Verdict::Report(report) => panic!("a verdict on the job: {report:?}"),
    }
}
