//! Unpacking: nothing outside, nothing through a link, nothing in place before it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{openat, renameat, OFlag};
use nix::sys::stat::{mkdirat, Mode};
use nix::unistd::{symlinkat, unlinkat, UnlinkatFlags};
use tar::EntryType;

use super::{
    errno_of, failed, open_beneath, stays_inside, ArchiveError, Limits, Selection, BUFFER, DEPTH_MAX,
    DIRECTORY, NAME_MAX,
};
use crate::message::Transferred;

/// Where a file grows until it is complete.
pub(super) const PART: &str = ".autodriver.part";
/// Other names for it are tried, where something stands under the first that cannot be removed.
const PARTS: u32 = 100;

/// Which permission bits unpacked files get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// The archive's (without setuid, setgid and sticky): inputs of a job.
    Keep,
    /// 0644 and 0755 for directories: results of a job.
    Fixed,
}

/// What an unpacker accepts.
#[derive(Clone, Copy, Debug)]
pub struct Accept<'a> {
    /// How much. Directories that only names of files tell of count as entries.
    pub limits: Limits,
    /// Which permission bits.
    pub modes: Modes,
    /// Whether links are accepted; results never hold any.
    pub links: bool,
    /// What was asked for; `None`: anything.
    pub only: Option<&'a Selection>,
}

/// A relative path without `..`, or why not.
///
/// # Errors
/// The rule that the name breaks.
pub fn relative(name: &[u8]) -> Result<PathBuf, &'static str> {
    if name.len() as u64 > NAME_MAX {
        return Err("name longer than 4096 bytes");
    }
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) if part.as_bytes().contains(&0) => return Err("name with a NUL byte"),
            Component::Normal(part) if part.len() > 255 => {
                return Err("name component longer than 255 bytes")
            }
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("name with '..'"),
            Component::RootDir | Component::Prefix(_) => return Err("absolute name"),
        }
    }
    if path.components().count() > DEPTH_MAX {
        return Err("more than 128 directories deep");
    }
    Ok(path)
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    accept: Accept<'a>,
    done: Transferred,
    /// Directories made that no entry stands for.
    implied: u64,
    /// The directory of the last entry: most entries share it with the one before.
    parent: Option<(PathBuf, OwnedFd)>,
}

/// Reads a tar stream into the directory `root`, up to the stream's end.
///
/// # Errors
/// [`ArchiveError`]; what was unpacked before stays, a file that was not complete does not.
pub fn unpack(
    root: BorrowedFd<'_>,
    input: impl Read,
    accept: Accept<'_>,
) -> Result<Transferred, ArchiveError> {
    unpack_as(root, input, accept, None)
}

/// As [`unpack`]; with `rename`, what is called the first in the archive, and all below it, goes to
/// the second instead.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_as(
    root: BorrowedFd<'_>,
    input: impl Read,
    accept: Accept<'_>,
    rename: Option<(&Path, &Path)>,
) -> Result<Transferred, ArchiveError> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(BUFFER, input));
    let mut unpacker = Unpacker { root, accept, done: Transferred::default(), implied: 0, parent: None };
    // Long names of the entry that follows them (GNU `L` and `K`, pax `x`).
    let (mut long_name, mut long_link) = (None, None);
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => long_name = Some(extension(&mut entry)?),
            EntryType::GNULongLink => long_link = Some(extension(&mut entry)?),
            EntryType::XHeader => pax(&extension(&mut entry)?, &mut long_name, &mut long_link)?,
            EntryType::XGlobalHeader => drop(extension(&mut entry)?),
            _ => {
                let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let name = match rename {
                    Some(rename) => renamed(name, rename),
                    None => name,
                };
                let link =
                    long_link.take().or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
                unpacker.entry(kind, &name, link, &mut entry)?;
            }
        }
    }
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(unpacker.done)
}

fn renamed(name: Vec<u8>, (from, to): (&Path, &Path)) -> Vec<u8> {
    match Path::new(OsStr::from_bytes(&name)).strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.as_os_str().as_bytes().to_vec(),
        Ok(rest) => to.join(rest).into_os_string().into_vec(),
        Err(_) => name,
    }
}

/// The content of an extension entry: bounded, unlike what its header may promise.
fn extension(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    if entry.size() > NAME_MAX * 4 {
        return Err(refused(&entry.path_bytes(), "extension header longer than 16384 bytes"));
    }
    let mut content = Vec::new();
    entry.read_to_end(&mut content)?;
    while content.last() == Some(&0) {
        content.pop();
    }
    Ok(content)
}

fn pax(records: &[u8], name: &mut Option<Vec<u8>>, link: &mut Option<Vec<u8>>) -> Result<(), ArchiveError> {
    for record in tar::PaxExtensions::new(records) {
        let record = record?;
        match record.key_bytes() {
            b"path" => *name = Some(record.value_bytes().to_vec()),
            b"linkpath" => *link = Some(record.value_bytes().to_vec()),
            // A second opinion about a size is how archives are smuggled past a checker.
            b"size" => return Err(refused(b"pax header", "pax 'size' is not accepted")),
            key if key.starts_with(b"GNU.sparse") => {
                return Err(refused(b"pax header", "sparse files are not accepted"))
            }
            _ => {}
        }
    }
    Ok(())
}

fn refused(name: &[u8], why: &'static str) -> ArchiveError {
    ArchiveError::Refused { name: String::from_utf8_lossy(name).into_owned(), why }
}

impl Unpacker<'_> {
    fn entry(
        &mut self,
        kind: EntryType,
        name: &[u8],
        link: Option<Vec<u8>>,
        data: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), ArchiveError> {
        let path = relative(name).map_err(|why| refused(name, why))?;
        if self.accept.only.is_some_and(|only| !only.covers(&path)) {
            return Err(refused(name, "was not asked for"));
        }
        self.done.entries += 1;
        self.check_entries()?;
        let mode = data.header().mode().map_err(|_| refused(name, "bad mode field"))? & 0o777;
        match kind {
            EntryType::Directory => self.directory(&path, mode),
            EntryType::Regular | EntryType::Continuous => self.file(&path, mode, data),
            EntryType::Symlink if self.accept.links => {
                let target = link.ok_or_else(|| refused(name, "link without a target"))?;
                let target = PathBuf::from(OsString::from_vec(target));
                if !stays_inside(&path, &target) || target.as_os_str().len() as u64 > NAME_MAX {
                    return Err(refused(name, "symbolic link that leaves the tree"));
                }
                self.link(&path, &target)
            }
            EntryType::Symlink => Err(refused(name, "symbolic links are not accepted here")),
            EntryType::Link => Err(refused(name, "hard links are not accepted")),
            _ => Err(refused(name, "only regular files, directories and symbolic links are accepted")),
        }
    }

    fn check_entries(&self) -> Result<(), ArchiveError> {
        let limit = self.accept.limits.entries;
        match self.done.entries.saturating_add(self.implied) > limit {
            true => Err(ArchiveError::TooMuch { what: "entries", limit }),
            false => Ok(()),
        }
    }

    /// The directory above `path`, made as needed.
    fn parent(&mut self, path: &Path) -> Result<BorrowedFd<'_>, ArchiveError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_none_or(|(cached, _)| cached != parent) {
            let dir = self.make_directory(parent, 0o755)?;
            self.check_entries()?;
            self.parent = Some((parent.to_owned(), dir));
        }
        self.parent.as_ref().map(|(_, dir)| dir.as_fd()).ok_or_else(|| refused(b"", "no parent"))
    }

    fn make_directory(&mut self, path: &Path, mode: u32) -> Result<OwnedFd, ArchiveError> {
        let root = self.root;
        let open = |path: &Path| open_beneath(root, path, DIRECTORY);
        if path.as_os_str().is_empty() {
            return open(Path::new(".")).map_err(failed("open", path));
        }
        match open(path) {
            Err(Errno::ENOENT) => {}
            result => return result.map_err(failed("open directory", path)),
        }
        let mut dir = open(Path::new(".")).map_err(failed("open", path))?;
        let mut so_far = PathBuf::new();
        for part in path.components() {
            so_far.push(part);
            let bits = if so_far == path { mode } else { 0o755 };
            match mkdirat(&dir, Path::new(&part), Mode::from_bits_truncate(bits | 0o700)) {
                Ok(()) => self.implied += 1,
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed("make directory", &so_far)(errno)),
            }
            dir = open_beneath(dir.as_fd(), Path::new(&part), DIRECTORY)
                .map_err(failed("open directory", &so_far))?;
        }
        Ok(dir)
    }

    fn directory(&mut self, path: &Path, mode: u32) -> Result<(), ArchiveError> {
        let mode = if self.accept.modes == Modes::Keep { mode } else { 0o755 };
        let before = self.implied;
        self.make_directory(path, mode)?;
        // The last one is the entry itself.
        self.implied -= u64::from(self.implied > before);
        self.check_entries()
    }

    fn file(
        &mut self,
        path: &Path,
        mode: u32,
        data: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), ArchiveError> {
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return Err(refused(path.as_os_str().as_bytes(), "a file needs a name"));
        };
        let size = data.size();
        let limit = self.accept.limits.bytes;
        if size > limit - self.done.bytes {
            return Err(ArchiveError::TooMuch { what: "bytes", limit });
        }
        self.done.bytes += size;
        let mode = if self.accept.modes == Modes::Keep { mode } else { 0o644 };
        let parent = self.parent(path)?;
        let mut part = Part::create(parent, path)?;
        let mut buffer = vec![0; BUFFER.min(usize::try_from(size).unwrap_or(BUFFER).max(512))];
        let mut left = size;
        while left > 0 {
            match data.read(&mut buffer)? {
                0 => return Err(ArchiveError::Stream(io::ErrorKind::UnexpectedEof.into())),
                count => {
                    part.write(&buffer[..count], path)?;
                    left -= count as u64;
                }
            }
        }
        part.complete(&name, mode, path)
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<(), ArchiveError> {
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            return Err(refused(path.as_os_str().as_bytes(), "a link needs a name"));
        };
        let parent = self.parent(path)?;
        let made = match symlinkat(target, parent, name.as_os_str()) {
            Err(Errno::EEXIST) => unlinkat(parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir)
                .and_then(|()| symlinkat(target, parent, name.as_os_str())),
            made => made,
        };
        made.map_err(failed("make link", path))
    }
}

/// A file that is not complete yet; it disappears unless [`Part::complete`] is reached.
struct Part<'a> {
    dir: BorrowedFd<'a>,
    name: String,
    file: Option<File>,
}

impl<'a> Part<'a> {
    fn create(dir: BorrowedFd<'a>, path: &Path) -> Result<Part<'a>, ArchiveError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = |name: &str| openat(dir, name, flags, Mode::from_bits_truncate(0o600));
        let mut name = PART.to_owned();
        let mut opened = open(&name);
        if matches!(opened, Err(Errno::EEXIST)) {
            // Left by a transfer that was killed; or made by a job, which can make it a directory.
            opened = match unlinkat(dir, PART, UnlinkatFlags::NoRemoveDir) {
                Ok(()) => open(&name),
                Err(_) => Err(Errno::EEXIST),
            };
        }
        for number in 1..PARTS {
            if !matches!(opened, Err(Errno::EEXIST)) {
                break;
            }
            name = format!("{PART}.{number}");
            opened = open(&name);
        }
        let file = opened.map_err(failed("create", path))?;
        Ok(Part { dir, name, file: Some(File::from(file)) })
    }

    fn write(&mut self, bytes: &[u8], path: &Path) -> Result<(), ArchiveError> {
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        file.write_all(bytes).map_err(|error| failed("write", path)(errno_of(&error)))
    }

    fn complete(mut self, name: &OsStr, mode: u32, path: &Path) -> Result<(), ArchiveError> {
        if let Some(file) = &self.file {
            nix::sys::stat::fchmod(file, Mode::from_bits_truncate(mode)).map_err(failed("chmod", path))?;
        }
        renameat(self.dir, self.name.as_str(), self.dir, name).map_err(failed("put in place", path))?;
        self.file = None;
        Ok(())
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing can be done if even this fails; the name is ours and is reused.
            let _ = unlinkat(self.dir, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}
