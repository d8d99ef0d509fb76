//! What a driver needs runs out, or is taken away or hidden: one clear sentence or a right verdict, and nothing
//! left.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use autodriver_protocol::{Cause, Report};
use nix::fcntl::{fcntl, FcntlArg};
use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::sys::resource::{setrlimit, Resource};
use tempfile::TempDir;

use e2e::{alone, autodriver, driver, wait_until, Snapshot};

/// Runs something where the mounts made are nobody else's, and all that it starts sees them.
fn in_own_mounts(work: impl FnOnce() + Send + 'static) {
    let work = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        work();
    };
    if let Err(panic) = thread::spawn(work).join() {
        std::panic::resume_unwind(panic);
    }
}

/// An empty file system of this many bytes and inodes.
fn small(place: &str, options: &str) {
    mount(Some("small"), place, Some("tmpfs"), MsFlags::empty(), Some(options)).expect("a tmpfs");
}

/// `/run` for this test alone, with its own table of uids. The cgroups are hidden: their directories are called
/// after uids, and others have the same.
fn own_run(options: &str) {
    small("/run", options);
    small("/sys/fs/cgroup", "size=4k");
}

/// A run of a job that exits with 3, and its files.
struct Run {
    command: Command,
    folder: TempDir,
}

/// What came of it.
#[derive(Debug)]
struct Ran {
    output: Output,
    report: Option<Report>,
}

impl Run {
    fn new(options: &[&str], script: &str) -> Run {
        let folder = TempDir::with_prefix("e2e-").expect("a folder");
        let mut command = Command::new(autodriver());
        command.args(["run", "--quiet"]).arg("--report").arg(folder.path().join("report"));
        command.args(options).args(["--", "/bin/sh", "-c", script]).stdin(Stdio::null());
        Run { command, folder }
    }

    /// As `new`, with a file to copy in and one to copy out.
    fn with_files(script: &str) -> Run {
        let mut run = Run::new(&[], "");
        let path = |name: &str| run.folder.path().join(name);
        fs::write(path("given"), [b'x'; 100_000]).expect("a file");
        let out = format!("result:{}", path("result").display());
        let mut command = Command::new(autodriver());
        command.args(["run", "--quiet", "--report"]).arg(path("report")).arg("--in").arg(path("given"));
        command.args(["--out", &out, "--", "/bin/sh", "-c", script]).stdin(Stdio::null());
        run.command = command;
        run
    }

    fn before_exec(mut self, work: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Run {
        // SAFETY: what is given here only makes system calls.
        unsafe { self.command.pre_exec(work) };
        self
    }

    fn run(mut self) -> Ran {
        self.command.env("RUST_BACKTRACE", "1");
        let output = self.command.output().expect("the driver starts");
        let text = fs::read(self.folder.path().join("report")).unwrap_or_default();
        let report = (!text.is_empty()).then(|| serde_json::from_slice(&text).expect("a whole report"));
        Ran { output, report }
    }
}

impl Ran {
    fn status(&self) -> Option<i32> {
        self.output.status.code()
    }

    fn sentence(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).trim_end().to_owned()
    }

    /// Fails unless the verdict is right, or one sentence says why there is none. Returns whether there is one.
    #[track_caller]
    fn is_right_or_clear(&self, when: &str) -> bool {
        let report = self.report.as_ref();
        let right = |report: &Report| report.cause == Cause::Exited && report.exit_code == Some(3);
        if self.status() == Some(3) {
            assert!(report.is_none_or(right), "{when}: {self:?}");
            return true;
        }
        let faulty = |report: &Report| report.fault.is_some() && report.exit_code.is_none();
        assert!(report.is_none_or(|report| faulty(report) || right(report)), "{when}: {self:?}");
        let count = self.sentence().lines().count();
        let clear = self.status() == Some(125) && count == 1 && self.sentence().starts_with("autodriver: ");
        assert!(clear, "{when}: {self:?}");
        false
    }
}

#[test]
fn full_run_directory() {
    let _alone = alone();
    let before = Snapshot::take();
    let (mut right, mut clear) = (0, 0);
    for options in (1..8).map(|n| format!("nr_inodes={n}")).chain((1..5).map(|n| format!("size={}k", n * 4)))
    {
        let (sender, result) = std::sync::mpsc::channel();
        in_own_mounts(move || {
            own_run(&options);
            // One page is left, or none.
            let filled = fs::write("/run/filler", [b'x'; 4096]);
            let ran = Run::new(&[], "exit 3").run();
            let verdict = ran.is_right_or_clear(&format!("/run with {options}, {filled:?}"));
            let left = fs::read_dir("/run/autodriver").into_iter().flatten().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "uids").collect();
            assert!(left.is_empty(), "{left:?}");
            sender.send(verdict).expect("the test waits");
        });
        *(if result.recv() == Ok(true) { &mut right } else { &mut clear }) += 1;
    }
    assert!(right > 0 && clear > 0, "{right} with and {clear} without a verdict");
    before.assert_same("drivers with a full /run");
}

#[test]
fn full_disk_where_report_results_or_output_go() {
    let _alone = alone();
    let before = Snapshot::take();
    in_own_mounts(|| {
        let folder = TempDir::with_prefix("e2e-").expect("a folder");
        let full = folder.path().to_str().expect("a plain path");
        small(full, "size=8k");
        fs::write(format!("{full}/filler"), [b'x'; 8192]).expect("it fits");
        let script = "echo made >result; echo said; exit 3";
        let report = Run::new(&["--report", &format!("{full}/report")], script);
        // In place of the report that all the others have.
        let mut words = report.command.get_args().map(ToOwned::to_owned).collect::<Vec<_>>();
        words.drain(2..4);
        let output = Command::new(autodriver()).args(words).output().expect("the driver starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(125) && said.contains("cannot write the report"), "{output:?}");
        let ran = Run::new(&["--out", &format!("result:{full}/result")], script).run();
        assert!(!ran.is_right_or_clear("full --out") && ran.sentence().contains("copy --out"), "{ran:?}");
        assert_eq!(ran.report.as_ref().and_then(|report| report.exit_code), Some(3), "{ran:?}");
        let mut run = Run::new(&[], script);
        run.command.stdout(fs::File::create(format!("{full}/output")).expect("an inode"));
        let ran = run.run();
        assert!(!ran.is_right_or_clear("full stdout") && ran.sentence().contains("output"), "{ran:?}");
        assert_eq!(ran.report.as_ref().and_then(|report| report.exit_code), Some(3), "{ran:?}");
        nix::mount::umount(full).expect("nobody uses it");
    });
    before.assert_same("drivers on a full disk");
}

#[test]
fn exhausted_uids() {
    let _alone = alone();
    let before = Snapshot::take();
    in_own_mounts(|| {
        own_run("size=1m");
        assert_eq!(Run::new(&[], "exit 3").run().status(), Some(3), "the table is made");
        let table = fs::File::options().write(true).open("/run/autodriver/uids").expect("the table");
        let lock = libc::flock { l_type: 1, l_whence: 0, l_start: 59_000, l_len: 1000, l_pid: 0 };
        fcntl(table.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).expect("all of them are free");
        let ran = Run::new(&[], "exit 3").run();
        assert!(!ran.is_right_or_clear("no uid") && ran.sentence().contains("59000-59999"), "{ran:?}");
        assert_eq!(ran.report.as_ref().map(|report| report.cause), Some(Cause::SetupFailed), "{ran:?}");
        drop(table);
        assert_eq!(Run::new(&[], "exit 3").run().status(), Some(3), "and with uids again there is a verdict");
    });
    before.assert_same("a driver without a uid");
}

#[test]
fn no_memory_for_the_driver() {
    let _alone = alone();
    let before = Snapshot::take();
    let (mut right, mut clear) = (0, 0);
    let script = "head -c 300000 given >result; head -c 3000000 /dev/zero; exit 3";
    let image = fs::metadata(autodriver()).expect("the driver").len() >> 10;
    let within =
        |kib: u64| move || setrlimit(Resource::RLIMIT_AS, kib << 10, kib << 10).map_err(io::Error::from);
    for kib in (image..image + 2600).step_by(50).chain([6000, 8000, 12_000, 16_000, 32_000]) {
        let ran = Run::with_files(script).before_exec(within(kib)).run();
        // The kernel kills what does not fit at execve(2), and the C library and Rust's end what they cannot start.
        if ran.report.is_none() && ran.status() != Some(125) && kib < image + 500 {
            clear += 1;
            continue;
        }
        // A small driver starts a shell that has not enough itself: killed at execve(2), or 127 from its loader.
        let other = |report: &Report| report.fault.is_none() && report.exit_code != Some(3);
        if ran.report.as_ref().is_some_and(other) {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", "exit 3"]);
            // SAFETY: between fork and exec only a system call is made.
            let status = unsafe { shell.pre_exec(within(kib - 50)) }.status();
            assert!(
                !status.is_ok_and(|status| status.code() == Some(3)),
                "{kib} KiB are enough for a shell: {ran:?}"
            );
            clear += 1;
            continue;
        }
        match ran.is_right_or_clear(&format!("{kib} KiB of address space")) {
            true => right += 1,
            false => clear += 1,
        }
    }
    assert!(right > 0 && clear > 0, "{right} with and {clear} without a verdict");
    driver(["restore"]);
    before.assert_same("drivers without memory");
}

/// A cgroup of this test, in the hierarchy with this controller; removed at the end.
struct Group(PathBuf);

impl Group {
    fn new(controller: &str) -> Group {
        let top = Path::new("/sys/fs/cgroup");
        let place = if top.join(controller).is_dir() { top.join(controller) } else { top.to_owned() };
        // With cgroup v2 the controllers have to be passed on.
        let control = place.join("cgroup.subtree_control");
        if control.exists() {
            fs::write(&control, format!("+{controller}")).expect("the controller is passed on");
        }
        let group = place.join(format!("e2e-{}", std::process::id()));
        fs::create_dir(&group).expect("a cgroup");
        Group(group)
    }

    fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).expect("a file of the cgroup");
    }

    /// For a driver that is to begin in it.
    fn entering(&self) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
        let file = CString::new(self.0.join("cgroup.procs").to_string_lossy().as_bytes()).expect("a path");
        move || {
            // SAFETY: the path ends with a NUL; only system calls are made, as between fork and exec they must.
            let fd = nix::errno::Errno::result(unsafe { libc::open(file.as_ptr(), libc::O_WRONLY) })?;
            // SAFETY: one byte is there to be read.
            nix::errno::Errno::result(unsafe { libc::write(fd, c"0".as_ptr().cast(), 1) })?;
            // SAFETY: it is ours.
            unsafe { libc::close(fd) };
            Ok(())
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let removed = wait_until(Duration::from_secs(10), || fs::remove_dir(&self.0).ok());
        assert!(removed.is_some() || thread::panicking(), "{} stays", self.0.display());
    }
}

#[test]
fn full_process_table() {
    let _alone = alone();
    let before = Snapshot::take();
    {
        let group = Group::new("pids");
        let (mut right, mut clear) = (0, 0);
        for most in 1..8 {
            group.set("pids.max", &most.to_string());
            let ran = Run::with_files("echo made >result; exit 3").before_exec(group.entering()).run();
            match ran.is_right_or_clear(&format!("at most {most} processes")) {
                true => right += 1,
                false => clear += 1,
            }
        }
        assert!(right > 0 && clear > 0, "{right} with and {clear} without a verdict");
    }
    before.assert_same("drivers that could not fork");
}

/// Removes each directory of a job below `place` as soon as the kernel lets it, until told to stop.
fn remove_jobs(place: PathBuf, stop: &std::sync::mpsc::Receiver<()>) -> usize {
    let mut removed = 0;
    while stop.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("autodriver-") {
                removed += usize::from(fs::remove_dir(entry.path()).is_ok());
            }
        }
    }
    removed
}

#[test]
fn cgroup_removed_under_the_driver() {
    const ROUNDS: usize = 40;
    let _alone = alone();
    let before = Snapshot::take();
    {
        // Of the driver's own cgroup, so that no other driver's jobs are there, but for cgroup v2.
        let group = Group::new("pids");
        let v1 = Path::new("/sys/fs/cgroup/pids").is_dir();
        let place = if v1 { group.0.clone() } else { PathBuf::from("/sys/fs/cgroup") };
        let (stop, stopped) = std::sync::mpsc::channel();
        let remover = thread::spawn(move || remove_jobs(place, &stopped));
        let mut clear = 0;
        for round in 0..ROUNDS {
            let ran = Run::new(&[], "exit 3").before_exec(group.entering()).run();
            clear += usize::from(!ran.is_right_or_clear(&format!("round {round}")));
        }
        drop(stop);
        let removed = remover.join().expect("it stops");
        assert!(removed > 0, "no cgroup was removed in {ROUNDS} rounds");
        assert!(clear > 0, "{removed} were removed, and no driver noticed");
    }
    driver(["restore"]);
    before.assert_same("drivers whose cgroups were removed");
}

#[test]
fn hidden_proc() {
    let _alone = alone();
    let before = Snapshot::take();
    let hide: [(&str, fn()); 3] = [
        ("an empty /proc", || small("/proc", "size=4k")),
        ("hidepid", || {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("proc"), "/proc", Some("proc"), flags, Some("hidepid=2")).expect("a /proc");
        }),
        ("a read-only /proc", || {
            let (none, bind) = (None::<&str>, MsFlags::MS_BIND);
            mount(Some("/proc"), "/proc", none, bind, none).expect("a bind mount");
            let flags = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, "/proc", none, flags, none).expect("a read-only /proc");
        }),
    ];
    for (what, hide) in hide {
        in_own_mounts(move || {
            hide();
            Run::new(&[], "exit 3").run().is_right_or_clear(what);
            // No limit may be said to hold that nobody looks after.
            let hog = "exec 3<&0; x=$(head -c 200000000 /dev/zero | tr '\\0' x); exit 3";
            let ran = Run::new(&["--memory", "32M"], hog).run();
            let limited = ran.report.as_ref().is_some_and(|report| report.cause == Cause::MemoryLimit);
            assert!(limited || !ran.is_right_or_clear(what), "{what}: the memory is not limited: {ran:?}");
        });
    }
    before.assert_same("drivers without /proc");
}
