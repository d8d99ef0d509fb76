//! The Tango form where autodriver has every capability, as in Tango's virtual machines: a job has mounts of its own,
//! and meets the same.

use std::fs;

use e2e::{alone, processes, Image};

const LOOKS: &str = "whoami; id -u; pwd; echo $HOME $USER $LOGNAME $TMPDIR; cat ~/.tools/version
    ls ~/output.log 2>&1; ls -A ~; echo x >~/.tools/version; for p in /tmp /var/tmp /dev/shm ~ .. .; do
    echo x >$p/made && cat $p/made; done";

#[test]
fn job_with_mounts_of_its_own_meets_the_same_as_one_without() {
    let _alone = alone();
    let image = Image::new().with_every_capability();
    fs::create_dir(image.path("home/autograde/.tools")).expect("mkdir");
    fs::write(image.path("home/autograde/.tools/version"), "4.14\n").expect("a file");
    let outcome = image.run(&[], LOOKS);
    let lines: Vec<&str> = outcome.text().lines().collect();
    let id = image.autograde().to_string();
    assert_eq!(
        lines[..4],
        ["Autodriver: Job exited with status 0", "autograde", &id, "/home/autograde/autolab"]
    );
    assert_eq!(lines[4..6], ["/home/autograde autograde autograde /tmp", "4.14"], "{outcome}");
    assert!(lines[6].contains("No such file"), "output.log is out of its sight: {outcome}");
    assert_eq!(lines[7..9], [".tools", "autolab"], "{outcome}");
    assert!(lines[9].contains("Read-only") || lines[9].contains("Permission denied"), "{outcome}");
    assert_eq!(lines[10..], ["x"; 6], "{outcome}");
    assert_eq!((outcome.status, outcome.complaint()), (0, ""), "{outcome}");
    assert_eq!(fs::read_dir(image.path("home/autograde")).expect("the home").count(), 1);
}

#[test]
fn timeout_and_limits_are_said_as_elsewhere() {
    let _alone = alone();
    let image = Image::new().with_every_capability();
    let outcome = image.run(&["-t", "1"], "echo before; setsid sleep 600 & sleep 600");
    assert_eq!(outcome.text(), "Autodriver: Job timed out after 1 seconds\nbefore", "{outcome}");
    assert_eq!(outcome.status, 2, "{outcome}");
    assert!(processes().iter().all(|one| one.uid != image.autograde() || one.state == 'Z'));
    let outcome =
        image.run(&["-t", "60"], "head -c 3000000000 /dev/zero | tail -c 2900000000 >/dev/null; echo no");
    assert_eq!(outcome.text(), "Autodriver: Job exited with status 137", "{outcome}");
    assert_eq!(outcome.complaint(), "Autodriver: The job was ended: memory-limit", "{outcome}");
}
