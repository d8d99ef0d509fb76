//! What is kept of a machine between calls: a directory, and a lock while it is in use.
//!
//! `machine.json` how to reach it · `lock` held, and holding its user's process id · `in/` what
//! was copied in · `out/` what the last job's `--out` named · `feedback`, `report.json`.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::VmmError;
use crate::backend::{BackendOptions, Name};

/// How long the user of a machine has to let go once told: it closes its job in that time.
const LET_GO: Duration = Duration::from_secs(90);
/// How long after it was killed.
const LET_GO_KILLED: Duration = Duration::from_secs(5);

/// Where machines are kept: `$XDG_STATE_HOME/vmm-local`, or `~/.local/state/vmm-local`.
///
/// # Errors
/// Neither variable names an absolute path.
pub fn default_root() -> Result<PathBuf, VmmError> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let base = base.ok_or_else(|| {
        VmmError::files("find", Path::new("~/.local/state"))(
            "neither XDG_STATE_HOME nor HOME is an absolute path",
        )
    })?;
    Ok(base.join("vmm-local"))
}

/// A machine's directory, locked.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) dir: PathBuf,
    _lock: Flock<File>,
}

impl Held {
    pub(super) fn input(&self) -> PathBuf {
        self.dir.join("in")
    }

    pub(super) fn output(&self) -> PathBuf {
        self.dir.join("out")
    }

    pub(super) fn feedback(&self) -> PathBuf {
        self.dir.join("feedback")
    }

    pub(super) fn report(&self) -> PathBuf {
        self.dir.join("report.json")
    }

    /// How to reach the machine.
    pub(super) fn options(&self) -> Result<BackendOptions, VmmError> {
        let path = self.dir.join("machine.json");
        let text = fs::read(&path).map_err(VmmError::files("read", &path))?;
        serde_json::from_slice(&text).map_err(VmmError::files("read", &path))
    }

    /// Removes what the last job left.
    pub(super) fn forget_job(&self) -> Result<(), VmmError> {
        let output = self.output();
        let missing = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        };
        missing(fs::remove_dir_all(&output)).map_err(VmmError::files("remove", &output))?;
        for path in [self.feedback(), self.report()] {
            missing(fs::remove_file(&path)).map_err(VmmError::files("remove", &path))?;
        }
        Ok(())
    }
}

/// Makes the directory of a machine, whole or not at all, in use by us from its first moment.
pub(super) fn create(root: &Path, machine: &Name, options: &BackendOptions) -> Result<Held, VmmError> {
    let fresh = hidden(root, machine, "new");
    // Hand-ins are nobody else's business.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(fresh.join("in"));
    made.map_err(VmmError::files("make", &fresh))?;
    let text = serde_json::to_vec(options).map_err(VmmError::files("describe", &fresh))?;
    let filled = fs::write(fresh.join("machine.json"), text).and_then(|()| File::create(fresh.join("lock")));
    let lock = filled.map_err(VmmError::files("write to", &fresh))?;
    let held = try_hold(&fresh, machine, lock)?.map_err(|_| VmmError::InUse(machine.clone()))?;
    let dir = root.join(machine);
    // A directory that is not empty, as every machine's is, cannot be renamed over.
    let renamed = fs::rename(&fresh, &dir);
    renamed.map(|()| Held { dir: dir.clone(), ..held }).map_err(|error| {
        let _ = fs::remove_dir_all(&fresh);
        match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                VmmError::Exists(machine.clone())
            }
            _ => VmmError::files("make", &dir)(error),
        }
    })
}

/// Names that no machine has, and that no other process uses.
fn hidden(root: &Path, machine: &Name, why: &str) -> PathBuf {
    root.join(format!(".{why}-{}-{machine}", std::process::id()))
}

/// Takes a machine into use.
pub(super) fn hold(root: &Path, machine: &Name) -> Result<Held, VmmError> {
    let mut file = lock_file(root, machine)?;
    for _ in 0..2 {
        match try_hold(&root.join(machine), machine, file)? {
            Ok(held) => return Ok(held),
            // Between a fork and its exec, a child of ours may hold on for a moment.
            Err(again) => file = again,
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(VmmError::InUse(machine.clone()))
}

fn lock_file(root: &Path, machine: &Name) -> Result<File, VmmError> {
    let path = root.join(machine).join("lock");
    File::options().read(true).write(true).open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => VmmError::Unknown(machine.clone()),
        _ => VmmError::files("open", &path)(error),
    })
}

/// The lock of the machine in `dir`, or the file back if somebody else holds it.
fn try_hold(dir: &Path, machine: &Name, file: File) -> Result<Result<Held, File>, VmmError> {
    let dir = dir.to_owned();
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((file, nix::errno::Errno::EAGAIN)) => return Ok(Err(file)),
        Err((_, errno)) => return Err(VmmError::files("lock", &dir)(errno)),
    };
    if !dir.join("machine.json").exists() {
        return Err(VmmError::Unknown(machine.clone())); // Destroyed while we waited.
    }
    let noted = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
    noted.map_err(VmmError::files("write to", &dir.join("lock")))?;
    Ok(Ok(Held { dir, _lock: lock }))
}

/// Takes a machine into use, and whoever uses it out of the way.
pub(super) fn seize(root: &Path, machine: &Name) -> Result<Held, VmmError> {
    let mut file = lock_file(root, machine)?;
    for (signal, patience) in [(Signal::SIGTERM, LET_GO), (Signal::SIGKILL, LET_GO_KILLED)] {
        let deadline = Instant::now() + patience;
        let mut told = false;
        while Instant::now() < deadline {
            file = match try_hold(&root.join(machine), machine, file)? {
                Ok(held) => return Ok(held),
                Err(file) => file,
            };
            if !told {
                told = signal_user(&mut file, signal);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Err(VmmError::InUse(machine.clone()))
}

/// Signals the process that holds the lock: as long as it holds it, the number is its own.
fn signal_user(file: &mut File, signal: Signal) -> bool {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(16).read_to_string(&mut text));
    match text.parse::<i32>() {
        Ok(pid) if read.is_ok() && pid > 1 && holds(pid, file) => kill(Pid::from_raw(pid), signal).is_ok(),
        _ => false,
    }
}

/// Whether the process of that number is the one that locked the file, as proc_locks(5) has it. One of another host or
/// another PID namespace wrote a number that is somebody else's here.
pub(super) fn holds(pid: i32, file: &File) -> bool {
    let Ok(meta) = file.metadata() else { return false };
    let (holder, inode) = (pid.to_string(), format!(":{}", meta.ino()));
    let is_it = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some("FLOCK")
            && words.nth(2) == Some(&holder)
            && words.next().is_some_and(|place| place.ends_with(&inode))
    };
    fs::read_to_string("/proc/locks").is_ok_and(|locks| locks.lines().any(is_it))
}

/// Removes a machine's directory: first from sight, then from disk.
pub(super) fn remove(root: &Path, machine: &Name, held: Held) -> Result<(), VmmError> {
    let gone = hidden(root, machine, "gone");
    fs::rename(&held.dir, &gone).map_err(VmmError::files("remove", &held.dir))?;
    fs::remove_dir_all(&gone).map_err(VmmError::files("remove", &gone))
}

/// Where the output of a machine's last job is, whoever uses it.
pub(super) fn feedback(root: &Path, machine: &Name) -> Result<PathBuf, VmmError> {
    lock_file(root, machine).map(|_| root.join(machine).join("feedback"))
}

/// The names of all machines, sorted.
pub(super) fn names(root: &Path) -> Result<Vec<Name>, VmmError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(VmmError::files("list", root))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut names: Vec<Name> = names.collect();
    names.sort();
    Ok(names)
}
