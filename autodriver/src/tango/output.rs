//! Where a job's output goes: into the log and the transcript as it comes, and to standard output at the
//! end, or, with `-s`, at once.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::arguments::Arguments;
use super::failure::{mutter, Failure};
use super::log::Log;
use super::stamps::Stamps;
use super::transcript::Transcript;
use super::zone::Zone;
use crate::fault::Fault;
use crate::follow::Sink;
use crate::outlet::Outlet;
use crate::poller::Poller;

/// The output.
#[derive(Debug)]
pub(super) struct Output {
    log: Log,
    transcript: Transcript,
    stdout: Outlet,
    /// `-i`
    stamps: Option<Stamps>,
    /// `-s`
    stream: bool,
    /// What came last.
    last: Option<u8>,
    notes: Vec<String>,
}

/// What is said besides it.
#[derive(Debug)]
pub(super) struct Ending {
    /// How the job ended: on standard output, before everything else or, with `-s`, after it.
    pub(super) line: String,
    /// On standard error, and not last: where both go to one file, its last line is the job's.
    pub(super) notes: Vec<String>,
}

impl Output {
    /// With nothing in it yet.
    pub(super) fn new(arguments: &Arguments, log: Log) -> Result<Output, Failure> {
        let mut notes = Vec::new();
        let zone = arguments.timezone.as_ref().map(|name| {
            Zone::find(name).unwrap_or_else(|| {
                notes.push(format!(
                    "Time zone '{}' is not known; times are UTC",
                    String::from_utf8_lossy(name)
                ));
                Zone::default()
            })
        });
        let stamps = (arguments.interval != 0)
            .then(|| Stamps::every(arguments.interval, zone.unwrap_or_default(), Instant::now()));
        let stdout = Outlet::stdout().map_err(|fault| Failure::of(&fault))?;
        let transcript = Transcript::new(arguments.osize);
        Ok(Output { log, transcript, stdout, stamps, stream: arguments.stream, last: None, notes })
    }

    /// Writes all that was not written yet, with the line and the notes.
    pub(super) fn deliver(self, ending: Ending, signals: BorrowedFd<'_>) -> Result<(), Failure> {
        let Output { log, transcript, mut stdout, stream, last, notes, .. } = self;
        let mut notes: Vec<String> = notes.into_iter().chain(ending.notes).collect();
        if let Some(errno) = log.failed() {
            notes.push(format!("Error writing output file: {}", errno.desc()));
        }
        let line = [ending.line.as_bytes(), b"\n"].concat();
        let failed = |fault: Fault| Failure::of(&fault);
        let rest = transcript.finish();
        if stream {
            notes.iter().for_each(|note| mutter(note));
            stdout.push(&rest);
            // The line begins on a line of its own.
            if last.is_some_and(|last| last != b'\n') {
                stdout.push(b"\n");
            }
            stdout.push(&line);
            return stdout.flush(signals).map_err(failed);
        }
        stdout.push(&line);
        stdout.flush(signals).map_err(failed)?;
        notes.iter().for_each(|note| mutter(note));
        let mut stdout = Outlet::stdout().map_err(failed)?;
        stdout.push(&rest);
        stdout.flush(signals).map_err(failed)
    }
}

impl Sink for Output {
    fn take(&mut self, [came, _]: [Vec<u8>; 2]) {
        let came = match &mut self.stamps {
            Some(stamps) => stamps.insert(&came, Instant::now()),
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
        self.stdout.watch(poller, first)
    }
}
