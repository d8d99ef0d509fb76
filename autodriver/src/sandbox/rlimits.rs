//! Per-process limits: setrlimit(2), soft and hard, so that the job cannot raise them.

use nix::sys::resource::setrlimit;

use super::prepare::Prepared;
use super::{on, Failed};

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    for (index, row) in prepared.rlimits.iter().enumerate() {
        setrlimit(row.resource, row.soft, row.hard).map_err(on(index))?;
    }
    Ok(())
}
