//! What is returned of a job's output: all of it, or its first and its last bytes with a mark between, as
//! Tango's users know it.

use std::collections::VecDeque;

/// Most that is returned where nothing else is said, in bytes: it is in the driver's memory.
pub(super) const OUTPUT_MAX: usize = 64 << 20;

/// The output so far.
#[derive(Debug)]
pub(super) struct Transcript {
    /// The first half of what is returned at most, less what was handed on.
    head: Vec<u8>,
    handed_on: usize,
    /// The last half; one byte more of an odd limit.
    tail: VecDeque<u8>,
    limit: usize,
    /// Between the two.
    mark: &'static str,
    produced: u64,
}

impl Transcript {
    /// Returns at most `osize` bytes, and the mark; 0 is no limit but [`OUTPUT_MAX`].
    pub(super) fn new(osize: u32, mark: &'static str) -> Transcript {
        let limit = match usize::try_from(osize).unwrap_or(0) {
            0 => OUTPUT_MAX,
            osize => osize.min(OUTPUT_MAX),
        };
        Transcript { head: Vec::new(), handed_on: 0, tail: VecDeque::new(), limit, mark, produced: 0 }
    }

    fn half(&self) -> usize {
        self.limit / 2
    }

    /// Adds what the job has written.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.produced += bytes.len() as u64;
        let room = self.half() - self.handed_on - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        let most = self.limit - self.half();
        let rest = &rest[rest.len().saturating_sub(most)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(most);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    /// What can be handed on now, and is not handed on again.
    pub(super) fn take_live(&mut self) -> Vec<u8> {
        self.handed_on += self.head.len();
        std::mem::take(&mut self.head)
    }

    /// How much there was, and how much of it is returned at most, where that is less.
    pub(super) fn elided(&self) -> Option<(u64, usize)> {
        (self.produced > self.limit as u64).then_some((self.produced, self.limit))
    }

    /// What was not handed on yet.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let mut rest = self.take_live();
        let half = self.half();
        if self.elided().is_some() {
            rest.extend_from_slice(self.mark.as_bytes());
            let excess = self.tail.len().saturating_sub(half);
            self.tail.drain(..excess);
        }
        let (first, second) = self.tail.as_slices();
        rest.extend_from_slice(first);
        rest.extend_from_slice(second);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "\n...[excess bytes elided]...\n";

    /// As Tango's own driver says it, of the whole output at once.
    fn expected(output: &[u8], osize: usize) -> Vec<u8> {
        match osize > 0 && output.len() > osize {
            true => [&output[..osize / 2], MARK.as_bytes(), &output[output.len() - osize / 2..]].concat(),
            false => output.to_vec(),
        }
    }

    #[test]
    fn every_size_around_every_limit_is_elided_to_the_byte() {
        let output: Vec<u8> = (0..100_u8).collect();
        for osize in 0..45_u32 {
            for size in 0..=100 {
                for chunk in [1, 2, 3, 7, 50, 100] {
                    for live in [false, true] {
                        let mut transcript = Transcript::new(osize, MARK);
                        let mut returned = Vec::new();
                        for bytes in output[..size].chunks(chunk) {
                            transcript.push(bytes);
                            if live {
                                returned.extend(transcript.take_live());
                            }
                        }
                        returned.extend(transcript.finish());
                        let expected = expected(&output[..size], osize as usize);
                        assert_eq!(returned, expected, "osize {osize}, size {size}, by {chunk}, live {live}");
                    }
                }
            }
        }
    }

    #[test]
    fn output_without_a_limit_is_bounded_all_the_same() {
        let mut transcript = Transcript::new(u32::MAX, MARK);
        let chunk = vec![b'x'; 1 << 20];
        (0..200).for_each(|_| transcript.push(&chunk));
        assert!(transcript.head.len() + transcript.tail.len() <= OUTPUT_MAX);
        assert_eq!(transcript.finish().len(), OUTPUT_MAX + MARK.len());
    }
}
