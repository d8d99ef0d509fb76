//! The form of a description: what `explain --json` prints, field by field.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{landlock, seccomp};

/// A sandbox, not made.
#[derive(Debug, Serialize)]
pub struct Sandbox {
    /// Who the job is.
    pub identity: Identity,
    /// The namespaces it does not share with the driver, by their names in /proc/PID/ns.
    pub namespaces: Vec<&'static str>,
    /// Its host name; the machine's where there is none here.
    pub hostname: Option<String>,
    /// What it can reach: `loopback`, or `host`.
    pub network: &'static str,
    /// The file system it sees; the machine's where there is none here.
    pub root: Option<Root>,
    /// What it may write, in everything that is writable, beyond what is put there for it.
    pub storage: Storage,
    /// Its cgroup, one directory for each hierarchy.
    pub cgroup: Vec<Directory>,
    /// setrlimit(2), in this order.
    pub rlimits: Vec<Rlimit>,
    /// Paths, ports and scopes.
    pub landlock: Option<landlock::Described>,
    /// System calls.
    pub seccomp: Option<seccomp::Described>,
    /// What is executed, and how.
    pub process: Process,
}

/// Who the job is. Without the layer, who the driver is.
#[derive(Debug, Serialize)]
pub struct Identity {
    /// Its uid, and its gid.
    pub uid: Range,
    /// Its name.
    pub name: String,
    /// Its supplementary groups.
    pub groups: Option<Vec<u32>>,
    /// Every capability set, and what is in it.
    pub capabilities: Option<BTreeMap<&'static str, Vec<String>>>,
    /// The bits that are set.
    pub securebits: Option<Vec<&'static str>>,
    /// Whether no program can give it more.
    pub no_new_privs: bool,
}

/// Both ends are in it; a leased uid is one of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Range {
    /// The least.
    pub first: u32,
    /// The greatest.
    pub last: u32,
}

/// The file system the job sees.
#[derive(Debug, Serialize)]
pub struct Root {
    /// In the order in which they are attached.
    pub mounts: Vec<Mount>,
    /// Symbolic links in its root.
    pub links: Vec<Link>,
    /// Directories in its root with nothing in them.
    pub empty: Vec<String>,
    /// Nodes in its /dev.
    pub devices: Vec<&'static str>,
}

/// One mount.
#[derive(Debug, Serialize)]
pub struct Mount {
    /// Where the job sees it.
    pub target: String,
    /// `bind`, or the type of a file system of its own.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// A path of the machine, or with `tmpfs` a path in the job's storage.
    pub source: String,
    /// What it has; the machine's own mounts may have more.
    pub flags: Vec<&'static str>,
    /// What the file system is made with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Whether the mounts below it come along, with the same flags.
    pub recursive: bool,
}

/// A symbolic link.
#[derive(Debug, Serialize)]
pub struct Link {
    /// Where it is.
    pub at: String,
    /// Where it leads.
    pub to: String,
}

/// A limit on storage; absent where there is none.
#[derive(Debug, Serialize)]
pub struct Storage {
    /// Bytes.
    pub bytes: Option<u64>,
    /// Files and directories.
    pub inodes: Option<u64>,
    /// The driver looks, because no file system of its own limits it.
    pub sampled: bool,
}

/// A directory of a cgroup hierarchy.
#[derive(Debug, Serialize)]
pub struct Directory {
    /// Where; `UID` stands for a uid that is not leased yet.
    pub path: String,
    /// What is written there, in order.
    pub files: Vec<Written>,
}

/// A file of a cgroup.
#[derive(Debug, Serialize)]
pub struct Written {
    /// Which.
    pub file: &'static str,
    /// What.
    pub value: u64,
    /// Left out where the kernel has no such file.
    pub may_be_missing: bool,
}

/// A row of setrlimit(2).
#[derive(Debug, Serialize)]
pub struct Rlimit {
    /// Which.
    pub name: &'static str,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What is executed.
#[derive(Debug, Serialize)]
pub struct Process {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Standard input.
    pub stdin: String,
    /// File mode creation mask, in octal.
    pub umask: String,
    /// Nice value.
    pub nice: i32,
    /// How soon it goes when the machine is out of memory.
    pub oom_score_adj: &'static str,
}
