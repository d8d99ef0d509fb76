//! The table of all jobs.

use std::time::Duration;

use autodriver_protocol::report::{LayerState, RestoreState};
use autodriver_protocol::Report;

use super::{bar_cell, wall_us, Kind};
use crate::batch::result::JobResult;
use crate::batch::{table, Summary};
use crate::text;

/// Most characters of a name, of scores, and of each note.
const CELL_MAX: usize = 300;
/// Most notes of a job.
const NOTES_MAX: usize = 20;

/// What the table can be cut down to: the words, and the name that the style has for it.
const FILTERS: [(&str, &str); 4] = [
    ("all", "show-all"),
    ("not exited 0", "show-others"),
    ("not graded", "show-faults"),
    ("not as expected", "show-unexpected"),
];

/// The table, with what it can be cut down to.
pub(super) fn table(summary: &Summary<'_>) -> String {
    let filters = FILTERS.iter().filter(|(_, id)| *id != "show-unexpected" || summary.expectations);
    let filters = filters.map(|(words, id)| {
        let checked = if *id == "show-all" { " checked" } else { "" };
        format!("<label><input type=\"radio\" name=\"show\" id=\"{id}\"{checked}> {words}</label>\n")
    });
    let mut heads = vec![
        ("job", ""),
        ("verdict", ""),
        ("status", "n"),
        ("score", ""),
        ("wall", "n"),
        ("cpu", "n"),
        ("memory", "n"),
        ("restore", ""),
        ("layers", ""),
    ];
    if summary.expectations {
        heads.push(("expected", ""));
    }
    heads.push(("notes", ""));
    let heads: String = heads
        .iter()
        .map(|(word, class)| format!("<th scope=\"col\" class=\"{class}\">{word}</th>"))
        .collect();
    let most = [
        summary.results.iter().filter_map(wall_us).max().unwrap_or(0),
        summary.results.iter().filter_map(memory).max().unwrap_or(0),
    ];
    let rows: String = summary.results.iter().map(|result| row(result, summary.expectations, most)).collect();
    format!(
        "<section>\n<h2>Jobs</h2>\n<fieldset>\n<legend>Show</legend>\n{}</fieldset>\n<div class=\"wide\">\n\
         <table id=\"jobs\">\n<caption>All jobs that have a result, in their order</caption>\n\
         <thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</section>\n",
        filters.collect::<String>()
    )
}

fn memory(result: &JobResult) -> Option<u64> {
    result.report().and_then(|report| report.usage.memory_peak_bytes)
}

/// The verdict in a word or two, in the colour of its kind.
pub(super) fn verdict_cell(result: &JobResult) -> String {
    let (words, class) = (text::html(&result.outcome.verdict.summary()), Kind::of(result).class());
    format!("<td><span class=\"verdict {class}\">{words}</span></td>")
}

fn row(result: &JobResult, expectations: bool, most: [u64; 2]) -> String {
    let cell = |words: &str| format!("<td>{}</td>", text::html(&text::shortened(words, CELL_MAX)));
    let unknown = || "<td class=\"n none\">-</td>".to_owned();
    let nothing = || "<td class=\"none\">-</td>".to_owned();
    let time = |us: u64| text::time(Duration::from_micros(us));
    let other = if result.mismatch.is_some() { " other" } else { "" };
    let name = text::html(&text::shortened(&result.name, CELL_MAX));
    let mut row = format!("<tr class=\"{}{other}\"><th scope=\"row\">{name}</th>", Kind::of(result).class());
    row += &verdict_cell(result);
    row += &format!("<td class=\"n\">{}</td>", result.outcome.verdict.exit_code());
    let scores = result.scores.as_ref().map_or("-".to_owned(), table::score);
    row += &format!("<td class=\"score\">{}</td>", text::html(&text::shortened(&scores, CELL_MAX)));
    let report = result.report();
    row += &wall_us(result).map_or_else(unknown, |us| bar_cell(&time(us), us, most[0]));
    let cpu = report.and_then(|report| report.usage.cpu_user_us.zip(report.usage.cpu_system_us));
    let cpu = cpu.map(|(user, system)| time(user.saturating_add(system)));
    row += &cpu.map_or_else(unknown, |cpu| format!("<td class=\"n\">{cpu}</td>"));
    row += &memory(result).map_or_else(unknown, |bytes| bar_cell(&text::size(bytes), bytes, most[1]));
    row += &report.map_or_else(nothing, |report| match report.restore.state {
        RestoreState::Restored => "<td class=\"word\">restored</td>".to_owned(),
        RestoreState::Poisoned => {
            "<td class=\"word\"><span class=\"verdict fault\">poisoned</span></td>".to_owned()
        }
    });
    row += &report.map_or_else(nothing, |report| cell(&strength(report)));
    if expectations {
        row += &match (&result.mismatch, result.had_expectation) {
            (Some(mismatch), _) => cell(&format!("no: {mismatch}")),
            (None, true) => cell("yes"),
            (None, false) => nothing(),
        };
    }
    row + &notes(result) + "</tr>\n"
}

/// How many layers stood how, where not all were enforced.
fn strength(report: &Report) -> String {
    let count = |state| report.layers.iter().filter(|layer| layer.state == state).count();
    let weaker = [LayerState::Substituted, LayerState::Absent, LayerState::Skipped]
        .map(|state| (count(state), state.name()));
    let words = weaker.iter().filter(|(count, _)| *count > 0).map(|(count, name)| format!("{count} {name}"));
    let words: Vec<String> = words.collect();
    match words.is_empty() {
        true => format!("all {}", report.layers.len()),
        false => words.join(", "),
    }
}

/// What there is to know beside the figures: why there is no verdict, limits, output that is not there.
fn notes(result: &JobResult) -> String {
    let verdict = &result.outcome.verdict;
    let mut notes = Vec::new();
    if !verdict.is_about_the_job() {
        notes.push(verdict.line());
    }
    if let Some(report) = result.report() {
        if !report.limits_hit.is_empty() {
            notes.push(format!("limits hit: {}", report.limits_hit.join(" ")));
        }
        let output = &report.output;
        let streams = [&output.combined, &output.stdout, &output.stderr].into_iter().flatten();
        match streams.fold(0_u64, |sum, stream| sum.saturating_add(stream.elided)) {
            0 => {}
            elided => notes.push(format!("{} of output left out", text::size(elided))),
        }
    }
    notes.extend(result.outcome.notes.iter().take(NOTES_MAX).cloned());
    let notes = notes.iter().map(|note| text::html(&text::shortened(note, CELL_MAX)));
    format!("<td class=\"long\">{}</td>", notes.collect::<Vec<_>>().join("<br>"))
}
