//! `autodriver explain`: the sandbox that a job with these options would get. Runs nothing, makes
//! nothing; what `run` would refuse is refused in the same words.

mod text;

use autodriver_protocol::job::{Input, OnOutput, Output};
use autodriver_protocol::report::LayerReport;
use autodriver_protocol::units::Time;
use autodriver_protocol::{Layer, Options};
use serde::Serialize;

use crate::cli::print;
use crate::plan::{plan, Plan, User};
use crate::run::with_document;
use crate::sandbox::accounts::{AccountFiles, LEASED_NAME};
use crate::sandbox::describe::{describe, placeholder, Sandbox};
use crate::sandbox::prepare::before;
use crate::sandbox::seccomp;
use crate::{facts, uids};

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Everything that the job would get.
#[derive(Debug, Serialize)]
struct Explained {
    version: u32,
    layers: Vec<LayerReport>,
    limits: Limits,
    #[serde(rename = "in")]
    inputs: Vec<Input>,
    #[serde(rename = "out")]
    outputs: Vec<Output>,
    #[serde(flatten)]
    sandbox: Sandbox,
}

/// What the driver watches, in the words of the job document; absent means no limit.
#[derive(Debug, Serialize)]
struct Limits {
    wall: Time,
    cpu: Option<Time>,
    idle: Option<Time>,
    grace: Time,
    memory: u64,
    pids: u64,
    disk: u64,
    inodes: u64,
    output: u64,
    on_output: OnOutput,
    split: bool,
    timestamps: bool,
}

impl Limits {
    fn of(plan: &Plan) -> Limits {
        Limits {
            wall: Time(plan.wall),
            cpu: plan.cpu.map(Time),
            idle: plan.idle.map(Time),
            grace: Time(plan.grace),
            memory: plan.memory,
            pids: plan.pids,
            disk: plan.disk,
            inodes: plan.inodes,
            output: plan.output,
            on_output: plan.on_output,
            split: plan.split,
            timestamps: plan.timestamps,
        }
    }
}

/// Says it on stdout; the exit status, or the sentence that goes with 125.
pub fn main(document: Option<&str>, options: Options, json: bool, bpf: bool) -> Result<u8, String> {
    let options = with_document(document, options)?;
    let facts = facts::probe().map_err(|fault| fault.to_string())?;
    let (inputs, outputs) = (options.inputs.clone(), options.outputs.clone());
    let mut plan = plan(options, &facts).map_err(|refusal| refusal.0)?;
    let (uid, name) = who(&plan).map_err(|fault| fault.to_string())?;
    if !plan.enforces(Layer::MountNamespace) {
        plan.show_storage_at(&uids::shown_place(&placeholder(uid)));
    }
    let mut sandbox = describe(&plan, uid, name, &facts).map_err(|fault| fault.to_string())?;
    if let Some(filter) = sandbox.seccomp.as_mut().filter(|_| bpf) {
        filter.bpf = Some(seccomp::disassemble_job(plan.abi32, before(&plan)));
    }
    let limits = Limits::of(&plan);
    let explained = Explained { version: VERSION, layers: plan.layers, limits, inputs, outputs, sandbox };
    let text = match json {
        true => serde_json::to_string(&explained).map_err(|error| error.to_string())? + "\n",
        false => text::render(&explained),
    };
    print(&text).map(|()| 0)
}

/// The job's uid, if it is known before one is leased, and its name.
fn who(plan: &Plan) -> Result<(Option<u32>, String), crate::fault::Fault> {
    let uid = match &plan.user {
        User::Leased => return Ok((None, LEASED_NAME.to_owned())),
        User::Uid(uid) => *uid,
        User::Name(name) => AccountFiles::read("/")?.uid_of(name)?,
        User::Dedicated { ids, .. } => ids.uid,
    };
    Ok((Some(uid), AccountFiles::read(&plan.root)?.name_of(uid)))
}
