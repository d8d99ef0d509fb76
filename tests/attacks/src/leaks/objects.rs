//! Objects of the kernel that one job makes and another may find.

use std::fs;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::unistd::{setsid, Pid};

use crate::tools::{
    any, broke, child, end_of, held, ignore, leave, other_processes, raw, ready_and_wait, refused, sleep_ms,
    Attempt, Role,
};

/// What is sent.
const MESSAGE: &[u8] = b"attack-message";
/// By which System V objects are found.
const KEY: i32 = 0x6174_7461;
const EVERYBODY: i32 = 0o666;

/// For what was made: stays with it, if the other one comes while it does; else says what was left.
fn left(made: nix::Result<()>, beside: bool) -> Attempt {
    match made {
        Ok(()) if beside => ready_and_wait(),
        Ok(()) => held("left it"),
        Err(error) => held(error),
    }
}

fn got(received: nix::Result<Vec<u8>>, what: &str) -> Attempt {
    match received {
        Ok(bytes) if bytes == MESSAGE => broke(what),
        Ok(_) => held("not what was sent"),
        Err(error) => held(error),
    }
}

mod segment {
    use super::*;

    fn attach(flags: i32) -> nix::Result<(libc::c_long, *mut u8)> {
        // SAFETY: shmget(2) takes numbers.
        let id = raw(unsafe { libc::syscall(libc::SYS_shmget, KEY, 4096, EVERYBODY | flags) })?;
        // SAFETY: the segment is attached where the kernel chooses.
        let at = raw(unsafe { libc::syscall(libc::SYS_shmat, id, 0, 0) })?;
        Ok((id, at as *mut u8))
    }

    pub(super) fn send() -> nix::Result<()> {
        let (_, at) = attach(libc::IPC_CREAT)?;
        // SAFETY: the segment has a page, the message less.
        unsafe { at.copy_from_nonoverlapping(MESSAGE.as_ptr(), MESSAGE.len()) };
        Ok(())
    }

    pub(super) fn receive() -> nix::Result<Vec<u8>> {
        let (id, at) = attach(0)?;
        // SAFETY: the segment stays attached, and has a page.
        let bytes = unsafe { std::slice::from_raw_parts(at, MESSAGE.len()) }.to_vec();
        // SAFETY: it goes when the last process leaves it; only its owner may.
        unsafe { libc::syscall(libc::SYS_shmctl, id, libc::IPC_RMID, 0) };
        Ok(bytes)
    }
}

fn segments(role: Role, beside: bool) -> Attempt {
    match role {
        Role::Accomplice => left(segment::send(), beside),
        Role::Attacker => got(segment::receive(), "reads a segment of another job"),
    }
}

pub(super) fn segments_after(role: Role) -> Attempt {
    segments(role, false)
}

pub(super) fn segments_beside(role: Role) -> Attempt {
    segments(role, true)
}

mod queue {
    use super::*;

    /// The name, as the system call wants it.
    const NAME: &std::ffi::CStr = c"attack-queue";

    fn open(flags: i32) -> nix::Result<libc::c_long> {
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        // SAFETY: the name ends with a NUL byte; no attributes are given.
        raw(unsafe { libc::syscall(libc::SYS_mq_open, NAME.as_ptr(), flags, EVERYBODY, 0) })
    }

    pub(super) fn send() -> nix::Result<()> {
        let queue = open(libc::O_CREAT | libc::O_RDWR | libc::O_NONBLOCK)?;
        // SAFETY: the message is as long as is said.
        let sent =
            unsafe { libc::syscall(libc::SYS_mq_timedsend, queue, MESSAGE.as_ptr(), MESSAGE.len(), 0, 0) };
        raw(sent).map(drop)
    }

    pub(super) fn receive() -> nix::Result<Vec<u8>> {
        let queue = open(libc::O_RDONLY | libc::O_NONBLOCK)?;
        let mut buffer = [0_u8; 65536];
        // SAFETY: the buffer is as long as is said.
        let received = unsafe {
            libc::syscall(libc::SYS_mq_timedreceive, queue, buffer.as_mut_ptr(), buffer.len(), 0, 0)
        };
        // SAFETY: the name ends with a NUL byte.
        unsafe { libc::syscall(libc::SYS_mq_unlink, NAME.as_ptr()) };
        let count = raw(received)?.try_into().unwrap_or(0);
        Ok(buffer[..count].to_vec())
    }
}

fn queues(role: Role, beside: bool) -> Attempt {
    match role {
        Role::Accomplice => left(queue::send(), beside),
        Role::Attacker => got(queue::receive(), "reads a queue of another job"),
    }
}

pub(super) fn queues_after(role: Role) -> Attempt {
    queues(role, false)
}

pub(super) fn queues_beside(role: Role) -> Attempt {
    queues(role, true)
}

mod keyring {
    use super::*;

    const NAME: &std::ffi::CStr = c"attack-key";
    const USER: &std::ffi::CStr = c"user";
    /// The keyrings of a uid and of its sessions, and the one that is inherited (keyctl(2)).
    const RINGS: [i32; 3] = [-4, -5, -3];
    const LINK: i32 = 8;
    const SEARCH: i32 = 10;
    const READ: i32 = 11;
    const UNLINK: i32 = 9;
    const SET_TIMEOUT: i32 = 15;

    /// Keys of a keyring that the own one leads to are possessed, and can be read.
    fn possess() {
        for ring in RINGS {
            // SAFETY: numbers. The last one is the own.
            unsafe { libc::syscall(libc::SYS_keyctl, LINK, ring, -3) };
        }
    }

    pub(super) fn send() -> nix::Result<()> {
        possess();
        let mut result = Err(Errno::ENOKEY);
        for ring in RINGS {
            // SAFETY: both names end with a NUL byte; the message is as long as is said.
            let added = raw(unsafe {
                libc::syscall(
                    libc::SYS_add_key,
                    USER.as_ptr(),
                    NAME.as_ptr(),
                    MESSAGE.as_ptr(),
                    MESSAGE.len(),
                    ring,
                )
            });
            result = match added {
                Ok(key) => {
                    // SAFETY: numbers. Nothing should be left for long, if that can be said.
                    unsafe { libc::syscall(libc::SYS_keyctl, SET_TIMEOUT, key, 20) };
                    Ok(key)
                }
                Err(error) => result.or(Err(error)),
            };
        }
        result.map(drop)
    }

    pub(super) fn receive() -> nix::Result<Vec<u8>> {
        possess();
        let mut result = Err(Errno::ENOKEY);
        for ring in RINGS {
            // SAFETY: both names end with a NUL byte.
            let found = raw(unsafe {
                libc::syscall(libc::SYS_keyctl, SEARCH, ring, USER.as_ptr(), NAME.as_ptr(), 0)
            });
            match found {
                Ok(key) => {
                    let mut buffer = [0_u8; 64];
                    // SAFETY: the buffer is as long as is said.
                    let read = unsafe {
                        libc::syscall(libc::SYS_keyctl, READ, key, buffer.as_mut_ptr(), buffer.len())
                    };
                    // SAFETY: numbers.
                    unsafe { libc::syscall(libc::SYS_keyctl, UNLINK, key, ring) };
                    result = raw(read).map(|count| buffer[..count.try_into().unwrap_or(0)].to_vec());
                }
                Err(error) => result = result.or(Err(error)),
            }
        }
        result
    }
}

fn keys(role: Role, beside: bool) -> Attempt {
    match role {
        Role::Accomplice => left(keyring::send(), beside),
        Role::Attacker => got(keyring::receive(), "reads a key of another job"),
    }
}

pub(super) fn keys_after(role: Role) -> Attempt {
    keys(role, false)
}

pub(super) fn keys_beside(role: Role) -> Attempt {
    keys(role, true)
}

fn abstract_name() -> std::io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(MESSAGE)
}

pub(super) fn abstract_sockets(role: Role) -> Attempt {
    if role == Role::Accomplice {
        return match abstract_name().and_then(|name| UnixListener::bind_addr(&name)) {
            Ok(listener) => {
                crate::tools::ready();
                serve(&listener)
            }
            Err(error) => held(error),
        };
    }
    let mut text = Vec::new();
    let stream = abstract_name().and_then(|name| UnixStream::connect_addr(&name));
    match stream.and_then(|mut stream| stream.read_to_end(&mut text)) {
        Ok(_) if text == MESSAGE => broke("reads from an abstract socket of another job"),
        Ok(_) => held("not what was sent"),
        Err(error) => held(error),
    }
}

fn serve(listener: &UnixListener) -> ! {
    for stream in listener.incoming().flatten() {
        let mut stream = stream;
        ignore(stream.write_all(MESSAGE));
    }
    crate::tools::pause_for_ever()
}

/// `sockaddr_vm` of `VMADDR_CID_LOCAL` or, to be bound to, of any.
fn vsock_address(cid: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK.try_into().unwrap_or(0),
        svm_reserved1: 0,
        svm_port: 59_000,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}

fn vsock(cid: u32, call: libc::c_long) -> nix::Result<libc::c_long> {
    // SAFETY: socket(2) takes numbers.
    let fd = raw(unsafe {
        libc::syscall(libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)
    })?;
    let address = vsock_address(cid);
    // SAFETY: the address is as long as is said, and lives longer than the call.
    raw(unsafe { libc::syscall(call, fd, &raw const address, size_of::<libc::sockaddr_vm>()) })?;
    Ok(fd)
}

pub(super) fn vsocks(role: Role) -> Attempt {
    match role {
        Role::Accomplice => {
            let listening = vsock(libc::VMADDR_CID_ANY, libc::SYS_bind).and_then(|fd| {
                // SAFETY: listen(2) takes numbers.
                raw(unsafe { libc::syscall(libc::SYS_listen, fd, 8) })
            });
            left(listening.map(drop), true)
        }
        Role::Attacker => refused(
            vsock(libc::VMADDR_CID_LOCAL, libc::SYS_connect),
            "is connected by vsock to a job beside it",
        ),
    }
}

fn is_of_attack(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("uid-reuse"))
}

/// A process outlives its job; the next job, which may have the same uid, could signal and trace it.
pub(super) fn outlives(role: Role) -> Attempt {
    if role == Role::Accomplice {
        let daemon = child(|| {
            ignore(setsid());
            ignore(child(|| {
                // Not for ever, should nobody find it.
                sleep_ms(10_000);
                leave(0)
            }));
        });
        return match daemon.and_then(end_of) {
            Ok(_) => held("left a process"),
            Err(error) => held(error),
        };
    }
    let found = other_processes().into_iter().filter(|pid| is_of_attack(*pid));
    any([held("no process of another job with this uid")].into_iter().chain(found.map(|pid| {
        let pid = Pid::from_raw(pid);
        let reached = refused(kill(pid, None), "may signal a process that outlived its job");
        ignore(kill(pid, Signal::SIGKILL));
        reached
    })))
}
