//! One `autodriver run`, described, started and waited for.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use autodriver_protocol::Report;
use tempfile::TempDir;

use crate::outcome::Outcome;
use crate::process::{descendants, wait_until, Process};
use crate::{autodriver, captive};

/// No test waits longer for anything: a driver that hangs is a failure, not a hung suite.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// One `autodriver run` to be.
#[derive(Debug)]
pub struct Job {
    options: Vec<OsString>,
    command: Vec<OsString>,
    stdin: Option<PathBuf>,
    report: bool,
}

/// `./captive WORDS...` in the box.
pub fn job<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Job {
    let words = words.into_iter().map(|word| word.as_ref().to_owned());
    let command = [OsString::from("./captive")].into_iter().chain(words).collect();
    Job { command, ..shell("") }
}

/// `/bin/sh -c SCRIPT` in the box, where `./captive` is at hand.
pub fn shell(script: &str) -> Job {
    let mut given = captive().into_os_string();
    given.push(":captive");
    let options = options(["--in".into(), given, "--quiet".into()]);
    let command = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
    Job { options, command, stdin: None, report: true }
}

/// Any program in the box, with nothing in the job directory.
pub fn program<S: AsRef<OsStr>>(command: impl IntoIterator<Item = S>) -> Job {
    let command = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
    Job { options: options(["--quiet".into()]), command, stdin: None, report: true }
}

/// With what an environment requires instead of the minimum, where that cannot be had.
fn options(options: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let require = std::env::var_os("REQUIRE").map(|layers| ["--require".into(), layers]);
    options.into_iter().chain(require.into_iter().flatten()).collect()
}

/// `autodriver WORDS...` exactly as given.
pub fn driver<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Outcome {
    let mut command = Command::new(autodriver());
    command.args(words);
    Running::start(command, None).wait()
}

impl Job {
    /// Adds an option with a value.
    #[must_use]
    pub fn opt(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Job {
        self.options.extend([name.as_ref().to_owned(), value.as_ref().to_owned()]);
        self
    }

    /// Adds an option without a value.
    #[must_use]
    pub fn flag(mut self, name: impl AsRef<OsStr>) -> Job {
        self.options.push(name.as_ref().to_owned());
        self
    }

    /// Takes `--quiet` away again.
    #[must_use]
    pub fn loud(mut self) -> Job {
        self.options.retain(|option| option != "--quiet");
        self
    }

    /// Leaves `--report` out.
    #[must_use]
    pub fn without_report(mut self) -> Job {
        self.report = false;
        self
    }

    /// Leaves the command out, for a job document to give.
    #[must_use]
    pub fn without_command(mut self) -> Job {
        self.command.clear();
        self
    }

    /// What the driver itself reads as standard input.
    #[must_use]
    pub fn driver_stdin(mut self, file: impl Into<PathBuf>) -> Job {
        self.stdin = Some(file.into());
        self
    }

    /// The command line, for tests that start it by other means.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut words = vec![OsString::from("run")];
        words.extend(self.options.iter().cloned());
        if !self.command.is_empty() {
            words.push("--".into());
            words.extend(self.command.iter().cloned());
        }
        words
    }

    /// What `autodriver explain --json` says of it, with more `options`.
    #[track_caller]
    pub fn explain(&self, options: &[&str]) -> serde_json::Value {
        let words = ["explain", "--json"].iter().chain(options).map(OsString::from);
        let outcome = driver(words.chain(self.arguments().into_iter().skip(1)));
        assert!(outcome.status == 0 && outcome.stderr.is_empty(), "it can be explained: {outcome}");
        serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome}"))
    }

    /// Starts it.
    pub fn spawn(self) -> Running {
        let folder = self.report.then(|| TempDir::with_prefix("e2e-").expect("a folder for the report"));
        let mut job = Job { options: self.options.clone(), command: self.command.clone(), ..self };
        if let Some(folder) = &folder {
            job = job.opt("--report", folder.path().join("report.json"));
        }
        let mut command = Command::new(autodriver());
        command.args(job.arguments());
        if let Some(path) = &job.stdin {
            command.stdin(File::open(path).expect("the driver's standard input"));
        } else {
            command.stdin(Stdio::null());
        }
        Running::start(command, folder)
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }
}

/// A driver at work.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    folder: Option<TempDir>,
    started: Instant,
    peak_kib: u64,
}

fn collect(mut source: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A driver that is killed ends the stream; what came before counts.
        drop(source.read_to_end(&mut bytes));
        bytes
    })
}

impl Running {
    /// Starts a driver by other means.
    pub fn start_command(command: Command) -> Running {
        Running::start(command, None)
    }

    pub(crate) fn start(mut command: Command, folder: Option<TempDir>) -> Running {
        let started = Instant::now();
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Running { child, stdout, stderr, folder, started, peak_kib: 0 }
    }

    /// The driver's process.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pids are positive and small")
    }

    /// The job's first process, seen from outside; waits until it runs.
    pub fn job_process(&self) -> Process {
        let driver = self.pid();
        let find = || descendants(driver).into_iter().find(|one| one.name == "captive");
        wait_until(DEADLINE, find).expect("the job's process appears below the driver")
    }

    /// Sends the driver a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let driver = nix::unistd::Pid::from_raw(self.pid());
        nix::sys::signal::kill(driver, signal).expect("the driver can be signalled");
    }

    fn note_peak(&mut self) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|text| text.split_whitespace().next()?.parse().ok());
        self.peak_kib = self.peak_kib.max(peak.unwrap_or(0));
    }

    /// Waits for the driver's end and collects what it left.
    ///
    /// # Panics
    /// If the driver takes longer than [`DEADLINE`]; it is killed then.
    pub fn wait(mut self) -> Outcome {
        let status = loop {
            self.note_peak();
            if let Some(status) = self.child.try_wait().expect("the driver can be waited for") {
                break status;
            }
            if self.started.elapsed() > DEADLINE {
                drop(self.child.kill());
                panic!("the driver ran for more than {DEADLINE:?}");
            }
            thread::sleep(Duration::from_millis(5));
        };
        let took = self.started.elapsed();
        let read = |stream: &mut Option<JoinHandle<Vec<u8>>>| {
            stream.take().map_or_else(Vec::new, |thread| thread.join().expect("the stream was read"))
        };
        Outcome {
            status: status.code().unwrap_or_else(|| -status.signal().unwrap_or(0)),
            stdout: read(&mut self.stdout),
            stderr: read(&mut self.stderr),
            report: self.folder.as_ref().and_then(report_in),
            took,
            driver_peak_kib: self.peak_kib,
        }
    }
}

/// The report, unless the driver was killed before it wrote one.
fn report_in(folder: &TempDir) -> Option<Report> {
    let text = std::fs::read_to_string(folder.path().join("report.json")).ok()?;
    let parse =
        |text| serde_json::from_str(text).unwrap_or_else(|error| panic!("bad report: {error}\n{text}"));
    (!text.is_empty()).then(|| parse(&text))
}

impl Drop for Running {
    /// A test that fails must not leave its driver behind: a signal makes it restore and end.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(nix::sys::signal::Signal::SIGTERM);
            let ended = wait_until(Duration::from_secs(10), || self.child.try_wait().ok().flatten());
            if ended.is_none() {
                drop(self.child.kill());
                drop(self.child.wait());
            }
        }
    }
}
