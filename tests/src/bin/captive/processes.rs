//! Other processes: making many, outliving the job, signalling those outside.

use std::time::Duration;
use std::{fs, thread};

use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::unistd::{getpgid, getpid, getppid, setsid, Pid};

use crate::answer::{child, number, say, wait_for_all, Answer};
use crate::clock::sleep;

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    let done = |()| String::new();
    Some(match words {
        ["fork-until-refused"] => fork_until_refused(),
        ["fork", count] => fork_many(number(count)),
        ["thread-until-refused"] => Ok(thread_until_refused()),
        ["fork-bomb"] => fork_bomb(),
        ["daemon", ms] => daemon(number(ms)),
        ["daemons", count] => daemons(number(count)),
        ["numbers"] => Ok(format!("{} {}", getpid(), getppid())),
        ["kill", pid, signal] => kill(Pid::from_raw(number(pid)), signal_of(signal)).map(done),
        ["kill-all"] => kill(Pid::from_raw(-1), Signal::SIGKILL).map(done),
        ["kill-init"] => kill_init(),
        ["kill-named-in", path] => kill_named_in(path),
        ["visible"] => visible(),
        ["session"] => session(),
        _ => return None,
    })
}

fn signal_of(word: &str) -> Option<Signal> {
    Signal::try_from(number::<i32>(word)).ok()
}

/// Forks until it is refused; says after how many and why, and ends the children.
fn fork_until_refused() -> Answer {
    let mut children = Vec::new();
    let refusal = loop {
        match child(|| sleep(u64::MAX)) {
            Ok(pid) => children.push(pid),
            Err(errno) => break errno,
        }
    };
    for pid in &children {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    wait_for_all();
    Ok(format!("{} {refusal:?}", children.len()))
}

fn fork_many(count: usize) -> Answer {
    let children = (0..count).map(|_| child(|| sleep(u64::MAX))).collect::<nix::Result<Vec<_>>>()?;
    children.iter().try_for_each(|pid| kill(*pid, Signal::SIGKILL))?;
    wait_for_all();
    Ok(String::new())
}

fn thread_until_refused() -> String {
    let mut threads = 0;
    loop {
        let builder = thread::Builder::new().stack_size(64 << 10);
        match builder.spawn(|| sleep(u64::MAX)) {
            Ok(_) => threads += 1,
            Err(error) => {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                return format!("{threads} {errno:?}");
            }
        }
    }
}

/// Every process forks for ever, in a session of its own, deaf to signals.
fn fork_bomb() -> Answer {
    loop {
        let _ = setsid();
        let _ = child(|| ());
        let _ = child(|| {
            let _ = fork_bomb();
        });
    }
}

/// A process in a session of its own, whose parents are gone, that keeps our streams open.
fn daemon(ms: u64) -> Answer {
    child(|| {
        let _ = setsid();
        let _ = child(|| sleep(ms));
    })?;
    wait_for_all();
    Ok(String::new())
}

fn daemons(count: usize) -> Answer {
    (0..count).try_for_each(|_| daemon(u64::MAX).map(drop))?;
    Ok(String::new())
}

/// Tries everything on PID 1 of the box, and lives on.
fn kill_init() -> Answer {
    let signals = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGTERM, Signal::SIGSEGV, Signal::SIGCHLD];
    let results = signals.map(|signal| kill(Pid::from_raw(1), signal).err());
    sleep(200);
    let words = results.map(|result| result.map_or("ok".to_owned(), |errno| format!("{errno:?}")));
    Ok(words.join(" "))
}

/// Waits until a file names a process, then kills that.
fn kill_named_in(path: &str) -> Answer {
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if let Some(pid) = text.strip_suffix('\n') {
            let result = kill(Pid::from_raw(number(pid)), Signal::SIGKILL);
            thread::sleep(Duration::from_millis(100));
            return result.map(|()| String::new());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The processes in /proc, by their names.
fn visible() -> Answer {
    let entries = fs::read_dir("/proc").map_err(|_| Errno::EIO)?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut pids: Vec<_> = pids.collect();
    pids.sort_unstable();
    for pid in pids {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        say(&format!("{pid} {}", name.trim_end()));
    }
    Ok(String::new())
}

/// Whether we lead a session without a terminal.
fn session() -> Answer {
    let own = getpid();
    let session = nix::unistd::getsid(None)?;
    let group = getpgid(None)?;
    let terminal =
        fs::File::open("/dev/tty").err().map(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)));
    Ok(format!("{} {} {terminal:?}", session == own, group == own))
}
