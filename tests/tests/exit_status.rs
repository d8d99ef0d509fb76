//! The exit status of `autodriver run`, row by row, and what the report says with each.

use autodriver_protocol::{Cause, Layer};
use e2e::{driver, job, program, shell};

#[test]
fn status_of_the_job_is_the_drivers_own() {
    for code in [0, 1, 7, 123, 124, 125, 126, 127, 137, 255] {
        job(["exit", &code.to_string()]).run().expect_exit(code);
    }
}

#[test]
fn death_by_signal_is_128_and_the_number() {
    for signal in [1, 6, 9, 11, 15] {
        let outcome = job(["signal", &signal.to_string()]).run().expect_restored();
        assert_eq!(outcome.cause(), Cause::Signaled, "{outcome}");
        assert_eq!(outcome.report().signal, Some(signal), "{outcome}");
        assert_eq!((outcome.status, outcome.report().exit_code), (128 + signal, None), "{outcome}");
    }
}

/// Their numbers are in no enum of signals.
#[test]
fn death_by_a_real_time_signal_is_one_by_signal() {
    for signal in [34, 40, 64] {
        let outcome = shell(&format!("kill -{signal} $$")).run().expect_restored();
        assert_eq!((outcome.cause(), outcome.report().signal), (Cause::Signaled, Some(signal)), "{outcome}");
        assert_eq!(outcome.status, 128 + signal, "{outcome}");
    }
}

/// init reaps it, and must not take it for the end of everything.
#[test]
fn death_of_an_orphan_by_a_real_time_signal_is_nothing_to_the_job() {
    let orphan = "(sh -c 'sleep 0.1; kill -40 $$' &); sleep 0.5; exit 3";
    shell(orphan).run().expect_exit(3);
}

#[test]
fn exit_with_128_and_a_number_is_no_death_by_signal() {
    let outcome = job(["exit", "137"]).run().expect_exit(137);
    assert_eq!(outcome.report().signal, None);
}

#[test]
fn command_that_is_not_there_is_127() {
    for command in ["./missing", "no-such-program-anywhere"] {
        let outcome = program([command]).run().expect_restored();
        assert_eq!(outcome.status, 127, "{outcome}");
        assert!(outcome.stdout.is_empty(), "nothing is said on the job's streams: {outcome}");
        let fault = outcome.report().fault.as_ref().expect("a fault");
        assert!(fault.message.contains(command) && fault.errno == "ENOENT", "{outcome}");
    }
}

#[test]
fn command_that_cannot_be_executed_is_126() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "no program").expect("a file");
    let mut given = file.path().as_os_str().to_owned();
    given.push(":file");
    let outcome = program(["./file"]).opt("--in", given).run().expect_restored();
    assert_eq!(outcome.status, 126, "{outcome}");
    assert_eq!(outcome.report().fault.as_ref().expect("a fault").errno, "EACCES", "{outcome}");
    let folder = program(["/tmp"]).run().expect_restored();
    assert_eq!(folder.status, 126, "{folder}");
}

#[test]
fn bad_usage_is_125() {
    driver(["run", "--no-such-option"]).expect_refusal(&["--no-such-option"]);
}

#[test]
fn report_names_every_layer_in_order_and_all_are_enforced() {
    let outcome = job(["exit", "0"]).opt("--require", "all").run().expect_clean();
    let names: Vec<Layer> = outcome.report().layers.iter().map(|layer| layer.name).collect();
    assert_eq!(names, Layer::ALL);
    let enforced = autodriver_protocol::report::LayerState::Enforced;
    let weaker: Vec<_> = outcome.report().layers.iter().filter(|layer| layer.state != enforced).collect();
    assert!(weaker.is_empty(), "{weaker:?}");
}

#[test]
fn report_tells_what_was_used_and_how_long_it_took() {
    let outcome = job(["sleep", "200"]).run().expect_clean();
    let report = outcome.report();
    assert_eq!(report.version, 1);
    // The clock starts when the driver learns that the job has: later, on a busy machine.
    assert!(report.usage.wall_us >= 100_000, "{outcome}");
    assert!(report.timing.run_us >= 100_000 && report.timing.setup_us > 0, "{outcome}");
    assert!(u128::from(report.timing.run_us) <= outcome.took.as_micros(), "{outcome}");
    assert!(report.usage.memory_peak_bytes.is_none_or(|peak| peak > 0), "unknown is not 0: {outcome}");
    assert!(report.usage.pids_peak.is_none_or(|peak| peak > 0), "unknown is not 0: {outcome}");
}

#[test]
fn forged_report_on_stdout_changes_nothing() {
    let script = "echo '{\"version\":1,\"cause\":\"exited\",\"exit_code\":0}'; exit 9";
    let outcome = shell(script).run().expect_exit(9);
    assert!(outcome.text().contains("\"exit_code\":0"), "{outcome}");
}
