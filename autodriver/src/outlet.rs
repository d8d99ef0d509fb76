//! Our own stdout and stderr, written without ever blocking on a slow reader, and without setting
//! O_NONBLOCK: the open file is shared with whoever started us.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::fault::{Fault, Step};
use crate::poller::{Interest, Poller};

/// A pipe that is ready takes this much at once: PIPE_BUF, pipe(7).
const CHUNK: usize = 4096;

/// One of our own streams.
#[derive(Debug)]
pub struct Outlet {
    fd: OwnedFd,
    pending: Vec<u8>,
    written: usize,
    watched: bool,
    /// It takes no more; what comes is dropped.
    closed: bool,
    /// Why, unless the reader went away.
    failed: Option<Errno>,
}

impl Outlet {
    /// Standard output.
    ///
    /// # Errors
    /// EBADF and EMFILE.
    pub fn stdout() -> Result<Outlet, Fault> {
        Outlet::of(1)
    }

    /// Standard error.
    ///
    /// # Errors
    /// EBADF and EMFILE.
    pub fn stderr() -> Result<Outlet, Fault> {
        Outlet::of(2)
    }

    fn of(number: i32) -> Result<Outlet, Fault> {
        let fd = crate::sys::fd::duplicate(number)
            .map_err(|errno| Fault::new(Step::Supervise, format!("duplicate descriptor {number}"), errno))?;
        Ok(Outlet { fd, pending: Vec::new(), written: 0, watched: false, closed: false, failed: None })
    }

    /// Adds bytes. What is pending is bounded by what is kept of the job's output.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.written == self.pending.len() {
            self.pending.clear();
            self.written = 0;
        }
        if !self.closed {
            self.pending.extend_from_slice(bytes);
        }
    }

    fn is_empty(&self) -> bool {
        self.written == self.pending.len()
    }

    fn is_ready(&self, timeout: PollTimeout) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        matches!(poll(&mut fds, timeout), Ok(1..))
    }

    fn write_chunk(&mut self) {
        let end = self.pending.len().min(self.written + CHUNK);
        match nix::unistd::write(&self.fd, &self.pending[self.written..end]) {
            Ok(count) => self.written += count,
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => {
                self.closed = true;
                self.failed = Some(errno).filter(|errno| *errno != Errno::EPIPE);
                self.written = self.pending.len();
            }
        }
    }

    /// Writes what the reader takes now.
    pub fn write_some(&mut self) {
        while !self.is_empty() && self.is_ready(PollTimeout::ZERO) {
            self.write_chunk();
        }
    }

    /// Watches for room while something is pending. A regular file always has room.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn watch(&mut self, poller: &Poller, token: u64) -> Result<(), Fault> {
        let want = !self.is_empty();
        if want && !self.watched {
            poller.add(self.fd.as_fd(), Interest::Write, token)?;
        } else if !want && self.watched {
            poller.remove(self.fd.as_fd());
        }
        self.watched = want;
        Ok(())
    }

    /// Writes all that is left, however long the reader takes; a signal ends the wait.
    ///
    /// # Errors
    /// Why something could not be written, now or before; that nobody reads it is none.
    pub fn flush(mut self, signals: BorrowedFd<'_>) -> Result<(), Fault> {
        while !self.is_empty() {
            let room = PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT);
            let mut fds = [room, PollFd::new(signals, PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::NONE);
            let ready = fds.map(|fd| fd.any().unwrap_or(false));
            match ready {
                [_, true] => break,
                [true, _] => self.write_chunk(),
                _ => {}
            }
        }
        match self.failed {
            Some(errno) => Err(Fault::new(Step::Supervise, "write the job's output", errno)),
            None => Ok(()),
        }
    }
}
