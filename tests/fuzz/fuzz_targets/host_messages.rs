//! What `serve` decodes from a host: hello, open, run and get. Patterns of a get match in bounded time,
//! whatever names a job has left, and never what lies outside.
#![no_main]

use std::fmt::Debug;
use std::path::Path;

use autodriver_protocol::archive::Selection;
use autodriver_protocol::{Get, Hello, Open, Options};
use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use serde::Serialize;

fn reads_back<T: DeserializeOwned + Serialize + PartialEq + Debug>(payload: &[u8]) -> Option<T> {
    let message: T = serde_json::from_slice(payload).ok()?;
    let written = serde_json::to_vec(&message).expect("a message is written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written is read"), message);
    Some(message)
}

fn select(globs: &[String]) {
    let Ok(selection) = Selection::globs(globs) else { return };
    let names = ["", "a", "results/log.txt", "a/b/c/d/e/f/g", &"a".repeat(255), &"a/".repeat(100)];
    for name in names {
        assert!(!selection.covers(Path::new("")), "nothing names the directory itself");
        let covered = selection.covers(Path::new(name));
        assert!(!covered || selection.covers(&Path::new(name).join("below")), "what is below goes along");
    }
    assert!(globs.iter().all(|glob| !glob.starts_with('/') && !glob.split('/').any(|part| part == "..")));
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, payload)) = data.split_first() else { return };
    match kind % 4 {
        0 => drop(reads_back::<Hello>(payload)),
        1 => drop(reads_back::<Open>(payload)),
        2 => {
            if let Some(Get { globs }) = reads_back(payload) {
                select(&globs);
            }
        }
        _ => {
            if let Ok(options) = Options::from_json(payload) {
                let document = serde_json::to_vec(&options).expect("a document is written");
                assert_eq!(Options::from_json(&document).expect("what was written is read"), options);
            }
        }
    }
});
