//! The program that runs inside the box. Every subcommand tries one thing, harmlessly, and says
//! what came of it in one line: `ok ...` or `errno NAME`. It exits with 0 either way, so that a
//! test can tell a refusal from a program that did not run; `strict` before a subcommand makes
//! a refusal exit with 1.
//!
//! Outside a box it refuses to do anything: some of what it tries is hostile.

mod answer;
mod clock;
mod files;
mod identity;
mod memory;
mod network;
mod output;
mod processes;
mod storm;
mod syscalls;

use std::env;
use std::process::ExitCode;

use answer::{say, Answer};

/// A job never runs as root, and its home is the job directory; one of the two marks that no
/// process can fake for others, `no_new_privs` and a system-call filter, is always there.
fn is_boxed() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let marked = status.lines().any(|line| line == "NoNewPrivs:\t1" || line == "Seccomp:\t2");
    let home = env::var("HOME").unwrap_or_default();
    !nix::unistd::geteuid().is_root()
        && marked
        && (home.starts_with("/job") || home.starts_with("/tmp/autodriver-"))
}

fn attempt(words: &[&str]) -> Option<Answer> {
    let modules = [
        identity::attempt,
        clock::attempt,
        memory::attempt,
        processes::attempt,
        files::attempt,
        network::attempt,
        output::attempt,
        storm::attempt,
        syscalls::attempt,
    ];
    modules.iter().find_map(|module| module(words))
}

fn main() -> ExitCode {
    if !is_boxed() {
        say("refused: this is no box");
        return ExitCode::from(98);
    }
    let args: Vec<String> = env::args().skip(1).collect();
    let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
    let strict = words.first() == Some(&"strict");
    if strict {
        words.remove(0);
    }
    if let ["exit", code] = words[..] {
        return ExitCode::from(answer::number::<u8>(code));
    }
    if let ["attack", name] = words[..] {
        return attacks::run(name);
    }
    match attempt(&words) {
        Some(Ok(text)) if text.is_empty() => say("ok"),
        Some(Ok(text)) => say(&format!("ok {text}")),
        Some(Err(errno)) => {
            say(&format!("errno {errno:?}"));
            return ExitCode::from(u8::from(strict));
        }
        None => {
            say(&format!("no such subcommand: {words:?}"));
            return ExitCode::from(99);
        }
    }
    ExitCode::SUCCESS
}
