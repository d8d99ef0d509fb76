//! The job's cgroup: more memory, processes or CPU than its share; and the account of all three.
//!
//! Applied by the driver around the job: made before it, entered by the job alone (init stays
//! outside, so that neither limit nor account has to make an exception for it), removed after it.
//! Each directory is `autodriver-<uid>` below the place the facts name; since a uid is leased to
//! one job, so is the directory. Kernel documents: cgroup-v2.rst, cgroup-v1/{memory,pids,cpuacct}.rst.

mod settings;

use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{openat, OFlag, AT_FDCWD};
use nix::sys::signal::Signal;
use nix::sys::stat::{fstat, mkdirat, stat, Mode};
use nix::unistd::{unlinkat, Pid, UnlinkatFlags};

use crate::facts::{Facts, Hierarchy};
use crate::fault::{Fault, Step};
use crate::sys::fd::{lock, read_file};
use crate::sys::process::signal_listed;
use settings::settings;
pub use settings::{preview, Limits, Setting};

/// Between two attempts at what is about to be possible.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// What the directories are called, before the uid.
pub(super) const PREFIX: &str = "autodriver-";

/// What the directories of a job are called.
pub(super) fn directory_name(tag: impl Display) -> String {
    format!("{PREFIX}{tag}")
}

/// Where a directory is made, and which controllers it has.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    memory: bool,
    pids: bool,
    cpuacct: bool,
}

/// One directory.
#[derive(Debug)]
struct Group {
    path: PathBuf,
    fd: OwnedFd,
    /// With its controllers.
    place: Place,
    /// Tells other drivers that this one lives.
    _lock: OwnedFd,
}

/// The job's cgroup, in one directory or several.
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
    v2: bool,
    /// A job can be born in it; else it enters by itself.
    born: bool,
}

/// What the kernel counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// User time, microseconds.
    pub cpu_user_us: Option<u64>,
    /// System time, microseconds.
    pub cpu_system_us: Option<u64>,
    /// Highest use of memory, bytes.
    pub memory_peak: Option<u64>,
    /// Most processes and threads at once.
    pub pids_peak: Option<u64>,
    /// Processes killed by the OOM killer.
    pub oom_kills: u64,
    /// Forks refused by the limit.
    pub forks_refused: u64,
}

/// The places below which the job's directories are made.
fn places(hierarchy: &Hierarchy) -> Vec<Place> {
    let place = |path: &PathBuf, memory, pids, cpuacct| Place { path: path.clone(), memory, pids, cpuacct };
    let v1 = match hierarchy {
        Hierarchy::None => return Vec::new(),
        Hierarchy::V2(path) => return vec![place(path, true, true, true)],
        Hierarchy::V1(v1) => v1,
    };
    let rows = [
        v1.memory.as_ref().map(|path| place(path, true, false, false)),
        v1.pids.as_ref().map(|path| place(path, false, true, false)),
        v1.cpu.as_ref().map(|path| place(path, false, false, false)),
        v1.cpuacct.as_ref().map(|path| place(path, false, false, true)),
    ];
    let mut places: Vec<Place> = Vec::new();
    for row in rows.into_iter().flatten() {
        // Controllers that are mounted together share one directory.
        match places.iter_mut().find(|known| known.path == row.path) {
            Some(known) => {
                known.memory |= row.memory;
                known.pids |= row.pids;
                known.cpuacct |= row.cpuacct;
            }
            None => places.push(row),
        }
    }
    places
}

/// In how many hierarchies a job has a directory.
pub(super) fn hierarchies(hierarchy: &Hierarchy) -> usize {
    places(hierarchy).len()
}

/// Every directory that the job that is called so has, or had.
pub fn directories(hierarchy: &Hierarchy, tag: impl Display) -> Vec<PathBuf> {
    let name = directory_name(tag);
    places(hierarchy).iter().map(|place| place.path.join(&name)).collect()
}

/// Every directory of ours, with what its job is called.
pub fn present(hierarchy: &Hierarchy) -> Vec<(String, PathBuf)> {
    let tagged = |entry: std::fs::DirEntry| {
        let tag = entry.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned();
        entry.file_type().ok()?.is_dir().then(|| (tag, entry.path()))
    };
    let entries = |place: &Path| std::fs::read_dir(place).into_iter().flatten().flatten();
    places(hierarchy).iter().flat_map(|place| entries(&place.path).filter_map(tagged)).collect()
}

pub(super) fn fault(act: impl Display, path: &Path, errno: Errno) -> Fault {
    Fault::new(Step::Cgroup, format!("{act} {}", path.display()), errno)
}

fn write(dir: BorrowedFd<'_>, path: &Path, file: &str, value: impl Display) -> Result<(), Fault> {
    let value = value.to_string();
    let written = openat(dir, file, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| nix::unistd::write(file, value.as_bytes()));
    written.map(drop).map_err(|errno| fault(format_args!("write '{value}' to"), &path.join(file), errno))
}

/// The text of one of its files: they all fit into a page, but for a list of processes.
fn read(dir: BorrowedFd<'_>, file: &str) -> Option<String> {
    try_read(dir, file).ok()
}

fn try_read(dir: BorrowedFd<'_>, file: &str) -> Result<String, Errno> {
    String::from_utf8(read_file(dir, file)?).map_err(|_| Errno::EILSEQ)
}

/// What the kernel counts in a file; nothing if it does not, or if the cgroup is gone.
fn counted(dir: BorrowedFd<'_>, file: &str, key: &str) -> Result<u64, Errno> {
    match try_read(dir, file) {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(0),
        text => Ok(field(&text?, key).unwrap_or(0)),
    }
}

/// The value of `key` in a file of `key value` lines.
pub fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn number(dir: BorrowedFd<'_>, file: &str) -> Option<u64> {
    read(dir, file)?.trim().parse().ok()
}

impl Cgroup {
    /// Makes the directories of the job that is called so and sets its limits.
    ///
    /// # Errors
    /// Which file or directory, and why; what was made is there still, for [`clear`].
    pub fn create(facts: &Facts, tag: &str, limits: Limits) -> Result<Cgroup, Fault> {
        let v2 = matches!(facts.hierarchy, Hierarchy::V2(_));
        let mut cgroup = Cgroup { groups: Vec::new(), v2, born: v2 && facts.clone3 };
        for place in places(&facts.hierarchy) {
            let group = cgroup.make_directory(&place, tag)?;
            cgroup.groups.push(group);
        }
        cgroup.limit(limits)?;
        Ok(cgroup)
    }

    fn make_directory(&self, place: &Place, tag: &str) -> Result<Group, Fault> {
        let path = place.path.join(directory_name(tag));
        if self.v2 {
            delegate(&place.path)?;
        }
        // Closed to others, who could lock it.
        let make = || mkdirat(AT_FDCWD, &path, Mode::S_IRWXU);
        let made = match make() {
            // We hold the uid: whoever made it was killed.
            Err(Errno::EEXIST) => {
                clear(&path).map_err(|errno| unclear(&path, errno))?;
                make()
            }
            made => made,
        };
        made.map_err(|errno| fault("make", &path, errno))?;
        let open = || open_directory(&path).map_err(|errno| fault("open", &path, errno));
        // An opening of its own, which no child is given: a lock lasts as long as anybody has it.
        let (fd, held) = (open()?, open()?);
        // In the meantime it may have been somebody else's, and be there anew.
        match lock(held.as_fd()).and_then(|()| is_there(fd.as_fd(), &path)) {
            Ok(true) => Ok(Group { path, fd, place: place.clone(), _lock: held }),
            Ok(false) => Err(unclear(&path, Errno::EWOULDBLOCK)),
            Err(errno) => Err(unclear(&path, errno)),
        }
    }

    fn limit(&self, limits: Limits) -> Result<(), Fault> {
        for Group { path, fd, place, .. } in &self.groups {
            for Setting { file, value, may_be_missing } in settings(place, limits, self.v2) {
                match write(fd.as_fd(), path, file, value) {
                    Err(fault) if may_be_missing && fault.errno == Some(Errno::ENOENT) => {}
                    written => written.and_then(|()| read_back(fd.as_fd(), path, file, value))?,
                }
            }
        }
        Ok(())
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(AT_FDCWD, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Whether a path still leads to this directory.
fn is_there(dir: BorrowedFd<'_>, path: &Path) -> Result<bool, Errno> {
    let (held, found) = (fstat(dir)?, stat(path)?);
    Ok((held.st_dev, held.st_ino) == (found.st_dev, found.st_ino))
}

/// Why a directory of this name cannot be had.
fn unclear(path: &Path, errno: Errno) -> Fault {
    if errno != Errno::EWOULDBLOCK {
        return fault("clear stale", path, errno);
    }
    let why = "a living driver has it that sees another /run/autodriver; let them share it, or a cgroup namespace part them";
    Fault::refused(Step::Cgroup, format!("use cgroup {}", path.display()), why)
}

/// Whether a living driver has a cgroup that is called so. Uids are leased by a file in /run, and drivers that see
/// different ones may share the tree of cgroups: a container that was given the machine's, a chroot.
pub fn is_held(hierarchy: &Hierarchy, tag: impl Display) -> bool {
    let locked = |path: PathBuf| open_directory(&path).and_then(|dir| lock_soon(dir.as_fd(), 20));
    directories(hierarchy, tag).into_iter().any(|path| locked(path) == Err(Errno::EWOULDBLOCK))
}

/// Locks what a child of a driver that was killed may still have, until it has closed what it does not need: at
/// most `turns` of 5 ms.
fn lock_soon(dir: BorrowedFd<'_>, turns: u32) -> Result<(), Errno> {
    for _ in 0..turns {
        match lock(dir) {
            Err(Errno::EWOULDBLOCK) => std::thread::sleep(PAUSE),
            locked => return locked,
        }
    }
    Err(Errno::EWOULDBLOCK)
}

/// Splits a sum that is exact by two parts that the kernel only samples, as it does itself for v2
/// (cputime_adjust).
fn split(sum: Option<u64>, user: Option<u64>, system: Option<u64>) -> (Option<u64>, Option<u64>) {
    let (Some(sum), Some(user), Some(system)) = (sum, user, system) else { return (None, None) };
    let share = u128::from(sum) * u128::from(user) / u128::from((user + system).max(1));
    let user = u64::try_from(share).unwrap_or(sum);
    (Some(user), Some(sum - user))
}

/// The kernel keeps memory limits in pages.
fn read_back(dir: BorrowedFd<'_>, path: &Path, file: &str, wanted: u64) -> Result<(), Fault> {
    const PAGE: u64 = 4096;
    match number(dir, file) {
        Some(value) if value == wanted || value.abs_diff(wanted) < PAGE => Ok(()),
        value => {
            let found = value.map_or_else(|| "no number".to_owned(), |value| value.to_string());
            let act = format!("read back {}", path.join(file).display());
            Err(Fault::refused(Step::Cgroup, act, format!("it is {found}, not {wanted}")))
        }
    }
}

/// Passes the controllers on to the jobs' directories (cgroup-v2.rst, "Enabling and Disabling").
pub(super) fn delegate(place: &Path) -> Result<(), Fault> {
    let file = place.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&file).unwrap_or_default();
    let has = |name: &str| enabled.split_whitespace().any(|word| word == name);
    let missing: Vec<String> = ["memory", "pids", "cpu"]
        .into_iter()
        .filter(|name| !has(name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let value = missing.join(" ");
    std::fs::write(&file, &value)
        .map_err(|error| fault(format_args!("write '{value}' to"), &file, crate::fault::errno_of(&error)))
}

impl Cgroup {
    /// The directory for `CLONE_INTO_CGROUP`, with v2.
    pub fn clone_target(&self) -> Option<BorrowedFd<'_>> {
        self.groups.first().filter(|_| self.born).map(|group| group.fd.as_fd())
    }

    /// The files into which the job writes `0` to enter, where it was not born inside.
    ///
    /// # Errors
    /// Which file, and why.
    pub fn attach_targets(&self) -> Result<Vec<OwnedFd>, Fault> {
        let open = |group: &Group| {
            let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let name = if self.v2 { "cgroup.procs" } else { "tasks" };
            openat(group.fd.as_fd(), name, flags, Mode::empty())
                .map_err(|errno| fault("open", &group.path.join(name), errno))
        };
        self.groups.iter().filter(|_| !self.born).map(open).collect()
    }

    /// Where the `index`-th attach target is.
    pub fn attach_path(&self, index: usize) -> String {
        self.groups.get(index).map_or_else(String::new, |group| group.path.display().to_string())
    }

    fn of(&self, wanted: impl Fn(&Place) -> bool) -> Option<BorrowedFd<'_>> {
        self.groups.iter().find(|group| wanted(&group.place)).map(|group| group.fd.as_fd())
    }

    /// CPU time of the tree so far, microseconds.
    pub fn cpu_us(&self) -> Option<u64> {
        let dir = self.of(|place| place.cpuacct)?;
        match self.v2 {
            true => field(&read(dir, "cpu.stat")?, "usage_usec"),
            false => Some(number(dir, "cpuacct.usage")? / 1000),
        }
    }

    /// Memory charged now, bytes.
    pub fn memory_now(&self) -> Option<u64> {
        let dir = self.of(|place| place.memory)?;
        number(dir, if self.v2 { "memory.current" } else { "memory.usage_in_bytes" })
    }

    /// Bytes of the page cache of files on disk: the kernel takes them back when memory is short.
    pub fn memory_reclaimable(&self) -> Option<u64> {
        let stat = read(self.of(|place| place.memory)?, "memory.stat")?;
        let prefix = if self.v2 { "" } else { "total_" };
        let lru = |name: &str| field(&stat, &format!("{prefix}{name}")).unwrap_or(0);
        Some(lru("active_file") + lru("inactive_file"))
    }

    /// Processes of the job that the OOM killer has killed.
    ///
    /// # Errors
    /// Those of reading the file in which the kernel counts them.
    pub fn oom_kills(&self) -> Result<u64, Errno> {
        let Some(dir) = self.of(|group| group.memory) else { return Ok(0) };
        counted(dir, if self.v2 { "memory.events" } else { "memory.oom_control" }, "oom_kill")
    }

    /// All that the kernel counted.
    ///
    /// # Errors
    /// What a verdict depends on could not be read; of what only describes the job, it is missing.
    pub fn account(&self) -> Result<Account, Errno> {
        let mut account = Account { oom_kills: self.oom_kills()?, ..Account::default() };
        if let Some(dir) = self.of(|place| place.cpuacct) {
            let stat = read(dir, "cpu.stat").filter(|_| self.v2).unwrap_or_default();
            let (user, system) = match self.v2 {
                true => (field(&stat, "user_usec"), field(&stat, "system_usec")),
                false => split(
                    number(dir, "cpuacct.usage").map(|ns| ns / 1000),
                    number(dir, "cpuacct.usage_user"),
                    number(dir, "cpuacct.usage_sys"),
                ),
            };
            account.cpu_user_us = user;
            account.cpu_system_us = system;
        }
        if let Some(dir) = self.of(|place| place.memory) {
            account.memory_peak =
                number(dir, if self.v2 { "memory.peak" } else { "memory.max_usage_in_bytes" });
        }
        if let Some(dir) = self.of(|place| place.pids) {
            account.pids_peak = number(dir, "pids.peak");
            account.forks_refused = counted(dir, "pids.events", "max")?;
        }
        Ok(account)
    }

    /// Whether it has any directory: nobody can be in one that does not exist.
    pub fn exists(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The processes in it, by number in the driver's PID namespace.
    pub fn processes(&self) -> Vec<Pid> {
        let Some(group) = self.groups.first() else { return Vec::new() };
        processes(group.fd.as_fd())
    }

    /// Sends a signal to every process in it. Returns how many there were.
    pub fn signal(&self, signal: Signal) -> usize {
        let Some(group) = self.groups.first() else { return 0 };
        if signal == Signal::SIGKILL
            && self.v2
            && write(group.fd.as_fd(), &group.path, "cgroup.kill", 1).is_ok()
        {
            return self.processes().len();
        }
        signal_listed(|| processes(group.fd.as_fd()), signal)
    }

    /// Removes the directories. Removal succeeds only when no process is left in them, which makes
    /// it the proof that none is.
    ///
    /// # Errors
    /// The directory that could not be removed; EBUSY while something in it is still dying.
    pub fn remove(&mut self) -> Result<(), (PathBuf, Errno)> {
        while let Some(group) = self.groups.last() {
            remove_directory(&group.path).map_err(|errno| (group.path.clone(), errno))?;
            self.groups.pop();
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Only reached with groups left when the set-up failed half way.
        let _ = self.remove();
    }
}

fn processes(dir: BorrowedFd<'_>) -> Vec<Pid> {
    let text = read(dir, "cgroup.procs").unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw).collect()
}

pub(super) fn remove_directory(path: &Path) -> Result<(), Errno> {
    match unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Kills what is in a directory of a killed driver, and removes it.
///
/// # Errors
/// EBUSY if it does not become empty within a second; EWOULDBLOCK if its driver lives.
pub fn clear(path: &Path) -> Result<(), Errno> {
    // Held until the end; without it, it is gone.
    let held = match open_directory(path) {
        Err(Errno::ENOENT) => return Ok(()),
        opened => opened?,
    };
    lock_soon(held.as_fd(), 200)?;
    for _ in 0..200 {
        match remove_directory(path) {
            Err(Errno::EBUSY) => {}
            result => return result,
        }
        signal_listed(|| processes(held.as_fd()), Signal::SIGKILL);
        std::thread::sleep(PAUSE);
    }
    Err(Errno::EBUSY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_the_kernel_did_not_take_is_a_fault() {
        let place = std::env::temp_dir().join(format!("autodriver-read-back-{}", std::process::id()));
        std::fs::create_dir(&place).expect("a directory");
        let dir = OwnedFd::from(std::fs::File::open(&place).expect("it opens"));
        let after = |text: &str| {
            std::fs::write(place.join("memory.max"), text).expect("it is written");
            read_back(dir.as_fd(), &place, "memory.max", (64 << 20) + 5)
        };
        assert!(after("67108864\n").is_ok(), "whole pages");
        for text in ["max\n", "67104768\n", "134217728\n", ""] {
            let fault = after(text).expect_err(text).to_string();
            assert!(fault.contains("cannot read back") && fault.contains("not 67108869"), "{fault}");
        }
        std::fs::remove_dir_all(&place).expect("it is removed");
    }
}
