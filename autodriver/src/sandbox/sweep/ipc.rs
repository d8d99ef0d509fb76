//! System V objects, which outlive everybody: sysvipc(7). POSIX queues and semaphores are files,
//! in /dev/mqueue and /dev/shm.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::stand_in::StandIn;
use crate::sys::ipc::{self, Kind};

/// For some system calls of the helper.
const REMOVING_MAX: Duration = Duration::from_secs(2);

/// One object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipc {
    /// What it is.
    pub kind: Kind,
    /// What the kernel calls it.
    pub id: i32,
}

/// Objects that the uid owns or made: a job may have given its own to another owner, and whoever
/// made one keeps every right to it.
///
/// # Errors
/// If a list cannot be read. Where the kernel has no such objects there is none.
pub fn ipc_of(uid: u32) -> Result<Vec<Ipc>, Errno> {
    let mut found = Vec::new();
    // The columns of the owner's and the maker's uid.
    let rows = [(Kind::Memory, 7, 9), (Kind::Queue, 7, 9), (Kind::Semaphores, 4, 6)];
    for (kind, owner, maker) in rows {
        match std::fs::read_to_string(format!("/proc/sysvipc/{}", kind.name())) {
            Ok(text) => found.extend(ids(&text, uid, owner, maker).map(|id| Ipc { kind, id })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(crate::fault::errno_of(&error)),
        }
    }
    Ok(found)
}

fn ids(text: &str, uid: u32, owner: usize, maker: usize) -> impl Iterator<Item = i32> + '_ {
    text.lines().skip(1).filter_map(move |line| {
        let field = |index| line.split_whitespace().nth(index);
        let is = |index| field(index).and_then(|field| field.parse().ok()) == Some(uid);
        (is(owner) || is(maker)).then(|| field(1)?.parse().ok())?
    })
}

/// Removes them. Only their owner, their maker or CAP_SYS_ADMIN may, so that the helper does it.
/// Its processes must be dead.
///
/// # Errors
/// If the lists cannot be read or the helper cannot be had. What remains is in the result.
pub fn remove_ipc(uid: u32) -> Result<Vec<Ipc>, Errno> {
    let found = ipc_of(uid)?;
    if found.is_empty() {
        return Ok(found);
    }
    let until = Instant::now() + REMOVING_MAX;
    StandIn::hold(until)?.act(uid, until, || {
        for object in &found {
            let _ = ipc::remove(object.kind, object.id);
        }
    })?;
    ipc_of(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_and_maker_are_found_in_their_columns() {
        let shm = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid\n\
                            0          3  1600               4096   100   100      0 59001     5     6     7\n\
                            0          4  1600               4096   100   100      0     5     5 59001     7\n\
                            0      59001  1600              59001 59001 59001  59001     5 59001     6 59001\n";
        assert_eq!(ids(shm, 59001, 7, 9).collect::<Vec<_>>(), [3, 4]);
        let sem = "       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime\n\
                            0          9   600          1 59001     0     0     0          0          1\n";
        assert_eq!(ids(sem, 59001, 4, 6).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn objects_of_the_uid_are_removed() {
        use std::os::unix::process::CommandExt;
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: it makes objects of another uid");
        let lease = crate::uids::lease(|_| false).expect("a uid");
        for what in ["-M4096", "-Q", "-S3"] {
            let made = std::process::Command::new("ipcmk").arg(what).uid(lease.uid).gid(lease.uid).output();
            assert!(made.expect("ipcmk runs").status.success());
        }
        assert_eq!(ipc_of(lease.uid).map(|found| found.len()), Ok(3));
        assert_eq!(remove_ipc(lease.uid), Ok(Vec::new()));
    }
}
