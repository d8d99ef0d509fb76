//! Root: groups, gid, uid, every capability set, securebits, no_new_privs.
//!
//! The bounding set goes first (it needs CAP_SETPCAP), the other sets last: with
//! `SECBIT_NO_SETUID_FIXUP` locked, leaving uid 0 does not empty them (capabilities(7)).

use caps::CapSet;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{setgroups, setresgid, setresuid, Gid, Uid};

use super::prepare::Prepared;
use super::{on, Failed};
use crate::facts::{Facts, Namespaces};
use crate::sys::process::lock_securebits;

/// The acts, for messages; indices below.
pub(super) const ACTS: [&str; 7] = [
    "empty the capability bounding set",
    "lock securebits",
    "leave all groups but its own",
    "change the gid",
    "change the uid",
    "empty the capability sets",
    "set no_new_privs",
];

/// What a process is to the kernel: credentials(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Real, effective and saved uid.
    pub uid: u32,
    /// Real, effective and saved gid.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'static [u32],
}

impl Ids {
    /// A uid, the gid of the same number, and no other group.
    pub const fn alone(id: u32) -> Ids {
        Ids { uid: id, gid: id, groups: &[] }
    }
}

/// Whose uid a child of the driver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// One of its own.
    Own(Ids),
    /// The caller's, since a user namespace has no other; without its capabilities there.
    Confined,
    /// The caller's, who has no privileges to give up.
    Callers,
}

impl Identity {
    /// Of a job that cannot be given a uid of its own here.
    pub fn shared(facts: &Facts) -> Identity {
        match facts.namespaces {
            Namespaces::User => Identity::Confined,
            _ => Identity::Callers,
        }
    }

    /// The same, for init: an account that owns nothing, where it can have another than the job.
    pub(super) fn of_init(self) -> Identity {
        match self {
            Identity::Own(_) => Identity::Own(Ids::alone(super::init::NOBODY)),
            other => other,
        }
    }
}

/// Every set, in the order in which they are emptied.
pub(super) const SETS: [(&str, CapSet); 5] = [
    ("bounding", CapSet::Bounding),
    ("ambient", CapSet::Ambient),
    ("inheritable", CapSet::Inheritable),
    ("effective", CapSet::Effective),
    ("permitted", CapSet::Permitted),
];

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    become_identity(prepared.identity)?;
    if prepared.no_new_privs {
        prctl::set_no_new_privs().map_err(on(6))?;
    }
    Ok(())
}

/// Becomes it, in every sense and for good.
pub(super) fn give_up(identity: Identity) -> Result<(), Failed> {
    empty_bounding_set(identity)?;
    become_identity(identity)
}

/// What nobody can get back; what a process has now it keeps.
pub(super) fn empty_bounding_set(identity: Identity) -> Result<(), Failed> {
    match identity {
        Identity::Callers => Ok(()),
        _ => crate::sys::process::empty_bounding_set().map_err(on(0)),
    }
}

/// The rest, of init and of its job.
pub(super) fn become_identity(identity: Identity) -> Result<(), Failed> {
    if identity == Identity::Callers {
        return Ok(());
    }
    lock_securebits().map_err(on(1))?;
    if let Identity::Own(ids) = identity {
        let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
        let groups: Vec<Gid> = ids.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).map_err(on(2))?;
        setresgid(gid, gid, gid).map_err(on(3))?;
        setresuid(uid, uid, uid).map_err(on(4))?;
    }
    for (_, set) in &SETS[1..] {
        caps::clear(None, *set).map_err(|_| on(5)(Errno::EPERM))?;
    }
    Ok(())
}
