//! Programs that have more rights than who starts them.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::unistd::{geteuid, pipe, write, Pid};

use crate::tools::{broke, held, ignore, put_down, sleep_ms, Attempt, Role};

const PLACES: [&str; 6] = ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/lib/openssh"];
const SETUID: u32 = 0o4000;

/// Starts each with `--help`, which it cannot print: so it stays as long as it takes to look at it.
pub(super) fn runs_setuid(_: Role) -> Attempt {
    let programs = programs();
    for program in &programs {
        match euid_of(program) {
            Ok(Some(0)) => return broke(format_args!("{} runs as root", program.display())),
            Ok(_) => {}
            Err(error) => return held(format_args!("{}: {error}", program.display())),
        }
    }
    held(format_args!("{} setuid programs, none of which is root's", programs.len()))
}

fn programs() -> Vec<PathBuf> {
    let entries = PLACES.iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    let is_setuid = |path: &PathBuf| {
        let data = fs::symlink_metadata(path);
        data.is_ok_and(|data| data.is_file() && data.uid() == 0 && data.mode() & SETUID != 0)
    };
    entries.map(|entry| entry.path()).filter(is_setuid).collect()
}

/// The effective uid of such a program, if it could be looked at.
fn euid_of(program: &PathBuf) -> Result<Option<u32>, std::io::Error> {
    let (reader, writer) = pipe()?;
    fill(&writer)?;
    let own = geteuid().as_raw();
    let child = Command::new(program)
        .arg("--help")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn();
    let child = match child {
        Ok(child) => child,
        // Programs of other groups, or an empty image.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => return Err(error),
    };
    let pid = i32::try_from(child.id()).unwrap_or(0);
    let mut seen = None;
    for _ in 0..20 {
        sleep_ms(5);
        let Some(euid) = effective_uid(pid) else { break };
        seen = Some(euid);
        if euid != own {
            break;
        }
    }
    put_down(&[Pid::from_raw(pid)]);
    drop(reader);
    Ok(seen)
}

fn fill(pipe: &(impl AsRawFd + std::os::fd::AsFd)) -> nix::Result<()> {
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    loop {
        match write(pipe, &[0; 4096]) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error),
        }
    }
    ignore(fcntl(pipe, FcntlArg::F_SETFL(OFlag::empty())));
    Ok(())
}

fn effective_uid(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:\t"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}
