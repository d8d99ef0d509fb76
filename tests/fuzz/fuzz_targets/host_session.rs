//! A whole session of vmm-local on a guest that says anything: it ends, with a verdict, and writes nowhere
//! but where it was told to.
#![no_main]

use std::sync::{LazyLock, Mutex};

use autodriver_fuzz::guest::{self, Asked};
use autodriver_fuzz::scratch::Scratch;
use autodriver_fuzz::tree::{self, Node};
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Mutex<Scratch>> = LazyLock::new(|| Mutex::new(Scratch::new()));

fuzz_target!(|data: &[u8]| {
    let Some((asked, input)) = data.split_first() else { return };
    let (asked, scratch) = (Asked(*asked), SCRATCH.lock().expect("one at a time"));
    let assignment = asked.assignment(&scratch.sentinel(), &scratch.root_path());
    let said = if asked.is_raw() { input.to_vec() } else { guest::spoken(input) };
    let outcomes = guest::meet(&said, &assignment, asked.jobs());
    assert!(!outcomes.is_empty(), "a session without a verdict");
    outcomes.iter().for_each(guest::check);
    scratch.check_outside();
    let left = tree::read(scratch.root());
    for (path, node) in &left {
        match node {
            Node::File(mode, _) => assert_eq!(*mode, 0o644, "{path:?}"),
            // Those that the host makes for itself have what the process's umask leaves: all of it here.
            Node::Directory(mode) => assert!(matches!(mode, 0o755 | 0o777), "{path:?} {mode:o}"),
            _ => panic!("{path:?} among results"),
        }
        assert!(!path.to_string_lossy().contains(".vmm-local."), "{path:?} was left");
    }
    scratch.clear();
});
