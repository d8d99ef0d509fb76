//! CPU time, wall clock time, output.

use std::io::{self, Read, Write};
use std::time::Duration;

use nix::sys::signal::{kill, Signal};
use nix::unistd::{getpid, getppid, setsid, Pid};

use crate::tools::{
    broke, child, cpu_time, end_of, held, ignore, ignore_signals, pause_for_ever, raise_limit, say, sleep_ms,
    spin, Attempt, Role,
};

/// More than any limit of these attacks allows.
const MUCH: Duration = Duration::from_secs(4);

/// Longer than the wall clock of these attacks.
pub(super) const LONG_MS: u64 = 5_000;

pub(super) fn spins(_: Role) -> Attempt {
    spin(MUCH);
    broke(format_args!("had {:?} of CPU time", cpu_time()))
}

pub(super) fn spins_deafly(role: Role) -> Attempt {
    ignore_signals();
    raise_limit(nix::sys::resource::Resource::RLIMIT_CPU);
    spins(role)
}

/// Children that live a tenth of a second each, one after another, and whom nobody waits for: their
/// time is in no rusage.
pub(super) fn fans_out(_: Role) -> Attempt {
    const EACH: Duration = Duration::from_millis(100);
    ignore_signals();
    let mut had = Duration::ZERO;
    while had < MUCH {
        match child(|| spin(EACH)) {
            // With SIGCHLD ignored this waits for all children, and fails.
            Ok(pid) => ignore(end_of(pid)),
            Err(error) => return held(error),
        }
        had += EACH;
    }
    broke(format_args!("its children had {had:?} of CPU time"))
}

pub(super) fn starves(_: Role) -> Attempt {
    for _ in 0..64 {
        let spinner = child(|| loop {
            std::thread::yield_now();
        });
        if spinner.is_err() {
            break;
        }
    }
    sleep_ms(LONG_MS);
    broke("still there after the wall clock")
}

pub(super) fn sleeps(_: Role) -> Attempt {
    ignore_signals();
    sleep_ms(LONG_MS);
    broke("slept on")
}

/// A driver that takes the news of a stopped child for that of a dead one loses its clock.
pub(super) fn stops_all(_: Role) -> Attempt {
    let (job, parent) = (getpid(), getppid());
    let waker = child(|| {
        ignore(setsid()); // out of the group that is stopped
        sleep_ms(500);
        for _ in 0..10 {
            ignore(kill(job, Signal::SIGCONT));
            ignore(kill(parent, Signal::SIGCONT));
            sleep_ms(50);
        }
    });
    if waker.is_err() {
        return held("no process to wake it");
    }
    sleep_ms(100); // until the waker is out of it
    for target in [parent, Pid::from_raw(1), Pid::from_raw(0), job] {
        ignore(kill(target, Signal::SIGSTOP));
    }
    sleep_ms(LONG_MS);
    broke("lived on")
}

pub(super) fn reads_stdin(_: Role) -> Attempt {
    let mut bytes = Vec::new();
    match io::stdin().lock().take(1 << 20).read_to_end(&mut bytes) {
        Ok(0) => held("nothing to read"),
        Ok(count) => broke(format_args!("read {count} bytes that are not the job's")),
        Err(error) => held(error),
    }
}

pub(super) fn drips(_: Role) -> Attempt {
    for _ in 0..LONG_MS / 100 {
        ignore(io::stdout().write_all(b"\x1b").and_then(|()| io::stdout().flush()));
        sleep_ms(100);
    }
    say("");
    broke("printed on")
}

pub(super) fn floods(_: Role) -> Attempt {
    let chunk = [b'x'; 1 << 16];
    for _ in 0..1024 {
        if io::stdout().write_all(&chunk).is_err() || io::stderr().write_all(&chunk[..16]).is_err() {
            pause_for_ever();
        }
    }
    ignore(io::stdout().write_all(b"\n"));
    held("all of it was taken, and what follows is kept")
}
