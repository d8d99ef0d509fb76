//! The poll loop: whole frames in, queued bytes out, a deadline, and a caller who may cancel.
//!
//! There is one thread and no blocking call but poll(2), and whatever is waited for, both
//! directions move: two sides with much to say to each other cannot wait for each other.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use autodriver_protocol::frame::Header;
use autodriver_protocol::{Decoder, Direction, Kind, Scanner, WireError, HOST_SIGNATURE};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::unistd::{read, write};

use super::SessionError;
use crate::backend::{Ending, Peer};
use crate::cancel::Cancel;
use crate::text;

/// Queued bytes above which a sender waits.
const QUEUE_MAX: usize = 1 << 20;
/// How much of the guest's stderr, and of its noise, is kept for messages: the end of it.
const SAID_MAX: usize = 4 << 10;

/// One connection's bytes.
#[derive(Debug)]
pub(super) struct Wire {
    peer: Peer,
    cancel: Cancel,
    heeds_cancel: bool,
    /// Until the guest's signature has come.
    scanner: Option<Scanner>,
    decoder: Decoder,
    payload: Vec<u8>,
    queue: Vec<u8>,
    sent: usize,
    said: Vec<u8>,
    expected: &'static str,
    limit: Duration,
    deadline: Instant,
}

impl Wire {
    /// A wire on which nothing was said but our signature.
    pub(super) fn new(peer: Peer, cancel: Cancel) -> Wire {
        Wire {
            peer,
            cancel,
            heeds_cancel: true,
            scanner: Some(Scanner::for_guest_signature()),
            decoder: Decoder::new(Direction::FromGuest),
            payload: Vec::new(),
            queue: HOST_SIGNATURE.to_vec(),
            sent: 0,
            said: Vec::new(),
            expected: "answer",
            limit: Duration::ZERO,
            deadline: Instant::now(),
        }
    }

    /// Begins a step: all that is waited for until the next one is due within `limit` from now.
    pub(super) fn begin(&mut self, expected: &'static str, limit: Duration) {
        self.expected = expected;
        self.limit = limit;
        self.deadline = Instant::now() + limit;
    }

    /// Time spent at our own end (a slow terminal) is not the guest's.
    pub(super) fn forgive(&mut self, time: Duration) {
        self.deadline += time;
    }

    /// From now on a cancelled caller no longer interrupts: what is left is tidying up.
    pub(super) fn ignore_cancel(&mut self) {
        self.heeds_cancel = false;
    }

    /// Whether a cancelled caller interrupts (again).
    pub(super) fn heed_cancel(&mut self) {
        self.heeds_cancel = true;
    }

    /// Queues a frame.
    pub(super) fn send(&mut self, kind: Kind, job: u32, payload: &[u8]) {
        if self.peer.stdin.is_none() {
            return; // Its last words, if any, are still to be read.
        }
        self.queue.extend_from_slice(&Header { kind, job, length: payload.len() }.encode());
        self.queue.extend_from_slice(payload);
    }

    /// Waits for a frame; its payload is in [`Wire::payload`].
    pub(super) fn next_frame(&mut self) -> Result<Header, SessionError> {
        loop {
            if let Some(header) = self.ready_frame()? {
                return Ok(header);
            }
            self.turn()?;
        }
    }

    /// Waits until the queue is short. A frame that comes first is returned.
    pub(super) fn make_room(&mut self) -> Result<Option<Header>, SessionError> {
        loop {
            let frame = self.ready_frame()?;
            if frame.is_some() || self.queue.len() - self.sent <= QUEUE_MAX {
                return Ok(frame);
            }
            self.turn()?;
        }
    }

    /// The payload of the last frame.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// A frame that is there in whole. Checks the deadline, so that no flood outlives it.
    fn ready_frame(&mut self) -> Result<Option<Header>, SessionError> {
        self.time_left()?;
        if self.scanner.is_some() {
            return Ok(None);
        }
        let Some((header, payload)) = self.decoder.next_frame()? else { return Ok(None) };
        self.payload.clear();
        self.payload.extend_from_slice(payload);
        Ok(Some(header))
    }

    fn time_left(&self) -> Result<Duration, SessionError> {
        let left = self.deadline.checked_duration_since(Instant::now());
        left.ok_or(SessionError::Deadline { expected: self.expected, after: self.limit })
    }

    /// Waits for any of the streams, and moves what can be moved.
    fn turn(&mut self) -> Result<(), SessionError> {
        let left = self.time_left()?.as_millis().saturating_add(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let [stdin, stdout, stderr, cancel] = self.poll(timeout)?;
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        if self.heeds_cancel && cancel.contains(PollFlags::POLLIN) {
            return Err(SessionError::Cancelled);
        }
        if stderr.intersects(PollFlags::POLLIN | broken) {
            self.read_stderr();
        }
        if stdin.contains(PollFlags::POLLOUT) && !stdin.intersects(broken) {
            self.write_queue()?;
        } else if stdin.intersects(broken) {
            self.close_stdin();
        }
        if stdout.intersects(PollFlags::POLLIN | broken) {
            self.read_stdout()?;
        }
        Ok(())
    }

    /// What is ready: stdin, stdout, stderr, cancel.
    fn poll(&self, timeout: PollTimeout) -> Result<[PollFlags; 4], SessionError> {
        // A stream that is gone is stood in for by one that never has an event.
        let none = (self.cancel.as_fd(), PollFlags::empty());
        let wants_out = if self.sent < self.queue.len() { PollFlags::POLLOUT } else { PollFlags::empty() };
        let wants_cancel = if self.heeds_cancel { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = [
            self.peer.stdin.as_ref().map_or(none, |fd| (fd.as_fd(), wants_out)),
            self.peer.stdout.as_ref().map_or(none, |fd| (fd.as_fd(), PollFlags::POLLIN)),
            self.peer.stderr.as_ref().map_or(none, |fd| (fd.as_fd(), PollFlags::POLLIN)),
            (self.cancel.as_fd(), wants_cancel),
        ]
        .map(|(fd, events)| PollFd::new(fd, events));
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()))),
            Err(Errno::EINTR) => Ok([PollFlags::empty(); 4]),
            Err(errno) => Err(SessionError::Stream(errno.into())),
        }
    }

    fn write_queue(&mut self) -> Result<(), SessionError> {
        let Some(stdin) = &self.peer.stdin else { return Ok(()) };
        match write(stdin, &self.queue[self.sent..]) {
            Ok(count) => self.sent += count,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::EPIPE) => self.close_stdin(),
            Err(errno) => return Err(SessionError::Stream(errno.into())),
        }
        if self.sent == self.queue.len() {
            self.queue.clear();
            self.sent = 0;
        } else if self.sent > QUEUE_MAX {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// The guest no longer listens. It may have said why: the error comes when its stdout ends.
    fn close_stdin(&mut self) {
        self.peer.stdin = None;
        self.queue.clear();
        self.sent = 0;
    }

    fn read_stdout(&mut self) -> Result<(), SessionError> {
        let Some(stdout) = &self.peer.stdout else { return Err(self.end_of_file()) };
        let mut early = [0; 4096];
        let space = if self.scanner.is_some() { &mut early[..] } else { self.decoder.space() };
        let count = match read(stdout, space) {
            Ok(0) => return Err(self.end_of_file()),
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(errno) => return Err(SessionError::Stream(errno.into())),
        };
        match &mut self.scanner {
            None => self.decoder.received(count),
            Some(scanner) => {
                if let Some(rest) = scanner.push(&early[..count])? {
                    self.decoder.push(&rest);
                    self.scanner = None;
                }
            }
        }
        Ok(())
    }

    fn end_of_file(&self) -> SessionError {
        let expected = if self.scanner.is_some() { "the signature" } else { self.expected };
        let inside = if self.scanner.is_some() { Ok(()) } else { self.decoder.at_end() };
        inside.err().unwrap_or(WireError::Ended(expected)).into()
    }

    fn read_stderr(&mut self) {
        let Some(stderr) = &self.peer.stderr else { return };
        let mut bytes = [0; 4096];
        match read(stderr, &mut bytes) {
            Ok(count) if count > 0 => {
                self.said.extend_from_slice(&bytes[..count]);
                self.said.drain(..self.said.len().saturating_sub(SAID_MAX));
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => self.peer.stderr = None,
        }
    }

    /// Ends the connection; says what is known about why it had to.
    pub(super) fn explain(&mut self, error: &SessionError) -> String {
        self.drain_stderr();
        let ending = self.peer.end();
        let ended_itself = matches!(error, SessionError::Wire(WireError::Ended(_)));
        if ended_itself {
            // What it says of a wire that we closed is no explanation.
            self.drain_stderr();
        }
        let mut message = error.to_string();
        let noise = self.scanner.as_ref().map_or(&[][..], Scanner::noise);
        let noise = &noise[noise.len().saturating_sub(SAID_MAX)..];
        for said in [&self.said[..], noise] {
            let lossy = String::from_utf8_lossy(said);
            let lines: Vec<&str> = lossy.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            // What the kernel of a virtual machine says after this is where it was, not why.
            let panic = lines.iter().position(|line| line.contains("Kernel panic"));
            let end = panic.map_or(lines.len(), |at| at + 1);
            let last = lines[end.saturating_sub(3)..end].join(" / ");
            if !last.is_empty() {
                message += &format!("; it said: {}", text::shortened(&text::printable(&last), 500));
            }
        }
        match ending {
            Ending::Exited(Some(status)) if ended_itself => message += &format!(" ({status})"),
            Ending::Exited(_) => {}
            Ending::Killed => message += "; it had to be killed: run `autodriver restore` on the machine",
        }
        if self.scanner.is_some() && ended_itself {
            message += "; does `autodriver serve` start on the machine?";
        }
        message
    }

    /// Reads what is there of stderr, up to what a pipe can hold.
    fn drain_stderr(&mut self) {
        let readable =
            |wire: &Wire| wire.poll(PollTimeout::ZERO).is_ok_and(|[_, _, stderr, _]| !stderr.is_empty());
        for _ in 0..32 {
            if self.peer.stderr.is_none() || !readable(self) {
                break;
            }
            self.read_stderr();
        }
    }
}
