//! Who called: whose files the job directory's are. Read once, before the process becomes root in every
//! sense; what is opened and removed for the caller is opened and removed with the caller's rights.

use nix::errno::Errno;
use nix::unistd::{getgid, getgroups, getuid, setgroups, Gid};

use crate::sandbox::Ids;
use crate::sys::process::as_file_user;

/// The caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) Ids);

impl Caller {
    /// Who has started this process.
    pub(super) fn of_this_process() -> Result<Caller, Errno> {
        let groups: Vec<u32> = getgroups()?.into_iter().map(Gid::as_raw).collect();
        Ok(Caller(Ids { uid: getuid().as_raw(), gid: getgid().as_raw(), groups: groups.leak() }))
    }

    /// Does something with the caller's rights to files, groups included.
    pub(super) fn act<T>(&self, act: impl FnOnce() -> T) -> Result<T, Errno> {
        let groups: Vec<Gid> = self.0.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups)?;
        let done = as_file_user(self.0.uid, self.0.gid, act);
        setgroups(&[])?;
        done
    }
}
