//! Trees as tar streams, by rules that are the same on both sides: the host trusts the guest
//! no more than the guest trusts the job.
//!
//! Unpacking accepts regular files, directories, and symbolic links that stay inside. It never
//! follows a link (every open is openat2(2) with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`),
//! never makes a device or a hard link, refuses absolute names and `..`, puts files in place
//! by rename only when they are complete, and counts entries and bytes as they arrive.
//! Packing takes what is a regular file when it is opened, and never blocks on a FIFO.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{openat, openat2, readlinkat, renameat, AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{fstat, fstatat, mkdirat, FileStat, Mode, SFlag};
use nix::unistd::{symlinkat, unlinkat, UnlinkatFlags};
use tar::EntryType;

use crate::message::{Skipped, Transferred};

/// What one archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Most bytes of content.
    pub bytes: u64,
}

/// Longest name, link target or pax header, in bytes.
const NAME_MAX: u64 = 4096;
/// Most directories above a file.
const DEPTH_MAX: usize = 128;
/// Most skipped files that are listed by name.
const SKIPPED_MAX: usize = 100;
/// Where a file grows until it is complete.
const PART: &str = ".autodriver.part";
const BUFFER: usize = 256 << 10;

/// Why a transfer failed.
#[derive(Debug)]
pub enum ArchiveError {
    /// The archive breaks the rules; names the entry.
    Refused {
        /// The entry's name.
        name: String,
        /// Which rule.
        why: &'static str,
    },
    /// A limit was passed.
    TooMuch {
        /// `entries` or `bytes`.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A system call failed on an entry.
    Failed {
        /// What was being done.
        act: &'static str,
        /// The entry's name.
        name: String,
        /// Why it failed.
        errno: Errno,
    },
    /// The stream ended early, is no tar stream, or could not be read or written.
    Stream(io::Error),
    /// A pattern of `get` or `--out` was refused.
    Pattern(String),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveError::Refused { name, why } => {
                write!(f, "archive entry '{}': {why}", name.escape_debug())
            }
            ArchiveError::TooMuch { what, limit } => write!(f, "archive of more than {limit} {what}"),
            ArchiveError::Failed { act, name, errno } => {
                write!(f, "cannot {act} '{}': {} ({})", name.escape_debug(), errno_name(*errno), errno.desc())
            }
            ArchiveError::Stream(error) => write!(f, "archive stream: {error}"),
            ArchiveError::Pattern(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ArchiveError {}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        ArchiveError::Stream(error)
    }
}

/// The symbolic name of an errno, for example `EPERM`.
pub fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}

fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn failed(act: &'static str, name: &Path) -> impl FnOnce(Errno) -> ArchiveError {
    let name = lossy(name);
    move |errno| ArchiveError::Failed { act, name, errno }
}

fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let beneath =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(dir, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(beneath))
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY);

/// Opens a directory of the caller's own, following links as the caller would expect.
///
/// # Errors
/// Those of open(2).
pub fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    openat(nix::fcntl::AT_FDCWD, path, DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

// ---- packing ------------------------------------------------------------------------------

/// Which files of a tree go into the archive.
#[derive(Debug)]
pub enum Selection {
    /// Everything: regular files, directories, symbolic links.
    Tree,
    /// Everything but these names at the top.
    Except(Vec<OsString>),
    /// Regular files whose path matches one of the patterns, or below a directory that does.
    Globs(Vec<Pattern>),
}

impl Selection {
    /// Compiles the globs of `get` and `--out`.
    ///
    /// # Errors
    /// [`ArchiveError::Pattern`] for an absolute pattern, one with `..`, or a bad one.
    pub fn globs<S: AsRef<str>>(globs: &[S]) -> Result<Selection, ArchiveError> {
        let compile = |glob: &S| {
            let glob = glob.as_ref();
            let refused = |why: &str| ArchiveError::Pattern(format!("glob '{}': {why}", glob.escape_debug()));
            let glob = glob.strip_prefix("./").unwrap_or(glob).trim_end_matches('/');
            if glob.starts_with('/') || glob.split('/').any(|part| part == "..") || glob.is_empty() {
                return Err(refused("must be relative to the job directory, without '..'"));
            }
            Pattern::new(glob).map_err(|error| refused(error.msg))
        };
        globs.iter().map(compile).collect::<Result<_, _>>().map(Selection::Globs)
    }

    /// Whether directories and links are taken too.
    fn is_tree(&self) -> bool {
        matches!(self, Selection::Tree | Selection::Except(_))
    }

    fn leaves_out(&self, path: &Path) -> bool {
        matches!(self, Selection::Except(names) if names.iter().any(|name| path == Path::new(name)))
    }

    fn takes(&self, path: &Path) -> bool {
        let options = MatchOptions { require_literal_separator: true, ..MatchOptions::new() };
        match self {
            Selection::Tree | Selection::Except(_) => true,
            Selection::Globs(patterns) => {
                let path = path.to_string_lossy();
                patterns.iter().any(|pattern| pattern.matches_with(&path, options))
            }
        }
    }
}

struct Packer<'a, W: Write> {
    tar: tar::Builder<BufWriter<W>>,
    selection: &'a Selection,
    limits: Limits,
    done: Transferred,
}

/// Writes a tree as a tar stream, names below `prefix`.
///
/// # Errors
/// [`ArchiveError`]; files that are not regular, vanish or may not be read are skipped and listed.
pub fn pack_tree<W: Write>(
    root: BorrowedFd<'_>,
    prefix: &Path,
    selection: &Selection,
    limits: Limits,
    out: W,
) -> Result<Transferred, ArchiveError> {
    let mut packer = Packer::new(selection, limits, out);
    let dir =
        openat(root, ".", DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open", prefix))?;
    packer.directory(dir, prefix, Path::new(""), selection.is_tree())?;
    packer.finish()
}

/// Writes one file of the caller's own as a tar stream, under `name`.
///
/// # Errors
/// [`ArchiveError`]; unlike in a tree, a file that cannot be read is an error.
pub fn pack_file<W: Write>(
    src: &Path,
    name: &Path,
    limits: Limits,
    out: W,
) -> Result<Transferred, ArchiveError> {
    let selection = Selection::Tree;
    let mut packer = Packer::new(&selection, limits, out);
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = openat(nix::fcntl::AT_FDCWD, src, flags, Mode::empty()).map_err(failed("open", src))?;
    let stat = fstat(&file).map_err(failed("stat", src))?;
    if !is(&stat, SFlag::S_IFREG) {
        return Err(ArchiveError::Refused {
            name: lossy(src),
            why: "neither a regular file nor a directory",
        });
    }
    packer.file(file, &stat, name)?;
    packer.finish()
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == kind
}

impl<'a, W: Write> Packer<'a, W> {
    fn new(selection: &'a Selection, limits: Limits, out: W) -> Packer<'a, W> {
        let tar = tar::Builder::new(BufWriter::with_capacity(BUFFER, out));
        Packer { tar, selection, limits, done: Transferred::default() }
    }

    fn finish(self) -> Result<Transferred, ArchiveError> {
        self.tar.into_inner()?.flush()?;
        Ok(self.done)
    }

    fn skip(&mut self, path: &Path, why: String) {
        self.done.skipped_count += 1;
        if self.done.skipped.len() < SKIPPED_MAX {
            self.done.skipped.push(Skipped { name: lossy(path), why });
        }
    }

    /// One directory; `path` is where it is below the root, `wanted` whether a parent matched.
    fn directory(
        &mut self,
        dir: OwnedFd,
        prefix: &Path,
        path: &Path,
        wanted: bool,
    ) -> Result<(), ArchiveError> {
        if path.components().count() > DEPTH_MAX {
            self.skip(path, format!("more than {DEPTH_MAX} directories deep"));
            return Ok(());
        }
        let mut dir = Dir::from_fd(dir).map_err(failed("read", path))?;
        let mut names: Vec<OsString> = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(failed("read", path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
            if names.len() as u64 > self.limits.entries {
                return Err(ArchiveError::TooMuch { what: "entries", limit: self.limits.entries });
            }
        }
        names.retain(|name| !self.selection.leaves_out(&path.join(name)));
        names.sort_unstable();
        for name in names {
            self.entry(dir.as_fd(), &name, prefix, &path.join(&name), wanted)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        prefix: &Path,
        path: &Path,
        wanted: bool,
    ) -> Result<(), ArchiveError> {
        let wanted = wanted || self.selection.takes(path);
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => {
                self.skip(path, errno_name(errno));
                return Ok(());
            }
        };
        let full = prefix.join(path);
        if is(&stat, SFlag::S_IFDIR) {
            let flags = DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match openat(dir, name, flags, Mode::empty()) {
                Ok(sub) => {
                    if self.selection.is_tree() {
                        self.header(&full, EntryType::Directory, &stat, 0, None, io::empty())?;
                    }
                    self.directory(sub, prefix, path, wanted)?;
                }
                Err(errno) => self.skip(path, errno_name(errno)),
            }
        } else if !wanted {
            // Neither copied nor worth a mention.
        } else if is(&stat, SFlag::S_IFREG) {
            let flags =
                OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            let opened = openat(dir, name, flags, Mode::empty());
            match opened.and_then(|file| fstat(&file).map(|stat| (file, stat))) {
                Ok((file, stat)) if is(&stat, SFlag::S_IFREG) => self.file(file, &stat, &full)?,
                Ok(_) => self.skip(path, "not a regular file".to_owned()),
                Err(errno) => self.skip(path, errno_name(errno)),
            }
        } else if is(&stat, SFlag::S_IFLNK) && self.selection.is_tree() {
            let target = readlinkat(dir, name).map_err(failed("read link", path))?;
            if stays_inside(&full, Path::new(&target)) {
                self.header(&full, EntryType::Symlink, &stat, 0, Some(Path::new(&target)), io::empty())?;
            } else {
                self.skip(path, "symbolic link that leaves the tree".to_owned());
            }
        } else {
            self.skip(path, "not a regular file".to_owned());
        }
        Ok(())
    }

    fn file(&mut self, file: OwnedFd, stat: &FileStat, path: &Path) -> Result<(), ArchiveError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if self.done.bytes + size > self.limits.bytes {
            return Err(ArchiveError::TooMuch { what: "bytes", limit: self.limits.bytes });
        }
        self.done.bytes += size;
        self.header(
            path,
            EntryType::Regular,
            stat,
            size,
            None,
            Exactly { file: File::from(file), left: size },
        )
    }

    fn header(
        &mut self,
        path: &Path,
        kind: EntryType,
        stat: &FileStat,
        size: u64,
        link: Option<&Path>,
        data: impl Read,
    ) -> Result<(), ArchiveError> {
        self.done.entries += 1;
        if self.done.entries > self.limits.entries {
            return Err(ArchiveError::TooMuch { what: "entries", limit: self.limits.entries });
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o777);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(size);
        match link {
            Some(target) => self.tar.append_link(&mut header, path, target)?,
            None => self.tar.append_data(&mut header, path, data)?,
        }
        Ok(())
    }
}

/// A file as long as its header said, whatever it becomes while it is read.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut count = self.file.read(&mut buffer[..want])?;
        if count == 0 {
            buffer[..want].fill(0);
            count = want;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

// ---- unpacking ----------------------------------------------------------------------------

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
pub struct Accept {
    /// How much.
    pub limits: Limits,
    /// Which permission bits.
    pub modes: Modes,
    /// Whether links are accepted; results never hold any.
    pub links: bool,
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

/// Whether a link at `path` with `target` leads, by its text, to somewhere inside the tree.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let start = path.components().count().saturating_sub(1);
    let walked = target.components().try_fold(start, |depth, component| match component {
        Component::Normal(_) => Some(depth + 1),
        Component::ParentDir => depth.checked_sub(1),
        Component::CurDir => Some(depth),
        Component::RootDir | Component::Prefix(_) => None,
    });
    walked.is_some()
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    accept: Accept,
    done: Transferred,
    /// The directory of the last entry: most entries share it with the one before.
    parent: Option<(PathBuf, OwnedFd)>,
}

/// Reads a tar stream into the directory `root`, up to the stream's end.
///
/// # Errors
/// [`ArchiveError`]; what was unpacked before stays, a file that was not complete does not.
pub fn unpack(root: BorrowedFd<'_>, input: impl Read, accept: Accept) -> Result<Transferred, ArchiveError> {
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
    accept: Accept,
    rename: Option<(&Path, &Path)>,
) -> Result<Transferred, ArchiveError> {
    let mut archive = tar::Archive::new(io::BufReader::with_capacity(BUFFER, input));
    let mut unpacker = Unpacker { root, accept, done: Transferred::default(), parent: None };
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
        self.done.entries += 1;
        if self.done.entries > self.accept.limits.entries {
            return Err(ArchiveError::TooMuch { what: "entries", limit: self.accept.limits.entries });
        }
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

    /// The directory above `path`, made as needed.
    fn parent(&mut self, path: &Path) -> Result<BorrowedFd<'_>, ArchiveError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_none_or(|(cached, _)| cached != parent) {
            let dir = self.make_directory(parent, 0o755)?;
            self.parent = Some((parent.to_owned(), dir));
        }
        self.parent.as_ref().map(|(_, dir)| dir.as_fd()).ok_or_else(|| refused(b"", "no parent"))
    }

    fn make_directory(&self, path: &Path, mode: u32) -> Result<OwnedFd, ArchiveError> {
        let open = |path: &Path| open_beneath(self.root, path, DIRECTORY);
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
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(failed("make directory", &so_far)(errno)),
            }
            dir = open_beneath(dir.as_fd(), Path::new(&part), DIRECTORY)
                .map_err(failed("open directory", &so_far))?;
        }
        Ok(dir)
    }

    fn directory(&mut self, path: &Path, mode: u32) -> Result<(), ArchiveError> {
        let mode = if self.accept.modes == Modes::Keep { mode } else { 0o755 };
        self.make_directory(path, mode).map(drop)
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
    file: Option<File>,
}

impl<'a> Part<'a> {
    fn create(dir: BorrowedFd<'a>, path: &Path) -> Result<Part<'a>, ArchiveError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(dir, PART, flags, Mode::from_bits_truncate(0o600));
        let opened = match open() {
            // Left by a transfer that was killed.
            Err(Errno::EEXIST) => unlinkat(dir, PART, UnlinkatFlags::NoRemoveDir).and_then(|()| open()),
            opened => opened,
        };
        let file = opened.map_err(failed("create", path))?;
        Ok(Part { dir, file: Some(File::from(file)) })
    }

    fn write(&mut self, bytes: &[u8], path: &Path) -> Result<(), ArchiveError> {
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        file.write_all(bytes).map_err(|error| failed("write", path)(errno_of(&error)))
    }

    fn complete(mut self, name: &OsStr, mode: u32, path: &Path) -> Result<(), ArchiveError> {
        if let Some(file) = &self.file {
            nix::sys::stat::fchmod(file, Mode::from_bits_truncate(mode)).map_err(failed("chmod", path))?;
        }
        renameat(self.dir, PART, self.dir, name).map_err(failed("put in place", path))?;
        self.file = None;
        Ok(())
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nothing can be done if even this fails; the name is ours and is reused.
            let _ = unlinkat(self.dir, PART, UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20 };
    const INPUT: Accept = Accept { limits: LIMITS, modes: Modes::Keep, links: true };

    fn archive_of(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn raw_entry(
        builder: &mut tar::Builder<Vec<u8>>,
        kind: EntryType,
        name: &[u8],
        link: &[u8],
        data: &[u8],
    ) {
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
        let accept = Accept { limits: LIMITS, modes: Modes::Fixed, links: false };
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
}
