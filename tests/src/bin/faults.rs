//! Fault injection, by hand or from scripts/test-faults: tries points, and says what came of them.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use e2e::faults::{campaign, Choice, Reach};

const USAGE: &str =
    "usage: faults [--sample N | --all] [--start N] [--variant NAME]... [--role NAME] [--calls TEXT] \
                     [--patience SECONDS] [--verbose]";

fn choice(mut words: impl Iterator<Item = String>) -> Option<Choice> {
    let mut choice = Choice::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--sample" => choice.reach = Reach::Sample(words.next()?.parse().ok()?),
            "--all" => choice.reach = Reach::All,
            "--start" => choice.start = words.next()?.parse().ok()?,
            "--variant" => choice.variants.push(words.next()?),
            "--role" => choice.role = Some(words.next()?),
            "--calls" => choice.calls = Some(words.next()?),
            "--patience" => choice.patience = Duration::from_secs(words.next()?.parse().ok()?),
            "--verbose" => choice.verbose = true,
            _ => return None,
        }
    }
    Some(choice)
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
    match writeln!(stdout, "{tally}") {
        Ok(()) if tally.failures.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
