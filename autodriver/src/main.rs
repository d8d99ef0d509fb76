//! autodriver: runs one untrusted job in a sandbox, and puts the machine back.
//!
//! Reading order: `plan` (what can be asked, what is refused), `sandbox` (the box, layer by
//! layer), `supervise` (limits and verdict), `restore`, then `run` and `serve`, which put them
//! together, `check` and `explain`, which only look, and at last `sys` (the unsafe).
#![deny(unsafe_code)]
// A program has no outside: `pub` says what a module offers to the others.
#![allow(unreachable_pub)]

mod cli;
mod first;
mod facts;
mod plan;
mod sandbox;
mod supervise;
mod restore;
mod transfer;
mod keeper;
mod slot;
mod procfs;
mod walk;
mod poller;
mod outlet;
mod follow;
mod run;
mod wire;
mod session;
mod serve;
mod tango;
mod check;
mod explain;
mod uids;
mod fault;
#[allow(unsafe_code)]
mod sys;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if tango::is_the_only_form() || tango::is_asked_for(&arguments) && !cli::knows(&arguments) {
        return tango::main(&arguments);
    }
    cli::main(arguments)
}
