//! What is kept of a stream: its head, delivered as it comes, and its tail, delivered at the end.
//! Memory is the cap, and 64 KiB so that the last two lines survive; what lies between is counted.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use autodriver_protocol::report::StreamReport;
use nix::errno::Errno;

/// Longest pair of last lines that is kept whole whatever the cap: graders put the score there.
const LAST_LINES_MAX: usize = 64 << 10;
/// How far from the cap a cut looks for a line boundary.
const CUT_WINDOW: usize = 4096;
/// How many bytes one call of [`Capture::drain`] takes before others have their turn.
const TURN: u64 = 8 << 20;

/// One stream.
#[derive(Debug)]
pub struct Capture {
    /// The part of the head that was not delivered yet.
    head: Vec<u8>,
    /// Bytes of the head that were; the driver does not hold them twice.
    delivered: usize,
    head_max: usize,
    /// The head is complete; what comes goes to the tail.
    head_closed: bool,
    ring: Vec<u8>,
    ring_max: usize,
    /// Where the next byte goes.
    ring_at: usize,
    /// Bytes that went into the ring, ever.
    ring_total: u64,
    cap: u64,
    produced: u64,
    stamps: Option<Stamps>,
}

/// `--timestamps`: seconds since start at the beginning of each line.
#[derive(Debug)]
struct Stamps {
    line_start: bool,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing more for now.
    Empty,
    /// There is more; others first.
    More,
    /// Every writer is gone.
    Ended,
}

impl Capture {
    /// Keeps at most `cap` bytes.
    pub fn new(cap: u64, timestamps: bool) -> Capture {
        let cap_len = usize::try_from(cap).unwrap_or(usize::MAX / 4);
        let head_max = cap_len / 2;
        Capture {
            head: Vec::new(),
            head_max,
            delivered: 0,
            head_closed: head_max == 0,
            ring: Vec::new(),
            ring_max: (cap_len - head_max).max(LAST_LINES_MAX),
            ring_at: 0,
            ring_total: 0,
            cap,
            produced: 0,
            stamps: timestamps.then_some(Stamps { line_start: true }),
        }
    }

    /// Reads what is there, without blocking.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn drain(&mut self, fd: BorrowedFd<'_>, since_start: Duration) -> Result<Drained, Errno> {
        let start = self.produced;
        let mut scratch = [0; 16 << 10];
        while self.produced - start < TURN {
            // Past the head, straight into the ring: no byte is copied twice.
            let direct = self.head_closed && self.stamps.is_none();
            let space = if direct { self.ring_space() } else { &mut scratch[..] };
            match nix::unistd::read(fd, space) {
                Ok(0) => return Ok(Drained::Ended),
                Ok(count) if direct => self.ring_advance(count),
                Ok(count) => self.push(&scratch[..count], since_start),
                Err(Errno::EAGAIN) => return Ok(Drained::Empty),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Drained::More)
    }

    fn push(&mut self, bytes: &[u8], since_start: Duration) {
        let Some(stamps) = &mut self.stamps else { return self.keep(bytes) };
        let mut stamped = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if stamps.line_start {
                stamped.extend_from_slice(format!("[{:9.3}] ", since_start.as_secs_f64()).as_bytes());
            }
            stamped.extend_from_slice(line);
            stamps.line_start = line.ends_with(b"\n");
        }
        self.keep(&stamped);
    }

    fn keep(&mut self, mut bytes: &[u8]) {
        if !self.head_closed {
            let count = bytes.len().min(self.head_max - self.head_len());
            self.head.extend_from_slice(&bytes[..count]);
            self.produced += count as u64;
            bytes = &bytes[count..];
            if self.head_len() == self.head_max && !bytes.is_empty() {
                self.close_head();
            }
        }
        while !bytes.is_empty() {
            let space = self.ring_space();
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.ring_advance(count);
            bytes = &bytes[count..];
        }
    }

    /// Decides where the head ends; what lies behind goes to the tail.
    fn close_head(&mut self) {
        self.head_closed = true;
        let cut = cut_before(&self.head, CUT_WINDOW);
        let rest = self.head.split_off(cut);
        self.produced -= rest.len() as u64;
        self.keep(&rest);
    }

    fn head_len(&self) -> usize {
        self.delivered + self.head.len()
    }

    fn ring_space(&mut self) -> &mut [u8] {
        if self.ring.len() < self.ring_max && self.ring_at == self.ring.len() {
            // Grows as needed: most jobs never write a megabyte.
            let grown = (self.ring.len() * 2).clamp(LAST_LINES_MAX, self.ring_max);
            self.ring.resize(grown, 0);
        } else if self.ring_at == self.ring.len() {
            self.ring_at = 0;
        }
        &mut self.ring[self.ring_at..]
    }

    fn ring_advance(&mut self, count: usize) {
        self.ring_at += count;
        self.ring_total += count as u64;
        self.produced += count as u64;
    }

    /// Whether more than the cap was written.
    pub fn is_over(&self) -> bool {
        self.produced > self.cap
    }

    /// Bytes written by the job so far.
    pub fn produced(&self) -> u64 {
        self.produced
    }

    /// Takes what can be delivered of the head. Near its end that is whole lines only, since the cut
    /// may fall into the last one.
    pub fn take_live(&mut self) -> Vec<u8> {
        let near_the_cut = !self.head_closed && self.head_len() + CUT_WINDOW > self.head_max;
        let end = match near_the_cut {
            true => self.head.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1),
            false => self.head.len(),
        };
        let rest = self.head.split_off(end);
        self.delivered += end;
        std::mem::replace(&mut self.head, rest)
    }

    /// What is left to deliver at the end: the rest of the head, the mark, the tail.
    pub fn finish(&mut self) -> (Vec<u8>, StreamReport) {
        let head_len = self.head_len();
        let mut rest = std::mem::take(&mut self.head);
        let tail = self.tail();
        let kept_limit = usize::try_from(self.cap).unwrap_or(usize::MAX).saturating_sub(head_len);
        let keep_from = if self.produced <= self.cap { 0 } else { tail_start(&tail, kept_limit) };
        let kept = (head_len + tail.len() - keep_from) as u64;
        let elided = self.produced - kept;
        if elided > 0 {
            rest.extend_from_slice(format!("\n...[{elided} bytes elided]...\n").as_bytes());
        }
        rest.extend_from_slice(&tail[keep_from..]);
        (rest, StreamReport { produced: self.produced, kept, elided })
    }

    /// What the ring holds, in order.
    fn tail(&self) -> Vec<u8> {
        let wrapped = self.ring_total > self.ring_at as u64;
        let (new, old) = self.ring.split_at(self.ring_at);
        if wrapped {
            [old, new].concat()
        } else {
            new.to_vec()
        }
    }
}

/// Where to cut near the end: after a line, else between characters.
fn cut_before(bytes: &[u8], window: usize) -> usize {
    let end = bytes.len();
    let low = end.saturating_sub(window);
    match bytes[low..].iter().rposition(|byte| *byte == b'\n') {
        Some(at) => low + at + 1,
        None => (end.saturating_sub(3)..end)
            .rev()
            .find(|at| starts_character(&bytes[*at..], end - at))
            .unwrap_or(end),
    }
}

/// Whether a UTF-8 character starts here that does not fit into `room` bytes.
fn starts_character(bytes: &[u8], room: usize) -> bool {
    let length = match bytes.first() {
        Some(0xc2..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf4) => 4,
        _ => return false,
    };
    length > room
}

/// Where the tail starts: its last `max` bytes, from a line or a character on; but always the last
/// two lines, if they are not longer than [`LAST_LINES_MAX`].
fn tail_start(tail: &[u8], max: usize) -> usize {
    let low = tail.len().saturating_sub(max);
    let high = (low + CUT_WINDOW).min(tail.len());
    let line = tail[low..high].iter().position(|byte| *byte == b'\n').map(|at| low + at + 1);
    let character = || (low..high).find(|at| !(0x80..0xc0).contains(&tail[*at])).unwrap_or(low);
    let by_cap = line.filter(|at| *at < tail.len()).unwrap_or_else(character);
    by_cap.min(last_two_lines(tail).unwrap_or(by_cap))
}

fn last_two_lines(tail: &[u8]) -> Option<usize> {
    let text = tail.strip_suffix(b"\n").unwrap_or(tail);
    let mut newlines =
        text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let fits = |at: &usize| tail.len() - at <= LAST_LINES_MAX;
    let last = newlines.next();
    newlines.next().filter(fits).or(last.filter(fits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(cap: u64, chunks: &[&[u8]]) -> (Vec<u8>, StreamReport) {
        let mut capture = Capture::new(cap, false);
        let mut out = Vec::new();
        for chunk in chunks {
            capture.keep(chunk);
            out.extend_from_slice(&capture.take_live());
        }
        let (rest, report) = capture.finish();
        out.extend_from_slice(&rest);
        (out, report)
    }

    #[test]
    fn output_within_the_cap_is_kept_to_the_byte() {
        for cap in [10, 11, 12, 1000] {
            let (out, report) = capture(cap, &[b"abc\nde", b"fgh", b"\n"]);
            assert_eq!(out, b"abc\ndefgh\n", "cap {cap}");
            assert_eq!(report, StreamReport { produced: 10, kept: 10, elided: 0 });
        }
    }

    #[test]
    fn output_beyond_the_cap_is_counted_not_stored() {
        let line = b"0123456789abcde\n";
        let lines: Vec<&[u8]> = std::iter::repeat_n(&line[..], 100_000).collect();
        let (out, report) = capture(1 << 20, &lines);
        assert_eq!(report.produced, 1_600_000);
        assert_eq!(report.kept + report.elided, report.produced);
        assert!(report.kept <= 1 << 20 && report.kept > (1 << 20) - 100, "{report:?}");
        let mark = format!("\n...[{} bytes elided]...\n", report.elided);
        let at = out.windows(mark.len()).position(|window| window == mark.as_bytes()).unwrap();
        assert_eq!(out.len() as u64, report.kept + mark.len() as u64);
        assert!(out[..at].ends_with(b"\n") && out[at + mark.len()..].starts_with(b"0123"));
    }

    #[test]
    fn the_last_two_lines_survive_any_cap() {
        let long = [vec![b'x'; 30_000], b"\n".to_vec(), vec![b'y'; 30_000], b"\n".to_vec()].concat();
        for cap in [0, 1, 10, 4096] {
            let (out, report) = capture(cap, &[b"first\n", &[b'n'; 5000], b"\n", &long]);
            assert!(out.ends_with(&long), "cap {cap}");
            assert_eq!(report.kept + report.elided, report.produced);
        }
        let (out, _) = capture(10, &[&[b'z'; 200_000]]);
        assert!(out.len() < 1000, "an endless line is no pair of lines");
    }

    #[test]
    fn cuts_fall_between_characters() {
        let text = "ä€🦀".repeat(5000);
        for cap in 100..140 {
            let (out, report) = capture(cap, &[text.as_bytes()]);
            assert!(std::str::from_utf8(&out).is_ok(), "cap {cap}");
            assert_eq!(report.kept + report.elided, report.produced);
        }
    }

    #[test]
    fn what_was_delivered_live_is_never_taken_back() {
        for cap in [20, 100, 10_000, 100_000] {
            for size in [1, 7, 100, 5000] {
                let text: Vec<u8> = (0..200_000u32).map(|n| if n % 61 == 0 { b'\n' } else { b'a' }).collect();
                let chunks: Vec<&[u8]> = text.chunks(size).collect();
                let (out, report) = capture(cap, &chunks);
                let mark = format!("\n...[{} bytes elided]...\n", report.elided);
                assert_eq!(out.len() as u64, report.kept + mark.len() as u64, "cap {cap} size {size}");
                assert!(text.starts_with(&out[..out.windows(4).position(|w| w == b"\n...").unwrap()]));
            }
        }
    }

    #[test]
    fn stamps_start_lines() {
        let mut capture = Capture::new(1000, true);
        capture.push(b"a\nb", Duration::from_millis(1500));
        capture.push(b"c\n", Duration::from_secs(2));
        assert_eq!(capture.finish().0, b"[    1.500] a\n[    1.500] bc\n");
    }
}
