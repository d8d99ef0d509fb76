//! Removing System V objects: shmctl(2), msgctl(2), semctl(2).

use nix::errno::Errno;

use super::check;

/// The three kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A shared memory segment.
    Memory,
    /// A message queue.
    Queue,
    /// A set of semaphores.
    Semaphores,
}

impl Kind {
    /// What the kernel calls its list in /proc/sysvipc: sysvipc(7).
    pub fn name(self) -> &'static str {
        match self {
            Kind::Memory => "shm",
            Kind::Queue => "msg",
            Kind::Semaphores => "sem",
        }
    }
}

/// IPC_RMID.
///
/// # Errors
/// EPERM unless the caller's effective uid is the owner's or the maker's.
pub fn remove(kind: Kind, id: i32) -> Result<(), Errno> {
    let result = match kind {
        // SAFETY: IPC_RMID ignores the buffer.
        Kind::Memory => unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
        // SAFETY: as above.
        Kind::Queue => unsafe { libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) },
        // SAFETY: IPC_RMID ignores the number of the semaphore and takes no argument.
        Kind::Semaphores => unsafe { libc::semctl(id, 0, libc::IPC_RMID) },
    };
    check(result.into()).map(drop)
}
