//! The unpacker on any bytes, as the guest sets it for inputs and as the host does for results: nothing
//! outside the directory changes, nothing leads out of it, and no more is there than was allowed.
#![no_main]

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use autodriver_fuzz::round_trip::{is_got, GLOBS};
use autodriver_fuzz::scratch::{check_inside, Scratch};
use autodriver_fuzz::tar_form;
use autodriver_fuzz::tree::{self, Node, Tree};
use autodriver_protocol::archive::{unpack_as, Accept, ArchiveError, Limits, Modes, Selection};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

static SCRATCH: LazyLock<Mutex<Scratch>> = LazyLock::new(|| Mutex::new(Scratch::new()));

/// How the archive is taken, by the bits of the input's last byte.
#[derive(Clone, Copy)]
struct Taken(u8);

impl Taken {
    fn by_the_host(self) -> bool {
        self.0 & 1 != 0
    }

    fn planted(self) -> bool {
        self.0 & 2 != 0
    }

    fn limits(self) -> Limits {
        match (self.0 >> 3) & 3 {
            0 => Limits { entries: 1_000_000, bytes: u64::MAX },
            1 => Limits { entries: 3, bytes: 1000 },
            2 => Limits { entries: 20, bytes: 3 },
            _ => Limits { entries: 0, bytes: 0 },
        }
    }

    fn rename(self) -> Option<(&'static Path, &'static Path)> {
        (self.0 & 32 != 0).then_some((Path::new("result"), Path::new("other")))
    }
}

fn check_amount(new: &[(&std::path::PathBuf, &Node)], limits: Limits, finished: bool) {
    let size =
        |(_, node): &(_, &Node)| if let Node::File(_, content) = node { content.len() as u64 } else { 0 };
    assert!(new.iter().map(size).sum::<u64>() <= limits.bytes, "more bytes than were allowed");
    // Directories above an entry are made before they are counted: of the one that is too much.
    let most = if finished { limits.entries } else { limits.entries + 129 };
    assert!(new.len() as u64 <= most, "{} entries where {} were allowed", new.len(), limits.entries);
}

fn check_results(new: &[(&std::path::PathBuf, &Node)]) {
    for (path, node) in new {
        match node {
            Node::File(mode, _) => assert!(*mode == 0o644 && is_got(path), "{path:?} {mode:o}"),
            Node::Directory(mode) => assert_eq!(*mode, 0o755, "{path:?}"),
            _ => panic!("{path:?} among results"),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((taken, stream)) = data.split_last() else { return };
    let (taken, scratch) = (Taken(*taken), SCRATCH.lock().expect("one at a time"));
    let planted = if taken.planted() { scratch.plant(taken.0 & 4 != 0) } else { Tree::new() };
    let (host, limits) = (taken.by_the_host(), taken.limits());
    let globs = Selection::globs(&GLOBS).expect("these are globs");
    let accept = match host {
        true => Accept { limits, modes: Modes::Fixed, links: false, only: Some(&globs) },
        false => Accept { limits, modes: Modes::Keep, links: true, only: None },
    };
    let done = unpack_as(scratch.root(), stream, accept, taken.rename());
    scratch.check_outside();
    let tree = tree::read(scratch.root());
    check_inside(&tree, &planted, !host);
    let new: Vec<_> = tree.iter().filter(|(path, node)| planted.get(*path) != Some(node)).collect();
    check_amount(&new, limits, done.is_ok());
    if host {
        check_results(&new);
    }
    let mentions_parts = stream.windows(16).any(|window| window == b".autodriver.part");
    let part =
        |path: &Path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".autodriver.part"));
    assert!(mentions_parts || !new.iter().any(|(path, _)| part(path)), "a file that is not complete stays");
    match &done {
        Ok(done) => {
            let files = new.iter().filter(|(_, node)| !matches!(node, Node::Directory(_))).count() as u64;
            assert!(files <= done.entries && done.entries <= limits.entries && done.bytes <= limits.bytes);
        }
        Err(ArchiveError::Pattern(_)) => panic!("no pattern was compiled"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    scratch.clear();
});

// Most of what is tried has checksums that are right: a reader looks no further where they are not.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let size = fuzzer_mutate(data, size, max_size);
    if seed % 8 != 0 && size > 0 {
        tar_form::repair(&mut data[..size - 1]);
    }
    size
});
