use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use autodriver_protocol::units::Time;
use autodriver_protocol::Cause;
use serde_json::json;

use super::{duration, rate, render, utc};
use crate::batch::result::JobResult;
use crate::batch::{BatchOptions, Summary};
use crate::session::fake::report;
use crate::session::{Fault, Outcome, Step, Verdict};

const HOSTILE: &str = "</td><script>alert(1)</script><img src=x onerror='1'>\u{202e}";

fn result(index: usize, name: &str, outcome: Outcome) -> JobResult {
    JobResult {
        index,
        name: name.to_owned(),
        input: None,
        outcome,
        scores: json!({ HOSTILE: HOSTILE }).as_object().cloned(),
        had_expectation: true,
        mismatch: Some(HOSTILE.to_owned()),
    }
}

/// What a hostile job and a hostile machine have a say in, all at once.
fn page(results: &[JobResult]) -> String {
    let options = BatchOptions {
        machines: None,
        machine_jobs: 1,
        machine_age: Time(Duration::ZERO),
        jsonl: None,
        resume: false,
        html: None,
        tail: None,
        out: None,
        jobs: PathBuf::from(HOSTILE),
    };
    let summary = Summary {
        jobs: results.len(),
        recalled: 0,
        machines: 1,
        elapsed: Duration::from_secs(90),
        is_cancelled: true,
        expectations: true,
        results,
    };
    render(&summary, &options)
}

#[test]
fn nothing_that_a_job_says_becomes_markup() {
    let mut hostile = report(Cause::Exited);
    hostile.limits_hit = vec![HOSTILE.to_owned()];
    hostile.layers.iter_mut().for_each(|layer| layer.reason = Some(HOSTILE.to_owned()));
    let mut graded = Outcome::of(Fault::here(Step::Run, &HOSTILE));
    graded.verdict = Verdict::Report(Box::new(hostile));
    graded.notes = vec![HOSTILE.to_owned()];
    let page = page(&[
        result(0, HOSTILE, graded),
        result(1, "lost", Outcome::of(Fault::here(Step::Connect, &HOSTILE))),
    ]);
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && !page.contains("<script"));
    assert!(!page.contains("<img") && !page.contains('\u{202e}'));
    // One file that loads nothing, by its own word too.
    assert!(page.contains("default-src 'none'") && !page.contains("http:") && !page.contains("https:"));
}

#[test]
fn every_job_has_a_row_and_a_verdict() {
    let fault = |why: &str| Outcome::of(Fault::here(Step::Connect, &why));
    let results: Vec<JobResult> =
        (0..1000).map(|index| result(index, &format!("job-{index}"), fault("no machine"))).collect();
    let page = page(&results);
    assert!(results.iter().all(|result| page.contains(&format!("<th scope=\"row\">{}</th>", result.name))));
    assert_eq!(page.matches("connect: no machine").count(), 1000);
    assert!(page.contains("Cancelled: 1000 of 1000"));
}

#[test]
fn a_batch_without_results_has_a_page_too() {
    let page = page(&[]);
    assert!(page.ends_with("</html>\n") && page.contains("Cancelled: 0 of 0"));
}

#[test]
fn dates_times_and_rates_are_right() {
    let at = |seconds| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(at(0), "1970-01-01 00:00");
    assert_eq!(at(951_782_399), "2000-02-28 23:59");
    assert_eq!(at(951_782_400), "2000-02-29 00:00");
    assert_eq!(at(4_107_542_400), "2100-03-01 00:00");
    assert_eq!(duration(Duration::from_secs(61)), "1 min 01 s");
    assert_eq!(duration(Duration::from_secs(3661)), "1 h 01 min");
    assert_eq!(rate(3, Duration::from_secs(60)), "3.0");
    assert_eq!(rate(500, Duration::from_secs(60)), "500");
    assert_eq!(rate(0, Duration::ZERO), "-");
}
