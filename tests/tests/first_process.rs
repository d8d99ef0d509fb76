//! autodriver as the first process of a PID namespace, as a container's entry point is: it ends as its job does,
//! hands on what it is told, and waits for orphans.

use std::process::Command;
use std::time::Duration;

use e2e::{alone, autodriver, descendants, processes, wait_until, Image, Outcome, Running, AUTODRIVER};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// `autodriver WORDS...` as the first process of namespaces of its own.
fn first(words: &[&str]) -> Running {
    e2e::require_root();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]).arg(autodriver());
    command.args(words);
    Running::start_command(command)
}

fn script(options: &[&str], script: &str) -> Running {
    first(&[&["run", "--quiet"], options, &["--", "/bin/sh", "-c", script]].concat())
}

/// The driver, once the job has said that it is there.
fn driver(running: &Running) -> Pid {
    let ready = || descendants(running.pid()).into_iter().any(|one| one.name == "sleep").then_some(());
    wait_until(Duration::from_secs(20), ready).expect("the job sleeps");
    let driver = descendants(running.pid()).into_iter().find(|one| one.parent == running.pid());
    Pid::from_raw(driver.expect("the driver").pid)
}

fn ends(outcome: &Outcome, status: i32, text: &str) {
    assert_eq!((outcome.status, outcome.text()), (status, text), "{outcome}");
    assert!(outcome.took < Duration::from_secs(15), "it ends at once: {outcome}");
}

#[test]
fn it_ends_as_its_job_does() {
    ends(&script(&[], "echo out; exit 7").wait(), 7, "out");
    ends(&script(&[], "kill -SEGV $$").wait(), 139, "");
    ends(&script(&["--wall", "200ms"], "sleep 60").wait(), 124, "");
    ends(&first(&["run", "--quiet", "--", "/no/such/program"]).wait(), 127, "");
}

#[test]
fn a_signal_that_asks_it_to_end_ends_the_job() {
    let waits = "trap 'echo asked; exit 3' TERM; while :; do sleep 1; done";
    let running = script(&["--grace", "5s"], waits);
    kill(driver(&running), Signal::SIGTERM).expect("root may");
    let outcome = running.wait();
    assert!(outcome.status == 143 && outcome.text().ends_with("asked"), "{outcome}");
    let running = script(&[], waits);
    kill(driver(&running), Signal::SIGINT).expect("root may");
    ends(&running.wait(), 143, "");
}

#[test]
fn other_signals_are_the_job_s() {
    let running = script(&[], "trap 'echo told; exit 5' USR1; while :; do sleep 0.1; done");
    kill(driver(&running), Signal::SIGUSR1).expect("root may");
    let outcome = running.wait();
    // The sleep that the shell waits for is a process of the job's, too.
    assert!(outcome.status == 5 && outcome.text().contains("told"), "{outcome}");
}

#[test]
fn orphans_of_others_are_waited_for() {
    let running = script(&[], "sleep 3");
    let pid = driver(&running);
    let enters =
        ["--target", &pid.to_string(), "--pid", "--mount", "--", "/bin/sh", "-c", "sleep 0.2 & sleep 0.2 &"];
    assert!(Command::new("nsenter").args(enters).status().expect("nsenter").success());
    std::thread::sleep(Duration::from_millis(1500));
    let zombies: Vec<_> =
        processes().into_iter().filter(|one| one.parent == pid.as_raw() && one.state == 'Z').collect();
    assert!(zombies.is_empty(), "{zombies:?}");
    ends(&running.wait(), 0, "");
}

#[test]
fn the_tango_form_is_a_first_process_too() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo out; exit 0");
    let outcome = image.first(["autolab"]).wait();
    ends(&outcome, 0, "Autodriver: Job exited with status 0\nout");
    image.put_script("sleep 60");
    let outcome = image.first(["-t", "1", "autolab"]).wait();
    ends(&outcome, 2, "Autodriver: Job timed out after 1 seconds");
    image.put_script("sleep 60");
    let running = image.first(["autolab"]);
    let ready = || descendants(running.pid()).into_iter().any(|one| one.name == "sleep").then_some(());
    wait_until(Duration::from_secs(20), ready).expect("the job sleeps");
    kill(Pid::from_raw(image.driver(&running)), Signal::SIGTERM).expect("root may");
    let outcome = running.wait();
    assert_eq!(outcome.status, 3, "{AUTODRIVER}: {outcome}");
    assert!(outcome.text().starts_with("Autodriver: Job was cancelled by a signal"), "{outcome}");
    assert!(processes().iter().all(|one| one.uid != image.autograde()), "{:?}", processes());
}
