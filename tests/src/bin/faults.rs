//! Fault injection, by hand or from scripts/test-faults: tries every point, or every N-th, and says what came
//! of them.

use std::io::{self, Write};
use std::process::ExitCode;

use e2e::faults::{campaign, Choice, Tally};

const USAGE: &str = "usage: faults [--sample N] [--from N] [--variant NAME] [--only TEXT] [--verbose]";

fn choice(mut words: impl Iterator<Item = String>) -> Option<Choice> {
    let mut choice = Choice::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--sample" => choice.every = words.next()?.parse().ok()?,
            "--from" => choice.from = words.next()?.parse().ok()?,
            "--variant" => choice.variant = Some(words.next()?),
            "--only" => choice.only = Some(words.next()?),
            "--verbose" => choice.verbose = true,
            _ => return None,
        }
    }
    Some(choice)
}

fn summary(tally: &Tally, to: &mut dyn Write) -> io::Result<()> {
    for ((variant, end), count) in &tally.ends {
        writeln!(to, "{variant:10} {end:14} {count}", end = format!("{end:?}"))?;
    }
    writeln!(to, "{} passed, {} failed", tally.passed(), tally.failures.len())
}

fn main() -> ExitCode {
    let mut stdout = io::stdout();
    let Some(choice) = choice(std::env::args().skip(1)) else {
        let _ = writeln!(io::stderr(), "{USAGE}");
        return ExitCode::from(2);
    };
    let tally = match campaign(&choice, &mut stdout) {
        Ok(tally) => tally,
        Err(why) => {
            let _ = writeln!(io::stderr(), "faults: {why}");
            return ExitCode::FAILURE;
        }
    };
    match summary(&tally, &mut stdout) {
        Ok(()) if tally.failures.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
