//! `autodriver explain` against what /proc says of a live job with the same options: who it is,
//! its limits, cgroups, namespaces and environment.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use autodriver_protocol::Cause;
use e2e::{alone, captive, descendants, driver, job, program, shell, wait_until};
use e2e::{Job, Process, Running, Snapshot};
use serde_json::Value;

/// A job that waits, with options of every kind.
fn waiting() -> Job {
    let job =
        program(["/job/captive", "sleep", "600000"]).opt("--in", format!("{}:captive", captive().display()));
    let job = job.opt("--wall", "100s").opt("--cpu", "30s").opt("--as", "8G");
    let job = job.opt("--nofile", "200").opt("--stack", "4M").opt("--core", "2M").opt("--nproc", "90");
    let job = job.opt("--memory", "64M").opt("--disk", "32M").opt("--pids", "37").opt("--cwd", "/tmp");
    job.opt("--env", "COURSE=a=b c").opt("--env", "LANG=C").opt("--hostname", "explained")
}

/// The explanation, the driver, and the job's number.
fn start(job: Job) -> (Value, Running, i32) {
    let explained = job.explain(&[]);
    let running = job.spawn();
    let argv = strings(&explained["process"]["argv"]).join("\0") + "\0";
    let is_job = |one: &Process| {
        fs::read_to_string(format!("/proc/{}/cmdline", one.pid)).is_ok_and(|text| text == argv)
    };
    let find = || descendants(running.pid()).into_iter().find(is_job);
    let pid = wait_until(Duration::from_secs(20), find).expect("the job runs").pid;
    (explained, running, pid)
}

fn end(running: Running) {
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.wait().cause(), Cause::Cancelled);
}

fn proc(pid: i32, file: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{file}")).expect("the process lives");
    String::from_utf8(bytes).expect("UTF-8")
}

fn status(pid: i32) -> BTreeMap<String, String> {
    let text = proc(pid, "status");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|one| one.as_str().expect("a text")).collect()
}

/// The uid that was leased, after which its cgroup is called; a job that is root has it too.
fn leased(pid: i32) -> String {
    let groups = proc(pid, "cgroup");
    let own = groups.lines().find_map(|line| line.rsplit_once("/autodriver-"));
    own.expect("a cgroup of its own").1.to_owned()
}

/// What a process has in /proc/PID/FILE as strings that end with NUL.
fn terminated(pid: i32, file: &str) -> Vec<String> {
    proc(pid, file).split_terminator('\0').map(str::to_owned).collect()
}

#[track_caller]
fn assert_identity(explained: &Value, pid: i32) {
    let (identity, status) = (&explained["identity"], status(pid));
    for ids in [&status["Uid"], &status["Gid"]] {
        let ids: Vec<u64> = ids.split_whitespace().map(|id| id.parse().expect("an id")).collect();
        let first = identity["uid"]["first"].as_u64().expect("a uid");
        let last = identity["uid"]["last"].as_u64().expect("a uid");
        assert!(ids.iter().all(|id| (first..=last).contains(id) && *id == ids[0]), "{ids:?}: {identity}");
    }
    if identity["groups"].is_array() {
        assert_eq!(status["Groups"].split_whitespace().count(), strings(&identity["groups"]).len());
        for (set, field) in [
            ("inheritable", "CapInh"),
            ("permitted", "CapPrm"),
            ("effective", "CapEff"),
            ("bounding", "CapBnd"),
            ("ambient", "CapAmb"),
        ] {
            let empty = strings(&identity["capabilities"][set]).is_empty();
            assert_eq!(empty, status[field] == "0000000000000000", "{set}: {}", status[field]);
        }
    }
    assert_eq!(identity["no_new_privs"], status["NoNewPrivs"] == "1");
    assert_eq!(explained["seccomp"].is_object(), status["Seccomp"] == "2");
    assert_eq!(explained["process"]["umask"], status["Umask"].as_str());
}

/// The names of /proc/PID/limits.
const LIMITS: [(&str, &str); 16] = [
    ("RLIMIT_CPU", "Max cpu time"),
    ("RLIMIT_FSIZE", "Max file size"),
    ("RLIMIT_DATA", "Max data size"),
    ("RLIMIT_STACK", "Max stack size"),
    ("RLIMIT_CORE", "Max core file size"),
    ("RLIMIT_RSS", "Max resident set"),
    ("RLIMIT_NPROC", "Max processes"),
    ("RLIMIT_NOFILE", "Max open files"),
    ("RLIMIT_MEMLOCK", "Max locked memory"),
    ("RLIMIT_AS", "Max address space"),
    ("RLIMIT_LOCKS", "Max file locks"),
    ("RLIMIT_SIGPENDING", "Max pending signals"),
    ("RLIMIT_MSGQUEUE", "Max msgqueue size"),
    ("RLIMIT_NICE", "Max nice priority"),
    ("RLIMIT_RTPRIO", "Max realtime priority"),
    ("RLIMIT_RTTIME", "Max realtime timeout"),
];

fn limits(pid: i32) -> BTreeMap<&'static str, Vec<String>> {
    let text = proc(pid, "limits");
    let row = |(name, heading): (&'static str, &str)| {
        let line = text.lines().find_map(|line| line.strip_prefix(heading)).expect(heading);
        (name, line.split_whitespace().take(2).map(str::to_owned).collect())
    };
    LIMITS.into_iter().map(row).collect()
}

/// What is explained is set; what is not is the driver's.
#[track_caller]
fn assert_rlimits(explained: &Value, driver: i32, pid: i32) {
    let (mut expected, found) = (limits(driver), limits(pid));
    for row in explained["rlimits"].as_array().expect("a list") {
        let values = ["soft", "hard"].map(|end| row[end].to_string()).to_vec();
        *expected.get_mut(row["name"].as_str().expect("a name")).expect("a known limit") = values;
    }
    assert_eq!(expected, found);
}

#[track_caller]
fn assert_cgroup(explained: &Value, pid: i32) {
    let uid = leased(pid);
    let mut written = 0;
    for directory in explained["cgroup"].as_array().expect("a list") {
        let path = directory["path"].as_str().expect("a path").replace("UID", &uid);
        let inside = fs::read_to_string(format!("{path}/cgroup.procs")).expect("a cgroup");
        assert_eq!(inside.trim(), pid.to_string(), "{path}");
        for file in directory["files"].as_array().expect("a list") {
            let name = format!("{path}/{}", file["file"].as_str().expect("a name"));
            match fs::read_to_string(&name) {
                Ok(value) => assert_eq!(value.trim(), file["value"].to_string(), "{name}"),
                Err(error) => assert!(file["may_be_missing"] == true, "{name}: {error}"),
            }
            written += 1;
        }
    }
    let wanted = |layer: &Value| layer["name"] == "memory" && layer["state"] == "enforced";
    let layers = explained["layers"].as_array().expect("a list");
    assert!(!layers.iter().any(wanted) || written > 1, "{explained}");
}

/// Compared with the driver: on older kernels it has a mount namespace of its own.
#[track_caller]
fn assert_namespaces(explained: &Value, driver: i32, pid: i32) {
    let own = strings(&explained["namespaces"]);
    for name in ["pid", "mnt", "net", "ipc", "uts", "cgroup", "user", "time"] {
        let link = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
        assert_eq!(own.contains(&name), link(driver) != link(pid), "{name}: {own:?}");
    }
}

#[track_caller]
fn assert_process(explained: &Value, pid: i32) {
    let process = &explained["process"];
    let uid = leased(pid);
    let filled = |text: &str| text.replace("UID", &uid);
    let env: Vec<String> = strings(&process["env"]).into_iter().map(filled).collect();
    assert_eq!(terminated(pid, "environ"), env);
    assert_eq!(terminated(pid, "cmdline"), strings(&process["argv"]));
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).expect("a link");
    assert_eq!(link("cwd").to_str(), Some(filled(process["cwd"].as_str().expect("a path")).as_str()));
    assert_eq!(link("fd/0").to_str(), process["stdin"].as_str());
    assert_eq!(proc(pid, "oom_score_adj").trim(), process["oom_score_adj"]);
    let stat = proc(pid, "stat");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    // proc_pid_stat(5): the 19th field, of which the first two are gone.
    let nice = after_name.split_whitespace().nth(16).expect("a nice value");
    assert_eq!(nice, process["nice"].to_string());
}

#[track_caller]
fn assert_like_proc(job: Job) {
    let _alone = alone();
    let (explained, running, pid) = start(job);
    assert_eq!(explained["version"], 1);
    assert_identity(&explained, pid);
    assert_rlimits(&explained, running.pid(), pid);
    assert_cgroup(&explained, pid);
    assert_namespaces(&explained, running.pid(), pid);
    assert_process(&explained, pid);
    end(running);
}

#[test]
fn job_is_what_was_explained() {
    assert_like_proc(waiting());
}

#[test]
fn job_of_a_given_user_is_what_was_explained() {
    let job = waiting().opt("--user", "61234");
    assert_eq!(job.explain(&[])["identity"]["uid"], serde_json::json!({"first": 61234, "last": 61234}));
    assert_like_proc(job);
}

#[test]
fn job_without_some_layers_is_what_was_explained() {
    let least = job(["sleep", "600000"]).opt("--wall", "100s").opt("--net", "host");
    assert_like_proc(least.opt("--skip", "mount-namespace,memory,disk,uts-namespace,rlimits,landlock"));
    // The captive refuses to run as root.
    let as_root = program(["sleep", "600"]).opt("--wall", "100s");
    assert_like_proc(as_root.opt("--skip", "identity,ipc-namespace,cgroup-namespace"));
}

#[test]
fn layers_and_host_name_are_those_of_the_job() {
    let _alone = alone();
    let job = shell("hostname").opt("--hostname", "explained").opt("--skip", "landlock");
    let explained = job.explain(&[]);
    let outcome = job.run().expect_clean();
    assert_eq!(outcome.text(), explained["hostname"]);
    assert_eq!(serde_json::to_value(&outcome.report().layers).expect("JSON"), explained["layers"]);
}

#[test]
fn securebits_are_those_of_the_job() {
    let _alone = alone();
    let names = [
        "noroot",
        "noroot_locked",
        "no_setuid_fixup",
        "no_setuid_fixup_locked",
        "keep_caps",
        "keep_caps_locked",
        "no_cap_ambient_raise",
        "no_cap_ambient_raise_locked",
    ];
    let job = job(["securebits"]);
    let explained = job.explain(&[]);
    let set = strings(&explained["identity"]["securebits"]);
    let bit = |name: &str| 1 << names.iter().position(|known| *known == name).expect("securebits(7)");
    let bits: u32 = set.into_iter().map(bit).sum();
    assert_eq!(job.run().expect_clean().text(), format!("ok {bits:#x}"));
}

#[test]
fn text_has_every_section_and_what_stands_in_it() {
    let _alone = alone();
    let words = ["explain", "--env", "COURSE=15213", "--nofile", "77", "--bpf", "--", "make", "grade"];
    let outcome = driver(words);
    assert_eq!(outcome.status, 0, "{outcome}");
    for words in [
        "command\n  execute                     'make' 'grade'\n",
        "limits\n",
        "identity\n",
        "namespaces\n",
        "file system\n  /  ",
        "cgroup\n",
        "RLIMIT_NOFILE      77         77\n",
        "landlock\n",
        "system calls\n",
        "  personality  EPERM unless arg0=0|0x20000|0x40000|0xffffffff",
        "environment\n  HOME=/job\n",
        "  COURSE=15213\n",
        "layers\n",
        "system calls, as BPF\n   0  load arch\n",
    ] {
        assert!(outcome.text().contains(words), "{words:?} is missing in\n{}", outcome.text());
    }
}

#[test]
fn what_run_refuses_is_refused_in_the_same_words() {
    let _alone = alone();
    let before = Snapshot::take();
    for words in [
        ["--memory", "1K"],
        ["--user", "root"],
        ["--user", "no-such-account"],
        ["--bind", "/no/such/bind"],
        ["--root", "/no/such/root"],
        ["--stdin", "/no/such/stdin"],
        ["--job", "/no/such/job.json"],
        ["--skip", "no-new-privs"],
        ["--skip", "moat"],
    ] {
        let [explain, run] = ["explain", "run"].map(|command| {
            driver([&[command], &words[..], &["--", "/bin/true"]].concat()).expect_refusal(&[])
        });
        assert_eq!(explain.complaint(), run.complaint());
    }
    before.assert_same("refused explanations");
}

#[test]
fn nothing_is_run_left_or_changed() {
    let _alone = alone();
    let before = Snapshot::take();
    let folder = tempfile::tempdir().expect("a folder");
    let (document, report) = (folder.path().join("job.json"), folder.path().join("report.json"));
    fs::write(&document, r#"{"command": ["touch", "/job/x"], "hostname": "from-document"}"#).expect("a file");
    let job = shell("exit 1").without_command().without_report().opt("--job", &document);
    let explained = job.opt("--report", &report).explain(&["--bpf"]);
    assert_eq!(explained["hostname"], "from-document");
    assert_eq!(strings(&explained["process"]["argv"]), ["touch", "/job/x"]);
    assert!(!report.exists());
    drop(folder);
    before.assert_same("explaining");
}

#[test]
fn fifo_for_standard_input_is_explained_without_waiting_for_its_writer() {
    let folder = tempfile::tempdir().expect("a directory");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let fifo = fifo.to_str().expect("UTF-8");
    let outcome = driver(["explain", "--stdin", fifo, "--", "/bin/true"]);
    assert_eq!(outcome.status, 0, "{outcome}");
    driver(["explain", "--stdin", "/nowhere", "--", "/bin/true"])
        .expect_refusal(&["--stdin /nowhere", "ENOENT"]);
}
