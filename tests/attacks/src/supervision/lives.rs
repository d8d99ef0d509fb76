//! Processes that want to outlive their job.
//!
//! Where nothing ends them they end by themselves, after some seconds.

use std::fs;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{kill, raise, SigSet, Signal};
use nix::unistd::{getpid, getppid, pipe, read, setsid, Pid};

use crate::probes::{call, daemon};
use crate::tools::{
    broke, child, held, ignore, ignore_signals, leave, pause_for_ever, refused, say, sleep_ms, spin, Attempt,
    Role,
};

/// How long they live.
const LIFE_MS: u64 = 2000;
/// More than any CPU limit of these attacks.
const MUCH: Duration = Duration::from_secs(4);
/// A name that looks like the end of one, and more fields of /proc/PID/stat.
const NAME: &std::ffi::CStr = c"a) Z 1 (\n 1";

/// What the attacker says before it ends; whether what it left lives on, the driver and the next job see.
fn left(what: nix::Result<()>) -> Attempt {
    match what {
        Ok(()) => held("what it left behind has ended by the time the next job runs"),
        Err(error) => held(error),
    }
}

fn live() {
    ignore_signals();
    sleep_ms(LIFE_MS);
}

pub(super) fn double_forks(_: Role) -> Attempt {
    left(daemon(|| {
        for fd in 0..3 {
            ignore(nix::unistd::close(fd));
        }
        live();
    }))
}

/// Whoever waits for the end of the job's output waits for this.
pub(super) fn holds_stdout(_: Role) -> Attempt {
    left(daemon(|| {
        ignore_signals();
        sleep_ms(500);
        say("broke: is heard half a second after its job's end");
        sleep_ms(LIFE_MS);
    }))
}

pub(super) fn names_itself(_: Role) -> Attempt {
    ignore(prctl::set_name(NAME));
    left(daemon(live))
}

pub(super) fn spins_named(_: Role) -> Attempt {
    ignore(prctl::set_name(NAME));
    spin(MUCH);
    broke(format_args!("computed for {MUCH:?} under a name of its own"))
}

/// Orphans that go to a process of the job, and not to init.
pub(super) fn parks_orphans(_: Role) -> Attempt {
    left(daemon(|| {
        ignore(prctl::set_child_subreaper(true));
        for _ in 0..4 {
            ignore(daemon(live));
        }
        live();
    }))
}

/// Zombies that only their tracer may reap, and it does not.
pub(super) fn traces_zombies(_: Role) -> Attempt {
    let dying = || child(|| sleep_ms(100));
    let (one, other) = match (dying(), dying()) {
        (Ok(one), Ok(other)) => (one, other),
        (one, _) => return held(format_args!("{one:?}")),
    };
    let tracer = child(|| {
        ignore(setsid());
        for zombie in [one, other] {
            ignore(ptrace::seize(zombie, Options::empty()));
        }
        live();
    });
    sleep_ms(200);
    left(tracer.map(drop))
}

/// A process that sleeps so that no signal but SIGKILL wakes it: until the child it lent its memory is done.
pub(super) fn sleeps_in_vfork(_: Role) -> Attempt {
    extern "C" fn borrower(_: *mut libc::c_void) -> libc::c_int {
        sleep_ms(LIFE_MS);
        0
    }
    left(daemon(|| {
        ignore_signals();
        let mut stack = vec![0_u128; 16 << 10];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // SAFETY: the stack is the child's alone, and is there until the child has ended.
        unsafe {
            let top = stack.as_mut_ptr().add(stack.len());
            libc::clone(borrower, top.cast(), flags, std::ptr::null_mut());
        }
    }))
}

/// /proc says of such a process that it is a zombie.
pub(super) fn leader_ends(_: Role) -> Attempt {
    without_leader(|| {
        spin(MUCH);
        say(&format!("broke: computed for {MUCH:?}"));
    })
}

pub(super) fn leader_ends_and_worker_sleeps(_: Role) -> Attempt {
    without_leader(|| {
        sleep_ms(20_000);
        say("broke: slept for 20 s");
    })
}

fn without_leader(work: impl FnOnce() + Send + 'static) -> Attempt {
    let worker = std::thread::Builder::new().spawn(|| {
        work();
        leave(1)
    });
    match worker {
        Ok(_) => refused(call(libc::SYS_exit, [0; 5]), "came back from exit(2)"),
        Err(error) => held(error),
    }
}

pub(super) fn is_deaf(_: Role) -> Attempt {
    ignore_signals();
    ignore(SigSet::all().thread_block());
    for _ in 0..4 {
        ignore(child(|| sleep_ms(20_000)));
    }
    sleep_ms(20_000);
    broke("slept for 20 s")
}

/// Signals to a stopped process stay where they are, but for SIGKILL.
pub(super) fn is_stopped(_: Role) -> Attempt {
    for _ in 0..4 {
        ignore(child(|| {
            ignore_signals();
            ignore(raise(Signal::SIGSTOP));
            pause_for_ever()
        }));
    }
    ignore(raise(Signal::SIGSTOP));
    broke("was told to go on")
}

/// Begins when the job's first process has ended: what then acts with the job's uid is the driver's. Several
/// threads, and not processes, which would kill one another.
pub(super) fn kills_helpers(_: Role) -> Attempt {
    let Ok((reader, writer)) = pipe() else { return held("no pipe") };
    let killer = daemon(|| {
        // Only the first process holds the other end then.
        ignore(nix::unistd::close(writer.as_raw_fd()));
        ignore(read(&reader, &mut [0]));
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(kills_all)).collect();
        threads.into_iter().for_each(|thread| ignore(thread.join()));
    });
    // Open until this process ends.
    let _writer = writer.into_raw_fd();
    left(killer)
}

fn kills_all() {
    let end = Instant::now() + Duration::from_millis(LIFE_MS);
    while Instant::now() < end {
        ignore(kill(Pid::from_raw(-1), Signal::SIGKILL));
    }
}

/// Writes what was read by nobody yet.
pub(super) fn writes_late(_: Role) -> Attempt {
    if let Err(error) = fs::write("result.txt", "innocent") {
        return held(error);
    }
    let job = getpid();
    let writer = child(|| {
        ignore_signals();
        while getppid() == job {
            sleep_ms(1);
        }
        // What is done in the very moment of the end counts as done before it.
        sleep_ms(30);
        for _ in 0..500 {
            ignore(fs::write("result.txt", "late"));
            sleep_ms(2);
        }
    });
    left(writer.map(drop))
}
