//! The command line: parses, dispatches, and says failures in one sentence.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use autodriver_protocol::Options;
use clap::{Args, Parser, Subcommand};

use crate::sys::process::set_nice;
use crate::{facts, restore, run, serve};

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
    /// Remove what a killed driver left behind
    Restore,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// A job document (JSON, - for stdin); options override its keys
    #[arg(long, value_name = "FILE")]
    job: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// Says one line on stderr. If stderr is gone, nobody listens.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "autodriver: {line}");
}

/// Everything.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // Two hundred spinning threads must not keep the driver from its clocks. Jobs get 0 again; where it
    // is refused, the driver is as fast as its machine lets it be.
    let _ = set_nice(-20);
    // Files get exactly the modes they are made with.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let status = match cli.command {
        Command::Run(arguments) => run::main(arguments.job.as_deref(), arguments.options),
        Command::Serve => serve::main(),
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
        return match std::io::stdout().write_all(text.as_bytes()) {
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
    let restored = restore::restore(&facts::probe().hierarchy).map_err(|fault| fault.to_string())?;
    for uid in &restored.cleared {
        say(&format!("removed what the job of uid {uid} left"));
    }
    for leftover in &restored.leftovers {
        say(&format!("still there: {} {}", leftover.kind, leftover.what));
    }
    Ok(if restored.leftovers.is_empty() { 0 } else { 123 })
}
