//! What a job would get, for `autodriver explain`. Everything is read off the values that the
//! layers act on, so that there is no second description that could differ from the first.

mod form;

use std::ffi::{CStr, CString};
use std::fs;
use std::path::Path;

use autodriver_protocol::Layer;
use nix::sched::CloneFlags;

use super::accounts::Account;
use super::cgroup::{preview, Limits};
use super::prepare::{before, prepare, Entry, Ground, MountKind, Prepared, Ready};
use super::privileges::Identity as Whose;
use super::{landlock, privileges, seccomp, session, storage};
use crate::facts::Facts;
use crate::fault::Fault;
use crate::plan::Plan;
use crate::sys::mount::attr;
use crate::sys::process::SECUREBITS;
use crate::uids;
pub use form::{Directory, Identity, Link, Mount, Process, Range, Rlimit, Root, Sandbox, Storage, Written};

/// Describes the sandbox of a job; `uid` is none where one is leased.
///
/// # Errors
/// What would fail before the job is forked.
pub fn describe(plan: &Plan, uid: Option<u32>, name: String, facts: &Facts) -> Result<Sandbox, Fault> {
    let account = Account::alone(name, uid.unwrap_or(uids::FIRST));
    let (identity_of_job, tag) = (job_identity(facts, account.uid), placeholder(uid));
    let ground = Ground {
        plan,
        account: &account,
        tag: &tag,
        identity: identity_of_job,
        storage: None,
        facts,
        stdin: None,
    };
    let ready = prepare(ground)?;
    let prepared = &ready.prepared;
    let some = |limit: u64| (limit != 0).then_some(limit);
    let (bytes, inodes) = if plan.applies(Layer::Disk) { (plan.disk, plan.inodes) } else { (0, 0) };
    let rules = prepared.landlock.as_ref();
    Ok(Sandbox {
        identity: identity(prepared, uid, account.name),
        namespaces: namespaces(prepared),
        hostname: prepared.hostname.clone(),
        network: network(plan),
        root: root(&ready),
        storage: Storage { bytes: some(bytes), inodes: some(inodes), sampled: plan.substitutes(Layer::Disk) },
        cgroup: cgroup(plan, facts, uid),
        rlimits: prepared
            .rlimits
            .iter()
            .map(|row| Rlimit { name: row.name, soft: row.soft, hard: row.hard })
            .collect(),
        landlock: rules.map(|rules| landlock::describe(rules, |path| is_directory(prepared, path))),
        seccomp: (!prepared.filters.is_empty()).then(|| seccomp::describe(plan.abi32, before(plan))),
        process: process(plan, prepared),
    })
}

/// Whose uid the job would have: see [`crate::slot`].
fn job_identity(facts: &Facts, uid: u32) -> Whose {
    match facts.own_uids {
        Ok(()) => Whose::Own(privileges::Ids::alone(uid)),
        Err(_) => Whose::shared(facts),
    }
}

fn identity(prepared: &Prepared, uid: Option<u32>, name: String) -> Identity {
    let own = nix::unistd::geteuid().as_raw();
    let uid = match (prepared.identity, uid) {
        (Whose::Own(_), Some(uid)) => Range { first: uid, last: uid },
        (Whose::Own(_), None) => Range { first: uids::FIRST, last: uids::LAST },
        _ => Range { first: own, last: own },
    };
    let gives_up = prepared.identity != Whose::Callers;
    let leaves_groups = matches!(prepared.identity, Whose::Own(_));
    Identity {
        uid,
        name,
        groups: leaves_groups.then(Vec::new),
        capabilities: gives_up.then(|| privileges::SETS.map(|(name, _)| (name, Vec::new())).into()),
        securebits: gives_up.then(|| SECUREBITS.map(|(name, _)| name).to_vec()),
        no_new_privs: prepared.no_new_privs,
    }
}

fn network(plan: &Plan) -> &'static str {
    match plan.enforces(Layer::NetworkNamespace) {
        true if plan.loopback => "loopback",
        true => "nothing, not even loopback",
        false if before(plan).offline => "sockets of AF_UNIX alone",
        false => "host",
    }
}

fn namespaces(prepared: &Prepared) -> Vec<&'static str> {
    let has = |flag| prepared.namespaces.contains(flag);
    let rows = [
        ("pid", prepared.pid_namespace),
        ("mnt", has(CloneFlags::CLONE_NEWNS)),
        ("net", has(CloneFlags::CLONE_NEWNET)),
        ("ipc", has(CloneFlags::CLONE_NEWIPC)),
        ("uts", has(CloneFlags::CLONE_NEWUTS)),
        ("cgroup", prepared.cgroup_namespace),
    ];
    rows.into_iter().filter(|(_, own)| *own).map(|(name, _)| name).collect()
}

fn text(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

fn root(ready: &Ready) -> Option<Root> {
    let (mounts, frame) = (ready.prepared.mounts.as_ref()?, &ready.frame);
    let own = Mount {
        target: "/".to_owned(),
        kind: "tmpfs",
        source: "/root".to_owned(),
        flags: attr::names(attr::FROZEN),
        options: Vec::new(),
        recursive: false,
    };
    let mount = |Entry { at, kind, .. }: &Entry| {
        let (fstype, options) = kind.made_with().unwrap_or_default();
        let (name, source, recursive) = match kind {
            MountKind::Machine { source, recursive } => ("bind", text(source), *recursive),
            MountKind::Bind { source, .. } => ("bind", text(source), true),
            MountKind::Device { source } => ("bind", text(source), false),
            MountKind::Part { part, .. } => ("tmpfs", format!("/{}", frame.part_name(*part)), false),
            MountKind::Proc => ("proc", text(fstype), false),
            MountKind::Pts => ("devpts", text(fstype), false),
        };
        Mount {
            target: format!("/{}", text(at)),
            kind: name,
            source,
            flags: attr::names(kind.attributes()),
            options: options.iter().map(|(key, value)| format!("{}={}", text(key), text(value))).collect(),
            recursive,
        }
    };
    let link = |(name, target): &(String, std::path::PathBuf)| Link {
        at: format!("/{name}"),
        to: target.display().to_string(),
    };
    Some(Root {
        mounts: [own].into_iter().chain(mounts.iter().map(mount)).collect(),
        links: frame.links().iter().map(link).collect(),
        empty: frame.empty_directories(mounts).map(|path| format!("/{}", path.display())).collect(),
        devices: storage::device_names().collect(),
    })
}

fn cgroup(plan: &Plan, facts: &Facts, uid: Option<u32>) -> Vec<Directory> {
    let limits = Limits::of(plan, facts.half_memory);
    let directories = preview(&facts.hierarchy, placeholder(uid), limits);
    directories
        .map(|(path, settings)| Directory {
            path: path.display().to_string(),
            files: settings
                .into_iter()
                .map(|setting| Written {
                    file: setting.file,
                    value: setting.value,
                    may_be_missing: setting.may_be_missing,
                })
                .collect(),
        })
        .collect()
}

/// What stands for the uid in a path.
pub fn placeholder(uid: Option<u32>) -> String {
    uid.map_or("UID".to_owned(), |uid| uid.to_string())
}

/// Whether a path that Landlock allows something at is a directory, as the job will see it: all
/// are, but files that are bound, and files at the top of the machine's own root.
fn is_directory(prepared: &Prepared, path: &str) -> bool {
    let bound = |entry: &Entry| match &entry.kind {
        MountKind::Bind { source, .. } if entry.at.to_bytes() == &path.as_bytes()[1..] => {
            fs::metadata(Path::new(&text(source))).ok()
        }
        _ => None,
    };
    let seen = match &prepared.mounts {
        Some(mounts) => mounts.iter().rev().find_map(bound),
        None => fs::metadata(path).ok(),
    };
    seen.is_none_or(|seen| seen.is_dir())
}

fn process(plan: &Plan, prepared: &Prepared) -> Process {
    let texts = |list: &[CString]| list.iter().map(|one| text(one)).collect();
    Process {
        argv: texts(&prepared.argv),
        env: texts(&prepared.env),
        cwd: text(&prepared.cwd),
        stdin: plan.stdin.clone().unwrap_or_else(|| "/dev/null".to_owned()),
        umask: format!("{:04o}", session::UMASK),
        nice: session::NICE,
        oom_score_adj: session::OOM_SCORE_ADJ,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan;
    use autodriver_protocol::Options;

    fn described(options: Options, landlock_abi: i32) -> Sandbox {
        let facts = Facts { landlock_abi, ..Facts::full() };
        let plan = plan(options, &facts).expect("a plan");
        describe(&plan, None, "job".to_owned(), &facts).expect("a description")
    }

    #[test]
    fn files_that_are_bound_get_the_rights_of_files() {
        let bind =
            ["/etc/passwd:/job/file:rw", "/etc:/job/folder:rw"].map(|bind| bind.parse().expect("a bind"));
        let sandbox = described(Options { bind: bind.to_vec(), ..Options::default() }, 6);
        let rules = sandbox.landlock.expect("a rule set").rules;
        let allow = |path: &str| rules.iter().find(|rule| rule.path == path).expect("a rule").allow.join(" ");
        assert_eq!(allow("/job/file"), "execute write_file read_file truncate ioctl_dev");
        assert!(allow("/job/folder").contains("make_reg") && allow("/job").contains("remove_dir"));
        assert_eq!(allow("/"), "execute read_file read_dir");
    }

    #[test]
    fn an_older_landlock_handles_less() {
        let older = described(Options::default(), 1).landlock.expect("a rule set");
        assert!(older.scoped.is_empty() && !older.handled_fs.contains(&"truncate".to_owned()));
        let skip = vec![Layer::NetworkNamespace];
        let newer = described(Options { skip, ..Options::default() }, 4).landlock.expect("a rule set");
        assert_eq!(newer.handled_net, ["bind_tcp", "connect_tcp"]);
    }

    #[test]
    fn layers_that_are_skipped_are_not_described() {
        let skip = Layer::ALL.into_iter().filter(|layer| *layer != Layer::ProcessTree).collect();
        let sandbox = described(Options { skip, ..Options::default() }, 6);
        assert!(sandbox.root.is_none() && sandbox.landlock.is_none() && sandbox.seccomp.is_none());
        assert!(sandbox.namespaces.is_empty() && sandbox.rlimits.is_empty() && sandbox.hostname.is_none());
        assert!(sandbox.identity.groups.is_none() && !sandbox.identity.no_new_privs);
        assert_eq!((sandbox.network, sandbox.storage.bytes), ("host", None));
    }

    #[test]
    fn flags_are_those_of_the_mounts() {
        let root = described(Options::default(), 6).root.expect("a root");
        let flags =
            |target: &str| root.mounts.iter().find(|one| one.target == target).map(|one| one.flags.join(","));
        assert_eq!(flags("/").as_deref(), Some("ro,nosuid,nodev"));
        assert_eq!(flags("/job").as_deref(), Some("rw,nosuid,nodev"));
        assert_eq!(flags("/dev").as_deref(), Some("ro,nosuid,noexec"));
        assert_eq!(flags("/proc").as_deref(), Some("rw,nosuid,nodev,noexec"));
        assert!(root.mounts.iter().all(|mount| mount.flags.contains(&"nosuid")));
    }
}
