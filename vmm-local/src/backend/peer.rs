//! The other end of a connection: a child process with piped streams, owned until it is gone.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::signal::{killpg, Signal};
use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

/// How long a peer has to go by itself once its stdin is closed: it restores its machine then.
const PARTING: Duration = Duration::from_secs(10);

/// How a peer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself. `None`: it is no process of ours, or was already waited for.
    Exited(Option<ExitStatus>),
    /// It did not go, and was killed.
    Killed,
}

/// The three streams of an autodriver, and the local process that carries them.
///
/// Dropping it closes the streams, which makes an autodriver cancel and restore everything,
/// waits, and at last kills the local process and all that it started: that works too when the
/// far side hangs.
#[derive(Debug)]
pub struct Peer {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    process: Option<Child>,
}

impl Peer {
    /// Starts `command` with its streams piped, in a process group of its own: a Ctrl-C at the
    /// terminal is for us, and we tell the guest in order.
    ///
    /// # Errors
    /// Those of fork, exec and fcntl.
    pub fn spawn(command: &mut Command) -> io::Result<Peer> {
        let peer = Peer::start(command)?;
        peer.set_nonblocking()?;
        Ok(peer)
    }

    /// As [`Peer::spawn`], with all of `file` ahead of what is written to stdin.
    ///
    /// # Errors
    /// Those of fork, exec, fcntl and pipe.
    pub(super) fn spawn_behind(command: &mut Command, mut file: File) -> io::Result<Peer> {
        let (rx, tx) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let mut peer = Peer::start(command)?;
        let stdin = peer.stdin.replace(tx).map(File::from);
        peer.set_nonblocking()?;
        // It ends when either end of the wire does: no earlier, and nobody waits for it.
        std::thread::Builder::new().spawn(move || {
            let mut stdin = stdin.ok_or(io::ErrorKind::BrokenPipe)?;
            io::copy(&mut file, &mut stdin)?;
            io::copy(&mut File::from(rx), &mut stdin)
        })?;
        Ok(peer)
    }

    /// With streams that block.
    fn start(command: &mut Command) -> io::Result<Peer> {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.process_group(0).spawn()?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        Ok(Peer { stdin, stdout, stderr, process: Some(child) })
    }

    /// A peer that is no child process, such as a socket or the pipes of a test.
    ///
    /// # Errors
    /// Those of fcntl.
    pub fn from_streams(stdin: OwnedFd, stdout: OwnedFd) -> io::Result<Peer> {
        let peer = Peer { stdin: Some(stdin), stdout: Some(stdout), stderr: None, process: None };
        peer.set_nonblocking()?;
        Ok(peer)
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        for fd in [&self.stdin, &self.stdout, &self.stderr].into_iter().flatten() {
            let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(())
    }

    /// Closes the wire, waits for the peer to go, and kills it if it does not.
    pub fn end(&mut self) -> Ending {
        self.stdin = None;
        self.stdout = None;
        let Some(mut child) = self.process.take() else { return Ending::Exited(None) };
        let Ok(number) = i32::try_from(child.id()) else { return Ending::Exited(None) };
        let went = leaves(Pid::from_raw(number), PARTING);
        // Also what it started and left behind. Until it is waited for, the number is its own.
        let _ = killpg(Pid::from_raw(number), Signal::SIGKILL);
        match (child.wait(), went) {
            (Ok(status), true) => Ending::Exited(Some(status)),
            (Err(_), true) => Ending::Exited(None),
            (_, false) => Ending::Killed,
        }
    }
}

/// Waits for a child to end by itself, without taking its status; false if it does not within `patience`.
pub(super) fn leaves(process: Pid, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_micros(200);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) = waitid(Id::Pid(process), flags) {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    true
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_peer_that_sees_end_of_file_goes_by_itself() {
        let mut peer = Peer::spawn(&mut Command::new("cat")).unwrap();
        assert!(matches!(peer.end(), Ending::Exited(Some(status)) if status.success()));
        assert_eq!(peer.end(), Ending::Exited(None), "it is waited for once");
    }

    #[test]
    fn a_file_goes_ahead_of_the_wire_and_the_end_of_it_comes_through() {
        let mut file = tempfile::tempfile().unwrap();
        let ahead = "x".repeat(300_000);
        file.write_all(ahead.as_bytes()).and_then(|()| file.rewind()).unwrap();
        let mut peer = Peer::spawn_behind(Command::new("wc").arg("-c"), file).unwrap();
        let mut said = File::from(peer.stdout.take().unwrap());
        File::from(peer.stdin.take().unwrap()).write_all(b"hello").unwrap();
        let (mut text, mut bytes) = (Vec::<u8>::new(), [0; 64]);
        loop {
            let ready =
                poll(&mut [PollFd::new(said.as_fd(), PollFlags::POLLIN)], PollTimeout::from(10_000_u16));
            assert_eq!(ready, Ok(1), "something comes, or the end");
            match said.read(&mut bytes).unwrap() {
                0 => break,
                count => text.extend(&bytes[..count]),
            }
        }
        assert_eq!(text, b"300005\n");
        assert!(matches!(peer.end(), Ending::Exited(Some(status)) if status.success()));
    }

    #[test]
    fn what_a_peer_leaves_behind_goes_with_it() {
        let mut peer = Peer::spawn(Command::new("sh").args(["-c", "sleep 1000 & exit 3"])).unwrap();
        let stdout = peer.stdout.take().unwrap();
        assert!(matches!(peer.end(), Ending::Exited(Some(status)) if status.code() == Some(3)));
        // It ends with the last process that holds the other end.
        let mut ends = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut ends, PollTimeout::from(10_000_u16)), Ok(1), "its child is still there");
    }
}
