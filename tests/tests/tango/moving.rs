//! Taking the job directory: with the caller's rights, through no link, whole or not at all.

use std::fs::{self, Permissions};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use e2e::{alone, Image, Outcome};

fn refused(outcome: &Outcome, why: &str) {
    assert_eq!(outcome.status, 3, "{why} was expected: {outcome}");
    assert!(outcome.text().starts_with("Autodriver: ") && outcome.text().contains(why), "{why}: {outcome}");
    assert!(!outcome.text().contains("Job exited"), "{outcome}");
}

/// A file that only root reads.
fn secret(image: &Image, path: &str) {
    fs::write(image.path(path), "the secret\n").expect("a file");
    fs::set_permissions(image.path(path), Permissions::from_mode(0o600)).expect("chmod");
}

#[test]
fn directories_are_named_as_people_name_them() {
    let _alone = alone();
    let image = Image::new();
    for path in ["autolab", "autolab/", "./autolab", "/home/autolab", "../home/autolab", "autolab//"] {
        image.put_script("pwd");
        let outcome = image.autodriver([path]).run();
        assert_eq!(outcome.text().lines().last(), Some("/home/autograde/autolab"), "{path}: {outcome}");
        assert!(!image.path("home/autolab").exists(), "{path}");
    }
    image.put_script("pwd");
    let outcome = image.autodriver(["--", "autolab"]).act("cd=/home").run();
    assert_eq!(outcome.status, 0, "{outcome}");
    fs::create_dir_all(image.path("home/autolab")).expect("mkdir");
    image.give("home/autolab", image.autolab());
    for path in [".", "..", "/", "autolab/.", "autolab/..", ""] {
        refused(&image.autodriver([path]).run(), "its last part must be a name");
    }
    refused(&image.autodriver(["nothing"]).run(), "No such file");
}

#[test]
fn links_lead_nowhere() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("echo run");
    symlink("autolab", image.path("home/link")).expect("symlink");
    symlink("/home", image.path("tmp/home")).expect("symlink");
    refused(&image.autodriver(["link"]).run(), "symbolic link");
    refused(&image.autodriver(["link/"]).run(), "symbolic link");
    refused(&image.autodriver(["../home/link"]).run(), "symbolic link");
    refused(&image.autodriver(["/tmp/home/autolab"]).run(), "symbolic link");
    assert!(image.path("home/autolab/script").exists());
}

#[test]
fn what_is_not_the_caller_s_is_not_taken() {
    let _alone = alone();
    let image = Image::new();
    for (path, mode) in [("home/others", 0o755), ("home/open", 0o777), ("etc", 0o755)] {
        fs::create_dir_all(image.path(path)).expect("mkdir");
        fs::set_permissions(image.path(path), Permissions::from_mode(mode)).expect("chmod");
        refused(&image.autodriver([format!("/{path}")]).run(), "it is not yours");
        assert!(image.path(path).exists());
    }
    fs::create_dir(image.path("home/closed")).expect("mkdir");
    fs::create_dir(image.path("home/closed/own")).expect("mkdir");
    image.give("home/closed/own", image.autolab());
    fs::set_permissions(image.path("home/closed"), Permissions::from_mode(0o700)).expect("chmod");
    refused(&image.autodriver(["closed/own"]).run(), "Permission denied");
}

#[test]
fn files_that_the_caller_may_not_read_are_not_read() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("cat shadow");
    secret(&image, "home/autolab/shadow");
    image.give("home/autolab/shadow", image.autolab() + 7);
    refused(&image.autodriver(["autolab"]).run(), "cannot take 'shadow': EACCES");
    // By a hard link: another name for a file of root's.
    fs::remove_file(image.path("home/autolab/shadow")).expect("rm");
    secret(&image, "home/secret");
    fs::hard_link(image.path("home/secret"), image.path("home/autolab/shadow")).expect("link");
    refused(&image.autodriver(["autolab"]).run(), "cannot take 'shadow': EACCES");
    assert_eq!(fs::read_to_string(image.path("home/secret")).expect("it is there"), "the secret\n");
    assert_eq!(fs::metadata(image.path("home/secret")).expect("it is there").uid(), 0);
    assert!(image.path("home/autolab/script").exists(), "whole or not at all");
}

#[test]
fn files_that_root_has_put_there_are_read_whatever_their_modes() {
    let _alone = alone();
    let image = Image::new();
    // As root's cp does with the files of Tango's server.
    image.put_script("cat given; stat -c '%U %a' given");
    secret(&image, "home/autolab/given");
    fs::set_permissions(image.path("home/autolab/Makefile"), Permissions::from_mode(0o600)).expect("chmod");
    image.give("home/autolab/Makefile", 0);
    let outcome = image.autodriver(["autolab"]).run();
    assert!(outcome.text().ends_with("the secret\nautograde 600"), "{outcome}");
    assert!(!image.path("home/autolab").exists(), "root's files in it too");
}

#[test]
fn files_are_copied_and_keep_their_owners_elsewhere() {
    let _alone = alone();
    let image = Image::new();
    fs::write(image.path("home/public"), "public\n").expect("a file");
    image.put_script("cat public; stat -c '%U %a %n' public tool sub/x; echo changed >public");
    fs::hard_link(image.path("home/public"), image.path("home/autolab/public")).expect("link");
    fs::write(image.path("home/autolab/tool"), "x").expect("a file");
    fs::set_permissions(image.path("home/autolab/tool"), Permissions::from_mode(0o6755)).expect("chmod");
    fs::create_dir(image.path("home/autolab/sub")).expect("mkdir");
    fs::write(image.path("home/autolab/sub/x"), "x").expect("a file");
    let outcome = image.autodriver(["autolab"]).run();
    let expected = "public\nautograde 644 public\nautograde 755 tool\nautograde 644 sub/x";
    assert!(outcome.text().ends_with(expected), "{outcome}");
    let meta = fs::metadata(image.path("home/public")).expect("it is there");
    assert_eq!((meta.uid(), meta.mode() & 0o7777, meta.nlink()), (0, 0o644, 1));
    assert_eq!(fs::read_to_string(image.path("home/public")).expect("it is there"), "public\n");
    assert!(!image.path("home/autolab").exists(), "root's files in it too");
}

#[test]
fn what_is_no_file_is_refused() {
    let _alone = alone();
    let image = Image::new();
    for (make, name) in [("mkfifo fifo", "fifo"), ("ln -s /etc/shadow away", "away")] {
        image.put_script("echo run");
        let made = image.call(["/bin/sh", "-c", &format!("cd autolab && {make}")]).run();
        assert_eq!(made.status, 0, "{made}");
        let start = Instant::now();
        refused(&image.autodriver(["autolab"]).run(), &format!("cannot take '{name}'"));
        assert!(start.elapsed() < Duration::from_secs(10), "nobody waits for a writer");
        fs::remove_dir_all(image.path("home/autolab")).expect("rm");
    }
    image.put_script("echo run");
    let device = image.path("home/autolab/disk");
    nix::sys::stat::mknod(&device, nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::S_IRWXU, 0x103)
        .expect("mknod");
    refused(&image.autodriver(["autolab"]).run(), "cannot take 'disk'");
}

#[test]
fn links_inside_the_directory_come_along() {
    let _alone = alone();
    let image = Image::new();
    image.put_script("cat link");
    let made = image.call(["/bin/sh", "-c", "cd autolab && echo target >file && ln -s file link"]).run();
    assert_eq!(made.status, 0, "{made}");
    let outcome = image.autodriver(["autolab"]).run();
    assert!(outcome.text().ends_with("\ntarget"), "{outcome}");
}

#[test]
fn a_directory_that_is_swapped_while_it_is_taken_gives_nothing_away() {
    let _alone = alone();
    let image = Image::new();
    fs::create_dir(image.path("home/root")).expect("mkdir");
    secret(&image, "home/root/file");
    fs::set_permissions(image.path("home/root"), Permissions::from_mode(0o755)).expect("chmod");
    // What is in it, and the directory itself, come and go as links and as what they should be.
    let swap = "cd /tmp/given || exit; while :; do
        mv job/sub job/old && ln -s /home/root job/sub; rm -f job/sub; mv job/old job/sub
        mv job was && ln -s /home/root job; rm -f job; mv was job; done 2>/dev/null";
    let make = "rm -rf /tmp/given; mkdir -p /tmp/given/job/sub && cd /tmp/given/job && echo mine >sub/file &&
        printf 'all:\\n\\t@cat sub/file\\n' >Makefile";
    let until = Instant::now() + Duration::from_secs(8);
    let (mut taken, mut refused) = (0, 0);
    while Instant::now() < until {
        let made = image.call(["/bin/sh", "-c", make]).run();
        assert_eq!(made.status, 0, "{made}");
        let mut swapper = image.call(["/bin/sh", "-c", swap]).command().spawn().expect("sh");
        let outcome = image.autodriver(["/tmp/given/job"]).run();
        // All that is the caller's.
        image.call(["/bin/sh", "-c", "kill -9 -1"]).run();
        drop(swapper.wait());
        *if outcome.status == 0 { &mut taken } else { &mut refused } += 1;
        assert!(!String::from_utf8_lossy(&outcome.stdout).contains("the secret"), "{outcome}");
        assert_eq!(fs::read_to_string(image.path("home/root/file")).ok().as_deref(), Some("the secret\n"));
        assert_eq!(fs::metadata(image.path("home/root/file")).map(|meta| meta.uid()).ok(), Some(0));
    }
    assert!(taken + refused >= 10 && refused > 0, "no swap was met: {taken} taken, {refused} refused");
}
