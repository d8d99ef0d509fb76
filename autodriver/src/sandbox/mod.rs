//! # The box: theory of operation
//!
//! The **driver** leases a uid and creates **init** with clone3(2) in a new PID namespace. While
//! init makes itself mount, network, IPC and UTS namespaces, which takes longest, the driver furnishes
//! the storage and hands it over; while init puts the job's root together of it, the driver makes the
//! cgroup. init forks the **job** into the cgroup, lets go of the machine's root, brings up what is around
//! the job, gives up every privilege, and from then on only reaps;
//! when the job's first process ends it says how and exits, and the kernel kills whatever else is in
//! the PID namespace.
//!
//! The job process takes everything else away from itself, in the order of [`LAYERS`]; each line below
//! says why it stands where it stands. It waits until init has given up its privileges, then
//! executes the program. A step that fails is sent to the driver as numbers ([`report`]); nothing
//! is ever written to the job's own streams.
//!
//! All that can fail by logic is decided in [`crate::plan`] and laid out in [`prepare`] before the
//! fork. The children of the driver do allocate memory (path lookups of Landlock, for one); that
//! is sound because the driver has a single thread, which [`spawn`] checks.

pub mod report;
pub mod prepare;
pub mod storage;
pub mod plain;
pub mod home;
pub mod sweep;
pub mod accounts;
mod layout;
pub mod cgroup;
pub mod aside;
pub mod handover;
pub mod spawn;
mod init;
mod attach;
mod session;
mod mounts;
mod network;
mod rlimits;
mod privileges;
pub mod landlock;
pub mod seccomp;
mod read_back;
mod exec;
pub mod describe;

use nix::errno::Errno;

use crate::fault::Step;
use prepare::Prepared;
use report::{Record, Reporter};

/// One layer, applied in init or in the job process.
struct Layer {
    step: Step,
    apply: fn(&Prepared) -> Result<(), Failed>,
}

/// Which object of the step, and why.
#[derive(Clone, Copy, Debug)]
struct Failed {
    index: u16,
    errno: Errno,
}

/// For `map_err`: the error belongs to the `index`-th object.
fn on(index: usize) -> impl Fn(Errno) -> Failed {
    let index = u16::try_from(index).unwrap_or(u16::MAX);
    move |errno| Failed { index, errno }
}

/// What is made around the job before there is one: init does it, while the driver makes the cgroup.
/// Reading this table and the next two top to bottom is reading what the job loses, in order.
const SURROUNDINGS: &[Layer] = &[
    // Needs CAP_SYS_ADMIN.
    Layer { step: Step::Mounts, apply: mounts::apply },
];

/// What init does beside the job, which takes as long for what it does itself, and waits for init before it
/// executes anything.
const BESIDE: &[Layer] = &[
    // Needs CAP_SYS_ADMIN.
    Layer { step: Step::Mounts, apply: mounts::let_go },
    // Needs CAP_NET_ADMIN and CAP_SYS_ADMIN.
    Layer { step: Step::Network, apply: network::apply },
];

/// What the job does itself.
const LAYERS: &[Layer] = &[
    // Before it uses anything; kernel objects of the set-up that outlive it are few.
    Layer { step: Step::Attach, apply: attach::apply },
    // Before anything can signal us through a terminal or a group.
    Layer { step: Step::Session, apply: session::apply },
    // Raising a hard limit needs CAP_SYS_RESOURCE; lowering must come before the uid's own count.
    Layer { step: Step::Rlimits, apply: rlimits::apply },
    // From here on nothing can be regained.
    Layer { step: Step::Privileges, apply: privileges::apply },
    // Needs no_new_privs; opens its paths in the job's file system.
    Layer { step: Step::Landlock, apply: landlock::apply },
    // Only 0, 1 and 2 survive execve.
    Layer { step: Step::Descriptors, apply: exec::descriptors },
    // Last to take something, so that the filter need not allow any of the above.
    Layer { step: Step::Seccomp, apply: seccomp_layer },
    // Not assumed.
    Layer { step: Step::ReadBack, apply: read_back::apply },
];

fn seccomp_layer(prepared: &Prepared) -> Result<(), Failed> {
    prepared.filters.iter().try_for_each(|filter| seccomp::install(filter).map_err(on(0)))
}

/// Applies them in order, in a child of the driver, which ends with the first that fails.
fn apply(layers: &[Layer], prepared: &Prepared, reporter: &Reporter) {
    for layer in layers {
        if let Err(failed) = (layer.apply)(prepared) {
            fail(reporter, layer.step, failed);
        }
    }
}

/// Becomes the job. Every path ends in execve(2) or _exit(2).
fn enter(prepared: &Prepared, reporter: &Reporter) -> ! {
    apply(LAYERS, prepared, reporter);
    // Whatever is executed meets an init that has no privileges.
    if let Err(failed) = exec::wait_for_init(prepared) {
        fail(reporter, Step::Descriptors, failed);
    }
    if let Err(failed) = exec::change_directory(prepared) {
        fail(reporter, Step::Exec, failed);
    }
    // What the driver does not know to be a job is none.
    if reporter.send(Record::ExecNext).is_err() {
        crate::sys::process::exit_now(SETUP_FAILED);
    }
    fail(reporter, Step::Exec, exec::execute(prepared))
}

/// Ends a child of the driver that could not do a step.
fn fail(reporter: &Reporter, step: Step, failed: Failed) -> ! {
    let _ = reporter.send(Record::Fault { step, index: failed.index, errno: failed.errno });
    crate::sys::process::exit_now(SETUP_FAILED)
}

/// What a child exits with when it has sent a fault; nobody looks at it.
const SETUP_FAILED: i32 = 125;

/// Gives up every privilege, for a child of the driver that is not a job.
///
/// # Errors
/// Why one of them could not be given up.
pub fn give_up(identity: Identity) -> Result<(), Errno> {
    privileges::give_up(identity).map_err(|failed| failed.errno)
}

pub use init::NOBODY;
pub use privileges::{Identity, Ids};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_stand_in_the_order_of_the_steps() {
        let around: Vec<&Layer> = SURROUNDINGS.iter().chain(LAYERS).collect();
        for layers in [around, BESIDE.iter().collect()] {
            let steps: Vec<Step> = layers.iter().map(|layer| layer.step).collect();
            assert!(steps.is_sorted_by(|one, next| one < next), "{steps:?}");
        }
    }
}
