//! The command line of the Tango form, read as glibc's argp reads it: the messages and the exit status
//! are those that scripts around Tango know. Pure, and of `std` alone: what a caller of a
//! setuid program says meets nothing else here, no environment, no locale, no file.
//!
//! Differences to argp, on purpose: `POSIXLY_CORRECT` and `ARGP_HELP_FMT` are not looked at; the hidden
//! options `--program-name` and `--HANG`, which has a program sleep, do not exist; a beginning that names
//! one of Tango's own options alone (`--t`) goes on naming it beside the options that came later; the byte 0xff is no option, where
//! argp takes it for a mark of its own.

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `-u`: most processes and threads; 0 is no limit, as in all of them.
    pub nproc: u32,
    /// `-f`: bytes of the largest file that the job may write.
    pub fsize: u32,
    /// `-t`: seconds that the job may take.
    pub timeout: u32,
    /// `-o`: bytes of output that are returned.
    pub osize: u32,
    /// `-i`: seconds between two times inserted into the output.
    pub interval: u32,
    /// `-z`: the time zone of these.
    pub timezone: Option<Vec<u8>>,
    /// `-s`: output is returned as it comes. What it is set to means nothing.
    pub stream: bool,
    /// The job directory, as given.
    pub directory: Vec<u8>,
}

/// Nothing is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// For standard output; exit status 0.
    Help(&'static str),
    /// For standard error; exit status 1.
    Usage(Vec<u8>),
}

/// What an option is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Nproc,
    Fsize,
    Timeout,
    Osize,
    Help,
    Usage,
    Interval,
    Timezone,
    Stream,
}

/// Whether an option takes an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Something,
    Maybe,
}

/// One option: its long and its short name.
struct Known {
    long: &'static [u8],
    short: Option<u8>,
    takes: Takes,
    key: Key,
}

const fn known(long: &'static [u8], short: u8, takes: Takes, key: Key) -> Known {
    Known { long, short: if short == 0 { None } else { Some(short) }, takes, key }
}

/// Those of Tango itself come first.
const KNOWN: [Known; 9] = [
    known(b"nproc", b'u', Takes::Something, Key::Nproc),
    known(b"fsize", b'f', Takes::Something, Key::Fsize),
    known(b"timeout", b't', Takes::Something, Key::Timeout),
    known(b"osize", b'o', Takes::Something, Key::Osize),
    known(b"help", b'?', Takes::Nothing, Key::Help),
    known(b"usage", 0, Takes::Nothing, Key::Usage),
    known(b"timestamp-interval", b'i', Takes::Something, Key::Interval),
    known(b"timezone", b'z', Takes::Something, Key::Timezone),
    known(b"stream", b's', Takes::Maybe, Key::Stream),
];

/// How many of them are Tango's own.
const OWN: usize = 6;

/// What `--help` prints.
const HELP: &str = "\
Usage: autodriver [OPTION...] DIRECTORY
Runs make on a job directory.

  -f, --fsize=BYTES          Largest file that the job may write
  -i, --timestamp-interval=SECS   Insert the time into the output this often
  -o, --osize=BYTES          Most output that is returned
  -s, --stream[=X]           Return output as it comes, and the status last
  -t, --timeout=SECS         Longest time that the job may take
  -u, --nproc=N              Most processes and threads of the job
  -z, --timezone=TZ          Time zone of these times
  -?, --help                 Give this help list
      --usage                Give a short usage message

Mandatory or optional arguments to long options are also mandatory or optional
for any corresponding short options.
";

/// What `--usage` prints.
const USAGE: &str = "\
Usage: autodriver [-?] [-f BYTES] [-i SECS] [-o BYTES] [-s[X]] [-t SECS]
            [-u N] [-z TZ] [--fsize=BYTES] [--timestamp-interval=SECS]
            [--osize=BYTES] [--stream[=X]] [--timeout=SECS] [--nproc=N]
            [--timezone=TZ] [--help] [--usage] DIRECTORY
";

/// Whether a first word is, or begins with, an option of this form; `--help` is every form's.
pub fn begins(word: &[u8]) -> bool {
    match word {
        b"--" => true,
        [b'-', b'-', name @ ..] => {
            let name = name.split(|byte| *byte == b'=').next().unwrap_or_default();
            !name.is_empty() && KNOWN.iter().any(|one| one.key != Key::Help && one.long.starts_with(name))
        }
        [b'-', letter, ..] => KNOWN.iter().any(|one| one.short == Some(*letter)),
        _ => false,
    }
}

/// Reads the arguments, the program's name first; there may be none at all.
///
/// # Errors
/// What is to be printed instead of running anything.
pub fn parse<A: AsRef<[u8]>>(arguments: &[A]) -> Result<Arguments, Stop> {
    let mut words = arguments.iter().map(AsRef::as_ref);
    let program = words.next().filter(|name| !name.is_empty()).unwrap_or(b"autodriver");
    let mut parser = Parser { program, read: Arguments::default() };
    let mut directories: Vec<&[u8]> = Vec::new();
    // argp takes the directories last, wherever they stand: what an option does wrong is told first.
    while let Some(word) = words.next() {
        match word {
            b"--" => {
                directories.extend(words.by_ref());
            }
            [b'-', b'-', name @ ..] => parser.long(name, &mut words)?,
            [b'-', cluster @ ..] if !cluster.is_empty() => parser.short(cluster, &mut words)?,
            _ => directories.push(word),
        }
    }
    match directories.as_slice() {
        [directory] => Ok(Arguments { directory: directory.to_vec(), ..parser.read }),
        [] => Err(parser.refuse(parser.name(), &[b"Too few arguments"])),
        _ => Err(parser.refuse(parser.name(), &[b"Too many arguments"])),
    }
}

struct Parser<'a> {
    program: &'a [u8],
    read: Arguments,
}

impl<'a> Parser<'a> {
    /// The program's name without its directories.
    fn name(&self) -> &'a [u8] {
        self.program.rsplit(|byte| *byte == b'/').next().unwrap_or(self.program)
    }

    /// A sentence of a program called `by`, and where to learn more.
    fn refuse(&self, by: &[u8], sentence: &[&[u8]]) -> Stop {
        let name = self.name();
        let more: [&[u8]; 5] = [b"Try `", name, b" --help' or `", name, b" --usage' for more information.\n"];
        Stop::Usage([by, b": ", &sentence.concat(), b"\n", &more.concat()].concat())
    }

    fn long(&mut self, word: &[u8], rest: &mut impl Iterator<Item = &'a [u8]>) -> Result<(), Stop> {
        let equals = word.iter().position(|byte| *byte == b'=');
        let (name, value) = match equals {
            Some(at) => (&word[..at], Some(&word[at + 1..])),
            None => (word, None),
        };
        let option = self.find(name, word)?;
        let argument = match (option.takes, value) {
            (Takes::Nothing, Some(_)) => {
                let sentence: [&[u8]; 3] = [b"option '--", option.long, b"' doesn't allow an argument"];
                return Err(self.refuse(self.program, &sentence));
            }
            (Takes::Something, None) => Some(rest.next().ok_or_else(|| {
                let sentence: [&[u8]; 3] = [b"option '--", option.long, b"' requires an argument"];
                self.refuse(self.program, &sentence)
            })?),
            (_, value) => value,
        };
        self.take(option.key, argument.unwrap_or_default())
    }

    /// The option with this name, or the only one that begins so.
    fn find(&self, name: &[u8], word: &[u8]) -> Result<&'static Known, Stop> {
        let begins = |known: &[Known]| known.iter().filter(|one| one.long.starts_with(name)).count();
        let first = KNOWN.iter().find(|one| one.long.starts_with(name));
        let exact = KNOWN.iter().find(|one| one.long == name);
        match (exact.or(first), begins(&KNOWN[..OWN]), begins(&KNOWN)) {
            (Some(option), ..) if exact.is_some() => Ok(option),
            (Some(option), 1, _) | (Some(option), 0, 1) => Ok(option),
            (None, ..) => Err(self.refuse(self.program, &[b"unrecognized option '--", word, b"'"])),
            _ => {
                let mut sentence = [b"option '--", word, b"' is ambiguous; possibilities:"].concat();
                for option in KNOWN.iter().filter(|one| one.long.starts_with(name)) {
                    sentence.extend_from_slice(&[b" '--", option.long, b"'"].concat());
                }
                Err(self.refuse(self.program, &[&sentence]))
            }
        }
    }

    fn short(&mut self, cluster: &'a [u8], rest: &mut impl Iterator<Item = &'a [u8]>) -> Result<(), Stop> {
        let mut left = cluster;
        while let [letter, after @ ..] = left {
            let Some(option) = KNOWN.iter().find(|one| one.short == Some(*letter)) else {
                return Err(self.refuse(self.program, &[b"invalid option -- '", &[*letter], b"'"]));
            };
            left = if option.takes == Takes::Nothing { after } else { &[] };
            let argument = match option.takes {
                Takes::Something if after.is_empty() => rest.next().ok_or_else(|| {
                    self.refuse(self.program, &[b"option requires an argument -- '", &[*letter], b"'"])
                })?,
                _ => after,
            };
            self.take(option.key, argument)?;
        }
        Ok(())
    }

    fn take(&mut self, key: Key, argument: &[u8]) -> Result<(), Stop> {
        let name = self.name();
        let read = &mut self.read;
        let (number, what): (&mut u32, &[u8]) = match key {
            Key::Help => return Err(Stop::Help(HELP)),
            Key::Usage => return Err(Stop::Help(USAGE)),
            Key::Timezone => {
                read.timezone = Some(argument.to_vec());
                return Ok(());
            }
            Key::Stream => {
                read.stream = true;
                return Ok(());
            }
            Key::Nproc => (&mut read.nproc, b"nproc"),
            Key::Fsize => (&mut read.fsize, b"fsize"),
            Key::Timeout => (&mut read.timeout, b"timeout"),
            Key::Osize => (&mut read.osize, b"osize"),
            Key::Interval => (&mut read.interval, b"timestamp-interval"),
        };
        let value = strtoul(argument).and_then(|value| u32::try_from(value).ok());
        *number = value.ok_or_else(|| {
            let parts: [&[u8]; 4] = [name, b": The argument to ", what, b" must be a nonnegative integer\n"];
            Stop::Usage(parts.concat())
        })?;
        Ok(())
    }
}

/// strtoul(3) of base 0 with `unsigned long` of 64 bits, where all of the text must belong to the number:
/// blanks, a sign (a negative number wraps round), `0x`, `0`. No text at all is 0.
fn strtoul(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return Some(0);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = text.iter().position(|byte| !blank(byte))?;
    let (negative, unsigned) = match &text[start..] {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let (base, digits) = match unsigned {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', ..] => (8, unsigned),
        _ => (10, unsigned),
    };
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, byte| {
        let digit = char::from(*byte).to_digit(base)?;
        value.checked_mul(base.into())?.checked_add(digit.into())
    })?;
    Some(if negative { value.wrapping_neg() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_strtoul_s() {
        for (text, value) in [
            ("", Some(0)),
            ("0", Some(0)),
            ("-0", Some(0)),
            ("  \t\n10", Some(10)),
            ("+7", Some(7)),
            ("0x1F", Some(31)),
            ("0X1f", Some(31)),
            ("017", Some(15)),
            ("4294967296", Some(1 << 32)),
            ("18446744073709551615", Some(u64::MAX)),
            ("-18446744073709551615", Some(1)),
            ("18446744073709551616", None),
            (" ", None),
            ("0x", None),
            ("08", None),
            ("5 ", None),
            ("+-5", None),
            ("- 5", None),
            ("1e3", None),
            ("0b1", None),
        ] {
            assert_eq!(strtoul(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn words_that_begin_this_form_are_told_from_others() {
        for word in ["-u5", "-t", "-?", "-s", "--", "--nproc=1", "--time", "--usage"] {
            assert!(begins(word.as_bytes()), "{word}");
        }
        for word in ["", "-", "-h", "-V", "--help", "--h", "--version", "--wall", "run", "autolab", "--=5"] {
            assert!(!begins(word.as_bytes()), "{word}");
        }
    }

    #[test]
    fn no_arguments_at_all_are_too_few() {
        for none in [&[][..], &[""]] {
            match parse(none) {
                Err(Stop::Usage(text)) => {
                    assert!(text.starts_with(b"autodriver: Too few arguments\nTry `autodriver --help'"));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn tango_s_own_beginnings_go_on_to_name_its_options() {
        let parsed = parse(&["autodriver", "--t", "5", "autolab", "--o=6"]);
        let expected =
            Arguments { timeout: 5, osize: 6, directory: b"autolab".to_vec(), ..Arguments::default() };
        assert_eq!(parsed, Ok(expected));
    }
}
