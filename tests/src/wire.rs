//! A client of `autodriver serve`, for the tests: frames out, frames in, by job.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use autodriver_protocol::frame::encode;
use autodriver_protocol::{
    Closed, Decoder, Direction, ErrorMessage, Hello, Kind, Report, Scanner, HOST_SIGNATURE,
};

use crate::{autodriver, captive, wait_until, DEADLINE};

/// One frame from the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Whose it is; 0 is the connection.
    pub job: u32,
    /// Its content.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The content as the JSON object that its kind carries.
    #[track_caller]
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        let text = String::from_utf8_lossy(&self.payload);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{:?}: {error}: {text}", self.kind))
    }

    /// The content of an `error` frame.
    #[track_caller]
    pub fn error(&self) -> ErrorMessage {
        assert!(self.kind == Kind::Error, "an error was expected, not {self:?}");
        self.json()
    }
}

/// One run over the wire, to its report.
#[derive(Debug)]
pub struct Finished {
    /// All output, or stdout with `split`.
    pub output: Vec<u8>,
    /// Stderr with `split`.
    pub stderr: Vec<u8>,
    /// The report.
    pub report: Report,
}

/// A tar stream of these files (name, content, mode).
pub fn tar_of(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, name, *content).expect("a tar stream in memory");
    }
    tar.into_inner().expect("a tar stream in memory")
}

/// A running `autodriver serve`, and what it said that nobody asked for yet.
#[derive(Debug)]
pub struct Connection {
    child: Child,
    stdin: Option<ChildStdin>,
    frames: Receiver<Result<Frame, String>>,
    waiting: VecDeque<Frame>,
    /// Held while nothing is to be read from the guest.
    gate: Arc<Mutex<()>>,
}

/// Reads frames until the stream ends; says why if it did not end between two.
fn read_frames(
    mut source: impl Read,
    gate: &Mutex<()>,
    to: &mpsc::Sender<Result<Frame, String>>,
) -> Result<(), String> {
    let mut scanner = Scanner::for_guest_signature();
    let mut decoder = Decoder::new(Direction::FromGuest);
    let mut buffer = vec![0; 64 << 10];
    let mut found = false;
    loop {
        drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        let count = source.read(&mut buffer).map_err(|error| error.to_string())?;
        if count == 0 && !found {
            return Err("the guest ended without a signature".to_owned());
        }
        if count == 0 {
            return decoder.at_end().map_err(|error| error.to_string());
        }
        if found {
            decoder.push(&buffer[..count]);
        } else if let Some(rest) = scanner.push(&buffer[..count]).map_err(|error| error.to_string())? {
            found = true;
            decoder.push(&rest);
        }
        while let Some((header, payload)) = decoder.next_frame().map_err(|error| error.to_string())? {
            let frame = Frame { kind: header.kind, job: header.job, payload: payload.to_vec() };
            to.send(Ok(frame)).map_err(|error| error.to_string())?;
        }
    }
}

impl Connection {
    /// Starts a guest and greets it.
    pub fn start() -> Connection {
        let mut connection = Connection::silent();
        connection.raw(&HOST_SIGNATURE);
        connection.greet();
        let hello: Hello = connection.receive(0).json();
        assert_eq!(hello.protocol, 1, "the guest's protocol version");
        connection
    }

    /// Starts a guest and says nothing.
    pub fn silent() -> Connection {
        let mut command = Command::new(autodriver());
        command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("autodriver serve starts");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (sender, frames) = mpsc::channel();
        let gate = Arc::new(Mutex::new(()));
        let reading = Arc::clone(&gate);
        thread::spawn(move || {
            if let Err(why) = read_frames(stdout, &reading, &sender) {
                // The test may have ended already.
                drop(sender.send(Err(why)));
            }
        });
        let stdin = child.stdin.take();
        Connection { child, stdin, frames, waiting: VecDeque::new(), gate }
    }

    /// Sends the host's `hello`.
    pub fn greet(&mut self) {
        let hello = Hello { protocol: 1, name: "e2e".into(), version: "1".into(), capabilities: vec![] };
        self.send(Kind::HostHello, 0, &serde_json::to_vec(&hello).expect("a hello as JSON"));
    }

    /// The guest's process.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pids are positive and small")
    }

    /// How many descriptors the guest holds.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the guest lives").count()
    }

    /// The guest's largest resident set, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the guest lives");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        peak.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number of KiB")
    }

    /// Sends bytes as they are. A guest that hung up is noticed when its answer is missing.
    pub fn raw(&mut self, bytes: &[u8]) {
        if let Some(stdin) = &mut self.stdin {
            drop(stdin.write_all(bytes));
        }
    }

    /// Sends a frame.
    pub fn send(&mut self, kind: Kind, job: u32, payload: &[u8]) {
        self.raw(&encode(kind, job, payload));
    }

    /// The next frame of any job, or `None` at the end of the stream.
    #[track_caller]
    pub fn next_frame(&mut self) -> Option<Frame> {
        if let Some(frame) = self.waiting.pop_front() {
            return Some(frame);
        }
        self.fetch(DEADLINE)
    }

    #[track_caller]
    fn fetch(&mut self, limit: Duration) -> Option<Frame> {
        match self.frames.recv_timeout(limit) {
            Ok(Ok(frame)) => Some(frame),
            Ok(Err(why)) => panic!("the guest broke the protocol: {why}"),
            Err(RecvTimeoutError::Timeout) => panic!("the guest said nothing for {limit:?}"),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// The next frame of this job; those of others wait.
    #[track_caller]
    pub fn receive(&mut self, job: u32) -> Frame {
        if let Some(at) = self.waiting.iter().position(|frame| frame.job == job) {
            return self.waiting.remove(at).expect("it was just found");
        }
        loop {
            let Some(frame) = self.fetch(DEADLINE) else {
                let ended = wait_until(DEADLINE, || self.child.try_wait().ok().flatten());
                panic!("the guest hung up on job {job}, and ended with {ended:?}");
            };
            if frame.job == job {
                return frame;
            }
            self.waiting.push_back(frame);
        }
    }

    /// The next frame of this job, which must be of this kind.
    #[track_caller]
    pub fn expect(&mut self, kind: Kind, job: u32) -> Frame {
        let frame = self.receive(job);
        let text = String::from_utf8_lossy(&frame.payload);
        assert!(frame.kind == kind, "{kind:?} was expected for job {job}, not {:?}: {text}", frame.kind);
        frame
    }

    /// Opens a job and puts the captive into it.
    #[track_caller]
    pub fn open(&mut self, job: u32) {
        self.send(Kind::Open, job, b"{}");
        self.expect(Kind::Opened, job);
        let program = fs::read(captive()).expect("the captive can be read");
        self.put(job, &tar_of(&[("captive", &program, 0o755)]));
        self.expect(Kind::PutDone, job);
    }

    /// Sends a whole tar stream; its answer is still to come.
    pub fn put(&mut self, job: u32, tar: &[u8]) {
        for part in tar.chunks(256 << 10) {
            self.send(Kind::Put, job, part);
        }
        self.send(Kind::Put, job, b"");
    }

    /// Sends a job document; its answers are still to come.
    #[track_caller]
    pub fn run(&mut self, job: u32, document: &serde_json::Value) {
        self.send(Kind::Run, job, document.to_string().as_bytes());
    }

    /// Reads a job's frames up to its report.
    #[track_caller]
    pub fn finish(&mut self, job: u32) -> Finished {
        let (mut output, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let frame = self.receive(job);
            match frame.kind {
                Kind::Started => {}
                Kind::Output | Kind::Stdout => output.extend(frame.payload),
                Kind::Stderr => stderr.extend(frame.payload),
                Kind::Report => return Finished { output, stderr, report: frame.json() },
                other => panic!("a report was expected, not {other:?}: {frame:?}"),
            }
        }
    }

    /// Fetches files: names and contents.
    #[track_caller]
    pub fn get(&mut self, job: u32, globs: &[&str]) -> Vec<(String, Vec<u8>)> {
        self.send(Kind::Get, job, serde_json::json!({ "globs": globs }).to_string().as_bytes());
        let mut stream = Vec::new();
        loop {
            let frame = self.receive(job);
            match frame.kind {
                Kind::Data => stream.extend(frame.payload),
                Kind::GetDone => break,
                other => panic!("files were expected, not {other:?}: {frame:?}"),
            }
        }
        let mut archive = tar::Archive::new(&stream[..]);
        let entries = archive.entries().expect("a tar stream");
        entries.map(|entry| read_entry(entry.expect("a whole entry"))).collect()
    }

    /// Closes a job; frames of its last run are skipped.
    #[track_caller]
    pub fn close(&mut self, job: u32) -> Closed {
        self.send(Kind::Close, job, b"");
        loop {
            let frame = self.receive(job);
            if frame.kind == Kind::Closed {
                return frame.json();
            }
        }
    }

    /// Does something while nothing is read from the guest (but for a last 64 KiB).
    pub fn pause<T>(&mut self, work: impl FnOnce(&mut Connection) -> T) -> T {
        let gate = Arc::clone(&self.gate);
        let _closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        work(self)
    }

    /// Hangs up, and waits for the guest's exit status.
    #[track_caller]
    pub fn end(mut self) -> i32 {
        self.stdin.take();
        self.exit_status()
    }

    /// Waits for the guest to end by itself.
    #[track_caller]
    pub fn exit_status(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the guest can be waited for") {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < DEADLINE, "the guest did not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn read_entry<R: Read>(mut entry: tar::Entry<'_, R>) -> (String, Vec<u8>) {
    let name = entry.path().expect("a name").to_string_lossy().into_owned();
    let mut content = Vec::new();
    entry.read_to_end(&mut content).expect("the entry's content");
    (name, content)
}

impl Drop for Connection {
    /// A test that fails must not leave its guest behind: hanging up makes it restore and end.
    fn drop(&mut self) {
        self.stdin.take();
        let end = Instant::now() + Duration::from_secs(30);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                drop(self.child.kill());
                drop(self.child.wait());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
