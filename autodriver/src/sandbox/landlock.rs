//! Paths, TCP ports, abstract sockets and signals outside the job: landlock(7).
//!
//! A second line behind the namespaces, by other code of the kernel: what the job may write is its
//! storage, what it may read and execute is the machine's directories that it was shown. Opens its
//! paths in the job's own file system, and needs no_new_privs. With `--net host` TCP is left open;
//! without a network namespace and without `--net host`, no port may be used at all.

use landlock::{
    Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, ABI,
};
use nix::errno::Errno;

use super::prepare::{PathAccess, Prepared};
use super::{on, Failed};

/// The acts after the indices of the rules, for messages.
pub(super) const ACTS: [&str; 2] = ["create a Landlock rule set", "restrict the job by Landlock"];

pub(super) fn apply(prepared: &Prepared) -> Result<(), Failed> {
    let Some(rules) = &prepared.landlock else { return Ok(()) };
    let acts = rules.paths.len();
    let act = |act: usize| move |_: RulesetError| on(acts + act)(Errno::last());
    let abi = abi(rules.abi);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))
        .map_err(act(0))?;
    if rules.restrict_tcp && rules.abi >= 4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(act(0))?;
    }
    if rules.abi >= 6 {
        ruleset = ruleset.scope(Scope::from_all(abi)).map_err(act(0))?;
    }
    let mut created = ruleset.create().map_err(act(0))?;
    for (index, (path, access)) in rules.paths.iter().enumerate() {
        let path = std::path::Path::new(path);
        let Ok(fd) = PathFd::new(path) else {
            // Not every machine has every directory; what is missing needs no rule.
            continue;
        };
        let mut rights = rights(*access, abi);
        if !path.is_dir() {
            rights &= AccessFs::from_file(abi);
        }
        let rule = PathBeneath::new(fd, rights).set_compatibility(CompatLevel::HardRequirement);
        created = created.add_rule(rule).map_err(|_| on(index)(Errno::last()))?;
    }
    let status = created.restrict_self().map_err(act(1))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        _ => Err(on(acts + 1)(Errno::ENOTSUP)),
    }
}

fn rights(access: PathAccess, abi: ABI) -> landlock::BitFlags<AccessFs> {
    match access {
        PathAccess::List => AccessFs::ReadDir.into(),
        PathAccess::Read => AccessFs::from_read(abi),
        PathAccess::Devices => AccessFs::from_file(abi) & !AccessFs::Execute | AccessFs::ReadDir,
        PathAccess::Processes => AccessFs::from_read(abi) | AccessFs::WriteFile,
        PathAccess::Write => AccessFs::from_all(abi),
    }
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
