//! Sizes and durations as people write them: `512M`, `1.5s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// A number of bytes: digits with an optional `K`, `M` or `G` (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A span of time: a decimal number with `ms`, `s`, `m` or `h`; no unit means seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub Duration);

/// The longest span accepted, so that no sum of deadlines can overflow: 366 days.
pub const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// The largest size accepted: 2^60 bytes, so that sums of limits fit what the kernel takes.
pub const SIZE_MAX: u64 = 1 << 60;

const SIZE_FORM: &str = "bytes as digits with an optional K, M or G (1024), at most 2^60";
const TIME_FORM: &str = "a number with ms, s, m or h (no unit: seconds), at most 366 days";

/// Why a size or a time was refused: the value, and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadUnit {
    value: String,
    accepted: &'static str,
}

impl fmt::Display for BadUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not {}", self.value, self.accepted)
    }
}

impl std::error::Error for BadUnit {}

impl FromStr for Size {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit { value: text.to_owned(), accepted: SIZE_FORM };
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = digits.parse().map_err(|_| bad())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
        if bytes > SIZE_MAX {
            return Err(bad());
        }
        Ok(Size(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0 % (1 << shift) == 0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for Time {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit { value: text.to_owned(), accepted: TIME_FORM };
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let scale = match unit {
            "ms" => 0.001,
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_| bad())?;
        let time = Duration::try_from_secs_f64(number * scale).map_err(|_| bad())?;
        if time > TIME_MAX {
            return Err(bad());
        }
        Ok(Time(time))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms % 1000 == 0 {
            write!(f, "{}s", ms / 1000)
        } else {
            write!(f, "{ms}ms")
        }
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SIZE_FORM)
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
        bytes.to_string().parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
        bytes.to_string().parse().map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, bytes: f64) -> Result<Size, E> {
        bytes.to_string().parse().map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

struct TimeVisitor;

impl Visitor<'_> for TimeVisitor {
    type Value = Time;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TIME_FORM)
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Time, E> {
        seconds.to_string().parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Time, E> {
        seconds.to_string().parse().map_err(E::custom)
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Time, E> {
        format!("{seconds}").parse().map_err(E::custom)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TimeVisitor)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!("512M".parse(), Ok(Size(512 << 20)));
        assert_eq!("7".parse(), Ok(Size(7)));
        assert_eq!("1k".parse(), Ok(Size(1024)));
        assert_eq!(Size(3 << 30).to_string(), "3G");
        assert_eq!(Size(1000).to_string(), "1000");
    }

    #[test]
    fn bad_sizes_name_the_value_and_the_form() {
        for text in ["", "M", "-1", "1.5M", "1T", "18446744073709551616", "9999999999G", " 1"] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")) && error.contains("K, M or G"), "{error}");
        }
    }

    #[test]
    fn times_take_units_and_fractions() {
        assert_eq!("1500ms".parse(), Ok(Time(Duration::from_millis(1500))));
        assert_eq!("1.5".parse(), Ok(Time(Duration::from_millis(1500))));
        assert_eq!("2m".parse(), Ok(Time(Duration::from_secs(120))));
        assert_eq!("1h".parse(), Ok(Time(Duration::from_secs(3600))));
    }

    #[test]
    fn bad_times_name_the_value_and_the_form() {
        for text in ["", "s", "-1s", "1d", "1e9", "1..2", "inf", "NaN", "99999999999h"] {
            let error = text.parse::<Time>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")) && error.contains("ms, s, m or h"), "{error}");
        }
    }

    #[test]
    fn numbers_and_strings_are_both_accepted_in_json() {
        assert_eq!(serde_json::from_str::<Size>("1024").unwrap(), Size(1024));
        assert_eq!(serde_json::from_str::<Size>("\"1K\"").unwrap(), Size(1024));
        assert_eq!(serde_json::from_str::<Time>("0.5").unwrap(), Time(Duration::from_millis(500)));
        assert!(serde_json::from_str::<Size>("-1").is_err());
        assert!(serde_json::from_str::<Size>("1e30").is_err());
        assert!(serde_json::from_str::<Time>("1e300").is_err());
    }
}
