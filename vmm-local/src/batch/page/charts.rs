//! What many results have in common: verdicts by kind, the longest and largest jobs, the layers.

use std::fmt::Write;
use std::time::Duration;

use autodriver_protocol::layer::Layer;
use autodriver_protocol::report::LayerState;

use super::{bar_cell, wall_us, Kind};
use crate::batch::result::JobResult;
use crate::text;

/// How many of the slowest and the largest are named.
const MOST: usize = 10;
/// Most characters of a job's name in these.
const NAME_MAX: usize = 60;
/// Most characters of why a layer is weaker.
const REASON_MAX: usize = 300;

/// How many there are of each kind, the most frequent first, as one bar and as a table.
pub(super) fn verdicts(results: &[JobResult]) -> String {
    let mut kinds: Vec<(Kind, usize)> = Vec::new();
    for kind in results.iter().map(Kind::of) {
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let (mut stack, mut rows) = (String::new(), String::new());
    for (kind, count) in kinds {
        let (words, class) = (kind.words(), kind.class());
        stack += &format!("<i class=\"{class}\" style=\"flex-grow:{count}\"></i>");
        let cell = bar_cell(&count.to_string(), count as u64, results.len() as u64);
        rows += &format!(
            "<tr><th scope=\"row\"><span class=\"verdict {class}\">{words}</span></th>{cell}</tr>\n"
        );
    }
    format!(
        "<section>\n<h2>Verdicts</h2>\n<div class=\"stack\" aria-hidden=\"true\">{stack}</div>\n\
         <table class=\"small\">\n<caption>Jobs by how they ended</caption>\n\
         <thead><tr><th scope=\"col\">verdict</th><th scope=\"col\" class=\"n\">jobs</th></tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</section>\n"
    )
}

/// The slowest and the largest.
pub(super) fn longest(results: &[JobResult]) -> String {
    let memory = |result: &JobResult| result.report().and_then(|report| report.usage.memory_peak_bytes);
    let time = |us| text::time(Duration::from_micros(us));
    let slowest = top(results, "Slowest jobs", "wall time", wall_us, time);
    let largest = top(results, "Largest jobs", "peak memory", memory, text::size);
    format!("<div class=\"pair\">\n{slowest}{largest}</div>\n")
}

/// The few that have most of something.
fn top(
    results: &[JobResult],
    title: &str,
    unit: &str,
    value: impl Fn(&JobResult) -> Option<u64>,
    words: impl Fn(u64) -> String,
) -> String {
    let mut known: Vec<(u64, &JobResult)> =
        results.iter().filter_map(|result| Some((value(result)?, result))).collect();
    known.sort_by_key(|(value, result)| (std::cmp::Reverse(*value), result.index));
    let most = known.first().map_or(0, |(value, _)| *value);
    let mut rows = String::new();
    for (value, result) in known.into_iter().take(MOST) {
        let name = text::html(&text::shortened(&result.name, NAME_MAX));
        let verdict = super::jobs::verdict_cell(result);
        let cell = bar_cell(&words(value), value, most);
        rows += &format!("<tr><th scope=\"row\">{name}</th>{verdict}{cell}</tr>\n");
    }
    format!(
        "<section>\n<h2>{title}</h2>\n<table>\n<caption>The {MOST} jobs with the most {unit}</caption>\n\
         <thead><tr><th scope=\"col\">job</th><th scope=\"col\">verdict</th><th scope=\"col\" class=\"n\">{unit}</th></tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</section>\n"
    )
}

/// How each layer stood, over all jobs that ran, with the first reason of one that was weaker.
pub(super) fn layers(results: &[JobResult]) -> String {
    const STATES: [LayerState; 4] =
        [LayerState::Enforced, LayerState::Substituted, LayerState::Absent, LayerState::Skipped];
    let mut rows = String::new();
    for layer in Layer::ALL {
        let seen = || {
            let reports = results.iter().filter_map(JobResult::report);
            reports.flat_map(|report| &report.layers).filter(move |one| one.name == layer)
        };
        let _ = write!(rows, "<tr><th scope=\"row\">{}</th>", layer.name());
        for state in STATES {
            let count = seen().filter(|one| one.state == state).count();
            let class = if count == 0 { "n none" } else { "n" };
            let _ = write!(rows, "<td class=\"{class}\">{count}</td>");
        }
        let reason =
            seen().filter(|one| one.state != LayerState::Enforced).find_map(|one| one.reason.as_deref());
        let reason = text::html(&text::shortened(reason.unwrap_or(""), REASON_MAX));
        let _ = writeln!(rows, "<td class=\"long\">{reason}</td></tr>");
    }
    let heads: String =
        STATES.map(|state| format!("<th scope=\"col\" class=\"n\">{}</th>", state.name())).concat();
    format!(
        "<section>\n<h2>Layers</h2>\n<details>\n<summary>{}</summary>\n<table>\n\
         <caption>In how many jobs each layer of the sandbox was in force</caption>\n\
         <thead><tr><th scope=\"col\">layer</th>{heads}<th scope=\"col\">why not, first of the reasons</th></tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</details>\n</section>\n",
        layers_in_brief(results)
    )
}

fn layers_in_brief(results: &[JobResult]) -> String {
    let reports: Vec<_> = results.iter().filter_map(JobResult::report).collect();
    let weaker = reports.iter().filter(|report| report.weaker().is_some()).count();
    match (reports.len(), weaker) {
        (0, _) => "No job has a report".to_owned(),
        (all, 0) => format!("Every layer was enforced in {}", super::counted(all, "job")),
        (all, weaker) => format!("In {weaker} of {} some layer was not enforced", super::counted(all, "job")),
    }
}
