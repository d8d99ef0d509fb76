//! A place for jobs: a leased uid and storage, from `open` to `close`. Jobs run in it one after
//! the other, each in a sandbox and a cgroup of its own.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use autodriver_protocol::report::{LayerReport, Leftover, Report, Restore, Timing, Usage, REPORT_VERSION};
use autodriver_protocol::Layer;

use crate::facts::Facts;
use crate::fault::{Fault, Step};
use crate::plan::{Plan, User};
use crate::restore::{look, mounts, remove_cgroup};
use crate::sandbox::accounts::{Account, AccountFiles};
use crate::sandbox::cgroup::{Cgroup, Limits};
use crate::sandbox::prepare::{prepare, Furnishings, Ground};
use crate::sandbox::spawn::begin;
use crate::sandbox::storage::{Attached, Storage};
use crate::supervise::verdict::judge;
use crate::supervise::{Job, Outcome};
use crate::uids::{self, Lease};

/// A place for jobs.
#[derive(Debug)]
pub struct Slot {
    // In the order in which they are given back: the uid last.
    shown: Option<Attached>,
    storage: Storage,
    files: AccountFiles,
    lease: Lease,
    /// Something of an earlier job of this slot is still there.
    leftovers: Vec<Leftover>,
}

impl Slot {
    /// Leases a uid and makes storage for files put before the first job; its limits replace these.
    ///
    /// # Errors
    /// Which of the two could not be had.
    pub fn open(user: &User, bytes: u64, inodes: u64) -> Result<Slot, Fault> {
        let files = AccountFiles::read("/");
        let lease = match user {
            User::Leased => uids::lease(|uid| files.has_uid(uid))?,
            User::Uid(uid) => lease_user(*uid)?,
            User::Name(name) => lease_user(files.uid_of(name)?)?,
        };
        let storage = Storage::create(lease.uid)?;
        storage.limit(bytes, inodes)?;
        Ok(Slot { shown: None, storage, files, lease, leftovers: Vec::new() })
    }

    /// The uid of its jobs.
    pub fn uid(&self) -> u32 {
        self.lease.uid
    }

    /// Its storage.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Starts a job; `last` says that no other comes after it.
    ///
    /// # Errors
    /// What could not be made; nothing is left of it.
    pub fn start(
        &mut self,
        mut plan: Plan,
        facts: &Facts,
        requested: Instant,
        stdin: Option<OwnedFd>,
        last: bool,
    ) -> Result<Job, Fault> {
        self.storage.make_room()?;
        if !plan.applies(Layer::MountNamespace) {
            let shown = self.storage.show(self.lease.uid)?;
            plan.home = format!("{}/job", shown.0);
            plan.tmp = format!("{}/tmp", shown.0);
            self.shown = Some(shown);
        }
        let other;
        let files = match plan.root.as_str() {
            "/" => &self.files,
            root => {
                other = AccountFiles::read(root);
                &other
            }
        };
        let account = Account { name: files.name_of(self.lease.uid), uid: self.lease.uid };
        let applies = |layer| plan.applies(layer);
        let disk = if applies(Layer::Disk) { (plan.disk, plan.inodes) } else { (0, 0) };
        let limits = Limits {
            // Files in the storage are charged to the job as memory; see `supervise::limits`.
            memory: applies(Layer::Memory)
                .then(|| plan.memory + if disk.0 == 0 { facts.half_memory } else { disk.0 }),
            pids: applies(Layer::Pids).then_some(plan.pids),
        };
        let storage = &self.storage;
        let ground =
            Ground { plan: &plan, account: &account, storage, landlock_abi: facts.landlock_abi, stdin };
        let starting = begin(&plan, prepare(ground)?)?;
        let cgroup = Cgroup::create(&facts.hierarchy, self.lease.uid, limits)?;
        let spawned = starting.finish(&Furnishings {
            plan: &plan,
            account: &account,
            files,
            storage,
            cgroup: &cgroup,
            disk,
            last,
        })?;
        Ok(Job::new(plan, spawned, cgroup, requested, facts.processors))
    }

    /// Puts the machine back after a job, looks whether it is, and reports.
    pub fn conclude(&mut self, outcome: Outcome) -> Report {
        let started = Instant::now();
        let Outcome { happened, account, cgroup, output, plan, setup, wall, run } = outcome;
        self.shown = None;
        let mut leftovers = remove_cgroup(cgroup);
        leftovers.extend(look(self.lease.uid, plan.applies(Layer::IpcNamespace)));
        self.leftovers.extend(leftovers.iter().cloned());
        let verdict = judge(happened);
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Report {
            version: REPORT_VERSION,
            cause: verdict.cause,
            exit_code: verdict.exit_code,
            signal: verdict.signal,
            limits_hit: verdict.limits_hit.into_iter().map(str::to_owned).collect(),
            usage: Usage {
                wall_us: micros(wall),
                cpu_user_us: account.cpu_user_us,
                cpu_system_us: account.cpu_system_us,
                memory_peak_bytes: account.memory_peak,
                pids_peak: account.pids_peak,
            },
            output,
            layers: plan.layers,
            restore: Restore::from_leftovers(leftovers),
            fault: verdict.fault.as_ref().map(Fault::report),
            timing: Timing {
                setup_us: micros(setup),
                run_us: micros(run),
                restore_us: micros(started.elapsed()),
            },
        }
    }

    /// Gives everything back; what is left.
    pub fn close(self) -> Vec<Leftover> {
        let Slot { shown, storage, lease, mut leftovers, .. } = self;
        drop(shown);
        drop(storage);
        let uid = lease.uid;
        leftovers.extend(mounts(uid));
        if !leftovers.is_empty() {
            lease.keep_record();
        }
        leftovers
    }
}

fn lease_user(uid: u32) -> Result<Lease, Fault> {
    // A driver that looks whether the uid's last holder is dead has the lock for a moment.
    for _ in 0..20 {
        if let Some(lease) = uids::try_lease(uid)? {
            return Ok(lease);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(Fault::refused(Step::Uid, format!("run as uid {uid}"), "another job is running as it"))
}

/// The report on a job that could not be started.
pub fn setup_failed(layers: Vec<LayerReport>, fault: &Fault) -> Report {
    Report {
        version: REPORT_VERSION,
        cause: autodriver_protocol::Cause::SetupFailed,
        exit_code: None,
        signal: None,
        limits_hit: Vec::new(),
        usage: Usage::default(),
        output: autodriver_protocol::report::OutputReport::default(),
        layers,
        restore: Restore::from_leftovers(Vec::new()),
        fault: Some(fault.report()),
        timing: Timing::default(),
    }
}
