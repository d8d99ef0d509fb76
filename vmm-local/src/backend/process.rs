//! The `process` backend: the machine is this one, and autodriver a child process. What keeps
//! the job from the machine is autodriver's sandbox alone.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{access, AccessFlags};

use super::{Backend, BackendError, Name, Peer};

const PROGRAM: &str = "autodriver";

/// Starts one `autodriver serve` for each connection.
#[derive(Clone, Debug, Default)]
pub struct Process {
    given: Option<PathBuf>,
}

impl Process {
    /// With the autodriver `given`, or the one beside this program, or the one in `PATH`. It
    /// is looked for when it is needed: a machine can be destroyed without it.
    pub fn new(given: Option<PathBuf>) -> Process {
        Process { given }
    }

    /// Whether it was named, and not found.
    pub(super) fn is_given(&self) -> bool {
        self.given.is_some()
    }

    /// Where the autodriver of this machine is.
    pub(super) fn path(&self) -> Result<PathBuf, BackendError> {
        match &self.given {
            Some(path) if is_program(path) => Ok(path.clone()),
            Some(path) => Err(BackendError(format!(
                "--autodriver '{}' is not an executable file; give the path of an autodriver",
                path.display()
            ))),
            None => find().ok_or_else(|| {
                let places = "beside this program or in PATH";
                BackendError(format!("no autodriver {places}; install it there or give --autodriver PATH"))
            }),
        }
    }
}

fn find() -> Option<PathBuf> {
    let beside = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = env::var_os("PATH").unwrap_or_default();
    let places = beside.into_iter().chain(env::split_paths(&path));
    places.map(|place| place.join(PROGRAM)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

impl Backend for Process {
    fn create(&self, _machine: &Name) -> Result<(), BackendError> {
        self.path().map(drop)
    }

    fn connect(&self, _machine: &Name) -> Result<Peer, BackendError> {
        let autodriver = self.path()?;
        // Without a slash, exec would search PATH for it.
        let program = if autodriver.is_absolute() { autodriver } else { Path::new(".").join(autodriver) };
        Peer::spawn(Command::new(&program).arg("serve")).map_err(|error| {
            let program = program.display();
            BackendError(format!("cannot start '{program} serve': {error}; is it built for this machine?"))
        })
    }

    fn destroy(&self, _machine: &Name) -> Result<(), BackendError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_autodriver_that_is_not_there_is_named() {
        let machine = "m".parse().unwrap();
        let backend = Process::new(Some("/nowhere/autodriver".into()));
        for error in [backend.create(&machine).unwrap_err(), backend.connect(&machine).unwrap_err()] {
            let error = error.to_string();
            assert!(error.contains("/nowhere/autodriver") && error.contains("--autodriver"), "{error}");
        }
        assert!(backend.destroy(&machine).is_ok());
        assert!(Process::new(Some("/".into())).create(&machine).is_err(), "a directory is no program");
    }
}
