//! What can go wrong on a connection, as a type: whose fault, and whether the connection is over.

use std::fmt;
use std::io;
use std::time::Duration;

use autodriver_protocol::archive::ArchiveError;
use autodriver_protocol::{ErrorMessage, WireError};

use crate::text;

/// Why a step on a connection failed.
#[derive(Debug)]
pub enum SessionError {
    /// The guest, or the channel, broke the protocol or ended.
    Wire(WireError),
    /// Reading or writing the guest's streams failed.
    Stream(io::Error),
    /// The guest did not answer within the host's own deadline.
    Deadline {
        /// What was expected.
        expected: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The guest sent more than the host takes, whatever was agreed.
    Budget {
        /// Of what.
        what: &'static str,
        /// In bytes.
        limit: u64,
    },
    /// The guest ended the connection and said why.
    Ended(ErrorMessage),
    /// The guest refused a request; the job is as it was.
    Refused(ErrorMessage),
    /// A report that cannot be true.
    Report(&'static str),
    /// Files could not be read or written here, or were more than was agreed.
    Archive(ArchiveError),
    /// The guest's archive is none, or holds what no autodriver packs.
    BadArchive(ArchiveError),
    /// Something that was to be put cannot be: names it, and why.
    Incomplete(String),
    /// Output could not be passed on.
    Output(io::Error),
    /// The caller wants to stop.
    Cancelled,
}

impl SessionError {
    /// Why files of the guest could not be unpacked. A size that was passed is no lie: where it is
    /// only sampled, a job can be faster.
    pub(super) fn of_guest(error: ArchiveError) -> SessionError {
        match error {
            ArchiveError::Refused { .. } | ArchiveError::Stream(_) => SessionError::BadArchive(error),
            error => SessionError::Archive(error),
        }
    }

    /// Whether nothing more can be said on the connection.
    pub fn ends_connection(&self) -> bool {
        match self {
            SessionError::Wire(_)
            | SessionError::Stream(_)
            | SessionError::Deadline { .. }
            | SessionError::Budget { .. }
            | SessionError::Ended(_)
            | SessionError::BadArchive(_)
            | SessionError::Report(_) => true,
            SessionError::Refused(_)
            | SessionError::Archive(_)
            | SessionError::Incomplete(_)
            | SessionError::Output(_)
            | SessionError::Cancelled => false,
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::Wire(error) => f.write_str(&text::printable(&error.to_string())),
            SessionError::Stream(error) => write!(f, "stream to the machine: {error}"),
            SessionError::Deadline { expected, after } => {
                write!(f, "no {expected} within {}; the machine hangs or is overloaded", text::time(*after))
            }
            SessionError::Budget { what, limit } => {
                write!(
                    f,
                    "more than {limit} bytes of {what}, which no autodriver sends; is the machine sound?"
                )
            }
            SessionError::Ended(error) | SessionError::Refused(error) => {
                f.write_str(&text::printable(&error.message))
            }
            SessionError::Report(why) => write!(f, "report {why}; is the machine sound?"),
            SessionError::Archive(error) | SessionError::BadArchive(error) => {
                // What a tar stream holds in the place of a number is quoted as it is.
                f.write_str(&text::printable(&error.to_string()))
            }
            SessionError::Incomplete(what) => f.write_str(what),
            SessionError::Output(error) => write!(f, "cannot write the job's output: {error}"),
            SessionError::Cancelled => f.write_str("cancelled"),
        }
    }
}

impl std::error::Error for SessionError {}

impl From<WireError> for SessionError {
    fn from(error: WireError) -> Self {
        SessionError::Wire(error)
    }
}

impl From<ArchiveError> for SessionError {
    fn from(error: ArchiveError) -> Self {
        SessionError::Archive(error)
    }
}
