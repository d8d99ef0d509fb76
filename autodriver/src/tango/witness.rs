//! Who the caller waits for: a process that only waits for the driver, its child. If that one is killed half-way,
//! by an administrator or for want of memory, the job must not stay without a word: then this process clears up
//! as the next driver would, and says what happened, with the output so far. If this one is killed, the driver
//! ends the job.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::slice;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};
use nix::unistd::getpid;

use super::arguments::Arguments;
use super::failure::{print, say, Failure, OS_ERROR};
use super::transcript::Transcript;
use super::voice::Voice;
use crate::fault::Fault;
use crate::first;
use crate::poller::{Interest, Poller};
use crate::run::block_signals;
use crate::sandbox::handover::{receive, send};
use crate::sys::process::{clone3, pidfd_send_signal, wait_for, Child, Ended, Forked};

/// The driver's side. A first process has none: what kills it ends all of its container.
#[derive(Debug)]
pub(super) struct Witness {
    socket: Option<OwnedFd>,
    watched: bool,
}

impl Witness {
    /// Gives it the file in which the output grows.
    pub(super) fn show(&self, log: &OwnedFd) {
        self.send(slice::from_ref(log));
    }

    /// Leaves nothing for it to say: from now on the driver itself tells how the job ended.
    pub(super) fn leave_out(&self) {
        self.send(&[]);
    }

    /// Without either it has less to tell, and nothing is wrong with the job.
    fn send(&self, log: &[OwnedFd]) {
        let Some(socket) = &self.socket else { return };
        let _ = send(socket.as_fd(), [log], []);
    }

    /// Has the poller look for its death, and if it has died, cancels the job as a signal would.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(super) fn watch(&mut self, poller: &Poller, token: u64) -> Result<(), Fault> {
        let Some(socket) = &self.socket else { return Ok(()) };
        if !self.watched {
            poller.add(socket.as_fd(), Interest::Read, token)?;
            self.watched = true;
        }
        // It never says anything.
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        if matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..)) {
            poller.remove(socket.as_fd());
            self.socket = None;
            // Not raise(3): musl's takes the thread for the one that it was before clone3(2).
            let _ = kill(getpid(), Signal::SIGTERM);
        }
        Ok(())
    }
}

/// Runs the driver, which clears up by `clear` if it cannot; the exit status.
pub(super) fn attend(
    arguments: &Arguments,
    voice: &Voice,
    drive: impl FnOnce(Witness) -> u8,
    clear: impl FnOnce() -> Vec<String>,
) -> Result<u8, Failure> {
    if first::is_first() {
        return Ok(drive(Witness { socket: None, watched: false }));
    }
    let failed = |errno| Failure::os("Unable to fork", errno);
    let signals = block_signals().map_err(|fault| Failure::of(&fault))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
    let (ours, its) = pair.map_err(failed)?;
    // SAFETY: there is one thread; the child goes on as the driver, and the parent as nothing but its witness.
    #[allow(unsafe_code)]
    match unsafe { clone3(0, None) }.map_err(failed)? {
        Forked::Child => {
            drop((signals, ours));
            Ok(drive(Witness { socket: Some(its), watched: false }))
        }
        Forked::Parent(driver) => {
            drop(its);
            let (ended, log, tells) = wait(&driver, &signals, &ours);
            let signal = match ended {
                Ok(Ended::Exited(status)) => return Ok(u8::try_from(status).unwrap_or(OS_ERROR)),
                Ok(Ended::Signaled(signal)) => signal,
                Err(errno) => return Err(Failure::os("Error reaping the driver", errno)),
            };
            let left = clear();
            if !tells {
                say(&voice
                    .failure(&Failure::new(OS_ERROR, format!("The driver was killed by signal {signal}"))));
            }
            left.iter().for_each(|line| super::failure::mutter(line));
            if let Some(log) = log.filter(|_| !tells && !arguments.stream) {
                print(&so_far(log, arguments, voice));
            }
            Ok(OS_ERROR)
        }
    }
}

/// Waits for the driver's end, and hands signals on to it. Returns how it ended, and what it has sent.
fn wait(
    driver: &Child,
    signals: &SignalFd,
    socket: &OwnedFd,
) -> (Result<Ended, Errno>, Option<OwnedFd>, bool) {
    let (mut log, mut tells, mut open) = (None, false, true);
    loop {
        let mut fds = [
            PollFd::new(driver.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        ];
        let count = if open { 3 } else { 2 };
        let _ = poll(&mut fds[..count], PollTimeout::NONE);
        let ended = fds[0].any().unwrap_or(false);
        while let Ok(Some(came)) = signals.read_signal() {
            let signal = i32::try_from(came.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            signal.map(|signal| pidfd_send_signal(driver.pidfd.as_fd(), signal));
        }
        while open {
            match receive(socket.as_fd()) {
                Ok(Some(([mut sent], []))) => match sent.pop() {
                    Some(file) => log = Some(file),
                    None => tells = true,
                },
                Ok(None) => open = false,
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        if ended {
            return (wait_for(driver.pid), log, tells);
        }
    }
}

/// The output, as the driver would have returned it.
fn so_far(log: OwnedFd, arguments: &Arguments, voice: &Voice) -> Vec<u8> {
    let mut log = File::from(log);
    let mut transcript = Transcript::new(arguments.osize, voice.mark());
    let mut bytes = vec![0; 1 << 16];
    let _ = log.rewind();
    while let Ok(count @ 1..) = log.read(&mut bytes) {
        transcript.push(&bytes[..count]);
    }
    transcript.finish()
}
