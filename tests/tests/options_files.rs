//! What goes into the job directory and what comes out of it: `--in`, `--out`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{symlink, MetadataExt, PermissionsExt};
use std::path::Path;

use e2e::{job, program, shell};
use tempfile::{tempdir, TempDir};

/// `PATH:WORD` as one argument.
fn pair(path: &Path, word: &str) -> String {
    format!("{}:{word}", path.to_str().expect("a path in UTF-8"))
}

/// `GLOB:PATH` as one argument.
fn to(glob: &str, folder: &TempDir) -> String {
    format!("{glob}:{}", folder.path().to_str().expect("a path in UTF-8"))
}

fn tree() -> TempDir {
    let folder = tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("src/deep")).expect("folders");
    fs::write(folder.path().join("top"), "top\n").expect("a file");
    fs::write(folder.path().join("src/deep/file"), "deep\n").expect("a file");
    fs::set_permissions(folder.path().join("top"), Permissions::from_mode(0o750)).expect("chmod");
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn content_of_a_folder_goes_to_the_top() {
    let tree = tree();
    let outcome = program(["cat", "top", "src/deep/file"]).opt("--in", tree.path()).run().expect_clean();
    assert_eq!(outcome.text(), "top\ndeep");
}

#[test]
fn folder_goes_below_a_destination() {
    let tree = tree();
    let run = program(["cat", "a/b/src/deep/file"]).opt("--in", pair(tree.path(), "a/b"));
    assert_eq!(run.run().expect_clean().text(), "deep");
}

#[test]
fn file_keeps_its_name_or_gets_another() {
    let tree = tree();
    let file = tree.path().join("top");
    assert_eq!(program(["cat", "top"]).opt("--in", &file).run().expect_clean().text(), "top");
    let run = program(["cat", "x/renamed"]).opt("--in", pair(&file, "x/renamed"));
    assert_eq!(run.run().expect_clean().text(), "top");
}

#[test]
fn inputs_are_the_jobs_own_and_keep_their_modes() {
    let tree = tree();
    let outcome = job(["mode", "top"]).opt("--in", tree.path()).run().expect_clean();
    let words: Vec<&str> = outcome.text().split_whitespace().collect();
    assert_eq!(words[1], "750", "{outcome}");
    assert!(words[2].parse::<u32>().expect("a uid") >= 1000, "{outcome}");
    shell("echo more >> top && rm -r src && mkdir src").opt("--in", tree.path()).run().expect_clean();
    assert_eq!(fs::read(tree.path().join("top")).expect("the file"), b"top\n", "the original is untouched");
}

#[test]
fn several_inputs_add_up_and_later_ones_replace() {
    let (one, two) = (tree(), tempdir().expect("a folder"));
    fs::write(two.path().join("top"), "second\n").expect("a file");
    let run = program(["cat", "top", "src/deep/file"]).opt("--in", one.path()).opt("--in", two.path());
    assert_eq!(run.run().expect_clean().text(), "second\ndeep");
}

#[test]
fn inputs_may_not_leave_the_job_directory() {
    let tree = tree();
    for dest in ["../x", "/etc/x", "a/../../x"] {
        let run = program(["/bin/true"]).opt("--in", pair(&tree.path().join("top"), dest)).without_report();
        run.run().expect_refusal(&[dest]);
    }
}

#[test]
fn files_that_match_come_out() {
    let out = tempdir().expect("a folder");
    let script = "mkdir -p sub/deep; echo 1 > a.log; echo 2 > b.log; echo 3 > c.txt; echo 4 > sub/deep/d.log";
    shell(script).opt("--out", to("*.log", &out)).run().expect_clean();
    assert_eq!(names(out.path()), ["a.log", "b.log"]);
    assert_eq!(fs::read(out.path().join("b.log")).expect("a file"), b"2\n");
    let all = tempdir().expect("a folder");
    shell(script).opt("--out", to("**/*.log", &all)).opt("--out", to("c.txt", &all)).run().expect_clean();
    assert_eq!(names(all.path()), ["a.log", "b.log", "c.txt", "sub"]);
    assert!(all.path().join("sub/deep/d.log").exists());
}

#[test]
fn destination_is_made_and_modes_are_plain() {
    let out = tempdir().expect("a folder");
    // As with cp(1): one file takes the name given, unless that is a folder's.
    for (dest, file) in
        [("new/folder/", "new/folder/result"), ("new/name", "new/name"), ("new", "new/result")]
    {
        let glob = format!("result:{}/{dest}", out.path().to_str().expect("UTF-8"));
        shell("echo x > result; chmod 4777 result").opt("--out", glob).run().expect_clean();
        let meta = fs::metadata(out.path().join(file)).expect("the file");
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o644, 0), "{dest}");
    }
}

#[test]
fn files_come_out_after_failure_and_after_limits() {
    let out = tempdir().expect("a folder");
    let glob = to("*", &out);
    shell("echo x > failed; exit 1").opt("--out", &glob).run().expect_exit(1);
    let limited =
        shell("echo x > killed; exec ./captive sleep 600000").opt("--wall", "1s").opt("--out", &glob);
    assert_eq!(limited.run().status, 124);
    assert!(out.path().join("failed").exists() && out.path().join("killed").exists());
}

#[test]
fn links_fifos_and_devices_do_not_come_out() {
    let out = tempdir().expect("a folder");
    let script =
        "ln -s /etc/passwd secret; ln -s /dev/urandom noise; mkfifo pipe; ln -s / machine; echo x > plain";
    let glob = to("**/*", &out);
    shell(script).opt("--out", glob).run().expect_exit(0);
    let mut found = names(out.path());
    found.retain(|name| name != "captive");
    assert_eq!(found, ["plain"]);
}

#[test]
fn results_never_overwrite_through_a_link_at_the_destination() {
    let (out, elsewhere) = (tempdir().expect("a folder"), tempdir().expect("a folder"));
    let precious = elsewhere.path().join("precious");
    fs::write(&precious, "precious\n").expect("a file");
    symlink(&precious, out.path().join("result")).expect("a link");
    shell("echo x > result").opt("--out", to("result", &out)).run();
    assert_eq!(fs::read(&precious).expect("the file"), b"precious\n");
}

#[test]
fn nothing_that_matches_is_no_failure() {
    let out = tempdir().expect("a folder");
    shell("true").opt("--out", to("*.none", &out)).run().expect_clean();
    assert!(names(out.path()).is_empty());
}

#[test]
fn globs_may_not_leave_the_job_directory() {
    let out = tempdir().expect("a folder");
    for glob in ["/etc/*", "../*", "a/../../*"] {
        let run = shell("true").opt("--out", to(glob, &out)).without_report();
        run.run().expect_refusal(&[glob]);
    }
}

#[test]
fn daemon_cannot_change_results_while_they_are_copied() {
    // A survivor would keep rewriting the file; it must be dead before the copy begins.
    let out = tempdir().expect("a folder");
    let script =
        "(while :; do echo late > result; done) & echo early > other; ./captive sleep 300; echo x > result";
    shell(script).opt("--out", to("*", &out)).run().expect_exit(0);
    let text = fs::read_to_string(out.path().join("result")).expect("the file");
    assert!(["late\n", "x\n", ""].contains(&text.as_str()), "{text:?}");
}
