//! The host side: makes a machine, copies in, runs the job, copies out, destroys the machine.
#![forbid(unsafe_code)]

pub mod cancel;
pub mod text;
pub mod backend;
