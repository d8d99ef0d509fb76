//! Writes the seeds: real conversations, documents, reports and archives, good and bad, in the form of each
//! target. The same files every time.

use std::fs;
use std::io;
use std::path::Path;

use autodriver_fuzz::guest::{greeting, record};
use autodriver_protocol::frame::{encode, Kind, HOST_SIGNATURE};
use autodriver_protocol::message::{Skipped, PROTOCOL_VERSION};
use autodriver_protocol::report::{FaultReport, Leftover, Restore, StreamReport};
use autodriver_protocol::{
    Cause, Closed, Direction, ErrorCode, ErrorMessage, Get, Hello, Open, Options, Report, Transferred,
};
use serde::Serialize;
use serde_json::json;
use tar::EntryType;
use vmm_local::session::{Fault, Step, Verdict};

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn main() -> io::Result<()> {
    let all: [(&str, Seeds); 9] = [
        ("frame_reader", frames()),
        ("guest_messages", guest_messages()),
        ("host_messages", host_messages()),
        ("job_document", documents()),
        ("report", reports()),
        ("archive_unpack", archives()),
        ("archive_round_trip", trees()),
        ("host_session", sessions()),
        ("tango_arguments", command_lines()),
    ];
    for (target, seeds) in all {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        for (name, bytes) in seeds {
            fs::write(dir.join(name), bytes)?;
        }
    }
    Ok(())
}

fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("it is JSON")
}

fn hello(name: &str) -> Vec<u8> {
    let version = "0.1.0".to_owned();
    text(&Hello {
        protocol: PROTOCOL_VERSION,
        name: name.to_owned(),
        version,
        capabilities: vec!["x".into()],
    })
}

fn document() -> Vec<u8> {
    text(&Options { command: vec!["make".into(), "grade".into()], ..Options::defaults() })
}

/// A report as a driver writes it.
fn report(cause: Cause) -> Report {
    let mut report = Verdict::Fault(Fault::here(Step::Run, &"made up")).to_report();
    report.cause = cause;
    report.exit_code = (cause == Cause::Exited).then_some(3);
    report.signal = (cause == Cause::Signaled).then_some(11);
    report.output.combined = Some(StreamReport { produced: 7, kept: 5, elided: 2 });
    report.usage.wall_us = 1000;
    report.usage.memory_peak_bytes = Some(1 << 20);
    let fault = report.fault.take();
    report.fault = fault.filter(|_| matches!(cause, Cause::SetupFailed | Cause::InternalError));
    report
}

fn restored() -> Vec<u8> {
    text(&Closed { restore: Restore::from_leftovers(Vec::new()) })
}

fn poisoned() -> Vec<u8> {
    let left = Leftover { kind: "process".into(), what: "7 does not die".into() };
    text(&Closed { restore: Restore::from_leftovers(vec![left]) })
}

fn refusal(code: ErrorCode) -> Vec<u8> {
    text(&ErrorMessage { code, message: "cannot \u{1b}[1mdo\u{202e} that".into() })
}

fn copied(entries: u64, bytes: u64) -> Transferred {
    Transferred { entries, bytes, ..Transferred::default() }
}

fn skipping() -> Transferred {
    let skipped = vec![Skipped { name: "fifo".into(), why: "not a regular file".into() }];
    Transferred { skipped, skipped_count: 1, ..copied(0, 0) }
}

/// What a guest says in the course of one job: kinds and payloads.
fn life() -> Vec<(Kind, Vec<u8>)> {
    vec![
        (Kind::Opened, Vec::new()),
        (Kind::PutDone, text(&copied(1, 11))),
        (Kind::Started, Vec::new()),
        (Kind::Output, b"hello\n".to_vec()),
        (Kind::Report, text(&report(Cause::Exited))),
        (Kind::Data, results()),
        (Kind::GetDone, text(&copied(1, 4))),
        (Kind::Closed, restored()),
    ]
}

/// What its host says.
fn requests() -> Vec<(Kind, Vec<u8>)> {
    vec![
        (Kind::Open, text(&Open { inodes: Some(100), user: Some("nobody".into()), disk: "1M".parse().ok() })),
        (Kind::Put, archive(|tar| file(tar, "data/input", b"forty-two\n", 0o644))),
        (Kind::Put, Vec::new()),
        (Kind::Run, document()),
        (Kind::Cancel, Vec::new()),
        (Kind::Get, text(&Get { globs: vec!["*.txt".into(), "results/**".into()] })),
        (Kind::Close, Vec::new()),
    ]
}

fn stream(frames: Vec<(Kind, Vec<u8>)>) -> Vec<u8> {
    frames.iter().flat_map(|(kind, payload)| encode(*kind, 1, payload)).collect()
}

fn frames() -> Seeds {
    let ping = encode(Kind::Ping, 0, b"are you there");
    let host =
        [&HOST_SIGNATURE[..], &encode(Kind::HostHello, 0, &hello("vmm-local")), &stream(requests()), &ping];
    let guest = [greeting(), stream(life())].concat();
    let noise = [b"Welcome to Debian!\r\nLast login: never\r\n\x89AD", &guest[..]].concat();
    let from = |direction, bytes: &[u8]| {
        let choice = u8::from(direction == Direction::FromHost);
        [&[choice, 7], bytes].concat()
    };
    let giant = [&guest[..60], &[0xff, 0xff, 0xff, 0x7f, 9, 1, 0, 0, 1, 0, 0, 0]].concat();
    vec![
        ("host", from(Direction::FromHost, &host.concat())),
        ("guest", from(Direction::FromGuest, &guest)),
        ("noise", from(Direction::FromGuest, &noise)),
        ("giant", from(Direction::FromGuest, &giant)),
        ("echo", from(Direction::FromGuest, &HOST_SIGNATURE)),
        ("crlf-to-lf", from(Direction::FromGuest, b"\x89ADG\n\x1a\n")),
        ("lf-to-crlf", from(Direction::FromHost, b"\x89ADH\r\r\n\x1a\r\n")),
        ("seven-bits", from(Direction::FromGuest, b"\x09ADG\r\n\x1a\n")),
        ("http", from(Direction::FromHost, b"GET / HTTP/1.1\r\n\r\n")),
        ("damage-then-signature", from(Direction::FromGuest, &[b"\x89ADG\r\r\n", &guest[..]].concat())),
        ("cut", from(Direction::FromGuest, &guest[..guest.len() - 30])),
    ]
}

fn guest_messages() -> Seeds {
    let number = |kind| Kind::ALL.iter().position(|other| *other == kind).expect("a kind") as u8;
    let one = |kind, payload: &[u8]| {
        let length = (payload.len() as u16).to_le_bytes();
        [&[number(kind), length[0], length[1]], payload].concat()
    };
    let mut both: Vec<(Kind, Vec<u8>)> = Vec::new();
    for (ask, answers) in [(Kind::Put, 1..2), (Kind::Run, 2..5), (Kind::Get, 5..7), (Kind::Close, 7..8)] {
        both.push((ask, Vec::new()));
        both.extend_from_slice(&life()[answers]);
    }
    vec![
        ("life", both.iter().flat_map(|(kind, payload)| one(*kind, payload)).collect()),
        ("hello", one(Kind::GuestHello, &hello("autodriver"))),
        ("skipping", one(Kind::GetDone, &text(&skipping()))),
        ("poisoned", one(Kind::Closed, &poisoned())),
        ("error", one(Kind::Error, &refusal(ErrorCode::TransferFailed))),
        (
            "largest-signal",
            one(Kind::Report, &text(&Report { signal: Some(i32::MAX), ..report(Cause::Signaled) })),
        ),
        ("fault", one(Kind::Report, &text(&report(Cause::SetupFailed)))),
    ]
}

fn host_messages() -> Seeds {
    let of = |kind: u8, payload: &[u8]| [&[kind], payload].concat();
    let globs = |globs: &[&str]| text(&json!({ "globs": globs }));
    vec![
        ("hello", of(0, &hello("vmm-local"))),
        ("open", of(1, &requests()[0].1)),
        ("open-sizes", of(1, br#"{"disk": "64M", "inodes": 1000}"#)),
        ("get", of(2, &requests()[5].1)),
        ("get-classes", of(2, &globs(&["[a-z]*/?[!x]/**/*.log", "./a/", "*a*a*a*b"]))),
        ("get-many-recursive", of(2, &globs(&["[a-z]//*/**/*.]*//**/./*./", &"**/*a*/".repeat(12)]))),
        ("get-outside", of(2, &globs(&["../x", "/etc/passwd", "a/../../b", ""]))),
        ("run", of(3, &document())),
    ]
}

fn documents() -> Seeds {
    let every = br#"{"command": ["make", "grade"], "wall": "10s", "cpu": 1.5, "idle": "500ms", "grace": "1m",
        "memory": 1048576, "pids": 3, "disk": "1G", "inodes": 9, "output": "64k", "on_output": "kill",
        "env": {"A": "b=c"}, "in": ["/x:y"], "out": ["*.log:/d"], "bind": ["/a:/b:rw", "/c"], "root": "/r",
        "require": ["all", "minimum", "seccomp"], "skip": ["landlock"], "as": "1G", "net": "host",
        "split": true, "timestamps": true, "abi32": true, "quiet": true, "report": "fd:3", "user": "1000",
        "cwd": "d", "hostname": "h", "stdin": "i", "fsize": 1, "nofile": 64, "stack": "8M", "core": 0,
        "data": 5, "memlock": "64K", "nproc": 7, "sigpending": 8, "msgqueue": 0}"#;
    let sample = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../jobs").join(name).join("job.json");
        fs::read(path).expect("a job of the samples")
    };
    vec![
        ("every-key", every.to_vec()),
        ("defaults", text(&Options::defaults())),
        ("env-list", br#"{"env": ["A=b", "PATH=/bin"], "wall": 1e3}"#.to_vec()),
        ("fork-bomb", sample("fork-bomb")),
        ("endless-output", sample("endless-output")),
        ("largest", br#"{"memory": "1073741824G", "wall": "8784h", "disk": 1152921504606846976}"#.to_vec()),
        ("unknown-key", br#"{"wal": 3}"#.to_vec()),
        ("list", br#"[["make"]]"#.to_vec()),
        ("trailing", b"{} x".to_vec()),
        ("nul-in-a-name", br#"{"in": ["/x:a\u0000b"], "out": ["*:/\u0000"]}"#.to_vec()),
        ("control-characters-in-a-key", b"{\"\\u001b[2J\x7f\": 1}".to_vec()),
    ]
}

fn reports() -> Seeds {
    let lie = |change: fn(&mut Report)| {
        let mut report = report(Cause::Exited);
        change(&mut report);
        text(&report)
    };
    vec![
        ("exited", text(&report(Cause::Exited))),
        ("signaled", text(&report(Cause::Signaled))),
        ("memory-limit", text(&report(Cause::MemoryLimit))),
        ("cancelled", text(&report(Cause::Cancelled))),
        ("setup-failed", text(&report(Cause::SetupFailed))),
        ("version", lie(|report| report.version = 2)),
        ("no-such-code", lie(|report| report.exit_code = Some(256))),
        ("code-and-signal", lie(|report| report.signal = Some(9))),
        ("layer-twice", lie(|report| report.layers.push(report.layers[0].clone()))),
        (
            "restored-with-leftovers",
            lie(|report| {
                report.restore.leftovers.push(Leftover { kind: "mount".into(), what: "/job".into() });
            }),
        ),
        (
            "poisoned",
            lie(|report| {
                let left = Leftover { kind: "mount".into(), what: "/job \u{1b}c".into() };
                report.restore = Restore::from_leftovers(vec![left]);
            }),
        ),
        (
            "fault-of-a-job-that-exited",
            lie(|report| {
                report.fault = Some(FaultReport {
                    step: "exec".into(),
                    object: "execute x".into(),
                    errno: "ENOENT".into(),
                    message: "no".into(),
                    remedy: Some("none".into()),
                });
            }),
        ),
        (
            "more-kept-than-written",
            lie(|report| {
                report.output.combined = Some(StreamReport { produced: 1, kept: u64::MAX, elided: 0 });
            }),
        ),
    ]
}

fn archive(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    build(&mut tar);
    tar.into_inner().expect("a tar stream in memory")
}

fn file(tar: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, content).expect("a tar stream in memory");
}

/// An entry with any name and link, as no builder makes it.
fn raw(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o6755);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content).expect("a tar stream in memory");
}

fn results() -> Vec<u8> {
    archive(|tar| file(tar, "results/log", b"fine", 0o644))
}

/// One line of an extended header.
fn pax(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let length = (1..).find(|length| length.to_string().len() + rest.len() == *length).expect("a length");
    format!("{length}{rest}").into_bytes()
}

fn archives() -> Seeds {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let deep = "d/".repeat(140) + "f";
    let entry = |kind, name: &'static str, link: &'static str| archive(|tar| raw(tar, kind, name, link, b""));
    let extended = |records: &[u8]| {
        archive(|tar| {
            raw(tar, EntryType::XHeader, "PaxHeaders/x", "", records);
            raw(tar, EntryType::Symlink, "short", "other", b"");
        })
    };
    let good = archive(|tar| {
        raw(tar, EntryType::Directory, "d/", "", b"");
        file(tar, "d/file", b"content", 0o755);
        raw(tar, EntryType::Symlink, "d/link", "../d/file", b"");
    });
    let twice = archive(|tar| {
        raw(tar, EntryType::Symlink, "a", "b", b"");
        file(tar, "a", b"in its place", 0o600);
        file(tar, "a/below", b"", 0o600);
    });
    let shapes: Vec<(&str, u8, Vec<u8>)> = vec![
        ("good", 0, good.clone()),
        ("good-planted", 2, good.clone()),
        ("good-small", 8, good),
        ("results", 1, results()),
        ("results-renamed", 33, archive(|tar| file(tar, "result.txt", b"fine", 0o4755))),
        ("not-asked-for", 1, archive(|tar| file(tar, "core", b"x", 0o644))),
        ("long-name", 0, archive(|tar| file(tar, &long, b"x", 0o644))),
        ("deep", 0, archive(|tar| file(tar, &deep, b"x", 0o644))),
        ("parent", 0, archive(|tar| raw(tar, EntryType::Regular, "../evil", "", b"evil"))),
        ("parent-inside", 0, archive(|tar| raw(tar, EntryType::Regular, "d/../../evil", "", b"evil"))),
        ("absolute", 0, archive(|tar| raw(tar, EntryType::Regular, "/tmp/evil", "", b"evil"))),
        ("through-a-link", 2, archive(|tar| raw(tar, EntryType::Regular, "out/evil", "", b"evil"))),
        (
            "through-an-absolute-link",
            6,
            archive(|tar| raw(tar, EntryType::Regular, "absolute/evil", "", b"evil")),
        ),
        ("over-a-link", 6, archive(|tar| raw(tar, EntryType::Regular, "file", "", b"evil"))),
        ("over-a-fifo", 2, archive(|tar| raw(tar, EntryType::Regular, "fifo", "", b"evil"))),
        ("directory-over-a-link", 2, entry(EntryType::Directory, "d/out", "")),
        ("link-outside", 0, entry(EntryType::Symlink, "d/link", "../../outside")),
        ("link-absolute", 0, entry(EntryType::Symlink, "link", "/etc/passwd")),
        ("link-nowhere", 0, entry(EntryType::Symlink, "link", "")),
        ("hard-link", 0, entry(EntryType::Link, "link", "d/file")),
        ("device", 0, entry(EntryType::Char, "null", "")),
        ("block-device", 0, entry(EntryType::Block, "disk", "")),
        ("fifo", 0, entry(EntryType::Fifo, "pipe", "")),
        ("continuous", 0, entry(EntryType::Continuous, "file2", "")),
        ("sparse", 0, entry(EntryType::GNUSparse, "sparse", "")),
        ("part", 2, archive(|tar| file(tar, ".autodriver.part", b"x", 0o644))),
        ("twice", 0, twice),
        ("pax-path", 0, extended(&pax("path", "d/from-pax"))),
        ("pax-outside", 0, extended(&[pax("path", "../evil"), pax("linkpath", "../../evil")].concat())),
        ("pax-size", 0, extended(&pax("size", "4096"))),
        ("pax-sparse", 0, extended(&pax("GNU.sparse.major", "1"))),
        ("pax-global", 0, archive(|tar| raw(tar, EntryType::XGlobalHeader, "g", "", &pax("comment", "x")))),
        (
            "gnu-name",
            0,
            archive(|tar| {
                raw(tar, EntryType::GNULongName, "././@LongLink", "", b"d/by-gnu\0");
                raw(tar, EntryType::GNULongLink, "././@LongLink", "", b"target\0");
                raw(tar, EntryType::Symlink, "short", "x", b"");
            }),
        ),
        ("no-archive", 0, b"GIF89a".to_vec()),
    ];
    shapes.into_iter().map(|(name, taken, bytes)| (name, [bytes, vec![taken]].concat())).collect()
}

/// Bytes in which a tree of every kind of node is found: lengths are read from the end, content from the start.
fn trees() -> Seeds {
    let counting = |length: u32, step: u32| (0..length).map(|n| (n * step % 251) as u8).collect::<Vec<u8>>();
    vec![
        ("counting", counting(3000, 1)),
        ("sevens", counting(2000, 7)),
        ("strides", counting(4000, 97)),
        ("backwards", counting(4000, 250)),
    ]
}

fn spoken(asked: u8, records: &[(Kind, u8, Vec<u8>)]) -> Vec<u8> {
    let records = records.iter().flat_map(|(kind, flags, payload)| record(*kind, *flags, payload));
    [asked].into_iter().chain(records).collect()
}

fn sessions() -> Seeds {
    const INPUT: u8 = 8;
    const OUTPUTS: u8 = 16;
    let archive_flag = |kind| if kind == Kind::Data { 4 } else { 0 };
    let with_flags = |life: Vec<(Kind, Vec<u8>)>| -> Vec<(Kind, u8, Vec<u8>)> {
        life.into_iter().map(|(kind, payload)| (kind, archive_flag(kind), payload)).collect()
    };
    let whole = with_flags(life());
    let change = |at: usize, kind, flags, payload: Vec<u8>| {
        let mut changed = with_flags(life());
        changed[at] = (kind, flags, payload);
        changed
    };
    let without = |dropped: &[usize]| -> Vec<(Kind, u8, Vec<u8>)> {
        let kept = with_flags(life()).into_iter().enumerate();
        kept.filter(|(at, _)| !dropped.contains(at)).map(|(_, record)| record).collect()
    };
    let plain = without(&[1, 5, 6]);
    let second = plain.iter().map(|(kind, flags, payload)| (*kind, flags | 1, payload.clone()));
    let two: Vec<_> = plain.iter().cloned().chain(second).collect();
    let split = [(Kind::Opened, 0, Vec::new()), (Kind::Started, 0, Vec::new())].into_iter();
    let split = split.chain([(Kind::Stdout, 0, b"out\n".to_vec()), (Kind::Stderr, 0, b"err\n".to_vec())]);
    let split: Vec<_> = split.chain(plain[3..].iter().cloned()).collect();
    let evil = archive(|tar| raw(tar, EntryType::Regular, "results/../../evil", "", b"evil"));
    let link = archive(|tar| raw(tar, EntryType::Symlink, "results/link", "x", b""));
    let raw_life = [greeting(), stream(life())].concat();
    vec![
        ("whole", spoken(INPUT | OUTPUTS, &whole)),
        ("plain", spoken(0, &plain)),
        ("two-jobs", spoken(64, &two)),
        ("split", spoken(2, &split)),
        ("raw", [vec![1 | INPUT | OUTPUTS], raw_life].concat()),
        ("flood", spoken(INPUT | OUTPUTS, &change(3, Kind::Output, 8, vec![b'x'; 5000]))),
        ("evil-archive", spoken(INPUT | OUTPUTS, &change(5, Kind::Data, 4, evil))),
        ("link-in-results", spoken(INPUT | OUTPUTS, &change(5, Kind::Data, 4, link))),
        ("wrong-count", spoken(INPUT | OUTPUTS, &change(6, Kind::GetDone, 0, text(&copied(7, 7))))),
        (
            "refused-put",
            spoken(INPUT | OUTPUTS, &change(1, Kind::Error, 0, refusal(ErrorCode::TransferFailed))),
        ),
        ("refused-run", spoken(INPUT | OUTPUTS, &change(2, Kind::Error, 0, refusal(ErrorCode::BadRequest)))),
        ("gives-up", spoken(INPUT | OUTPUTS, &change(2, Kind::Error, 3, refusal(ErrorCode::Protocol)))),
        ("poisoned", spoken(INPUT | OUTPUTS, &change(7, Kind::Closed, 0, poisoned()))),
        ("two-reports", spoken(0, &[&plain[..4], &plain[3..]].concat())),
        ("not-started", spoken(0, &without(&[1, 2, 3, 5, 6]))),
    ]
}

/// Words as execve(2) passes them.
fn command_lines() -> Seeds {
    let words = |words: &str| words.replace(' ', "\0").into_bytes();
    vec![
        ("tango", words("autodriver -u 500 -f 104857600 -t 90 -o 1024000 autolab")),
        ("stamps", words("autodriver -u 500 -f 1 -t 90 -o 1 -i 0 -z US/Eastern autolab")),
        ("long", words("/usr/bin/autodriver --nproc=0x1F --fsize 017 --timeout=+5 --osize=-1 autolab")),
        ("beginnings", words("autodriver --t 5 --o=6 --f=7 --n=8 --time=9 autolab")),
        ("stream", words("autodriver -s --stream --stream=x -sx autolab")),
        ("help", words("autodriver -? --help --usage")),
        ("end-of-options", words("autodriver -t5 -- -u")),
        ("two-directories", words("autodriver a b")),
        ("no-directory", words("autodriver -t 5")),
        ("unknown", words("autodriver --nothing -x")),
        ("no-number", words("autodriver -t 5s -u 4294967296 autolab")),
    ]
}
