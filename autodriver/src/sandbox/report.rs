//! The pipe on which the children of the driver tell how far they came: fixed records, so that
//! a child needs no memory to write one, and the driver no trust to read one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::fault::Step;
use crate::sys::fd::uninterrupted;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// A step failed: on its `index`-th object, with this errno.
    Fault {
        /// Which step.
        step: Step,
        /// Which object of that step; the driver's plan knows its name.
        index: u16,
        /// Why.
        errno: Errno,
    },
    /// Every layer stands; the next call is execve(2).
    ExecNext,
    /// The job exited, with this status.
    Exited(i32),
    /// The job died of this signal.
    Signaled(i32),
}

/// Bytes in a record; less than PIPE_BUF, so that records of two writers never mix.
const RECORD_LEN: usize = 8;

impl Record {
    fn encode(self) -> [u8; RECORD_LEN] {
        let (kind, step, index, value) = match self {
            Record::Fault { step, index, errno } => (1, step as u8, index, errno as i32),
            Record::ExecNext => (2, 0, 0, 0),
            Record::Exited(status) => (3, 0, 0, status),
            Record::Signaled(signal) => (4, 0, 0, signal),
        };
        let [i0, i1] = index.to_le_bytes();
        let [v0, v1, v2, v3] = value.to_le_bytes();
        [kind, step, i0, i1, v0, v1, v2, v3]
    }

    fn decode(bytes: [u8; RECORD_LEN]) -> Option<Record> {
        let [kind, step, i0, i1, v0, v1, v2, v3] = bytes;
        let index = u16::from_le_bytes([i0, i1]);
        let value = i32::from_le_bytes([v0, v1, v2, v3]);
        Some(match kind {
            1 => Record::Fault { step: Step::from_number(step)?, index, errno: Errno::from_raw(value) },
            2 => Record::ExecNext,
            3 => Record::Exited(value),
            4 => Record::Signaled(value),
            _ => return None,
        })
    }
}

/// The children's end.
#[derive(Debug)]
pub struct Reporter(pub OwnedFd);

impl Reporter {
    /// Writes one record.
    ///
    /// # Errors
    /// Those of write(2). The driver takes what it is not told for a failure.
    pub fn send(&self, record: Record) -> Result<(), Errno> {
        uninterrupted(|| nix::unistd::write(&self.0, &record.encode())).map(drop)
    }
}

/// The driver's end: non-blocking.
#[derive(Debug)]
pub struct Reports {
    fd: OwnedFd,
    partial: Vec<u8>,
}

impl Reports {
    /// Takes over the reading end.
    pub fn new(fd: OwnedFd) -> Reports {
        Reports { fd, partial: Vec::new() }
    }

    /// For polling.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The records that have come; whether more can, or why they cannot be read.
    pub fn receive(&mut self) -> (Vec<Record>, Result<bool, Errno>) {
        let mut buffer = [0; 16 * RECORD_LEN];
        let mut open = Ok(true);
        loop {
            match nix::unistd::read(&self.fd, &mut buffer) {
                Ok(0) => open = Ok(false),
                Ok(count) => {
                    self.partial.extend_from_slice(&buffer[..count]);
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {}
                Err(errno) => open = Err(errno),
            }
            break;
        }
        let whole = self.partial.len() / RECORD_LEN * RECORD_LEN;
        let records = self.partial[..whole]
            .chunks_exact(RECORD_LEN)
            .filter_map(|chunk| chunk.try_into().ok().and_then(Record::decode));
        let records = records.collect();
        self.partial.drain(..whole);
        (records, open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_back_and_garbage_does_not() {
        for record in [
            Record::Fault { step: Step::Mounts, index: 300, errno: Errno::EPERM },
            Record::ExecNext,
            Record::Exited(255),
            Record::Signaled(9),
        ] {
            assert_eq!(Record::decode(record.encode()), Some(record));
        }
        assert_eq!(Record::decode([0; 8]), None);
        assert_eq!(Record::decode([1, 200, 0, 0, 0, 0, 0, 0]), None);
    }
}
