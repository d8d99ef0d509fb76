//! Any tree packed and unpacked again: the same tree, but for what the packer says that it skips; and what
//! a guest packs of it for a get is what the host accepts.
#![no_main]

use std::path::Path;
use std::sync::{LazyLock, Mutex};

use autodriver_fuzz::round_trip::{carried, grow, is_got, GLOBS};
use autodriver_fuzz::scratch::Scratch;
use autodriver_fuzz::tree::{self, Node, Tree};
use autodriver_protocol::archive::{pack_tree, unpack, Accept, Limits, Modes, Selection};
use libfuzzer_sys::arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;

static PLACES: LazyLock<Mutex<(Scratch, Scratch)>> =
    LazyLock::new(|| Mutex::new((Scratch::new(), Scratch::new())));

const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20 };

/// What is there after a trip from the one place to the other.
fn trip(from: &Scratch, to: &Scratch, selection: &Selection, accept: Accept<'_>) -> Tree {
    let mut stream = Vec::new();
    let sent =
        pack_tree(from.root(), Path::new(""), selection, LIMITS, &mut stream).expect("a tree is packed");
    let got = unpack(to.root(), &stream[..], accept).expect("what was packed is accepted");
    assert_eq!((sent.entries, sent.bytes), (got.entries, got.bytes));
    assert!(sent.skipped.len() as u64 == sent.skipped_count.min(100) && got.skipped_count == 0);
    let tree = tree::read(to.root());
    from.check_outside();
    to.check_outside();
    to.clear();
    tree
}

fuzz_target!(|data: &[u8]| {
    let places = PLACES.lock().expect("one at a time");
    let (from, to) = &*places;
    // With no more bytes the tree is as far as it is.
    let _ = grow(from.root(), &mut Unstructured::new(data));
    let arriving = carried(&tree::read(from.root()));
    let inputs = Accept { limits: LIMITS, modes: Modes::Keep, links: true, only: None };
    assert_eq!(trip(from, to, &Selection::Tree, inputs), arriving);

    let globs = Selection::globs(&GLOBS).expect("these are globs");
    let results = Accept { limits: LIMITS, modes: Modes::Fixed, links: false, only: Some(&globs) };
    let files = |tree: Tree| -> Tree {
        tree.into_iter().filter(|(_, node)| matches!(node, Node::File(..))).collect()
    };
    let wanted = arriving.into_iter().filter(|(path, _)| is_got(path)).map(|(path, node)| match node {
        Node::File(_, content) => (path, Node::File(0o644, content)),
        other => (path, other),
    });
    assert_eq!(files(trip(from, to, &globs, results)), files(wanted.collect()));
    from.clear();
});
