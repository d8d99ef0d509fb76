//! Local times for `-i`: the machine's time zone files, RFC 8536, without the C library, which would take
//! a path of the caller's for one.

use std::fs::File;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{open, openat2, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

/// Where they are.
const PLACE: &str = "/usr/share/zoneinfo";
/// More than any of them has, in bytes.
const SIZE_MAX: u64 = 1 << 20;
/// Longest name.
const NAME_MAX: usize = 64;

/// When local time is how far from UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zone {
    /// Before the first change.
    first: i64,
    /// Seconds of Unix time, and the seconds to add from then on; in order.
    changes: Vec<(i64, i64)>,
    /// What standard time is called there, and summer time, or again standard time.
    pub(super) names: [String; 2],
}

impl Default for Zone {
    /// UTC.
    fn default() -> Zone {
        Zone { first: 0, changes: Vec::new(), names: ["UTC", "UTC"].map(str::to_owned) }
    }
}

impl Zone {
    /// The zone with this name; `None` if the machine knows none.
    pub(super) fn find(name: &[u8]) -> Option<Zone> {
        let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"_+-/".contains(byte);
        if name.is_empty() || name.len() > NAME_MAX || !name.iter().all(known) {
            return None;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let place = open(PLACE, flags | OFlag::O_DIRECTORY, Mode::empty()).ok()?;
        // Some are links to others.
        let how = OpenHow::new().flags(flags | OFlag::O_NONBLOCK).resolve(ResolveFlag::RESOLVE_BENEATH);
        let file = File::from(openat2(&place, name, how).ok()?);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(SIZE_MAX).read_to_end(&mut bytes).ok()?;
        parse(&bytes)
    }

    /// `YYYYmmdd-HH:MM:SS` there.
    pub(super) fn local(&self, unix: i64) -> String {
        let offset =
            self.changes.iter().rev().find(|(from, _)| *from <= unix).map_or(self.first, |(_, by)| *by);
        let local = unix + offset;
        let (year, month, day) = date(local.div_euclid(86_400));
        let second = local.rem_euclid(86_400);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        format!("{year:04}{month:02}{day:02}-{hour:02}:{minute:02}:{:02}", second % 60)
    }
}

/// Seconds of Unix time.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or(0)
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar.
fn date(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so that the leap day is the last; 400 of them have 146097 days.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

/// The header of a block: what it counts, in this order.
struct Counts {
    utc: usize,
    standard: usize,
    leap: usize,
    changes: usize,
    kinds: usize,
    letters: usize,
}

/// Reads bytes that are asked for in order.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn header(&mut self) -> Option<(u8, Counts)> {
        let magic = self.take(4)?;
        let version = *self.take(16)?.first()?;
        let mut count = || usize::try_from(u32::from_be_bytes(self.take(4)?.try_into().ok()?)).ok();
        let counts = Counts {
            utc: count()?,
            standard: count()?,
            leap: count()?,
            changes: count()?,
            kinds: count()?,
            letters: count()?,
        };
        (magic == b"TZif").then_some((version, counts))
    }
}

/// The second block, which has times of 64 bits; rules for times after the last change are not read.
fn parse(bytes: &[u8]) -> Option<Zone> {
    let mut reader = Reader(bytes);
    let (version, old) = reader.header()?;
    if version < b'2' {
        return None;
    }
    reader.take(old.changes * 5 + old.kinds * 6 + old.letters + old.leap * 8 + old.standard + old.utc)?;
    let (_, counts) = reader.header()?;
    let times = reader.take(counts.changes.checked_mul(8)?)?;
    let which = reader.take(counts.changes)?;
    let kinds = reader.take(counts.kinds.checked_mul(6)?)?;
    let letters = reader.take(counts.letters)?;
    let offset = |kind: usize| {
        let kind = kinds.get(kind * 6..kind * 6 + 4)?;
        Some(i64::from(i32::from_be_bytes(kind.try_into().ok()?)))
    };
    let change = |(time, kind): (&[u8], &u8)| {
        Some((i64::from_be_bytes(time.try_into().ok()?), offset(usize::from(*kind))?))
    };
    let changes = times.chunks_exact(8).zip(which).map(change).collect::<Option<Vec<_>>>()?;
    // That of the last time that was of this sort.
    let name = |summer: bool| {
        let kind = |kind: &u8| kinds.chunks_exact(6).nth(usize::from(*kind));
        let last = which.iter().rev().filter_map(kind).find(|kind| (kind[4] != 0) == summer);
        let at = usize::from(last.or(kinds.get(..6).filter(|_| !summer))?[5]);
        let name = letters.get(at..)?.split(|byte| *byte == 0).next()?;
        name.iter().all(u8::is_ascii_graphic).then(|| String::from_utf8_lossy(name).into_owned())
    };
    let standard = name(false)?;
    let summer = name(true).unwrap_or_else(|| standard.clone());
    Some(Zone { first: offset(0)?, changes, names: [standard, summer] })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a change at 100 to two hours, which is summer time, and before it one hour.
    fn file() -> Vec<u8> {
        let header = |changes: u32, kinds: u32| {
            let counts =
                [0, 0, 0, changes, kinds, if kinds == 1 { 4 } else { 9 }].map(u32::to_be_bytes).concat();
            [b"TZif2".to_vec(), vec![0; 15], counts].concat()
        };
        let kind = |seconds: i32, more: [u8; 2]| [&seconds.to_be_bytes()[..], &more].concat();
        let old = [header(0, 1), kind(0, [0, 0]), b"UTC\0".to_vec()].concat();
        let kinds = [kind(3600, [0, 0]), kind(7200, [1, 4])].concat();
        let new = [header(1, 2), 100_i64.to_be_bytes().to_vec(), vec![1], kinds].concat();
        [old, new, b"CET\0CEST\0\n\n".to_vec()].concat()
    }

    #[test]
    fn local_time_changes_when_the_file_says() {
        let zone = parse(&file()).expect("it is whole");
        assert_eq!(
            (zone.local(99), zone.local(100)),
            ("19700101-01:01:39".into(), "19700101-02:01:40".into())
        );
        assert_eq!(zone.names, ["CET", "CEST"]);
    }

    #[test]
    fn no_part_of_a_file_is_taken_for_one_and_none_overruns() {
        let whole = file();
        for length in 0..whole.len() - 2 {
            assert_eq!(parse(&whole[..length]), None, "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] = 0xff;
            let _ = parse(&broken);
        }
    }

    #[test]
    fn dates_are_the_calendar_s() {
        for (unix, expected) in [
            (0, "19700101-00:00:00"),
            (951_782_400, "20000229-00:00:00"),
            (1_735_689_599, "20241231-23:59:59"),
            (4_107_542_400, "21000301-00:00:00"),
            (-1, "19691231-23:59:59"),
        ] {
            assert_eq!(Zone::default().local(unix), expected);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_zones() {
        for name in
            ["", "/etc/passwd", "../../../etc/passwd", "Europe/../../../../etc/passwd", ":UTC", ".", "a b"]
        {
            assert_eq!(Zone::find(name.as_bytes()), None, "{name}");
        }
    }
}
