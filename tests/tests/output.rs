//! What the caller sees of the job's output: all of it, or head and tail with the rest counted.

use autodriver_protocol::report::StreamReport;
use autodriver_protocol::Cause;
use e2e::{job, shell, Outcome};

/// Head, elided bytes and tail.
#[track_caller]
fn parts(outcome: &Outcome) -> (&[u8], u64, &[u8]) {
    let (start, end) = (b"\n...[", b" bytes elided]...\n");
    let find = |what: &[u8], from: usize| {
        let found = outcome.stdout[from..].windows(what.len()).position(|window| window == what);
        from + found.unwrap_or_else(|| panic!("no elision mark: {outcome}"))
    };
    let from = find(start, 0);
    let to = find(end, from);
    let number = std::str::from_utf8(&outcome.stdout[from + start.len()..to]).expect("digits");
    (&outcome.stdout[..from], number.parse().expect("a number"), &outcome.stdout[to + end.len()..])
}

#[track_caller]
fn expect_consistent(outcome: &Outcome, produced: u64) -> StreamReport {
    let counts = outcome.combined();
    assert_eq!(counts.produced, produced, "{outcome}");
    assert_eq!(counts.kept + counts.elided, counts.produced, "{outcome}");
    counts
}

#[test]
fn output_below_the_cap_is_kept_byte_for_byte() {
    let outcome = job(["lines", "1000"]).run().expect_clean();
    let expected: String = (0..1000).map(|line| format!("line {line:07}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), expected);
    assert_eq!(expect_consistent(&outcome, 13_000).elided, 0);
}

#[test]
fn output_of_exactly_the_cap_is_kept_whole() {
    let outcome = job(["lines", "1000"]).opt("--output", "13000").run().expect_clean();
    assert_eq!(outcome.stdout.len(), 13_000);
}

#[test]
fn every_byte_passes_unchanged() {
    let outcome = job(["bytes"]).run().expect_clean();
    assert_eq!(outcome.stdout, (0..=255).collect::<Vec<u8>>());
}

#[test]
fn output_past_the_cap_keeps_head_and_tail_and_counts_the_rest() {
    let outcome = job(["lines", "100000"]).opt("--output", "64K").run().expect_exit(0);
    assert!(outcome.hit("output"), "{outcome}");
    let (head, elided, tail) = parts(&outcome);
    assert!(head.starts_with(b"line 0000000\nline 0000001\n"), "{outcome}");
    assert!(tail.ends_with(b"line 0099998\nline 0099999\n"), "{outcome}");
    let counts = expect_consistent(&outcome, 1_300_000);
    assert_eq!(counts.elided, elided, "{outcome}");
    // The mark brings the line break that ends the head's last line, or one of its own.
    let shown = (head.len() + tail.len()) as u64;
    assert!(
        (counts.kept..=counts.kept + 1).contains(&shown) || shown + 1 == counts.kept,
        "{shown}: {outcome}"
    );
    assert!(counts.kept <= 64 << 10, "{outcome}");
    assert!(counts.kept >= 32 << 10, "what may be kept is kept: {outcome}");
}

#[test]
fn cut_falls_on_line_boundaries() {
    let outcome = job(["lines", "100000"]).opt("--output", "10000").run().expect_exit(0);
    let (head, _, tail) = parts(&outcome);
    for line in head.split(|byte| *byte == b'\n').chain(tail.split(|byte| *byte == b'\n')) {
        assert!(line.is_empty() || (line.len() == 12 && line.starts_with(b"line ")), "{line:?}");
    }
}

#[test]
fn last_two_lines_are_whole_however_small_the_cap() {
    for length in [10, 1000, 30_000] {
        let words = ["last-lines".to_owned(), "5000".to_owned(), length.to_string()];
        let outcome = job(words).opt("--output", "100").run().expect_exit(0);
        let expected = format!("{}\n{}\n", "y".repeat(length), "z".repeat(length));
        assert!(outcome.stdout.ends_with(expected.as_bytes()), "two lines of {length} bytes");
        expect_consistent(&outcome, 65_000 + 2 * (length as u64 + 1));
    }
}

#[test]
fn last_line_without_a_line_break_is_kept_too() {
    let outcome = shell("./captive lines 5000; printf 'score 7\\nend'").opt("--output", "100").run();
    let outcome = outcome.expect_exit(0);
    assert!(outcome.stdout.ends_with(b"score 7\nend"), "{outcome}");
}

#[test]
fn characters_are_not_cut() {
    for cap in ["1000", "1001", "1002", "1003"] {
        let outcome = job(["unbroken", "\u{1f600}", "5000"]).opt("--output", cap).run().expect_exit(0);
        let (head, _, tail) = parts(&outcome);
        assert!(std::str::from_utf8(head).is_ok(), "head with a cap of {cap}: {outcome}");
        assert!(std::str::from_utf8(tail).is_ok(), "tail with a cap of {cap}: {outcome}");
        expect_consistent(&outcome, 20_000);
    }
}

#[test]
fn no_output_at_all_is_kept_with_a_cap_of_nothing_but_the_last_lines() {
    let outcome = job(["lines", "1000"]).opt("--output", "0").run().expect_exit(0);
    assert!(outcome.stdout.ends_with(b"line 0000998\nline 0000999\n"), "{outcome}");
    assert!(expect_consistent(&outcome, 13_000).kept <= 26, "{outcome}");
}

#[test]
fn job_past_the_cap_is_killed_when_asked() {
    let flood = job(["flood-forever"]).opt("--output", "64K").opt("--on-output", "kill").run();
    let flood = flood.expect_limit(Cause::OutputLimit, "output");
    assert!(flood.stdout.starts_with(b"the quick brown fox"), "{flood}");
    let below = job(["lines", "1000"]).opt("--output", "64K").opt("--on-output", "kill").run();
    below.expect_clean();
}

#[test]
fn streams_come_as_one_in_order() {
    let outcome = job(["alternate", "200"]).run().expect_clean();
    let expected: String = (0..200).map(|turn| format!("out {turn}\nerr {turn}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), expected);
    assert!(outcome.stderr.is_empty(), "{outcome}");
}

#[test]
fn split_keeps_the_streams_apart() {
    let outcome = job(["alternate", "200"]).flag("--split").run().expect_clean();
    let expected = |word: &str| (0..200).map(|turn| format!("{word} {turn}\n")).collect::<String>();
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), expected("out"));
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), expected("err"));
    let counts = &outcome.report().output;
    assert!(counts.combined.is_none(), "{outcome}");
    assert_eq!(counts.stdout.expect("counts of stdout").produced, expected("out").len() as u64);
    assert_eq!(counts.stderr.expect("counts of stderr").produced, expected("err").len() as u64);
}

#[test]
fn split_streams_share_the_cap_and_keep_their_last_lines() {
    let script = "./captive lines 20000; ./captive lines 20000 >&2";
    let outcome = shell(script).flag("--split").opt("--output", "64K").run().expect_exit(0);
    assert!(outcome.hit("output"), "{outcome}");
    let counts = &outcome.report().output;
    let (stdout, stderr) = (counts.stdout.expect("stdout"), counts.stderr.expect("stderr"));
    assert!(stdout.kept + stderr.kept <= 64 << 10, "{outcome}");
    assert!(outcome.stdout.ends_with(b"line 0019998\nline 0019999\n"), "{outcome}");
    assert!(outcome.stderr.ends_with(b"line 0019998\nline 0019999\n"), "{outcome}");
}

#[test]
fn timestamps_stand_before_each_line() {
    let outcome = job(["drip", "4", "200"]).flag("--timestamps").run().expect_clean();
    let lines: Vec<&str> = outcome.text().lines().collect();
    assert_eq!(lines.len(), 4, "{outcome}");
    let mut before = -1.0;
    for (turn, line) in lines.iter().enumerate() {
        let (stamp, text) = line.split_once("drop").unwrap_or_else(|| panic!("{outcome}"));
        assert_eq!(text, format!(" {turn}"), "{outcome}");
        let digits: String = stamp.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
        let seconds: f64 = digits.parse().unwrap_or_else(|_| panic!("no seconds in {stamp:?}: {outcome}"));
        assert!(seconds >= before, "time goes on: {outcome}");
        before = seconds;
    }
    assert!(before >= 0.55, "the last line came after three pauses: {outcome}");
}
