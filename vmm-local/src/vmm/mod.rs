//! Tango's seven calls, and machines that are kept between them.

mod machines;
mod state;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use autodriver_protocol::job::Input;
use autodriver_protocol::{Hello, Options};

use crate::backend::{BackendError, Name};
use crate::session::{Fault, Outcome, Sink};

pub use machines::Machines;
pub use state::default_root;

/// Why a call failed. Displayed as one sentence for the operator.
#[derive(Debug)]
pub enum VmmError {
    /// No machine has this name.
    Unknown(Name),
    /// A machine has this name already.
    Exists(Name),
    /// Another process uses the machine.
    InUse(Name),
    /// The machine has run no job, or the job gave no such thing.
    Nothing {
        /// On which machine.
        machine: Name,
        /// What there is not.
        what: &'static str,
    },
    /// The machine could not be made, reached or destroyed.
    Backend(BackendError),
    /// The machine, or what was asked of it, was at fault.
    Fault(Fault),
    /// This side's files could not be read or written.
    Files {
        /// What was being done.
        act: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        why: String,
    },
}

impl VmmError {
    fn files<E: fmt::Display>(act: &'static str, path: &Path) -> impl FnOnce(E) -> VmmError {
        let path = path.to_owned();
        move |error| VmmError::Files { act, path, why: error.to_string() }
    }
}

impl fmt::Display for VmmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmmError::Unknown(name) => write!(f, "no machine '{name}'; 'vm initialize {name}' makes it"),
            VmmError::Exists(name) => {
                write!(f, "machine '{name}' exists already; 'vm destroy {name}' removes it")
            }
            VmmError::InUse(name) => write!(f, "machine '{name}' is in use; wait, or 'vm destroy {name}'"),
            VmmError::Nothing { machine, what } => {
                write!(f, "machine '{machine}' has no {what}; 'vm run-job {machine}' makes it")
            }
            VmmError::Backend(error) => write!(f, "{error}"),
            VmmError::Fault(fault) => write!(f, "{fault}"),
            VmmError::Files { act, path, why } => write!(f, "cannot {act} '{}': {why}", path.display()),
        }
    }
}

impl std::error::Error for VmmError {}

impl From<BackendError> for VmmError {
    fn from(error: BackendError) -> Self {
        VmmError::Backend(error)
    }
}

impl From<Fault> for VmmError {
    fn from(fault: Fault) -> Self {
        VmmError::Fault(fault)
    }
}

impl From<VmmError> for io::Error {
    fn from(error: VmmError) -> Self {
        io::Error::other(error.to_string())
    }
}

/// What [`Vmm::copy_out`] copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// The output of the last job.
    Feedback,
    /// The report on the last job, JSON.
    Report,
    /// The files that the last job's `--out` named.
    Files,
}

/// Tango's seven calls, and its look at what a job has printed so far. A machine is used by one caller at a time; the others are told so.
/// Everything is synchronous, and every call but [`Vmm::run_job`] fails with a [`VmmError`].
pub trait Vmm {
    /// Makes the machine, or begins to.
    ///
    /// # Errors
    /// [`VmmError::Exists`], [`VmmError::Backend`].
    fn initialize_vm(&self, machine: &Name) -> Result<(), VmmError>;

    /// Waits until the machine answers, for at most `timeout`. Returns how it introduced
    /// itself, for humans.
    ///
    /// # Errors
    /// [`VmmError::Fault`] with what came instead of an answer.
    fn wait_vm(&self, machine: &Name, timeout: Duration) -> Result<Hello, VmmError>;

    /// Copies files and trees into the directory that the next jobs start with. Returns how
    /// many entries were copied, and sentences about those that were not.
    ///
    /// # Errors
    /// [`VmmError::Fault`] for a source that is not there; nothing was copied then.
    fn copy_in(&self, machine: &Name, files: &[Input]) -> Result<(u64, Vec<String>), VmmError>;

    /// Runs a job on what was copied in. Output goes to `sink` as it comes, and is kept as
    /// the feedback. Never fails: there is always a verdict.
    fn run_job(&self, machine: &Name, options: Options, sink: &mut Sink<'_>) -> Outcome;

    /// Copies a product of the last job to `dest`: a file (or the directory to put it in) for
    /// feedback and report, a directory for files.
    ///
    /// # Errors
    /// [`VmmError::Nothing`] if there is none.
    fn copy_out(&self, machine: &Name, product: Product, dest: &Path) -> Result<(), VmmError>;

    /// The first `most` bytes of what the last job has printed, which may still run.
    ///
    /// # Errors
    /// [`VmmError::Nothing`] if none was begun, [`VmmError::Unknown`].
    fn partial_output(&self, machine: &Name, most: u64) -> Result<Vec<u8>, VmmError>;

    /// Destroys the machine and all that is kept of it. A job that runs on it is cancelled. A
    /// machine that is not there is destroyed.
    ///
    /// # Errors
    /// [`VmmError::Backend`], [`VmmError::Files`], and [`VmmError::InUse`] if its user does
    /// not let go.
    fn destroy_vm(&self, machine: &Name) -> Result<(), VmmError>;

    /// The names of all machines, sorted.
    ///
    /// # Errors
    /// [`VmmError::Files`].
    fn get_vms(&self) -> Result<Vec<Name>, VmmError>;
}

#[cfg(test)]
mod tests;
