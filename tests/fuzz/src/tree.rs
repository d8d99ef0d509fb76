//! Trees as values. All by descriptor, relative to a directory: names may be longer than a path can be,
//! and nothing that lies there is followed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{openat, readlinkat, AtFlags, OFlag};
use nix::sys::stat::{fstatat, FileStat, Mode, SFlag};
use nix::unistd::{unlinkat, UnlinkatFlags};

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// With its permission bits.
    Directory(u32),
    /// With its permission bits and content.
    File(u32, Vec<u8>),
    /// With its target.
    Link(PathBuf),
    /// A FIFO, a device, a socket.
    Special,
}

/// A tree: every path below its top.
pub type Tree = BTreeMap<PathBuf, Node>;

/// The kind in the mode.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Opens a directory below another, no link.
///
/// # Panics
/// If it is not there.
pub fn directory(at: BorrowedFd<'_>, name: &Path) -> OwnedFd {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(at, name, flags, Mode::empty()).expect("a directory opens")
}

/// The names in a directory, and what they stand for.
fn entries(dir: BorrowedFd<'_>) -> Vec<(OsString, FileStat)> {
    let mut list = Dir::from_fd(directory(dir, Path::new("."))).expect("a directory is read");
    let names = list.iter().map(|entry| entry.expect("an entry is read").file_name().to_bytes().to_vec());
    let names: Vec<Vec<u8>> = names.filter(|name| name != b"." && name != b"..").collect();
    let stat = |name: Vec<u8>| {
        let name = OsString::from_vec(name);
        let stat = fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).expect("an entry is there");
        (name, stat)
    };
    names.into_iter().map(stat).collect()
}

/// Everything below a directory.
///
/// # Panics
/// If it changes meanwhile.
pub fn read(dir: BorrowedFd<'_>) -> Tree {
    let mut tree = Tree::new();
    read_into(dir, Path::new(""), &mut tree);
    tree
}

fn read_into(dir: BorrowedFd<'_>, path: &Path, tree: &mut Tree) {
    for (name, stat) in entries(dir) {
        let (path, mode) = (path.join(&name), stat.st_mode & 0o7777);
        let node = match kind(&stat) {
            SFlag::S_IFDIR => {
                read_into(directory(dir, Path::new(&name)).as_fd(), &path, tree);
                Node::Directory(mode)
            }
            SFlag::S_IFREG => {
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = openat(dir, name.as_os_str(), flags, Mode::empty()).expect("a file opens");
                let mut content = Vec::new();
                std::fs::File::from(file).read_to_end(&mut content).expect("a file is read");
                Node::File(mode, content)
            }
            SFlag::S_IFLNK => Node::Link(readlinkat(dir, name.as_os_str()).expect("a link is read").into()),
            _ => Node::Special,
        };
        tree.insert(path, node);
    }
}

/// Removes everything below a directory.
///
/// # Panics
/// If something stays.
pub fn clear(dir: BorrowedFd<'_>) {
    for (name, stat) in entries(dir) {
        let is_directory = kind(&stat) == SFlag::S_IFDIR;
        if is_directory {
            clear(directory(dir, Path::new(&name)).as_fd());
        }
        let flag = if is_directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        unlinkat(dir, name.as_os_str(), flag).expect("an entry is removed");
    }
}
