//! The programs of others that make and destroy machines: run to their end, within a deadline.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use super::peer::leaves;
use super::BackendError;
use crate::text;

/// How long one may take: an image may have to be fetched, a host to be reached.
const PATIENCE: Duration = Duration::from_secs(300);
/// Bytes of what one prints that are read; the rest is for nobody.
const OUTPUT_MAX: u64 = 1 << 20;

/// Why a program did not do what it was asked: its own words.
#[derive(Debug)]
pub(super) struct Failed {
    what: String,
    /// What it said on stderr.
    pub(super) said: String,
    how: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last line that is no advice on how to call it.
        let advice = ["Run '", "See '", "Usage:"];
        let tells = |line: &&str| !line.is_empty() && !advice.iter().any(|begin| line.starts_with(begin));
        let said = self.said.lines().map(str::trim).rfind(tells);
        match said {
            Some(said) => write!(f, "'{}' {}: {}", self.what, self.how, text::printable(said)),
            None => write!(f, "'{}' {}", self.what, self.how),
        }
    }
}

impl From<Failed> for BackendError {
    fn from(failed: Failed) -> BackendError {
        BackendError(failed.to_string())
    }
}

/// Runs `command` with `input` as its standard input; returns what it printed. `what` names it in errors.
///
/// # Errors
/// It could not be started, exited with another status than 0, or took longer than five minutes.
pub(super) fn run(what: &str, command: &mut Command, input: Option<File>) -> Result<String, Failed> {
    let failed = |said: String, how: String| Failed { what: what.to_owned(), said, how };
    let files = tempfile::tempfile().and_then(|out| Ok((out, tempfile::tempfile()?)));
    let (mut out, mut err) =
        files.map_err(|error| failed(String::new(), format!("was not started: {error}")))?;
    let ended = (|| {
        let input = input.map_or_else(Stdio::null, Stdio::from);
        // Not for a Ctrl-C at the terminal to end in the middle.
        let command = command.stdin(input).stdout(out.try_clone()?).stderr(err.try_clone()?).process_group(0);
        wait(command)
    })();
    let said = read(&mut err).unwrap_or_default();
    match ended {
        Err(error) => Err(failed(said, format!("could not be run: {error}; is it installed and in PATH?"))),
        Ok(None) => Err(failed(said, format!("took longer than {} s", PATIENCE.as_secs()))),
        Ok(Some(status)) if !status.success() => Err(failed(said, format!("failed ({status})"))),
        Ok(Some(_)) => read(&mut out).map_err(|error| failed(said, format!("cannot be read: {error}"))),
    }
}

/// The end of a process; `None` if it had to be killed.
fn wait(command: &mut Command) -> io::Result<Option<ExitStatus>> {
    let mut child = command.spawn()?;
    let number = i32::try_from(child.id()).map_err(io::Error::other)?;
    let ended = leaves(Pid::from_raw(number), PATIENCE);
    if !ended {
        // Until it is waited for, the number is its own.
        let _ = killpg(Pid::from_raw(number), Signal::SIGKILL);
    }
    let status = child.wait()?;
    Ok(ended.then_some(status))
}

fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(OUTPUT_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<String, Failed> {
        run("the shell", Command::new("sh").args(["-c", script]), None)
    }

    #[test]
    fn what_it_prints_is_returned_and_what_it_says_is_told() {
        assert_eq!(shell("echo hello").unwrap(), "hello\n");
        let failed =
            shell("echo first >&2; printf 'no \\033such thing\\n\\n' >&2; exit 3").unwrap_err().to_string();
        assert!(failed.starts_with("'the shell' failed (exit status: 3): no "), "{failed}");
        assert!(!failed.contains('\u{1b}') && !failed.contains("first"), "{failed:?}");
    }

    #[test]
    fn one_that_is_not_there_is_named() {
        let failed = run("no-such-program run", &mut Command::new("/nowhere/no-such-program"), None);
        let failed = failed.unwrap_err().to_string();
        assert!(failed.contains("no-such-program run") && failed.contains("installed"), "{failed}");
    }
}
