//! The results of a batch as a table for people.

use std::time::Duration;

use serde_json::{Map, Value};

use super::result::JobResult;
use crate::session::Verdict;
use crate::text;

/// Most characters in a cell.
const CELL_MAX: usize = 40;

/// The table, with a column for expectations if there were any.
pub(super) fn render(results: &[JobResult], expectations: bool) -> String {
    let mut header = vec!["job", "verdict", "score", "wall", "cpu", "memory", "restore"];
    if expectations {
        header.push("expected");
    }
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    rows.extend(results.iter().map(|result| {
        let mut row = cells(result);
        if expectations {
            row.push(match (&result.mismatch, result.had_expectation) {
                (Some(mismatch), _) => format!("NO: {mismatch}"),
                (None, true) => "yes".to_owned(),
                (None, false) => "-".to_owned(),
            });
        }
        row
    }));
    let cut = |row: Vec<String>| row.iter().map(|cell| text::shortened(cell, CELL_MAX)).collect::<Vec<_>>();
    let mut table = text::table(&rows.into_iter().map(cut).collect::<Vec<_>>());
    for result in results.iter().filter(|result| !result.outcome.verdict.is_about_the_job()) {
        table += &format!("{}: {}\n", result.name, result.outcome.verdict.line());
    }
    for result in results {
        for note in &result.outcome.notes {
            table += &format!("{}: {note}\n", result.name);
        }
    }
    table
}

fn cells(result: &JobResult) -> Vec<String> {
    let mut row = vec![result.name.clone(), result.outcome.verdict.summary()];
    row.push(result.scores.as_ref().map_or("-".to_owned(), score));
    let unknown = || "-".to_owned();
    match &result.outcome.verdict {
        Verdict::Fault(_) => row.extend(std::iter::repeat_with(unknown).take(4)),
        Verdict::Report(report) => {
            let usage = &report.usage;
            let time = |us: u64| text::time(Duration::from_micros(us));
            row.push(time(usage.wall_us));
            let cpu = usage.cpu_user_us.zip(usage.cpu_system_us);
            row.push(cpu.map_or_else(unknown, |(user, system)| time(user.saturating_add(system))));
            row.push(usage.memory_peak_bytes.map_or_else(unknown, text::size));
            row.push(format!("{:?}", report.restore.state).to_lowercase());
        }
    }
    row
}

/// `name value` of each score.
pub(super) fn score(scores: &Map<String, Value>) -> String {
    let each = scores.iter().map(|(name, value)| format!("{name} {value}"));
    text::printable(&each.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Fault, Outcome, Step};

    #[test]
    fn a_hostile_score_cannot_draw_on_the_terminal() {
        let scores = serde_json::from_str(r#"{"\u001b[2J": "\u0007", "p": 1}"#).unwrap();
        let outcome = Outcome::of(Fault::here(Step::Open, &"the machine is full"));
        let result = JobResult {
            index: 0,
            name: "one".to_owned(),
            input: None,
            outcome,
            scores: Some(scores),
            had_expectation: true,
            mismatch: Some("no report".to_owned()),
        };
        let table = render(&[result], true);
        assert!(!table.chars().any(|c| c.is_control() && c != '\n'), "{table:?}");
        assert!(table.contains("p 1") && table.contains("open failed") && table.contains("NO: no report"));
        assert!(table.ends_with("one: open: the machine is full\n"), "{table}");
    }
}
