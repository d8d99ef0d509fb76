//! Trees made of bytes, and what of them an archive carries.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use autodriver_protocol::archive::relative;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use nix::errno::Errno;
use nix::fcntl::{openat, OFlag};
use nix::sys::stat::{mkdirat, Mode};
use nix::unistd::{mkfifoat, symlinkat};

use crate::scratch::leads_outside;
use crate::tree::{self, Node, Tree};

/// Most nodes of a tree.
const NODES_MAX: usize = 32;
/// The name that an unpacker keeps for itself.
const PART: &str = ".autodriver.part";

/// Fills a directory as the bytes say. What cannot be made (a name that is taken) is left out.
///
/// # Errors
/// When there are no more bytes; the tree stays as far as it is.
///
/// # Panics
/// If the file system fails.
pub fn grow(root: BorrowedFd<'_>, bytes: &mut Unstructured<'_>) -> Result<()> {
    let mut places = vec![PathBuf::new()];
    for _ in 0..NODES_MAX {
        let place = bytes.choose(&places)?.clone();
        let dir = place.iter().fold(tree::directory(root, Path::new(".")), |dir, name| {
            tree::directory(dir.as_fd(), Path::new(name))
        });
        let name = name(bytes)?;
        if make(dir.as_fd(), &name, bytes)? {
            places.push(place.join(name));
        }
    }
    Ok(())
}

fn name(bytes: &mut Unstructured<'_>) -> Result<OsString> {
    let mut name = match bytes.int_in_range(0..=7)? {
        0 => PART.as_bytes().to_vec(),
        1 => vec![b'n'; bytes.int_in_range(90..=255)?],
        2 => b"results".to_vec(),
        3 => [&b"log"[..], &[bytes.int_in_range(b'a'..=b'c')?], b".txt"].concat(),
        _ => {
            let length = bytes.int_in_range(1..=12)?;
            bytes.bytes(length)?.to_vec()
        }
    };
    name.iter_mut().filter(|byte| matches!(byte, 0 | b'/')).for_each(|byte| *byte = b'_');
    if name == b"." || name == b".." {
        name.push(b'_');
    }
    Ok(OsString::from_vec(name))
}

/// One node; whether it is a directory.
fn make(dir: BorrowedFd<'_>, name: &OsStr, bytes: &mut Unstructured<'_>) -> Result<bool> {
    let mode = Mode::from_bits_truncate(bytes.int_in_range(0..=0o7777)?);
    // Their owner, who need not be root here, can read them.
    let (readable, passable) = (mode | Mode::S_IRUSR, mode | Mode::S_IRWXU);
    let made = match bytes.int_in_range(0..=9)? {
        0..=2 => mkdirat(dir, name, passable).map(|()| true),
        3 => mkfifoat(dir, name, readable).map(|()| false),
        4 | 5 => {
            let length = bytes.int_in_range(1..=120)?;
            let target: Vec<u8> = bytes.bytes(length)?.iter().copied().filter(|byte| *byte != 0).collect();
            symlinkat(OsStr::from_bytes(&target), dir, name).map(|()| false)
        }
        _ => {
            let length = bytes.int_in_range(0..=1100)?;
            let content = bytes.bytes(length.min(bytes.len()))?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            openat(dir, name, flags, readable).map(|file| {
                File::from(file).write_all(content).expect("a file is written");
                false
            })
        }
    };
    match made {
        Ok(is_directory) => Ok(is_directory),
        Err(Errno::EEXIST | Errno::ENOENT | Errno::ENAMETOOLONG) => Ok(false),
        Err(errno) => panic!("cannot make {name:?}: {errno}"),
    }
}

/// What arrives of a tree: without what an unpacker would refuse, and all below it.
pub fn carried(tree: &Tree) -> Tree {
    let refused = |path: &Path| {
        let kept_name = path.file_name() == Some(OsStr::new(PART));
        kept_name || relative(path.as_os_str().as_bytes()).is_err()
    };
    let arrives = |(path, node): &(&PathBuf, &Node)| {
        let leads_out = matches!(node, Node::Link(target) if leads_outside(path, target));
        let here = !path.ancestors().any(refused);
        here && **node != Node::Special && !leads_out
    };
    let arriving = tree.iter().filter(arrives).map(|(path, node)| (path.clone(), without_special_bits(node)));
    arriving.collect()
}

fn without_special_bits(node: &Node) -> Node {
    match node {
        Node::Directory(mode) => Node::Directory(mode & 0o777),
        Node::File(mode, content) => Node::File(mode & 0o777, content.clone()),
        other => other.clone(),
    }
}

/// The patterns of a `get` in these targets.
pub const GLOBS: [&str; 3] = ["results/*", "*.txt", "log"];

/// Whether a path is one of those, or below one, said without a matcher of patterns.
pub fn is_got(path: &Path) -> bool {
    let parts: Vec<&[u8]> = path.iter().map(OsStr::as_bytes).collect();
    match parts[..] {
        [b"results", _, ..] | [b"log", ..] => true,
        [first, ..] => first.ends_with(b".txt"),
        [] => false,
    }
}
