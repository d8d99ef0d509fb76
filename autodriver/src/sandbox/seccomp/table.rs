//! Reads the policy: which answer each system call gets.
//!
//! The syntax is described at the top of `policy/job.syscalls`. This file and
//! [`compile`](super::compile) run in the build script and in the tests; the
//! program itself carries only the compiled filters.

use super::bpf::{RETURN_ALLOW, RETURN_ERRNO, RETURN_KILL_PROCESS};

/// What the kernel does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    /// The call goes ahead.
    Allow,
    /// The call does nothing and fails with this error number.
    Errno(u16),
    /// The process dies of SIGSYS, all threads at once (a thread that dies
    /// alone leaves the others waiting for it).
    Kill,
}

impl Answer {
    /// The answer as the return value of a filter, see seccomp(2).
    pub(crate) fn code(self) -> u32 {
        match self {
            Answer::Allow => RETURN_ALLOW,
            Answer::Errno(number) => RETURN_ERRNO | u32::from(number),
            Answer::Kill => RETURN_KILL_PROCESS,
        }
    }

    /// The numbers are the same on all architectures that have a table here.
    fn parse(word: &str) -> Result<Answer, String> {
        Ok(match word {
            "allow" => Answer::Allow,
            "KILL" => Answer::Kill,
            "EPERM" => Answer::Errno(1),
            "EINVAL" => Answer::Errno(22),
            "ENOSYS" => Answer::Errno(38),
            "EAFNOSUPPORT" => Answer::Errno(97),
            _ => return Err(format!("{word:?} is not an answer")),
        })
    }
}

/// One comparison: the low 32 bits of an argument, masked, are one of `values`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Test {
    pub(crate) argument: u8,
    pub(crate) mask: u32,
    pub(crate) values: Vec<u32>,
}

/// What decides about one call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// The answer does not depend on the arguments.
    Always(Answer),
    /// `then` if every test of at least one of the clauses holds, else `otherwise`.
    Depends { clauses: Vec<Vec<Test>>, then: Answer, otherwise: Answer },
}

/// One line of the policy.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    /// The answer as written: `allow`, or the error a refused call gets.
    pub(crate) answer: &'a str,
    /// The condition as written, with its `unless` or `when`; mostly empty.
    pub(crate) condition: &'a str,
    /// The comment behind the row, or else the heading above it.
    pub(crate) reason: &'a str,
    pub(crate) rule: Rule,
}

/// A policy file.
#[derive(Debug)]
pub(crate) struct Policy<'a> {
    pub(crate) rows: Vec<Row<'a>>,
    /// The answer to every number that has no row.
    pub(crate) default: Answer,
}

/// Reads a policy file.
pub(crate) fn parse_policy(text: &str) -> Result<Policy<'_>, String> {
    let mut rows: Vec<Row> = Vec::new();
    let mut default = None;
    let mut heading = "";
    for (line, number) in text.lines().zip(1..) {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title;
            continue;
        }
        let (body, comment) = line.split_once('#').unwrap_or((line, ""));
        if body.trim().is_empty() {
            continue;
        }
        let mut row = parse_row(body).map_err(|error| format!("line {number}: {error}"))?;
        row.reason = if comment.is_empty() { heading } else { comment.trim() };
        match (row.name, row.rule) {
            ("*", Rule::Always(answer)) if default.is_none() => default = Some(answer),
            ("*", _) => return Err(format!("line {number}: a second or conditional `*`")),
            (name, _) if rows.iter().any(|other| other.name == name) => {
                return Err(format!("line {number}: a second row for {name}"));
            }
            (_, rule) => rows.push(Row { rule, ..row }),
        }
    }
    let default = default.ok_or("no `*` row for all other calls")?;
    Ok(Policy { rows, default })
}

/// Reads one row; the reason is left to the caller, who knows the heading.
fn parse_row(body: &str) -> Result<Row<'_>, String> {
    let (name, rest) = split_word(body);
    let (answer, condition) = split_word(rest);
    let refusal = Answer::parse(answer)?;
    let (word, tests) = split_word(condition);
    let (then, otherwise) = match word {
        "" => (refusal, refusal),
        "unless" => (Answer::Allow, refusal),
        "when" => (refusal, Answer::Allow),
        _ => return Err(format!("{word:?} is neither `unless` nor `when`")),
    };
    let rule = match (word, refusal) {
        ("", _) => Rule::Always(refusal),
        (_, Answer::Allow) => return Err("a condition names a refusal, not `allow`".into()),
        _ => Rule::Depends { clauses: parse_clauses(tests)?, then, otherwise },
    };
    Ok(Row { name, answer, condition, reason: "", rule })
}

/// `TEST and TEST or TEST ...`
fn parse_clauses(text: &str) -> Result<Vec<Vec<Test>>, String> {
    text.split(" or ").map(|clause| clause.split(" and ").map(parse_test).collect()).collect()
}

/// `argN=V|V` or `argN&MASK=V|V`
fn parse_test(text: &str) -> Result<Test, String> {
    let wrong = || format!("{text:?} is not a test");
    let (place, values) = text.trim().split_once('=').ok_or_else(wrong)?;
    let (argument, mask) = match place.split_once('&') {
        Some((argument, mask)) => (argument, parse_number(mask)?),
        None => (place, u32::MAX),
    };
    let argument = argument.strip_prefix("arg").ok_or_else(wrong)?;
    let argument: u8 = argument.parse().map_err(|_| wrong())?;
    let values: Vec<u32> = values.split('|').map(parse_number).collect::<Result<_, _>>()?;
    if argument > 5 || values.iter().any(|value| value & !mask != 0) {
        return Err(format!("{text:?} can never hold"));
    }
    Ok(Test { argument, mask, values })
}

fn parse_number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("{text:?}: {error}"))
}

/// The first word of `text` and, without surrounding blanks, what follows it.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    (word, rest.trim())
}

/// Reads a table of system-call numbers, one `NAME NUMBER` a line.
pub(crate) fn parse_numbers(text: &str) -> Result<Vec<(u32, &str)>, String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, number) = split_word(line);
            Ok((parse_number(number)?, name))
        })
        .collect()
}
