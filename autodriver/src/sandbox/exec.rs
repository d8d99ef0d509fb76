//! Descriptors, working directory and execve(2): the last steps of the box.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd::{chdir, execve};

use super::prepare::Prepared;
use super::{on, Failed};
use crate::sys::fd::uninterrupted;

/// The acts of the descriptor step, for messages.
pub(super) const DESCRIPTOR_ACTS: [&str; 2] =
    ["close descriptors on exec", "wait for init to give up its privileges"];

/// Index of the working directory among the objects of the exec step; 0 is the program.
pub(super) const CWD: usize = 1;

/// Leaves only 0, 1 and 2 open across execve: CVE-2024-21626 was a descriptor too many.
pub(super) fn descriptors(_: &Prepared) -> Result<(), Failed> {
    crate::sys::fd::cloexec_from(3).map_err(on(0))
}

/// Waits until init has no privileges any more, nor anything to do for the job: last, since a processor that waits
/// takes its time to wake up.
pub(super) fn wait_for_init(prepared: &Prepared) -> Result<(), Failed> {
    let mut byte = [0];
    match uninterrupted(|| nix::unistd::read(prepared.ready_rx.as_fd(), &mut byte)) {
        Ok(1) => {}
        Ok(_) => return Err(on(1)(Errno::EPIPE)),
        Err(errno) => return Err(on(1)(errno)),
    }
    // Whoever ends what a dead driver left finds the job by its uid, which it has by now: a driver that
    // dies after this is no way out, and one that died before it none either.
    prepared.check_driver();
    Ok(())
}

pub(super) fn change_directory(prepared: &Prepared) -> Result<(), Failed> {
    chdir(prepared.cwd.as_c_str()).map_err(on(CWD))
}

/// Returns only the reason why the program could not be executed, as execvp(3) would find it.
pub(super) fn execute(prepared: &Prepared) -> Failed {
    if let Some(program) = &prepared.program {
        match try_one(program, prepared) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            errno => return on(0)(errno),
        }
    }
    let Some(program) = prepared.argv.first() else { return on(0)(Errno::EINVAL) };
    if program.to_bytes().contains(&b'/') {
        return on(0)(try_one(program, prepared));
    }
    let mut worst = Errno::ENOENT;
    for directory in prepared.path.split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let Ok(candidate) = CString::new([directory, b"/", program.to_bytes()].concat()) else { continue };
        match try_one(&candidate, prepared) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => worst = Errno::EACCES,
            errno => return on(0)(errno),
        }
    }
    on(0)(worst)
}

fn try_one(program: &CStr, prepared: &Prepared) -> Errno {
    match execve(program, &prepared.argv, &prepared.env) {
        // A script without `#!`, which POSIX leaves to the shell.
        Err(Errno::ENOEXEC) => {
            let shell = [c"sh".to_owned(), program.to_owned()];
            let arguments: Vec<CString> =
                shell.into_iter().chain(prepared.argv.iter().skip(1).cloned()).collect();
            match execve(c"/bin/sh", &arguments, &prepared.env) {
                Err(Errno::ENOENT) => Errno::ENOEXEC,
                Err(errno) => errno,
            }
        }
        Err(errno) => errno,
    }
}
