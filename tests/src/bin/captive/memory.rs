//! Memory: taken by one process, by many, and in the places that no process's size shows.

use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;

use nix::sys::mman::{mmap_anonymous, MapFlags, ProtFlags};
use nix::unistd::pipe;

use crate::answer::{child, errno_of, number, Answer};
use crate::clock::sleep;

const MIB: usize = 1 << 20;

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    Some(match words {
        ["allocate", mib] => touch(number(mib), MapFlags::MAP_PRIVATE),
        ["allocate-shared", mib] => touch(number(mib), MapFlags::MAP_SHARED),
        ["allocate-split", count, mib] => split(number(count), number(mib)),
        ["allocate-memfd", count, mib] => memfds(number(count), number(mib)),
        ["allocate-sockets", mib] => sockets(number(mib)),
        ["allocate-in-flight", count, mib] => in_flight(number(count), number(mib)),
        // What it does then, /proc shows to nobody but root.
        ["undumpable", words @ ..] => match nix::sys::prctl::set_dumpable(false) {
            Ok(()) => return crate::attempt(words),
            Err(errno) => Err(errno),
        },
        _ => return None,
    })
}

/// Maps that much and writes to every page.
fn touch(mib: usize, flags: MapFlags) -> Answer {
    let length = NonZeroUsize::new(mib * MIB).expect("more than nothing");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping of the kernel's choice overlaps nothing.
    let start = unsafe { mmap_anonymous(None, length, access, flags) }?.cast::<u8>();
    for page in (0..length.get()).step_by(4096) {
        // SAFETY: `page` lies inside the mapping, which is writable and ours alone.
        unsafe { start.add(page).write_volatile(1) };
    }
    Ok(String::new())
}

/// As many children hold that much each, all at once.
fn split(count: usize, mib: usize) -> Answer {
    let (ready_rx, ready_tx) = pipe()?;
    for _ in 0..count {
        let mut ready = std::fs::File::from(ready_tx.try_clone().map_err(|error| errno_of(&error))?);
        child(move || {
            drop(touch(mib, MapFlags::MAP_PRIVATE));
            drop(ready.write_all(b"."));
            sleep(u64::MAX);
        })?;
    }
    let mut ready = vec![0; count];
    std::fs::File::from(ready_rx).read_exact(&mut ready).map_err(|error| errno_of(&error))?;
    Ok(String::new())
}

/// Files in memory that no directory shows, kept open.
fn memfds(count: usize, mib: usize) -> Answer {
    let block = vec![1_u8; MIB];
    let mut open = Vec::new();
    for _ in 0..count {
        let memfd = nix::sys::memfd::memfd_create("captive", nix::sys::memfd::MFdFlags::empty())?;
        let mut file = std::fs::File::from(memfd);
        for _ in 0..mib {
            file.write_all(&block).map_err(|error| errno_of(&error))?;
        }
        open.push(file);
    }
    Ok(String::new())
}

/// Files in memory that no descriptor shows: each is on the way through a socket.
fn in_flight(count: usize, mib: usize) -> Answer {
    use nix::sys::socket::{
        sendmsg, socketpair, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType,
    };
    let block = vec![1_u8; MIB];
    let (one, _two) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::empty())?;
    for _ in 0..count {
        let memfd = nix::sys::memfd::memfd_create("captive", nix::sys::memfd::MFdFlags::empty())?;
        let file = std::fs::File::from(memfd);
        let fds = [file.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&fds)];
        let data = [std::io::IoSlice::new(b".")];
        sendmsg::<()>(one.as_raw_fd(), &data, &message, MsgFlags::empty(), None)?;
        for _ in 0..mib {
            (&file).write_all(&block).map_err(|error| errno_of(&error))?;
        }
    }
    Ok(String::new())
}

/// Bytes in socket buffers: 16 KiB a write, until that much is in flight.
fn sockets(mib: usize) -> Answer {
    use nix::sys::socket::{setsockopt, socketpair, sockopt::SndBuf, AddressFamily, SockFlag, SockType};
    let block = vec![1_u8; 16 << 10];
    let (mut open, mut sent) = (Vec::new(), 0);
    while sent < mib * MIB {
        let flags = SockFlag::SOCK_NONBLOCK;
        let (one, two) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
        setsockopt(&one, SndBuf, &MIB)?;
        while let Ok(count) = nix::unistd::write(&one, &block) {
            sent += count;
        }
        open.push((one, two));
    }
    Ok(String::new())
}
