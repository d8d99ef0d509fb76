//! A caller who sets up the process before it becomes autodriver: nothing of it changes what it does.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use e2e::{alone, wait_until, Image, Outcome};
use nix::sys::signal::Signal;

/// A job that says what it was given.
const LOOKS: &str = "env | sort; umask; ulimit -a; cat /proc/self/status | grep -E '^(Sig(Blk|Ign)|CapEff)'; uname -r
    ls /proc/self/fd; readlink /proc/self/fd/0; nice; cat /proc/self/personality 2>/dev/null; nproc; pwd; sleep 0.6";

fn job(image: &Image, acts: &[&str]) -> Outcome {
    image.put_script(LOOKS);
    acts.iter().fold(image.autodriver(["-t", "30", "autolab"]), |call, act| call.act(act)).run()
}

#[test]
fn a_job_meets_the_same_whatever_its_caller_has_set_up() {
    let _alone = alone();
    let image = Image::new();
    let usual = job(&image, &[]);
    assert!(usual.status == 0 && usual.text().contains("\nHOME=/home/autograde\n"), "{usual}");
    for acts in [
        &["close=0"][..],
        &["close=2"],
        &["close=0,2"],
        &["open-many"],
        &["environment"],
        &["umask"],
        &["limit=fsize:0:"],
        &["limit=nofile:3:"],
        &["limit=cpu:1:"],
        &["limit=core:0:"],
        &["limit=as:200000000:"],
        &["limit=stack:200000:"],
        &["block-signals"],
        &["ignore-signals"],
        &["block-signals", "ignore-signals"],
        &["pending-signals"],
        &["timers"],
        &["one-processor"],
        &["personality"],
        &["open-many", "environment", "umask", "block-signals", "ignore-signals", "timers", "one-processor"],
    ] {
        let outcome = job(&image, acts);
        assert_eq!(outcome.text(), usual.text(), "{acts:?}: {outcome}");
        assert_eq!((outcome.status, outcome.complaint()), (0, ""), "{acts:?}: {outcome}");
    }
}

#[test]
fn a_nice_caller_has_its_job_run_all_the_same() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo run");
    let outcome = image.autodriver(["autolab"]).act("nice").run();
    assert_eq!(outcome.text(), "Autodriver: Job exited with status 0\nrun", "{outcome}");
}

#[test]
fn output_goes_nowhere_when_there_is_no_stdout() {
    let _alone = alone();
    let image = Image::new();
    let outcome = job(&image, &["close=0,1,2"]);
    // Not into whatever was opened next: glibc puts there what cannot be written to, musl the null device.
    assert!([0, 3].contains(&outcome.status), "{outcome}");
    assert_eq!((outcome.text(), outcome.complaint()), ("", ""), "{outcome}");
    assert!(!image.path("home/autolab").exists(), "it was run");
    assert_eq!(std::fs::read_dir(image.path("home/autograde")).expect("the home").count(), 0);
}

#[test]
fn output_is_whole_on_a_stdout_that_does_not_block() {
    use std::io::Read;
    let _alone = alone();
    let image = Image::new();
    image.put_script("head -c 600000 /dev/zero");
    let mut command = image.autodriver(["autolab"]).act("nonblocking-stdout").command();
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_secs(2));
    let mut all = Vec::new();
    child.stdout.take().expect("a pipe").read_to_end(&mut all).expect("it is read");
    assert_eq!(all.len(), 600_000 + "Autodriver: Job exited with status 0\n".len());
    assert!(child.wait().expect("its status").success());
}

#[test]
fn limits_that_would_end_a_driver_half_way_are_refused_before_it_starts() {
    let _alone = alone();
    let image = Image::new();
    for limit in ["fsize:0:0", "cpu:1:1", "as:100000000:100000000", "data:1000000:1000000", "nofile:20:20"] {
        let outcome = job(&image, &[&format!("limit={limit}")]);
        assert_eq!(outcome.status, 3, "{limit}: {outcome}");
        assert!(outcome.text().starts_with("Autodriver: RLIMIT_"), "{limit}: {outcome}");
        assert!(image.path("home/autolab/script").exists(), "{limit}");
    }
    // Too few for the standard streams: Rust's library ends the program before it begins.
    let outcome = job(&image, &["close=0,1,2", "limit=nofile:0:0"]);
    assert_ne!(outcome.status, 0, "{outcome}");
    assert!(image.path("home/autolab/script").exists());
}

#[test]
fn narrower_limits_are_the_job_s_too() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("ulimit -n; ulimit -s");
    let call = image.autodriver(["autolab"]).act("limit=nofile:300:300").act("limit=stack:4194304:4194304");
    let outcome = call.run();
    assert_eq!(outcome.text(), "Autodriver: Job exited with status 0\n300\n4096", "{outcome}");
}

#[test]
fn no_arguments_at_all_are_bad_usage() {
    let _alone = alone();
    let image = Image::new();
    for name in ["argv=", "argv=x"] {
        let outcome = image.autodriver(["autolab"]).act(name).run();
        assert_eq!((outcome.status, outcome.text()), (1, ""), "{outcome}");
        assert!(outcome.complaint().contains("Too few arguments"), "{outcome}");
    }
}

#[test]
fn a_lost_working_directory_is_told() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo run");
    let outcome = image.autodriver(["autolab"]).act("lost-directory").run();
    assert_eq!(outcome.status, 3, "{outcome}");
    assert!(outcome.text().contains("Error moving directory 'autolab' at line "), "{outcome}");
    let outcome = image.autodriver(["/home/autolab"]).act("lost-directory").run();
    assert!(outcome.status == 0 && outcome.text().ends_with("run"), "{outcome}");
}

#[test]
fn files_are_made_with_their_modes_whatever_the_umask() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("sleep 2");
    let running = image.autodriver(["autolab"]).act("umask").start();
    let log = image.path("home/autograde/output.log");
    let meta = wait_until(Duration::from_secs(20), || std::fs::metadata(&log).ok()).expect("the log");
    assert_eq!(meta.mode() & 0o7777, 0o644);
    assert_eq!(running.wait().status, 0);
}

#[test]
fn the_caller_can_neither_signal_nor_trace_it() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo begin; sleep 2; echo end");
    let running = image.autodriver(["-t", "20", "autolab"]).start();
    let log = image.path("home/autograde/output.log");
    let begun = || std::fs::read_to_string(&log).ok().filter(|text| text.contains("begin"));
    wait_until(Duration::from_secs(20), begun).expect("it begins");
    let script = "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = $$ ] || [ $p = $PPID ] && continue
        tr '\\0' ' ' </proc/$p/cmdline | grep -q autodriver || continue
        for s in STOP KILL TERM HUP ALRM; do kill -$s $p 2>/dev/null && echo signalled $s; done
        cat /proc/$p/environ /proc/$p/maps 2>/dev/null | head -c 1; done; echo tried";
    let tried = image.call(["/bin/sh", "-c", script]).run();
    assert_eq!(tried.text(), "tried", "{tried}");
    let outcome = running.wait();
    assert_eq!(outcome.text(), "Autodriver: Job exited with status 0\nbegin\nend", "{outcome}");
}

#[test]
fn under_a_debugger_it_has_no_rights_and_says_so() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo run");
    let outcome = image.autodriver(["autolab"]).act("traced").run();
    assert_eq!(outcome.status, 3, "{outcome}");
    assert!(outcome.text().contains("autodriver is not setuid root here"), "{outcome}");
    assert!(image.path("home/autolab/script").exists());
}

#[test]
fn a_signal_of_the_machine_s_cancels_the_job_and_cleans_up() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo begun; sleep 60");
    let running = image.autodriver(["autolab"]).start();
    let log = image.path("home/autograde/output.log");
    let begun = || std::fs::read_to_string(&log).ok().filter(|text| text.contains("begun"));
    wait_until(Duration::from_secs(20), begun).expect("it begins");
    let driver = nix::unistd::Pid::from_raw(image.driver(&running));
    nix::sys::signal::kill(driver, Signal::SIGTERM).expect("root may");
    let outcome = running.wait();
    assert_eq!(outcome.status, 3, "{outcome}");
    assert!(outcome.text().starts_with("Autodriver: Job was cancelled by a signal at line "), "{outcome}");
    assert!(outcome.text().ends_with("\nbegun"), "{outcome}");
    assert_eq!(std::fs::read_dir(image.path("home/autograde")).expect("the home").count(), 0);
}
