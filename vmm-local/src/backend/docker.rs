//! The `docker` backend, and podman by the same code: a container for each machine.
//!
//! A container's first process is an `autodriver serve` whose stdin stays open and silent: it reaps, and
//! keeps the container. Each connection is another `autodriver serve`, started by `docker exec`. What is
//! asked of the engine is what keeps a container in: no network, a root file system that can only be read,
//! bounded memory, processes and processors, no new privileges. autodriver runs as the container's root,
//! and needs no capability beyond the engine's default ones.
//!
//! A machine outlives the process that made it, so its container carries labels that say whose it is: the
//! first machine that a later vmm-local makes on this host removes those whose owner has left.

use std::process::Command;
use std::sync::Once;

use super::owner::{host, Owner};
use super::program::{self, Failed};
use super::{Backend, BackendError, Name, Peer, Process};

/// What our containers have before the machine's name.
const PREFIX: &str = "vmm-local-";
/// The label with the host that made it.
const HOST: &str = "autodriver.host";
/// The label with the machine's name.
const MACHINE: &str = "autodriver.machine";
/// The label with whose it is.
const OWNER: &str = "autodriver.owner";
/// Where the autodriver is put that the image lacks: a volume, since the rest can only be read.
const INJECTED: &str = "/.autodriver";
/// PATH where it was put, for nobody but autodriver: a job's is made from scratch.
const INJECTED_PATH: &str = "PATH=/.autodriver:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What configures it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct DockerOptions {
    /// docker: the image; its own autodriver is used, or the one of this machine put in
    #[arg(long, value_name = "IMAGE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// docker: the engine's program, such as podman (default: docker)
    #[arg(long, value_name = "PROGRAM")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// docker: processes in the container (default: 4096)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_pids: Option<u32>,
    /// docker: network of the container (default: none)
    #[arg(long, value_name = "NETWORK")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_network: Option<String>,
    /// docker: one more option of 'docker create', such as --engine-option=--cap-add=SYS_ADMIN; repeatable
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engine_option: Vec<String>,
}

/// Containers of one image.
#[derive(Debug)]
pub struct Docker {
    options: DockerOptions,
    /// Bytes.
    memory: u64,
    cpus: Option<u16>,
    /// What to put in: if it was asked for by name, even where the image has one.
    autodriver: Process,
    owner: Owner,
    swept: Once,
}

impl Docker {
    pub(super) fn new(
        options: DockerOptions,
        memory: u64,
        cpus: Option<u16>,
        autodriver: Process,
        owner: Owner,
    ) -> Docker {
        Docker { options, memory, cpus, autodriver, owner, swept: Once::new() }
    }

    fn engine(&self) -> &str {
        self.options.engine.as_deref().unwrap_or("docker")
    }

    fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Result<String, Failed> {
        let words: Vec<&str> = words.into_iter().collect();
        let what = format!("{} {}", self.engine(), words.first().copied().unwrap_or_default());
        program::run(&what, Command::new(self.engine()).args(words), None)
    }

    /// The options of `create`, from the outside in.
    fn create_options(&self, machine: &Name) -> Vec<String> {
        let options = &self.options;
        let mut words: Vec<String> = [
            "create".to_owned(),
            format!("--name={}", self.container(machine)),
            format!("--label={HOST}={}", host()),
            format!("--label={MACHINE}={machine}"),
            format!("--label={OWNER}={}", self.owner.text()),
            // stdin stays open, and nobody ever writes to it
            "--interactive".to_owned(),
            "--user=0:0".to_owned(),
            format!("--network={}", options.machine_network.as_deref().unwrap_or("none")),
            "--security-opt=no-new-privileges".to_owned(),
            format!("--memory={}", self.memory),
            format!("--memory-swap={}", self.memory),
            format!("--pids-limit={}", options.machine_pids.unwrap_or(4096)),
            "--read-only".to_owned(),
            // an image's own would run beside the jobs
            "--no-healthcheck".to_owned(),
            // on the engine's disk, not in the container's memory; gone with it
            "--volume=/tmp".to_owned(),
            "--volume=/var/tmp".to_owned(),
            "--tmpfs=/run:nosuid,nodev,noexec,mode=755".to_owned(),
        ]
        .into();
        words.extend(self.cpus.map(|count| format!("--cpus={count}")));
        words.extend(options.engine_option.iter().cloned());
        words
    }

    /// A container that runs the image's own autodriver; false if that is none of ours.
    fn start_own(&self, machine: &Name, image: &str) -> Result<bool, Failed> {
        let options = self.create_options(machine);
        let command = ["--entrypoint=autodriver", image, "serve"];
        self.run(options.iter().map(String::as_str).chain(command))?;
        self.start(machine)?;
        let version = self.run(["exec", &self.container(machine), "autodriver", "--version"]);
        Ok(version.is_ok_and(|version| version.starts_with("autodriver ")))
    }

    /// A container that runs the one that is put in.
    fn start_injected(&self, machine: &Name, image: &str) -> Result<(), BackendError> {
        let autodriver = self.autodriver.path()?.to_string_lossy().into_owned();
        let options = self.create_options(machine);
        let volume = format!("--volume={INJECTED}");
        let entry = format!("--entrypoint={INJECTED}/autodriver");
        let command = [volume.as_str(), "--env", INJECTED_PATH, &entry, image, "serve"];
        self.run(options.iter().map(String::as_str).chain(command))?;
        self.run(["cp", &autodriver, &format!("{}:{INJECTED}/autodriver", self.container(machine))])?;
        Ok(self.start(machine)?)
    }

    fn start(&self, machine: &Name) -> Result<(), Failed> {
        self.run(["start", &self.container(machine)]).map(drop)
    }

    /// Removes the containers of this host that nobody has any more, each by its id: its name may be another's
    /// by then. What cannot be removed is left to the next one, and to whoever else is removing it.
    fn sweep(&self) {
        let filter = format!("--filter=label={HOST}={}", host());
        let listed = self.run(["ps", "--all", "--quiet", "--no-trunc", &filter]).unwrap_or_default();
        let ids: Vec<&str> = listed.lines().collect();
        // All at once, or, where one has gone meanwhile, each by itself.
        let labels = self
            .labels(&ids)
            .unwrap_or_else(|_| ids.iter().filter_map(|id| self.labels(&[id]).ok()).collect::<String>());
        for line in labels.lines() {
            let mut fields = line.splitn(3, '\t');
            let (id, machine, owner) = (fields.next(), fields.next(), fields.next());
            let machine = machine.and_then(|name| name.parse::<Name>().ok());
            let (Some(id), Some(machine), Some(owner)) = (id, machine, owner.and_then(Owner::parse)) else {
                continue;
            };
            if owner.has_left(&machine) {
                let _ = self.remove(id);
            }
        }
    }

    /// A line for each container: its id, and what the labels say of the machine and whose it is. docker and
    /// podman write labels in `ps` each in its own way, and here in the same.
    fn labels(&self, ids: &[&str]) -> Result<String, Failed> {
        if ids.is_empty() {
            return Ok(String::new());
        }
        let label = |name: &str| format!("{{{{index .Config.Labels \"{name}\"}}}}");
        let format = format!("--format={{{{.Id}}}}\t{}\t{}", label(MACHINE), label(OWNER));
        self.run(["container", "inspect", &format].into_iter().chain(ids.iter().copied()))
    }

    fn remove(&self, container: &str) -> Result<(), Failed> {
        match self.run(["rm", "--force", "--volumes", container]) {
            Err(failed) if is_going(&failed) => Ok(()),
            removed => removed.map(drop),
        }
    }

    /// What its container is called: no other owner's machine of the same name has this.
    fn container(&self, machine: &Name) -> String {
        format!("{PREFIX}{machine}-{}", self.owner.tag())
    }

    fn make(&self, machine: &Name, image: &str) -> Result<(), BackendError> {
        if self.autodriver.is_given() {
            return self.start_injected(machine, image);
        }
        match self.start_own(machine, image) {
            Ok(true) => Ok(()),
            Err(failed) if !lacks_program(&failed) => Err(failed.into()),
            // There is none, or it is another program of that name, such as Tango's own.
            Ok(false) | Err(_) => {
                self.destroy(machine)?;
                self.start_injected(machine, image)
            }
        }
    }
}

/// Whether somebody else is removing it, or has.
fn is_going(failed: &Failed) -> bool {
    let said = failed.said.to_lowercase();
    said.contains("no such container") || said.contains("already in progress")
}

/// Whether an engine says that the image has no such program, in the words of runc and crun.
fn lacks_program(failed: &Failed) -> bool {
    let said = failed.said.to_lowercase();
    said.contains("not found") && said.contains("executable")
        || said.contains("autodriver") && said.contains("no such file")
}

impl Backend for Docker {
    fn create(&self, machine: &Name) -> Result<(), BackendError> {
        let Some(image) = self.options.image.as_deref() else {
            return Err(BackendError("--backend docker needs --image IMAGE".to_owned()));
        };
        if image.starts_with('-') || image.is_empty() {
            return Err(BackendError(format!("--image '{image}' is no image")));
        }
        self.swept.call_once(|| self.sweep());
        self.make(machine, image).inspect_err(|_| {
            // What there is of it; the error that matters is the first.
            let _ = self.destroy(machine);
        })
    }

    fn connect(&self, machine: &Name) -> Result<Peer, BackendError> {
        let name = self.container(machine);
        let mut command = Command::new(self.engine());
        command.args(["exec", "--interactive", &name, "autodriver", "serve"]);
        Peer::spawn(&mut command)
            .map_err(|error| BackendError(format!("cannot start '{} exec': {error}", self.engine())))
    }

    fn destroy(&self, machine: &Name) -> Result<(), BackendError> {
        Ok(self.remove(&self.container(machine))?)
    }
}
