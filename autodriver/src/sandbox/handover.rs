//! What the driver makes while init makes its namespaces, and hands to it then: descriptors, in two
//! messages over a socket pair (unix(7), SCM_RIGHTS). With the first init makes the job's mounts, while
//! the driver makes the cgroup that is the second.

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

/// What the job's mounts are made of.
#[derive(Debug, Default)]
pub(super) struct Furniture {
    /// The storage itself, if this job is the last to use it; see [`super::mounts`].
    pub(super) storage: Option<OwnedFd>,
    /// What the job's root is put together on.
    pub(super) frame: Option<OwnedFd>,
    /// The parts of the storage, in the order of the layout.
    pub(super) parts: Vec<OwnedFd>,
    /// The driver's own namespaces that init has to have left, by their inodes, in the order of
    /// [`NAMESPACES`](super::read_back::NAMESPACES); 0 is none.
    pub(super) left: [u64; 5],
}

/// How the job gets into its cgroup.
#[derive(Debug, Default)]
pub(super) struct Entrance {
    /// The directory, with v2: it is created there.
    pub(super) clone_into: Option<OwnedFd>,
    /// The files through which it enters, with v1.
    pub(super) attach: Vec<OwnedFd>,
}

/// Both ends: the driver's, and init's.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

impl Furniture {
    /// Sends it.
    pub(super) fn send(&self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        send(to, [self.storage.as_slice(), self.frame.as_slice(), &self.parts], self.left)
    }

    /// Waits for it; `None` if the driver gave up, or died.
    pub(super) fn receive(from: BorrowedFd<'_>) -> Result<Option<Furniture>, Errno> {
        let received = receive(from)?;
        Ok(received.map(|([mut storage, mut frame, parts], left)| Furniture {
            storage: storage.pop(),
            frame: frame.pop(),
            parts,
            left,
        }))
    }
}

impl Entrance {
    /// Sends it.
    pub(super) fn send(&self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        send(to, [self.clone_into.as_slice(), &self.attach], [])
    }

    /// As [`Furniture::receive`].
    pub(super) fn receive(from: BorrowedFd<'_>) -> Result<Option<Entrance>, Errno> {
        let received = receive(from)?;
        Ok(received.map(|([mut clone_into, attach], [])| Entrance { clone_into: clone_into.pop(), attach }))
    }

    /// Where the parent of the job creates it.
    pub(super) fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.clone_into.as_ref().map(AsFd::as_fd)
    }
}

/// Sends groups of descriptors, how many each has, and numbers.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send<const N: usize, const W: usize>(
    to: BorrowedFd<'_>,
    groups: [&[OwnedFd]; N],
    numbers: [u64; W],
) -> Result<(), Errno> {
    let counts = groups.map(|group| u8::try_from(group.len()).unwrap_or(u8::MAX));
    let numbers = numbers.map(u64::to_ne_bytes);
    let fds: Vec<RawFd> = groups.iter().flat_map(|group| group.iter()).map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    let data = [IoSlice::new(&counts), IoSlice::new(numbers.as_flattened())];
    sendmsg::<()>(to.as_raw_fd(), &data, rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// What [`send`] sends.
type Sent<const N: usize, const W: usize> = ([Vec<OwnedFd>; N], [u64; W]);

/// As it was sent; `None` at the end.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive<const N: usize, const W: usize>(from: BorrowedFd<'_>) -> Result<Option<Sent<N, W>>, Errno> {
    let (mut counts, mut numbers) = ([0; N], [[0; 8]; W]);
    let mut space = nix::cmsg_space!([RawFd; MOST]);
    let mut data = [IoSliceMut::new(&mut counts), IoSliceMut::new(numbers.as_flattened_mut())];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut data, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            fds.extend(received.into_iter().map(crate::sys::fd::received));
        }
    }
    if message.bytes != N + 8 * W {
        return Ok(None);
    }
    let mut fds = fds.into_iter();
    let groups = counts.map(|count| fds.by_ref().take(usize::from(count)).collect());
    Ok(Some((groups, numbers.map(u64::from_ne_bytes))))
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
        let furniture =
            Furniture { frame: Some(null()), left: [1, 2, 0, u64::MAX, 5], ..Furniture::default() };
        furniture.send(driver.as_fd()).expect("sent");
        let entrance = Entrance { attach: vec![null(), null()], ..Entrance::default() };
        entrance.send(driver.as_fd()).expect("sent");
        let got = Furniture::receive(init.as_fd()).expect("received").expect("whole");
        assert!(got.storage.is_none() && got.frame.is_some() && got.parts.is_empty());
        assert_eq!(got.left, furniture.left);
        let got = Entrance::receive(init.as_fd()).expect("received").expect("whole");
        assert_eq!((got.clone_into.is_some(), got.attach.len()), (false, 2));
        drop(driver);
        assert!(Entrance::receive(init.as_fd()).expect("end").is_none());
    }
}
