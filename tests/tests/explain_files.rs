//! The file system and the Landlock rules that `autodriver explain` tells of, against those of a
//! live job.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use e2e::{job, shell, Job};
use serde_json::Value;

/// A line of proc_pid_mountinfo(5).
#[derive(Debug)]
struct Mounted {
    id: u32,
    parent: u32,
    root: String,
    point: PathBuf,
    flags: BTreeSet<String>,
    fstype: String,
    source: String,
    options: String,
}

fn mountinfo(pid: i32) -> Vec<Mounted> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("the job lives");
    let parse = |line: &str| {
        let (mount, system) = line.split_once(" - ").expect("a separator");
        let mount: Vec<&str> = mount.split(' ').collect();
        let system: Vec<&str> = system.split(' ').collect();
        Mounted {
            id: mount[0].parse().expect("an id"),
            parent: mount[1].parse().expect("an id"),
            root: mount[3].to_owned(),
            point: mount[4].into(),
            flags: mount[5].split(',').map(str::to_owned).collect(),
            fstype: system[0].to_owned(),
            source: system[1].to_owned(),
            options: system[2].to_owned(),
        }
    };
    text.lines().map(parse).collect()
}

fn list<'a>(of: &'a Value, key: &str) -> &'a Vec<Value> {
    of[key].as_array().unwrap_or_else(|| panic!("no list {key} in {of}"))
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_else(|| panic!("no text {key} in {of}"))
}

const FLAGS: [&str; 5] = ["ro", "rw", "nosuid", "nodev", "noexec"];

#[track_caller]
fn assert_flags(explained: &Value, mounted: &Mounted) {
    let expected: BTreeSet<String> =
        list(explained, "flags").iter().map(|flag| flag.as_str().expect("a flag").to_owned()).collect();
    let known = |flag: &&String| FLAGS.contains(&flag.as_str());
    let found: BTreeSet<String> = mounted.flags.iter().filter(known).cloned().collect();
    if explained["type"] == "bind" {
        // The machine's own mount may have had more, and keeps it.
        assert!(expected.is_subset(&found), "{explained}: {mounted:?}");
    } else {
        assert_eq!(expected, found, "{explained}: {mounted:?}");
    }
}

/// What the kernel shows of an option may have another form than what was given.
fn shows(options: &str, given: &str) -> bool {
    let (key, value) = given.split_once('=').expect("KEY=VALUE");
    let forms =
        [value, value.trim_start_matches('0'), if given == "hidepid=2" { "invisible" } else { value }];
    options.split(',').any(|option| forms.iter().any(|form| option == format!("{key}={form}")))
}

#[track_caller]
fn assert_source(explained: &Value, mounted: &Mounted, root: &Path, covered: bool) {
    let (kind, source) = (text(explained, "type"), text(explained, "source"));
    if kind == "bind" && covered {
        return;
    }
    if kind == "bind" {
        let seen = root.join(text(explained, "target").trim_start_matches('/'));
        let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).expect("a file");
        assert_eq!(place(Path::new(source)), place(&seen), "{explained}");
        return;
    }
    assert_eq!(mounted.fstype, kind, "{explained}");
    if kind == "tmpfs" {
        assert_eq!((mounted.source.as_str(), mounted.root.as_str()), ("autodriver", source));
    }
    for option in explained["options"].as_array().into_iter().flatten() {
        let option = option.as_str().expect("KEY=VALUE");
        assert!(shows(&mounted.options, option), "{option}: {mounted:?}");
    }
}

/// Compares every mount, in order: what each stands on must have been there before it.
#[track_caller]
fn assert_mounts(explained: &Value, pid: i32) {
    let table = mountinfo(pid);
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let mut seen: Vec<u32> = Vec::new();
    let mounts = list(&explained["root"], "mounts");
    let covers = |mount: &Value, point: &Path| point.starts_with(text(mount, "target"));
    for (n, mount) in mounts.iter().enumerate() {
        let target = Path::new(text(mount, "target"));
        let here = |one: &&Mounted| one.point == target && !seen.contains(&one.id);
        let mounted = table.iter().find(here).unwrap_or_else(|| panic!("{mount} is not in {table:#?}"));
        assert_flags(mount, mounted);
        let covered = mounts.iter().skip(n + 1).any(|later| later["target"] == mount["target"]);
        assert_source(mount, mounted, &root, covered);
        let below = table.iter().find(|one| one.id == mounted.parent);
        let came_along = |one: &Mounted| {
            mounts.iter().any(|mount| mount["recursive"] == true && covers(mount, &one.point))
        };
        let stands = below.is_none_or(|one| seen.contains(&one.id) || came_along(one));
        assert!(stands, "{mount} comes before what it stands on");
        seen.push(mounted.id);
    }
    for extra in table.iter().filter(|one| !seen.contains(&one.id)) {
        let above = |mount: &&Value| mount["recursive"] == true && covers(mount, &extra.point);
        let above = mounts.iter().rfind(above).unwrap_or_else(|| panic!("not explained: {extra:?}"));
        assert_flags(&serde_json::json!({"type": "bind", "flags": above["flags"]}), extra);
    }
}

/// Compares what stands in the root and in /dev.
#[track_caller]
fn assert_names(explained: &Value, pid: i32) {
    let explained = &explained["root"];
    let inside = |path: &str| PathBuf::from(format!("/proc/{pid}/root{path}"));
    let names = |path: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(inside(path)).expect("a directory");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    };
    for link in list(explained, "links") {
        let found = fs::read_link(inside(text(link, "at"))).expect("a link");
        assert_eq!(found.to_str(), Some(text(link, "to")));
    }
    let empty: Vec<&str> =
        list(explained, "empty").iter().map(|path| path.as_str().expect("a path")).collect();
    for path in &empty {
        assert!(names(path).is_empty(), "{path}");
    }
    let mounts = list(explained, "mounts").iter().map(|mount| text(mount, "target"));
    let links = list(explained, "links").iter().map(|link| text(link, "at"));
    let top = mounts.chain(links).chain(empty).filter_map(|path| path.split('/').nth(1));
    let top: BTreeSet<String> = top.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    assert_eq!(names("/"), top);
    let devices = list(explained, "devices").iter().map(|name| name.as_str().expect("a name"));
    let devices: BTreeSet<String> = devices.chain(["pts", "shm"]).map(str::to_owned).collect();
    assert_eq!(names("/dev"), devices);
}

#[track_caller]
fn assert_storage(explained: &Value, pid: i32) {
    let stat = nix::sys::statvfs::statvfs(format!("/proc/{pid}/root/job").as_str()).expect("statvfs");
    let given = &explained["storage"];
    // Beyond what the driver has put there: the captive, and the frame of the root.
    let (bytes, inodes) = (stat.blocks() * stat.fragment_size(), stat.files());
    let between = |found: u64, least: &Value, more: u64| {
        let least = least.as_u64().expect("a number");
        assert!((least..=least + more).contains(&found), "{found}: {given}");
    };
    between(bytes, &given["bytes"], 64 << 20);
    between(inodes, &given["inodes"], 1000);
}

#[track_caller]
fn assert_like_live(job: Job) {
    let explained = job.explain(&[]);
    let running = job.spawn();
    let pid = running.job_process().pid;
    assert_mounts(&explained, pid);
    assert_names(&explained, pid);
    assert_storage(&explained, pid);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.wait();
}

fn waiting() -> Job {
    job(["sleep", "600000"]).opt("--wall", "100s").opt("--disk", "32M").opt("--inodes", "5000")
}

#[test]
fn file_system_is_what_was_explained() {
    assert_like_live(waiting());
}

#[test]
fn binds_are_what_was_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "x").expect("a file");
    let bind = |path: &Path, rest: &str| format!("{}:{rest}", path.display());
    let job = waiting().opt("--bind", bind(folder.path(), "/job/deep/er:rw"));
    let job = job.opt("--bind", bind(&file, "/tmp/file")).opt("--bind", bind(folder.path(), "/new/place"));
    assert_like_live(job.opt("--bind", bind(&file, "/etc/hostname")).opt("--bind", "/usr:/opt"));
}

#[test]
fn another_root_is_what_was_explained() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["bin", "etc", "home", "var/tmp"] {
        fs::create_dir_all(folder.path().join(name)).expect("a folder");
    }
    fs::write(folder.path().join("etc/passwd"), "someone:x:1:1::/:/bin/sh\n").expect("a file");
    std::os::unix::fs::symlink("bin", folder.path().join("sbin")).expect("a link");
    assert_like_live(waiting().opt("--root", folder.path()));
}

#[test]
fn files_can_be_made_where_landlock_was_said_to_allow_it_and_nowhere_else() {
    let paths = "/ /bin /dev /dev/shm /etc /home /job /opt /proc /tmp /usr /usr/bin /var /var/tmp";
    let script = format!("for d in {paths}; do (: > $d/made) 2>/dev/null && echo $d; done; :");
    let job = shell(&script);
    let explained = job.explain(&[]);
    let rules = list(&explained["landlock"], "rules");
    let allowed = |path: &&str| {
        rules.iter().any(|rule| {
            let rights = list(rule, "allow");
            Path::new(path).starts_with(text(rule, "path")) && rights.iter().any(|right| right == "make_reg")
        })
    };
    let expected: Vec<&str> = paths.split(' ').filter(allowed).collect();
    let outcome = job.run().expect_clean();
    assert_eq!(outcome.text().lines().collect::<Vec<_>>(), expected);
    assert_eq!(explained["landlock"]["abi"], outcome.landlock_abi());
}
