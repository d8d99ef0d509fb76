//! Whose a machine is that outlives the program which made it: what is written on the machine, so that
//! the next program can tell an orphan from a machine in use.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{sha256, Name};

/// As long as whom a machine lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A process of this boot, and when it started (clock ticks after boot, proc(5)).
    Process { pid: u32, started: u64, boot: String },
    /// A directory of kept machines: as long as it has one of that name.
    Kept(String),
}

impl Owner {
    /// This process.
    pub(super) fn this_process() -> Owner {
        let pid = std::process::id();
        Owner::Process { pid, started: started(pid).unwrap_or(0), boot: boot() }
    }

    /// Who keeps machines in the directory `root`.
    pub(super) fn kept(root: &Path) -> Owner {
        Owner::Kept(root.to_string_lossy().into_owned())
    }

    /// Whether a machine has nobody any more. What cannot be seen is not gone: another user's processes may be
    /// hidden (hidepid of proc(5)), and directories closed.
    pub(super) fn has_left(&self, machine: &Name) -> bool {
        match self {
            Owner::Process { pid, started: at, boot: of } => {
                *of != boot()
                    || match started(*pid) {
                        Some(now) => now != *at,
                        None => is_gone(*pid),
                    }
            }
            Owner::Kept(root) => {
                let root = Path::new(root);
                root.is_dir() && matches!(root.join(machine).try_exists(), Ok(false))
            }
        }
    }

    /// What tells machines of the same name apart: eight hexadecimal digits, the same for the same owner.
    pub(super) fn tag(&self) -> String {
        let text = format!("{} {}", host(), self.text());
        sha256(text.as_bytes())[..8].to_owned()
    }

    /// As it is written on a machine.
    pub(super) fn text(&self) -> String {
        match self {
            Owner::Process { pid, started, boot } => format!("process {pid} {started} {boot}"),
            Owner::Kept(root) => format!("kept {root}"),
        }
    }

    /// What [`Owner::text`] wrote; `None` for anything else, which is nobody's to remove.
    pub(super) fn parse(text: &str) -> Option<Owner> {
        if let Some(root) = text.strip_prefix("kept ") {
            return Some(Owner::Kept(root.to_owned()));
        }
        let mut words = text.strip_prefix("process ")?.split(' ');
        let (pid, started) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Owner::Process { pid, started, boot: words.next()?.to_owned() })
    }
}

/// The PID namespace that a machine starts with: PROC_PID_INIT_INO of the kernel.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// Among whom process numbers and paths mean the same, as an engine that serves several of them is told: this host
/// (machine-id(5)), or, in a container, whose machine-id may be its image's, those in the same PID namespace.
pub(super) fn host() -> String {
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default().to_string_lossy().into_owned();
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    match id.trim() {
        id if namespace == FIRST_NAMESPACE && !id.is_empty() => id.to_owned(),
        _ => format!("{} {namespace}", boot()),
    }
}

/// Whether there is no process of this number, which kill(2) says even of those that are hidden.
fn is_gone(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| pid > 0 && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH))
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// When a process started; `None` if there is none.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain anything; the start is field 22.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_lives_has_not_left_and_what_is_written_reads_back() {
        let machine = "m".parse().unwrap();
        let owner = Owner::this_process();
        assert!(!owner.has_left(&machine));
        assert_eq!(Owner::parse(&owner.text()), Some(owner.clone()));
        let Owner::Process { pid, started, boot } = owner else { panic!() };
        assert!(
            Owner::Process { pid, started: started + 1, boot: boot.clone() }.has_left(&machine),
            "another one"
        );
        assert!(Owner::Process { pid, started, boot: "earlier".to_owned() }.has_left(&machine));
    }

    #[test]
    fn a_kept_machine_lives_as_long_as_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let machine: Name = "m".parse().unwrap();
        let owner = Owner::kept(root.path());
        assert!(owner.has_left(&machine));
        assert!(!Owner::kept(Path::new("/nowhere/at/all")).has_left(&machine), "who knows");
        assert!(owner.tag() == owner.tag() && owner.tag() != Owner::this_process().tag());
        fs::create_dir(root.path().join(&machine)).unwrap();
        assert!(!owner.has_left(&machine));
        assert_eq!(Owner::parse(&owner.text()), Some(owner));
        assert_eq!(Owner::parse("somebody else's"), None);
    }
}
