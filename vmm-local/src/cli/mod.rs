//! The command line: what was asked becomes calls of the library, a verdict an exit status.

mod report_file;
mod run;
mod vm;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use autodriver_protocol::units::Time;
use autodriver_protocol::Options;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::backend::BackendOptions;
use crate::session::{Deadlines, Fault, Outcome, Step, Stream, Verdict, EXIT_FAULT};
use crate::{batch, conformance};

const AFTER_HELP: &str = "\
Exit status of run and vm run-job: the job's own, 128+N when signal N ended it, 124 when a limit did, \
126 and 127 when its program is not executable or not found, 123 when the machine could not be put back, \
125 when nothing can be said about the job, 143 when cancelled.\n\
Exit status of batch: 0 when every job has a verdict about the job itself, and the expected one; 1 when not; \
130 when cancelled.\n\
Exit status of conformance: 0 when every attack held; 1 when not; 130 when cancelled.
Sizes take K, M or G (1024); times take ms, s, m or h.";

/// Runs untrusted jobs on machines made for them
#[derive(Debug, Parser)]
#[command(name = "vmm-local", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The whole life of one job: copy in, run, copy out
    Run(Box<RunArgs>),
    /// Many jobs over a pool of machines; a table of the results
    Batch(BatchArgs),
    /// Attack a backend with the corpus of hostile jobs: is it fit to grade on?
    Conformance(ConformanceArgs),
    /// One attack of the corpus, in the box
    #[command(hide = true)]
    Attack {
        /// Its name
        name: String,
    },
    /// Tango's seven calls, one by one
    #[command(subcommand)]
    Vm(vm::VmVerb),
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    backend: BackendOptions,
    #[command(flatten)]
    timeouts: Timeouts,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Debug, Args)]
struct BatchArgs {
    #[command(flatten)]
    backend: BackendOptions,
    #[command(flatten)]
    timeouts: Timeouts,
    #[command(flatten)]
    batch: batch::BatchOptions,
}

#[derive(Debug, Args)]
struct ConformanceArgs {
    #[command(flatten)]
    backend: BackendOptions,
    #[command(flatten)]
    timeouts: Timeouts,
    #[command(flatten)]
    conformance: conformance::ConformanceOptions,
}

/// The job: a document, and options that override its keys.
#[derive(Debug, Args)]
struct JobArgs {
    /// A job document (JSON, - for stdin); options override its keys
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

impl JobArgs {
    fn resolve(self) -> Result<Options, Fault> {
        let Some(path) = self.job else { return Ok(self.options) };
        let base = batch::read_document(&path)
            .map_err(|why| Fault::here(Step::Prepare, &format!("--job '{}': {why}", path.display())))?;
        Ok(self.options.over(base))
    }
}

/// How long the machine may take, beside the job.
#[derive(Clone, Debug, Default, Args)]
struct Timeouts {
    /// Longest wait for a machine to answer (default: 60s)
    #[arg(long, value_name = "T")]
    connect_timeout: Option<Time>,
    /// Longest time for copying in, and for copying out (default: 10m)
    #[arg(long, value_name = "T")]
    copy_timeout: Option<Time>,
    /// Longest wait for any other answer; for the report, beyond --wall and --grace (default: 60s)
    #[arg(long, value_name = "T")]
    answer_timeout: Option<Time>,
}

impl Timeouts {
    fn deadlines(&self) -> Deadlines {
        let defaults = Deadlines::default();
        Deadlines {
            connect: self.connect_timeout.map_or(defaults.connect, |time| time.0),
            copy: self.copy_timeout.map_or(defaults.copy, |time| time.0),
            request: self.answer_timeout.map_or(defaults.request, |time| time.0),
            margin: self.answer_timeout.map_or(defaults.margin, |time| time.0),
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let code = match cli.verb {
        Verb::Run(args) => run::run(*args),
        Verb::Batch(args) => batch::run(&args.backend, args.timeouts.deadlines(), &args.batch)
            .map_err(|error| error.to_string()),
        Verb::Conformance(args) => {
            conformance::run(&args.backend, args.timeouts.deadlines(), &args.conformance)
                .map_err(|error| error.to_string())
        }
        Verb::Attack { name } => return attacks::run(&name),
        Verb::Vm(verb) => vm::run(verb),
    };
    ExitCode::from(code.unwrap_or_else(|message| {
        complain(&message);
        EXIT_FAULT
    }))
}

/// Help goes to stdout; of an error, the sentence goes to stderr.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Whoever closed stdout wants no help.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = io::stderr().write_all(text.as_bytes());
            ExitCode::from(EXIT_FAULT)
        }
        _ => {
            let sentence = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
            let words: Vec<&str> = sentence.split_whitespace().collect();
            complain(&format!("{}; see --help", words.join(" ")));
            ExitCode::from(EXIT_FAULT)
        }
    }
}

/// A line on stderr.
fn complain(message: &dyn fmt::Display) {
    // There is nobody else to tell.
    let _ = writeln!(io::stderr().lock(), "vmm-local: {message}");
}

/// Tells how a job ended: a fault always, the rest unless `quiet`. Returns the exit status.
fn conclude(outcome: &Outcome, quiet: bool) -> u8 {
    let code = outcome.verdict.exit_code();
    if !quiet {
        outcome.notes.iter().for_each(|note| complain(note));
        outcome.verdict.weaker().iter().for_each(|line| complain(line));
    }
    if !quiet || code == EXIT_FAULT || matches!(outcome.verdict, Verdict::Fault(_)) {
        complain(&outcome.verdict.line());
    }
    code
}

/// Passes a job's output on to our own stdout and stderr, as long as anybody listens.
fn pass_on() -> impl FnMut(Stream, &[u8]) -> io::Result<()> {
    let mut deaf = [false; 2];
    move |stream, bytes| {
        let to_stderr = stream == Stream::Stderr;
        let deaf = &mut deaf[usize::from(to_stderr)];
        if *deaf {
            return Ok(());
        }
        let written = match to_stderr {
            true => io::stderr().lock().write_all(bytes),
            false => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                *deaf = true;
                Ok(())
            }
            written => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_job_s_own_options_end_where_its_command_begins() {
        let cli = Cli::try_parse_from(["vmm-local", "run", "--wall", "2s", "make", "--wall", "-j"]).unwrap();
        let Verb::Run(args) = cli.verb else { panic!("not run") };
        assert_eq!(args.job.options.command, ["make", "--wall", "-j"]);
        assert_eq!(args.job.options.wall.unwrap().to_string(), "2s");
    }
}
