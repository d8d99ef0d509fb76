//! How our own lines read: as Tango's driver says them, or as the driver does from which `-i` and `-z` come, the
//! one of Tango's pull request #148: with the time, and more of them.

use super::arguments::Arguments;
use super::failure::{mutter, Failure};
use super::zone::{now, Zone};

/// One of the two.
#[derive(Debug)]
pub(super) enum Voice {
    /// `Autodriver: ...`
    Plain,
    /// `Autodriver@YYYYmmdd-HH:MM:SS: ...`, in local time.
    Timed(Zone),
}

impl Voice {
    /// The one of who calls with these options.
    pub(super) fn of(arguments: &Arguments) -> Voice {
        match &arguments.timezone {
            None if arguments.interval == 0 => Voice::Plain,
            None => Voice::Timed(Zone::default()),
            Some(name) => Voice::Timed(Zone::find(name).unwrap_or_else(|| {
                let name = String::from_utf8_lossy(name);
                mutter(&format!("Time zone '{name}' is not known; times are UTC"));
                Zone::default()
            })),
        }
    }

    /// What is said before the job.
    pub(super) fn beginning(&self) -> Option<String> {
        match self {
            Voice::Plain => None,
            Voice::Timed(zone) => {
                let [standard, summer] = &zone.names;
                Some(self.line(&format!("Test Starts. Time zone {standard}:{summer}")))
            }
        }
    }

    /// A line that is no error.
    pub(super) fn line(&self, text: &str) -> String {
        match self {
            Voice::Plain => format!("Autodriver: {text}"),
            Voice::Timed(zone) => format!("Autodriver@{}: {text}", zone.local(now())),
        }
    }

    /// A line that is one.
    pub(super) fn error(&self, text: &str) -> String {
        match self {
            Voice::Plain => self.line(text),
            Voice::Timed(_) => self.line(&format!("ERROR {text}")),
        }
    }

    /// What a failure of ours is told as.
    pub(super) fn failure(&self, failure: &Failure) -> String {
        self.error(&failure.to_string())
    }

    /// What stands in output for what is left out of it.
    pub(super) fn mark(&self) -> &'static str {
        match self {
            Voice::Plain => "\n...[excess bytes elided]...\n",
            Voice::Timed(_) => "\n...[excess bytes elided by autodriver]...\n",
        }
    }
}
