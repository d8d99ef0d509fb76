//! The host side: makes a machine, copies in, runs the job, copies out, destroys the machine.
//!
//! A [`backend`] is how to get a stdin and a stdout on a machine. A [`session`] speaks the
//! protocol over them, trusts nothing that comes back, and always ends with a verdict. The
//! [`vmm`] is Tango's seven calls, with machines that are kept between them; [`batch`] spreads
//! many jobs over a pool of machines; [`conformance`] attacks a machine; [`cli`] is the command line of all that.
#![forbid(unsafe_code)]

pub mod cancel;
pub mod text;
pub mod backend;
pub mod session;
pub mod vmm;
pub mod batch;
pub mod conformance;
pub mod cli;
