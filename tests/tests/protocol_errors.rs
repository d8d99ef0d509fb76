//! The wire in bad order: what breaks the connection, and what only the one request.

use std::fs;

use autodriver_protocol::frame::encode;
use autodriver_protocol::report::RestoreState;
use autodriver_protocol::{Cause, ErrorCode, Kind, HOST_SIGNATURE};
use e2e::{alone, tar_of, Connection, Snapshot};
use serde_json::json;

/// Sends bytes to a greeted guest with a job at work, and expects it to name the fault and end.
#[track_caller]
fn breaks_the_connection(bytes: &[u8], words: &[&str]) {
    let before = Snapshot::take();
    let mut guest = Connection::start();
    guest.open(1);
    guest.run(1, &json!({"command": ["./captive", "ignore-term"], "wall": 200}));
    guest.expect(Kind::Started, 1);
    guest.raw(bytes);
    let error = guest.receive(0).error();
    assert_eq!(error.code, ErrorCode::Protocol, "{error:?}");
    for word in words {
        assert!(error.message.contains(word), "{word} is not in {error:?}");
    }
    assert_ne!(guest.exit_status(), 0);
    before.assert_same("a broken connection");
}

/// Sends a request that fails, and expects the job to be as it was.
#[track_caller]
fn fails_alone(guest: &mut Connection, code: ErrorCode, words: &[&str]) {
    let error = guest.receive(1).error();
    assert_eq!(error.code, code, "{error:?}");
    for word in words {
        assert!(error.message.contains(word), "{word} is not in {error:?}");
    }
    guest.run(1, &json!({"command": ["./captive", "exit", "4"]}));
    assert_eq!(guest.finish(1).report.exit_code, Some(4), "the job is usable after {error:?}");
}

fn opened() -> Connection {
    let mut guest = Connection::start();
    guest.open(1);
    guest
}

#[test]
fn peer_that_is_no_host_is_told_so() {
    let _alone = alone();
    let mut guest = Connection::silent();
    guest.raw(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    assert_ne!(guest.exit_status(), 0);
}

#[test]
fn damaged_signature_is_named() {
    let _alone = alone();
    let mut guest = Connection::silent();
    guest.raw(b"\x89ADH\n\x1a\n");
    guest.greet();
    assert_ne!(guest.exit_status(), 0);
}

#[test]
fn host_that_says_nothing_and_leaves_is_no_fault() {
    let _alone = alone();
    let before = Snapshot::take();
    drop(Connection::silent());
    before.assert_same("a host that said nothing");
}

#[test]
fn first_frame_must_be_hello() {
    let _alone = alone();
    let mut guest = Connection::silent();
    guest.raw(&HOST_SIGNATURE);
    guest.send(Kind::Open, 1, b"{}");
    let hello = guest.receive(0);
    assert_eq!(hello.kind, Kind::GuestHello);
    assert!(guest.receive(0).error().message.contains("hello"));
    assert_ne!(guest.exit_status(), 0);
}

#[test]
fn other_protocol_version_is_refused() {
    let _alone = alone();
    let mut guest = Connection::silent();
    guest.raw(&HOST_SIGNATURE);
    guest.send(Kind::HostHello, 0, br#"{"protocol": 999, "name": "x", "version": "1"}"#);
    guest.expect(Kind::GuestHello, 0);
    assert!(guest.receive(0).error().message.contains("999"));
    assert_ne!(guest.exit_status(), 0);
}

#[test]
fn unknown_kind_breaks_the_connection() {
    let _alone = alone();
    breaks_the_connection(&[0, 0, 0, 0, 99, 0, 0, 0, 1, 0, 0, 0], &["99"]);
    let from_guest = encode(Kind::Report, 1, b"{}");
    breaks_the_connection(&from_guest, &["264"]);
}

#[test]
fn giant_length_breaks_the_connection_and_costs_no_memory() {
    let _alone = alone();
    breaks_the_connection(&[0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 1, 0, 0, 0], &["4294967295", "1048576"]);
    breaks_the_connection(&[1, 0, 16, 0, 3, 0, 0, 0, 1, 0, 0, 0], &["1048577"]);
}

#[test]
fn reserved_bytes_break_the_connection() {
    let _alone = alone();
    breaks_the_connection(&[0, 0, 0, 0, 3, 0, 1, 0, 1, 0, 0, 0], &["reserved"]);
}

#[test]
fn frame_for_a_job_that_is_not_open_breaks_the_connection() {
    let _alone = alone();
    breaks_the_connection(&encode(Kind::Run, 42, b"{}"), &["42"]);
}

#[test]
fn second_open_of_a_job_breaks_the_connection() {
    let _alone = alone();
    breaks_the_connection(&encode(Kind::Open, 1, b"{}"), &["1"]);
}

#[test]
fn job_number_0_breaks_the_connection() {
    let _alone = alone();
    breaks_the_connection(&encode(Kind::Open, 0, b"{}"), &["0"]);
}

#[test]
fn second_hello_breaks_the_connection() {
    let _alone = alone();
    let hello = br#"{"protocol": 1, "name": "x", "version": "1"}"#;
    breaks_the_connection(&encode(Kind::HostHello, 0, hello), &["hello"]);
}

#[test]
fn bad_document_fails_alone() {
    let _alone = alone();
    let mut guest = opened();
    for (document, word) in [
        (r#"{"wal": 3}"#, "wal"),
        (r#"{"wall": "soon"}"#, "soon"),
        (r#"{"pids": 0}"#, "pids"),
        (r#"{"user": "root"}"#, "root"),
        (r#"{"in": ["/etc/passwd"]}"#, "in"),
        (r#"{"out": ["*:/tmp"]}"#, "out"),
        (r#"{"report": "/tmp/x"}"#, "report"),
        ("not JSON", "document"),
        ("", "document"),
    ] {
        guest.send(Kind::Run, 1, document.as_bytes());
        fails_alone(&mut guest, ErrorCode::BadRequest, &[word]);
    }
    guest.close(1);
}

#[test]
fn sandbox_that_cannot_be_made_is_a_report_of_its_own() {
    let _alone = alone();
    let mut guest = opened();
    guest.run(1, &json!({"command": ["./captive", "exit", "0"], "bind": ["/no/such/place"]}));
    let frame = guest.receive(1);
    match frame.kind {
        Kind::Report => {
            let report: autodriver_protocol::Report = frame.json();
            assert_eq!(report.cause, Cause::SetupFailed, "{report:?}");
            assert!(report.fault.expect("a fault").message.contains("/no/such/place"));
        }
        _ => assert!(frame.error().message.contains("/no/such/place")),
    }
    guest.run(1, &json!({"command": ["./captive", "exit", "4"]}));
    assert_eq!(guest.finish(1).report.exit_code, Some(4));
}

#[test]
fn requests_out_of_order_fail_alone() {
    let _alone = alone();
    let mut guest = opened();
    guest.run(1, &json!({"command": ["./captive", "sleep", "600000"], "wall": 200}));
    guest.expect(Kind::Started, 1);
    for (kind, payload) in [(Kind::Run, &b"{}"[..]), (Kind::Put, b""), (Kind::Get, br#"{"globs": ["*"]}"#)] {
        guest.send(kind, 1, payload);
        let error = guest.receive(1).error();
        assert_eq!(error.code, ErrorCode::OutOfOrder, "{error:?}");
        assert!(error.message.contains("cancel"), "what was expected is named: {error:?}");
    }
    guest.send(Kind::Cancel, 1, b"");
    assert_eq!(guest.finish(1).report.cause, Cause::Cancelled, "the job ran on all the while");
}

#[test]
fn run_in_the_middle_of_a_put_is_out_of_order() {
    let _alone = alone();
    let mut guest = opened();
    let tar = tar_of(&[("late", b"x", 0o644)]);
    guest.send(Kind::Put, 1, &tar[..100]);
    guest.run(1, &json!({"command": ["./captive", "exit", "0"]}));
    assert_eq!(guest.receive(1).error().code, ErrorCode::OutOfOrder);
    guest.send(Kind::Put, 1, &tar[100..]);
    guest.send(Kind::Put, 1, b"");
    guest.expect(Kind::PutDone, 1);
}

#[test]
fn cancelled_put_fails_alone() {
    let _alone = alone();
    let mut guest = opened();
    let tar = tar_of(&[("late", &[1; 5000], 0o644)]);
    guest.send(Kind::Put, 1, &tar[..1000]);
    guest.send(Kind::Cancel, 1, b"");
    let error = guest.receive(1).error();
    assert_eq!(error.code, ErrorCode::Cancelled, "{error:?}");
    guest.send(Kind::Put, 1, &tar[1000..]);
    guest.send(Kind::Put, 1, b"");
    guest.run(1, &json!({"command": ["./captive", "list", "/job"]}));
    assert_eq!(guest.finish(1).output, b"ok captive\n", "no part of the file is left");
}

#[test]
fn traversing_archives_are_refused_and_nothing_is_written_outside() {
    let _alone = alone();
    let mark = format!("/tmp/e2e-traversal-{}", std::process::id());
    let mut guest = opened();
    let up = format!("../../../..{mark}");
    for name in [up.as_str(), mark.as_str(), "a/../../x"] {
        guest.put(1, &raw_entry(name, tar::EntryType::Regular, ""));
        fails_alone(&mut guest, ErrorCode::TransferFailed, &[name]);
    }
    assert!(!std::path::Path::new(&mark).exists());
}

#[test]
fn archives_with_links_outside_and_special_files_are_refused() {
    let _alone = alone();
    let mut guest = opened();
    for (kind, link) in [
        (tar::EntryType::Symlink, "/etc"),
        (tar::EntryType::Symlink, "../../etc"),
        (tar::EntryType::Link, "/etc/passwd"),
        (tar::EntryType::Char, ""),
        (tar::EntryType::Block, ""),
        (tar::EntryType::Fifo, ""),
    ] {
        guest.put(1, &raw_entry("entry", kind, link));
        fails_alone(&mut guest, ErrorCode::TransferFailed, &["entry"]);
    }
    // A link inside is fine; writing through it is not.
    let mut tar = raw_entry("inside", tar::EntryType::Symlink, "captive");
    tar.truncate(512);
    tar.extend(raw_entry("inside/x", tar::EntryType::Regular, ""));
    guest.put(1, &tar);
    fails_alone(&mut guest, ErrorCode::TransferFailed, &["inside"]);
}

#[test]
fn stream_that_is_no_archive_is_refused() {
    let _alone = alone();
    let mut guest = opened();
    guest.put(1, &vec![b'x'; 5000]);
    fails_alone(&mut guest, ErrorCode::TransferFailed, &[]);
    let cut = tar_of(&[("cut", &[1; 5000], 0o644)]);
    guest.put(1, &cut[..2000]);
    fails_alone(&mut guest, ErrorCode::TransferFailed, &[]);
}

#[test]
fn archive_larger_than_the_storage_is_refused() {
    let _alone = alone();
    let mut guest = Connection::start();
    guest.send(Kind::Open, 1, br#"{"disk": "1M", "inodes": 100}"#);
    guest.expect(Kind::Opened, 1);
    guest.put(1, &tar_of(&[("large", &vec![1; 3 << 20], 0o644)]));
    assert_eq!(guest.receive(1).error().code, ErrorCode::TransferFailed);
    let names: Vec<String> = (0..500).map(|n| format!("f{n}")).collect();
    let files: Vec<(&str, &[u8], u32)> = names.iter().map(|name| (name.as_str(), &b""[..], 0o644)).collect();
    guest.put(1, &tar_of(&files));
    assert_eq!(guest.receive(1).error().code, ErrorCode::TransferFailed);
    assert_eq!(guest.close(1).restore.state, RestoreState::Restored);
}

#[test]
fn bad_requests_of_get_and_open_are_told() {
    let _alone = alone();
    let mut guest = opened();
    guest.send(Kind::Get, 1, br#"{"globs": ["../*"]}"#);
    let error = guest.receive(1).error();
    assert!(error.message.contains("../*"), "{error:?}");
    guest.send(Kind::Get, 1, br#"{"follow": true}"#);
    fails_alone(&mut guest, ErrorCode::BadRequest, &["follow"]);
    guest.send(Kind::Open, 2, br#"{"size": 1}"#);
    let error = guest.receive(2).error();
    assert!(error.code == ErrorCode::BadRequest && error.message.contains("size"), "{error:?}");
}

#[test]
fn guest_keeps_no_descriptor_after_failures() {
    let _alone = alone();
    let mut guest = Connection::start();
    let count = |guest: &Connection| fs::read_dir(format!("/proc/{}/fd", guest.pid())).expect("fds").count();
    let before = count(&guest);
    for _ in 0..5 {
        guest.open(1);
        guest.send(Kind::Run, 1, b"{");
        fails_alone(&mut guest, ErrorCode::BadRequest, &[]);
        guest.put(1, b"xx");
        fails_alone(&mut guest, ErrorCode::TransferFailed, &[]);
        guest.close(1);
    }
    assert_eq!(count(&guest), before);
}

/// A tar stream of one entry, with a name that no packer would write.
fn raw_entry(name: &str, kind: tar::EntryType, link: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o644);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    gnu.name[..name.len()].copy_from_slice(name.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    [header.as_bytes().as_slice(), &[0; 1024]].concat()
}
