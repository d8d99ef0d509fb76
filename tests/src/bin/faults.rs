//! Fault injection, by hand or from scripts/test-faults: tries points, and says what came of them.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use e2e::faults::{apart, campaign, share_out, Choice, Part, Reach, Tally};

const USAGE: &str =
    "usage: faults [--sample N | --all] [--jobs N] [--start N] [--variant NAME]... [--role NAME] \
                     [--calls TEXT] [--patience SECONDS] [--verbose]";

/// What is tried, and by how many at once; of them, which this is.
fn choice(mut words: impl Iterator<Item = String>) -> Option<(Choice, u64, Option<Part>)> {
    let (mut choice, mut jobs, mut part) = (Choice::default(), 1, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--sample" => choice.reach = Reach::Sample(words.next()?.parse().ok()?),
            "--all" => choice.reach = Reach::All,
            "--jobs" => jobs = words.next()?.parse().ok().filter(|jobs| *jobs > 0)?,
            "--part" => {
                let word = words.next()?;
                let (number, of) = word.split_once(':')?;
                part = Some(Part { number: number.parse().ok()?, of: of.parse().ok().filter(|of| *of > 0)? });
            }
            "--start" => choice.start = words.next()?.parse().ok()?,
            "--variant" => choice.variants.push(words.next()?),
            "--role" => choice.role = Some(words.next()?),
            "--calls" => choice.calls = Some(words.next()?),
            "--patience" => choice.patience = Duration::from_secs(words.next()?.parse().ok()?),
            "--verbose" => choice.verbose = true,
            _ => return None,
        }
    }
    choice.part = part.unwrap_or_default();
    Some((choice, jobs, part))
}

fn failed(why: &dyn std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "faults: {why}");
    ExitCode::FAILURE
}

/// Tries a part, apart from the others; what came of it goes to stdout, for the one who shares out.
fn work(choice: &Choice, part: Part) -> ExitCode {
    let worked = apart(part, || {
        let told = campaign(choice, &mut io::stderr())
            .and_then(|tally| tell(&tally).map_err(|error| error.to_string()));
        match told {
            Ok(()) => 0,
            Err(why) => {
                failed(&why);
                1
            }
        }
    });
    match worked {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn tell(tally: &Tally) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, tally)?;
    // Who works apart ends without more ado.
    stdout.flush()
}

fn show(tally: &Tally) -> ExitCode {
    if tally.tried() == 0 {
        return failed(&"no point was chosen");
    }
    match writeln!(io::stdout(), "{tally}") {
        Ok(()) if tally.failures.is_empty() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let tally = match choice(arguments.iter().cloned()) {
        None => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            return ExitCode::from(2);
        }
        Some((choice, _, Some(part))) => return work(&choice, part),
        Some((choice, 1, None)) => campaign(&choice, &mut io::stdout()),
        Some((_, jobs, None)) => share_out(&arguments, jobs),
    };
    tally.map_or_else(|why| failed(&why), |tally| show(&tally))
}
