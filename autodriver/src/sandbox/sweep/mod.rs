//! Ending and removing what a job left, where neither a PID namespace nor a cgroup, nor namespaces
//! that take their objects along, do it: its processes, its System V objects, its files.

pub mod processes;
pub mod ipc;
pub mod files;
pub mod remove;
mod stand_in;
