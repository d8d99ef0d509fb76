//! A campaign in several processes at once. Each has process numbers, mounts, uids and cgroups of its own, so that
//! none meets, clears away or blames on a driver what another's killed driver has left.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::sys::wait::{wait, WaitStatus};
use nix::unistd::{fork, ForkResult};

use super::Tally;

/// The hierarchies of cgroup v1 in which a driver makes cgroups.
const USED: [&str; 4] = ["memory", "pids", "cpu", "cpuacct"];
/// Where a driver has its table of uids.
const STATE: &str = "/run/autodriver";

/// A part of a campaign: the how-manieth, from 0, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The how-manieth.
    pub number: u64,
    /// Of how many.
    pub of: u64,
}

impl Default for Part {
    fn default() -> Part {
        Part { number: 0, of: 1 }
    }
}

/// Runs this program once for each part, with the same arguments and `--part NUMBER:OF`, and adds up the tallies
/// that they print.
///
/// # Errors
/// What kept one of them from its campaign; not what it found.
pub fn share_out(arguments: &[String], of: u64) -> Result<Tally, String> {
    // Their cgroups before the first of them begins, to which one that is made later is what a driver has left.
    let made: Vec<_> = (0..of).map(|number| (number, make_cgroups(number))).collect();
    let begin =
        |(number, made): (u64, io::Result<()>)| (number, made.and_then(|()| start(arguments, number, of)));
    let workers: Vec<_> = made.into_iter().map(begin).collect();
    // All are waited for, and nothing of them stays, whatever came of one.
    let parts: Vec<_> = workers.into_iter().map(|(number, worker)| (number, end(number, worker))).collect();
    let mut tally = Tally::default();
    for (number, part) in parts {
        tally.add(part.map_err(|why| format!("worker {number}: {why}"))?);
    }
    Ok(tally)
}

fn start(arguments: &[String], number: u64, of: u64) -> io::Result<Child> {
    let mut worker = Command::new("/proc/self/exe");
    worker.args(arguments).args(["--part".to_owned(), format!("{number}:{of}")]);
    worker.stdout(Stdio::piped()).spawn()
}

fn end(number: u64, worker: io::Result<Child>) -> Result<Tally, String> {
    let output = worker.and_then(Child::wait_with_output);
    let removed = remove_cgroups(number);
    let output = output.map_err(|error| error.to_string())?;
    removed.map_err(|error| format!("its cgroups stay: {error}"))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{}, and its tally: {error}", output.status))
}

/// Runs `work` apart, in a child; its status.
///
/// # Errors
/// Those of making what it is to have of its own.
pub fn apart(part: Part, work: impl FnOnce() -> i32) -> io::Result<i32> {
    for cgroup in cgroups(part.number)? {
        // To move the caller alone, where that is possible, takes no grace period of RCU: cgroups(7).
        fs::write(cgroup.join("tasks"), "0")?;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    fs::create_dir_all(STATE)?;
    mount(Some("none"), STATE, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))?;
    // The first process of the namespace has the orphans of killed drivers.
    in_child(|| {
        let begun = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none);
        begun.map_err(io::Error::from).and_then(|()| in_child(work)).unwrap_or_else(|error| {
            drop(writeln!(io::stderr(), "faults: apart: {error}"));
            1
        })
    })
}

/// Calls `work` in a child, and waits for all children until that one has ended.
fn in_child(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: this process has no other thread, so that no lock can be held in the child for ever.
    let child = match unsafe { fork() }? {
        // SAFETY: the call takes a number. What belongs to the parent's main is not run twice.
        ForkResult::Child => unsafe { libc::_exit(work()) },
        ForkResult::Parent { child } => child,
    };
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => return Ok(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Those of a worker: below the own ones.
fn cgroups(number: u64) -> io::Result<Vec<PathBuf>> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let lines = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let used = lines.filter(|(controllers, _)| controllers.split(',').any(|one| USED.contains(&one)));
    let below = |(controllers, path): (&str, &str)| {
        let own = Path::new("/sys/fs/cgroup").join(controllers).join(path.trim_start_matches('/'));
        own.join(format!("autodriver-faults-{number}"))
    };
    let all: Vec<PathBuf> = used.map(below).collect();
    match all.is_empty() {
        // There a cgroup with processes cannot have some with limits below it, and drivers make theirs at the top.
        true => Err(io::Error::new(
            ErrorKind::Unsupported,
            "only cgroup v1 lets workers have their own; --jobs 1",
        )),
        false => Ok(all),
    }
}

fn make_cgroups(number: u64) -> io::Result<()> {
    cgroups(number)?.into_iter().try_for_each(|cgroup| match fs::create_dir(cgroup) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    })
}

/// With what drivers have made in them: the directory above those of their jobs.
fn remove_cgroups(number: u64) -> io::Result<()> {
    for cgroup in cgroups(number)? {
        for entry in fs::read_dir(&cgroup)?.flatten() {
            if entry.file_type()?.is_dir() {
                fs::remove_dir(entry.path())?;
            }
        }
        fs::remove_dir(cgroup)?;
    }
    Ok(())
}
