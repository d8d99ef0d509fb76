//! What a job sees of its machine: the same before and after any attack.

use std::fs;
use std::path::Path;

/// Files whose content must not change; those that a machine has.
const SENTINELS: [&str; 6] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/hostname",
    "/proc/sys/kernel/core_pattern",
    "/etc/profile",
];

/// Places where a job may have left files.
const PLACES: [&str; 7] = ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run/lock", "/var/lock", "."];

/// One line for each thing that is seen. What differs from job to job by design - pids, the uid,
/// the program itself - is left out.
pub(crate) fn describe() -> String {
    let mut lines = Vec::new();
    for file in SENTINELS {
        if let Ok(content) = fs::read(file) {
            lines.push(format!("{file}: {:016x}", hash(&without_own_user(&content))));
        }
    }
    for place in PLACES {
        let names = fs::read_dir(place).into_iter().flatten().flatten();
        let mut names: Vec<_> = names.map(|entry| entry.file_name()).collect();
        names.sort();
        lines.push(format!("{place}: {names:?}"));
    }
    for table in ["/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg"] {
        lines.push(format!("{table}: {} lines", count_lines(table)));
    }
    // Locks of open files are told to everybody, also those that other drivers on the machine have.
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let locks = locks.lines().filter(|line| !line.contains("OFDLCK")).count();
    lines.push(format!("/proc/locks: {locks} lines"));
    lines.push(format!("/proc/net/unix: {} lines", count_lines("/proc/net/unix")));
    lines.push(format!("processes: {}", processes()));
    lines.push(format!("descriptors: {}", fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)));
    lines.push(format!("mounts: {}", count_lines("/proc/self/mountinfo")));
    if let Ok(name) = nix::unistd::gethostname() {
        lines.push(format!("hostname: {}", name.to_string_lossy()));
    }
    for (name, path) in [("storage", "."), ("/tmp", "/tmp")] {
        if let Ok(fs) = nix::sys::statvfs::statvfs(path) {
            lines.push(format!("{name}: {} blocks, {} inodes", fs.blocks(), fs.files()));
        }
    }
    lines.join("\n")
}

/// The machine's passwd and group have a line for the job, whose uid is another each time.
fn without_own_user(content: &[u8]) -> Vec<u8> {
    let uid = nix::unistd::getuid().to_string();
    let own = |line: &&[u8]| line.split(|byte| *byte == b':').any(|field| field == uid.as_bytes());
    content.split(|byte| *byte == b'\n').filter(|line| !own(line)).collect::<Vec<_>>().join(&b'\n')
}

/// FNV-1a: to tell a change, not to withstand a forger.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn count_lines(path: impl AsRef<Path>) -> usize {
    fs::read(path).map_or(0, |content| content.split(|byte| *byte == b'\n').count())
}

/// Those of the own uid, as far as the job can see any.
fn processes() -> usize {
    use std::os::unix::fs::MetadataExt;
    let uid = nix::unistd::getuid().as_raw();
    let is_pid = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<i32>().is_ok());
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|meta| meta.uid() == uid);
    entries.filter(|entry| is_pid(&entry.file_name()) && own(entry)).count()
}
