//! The only `unsafe` of this program: thin wrappers of system calls that nix does not have, each
//! named after its call. Nothing here knows what a job is.

pub mod fd;
pub mod inherited;
pub mod ipc;
mod memory;
pub mod mount;
pub mod network;
pub mod process;

use nix::errno::Errno;

/// The result of a raw system call, as nix gives it.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    Errno::result(result)
}
