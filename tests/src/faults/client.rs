//! A host for a disturbed `autodriver serve`: it wants two jobs of the same kind, one after another, and notes what
//! it gets. Whatever it gets it hangs up in the end, and it never waits for a guest that is gone.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};

use autodriver_protocol::frame::encode;
use autodriver_protocol::report::Restore;
use autodriver_protocol::{
    Closed, Decoder, Direction, ErrorMessage, Hello, Kind, Report, Scanner, Transferred, HOST_SIGNATURE,
};
use serde::de::DeserializeOwned;
use serde_json::{json, to_vec};

use crate::wire::tar_of;

/// How many jobs it wants.
pub(super) const JOBS: usize = 2;

/// What each of them is.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// The file to put, and what is in it.
    pub(super) given: (&'static str, &'static str),
    /// What its shell does.
    pub(super) script: &'static str,
    /// The file to get.
    pub(super) result: &'static str,
}

/// What came of one.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// All output.
    pub(super) output: Vec<u8>,
    /// The report.
    pub(super) report: Option<Report>,
    /// The file that was fetched.
    pub(super) result: Vec<u8>,
    /// Files were left out, and it said so.
    pub(super) left_out: bool,
    /// The requests that failed: one sentence each.
    pub(super) refused: Vec<String>,
    /// What was said when it was closed.
    pub(super) restore: Option<Restore>,
}

/// What came of the conversation.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The jobs that were asked for.
    pub(super) jobs: Vec<Served>,
    /// What the guest said of the connection.
    pub(super) farewell: Option<String>,
    /// It ended in the middle of a frame.
    pub(super) torn: bool,
    /// What was not the protocol.
    pub(super) broken: Option<String>,
}

/// Why a conversation does not go on.
enum Stop {
    /// The guest hung up, or said that it will.
    Gone,
    /// It said what it must not say.
    Broken(String),
}

struct Frame {
    kind: Kind,
    job: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn json<T: DeserializeOwned>(&self) -> Result<T, Stop> {
        serde_json::from_slice(&self.payload)
            .map_err(|error| Stop::Broken(format!("{:?}: {error}", self.kind)))
    }
}

struct Client {
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    scanner: Option<Scanner>,
    decoder: Decoder,
    waiting: VecDeque<Frame>,
    heard: Heard,
}

/// Talks with a guest until it is gone.
pub(super) fn converse(order: &Order, stdin: ChildStdin, stdout: ChildStdout) -> Heard {
    let mut client = Client {
        stdin: Some(stdin),
        stdout,
        scanner: Some(Scanner::for_guest_signature()),
        decoder: Decoder::new(Direction::FromGuest),
        waiting: VecDeque::new(),
        heard: Heard::default(),
    };
    if let Err(Stop::Broken(why)) = client.jobs(order) {
        client.heard.broken = Some(why);
    }
    client.heard.torn = client.decoder.at_end().is_err();
    client.heard
}

impl Client {
    fn jobs(&mut self, order: &Order) -> Result<(), Stop> {
        let hello = Hello { protocol: 1, name: "e2e".into(), version: "1".into(), capabilities: vec![] };
        self.write(&HOST_SIGNATURE);
        self.say(Kind::HostHello, 0, &to_vec(&hello).unwrap_or_default());
        let hello = self.hear(0)?;
        if hello.kind != Kind::GuestHello {
            return Err(Stop::Broken(format!("{:?} instead of hello", hello.kind)));
        }
        for number in 1..=JOBS {
            self.heard.jobs.push(Served::default());
            self.job(u32::try_from(number).unwrap_or(u32::MAX), order)?;
        }
        // It is told that there is nothing more, and may have something to say of it.
        self.stdin.take();
        let frame = self.hear(0)?;
        Err(Stop::Broken(format!("{:?} after the last job", frame.kind)))
    }

    fn job(&mut self, job: u32, order: &Order) -> Result<(), Stop> {
        self.say(Kind::Open, job, b"");
        if self.answer(job, &[Kind::Opened])?.is_none() {
            return Ok(());
        }
        if self.requests(job, order)? {
            self.get(job, order)?;
        }
        self.say(Kind::Close, job, b"");
        if let Some(closed) = self.answer(job, &[Kind::Closed])? {
            self.served().restore = Some(closed.json::<Closed>()?.restore);
        }
        Ok(())
    }

    /// The job that was begun last.
    fn served(&mut self) -> &mut Served {
        self.heard.jobs.last_mut().expect("one was begun")
    }

    /// Puts and runs; whether there may be something to get.
    fn requests(&mut self, job: u32, order: &Order) -> Result<bool, Stop> {
        let (name, content) = order.given;
        self.say(Kind::Put, job, &tar_of(&[(name, content.as_bytes(), 0o644)]));
        self.say(Kind::Put, job, b"");
        if self.answer(job, &[Kind::PutDone])?.is_none() {
            return Ok(false);
        }
        let document = json!({ "command": ["/bin/sh", "-c", order.script] });
        self.say(Kind::Run, job, document.to_string().as_bytes());
        while let Some(frame) = self.answer(job, &[Kind::Started, Kind::Output, Kind::Report])? {
            let served = self.served();
            match frame.kind {
                Kind::Started => {}
                Kind::Output => served.output.extend(frame.payload),
                _ => {
                    served.report = Some(frame.json()?);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn get(&mut self, job: u32, order: &Order) -> Result<(), Stop> {
        self.say(Kind::Get, job, json!({ "globs": [order.result] }).to_string().as_bytes());
        let mut stream = Vec::new();
        loop {
            match self.answer(job, &[Kind::Data, Kind::GetDone])? {
                None => return Ok(()),
                Some(frame) if frame.kind == Kind::Data => stream.extend(frame.payload),
                Some(done) => {
                    self.served().left_out = !done.json::<Transferred>()?.skipped.is_empty();
                    break;
                }
            }
        }
        let mut archive = tar::Archive::new(&stream[..]);
        let broken = |error: std::io::Error| Stop::Broken(format!("what was fetched: {error}"));
        for entry in archive.entries().map_err(broken)? {
            entry.map_err(broken)?.read_to_end(&mut self.served().result).map_err(broken)?;
        }
        Ok(())
    }

    /// The next frame of a job, which must be one of these; none if it is an error instead.
    fn answer(&mut self, job: u32, kinds: &[Kind]) -> Result<Option<Frame>, Stop> {
        let frame = self.hear(job)?;
        if kinds.contains(&frame.kind) {
            return Ok(Some(frame));
        }
        if frame.kind != Kind::Error {
            return Err(Stop::Broken(format!("{:?} instead of one of {kinds:?}", frame.kind)));
        }
        let message = frame.json::<ErrorMessage>()?.message;
        self.served().refused.push(message);
        Ok(None)
    }

    fn hear(&mut self, job: u32) -> Result<Frame, Stop> {
        loop {
            let Some(frame) = self.waiting.pop_front() else {
                self.read()?;
                continue;
            };
            if frame.kind == Kind::Error && frame.job == 0 {
                self.heard.farewell = Some(frame.json::<ErrorMessage>()?.message);
                return Err(Stop::Gone);
            }
            return match frame.job == job {
                true => Ok(frame),
                false => Err(Stop::Broken(format!("{:?} for job {} in job {job}", frame.kind, frame.job))),
            };
        }
    }

    fn read(&mut self) -> Result<(), Stop> {
        let mut buffer = [0; 4096];
        let count = self.stdout.read(&mut buffer).map_err(|error| Stop::Broken(error.to_string()))?;
        if count == 0 {
            return Err(Stop::Gone);
        }
        let broken = |error: autodriver_protocol::WireError| Stop::Broken(error.to_string());
        match &mut self.scanner {
            None => self.decoder.push(&buffer[..count]),
            Some(scanner) => {
                if let Some(rest) = scanner.push(&buffer[..count]).map_err(broken)? {
                    self.scanner = None;
                    self.decoder.push(&rest);
                }
            }
        }
        while let Some((header, payload)) = self.decoder.next_frame().map_err(broken)? {
            self.waiting.push_back(Frame { kind: header.kind, job: header.job, payload: payload.to_vec() });
        }
        Ok(())
    }

    fn say(&mut self, kind: Kind, job: u32, payload: &[u8]) {
        self.write(&encode(kind, job, payload));
    }

    /// That a guest is gone is seen where its answer is missing.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.stdin {
            drop(stdin.write_all(bytes));
        }
    }
}
