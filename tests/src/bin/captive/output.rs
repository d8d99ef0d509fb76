//! Output: much, mixed, unbroken, and none.

use std::io::{self, Write};

use crate::answer::{errno_of, number, Answer};
use crate::clock::sleep;

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    let result = match words {
        ["lines", count] => numbered(number(count)),
        ["flood", mib] => flood(number(mib)),
        ["flood-forever"] => flood(u64::MAX),
        ["unbroken", text, count] => unbroken(text, number(count)),
        ["last-lines", count, length] => last_lines(number(count), number(length)),
        ["alternate", count] => alternate(number(count)),
        ["drip", count, ms] => drip(number(count), number(ms)),
        ["close-streams"] => close_streams(),
        ["bytes"] => all_bytes(),
        _ => return None,
    };
    // What was written is all there is to say.
    Some(match result {
        Ok(()) => {
            drop(io::stdout().flush());
            crate::answer::leave(0)
        }
        Err(error) => Err(errno_of(&error)),
    })
}

/// One write for each call: std would buffer stdout by lines.
fn write_all(stream: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}

/// `line 0000000` and so on: 13 bytes each.
fn numbered(count: usize) -> io::Result<()> {
    let text: String = (0..count).map(|line| format!("line {line:07}\n")).collect();
    write_all(&mut io::stdout(), text.as_bytes())
}

fn flood(mib: u64) -> io::Result<()> {
    let block = "the quick brown fox jumps over the lazy dog, again.............\n".repeat(1 << 14);
    let mut stdout = io::stdout().lock();
    (0..mib).try_for_each(|_| stdout.write_all(block.as_bytes()))
}

/// The same text again and again, without a line break.
fn unbroken(text: &str, count: usize) -> io::Result<()> {
    write_all(&mut io::stdout(), text.repeat(count).as_bytes())
}

/// Many lines, then two that must survive whole, of `length` bytes each.
fn last_lines(count: usize, length: usize) -> io::Result<()> {
    numbered(count)?;
    let text = format!("{}\n{}\n", "y".repeat(length), "z".repeat(length));
    write_all(&mut io::stdout(), text.as_bytes())
}

/// `out N` and `err N` in turn.
fn alternate(count: usize) -> io::Result<()> {
    for turn in 0..count {
        write_all(&mut io::stdout(), format!("out {turn}\n").as_bytes())?;
        write_all(&mut io::stderr(), format!("err {turn}\n").as_bytes())?;
    }
    Ok(())
}

/// A line, a pause, a line.
fn drip(count: usize, ms: u64) -> io::Result<()> {
    for turn in 0..count {
        write_all(&mut io::stdout(), format!("drop {turn}\n").as_bytes())?;
        sleep(ms);
    }
    Ok(())
}

/// Closes all three streams and goes on working for a while.
fn close_streams() -> io::Result<()> {
    write_all(&mut io::stdout(), b"closing\n")?;
    for descriptor in 0..3 {
        // SAFETY: nothing uses the streams afterwards; the process ends below.
        unsafe { libc::close(descriptor) };
    }
    sleep(300);
    crate::answer::leave(5)
}

/// Every byte there is.
fn all_bytes() -> io::Result<()> {
    write_all(&mut io::stdout(), &(0..=255).collect::<Vec<u8>>())
}
