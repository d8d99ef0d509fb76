//! What the driver makes while init makes its namespaces, and hands to it then: descriptors, in
//! one message over a socket pair (unix(7), SCM_RIGHTS).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    recvmsg, sendmsg, socketpair, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
    SockType,
};

/// More descriptors than are ever handed over: one for each part of the storage and each
/// controller, and three more.
const MOST: usize = 32;

/// The descriptors.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// The job's cgroup, with v2: it is created there.
    pub(super) clone_into: Option<OwnedFd>,
    /// The files through which the job enters its cgroups, with v1.
    pub(super) attach: Vec<OwnedFd>,
    /// The storage itself, if this job is the last to use it; see [`super::mounts`].
    pub(super) storage: Option<OwnedFd>,
    /// What the job's root is put together on.
    pub(super) frame: Option<OwnedFd>,
    /// The parts of the storage, in the order of the layout.
    pub(super) parts: Vec<OwnedFd>,
}

/// Both ends: the driver's, and init's.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

impl Given {
    /// Sends them.
    pub(super) fn send(&self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        let groups: [&[OwnedFd]; 5] = [
            self.clone_into.as_slice(),
            &self.attach,
            self.storage.as_slice(),
            self.frame.as_slice(),
            &self.parts,
        ];
        let counts = groups.map(|group| u8::try_from(group.len()).unwrap_or(u8::MAX));
        let fds: Vec<RawFd> = groups.iter().flat_map(|group| group.iter()).map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&counts)], rights, MsgFlags::MSG_NOSIGNAL, None)
            .map(drop)
    }

    /// Waits for them; `None` if the driver gave up, or died.
    pub(super) fn receive(from: BorrowedFd<'_>) -> Result<Option<Given>, Errno> {
        let mut counts = [0; 5];
        let mut space = nix::cmsg_space!([RawFd; MOST]);
        let mut data = [IoSliceMut::new(&mut counts)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(from.as_raw_fd(), &mut data, Some(&mut space), flags)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                fds.extend(received.into_iter().map(crate::sys::fd::received));
            }
        }
        if message.bytes != counts.len() {
            return Ok(None);
        }
        let mut fds = fds.into_iter();
        let mut group = |index: usize| fds.by_ref().take(usize::from(counts[index])).collect::<Vec<_>>();
        let given = Given {
            clone_into: group(0).pop(),
            attach: group(1),
            storage: group(2).pop(),
            frame: group(3).pop(),
            parts: group(4),
        };
        Ok(Some(given))
    }

    /// Where the parent of the job creates it.
    pub(super) fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.clone_into.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("/dev/null").into()
    }

    #[test]
    fn what_is_sent_arrives_in_its_place() {
        let (driver, init) = pair().expect("socketpair");
        let given = Given { attach: vec![null(), null()], frame: Some(null()), ..Given::default() };
        given.send(driver.as_fd()).expect("sent");
        let got = Given::receive(init.as_fd()).expect("received").expect("whole");
        assert!(got.clone_into.is_none() && got.storage.is_none() && got.frame.is_some());
        assert_eq!((got.attach.len(), got.parts.len()), (2, 0));
        drop(driver);
        assert!(Given::receive(init.as_fd()).expect("end").is_none());
    }
}
