//! The jobs that faults are injected into: each with what is right to say of it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use autodriver_protocol::Cause;
use nix::errno::Errno;
use tempfile::TempDir;

use crate::autodriver;

/// A job.
#[derive(Debug)]
pub(super) struct Variant {
    /// What it is called.
    pub(super) name: &'static str,
    /// More options of `run`.
    options: &'static [&'static str],
    /// What its shell does.
    script: &'static str,
    /// The driver has no CAP_SYS_ADMIN, as in a container, and makes do with substitutes.
    contained: bool,
    /// The right verdict.
    pub(super) cause: Cause,
    /// With this status.
    pub(super) exit_code: Option<i32>,
    /// All of its output.
    pub(super) stdout: &'static str,
    /// What it leaves in the file `result`, which is fetched.
    pub(super) result: &'static str,
}

const GIVEN: &str = "forty-two\n";
const EXITS: &str = "read line <given; echo got $line; echo made of $line >result; exit 3";

/// All of them.
pub(super) const VARIANTS: &[Variant] = &[
    Variant {
        name: "exits",
        options: &[],
        script: EXITS,
        contained: false,
        cause: Cause::Exited,
        exit_code: Some(3),
        stdout: "got forty-two\n",
        result: "made of forty-two\n",
    },
    Variant {
        name: "wall",
        options: &["--wall", "300ms", "--grace", "50ms", "--split"],
        script: "trap '' TERM; echo begun; echo begun >result; while :; do sleep 5; done",
        contained: false,
        cause: Cause::WallLimit,
        exit_code: None,
        stdout: "begun\n",
        result: "begun\n",
    },
    Variant {
        name: "contained",
        options: &[],
        script: EXITS,
        contained: true,
        cause: Cause::Exited,
        exit_code: Some(3),
        stdout: "got forty-two\n",
        result: "made of forty-two\n",
    },
];

/// Where a run has its files.
#[derive(Debug)]
pub(super) struct Folder {
    folder: TempDir,
    options: Vec<OsString>,
    contained: bool,
}

impl Variant {
    /// Files for one run.
    ///
    /// # Errors
    /// Those of making them.
    pub(super) fn folder(&self) -> io::Result<Folder> {
        let folder = TempDir::with_prefix("e2e-")?;
        let path = |name: &str| folder.path().join(name);
        fs::write(path("given"), GIVEN)?;
        let mut options: Vec<OsString> = vec!["run".into(), "--report".into()];
        options.push(path("report").into());
        options.extend(["--in".into(), path("given").into()]);
        let mut out = OsString::from("result:");
        out.push(path("result"));
        options.extend(["--out".into(), out]);
        options.extend(self.options.iter().map(OsString::from));
        options.extend(["--", "/bin/sh", "-c", self.script].map(OsString::from));
        Ok(Folder { folder, options, contained: self.contained })
    }
}

impl Folder {
    /// The driver to run.
    pub(super) fn command(&mut self) -> Command {
        let mut command = Command::new(autodriver());
        command.args(&self.options).stdin(Stdio::null());
        if self.contained {
            // SAFETY: between fork and exec only system calls are made.
            unsafe { command.pre_exec(|| without_admin().map_err(io::Error::from)) };
        }
        command
    }

    /// A file of the run; empty if there is none.
    pub(super) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Takes CAP_SYS_ADMIN away for good, as an engine of containers does.
fn without_admin() -> nix::Result<()> {
    const PR_CAPBSET_DROP: libc::c_int = 24;
    const CAP_SYS_ADMIN: libc::c_ulong = 21;
    // SAFETY: the call takes numbers. At execve(2), root's capabilities are those of the bounding set.
    Errno::result(unsafe { libc::prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) }).map(drop)
}
