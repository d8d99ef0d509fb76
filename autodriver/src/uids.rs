//! Uids for jobs: a range, one for each running job, leased by a lock on one byte of a file
//! (fcntl(2), open file description locks). The kernel drops the lock when the driver dies,
//! however it dies; the driver's pid that stays in the file then is how the next driver, or
//! `autodriver restore`, knows whose traces to look for.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{fcntl, openat, FcntlArg, OFlag, AT_FDCWD};
use nix::sys::stat::{fstat, mkdirat, Mode};

use crate::fault::{errno_of, Fault, Step};

/// First uid of the range: the top of what Debian and systemd leave to ordinary users, where no
/// `adduser` arrives in practice. Accounts found there are passed over.
pub const FIRST: u32 = 59_000;
/// Last uid of the range.
pub const LAST: u32 = 59_999;
/// A uid that no job and no account has: next to the range, below those that systemd-homed gives
/// (60001 and up), and never given by Debian. Whoever acts with a job's uid from outside of the job
/// has it for a real one, while holding its lock: `sandbox::sweep`.
pub const STAND_IN: u32 = LAST + 1;
/// The state directory; root's, mode 0700.
pub const DIRECTORY: &str = "/run/autodriver";
/// In it: for each uid of the range the pid of the driver that leases it, or 0, as four bytes in
/// the machine's order; and the locks, on the byte whose offset is the uid.
const FILE: &str = "uids";

/// `F_WRLCK`, whose type in libc is too wide for the field it is for.
const WRITE_LOCK: libc::c_short = 1;

/// Bytes of a record.
const RECORD: usize = size_of::<u32>();

/// A uid that no other running job has. When it is dropped its record is cleared.
#[derive(Debug)]
pub struct Lease {
    /// The uid, and the gid.
    pub uid: u32,
    /// Holds the lock.
    table: File,
    /// Where its record is, to be cleared.
    record: Option<u64>,
    /// The last holder was killed, and what it left has not been looked for.
    inherited: bool,
}

fn fault(act: impl Into<String>) -> impl Fn(Errno) -> Fault {
    let act = act.into();
    move |errno| Fault::new(Step::Uid, act.clone(), errno)
}

/// Opens the table, made if missing. Every lease has a description of its own: locks of one and
/// the same do not exclude each other.
fn table() -> Result<File, Fault> {
    let failed = fault(format!("use {DIRECTORY}"));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || openat(AT_FDCWD, DIRECTORY, flags, Mode::empty());
    let directory = match open() {
        Err(Errno::ENOENT) => {
            make_directories().map_err(&failed)?;
            open()
        }
        opened => opened,
    };
    let directory = directory.map_err(&failed)?;
    let stat = fstat(&directory).map_err(&failed)?;
    if stat.st_uid != nix::unistd::geteuid().as_raw() || stat.st_mode & 0o022 != 0 {
        let why = format!("owner {} and mode {:o}; remove it", stat.st_uid, stat.st_mode & 0o7777);
        return Err(Fault::refused(Step::Uid, format!("trust {DIRECTORY}"), why));
    }
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(directory.as_fd(), FILE, flags, Mode::from_bits_truncate(0o600));
    Ok(File::from(file.map_err(fault(format!("open {DIRECTORY}/{FILE}")))?))
}

fn make_directories() -> Result<(), Errno> {
    for (path, mode) in [("/run", 0o755), (DIRECTORY, 0o700)] {
        match mkdirat(AT_FDCWD, path, Mode::from_bits_truncate(mode)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Whether a uid is of the range.
pub fn is_leasable(uid: u32) -> bool {
    (FIRST..=LAST).contains(&uid)
}

/// An account of the machine that is there for jobs and nobody else.
#[derive(Debug)]
struct Dedicated {
    uid: u32,
    home: PathBuf,
}

static DEDICATED: OnceLock<Dedicated> = OnceLock::new();

/// Says that an account is there for jobs and nobody else, as Tango's `autograde`: what it has outside the
/// range, processes and files below `home` too, is a job's. Once, before there is a job.
pub fn dedicate(uid: u32, home: &Path) {
    let _ = DEDICATED.set(Dedicated { uid, home: home.to_owned() });
}

/// Whether a uid is nobody's but a job's.
pub fn is_jobs_alone(uid: u32) -> bool {
    is_leasable(uid) || DEDICATED.get().is_some_and(|account| account.uid == uid)
}

/// The home directory of a uid that is a dedicated account's.
pub fn home_of(uid: u32) -> Option<&'static Path> {
    DEDICATED.get().filter(|account| account.uid == uid).map(|account| account.home.as_path())
}

/// Where the record of a uid is; accounts outside the range have none, only a lock.
fn record_offset(uid: u32) -> Option<u64> {
    is_leasable(uid).then(|| u64::from(uid - FIRST) * RECORD as u64)
}

/// The uids that have a pid in a table.
fn recorded(table: &File) -> io::Result<Vec<u32>> {
    let mut bytes = [0; (LAST - FIRST + 1) as usize * RECORD];
    let mut filled = 0;
    while filled < bytes.len() {
        match table.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    let leased = |(_, record): &(u32, &[u8])| *record != [0; RECORD];
    Ok((FIRST..).zip(bytes.chunks_exact(RECORD)).filter(leased).map(|(uid, _)| uid).collect())
}

/// Takes the lock of one uid; `None` if another job holds it.
pub fn try_lease(uid: u32) -> Result<Option<Lease>, Fault> {
    let table = table()?;
    let lock = libc::flock {
        l_type: WRITE_LOCK,
        // SEEK_SET
        l_whence: 0,
        l_start: libc::off_t::from(uid),
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(table.as_fd(), FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => {}
        Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
        Err(errno) => return Err(fault(format!("lock uid {uid} in {DIRECTORY}/{FILE}"))(errno)),
    }
    let (record, mut inherited) = (record_offset(uid), false);
    if let Some(offset) = record {
        let failed = |error: io::Error| {
            fault(format!("record the lease of uid {uid} in {DIRECTORY}/{FILE}"))(errno_of(&error))
        };
        let mut pid = [0; RECORD];
        inherited = table.read_at(&mut pid, offset).map_err(failed)? == RECORD && pid != [0; RECORD];
        table.write_all_at(&std::process::id().to_ne_bytes(), offset).map_err(failed)?;
    }
    Ok(Some(Lease { uid, table, record, inherited }))
}

/// Takes a uid of the range that no other running job and no account has. `taken` says which
/// have one.
pub fn lease(taken: impl Fn(u32) -> bool) -> Result<Lease, Fault> {
    let count = LAST - FIRST + 1;
    // Where to start: spreads concurrent drivers, and lets a uid rest before it is used again.
    let start = next_start(count);
    for uid in (0..count).map(|n| FIRST + (start + n) % count).filter(|uid| !taken(*uid)) {
        match try_lease(uid)? {
            // Killed since this driver started: the next one looks after it.
            Some(lease) if lease.inherited => lease.keep_record(),
            Some(lease) => return Ok(lease),
            None => {}
        }
    }
    Err(Fault::refused(
        Step::Uid,
        "lease a uid",
        format!("all of {FIRST}-{LAST} are in use; run fewer jobs at once, or `autodriver restore`"),
    ))
}

/// Not from the pid: drivers in containers have the same small ones, and a uid counts machine-wide
/// for RLIMIT_NPROC, whichever container has it.
fn next_start(count: u32) -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    use std::sync::atomic::{AtomicU32, Ordering};
    static FIRST: OnceLock<u64> = OnceLock::new();
    static USED: AtomicU32 = AtomicU32::new(0);
    let first = *FIRST.get_or_init(|| RandomState::new().build_hasher().finish());
    let used = u64::from(USED.fetch_add(1, Ordering::Relaxed));
    u32::try_from(first.wrapping_add(used) % u64::from(count)).unwrap_or(0)
}

impl Lease {
    /// Lets go of the uid, but not of the record: something of it is still there.
    pub fn keep_record(mut self) {
        self.record = None;
    }

    /// Lets go of both.
    ///
    /// # Errors
    /// Why the record could not be cleared; the next driver clears it.
    pub fn give_back(mut self) -> Result<(), Errno> {
        self.clear()
    }

    fn clear(&mut self) -> Result<(), Errno> {
        let Some(offset) = self.record.take() else { return Ok(()) };
        self.table.write_all_at(&[0; RECORD], offset).map_err(|error| errno_of(&error))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.clear();
    }
}

/// The uids that a driver has recorded, living or killed.
///
/// # Errors
/// Those of opening and reading the table.
pub fn in_use() -> Result<Vec<u32>, Fault> {
    let path = format!("{DIRECTORY}/{FILE}");
    let table = match File::open(&path) {
        Ok(table) => table,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault(format!("open {path}"))(errno_of(&error))),
    };
    recorded(&table).map_err(|error| fault(format!("read {path}"))(errno_of(&error)))
}

/// Where the storage of this uid's job is attached, on kernels where it has to be.
pub fn mount_point(uid: u32) -> String {
    format!("{DIRECTORY}/{uid}.storage")
}

/// What a driver that can lease no uid calls the things of a job: its own uid and pid, and a number.
pub fn own_tag() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static MADE: AtomicU32 = AtomicU32::new(0);
    let (uid, pid) = (nix::unistd::geteuid(), std::process::id());
    format!("{uid}-{pid}-{}", MADE.fetch_add(1, Ordering::Relaxed))
}

/// The pid in such a tag of this user's.
pub fn pid_of_tag(tag: &str) -> Option<u32> {
    let own = tag.strip_prefix(&nix::unistd::geteuid().to_string())?.strip_prefix('-')?;
    own.split('-').next()?.parse().ok()
}

/// The directory of the machine that is shown, or given, to a job without mounts of its own.
pub fn shown_place(tag: &str) -> String {
    format!("/tmp/autodriver-{tag}")
}

/// What a directory of /tmp is the place of, by its name.
pub fn tag_of_shown_place(name: &std::ffi::OsStr) -> Option<String> {
    name.to_str()?.strip_prefix("autodriver-").map(str::to_owned)
}

/// Everywhere that something of this uid's may be mounted.
pub fn mount_points(uid: u32) -> [String; 2] {
    [mount_point(uid), shown_place(&uid.to_string())]
}

/// The uid whose mount point a name in the state directory is.
pub fn uid_of_trace(name: &std::ffi::OsStr) -> Option<u32> {
    name.to_str()?.strip_suffix(".storage")?.parse().ok()
}
