//! Archives, hostile ones too, through both halves.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use tar::EntryType;

use super::*;
use crate::message::{Skipped, Transferred};

const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20 };
const INPUT: Accept = Accept { limits: LIMITS, modes: Modes::Keep, links: true, only: None };

fn archive_of(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

fn raw_entry(builder: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn unpacked(bytes: &[u8], accept: Accept) -> (tempfile::TempDir, Result<Transferred, ArchiveError>) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let fd = open_directory(&root).unwrap();
    let result = unpack(fd.as_fd(), bytes, accept);
    (dir, result)
}

#[test]
fn a_tree_survives_the_trip() {
    let source = tempfile::tempdir().unwrap();
    let long = "n".repeat(200);
    fs::create_dir_all(source.path().join("a/b")).unwrap();
    fs::write(source.path().join("a/b").join(&long), b"x").unwrap();
    fs::write(source.path().join("top"), vec![7; 5000]).unwrap();
    std::os::unix::fs::symlink("a/b", source.path().join("link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", source.path().join("out")).unwrap();
    let fd = open_directory(source.path()).unwrap();
    let mut bytes = Vec::new();
    let sent = pack_tree(fd.as_fd(), Path::new(""), &Selection::Tree, LIMITS, &mut bytes).unwrap();
    assert_eq!(
        sent.skipped,
        [Skipped { name: "out".into(), why: "symbolic link that leaves the tree".into() }]
    );
    let (dir, result) = unpacked(&bytes, INPUT);
    assert_eq!(result.unwrap().bytes, 5001);
    let root = dir.path().join("root");
    assert_eq!(fs::read(root.join("link").join(&long)).unwrap(), b"x");
    assert_eq!(fs::read(root.join("top")).unwrap(), vec![7; 5000]);
}

#[test]
fn names_left_out_are_left_out_at_the_top_only() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("sub")).unwrap();
    for name in ["job.json", "Makefile", "sub/job.json"] {
        fs::write(source.path().join(name), b"").unwrap();
    }
    let fd = open_directory(source.path()).unwrap();
    let selection = Selection::Except(vec!["job.json".into(), "absent".into()]);
    let mut bytes = Vec::new();
    pack_tree(fd.as_fd(), Path::new(""), &selection, LIMITS, &mut bytes).unwrap();
    let (dir, result) = unpacked(&bytes, INPUT);
    assert_eq!(result.unwrap().entries, 3);
    assert!(dir.path().join("root/sub/job.json").exists() && !dir.path().join("root/job.json").exists());
}

#[test]
fn globs_stay_within_a_name_and_take_whole_directories() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir_all(source.path().join("out/deep")).unwrap();
    for name in ["a.log", "b.txt", "out/c.log", "out/deep/d.log"] {
        fs::write(source.path().join(name), b"1").unwrap();
    }
    nix::unistd::mkfifo(&source.path().join("f.log"), Mode::from_bits_truncate(0o600)).unwrap();
    let count = |globs: &[&str]| {
        let fd = open_directory(source.path()).unwrap();
        let selection = Selection::globs(globs).unwrap();
        let mut bytes = Vec::new();
        let done = pack_tree(fd.as_fd(), Path::new(""), &selection, LIMITS, &mut bytes).unwrap();
        (done.entries, done.skipped_count)
    };
    assert_eq!(count(&["*.log"]), (1, 1), "the FIFO is skipped, not read");
    assert_eq!(count(&["**/*.log"]), (3, 1));
    assert_eq!(count(&["out"]), (2, 0));
    assert_eq!(count(&["nothing"]), (0, 0));
    for bad in ["/etc/*", "../x", "a/../../b", "", "[", "***"] {
        assert!(Selection::globs(&[bad]).is_err(), "{bad}");
    }
}

#[test]
fn nothing_is_written_outside() {
    let attacks: [(EntryType, &[u8], &[u8]); 7] = [
        (EntryType::Regular, b"../evil", b""),
        (EntryType::Regular, b"/tmp/evil", b""),
        (EntryType::Regular, b"a/../../evil", b""),
        (EntryType::Symlink, b"link", b"/etc"),
        (EntryType::Symlink, b"a/link", b"../../etc"),
        (EntryType::Link, b"hard", b"/etc/passwd"),
        (EntryType::Block, b"disk", b""),
    ];
    for (kind, name, link) in attacks {
        let (dir, result) = unpacked(&archive_of(|tar| raw_entry(tar, kind, name, link, b"")), INPUT);
        assert!(matches!(result, Err(ArchiveError::Refused { .. })), "{kind:?} {name:?}: {result:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path().join("root")).unwrap().count(), 0);
    }
}

#[test]
fn a_link_is_never_written_through() {
    let bytes = archive_of(|tar| {
        raw_entry(tar, EntryType::Symlink, b"a", b"b", b"");
        raw_entry(tar, EntryType::Directory, b"b", b"", b"");
        raw_entry(tar, EntryType::Regular, b"a/file", b"", b"x");
    });
    let (dir, result) = unpacked(&bytes, INPUT);
    assert!(matches!(result, Err(ArchiveError::Failed { errno: Errno::ELOOP, .. })), "{result:?}");
    assert!(!dir.path().join("root/b/file").exists());
    // A file of the same name replaces the link itself.
    let bytes = archive_of(|tar| {
        raw_entry(tar, EntryType::Symlink, b"a", b"b", b"");
        raw_entry(tar, EntryType::Regular, b"a", b"", b"x");
    });
    let (dir, result) = unpacked(&bytes, INPUT);
    assert!(result.is_ok());
    assert!(fs::symlink_metadata(dir.path().join("root/a")).unwrap().is_file());
}

#[test]
fn limits_and_lies_about_sizes_end_the_transfer() {
    let many =
        archive_of(|tar| (0..10).for_each(|n| raw_entry(tar, EntryType::Regular, &[b'a' + n], b"", b"")));
    let accept = Accept { limits: Limits { entries: 9, ..LIMITS }, ..INPUT };
    assert!(matches!(unpacked(&many, accept).1, Err(ArchiveError::TooMuch { what: "entries", .. })));
    let big = archive_of(|tar| raw_entry(tar, EntryType::Regular, b"a", b"", &[0; 2000]));
    let accept = Accept { limits: Limits { bytes: 1999, ..LIMITS }, ..INPUT };
    assert!(matches!(unpacked(&big, accept).1, Err(ArchiveError::TooMuch { what: "bytes", .. })));
    let (dir, result) = unpacked(&big[..1024], INPUT);
    assert!(matches!(result, Err(ArchiveError::Stream(_))), "{result:?}");
    assert_eq!(fs::read_dir(dir.path().join("root")).unwrap().count(), 0, "no partial file");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 33);
    header.set_cksum();
    assert!(matches!(unpacked(header.as_bytes(), INPUT).1, Err(ArchiveError::Refused { .. })));
}

#[test]
fn what_the_other_side_would_refuse_is_not_packed() {
    let source = tempfile::tempdir().unwrap();
    let deepest = vec!["d"; DEPTH_MAX].join("/");
    let longest = vec!["n".repeat(255); 16].join("/");
    fs::create_dir_all(source.path().join(&deepest)).unwrap();
    fs::write(source.path().join(&deepest).join("f"), b"x").unwrap();
    fs::write(source.path().join("good"), b"x").unwrap();
    // One directory at a time: no path that long can be given.
    let mut fd = open_directory(source.path()).unwrap();
    for part in longest.split('/').chain(["below"]) {
        nix::sys::stat::mkdirat(&fd, part, Mode::S_IRWXU).unwrap();
        fd = openat(&fd, part, DIRECTORY, Mode::empty()).unwrap();
    }
    let all = Selection::globs(&["**"]).unwrap();
    for selection in [Selection::Tree, all] {
        let fd = open_directory(source.path()).unwrap();
        let mut bytes = Vec::new();
        let sent = pack_tree(fd.as_fd(), Path::new(""), &selection, LIMITS, &mut bytes).unwrap();
        let why: Vec<&str> = sent.skipped.iter().map(|file| file.why.as_str()).collect();
        assert_eq!(why, ["more than 128 directories deep", "name longer than 4096 bytes"]);
        let (dir, result) = unpacked(&bytes, INPUT);
        assert_eq!(result.unwrap().entries, sent.entries);
        assert_eq!(fs::read(dir.path().join("root/good")).unwrap(), b"x");
    }
}

#[test]
fn directories_that_only_names_tell_of_count() {
    let deep = archive_of(|tar| {
        for name in [&b"a/b/c/f"[..], b"a/b/g", b"d/e/f"] {
            raw_entry(tar, EntryType::Regular, name, b"", b"");
        }
    });
    let tree = archive_of(|tar| {
        raw_entry(tar, EntryType::Directory, b"a/", b"", b"");
        raw_entry(tar, EntryType::Regular, b"a/f", b"", b"");
    });
    for (bytes, count) in [(deep, 8), (tree, 2)] {
        let within = |entries| unpacked(&bytes, Accept { limits: Limits { entries, ..LIMITS }, ..INPUT }).1;
        assert!(matches!(within(count - 1), Err(ArchiveError::TooMuch { what: "entries", .. })));
        within(count).unwrap();
    }
}

#[test]
fn nothing_is_taken_that_was_not_asked_for() {
    let selection = Selection::globs(&["score.json", "logs", "*.txt"]).unwrap();
    let accept = Accept { only: Some(&selection), ..INPUT };
    let taken = |name: &[u8]| {
        let bytes = archive_of(|tar| raw_entry(tar, EntryType::Regular, name, b"", b"x"));
        unpacked(&bytes, accept).1
    };
    for name in [&b"score.json"[..], b"./score.json", b"logs/a", b"logs/a/b", b"x.txt", b"x.txt/y"] {
        taken(name).unwrap();
    }
    for name in [&b"score.jso"[..], b"score.json.sh", b".bashrc", b"d/score.json", b"log", b"d/x.txt"] {
        let error = taken(name).unwrap_err().to_string();
        assert!(error.contains("was not asked for"), "{error}");
    }
}

#[test]
fn a_file_or_a_whole_tree_can_be_renamed() {
    let bytes = archive_of(|tar| {
        raw_entry(tar, EntryType::Regular, b"out/a", b"", b"1");
        raw_entry(tar, EntryType::Regular, b"out/b/c", b"", b"2");
        raw_entry(tar, EntryType::Regular, b"outer", b"", b"3");
    });
    let dir = tempfile::tempdir().unwrap();
    let fd = open_directory(dir.path()).unwrap();
    let rename = (Path::new("out"), Path::new("new"));
    unpack_as(fd.as_fd(), &bytes[..], INPUT, Some(rename)).unwrap();
    assert_eq!(fs::read(dir.path().join("new/b/c")).unwrap(), b"2");
    assert_eq!(fs::read(dir.path().join("outer")).unwrap(), b"3");
    unpack_as(fd.as_fd(), &bytes[..], INPUT, Some((Path::new("outer"), Path::new("x")))).unwrap();
    assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"3");
}

#[test]
fn results_get_fixed_modes_and_no_links() {
    let accept = Accept { limits: LIMITS, modes: Modes::Fixed, links: false, only: None };
    let bytes = archive_of(|tar| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o4777);
        header.set_size(0);
        tar.append_data(&mut header, "suid", io::empty()).unwrap();
    });
    let (dir, result) = unpacked(&bytes, accept);
    result.unwrap();
    let stat = nix::sys::stat::stat(&dir.path().join("root/suid")).unwrap();
    assert_eq!(stat.st_mode & 0o7777, 0o644);
    let link = archive_of(|tar| raw_entry(tar, EntryType::Symlink, b"a", b"b", b""));
    assert!(matches!(unpacked(&link, accept).1, Err(ArchiveError::Refused { .. })));
}

/// Does `meddle` again and again while `work` is done.
fn meanwhile<T>(meddle: impl Fn() + Sync, work: impl FnOnce() -> T) -> T {
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                meddle();
            }
        });
        let result = work();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        result
    })
}

#[test]
fn what_is_swapped_for_a_link_while_it_is_packed_is_the_file_or_nothing() {
    use rustix::fs::{renameat_with, RenameFlags, CWD};
    let (source, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(source.path().join("folder")).unwrap();
    for (base, content) in [(source.path(), "innocent"), (outside.path(), "secret")] {
        fs::write(base.join("file"), content).unwrap();
    }
    fs::write(source.path().join("folder/file"), "innocent").unwrap();
    std::os::unix::fs::symlink(outside.path().join("file"), source.path().join("other-file")).unwrap();
    std::os::unix::fs::symlink(outside.path(), source.path().join("other-folder")).unwrap();
    let swap = |one: &str, other: &str| {
        let (one, other) = (source.path().join(one), source.path().join(other));
        renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
    };
    let meddle = || {
        swap("file", "other-file");
        swap("folder", "other-folder");
    };
    let fd = open_directory(source.path()).unwrap();
    let (mut packed, mut skipped) = (0, 0);
    meanwhile(meddle, || {
        for _ in 0..10_000 {
            let mut bytes = Vec::new();
            let selection = Selection::globs(&["file", "folder"]).unwrap();
            let done = pack_tree(fd.as_fd(), Path::new(""), &selection, LIMITS, &mut bytes).unwrap();
            packed += done.entries;
            skipped += done.skipped_count;
            assert!(!bytes.windows(6).any(|window| window == b"secret"));
        }
    });
    assert!(packed > 0 && skipped > 0, "{packed} packed, {skipped} skipped: nothing was swapped");
}

#[test]
fn a_file_that_changes_its_length_while_it_is_packed_keeps_the_one_it_had() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("file");
    fs::write(&path, "innocent").unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let fd = open_directory(source.path()).unwrap();
    let limits = Limits { bytes: 1 << 30, ..LIMITS };
    let meddle = || {
        file.set_len(1 << 20).unwrap();
        file.set_len(8).unwrap();
    };
    meanwhile(meddle, || {
        for _ in 0..500 {
            let mut bytes = Vec::new();
            let done = pack_tree(fd.as_fd(), Path::new(""), &Selection::Tree, limits, &mut bytes).unwrap();
            assert!(done.bytes == 8 || done.bytes == 1 << 20, "{}", done.bytes);
            let (dir, result) = unpacked(&bytes, Accept { limits, ..INPUT });
            assert_eq!(result.unwrap().bytes, done.bytes);
            assert_eq!(fs::metadata(dir.path().join("root/file")).unwrap().len(), done.bytes);
        }
    });
}

#[test]
fn what_would_be_refused_is_skipped_and_the_rest_is_packed() {
    let source = tempfile::tempdir().unwrap();
    for name in ["a", "z", ".autodriver.part"] {
        fs::write(source.path().join(name), b"").unwrap();
    }
    let top = open_directory(source.path()).unwrap();
    let mut dir = openat(&top, ".", DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..20 {
        let name = "d".repeat(250);
        nix::sys::stat::mkdirat(&dir, name.as_str(), Mode::S_IRWXU).unwrap();
        dir = openat(&dir, name.as_str(), DIRECTORY, Mode::empty()).unwrap();
    }
    let mut bytes = Vec::new();
    let sent = pack_tree(top.as_fd(), Path::new(""), &Selection::Tree, LIMITS, &mut bytes).unwrap();
    let why: Vec<_> = sent.skipped.iter().map(|skipped| skipped.why.as_str()).collect();
    assert_eq!(why, ["the name is kept for files under way", "name longer than 4096 bytes"]);
    let (dir, result) = unpacked(&bytes, INPUT);
    assert_eq!(result.unwrap().entries, 16 + 2);
    assert!(dir.path().join("root/a").exists() && dir.path().join("root/z").exists());
}

#[test]
fn long_names_and_links_that_are_not_utf_8_make_the_trip() {
    let source = tempfile::tempdir().unwrap();
    for length in [99, 100, 101, 255] {
        let name = OsString::from_vec([b"\xff".repeat(length - 1), vec![b'n']].concat());
        fs::write(source.path().join(&name), b"x").unwrap();
        std::os::unix::fs::symlink(&name, source.path().join(format!("link-{length}"))).unwrap();
    }
    let top = open_directory(source.path()).unwrap();
    let mut bytes = Vec::new();
    let sent = pack_tree(top.as_fd(), Path::new(""), &Selection::Tree, LIMITS, &mut bytes).unwrap();
    assert_eq!((sent.entries, sent.skipped_count), (8, 0), "{sent:?}");
    let (dir, result) = unpacked(&bytes, INPUT);
    assert_eq!(result.unwrap(), sent);
    for length in [99, 100, 101, 255] {
        let link = dir.path().join(format!("root/link-{length}"));
        assert_eq!(fs::read_link(&link).unwrap().as_os_str().len(), length);
        assert_eq!(fs::read(&link).unwrap(), b"x", "it leads to the file of the same name");
    }
}

#[test]
fn a_directory_where_files_grow_stands_in_nobodys_way() {
    let bytes = archive_of(|tar| {
        raw_entry(tar, EntryType::Directory, b".autodriver.part", b"", b"");
        raw_entry(tar, EntryType::Regular, b"file", b"", b"x");
    });
    let (dir, result) = unpacked(&bytes, INPUT);
    result.unwrap();
    assert_eq!(fs::read(dir.path().join("root/file")).unwrap(), b"x");
    assert_eq!(fs::read_dir(dir.path().join("root")).unwrap().count(), 2);
}
