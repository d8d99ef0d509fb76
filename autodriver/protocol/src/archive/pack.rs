//! Packing: what is a regular file when it is opened, without ever blocking on a FIFO.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{openat, readlinkat, AtFlags, OFlag};
use nix::sys::stat::{fstat, fstatat, FileStat, Mode, SFlag};
use tar::EntryType;

use super::globs::Glob;
use super::unpack::PART;
use super::{
    errno_name, errno_of, failed, lossy, relative, stays_inside, ArchiveError, Limits, BUFFER, DEPTH_MAX,
    DIRECTORY,
};
use crate::message::{Skipped, Transferred};

/// Most skipped files that are listed by name.
const SKIPPED_MAX: usize = 100;

/// Which files of a tree go into the archive.
#[derive(Debug)]
pub enum Selection {
    /// Everything: regular files, directories, symbolic links.
    Tree,
    /// Everything but these names at the top.
    Except(Vec<OsString>),
    /// Regular files whose path matches one of the patterns, or below a directory that does.
    Globs(Vec<Glob>),
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
            Glob::new(glob).map_err(refused)
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

    /// Whether a file with this path can be in an archive of what is selected.
    pub fn covers(&self, path: &Path) -> bool {
        match self {
            Selection::Tree | Selection::Except(_) => !path.as_os_str().is_empty(),
            Selection::Globs(globs) => globs.iter().any(|glob| glob.covers(&path.to_string_lossy())),
        }
    }

    fn takes(&self, path: &Path) -> bool {
        match self {
            Selection::Tree | Selection::Except(_) => true,
            Selection::Globs(globs) => globs.iter().any(|glob| glob.matches(&path.to_string_lossy())),
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

    /// Leaves out what the tree's owner keeps from us, or took away; what the machine lacks is an error.
    fn skip_unless_fault(&mut self, path: &Path, errno: Errno) -> Result<(), ArchiveError> {
        if matches!(errno, Errno::EINTR | Errno::EIO | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) {
            return Err(failed("open", path)(errno));
        }
        self.skip(path, errno_name(errno));
        Ok(())
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
        // What an unpacker would refuse, it refuses with all that follows.
        let refused = match name == PART {
            true => Some("the name is kept for files under way".to_owned()),
            false => relative(prefix.join(path).as_os_str().as_bytes()).err().map(str::to_owned),
        };
        if let Some(why) = refused {
            if wanted {
                self.skip(path, why);
            }
            return Ok(());
        }
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => return self.skip_unless_fault(path, errno),
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
                Err(errno) => self.skip_unless_fault(path, errno)?,
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
                Err(errno) => self.skip_unless_fault(path, errno)?,
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
        let failure = Cell::new(None);
        let content = Exactly { file: File::from(file), left: size, failure: &failure };
        let written = self.header(path, EntryType::Regular, stat, size, None, content);
        match failure.take() {
            // The stream only ended because of it.
            Some(errno) => Err(failed("read", path)(errno)),
            None => written,
        }
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
        let name = relative(path.as_os_str().as_bytes())
            .map_err(|why| ArchiveError::Refused { name: lossy(path), why })?;
        let name = name.as_os_str().as_bytes();
        let link = link.map_or(&[][..], |link| link.as_os_str().as_bytes());
        self.long(EntryType::GNULongName, name)?;
        self.long(EntryType::GNULongLink, link)?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o777);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(size);
        let old = header.as_old_mut();
        copy(name, &mut old.name);
        copy(link, &mut old.linkname);
        header.set_cksum();
        self.tar.append(&header, data)?;
        Ok(())
    }

    /// Before an entry whose name or link does not fit its header: an entry with all of it. The crate's own
    /// does that only for names whose start is UTF-8.
    fn long(&mut self, kind: EntryType, name: &[u8]) -> Result<(), ArchiveError> {
        if name.len() <= NAME_FIELD {
            return Ok(());
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        copy(b"././@LongLink", &mut header.as_old_mut().name);
        header.set_mode(0o644);
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        self.tar.append(&header, name.chain(&[0][..]))?;
        Ok(())
    }
}

/// Bytes of a name or a link in the header of an entry.
const NAME_FIELD: usize = 100;

/// As much of a name as fits its field.
fn copy(name: &[u8], field: &mut [u8; NAME_FIELD]) {
    let length = name.len().min(NAME_FIELD);
    field[..length].copy_from_slice(&name[..length]);
}

/// A file as long as its header said, whatever it becomes while it is read.
struct Exactly<'a> {
    file: File,
    left: u64,
    /// Why it could not be read.
    failure: &'a Cell<Option<Errno>>,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut count = match self.file.read(&mut buffer[..want]) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.failure.set(Some(errno_of(&error)));
                return Err(error);
            }
            read => read?,
        };
        if count == 0 {
            buffer[..want].fill(0);
            count = want;
        }
        self.left -= count as u64;
        Ok(count)
    }
}
