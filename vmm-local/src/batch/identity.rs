//! Whether a result is still about the job: a digest of all that the job gets.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The SHA-256, in hexadecimal, of a directory's content but for one name at its top: of names,
/// kinds, permissions, the content of files and where links lead. Times and owners do not count.
///
/// # Errors
/// Something of it cannot be read.
pub(super) fn digest(directory: &Path, except: &str) -> io::Result<String> {
    let mut hash = Sha256::new();
    for path in entries(directory)? {
        if path.file_name().is_none_or(|name| name != except) {
            add(&mut hash, &path)?;
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Every part says first how long it is, so that no two trees are written down alike.
fn add(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    part(hash, path.file_name().unwrap_or_default().as_bytes());
    part(hash, &(meta.permissions().mode() & 0o7777).to_le_bytes());
    if meta.is_dir() {
        let entries = entries(path)?;
        part(hash, b"directory");
        part(hash, &entries.len().to_le_bytes());
        return entries.iter().try_for_each(|entry| add(hash, entry));
    }
    if meta.is_symlink() {
        part(hash, b"link");
        part(hash, &fs::read_link(path)?.into_os_string().into_vec());
    } else if meta.is_file() {
        part(hash, b"file");
        part(hash, &content(path)?);
    } else {
        part(hash, b"special");
    }
    Ok(())
}

fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update(bytes.len().to_le_bytes());
    hash.update(bytes);
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().to_vec()),
            Ok(count) => hash.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn whatever_a_job_gets_counts_and_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        fs::create_dir(path("d")).unwrap();
        fs::write(path("d/a"), "one").unwrap();
        symlink("a", path("d/link")).unwrap();
        fs::write(path("expect.json"), "{}").unwrap();
        let now = || digest(top.path(), "expect.json").unwrap();
        let first = now();
        fs::write(path("expect.json"), "{\"exit_code\": 1}").unwrap();
        File::open(path("d/a")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(now(), first);

        let mut seen = vec![first];
        let mut changed = |what: &str, change: &dyn Fn() -> io::Result<()>| {
            change().unwrap();
            assert!(!seen.contains(&now()), "{what}");
            seen.push(now());
        };
        changed("content", &|| fs::write(path("d/a"), "two"));
        changed("mode", &|| fs::set_permissions(path("d/a"), fs::Permissions::from_mode(0o755)));
        changed("name", &|| fs::rename(path("d/a"), path("d/b")));
        changed("place", &|| fs::rename(path("d/b"), path("b")));
        changed("link", &|| fs::remove_file(path("d/link")).and_then(|()| symlink("b", path("d/link"))));
        changed("an empty file", &|| fs::write(path("d/empty"), ""));
        changed("an expectation that is the job's own", &|| fs::write(path("d/expect.json"), ""));
    }

    #[test]
    fn what_cannot_be_read_has_no_digest() {
        assert!(digest(Path::new("/nowhere"), "").is_err());
    }
}
