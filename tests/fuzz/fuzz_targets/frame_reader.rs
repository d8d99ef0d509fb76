//! Any bytes in any pieces, behind a signature or not: frames or a typed error, the same however they are
//! cut, in memory that follows what came and never what a header promises.
#![no_main]

use autodriver_protocol::frame::{encode, Header, HEADER_LEN};
use autodriver_protocol::{Decoder, Direction, Scanner, WireError, PAYLOAD_MAX};
use libfuzzer_sys::fuzz_target;

const READ: usize = 64 << 10;

/// What a stream was read as.
#[derive(Debug, PartialEq)]
struct Seen {
    frames: Vec<(Header, Vec<u8>)>,
    end: Result<(), WireError>,
}

fn read(bytes: &[u8], direction: Direction, mut piece: impl FnMut() -> usize) -> Seen {
    let mut scanner = match direction {
        Direction::FromGuest => Scanner::for_guest_signature(),
        Direction::FromHost => Scanner::for_host_signature(),
    };
    let mut decoder = Decoder::new(direction);
    let mut seen = Seen { frames: Vec::new(), end: Ok(()) };
    let (mut found, mut rest, mut held) = (false, bytes, 0);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece().clamp(1, rest.len()));
        rest = later;
        if found {
            decoder.push(now);
            held += now.len();
        } else {
            match scanner.push(now) {
                Ok(None) => continue,
                Ok(Some(after)) => {
                    decoder.push(&after);
                    (found, held) = (true, after.len());
                }
                Err(error) => return Seen { end: Err(error), ..seen },
            }
        }
        let largest = held;
        loop {
            match decoder.next_frame() {
                Ok(Some((header, payload))) => {
                    held -= HEADER_LEN + payload.len();
                    seen.frames.push((header, payload.to_vec()));
                }
                Ok(None) => break,
                Err(error) => return Seen { end: Err(error), ..seen },
            }
        }
        assert!(held < HEADER_LEN + PAYLOAD_MAX, "a whole frame was kept back");
        // What is held and what is free is all there is: one frame and one read, if each is taken at once.
        let buffer = held + decoder.space().len();
        let most = largest.max(HEADER_LEN + PAYLOAD_MAX) + 2 * READ;
        assert!(buffer <= most.min(bytes.len() + 2 * READ), "{buffer} bytes are held for {held}");
    }
    seen.end = if found { decoder.at_end() } else { Err(WireError::NoSignature) };
    seen
}

fuzz_target!(|data: &[u8]| {
    let Some(([choice, size], bytes)) = data.split_first_chunk() else { return };
    let direction = if choice & 1 == 0 { Direction::FromGuest } else { Direction::FromHost };
    let whole = read(bytes, direction, || usize::MAX);
    let mut step = usize::from(*size);
    let cut = read(bytes, direction, || {
        step = (step * 5 + 1) % 257;
        step
    });
    // A damaged form may be recognised only in pieces, or only whole: a mark that is not there yet. Which of
    // the sentences is said is no part of the promise; that the stream is refused is.
    assert_eq!(whole.frames, cut.frames);
    match (&whole.end, &cut.end) {
        (
            Err(WireError::Damaged(_) | WireError::NoSignature),
            Err(WireError::Damaged(_) | WireError::NoSignature),
        ) => {}
        (whole, cut) => assert_eq!(whole, cut),
    }
    for (header, payload) in &whole.frames {
        assert_eq!(header.length, payload.len());
        assert_eq!(header.kind.direction(), direction);
        let bytes = encode(header.kind, header.job, payload);
        let mut again = Decoder::new(direction);
        again.push(&bytes);
        assert_eq!(again.next_frame(), Ok(Some((*header, &payload[..]))));
        assert_eq!(again.at_end(), Ok(()));
    }
});
