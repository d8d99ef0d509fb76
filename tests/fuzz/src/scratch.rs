//! A directory to unpack into, and beside it what must stay as it is.

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use autodriver_protocol::archive::open_directory;
use nix::sys::stat::{umask, Mode};

use crate::tree::{self, Node, Tree};

/// Inode, mode, links, size, and when any of it changed: what a write cannot leave alone.
type Trace = (PathBuf, u64, u32, u64, u64, i64, i64);

/// The directory and its surroundings, below `$TMPDIR`, which scripts/fuzz puts on a tmpfs.
#[derive(Debug)]
pub struct Scratch {
    top: tempfile::TempDir,
    root: OwnedFd,
    before: Vec<Trace>,
}

impl Scratch {
    /// An empty directory `root` with sentinels beside it. From now on this process has no umask: the modes
    /// that are found are those that were asked for.
    ///
    /// # Panics
    /// If it cannot be made.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Scratch {
        umask(Mode::empty());
        let top = tempfile::tempdir().expect("a throwaway directory");
        let path = |name: &str| top.path().join(name);
        fs::create_dir(path("root")).expect("a directory");
        fs::create_dir_all(path("outside/directory")).expect("a directory");
        fs::write(path("outside/file"), "a sentinel\n").expect("a file");
        fs::set_permissions(path("outside/file"), Permissions::from_mode(0o600)).expect("a mode");
        let root = open_directory(&path("root")).expect("it was just made");
        let before = traces(top.path());
        Scratch { top, root, before }
    }

    /// What archives are unpacked into.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where that is.
    pub fn root_path(&self) -> PathBuf {
        self.top.path().join("root")
    }

    /// A file outside.
    pub fn sentinel(&self) -> PathBuf {
        self.top.path().join("outside/file")
    }

    /// What a job can have left where its inputs, or its next inputs, go: links that lead outside, by any
    /// name an archive may use, a FIFO, and a directory or a link where files grow.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn plant(&self, part_is_a_link: bool) -> Tree {
        let root = self.root_path();
        let outside = self.top.path().join("outside");
        let link = |target: &Path, name: &str| symlink(target, root.join(name)).expect("a link");
        link(Path::new("../outside"), "out");
        link(&outside, "absolute");
        link(Path::new("../outside/file"), "file");
        nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o600)).expect("a FIFO");
        fs::create_dir(root.join("d")).expect("a directory");
        link(Path::new("../../outside"), "d/out");
        match part_is_a_link {
            true => link(Path::new("../outside/file"), ".autodriver.part"),
            false => fs::create_dir(root.join(".autodriver.part")).expect("a directory"),
        }
        tree::read(self.root())
    }

    /// Empties the directory.
    pub fn clear(&self) {
        tree::clear(self.root());
    }

    /// Nothing outside the directory was made, changed or removed.
    ///
    /// # Panics
    /// If something was: a finding.
    pub fn check_outside(&self) {
        assert_eq!(traces(self.top.path()), self.before, "something changed outside the directory");
    }
}

/// Everything below `top` but the content of `root`, whose times change as it should.
fn traces(top: &Path) -> Vec<Trace> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(path) = todo.pop() {
        let at = fs::symlink_metadata(&path).expect("what is outside is there");
        let changed = if path == top.join("root") { (0, 0) } else { (at.ctime(), at.ctime_nsec()) };
        let size = if at.is_file() { at.size() } else { 0 };
        if at.is_dir() && path != top.join("root") {
            let names = fs::read_dir(&path).expect("what is outside can be read");
            todo.extend(names.map(|entry| entry.expect("an entry").path()));
        }
        let links = if at.is_file() { at.nlink() } else { 0 };
        found.push((path, at.ino(), at.mode(), links, size, changed.0, changed.1));
    }
    found.sort();
    found
}

/// Whether a link's text leads outside, told without looking: climbs counted against what is above.
pub fn leads_outside(path: &Path, target: &Path) -> bool {
    let mut depth = path.components().count() as i64 - 1;
    let text = target.to_string_lossy();
    let climbs_out = text.split('/').any(|part| {
        match part {
            ".." => depth -= 1,
            "" | "." => {}
            _ => depth += 1,
        }
        depth < 0
    });
    text.starts_with('/') || climbs_out
}

/// What no archive may have made: checked on all that was not there before.
///
/// # Panics
/// If something is there: a finding.
pub fn check_inside(tree: &Tree, planted: &Tree, links: bool) {
    for (path, node) in tree.iter().filter(|(path, node)| planted.get(*path) != Some(node)) {
        match node {
            Node::Directory(mode) | Node::File(mode, _) => {
                assert_eq!(mode & 0o7000, 0, "special bits on {path:?}");
            }
            Node::Link(target) => {
                assert!(links, "a link was made: {path:?}");
                assert!(!leads_outside(path, target), "{path:?} leads to {target:?}");
            }
            Node::Special => panic!("{path:?} is neither file nor directory nor link"),
        }
    }
}
