//! The transfers of a session: a worker, what is watched of it, and what waits to be handed on.

use std::os::fd::AsFd;

use autodriver_protocol::{Kind, Transferred};
use nix::errno::Errno;

use crate::fault::{Fault, Step};
use crate::poller::{Interest, Poller};
use crate::slot::Slot;
use crate::transfer::{self, Task, Worker};
use crate::wire::Wire;

/// Most bytes of a `get` that wait to be sent.
const GET_BACKLOG: usize = 1 << 20;
/// Bytes of a `get` read at once.
const GET_CHUNK: usize = 256 << 10;

/// A worker and what is watched of it.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) worker: Worker,
    stream_watched: bool,
    ending_watched: bool,
    /// Why its stream was given up.
    failed: Option<Errno>,
}

/// A put under way.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) transfer: Transfer,
    /// What the worker has not taken yet.
    pending: Vec<u8>,
    written: usize,
    /// The empty frame came.
    pub(super) complete: bool,
    /// The host does not want it any more.
    pub(super) cancelled: bool,
}

impl Transfer {
    pub(super) fn start(task: &Task, slot: &Slot) -> Result<Transfer, Fault> {
        let worker = transfer::start(task, slot.storage().job(), slot.identity())?;
        worker.set_nonblocking()?;
        Ok(Transfer { worker, stream_watched: false, ending_watched: false, failed: None })
    }

    fn watch_stream(
        &mut self,
        want: bool,
        interest: Interest,
        poller: &Poller,
        token: u64,
    ) -> Result<(), Fault> {
        let want = want && self.worker.stream.is_some();
        if let Some(stream) = self.worker.stream.as_ref().filter(|_| want != self.stream_watched) {
            match want {
                true => poller.add(stream.as_fd(), interest, token)?,
                false => poller.remove(stream.as_fd()),
            }
            self.stream_watched = want;
        }
        Ok(())
    }

    fn watch_ending(&mut self, poller: &Poller, token: u64) -> Result<(), Fault> {
        if !self.ending_watched {
            poller.add(self.worker.ending.as_fd(), Interest::Read, token)?;
            self.ending_watched = true;
        }
        Ok(())
    }

    fn end_stream(&mut self, poller: &Poller) {
        if let Some(stream) = self.worker.stream.take() {
            if self.stream_watched {
                poller.remove(stream.as_fd());
            }
            self.stream_watched = false;
        }
    }

    /// The worker cannot be reached, though it may be there: what it says of its end will not be the whole.
    fn give_up(&mut self, errno: Errno, poller: &Poller) {
        self.failed = Some(errno);
        self.end_stream(poller);
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// What went wrong.
    pub(super) fn finish(self) -> Result<Transferred, Fault> {
        let done = self.worker.finish()?;
        let failed = self.failed.map(|errno| Fault::new(Step::Transfer, "reach the copying process", errno));
        failed.map_or(Ok(done), Err)
    }

    pub(super) fn stop_watching(&mut self, poller: &Poller) {
        self.end_stream(poller);
        if self.ending_watched {
            poller.remove(self.worker.ending.as_fd());
            self.ending_watched = false;
        }
    }

    /// Watches a get: its stream while there is room on the wire; its end once the stream has ended,
    /// so that room decides the pace.
    pub(super) fn watch_get(
        &mut self,
        poller: &Poller,
        stream: u64,
        ending: u64,
        wire: &Wire,
    ) -> Result<(), Fault> {
        let room = wire.backlog() < GET_BACKLOG;
        self.watch_stream(room, Interest::Read, poller, stream)?;
        match self.worker.stream {
            Some(_) => Ok(()),
            None => self.watch_ending(poller, ending),
        }
    }

    /// Sends on what a get's worker has packed.
    pub(super) fn send_on(&mut self, poller: &Poller, wire: &mut Wire, id: u32) {
        let Some(stream) = &self.worker.stream else { return };
        let mut buffer = vec![0; GET_CHUNK];
        match nix::unistd::read(stream, &mut buffer) {
            Ok(0) => self.end_stream(poller),
            Ok(count) => wire.send_data(Kind::Data, id, &buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => self.give_up(errno, poller),
        }
    }
}

impl Put {
    /// With nothing taken yet.
    pub(super) fn new(transfer: Transfer) -> Put {
        Put { transfer, pending: Vec::new(), written: 0, complete: false, cancelled: false }
    }

    /// Whether the worker has not taken all that came.
    pub(super) fn is_clogged(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The next piece of the stream; an empty one ends it.
    pub(super) fn take(&mut self, payload: &[u8], poller: &Poller) {
        self.complete = payload.is_empty();
        if !self.cancelled {
            self.pending.extend_from_slice(payload);
            self.push(poller);
        }
    }

    /// Watches its stream while it is clogged, and its end.
    pub(super) fn watch(&mut self, poller: &Poller, stream: u64, ending: u64) -> Result<(), Fault> {
        let clogged = self.is_clogged();
        self.transfer.watch_stream(clogged, Interest::Write, poller, stream)?;
        self.transfer.watch_ending(poller, ending)
    }

    /// The stream ends here, and the worker with it: on its way out it removes what is not complete,
    /// which it could not if it were killed.
    pub(super) fn cancel(&mut self, poller: &Poller) {
        self.cancelled = true;
        self.pending.clear();
        self.written = 0;
        self.transfer.end_stream(poller);
    }

    /// Hands on what the worker takes now. A worker that takes no more has ended, and says why.
    pub(super) fn push(&mut self, poller: &Poller) {
        while self.written < self.pending.len() {
            let Some(stream) = &self.transfer.worker.stream else { break };
            match nix::unistd::write(stream, &self.pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE) => self.transfer.end_stream(poller),
                Err(errno) => self.transfer.give_up(errno, poller),
            }
        }
        self.pending.clear();
        self.written = 0;
        if self.complete {
            self.transfer.end_stream(poller);
        }
    }
}
