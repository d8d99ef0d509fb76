//! Who the job is and what it was given: ids, capabilities, descriptors, environment, limits.

use std::{env, fs};

use nix::errno::Errno;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::unistd::{getegid, geteuid, setgid, setgroups, setuid, Gid, Uid};

use crate::answer::{raw, say, Answer};

pub(crate) fn attempt(words: &[&str]) -> Option<Answer> {
    Some(match words {
        ["ids"] => Ok(format!("{} {}", geteuid(), getegid())),
        ["status", field] => status(field),
        ["securebits"] => securebits(),
        ["become-root"] => setuid(Uid::from_raw(0)).map(|()| String::new()),
        ["become-root-group"] => setgid(Gid::from_raw(0)).map(|()| String::new()),
        ["become-root-saved"] => raw(call(libc::SYS_setresuid, [u64::MAX, 0, u64::MAX])),
        ["join-groups"] => setgroups(&[Gid::from_raw(0)]).map(|()| String::new()),
        ["raise-ambient"] => raw(call(libc::SYS_prctl, [47, 2, 0])),
        ["descriptors"] => descriptors(),
        ["environment"] => environment(),
        ["limits"] => limits(),
        ["raise-limits"] => raise_limits(),
        ["account"] => account(),
        ["hostname"] => nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()),
        _ => return None,
    })
}

fn call(number: libc::c_long, args: [u64; 3]) -> libc::c_long {
    // SAFETY: only calls that take plain numbers are made this way.
    unsafe { libc::syscall(number, args[0], args[1], args[2], 0, 0) }
}

fn status(field: &str) -> Answer {
    let status = fs::read_to_string("/proc/self/status").map_err(|_| Errno::EIO)?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).ok_or(Errno::ENODATA)
}

fn securebits() -> Answer {
    const PR_GET_SECUREBITS: u64 = 27;
    let bits = Errno::result(call(libc::SYS_prctl, [PR_GET_SECUREBITS, 0, 0]))?;
    Ok(format!("{bits:#x}"))
}

/// The open descriptors without the one that reads the list, and where each leads.
fn descriptors() -> Answer {
    let entries = fs::read_dir("/proc/self/fd").map_err(|_| Errno::EIO)?;
    let links = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        let kind = target.split(':').next().unwrap_or_default().to_owned();
        (!kind.ends_with("/fd")).then_some((number, kind))
    });
    let mut links: Vec<_> = links.collect();
    links.sort();
    Ok(links.iter().map(|(number, kind)| format!("{number}={kind}")).collect::<Vec<_>>().join(" "))
}

fn environment() -> Answer {
    let mut all: Vec<_> = env::vars_os().collect();
    all.sort();
    for (name, value) in all {
        say(&format!("{}={}", name.to_string_lossy(), value.to_string_lossy()));
    }
    Ok(String::new())
}

const LIMITS: [(&str, Resource); 15] = [
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

fn limits() -> Answer {
    let shown = |value: u64| if value == libc::RLIM_INFINITY { "none".to_owned() } else { value.to_string() };
    for (name, resource) in LIMITS {
        let (soft, hard) = getrlimit(resource)?;
        say(&format!("{name} {} {}", shown(soft), shown(hard)));
    }
    Ok(String::new())
}

/// For each limit: what raising it by one gives.
fn raise_limits() -> Answer {
    for (name, resource) in LIMITS {
        let (_, hard) = getrlimit(resource)?;
        if hard != libc::RLIM_INFINITY {
            let result = setrlimit(resource, hard + 1, hard + 1);
            say(&format!("{name} {}", result.err().map_or("ok".to_owned(), |errno| format!("{errno:?}"))));
        }
    }
    Ok(String::new())
}

/// The passwd and group entries of our own ids, as getpwuid and getgrgid find them.
fn account() -> Answer {
    let find = |file: &str, id: u32| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let own = text.lines().find(|line| line.split(':').nth(2) == Some(&id.to_string()));
        own.map_or_else(|| format!("nothing in {file}"), str::to_owned)
    };
    say(&find("/etc/passwd", geteuid().as_raw()));
    say(&find("/etc/group", getegid().as_raw()));
    Ok(String::new())
}
