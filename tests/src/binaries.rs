//! Where the programs under test are.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Fails unless the tests run as root: a sandbox of full strength needs it. `ENVIRONMENT`, which
/// scripts/test-environments sets, names the one that is under test itself, with root or without.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root() || env::var_os("ENVIRONMENT").is_some(),
        "the end-to-end tests make sandboxes; run them as root"
    );
}

/// The autodriver under test.
pub fn autodriver() -> PathBuf {
    require_root();
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist/autodriver");
    let path = env::var_os("AUTODRIVER").map_or(built, PathBuf::from);
    fs::canonicalize(&path).unwrap_or_else(|error| {
        panic!("no autodriver at {}: {error}; run scripts/build, or set AUTODRIVER", path.display())
    })
}

/// The host side under test: beside autodriver.
pub fn vmm_local() -> PathBuf {
    beside(&autodriver(), "vmm-local")
}

/// The autodriver that is none: beside the captive.
pub fn hostile_guest() -> PathBuf {
    beside(&captive(), "hostile-guest")
}

/// The caller of the Tango form: beside the captive.
pub fn tango_caller() -> PathBuf {
    beside(&captive(), "tango-caller")
}

fn beside(path: &Path, name: &str) -> PathBuf {
    let wanted = path.with_file_name(name);
    assert!(wanted.is_file(), "no {name} beside {}; it is built with it", path.display());
    wanted
}

/// The program that tries things inside the box.
pub fn captive() -> PathBuf {
    let path = env::var_os("CAPTIVE").map_or_else(built_captive, PathBuf::from);
    let image = fs::read(&path).unwrap_or_else(|error| {
        panic!("no captive at {}: {error}; build the package e2e, or set CAPTIVE", path.display())
    });
    assert!(
        is_static(&image),
        "{} needs a loader, and a missing loader would look like a denial; \
         build it with RUSTFLAGS='-C target-feature=+crt-static' and --target",
        path.display()
    );
    path
}

/// The captive that cargo built beside the test that is running.
fn built_captive() -> PathBuf {
    let test = env::current_exe().expect("the path of the running test");
    let folder = test.parent().and_then(Path::parent).expect("a test lies in target/PROFILE/deps");
    folder.join("captive")
}

/// Whether an x86-64 or other 64-bit ELF file names no interpreter.
fn is_static(image: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| {
        let bytes = image.get(at..at + len).expect("a whole ELF header");
        bytes.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte))
    };
    assert!(image.starts_with(b"\x7fELF\x02\x01"), "the captive is no 64-bit little-endian ELF file");
    let (offset, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    (0..count).all(|index| number(offset + index * size, 4) != PT_INTERP as usize)
}
