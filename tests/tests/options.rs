//! The options of `run` that shape the job: environment, directory, names, user, layers, document.

use std::process::Command;

use autodriver_protocol::report::LayerState;
use autodriver_protocol::{Cause, Layer};
use e2e::{job, program, shell, Job};

fn file(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), content).expect("a file's content");
    file
}

#[track_caller]
fn says(job: Job, text: &str) {
    let outcome = job.run().expect_clean();
    assert_eq!(outcome.text(), text, "{outcome}");
}

#[test]
fn env_sets_and_replaces_variables() {
    says(shell("echo $COURSE/$LANG").opt("--env", "COURSE=15213").opt("--env", "LANG=C"), "15213/C");
    says(shell("echo \"[$EMPTY]\"").opt("--env", "EMPTY=").opt("--env", "OTHER=a=b"), "[]");
    says(shell("echo $OTHER").opt("--env", "OTHER=a=b"), "a=b");
}

#[test]
fn path_of_env_finds_the_program() {
    let script = "mkdir bin; printf '#!/bin/sh\\necho mine\\n' > bin/tool; chmod +x bin/tool; exec tool";
    says(shell(script).opt("--env", "PATH=/job/bin:/bin:/usr/bin"), "mine");
}

#[test]
fn cwd_is_the_job_directory_unless_said_otherwise() {
    says(shell("pwd"), "/job");
    says(shell("pwd").opt("--cwd", "/tmp"), "/tmp");
    let tree = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(tree.path().join("sub")).expect("a folder");
    says(program(["pwd"]).opt("--in", tree.path()).opt("--cwd", "sub"), "/job/sub");
}

#[test]
fn cwd_that_is_not_there_is_named() {
    let outcome = program(["/bin/true"]).opt("--cwd", "/no/such/place").run();
    assert_eq!((outcome.status, outcome.cause()), (125, Cause::SetupFailed), "{outcome}");
    let fault = outcome.report().fault.as_ref().expect("a fault");
    assert!(fault.message.contains("/no/such/place") && fault.errno == "ENOENT", "{outcome}");
}

#[test]
fn stdin_comes_from_a_file() {
    let input = file("three\nlines\nhere\n");
    says(shell("wc -l | tr -d ' '").opt("--stdin", input.path()), "3");
}

#[test]
fn user_is_taken_by_number_or_name_and_never_root() {
    says(job(["ids"]).opt("--user", "61111"), "ok 61111 61111");
    for root in ["root", "0"] {
        let outcome = job(["ids"]).opt("--user", root).without_report().run();
        outcome.expect_refusal(&["--user", root]);
    }
    let missing = job(["ids"]).opt("--user", "no-such-account").without_report().run();
    missing.expect_refusal(&["no-such-account"]);
}

#[test]
fn document_gives_the_options_and_the_command_line_overrides_them() {
    let document = file(
        r#"{"command": ["/bin/sh", "-c", "echo $A; hostname; exit 3"], "env": {"A": "b c"},
            "hostname": "from-document", "wall": "50s", "quiet": true}"#,
    );
    let outcome = program([""; 0]).without_command().opt("--job", document.path()).run().expect_exit(3);
    assert_eq!(outcome.text(), "b c\nfrom-document");
    let outcome = shell("hostname").opt("--job", document.path()).opt("--hostname", "over").run();
    assert_eq!(outcome.expect_exit(0).text(), "over");
}

#[test]
fn document_comes_from_stdin_too() {
    let document = file(r#"{"command": ["/bin/sh", "-c", "cat; echo end"], "quiet": true}"#);
    let run = program([""; 0]).without_command().opt("--job", "-").driver_stdin(document.path());
    // The job's own standard input is empty all the same.
    says(run, "end");
}

#[test]
fn report_goes_to_a_descriptor() {
    let words = job(["exit", "4"]).opt("--report", "fd:3").arguments();
    let report = tempfile::NamedTempFile::new().expect("a file");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "out=$1; shift; exec \"$@\" 3>\"$out\"", "sh"]);
    let status = command.arg(report.path()).arg(e2e::autodriver()).args(words).status().expect("a shell");
    assert_eq!(status.code(), Some(4));
    let text = std::fs::read(report.path()).expect("the report");
    let report: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!((report["exit_code"].as_i64(), report["cause"].as_str()), (Some(4), Some("exited")));
}

#[test]
fn report_goes_to_standard_output() {
    let words = job(["exit", "0"]).opt("--report", "-").arguments();
    let output = Command::new(e2e::autodriver()).args(words).output().expect("the driver");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((report["exit_code"].as_i64(), report["cause"].as_str()), (Some(0), Some("exited")));
}

#[test]
fn report_to_a_descriptor_that_is_not_open_is_refused_before_anything_runs() {
    let outcome = job(["exit", "0"]).opt("--report", "fd:99").without_report().run();
    outcome.expect_refusal(&["fd:99"]);
}

#[test]
fn skipped_layers_are_reported_as_skipped() {
    for layer in Layer::ALL {
        let alone = !matches!(layer, Layer::NoNewPrivs | Layer::ProcessTree);
        let skip = match layer {
            Layer::NoNewPrivs => "no-new-privs,seccomp,landlock".to_owned(),
            Layer::ProcessTree => "process-tree,pid-namespace".to_owned(),
            other => other.name().to_owned(),
        };
        let run = program(["/bin/true"]).opt("--skip", &skip).run();
        assert_eq!(run.status, 0, "--skip {skip}: {run}");
        assert_eq!(run.layer(layer).state, LayerState::Skipped, "{run}");
        let skipped = run.report().layers.iter().filter(|one| one.state == LayerState::Skipped).count();
        assert!(!alone || skipped == 1, "--skip {skip} skips nothing else: {run}");
        run.expect_restored();
    }
}

#[test]
fn layer_cannot_be_required_and_skipped() {
    let outcome = job(["exit", "0"]).opt("--require", "landlock").opt("--skip", "landlock");
    outcome.without_report().run().expect_refusal(&["landlock"]);
}

#[test]
fn unknown_layers_are_named_with_the_known_ones() {
    for option in ["--require", "--skip"] {
        let outcome = job(["exit", "0"]).opt(option, "firewall").without_report().run();
        outcome.expect_refusal(&["firewall", "seccomp"]);
    }
}

#[test]
fn command_defaults_to_make() {
    let outcome = program::<&str>([]).run();
    let text = outcome.to_string();
    assert!(text.contains("'make'") || text.contains("make: ***"), "{text}");
}
