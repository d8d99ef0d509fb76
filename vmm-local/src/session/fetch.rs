//! Files of the job, brought to where the caller wants them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use autodriver_protocol::archive::{self, ArchiveError, Limits};
use autodriver_protocol::job::Output;
use autodriver_protocol::Transferred;
use nix::errno::Errno;

use super::{Job, SessionError};

/// Fetches what one `--out GLOB:DEST` names. DEST is a directory, made if missing; if GLOB
/// has no wildcard and DEST neither ends in `/` nor is a directory, DEST is the file's name.
pub(super) fn fetch(job: &mut Job<'_>, output: &Output, limits: Limits) -> Result<Transferred, SessionError> {
    let dest = Path::new(&output.dest);
    let names_a_file =
        !output.glob.contains(['*', '?', '[']) && !output.dest.ends_with('/') && !dest.is_dir();
    let globs = vec![output.glob.clone()];
    if !names_a_file {
        return into_directory(job, globs, limits, dest);
    }
    let aside = Aside::beside(dest)?;
    let done = into_directory(job, globs, limits, &aside.0)?;
    if done.entries > 0 {
        aside.put_in_place(&output.glob, dest)?;
    }
    Ok(done)
}

fn into_directory(
    job: &mut Job<'_>,
    globs: Vec<String>,
    limits: Limits,
    dest: &Path,
) -> Result<Transferred, SessionError> {
    fs::create_dir_all(dest).map_err(failed("make directory", dest))?;
    let dir = archive::open_directory(dest).map_err(|errno| failed("open directory", dest)(errno.into()))?;
    job.get(globs, limits, dir.as_fd())
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SessionError {
    let name = path.to_string_lossy().into_owned();
    move |error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        SessionError::Archive(ArchiveError::Failed { act, name, errno })
    }
}

/// A directory beside a file that is still to come, on the same file system; it goes away.
struct Aside(PathBuf);

impl Aside {
    fn beside(dest: &Path) -> Result<Aside, SessionError> {
        let parent = match dest.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(failed("make directory", parent))?;
        let path = parent.join(format!(".vmm-local.{}.part", std::process::id()));
        fs::create_dir(&path).map_err(failed("make directory", &path))?;
        Ok(Aside(path))
    }

    /// Moves the one file that `glob` names to `dest`; if it names a directory, all of it.
    fn put_in_place(&self, glob: &str, dest: &Path) -> Result<(), SessionError> {
        let file = archive::relative(glob.as_bytes()).map(|path| self.0.join(path));
        let from = file.ok().filter(|path| path.is_file()).unwrap_or_else(|| self.0.clone());
        fs::rename(from, dest).map_err(failed("put in place", dest))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Its content was moved away, or is of no use.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The output with a DEST that is relative, below `base`.
///
/// # Errors
/// What is wrong with DEST.
pub fn confine(output: Output, base: &Path) -> Result<Output, String> {
    let inside = archive::relative(output.dest.as_bytes()).map_err(|why| {
        format!("out '{}:{}': DEST must be a relative path here ({why})", output.glob, output.dest)
    })?;
    let dest = base.join(inside).to_string_lossy().into_owned();
    let slash = if output.dest.ends_with('/') { "/" } else { "" };
    Ok(Output { glob: output.glob, dest: dest + slash })
}
