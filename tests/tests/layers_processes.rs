//! Other processes: the job neither sees nor reaches those outside, and none of its own outlives it.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::time::Duration;

use autodriver_protocol::Layer;
use e2e::{alone, job, processes, shell, wait_until, Snapshot};

#[test]
fn daemon_of_a_job_is_gone_afterwards() {
    let _alone = alone();
    let before = Snapshot::take();
    let outcome = job(["daemons", "5"]).run().expect_clean();
    assert_eq!(outcome.text(), "ok");
    before.assert_same("a job that left daemons");
}

#[test]
fn daemon_may_live_as_long_as_its_job() {
    let _alone = alone();
    let outcome = shell("./captive daemon 600000; ./captive visible").run().expect_clean();
    let captives = outcome.text().lines().filter(|line| line.ends_with(" captive")).count();
    assert_eq!(captives, 2, "the daemon and the one that looks: {outcome}");
}

#[test]
fn job_does_not_see_processes_outside() {
    let _alone = alone();
    let outcome = job(["visible"]).run().expect_clean();
    let lines: Vec<&str> = outcome.text().lines().filter(|line| *line != "ok").collect();
    assert_eq!(lines.len(), 1, "only the job itself: {outcome}");
    assert!(lines[0].ends_with(" captive"), "{outcome}");
}

#[test]
fn job_is_the_child_of_a_pid_1_that_is_not_the_job() {
    let _alone = alone();
    let outcome = job(["numbers"]).run().expect_clean();
    let numbers: Vec<u32> =
        outcome.text().split_whitespace().skip(1).map(|n| n.parse().expect("a pid")).collect();
    assert!(numbers[0] > 1 && numbers[1] == 1, "{outcome}");
}

#[test]
fn job_cannot_signal_the_driver() {
    let _alone = alone();
    let folder = tempfile::tempdir().expect("a folder");
    let mut bind = folder.path().as_os_str().to_owned();
    bind.push(":/opt");
    let running = job(["kill-named-in", "/opt/pid"]).opt("--bind", &bind).spawn();
    let part = folder.path().join("part");
    // A number that no process of the box has: the machine's numbers go far higher.
    std::fs::write(&part, format!("{}\n", running.pid())).expect("a file");
    std::fs::rename(part, folder.path().join("pid")).expect("rename");
    // The folder itself is closed to others until now, as tempfile makes it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("chmod");
    let outcome = running.wait().expect_clean();
    assert_eq!(outcome.text(), "errno ESRCH", "{outcome}");
}

#[test]
fn job_cannot_harm_the_init_of_its_box() {
    let _alone = alone();
    let outcome = job(["kill-init"]).run().expect_clean();
    assert_eq!(outcome.text(), "ok EPERM EPERM EPERM EPERM EPERM");
}

#[test]
fn job_that_kills_all_it_can_reaches_only_itself() {
    let _alone = alone();
    let outcome = shell("(sleep 600 & sleep 600 & exec ./captive kill-all); echo after").run();
    let outcome = outcome.expect_restored();
    // The shell is among those that are killed.
    assert_eq!((outcome.report().signal, outcome.status), (Some(9), 137), "{outcome}");
}

#[test]
fn job_may_signal_its_own() {
    let _alone = alone();
    let outcome = shell("sleep 600 & kill -9 $!; wait $! 2>/dev/null; echo $?").run().expect_clean();
    assert_eq!(outcome.text(), "137");
}

#[test]
fn landlock_keeps_signals_inside_where_the_uid_would_not() {
    let _alone = alone();
    // A process of the same user outside, whose number the job can see.
    let mut outside = Command::new("sleep").arg("600").uid(61234).spawn().expect("sleep");
    let pid = outside.id().to_string();
    let kill = |skip: &str| job(["kill", &pid, "10"]).opt("--user", "61234").opt("--skip", skip).run();
    let refused = kill("pid-namespace");
    let scoped = refused.landlock_abi() >= 6;
    let twin = scoped.then(|| kill("pid-namespace,landlock"));
    let ended = wait_until(Duration::from_secs(20), || outside.try_wait().expect("the end of sleep"));
    drop(outside.kill());
    drop(outside.wait());
    assert_eq!(refused.expect_clean().text(), if scoped { "errno EPERM" } else { "ok" });
    if let Some(twin) = twin {
        assert_eq!(twin.expect_clean().text(), "ok", "the twin: the uid alone allows it");
    }
    assert_eq!(ended.and_then(|end| end.signal()), Some(10), "it lived until the twin's signal");
}

#[test]
fn without_a_pid_namespace_the_tree_still_dies() {
    let _alone = alone();
    let before = Snapshot::take();
    let outcome = job(["daemons", "5"]).opt("--skip", "pid-namespace").run().expect_clean();
    let tree = outcome.layer(Layer::ProcessTree);
    assert!(tree.by.as_deref().is_some_and(|by| by.contains("cgroup")), "{outcome}");
    before.assert_same("daemons without a PID namespace");
}

#[test]
fn zombies_of_the_job_do_not_stay() {
    let _alone = alone();
    shell("for turn in 1 2 3 4 5 6 7 8; do ./captive daemon 1; done; sleep 1").run().expect_clean();
    let dead = || processes().iter().all(|one| one.state != 'Z' || one.name != "captive").then_some(());
    assert!(wait_until(Duration::from_secs(10), dead).is_some());
}
