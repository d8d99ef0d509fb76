//! What a hostile guest does, as data: a test writes a script, `hostile-guest` plays it.

use autodriver_protocol::frame::encode;
use autodriver_protocol::{Kind, GUEST_SIGNATURE};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

/// The variable that names the file of the script; each connection adds its pid to that file's
/// name with `.log`.
pub const SCRIPT: &str = "HOSTILE_GUEST";

/// Bytes, as pieces that are said one after another, each this often: a script stays small whatever
/// it makes a guest say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes(pub Vec<(Vec<u8>, usize)>);

impl<T: AsRef<[u8]>> From<T> for Bytes {
    fn from(bytes: T) -> Bytes {
        Bytes(vec![(bytes.as_ref().to_vec(), 1)])
    }
}

impl Bytes {
    /// The same bytes again and again.
    pub fn repeated(bytes: impl AsRef<[u8]>, times: usize) -> Bytes {
        Bytes(vec![(bytes.as_ref().to_vec(), times)])
    }

    /// These bytes, then others.
    #[must_use]
    pub fn then(mut self, others: impl Into<Bytes>) -> Bytes {
        self.0.extend(others.into().0);
        self
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(piece, times)| piece.len() * times).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them.
    pub fn whole(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(piece, times)| piece.repeat(*times)).collect()
    }
}

/// One thing that a guest does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Act {
    /// Writes bytes to stdout, this often.
    Say(Bytes, u64),
    /// Writes bytes to stderr, this often.
    Mutter(Bytes, u64),
    /// Writes the same byte to stdout five times a second, for ever.
    Drip(u8),
    /// Skips the host's frames up to one of this kind.
    Await(u16),
    /// Skips the host's frames up to the end of a `put`.
    AwaitFiles,
    /// Reads no more, but keeps the stream open, and goes on.
    CloseStdin,
    /// Ends its stdout, and goes on.
    CloseStdout,
    /// Does nothing more until the host hangs up.
    Silence,
    /// Does nothing more, whatever the host does.
    Deafness,
}

/// A frame of the first job; of none for `hello` and `pong`.
pub fn frame(kind: Kind, payload: impl Into<Bytes>) -> Bytes {
    let job = u32::from(!matches!(kind, Kind::GuestHello | Kind::Pong));
    frame_of(job, kind, payload)
}

/// A frame of any job. The payload may be longer than the protocol allows.
pub fn frame_of(job: u32, kind: Kind, payload: impl Into<Bytes>) -> Bytes {
    let payload = payload.into();
    let length = u32::try_from(payload.len()).expect("a payload of less than 4 GiB");
    Bytes::from(header(length, kind as u16, 0, job)).then(payload)
}

/// A header with anything in it.
pub fn header(length: u32, kind: u16, reserved: u16, job: u32) -> Vec<u8> {
    let mut header = encode(Kind::Closed, job, b"");
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..6].copy_from_slice(&kind.to_le_bytes());
    header[6..8].copy_from_slice(&reserved.to_le_bytes());
    header
}

/// Says bytes once.
pub fn say(bytes: impl Into<Bytes>) -> Act {
    Act::Say(bytes.into(), 1)
}

/// Waits for a request.
pub fn wait_for(kind: Kind) -> Act {
    Act::Await(kind as u16)
}

/// Says how many files and bytes were copied.
pub fn copied(kind: Kind, entries: u64, bytes: u64) -> Act {
    say(frame(kind, json!({"entries": entries, "bytes": bytes}).to_string()))
}

/// The report on a job that exited with 0.
pub fn report() -> Value {
    json!({
        "version": 1, "cause": "exited", "exit_code": 0, "limits_hit": [],
        "usage": {"wall_us": 1, "cpu_user_us": 1, "cpu_system_us": 1, "memory_peak_bytes": 1, "pids_peak": 1},
        "output": {"combined": {"produced": 0, "kept": 0, "elided": 0}},
        "layers": [{"name": "identity", "state": "enforced"}],
        "restore": {"state": "restored", "leftovers": []},
        "timing": {"setup_us": 1, "run_us": 1, "restore_us": 1},
    })
}

/// How far a conversation is when the guest stops being an autodriver. Declared in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing was said.
    Connect,
    /// The signature was said, and no `hello`.
    Hello,
    /// `open` is to be answered.
    Open,
    /// `put` is to be answered.
    Put,
    /// `run` is to be answered.
    Run,
    /// The job was started, and said something.
    Output,
    /// `get` is to be answered.
    Get,
    /// Some of the files were sent.
    Data,
    /// `close` is to be answered.
    Close,
}

impl Stage {
    /// Every stage.
    pub const ALL: [Stage; 9] = [
        Stage::Connect,
        Stage::Hello,
        Stage::Open,
        Stage::Put,
        Stage::Run,
        Stage::Output,
        Stage::Get,
        Stage::Data,
        Stage::Close,
    ];

    /// What an autodriver does from the stage before up to this one.
    fn step(self) -> Vec<Act> {
        let hello = json!({"protocol": 1, "name": "autodriver", "version": "0.1.0"}).to_string();
        match self {
            Stage::Connect => vec![],
            Stage::Hello => vec![say(GUEST_SIGNATURE)],
            Stage::Open => vec![say(frame(Kind::GuestHello, hello)), wait_for(Kind::Open)],
            Stage::Put => vec![say(frame(Kind::Opened, "")), Act::AwaitFiles],
            Stage::Run => vec![copied(Kind::PutDone, 1, 2), wait_for(Kind::Run)],
            Stage::Output => vec![say(frame(Kind::Started, "").then(frame(Kind::Output, "hi\n")))],
            Stage::Get => vec![say(frame(Kind::Report, report().to_string())), wait_for(Kind::Get)],
            // Half of the header of an entry.
            Stage::Data => vec![say(frame(Kind::Data, [b'f'; 100]))],
            Stage::Close => vec![],
        }
    }

    /// What an autodriver does up to this stage. Before `close` no file matched.
    pub fn reached(self) -> Vec<Act> {
        if self == Stage::Close {
            let end = [say(frame(Kind::Data, [0; 1024])), copied(Kind::GetDone, 0, 0), wait_for(Kind::Close)];
            return Stage::Get.reached().into_iter().chain(end).collect();
        }
        let before = Stage::ALL.into_iter().filter(|stage| *stage <= self);
        before.flat_map(Stage::step).collect()
    }
}

/// The whole life of a job from `run` on, in order but for this report.
pub fn reporting(report: &Value) -> Vec<Act> {
    let mut acts = Stage::Output.reached();
    acts.extend([say(frame(Kind::Report, report.to_string())), wait_for(Kind::Get)]);
    acts.extend(closing());
    acts
}

/// No file, and a machine that is restored.
pub fn closing() -> Vec<Act> {
    vec![
        say(frame(Kind::Data, [0; 1024])),
        copied(Kind::GetDone, 0, 0),
        wait_for(Kind::Close),
        say(frame(Kind::Closed, closed())),
        Act::Silence,
    ]
}

/// The content of `closed`.
pub fn closed() -> String {
    json!({"restore": {"state": "restored", "leftovers": []}}).to_string()
}
