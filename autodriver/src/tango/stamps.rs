//! Times inserted into the output, `-i`: on lines of their own, before the first line that begins when
//! one is due.

use std::time::{Duration, Instant};

use super::zone::{now, Zone};

/// When the next one is due, and where in the output we are.
#[derive(Debug)]
pub(super) struct Stamps {
    interval: Duration,
    zone: Zone,
    next: Instant,
    offset: u64,
    at_line_start: bool,
}

impl Stamps {
    /// One every `interval` seconds from now on.
    pub(super) fn every(interval: u32, zone: Zone, now: Instant) -> Stamps {
        let interval = Duration::from_secs(interval.into());
        Stamps { interval, zone, next: now + interval, offset: 0, at_line_start: true }
    }

    /// The output with the time in it, if that is due.
    pub(super) fn insert(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.insert_time(bytes, Instant::now(), now())
    }

    fn insert_time(&mut self, bytes: &[u8], now: Instant, unix: i64) -> Vec<u8> {
        let line = match self.at_line_start {
            true => Some(0),
            false => bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1),
        };
        let due = line.filter(|at| now >= self.next && *at < bytes.len());
        let offset = self.offset;
        self.offset += bytes.len() as u64;
        if let Some(last) = bytes.last() {
            self.at_line_start = *last == b'\n';
        }
        let Some(at) = due else { return bytes.to_vec() };
        self.next = now + self.interval;
        let stamp = format!(
            "...[timestamp {} inserted by autodriver at offset ~{}. \
             Maybe out of sync with output's own timestamps.]...\n",
            self.zone.local(unix),
            offset + at as u64
        );
        [&bytes[..at], stamp.as_bytes(), &bytes[at..]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_comes_on_a_line_of_its_own_once_it_is_due() {
        let start = Instant::now();
        let mut stamps = Stamps::every(10, Zone::default(), start);
        let mut at = |seconds, text: &str| {
            let out = stamps.insert_time(text.as_bytes(), start + Duration::from_secs(seconds), 60);
            String::from_utf8(out).expect("text")
        };
        let stamp = |offset| {
            format!(
                "...[timestamp 19700101-00:01:00 inserted by autodriver at offset ~{offset}. \
                 Maybe out of sync with output's own timestamps.]...\n"
            )
        };
        assert_eq!(at(9, "first\nsec"), "first\nsec");
        assert_eq!(at(10, "ond"), "ond");
        assert_eq!(at(11, " line\n"), " line\n");
        assert_eq!(at(12, "third\n"), format!("{}third\n", stamp(18)));
        assert_eq!(at(21, "fo"), "fo");
        assert_eq!(at(22, "urth\nfifth\n"), format!("urth\n{}fifth\n", stamp(31)));
        assert_eq!(at(40, ""), "");
    }
}
