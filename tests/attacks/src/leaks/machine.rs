//! What the kernel tells about the machine, and about who else is on it.

use std::fs;
use std::path::PathBuf;

use super::inodes;
use crate::tools::{
    any, broke, child, end_of, held, ignore, raw, ready, ready_and_wait, refused, sleep_ms, Attempt, Role,
};

/// `SYSLOG_ACTION_READ_ALL`: reads the log and leaves it as it is.
const READ_ALL: i32 = 3;

pub(super) fn reads_log(_: Role) -> Attempt {
    let mut buffer = [0_u8; 4096];
    // SAFETY: the buffer is as long as is said.
    let read = raw(unsafe { libc::syscall(libc::SYS_syslog, READ_ALL, buffer.as_mut_ptr(), buffer.len()) });
    refused(read, "reads the kernel's log")
}

pub(super) fn reads_log_device(_: Role) -> Attempt {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let device = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    refused(device.and_then(|mut file| file.read(&mut [0; 8192])), "reads /dev/kmsg")
}

/// Addresses read as zero for those who may not know them.
fn addresses(path: &str) -> Attempt {
    use std::io::Read;
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(64 << 10).read_to_string(&mut text));
    let word = |line: &str| line.trim_start().split([' ', '-']).next().map(str::to_owned);
    let is_told = |line: &str| word(line).is_some_and(|word| !word.trim_start_matches('0').is_empty());
    match read {
        Ok(_) if text.lines().skip(1).any(is_told) => broke(format_args!("{path} tells addresses")),
        Ok(_) => held(format_args!("{path} has zeros only")),
        Err(error) => held(format_args!("{path}: {error}")),
    }
}

pub(super) fn reads_addresses(_: Role) -> Attempt {
    let memory = refused(fs::File::open("/proc/kcore"), "opens the machine's memory");
    any([addresses("/proc/kallsyms"), addresses("/proc/iomem"), addresses("/proc/vmallocinfo"), memory])
}

fn file_below(top: &str, wanted: impl Fn(&str) -> bool) -> Attempt {
    let mut folders = vec![(PathBuf::from(top), 0)];
    let mut last = held(format_args!("{top} is empty"));
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) => {
                last = held(format_args!("{}: {error}", folder.display()));
                continue;
            }
        };
        for entry in entries.flatten() {
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(fs::FileType::is_dir) && depth < 4 {
                folders.push((entry.path(), depth + 1));
            } else if kind.is_ok_and(|kind| kind.is_file())
                && wanted(&entry.file_name().to_string_lossy())
                && fs::read(entry.path()).is_ok()
            {
                return broke(format_args!("reads {}", entry.path().display()));
            }
        }
    }
    last
}

pub(super) fn reads_kernel_objects(_: Role) -> Attempt {
    any(["/sys/class", "/sys/firmware", "/sys/kernel", "/sys/devices"].map(|top| file_below(top, |_| true)))
}

pub(super) fn knows_host(_: Role) -> Attempt {
    match nix::unistd::gethostname() {
        Ok(name) if name == "job" => held("the name is 'job'"),
        Ok(name) => broke(format_args!("knows the host as {}", name.to_string_lossy())),
        Err(error) => held(error),
    }
}

pub(super) fn recognizes_machine(_: Role) -> Attempt {
    let ids = ["/proc/sys/kernel/random/boot_id", "/etc/machine-id"];
    any(ids.map(|path| match fs::read_to_string(path) {
        Ok(id) if !id.trim().is_empty() => broke(format_args!("{path} is the same for every job")),
        Ok(_) => held(format_args!("{path} is empty")),
        Err(error) => held(error),
    }))
}

/// Figures of a control group: what a job used, and when.
pub(super) fn reads_statistics(role: Role) -> Attempt {
    if role == Role::Accomplice {
        ignore(crate::tools::touch(16 << 20));
        return held("used 16 MB");
    }
    let names = ["memory.peak", "memory.max_usage_in_bytes", "memory.stat", "cpu.stat", "cpuacct.usage"];
    file_below("/sys/fs/cgroup", |name| names.contains(&name))
}

pub(super) fn knows_group(_: Role) -> Attempt {
    let text = match fs::read_to_string("/proc/self/cgroup") {
        Ok(text) => text,
        Err(error) => return held(error),
    };
    // Hierarchies that the driver does not use have the root for everybody.
    match text.lines().find(|line| !line.ends_with(":/")) {
        Some(line) => broke(format_args!("knows its place in the machine's tree: {line}")),
        None => held("the root is all that there is"),
    }
}

/// How many processes were ever started on the machine.
fn forks() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("processes "))?.trim().parse().ok()
}

/// The sender starts processes; the receiver, who starts none, sees the machine's count grow.
pub(super) fn counts_forks(role: Role) -> Attempt {
    const ENOUGH: u64 = 50;
    if role == Role::Accomplice {
        ready();
        loop {
            match child(|| ()) {
                Ok(pid) => ignore(end_of(pid)),
                Err(_) => sleep_ms(1),
            }
        }
    }
    let Some(before) = forks() else { return held("/proc/stat does not tell") };
    for _ in 0..20 {
        sleep_ms(50);
        if forks().is_some_and(|now| now - before > ENOUGH) {
            return broke("/proc/stat tells when a job beside it starts processes");
        }
    }
    held("the count does not grow")
}

/// Locks of others, whom the table names by process.
pub(super) fn lists_locks(role: Role) -> Attempt {
    if role == Role::Accomplice {
        let Ok(file) = fs::File::create("locked") else { return held("no file to lock") };
        return match inodes::flock(&file, libc::LOCK_EX) {
            Ok(_) => ready_and_wait(),
            Err(error) => held(error),
        };
    }
    listed("reads of locks that processes beside it hold", |line| !line.contains("OFDLCK"))
}

/// Locks of open files belong to no process: the table names them to everybody, with place and length.
pub(super) fn lists_open_file_locks(role: Role) -> Attempt {
    if role == Role::Accomplice {
        let Ok(file) = fs::File::create("locked") else { return held("no file to lock") };
        return match inodes::record(&file, libc::F_OFD_SETLK, libc::F_WRLCK, inodes::MESSAGE, 1) {
            Ok(_) => ready_and_wait(),
            Err(error) => held(error),
        };
    }
    let message = format!(" {} ", inodes::MESSAGE);
    listed("reads a number off a lock that a job beside it has on a file of its own", |line| {
        line.contains(&message)
    })
}

fn listed(what: &str, is_sought: impl Fn(&str) -> bool) -> Attempt {
    match fs::read_to_string("/proc/locks") {
        Ok(text) if text.lines().any(is_sought) => broke(what),
        Ok(text) => held(format_args!("none of the {} locks that are listed", text.lines().count())),
        Err(error) => held(error),
    }
}
