//! One job on a connection: `open`, then `put`, `run` and `get` in turn, then `close`.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use autodriver_protocol::archive::{self, Accept, ArchiveError, Limits, Modes, Selection};
use autodriver_protocol::frame::{Header, HEADER_LEN};
use autodriver_protocol::report::{LayerReport, Restore, RestoreState, StreamReport, REPORT_VERSION};
use autodriver_protocol::{
    Cause, Closed, ErrorMessage, Get, Kind, Open, Options, Phase, Report, Transferred, WireError,
};

use super::streams::{GetStream, PutStream};
use super::{ended, json, parse, Connection, SessionError};

/// Which of the job's streams output belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Both, in order.
    Combined,
    /// With `split`.
    Stdout,
    /// With `split`.
    Stderr,
}

/// Takes a job's output as it comes.
pub type Sink<'s> = dyn FnMut(Stream, &[u8]) -> io::Result<()> + 's;

/// Output beyond the cap that is still plausible: the elision mark, the last two lines, and
/// frames' headers.
const OUTPUT_SLACK: u64 = 4 << 20;
/// What a guest may have had under way when it was told to close.
const CLOSE_SLACK: u64 = 16 << 20;
/// Longest prefix of a line with `timestamps`, for the shortest of lines.
const TIMESTAMP_GROWTH: u64 = 32;
/// Longest `report` and `closed`: those of an autodriver have a few thousand bytes, and a batch keeps
/// one of each job.
const REPORT_MAX: u64 = 64 << 10;
/// What an entry may weigh in an archive beyond its content: headers, long names, padding.
const ENTRY_OVERHEAD: u64 = 8 << 10;

/// A job that is open on a connection.
#[derive(Debug)]
pub struct Job<'c> {
    pub(super) connection: &'c mut Connection,
    id: u32,
    phase: Phase,
    running: Option<Run>,
    seen: Seen,
}

/// What the host saw of the last run by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// From `run` to its report.
    pub(super) took: Duration,
    /// Bytes of output.
    pub(super) output: u64,
}

/// What is known of a job between `run` and `report`.
#[derive(Clone, Copy, Debug)]
struct Run {
    split: bool,
    started: bool,
    budget: u64,
    limit: u64,
}

/// How a job was closed.
#[derive(Debug)]
pub struct Ended {
    /// Whether the machine is as it was.
    pub restore: Restore,
    /// The report of a job that was still running.
    pub report: Option<Report>,
}

impl<'c> Job<'c> {
    /// Opens a job.
    ///
    /// # Errors
    /// [`SessionError`], as for every call here.
    pub fn open(connection: &'c mut Connection, open: &Open) -> Result<Job<'c>, SessionError> {
        connection.last_job = connection.last_job.checked_add(1).unwrap_or(1);
        let id = connection.last_job;
        connection.wire.heed_cancel();
        connection.wire.begin("opened", connection.deadlines.request);
        connection.wire.send(Kind::Open, id, &json(Kind::Open, open)?);
        let mut job = Job { connection, id, phase: Phase::Idle, running: None, seen: Seen::default() };
        match job.answer()? {
            Kind::Opened => Ok(job),
            Kind::Error => Err(job.refused()),
            got => Err(WireError::OutOfOrder { got, expected: "opened or error" }.into()),
        }
    }

    /// Puts the tar stream that `pack` writes into the job directory.
    pub fn put(
        &mut self,
        pack: impl FnOnce(&mut dyn Write) -> Result<Transferred, ArchiveError>,
    ) -> Result<Transferred, SessionError> {
        self.connection.wire.begin("put-done", self.connection.deadlines.copy);
        let mut stream = PutStream::new(self);
        let packed = pack(&mut stream);
        match stream.into_error() {
            Some(SessionError::Refused(message)) => {
                // The guest skips the rest of the stream, up to its end, which it is owed.
                self.connection.wire.send(Kind::Put, self.id, &[]);
                return Err(SessionError::Refused(message));
            }
            Some(error) => return Err(error),
            None => {}
        }
        let packed = packed?;
        self.request(Kind::Put, &[])?;
        match self.answer()? {
            Kind::PutDone => {
                same(Kind::PutDone, &parse(Kind::PutDone, self.payload())?, &packed)?;
                Ok(packed)
            }
            Kind::Error => Err(self.refused()),
            got => Err(WireError::OutOfOrder { got, expected: "put-done or error" }.into()),
        }
    }

    /// Runs a job document, passes its output on, and returns its report. `limit` is the
    /// job's own: its wall clock and grace.
    pub fn run(
        &mut self,
        document: &Options,
        limit: Duration,
        sink: &mut Sink<'_>,
    ) -> Result<Report, SessionError> {
        self.connection.wire.begin("report", limit + self.connection.deadlines.margin);
        self.seen = Seen::default();
        let began = Instant::now();
        self.request(Kind::Run, &json(Kind::Run, document)?)?;
        let growth = if document.timestamps { TIMESTAMP_GROWTH } else { 2 };
        let cap = document.output.map_or(0, |size| size.0);
        let budget = cap.saturating_mul(growth).saturating_add(OUTPUT_SLACK);
        self.running = Some(Run { split: document.split, started: false, budget, limit: budget });
        loop {
            match self.answer()? {
                Kind::Report => {
                    self.seen.took = began.elapsed();
                    return self.report();
                }
                Kind::Error => {
                    self.running = None;
                    return Err(self.refused());
                }
                kind => self.running_frame(kind, sink)?,
            }
        }
    }

    /// Unpacks the files that match into `dest`.
    pub fn get(
        &mut self,
        globs: Vec<String>,
        limits: Limits,
        dest: BorrowedFd<'_>,
    ) -> Result<Transferred, SessionError> {
        self.connection.wire.begin("get-done", self.connection.deadlines.copy);
        let only = Selection::globs(&globs)?;
        self.request(Kind::Get, &json(Kind::Get, &Get { globs })?)?;
        let budget = limits.bytes.saturating_add(limits.entries.saturating_mul(ENTRY_OVERHEAD));
        let mut stream = GetStream::new(self, budget.saturating_add(OUTPUT_SLACK));
        let accept = Accept { limits, modes: Modes::Fixed, links: false, only: Some(&only) };
        let unpacked = archive::unpack(dest, &mut stream, accept);
        let said = stream.into_result()?;
        let done = unpacked.map_err(SessionError::of_guest)?;
        let said = said.ok_or(WireError::Ended("the end of the archive"))?;
        same(Kind::GetDone, &said, &done)?;
        Ok(said)
    }

    /// Closes the job, whatever it is doing. From here on a cancelled caller waits too.
    pub fn close(mut self, sink: &mut Sink<'_>) -> Result<Ended, SessionError> {
        self.connection.wire.ignore_cancel();
        self.connection.wire.begin("closed", self.connection.deadlines.request);
        self.request(Kind::Close, &[])?;
        let (mut report, mut budget) = (None, CLOSE_SLACK);
        loop {
            match self.answer()? {
                Kind::Closed => {
                    self.charge_report("closed")?;
                    let Closed { restore } = parse(Kind::Closed, self.payload())?;
                    checked_restore(&restore)?;
                    return Ok(Ended { restore, report });
                }
                Kind::Report if self.running.is_some() => report = Some(self.report()?),
                Kind::Data | Kind::PutDone | Kind::GetDone | Kind::Error => {
                    let weight = (self.payload().len() + HEADER_LEN) as u64;
                    budget = charge(budget, weight, "files after close", CLOSE_SLACK)?;
                }
                kind => match self.running_frame(kind, sink) {
                    // Nobody wants the output any more; the end of the job still counts.
                    Err(SessionError::Output(_)) => {}
                    taken => taken?,
                },
            }
        }
    }

    /// `started` and output: only while the job runs.
    fn running_frame(&mut self, kind: Kind, sink: &mut Sink<'_>) -> Result<(), SessionError> {
        let out_of_order = |expected| Err(WireError::OutOfOrder { got: kind, expected }.into());
        let Some(run) = &mut self.running else { return out_of_order("closed") };
        let stream = match (kind, run.split) {
            (Kind::Started, _) if !run.started => {
                run.started = true;
                return Ok(());
            }
            _ if !run.started => return out_of_order("started or report"),
            (Kind::Output, false) => Stream::Combined,
            (Kind::Stdout, true) => Stream::Stdout,
            (Kind::Stderr, true) => Stream::Stderr,
            (_, false) => return out_of_order("output or report"),
            (_, true) => return out_of_order("stdout, stderr or report"),
        };
        let weight = (self.connection.wire.payload().len() + HEADER_LEN) as u64;
        run.budget = charge(run.budget, weight, "output", run.limit)?;
        self.seen.output += self.connection.wire.payload().len() as u64;
        let began = Instant::now();
        sink(stream, self.connection.wire.payload()).map_err(SessionError::Output)?;
        self.connection.wire.forgive(began.elapsed());
        Ok(())
    }

    fn report(&mut self) -> Result<Report, SessionError> {
        let started = self.running.take().is_some_and(|run| run.started);
        self.charge_report("report")?;
        let report: Report = parse(Kind::Report, self.payload())?;
        check_report(&report, started)?;
        Ok(report)
    }

    fn charge_report(&self, what: &'static str) -> Result<(), SessionError> {
        charge(REPORT_MAX, self.payload().len() as u64, what, REPORT_MAX).map(drop)
    }

    /// What the host saw of the last run.
    pub(super) fn seen(&self) -> Seen {
        self.seen
    }

    /// Sends a frame of this job, if it may come now.
    pub(super) fn request(&mut self, kind: Kind, payload: &[u8]) -> Result<(), SessionError> {
        self.phase = self.phase.request(kind)?;
        self.connection.wire.send(kind, self.id, payload);
        Ok(())
    }

    /// The kind of the next frame, which is one of this job's and may come now.
    pub(super) fn answer(&mut self) -> Result<Kind, SessionError> {
        let header = self.connection.wire.next_frame()?;
        self.admit(header)
    }

    /// Sends what is queued, until the queue is short; returns an answer that came too early.
    pub(super) fn make_room(&mut self) -> Result<Option<Kind>, SessionError> {
        match self.connection.wire.make_room()? {
            Some(header) => self.admit(header).map(Some),
            None => Ok(None),
        }
    }

    fn admit(&mut self, header: Header) -> Result<Kind, SessionError> {
        match (header.kind, header.job) {
            (Kind::Error, 0) => Err(ended(self.payload())),
            (got, 0) => Err(WireError::OutOfOrder { got, expected: "a frame of the open job" }.into()),
            (_, job) if job != self.id => Err(WireError::BadJob(job, "is not open").into()),
            (kind, _) => {
                self.phase = self.phase.answer(kind)?;
                Ok(kind)
            }
        }
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.connection.wire.payload()
    }

    /// What the `error` frame that just came says.
    pub(super) fn refused(&self) -> SessionError {
        match parse::<ErrorMessage>(Kind::Error, self.payload()) {
            Ok(message) => SessionError::Refused(message),
            Err(error) => error,
        }
    }
}

/// What the guest says was copied is what was.
fn same(kind: Kind, said: &Transferred, done: &Transferred) -> Result<(), SessionError> {
    if (said.entries, said.bytes) == (done.entries, done.bytes) {
        return Ok(());
    }
    let why = format!(
        "says {} entries and {} bytes were copied, not {} and {}",
        said.entries, said.bytes, done.entries, done.bytes
    );
    Err(WireError::BadPayload(kind, why).into())
}

/// What is left of a budget.
pub(super) fn charge(left: u64, weight: u64, what: &'static str, limit: u64) -> Result<u64, SessionError> {
    left.checked_sub(weight).ok_or(SessionError::Budget { what, limit })
}

fn checked_restore(restore: &Restore) -> Result<(), SessionError> {
    match restore.state == RestoreState::Restored && !restore.leftovers.is_empty() {
        true => Err(SessionError::Report("says 'restored' and lists leftovers")),
        false => Ok(()),
    }
}

/// A report must be of our version and agree with itself, and with what was seen.
fn check_report(report: &Report, started: bool) -> Result<(), SessionError> {
    let wrong = |why| Err(SessionError::Report(why));
    if report.version != REPORT_VERSION {
        return wrong("of another version");
    }
    let nothing_ran = matches!(report.cause, Cause::SetupFailed | Cause::InternalError | Cause::Cancelled);
    if !started && !nothing_ran {
        return wrong("on a job that never started");
    }
    if report.exit_code.is_some() && report.signal.is_some() {
        return wrong("says both an exit code and a signal");
    }
    let exit_code_is = |code: &i32| (0..=255).contains(code);
    let signal_is = |signal: &i32| (1..=64).contains(signal);
    if report.cause == Cause::Exited && !report.exit_code.as_ref().is_some_and(exit_code_is) {
        return wrong("says 'exited' without an exit code from 0 to 255");
    }
    if report.cause == Cause::Signaled && !report.signal.as_ref().is_some_and(signal_is) {
        return wrong("says 'signaled' without a signal from 1 to 64");
    }
    if !report.exit_code.iter().all(exit_code_is) || !report.signal.iter().all(signal_is) {
        return wrong("says an exit code or signal that there is not");
    }
    let told_before = |(index, layer): (usize, &LayerReport)| {
        report.layers[..index].iter().any(|other| other.name == layer.name)
    };
    if report.layers.iter().enumerate().any(told_before) {
        return wrong("tells of a layer twice");
    }
    if matches!(report.cause, Cause::SetupFailed | Cause::InternalError) != report.fault.is_some() {
        return wrong("says a fault of the sandbox and another cause, or the cause without the fault");
    }
    if report.fault.is_some() && (report.exit_code.is_some() || report.signal.is_some()) {
        return wrong("says how the job ended, and a fault of the sandbox");
    }
    let adds_up = |stream: &StreamReport| stream.kept.checked_add(stream.elided) == Some(stream.produced);
    if ![report.output.combined, report.output.stdout, report.output.stderr].iter().flatten().all(adds_up) {
        return wrong("counts output that does not add up");
    }
    checked_restore(&report.restore)
}
