//! Following one job to its end, with nothing else to do: `autodriver run`, and the Tango form.

use std::os::fd::AsFd;
use std::time::Instant;

use autodriver_protocol::Cause;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use crate::fault::Fault;
use crate::first;
use crate::outlet::Outlet;
use crate::poller::{Interest, Poller};
use crate::slot::Slot;
use crate::supervise::{Job, Outcome, Source};

const SIGNALS: u64 = 100;
const OUTLETS: u64 = 200;

/// Who takes a job's output.
pub trait Sink {
    /// What came of standard output, or of both as one, and of standard error.
    fn take(&mut self, came: [Vec<u8>; 2]);

    /// Hands on what can be handed on now, and has the poller wait for room for the rest, under tokens
    /// from `first` on.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    fn hand_on(&mut self, poller: &Poller, first: u64) -> Result<(), Fault>;
}

impl Sink for [Outlet; 2] {
    fn take(&mut self, came: [Vec<u8>; 2]) {
        for (outlet, bytes) in self.iter_mut().zip(came) {
            outlet.push(&bytes);
        }
    }

    fn hand_on(&mut self, poller: &Poller, first: u64) -> Result<(), Fault> {
        for (token, outlet) in (first..).zip(self) {
            outlet.write_some();
            outlet.watch(poller, token)?;
        }
        Ok(())
    }
}

/// The signal of this number, if it says nothing to a driver.
pub fn passed_on(number: u32) -> Option<Signal> {
    first::PASSED_ON.into_iter().find(|signal| u32::try_from(*signal as i32) == Ok(number))
}

/// Follows the job to its end; its output goes to the sink as it comes. A signal that asks us to end
/// cancels it.
///
/// # Errors
/// What it takes to wait for events.
pub fn follow(mut job: Job, slot: &Slot, signals: &SignalFd, sink: &mut impl Sink) -> Result<Outcome, Fault> {
    let poller = Poller::new()?;
    for source in Source::ALL {
        if let Some(fd) = job.fd(source) {
            poller.add(fd, Interest::Read, source as u64)?;
        }
    }
    poller.add(signals.as_fd(), Interest::Read, SIGNALS)?;
    while !job.is_over() {
        let now = Instant::now();
        for token in poller.wait(job.next_tick(now), now)? {
            let now = Instant::now();
            let source = Source::ALL.into_iter().find(|source| *source as u64 == token);
            match source {
                Some(source) if !job.ready(source, now, slot.storage()) => {
                    job.fd(source).into_iter().for_each(|fd| poller.remove(fd));
                }
                Some(_) => {}
                None if token == SIGNALS => {
                    while let Ok(Some(came)) = signals.read_signal() {
                        match passed_on(came.ssi_signo) {
                            Some(signal) => job.pass_on(signal),
                            None => job.end(Cause::Cancelled, now),
                        }
                    }
                }
                None => {}
            }
        }
        job.tick(Instant::now(), slot.storage());
        first::reap();
        sink.take(job.take_live());
        sink.hand_on(&poller, OUTLETS)?;
    }
    let (rest, outcome) = job.finish(slot.storage());
    sink.take(rest);
    Ok(outcome)
}
