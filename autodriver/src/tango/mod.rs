//! # The Tango form: theory of operation
//!
//! `autodriver [-u N] [-f BYTES] [-t SECS] [-o BYTES] ... DIRECTORY`: what Tango calls in its grading images
//! as an ordinary user, setuid root, to have `make` run on a directory as the account `autograde`. The
//! command line, the lines on standard output, the exit status and `output.log` are Tango's; what runs the
//! job is what runs all others.
//!
//! A setuid program is started by somebody who is not trusted, in a process that they have made. So the
//! order is: [`caller`] notes who it is; [`shed`] leaves behind all else that they have set up; only then
//! [`grader`] reads one file of the machine, and [`arguments`] what was said. [`moving`] takes the job
//! directory, with the rights of the caller. From there on nothing of the caller is left but the numbers
//! of the options. Nothing here reads an environment variable, a configuration or the other command line.

pub mod arguments;
mod failure;
mod caller;
mod shed;
mod grader;
mod moving;
mod log;
mod zone;
mod voice;
mod stamps;
mod transcript;
mod output;
mod job;
mod witness;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use nix::unistd::{getegid, geteuid, getgid, getuid};

use crate::sys::inherited::is_secure_execution;
use crate::sys::process::exit_on_abort;
use arguments::Stop;
use caller::Caller;
use failure::{say, Failure, OS_ERROR, USAGE};
use grader::Grader;
use voice::Voice;

/// The bit of a file's mode: inode(7).
const SETUID: u32 = 0o4000;

/// Whether this process has more rights than its caller: then there is no other form.
pub fn is_the_only_form() -> bool {
    getuid() != geteuid() || getgid() != getegid() || is_secure_execution()
}

/// Whether arguments that are no command of the other form's are for this one: as it is installed for
/// Tango, root is told that it must not call it.
pub fn is_asked_for(arguments: &[OsString]) -> bool {
    let is_setuid = std::fs::metadata("/proc/self/exe").is_ok_and(|file| file.mode() & SETUID != 0);
    let names = |word: &OsString| {
        arguments::begins(word.as_bytes()) || std::fs::metadata(word).is_ok_and(|file| file.is_dir())
    };
    is_setuid || arguments.get(1).is_some_and(names)
}

/// Everything.
pub fn main(arguments: &[OsString]) -> ExitCode {
    // Where it is refused, an abort is a signal.
    let _ = exit_on_abort(OS_ERROR);
    let status = run(arguments).unwrap_or_else(|failure| tell(&Voice::Plain, &failure));
    ExitCode::from(status)
}

/// Says what failed; the exit status.
fn tell(voice: &Voice, failure: &Failure) -> u8 {
    say(&voice.failure(failure));
    failure.status
}

fn run(arguments: &[OsString]) -> Result<u8, Failure> {
    let caller = Caller::of_this_process().map_err(|errno| Failure::os("Unable to get the caller", errno))?;
    let privileged = geteuid().is_root() && caller.0.uid != 0;
    if privileged {
        shed::shed()?;
        // Its handler went with all others.
        let _ = exit_on_abort(OS_ERROR);
    }
    let grader = check(caller)?;
    let words: Vec<&[u8]> = arguments.iter().map(|word| word.as_bytes()).collect();
    let read = match arguments::parse(&words) {
        Ok(read) => read,
        Err(Stop::Help(text)) => {
            failure::print(text.as_bytes());
            return Ok(0);
        }
        Err(Stop::Usage(text)) => {
            failure::print_error(&text);
            return Ok(USAGE);
        }
    };
    let voice = Voice::of(&read);
    if let Some(line) = voice.beginning() {
        say(&line);
    }
    if !privileged {
        let why = "autodriver is not setuid root here: chown root, chmod u+s, and no no-new-privileges";
        return Ok(tell(&voice, &Failure::new(OS_ERROR, why)));
    }
    let drive = |witness| {
        let status = job::run(&read, &voice, witness, caller, grader.clone());
        status.unwrap_or_else(|failure| tell(&voice, &failure))
    };
    let status = witness::attend(&read, &voice, drive, || job::clear_up(grader.clone()));
    Ok(status.unwrap_or_else(|failure| tell(&voice, &failure)))
}

/// Whether this caller may grade at all, in the order in which Tango's driver looks.
fn check(caller: Caller) -> Result<Grader, Failure> {
    if caller.0.uid == 0 {
        return Err(Failure::plain(USAGE, "Autodriver should not be run as root."));
    }
    let grader = grader::find()?;
    if caller.0.uid == grader.ids.uid {
        let why = format!("This should not be run as the grading user {}", grader::NAME);
        return Err(Failure::new(USAGE, why));
    }
    Ok(grader)
}

#[cfg(test)]
mod against_argp;
