use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use autodriver_protocol::report::{Leftover, Restore};
use autodriver_protocol::Cause;
use clap::{Args, FromArgMatches};

use super::*;
use crate::session::fake::report;
use crate::session::{Fault, Outcome, Step, Verdict};

fn options(jobs: &str) -> BatchOptions {
    let command = BatchOptions::augment_args(clap::Command::new("batch"));
    let matches = command.try_get_matches_from(["batch", "x"]).unwrap();
    BatchOptions { jobs: PathBuf::from(jobs), ..BatchOptions::from_arg_matches(&matches).unwrap() }
}

/// A result in which everything that somebody else has a say in reads like `text`.
fn result(index: usize, verdict: Verdict, text: &str) -> JobResult {
    let scores = [(text.to_owned(), serde_json::json!(text))].into_iter().collect();
    let outcome = Outcome {
        verdict,
        notes: vec![text.to_owned()],
        machine_is_sound: true,
        machine_is_lost: false,
        took: None,
    };
    JobResult {
        index,
        name: text.to_owned(),
        input: None,
        outcome,
        scores: Some(scores),
        had_expectation: true,
        mismatch: Some(text.to_owned()),
    }
}

fn results(text: &str) -> Vec<JobResult> {
    let mut said = report(Cause::Exited);
    said.limits_hit = vec![text.to_owned()];
    let mut poisoned = report(Cause::WallLimit);
    poisoned.restore = Restore::from_leftovers(vec![Leftover { kind: text.into(), what: text.into() }]);
    for layer in &mut said.layers {
        (layer.state, layer.reason) =
            (autodriver_protocol::report::LayerState::Absent, Some(text.to_owned()));
    }
    let verdicts = [
        Verdict::Report(Box::new(said)),
        Verdict::Report(Box::new(poisoned)),
        Verdict::Fault(Fault::here(Step::Connect, &text)),
    ];
    verdicts.into_iter().enumerate().map(|(index, verdict)| result(index, verdict, text)).collect()
}

fn page_of(results: &[JobResult], jobs: &str) -> String {
    let summary = Summary {
        jobs: results.len() + 2,
        recalled: 0,
        machines: 1,
        elapsed: Duration::from_secs(61),
        is_cancelled: true,
        expectations: true,
        results,
    };
    render(&summary, &options(jobs))
}

/// All that a browser takes for markup.
fn tags(page: &str) -> Vec<&str> {
    page.split('<').skip(1).map(|rest| rest.split_once('>').map_or(rest, |(tag, _)| tag)).collect()
}

#[test]
fn no_word_of_a_job_becomes_markup() {
    let calm = page_of(&results("calm"), "jobs");
    assert!(tags(&calm).len() > 100, "{calm}");
    for hostile in [
        "</td></table><script>alert(1)</script>",
        "\" onmouseover=\"alert(1)",
        "' style='background:url(http://example.org)",
        "</style><style>body{display:none}",
        "--><!--<![CDATA[",
        "&lt;b&gt;&#60;i>",
        "\u{202e}\u{1b}[2J\0\r\n<",
    ] {
        let page = page_of(&results(hostile), hostile);
        assert_eq!(tags(&page), tags(&calm), "{hostile:?}");
        let plain = page.chars().all(|c| c == '\n' || text::printable(&c.to_string()) == c.to_string());
        assert!(plain && !page.contains(hostile), "{hostile:?}");
    }
}

#[test]
fn a_job_s_words_are_shown_and_bounded() {
    let page = page_of(&results("a<b"), "jobs");
    assert!(page.contains("a&lt;b &quot;a&lt;b&quot;"), "the score is there");
    for words in
        ["limits hit: a&lt;b", "no: a&lt;b", "connect: a&lt;b", "machine poisoned: a&lt;b", "poisoned"]
    {
        assert!(page.contains(words), "{words}");
    }
    let long = page_of(&results(&"x".repeat(1 << 20)), "jobs");
    assert!(long.len() < 64 << 10, "{}", long.len());
}

#[test]
fn the_page_loads_nothing_and_can_be_read_aloud() {
    let page = page_of(&results("calm"), "jobs");
    assert!(page.contains("content=\"default-src 'none'; style-src 'unsafe-inline'\""));
    for loads in ["http://", "https://", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(loads), "{loads}");
    }
    assert!(page.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"));
    assert!(page.split("<th").skip(1).all(|th| th.starts_with("ead") || th.starts_with(" scope=\"")));
    assert_eq!(page.matches("<table").count(), page.matches("<caption>").count());
    assert_eq!(page.matches("<tr").count(), page.matches("</tr>").count());
    assert!(page.contains("Cancelled: 3 of 5 jobs have a result."), "{page}");
}

#[test]
fn a_batch_without_any_result_has_a_page() {
    let page = page_of(&[], "jobs");
    assert!(page.contains("No job has a report") && page.contains("0 of 2 jobs"), "{page}");
}

#[test]
fn the_slowest_come_first() {
    let jobs = (0..30_u64).map(|number| {
        let mut report = report(Cause::Exited);
        report.usage.wall_us = number * 7 % 30 * 1_000_000;
        result(0, Verdict::Report(Box::new(report)), &format!("job-{number}"))
    });
    let page = page_of(&jobs.collect::<Vec<_>>(), "jobs");
    let start = page.find("Slowest jobs").unwrap();
    let slowest = &page[start..page.find("Largest jobs").unwrap()];
    assert_eq!(slowest.matches("<th scope=\"row\">").count(), 10);
    // 17 * 7 is 29 beyond 90, and 4 * 7 is 28.
    assert!(slowest.find("job-17<").unwrap() < slowest.find("job-4<").unwrap());
}

#[test]
fn times_read_well() {
    let at = |seconds| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    for (seconds, text) in [
        (0, "1970-01-01 00:00"),
        (951_782_400, "2000-02-29 00:00"),
        (1_709_251_199, "2024-02-29 23:59"),
        (1_709_251_200, "2024-03-01 00:00"),
        (4_107_542_399, "2100-02-28 23:59"),
        (4_107_542_400, "2100-03-01 00:00"),
    ] {
        assert_eq!(at(seconds), text);
    }
    assert_eq!(duration(Duration::from_secs(59)), "59.00 s");
    assert_eq!(duration(Duration::from_secs(3599)), "59 min 59 s");
    assert_eq!(duration(Duration::from_secs(3600)), "1 h 00 min");
    assert_eq!(rate(10, Duration::from_secs(120)), "5.0");
    assert_eq!(rate(1000, Duration::from_secs(60)), "1000");
    assert_eq!(rate(0, Duration::ZERO), "-");
}
