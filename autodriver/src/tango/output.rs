//! Where a job's output goes: into the log and the transcript as it comes, and to standard output at the
//! end, or, with `-s`, at once.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::arguments::Arguments;
use super::failure::{mutter, Failure};
use super::log::Log;
use super::stamps::Stamps;
use super::transcript::Transcript;
use super::voice::Voice;
use super::witness::Witness;
use crate::fault::Fault;
use crate::follow::Sink;
use crate::outlet::Outlet;
use crate::poller::Poller;

/// The output.
#[derive(Debug)]
pub(super) struct Output {
    log: Log,
    witness: Witness,
    transcript: Transcript,
    stdout: Outlet,
    /// `-i`
    stamps: Option<Stamps>,
    /// `-s`
    stream: bool,
    /// What came last.
    last: Option<u8>,
}

/// What is said besides it.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// How the job ended: on standard output, before everything else or, with `-s`, after it.
    pub(super) lines: Vec<String>,
    /// On standard error, and not last: where both go to one file, its last line is the job's.
    pub(super) notes: Vec<String>,
    /// On standard output, after everything else.
    pub(super) last: Option<String>,
}

impl Output {
    /// With nothing in it yet.
    pub(super) fn new(
        arguments: &Arguments,
        voice: &Voice,
        log: Log,
        witness: Witness,
    ) -> Result<Output, Failure> {
        witness.show(log.file());
        let stamps = match voice {
            Voice::Timed(zone) if arguments.interval != 0 => {
                Some(Stamps::every(arguments.interval, zone.clone(), Instant::now()))
            }
            _ => None,
        };
        let stdout = Outlet::stdout().map_err(|fault| Failure::of(&fault))?;
        let transcript = Transcript::new(arguments.osize, voice.mark());
        Ok(Output { log, witness, transcript, stdout, stamps, stream: arguments.stream, last: None })
    }

    /// How much there was, and how much of it is returned at most, where that is less.
    pub(super) fn elided(&self) -> Option<(u64, usize)> {
        self.transcript.elided()
    }

    /// Writes all that was not written yet, and what is said besides.
    pub(super) fn deliver(self, ending: Ending, signals: BorrowedFd<'_>) -> Result<(), Failure> {
        let Output { log, witness, transcript, mut stdout, stream, last, .. } = self;
        witness.leave_out();
        let mut notes = ending.notes;
        if let Some(errno) = log.failed() {
            notes.push(format!("Error writing output file: {}", errno.desc()));
        }
        let lines: String = ending.lines.iter().map(|line| format!("{line}\n")).collect();
        let failed = |fault: Fault| Failure::of(&fault);
        let rest = transcript.finish();
        if stream {
            notes.iter().for_each(|note| mutter(note));
            stdout.push(&rest);
            // The lines begin on a line of their own.
            if last.is_some_and(|last| last != b'\n') {
                stdout.push(b"\n");
            }
            stdout.push(lines.as_bytes());
        } else {
            stdout.push(lines.as_bytes());
            stdout.flush(signals).map_err(failed)?;
            notes.iter().for_each(|note| mutter(note));
            stdout = Outlet::stdout().map_err(failed)?;
            stdout.push(&rest);
        }
        if let Some(last) = ending.last {
            stdout.push(format!("\n{last}\n").as_bytes());
        }
        stdout.flush(signals).map_err(failed)
    }
}

impl Sink for Output {
    fn take(&mut self, [came, _]: [Vec<u8>; 2]) {
        let came = match &mut self.stamps {
            Some(stamps) => stamps.insert(&came),
            None => came,
        };
        self.last = came.last().copied().or(self.last);
        self.log.append(&came);
        self.transcript.push(&came);
        if self.stream {
            let live = self.transcript.take_live();
            self.stdout.push(&live);
        }
    }

    fn hand_on(&mut self, poller: &Poller, first: u64) -> Result<(), Fault> {
        self.stdout.write_some();
        self.witness.watch(poller, first + 1)?;
        self.stdout.watch(poller, first)
    }
}
