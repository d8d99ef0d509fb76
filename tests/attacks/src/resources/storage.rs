//! Disk, inodes, descriptors, devices.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::resource::Resource;

use crate::tools::{any, broke, broke_for_good, held, ignore_signals, raise_limit, refused, Attempt, Role};

const MEGABYTE: u64 = 1 << 20;
/// More than the disk limit of these attacks.
const MUCH: u64 = 200 * MEGABYTE;
/// Less than the limit of one file.
const FILE: u64 = 8 * MEGABYTE;

/// Writes until something refuses it, `most` bytes at most; returns how much.
fn pour(file: &mut File, most: u64) -> (u64, Option<io::Error>) {
    let chunk = vec![1; 1 << 20];
    let mut written = 0;
    while written < most {
        match file.write_all(&chunk) {
            Ok(()) => written += MEGABYTE,
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

/// Fills file after file that `next` makes.
fn pour_into(mut next: impl FnMut(u64) -> io::Result<File>) -> Attempt {
    ignore_signals();
    let mut kept = Vec::new();
    let mut total = 0;
    while total < MUCH {
        let mut file = match next(total / FILE) {
            Ok(file) => file,
            Err(error) => return held(error),
        };
        let (written, error) = pour(&mut file, FILE);
        total += written;
        kept.push(file);
        if let Some(error) = error {
            return held(format_args!("{error} after {} MB", total / MEGABYTE));
        }
    }
    broke_for_good("wrote 200 MB")
}

pub(super) fn writes_one(_: Role) -> Attempt {
    ignore_signals();
    raise_limit(Resource::RLIMIT_FSIZE);
    match File::create("big").map(|mut file| pour(&mut file, MUCH)) {
        Ok((written, Some(error))) => held(format_args!("{error} after {} MB", written / MEGABYTE)),
        Ok((_, None)) => broke("wrote 200 MB"),
        Err(error) => held(error),
    }
}

pub(super) fn makes_sparse(_: Role) -> Attempt {
    ignore_signals();
    raise_limit(Resource::RLIMIT_FSIZE);
    refused(File::create("sparse").and_then(|file| file.set_len(1 << 40)), "has a file of a terabyte")
}

pub(super) fn writes_many(_: Role) -> Attempt {
    pour_into(|count| File::create(format!("many-{count}")))
}

pub(super) fn writes_nameless(_: Role) -> Attempt {
    pour_into(|count| match OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(".") {
        Ok(file) => Ok(file),
        Err(_) => {
            let name = format!("gone-{count}");
            let file = File::create(&name)?;
            fs::remove_file(name).map(|()| file)
        }
    })
}

pub(super) fn fills_tmpfs(_: Role) -> Attempt {
    let places = ["/dev/shm", "/tmp", "/var/tmp", "."];
    pour_into(|count| {
        let mut refusal = io::Error::other("no place");
        for place in places {
            match File::create(format!("{place}/fill-{count}")) {
                Ok(file) => return Ok(file),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    })
}

pub(super) fn makes_inodes(_: Role) -> Attempt {
    const FILES: usize = 5000;
    for count in 0..FILES {
        if let Err(error) = File::create(format!("inode-{count}")) {
            return held(format_args!("{error} after {count} files"));
        }
    }
    broke_for_good(format_args!("made {FILES} files"))
}

pub(super) fn opens_many(_: Role) -> Attempt {
    raise_limit(Resource::RLIMIT_NOFILE);
    let mut kept = Vec::new();
    for count in 0..2000 {
        match File::open("/dev/null") {
            Ok(file) => kept.push(file),
            Err(error) => return held(format_args!("{error} after {count} files")),
        }
    }
    broke("has 2000 files open")
}

fn open_to_write(path: &str) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)
}

pub(super) fn opens_terminals(_: Role) -> Attempt {
    const TERMINALS: usize = 200;
    let mut kept = Vec::new();
    for count in 0..TERMINALS {
        match open_to_write("/dev/ptmx") {
            Ok(file) => kept.push(file),
            Err(error) => return held(format_args!("{error} after {count} terminals")),
        }
    }
    broke(format_args!("has {TERMINALS} terminals"))
}

pub(super) fn writes_kernel_log(_: Role) -> Attempt {
    any(["/dev/log", "/dev/kmsg"].map(|path| refused(open_to_write(path), path)))
}
