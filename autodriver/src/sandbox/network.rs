//! The network and the host name: an empty network namespace came with clone3; its loopback is
//! brought up here, because programs under test talk to themselves.

use super::prepare::Prepared;
use super::{on, Failed};

/// The acts, for messages.
pub(super) const ACTS: [&str; 2] = ["bring up the loopback interface", "set the host name"];

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    if prepared.loopback {
        crate::sys::network::loopback_up().map_err(on(0))?;
    }
    match &prepared.hostname {
        Some(hostname) => nix::unistd::sethostname(hostname).map_err(on(1)),
        None => Ok(()),
    }
}
