//! What a job leaves where its results are looked for. Every file that may arrive says that it is
//! innocent; one that says its name as well must arrive under it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::resource::Resource;
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, setsid};

use crate::probes::exchange;
use crate::tools::{child, end_of, held, ignore, ignore_signals, raise_limit, refused, Attempt, Role};

const INNOCENT: &str = "innocent\n";

/// What every job has among its results, so that something must arrive.
fn result(path: impl AsRef<Path>) -> io::Result<()> {
    fs::write(path, INNOCENT)
}

/// The attempt is over when all is prepared: what came of it is seen by who copies.
fn prepared(made: io::Result<()>) -> Attempt {
    match made {
        Ok(()) => held("prepared"),
        Err(error) => held(format_args!("not all of it: {error}")),
    }
}

/// Processes that go on after the job's end, as long as they are let, at most for seconds.
fn survivors(work: impl Fn()) -> io::Result<()> {
    let daemon = child(|| {
        ignore(setsid());
        ignore(child(|| {
            ignore_signals();
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_secs(5) {
                work();
            }
        }));
    });
    daemon.and_then(end_of).map(drop).map_err(Into::into)
}

pub(super) fn links(_: Role) -> Attempt {
    let targets =
        ["/etc/passwd", "/etc/shadow", "/proc/self/environ", "/dev/urandom", "/proc/1/cmdline", "."];
    prepared(result("result").and_then(|()| {
        symlink("result-loop", "result-loop")?;
        symlink("attack", "result-program")?;
        let mut pairs = targets.iter().zip(0..);
        pairs.try_for_each(|(target, number)| symlink(target, format!("result-{number}")))
    }))
}

pub(super) fn linked_parents(_: Role) -> Attempt {
    let made = || {
        fs::create_dir_all("result/deep")?;
        result("result/file")?;
        symlink("/etc", "result-etc")?;
        symlink("/", "result/root")?;
        symlink("../../../../../../etc", "result/deep/etc")?;
        symlink("result/root/etc", "result-nested")
    };
    prepared(made())
}

pub(super) fn swaps(_: Role) -> Attempt {
    let made = || {
        fs::create_dir_all("result/folder")?;
        result("result/plain")?;
        result("result/file")?;
        result("result/folder/hostname")?;
        symlink("/etc/passwd", "other-file")?;
        symlink("/etc", "other-folder")?;
        survivors(|| {
            ignore(exchange(c"result/file", c"other-file"));
            ignore(exchange(c"result/folder", c"other-folder"));
        })
    };
    prepared(made())
}

pub(super) fn no_files(_: Role) -> Attempt {
    let made = || {
        result("result")?;
        mkfifo("result-fifo", Mode::S_IRWXU)?;
        UnixListener::bind("result-socket").map(drop)
    };
    prepared(made())
}

/// More than may be copied, and nothing in it.
pub(super) fn is_sparse(_: Role) -> Attempt {
    ignore_signals();
    raise_limit(Resource::RLIMIT_FSIZE);
    let made = result("result").and_then(|()| {
        let file = File::create("result-sparse")?;
        result("result-sparse")?;
        file.set_len(1 << 40)
    });
    refused(made, "has a result of a terabyte")
}

pub(super) fn breathes(_: Role) -> Attempt {
    let made = || {
        result("result")?;
        let file = File::options().write(true).open("result")?;
        survivors(|| {
            ignore(file.set_len(1 << 20));
            ignore(file.set_len(INNOCENT.len() as u64));
        })
    };
    prepared(made())
}

pub(super) fn many(_: Role) -> Attempt {
    let name = "n".repeat(200);
    let made = || {
        fs::create_dir("result")?;
        (0..3000).try_for_each(|number| result(format!("result/{name}-{number}")))
    };
    prepared(made())
}

/// Far below what a path can name; back up by what the kernel still knows.
pub(super) fn deep(_: Role) -> Attempt {
    let made = || {
        fs::create_dir("result")?;
        result("result/file")?;
        std::env::set_current_dir("result")?;
        for _ in 0..1000 {
            fs::create_dir("directory")?;
            std::env::set_current_dir("directory")?;
        }
        result("bottom")
    };
    prepared(made())
}

pub(super) fn odd_names(_: Role) -> Attempt {
    const NAMES: [&[u8]; 12] = [
        b"new\nline",
        b"tab\tand\rreturn",
        b"quote'\"`$(id)",
        b"-rf",
        b"\xff\xfe\x80",
        b"\xe2\x80\xaeright-to-left",
        b"%00%2e%2e%2f",
        b"space ",
        b" ",
        b"\x1b[2J",
        b"..a",
        b"back\\slash*?[",
    ];
    let named = |name: &[u8]| {
        let text = [b"innocent: ", name].concat();
        fs::write(Path::new("result").join(OsStr::from_bytes(name)), text)
    };
    let made = || {
        fs::create_dir("result")?;
        NAMES.iter().try_for_each(|name| named(name))?;
        named(&[b'x'; 255])?;
        // Longer than a path may be at once.
        std::env::set_current_dir("result")?;
        for _ in 0..20 {
            fs::create_dir("y".repeat(255))?;
            std::env::set_current_dir("y".repeat(255))?;
        }
        result("end")
    };
    prepared(made())
}

fn set_mode(path: &str, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

pub(super) fn closed(_: Role) -> Attempt {
    let made = || {
        fs::create_dir_all("result/closed/below")?;
        result("result/file")?;
        result("result/closed/below/file")?;
        result("result/unreadable")?;
        attribute("result/file");
        set_mode("result/unreadable", 0)?;
        set_mode("result/closed/below", 0o1000)?;
        set_mode("result/closed", 0)?;
        // The directory of the job itself, which is what the next one must not meet.
        set_mode(".", 0o555)
    };
    prepared(made())
}

/// An attribute of everybody's kind; file systems without them refuse, and nothing is lost.
fn attribute(path: &str) {
    let name = std::ffi::CString::new(path).unwrap_or_default();
    // SAFETY: both names end with a NUL byte; the value is as long as is said.
    unsafe { libc::setxattr(name.as_ptr(), c"user.attack".as_ptr(), c"x".as_ptr().cast(), 1, 0) };
}

pub(super) fn special(_: Role) -> Attempt {
    const YEAR_2099: Duration = Duration::from_secs(4_070_908_800);
    let made = || {
        for (number, mode) in (0..).zip([0o4755, 0o2755, 0o6777, 0o1777, 0o666, 0o400]) {
            let path = format!("result-{number}");
            result(&path)?;
            attribute(&path);
            let times = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + YEAR_2099);
            File::options().write(true).open(&path)?.set_times(times)?;
            set_mode(&path, mode)?;
        }
        Ok(())
    };
    prepared(made())
}

/// The names that those who copy, in and out, use for themselves, and usual ones of other drivers.
pub(super) fn plants(_: Role) -> Attempt {
    const PART: &str = ".autodriver.part";
    let made = || {
        fs::create_dir_all(format!("result/{PART}"))?;
        result(format!("result/{PART}/file"))?;
        fs::create_dir("result/other")?;
        result(format!("result/other/{PART}"))?;
        result("result/other/zzz")?;
        symlink("/etc/passwd", PART)?;
        result("result/zzz")?;
        ["output.log", "run.sh", "feedback", "job.json"]
            .iter()
            .try_for_each(|name| symlink("/etc/passwd", name))
    };
    prepared(made())
}
