//! The host side: makes a machine, copies in, runs the job, copies out, destroys the machine.
//!
//! A [`backend`] is how to get a stdin and a stdout on a machine. A [`session`] speaks the
//! protocol over them, trusts nothing that comes back, and always ends with a verdict.
#![forbid(unsafe_code)]

pub mod cancel;
pub mod text;
pub mod backend;
pub mod session;
