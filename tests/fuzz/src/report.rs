//! Which reports can be true, said once more and apart from the host's own check: from what the protocol
//! crate says of each field.

use autodriver_protocol::layer::Layer;
use autodriver_protocol::report::{RestoreState, StreamReport, REPORT_VERSION};
use autodriver_protocol::{Cause, Report};

/// Whether an honest driver can have sent this of a job that was `started` or was not.
pub fn is_possible(report: &Report, started: bool) -> bool {
    report.version == REPORT_VERSION
        && ending_is_possible(report, started)
        && (report.restore.state == RestoreState::Poisoned || report.restore.leftovers.is_empty())
        && Layer::ALL.iter().all(|layer| report.layers.iter().filter(|one| one.name == *layer).count() <= 1)
        && [report.output.combined, report.output.stdout, report.output.stderr].iter().flatten().all(adds_up)
}

fn ending_is_possible(report: &Report, started: bool) -> bool {
    let code = report.exit_code.map(|code| u8::try_from(code).is_ok());
    let signal = report.signal.map(|signal| (1..=64).contains(&signal));
    let of_the_machine = report.fault.is_some();
    match (report.cause, code, signal) {
        (Cause::SetupFailed | Cause::InternalError, None, None) => of_the_machine,
        (Cause::SetupFailed | Cause::InternalError, ..) => false,
        _ if of_the_machine => false,
        (Cause::Exited, Some(true), None) | (Cause::Signaled, None, Some(true)) => started,
        (Cause::Exited | Cause::Signaled, ..) => false,
        (_, Some(_), Some(_)) => false,
        (Cause::Cancelled, code, signal) => code != Some(false) && signal != Some(false),
        (_, code, signal) => started && code != Some(false) && signal != Some(false),
    }
}

fn adds_up(stream: &StreamReport) -> bool {
    u128::from(stream.kept) + u128::from(stream.elided) == u128::from(stream.produced)
}
