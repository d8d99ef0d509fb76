//! The box under stress for as long as one likes: `soak MINUTES [STRESSOR...]`, without those stressors.
//!
//! Two jobs at a time, one after another until the time is over: a storm of random system calls, each with
//! another seed, beside stress-ng with one stressor after another, of every class. Each job must get a
//! verdict and leave nothing; at the end the machine must be what it was. Prints the figures now and then and
//! at the end; fails where anything was otherwise.

use std::collections::BTreeMap;
use std::io::Write;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use e2e::{program, storm, wait_until, Outcome, Snapshot};

/// How long one job of either kind works, at most.
const STORM: Duration = Duration::from_secs(20);
const STRESS: &str = "5s";
/// How long what has ended may take to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// What became of the jobs of one kind.
#[derive(Debug, Default)]
struct Tally {
    jobs: u64,
    verdicts: BTreeMap<String, u64>,
    /// System calls that storms have counted; stressors that ran to their end.
    work: u64,
    wrong: Vec<String>,
}

impl Tally {
    /// Runs one job and counts its end; a verdict that is none is kept.
    fn play(
        &mut self,
        what: &str,
        run: impl FnOnce() -> Outcome + std::panic::UnwindSafe,
    ) -> Option<Outcome> {
        self.jobs += 1;
        let Ok(outcome) = catch_unwind(|| run().expect_any_verdict()) else {
            say(&format!("WRONG: {what}; why is said above"));
            self.wrong.push(what.to_owned());
            return None;
        };
        let code = outcome.report().exit_code.map(|code| format!(" {code}")).unwrap_or_default();
        *self.verdicts.entry(format!("{}{code}", outcome.cause().name())).or_default() += 1;
        Some(outcome)
    }

    fn show(&self, kind: &str, work: &str) {
        let verdicts: Vec<_> =
            self.verdicts.iter().map(|(verdict, count)| format!("{verdict} {count}")).collect();
        let wrong = self.wrong.len();
        say(&format!(
            "{kind}: {} jobs, {} {work}, {wrong} wrong; {}",
            self.jobs,
            self.work,
            verdicts.join(", ")
        ));
    }
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    drop(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

fn storms(end: Instant) -> Tally {
    let mut tally = Tally::default();
    while Instant::now() < end {
        let seed = tally.jobs + 1;
        let outcome = tally.play(&format!("storm {seed}"), move || storm(seed, STORM).run());
        tally.work += outcome.and_then(|outcome| outcome.calls()).unwrap_or(0);
        if tally.jobs % 10 == 0 {
            tally.show("storms so far", "system calls counted");
        }
    }
    tally
}

fn stressors() -> Vec<String> {
    let listed = program(["stress-ng", "--stressors"]).run().expect_exit(0);
    listed.text().split_whitespace().map(str::to_owned).collect()
}

fn stress(end: Instant, names: &[String]) -> Tally {
    let mut tally = Tally::default();
    for name in names.iter().cycle().take_while(|_| Instant::now() < end) {
        let option = format!("--{name}");
        let words = ["stress-ng", &option, "2", "--timeout", STRESS, "--temp-path", ".", "--oomable"];
        let limits = [("--wall", "60s"), ("--memory", "512M"), ("--disk", "128M"), ("--output", "64K")];
        let job = limits.into_iter().fold(program(words), |job, (option, value)| job.opt(option, value));
        let ended = tally.play(&format!("stress-ng {name}"), std::panic::AssertUnwindSafe(|| job.run()));
        tally.work += u64::from(ended.is_some_and(|outcome| outcome.report().exit_code == Some(0)));
        if tally.jobs % 50 == 0 {
            tally.show("stressors so far", "ran to their end");
        }
    }
    tally
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(minutes) = words.next().and_then(|word| word.parse::<u64>().ok()) else {
        say("usage: soak MINUTES [STRESSOR...]");
        return ExitCode::from(125);
    };
    let without: Vec<String> = words.collect();
    let names: Vec<String> = stressors().into_iter().filter(|name| !without.contains(name)).collect();
    let before = Snapshot::take();
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let (stress, storms) = thread::scope(|scope| {
        let storms = scope.spawn(|| storms(end));
        (stress(end, &names), storms.join())
    });
    let Ok(storms) = storms else { return ExitCode::FAILURE };
    let same = wait_until(PATIENCE, || before.difference().is_empty().then_some(()));
    let difference = if same.is_some() { Vec::new() } else { before.difference() };
    storms.show("storms", "system calls counted");
    stress.show(&format!("stress-ng, {} stressors", names.len()), "ran to their end");
    say(&format!("before and after: {} differences", difference.len()));
    difference.iter().for_each(|line| say(line));
    let tried = storms.work > 0 && stress.work > 0;
    let good = storms.wrong.is_empty() && stress.wrong.is_empty() && difference.is_empty();
    ExitCode::from(u8::from(!(tried && good)))
}
