//! The corpus of hostile jobs.
//!
//! Each [`Attack`] is a row of the catalogue: a program that tries one thing, harmlessly, and the
//! layers that must stop it. `vmm-local conformance` runs all of them on any machine. The programs
//! are part of that binary, which copies itself into the box: there is nothing to find, nothing to
//! build for the image, and what is tried is what the table says.
//!
//! An attack that was never seen to work proves nothing. So there are controls: the same program
//! with the layers in [`Attack::stopped_by`] left out, where it must succeed, and, where several
//! layers stop it, with all of them but one left out, where it must fail. They are run on machines
//! that are thrown away afterwards.

mod row;
mod tools;
mod probes;
mod witness;

mod resources;
mod supervision;
mod escape;
mod leaks;
mod files;
mod grade;

use std::process::ExitCode;

pub use row::{Attack, Control, Ends, Form, Usage};
pub use tools::{Attempt, Role};

/// In the environment of an attack: which [`Role`] it has. Without it nothing is tried.
pub const ROLE: &str = "ATTACK_ROLE";
/// What the output of a successful attack has in a line of its own.
pub const BROKE: &str = "broke: ";
/// What the output of an attack that was stopped ends with.
pub const HELD: &str = "held: ";
/// What an accomplice says when the attacker may begin.
pub const READY: &str = "ready";

/// The name under which [`run`] describes what a job sees of its machine.
pub const WITNESS: &str = "witness";

/// Every attack, in the order of the catalogue.
pub fn all() -> impl Iterator<Item = &'static Attack> {
    let sections = [
        resources::ATTACKS,
        supervision::ATTACKS,
        escape::ATTACKS,
        leaks::ATTACKS,
        files::ATTACKS,
        grade::ATTACKS,
    ];
    sections.into_iter().flatten()
}

/// Rows of the catalogue that are no attack of this corpus: the row, and why or where else.
pub fn elsewhere() -> impl Iterator<Item = &'static (&'static str, &'static str)> {
    let sections = [
        resources::ELSEWHERE,
        supervision::ELSEWHERE,
        escape::ELSEWHERE,
        leaks::ELSEWHERE,
        files::ELSEWHERE,
        grade::ELSEWHERE,
    ];
    sections.into_iter().flatten()
}

/// Makes the attempt `name`, in the box, and says what came of it.
pub fn run(name: &str) -> ExitCode {
    let role = match std::env::var(ROLE).as_deref() {
        Ok("accomplice") => Role::Accomplice,
        Ok("attacker") => Role::Attacker,
        _ => {
            tools::say("refused: attacks are run by conformance only, inside a box");
            return ExitCode::from(98);
        }
    };
    if name == WITNESS {
        tools::say(&witness::describe());
        return ExitCode::SUCCESS;
    }
    let Some(attack) = all().find(|attack| attack.name == name) else {
        tools::say(&format!("refused: there is no attack '{name}'"));
        return ExitCode::from(99);
    };
    match (attack.program)(role) {
        Attempt::Held(how) => {
            tools::say(&format!("{HELD}{how}"));
            ExitCode::SUCCESS
        }
        Attempt::Broke(what) => {
            tools::say(&format!("{BROKE}{what}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use autodriver_protocol::Options;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_and_a_document_that_reads() {
        let mut names = BTreeSet::from([WITNESS]);
        for attack in all() {
            assert!(names.insert(attack.name), "{} is there twice", attack.name);
            let options = Options::from_json(attack.options.as_bytes());
            assert!(options.is_ok(), "{}: {}", attack.name, options.unwrap_err());
            assert!(!attack.does.is_empty() && !attack.does.contains('\n'), "{}", attack.name);
        }
    }

    /// Every row of the catalogue is an attack, or the beginning of the names of several, or said to be
    /// elsewhere.
    #[test]
    fn no_row_of_the_catalogue_is_missing() {
        let rows = || include_str!("catalogue.txt").lines().filter(|line| !line.starts_with('#'));
        let is_of = |name: &str, row: &str| {
            name.strip_prefix(row).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let row_of = |name: &str| rows().filter(|row| is_of(name, row)).max_by_key(|row| row.len());
        for row in rows() {
            let is_tried = all().any(|attack| row_of(attack.name) == Some(row));
            let is_elsewhere = elsewhere().any(|(name, why)| *name == row && !why.is_empty());
            assert!(is_tried != is_elsewhere, "{row}: tried {is_tried}, elsewhere {is_elsewhere}");
        }
        assert!(rows().count() > 100);
    }

    /// What `SECURITY.md` names as shown by the corpus is there.
    #[test]
    fn the_tables_of_security_md_name_what_there_is() {
        let text = include_str!("../../../SECURITY.md");
        let rows = text.split("## What broke others").nth(1).expect("the section").lines();
        let cells =
            rows.filter(|line| line.starts_with("| ")).skip(2).filter_map(|line| line.split('|').nth(5));
        let mut count = 0;
        for name in cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
            let there = |attack: &Attack| attack.name == name || attack.name.starts_with(&format!("{name}-"));
            let elsewhere =
                ["hostile_guest", "layers_files", "restore_killed", "protocol/archive", "scripts/fuzz"];
            assert!(all().any(there) || elsewhere.contains(&name), "SECURITY.md: there is no `{name}`");
            count += 1;
        }
        assert!(count > 30, "{count}");
    }

    #[test]
    fn a_row_with_layers_has_a_control_and_one_without_says_why_not() {
        for attack in all() {
            match attack.control {
                Control::LeaveOut(_) => assert!(!attack.stopped_by.is_empty(), "{}", attack.name),
                Control::With(options) => {
                    let options = Options::from_json(options.as_bytes());
                    assert!(options.is_ok(), "{}: {}", attack.name, options.unwrap_err());
                }
                Control::None(why) => assert!(!why.is_empty(), "{}", attack.name),
            }
        }
    }
}
