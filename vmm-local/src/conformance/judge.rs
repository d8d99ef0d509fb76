//! From what was seen to a judgement.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use attacks::{Attack, Ends, BROKE, HELD};
use autodriver_protocol::report::{LayerReport, RestoreState};
use autodriver_protocol::{Cause, Report};

use super::trial::Played;
use crate::session::Verdict;
use crate::text;

/// What a file that may be copied out begins with.
const INNOCENT: &[u8] = b"innocent";
/// What follows where it ends with its own name.
const NAMED: &[u8] = b": ";

/// All that is known of one run of an attack.
pub(super) struct Evidence<'a> {
    pub(super) attack: &'static Attack,
    pub(super) accomplice: Option<&'a Played>,
    pub(super) attacker: &'a Played,
    pub(super) before: &'a str,
    pub(super) after: Result<&'a str, &'a String>,
    pub(super) fetched: &'a Path,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Judgement {
    /// The attack was tried, and did not succeed.
    pub(super) stopped: bool,
    /// The attack succeeded.
    pub(super) succeeded: bool,
    /// It did, as it is known to, and did no harm.
    pub(super) open: bool,
    /// The job's end in a few words, and the attack's own.
    pub(super) verdict: String,
    /// What is not as it must be, if anything.
    pub(super) wrong: Vec<String>,
    /// What is not as it was, if anything.
    pub(super) aftermath: Vec<String>,
    /// The layers of the report that stop the attack.
    pub(super) layers: Vec<LayerReport>,
}

impl Judgement {
    pub(super) fn impossible(why: &str) -> Judgement {
        Judgement {
            stopped: false,
            succeeded: false,
            open: false,
            verdict: "not tried".to_owned(),
            wrong: vec![why.to_owned()],
            aftermath: Vec::new(),
            layers: Vec::new(),
        }
    }

    /// The attack was stopped, its job ended as it must, and the machine is as it was.
    pub(super) fn holds(&self) -> bool {
        self.stopped && self.wrong.is_empty() && self.aftermath.is_empty()
    }
}

impl Evidence<'_> {
    pub(super) fn judge(&self) -> Judgement {
        let players = || self.accomplice.into_iter().chain([self.attacker]);
        let report = match &self.attacker.outcome.verdict {
            Verdict::Report(report) => Some(&**report),
            Verdict::Fault(_) => None,
        };
        let aftermath = self.aftermath();
        let success = players()
            .find_map(|played| said(&played.output, BROKE))
            .or_else(|| self.foreign_file())
            .or_else(|| self.hidden_use(report.filter(|report| self.was_tried(report))?));
        let open = self.attack.open.and_then(|_| said(&self.attacker.output, BROKE));
        let tried = report.is_some_and(|report| self.was_tried(report));
        let succeeded = success.is_some() || (tried && !aftermath.is_empty());
        let mut wrong = Vec::new();
        if open.is_none() {
            wrong.extend(success);
            wrong.extend(report.and_then(|report| self.ended_otherwise(report)));
        }
        wrong.extend(players().filter_map(|played| fault(&played.outcome.verdict)));
        let own = open.clone().or_else(|| said(&self.attacker.output, HELD));
        let own = own.map(|how| format!(": {how}")).unwrap_or_default();
        Judgement {
            stopped: tried && !succeeded,
            succeeded,
            open: open.is_some() && wrong.is_empty() && aftermath.is_empty(),
            verdict: format!("{}{own}", self.attacker.outcome.verdict.summary()),
            wrong,
            aftermath,
            layers: report.map(|report| self.layers(report)).unwrap_or_default(),
        }
    }

    /// Whether the program made its attempt: it says so, or was ended in the middle of it.
    fn was_tried(&self, report: &Report) -> bool {
        let output = &self.attacker.output;
        let spoke = said(output, HELD).is_some() || said(output, BROKE).is_some();
        let was_ended = !matches!(report.cause, Cause::Exited | Cause::SetupFailed | Cause::InternalError);
        spoke || was_ended
    }

    /// How the report says that the job ended, if it must have ended otherwise.
    fn ended_otherwise(&self, report: &Report) -> Option<String> {
        let as_it_must = self.attack.ends.are_met(report, &self.attacker.output);
        let line = self.attacker.outcome.verdict.line();
        (!as_it_must).then(|| format!("ended by {line}, not {}", expected(self.attack.ends)))
    }

    /// What the guest says it could not put back, and what the witness sees otherwise.
    fn aftermath(&self) -> Vec<String> {
        let mut found = Vec::new();
        for played in self.accomplice.into_iter().chain([self.attacker]) {
            if let Verdict::Report(report) = &played.outcome.verdict {
                if report.restore.state == RestoreState::Poisoned {
                    let left = report.restore.leftovers.iter();
                    found.extend(left.map(|left| format!("left {} {}", left.kind, left.what)));
                }
            }
        }
        match self.after {
            Err(why) => found.push(format!("the next job: {why}")),
            Ok(after) => found.extend(difference(self.before, after)),
        }
        found.iter().map(|line| text::printable(line)).collect()
    }

    /// A file that was copied out and is not the job's own, or not as it must be on the host.
    fn foreign_file(&self) -> Option<String> {
        let mut folders = vec![self.fetched.to_owned()];
        let mut arrived = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                    continue;
                }
                arrived += 1;
                let told =
                    |why: &str| text::printable(&format!("'{}' {why}", entry.file_name().to_string_lossy()));
                match fault_of(&entry) {
                    Ok(None) => {}
                    Ok(Some(why)) => return Some(told(why)),
                    Err(error) => return Some(told(&error.to_string())),
                }
            }
        }
        // Every such attack has an innocent file as well: without it nothing was tried.
        (self.attack.out.is_some() && arrived == 0).then(|| "nothing was copied out".to_owned())
    }

    /// What the job took and the report does not show.
    fn hidden_use(&self, report: &Report) -> Option<String> {
        let usage = &report.usage;
        let cpu = usage.cpu_user_us.unwrap_or(0).saturating_add(usage.cpu_system_us.unwrap_or(0));
        let memory = usage.memory_peak_bytes.unwrap_or(0);
        let most = self.attack.shows;
        if Duration::from_micros(cpu) < most.cpu {
            return Some(format!("the report shows {cpu} us of CPU time, not {:?}", most.cpu));
        }
        (memory < most.memory).then(|| {
            format!(
                "the report shows a peak of {} of memory, not {}",
                text::size(memory),
                text::size(most.memory)
            )
        })
    }

    fn layers(&self, report: &Report) -> Vec<LayerReport> {
        let of = |layer| report.layers.iter().find(|report| report.name == layer).cloned();
        self.attack.stopped_by.iter().filter_map(|layer| of(*layer)).collect()
    }
}

/// What is wrong with a file that was copied out.
fn fault_of(entry: &fs::DirEntry) -> io::Result<Option<&'static str>> {
    let meta = entry.metadata()?;
    if !meta.is_file() {
        return Ok(Some("was copied out, and is no file"));
    }
    let content = fs::read(entry.path())?;
    let Some(rest) = content.strip_prefix(INNOCENT) else { return Ok(Some("was copied out")) };
    if rest.strip_prefix(NAMED).is_some_and(|name| name != entry.file_name().as_bytes()) {
        return Ok(Some("was copied out under another name"));
    }
    let plain = meta.permissions().mode() & 0o7777 == 0o644 && meta.nlink() == 1;
    let ours = meta.uid() == nix::unistd::geteuid().as_raw() && meta.modified()? <= SystemTime::now();
    Ok((!plain || !ours).then_some("has the job's mode, owner or time"))
}

/// What follows `mark` on the last line of the output that begins with it.
fn said(output: &str, mark: &str) -> Option<String> {
    output.lines().rev().find_map(|line| line.strip_prefix(mark)).map(text::printable)
}

fn fault(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Fault(fault) if !fault.cancelled => Some(text::printable(&fault.to_string())),
        _ => None,
    }
}

fn expected(ends: Ends) -> String {
    let causes = |causes: &[Cause]| causes.iter().map(|cause| cause.name()).collect::<Vec<_>>().join(" or ");
    match ends {
        Ends::Refused => "a refusal and exit 0".to_owned(),
        Ends::By(list) => causes(list),
        Ends::RefusedOrBy(list) => format!("a refusal, {}", causes(list)),
        Ends::Signal(signal) => format!("signal {signal}"),
    }
}

/// The lines that only one of the two has.
fn difference(before: &str, after: &str) -> Vec<String> {
    let only = |one: &str, other: &str, sign: &str| {
        let missing = one.lines().filter(|line| !other.lines().any(|same| same == *line));
        missing.map(|line| format!("{sign} {line}")).collect::<Vec<_>>()
    };
    [only(before, after, "-"), only(after, before, "+")].concat()
}
