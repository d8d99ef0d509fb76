//! The harness of the end-to-end tests. They see autodriver as a user does: through its command
//! line ([`job`]) or through the wire ([`Connection`]). Inside the box runs `captive`, a static
//! program whose every subcommand tries one thing and prints `ok ...` or `errno NAME`.
//!
//! The tests need root, a built autodriver (`AUTODRIVER`, else `target/dist/autodriver`) and a
//! static captive (`CAPTIVE`, else the one built with the tests). What is missing is a failure,
//! never a skip. The other side of the wire, `vmm-local`, lies beside autodriver; it is shown guests
//! that are none ([`Act`], played by `hostile-guest`, which lies beside the captive), and callers of the
//! Tango form that are not to be trusted ([`Image`], `tango-caller`, which lies there too). [`Snapshot`] compares the machine before and after.

mod binaries;
pub mod faults;
mod hostile;
mod image;
mod job;
mod outcome;
mod process;
mod snapshot;
mod storm;
mod wire;

pub use binaries::{autodriver, captive, hostile_guest, require_root, tango_caller, vmm_local};
pub use hostile::{
    closed, closing, copied, frame, frame_of, header, report, reporting, say, wait_for, Act, Bytes, Stage,
    SCRIPT,
};
pub use image::{Call, Image, AUTODRIVER};
pub use job::{driver, job, program, shell, Job, Running, DEADLINE};
pub use outcome::Outcome;
pub use process::{descendants, processes, wait_until, Process};
pub use snapshot::{alone, Snapshot};
pub use storm::storm;
pub use wire::{tar_of, Connection, Finished, Frame};
