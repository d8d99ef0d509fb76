//! Tango's command line on any words: arguments or a message, never anything else; and arguments that are
//! spelled out again read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The program has no library; this file of it needs nothing but `std`.
#[path = "../../../autodriver/src/tango/arguments.rs"]
mod arguments;

use arguments::{begins, parse, Arguments, Stop};

/// Every option in its longest form, in another order than they were given.
fn spelled_out(read: &Arguments) -> Vec<Vec<u8>> {
    let number = |name: &str, value: u32| format!("--{name}={value}").into_bytes();
    let mut words = vec![b"autodriver".to_vec(), number("timestamp-interval", read.interval)];
    words.extend(read.timezone.iter().map(|zone| [b"--timezone=", &zone[..]].concat()));
    words.extend(read.stream.then(|| b"--stream".to_vec()));
    words.push(number("osize", read.osize));
    words.push(number("timeout", read.timeout));
    words.push(number("fsize", read.fsize));
    words.push(number("nproc", read.nproc));
    words.extend([b"--".to_vec(), read.directory.clone()]);
    words
}

fuzz_target!(|data: &[u8]| {
    // As execve(2) passes them: words that end with a NUL byte.
    let words: Vec<&[u8]> = data.split(|byte| *byte == 0).collect();
    match parse(&words) {
        Ok(read) => {
            assert!(words[1..].contains(&&read.directory[..]), "a directory that was not given");
            let again = spelled_out(&read);
            assert!(begins(&again[1]), "an option that is not taken for one of this form");
            assert_eq!(parse(&again), Ok(read));
        }
        Err(Stop::Help(text)) => assert!(text.starts_with("Usage: ") && text.ends_with('\n')),
        Err(Stop::Usage(message)) => {
            assert!(message.ends_with(b"\n"), "{:?}", String::from_utf8_lossy(&message));
            let most = 3 * data.len() + 2000;
            assert!(message.len() <= most, "a message of {} bytes on {}", message.len(), data.len());
        }
    }
    let options_end = [words.first().copied().unwrap_or_default(), b"--", b"directory"];
    assert!(parse(&options_end).is_ok_and(|read| read.directory == b"directory"));
});
