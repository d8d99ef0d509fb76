//! What a job of Tango's meets: its account, its places, its limits, and what it cannot do.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use e2e::{alone, processes, Image, Outcome};

/// The lines after the first.
fn output(outcome: &Outcome) -> Vec<&str> {
    assert!(outcome.text().starts_with("Autodriver: Job exited with status 0"), "{outcome}");
    outcome.text().lines().skip(1).collect()
}

const LOOKS: &str = "whoami; id -u; id -g; pwd; echo $HOME $USER $LOGNAME $TMPDIR; command -v make
    readlink /proc/self/fd/0; for p in /tmp /var/tmp /dev/shm ~ .. .; do echo x >$p/made && cat $p/made; done";

#[test]
fn job_is_autograde_in_its_home_and_writes_where_tango_s_jobs_do() {
    let _alone = alone();
    let image = Image::new();
    let outcome = image.run(&[], LOOKS);
    let lines = output(&outcome);
    let id = image.autograde().to_string();
    assert_eq!(lines[..4], ["autograde", &id, &id, "/home/autograde/autolab"], "{outcome}");
    assert_eq!(lines[4], "/home/autograde autograde autograde /tmp", "{outcome}");
    assert!(lines[6].ends_with("/dev/null"), "{outcome}");
    assert_eq!(lines[7..], ["x"; 6], "{outcome}");
}

#[test]
fn job_has_the_groups_of_the_account() {
    let _alone = alone();
    let image = Image::new();
    let group = fs::read_to_string(image.path("etc/group")).expect("group");
    fs::write(image.path("etc/group"), format!("{group}labs:x:4321:x,autograde\n")).expect("group");
    let outcome = image.run(&[], "id -G");
    assert_eq!(output(&outcome), [format!("{} 4321", image.autograde())], "{outcome}");
    fs::write(image.path("etc/group"), group).expect("group");
}

#[test]
fn job_leaves_nothing_behind() {
    let _alone = alone();
    let image = Image::new();
    let script =
        "for p in /tmp /var/tmp /dev/shm ~; do mkdir -p $p/left/x; echo x >$p/left/y; chmod 0 $p/left; done
        (trap '' INT TERM; setsid sleep 73421 >/dev/null 2>&1 </dev/null &) ; echo started";
    let outcome = image.run(&[], script);
    assert_eq!(output(&outcome), ["started"], "{outcome}");
    assert!(outcome.took < Duration::from_secs(5), "it does not wait to be sure: {outcome}");
    for place in ["tmp", "var/tmp", "dev/shm", "home/autograde"] {
        let left: Vec<_> = fs::read_dir(image.path(place)).expect("a place").flatten().collect();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
    assert!(!image.path("home/autolab").exists(), "it was moved");
    assert!(
        processes().iter().all(|one| one.uid != image.autograde() || one.state == 'Z'),
        "{:?}",
        processes()
    );
    let home = fs::metadata(image.path("home/autograde")).expect("it is there");
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o7777), (image.autograde(), image.autograde(), 0o755));
}

#[test]
fn job_cannot_reach_what_the_driver_writes() {
    let _alone = alone();
    let image = Image::new();
    let script = "f=~/output.log; ls $f; cat $f; printf '' >$f; echo forged >>$f; rm -f $f; mv $f ~/x; mv script $f
        ln -f $f ~/other; ln -sf /etc/passwd $f; chmod 777 $f; chmod 777 ~; mv ~ /home/x; rmdir ~; truncate -s 0 $f; echo survived";
    let outcome = image.run(&[], script);
    let lines = output(&outcome);
    assert_eq!(lines.first(), Some(&"/home/autograde/output.log"), "{outcome}");
    assert_eq!(lines.last(), Some(&"survived"), "{outcome}");
    let refusals = lines[1..lines.len() - 1].iter();
    let refused = refusals.filter(|line| line.contains("denied") || line.contains("not permitted")).count();
    assert!(refused >= 11, "{refused} of 12: {outcome}");
}

#[test]
fn job_cannot_stop_its_driver_or_keep_its_clock_from_running() {
    let _alone = alone();
    let image = Image::new();
    let script =
        "for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = $$ ] || [ $p = $PPID ] || kill -STOP $p; done
        kill -STOP -1; sleep 60";
    let outcome = image.run(&["-t", "2"], script);
    assert_eq!(outcome.status, 2, "{outcome}");
    assert!(outcome.took < Duration::from_secs(15), "{outcome}");
}

#[test]
fn memory_and_disk_are_bounded_where_tango_sets_no_limit() {
    let _alone = alone();
    let image = Image::new();
    let outcome =
        image.run(&["-t", "100"], "head -c 3000000000 /dev/zero | tail -c 2900000000 >/dev/null; echo no");
    assert_eq!(outcome.text(), "Autodriver: Job exited with status 137", "{outcome}");
    assert_eq!(outcome.complaint(), "Autodriver: The job was ended: memory-limit", "{outcome}");
    let script = "i=0; while [ $i -lt 20 ]; do head -c 50000000 /dev/zero >/tmp/$i; i=$((i + 1)); done; sleep 9; echo no";
    let outcome = image.run(&["-t", "100"], script);
    assert_eq!(outcome.text(), "Autodriver: Job exited with status 137", "{outcome}");
    assert_eq!(outcome.complaint(), "Autodriver: The job was ended: disk-limit", "{outcome}");
    assert_eq!(fs::read_dir(image.path("tmp")).expect("/tmp").count(), 0);
}

#[test]
fn endless_output_is_bounded_and_its_end_is_kept() {
    let _alone = alone();
    let image = Image::new();
    let outcome =
        image.run(&["-t", "60", "-o", "1000"], "head -c 200000000 /dev/zero; echo; echo '{\"scores\":{}}'");
    assert!(outcome.text().ends_with("\n{\"scores\":{}}"), "{outcome}");
    assert!(outcome.stdout.len() < 1100, "{} bytes", outcome.stdout.len());
}

#[test]
fn image_s_own_files_in_the_home_are_there_to_be_read() {
    let _alone = alone();
    let image = Image::new();
    fs::create_dir(image.path("home/autograde/.tools")).expect("mkdir");
    fs::write(image.path("home/autograde/.tools/version"), "4.14\n").expect("a file");
    let outcome = image.run(&[], "cat ~/.tools/version");
    assert_eq!(output(&outcome), ["4.14"], "{outcome}");
    assert!(image.path("home/autograde/.tools/version").exists(), "it is root's");
}
