//! Copying into and out of the job directory, by a process of its own that is no more than the
//! job is: its uid, no capability, and the job directory as its root. What a hostile archive or a
//! hostile tree can do there, the job could do by itself.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use autodriver_protocol::archive::{self, open_directory, Accept, Limits, Modes, Selection};
use autodriver_protocol::message::Transferred;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{waitid, Id, WaitPidFlag};
use nix::unistd::{chroot, fchdir, pipe2};
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Step};
use crate::sandbox::{give_up, Identity};
use crate::sys::fd::close_all_but;
use crate::sys::process::{clone3, exit_now, pidfd_send_signal, set_nice, Child, Forked};

/// Most entries of one transfer.
pub const ENTRIES_MAX: u64 = 1_000_000;
/// What a transfer may hold; the storage and the disk bound the bytes.
pub const LIMITS: Limits = Limits { entries: ENTRIES_MAX, bytes: u64::MAX };
/// What is accepted as inputs of a job.
pub const INPUTS: Accept = Accept { limits: LIMITS, modes: Modes::Keep, links: true, only: None };
/// What is accepted as results of a job.
pub const RESULTS: Accept = Accept { limits: LIMITS, modes: Modes::Fixed, links: false, only: None };

/// What a worker does.
#[derive(Debug)]
pub enum Task {
    /// Reads a tar stream of inputs into the job directory.
    Unpack,
    /// Writes what is selected as a tar stream.
    Pack(Selection),
}

/// How it ended.
#[derive(Debug, Serialize, Deserialize)]
enum Ending {
    Done(Transferred),
    Failed(String),
}

/// A worker. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    /// The tar stream: written to, or read from. `None` once it is ended.
    pub stream: Option<OwnedFd>,
    /// Becomes readable, and ends, when the worker does.
    pub ending: OwnedFd,
    told: Vec<u8>,
}

/// Starts a worker on the job directory `root`, with the job's uid.
///
/// # Errors
/// Why it could not be started; its own errors come by [`Worker::finish`].
pub fn start(task: &Task, root: BorrowedFd<'_>, identity: Identity) -> Result<Worker, Fault> {
    let fault = |errno| Fault::new(Step::Transfer, "start copying", errno);
    let (stream_rx, stream_tx) = pipe2(OFlag::O_CLOEXEC).map_err(fault)?;
    // A larger pipe spares context switches; the default does as well.
    let _ = fcntl(&stream_rx, FcntlArg::F_SETPIPE_SZ(1 << 20));
    let (ending_rx, ending_tx) = pipe2(OFlag::O_CLOEXEC).map_err(fault)?;
    let (own, theirs) = match task {
        Task::Unpack => (stream_tx, stream_rx),
        Task::Pack(_) => (stream_rx, stream_tx),
    };
    // SAFETY: the driver has one thread; the child runs `work`, which never returns.
    #[allow(unsafe_code)]
    let forked = unsafe { clone3(0, None) };
    match forked.map_err(fault)? {
        Forked::Child => work(task, root, identity, theirs, ending_tx),
        Forked::Parent(child) => Ok(Worker { child, stream: Some(own), ending: ending_rx, told: Vec::new() }),
    }
}

fn work(task: &Task, root: BorrowedFd<'_>, identity: Identity, stream: OwnedFd, ending: OwnedFd) -> ! {
    let ended = match confine(root, identity, &stream, &ending) {
        Ok(root) => match run(task, &root, stream) {
            Ok(done) => Ending::Done(done),
            Err(error) => Ending::Failed(error.to_string()),
        },
        Err(errno) => Ending::Failed(format!("cannot confine the copying process: {errno}")),
    };
    let text = serde_json::to_vec(&ended).unwrap_or_default();
    let _ = File::from(ending).write_all(&text);
    exit_now(0)
}

/// The root that is left to it. Without privileges there is no chroot(2); the copying itself never
/// leaves the directory it was given, and the worker may do no more than its caller.
fn confine(
    root: BorrowedFd<'_>,
    identity: Identity,
    stream: &OwnedFd,
    ending: &OwnedFd,
) -> Result<OwnedFd, Errno> {
    // As for a job.
    let _ = set_nice(0);
    fchdir(root)?;
    if identity != Identity::Callers {
        chroot(".")?;
    }
    close_all_but(&mut [stream.as_raw_fd(), ending.as_raw_fd()])?;
    give_up(identity)?;
    prctl::set_no_new_privs()?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    open_directory(std::path::Path::new("."))
}

fn run(task: &Task, root: &OwnedFd, stream: OwnedFd) -> Result<Transferred, archive::ArchiveError> {
    match task {
        Task::Unpack => archive::unpack(root.as_fd(), File::from(stream), INPUTS),
        Task::Pack(selection) => {
            archive::pack_tree(root.as_fd(), std::path::Path::new(""), selection, LIMITS, File::from(stream))
        }
    }
}

impl Worker {
    /// Makes the stream and the ending non-blocking, for a poll loop.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn set_nonblocking(&self) -> Result<(), Fault> {
        for fd in [self.stream.as_ref(), Some(&self.ending)].into_iter().flatten() {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(|errno| Fault::new(Step::Transfer, "set up a pipe", errno))?;
        }
        Ok(())
    }

    /// Reads what it tells, without blocking if so set; whether it has ended.
    pub fn listen(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match nix::unistd::read(&self.ending, &mut buffer) {
                Ok(0) => return true,
                Ok(count) => self.told.extend_from_slice(&buffer[..count]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return false,
                Err(_) => return true,
            }
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What went wrong, in the worker's words.
    pub fn finish(mut self) -> Result<Transferred, Fault> {
        drop(self.stream.take());
        while !self.listen() {}
        let _ = waitid(Id::PIDFd(self.child.pidfd.as_fd()), WaitPidFlag::WEXITED);
        match serde_json::from_slice(&self.told) {
            Ok(Ending::Done(done)) => Ok(done),
            Ok(Ending::Failed(why)) => Err(Fault::refused(Step::Transfer, "copy files", why)),
            Err(_) => Err(Fault::refused(Step::Transfer, "copy files", "the copying process died")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Reaped already after `finish`; then both calls fail and nothing else happens.
        let _ = pidfd_send_signal(self.child.pidfd.as_fd(), Signal::SIGKILL);
        let _ = waitid(Id::PIDFd(self.child.pidfd.as_fd()), WaitPidFlag::WEXITED);
    }
}
