//! Paths, TCP ports, abstract sockets and signals outside the job: landlock(7).
//!
//! A second line behind the namespaces, by other code of the kernel: what the job may write is its
//! storage, what it may read and execute is the machine's directories that it was shown. Opens its
//! paths in the job's own file system, and needs no_new_privs. With `--net host` TCP is left open;
//! without a network namespace and without `--net host`, no port may be used at all.

use std::fmt::Debug;

use landlock::{
    Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, ABI,
};
use nix::errno::Errno;
use nix::fcntl::{open, OFlag};
use nix::sys::stat::{fstat, Mode, SFlag};
use serde::Serialize;

use super::prepare::{PathAccess, Prepared, Rules};
use super::{on, Failed};

/// The acts after the indices of the rules, for messages.
pub(super) const ACTS: [&str; 2] = ["create a Landlock rule set", "restrict the job by Landlock"];

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    let Some(rules) = &prepared.landlock else { return Ok(()) };
    let acts = rules.paths.len();
    let act = |act: usize| move |_: RulesetError| on(acts + act)(Errno::last());
    let (handled, abi) = (Handled::of(rules), abi(rules.abi));
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(handled.files)
        .map_err(act(0))?;
    if !handled.network.is_empty() {
        ruleset = ruleset.handle_access(handled.network).map_err(act(0))?;
    }
    if !handled.scopes.is_empty() {
        ruleset = ruleset.scope(handled.scopes).map_err(act(0))?;
    }
    let mut created = ruleset.create().map_err(act(0))?;
    for (index, (path, access)) in rules.paths.iter().enumerate() {
        let fd = match open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            // Not every machine has every directory; what is missing needs no rule.
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            Err(errno) => return Err(on(index)(errno)),
        };
        let kind = SFlag::from_bits_truncate(fstat(&fd).map_err(on(index))?.st_mode) & SFlag::S_IFMT;
        let rights = rights(*access, kind == SFlag::S_IFDIR, abi);
        let rule = PathBeneath::new(fd, rights).set_compatibility(CompatLevel::HardRequirement);
        created = created.add_rule(rule).map_err(|_| on(index)(Errno::last()))?;
    }
    let status = created.restrict_self().map_err(act(1))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        _ => Err(on(acts + 1)(Errno::ENOTSUP)),
    }
}

/// What needs a rule to be allowed; scopes know no rules.
struct Handled {
    files: BitFlags<AccessFs>,
    network: BitFlags<AccessNet>,
    scopes: BitFlags<Scope>,
}

impl Handled {
    fn of(rules: &Rules) -> Handled {
        let abi = abi(rules.abi);
        Handled {
            files: AccessFs::from_all(abi),
            network: if rules.restrict_tcp { AccessNet::from_all(abi) } else { BitFlags::empty() },
            scopes: Scope::from_all(abi),
        }
    }
}

fn rights(access: PathAccess, directory: bool, abi: ABI) -> BitFlags<AccessFs> {
    let all = if directory { AccessFs::from_all(abi) } else { AccessFs::from_file(abi) };
    let wanted = match access {
        PathAccess::Read => AccessFs::from_read(abi),
        PathAccess::Devices => AccessFs::from_file(abi) & !AccessFs::Execute | AccessFs::ReadDir,
        PathAccess::Processes => AccessFs::from_read(abi) | AccessFs::WriteFile,
        PathAccess::Write => AccessFs::from_all(abi),
    };
    wanted & all
}

/// A rule set, for people: rights by the names of landlock(7).
#[derive(Debug, Serialize)]
pub struct Described {
    /// What the kernel has.
    pub abi: i32,
    /// Access to files that is refused where no rule allows it.
    pub handled_fs: Vec<String>,
    /// Use of ports, likewise; there are no rules that allow any.
    pub handled_net: Vec<String>,
    /// What stays among the job's own processes.
    pub scoped: Vec<String>,
    /// The rules.
    pub rules: Vec<DescribedRule>,
}

/// What is allowed at a path and below.
#[derive(Debug, Serialize)]
pub struct DescribedRule {
    /// As the job sees it.
    pub path: String,
    /// Names of rights.
    pub allow: Vec<String>,
}

/// Says what [`apply`] would make of the rules; `is_directory` knows the job's file system.
pub(super) fn describe(rules: &Rules, is_directory: impl Fn(&str) -> bool) -> Described {
    let handled = Handled::of(rules);
    let rule = |(path, access): &(String, PathAccess)| DescribedRule {
        path: path.clone(),
        allow: names(rights(*access, is_directory(path), abi(rules.abi)).iter()),
    };
    Described {
        abi: rules.abi,
        handled_fs: names(handled.files.iter()),
        handled_net: names(handled.network.iter()),
        scoped: names(handled.scopes.iter()),
        rules: rules.paths.iter().map(rule).collect(),
    }
}

/// The names of the kernel's constants, without their prefix: `ReadFile` is `read_file`.
fn names(rights: impl Iterator<Item = impl Debug>) -> Vec<String> {
    let name = |right| {
        let camel = format!("{right:?}");
        let word = |(at, letter): (usize, char)| {
            let separator = if at > 0 && letter.is_ascii_uppercase() { "_" } else { "" };
            format!("{separator}{}", letter.to_ascii_lowercase())
        };
        camel.char_indices().map(word).collect()
    };
    rights.map(name).collect()
}

fn abi(version: i32) -> ABI {
    match version {
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        _ => ABI::V6,
    }
}
