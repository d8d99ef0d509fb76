//! What the attempts share: what came of them, and small things to try with.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::{fork, ForkResult, Pid};

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// It was stopped, and how.
    Held(String),
    /// It succeeded, and in what.
    Broke(String),
}

/// Whose part a program plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The job that is judged.
    Attacker,
    /// The job before or beside it.
    Accomplice,
}

/// Stopped, and how.
pub(crate) fn held(how: impl fmt::Display) -> Attempt {
    Attempt::Held(how.to_string())
}

/// Succeeded, and in what.
pub(crate) fn broke(what: impl fmt::Display) -> Attempt {
    Attempt::Broke(what.to_string())
}

/// Succeeded in having more than its share - if it still has it when everybody has had time to look:
/// limits that are sampled are exceeded for a moment, which README says of them.
pub(crate) fn broke_for_good(what: impl fmt::Display) -> Attempt {
    sleep_ms(500);
    broke(what)
}

/// An error is a refusal; a success is the attack's.
pub(crate) fn refused<T, E: fmt::Display>(result: Result<T, E>, what: &str) -> Attempt {
    match result {
        Ok(_) => broke(what),
        Err(error) => held(error),
    }
}

/// The first that succeeded; else what stopped the last.
pub(crate) fn any(attempts: impl IntoIterator<Item = Attempt>) -> Attempt {
    let mut last = held("there was nothing to try");
    for attempt in attempts {
        if matches!(attempt, Attempt::Broke(_)) {
            return attempt;
        }
        last = attempt;
    }
    last
}

/// Writes one line to stdout; a reader that is gone is no concern of ours.
pub(crate) fn say(line: &str) {
    let mut stdout = io::stdout().lock();
    ignore(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

/// For what may fail without a difference to the attempt.
pub(crate) fn ignore<T, E>(_: Result<T, E>) {}

/// The result of a raw system call.
pub(crate) fn raw(result: libc::c_long) -> nix::Result<libc::c_long> {
    Errno::result(result)
}

/// Starts a child that does `work` and ends.
pub(crate) fn child(work: impl FnOnce()) -> nix::Result<Pid> {
    // SAFETY: the program has one thread, so the child may do whatever the parent might.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            work();
            leave(0)
        }
    }
}

/// Ends the process at once, with nothing flushed twice.
pub(crate) fn leave(status: i32) -> ! {
    // SAFETY: _exit(2) ends the process and has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Waits for a child's end, and says how it was.
pub(crate) fn end_of(child: Pid) -> nix::Result<WaitStatus> {
    waitpid(child, Some(WaitPidFlag::empty()))
}

/// Kills and reaps children.
pub(crate) fn put_down(children: &[Pid]) {
    for child in children {
        ignore(nix::sys::signal::kill(*child, nix::sys::signal::Signal::SIGKILL));
    }
    for child in children {
        ignore(end_of(*child));
    }
}

/// CPU time of this process and its threads.
pub(crate) fn cpu_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// Computes for so much CPU time.
pub(crate) fn spin(time: Duration) {
    while cpu_time() < time {
        std::hint::spin_loop();
    }
}

pub(crate) fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// For ever, but for signals.
pub(crate) fn pause_for_ever() -> ! {
    loop {
        // SAFETY: pause(2) takes no arguments and touches no memory.
        unsafe { libc::pause() };
    }
}

/// The attacker may begin.
pub(crate) fn ready() {
    say(crate::READY);
}

/// The attacker may begin; what this process has it keeps until it is ended.
pub(crate) fn ready_and_wait() -> ! {
    ready();
    pause_for_ever()
}

/// The processes that /proc names, but for this one, which has the number there that /proc says: the
/// /proc of another PID namespace has another than getpid(2).
pub(crate) fn other_processes() -> Vec<i32> {
    let own = std::fs::read_link("/proc/self").ok();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter(|entry| own.as_deref() != Some(std::path::Path::new(&entry.file_name())));
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// As much of a resource as can be had.
pub(crate) fn raise_limit(resource: Resource) {
    let Ok((_, hard)) = getrlimit(resource) else { return };
    let tries = [(libc::RLIM_INFINITY, libc::RLIM_INFINITY), (hard, hard)];
    let _raised = tries.into_iter().any(|(soft, hard)| setrlimit(resource, soft, hard).is_ok());
}

/// Ignores every signal that can be ignored.
pub(crate) fn ignore_signals() {
    for signal in 1..=64 {
        // SAFETY: ignoring a signal installs no handler; those that cannot be ignored fail.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// An anonymous mapping of so many bytes, each page of it written.
pub(crate) fn touch(bytes: usize) -> nix::Result<()> {
    const PAGE: usize = 4096;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping of the kernel's choice touches nothing that is there.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    for offset in (0..bytes).step_by(PAGE) {
        // SAFETY: the offset is inside the mapping, which is never unmapped.
        unsafe { start.cast::<u8>().add(offset).write_volatile(1) };
    }
    Ok(())
}
