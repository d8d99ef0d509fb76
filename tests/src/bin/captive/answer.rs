//! What came of an attempt, and the small things all attempts share.

use std::io::{self, Write};

use nix::errno::Errno;
use nix::unistd::{fork, ForkResult, Pid};

/// What came of an attempt: what to print after `ok`, or the error.
pub(crate) type Answer = nix::Result<String>;

/// Writes one line to stdout; a reader that is gone is no concern of ours.
pub(crate) fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    drop(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

/// The errno behind an I/O error.
pub(crate) fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// The result of a raw system call.
pub(crate) fn raw(result: libc::c_long) -> Answer {
    Errno::result(result).map(|_| String::new())
}

/// A number given on the command line.
pub(crate) fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("'{word}' is not a number"))
}

/// Starts a child that does `work` and ends.
pub(crate) fn child(work: impl FnOnce()) -> nix::Result<Pid> {
    // SAFETY: the captive has one thread, so the child may do whatever the parent might.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            work();
            leave(0)
        }
    }
}

/// Ends the process at once, with nothing flushed twice.
pub(crate) fn leave(status: i32) -> ! {
    // SAFETY: _exit(2) ends the process and has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Waits for all children.
pub(crate) fn wait_for_all() {
    while !matches!(nix::sys::wait::wait(), Err(Errno::ECHILD)) {}
}

/// For attempts with nothing to say but that they succeeded.
pub(crate) fn empty<T>(_: T) -> String {
    String::new()
}
