//! Files: reading, writing and making them, too many of them, and trees that are hard to remove.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{openat, OFlag};
use nix::sys::stat::{mkdirat, Mode};

use crate::answer::{child, empty, errno_of, number, say, Answer};
use crate::clock::sleep;

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    let result = match words {
        ["read", path] => File::open(path).and_then(|mut file| file.read(&mut [0; 1])).map(empty),
        ["show", path] => fs::read_to_string(path).map(|text| text.trim_end().to_owned()),
        ["overwrite", path] => OpenOptions::new().write(true).open(path).map(|_| String::new()),
        ["create", path] => File::create_new(path).map(|_| String::new()),
        ["write", path, mib] => write(path, number(mib)),
        ["write-deleted", path, mib] => write_deleted(path, number(mib)),
        ["write-on", path, mib] => write_on(path, number(mib)),
        ["sparse", path, mib] => {
            File::create(path).and_then(|f| f.set_len(number::<u64>(mib) << 20)).map(empty)
        }
        ["make-files", folder, count] => make_files(folder, number(count)),
        ["list", path] => list(path),
        ["remove", path] => fs::remove_file(path).map(empty),
        ["mkdir", path] => fs::create_dir(path).map(empty),
        ["chmod", mode, path] => change_mode(path, mode).map(empty),
        ["mode", path] => fs::metadata(path).map(|meta| format!("{:o} {}", meta.mode() & 0o7777, meta.uid())),
        ["link", from, to] => fs::hard_link(from, to).map(empty),
        ["mkfifo", path] => nix::unistd::mkfifo(*path, Mode::S_IRWXU).map(empty).map_err(io::Error::from),
        ["deep", path, levels] => deep(path, number(levels)).map_err(io::Error::from),
        ["hide-by-moving", mib] => hide_by_moving(number(mib)),
        ["hostile-tree", path] => hostile_tree(path).map(empty),
        ["run-file", path] => run_file(path),
        _ => return None,
    };
    Some(result.map_err(|error| errno_of(&error)))
}

/// Writes that many MiB; says how many fitted before a refusal.
fn write(path: &str, mib: usize) -> io::Result<String> {
    fill(&mut File::create(path)?, mib)
}

fn fill(file: &mut File, mib: usize) -> io::Result<String> {
    let block = vec![b'x'; 1 << 20];
    for _ in 0..mib {
        file.write_all(&block)?;
    }
    Ok(String::new())
}

/// As `write`, far below directories that are moved all the time: who walks the tree comes back from one of
/// them to another place than it came from, and does not find the rest.
fn hide_by_moving(mib: usize) -> io::Result<String> {
    const MOVED: usize = 30;
    for _ in 0..80 {
        fs::create_dir("d")?;
        std::env::set_current_dir("d")?;
    }
    fs::create_dir("elsewhere")?;
    let places = |n: usize| (format!("{n}/moved"), format!("elsewhere/{n}"));
    for n in 0..MOVED {
        fs::create_dir_all(places(n).0)?;
        make_files(&places(n).0, 200)?;
    }
    child(|| loop {
        (0..MOVED).map(places).for_each(|(here, there)| drop(fs::rename(here, there)));
        (0..MOVED).map(places).for_each(|(here, there)| drop(fs::rename(there, here)));
    })?;
    fs::create_dir("data")?;
    for n in 0..mib {
        fill(&mut File::create(format!("data/{n}"))?, 1)?;
    }
    sleep(20_000);
    Ok(String::new())
}

/// As `write`, into a file that no directory shows any more; it is held for a while.
fn write_deleted(path: &str, mib: usize) -> io::Result<String> {
    let mut file = File::create(path)?;
    fs::remove_file(path)?;
    let result = fill(&mut file, mib);
    sleep(1500);
    result
}

/// As `write`, but goes on to the end of the job when there is no more room.
fn write_on(path: &str, mib: usize) -> io::Result<String> {
    let refusal = write(path, mib).err();
    Ok(refusal.map_or_else(String::new, |error| format!("{:?}", errno_of(&error))))
}

fn make_files(folder: &str, count: usize) -> io::Result<String> {
    fs::create_dir_all(folder)?;
    (0..count).try_for_each(|name| File::create(format!("{folder}/{name}")).map(drop))?;
    Ok(String::new())
}

fn list(path: &str) -> io::Result<String> {
    let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names.join(" "))
}

fn change_mode(path: impl AsRef<Path>, octal: &str) -> io::Result<()> {
    let mode = u32::from_str_radix(octal, 8).expect("an octal mode");
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// A directory in a directory in a directory, deeper than any path can name.
fn deep(path: &str, levels: usize) -> Answer {
    fs::create_dir(path).map_err(|error| errno_of(&error))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut folder = openat(nix::fcntl::AT_FDCWD, path, flags, Mode::empty())?;
    for _ in 0..levels {
        mkdirat(folder.as_fd(), "d", Mode::S_IRWXU)?;
        folder = openat(folder.as_fd(), "d", flags, Mode::empty())?;
    }
    Ok(String::new())
}

/// Everything that trips a cleaner: closed directories, FIFOs, links out, odd names.
fn hostile_tree(path: &str) -> io::Result<()> {
    let root = Path::new(path);
    fs::create_dir_all(root.join("closed/inner"))?;
    File::create(root.join("closed/inner/file"))?;
    fs::hard_link(root.join("closed/inner/file"), root.join("second-name"))?;
    nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRWXU)?;
    drop(std::os::unix::net::UnixListener::bind(root.join("socket"))?);
    symlink("/etc/passwd", root.join("out"))?;
    symlink("/", root.join("machine"))?;
    symlink("loop", root.join("loop"))?;
    for name in ["-rf", "new\nline", "\u{202e}sdrawkcab", &"n".repeat(255), " "] {
        File::create(root.join(name))?;
    }
    let raw = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\xfe");
    File::create(root.join(raw))?;
    for (name, mode) in [("closed/inner", "0"), ("closed", "0"), ("second-name", "0"), ("fifo", "0")] {
        change_mode(root.join(name), mode)?;
    }
    change_mode(root, "0")
}

/// Runs a program and says how it ended.
fn run_file(path: &str) -> io::Result<String> {
    let output = std::process::Command::new(path).args(["ids"]).output()?;
    say(String::from_utf8_lossy(&output.stdout).trim_end());
    Ok(output.status.to_string())
}
