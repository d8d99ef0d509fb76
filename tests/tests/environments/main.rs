//! What a job meets in the environment this runs in, whichever that is: scripts/test-environments
//! takes it into each. What the job's report says is enforced or substituted must be refused, and
//! what is absent must be named. A hostile job ends with the right cause, leaves nothing, and the
//! next one is graded as if it had not been.

mod hiding;

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};
use std::time::Duration;

use autodriver_protocol::report::LayerState;
use autodriver_protocol::{Cause, Layer};
use e2e::{alone, driver, job, processes, shell, wait_until, Job, Outcome, Snapshot};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;

/// Runs the forbidden thing and its allowed twin. The first must have come to nothing where the
/// layer holds; the second must work in any case, or the first has shown nothing.
#[track_caller]
fn pair(
    layer: Layer,
    (forbidden, refused): (Job, impl Fn(&Outcome) -> bool),
    (twin, works): (Job, impl Fn(&Outcome) -> bool),
) {
    let outcome = forbidden.run().expect_started().expect_restored();
    assert!(!outcome.holds(layer) || refused(&outcome), "{layer} is said to hold: {outcome}");
    let outcome = twin.run().expect_started().expect_restored();
    assert!(works(&outcome), "the twin of {layer} should work: {outcome}");
}

/// The captive was told an error.
fn refused(outcome: &Outcome) -> bool {
    outcome.text().starts_with("errno ")
}

/// The captive did what it was asked.
fn done(outcome: &Outcome) -> bool {
    outcome.cause() == Cause::Exited && outcome.text().starts_with("ok")
}

fn says(text: &'static str) -> impl Fn(&Outcome) -> bool {
    move |outcome| outcome.text() == text
}

fn ended_by(cause: Cause) -> impl Fn(&Outcome) -> bool {
    move |outcome| outcome.cause() == cause
}

/// A folder of the machine that anybody may read and write, and a file in it.
fn open_folder() -> (tempfile::TempDir, String) {
    let folder = tempfile::Builder::new().prefix("e2e-").tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("chmod");
    let file = folder.path().join("file");
    std::fs::write(&file, "content\n").expect("a file");
    std::fs::set_permissions(&file, Permissions::from_mode(0o666)).expect("chmod");
    let path = file.to_str().expect("UTF-8").to_owned();
    (folder, path)
}

/// A process outside that a job must not reach; without root it has the job's own uid.
struct Bystander(Child);

impl Bystander {
    fn start() -> Bystander {
        Bystander(Command::new("sleep").arg("600").spawn().expect("sleep"))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().expect("the state of sleep").is_none()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn identity_is_not_roots() {
    let _alone = alone();
    let is_not_root = |outcome: &Outcome| done(outcome) && !outcome.text().starts_with("ok 0 ");
    pair(Layer::Identity, (job(["become-root"]), refused), (job(["ids"]), is_not_root));
    let none = says("ok 0000000000000000");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        pair(Layer::Identity, (job(["status", set]), &none), (job(["ids"]), is_not_root));
    }
}

#[test]
fn privileges_cannot_grow_and_programs_can_be_run() {
    let _alone = alone();
    let run = job(["run-file", "./captive"]);
    pair(Layer::NoNewPrivs, (job(["status", "NoNewPrivs"]), says("ok 1")), (run, done));
}

#[test]
fn tree_dies_with_its_job_and_not_before() {
    let _alone = alone();
    let before = Snapshot::take();
    let outcome = job(["daemons", "5"]).run().expect_clean();
    if outcome.holds(Layer::ProcessTree) {
        before.assert_same("daemons");
    }
    let twin = shell("sleep 600 & sleep 1; kill -0 $! && echo lives").run().expect_clean();
    assert_eq!(twin.text(), "lives");
}

#[test]
fn processes_outside_cannot_be_signalled_and_ones_own_can() {
    let _alone = alone();
    let mut outside = Bystander::start();
    let own = shell("sleep 600 & kill -9 $!; wait $! 2>/dev/null; echo $?");
    let kill = job(["kill", &outside.pid(), "9"]);
    pair(Layer::PidNamespace, (kill, refused), (own, says("137")));
    let outcome = job(["visible"]).run().expect_exit(0);
    if outcome.layer(Layer::PidNamespace).state == LayerState::Enforced {
        assert!(outside.lives(), "{outcome}");
        let seen = outcome.text().lines().filter(|line| *line != "ok").count();
        assert_eq!(seen, 1, "only the job itself: {outcome}");
    }
}

#[test]
fn files_of_the_machine_cannot_be_changed_and_ones_own_can() {
    let _alone = alone();
    let (_folder, file) = open_folder();
    let own = || shell("echo x > new && echo x > \"$TMPDIR/new\" && cat new \"$TMPDIR/new\"");
    pair(Layer::MountNamespace, (job(["overwrite", &file]), refused), (own(), says("x\nx")));
    pair(Layer::MountNamespace, (job(["read", &file]), refused), (job(["read", "/bin/sh"]), done));
    pair(Layer::MountNamespace, (job(["create", "/usr/e2e-new"]), refused), (own(), says("x\nx")));
}

#[test]
fn servers_outside_cannot_be_reached_and_sockets_of_ones_own_can() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a server");
    let address = listener.local_addr().expect("its address").to_string();
    let own = || job(["unix-loopback", "socket"]);
    pair(Layer::NetworkNamespace, (job(["tcp", &address]), refused), (own(), says("ok hello")));
    pair(Layer::NetworkNamespace, (job(["udp", "192.0.2.1:53"]), refused), (own(), says("ok hello")));
}

#[test]
fn segments_of_the_machine_are_out_of_sight_and_shared_memory_works() {
    const KEY: libc::key_t = 0x0e2e_0002;
    let _alone = alone();
    // SAFETY: shmget takes numbers only; the segment is removed below.
    let id = unsafe { libc::shmget(KEY, 4096, libc::IPC_CREAT | 0o666) };
    assert!(id >= 0, "a segment on the machine");
    let outcome = shell("cat /proc/sysvipc/shm; echo end").run();
    // SAFETY: as above; IPC_RMID reads no buffer.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    let outcome = outcome.expect_clean();
    let listed = outcome.text().split_whitespace().any(|word| word == KEY.to_string());
    let enforced = outcome.layer(Layer::IpcNamespace).state == LayerState::Enforced;
    // A substitute removes what the job made; it hides nothing of what others did.
    assert!(!enforced || !listed, "{outcome}");
    let calls = job(["syscalls"]);
    let no_segment = |outcome: &Outcome| call(outcome, "shmget") != "ok";
    pair(Layer::IpcNamespace, (calls, no_segment), (job(["allocate-shared", "1"]), done));
}

/// What came of one call of `captive syscalls`.
#[track_caller]
fn call<'a>(outcome: &'a Outcome, name: &str) -> &'a str {
    let line = outcome.text().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} was not tried: {outcome}"))
}

#[test]
fn host_name_cannot_be_changed_and_can_be_read() {
    let _alone = alone();
    let own = nix::unistd::gethostname().expect("a name");
    let kept = |outcome: &Outcome| {
        call(outcome, "sethostname") != "ok" && nix::unistd::gethostname().is_ok_and(|name| name == own)
    };
    pair(Layer::UtsNamespace, (job(["syscalls"]), kept), (job(["hostname"]), done));
}

#[test]
fn cgroups_cannot_be_made_and_ones_own_can_be_read() {
    let _alone = alone();
    let make = "for at in /sys/fs/cgroup /sys/fs/cgroup/*; do \
                  mkdir $at/e2e-new 2>/dev/null && echo made && rmdir $at/e2e-new; \
                done; echo end";
    let read = shell("cat /proc/self/cgroup >/dev/null && echo read");
    pair(Layer::CgroupNamespace, (shell(make), says("end")), (read, says("read")));
}

#[test]
fn memory_is_limited_for_the_whole_job() {
    let _alone = alone();
    let limited = |words: &[&str]| job(words).opt("--memory", "64M");
    for forbidden in [&["allocate", "256"][..], &["allocate-split", "8", "24"]] {
        let end = ended_by(Cause::MemoryLimit);
        pair(Layer::Memory, (limited(forbidden), end), (limited(&["allocate", "32"]), done));
    }
}

#[test]
fn processes_are_limited_for_the_whole_job() {
    let _alone = alone();
    let limited = |words: &[&str]| job(words).opt("--pids", "20");
    let stopped = |outcome: &Outcome| {
        let count = outcome.text().strip_prefix("ok ").and_then(|text| text.strip_suffix(" EAGAIN"));
        // A refusal that the kernel counts for nobody may have come and gone between two samples.
        let told = outcome.hit("pids") || outcome.layer(Layer::Pids).state != LayerState::Enforced;
        told && count.is_some_and(|count| count.parse::<u32>().is_ok_and(|count| count < 20))
    };
    // Without root, the caller's own processes count as well.
    pair(Layer::Pids, (limited(&["fork-until-refused"]), stopped), (limited(&["strict", "fork", "5"]), done));
}

#[test]
fn cpu_time_is_limited_for_the_whole_job() {
    let _alone = alone();
    let limited = |words: &[&str]| job(words).opt("--cpu", "500ms").opt("--wall", "20s");
    let end = ended_by(Cause::CpuLimit);
    pair(Layer::Cpu, (limited(&["spin-unwaited", "3", "60000"]), end), (limited(&["spin", "50"]), done));
}

#[test]
fn storage_is_limited_for_the_whole_job() {
    let _alone = alone();
    let limited = |script: &str| shell(script).opt("--disk", "32M");
    let fill = "for name in 1 2 3 4 5 6; do ./captive strict write $name 10 || exit 1; done; sleep 5";
    let end = ended_by(Cause::DiskLimit);
    pair(Layer::Disk, (limited(fill), &end), (limited("./captive strict write a 10"), done));
    let moved = limited("./captive strict hide-by-moving 60").run().expect_started().expect_restored();
    assert!(end(&moved), "{moved}");
}

#[test]
fn limits_of_a_process_hold_and_cannot_be_raised() {
    let _alone = alone();
    let unraised = |outcome: &Outcome| {
        outcome.text().lines().all(|line| line == "ok" || line.ends_with("EPERM")) && done_at_the_end(outcome)
    };
    let set = |outcome: &Outcome| outcome.text().lines().any(|line| line == "nofile 200 200");
    pair(Layer::Rlimits, (job(["raise-limits"]), unraised), (job(["limits"]).opt("--nofile", "200"), set));
}

fn done_at_the_end(outcome: &Outcome) -> bool {
    outcome.text().lines().last().is_some_and(|line| line == "ok")
}

#[test]
fn landlock_alone_closes_the_machines_files() {
    let _alone = alone();
    let (_folder, file) = open_folder();
    let alone = |words: &[&str]| job(words).opt("--skip", "mount-namespace");
    pair(Layer::Landlock, (alone(&["overwrite", &file]), refused), (alone(&["create", "new"]), done));
}

#[test]
fn dangerous_calls_are_refused_and_needed_ones_are_not() {
    let _alone = alone();
    let shut = |outcome: &Outcome| {
        let names = ["unshare-user", "clone-user", "mount", "keyctl", "bpf", "io_uring_setup", "setns"];
        names.iter().all(|name| ["ENOSYS", "EPERM"].contains(&call(outcome, name)))
    };
    let open = |outcome: &Outcome| {
        ["clone", "eventfd2", "epoll_create1", "socket-unix", "flock"].iter().all(|name| {
            // A bad descriptor is the call's own answer.
            ["ok", "EBADF"].contains(&call(outcome, name))
        })
    };
    pair(Layer::Seccomp, (job(["syscalls"]), shut), (job(["syscalls"]), open));
}

/// Runs a hostile job; afterwards nothing is left, and the next job is graded as always.
#[track_caller]
fn endure(what: &str, hostile: Job, check: impl Fn(&Outcome)) {
    let before = Snapshot::take();
    let outcome = hostile.run().expect_started().expect_restored();
    check(&outcome);
    before.assert_same(what);
    let next =
        shell("./captive strict write a 1 && ./captive strict fork 3 && echo graded").run().expect_clean();
    assert_eq!(next.text(), "ok\nok\ngraded", "after {what}");
    before.assert_same("the next job");
}

#[test]
fn fork_bomb_ends_and_leaves_nothing() {
    let _alone = alone();
    endure("a fork bomb", job(["fork-bomb"]).opt("--wall", "3s").opt("--pids", "64"), |outcome| {
        assert_eq!(outcome.cause(), Cause::WallLimit, "{outcome}");
        assert!(!outcome.holds(Layer::Pids) || outcome.hit("pids"), "{outcome}");
    });
}

#[test]
fn memory_bomb_ends_and_leaves_nothing() {
    let _alone = alone();
    for words in [&["allocate", "1024"][..], &["allocate-split", "16", "32"], &["allocate-shared", "512"]] {
        endure("a memory bomb", job(words).opt("--memory", "64M"), |outcome| {
            if outcome.holds(Layer::Memory) {
                assert_eq!(outcome.cause(), Cause::MemoryLimit, "{outcome}");
            }
        });
    }
}

#[test]
fn job_ends_with_a_driver_that_is_killed() {
    let _alone = alone();
    let before = Snapshot::take();
    // While it is set up, and when it runs.
    for moment in (0..12).map(|n| Duration::from_millis(n * n)) {
        let running = shell("./captive daemons 3; exec ./captive ignore-term").opt("--wall", "60s").spawn();
        std::thread::sleep(moment);
        running.signal(Signal::SIGKILL);
        running.wait();
        let ended = || processes().iter().all(|one| one.name != "captive").then_some(());
        let ended = wait_until(Duration::from_secs(20), ended);
        assert!(ended.is_some(), "killed after {moment:?}, and the job goes on: {:?}", processes());
    }
    // Of a cgroup, its empty directory; what stays is what no process of the job can use.
    driver(["restore"]);
    before.assert_same("killed drivers, and restore");
    job(["exit", "0"]).run().expect_restored();
}

#[test]
fn daemon_ends_with_its_job() {
    let _alone = alone();
    let script = "./captive daemon 600000; ./captive daemons 3; echo left";
    endure("daemons", shell(script), |outcome| {
        assert_eq!((outcome.cause(), outcome.text()), (Cause::Exited, "ok\nok\nleft"), "{outcome}");
    });
}

#[test]
fn disk_filler_ends_and_leaves_nothing() {
    let _alone = alone();
    let script = "for place in . \"$TMPDIR\" /tmp /var/tmp /dev/shm; do \
                    for name in 1 2 3 4; do ./captive write $place/fill-$name 16; done; \
                  done; ./captive sleep 10000; exit 1";
    endure("a disk filler", shell(script).opt("--disk", "32M"), |outcome| {
        if outcome.holds(Layer::Disk) {
            assert_eq!(outcome.cause(), Cause::DiskLimit, "{outcome}");
        }
    });
}

#[test]
fn job_that_kills_all_it_can_reaches_nothing_outside() {
    let _alone = alone();
    let probe = job(["ids"]).run().expect_clean();
    if !probe.holds(Layer::PidNamespace) && !probe.holds(Layer::Identity) {
        // It would reach this test and its driver: the report names both layers, with reason and remedy.
        return;
    }
    let mut outside = Bystander::start();
    let script = "sleep 600 & sleep 600 & ./captive kill-init; exec ./captive kill-all";
    endure("a job that kills", shell(script), |outcome| {
        assert!([Cause::Exited, Cause::Signaled].contains(&outcome.cause()), "{outcome}");
    });
    assert!(outside.lives(), "a process of the machine was killed");
}

#[test]
fn files_of_another_job_cannot_be_read() {
    let _alone = alone();
    job(["ids"]).run().expect_clean();
    let before = Snapshot::take();
    let hide = "chmod 755 . ; for place in . \"$TMPDIR\" /tmp /var/tmp /dev/shm; do \
                  echo the secret > $place/e2e-secret; chmod 666 $place/e2e-secret; \
                done; exec ./captive sleep 60000";
    let other = shell(hide).opt("--wall", "100s").spawn();
    other.job_process();
    let seek = "cat /proc/[0-9]*/cwd/e2e-secret /proc/[0-9]*/root/tmp/e2e-secret; \
                find . \"$TMPDIR\" /tmp /var/tmp /dev/shm /run /home -name e2e-secret -exec cat {} + ; \
                echo sought";
    let outcome = shell(&format!("{{ {seek} ; }} 2>/dev/null")).run().expect_clean();
    other.signal(nix::sys::signal::Signal::SIGTERM);
    let cancelled = other.wait().expect_restored();
    assert_eq!(cancelled.cause(), Cause::Cancelled, "{cancelled}");
    if outcome.holds(Layer::MountNamespace) || outcome.holds(Layer::Identity) {
        assert_eq!(outcome.text(), "sought", "{outcome}");
    }
    before.assert_same("a job that reads");
}

#[test]
fn job_that_connects_out_reaches_nobody() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a server");
    listener.set_nonblocking(true).expect("a server that does not wait");
    let address = listener.local_addr().expect("its address");
    let script = format!("for to in {address} 192.0.2.1:80 169.254.169.254:80; do ./captive tcp $to; done");
    endure("a job that connects", shell(&script).opt("--wall", "100s"), |outcome| {
        assert_eq!(outcome.cause(), Cause::Exited, "{outcome}");
        if outcome.holds(Layer::NetworkNamespace) {
            assert!(outcome.text().lines().all(|line| line.starts_with("errno ")), "{outcome}");
            assert!(listener.accept().is_err(), "somebody came: {outcome}");
        }
    });
}

#[test]
fn second_job_of_a_uid_finds_no_trace_of_the_first() {
    let _alone = alone();
    // Without root every job has the caller's uid.
    let of_the_uid = |script: &str| {
        let run = shell(script);
        if geteuid().is_root() {
            run.opt("--user", "58123")
        } else {
            run
        }
    };
    let places = ". \"$TMPDIR\" /tmp /var/tmp /dev/shm /dev/mqueue /run /run/lock /home /var/lock";
    let first = format!(
        "for place in {places}; do \
           {{ echo x > $place/e2e-trace; mkdir $place/e2e-trace.d; }} 2>/dev/null && echo $place; \
         done; ./captive daemon 600000; ./captive syscalls >/dev/null; echo left"
    );
    let second = format!(
        "find {places} -name 'e2e-trace*' 2>/dev/null; \
         for one in /proc/[0-9]*; do \
           [ -O $one ] && case $(cat $one/comm) in captive) echo $one;; esac; \
         done 2>/dev/null; \
         awk -v uid=$(id -u) '$8 == uid' /proc/sysvipc/shm 2>/dev/null; echo sought"
    );
    let before = Snapshot::take();
    let outcome = of_the_uid(&first).run().expect_clean();
    assert!(outcome.text().starts_with(".\n") && outcome.text().ends_with("\nleft"), "{outcome}");
    before.assert_same("the first");
    let outcome = of_the_uid(&second).run().expect_clean();
    assert_eq!(outcome.text(), "sought", "{outcome}");
    before.assert_same("the second");
}

#[test]
fn directories_that_others_made_first_keep_no_job_from_starting() {
    let _alone = alone();
    let squatted: Vec<String> =
        (59_000..=59_999).filter(|uid| uid % 50 != 0).map(|uid| format!("/tmp/autodriver-{uid}")).collect();
    for place in &squatted {
        std::fs::create_dir(place).expect("a new directory");
        if geteuid().is_root() {
            std::os::unix::fs::chown(place, Some(12_345), Some(12_345)).expect("root may");
        }
    }
    let outcome = job(["ids"]).run();
    for place in &squatted {
        std::fs::remove_dir(place).expect("it is as it was");
    }
    outcome.expect_clean();
}

/// The layers of a job here that are not enforced.
fn weaker(outcome: &Outcome) -> Vec<autodriver_protocol::report::LayerReport> {
    let layers = outcome.report().layers.iter();
    layers.filter(|one| one.state != LayerState::Enforced).cloned().collect()
}

#[test]
fn every_layer_is_told_and_what_is_not_enforced_says_why() {
    let _alone = alone();
    let outcome = job(["ids"]).run().expect_clean();
    let names: Vec<Layer> = outcome.report().layers.iter().map(|one| one.name).collect();
    assert_eq!(names, Layer::ALL, "{outcome}");
    for layer in weaker(&outcome) {
        let told = match layer.state {
            LayerState::Substituted => layer.by.is_some() && layer.reason.is_some(),
            _ => layer.reason.is_some() && layer.remedy.is_some(),
        };
        assert!(told, "{}: {outcome}", layer.name);
    }
}

#[test]
fn requiring_all_is_refused_with_every_missing_layer() {
    let _alone = alone();
    let weaker = weaker(&job(["ids"]).run().expect_clean());
    let before = Snapshot::take();
    let strict = shell("echo ran").opt("--require", "all").run();
    if weaker.is_empty() {
        assert_eq!(strict.expect_clean().text(), "ran");
        return;
    }
    let mut words: Vec<String> = weaker.iter().map(|layer| layer.name.to_string()).collect();
    words.extend(weaker.into_iter().flat_map(|layer| [layer.reason, layer.remedy]).flatten());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    strict.expect_refusal(&words);
    before.assert_same("a refused job");
}

#[test]
fn one_line_names_the_weaker_layers_unless_quiet() {
    let _alone = alone();
    let quiet = job(["ids"]).run().expect_clean();
    assert_eq!(quiet.complaint(), "");
    let loud = job(["ids"]).loud().run().expect_clean();
    let weaker = weaker(&loud);
    let lines: Vec<&str> = loud.complaint().lines().filter(|line| line.contains("not enforced")).collect();
    assert_eq!(lines.len(), usize::from(!weaker.is_empty()), "{loud}");
    for layer in weaker {
        assert!(lines[0].contains(&layer.name.to_string()), "{}: {loud}", layer.name);
    }
}
