//! Tar streams as ordinary writers and readers. Each call that would block runs the poll loop
//! instead, so that the guest can speak while it is fed, and the deadline counts.

use std::io::{self, Read, Write};

use autodriver_protocol::frame::HEADER_LEN;
use autodriver_protocol::{Kind, Transferred, WireError};

use super::job::charge;
use super::{parse, Job, SessionError};

/// Payload of one `put` frame.
const CHUNK: usize = 256 << 10;

/// The real error is kept aside: an [`io::Error`] cannot carry it through the archive's code.
fn interrupted() -> io::Error {
    io::Error::other("the transfer was interrupted")
}

/// Bytes of a tar stream, as `put` frames.
pub(super) struct PutStream<'j, 'c> {
    job: &'j mut Job<'c>,
    error: Option<SessionError>,
}

impl<'j, 'c> PutStream<'j, 'c> {
    pub(super) fn new(job: &'j mut Job<'c>) -> Self {
        PutStream { job, error: None }
    }

    /// Why the stream was interrupted, if it was.
    pub(super) fn into_error(self) -> Option<SessionError> {
        self.error
    }

    fn chunk(&mut self, chunk: &[u8]) -> Result<(), SessionError> {
        self.job.request(Kind::Put, chunk)?;
        match self.job.make_room()? {
            None => Ok(()),
            Some(Kind::Error) => Err(self.job.refused()),
            Some(got) => {
                Err(WireError::OutOfOrder { got, expected: "no answer before the archive's end" }.into())
            }
        }
    }
}

impl Write for PutStream<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        if self.error.is_some() {
            return Err(interrupted());
        }
        if !chunk.is_empty() {
            self.chunk(chunk).map_err(|error| {
                self.error = Some(error);
                interrupted()
            })?;
        }
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes of a tar stream, from `data` frames.
pub(super) struct GetStream<'j, 'c> {
    job: &'j mut Job<'c>,
    /// How much of the current payload was read.
    taken: usize,
    has_data: bool,
    budget: u64,
    limit: u64,
    end: Option<Result<Transferred, SessionError>>,
}

impl<'j, 'c> GetStream<'j, 'c> {
    pub(super) fn new(job: &'j mut Job<'c>, budget: u64) -> Self {
        GetStream { job, taken: 0, has_data: false, budget, limit: budget, end: None }
    }

    /// How the stream ended; `None` if it was not read to its end.
    pub(super) fn into_result(self) -> Result<Option<Transferred>, SessionError> {
        self.end.transpose()
    }

    /// Waits for the next frame; at the last one, sets `end`.
    fn next(&mut self) -> Result<(), SessionError> {
        self.has_data = false;
        match self.job.answer()? {
            Kind::Data => {
                let weight = (self.job.payload().len() + HEADER_LEN) as u64;
                self.budget = charge(self.budget, weight, "files", self.limit)?;
                (self.has_data, self.taken) = (true, 0);
            }
            Kind::GetDone => self.end = Some(parse(Kind::GetDone, self.job.payload())),
            Kind::Error => return Err(self.job.refused()),
            got => return Err(WireError::OutOfOrder { got, expected: "data, get-done or error" }.into()),
        }
        Ok(())
    }
}

impl Read for GetStream<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match &self.end {
                Some(Ok(_)) => return Ok(0),
                Some(Err(_)) => return Err(interrupted()),
                None => {}
            }
            let rest = if self.has_data { &self.job.payload()[self.taken..] } else { &[] };
            if !rest.is_empty() {
                let count = rest.len().min(buffer.len());
                buffer[..count].copy_from_slice(&rest[..count]);
                self.taken += count;
                return Ok(count);
            }
            if let Err(error) = self.next() {
                self.end = Some(Err(error));
            }
        }
    }
}
