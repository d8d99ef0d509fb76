//! Entering the cgroup, with v1: more memory, processes or CPU than its share.
//!
//! With v2 the job was created inside (`CLONE_INTO_CGROUP`) and there is nothing left to do, unless a
//! container has no clone3(2). The
//! cgroup namespace comes after, so that its root is the job's own group: cgroup_namespaces(7).

use nix::sched::{unshare, CloneFlags};

use super::prepare::Prepared;
use super::read_back::is_in_cgroup;
use super::{on, Failed};

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    for (index, target) in prepared.entrance.attach.iter().enumerate() {
        // `0` names the writer, whatever its number in this PID namespace. With v1 the file is `tasks`, not
        // `cgroup.procs`: for the current thread alone the kernel need not stop every fork of the
        // machine for an RCU grace period (cgroup_procs_write_start), which takes milliseconds.
        nix::unistd::write(target, b"0").map_err(on(index))?;
    }
    let entries = prepared.entrance.attach.len();
    let (name, hierarchies) = &prepared.cgroup;
    is_in_cgroup(name, *hierarchies).map_err(on(entries + 1))?;
    if prepared.cgroup_namespace {
        unshare(CloneFlags::CLONE_NEWCGROUP).map_err(on(entries))?;
    }
    Ok(())
}
