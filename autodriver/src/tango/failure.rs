//! What goes wrong besides the job, and how it is said: a line of the shape that scripts know, and an
//! exit status.

use std::fmt;
use std::io::Write;

use nix::errno::Errno;

use crate::fault::Fault;

/// The exit status after bad usage, and where it must not be used at all.
pub(super) const USAGE: u8 = 1;
/// The exit status after a timeout.
pub(super) const TIMEOUT: u8 = 2;
/// The exit status when something could not be done.
pub(super) const OS_ERROR: u8 = 3;

/// A failure of ours, never a job's.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: u8,
    text: String,
    line: Option<u32>,
    errno: Option<Errno>,
}

impl Failure {
    /// Something that is not as it must be.
    #[track_caller]
    pub(super) fn new(status: u8, text: impl Into<String>) -> Failure {
        let line = Some(std::panic::Location::caller().line());
        Failure { status, text: text.into(), line, errno: None }
    }

    /// What is said without a line of ours, as by Tango's own driver.
    pub(super) fn plain(status: u8, text: impl Into<String>) -> Failure {
        Failure { status, text: text.into(), line: None, errno: None }
    }

    /// A system call failed.
    #[track_caller]
    pub(super) fn os(text: impl Into<String>, errno: Errno) -> Failure {
        Failure { errno: Some(errno), ..Failure::new(OS_ERROR, text) }
    }

    /// A part of the sandbox failed.
    #[track_caller]
    pub(super) fn of(fault: &Fault) -> Failure {
        Failure::new(OS_ERROR, fault.to_string())
    }
}

/// Names of files may hold anything, and must not look like lines of ours.
fn on_one_line(text: &str) -> String {
    let visible = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(visible).collect()
}

/// `TEXT at line N`, and why, if a system call knows.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&on_one_line(&self.text))?;
        if let Some(line) = self.line {
            write!(f, " at line {line}")?;
        }
        match self.errno {
            Some(errno) => write!(f, ": {}", errno.desc()),
            None => Ok(()),
        }
    }
}

/// Says a line on standard output, where those who grade look for it.
pub(super) fn say(line: &str) {
    print(&[line.as_bytes(), b"\n"].concat());
}

/// Writes to standard output. If nobody takes it, nobody is there to be told.
pub(super) fn print(text: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text).and_then(|()| stdout.flush());
}

/// Writes to standard error.
pub(super) fn print_error(text: &[u8]) {
    let _ = std::io::stderr().write_all(text);
}

/// Says a line on standard error.
pub(super) fn mutter(line: &str) {
    print_error(format!("Autodriver: {}\n", on_one_line(line)).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_of_the_shape_that_scripts_know() {
        let plain = Failure::new(USAGE, "it's 'x'\nAutodriver: Job exited").to_string();
        let number = plain.rsplit(' ').next().and_then(|word| word.parse::<u32>().ok());
        assert_eq!(number, Some(line!() - 2));
        assert!(plain.starts_with("it's 'x'\\nAutodriver: Job exited at line "), "{plain}");
        let os = Failure::os("Unable to fork", Errno::EAGAIN).to_string();
        assert!(os.ends_with(": Try again") && os.starts_with("Unable to fork at line "), "{os}");
    }
}
