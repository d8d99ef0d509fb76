//! Memory, wherever it can be had.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::resource::{setrlimit, Resource};
use nix::sys::socket::{setsockopt, socketpair, sockopt, AddressFamily, SockFlag, SockType};
use nix::unistd::{pipe, read, write};

use crate::tools::{
    broke, broke_for_good, child, held, ignore, leave, pause_for_ever, put_down, raise_limit, raw, refused,
    touch, Attempt, Role,
};

const MEGABYTE: usize = 1 << 20;
/// More than the limit and what the kernel allows beside it for files.
const MUCH: usize = 256 * MEGABYTE;
const CHUNK: usize = 16 * MEGABYTE;

pub(super) fn touches(_: Role) -> Attempt {
    for _ in 0..MUCH / CHUNK {
        if let Err(error) = touch(CHUNK) {
            return held(error);
        }
    }
    broke_for_good("has 256 MB")
}

/// Each process has little; the job has all of it at once.
pub(super) fn spreads(_: Role) -> Attempt {
    let Ok((done, tell)) = pipe() else { return held("no pipe") };
    let mut children = Vec::new();
    for _ in 0..MUCH / CHUNK {
        let holder = child(|| {
            if touch(CHUNK).is_ok() && write(&tell, b"x").is_ok() {
                pause_for_ever();
            }
            leave(1)
        });
        match holder {
            Ok(pid) => children.push(pid),
            Err(error) => {
                put_down(&children);
                return held(error);
            }
        }
    }
    let mut byte = [0];
    let all = children.iter().all(|_| read(&done, &mut byte) == Ok(1));
    let answer =
        if all { broke_for_good("its processes have 256 MB") } else { held("not all had their share") };
    put_down(&children);
    answer
}

pub(super) fn fills_memfds(_: Role) -> Attempt {
    let page = vec![1; MEGABYTE];
    let mut kept = Vec::new();
    for _ in 0..MUCH / CHUNK {
        let mut file = match memfd_create(c"x", MFdFlags::empty()) {
            Ok(fd) => File::from(fd),
            Err(error) => return held(error),
        };
        for _ in 0..CHUNK / MEGABYTE {
            if let Err(error) = file.write_all(&page) {
                return held(error);
            }
        }
        kept.push(file);
    }
    broke_for_good("has 256 MB in memfds")
}

pub(super) fn fills_segments(_: Role) -> Attempt {
    for _ in 0..MUCH / CHUNK {
        // SAFETY: shmget(2) only makes an object.
        let made = raw(unsafe { libc::syscall(libc::SYS_shmget, libc::IPC_PRIVATE, CHUNK, 0o600) });
        let id = match made {
            Ok(id) => id,
            Err(error) => return held(error),
        };
        // SAFETY: the segment is attached where the kernel chooses.
        let at = raw(unsafe { libc::syscall(libc::SYS_shmat, id, 0, 0) });
        // SAFETY: the segment goes when the last process leaves it.
        unsafe { libc::syscall(libc::SYS_shmctl, id, libc::IPC_RMID, 0) };
        let Ok(at) = at else { return held("no place to attach it") };
        for offset in (0..CHUNK).step_by(4096) {
            // SAFETY: the offset is inside the segment, which stays attached.
            unsafe { (at as *mut u8).add(offset).write_volatile(1) };
        }
    }
    broke_for_good("has 256 MB of System V segments")
}

/// Buffers of sockets that nobody reads.
pub(super) fn fills_sockets(_: Role) -> Attempt {
    raise_limit(Resource::RLIMIT_NOFILE);
    let chunk = vec![1_u8; 32 << 10];
    let mut kept: Vec<OwnedFd> = Vec::new();
    let mut total = 0;
    while total < MUCH {
        let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_NONBLOCK);
        let (one, other) = match pair {
            Ok(pair) => pair,
            Err(error) => return held(format_args!("{error} after {} MB", total / MEGABYTE)),
        };
        for end in [&one, &other] {
            ignore(setsockopt(end, sockopt::SndBuf, &MEGABYTE));
            while let Ok(sent) = write(end, &chunk) {
                total += sent;
            }
        }
        kept.extend([one, other]);
    }
    broke_for_good("has 256 MB in socket buffers")
}

pub(super) fn fills_pipes(_: Role) -> Attempt {
    let chunk = vec![1_u8; 64 << 10];
    let mut kept: Vec<OwnedFd> = Vec::new();
    let mut total = 0;
    while total < 48 * MEGABYTE {
        let (reader, writer) = match pipe() {
            Ok(pair) => pair,
            Err(error) => return held(format_args!("{error} after {} MB", total / MEGABYTE)),
        };
        // SAFETY: F_SETPIPE_SZ and F_SETFL take integers.
        unsafe {
            libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, MEGABYTE);
            libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
        }
        while let Ok(sent) = write(&writer, &chunk) {
            total += sent;
        }
        kept.extend([reader, writer]);
    }
    broke_for_good("has 48 MB in pipes")
}

pub(super) fn hides_from_oom(_: Role) -> Attempt {
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open("/proc/self/oom_score_adj")
        .and_then(|mut file| file.write_all(b"-1000"));
    refused(written, "oom_score_adj is -1000")
}

pub(super) fn locks(_: Role) -> Attempt {
    raise_limit(Resource::RLIMIT_MEMLOCK);
    let memory = vec![1_u8; MEGABYTE];
    // SAFETY: the range is that of a vector that lives on.
    let locked = unsafe { libc::mlock(memory.as_ptr().cast(), memory.len()) };
    refused(Errno::result(locked), "locked a megabyte")
}

pub(super) fn recurses(_: Role) -> Attempt {
    // SAFETY: the default is no handler; the runtime's own would call the overflow an abort.
    unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
    // What is in force for the main thread's stack is read when it grows.
    raise_limit(Resource::RLIMIT_STACK);
    ignore(setrlimit(Resource::RLIMIT_STACK, 512 << 20, libc::RLIM_INFINITY));
    broke(format_args!("its stack has {} MB", deeper(64 * MEGABYTE) / MEGABYTE))
}

/// Uses so much stack; the result keeps the calls from being folded into a loop.
#[inline(never)]
fn deeper(bytes: usize) -> usize {
    const FRAME: usize = 32 << 10;
    let frame = std::hint::black_box([1_u8; FRAME]);
    match bytes.checked_sub(FRAME) {
        Some(rest) => deeper(rest) + frame.len(),
        None => usize::from(frame[0]),
    }
}
