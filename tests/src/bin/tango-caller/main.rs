//! A caller of the Tango form who is not to be trusted: becomes an ordinary user of a container, sets up what a
//! process hands on across execve(2) as it should not be, and executes the program.
//!
//! `tango-caller UID GID[,GROUP...] [ACT...] -- PROGRAM [ARG...]`; exits with 98 if an act cannot be done.

mod acts;

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use nix::unistd::{execve, setgid, setgroups, setuid, Gid, Uid};

/// The capabilities of `docker run`: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP; the others are not to be had again.
const DOCKER: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
/// More than any kernel has.
const CAPABILITIES: u32 = 64;

fn main() -> ExitCode {
    match call() {
        Ok(never) => match never {},
        Err(why) => {
            let text = format!("tango-caller: {why}\n");
            let _ = nix::unistd::write(std::io::stderr(), text.as_bytes());
            ExitCode::from(98)
        }
    }
}

fn call() -> Result<std::convert::Infallible, String> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let at = words.iter().position(|word| word == "--").ok_or("no program")?;
    let text = |word: &OsString| word.to_str().map(str::to_owned).ok_or("bad word");
    let asked = words[..at].iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let [uid, gid, acts @ ..] = asked.as_slice() else { return Err("who?".into()) };
    let (acts, whole): (Vec<&str>, Vec<&str>) =
        acts.iter().map(String::as_str).partition(|act| *act != "every-capability");
    if whole.is_empty() {
        drop_capabilities();
    }
    become_user(uid, gid)?;
    let c_string = |word: OsString| CString::new(word.into_vec()).map_err(|error| error.to_string());
    let program: Vec<CString> = words[at + 1..].iter().cloned().map(c_string).collect::<Result<_, _>>()?;
    let path = program.first().cloned().ok_or("no program")?;
    let mut call = acts::Call { arguments: program, environment: Vec::new() };
    for act in acts {
        call.act(act).map_err(|why| format!("{act}: {why}"))?;
    }
    execve(&path, &call.arguments, &call.environment).map_err(|errno| errno.to_string())
}

fn drop_capabilities() {
    for capability in (0..CAPABILITIES).filter(|capability| !DOCKER.contains(capability)) {
        // SAFETY: takes a number; what the kernel does not know, or is gone already, is refused.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    }
}

fn become_user(uid: &str, gid: &str) -> Result<(), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|error| error.to_string());
    let groups = gid.split(',').map(|gid| number(gid).map(Gid::from_raw)).collect::<Result<Vec<_>, _>>()?;
    let first = *groups.first().ok_or("no gid")?;
    setgroups(&groups[1..]).map_err(|errno| errno.to_string())?;
    setgid(first).map_err(|errno| errno.to_string())?;
    setuid(Uid::from_raw(number(uid)?)).map_err(|errno| errno.to_string())
}
