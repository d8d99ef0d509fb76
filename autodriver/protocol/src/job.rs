//! What may be asked of autodriver: the options of `run`, which are also the keys of the job
//! document. One type serves the command lines of both programs and the JSON form, so that
//! they cannot drift apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::layer::{Layer, Requirement};
use crate::units::{Size, Time};

/// The job's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Net {
    /// An empty network with loopback only.
    #[default]
    None,
    /// The machine's own network.
    Host,
}

/// What happens to output past the cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnOutput {
    /// Keep head and tail, count the rest.
    #[default]
    Keep,
    /// Kill the job.
    Kill,
}

/// An environment variable, `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvVar(pub String, pub String);

/// A text that does not have the form its option takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadForm(String);

impl fmt::Display for BadForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadForm {}

impl FromStr for EnvVar {
    type Err = BadForm;

    fn from_str(text: &str) -> Result<Self, BadForm> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
                Ok(EnvVar(name.to_owned(), value.to_owned()))
            }
            _ => Err(BadForm(format!("'{}' is not NAME=VALUE", text.escape_default()))),
        }
    }
}

impl TryFrom<String> for EnvVar {
    type Error = BadForm;

    fn try_from(text: String) -> Result<Self, BadForm> {
        text.parse()
    }
}

impl From<EnvVar> for String {
    fn from(EnvVar(name, value): EnvVar) -> String {
        format!("{name}={value}")
    }
}

/// `SRC[:DEST]` of `--in`: a file or tree, and where it goes in the job directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Input {
    /// A path on the machine; a directory's content is copied, not the directory itself.
    pub src: String,
    /// Relative to the job directory; default: its top (a file keeps its name).
    pub dest: Option<String>,
}

/// `GLOB:DEST` of `--out`: regular files of the job directory, and where they go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Output {
    /// Relative to the job directory.
    pub glob: String,
    /// On the machine: a directory, made if missing; or, for a GLOB without wildcards, the new name.
    pub dest: String,
}

/// `SRC[:DEST][:rw]` of `--bind`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bind {
    /// An absolute path on the machine.
    pub src: String,
    /// The absolute path at which the job sees it; default: the same.
    pub dest: String,
    /// Whether the job may write there.
    pub writable: bool,
}

fn checked(text: &str, form: &str) -> Result<(), BadForm> {
    if text.is_empty() || text.contains('\0') {
        return Err(BadForm(format!("'{}' is not {form}", text.escape_default())));
    }
    Ok(())
}

impl FromStr for Input {
    type Err = BadForm;

    fn from_str(text: &str) -> Result<Self, BadForm> {
        let (src, dest) = match text.rsplit_once(':') {
            Some((src, dest)) => (src, Some(dest.to_owned())),
            None => (text, None),
        };
        checked(src, "SRC or SRC:DEST")?;
        checked(text, "SRC or SRC:DEST")?;
        Ok(Input { src: src.to_owned(), dest })
    }
}

impl FromStr for Output {
    type Err = BadForm;

    fn from_str(text: &str) -> Result<Self, BadForm> {
        let form = || BadForm(format!("'{}' is not GLOB:DEST", text.escape_default()));
        let (glob, dest) = text.rsplit_once(':').ok_or_else(form)?;
        checked(glob, "GLOB:DEST")?;
        checked(dest, "GLOB:DEST")?;
        Ok(Output { glob: glob.to_owned(), dest: dest.to_owned() })
    }
}

impl FromStr for Bind {
    type Err = BadForm;

    fn from_str(text: &str) -> Result<Self, BadForm> {
        let form = "SRC[:DEST][:rw] with absolute paths";
        checked(text, form)?;
        let (paths, writable) = match text.strip_suffix(":rw") {
            Some(paths) => (paths, true),
            None => (text.strip_suffix(":ro").unwrap_or(text), false),
        };
        let (src, dest) = paths.split_once(':').unwrap_or((paths, paths));
        if !src.starts_with('/') || !dest.starts_with('/') || dest.contains(':') {
            return Err(BadForm(format!("'{}' is not {form}", text.escape_default())));
        }
        Ok(Bind { src: src.to_owned(), dest: dest.to_owned(), writable })
    }
}

macro_rules! text_form {
    ($($type:ty: $value:ident => $form:expr;)*) => {$(
        impl TryFrom<String> for $type {
            type Error = BadForm;

            fn try_from(text: String) -> Result<Self, BadForm> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from($value: $type) -> String {
                $form
            }
        }
    )*};
}

text_form! {
    Input: input => match input.dest {
        Some(dest) => format!("{}:{dest}", input.src),
        None => input.src,
    };
    Output: output => format!("{}:{}", output.glob, output.dest);
    Bind: bind => format!("{}:{}{}", bind.src, bind.dest, if bind.writable { ":rw" } else { "" });
}

/// A count, as the options take it.
fn whole_number(text: &str) -> Result<u64, BadForm> {
    text.parse().map_err(|_| BadForm(format!("'{}' is not a whole number", text.escape_default())))
}

/// One environment: an object `{"NAME": "VALUE"}` or a list of `NAME=VALUE` in JSON.
fn env_from_json<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<EnvVar>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "env takes an object of strings or a list of NAME=VALUE")]
    enum Form {
        Map(std::collections::BTreeMap<String, String>),
        List(Vec<EnvVar>),
    }
    let checked = |(name, value): (String, String)| {
        format!("{name}={value}").parse::<EnvVar>().map_err(serde::de::Error::custom)
    };
    match Form::deserialize(deserializer)? {
        Form::Map(map) => map.into_iter().map(checked).collect(),
        Form::List(list) => Ok(list),
    }
}

/// The options of `run`, and with `_` for `-` the keys of a job document. Absent means the
/// default of [`Options::defaults`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Program and arguments (default: make)
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,

    /// Copy a file, or the content of a directory, into the job directory
    #[arg(long = "in", value_name = "SRC[:DEST]")]
    #[serde(rename = "in", skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Input>,
    /// After the job, copy regular files matching GLOB from the job directory to DEST, as cp(1) would
    #[arg(long = "out", value_name = "GLOB:DEST")]
    #[serde(rename = "out", skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Output>,
    /// Show a path of the machine to the job (read-only unless rw)
    #[arg(long, value_name = "SRC[:DEST][:rw]")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bind: Vec<Bind>,
    /// Use DIR as the job's root file system instead of the machine's own
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,

    /// Working directory, absolute or relative to the job directory
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Set a variable; the environment is built from scratch
    #[arg(long, value_name = "NAME=VALUE")]
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "env_from_json")]
    pub env: Vec<EnvVar>,
    /// Host name the job sees (default: job)
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// File the job reads as standard input (default: /dev/null)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Run as this user instead of a uid of its own (never root)
    #[arg(long, value_name = "NAME|UID")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,

    /// Wall clock limit (default: 60s)
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall: Option<Time>,
    /// CPU time limit of the whole process tree (default: none)
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Time>,
    /// Longest time without output (default: none)
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<Time>,
    /// Time between SIGTERM and SIGKILL when a limit is reached (default: 0s, SIGKILL at once)
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<Time>,

    /// Memory of the whole job, swap included (default: 512M)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Processes and threads at once (default: 128)
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole_number)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Bytes in everything the job can write, together (default: 256M)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Size>,
    /// Files and directories in everything the job can write (default: 65536)
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole_number)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,

    /// Kept bytes of stdout and stderr together (default: 1M)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<Size>,
    /// Past the cap: keep head and tail, or kill the job
    #[arg(long, value_name = "keep|kill")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_output: Option<OnOutput>,
    /// Keep stdout and stderr apart (default: one stream, in order)
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub split: bool,
    /// Prefix each line with the seconds since start
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timestamps: bool,

    /// RLIMIT_FSIZE: largest file (default: 100M)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fsize: Option<Size>,
    /// RLIMIT_NOFILE: open files of a process (default: 1024)
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole_number)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
    /// RLIMIT_STACK: stack of a process (default: 8M)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<Size>,
    /// RLIMIT_CORE: largest core file (default: 0)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<Size>,
    /// RLIMIT_AS: address space of a process (default: unlimited)
    #[arg(long = "as", value_name = "B", allow_hyphen_values = true)]
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub address_space: Option<Size>,
    /// RLIMIT_DATA: data segment of a process (default: unlimited)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Size>,
    /// RLIMIT_MEMLOCK: locked memory of a process (default: 64K)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memlock: Option<Size>,
    /// RLIMIT_NPROC: processes and threads of the job's uid (default: just above --pids)
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole_number)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nproc: Option<u64>,
    /// RLIMIT_SIGPENDING: queued signals and timers of the job's uid (default: 1024)
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole_number)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigpending: Option<u64>,
    /// RLIMIT_MSGQUEUE: bytes in POSIX message queues (default: 0)
    #[arg(long, value_name = "B", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msgqueue: Option<Size>,

    /// none: an empty network with loopback only; host: the machine's
    #[arg(long, value_name = "none|host")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<Net>,
    /// Allow 32-bit x86 programs
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub abi32: bool,

    /// Refuse to run unless each of these layers is enforced: names, minimum or all (default: minimum)
    #[arg(long, value_name = "LAYER,...", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<Requirement>,
    /// Leave a layer out; the report names it
    #[arg(long, value_name = "LAYER,...", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<Layer>,

    /// Where the JSON report goes: a file, fd:N, or - for standard output
    #[arg(long, value_name = "FILE|fd:N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// No human line on stderr
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
}

impl Options {
    /// The options that every job starts from, as the contract lists them.
    pub fn defaults() -> Options {
        let seconds = |n| Some(Time(std::time::Duration::from_secs(n)));
        Options {
            command: vec!["make".to_owned()],
            hostname: Some("job".to_owned()),
            wall: seconds(60),
            grace: seconds(0),
            memory: Some(Size(512 << 20)),
            pids: Some(128),
            disk: Some(Size(256 << 20)),
            inodes: Some(65536),
            output: Some(Size(1 << 20)),
            on_output: Some(OnOutput::Keep),
            fsize: Some(Size(100 << 20)),
            nofile: Some(1024),
            stack: Some(Size(8 << 20)),
            core: Some(Size(0)),
            memlock: Some(Size(64 << 10)),
            sigpending: Some(1024),
            msgqueue: Some(Size(0)),
            net: Some(Net::None),
            require: vec![Requirement::Minimum],
            ..Options::default()
        }
    }

    /// These options where they are given, `base` where they are not. Lists replace lists.
    #[must_use]
    pub fn over(self, base: Options) -> Options {
        fn list<T>(over: Vec<T>, base: Vec<T>) -> Vec<T> {
            if over.is_empty() {
                base
            } else {
                over
            }
        }
        Options {
            command: list(self.command, base.command),
            inputs: list(self.inputs, base.inputs),
            outputs: list(self.outputs, base.outputs),
            bind: list(self.bind, base.bind),
            root: self.root.or(base.root),
            cwd: self.cwd.or(base.cwd),
            env: list(self.env, base.env),
            hostname: self.hostname.or(base.hostname),
            stdin: self.stdin.or(base.stdin),
            user: self.user.or(base.user),
            wall: self.wall.or(base.wall),
            cpu: self.cpu.or(base.cpu),
            idle: self.idle.or(base.idle),
            grace: self.grace.or(base.grace),
            memory: self.memory.or(base.memory),
            pids: self.pids.or(base.pids),
            disk: self.disk.or(base.disk),
            inodes: self.inodes.or(base.inodes),
            output: self.output.or(base.output),
            on_output: self.on_output.or(base.on_output),
            split: self.split || base.split,
            timestamps: self.timestamps || base.timestamps,
            fsize: self.fsize.or(base.fsize),
            nofile: self.nofile.or(base.nofile),
            stack: self.stack.or(base.stack),
            core: self.core.or(base.core),
            address_space: self.address_space.or(base.address_space),
            data: self.data.or(base.data),
            memlock: self.memlock.or(base.memlock),
            nproc: self.nproc.or(base.nproc),
            sigpending: self.sigpending.or(base.sigpending),
            msgqueue: self.msgqueue.or(base.msgqueue),
            net: self.net.or(base.net),
            abi32: self.abi32 || base.abi32,
            require: list(self.require, base.require),
            skip: list(self.skip, base.skip),
            report: self.report.or(base.report),
            quiet: self.quiet || base.quiet,
        }
    }

    /// Reads a job document.
    ///
    /// # Errors
    /// One sentence that names the key or the place: unknown keys, wrong types, numbers out of
    /// range, text after the document, documents over [`DOCUMENT_MAX`].
    pub fn from_json(text: &[u8]) -> Result<Options, BadForm> {
        if text.len() > DOCUMENT_MAX {
            return Err(BadForm(format!(
                "job document of {} bytes; at most {DOCUMENT_MAX} are accepted",
                text.len()
            )));
        }
        // A sequence of values in the order of the fields would be taken as well.
        if text.trim_ascii_start().first().is_some_and(|byte| *byte != b'{') {
            return Err(BadForm("job document: expected an object, {...}".to_owned()));
        }
        serde_json::from_slice(text).map_err(|error| {
            // It quotes keys and values as they are, and ends on a terminal.
            let why = error.to_string().chars().fold(String::new(), |mut harmless, c| {
                match c.is_control() {
                    true => harmless.extend(c.escape_default()),
                    false => harmless.push(c),
                }
                harmless
            });
            BadForm(format!("job document: {why}"))
        })
    }
}

/// The largest job document, in bytes: it fits one frame.
pub const DOCUMENT_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests;
