//! Every number of every ABI gets the answer a plain reading of the table gives.

use std::collections::BTreeSet;

use super::super::compile::{compile, Abi, Instruction};
use super::super::table::{Answer, Policy, Rule, Test};
use super::super::{init_filter, job_filter};
use super::interpreter::{run, Call};
use super::{abi, init, job, AARCH64, I386, X86_64};

/// Bit 30 of an x86_64 number marks the x32 ABI (asm/unistd.h).
const X32: u32 = 0x4000_0000;

/// The row of a call, looked up by name; none for numbers without a row.
fn rule<'a>(policy: &'a Policy, abis: &[&Abi], arch: u32, number: u32) -> Option<&'a Rule> {
    let abi = abis.iter().find(|abi| abi.arch == arch)?;
    let (_, name) = abi.numbers.iter().find(|(other, _)| *other == number)?;
    let row = policy.rows.iter().find(|row| row.name == *name)?;
    Some(&row.rule)
}

/// What the table says about a call, read row by row.
fn answer(policy: &Policy, abis: &[&Abi], call: &Call) -> Answer {
    if abis.iter().all(|abi| abi.arch != call.arch) {
        return Answer::Kill;
    }
    match rule(policy, abis, call.arch, call.number) {
        None => policy.default,
        Some(Rule::Always(answer)) => *answer,
        Some(Rule::Depends { clauses, then, otherwise }) => {
            let holds = |test: &Test| {
                let low = call.arguments[usize::from(test.argument)] & u64::from(u32::MAX);
                let masked = low & u64::from(test.mask);
                test.values.iter().any(|value| u64::from(*value) == masked)
            };
            if clauses.iter().any(|clause| clause.iter().all(holds)) {
                *then
            } else {
                *otherwise
            }
        }
    }
}

/// Extremes, and every value a rule mentions.
fn mentioned_values(policy: &Policy) -> BTreeSet<u64> {
    let rules = policy.rows.iter().map(|row| &row.rule);
    let tests = rules.flat_map(|rule| match rule {
        Rule::Always(_) => [].iter(),
        Rule::Depends { clauses, .. } => clauses.iter(),
    });
    let values = tests.flatten().flat_map(|test| &test.values);
    values.map(|value| u64::from(*value)).chain([0, 1, u64::MAX, u64::from(u32::MAX), 1 << 32]).collect()
}

/// Each value with each of its 64 bits flipped in turn.
fn perturbed(values: &BTreeSet<u64>) -> BTreeSet<u64> {
    let flipped = |value| (0..64).map(move |bit| value ^ (1 << bit));
    values.iter().copied().flat_map(flipped).collect()
}

/// Compares program and table for numbers 0 to 600, with and without the x32
/// bit, for the largest numbers, for foreign ABIs, and for many arguments.
fn compare(policy: &Policy, abis: &[&Abi]) {
    let program = compile(policy, abis);
    let mentioned = mentioned_values(policy);
    let perturbed = perturbed(&mentioned);
    let extremes = BTreeSet::from([0, u64::MAX]);
    let numbers =
        (0..600).flat_map(|number| [number, number | X32]).chain([u32::MAX, u32::MAX - 1, X32 - 1, 1 << 31]);
    for arch in [X86_64.0, I386.0, AARCH64.0, 0, u32::MAX, X86_64.0 ^ 1] {
        for number in numbers.clone() {
            let values = match rule(policy, abis, arch, number) {
                None => &extremes,
                Some(Rule::Always(_)) => &mentioned,
                Some(Rule::Depends { .. }) => &perturbed,
            };
            for call in calls(arch, number, values) {
                let expected = answer(policy, abis, &call);
                assert_eq!(run(&program, &call), expected.code(), "{call:x?}");
            }
        }
    }
}

/// Calls with each value in each of the first three arguments, the only ones
/// rules look at, next to others that are zero, the same, or the opposite.
fn calls(arch: u32, number: u32, values: &BTreeSet<u64>) -> impl Iterator<Item = Call> + '_ {
    values.iter().flat_map(move |value| {
        [0, *value, !*value].into_iter().flat_map(move |other| {
            (0..3).map(move |place| {
                let mut arguments = [other; 6];
                arguments[place] = *value;
                Call { number, arch, arguments }
            })
        })
    })
}

#[test]
fn the_x86_64_program_answers_as_the_table_says() {
    compare(&job(), &[&abi(X86_64)]);
}

#[test]
fn the_program_with_32_bit_calls_answers_as_the_table_says() {
    compare(&job(), &[&abi(X86_64), &abi(I386)]);
}

#[test]
fn the_aarch64_program_answers_as_the_table_says() {
    compare(&job(), &[&abi(AARCH64)]);
}

#[test]
fn the_program_of_init_answers_as_the_table_says() {
    compare(&init(), &[&abi(X86_64)]);
    compare(&init(), &[&abi(AARCH64)]);
}

/// A filter as the build script wrote it.
fn shipped(filter: &[seccompiler::sock_filter]) -> Vec<Instruction> {
    let instruction = |from: &seccompiler::sock_filter| Instruction {
        code: from.code,
        jt: from.jt,
        jf: from.jf,
        k: from.k,
    };
    filter.iter().map(instruction).collect()
}

#[test]
fn the_shipped_programs_are_the_ones_tested_here() {
    let (native, i386) =
        if cfg!(target_arch = "x86_64") { (abi(X86_64), Some(abi(I386))) } else { (abi(AARCH64), None) };
    let both: Vec<&Abi> = [Some(&native), i386.as_ref()].into_iter().flatten().collect();
    assert_eq!(shipped(init_filter()), compile(&init(), &[&native]));
    assert_eq!(shipped(job_filter(false)), compile(&job(), &[&native]));
    assert_eq!(shipped(job_filter(true)), compile(&job(), &both));
}

/// The kernel's limit is BPF_MAXINSNS, 4096; a linear chain has about 1500.
#[test]
fn programs_are_short() {
    assert!(job_filter(false).len() < 256);
    assert!(job_filter(true).len() < 512);
    assert!(init_filter().len() < 64);
}

/// Far jumps: a table in which no two neighbours have the same answer needs
/// more instructions than a conditional jump can skip.
#[test]
fn trees_wider_than_a_conditional_jump_work() {
    let names: Vec<String> = (0..1200).map(|number| format!("call{number}")).collect();
    let mut text = String::from("* ENOSYS\n");
    for (name, number) in names.iter().zip(0..) {
        text += &match number % 4 {
            0 => format!("{name} allow\n"),
            1 => format!("{name} EPERM when arg{}={number}\n", number % 6),
            2 => format!("{name} EPERM\n"),
            _ => format!("{name} EINVAL unless arg1&0x3={} or arg2=7 and arg0=1|2\n", number % 4),
        };
    }
    let policy = super::parse_policy(&text).expect("a policy");
    let numbers: Vec<(u32, &str)> = (0..).zip(names.iter().map(String::as_str)).collect();
    let wide = Abi { arch: 1, numbers: &numbers };
    let program = compile(&policy, &[&wide]);
    for number in 0..1300 {
        for first in 0..4 {
            let arguments = [first, u64::from(number), 7, 3, 4, u64::from(number)];
            let call = Call { number, arch: 1, arguments };
            let expected = answer(&policy, &[&wide], &call);
            assert_eq!(run(&program, &call), expected.code(), "{call:?}");
        }
    }
}
