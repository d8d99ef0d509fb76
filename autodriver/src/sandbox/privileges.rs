//! Root: groups, gid, uid, every capability set, securebits, no_new_privs. Read back at the end,
//! because not every call that changes credentials reports that it did not.
//!
//! The bounding set goes first (it needs CAP_SETPCAP), the other sets last: with
//! `SECBIT_NO_SETUID_FIXUP` locked, leaving uid 0 does not empty them (capabilities(7)).

use caps::CapSet;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{getresgid, getresuid, setgroups, setresgid, setresuid, Gid, Uid};

use super::prepare::Prepared;
use super::{on, Failed};
use crate::sys::process::{lock_securebits, securebits_are_locked};

/// The acts, for messages; indices below.
pub(super) const ACTS: [&str; 8] = [
    "empty the capability bounding set",
    "lock securebits",
    "leave all groups",
    "change the gid",
    "change the uid",
    "empty the capability sets",
    "set no_new_privs",
    "keep the privileges from coming back (they were read back, and differ)",
];

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    if let Some(identity) = prepared.identity {
        give_up(identity)?;
    }
    if prepared.no_new_privs {
        prctl::set_no_new_privs().map_err(on(6))?;
    }
    if let Some(identity) = prepared.identity {
        read_back(identity).map_err(on(7))?;
    }
    Ok(())
}

/// Becomes `id`, in every sense and for good. init does the same.
pub(super) fn give_up(id: u32) -> Result<(), Failed> {
    let empty = |set, index: usize| caps::clear(None, set).map_err(|_| on(index)(Errno::EPERM));
    empty(CapSet::Bounding, 0)?;
    lock_securebits().map_err(on(1))?;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    setgroups(&[]).map_err(on(2))?;
    setresgid(gid, gid, gid).map_err(on(3))?;
    setresuid(uid, uid, uid).map_err(on(4))?;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        empty(set, 5)?;
    }
    Ok(())
}

fn read_back(id: u32) -> Result<(), Errno> {
    let (uids, gids) = (getresuid()?, getresgid()?);
    let same = [uids.real, uids.effective, uids.saved].iter().all(|uid| uid.as_raw() == id)
        && [gids.real, gids.effective, gids.saved].iter().all(|gid| gid.as_raw() == id);
    let sets = [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Bounding];
    let empty = sets.iter().all(|set| caps::read(None, *set).is_ok_and(|caps| caps.is_empty()));
    if same && empty && securebits_are_locked()? {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}
