//! epoll(7) with tokens and deadlines: the one place where the driver waits.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::fault::{Fault, Step};

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the end.
    Read,
    /// Room to write.
    Write,
}

/// The descriptors that are waited for.
#[derive(Debug)]
pub struct Poller(Epoll);

fn fault(errno: Errno) -> Fault {
    Fault::new(Step::Supervise, "wait for events", errno)
}

impl Poller {
    /// Waits for nothing yet.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> Result<Poller, Fault> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Poller).map_err(fault)
    }

    /// Starts to watch a descriptor.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn add(&self, fd: BorrowedFd<'_>, interest: Interest, token: u64) -> Result<(), Fault> {
        let flags = match interest {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
        };
        self.0.add(fd, EpollEvent::new(flags, token)).map_err(fault)
    }

    /// Stops watching it. Must come before it is closed: children may still hold copies, and epoll
    /// watches what a descriptor refers to.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // Not watched any more is what was asked for.
        let _ = self.0.delete(fd);
    }

    /// Waits until something is ready or the deadline has passed; the tokens of what is ready.
    ///
    /// # Errors
    /// Those of epoll_wait(2).
    pub fn wait(&self, deadline: Option<Instant>, now: Instant) -> Result<Vec<u64>, Fault> {
        let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(now)) {
            None => EpollTimeout::NONE,
            // Rounded up, so that the deadline has passed when it is said to.
            Some(left) => {
                let millis = left.as_micros().div_ceil(1000).min(60_000);
                EpollTimeout::try_from(u32::try_from(millis).unwrap_or(60_000)).unwrap_or(EpollTimeout::ZERO)
            }
        };
        let mut events = [EpollEvent::empty(); 64];
        match self.0.wait(&mut events, timeout) {
            Ok(count) => Ok(events[..count].iter().map(EpollEvent::data).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(errno) => Err(fault(errno)),
        }
    }
}
