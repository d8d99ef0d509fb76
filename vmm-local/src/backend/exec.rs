//! The `exec` backend: any command that gives a stdin and a stdout where an autodriver is - `kubectl
//! exec -i`, `nomad alloc exec`, `lxc exec`, ... The machine is somebody else's to make and destroy.

use std::process::Command;

use super::{Backend, BackendError, Name, Peer};

/// What the command may use to tell machines apart.
const MACHINE: &str = "MACHINE";

/// What configures it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct ExecOptions {
    /// exec: a shell command whose stdin and stdout are those of an 'autodriver serve'; $MACHINE in it
    /// is the machine's name
    #[arg(long, value_name = "COMMAND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<String>,
}

/// Starts the command once for each connection.
#[derive(Clone, Debug)]
pub struct Exec {
    options: ExecOptions,
}

impl Exec {
    /// With these options; they are looked at when a machine is made.
    pub fn new(options: ExecOptions) -> Exec {
        Exec { options }
    }

    fn command(&self) -> Result<&str, BackendError> {
        self.options.connect.as_deref().ok_or_else(|| {
            BackendError(
                "--backend exec needs --connect 'COMMAND', which starts an 'autodriver serve'".to_owned(),
            )
        })
    }
}

impl Backend for Exec {
    fn create(&self, _machine: &Name) -> Result<(), BackendError> {
        self.command().map(drop)
    }

    fn connect(&self, machine: &Name) -> Result<Peer, BackendError> {
        let script = self.command()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env(MACHINE, machine.to_string());
        Peer::spawn(&mut command)
            .map_err(|error| BackendError(format!("cannot start --connect '{script}': {error}")))
    }

    fn destroy(&self, _machine: &Name) -> Result<(), BackendError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_command_it_says_what_it_needs() {
        let machine = "m".parse().unwrap();
        let error = Exec::new(ExecOptions::default()).create(&machine).unwrap_err().to_string();
        assert!(error.contains("--connect"), "{error}");
    }
}
