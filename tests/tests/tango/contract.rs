//! What Tango and its scripts know of autodriver: options, lines, exit statuses, output.log.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use e2e::{alone, wait_until, Image, Outcome, AUTODRIVER};

const MARK: &str = "\n...[excess bytes elided]...\n";

#[test]
fn status_comes_first_and_the_output_to_the_byte_after_it() {
    let _alone = alone();
    let image = Image::new();
    for (script, status, output) in [
        ("echo out; echo err >&2; printf end", 0, "out\nerr\nend"),
        ("printf ''", 0, ""),
        ("printf '\\377\\000x\\n'", 0, "\u{fffd}\0x\n"),
    ] {
        let outcome = image.run(&[], script);
        let expected = format!("Autodriver: Job exited with status {status}\n{output}");
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), expected, "{outcome}");
        assert_eq!((outcome.status, outcome.complaint()), (0, ""), "{outcome}");
    }
}

#[test]
fn exit_status_is_0_however_the_job_ends_by_itself() {
    let _alone = alone();
    let image = Image::new();
    let outcome = image.run(&[], "exit 7");
    assert!(outcome.text().starts_with("Autodriver: Job exited with status 2\n"), "make's own: {outcome}");
    assert_eq!(outcome.status, 0, "{outcome}");
    // A signal of make itself, which Tango's own driver takes for success.
    for (signal, status) in [("SEGV", 139), ("KILL", 137), ("TERM", 143)] {
        let outcome = image.run(
            &[],
            &format!(
                "echo before; kill -{signal} $(ps -o ppid= -p $$ 2>/dev/null || \
            sed 's/.*) . //; s/ .*//' /proc/$$/stat); sleep 5"
            ),
        );
        let first = format!("Autodriver: Job exited with status {status}\n");
        assert!(outcome.text().starts_with(&first), "{signal}: {outcome}");
        assert_eq!(outcome.status, 0, "{outcome}");
    }
}

#[test]
fn timeout_says_so_with_status_2_and_keeps_what_was_written() {
    let _alone = alone();
    let image = Image::new();
    let outcome = image.run(&["-t", "1"], "echo before; sleep 60; echo after");
    assert_eq!(outcome.text(), "Autodriver: Job timed out after 1 seconds\nbefore", "{outcome}");
    assert_eq!((outcome.status, outcome.complaint()), (2, ""), "{outcome}");
    assert!(outcome.took < Duration::from_secs(10), "no 3 seconds for each attempt to kill: {outcome}");
}

#[test]
fn output_beyond_osize_loses_its_middle_to_the_byte() {
    let _alone = alone();
    let image = Image::new();
    let whole: String = (0..400).map(|number| format!("{number:07}\n")).collect();
    let script = "i=0; while [ $i -lt 400 ]; do printf '%07d\\n' $i; i=$((i + 1)); done";
    for osize in [0, 1, 2, 1001, 3199, 3200, 3201] {
        let outcome = image.run(&["-o", &osize.to_string()], script);
        let expected = match osize > 0 && whole.len() > osize {
            true => format!("{}{MARK}{}", &whole[..osize / 2], &whole[whole.len() - osize / 2..]),
            false => whole.clone(),
        };
        let first = "Autodriver: Job exited with status 0\n";
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), format!("{first}{expected}"), "osize {osize}");
    }
}

#[test]
fn who_may_not_grade_is_told_so_before_the_arguments_are_read() {
    let _alone = alone();
    let image = Image::new();
    for words in [&["--help"][..], &["-x"], &[], &["autolab"]] {
        let outcome = image.autodriver(words).by(0).run();
        assert_eq!(outcome.status, 1, "{outcome}");
        assert_eq!(outcome.text(), "Autodriver: Autodriver should not be run as root.", "{outcome}");
        let outcome = image.autodriver(words).by(image.autograde()).run();
        assert_eq!(outcome.status, 1, "{outcome}");
        let said = "Autodriver: This should not be run as the grading user autograde at line ";
        assert!(outcome.text().starts_with(said), "{outcome}");
    }
    let passwd = fs::read_to_string(image.path("etc/passwd")).expect("passwd");
    fs::write(image.path("etc/passwd"), passwd.replace("autograde", "other")).expect("passwd");
    for words in [&["--help"][..], &["-x"], &["autolab"]] {
        let outcome = image.autodriver(words).run();
        assert_eq!(outcome.status, 3, "{outcome}");
        assert!(outcome.text().starts_with("Autodriver: Invalid grading user"), "{outcome}");
    }
    fs::write(image.path("etc/passwd"), passwd).expect("passwd");
}

#[test]
fn bad_usage_is_told_on_stderr_with_status_1_and_takes_nothing() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo run");
    for words in [
        &[][..],
        &["-x", "autolab"],
        &["-u", "many", "autolab"],
        &["-u4294967296", "autolab"],
        &["autolab", "autolab"],
        &["--fsize", "autolab"],
        &["run", "--", "id"],
        &["serve", "--json"],
    ] {
        let outcome = image.autodriver(words).run();
        assert_eq!((outcome.status, outcome.text()), (1, ""), "{words:?}: {outcome}");
        assert!(!outcome.complaint().is_empty(), "{words:?}: {outcome}");
        assert!(image.path("home/autolab/script").exists(), "{words:?}");
    }
    let outcome = image.autodriver(["--help"]).run();
    assert!(outcome.status == 0 && outcome.text().starts_with("Usage: autodriver [OPTION...] DIRECTORY"));
    let outcome = image.autodriver(["autolab", "--timeo=0x5", "-u", "0100", "--osize", " 7"]).run();
    assert!(outcome.status == 0 && outcome.text().ends_with("run"), "{outcome}");
}

#[test]
fn the_setuid_form_has_no_other_commands() {
    let _alone = alone();
    let image = Image::new();
    for verb in ["run", "serve", "check", "explain", "restore"] {
        let outcome = image.autodriver([verb]).run();
        assert_eq!(outcome.status, 3, "it is a directory that is not there: {outcome}");
        assert!(outcome.text().contains("Error moving directory 'run'") || verb != "run", "{outcome}");
        image.put_script("echo a directory");
        fs::rename(image.path("home/autolab"), image.path("home").join(verb)).expect("rename");
        let outcome = image.autodriver([verb]).run();
        assert_eq!(outcome.text(), "Autodriver: Job exited with status 0\na directory", "{outcome}");
    }
}

#[test]
fn without_setuid_it_says_what_is_missing() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo run");
    let program = image.path(AUTODRIVER);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    for words in [&["autolab"][..], &["-t", "5", "autolab"]] {
        let outcome = image.autodriver(words).run();
        assert_eq!(outcome.status, 3, "{outcome}");
        assert!(outcome.text().contains("not setuid root"), "{outcome}");
    }
    assert!(image.path("home/autolab/script").exists());
    // The other commands are there then.
    let outcome = image.autodriver(["--version"]).run();
    assert!(outcome.status == 0 && outcome.text().starts_with("autodriver "), "{outcome}");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).expect("chmod");
}

#[test]
fn output_log_grows_live_for_everybody_and_is_gone_afterwards() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("i=0; while [ $i -lt 8 ]; do echo line $i; i=$((i + 1)); sleep 0.25; done");
    let running = image.autodriver(["autolab"]).start();
    let log = image.path("home/autograde/output.log");
    let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    let start = Instant::now();
    let mut seen = Vec::new();
    for count in [1, 3, 5] {
        wait_until(Duration::from_secs(20), || (lines() >= count).then_some(())).expect("it grows");
        seen.push(start.elapsed());
    }
    assert!(seen[2] - seen[0] > Duration::from_millis(600), "not all at once: {seen:?}");
    let meta = fs::metadata(&log).expect("it is there");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o644));
    // By the path that Tango asks by, as root and as the user who logs in.
    for uid in [0, image.autolab()] {
        let part = image.call(["/bin/sh", "-c", "head -c 5 autograde/output.log"]).by(uid).run();
        assert_eq!(part.text(), "line ", "{part}");
    }
    let outcome = running.wait();
    assert_eq!(outcome.text().lines().count(), 9, "{outcome}");
    assert!(!log.exists());
}

#[test]
fn fsize_limits_the_job_and_not_its_output() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("head -c 50000 /dev/zero | tr '\\0' x; head -c 5000 /dev/zero >big; sleep 1");
    let running = image.autodriver(["-f", "1000", "autolab"]).start();
    let log = image.path("home/autograde/output.log");
    let size = || fs::metadata(&log).map_or(0, |meta| meta.len());
    assert!(wait_until(Duration::from_secs(20), || (size() > 49_000).then_some(())).is_some(), "{}", size());
    let outcome = running.wait();
    assert!(outcome.stdout.len() > 50_000, "{outcome}");
    let outcome = image.run(&["-f", "1000"], "head -c 5000 /dev/zero >big; wc -c <big");
    assert_eq!(outcome.text().lines().last().map(str::trim), Some("1000"), "{outcome}");
}

#[test]
fn nproc_limits_the_processes_of_the_job() {
    let _alone = alone();
    let image = Image::new();
    let script = "i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i + 1)); done; echo every one; kill $(jobs -p)";
    let outcome = image.run(&["-u", "10"], script);
    assert!(!outcome.text().contains("every one"), "{outcome}");
    let outcome = image.run(&["-u", "60"], script);
    assert!(outcome.text().contains("every one"), "{outcome}");
}

#[test]
fn stream_returns_output_as_it_comes_and_the_status_last() {
    use std::io::Read;
    let _alone = alone();
    let image = Image::new();
    for option in ["-s", "--stream=x"] {
        image.put_script("echo first; sleep 1; printf second");
        let mut command = image.autodriver([option, "autolab"]).command();
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("it starts");
        let mut stdout = child.stdout.take().expect("a pipe");
        let mut first = [0; 6];
        stdout.read_exact(&mut first).expect("it comes");
        assert!(child.try_wait().expect("its state").is_none(), "before the end");
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).expect("it ends");
        assert_eq!(rest, "second\nAutodriver: Job exited with status 0\n");
        assert!(child.wait().expect("its status").success());
    }
}

/// The lines with the time in `Autodriver@YYYYmmdd-HH:MM:SS: ` and numbers of seconds left out.
fn timeless(outcome: &Outcome) -> Vec<String> {
    let line = |line: &str| match line.strip_prefix("Autodriver@").and_then(|rest| rest.split_at_checked(17))
    {
        Some((time, rest)) => {
            assert!(time.bytes().all(|byte| byte.is_ascii_digit() || b"-:".contains(&byte)), "{line}");
            format!("@{}", rest.split("Duration: ").next().expect("the first part"))
        }
        None => line.to_owned(),
    };
    outcome.text().lines().map(line).collect()
}

#[test]
fn times_are_inserted_between_lines() {
    let _alone = alone();
    let image = Image::new();
    let script = "echo one; sleep 1.3; printf 'tw'; sleep 0.1; echo o; sleep 1.3; echo three";
    let outcome = image.run(&["-i", "1", "-z", "Etc/GMT-14"], script);
    let lines = timeless(&outcome);
    let said = [
        "@: Test Starts. Time zone +14:+14",
        "@: Test terminates. ",
        "@: Job exited with status 0",
        "@: Timestamps inserted at 1-second or larger intervals, depending on output rates",
        "@: Also check end of output for potential errors",
    ];
    assert_eq!((lines.len(), &lines[..5]), (10, &said.map(str::to_owned)[..]), "{outcome}");
    assert_eq!((&*lines[5], &*lines[7], &*lines[9]), ("one", "two", "three"), "{outcome}");
    for (line, offset) in [(&lines[6], 4), (&lines[8], 8)] {
        assert!(line.starts_with("...[timestamp 2"), "{line}");
        let end = format!("at offset ~{offset}. Maybe out of sync with output's own timestamps.]...");
        assert!(line.ends_with(&end), "{line}");
    }
}

#[test]
fn with_a_time_zone_every_line_has_the_time() {
    let _alone = alone();
    let image = Image::new();
    let outcome = image.run(&["-z", "UTC", "-t", "1", "-o", "10"], "echo 123456789abc; sleep 100");
    assert_eq!(outcome.status, 2, "{outcome}");
    let expected = [
        "@: Test Starts. Time zone UTC:UTC",
        "@: ERROR Job timed out after 1 seconds",
        "@: Test terminates. ",
        "@: Also check end of output for potential errors",
        "@: Output size 13 > limit 10 -- will elide in the middle",
        "12345",
        "...[excess bytes elided by autodriver]...",
        "9abc",
        "",
        "@: ERROR Job timed out",
    ];
    assert_eq!(timeless(&outcome), expected, "{outcome}");
    let outcome = image.autodriver(["-z", "UTC", "nothing"]).run();
    assert_eq!(outcome.status, 3, "{outcome}");
    let lines = timeless(&outcome);
    assert!(lines[1].starts_with("@: ERROR Error moving directory 'nothing' at line "), "{outcome}");
    let outcome = image.run(&["-z", "Nowhere/X"], "echo done");
    assert_eq!(timeless(&outcome)[0], "@: Test Starts. Time zone UTC:UTC", "{outcome}");
    assert!(outcome.complaint().contains("Time zone 'Nowhere/X' is not known; times are UTC"), "{outcome}");
}
