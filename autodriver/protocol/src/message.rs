//! The JSON payloads, and the order in which a job's frames may come.

use serde::{Deserialize, Serialize};

use crate::frame::{Kind, WireError};
use crate::report::Restore;
use crate::units::Size;

/// The protocol's version; `hello` of both sides must agree in it.
pub const PROTOCOL_VERSION: u32 = 1;

/// Most jobs open at once on one connection.
pub const JOBS_MAX: usize = 1024;

/// Most bytes in a `ping`.
pub const PING_MAX: usize = 1024;

/// First frame of each side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// The program, for humans.
    pub name: String,
    /// Its version, for humans.
    pub version: String,
    /// What it can do beyond version 1; unknown words are ignored.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// `open`: what the job's storage may hold before the first `run` sets the job's own limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Open {
    /// Bytes of all files put, together; default: half of the machine's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Files and directories put, together; default: 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// As `--user`: the jobs run as this user, who owns the files put; default: a uid of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// `get`: which files to send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Get {
    /// Patterns relative to the job directory: `*`, `?` and `[...]` stay within a name, `**`
    /// crosses directories. A pattern that names a directory takes everything below it.
    pub globs: Vec<String>,
}

/// A file that was not copied, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The path, relative; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// For example `not a regular file`.
    pub why: String,
}

/// `put-done` and `get-done`: what was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transferred {
    /// Files, and with `put` directories and links.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What matched and was left out; at most 100 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// How many were left out.
    #[serde(default)]
    pub skipped_count: u64,
}

/// `closed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Whether the machine is as it was before `open`.
    pub restore: Restore,
}

/// What kind of request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The peer broke the protocol; the connection ends.
    Protocol,
    /// The frame may not come now; the job is as it was.
    OutOfOrder,
    /// The job document or another payload was refused.
    BadRequest,
    /// A sandbox or storage could not be made: the machine's fault, not the job's.
    SetupFailed,
    /// Files could not be copied.
    TransferFailed,
    /// The host cancelled the transfer.
    Cancelled,
}

/// `error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorMessage {
    /// The kind of failure.
    pub code: ErrorCode,
    /// One sentence: what, which value, what to do.
    pub message: String,
}

/// Where a job stands, as both sides count it. Declared in the order of a job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing under way.
    Idle,
    /// Between the first `put` and its `put-done`.
    Putting,
    /// Between `run` and `report`.
    Running,
    /// Between `get` and `get-done`.
    Getting,
    /// After `close`.
    Closing,
}

impl Phase {
    /// The phase after the host sends `kind`.
    ///
    /// # Errors
    /// [`WireError::OutOfOrder`] with what would have been accepted.
    pub fn request(self, kind: Kind) -> Result<Phase, WireError> {
        match (self, kind) {
            (Phase::Idle | Phase::Putting, Kind::Put) => Ok(Phase::Putting),
            (Phase::Idle, Kind::Run) => Ok(Phase::Running),
            (Phase::Idle, Kind::Get) => Ok(Phase::Getting),
            (Phase::Closing, _) => {
                Err(WireError::OutOfOrder { got: kind, expected: "nothing more for this job" })
            }
            (phase, Kind::Cancel) => Ok(phase),
            (_, Kind::Close) => Ok(Phase::Closing),
            (Phase::Idle, got) => {
                Err(WireError::OutOfOrder { got, expected: "put, run, get, cancel or close" })
            }
            (Phase::Putting, got) => Err(WireError::OutOfOrder { got, expected: "put, cancel or close" }),
            (Phase::Running | Phase::Getting, got) => {
                Err(WireError::OutOfOrder { got, expected: "cancel or close" })
            }
        }
    }

    /// The phase after the guest sends `kind`.
    ///
    /// # Errors
    /// [`WireError::OutOfOrder`] with what would have been accepted.
    pub fn answer(self, kind: Kind) -> Result<Phase, WireError> {
        let output = matches!(kind, Kind::Started | Kind::Output | Kind::Stdout | Kind::Stderr);
        match (self, kind) {
            (Phase::Running | Phase::Closing, _) if output => Ok(self),
            (Phase::Getting, Kind::Data) => Ok(Phase::Getting),
            (Phase::Closing, Kind::Data | Kind::Report | Kind::GetDone | Kind::PutDone | Kind::Error) => {
                Ok(Phase::Closing)
            }
            (Phase::Running, Kind::Report | Kind::Error) => Ok(Phase::Idle),
            (Phase::Putting, Kind::PutDone | Kind::Error) => Ok(Phase::Idle),
            (Phase::Getting, Kind::GetDone | Kind::Error) => Ok(Phase::Idle),
            (Phase::Closing, Kind::Closed) => Ok(Phase::Closing),
            (Phase::Idle, Kind::Opened | Kind::Error) => Ok(Phase::Idle),
            (Phase::Idle, got) => {
                Err(WireError::OutOfOrder { got, expected: "no answer, since nothing was asked" })
            }
            (Phase::Putting, got) => Err(WireError::OutOfOrder { got, expected: "put-done or error" }),
            (Phase::Running, got) => {
                Err(WireError::OutOfOrder { got, expected: "started, output, report or error" })
            }
            (Phase::Getting, got) => Err(WireError::OutOfOrder { got, expected: "data, get-done or error" }),
            (Phase::Closing, got) => Err(WireError::OutOfOrder { got, expected: "closed" }),
        }
    }
}

#[cfg(test)]
mod orders;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declared_order_is_the_legal_order() {
        let mut phase = Phase::Idle;
        for kind in [Kind::Put, Kind::Put] {
            phase = phase.request(kind).unwrap();
        }
        phase = phase.answer(Kind::PutDone).unwrap();
        phase = phase.request(Kind::Run).unwrap();
        assert!(phase.request(Kind::Run).is_err() && phase.request(Kind::Get).is_err());
        for kind in [Kind::Started, Kind::Output, Kind::Report] {
            phase = phase.answer(kind).unwrap();
        }
        assert!(phase.answer(Kind::Report).is_err(), "a second report answers nothing");
        phase = phase.request(Kind::Get).unwrap();
        for kind in [Kind::Data, Kind::GetDone] {
            phase = phase.answer(kind).unwrap();
        }
        phase = phase.request(Kind::Close).unwrap();
        assert!(phase.request(Kind::Cancel).is_err());
        assert_eq!(phase.answer(Kind::Closed), Ok(Phase::Closing));
    }

    #[test]
    fn unknown_keys_of_requests_are_refused() {
        assert!(serde_json::from_str::<Open>(r#"{"size": 1}"#).is_err());
        assert!(serde_json::from_str::<Get>(r#"{"globs": ["*"], "follow": true}"#).is_err());
    }
}
