//! A fake autodriver: plays the script that `HOSTILE_GUEST` names, true or not, and leaves. It
//! touches nothing but its three streams and the script's `.log`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::time::Duration;
use std::{env, process, thread};

use autodriver_protocol::{Decoder, Direction, HOST_SIGNATURE};
use e2e::{Act, Bytes, SCRIPT};

/// The guest's side of the wire.
struct Guest {
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: File,
    decoder: Decoder,
    greeted: bool,
}

/// One of the streams that the host gave us.
fn stream(number: i32) -> File {
    // SAFETY: nothing else in this program uses the three streams.
    #[allow(unsafe_code)]
    unsafe {
        File::from_raw_fd(number)
    }
}

fn gone() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl Guest {
    fn play(&mut self, act: &Act) -> io::Result<()> {
        match act {
            Act::Say(bytes, times) => repeat(self.stdout.as_mut().ok_or_else(gone)?, bytes, *times),
            Act::Mutter(bytes, times) => repeat(&mut self.stderr, bytes, *times),
            Act::Drip(byte) => loop {
                self.stdout.as_mut().ok_or_else(gone)?.write_all(&[*byte])?;
                thread::sleep(Duration::from_millis(200));
            },
            Act::Await(kind) => self.skip(|got, _| got == *kind),
            Act::AwaitFiles => self.skip(|kind, length| (kind, length) == (3, 0)),
            Act::CloseStdin => {
                self.stdin = None;
                Ok(())
            }
            Act::CloseStdout => {
                self.stdout = None;
                Ok(())
            }
            Act::Silence => io::copy(self.stdin.as_mut().ok_or_else(gone)?, &mut io::sink()).map(drop),
            Act::Deafness => loop {
                thread::sleep(Duration::from_secs(60));
            },
        }
    }

    /// Reads the host's frames up to one with this kind and length.
    fn skip(&mut self, last: impl Fn(u16, usize) -> bool) -> io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or_else(gone)?;
        if !self.greeted {
            let mut signature = [0; HOST_SIGNATURE.len()];
            stdin.read_exact(&mut signature)?;
            self.greeted = true;
        }
        loop {
            while let Some((header, _)) = self.decoder.next_frame().map_err(io::Error::other)? {
                if last(header.kind as u16, header.length) {
                    return Ok(());
                }
            }
            if self.decoder.fill(stdin)? == 0 {
                return Err(gone());
            }
        }
    }
}

fn repeat(stream: &mut File, bytes: &Bytes, times: u64) -> io::Result<()> {
    let whole = bytes.whole();
    (0..times).try_for_each(|_| stream.write_all(&whole))
}

fn script() -> io::Result<Vec<Act>> {
    let path = env::var(SCRIPT).map_err(io::Error::other)?;
    let mut log = OpenOptions::new().create(true).append(true).open(format!("{path}.log"))?;
    writeln!(log, "{}", process::id())?;
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn main() -> io::Result<()> {
    let acts = script()?;
    let decoder = Decoder::new(Direction::FromHost);
    let (stdin, stdout) = (Some(stream(0)), Some(stream(1)));
    let mut guest = Guest { stdin, stdout, stderr: stream(2), decoder, greeted: false };
    // Its errors are those of a host that left.
    let _ = acts.iter().try_for_each(|act| guest.play(act));
    Ok(())
}
