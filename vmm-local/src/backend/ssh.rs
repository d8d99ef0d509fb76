//! The `ssh` backend: any host that one can log in to.
//!
//! The user's own ssh does it, with the user's configuration, agent and known hosts: a host whose key is
//! not known is refused. Connections to one host share one session, by ssh's own multiplexing. The
//! autodriver of this machine is copied to the host once for each version, under a name that has its
//! hash, and is started as root where the login is root or may become it by `sudo -n`, else as the
//! ordinary user that it is: the report says what holds there.

use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::program;
use super::{sha256, Backend, BackendError, Name, Peer, Process};

/// Of every ssh: never a question; a host that went silent is given up; one session for all.
const OPTIONS: [&str; 12] = [
    "-T",
    "-oConnectTimeout=30",
    "-oServerAliveInterval=10",
    "-oServerAliveCountMax=3",
    "-oControlMaster=auto",
    "-oControlPersist=60",
    "-oForwardX11=no",
    "-oForwardAgent=no",
    "-oPermitLocalCommand=no",
    "-oClearAllForwardings=yes",
    "-oRequestTTY=no",
    "-oRemoteCommand=none",
];

/// On the host, with the file's name in $1 and its hash in $2: whether it is there, whole. Says `have` or
/// `want`. Where no program computes hashes, the name, which has the hash, was given after the whole copy.
const LOOK: &str = "f=$HOME/.cache/vmm-local/$1; [ -x \"$f\" ] || { echo want; exit; }; \
     s=$(sha256sum \"$f\" 2>/dev/null) || { echo have; exit; }; \
     [ \"${s%% *}\" = \"$2\" ] && echo have || echo want";
/// On the host: takes the file, of $2 bytes, from stdin. Others of a month ago go; who needs one brings it again.
const TAKE: &str = "umask 077; d=$HOME/.cache/vmm-local; mkdir -p \"$d\" && cat >\"$d/.$1.$$\" && \
     if [ \"$(wc -c <\"$d/.$1.$$\")\" -eq \"$2\" ]; then \
     chmod 700 \"$d/.$1.$$\" && mv -f \"$d/.$1.$$\" \"$d/$1\" && \
     { find \"$d\" -name 'autodriver-*' -mtime +30 -exec rm -f {} + 2>/dev/null || :; }; \
     else rm -f \"$d/.$1.$$\"; echo cut short >&2; exit 1; fi";
/// On the host: starts it.
const SERVE: &str = "f=$HOME/.cache/vmm-local/$1; \
     if [ \"$(id -u)\" = 0 ] || ! sudo -n test -x \"$f\" 2>/dev/null; then exec \"$f\" serve; fi; \
     exec sudo -n \"$f\" serve";

/// What configures it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct SshOptions {
    /// ssh: the host, as ssh takes it: a name of ~/.ssh/config, USER@HOST, HOST
    #[arg(long, value_name = "HOST")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// ssh: one more option of ssh, such as --ssh-option=-p2222; repeatable
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_option: Vec<String>,
}

/// One host, for as many machines as are asked for: autodriver keeps their jobs apart.
#[derive(Debug)]
pub struct Ssh {
    options: SshOptions,
    autodriver: Process,
}

/// The program that is pushed.
struct Pushed {
    path: PathBuf,
    hash: String,
    /// Bytes, as text.
    size: String,
}

impl Pushed {
    fn of(path: PathBuf) -> Result<Pushed, BackendError> {
        let unreadable = |error| BackendError(format!("cannot read '{}': {error}", path.display()));
        let mut bytes = Vec::new();
        File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(unreadable)?;
        Ok(Pushed { path, hash: sha256(&bytes), size: bytes.len().to_string() })
    }

    fn name(&self) -> String {
        format!("autodriver-{}", &self.hash[..16])
    }
}

impl Ssh {
    pub(super) fn new(options: SshOptions, autodriver: Process) -> Ssh {
        Ssh { options, autodriver }
    }

    fn host(&self) -> Result<&str, BackendError> {
        match self.options.host.as_deref() {
            Some(host) if !host.starts_with('-') && !host.is_empty() => Ok(host),
            Some(host) => Err(BackendError(format!("--host '{host}' is no host"))),
            None => Err(BackendError("--backend ssh needs --host HOST".to_owned())),
        }
    }

    /// `ssh HOST` with a script for the host's `sh`, and its arguments, which have no quotes in them.
    fn command(&self, script: &str, arguments: &[&str]) -> Result<Command, BackendError> {
        let mut command = Command::new("ssh");
        // ssh takes the first value that it is given: but for questions the user's come before ours.
        command.arg("-oBatchMode=yes").args(&self.options.ssh_option).args(OPTIONS);
        if let Some(place) = control_directory() {
            // %C is made of host, port and user: who goes another way there shall not share a session.
            let way = sha256(self.options.ssh_option.join("\n").as_bytes());
            command.arg(format!("-oControlPath={}/%C-{}", place.display(), &way[..8]));
        }
        let quoted = script.replace('\'', r"'\''");
        command.arg("--").arg(self.host()?);
        command.arg(format!("exec sh -c '{quoted}' sh {}", arguments.join(" ")));
        Ok(command)
    }

    fn push(&self, file: &Pushed) -> Result<(), BackendError> {
        let (name, what) = (file.name(), format!("ssh {}", self.host()?));
        let mut look = self.command(LOOK, &[&name, &file.hash])?;
        if program::run(&what, &mut look, None)?.trim_end().ends_with("have") {
            return Ok(());
        }
        let source = File::open(&file.path)
            .map_err(|error| BackendError(format!("cannot read '{}': {error}", file.path.display())))?;
        Ok(program::run(&what, &mut self.command(TAKE, &[&name, &file.size])?, Some(source)).map(drop)?)
    }
}

/// Where the sockets of shared sessions are; none, and each connection is one of its own, where there is no
/// such place or its name is too long for a socket's.
fn control_directory() -> Option<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = runtime.unwrap_or_else(|| format!("/tmp/vmm-local-{}", nix::unistd::geteuid()).into());
    let place = base.join("vmm-ssh");
    // %C is a hash of 40 characters, ours of 8, and ssh adds 17 while it makes the socket: unix(7) allows 108. It reads
    // the path as it does its configuration.
    let is_plain = place.to_str().is_some_and(|path| {
        path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte))
    });
    (is_plain
        && place.as_os_str().len() + 1 + 40 + 9 + 17 < 108
        && is_own_directory(&base)
        && is_own_directory(&place))
    .then_some(place)
}

/// Makes it, if need be; false if somebody else did.
fn is_own_directory(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let _ = DirBuilder::new().mode(0o700).create(path);
    fs::symlink_metadata(path).is_ok_and(|meta| {
        meta.is_dir() && meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0
    })
}

impl Backend for Ssh {
    fn create(&self, _machine: &Name) -> Result<(), BackendError> {
        self.host()?;
        self.push(&Pushed::of(self.autodriver.path()?)?)
    }

    fn connect(&self, _machine: &Name) -> Result<Peer, BackendError> {
        let name = Pushed::of(self.autodriver.path()?)?.name();
        Peer::spawn(&mut self.command(SERVE, &[&name])?)
            .map_err(|error| BackendError(format!("cannot start ssh: {error}; install it")))
    }

    fn destroy(&self, _machine: &Name) -> Result<(), BackendError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    fn ssh(host: &str) -> Ssh {
        let options = SshOptions { host: Some(host.to_owned()), ssh_option: vec!["-p2222".to_owned()] };
        Ssh::new(options, Process::new(None))
    }

    #[test]
    fn a_host_that_is_an_option_is_refused() {
        assert!(ssh("-oProxyCommand=true").command(LOOK, &[]).is_err());
        assert!(ssh("").command(LOOK, &[]).is_err());
    }

    /// What the host's shell gets is a command that any shell reads, and the scripts are well-formed.
    #[test]
    fn scripts_survive_the_way_to_the_hosts_shell() {
        let home = tempfile::tempdir().unwrap();
        let run = |script: &str, size: &str, input: Option<File>| {
            let command = ssh("host").command(script, &["autodriver-0123", size]).unwrap();
            let remote = command.get_args().last().unwrap().to_owned();
            let mut local = Command::new("sh");
            program::run("sh", local.arg("-c").arg(remote).env("HOME", home.path()), input)
        };
        assert_eq!(run(LOOK, "0000", None).unwrap(), "want\n");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "#!/bin/sh\necho \"$@\" >&2; echo served").unwrap();
        let size = file.path().metadata().unwrap().len();
        let take = |size: u64| run(TAKE, &size.to_string(), Some(File::open(file.path()).unwrap()));
        let cut = take(size + 1).unwrap_err().to_string();
        assert!(cut.ends_with("cut short"), "{cut}");
        assert!(run(SERVE, "", None).is_err(), "nothing was put in its place");
        let cache = home.path().join(".cache/vmm-local");
        for (name, days) in [("autodriver-old", 40), ("autodriver-new", 20)] {
            let made = File::create(cache.join(name)).unwrap();
            made.set_modified(SystemTime::now() - Duration::from_secs(days * 86_400)).unwrap();
        }
        take(size).unwrap();
        assert!(!cache.join("autodriver-old").exists() && cache.join("autodriver-new").exists());
        assert_eq!(run(LOOK, "0000", None).unwrap(), "want\n", "another hash");
        assert_eq!(run(SERVE, "", None).unwrap(), "served\n");
    }
}
