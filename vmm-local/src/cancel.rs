//! Ctrl-C and its kin as something that poll(2) can wait for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Whether the caller wants to stop. Once set it stays set, for every clone.
///
/// Nobody ever reads the pipe, so it stays readable in every poll loop of the program.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<Pipe>);

#[derive(Debug)]
struct Pipe {
    rx: OwnedFd,
    tx: OwnedFd,
}

impl Cancel {
    /// Not cancelled, and nobody but [`Cancel::cancel`] can change that.
    ///
    /// # Errors
    /// Those of pipe2(2).
    pub fn new() -> io::Result<Cancel> {
        let (rx, tx) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Cancel(Arc::new(Pipe { rx, tx })))
    }

    /// Set by SIGINT, SIGTERM or SIGHUP. The second such signal ends the program at once; every
    /// autodriver then sees end of file and restores its machine by itself.
    ///
    /// # Errors
    /// Those of pipe2(2), dup(2) and sigaction(2).
    pub fn on_signals() -> io::Result<Cancel> {
        let cancel = Cancel::new()?;
        let seen = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // The order matters: the first signal must not find its own mark.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&seen))?;
            signal_hook::flag::register(signal, Arc::clone(&seen))?;
            signal_hook::low_level::pipe::register(signal, cancel.0.tx.try_clone()?)?;
        }
        Ok(cancel)
    }

    /// Cancels.
    pub fn cancel(&self) {
        // A full pipe is as readable as one with a byte.
        let _ = nix::unistd::write(&self.0.tx, b"!");
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                result => return result.is_ok_and(|ready| ready > 0),
            }
        }
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.rx.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_cancelled_it_stays_so_for_every_clone() {
        let cancel = Cancel::new().unwrap();
        let clone = cancel.clone();
        assert!(!clone.is_cancelled());
        cancel.cancel();
        assert!(clone.is_cancelled() && clone.is_cancelled() && cancel.is_cancelled());
    }
}
