//! `vmm-local vm`: the seven calls, one process each.

use std::io::{self, Write};
use std::path::PathBuf;

use autodriver_protocol::job::Input;
use autodriver_protocol::units::{Size, Time};
use clap::{Args, Subcommand};

use super::{complain, conclude, pass_on, JobArgs, Timeouts};
use crate::backend::{BackendError, BackendOptions, Name};
use crate::cancel::Cancel;
use crate::text;
use crate::vmm::{default_root, Machines, Product, Vmm, VmmError};

#[derive(Debug, Subcommand)]
pub(super) enum VmVerb {
    /// Make a machine
    Initialize {
        /// Its name
        #[arg(value_parser = name)]
        machine: Name,
        #[command(flatten)]
        backend: Box<BackendOptions>,
    },
    /// Wait until a machine answers
    Wait {
        /// Its name
        #[arg(value_parser = name)]
        machine: Name,
        /// For how long
        #[arg(long, value_name = "T", default_value = "60s")]
        timeout: Time,
    },
    /// Copy files and trees to a machine, for its next jobs
    CopyIn {
        /// Its name
        #[arg(value_parser = name)]
        machine: Name,
        /// A file, or a directory whose content is copied, and where it goes
        #[arg(required = true, value_name = "SRC[:DEST]")]
        files: Vec<Input>,
    },
    /// Run a job on what was copied in; DEST of --out is relative, copy-out --files brings it
    RunJob(Box<RunJobArgs>),
    /// Copy the last job's output (or its report, or its files) from a machine
    CopyOut {
        /// Its name
        #[arg(value_parser = name)]
        machine: Name,
        /// A file or, with --files, a directory
        dest: PathBuf,
        /// The report (JSON)
        #[arg(long, conflicts_with = "files")]
        report: bool,
        /// All that --out of run-job named
        #[arg(long)]
        files: bool,
    },
    /// Print the start of what the job on a machine has printed so far; also while it runs
    PartialOutput {
        /// The machine's name
        #[arg(value_parser = name)]
        machine: Name,
        /// Bytes at most
        #[arg(long, value_name = "B", default_value = "1M")]
        bytes: Size,
    },
    /// Destroy a machine, whatever runs on it
    Destroy {
        /// Its name
        #[arg(value_parser = name)]
        machine: Name,
    },
    /// The names of all machines, one a line
    List {
        /// As a JSON array of objects
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct RunJobArgs {
    /// The machine's name
    #[arg(value_parser = name)]
    machine: Name,
    #[command(flatten)]
    timeouts: Timeouts,
    #[command(flatten)]
    job: JobArgs,
}

fn name(text: &str) -> Result<Name, BackendError> {
    text.parse()
}

pub(super) fn run(verb: VmVerb) -> Result<u8, String> {
    match verb {
        VmVerb::RunJob(args) => run_job(*args),
        verb => call(verb).map(|()| 0).map_err(|error| error.to_string()),
    }
}

fn machines(backend: BackendOptions, timeouts: &Timeouts) -> Result<Machines, VmmError> {
    let cancel =
        Cancel::on_signals().map_err(|error| BackendError(format!("cannot handle signals: {error}")))?;
    Ok(Machines::new(default_root()?, backend, timeouts.deadlines(), cancel))
}

/// Every verb but `run-job`.
fn call(verb: VmVerb) -> Result<(), VmmError> {
    let with = |backend| machines(backend, &Timeouts::default());
    let vmm = match &verb {
        VmVerb::Initialize { backend, .. } => with(BackendOptions::clone(backend))?,
        _ => with(BackendOptions::default())?,
    };
    match verb {
        VmVerb::Initialize { machine, .. } => vmm.initialize_vm(&machine),
        VmVerb::Wait { machine, timeout } => vmm.wait_vm(&machine, timeout.0).map(drop),
        VmVerb::CopyIn { machine, files } => {
            let (_, notes) = vmm.copy_in(&machine, &files)?;
            notes.iter().for_each(|note| complain(&text::printable(note)));
            Ok(())
        }
        VmVerb::CopyOut { machine, dest, report, files } => {
            let product = match (report, files) {
                (true, _) => Product::Report,
                (_, true) => Product::Files,
                _ => Product::Feedback,
            };
            vmm.copy_out(&machine, product, &dest)
        }
        VmVerb::PartialOutput { machine, bytes } => print(&vmm.partial_output(&machine, bytes.0)?),
        VmVerb::Destroy { machine } => vmm.destroy_vm(&machine),
        VmVerb::List { json } => list(&vmm.get_vms()?, json),
        VmVerb::RunJob(_) => Ok(()),
    }
}

fn run_job(args: RunJobArgs) -> Result<u8, String> {
    let options = args.job.resolve().map_err(|fault| fault.message)?;
    if options.report.is_some() {
        return Err("--report is not for 'vm run-job'; 'vm copy-out --report' brings the report".to_owned());
    }
    let vmm = machines(BackendOptions::default(), &args.timeouts).map_err(|error| error.to_string())?;
    let quiet = options.quiet;
    Ok(conclude(&vmm.run_job(&args.machine, options, &mut pass_on()), quiet))
}

fn list(names: &[Name], json: bool) -> Result<(), VmmError> {
    let mut text = String::new();
    if json {
        let objects: Vec<_> =
            names.iter().map(|name| serde_json::json!({"name": name.to_string()})).collect();
        text = format!("{}\n", serde_json::Value::Array(objects));
    } else {
        names.iter().for_each(|name| text.extend([name.to_string().as_str(), "\n"]));
    }
    print(text.as_bytes())
}

fn print(bytes: &[u8]) -> Result<(), VmmError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(VmmError::Files { act: "write to", path: "stdout".into(), why: error.to_string() })
        }
        _ => Ok(()),
    }
}
