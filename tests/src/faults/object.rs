//! What a call of a stopped process is about, in words that are the same in each run: every number stands as `N`,
//! as process numbers, uids and inodes differ, and so does the name of the run's folder. Files of the machine that a
//! driver meets where it looks for those of a job stand as `*`: there may be thousands.

use std::fs;
use std::io::IoSliceMut;

use nix::sys::uio::{process_vm_readv, RemoteIoVec};
use nix::unistd::Pid;

use super::calls::Object;

/// The longest path that is read; what is beyond does not tell calls apart.
const PATH_MAX: usize = 256;
/// No read of another's memory may cross into a page that may not be there.
const PAGE: usize = 4096;

/// Where others have files too.
const SHARED: [&str; 4] = ["/tmp", "/var", "/dev", "/run"];
/// How the names of ours begin.
const OURS: [&str; 2] = ["autodriver", "e2e-"];

/// Describes the object of a call.
pub(super) fn describe(pid: Pid, object: Object, registers: &libc::user_regs_struct) -> String {
    match object {
        Object::Nothing | Object::Each => String::new(),
        Object::Descriptor => target(pid, registers.rdi),
        Object::Request => format!("{} {:#x}", target(pid, registers.rdi), registers.rsi),
        Object::Path => neutral(&string(pid, registers.rdi)),
        Object::At => match string(pid, registers.rsi) {
            path if path.starts_with('/') => neutral(&path),
            path => {
                let directory = link(pid, registers.rdi);
                neutral(&format!("{}/{path}", directory.trim_end_matches('/')))
            }
        },
        Object::Number => format!("{:#x}", registers.rdi),
    }
}

fn target(pid: Pid, number: u64) -> String {
    neutral(&link(pid, number))
}

/// What a descriptor leads to.
fn link(pid: Pid, number: u64) -> String {
    // AT_FDCWD is none, and leads to `.`.
    let link = fs::read_link(format!("/proc/{pid}/fd/{number}"));
    link.map_or(String::from("."), |link| link.to_string_lossy().into_owned())
}

/// The text that begins at an address.
fn string(pid: Pid, address: u64) -> String {
    let Ok(base) = usize::try_from(address) else { return String::new() };
    let mut bytes = Vec::new();
    while bytes.len() < PATH_MAX {
        let place = base + bytes.len();
        let mut piece = [0; PATH_MAX];
        let length = (PAGE - place % PAGE).min(PATH_MAX);
        let from = [RemoteIoVec { base: place, len: length }];
        let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut piece[..length])], &from).unwrap_or(0);
        let end = piece[..read].iter().position(|byte| *byte == 0);
        bytes.extend_from_slice(&piece[..end.unwrap_or(read)]);
        if end.is_some() || read == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Without what differs from run to run.
fn neutral(text: &str) -> String {
    let shared = SHARED.iter().find_map(|place| Some((place, text.strip_prefix(place)?.strip_prefix('/')?)));
    match shared {
        Some((place, below)) if !below.is_empty() && !OURS.iter().any(|name| below.starts_with(name)) => {
            return format!("{place}/*");
        }
        _ => {}
    }
    let part = |part: &str| match part.starts_with("e2e-") {
        true => "e2e".to_owned(),
        false => numberless(part),
    };
    text.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn numberless(text: &str) -> String {
    let mut short = String::new();
    for letter in text.chars() {
        match letter.is_ascii_digit() {
            false => short.push(letter),
            true if short.ends_with('N') => {}
            true => short.push('N'),
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_folders_make_no_difference() {
        assert_eq!(neutral("/proc/417/fd/3"), "/proc/N/fd/N");
        assert_eq!(neutral("pipe:[90123]"), "pipe:[N]");
        assert_eq!(neutral("/tmp/e2e-x4Qq/report"), "/tmp/e2e/report");
        assert_eq!(neutral("/tmp/autodriver-59000/job"), "/tmp/autodriver-N/job");
        assert_eq!(neutral("/var/lib/dpkg"), "/var/*");
        assert_eq!(neutral("/tmp"), "/tmp");
    }

    #[test]
    fn a_text_is_read_from_another_process_across_pages() {
        let text = [b'x'; 2 * PATH_MAX];
        let own = nix::unistd::getpid();
        let address = text.as_ptr() as u64;
        assert_eq!(string(own, address), "x".repeat(string(own, address).len()));
        assert!(string(own, address).len() >= PATH_MAX);
        assert_eq!(string(own, c"short".as_ptr() as u64), "short");
        assert_eq!(string(own, 0), "");
    }
}
