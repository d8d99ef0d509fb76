//! What the job's file system is put together from: the table that [`super::mounts`] walks, laid
//! out before the fork, and the frame it is attached to, built in the storage after it.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use autodriver_protocol::job::Bind;
use nix::errno::Errno;

use super::prepare::{Entry, MountKind, PathAccess};
use super::storage::{device_nodes, Storage};
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
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// `None` without a mount namespace.
    pub(super) mounts: Option<Vec<Entry>>,
    pub(super) paths: Vec<(String, PathAccess)>,
    pub(super) frame: Frame,
}

/// What must stand in the storage before anything can be attached to it.
#[derive(Debug, Default)]
pub(super) struct Frame {
    points: Vec<Point>,
    links: Vec<(String, PathBuf)>,
    parts: Vec<String>,
}

/// A place to mount on.
#[derive(Debug)]
struct Point {
    part: &'static str,
    path: PathBuf,
    directory: bool,
    /// For messages.
    what: String,
}

impl Frame {
    fn point(&mut self, part: &'static str, path: impl Into<PathBuf>, directory: bool, what: String) {
        self.points.push(Point { part, path: path.into(), directory, what });
    }

    /// A part of the storage; its index.
    fn part(&mut self, name: impl Into<String>) -> usize {
        self.parts.push(name.into());
        self.parts.len() - 1
    }

    /// The name of a part.
    pub(super) fn part_name(&self, index: usize) -> &str {
        self.parts.get(index).map_or("", String::as_str)
    }

    /// Symbolic links in the root, and where they lead.
    pub(super) fn links(&self) -> &[(String, PathBuf)] {
        &self.links
    }

    /// Directories in the root that nothing is mounted on.
    pub(super) fn empty_directories<'a>(&'a self, mounts: &'a [Entry]) -> impl Iterator<Item = &'a Path> {
        let mounted = |path: &Path| mounts.iter().any(|at| at.at.as_bytes() == path.as_os_str().as_bytes());
        let points = self.points.iter().filter(|point| point.part == "root" && point.directory);
        points.map(|point| point.path.as_path()).filter(move |path| !mounted(path))
    }

    /// Builds it: the frame of the root, and the parts in order, as mounts.
    ///
    /// # Errors
    /// Which place, link or part could not be made.
    pub(super) fn build(&self, storage: &Storage) -> Result<(OwnedFd, Vec<OwnedFd>), Fault> {
        for Point { part, path, directory, what } in &self.points {
            storage.mount_point(part, path, *directory).map_err(fault(what))?;
        }
        for (name, target) in &self.links {
            storage.link(Path::new(name), target).map_err(fault(format!("make link /{name}")))?;
        }
        let part = |name: &String| storage.part(&c_path(name)?).map_err(fault(format!("clone /{name}")));
        let parts = self.parts.iter().map(part).collect::<Result<_, _>>()?;
        Ok((storage.part(c"root").map_err(fault("clone the job's root"))?, parts))
    }
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
        let kind = entry.file_type().and_then(|kind| {
            Ok(match kind {
                kind if kind.is_dir() => Some(Top::Directory),
                kind if kind.is_file() => Some(Top::File),
                kind if kind.is_symlink() => Some(Top::Link(std::fs::read_link(entry.path())?)),
                _ => None,
            })
        });
        let failed = |error| fault(format!("look at {}", entry.path().display()))(errno_of(&error));
        top.extend(unless_missing(kind).map_err(failed)?.flatten().map(|kind| (name, kind)));
    }
    top.sort_unstable();
    Ok(top)
}

/// What is not there says nothing; everything else that cannot be looked at would be missing in the
/// job's file system, and the job would be blamed for it.
fn unless_missing<T>(looked: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match looked {
        Err(error) if matches!(errno_of(&error), Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        looked => looked.map(Some),
    }
}

/// What is at a place of the root file system.
fn look(path: &Path) -> Result<Option<std::fs::Metadata>, Fault> {
    let failed = |error| fault(format!("look at {}", path.display()))(errno_of(&error));
    unless_missing(std::fs::metadata(path)).map_err(failed)
}

/// Makes the table.
pub(super) fn layout(plan: &Plan) -> Result<Layout, Fault> {
    if !plan.enforces(Layer::MountNamespace) {
        return Ok(Layout { paths: machine_paths(plan)?, ..Layout::default() });
    }
    let (mut mounts, mut frame) = (Vec::new(), Frame::default());
    // Nothing stands in the root but what is attached to it below.
    let mut paths = vec![("/".to_owned(), PathAccess::Read)];
    for name in OWN.into_iter().filter(|name| *name != "job" || plan.home == JOB_DIRECTORY) {
        frame.point("root", name, true, format!("make mount point /{name}"));
    }
    for (name, kind) in top(plan)? {
        if OWN.contains(&name.as_str()) {
            continue;
        }
        if let Top::Link(target) = kind {
            frame.links.push((name, target));
            continue;
        }
        frame.point("root", &name, kind == Top::Directory, format!("make mount point /{name}"));
        if plan.root == "/" && HIDDEN.contains(&name.as_str()) || name == "sys" || name == "run" {
            continue;
        }
        let source = Path::new(&plan.root).join(&name);
        // Below /var may be the mounts of every container of the machine.
        let recursive = name != "var" || plan.user_namespace;
        let what = format!("show {} read-only", source.display());
        mounts.push(entry(&name, MountKind::Machine { source: c_path(&source)?, recursive }, what)?);
    }
    accounts(plan, &mut frame, &mut mounts)?;
    own(plan, &mut frame, &mut mounts, &mut paths)?;
    for bind in &plan.binds {
        bind_entry(bind, plan, &mut frame, &mut mounts, &mut paths)?;
    }
    Ok(Layout { mounts: Some(mounts), paths, frame })
}

/// Without a mount namespace the job sees the machine; Landlock still says where it may go.
fn machine_paths(plan: &Plan) -> Result<Vec<(String, PathAccess)>, Fault> {
    let shown = |name: &String| !OWN.contains(&name.as_str()) && !HIDDEN.contains(&name.as_str());
    let machine = top(plan)?.into_iter().filter(|(name, kind)| !matches!(kind, Top::Link(_)) && shown(name));
    let machine = machine.map(|(name, _)| (format!("/{name}"), PathAccess::Read));
    // With the caller's uid, its terminals would be the job's to read and to write.
    let shared = !plan.enforces(Layer::Identity);
    let terminals = ["ptmx", "pts"].into_iter().filter(|_| !shared);
    let nodes = device_nodes().filter(|name| !shared || *name != "tty");
    let devices = nodes.chain(terminals).map(|name| (format!("/dev/{name}"), PathAccess::Devices));
    // And its processes' files, such as oom_score_adj, would be.
    let processes = if shared { PathAccess::Read } else { PathAccess::Processes };
    // Nothing for "/": what may be listed there may be listed everywhere below.
    let own = [
        ("/proc".to_owned(), processes),
        (plan.home.clone(), PathAccess::Write),
        (plan.tmp.clone(), PathAccess::Write),
    ];
    let open = plan.open.iter().map(|place| (place.clone(), PathAccess::Write));
    Ok(own.into_iter().chain(open).chain(devices).chain(machine).collect())
}

fn accounts(plan: &Plan, frame: &mut Frame, mounts: &mut Vec<Entry>) -> Result<(), Fault> {
    for name in ACCOUNT_FILES {
        if look(&Path::new(&plan.root).join("etc").join(name))?.is_some_and(|file| file.is_file()) {
            let kind = MountKind::Part {
                part: frame.part(format!("etc/{name}")),
                attributes: attr::FROZEN,
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
    frame: &mut Frame,
    mounts: &mut Vec<Entry>,
    paths: &mut Vec<(String, PathAccess)>,
) -> Result<(), Fault> {
    let writable = attr::NOSUID | attr::NODEV;
    let parts = [
        ("job", plan.home.trim_start_matches('/'), writable, PathAccess::Write),
        ("tmp", "tmp", writable, PathAccess::Write),
        ("var_tmp", "var/tmp", writable, PathAccess::Write),
        ("dev", "dev", attr::RDONLY | attr::NOSUID | attr::NOEXEC, PathAccess::Devices),
        ("shm", "dev/shm", writable, PathAccess::Write),
    ];
    let machine = Path::new(&plan.root);
    for (name, at, attributes, access) in parts {
        if at == "var/tmp" && !look(&machine.join("var/tmp"))?.is_some_and(|file| file.is_dir()) {
            // An image without it: it cannot be made inside a read-only /var, and nobody misses it.
            if look(&machine.join("var"))?.is_some() {
                continue;
            }
            frame.point("root", at, true, "make mount point /var/tmp".to_owned());
        }
        if name == "job" && at.split('/').next().is_some_and(|top| HIDDEN.contains(&top)) {
            frame.point("root", at, true, format!("make mount point /{at}"));
        }
        let kind = MountKind::Part { part: frame.part(name), attributes, frozen: false };
        mounts.push(entry(at, kind, format!("mount /{at}"))?);
        paths.push((format!("/{at}"), access));
    }
    if plan.user_namespace {
        for name in device_nodes() {
            let source = c_path(format!("/dev/{name}"))?;
            mounts.push(entry(
                &format!("dev/{name}"),
                MountKind::Device { source },
                format!("show /dev/{name}"),
            )?);
        }
    }
    mounts.push(entry("dev/pts", MountKind::Pts, "mount /dev/pts".to_owned())?);
    mounts.push(entry("proc", MountKind::Proc, "mount /proc".to_owned())?);
    paths.push(("/proc".to_owned(), PathAccess::Processes));
    Ok(())
}

fn bind_entry(
    bind: &Bind,
    plan: &Plan,
    frame: &mut Frame,
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
    let places = [
        (plan.home.trim_start_matches('/'), "job"),
        ("tmp", "tmp"),
        ("var/tmp", "var_tmp"),
        ("dev/shm", "shm"),
    ];
    let own = places.into_iter().find_map(|(place, part)| Some((part, below(place)?)));
    let first = dest.split('/').next().unwrap_or(dest);
    let shown = mounts.iter().any(|entry| entry.at.as_bytes() == first.as_bytes());
    match own {
        Some((part, rest)) => frame.point(part, rest, source.is_dir(), what.clone()),
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
        None => frame.point("root", dest, source.is_dir(), what.clone()),
    }
    let kind = MountKind::Bind { source: c_path(&bind.src)?, writable: bind.writable };
    mounts.push(entry(dest, kind, what)?);
    if bind.writable {
        paths.push((format!("/{dest}"), PathAccess::Write));
    }
    Ok(())
}
