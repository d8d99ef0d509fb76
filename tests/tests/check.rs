//! `autodriver check`: what it says of this machine is what a job on it gets.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use autodriver_protocol::Layer;
use e2e::{alone, driver, job, Snapshot};
use serde_json::Value;

#[track_caller]
fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(text)))
}

/// Whether every layer is enforced.
fn whole(checked: &Value) -> bool {
    checked["layers"].as_array().expect("a list").iter().all(|layer| layer["state"] == "enforced")
}

#[test]
fn table_has_every_layer_in_order() {
    let outcome = driver(["check"]);
    assert!(outcome.status == 0 && outcome.stderr.is_empty(), "the tests need the minimum: {outcome}");
    let table: Vec<&str> = outcome.text().lines().take_while(|line| !line.is_empty()).collect();
    let first = |line: &&str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let names: Vec<String> = table.iter().map(first).collect();
    let expected: Vec<&str> = ["layer"].into_iter().chain(Layer::ALL.map(Layer::name)).collect();
    assert_eq!(names, expected, "{outcome}");
    let header: Vec<&str> = table[0].split_whitespace().collect();
    assert_eq!(header, ["layer", "state", "by", "reason", "remedy"]);
}

#[test]
fn json_says_what_the_report_of_a_job_says() {
    let checked = json(&driver(["check", "--json"]).stdout);
    assert_eq!(checked["version"], 1);
    let outcome = job(["exit", "0"]).run().expect_clean();
    let layers = serde_json::to_value(&outcome.report().layers).expect("JSON");
    assert_eq!(checked["layers"], layers);
    for finding in checked["timing"].as_array().expect("a list") {
        for part in ["fact", "consequence", "remedy"] {
            assert!(finding[part].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
        }
    }
}

#[test]
fn findings_are_the_same_in_the_table() {
    let checked = json(&driver(["check", "--json"]).stdout);
    let text = driver(["check"]);
    let lines = text.text().lines().filter(|line| line.starts_with("timing: ")).count();
    let findings = checked["timing"].as_array().expect("a list").len();
    assert_eq!(lines, findings.max(1), "{text}");
}

#[test]
fn status_says_whether_the_requirement_is_met() {
    for require in ["all", "minimum", "seccomp,rlimits"] {
        let outcome = driver(["check", "--json", "--require", require]);
        let checked = json(&outcome.stdout);
        let met = require != "all" || whole(&checked);
        assert_eq!(checked["met"], met, "--require {require}: {outcome}");
        assert_eq!(outcome.status, if met { 0 } else { 125 }, "--require {require}: {outcome}");
        // As `run` decides.
        let run = job(["exit", "0"]).opt("--require", require).run();
        assert_eq!(run.status, outcome.status, "{run}");
    }
}

#[test]
fn without_root_something_is_missing_and_said_with_its_reason() {
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let copy = folder.path().join("driver");
    std::fs::copy(e2e::autodriver(), &copy).expect("a copy");
    let mut command = Command::new(&copy);
    command.args(["check", "--json", "--require", "all"]).uid(NOBODY).gid(NOBODY).current_dir("/");
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    let checked = json(&output.stdout);
    assert_eq!(checked["met"], false);
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(sentence.lines().count(), 1, "{sentence}");
    let layers = checked["layers"].as_array().expect("a list").iter();
    let weaker: Vec<&Value> = layers.filter(|layer| layer["state"] != "enforced").collect();
    assert!(!weaker.is_empty());
    for layer in weaker {
        assert!(layer["reason"].is_string(), "{layer}");
        assert!(sentence.contains(layer["name"].as_str().expect("a name")), "{layer}: {sentence}");
    }
}

#[test]
fn unknown_layer_is_one_sentence() {
    driver(["check", "--require", "moat"]).expect_refusal(&["moat", "seccomp"]);
    driver(["check", "now"]).expect_refusal(&["now"]);
}

#[test]
fn nothing_is_left_or_changed() {
    let _alone = alone();
    let before = Snapshot::take();
    driver(["check"]);
    driver(["check", "--json", "--require", "all"]);
    before.assert_same("looking");
}
