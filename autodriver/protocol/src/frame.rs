//! Signatures and frames: bytes in, typed errors or whole frames out. No policy, no I/O of its
//! own but [`Decoder::fill`].

use std::fmt;
use std::io::{self, Read};

/// First bytes from the host.
pub const HOST_SIGNATURE: [u8; 8] = *b"\x89ADH\r\n\x1a\n";
/// First bytes from the guest.
pub const GUEST_SIGNATURE: [u8; 8] = *b"\x89ADG\r\n\x1a\n";
/// Most bytes skipped before the guest's signature.
pub const NOISE_MAX: usize = 64 << 10;
/// Largest payload, in bytes.
pub const PAYLOAD_MAX: usize = 1 << 20;
/// Bytes in a header.
pub const HEADER_LEN: usize = 12;

/// Which way a frame travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Requests.
    FromHost,
    /// Answers and events.
    FromGuest,
}

macro_rules! kinds {
    ($($name:ident = $number:literal, $text:literal, $direction:ident;)*) => {
        /// What a frame is; the crate's documentation says what each carries.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)]
        #[repr(u16)]
        pub enum Kind { $($name = $number,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            fn from_number(number: u16) -> Option<Kind> {
                match number {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }

            /// The name used in errors and documentation.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$name => $text,)* }
            }

            /// Which side sends it.
            pub fn direction(self) -> Direction {
                match self { $(Kind::$name => Direction::$direction,)* }
            }
        }
    };
}

kinds! {
    HostHello = 1, "hello", FromHost;
    Open = 2, "open", FromHost;
    Put = 3, "put", FromHost;
    Run = 4, "run", FromHost;
    Get = 5, "get", FromHost;
    Cancel = 6, "cancel", FromHost;
    Close = 7, "close", FromHost;
    Ping = 8, "ping", FromHost;
    GuestHello = 257, "hello", FromGuest;
    Opened = 258, "opened", FromGuest;
    PutDone = 259, "put-done", FromGuest;
    Started = 260, "started", FromGuest;
    Output = 261, "output", FromGuest;
    Stdout = 262, "stdout", FromGuest;
    Stderr = 263, "stderr", FromGuest;
    Report = 264, "report", FromGuest;
    Data = 265, "data", FromGuest;
    GetDone = 266, "get-done", FromGuest;
    Closed = 267, "closed", FromGuest;
    Pong = 268, "pong", FromGuest;
    Error = 269, "error", FromGuest;
}

/// What the peer, or the channel between, did wrong. Every one ends the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireError {
    /// More than [`NOISE_MAX`] bytes without a signature.
    NoSignature,
    /// The signature came damaged; says by what.
    Damaged(&'static str),
    /// The peer ended before or inside something; says what was expected.
    Ended(&'static str),
    /// A length over [`PAYLOAD_MAX`].
    TooLong(u32),
    /// A kind that this direction does not have.
    UnknownKind(u16),
    /// The two bytes that must be zero were not.
    Reserved(u16),
    /// A frame that may not come now.
    OutOfOrder {
        /// The frame that came.
        got: Kind,
        /// What was expected instead.
        expected: &'static str,
    },
    /// A payload that does not read as its kind's type.
    BadPayload(Kind, String),
    /// A job number that is not open, or is already.
    BadJob(u32, &'static str),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::NoSignature => {
                write!(f, "no signature within {NOISE_MAX} bytes; is the peer an autodriver (serve), and does it start?")
            }
            WireError::Damaged(by) => write!(f, "signature damaged: {by}; the channel must pass bytes unchanged (no terminal: docker exec -i without -t, ssh -T)"),
            WireError::Ended(expected) => write!(f, "the peer ended where {expected} was expected"),
            WireError::TooLong(length) => {
                write!(f, "frame of {length} bytes; at most {PAYLOAD_MAX} are accepted")
            }
            WireError::UnknownKind(kind) => write!(f, "unknown frame kind {kind}"),
            WireError::Reserved(value) => write!(f, "reserved header bytes are {value:#06x}; expected zero"),
            WireError::OutOfOrder { got, expected } => {
                write!(f, "frame '{}' out of order; expected {expected}", got.name())
            }
            WireError::BadPayload(kind, why) => write!(f, "payload of '{}': {why}", kind.name()),
            WireError::BadJob(job, why) => write!(f, "job {job} {why}"),
        }
    }
}

impl std::error::Error for WireError {}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// The job it belongs to; 0 is the connection.
    pub job: u32,
    /// Bytes of payload.
    pub length: usize,
}

impl Header {
    /// The header's bytes.
    ///
    /// # Panics
    /// If `length` is over [`PAYLOAD_MAX`]: senders split data, and never build such a frame.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        assert!(self.length <= PAYLOAD_MAX, "payload of {} bytes", self.length);
        let mut bytes = [0; HEADER_LEN];
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..6].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[8..].copy_from_slice(&self.job.to_le_bytes());
        bytes
    }

    /// Reads a header that travels in `direction`.
    ///
    /// # Errors
    /// [`WireError::TooLong`], [`WireError::UnknownKind`] or [`WireError::Reserved`].
    pub fn decode(bytes: [u8; HEADER_LEN], direction: Direction) -> Result<Header, WireError> {
        let [l0, l1, l2, l3, k0, k1, z0, z1, j0, j1, j2, j3] = bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let number = u16::from_le_bytes([k0, k1]);
        let reserved = u16::from_le_bytes([z0, z1]);
        let kind = Kind::from_number(number).filter(|kind| kind.direction() == direction);
        let kind = kind.ok_or(WireError::UnknownKind(number))?;
        if reserved != 0 {
            return Err(WireError::Reserved(reserved));
        }
        if length as usize > PAYLOAD_MAX {
            return Err(WireError::TooLong(length));
        }
        Ok(Header { kind, job: u32::from_le_bytes([j0, j1, j2, j3]), length: length as usize })
    }
}

/// A whole frame as bytes.
pub fn encode(kind: Kind, job: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { kind, job, length: payload.len() }.encode();
    [&header[..], payload].concat()
}

/// Turns bytes of any split into frames. Memory grows with what was received, never with what
/// a header promises, and holds at most one frame and one read.
#[derive(Debug)]
pub struct Decoder {
    direction: Direction,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

const READ_LEN: usize = 64 << 10;

impl Decoder {
    /// For frames that travel in `direction`.
    pub fn new(direction: Direction) -> Decoder {
        Decoder { direction, buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Makes room for one read; returns where to put it. [`Decoder::received`] follows.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.end < READ_LEN {
            self.buffer.resize(self.end + READ_LEN, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Notes that `count` bytes were put into [`Decoder::space`].
    pub fn received(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// One read from `source`; returns the bytes read, 0 at end of file.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn fill(&mut self, source: &mut impl Read) -> io::Result<usize> {
        let count = source.read(self.space())?;
        self.received(count);
        Ok(count)
    }

    /// Appends bytes that were read elsewhere.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.received(count);
            bytes = &bytes[count..];
        }
    }

    /// The next whole frame, or `None` until more bytes are received.
    ///
    /// # Errors
    /// As [`Header::decode`], as soon as the header is there.
    pub fn next_frame(&mut self) -> Result<Option<(Header, &[u8])>, WireError> {
        let available = &self.buffer[self.start..self.end];
        let Some((header, rest)) = available.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = Header::decode(*header, self.direction)?;
        if rest.len() < header.length {
            return Ok(None);
        }
        let payload = self.start + HEADER_LEN;
        self.start = payload + header.length;
        Ok(Some((header, &self.buffer[payload..self.start])))
    }

    /// Whether the peer ended between frames, not inside one.
    ///
    /// # Errors
    /// [`WireError::Ended`] with what is missing.
    pub fn at_end(&self) -> Result<(), WireError> {
        match self.end - self.start {
            0 => Ok(()),
            1..HEADER_LEN => Err(WireError::Ended("the rest of a header")),
            _ => Err(WireError::Ended("the rest of a payload")),
        }
    }
}

/// Finds the peer's signature behind noise, and names what damaged it.
#[derive(Debug)]
pub struct Scanner {
    own: [u8; 8],
    peer: [u8; 8],
    noise_max: usize,
    seen: Vec<u8>,
    searched: usize,
}

impl Scanner {
    /// For the host, which skips noise.
    pub fn for_guest_signature() -> Scanner {
        Scanner {
            own: HOST_SIGNATURE,
            peer: GUEST_SIGNATURE,
            noise_max: NOISE_MAX,
            seen: Vec::new(),
            searched: 0,
        }
    }

    /// For the guest, whose stdin has nothing before the signature.
    pub fn for_host_signature() -> Scanner {
        Scanner { own: GUEST_SIGNATURE, peer: HOST_SIGNATURE, noise_max: 0, seen: Vec::new(), searched: 0 }
    }

    /// Takes what was received so far; once the signature is found, returns the bytes after it.
    ///
    /// # Errors
    /// [`WireError::Damaged`] or [`WireError::NoSignature`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
        self.seen.extend_from_slice(bytes);
        // Only what is new, and what could be the start of a form that goes on in it.
        let from = self.searched.saturating_sub(self.peer.len() - 1);
        let find = |what: &[u8]| {
            self.seen[from..].windows(what.len()).position(|window| window == what).map(|at| at + from)
        };
        let signature = find(&self.peer).filter(|at| *at <= self.noise_max);
        let mark = &self.peer[1..4];
        let damages: [(Vec<u8>, &'static str); 5] = [
            (self.own.to_vec(), "the channel echoes what is sent, as a terminal does"),
            ([b"\x89", mark, b"\n\x1a\n"].concat(), "CR LF became LF"),
            ([b"\x89", mark, b"\r\r\n"].concat(), "LF became CR LF"),
            ([b"\x89", mark, b"\n\n"].concat(), "CR became LF, as a terminal in cooked mode does"),
            ([b"\x09", mark].concat(), "the high bit was cleared (a 7-bit channel)"),
        ];
        // What comes first counts, so that it does not matter how the bytes were cut on their way.
        let damage = damages.iter().filter_map(|(form, by)| Some((find(form)?, by))).min();
        match (signature, damage) {
            (Some(at), damage) if damage.is_none_or(|(damaged, _)| at < damaged) => {
                return Ok(Some(self.seen.split_off(at + self.peer.len())));
            }
            (_, Some((_, by))) => return Err(WireError::Damaged(by)),
            (_, None) => {}
        }
        self.searched = self.seen.len();
        // The guest expects the signature at once: the first wrong byte settles it.
        let wrong_start = self.noise_max == 0 && !self.peer.starts_with(&self.seen[..self.seen.len().min(8)]);
        // A damaged form may still be arriving; settle only when no known form can follow.
        let could_be_damage = damages.iter().any(|(form, _)| form.starts_with(&self.seen[..]));
        if (wrong_start && !could_be_damage) || self.seen.len() >= self.noise_max + 8 {
            return Err(WireError::NoSignature);
        }
        Ok(None)
    }

    /// What was received before the signature: useful to show when it never comes.
    pub fn noise(&self) -> &[u8] {
        &self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_reads_back_in_any_split() {
        let bytes = [encode(Kind::Open, 7, b"{}"), encode(Kind::Put, 7, &[1; 3000])].concat();
        for split in [1, 2, 11, 12, 13, 100, bytes.len()] {
            let mut decoder = Decoder::new(Direction::FromHost);
            let mut frames = Vec::new();
            for chunk in bytes.chunks(split) {
                decoder.push(chunk);
                while let Some((header, payload)) = decoder.next_frame().unwrap() {
                    frames.push((header.kind, header.job, payload.to_vec()));
                }
            }
            assert_eq!(frames, [(Kind::Open, 7, b"{}".to_vec()), (Kind::Put, 7, vec![1; 3000])]);
            assert_eq!(decoder.at_end(), Ok(()));
        }
    }

    #[test]
    fn a_bad_header_is_refused_before_its_payload_comes() {
        let mut decoder = Decoder::new(Direction::FromHost);
        decoder.push(&[0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(decoder.next_frame().unwrap_err(), WireError::TooLong(u32::MAX));
        let header = |kind: u16, zero: u16| {
            let mut bytes = [0; 12];
            bytes[4..6].copy_from_slice(&kind.to_le_bytes());
            bytes[6..8].copy_from_slice(&zero.to_le_bytes());
            bytes
        };
        assert_eq!(Header::decode(header(99, 0), Direction::FromHost), Err(WireError::UnknownKind(99)));
        assert_eq!(Header::decode(header(264, 0), Direction::FromHost), Err(WireError::UnknownKind(264)));
        assert_eq!(Header::decode(header(3, 5), Direction::FromHost), Err(WireError::Reserved(5)));
    }

    #[test]
    fn a_peer_that_ends_inside_a_frame_is_told_from_one_that_ends_between() {
        let mut decoder = Decoder::new(Direction::FromGuest);
        decoder.push(&encode(Kind::Data, 1, b"abc")[..14]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(matches!(decoder.at_end(), Err(WireError::Ended(_))));
    }

    #[test]
    fn the_signature_is_found_behind_noise_in_any_split() {
        let noise = vec![b'x'; NOISE_MAX];
        let bytes = [&noise[..], &GUEST_SIGNATURE, b"rest"].concat();
        for split in [1000, 7, bytes.len()] {
            let mut scanner = Scanner::for_guest_signature();
            let mut found = None;
            for chunk in bytes.chunks(split) {
                match &mut found {
                    None => found = scanner.push(chunk).unwrap(),
                    Some(rest) => rest.extend_from_slice(chunk),
                }
            }
            assert_eq!(found.unwrap(), b"rest");
        }
        let mut scanner = Scanner::for_guest_signature();
        assert_eq!(scanner.push(&vec![b'x'; NOISE_MAX + 8]), Err(WireError::NoSignature));
    }

    #[test]
    fn damage_is_named() {
        for (bytes, word) in [
            (&b"\x89ADG\n\x1a\n"[..], "CR LF became LF"),
            (b"\x89ADG\r\r\n\x1a\r\n", "LF became CR LF"),
            (b"\x09ADG\r\n\x1a\n", "7-bit"),
            (&HOST_SIGNATURE, "echoes"),
        ] {
            let error = Scanner::for_guest_signature().push(bytes).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let echo = [&HOST_SIGNATURE[..], &GUEST_SIGNATURE].concat();
        let error = Scanner::for_guest_signature().push(&echo).unwrap_err().to_string();
        assert!(error.contains("echoes"), "also where the signature came with it: {error}");
        let mut guest = Scanner::for_host_signature();
        assert_eq!(guest.push(b"GET / HTTP/1.1"), Err(WireError::NoSignature));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_frames_or_an_error_and_never_more_memory_than_came(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..4096),
            split in 1..64_usize,
        ) {
            let mut decoder = Decoder::new(Direction::FromGuest);
            let mut taken = 0;
            'stream: for chunk in bytes.chunks(split) {
                decoder.push(chunk);
                loop {
                    match decoder.next_frame() {
                        Ok(Some((header, payload))) => {
                            proptest::prop_assert_eq!(header.length, payload.len());
                            taken += HEADER_LEN + payload.len();
                        }
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
            proptest::prop_assert!(taken <= bytes.len());
            proptest::prop_assert!(decoder.buffer.len() <= bytes.len() + 2 * READ_LEN);
        }

        #[test]
        fn frames_read_back_however_they_are_split(
            payloads in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..300), 0..8),
            split in 1..200_usize,
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| encode(Kind::Put, 3, payload)).collect();
            let mut decoder = Decoder::new(Direction::FromHost);
            let mut got = Vec::new();
            for chunk in bytes.chunks(split) {
                decoder.push(chunk);
                while let Some((_, payload)) = decoder.next_frame().unwrap() {
                    got.push(payload.to_vec());
                }
            }
            proptest::prop_assert_eq!(got, payloads);
        }
    }
}
