//! A place for jobs: a leased uid and storage, from `open` to `close`. Jobs run in it one after
//! the other, each in a sandbox and a cgroup of its own.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use autodriver_protocol::report::{LayerReport, Leftover, Report, Restore, Timing, Usage, REPORT_VERSION};
use autodriver_protocol::Layer;
use nix::errno::Errno;

use crate::facts::Facts;
use crate::fault::{Fault, Step};
use crate::keeper::Keeper;
use crate::plan::{Plan, User};
use crate::restore::{clear_cgroups, look, mounts, process, remove_cgroup, sweep_if_ours};
use crate::sandbox::accounts::{Account, AccountFiles};
use crate::sandbox::cgroup::{Cgroup, Limits};
use crate::sandbox::prepare::{prepare, Furnishings, Ground};
use crate::sandbox::spawn::begin;
use crate::sandbox::storage::{Attached, Storage};
use crate::sandbox::{Identity, NOBODY};
use crate::supervise::verdict::judge;
use crate::supervise::{self, Job, Outcome, Start};
use crate::uids::{self, Lease};

/// How many uids are passed over because another user has made a directory where theirs would be.
const SQUATTED_MAX: u32 = 100;

/// A place for jobs.
#[derive(Debug)]
pub struct Slot {
    // In the order in which they are given back: the uid last. The keeper after what it keeps.
    shown: Option<Attached>,
    storage: Storage,
    files: AccountFiles,
    keeper: Option<Keeper>,
    holder: Holder,
    /// What its things are called: the uid, if it has one of its own.
    tag: String,
    /// Something of an earlier job of this slot is still there.
    leftovers: Vec<Leftover>,
    /// A job was started, and not followed to its end.
    unconcluded: bool,
}

/// Whose uid the jobs of a slot have.
#[derive(Debug)]
enum Holder {
    /// One of their own.
    Leased(Lease),
    /// The driver's, where it can give them no other.
    Callers(Identity),
}

impl Slot {
    /// Leases a uid and makes storage for files put before the first job; its limits replace these.
    ///
    /// # Errors
    /// Which of the two could not be had.
    pub fn open(user: &User, facts: &Facts, bytes: u64, inodes: u64) -> Result<Slot, Fault> {
        let files = AccountFiles::read("/")?;
        let mut tries = 0..SQUATTED_MAX;
        let (holder, keeper, tag, storage) = loop {
            match Slot::place(user, facts, &files) {
                // Where jobs have no mounts their place is in /tmp, and another user was there first.
                Err(fault) if *user == User::Leased && fault.errno == Some(Errno::EEXIST) => {
                    tries.next().ok_or(fault)?;
                }
                placed => break placed?,
            }
        };
        storage.limit(bytes, inodes)?;
        Ok(Slot {
            shown: None,
            storage,
            files,
            keeper,
            holder,
            tag,
            leftovers: Vec::new(),
            unconcluded: false,
        })
    }

    /// A uid, and what is made for it.
    fn place(
        user: &User,
        facts: &Facts,
        files: &AccountFiles,
    ) -> Result<(Holder, Option<Keeper>, String, Storage), Fault> {
        let holder = match user {
            _ if facts.own_uids.is_err() => Holder::Callers(Identity::shared(facts)),
            User::Leased => Holder::Leased(uids::lease(|uid| files.has_uid(uid))?),
            User::Uid(uid) => Holder::Leased(lease_user(*uid)?),
            User::Name(name) => Holder::Leased(lease_user(files.uid_of(name)?)?),
        };
        let owner = match &holder {
            Holder::Leased(lease) => Some(lease.uid),
            Holder::Callers(_) => None,
        };
        // Otherwise all that a job has dies with its driver.
        let keeper = if facts.mounts() { None } else { Some(Keeper::start(facts, owner)?) };
        let tag = owner.map_or_else(uids::own_tag, |uid| uid.to_string());
        let storage = match owner {
            _ if !facts.mounts() => Storage::plain(uids::shown_place(&tag), owner),
            Some(uid) => Storage::create(owner, uids::mount_point(uid)),
            None => Storage::create(owner, format!("{}.storage", uids::shown_place(&tag))),
        };
        match storage {
            Ok(storage) => Ok((holder, keeper, tag, storage)),
            Err(fault) => {
                if let Holder::Leased(lease) = holder {
                    // For the next driver, which removes it.
                    if !mounts(lease.uid).is_empty() {
                        lease.keep_record();
                    }
                }
                Err(fault)
            }
        }
    }

    /// The uid of its jobs.
    fn uid(&self) -> u32 {
        match &self.holder {
            Holder::Leased(lease) => lease.uid,
            Holder::Callers(_) => nix::unistd::geteuid().as_raw(),
        }
    }

    /// Whose that is.
    pub fn identity(&self) -> Identity {
        match &self.holder {
            Holder::Leased(lease) => Identity::Own(lease.uid),
            Holder::Callers(identity) => *identity,
        }
    }

    /// Its storage.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// What is known to be left of its jobs.
    pub fn leftovers(&self) -> Vec<Leftover> {
        self.leftovers.clone()
    }

    /// Starts a job; `last` says that no other comes after it.
    ///
    /// # Errors
    /// What could not be made. What is left of it all the same, [`Slot::close`] says.
    pub fn start(
        &mut self,
        plan: Plan,
        facts: &Facts,
        requested: Instant,
        stdin: Option<OwnedFd>,
        last: bool,
    ) -> Result<Job, Fault> {
        let started = self.begin(plan, facts, requested, stdin, last);
        if started.is_err() {
            self.abandon(facts);
        }
        started
    }

    /// Removes what is there of a job that was started, or half started, and not followed to its end.
    pub fn abandon(&mut self, facts: &Facts) {
        self.leftovers.extend(clear_cgroups(facts, &self.tag));
    }

    fn begin(
        &mut self,
        mut plan: Plan,
        facts: &Facts,
        requested: Instant,
        stdin: Option<OwnedFd>,
        last: bool,
    ) -> Result<Job, Fault> {
        supervise::check(&plan)?;
        self.storage.make_room()?;
        let uid = self.uid();
        if !plan.enforces(Layer::MountNamespace) {
            let path = match self.storage.path() {
                Some(path) => path.to_owned(),
                None => {
                    let shown = self.storage.show(&uids::shown_place(&self.tag))?;
                    self.shown.insert(shown).0.clone()
                }
            };
            plan.show_storage_at(&path);
        }
        let other;
        let files = match plan.root.as_str() {
            "/" => &self.files,
            root => {
                other = AccountFiles::read(root)?;
                &other
            }
        };
        let account = Account { name: files.name_of(uid), uid };
        let storage = &self.storage;
        let ground = Ground {
            plan: &plan,
            account: &account,
            tag: &self.tag,
            identity: self.identity(),
            storage: Some(storage),
            facts,
            stdin,
        };
        let starting = begin(&plan, prepare(ground)?)?;
        starting.furnish(&Furnishings {
            plan: &plan,
            account: &account,
            files,
            storage,
            disk: plan.storage_limit(),
            last,
        })?;
        let limits = Limits::of(&plan, facts.half_memory);
        let cgroup = Cgroup::create(facts, &self.tag, limits)?;
        let spawned = starting.finish(&plan, &cgroup)?;
        self.unconcluded = true;
        if let Some(keeper) = &self.keeper {
            keeper.job_started(spawned.init.pid);
        }
        let identity = self.identity();
        Job::new(Start { plan, spawned, cgroup, identity, storage, requested, facts })
    }

    /// Puts the machine back after a job, looks whether it is, and reports.
    pub fn conclude(&mut self, outcome: Outcome) -> Report {
        let started = Instant::now();
        let Outcome { happened, account, cgroup, unkilled, output, plan, setup, wall, run } = outcome;
        self.shown = None;
        self.unconcluded = false;
        let mut leftovers = remove_cgroup(cgroup);
        leftovers.extend(unkilled.into_iter().map(process));
        // Without namespaces that take them along, processes, objects and files have to be looked for.
        let swept = [Layer::ProcessTree, Layer::MountNamespace, Layer::IpcNamespace];
        if let (Holder::Leased(lease), true) =
            (&self.holder, swept.into_iter().any(|one| plan.substitutes(one)))
        {
            // Where Landlock keeps a job from others' directories, what they hold says nothing about it.
            let confined = plan.enforces(Layer::Landlock);
            leftovers.extend(sweep_if_ours(lease.uid, self.storage.path(), confined));
        }
        // What is found of a uid that others have too says nothing about the job.
        if let Holder::Leased(lease) = &self.holder {
            leftovers.extend(look(lease.uid, plan.enforces(Layer::IpcNamespace)));
        }
        self.leftovers.extend(leftovers.iter().cloned());
        if let Some(keeper) = &self.keeper {
            keeper.job_ended();
        }
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
        let Slot { shown, storage, keeper, holder, tag, mut leftovers, unconcluded, .. } = self;
        if let (Holder::Leased(lease), true) = (&holder, unconcluded) {
            leftovers.extend(sweep_if_ours(lease.uid, storage.path(), true));
        }
        drop(shown);
        let place = storage.path().map(str::to_owned);
        drop(storage);
        drop(keeper);
        if let Some(place) = place.filter(|place| std::fs::symlink_metadata(place).is_ok()) {
            leftovers.push(Leftover { kind: "file".into(), what: place });
        }
        if let Holder::Leased(lease) = holder {
            leftovers.extend(mounts(lease.uid));
            if !leftovers.is_empty() {
                lease.keep_record();
            } else if let Err(errno) = lease.give_back() {
                leftovers.push(Leftover { kind: "lease".into(), what: format!("{tag}: {errno}") });
            }
        }
        leftovers
    }
}

fn lease_user(uid: u32) -> Result<Lease, Fault> {
    if [0, NOBODY, uids::STAND_IN].contains(&uid) {
        let why = "the sandbox's own processes have that uid; give another";
        return Err(Fault::refused(Step::Request, format!("run as uid {uid}"), why));
    }
    // A driver that looks whether the uid's last holder is dead has the lock for a moment.
    for _ in 0..20 {
        if let Some(lease) = uids::try_lease(uid)? {
            return Ok(lease);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(Fault::refused(Step::Uid, format!("run as uid {uid}"), "another job is running as it"))
}

/// The report on a job that could not be started, or not be followed.
pub fn failed(layers: Vec<LayerReport>, fault: &Fault, leftovers: Vec<Leftover>) -> Report {
    Report {
        version: REPORT_VERSION,
        cause: fault.cause(),
        exit_code: None,
        signal: None,
        limits_hit: Vec::new(),
        usage: Usage::default(),
        output: autodriver_protocol::report::OutputReport::default(),
        layers,
        restore: Restore::from_leftovers(leftovers),
        fault: Some(fault.report()),
        timing: Timing::default(),
    }
}
