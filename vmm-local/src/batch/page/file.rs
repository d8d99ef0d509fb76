//! The file that a page is written to: there whole, or not at all.

use std::fmt;
use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::batch::BatchError;

/// A place where a file can be made.
#[derive(Debug)]
pub(in crate::batch) struct Place(PathBuf);

impl Place {
    /// Looks whether it can: that costs nothing before the first job, and a night after the last.
    ///
    /// # Errors
    /// It cannot be written.
    pub(in crate::batch) fn open(path: &Path) -> Result<Place, BatchError> {
        let failed = |why: &dyn fmt::Display| BatchError(format!("--html '{}': {why}", path.display()));
        if path == Path::new("-") || path.is_dir() {
            return Err(failed(&"expected the name of a file"));
        }
        let place = Place(path.to_owned());
        place.temporary().map_err(|error| failed(&error))?;
        Ok(place)
    }

    fn temporary(&self) -> io::Result<NamedTempFile> {
        let parent = self.0.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        // Less what the umask takes, as for any file.
        let builder = builder.prefix(".batch-").suffix(".html").permissions(Permissions::from_mode(0o666));
        builder.tempfile_in(parent.unwrap_or(Path::new(".")))
    }

    /// Writes the page; what had the name before is gone only when all of it is there.
    ///
    /// # Errors
    /// It could not be written.
    pub(in crate::batch) fn write(&self, page: &str) -> Result<(), BatchError> {
        let written = self.temporary().and_then(|mut file| {
            file.write_all(page.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&self.0).map_err(|error| error.error)
        });
        let failed = |error| BatchError(format!("cannot write '{}': {error}", self.0.display()));
        written.map(drop).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_page_takes_the_place_of_the_one_before_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("page.html");
        let place = Place::open(&path).unwrap();
        assert!(!path.exists(), "looking makes nothing");
        for text in ["one", "two"] {
            place.write(text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named_before_any_job() {
        for path in ["/nowhere/page.html", "/proc/page.html", "/tmp", "-"] {
            let error = Place::open(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}
