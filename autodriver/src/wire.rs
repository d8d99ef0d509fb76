//! The driver's end of the wire: stdin and stdout as frames, neither of which ever blocks.
//!
//! At start both are moved to high descriptors and 0 and 1 become `/dev/null`, so that nothing can
//! write into a frame by accident.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use autodriver_protocol::frame::{Header, HEADER_LEN};
use autodriver_protocol::{
    Decoder, Direction, ErrorCode, ErrorMessage, Kind, Scanner, WireError, GUEST_SIGNATURE, PAYLOAD_MAX,
};
use nix::errno::Errno;
use nix::fcntl::{fcntl, open, FcntlArg, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stdin, dup2_stdout};
use serde::Serialize;

use crate::fault::{Fault, Step};
use crate::poller::{Interest, Poller};
use crate::sys::fd::uninterrupted;

/// With more than this to send, no more requests are read.
const SEND_MAX: usize = 4 << 20;

/// The wire.
#[derive(Debug)]
pub struct Wire {
    input: OwnedFd,
    output: OwnedFd,
    scanner: Option<Scanner>,
    decoder: Decoder,
    pending: Vec<u8>,
    written: usize,
    reading: bool,
    writing: bool,
}

/// One request.
#[derive(Debug)]
pub struct Request {
    /// What it is.
    pub kind: Kind,
    /// For which job.
    pub job: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Why the conversation is over.
#[derive(Debug)]
pub enum End {
    /// The peer closed its side between frames.
    Closed,
    /// It broke the protocol, or died inside a frame.
    Broken(WireError),
    /// It does not take what we send.
    Deaf,
    /// It may be there, but nothing can be read from it or sent to it.
    Failed(Fault),
}

/// Tokens for the poller.
pub const INPUT: u64 = 1;
/// As [`INPUT`].
pub const OUTPUT: u64 = 2;

/// A pipe is opened anew, so that O_NONBLOCK does not reach whoever shares it with us; anything
/// else gets the flag itself.
fn nonblocking(number: i32, flags: OFlag) -> Result<OwnedFd, Errno> {
    let fd = crate::sys::fd::duplicate(number)?;
    let stat = nix::sys::stat::fstat(&fd)?;
    let is_pipe = stat.st_mode & libc::S_IFMT == libc::S_IFIFO;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if is_pipe {
        if let Ok(fresh) = open(path.as_str(), flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()) {
            return Ok(fresh);
        }
    }
    let current = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(current | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

fn failed(act: &str, errno: Errno) -> End {
    End::Failed(Fault::new(Step::Request, act, errno))
}

impl Wire {
    /// Takes over stdin and stdout, and sends the signature.
    ///
    /// # Errors
    /// What could not be taken over.
    pub fn open() -> Result<Wire, Fault> {
        let fault = |errno| Fault::new(Step::Request, "take over stdin and stdout", errno);
        let input = nonblocking(0, OFlag::O_RDONLY).map_err(fault)?;
        let output = nonblocking(1, OFlag::O_WRONLY).map_err(fault)?;
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(fault)?;
        dup2_stdin(&null).map_err(fault)?;
        dup2_stdout(&null).map_err(fault)?;
        Ok(Wire {
            input,
            output,
            scanner: Some(Scanner::for_host_signature()),
            decoder: Decoder::new(Direction::FromHost),
            pending: GUEST_SIGNATURE.to_vec(),
            written: 0,
            reading: false,
            writing: false,
        })
    }

    /// Bytes that the peer has not taken yet.
    pub fn backlog(&self) -> usize {
        self.pending.len() - self.written
    }

    /// Queues one frame.
    pub fn send(&mut self, kind: Kind, job: u32, payload: &[u8]) {
        if self.written == self.pending.len() {
            self.pending.clear();
            self.written = 0;
        } else if self.written > SEND_MAX {
            self.pending.drain(..self.written);
            self.written = 0;
        }
        self.pending.reserve(HEADER_LEN + payload.len());
        self.pending.extend_from_slice(&Header { kind, job, length: payload.len() }.encode());
        self.pending.extend_from_slice(payload);
    }

    /// Queues bytes as as many frames as it takes.
    pub fn send_data(&mut self, kind: Kind, job: u32, bytes: &[u8]) {
        bytes.chunks(PAYLOAD_MAX).for_each(|chunk| self.send(kind, job, chunk));
    }

    /// Queues a frame with a JSON payload.
    pub fn send_json(&mut self, kind: Kind, job: u32, value: &impl Serialize) {
        // None of our types can fail to serialize: no maps with odd keys, no foreign code.
        let payload = serde_json::to_vec(value).unwrap_or_default();
        self.send(kind, job, &payload);
    }

    /// Queues an error.
    pub fn send_error(&mut self, job: u32, code: ErrorCode, message: impl Into<String>) {
        self.send_json(Kind::Error, job, &ErrorMessage { code, message: message.into() });
    }

    /// Watches what can go on: reading unless `paused` or too much is to be sent, writing if
    /// anything is.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch(&mut self, poller: &Poller, paused: bool) -> Result<(), Fault> {
        let read = !paused && self.backlog() <= SEND_MAX;
        let write = self.backlog() > 0;
        let change = |watched: &mut bool, want: bool, fd: &OwnedFd, interest, token| {
            match (*watched, want) {
                (false, true) => poller.add(fd.as_fd(), interest, token)?,
                (true, false) => poller.remove(fd.as_fd()),
                _ => {}
            }
            *watched = want;
            Ok(())
        };
        change(&mut self.reading, read, &self.input, Interest::Read, INPUT)?;
        change(&mut self.writing, write, &self.output, Interest::Write, OUTPUT)
    }

    /// Sends what the peer takes now.
    ///
    /// # Errors
    /// [`End::Deaf`] if it takes nothing any more, [`End::Failed`] if that is not known.
    pub fn flush(&mut self) -> Result<(), End> {
        while self.backlog() > 0 {
            match uninterrupted(|| nix::unistd::write(&self.output, &self.pending[self.written..])) {
                Ok(count) => self.written += count,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(End::Deaf),
                Err(errno) => return Err(failed("write to stdout", errno)),
            }
        }
        Ok(())
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// The end of the conversation.
    pub fn receive(&mut self) -> Result<(), End> {
        let count = match uninterrupted(|| nix::unistd::read(&self.input, self.decoder.space())) {
            Ok(count) => count,
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::ECONNRESET) => return Err(End::Closed),
            Err(errno) => return Err(failed("read from stdin", errno)),
        };
        if count == 0 {
            return Err(match (&self.scanner, self.decoder.at_end()) {
                (Some(scanner), _) if scanner.noise().is_empty() => End::Closed,
                (Some(_), _) => End::Broken(WireError::NoSignature),
                (None, Ok(())) => End::Closed,
                (None, Err(error)) => End::Broken(error),
            });
        }
        match &mut self.scanner {
            None => self.decoder.received(count),
            Some(scanner) => {
                let bytes = self.decoder.space()[..count].to_vec();
                if let Some(rest) = scanner.push(&bytes).map_err(End::Broken)? {
                    self.scanner = None;
                    self.decoder.push(&rest);
                }
            }
        }
        Ok(())
    }

    /// The next whole request that was received.
    ///
    /// # Errors
    /// The end of the conversation.
    pub fn next_request(&mut self) -> Result<Option<Request>, End> {
        if self.scanner.is_some() {
            return Ok(None);
        }
        let frame = self.decoder.next_frame().map_err(End::Broken)?;
        Ok(frame.map(|(header, payload)| Request {
            kind: header.kind,
            job: header.job,
            payload: payload.to_vec(),
        }))
    }
}
