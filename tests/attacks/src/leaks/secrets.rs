//! What others left lying about: files, arguments, environments.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::inodes;
use crate::tools::{any, broke, held, ignore, other_processes, ready_and_wait, Attempt, Role};

/// The mark of what an accomplice leaves.
const CANARY: &str = "attack-canary";
/// Most files that are looked at: enough for the attack, and an end on any machine.
const LOOKED_AT: usize = 5000;

/// Calls `look` for the regular files at and below `tops`, until it finds something.
fn walk(tops: &[&str], mut look: impl FnMut(&Path, &fs::Metadata) -> Option<Attempt>) -> Attempt {
    let mut folders: Vec<PathBuf> = tops.iter().map(PathBuf::from).collect();
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() {
                count += 1;
                if let Some(found) = look(&entry.path(), &meta) {
                    return found;
                }
            }
            if count >= LOOKED_AT {
                return held(format_args!("none of the first {count} files"));
            }
        }
    }
    held(format_args!("none of {count} files"))
}

fn reads(path: &Path) -> bool {
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    opened.and_then(|mut file| file.read(&mut [0])).is_ok()
}

/// What everybody may read, in directories that are no business of a job.
pub(super) fn reads_hidden(_: Role) -> Attempt {
    let tops = ["/home", "/root", "/run", "/boot", "/mnt", "/media"];
    walk(&tops, |path, _| reads(path).then(|| broke(format_args!("reads {}", path.display()))))
}

/// What not everybody may read, in directories that a job sees.
pub(super) fn reads_closed(_: Role) -> Attempt {
    walk(&["/etc", "/opt", "/srv", "/usr/local"], |path, meta| {
        let closed = meta.mode() & 0o004 == 0;
        (closed && reads(path)).then(|| broke(format_args!("reads {}", path.display())))
    })
}

/// Where a job may have left something.
fn places() -> Vec<PathBuf> {
    let home = std::env::var("HOME").unwrap_or_else(|_| ".".to_owned());
    let temporary = std::env::var("TMPDIR").unwrap_or_else(|_| ".".to_owned());
    let fixed = ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", "/var/lock", "."];
    fixed.into_iter().map(PathBuf::from).chain([home.into(), temporary.into()]).collect()
}

/// A job leaves files wherever it can; the next one looks there.
pub(super) fn leftovers(role: Role) -> Attempt {
    let folder = |place: &Path| place.join(format!("{CANARY}.d"));
    if role == Role::Accomplice {
        for place in places() {
            ignore(fs::write(place.join(CANARY), CANARY));
            ignore(fs::create_dir(folder(&place)));
            ignore(fs::write(folder(&place).join(CANARY), CANARY));
        }
        return held("left what it could");
    }
    let mut found = held("nothing of another job");
    for place in places() {
        let (file, folder) = (place.join(CANARY), folder(&place));
        if file.exists() || folder.exists() {
            found = broke(format_args!("finds {} of another job", file.display()));
        }
        // Whoever has the same uid can; nothing shall be found twice.
        ignore(fs::remove_file(file));
        ignore(fs::remove_dir_all(folder));
    }
    found
}

/// Another name than that of what was left, which may still be there where nothing is swept.
const SHARED: &str = "attack-shared";

/// As [`leftovers`], while the other still runs, in places that have the same name for both. It has
/// locked its files: one that it left when it was ended is not meant.
pub(super) fn shared_places(role: Role) -> Attempt {
    let names = ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"].map(|place| Path::new(place).join(SHARED));
    if role == Role::Accomplice {
        let files = names.iter().filter_map(|name| File::create(name).ok());
        let _locked: Vec<_> = files.map(|file| inodes::flock(&file, libc::LOCK_EX).map(|_| file)).collect();
        ready_and_wait();
    }
    any([held("nothing of another job")].into_iter().chain(names.iter().map(|name| match File::open(name) {
        Ok(file) => match inodes::flock(&file, libc::LOCK_EX | libc::LOCK_NB) {
            Err(_) => broke(format_args!("reads {} of another job", name.display())),
            Ok(_) => held(format_args!("{} is of no job that runs", name.display())),
        },
        Err(error) => held(error),
    })))
}

/// All but the first, which is its own init or the machine's.
fn others() -> impl Iterator<Item = i32> {
    other_processes().into_iter().filter(|pid| *pid != 1)
}

pub(super) fn arguments(role: Role) -> Attempt {
    if role == Role::Accomplice {
        ready_and_wait();
    }
    let read = |pid: i32| match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) if line.is_empty() => held("the kernel's own"),
        Ok(line) => {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            broke(format_args!("reads the arguments of process {pid}: {line}"))
        }
        Err(error) => held(error),
    };
    any([held("no other process is to be seen")].into_iter().chain(others().map(read)))
}

pub(super) fn environments(role: Role) -> Attempt {
    if role == Role::Accomplice {
        ready_and_wait();
    }
    let look = |pid: i32| {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).is_ok();
        let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).is_ok_and(|text| !text.is_empty());
        let seen = file("environ") || file("maps") || link("cwd") || link("exe") || link("fd/0");
        match seen {
            true => broke(format_args!("looks into process {pid}")),
            false => held(format_args!("process {pid} is closed")),
        }
    };
    any([held("no other process is to be seen")].into_iter().chain(others().map(look)))
}

/// All that a job has without asking for more, and what conformance asks for.
const ENVIRONMENT: [&str; 8] = ["HOME", "USER", "LOGNAME", "TMPDIR", "PATH", "SHELL", "LANG", crate::ROLE];

pub(super) fn inherits(_: Role) -> Attempt {
    let foreign = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    match foreign.filter(|name| !ENVIRONMENT.contains(&name.as_str())).collect::<Vec<_>>() {
        none if none.is_empty() => held("only what is documented"),
        some => broke(format_args!("has {} of the driver's environment", some.join(" "))),
    }
}
