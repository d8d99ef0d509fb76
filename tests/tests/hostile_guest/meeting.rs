//! A `vmm-local` that meets a hostile guest: started as a caller would, watched, and what it left
//! looked at.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use e2e::{hostile_guest, vmm_local, Act, SCRIPT};
use serde_json::Value;
use tempfile::TempDir;

/// No end is later: not of a host that waits for three seconds for an answer and for ten for a guest
/// to leave, and not of one that should not wait at all. Its own defaults are beyond that.
const PATIENCE: Duration = Duration::from_secs(55);
/// Most memory of the host, in KiB, whatever a guest says.
const MEMORY_KIB: u64 = 64 << 10;
/// Most that it may store, in bytes: what the jobs here may write, twice over.
const STORED: u64 = 24 << 20;
/// Most that it says to people, in bytes.
const SAID: usize = 32 << 10;
/// The options of every job here. What a guest may send is small, and so is the time it has where it
/// is to be waited for; where not, the host's own defaults hold.
pub(crate) const LIMITS: [&str; 10] =
    ["--wall", "100ms", "--grace", "0s", "--disk", "1M", "--inodes", "100", "--output", "64K"];

/// A place with a home, a working directory, inputs and outputs, and a neighbour of each that must
/// stay as it is.
#[derive(Debug)]
pub(crate) struct Place {
    top: TempDir,
}

/// How a host ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status; negative: the signal that ended it.
    pub(crate) status: i32,
    /// What it said to people.
    pub(crate) stderr: String,
    /// What came on its stdout.
    pub(crate) stdout: Vec<u8>,
    /// Why it was not as every host must be: bounded, alone, within its directory.
    pub(crate) wrong: Vec<String>,
}

impl Place {
    /// A new one, with a script for its guests.
    pub(crate) fn new(script: &[Act]) -> Place {
        let top = tempfile::tempdir().expect("a directory");
        let place = Place { top };
        for folder in ["home/.ssh", "cwd/in", "cwd/out", "state", "jobs"] {
            fs::create_dir_all(place.path(folder)).expect("a directory");
        }
        for canary in ["canary", "home/.ssh/canary", "home/canary", "cwd/canary", "cwd/in/f"] {
            fs::write(place.path(canary), "me").expect("a file");
        }
        place.teach(script);
        place
    }

    /// Gives the guests another script.
    pub(crate) fn teach(&self, script: &[Act]) {
        fs::write(self.path("script"), serde_json::to_vec(script).expect("a script")).expect("a file");
    }

    /// A path in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    /// A file of it as JSON.
    pub(crate) fn json(&self, name: &str) -> Result<Value, String> {
        let text = fs::read(self.path(name)).map_err(|error| format!("{name}: {error}"))?;
        serde_json::from_slice(&text).map_err(|error| format!("{name}: {error}"))
    }

    /// The process numbers of the guests that were there, in order.
    pub(crate) fn guests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("script.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// What there is below a directory: name and size.
    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        let mut listing = BTreeMap::new();
        list(&self.path(folder), &mut |_| false, &mut listing);
        let base = self.path(folder);
        let name = |path: &PathBuf| path.strip_prefix(&base).unwrap_or(path).display().to_string();
        listing.keys().map(name).filter(|name| !name.is_empty()).collect()
    }

    /// Runs `vmm-local run` on the guest with these options beside those of every job.
    pub(crate) fn run(&self, options: &[&str]) -> Ended {
        let guest = hostile_guest().display().to_string();
        let fixed = ["run", "--autodriver", &guest, "--in", "in", "--report", "../report.json"];
        let args = [&fixed[..], &LIMITS, options, &["--", "true"]].concat();
        self.call(&args)
    }

    /// Runs `vmm-local` in the working directory, to its end.
    pub(crate) fn call(&self, args: &[&str]) -> Ended {
        let mut own = |path: &Path| {
            // What it may write, and its directory's times with it.
            ["cwd/out", "state", "report.json", "stdout", "stderr", "script.log", "kept"]
                .iter()
                .any(|name| path == self.path(name))
        };
        let before = self.listing(&mut own);
        let output = |name| File::create(self.path(name)).expect("a file");
        let child = Command::new(vmm_local())
            .args(args)
            .env_clear()
            .env(SCRIPT, self.path("script"))
            .env("HOME", self.path("home"))
            .env("XDG_STATE_HOME", self.path("state"))
            .current_dir(self.path("cwd"))
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"))
            .spawn()
            .expect("vmm-local starts");
        let (status, peak, mut wrong) = watch(child);
        if peak > MEMORY_KIB {
            wrong.push(format!("{peak} KiB of memory"));
        }
        wrong.extend(self.changes(&before, &mut own));
        wrong.extend(self.left());
        let text = fs::read(self.path("stderr")).unwrap_or_default();
        let stdout = fs::read(self.path("stdout")).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&text).into_owned();
        if text.len() > SAID {
            wrong.push(format!("{} bytes said", text.len()));
        }
        if let Some(obeyed) = stderr.chars().find(|c| *c != '\n' && obeyed(*c)) {
            wrong.push(format!("{obeyed:?} on the terminal"));
        }
        Ended { status, stderr, stdout, wrong }
    }

    fn listing(&self, own: &mut dyn FnMut(&Path) -> bool) -> BTreeMap<PathBuf, String> {
        let mut listing = BTreeMap::new();
        list(self.top.path(), own, &mut listing);
        listing
    }

    /// What became of all that the host has no business with, and how much it stored.
    fn changes(&self, before: &BTreeMap<PathBuf, String>, own: &mut dyn FnMut(&Path) -> bool) -> Vec<String> {
        let after = self.listing(own);
        let paths = before.keys().chain(after.keys());
        let changed = paths.filter(|path| before.get(*path) != after.get(*path));
        let mut wrong: Vec<String> = changed.map(|path| format!("{} changed", path.display())).collect();
        let mut all = BTreeMap::new();
        list(self.top.path(), &mut |_| false, &mut all);
        let size = |path: &PathBuf| fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512);
        let stored: u64 = all.keys().map(size).sum();
        if stored > STORED {
            wrong.push(format!("{stored} bytes stored"));
        }
        let hidden = all.keys().filter(|path| path.to_string_lossy().ends_with(".part"));
        wrong.extend(hidden.map(|path| format!("{} left", path.display())));
        wrong
    }

    /// Guests that are still there.
    fn left(&self) -> Vec<String> {
        let alive = |pid: &String| Path::new("/proc").join(pid).exists();
        self.guests().into_iter().filter(alive).map(|pid| format!("guest {pid} left")).collect()
    }
}

/// Whether a terminal would obey this character, or show what follows in another order.
pub(crate) fn obeyed(c: char) -> bool {
    let turns = "\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
    c.is_control() || turns.contains(c)
}

/// Everything at and below a path but what is the host's own: kind, mode, size, times, content.
fn list(path: &Path, own: &mut dyn FnMut(&Path) -> bool, into: &mut BTreeMap<PathBuf, String>) {
    if own(path) {
        return;
    }
    let meta = fs::symlink_metadata(path).expect("it is there");
    let mut text = format!("{:o} {}", meta.mode(), meta.uid());
    if meta.is_dir() {
        for entry in fs::read_dir(path).expect("a directory").flatten() {
            list(&entry.path(), own, into);
        }
    } else {
        let mut content = DefaultHasher::new();
        fs::read(path).ok().hash(&mut content);
        text += &format!(" {} {:?} {:x}", meta.ino(), meta.modified().ok(), content.finish());
    }
    into.insert(path.to_owned(), text);
}

/// Waits for the host: its exit status, its largest resident set in KiB, and whether it took too long.
fn watch(mut child: Child) -> (i32, u64, Vec<String>) {
    let began = Instant::now();
    let (mut peak, mut wrong) = (0, Vec::new());
    loop {
        peak = peak.max(peak_kib(child.id()));
        if let Some(status) = child.try_wait().expect("the host can be waited for") {
            let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or(0));
            return (code, peak, wrong);
        }
        if began.elapsed() > PATIENCE && wrong.is_empty() {
            wrong.push(format!("no end within {PATIENCE:?}"));
            child.kill().expect("a child can be killed");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The largest resident set so far; 0 of a process that has ended.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Does something with every case, several at a time, as most of them wait; fails with all that went
/// wrong.
pub(crate) fn with_each<T: Sync>(cases: &[T], meet: impl Fn(&T) -> Result<(), String> + Sync) {
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = meet(case) {
                        failures.lock().expect("no thread panics").push(why);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panics");
    let count = format!("{} of {} cases", failures.len(), cases.len());
    assert!(failures.is_empty(), "{count}:\n{}", failures.join("\n"));
}
