//! A driver that is killed half-way, and two at once.

use std::fs;
use std::time::Duration;

use e2e::{alone, processes, wait_until, Image, Running};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

/// A job that is under way.
fn start(image: &Image) -> Running {
    image.put_script("echo x >~/left; echo x >/tmp/left; setsid sleep 600 & echo begun; sleep 600");
    let running = image.autodriver(["autolab"]).start();
    let log = image.path("home/autograde/output.log");
    let begun = || fs::read_to_string(&log).ok().filter(|text| text.contains("begun"));
    wait_until(Duration::from_secs(20), begun).expect("the job begins");
    running
}

fn of_jobs(image: &Image) -> usize {
    processes().iter().filter(|one| one.uid == image.autograde() && one.state != 'Z').count()
}

/// Nothing of the job is there for the next one, and not much later.
fn is_cleared(image: &Image) {
    let gone = wait_until(Duration::from_secs(20), || (of_jobs(image) == 0).then_some(()));
    assert!(gone.is_some(), "{:?}", processes());
    let outcome = image.run(&[], "ls -A ~ /tmp; touch ~/new && echo writable");
    let expected = "/home/autograde:\nautolab\noutput.log\n\n/tmp:\nwritable";
    assert_eq!(outcome.text(), format!("Autodriver: Job exited with status 0\n{expected}"), "{outcome}");
    assert_eq!(fs::read_dir(image.path("home/autograde")).expect("the home").count(), 0);
}

#[test]
fn a_driver_that_is_killed_is_told_of_with_the_output_so_far() {
    let _alone = alone();
    let image = Image::new();
    for _ in 0..2 {
        let running = start(&image);
        kill(Pid::from_raw(image.driver(&running)), Signal::SIGKILL).expect("root may");
        let outcome = running.wait();
        assert_eq!((outcome.status, outcome.complaint()), (3, ""), "{outcome}");
        let lines: Vec<&str> = outcome.text().lines().collect();
        assert!(lines[0].starts_with("Autodriver: The driver was killed by signal 9 at line "), "{outcome}");
        assert_eq!(lines[1..], ["begun"], "{outcome}");
        assert_eq!(of_jobs(&image), 0, "it was waited for: {:?}", processes());
        assert_eq!(fs::read_dir(image.path("home/autograde")).expect("the home").count(), 0);
        is_cleared(&image);
    }
}

#[test]
fn a_driver_whose_witness_is_killed_ends_its_job() {
    let _alone = alone();
    let image = Image::new();
    let running = start(&image);
    kill(Pid::from_raw(image.witness(&running)), Signal::SIGKILL).expect("root may");
    running.wait();
    is_cleared(&image);
}

#[test]
fn nothing_is_left_where_both_are_killed() {
    let _alone = alone();
    let image = Image::new();
    let running = start(&image);
    let driver = image.driver(&running);
    for pid in [image.witness(&running), driver] {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("root may");
    }
    running.wait();
    is_cleared(&image);
}

#[test]
fn two_jobs_at_once_are_refused_and_the_first_goes_on() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo first; sleep 16; echo end");
    let first = image.autodriver(["autolab"]).start();
    let log = image.path("home/autograde/output.log");
    wait_until(Duration::from_secs(20), || {
        fs::read_to_string(&log).ok().filter(|text| text.contains("first"))
    })
    .expect("the job begins");
    let second = image.run(&[], "echo second");
    assert_eq!(second.status, 3, "{second}");
    assert!(second.text().contains("another job is running as it"), "{second}");
    assert!(image.path("home/autolab/script").exists(), "it was not taken");
    let outcome = first.wait();
    assert_eq!(outcome.text(), "Autodriver: Job exited with status 0\nfirst\nend", "{outcome}");
}
