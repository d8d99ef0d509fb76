//! The results of a batch as a page for a browser: one file, which loads and runs nothing. What
//! a job had a say in gets into it only through [`text::html`].

mod file;
mod kind;
mod charts;
mod jobs;

use std::time::{Duration, SystemTime};

pub(super) use file::Place;

use super::result::JobResult;
use super::{BatchOptions, Summary};
use crate::text;
use kind::Kind;

/// The page.
pub(super) fn render(summary: &Summary<'_>, options: &BatchOptions) -> String {
    let name = text::html(&options.jobs.display().to_string());
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>Batch of {name}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n",
        include_str!("style.css")
    );
    page += &heading(summary, &name);
    page += &figures(summary);
    page += &charts::verdicts(summary.results);
    page += &charts::longest(summary.results);
    page += &charts::layers(summary.results);
    page += &jobs::table(summary);
    page + "</main>\n</body>\n</html>\n"
}

fn heading(summary: &Summary<'_>, name: &str) -> String {
    let now = utc(SystemTime::now());
    let cancelled = match summary.is_cancelled {
        true => format!(
            "<p class=\"alert\" role=\"note\">Cancelled: {} of {} jobs have a result.</p>\n",
            summary.results.len(),
            summary.jobs
        ),
        false => String::new(),
    };
    format!(
        "<header>\n<h1>Batch of {name}</h1>\n<p>Ended <time datetime=\"{}Z\">{now} UTC</time></p>\n</header>\n{cancelled}",
        now.replace(' ', "T")
    )
}

/// The numbers that matter, each with its word.
fn figures(summary: &Summary<'_>) -> String {
    let graded = summary.count(|result| result.outcome.verdict.is_about_the_job());
    let mut figures = vec![
        (
            "jobs",
            summary.jobs.to_string(),
            match summary.recalled {
                0 => String::new(),
                count => format!("{count} from an earlier run"),
            },
        ),
        (
            "graded",
            graded.to_string(),
            match summary.results.len() - graded {
                0 => String::new(),
                count => format!("{count} not graded"),
            },
        ),
    ];
    if summary.expectations {
        let asked = summary.count(|result| result.had_expectation);
        let other = summary.count(|result| result.mismatch.is_some());
        figures.push((
            "as expected",
            (asked - other).to_string(),
            match other {
                0 => format!("of {asked}"),
                other => format!("{other} not as expected"),
            },
        ));
    }
    let mut times: Vec<u64> = summary.results.iter().filter_map(wall_us).collect();
    times.sort_unstable();
    let total = times.iter().fold(0_u64, |sum, us| sum.saturating_add(*us));
    let at = |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100);
    let brief = |us: Option<&u64>| us.map_or("-".to_owned(), |us| duration(Duration::from_micros(*us)));
    let run = summary.results.len() - summary.recalled;
    figures.extend([
        ("elapsed", duration(summary.elapsed), format!("on {}", counted(summary.machines, "machine"))),
        ("jobs' time", duration(Duration::from_micros(total)), "sum of wall times".to_owned()),
        ("median job", brief(at(50)), format!("95% within {}", brief(at(95)))),
        ("throughput", rate(run, summary.elapsed), "jobs a minute".to_owned()),
    ]);
    let figure = |(what, number, more): &(&str, String, String)| {
        format!("<div><dt>{what}</dt><dd>{number}<small>{more}</small></dd></div>\n")
    };
    format!("<dl class=\"figures\">\n{}</dl>\n", figures.iter().map(figure).collect::<String>())
}

/// Jobs a minute.
fn rate(jobs: usize, elapsed: Duration) -> String {
    let per_minute = u128::try_from(jobs).unwrap_or(u128::MAX).saturating_mul(600_000_000);
    match (jobs, per_minute.checked_div(elapsed.as_micros())) {
        (1.., Some(tenths @ 0..1000)) => format!("{}.{}", tenths / 10, tenths % 10),
        (1.., Some(tenths)) => (tenths / 10).to_string(),
        _ => "-".to_owned(),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Wall time of a job that has a report, in microseconds.
fn wall_us(result: &JobResult) -> Option<u64> {
    result.report().map(|report| report.usage.wall_us)
}

/// Minutes and hours where there are any.
fn duration(time: Duration) -> String {
    match time.as_secs() {
        0..60 => text::time(time),
        seconds @ 60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Year, month, day, hour and minute in UTC. Days are counted from 1 March of the year 0, so that
/// leap days are the last of a year (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, minutes) = (seconds / 86400 + 719_468, seconds / 60 % 1440);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (era * 400 + year, month + 3),
        _ => (era * 400 + year + 1, month - 9),
    };
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", minutes / 60, minutes % 60)
}

/// A cell that has a bar for its share of the most in 1000, beside the words.
fn bar_cell(words: &str, value: u64, most: u64) -> String {
    let share = u128::from(value) * 1000 / u128::from(most.max(1));
    format!("<td class=\"n bar\"><i style=\"width:{}.{}%\"></i>{words}</td>", share / 10, share % 10)
}

#[cfg(test)]
mod tests;
