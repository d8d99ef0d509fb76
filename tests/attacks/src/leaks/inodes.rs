//! What two jobs can do with a file that both may only read.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::tools::{any, broke, held, raw, ready, ready_and_wait, refused, sleep_ms, Attempt, Role};

/// Files that most machines have, and that every job of a machine sees; the last is no file, but has
/// an inode that all jobs share.
const SHARED: [&str; 7] = [
    "/etc/hostname",
    "/etc/hosts",
    "/etc/profile",
    "/usr/bin/env",
    "/bin/busybox",
    "/init",
    "/proc/self/ns/user",
];

fn shared() -> io::Result<(&'static str, File)> {
    let mut refusal = io::Error::other("no shared file");
    for path in SHARED {
        match File::open(path) {
            Ok(file) => return Ok((path, file)),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

pub(super) fn flock(file: &File, operation: i32) -> nix::Result<libc::c_long> {
    // SAFETY: flock(2) takes a descriptor, which is open.
    raw(unsafe { libc::syscall(libc::SYS_flock, file.as_raw_fd(), operation) })
}

fn locks_whole(role: Role, opened: io::Result<(&'static str, File)>) -> Attempt {
    let (path, file) = match opened {
        Ok(shared) => shared,
        Err(error) => return held(error),
    };
    match (role, flock(&file, libc::LOCK_EX | libc::LOCK_NB)) {
        (Role::Accomplice, Ok(_)) => ready_and_wait(),
        (Role::Attacker, Err(Errno::EWOULDBLOCK)) => {
            broke(format_args!("sees that a job beside it has locked {path}"))
        }
        (Role::Attacker, Ok(_)) => held("nobody has locked it"),
        (_, Err(error)) => held(error),
    }
}

pub(super) fn flocks(role: Role) -> Attempt {
    locks_whole(role, shared())
}

/// Namespaces are files as well, and the one of users is the same for all jobs.
pub(super) fn flocks_namespace(role: Role) -> Attempt {
    let path = "/proc/self/ns/user";
    locks_whole(role, File::open(path).map(|file| (path, file)))
}

/// What is sent: the place of a lock.
pub(super) const MESSAGE: i64 = 0x6174_7461_636b;

/// A lock of one byte at `start`, or the question who has one.
pub(super) fn record(file: &File, command: i32, kind: i32, start: i64, len: i64) -> nix::Result<libc::flock> {
    let mut lock = libc::flock {
        l_type: kind.try_into().unwrap_or(0),
        // SEEK_SET
        l_whence: 0,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the structure is the one that these commands of fcntl(2) read and write.
    raw(unsafe { libc::syscall(libc::SYS_fcntl, file.as_raw_fd(), command, &raw mut lock) })?;
    Ok(lock)
}

fn locks_records(role: Role, set: i32, get: i32) -> Attempt {
    let (path, file) = match shared() {
        Ok(shared) => shared,
        Err(error) => return held(error),
    };
    if role == Role::Accomplice {
        return match record(&file, set, libc::F_RDLCK, MESSAGE, 1) {
            Ok(_) => ready_and_wait(),
            Err(error) => held(error),
        };
    }
    // Locks with a file that may only be read are shared; who asks for another kind is told of them.
    match record(&file, get, libc::F_WRLCK, 1 << 40, 0) {
        Ok(lock) if lock.l_start == MESSAGE => {
            broke(format_args!("reads a number off a lock that a job beside it has on {path}"))
        }
        Ok(_) => held("nobody has locked it"),
        Err(error) => held(error),
    }
}

pub(super) fn locks_posix(role: Role) -> Attempt {
    locks_records(role, libc::F_SETLK, libc::F_GETLK)
}

pub(super) fn locks_ofd(role: Role) -> Attempt {
    locks_records(role, libc::F_OFD_SETLK, libc::F_OFD_GETLK)
}

/// Command of fcntl(2) that stalls whoever opens the file for writing.
pub(super) fn leases(_: Role) -> Attempt {
    let (path, file) = match shared() {
        Ok(shared) => shared,
        Err(error) => return held(error),
    };
    // SAFETY: the argument is a number.
    let leased =
        raw(unsafe { libc::syscall(libc::SYS_fcntl, file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) });
    refused(leased, &format!("has a lease on {path}"))
}

/// A directory that jobs share.
fn directories() -> impl Iterator<Item = File> {
    ["/etc", "/usr/bin", "/bin", "/"].into_iter().filter_map(|path| File::open(path).ok())
}

pub(super) fn notifies(_: Role) -> Attempt {
    /// `DN_ACCESS`, which nix and libc do not name for this target.
    const ACCESS: i32 = 1;
    any(directories().map(|folder| {
        // SAFETY: the argument is a number. The signal that would come is of no harm: it is ignored.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        // SAFETY: as above.
        let watched =
            raw(unsafe { libc::syscall(libc::SYS_fcntl, folder.as_raw_fd(), libc::F_NOTIFY, ACCESS) });
        refused(watched, "watches a directory of the machine by F_NOTIFY")
    }))
}

pub(super) fn watches_mounts(_: Role) -> Attempt {
    // SAFETY: fanotify_init(2) takes numbers; with FAN_REPORT_FID everybody may have a group.
    let group = raw(unsafe { libc::syscall(libc::SYS_fanotify_init, libc::FAN_REPORT_FID, libc::O_RDONLY) });
    refused(group, "has a group of fanotify(7)")
}

fn opens_again_and_again(path: &Path) -> ! {
    ready();
    loop {
        crate::tools::ignore(File::open(path));
        sleep_ms(5);
    }
}

/// Events come to whoever watches an inode, by whatever mount it was opened.
pub(super) fn watches(role: Role) -> Attempt {
    let (path, _) = match shared() {
        Ok(shared) => shared,
        Err(error) => return held(error),
    };
    if role == Role::Accomplice {
        opens_again_and_again(Path::new(path));
    }
    let watch = match inotify(path) {
        Ok(watch) => watch,
        Err(error) => return held(error),
    };
    for _ in 0..100 {
        // SAFETY: the descriptor is open, and nobody else has it.
        let mut file = File::from(match watch.try_clone() {
            Ok(fd) => fd,
            Err(error) => return held(error),
        });
        match file.read(&mut [0; 4096]) {
            Ok(_) => return broke(format_args!("is told when a job beside it opens {path}")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep_ms(10),
            Err(error) => return held(error),
        }
    }
    held("no event comes")
}

fn inotify(path: &str) -> nix::Result<OwnedFd> {
    let name = std::ffi::CString::new(path).unwrap_or_default();
    // SAFETY: inotify_init1(2) takes a number.
    let fd = raw(unsafe { libc::syscall(libc::SYS_inotify_init1, libc::IN_NONBLOCK | libc::IN_CLOEXEC) })?;
    // SAFETY: the descriptor was just made, and is owned by nobody yet.
    let watch = unsafe { OwnedFd::from_raw_fd(fd.try_into().unwrap_or(-1)) };
    // SAFETY: the name ends with a NUL byte.
    let added = unsafe {
        libc::syscall(libc::SYS_inotify_add_watch, watch.as_raw_fd(), name.as_ptr(), libc::IN_OPEN)
    };
    raw(added).map(|_| watch)
}

/// A file that jobs share.
fn shared_file() -> io::Result<(&'static str, File)> {
    shared().and_then(|(path, file)| match path.starts_with("/proc") {
        true => Err(io::Error::other("no shared file")),
        false => Ok((path, file)),
    })
}

fn map(file: &File, protection: i32) -> nix::Result<*mut libc::c_void> {
    let (sharing, fd) = (libc::MAP_SHARED, file.as_raw_fd());
    // SAFETY: a new mapping of the kernel's choice touches nothing that is there.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, sharing, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(start)
}

/// Every way to write to what another sees of a file; nothing is written.
pub(super) fn writes_shared(_: Role) -> Attempt {
    let (path, file) = match shared_file() {
        Ok(shared) => shared,
        Err(error) => return held(error),
    };
    // Mapped for reading, it may not become writable.
    let late = map(&file, libc::PROT_READ).and_then(|start| {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the page is our own mapping, which nothing else uses.
        raw(unsafe { libc::syscall(libc::SYS_mprotect, start, 4096, both) })
    });
    any([
        refused(File::options().write(true).open(path), &format!("may write to {path}")),
        refused(map(&file, libc::PROT_READ | libc::PROT_WRITE), &format!("has {path} mapped to write to it")),
        refused(late, &format!("may write to its mapping of {path}")),
    ])
}

/// Mode and times are seen by everybody; they are set to what they are.
pub(super) fn changes_shared(_: Role) -> Attempt {
    let (path, file) = match shared_file() {
        Ok(shared) => shared,
        Err(error) => return held(error),
    };
    let Ok(meta) = file.metadata() else { return held("nothing is known of it") };
    let mode = fs::Permissions::from_mode(meta.mode() & 0o7777);
    let time = meta.modified().map(|time| fs::FileTimes::new().set_modified(time));
    any([
        refused(file.set_permissions(mode), &format!("sets the mode of {path}")),
        refused(time.and_then(|time| file.set_times(time)), &format!("sets the time of {path}")),
    ])
}

const PAGE: u64 = 4096;
/// Far apart, so that no reading ahead brings one with the other.
const PAGES: [u64; 2] = [16 * PAGE, 512 * PAGE];

/// A large file that jobs share: the largest in the usual places.
fn large() -> Option<PathBuf> {
    let folders = ["/usr/bin", "/usr/lib", "/usr/libexec", "/bin", "/opt", "/etc"];
    let files = folders.into_iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
    let sized = files.filter_map(|entry| {
        let meta = entry.metadata().ok().filter(|meta| meta.is_file() && meta.len() > 4 << 20)?;
        File::open(entry.path()).ok()?;
        Some((meta.len(), entry.path()))
    });
    sized.max().map(|(_, path)| path)
}

/// Whether the page is in memory: preadv2(2) with RWF_NOWAIT waits for no disk.
fn is_cached(file: &File, offset: u64) -> nix::Result<bool> {
    let mut byte = [0_u8; 1];
    let iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let offset = offset.try_into().unwrap_or(0);
    // SAFETY: the vector names one byte that lives longer than the call.
    let count = unsafe { libc::preadv2(file.as_raw_fd(), &raw const iov, 1, offset, libc::RWF_NOWAIT) };
    match Errno::result(count) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

fn advise(file: &File, offset: u64, len: u64, advice: i32) {
    let number = |value: u64| value.try_into().unwrap_or(0);
    // SAFETY: posix_fadvise(2) takes numbers, and changes nothing but what is cached.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), number(offset), number(len), advice) };
}

/// The sender reads one of two pages of a file; the receiver has both dropped and sees which comes back.
pub(super) fn sees_cache(role: Role) -> Attempt {
    let opened = large().and_then(|path| File::open(&path).ok().map(|file| (path, file)));
    let Some((path, file)) = opened else { return held("there is no large file to share") };
    advise(&file, 0, 0, libc::POSIX_FADV_RANDOM);
    let [sent, silent] = PAGES;
    if role == Role::Accomplice {
        ready();
        loop {
            crate::tools::ignore(file.read_at(&mut [0], sent));
            sleep_ms(2);
        }
    }
    let mut seen = held("both pages stay as they are");
    for _ in 0..40 {
        for page in PAGES {
            advise(&file, page, PAGE, libc::POSIX_FADV_DONTNEED);
        }
        sleep_ms(20);
        match (is_cached(&file, sent), is_cached(&file, silent)) {
            (Ok(true), Ok(false)) => {
                return broke(format_args!("sees which page of {} a job beside it reads", path.display()))
            }
            (Err(error), _) | (_, Err(error)) => seen = held(error),
            _ => {}
        }
    }
    seen
}
