//! autodriver: runs one untrusted job in a sandbox, and puts the machine back.
//!
//! Reading order: `plan` (what can be asked, what is refused), `sandbox` (the box, layer by
//! layer), `supervise` (limits and verdict), `restore`, then `run` and `serve`, which put them
//! together, and at last `sys` (the unsafe).
#![deny(unsafe_code)]
// A program has no outside: `pub` says what a module offers to the others.
#![allow(unreachable_pub)]

mod cli;
mod facts;
mod plan;
mod sandbox;
mod supervise;
mod restore;
mod transfer;
mod slot;
#[allow(dead_code, reason = "what stands in for a cgroup is not wired in yet")]
mod procfs;
#[allow(dead_code, reason = "as above")]
mod walk;
mod poller;
mod outlet;
mod run;
mod wire;
mod session;
mod serve;
mod uids;
mod fault;
#[allow(unsafe_code)]
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
