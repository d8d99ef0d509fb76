//! The machine's files as the job sees them: read-only, with private places to write.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use autodriver_protocol::{report::LayerState, Layer};
use e2e::{job, shell, Outcome};

#[track_caller]
fn expect(words: &[&str], line: &str) {
    let outcome = job(words).run().expect_clean();
    assert_eq!(outcome.text(), line, "{words:?}");
}

/// A folder of the machine that anybody may read and write, with one file in it.
fn open_folder(within: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("e2e-").tempdir_in(within).expect("a folder");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("chmod");
    let file = folder.path().join("file");
    std::fs::write(&file, "content\n").expect("a file");
    std::fs::set_permissions(file, Permissions::from_mode(0o666)).expect("chmod");
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn machines_root_is_read_only() {
    for path in ["/new", "/usr/new", "/etc/new", "/bin/new"] {
        expect(&["create", path], "errno EROFS");
    }
    // For an existing file the modes are looked at first.
    expect(&["overwrite", "/etc/passwd"], "errno EACCES");
    expect(&["remove", "/bin/sh"], "errno EROFS");
    expect(&["mkdir", "/usr/new"], "errno EROFS");
}

#[test]
fn nothing_stands_above_the_root() {
    // Landlock would hide it: this layer alone must do.
    let outcome = shell("ls / > one; ls /.. > two; cmp one two").opt("--skip", "landlock").run();
    outcome.expect_clean();
    let outcome = shell("grep -c ' / / ' /proc/self/mountinfo; :").opt("--skip", "landlock").run();
    assert_eq!(outcome.expect_clean().text(), "0", "no root but the job's own is mounted");
}

#[test]
fn machines_programs_can_be_read_and_run() {
    expect(&["read", "/bin/sh"], "ok");
    let outcome = shell("/bin/sh -c 'echo run'").run().expect_clean();
    assert_eq!(outcome.text(), "run");
}

#[test]
fn job_writes_in_its_directory_and_in_the_private_places() {
    for folder in ["/job", ".", "/tmp", "/var/tmp", "/dev/shm"] {
        expect(&["create", &format!("{folder}/new")], "ok");
        expect(&["mkdir", &format!("{folder}/new")], "ok");
    }
}

#[test]
fn what_the_job_writes_is_nowhere_on_the_machine() {
    let name = format!("e2e-private-{}", std::process::id());
    let script =
        format!("for place in /tmp /var/tmp /dev/shm /job; do echo x > $place/{name} || exit 1; done");
    shell(&script).run().expect_clean();
    for folder in ["/tmp", "/var/tmp", "/dev/shm", "/job"] {
        assert!(!Path::new(folder).join(&name).exists(), "{folder}");
    }
}

#[test]
fn files_in_the_machines_temporary_places_are_invisible() {
    for within in ["/tmp", "/var/tmp", "/dev/shm"] {
        let folder = open_folder(within);
        expect(&["read", text(&folder.path().join("file"))], "errno ENOENT");
        expect(&["list", within], "ok");
    }
}

#[test]
fn private_places_are_empty_for_each_job() {
    shell("echo x > /tmp/left; echo x > /dev/shm/left; echo x > left").run().expect_clean();
    expect(&["list", "/tmp"], "ok");
    expect(&["list", "/dev/shm"], "ok");
    expect(&["list", "/job"], "ok captive");
}

#[test]
fn only_harmless_devices_are_there() {
    expect(&["list", "/dev"], "ok fd full null ptmx pts random shm stderr stdin stdout tty urandom zero");
    for device in ["/dev/null", "/dev/zero", "/dev/urandom"] {
        expect(&["read", device], "ok");
    }
    expect(&["overwrite", "/dev/null"], "ok");
    expect(&["create", "/dev/new"], "errno EROFS");
}

#[test]
fn devices_in_a_bound_folder_do_not_work() {
    let folder = open_folder("/tmp");
    let node = folder.path().join("zero");
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&node, kind, mode, nix::sys::stat::makedev(1, 5)).expect("a device node");
    std::fs::set_permissions(&node, Permissions::from_mode(0o666)).expect("chmod");
    let bind = format!("{}:/opt", text(folder.path()));
    let outcome = job(["read", "/opt/zero"]).opt("--bind", bind).run().expect_clean();
    assert_eq!(outcome.text(), "errno EACCES");
}

#[test]
fn kernel_settings_are_out_of_reach() {
    for path in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/hostname"] {
        let outcome = job(["overwrite", path]).run().expect_clean();
        assert!(
            ["errno EACCES", "errno EROFS", "errno ENOENT"].contains(&outcome.text()),
            "{path}: {outcome}"
        );
    }
    for path in ["/sys/kernel", "/sys/fs/cgroup", "/sys/class"] {
        let outcome = job(["list", path]).run().expect_clean();
        assert!(["errno EACCES", "errno ENOENT"].contains(&outcome.text()), "{path}: {outcome}");
    }
}

#[test]
fn what_programs_need_of_proc_is_there() {
    for path in ["/proc/self/status", "/proc/cpuinfo", "/proc/meminfo", "/proc/self/maps", "/proc/stat"] {
        expect(&["read", path], "ok");
    }
}

#[test]
fn memory_of_init_cannot_be_read() {
    for path in ["/proc/1/mem", "/proc/1/environ", "/proc/1/root", "/proc/1/cwd"] {
        let outcome = job(["read", path]).run().expect_clean();
        assert!(
            ["errno EACCES", "errno ENOENT", "errno EPERM"].contains(&outcome.text()),
            "{path}: {outcome}"
        );
    }
}

#[test]
fn bound_paths_are_read_only_unless_said_otherwise() {
    let folder = open_folder("/tmp");
    let run = |words: &[&str], mode: &str| -> Outcome {
        job(words).opt("--bind", format!("{}:/opt{mode}", text(folder.path()))).run().expect_clean()
    };
    assert_eq!(run(&["show", "/opt/file"], "").text(), "ok content");
    assert_eq!(run(&["overwrite", "/opt/file"], "").text(), "errno EROFS");
    assert_eq!(run(&["create", "/opt/new"], "").text(), "errno EROFS");
    assert_eq!(run(&["create", "/opt/new"], ":rw").text(), "ok");
    assert!(folder.path().join("new").exists());
}

#[test]
fn files_of_root_stay_closed() {
    let folder = open_folder("/tmp");
    let file = folder.path().join("file");
    let bind = format!("{}:/opt", text(folder.path()));
    for (mode, line) in [(0o600, "errno EACCES"), (0o644, "ok content")] {
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).expect("chmod");
        let outcome = job(["show", "/opt/file"]).opt("--bind", &bind).run().expect_clean();
        assert_eq!(outcome.text(), line, "mode {mode:o}");
    }
}

#[test]
fn landlock_refuses_what_the_modes_would_allow() {
    // Without the mount namespace, only Landlock stands between the job and this file.
    let folder = open_folder("/tmp");
    let file = folder.path().join("file");
    let attempt = |words: &[&str], skip: &str| job(words).opt("--skip", skip).run().expect_clean();
    let reading = ["read", text(&file)];
    assert_eq!(attempt(&reading, "mount-namespace").text(), "errno EACCES");
    assert_eq!(attempt(&["overwrite", text(&file)], "mount-namespace").text(), "errno EACCES");
    let without = attempt(&reading, "mount-namespace,landlock");
    assert_eq!(without.text(), "ok", "the twin: the modes alone allow it");
    assert_eq!(without.layer(Layer::Landlock).state, LayerState::Skipped);
}

#[test]
fn own_directory_works_without_the_mount_namespace() {
    let outcome = shell("echo x > file && cat file").opt("--skip", "mount-namespace").run().expect_clean();
    assert_eq!(outcome.text(), "x");
}

#[test]
fn a_file_of_the_job_can_be_made_executable_and_run() {
    let script =
        "printf '#!/bin/sh\\necho from a script\\n' > s; chmod +x s; ./s; cp captive /tmp/c; /tmp/c ids";
    let outcome = shell(script).run().expect_clean();
    assert!(outcome.text().starts_with("from a script\nok "), "{outcome}");
}

#[test]
fn a_root_of_ones_own_replaces_the_machines() {
    let root = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(root.path(), Permissions::from_mode(0o755)).expect("chmod");
    std::fs::create_dir(root.path().join("opt")).expect("a folder");
    std::fs::write(root.path().join("opt/mark"), "mine\n").expect("a file");
    let outcome = job(["show", "/opt/mark"]).opt("--root", root.path()).run().expect_clean();
    assert_eq!(outcome.text(), "ok mine");
    let outcome = job(["read", "/bin/sh"]).opt("--root", root.path()).run().expect_clean();
    assert_eq!(outcome.text(), "errno ENOENT");
}
