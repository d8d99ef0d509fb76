//! What the job's file system is put together from: the table that [`super::mounts`] walks, and
//! the frame it is attached to. Made by the driver before the fork.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use autodriver_protocol::job::Bind;
use nix::errno::Errno;

use super::prepare::{Entry, MountKind, PathAccess, Root};
use super::storage::Storage;
use crate::fault::{errno_of, Fault, Step};
use crate::plan::{Plan, JOB_DIRECTORY};
use crate::sys::mount::attr;
use autodriver_protocol::Layer;

/// Directories at the top of the machine's root that the job sees empty: other people's files,
/// sockets of daemons, devices, kernel objects.
const HIDDEN: [&str; 9] = ["home", "root", "run", "sys", "boot", "mnt", "media", "lost+found", "efi"];

/// Directories at the top that are the job's own.
const OWN: [&str; 4] = ["proc", "dev", "tmp", "job"];

/// Files of `/etc` in which the job's user stands.
pub(super) const ACCOUNT_FILES: [&str; 2] = ["passwd", "group"];

/// The layout, and what Landlock allows in it.
pub(super) struct Layout {
    /// `None` without a mount namespace.
    pub(super) root: Option<Root>,
    pub(super) paths: Vec<(String, PathAccess)>,
}

fn fault(object: impl Into<String>) -> impl FnOnce(Errno) -> Fault {
    let object = object.into();
    move |errno| Fault::new(Step::Mounts, object, errno)
}

fn c_path(path: impl AsRef<Path>) -> Result<CString, Fault> {
    let path = path.as_ref();
    CString::new(path.as_os_str().as_bytes()).map_err(|_| {
        Fault::refused(Step::Mounts, format!("use path '{}'", path.display()), "it has a NUL byte")
    })
}

fn entry(at: &str, kind: MountKind, what: String) -> Result<Entry, Fault> {
    Ok(Entry { at: c_path(at)?, kind, what })
}

/// What stands at the top of the machine's root, or of `--root`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Top {
    Directory,
    File,
    Link(std::path::PathBuf),
}

fn top(plan: &Plan) -> Result<Vec<(String, Top)>, Fault> {
    let act = || format!("read the root file system {}", plan.root);
    let entries = std::fs::read_dir(&plan.root).map_err(|error| fault(act())(errno_of(&error)))?;
    let mut top = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| fault(act())(errno_of(&error)))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let kind = match entry.file_type() {
            Ok(kind) if kind.is_dir() => Top::Directory,
            Ok(kind) if kind.is_file() => Top::File,
            Ok(kind) if kind.is_symlink() => match std::fs::read_link(entry.path()) {
                Ok(target) => Top::Link(target),
                Err(_) => continue,
            },
            _ => continue,
        };
        top.push((name, kind));
    }
    top.sort_unstable();
    Ok(top)
}

/// Puts the frame into the storage and makes the table.
pub(super) fn layout(plan: &Plan, storage: &Storage) -> Result<Layout, Fault> {
    if !plan.applies(Layer::MountNamespace) {
        return Ok(Layout { root: None, paths: machine_paths(plan)? });
    }
    let mut mounts = Vec::new();
    let mut paths = vec![("/".to_owned(), PathAccess::List)];
    let point = |path: &str, directory: bool| {
        storage
            .mount_point("root", Path::new(path), directory)
            .map_err(fault(format!("make mount point /{path}")))
    };
    for name in OWN {
        point(name, true)?;
    }
    for (name, kind) in top(plan)? {
        if OWN.contains(&name.as_str()) {
            continue;
        }
        if let Top::Link(target) = kind {
            storage.link(Path::new(&name), &target).map_err(fault(format!("make link /{name}")))?;
            continue;
        }
        point(&name, kind == Top::Directory)?;
        if plan.root == "/" && HIDDEN.contains(&name.as_str()) || name == "sys" || name == "run" {
            continue;
        }
        let source = Path::new(&plan.root).join(&name);
        // Below /var may be the mounts of every container of the machine.
        let recursive = name != "var";
        let what = format!("show {} read-only", source.display());
        mounts.push(entry(&name, MountKind::Machine { source: c_path(&source)?, recursive }, what)?);
        paths.push((format!("/{name}"), PathAccess::Read));
    }
    accounts(plan, storage, &mut mounts)?;
    own(plan, storage, &mut mounts, &mut paths)?;
    for bind in &plan.binds {
        bind_entry(bind, plan, storage, &mut mounts, &mut paths)?;
    }
    let frame = storage.part(c"root").map_err(fault("clone the job's root"))?;
    Ok(Layout { root: Some(Root { frame, mounts }), paths })
}

/// Without a mount namespace the job sees the machine; Landlock still says where it may go.
fn machine_paths(plan: &Plan) -> Result<Vec<(String, PathAccess)>, Fault> {
    let shown = |name: &String| !OWN.contains(&name.as_str()) && !HIDDEN.contains(&name.as_str());
    let machine = top(plan)?.into_iter().filter(|(name, kind)| !matches!(kind, Top::Link(_)) && shown(name));
    let machine = machine.map(|(name, _)| (format!("/{name}"), PathAccess::Read));
    let own = [
        ("/".to_owned(), PathAccess::List),
        ("/dev".to_owned(), PathAccess::Devices),
        ("/proc".to_owned(), PathAccess::Processes),
        (plan.home.clone(), PathAccess::Write),
        (plan.tmp.clone(), PathAccess::Write),
    ];
    Ok(own.into_iter().chain(machine).collect())
}

fn accounts(plan: &Plan, storage: &Storage, mounts: &mut Vec<Entry>) -> Result<(), Fault> {
    for name in ACCOUNT_FILES {
        if Path::new(&plan.root).join("etc").join(name).is_file() {
            let part =
                storage.part(&c_path(format!("etc/{name}"))?).map_err(fault(format!("clone /etc/{name}")))?;
            let kind = MountKind::Part {
                fd: part,
                attributes: attr::RDONLY | attr::NOSUID | attr::NODEV,
                frozen: true,
            };
            mounts.push(entry(&format!("etc/{name}"), kind, format!("mount /etc/{name}"))?);
        }
    }
    Ok(())
}

/// The parts of the storage, `/proc` and `/dev`.
fn own(
    plan: &Plan,
    storage: &Storage,
    mounts: &mut Vec<Entry>,
    paths: &mut Vec<(String, PathAccess)>,
) -> Result<(), Fault> {
    let writable = attr::NOSUID | attr::NODEV;
    let parts = [
        ("job", "job", writable, PathAccess::Write),
        ("tmp", "tmp", writable, PathAccess::Write),
        ("var_tmp", "var/tmp", writable, PathAccess::Write),
        ("dev", "dev", attr::RDONLY | attr::NOSUID | attr::NOEXEC, PathAccess::Devices),
        ("shm", "dev/shm", writable, PathAccess::Write),
    ];
    let machine = Path::new(&plan.root);
    for (name, at, attributes, access) in parts {
        if at == "var/tmp" && !machine.join("var/tmp").is_dir() {
            // An image without it: it cannot be made inside a read-only /var, and nobody misses it.
            if machine.join("var").exists() {
                continue;
            }
            storage.mount_point("root", Path::new(at), true).map_err(fault("make mount point /var/tmp"))?;
        }
        let part = storage.part(&c_path(name)?).map_err(fault(format!("clone /{at}")))?;
        let kind = MountKind::Part { fd: part, attributes, frozen: false };
        mounts.push(entry(at, kind, format!("mount /{at}"))?);
        paths.push((format!("/{at}"), access));
    }
    mounts.push(entry("dev/pts", MountKind::Pts, "mount /dev/pts".to_owned())?);
    mounts.push(entry("proc", MountKind::Proc, "mount /proc".to_owned())?);
    paths.push(("/proc".to_owned(), PathAccess::Processes));
    Ok(())
}

fn bind_entry(
    bind: &Bind,
    plan: &Plan,
    storage: &Storage,
    mounts: &mut Vec<Entry>,
    paths: &mut Vec<(String, PathAccess)>,
) -> Result<(), Fault> {
    let what = format!("bind {} on {}", bind.src, bind.dest);
    let source = std::fs::metadata(&bind.src).map_err(|error| fault(what.clone())(errno_of(&error)))?;
    let dest = bind.dest.trim_matches('/');
    if dest.is_empty() || dest.split('/').any(|part| part == ".." || part == "." || part.is_empty()) {
        return Err(Fault::refused(Step::Mounts, what, "the destination must be a plain path below /"));
    }
    let below = |place: &str| dest.strip_prefix(place).and_then(|rest| rest.strip_prefix('/'));
    let places = [(&JOB_DIRECTORY[1..], "job"), ("tmp", "tmp"), ("var/tmp", "var_tmp"), ("dev/shm", "shm")];
    let own = places.into_iter().find_map(|(place, part)| Some((part, below(place)?)));
    let first = dest.split('/').next().unwrap_or(dest);
    let shown = mounts.iter().any(|entry| entry.at.as_bytes() == first.as_bytes());
    match own {
        Some((part, rest)) => {
            storage.mount_point(part, Path::new(rest), source.is_dir()).map_err(fault(what.clone()))?;
        }
        // What the machine shows is read-only: the destination must exist there.
        None if shown => {
            let target = std::fs::metadata(Path::new(&plan.root).join(dest));
            target.map_err(|error| Fault {
                because: Some(format!(
                    "/{first} is the machine's and read-only: the destination must exist there"
                )),
                ..fault(what.clone())(errno_of(&error))
            })?;
        }
        None => storage.mount_point("root", Path::new(dest), source.is_dir()).map_err(fault(what.clone()))?,
    }
    let kind = MountKind::Bind { source: c_path(&bind.src)?, writable: bind.writable };
    mounts.push(entry(dest, kind, what)?);
    paths.push((format!("/{dest}"), if bind.writable { PathAccess::Write } else { PathAccess::Read }));
    Ok(())
}
