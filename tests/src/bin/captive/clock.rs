//! Time: sleeping, burning CPU in every way that hides it, and not dying when asked to.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{raise, sigaction, SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal};
use nix::time::{clock_gettime, ClockId};

use crate::answer::{child, number, say, wait_for_all, Answer};

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    let done = Ok(String::new());
    match words {
        ["sleep", ms] => sleep(number(ms)),
        ["spin", ms] => spin(number(ms)),
        ["spin-children", count, ms] => {
            (0..number(count)).for_each(|_| start(|| spin(number(ms))));
            wait_for_all();
        }
        // Children of a parent that ignores SIGCHLD are in nobody's rusage.
        ["spin-unwaited", count, ms] => {
            dispose(Signal::SIGCHLD, SigHandler::SigIgn);
            (0..number(count)).for_each(|_| start(|| spin(number(ms))));
            wait_for_all();
        }
        // So short that whoever looks at processes now and then sees none of them.
        ["spin-in-pieces", count, ms] => {
            dispose(Signal::SIGCHLD, SigHandler::SigIgn);
            for _ in 0..number(count) {
                start(|| spin(number(ms)));
                wait_for_all();
            }
        }
        // Each process stays far below any limit of its own, and hands over to the next.
        ["spin-relay", count, ms] => relay(number(count), number(ms)),
        ["last-words"] => last_words(),
        ["ignore-term"] => {
            dispose(Signal::SIGTERM, SigHandler::SigIgn);
            sleep(u64::MAX);
        }
        ["block-all"] => {
            let _ = nix::sys::signal::sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None);
            sleep(u64::MAX);
        }
        ["stop-self"] => {
            let _ = raise(Signal::SIGSTOP);
            sleep(u64::MAX);
        }
        ["stop-parent-and-children"] => {
            start(|| sleep(u64::MAX));
            let _ = nix::sys::signal::kill(nix::unistd::getppid(), Signal::SIGSTOP);
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), Signal::SIGSTOP);
            let _ = raise(Signal::SIGSTOP);
            sleep(u64::MAX);
        }
        ["signal", number_of] => {
            let signal = Signal::try_from(number::<i32>(number_of)).expect("a signal's number");
            // Rust's runtime handles SIGSEGV to tell stack overflows; nothing may handle SIGKILL.
            if signal != Signal::SIGKILL {
                dispose(signal, SigHandler::SigDfl);
            }
            return Some(raise(signal).map(|()| String::new()));
        }
        _ => return None,
    }
    Some(done)
}

pub(crate) fn sleep(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn start(work: impl FnOnce()) {
    child(work).expect("a child process");
}

/// Uses that much CPU time of this process.
fn spin(ms: u64) {
    let own = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("the CPU clock");
    while Duration::from(own()) < Duration::from_millis(ms) {
        std::hint::black_box((0..10_000_u64).sum::<u64>());
    }
}

fn relay(count: u32, ms: u64) {
    dispose(Signal::SIGCHLD, SigHandler::SigIgn);
    spin(ms);
    if count > 1 {
        start(|| relay(count - 1, ms));
        wait_for_all();
    }
}

fn dispose(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the only handler ever given is `note`, which stores to an atomic and returns.
    unsafe { sigaction(signal, &action) }.expect("a signal can be disposed of");
}

static ASKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    ASKED.store(true, Ordering::SeqCst);
}

/// Ends on SIGTERM, after a last line.
fn last_words() {
    dispose(Signal::SIGTERM, SigHandler::Handler(note));
    say("waiting");
    while !ASKED.load(Ordering::SeqCst) {
        sleep(5);
    }
    say("last words");
}
