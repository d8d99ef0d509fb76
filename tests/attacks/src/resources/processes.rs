//! Processes, threads, and what a process can have many of.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::sys::wait::WaitStatus;
use nix::unistd::{fork, setsid, ForkResult, Pid};

use super::time::LONG_MS;
use crate::tools::{
    broke, child, end_of, held, ignore, ignore_signals, leave, pause_for_ever, put_down, raise_limit,
    sleep_ms, Attempt, Role,
};

/// More than `--pids` of these attacks.
const MANY: usize = 200;

pub(super) fn forks(_: Role) -> Attempt {
    crowd(|| pause_for_ever())
}

/// Dead, and a pid each until somebody waits.
pub(super) fn leaves_zombies(_: Role) -> Attempt {
    crowd(|| leave(0))
}

fn crowd(life: impl Fn() + Copy) -> Attempt {
    raise_limit(Resource::RLIMIT_NPROC);
    let mut children: Vec<Pid> = Vec::new();
    let stopped = loop {
        match child(life) {
            Ok(_) if children.len() + 1 == MANY => break None,
            Ok(pid) => children.push(pid),
            Err(error) => break Some(error),
        }
    };
    put_down(&children);
    match stopped {
        Some(error) => held(format_args!("{error} after {} processes", children.len())),
        None => broke(format_args!("has {MANY} processes")),
    }
}

pub(super) fn starts_threads(_: Role) -> Attempt {
    raise_limit(Resource::RLIMIT_NPROC);
    for count in 0..MANY {
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(|| sleep_ms(60_000));
        if let Err(error) = thread {
            return held(format_args!("{error} after {count} threads"));
        }
    }
    broke(format_args!("has {MANY} threads"))
}

/// The set of pids changes faster than it can be listed. It ends by itself some seconds after any
/// driver should have ended it.
pub(super) fn respawns(_: Role) -> Attempt {
    let end = Instant::now() + Duration::from_secs(8);
    for _ in 0..8 {
        ignore(child(|| live_on_in_children(end)));
    }
    sleep_ms(LONG_MS);
    broke("lived on")
}

fn live_on_in_children(end: Instant) {
    ignore_signals();
    while Instant::now() < end {
        ignore(setsid());
        // SAFETY: the program has one thread.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { .. }) => return,
            Ok(ForkResult::Child) => {}
            Err(_) => sleep_ms(1),
        }
    }
}

pub(super) fn makes_timers(_: Role) -> Attempt {
    raise_limit(Resource::RLIMIT_SIGPENDING);
    const TIMERS: usize = 5000;
    for count in 0..TIMERS {
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: a null event is SIGALRM; the timer is never set.
        let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, std::ptr::null_mut(), &raw mut timer) };
        if let Err(error) = Errno::result(made) {
            return held(format_args!("{error} after {count} timers"));
        }
    }
    broke(format_args!("has {TIMERS} timers"))
}

pub(super) fn dumps_core(_: Role) -> Attempt {
    raise_limit(Resource::RLIMIT_CORE);
    let dying = child(|| {
        // SAFETY: abort(3) has no preconditions.
        unsafe { libc::abort() }
    });
    match dying.and_then(end_of) {
        Ok(WaitStatus::Signaled(_, _, true)) => broke("its core was dumped"),
        Ok(status) => held(format_args!("{status:?}")),
        Err(error) => held(error),
    }
}
