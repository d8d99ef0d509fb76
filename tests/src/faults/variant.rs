//! The jobs that faults are injected into: each with what is right to say of it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use autodriver_protocol::Cause;
use nix::errno::Errno;
use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};
use tempfile::TempDir;

use super::client::Order;
use crate::autodriver;

/// What the driver has to make its boxes of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// All that root has.
    Machine,
    /// No CAP_SYS_ADMIN: no mounts, no namespaces.
    WithoutAdmin,
    /// Nor cgroups, as in a default container: the driver samples.
    Container,
}

/// What is copied in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    /// `given`, and `result`.
    One,
    /// The directory `given.d` as `in`, and what is in the job's `out`.
    Tree,
}

/// A job.
#[derive(Debug)]
pub(super) struct Variant {
    /// What it is called.
    pub(super) name: &'static str,
    /// More options of `run`.
    options: &'static [&'static str],
    /// What its shell does.
    script: &'static str,
    /// Where it runs.
    pub(super) place: Place,
    files: Files,
    /// Over the wire, twice on one connection: with `serve`, not `run`.
    pub(super) served: bool,
    /// The right verdict.
    pub(super) cause: Cause,
    /// With this status.
    pub(super) exit_code: Option<i32>,
    /// With this signal.
    pub(super) signal: Option<i32>,
    /// The limits that it runs into.
    pub(super) limits_hit: &'static [&'static str],
    /// All of its output.
    pub(super) stdout: &'static str,
    /// What it leaves in its file that is fetched.
    pub(super) result: &'static str,
}

const GIVEN: &str = "forty-two\n";
/// A script that says first whether Landlock keeps it from listing `/`.
macro_rules! closed {
    ($script:literal) => {
        concat!("set -- /*; [ \"$1\" = '/*' ] && echo closed || echo open; ", $script)
    };
}

/// Exits with 3, with one file in and one out.
const EXITS: Variant = Variant {
    name: "exits",
    options: &[],
    script: "read line <given; echo got $line; echo made of $line >result; exit 3",
    place: Place::Machine,
    files: Files::One,
    served: false,
    cause: Cause::Exited,
    exit_code: Some(3),
    signal: None,
    limits_hit: &[],
    stdout: "got forty-two\n",
    result: "made of forty-two\n",
};

/// Says and writes `begun`, and runs into a limit.
const LIMITED: Variant = Variant { exit_code: None, stdout: "begun\n", result: "begun\n", ..EXITS };

/// All of them.
pub(super) const VARIANTS: &[Variant] = &[
    EXITS,
    Variant {
        name: "tree",
        script: "read line <in/a; mkdir out; echo made of $line >out/a; echo b >out/b; echo got $line",
        files: Files::Tree,
        exit_code: Some(0),
        ..EXITS
    },
    Variant { name: "served", served: true, ..EXITS },
    Variant {
        name: "signal",
        script: "echo begun | tee result; kill -KILL $$",
        cause: Cause::Signaled,
        signal: Some(libc::SIGKILL),
        ..LIMITED
    },
    Variant {
        name: "wall",
        options: &["--wall", "900ms", "--grace", "50ms", "--split"],
        script: "trap '' TERM; echo begun; echo begun >result; while :; do sleep 5; done",
        cause: Cause::WallLimit,
        limits_hit: &["wall"],
        ..LIMITED
    },
    Variant {
        name: "memory",
        options: &["--memory", "16M", "--disk", "4M"],
        // The shell says of the others when the kernel kills one of them first.
        script:
            "exec 2>/dev/null; echo begun | tee result; x=$(head -c 60000000 /dev/zero | tr '\\0' x); sleep 9",
        cause: Cause::MemoryLimit,
        limits_hit: &["memory"],
        ..LIMITED
    },
    Variant {
        name: "disk",
        options: &["--disk", "4M"],
        script: "echo begun | tee result; head -c 60000000 /dev/zero >big 2>/dev/null",
        cause: Cause::DiskLimit,
        limits_hit: &["disk"],
        ..LIMITED
    },
    Variant {
        name: "contained",
        script: closed!("read line <given; echo got $line; echo made of $line >result; exit 3"),
        place: Place::WithoutAdmin,
        stdout: "closed\ngot forty-two\n",
        ..EXITS
    },
    Variant {
        name: "sampled",
        options: &["--memory", "16M", "--disk", "4M"],
        script: closed!("echo begun | tee result; x=$(head -c 60000000 /dev/zero | tr '\\0' x); sleep 9"),
        place: Place::Container,
        cause: Cause::MemoryLimit,
        limits_hit: &["memory"],
        stdout: "closed\nbegun\n",
        ..LIMITED
    },
];

/// Where a run has its files.
#[derive(Debug)]
pub(super) struct Folder {
    folder: TempDir,
    options: Vec<OsString>,
    place: Place,
    result: &'static str,
    order: Option<Order>,
}

impl Variant {
    /// Files for one run.
    ///
    /// # Errors
    /// Those of making them.
    pub(super) fn folder(&self) -> io::Result<Folder> {
        let folder = TempDir::with_prefix("e2e-")?;
        let path = |name: &str| folder.path().join(name).into_os_string();
        let pair = |one: OsString, two: OsString| [one, ":".into(), two].into_iter().collect::<OsString>();
        let (input, output, result) = match self.files {
            Files::One => {
                fs::write(path("given"), GIVEN)?;
                (path("given"), pair("result".into(), path("result")), "result")
            }
            Files::Tree => {
                fs::create_dir(path("given.d"))?;
                fs::write(path("given.d/a"), GIVEN)?;
                (pair(path("given.d"), "in".into()), pair("out/*".into(), path("results/")), "results/out/a")
            }
        };
        if self.served {
            let order = Order { given: ("given", GIVEN), script: self.script, result };
            let options = vec!["serve".into()];
            return Ok(Folder { folder, options, place: self.place, result, order: Some(order) });
        }
        let mut options: Vec<OsString> = vec!["run".into(), "--report".into(), path("report")];
        options.extend(["--in".into(), input, "--out".into(), output]);
        options.extend(self.options.iter().map(OsString::from));
        options.extend(["--", "/bin/sh", "-c", self.script].map(OsString::from));
        Ok(Folder { folder, options, place: self.place, result, order: None })
    }
}

impl Folder {
    /// The driver to run.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(autodriver());
        command.args(&self.options);
        let place = self.place;
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(move || enter(place).map_err(io::Error::from)) };
        command
    }

    /// What a host wants of it, where it serves.
    pub(super) fn order(&self) -> Option<&Order> {
        self.order.as_ref()
    }

    /// The report; empty if there is none.
    pub(super) fn report(&self) -> Vec<u8> {
        self.read("report")
    }

    /// The file that was fetched; empty if there is none.
    pub(super) fn result(&self) -> Vec<u8> {
        self.read(self.result)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let path: PathBuf = self.folder.path().join(name);
        fs::read(path).unwrap_or_default()
    }
}

/// Hides or takes away what a place does not have, for good.
fn enter(place: Place) -> nix::Result<()> {
    const PR_CAPBSET_DROP: libc::c_int = 24;
    const CAP_SYS_ADMIN: libc::c_ulong = 21;
    let none = None::<&str>;
    if place == Place::Container {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("none"), "/sys/fs/cgroup", Some("tmpfs"), MsFlags::MS_RDONLY, none)?;
    }
    if place != Place::Machine {
        // SAFETY: the call takes numbers. At execve(2), root's capabilities are those of the bounding set.
        Errno::result(unsafe { libc::prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) })?;
    }
    Ok(())
}
