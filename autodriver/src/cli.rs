//! The command line: parses, dispatches, and says failures in one sentence.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use autodriver_protocol::{Options, Requirement};
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::sys::process::{exit_on_abort, set_nice};
use crate::{check, explain, facts, restore, run, serve};

/// Bad usage, or a sandbox that could not be set up.
pub const USAGE: u8 = 125;

/// Runs one untrusted job in a sandbox, and puts the machine back.
#[derive(Debug, Parser)]
#[command(name = "autodriver", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one job, here and now
    Run(Box<RunArgs>),
    /// Speak the protocol on stdin and stdout
    Serve,
    /// Say what this machine can enforce, why not, and the remedy
    Check(CheckArgs),
    /// Say what a job with these options would get; runs nothing
    Explain(Box<ExplainArgs>),
    /// Remove what a killed driver left behind
    Restore,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// The system-call filter as a BPF program too
    #[arg(long)]
    bpf: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Exit with 125 unless each of these layers is enforced: names, minimum or all (default: minimum)
    #[arg(long, value_name = "LAYER,...", value_delimiter = ',')]
    require: Vec<Requirement>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A job document (JSON, - for stdin); options override its keys
    #[arg(long, value_name = "FILE")]
    job: Option<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Parser)]
struct RunAlone {
    #[command(flatten)]
    run: RunArgs,
}

/// Says one line on stderr. If stderr is gone, nobody listens.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "autodriver: {line}");
}

/// Writes to stdout. A reader that has seen enough is no failure.
///
/// # Errors
/// Why it could not be written.
pub fn print(text: &str) -> Result<(), String> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        _ => Ok(()),
    }
}

/// Rows in columns, each as wide as its widest cell, behind `indent`.
pub fn columns(indent: &str, rows: &[Vec<String>]) -> String {
    let width = |column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:0$}", width(column)));
        let cells = cells.collect::<Vec<_>>().join("  ");
        format!("{indent}{}\n", cells.trim_end())
    };
    rows.iter().map(line).collect()
}

/// Each session of a job's counts as much as all of ours: sched(7), "The autogroup feature". Where the
/// session is the driver's own, as in a container, it may count more; that of a shell that started us is
/// the shell's, and its weight would outlive us.
fn weigh_own_session() {
    let own = nix::unistd::getpid();
    if nix::unistd::getsid(None) == Ok(own) {
        let _ = std::fs::write("/proc/self/autogroup", "-20");
    }
}

/// Whether the first argument is a command.
pub fn knows(arguments: &[OsString]) -> bool {
    arguments.get(1).is_some_and(|word| Cli::command().get_subcommands().any(|one| one.get_name() == word))
}

/// `run` is looked at alone first: making the options of every command takes longer than most of what follows.
/// What it does not take, help among it, the whole answers.
fn parse(arguments: &[OsString]) -> Result<Command, clap::Error> {
    let run = arguments.split_first().filter(|(_, rest)| rest.first().is_some_and(|word| word == "run"));
    if let Some(Ok(run)) = run.map(|(_, rest)| RunAlone::try_parse_from(rest)) {
        return Ok(Command::Run(Box::new(run.run)));
    }
    Cli::try_parse_from(arguments).map(|cli| cli.command)
}

/// Everything but the Tango form.
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    // Where it is refused, an abort is a signal.
    let _ = exit_on_abort(USAGE);
    let command = match parse(&arguments) {
        Ok(command) => command,
        Err(error) => return usage(&error),
    };
    crate::first::mount_missing();
    // Two hundred spinning threads must not keep the driver from its clocks. Jobs get 0 again; where it
    // is refused, the driver is as fast as its machine lets it be.
    let _ = set_nice(-20);
    weigh_own_session();
    // Files get exactly the modes they are made with.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let status = match command {
        Command::Run(arguments) => run::main(arguments.job.as_deref(), arguments.options),
        Command::Serve => serve::main(),
        Command::Check(arguments) => check::main(arguments.json, arguments.require),
        Command::Explain(arguments) => {
            let ExplainArgs { json, bpf, run } = *arguments;
            explain::main(run.job.as_deref(), run.options, json, bpf)
        }
        Command::Restore => restore_main(),
    };
    match status {
        Ok(status) => ExitCode::from(status),
        Err(sentence) => {
            say(&sentence);
            ExitCode::from(USAGE)
        }
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return match print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(USAGE),
        };
    }
    // The first paragraph is the sentence; the rest repeats the help.
    let sentence: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let sentence = sentence.join(" ");
    say(&format!("{}; see autodriver --help", sentence.strip_prefix("error: ").unwrap_or(&sentence)));
    ExitCode::from(USAGE)
}

fn restore_main() -> Result<u8, String> {
    let restored =
        facts::probe().and_then(|facts| restore::restore(&facts)).map_err(|fault| fault.to_string())?;
    for uid in &restored.cleared {
        say(&format!("removed what the job of uid {uid} left"));
    }
    for leftover in &restored.leftovers {
        say(&format!("still there: {} {}", leftover.kind, leftover.what));
    }
    Ok(if restored.leftovers.is_empty() { 0 } else { 123 })
}
