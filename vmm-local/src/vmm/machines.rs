//! The seven calls over a backend, with machines kept in a directory between them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use autodriver_protocol::archive::{self, Accept, ArchiveError, Limits, Modes};
use autodriver_protocol::job::Input;
use autodriver_protocol::{Hello, Options, Transferred};
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::state::{self, Held};
use super::{Product, Vmm, VmmError};
use crate::backend::{BackendOptions, Name};
use crate::cancel::Cancel;
use crate::session::{
    confine, perform, Assignment, Bundle, Connection, Deadlines, Fault, Outcome, Sink, Step,
};
use crate::text;

/// Time between two attempts to reach a machine.
const PAUSE: u16 = 200;

/// Machines kept below a directory.
#[derive(Debug)]
pub struct Machines {
    root: PathBuf,
    options: BackendOptions,
    deadlines: Deadlines,
    cancel: Cancel,
}

impl Machines {
    /// Machines kept below `root` (usually [`super::default_root`]); new ones are made with
    /// `options`, and each remembers them.
    pub fn new(root: PathBuf, options: BackendOptions, deadlines: Deadlines, cancel: Cancel) -> Machines {
        Machines { root, options, deadlines, cancel }
    }

    fn run(&self, machine: &Name, options: Options, sink: &mut Sink<'_>) -> Result<Outcome, VmmError> {
        let held = state::hold(&self.root, machine)?;
        held.forget_job()?;
        let assignment = assignment(&held, options)?;
        let backend = held.options()?.build_kept(&self.root);
        let mut feedback =
            File::create(held.feedback()).map_err(VmmError::files("make", &held.feedback()))?;
        let mut tee = |stream, bytes: &[u8]| -> io::Result<()> {
            feedback.write_all(bytes)?;
            sink(stream, bytes)
        };
        let reached = Connection::reach(&*backend, machine, self.deadlines, &self.cancel);
        let outcome = match reached {
            Ok(mut connection) => perform(&mut connection, &assignment, &mut tee),
            Err(fault) => Outcome::of(fault),
        };
        let text = text::json(&outcome.verdict.to_report()).unwrap_or_default();
        fs::write(held.report(), text).map_err(VmmError::files("write", &held.report()))?;
        Ok(outcome)
    }

    /// Sleeps until the next attempt; false if there is none.
    fn pause(&self, deadline: Instant) -> bool {
        let mut fds = [PollFd::new(self.cancel.as_fd(), PollFlags::POLLIN)];
        let cancelled = poll(&mut fds, PollTimeout::from(PAUSE)).is_ok_and(|ready| ready > 0);
        !cancelled && Instant::now() < deadline
    }
}

/// What the staged files and the options make together: `--out` stays in the machine's directory.
fn assignment(held: &Held, options: Options) -> Result<Assignment, VmmError> {
    let mut assignment = Assignment::new(options)?;
    assignment.bundles.insert(0, Bundle::Directory { path: held.input(), except: Vec::new() });
    let outputs = assignment.outputs.into_iter().map(|output| confine(output, &held.output()));
    assignment.outputs = outputs.collect::<Result<_, _>>().map_err(|why| Fault::here(Step::Prepare, &why))?;
    Ok(assignment)
}

impl Vmm for Machines {
    fn initialize_vm(&self, machine: &Name) -> Result<(), VmmError> {
        let mut options = self.options.clone();
        options.settle();
        let backend = options.build_kept(&self.root);
        let held = state::create(&self.root, machine, &options)?;
        backend.create(machine).map_err(|error| {
            // What there is of it goes; the error that matters is the first.
            let _ = backend.destroy(machine).is_ok_and(|()| state::remove(&self.root, machine, held).is_ok());
            VmmError::Backend(error)
        })
    }

    fn wait_vm(&self, machine: &Name, timeout: Duration) -> Result<Hello, VmmError> {
        let held = state::hold(&self.root, machine)?;
        let backend = held.options()?.build_kept(&self.root);
        let deadline = Instant::now() + timeout;
        loop {
            let peer = backend.connect(machine)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let deadlines = Deadlines { connect: left, ..self.deadlines };
            match Connection::establish(peer, deadlines, &self.cancel) {
                Ok(connection) => return Ok(connection.guest().clone()),
                Err(fault) if fault.cancelled || !self.pause(deadline) => return Err(fault.into()),
                Err(_) => {}
            }
        }
    }

    fn copy_in(&self, machine: &Name, files: &[Input]) -> Result<(u64, Vec<String>), VmmError> {
        let held = state::hold(&self.root, machine)?;
        let bundles: Vec<Bundle> = files.iter().cloned().map(Bundle::Input).collect();
        bundles.iter().try_for_each(Bundle::check)?;
        let (mut count, mut notes) = (0, Vec::new());
        for bundle in &bundles {
            let done = copy(bundle, &held.input(), Modes::Keep)?;
            count += done.entries;
            notes.extend(done.skipped.iter().map(|file| format!("'{}' not copied: {}", file.name, file.why)));
        }
        Ok((count, notes))
    }

    fn run_job(&self, machine: &Name, options: Options, sink: &mut Sink<'_>) -> Outcome {
        self.run(machine, options, sink).unwrap_or_else(|error| match error {
            VmmError::Fault(fault) => Outcome::of(fault),
            error => Outcome::of(Fault::here(Step::Prepare, &error)),
        })
    }

    fn copy_out(&self, machine: &Name, product: Product, dest: &Path) -> Result<(), VmmError> {
        let held = state::hold(&self.root, machine)?;
        let (what, src) = match product {
            Product::Feedback => ("feedback", held.feedback()),
            Product::Report => ("report", held.report()),
            Product::Files => ("fetched files", held.output()),
        };
        if !src.exists() {
            return Err(VmmError::Nothing { machine: machine.clone(), what });
        }
        if product == Product::Files {
            fs::create_dir_all(dest).map_err(VmmError::files("make directory", dest))?;
            let all = Bundle::Directory { path: src, except: Vec::new() };
            return copy(&all, dest, Modes::Fixed).map(drop);
        }
        let dest = match (dest.is_dir(), src.file_name()) {
            (true, Some(name)) => dest.join(name),
            _ => dest.to_owned(),
        };
        fs::copy(&src, &dest).map(drop).map_err(VmmError::files("write", &dest))
    }

    fn partial_output(&self, machine: &Name, most: u64) -> Result<Vec<u8>, VmmError> {
        let path = state::feedback(&self.root, machine)?;
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(VmmError::Nothing { machine: machine.clone(), what: "output" })
            }
            Err(error) => Err(VmmError::files("read", &path)(error)),
        }
    }

    fn destroy_vm(&self, machine: &Name) -> Result<(), VmmError> {
        let held = match state::seize(&self.root, machine) {
            Err(VmmError::Unknown(_)) => return Ok(()),
            held => held?,
        };
        held.options()?.build_kept(&self.root).destroy(machine)?;
        state::remove(&self.root, machine, held)
    }

    fn get_vms(&self) -> Result<Vec<Name>, VmmError> {
        state::names(&self.root)
    }
}

/// Copies a bundle into a directory of this machine, by the rules of archives.
fn copy(bundle: &Bundle, dest: &Path, modes: Modes) -> Result<Transferred, VmmError> {
    let failed = |error: ArchiveError| VmmError::files("copy to", dest)(error);
    let dir = archive::open_directory(dest).map_err(VmmError::files("open directory", dest))?;
    let (rx, tx) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(VmmError::files("copy to", dest))?;
    let limits = Limits { entries: u64::MAX, bytes: u64::MAX };
    let accept = Accept { limits, modes, links: modes == Modes::Keep, only: None };
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || bundle.pack(&mut File::from(tx)));
        let unpacked = archive::unpack(dir.as_fd(), File::from(rx), accept);
        // A source that fails is the reason why the archive is cut short.
        let packed = packing.join().unwrap_or_else(|_| Err(io::Error::other("packing stopped").into()));
        match (packed, unpacked) {
            (Err(ArchiveError::Stream(_)), Err(error)) => Err(failed(error)),
            (packed, unpacked) => packed.and_then(|packed| unpacked.map(|_| packed)).map_err(failed),
        }
    })
}
