//! A batch that is interrupted goes on where it was; one job's output is shown; the page is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use e2e::vmm_local;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::{json, Value};

const JOBS: usize = 6;

/// A directory of jobs that take a moment each, on one machine after the other.
struct Batch(tempfile::TempDir);

impl Batch {
    fn new() -> Batch {
        let batch = Batch(tempfile::tempdir().expect("a directory"));
        for number in 0..JOBS {
            let job = batch.path(&format!("jobs/{number}"));
            fs::create_dir_all(&job).expect("a directory");
            let script = "echo hello; sleep 0.5; echo '{\"scores\": {\"p\": 1}}'";
            let document = json!({"command": ["sh", "-c", script]}).to_string();
            fs::write(job.join("job.json"), document).expect("a file");
        }
        batch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self, options: &[&str]) -> Child {
        Command::new(vmm_local())
            .args(["batch", "--machines", "1", "--jsonl", "lines"])
            .args(options)
            .arg("jobs")
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("vmm-local starts")
    }

    fn run(&self, options: &[&str]) -> Output {
        self.start(options).wait_with_output().expect("vmm-local ends")
    }

    /// Begins the batch, and ends it by a signal once two jobs have their lines.
    fn interrupt(&self, signal: Signal) -> Output {
        let child = self.start(&[]);
        self.wait_for_lines(2);
        kill(Pid::from_raw(child.id().try_into().expect("a process id")), signal).expect("it runs");
        child.wait_with_output().expect("vmm-local ends")
    }

    fn wait_for_lines(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while fs::read_to_string(self.path("lines")).unwrap_or_default().lines().count() < count {
            assert!(Instant::now() < deadline, "not {count} lines within a minute");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the last verdict on each job says.
    fn verdicts(&self) -> BTreeMap<String, String> {
        let lines = lines(&self.path("lines"));
        let graded = lines.iter().filter(|line| line["graded"] == true);
        let verdict =
            |line: &Value| format!("{} {} {}", line["verdict"], line["exit_status"], line["scores"]);
        graded.map(|line| (line["job"].to_string(), verdict(line))).collect()
    }

    /// The names of jobs that have a line, each once, and whether all are graded.
    fn graded(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for line in lines(&self.path("lines")).iter().filter(|line| line["graded"] == json!(true)) {
            let name = line["job"].as_str().expect("a name").to_owned();
            assert!(names.insert(name), "two verdicts on one job: {line}");
        }
        names
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("lines");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_was_graded_before_is_not_run_again_however_the_batch_ended() {
    let whole = Batch::new();
    assert_eq!(whole.run(&[]).status.code(), Some(0));
    for (signal, status) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let batch = Batch::new();
        let ended = batch.interrupt(signal);
        assert_eq!(ended.status.code(), status, "{signal}: {}", said(&ended));
        let before = fs::read_to_string(batch.path("lines")).expect("lines");
        let graded = batch.graded();
        assert!((2..JOBS).contains(&graded.len()), "{signal}: {graded:?}");
        // as if it had been killed while it wrote
        let torn = &before[..before.len() / 4];
        fs::write(batch.path("lines"), format!("{before}{}", torn.lines().next().unwrap_or_default()))
            .expect("a file");
        // and one job is another by now
        fs::write(batch.path("jobs/0/more"), "more").expect("a file");

        let ended = batch.run(&["--resume", "--html", "page.html"]);
        assert_eq!(ended.status.code(), Some(0), "{signal}: {}", said(&ended));
        let again = graded.len() - 1;
        assert!(said(&ended).contains(&format!("{again} of them before")), "{signal}: {}", said(&ended));
        let table = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert_eq!(table.matches("exited 0").count(), JOBS, "{signal}: {table}");
        let lines = lines(&batch.path("lines"));
        let count =
            |job: &str| lines.iter().filter(|line| line["job"] == job && line["graded"] == true).count();
        assert_eq!((count("0"), count("1")), (2, 1), "{signal}: {lines:?}");
        assert_eq!(batch.verdicts(), whole.verdicts(), "{signal}");
        let page = fs::read_to_string(batch.path("page.html")).expect("a page");
        assert!((0..JOBS).all(|job| page.contains(&format!("<th scope=\"row\">{job}</th>"))), "{page}");
    }
}

#[test]
fn results_of_an_earlier_batch_are_not_overwritten() {
    let batch = Batch::new();
    for content in ["{\"job\": \"0\"}\n", "my thesis\n"] {
        fs::write(batch.path("lines"), content).expect("a file");
        let refused = batch.run(&[]);
        assert_eq!(refused.status.code(), Some(125), "{}", said(&refused));
        assert_eq!(said(&refused).lines().count(), 1, "{}", said(&refused));
        assert_eq!(fs::read_to_string(batch.path("lines")).expect("a file"), content);
    }
    let refused = batch.run(&["--resume"]);
    assert_eq!(refused.status.code(), Some(125), "{}", said(&refused));
    assert_eq!(fs::read_to_string(batch.path("lines")).expect("a file"), "my thesis\n");
}

#[test]
fn two_batches_do_not_write_to_one_file_at_once() {
    let batch = Batch::new();
    let first = batch.start(&[]);
    batch.wait_for_lines(1);
    let refused = batch.run(&["--resume"]);
    assert_eq!(refused.status.code(), Some(125), "{}", said(&refused));
    assert!(said(&refused).contains("another batch writes to it"), "{}", said(&refused));
    let ended = first.wait_with_output().expect("vmm-local ends");
    assert_eq!((ended.status.code(), batch.graded().len()), (Some(0), JOBS), "{}", said(&ended));
}

#[test]
fn one_job_s_output_is_shown_as_it_comes() {
    let batch = Batch::new();
    let ended = batch.run(&["--tail", "3"]);
    assert_eq!(ended.status.code(), Some(0), "{}", said(&ended));
    assert_eq!(said(&ended).matches("3 | hello\n").count(), 1, "{}", said(&ended));
    assert_eq!(said(&ended).matches(" | hello\n").count(), 1, "{}", said(&ended));
    let refused = batch.run(&["--resume", "--tail", "absent"]);
    assert_eq!(refused.status.code(), Some(125), "{}", said(&refused));
}
