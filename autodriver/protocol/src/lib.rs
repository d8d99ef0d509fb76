//! All that a host and an autodriver share: the job document ([`Options`]), the [`Report`],
//! the frames they exchange, and the rules for archives. Nothing here touches a sandbox.
//!
//! # The conversation, for a client in any language
//!
//! A client starts `autodriver serve` on the machine that runs jobs, by any means that gives
//! it that program's stdin and stdout (a pipe, `docker exec -i`, `ssh`, a serial console), and
//! speaks as follows. All integers are little-endian. The guest's stderr is for humans.
//!
//! ## Opening
//! The host writes the 8 bytes [`HOST_SIGNATURE`] (`89 41 44 48 0D 0A 1A 0A`), then a `hello`
//! frame. The guest writes [`GUEST_SIGNATURE`] (`89 41 44 47 0D 0A 1A 0A`), then its own
//! `hello`; neither waits for the other. Before the guest's signature the host skips up to
//! 64 KiB of anything (motd, boot messages, warnings of ssh or docker). As in PNG, the high
//! bit, the CR LF and the lone LF show a 7-bit channel and newline translation, and the two
//! signatures differ so that an echoing terminal is recognised; see [`Scanner`].
//!
//! ## Frames
//! A frame is a header of 12 bytes and a payload:
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | payload length, at most 1,048,576 ([`PAYLOAD_MAX`]) |
//! | 4 | 2 | kind, see below |
//! | 6 | 2 | zero |
//! | 8 | 4 | job: a number chosen by the host at `open`, not 0; 0 for `hello`, `ping`, `pong` and errors of the connection |
//!
//! Payloads are JSON objects unless the table says raw. A frame that breaks these rules ends
//! the connection with an `error` frame for job 0, and every job on it is cancelled and
//! restored; so does end of file.
//!
//! | kind | name | from | payload |
//! | --- | --- | --- | --- |
//! | 1 | `hello` | host | [`Hello`] |
//! | 2 | `open` | host | [`Open`] |
//! | 3 | `put` | host | raw: the next bytes of a tar stream; an empty payload ends it |
//! | 4 | `run` | host | a job document: [`Options`] without `in`, `out`, `user`, `report` and `quiet`, which `put`, `get`, `open` and `report` replace; a relative `stdin` is a file of the job directory |
//! | 5 | `get` | host | [`Get`] |
//! | 6 | `cancel` | host | none |
//! | 7 | `close` | host | none |
//! | 8 | `ping` | host | raw, echoed; at most 1,024 bytes |
//! | 257 | `hello` | guest | [`Hello`] |
//! | 258 | `opened` | guest | none |
//! | 259 | `put-done` | guest | [`Transferred`] |
//! | 260 | `started` | guest | none: the program was executed |
//! | 261 | `output` | guest | raw: stdout and stderr in order |
//! | 262 | `stdout` | guest | raw, with `split` |
//! | 263 | `stderr` | guest | raw, with `split` |
//! | 264 | `report` | guest | [`Report`] |
//! | 265 | `data` | guest | raw: the next bytes of a tar stream |
//! | 266 | `get-done` | guest | [`Transferred`] |
//! | 267 | `closed` | guest | [`Closed`] |
//! | 268 | `pong` | guest | raw: as in `ping` |
//! | 269 | `error` | guest | [`ErrorMessage`] |
//!
//! ## A job
//! `open` → `opened`; then any number of these, one at a time:
//! * `put`… `put`(empty) → `put-done`: files into the job directory, by the rules of [`archive`].
//! * `run` → `started`, `output`…, `report`. Output comes while the job runs. Once half of the
//!   cap is kept, later output is held back, and what is kept of it follows when the job ends.
//!   A job that could not be started gives a `report` alone (`setup-failed`).
//! * `get` → `data`…, `get-done`: regular files that match, as one tar stream.
//!
//! Then `close` → `closed`, whose `restore` says whether the machine is as it was. `cancel` is
//! allowed at any time after `open`: a running job ends with cause `cancelled`, a put or get
//! ends with an error `cancelled`; otherwise it does nothing. `close` while a job runs cancels
//! it first, and its `report` still comes. A request that fails leaves the job as it was, with
//! one `error` frame whose `code` is one of [`ErrorCode`]; after a failed `put` the rest of its
//! stream is skipped up to the empty frame. Requests out of order are such errors too, except
//! those for a job that is not open, which end the connection.
//!
//! Up to [`JOBS_MAX`] jobs may be open at once; frames of different jobs interleave freely.
//! A guest never lets a slow host stop its clocks: it holds what is kept of the output, and
//! stops reading requests when it has more than 4 MiB to send.
#![forbid(unsafe_code)]

pub mod units;
pub mod layer;
pub mod job;
pub mod report;
pub mod frame;
pub mod message;
pub mod archive;

pub use frame::{Decoder, Direction, Kind, Scanner, WireError};
pub use frame::{GUEST_SIGNATURE, HOST_SIGNATURE, NOISE_MAX, PAYLOAD_MAX};
pub use job::Options;
pub use layer::{Layer, Requirement};
pub use message::{Closed, ErrorCode, ErrorMessage, Get, Hello, Open, Phase, Skipped, Transferred, JOBS_MAX};
pub use report::{Cause, Report};
