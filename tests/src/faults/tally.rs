//! What came of the points.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::judge::End;
use super::trials::Who;

/// What came of the points, by variant.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    variants: Vec<(String, Counts)>,
    /// What went wrong: one line for each.
    pub failures: Vec<String>,
}

/// One variant's.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Counts {
    /// The calls that an undisturbed run makes.
    pub calls: usize,
    /// Of how many kinds.
    pub kinds: usize,
    /// What came of the faults.
    pub ends: BTreeMap<End, usize>,
    /// Whose calls they met.
    pub injected: BTreeMap<Who, usize>,
    wrong: usize,
    slowest: Duration,
}

impl Counts {
    /// Notes what an undisturbed run makes.
    pub(super) fn saw(&mut self, calls: usize, kinds: usize) {
        self.calls = self.calls.max(calls);
        self.kinds = self.kinds.max(kinds);
    }

    /// Counts one trial.
    pub(super) fn count(&mut self, who: Who, end: Option<End>, took: Duration) {
        self.slowest = self.slowest.max(took);
        if end != Some(End::NotMet) {
            *self.injected.entry(who).or_default() += 1;
        }
        match end {
            Some(end) => *self.ends.entry(end).or_default() += 1,
            None => self.wrong += 1,
        }
    }
}

impl Tally {
    pub(super) fn of(&mut self, variant: &str) -> &mut Counts {
        let at = self.variants.iter().position(|(name, _)| *name == variant).unwrap_or_else(|| {
            self.variants.push((variant.to_owned(), Counts::default()));
            self.variants.len() - 1
        });
        &mut self.variants[at].1
    }

    /// Adds what came of others.
    pub(super) fn add(&mut self, other: Tally) {
        for (name, theirs) in other.variants {
            let counts = self.of(&name);
            counts.saw(theirs.calls, theirs.kinds);
            counts.wrong += theirs.wrong;
            counts.slowest = counts.slowest.max(theirs.slowest);
            for (end, count) in theirs.ends {
                *counts.ends.entry(end).or_default() += count;
            }
            for (who, count) in theirs.injected {
                *counts.injected.entry(who).or_default() += count;
            }
        }
        self.failures.extend(other.failures);
    }

    /// How many were tried.
    pub fn tried(&self) -> usize {
        self.passed() + self.failures.len()
    }

    /// How many went well.
    pub fn passed(&self) -> usize {
        self.variants.iter().flat_map(|(_, counts)| counts.ends.values()).sum()
    }

    /// How many faults met calls of this process.
    pub fn injected(&self, who: Who) -> usize {
        self.variants.iter().filter_map(|(_, counts)| counts.injected.get(&who)).sum()
    }
}

/// A table of the variants.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:10} {:>6} {:>6}", "", "calls", "kinds")?;
        Who::ALL.iter().try_for_each(|who| write!(f, " {who:>7}"))?;
        End::ALL.iter().try_for_each(|end| write!(f, "  {end}"))?;
        writeln!(f, "  WRONG  slowest")?;
        for (name, counts) in &self.variants {
            write!(f, "{name:10} {:6} {:6}", counts.calls, counts.kinds)?;
            let number = |count: Option<&usize>| count.copied().unwrap_or(0);
            for who in Who::ALL {
                write!(f, " {:7}", number(counts.injected.get(&who)))?;
            }
            for end in End::ALL {
                write!(f, "  {:width$}", number(counts.ends.get(&end)), width = end.to_string().len())?;
            }
            writeln!(f, "  {:5}  {:6.1?}", counts.wrong, counts.slowest)?;
        }
        write!(f, "{} passed, {} failed", self.passed(), self.failures.len())
    }
}
