//! The `slurm` backend: each connection is a step of one task, run by `srun` somewhere on a cluster.
//!
//! In an allocation - `--slurm-job`, or the one that this program runs in - a machine is a step of it, and Slurm
//! places it on processors and memory that no other step has; without one, `srun` allocates what the machine needs,
//! and waits in the queue for it as long as `--connect-timeout` allows. autodriver runs as the user whose step it is.
//!
//! The autodriver of this machine goes ahead of what is said on the wire, by the step's own stdin: no file system
//! needs to be shared, and whichever node the step comes to has it, also one that has just come back.
//!
//! What srun does with its streams and its end, found out with Slurm 22.05:
//! - stdin and stdout are clean for any byte, and the end of stdin is passed on; but without `--unbuffered` slurmstepd
//!   keeps the last line until it ends, which a frame never does. With it stdout is a terminal, in raw mode.
//! - An srun that is killed has a second process, which cancels its step. If that is killed with it, nobody does: the
//!   step runs on, with its stdin open. So [`Backend::destroy`] cancels steps by name, and the names say whose they
//!   are, for the first machine that a later vmm-local makes to cancel those that nobody has any more.
//! - A node that dies is told when slurmctld has given it up (SlurmdTimeout), and a slurmstepd that is killed alone
//!   is not told at all: the host's own deadlines are for that.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use super::owner::{host, Owner};
use super::program::{self, Failed};
use super::{sha256, Backend, BackendError, Name, Peer, Process};

/// The first word of our steps' names.
const OURS: &str = "vmm-local";
/// Of srun's environment, what the user says of where steps go. The rest is of the step that this program itself may
/// run in, or changes the streams.
const KEPT: [&str; 7] = [
    "SLURM_CONF",
    "SLURM_ACCOUNT",
    "SLURM_PARTITION",
    "SLURM_QOS",
    "SLURM_RESERVATION",
    "SLURM_CONSTRAINT",
    "SLURM_TIMELIMIT",
];

/// On the node: takes $1 bytes from stdin, and becomes them, under the name $2. The directory is the user's own and
/// can hold programs; the file has its name only when it is whole, so that any number of steps may do this at once.
const TAKE: &str = r#"umask 077
for place in "${TMPDIR:-/tmp}" /var/tmp /dev/shm; do
    d=$place/vmm-local-$(id -u)
    mkdir "$d" 2>/dev/null
    { [ -d "$d" ] && [ ! -L "$d" ] && [ -O "$d" ]; } || continue
    find "$d" -name '.take.*' -mmin +60 -exec rm -f {} + 2>/dev/null
    t=$(mktemp "$d/.take.XXXXXX") || continue
    { echo '#!/bin/sh' >"$t" && chmod 700 "$t" && "$t"; } 2>/dev/null && break
    rm -f "$t"
    t=
done
[ -n "$t" ] || { echo 'no place for programs in $TMPDIR, /var/tmp, /dev/shm; give --node-autodriver' >&2; exit 1; }
dd bs="$1" count=1 iflag=fullblock of="$t" 2>/dev/null
[ "$(wc -c <"$t")" -eq "$1" ] || { rm -f "$t"; echo 'autodriver was cut short' >&2; exit 1; }
mv -f "$t" "$d/$2" && exec "$d/$2" serve"#;

/// What configures it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct SlurmOptions {
    /// slurm: the allocation whose steps the machines are (default: $SLURM_JOB_ID; without, one for each)
    #[arg(long, value_name = "ID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slurm_job: Option<u32>,
    /// slurm: one more option of srun, such as --slurm-option=--partition=grading; repeatable
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slurm_option: Vec<String>,
    /// slurm: where an autodriver is on the nodes (default: the one of this machine goes there)
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_autodriver: Option<PathBuf>,
}

impl SlurmOptions {
    /// The allocation, if there is one.
    fn job(&self) -> Option<u32> {
        self.slurm_job.or_else(|| env::var("SLURM_JOB_ID").ok()?.parse().ok())
    }

    /// Names the allocation, for a later program that is not in it.
    pub(super) fn settle(&mut self) {
        self.slurm_job = self.job();
    }
}

/// Steps of one allocation, or allocations of one step.
#[derive(Debug)]
pub struct Slurm {
    options: SlurmOptions,
    /// Bytes.
    memory: u64,
    cpus: u16,
    autodriver: Process,
    owner: Owner,
    swept: Once,
}

/// A job or a step as squeue lists it.
struct Listed {
    id: String,
    name: String,
}

impl Slurm {
    pub(super) fn new(
        options: SlurmOptions,
        memory: u64,
        cpus: u16,
        autodriver: Process,
        owner: Owner,
    ) -> Slurm {
        Slurm { options, memory, cpus, autodriver, owner, swept: Once::new() }
    }

    /// `srun` up to the program.
    fn srun(&self, machine: &Name) -> Command {
        let mut command = slurm("srun");
        command.arg(format!("--job-name={}", self.step_name(machine)));
        command.args(["--quiet", "--unbuffered", "--nodes=1", "--ntasks=1", "--mpi=none"]);
        // Nothing of this machine's environment and directories need be there.
        command.args(["--export=NONE", "--chdir=/"]);
        command.arg(format!("--cpus-per-task={}", self.cpus));
        // srun takes one of several options of memory only.
        if !self.options.slurm_option.iter().any(|option| option.starts_with("--mem")) {
            command.arg(format!("--mem={}M", self.memory >> 20));
        }
        if let Some(job) = self.options.job() {
            // Processors and memory of its own: more machines than there is room for wait until there is. With
            // --overlap they would share, and Slurm would not spread them over the nodes by what is free.
            command.args([format!("--jobid={job}"), "--exact".to_owned()]);
        }
        // The last one holds.
        command.args(&self.options.slurm_option);
        command
    }

    /// What its steps are called: no other owner's machine of the same name has this. Anybody on the cluster may see
    /// it, but machine-id(5) asks to be told to nobody.
    fn step_name(&self, machine: &Name) -> String {
        // A kept machine is destroyed by its name and never swept, so that its directory need not be told.
        let owner = match &self.owner {
            Owner::Process { .. } => self.owner.text(),
            Owner::Kept(_) => self.owner.tag(),
        };
        format!("{OURS} {} {machine} {owner}", host_tag())
    }

    /// Cancels the steps that machines of this host have and nobody has any more.
    fn sweep(&self) {
        let ours = listed().unwrap_or_default();
        // What cannot be cancelled is left to the next one, and to whoever else is cancelling it.
        let _ = cancel(ours.iter().filter(|step| is_orphan(&step.name)));
    }

    fn pushed(&self, machine: &Name, autodriver: &Path) -> Result<Peer, BackendError> {
        let unreadable = |error| BackendError(format!("cannot read '{}': {error}", autodriver.display()));
        let bytes = std::fs::read(autodriver).map_err(unreadable)?;
        let name = format!("autodriver-{}", &sha256(&bytes)[..16]);
        let mut command = self.srun(machine);
        command.args(["/bin/sh", "-c", TAKE, "sh", &bytes.len().to_string(), &name]);
        let file = File::open(autodriver).map_err(unreadable)?;
        Peer::spawn_behind(&mut command, file).map_err(not_started)
    }
}

/// One of Slurm's programs, without what srun would take for its own options.
fn slurm(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SLURM_") && !KEPT.contains(&&*text) {
            command.env_remove(&name);
        }
    }
    command
}

fn not_started(error: std::io::Error) -> BackendError {
    BackendError(format!("cannot start srun: {error}; install Slurm's client programs"))
}

fn host_tag() -> String {
    sha256(host().as_bytes())[..16].to_owned()
}

/// This user's jobs and steps that have a name of ours.
fn listed() -> Result<Vec<Listed>, Failed> {
    let mut all = Vec::new();
    for kind in [None, Some("--steps")] {
        let mut squeue = slurm("squeue");
        squeue.args(["--me", "--noheader", "--format=%i %j"]).args(kind);
        let lines = program::run("squeue", &mut squeue, None)?;
        all.extend(lines.lines().filter_map(|line| {
            let (id, name) = line.trim().split_once(' ')?;
            name.starts_with(OURS).then(|| Listed { id: id.to_owned(), name: name.to_owned() })
        }));
    }
    Ok(all)
}

/// Whether a step of this host has nobody any more.
fn is_orphan(name: &str) -> bool {
    let mut words = name.splitn(4, ' ');
    let (ours, host, machine, owner) = (words.next(), words.next(), words.next(), words.next());
    let machine = machine.and_then(|name| name.parse::<Name>().ok());
    match (machine, owner.and_then(Owner::parse)) {
        (Some(machine), Some(owner)) => {
            ours == Some(OURS) && host == Some(&host_tag()) && owner.has_left(&machine)
        }
        _ => false,
    }
}

fn cancel<'a>(steps: impl Iterator<Item = &'a Listed>) -> Result<(), Failed> {
    let mut scancel = slurm("scancel");
    let ids: Vec<&str> = steps.map(|step| step.id.as_str()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    match program::run("scancel", scancel.args(["--quiet"]).args(ids), None) {
        // It ended meanwhile.
        Err(failed) if failed.said.contains("Invalid job id") || failed.said.contains("already complet") => {
            Ok(())
        }
        cancelled => cancelled.map(drop),
    }
}

impl Backend for Slurm {
    fn create(&self, _machine: &Name) -> Result<(), BackendError> {
        if self.options.node_autodriver.is_none() {
            self.autodriver.path()?;
        }
        self.swept.call_once(|| self.sweep());
        if let Some(job) = self.options.job() {
            let mut squeue = slurm("squeue");
            squeue.args(["--noheader", "--format=%T", &format!("--jobs={job}")]);
            let state = program::run("squeue", &mut squeue, None)?;
            if !["RUNNING", "PENDING", "CONFIGURING"].contains(&state.trim()) {
                return Err(BackendError(format!(
                    "the allocation {job} has ended; give --slurm-job one that 'squeue --me' lists"
                )));
            }
        }
        Ok(())
    }

    fn connect(&self, machine: &Name) -> Result<Peer, BackendError> {
        match &self.options.node_autodriver {
            Some(path) => Peer::spawn(self.srun(machine).arg(path).arg("serve")).map_err(not_started),
            None => self.pushed(machine, &self.autodriver.path()?),
        }
    }

    /// Its steps end by themselves when the connection does. What is left of them is cancelled, and Slurm sees to
    /// their end.
    fn destroy(&self, machine: &Name) -> Result<(), BackendError> {
        let name = self.step_name(machine);
        Ok(cancel(listed()?.iter().filter(|step| step.name == name))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn backend(options: SlurmOptions) -> Slurm {
        Slurm::new(options, 1 << 30, 2, Process::new(None), Owner::this_process())
    }

    fn words(command: &Command) -> Vec<String> {
        command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_machine_in_an_allocation_has_its_own_share_and_the_users_options_hold() {
        let machine = "m".parse().unwrap();
        let option = "--mem-per-cpu=1G".to_owned();
        let options =
            SlurmOptions { slurm_job: Some(7), slurm_option: vec![option], ..SlurmOptions::default() };
        let said = words(&backend(options).srun(&machine));
        assert!(said.contains(&"--jobid=7".to_owned()) && said.contains(&"--exact".to_owned()), "{said:?}");
        assert!(
            said.contains(&"--cpus-per-task=2".to_owned())
                && said.ends_with(&["--mem-per-cpu=1G".to_owned()])
        );
        assert_eq!(said.iter().filter(|word| word.starts_with("--mem")).count(), 1, "{said:?}");
        let said = words(&backend(SlurmOptions::default()).srun(&machine));
        assert!(said.contains(&"--mem=1024M".to_owned()), "{said:?}");
    }

    #[test]
    fn only_what_this_host_left_is_swept() {
        let machine: Name = "m".parse().unwrap();
        let mine = backend(SlurmOptions::default()).step_name(&machine);
        assert!(!is_orphan(&mine), "in use");
        let gone = format!("{OURS} {} m process 1 1 another-boot", host_tag());
        assert!(is_orphan(&gone));
        for other in [
            gone.replace(&host_tag(), "0123456789abcdef"),
            gone.replace(OURS, "vmm-locally"),
            gone.replace("process", "thread"),
            format!("{OURS} {} m", host_tag()),
            "wrap".to_owned(),
        ] {
            assert!(!is_orphan(&other), "{other}");
        }
    }

    /// A node's shell takes the program whole or not at all, and leaves the rest of stdin to it.
    #[test]
    fn the_program_arrives_ahead_of_the_wire() {
        let node = tempfile::tempdir().unwrap();
        let program = "#!/bin/sh\necho \"$1: $(cat)\"\n";
        let take = |input: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), input).unwrap();
            let mut sh = Command::new("/bin/sh");
            sh.args(["-c", TAKE, "sh", &program.len().to_string(), "autodriver-0123"]);
            program::run("sh", sh.env("TMPDIR", node.path()), Some(File::open(file.path()).unwrap()))
        };
        let cut = take(&program[1..]).unwrap_err().to_string();
        assert!(cut.ends_with("cut short"), "{cut}");
        let place = node.path().join(format!("vmm-local-{}", nix::unistd::geteuid()));
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        assert_eq!(take(&format!("{program}hello")).unwrap(), "serve: hello\n");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    }
}
