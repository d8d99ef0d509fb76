//! A guest that is nothing but bytes: all it will ever say, in a file. The host meets it without a second
//! process or thread, and the same bytes always give the same end.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use autodriver_protocol::frame::{encode, Kind};
use autodriver_protocol::job::{Input, Output};
use autodriver_protocol::units::Size;
use autodriver_protocol::{Direction, Hello, Options, GUEST_SIGNATURE, PAYLOAD_MAX};
use nix::sys::memfd::{memfd_create, MFdFlags};
use vmm_local::backend::Peer;
use vmm_local::cancel::Cancel;
use vmm_local::session::{perform, Assignment, Connection, Deadlines, Outcome, Stream};

use crate::{report, tar_form};

/// Bytes of output that a job of these sessions may keep.
pub const OUTPUT: u64 = 4096;

/// What is asked of the guest, by the bits of one byte.
#[derive(Clone, Copy, Debug)]
pub struct Asked(pub u8);

impl Asked {
    /// The input is what the guest sends, as it is; else [`spoken`] makes frames of it.
    pub fn is_raw(self) -> bool {
        self.0 & 1 != 0
    }

    fn split(self) -> bool {
        self.0 & 2 != 0
    }

    fn timestamps(self) -> bool {
        self.0 & 4 != 0
    }

    fn input(self) -> bool {
        self.0 & 8 != 0
    }

    fn outputs(self) -> u8 {
        (self.0 >> 4) & 3
    }

    /// How many jobs are tried on the connection, one after another.
    pub fn jobs(self) -> usize {
        1 + usize::from(self.0 >> 6)
    }

    /// The job: its input is the file `input`, what it leaves goes below the directory `dest`.
    ///
    /// # Panics
    /// If the assignment is refused.
    pub fn assignment(self, input: &Path, dest: &Path) -> Assignment {
        let input = Input { src: input.to_string_lossy().into_owned(), dest: None };
        let output = |(glob, name): (&str, &str)| Output {
            glob: glob.to_owned(),
            dest: dest.join(name).to_string_lossy().into_owned(),
        };
        let outputs = [("results/*", "got/"), ("result", "one"), ("**", "")];
        let options = Options {
            inputs: self.input().then_some(input).into_iter().collect(),
            outputs: outputs.into_iter().take(usize::from(self.outputs())).map(output).collect(),
            split: self.split(),
            timestamps: self.timestamps(),
            output: Some(Size(OUTPUT)),
            disk: Some(Size(1 << 16)),
            inodes: Some(64),
            ..Options::default()
        };
        Assignment::new(options).expect("an assignment")
    }
}

/// The signature and a `hello` in good form.
pub fn greeting() -> Vec<u8> {
    let hello = Hello { protocol: 1, name: "fuzz".into(), version: "0".into(), capabilities: vec![] };
    let hello = serde_json::to_vec(&hello).expect("a hello as JSON");
    [&GUEST_SIGNATURE[..], &encode(Kind::GuestHello, 0, &hello)].concat()
}

/// What a guest sends, from records that a fuzzer can cut and join: kind, flags, length (two bytes, little
/// endian), payload. Flags: the job's number less one in the low two bits (3 stands for the connection); with
/// bit 2 the payload is a tar stream whose checksums are made right; with bit 3 it is sent a thousand times.
pub fn spoken(records: &[u8]) -> Vec<u8> {
    let kinds: Vec<Kind> =
        Kind::ALL.iter().copied().filter(|k| k.direction() == Direction::FromGuest).collect();
    let (mut said, mut rest) = (greeting(), records);
    while let Some(([kind, flags, low, high], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (payload, next) = after.split_at(length);
        rest = next;
        let job = match flags & 3 {
            3 => 0,
            number => u32::from(number) + 1,
        };
        let mut payload = payload.to_vec();
        if flags & 4 != 0 {
            tar_form::repair(&mut payload);
        }
        let frame = encode(kinds[usize::from(*kind) % kinds.len()], job, &payload);
        let times =
            if flags & 8 != 0 && said.len() + 1000 * frame.len() < 16 * PAYLOAD_MAX { 1000 } else { 1 };
        (0..times).for_each(|_| said.extend_from_slice(&frame));
    }
    said
}

/// One record of [`spoken`].
pub fn record(kind: Kind, flags: u8, payload: &[u8]) -> Vec<u8> {
    let kinds = Kind::ALL.iter().filter(|kind| kind.direction() == Direction::FromGuest);
    let number = kinds.take_while(|other| **other != kind).count();
    let length = u16::try_from(payload.len()).expect("a record's payload is short").to_le_bytes();
    [&[u8::try_from(number).expect("a few kinds"), flags, length[0], length[1]], payload].concat()
}

/// The outcomes of `jobs` jobs on a guest that says `said` and then is gone.
///
/// # Panics
/// If the machine lacks what it takes.
pub fn meet(said: &[u8], assignment: &Assignment, jobs: usize) -> Vec<Outcome> {
    let mut file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.write_all(said).expect("it takes what the guest says");
    std::io::Seek::rewind(&mut file).expect("it is read from its start");
    let deaf = File::options().write(true).open("/dev/null").expect("/dev/null");
    let peer = Peer::from_streams(deaf.into(), file.into()).expect("a peer");
    let minute = Duration::from_secs(60);
    let deadlines = Deadlines { connect: minute, request: minute, copy: minute, margin: minute };
    let cancel = Cancel::new().expect("a pipe");
    let mut connection = match Connection::establish(peer, deadlines, &cancel) {
        Ok(connection) => connection,
        Err(fault) => return vec![Outcome::of(fault)],
    };
    let mut outcomes = Vec::new();
    while outcomes.len() < jobs && !connection.is_over() {
        let mut passed_on = 0_u64;
        let mut sink = |_: Stream, bytes: &[u8]| {
            passed_on += bytes.len() as u64;
            Ok(())
        };
        outcomes.push(perform(&mut connection, assignment, &mut sink));
        // The cap, what may come beside it, and its growth by timestamps.
        assert!(passed_on <= 32 * OUTPUT + (4 << 20) + (16 << 20), "{passed_on} bytes of output were taken");
    }
    outcomes
}

/// What every outcome must be, whatever the guest was.
///
/// # Panics
/// If it is not: a finding.
pub fn check(outcome: &Outcome) {
    let verdict = &outcome.verdict;
    let lines = outcome.notes.iter().cloned().chain([verdict.line()]).chain(verdict.weaker());
    for line in lines {
        assert!(line.chars().count() <= 4096, "a line of {} characters", line.chars().count());
        assert!(!line.chars().any(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)), "{line:?}");
    }
    let told = verdict.to_report();
    assert!(!verdict.is_about_the_job() || report::is_possible(&told, true), "a verdict by {told:?}");
    let text = serde_json::to_vec(&told).expect("a report as JSON");
    assert_eq!(serde_json::from_slice::<autodriver_protocol::Report>(&text).expect("it reads back"), told);
    let _ = (verdict.exit_code(), verdict.summary());
}
