//! Per-process limits: setrlimit(2), soft and hard, so that the job cannot raise them.

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use super::prepare::Prepared;
use super::{on, Failed};
use crate::plan::Rlimit;

/// The rows of the plan, but for no core dumps where there are none already: their 1 byte (see there) would be
/// more than a hard limit of 0, as sudo and many a container have it, which only CAP_SYS_RESOURCE may raise.
pub(super) fn attainable(rows: &[Rlimit]) -> Vec<Rlimit> {
    let none = getrlimit(Resource::RLIMIT_CORE).is_ok_and(|(_, hard)| hard == 0);
    let row = |row: &Rlimit| match row.resource {
        Resource::RLIMIT_CORE if none && row.hard == 1 => Rlimit { soft: 0, hard: 0, ..*row },
        _ => *row,
    };
    rows.iter().map(row).collect()
}

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    for (index, row) in prepared.rlimits.iter().enumerate() {
        setrlimit(row.resource, row.soft, row.hard).map_err(on(index))?;
    }
    Ok(())
}
