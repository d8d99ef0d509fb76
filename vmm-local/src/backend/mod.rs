//! How to make and destroy a machine, and how to get a stdin and a stdout on it; nothing else.
//! What is said over them is [`crate::session`]'s business.

mod peer;
mod program;
mod owner;
mod process;
mod exec;
mod docker;
mod ssh;
mod qemu;
mod slurm;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use autodriver_protocol::units::Size;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use docker::{Docker, DockerOptions};
pub use exec::{Exec, ExecOptions};
pub use qemu::{Qemu, QemuOptions};
pub use slurm::{Slurm, SlurmOptions};
pub use ssh::{Ssh, SshOptions};

use owner::Owner;
pub use peer::{Ending, Peer};
pub use process::Process;

/// The name of a machine: 1 to 64 of `A-Z a-z 0-9 . _ -`, not starting with `.` or `-`, so
/// that it is a file name, a container name and a host name label without quoting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl FromStr for Name {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Name, BackendError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if !starts_well || text.len() > 64 || !text.bytes().all(legal) {
            return Err(BackendError(format!(
                "'{}' is not a machine name; use 1 to 64 letters, digits, '.', '_' and '-', not starting with '.' or '-'",
                text.escape_debug()
            )));
        }
        Ok(Name(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for Name {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

/// Why a machine could not be made, reached or destroyed: one sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError(pub String);

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BackendError {}

/// A way to have machines.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Makes the machine, or begins to: [`Backend::connect`] may fail until it is up.
    ///
    /// # Errors
    /// What is missing and what to do about it.
    fn create(&self, machine: &Name) -> Result<(), BackendError>;

    /// Starts an `autodriver serve` on the machine; its stdin and stdout are the wire. Each
    /// call is a connection of its own.
    ///
    /// # Errors
    /// What could not be started. A machine that cannot be reached shows later, as a
    /// connection that ends without a signature.
    fn connect(&self, machine: &Name) -> Result<Peer, BackendError>;

    /// Destroys the machine, whatever runs on it. A machine that is not there is destroyed.
    ///
    /// # Errors
    /// What could not be removed.
    fn destroy(&self, machine: &Name) -> Result<(), BackendError>;
}

/// The SHA-256 of some bytes, in hexadecimal digits.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of memory of a machine, if nothing else is said: for a few jobs of the default 512M.
const MEMORY: u64 = 2 << 30;

/// Which backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The machine is this one: `autodriver serve` as a child process.
    #[default]
    Process,
    /// A container for each machine.
    Docker,
    /// A host that one can log in to.
    Ssh,
    /// A virtual machine for each connection.
    Qemu,
    /// A step on a cluster.
    Slurm,
    /// Any command that starts an `autodriver serve` somewhere.
    Exec,
}

/// The options that choose and configure a backend.
#[derive(Clone, Debug, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct BackendOptions {
    /// How to get machines; process: this machine
    #[arg(long, value_enum, default_value = "process", value_name = "process|docker|ssh|qemu|slurm|exec")]
    pub backend: Kind,
    /// The autodriver to start, or to put on the machine (default: beside this program, or in PATH)
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autodriver: Option<PathBuf>,
    /// docker, qemu, slurm: memory of the machine, all its jobs and autodrivers together (default: 2G)
    #[arg(long, value_name = "B")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_memory: Option<Size>,
    /// docker, qemu, slurm: processors of the machine (default: docker: all; else 1)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_cpus: Option<u16>,
    /// Of [`Kind::Docker`].
    #[command(flatten)]
    #[serde(default)]
    pub docker: DockerOptions,
    /// Of [`Kind::Ssh`].
    #[command(flatten)]
    #[serde(default)]
    pub ssh: SshOptions,
    /// Of [`Kind::Qemu`].
    #[command(flatten)]
    #[serde(default)]
    pub qemu: QemuOptions,
    /// Of [`Kind::Slurm`].
    #[command(flatten)]
    #[serde(default)]
    pub slurm: SlurmOptions,
    /// Of [`Kind::Exec`].
    #[command(flatten)]
    #[serde(default)]
    pub exec: ExecOptions,
}

impl BackendOptions {
    /// The backend, for machines that end with this process. What it needs is looked for when it is needed.
    pub fn build(&self) -> Box<dyn Backend> {
        self.build_for(Owner::this_process())
    }

    /// The backend, for machines that are kept in the directory `root`, by their names.
    pub fn build_kept(&self, root: &Path) -> Box<dyn Backend> {
        self.build_for(Owner::kept(root))
    }

    /// Makes them mean the same in another directory, and in another shell.
    pub fn settle(&mut self) {
        let qemu = &mut self.qemu;
        let files = [&mut self.autodriver, &mut qemu.kernel, &mut qemu.initramfs, &mut qemu.root_disk];
        for file in files.into_iter().flatten() {
            *file = file.canonicalize().unwrap_or_else(|_| file.clone());
        }
        if self.backend == Kind::Slurm {
            self.slurm.settle();
        }
    }

    fn build_for(&self, owner: Owner) -> Box<dyn Backend> {
        let process = Process::new(self.autodriver.clone());
        let memory = self.machine_memory.map_or(MEMORY, |size| size.0);
        match self.backend {
            Kind::Process => Box::new(process),
            Kind::Docker => {
                Box::new(Docker::new(self.docker.clone(), memory, self.machine_cpus, process, owner))
            }
            Kind::Ssh => Box::new(Ssh::new(self.ssh.clone(), process)),
            Kind::Qemu => Box::new(Qemu::new(self.qemu.clone(), memory, self.machine_cpus.unwrap_or(1))),
            Kind::Slurm => {
                let cpus = self.machine_cpus.unwrap_or(1);
                Box::new(Slurm::new(self.slurm.clone(), memory, cpus, process, owner))
            }
            Kind::Exec => Box::new(Exec::new(self.exec.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_names_need_no_quoting_anywhere() {
        for name in ["a", "prod-1234-image_x", "_x", "0.1", &"n".repeat(64)] {
            assert!(name.parse::<Name>().is_ok(), "{name}");
        }
        for name in ["", ".", "..", "-rf", ".x", "a/b", "a b", "ä", "a\n", &"n".repeat(65)] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
    }
}
