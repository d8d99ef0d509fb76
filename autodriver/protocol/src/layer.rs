//! The layers of the sandbox, by name, in the order in which every report lists them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One layer: one thing that is taken from the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Root: an own uid and gid for each running job, no groups, no capability.
    Identity,
    /// Setuid and file-capability programs.
    NoNewPrivs,
    /// Life after the job: everything it started dies with it.
    ProcessTree,
    /// The sight of, and signals to, other processes.
    PidNamespace,
    /// The machine's files.
    MountNamespace,
    /// The network.
    NetworkNamespace,
    /// Shared memory and queues of others.
    IpcNamespace,
    /// The machine's host name.
    UtsNamespace,
    /// The sight of the machine's cgroup tree.
    CgroupNamespace,
    /// More than its share of memory.
    Memory,
    /// More than its share of the process table.
    Pids,
    /// More than its share of the processors.
    Cpu,
    /// Filling the disk or the inode table.
    Disk,
    /// Whatever setrlimit(2) limits.
    Rlimits,
    /// Paths, TCP ports, abstract sockets and signals outside the job.
    Landlock,
    /// System calls outside the allow-list, dangerous arguments, foreign ABIs.
    Seccomp,
}

impl Layer {
    /// Every layer, in the order of the report.
    pub const ALL: [Layer; 16] = [
        Layer::Identity,
        Layer::NoNewPrivs,
        Layer::ProcessTree,
        Layer::PidNamespace,
        Layer::MountNamespace,
        Layer::NetworkNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::CgroupNamespace,
        Layer::Memory,
        Layer::Pids,
        Layer::Cpu,
        Layer::Disk,
        Layer::Rlimits,
        Layer::Landlock,
        Layer::Seccomp,
    ];

    /// What a job runs with at the very least, unless a layer is skipped by name. (A wall
    /// clock belongs to it too; every job has one.)
    pub const MINIMUM: [Layer; 5] =
        [Layer::Identity, Layer::NoNewPrivs, Layer::ProcessTree, Layer::Rlimits, Layer::Seccomp];

    /// The name used on the command line, in job documents and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Identity => "identity",
            Layer::NoNewPrivs => "no-new-privs",
            Layer::ProcessTree => "process-tree",
            Layer::PidNamespace => "pid-namespace",
            Layer::MountNamespace => "mount-namespace",
            Layer::NetworkNamespace => "network-namespace",
            Layer::IpcNamespace => "ipc-namespace",
            Layer::UtsNamespace => "uts-namespace",
            Layer::CgroupNamespace => "cgroup-namespace",
            Layer::Memory => "memory",
            Layer::Pids => "pids",
            Layer::Cpu => "cpu",
            Layer::Disk => "disk",
            Layer::Rlimits => "rlimits",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
        }
    }

    /// What the layer takes from the job; the middle column of the README's table.
    pub fn takes(self) -> &'static str {
        match self {
            Layer::Identity => "root: own uid and gid per running job, no groups, no capability in any set, securebits locked",
            Layer::NoNewPrivs => "setuid and file-capability programs",
            Layer::ProcessTree => "life after the job: everything it started dies with it",
            Layer::PidNamespace => "the sight of, and signals to, other processes",
            Layer::MountNamespace => "the machine's files: read-only root, private /tmp /var/tmp /dev/shm /proc /dev, own home",
            Layer::NetworkNamespace => "the network",
            Layer::IpcNamespace => "shared memory, semaphores and message queues of others",
            Layer::UtsNamespace => "the machine's host name",
            Layer::CgroupNamespace => "the sight of the machine's cgroup tree",
            Layer::Memory => "more memory than its share, swap included",
            Layer::Pids => "more processes and threads than its share",
            Layer::Cpu => "more CPU than its share, and hiding CPU time",
            Layer::Disk => "filling the disk or the inode table",
            Layer::Rlimits => "per-process limits",
            Layer::Landlock => "paths, TCP ports, abstract sockets and signals outside the job",
            Layer::Seccomp => "system calls outside the allow-list, dangerous arguments, foreign ABIs",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a layer name was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownLayer(String);

impl fmt::Display for UnknownLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is not a layer; the layers are", self.0)?;
        Layer::ALL.iter().try_for_each(|layer| write!(f, " {layer}"))
    }
}

impl std::error::Error for UnknownLayer {}

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(text: &str) -> Result<Self, UnknownLayer> {
        let known = Layer::ALL.into_iter().find(|layer| layer.name() == text);
        known.ok_or_else(|| UnknownLayer(text.to_owned()))
    }
}

/// A word of `--require`: a layer, or a named set of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Requirement {
    /// [`Layer::MINIMUM`].
    Minimum,
    /// [`Layer::ALL`].
    All,
    /// One layer.
    One(Layer),
}

impl Requirement {
    /// The layers that this word stands for.
    pub fn layers(self) -> Vec<Layer> {
        match self {
            Requirement::Minimum => Layer::MINIMUM.to_vec(),
            Requirement::All => Layer::ALL.to_vec(),
            Requirement::One(layer) => vec![layer],
        }
    }
}

impl FromStr for Requirement {
    type Err = UnknownLayer;

    fn from_str(text: &str) -> Result<Self, UnknownLayer> {
        match text {
            "minimum" => Ok(Requirement::Minimum),
            "all" => Ok(Requirement::All),
            name => name.parse().map(Requirement::One),
        }
    }
}

impl TryFrom<String> for Requirement {
    type Error = UnknownLayer;

    fn try_from(text: String) -> Result<Self, UnknownLayer> {
        text.parse()
    }
}

impl From<Requirement> for String {
    fn from(requirement: Requirement) -> String {
        match requirement {
            Requirement::Minimum => "minimum".to_owned(),
            Requirement::All => "all".to_owned(),
            Requirement::One(layer) => layer.name().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_equals_its_json_form() {
        for layer in Layer::ALL {
            assert_eq!(layer.name().parse(), Ok(layer));
            assert_eq!(serde_json::to_value(layer).unwrap(), layer.name());
        }
    }

    #[test]
    fn an_unknown_layer_is_named_with_the_known_ones() {
        let error = "firewall".parse::<Layer>().unwrap_err().to_string();
        assert!(error.starts_with("'firewall' is not a layer") && error.ends_with("seccomp"));
    }
}
