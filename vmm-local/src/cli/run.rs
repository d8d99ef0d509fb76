//! `vmm-local run`: the whole life of one job.

use autodriver_protocol::job::Input;
use autodriver_protocol::Options;

use super::report_file::ReportFile;
use super::{conclude, pass_on, RunArgs};
use crate::backend::{Backend, Name};
use crate::cancel::Cancel;
use crate::session::{perform, Assignment, Connection, Deadlines, Fault, Outcome, Step};

pub(super) fn run(args: RunArgs) -> Result<u8, String> {
    let deadlines = args.timeouts.deadlines();
    let options = with_stdin(args.job.resolve().map_err(|fault| fault.message)?)?;
    let quiet = options.quiet;
    let mut report = options.report.as_deref().map(ReportFile::open).transpose()?;
    let outcome = match Cancel::on_signals() {
        Ok(cancel) => live(&*args.backend.build(), deadlines, options, &cancel),
        Err(error) => Outcome::of(Fault::here(Step::Prepare, &format!("cannot handle signals: {error}"))),
    };
    if let Some(report) = &mut report {
        report.write(&outcome.verdict.to_report())?;
    }
    Ok(conclude(&outcome, quiet))
}

/// Where the file of `--stdin` goes in the job directory: the machine may be another one, and
/// has no path of ours.
const STDIN: &str = ".stdin";

fn with_stdin(mut options: Options) -> Result<Options, String> {
    let Some(src) = options.stdin.take() else { return Ok(options) };
    match std::fs::metadata(&src) {
        Ok(file) if file.is_file() => {}
        Ok(_) => return Err(format!("--stdin '{src}': not a regular file; give one, it is copied")),
        Err(error) => return Err(format!("--stdin '{src}': {error}; give a file")),
    }
    options.inputs.push(Input { src, dest: Some(STDIN.to_owned()) });
    options.stdin = Some(STDIN.to_owned());
    Ok(options)
}

/// Makes a machine, runs the job on it, destroys it.
fn live(backend: &dyn Backend, deadlines: Deadlines, options: Options, cancel: &Cancel) -> Outcome {
    let assignment = match Assignment::new(options) {
        Ok(assignment) => assignment,
        Err(fault) => return Outcome::of(fault),
    };
    let machine = match format!("run-{}", std::process::id()).parse::<Name>() {
        Ok(machine) => machine,
        Err(error) => return Outcome::of(Fault::here(Step::Prepare, &error)),
    };
    if let Err(error) = backend.create(&machine) {
        return Outcome::of(Fault::here(Step::Connect, &error));
    }
    let mut outcome = match Connection::reach(backend, &machine, deadlines, cancel) {
        Ok(mut connection) => perform(&mut connection, &assignment, &mut pass_on()),
        Err(fault) => Outcome::of(fault),
    };
    if let Err(error) = backend.destroy(&machine) {
        outcome.notes.push(error.to_string());
    }
    outcome
}
